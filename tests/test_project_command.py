"""`lsbook project`: the figure, its table, and what it says of files that do not fit."""

import io
import math
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from PIL import Image

from lsbook import cli, geometry, plots, projection

ROOT = Path(__file__).parents[1]
NAMES = np.array(["ant", "bee", "cat", "dog", "elk"])


def arrays(stretch=2.0, noise=0.5, seed=0):
    """A made-up network of five classes: 20 examples of each, around its stretched template."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(5), 20))
    weight, bias = random.normal(size=(5, 7)), random.normal(size=5)
    features = stretch * weight[labels] + noise * random.normal(size=(100, 7))
    return {"features": features, "labels": labels, "weight": weight, "bias": bias, "class_names": NAMES}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder of its own, with two files in it."""
    monkeypatch.chdir(tmp_path)
    np.savez("hard.npz", **arrays())
    np.savez("smoothed.npz", **arrays(stretch=1.0, noise=0.2))
    return tmp_path


def run(capsys, *arguments, classes=("ant", "cat", "elk")):
    """(exit status, stdout, stderr) of `lsbook project`."""
    status = cli.main(["project", *map(str, arguments), "--classes", *classes])
    return status, *capsys.readouterr()


def lines_of(out):
    """The printed table: words of a line → its numbers."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.split("\n\n")[0].splitlines()[2:]]
    return {words: numbers for words, *numbers in lines}


def view_of(changes=None, classes=(0, 2, 4)):
    return projection.view(projection.network(**arrays() | (changes or {})), classes)


# --- the figure


def test_one_file(here, capsys):
    status, out, err = run(capsys, "hard.npz")
    assert (status, err) == (0, "")
    assert out.endswith("\n\nfigure: projection.png\n")
    assert sorted(path.name for path in here.iterdir()) == ["hard.npz", "projection.png", "smoothed.npz"]
    with Image.open("projection.png") as image:
        assert image.format == "PNG"
        assert 600 < image.width < 1000 and 700 < image.height < 1200
        colors = {color for _, color in image.convert("RGB").getcolors(10**6)}
    assert len(colors) > 20  # more than a white sheet


def test_a_panel_a_file(here, capsys):
    run(capsys, "hard.npz")
    run(capsys, "hard.npz", "smoothed.npz", "--out", "two.png")
    with Image.open("projection.png") as one, Image.open("two.png") as two:
        assert two.width > 1.2 * one.width


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("new/a.png", b"\x89PNG")]
)
def test_formats_and_the_same_bytes_again(here, capsys, name, start):
    (here / "new").mkdir()
    assert run(capsys, "hard.npz", "--out", name)[0] == 0
    first = (here / name).read_bytes()
    assert first.startswith(start)
    (here / name).unlink()
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 20, "svg.hashsalt": "other"}):
        assert run(capsys, "hard.npz", "--out", name)[0] == 0
    assert (here / name).read_bytes() == first


def test_style_and_figures_of_the_session_stay(here, capsys):
    style, figures, backend = dict(matplotlib.rcParams), plt.get_fignums(), matplotlib.get_backend()
    run(capsys, "hard.npz", "smoothed.npz", "--title", "both")
    assert (dict(matplotlib.rcParams), plt.get_fignums(), matplotlib.get_backend()) == (style, figures, backend)


def scatters(ax):
    """(points, colour) of each class in a panel, and the templates."""
    parts = [part for part in ax.collections if isinstance(part, PathCollection)]
    found = [(part.get_offsets(), part.get_facecolor()[0, :3]) for part in parts]
    return found[:-1], found[-1][0]


def test_every_example_is_drawn_once_in_the_colour_of_its_class():
    shown = view_of(classes=(4, 0, 2))
    (ax,) = projection.draw({"net": shown}).axes
    classes, templates = scatters(ax)
    data = arrays()
    np.testing.assert_allclose(templates, shown.plane.corners)
    assert len(classes) == 3
    for label, color, (points, drawn) in zip((4, 0, 2), plots.CLASSES, classes, strict=True):
        mine = data["features"][data["labels"] == label]
        np.testing.assert_allclose(points, geometry.project(mine, shown.plane))
        np.testing.assert_allclose(drawn, matplotlib.colors.to_rgb(color))


def words(figure):
    """Titles, and the entries of the legend."""
    titles = [ax.get_title() for ax in figure.axes if ax.axison]
    return titles, [text.get_text() for text in figure.legends[0].get_texts()]


def test_titles_and_legend():
    views = {"hard": view_of(), "smoothed": view_of({"class_names": None})}
    figure = projection.draw(views, title="a $ and a $")
    assert words(figure) == (["hard", "smoothed"], ["ant", "cat", "elk", "template"])
    assert figure.get_suptitle() == "a $ and a $"
    figure.savefig(io.BytesIO(), format="png")  # as mathematics, "$ and a $" would lose its spaces, "$\\$" would fail
    assert not figure._suptitle.get_parse_math()
    assert words(projection.draw({"net": view_of({"class_names": None})}))[1][0] == "class 0"


def test_a_name_with_an_underscore_and_a_long_one_are_in_the_legend():
    names = np.array(["_a", "b", "a very long name of a class indeed", "d", "e"])
    assert words(projection.draw({"net": view_of({"class_names": names})}))[1][:2] == ["_a", "a very long name of a c…"]


def overlaps(figure, form="png"):
    """Pairs of the legend, the panels, their titles and the title above that overlap in the drawn figure."""
    figure.savefig(io.BytesIO(), format=form)
    titles = [ax.title for ax in figure.axes if ax.get_title()]
    parts = [*figure.axes, *titles, *figure.legends, *([figure._suptitle] if figure._suptitle else [])]
    boxes = [part.get_window_extent() for part in parts]
    inside = figure.bbox.padded(1)
    assert all(inside.contains(*corner) for box in boxes for corner in box.corners()), "something is cut off"
    return [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_nothing_overlaps_and_every_point_is_inside(count):
    names = np.array([f"{name}, a name of twenty-odd" for name in NAMES])
    views = {f"{'x' * 20} {k}": view_of({"class_names": names}) for k in range(count)}
    figure = projection.draw(views, title="a title " * 20)
    assert overlaps(figure) == []
    for ax in figure.axes[:count]:
        classes, templates = scatters(ax)
        points = np.concatenate([templates, *(points for points, _ in classes)])
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        assert left < points[:, 0].min() and points[:, 0].max() < right and points[:, 1].max() < high
        ruler = ax.lines[-1].get_ydata()[0]
        assert low < ruler < points[:, 1].min() - 0.02 * (high - low)  # below every point


LONG = [f"experiments/cifar100/resnet20/alpha0.{k}/seed0/features.npz" for k in range(5)]  # titles of two lines


@pytest.mark.parametrize("form", ["png", "svg"])
@pytest.mark.parametrize("title", [None, "Beavers", "a title " * 20])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_titles_of_two_lines_have_room(count, title, form):
    """Regression: they were cut off at the sheet's top, or ran into the title above."""
    figure = projection.draw(dict.fromkeys(LONG[:count], view_of()), title=title)
    assert figure.axes[0].get_title().count("\n") == 1
    assert overlaps(figure, form) == []


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_a_figure_saved_twice_has_the_same_bytes(here, name):
    """Regression: each drawing was one more pass of the layout, and moved the panels."""
    views = dict.fromkeys(LONG[:2], view_of())
    figure = projection.draw(views, title="Beavers")
    written = []
    for again in (figure, figure, projection.draw(views, title="Beavers")):
        projection.save(again, name)
        written.append(Path(name).read_bytes())
    assert written[0] == written[1] == written[2]


def test_the_lines_reach_the_edge_in_every_panel(here):
    """Regression: beside a panel with features a billion times as large, they were too short to be seen."""
    views = {"large": view_of({"features": 1e9 * arrays()["features"]}), "small": view_of()}
    for ax in projection.draw(views).axes:
        half = np.ptp(ax.get_xlim()) / 2
        ends = [np.linalg.norm(line.get_xydata()[1]) for line in ax.lines[:3]]
        assert min(ends) > 10 * half


def test_characters_that_the_font_lacks_are_said_in_one_line(here, capsys):
    """Regression: there were boxes in the figure, and a warning of matplotlib's for each of them."""
    np.savez("chinese.npz", **arrays() | {"class_names": np.array(["海狸", "海豚", "é", "ł", "鲸"])})
    status, _, err = run(capsys, "chinese.npz", classes=("0", "1", "4"))
    assert status == 0
    assert err == "lsbook: warning: the figure's font, DejaVu Sans, lacks 海狸豚鲸: they are drawn as boxes\n"
    assert run(capsys, "chinese.npz", "--title", "é $", classes=("é", "ł", "4"))[2].count("鲸") == 1
    assert run(capsys, "hard.npz", "--title", "한국어")[2].count("한국어") == 1
    with pytest.warns(UserWarning, match="lacks 鲸: they") as caught:
        projection.draw({"鲸": view_of()})
    assert len(caught) == 1


def sides(figure):
    return [np.ptp(ax.get_xlim()) for ax in figure.axes]


def test_scale():
    views = {"large": view_of(), "small": view_of({"features": arrays()["features"] / 10})}
    same, own = projection.draw(views), projection.draw(views, own_scale=True)
    assert same.axes[0].get_xlim() == same.axes[1].get_xlim()
    assert same.axes[0].get_ylim() == same.axes[1].get_ylim()
    assert sides(same)[0] == pytest.approx(sides(own)[0], rel=0.1)
    assert sides(own)[1] < 0.5 * sides(own)[0]
    for figure in (same, own):
        for ax, side in zip(figure.axes, sides(figure), strict=True):
            length = np.ptp(ax.lines[-1].get_xdata())
            assert ax.texts[-1].get_text() == f"{length:g}"
            assert side / 10 <= length <= side / 4
            assert ax.get_aspect() == 1


@pytest.mark.parametrize(("options", "own"), [((), False), (("--own-scale",), True)])
def test_the_scale_is_chosen_on_the_command_line(here, capsys, monkeypatch, options, own):
    """Regression: without an option each panel had its own scale."""
    given, draw = [], projection.draw
    monkeypatch.setattr(projection, "draw", lambda *args: given.append(args) or draw(*args))
    assert run(capsys, "hard.npz", "smoothed.npz", "--title", "words", *options)[0] == 0
    ((views, own_scale, title),) = given
    assert (list(views), own_scale, title) == (["hard", "smoothed"], own, "words")


def test_titles_are_told_apart(here, capsys):
    (here / "other").mkdir()
    np.savez("other/hard.npz", **arrays())
    header = run(capsys, "hard.npz", "other/hard.npz")[1].splitlines()[0]
    assert header.split() == ["hard.npz", "other/hard.npz"]


# --- the numbers


def test_the_table_is_what_geometry_says(here, capsys):
    out = run(capsys, "hard.npz", "smoothed.npz", classes=("cat", "4", "ant"))[1]
    assert out.splitlines()[0].split() == ["hard", "smoothed"]
    table = lines_of(out)
    assert list(table) == list(projection.MEASURES.values())
    for column, data in enumerate((arrays(), arrays(stretch=1.0, noise=0.2))):
        features, labels, weight, bias, _ = data.values()
        chosen = np.isin(labels, (0, 2, 4))
        f, y = features[chosen], labels[chosen]
        points = geometry.project(f, geometry.template_plane(weight, bias, (2, 4, 0)))
        means = geometry.class_means(f, y)[1]
        # Directions in the plane, without the biases' part.
        along, _ = np.linalg.qr((weight[[2, 4]] - weight[0]).T)
        inside, all_of_it = (geometry.within_class_spread(x, y) ** 2 for x in (f @ along, f))
        expected = (
            60,
            ((features @ weight.T + bias).argmax(axis=1) == labels)[chosen].mean(),
            geometry.tightness(points, y),
            geometry.tightness(f, y),
            inside / all_of_it,
            geometry.regularity(means),
            np.sqrt((f**2).sum(axis=1)).mean(),
            np.sqrt((weight[[0, 2, 4]] ** 2).sum(axis=1)).mean(),
            geometry.neural_collapse(f, y, weight, bias).nearest,
        )
        printed = [numbers[column] for numbers in table.values()]
        assert printed == [str(x) if x == 60 else f"{x:.3f}" for x in expected]


def test_the_measures_by_hand():
    """Templates (1,0,0), (−1,0,0), (0,1,0): their plane is z = 0. Examples 3 from their class mean along z, 4 in it."""
    weight = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0]])
    means = 10 * np.array([[1, 0, 0], [-1, 0, 0], [0, math.sqrt(3), 0]])
    offset = np.array([4.0, 0, 3])
    labels = np.array([0, 0, 1, 1, 2, 2])
    features = means[labels] + np.array([1, -1] * 3)[:, None] * offset
    found = projection.measures(projection.view(projection.Network(features, labels, weight), (0, 1, 2)))
    expected = {
        "examples": 6,
        "accuracy": 1.0,
        "tightness_in_plane": 4 / 20,
        "tightness": 5 / 20,
        "share_in_plane": 16 / 25,
        "regularity": 1.0,
        "feature_norm": np.linalg.norm(features, axis=1).mean(),
        "template_norm": 1.0,
        "disagreement": 0.0,
    }
    assert list(found) == list(projection.MEASURES)
    assert found == pytest.approx(expected)


def test_disagreement_and_accuracy_count():
    """A network with two templates exchanged puts two of three classes elsewhere than their nearest mean."""
    data = arrays(noise=0.01)
    weight, bias = data["weight"][[2, 1, 0, 3, 4]], np.zeros(5)
    found = projection.measures(view_of({"features": data["features"], "weight": weight, "bias": bias}))
    own = (data["weight"] @ data["weight"].T).argmax(axis=1)
    assert own.tolist() == [0, 1, 2, 3, 4]  # else this test would be of something else
    assert found["disagreement"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(1 / 3)


def test_other_classes_change_only_the_accuracy():
    data = arrays()
    others = ~np.isin(data["labels"], (0, 2, 4))
    features = data["features"] + 50 * others[:, None]
    first, second = (projection.measures(view_of({"features": f})) for f in (data["features"], features))
    assert first == second


@pytest.mark.parametrize("bias", [None, [0.0, 1.0, -1.0], [0.0, 30.0, -30.0]])
def test_the_share_in_the_plane_is_1_if_nothing_is_hidden(bias):
    """Regression: with biases it was less, as if they hid some of the spread."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20_000)
    weight = np.array([[1.0, 0], [-0.5, 0.87], [-0.5, -0.87]])
    features = 3 * weight[labels] + rng.normal(size=(60_000, 2))
    shown = projection.view(projection.network(features, labels, weight, bias), (0, 1, 2))
    assert projection.measures(shown)["share_in_plane"] == pytest.approx(1, abs=1e-12)
    wide = np.column_stack([features, rng.normal(size=(60_000, 6))])
    shown = projection.view(projection.network(wide, labels, np.pad(weight, ((0, 0), (0, 6))), bias), (0, 1, 2))
    assert projection.measures(shown)["share_in_plane"] == pytest.approx(2 / 8, abs=0.01)


@pytest.mark.parametrize("copies", [1, 3, 7, 9, 60])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_examples_that_equal_their_class_mean_have_no_share_in_the_plane(copies, dtype):
    """Regression: what rounding left of the spread was measured, and its share came out as 1.19."""
    weight = np.random.default_rng(0).normal(size=(5, 16)).astype(dtype)
    labels = np.repeat(np.arange(5), copies)
    shown = projection.view(projection.network(np.repeat(weight, copies, axis=0), labels, weight), (0, 1, 2))
    assert math.isnan(projection.measures(shown)["share_in_plane"])
    assert "undefined" in repr(projection.table({"net": shown}))


def test_norms_have_four_digits_at_any_scale():
    """Regression: 0.000 for small features, and a number of 95 digits for large ones."""
    data = arrays()
    for scale in (1e-9, 1.0, 1e9, 1e90):
        scaled = {name: scale * data[name] for name in ("features", "weight")} | {"bias": None}
        view = view_of(scaled)
        found = lines_of(repr(projection.table({"net": view})))
        for name in ("feature_norm", "template_norm"):
            (shown,) = found[projection.MEASURES[name]]
            assert len(shown) < 11
            assert float(shown) == pytest.approx(projection.measures(view)[name], rel=6e-4)


def test_a_single_example_of_each_class():
    network = projection.Network(np.eye(3), np.arange(3), np.eye(3))
    shown = projection.view(network, (0, 1, 2))
    assert math.isnan(projection.measures(shown)["share_in_plane"])
    assert projection.measures(shown)["tightness"] == 0
    assert "undefined" in repr(projection.table({"net": shown}))


def test_class_means_on_one_spot_of_the_plane():
    features = np.array([[0, 0, 0, 1.0], [0, 0, 0, 2], [0, 0, 0, 4]])
    network = projection.Network(features, np.arange(3), np.eye(3, 4))
    assert math.isnan(projection.measures(projection.view(network, (0, 1, 2)))["tightness_in_plane"])


def test_class_means_on_one_spot_of_the_plane_but_for_rounding():
    """Regression: the distances that rounding left were taken for the scale."""
    rng = np.random.default_rng(0)
    weight, labels = rng.normal(size=(3, 16)), np.repeat(np.arange(3), 60)
    weight -= weight.mean(axis=0)  # so that 0 lies in the plane
    normals = np.linalg.svd(weight)[2][2:]  # at right angles to the plane
    features = 3.3 * labels[:, None] * normals[0] + 0.5 * rng.normal(size=(180, 13)) @ normals[1:]
    found = projection.measures(projection.view(projection.network(features, labels, weight), (0, 1, 2)))
    assert math.isnan(found["tightness_in_plane"])
    assert found["share_in_plane"] < 1e-20


def test_templates_beside_which_the_features_vanish():
    found = projection.measures(view_of({"weight": 1e14 * arrays()["weight"]}))
    assert math.isnan(found["tightness_in_plane"])
    assert found["tightness"] == projection.measures(view_of())["tightness"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble])
def test_other_precisions(here, capsys, dtype):
    data = arrays()
    floats = {name: data[name].astype(dtype) for name in ("features", "weight", "bias")}
    np.savez_compressed("other.npz", **data | floats | {"labels": data["labels"].astype(np.uint8), "extra": NAMES})
    assert run(capsys, "other.npz")[0] == 0
    network = projection.read("other.npz")
    found, exact = (projection.measures(v) for v in (projection.view(network, (0, 2, 4)), view_of()))
    assert found == pytest.approx(exact, rel=0.02)
    same = {name: array.astype(np.float64) for name, array in floats.items()}  # the same values, in float64
    assert found == pytest.approx(projection.measures(view_of(same)), rel=1e-12)


def test_without_bias_and_names(here, capsys):
    data = arrays()
    np.savez("bare.npz", **{name: data[name] for name in ("features", "labels", "weight")})
    status, out, _ = run(capsys, "bare.npz", classes=("0", "2", "4"))
    points = geometry.project(data["features"], geometry.template_plane(data["weight"], None, (0, 2, 4)))
    chosen = np.isin(data["labels"], (0, 2, 4))
    expected = geometry.tightness(points[chosen], data["labels"][chosen])
    assert lines_of(out)[projection.MEASURES["tightness_in_plane"]] == [f"{expected:.3f}"]


# --- arrays at hand


def same(one, other):
    return all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, np.ndarray.tolist])
def test_a_network_of_arrays_tensors_or_lists(kind):
    """Regression: all but arrays failed, long after, with an error of numpy's or an attribute's."""
    data = arrays()
    names = data.pop("class_names")
    network = projection.network(**{name: kind(array) for name, array in data.items()}, class_names=names.tolist())
    assert same(network, projection.Network(**data, class_names=names))
    assert projection.find_classes(network, ["ant", "cat", "4"]) == (0, 2, 4)
    assert projection.measures(projection.view(network, (0, 2, 4))) == projection.measures(view_of())


def test_a_network_of_bfloat16_with_a_gradient():
    data = {name: torch.as_tensor(array) for name, array in arrays().items() if name != "class_names"}
    data |= {name: data[name].bfloat16().requires_grad_() for name in ("features", "weight", "bias")}
    network = projection.network(**data)
    np.testing.assert_array_equal(network.features, data["features"].detach().double().numpy())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": list(range(5))}, "labels must have shape (100,)"),
        ({"labels": [[1], [1, 2]]}, "labels must be an array of integers, got [[1], [1, 2]]"),
        ({"features": [[1.0], [1.0, 2.0]]}, "features must be an array of floating point, got [[1.0], [1.0, 2.0]]"),
        ({"features": "words"}, "features must be floating point, got dtype <U5"),
        ({"weight": torch.ones(7, 5)}, "weight must have shape (K, 7)"),
        ({"weight": None}, "weight must be floating point, got dtype object"),
        ({"class_names": [1, 2, 3, 4, 5]}, "class_names must be strings, got dtype int64"),
        ({"class_names": ["a", "b"]}, "class_names must have shape (5,)"),
    ],
)
def test_arrays_at_hand_are_checked(changes, says):
    with pytest.raises(ValueError) as caught:
        projection.network(**arrays() | changes)
    assert says in str(caught.value)


@pytest.mark.parametrize("wanted", [(0, 2, 4), np.array([0, 2, 4]), ["0", 2, "elk"], range(0, 5, 2)])
def test_classes_may_be_numbers(wanted):
    """Regression: numbers had no method of texts."""
    assert projection.find_classes(projection.network(**arrays()), wanted) == (0, 2, 4)


def test_numbers_are_no_names():
    names = np.array(["4", "3", "x", "y", "z"])
    assert projection.find_classes(projection.network(**arrays() | {"class_names": names}), (4, "4", 3)) == (4, 0, 3)


@pytest.mark.parametrize("call", [projection.table, projection.draw])
def test_no_views(call):
    with pytest.raises(ValueError, match="views must hold one view .* or more, got none"):
        call({})


def test_names_go_before_numbers():
    network = SimpleNamespace(class_names=np.array(["4", "3", "x", "y", "z"]), weight=np.eye(5))
    assert projection.find_classes(network, ("4", "3", "2")) == (0, 1, 2)


# --- what does not fit


def fails(capsys, *arguments, says, **options):
    """The command ends with status 2 and one line with these words, and writes nothing."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    status, out, err = run(capsys, *arguments, **options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("lsbook: error: ")
    for part in says:
        assert part in err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


CHANGED = {
    "no features": ({"features": None}, ["hold the array 'features'", "holds labels, weight, bias, class_names"]),
    "no weight": ({"weight": None}, ["hold the array 'weight'"]),
    "whole features": ({"features": np.ones((100, 7), int)}, ["features must be floating point", "int64"]),
    "maps": ({"features": np.ones((100, 7, 4, 4))}, ["features must have shape (N, D)", "(100, 7, 4, 4)"]),
    "empty": ({"features": np.ones((0, 7))}, ["features must have shape (N, D)", "(0, 7)"]),
    "no width": ({"features": np.ones((100, 0))}, ["features must have shape (N, D)", "(100, 0)"]),
    "few labels": ({"labels": np.zeros(99, int)}, ["labels must have shape (100,)", "N = 100, D = 7", "(99,)"]),
    "one-hot labels": ({"labels": np.zeros((100, 5), int)}, ["labels must have shape (100,)", "(100, 5)"]),
    "float labels": ({"labels": np.zeros(100)}, ["labels must be integers", "float64"]),
    "transposed": ({"weight": np.ones((7, 5))}, ["weight must have shape (K, 7)", "(7, 5)"]),
    "as wide as with bias": ({"weight": np.ones((5, 6))}, ["weight must have shape (K, 7)", "(5, 6)"]),
    "bias of a column": ({"bias": np.ones((5, 1))}, ["bias must have shape (5,)", "(5, 1)"]),
    "few names": ({"class_names": NAMES[:4]}, ["class_names must have shape (5,)", "(4,)"]),
    "numbered names": ({"class_names": np.arange(5)}, ["class_names must be strings", "int64"]),
    "pickled names": ({"class_names": NAMES.astype(object)}, ["class_names must be strings", "pickled", "never"]),
    "pickled labels": ({"labels": np.array([0, None] * 50)}, ["labels must be integers", "pickled"]),
    "NaN": ({"features": np.full((100, 7), np.nan)}, ["features must be finite", "700 of 700"]),
    "infinite": ({"bias": np.array([0, 0, 0, -np.inf, np.inf])}, ["bias must be finite", "2 of 5"]),
    "huge": ({"weight": np.full((5, 7), 1e200)}, ["weight must be finite", "above 1e100"]),
    "label K": ({"labels": np.full(100, 5)}, ["labels must lie in [0, 4]", "5 … 5"]),
    "label −1": ({"labels": np.full(100, -1)}, ["labels must lie in [0, 4]", "-1 … -1"]),
    "no elk": ({"labels": arrays()["labels"] % 4}, ["no example of elk (4)"]),
    "two classes": (
        {"weight": np.ones((2, 7)), "labels": np.ones(100, int), "bias": None, "class_names": None},
        ["at least 3 classes", "(2, 7)"],
    ),
    "collinear": ({"weight": np.outer(np.arange(5.0), np.ones(7)), "bias": None}, ["(0, 2, 4) lie on one line"]),
    "equal templates": ({"weight": np.ones((5, 7)), "bias": None}, ["classes 0 and 2 are equal"]),
    "collinear, by name": (
        {"weight": np.outer(np.arange(5.0), np.ones(7)), "bias": None},
        ["lie on one line", "(0 is ant, 2 is cat, 4 is elk)"],
    ),
    "dead features": ({"features": np.zeros((100, 7))}, ["class means are one point"]),
    # Regression: means of 0.1 differ in their last digit, and the error told of labels.
    "equal features": (
        {"features": np.full((100, 7), 0.1), "labels": np.repeat(np.arange(5), (17, 19, 20, 21, 23))},
        ["class means are one point"],
    ),
    "empty name": ({"class_names": np.array(["ant", "", "cat", "d", "elk"])}, ["control characters, got '' for"]),
    "blank name": ({"class_names": np.array(["ant", "bee", "cat", " ", "elk"])}, ["got ' ' for class 3"]),
    "line in a name": ({"class_names": np.array(["ant", "b\ne", "cat", "d", "elk"])}, ["got 'b\\ne' for class 1"]),
    "bell in a name": ({"class_names": np.array(["ant", "b\x07", "cat", "d", "elk"])}, ["got 'b\\x07' for class 1"]),
    "half a letter": ({"class_names": np.array(["ant", "b\ud800", "cat", "d", "elk"])}, ["got 'b\\ud800' for"]),
}


@pytest.mark.parametrize(("changes", "says"), CHANGED.values(), ids=CHANGED)
def test_wrong_arrays(here, capsys, changes, says):
    kept = {name: array for name, array in (arrays() | changes).items() if array is not None}
    np.savez("wrong.npz", **kept)
    fails(capsys, "hard.npz", "wrong.npz", says=["wrong", *says])


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (("ant", "cat", "elf"), ["hard.npz", "'elf'", "did you mean 'elk'?"]),
        (("ant", "cat", "5"), ["hard.npz", "lie in [0, 4]", "got 5"]),
        (("ant", "cat", "-1"), ["hard.npz", "lie in [0, 4]", "got -1"]),
        (("ant", "cat", "²"), ["hard.npz", "no class has the name '²'"]),
        (("ant", "cat", "ant"), ["three different classes", "ant, cat, ant"]),
        (("ant", "cat", "0"), ["three different classes", "ant, cat, 0"]),
    ],
)
def test_wrong_classes(here, capsys, classes, says):
    fails(capsys, "hard.npz", says=says, classes=classes)


def test_what_is_no_number_is_not_read_as_one():
    """Regression: the error was that of int()."""
    data = arrays() | {"class_names": None}
    with pytest.raises(ValueError, match="must be numbers 0 to 4, since there are no class_names, got '--5'"):
        projection.find_classes(projection.network(**data), ["--5", "0", "1"])
    with pytest.raises(ValueError, match="no class has the name '--5'; did you mean"):
        projection.find_classes(projection.network(**arrays()), ["--5", "0", "1"])


def test_classes_that_names_leave_open(here, capsys):
    data = arrays()
    np.savez("bare.npz", **{name: data[name] for name in ("features", "labels", "weight")})
    fails(capsys, "bare.npz", says=["bare.npz", "numbers 0 to 4", "no class_names", "'ant'"])
    np.savez("twice.npz", **data | {"class_names": np.array(["crane", "bee", "crane", "d", "e"])})
    says = ["twice.npz", "'crane' is the name of classes 0, 2", "number"]
    fails(capsys, "twice.npz", says=says, classes=("crane", "bee", "d"))
    np.savez("renamed.npz", **data | {"class_names": np.array(["A", "B", "C", "D", "E"])})
    says = ["ant, bee, cat in hard", "A, B, C in renamed"]
    fails(capsys, "hard.npz", "renamed.npz", says=says, classes=("0", "1", "2"))


def test_files_that_are_none(here, capsys):
    fails(capsys, "absent.npz", says=["No such file", "absent.npz"])
    fails(capsys, here, says=["directory", str(here)])
    np.save("one.npy", np.ones(3))
    for name, content in (("empty.npz", b""), ("text.npz", b"features"), ("pickle.npz", b"\x80\x04K\x01.")):
        (here / name).write_bytes(content)
    for name in ("one.npy", "empty.npz", "text.npz", "pickle.npz"):
        fails(capsys, "hard.npz", name, says=[name, "no .npz file"])
    np.savez("nothing.npz")
    fails(capsys, "nothing.npz", says=["nothing.npz", "'features'", "it holds nothing"])
    torch.save({"weight": torch.ones(3)}, "model.npz")  # a zip archive as well
    fails(capsys, "model.npz", says=["model.npz", "'features'", "data.pkl"])
    with zipfile.ZipFile("raw.npz", "w") as archive:
        for name in arrays():
            archive.writestr(name, b"12345")
    fails(capsys, "raw.npz", says=["raw.npz", "features must be an array", "got 5 other bytes"])
    fails(capsys, "hard.npz", "hard.npz", says=["each file must be given once"])
    fails(capsys, "hard.npz", f"../{here.name}/hard.npz", says=["each file must be given once"])  # by another name


def test_a_file_that_is_cut_off(here, capsys):
    whole = (here / "hard.npz").read_bytes()
    for part in (2, 4, 100, len(whole) // 2, len(whole) - 1):
        (here / "cut.npz").write_bytes(whole[:part])
        fails(capsys, "cut.npz", says=["cut.npz", "damaged or cut off"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_bytes_are_an_error_or_change_nothing(here, save):
    """Every byte of the headers and some of the rest, turned over, one at a time."""
    save("whole.npz", **{name: array[:40] for name, array in arrays().items()})
    whole, before = Path("whole.npz").read_bytes(), projection.read("whole.npz")
    refused = 0
    for place in [*range(2, 250), *range(250, len(whole), 13)]:
        Path("damaged.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            after = projection.read("damaged.npz")
        except ValueError as error:
            assert str(error).startswith("damaged.npz: ")
            refused += 1
        else:  # a byte that nothing reads, such as the time of day; or the name of an array that may be absent
            assert all(b is None or np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert refused > 200


def test_pickles_are_not_executed(here, capsys):
    class Trap:
        def __reduce__(self):
            return (Path("sprung").write_text, ("",))

    np.savez("trap.npz", **arrays() | {"features": np.array([Trap()] * 100, dtype=object)})
    fails(capsys, "trap.npz", says=["trap.npz", "features must be floating point", "pickled"])
    assert not Path("sprung").exists()
    np.load("trap.npz", allow_pickle=True)["features"]  # it would have
    assert Path("sprung").exists()


@pytest.mark.parametrize("name", ["figure", "figure.jpg", "figure.png.gz"])
def test_an_unknown_format_is_said_before_any_work(here, capsys, name):
    fails(capsys, "absent.npz", "--out", name, says=["--out must end in one of .png, .svg, .pdf", f"'{name}'"])


def cannot_write(capsys, name, says):
    """The table is printed, nothing is written, and one line says which file could not be, not a hidden one."""
    before = sorted(Path().rglob("*"))
    status, out, err = run(capsys, "hard.npz", "--out", name)
    assert (status, err) == (2, f"lsbook: error: --out: cannot write {name}: {says}\n")
    assert list(lines_of(out)) == list(projection.MEASURES.values())
    assert "figure:" not in out
    assert sorted(Path().rglob("*")) == before


def test_a_failure_leaves_the_figure_as_it_was(here, capsys, monkeypatch):
    """Regression: the table was lost, and the error named a hidden file."""
    Path("projection.png").write_text("before")
    np.savez("wrong.npz", **arrays() | {"weight": np.ones((5, 7)), "bias": np.zeros(5)})
    fails(capsys, "wrong.npz", says=["wrong"])
    for call in ("os.replace", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(call, lambda *_: (_ for _ in ()).throw(OSError(5, "no", ".projection.png.part")))
            cannot_write(capsys, "projection.png", "no")
    assert Path("projection.png").read_text() == "before"
    Path("folder.png").mkdir()
    cannot_write(capsys, "folder.png", "Is a directory")


def test_a_missing_folder_is_said_before_any_work(here, capsys):
    """Regression: it was made in silence."""
    says = ["--out: cannot write new/deep/a.png: there is no folder new/deep"]
    fails(capsys, "absent.npz", "--out", "new/deep/a.png", says=says)
    with pytest.raises(FileNotFoundError, match="there is no folder new"):
        projection.save(projection.draw({"net": view_of()}), "new/a.png")


def test_usage(capsys):
    for wrong in (
        ("hard.npz",),
        ("--classes", "a", "b", "c"),
        ("hard.npz", "--classes", "a", "b"),
        ("x", "--classes", "a", "b", "c", "--own-scale", "--title"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["project", *wrong])
        assert stop.value.code == 2
        assert "usage: lsbook project" in capsys.readouterr().err


# --- without a display, and quickly


def test_without_a_display(here):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(here), "MPLBACKEND": "tkagg"}
    command = [sys.executable, "-m", "lsbook.cli", "project", here / "hard.npz", "--classes", "ant", "cat", "elk"]
    done = subprocess.run(
        command, cwd=here, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, (here / "projection.png").read_bytes()[:4]) == (0, b"\x89PNG")


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom lsbook import cli\ntry: cli.main(['project', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "FILE.npz" in done.stdout
    assert done.stdout.endswith("\n[]\n")


# --- the page

PAGE = (ROOT / "appendix" / "your_network.md").read_text(encoding="utf-8")


def blocks(kind):
    """The code of a page's blocks of one kind, without their options."""
    found = re.findall(rf"^```{re.escape(kind)}[^\n]*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\A(---\n.*?\n---\n|(:.*\n)+)", "", text, flags=re.DOTALL) for text in found]


@pytest.fixture
def executed(tmp_path, monkeypatch, capsys):
    """The page's cells, executed; (its names, what it printed)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {}
    for cell in blocks("{code-cell}"):
        exec(compile(cell, "your_network.md", "exec"), names)
    return names, capsys.readouterr().out


def test_the_pages_example_does_what_the_page_says(executed):
    names, out = executed
    assert names["status"] == 0
    with Image.open("projection.png") as image:
        assert image.width > image.height  # two panels
    (command,) = (block for block in blocks("bash") if block.startswith("lsbook project"))
    assert command.removeprefix("lsbook ").strip() in PAGE.split("cli.main(")[1]
    for line in ("tightness_in_plane", "tightness", "feature_norm"):
        loose, tight = map(float, lines_of(out)[projection.MEASURES[line]])
        assert loose > 1.5 * tight


def test_the_page_explains_every_line_and_array():
    for line in projection.MEASURES.values():
        assert f"\n| {line} |" in PAGE
    for name, (shape, _, kind) in projection.ARRAYS.items():
        shown = f"({shape},)" if len(shape) == 1 else f"({', '.join(shape)})"
        assert f"| `{name}` | {shown} | {kind} |" in PAGE


@pytest.mark.parametrize("bias", [True, False])
def test_the_pages_way_from_pytorch(here, capsys, bias):
    """Its lines, with a small network, give a file that the command draws."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Dropout(0.9), torch.nn.ReLU())
    network.add_module("head", torch.nn.Linear(6, 3, bias=bias))
    inputs, labels = torch.randn(30, 4), torch.arange(30) % 3
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=8)
    (snippet,) = blocks("python")
    exec(compile(snippet, "your_network.md", "exec"), {"network": network, "loader": loader})
    found = projection.read("train.npz")
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(found.features), network[:3](inputs))
    assert found.labels.tolist() == labels.tolist()
    assert (found.bias is not None) == bias
    np.testing.assert_array_equal(found.weight, network.head.weight.detach().numpy())
    assert run(capsys, "train.npz", classes=("0", "1", "2"))[0] == 0


def test_the_readme_names_the_arrays_and_the_page():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own network\n")[1].split("\n## ")[0]
    assert section.count("\n") <= 15
    for name in projection.ARRAYS:
        assert f"`{name}`" in section
    assert "(appendix/your_network.md)" in section
