"""Entropy, cross-entropy and divergence, against scipy, direct sums and their identities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import alphas, class_counts

from lsbook import information


@st.composite
def distributions(draw, count=2, classes=class_counts):
    """Distributions (rows, K), some entries exactly 0 or tiny, and all of one shape."""
    num_classes, rows = draw(classes), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    result = []
    for _ in range(count):
        mass = rng.exponential(size=(rows, num_classes)) ** draw(st.sampled_from([1, 5, 30]))
        mass[rng.random(mass.shape) < draw(st.sampled_from([0, 0.4]))] = 0
        mass[:, 0] += 1e-12
        result.append(mass / mass.sum(axis=1, keepdims=True))
    return result


@given(distributions())
def test_against_scipy(case):
    p, q = case
    np.testing.assert_allclose(information.entropy(p), stats.entropy(p, axis=1), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(information.kl_divergence(p, q), stats.entropy(p, q, axis=1), rtol=1e-10, atol=1e-12)


@given(distributions(classes=st.integers(2, 30)))
def test_cross_entropy_is_the_direct_sum(case):
    p, q = case
    for row_p, row_q, value in zip(p, q, information.cross_entropy(p, q), strict=True):
        if any(b == 0 < a for a, b in zip(row_p, row_q, strict=True)):
            assert value == math.inf
        else:
            terms = [-a * math.log(b) for a, b in zip(row_p, row_q, strict=True) if a > 0]
            assert value == pytest.approx(math.fsum(terms), rel=1e-13, abs=1e-14)


@given(distributions())
def test_identities(case):
    p, q = case
    entropy, cross, divergence = (
        information.entropy(p),
        information.cross_entropy(p, q),
        information.kl_divergence(p, q),
    )
    assert (entropy >= 0).all()
    assert (entropy <= math.log(p.shape[1]) + 1e-12).all()
    assert (divergence >= -1e-12).all()
    finite = np.isfinite(cross)
    assert (finite == np.isfinite(divergence)).all()
    np.testing.assert_allclose(cross[finite], (entropy + divergence)[finite], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(information.kl_divergence(p, p), 0, atol=1e-15)


@given(class_counts, alphas, st.data())
def test_hand_made_cases(num_classes, alpha, data):
    uniform, one_hot = np.full(num_classes, 1 / num_classes), np.zeros(num_classes)
    one_hot[data.draw(st.integers(0, num_classes - 1))] = 1
    assert information.entropy(uniform) == pytest.approx(math.log(num_classes), rel=1e-13)
    assert information.entropy(one_hot) == 0
    assert information.kl_divergence(one_hot, uniform) == pytest.approx(math.log(num_classes), rel=1e-13)
    assert information.kl_divergence(uniform, one_hot) == math.inf
    # H(y^LS, u) = ln K whatever α: the second argument is constant.
    smoothed = (1 - alpha) * one_hot + alpha * uniform
    assert information.cross_entropy(smoothed, uniform) == pytest.approx(math.log(num_classes), rel=1e-12)


def test_not_symmetric():
    p, q = [0.9, 0.1], [0.5, 0.5]
    assert information.kl_divergence(p, q) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-14)
    assert information.kl_divergence(q, p) == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5), rel=1e-14)


def test_float32_rows_and_leading_dimensions():
    p = np.full((2, 3, 4), 0.25, dtype=np.float32)
    assert information.entropy(p).shape == (2, 3)
    np.testing.assert_allclose(information.entropy(p), math.log(4), rtol=1e-15)
    assert information.cross_entropy(p, np.array([0.1, 0.2, 0.3, 0.4])).shape == (2, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 0.4], "p must have rows that sum to 1, got a row that sums to 0.9"),
        ([[0.5, 0.5], [0.7, 0.7]], "p must have rows that sum to 1, got a row that sums to 1.4"),
        ([1.5, -0.5], "p must have no negative entry and no NaN, got a smallest entry of -0.5"),
        ([math.nan, 1.0], "p must have no negative entry and no NaN, got a smallest entry of nan"),
        (0.5, "p must have shape (..., K) with K ≥ 2 and hold something, got shape ()"),
        ([], "p must have shape (..., K) with K ≥ 2 and hold something, got shape (0,)"),
        ([1.0], "p must have shape (..., K) with K ≥ 2 and hold something, got shape (1,)"),
        ([[1.0], [1.0]], "p must have shape (..., K) with K ≥ 2 and hold something, got shape (2, 1)"),
    ],
)
def test_bad_distributions(values, message):
    for call in (
        lambda: information.entropy(values),
        lambda: information.cross_entropy(values, [0.5, 0.5]),
        lambda: information.kl_divergence(values, [0.5, 0.5]),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message


def test_the_second_argument_is_checked_too():
    for function in (information.cross_entropy, information.kl_divergence):
        with pytest.raises(ValueError, match=r"q must have rows that sum to 1, got a row that sums to 2"):
            function([0.5, 0.5], [1, 1])


@pytest.mark.parametrize(
    ("p_shape", "q_shape"), [((3, 4), (3, 5)), ((4,), (5,)), ((2, 3, 4), (3, 4)), ((1, 4), (3, 4)), ((4,), (3, 1, 2))]
)
def test_shapes_that_do_not_fit(p_shape, q_shape):
    """Regression: numpy broadcast (1, K) and K = 1 in silence, and named no argument for the rest."""
    p, q = (np.full(shape, 1 / shape[-1]) for shape in (p_shape, q_shape))
    for function in (information.cross_entropy, information.kl_divergence):
        for first, second in ((p, q), (q, p)):
            with pytest.raises(ValueError) as caught:
                function(first, second)
            expected = (
                f"p and q must have one shape (..., K), or one of them (K,), got {first.shape} and {second.shape}"
            )
            assert str(caught.value) == expected


def test_one_distribution_against_many():
    p, q = np.full((2, 3, 4), 0.25), np.array([0.1, 0.2, 0.3, 0.4])
    for function in (information.cross_entropy, information.kl_divergence):
        assert function(p, q).shape == function(q, p).shape == (2, 3)
        assert function(q, p)[0, 0] == function(q, p[0, 0])


def test_what_is_no_number():
    with pytest.raises(TypeError, match="p must be a real number or an array of them"):
        information.entropy(["a", "b"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_classes", [2, 10, 1000, 32000])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_softmax_rows_of_any_precision(dtype, num_classes, scale):
    """Regression: rows of float16 were off by 5.5e-4 and refused, those of bfloat16 unreadable."""
    generator = torch.Generator().manual_seed(0)
    probs = (torch.randn(8, num_classes, generator=generator) * scale).to(dtype).softmax(-1)
    expected = torch.special.entr(probs.double()).sum(-1)
    np.testing.assert_allclose(information.entropy(probs.requires_grad_()), expected, rtol=1e-12)
    if dtype != torch.bfloat16:  # which numpy lacks
        assert (information.entropy(probs.detach().numpy()) == information.entropy(probs)).all()


@pytest.mark.parametrize(
    ("dtype", "inside", "outside"),
    [
        (torch.float64, 9e-7, 2e-6),
        (torch.float32, 9e-7, 2e-6),
        (torch.float16, 2.0**-10, 2.0**-8),
        (torch.bfloat16, 2.0**-7, 2.0**-5),
    ],
)
def test_the_tolerance_is_that_of_the_dtype(dtype, inside, outside):
    information.entropy(torch.tensor([0.5, 0.5 - inside], dtype=torch.float64).to(dtype))
    with pytest.raises(ValueError, match="p must have rows that sum to 1"):
        information.entropy(torch.tensor([0.5, 0.5 - outside], dtype=torch.float64).to(dtype))
