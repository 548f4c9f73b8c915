"""Closed forms in float64. They never call `targets` or a loss: that theory and code agree is a result of the book.

Every function takes numbers or numpy arrays and returns a float or an array of the same shape.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import wrightomega

from .checks import check_array, check_int, check_num_classes, check_number, check_positive

LARGEST = np.finfo(np.float64).max


def _plain(array):
    """A Python float for a scalar, else the array."""
    return float(array) if np.ndim(array) == 0 else array


def _check_shapes(**arrays):
    """Raise unless the named arrays can be broadcast together."""
    try:
        np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError:
        shapes = " and ".join(str(array.shape) for array in arrays.values())
        raise ValueError(f"{' and '.join(arrays)} must have shapes that broadcast, got {shapes}") from None


def epsilon_from_alpha(alpha, num_classes):
    """ε = α (K − 1)/K: the mass off the true class under α/K smoothing.

    >>> round(epsilon_from_alpha(0.1, 10), 12)
    0.09
    """
    classes = check_num_classes(num_classes)
    return _plain(check_array(alpha, "alpha", 0, 1) * ((classes - 1) / classes))


def alpha_from_epsilon(epsilon, num_classes):
    """α = ε K/(K − 1), for ε in [0, 1 − 1/K]: the inverse of `epsilon_from_alpha`.

    >>> round(alpha_from_epsilon(0.09, 10), 12)
    0.1
    """
    classes = check_num_classes(num_classes)
    epsilon = check_array(epsilon, "epsilon", 0, 1 - 1 / classes)
    return _plain(np.minimum(epsilon / ((classes - 1) / classes), 1.0))  # the minimum undoes rounding only


def optimal_gap(alpha, num_classes):
    """Gap z_y − z_j = ln(1 + K (1 − α)/α) of the logits that minimise the smoothed cross-entropy, in nats.

    alpha in [0, 1] (number or array), num_classes K ≥ 2. Infinite at α = 0, zero at α = 1.
    For convention "others" use optimal_gap(alpha_from_epsilon(ε, K), K) = ln((1 − ε)(K − 1)/ε).

    >>> round(optimal_gap(0.1, 10), 3)
    4.511
    """
    alpha = check_array(alpha, "alpha", 0, 1)
    with np.errstate(divide="ignore"):  # log 0 = −inf is meant at both ends
        log_ratio = np.log(check_num_classes(num_classes)) + np.log1p(-alpha) - np.log(alpha)
    return _plain(np.logaddexp(0.0, log_ratio))  # ln(1 + e^r), which neither overflows nor cancels


def alpha_from_gap(gap, num_classes):
    """α = K/(e^g + K − 1): the smoothing whose optimal gap is g ≥ 0, in nats. The inverse of `optimal_gap`.

    gap (number or array, may be infinite); the answer has its shape and lies in [0, 1].
    Raises ValueError for a negative gap or NaN, or num_classes < 2.
    """
    classes = check_num_classes(num_classes)
    decay = np.exp(-check_array(gap, "gap", 0))
    return _plain(classes * decay / (1 + (classes - 1) * decay))


def optimal_probs(alpha, num_classes):
    """(p_true, p_other) = (1 − α + α/K, α/K): the softmax at the optimum, equal to the target.

    Written through the gap, as e^g/(e^g + K − 1) and 1/(e^g + K − 1), so that it is not the target by definition.
    """
    classes = check_num_classes(num_classes)
    decay = np.exp(-np.asarray(optimal_gap(alpha, classes)))
    total = 1 + (classes - 1) * decay
    return _plain(1 / total), _plain(decay / total)


def loss_floor(alpha, num_classes):
    """Lowest possible smoothed cross-entropy: the entropy of y^LS, in nats. Zero at α = 0, ln K at α = 1.

    −(1 − m) ln(1 − m) − m ln(α/K), where m = α (K − 1)/K is the mass off the true class.
    """
    classes = check_num_classes(num_classes)
    alpha = check_array(alpha, "alpha", 0, 1)
    missing = alpha * ((classes - 1) / classes)  # 1 − p_true, exact also for tiny α
    with np.errstate(divide="ignore", invalid="ignore"):
        others = np.where(alpha > 0, missing * (np.log(classes) - np.log(alpha)), 0.0)
    return _plain(others - (1 - missing) * np.log1p(-missing))


def collapsed_teacher_alpha(alpha, num_classes, temperature):
    """α_T = K/(e^{g/T} + K − 1): what a collapsed smoothed teacher teaches at temperature T.

    A teacher that has reached its optimal gap g on every example, softened by T, gives exactly the
    targets of label smoothing with α_T. alpha in [0, 1], temperature T > 0 (numbers or arrays).
    Raises ValueError for other values, or for arrays whose shapes do not broadcast.

    >>> [round(collapsed_teacher_alpha(0.1, 10, t), 3) for t in (1, 2, 4)]
    [0.1, 0.539, 0.827]
    """
    alpha = check_array(alpha, "alpha", 0, 1)
    temperature = check_array(temperature, "temperature", np.nextafter(0, 1), LARGEST)
    _check_shapes(alpha=alpha, temperature=temperature)
    with np.errstate(over="ignore"):  # an infinite gap is meant for T → 0
        gap = np.asarray(optimal_gap(alpha, num_classes)) / temperature
    return alpha_from_gap(gap, num_classes)


def hessian_eigenvalues(alpha, num_classes):
    """Eigenvalues (along the gap, across the wrong classes) of diag(p) − p pᵀ at the optimum: (K a b, b).

    a = p_true, b = p_other. The third eigenvalue is 0, for the free offset. K = 2 has no "across".
    Returns two numbers, or two arrays of alpha's shape. Raises ValueError for alpha outside [0, 1] or num_classes < 2.
    """
    p_true, p_other = optimal_probs(alpha, num_classes)
    return _plain(num_classes * np.asarray(p_true) * p_other), p_other


def hard_target_gap(time, num_classes):
    """Gap after `time` of gradient flow on one example with a hard target, from equal logits.

    Solves e^g + (K − 1) g = 1 + K t, so g = ln(K t) + o(1): it grows like the logarithm of time, without end.
    With learning rate η, t = η × steps.
    """
    classes = check_num_classes(num_classes)
    time, wrong = check_array(time, "time", 0, 1e300), classes - 1
    gap = np.log(wrong * wrightomega((1 + classes * time) / wrong - np.log(wrong)))
    # Near 0 that logarithm has lost digits (it may even fall below 0): one Newton step gives them back.
    near = np.where(gap < 1e-5, time, np.minimum(gap, 1.0))
    step = (classes * time - np.expm1(near) - wrong * near) / (np.exp(near) + wrong)
    return _plain(np.where(gap < 1, near + step, gap))


def loss_at_gap(gap, alpha, num_classes):
    """L(g) = ln(1 + (K − 1) e^{−g}) + α g (K − 1)/K: the smoothed loss where the true logit leads all others by g.

    gap (any real number or array, or +∞) and the loss in nats; alpha in [0, 1], where 0 is the hard target.
    Its minimum over g is `loss_floor`, at `optimal_gap`. Raises ValueError for −∞, where the two terms' limits
    are ∞ and −∞, for NaN, and for arrays whose shapes do not broadcast.

    >>> round(loss_at_gap(0.0, 0.1, 10), 3)  # ln 10
    2.303
    """
    classes = check_num_classes(num_classes)
    gap, alpha = check_array(gap, "gap", -LARGEST), check_array(alpha, "alpha", 0, 1)
    _check_shapes(gap=gap, alpha=alpha)
    with np.errstate(invalid="ignore"):  # 0 · ∞: a hard target does not pull an infinite gap back
        pull = np.where(alpha > 0, alpha * ((classes - 1) / classes) * gap, 0.0)
    return _plain(np.logaddexp(0.0, np.log(classes - 1) - gap) + pull)


def weighted_optimal_probs(targets, weight):
    """p_k = w_k t_k / Σ_c w_c t_c: the softmax that minimises −Σ_k w_k t_k ln p_k, the loss with class weights.

    targets (..., K) with non-negative entries, weight (K,) with positive ones, all finite; the answer is (..., K).
    Raises ValueError for other values or shapes, and for a row of targets without mass.

    >>> weighted_optimal_probs([0.95, 0.05], [0.01, 0.99]).round(3)
    array([0.161, 0.839])
    """
    targets = check_array(targets, "targets", 0, LARGEST)
    weight = check_array(weight, "weight", np.nextafter(0, 1), LARGEST)
    if targets.ndim < 1 or weight.shape != targets.shape[-1:]:
        raise ValueError(f"expected targets (..., K) and weight (K,), got {targets.shape} and {weight.shape}")
    with np.errstate(over="ignore"):  # refused below
        mass = weight * targets
        total = mass.sum(axis=-1, keepdims=True)
    if not ((total > 0) & (total < np.inf)).all():
        raise ValueError("targets times weight must have a positive, finite sum in every row")
    return mass / total


def penalised_gap(alpha, num_classes, strength):
    """Gap that minimises smoothed cross-entropy + (λ/2) ‖z‖²: the g ≥ 0 with K/(e^g + K − 1) = α + λ g.

    The penalty acts as extra smoothing λ g. alpha in [0, 1], strength λ in [0, 1e300] (numbers). At λ = 0 it is
    `optimal_gap`; for λ > 0 it is finite even at α = 0. Raises ValueError for other values.

    >>> round(penalised_gap(0.1, 10, 0.01), 3)
    4.124
    """
    classes, alpha = check_num_classes(num_classes), check_number(alpha, "alpha", 0, 1)
    strength = check_number(strength, "strength", 0, 1e300)
    if strength == 0 or alpha == 1:
        return optimal_gap(alpha, classes)
    # At the root λ g < K e^{−g}, so beyond 1 it lies below ln(K/λ), even where the optimum without λ is infinite.
    high = min(optimal_gap(alpha, classes), max(1.0, np.log(classes) - np.log(strength)))
    return float(brentq(lambda gap: alpha_from_gap(gap, classes) - alpha - strength * gap, 0.0, high + 1, xtol=1e-14))


def matching_penalty(alpha, num_classes):
    """The strength β at which the confidence penalty −ln p_y − β H(p) asks for the optimal gap of smoothing with α.

    With p = p_y of logits that lead by g, its slope in g is (1 − p)(β p g − 1). That is 0 once, at a minimum, so
    β = 1/(p g*). alpha in (0, 1), num_classes K. Raises ValueError for other values.

    >>> round(matching_penalty(0.1, 10), 4)
    0.2436
    """
    if not 0 < check_number(alpha, "alpha", 0, 1) < 1:
        raise ValueError(f"alpha must lie strictly between 0 and 1, where the gap is finite and not 0, got {alpha}")
    return float(1 / (optimal_probs(alpha, num_classes)[0] * optimal_gap(alpha, num_classes)))


class UnconstrainedFeatures(NamedTuple):
    """The minimiser of the unconstrained-features model, up to a rotation: a regular simplex, one corner a class."""

    gap: float  # of every example to every wrong class, in nats
    template_norm: float  # ‖w_k‖, the same for every class; its templates sum to 0
    feature_norm: float  # ‖h_i‖, the same for every example, in the direction of its class's template


def unconstrained_features(alpha, num_classes, per_class, weight_decay, feature_decay):
    """Minimiser of the smoothed loss of z_i = W h_i plus (λ_W ‖W‖² + λ_H ‖H‖²)/2, features H free.

    The loss is the mean over n = per_class ≥ 1 examples of each of K classes; D ≥ K − 1 features, no bias. Its gap is
    that of smoothing alone with strength α + K √(n λ_W λ_H): the penalty acts as extra smoothing. From 1 on, everything
    is 0. The norms follow from λ_W ‖W‖² = λ_H ‖H‖² (Zhou et al. 2022; Guo et al. 2025).

    alpha in [0, 1], weight_decay λ_W and feature_decay λ_H positive and finite. Raises TypeError, ValueError else.

    >>> [round(value, 3) for value in unconstrained_features(0.1, 10, 5, 1e-3, 1e-3)]
    [4.287, 2.937, 1.314]
    """
    classes, alpha = check_num_classes(num_classes), check_number(alpha, "alpha", 0, 1)
    n, lw = check_int(per_class, "per_class", 1), check_positive(weight_decay, "weight_decay")
    lh = check_positive(feature_decay, "feature_decay")
    strength = alpha + classes * n**0.5 * lw**0.5 * lh**0.5
    gap = optimal_gap(strength, classes) if strength < 1 else 0.0
    norm = gap * (classes - 1) / classes  # ‖w‖ · ‖h‖, whose cosine is 1
    root = n**0.25 * (lh**0.25 / lw**0.25)  # of ‖w‖ / ‖h‖: λ_W K ‖w‖² = λ_H K n ‖h‖²
    return UnconstrainedFeatures(gap, norm**0.5 * root, norm**0.5 / root)
