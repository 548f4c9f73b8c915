"""Selective classification against a direct loop over thresholds, trust by direction against numpy."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from strategies import logits_and_labels

from lsbook import selective

scores = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40)


def test_six_by_hand():
    trust = [0.9, 0.8, 0.7, 0.6, 0.55, 0.5]
    found = selective.risk_coverage(trust, [1, 1, 0, 1, 0, 1])
    np.testing.assert_allclose(found.coverage, np.arange(1, 7) / 6)
    np.testing.assert_allclose(found.risk, [0, 0, 1 / 3, 1 / 4, 2 / 5, 1 / 3])
    assert found.area == pytest.approx((1 / 3 + 1 / 4 + 2 / 5 + 1 / 3) / 6)


@given(scores)
def test_against_thresholds(pairs):
    """Where the n most trusted are all those above a threshold, the risk is the share of wrong ones among them."""
    trust, correct = np.array(pairs).T
    found = selective.risk_coverage(trust, correct)
    assert found.coverage.shape == found.risk.shape == trust.shape
    for threshold in set(trust):
        answered = trust >= threshold
        assert found.risk[answered.sum() - 1] == pytest.approx(1 - correct[answered].mean(), abs=1e-12)
    assert found.risk[-1] == pytest.approx(1 - correct.mean(), abs=1e-12)


@given(scores.filter(lambda pairs: len(pairs) <= 6))
def test_ties_are_the_mean_over_all_orders(pairs):
    trust, correct = np.array(pairs).T
    risks = []
    for order in permutations(range(len(trust))):
        if (np.diff(trust[list(order)]) <= 0).all():  # an order in which the most trusted come first
            wrong = 1 - correct[list(order)]
            risks.append(np.cumsum(wrong) / np.arange(1, len(wrong) + 1))
    np.testing.assert_allclose(selective.risk_coverage(trust, correct).risk, np.mean(risks, axis=0), atol=1e-12)


@given(scores, st.randoms(use_true_random=False))
def test_only_the_order_of_trust_counts(pairs, random):
    trust, correct = np.array(pairs).T
    expected = selective.risk_coverage(trust, correct)
    shuffled = random.sample(range(len(trust)), len(trust))
    for other in (
        selective.risk_coverage(trust[shuffled], correct[shuffled]),
        selective.risk_coverage(np.exp(trust), correct),
    ):
        np.testing.assert_array_equal(other.coverage, expected.coverage)
        np.testing.assert_allclose(other.risk, expected.risk, atol=1e-12)


def test_the_area_of_best_and_worst_order_and_of_none():
    """With n of N wrong: errors last, errors first, and all examples equal."""
    correct = np.repeat([1, 0], [700, 300])
    best = selective.risk_coverage(np.arange(1000)[::-1], correct)
    worst = selective.risk_coverage(np.arange(1000), correct)
    by_hand = sum(wrong / (700 + wrong) for wrong in range(1, 301)) / 1000
    assert best.area == pytest.approx(by_hand, rel=1e-12)
    assert best.risk[699] == 0 and worst.risk[299] == 1
    np.testing.assert_allclose(selective.risk_coverage(np.zeros(1000), correct).risk, 0.3, rtol=1e-12)
    assert best.area < 0.3 < worst.area


def test_the_area_grows_as_the_order_gets_worse():
    """Against another measure of order: AUROC of right against wrong."""
    rng = np.random.default_rng(0)
    correct = rng.random(4000) < 0.8
    areas, aurocs = [], []
    for noise in (0.1, 0.5, 1, 2, 10):
        trust = correct + noise * rng.normal(size=4000)
        areas.append(selective.risk_coverage(torch.tensor(trust), torch.tensor(correct)).area)
        aurocs.append(roc_auc_score(correct, trust))
    assert areas == sorted(areas) and aurocs == sorted(aurocs, reverse=True)


@pytest.mark.parametrize("correct", [1, 0])
def test_one_example(correct):
    found = selective.risk_coverage([0.3], [correct])
    assert (found.coverage.tolist(), found.risk.tolist(), found.area) == ([1.0], [1.0 - correct], 1.0 - correct)


# --- trust by direction


@given(logits_and_labels(), st.sampled_from([0.5, 1, 2, 3, 10]))
def test_normalised_logit(case, order):
    logits = case[0].numpy()
    found = selective.normalised_logit(case[0], order)
    for row, value in zip(logits, found, strict=True):
        centred = row - row.mean()
        length = np.linalg.norm(centred / np.abs(centred).max(), order) if np.abs(centred).max() > 0 else 1
        assert value == pytest.approx(centred.max() / max(np.abs(centred).max(), 1e-300) / length, rel=1e-9, abs=1e-12)
    assert (found >= 0).all() and (found <= 1 + 1e-12).all()


@given(logits_and_labels(), st.floats(0.01, 100), st.floats(-50, 50))
def test_neither_length_nor_offset_counts(case, factor, shift):
    logits = case[0].numpy()
    found = selective.normalised_logit(logits)
    np.testing.assert_allclose(selective.normalised_logit(factor * logits), found, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(selective.normalised_logit(logits + shift * np.abs(logits).max()), found, atol=1e-9)


def test_one_right_logit_above_equal_ones():
    """K = 10, order 2: (1 − 1/K) / √(1 − 1/K) = √(1 − 1/K), whatever the gap."""
    for gap in (1e-6, 4.5, 1e4):
        logits = np.zeros((3, 10), dtype=np.float32)
        logits[:, 4] = gap
        np.testing.assert_allclose(selective.normalised_logit(logits), np.sqrt(0.9), rtol=1e-6)


@pytest.mark.parametrize("logits", [np.zeros((2, 5)), np.full((1, 3), -1e4), np.full((2, 2), 7, dtype=np.float16)])
def test_equal_logits_are_trusted_least(logits):
    assert selective.normalised_logit(logits).tolist() == [0.0] * len(logits)


def test_float16_at_its_largest():
    logits = np.array([[65504, -65504, 0]], dtype=np.float16)
    assert selective.normalised_logit(logits, 2) == pytest.approx(1 / np.sqrt(2))


# --- what does not fit


@pytest.mark.parametrize(
    ("trust", "correct", "error", "words"),
    [
        ([], [], ValueError, r"trust must be finite and of shape \(N,\) with N ≥ 1, got shape \(0,\)"),
        ([[0.5]], [[1]], ValueError, r"shape \(1, 1\)"),
        ([0.5, np.nan], [1, 0], ValueError, "trust must be finite"),
        ([0.5, np.inf], [1, 0], ValueError, "trust must be finite"),
        ([0.5, 0.6], [1], ValueError, "correct must hold true or false for each of 2 examples"),
        ([0.5, 0.6], [1, 2], ValueError, "correct must hold true or false"),
        ([0.5, 0.6], [1, np.nan], ValueError, "correct must hold true or false"),
        (["a", "b"], [1, 0], TypeError, "trust"),
    ],
)
def test_bad_risk_coverage(trust, correct, error, words):
    with pytest.raises(error, match=words):
        selective.risk_coverage(np.array(trust), np.array(correct))


@pytest.mark.parametrize(
    ("logits", "order", "error", "words"),
    [
        (np.zeros(3), 2, ValueError, r"logits must be finite and of shape \(N, K\) with N ≥ 1, got shape \(3,\)"),
        (np.zeros((0, 3)), 2, ValueError, r"got shape \(0, 3\)"),
        (np.array([[1.0, np.nan]]), 2, ValueError, "logits must be finite"),
        (np.array([["a", "b"]]), 2, TypeError, "logits"),
        (np.zeros((2, 3)), 0, ValueError, "order"),
        (np.zeros((2, 3)), -1, ValueError, "order"),
        (np.zeros((2, 3)), np.nan, ValueError, "order"),
        (np.zeros((2, 3)), "2", TypeError, "order"),
    ],
)
def test_bad_normalised_logit(logits, order, error, words):
    with pytest.raises(error, match=words):
        selective.normalised_logit(logits, order)
