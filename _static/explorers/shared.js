/* What the explorers of projections share: elements, scales, crosses, radio buttons, and drawing anew.
   Plain JavaScript and SVG; _ext/book_extension.py loads it before each explorer. */
(function () {
  "use strict";

  // ---------------------------------------------------------------- elements

  /** Make an element of a namespace; children are elements or strings. */
  function make(namespace, tag, attributes, children) {
    const node = document.createElementNS(namespace, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const html = (tag, attributes = {}, ...children) =>
    make("http://www.w3.org/1999/xhtml", tag, attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    make("http://www.w3.org/2000/svg", tag, attributes, children);
  const line = (x1, y1, x2, y2, name) => svg("line", { x1, y1, x2, y2, class: name });

  // ---------------------------------------------------------------- pictures of a plane

  const KINDS = ["first", "second", "third"]; // colours of the classes, in explorer.css
  const PADDING = 12; // pixels between the outermost mark and the frame
  const distance = ([x, y], [u, v]) => Math.hypot(x - u, y - v);

  /** Points' places and templates of pictures, as a list of [x, y]; `placesOf` gives those of a picture's points. */
  const placesIn = (pictures, placesOf) =>
    pictures.flatMap((picture) => [...placesOf(picture), ...picture.corners]);

  /** The box with all the places in it, `unit` pixels to one unit on both axes; x and y turn data into pixels. */
  function scaled(box, places) {
    const limits = [0, 1].map((axis) => places.map((place) => place[axis]));
    const [[xLow, xHigh], [yLow, yHigh]] = limits.map((values) => [Math.min(...values), Math.max(...values)]);
    const unit = Math.min((box.right - box.left - 2 * PADDING) / (xHigh - xLow),
      (box.bottom - box.top - 2 * PADDING) / (yHigh - yLow));
    const x = (value) => (box.left + box.right) / 2 + (value - (xLow + xHigh) / 2) * unit;
    const y = (value) => (box.top + box.bottom) / 2 - (value - (yLow + yHigh) / 2) * unit;
    return { ...box, unit, x, y };
  }

  /** Crosses of the three templates at places in pixels, at most `largest` to each side; smaller where these lie close
      together, by their `share` of the shortest distance. */
  function crosses(places, largest, share) {
    const shortest = Math.min(...places.map((place, k) => distance(place, places[(k + 1) % 3])));
    const size = Math.max(3, Math.min(largest, share * shortest));
    return places.flatMap(([x, y], kind) => {
      const d = `M${x - size} ${y - size}l${2 * size} ${2 * size}m0 ${-2 * size}l${-2 * size} ${2 * size}`;
      return [svg("path", { d, class: "halo" }),
        svg("path", { d, class: `template ${KINDS[kind]}`, "data-x": x, "data-y": y })];
    });
  }

  // ---------------------------------------------------------------- the page

  /** Radio buttons of one setting of an explorer; `options` are pairs of value and words. */
  function radios(explorer, [key, title, options], onChange) {
    const inputs = options.map(([value]) =>
      html("input", { type: "radio", name: `explorer-${explorer}-${key}`, value, autocomplete: "off" }));
    const labels = options.map(([, words], i) => html("label", {}, inputs[i], ` ${words}`));
    inputs.forEach((input) => input.addEventListener("change", () => onChange({ [key]: input.value })));
    const update = (s) => inputs.forEach((input) => { input.checked = input.value === s[key]; });
    const node = html("fieldset", { class: "explorer-choice" }, html("legend", {}, title), html("div", {}, ...labels));
    return { node, update };
  }

  /** Draw anew when the width changes; in the next frame, because drawing changes the height, which is observed too. */
  function redrawOnResize(root, update) {
    let width = root.clientWidth;
    new ResizeObserver(() => {
      if (root.clientWidth === width) return;
      width = root.clientWidth;
      requestAnimationFrame(update);
    }).observe(root);
  }

  /** Let `build` fill the place of an explorer once the page is there. */
  function start(explorer, build) {
    const fill = () => document.querySelectorAll(`#explorer-${explorer}`).forEach(build);
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", fill);
    else fill();
  }

  window.lsbook = window.lsbook || {};
  window.lsbook.shared = {
    html, svg, line, KINDS, distance, placesIn, scaled, crosses, radios, redrawOnResize, start,
  };
})();
