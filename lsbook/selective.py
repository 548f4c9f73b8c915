"""Which predictions to trust: scores of trust, and what is gained by answering only where they are high."""

from typing import NamedTuple

import numpy as np

from .checks import as_numpy, check_positive, real_array


class RiskCoverage(NamedTuple):
    """Answer only the most trusted examples: share answered, and share of wrong answers among them, arrays (N,)."""

    coverage: np.ndarray
    risk: np.ndarray

    @property
    def area(self):
        """Mean risk over all coverages, the area under the curve (AURC): small if errors come last."""
        return float(self.risk.mean())


def risk_coverage(trust, correct):
    """Risk when the n most trusted of N examples are answered, for n = 1 … N: `RiskCoverage`.

    trust (N,), larger for predictions more to be trusted; correct (N,), whether each is right. Examples of equal trust
    are answered in no particular order, so each has the mean risk of such a group: the curve does not depend on how the
    examples are sorted. Raises TypeError or ValueError for other shapes and values that are not finite.
    Source: Geifman and El-Yaniv (2017).
    """
    trust, correct = real_array(trust, "trust"), as_numpy(correct)
    if trust.ndim != 1 or not len(trust) or not np.isfinite(trust).all():
        raise ValueError(f"trust must be finite and of shape (N,) with N ≥ 1, got shape {trust.shape}")
    if correct.shape != trust.shape or not np.isin(correct, (0, 1)).all():
        raise ValueError(f"correct must hold true or false for each of {len(trust)} examples, got {correct!r:.80}")
    _, group, sizes = np.unique(-trust, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, 1.0 - correct) / sizes  # the share of each group of equals
    count = np.arange(1, len(trust) + 1)
    return RiskCoverage(count / len(trust), np.cumsum(np.repeat(wrong, sizes)) / count)


def normalised_logit(logits, order=2.0):
    """Trust by direction alone: max_k (z_k − z̄) / ‖z − z̄‖_order of each example, z̄ the mean logit; array (N,).

    Confidence grows with the length of the logits too, and smoothing holds that down unequally for right and wrong
    predictions; dividing by the length takes it back. 0 where all logits are equal. logits (N, K). Raises ValueError
    unless finite. Source: Xia et al. (2025), as a repair of smoothing.
    """
    logits, order = real_array(logits, "logits"), check_positive(order, "order")
    if logits.ndim != 2 or logits.size == 0 or not np.isfinite(logits).all():
        raise ValueError(f"logits must be finite and of shape (N, K) with N ≥ 1, got shape {logits.shape}")
    centred = logits - logits.mean(axis=1, keepdims=True)
    largest = np.abs(centred).max(axis=1)
    scaled = centred / np.where(largest > 0, largest, 1.0)[:, None]  # powers of it cannot overflow
    length = (np.abs(scaled) ** order).sum(axis=1) ** (1 / order)
    return np.divide(scaled.max(axis=1), length, out=np.zeros(len(logits)), where=length > 0)
