/* The explorer of the chapter "Calibration": a reliability diagram redrawn while the temperature T and the smoothing α
   change. Plain JavaScript and SVG. The mathematics comes first and is checked against lsbook.calibration by
   tests/test_reliability_viewer.py; everything below it only shows what these functions return.
   The logits come from reliability-data.js, which _ext/reliability_data.py writes; what it shares with other explorers
   comes from shared.js. */
(function () {
  "use strict";

  const { html, svg, line, radios, redrawOnResize, start } = window.lsbook.shared;

  // ---------------------------------------------------------------- mathematics (logarithms are natural: nats)

  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const range = (length, value) => Array.from({ length }, (_, i) => value(i));

  /** The value of the 16 bits of a finite float16. */
  function half(bits) {
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
    return bits >> 15 ? -size : size;
  }

  /** The numbers whose float16, low byte first, a string holds in base64. */
  function decode(code) {
    const view = new DataView(Uint8Array.from(atob(code), (byte) => byte.charCodeAt(0)).buffer);
    return Float64Array.from({ length: view.byteLength / 2 }, (_, i) => half(view.getUint16(2 * i, true)));
  }

  /** What is needed of logits, image after image in one array, and labels: the logits less the largest of their image,
      and whether that (the first of equals) is the label's. */
  function examples(logits, labels) {
    const numClasses = logits.length / labels.length;
    const below = new Float64Array(logits.length);
    const correct = labels.map((label, i) => {
      const own = logits.slice(i * numClasses, (i + 1) * numClasses);
      const largest = Math.max(...own);
      below.set(own.map((logit) => logit - largest), i * numClasses);
      return own.indexOf(largest) === label;
    });
    return { below, labels, correct, numClasses };
  }

  /** Of softmax(logits / T): the confidence (largest probability) of each image, the mean NLL, and its slope in 1/T. */
  function predict({ below, labels, numClasses }, temperature) {
    const confidence = new Float64Array(labels.length);
    let [nll, slope] = [0, 0];
    labels.forEach((label, i) => {
      let [total, weighted] = [0, 0];
      for (let k = i * numClasses; k < (i + 1) * numClasses; k++) {
        const weight = Math.exp(below[k] / temperature);
        total += weight;
        weighted += weight * below[k];
      }
      const right = below[i * numClasses + label];
      confidence[i] = 1 / total;
      nll += Math.log(total) - right / temperature;
      slope += weighted / total - right;
    });
    return { confidence, nll: nll / labels.length, slope: slope / labels.length };
  }

  /** The T with the least NLL, which is convex in β = 1/T: where its slope is 0, by bisection of ln β. */
  function fitTemperature(data) {
    const slopeAt = (power) => predict(data, Math.exp(-power)).slope;
    let [low, high] = [-12, 12];
    if (!(slopeAt(low) < 0 && slopeAt(high) > 0)) throw new RangeError("no temperature minimises the NLL");
    for (let step = 0; step < 50; step++) {
      const middle = (low + high) / 2;
      if (slopeAt(middle) > 0) high = middle; else low = middle;
    }
    return Math.exp(-(low + high) / 2);
  }

  /** Edges of the bins: 0, 1/B, …, 1, or with "mass" quantiles of the confidences between 0 and 1. */
  function edgesOf(confidence, numBins, strategy) {
    const even = range(numBins + 1, (i) => (i === numBins ? 1 : i * (1 / numBins)));
    if (strategy === "width") return even;
    const ordered = Float64Array.from(confidence).sort();
    return even.map((q) => (q > 0 && q < 1 ? ordered[Math.max(0, Math.ceil(ordered.length * q - 1))] : q));
  }

  /** Examples sorted into bins: (edge, next edge], so one on an edge counts in the lower bin, and 0 in the first. The
      one function that feeds the picture and the numbers. */
  function reliabilityBins(confidence, correct, numBins = 15, strategy = "width") {
    const edges = edgesOf(confidence, numBins, strategy);
    const inner = edges.slice(1, -1);
    const members = range(numBins, () => []);
    confidence.forEach((value, i) => {
      const position = inner.findIndex((edge) => value <= edge);
      members[position < 0 ? numBins - 1 : position].push(i);
    });
    const bins = members.map((member, b) => {
      const confidences = member.map((i) => confidence[i]);
      const [count, sumConfidence] = [member.length, sum(confidences)];
      const numCorrect = member.filter((i) => correct[i]).length;
      return { left: edges[b], right: edges[b + 1], count, confidences, sumConfidence, numCorrect };
    });
    const gaps = bins.map(({ numCorrect, sumConfidence }) => Math.abs(numCorrect - sumConfidence));
    return { edges, bins, error: sum(gaps) / confidence.length };
  }

  /** ln 0!, ln 1!, …, as far as asked for. */
  const logFactorials = [0];
  function logFactorial(n) {
    for (let i = logFactorials.length; i <= n; i++) logFactorials.push(logFactorials[i - 1] + Math.log(i));
    return logFactorials[n];
  }

  /** Chance of at most `most` successes in `count` trials that each succeed with chance p, 0 < p < 1. */
  function binomialTail(most, count, p) {
    const [success, failure] = [Math.log(p), Math.log1p(-p)];
    return sum(range(most + 1, (k) => Math.exp(logFactorial(count) - logFactorial(k) - logFactorial(count - k)
      + k * success + (count - k) * failure)));
  }

  /** Upper end of the 95 % interval of Clopper and Pearson: the p at which so few successes have a chance of 2.5 %. */
  function upperEnd(successes, count) {
    if (successes === count) return 1;
    let [low, high] = [successes / count, 1];
    for (let step = 0; step < 40; step++) {
      const middle = (low + high) / 2;
      if (binomialTail(successes, count, middle) > 0.025) low = middle; else high = middle;
    }
    return (low + high) / 2;
  }
  const accuracyInterval = (numCorrect, count) =>
    [1 - upperEnd(count - numCorrect, count), upperEnd(numCorrect, count)];

  /** Mean, variance and third central moment of |S − E S|, where S counts the heads of coins with these chances. */
  function deviation(chances) {
    const spread = new Float64Array(chances.length + 1); // spread[k] is the chance of k heads among the coins so far
    spread[0] = 1;
    chances.forEach((chance, i) => {
      for (let k = i + 1; k > 0; k--) spread[k] += chance * (spread[k - 1] - spread[k]);
      spread[0] *= 1 - chance;
    });
    const expected = sum(chances);
    const average = (f) => spread.reduce((total, share, heads) => total + share * f(Math.abs(heads - expected)), 0);
    const mean = average((distance) => distance);
    const central = (power) => average((distance) => (distance - mean) ** power);
    return { mean, variance: central(2), third: central(3) };
  }

  /** ECE of a network for which each confidence is the true chance of being right: its mean, exactly, and the level
      that one sample in twenty exceeds, from its first three moments (Cornish and Fisher). */
  function noiseFloor(bins) {
    const count = sum(bins.map((bin) => bin.count));
    const parts = bins.map(({ confidences }) => deviation(confidences));
    const [mean, variance, third] = ["mean", "variance", "third"].map((key) => sum(parts.map((part) => part[key])));
    const [spread, z] = [Math.sqrt(variance), 1.6448536269514722];
    const skew = spread > 0 ? third / spread ** 3 : 0;
    return { mean: mean / count, high: (mean + spread * (z + (skew * (z * z - 1)) / 6)) / count };
  }

  const LABELS = Array.from(window.lsbook.reliabilityData.labels, Number);
  const NETWORKS = window.lsbook.reliabilityData.networks;

  /** A function that computes once for each network and α. */
  function remembered(compute) {
    const known = new Map();
    return (network, alpha) => {
      const key = `${network} ${alpha}`;
      if (!known.has(key)) known.set(key, compute(network, alpha));
      return known.get(key);
    };
  }
  const dataOf = remembered((network, alpha) => {
    const found = NETWORKS[network].strengths.find((strength) => strength.alpha === alpha);
    if (!found) throw new RangeError(`alpha must be one of network ${network}, got ${alpha}`);
    return examples(decode(found.logits), LABELS);
  });
  const bestOf = remembered((network, alpha) => {
    const data = dataOf(network, alpha);
    const temperature = fitTemperature(data);
    return { temperature, nll: predict(data, temperature).nll };
  });

  /** One picture with its numbers. */
  function view(network, alpha, temperature, numBins, strategy) {
    const data = dataOf(network, alpha);
    const { confidence, nll } = predict(data, temperature);
    const { edges, bins, error } = reliabilityBins(confidence, data.correct, numBins, strategy);
    const seen = bins.filter(({ count }) => count > 0).map((bin) => ({
      ...bin, confidence: bin.sumConfidence / bin.count, accuracy: bin.numCorrect / bin.count,
      interval: accuracyInterval(bin.numCorrect, bin.count),
    }));
    return {
      count: confidence.length, edges, bins: seen, error, nll, floor: noiseFloor(seen), best: bestOf(network, alpha),
      accuracy: data.correct.filter(Boolean).length / confidence.length,
      confidence: sum(confidence) / confidence.length,
      // Bins of equal mass would make a histogram of equal bars.
      histogram: strategy === "width" ? bins : reliabilityBins(confidence, data.correct, numBins).bins,
    };
  }

  window.lsbook.reliability = {
    half, decode, examples, predict, fitTemperature, reliabilityBins, accuracyInterval, noiseFloor, view,
  };

  // ---------------------------------------------------------------- settings and words

  const EXPLORER = "reliability";
  const START = { network: "0", alpha: 0, temperature: 1, number: "15", strategy: "width" };
  const CHOICES = {
    network: ["network", "Network", NETWORKS.map(({ title }, i) => [String(i), title])],
    number: ["number", "Number of bins", ["5", "10", "15", "20"].map((number) => [number, number])],
    strategy: ["strategy", "Bins", [["width", "of equal width"], ["mass", "of equal mass"]]],
  };
  const alphasOf = ({ network }) => NETWORKS[network].strengths.map(({ alpha }) => alpha);
  const showTemperature = (temperature) => String(Number(temperature.toPrecision(3)));
  // Each slider moves over its stops; those marked below it lie evenly.
  const SLIDERS = {
    alpha: { key: "alpha", name: "Smoothing in training", symbol: "α", show: String, stops: alphasOf, marks: alphasOf },
    temperature: {
      key: "temperature", name: "Temperature", symbol: "T", show: showTemperature,
      stops: () => range(101, (i) => 2 ** (i / 20 - 2)), marks: () => [0.25, 0.5, 1, 2, 4, 8],
    },
  };

  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
  const nats = (value) => `${value.toFixed(3)}\u00a0nats`;
  const equals = (symbol, value) => `${symbol}\u00a0=\u00a0${value}`;

  /** Position of the stop that is nearest to a value. */
  function nearest(stops, value) {
    const gaps = stops.map((stop) => Math.abs(stop - value));
    return gaps.indexOf(Math.min(...gaps));
  }

  /** The state after some changes. Another network may not have the α: then it has the nearest that there is. */
  function changed(state, changes) {
    const next = { ...state, ...changes };
    const alphas = alphasOf(next);
    return { ...next, alpha: alphas[nearest(alphas, next.alpha)] };
  }

  /** The state with its picture. */
  const solve = (state) =>
    ({ ...state, ...view(state.network, state.alpha, state.temperature, Number(state.number), state.strategy) });

  /** How mean confidence and accuracy compare, in percentage points. */
  function comparison({ confidence, accuracy }) {
    const points = Math.abs(100 * (confidence - accuracy)).toFixed(1);
    if (points === "0.0") return "as high as the accuracy";
    return `${points} points ${confidence > accuracy ? "above" : "below"} the accuracy`;
  }

  // The numbers in words, a sentence or two for each line.
  const LINES = [
    (s) => `${NETWORKS[s.network].title}, ${equals("α", s.alpha)}, ${equals("T", showTemperature(s.temperature))}: ` +
      `${s.count.toLocaleString("en")} held-out images.`,
    (s) => `Accuracy ${percent(s.accuracy)}; no temperature changes it.`,
    (s) => `Mean confidence ${percent(s.confidence)}, ${comparison(s)}.`,
    (s) => `ECE ${percent(s.error)} in ${s.number} bins of equal ${s.strategy}.`,
    (s) => `Noise floor ${percent(s.floor.mean)}: the ECE that chance alone would give on average if these ` +
      `confidences were right; one time in twenty, more than ${percent(s.floor.high)}. This ECE is ` +
      `${s.error > s.floor.high ? "larger: they are not right." : "not larger: no evidence against them."}`,
    (s) => `NLL ${nats(s.nll)}; the least, ${nats(s.best.nll)}, is at ` +
      `${equals("T", showTemperature(s.best.temperature))}.`,
  ];

  /** The picture in words, bin by bin. */
  const describe = (s) => `${LINES[0](s)} Of each bin its mean confidence, its accuracy with the 95 % interval, and ` +
    `how many images it has: ${s.bins.map((bin) => `${percent(bin.confidence)}, ${percent(bin.accuracy)} ` +
      `(${bin.interval.map(percent).join(" to ")}), ${bin.count}`).join("; ")}. ${LINES[1](s)} ${LINES[2](s)}`;

  const NOTE = `Seed 0; the first ${LABELS.length.toLocaleString("en")} held-out images, their logits as stored. A ` +
    "point stands at the mean confidence and the accuracy of a bin, the box around it is the accuracy’s 95\u00a0% " +
    "interval (Clopper and Pearson), and the thick line is the gap to the diagonal; the ECE is the mean of the gaps, " +
    "each counted once for every image in the bin. The histogram below has bins of equal width. The best T is fitted " +
    "on the very images it is judged on here; a number to report needs others.";

  // ---------------------------------------------------------------- elements and scales

  const text = (x, y, words, anchor, name = "") => svg("text", { x, y, "text-anchor": anchor, class: name }, words);
  const rect = (left, right, top, bottom, name) =>
    svg("rect", { x: left, y: top, width: Math.max(right - left, 0), height: Math.max(bottom - top, 0), class: name });

  const MARGIN = { left: 52, right: 14, top: 24, bottom: 40 };
  const [BETWEEN, HISTOGRAM] = [14, 80]; // pixels from the diagram to the histogram below it, and its height

  /** Two areas above one another, the upper one a square; x, y and share turn data into pixels. */
  function area(width) {
    const side = width - MARGIN.left - MARGIN.right;
    const [left, top] = [MARGIN.left, MARGIN.top];
    const [bottom, low] = [top + side, top + side + BETWEEN + HISTOGRAM];
    return {
      left, right: left + side, top, bottom, low, high: low - HISTOGRAM, height: low + MARGIN.bottom,
      x: (value) => left + value * side, y: (value) => bottom - value * side,
    };
  }

  // ---------------------------------------------------------------- the picture

  const TICKS = [0, 0.2, 0.4, 0.6, 0.8, 1];

  /** Frames, grid and labels of both areas; `most` is the share of images at the top of the histogram. */
  function axes(box, most) {
    const across = TICKS.flatMap((tick) => [
      line(box.x(tick), box.top, box.x(tick), box.bottom, "grid"),
      line(box.x(tick), box.high, box.x(tick), box.low, "grid"),
      text(box.x(tick), box.low + 16, String(tick), "middle", "tick-x"),
    ]);
    const up = TICKS.flatMap((tick) => [
      line(box.left, box.y(tick), box.right, box.y(tick), "grid"),
      text(box.left - 6, box.y(tick) + 4, String(tick), "end", "tick-y"),
    ]);
    const shares = [[0, box.low], [most, box.high]].map(([share, y]) =>
      text(box.left - 6, y + (share ? 9 : 1), share ? `${100 * share}\u00a0%` : "0", "end", "tick-share"));
    const frames = [[box.top, box.bottom], [box.high, box.low]].flatMap(([top, bottom]) => [
      line(box.left, bottom, box.right, bottom, "axis"), line(box.left, top, box.left, bottom, "axis")]);
    return [...across, ...up, ...shares, ...frames, text(4, 14, "accuracy", "start"),
      text((box.left + box.right) / 2, box.low + 34, "confidence", "middle")];
  }

  const point = (cx, cy, name) => svg("circle", { cx, cy, r: 4, class: name });

  /** Boxes of the intervals, diagonal, gaps and points. */
  function diagram(box, bins) {
    const [boxes, gaps, points] = [[], [], []];
    bins.forEach(({ left, right, confidence, accuracy, interval: [low, high] }) => {
      const x = box.x(confidence);
      boxes.push(rect(box.x(left), box.x(right), box.y(high), box.y(low), "band"));
      gaps.push(line(x, box.y(confidence), x, box.y(accuracy), "gap"));
      points.push(point(x, box.y(accuracy), "point"));
    });
    return [...boxes, line(box.x(0), box.y(0), box.x(1), box.y(1), "diagonal"), ...gaps, ...points];
  }

  const diamond = (x, y) =>
    svg("path", { d: `M${x} ${y - 7}L${x + 7} ${y}L${x} ${y + 7}L${x - 7} ${y}Z`, class: "all" });

  /** All images together: lines to both axes, and a diamond where they meet. */
  function together(box, { confidence, accuracy }) {
    const [x, y] = [box.x(confidence), box.y(accuracy)];
    return [line(x, y, x, box.low, "guide"), line(box.left, y, x, y, "guide"), diamond(x, y)];
  }

  const shareOf = (bin, s) => bin.count / s.count;
  const bars = (box, s, most) => s.histogram.filter((bin) => bin.count > 0).map((bin) =>
    rect(box.x(bin.left), box.x(bin.right), box.low - (HISTOGRAM * shareOf(bin, s)) / most, box.low, "bar"));

  const sideOf = ({ alpha }) => (alpha === 0 ? "unsmoothed" : "smooth"); // colours of the book, in explorer.css

  function draw(s, box) {
    const most = [0.25, 0.5, 1].find((share) => s.histogram.every((bin) => shareOf(bin, s) <= share));
    const side = svg("g", { class: sideOf(s) }, ...bars(box, s, most), ...diagram(box, s.bins));
    return [...axes(box, most), side, ...together(box, s)];
  }

  /** The picture, drawn anew at its width on the page. */
  function panel() {
    const ids = ["explorer-reliability-title", "explorer-reliability-desc"];
    const image = svg("svg", { role: "img", "aria-labelledby": ids[0], "aria-describedby": ids[1] });
    const node = html("div", { class: "explorer-panel" }, image);
    const update = (s) => {
      const width = Math.max(Math.floor(node.clientWidth), 200);
      const box = area(width);
      const size = { width, height: box.height, viewBox: `0 0 ${width} ${box.height}` };
      Object.entries(size).forEach(([name, value]) => image.setAttribute(name, value));
      image.replaceChildren(svg("title", { id: ids[0] }, "Reliability diagram, and histogram of the confidences"),
        svg("desc", { id: ids[1] }, describe(s)), ...draw(s, box));
    };
    return { node, update };
  }

  /** What the marks mean. */
  function legend() {
    const sample = (...shapes) =>
      svg("svg", { width: 18, height: 16, viewBox: "-9 -8 18 16", "aria-hidden": "true" }, ...shapes);
    const item = (shape, words) => html("span", {}, shape, words);
    const node = html("p", { class: "explorer-legend" },
      item(sample(point(0, 0, "point")), "a bin"), item(sample(rect(-8, 8, -6, 6, "band")), "95\u00a0% interval"),
      item(sample(line(0, -8, 0, 8, "gap")), "gap"), item(sample(line(-9, 8, 9, -8, "diagonal")), "calibrated"),
      item(sample(diamond(0, 0)), "all images together"),
      item(sample(rect(-6, 6, -7, 7, "bar")), "share of the images"));
    const update = (s) => node.setAttribute("class", `explorer-legend ${sideOf(s)}`);
    return { node, update };
  }

  // ---------------------------------------------------------------- the page

  /** The numbers below a slider, each where the thumb stands for it. */
  function marksBelow(marks, show) {
    const place = (i) => `--share: ${i / (marks.length - 1)}`;
    return marks.map((mark, i) => html("span", { style: place(i), class: mark === 1 ? "one" : "" }, show(mark)));
  }

  /** A labelled slider over the stops of a setting, with its value in words. */
  function slider({ key, name, symbol, show, stops, marks }, onChange) {
    const id = `explorer-reliability-${key}`;
    const input = html("input", { type: "range", id, min: 0, step: 1, autocomplete: "off" });
    const value = html("span", { class: "explorer-value", "aria-hidden": "true" });
    const scale = html("div", { class: "explorer-marks", "aria-hidden": "true" });
    const node = html("div", { class: `explorer-slider explorer-slider-${key}` },
      html("div", {}, html("label", { for: id }, name), value), input, scale);
    let state = START;
    input.addEventListener("input", () => onChange({ [key]: stops(state)[input.value] }));
    const update = (s) => {
      state = s;
      input.max = stops(s).length - 1;
      input.value = nearest(stops(s), s[key]);
      input.setAttribute("aria-valuetext", show(s[key]));
      value.textContent = equals(symbol, show(s[key]));
      scale.replaceChildren(...marksBelow(marks(s), show));
    };
    return { node, update };
  }

  /** The button that sets T to the one with the least NLL. */
  function bestButton(onChange) {
    const button = html("button", { type: "button", class: "explorer-reset explorer-best" });
    let best = null;
    button.addEventListener("click", () => onChange({ temperature: best }));
    const update = (s) => {
      best = s.best.temperature;
      button.textContent = `Best T (least NLL): ${showTemperature(best)}`;
    };
    return { node: button, update };
  }

  /** The numbers in words. A screen reader speaks the lines that change. */
  function spoken() {
    const lines = LINES.map(() => html("span", {}));
    const node = html("p", { class: "explorer-summary", "aria-live": "polite" },
      ...lines.flatMap((part) => [part, " "])); // spaces, for those who copy or hear them
    const update = (s) => lines.forEach((part, i) => {
      const words = LINES[i](s);
      if (part.textContent !== words) part.textContent = words;
    });
    return { node, update };
  }

  /** Fill the explorer's place, replacing what stood there for readers without scripts. */
  function build(root) {
    let state = START;
    const update = () => { const solution = solve(state); parts.forEach((part) => part.update(solution)); };
    const change = (changes) => { state = changed(state, changes); update(); };
    const [network, number, strategy] = Object.values(CHOICES).map((choice) => radios(EXPLORER, choice, change));
    const [alpha, temperature] = Object.values(SLIDERS).map((setting) => slider(setting, change));
    const [best, picture, key, words] = [bestButton(change), panel(), legend(), spoken()];
    const parts = [network, alpha, temperature, best, picture, key, words, number, strategy];
    const reset = html("button", { type: "button", class: "explorer-reset" }, "Reset");
    reset.addEventListener("click", () => change(START));
    const group = (title, ...some) => html("div",
      { class: "explorer-controls explorer-choices", role: "group", "aria-label": title },
      ...some.map((part) => part.node));
    // What is moved most stands next to the picture, so that a phone shows both.
    root.replaceChildren(
      group("Settings", network, alpha, temperature),
      html("div", { class: "explorer-buttons" }, best.node, reset),
      html("div", { class: "explorer-beside" }, html("div", {}, picture.node, key.node), words.node),
      group("Binning", number, strategy),
      html("p", { class: "explorer-note" }, NOTE));
    update();
    redrawOnResize(root, update);
  }

  start(EXPLORER, build);
})();
