"""The paper's projection for a network of one's own: read it from an .npz file, measure and draw it.

`lsbook project` is these steps in a row: `read`, `find_classes`, `view`, `draw`, `save` and `table`.
"""

import io
import math
import textwrap
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import files, geometry, plots

# What a file holds: name → (shape, kinds of numpy's dtypes, what these are in words).
ARRAYS = {
    "features": ("ND", "f", "floating point"),
    "labels": ("N", "iu", "integers"),
    "weight": ("KD", "f", "floating point"),
    "bias": ("K", "f", "floating point"),
    "class_names": ("K", "U", "strings"),
}
OPTIONAL = ("bias", "class_names")
LARGEST = 1e100  # so that squares stay finite
# What savefig would write of the time of writing, by format.
DATES = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
# The lines of the table: name in `measures` → words.
MEASURES = {
    "examples": "examples drawn",
    "accuracy": "accuracy among all classes",
    "tightness_in_plane": "spread / distance of class means, in the plane",
    "tightness": "spread / distance of class means, all features",
    "share_in_plane": "share of the within-class variance in the plane",
    "regularity": "shortest / longest side between class means",
    "feature_norm": "mean norm of features",
    "template_norm": "mean norm of templates (weights)",
    "disagreement": "nearest class mean and network disagree",
}


class Network(NamedTuple):
    """What a file holds: features (N, D), labels (N,), weight (K, D), and perhaps bias (K,) and class_names (K,)."""

    features: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None = None
    class_names: np.ndarray | None = None

    def name(self, label):
        """The name of a class, or "class 3" where the classes have none."""
        return f"class {label}" if self.class_names is None else str(self.class_names[label])


class View(NamedTuple):
    """A network as three of its classes show it: only their examples, their plane, and the examples' place in it."""

    network: Network
    plane: geometry.Plane
    points: np.ndarray

    def names(self):
        """The names of the three classes."""
        return [self.network.name(label) for label in self.plane.classes]


# --- reading


def read(path):
    """The `Network` in an .npz file, checked. Nothing in the file is executed: pickled objects are refused.

    Raises OSError if it cannot be opened, and ValueError, which starts with the file's name, for anything but the
    arrays described at `ARRAYS`, finite and with labels 0 … K − 1.
    """
    with files.about(path):
        return Network(**_checked(_arrays(path)))


def _arrays(path):
    """name → array, of those in `ARRAYS` that the file holds."""
    with open(path, "rb") as file:
        archive = files.open_npz(file)
        absent = [name for name in ARRAYS if name not in archive.files and name not in OPTIONAL]
        if absent:
            there = files.holds(archive.files)
            raise ValueError(f"the file must hold the array {absent[0]!r}; it holds {there}")
        return {name: files.npz_array(archive, name, ARRAYS[name][2]) for name in ARRAYS if name in archive.files}


def _checked(arrays):
    """The arrays, if types, shapes and values fit each other."""
    sizes = {}
    for name, array in arrays.items():
        shape, kinds, words = ARRAYS[name]
        if array.dtype.kind not in kinds:
            raise ValueError(f"{name} must be {words}, got dtype {array.dtype}")
        _check_shape(name, array.shape, shape, sizes)
        if kinds == "f" and not float(np.abs(array).max()) < LARGEST:  # false for NaN
            wrong = int((~(np.abs(array.astype(np.float64)) < LARGEST)).sum())
            raise ValueError(f"{name} must be finite, got {wrong} of {array.size} entries NaN, infinite or above 1e100")
    if sizes["K"] < 3:
        raise ValueError(f"the network must have at least 3 classes, got weight of shape {arrays['weight'].shape}")
    labels, last = arrays["labels"], sizes["K"] - 1
    if labels.min() < 0 or labels.max() > last:
        raise ValueError(
            f"labels must lie in [0, {last}], for a row of weight each; got {labels.min()} … {labels.max()}"
        )
    return arrays


def _check_shape(name, given, letters, sizes):
    """Compare a shape with letters such as "KD"; `sizes` (letter → size) grows by those that are new."""
    wanted = f"({', '.join(str(sizes.get(letter, letter)) for letter in letters)}{',' * (len(letters) == 1)})"
    fits = len(given) == len(letters) and all(sizes.get(x, n) == n for x, n in zip(letters, given, strict=True))
    if not fits or 0 in given:
        known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items())
        more = f" (the arrays before it have {known})" if known else ""
        raise ValueError(f"{name} must have shape {wanted}, none of it 0{more}, got {given}")
    sizes.update(zip(letters, given, strict=True))


def find_classes(network, wanted):
    """The three class indices of `wanted`, texts that are names of classes or, where no name fits, numbers.

    Raises ValueError, with the nearest name, for an unknown one, for one that several classes have, and unless there
    are three different ones.
    """
    classes = tuple(_find_class(network, text) for text in wanted)
    if len(classes) != 3 or len(set(classes)) != 3:
        raise ValueError(f"--classes must be three different classes, got {', '.join(wanted)}")
    return classes


def _find_class(network, text):
    names = [] if network.class_names is None else network.class_names.tolist()
    found = [label for label, name in enumerate(names) if name == text]
    if len(found) > 1:
        raise ValueError(f"--classes {text!r} is the name of classes {', '.join(map(str, found))}: give a number")
    if not found and text.lstrip("-").isdecimal():
        found = [int(text)]
        if not 0 <= found[0] < len(network.weight):
            raise ValueError(f"--classes must be names or lie in [0, {len(network.weight) - 1}], got {text}")
    if not found and names:
        near = get_close_matches(text, names, n=1, cutoff=0)[0]
        raise ValueError(f"--classes: no class has the name {text!r}; did you mean {near!r}?")
    if not found:
        last = len(network.weight) - 1
        raise ValueError(f"--classes must be numbers 0 to {last}, since there are no class_names, got {text!r}")
    return found[0]


def read_view(path, wanted):
    """The `View` of three classes, named in `wanted`, of the network in a file. Errors start with the file's name."""
    network = read(path)
    with files.about(path):
        return view(network, find_classes(network, wanted))


# --- measuring


def view(network, classes):
    """The `View` of a `Network` on the plane through the templates of three classes (a, b, c).

    Raises ValueError for a class without an example, and as `geometry.template_plane` does.
    """
    plane = geometry.template_plane(network.weight, network.bias, classes)
    for label in plane.classes:
        if not (network.labels == label).any():
            number = f" ({label})" if network.class_names is not None else ""
            raise ValueError(
                f"labels must hold each of the three classes, got no example of {network.name(label)}{number}"
            )
    drawn = np.isin(network.labels, plane.classes)
    network = network._replace(features=network.features[drawn].astype(np.float64), labels=network.labels[drawn])
    return View(network, plane, geometry.project(network.features, plane))


def measures(view):
    """What a `View` shows, in numbers: a dict with the keys of `MEASURES`.

    All of them are over the examples of the three classes. `tightness_in_plane` and `tightness` are
    `geometry.tightness` of the points and of all features. `share_in_plane` is the share of the within-class variance
    mean ‖f − μ_y‖² that lies in the plane: mean ‖p − mean of its class‖² of the points p over it, in [0, 1], NaN where
    no example differs from its class mean. `disagreement` is NC4: the share of examples for which, among the three
    classes, the nearest class mean is not the one with the largest logit. `accuracy` is among all K classes.

    Raises ValueError where the three class means are one point.
    """
    (features, labels, weight, bias, _), plane, points = view
    means = geometry.class_means(features, labels)[1]
    if not geometry.mean_distance(means):
        raise ValueError("the three class means are one point: do the features differ between classes?")
    spread, in_plane = (geometry.within_class_spread(values, labels) for values in (features, points))
    logits = features @ weight.T.astype(np.float64) + (0 if bias is None else bias)
    ordered = sorted(plane.classes)
    nearest = geometry.squared_distances(features, means).argmin(axis=1)
    return {
        "examples": len(labels),
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "tightness_in_plane": _tightness_in_plane(points, labels),
        "tightness": geometry.tightness(features, labels),
        "share_in_plane": (in_plane / spread) ** 2 if spread else math.nan,
        "regularity": geometry.regularity(means),
        "feature_norm": float(np.linalg.norm(features, axis=1).mean()),
        "template_norm": float(np.linalg.norm(weight[ordered].astype(np.float64), axis=1).mean()),
        "disagreement": float((nearest != logits[:, ordered].argmax(axis=1)).mean()),
    }


def _tightness_in_plane(points, labels):
    """`geometry.tightness`, or NaN where all class means fall on one point of the plane."""
    try:
        return geometry.tightness(points, labels)
    except ValueError:
        return math.nan


def table(views):
    """A `plots.Table` of the `measures` of views (title → `View`): a line a measure, a column a view.

    Errors start with the title.
    """
    columns = {"": list(MEASURES.values())}
    for title, shown in views.items():
        with files.about(title):
            values = measures(shown)
        columns[title] = ["undefined" if math.isnan(values[name]) else values[name] for name in MEASURES]
    return plots.table(columns)


# --- drawing


def titles(paths):
    """A title for each path: the file's name without .npz, or the whole path where two files have one name.

    >>> titles(["a/hard.npz", "a/smoothed.npz"]), titles(["a/net.npz", "b/net.npz"])
    (['hard', 'smoothed'], ['a/net.npz', 'b/net.npz'])
    """
    stems, paths = [Path(path).stem for path in paths], [str(path) for path in paths]
    if len(set(paths)) != len(paths):
        raise ValueError(f"each file must be given once, got {', '.join(paths)}")
    return stems if len(set(stems)) == len(stems) else paths


def draw(views, own_scale=False, title=None):
    """A matplotlib figure of views (title → `View`), a panel each, with legend and rulers.

    All panels show the same square, or with `own_scale` each its own. No global style or state of matplotlib is used
    or changed. Raises ValueError if the classes have other names in one view than in another.
    """
    names = _common_names(views)
    columns = min(len(views), 4)
    rows = math.ceil(len(views) / columns)
    side = 5.0 if len(views) == 1 else 3.4
    with _own_style():
        figure = Figure(figsize=(columns * side, rows * (1.14 * side + 0.1) + 0.7), dpi=150, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, (name, shown) in zip(axes, views.items(), strict=False):
            plots.draw_projection(ax, shown.points, shown.network.labels, shown.plane, size=22)
            ax.set_title(textwrap.fill(name, int(9 * side)))
        for ax in axes[len(views) :]:
            ax.set_axis_off()
        _scale(axes, list(views.values()), own_scale)
        _add_legend(figure, names, columns * side)
        if title:
            figure.suptitle(textwrap.fill(title, int(8 * columns * side)), fontsize=14)
    return figure


def _own_style():
    """The book's style for a block, whatever the reader's own; "$" in names is a dollar, and SVG has fixed ids."""
    fixed = {"text.parse_math": False, "svg.hashsalt": "lsbook", "font.family": ["DejaVu Sans"]}
    return matplotlib.rc_context(plots.STYLE | fixed)


def _common_names(views):
    """The names of the three classes, the same in all views; one without names takes the others'."""
    named = {title: shown.names() for title, shown in views.items() if shown.network.class_names is not None}
    if not named:
        named = {title: shown.names() for title, shown in views.items()}
    first = next(iter(named))
    for title, names in named.items():
        if names != named[first]:
            raise ValueError(f"--classes are {', '.join(named[first])} in {first}, but {', '.join(names)} in {title}")
    return named[first]


def _scale(axes, views, own_scale):
    """Show a square around all points, and below it a strip with a ruler, at most a quarter of the width long."""
    parts = [np.concatenate([shown.points, shown.plane.corners]) for shown in views]
    for ax, part in zip(axes, parts, strict=False):
        seen = part if own_scale else np.concatenate(parts)
        low, high = seen.min(axis=0), seen.max(axis=0)
        half, (x, y) = 0.54 * (high - low).max(), (low + high) / 2
        ax.set(xlim=(x - half, x + half), ylim=(y - 1.2 * half, y + half), adjustable="box")
        plots.draw_ruler(ax, round_length(half / 2))


def round_length(longest):
    """The longest of … 0.1, 0.2, 0.5, 1, 2, 5, 10 … that is not above a positive number.

    >>> round_length(3.9), round_length(0.05), round_length(70)
    (2.0, 0.05, 50.0)
    """
    power = math.floor(math.log10(longest))
    lengths = [float(f"{digit}e{power + more}") for more in (-1, 0, 1) for digit in (1, 2, 5)]
    return max(length for length in lengths if length <= longest)


def _add_legend(figure, names, width):
    """Below the panels, where it covers no point, in as many columns as fit `width` inches."""
    entries = [name if len(name) <= 24 else name[:23] + "…" for name in names] + ["template"]
    looks = [{"color": color, "marker": mark} for color, mark in zip(plots.CLASSES, plots.MARKERS, strict=False)]
    looks.append({"color": plots.INK, "marker": "x", "markeredgewidth": 1.6})
    handles = [Line2D([], [], linestyle="", markersize=7, **look) for look in looks]
    longest = 0.1 * max(map(len, entries)) + 0.55
    columns = next((n for n in (4, 2) if n * longest <= width), 1)
    figure.legend(handles, entries, loc="outside lower center", ncols=columns, handletextpad=0.2)


def file_format(path):
    """The format that a figure's name asks for: png, svg or pdf. ValueError for another."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in DATES:
        known = ", ".join(f".{name}" for name in DATES)
        raise ValueError(f"--out must end in one of {known}, got {str(path)!r}")
    return suffix


def save(figure, path):
    """Write a figure of `draw` in the format of the path's ending, whole or not at all, the same bytes every time."""
    form, buffer = file_format(path), io.BytesIO()
    with _own_style():
        figure.savefig(buffer, format=form, dpi=figure.dpi, metadata=DATES[form])
    files.write(path, buffer.getvalue())
