"""Drawing in the house style. Functions draw on given axes and return them; none calls show or sets global style.

Only `use_house_style` changes matplotlib's settings, and only a notebook calls it, once, in its first cell.
"""

import math
import re

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tabulate import tabulate

from . import theory
from .checks import check_array, check_positive

# Okabe and Ito's colours, told apart also by readers who see few hues; black last, for theory.
BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
)
INK = "#222222"
HARD, SMOOTHED = RED, BLUE  # the two sides of the book keep their colours on every page
CYCLE = (BLUE, RED, GREEN, ORANGE, PINK, SKY)
CLASSES = CYCLE[:3]  # of the three classes in a projection
MARKERS = ("o", "s", "^", "D", "v", "P")

# Large type on a small sheet: a figure 5.6 inches wide is shown 560 pixels wide at most, and about 370 on a phone,
# where 12 points are then still 11 pixels high.
STYLE = {
    "figure.figsize": (5.6, 3.6),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.prop_cycle": plt.cycler(color=CYCLE),
    "axes.titlesize": 13,
    "axes.labelsize": 13,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "text.color": INK,
    "axes.labelcolor": INK,
}


class QuietFigure(Figure):
    """A figure whose text form names its panels, so that stored outputs hold words instead of an object's address."""

    def __repr__(self):
        titles = [ax.get_title() or ax.get_ylabel() or ax.get_xlabel() for ax in self.axes]
        return "[figure: " + " | ".join(title for title in titles if title) + "]"

    __str__ = __repr__


def use_house_style():
    """Set the book's style for all later figures of this session. Notebooks call it; the package never does."""
    sns.set_theme(context="notebook", style="ticks", rc={**STYLE, "axes.spines.top": False, "axes.spines.right": False})


def subplots(nrows=1, ncols=1, height=3.6, width=5.6, **options):
    """`matplotlib.pyplot.subplots` with a `QuietFigure`, `width` × `height` inches."""
    return plt.subplots(nrows, ncols, figsize=(width, height), FigureClass=QuietFigure, **options)


def alpha_colors(alphas):
    """One colour for each smoothing strength: hard targets in their own, smoothed ones from light to dark blue."""
    smoothed = [alpha for alpha in alphas if alpha > 0]
    shades = sns.color_palette("blend:#7FC8F5,#003A63", n_colors=max(len(smoothed), 2))
    return {alpha: HARD if alpha == 0 else shades[smoothed.index(alpha)] for alpha in alphas}


def draw_bars(ax, values, color=SMOOTHED, labels=None, digits=3):
    """Bars of a distribution over classes, each with its value on top."""
    bars = ax.bar(range(len(values)), values, color=color, width=0.7)
    ax.bar_label(bars, fmt=f"%.{digits}g", padding=2, fontsize=12)
    ax.set_xticks(range(len(values)), labels or [str(k) for k in range(len(values))])
    ax.set_ylim(0, 1.12)
    return ax


def draw_band(ax, x, values, color, label, marker=None):
    """Mean over runs (rows of `values`) against x, with a band from the smallest to the largest run."""
    values = np.asarray(values)
    ax.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
    ax.plot(x, values.mean(axis=0), color=color, label=label, marker=marker, markersize=5)
    return ax


def draw_intervals(ax, x, intervals, color=SMOOTHED, label=None):
    """Means with their confidence intervals (`claims.Interval`) as error bars."""
    mean = np.array([i.mean for i in intervals])
    spread = np.array([[i.mean - i.low, i.high - i.mean] for i in intervals]).T
    ax.errorbar(x, mean, yerr=spread, fmt="o", color=color, label=label, capsize=4, markersize=6, linewidth=2)
    return ax


def draw_intervals_across(ax, names, intervals, color=SMOOTHED, marker="o"):
    """One row a name, from the top down: the mean and its confidence interval (`claims.Interval`) along the x axis."""
    mean = np.array([i.mean for i in intervals])
    spread = np.array([[i.mean - i.low, i.high - i.mean] for i in intervals]).T
    ax.errorbar(mean, names, xerr=spread, fmt=marker, color=color, capsize=4, markersize=6, linewidth=2)
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    return ax


def draw_stacked(ax, names, parts):
    """Horizontal bars, one a name, each stacked from `parts` (label → values of all names)."""
    left, looks = np.zeros(len(names)), ((ORANGE, ""), (BLUE, "//"), (GREEN, ".."))
    if len(parts) > len(looks):
        raise ValueError(f"parts must be at most {len(looks)}, got {len(parts)}")
    for (label, values), (color, hatch) in zip(parts.items(), looks, strict=False):
        ax.barh(names, values, left=left, color=color, hatch=hatch, edgecolor="white", label=label)
        left = left + np.asarray(values)
    ax.invert_yaxis()
    return ax


def draw_curves(ax, x, curves, colors=CYCLE, markers=MARKERS):
    """Lines against x, one a label of `curves`, told apart by colour and by marker or (markers=None) dashes."""
    dashes = ("-", "--", "-.", ":")
    for k, (label, values) in enumerate(curves.items()):
        look = {"marker": markers[k], "markersize": 5} if markers else {"linestyle": dashes[k % 4]}
        ax.plot(x, values, color=colors[k], label=label, **look)
    return ax


def log_axis(ax, ticks, labels=None, **options):
    """A logarithmic horizontal axis that shows these ticks and no others."""
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks] if labels is None else labels, **options)
    return ax


def alpha_axis(ax, ticks):
    """A horizontal axis for smoothing strengths, as their square roots: 0 has a place, small ones have room."""
    ax.set_xscale("function", functions=(lambda a: np.sqrt(np.maximum(a, 0)), np.square))
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xlabel("α")
    return ax


def draw_zero(ax, value=0):
    """A thin reference line across the panel."""
    ax.axhline(value, color=INK, linewidth=1)
    return ax


class Table:
    """A printed table: Markdown (with mathematics in headers) on a page, aligned text elsewhere."""

    def __init__(self, columns, digits=3):
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"columns must be of one length, at least 1, got {lengths}")
        self.headers = list(columns)
        self.rows = [[_cell(value, digits) for value in row] for row in zip(*columns.values(), strict=True)]
        self.align = ["right" if _is_number(values[0]) else "left" for values in columns.values()]

    def _render(self, form):
        return tabulate(self.rows, self.headers, tablefmt=form, colalign=self.align, disable_numparse=True)

    def __repr__(self):
        return self._render("simple")

    def _repr_markdown_(self):
        return re.sub(r"<(?=[/a-z])", r"\\<", self._render("pipe"))  # "</s>" is a token, not the end of an HTML tag


def _is_number(value):
    return isinstance(value, (int, float, np.number)) or hasattr(value, "low")


def _cell(value, digits):
    """Whole numbers and words as they are, other numbers with `digits` decimals, intervals as mean [low, high]."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)) or hasattr(value, "low"):
        return f"{value:.{digits}f}".replace("inf", "∞")
    return str(value)


def table(columns, digits=3):
    """A `Table` from a dict of columns (header → list, array or tensor), numbers with `digits` decimals.

    >>> table({"K": [2, 10], "gap": [2.944439, 4.510860]})
      K    gap
    ---  -----
      2  2.944
     10  4.511
    """
    plain = {name: values.tolist() if hasattr(values, "tolist") else list(values) for name, values in columns.items()}
    return Table(plain, digits)


def write_at(ax, words, place, shift=(0, 0), color=INK):
    """Words beside the point `place` of the data, moved by `shift` points, on a white ground."""
    side = {"ha": "right" if shift[0] < 0 else "left" if shift[0] > 0 else "center", "va": "center"}
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    ax.annotate(words, place, xytext=shift, textcoords="offset points", color=color, fontsize=12, bbox=ground, **side)
    return ax


def draw_named(ax, x, values, name, color, at=-1, shift=(6, 0), **options):
    """A line with its name in its own colour beside its point number `at`, moved by `shift` points."""
    ax.plot(x, values, color=color, **options)
    return write_at(ax, name, (x[at], values[at]), shift, color)


def draw_gap_growth(ax, time, gaps, num_classes, color):
    """Gaps of descent with a hard target against time (dots), the exact flow (line) and ln(K τ) (dashed)."""
    fine = np.geomspace(time[0], time[-1], 200)
    draw_named(ax, fine, theory.hard_target_gap(fine, num_classes), f"$K = {num_classes}$", color)
    ax.plot(time, gaps, "o", color=color, markersize=5)
    late = fine[num_classes * fine > 10]
    ax.plot(late, np.log(num_classes * late), "--", color=color, linewidth=1.2)
    return ax


def draw_loss_over_gap(ax, alpha, num_classes, gaps):
    """Loss against the gap for the hard and the smoothed target, with the smoothed optimum and its floor."""
    hard, smoothed = (theory.loss_at_gap(gaps, a, num_classes) for a in (0, alpha))
    best, floor = theory.optimal_gap(alpha, num_classes), theory.loss_floor(alpha, num_classes)
    ax.axhline(floor, color=SMOOTHED, linewidth=1, linestyle=":")
    draw_named(ax, gaps, hard, "hard target", HARD, at=len(gaps) * 5 // 6, shift=(0, 10), linestyle="--")
    draw_named(ax, gaps, smoothed, f"smoothed, α = {alpha:g}", SMOOTHED, at=len(gaps) * 5 // 6, shift=(0, 22))
    ax.plot(best, floor, "o", color=SMOOTHED, markersize=9)
    write_at(ax, f"optimal gap {best:.3f}\nfloor {floor:.3f}", (best, floor), (0, 44))
    ax.set(xlabel="gap (nats)", ylabel="loss (nats)", ylim=(0, np.ceil(np.log(num_classes) + 2)))
    return ax


def draw_target_and_optimum(ax, alpha, num_classes, temperature):
    """Paired bars: the smoothed target, and the softmax of the optimal logits divided by the temperature."""
    gap = theory.optimal_gap(alpha, num_classes)
    softened = theory.alpha_from_gap(gap / temperature, num_classes)
    bars = ((-0.2, SMOOTHED, "", "target", alpha), (0.2, ORANGE, "//", f"optimum at T = {temperature:g}", softened))
    for shift, color, hatch, name, strength in bars:
        p_true, p_other = theory.optimal_probs(strength, num_classes)
        values = [p_true, p_other, (num_classes - 1) * p_other]
        drawn = ax.bar(np.arange(3) + shift, values, 0.4, color=color, hatch=hatch, edgecolor="white", label=name)
        ax.bar_label(drawn, fmt="%.3f", padding=2, fontsize=12)
    ax.set_xticks(range(3), ["the true class", "each other class", "all others"])
    ax.set(ylabel="probability", ylim=(0, 1.08))
    ax.legend(loc="upper right")
    return ax


def draw_histogram(ax, values, bins, color, name=None, mark=None):
    """Outline and light filling of a histogram, with its name beside its peak and a dashed line at `mark`.

    The heights are a density of all values, also of those outside the bins.
    """
    counts, edges = np.histogram(values, bins)
    height = counts / (np.size(values) * np.diff(edges))
    ax.stairs(height, edges, color=color, fill=True, alpha=0.25)
    ax.stairs(height, edges, color=color, linewidth=2)
    place = edges[height.argmax()], height.max()
    if name:
        place = max(place[0], place[0] if mark is None else mark), place[1]  # right of the dashed line
        ax.annotate(name, place, xytext=(9, 9), textcoords="offset points", fontsize=12, va="center")
    if mark is not None:
        ax.vlines(mark, 0, 1.12 * height.max(), color=INK, linestyle="--", linewidth=1.3)
    return ax


def draw_reliability(ax, bins, color=SMOOTHED):
    """The reliability diagram of `calibration.Bins`: in each bin, how often the network is right.

    A point stands at mean confidence and accuracy of a bin, its band is the 95 % interval of the accuracy
    (Clopper–Pearson), and the dashed diagonal is what a calibrated network would show. Empty bins show nothing.
    """
    low, high = bins.accuracy_interval()
    seen = bins.counts > 0
    left, width = bins.edges[:-1][seen], np.diff(bins.edges)[seen]
    ax.bar(left, (high - low)[seen], width, low[seen], align="edge", color=color, alpha=0.22, linewidth=0)
    ax.plot([0, 1], [0, 1], "--", color=INK, linewidth=1.2)
    look = {"markersize": 5, "linewidth": 1.2, "clip_on": False}  # whole points at accuracy 0 and 1
    ax.plot(bins.confidence[seen], bins.accuracy[seen], "o-", color=color, **look)
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    return ax


def draw_counts(ax, bins, color=SMOOTHED):
    """How many examples are in each of `calibration.Bins`, as bars along the confidence."""
    options = {"align": "edge", "color": color, "alpha": 0.6, "edgecolor": color, "linewidth": 0.8}
    ax.bar(bins.edges[:-1], bins.counts, np.diff(bins.edges), **options)
    ax.set(xlim=(0, 1), ylim=(0, 1.1 * bins.counts.max()), yticks=[0, bins.counts.max()])
    ax.set(xlabel="confidence", ylabel="examples")
    return ax


def draw_gap_histograms(ax, gaps, num_classes, bins, alphas=None):
    """Histograms of the gaps of several strengths (alpha → values), with each optimal gap as a dashed line.

    alphas : all strengths of the figure, so that each has one colour in all its panels (default: those of `gaps`)
    """
    colors = alpha_colors(list(alphas or gaps))
    for alpha, values in gaps.items():
        about = (f"α = {alpha:g}", theory.optimal_gap(alpha, num_classes)) if alpha else (None, None)
        draw_histogram(ax, values, bins, colors[alpha], *about)
    side = {"ha": "right", "va": "center", "fontsize": 12}
    ax.annotate("hard targets →", (0.99, 0.45), xycoords="axes fraction", color=HARD, **side)
    ax.set(xlim=bins[[0, -1]], ylim=(0, 1.25 * ax.dataLim.y1), yticks=[], ylabel="density")
    return ax


def draw_convergence(ax, distance, num_classes):
    """Distance to the target against steps (η = 1), and what theory says (dashed), for several smoothing strengths.

    distance: alpha → values after 0, 1, 2 … steps
    """
    for alpha, color in alpha_colors(list(distance)).items():
        steps = np.flatnonzero(distance[alpha] > 1e-11)  # below lies rounding
        values = distance[alpha][steps]
        ax.plot(steps, values, color=color, linewidth=2.5)
        middle, factor = len(steps) // 2, 1 - theory.hessian_eigenvalues(alpha, num_classes)[0]
        crawl, line = (num_classes - 1) / (num_classes * steps[1:]), values[middle] * factor ** (steps[1:] - middle)
        ax.plot(steps[1:], line if alpha else crawl, "--", color=INK, linewidth=1.2)
        named = len(steps) * 4 // 5
        write_at(ax, f"α = {alpha:g}" if alpha else "hard target", (steps[named], values[named]), (9, 10))
    return ax


def draw_classes(ax, points, labels, classes, size=14):
    """Points (N, 2) of three classes, one colour and marker a class, in their order; others are not drawn.

    Both axes have one scale, and no ticks: the coordinates mean something only relative to each other.
    """
    for k, label in enumerate(classes):
        mine = np.asarray(points)[np.asarray(labels) == label]
        look = {"color": CLASSES[k], "marker": MARKERS[k], "s": size, "alpha": 0.7, "linewidths": 0}
        ax.scatter(*mine.T, **look, zorder=2)
    ax.set(aspect="equal", adjustable="datalim", xticks=[], yticks=[])
    return ax


def draw_projection(ax, points, labels, plane, size=14, reach=None):
    """Examples projected on a `geometry.Plane`, as `draw_classes` draws them, in the order of the plane's classes.

    points (N, 2), labels (N,). Crosses are the templates, and the thin lines run from their centroid through them, a
    thousand times as far as `reach` (default: the largest coordinate of points and templates). `set_extent` gives one
    or more panels one scale.
    """
    reach = max(np.abs(part).max(initial=0) for part in (np.asarray(points), plane.corners)) if reach is None else reach
    draw_classes(ax, points, labels, plane.classes, size)
    ax.set_adjustable("box")
    ax.scatter(*plane.corners.T, color=INK, marker="x", s=26, linewidths=1.6, zorder=3)
    for corner in 1e3 * reach * plane.corners / np.abs(plane.corners).max(axis=1, keepdims=True):
        # An artist, not a plotted line: the limits of a panel take no notice of it.
        ax.add_artist(Line2D([0, corner[0]], [0, corner[1]], color=INK, linewidth=0.6, zorder=1))
    return ax


def set_extent(axes, points, plane, below=0.0):
    """Show the same square in all of the axes: around all of the points (any shape (…, 2)) and the templates.

    Returns its side. Below it there is a strip for a ruler, `below` times as high as the square.
    """
    everything = np.concatenate([np.reshape(points, (-1, 2)), plane.corners])
    low, high = everything.min(axis=0), everything.max(axis=0)
    half, (x, y) = 0.54 * (high - low).max(), (low + high) / 2
    for ax in axes:
        ax.set(xlim=(x - half, x + half), ylim=(y - (1 + 2 * below) * half, y + half))
    return 2 * half


def name_classes(ax, names):
    """The names of the three classes in their colours, in the corners of the panel that their templates point to."""
    for k, name in enumerate(names):
        place = {"x": (0.03, 0.97, 0.97)[k], "y": (0.13, 0.05, 0.95)[k], "ha": ("left", "right", "right")[k]}
        ax.text(s=name, va="center", color=CLASSES[k], transform=ax.transAxes, fontsize=12, fontweight="bold", **place)
    return ax


def draw_ratios(ax, names, ratios, color=SMOOTHED, marker="o", shift=0.0):
    """Ratios (`claims.Interval`), one row a name from the top down, moved down by `shift` rows; a line stands at 1."""
    draw_intervals_across(ax, np.arange(len(names)) + shift, ratios, color, marker)
    ax.set_yticks(range(len(names)), names)
    ax.axvline(1, color=INK, linewidth=1, zorder=0)
    return log_axis(ax, (0.2, 0.5, 1, 2))


def round_length(value):
    """1, 2 or 5 times a power of ten, the largest that is not above a positive `value`.

    >>> [round_length(value) for value in (0.07, 4.9, 12)]
    [0.05, 2.0, 10.0]
    """
    power = math.floor(math.log10(check_positive(value, "value")))
    # As text, because 5 * 1e-6 is not 5e-6; with the powers beside it, because the logarithm is rounded.
    lengths = [float(f"{digit}e{power + more}") for more in (-1, 0, 1) for digit in (1, 2, 5)]
    return max(length for length in lengths if length <= value)


def draw_ruler(ax, length=None):
    """A horizontal bar in the lower left corner with its length in the data's units beside it.

    Without a length, a round number below a quarter of the panel's width.
    """
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    length = round_length((right - left) / 4) if length is None else length
    x, y = left + 0.05 * (right - left), low + 0.05 * (high - low)
    ax.plot([x, x + length], [y, y], color=INK, linewidth=2.5, solid_capstyle="butt")
    ax.annotate(f"{length:g}", (x + length, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=11)
    return ax


def draw_attention(ax, weights, looked_at, looking):
    """How much each token (row of `weights`, named in `looking`) looks at each other (column, named in `looked_at`).

    Darker is more; shares of 10 % and more are written in.
    """
    ax.imshow(weights, cmap="Greys", vmin=0, vmax=1.15, aspect="auto")  # the darkest is not black: words stay legible
    ax.set_xticks(range(len(looked_at)), looked_at, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(looking)), looking)
    for row, column in np.argwhere(np.asarray(weights) >= 0.1):
        share = weights[row][column]
        ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color="white" if share > 0.5 else INK)
    ax.tick_params(length=0)
    return ax


FATES = {"kept": (BLUE, "-"), "finished": (GREEN, "-"), "dropped": ("#777777", ":")}  # colour and line of a candidate


def draw_beam_tree(ax, steps, names):
    """What a beam search has looked at, from top to bottom: each candidate with its token and the ln p of all up to it.

    steps : for each step a list of `decoding.Candidate`, best first. names : of the tokens, by index.
    """
    places = {(): (0.0, 0.0)}
    write_at(ax, "start", (0, 0))
    for y, step in enumerate(steps, 1):
        for x, candidate in enumerate(step):
            color, line = FATES[candidate.fate]
            ax.plot(*zip(places[candidate.before], (x, -y), strict=True), line, color=color, linewidth=1.3, zorder=1)
            write_at(ax, f"{names[candidate.token]}\n{candidate.log_prob:.2f}", (x, -y), color=color)
            places[*candidate.before, candidate.token] = (x, -y)
    ax.set(xlim=(-0.5, max(map(len, steps)) - 0.4), ylim=(-len(steps) - 0.5, 0.4))
    ax.set_axis_off()
    return ax


def table_of_rows(names, rows, digits=3):
    """A `Table` from the names of its columns and its rows. Raises ValueError for a name that comes twice."""
    if len(set(names)) < len(names):
        raise ValueError(f"names of columns must differ, got {list(names)}")
    return table(dict(zip(names, zip(*rows, strict=True), strict=True)), digits)


def in_powers(values, below=0.0):
    """Positive numbers as text with two digits and a power of ten; "< …" where one is smaller than `below`.

    What lies below is rounding, and differs from machine to machine. Raises ValueError for NaN or negative values.

    >>> in_powers([0.02, 3e-14], below=1e-11)
    ['2.0e-02', '< 1e-11']
    """
    return [f"{value:.1e}" if value >= below else f"< {below:.0e}" for value in check_array(values, "values", 0)]
