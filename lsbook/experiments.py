"""The specs of the experiments, and the one way from a spec to a run."""

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from . import (
    alternatives,
    calibration,
    datasets,
    distillation,
    images,
    models,
    runs,
    targets,
    teachers,
    training,
    translation,
)
from .checks import as_numpy, check_choice, check_file_stem, check_int, check_number, check_positive, check_seed

NOISE = "noise"
DATASETS = ("digits", "digit_images", "mnist", "cifar10", "cifar100")
DTYPES = ("auto", *training.PRECISIONS)
HELD_OUT = ("test", "validation")
# What a run on images keeps: logits of all held-out images and features of some; what is known of a teacher: logits of
# some held-out images and of training images in one augmented view; or only which class was predicted. With "views" and
# "weights" the weights stay beside the runs, for students; with "weights" the run itself keeps predictions.
KEPT = ("logits", "views", "weights", "predictions")
IMITATIONS = ("probabilities", "logits")

# The paper sets 10,000 of the training images aside and reports on them.
VALIDATION_EXAMPLES = 10_000
# Before the last epoch, metrics are noted on this many examples of each split: enough for a curve, and cheap.
RECORD_EXAMPLES = 2_000
# Of the training logits, a run on images keeps those of this many examples.
KEPT_TRAIN_EXAMPLES = 1_000
# Features are kept of 100 examples of each of these classes and split; of fewer where they are so wide that they would
# come to more than 64,000 numbers.
SHOWN_EXAMPLES, SHOWN_NUMBERS = 100, 64_000
# Of a network that knows only some classes, features are kept of so many examples of each other class and split.
PROBE_EXAMPLES = 30
# Logits are kept of so many images of another data set, and of so many held-out images of a teacher.
OUTSIDE_EXAMPLES = 5_000
VIEWED_TEST_EXAMPLES = 2_000
# The paper's Figure 6 has N = 600 examples, 300 of each class, and L = 5 draws of each.
DRAW_EXAMPLES, DRAWS = 300, 5
SHOWN_CLASSES = {
    "digit_images": (3, 5, 8),
    "mnist": (3, 5, 8),
    "cifar10": (0, 1, 2),  # the paper's: airplane, automobile, bird
    # the paper's beaver, dolphin, otter; then look-alikes (maple and oak, man and woman, bowl and plate) and a plain
    "cifar100": (4, 30, 55, 47, 52, 46, 98, 10, 61, 60),
}


@dataclass(frozen=True, kw_only=True)
class Spec(runs.StoredSpec):
    """All that decides the outcome of one training run.

    Numbers may be numpy scalars; they are kept as plain int and float, so that equal specs have equal hashes.
    Raises TypeError or ValueError naming the field; for an unknown name with the nearest known one.
    """

    experiment: str  # which experiment of the book it belongs to
    preset: str  # one of runs.PRESETS; live trains in the cell
    dataset: str  # name in DATASETS
    train_examples: int  # how many examples to train on, drawn by the seed
    alpha: float  # label smoothing, uniform convention; 0 is hard targets
    epochs: int  # an epoch is as many full batches as the examples make
    batch_size: int
    learning_rate: float
    seed: int  # of the examples drawn, the initial weights, the order of examples, augmentation and dropout
    loss: str = "smoothing"  # one of alternatives.LOSSES; smoothing has alpha for its strength, the others have
    strength: float = 0.0  # this one
    outside: str = ""  # data whose first test images the network is shown in the end, their logits kept; or "noise"
    classes: tuple[int, ...] = ()  # the network knows these alone, renumbered 0, 1, …; () is all
    network: str = "fully_connected"  # one of models.NETWORKS
    hidden: tuple[int, ...] = ()  # widths of the hidden layers of a fully connected net
    dropout: float = 0.0  # after each hidden layer of a fully connected net
    init_std: float = 0.0  # of normal initial weights in the linear layers; 0 is PyTorch's own initialisation
    held_out: str = "test"  # the official test split, or "validation": 10,000 of the training split, as in the paper
    shift: int = 0  # augmentation: up to so many pixels in each direction (the same as padding and cropping)
    flip: bool = False  # augmentation: mirrored left to right with probability ½
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0  # L2, as torch.optim.SGD has it, on
    decay_only: tuple[str, ...] = ()  # these parameters; () is all weights and biases
    head_factor: float = 1.0  # of the learning rate in the last layer
    clip_norm: float = 0.0  # the gradient's largest norm; 0 does not clip
    loss_multiplier: float = 1.0  # the paper multiplies the cross-entropy by 3
    schedule: str = "constant"  # of the learning rate: one of training.SCHEDULES
    milestones: tuple[float, ...] = ()  # shares of all steps, see training.rate
    dtype: str = "float64"  # one of DTYPES; auto is the fastest that the device has, in float32 weights
    record_epochs: tuple[int, ...] = ()  # when to note metrics on both splits
    label_noise: float = 0.0  # each training label is drawn anew with this probability, evenly from all classes
    groups: tuple[int, ...] = ()  # class k is taught as class groups[k]; () teaches every class as itself
    draw_classes: tuple[int, ...] = ()  # two classes: draws of the difference of their logits are kept, see `DRAWS`
    keep: str = "logits"  # what of the held-out images: one of KEPT
    restart: int = 0  # another draw of the initial weights; the rest that the seed decides stays as it is
    teacher: "Spec | None" = None  # whose soft targets this network learns, on the same examples
    beta: float = 1.0  # these three as in `distillation.distillation_loss`: the teacher's share of the loss,
    temperature: float = 1.0  # the teacher's temperature,
    student_temperature: float = 0.0  # the student's; 0 is the teacher's
    imitation: str = "probabilities"  # one of IMITATIONS; for logits, half their squared difference is the loss

    def __post_init__(self):
        for name, value in (_checked_names(self) | _checked_numbers(self)).items():
            object.__setattr__(self, name, value)  # the way past `frozen`
        training.check_milestones(self.schedule, self.milestones)
        _check_kept(self)
        if self.strength and self.loss == "smoothing" or self.alpha and self.loss != "smoothing":
            raise ValueError(
                f"alpha is the strength of smoothing and strength that of other losses, got loss {self.loss!r} with "
                f"alpha {self.alpha:g} and strength {self.strength:g}"
            )
        _check_teacher(self)

    @classmethod
    def from_dict(cls, values):
        """The spec that `as_dict` gave, with its teacher's; ValueError for a key that is no field, or is missing."""
        teacher = values.get("teacher")
        return super().from_dict(values | ({"teacher": cls.from_dict(teacher)} if isinstance(teacher, dict) else {}))


def _checked_names(spec):
    """The fields of a spec that are names and flags, checked."""
    if not isinstance(spec.flip, bool) or not isinstance(spec.nesterov, bool):
        raise TypeError(f"flip and nesterov must be True or False, got {spec.flip!r} and {spec.nesterov!r}")
    return {
        "experiment": check_file_stem(spec.experiment, "experiment"),
        "preset": check_choice(spec.preset, "preset", runs.PRESETS),
        "dataset": check_choice(spec.dataset, "dataset", DATASETS),
        "dtype": check_choice(spec.dtype, "dtype", DTYPES),
        "network": check_choice(spec.network, "network", models.NETWORKS),
        "loss": check_choice(spec.loss, "loss", tuple(alternatives.LOSSES)),
        "outside": check_choice(spec.outside, "outside", ("", NOISE, *DATASETS)),
        "held_out": check_choice(spec.held_out, "held_out", HELD_OUT),
        "schedule": check_choice(spec.schedule, "schedule", training.SCHEDULES),
        "keep": check_choice(spec.keep, "keep", KEPT),
        "imitation": check_choice(spec.imitation, "imitation", IMITATIONS),
        "decay_only": tuple(str(name) for name in _several(spec.decay_only, "decay_only")),
    }


def _several(values, name):
    """`values` if they are several; one number or a string, which a comma would mend, is none of that."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a tuple, such as ({values!r},), got {values!r}")
    return values


def _checked_numbers(spec):
    """The fields of a spec that are numbers, checked and in plain types."""
    # Adding 0.0 turns −0 into 0: in JSON they differ.
    largest = np.finfo(np.float64).max
    wholes = {"train_examples": 1, "epochs": 0, "batch_size": 1, "shift": 0, "restart": 0}
    shares = ("alpha", "momentum", "dropout", "label_noise", "beta")
    not_negative = ("weight_decay", "clip_norm", "init_std", "strength", "student_temperature")
    positive = ("learning_rate", "loss_multiplier", "head_factor", "temperature")
    return {
        **{name: check_int(getattr(spec, name), name, low) for name, low in wholes.items()},
        **{name: check_number(getattr(spec, name), name, 0, 1) + 0.0 for name in shares},
        **{name: check_number(getattr(spec, name), name, 0, largest) + 0.0 for name in not_negative},
        **{name: check_positive(getattr(spec, name), name) for name in positive},
        "seed": check_seed(spec.seed),
        "hidden": tuple(check_int(width, "hidden", 1) for width in _several(spec.hidden, "hidden")),
        "classes": _checked_classes(spec.classes),
        "groups": tuple(check_int(group, "groups", 0) for group in spec.groups),
        "draw_classes": _checked_classes(spec.draw_classes, "draw_classes", 2),
        "milestones": tuple(check_number(share, "milestones", 0, 1) for share in spec.milestones),
        "record_epochs": tuple(check_int(epoch, "record_epochs", 0) for epoch in spec.record_epochs),
    }


def _checked_classes(classes, name="classes", count=None):
    """The classes as plain int; ValueError unless they are none, or two or more (or `count`) and distinct."""
    if np.ndim(classes) != 1:
        raise TypeError(f"{name} must be a tuple of class indices, got {classes!r} ({type(classes).__name__})")
    classes = tuple(check_int(label, name, 0) for label in classes)
    if len(classes) == 1 or len(set(classes)) < len(classes) or (classes and len(classes) != (count or len(classes))):
        raise ValueError(f"{name} must be () or {count or 'at least two'} different ones, got {classes}")
    return classes


def _check_kept(spec):
    """Raise for a spec that asks to keep what there will not be."""
    if spec.draw_classes and not (spec.shift or spec.flip):
        raise ValueError("draw_classes need augmentation to draw from: set shift or flip")
    if spec.draw_classes and not any(epoch <= spec.epochs for epoch in spec.record_epochs):
        raise ValueError(f"draw_classes are drawn at recorded epochs: set record_epochs, got {spec.record_epochs}")
    if spec.outside and spec.keep != "logits":
        raise ValueError(f"outside needs keep 'logits', or what the network says there is lost; got keep {spec.keep!r}")


# What a student must share with its teacher, so that the two learn from the same examples with the same labels, in
# the same arithmetic.
_SHARED = ("dataset", "train_examples", "seed", "classes", "groups", "held_out", "label_noise", "dtype")
_STUDENT_FIELDS = ("beta", "temperature", "student_temperature", "imitation")


def _check_teacher(spec):
    """Raise unless a student's spec fits its teacher's, and unless one without a teacher leaves its fields alone."""
    if spec.teacher is None:
        defaults = {f.name: f.default for f in fields(Spec) if f.name in _STUDENT_FIELDS}
        given = {name: getattr(spec, name) for name in defaults if getattr(spec, name) != defaults[name]}
        if given:
            raise ValueError(f"{', '.join(given)} must be left alone without a teacher, got {given}")
        return
    if not isinstance(spec.teacher, Spec):
        raise TypeError(f"teacher must be a Spec, got {spec.teacher!r:.80} ({type(spec.teacher).__name__})")
    for name in _SHARED:
        mine, its = getattr(spec, name), getattr(spec.teacher, name)
        if mine != its:
            raise ValueError(f"{name} must be that of the teacher, which sees the same data: got {mine!r}, not {its!r}")
    if spec.alpha or spec.loss != "smoothing":
        raise ValueError(f"a student's own labels must be hard, got alpha {spec.alpha:g} and loss {spec.loss!r}")
    if spec.imitation == "logits" and (spec.temperature, spec.student_temperature) != (1.0, 0.0):
        raise ValueError(
            "temperature and student_temperature must be left alone where logits are imitated, got "
            f"{spec.temperature:g} and {spec.student_temperature:g}"
        )


# Few training examples, so that there is something to overfit. Every epoch is three steps.
DIGITS_FEW = Spec(
    experiment="digits-few",
    preset="live",
    dataset="digits",
    train_examples=150,
    hidden=(64, 64),
    alpha=0.0,
    epochs=100,
    batch_size=50,
    learning_rate=0.1,
    record_epochs=(0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100),
    seed=0,
)


def variants(spec, **choices):
    """Copies of `spec` for every combination of the choices, the last one varying fastest.

    >>> [s.seed for s in variants(DIGITS_FEW, seed=range(3))]
    [0, 1, 2]
    """
    specs = [spec]
    for name, values in choices.items():
        specs = [replace(s, **{name: value}) for s in specs for value in values]
    return specs


def smoothing_loss(alpha, multiplier=1.0):
    """The loss of an experiment on labels: native cross-entropy with smoothing α, times `multiplier`."""
    return _loss(targets.smoothed_cross_entropy, alpha, multiplier)


def loss_of(spec, teacher=None):
    """The loss that `spec` trains on, a function (logits, batch) → scalar.

    teacher : function from a `training.Batch` to the teacher's logits; needed if the spec names a teacher
    """
    if spec.teacher is not None:
        if teacher is None:
            raise ValueError("teacher must be a function from a batch to logits, since the spec names a teacher")
        return _student_loss(spec, teacher)
    if spec.loss == "smoothing":
        return smoothing_loss(spec.alpha, spec.loss_multiplier)
    return _loss(alternatives.LOSSES[spec.loss], spec.strength, spec.loss_multiplier)


def _student_loss(spec, teacher):
    """(1 − β) H(y, p) plus β times what separates the student from its teacher, times the multiplier."""

    def by_probabilities(logits, batch):
        temperatures = spec.temperature, spec.student_temperature or None
        return distillation.distillation_loss(
            logits, teacher(batch), batch.labels, spec.beta, *temperatures, validate=False
        )

    def by_logits(logits, batch):
        hard = targets.smoothed_cross_entropy(logits, batch.labels, 0.0, validate=False)
        soft = distillation.logit_matching_loss(logits, teacher(batch), validate=False)
        return (1 - spec.beta) * hard + spec.beta * soft

    loss = by_logits if spec.imitation == "logits" else by_probabilities
    return lambda logits, batch: spec.loss_multiplier * loss(logits, batch)


def _loss(function, strength, multiplier):
    # The data set's labels were checked when it was loaded, so the loop need not look at them again.
    def loss(logits, batch):
        value = function(logits, batch.labels, strength, validate=False)
        return value if multiplier == 1 else multiplier * value

    return loss


def split_metrics(logits, labels):
    """Accuracy, NLL and mean confidence of one split, as floats."""
    logits, labels = as_numpy(logits), as_numpy(labels)
    return {
        "accuracy": calibration.accuracy(logits, labels),
        "nll": calibration.negative_log_likelihood(logits, labels),
        "confidence": float(calibration.confidence(logits).mean()),
    }


def data_of(spec, device="cpu"):
    """The examples that `spec` trains on and is judged by: a `datasets.Dataset` on the device.

    Images lie there as uint8 (N, C, H, W). If the spec names classes, there are no others, and labels are renumbered
    in the spec's order; of the digits, train_examples are drawn from all classes before the others go.
    Raises ValueError if the set has fewer examples than the spec asks for, or lacks a class.
    """
    if spec.dataset == "digits":
        if spec.held_out != "test":
            raise ValueError(f"held_out must be 'test' on digits, which have no other split, got {spec.held_out!r}")
        return _as_taught(spec, _known_classes(spec, _digits(spec, device)))
    data = datasets.load(spec.dataset, device, training.show_progress())
    pool, held_out = data.train, data.test
    if spec.held_out == "validation":
        # Examples stand in the order of their digests, so the last ones are a random draw that is the same for all.
        if len(data.train.labels) <= VALIDATION_EXAMPLES:
            raise ValueError(
                f"held_out 'validation' needs more than {VALIDATION_EXAMPLES:,} training examples, "
                f"{spec.dataset} has {len(data.train.labels):,}"
            )
        held_out = datasets.Split(*(tensor[-VALIDATION_EXAMPLES:] for tensor in data.train))
        pool = datasets.Split(*(tensor[:-VALIDATION_EXAMPLES] for tensor in data.train))
    data = _known_classes(spec, data._replace(train=pool, test=held_out))
    return _as_taught(spec, data._replace(train=_draw(spec, data.train)))


def _as_taught(spec, data):
    """`data` with the labels that the network is taught: groups for classes, and noise in the training split."""
    if spec.groups:
        data = _grouped(spec, data)
    if spec.label_noise:
        data = data._replace(train=data.train._replace(labels=noisy_labels(spec, data)))
    if spec.draw_classes:
        teachers.draw_examples(data.train.labels, spec.draw_classes, 1)  # so that an error comes before training
    return data


def _grouped(spec, data):
    """`data` with group `spec.groups[k]` for class k."""
    count = len(set(spec.groups))
    if len(spec.groups) != data.num_classes or set(spec.groups) != set(range(count)) or count < 2:
        raise ValueError(
            f"groups must name a group 0, 1, … for each of the {data.num_classes} classes, at least two of them and "
            f"none empty; got {spec.groups}"
        )
    group = torch.tensor(spec.groups, device=data.train.labels.device)
    train, test = (split._replace(labels=group[split.labels]) for split in (data.train, data.test))
    return datasets.Dataset(data.name, count, train, test, tuple(f"group {i}" for i in range(count)))


def noisy_labels(spec, data):
    """The training labels, each drawn anew with probability `spec.label_noise`, evenly from all K classes.

    At noise ρ a share ρ (K − 1)/K of them is wrong, and the expected target is that of smoothing with α = ρ.
    """
    labels = data.train.labels
    generator = torch.Generator().manual_seed(spec.seed)
    drawn = torch.randint(data.num_classes, labels.shape, generator=generator)
    changed = torch.rand(len(labels), dtype=torch.float64, generator=generator) < spec.label_noise
    return torch.where(changed.to(labels.device), drawn.to(labels.device), labels)


def _draw(spec, pool):
    """The training examples of `spec`, drawn by its seed from all that there are."""
    if spec.train_examples > len(pool.labels):
        known = f" of {len(spec.classes)} classes" if spec.classes else ""
        raise ValueError(
            f"train_examples must be at most {len(pool.labels)} on {spec.dataset}{known} with {spec.held_out} held "
            f"out, got {spec.train_examples}"
        )
    drawn = torch.randperm(len(pool.labels), generator=torch.Generator().manual_seed(spec.seed))[: spec.train_examples]
    return _at(pool, drawn.to(pool.labels.device))


def _at(split, index):
    return datasets.Split(*(tensor[index] for tensor in split))


def _known_classes(spec, data):
    """`data` with the classes that the spec names alone, renumbered in its order; all of it if it names none."""
    if not spec.classes:
        return data
    if max(spec.classes) >= data.num_classes:
        raise ValueError(
            f"classes must be less than {data.num_classes} on {spec.dataset}, got {max(spec.classes)} among them"
        )
    if len(spec.classes) == data.num_classes:  # or else, after all the training, no class would be left to probe
        raise ValueError(f"classes must leave out some of the {data.num_classes} on {spec.dataset}, or be () for all")
    number = torch.full((data.num_classes,), -1, device=data.train.labels.device)
    number[list(spec.classes)] = torch.arange(len(spec.classes), device=number.device)
    train, test = (
        datasets.Split(split.inputs[known], number[split.labels[known]])
        for split in (data.train, data.test)
        for known in [number[split.labels] >= 0]
    )
    names = tuple(data.class_names[label] for label in spec.classes)
    return datasets.Dataset(data.name, len(spec.classes), train, test, names)


def probe_data(spec, device="cpu"):
    """Classes that the network of `spec` has never seen, those that `spec.classes` leaves out: a `datasets.Dataset`.

    On images it holds the first `PROBE_EXAMPLES` of every such class in each split; on digits, what such classes have
    among a thousand training examples drawn from all ten, and the others held out. Labels are those of the whole set.
    Raises ValueError if the spec leaves no class out.
    """
    if spec.dataset == "digits":
        data, count = _digits(replace(spec, train_examples=1_000), device), None
    else:
        data, count = datasets.load(spec.dataset, device), PROBE_EXAMPLES
    left_out = [label for label in range(data.num_classes) if label not in spec.classes]
    if not spec.classes or not left_out:
        raise ValueError(f"spec.classes must leave out some of the {data.num_classes} classes, got {spec.classes}")
    train, test = (_at(split, _first_of(split.labels, left_out, count)) for split in (data.train, data.test))
    return data._replace(train=train, test=test)


def outside_inputs(spec, device="cpu"):
    """Images from another data set, `spec.outside`: the first `OUTSIDE_EXAMPLES` of its test split.

    For "noise", as many images of the spec's own shape whose pixels are drawn evenly, the same ones always. Raises
    ValueError if they are not of the shape of the spec's own, or if one of the two is "digits", no images.
    """
    if "digits" in (spec.outside, spec.dataset):
        raise ValueError(f"outside and dataset must both be images, got {spec.outside!r} and {spec.dataset!r}")
    own = datasets.load(spec.dataset, device).test.inputs
    if spec.outside == NOISE:
        shape, generator = (OUTSIDE_EXAMPLES, *own.shape[1:]), torch.Generator().manual_seed(0)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
    inputs = datasets.load(spec.outside, device).test.inputs
    if inputs.shape[1:] != own.shape[1:]:
        raise ValueError(
            f"outside images must have the shape {tuple(own.shape[1:])} of {spec.dataset}, got {spec.outside} with "
            f"{tuple(inputs.shape[1:])}"
        )
    return inputs[:OUTSIDE_EXAMPLES]


def _digits(spec, device):
    dtype = torch.float64 if spec.dtype == "float64" else torch.float32
    return datasets.digits(spec.train_examples, spec.seed, dtype, device)


def model_of(spec, data, device="cpu"):
    """The network of `spec` with its initial weights; on images, it starts by normalising them by `data`'s pixels."""
    inputs = data.train.inputs
    normalise = None if inputs.is_floating_point() else models.Normalise(*images.channel_statistics(inputs))
    options = {"hidden": spec.hidden, "dropout": spec.dropout, "normalise": normalise}
    make = models.network(spec.network, inputs.shape[1:], data.num_classes, **options)
    dtype = torch.float64 if spec.dtype == "float64" else torch.float32
    return models.build(make, spec.seed + 1_000_003 * spec.restart, dtype, device, spec.init_std or None)


def augmentation(spec):
    """The spec's augmentation as a function (images, generator) → images, or None."""
    if not spec.shift and not spec.flip:
        return None

    def augment(inputs, generator):
        inputs = images.random_shift(inputs, spec.shift, generator)
        return images.random_flip(inputs, generator) if spec.flip else inputs

    return augment


def _record(data, spec, precision, epoch, model):
    """Metrics of both splits at the epochs that the spec names: of samples, at the last epoch of all training examples.

    Held-out metrics of the last epoch come from the stored logits, see `_train`.
    """
    if epoch not in spec.record_epochs:
        return None
    row = {"epoch": epoch}
    for name, split in (("train", data.train), ("test", data.test)):
        count = None if epoch == spec.epochs and name == "train" else RECORD_EXAMPLES
        logits = training.predict(model, split.inputs[:count], precision=precision).logits
        row |= {f"{name}_{key}": value for key, value in split_metrics(logits, split.labels[:count]).items()}
    if spec.draw_classes:
        chosen = teachers.draw_examples(data.train.labels, spec.draw_classes, DRAW_EXAMPLES)
        view = augmentation(spec)
        drawn = teachers.logit_draws(model, data.train.inputs[chosen], spec.draw_classes, view, DRAWS, precision)
        row["draws"] = drawn.tolist()
    return row


def _arrays(model, data):
    """What is kept of a trained model: logits, labels and features of both splits, and the templates."""
    arrays = {"head_weight": model.head.weight, "head_bias": model.head.bias}
    for name, split in (("train", data.train), ("test", data.test)):
        output = training.predict(model, split.inputs)
        arrays |= {f"{name}_logits": output.logits, f"{name}_features": output.features, f"{name}_labels": split.labels}
    return arrays


def _first_of(labels, classes, count):
    """Indices of the first `count` examples of each of the classes."""
    return torch.cat([(labels == label).nonzero().flatten()[:count] for label in classes])


def shown_examples(labels, classes, width):
    """Indices of the first examples of each of the classes whose features (`width` numbers each) are kept."""
    return _first_of(labels, classes, min(SHOWN_EXAMPLES, SHOWN_NUMBERS // (len(classes) * width)))


def _half(values):
    """`values` in float16, which halves what a run takes; in float32 if one is too large for that."""
    return values.half() if values.abs().max() <= torch.finfo(torch.float16).max else values.float()


def _small_arrays(model, data):
    """What is kept of a run on images: the held-out logits and labels, those of the first training examples, and the
    templates; floating point as float16 except the templates."""
    arrays = {"head_weight": model.head.weight.float(), "head_bias": model.head.bias.float()}
    for name, split, count in (("train", data.train, KEPT_TRAIN_EXAMPLES), ("test", data.test, None)):
        arrays |= {
            f"{name}_logits": _half(training.predict(model, split.inputs[:count]).logits),
            f"{name}_labels": split.labels[:count].to(torch.uint8),
        }
    return arrays


def _shown_arrays(model, data):
    """Features of the shown classes with their labels, by the data set's name."""
    width, classes = model.head.in_features, SHOWN_CLASSES[data.name]
    splits = {"train": data.train, "test": data.test}
    shown = {name: _at(split, shown_examples(split.labels, classes, width)) for name, split in splits.items()}
    return _feature_arrays("shown", model, shown)


def _feature_arrays(prefix, model, splits):
    """Features (float16, but float64 of a network in float64) and labels of each of the splits, a dict."""
    arrays = {}
    for name, split in splits.items():
        features = training.predict(model, split.inputs).features
        arrays[f"{prefix}_{name}_features"] = features if features.dtype == torch.float64 else _half(features)
        arrays[f"{prefix}_{name}_labels"] = split.labels.to(torch.uint8)
    return arrays


def _kept_arrays(spec, model, data, outside, device):
    """All arrays of the run: `_arrays` on digits; else `_small_arrays` and the features that chapters show or probe."""
    arrays = _arrays(model, data) if spec.dataset == "digits" else _small_arrays(model, data)
    if spec.keep != "logits":
        arrays = _fewer_arrays(spec, model, data, arrays)
    elif outside is not None:
        arrays |= {"outside_logits": _half(training.predict(model, outside).logits)}
    elif spec.classes:
        probed = probe_data(spec, device)
        arrays |= _feature_arrays("probe", model, {"train": probed.train, "test": probed.test})
    elif spec.dataset != "digits" and not spec.groups:  # the shown classes are none of the groups
        arrays |= _shown_arrays(model, data)
    return {name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()}


def _fewer_arrays(spec, model, data, arrays):
    """Of `arrays` what `spec.keep` asks for, and for views the logits (float16) of training images in one view."""
    if spec.keep in ("weights", "predictions"):
        return {"test_predictions": arrays["test_logits"].argmax(1).to(torch.uint8)}
    few = {name: arrays[name] for name in ("train_logits", "train_labels")}
    few |= {name: arrays[name][:VIEWED_TEST_EXAMPLES] for name in ("test_logits", "test_labels")}
    if augment := augmentation(spec):
        seen = augment(data.train.inputs[:KEPT_TRAIN_EXAMPLES], torch.Generator().manual_seed(0))
        few["view_logits"] = _half(training.predict(model, seen).logits)
    return few


def train(spec, device=None, checkpoint=None, folder=None):
    """Train what `spec` asks for on `device` (default: `training.default_device`) and return the `runs.Run`.

    checkpoint : path of a checkpoint file, see `training.fit`
    folder : where the weights of teachers are kept, see `teacher_model`

    Under torchrun, several processes train one translation network together, and only the first one gets the run;
    ValueError for images.
    """
    translates = isinstance(spec, translation.TranslationSpec)
    if translation.processes()[1] > 1 and not translates:
        raise ValueError(
            f"several processes of torchrun can train translation together, not {spec.dataset}: use `lsbook run "
            f"--jobs {translation.processes()[1]}`, which trains so many networks at a time"
        )
    # Such small nets make threads wait for each other. On a busy machine (load 4 a core) a live run took 1.5 s with one
    # thread and 9 s with two.
    with training.threads(1 if spec.preset in ("live", "smoke") else None):
        device = device or training.default_device()
        return translation.train(spec, device, checkpoint) if translates else _train(spec, device, checkpoint, folder)


# The fields of a spec that `training.fit` takes by the same name.
_FIT_FIELDS = (
    *("epochs", "batch_size", "learning_rate", "schedule", "milestones", "momentum", "nesterov", "weight_decay"),
    *("decay_only", "head_factor", "clip_norm", "seed"),
)


def fit_spec(spec, data, device="cpu", checkpoint=None, folder=None):
    """Train the network of `spec` on `data` (see `data_of`) as the spec says; returns (model, history).

    folder : where the weights of its teacher are, or go, if it has one
    """
    model, precision = model_of(spec, data, device), training.precision_of(spec.dtype, device)
    teacher = answers_of(spec, data, device, folder) if spec.teacher else None
    history = training.fit(
        model,
        data.train,
        loss_of(spec, teacher),
        **{name: getattr(spec, name) for name in _FIT_FIELDS},
        precision=precision,
        augment=augmentation(spec),
        record=partial(_record, data, spec, precision),
        label=f"{spec.experiment} α={spec.alpha:g} seed {spec.seed}",
        checkpoint=checkpoint,
    )
    return model, history


# What `fit_seeds` passes on. All else that `fit_spec` can do must be left at its default.
_PLAIN_FIELDS = ("epochs", "batch_size", "learning_rate", "momentum", "nesterov")
# With these, what the groups of `fit_groups` must have in common.
_SHARED_FIELDS = ("network", "hidden", "dataset", "train_examples")
_REFUSED = ("shift", "flip", "dropout", "weight_decay", "schedule", "clip_norm", "head_factor")


def fit_seeds(specs, teachers=()):
    """Train the networks of specs that differ in nothing but the seed, side by side: a list of networks.

    For many seeds of small fully connected networks, at a constant rate, without augmentation, dropout, weight decay
    and clipping. The same as `fit_spec` one by one, but for rounding, and several times as fast.

    teachers : for students, their teachers' networks in the same order

    Raises ValueError for no spec, for specs that differ otherwise or ask for more, and without a teacher for each.
    """
    return fit_groups([specs], [teachers])[0]


def fit_groups(groups, teachers=None):
    """Train several groups, each as `fit_seeds` would, all side by side: a list of lists of networks.

    The groups may differ in their targets (α, noise, teacher, β, T), not in the kind of network, the number of examples
    and the schedule. On small networks a step on all groups takes far less time than a step on each.

    groups : lists of specs; teachers : for each group of students their teachers' networks, () for others

    Raises ValueError as `fit_seeds`, for no group, and for groups that differ in what they must share.
    """
    teachers = [()] * len(groups) if teachers is None else teachers
    for specs, known in zip(groups, teachers, strict=True):
        _check_seeds(specs, known)
    specs = [spec for group in groups for spec in group]
    shared = {tuple(getattr(spec, name) for name in (*_SHARED_FIELDS, *_PLAIN_FIELDS)) for spec in specs}
    if len(shared) != 1:
        raise ValueError(f"groups must share network, examples and schedule, got {len(shared)} kinds in {len(groups)}")
    data = [data_of(spec) for spec in specs]
    networks = [model_of(spec, one) for spec, one in zip(specs, data, strict=True)]
    settings = {name: getattr(specs[0], name) for name in _PLAIN_FIELDS}
    loss = _loss_of_groups(groups, teachers, data)
    training.fit_together(networks, [d.train for d in data], loss, **settings, seeds=[spec.seed for spec in specs])
    ends = np.cumsum([len(group) for group in groups])
    return [networks[end - len(group) : end] for group, end in zip(groups, ends, strict=True)]


def _check_seeds(specs, teachers):
    """Raise unless the specs differ in the seed alone, ask for nothing special, and have a teacher each if any has."""
    if not specs:
        raise ValueError("specs must hold at least one spec, got none")
    first, plain = specs[0], {f.name: f.default for f in fields(Spec) if f.name in _REFUSED}
    for spec in specs:
        alike = replace(spec, seed=first.seed, teacher=_with_seed(spec.teacher, first.seed)) == first
        if not alike or any(getattr(spec, name) != value for name, value in plain.items()):
            raise ValueError(f"specs must differ in the seed alone and must be plain, without {_REFUSED}: got {spec}")
    if first.teacher is not None and len(teachers) != len(specs):
        raise ValueError(f"expected a teacher for each spec, got {len(specs)} specs and {len(teachers)} teachers")


def _loss_of_groups(groups, teachers, data):
    """The mean loss of all groups' networks, whose batches stand one after the other, each by its own group's loss."""
    losses, done = [], 0
    for specs, known in zip(groups, teachers, strict=True):
        own = data[done : done + len(specs)]
        answers = [training.predict(t, one.train.inputs).logits for t, one in zip(known, own, strict=False)]
        losses.append(_own_loss(specs[0], answers, done * len(own[0].train.labels)))
        done += len(specs)

    def loss(logits, batch):
        sizes = [len(specs) * (len(logits) // done) for specs in groups]
        parts = zip(logits.split(sizes), batch.labels.split(sizes), batch.index.split(sizes), strict=True)
        found = [own(z, training.Batch(None, y, i)) for own, (z, y, i) in zip(losses, parts, strict=True)]
        return sum(size * value for size, value in zip(sizes, found, strict=True)) / len(logits)

    return loss


def _own_loss(spec, answers, before):
    """`loss_of` a spec, whose teachers' answers on its group's examples follow `before` examples of other groups."""
    if spec.teacher is None:
        return loss_of(spec)
    answers = torch.cat(answers)
    return loss_of(spec, lambda batch: answers[batch.index - before])


def _with_seed(spec, seed):
    return spec and replace(spec, seed=seed)


def answers_of(spec, data, device="cpu", folder=None):
    """A function from a `training.Batch` to the logits of the student's teacher on what the student sees.

    Without augmentation the teacher answers once for all examples; with it once for each batch, also if more students
    of it are trained in this process.
    """
    teacher = _teacher(spec.teacher, device, None if folder is None else Path(folder))
    if augmentation(spec) is None:
        everything = teacher(data.train.inputs)
        return lambda batch: everything[batch.index]
    return lambda batch: teacher(batch.inputs)


@lru_cache(maxsize=2)
def _teacher(spec, device, folder):
    return teachers.Teacher(teacher_model(spec, device, folder), training.precision_of(spec.dtype, device))


def teacher_model(spec, device="cpu", folder=None):
    """The trained network of `spec`: by the weights in folder/.weights, else trained now (and its run stored).

    Weights are not part of a stored run, so a fresh copy of the book trains its teachers when students are asked for.
    """
    data = data_of(spec, device)
    if folder is None:
        return fit_spec(spec, data, device)[0]
    path = weights_path(spec, folder)
    if not path.exists() and not runs.is_stored(spec.as_dict(), folder):
        load_or_train(spec, folder, device)
    with runs.lock(spec.as_dict(), folder):
        if not path.exists():  # it was stored before, perhaps by another machine: only the weights are wanted
            checkpoint = checkpoint_path(spec, folder)
            teachers.save_weights(fit_spec(spec, data, device, checkpoint, folder)[0], path)
            checkpoint.unlink(missing_ok=True)
    model = model_of(spec, data, device)
    teachers.load_weights(model, path)
    return model


def weights_path(spec, folder):
    """Where the weights of a teacher lie beside the stored runs: not among them, and never committed."""
    return Path(folder) / ".weights" / f"{spec.name}.safetensors"


def checkpoint_path(spec, folder):
    """Where the state of a run lies while it trains."""
    return Path(folder) / ".checkpoints" / f"{spec.name}.safetensors"


def _train(spec, device, checkpoint, folder=None):
    before, started = training.seconds_before(checkpoint), time.monotonic()
    data = data_of(spec, device)
    outside = outside_inputs(spec, device) if spec.outside else None  # before training, so that errors come early
    model, history = fit_spec(spec, data, device, checkpoint, folder)
    if spec.keep in ("views", "weights") and folder is not None:
        teachers.save_weights(model, weights_path(spec, folder))
        _teacher.cache_clear()  # it may know this teacher by older weights
    arrays = _kept_arrays(spec, model, data, outside, device)
    if spec.draw_classes:
        arrays["draws"] = np.array([row.pop("draws") for row in history], np.float16)
    if history and history[-1]["epoch"] == spec.epochs:  # the last held-out metrics are those of the stored logits
        kept = spec.keep == "logits"
        logits = arrays["test_logits"] if kept else training.predict(model, data.test.inputs).logits
        final = split_metrics(logits, arrays["test_labels"] if kept else data.test.labels)
        history[-1] |= {f"test_{key}": value for key, value in final.items()}
    made_by = runs.provenance(device, before + time.monotonic() - started)
    made_by |= {"precision": training.precision_of(spec.dtype, device)}
    return runs.Run(spec.as_dict(), arrays, history, made_by | ({"resumed": True} if before else {}))


def load_or_train(spec, folder=None, device=None):
    """The run of `spec`: the stored one if `folder` holds it, else trained now (and stored if `folder` is given).

    While a run trains, its checkpoint lies in folder/.checkpoints, and other processes that want the same run wait.
    LSBOOK_RETRAIN=1 trains even where a run is stored. The processes of torchrun train it together.
    """
    if folder is None:
        return train(spec, device)
    if translation.processes()[1] > 1:
        return _load_or_train_together(spec, folder, device)
    retrain = os.environ.get("LSBOOK_RETRAIN") == "1"
    if not retrain and runs.is_stored(spec.as_dict(), folder):
        return runs.load(spec.as_dict(), folder)
    with runs.lock(spec.as_dict(), folder):
        if not retrain and runs.is_stored(spec.as_dict(), folder):  # by another process, while this one waited
            return runs.load(spec.as_dict(), folder)
        checkpoint = checkpoint_path(spec, folder)
        if retrain:
            checkpoint.unlink(missing_ok=True)
        run = train(spec, device, checkpoint, folder)
        runs.save(run, folder)
        checkpoint.unlink(missing_ok=True)
    return run


def _load_or_train_together(spec, folder, device):
    """`load_or_train` in one of the processes of torchrun: the first one locks, decides what is to do, and stores."""
    first, checkpoint = translation.processes()[0] == 0, checkpoint_path(spec, folder)
    lock = runs.lock(spec.as_dict(), folder) if first else nullcontext()
    with translation.together(device or training.default_device()) as device, lock:
        retrain = os.environ.get("LSBOOK_RETRAIN") == "1"
        if retrain and first:
            checkpoint.unlink(missing_ok=True)
        if translation.from_first(retrain or not runs.is_stored(spec.as_dict(), folder)):
            there = checkpoint.exists()
            if translation.from_first(there) != there:  # they would train different epochs, and wait for ever
                raise FileNotFoundError(f"all processes must see the same checkpoint {checkpoint}: is the disk shared?")
            run = train(spec, device, checkpoint)
            if first:
                runs.save(run, folder)
                checkpoint.unlink(missing_ok=True)
            translation.from_first(True)  # the others wait until it is stored
    return runs.load(spec.as_dict(), folder)


def run_all(specs, folder=None, device=None):
    """The runs of many specs, in their order, with a progress bar."""
    return [load_or_train(spec, folder, device) for spec in training.progress_bar(specs, desc="runs")]


# Names of the metrics that a recorded epoch holds.
METRICS = tuple(f"{split}_{name}" for split in ("train", "test") for name in ("accuracy", "nll", "confidence"))


def _histories(runs_):
    """The runs' histories; ValueError if there is no run, or one without a recorded epoch."""
    histories = [run.history for run in runs_]
    if not histories:
        raise ValueError("runs_ must hold at least one run, got none")
    if not all(histories):
        raise ValueError("runs_ must have recorded metrics, got a run without: set record_epochs in its spec")
    return histories


def metric(runs_, name):
    """One number of each run's last recorded epoch (such as "test_nll"), as an array (runs,).

    Raises ValueError if there is no run, or one that recorded nothing.
    """
    return np.array([history[-1][name] for history in _histories(runs_)])


def curve(runs_, name):
    """(epochs (E,), values (runs, E)) of one recorded metric.

    Raises ValueError if there is no run, or one that recorded nothing.
    """
    histories = _histories(runs_)
    epochs = np.array([row["epoch"] for row in histories[0]])
    return epochs, np.array([[row[name] for row in history] for history in histories])


def logit_gaps(runs_, split):
    """`calibration.logit_gaps` of every run on "train" or "test": shape (runs, N, K − 1)."""
    return np.stack([calibration.logit_gaps(*run.logits_and_labels(split)) for run in runs_])


def train_templates(split, alpha, logit_gradient, learning_rate=0.5, steps=500, num_classes=None):
    """Templates (D, K) of the linear classifier x @ W, by full-batch gradient descent from zero; and where they end.

    logit_gradient : function (probs (N, K), targets (N, K)) → what to take for the gradient in the logits; the true
        one is probs − targets. W then moves along its chain rule, xᵀ · logit_gradient / N.

    num_classes : K (default: the largest label + 1, which is too few where the last class is absent)

    Returns (W, training loss in nats, norm of the true gradient at W).
    """
    x, num_classes = split.inputs, int(split.labels.max()) + 1 if num_classes is None else num_classes
    t = targets.smooth_labels(split.labels, num_classes, alpha, dtype=x.dtype)
    start = x.new_zeros(x.shape[1], num_classes)

    def gradient(w):
        return x.T @ logit_gradient((x @ w).softmax(1), t) / len(x)

    end = training.descend(gradient, start, learning_rate=learning_rate, steps=steps).point
    loss = targets.smoothed_cross_entropy(x @ end, split.labels, alpha)
    true_gradient = x.T @ ((x @ end).softmax(1) - t) / len(x)
    return end, loss.item(), true_gradient.norm().item()
