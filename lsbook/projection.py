"""The paper's projection for a network of one's own: read it from an .npz file, measure and draw it.

`lsbook project` is these steps in a row: `read`, `find_classes`, `view`, `table`, `draw` and `save`. Arrays that are
in no file become a `Network` by `network` instead of `read`.
"""

import io
import math
import numbers
import textwrap
import unicodedata
import warnings
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import files, geometry, plots
from .checks import as_numpy

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
FONT = "DejaVu Sans"  # which matplotlib brings along
UNPRINTED = ("Cc", "Cs", "Zl", "Zp")  # Unicode's controls, halves of characters, ends of lines
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
NORMS = ("feature_norm", "template_norm")


class Network(NamedTuple):
    """What a file holds: features (N, D), labels (N,), weight (K, D), and perhaps bias (K,) and class_names (K,).

    `read` and `network` make one, and check it; called by its name it checks nothing.
    """

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


def network(features, labels, weight, bias=None, class_names=None):
    """The `Network` of arrays, tensors or lists, checked: what `ARRAYS` says of a file holds for them too.

    features (N, D), labels (N,), weight (K, D), bias (K,), class_names (K,). Raises ValueError, naming the argument.
    """
    given = (features, labels, weight, bias, class_names)
    named = dict(zip(ARRAYS, given, strict=True))
    left_out = [name for name in OPTIONAL if named[name] is None]
    return Network(**_checked({name: _plain(named[name], name) for name in named if name not in left_out}))


def _plain(values, name):
    """Values as an array; lists of uneven length are an error."""
    try:
        return as_numpy(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of {ARRAYS[name][2]}, got {values!r:.80}") from error


def read(path):
    """The `Network` in an .npz file, checked. Nothing in the file is executed: pickled objects are refused.

    Raises OSError if it cannot be opened, and ValueError, which starts with the file's name, for anything but the
    arrays described at `ARRAYS`, finite and with labels 0 … K − 1.
    """
    with files.about(path):
        return network(**_arrays(path))


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
    _check_names(arrays.get("class_names", ()))
    return arrays


def _check_names(names):
    """Raise ValueError for a name that could not be read in a figure: an empty one, or one with control characters."""
    for label, name in enumerate(map(str, names)):
        if not name.strip() or any(unicodedata.category(letter) in UNPRINTED for letter in name):
            raise ValueError(f"class_names must be words without control characters, got {name!a} for class {label}")


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
    """The three class indices of `wanted`: numbers, or texts that are names of classes or, where no name fits, numbers.

    Raises ValueError, with the nearest name, for an unknown one, for one that several classes have, and unless there
    are three different ones.
    """
    classes = tuple(_find_class(network, one) for one in wanted)
    if len(classes) != 3 or len(set(classes)) != 3:
        raise ValueError(f"--classes must be three different classes, got {', '.join(map(str, wanted))}")
    return classes


def _find_class(network, wanted):
    """The class of one name or number."""
    text, last = str(wanted), len(network.weight) - 1
    names = [] if network.class_names is None else list(map(str, network.class_names))
    found = [label for label, name in enumerate(names) if name == text and isinstance(wanted, str)]
    if len(found) > 1:
        raise ValueError(f"--classes {text!r} is the name of classes {', '.join(map(str, found))}: give a number")
    if found:
        return found[0]
    if isinstance(wanted, numbers.Integral) or text.removeprefix("-").isdecimal():
        if not 0 <= int(wanted) <= last:
            raise ValueError(f"--classes must be names or lie in [0, {last}], got {text}")
        return int(wanted)
    if names:
        near = get_close_matches(text, names, n=1, cutoff=0)[0]
        raise ValueError(f"--classes: no class has the name {text!r}; did you mean {near!r}?")
    raise ValueError(f"--classes must be numbers 0 to {last}, since there are no class_names, got {text!r}")


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
    plane = _plane(network, classes)
    for label in plane.classes:
        if not (network.labels == label).any():
            number = f" ({label})" if network.class_names is not None else ""
            raise ValueError(
                f"labels must hold each of the three classes, got no example of {network.name(label)}{number}"
            )
    drawn = np.isin(network.labels, plane.classes)
    network = network._replace(features=network.features[drawn].astype(np.float64), labels=network.labels[drawn])
    return View(network, plane, geometry.project(network.features, plane))


def _plane(network, classes):
    """`geometry.template_plane`, whose errors know classes by number only; here they say the names as well."""
    try:
        return geometry.template_plane(network.weight, network.bias, classes)
    except ValueError as error:
        if network.class_names is None or "they span no plane" not in str(error):
            raise
        named = ", ".join(f"{label} is {network.name(label)}" for label in classes)
        raise ValueError(f"{error} ({named})") from error


def measures(view):
    """What a `View` shows, in numbers: a dict with the keys of `MEASURES`.

    All of them are over the examples of the three classes. `tightness_in_plane` and `tightness` are
    `geometry.tightness` of the points and of all features. `share_in_plane` is the share of the within-class variance
    mean ‖f − μ_y‖² that lies along the plane's directions, of which the biases' part is left out: 1 if nothing is
    hidden, about 2/D if the features vary alike in all directions, NaN where no example differs from its class mean by
    more than rounding. `disagreement` is NC4: the share of examples for which, among the three
    classes, the nearest class mean is not the one with the largest logit. `accuracy` is among all K classes.

    Raises ValueError where the three class means are one point.
    """
    (features, labels, weight, bias, _), plane, points = view
    means = geometry.class_means(features, labels)[1]
    if _one_point(means, means):
        raise ValueError("the three class means are one point: do the features differ between classes?")
    logits = features @ weight.T.astype(np.float64) + (0 if bias is None else bias)
    ordered = sorted(plane.classes)
    nearest = geometry.squared_distances(features, means).argmin(axis=1)
    return {
        "examples": len(labels),
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "tightness_in_plane": _tightness_in_plane(points, labels, means),
        "tightness": geometry.tightness(features, labels),
        "share_in_plane": _share_in_plane(features, labels, plane),
        "regularity": geometry.regularity(means),
        "feature_norm": float(np.linalg.norm(features, axis=1).mean()),
        "template_norm": float(np.linalg.norm(weight[ordered].astype(np.float64), axis=1).mean()),
        "disagreement": float((nearest != logits[:, ordered].argmax(axis=1)).mean()),
    }


def _one_point(points, features):
    """Whether points differ by no more than rounding, theirs or that of the features that they are made of."""
    size = max(np.linalg.norm(points), np.linalg.norm(features))
    return geometry.mean_distance(points) <= 2 * geometry.ROUNDING * size


def _tightness_in_plane(points, labels, means):
    """`geometry.tightness`, or NaN where all class means fall on one point of the plane."""
    if _one_point(geometry.class_means(points, labels)[1], means):
        return math.nan
    return geometry.tightness(points, labels)


def _share_in_plane(features, labels, plane):
    """Share of the variance of features less their class means along the plane's directions, or NaN without any."""
    if geometry.within_class_spread(features, labels) <= geometry.ROUNDING * np.abs(features).max():
        return math.nan
    classes, means = geometry.class_means(features, labels)
    within = features - means[np.searchsorted(classes, labels)]
    # With biases the basis has a column more; what is left of its rows is orthonormal no longer.
    _, sizes, axes = np.linalg.svd(plane.basis[:, : features.shape[1]], full_matrices=False)
    along = within @ axes[sizes > geometry.FLATTEST].T
    return float(min(1.0, (along**2).sum() / (within**2).sum()))


def table(views):
    """A `plots.Table` of the `measures` of views (title → `View`): a line a measure, a column a view.

    Shares and ratios have three decimals, norms four digits. Errors start with the title.
    """
    _check_views(views)
    columns = {"": list(MEASURES.values())}
    for title, shown in views.items():
        with files.about(title):
            values = measures(shown)
        columns[title] = [_entry(name, values[name]) for name in MEASURES]
    return plots.table(columns)


def _check_views(views):
    if not views:
        raise ValueError("views must hold one view (title → View) or more, got none")


def _entry(name, value):
    """A number of the table; norms, which may be of any size, as text."""
    if math.isnan(value):
        return "undefined"
    return f"{value:#.4g}" if name in NORMS else value


# --- drawing


def titles(paths):
    """A title for each path: the file's name without .npz, or the whole path where two files have one name.

    >>> titles(["a/hard.npz", "a/smoothed.npz"]), titles(["a/net.npz", "b/net.npz"])
    (['hard', 'smoothed'], ['a/net.npz', 'b/net.npz'])
    """
    stems, paths = [Path(path).stem for path in paths], [str(path) for path in paths]
    if len({Path(path).resolve() for path in paths}) != len(paths):
        raise ValueError(f"each file must be given once, got {', '.join(paths)}")
    return stems if len(set(stems)) == len(stems) else paths


def draw(views, own_scale=False, title=None):
    """A matplotlib figure of views (title → `View`), a panel each, with legend and rulers.

    All panels show the same square, or with `own_scale` each its own. No global style or state of matplotlib is used
    or changed. Raises ValueError if the classes have other names in one view than in another. Warns of characters that
    the figure's font lacks.
    """
    _check_views(views)
    names = _common_names(views)
    columns = min(len(views), 4)
    rows = math.ceil(len(views) / columns)
    side = 5.0 if len(views) == 1 else 3.4
    with _own_style():
        figure = Figure(figsize=(columns * side, rows * (1.14 * side + 0.1) + 0.7), dpi=150, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        _draw_panels(axes, views, own_scale, width=int(9 * side))
        _add_legend(figure, names, columns * side)
        if title:
            figure.suptitle(textwrap.fill(title, int(8 * columns * side)), fontsize=14)
        _settle(figure)
    _warn_of_lacking("".join([*views, *names, title or ""]))
    return figure


@contextmanager
def _own_style():
    """The book's style for a block, whatever the reader's own; "$" in names is a dollar, and SVG has fixed ids."""
    fixed = {"text.parse_math": False, "svg.hashsalt": "lsbook", "font.family": [FONT]}
    with matplotlib.rc_context(plots.STYLE | fixed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # said once, and clearly, by `_warn_of_lacking`
        yield


def _settle(figure):
    """Lay the figure out for good: panels of a fixed shape take several passes, and each drawing would be one more."""
    for _ in range(3):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _warn_of_lacking(words):
    """Warn, in one line, of characters that the figure's font does not have."""
    font = font_manager.get_font(font_manager.findfont(FONT)).get_charmap()
    lacking = "".join(dict.fromkeys(letter for letter in words if ord(letter) not in font and not letter.isspace()))
    if lacking:
        more = f" and {len(lacking) - 20} more" if len(lacking) > 20 else ""
        words = f"the figure's font, {FONT}, lacks {lacking[:20]}{more}: they are drawn as boxes"
        warnings.warn(words, stacklevel=3)


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


def _draw_panels(axes, views, own_scale, width):
    """A panel a view, all or each of them showing a square around its points, and below it a strip with a ruler."""
    for ax, (name, shown) in zip(axes, views.items(), strict=False):
        seen = [shown] if own_scale else views.values()
        places = np.concatenate([part for one in seen for part in (one.points, one.plane.corners)])
        reach = np.abs(places).max()
        plots.draw_projection(ax, shown.points, shown.network.labels, shown.plane, size=22, reach=reach)
        plots.set_extent([ax], places, shown.plane, below=0.1)
        plots.draw_ruler(ax).set_title(textwrap.fill(name, width))
    for ax in axes[len(views) :]:
        ax.set_axis_off()


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


def check_target(path):
    """Raise ValueError unless a figure's name asks for a known format, FileNotFoundError unless its folder is there."""
    file_format(path)
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"--out: cannot write {path}: there is no folder {Path(path).parent}")


def save(figure, path):
    """Write a figure of `draw` in the format of the path's ending, whole or not at all, the same bytes every time.

    Raises OSError if it cannot be written; folders are not made.
    """
    check_target(path)
    form, buffer = file_format(path), io.BytesIO()
    with _own_style():
        figure.savefig(buffer, format=form, dpi=figure.dpi, metadata=DATES[form])
    try:
        files.write(path, buffer.getvalue())
    except OSError as error:  # which names a hidden file beside it
        raise OSError(f"--out: cannot write {path}: {error.strerror or error}") from error
