"""The geometry of the penultimate layer: pure functions of features (N, D), labels (N,) and templates (K, D), (K,).

Template k is v_k = (w_k, b_k), row k of the last layer's weights with its bias appended; an example is x = (f, 1), its
features with a 1 appended. Then its logit is z_k = x · v_k, and ‖x − v_k‖² = ‖x‖² − 2 z_k + ‖v_k‖². Without bias
(`bias` None), v_k = w_k and x = f. Everything is computed in float64, and numpy arrays and tensors are both welcome.

All raise TypeError or ValueError, naming the argument, for other shapes, NaN, infinities, or labels out of range.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist, pdist, squareform

from .checks import as_numpy, check_class_index, real_array

# Three templates count as lying on one line where the triangle's height is below this share of its longest side.
FLATTEST = 1e-6
# Numbers of one column that differ from their mean by less than this share of the largest count as equal to it.
ROUNDING = 1e-12


def _matrix(values, name):
    """A float64 array (rows, columns), finite, with at least one row and column."""
    array = real_array(values, name)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} must be a matrix with at least one row, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return array


def _templates(weight, bias):
    """v_k = (w_k, b_k): (K, D + 1), or (K, D) without bias."""
    weight = _matrix(weight, "weight")
    if bias is None:
        return weight
    bias = real_array(bias, "bias")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape (K,) for weight (K, D), got {bias.shape} for {weight.shape}")
    return np.column_stack([weight, _matrix(bias[:, None], "bias")])


def _examples(features, width, biased):
    """x = (f, 1) where the templates are biased and the features lack their 1, f itself where they are as wide."""
    features = _matrix(features, "features")
    if features.shape[1] == width:
        return features
    if not biased or features.shape[1] != width - 1:
        expected = f"{width - 1} columns (or {width}, bias included)" if biased else f"{width} columns"
        raise ValueError(f"features must have {expected}, got {features.shape}")
    return np.column_stack([features, np.ones(len(features))])


def _centred(points):
    """The rows less their mean, exactly 0 where only rounding is left."""
    centred = points - points.mean(axis=0)
    centred[np.abs(centred) <= ROUNDING * np.abs(points).max(axis=0)] = 0
    return centred


def _size(values):
    """The power of two at or below the largest magnitude, or 1 for zeros: a scale whose division rounds nothing."""
    largest = np.abs(values).max()
    return float(np.ldexp(1.0, np.frexp(largest)[1] - 1)) if largest else 1.0


def _distances(points):
    """Distances between every two of the points (rows), at any scale; ValueError for fewer than two."""
    points = _matrix(points, "points")
    if len(points) < 2:
        raise ValueError(f"points must be at least two, got {len(points)}")
    size = _size(points)
    return size * pdist(points / size)


def _labelled(features, labels, num_classes=None):
    """features and labels after the checks."""
    features = _matrix(features, "features")
    try:
        labels = as_numpy(labels)
    except ValueError as error:  # lists of uneven length
        raise ValueError(f"labels must have shape (N,) for features (N, D), got {labels!r:.80}") from error
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels must have shape (N,) for features (N, D), got {labels.shape} for {features.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers (class indices), got dtype {labels.dtype}")
    if labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes):
        expected = "be at least 0" if num_classes is None else f"lie in [0, {num_classes - 1}]"
        raise ValueError(f"labels must {expected}, got {labels.min()} to {labels.max()}")
    return features, labels.astype(np.int64)


class Plane(NamedTuple):
    """The affine plane through three templates: points origin + u · basis with u (2,).

    origin (E,): the templates' centroid; basis (2, E): orthonormal rows; corners (3, 2): the templates in the plane;
    classes: which three they are. E is D + 1 where the templates are `biased`, or else D.
    """

    origin: np.ndarray
    basis: np.ndarray
    corners: np.ndarray
    classes: tuple[int, int, int]
    biased: bool


def template_plane(weight, bias, classes):
    """The plane through the templates of three classes (a, b, c): a `Plane`.

    The first axis points from v_a to v_b, the second to the side of v_c. So the picture depends on the templates alone,
    not on any decomposition's choice of signs: the same classes, the same picture.

    weight (K, D), bias (K,) or None. Raises ValueError unless the classes are three different ones and their templates
    do not lie on one line.

    >>> plane = template_plane([[0.0, 0.0], [4.0, 0.0], [2.0, 3.0]], None, (0, 1, 2))
    >>> plane.corners
    array([[-2., -1.],
           [ 2., -1.],
           [ 0.,  2.]])
    """
    templates = _templates(weight, bias)
    classes = _three(classes, len(templates))
    size = _size(templates[list(classes)])  # without it, sums and squares could overflow
    a, b, c = corners = templates[list(classes)] / size
    origin = (a + b + c) / 3
    basis = _basis(b - a, c - a, classes)
    return Plane(size * origin, basis, size * ((corners - origin) @ basis.T), classes, bias is not None)


def _three(classes, num_classes):
    """The classes as a tuple of ints, if they are three different ones."""
    listed = classes.tolist() if hasattr(classes, "tolist") else classes
    if isinstance(listed, Sequence) and len(listed) == 3:
        checked = tuple(check_class_index(label, "classes", num_classes) for label in listed)
        if len(set(checked)) == 3:
            return checked
    raise ValueError(f"classes must be three different ones, got {classes}")


def _basis(along, towards, classes):
    """Two orthonormal rows: the direction of `along`, and what `towards` has beside it (Gram–Schmidt, twice)."""
    size = _size([along, towards])  # without it, squares could vanish
    along, towards = along / size, towards / size
    longest = max(np.linalg.norm(edge) for edge in (along, towards, towards - along))
    if np.linalg.norm(along) <= FLATTEST * longest or longest == 0:
        raise ValueError(f"the templates of classes {classes[0]} and {classes[1]} are equal: they span no plane")
    first = along / np.linalg.norm(along)
    beside = towards - (towards @ first) * first
    if np.linalg.norm(beside) <= FLATTEST * longest:
        raise ValueError(f"the templates of classes {classes} lie on one line: they span no plane")
    second = beside / np.linalg.norm(beside)
    second = second - (second @ first) * first  # once more: what rounding had left of `first`
    return np.stack([first, second / np.linalg.norm(second)])


def project(features, plane):
    """Coordinates of examples in a `Plane`: basis · (x − origin), shape (N, 2).

    features (N, D). Where the plane was made with a bias, a 1 is appended to each example; points of the templates'
    own space, such as templates with their biases, come as (N, D + 1) and are taken as they are.
    """
    return (_examples(features, plane.basis.shape[1], plane.biased) - plane.origin) @ plane.basis.T


def project_logits(logits, plane):
    """The same coordinates from the logits z = x · v alone, of which only the three classes' count: array (N, 2).

    x · (v_b − v_a) = z_b − z_a, and these two edges span the plane's directions. logits (N, K), a column for each
    class of the network. Three columns in the plane's own order go with ``plane._replace(classes=(0, 1, 2))``.
    """
    logits = _matrix(logits, "logits")
    if logits.shape[1] <= max(plane.classes):
        raise ValueError(f"logits must have shape (N, K) with columns for classes {plane.classes}, got {logits.shape}")
    logits = logits[:, list(plane.classes)]
    edges = plane.corners[1:] - plane.corners[0]
    return np.linalg.solve(edges, (logits[:, 1:] - logits[:, :1]).T).T - plane.basis @ plane.origin


def squared_distances(features, weight, bias=None):
    """‖x − v_k‖² of every example to every template: array (N, K)."""
    templates = _templates(weight, bias)
    return cdist(_examples(features, templates.shape[1], bias is not None), templates, "sqeuclidean")


def equidistance(features, labels, weight, bias=None):
    """How unequal the distances to the wrong templates are: 0 where all are the same.

    s̄ / l̄, where s is an example's standard deviation of ‖x − v_j‖² over its wrong classes j, l is their mean less
    ‖x − v_y‖², and the bars are means over examples. Scaling the features leaves s / l as it is where templates have
    one norm, since it is then the spread of the wrong logits over the mean logit gap.

    Raises ValueError for fewer than three classes, and where the wrong templates are not farther on average (l̄ ≤ 0).
    """
    distances = squared_distances(features, weight, bias)
    _, labels = _labelled(features, labels, distances.shape[1])
    if distances.shape[1] < 3:
        raise ValueError(f"equidistance needs at least 3 classes, got {distances.shape[1]}")
    own = labels[:, None] == np.arange(distances.shape[1])
    wrong = distances[~own].reshape(len(labels), -1)
    lead = (wrong.mean(axis=1) - distances[own]).mean()
    if lead <= 0:
        raise ValueError("the wrong templates are on average no farther than the right one: no scale to measure by")
    return float(wrong.std(axis=1).mean() / lead)


def class_means(features, labels):
    """Mean features of each class that occurs: (classes (C,) in rising order, means (C, D))."""
    features, labels = _labelled(features, labels)
    classes, index = np.unique(labels, return_inverse=True)
    return classes, np.stack([features[index == k].mean(axis=0) for k in range(len(classes))])


def within_class_spread(features, labels):
    """Root mean squared distance of examples to the mean of their class: √(mean ‖f − μ_y‖²)."""
    features, labels = _labelled(features, labels)
    classes, means = class_means(features, labels)
    return float(np.sqrt(((features - means[np.searchsorted(classes, labels)]) ** 2).sum(axis=1).mean()))


def mean_distance(points):
    """Mean distance between two of the points (rows); ValueError for fewer than two."""
    return float(_distances(points).mean())


def tightness(features, labels):
    """`within_class_spread` over the `mean_distance` of the class means: 0 for collapsed classes, no matter the scale.

    Raises ValueError for a single class, or classes whose means are equal.
    """
    _, means = class_means(features, labels)
    if not _centred(means).any():
        raise ValueError(f"labels must name two classes or more with different mean features, got {len(means)} classes")
    return within_class_spread(features, labels) / mean_distance(means)


def regularity(points):
    """Shortest over longest distance between the points (rows): 1 for a regular triangle, or simplex."""
    sides = _distances(points)
    if sides.max() == 0:
        raise ValueError("points must not all be equal")
    return float(sides.min() / sides.max())


def template_similarity(weight):
    """Cosine of every two templates after subtracting their mean: array (K, K), 1 on the diagonal.

    A shift of all templates together changes no probability, so it is taken out. −1/(K − 1) everywhere off the
    diagonal if they form a regular simplex. Raises ValueError for fewer than two templates, or one at the mean.
    """
    weight = _matrix(weight, "weight")
    centred = _centred(weight)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    if len(weight) < 2 or not (norms > 0).all():
        raise ValueError("weight must hold at least two templates, none of them equal to their mean")
    return (centred / norms) @ (centred / norms).T


class InSpan(NamedTuple):
    """Features (N, r) and templates (K, r) in coordinates of the span of the centred templates, r its dimension."""

    features: np.ndarray
    weight: np.ndarray


def in_span(logits, weight, bias=None):
    """What the logits tell of the features, and the templates, in an orthonormal basis of their span: an `InSpan`.

    The centred templates W̃ = U S Vᵀ (rows less their mean) give features S⁻¹ Uᵀ (z − b) and templates W V. Nothing
    else of the features changes a probability; differences of logits, and so of squared distances, are kept. As a
    rule r = min(K − 1, D), so for K > D these are the features themselves, turned.

    logits (N, K), weight (K, D), bias (K,) or None. Raises ValueError where all templates are equal.
    """
    templates = _templates(weight, bias)
    weight, logits = _matrix(weight, "weight"), _matrix(logits, "logits")
    if logits.shape[1] != len(weight):
        raise ValueError(f"logits must have shape (N, {len(weight)}), one column a template, got {logits.shape}")
    scores = logits if bias is None else logits - templates[:, -1]
    left, sizes, axes = np.linalg.svd(_centred(weight), full_matrices=False)
    kept = sizes > FLATTEST * sizes[0]
    if not kept.any():
        raise ValueError("weight must hold different templates, got equal ones")
    return InSpan(scores @ left[:, kept] / sizes[kept], weight @ axes[kept].T)


def share_along(features, direction):
    """Share of the variance of features (N, D) that lies along a direction (D,): a float in [0, 1].

    Raises ValueError for fewer than two examples, equal ones, or a direction of length 0.
    """
    features, direction = _matrix(features, "features"), real_array(direction, "direction")
    if direction.shape != features.shape[1:] or not np.isfinite(direction).all() or not direction.any():
        raise ValueError(f"direction must be finite, not 0, and of shape {features.shape[1:]}, got {direction}")
    centred = _centred(features)
    if not centred.any():
        raise ValueError(f"features must vary, got {len(features)} equal rows")
    centred, direction = centred / _size(centred), direction / _size(direction)  # so that squares do not vanish
    return float(((centred @ (direction / np.linalg.norm(direction))) ** 2).sum() / (centred**2).sum())


class NeuralCollapse(NamedTuple):
    """How far from collapse, by the four measures of Papyan, Han and Donoho (2020): each 0 at full collapse."""

    within: float  # NC1: tr(Σ_W Σ_B⁺) / C, variation within classes over variation between them
    norms: float  # NC2: standard deviation over mean of the centred class means' norms
    angles: float  # NC2: mean of |cosine + 1/(C − 1)| over pairs of centred class means
    duality: float  # NC3: ‖W̃/‖W̃‖ − M/‖M‖‖, centred templates against centred class means (Frobenius norms)
    nearest: float  # NC4: share of examples that the nearest class mean and the network put into different classes


def neural_collapse(features, labels, weight, bias=None):
    """The measures of `NeuralCollapse` over the C ≥ 2 classes that occur among the labels.

    features (N, D), labels (N,), weight (K, D), bias (K,) or None. Classes of which there is no example are left out,
    templates included. Raises ValueError for one class, or where all class means, or all templates, are equal.
    """
    weight, num_classes = _matrix(weight, "weight"), len(_templates(weight, bias))
    features, labels = _labelled(features, labels, num_classes)
    if features.shape[1] != weight.shape[1]:
        raise ValueError(f"features must have {weight.shape[1]} columns, got {features.shape}")
    classes, means = class_means(features, labels)
    weight = weight[classes]
    logits = features @ weight.T + (0 if bias is None else real_array(bias, "bias")[classes])
    centred, templates = _centred(means), _centred(weight)
    if not centred.any():
        raise ValueError(f"labels must name two classes or more with different mean features, got {len(means)} classes")
    if not templates.any():
        raise ValueError(f"weight must hold different templates for the {len(classes)} classes that occur")
    within = features - means[np.searchsorted(classes, labels)]
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    kept = sizes > 1e-5 * sizes[0]  # Σ_B⁺ in its own axes, which spares a matrix of D × D
    scores = within @ axes[kept].T / sizes[kept] * len(classes) ** 0.5
    norms = np.linalg.norm(centred, axis=1)
    # A class mean at the mean of all has no direction; the cosine is then taken as 0.
    cosines = squareform(centred @ centred.T / np.maximum(np.outer(norms, norms), 1e-300), checks=False)
    unit = [matrix / np.linalg.norm(matrix) for matrix in (templates, centred)]
    return NeuralCollapse(
        within=float((scores**2).sum() / (len(within) * len(classes))),
        norms=float(norms.std() / norms.mean()),
        angles=float(np.abs(cosines + 1 / (len(classes) - 1)).mean()),
        duality=float(np.linalg.norm(unit[0] - unit[1])),
        nearest=float((cdist(features, means).argmin(axis=1) != logits.argmax(axis=1)).mean()),
    )
