"""Smoothed targets in each convention, and the loss against them.

Three conventions are in use (see the chapter "Preliminaries"):

- "uniform": α/K on every class, so the true class has 1 − α + α/K (the paper; PyTorch);
- "others":  ε/(K−1) on every other class, so the true class has 1 − ε (Tensor2Tensor);
- ε/(K−2):   "others" with one class, the padding, left out (OpenNMT): pass `padding_index`.
"""

import torch
import torch.nn.functional as F

from .checks import (
    check_choice,
    check_class_index,
    check_convention,
    check_finite,
    check_int,
    check_label_type,
    check_labels,
    check_logits,
    check_num_classes,
    check_number,
    check_weight,
)


def _masses(amount, num_receivers, convention):
    """(mass on the true class, mass on each other class) when `num_receivers` classes may receive mass."""
    check_convention(convention)
    if convention == "uniform":
        alpha = check_number(amount, "alpha", 0, 1)
        return 1 - alpha + alpha / num_receivers, alpha / num_receivers
    # Beyond 1 − 1/K the true class would get less than the others: no longer a smoothed label.
    epsilon = check_number(amount, "alpha (the epsilon of convention 'others')", 0, 1 - 1 / num_receivers)
    return 1 - epsilon, epsilon / (num_receivers - 1)


def _receivers(num_classes, padding_index):
    """How many classes may receive mass: all of them, or all but the padding."""
    if padding_index is None:
        return check_num_classes(num_classes)
    check_class_index(padding_index, "padding_index", check_num_classes(num_classes, minimum=3))
    return num_classes - 1


def _tensor(labels):
    """Labels given as a tensor, array or list, as a tensor."""
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"labels must be an integer tensor, array or list, got {labels!r:.80}") from error


def smooth_labels(
    labels, num_classes, alpha, convention="uniform", *, padding_index=None, ignore_index=None, dtype=None
):
    """Smoothed targets y^LS = (1 − α) y + α/K, one row for each label.

    Parameters
    ----------
    labels : integer tensor, array or list of any shape, class indices 0 … K−1
    num_classes : K ≥ 2
    alpha : smoothing strength in [0, 1]; with convention="others" it is ε in [0, 1 − 1/K]
    convention : "uniform" (α/K on every class) or "others" (ε/(K−1) on every class but the true one)
    padding_index : a class that never receives mass; rows labelled with it are all zero
    ignore_index : a label (often −100) whose rows are all zero
    dtype : floating type of the result (default: torch's default type)

    Returns
    -------
    Tensor of shape ``(*labels.shape, num_classes)``; each row sums to 1 to the precision of `dtype`,
    or to 0 where it is ignored.

    Raises
    ------
    TypeError, ValueError : naming the argument, what was given and what was expected.

    Source: Szegedy et al. (2016), section 7; Müller et al. (2019), section 1.

    >>> smooth_labels([0], num_classes=4, alpha=0.4)
    tensor([[0.7000, 0.1000, 0.1000, 0.1000]])
    """
    on, off = _masses(alpha, _receivers(num_classes, padding_index), convention)
    dtype = dtype or torch.get_default_dtype()
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating torch.dtype, got {dtype!r}")
    named = {"padding_index": padding_index, "ignore_index": ignore_index}
    ignored = [check_int(index, name) for name, index in named.items() if index is not None]
    labels = check_labels(_tensor(labels), num_classes, ignored)
    kept = torch.ones_like(labels, dtype=torch.bool)
    for index in ignored:
        kept &= labels != index
    targets = torch.full((*labels.shape, num_classes), off, dtype=dtype, device=labels.device)
    targets.scatter_(-1, torch.where(kept, labels, 0).unsqueeze(-1), on)
    if padding_index is not None:
        targets[..., padding_index] = 0
    return targets * kept.unsqueeze(-1)


def _checked(logits, labels, ignored, validate):
    """Logits in at least float32 and labels as int64, after the checks."""
    check_logits(logits, labels)
    labels = check_label_type(labels)
    if validate:
        labels = check_labels(labels, logits.shape[-1], [ignored])
        check_finite(logits, "logits")
        if (labels == ignored).all():
            raise ValueError(f"labels must hold at least one label that counts, got only the ignored {ignored}")
    # Half precision cannot hold log-probabilities below −65,504 nor sum many of them: widen, as autocast does.
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return wide, labels


def _class_weight(weight, logits, labels, ignored, reduction, validate):
    """Class weights on the device and in the dtype of `logits`, after the checks."""
    check_weight(weight, logits.shape[-1], validate)
    weight = weight.to(logits)
    if validate:
        check_finite(weight, "weight, in the precision of logits,")
    if validate and reduction == "mean" and not weight[labels[labels != ignored]].any():
        raise ValueError(
            "weight must be positive for at least one label of the batch with reduction 'mean', which divides by "
            "their sum: got 0 for every label"
        )
    return weight


def smoothed_cross_entropy(
    logits, labels, alpha, convention="uniform", *, weight=None, ignore_index=-100, reduction="mean", validate=True
):
    """Cross-entropy H(y^LS, softmax(logits)) in nats, by PyTorch's native loss.

    H(y^LS, p) = (1 − α) H(y, p) + α H(u, p), with u uniform over the K classes.

    Parameters
    ----------
    logits : float tensor (..., K); float16 and bfloat16 are widened to float32
    labels : integer tensor (...), class indices, or `ignore_index`
    alpha, convention : as in `smooth_labels`
    weight : class weights (K,), ≥ 0, of any device and float dtype; PyTorch multiplies them into the smoothed target
    ignore_index : label of positions that do not count
    reduction : "mean" (over positions that count; weighted if `weight` is given), "sum" or "none"
    validate : check the values of labels, logits and weights; turn off in inner loops on a GPU, where looking costs
        a stall (types, shapes and devices are always checked)

    Returns
    -------
    Scalar tensor, or shape (...) with reduction="none".

    Raises
    ------
    TypeError, ValueError : naming the argument, what was given and what was expected.
    """
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    logits, labels = _checked(logits, labels, check_int(ignore_index, "ignore_index"), validate)
    num_classes = logits.shape[-1]
    if weight is not None:
        weight = _class_weight(weight, logits, labels, ignore_index, reduction, validate)
    _, off = _masses(alpha, num_classes, convention)
    native = min(1.0, num_classes * off)  # the α of either convention; rounding may put it at 1 + 1e-16
    loss = F.cross_entropy(
        logits.reshape(-1, num_classes),
        labels.reshape(-1),
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=native,
        reduction=reduction,
    )
    return loss.reshape(labels.shape) if reduction == "none" else loss


def sequence_cross_entropy(logits, labels, alpha, padding_index, convention="uniform", *, excluded=(), validate=True):
    """Smoothed cross-entropy per non-padding token, in nats, with no target mass on the padding class.

    (1/n) Σ_t [ (1 − α) (−log p_t[y_t]) + α/(V − 1) Σ_{k ≠ padding} (−log p_t[k]) ], n = number of non-padding tokens.

    Parameters
    ----------
    logits : float tensor (..., V), vocabulary last
    labels : integer tensor (...); positions equal to `padding_index` do not count
    alpha, convention : as in `smooth_labels`; "others" here is ε/(V − 2), the convention of OpenNMT
    padding_index : the padding's class index
    excluded : more classes that get no mass, each different and never a label; each makes V one less in the formula,
        though not in the softmax

    Returns
    -------
    Scalar tensor.

    Raises
    ------
    TypeError, ValueError : naming the argument, what was given and what was expected.
    """
    check_logits(logits, labels)
    num_receivers = _receivers(logits.shape[-1], check_int(padding_index, "padding_index"))
    num_receivers -= len(excluded := _excluded(excluded, padding_index, logits.shape[-1]))
    logits, labels = _checked(logits, labels, padding_index, validate)
    if validate and any((labels == index).any() for index in excluded):
        raise ValueError(f"labels must hold no class that gets no mass, got one of the excluded {excluded}")
    on, off = _masses(alpha, num_receivers, convention)
    log_probs = logits.log_softmax(dim=-1)
    log_prob_true = log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    # Set to 0 before summing, not subtracted after: masked padding logits of −1e9 would leave no digits.
    without_mass = torch.tensor([padding_index, *excluded], device=logits.device)
    log_prob_receivers = log_probs.index_fill(-1, without_mass, 0.0).sum(dim=-1)
    loss = -(on - off) * log_prob_true - off * log_prob_receivers
    return loss[labels != padding_index].mean()


def _excluded(excluded, padding_index, num_classes):
    """The excluded classes as a tuple of int; they and the padding must differ, and leave two classes or more."""
    excluded = tuple(check_class_index(index, "excluded", num_classes) for index in excluded)
    if len({padding_index, *excluded}) <= len(excluded):
        raise ValueError(f"excluded must be classes that differ from each other and the padding, got {excluded}")
    if num_classes - 1 - len(excluded) < 2:
        raise ValueError(f"excluded must leave at least two of {num_classes} classes, got {excluded} and the padding")
    return excluded
