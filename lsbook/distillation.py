"""Distillation: losses that teach a student what a teacher says, and measures of what there is to be learnt from it.

The losses take torch tensors: logits (..., K), student's and teacher's of one shape, and labels (...). They widen
float16 and bfloat16 to float32, send no gradient to the teacher, and with `validate=False` look at no value, which on
a GPU costs a stall; types, shapes and devices are always checked. The measures take numpy arrays or tensors and compute
in float64. All raise TypeError or ValueError, naming the argument, for other types and shapes, an empty batch, logits
that are not finite, labels out of range, and a temperature that is not positive and finite.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit

from .checks import (
    as_numpy,
    check_finite,
    check_int,
    check_label_type,
    check_labels,
    check_num_classes,
    check_number,
    check_positive,
    check_tensor,
    real_array,
)

# Keeps the standardised logits of an example whose logits are all equal, and their gradient, finite.
SMALLEST_VARIANCE = 1e-9


# --- losses: torch in, torch out


def _wide(logits, name, validate):
    """Logits (..., K) in at least float32, after the checks."""
    check_tensor(logits, name)
    if not logits.is_floating_point():
        raise TypeError(f"{name} must be floating point, got dtype {logits.dtype}")
    if logits.ndim < 1 or logits.numel() == 0:
        raise ValueError(f"{name} must have shape (..., K) and hold at least one example, got {tuple(logits.shape)}")
    check_num_classes(logits.shape[-1])
    if validate:
        check_finite(logits, name)
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _student_and_teacher(student_logits, teacher_logits, validate):
    """Both in at least float32, the teacher's without a gradient, after the checks."""
    student = _wide(student_logits, "student_logits", validate)
    teacher = _wide(teacher_logits, "teacher_logits", validate)
    if (classes := teacher.shape[-1]) != student.shape[-1]:
        raise ValueError(f"teacher_logits must have the {student.shape[-1]} classes of student_logits, got {classes}")
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher_logits must have the shape of student_logits, {tuple(student.shape)}, got {tuple(teacher.shape)}"
        )
    _check_device("teacher_logits", teacher, student)
    return student, teacher.detach()


def _check_device(name, tensor, student):
    """Raise unless a tensor is where the student's logits are."""
    if tensor.device != student.device:
        raise ValueError(f"{name} must be on the device of student_logits, {student.device}, got {tensor.device}")


def _labels_of(student, labels, validate):
    """Labels as int64, one for each of the student's examples, after the checks."""
    check_tensor(labels, "labels")
    if labels.shape != student.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of student_logits {tuple(student.shape)} less the last dimension, "
            f"got {tuple(labels.shape)}"
        )
    _check_device("labels", labels, student)
    return check_labels(labels, student.shape[-1]) if validate else check_label_type(labels)


def _softened(wide, temperature, name, validate):
    """Logits less the largest of their row, over T; with `validate`, an error where that is beyond the dtype."""
    # Less the largest before T, not after: else a small T would blow up the rounding of large logits.
    softened = (wide - wide.detach().amax(dim=-1, keepdim=True)) / temperature
    if validate:
        check_finite(softened, f"{name} / temperature {temperature:g}")
    return softened


def soft_targets(teacher_logits, temperature, *, validate=True):
    """What a teacher teaches at temperature T: p^t(T) = softmax(z / T), in at least float32.

    Parameters
    ----------
    teacher_logits : float tensor (..., K), before any softmax
    temperature : T > 0; above 1 the targets are softer than the teacher's own probabilities
    validate : check the values of the logits

    Returns
    -------
    Tensor (..., K); each row sums to 1. A gradient flows; `distillation_loss` cuts it off.

    Raises
    ------
    TypeError, ValueError : see the module.

    Source: Hinton et al. (2015), section 2.

    >>> soft_targets(torch.tensor([4.0, 0.0, 0.0]), 2.0)
    tensor([0.7870, 0.1065, 0.1065])
    """
    temperature = check_positive(temperature, "temperature")
    wide = _wide(teacher_logits, "teacher_logits", validate)
    return _softened(wide, temperature, "teacher_logits", validate).softmax(dim=-1)


def distillation_loss(
    student_logits, teacher_logits, labels, beta, temperature, student_temperature=None, *, validate=True
):
    """Cross-entropy with labels and with a teacher's soft targets, in nats: the mean over examples of

    (1 − β) H(y, p) + β T_s² H(p^t(T), p(T_s)), where p^t(T) = softmax(teacher / T), p(T_s) = softmax(student / T_s).

    Its gradient by the student's logits is, for β = 1 and N examples, T_s (p(T_s) − p^t(T)) / N. With T_s = T the
    difference shrinks like 1/T, so that T_s² keeps the gradient's size and β its meaning. Cross-entropy and KL differ
    by the teacher's entropy, whose gradient is 0.

    Parameters
    ----------
    student_logits, teacher_logits : float tensors (..., K), before any softmax
    labels : integer tensor (...), class indices
    beta : weight of the teacher, in [0, 1]; at 0 the teacher's values do not matter, at 1 the labels' do not
    temperature : T > 0 of the teacher, and of the student unless it is given its own
    student_temperature : T_s > 0; Müller et al. (2019) soften the teacher only: student_temperature=1
    validate : check the values of logits and labels

    Returns
    -------
    Scalar tensor of the student's dtype, or float32 for less.

    Raises
    ------
    TypeError, ValueError : see the module.

    Source: Hinton et al. (2015), section 2; Müller et al. (2019), section 4.
    """
    beta, temperature = check_number(beta, "beta", 0, 1), check_positive(temperature, "temperature")
    own = temperature if student_temperature is None else check_positive(student_temperature, "student_temperature")
    student, teacher = _student_and_teacher(student_logits, teacher_logits, validate)
    if own > torch.finfo(student.dtype).max ** 0.5:
        raise ValueError(f"the student's temperature is squared, which must be finite in {student.dtype}, got {own:g}")
    labels = _labels_of(student, labels, validate)
    # A weight of 0 leaves its term out, not in as 0 · ∞: what is not asked for cannot spoil value or gradient.
    hard, soft, classes = 0.0, 0.0, student.shape[-1]
    if beta < 1:
        hard = (1 - beta) * F.cross_entropy(student.reshape(-1, classes), labels.reshape(-1))
    if beta > 0:
        targets = soft_targets(teacher, temperature, validate=validate).to(student.dtype)
        softened = _softened(student, own, "student_logits", validate)
        soft = beta * own**2 * F.cross_entropy(softened.reshape(-1, classes), targets.reshape(-1, classes))
    return hard + soft


def logit_matching_loss(student_logits, teacher_logits, *, centred=False, validate=True):
    """Half the squared distance of the student's logits z to the teacher's v: mean over examples of ½ Σ_k (z_k − v_k)².

    With `centred`, each row less its mean first: as T → ∞, K T² KL(p^t(T)‖p(T)) → this, with an error like 1/T.
    Without, it also asks the student for the teacher's mean logit, which no probability depends on; it is the centred
    loss and ½ K (z̄ − v̄)². So the gradient of `distillation_loss` at high T is 1/K of the centred loss's.

    Parameters
    ----------
    student_logits, teacher_logits : float tensors (..., K)
    centred : whether to leave each row's mean out
    validate : check the values of the logits

    Returns
    -------
    Scalar tensor.

    Raises
    ------
    TypeError, ValueError : see the module.

    Source: Ba and Caruana (2014); Hinton et al. (2015), section 2.1.

    >>> logit_matching_loss(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]))
    tensor(2.)
    >>> logit_matching_loss(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]), centred=True)
    tensor(1.)
    """
    student, teacher = _student_and_teacher(student_logits, teacher_logits, validate)
    difference = student - teacher.to(student.dtype)
    if centred:
        difference = difference - difference.mean(dim=-1, keepdim=True)
    return difference.square().sum(dim=-1).mean() / 2


# --- measures of a teacher: numpy arrays or tensors in, floats out


def _integers(values, name):
    """An array of one integer or more, after the checks."""
    try:
        array = as_numpy(values)
    except ValueError as error:  # lists of uneven length
        raise ValueError(f"{name} must be an array of class indices, got {values!r:.80}") from error
    if array.size == 0:
        raise ValueError(f"{name} must hold at least one class index, got an empty array of shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers (class indices), got dtype {array.dtype}")
    return array


def _examples(logits, labels, name):
    """Logits as float64 (N, K) and labels as integers (N,), after the checks, from shapes (..., K) and (...)."""
    logits, labels = real_array(logits, name), _integers(labels, "labels")
    if logits.ndim < 1 or logits.size == 0 or logits.shape[-1] < 2:
        raise ValueError(f"{name} must have shape (..., K) with K ≥ 2 and hold an example, got {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels must have the shape of {name} {logits.shape} less the last, got {labels.shape}")
    if labels.min() < 0 or labels.max() >= logits.shape[-1]:
        raise ValueError(f"labels must lie in [0, {logits.shape[-1] - 1}], got {labels.min()} to {labels.max()}")
    return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).astype(np.int64)


def _missing_and_shares(logits, labels, temperature):
    """1 − p_y of each example (N,), and how that is shared out among the wrong classes (N, K), 0 at the truth.

    Through the leads of the wrong classes, so that neither 1 − p_y of a sure teacher nor a share cancels.
    """
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    wrong = logits.copy()
    np.put_along_axis(wrong, labels[:, None], -np.inf, axis=1)
    top = wrong.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # an infinite lead is meant where T → 0
        weights = np.exp((wrong - top) / temperature)
        lead = ((top - true) / temperature)[:, 0]
    total = weights.sum(axis=1)
    return expit(lead + np.log(total)), weights / total[:, None]


def equivalent_smoothing(teacher_logits, labels, temperature=1.0):
    """γ = mean of K/(K − 1) · (1 − p^t_y(T)): the smoothing α whose targets give as much to the wrong classes.

    It is α itself for targets smoothed with α, and `theory.collapsed_teacher_alpha` for a collapsed teacher; above 1
    where p_y is on average below 1/K.

    teacher_logits (..., K), labels (...), T > 0; a float in [0, K/(K − 1)], computed without cancellation. Raises
    TypeError, ValueError: see the module. Source: Müller et al. (2019), section 4.

    >>> round(equivalent_smoothing([[4.511, 0, 0, 0, 0, 0, 0, 0, 0, 0]], [0], temperature=2), 3)
    0.539
    """
    return _gamma(*_softened_examples(teacher_logits, labels, temperature))


def _softened_examples(teacher_logits, labels, temperature):
    """`_missing_and_shares` after the checks."""
    temperature = check_positive(temperature, "temperature")
    return _missing_and_shares(*_examples(teacher_logits, labels, "teacher_logits"), temperature)


def _gamma(missing, shares):
    """K/(K − 1) times the mean mass off the truth."""
    classes = shares.shape[1]
    return float(missing.mean() * (classes / (classes - 1)))


class TeacherParts(NamedTuple):
    """Soft targets as uniform smoothing and what there is beside it. A collapsed teacher has `gamma` alone.

    gamma: how much smoothing, see `equivalent_smoothing`. confidence_spread: standard deviation over examples of p_y,
    which says how hard each is. between, within (probability squared): how unevenly the mass off the truth is spread
    over the wrong classes, as part that is the same for all examples of a class, and part that is their own.
    """

    gamma: float
    confidence_spread: float
    between: float
    within: float


def teacher_parts(teacher_logits, labels, temperature=1.0, *, unbiased=False):
    """What is left of a teacher's soft targets beside uniform smoothing: `TeacherParts`.

    Example i of class y departs from even by d_ij = p_ij − (1 − p_iy)/(K − 1) for j ≠ y, d_iy = 0. With D_y the mean of
    d over the class, between = mean ‖D_y‖², within = mean ‖d_i − D_y‖², and between + within = mean ‖d_i‖². For K = 2
    both are 0: there is one wrong class.

    A mean D_y of n_y examples has noise, whose square `between` counts in. `unbiased` moves its expectation,
    Σ_y S_y/(n (n_y − 1)) with S_y = Σ_{i in y} ‖d_i − D_y‖², to `within`, where it is missing: each then has the right
    mean over samples, the sum stays as it is, and `between` may fall below 0 by chance.

    teacher_logits (..., K), labels (...), T > 0. Raises TypeError, ValueError: see the module; with `unbiased` also
    ValueError where a class occurs only once.
    """
    missing, shares = _softened_examples(teacher_logits, labels, temperature)
    labels = as_numpy(labels).reshape(-1)
    departures = missing[:, None] * (shares - 1 / (shares.shape[1] - 1))
    departures[np.arange(len(labels)), labels] = 0
    squares, scatters, counts = _sums_of_squares(departures, labels)
    between, within = squares.sum() / len(labels), scatters.sum() / len(labels)
    if unbiased:
        if counts.min() < 2:
            raise ValueError("labels must hold each class that occurs at least twice for unbiased=True, got one once")
        noise = (scatters / (counts - 1)).sum() / len(labels)
        between, within = between - noise, within + noise
    return TeacherParts(_gamma(missing, shares), float(missing.std()), float(between), float(within))


def _sums_of_squares(rows, labels):
    """n_y ‖mean‖², Σ ‖row − mean‖² and n_y of each class that occurs."""
    classes, counts = np.unique(labels, return_counts=True)
    groups = [rows[labels == y] for y in classes]
    means = [group.mean(axis=0) for group in groups]
    squares = np.array([len(group) * (mean**2).sum() for group, mean in zip(groups, means, strict=True)])
    scatters = np.array([((group - mean) ** 2).sum() for group, mean in zip(groups, means, strict=True)])
    return squares, scatters, counts


def distance_to_collapse(logits, labels):
    """Spread of the gaps z_y − z_j over all examples and wrong classes j: their standard deviation over their mean.

    0 for a collapsed network, whatever its smoothing: its gaps are all equal. It does not change when all logits are
    scaled, as by a temperature. logits (..., K), labels (...); a float ≥ 0. Raises TypeError, ValueError: see the
    module; ValueError where the mean gap is not positive, which gives no scale.

    >>> distance_to_collapse([[3, 0, 0], [0, 0, 5]], [0, 2])
    0.25
    """
    logits, labels = _examples(logits, labels, "logits")
    wrong = np.arange(logits.shape[1]) != labels[:, None]
    gaps = (np.take_along_axis(logits, labels[:, None], axis=1) - logits)[wrong]
    moved = gaps - gaps[0]  # of equal gaps, exactly 0, which a mean of them need not meet
    if not (mean := gaps[0] + moved.mean()) > 0:
        raise ValueError(f"logits must have a positive mean gap to the wrong classes, got {mean:g}")
    return float(moved.std() / mean)


# --- does the student do as the teacher does?


def _like(values, name, predictions):
    """Class indices of the shape of `predictions`, after the checks."""
    array = _integers(values, name)
    if array.shape != predictions.shape:
        raise ValueError(f"{name} must have the shape of predictions, {predictions.shape}, got {array.shape}")
    return array


def agreement(predictions, teacher_predictions):
    """Share of examples for which student and teacher predict the same class, right or wrong: a float in [0, 1].

    Integer arrays of one shape. Raises TypeError, ValueError: see the module.

    >>> agreement([0, 1, 2, 3], [0, 1, 3, 2])
    0.5
    """
    predictions = _integers(predictions, "predictions")
    return float((predictions == _like(teacher_predictions, "teacher_predictions", predictions)).mean())


def agreement_beyond_accuracy(predictions, teacher_predictions, labels):
    """Share of the teacher's mistakes that the student makes too, the same wrong class: a float in [0, 1].

    Two networks that are mostly right agree mostly; their common mistakes tell more. Some are common to networks that
    never met, as where a label is wrong: compare with a student that was not distilled. Integer arrays of one shape.
    Raises TypeError, ValueError: see the module; ValueError where the teacher makes no mistake.

    >>> agreement_beyond_accuracy([0, 1, 2, 3], [0, 2, 3, 3], labels=[0, 1, 2, 2])
    0.3333333333333333
    """
    predictions = _integers(predictions, "predictions")
    teacher = _like(teacher_predictions, "teacher_predictions", predictions)
    mistaken = teacher != _like(labels, "labels", predictions)
    if not mistaken.any():
        raise ValueError(f"teacher_predictions must hold a mistake to share, got {teacher.size} right predictions")
    return float((predictions == teacher)[mistaken].mean())


# --- subclasses: more for a teacher of few classes to say


def class_logits(subclass_logits, subclasses):
    """Logits (..., K) of K classes from those (..., K·S) of S subclasses each: z_k = logsumexp over the S logits of k.

    Class k has the logits k·S … k·S + S − 1; the probability of a class is the sum of its subclasses'. Train the
    teacher by cross-entropy of these, and the student by `distillation_loss` of the subclass logits. float16 and
    bfloat16 are widened to float32. Raises TypeError or ValueError unless K·S is a multiple of S = subclasses ≥ 1
    and K ≥ 2.

    Source: Müller, Kornblith and Hinton (2020), "Subclass Distillation".

    >>> class_logits(torch.zeros(4), subclasses=2)
    tensor([0.6931, 0.6931])
    """
    wide, size = _wide(subclass_logits, "subclass_logits", validate=False), check_int(subclasses, "subclasses", 1)
    if wide.shape[-1] % size or wide.shape[-1] < 2 * size:
        raise ValueError(
            f"subclass_logits must have {size} logits for each of two classes or more, got {wide.shape[-1]} in all"
        )
    return wide.unflatten(-1, (-1, size)).logsumexp(dim=-1)


def subclass_separation(subclass_logits, temperature=1.0, *, validate=True):
    """Auxiliary loss that makes a teacher use its subclasses: it pushes the examples of a batch apart, in nats.

    mean_i [ln Σ_j exp(v_i · v_j / τ)] − 1/τ − ln n, with v_i the logits of example i, all its K·S, less their mean and
    at length 1. It is contrastive: but for the constant ln n, −ln of the share that i itself has in the sum. 0 if all
    examples point the same way, its largest value; ln(1 + (n − 1) e^{−1/τ}) − ln n if all are orthogonal. Only the
    direction of an example's logits counts, not what is added to all of them, and not their size, as long as their
    variance is well above 1e-9.

    subclass_logits (n, K·S), temperature τ > 0; a scalar tensor, to be added to the loss of `class_logits`.
    Raises TypeError, ValueError: see the module. Source: Müller, Kornblith and Hinton (2020) in the form of the
    authors' demonstration, which standardises over each example's logits, not over the batch.
    """
    temperature = check_positive(temperature, "temperature")
    wide = _wide(subclass_logits, "subclass_logits", validate)
    if wide.ndim != 2:
        raise ValueError(f"subclass_logits must have shape (n, K·S), got {tuple(wide.shape)}")
    centred = wide - wide.mean(dim=1, keepdim=True)
    mean_square = centred.square().mean(dim=1, keepdim=True) + SMALLEST_VARIANCE
    units = centred / (mean_square * wide.shape[1]).sqrt()
    # Less 1/τ inside, where each example meets itself with 1/τ: at small τ nothing large is left to cancel.
    return ((units @ units.T - 1) / temperature).logsumexp(dim=1).mean() - np.log(len(wide))
