"""The explorer of "How the clusters form": its data against a fresh training, its pictures, its slider and player."""

import re
from functools import cache

import growth_data
import numpy as np
import pytest
from explorer_pages import (
    COLOURS,
    EXPLORERS,
    LAYOUT,
    book_extension,
    check_contrast,
    still_is_seen_without_scripts,
)

from lsbook import geometry, plots

EXPLORER = "growth"
DATA = growth_data.read()
EPOCHS = DATA["epochs"]
LAST = len(EPOCHS) - 1
PANELS = {"0": "Hard", "0.1": "Smoothed"}  # α → what stands above the picture, from left to right
SLIDER = "#explorer-growth-epoch"
PLAY = ".explorer-play"
STEP = 900  # milliseconds between two epochs while it plays


@pytest.fixture
def page(open_explorer):
    return open_explorer()


# ------------------------------------------------------------------------------------ the data


def flat(frame):
    """All numbers of a frame as one row."""
    return np.concatenate([np.ravel(frame[key]) for key in ("corners", "points", "tightness", "distance")])


@pytest.mark.parametrize("alpha", PANELS)
@pytest.mark.parametrize("epochs", [2, 30])
def test_data_are_those_of_a_fresh_training(epochs, alpha):
    kept = DATA["frames"][alpha][EPOCHS.index(epochs)]
    fresh = growth_data.frame(float(alpha), epochs)
    assert list(kept) == list(fresh)
    # Another machine may round a number to the other side.
    np.testing.assert_allclose(flat(kept), flat(fresh), rtol=0, atol=1, err_msg="stale: python _ext/growth_data.py")


@cache
def picture(alpha, epochs):
    return growth_data.picture(alpha, epochs)


def test_numbers_are_geometrys_of_all_held_out_images():
    points, labels, plane = picture(0.1, 2)
    kept = DATA["frames"]["0.1"][EPOCHS.index(2)]
    assert len(labels) == DATA["images"] > 3 * growth_data.PER_CLASS
    assert set(labels) == set(DATA["classes"]) == set(plane.classes)
    assert kept["tightness"] == pytest.approx(1e3 * geometry.tightness(points, labels), abs=1.5)
    centres = [points[labels == digit].mean(axis=0) for digit in (3, 5, 8)]
    sides = [np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (1, 2), (0, 2))]
    assert kept["distance"] == pytest.approx(1e3 * np.mean(sides), abs=1.5)
    for group, digit in zip(kept["points"], (3, 5, 8), strict=True):
        np.testing.assert_allclose(group, 1e3 * points[labels == digit][:50], rtol=0, atol=1.5)


def test_both_networks_start_from_the_same_weights_and_part():
    hard, smoothed = (DATA["frames"][alpha] for alpha in PANELS)
    assert hard[0] == smoothed[0]
    assert smoothed[LAST]["tightness"] < 0.9 * hard[LAST]["tightness"]


def test_the_file():
    assert [0, *EPOCHS[1:-1], 100] == EPOCHS == sorted(EPOCHS)
    assert len(EPOCHS) == 13
    assert [len(frames) for frames in DATA["frames"].values()] == [13, 13]
    assert growth_data.TARGET == EXPLORERS / "growth-data.js"
    assert growth_data.TARGET.read_text(encoding="utf-8") == growth_data.script(DATA)
    assert growth_data.TARGET.stat().st_size < 80_000
    assert book_extension.explorer_scripts("growth") == ["shared.js", "growth-data.js", "growth.js"]


# ------------------------------------------------------------------------------------ the controls


def step_of(page):
    return int(page.input_value(SLIDER))


def set_step(page, step):
    page.locator(SLIDER).evaluate(
        "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input')); }", step
    )


def choose_scale(page, value):
    page.locator(f"input[name=explorer-growth-scale][value={value}]").check()


def words(locator):
    return locator.text_content().replace("\u00a0", " ").strip()


def assert_words_match(page, step):
    """Slider, text and descriptions say the epoch and the two networks' numbers."""
    epoch = EPOCHS[step]
    assert step_of(page) == step
    assert page.get_attribute(SLIDER, "aria-valuetext") == f"epoch {epoch}"
    assert page.locator(".explorer-value").text_content() == str(epoch)
    assert page.locator(".explorer svg .epoch").all_text_contents() == [f"epoch {epoch}"] * 2
    for i, (alpha, name) in enumerate(PANELS.items()):
        kept = DATA["frames"][alpha][step]
        said = words(page.locator(".explorer-summary span").nth(i))
        assert said == (
            f"{name}, epoch {epoch}: spread / distance {kept['tightness'] / 1e3:.3f}, "
            f"distance of the class centres {kept['distance'] / 1e3:.3f}."
        )
        described = words(page.locator(".explorer svg desc").nth(i))
        assert described.startswith("150 held-out images of the digits 3, 5, 8 in the plane of their templates")
        assert described.endswith(said)
        assert f"bar below is {page.locator('.explorer svg .length').nth(i).text_content()} long" in described


def test_every_epoch_says_its_numbers(page):
    assert page.locator("#still").count() == 0  # the explorer has taken the still picture's place
    assert_words_match(page, 0)
    for step in (*range(1, LAST + 1), 0):
        set_step(page, step)
        assert_words_match(page, step)


def test_without_scripts_the_still_stays(browser, tmp_path):
    assert still_is_seen_without_scripts(browser, tmp_path / "page.html", EXPLORER)


def test_keyboard(page):
    focused = "() => document.activeElement.name || document.activeElement.id || document.activeElement.className"
    outlined = "() => getComputedStyle(document.activeElement).outlineStyle"
    page.clock.install()
    for name in ("explorer-growth-epoch", "explorer-play", "explorer-growth-scale"):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == name
        assert page.evaluate(outlined) == "solid"
        if name == "explorer-growth-epoch":
            for key, step in (("ArrowRight", 1), ("End", LAST), ("ArrowLeft", LAST - 1), ("Home", 0)):
                page.keyboard.press(key)
                assert_words_match(page, step)
                assert page.evaluate(focused) == name  # drawing anew leaves the focus where it is
        elif name == "explorer-play":
            page.keyboard.press("Enter")
            assert words(page.locator(PLAY)) == "Pause"
            page.keyboard.press("Space")
            assert words(page.locator(PLAY)) == "Play"
        else:
            page.keyboard.press("ArrowRight")
            assert page.locator("input[value=one]").is_checked()
    assert_words_match(page, 0)


def test_assistive_technology_is_told(page):
    assert page.get_by_role("slider", name="Training epoch", exact=True).count() == 1
    assert page.get_by_role("button", name="Play", exact=True).count() == 1
    radios = page.get_by_role("group", name="Scale", exact=True).get_by_role("radio")
    assert radios.count() == 2
    for label in ("own, at each epoch", "one for all epochs"):
        assert page.get_by_role("radio", name=label, exact=True).count() == 1
    for i, (alpha, name) in enumerate(PANELS.items()):
        image = page.get_by_role("img", name=f"{name} (α = {alpha})")
        assert image.count() == 1
        described = page.locator(f"#{image.get_attribute('aria-describedby')}")
        assert described.text_content() == page.locator(".explorer svg desc").nth(i).text_content()
    assert page.locator("[aria-live=polite]").count() == 1


# ------------------------------------------------------------------------------------ the player


def test_nothing_plays_by_itself(page):
    page.clock.install()
    set_step(page, 1)
    page.clock.run_for(20 * STEP)
    assert step_of(page) == 1
    page.reload()
    page.clock.run_for(20 * STEP)  # the clock is in the page before its scripts are
    assert_words_match(page, 0)
    assert words(page.locator(PLAY)) == "Play"


def test_plays_to_the_end_and_from_the_start_again(page):
    page.clock.install()
    set_step(page, LAST - 2)
    page.locator(PLAY).click()
    assert step_of(page) == LAST - 2
    for step, button, live in ((LAST - 1, "Pause", "off"), (LAST, "Play", "polite")):
        page.clock.run_for(STEP)
        assert_words_match(page, step)
        assert words(page.locator(PLAY)) == button
        # Not each step is spoken, but where it comes to rest.
        assert page.get_attribute(".explorer-summary", "aria-live") == live
    page.clock.run_for(5 * STEP)
    assert_words_match(page, LAST)
    page.locator(PLAY).click()
    assert_words_match(page, 0)
    page.clock.run_for(2 * STEP)
    assert_words_match(page, 2)
    page.clock.run_for(30 * STEP)
    assert_words_match(page, LAST)


RECORD = """() => {
    window.recorded = [];
    new MutationObserver((all) => all.forEach((m) => {
        const live = document.querySelector(".explorer-summary").getAttribute("aria-live");
        window.recorded.push(m.type === "childList" ? `words: ${m.addedNodes[0].textContent}` : `live: ${live}`);
    })).observe(document.querySelector(".explorer-summary"),
        { attributes: true, attributeFilter: ["aria-live"], childList: true, subtree: true });
}"""


def test_pausing_lets_the_numbers_be_spoken(page):
    """Regression: the words were those of the last step, which was not spoken; only a change of words is."""
    page.clock.install()
    page.locator(PLAY).click()
    page.clock.run_for(2 * STEP)
    said = page.locator(".explorer-summary span").all_text_contents()
    page.evaluate(RECORD)
    page.locator(PLAY).click()
    assert page.evaluate("() => window.recorded") == ["live: polite", *(f"words: {words}" for words in said)]
    assert_words_match(page, 2)
    page.evaluate("() => { window.recorded.length = 0; }")
    choose_scale(page, "one")  # nothing to say
    assert [what for what in page.evaluate("() => window.recorded") if what.startswith("words")] == []


def test_pause_and_slider_stop_it_and_the_scale_does_not(page):
    page.clock.install()
    page.locator(PLAY).click()
    page.clock.run_for(2 * STEP)
    page.locator(PLAY).click()
    page.clock.run_for(5 * STEP)
    assert_words_match(page, 2)
    assert page.get_attribute(".explorer-summary", "aria-live") == "polite"
    page.locator(PLAY).click()
    choose_scale(page, "one")
    page.clock.run_for(STEP)
    assert_words_match(page, 3)  # on from where it was
    set_step(page, 7)
    assert words(page.locator(PLAY)) == "Play"
    page.clock.run_for(5 * STEP)
    assert_words_match(page, 7)


# ------------------------------------------------------------------------------------ the pictures

DRAWN = """(image) => {
    const numbers = (node, ...names) => names.map((name) => Number(node.getAttribute(name)));
    const kind = (m) => ["first", "second", "third"].findIndex((k) => m.classList.contains(k));
    const bar = image.querySelector(".ruler");
    const all = (name) => [...image.querySelectorAll(name)];
    return {
        marks: all(".mark").map((m) => [kind(m), ...m.getAttribute("transform").match(/-?[0-9.]+/g).map(Number)]),
        crosses: all(".template").map((m) => [Number(m.dataset.x), Number(m.dataset.y)]),
        rays: all(".ray").map((r) => numbers(r, "x1", "y1", "x2", "y2")),
        frame: numbers(image.querySelector(".frame"), "x", "y", "width", "height"),
        bar: bar.getAttribute("x2") - bar.getAttribute("x1"),
        length: Number(image.querySelector(".length").textContent),
    };
}"""


def drawn(page, panel):
    """What a picture shows, lengths in pixels: as arrays; unit is pixels per unit, by its own ruler."""
    found = page.locator(".explorer svg[role=img]").nth(panel).evaluate(DRAWN)
    found = {key: np.array(value) for key, value in found.items()}
    return found | {"unit": found["bar"] / found["length"]}


def places(found):
    """Marks (3, 50, 2) and templates (3, 2) in the data's thousandths.

    The origin is where the thin lines begin; the unit is the ruler's.
    """
    origin = found["rays"][0, :2]
    turn = 1e3 / found["unit"] * np.array([1, -1])
    marks = found["marks"].reshape(50, 3, 3)  # the first images of all classes come first
    assert (marks[..., 0] == [0, 1, 2]).all()
    return (marks[..., 1:] - origin).transpose(1, 0, 2) * turn, (found["crosses"] - origin) * turn


@pytest.mark.parametrize("scale", ["own", "one"])
def test_everything_stands_where_the_data_say(page, scale):
    choose_scale(page, scale)
    for step in (0, 2, 9, LAST):
        set_step(page, step)
        for panel, alpha in enumerate(PANELS):
            kept, found = DATA["frames"][alpha][step], drawn(page, panel)
            marks, crosses = places(found)
            np.testing.assert_allclose(marks, kept["points"], rtol=0, atol=1e3 * 0.006 / found["unit"])
            np.testing.assert_allclose(crosses, kept["corners"], rtol=0, atol=1e-6)


def assert_rays_lead_through_templates_to_the_frame(found):
    left, top, width, height = found["frame"]
    for (x, y, end_x, end_y), (cross_x, cross_y) in zip(found["rays"], found["crosses"], strict=True):
        to_end, to_cross = np.array([end_x - x, end_y - y]), np.array([cross_x - x, cross_y - y])
        cosine = to_end @ to_cross / np.linalg.norm(to_end) / np.linalg.norm(to_cross)
        assert cosine == pytest.approx(1, abs=1e-9)
        gaps = [end_x - left, left + width - end_x, end_y - top, top + height - end_y]
        assert min(gaps) == pytest.approx(0, abs=1e-6)


def test_marks_rays_and_templates_lie_within_the_frame(page):
    for scale, step in (("own", 0), ("own", 5), ("own", LAST), ("one", 0), ("one", LAST)):
        choose_scale(page, scale)
        set_step(page, step)
        for panel in (0, 1):
            found = drawn(page, panel)
            left, top, width, height = found["frame"]
            inside = np.concatenate([found["marks"][:, 1:], found["crosses"]]) - [left, top]
            assert (inside > 8).all()
            assert (inside < [width - 8, height - 8]).all()
            assert_rays_lead_through_templates_to_the_frame(found)


def test_rulers_have_round_lengths(page):
    for step in range(LAST + 1):
        set_step(page, step)
        for panel in (0, 1):
            found = drawn(page, panel)
            assert found["length"] == plots.round_length(found["frame"][2] / found["unit"] / 4)
            assert found["bar"] <= found["frame"][2] / 4


def units(page, step):
    set_step(page, step)
    return [float(drawn(page, panel)["unit"]) for panel in (0, 1)]


def test_scale_is_each_epochs_own_or_one_for_all(page):
    own = {step: units(page, step) for step in (0, 6, LAST)}
    assert own[0][0] == own[0][1]  # both start from the same weights
    assert own[0][0] > 2 * own[6][0] > 4 * own[LAST][0]
    assert own[LAST][1] > 2 * own[LAST][0]
    choose_scale(page, "one")
    one = {step: units(page, step) for step in (0, 6, LAST)}
    assert np.ptp(list(one.values())) < 1e-9
    assert one[0][0] == pytest.approx(own[LAST][0], rel=0.1)  # what the largest picture needs
    choose_scale(page, "own")
    assert units(page, 6) == own[6]


# ------------------------------------------------------------------------------------ the page


@pytest.mark.parametrize("width", [320, 420, 1000])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_fits_and_can_be_read(open_explorer, width, dark):
    page = open_explorer(width=width, dark=dark)
    assert page.locator(".explorer svg text").count() == 4
    for scale in ("own", "one"):
        choose_scale(page, scale)
        for step in (0, 3, LAST):
            set_step(page, step)
            assert page.evaluate(LAYOUT) == [], (scale, step)
    assert page.evaluate("() => document.documentElement.dataset.theme") == ("dark" if dark else "light")


@pytest.mark.parametrize(("width", "columns"), [(1000, 2), (480, 2), (420, 1)])
def test_pictures_stand_side_by_side_where_there_is_room(page, width, columns):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function(
        "([width, columns]) => [...document.querySelectorAll('.explorer svg[role=img]')].every((image) =>"
        "  image.clientWidth > (width - 60) / columns && image.clientWidth < width / columns)",
        arg=[width, columns],
    )
    one, other = (page.locator(".explorer svg[role=img]").nth(k).bounding_box() for k in (0, 1))
    assert (one["y"] == other["y"]) == (columns == 2)
    assert (one["x"] == other["x"]) == (columns == 1)
    assert page.evaluate(LAYOUT) == []


def test_quiet_and_offline(open_explorer):
    page = open_explorer()
    page.clock.install()
    page.locator(PLAY).click()
    page.clock.run_for(20 * STEP)
    choose_scale(page, "one")
    page.set_viewport_size({"width": 420, "height": 800})
    page.wait_for_load_state("networkidle")
    assert step_of(page) == LAST
    assert open_explorer.problems == []


KINDS = ("first", "second", "third")
STROKES = [f"path.{part}.{kind}" for part in ("mark", "template") for kind in KINDS]
STROKES += ["path.template.plain", ".ray", ".ruler"]
FILLS = [f"path.sample.{kind}" for kind in KINDS]


@pytest.mark.parametrize("themed", [True, False], ids=["theme", "fall-backs"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(open_explorer, dark, themed):
    found = open_explorer(dark=dark, themed=themed).evaluate(COLOURS, [STROKES, FILLS])
    assert len(found["texts"]) > 15
    check_contrast(found, dark)


def test_legend_shows_the_classes_colours_and_shapes(page):
    """By day the colours are those of the book's figures."""
    colours = page.evaluate(COLOURS, [STROKES[:3], []])["shapes"]
    given = ["#{:02X}{:02X}{:02X}".format(*map(int, re.findall(r"\d+", colour))) for _, colour, _ in colours]
    assert given == list(plots.CYCLE[:3])
    assert page.locator(".explorer-legend span").all_inner_texts() == ["digit 3", "digit 5", "digit 8", "template"]
    for kind in KINDS:
        shapes = page.locator(f".explorer path.mark.{kind}, .explorer path.sample.{kind}")
        assert shapes.count() == 101
        assert len(set(shapes.evaluate_all("(all) => all.map((m) => m.getAttribute('d'))"))) == 1
