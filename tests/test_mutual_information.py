"""Mutual information of an example's index and its draws: direct sums, quadrature, known biases, invariances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import digamma, logsumexp
from strategies import seeds

from lsbook import information

ESTIMATORS = information.ESTIMATORS
TWO = np.repeat([0.0, 50.0], 300)


def drawn(means, num_draws, seed, std=1.0):
    means = np.asarray(means, dtype=np.float64)[:, None]
    return means + std * np.random.default_rng(seed).normal(size=(len(means), num_draws))


def spread(width, count=600, seed=9):
    return width * np.random.default_rng(seed).normal(size=count)


MIXTURES = {
    "one cluster": np.zeros(600),
    "two far apart": TWO,
    "two that overlap": TWO * 0.06,
    "nine to one": np.repeat([0.0, 4.0], [540, 60]),
    "ten far apart": 50.0 * (np.arange(600) % 10),
    "the paper's, not collapsed": TWO + spread(0.5),
    "spread as the noise": spread(1.0),
    "spread ten times": TWO + spread(10.0),
    "fully separated": 50.0 * np.arange(600),
}


def by_hand(draws, estimator):
    """The definitions, sum by sum; "corrected" as densities with their own normalisers."""
    num_examples, num_draws = draws.shape
    total = draws.sum(axis=1, keepdims=True)
    means = np.repeat(total / num_draws, num_draws, axis=1)
    if estimator == "held_out":
        means = (total - draws) / (num_draws - 1)
    variance = ((draws - means) ** 2).mean()
    unbiased = variance * num_draws / (num_draws - 1)
    terms = []
    for x in range(num_examples):
        for place in range(num_draws):
            logs = -((draws[x, place] - means[:, place]) ** 2) / (2 * variance)
            if estimator == "corrected":
                normalisers = np.full(num_examples, variance)
                normalisers[x] = unbiased
                density = logsumexp(logs - np.log(2 * np.pi * normalisers) / 2) - np.log(num_examples)
                terms.append(-density - np.log(2 * np.pi * math.e * unbiased) / 2)
            elif estimator == "printed":
                terms.append(logs[x] - logsumexp(-((draws - means) ** 2) / (2 * variance)) + np.log(draws.size))
            else:
                terms.append(logs[x] - logsumexp(logs) + np.log(num_examples))
    return math.fsum(terms) / draws.size


@st.composite
def samples(draw):
    """Draws (N, L) of a few examples, from collapsed to fully separated, of Gaussian or heavy-tailed noise."""
    rng = np.random.default_rng(draw(seeds))
    num_examples, num_draws = draw(st.integers(2, 12)), draw(st.integers(2, 6))
    means = rng.normal(size=(num_examples, 1)) * draw(st.sampled_from([0.0, 0.3, 3.0, 30.0, 1e4]))
    noise = rng.normal(size=(num_examples, num_draws))
    return means + (noise**3 if draw(st.booleans()) else noise)


# --- against direct sums


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(draws=samples())
@settings(max_examples=40)
def test_against_direct_sums(estimator, draws):
    assert information.mutual_information(draws, estimator) == pytest.approx(by_hand(draws, estimator), abs=1e-6)


@pytest.mark.parametrize("name", MIXTURES)
def test_against_direct_sums_of_many(name):
    draws = drawn(MIXTURES[name], 3, seed=5)
    assert information.mutual_information(draws) == pytest.approx(by_hand(draws, "corrected"), abs=1e-7)


@pytest.mark.parametrize("width", [0.0, 3.0, 1000.0])
def test_the_table_against_direct_sums(width):
    """The log densities themselves, also where one cluster takes over from another."""
    centres, points = spread(width, 50), np.linspace(-3 * width - 20, 3 * width + 20, 5001)
    exact = logsumexp(-((points[:, None] - centres) ** 2) / 2, axis=1)
    near = np.abs(points[:, None] - centres).min(axis=1) < 4
    found = information._log_kernel_sums(points, centres, np.ones(50))
    np.testing.assert_allclose(found[near], exact[near], rtol=0, atol=1e-3)
    assert np.abs(found - exact)[near].mean() < 1e-6


# --- against the truth


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=5), st.floats(0.3, 3))
@settings(max_examples=15)
def test_quadrature_against_scipy(means, std):
    def minus_p_log_p(y):
        log_density = logsumexp(stats.norm.logpdf(y, means, std)) - math.log(len(means))
        return -math.exp(log_density) * log_density

    low, high = min(means) - 12 * std, max(means) + 12 * std
    entropy = integrate.quad(minus_p_log_p, low, high, points=sorted(set(means)), epsabs=1e-10, limit=500)[0]
    expected = entropy - math.log(2 * math.pi * math.e * std**2) / 2
    assert information.gaussian_mixture_information(means, std) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("width", [0.1, 1.0, 10.0, 100.0, 1000.0])
def test_quadrature_of_many_means(width):
    means = spread(width)
    grid = np.arange(means.min() - 10, means.max() + 10, 0.2)
    density = np.concatenate([stats.norm.pdf(part[:, None], means).mean(1) for part in np.array_split(grid, 100)])
    terms = np.where(density > 0, -density * np.log(np.maximum(density, 1e-300)), 0)
    expected = 0.2 * terms.sum() - math.log(2 * math.pi * math.e) / 2
    assert information.gaussian_mixture_information(means, 1.0) == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(st.sampled_from([0.0, 1e-9, 1.0, 3.0, 30.0, 1e3, 1e6, 1e15]), min_size=1, max_size=40), st.floats(1e-3, 1)
)
def test_bounds_of_the_quadrature(means, std):
    value = information.gaussian_mixture_information(means, std)
    assert 0 <= value <= math.log(len(means))
    assert value <= math.log(len(set(means))) + 1e-9
    moved = information.gaussian_mixture_information(-2 * np.array(means), 2 * std)
    assert value == pytest.approx(moved, abs=1e-7)


def test_known_information():
    quadrature = information.gaussian_mixture_information
    assert quadrature([3.0] * 7, 0.1) == pytest.approx(0, abs=1e-12)
    assert quadrature(np.arange(600), 1e-3) == pytest.approx(math.log(600), abs=1e-12)
    assert quadrature(TWO, 1.0) == pytest.approx(math.log(2), abs=1e-12)
    assert quadrature(np.repeat([0, 100], [540, 60]), 1) == pytest.approx(stats.entropy([0.9, 0.1]), abs=1e-12)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_default_finds_the_truth(name):
    truth = information.gaussian_mixture_information(MIXTURES[name], 1.0)
    errors = [information.mutual_information(drawn(MIXTURES[name], 5, seed)) - truth for seed in range(8)]
    assert abs(np.mean(errors)) < 0.02
    assert np.abs(errors).max() < 0.05
    if len(set(MIXTURES[name])) <= 2:
        assert np.abs(errors).max() < 0.025  # all of it noise, of standard deviation 0.007 (0.009 where they overlap)


@pytest.mark.parametrize("num_draws", [2, 3, 5, 20])
@pytest.mark.parametrize("estimator", ["corrected", "reused", "held_out"])
def test_biases(num_draws, estimator):
    found = [information.mutual_information(drawn(np.zeros(600), num_draws, seed), estimator) for seed in range(20)]
    bias = information.information_bias(num_draws, estimator)
    assert np.mean(found) == pytest.approx(bias, abs=0.02 / (num_draws - 1) + 0.002)


def test_biases_as_the_book_states_them():
    bias = information.information_bias
    assert bias(5, "reused") == pytest.approx(0.112, abs=5e-4)
    assert bias(6, "held_out") == pytest.approx(-0.066, abs=5e-4)  # five draws in a mean and one held out
    assert bias(5, "held_out") == pytest.approx(-0.0755, abs=5e-4)
    assert bias(5) == 0
    assert all(abs(bias(10**6, estimator)) < 1e-6 for estimator in ESTIMATORS[:3])


def test_biases_elsewhere():
    """Where the m_x are spread wide but densely they are ±½ ln(L/(L − 1)), and none where all are separated."""
    wide, limit = spread(10.0), math.log(5 / 4) / 2
    truth = information.gaussian_mixture_information(wide, 1.0)
    errors = {
        estimator: np.mean([information.mutual_information(drawn(wide, 5, seed), estimator) for seed in range(8)])
        - truth
        for estimator in ESTIMATORS[:3]
    }
    assert errors == pytest.approx({"corrected": 0, "reused": limit, "held_out": -limit}, abs=0.02)
    apart = drawn(MIXTURES["fully separated"], 5, seed=0)
    for estimator in ESTIMATORS[:3]:
        assert information.mutual_information(apart, estimator) == pytest.approx(math.log(600), abs=1e-9)


# --- the formula as printed


@given(samples())
def test_as_printed_it_is_never_positive(draws):
    assert information.mutual_information(draws, "printed") <= 0


@pytest.mark.parametrize("name", MIXTURES)
def test_as_printed_it_tells_nothing(name):
    """−½ + ½ ln 2 for Gaussian noise, whatever Y tells about X."""
    found = information.mutual_information(drawn(MIXTURES[name], 20, seed=1), "printed")
    assert found == pytest.approx((math.log(2) - 1) / 2, abs=0.01)


# --- invariances and bounds


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(draws=samples(), factor=st.sampled_from([1e-300, -1e-3, -1.0, 0.7, 1e3, 1e300]), shift=st.floats(-1e3, 1e3))
@settings(max_examples=60)
def test_invariances(estimator, draws, factor, shift):
    expected = information.mutual_information(draws, estimator)
    rng = np.random.default_rng(0)
    examples, places = rng.permutation(len(draws)), rng.permutation(draws.shape[1])
    for other in (factor * draws, draws + shift, draws[examples], draws[:, places]):
        assert information.mutual_information(other, estimator) == pytest.approx(expected, abs=1e-6)
    if estimator != "held_out":  # which compares draws of one place
        shuffled = rng.permuted(draws, axis=1)
        assert information.mutual_information(shuffled, estimator) == pytest.approx(expected, abs=1e-6)


@given(samples())
def test_bounds(draws):
    """No estimate exceeds ln N; the lower bound is the noise's."""
    for estimator in ("corrected", "reused", "held_out"):
        assert information.mutual_information(draws, estimator) <= math.log(len(draws)) + 1e-6
    assert information.mutual_information(draws, "reused") >= -0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precisions(dtype):
    tensor = torch.tensor(drawn(TWO[::10] + spread(1.0, 60), 5, seed=0)).to(dtype)
    expected = information.mutual_information(tensor.double().numpy())
    assert information.mutual_information(tensor.requires_grad_()) == expected
    if dtype != torch.bfloat16:  # which numpy lacks
        assert information.mutual_information(tensor.detach().numpy()) == expected


def test_whole_numbers_and_lists():
    draws = [[0, 1], [1, 3], [7, 9]]
    assert information.mutual_information(draws) == pytest.approx(
        by_hand(np.array(draws, float), "corrected"), abs=1e-7
    )


@pytest.mark.parametrize("distance", [1e3, 1e6, 1e9, 1e12, 1e100])
def test_far_means(distance):
    """No kernel is lost to underflow, and no noise to the scale: the distance of what is separated does not matter."""
    draws = drawn(np.zeros(400), 5, seed=0)
    draws[200:] = 100.0
    expected = by_hand(draws[::10], "corrected")
    draws[200:] = distance
    assert information.mutual_information(draws[::10]) == pytest.approx(expected, abs=1e-6)
    assert information.mutual_information(draws / distance) == pytest.approx(information.mutual_information(draws))


def test_one_draw_far_out():
    draws = drawn(np.zeros(30), 5, seed=0)
    draws[3, 2] = 1e4
    for estimator in ESTIMATORS:
        assert information.mutual_information(draws, estimator) == pytest.approx(by_hand(draws, estimator), abs=1e-6)


# --- no noise at all


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.7], math.log(4)),
        ([0.1, 0.1, 0.7, 0.7], math.log(2)),
        ([0.1, 0.1, 0.1, 0.7], stats.entropy([0.75, 0.25])),
        ([0.1, 0.1, 0.1, 0.1], 0.0),
        ([0.0, 0.0], 0.0),
        ([1e300, 1e-300, -1e300], math.log(3)),
    ],
)
def test_draws_that_never_differ(values, expected):
    """Y is a function of x: its entropy. 0.1 thrice has a mean that is not 0.1, which must not pass for noise."""
    draws = np.repeat(np.array(values)[:, None], 3, axis=1)
    for estimator in ESTIMATORS[:3]:
        assert information.mutual_information(draws, estimator) == pytest.approx(expected, abs=1e-12)
        low, high = information.information_interval(draws, estimator, resamples=20)
        assert low <= information.mutual_information(draws, estimator) <= high
    assert information.mutual_information(draws, "printed") == 0


# --- the interval


@pytest.mark.parametrize("means", [np.zeros(60), np.repeat([0.0, 4.0], 30)])
def test_the_interval_covers(means):
    truth = information.gaussian_mixture_information(means, 1.0)
    hits = []
    for seed in range(40):
        low, high = information.information_interval(drawn(means, 5, seed), resamples=40, seed=seed)
        hits.append(low <= truth <= high)
    assert np.mean(hits) >= 0.85  # 0.95 less three standard deviations


def test_interval_of_separated_examples():
    """Copies of an example, counted as others, would take 0.4 nats off every resample, more or less."""
    low, high = information.information_interval(drawn(50.0 * np.arange(100), 5, seed=0), resamples=20)
    assert math.log(100) - 0.01 < low < high < math.log(100) + 0.01


def test_interval_settings():
    draws = drawn(TWO[::20], 3, seed=0)
    wide = information.information_interval(draws, confidence=0.99, resamples=30)
    narrow = information.information_interval(draws, confidence=0.5, resamples=30)
    assert wide[0] < narrow[0] < information.mutual_information(draws) < narrow[1] < wide[1]
    assert information.information_interval(draws, resamples=30, seed=1) != information.information_interval(
        draws, resamples=30
    )
    assert narrow == information.information_interval(draws, confidence=0.5, resamples=30)
    for estimator in ESTIMATORS:  # two examples: half of the resamples hold one alone
        low, high = information.information_interval(drawn([0, 5], 2, seed=0), estimator, resamples=30)
        assert math.isfinite(low) and low <= high
    for settings_, error in (
        ({"confidence": 1.5}, ValueError),
        ({"confidence": 1.0}, ValueError),
        ({"seed": -1}, ValueError),
        ({"resamples": 1}, ValueError),
        ({"resamples": 2.5}, TypeError),
    ):
        with pytest.raises(error):
            information.information_interval(draws, **settings_)


# --- nearest neighbours


def test_neighbours_find_the_truth():
    for means, num_draws in ((np.repeat([0.0, 50.0], 5), 100), (np.repeat([0.0, 3.0], 5), 100), (np.zeros(10), 100)):
        truth = information.gaussian_mixture_information(means, 1.0)
        assert information.neighbour_information(drawn(means, num_draws, seed=0)) == pytest.approx(truth, abs=0.05)


def test_neighbours_of_separated_examples():
    """ψ(NL) − ψ(L), at L = 5 by 0.10 more than ln N; scikit-learn's rounding takes up to 1/k off."""
    found = information.neighbour_information(drawn(MIXTURES["fully separated"], 5, seed=0))
    most = digamma(3000) - digamma(5)
    assert most - math.log(600) == pytest.approx(0.103, abs=1e-3)
    assert most - 1 / 3 <= found <= most + 1e-9
    many = drawn(50.0 * np.arange(10), 100, seed=0)
    assert information.neighbour_information(many) == pytest.approx(digamma(1000) - digamma(100), abs=1e-9)


def test_neighbours_of_uniform_noise():
    """Two overlapping intervals: I = ½ ln 2 whatever the shape, by hand."""
    rng = np.random.default_rng(0)
    draws = np.array([[0.0], [0.5]]) + rng.random((2, 4000))
    assert information.neighbour_information(draws) == pytest.approx(math.log(2) / 2, abs=0.03)


# --- bad input


@pytest.mark.parametrize(
    ("draws", "error", "message"),
    [
        ([1.0, 2.0], ValueError, "draws must have shape (N, L) with N ≥ 2 examples and L ≥ 2 draws, got (2,)"),
        (np.zeros((1, 5)), ValueError, "draws must have shape (N, L) with N ≥ 2 examples and L ≥ 2 draws, got (1, 5)"),
        (np.zeros((5, 1)), ValueError, "draws must have shape (N, L) with N ≥ 2 examples and L ≥ 2 draws, got (5, 1)"),
        (
            np.zeros((2, 2, 2)),
            ValueError,
            "draws must have shape (N, L) with N ≥ 2 examples and L ≥ 2 draws, got (2, 2, 2)",
        ),
        ([[1.0, 2.0], [math.nan, 0.0]], ValueError, "draws must be finite, got NaN or infinity"),
        ([[1.0, 2.0], [math.inf, 0.0]], ValueError, "draws must be finite, got NaN or infinity"),
        ([["a", "b"], ["c", "d"]], TypeError, "draws must be a real number or an array of them"),
        (np.ones((2, 2), dtype=bool), TypeError, "draws must be a real number or an array of them"),
        (np.ones((2, 2), dtype=complex), TypeError, "draws must be a real number or an array of them"),
        ([[1.0, 2.0], [3.0]], ValueError, "draws must be a real number or an array of them"),
    ],
)
def test_bad_draws(draws, error, message):
    for function in (
        information.mutual_information,
        information.information_interval,
        information.neighbour_information,
    ):
        with pytest.raises(error) as caught:
            function(draws)
        assert str(caught.value).startswith(message)


def test_other_bad_arguments():
    draws = drawn([0, 1], 3, seed=0)
    with pytest.raises(ValueError, match="estimator must be one of 'corrected', .* did you mean 'reused'"):
        information.mutual_information(draws, "reuse")
    with pytest.raises(ValueError, match="estimator must be one of 'corrected', 'reused', 'held_out', got 'printed'"):
        information.information_bias(5, "printed")
    with pytest.raises(ValueError, match="num_draws must be at least 2, got 1"):
        information.information_bias(1)
    with pytest.raises(ValueError, match="draws must have more draws to an example than neighbours = 3"):
        information.neighbour_information(draws)
    with pytest.raises(ValueError, match="neighbours must be at least 1, got 0"):
        information.neighbour_information(draws, 0)
    for means in ([], [[1.0]], [math.nan], [0.0, math.inf], [0.0, 1e300]):
        with pytest.raises(ValueError, match=r"means must be finite, also in units of std, of shape \(N,\) with N ≥ 1"):
            information.gaussian_mixture_information(means, 1e-100)
    with pytest.raises(ValueError, match="std must be positive and finite, got 0"):
        information.gaussian_mixture_information([0.0, 1.0], 0)


def test_input_is_left_alone():
    draws = drawn([0, 1, 5], 5, seed=0)
    before = draws.copy()
    for estimator in ESTIMATORS:
        information.mutual_information(draws, estimator)
    information.information_interval(draws, resamples=5)
    assert (draws == before).all()
