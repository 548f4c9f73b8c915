"""Other losses against over-confidence: functions of logits (N, K) and labels (N,), torch, the mean over the batch.

Each is the cross-entropy of hard targets, in nats, with something that keeps the network from being ever surer; its
last argument says how strongly, and 0 (for `margin`: an infinite one) leaves the cross-entropy alone. They widen
float16 and bfloat16 to float32. All raise TypeError or ValueError, naming the argument, for logits and labels that do
not fit each other, an empty batch, a strength out of range and, with `validate`, labels out of range or logits that
are not finite.
"""

import torch

from .checks import check_choice, check_finite, check_labels, check_logits, check_number
from .targets import smoothed_cross_entropy

LARGEST = 1e300
# What MbLS charges for each nat beyond the margin; its authors' choice.
MARGIN_WEIGHT = 0.1


def confidence_penalty(logits, labels, strength, validate=True):
    """Cross-entropy less β times the entropy of the output: −ln p_y − β H(p), β = strength ≥ 0.

    It pulls p towards uniform by KL(p‖u), where smoothing uses KL(u‖p). Source: Pereyra et al. (2017).
    """
    strength = check_number(strength, "strength", 0, LARGEST)
    loss, wide = _cross_entropy(logits, labels, validate)
    log_probs = wide.log_softmax(dim=-1)
    return (loss + strength * (log_probs.exp() * log_probs).sum(dim=-1)).mean()


def focal(logits, labels, strength, validate=True):
    """Cross-entropy that cares less about what is nearly right: −(1 − p_y)^γ ln p_y, γ = strength, 0 or at least 1.

    Unlike the others it has no optimal gap: it falls for ever as the gap grows, only more slowly. Between 0 and 1 its
    slope has no bound where p_y is near 1. Source: Lin et al. (2017); against over-confidence, Mukhoti et al. (2020).
    """
    if check_number(strength, "strength", 0, LARGEST) and strength < 1:
        raise ValueError(f"strength (γ of the focal loss) must be 0 or at least 1, got {strength}")
    loss, _ = _cross_entropy(logits, labels, validate)
    return (loss * (-torch.expm1(-loss)) ** strength).mean()


def margin(logits, labels, strength, validate=True):
    """Cross-entropy and a charge for gaps beyond a margin m: −ln p_y + w Σ_j max(0, max_k z_k − z_j − m).

    m = strength ≥ 0 in nats, w = `MARGIN_WEIGHT`. Smoothing asks for gaps of just g*; a margin allows any gap up to m.
    Source: Liu et al. (2022).
    """
    strength = check_number(strength, "strength", 0)
    loss, wide = _cross_entropy(logits, labels, validate)
    beyond = (wide.amax(dim=-1, keepdim=True) - wide - strength).clamp_min(0)
    return (loss + MARGIN_WEIGHT * beyond.sum(dim=-1)).mean()


def maximum_suppression(logits, labels, strength, validate=True):
    """Cross-entropy and α times the largest logit's lead over the mean: −ln p_y + α (max_k z_k − mean_k z_k).

    α = strength in [0, 1]. Smoothing is −ln p_y + α (z_y − mean z): the same where the network is right; where it is
    wrong, smoothing holds down the true class and this loss the wrong one. Source: Zhou et al. (2025), "MaxSup".
    """
    strength = check_number(strength, "strength", 0, 1)
    loss, wide = _cross_entropy(logits, labels, validate)
    return (loss + strength * (wide.amax(dim=-1) - wide.mean(dim=-1))).mean()


def smoothing(logits, labels, strength, validate=True):
    """Label smoothing itself, `targets.smoothed_cross_entropy`, α = strength in [0, 1]."""
    strength = check_number(strength, "strength", 0, 1)
    _, wide = _cross_entropy(logits, labels, validate)
    return smoothed_cross_entropy(wide, labels, strength, validate=False)


LOSSES = {
    "smoothing": smoothing,
    "confidence-penalty": confidence_penalty,
    "focal": focal,
    "margin": margin,
    "maximum-suppression": maximum_suppression,
}


def loss(name):
    """The loss of that name in `LOSSES`; ValueError for an unknown one, with the nearest."""
    return LOSSES[check_choice(name, "loss", tuple(LOSSES))]


def _cross_entropy(logits, labels, validate):
    """−ln p_y of each example, and the logits in at least float32."""
    check_logits(logits, labels)
    if validate:  # before the loss, which an unknown label ends with an error of its own, or the GPU's
        check_labels(labels, logits.shape[-1])
        check_finite(logits, "logits")
    each = smoothed_cross_entropy(logits, labels, 0.0, reduction="none", validate=False)
    return each, logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
