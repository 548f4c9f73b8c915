"""Entropy, cross-entropy and divergence of discrete distributions, in nats, on arrays of probabilities (..., K)."""

import numpy as np


def check_distributions(probs, name):
    """Return `probs` as float64 if its rows are distributions: no entry below 0, sums of 1 within 1e-6."""
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim < 1 or probs.size == 0:
        raise ValueError(f"{name} must have shape (..., num_classes) and hold something, got shape {probs.shape}")
    if not (probs >= 0).all():
        raise ValueError(f"{name} must have no negative entry and no NaN, got a smallest entry of {probs.min()}")
    sums = probs.sum(axis=-1)
    if not np.allclose(sums, 1, rtol=0, atol=1e-6):
        worst = sums.flat[np.abs(sums - 1).argmax()]
        raise ValueError(f"{name} must have rows that sum to 1, got a row that sums to {worst:.6g}")
    return probs


def cross_entropy(p, q):
    """H(p, q) = −Σ_k p_k ln q_k, for p and q of shape (..., K). Infinite where q is 0 and p is not."""
    p, q = check_distributions(p, "p"), check_distributions(q, "q")
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, -p * np.log(q), 0.0)  # 0 ln 0 = 0
    return terms.sum(axis=-1)


def entropy(p):
    """H(p) = −Σ_k p_k ln p_k: the expected information, not the information of one outcome."""
    return cross_entropy(p, p)


def kl_divergence(p, q):
    """KL(p‖q) = Σ_k p_k ln(p_k/q_k) = H(p, q) − H(p) ≥ 0. Not symmetric, so no distance."""
    p, q = check_distributions(p, "p"), check_distributions(q, "q")
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return terms.sum(axis=-1)
