"""Intervals, verdicts and the paper's reported numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from strategies import settings

from lsbook import claims
from lsbook.claims import Interval, mean_interval, paired_difference, verdict

values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)


@settings(max_examples=100)
@given(values, st.floats(0.5, 0.999))
def test_interval_is_students(sample, confidence):
    interval = mean_interval(sample, confidence)
    error = np.std(sample, ddof=1) / math.sqrt(len(sample))
    assert interval.n == len(sample)
    assert interval.mean == pytest.approx(np.mean(sample), rel=1e-12, abs=1e-9)
    if error > 1e-9:
        expected = stats.t.interval(confidence, len(sample) - 1, np.mean(sample), error)
        assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_interval_of_a_textbook():
    """By hand: n = 4, mean 5, s = 2.58199, t(0.975, 3) = 3.18245, so 5 ± 4.10852."""
    interval = mean_interval([2, 4, 6, 8])
    assert interval == pytest.approx((5, 0.89148, 9.10852, 4), abs=1e-5)


def test_ninety_five_percent_means_ninety_five_percent():
    rng = np.random.default_rng(0)
    draws = rng.normal(3.0, 2.0, size=(1000, 16))
    covered = sum(interval.low <= 3.0 <= interval.high for interval in map(mean_interval, draws))
    assert 930 <= covered <= 970


def test_equal_values_have_an_interval_of_width_zero():
    assert mean_interval([0.25, 0.25, 0.25]) == (0.25, 0.25, 0.25, 3)


@pytest.mark.parametrize("sample", [[], [1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]], 3.0])
def test_bad_samples(sample):
    with pytest.raises(ValueError, match="values must be at least two finite numbers, one a seed, got "):
        mean_interval(sample)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, math.nan])
def test_bad_confidence(confidence):
    with pytest.raises(ValueError, match=rf"confidence must lie in \(0, 1\), got {confidence}"):
        mean_interval([1, 2], confidence)


@given(values)
def test_pairing_is_the_interval_of_the_differences(sample):
    control = np.linspace(-1, 1, len(sample))
    assert paired_difference(np.add(sample, control), control, 0.9) == pytest.approx(
        mean_interval(np.add(sample, control) - control, 0.9)
    )


def test_pairing_removes_what_the_two_share():
    shared = np.random.default_rng(0).normal(size=16) * 100
    treated = shared + 1 + np.tile([0.1, -0.1], 8)
    difference = paired_difference(treated, shared)
    assert (difference.low, difference.high) == pytest.approx((0.945, 1.055), abs=0.001)


def test_unpaired_values():
    with pytest.raises(ValueError, match=r"treated and control must be paired, got shapes \(2,\) and \(3,\)"):
        paired_difference([1, 2], [1, 2, 3])


def test_an_interval_of_ratios_is_that_of_logarithms():
    """Every ratio's pair swapped gives the reciprocal, ends exchanged."""
    smooth, hard = np.array([2.0, 3.0, 5.0]), np.array([4.0, 4.0, 4.0])
    ratio = claims.exponential(claims.paired_difference(np.log(smooth), np.log(hard)))
    inverse = claims.exponential(claims.paired_difference(np.log(hard), np.log(smooth)))
    assert ratio.mean == pytest.approx((30 / 64) ** (1 / 3))  # the geometric mean
    assert ratio.n == 3
    assert [1 / ratio.mean, 1 / ratio.high, 1 / ratio.low] == pytest.approx([inverse.mean, inverse.low, inverse.high])


@pytest.mark.parametrize(
    ("low", "high", "higher", "lower"),
    [
        (0.1, 0.3, "supported", "contradicted"),
        (-0.3, -0.1, "contradicted", "supported"),
        (-0.1, 0.3, "undetermined", "undetermined"),
        (0.0, 0.3, "undetermined", "undetermined"),
        (-0.3, 0.0, "undetermined", "undetermined"),
        (0.0, 0.0, "undetermined", "undetermined"),
        (5e-324, 1.0, "supported", "contradicted"),
    ],
)
def test_verdicts(low, high, higher, lower):
    interval = Interval((low + high) / 2, low, high, 5)
    assert (verdict(interval, "higher"), verdict(interval, "lower")) == (higher, lower)


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1.0), (-1.0, math.nan), (1.0, -1.0), (0.3, 0.1)])
def test_no_verdict_on_what_is_no_interval(low, high):
    """Regression: NaN counted as "contradicted"."""
    with pytest.raises(ValueError) as caught:
        verdict(Interval(0.2, low, high, 5), "higher")
    assert str(caught.value) == f"interval must have low ≤ high, got {low} and {high}"


def test_words_are_no_numbers():
    with pytest.raises(TypeError, match="values must be a real number or an array of them, got 'a'"):
        mean_interval("a")
    with pytest.raises(TypeError, match=r"confidence must be one real number, got 'a' \(str\)"):
        mean_interval([1, 2], "a")
    with pytest.raises(TypeError, match="control must be a real number"):
        paired_difference([1, 2], "ab")


def test_tensors_of_values():
    treated, control = torch.tensor([2.0, 4.0, 6.0]), torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    assert mean_interval(treated.requires_grad_()) == mean_interval([2, 4, 6])
    assert paired_difference(treated, control) == mean_interval([1, 3, 5])


def test_unknown_claim():
    with pytest.raises(ValueError, match="claim must be 'higher' or 'lower', got 'better'"):
        verdict(Interval(0, 0, 0, 2), "better")


def test_intervals_as_text():
    interval = Interval(1 / 3, -0.5, 0.25, 4)
    assert f"{interval}" == "0.333 [-0.500, 0.250]"
    assert f"{interval:.1f}" == "0.3 [-0.5, 0.2]"
    assert f"{interval:+.2f}" == "+0.33 [-0.50, +0.25]"


def test_table_1_of_the_paper():
    rows = claims.paper("table1")
    assert [(row["hard"], row["smoothed"]) for row in rows] == [
        (23.1, 22.8),
        (6.3, 6.1),
        (25.3, 25.8),
        (4.67, 4.92),
        (8.9, 7.0),
        (8.9, 6.7),
    ]
    for row in rows:
        assert set(row) == {"data", "model", "metric", "better", "hard", "smoothed"}
        assert row["better"] == ("higher" if row["metric"] == "BLEU" else "lower")


def test_table_2_of_the_paper():
    rows = claims.paper("table2")
    assert [(row["data"], row["model"], row["hard"], row["smoothed"]) for row in rows] == [
        ("CIFAR-10", "AlexNet", 86.8, 86.7),
        ("CIFAR-100", "ResNet-56", 72.1, 72.7),
        ("ImageNet", "Inception-v4", 80.9, 80.9),
    ]
    assert [(row.get("hard_spread"), row.get("smoothed_spread")) for row in rows] == [
        (0.2, 0.3),
        (0.3, 0.3),
        (None, None),
    ]


def test_unknown_table():
    with pytest.raises(ValueError, match="data/paper.toml has no table 'table9'; it has table1, table2"):
        claims.paper("table9")


# --- contrasts over settings that share their seeds


@given(hnp.arrays(np.float64, (2, 5), elements=st.integers(-1000, 1000)))
def test_a_contrast_of_two_settings_is_the_paired_difference(values):
    found, paired = claims.contrast(values, [1, -1]), claims.paired_difference(*values)
    np.testing.assert_allclose(found[:3], paired[:3], rtol=1e-9, atol=1e-9)
    assert found.n == 5


def test_a_contrast_is_that_of_least_squares():
    """Against the textbook: regression on indicators of setting and seed, by numpy's solver."""
    rng = np.random.default_rng(0)
    settings, seeds, weights = 6, 3, np.array([0.5, 0.5, 0, -1, 0.2, -0.2])
    values = rng.normal(size=(settings, seeds)) + rng.normal(size=(settings, 1)) + 5 * rng.normal(size=seeds)
    rows = [(np.eye(settings)[c], np.eye(seeds)[s][1:]) for c in range(settings) for s in range(seeds)]
    design = np.array([np.concatenate(parts) for parts in rows])
    coefficients, (squares,), *_ = np.linalg.lstsq(design, values.ravel())
    freedom = (settings - 1) * (seeds - 1)
    wide = np.concatenate([weights, np.zeros(seeds - 1)])
    error = np.sqrt(squares / freedom * wide @ np.linalg.inv(design.T @ design) @ wide)
    half = stats.t.ppf(0.975, freedom) * error
    mean = wide @ coefficients
    np.testing.assert_allclose(claims.contrast(values, weights)[:3], [mean, mean - half, mean + half], rtol=1e-9)


def test_a_contrast_covers_the_truth_as_often_as_it_says():
    rng, weights, hits = np.random.default_rng(1), np.array([1, 0.5, -0.5, -1]), 0
    truth = np.array([3.0, 1.0, 0.0, 2.0])
    for _ in range(1000):
        values = truth[:, None] + 10 * rng.normal(size=2) + rng.normal(size=(4, 2))
        found = claims.contrast(values, weights)
        hits += found.low <= weights @ truth <= found.high
    assert 925 < hits < 975


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([[1.0, 2.0]], [0.0], "settings, seeds"),
        ([[1.0], [2.0]], [1, -1], "settings, seeds"),
        ([[1.0, np.nan], [2.0, 1.0]], [1, -1], "finite"),
        ([[1.0, 2.0], [2.0, 1.0]], [1, 1], "sum 0"),
        ([[1.0, 2.0], [2.0, 1.0]], [0, 0], "not all 0"),
        ([[1.0, 2.0], [2.0, 1.0]], [1, -1, 0], "one a setting"),
    ],
)
def test_bad_contrasts(values, weights, message):
    with pytest.raises(ValueError, match=message):
        claims.contrast(values, weights)
