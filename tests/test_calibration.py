"""Every measure against an independent one: torch, torchmetrics, scikit-learn, scipy, or a direct loop or sum."""

import math
import warnings
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.special import softmax
from scipy.stats import binom, binomtest
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from strategies import class_counts, logits_and_labels
from torchmetrics.functional import classification as torchmetrics

from lsbook import calibration

HAND_MADE = np.log([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.25, 0.25], [0.2, 0.4, 0.4]])
LABELS = np.array([0, 1, 2, 1])


def test_hand_made_case():
    assert calibration.accuracy(HAND_MADE, LABELS) == 0.5  # a tie goes to the first class, which is right here
    expected = -(math.log(0.7) + math.log(0.3) + math.log(0.25) + math.log(0.4)) / 4
    assert calibration.negative_log_likelihood(HAND_MADE, LABELS) == pytest.approx(expected, rel=1e-14)
    assert calibration.confidence(HAND_MADE) == pytest.approx([0.7, 0.6, 0.5, 0.4], rel=1e-14)
    gaps = calibration.logit_gaps(HAND_MADE, LABELS)
    assert gaps[0] == pytest.approx([math.log(3.5), math.log(7)])
    assert gaps[1] == pytest.approx([math.log(3), math.log(0.5)])


@given(logits_and_labels())
def test_against_torch(case):
    logits, labels = case
    for given_logits, given_labels in ((logits, labels), (logits.numpy(), labels.numpy())):
        nll = calibration.negative_log_likelihood(given_logits, given_labels)
        assert nll == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12, abs=1e-12)
        assert calibration.accuracy(given_logits, given_labels) == (logits.argmax(1) == labels).double().mean()
        top = logits.softmax(-1).max(-1).values.numpy()
        np.testing.assert_allclose(calibration.confidence(given_logits), top, rtol=1e-11)


@given(logits_and_labels(class_counts.filter(lambda k: k < 3000)))
def test_gaps(case):
    logits, labels = (t.numpy() for t in case)
    gaps = calibration.logit_gaps(logits, labels)
    assert gaps.shape == (len(labels), logits.shape[1] - 1)
    for row, label, found in zip(logits, labels, gaps, strict=True):
        assert (found == row[label] - np.delete(row, label)).all()
    shifted = calibration.logit_gaps(logits + 1.5, labels)  # the offset is free
    np.testing.assert_allclose(shifted, gaps, atol=1e-11)


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 7)), rng.integers(7, size=500)
    probs = torch.tensor(logits).softmax(-1).numpy()
    assert calibration.accuracy(logits, labels) == pytest.approx(accuracy_score(labels, logits.argmax(1)), rel=1e-14)
    assert calibration.negative_log_likelihood(logits, labels) == pytest.approx(log_loss(labels, probs), rel=1e-12)


def test_half_precision_logits_are_summed_in_float64():
    logits = np.array([[1e4, -1e4]], dtype=np.float16)
    assert calibration.negative_log_likelihood(logits, np.array([1])) == 20000.0


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (np.zeros(3), [0], ValueError, "logits must have shape (N, K) with N ≥ 1 and K ≥ 2, got (3,)"),
        (np.zeros((2, 3)), [0], ValueError, "labels must have shape (N,) for logits (N, K), got (1,) for (2, 3)"),
        (
            np.zeros((0, 3)),
            np.zeros(0, int),
            ValueError,
            "logits must have shape (N, K) with N ≥ 1 and K ≥ 2, got (0, 3)",
        ),
        (np.zeros((1, 3)), [3], ValueError, "labels must lie in [0, 2], got 3 to 3"),
        (np.zeros((1, 3)), [-1], ValueError, "labels must lie in [0, 2], got -1 to -1"),
        (np.zeros((1, 3)), [0.0], TypeError, "labels must be integers (class indices), got dtype float64"),
        (np.zeros((1, 3)), [True], TypeError, "labels must be integers (class indices), got dtype bool"),
        (np.zeros((2, 1)), [0, 0], ValueError, "with N ≥ 1 and K ≥ 2, got (2, 1)"),
        ([["a", "b"]], [0], TypeError, "logits must be a real number or an array of them, got [['a', 'b']]"),
        ([[1j, 0]], [0], TypeError, "logits must be a real number or an array of them"),
        ([[0, math.nan, 1]], [0], ValueError, "logits must be finite, got NaN or infinity"),
    ],
)
@pytest.mark.parametrize("name", ["accuracy", "negative_log_likelihood", "logit_gaps"])
def test_bad_input(name, logits, labels, error, message):
    with pytest.raises(error) as caught:
        getattr(calibration, name)(logits, labels)
    assert message in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_of_any_precision_and_with_gradients(dtype):
    """Regression: numpy has no bfloat16, and takes no tensor that requires a gradient."""
    logits = torch.tensor(HAND_MADE).to(dtype).requires_grad_()
    expected = calibration.negative_log_likelihood(logits.detach().double().numpy(), LABELS)
    assert calibration.negative_log_likelihood(logits, torch.tensor(LABELS)) == expected
    assert calibration.logit_gaps(logits, LABELS).dtype == np.float64


# --- calibration: cases by hand

SIX = np.array([0.95, 0.85, 0.8, 0.7, 0.65, 0.55])
SIX_RIGHT = np.array([1, 1, 0, 1, 0, 1])


def two_classes(confidence, right):
    """probs (N, 2) and labels with these confidences (at least ½) in class 0, and right predictions where wanted."""
    confidence = np.asarray(confidence)
    labels = np.where(np.broadcast_to(right, confidence.shape), 0, 1)
    return np.stack([confidence, 1 - confidence], axis=1), labels


def made_up(examples=400, classes=7, seed=0, scale=2.0):
    """Logits, and labels drawn from their softmax: a network that is calibrated; and a generator for more."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(examples, classes)) * scale
    labels = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((examples, 1))).argmax(axis=1)
    return logits, labels, rng


def test_six_points_by_hand():
    """Five bins: (0.4, 0.6] holds one, (0.6, 0.8] three, (0.8, 1] two."""
    case = two_classes(SIX, SIX_RIGHT)
    bins = calibration.reliability_bins(*case, num_bins=5)
    np.testing.assert_allclose(bins.edges, [0, 0.2, 0.4, 0.6, 0.8, 1], rtol=1e-15)
    assert bins.counts.tolist() == [0, 0, 1, 3, 2]
    np.testing.assert_allclose(bins.confidence, [np.nan, np.nan, 0.55, 2.15 / 3, 0.9], rtol=1e-15)
    np.testing.assert_allclose(bins.accuracy, [np.nan, np.nan, 1, 1 / 3, 1], rtol=1e-15)
    expected = (0.45 + 1.15 + 0.2) / 6
    assert bins.error == pytest.approx(expected, rel=1e-14)
    assert calibration.expected_calibration_error(*case, num_bins=5) == bins.error
    squares = (1 - SIX[SIX_RIGHT == 1]) ** 2, SIX[SIX_RIGHT == 0] ** 2
    assert calibration.brier_score(*case) == pytest.approx(2 * np.concatenate(squares).sum() / 6, rel=1e-14)


@pytest.mark.parametrize(
    ("confidence", "counts"),
    [(0.5, [1, 0]), (np.nextafter(0.5, 1), [0, 1]), (1.0, [0, 1]), (0.75, [0, 1])],
)
def test_a_confidence_on_an_edge_counts_in_the_lower_bin_and_1_in_the_last(confidence, counts):
    for right in (True, False):
        bins = calibration.reliability_bins(*two_classes([confidence], right), num_bins=2)
        assert bins.counts.tolist() == counts
        assert bins.num_correct.tolist() == [right * count for count in counts]


def test_a_probability_of_0_counts_in_the_first_bin():
    """The largest of K probabilities is at least 1/K, but classwise the others count too: all of these are 0 or 1."""
    assert calibration.classwise_ece(np.eye(3), [0, 1, 2], num_bins=4) == 0
    assert calibration.classwise_ece(np.eye(3), [1, 2, 0], num_bins=4) == pytest.approx(2 / 3)


def test_a_confidence_of_1_shares_the_last_bin():
    """One of 1 that is wrong and one of 0.95 that is right: |½ − 0.975|, where bins of their own give 0.525."""
    case = two_classes([1.0, 0.95], [False, True])
    assert calibration.expected_calibration_error(*case) == pytest.approx(0.475, rel=1e-14)


@pytest.mark.parametrize("strategy", ["width", "mass"])
@pytest.mark.parametrize("num_bins", [1, 2, 15, 1000])
def test_all_right_all_wrong_and_one_example(num_bins, strategy):
    """Also with more bins than examples."""
    for confidence in ([1.0], [0.9], [1.0, 1.0, 0.7], [0.5, 0.5]):
        for right in (True, False):
            ece = calibration.expected_calibration_error(*two_classes(confidence, right), num_bins, strategy)
            assert ece == pytest.approx(abs(right - np.mean(confidence)), rel=1e-14)


def test_equal_mass():
    """Sizes differ by no more than one, or a rounding; equal confidences share a bin."""
    confidence = np.random.default_rng(0).uniform(0.5, 1, 1001)
    for num_bins in (1, 2, 10, 15, 100):
        counts = calibration.reliability_bins(*two_classes(confidence, True), num_bins, "mass").counts
        assert (counts.sum(), len(counts)) == (1001, num_bins)
        assert set(counts) <= {1001 // num_bins + step for step in (-1, 0, 1, 2)}
    bins = calibration.reliability_bins(*two_classes([0.6] * 50 + [0.9] * 2, True), 10, "mass")
    assert sorted(bins.counts)[-3:] == [0, 2, 50]


# --- against independent implementations


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 100])
@pytest.mark.parametrize("classes", [2, 7, 100])
def test_ece_against_torchmetrics(classes, num_bins):
    """In its float32, on probabilities away from edges, where nothing hangs on which bin an edge belongs to."""
    logits, labels, _ = made_up(1000, classes)
    probs = softmax(logits, axis=1)
    assert np.abs(probs[..., None] - np.linspace(0, 1, num_bins + 1)[1:]).min() > 1e-8
    expected = torchmetrics.multiclass_calibration_error(
        torch.tensor(probs), torch.tensor(labels), classes, n_bins=num_bins, norm="l1"
    )
    assert calibration.expected_calibration_error(probs, labels, num_bins) == pytest.approx(expected.item(), abs=1e-6)
    by_class = [
        torchmetrics.binary_calibration_error(torch.tensor(p), torch.tensor(labels == k), n_bins=num_bins, norm="l1")
        for k, p in enumerate(probs.T)
    ]
    assert calibration.classwise_ece(probs, labels, num_bins) == pytest.approx(np.mean(by_class), abs=1e-6)


def test_where_torchmetrics_is_wrong():
    """It gives a confidence of exactly 1 a bin of its own, beyond the last edge (torchmetrics issue 3510)."""
    probs, labels = two_classes([1.0, 0.95], [False, True])
    found = torchmetrics.multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), 2, n_bins=15)
    assert found.item() == pytest.approx(0.525)
    assert calibration.expected_calibration_error(probs, labels) == pytest.approx(0.475)
    # With one bin there is no question which one: the ECE is |accuracy − mean confidence|.
    probs, labels = two_classes([1.0, 0.6], [False, True])
    found = torchmetrics.multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), 2, n_bins=1)
    assert found.item() == pytest.approx(0.7)
    assert calibration.expected_calibration_error(probs, labels, 1) == pytest.approx(0.3)
    # On an inner edge it takes the upper bin. That is a choice; this package takes the lower one, as Guo et al. do.
    probs, labels = two_classes([0.75, 0.8], [False, True])
    found = torchmetrics.multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), 2, n_bins=4)
    assert found.item() == pytest.approx(0.275)
    assert calibration.expected_calibration_error(probs, labels, 4) == pytest.approx((0.75 + 0.2) / 2)


@pytest.mark.parametrize("num_bins", [1, 4, 15, 60])
def test_bins_against_scikit_learn(num_bins):
    """`calibration_curve` has the same edge rule, so edges are allowed."""
    confidence = np.random.default_rng(0).choice(np.linspace(0.5, 1, 61), 500)
    right = np.random.default_rng(1).random(500) < confidence
    bins = calibration.reliability_bins(*two_classes(confidence, right), num_bins)
    accuracy, mean = calibration_curve(right, confidence, n_bins=num_bins)
    np.testing.assert_allclose(bins.accuracy[bins.counts > 0], accuracy, rtol=1e-12)
    np.testing.assert_allclose(bins.confidence[bins.counts > 0], mean, rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 7, 100])
def test_brier_score_against_scikit_learn(classes):
    logits, labels, _ = made_up(300, classes)
    probs = softmax(logits, axis=1)
    expected = brier_score_loss(labels, probs, labels=range(classes), scale_by_half=False)
    assert calibration.brier_score(probs, labels) == pytest.approx(expected, rel=1e-12)


def test_brier_score_of_a_sure_network_is_not_lost_to_rounding():
    """Regression: Σ p² − 2 p_y + 1 cancels, to 0 or below it."""
    tiny = 2.0 ** -np.arange(20, 53)
    assert calibration.brier_score(*two_classes(1 - tiny, True)) == pytest.approx(2 * (tiny**2).mean(), rel=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_accuracy_interval_against_scipy(level):
    rng = np.random.default_rng(0)
    counts = np.array([0, 1, 1, 5, 5, 40, 1000, 1000])
    right = np.array([0, 0, 1, 0, 5, 13, 999, 1000])
    bins = calibration.Bins(np.linspace(0, 1, 9), counts, counts * rng.random(8), right)
    low, high = bins.accuracy_interval(level)
    assert np.isnan([low[0], high[0]]).all()
    expected = [binomtest(k, n).proportion_ci(level, "exact") for k, n in zip(right[1:], counts[1:], strict=True)]
    np.testing.assert_allclose(np.stack([low, high], axis=1)[1:], expected, rtol=1e-9, atol=1e-12)


def ece_by_loop(confidence, right, edges):
    total = 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = [i for i, c in enumerate(confidence) if low < c <= high or (c == 0 == low)]
        total += abs(sum(right[i] - confidence[i] for i in inside)) / len(confidence)
    return total


@pytest.mark.parametrize("num_bins", [1, 3, 15])
@pytest.mark.parametrize("strategy", ["width", "mass"])
def test_ece_against_a_loop(num_bins, strategy):
    logits, labels, _ = made_up(200, 5)
    probs = softmax(logits, axis=1)
    top, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    # The b-th of B quantiles is the smallest value that at least b/B of the examples do not exceed.
    inner = [np.sort(top)[math.ceil(200 * b / num_bins) - 1] for b in range(1, num_bins)]
    edges = np.linspace(0, 1, num_bins + 1) if strategy == "width" else np.array([0, *inner, 1])
    expected = ece_by_loop(top, right, edges)
    assert calibration.expected_calibration_error(probs, labels, num_bins, strategy) == pytest.approx(expected)
    if strategy == "width":
        by_class = [ece_by_loop(p, labels == k, edges) for k, p in enumerate(probs.T)]
        assert calibration.classwise_ece(probs, labels, num_bins) == pytest.approx(np.mean(by_class))


def smooth_by_sum(confidence, right, cells=1000):
    """The smooth ECE by its definition: a direct sum over examples of the Gaussian and its images in both walls."""
    grid = (np.arange(cells) + 0.5) / cells
    images = np.concatenate([s * confidence + 2 * k for k in range(-3, 4) for s in (1, -1)])
    weights = np.tile((right - confidence) / len(confidence), 14)

    def error(width):
        kernel = np.exp(-(((grid[:, None] - images) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
        return np.abs(kernel @ weights).mean()

    return brentq(lambda width: error(width) - width, 1e-3, 1.0, xtol=1e-5)


@pytest.mark.parametrize(("examples", "factor"), [(1, 1.0), (6, 1.0), (100, 1.0), (100, 3.0), (100, 0.2)])
def test_smooth_ece_against_a_direct_sum(examples, factor):
    logits, labels, _ = made_up(examples, 4)
    probs = softmax(factor * logits, axis=1)
    expected = smooth_by_sum(probs.max(axis=1), probs.argmax(axis=1) == labels)
    assert calibration.smooth_ece(probs, labels) == pytest.approx(expected, abs=2e-4)


def test_smooth_ece_at_its_ends():
    """Regression: sure and always wrong, it is 1, which rounding could put outside the bracket."""
    for examples in (1, 3, 10, 77, 1000):
        for cells in (1, 2, *range(3, 200, 7), 4096):
            case = two_classes(np.ones(examples), False)
            assert calibration.smooth_ece(*case, cells=cells) == pytest.approx(1.0, rel=1e-12)
            assert calibration.smooth_ece(*two_classes(np.ones(examples), True), cells=cells) == 0
    # All residuals in one place keep their sum, whatever the width.
    assert calibration.smooth_ece(*two_classes([0.7] * 4, [1, 1, 1, 0])) == pytest.approx(0.05, abs=1e-9)


def debiased_by_draws(bins, draws, rng):
    """Kumar et al.: draw the accuracies anew around those found, and take off by how much the ECE grows."""
    kept = bins.counts > 0
    n, accuracy, confidence = bins.counts[kept], bins.accuracy[kept], bins.confidence[kept]
    new = rng.normal(accuracy, np.sqrt(accuracy * (1 - accuracy) / n), (draws, len(n)))
    errors = (np.abs(new - confidence) * n).sum(axis=1) / n.sum()
    return 2 * bins.error - errors.mean(), errors.std() / np.sqrt(draws)


@pytest.mark.parametrize("factor", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("strategy", ["width", "mass"])
def test_debiased_ece_against_draws(factor, strategy):
    logits, labels, rng = made_up(500, 5)
    probs = softmax(factor * logits, axis=1)
    bins = calibration.reliability_bins(probs, labels, 15, strategy)
    expected, spread = debiased_by_draws(bins, 100_000, rng)
    assert abs(calibration.debiased_ece(probs, labels, 15, strategy) - expected) < 4 * spread


# --- properties over the whole range


@st.composite
def probs_and_labels(draw, max_rows=12):
    """probs (N, K), K = 2 … 1000, from flat to saturated, often with repeated rows; labels often the likeliest."""
    logits, labels = draw(
        logits_and_labels(st.one_of(st.sampled_from([2, 3, 10, 1000]), st.integers(2, 1000)), max_rows=max_rows)
    )
    probs = logits.softmax(-1).numpy()
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        probs = probs[rng.integers(len(probs), size=len(probs))]
    return probs, np.where(rng.random(len(probs)) < draw(st.sampled_from([0, 0.5, 1])), probs.argmax(1), labels.numpy())


numbers_of_bins = st.one_of(st.sampled_from([1, 2, 15, 100]), st.integers(1, 1000))
strategies_of_bins = st.sampled_from(["width", "mass"])


@settings(max_examples=100)
@given(probs_and_labels(), numbers_of_bins, strategies_of_bins, st.randoms(use_true_random=False))
def test_calibration_errors_are_in_range_and_know_no_order(case, num_bins, strategy, random):
    probs, labels = case
    order = random.sample(range(len(labels)), len(labels))
    again = probs[order], labels[order]
    for measure in (calibration.expected_calibration_error, calibration.debiased_ece):
        value = measure(probs, labels, num_bins, strategy)
        assert measure(*again, num_bins, strategy) == pytest.approx(value, abs=1e-12)
        assert value <= 1
    ece = calibration.expected_calibration_error(probs, labels, num_bins, strategy)
    assert ece >= 0
    assert ece >= calibration.expected_calibration_error(probs, labels, 1) - 1e-12  # |accuracy − mean confidence|
    assert 0 <= calibration.classwise_ece(probs, labels, 15) <= 1
    assert 0 <= calibration.smooth_ece(probs, labels) <= 1
    assert calibration.smooth_ece(*again) == pytest.approx(calibration.smooth_ece(probs, labels), abs=1e-8)
    assert 0 <= calibration.brier_score(probs, labels) <= 2 + 1e-12
    assert (probs[order] == again[0]).all()


@given(probs_and_labels(), numbers_of_bins, strategies_of_bins)
def test_bins_hold_every_example_once(case, num_bins, strategy):
    probs, labels = case
    bins = calibration.reliability_bins(probs, labels, num_bins, strategy)
    assert bins.counts.sum() == len(labels)
    assert bins.num_correct.sum() == (probs.argmax(1) == labels).sum()
    assert bins.sum_confidence.sum() == pytest.approx(probs.max(1).sum())
    assert [len(getattr(bins, f.name)) for f in fields(bins)] == [num_bins + 1] + 3 * [num_bins]
    assert (np.diff(bins.edges) >= 0).all()
    assert (bins.edges[[0, -1]] == [0, 1]).all()
    held, low, high = bins.counts > 0, bins.edges[:-1], bins.edges[1:]
    assert (bins.confidence[held] > low[held] - 1e-12).all()
    assert (bins.confidence[held] <= high[held] + 1e-12).all()
    assert np.isnan(bins.accuracy[~held]).all()
    below, above = bins.accuracy_interval()
    assert (below[held] <= bins.accuracy[held]).all()
    assert (bins.accuracy[held] <= above[held]).all()


@given(probs_and_labels(), numbers_of_bins, st.data())
def test_bins_of_batches_add_up(case, num_bins, data):
    probs, labels = case
    cut = data.draw(st.integers(1, max(1, len(labels) - 1)))
    whole = calibration.reliability_bins(probs, labels, num_bins)
    parts = [
        calibration.reliability_bins(p, y, num_bins)
        for p, y in ((probs[:cut], labels[:cut]), (probs[cut:], labels[cut:]))
        if len(y)
    ]
    total = parts[0] + parts[1] if len(parts) == 2 else parts[0]
    assert (total.counts == whole.counts).all()
    assert (total.num_correct == whole.num_correct).all()
    np.testing.assert_allclose(total.sum_confidence, whole.sum_confidence, rtol=1e-12)
    assert total.error == pytest.approx(whole.error, abs=1e-12)


def test_what_cannot_be_added_to_bins():
    case = two_classes(SIX, SIX_RIGHT)
    bins = calibration.reliability_bins(*case)
    for other in (calibration.reliability_bins(*case, 14), calibration.reliability_bins(*case, 15, "mass")):
        with pytest.raises(ValueError, match="bins can be added only if they have the same edges"):
            bins + other
    with pytest.raises(TypeError, match="unsupported operand"):
        bins + 1


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=5), numbers_of_bins)
def test_exact_calibration_gives_0(groups, num_bins):
    """Of b examples with confidence a/b, a are right; the bins do not matter, and neither does the measure."""
    groups = [(b, max(a, b)) if 2 * max(a, b) >= a + b else (a, b) for a, b in groups]
    confidence = np.concatenate([np.full(a + b, max(a, b) / (a + b)) for a, b in groups])
    right = np.concatenate([np.arange(a + b) < max(a, b) for a, b in groups])
    case = two_classes(confidence, right)
    for strategy in ("width", "mass"):
        assert calibration.expected_calibration_error(*case, num_bins, strategy) == pytest.approx(0, abs=1e-14)
    for score in ("nll", "brier"):
        assert calibration.decompose(*case, score, num_bins).calibration <= 1e-12
    assert calibration.smooth_ece(*case) < 1e-8


FLOATS = [np.float16, np.float32, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_probs_of_any_precision(dtype, classes):
    """The numbers are those that the rounded probabilities have in float64, up to their missing or surplus mass."""
    logits, labels, _ = made_up(100, classes)
    probs = torch.tensor(logits, requires_grad=True).softmax(-1)
    probs = probs.to(dtype) if isinstance(dtype, torch.dtype) else probs.detach().numpy().astype(dtype)
    wide = probs.detach().double().numpy() if isinstance(dtype, torch.dtype) else probs.astype(np.float64)
    top, right = wide.max(axis=1), wide.argmax(axis=1) == labels
    expected = ece_by_loop(top, right, np.linspace(0, 1, 16))
    for given_labels in (labels, torch.tensor(labels), labels.astype(np.uint16)):
        assert calibration.expected_calibration_error(probs, given_labels) == pytest.approx(expected, rel=1e-12)
    assert calibration.brier_score(probs, labels) == pytest.approx(((wide - np.eye(classes)[labels]) ** 2).sum() / 100)
    for measure in (calibration.smooth_ece, calibration.debiased_ece, calibration.classwise_ece):
        assert measure(probs, labels) == pytest.approx(measure(wide / wide.sum(1, keepdims=True), labels), abs=0.02)


# --- the parts of a score


@given(probs_and_labels(), st.sampled_from(["nll", "brier"]), numbers_of_bins, strategies_of_bins)
def test_a_score_is_the_sum_of_its_parts(case, score, num_bins, strategy):
    score_, calibration_, refinement = calibration.decompose(*case, score, num_bins, strategy)
    assert score_ == pytest.approx(calibration_ + refinement, rel=1e-12)
    assert refinement <= (math.log(2) if score == "nll" else 0.25) + 1e-12
    one = calibration.decompose(*case, score, 1).refinement
    assert refinement <= one + 1e-12  # finer bins leave no more


def test_parts_against_their_definitions():
    """Uncertainty less resolution; and what the confidences lose, their spread within the bins counted."""
    logits, labels, _ = made_up(500, 5)
    probs = softmax(logits * 2, axis=1)
    top, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    bins = calibration.reliability_bins(probs, labels)
    share, held = bins.counts / 500, bins.counts > 0
    accuracy, base = bins.accuracy[held], right.mean()
    brier = calibration.decompose(probs, labels, "brier")
    assert brier.score == pytest.approx(brier_score_loss(right, top), rel=1e-12)
    resolution = (share[held] * (accuracy - base) ** 2).sum()
    assert brier.refinement == pytest.approx(base * (1 - base) - resolution, rel=1e-12)
    place = np.ceil(top * 15).astype(int) - 1
    groups = [(top[place == b], right[place == b]) for b in np.unique(place)]
    expected = sum(len(c) * ((c.mean() - y.mean()) ** 2 + c.var() - 2 * np.cov(c, y, ddof=0)[0, 1]) for c, y in groups)
    assert brier.calibration == pytest.approx(expected / 500, rel=1e-10)
    nll = calibration.decompose(probs, labels, "nll")
    assert nll.score == pytest.approx(log_loss(right, top), rel=1e-12)
    entropies = [sum(-q * math.log(q) for q in (a, 1 - a) if q > 0) for a in accuracy]
    assert nll.refinement == pytest.approx((share[held] * entropies).sum(), rel=1e-12)


def test_the_calibration_part_is_not_negative_for_one_confidence_a_bin():
    """But where confidences differ within a bin and tell right from wrong, it is: they say more than one number can."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        confidence = rng.choice(np.linspace(0.51, 0.99, 20), 60)
        case = two_classes(confidence, rng.random(60) < rng.random())
        assert calibration.decompose(*case, "brier", 1000).calibration >= -1e-15
        assert calibration.decompose(*case, "nll", 1000).calibration >= -1e-15
    sorts = two_classes([0.99, 0.99, 0.5, 0.5], [1, 1, 1, 0])
    for score in ("nll", "brier"):
        assert calibration.decompose(*sorts, score, 1).calibration < -0.05


def test_parts_of_a_confidence_of_1():
    assert calibration.decompose(*two_classes([1.0, 1.0], True)) == (0, 0, 0)
    assert calibration.decompose(*two_classes([1.0, 0.95], [0, 1])) == (math.inf, math.inf, pytest.approx(math.log(2)))
    assert calibration.decompose(*two_classes([1.0, 1.0], False), "brier") == (1, 1, 0)


# --- what chance does to these numbers


def naive_ece(confidence, right, num_bins=15):
    place = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    return np.abs(np.bincount(place, right - confidence, num_bins)).sum() / len(right)


@pytest.mark.parametrize("factor", [0.7, 2.0])
def test_bootstrap_against_a_naive_loop(factor):
    """Two ways to draw, so equal up to the noise of 4,000 draws."""
    logits, labels, rng = made_up(300, 5)
    probs = softmax(factor * logits, axis=1)
    top, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    loop = [naive_ece(top[i], right[i]) for i in rng.integers(300, size=(4000, 300))]
    for level in (0.5, 0.95):
        found = calibration.bootstrap_ece(probs, labels, num_resamples=4000, confidence=level)
        expected = np.quantile(loop, [(1 - level) / 2, (1 + level) / 2])
        np.testing.assert_allclose(found, expected, atol=0.15 * np.std(loop))


def test_bootstrap_covers_what_new_samples_show():
    """The true spread of a clearly miscalibrated network's ECE: 95 % intervals hold its mean in most samples."""
    rng, hits = np.random.default_rng(0), 0
    confidence = rng.uniform(0.6, 1, 1000)
    draws = rng.random((200, 1000)) < confidence - 0.15
    centre = np.mean([naive_ece(confidence, right) for right in draws])
    for right in draws[:60]:
        low, high = calibration.bootstrap_ece(*two_classes(confidence, right), num_resamples=300)
        hits += low <= centre <= high
        assert low < high
    assert hits >= 51  # 57 expected; fewer than 51 of 60 has a chance below 1 %


def test_a_bootstrap_is_that_of_its_seed():
    case = two_classes(SIX, SIX_RIGHT)
    first = calibration.bootstrap_ece(*case)
    assert calibration.bootstrap_ece(*case) == first
    assert calibration.bootstrap_ece(*case, seed=1, num_resamples=50) != first
    assert calibration.bootstrap_ece(*two_classes([0.75], [True])) == (0.25, 0.25)
    low, high = calibration.bootstrap_ece(*case, confidence=0)
    assert low == high  # the median


def test_a_bootstrap_in_pieces(monkeypatch):
    """What does not fit is drawn in halves: regression, a million examples took 32 GB."""
    logits, labels, _ = made_up(500, 5)
    probs = softmax(2 * logits, axis=1)
    whole = calibration.bootstrap_ece(probs, labels)
    monkeypatch.setattr(calibration, "DRAWS", 5000)
    pieces = calibration.bootstrap_ece(probs, labels)
    np.testing.assert_allclose(pieces, whole, atol=0.005)


@pytest.mark.parametrize("strategy", ["width", "mass"])
def test_noise_floor_against_a_naive_simulation(strategy):
    logits, labels, rng = made_up(300, 5)
    probs = softmax(logits, axis=1)
    top = probs.max(axis=1)
    edges = calibration.reliability_bins(probs, labels, 15, strategy).edges
    place = np.searchsorted(edges[1:-1], top)
    errors = [np.abs(np.bincount(place, r - top, 15)).sum() / 300 for r in rng.random((4000, 300)) < top]
    floor = calibration.noise_floor(probs, num_resamples=4000, strategy=strategy)
    assert floor.mean == pytest.approx(np.mean(errors), abs=4 * np.std(errors) * math.sqrt(2 / 4000))
    assert floor.high == pytest.approx(np.quantile(errors, 0.95), abs=0.15 * np.std(errors))
    assert calibration.noise_floor(probs, num_resamples=4000, strategy=strategy) == floor


def test_noise_floor_in_closed_form():
    """One bin of 2,500 confidences of 0.8: the mean distance of a binomial from its mean."""
    right = np.arange(2501)
    expected = (binom.pmf(right, 2500, 0.8) * np.abs(right / 2500 - 0.8)).sum()
    floor = calibration.noise_floor(np.tile([0.8, 0.2], (2500, 1)), num_resamples=2000)
    assert floor.mean == pytest.approx(expected, rel=0.06)  # a spread of 0.017
    assert floor.high == pytest.approx(1.96 * 0.008, rel=0.06)


def test_one_in_twenty_calibrated_samples_exceeds_the_noise_floor():
    logits, _, rng = made_up(200, 4)
    probs = softmax(logits, axis=1)
    high = calibration.noise_floor(probs, num_resamples=4000).high
    labels = (probs.cumsum(axis=1)[None] > rng.random((1000, 200, 1))).argmax(axis=2)
    over = sum(calibration.expected_calibration_error(probs, y) > high for y in labels)
    assert 30 <= over <= 72  # 50 ± 3 standard deviations


def test_the_noise_floor_of_confidences_is_that_of_their_probs():
    probs = np.random.default_rng(0).dirichlet([0.5] * 4, 500)
    assert calibration.confidence_noise_floor(probs.max(axis=1)) == calibration.noise_floor(probs)
    for wrong in ([], [[0.5]], [1.5], [math.nan]):
        with pytest.raises(ValueError, match="confidence"):
            calibration.confidence_noise_floor(wrong)


def test_the_noise_floor_of_sure_predictions_is_0():
    assert calibration.noise_floor(np.eye(4), num_resamples=5) == (0, 0)
    assert calibration.noise_floor([[0.5, 0.5]], num_resamples=5) == (0.5, 0.5)


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.02])
def test_the_debiased_ece_is_nearer_to_a_small_truth(shift):
    """Where every prediction is right with its confidence less `shift`, the true error is `shift`.

    Beyond the spread of a bin's accuracy, here 0.05, the plug-in has hardly a bias, and the debiased one is too low.
    """
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.6, 0.9, 1000)
    found = []
    for _ in range(100):
        case = two_classes(confidence, rng.random(1000) < confidence - shift)
        found.append([calibration.expected_calibration_error(*case), calibration.debiased_ece(*case)])
    plug_in, debiased = np.abs(np.mean(found, axis=0) - shift)
    assert debiased < 0.7 * plug_in


# --- temperature


def nll_at(logits, labels, temperature):
    return calibration.negative_log_likelihood(logits / temperature, labels)


@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 3.0, 1000.0])
@pytest.mark.parametrize(("examples", "classes"), [(50, 2), (400, 7), (300, 1000), (20_000, 3)])
def test_temperature_against_scipy(examples, classes, factor):
    logits, labels, _ = made_up(examples, classes)
    logits = factor * logits
    fit = calibration.temperature_fit(logits, labels)
    found = minimize_scalar(
        lambda log: nll_at(logits, labels, math.exp(log)),
        bounds=(math.log(factor) - 3, math.log(factor) + 3),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit.temperature == pytest.approx(math.exp(found.x), rel=1e-6)
    assert fit.nll_after <= found.fun + 1e-13
    assert fit.nll_before == pytest.approx(calibration.negative_log_likelihood(logits, labels), rel=1e-12)
    assert fit.nll_after == pytest.approx(nll_at(logits, labels, fit.temperature), rel=1e-12)
    assert fit.problem == ""
    assert fit.temperature == pytest.approx(factor, rel=0.4)  # labels were drawn at T = factor
    assert calibration.fit_temperature(logits, labels) == fit.temperature


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_temperature_against_scikit_learn(factor):
    logits, labels, _ = made_up(500, 4)
    inner = LogisticRegression().fit(logits, labels)
    scores = factor * inner.decision_function(logits)
    inner.coef_, inner.intercept_ = factor * inner.coef_, factor * inner.intercept_
    outer = CalibratedClassifierCV(FrozenEstimator(inner), method="temperature").fit(logits, labels)
    (calibrated,) = outer.calibrated_classifiers_
    assert calibration.fit_temperature(scores, labels) == pytest.approx(1 / calibrated.calibrators[0].beta_, rel=1e-5)
    probs = softmax(scores / calibration.fit_temperature(scores, labels), axis=1)
    np.testing.assert_allclose(probs, outer.predict_proba(logits), atol=1e-5)


@settings(max_examples=300)
@given(logits_and_labels(st.integers(2, 1000), max_rows=30), st.sampled_from(["drawn", "likeliest", "unlikeliest"]))
# Regression: one class far below the others hid how near those lay to each other, and the search ended too early.
@example((torch.tensor([[0.0, 1e-3, -1e4], [0, 1e-3, -1e4], [1e-3, 0, -1e4]]), torch.tensor([1, 1, 1])), "drawn")
@example((torch.tensor([[1e-3, 0.0, -1e4]]), torch.tensor([0])), "drawn")
def test_the_fitted_temperature_over_the_whole_range(case, which):
    """Never worse than at T = 1 nor than at any other, at slope 0, and the order of classes is kept."""
    logits, labels = (t.numpy() for t in case)
    logits = logits.astype(np.float64)
    labels = {"drawn": labels, "likeliest": logits.argmax(1), "unlikeliest": logits.argmin(1)}[which]
    fit = calibration.temperature_fit(logits, labels)
    assert {type(value) for value in fit[:3]} == {float}
    assert 0 < fit.temperature < math.inf
    assert fit.nll_after <= fit.nll_before * (1 + 1e-12)
    loose = 1e-6 if "T → ∞" in fit.problem else 1e-10
    for temperature in (*np.logspace(-9, 9, 37), 0.9 * fit.temperature, 1.1 * fit.temperature):
        assert fit.nll_after <= nll_at(logits, labels, temperature) * (1 + 1e-10) + loose
    scaled = logits / fit.temperature
    assert (np.take_along_axis(scaled, logits.argmax(1)[:, None], 1)[:, 0] == scaled.max(1)).all()
    right = logits[np.arange(len(labels)), labels]
    if not fit.problem:
        probs = softmax(scaled, axis=1)
        slopes = (probs * logits).sum(axis=1) - right
        assert abs(slopes.mean()) <= 1e-9 * np.abs(logits).max()
    separable = (right == logits.max(1)).all()
    hopeless = (logits.mean(1) - right).mean() >= 0
    assert bool(fit.problem) == (separable or hopeless) or "T → ∞" in fit.problem
    assert ("T → 0" in fit.problem) == (separable and not (logits == logits[:, :1]).all())


@given(logits_and_labels(st.integers(2, 100), max_rows=30), st.sampled_from([1e-6, 0.01, 0.5, 2.0, 100.0]))
def test_temperature_scales_with_the_logits(case, factor):
    logits, labels = (t.numpy() for t in case)
    fit, scaled = calibration.temperature_fit(logits, labels), calibration.temperature_fit(factor * logits, labels)
    if not fit.problem and not scaled.problem:
        assert scaled.nll_after == pytest.approx(fit.nll_after, rel=1e-10, abs=1e-12)
        spread = np.ptp(logits / fit.temperature, axis=1)
        if spread.max() < 50:  # else the NLL may be so flat there that its minimum has few digits
            assert scaled.temperature == pytest.approx(factor * fit.temperature, rel=1e-5)


def test_temperature_in_closed_form():
    """Gaps of 2 with an accuracy of 0.8: the NLL is least where the softmax says 0.8, at 2/T = ln 4."""
    logits = np.tile([2.0, 0.0], (10, 1))
    labels = np.array([0] * 8 + [1] * 2)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(2 / math.log(4), rel=1e-12)
    assert calibration.fit_temperature(logits / 4, labels) == pytest.approx(0.5 / math.log(4), rel=1e-12)  # T < 1
    fit = calibration.temperature_fit(torch.tensor(logits).half().requires_grad_(), torch.tensor(labels))
    assert fit.temperature == pytest.approx(2 / math.log(4), rel=1e-12)
    assert fit.nll_after == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "labels", "problem", "temperature"),
    [
        ([[3.0, 1, 0], [0, 0, 1]], [0, 2], "every label has the largest logit: the NLL falls for ever as T → 0", 1e-3),
        ([[3.0, 1, 0], [0, 0, 2]], [1, 1], "no larger logits than other classes: the NLL falls for ever as T → ∞", 3e6),
        ([[0.0, 1]], [0], "no larger logits than other classes: the NLL falls for ever as T → ∞", 1e6),
        ([[0.0, 1e-7]], [0], "no larger logits than other classes: the NLL falls for ever as T → ∞", 1.0),
        ([[0.0, 1]], [1], "every label has the largest logit", 1e-3),
        ([[2.0, 2], [-1, -1]], [0, 1], "all logits of an example are equal", 1.0),
    ],
)
def test_where_no_temperature_is_best(logits, labels, problem, temperature):
    fit = calibration.temperature_fit(logits, labels)
    assert problem in fit.problem
    assert fit.temperature == pytest.approx(temperature, rel=1e-12)
    assert fit.nll_after <= fit.nll_before
    with pytest.warns(RuntimeWarning, match="no temperature minimises the NLL; stopped at .*" + problem):
        assert calibration.fit_temperature(logits, labels) == fit.temperature


def test_the_limits_where_no_temperature_is_best():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 6))
    assert calibration.temperature_fit(logits, logits.argmax(1)).nll_after == 0
    assert calibration.temperature_fit(logits, logits.argmin(1)).nll_after == pytest.approx(math.log(6), rel=1e-6)


def test_a_fit_without_a_problem_warns_of_nothing():
    logits, labels, _ = made_up()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibration.fit_temperature(logits, labels)


# --- bad input

OF_PROBS = {
    "brier_score": calibration.brier_score,
    "reliability_bins": calibration.reliability_bins,
    "expected_calibration_error": calibration.expected_calibration_error,
    "classwise_ece": calibration.classwise_ece,
    "debiased_ece": calibration.debiased_ece,
    "smooth_ece": calibration.smooth_ece,
    "decompose": calibration.decompose,
    "bootstrap_ece": calibration.bootstrap_ece,
    "noise_floor": lambda probs, labels: calibration.noise_floor(probs),
}
HALVES = [[0.5, 0.5]]


@pytest.mark.parametrize("name", OF_PROBS)
@pytest.mark.parametrize(
    ("probs", "error", "message"),
    [
        ([[0.5, math.nan]], ValueError, "probs must have no negative entry and no NaN"),
        ([[math.inf, 0.5]], ValueError, "probs must have rows that sum to 1"),
        ([[1.5, -0.5]], ValueError, "probs must have no negative entry and no NaN, got a smallest entry of -0.5"),
        ([[0.5, 0.4]], ValueError, "probs must have rows that sum to 1, got a row that sums to 0.9"),
        ([[2.0, 1.0]], ValueError, "probs must have rows that sum to 1, got a row that sums to 3"),  # logits
        ([[1.0]], ValueError, "probs must have shape (..., K) with K ≥ 2"),
        (np.zeros((0, 3)), ValueError, "probs must have shape (..., K) with K ≥ 2 and hold something"),
        ([0.5, 0.5], ValueError, "probs must have shape (N, K) with N ≥ 1 and K ≥ 2, got (2,)"),
        (np.full((1, 1, 2), 0.5), ValueError, "probs must have shape (N, K) with N ≥ 1 and K ≥ 2, got (1, 1, 2)"),
        ([["a", "b"]], TypeError, "probs must be a real number or an array of them"),
        ([[True, False]], TypeError, "probs must be a real number or an array of them"),
    ],
)
def test_bad_probs(name, probs, error, message):
    with pytest.raises(error) as caught:
        OF_PROBS[name](probs, [0])
    assert message in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(OF_PROBS) - {"noise_floor"}))
@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([2], ValueError, "labels must lie in [0, 1], got 2 to 2"),
        ([-1], ValueError, "labels must lie in [0, 1], got -1 to -1"),
        ([0.0], TypeError, "labels must be integers (class indices), got dtype float64"),
        ([[1, 0]], ValueError, "labels must have shape (N,) for probs (N, K), got (1, 2) for (1, 2)"),
        ([0, 1], ValueError, "labels must have shape (N,) for probs (N, K), got (2,) for (1, 2)"),
    ],
)
def test_bad_labels(name, labels, error, message):
    with pytest.raises(error) as caught:
        OF_PROBS[name](HALVES, labels)
    assert message in str(caught.value)


@pytest.mark.parametrize("function", [calibration.temperature_fit, calibration.fit_temperature])
@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        ([[math.nan, 1]], [0], ValueError, "logits must be finite, got NaN or infinity"),
        ([[math.inf, 1]], [0], ValueError, "logits must be finite, got NaN or infinity"),
        ([[-math.inf, 1]], [0], ValueError, "logits must be finite, got NaN or infinity"),
        ([[1.0, 0]], [2], ValueError, "labels must lie in [0, 1], got 2 to 2"),
        ([[1.0, 0]], [0.0], TypeError, "labels must be integers"),
        ([[1.0]], [0], ValueError, "logits must have shape (N, K) with N ≥ 1 and K ≥ 2, got (1, 1)"),
        (np.zeros((0, 2)), np.zeros(0, int), ValueError, "logits must have shape (N, K) with N ≥ 1 and K ≥ 2, got (0"),
    ],
)
def test_bad_input_of_temperatures(function, logits, labels, error, message):
    with pytest.raises(error) as caught:
        function(logits, labels)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: calibration.reliability_bins(HALVES, [0], 0), ValueError, "num_bins must be at least 1, got 0"),
        (lambda: calibration.classwise_ece(HALVES, [0], 2.0), TypeError, "num_bins must be an int, got 2.0 (float)"),
        (lambda: calibration.bootstrap_ece(HALVES, [0], 0), ValueError, "num_bins must be at least 1, got 0"),
        (lambda: calibration.noise_floor(HALVES, 0), ValueError, "num_bins must be at least 1, got 0"),
        (
            lambda: calibration.expected_calibration_error(HALVES, [0], 5, "masses"),
            ValueError,
            "strategy must be one of 'width', 'mass', got 'masses'; did you mean 'mass'?",
        ),
        (lambda: calibration.debiased_ece(HALVES, [0], 5, None), TypeError, "strategy must be a string, got None"),
        (lambda: calibration.noise_floor(HALVES, strategy="x"), ValueError, "strategy must be one of 'width', 'mass'"),
        (lambda: calibration.decompose(HALVES, [0], "bier"), ValueError, "got 'bier'; did you mean 'brier'?"),
        (lambda: calibration.smooth_ece(HALVES, [0], 0), ValueError, "cells must be at least 1, got 0"),
        (lambda: calibration.smooth_ece(HALVES, [0], 9.5), TypeError, "cells must be an int, got 9.5 (float)"),
        (
            lambda: calibration.bootstrap_ece(HALVES, [0], num_resamples=0),
            ValueError,
            "num_resamples must be at least 1, got 0",
        ),
        (
            lambda: calibration.noise_floor(HALVES, num_resamples=0),
            ValueError,
            "num_resamples must be at least 1, got 0",
        ),
        (
            lambda: calibration.bootstrap_ece(HALVES, [0], confidence=95),
            ValueError,
            "confidence must lie in [0, 1], got 95",
        ),
        (
            lambda: calibration.reliability_bins(HALVES, [0]).accuracy_interval(math.nan),
            ValueError,
            "confidence must lie in [0, 1], got nan",
        ),
    ],
)
def test_bad_settings(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_what_is_given_is_left_as_it_was():
    logits, labels, _ = made_up(50)
    probs = softmax(logits, axis=1)
    kept = logits.copy(), probs.copy(), labels.copy()
    for function in OF_PROBS.values():
        function(probs, labels)
    calibration.temperature_fit(logits, labels)
    for array, before in zip((logits, probs, labels), kept, strict=True):
        assert (array == before).all()


def large(case):
    """Logits and labels of 8,000 × 10 and more: drawn, nearly all right, nearly all wrong, or of one sure kind."""
    rng = np.random.default_rng(0)
    factor, classes = {"over": (4.0, 10), "under": (0.05, 10), "wide": (2.0, 500)}.get(case, (1.0, 10))
    logits = rng.normal(size=(8_000 if classes == 10 else 400, classes)) * 2
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    if case == "one wrong":
        labels = logits.argmax(axis=1)
        labels[17] = logits[17].argsort()[-2]
    if case == "few right":
        labels = np.where(rng.random(len(labels)) < 0.13, logits.argmax(axis=1), rng.integers(10, size=len(labels)))
    if case == "far":
        logits *= 1e4
    return factor * logits, labels


@pytest.mark.parametrize("case", ["over", "under", "wide", "one wrong", "few right", "far"])
def test_of_many_logits_float32_finds_the_temperature(case, monkeypatch):
    """Against the same search that ends in float64: the temperature to 1e-6, the NLL to its own rounding."""
    logits, labels = large(case)
    fit = calibration.temperature_fit(logits, labels)
    assert logits.size >= calibration.MANY
    monkeypatch.setattr(calibration, "MANY", np.inf)
    exact = calibration.temperature_fit(logits, labels)
    assert fit.temperature == pytest.approx(exact.temperature, rel=1e-6)
    assert fit.nll_after == pytest.approx(exact.nll_after, rel=1e-12, abs=1e-15)
    assert fit.nll_after <= fit.nll_before


# --- what lies far out


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-100, 1e100, 1e150, 1e299])
def test_temperature_of_logits_of_any_size(scale):
    """Regression: squares overflowed or vanished; T / scale came out as 4e-120 and NaN."""
    generator = np.random.default_rng(0)
    logits, labels = generator.standard_normal((200, 5)), generator.integers(0, 5, 200)
    logits[np.arange(200), labels] += 1
    expected, found = (calibration.temperature_fit(z, labels) for z in (logits, scale * logits))
    np.testing.assert_allclose(found.temperature / scale, expected.temperature, rtol=1e-6)
    assert found.problem == expected.problem == ""
    np.testing.assert_allclose(found.nll_after, expected.nll_after, rtol=1e-9)


def test_logits_whose_differences_would_be_infinite():
    with pytest.raises(ValueError, match=r"logits must not exceed 1e\+300 in size, got 1e\+308"):
        calibration.fit_temperature(np.array([[1e308, -1e308]]), [0])


def test_ragged_labels_and_wrong_seeds():
    with pytest.raises(ValueError, match="labels must have shape .* got lists of uneven length"):
        calibration.accuracy(np.zeros((2, 3)), [[0], [1, 2]])
    probs = np.full((4, 2), 0.5)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        calibration.bootstrap_ece(probs, [0, 1, 0, 1], seed=-1)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        calibration.noise_floor(probs, seed=-1)
