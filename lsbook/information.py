"""Entropy, cross-entropy and divergence of discrete distributions, in nats, on arrays of probabilities (..., K)."""

import numpy as np

from .checks import real_array

# By name, so that torch's dtypes are known without torch: (spacing at 1, spacing near 0).
SPACINGS = {"float16": (2.0**-10, 2.0**-24), "bfloat16": (2.0**-7, 2.0**-133), "float32": (2.0**-23, 2.0**-149)}


def _tolerance(probs, num_classes):
    """How far from 1 a row may sum: 1e-6, or more below float64.

    Rounding moves an entry p by at most half the spacing there, which is at most p · eps or, below the normal
    numbers, the spacing near 0. Two roundings of every entry thus move the sum of K by eps + K · (spacing near 0).
    A softmax also divides by a sum of K terms, in float32 at best, whose roundings add up like a random walk: √K.
    """
    dtype = str(getattr(probs, "dtype", "")).removeprefix("torch.")
    if dtype not in SPACINGS:
        return 1e-6
    eps, smallest = SPACINGS[dtype]
    return max(1e-6, eps + num_classes * smallest + 2.0**-23 * num_classes**0.5)


def check_distributions(probs, name):
    """Return `probs` as float64 (..., K) if its rows are distributions: K ≥ 2, no entry below 0, sums of 1.

    The sums may be off by 1e-6, and below float64 by what two roundings of each entry and a softmax's sum can do.
    Raises TypeError for what is no array of real numbers, ValueError for other shapes and values.
    """
    array = real_array(probs, name)
    if array.ndim < 1 or array.size == 0 or array.shape[-1] < 2:
        raise ValueError(f"{name} must have shape (..., K) with K ≥ 2 and hold something, got shape {array.shape}")
    if not (array >= 0).all():
        raise ValueError(f"{name} must have no negative entry and no NaN, got a smallest entry of {array.min()}")
    sums = array.sum(axis=-1)
    if not np.allclose(sums, 1, rtol=0, atol=_tolerance(probs, array.shape[-1])):
        worst = sums.flat[np.abs(sums - 1).argmax()]
        raise ValueError(f"{name} must have rows that sum to 1, got a row that sums to {worst:.9g}")
    return array


def _pair(p, q):
    """p and q after the checks, if their shapes are equal or one is a single distribution (K,) of as many classes."""
    p, q = check_distributions(p, "p"), check_distributions(q, "q")
    if p.shape != q.shape and (p.shape[-1] != q.shape[-1] or min(p.ndim, q.ndim) > 1):
        raise ValueError(f"p and q must have one shape (..., K), or one of them (K,), got {p.shape} and {q.shape}")
    return p, q


def cross_entropy(p, q):
    """H(p, q) = −Σ_k p_k ln q_k in nats, shape (...), for p and q (..., K). Infinite where q is 0 and p is not.

    One of p and q may be a single distribution (K,). Raises TypeError or ValueError naming the argument for other
    shapes, and for rows that are no distributions.
    """
    p, q = _pair(p, q)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, -p * np.log(q), 0.0)  # 0 ln 0 = 0
    return terms.sum(axis=-1)


def entropy(p):
    """H(p) = −Σ_k p_k ln p_k in nats, shape (...): the expected information, not the information of one outcome.

    Raises TypeError or ValueError unless p (..., K) holds distributions.
    """
    return cross_entropy(p, p)


def kl_divergence(p, q):
    """KL(p‖q) = Σ_k p_k ln(p_k/q_k) = H(p, q) − H(p) ≥ 0 in nats, shape (...). Not symmetric, so no distance.

    Shapes and errors as in `cross_entropy`.
    """
    p, q = _pair(p, q)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return terms.sum(axis=-1)
