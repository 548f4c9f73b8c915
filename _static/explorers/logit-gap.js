/* The explorer of the chapter "The logit gap": sliders for α, K and T; targets, gap, probabilities and loss.
   Plain JavaScript and SVG. The mathematics comes first and is checked against lsbook.theory by
   tests/test_explorer.py; everything below it only shows what these functions return. */
(function () {
  "use strict";

  // ---------------------------------------------------------------- mathematics (logarithms are natural: nats)

  /** Return `value` if it is a number in [low, high]; else say what was given and what was expected. */
  function check(value, name, low, high) {
    if (typeof value === "number" && value >= low && value <= high) return value;
    throw new RangeError(`${name} must be a number in [${low}, ${high}], got ${value}`);
  }

  /** Return K if it is a whole number of at least 2. */
  function checkClasses(numClasses) {
    if (Number.isSafeInteger(numClasses) && numClasses >= 2) return numClasses;
    throw new RangeError(`numClasses must be a whole number of at least 2, got ${numClasses}`);
  }

  /** ln(1 + e^x), which neither overflows nor cancels. */
  const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

  /** Smoothed target: 1 − α + α/K for the true class, α/K for every other class. */
  function targets(alpha, numClasses) {
    const pOther = check(alpha, "alpha", 0, 1) / checkClasses(numClasses);
    return { pTrue: 1 - alpha + pOther, pOther };
  }

  /** Gap g = ln(1 + K (1 − α)/α) at which the smoothed loss is least; infinite at α = 0. */
  function optimalGap(alpha, numClasses) {
    check(alpha, "alpha", 0, 1);
    return softplus(Math.log(checkClasses(numClasses)) + Math.log1p(-alpha) - Math.log(alpha));
  }

  /** e^(−g/T), the probability of another class relative to that of the true class. */
  function decay(alpha, numClasses, temperature) {
    check(temperature, "temperature", Number.MIN_VALUE, Number.MAX_VALUE);
    return Math.exp(-optimalGap(alpha, numClasses) / temperature);
  }

  /** Softmax of the optimal logits at temperature T: e^(g/T)/(e^(g/T) + K − 1) and 1/(e^(g/T) + K − 1). */
  function optimalProbs(alpha, numClasses, temperature = 1) {
    const ratio = decay(alpha, numClasses, temperature);
    const total = 1 + (numClasses - 1) * ratio;
    return { pTrue: 1 / total, pOther: ratio / total };
  }

  /** α_T = K/(e^(g/T) + K − 1): the smoothing that a collapsed teacher, softened by T, amounts to. */
  function collapsedTeacherAlpha(alpha, numClasses, temperature) {
    const ratio = decay(alpha, numClasses, temperature);
    return (numClasses * ratio) / (1 + (numClasses - 1) * ratio);
  }

  /** Least possible smoothed cross-entropy: the entropy of the target. */
  function lossFloor(alpha, numClasses) {
    const missing = check(alpha, "alpha", 0, 1) * ((checkClasses(numClasses) - 1) / numClasses);
    const others = alpha > 0 ? missing * (Math.log(numClasses) - Math.log(alpha)) : 0;
    return others - (1 - missing) * Math.log1p(-missing);
  }

  /** L(z) = ln(1 + (K − 1) e^(−z)) + α z (K − 1)/K: the loss at gap z; α = 0 is the hard target. */
  function smoothedLoss(gap, alpha, numClasses) {
    check(gap, "gap", -Infinity, Infinity);
    const slope = check(alpha, "alpha", 0, 1) * ((checkClasses(numClasses) - 1) / numClasses);
    if (gap === -Infinity) return Infinity;
    return softplus(Math.log(numClasses - 1) - gap) + (slope > 0 ? slope * gap : 0);
  }

  window.lsbook = window.lsbook || {};
  window.lsbook.logitGap = {
    targets, optimalGap, optimalProbs, collapsedTeacherAlpha, lossFloor, smoothedLoss,
  };

  // ---------------------------------------------------------------- settings and words

  const range = (length, value) => Array.from({ length }, (_, i) => value(i));
  const withCommas = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, ",");

  // Each slider moves over its stops, which lie closer together where more happens.
  const SLIDERS = [
    {
      key: "alpha", name: "Smoothing strength", symbol: "α", start: 0.1, show: String,
      stops: [0, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005,
        ...range(20, (i) => (i + 1) / 100), ...range(16, (i) => (i + 5) / 20)],
    },
    {
      key: "classes", name: "Number of classes", symbol: "K", start: 10, show: withCommas,
      stops: [2, 3, 4, 5, 8, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 32000],
    },
    {
      key: "temperature", name: "Temperature", symbol: "T", start: 1, show: String,
      stops: [0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.2, 1.6, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16],
    },
  ];

  /** A number in words: four significant digits, with a power of ten below 0.001; `short` for the bars. */
  function format(value, short = false) {
    if (value === Infinity) return "∞";
    if (value === 0) return "0";
    if (value >= 0.001) return short ? value.toFixed(3) : value.toPrecision(4);
    const [mantissa, exponent] = value.toExponential(short ? 0 : 3).split("e-");
    return `${mantissa}×10⁻${[...exponent].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
  }

  /** Everything that is shown, computed from the three settings. */
  function solve({ alpha, classes, temperature }) {
    return {
      alpha, classes, temperature,
      target: targets(alpha, classes),
      gap: optimalGap(alpha, classes),
      floor: lossFloor(alpha, classes),
      optimum: optimalProbs(alpha, classes, temperature),
      teacherAlpha: collapsedTeacherAlpha(alpha, classes, temperature),
    };
  }

  // Key, name, formula and value in words of each read-out.
  const nats = (value) => `${format(value)} nats`;
  const hard = (s, words, otherwise) => (s.alpha === 0 ? words : otherwise);
  const inLimit = (value, s) => format(value) + hard(s, " (in the limit)", "");
  const READOUTS = [
    ["target-true", "Target, true class", "1 − α + α/K", (s) => format(s.target.pTrue)],
    ["target-other", "Target, one other class", "α/K", (s) => format(s.target.pOther)],
    ["gap", "Optimal gap", "g = ln(1 + K (1 − α)/α)", (s) => hard(s, "∞: no finite optimum", nats(s.gap))],
    ["floor", "Loss floor", "entropy of the target", (s) => nats(s.floor) + hard(s, " (never reached)", "")],
    ["gap-softened", "Gap softened by T", "g/T", (s) => hard(s, "∞", nats(s.gap / s.temperature))],
    ["optimum-true", "Optimum at T, true class", "e^{g/T}/(e^{g/T} + K − 1)", (s) => inLimit(s.optimum.pTrue, s)],
    ["optimum-other", "Optimum at T, one other class", "1/(e^{g/T} + K − 1)", (s) => inLimit(s.optimum.pOther, s)],
    ["teacher-alpha", "Collapsed teacher’s smoothing", "α_{T} = K/(e^{g/T} + K − 1)",
      (s) => inLimit(s.teacherAlpha, s)],
  ];

  // ---------------------------------------------------------------- elements and scales

  const { html, svg, line } = window.lsbook.shared;
  const text = (x, y, words, anchor = "start", name = "") =>
    svg("text", { x, y, "text-anchor": anchor, class: name }, words);

  /** A formula's text with ^{raised} and _{lowered} parts as elements. */
  const formula = (words) => words.split(/([_^]\{[^}]+\})/).map((part) => (
    /^[_^]\{/.test(part) ? html(part[0] === "^" ? "sup" : "sub", {}, part.slice(2, -1)) : part));

  const HEIGHT = 330; // pixels; a panel is drawn at its size on the page, so that its type is never scaled
  const MARGIN = { left: 46, right: 14, top: 66, bottom: 48 };

  /** The plotting area of a panel `width` pixels wide, with x and y turning data into pixels. */
  function area(width, [xLow, xHigh], [yLow, yHigh]) {
    const box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: HEIGHT - MARGIN.bottom };
    box.x = (value) => box.left + ((value - xLow) / (xHigh - xLow)) * (box.right - box.left);
    box.y = (value) => box.bottom - ((value - yLow) / (yHigh - yLow)) * (box.bottom - box.top);
    return box;
  }

  /** Vertical axis: ticks with labels, faint grid lines, and its name. */
  function yAxis(box, ticks, name) {
    const middle = (box.top + box.bottom) / 2;
    const marks = ticks.flatMap((tick) => [
      line(box.left, box.y(tick), box.right, box.y(tick), "grid"),
      text(box.left - 6, box.y(tick) + 4, String(tick), "end", "tick-y"),
    ]);
    const title = text(0, 0, name, "middle");
    title.setAttribute("transform", `translate(13 ${middle}) rotate(-90)`);
    return [...marks, line(box.left, box.top, box.left, box.bottom, "axis"), title];
  }

  /** Horizontal axis of the loss: ticks with labels, and its name. */
  function xAxis(box, ticks, name) {
    const marks = ticks.flatMap((tick) => [
      line(box.x(tick), box.bottom, box.x(tick), box.bottom + 5, "axis"),
      text(box.x(tick), box.bottom + 19, String(tick), "middle", "tick-x"),
    ]);
    const title = text((box.left + box.right) / 2, box.bottom + 40, name, "middle");
    return [...marks, line(box.left, box.bottom, box.right, box.bottom, "axis"), title];
  }

  const FILLS = { target: { class: "target" }, optimum: { class: "optimum", fill: "url(#explorer-hatch)" } };

  /** One entry of a legend: a sample (bar or line) and its words. */
  function legend(x, y, kind, name, words) {
    const sample = kind === "bar"
      ? svg("rect", { x, y: y - 11, width: 24, height: 12, ...FILLS[name] })
      : line(x, y - 4, x + 26, y - 4, name);
    return [sample, text(x + 32, y, words)];
  }

  // ---------------------------------------------------------------- the two panels

  /** A pair of bars (target, softened optimum) with their values, around the middle of a group. */
  function barPair(box, middle, half, values) {
    const tops = values.map(box.y);
    const labels = values.map((value) => format(value, true));
    // In a narrow panel the target's label goes one row up, where it would touch another (8 pixels a letter).
    const labelAt = [tops[0] - (half < 56 && labels[0].includes("×") ? 20 : 6), tops[1] - 6];
    const touching = Math.abs(labelAt[0] - labelAt[1]) < 16 && labels.join("").length * 4 + 4 > half;
    if (touching) labelAt[0] = Math.min(...tops) - 20;
    const left = (i) => middle + (i - 1) * half;
    const bars = ["target", "optimum"].map((name, i) => svg("rect",
      { x: left(i) + 2, y: tops[i], width: half - 4, height: box.bottom - tops[i], ...FILLS[name] }));
    return [...bars, ...labels.map((label, i) => text(left(i) + half / 2, labelAt[i], label, "middle"))];
  }

  /** Left panel: target and softened optimum for the true class, one other class, all others together. */
  function drawBars(s, width) {
    const box = area(width, [0, 3], [0, 1.08]);
    const rest = s.classes - 1;
    const groups = [
      [["the true", "class"], s.target.pTrue, s.optimum.pTrue],
      [["one other", "class"], s.target.pOther, s.optimum.pOther],
      [[rest === 1 ? "the only" : `all ${withCommas(rest)}`, rest === 1 ? "other" : "others"],
        rest * s.target.pOther, rest * s.optimum.pOther],
    ];
    const half = (box.x(1) - box.x(0)) * 0.46;
    const bars = groups.flatMap(([words, ...values], i) => [
      ...barPair(box, box.x(i + 0.5), half, values),
      ...words.map((word, row) => text(box.x(i + 0.5), box.bottom + 18 + 16 * row, word, "middle")),
    ]);
    return [
      svg("defs", {}, svg("pattern",
        { id: "explorer-hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("rect", { width: 6, height: 6, class: "hatch-ground" }), line(0, 0, 0, 6, "hatch-line"))),
      ...legend(box.left, 16, "bar", "target", "target"),
      ...legend(box.left, 36, "bar", "optimum", `optimum at T = ${s.temperature}`),
      ...yAxis(box, [0, 0.2, 0.4, 0.6, 0.8, 1], "probability"),
      ...bars,
      line(box.left, box.bottom, box.right, box.bottom, "axis"),
    ];
  }

  const GAPS = [-2, 21]; // every finite optimum of the sliders lies between them

  /** The path of the loss against the gap, a point every tenth of a nat. */
  function curve(box, alpha, classes, name) {
    const points = range((GAPS[1] - GAPS[0]) * 10 + 1, (i) => GAPS[0] + i / 10)
      .map((gap) => `${box.x(gap).toFixed(2)},${box.y(smoothedLoss(gap, alpha, classes)).toFixed(2)}`);
    return svg("path", { d: `M${points.join("L")}`, class: name, "clip-path": "url(#explorer-clip)" });
  }

  /** Line, dot and label at the optimum, or words where there is none. */
  function optimumMark(box, s) {
    if (s.gap === Infinity) return [text(box.right, box.top - 8, "no finite optimum: g = ∞", "end", "value")];
    const x = box.x(s.gap);
    const labelAt = Math.min(Math.max(x, box.left + 34), box.right - 34);
    return [
      line(x, box.top, x, box.bottom, "optimum-line"),
      svg("circle", { cx: x, cy: box.y(s.floor), r: 5.5, class: "optimum-dot" }),
      text(labelAt, box.top - 8, `g = ${format(s.gap)}`, "middle", "value"),
    ];
  }

  /** Right panel: loss against the gap with hard and smoothed targets. Its height depends on K alone. */
  function drawLoss(s, width) {
    const top = Math.ceil(Math.log(s.classes) + 2);
    const box = area(width, GAPS, [0, top]);
    const step = top > 6 ? 2 : 1;
    const second = Math.max(width * 0.56, 180);
    return [
      svg("clipPath", { id: "explorer-clip" }, svg("rect",
        { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top })),
      ...legend(8, 16, "line", "smoothed", `smoothed, α = ${s.alpha}`),
      ...legend(second, 16, "line", "hard", "hard target"),
      ...legend(8, 36, "line", "floor", `floor = ${format(s.floor)}`),
      ...yAxis(box, range(Math.floor(top / step) + 1, (i) => i * step), "loss (nats)"),
      ...xAxis(box, [0, 5, 10, 15, 20], "gap z to every other logit (nats)"),
      line(box.left, box.y(s.floor), box.right, box.y(s.floor), "floor"),
      curve(box, s.alpha, s.classes, "smoothed"),
      curve(box, 0, s.classes, "hard"),
      ...optimumMark(box, s),
    ];
  }

  const PANELS = [
    {
      key: "bars", title: "Probabilities", draw: drawBars,
      describe: (s) => `Target: ${format(s.target.pTrue)} for the true class, ${format(s.target.pOther)} for each ` +
        `of the ${withCommas(s.classes - 1)} others. Optimum at temperature ${s.temperature}: ` +
        `${format(s.optimum.pTrue)} and ${format(s.optimum.pOther)}.`,
    },
    {
      key: "loss", title: "Loss against the logit gap", draw: drawLoss,
      describe: (s) => `Cross-entropy with the hard target falls as the gap grows, without end. With smoothing ` +
        `α = ${s.alpha} and K = ${withCommas(s.classes)} ` + hard(s, "the two curves are one: no finite optimum.",
        `it is least at a gap of ${format(s.gap)} nats, where it is ${format(s.floor)} nats, and rises beyond.`),
    },
  ];

  // ---------------------------------------------------------------- the page

  /** A labelled slider over the stops of a setting, with its value in words. */
  function slider({ key, name, symbol, start, show, stops }, onInput) {
    const id = `explorer-${key}`;
    const input = html("input", { type: "range", id, min: 0, max: stops.length - 1, step: 1 });
    const value = html("span", { class: "explorer-value", "aria-hidden": "true" });
    const ends = html("div", { class: "explorer-ends", "aria-hidden": "true" },
      ...[stops[0], stops.at(-1)].map((stop) => html("span", {}, show(stop))));
    const label = html("label", { for: id }, name);
    const node = html("div", { class: "explorer-slider" }, html("div", {}, label, value), input, ends);
    const read = () => {
      const chosen = stops[input.value];
      value.textContent = `${symbol} = ${show(chosen)}`;
      input.setAttribute("aria-valuetext", show(chosen));
      return [key, chosen];
    };
    const reset = () => { input.value = stops.indexOf(start); };
    input.addEventListener("input", onInput);
    return { node, read, reset };
  }

  /** A read-out: name, symbol and value; a screen reader speaks all three when the value changes. */
  function readout([key, name, symbol, words]) {
    const value = html("dd", { "data-readout": key });
    const term = html("dt", {}, name, html("small", {}, ...formula(symbol)));
    const node = html("div", { "aria-atomic": "true" }, term, value);
    const update = (s) => { if (value.textContent !== words(s)) value.textContent = words(s); };
    return { node, update };
  }

  /** A panel: heading and an SVG image, drawn anew at its width on the page. */
  function panel({ key, title, draw, describe }) {
    const ids = [`explorer-${key}-title`, `explorer-${key}-desc`];
    const image = svg("svg", { role: "img", "aria-labelledby": ids.join(" "), height: HEIGHT });
    const node = html("div", { class: `explorer-panel explorer-${key}` },
      html("p", { class: "explorer-title", "aria-hidden": "true" }, title), image);
    const update = (s) => {
      const width = Math.max(Math.floor(node.clientWidth), 200);
      image.setAttribute("width", width);
      image.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      image.replaceChildren(svg("title", { id: ids[0] }, title), svg("desc", { id: ids[1] }, describe(s)),
        ...draw(s, width));
    };
    return { node, update };
  }

  /** Fill the explorer's place, replacing what stood there for readers without scripts. */
  function build(root) {
    const readouts = READOUTS.map(readout);
    const panels = PANELS.map(panel);
    const update = () => {
      const solution = solve(Object.fromEntries(sliders.map((control) => control.read())));
      [...readouts, ...panels].forEach((part) => part.update(solution));
    };
    const sliders = SLIDERS.map((setting) => slider(setting, update));
    const reset = () => { sliders.forEach((control) => control.reset()); update(); };
    const words = SLIDERS.map(({ symbol, start }) => `${symbol} = ${start}`).join(", ");
    const button = html("button", { type: "button", class: "explorer-reset" }, `Reset to ${words}`);
    button.addEventListener("click", reset);
    const nodes = (parts) => parts.map((part) => part.node);
    root.replaceChildren(
      html("div", { class: "explorer-controls", role: "group", "aria-label": "Settings" }, ...nodes(sliders)),
      button,
      html("div", { class: "explorer-panels" }, ...nodes(panels)),
      html("dl", { "aria-live": "polite" }, ...nodes(readouts)));
    reset();
    new ResizeObserver(update).observe(root);
  }

  const start = () => document.querySelectorAll("#explorer-logit-gap").forEach(build);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
