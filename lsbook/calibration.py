"""How right and how sure a classifier is: pure functions of logits (N, K) and labels (N,), numpy or torch.

All raise TypeError or ValueError unless logits are finite real numbers (N, K) with N ≥ 1 and K ≥ 2, and labels
integers (N,) in 0 … K − 1; the error names the argument and what was given.
"""

import numpy as np
from scipy.special import log_softmax

from .checks import as_numpy, real_array


def _array(logits):
    logits = real_array(logits, "logits")
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape (N, K) with N ≥ 1 and K ≥ 2, got {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite, got NaN or infinity")
    return logits


def _arrays(logits, labels):
    logits, labels = _array(logits), as_numpy(labels)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must have shape (N,) for logits (N, K), got {labels.shape} for {logits.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers (class indices), got dtype {labels.dtype}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels must lie in [0, {logits.shape[1] - 1}], got {labels.min()} to {labels.max()}")
    return logits, labels


def accuracy(logits, labels):
    """Fraction of examples whose largest logit is that of their label: a float in [0, 1]; ties go to the first class.

    Raises TypeError, ValueError: see the module.
    """
    logits, labels = _arrays(logits, labels)
    return float((logits.argmax(axis=1) == labels).mean())


def negative_log_likelihood(logits, labels):
    """Mean of −ln p[label], p = softmax(logits): the hard-target cross-entropy in nats, a float, whatever was trained.

    Raises TypeError, ValueError: see the module.
    """
    logits, labels = _arrays(logits, labels)
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def confidence(logits):
    """Largest softmax probability max_k p_k of each example: array (N,), entries in [1/K, 1].

    Raises TypeError, ValueError: see the module.
    """
    return np.exp(log_softmax(_array(logits), axis=1).max(axis=1))


def logit_gaps(logits, labels):
    """z_y − z_j for every wrong class j, in nats, ordered by class: array (N, K − 1).

    Raises TypeError, ValueError: see the module.
    """
    logits, labels = _arrays(logits, labels)
    rows = np.arange(len(labels))
    wrong = np.arange(logits.shape[1])[None] != labels[:, None]
    return (logits[rows, labels][:, None] - logits)[wrong].reshape(len(labels), -1)
