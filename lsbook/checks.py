"""What a valid argument is, said once. Each error names the argument, what was given and what was expected.

Nothing here imports torch, so that `theory` stays light; tensors are asked through their own methods.
"""

import difflib
import math
import numbers
import re

import numpy as np


def as_numpy(values):
    """Return `values` as an array; a tensor of any device or precision, with a gradient or not, as float64 or integers.

    numpy has no bfloat16, and float64 holds every other precision exactly.
    """
    if not hasattr(values, "detach"):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def check_int(value, name, minimum=-math.inf):
    """Return `value` as an int if it is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def check_num_classes(num_classes, minimum=2):
    """Return `num_classes` as an int if it is a whole number of at least `minimum`."""
    return check_int(num_classes, "num_classes", minimum)


def check_seed(seed):
    """Return `seed` as an int if it is a whole number in [0, 2³¹)."""
    seed = check_int(seed, "seed", 0)
    if seed >= 2**31:  # seeds of epochs are made from it, and must fit 64 bits
        raise ValueError(f"seed must be less than {2**31}, got {seed}")
    return seed


def check_real(value, name):
    """Return `value` as a float if it is one real number, NaN and infinities included."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be one real number, got {value!r} ({type(value).__name__})")
    return float(value)


def check_number(value, name, low=-math.inf, high=math.inf):
    """Return `value` as a float if it is one real number in [low, high]."""
    number = check_real(value, name)
    if not low <= value <= high:  # false for NaN too
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")
    return number


def check_positive(value, name):
    """Return `value` as a float if it is one positive, finite number."""
    number = check_real(value, name)
    if not 0 < number < math.inf:  # false for NaN too
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return number


def check_choice(value, name, choices):
    """Return `value` if it is one of the strings `choices`; otherwise the error lists them, and the nearest one."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r} ({type(value).__name__})")
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}{hint}")
    return value


def check_file_stem(value, name):
    """Return `value` if it is a string that files and folders may be named by, in lower case."""
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", value):
        raise ValueError(f"{name} must be lower-case letters, digits, '.', '_' or '-', got {value!r}")
    return value


def real_array(values, name):
    """Return `values` as a float64 array of any shape if all entries are real numbers, NaN and infinities included."""
    try:
        array = as_numpy(values)
    except ValueError as error:  # lists of uneven length
        raise ValueError(f"{name} must be a real number or an array of them, got {values!r:.200}") from error
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be a real number or an array of them, got {values!r:.200}")
    return array.astype(np.float64, copy=False)


def check_array(values, name, low=-math.inf, high=math.inf):
    """Return `values` as a new float64 array if every entry is a real number in [low, high]."""
    array = real_array(values, name).copy()
    if array.size == 0:
        raise ValueError(f"{name} must hold at least one number, got an empty array")
    wrong = ~((array >= low) & (array <= high))  # true for NaN
    if wrong.any():
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {array[wrong].flat[0]}")
    return array


def check_convention(convention):
    """Return `convention` if the book knows it."""
    if not isinstance(convention, str):
        raise TypeError(f"convention must be a string, got {convention!r} ({type(convention).__name__})")
    if convention not in ("uniform", "others"):
        raise ValueError(
            f"convention must be 'uniform' (α/K on every class) or 'others' (ε/(K−1) off the truth), got {convention!r}"
        )
    return convention


def check_class_index(index, name, num_classes):
    """Return `index` as an int if it names one of `num_classes` classes."""
    if not 0 <= check_int(index, name) < num_classes:
        raise ValueError(f"{name} must lie in [0, {num_classes - 1}] for num_classes = {num_classes}, got {index}")
    return int(index)


def check_tensor(values, name):
    """Raise unless `values` is a torch tensor."""
    if not hasattr(values, "is_floating_point"):
        raise TypeError(f"{name} must be a torch tensor, got {values!r:.80} ({type(values).__name__})")


def check_label_type(labels):
    """Return `labels` as an int64 tensor if it is a tensor of one or more integers; looks at no value."""
    check_tensor(labels, "labels")
    if labels.numel() == 0:
        raise ValueError(f"labels must hold at least one label, got an empty batch of shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or str(labels.dtype) == "torch.bool":
        raise TypeError(f"labels must be integers (class indices), got dtype {labels.dtype}")
    return labels.long()  # before any comparison: a uint8 tensor cannot tell −100 from 156, nor 32,000 from 0


def check_labels(labels, num_classes, ignored=()):
    """Return `labels` as an int64 tensor if it holds class indices 0 … num_classes − 1, or values in `ignored`."""
    labels = check_label_type(labels)
    wrong = (labels < 0) | (labels >= num_classes)
    for value in ignored:
        wrong &= labels != value
    if wrong.any():
        given = int(labels[wrong].reshape(-1)[0])
        also = "".join(f", or {value} (ignored)" for value in ignored if not 0 <= value < num_classes)
        raise ValueError(
            f"labels must lie in [0, {num_classes - 1}] for num_classes = {num_classes}{also}, got {given}"
        )
    return labels


def check_logits(logits, labels):
    """Raise unless `logits` is a float tensor ``(*labels.shape, num_classes)`` on labels' device, num_classes ≥ 2."""
    check_tensor(logits, "logits")
    check_tensor(labels, "labels")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got dtype {logits.dtype}")
    if logits.ndim < 1 or tuple(logits.shape[:-1]) != tuple(labels.shape):
        raise ValueError(
            f"logits must have the shape of labels plus one last dimension of classes: "
            f"got logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        )
    check_num_classes(logits.shape[-1])
    if logits.device != labels.device:
        raise ValueError(f"logits and labels must be on one device, got {logits.device} and {labels.device}")


def check_weight(weight, num_classes, validate=True):
    """Raise unless `weight` is a float tensor (num_classes,); if `validate`, also finite, ≥ 0 and not all zero."""
    check_tensor(weight, "weight")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got dtype {weight.dtype}")
    if tuple(weight.shape) != (num_classes,):
        raise ValueError(f"weight must have shape ({num_classes},), one entry a class, got {tuple(weight.shape)}")
    if not validate:
        return
    check_finite(weight, "weight")
    if (weight < 0).any():
        raise ValueError(f"weight must have no negative entry, got a smallest entry of {weight.min().item():g}")
    if not weight.any():
        raise ValueError("weight must have a positive entry, got zeros only")


def check_finite(values, name):
    """Raise if a tensor holds NaN or an infinity."""
    if values.detach().sum().isfinite():  # a finite sum has finite terms, and costs far less than a look at each
        return
    bad = ~values.isfinite()
    if bad.any():
        raise ValueError(f"{name} must be finite, got {int(bad.sum())} of {values.numel()} entries NaN or infinite")
