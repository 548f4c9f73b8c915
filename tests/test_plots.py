"""Drawing: on the given axes, without touching global style; figures and tables whose text form is fit to be stored."""

import ast
import inspect
import io
import math
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import strategies  # noqa: F401 (the profile, one thread)
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb

from lsbook import calibration, geometry, plots, theory
from lsbook.claims import Interval
from lsbook.decoding import Candidate

matplotlib.use("Agg")
INTERVALS = [Interval(0.5, 0.4, 0.7, 3), Interval(0.2, 0.1, 0.3, 3)]
X = np.array([1.0, 2.0, 4.0])
PLANE = geometry.template_plane([[0.0, 0.0], [4.0, 0.0], [2.0, 3.0]], None, (2, 0, 1))
POINTS = np.array([[0.5, 0.25], [-3.0, 1.0], [2.0, 7.5], [30.0, 40.0], [0.125, -1.0]])
BINS = calibration.reliability_bins([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 0, 0])
WEIGHTS = np.array([[0.7, 0.25, 0.05], [0.0, 0.1, 0.9]])
STEPS = [
    [Candidate((), 0, -0.1, "kept"), Candidate((), 1, -2.0, "kept"), Candidate((), 2, -3.0, "dropped")],
    [Candidate((1,), 2, -2.1, "finished"), Candidate((0,), 1, -2.5, "kept")],
]
DRAWINGS = {
    "draw_bars": lambda ax: plots.draw_bars(ax, [0.7, 0.1, 0.2]),
    "draw_band": lambda ax: plots.draw_band(ax, X, [[1, 2, 3], [3, 4, 8]], plots.BLUE, "band"),
    "draw_intervals": lambda ax: plots.draw_intervals(ax, [0, 1], INTERVALS),
    "draw_intervals_across": lambda ax: plots.draw_intervals_across(ax, ["a", "b"], INTERVALS),
    "draw_stacked": lambda ax: plots.draw_stacked(ax, ["a", "b"], {"first": [1, 2], "second": [3, 4]}),
    "draw_curves": lambda ax: plots.draw_curves(ax, X, {"one": X, "two": X**2}),
    "draw_curves, dashed": lambda ax: plots.draw_curves(ax, X, {"one": X, "two": X**2}, markers=None),
    "draw_reliability": lambda ax: plots.draw_reliability(ax, BINS),
    "draw_counts": lambda ax: plots.draw_counts(ax, BINS),
    "draw_zero": lambda ax: plots.draw_zero(ax, 0.5),
    "log_axis": lambda ax: plots.log_axis(ax, [1, 10, 100]),
    "draw_named": lambda ax: plots.draw_named(ax, X, X, "line", plots.RED),
    "write_at": lambda ax: plots.write_at(ax, "words", (1, 2), (-4, 0)),
    "draw_gap_growth": lambda ax: plots.draw_gap_growth(ax, X, [1.0, 1.5, 2.0], 10, plots.BLUE),
    "draw_gap_histograms": lambda ax: plots.draw_gap_histograms(ax, {0: X, 0.1: X}, 10, np.linspace(0, 5, 6)),
    "draw_convergence": lambda ax: plots.draw_convergence(
        ax, {0: 0.9 / (1 + np.arange(9)), 0.1: 0.5 ** np.arange(9)}, 10
    ),
    "draw_loss_over_gap": lambda ax: plots.draw_loss_over_gap(ax, 0.1, 10, np.linspace(0, 8, 20)),
    "draw_target_and_optimum": lambda ax: plots.draw_target_and_optimum(ax, 0.1, 10, 2.0),
    "draw_projection": lambda ax: plots.draw_projection(ax, POINTS, [0, 1, 2, 5, 0], PLANE),
    "draw_classes": lambda ax: plots.draw_classes(ax, POINTS, [0, 1, 2, 5, 0], (2, 0, 1)),
    "draw_ruler": lambda ax: plots.draw_ruler(ax, 0.25),
    "draw_ruler, of its own length": lambda ax: plots.draw_ruler(ax),
    "draw_ratios": lambda ax: plots.draw_ratios(ax, ["a", "b"], INTERVALS, shift=0.15),
    "alpha_axis": lambda ax: plots.alpha_axis(ax, (0, 0.1, 0.5)),
    "name_classes": lambda ax: plots.name_classes(ax, ["a", "b", "c"]),
    "draw_attention": lambda ax: plots.draw_attention(ax, WEIGHTS, ["a", "b", "c"], ["x", "y"]),
    "draw_beam_tree": lambda ax: plots.draw_beam_tree(ax, STEPS, ["zero", "one", "end"]),
    "draw_histogram": lambda ax: plots.draw_histogram(ax, [0.0, 0.1, 0.9, 5.0], np.linspace(0, 1, 5), plots.BLUE, "h"),
}


@pytest.fixture
def ax():
    figure, axes = plots.subplots()
    yield axes
    plt.close(figure)


# --- the rules of the house


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_drawing_returns_the_axes_and_leaves_the_rest_alone(ax, draw, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("a drawing function called show"))
    style, figures = matplotlib.rcParams.copy(), plt.get_fignums()
    assert draw(ax) is ax
    assert matplotlib.rcParams == style
    assert plt.get_fignums() == figures
    ax.figure.savefig(io.BytesIO(), format="png")  # and it can be rendered


def functions_of(source):
    return [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def style_problems(source):
    """Functions of a module that set global style or show, and drawing functions that do not take and return `ax`."""
    problems = []
    for function in functions_of(source):
        names = {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)}
        if function.name != "use_house_style" and names & {"rcParams", "set_theme", "set_style", "rc", "show", "style"}:
            problems.append(f"{function.name} shows or sets global style")
        if function.name.startswith("draw_"):
            returned = [n.value for n in ast.walk(function) if isinstance(n, ast.Return)]
            # `return draw_other(ax, …)` returns ax as well.
            returned = [v.args[0] if isinstance(v, ast.Call) and v.args else v for v in returned]
            if not function.args.args or function.args.args[0].arg != "ax":
                problems.append(f"{function.name} does not take ax first")
            if not returned or any(not isinstance(value, ast.Name) or value.id != "ax" for value in returned):
                problems.append(f"{function.name} does not return ax")
    return problems


def test_no_drawing_function_breaks_the_rules():
    source = inspect.getsource(plots)
    assert len([f for f in functions_of(source) if f.name.startswith("draw_")]) >= 5
    assert style_problems(source) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def draw_x(ax):\n    plt.show()\n    return ax", "draw_x shows or sets global style"),
        ("def helper():\n    plt.rcParams['x'] = 1", "helper shows or sets global style"),
        ("def helper():\n    sns.set_theme()", "helper shows or sets global style"),
        ("def draw_x(x, ax):\n    return ax", "draw_x does not take ax first"),
        ("def draw_x(ax):\n    ax.plot([1])", "draw_x does not return ax"),
        ("def draw_x(ax):\n    return ax.plot([1])", "draw_x does not return ax"),
        ("def draw_x(ax):\n    return ax.figure", "draw_x does not return ax"),
    ],
)
def test_the_rules_bite(source, problem):
    assert style_problems(source) == [problem]


def test_importing_the_module_sets_no_style():
    """(pyplot settles the backend when it is imported, so it is settled before.)"""
    code = (
        "import matplotlib as m; m.use('agg'); a = m.rcParams.copy(); from lsbook import plots; print(a == m.rcParams)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_house_style_is_set_on_demand():
    with matplotlib.rc_context():
        plots.use_house_style()
        assert matplotlib.rcParams["figure.constrained_layout.use"]
        assert not matplotlib.rcParams["axes.spines.top"]
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.CYCLE)


# --- figures as text


def test_a_figure_as_text_holds_no_address():
    figure, (left, right) = plots.subplots(1, 2)
    assert isinstance(figure, plots.QuietFigure)
    left.set_title("loss")
    right.set_ylabel("gap")
    for text in (repr(figure), str(figure)):
        assert text == "[figure: loss | gap]"
        assert "0x" not in text
        assert "<" not in text
    plt.close(figure)
    empty, _ = plots.subplots()
    assert repr(empty) == "[figure: ]"
    plt.close(empty)


def test_size_of_a_figure():
    figure, axes = plots.subplots(2, 1, height=5.0, width=6.4)
    assert figure.get_size_inches().tolist() == [6.4, 5.0]
    assert axes.shape == (2,)
    plt.close(figure)


# --- what is drawn


def test_bars_carry_their_values(ax):
    plots.draw_bars(ax, [0.925, 0.025], labels=["cat", "dog"])
    assert [bar.get_height() for bar in ax.patches] == [0.925, 0.025]
    assert [text.get_text() for text in ax.texts] == ["0.925", "0.025"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog"]


def test_a_band_runs_from_the_smallest_to_the_largest_run(ax):
    plots.draw_band(ax, X, [[1, 2, 3], [3, 4, 8]], plots.BLUE, "band")
    assert ax.lines[0].get_ydata().tolist() == [2, 3, 5.5]
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1, 8)


def test_intervals_reach_from_low_to_high(ax):
    plots.draw_intervals(ax, [0, 1], INTERVALS)
    bars = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [(0.4, 0.7), (0.1, 0.3)])


def test_intervals_across_show_their_bounds_in_rows(ax):
    plots.draw_intervals_across(ax, ["a", "b"], INTERVALS)
    plots.draw_intervals_across(ax, ["c"], INTERVALS[:1], plots.RED)
    bars = [c.lines[2][0].get_segments() for c in ax.containers]
    np.testing.assert_allclose([bar[:, 0] for bar in bars[0]], [(0.4, 0.7), (0.1, 0.3)])
    np.testing.assert_allclose(bars[1][0][:, 1], 2)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert ax.yaxis_inverted()  # the first on top, also after a second call


def test_stacked_bars_stand_on_each_other(ax):
    plots.draw_stacked(ax, ["a", "b"], {"first": [1, 2], "second": [3, 4]})
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 1), (0, 2), (1, 3), (2, 4)]


def test_curves_differ_by_more_than_colour(ax):
    plots.draw_curves(ax, X, {"one": X, "two": X})
    plots.draw_curves(ax, X, {"three": X, "four": X}, markers=None)
    assert len({(line.get_marker(), line.get_linestyle()) for line in ax.lines}) == 4


def test_optimum_of_the_loss_is_marked_where_theory_puts_it(ax):
    plots.draw_loss_over_gap(ax, 0.1, 10, np.linspace(0, 8, 20))
    points = [line.get_xydata()[0].tolist() for line in ax.lines if len(line.get_xdata()) == 1]
    assert points == [[theory.optimal_gap(0.1, 10), theory.loss_floor(0.1, 10)]]


def test_target_and_optimum_are_equal_at_temperature_one(ax):
    plots.draw_target_and_optimum(ax, 0.1, 10, 1.0)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights[:3] == pytest.approx([0.91, 0.01, 0.09], rel=1e-12)
    assert heights[3:] == pytest.approx(heights[:3], rel=1e-12)


def test_a_histogram_is_a_density_of_all_values(ax):
    plots.draw_histogram(ax, [0.0, 0.1, 0.9, 5.0], np.linspace(0, 1, 5), plots.BLUE)
    heights = ax.patches[0].get_data().values
    assert heights.tolist() == [2, 0, 0, 1]  # 2 of 4 values in a bin of width 1/4; 5.0 lies beyond all bins


def test_colours_of_alphas():
    colors = plots.alpha_colors([0, 0.02, 0.1, 0.2])
    assert colors[0] == plots.HARD
    brightness = [sum(to_rgb(colors[alpha])) for alpha in (0.02, 0.1, 0.2)]
    assert brightness == sorted(brightness, reverse=True)
    assert len({to_rgb(color) for color in colors.values()}) == 4
    assert set(plots.alpha_colors([0.1])) == {0.1}


# --- tables


def test_a_table_as_text_and_as_markdown():
    result = plots.table({"K": [2, 10], r"$\alpha$": [0.1, 1 / 3], "name": ["a", "b"]}, digits=2)
    assert repr(result).splitlines() == [
        "  K    $\\alpha$  name",
        "---  ----------  ------",
        "  2        0.10  a",
        " 10        0.33  b",
    ]
    assert result._repr_markdown_().splitlines() == [
        "|   K |   $\\alpha$ | name   |",
        "|----:|-----------:|:-------|",
        "|   2 |       0.10 | a      |",
        "|  10 |       0.33 | b      |",
    ]


def test_cells_of_every_kind():
    column = [1, 1.0, -0.25, float("inf"), float("nan"), True, np.float32(0.5), np.int64(7), INTERVALS[0], "word"]
    expected = ["1", "1.000", "-0.250", "∞", "nan", "yes", "0.500", "7", "0.500 [0.400, 0.700]", "word"]
    assert [row[0] for row in plots.table({"x": column}).rows] == expected


def test_columns_may_be_arrays_tensors_ranges():
    rows = plots.table(
        {"n": range(2), "a": np.array([0.5, 1]), "t": torch.tensor([1.0, 2]), "b": np.array([True, False])}
    ).rows
    assert rows == [["0", "0.500", "1.000", "yes"], ["1", "1.000", "2.000", "no"]]


def test_text_that_looks_like_a_number_stays_as_it_is():
    assert plots.table({"x": ["0.10", "1e3"]}).rows == [["0.10"], ["1e3"]]
    assert "0.10" in repr(plots.table({"x": ["0.10", "1e3"]}))


def test_empty_columns():
    with pytest.raises(ValueError, match=r"at least 1, got \{'a': 0\}"):
        plots.table({"a": []})


def test_too_many_stacked_parts():
    _, ax = plots.subplots()
    with pytest.raises(ValueError, match="parts must be at most 3, got 4"):
        plots.draw_stacked(ax, ["one"], {name: [1.0] for name in "abcd"})


def test_unequal_columns():
    with pytest.raises(ValueError, match=r"columns must be of one length, at least 1, got \{'a': 2, 'b': 1\}"):
        plots.table({"a": [1, 2], "b": [1]})
    with pytest.raises(ValueError, match="columns must be of one length, at least 1, got {}"):
        plots.table({})


def test_powers_of_ten():
    assert plots.in_powers(torch.tensor([0.0, 3e-14, 1e-11, 250.0], dtype=torch.float64), below=1e-11) == [
        "< 1e-11"
    ] * 2 + [
        "1.0e-11",
        "2.5e+02",
    ]


@pytest.mark.parametrize("value", [math.nan, -1.0, -1e-20])
def test_what_has_no_size_is_not_called_small(value):
    """Regression: NaN and negative numbers were printed as "< 1e-11"."""
    with pytest.raises(ValueError, match=rf"values must lie in \[0, inf\], got {value}"):
        plots.in_powers([0.5, value], below=1e-11)


# --- projections


def scattered(ax):
    """The collections of markers: of each class, then of the templates."""
    return [part for part in ax.collections if isinstance(part, PathCollection)]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_projection_has_a_marker_for_each_example_of_its_classes(ax, kind):
    """In the order of the plane's classes, each with its own color and marker; of other classes there is nothing."""
    labels = [0, 1, 2, 5, 0]
    plots.draw_projection(ax, POINTS, kind(labels), PLANE)
    *classes, templates = scattered(ax)
    assert len(classes) == 3
    for label, drawn in zip(PLANE.classes, classes, strict=True):
        expected = [point for point, of in zip(POINTS.tolist(), labels, strict=True) if of == label]
        assert np.asarray(drawn.get_offsets()).tolist() == expected
    assert np.asarray(templates.get_offsets()).tolist() == PLANE.corners.tolist()
    assert len({tuple(drawn.get_facecolor()[0]) for drawn in classes}) == 3
    assert len({drawn.get_paths()[0].vertices.tobytes() for drawn in classes}) == 3
    assert len(ax.lines) == 3
    for line, corner in zip(ax.lines, PLANE.corners, strict=True):
        start, end = line.get_xydata()
        assert start.tolist() == [0, 0]  # from the centroid through the template, far beyond
        assert end @ corner == pytest.approx(np.linalg.norm(end) * np.linalg.norm(corner))
        assert np.linalg.norm(end) > 100 * np.linalg.norm(corner)
    assert max(ax.get_xlim()) < 100  # the lines do not stretch the panel
    assert ax.get_aspect() == 1
    assert not ax.get_xticks().size
    assert not ax.get_yticks().size


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1.0, 1e9, 1e90])
def test_lines_through_templates_leave_the_panel_at_any_scale(ax, scale):
    """Regression: they were a million units long, and vanished where the points lay farther out."""
    plots.draw_projection(ax, scale * POINTS, [0, 1, 2, 5, 0], PLANE)
    far = max(scale * np.abs(POINTS).max(), np.abs(PLANE.corners).max())
    before = ax.get_xlim(), ax.get_ylim()
    for line, corner in zip(ax.lines, PLANE.corners, strict=True):
        start, end = line.get_xydata()
        assert start.tolist() == [0, 0]
        assert 999 * far < np.abs(end).max() < 1001 * far
        np.testing.assert_allclose(end / np.abs(end).max(), corner / np.abs(corner).max(), atol=1e-12)
    ax.relim()
    ax.autoscale_view()
    assert (ax.get_xlim(), ax.get_ylim()) == before


def test_lines_through_templates_reach_as_far_as_told(ax):
    plots.draw_projection(ax, POINTS, [0, 1, 2, 5, 0], PLANE, reach=1e12)
    assert all(np.abs(line.get_xydata()[1]).max() == pytest.approx(1e15) for line in ax.lines)


@pytest.mark.parametrize("below", [0, 0.1, 0.5])
def test_room_below_the_square(ax, below):
    side = plots.set_extent([ax], POINTS, PLANE, below)
    plain = plots.set_extent([(other := plots.subplots()[1])], POINTS, PLANE)
    assert side == plain
    assert ax.get_xlim() == other.get_xlim()
    assert ax.get_ylim()[1] == other.get_ylim()[1]
    assert ax.get_ylim()[0] == pytest.approx(other.get_ylim()[0] - below * side, rel=1e-12)


def test_a_projection_without_an_example_of_a_class(ax):
    plots.draw_projection(ax, POINTS[:2], [0, 0], PLANE)
    assert [len(drawn.get_offsets()) for drawn in scattered(ax)] == [0, 2, 0, 3]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(5, 2), (5, 1, 2), (1, 5, 2)])
def test_panels_show_the_same_square_with_everything_in_it(scale, shape):
    figure, axes = plots.subplots(1, 3)
    points = (scale * POINTS + 3).reshape(shape)
    for panel in axes:
        plots.draw_projection(panel, points.reshape(-1, 2), [0, 1, 2, 5, 0], PLANE)
    side = plots.set_extent(axes, points, PLANE)
    limits = {(*panel.get_xlim(), *panel.get_ylim()) for panel in axes}
    assert len(limits) == 1
    ((left, right, low, high),) = limits
    assert right - left == pytest.approx(side, rel=1e-12)
    assert high - low == pytest.approx(side, rel=1e-12)
    everything = np.concatenate([points.reshape(-1, 2), PLANE.corners])
    assert (everything > [left, low]).all()
    assert (everything < [right, high]).all()
    assert side < 1.1 * np.ptp(everything, axis=0).max()  # and not much around it
    plt.close(figure)


@pytest.mark.parametrize("length", [0.25, 1, 20.0])
def test_a_ruler_is_as_long_as_it_says(ax, length):
    """In units of the data, in the lower left corner; the limits stay as they are."""
    ax.set(xlim=(-30, 70), ylim=(-10, 90))
    plots.draw_ruler(ax, length)
    (line,) = ax.lines
    (left, low), (right, high) = line.get_xydata()
    assert right - left == pytest.approx(length, rel=1e-12)
    assert low == high == pytest.approx(-5)
    assert left == pytest.approx(-25)
    (words,) = ax.texts
    assert words.get_text() == f"{length:g}"
    assert words.xy == pytest.approx((right, low))
    assert (ax.get_xlim(), ax.get_ylim()) == ((-30, 70), (-10, 90))


def test_a_ruler_of_its_own_length_is_round_and_short(ax):
    for side, expected in ((100, 20), (1000, 200), (7, 1), (0.3, 0.05)):
        ax.set(xlim=(0, side), ylim=(0, side))
        plots.draw_ruler(ax)
        assert float(ax.texts[-1].get_text()) == pytest.approx(expected)


@given(st.floats(5e-324, 1.7e308))
def test_round_lengths(value):
    found = plots.round_length(value)
    assert found <= value
    digit, power = f"{found:.0e}".split("e")
    if found > 1e-322:  # below, numbers have less than a digit
        assert digit in "125"
        assert float(f"{digit}e{power}") == found
        following = {"1": "2", "2": "5", "5": "10"}[digit]
        assert value < float(f"{following}e{power}")


@pytest.mark.parametrize("power", range(-12, 13))
def test_round_lengths_of_round_numbers(power):
    """Regression: 5e-6 gave 2e-6, because 5 times 1e-6 is above it."""
    before = float(f"5e{power - 1}")
    for digit in (1, 2, 5):
        length = float(f"{digit}e{power}")
        assert plots.round_length(length) == length
        assert plots.round_length(np.nextafter(length, math.inf)) == length
        assert plots.round_length(np.nextafter(length, 0)) == before
        before = length


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_what_has_no_round_length(value):
    with pytest.raises(ValueError, match=f"value must be positive and finite, got {value}"):
        plots.round_length(value)


def test_ratios_stand_one_below_the_other_on_a_log_axis(ax):
    plots.draw_ratios(ax, ["a", "b"], INTERVALS)
    plots.draw_ratios(ax, ["a", "b"], INTERVALS, plots.RED, "s", 0.25)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_xscale() == "log"
    marks = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() in ("o", "s")]
    assert sorted(sum(marks, [])) == sorted([[0.5, 0], [0.2, 1], [0.5, 0.25], [0.2, 1.25]])
    low, high = ax.get_ylim()
    assert low > high  # the first name on top


def test_an_axis_for_smoothing_has_a_place_for_zero(ax):
    ax.plot([0, 0.01, 0.04, 0.25, 1], range(5))
    plots.alpha_axis(ax, (0, 0.25, 1))
    places = ax.transData.transform([(a, 0) for a in (0, 0.01, 0.25, 1)])[:, 0]
    share = (places - places[0]) / (places[-1] - places[0])
    np.testing.assert_allclose(share, [0, 0.1, 0.5, 1], atol=1e-9)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "0.25", "1"]
    assert ax.get_xlabel() == "α"


def test_names_of_classes_have_the_colors_of_their_points(ax):
    plots.draw_projection(ax, POINTS, [0, 1, 2, 5, 0], PLANE)
    plots.name_classes(ax, ["two", "zero", "one"])
    assert [words.get_text() for words in ax.texts] == ["two", "zero", "one"]
    for words, drawn in zip(ax.texts, scattered(ax), strict=False):
        assert to_rgb(words.get_color()) == tuple(drawn.get_facecolor()[0][:3])


def test_shares_of_attention_are_written_from_a_tenth_on(ax):
    plots.draw_attention(ax, WEIGHTS, ["a", "b", "c"], ["x", "y"])
    written = {(words.get_position(), words.get_text()) for words in ax.texts}
    assert written == {((0, 0), "70"), ((1, 0), "25"), ((1, 1), "10"), ((2, 1), "90")}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "y"]


def test_a_beam_tree_joins_each_candidate_to_the_one_before_it(ax):
    plots.draw_beam_tree(ax, STEPS, ["zero", "one", "end"])
    assert [words.get_text() for words in ax.texts] == [
        "start",
        *("zero\n-0.10", "one\n-2.00", "end\n-3.00", "end\n-2.10", "one\n-2.50"),
    ]
    joined = [tuple(map(tuple, line.get_xydata().tolist())) for line in ax.lines]
    assert joined[3:] == [((1, -1), (0, -2)), ((0, -1), (1, -2))]  # after "one", after "zero"
    assert [line.get_color() for line in ax.lines][2:4] == [plots.FATES["dropped"][0], plots.GREEN]


def test_a_cell_that_looks_like_html_is_shown_as_it_stands():
    table = plots.table({"token": ["</s>", "<pad>", "a < b"]})
    assert "\\</s>" in table._repr_markdown_() and "\\<pad>" in table._repr_markdown_()
    assert "a < b" in table._repr_markdown_() and "</s>" in repr(table) and "\\" not in repr(table)


def test_columns_of_one_name_are_refused():
    with pytest.raises(ValueError, match="names of columns must differ, got"):
        plots.table_of_rows(("a", "b", "a"), [(1, 2, 3)])
