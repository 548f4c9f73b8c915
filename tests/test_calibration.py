"""Accuracy, NLL, confidence and gaps, against torch, scikit-learn and hand-made cases."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from sklearn.metrics import accuracy_score, log_loss
from strategies import class_counts, logits_and_labels

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
