/* The explorer of the chapter "Penultimate geometry": features projected onto the plane through three templates.
   Plain JavaScript and SVG. The mathematics comes first and is checked against numpy by
   tests/test_projection_viewer.py; everything below it only shows what these functions return.
   The numbers come from projection-data.js, which _ext/projection_data.py writes; what it shares with other explorers
   comes from shared.js. */
(function () {
  "use strict";

  const { html, svg, line, KINDS, distance, placesIn, scaled, crosses, radios, redrawOnResize, start } =
    window.lsbook.shared;

  // ---------------------------------------------------------------- mathematics
  // v_k = (w_k, b_k) are templates, x = (f, 1) is an example, z_k = x · v_k its logits, G_ij = v_i · v_j. Since
  // x · (v_b − v_a) = z_b − z_a, an example's place in the plane through v_a, v_b, v_c needs its three logits alone.

  const NETWORKS = window.lsbook.projectionData;
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const centre = (places) => [mean(places.map((p) => p[0])), mean(places.map((p) => p[1]))];

  /** A function from three logits to coordinates: origin at the templates' centroid, first axis from v_a to v_b,
      second at right angles to it, towards v_c. `products` is G of the three templates. */
  function plane([[aa, ab, ac], [, bb, bc], [, , cc]]) {
    const base = Math.sqrt(aa - 2 * ab + bb); // ‖v_b − v_a‖
    const along = (bc - ac - ab + aa) / base; // (v_c − v_a) · e1
    const height = Math.sqrt(aa - 2 * ac + cc - along * along);
    if (!(base > 0 && height > 0)) throw new RangeError("the three templates must not lie on one line");
    const place = ([za, zb, zc]) => {
      const x = (zb - za) / base;
      return [x, (zc - za - along * x) / height];
    };
    const origin = centre([[aa, ab, ac], [ab, bb, bc], [ac, bc, cc]].map(place));
    return (logits) => place(logits).map((value, axis) => value - origin[axis]);
  }

  /** Root mean squared distance of points to their class mean; mean distance between class means; their ratio. */
  function clusters(groups) {
    const means = groups.map(centre);
    const squares = groups.flatMap((group, k) => group.map((place) => distance(place, means[k]) ** 2));
    const [a, b, c] = means;
    const within = Math.sqrt(mean(squares));
    const between = mean([distance(a, b), distance(b, c), distance(a, c)]);
    return { within, between, ratio: within / between };
  }

  /** One picture: corners (the three templates) and points. `classes` are three positions in the network's list. */
  function view(network, alpha, split, classes) {
    const { shown, products, examples } = NETWORKS[network];
    const valid = classes.length === 3 && new Set(classes).size === 3 && classes.every((k) => k in shown);
    if (!valid) throw new RangeError(`classes must be three different positions below ${shown.length}, got ${classes}`);
    const gram = classes.map((i) => classes.map((j) => products[alpha][i][j] / 1e4));
    const project = plane(gram);
    const groups = classes.map((k, kind) => examples[alpha][split][k].map(([predicted, confidence, ...logits]) => ({
      kind, label: shown[k], predicted, confidence: confidence / 1000,
      place: project(classes.map((j) => logits[j] / 100)),
    })));
    const points = groups.flat();
    return {
      points, corners: gram.map(project), ...clusters(groups.map((group) => group.map((point) => point.place))),
      wrong: points.filter((point) => point.predicted !== point.label).length,
      confidence: mean(points.map((point) => point.confidence)),
    };
  }

  window.lsbook.projection = { plane, clusters, view };

  // ---------------------------------------------------------------- settings and words

  const EXPLORER = "projection";
  const ALPHAS = { 0: "hard", 0.1: "smoothed" };
  const SPLITS = { train: "training", test: "held-out" };
  const START = { network: "0", alpha: "0", split: "train", scale: "same", classes: [0, 1, 2], image: 0 };
  const CHOICES = [
    ["network", "Network", NETWORKS.map(({ title }, i) => [String(i), title])],
    ["alpha", "Targets", [["0", "hard (α\u00a0=\u00a00)"], ["0.1", "smoothed (α\u00a0=\u00a00.1)"]]],
    ["split", "Images", [["train", "training"], ["test", "held-out"]]],
    ["scale", "Scale", [["same", "same for hard and smoothed"], ["fit", "fit"]]],
  ];
  const ORDER = ["First class", "Second class", "Third class"];

  const percent = (share) => (share >= 0.9995 ? "over 99.9\u00a0%" : `${(100 * share).toFixed(1)}\u00a0%`);
  const nameOf = (state, label) => NETWORKS[state.network].names[label];
  const namesOf = (state) => state.classes.map((k) => nameOf(state, NETWORKS[state.network].shown[k]));

  /** The pictures of all targets and images for these classes. */
  const picturesOf = ({ network, classes }) => Object.keys(ALPHAS).flatMap((alpha) =>
    Object.keys(SPLITS).map((split) => ({ alpha, split, ...view(network, alpha, split, classes) })));

  /** The state after some changes. Only other classes make other pictures; only other targets keep the image. */
  function changed(state, changes) {
    const next = { ...state, ...("network" in changes ? { classes: START.classes } : {}), ...changes };
    const differs = (keys) => keys.some((key) => next[key] !== state[key]);
    if (differs(["network", "classes"])) next.pictures = picturesOf(next);
    if (differs(["network", "classes", "split"])) next.image = 0;
    return next;
  }

  /** The state with the picture that is chosen, that of the other targets, and the names of the classes. */
  function solve(state) {
    const among = state.pictures.filter(({ split }) => split === state.split);
    const chosen = among.find(({ alpha }) => alpha === state.alpha);
    const other = among.find(({ alpha }) => alpha !== state.alpha);
    return { ...state, chosen, other, names: namesOf(state) };
  }

  /** The picture's numbers in words, with the ratio of the other targets beside it. */
  function summary({ network, split, alpha, chosen, other }) {
    const count = chosen.points.length;
    return `${count} ${SPLITS[split]} images, ${ALPHAS[alpha]} targets: spread within classes ` +
      `${chosen.within.toPrecision(3)}, distance between class means ${chosen.between.toPrecision(3)}, ` +
      `ratio ${chosen.ratio.toFixed(3)} (${ALPHAS[other.alpha]} targets: ${other.ratio.toFixed(3)}). ` +
      `${chosen.wrong} of ${count} misclassified among ${NETWORKS[network].names.length} classes; ` +
      `mean confidence ${percent(chosen.confidence)}.`;
  }

  const describe = (s) => `${NETWORKS[s.network].title}: features projected onto the plane through the templates of ` +
    `${s.names[0]} (lower left), ${s.names[1]} (lower right) and ${s.names[2]} (upper side). ${summary(s)}`;

  /** The chosen image in words. */
  function imageWords(s) {
    const point = s.chosen.points[s.image - 1];
    if (!point) return "Point at a mark, or move the slider, to read about one image.";
    return `Image ${s.image} of ${s.chosen.points.length}: ${nameOf(s, point.label)}, ` +
      `predicted ${nameOf(s, point.predicted)}, confidence ${percent(point.confidence)}.`;
  }

  // ---------------------------------------------------------------- elements and scales

  const text = (x, y, words, anchor = "start", name = "") =>
    svg("text", { x, y, "text-anchor": anchor, class: name }, words);

  const MARGIN = { left: 38, right: 10, top: 28, bottom: 74 };
  const EDGE = 8; // where names and legend start, left of the frame, because they need the width
  const MARKS = ["M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z", "M-4-4H4V4H-4Z", "M0-5.2L5 3.6H-5Z"];

  /** The plotting area with room for these pictures. */
  function area(width, height, pictures) {
    const box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
    return scaled(box, placesIn(pictures, ({ points }) => points.map((point) => point.place)));
  }

  /** Round numbers whose pixels lie in [low, high] and at least 44 pixels apart. */
  function ticks(low, high, unit, toPixel) {
    const rough = 44 / unit;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const reach = Math.ceil((high - low) / (unit * step)) * 2;
    return Array.from({ length: 2 * reach + 1 }, (_, i) => (i - reach) * step)
      .filter((tick) => toPixel(tick) >= low && toPixel(tick) <= high);
  }
  const tickWords = (tick) => String(Number(tick.toPrecision(6))).replace("-", "−");

  // ---------------------------------------------------------------- the picture

  /** Frame, faint grid and labels of both axes. */
  function axes(box) {
    const across = ticks(box.left, box.right, box.unit, box.x).flatMap((tick) => [
      line(box.x(tick), box.top, box.x(tick), box.bottom, "grid"),
      // Within the frame, so that it is not cut off at the picture's edge.
      text(Math.min(box.x(tick), box.right - 6), box.bottom + 16, tickWords(tick), "middle", "tick-x"),
    ]);
    const up = ticks(box.top, box.bottom, box.unit, box.y).flatMap((tick) => [
      line(box.left, box.y(tick), box.right, box.y(tick), "grid"),
      text(box.left - 5, box.y(tick) + 4, tickWords(tick), "end", "tick-y"),
    ]);
    return [...across, ...up,
      line(box.left, box.bottom, box.right, box.bottom, "axis"), line(box.left, box.top, box.left, box.bottom, "axis")];
  }

  /** A mark of a class. Its filling tells the confidence: its cube, because most confidences lie near 1. */
  const mark = (x, y, kind, confidence, name = "mark") => svg("path", {
    d: MARKS[kind], transform: `translate(${x.toFixed(2)} ${y.toFixed(2)})`,
    class: `${name} ${KINDS[kind]}`, "fill-opacity": (confidence ** 3).toFixed(3),
  });

  /** Marks of all points, first images of all classes first, so that no class covers the others. */
  function marks(box, points) {
    const rank = [0, 0, 0];
    const ranked = points.map((point) => [rank[point.kind]++, point]).sort((one, other) => one[0] - other[0]);
    return ranked.map(([, { place, kind, confidence }]) => mark(box.x(place[0]), box.y(place[1]), kind, confidence));
  }

  /** Triangle and crosses of the templates. */
  function templates(box, corners) {
    const places = corners.map(([x, y]) => [box.x(x), box.y(y)]);
    const triangle = `M${places.map((place) => place.join(" ")).join("L")}Z`;
    return [svg("path", { d: triangle, class: "triangle" }), ...crosses(places, 8, 1 / 3)];
  }

  /** Names of the classes on the sides where their templates lie: lower left, lower right, top. */
  function names(box, words) {
    const [low, middle] = [box.bottom + 40, (box.left + box.right) / 2];
    const at = [[EDGE, low, "start", 11], [box.right - 2, low, "end", -11], [middle - 24, 15, "start", 11]];
    return at.flatMap(([x, y, anchor, shift], kind) => [
      mark(x, y - 5, kind, 1, "sample"), text(x + shift, y, words[kind], anchor, "value")]);
  }

  /** What crosses and fillings mean. */
  function legend(box) {
    const y = box.bottom + 66;
    const at = [-114, -78, -42].map((shift) => box.right + shift);
    const samples = [["50", 0.5], ["80", 0.8], ["100 %", 1]].flatMap(([words, confidence], i) => [
      svg("circle", { cx: at[i], cy: y - 4.5, r: 4.5, class: "mark plain", "fill-opacity": confidence ** 3 }),
      text(at[i] + 8, y, words)]);
    return [svg("path", { d: `M${EDGE - 5} ${y - 10}l10 10m0 -10l-10 10`, class: "template plain" }),
      text(EDGE + 10, y, "template"), text(at[0] - 9, y, "confidence", "end"), ...samples];
  }

  /** The ring around the chosen image. */
  function ring(box, point) {
    if (!point) return [];
    const [cx, cy] = [box.x(point.place[0]), box.y(point.place[1])];
    return ["halo", "ring"].map((name) => svg("circle", { cx, cy, r: 9, class: name }));
  }

  const draw = (s, box) => [
    ...axes(box), ...marks(box, s.chosen.points), ...templates(box, s.chosen.corners),
    ...ring(box, s.chosen.points[s.image - 1]), ...names(box, s.names), ...legend(box)];

  /** Number of the image (from 1) nearest to a place in pixels, at most 20 away; 0 if there is none. */
  function nearest(points, box, pixel) {
    const gaps = points.map(({ place: [x, y] }) => distance([box.x(x), box.y(y)], pixel));
    const least = Math.min(...gaps);
    return least <= 20 ? gaps.indexOf(least) + 1 : 0;
  }

  /** The picture, drawn anew at its width on the page; `onPoint` gets the number of the image pointed at. */
  function panel(onPoint) {
    const ids = ["explorer-projection-title", "explorer-projection-desc"];
    const image = svg("svg", { role: "img", "aria-labelledby": ids[0], "aria-describedby": ids[1] });
    const node = html("div", { class: "explorer-panel explorer-plane" }, image);
    let shown = null;
    const update = (s) => {
      const width = Math.max(Math.floor(node.clientWidth), 200);
      const height = Math.min(width + 40, 500); // a square between the margins, where the page is narrow
      shown = { points: s.chosen.points, box: area(width, height, s.scale === "same" ? s.pictures : [s.chosen]) };
      image.setAttribute("width", width);
      image.setAttribute("height", height);
      image.setAttribute("viewBox", `0 0 ${width} ${height}`);
      image.replaceChildren(svg("title", { id: ids[0] }, `Projection of ${s.names.join(", ")}`),
        svg("desc", { id: ids[1] }, describe(s)), ...draw(s, shown.box));
    };
    const point = (event) => {
      const frame = image.getBoundingClientRect();
      const found = nearest(shown.points, shown.box, [event.clientX - frame.left, event.clientY - frame.top]);
      if (found) onPoint(found);
    };
    ["pointermove", "pointerdown"].forEach((name) => image.addEventListener(name, point));
    return { node, update };
  }

  // ---------------------------------------------------------------- the page

  /** The list of one of the three classes. */
  function classList(title, position, onChange) {
    const id = `explorer-projection-class-${position}`;
    const list = html("select", { id, autocomplete: "off" });
    const label = html("label", { for: id }, title);
    let network = null;
    const fill = (s) => {
      network = s.network;
      const { shown } = NETWORKS[network];
      list.replaceChildren(...shown.map((k, i) => html("option", { value: i }, nameOf(s, k))));
    };
    const update = (s) => {
      if (network !== s.network) fill(s);
      list.value = s.classes[position];
    };
    list.addEventListener("change", () => onChange(position, Number(list.value)));
    return { node: html("div", { class: "explorer-class" }, label, list), update };
  }

  /** The slider over the images, for those who do not point; 0 is none. */
  function imageSlider(onChange) {
    const id = "explorer-projection-image";
    const input = html("input", { type: "range", id, min: 0, step: 1, autocomplete: "off" });
    const node = html("div", { class: "explorer-slider" }, html("label", { for: id }, "Look at one image"), input);
    input.addEventListener("input", () => onChange({ image: Number(input.value) }));
    const update = (s) => {
      input.max = s.chosen.points.length;
      input.value = s.image;
      input.setAttribute("aria-valuetext", s.image ? `image ${s.image}` : "none");
    };
    return { node, update };
  }

  /** A paragraph that a screen reader speaks when its words change. */
  function spoken(name, words) {
    const node = html("p", { class: name, "aria-live": "polite" });
    const update = (s) => { if (node.textContent !== words(s)) node.textContent = words(s); };
    return { node, update };
  }

  const NOTE = "Each mark is an image, in the plane through the three classes’ templates; both axes have the same " +
    "unit. The fuller a mark, the more confident the network. The ratio is the spread over the distance. The scale " +
    "“same for hard and smoothed” is also the same for training and held-out images.";

  /** Fill the explorer's place, replacing what stood there for readers without scripts. */
  function build(root) {
    let state = changed({}, START);
    const update = () => { const solution = solve(state); parts.forEach((part) => part.update(solution)); };
    const change = (changes) => { state = changed(state, changes); update(); };
    // A class that another list has chosen changes places with the one it replaces.
    const changeClass = (position, chosen) => change({ classes: state.classes.map((k, i) => {
      if (i === position) return chosen;
      return k === chosen ? state.classes[position] : k;
    }) });
    const choices = CHOICES.map((choice) => radios(EXPLORER, choice, change));
    const lists = ORDER.map((title, position) => classList(title, position, changeClass));
    const picture = panel((image) => { if (image !== state.image) change({ image }); });
    const slider = imageSlider(change);
    const words = [spoken("explorer-image", imageWords), spoken("explorer-summary", summary)];
    const parts = [...choices, ...lists, picture, slider, ...words];
    const button = html("button", { type: "button", class: "explorer-reset" }, "Reset");
    button.addEventListener("click", () => change(START));
    const nodes = (some) => some.map((part) => part.node);
    const group = (title, name, children) =>
      html("div", { class: `explorer-controls ${name}`, role: "group", "aria-label": title }, ...children);
    root.replaceChildren(
      group("Settings", "explorer-choices", nodes(choices)), group("Classes", "explorer-classes", nodes(lists)),
      picture.node, slider.node, ...nodes(words), html("p", { class: "explorer-note" }, NOTE), button);
    update();
    redrawOnResize(root, update);
  }

  start(EXPLORER, build);
})();
