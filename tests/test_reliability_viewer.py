"""The explorer of "Calibration": its data, its numbers against lsbook.calibration, its keyboard, its looks."""

import itertools
import re
from functools import cache

import numpy as np
import pytest
import reliability_data
from explorer_pages import COLOURS, EXPLORERS, LAYOUT, book_extension, check_contrast, page_html
from scipy.special import softmax

from lsbook import calibration, plots

EXPLORER = "reliability"
# (position of the network on the page, α) → experiment
RUNS = {(i, a): e for i, group in enumerate(reliability_data.NETWORKS) for e, alphas in group.items() for a in alphas}
TEMPERATURES = (0.25, 0.5, 1, 3.49, 8)
BINS = list(itertools.product((5, 10, 15, 20), ("width", "mass")))
RADIOS = ("network", "number", "strategy")
OPENING = {"network": "0", "number": "15", "strategy": "width", "alpha": "0", "temperature": "1"}
BEST = ".explorer-best"


@pytest.fixture
def page(open_explorer):
    return open_explorer()


@cache
def stored(network, alpha):
    """Logits in float64 and labels of the images shown, from the stored run."""
    logits, labels = reliability_data.stored(RUNS[network, alpha], alpha)
    return logits.astype(np.float64), labels


def probs_of(network, alpha, temperature):
    return softmax(stored(network, alpha)[0] / temperature, axis=1)


def call(page, name, *arguments):
    """What window.lsbook.reliability[name] returns; a message where it throws."""
    return page.evaluate(
        """([name, args]) => {
            try { return window.lsbook.reliability[name](...args); } catch (error) { return String(error); }
        }""",
        [name, arguments],
    )


def view(page, network, alpha, temperature=1, num_bins=15, strategy="width"):
    return call(page, "view", network, alpha, temperature, num_bins, strategy)


# ------------------------------------------------------------------------------------ the data


def test_data_are_those_of_the_stored_runs():
    written = reliability_data.TARGET.read_bytes().decode("utf-8")
    assert written == reliability_data.script(), "stale: run python _ext/reliability_data.py"
    assert len(written.encode()) <= 280_000


def test_data_come_before_the_script_that_needs_them():
    assert book_extension.explorer_scripts(EXPLORER) == ["shared.js", "reliability-data.js", "reliability.js"]
    assert reliability_data.TARGET == EXPLORERS / "reliability-data.js"


def test_every_float16_is_read_right(page):
    bits = np.arange(2**16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))]
    found = page.evaluate("(all) => all.map(window.lsbook.reliability.half)", bits.tolist())
    np.testing.assert_array_equal(found, bits.view(np.float16).astype(np.float64))


@pytest.mark.parametrize(("network", "alpha"), RUNS)
def test_logits_and_labels_are_the_stored_ones(page, network, alpha):
    """Nothing is rounded."""
    found, labels = page.evaluate(
        """([network, alpha]) => {
            const { labels, networks } = window.lsbook.reliabilityData;
            const { logits } = networks[network].strengths.find((strength) => strength.alpha === alpha);
            return [[...window.lsbook.reliability.decode(logits)], [...labels].map(Number)];
        }""",
        [network, alpha],
    )
    expected, expected_labels = stored(network, alpha)
    np.testing.assert_array_equal(np.reshape(found, (reliability_data.IMAGES, 10)), expected)
    np.testing.assert_array_equal(labels, expected_labels)


def test_the_images_shown_are_like_the_rest():
    """Each network's accuracy on them is within five points of that on all 10,000, and its ECE too."""
    for (_, alpha), experiment in RUNS.items():
        (spec,) = reliability_data.presets.experiment(experiment, "laptop", seed=0, alpha=alpha)
        run = reliability_data.runs.load(spec.as_dict(), reliability_data.runs.folder())
        logits, labels = run.logits_and_labels("test")
        assert len(labels) == 10_000
        part = slice(reliability_data.IMAGES)
        gap = calibration.accuracy(logits[part], labels[part]) - calibration.accuracy(logits, labels)
        assert abs(gap) < 0.05
        probs = softmax(logits.astype(np.float64), axis=1)
        eces = [calibration.expected_calibration_error(p, y) for p, y in ((probs[part], labels[part]), (probs, labels))]
        assert abs(eces[0] - eces[1]) < 0.03


# ------------------------------------------------------------------------------------ the mathematics


@pytest.mark.parametrize(("network", "alpha"), RUNS)
def test_numbers_agree_with_the_package(page, network, alpha):
    logits, labels = stored(network, alpha)
    for temperature, (num_bins, strategy) in itertools.product(TEMPERATURES, BINS):
        probs = probs_of(network, alpha, temperature)
        found = view(page, network, alpha, temperature, num_bins, strategy)
        bins = calibration.reliability_bins(probs, labels, num_bins, strategy)
        np.testing.assert_allclose(found["edges"], bins.edges, rtol=1e-12)
        seen = bins.counts > 0
        low, high = bins.accuracy_interval()
        expected = {
            "left": bins.edges[:-1],
            "right": bins.edges[1:],
            "count": bins.counts,
            "sumConfidence": bins.sum_confidence,
            "numCorrect": bins.num_correct,
            "confidence": bins.confidence,
            "accuracy": bins.accuracy,
        }
        for key, values in expected.items():
            np.testing.assert_allclose([b[key] for b in found["bins"]], values[seen], rtol=1e-10, err_msg=key)
        intervals = [b["interval"] for b in found["bins"]]
        np.testing.assert_allclose(intervals, np.column_stack([low, high])[seen], rtol=0, atol=1e-9)
        assert found["error"] == pytest.approx(bins.error, abs=1e-12)
        assert found["nll"] == pytest.approx(
            calibration.negative_log_likelihood(logits / temperature, labels), rel=1e-12
        )
        assert found["accuracy"] == pytest.approx(calibration.accuracy(logits, labels), abs=1e-12)
        assert found["confidence"] == pytest.approx(probs.max(axis=1).mean(), rel=1e-12)
        width = calibration.reliability_bins(probs, labels, num_bins)
        assert [b["count"] for b in found["histogram"]] == width.counts.tolist()


@pytest.mark.parametrize(("network", "alpha"), RUNS)
def test_temperature_is_the_packages(page, network, alpha):
    best = view(page, network, alpha)["best"]
    fit = calibration.temperature_fit(*stored(network, alpha))
    assert fit.problem == ""
    assert best["temperature"] == pytest.approx(fit.temperature, rel=1e-9)
    assert best["nll"] == pytest.approx(fit.nll_after, rel=1e-12)


@pytest.mark.parametrize(("network", "alpha"), RUNS)
def test_noise_floor_is_the_packages(page, network, alpha):
    """The mean is exact, the package's is of 4,000 draws: their standard error is under 1 % of it. The other level
    comes from three moments instead of draws: 3 %."""
    for temperature, num_bins, strategy in ((0.5, 15, "width"), (1, 15, "width"), (1, 5, "mass"), (3.49, 20, "mass")):
        probs = probs_of(network, alpha, temperature)
        floor = calibration.noise_floor(probs, num_bins, num_resamples=4_000, strategy=strategy)
        found = view(page, network, alpha, temperature, num_bins, strategy)["floor"]
        assert found["mean"] == pytest.approx(floor.mean, rel=0.02)
        assert found["high"] == pytest.approx(floor.high, rel=0.03)


def floor_of(page, confidence, num_bins):
    return page.evaluate(
        """([confidence, number]) => {
            const { reliabilityBins, noiseFloor } = window.lsbook.reliability;
            return noiseFloor(reliabilityBins(confidence, confidence.map(() => true), number).bins);
        }""",
        [confidence, num_bins],
    )


def test_noise_floor_by_hand(page):
    """Two coins of chance 1/2 in one bin: 0, 1, 2 heads with 1/4, 1/2, 1/4, so E|S − 1| = 1/2, over two images."""
    assert floor_of(page, [0.5, 0.5], 1)["mean"] == pytest.approx(0.25, abs=1e-15)
    # One coin of chance p: |1 − p| with p and p with 1 − p; three alone in their bins add up.
    chances = [0.3, 0.5, 0.9]
    expected = sum(2 * p * (1 - p) for p in chances) / 3
    assert floor_of(page, chances, 10)["mean"] == pytest.approx(expected, rel=1e-14)
    assert floor_of(page, [1, 1, 1], 10) == {"mean": 0, "high": 0}


def bins_of(page, confidence, correct, num_bins, strategy="width"):
    return call(page, "reliabilityBins", confidence, correct, num_bins, strategy)


@pytest.mark.parametrize("num_bins", [5, 10, 15, 20])
def test_a_confidence_on_an_edge_counts_in_the_lower_bin(page, num_bins):
    """As in the package, for every edge as numpy computes it, and the next number above and below it."""
    edges = np.linspace(0, 1, num_bins + 1)
    near = np.concatenate([edges, np.nextafter(edges[:-1], 1), np.nextafter(edges[1:], 0)])
    near = near[near >= 0.5]  # the largest of two probabilities
    found = bins_of(page, near.tolist(), [True] * len(near), num_bins)
    expected = calibration.reliability_bins(np.column_stack([near, 1 - near]), np.zeros(len(near), int), num_bins)
    assert [b["count"] for b in found["bins"]] == expected.counts.tolist()
    assert found["edges"] == edges.tolist()


def test_confidence_zero_and_one_have_a_bin(page):
    assert [b["count"] for b in bins_of(page, [0, 1, 0.25, 0.75], [True] * 4, 4)["bins"]] == [2, 0, 1, 1]


def test_error_by_hand(page):
    """Bins (0, ½] and (½, 1]: |1 − 0.7| and |1 − 1.6|, over four images."""
    found = bins_of(page, [0.3, 0.4, 0.7, 0.9], [True, False, False, True], 2)
    assert found["error"] == pytest.approx((0.3 + 0.6) / 4, rel=1e-14)


@pytest.mark.parametrize("confidence", [[0.5] * 6, [0.6, 0.6, 0.6, 0.9, 0.9, 1.0], list(np.linspace(0.5, 1, 31))])
def test_bins_of_equal_mass_with_ties(page, confidence):
    probs, labels = np.column_stack([confidence, 1 - np.array(confidence)]), np.zeros(len(confidence), int)
    for num_bins in (1, 2, 4, 5, 10, 15, 20):
        found = bins_of(page, confidence, [True] * len(confidence), num_bins, "mass")
        expected = calibration.reliability_bins(probs, labels, num_bins, "mass")
        assert found["edges"] == expected.edges.tolist()
        assert [b["count"] for b in found["bins"]] == expected.counts.tolist()
        assert found["error"] == pytest.approx(expected.error, abs=1e-14)


def test_intervals_agree_with_the_package(page):
    counts = np.array([1, 1, 9, 9, 2, 1000, 1400])
    right = np.array([0, 1, 0, 9, 1, 3, 1099])
    bins = calibration.Bins(np.linspace(0, 1, 8), counts, counts / 2, right.astype(float))
    found = [call(page, "accuracyInterval", *pair) for pair in zip(right.tolist(), counts.tolist(), strict=True)]
    np.testing.assert_allclose(found, np.column_stack(bins.accuracy_interval()), rtol=0, atol=1e-9)


FIT = """([logits, labels]) => {
    const { examples, fitTemperature } = window.lsbook.reliability;
    try { return fitTemperature(examples(logits, labels)); } catch (error) { return String(error); }
}"""


@pytest.mark.parametrize("scale", [0.01, 1, 100])
def test_temperature_of_made_logits(page, scale):
    rng = np.random.default_rng(0)
    logits, labels = scale * rng.normal(size=(200, 4)), rng.integers(4, size=200)
    logits[np.arange(200), labels] += 0.7 * scale
    found = page.evaluate(FIT, [logits.ravel().tolist(), labels.tolist()])
    assert found == pytest.approx(calibration.fit_temperature(logits, labels), rel=1e-9)


@pytest.mark.parametrize("label", [0, 1])
def test_without_a_best_temperature_it_says_so(page, label):
    """The label always has the largest logit, or the smallest."""
    assert page.evaluate(FIT, [[3, 1, 2, 0], [label] * 2]) == "RangeError: no temperature minimises the NLL"


def test_of_equal_logits_the_first_is_predicted(page):
    found = call(page, "examples", [1, 1, 0, 0, 2, 2], [0, 2])
    assert found["correct"] == [True, False]


def test_a_strength_that_is_not_there_is_named(page):
    assert view(page, 1, 0.5) == "RangeError: alpha must be one of network 1, got 0.5"


# ------------------------------------------------------------------------------------ the controls


def settings(page):
    """What is chosen, as a reader sees it."""
    chosen = {key: page.locator(f"input[name=explorer-reliability-{key}]:checked").input_value() for key in RADIOS}
    for key in ("alpha", "temperature"):
        spoken = page.get_attribute(f"#explorer-reliability-{key}", "aria-valuetext")
        shown = page.locator(f".explorer-slider-{key} .explorer-value").text_content()
        assert shown.split("\u00a0=\u00a0")[1] == spoken
        chosen[key] = spoken
    return chosen


def choose(page, **values):
    for key, value in values.items():
        page.locator(f"input[name=explorer-reliability-{key}][value='{value}']").check()


def slide(page, key, position):
    page.locator(f"#explorer-reliability-{key}").evaluate(
        "(slider, position) => { slider.value = position; slider.dispatchEvent(new Event('input')); }", position
    )


def stop(temperature):
    return round(20 * (np.log2(temperature) + 2))


def set_run(page, network, alpha):
    choose(page, network=network)
    slide(page, "alpha", sorted(a for n, a in RUNS if n == network).index(alpha))
    assert float(settings(page)["alpha"]) == alpha


def lines(page):
    return [words.replace("\u00a0", " ") for words in page.locator(".explorer-summary span").all_text_contents()]


def percent(share):
    return f"{100 * share:.1f} %"


def assert_words_match(page, temperature=None):
    """The lines say the package's numbers of what is chosen; the temperature is rounded in words."""
    chosen = settings(page)
    temperature = float(chosen["temperature"]) if temperature is None else temperature
    network, alpha = int(chosen["network"]), float(chosen["alpha"])
    logits, labels = stored(network, alpha)
    probs = probs_of(network, alpha, temperature)
    bins = calibration.reliability_bins(probs, labels, int(chosen["number"]), chosen["strategy"])
    fit = calibration.temperature_fit(logits, labels)
    floor = view(page, network, alpha, temperature, int(chosen["number"]), chosen["strategy"])["floor"]
    accuracy, confidence = calibration.accuracy(logits, labels), probs.max(axis=1).mean()
    side = "above" if confidence > accuracy else "below"
    verdict = "larger: they are not right." if bins.error > floor["high"] else "not larger: no evidence against them."
    title = ("CIFAR-10, AlexNet", "CIFAR-10, AlexNet, augmented")[network]
    nll = calibration.negative_log_likelihood(logits / temperature, labels)
    best = f"{fit.temperature:.3g}"
    assert lines(page) == [
        f"{title}, α = {alpha:g}, T = {temperature:.3g}: 1,400 held-out images.",
        f"Accuracy {percent(accuracy)}; no temperature changes it.",
        f"Mean confidence {percent(confidence)}, {100 * abs(confidence - accuracy):.1f} points {side} the accuracy.",
        f"ECE {percent(bins.error)} in {chosen['number']} bins of equal {chosen['strategy']}.",
        f"Noise floor {percent(floor['mean'])}: the ECE that chance alone would give on average if these confidences "
        f"were right; one time in twenty, more than {percent(floor['high'])}. This ECE is {verdict}",
        f"NLL {nll:.3f} nats; the least, {fit.nll_after:.3f} nats, is at T = {best}.",
    ]
    assert page.locator(BEST).text_content() == f"Best T (least NLL): {best}"


def test_opening_view(page):
    assert settings(page) == OPENING
    assert_words_match(page)
    assert page.locator("#still").count() == 0  # the explorer has taken the still picture's place


def test_without_scripts_the_still_stays(browser, tmp_path):
    (tmp_path / "page.html").write_text(page_html(EXPLORER), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((tmp_path / "page.html").as_uri())
    assert tab.locator("#still").is_visible()
    context.close()


def test_keyboard(page):
    focused = "() => document.activeElement.id || document.activeElement.name || document.activeElement.className"
    names = [f"explorer-reliability-{key}" for key in ("network", "alpha", "temperature", "number", "strategy")]
    buttons = ["explorer-reset explorer-best", "explorer-reset"]
    for name in (*names[:3], *buttons, *names[3:]):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == name
        assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
        if name in names:
            page.keyboard.press("ArrowRight")
            assert page.evaluate(focused) == name  # drawing anew leaves the focus where it is
    changed = {"network": "1", "number": "20", "strategy": "mass", "alpha": "0.1", "temperature": "1.04"}
    assert settings(page) == changed
    assert_words_match(page, 2**0.05)  # a stop, which the words round
    for name in (names[3], buttons[1], buttons[0]):
        page.keyboard.press("Shift+Tab")
        assert page.evaluate(focused) == name
    page.keyboard.press("Enter")
    assert_words_match(page, calibration.fit_temperature(*stored(1, 0.1)))
    assert page.evaluate(focused) == buttons[0]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert settings(page) == OPENING
    assert_words_match(page)


def test_arrow_keys_move_on_from_the_best_temperature(page):
    """Which lies between two stops: the thumb stands at the nearest one."""
    page.locator(BEST).click()
    assert settings(page)["temperature"] == "3.49"
    page.locator("#explorer-reliability-temperature").focus()
    page.keyboard.press("ArrowRight")
    assert_words_match(page, 2 ** ((stop(3.49) + 1) / 20 - 2))
    page.keyboard.press("Home")
    assert settings(page)["temperature"] == "0.25"
    assert_words_match(page)
    page.keyboard.press("End")
    assert settings(page)["temperature"] == "8"
    assert_words_match(page)


@pytest.mark.parametrize(("network", "alpha"), RUNS)
def test_every_choice_is_said_right(page, network, alpha):
    set_run(page, network, alpha)
    for temperature, (number, strategy) in zip((0.25, 0.5, 1, 2, 8), BINS[::2] + BINS[1::6], strict=False):
        slide(page, "temperature", stop(temperature))
        choose(page, number=number, strategy=strategy)
        assert_words_match(page)


@pytest.mark.parametrize(("alpha", "nearest"), [(0.05, "0"), (0.1, "0.1"), (0.5, "0.1")])
def test_another_network_has_the_nearest_strength(page, alpha, nearest):
    set_run(page, 0, alpha)
    choose(page, network=1)
    assert settings(page)["alpha"] == nearest
    assert page.get_attribute("#explorer-reliability-alpha", "max") == "1"
    assert_words_match(page)
    choose(page, network=0)
    assert settings(page)["alpha"] == nearest
    assert page.locator(".explorer-slider-alpha .explorer-marks").inner_text().split() == [
        "0",
        "0.05",
        "0.1",
        "0.2",
        "0.5",
    ]


def test_marks_below_the_sliders_stand_under_the_thumb(page):
    """Thumbs are not in the page's tree: at stop i of n the middle of one 16 pixels wide is at 8 + (w − 16) i/n."""
    for key, at in (("temperature", [stop(t) / 100 for t in (0.5, 1, 2, 4)]), ("alpha", [0.25, 0.5, 0.75])):
        slider = page.locator(f"#explorer-reliability-{key}").bounding_box()
        marks = page.locator(f".explorer-slider-{key} .explorer-marks span")
        boxes = [marks.nth(i).bounding_box() for i in range(1, marks.count() - 1)]
        middles = [box["x"] + box["width"] / 2 for box in boxes]
        expected = [slider["x"] + 8 + share * (slider["width"] - 16) for share in at]
        assert middles == pytest.approx(expected, abs=1)
    one = page.locator(".explorer-marks .one")
    assert one.all_inner_texts() == ["1"]


def test_assistive_technology_is_told(page):
    for key in ("alpha", "temperature"):
        assert page.locator(f"label[for=explorer-reliability-{key}]").count() == 1
    for name, count in (("Network", 2), ("Number of bins", 4), ("Bins", 2), ("Settings", 2), ("Binning", 6)):
        assert page.get_by_role("group", name=name, exact=True).get_by_role("radio").count() == count
    for name in ("Smoothing in training", "Temperature"):
        assert page.get_by_role("slider", name=name).count() == 1
    picture = page.get_by_role("img", name="Reliability diagram, and histogram of the confidences")
    assert picture.count() == 1
    described = page.locator(f"#{picture.get_attribute('aria-describedby')}").text_content().replace("\u00a0", " ")
    assert described.startswith(lines(page)[0])
    found = view(page, 0, 0)["bins"][-1]
    low, high = map(percent, found["interval"])
    words = f"{percent(found['confidence'])}, {percent(found['accuracy'])} ({low} to {high}), {found['count']}."
    assert words in described
    assert page.locator("[aria-live=polite]").count() == 1
    assert page.locator(".explorer-summary[aria-live=polite]").count() == 1


def test_only_the_lines_that_change_are_spoken(page):
    """A temperature leaves the accuracy's line as it was, down to its node."""
    page.evaluate(
        """() => {
            window.touched = new Set();
            const spans = [...document.querySelectorAll(".explorer-summary span")];
            new MutationObserver((all) => all.forEach((m) => window.touched.add(spans.indexOf(m.target))))
                .observe(document.querySelector(".explorer-summary"), { childList: true, subtree: true });
        }"""
    )
    slide(page, "temperature", stop(2))
    assert page.evaluate("() => [...window.touched].sort()") == [0, 2, 3, 4, 5]


# ------------------------------------------------------------------------------------ the picture


def drawn(page):
    """Boxes, gaps, points, diamond and bars in units of the picture's axes, read off its own ticks."""
    found = page.evaluate(
        """() => {
            const all = (name) => [...document.querySelectorAll(`.explorer-panel ${name}`)];
            const numbers = (names) => (node) => names.map((name) => Number(node.getAttribute(name)));
            const rects = (name) => all(name).map(numbers(["x", "y", "width", "height"]));
            const axes = all(".axis").map(numbers(["x1", "y1", "x2", "y2"]));
            return {
                axes, bands: rects(".band"), bars: rects(".bar"), points: all(".point").map(numbers(["cx", "cy"])),
                gaps: all(".gap").map(numbers(["x1", "y1", "x2", "y2"])),
                guides: all(".guide").map(numbers(["x1", "y1", "x2", "y2"])),
                most: all(".tick-share").map((t) => parseFloat(t.textContent) / 100),
            };
        }"""
    )
    (left, bottom, right, _), (_, top, *_), (_, low, *_), (_, high, *_) = found["axes"]
    assert right - left == pytest.approx(bottom - top)  # both axes from 0 to 1, in a square

    def x(value):
        return (value - left) / (right - left)

    def y(value):
        return (bottom - value) / (bottom - top)

    def share(height):
        return height / (low - high) * found["most"][1]

    assert found["most"][0] == 0
    assert all(y >= high - 1e-9 for _, y, *_ in found["bars"])
    return {
        "bands": [(x(a), x(a + w), y(b + h), y(b)) for a, b, w, h in found["bands"]],
        "gaps": [(x(a), y(b), x(c), y(d)) for a, b, c, d in found["gaps"]],
        "points": [(x(a), y(b)) for a, b in found["points"]],
        "all": [(x(found["guides"][0][0]), y(found["guides"][1][1]))],
        "bars": [(x(a), x(a + w), share(h)) for a, b, w, h in found["bars"]],
    }


@pytest.mark.parametrize(("number", "strategy"), [(5, "mass"), (15, "width"), (20, "width"), (20, "mass")])
@pytest.mark.parametrize(("network", "alpha"), [(0, 0.0), (0, 0.5), (1, 0.1)])
def test_the_picture_shows_the_packages_bins(page, network, alpha, number, strategy):
    set_run(page, network, alpha)
    choose(page, number=number, strategy=strategy)
    labels = stored(network, alpha)[1]
    for temperature in (0.25, 1, 8):
        slide(page, "temperature", stop(temperature))
        probs = probs_of(network, alpha, temperature)
        bins = calibration.reliability_bins(probs, labels, number, strategy)
        width = calibration.reliability_bins(probs, labels, number)
        seen, some = bins.counts > 0, width.counts > 0
        low, high = bins.accuracy_interval()
        confidence, accuracy = bins.confidence, bins.accuracy
        expected = {
            "bands": np.column_stack([bins.edges[:-1], bins.edges[1:], low, high])[seen],
            "gaps": np.column_stack([confidence, confidence, confidence, accuracy])[seen],
            "points": np.column_stack([confidence, accuracy])[seen],
            "all": [(probs.max(axis=1).mean(), (probs.argmax(axis=1) == labels).mean())],
            "bars": np.column_stack([width.edges[:-1], width.edges[1:], width.counts / len(labels)])[some],
        }
        found = drawn(page)
        for key, values in expected.items():
            np.testing.assert_allclose(found[key], values, rtol=0, atol=1e-9, err_msg=key)


def test_colours_are_those_of_hard_and_smoothed_targets(page):
    """By day, those of the book's figures."""
    for alpha, colour in ((0.0, plots.HARD), (0.1, plots.SMOOTHED)):
        set_run(page, 0, alpha)
        shapes = page.evaluate(COLOURS, [[".explorer-panel .gap", ".explorer-legend .gap"], [".explorer-panel .point"]])
        for _, given, _ in shapes["shapes"]:
            assert "#{:02X}{:02X}{:02X}".format(*map(int, re.findall(r"\d+", given))) == colour


# ------------------------------------------------------------------------------------ the page


def test_quiet_and_offline(open_explorer):
    page = open_explorer()
    for network, alpha in RUNS:
        set_run(page, network, alpha)
        page.locator(BEST).click()
    page.set_viewport_size({"width": 420, "height": 800})
    page.wait_for_function("document.querySelector('.explorer-panel svg').clientWidth < 400")
    page.locator(".explorer-reset").last.click()
    page.wait_for_load_state("networkidle")
    assert open_explorer.problems == []


def test_a_step_of_a_slider_is_quick(page):
    """Under 0.3 s on a machine that is busy with much else; the least of a few."""
    times = page.evaluate(
        """() => [0, 10, 20, 60, 90].map((position) => {
            const slider = document.getElementById("explorer-reliability-temperature");
            const from = performance.now();
            slider.value = position;
            slider.dispatchEvent(new Event("input"));
            return performance.now() - from;
        })"""
    )
    assert min(times) < 300


@pytest.mark.parametrize("width", [320, 360, 420, 700, 1000])
def test_fits_and_can_be_read(open_explorer, width):
    page = open_explorer(width=width)
    assert page.locator(".explorer svg text").count() > 14
    for network, alpha in ((0, 0.0), (0, 0.5), (1, 0.1)):
        set_run(page, network, alpha)
        for temperature, strategy in ((0.25, "mass"), (0.25, "width"), (8, "width")):
            slide(page, "temperature", stop(temperature))
            choose(page, strategy=strategy)
            assert page.evaluate(LAYOUT) == [], settings(page)


MARKS_APART = """() => [...document.querySelectorAll(".explorer-marks")].flatMap((row) => {
    const boxes = [...row.children].map((mark) => mark.getBoundingClientRect());
    return boxes.slice(1).map((box, i) => box.left - boxes[i].right);
})"""


@pytest.mark.parametrize("width", [320, 420, 1000])
def test_marks_below_the_sliders_do_not_touch(open_explorer, width):
    page = open_explorer(width=width)
    for network in (0, 1):
        choose(page, network=network)
        assert min(page.evaluate(MARKS_APART)) > 4


def test_words_stand_beside_the_picture_or_below_it(open_explorer):
    for width, beside in ((1000, True), (420, False)):
        page = open_explorer(width=width)
        picture = page.locator(".explorer-panel").bounding_box()
        words = page.locator(".explorer-summary").bounding_box()
        assert (words["x"] > picture["x"] + picture["width"]) == beside
        assert (words["y"] > picture["y"] + picture["height"]) != beside


def test_redraws_when_the_page_narrows(page):
    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_function("document.querySelector('.explorer-panel svg').clientWidth < 400")
    assert page.evaluate(LAYOUT) == []


STROKES = [f".explorer-panel .{name}" for name in ("axis", "band", "bar", "gap", "diagonal", "guide")]
FILLS = [f".explorer-panel .{name}" for name in ("point", "all")]


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("themed", [True, False], ids=["theme", "fall-backs"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(open_explorer, dark, themed, alpha):
    page = open_explorer(dark=dark, themed=themed)
    set_run(page, 0, alpha)
    found = page.evaluate(COLOURS, [STROKES, FILLS])
    assert len(found["texts"]) > 45
    check_contrast(found, dark)
