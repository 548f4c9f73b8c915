/* The explorer of "How the clusters form": two networks, hard targets and smoothed ones, epoch by epoch in the plane
   through three templates. Plain JavaScript and SVG. Pictures and numbers come from growth-data.js, which
   _ext/growth_data.py writes; nothing is computed here but where on the screen a place lies. What it shares with other
   explorers comes from shared.js. */
(function () {
  "use strict";

  const { html, svg, line, KINDS, placesIn, scaled, crosses, radios, redrawOnResize, start } = window.lsbook.shared;

  // ---------------------------------------------------------------- data, settings and words

  const { classes: DIGITS, epochs: EPOCHS, images: IMAGES, frames: FRAMES } = window.lsbook.growthData;
  const LAST = EPOCHS.length - 1;
  const TARGETS = [["0", "Hard"], ["0.1", "Smoothed"]];
  const EXPLORER = "growth";
  const SCALES = ["scale", "Scale", [["own", "own, at each epoch"], ["one", "one for all epochs"]]];
  const PAUSE = 900; // milliseconds between two epochs while it plays

  /** A frame of the data, its lengths in units of the plane. */
  function view(alpha, step) {
    const { corners, points, tightness, distance } = FRAMES[alpha][step];
    const unit = ([x, y]) => [x / 1000, y / 1000];
    return {
      corners: corners.map(unit), points: points.map((group) => group.map(unit)),
      tightness: (tightness / 1000).toFixed(3), distance: (distance / 1000).toFixed(3),
    };
  }

  const VIEWS = TARGETS.map(([alpha]) => EPOCHS.map((_, step) => view(alpha, step)));

  /** The two pictures of an epoch with the pictures that give each its scale. */
  function solve(state) {
    const epoch = EPOCHS[state.step];
    const pictures = TARGETS.map(([, name], i) => {
      const shown = VIEWS[i][state.step];
      return { ...shown, name, epoch, around: state.scale === "own" ? [shown] : VIEWS.flat() };
    });
    return { ...state, epoch, pictures };
  }

  const numbers = ({ name, epoch, tightness, distance }) => `${name}, epoch\u00a0${epoch}: ` +
    `spread\u00a0/\u00a0distance ${tightness}, distance of the class centres ${distance}.`;
  const count = (groups) => groups.flat().length;
  const describe = (picture, ruler) => `${count(picture.points)} held-out images of the digits ${DIGITS.join(", ")} ` +
    `in the plane of their templates: that of ${DIGITS[0]} at the lower left, of ${DIGITS[1]} at the lower right, of ` +
    `${DIGITS[2]} above. The bar below is ${ruler} long. ${numbers(picture)}`;
  const NOTE = `Each mark is a held-out image, drawn in the plane of the three templates (crosses; the thin lines ` +
    `run from their centroid). The bar below a picture is its ruler. ${count(FRAMES[0][0].points)} of the ${IMAGES} ` +
    `held-out images of these digits are drawn; the numbers are of all ${IMAGES}. One scale for all epochs is also ` +
    `the same in both pictures.`;

  // ---------------------------------------------------------------- scales

  const RULER = 26; // pixels below the frame, for the ruler
  const MARKS = ["M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0Z", "M-3-3H3V3H-3Z", "M0-4.1L3.9 2.8H-3.9Z"];

  /** The frame with room for these pictures. */
  const area = (width, height, pictures) => scaled(
    { left: 1, right: width - 1, top: 1, bottom: height - RULER }, placesIn(pictures, ({ points }) => points.flat()));

  /** 1, 2 or 5 times a power of ten, the largest that is not above a positive value. */
  function roundLength(value) {
    const power = Math.floor(Math.log10(value));
    // As text, because 5 * 1e-6 is not 5e-6; with the powers beside it, because the logarithm is rounded.
    const lengths = [1, 0, -1].flatMap((more) => [5, 2, 1].map((digit) => Number(`${digit}e${power + more}`)));
    return lengths.find((length) => length <= value);
  }

  // ---------------------------------------------------------------- the picture

  /** A mark of a class; half filled, so that one sees through to those beneath. */
  const mark = (x, y, kind, name = "mark") => svg("path", {
    d: MARKS[kind], transform: `translate(${x.toFixed(2)} ${y.toFixed(2)})`, class: `${name} ${KINDS[kind]}`,
  });

  /** Marks of all points, first images of all classes first, so that no class covers the others. */
  const marks = (box, groups) => groups[0].flatMap((_, rank) =>
    groups.map((group, kind) => mark(box.x(group[rank][0]), box.y(group[rank][1]), kind)));

  /** Thin lines from the templates' centroid, which is 0, through the templates to the frame. */
  function rays(box, corners) {
    const [x, y] = [box.x(0), box.y(0)];
    const reach = (step, low, high) => (step > 0 ? high / step : low / step); // infinite for 0
    return corners.map((corner) => {
      const [across, down] = [box.x(corner[0]) - x, box.y(corner[1]) - y];
      const times = Math.min(reach(across, box.left - x, box.right - x), reach(down, box.top - y, box.bottom - y));
      return line(x, y, x + times * across, y + times * down, "ray");
    });
  }

  const templates = (box, corners) => crosses(corners.map(([x, y]) => [box.x(x), box.y(y)]), 7, 1 / 5);

  /** Below the frame: a bar, at most a quarter of it long, with its length; the epoch at the other end. */
  function footer(box, length, epoch) {
    const [end, y] = [box.left + length * box.unit, box.bottom + 14];
    return [line(box.left, y, end, y, "ruler"),
      svg("text", { x: end + 6, y: y + 4.5, class: "length" }, String(length)),
      svg("text", { x: box.right, y: y + 4.5, "text-anchor": "end", class: "epoch" }, `epoch ${epoch}`)];
  }

  const frame = ({ left, right, top, bottom }) =>
    svg("rect", { x: left, y: top, width: right - left, height: bottom - top, class: "frame" });
  const draw = (picture, box, length) => [
    frame(box), ...rays(box, picture.corners), ...marks(box, picture.points), ...templates(box, picture.corners),
    ...footer(box, length, picture.epoch)];

  /** Title and picture of one network, drawn anew at its width on the page. */
  function panel(position) {
    const ids = ["title", "desc"].map((part) => `explorer-growth-${part}-${position}`);
    const image = svg("svg", { role: "img", "aria-labelledby": ids[0], "aria-describedby": ids[1] });
    const [alpha, name] = TARGETS[position];
    const heading = html("p", { class: "explorer-title", id: ids[0] }, `${name} (α\u00a0=\u00a0${alpha})`);
    const node = html("div", { class: "explorer-panel" }, heading, image);
    const update = (s) => {
      const picture = s.pictures[position];
      const width = Math.max(Math.floor(node.clientWidth), 150);
      const height = Math.min(Math.round(0.9 * width), 400) + RULER;
      const box = area(width, height, picture.around);
      const length = roundLength((box.right - box.left) / box.unit / 4);
      const size = { width, height, viewBox: `0 0 ${width} ${height}` };
      Object.entries(size).forEach(([name, value]) => image.setAttribute(name, value));
      image.replaceChildren(svg("desc", { id: ids[1] }, describe(picture, length)), ...draw(picture, box, length));
    };
    return { node, update };
  }

  // ---------------------------------------------------------------- the page

  /** The slider over the epochs; its steps are the epochs that there are, which lie ever farther apart. */
  function epochSlider(onChange) {
    const id = "explorer-growth-epoch";
    const input = html("input", { type: "range", id, min: 0, max: LAST, step: 1, autocomplete: "off" });
    const value = html("span", { class: "explorer-value", "aria-hidden": "true" });
    const ends = html("div", { class: "explorer-ends", "aria-hidden": "true" },
      html("span", {}, String(EPOCHS[0])), html("span", {}, String(EPOCHS[LAST])));
    const head = html("div", {}, html("label", { for: id }, "Training epoch"), value);
    input.addEventListener("input", () => onChange({ step: Number(input.value) }));
    const update = ({ step, epoch }) => {
      input.value = step;
      input.setAttribute("aria-valuetext", `epoch ${epoch}`);
      value.textContent = epoch;
    };
    return { node: html("div", { class: "explorer-slider" }, head, input, ends), update };
  }

  /** The button that steps through the epochs, from the first one again where the last one is shown. */
  function player(getStep, onChange) {
    const button = html("button", { type: "button", class: "explorer-play" });
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; };
    const next = () => {
      const step = Math.min(getStep() + 1, LAST);
      if (step === LAST) stop();
      onChange({ step });
    };
    const play = () => {
      timer = setInterval(next, PAUSE);
      onChange({ step: getStep() === LAST ? 0 : getStep() });
    };
    const playing = () => timer !== null;
    button.addEventListener("click", () => { if (playing()) { stop(); onChange({}); } else play(); });
    const update = () => { button.textContent = playing() ? "Pause" : "Play"; };
    return { node: button, update, stop, playing };
  }

  /** Which mark is which digit. */
  function legend() {
    const size = { width: 14, height: 14, viewBox: "-7 -7 14 14" };
    const sample = (shape) => svg("svg", { ...size, "aria-hidden": "true" }, shape);
    const item = (shape, words) => html("span", {}, sample(shape), words);
    const cross = svg("path", { d: "M-5-5L5 5M-5 5L5-5", class: "template plain" });
    return html("p", { class: "explorer-legend" },
      ...DIGITS.map((digit, kind) => item(mark(0, 0, kind, "sample"), `digit ${digit}`)), item(cross, "template"));
  }

  /** Both pictures' numbers. A screen reader speaks them when they change, but not at each step while it plays. */
  function spoken(playing) {
    const lines = TARGETS.map(() => html("span", {}));
    const node = html("p", { class: "explorer-summary" }, ...lines.flatMap((part) => [part, " "]));
    const update = (s) => {
      const before = node.getAttribute("aria-live");
      node.setAttribute("aria-live", playing() ? "off" : "polite");
      const again = before === "off" && !playing(); // what was not spoken while it played is, where it comes to rest
      lines.forEach((part, i) => {
        const words = numbers(s.pictures[i]);
        if (again || part.textContent !== words) part.replaceChildren(words);
      });
    };
    return { node, update };
  }

  /** Fill the explorer's place, replacing what stood there for readers without scripts. */
  function build(root) {
    let state = { step: 0, scale: "own" };
    const update = () => { const solution = solve(state); parts.forEach((part) => part.update(solution)); };
    const change = (changes) => { state = { ...state, ...changes }; update(); };
    const play = player(() => state.step, change);
    const slider = epochSlider((changes) => { play.stop(); change(changes); });
    const scale = radios(EXPLORER, SCALES, change);
    const panels = TARGETS.map((_, position) => panel(position));
    const words = spoken(play.playing);
    const parts = [slider, play, scale, ...panels, words];
    root.replaceChildren(
      html("div", { class: "explorer-time", role: "group", "aria-label": "Epoch" }, slider.node, play.node),
      scale.node, legend(), html("div", { class: "explorer-panels" }, ...panels.map((part) => part.node)),
      words.node, html("p", { class: "explorer-note" }, NOTE));
    update();
    redrawOnResize(root, update);
  }

  start(EXPLORER, build);
})();
