"""The penultimate layer's geometry, against slow loops, SVD, scipy and scikit-learn, and its identities."""

import itertools
import math

import numpy as np
import pytest
import strategies  # noqa: F401 (the profile, one thread)
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestCentroid

from lsbook import geometry

seeds = st.integers(0, 2**32)
scales = st.one_of(st.sampled_from([1e-4, 1.0, 1e4]), st.floats(1e-4, 1e4))
widths = st.one_of(st.sampled_from([2, 3, 10, 64, 512]), st.integers(2, 512))
many_classes = st.one_of(st.sampled_from([3, 4, 10, 100, 1000]), st.integers(3, 1000))
SQUARE = np.array([[0.0, 0.0], [4.0, 0.0], [2.0, 3.0], [5.0, 5.0]])


@st.composite
def layers(draw, widths=widths, classes=many_classes, max_rows=20):
    """Features (N, D), labels (N,), weight (K, D), bias (K,) or None; everything of one scale from 1e-4 to 1e4."""
    width, num_classes, scale = draw(widths), draw(classes), draw(scales)
    rng, count = np.random.default_rng(draw(seeds)), draw(st.integers(2, max_rows))
    features, weight = (scale * rng.normal(size=(n, width)) for n in (count, num_classes))
    bias = scale * rng.normal(size=num_classes) if draw(st.booleans()) else None
    return features, rng.integers(num_classes, size=count), weight, bias


@st.composite
def layers_and_classes(draw, widths=widths):
    """The features, weight, bias of `layers`, and three different classes."""
    features, _, weight, bias = draw(layers(widths))
    classes = st.lists(st.integers(0, len(weight) - 1), min_size=3, max_size=3, unique=True)
    return features, weight, bias, tuple(draw(classes))


def extended(features, weight, bias):
    """x and v, written out by hand."""
    if bias is None:
        return features, weight
    return np.array([[*f, 1.0] for f in features]), np.array([[*w, b] for w, b in zip(weight, bias, strict=True)])


def size_of(*arrays):
    return max(np.abs(array).max() for array in arrays)


def rotation(width, rng):
    """A random orthogonal matrix."""
    return np.linalg.qr(rng.normal(size=(width, width)))[0]


def near(actual, expected, size, rel=1e-9):
    """Equal up to `rel` of the size of what went in: a flat triangle multiplies rounding."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rel * size)


# --- the plane through three templates


@given(layers_and_classes())
def test_the_plane_holds_its_templates(case):
    features, weight, bias, classes = case
    plane = geometry.template_plane(weight, bias, classes)
    templates, size = extended(features, weight, bias)[1][list(classes)], size_of(weight)
    np.testing.assert_allclose(plane.basis @ plane.basis.T, np.eye(2), atol=1e-12)
    near(plane.origin, templates.mean(axis=0), size, 1e-14)
    near(plane.origin + plane.corners @ plane.basis, templates, size, 1e-12)
    near(plane.corners.sum(axis=0), 0, size, 1e-11)
    assert plane.classes == classes
    # The first axis points from the first template to the second, the third lies on the positive side of it.
    assert plane.corners[1, 0] > plane.corners[0, 0]
    assert plane.corners[1, 1] == pytest.approx(plane.corners[0, 1], abs=1e-12 * size)
    assert plane.corners[2, 1] > plane.corners[0, 1]
    near(geometry.project(templates, plane), plane.corners, size, 1e-12)


@given(layers_and_classes())
def test_against_the_plane_that_svd_finds(case):
    """The right singular vectors of the centred triangle span the same directions, in another orientation."""
    features, weight, bias, classes = case
    examples, templates = extended(features, weight, bias)
    chosen = templates[list(classes)]
    directions = np.linalg.svd(chosen - chosen.mean(axis=0), full_matrices=False)[2][:2]
    expected = (np.concatenate([examples, chosen]) - chosen.mean(axis=0)) @ directions.T
    plane = geometry.template_plane(weight, bias, classes)
    found = np.concatenate([geometry.project(features, plane), plane.corners])
    near(pdist(found), pdist(expected), size_of(expected), 1e-7)
    assert pdist(found).max() > 0


@given(layers_and_classes())
def test_the_projection_is_the_nearest_point(case):
    features, weight, bias, classes = case
    plane = geometry.template_plane(weight, bias, classes)
    examples, templates = extended(features, weight, bias)
    points, size = geometry.project(features, plane), size_of(examples, templates) * math.sqrt(weight.shape[1])
    assert points.shape == (len(features), 2)
    residual = examples - (plane.origin + points @ plane.basis)
    near(residual @ plane.basis.T, 0, size, 1e-12)
    in_plane, full = cdist(points, plane.corners, "sqeuclidean"), cdist(examples, templates[list(classes)]) ** 2
    assert (in_plane <= full * (1 + 1e-9) + 1e-12 * size**2).all()
    # Pythagoras: what the plane leaves out is the residual.
    near(full - in_plane, (residual**2).sum(axis=1, keepdims=True) * np.ones(3), size**2)


@given(layers_and_classes())
def test_logits_alone_give_the_same_picture(case):
    features, weight, bias, classes = case
    plane = geometry.template_plane(weight, bias, classes)
    logits = features @ weight.T + (0 if bias is None else bias)
    expected, size = geometry.project(features, plane), size_of(features, weight) * math.sqrt(weight.shape[1])
    corner = plane.corners - plane.corners[0]
    flatness = abs(np.linalg.det(corner[1:])) / (corner**2).sum()
    size /= flatness  # solving for the coordinates multiplies the logits' rounding by it
    near(geometry.project_logits(logits, plane), expected, size)
    own = plane._replace(classes=(0, 1, 2))  # for three logits in the plane's order
    near(geometry.project_logits(logits[:, list(classes)], own), expected, size)
    # A shift of all logits of an example is no information, so it must not move its point.
    near(geometry.project_logits(logits + 3.25 * size_of(logits), plane), expected, 10 * size)


@pytest.mark.parametrize("classes", list(itertools.permutations(range(3))))
def test_logits_of_three_classes_are_in_the_networks_order(classes):
    """Regression: three columns were taken in the plane's order, which is another where the classes are permuted."""
    rng = np.random.default_rng(0)
    features, weight, bias = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)), rng.normal(size=3)
    plane = geometry.template_plane(weight, bias, classes)
    found = geometry.project_logits(features @ weight.T + bias, plane)
    np.testing.assert_allclose(found, geometry.project(features, plane), atol=1e-12)


@pytest.mark.parametrize("power", [-310, -200, 200, 306])
def test_a_plane_at_any_scale(power):
    """Regression: squares that overflow or vanish made templates "equal"."""
    scale, expected = 10.0**power, geometry.template_plane(SQUARE, None, (0, 1, 3))
    plane = geometry.template_plane(scale * SQUARE, None, (0, 1, 3))
    rel = 1e-10 if power > -300 else 1e-6  # numbers below 2e-308 have fewer digits
    np.testing.assert_allclose(plane.basis, expected.basis, atol=rel)
    np.testing.assert_allclose(plane.corners, scale * expected.corners, rtol=rel)
    np.testing.assert_allclose(geometry.project(scale * SQUARE, plane), scale * geometry.project(SQUARE, expected), rel)
    for measure in (geometry.mean_distance, geometry.regularity):
        found = measure(scale * SQUARE) / (scale if measure is geometry.mean_distance else 1)
        assert found == pytest.approx(measure(SQUARE), rel=rel)


def test_templates_that_share_a_large_part():
    """Regression: their differences were lost beside it."""
    weight = np.column_stack([np.full(4, 1.0), 1e-170 * SQUARE])
    expected = geometry.template_plane(SQUARE, None, (0, 1, 2)).corners
    np.testing.assert_allclose(geometry.template_plane(weight, None, (0, 1, 2)).corners, 1e-170 * expected, rtol=1e-12)


@given(layers_and_classes(st.integers(2, 64)), seeds)
def test_turning_and_moving_everything_leaves_the_picture(case, seed):
    """The templates fix the orientation, so the coordinates themselves stay, not only the distances."""
    features, weight, bias, classes = case
    rng = np.random.default_rng(seed)
    turn, size = rotation(weight.shape[1], rng), size_of(features, weight)
    shift = size * rng.normal(size=weight.shape[1])
    before, after = (
        geometry.template_plane(weight, bias, classes),
        geometry.template_plane(weight @ turn + shift, bias, classes),
    )
    near(after.corners, before.corners, size, 1e-11)
    near(geometry.project(features @ turn + shift, after), geometry.project(features, before), size, 1e-8)


@given(layers_and_classes(), st.permutations(range(3)))
def test_the_order_of_the_classes_turns_or_mirrors_the_picture(case, order):
    features, weight, bias, classes = case
    plane = geometry.template_plane(weight, bias, classes)
    other = geometry.template_plane(weight, bias, tuple(classes[k] for k in order))
    first = np.concatenate([plane.corners[order], geometry.project(features, plane)])
    second = np.concatenate([other.corners, geometry.project(features, other)])
    near(pdist(second), pdist(first), size_of(first), 1e-7)


@given(st.integers(2, 64), st.floats(-5.9, 0), st.floats(0.05, 0.95), scales, seeds)
def test_flat_triangles_have_an_orthonormal_basis_too(width, power, foot, scale, seed):
    turn = rotation(width, np.random.default_rng(seed))
    flat = np.zeros((3, width))
    flat[1, 0], flat[2, :2] = 1, (foot, 10**power)
    plane = geometry.template_plane(scale * flat @ turn, None, (0, 1, 2))
    np.testing.assert_allclose(plane.basis @ plane.basis.T, np.eye(2), atol=1e-12)
    height = plane.corners[2, 1] - plane.corners[0, 1]
    assert height == pytest.approx(scale * 10**power, rel=1e-8)
    flat[2, 1] = 1e-7
    with pytest.raises(ValueError, match=r"templates of classes \(0, 1, 2\) lie on one line"):
        geometry.template_plane(scale * flat @ turn, None, (0, 1, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_arrays_and_lists_are_all_welcome(dtype):
    """Computed in float64 from what half precision holds."""
    generator = torch.Generator().manual_seed(0)
    features, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in ((5, 4), (6, 4), (6,))
    )
    exact = [tensor.detach().double().numpy() for tensor in (features, weight, bias)]
    plane = geometry.template_plane(exact[1], exact[2], (4, 1, 3))
    points = geometry.project(exact[0], plane)
    kinds = [[features, weight, bias], [array.tolist() for array in exact]]
    if dtype != torch.bfloat16:  # which numpy lacks
        kinds.append([tensor.detach().numpy() for tensor in (features, weight, bias)])
    for f, w, b in kinds:
        again = geometry.template_plane(w, b, [4, 1, 3])
        assert all(np.array_equal(x, y) for x, y in zip(again, plane, strict=True))
        assert np.array_equal(geometry.project(f, again), points)
        assert np.array_equal(geometry.squared_distances(f, w, b), geometry.squared_distances(*exact))
    assert points.dtype == np.float64
    logits = (features @ weight.T + bias).detach()
    expected = geometry.project_logits(logits.double().numpy(), plane)
    assert np.array_equal(geometry.project_logits(logits, plane), expected)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list, lambda some: np.array(some, np.uint8)])
def test_classes_may_be_an_array_or_a_tensor(kind):
    """Regression: three entries of a tensor were never three ints."""
    plane = geometry.template_plane(SQUARE, None, kind([0, 1, 3]))
    assert plane.classes == (0, 1, 3)
    assert all(type(label) is int for label in plane.classes)


@pytest.mark.parametrize(
    ("weight", "bias", "classes", "error", "message"),
    [
        (np.ones((4, 3)), None, (0, 1, 2), ValueError, "templates of classes 0 and 1 are equal: they span no plane"),
        (np.ones((4, 3)), np.ones(4), (3, 1, 2), ValueError, "templates of classes 3 and 1 are equal"),
        (SQUARE[[0, 1, 1, 1]], None, (0, 1, 2), ValueError, "templates of classes (0, 1, 2) lie on one line"),
        (SQUARE[[0, 1, 0, 1]], None, (0, 1, 2), ValueError, "templates of classes (0, 1, 2) lie on one line"),
        (np.outer(range(4), [0.1, 0.3, 0.7]), None, (0, 1, 3), ValueError, "classes (0, 1, 3) lie on one line"),
        (SQUARE, None, (0, 1, 1), ValueError, "classes must be three different ones, got (0, 1, 1)"),
        (SQUARE, None, (0, 1), ValueError, "classes must be three different ones, got (0, 1)"),
        (SQUARE, None, (0, 1, 2, 3), ValueError, "classes must be three different ones, got (0, 1, 2, 3)"),
        (SQUARE, None, (), ValueError, "classes must be three different ones, got ()"),
        (SQUARE, None, 3, ValueError, "classes must be three different ones, got 3"),
        (SQUARE, None, (0, 1, 4), ValueError, "classes must lie in [0, 3] for num_classes = 4, got 4"),
        (SQUARE, None, (-1, 1, 2), ValueError, "classes must lie in [0, 3] for num_classes = 4, got -1"),
        # Regression: numpy's own error, which named no argument.
        (SQUARE, None, ((0, 1), 1, 2), TypeError, "classes must be an int, got (0, 1) (tuple)"),
        (SQUARE, None, "abc", TypeError, "classes must be an int, got 'a' (str)"),
        (SQUARE, None, {0, 1, 2}, ValueError, "classes must be three different ones, got {0, 1, 2}"),
        (SQUARE, None, torch.eye(3), TypeError, "classes must be an int, got [1.0, 0.0, 0.0] (list)"),
        (SQUARE, None, (0, 1, 2.0), TypeError, "classes must be an int, got 2.0 (float)"),
        (np.array([[0, 0], [1, 0], [0, math.nan]]), None, (0, 1, 2), ValueError, "weight must be finite, got NaN"),
        (np.array([[0, 0], [1, 0], [0, math.inf]]), None, (0, 1, 2), ValueError, "weight must be finite, got NaN"),
        (SQUARE, [0, 0, 0, math.nan], (0, 1, 2), ValueError, "bias must be finite, got NaN or infinity"),
        (SQUARE, [0, 0, 0], (0, 1, 2), ValueError, "bias must have shape (K,) for weight (K, D), got (3,) for (4, 2)"),
        (SQUARE, np.zeros((4, 1)), (0, 1, 2), ValueError, "bias must have shape (K,) for weight (K, D), got (4, 1)"),
        (SQUARE, 0.0, (0, 1, 2), ValueError, "bias must have shape (K,) for weight (K, D), got ()"),
        (SQUARE[0], None, (0, 1, 2), ValueError, "weight must be a matrix with at least one row, got shape (2,)"),
        (SQUARE[:0], None, (0, 1, 2), ValueError, "weight must be a matrix with at least one row, got shape (0, 2)"),
        ([[1.0, 2.0], [3.0]], None, (0, 1, 2), ValueError, "weight must be a real number or an array of them"),
        ([["a", "b"]], None, (0, 1, 2), TypeError, "weight must be a real number or an array of them"),
    ],
)
def test_templates_without_a_plane(weight, bias, classes, error, message):
    with pytest.raises(error) as caught:
        geometry.template_plane(weight, bias, classes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((2, 4)), "features must have 2 columns (or 3, bias included), got (2, 4)"),
        (np.zeros((2, 1)), "features must have 2 columns (or 3, bias included), got (2, 1)"),
        (np.zeros(2), "features must be a matrix with at least one row, got shape (2,)"),
        (np.zeros((0, 2)), "features must be a matrix with at least one row, got shape (0, 2)"),
        ([[0, math.nan]], "features must be finite, got NaN or infinity"),
    ],
)
def test_features_that_do_not_fit_a_plane(features, message):
    with pytest.raises(ValueError) as caught:
        geometry.project(features, geometry.template_plane(SQUARE, np.zeros(4), (0, 1, 2)))
    assert str(caught.value) == message


@pytest.mark.parametrize("columns", [1, 3])
def test_features_that_do_not_fit_a_plane_without_bias(columns):
    plane = geometry.template_plane(SQUARE, None, (0, 1, 2))
    with pytest.raises(ValueError, match=rf"features must have 2 columns, got \(2, {columns}\)"):
        geometry.project(np.zeros((2, columns)), plane)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((2, 3)), "logits must have shape (N, K) with columns for classes (0, 1, 4), got (2, 3)"),
        (np.zeros((2, 4)), "logits must have shape (N, K) with columns for classes (0, 1, 4), got (2, 4)"),
        (np.zeros(3), "logits must be a matrix with at least one row, got shape (3,)"),
        ([[0, 1, math.inf]], "logits must be finite, got NaN or infinity"),
    ],
)
def test_logits_that_do_not_fit_a_plane(logits, message):
    plane = geometry.template_plane([*SQUARE, [7.0, 1.0]], None, (0, 1, 4))
    with pytest.raises(ValueError) as caught:
        geometry.project_logits(logits, plane)
    assert str(caught.value) == message


# --- distances to the templates


@given(layers(st.integers(1, 12), st.integers(1, 12)))
def test_squared_distances_are_the_direct_sums(case):
    features, _, weight, bias = case
    examples, templates = extended(features, weight, bias)
    expected = [[math.fsum((a - b) ** 2 for a, b in zip(x, v, strict=True)) for v in templates] for x in examples]
    np.testing.assert_allclose(geometry.squared_distances(features, weight, bias), expected, rtol=1e-13)


@given(layers())
def test_distances_follow_from_logits_and_norms(case):
    """‖x − v‖² = ‖x‖² − 2 z + ‖v‖²."""
    features, _, weight, bias = case
    logits = features @ weight.T + (0 if bias is None else bias)
    lengths, norms = (features**2).sum(axis=1) + (bias is not None), (weight**2).sum(axis=1)
    norms = norms + (0 if bias is None else bias**2)
    found = geometry.squared_distances(features, weight, bias)
    assert found.shape == logits.shape
    near(found, lengths[:, None] - 2 * logits + norms, lengths.max() + norms.max(), 1e-13)


@pytest.mark.parametrize("columns", [1, 3])
def test_without_bias_features_are_as_wide_as_templates(columns):
    """Regression: with one column too few, a 1 was appended in silence."""
    features = np.ones((5, columns))
    for call in (
        lambda: geometry.squared_distances(features, SQUARE),
        lambda: geometry.equidistance(features, np.zeros(5, int), SQUARE),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == f"features must have 2 columns, got (5, {columns})"
    with pytest.raises(ValueError, match=r"features must have 2 columns \(or 3, bias included\), got \(5, 4\)"):
        geometry.squared_distances(np.ones((5, 4)), SQUARE, np.zeros(4))


def slow_equidistance(features, labels, weight, bias):
    examples, templates = extended(features, weight, bias)
    spreads, leads = [], []
    for x, y in zip(examples, labels, strict=True):
        distances = [sum((x - v) ** 2) for v in templates]
        wrong = [d for k, d in enumerate(distances) if k != y]
        mean = math.fsum(wrong) / len(wrong)
        spreads.append(math.sqrt(math.fsum((d - mean) ** 2 for d in wrong) / len(wrong)))
        leads.append(mean - distances[y])
    return sum(spreads) / sum(leads)


@given(layers(st.integers(2, 12), st.integers(3, 20)), st.floats(1, 5))
def test_equidistance_is_the_slow_loop(case, pull):
    features, labels, weight, bias = case
    features = features / 10 + pull * weight[labels]
    expected = slow_equidistance(features, labels, weight, bias)
    if expected > 0:  # the right template is nearer on average, as is the rule here
        assert geometry.equidistance(features, labels, weight, bias) == pytest.approx(expected, rel=1e-8)
    else:
        with pytest.raises(ValueError, match="no farther than the right one"):
            geometry.equidistance(features, labels, weight, bias)


@given(layers(st.integers(8, 12), st.integers(3, 8)), st.floats(0.1, 5), st.floats(0.1, 10))
def test_equidistance_with_templates_of_one_norm(case, stretch, shift):
    """Features may then be scaled; and where the wrong logits of each example are equal, it is 0."""
    features, labels, weight, _ = case
    weight = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    features = features / np.abs(features).max() / 10 + weight[labels]
    before = geometry.equidistance(features, labels, weight)
    assert before > 1e-4
    assert geometry.equidistance(stretch * features, labels, weight) == pytest.approx(before, rel=1e-9)
    # It is the spread of the wrong logits over the mean logit gap.
    logits = features @ weight.T
    wrong = logits[labels[:, None] != np.arange(len(weight))].reshape(len(labels), -1)
    gaps = logits[np.arange(len(labels)), labels] - wrong.mean(axis=1)
    assert before == pytest.approx(wrong.std(axis=1).mean() / gaps.mean(), rel=1e-9)
    level = np.where(labels[:, None] == np.arange(len(weight)), shift, 0) - shift / 3
    features = np.linalg.lstsq(weight, level.T, rcond=None)[0].T
    assert geometry.equidistance(features, labels, weight) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "weight", "error", "message"),
    [
        ([0, 1], SQUARE[:2], ValueError, "equidistance needs at least 3 classes, got 2"),
        ([0, 4], SQUARE, ValueError, "labels must lie in [0, 3], got 0 to 4"),
        ([-1, 0], SQUARE, ValueError, "labels must lie in [0, 3], got -1 to 0"),
        ([0], SQUARE, ValueError, "labels must have shape (N,) for features (N, D), got (1,) for (2, 2)"),
        ([[0, 1]], SQUARE, ValueError, "labels must have shape (N,) for features (N, D), got (1, 2) for (2, 2)"),
        ([0.0, 1.0], SQUARE, TypeError, "labels must be integers (class indices), got dtype float64"),
        ([True, False], SQUARE, TypeError, "labels must be integers (class indices), got dtype bool"),
        ([3, 3], SQUARE, ValueError, "the wrong templates are on average no farther than the right one"),
        ([0, 0], SQUARE[[0, 0, 0]], ValueError, "the wrong templates are on average no farther than the right one"),
    ],
)
def test_equidistance_of_what_has_none(labels, weight, error, message):
    with pytest.raises(error) as caught:
        geometry.equidistance([[0.0, 0.0], [1.0, 0.0]], labels, weight)
    assert message in str(caught.value)


# --- clusters


@st.composite
def clusters(draw, least=1):
    """Features (N, D) and labels (N,) of `least` or more of 40 classes, not all of which occur."""
    rng, scale = np.random.default_rng(draw(seeds)), draw(scales)
    known = draw(st.lists(st.integers(0, 39), min_size=least, max_size=8, unique=True))
    labels = rng.permutation(np.concatenate([known, rng.choice(known, size=draw(st.integers(0, 30)))]))
    centres = 3 * rng.normal(size=(40, draw(st.integers(2, 30))))
    return scale * (centres[labels] + rng.normal(size=(len(labels), centres.shape[1]))), labels


@given(clusters())
def test_class_means_and_spread_are_the_slow_loops(case):
    features, labels = case
    classes, means = geometry.class_means(features, labels)
    assert classes.tolist() == sorted(set(labels.tolist()))
    expected = {k: np.mean([f for f, y in zip(features, labels, strict=True) if y == k], axis=0) for k in classes}
    near(means, np.stack(list(expected.values())), size_of(features), 1e-13)
    squares = [((f - expected[y]) ** 2).sum() for f, y in zip(features, labels, strict=True)]
    spread = geometry.within_class_spread(features, labels)
    assert spread == pytest.approx(math.sqrt(math.fsum(squares) / len(squares)), rel=1e-10, abs=1e-12)
    if 1 < len(classes) < len(labels):  # scikit-learn divides by the difference, too
        centroids = NearestCentroid().fit(features, labels)
        near(means, centroids.centroids_, size_of(features), 1e-12)


@given(clusters())
def test_distances_between_points_are_the_slow_loops(case):
    points, _ = case
    if len(points) < 2:
        return
    pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)]
    assert geometry.mean_distance(points) == pytest.approx(math.fsum(pairs) / len(pairs), rel=1e-12)
    assert geometry.regularity(points) == pytest.approx(min(pairs) / max(pairs), rel=1e-12)
    table = pairwise_distances(points)  # by ‖a‖² − 2 ab + ‖b‖², so only to half the digits
    assert geometry.mean_distance(points) == pytest.approx(table.sum() / (len(points) * (len(points) - 1)), rel=1e-6)


@given(clusters(least=2), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), seeds)
def test_tightness_has_no_scale_place_or_direction(case, stretch, shift, seed):
    features, labels = case
    before = geometry.tightness(features, labels)
    rng = np.random.default_rng(seed)
    moved = stretch * (features @ rotation(features.shape[1], rng) + shift * features.std())
    assert geometry.tightness(moved, labels) == pytest.approx(before, rel=1e-8, abs=1e-11)
    _, means = geometry.class_means(features, labels)
    expected = geometry.within_class_spread(features, labels) / pdist(means).mean()
    assert before == pytest.approx(expected, rel=1e-12)
    centres = rng.normal(size=(40, 5))
    assert geometry.tightness(centres[labels], labels) == pytest.approx(0, abs=1e-13)


def test_hand_made_clusters():
    features, labels = [[0, 0], [0, 2], [8, 0], [8, 2], [4, 1]], torch.tensor([7, 7, 2, 2, 9], dtype=torch.uint8)
    classes, means = geometry.class_means(features, labels)
    assert (classes.tolist(), means.tolist()) == ([2, 7, 9], [[8, 1], [0, 1], [4, 1]])
    assert geometry.within_class_spread(features, labels) == pytest.approx(math.sqrt(0.8), rel=1e-14)
    assert geometry.mean_distance(means) == pytest.approx(16 / 3, rel=1e-14)
    assert geometry.tightness(features, labels) == pytest.approx(math.sqrt(0.8) * 3 / 16, rel=1e-14)
    assert geometry.regularity(means) == 0.5


@given(st.integers(2, 40), scales, seeds)
def test_a_simplex_is_regular(corners, scale, seed):
    turn = rotation(corners + 2, np.random.default_rng(seed))
    points = scale * np.eye(corners) @ turn[:corners] + scale
    assert geometry.regularity(points) == pytest.approx(1, rel=1e-12)
    assert geometry.mean_distance(points) == pytest.approx(scale * math.sqrt(2), rel=1e-12)
    similarity = geometry.template_similarity(points)
    expected = np.full((corners, corners), -1 / (corners - 1))
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(similarity, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometry.mean_distance(SQUARE[:1]), "points must be at least two, got 1"),
        (lambda: geometry.mean_distance(SQUARE[0]), "points must be a matrix with at least one row, got shape (2,)"),
        (lambda: geometry.mean_distance([[0.0, math.nan], [1, 2]]), "points must be finite, got NaN or infinity"),
        (lambda: geometry.regularity(SQUARE[:1]), "points must be at least two, got 1"),
        (lambda: geometry.regularity(SQUARE[[1, 1, 1]]), "points must not all be equal"),
        (lambda: geometry.class_means(SQUARE, [0, 1]), "labels must have shape (N,) for features (N, D), got (2,)"),
        (lambda: geometry.class_means(SQUARE, [0, 1, 2, -1]), "labels must be at least 0, got -1 to 2"),
        (lambda: geometry.class_means(SQUARE, [[0], [1, 2]]), "labels must have shape (N,) for features (N, D), got"),
        (lambda: geometry.class_means([[1.0], [1, 2]], [0, 1]), "features must be a real number or an array of them"),
        (lambda: geometry.class_means([], []), "features must be a matrix with at least one row, got shape (0,)"),
        (lambda: geometry.within_class_spread(SQUARE, []), "labels must have shape (N,) for features (N, D), got (0,)"),
        (
            lambda: geometry.tightness(SQUARE, [3, 3, 3, 3]),
            "labels must name two classes or more with different mean features, got 1 classes",
        ),
        # Regression: it was a division by zero.
        (
            lambda: geometry.tightness(SQUARE[[0, 1, 0, 1]], [0, 0, 1, 1]),
            "labels must name two classes or more with different mean features, got 2 classes",
        ),
        # Regression: means of 0.1 differ in their last digit.
        (
            lambda: geometry.tightness(np.full((8, 2), 0.1), [0, 0, 1, 1, 1, 2, 2, 2]),
            "labels must name two classes or more with different mean features, got 3 classes",
        ),
    ],
)
def test_points_and_labels_without_clusters(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


# --- templates among themselves, and what logits tell of features


@given(layers(st.integers(1, 30), st.integers(3, 60)), st.floats(-10, 10))
def test_similarity_is_the_cosine_of_centred_templates(case, shift):
    weight = case[2]
    similarity, size = geometry.template_similarity(weight), len(weight)
    centred = [w - sum(weight) / size for w in weight]
    for i, j in itertools.product(range(0, size, 7), range(0, size, 5)):
        cosine = centred[i] @ centred[j] / math.sqrt((centred[i] @ centred[i]) * (centred[j] @ centred[j]))
        assert similarity[i, j] == pytest.approx(cosine, abs=1e-9)
    np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-12)
    np.testing.assert_allclose(similarity, similarity.T, atol=1e-14)
    moved = geometry.template_similarity(weight + shift * np.abs(weight).max())  # changes no probability
    if weight.shape[1] > 1:
        np.testing.assert_allclose(moved, similarity, atol=1e-6)


@given(st.integers(2, 20), st.integers(3, 20), seeds)
def test_similarity_against_corrcoef(width, num_classes, seed):
    """With rows that sum to 0, cosines are correlations."""
    weight = np.random.default_rng(seed).normal(size=(num_classes, width + 1))
    weight -= weight.mean(axis=1, keepdims=True)
    expected = np.corrcoef(weight - weight.mean(axis=0))
    np.testing.assert_allclose(geometry.template_similarity(weight), expected, atol=1e-10)


@pytest.mark.parametrize(
    "weight",
    [
        [[1.0, 2.0]],
        np.ones((3, 2)),
        np.full((3, 2), 0.1),  # Regression: their mean is not 0.1, and all cosines came out as 1
        [[0.1, 0.3], [0.3, 0.9], [0.2, 0.6]],  # the last is the mean, up to rounding
    ],
)
def test_templates_without_a_direction(weight):
    with pytest.raises(ValueError, match="weight must hold at least two templates, none of them equal to their mean"):
        geometry.template_similarity(weight)


@given(layers(st.integers(1, 40), st.integers(3, 40)))
def test_what_logits_tell_of_features(case):
    """An orthogonal projection on the templates' differences, found here by least squares, in an orthonormal basis."""
    features, _, weight, bias = case
    logits = features @ weight.T + (0 if bias is None else bias)
    inside, size = geometry.in_span(logits, weight, bias), size_of(features, weight)
    edges = (weight[1:] - weight[0]).T  # (D, K − 1)
    flatness = np.linalg.svd(edges, compute_uv=False)
    condition = flatness[0] / flatness[-1]
    rank = min(edges.shape)
    assert inside.features.shape == (len(features), rank)
    assert inside.weight.shape == (len(weight), rank)
    seen, templates = ((edges @ np.linalg.lstsq(edges, part.T, rcond=None)[0]).T for part in (features, weight))
    together = np.concatenate([*inside])  # all inner products, so all lengths, distances and angles
    expected = np.concatenate([seen, templates])
    near(together @ together.T, expected @ expected.T, (size * condition) ** 2, 1e-9)
    again = inside.features @ inside.weight.T + (0 if bias is None else bias)
    difference = again - logits  # the same logits, up to a constant a row
    near(difference, difference.mean(axis=1, keepdims=True) * np.ones(len(weight)), size_of(logits) * condition)
    # A shift of an example's logits tells nothing.
    near(geometry.in_span(logits + size_of(logits), weight, bias).features, inside.features, size * condition, 1e-9)


@given(layers(st.integers(1, 40), st.integers(3, 40)))
def test_differences_of_squared_distances_can_be_had_from_logits(case):
    features, labels, weight, bias = case
    logits = features @ weight.T + (0 if bias is None else bias)
    inside, inside_weight = geometry.in_span(logits, weight, bias)
    found = geometry.squared_distances(inside, inside_weight, bias)
    expected = geometry.squared_distances(features, weight, bias)
    flatness = np.linalg.svd(weight[1:] - weight[0], compute_uv=False)
    size = size_of(expected) * (flatness[0] / flatness[-1]) ** 2
    near(found - found[:, :1], expected - expected[:, :1], size, 1e-10)


def test_templates_in_a_smaller_space_than_their_number_or_the_features_allow():
    weight = np.outer([1.0, 2.0, 4.0, -3.0], [3.0, 4.0])  # on a line
    inside = geometry.in_span(np.array([[1.0, 0, 0]]).T @ np.array([[1.0, 2.0, 4.0, -3.0]]), weight)
    assert inside.features.shape == (3, 1)
    near(np.abs(inside.weight[:, 0]), [5, 10, 20, 15], 1, 1e-12)
    near(np.abs(inside.features[:, 0]), [0.2, 0, 0], 1, 1e-12)


@pytest.mark.parametrize(
    ("logits", "weight", "bias", "message"),
    [
        (np.zeros((2, 3)), SQUARE, None, "logits must have shape (N, 4), one column a template, got (2, 3)"),
        (np.zeros(4), SQUARE, None, "logits must be a matrix with at least one row, got shape (4,)"),
        ([[0, 0, 0, math.nan]], SQUARE, None, "logits must be finite, got NaN or infinity"),
        (np.zeros((2, 4)), SQUARE, np.zeros(3), "bias must have shape (K,) for weight (K, D), got (3,) for (4, 2)"),
        (np.zeros((2, 4)), [], None, "weight must be a matrix with at least one row, got shape (0,)"),
        (np.zeros((2, 4)), np.full((4, 3), 0.1), None, "weight must hold different templates, got equal ones"),
    ],
)
def test_logits_that_do_not_fit_the_templates(logits, weight, bias, message):
    with pytest.raises(ValueError) as caught:
        geometry.in_span(logits, weight, bias)
    assert str(caught.value) == message


@given(st.integers(2, 30), st.integers(1, 20), scales, scales, seeds)
def test_shares_of_variance(count, width, scale, length, seed):
    rng = np.random.default_rng(seed)
    features = scale * (rng.normal(size=(count, width)) * rng.exponential(size=width) + 5)
    directions = rotation(width, rng)
    shares = [geometry.share_along(features, length * direction) for direction in directions]
    assert math.fsum(shares) == pytest.approx(1, rel=1e-10)
    assert all(0 <= share <= 1 + 1e-12 for share in shares)
    expected = [np.var(features @ direction) / features.var(axis=0).sum() for direction in directions]
    assert shares == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert geometry.share_along(features, -directions[0]) == pytest.approx(shares[0], rel=1e-12)
    line = np.outer(rng.normal(size=count), directions[0])
    assert geometry.share_along(line, directions[0]) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e200])
def test_shares_along_a_direction_of_any_length(scale):
    """Regression: the square of 1e-200 vanishes, and the share was NaN."""
    assert geometry.share_along(SQUARE, [scale, 0.0]) == geometry.share_along(SQUARE, [1.0, 0.0])
    if scale > 1e-300:
        expected = geometry.share_along(SQUARE, [1.0, 2.0])
        assert geometry.share_along(scale * SQUARE, [1.0, 2.0]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("features", "direction", "message"),
    [
        (SQUARE, [1.0, 0.0, 0.0], "direction must be finite, not 0, and of shape (2,), got [1. 0. 0.]"),
        (SQUARE, [0.0, 0.0], "direction must be finite, not 0, and of shape (2,), got [0. 0.]"),
        (SQUARE, [1.0, math.nan], "direction must be finite, not 0, and of shape (2,)"),
        (SQUARE[:1], [1.0, 0.0], "features must vary, got 1 equal rows"),
        (SQUARE[[1, 1]], [1.0, 0.0], "features must vary, got 2 equal rows"),
        (np.full((3, 2), 0.1), [1.0, 0.0], "features must vary, got 3 equal rows"),  # Regression: 0.5, of rounding
    ],
)
def test_shares_of_nothing(features, direction, message):
    with pytest.raises(ValueError) as caught:
        geometry.share_along(features, direction)
    assert message in str(caught.value)


# --- neural collapse


@st.composite
def collapsed(draw):
    """Features at the corners of a regular simplex somewhere in space, templates in the same directions, and a bias
    that makes up for the place: (features, labels, weight, bias)."""
    classes, each, stretch = draw(st.integers(2, 20)), draw(st.integers(1, 5)), draw(scales)
    scale, rng = draw(scales), np.random.default_rng(draw(seeds))
    width = classes - 1 + draw(st.integers(0, 5))
    simplex = np.linalg.svd(np.eye(classes) - 1 / classes)[0][:, : classes - 1]  # rows: a simplex around 0
    directions = simplex @ rotation(width, rng)[: classes - 1]
    place = scale * rng.normal(size=width)
    labels = rng.permutation(np.repeat(np.arange(classes), each))
    weight = stretch * (directions + rng.normal(size=width))  # a shift of all templates changes nothing
    return scale * directions[labels] + place, labels, weight, -weight @ place


@given(collapsed())
def test_collapse_is_zero_in_every_measure(case):
    measures = geometry.neural_collapse(*case)
    assert all(isinstance(value, float) for value in measures)
    assert measures == pytest.approx((0, 0, 0, 0, 0), abs=1e-9)
    assert measures.nearest == 0


@st.composite
def networks(draw):
    """(features, labels, weight, bias or None) of a network that is not collapsed, with classes of any sizes."""
    classes, width, scale = draw(st.integers(2, 12)), draw(st.integers(2, 15)), draw(scales)
    rng, total = np.random.default_rng(draw(seeds)), classes + draw(st.integers(0, 3))
    known = rng.permutation(total)[:classes]
    labels = rng.permutation(np.concatenate([known, rng.choice(known, size=draw(st.integers(5, 40)))]))
    centres = rng.normal(size=(total, width))
    weight = centres + 0.5 * rng.normal(size=(total, width))
    bias = scale * rng.normal(size=total) if draw(st.booleans()) else None
    return scale * (centres[labels] + 0.5 * rng.normal(size=(len(labels), width))), labels, weight, bias


def slow_collapse(features, labels, weight, bias):
    """The five measures by their definitions, example by example and pair by pair."""
    classes = sorted(set(labels.tolist()))
    means = {k: features[labels == k].mean(axis=0) for k in classes}
    grand = sum(means.values()) / len(classes)
    width = features.shape[1]
    within, between = np.zeros((width, width)), np.zeros((width, width))
    for f, y in zip(features, labels.tolist(), strict=True):
        within += np.outer(f - means[y], f - means[y]) / len(features)
    for k in classes:
        between += np.outer(means[k] - grand, means[k] - grand) / len(classes)
    norms = [np.linalg.norm(means[k] - grand) for k in classes]
    cosines = [
        (means[j] - grand) @ (means[k] - grand) / (np.linalg.norm(means[j] - grand) * np.linalg.norm(means[k] - grand))
        for j, k in itertools.combinations(classes, 2)
    ]
    templates = np.array([weight[k] - sum(weight[j] for j in classes) / len(classes) for k in classes])
    centred = np.array([means[k] - grand for k in classes])
    wrong = 0
    for f in features:
        nearest = min(classes, key=lambda k: np.linalg.norm(f - means[k]))
        logits = {k: weight[k] @ f + (0 if bias is None else bias[k]) for k in classes}
        wrong += nearest != max(classes, key=logits.get)
    return (
        np.trace(within @ np.linalg.pinv(between, rcond=1e-9)) / len(classes),
        np.std(norms) / np.mean(norms),
        np.mean([abs(cosine + 1 / (len(classes) - 1)) for cosine in cosines]),
        np.linalg.norm(templates / np.linalg.norm(templates) - centred / np.linalg.norm(centred)),
        wrong / len(features),
    )


@given(networks())
def test_collapse_against_its_definition(case):
    found = geometry.neural_collapse(*case)
    assert found == pytest.approx(slow_collapse(*case), rel=1e-6, abs=1e-9)
    assert found.within > 0


@given(networks(), st.floats(1e-3, 1e3), seeds)
def test_collapse_has_no_direction_and_no_scale(case, stretch, seed):
    features, labels, weight, bias = case
    before = geometry.neural_collapse(*case)
    turn = rotation(features.shape[1], np.random.default_rng(seed))
    turned = geometry.neural_collapse(features @ turn, labels, weight @ turn, bias)
    assert turned == pytest.approx(before, rel=1e-6, abs=1e-9)
    # Features stretched, and the bias with them: the predictions stay, too.
    stretched = geometry.neural_collapse(stretch * features, labels, weight, None if bias is None else stretch * bias)
    assert stretched == pytest.approx(before, rel=1e-6, abs=1e-9)


@given(networks())
def test_absent_classes_play_no_part(case):
    """Renumbered without the absent classes, with their templates dropped, nothing changes."""
    features, labels, weight, bias = case
    present, renumbered = np.unique(labels, return_inverse=True)
    small = geometry.neural_collapse(features, renumbered, weight[present], None if bias is None else bias[present])
    assert small == geometry.neural_collapse(features, labels, weight, bias)
    wider = np.concatenate([weight, np.full((1, weight.shape[1]), 1e6)])
    assert geometry.neural_collapse(features, labels, wider, None if bias is None else [*bias, 1e6]) == small


def test_a_class_mean_at_the_mean_of_all_has_a_cosine_of_zero():
    """Three means on a line, the middle one at the centre: cosines −1, 0, 0, so |cosine + 1/2| is ½ each."""
    points = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    measures = geometry.neural_collapse(points, [0, 1, 2], points)
    assert measures.angles == 0.5
    assert measures.within == 0
    assert measures.norms == pytest.approx(1 / math.sqrt(2), rel=1e-14)


@pytest.mark.parametrize(
    ("features", "labels", "weight", "bias", "error", "message"),
    [
        (SQUARE, [1] * 4, SQUARE, None, ValueError, "labels must name two classes or more with different mean"),
        (np.ones((4, 2)), [0, 1, 2, 3], SQUARE, None, ValueError, "with different mean features, got 4 classes"),
        # Regression: class means of 0.1 differ in their last digit, and those digits were measured.
        (np.full((8, 2), 0.1), [0, 0, 1, 1, 1, 2, 2, 2], SQUARE, None, ValueError, "with different mean features, got"),
        (SQUARE, [0, 1, 2, 2], np.full((3, 2), 0.1), None, ValueError, "weight must hold different templates for the"),
        (SQUARE, [0, 1, 2, 4], SQUARE, None, ValueError, "labels must lie in [0, 3], got 0 to 4"),
        (SQUARE, [0, 1, 2], SQUARE, None, ValueError, "labels must have shape (N,) for features (N, D), got (3,)"),
        (SQUARE, None, SQUARE, None, ValueError, "labels must have shape (N,) for features (N, D), got ()"),
        (SQUARE, [0, 1, 2, 3.0], SQUARE, None, TypeError, "labels must be integers (class indices), got dtype float64"),
        (SQUARE, [0, 1, 2, 3], SQUARE, [0, 0], ValueError, "bias must have shape (K,) for weight (K, D), got (2,)"),
        # Regression: numpy's own error of its matrix product.
        (np.eye(4, 3), [0, 1, 2, 3], SQUARE, None, ValueError, "features must have 2 columns, got (4, 3)"),
        (np.eye(4, 3), [0, 1, 2, 3], SQUARE, [0.0] * 4, ValueError, "features must have 2 columns, got (4, 3)"),
        (
            SQUARE[0],
            [0, 1],
            SQUARE,
            None,
            ValueError,
            "features must be a matrix with at least one row, got shape (2,)",
        ),
    ],
)
def test_networks_without_collapse_measures(features, labels, weight, bias, error, message):
    with pytest.raises(error) as caught:
        geometry.neural_collapse(features, labels, weight, bias)
    assert message in str(caught.value)
