"""The projection viewer of "Penultimate geometry": its data, its numbers against numpy, its keyboard, its looks."""

import itertools
import json
import re
from functools import cache

import numpy as np
import projection_data
import pytest
from explorer_pages import (
    COLOURS,
    EXPLORERS,
    LAYOUT,
    book_extension,
    check_contrast,
    still_is_seen_without_scripts,
)
from scipy.spatial.distance import pdist
from scipy.special import softmax

from lsbook import plots

EXPLORER = "projection"
NETWORKS = projection_data.NETWORKS
VIEWS = list(itertools.product((0, 1), ("0", "0.1"), ("train", "test")))
TRIPLES = [(0, 1, 2), (2, 0, 1), (3, 5, 9), (9, 8, 7)]
RADIOS = ("network", "alpha", "split", "scale")
OPENING = {
    "network": "0",
    "alpha": "0",
    "split": "train",
    "scale": "same",
    "classes": ["airplane", "automobile", "bird"],
}


@pytest.fixture
def page(open_explorer):
    return open_explorer()


@cache
def stored(network, alpha):
    return projection_data.stored_run(NETWORKS[network][0], float(alpha))


def templates(network, alpha):
    """Extended templates v_k = (w_k, b_k) of all classes, (K, D + 1)."""
    arrays = stored(network, alpha).arrays
    return np.column_stack([arrays["head_weight"], arrays["head_bias"]]).astype(np.float64)


def first_images(labels, classes):
    return np.concatenate([np.flatnonzero(labels == label)[:50] for label in classes])


def from_features(network, alpha, split, classes):
    """Extended features (f, 1) of the images shown, from the stored features: (150, D + 1)."""
    arrays = stored(network, alpha).arrays
    rows = first_images(arrays[f"shown_{split}_labels"], classes)
    assert len(rows) == 150
    return np.column_stack([arrays[f"shown_{split}_features"][rows].astype(np.float64), np.ones(150)])


def from_logits(network, alpha, split, classes):
    """Vectors that have the stored logits with all templates, where no features are stored: (150, D + 1)."""
    logits, labels = stored(network, alpha).logits_and_labels(split)
    return logits[first_images(labels, classes)].astype(np.float64) @ np.linalg.pinv(templates(network, alpha)).T


def project(x, corners):
    """x in the plane through three corners (3, E), by a singular value decomposition turned to the viewer's axes."""
    centre = corners.mean(axis=0)
    basis = np.linalg.svd(corners - centre)[2][:2]
    a, b, c = (corners - centre) @ basis.T
    angle = np.arctan2(*(b - a)[::-1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:, 1] *= np.sign((c @ turn)[1])
    return (x - centre) @ basis.T @ turn


def view(page, network, alpha, split, positions):
    """What window.lsbook.projection.view returns; lists as arrays."""
    found = page.evaluate(
        "(arguments) => window.lsbook.projection.view(...arguments)", [network, alpha, split, positions]
    )
    return found | {
        "places": np.array([point["place"] for point in found["points"]]),
        "corners": np.array(found["corners"]),
    }


def labels_of(network, positions):
    return [NETWORKS[network][3][k] for k in positions]


# ------------------------------------------------------------------------------------ the data


def test_data_are_those_of_the_stored_runs():
    written = projection_data.TARGET.read_bytes().decode("utf-8")
    assert written == projection_data.script(), "stale: run python _ext/projection_data.py"
    assert len(written.encode()) < 350_000


def test_data_come_before_the_script_that_needs_them():
    assert book_extension.explorer_scripts("projection") == ["shared.js", "projection-data.js", "projection.js"]
    assert book_extension.explorer_scripts("logit-gap") == ["shared.js", "logit-gap.js"]
    assert projection_data.TARGET == EXPLORERS / "projection-data.js"


@pytest.mark.parametrize(("network", "alpha", "split"), VIEWS)
def test_predictions_are_those_of_the_network(page, network, alpha, split):
    for positions in TRIPLES:
        found, classes = view(page, network, alpha, split, positions), labels_of(network, positions)
        x = (from_features if network else from_logits)(network, alpha, split, classes)
        probs = softmax(x @ templates(network, alpha).T, axis=1)
        points = found["points"]
        assert [point["label"] for point in points] == list(np.repeat(classes, 50))
        assert [point["predicted"] for point in points] == probs.argmax(axis=1).tolist()
        confidence = np.array([point["confidence"] for point in points])
        np.testing.assert_allclose(confidence, probs.max(axis=1), atol=5.01e-4)  # kept in 0.1 %
        assert found["wrong"] == (probs.argmax(axis=1) != np.repeat(classes, 50)).sum()
        assert found["confidence"] == pytest.approx(probs.max(axis=1).mean(), abs=5.01e-4)


# ------------------------------------------------------------------------------------ the mathematics


def test_plane_agrees_with_full_vectors(page):
    """To rounding, on random templates and examples in 2 to 200 dimensions."""
    rng = np.random.default_rng(0)
    for width in (2, 3, 10, 200):
        corners, x = rng.normal(size=(3, width)), rng.normal(size=(20, width))
        given = page.evaluate(
            "([gram, logits]) => logits.map(window.lsbook.projection.plane(gram))",
            [(corners @ corners.T).tolist(), (np.vstack([x, corners]) @ corners.T).tolist()],
        )
        np.testing.assert_allclose(given, project(np.vstack([x, corners]), corners), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("network", "alpha", "split"), VIEWS)
def test_points_agree_with_full_features(page, network, alpha, split):
    """Logits are kept in hundredths: at most 0.01 in a difference, over templates that are about 2 apart."""
    for positions in TRIPLES:
        found, classes = view(page, network, alpha, split, positions), labels_of(network, positions)
        x = (from_features if network else from_logits)(network, alpha, split, classes)
        expected = project(x, templates(network, alpha)[classes])
        np.testing.assert_allclose(found["places"], expected, rtol=0, atol=0.012)


@pytest.mark.parametrize(("alpha", "split"), [view[1:] for view in VIEWS if view[0] == 0])
def test_logits_place_the_points_where_features_do(page, alpha, split):
    """AlexNet's stored logits and features are both float16: of a logit of 80 it keeps 0.06."""
    for positions in ((0, 1, 2), (2, 0, 1)):
        expected = project(from_features(0, alpha, split, positions), templates(0, alpha)[list(positions)])
        np.testing.assert_allclose(view(page, 0, alpha, split, positions)["places"], expected, rtol=0, atol=0.06)


@pytest.mark.parametrize("positions", TRIPLES)
@pytest.mark.parametrize("alpha", ["0", "0.1"])
@pytest.mark.parametrize("network", [0, 1])
def test_templates_keep_their_distances(page, network, alpha, positions):
    corners = view(page, network, alpha, "train", positions)["corners"]
    full = templates(network, alpha)[labels_of(network, positions)]
    np.testing.assert_allclose(pdist(corners), pdist(full), rtol=0, atol=2e-4)  # products are kept in 10⁻⁴
    np.testing.assert_allclose(corners.mean(axis=0), 0, atol=1e-12)
    a, b, c = corners
    assert a[0] < b[0]
    assert a[1] == pytest.approx(b[1], abs=1e-12)
    assert c[1] > a[1]


def expected_clusters(groups):
    """(within, between, ratio) of groups of points, from numpy alone."""
    means = np.array([np.mean(group, axis=0) for group in groups])
    within = np.sqrt(np.mean(np.concatenate([((g - m) ** 2).sum(axis=1) for g, m in zip(groups, means, strict=True)])))
    return within, pdist(means).mean(), within / pdist(means).mean()


@pytest.mark.parametrize(("network", "alpha", "split"), VIEWS)
def test_clusters_agree_with_numpy(page, network, alpha, split):
    found = view(page, network, alpha, split, (4, 0, 7))
    given = [found[key] for key in ("within", "between", "ratio")]
    assert given == pytest.approx(expected_clusters(found["places"].reshape(3, 50, 2)), rel=1e-10)


def test_clusters_by_hand(page):
    """Means (0, 0), (3, 0), (0, 4) are 3, 5 and 4 apart; every point is 1 from its mean."""
    groups = [[[-1, 0], [1, 0]], [[3, 1], [3, -1]], [[1, 4], [-1, 4]]]
    found = page.evaluate("(groups) => window.lsbook.projection.clusters(groups)", groups)
    assert found == {"within": 1, "between": 4, "ratio": 0.25}


@pytest.mark.parametrize("positions", [[0, 0, 1], [0, 1], [0, 1, 10], [0, 1, 2, 3], [-1, 0, 1]])
def test_wrong_classes_are_named(page, positions):
    message = page.evaluate(
        "(k) => { try { return window.lsbook.projection.view(0, '0', 'train', k); } catch (e) { return String(e); } }",
        positions,
    )
    expected = f"RangeError: classes must be three different positions below 10, got {','.join(map(str, positions))}"
    assert message == expected


def test_templates_on_a_line_are_refused(page):
    message = page.evaluate(
        "() => { try { return window.lsbook.projection.plane([[1, 2, 3], [2, 4, 6], [3, 6, 9]]); }"
        " catch (e) { return String(e); } }"
    )
    assert message == "RangeError: the three templates must not lie on one line"


# ------------------------------------------------------------------------------------ the controls


def settings(page):
    """What is chosen, as a reader sees it."""
    chosen = {key: page.locator(f"input[name=explorer-projection-{key}]:checked").input_value() for key in RADIOS}
    return chosen | {"classes": [name.strip() for name in page.locator("select option:checked").all_inner_texts()]}


def choose(page, **values):
    for key, value in values.items():
        page.locator(f"input[name=explorer-projection-{key}][value='{value}']").check()


def positions_of(page):
    return [int(page.locator("select").nth(k).input_value()) for k in range(3)]


def current_view(page):
    chosen = settings(page)
    return view(page, int(chosen["network"]), chosen["alpha"], chosen["split"], positions_of(page))


def set_image(page, number):
    page.locator("#explorer-projection-image").evaluate(
        "(slider, number) => { slider.value = number; slider.dispatchEvent(new Event('input')); }", number
    )


def text(page, name):
    return page.locator(f".explorer-{name}").text_content().replace("\u00a0", " ")


def assert_words_match(page):
    """The summary and the description say the numbers of the picture that is chosen."""
    found, chosen = current_view(page), settings(page)
    other = view(
        page, int(chosen["network"]), "0.1" if chosen["alpha"] == "0" else "0", chosen["split"], positions_of(page)
    )
    ratios = re.findall(r"ratio (\d\.\d+) \((?:hard|smoothed) targets: (\d\.\d+)\)", text(page, "summary"))
    assert ratios == [(f"{found['ratio']:.3f}", f"{other['ratio']:.3f}")]
    start = f"150 {'training' if chosen['split'] == 'train' else 'held-out'} images, "
    assert text(page, "summary").startswith(start + ("hard" if chosen["alpha"] == "0" else "smoothed") + " targets")
    assert f"{found['wrong']} of 150 misclassified" in text(page, "summary")
    numbers = re.search(r"within classes ([\d.]+), distance between class means ([\d.]+),", text(page, "summary"))
    assert [float(n) for n in numbers.groups()] == pytest.approx([found["within"], found["between"]], rel=5.01e-3)
    description = page.locator(".explorer svg desc").text_content().replace("\u00a0", " ")
    assert text(page, "summary") in description
    assert all(name in description for name in chosen["classes"])


def test_opening_view(page):
    assert settings(page) == OPENING
    assert_words_match(page)
    assert page.locator("#still").count() == 0  # the explorer has taken the still picture's place
    assert page.locator(".explorer .ring").count() == 0


def test_without_scripts_the_still_stays(browser, tmp_path):
    assert still_is_seen_without_scripts(browser, tmp_path / "page.html", EXPLORER)


def test_keyboard(page):
    focused = "() => document.activeElement.name || document.activeElement.id || document.activeElement.className"
    order = [*(f"explorer-projection-{key}" for key in RADIOS), *(f"explorer-projection-class-{k}" for k in range(3))]
    changed = OPENING | {"network": "1", "alpha": "0.1", "split": "test", "scale": "fit"}
    changed["classes"] = ["dolphin", "beaver", "otter"]
    for name in [*order, "explorer-projection-image", "explorer-reset"]:
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == name
        assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
        if name in (*order[:5], "explorer-projection-image"):
            page.keyboard.press("ArrowRight" if "class" not in name else "ArrowDown")
            assert_words_match(page)
            assert page.evaluate(focused) == name  # drawing anew leaves the focus where it is
    assert settings(page) == changed
    assert text(page, "image").startswith("Image 1 of 150: dolphin, predicted ")
    page.keyboard.press("Enter")
    assert settings(page) == OPENING
    assert text(page, "image").startswith("Point at a mark")


def test_arrow_keys_flip_the_targets_back_and_forth(page):
    page.locator("input[name=explorer-projection-alpha]:checked").focus()
    for expected in ("0.1", "0", "0.1"):
        page.keyboard.press("ArrowDown")
        assert settings(page)["alpha"] == expected
        assert_words_match(page)


def test_a_class_chosen_twice_changes_places(page):
    """Regression: no list let one choose it."""
    assert page.locator(".explorer option:disabled").count() == 0
    page.select_option("#explorer-projection-class-0", "2", timeout=2000)
    assert settings(page)["classes"] == ["bird", "automobile", "airplane"]
    assert_words_match(page)
    page.locator("#explorer-projection-class-0").focus()
    for classes in (["cat", "automobile", "airplane"], ["bird", "automobile", "airplane"]):
        page.keyboard.press("ArrowDown" if classes[0] == "cat" else "ArrowUp")
        assert settings(page)["classes"] == classes
    page.keyboard.press("ArrowUp")
    assert settings(page)["classes"] == ["automobile", "bird", "airplane"]
    assert_words_match(page)


@pytest.mark.parametrize(("network", "alpha", "split"), VIEWS)
def test_every_choice_is_shown_right(page, network, alpha, split):
    choose(page, network=network, alpha=alpha, split=split)
    names = page.locator("#explorer-projection-class-0 option").all_inner_texts()
    everything = json.loads(projection_data.TARGET.read_text(encoding="utf-8").split("projectionData = ")[1][:-2])
    assert names == [everything[network]["names"][label] for label in NETWORKS[network][3]]
    assert len(names) == 10
    for first in (9, 4):
        page.select_option("#explorer-projection-class-0", str(first))
        assert settings(page)["classes"][0] == names[first]
        assert_words_match(page)
    for number in (1, 50, 51, 150):
        set_image(page, number)
        point = current_view(page)["points"][number - 1]
        label, predicted = (everything[network]["names"][point[key]] for key in ("label", "predicted"))
        confidence = "over 99.9 %" if point["confidence"] > 0.9995 else f"{100 * point['confidence']:.1f} %"
        expected = f"Image {number} of 150: {label}, predicted {predicted}, confidence {confidence}."
        assert text(page, "image") == expected


def test_flipping_the_targets_keeps_the_image(page):
    set_image(page, 60)
    before, ring = text(page, "image"), page.get_attribute(".ring", "cx")
    choose(page, alpha="0.1")
    assert text(page, "image").startswith("Image 60 of 150: automobile, predicted")
    assert text(page, "image") != before
    assert page.get_attribute(".ring", "cx") != ring


@pytest.mark.parametrize("setting", ["split", "class", "network"])
def test_other_images_have_none_chosen(page, setting):
    """Regression: the number stayed, and with it another image was chosen."""
    set_image(page, 60)
    assert page.locator(".explorer .ring").count() == 1
    if setting == "class":
        page.select_option("#explorer-projection-class-2", "5")
    else:
        choose(page, **{setting: "test" if setting == "split" else "1"})
    assert page.locator(".explorer .ring").count() == 0
    assert text(page, "image").startswith("Point at a mark")
    assert page.input_value("#explorer-projection-image") == "0"


def test_looking_at_images_computes_no_pictures(page):
    """Regression: each move of the pointer projected all images of all four pictures anew."""
    page.evaluate(
        "() => { window.count = 0; const hypot = Math.hypot; Math.hypot = (...all) => (count++, hypot(...all)); }"
    )
    set_image(page, 1)
    choose(page, alpha="0.1", split="test", scale="fit")
    assert page.evaluate("() => window.count") <= 4 * 3  # a triangle's sides, for the size of its crosses
    page.select_option("#explorer-projection-class-0", "5")
    assert page.evaluate("() => window.count") > 4 * 150


def test_the_note_is_true_of_every_scale(page):
    """Regression: "The same scale holds for …" stood there also where each picture had its own."""
    for scale in ("fit", "same"):
        choose(page, scale=scale)
        assert "The scale “same for hard and smoothed” is also the same for" in text(page, "note")


def test_assistive_technology_is_told(page):
    for k in (*(f"class-{k}" for k in range(3)), "image"):
        assert page.locator(f"label[for=explorer-projection-{k}]").count() == 1
    for name in ("Network", "Targets", "Images", "Scale"):
        assert page.get_by_role("group", name=name, exact=True).get_by_role("radio").count() == 2
    for name, role, count in (("Settings", "radio", 8), ("Classes", "combobox", 3)):
        assert page.get_by_role("group", name=name, exact=True).get_by_role(role).count() == count
    picture = page.get_by_role("img", name="Projection of airplane, automobile, bird")
    assert picture.count() == 1
    described = page.locator(f"#{picture.get_attribute('aria-describedby')}").text_content()
    assert described.startswith("CIFAR-10, AlexNet: features projected")
    assert page.locator("[aria-live=polite]").count() == 2
    slider = page.locator("#explorer-projection-image")
    assert slider.get_attribute("aria-valuetext") == "none"
    set_image(page, 7)
    assert slider.get_attribute("aria-valuetext") == "image 7"


# ------------------------------------------------------------------------------------ the picture


def scales(page):
    """Functions from pixels of the picture to data, read off its own ticks: (x, y)."""
    points = page.evaluate(
        """() => ["x", "y"].map((axis) => {
            const lines = [...document.querySelectorAll(".explorer line.grid")]
                .filter((l) => l.getAttribute(`${axis}1`) === l.getAttribute(`${axis}2`));
            return [...document.querySelectorAll(`.explorer .tick-${axis}`)].map((t, i) =>
                [Number(lines[i].getAttribute(`${axis}1`)), Number(t.textContent.replace("−", "-"))]);
        })"""
    )
    return [np.poly1d(np.polyfit(*np.transpose(axis), 1)) for axis in points]


def drawn(page):
    """Marks as (kind, x, y, opacity) in units of the picture's axes, and the templates' places (3, 2)."""
    to_x, to_y = scales(page)
    marks = page.locator(".explorer path.mark").evaluate_all(
        """(all) => all.map((m) => [["first", "second", "third"].findIndex((k) => m.classList.contains(k)),
            ...m.getAttribute("transform").match(/-?[0-9.]+/g).map(Number), Number(m.getAttribute("fill-opacity"))])"""
    )
    crosses = page.locator(".explorer path.template:not(.plain)").evaluate_all(
        "(all) => all.map((m) => [Number(m.dataset.x), Number(m.dataset.y)])"
    )
    marks, crosses = np.array(marks), np.array(crosses)
    marks[:, 1], marks[:, 2] = to_x(marks[:, 1]), to_y(marks[:, 2])
    return marks, np.column_stack([to_x(crosses[:, 0]), to_y(crosses[:, 1])])


@pytest.mark.parametrize("scale", ["same", "fit"])
@pytest.mark.parametrize(("network", "alpha", "split"), VIEWS)
def test_marks_stand_where_the_numbers_say(page, network, alpha, split, scale):
    choose(page, network=network, alpha=alpha, split=split, scale=scale)
    found = current_view(page)
    marks, crosses = drawn(page)
    # Drawn first image first; the data have class after class.
    marks = marks.reshape(50, 3, 4).transpose(1, 0, 2).reshape(150, 4)
    assert marks[:, 0].tolist() == [point["kind"] for point in found["points"]]
    pixel = abs(scales(page)[0].deriv()(0))
    np.testing.assert_allclose(marks[:, 1:3], found["places"], rtol=0, atol=0.01 * pixel)
    np.testing.assert_allclose(crosses, found["corners"], rtol=0, atol=1e-9)
    confidence = np.array([point["confidence"] for point in found["points"]])
    np.testing.assert_allclose(marks[:, 3], confidence**3, atol=5.01e-4)


def test_both_axes_have_the_same_unit(page):
    for width in (1000, 420):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(f"document.querySelector('.explorer svg').clientWidth > {width} - 50")
        page.wait_for_function(f"document.querySelector('.explorer svg').clientWidth < {width}")
        to_x, to_y = scales(page)
        assert to_x.deriv()(0) == pytest.approx(-to_y.deriv()(0), rel=1e-9)


def test_every_mark_lies_within_the_frame(page):
    inside = """() => {
        const axes = [...document.querySelectorAll(".explorer line.axis")];
        const [across, up] = axes.map((axis) => axis.getBoundingClientRect());
        return [...document.querySelectorAll(".explorer .mark:not(.plain), .explorer .template:not(.plain)")]
            .map((m) => m.getBoundingClientRect())
            .every((m) => m.left >= across.left && m.right <= across.right && m.top >= up.top && m.bottom <= up.bottom);
    }"""
    for network, alpha, split in VIEWS:
        for scale in ("same", "fit"):
            choose(page, network=network, alpha=alpha, split=split, scale=scale)
            assert page.evaluate(inside), settings(page)


def test_the_scale_is_the_same_for_hard_and_smoothed_unless_fitted(page):
    def ticks():
        return [page.locator(f".explorer .tick-{axis}").all_text_contents() for axis in "xy"]

    before = ticks()
    for alpha, split in (("0.1", "train"), ("0.1", "test"), ("0", "test")):
        choose(page, alpha=alpha, split=split)
        assert ticks() == before
    choose(page, alpha="0.1", scale="fit")
    assert ticks() != before
    places = drawn(page)[0][:, 1:3]
    choose(page, scale="same")
    np.testing.assert_allclose(drawn(page)[0][:, 1:3], places, atol=2e-3)  # the same places on another scale


def test_pointing_at_a_mark_tells_about_it(page):
    lonely = int(np.argmax(current_view(page)["places"][:, 0]))  # the rightmost, which no other covers
    place = page.locator(".explorer path.mark").evaluate_all(
        """(all) => all.map((m) => m.getBoundingClientRect()).map((b) => [b.x + b.width / 2, b.y + b.height / 2])
            .reduce((one, other) => (other[0] > one[0] ? other : one))"""
    )
    page.mouse.move(*place)
    assert text(page, "image").startswith(f"Image {lonely + 1} of 150: automobile")
    assert page.input_value("#explorer-projection-image") == str(lonely + 1)
    ring = page.locator(".ring").bounding_box()
    centre = (ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    assert centre == pytest.approx(place, abs=1.5)
    corner = page.locator(".explorer svg").bounding_box()
    page.mouse.move(corner["x"] + 2, corner["y"] + 2)  # far from every mark: the words stay
    assert text(page, "image").startswith(f"Image {lonely + 1} of 150")


# ------------------------------------------------------------------------------------ the page


def test_quiet_and_offline(open_explorer):
    page = open_explorer()
    for network, alpha, split in VIEWS:
        choose(page, network=network, alpha=alpha, split=split)
        set_image(page, 150)
    page.set_viewport_size({"width": 420, "height": 800})
    page.wait_for_function("document.querySelector('.explorer svg').clientWidth < 400")
    page.locator(".explorer-reset").click()
    page.wait_for_load_state("networkidle")
    assert open_explorer.problems == []


@pytest.mark.parametrize("width", [320, 360, 420, 700, 1000])
def test_fits_and_can_be_read(open_explorer, width):
    page = open_explorer(width=width)
    assert page.locator(".explorer svg text").count() > 12
    for network, alpha, split in VIEWS:
        for scale, first in itertools.product(("same", "fit"), ("3", "7")):
            choose(page, network=network, alpha=alpha, split=split, scale=scale)
            page.select_option("#explorer-projection-class-0", first)
            assert page.evaluate(LAYOUT) == [], settings(page)


def test_redraws_when_the_page_narrows(page):
    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_function("document.querySelector('.explorer svg').clientWidth < 400")
    assert page.evaluate(LAYOUT) == []


STROKES = [f"path.mark.{kind}" for kind in ("first", "second", "third")]
STROKES += [f"path.template.{kind}" for kind in ("first", "second", "third", "plain")]
STROKES += ["path.triangle", ".axis", ".ring"]
FILLS = [f"path.sample.{kind}" for kind in ("first", "second", "third")]


@pytest.mark.parametrize("themed", [True, False], ids=["theme", "fall-backs"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(open_explorer, dark, themed):
    page = open_explorer(dark=dark, themed=themed)
    set_image(page, 1)
    found = page.evaluate(COLOURS, [STROKES, FILLS])
    assert len(found["texts"]) > 40
    check_contrast(found, dark)


def test_classes_differ_in_colour_and_shape(page):
    """By day the colours are those of the book's figures."""
    colours = page.evaluate(COLOURS, [STROKES[:3], []])["shapes"]
    given = ["#{:02X}{:02X}{:02X}".format(*map(int, re.findall(r"\d+", colour))) for _, colour, _ in colours]
    assert given == list(plots.CYCLE[:3])
    shapes = [set(page.locator(f".explorer {name}").evaluate_all("(all) => all.map((m) => m.getAttribute('d'))"))
              for name in STROKES[:3]]  # fmt: skip
    assert [len(shape) for shape in shapes] == [1, 1, 1]
    assert len(set.union(*shapes)) == 3
