"""The specs of the experiments, and the one way from a spec to a run."""

import os
import time
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch

from . import calibration, datasets, models, runs, targets, training
from .checks import as_numpy, check_choice, check_int, check_number, check_positive

PRESETS = ("live", "smoke", "laptop", "paper")
DATASETS = {"digits": datasets.digits}
DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Spec:
    """All that decides the outcome of one training run.

    Numbers may be numpy scalars; they are kept as plain int and float, so that equal specs have equal hashes.
    Raises TypeError or ValueError naming the field; for an unknown name with the nearest known one.
    """

    experiment: str  # which experiment of the book it belongs to
    preset: str  # one of PRESETS; live trains in the cell
    dataset: str  # name in DATASETS
    train_examples: int  # how many examples to train on
    hidden: tuple[int, ...]  # widths of the hidden layers
    alpha: float  # label smoothing, uniform convention; 0 is hard targets
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9  # Nesterov
    weight_decay: float = 0.0  # L2 on all weights and biases, as torch.optim.SGD has it
    dtype: str = "float64"  # one of DTYPES
    record_epochs: tuple[int, ...] = ()  # when to note metrics on both splits
    seed: int = 0  # of the split, the initial weights and the order of examples

    def __post_init__(self):
        largest = np.finfo(np.float64).max
        checked = {
            "preset": check_choice(self.preset, "preset", PRESETS),
            "dataset": check_choice(self.dataset, "dataset", DATASETS),
            "dtype": check_choice(self.dtype, "dtype", DTYPES),
            "train_examples": check_int(self.train_examples, "train_examples", 1),
            "hidden": tuple(check_int(width, "hidden", 1) for width in self.hidden),
            "alpha": check_number(self.alpha, "alpha", 0, 1) + 0.0,  # −0 becomes 0: in JSON they differ
            "epochs": check_int(self.epochs, "epochs", 0),
            "batch_size": check_int(self.batch_size, "batch_size", 1),
            "learning_rate": check_positive(self.learning_rate, "learning_rate"),
            "momentum": check_number(self.momentum, "momentum", 0, 1) + 0.0,
            "weight_decay": check_number(self.weight_decay, "weight_decay", 0, largest) + 0.0,
            "record_epochs": tuple(check_int(epoch, "record_epochs", 0) for epoch in self.record_epochs),
            "seed": check_int(self.seed, "seed", 0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the way past `frozen`

    def as_dict(self):
        """Plain types only, so that it equals its own JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


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


def smoothing_loss(alpha):
    """The loss of an experiment on labels: native cross-entropy with smoothing α."""

    # The data set's labels were checked when it was loaded, so the loop need not look at them again.
    def loss(logits, batch):
        return targets.smoothed_cross_entropy(logits, batch.labels, alpha, validate=False)

    return loss


def split_metrics(logits, labels):
    """Accuracy, NLL and mean confidence of one split, as floats."""
    logits, labels = as_numpy(logits), as_numpy(labels)
    return {
        "accuracy": calibration.accuracy(logits, labels),
        "nll": calibration.negative_log_likelihood(logits, labels),
        "confidence": float(calibration.confidence(logits).mean()),
    }


def _record(data, epochs, epoch, model):
    """Metrics of both splits at the epochs that the spec names."""
    if epoch not in epochs:
        return None
    row = {"epoch": epoch}
    for name, split in (("train", data.train), ("test", data.test)):
        metrics = split_metrics(training.predict(model, split.inputs).logits, split.labels)
        row |= {f"{name}_{key}": value for key, value in metrics.items()}
    return row


def _arrays(model, data):
    """What is kept of a trained model: logits, labels and features of both splits, and the templates."""
    arrays = {"head_weight": model.head.weight, "head_bias": model.head.bias}
    for name, split in (("train", data.train), ("test", data.test)):
        output = training.predict(model, split.inputs)
        arrays |= {f"{name}_logits": output.logits, f"{name}_features": output.features, f"{name}_labels": split.labels}
    return {name: _stored(tensor.detach().cpu()) for name, tensor in arrays.items()}


def _stored(tensor):
    """A CPU tensor as an array of its own precision; bfloat16, which numpy lacks, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def train(spec, device=None):
    """Train what `spec` asks for on `device` (default: `training.default_device`) and return the `runs.Run`."""
    # A live net is so small that threads only wait for each other. On a busy machine (load 4 a core) one thread took
    # 1.5 s a run and two took 9 s.
    with training.threads(1 if spec.preset == "live" else None):
        return _train(spec, device or training.default_device())


def _train(spec, device):
    started = time.monotonic()
    dtype = getattr(torch, spec.dtype)
    data = DATASETS[spec.dataset](spec.train_examples, spec.seed, dtype, device)
    sizes = (data.train.inputs[0].numel(), *spec.hidden, data.num_classes)
    model = models.build(sizes, spec.seed, dtype, device)
    history = training.fit(
        model,
        data.train,
        smoothing_loss(spec.alpha),
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        seed=spec.seed,
        record=partial(_record, data, spec.record_epochs),
        label=f"{spec.experiment} α={spec.alpha:g} seed {spec.seed}",
    )
    made_by = runs.provenance(device, time.monotonic() - started)
    return runs.Run(spec.as_dict(), _arrays(model, data), history, made_by)


def load_or_train(spec, folder=None, device=None):
    """The run of `spec`: the stored one if `folder` holds it, else trained now (and stored if `folder` is given).

    LSBOOK_RETRAIN=1 trains even where a run is stored.
    """
    stored = folder is not None and runs.is_stored(spec.as_dict(), folder)
    if stored and os.environ.get("LSBOOK_RETRAIN") != "1":
        return runs.load(spec.as_dict(), folder)
    run = train(spec, device)
    if folder is not None:
        runs.save(run, folder)
    return run


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
