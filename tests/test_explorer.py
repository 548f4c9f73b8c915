"""The interactive explorer of "The logit gap", in a real browser: its numbers, its keyboard, its looks."""

import itertools
import re

import numpy as np
import pytest
from explorer_pages import COLOURS, LAYOUT, check_contrast
from scipy.special import expit, logsumexp

from lsbook import theory

EXPLORER = "logit-gap"
STROKES = ["path.smoothed", "path.hard", "line.floor", ".axis", ".optimum-line", "rect.optimum", ".hatch-line"]
FILLS = ["rect.target", ".optimum-dot"]
CLASSES = (2, 3, 10, 100, 1000, 32000)
ALPHAS = (0.0, 1e-12, 1e-3, 0.05, 0.1, 0.5, 0.9, 1.0)
TEMPERATURES = (0.25, 1.0, 2.0, 4.0, 16.0)
SLIDERS = ("alpha", "classes", "temperature")


@pytest.fixture
def page(open_explorer):
    return open_explorer()


def call(page, name, *arguments):
    """Call a function of window.lsbook.logitGap."""
    return page.evaluate("([name, args]) => window.lsbook.logitGap[name](...args)", [name, arguments])


def call_all(page, name, argument_lists):
    """Call it for each list of arguments in one go; objects come back as (pTrue, pOther)."""
    results = page.evaluate(
        "([name, lists]) => lists.map((args) => window.lsbook.logitGap[name](...args))", [name, argument_lists]
    )
    return np.array([(r["pTrue"], r["pOther"]) if isinstance(r, dict) else r for r in results], dtype=float)


def set_sliders(page, **positions):
    """Move sliders to positions (indices of their stops, −1 for the last), as dragging would."""
    page.evaluate(
        """(positions) => Object.entries(positions).forEach(([key, position]) => {
            const slider = document.getElementById(`explorer-${key}`);
            slider.value = position < 0 ? Number(slider.max) + 1 + position : position;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
        })""",
        positions,
    )


def settings(page):
    """(α, K, T) as a screen reader hears them; what stands next to the slider must say the same."""
    spoken = page.locator(".explorer input").evaluate_all("(all) => all.map((input) => input.ariaValueText)")
    shown = [text.split(" = ")[1] for text in page.locator(".explorer-value").all_inner_texts()]
    assert spoken == shown
    alpha, classes, temperature = (float(text.replace(",", "")) for text in spoken)
    return alpha, int(classes), temperature


def parse(text):
    """The number at the head of a read-out: 0.0900, 4.511 nats, 1.454×10⁻²², ∞: …"""
    if text.startswith("∞"):
        return np.inf
    plain = text.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")).replace("×10", "e")
    return float(re.match(r"[0-9.]+(e-[0-9]+)?", plain).group())


def readouts(page):
    pairs = "(cells) => cells.map((cell) => [cell.dataset.readout, cell.innerText])"
    return dict(page.locator("[data-readout]").evaluate_all(pairs))


def expected_readouts(alpha, classes, temperature):
    """What the read-outs must say, from lsbook.theory alone."""
    teacher_alpha = theory.collapsed_teacher_alpha(alpha, classes, temperature)
    targets, optimum = theory.optimal_probs(alpha, classes), theory.optimal_probs(teacher_alpha, classes)
    gap = theory.optimal_gap(alpha, classes)
    return {
        "target-true": targets[0],
        "target-other": targets[1],
        "gap": gap,
        "floor": theory.loss_floor(alpha, classes),
        "gap-softened": gap / temperature,
        "optimum-true": optimum[0],
        "optimum-other": optimum[1],
        "teacher-alpha": teacher_alpha,
    }


def assert_readouts_match(page):
    shown = {key: parse(text) for key, text in readouts(page).items()}
    assert shown == pytest.approx(expected_readouts(*settings(page)), rel=5.01e-4, abs=0)  # four digits


# ------------------------------------------------------------------------------------ the mathematics


@pytest.mark.parametrize("classes", CLASSES)
def test_functions_agree_with_theory(page, classes):
    single = [(alpha, classes) for alpha in ALPHAS]
    exact = {"rtol": 1e-12, "atol": 0}
    probs = np.array([theory.optimal_probs(alpha, classes) for alpha in ALPHAS])
    np.testing.assert_allclose(call_all(page, "targets", single), probs, **exact)
    gaps = theory.optimal_gap(np.array(ALPHAS), classes)
    np.testing.assert_allclose(call_all(page, "optimalGap", single), gaps, **exact)
    floors = theory.loss_floor(np.array(ALPHAS), classes)
    np.testing.assert_allclose(call_all(page, "lossFloor", single), floors, **exact)

    softened = [(alpha, classes, temperature) for alpha in ALPHAS for temperature in TEMPERATURES]
    teacher_alphas = np.array([theory.collapsed_teacher_alpha(*arguments) for arguments in softened])
    np.testing.assert_allclose(call_all(page, "collapsedTeacherAlpha", softened), teacher_alphas, **exact)
    p_true = [expit(theory.optimal_gap(a, classes) / t - np.log(classes - 1)) for a, _, t in softened]
    probs = np.stack([p_true, teacher_alphas / classes], axis=1)
    np.testing.assert_allclose(call_all(page, "optimalProbs", softened), probs, **exact)


@pytest.mark.parametrize("classes", CLASSES)
def test_smoothed_loss_is_least_at_the_optimum(page, classes):
    floors = theory.loss_floor(np.array(ALPHAS), classes)
    gaps = theory.optimal_gap(np.array(ALPHAS), classes)
    at_optimum = [(gap, alpha, classes) for gap, alpha in zip(gaps, ALPHAS, strict=True)]
    np.testing.assert_allclose(call_all(page, "smoothedLoss", at_optimum), floors, rtol=1e-12, atol=0)
    for shift in (-5, -1, -0.1, -1e-3, 1e-3, 0.1, 1, 5):
        beside = [(gap + shift, alpha, classes) for gap, alpha, _ in at_optimum[1:]]
        assert (call_all(page, "smoothedLoss", beside) > floors[1:]).all(), f"not least: shift {shift}"


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_smoothed_loss_is_the_cross_entropy_of_full_vectors(page, classes):
    for alpha in ALPHAS:
        targets = np.full(classes, alpha / classes)
        targets[0] += 1 - alpha
        points = np.linspace(-2, 21, 24)
        logits = points[:, None] * (np.arange(classes) == 0)
        by_definition = logsumexp(logits, axis=1) - logits @ targets
        given = call_all(page, "smoothedLoss", [(z, alpha, classes) for z in points])
        np.testing.assert_allclose(given, by_definition, rtol=1e-12, atol=1e-13)


def test_extremes_stay_exact(page):
    assert call(page, "optimalGap", 1e-300, 32000) == pytest.approx(theory.optimal_gap(1e-300, 32000), rel=1e-14)
    assert call(page, "lossFloor", 1e-300, 32000) == pytest.approx(theory.loss_floor(1e-300, 32000), rel=1e-12)
    for alpha, temperature in itertools.product((0, 5e-324, 1e-300, 1 - 2**-53, 1), (5e-324, 1e-3, 1e6, 1e308)):
        probs = call(page, "optimalProbs", alpha, 32000, temperature)
        assert probs["pTrue"] + 31999 * probs["pOther"] == pytest.approx(1, rel=1e-12)
        assert 0 <= call(page, "collapsedTeacherAlpha", alpha, 32000, temperature) <= 1
    assert call(page, "smoothedLoss", 1000, 0.1, 10) == pytest.approx(90, rel=1e-12)
    assert call(page, "smoothedLoss", -1000, 0.1, 10) == pytest.approx(910 + np.log(9), rel=1e-2)
    assert call(page, "smoothedLoss", float("inf"), 0, 10) == 0
    assert call(page, "smoothedLoss", float("inf"), 0.1, 10) == float("inf")
    assert call(page, "smoothedLoss", float("-inf"), 0.1, 10) == float("inf")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("targets", [-0.1, 10], r"alpha must be a number in \[0, 1\], got -0.1"),
        ("optimalGap", [float("nan"), 10], "alpha must be .* got NaN"),
        ("lossFloor", ["0.1", 10], "alpha must be"),
        ("targets", [0.1, 1], "numClasses must be a whole number of at least 2, got 1"),
        ("optimalGap", [0.1, 2.5], "numClasses must be .* got 2.5"),
        ("optimalProbs", [0.1, 10, 0], "temperature must be .* got 0"),
        ("collapsedTeacherAlpha", [0.1, 10, float("inf")], "temperature must be .* got Infinity"),
        ("smoothedLoss", [float("nan"), 0.1, 10], "gap must be .* got NaN"),
    ],
)
def test_bad_arguments_are_named(page, name, arguments, message):
    given = page.evaluate(
        "([name, args]) => { try { return window.lsbook.logitGap[name](...args); } catch (e) { return String(e); } }",
        [name, arguments],
    )
    assert re.match(f"RangeError: {message}", str(given)), given


# ------------------------------------------------------------------------------------ the controls


def test_opening_view(page):
    assert settings(page) == (0.1, 10, 1)
    assert_readouts_match(page)
    assert page.locator("#still").count() == 0  # the explorer has taken the still picture's place
    assert readouts(page)["gap"] == "4.511 nats"


def test_keyboard(page):
    focused = "() => document.activeElement.id || document.activeElement.className"
    for number, key in enumerate(SLIDERS):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == f"explorer-{key}"
        assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
        before = settings(page)[number]
        seen = []
        for press in ("ArrowRight", "ArrowLeft", "PageUp", "PageDown", "Home", "End"):
            page.keyboard.press(press)
            seen.append(settings(page)[number])
            assert_readouts_match(page)
        right, back, up, down, low, high = seen
        assert low < before < right < high
        assert back == before < up < high
        assert low < down < up
    assert settings(page) == (1, 32000, 16)
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "explorer-reset"
    page.keyboard.press("Enter")
    assert settings(page) == (0.1, 10, 1)
    assert_readouts_match(page)


def test_every_stop_is_shown_right(page):
    for key, others in (("alpha", {"classes": 9}), ("classes", {"temperature": 3}), ("temperature", {"alpha": -1})):
        set_sliders(page, **others)
        seen = []
        for position in range(int(page.get_attribute(f"#explorer-{key}", "max")) + 1):
            set_sliders(page, **{key: position})
            seen.append(settings(page)[SLIDERS.index(key)])
            assert_readouts_match(page)
        assert seen == sorted(set(seen))
        page.locator(".explorer-reset").click()


def test_hard_targets_have_no_finite_optimum(page):
    set_sliders(page, alpha=0)
    assert readouts(page)["gap"] == "∞: no finite optimum"
    assert page.locator(".optimum-dot").count() == 0
    assert "no finite optimum" in page.locator(".explorer-loss desc").inner_html()


def test_assistive_technology_is_told(page):
    for slider in SLIDERS:
        assert page.locator(f"label[for=explorer-{slider}]").count() == 1
    assert page.locator("[aria-live=polite] [data-readout]").count() == len(readouts(page))
    for panel in ("bars", "loss"):
        image = page.locator(f".explorer-{panel} svg")
        assert image.get_attribute("role") == "img"
        names = image.get_attribute("aria-labelledby").split()
        assert all(image.locator(f"#{name}").text_content() for name in names)
    set_sliders(page, alpha=9, classes=-1)
    alpha, classes, _ = settings(page)
    assert f"{theory.optimal_gap(alpha, classes):#.4g} nats" in page.locator(".explorer-loss desc").text_content()
    assert f"{theory.optimal_probs(alpha, classes)[0]:#.4g}" in page.locator(".explorer-bars desc").text_content()


# ------------------------------------------------------------------------------------ the pictures


def marker(page):
    """Centre of the dot at the optimum, in pixels of the page."""
    box = page.locator(".optimum-dot").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def scales(page, panel):
    """Functions from pixels of a panel to data, read off its own ticks: (x → gap, y → value)."""
    lines = page.evaluate(
        """(panel) => {
            const all = (name) => [...document.querySelectorAll(`.explorer-${panel} ${name}`)];
            return [
                all("text.tick-x").map((t) => [Number(t.getAttribute("x")), Number(t.textContent)]),
                all("text.tick-y").map((t, i) =>
                    [Number(all("line.grid")[i].getAttribute("y1")), Number(t.textContent)]),
            ];
        }""",
        panel,
    )
    return [np.poly1d(np.polyfit(*np.transpose(points), 1)) if points else None for points in lines]


def test_marker_moves_monotonically_with_the_gap(page):
    places = []
    for position in range(1, int(page.get_attribute("#explorer-alpha", "max")) + 1):
        set_sliders(page, alpha=position)
        alpha, classes, _ = settings(page)
        places.append((theory.optimal_gap(alpha, classes), *marker(page)))
    gaps, x, y = np.array(places).T
    assert len(gaps) > 30
    assert (np.diff(gaps) < 0).all()
    assert (np.diff(x) < 0).all()
    np.testing.assert_allclose(np.diff(x) / np.diff(gaps), np.ptp(x) / np.ptp(gaps), rtol=0.02)
    assert (np.diff(y) < 0).all()  # the floor rises with α, and pixels count downwards


@pytest.mark.parametrize("positions", [{}, {"alpha": 1, "classes": -1}, {"alpha": -1, "classes": 0}, {"alpha": 20}])
def test_loss_panel_draws_theory(page, positions):
    set_sliders(page, **positions)
    alpha, classes, _ = settings(page)
    to_gap, to_loss = scales(page, "loss")
    dot = page.locator(".optimum-dot")
    assert to_gap(float(dot.get_attribute("cx"))) == pytest.approx(theory.optimal_gap(alpha, classes), abs=1e-6)
    assert to_loss(float(dot.get_attribute("cy"))) == pytest.approx(theory.loss_floor(alpha, classes), abs=1e-6)
    line = page.locator(".explorer-loss line.floor").last
    assert to_loss(float(line.get_attribute("y1"))) == pytest.approx(theory.loss_floor(alpha, classes), abs=1e-6)
    for name, strength in (("smoothed", alpha), ("hard", 0)):
        path = page.get_attribute(f".explorer-loss path.{name}", "d")
        x, y = np.array([point.split(",") for point in path[1:].split("L")], dtype=float).T
        gaps = to_gap(x)
        assert gaps[0] == pytest.approx(-2, abs=0.01)
        p_true = 1 - theory.epsilon_from_alpha(strength, classes)
        loss = np.logaddexp(gaps, np.log(classes - 1)) - p_true * gaps
        np.testing.assert_allclose(to_loss(y), loss, atol=0.02 + 1e-3 * classes**0.25)  # paths keep 0.01 pixel


@pytest.mark.parametrize("positions", [{}, {"temperature": -1}, {"alpha": -1, "classes": -1}, {"alpha": 0}])
def test_bars_are_as_high_as_the_probabilities(page, positions):
    set_sliders(page, **positions)
    expected = expected_readouts(*settings(page))
    others = settings(page)[1] - 1
    to_value = scales(page, "bars")[1]
    for name in ("target", "optimum"):
        bars = page.locator(f".explorer-bars rect.{name}").all()[1:]  # the first is the legend's
        heights = [to_value(float(bar.get_attribute("y"))) for bar in bars]
        p_true, p_other = expected[f"{name}-true"], expected[f"{name}-other"]
        assert heights == pytest.approx([p_true, p_other, others * p_other], abs=1e-6)
        bottoms = [float(bar.get_attribute("y")) + float(bar.get_attribute("height")) for bar in bars]
        assert to_value(np.array(bottoms)) == pytest.approx(0, abs=1e-6)


def test_axes_stand_still_while_alpha_and_temperature_move(page):
    ticks = page.locator("svg .tick-y, svg .tick-x")
    before = ticks.all_inner_texts()
    for positions in ({"alpha": 0}, {"alpha": 15}, {"alpha": -1}, {"temperature": 0}, {"temperature": -1}):
        set_sliders(page, **positions)
        assert ticks.all_inner_texts() == before
    set_sliders(page, classes=-1)
    assert ticks.all_inner_texts() != before


# ------------------------------------------------------------------------------------ the page


def test_quiet_and_offline(open_explorer):
    page = open_explorer()
    for key in SLIDERS:
        set_sliders(page, **{key: 0})
        set_sliders(page, **{key: -1})
    page.set_viewport_size({"width": 420, "height": 800})
    page.locator(".explorer-reset").click()
    page.wait_for_load_state("networkidle")
    assert open_explorer.problems == []


def test_noise_is_heard(open_explorer):
    noisy = '<script>console.error("a"); fetch("http://127.0.0.1:9/b").catch(() => 0); throw Error("c")</script>'
    open_explorer(html=noisy).wait_for_load_state("networkidle")
    heard = " ".join(open_explorer.problems)
    open_explorer.problems.clear()
    assert all(sign in heard for sign in ("console: a", "network: http://127.0.0.1:9/b", "error: c"))


@pytest.mark.parametrize("width", [360, 420, 700, 1000])
def test_fits_and_can_be_read(open_explorer, width):
    page = open_explorer(width=width)
    for alpha, classes, temperature in itertools.product((0, 1, 4, 16, 30, -1), (0, 5, -1), (0, 6, -1)):
        set_sliders(page, alpha=alpha, classes=classes, temperature=temperature)
        assert page.evaluate(LAYOUT) == [], settings(page)


def test_redraws_when_the_page_narrows(page):
    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_function("document.querySelector('.explorer-loss svg').clientWidth < 400")
    assert page.evaluate(LAYOUT) == []


@pytest.mark.parametrize("themed", [True, False], ids=["theme", "fall-backs"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(open_explorer, dark, themed):
    found = open_explorer(dark=dark, themed=themed).evaluate(COLOURS, [STROKES, FILLS])
    assert len(found["texts"]) > 40
    check_contrast(found, dark)
