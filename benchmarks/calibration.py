"""Time and result of `lsbook.calibration` against what others use: temperature, bootstrap of the ECE, the ECE itself.

The temperature: against the script that most projects copy (torch.optim.LBFGS, 50 iterations at rate 0.01 from 1.5),
against LBFGS run to its end, and against scikit-learn's, by its inner class, which has no overhead, and by
`CalibratedClassifierCV`. The NLL that each reaches is computed anew, in float64; ours must be the least. The bootstrap
and the ECE: against torchmetrics. Candidates take turns within one run; ratios are taken turn by turn.

Usage: python benchmarks/calibration.py [TURNS] [THREADS]   (threads are torch's; lsbook and scikit-learn use one)
"""

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchmetrics
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, _TemperatureScaling
from sklearn.frozen import FrozenEstimator

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe, show, summary, take_turns
from torchmetrics.functional.classification import multiclass_calibration_error

from lsbook import calibration, runs

ROOT = Path(__file__).parents[1]
SHAPES = ((1_000, 10), (10_000, 10), (10_000, 100))
FACTORS = {"over-confident": 2.5, "under-confident": 0.5}  # made logits, times this; at 1 they are calibrated
STORED = "cifar100-resnet20-laptop-alpha0-seed0"
RESAMPLES, PART = 1_000, 200  # torchmetrics makes a part of the resamples a turn; its time grows in proportion


# --- temperature


def lsbook_fit(logits, labels):
    return calibration.fit_temperature(logits, labels)


def lbfgs(logits, labels, **settings):
    """Minimise PyTorch's cross-entropy of all examples over one parameter, the temperature."""
    temperature = torch.nn.Parameter(torch.tensor([1.5], dtype=logits.dtype))
    optimizer = torch.optim.LBFGS([temperature], **settings)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / temperature, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return temperature.item()


usual_script = partial(lbfgs, lr=0.01, max_iter=50)
lbfgs_to_the_end = partial(lbfgs, lr=1, max_iter=500, line_search_fn="strong_wolfe")


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose scores are its input."""

    def fit(self, logits, labels):
        self.classes_ = np.arange(logits.shape[1])
        return self

    def decision_function(self, logits):
        return logits

    def predict(self, logits):
        return self.classes_[logits.argmax(axis=1)]


def scikit_learn(logits, labels, dtype=np.float64):
    return 1 / float(_TemperatureScaling().fit(logits.numpy().astype(dtype, copy=False), labels.numpy()).beta_)


def scikit_learn_class(logits, labels):
    logits, labels = logits.numpy().astype(np.float64), labels.numpy()
    given = FrozenEstimator(Given().fit(logits, labels))
    (fitted,) = CalibratedClassifierCV(given, method="temperature").fit(logits, labels).calibrated_classifiers_
    return 1 / float(fitted.calibrators[0].beta_)


FITS = {
    "lsbook": lsbook_fit,
    "usual LBFGS script": usual_script,
    "LBFGS to the end": lbfgs_to_the_end,
    "scikit-learn, inner": scikit_learn,
    "scikit-learn, inner, float32": partial(scikit_learn, dtype=np.float32),
    "scikit-learn, whole class": scikit_learn_class,
}


def made(examples, classes, factor):
    """Logits as float32, and labels drawn from their softmax before they are multiplied by the factor."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(examples, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return torch.tensor(factor * logits, dtype=torch.float32), torch.tensor(labels)


def stored():
    logits, labels = runs.load_named(STORED, ROOT / "data" / "runs").logits_and_labels()
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)


def nll(logits, labels, temperature):
    """The NLL at a temperature, by scipy in float64."""
    scaled = logits.numpy().astype(np.float64) / temperature
    return float(-log_softmax(scaled, axis=1)[np.arange(len(labels)), labels.numpy()].mean())


def compare_fits(name, logits, labels, turns):
    """Rows of the table: for each candidate its time, its time over lsbook's, its temperature and how much it loses."""
    seconds = take_turns({key: partial(fit, logits, labels) for key, fit in FITS.items()}, turns)
    found = {key: fit(logits, labels) for key, fit in FITS.items()}
    reached = {key: nll(logits, labels, temperature) for key, temperature in found.items()}
    assert reached["lsbook"] <= min(reached.values()) + 1e-14, reached  # never a worse NLL, but for rounding
    for key, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["lsbook"], strict=True)]
        loss = max(0.0, reached[key] - reached["lsbook"])
        yield [name, key, summary(values, 1e3), summary(ratios), f"{found[key]:.6f}", f"{loss:.1e}"]


# --- the bootstrap and the ECE


def lsbook_bootstrap(probs, labels):
    calibration.bootstrap_ece(probs, labels, num_resamples=RESAMPLES)


def torchmetrics_bootstrap(probs, labels, **settings):
    """Quantiles of PART resamples."""
    errors = []
    for _ in range(PART):
        index = torch.randint(len(labels), (len(labels),))
        errors.append(multiclass_calibration_error(probs[index], labels[index], probs.shape[1], n_bins=15, **settings))
    return torch.stack(errors).quantile(torch.tensor([0.025, 0.975]))


def torchmetrics_wrapper(probs, labels):
    """The same by torchmetrics' own wrapper, which copies the metric for each resample."""
    metric = torchmetrics.classification.MulticlassCalibrationError(probs.shape[1], n_bins=15)
    quantiles = torch.tensor([0.025, 0.975])
    wrapper = torchmetrics.wrappers.BootStrapper(
        metric, num_bootstraps=PART, mean=False, std=False, quantile=quantiles, sampling_strategy="multinomial"
    )
    wrapper.update(probs, labels)
    return wrapper.compute()["quantile"]


BOOTSTRAPS = {
    "lsbook": lsbook_bootstrap,
    "torchmetrics": torchmetrics_bootstrap,
    "torchmetrics, inputs not checked": partial(torchmetrics_bootstrap, validate_args=False),
    "torchmetrics' BootStrapper": torchmetrics_wrapper,
}


def compare_bootstraps(turns):
    logits, labels = made(10_000, 100, FACTORS["over-confident"])
    probs = logits.softmax(dim=1)
    seconds = take_turns({key: partial(call, probs, labels) for key, call in BOOTSTRAPS.items()}, turns)
    for key, values in seconds.items():
        values = [value * (1 if key == "lsbook" else RESAMPLES / PART) for value in values]
        ratios = [a / b for a, b in zip(values, seconds["lsbook"], strict=True)]
        yield [key, summary(values, 1e3), summary(ratios)]


def compare_errors():
    """The ECE (15 bins) of both where no confidence lies on an edge: the greatest difference must be float32's."""
    cases = {f"{n} × {k}, {name}": made(n, k, factor) for n, k in SHAPES for name, factor in FACTORS.items()}
    cases["CIFAR-100, ResNet-20"] = stored()
    for name, (logits, labels) in cases.items():
        probs = logits.double().softmax(dim=1)
        off_edge = (15 * probs.max(dim=1).values - (15 * probs.max(dim=1).values).round()).abs() > 1e-4
        probs, labels = probs[off_edge], labels[off_edge]
        ours = calibration.expected_calibration_error(probs, labels)
        theirs = multiclass_calibration_error(probs, labels, probs.shape[1], n_bins=15).item()
        assert abs(ours - theirs) < 2e-6, (name, ours, theirs)
        yield [name, int(off_edge.sum()), f"{ours:.7f}", f"{theirs:.7f}"]


def compare_edges():
    """Two predictions, the first wrong with confidence 1, the second right; the ECE by hand beside both."""
    for second, bins, by_hand in ((0.95, 15, 0.475), (0.6, 1, 0.3), (0.6, 15, 0.7)):
        probs, labels = torch.tensor([[1.0, 0.0], [second, 1 - second]], dtype=torch.float64), torch.tensor([1, 0])
        ours = calibration.expected_calibration_error(probs, labels, bins)
        theirs = multiclass_calibration_error(probs, labels, 2, n_bins=bins).item()
        assert abs(ours - by_hand) < 1e-12, (ours, by_hand)
        yield [f"1 (wrong), {second} (right)", bins, f"{by_hand:.3f}", f"{ours:.3f}", f"{theirs:.3f}"]


# --- both


def main(turns=7, threads=2):
    torch.set_num_threads(threads)
    print(describe(), f"scikit-learn {version('scikit-learn')}, numpy {version('numpy')}", sep="\n")
    print(f"torch's threads: {threads}, {turns} turns; median [quartiles]")
    cases = {f"{n} × {k}, {name}": made(n, k, factor) for n, k in SHAPES for name, factor in FACTORS.items()}
    cases["CIFAR-100, ResNet-20"] = stored()
    rows = [row for name, case in cases.items() for row in compare_fits(name, *case, turns)]
    show("Temperature", rows, ["logits", "fit", "ms", "time / lsbook's", "T", "NLL above lsbook's"])
    print(f"\ntorchmetrics {version('torchmetrics')}")
    show(f"{RESAMPLES} bootstrap ECEs, 10000 × 100", compare_bootstraps(turns), ["", "ms", "time / lsbook's"])
    show("ECE, confidences off the edges", compare_errors(), ["probabilities", "examples", "lsbook", "torchmetrics"])
    show("ECE at confidence 1", compare_edges(), ["confidences", "bins", "by hand", "lsbook", "torchmetrics"])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
