"""How right and how sure a classifier is: pure functions of logits (N, K) and labels (N,), numpy or torch."""

import numpy as np
from scipy.special import log_softmax


def _array(logits):
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or logits.size == 0:
        raise ValueError(f"expected logits (N, K) with N ≥ 1, got shape {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite, got NaN or infinity")
    return logits


def _arrays(logits, labels):
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(f"expected logits (N, K) and labels (N,) with N ≥ 1, got {logits.shape} and {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers (class indices), got dtype {labels.dtype}")
    _array(logits)
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels must lie in [0, {logits.shape[1] - 1}], got {labels.min()} to {labels.max()}")
    return logits, labels


def accuracy(logits, labels):
    """Fraction of examples whose largest logit is that of their label."""
    logits, labels = _arrays(logits, labels)
    return float((logits.argmax(axis=1) == labels).mean())


def negative_log_likelihood(logits, labels):
    """Mean of −ln p[label] in nats, p = softmax(logits): the hard-target cross-entropy, whatever the training loss."""
    logits, labels = _arrays(logits, labels)
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def confidence(logits):
    """Largest softmax probability of each example, shape (N,)."""
    return np.exp(log_softmax(_array(logits), axis=1).max(axis=1))


def logit_gaps(logits, labels):
    """z_y − z_j for every wrong class j, shape (N, K − 1)."""
    logits, labels = _arrays(logits, labels)
    rows = np.arange(len(labels))
    wrong = np.arange(logits.shape[1])[None] != labels[:, None]
    return (logits[rows, labels][:, None] - logits)[wrong].reshape(len(labels), -1)
