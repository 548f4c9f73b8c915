"""How well calibrated a network of one's own is: read its predictions from a file, measure, advise, make a page.

`lsbook report` is these steps in a row: `outputs`, `read`, `make` (`measure`, then `advise`), `save`, `table` and
`advice_text`. A report is a plain dict, the one that is written as JSON; `page` and `table` show what is in it, so the
three hold the same numbers.
"""

import csv
import html
import io
import json
import math
import os
import re
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.special import log_softmax
from scipy.stats import norm

from . import __version__, calibration, files, plots, theory
from .checks import check_int
from .information import check_distributions

SUFFIXES = (".npz", ".safetensors", ".safetensors.xz", ".csv")
KINDS = ("logits", "probs")
LARGEST = 1e100  # so that squares of logits stay finite
MOST_BINS = 1000
SETTINGS = {"seed": 0, "resamples": 1000, "level": 0.95}  # of every interval and noise floor
SMALL = 0.02  # a difference between confidence and accuracy that is looked for
GAP_BINS = 48
# The lines of the table: (path of keys in a report → words, what to read from it). Numbers are dicts or plain.
LINES = {
    "measures.accuracy": ("accuracy", "share of examples whose largest score is that of their label"),
    "measures.mean_confidence": ("mean confidence", "mean of the largest probability of each example"),
    "measures.confidence_minus_accuracy": (
        "confidence − accuracy",
        "above 0: too sure on the whole; below 0: not sure enough",
    ),
    "measures.nll": ("negative log-likelihood (nats)", "mean of −ln p of the label; less is better"),
    "measures.brier": ("Brier score", "mean of Σ (p − one-hot)², from 0 to 2; less is better"),
    "measures.ece": (
        "expected calibration error (ECE)",
        "mean |accuracy − confidence| over the bins of Figure 1; chance adds to it, and to its interval twice",
    ),
    "measures.noise_floor": (
        "noise floor of the ECE",
        "the ECE that a calibrated network with these confidences has by chance: mean, and 19 of 20 below",
    ),
    "measures.debiased_ece": ("debiased ECE", "the ECE less an estimate of what chance adds to it"),
    "measures.smooth_ece": ("smooth ECE", "calibration error without bins; chance adds to this too"),
    "measures.classwise_ece": ("classwise ECE", "mean over classes of the ECE of “it is class k”; small if K is large"),
    "temperature.value": ("temperature T", "fitted on one half of the examples; beside it: fitted on the other half"),
    "temperature.nll_before": ("NLL, held-out half", "at T = 1"),
    "temperature.nll_after": ("NLL, held-out half, at T", "logits divided by T"),
    "temperature.nll_change": ("change of this NLL", "at T less at 1: below 0 if T helps"),
    "temperature.ece_before": (
        "ECE, held-out half",
        "at T = 1; beside it: what chance alone makes in 19 of 20 samples",
    ),
    "temperature.ece_after": ("ECE, held-out half, at T", "logits divided by T"),
    "gaps.median": (
        "median logit gap (nats)",
        "of z_y − z_j, the label y against every wrong class j; beside it: half of all gaps",
    ),
    "gaps.alpha": ("α that fits the gaps", "the smoothing strength whose optimal gap is the median gap"),
}


class Scores(NamedTuple):
    """What a file holds, checked: scores (N, K), which are `kind` ("logits" or "probs"), and labels (N,)."""

    file: str  # its name, without folders
    key: str  # the name of the scores in it
    split: str | None
    kind: str
    scores: np.ndarray
    labels: np.ndarray


# --- reading


def read(path, split=None):
    """The `Scores` in an .npz, .safetensors (also packed as .xz) or .csv file, checked. Pickles are refused.

    split: NAME reads NAME_logits or NAME_probs, and NAME_labels. Without one these are `logits` or `probs`, and
    `labels`; or, in a file without those scores, the ones of the split "test".

    Raises OSError if the file cannot be opened, and ValueError, which starts with its name, unless it holds logits or
    probs, not both, of shape (N, K), floating point, finite (probs: rows that sum to 1), K ≥ 2 and N ≥ 1, and labels
    (N,), integers in 0 … K − 1.
    """
    with files.about(path):
        suffix = _ending(path)
        if suffix == ".csv" and split is not None:
            raise ValueError(f"--split is for .npz and .safetensors, a .csv holds one split; got {split!r}")
        if suffix == ".csv":
            split, key, scores, labels = _from_csv(path)
        else:
            split, key, scores, labels = _from_archive(path, split)
        kind = key.rpartition("_")[2]
        labels_key = f"{split}_labels" if split else "labels"
        _check_scores(scores, key, kind)
        _check_labels(labels, labels_key, scores, key)
        return Scores(_plain_name(path), key, split, kind, scores, labels)


def _ending(path):
    name = Path(path).name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    given = Path(name).suffix or "no ending"
    raise ValueError(f"the file's name must end in one of {', '.join(SUFFIXES)}, got {given!r}")


def _plain_name(path):
    """A file's name as text that can be written (names may hold bytes that are none)."""
    return Path(path).name.encode("utf-8", "backslashreplace").decode()


@contextmanager
def _opened(path):
    """(names, function name, kind in words → array) of an .npz, .safetensors or .safetensors.xz file."""
    with open(path, "rb") as file:  # for both, so that an absent file is told in the same words
        if _ending(path) == ".npz":
            archive = files.open_npz(file)
            yield archive.files, lambda name, kind: files.npz_array(archive, name, kind)
            return
        packed = file.read() if _ending(path) == ".safetensors.xz" else None
    if packed is not None:
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder) / "unpacked.safetensors"
            unpacked.write_bytes(files.unpack(packed))
            with _opened(unpacked) as found:
                yield found
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            yield sorted(file.keys()), lambda name, kind: _tensor(file, name, kind)
    except SafetensorError as error:
        raise ValueError(f"this .safetensors file is damaged or cut off ({error})") from error


def _tensor(file, name, kind):
    try:
        return file.get_tensor(name)
    except (TypeError, AttributeError) as error:  # bfloat16 and the float8 kinds, which numpy does not know
        given = file.get_slice(name).get_dtype()
        raise ValueError(f"{name} must be {kind} that numpy knows, got {given}: save it as float32") from error


def _from_archive(path, split):
    """(split, name of the scores, scores, labels) of an .npz, .safetensors or .safetensors.xz file."""
    with _opened(path) as (names, get):
        if split is None and not any(kind in names for kind in KINDS):
            split = "test" if any(f"test_{kind}" in names for kind in KINDS) else None
        prefix = "" if split is None else f"{split}_"
        keys = [prefix + kind for kind in KINDS if prefix + kind in names]
        if len(keys) != 1 or prefix + "labels" not in names:
            wanted = f"either {prefix}logits or {prefix}probs, and {prefix}labels"
            raise ValueError(f"the file must hold {wanted}; it holds {files.holds(names)}")
        return split, keys[0], get(keys[0], "floating point"), get(prefix + "labels", "integers")


def _from_csv(path):
    """(None, "logits" or "probs", scores, labels) of a .csv file: a header, then a line an example."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        try:
            kind, label, columns = _columns(next(lines, []))
            rows = [_row(row, lines.line_num, kind, label, columns) for row in lines if row]
        except UnicodeDecodeError as error:
            raise ValueError("this .csv file is no text in UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"line {lines.line_num} is damaged ({error})") from error
    if not rows:
        raise ValueError("the file must hold a line for each example, got only a header")
    labels, scores = zip(*rows, strict=True)
    return None, kind, np.array(scores), np.array(labels)


def _columns(header):
    """(kind, place of the label, (number of columns, places of the scores in the order of classes)) of a .csv."""
    header = [name.strip() for name in header]
    found = {kind: [n for n in header if re.fullmatch(rf"{kind[:-1]}_\d+", n)] for kind in KINDS}
    kinds = [kind for kind in KINDS if found[kind]]
    if header.count("label") != 1 or len(kinds) != 1:
        wanted = "one label, and either logit_0, logit_1 … or prob_0, prob_1 …"
        raise ValueError(f"the first line must name the columns {wanted}, between commas; got {files.holds(header)}")
    names = [f"{kinds[0][:-1]}_{k}" for k in range(len(found[kinds[0]]))]
    wrong = [name for name in names if header.count(name) != 1]
    if wrong:
        given = f"{header.count(wrong[0])} times" if wrong[0] in header else "none"
        raise ValueError(f"the columns {names[0]} … {names[-1]} must each be there once, got {wrong[0]} {given}")
    return kinds[0], header.index("label"), (len(header), [header.index(name) for name in names])


def _row(row, line, kind, label, columns):
    """The label and the scores of one line."""
    count, places = columns
    if len(row) != count:
        raise ValueError(f"line {line} must have {count} cells, as the first line, got {len(row)}")
    if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", row[label]):
        raise ValueError(f"line {line}: label must be an integer, got {row[label]!r:.40}")
    try:
        return int(row[label]), np.array([row[place] for place in places], dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"line {line}: {kind} must be numbers ({error})") from error


def _check_scores(scores, key, kind):
    """Raise ValueError unless scores are floating point numbers (N, K) and fit for logits or probs."""
    if scores.dtype.kind != "f":
        raise ValueError(f"{key} must be floating point, got dtype {scores.dtype}")
    if scores.ndim != 2 or len(scores) == 0 or scores.shape[1] < 2:
        raise ValueError(f"{key} must have shape (N, K) with N ≥ 1 examples and K ≥ 2 classes, got {scores.shape}")
    if kind == "probs":
        check_distributions(scores, key)
    elif not max(float(scores.max()), -float(scores.min())) < LARGEST:  # false for NaN
        wrong = int((~(np.abs(scores) < LARGEST)).sum())
        raise ValueError(f"{key} must be finite, got {wrong} of {scores.size} entries NaN, infinite or above 1e100")


def _check_labels(labels, name, scores, key):
    """Raise ValueError unless labels are integers (N,), each the number of a class."""
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers (class indices), got dtype {labels.dtype}")
    if labels.shape != scores.shape[:1]:
        raise ValueError(f"{name} must have shape ({len(scores)},) for {key} {scores.shape}, got {labels.shape}")
    last = scores.shape[1] - 1
    if labels.min() < 0 or labels.max() > last:
        raise ValueError(f"{name} must lie in [0, {last}], got {labels.min()} … {labels.max()}")


# --- measuring


def make(scores, num_bins=15):
    """The report on `Scores`: what `measure` finds, and under "advice" what `advise` says of it."""
    report = measure(scores, num_bins)
    return report | {"advice": advise(report)}


def measure(scores, num_bins=15):
    """All numbers of a report on `Scores`, as a dict that JSON can hold; None is a number that does not exist.

    Keys: file, scores, split, examples, classes, settings, measures (each a dict with value and perhaps low and high),
    bins, temperature, gaps, notes. num_bins: of equal width, 1 to 1000. Raises TypeError or ValueError for another.
    """
    if check_int(num_bins, "--bins", 1) > MOST_BINS:
        raise ValueError(f"--bins must lie in [1, {MOST_BINS}], got {num_bins}")
    labels, (probs, nll) = scores.labels, _probs_and_nll(scores)
    bins = calibration.reliability_bins(probs, labels, num_bins)
    report = {
        "file": scores.file,
        "scores": scores.key,
        "split": scores.split,
        "examples": len(labels),
        "classes": probs.shape[1],
        "settings": {"lsbook": __version__, "bins": num_bins, **SETTINGS},
        "measures": _measures(probs, labels, nll, bins),
        "bins": _bins_as_dict(bins),
    }
    report["notes"] = _notes(scores, report)
    del probs  # before others of its size are made
    logits, problem = _logits(scores)
    if problem:
        return report | {"temperature": {"problem": problem}, "gaps": {"problem": problem}}
    return report | {"temperature": _temperature(logits, labels, num_bins), "gaps": _gaps(logits, labels)}


def _probs_and_nll(scores):
    """Probabilities (N, K), and −ln p of each label (N,): infinite only where probs are given, and 0."""
    rows = np.arange(len(scores.labels))
    if scores.kind == "probs":
        with np.errstate(divide="ignore"):
            return scores.scores, -np.log(scores.scores[rows, scores.labels].astype(np.float64))
    log_probs = log_softmax(scores.scores.astype(np.float64), axis=1)
    nll = -log_probs[rows, scores.labels]
    return np.exp(log_probs, out=log_probs), nll


def _measures(probs, labels, nll, bins):
    """The dict of measures of probs (N, K) and labels (N,): name → dict with value and perhaps low and high."""
    right = probs[np.arange(len(labels)), labels].astype(np.float64)
    floor = calibration.noise_floor(probs, len(bins.counts), SETTINGS["resamples"], SETTINGS["seed"])
    return {
        **_accuracy_and_confidence(calibration.reliability_bins(probs, labels, 1), probs),
        "nll": _mean(nll),
        "brier": _mean((probs.astype(np.float64) ** 2).sum(axis=1) - 2 * right + 1),
        "ece": {"value": bins.error} | _ends(*_bootstrap(probs, labels, len(bins.counts))),
        "noise_floor": {"value": floor.mean, "high": floor.high},
        "debiased_ece": {"value": calibration.debiased_ece(probs, labels, len(bins.counts))},
        "smooth_ece": {"value": calibration.smooth_ece(probs, labels)},
        "classwise_ece": {"value": calibration.classwise_ece(probs, labels, len(bins.counts))},
    }


def _bootstrap(probs, labels, num_bins):
    settings = {"num_resamples": SETTINGS["resamples"], "seed": SETTINGS["seed"], "confidence": SETTINGS["level"]}
    return calibration.bootstrap_ece(probs, labels, num_bins, **settings)


def _accuracy_and_confidence(single, probs):
    """Accuracy with its Clopper–Pearson interval, mean confidence, and their difference, from a single bin."""
    accuracy, (low,), (high,) = float(single.accuracy[0]), *single.accuracy_interval(SETTINGS["level"])
    confidence = _mean(probs.max(axis=1).astype(np.float64))
    difference = {"value": confidence["value"] - accuracy}
    ends = _ends(confidence["value"] - high, confidence["value"] - low)
    return {
        "accuracy": {"value": accuracy} | _ends(low, high),
        "mean_confidence": confidence,
        "confidence_minus_accuracy": difference | ends,
    }


def _ends(low, high):
    return {"low": float(low), "high": float(high)}


def _mean(values):
    """Mean and its normal interval; no interval of a single value; None where a value is infinite."""
    if not np.isfinite(values).all():
        return {"value": None}
    mean = float(values.mean())
    if len(values) == 1:
        return {"value": mean}
    half = norm.ppf((1 + SETTINGS["level"]) / 2) * values.std(ddof=1) / math.sqrt(len(values))
    return {"value": mean} | _ends(mean - half, mean + half)


def _bins_as_dict(bins):
    """Edges, counts, sums, and what follows from them, as lists; None where a bin is empty."""
    low, high = bins.accuracy_interval(SETTINGS["level"])
    sums = {name: getattr(bins, name).tolist() for name in ("edges", "counts", "sum_confidence", "num_correct")}
    rest = {"confidence": bins.confidence, "accuracy": bins.accuracy, "low": low, "high": high}
    return sums | {name: [None if math.isnan(x) else x for x in values.tolist()] for name, values in rest.items()}


def _notes(scores, report):
    """What a reader should know before the numbers: a list of sentences."""
    array, n, best = scores.scores, report["examples"], report["measures"]["accuracy"]["high"]
    impossible = report["measures"]["nll"]["value"] is None
    sums_to_one = scores.kind == "logits" and np.abs(array.sum(axis=1, dtype=np.float64) - 1).max() < 1e-3
    notes = {
        "These are training examples: they say little about new ones.": scores.split == "train",
        f"Every row of {scores.key} sums to 1 and none is negative: probabilities must be named probs.": (
            sums_to_one and array.min() >= 0
        ),
        "Labels with probability 0: the negative log-likelihood is infinite.": impossible,
        "Fewer right than guessing gets: do scores and labels belong together?": best < 1 / report["classes"],
        "More bins than examples: the ECE is then mostly chance.": report["settings"]["bins"] > n,
    }
    return [note for note, holds in notes.items() if holds]


def _logits(scores):
    """Logits (N, K) in float64, or None and why there are none: ln p will do, unless a p is 0."""
    if scores.kind == "logits":
        return scores.scores.astype(np.float64), ""
    zeros = int((scores.scores == 0).sum())
    if zeros:
        return None, f"{zeros} probabilities are exactly 0, and have no logarithm: give logits instead"
    return np.log(scores.scores.astype(np.float64)), ""


def _temperature(logits, labels, num_bins):
    """A temperature fitted on a random half of the examples, and what it does to the other half: a dict."""
    order = np.random.default_rng(SETTINGS["seed"]).permutation(len(labels))
    fitted, held_out = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    sizes = {"fitted_on": len(fitted), "held_out": len(held_out)}
    if not len(fitted):
        return sizes | {"problem": "one example cannot be split into a half to fit on and a half to report on"}
    fit, other = (calibration.temperature_fit(logits[half], labels[half]) for half in (fitted, held_out))
    if fit.problem:
        return sizes | {"problem": f"no temperature fits the first half: {fit.problem}"}
    value = {"value": fit.temperature} | ({} if other.problem else {"other_half": other.temperature})
    return {"value": value, **sizes, **_before_and_after(logits[held_out], labels[held_out], fit, num_bins)}


def _before_and_after(logits, labels, fit, num_bins):
    """NLL and ECE of logits (N, K) at temperature 1 and at the fitted one."""
    found, each = {}, []
    for when, temperature in (("before", 1.0), ("after", fit.temperature)):
        log_probs = log_softmax(logits / temperature, axis=1)
        each.append(-log_probs[np.arange(len(labels)), labels])
        probs = np.exp(log_probs, out=log_probs)
        floor = calibration.noise_floor(probs, num_bins, SETTINGS["resamples"], SETTINGS["seed"])
        found[f"nll_{when}"] = _mean(each[-1])
        ece = calibration.expected_calibration_error(probs, labels, num_bins)
        found[f"ece_{when}"] = {"value": ece, "floor": floor.high}
    return found | {"nll_change": _mean(each[1] - each[0])}


def _gaps(logits, labels):
    """Histogram and median of the logit gaps, and the α whose optimal gap is the median: a dict."""
    gaps = calibration.logit_gaps(logits, labels)
    first, low, median, high, last = np.quantile(gaps, [0.001, 0.25, 0.5, 0.75, 0.999]).tolist()
    start, end = min(first, 0.0), max(last, 0.0)
    pad = 0.02 * (end - start) or 1.0
    counts, edges = np.histogram(gaps, GAP_BINS, (start - pad, end + pad))
    outside = gaps.size - int(counts.sum())
    alpha = float(theory.alpha_from_gap(median, logits.shape[1])) if median >= 0 else None
    return {
        "median": {"value": median} | _ends(low, high),
        "alpha": {"value": alpha},
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "outside": outside,
    }


# --- advice


def advise(report):
    """What the numbers of `measure` say: a dict with verdict and words on calibration and on a temperature."""
    verdict, words = _on_calibration(report)
    helps, more = _on_temperature(report["temperature"])
    return {"calibration": verdict, "words": words, "temperature": helps, "temperature_words": more}


def _on_calibration(report):
    """(verdict, words): the rule is `RULE`."""
    found, n = report["measures"], report["examples"]
    gap, ece, floor = found["confidence_minus_accuracy"], found["ece"]["value"], found["noise_floor"]["high"]
    furthest = max(-gap["low"], gap["high"])
    near, far = sorted((abs(gap["low"]), abs(gap["high"])))
    size = f"by {abs(gap['value']):.4f} (95 % interval {near:.4f} to {far:.4f})"
    little = " That is little: less than 2 percentage points." if furthest < SMALL else ""
    chance = f"The ECE is {ece:.4f}; a calibrated network with these confidences has at most {floor:.4f} in 19 of"
    chance += " 20 samples of this size."
    if gap["low"] > 0:
        return "over-confident", f"Mean confidence is above accuracy {size}.{little} {chance}"
    if gap["high"] < 0:
        return "under-confident", f"Mean confidence is below accuracy {size}.{little} {chance}"
    if ece > floor:
        words = "Confidence agrees with accuracy on the whole, but not bin by bin: too high in some, too low in others."
        return "mixed", f"{words} {chance}"
    if max(furthest, floor) <= SMALL:
        return "nothing to see", f"Mean confidence and accuracy agree to within 2 percentage points. {chance}"
    enough = _round_up(n * (max(furthest, floor) / SMALL) ** 2)
    words = f"{_examples(n)} cannot show a miscalibration below {max(furthest, floor):.4f}. To see 2 percentage points"
    return "cannot tell at this n", f"{words} takes about {enough:,} examples. {chance}"


def _examples(n):
    return f"{n:,} example{'s' * (n != 1)}"


def _round_up(number):
    """A whole number with two digits, not below `number`."""
    power = 10 ** max(math.floor(math.log10(number)) - 1, 0)
    return math.ceil(number / power) * power


def _on_temperature(found):
    """(verdict, words) on what a temperature does to the held-out half."""
    if "problem" in found:
        return "left out", f"{found['problem'][0].upper()}{found['problem'][1:]}."
    before, after, change = found["nll_before"], found["nll_after"], found["nll_change"]
    moves = f"the NLL of the held-out half from {before['value']:.4f} to {after['value']:.4f}"
    ece = f"its ECE from {found['ece_before']['value']:.4f} to {found['ece_after']['value']:.4f}"
    both = f"Dividing the logits by T = {found['value']['value']:.4g} takes {moves}, and {ece}."
    if change.get("high", math.inf) < 0:
        left, floor = found["ece_after"]["value"], found["ece_after"]["floor"]
        rest = f" That is above its noise floor, {floor:.4f}: one T may not repair all." if left > floor else ""
        return "helps", f"{both}{rest} The predicted classes stay as they are."
    if change.get("low", -math.inf) > 0:
        return "harms", f"{both} That is worse: the two halves are not alike, or too few to fit on."
    return "no clear effect", f"{both} That may be chance: the interval of the change of NLL holds 0."


RULE = (
    "Two signs are looked at: the 95 % interval of confidence − accuracy, and whether the ECE is above the upper level "
    "of its noise floor. If the interval lies above 0, the verdict is over-confident; if below 0, under-confident. If "
    "it holds 0 and the ECE is above its noise floor, the verdict is mixed. If neither sign speaks, it is nothing to "
    f"see where the interval lies within ±{SMALL:g} and the noise floor is no higher than {SMALL:g}. Otherwise it is "
    f"cannot tell at this n: there are too few examples to exclude a difference of {100 * SMALL:g} percentage points. "
    "Each sign errs for at most one calibrated network in twenty. A temperature helps (or harms) if the 95 % interval "
    "of the change of NLL on the held-out half lies below (or above) 0."
)


# --- showing: each number in one form, in the terminal as on the page


def _number(value):
    return "∞" if value is None else f"{value:z.4f}".replace("-", "−")


def _strength(alpha):
    """A smoothing strength with two digits, a small one with a power of ten."""
    if alpha is None:
        return "none"
    digits, _, power = f"{alpha:#.2g}".partition("e")
    return f"{digits} × 10{str(int(power)).translate(_RAISED)}" if power else digits


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _interval(value):
    return f"{_number(value['low'])} to {_number(value['high'])}"


def lines(report):
    """The lines of the table: (words, number, what stands beside it, explanation), all of them text."""
    found = []
    for path, (words, explanation) in LINES.items():
        part, name = path.split(".")
        value = report[part].get(name)
        if value is not None:
            found.append((words, *_cells(name, value), explanation))
    return found


def _cells(name, value):
    """The number, and what stands beside it."""
    if name == "value":
        return f"{value['value']:.4g}", f"other half {value['other_half']:.4g}" if "other_half" in value else ""
    if name == "alpha":
        return _strength(value["value"]), ""
    if name == "noise_floor":
        return _number(value["value"]), f"up to {_number(value['high'])}"
    if "floor" in value:
        return _number(value["value"]), f"noise floor up to {_number(value['floor'])}"
    if name == "median":
        return _number(value["value"]), f"middle half {_interval(value)}"
    return _number(value["value"]), _interval(value) if "low" in value else ""


def heading(report):
    """One line on what was measured."""
    return f"{report['file']}: {report['scores']}, {_examples(report['examples'])}, {report['classes']:,} classes"


def table(report):
    """The report for a terminal: its heading, notes, and a `plots.Table` as text."""
    rows = [(words, number, beside) for words, number, beside, _ in lines(report)]
    shown = plots.table_of_rows(("", "value", "95 % interval"), rows)
    shown.align[1] = "right"
    notes = "".join(f"\n{_wrapped('Note: ' + note)}" for note in report["notes"])
    return f"{heading(report)}{notes}\n\n{shown!r}"


def advice_text(report):
    """The advice for a terminal, in lines of at most 84 characters."""
    advice = report["advice"]
    texts = (
        f"{advice['calibration'].capitalize()}. {advice['words']}",
        f"Temperature: {advice['temperature']}. {advice['temperature_words']}",
    )
    return "\n".join(map(_wrapped, texts))


def _wrapped(text):
    return textwrap.fill(text, 84, break_long_words=False, break_on_hyphens=False)


# --- the page

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #5c5c5c; --line: #d5d5d5; --tint: #f2f5f8;
  --blue: #0072b2; --orange: #b86e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --paper: #17191c; --faint: #a8a8a8; --line: #3d4147;
  --tint: #20252b; --blue: #56b4e9; --orange: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1.2rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.what, .about, figcaption, summary { color: var(--faint); }

.verdict { background: var(--tint); border-left: .35rem solid var(--blue); padding: .8rem 1rem; margin: 1rem 0; }
.verdict p { margin: .3rem 0; }
.verdict strong { font-size: 1.15rem; }
.note { border-left: .35rem solid var(--orange); padding: .2rem 1rem; margin: 1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .5rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
.measures td { border-bottom: 0; padding-bottom: 0; }
.measures .about td { border-bottom: 1px solid var(--line); padding: 0 .5rem .4rem; font-size: .85rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.beside { font-variant-numeric: tabular-nums; }
.what { overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; max-width: 35rem; height: auto; margin: 0 auto; }
figcaption { font-size: .92rem; margin-top: .4rem; }
details { margin: .6rem 0; font-size: .9rem; }
summary { cursor: pointer; }
"""
# The colours of the figures follow the page's, in light and dark.
COLORS = {plots.INK: "var(--ink)", plots.SMOOTHED: "var(--blue)", plots.ORANGE: "var(--orange)"}


def page(report):
    """The report as one HTML page, a str: without scripts, and nothing in it is loaded from elsewhere."""
    parts = {
        "The numbers": _numbers_as_html(report),
        "Reliability": _reliability_as_html(report),
        "Logit gaps": _gaps_as_html(report),
        "How this was found": f"<p>{html.escape(RULE)}</p>\n<p>{html.escape(_method(report))}</p>",
    }
    body = "\n".join(f"<h2>{title}</h2>\n{part}" for title, part in parts.items())
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Calibration of {html.escape(report["file"])}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Calibration report</h1>
<p class="what">{html.escape(heading(report))}</p>
{_advice_as_html(report)}
{body}
</body>
</html>
"""
    return text.replace(" %", "\u00a0%")  # so that no line ends between number and sign


def _advice_as_html(report):
    advice = {name: html.escape(words) for name, words in report["advice"].items()}
    notes = "".join(f'<p class="note">{html.escape(note)}</p>\n' for note in report["notes"])
    return (
        f'{notes}<div class="verdict">\n<p><strong>{advice["calibration"].capitalize()}</strong></p>\n'
        f"<p>{advice['words']}</p>\n<p><strong>A temperature: {advice['temperature']}</strong></p>\n"
        f"<p>{advice['temperature_words']}</p>\n</div>"
    )


def _method(report):
    """One paragraph on settings, halves and sources of the intervals."""
    settings, temperature = report["settings"], report["temperature"]
    halves = ""
    if "value" in temperature:
        halves = f" The random halves for the temperature have {temperature['fitted_on']:,} examples to fit on and"
        halves += f" {temperature['held_out']:,} to report on."
    kind = report["scores"].rpartition("_")[2]
    logs = " Logits are the logarithms of the given probabilities." if kind == "probs" else ""
    return (
        f"Bins: {settings['bins']} of equal width; one on an edge belongs to the lower bin. Intervals are for 95 %: "
        "Clopper–Pearson for accuracies, and with it for confidence − accuracy; percentiles of "
        f"{settings['resamples']:,} bootstrap resamples for the ECE; mean ± 1.96 standard errors for the others. The "
        f"noise floor is over {settings['resamples']:,} draws of labels. All random numbers start from seed "
        f"{settings['seed']}, so the same file gives the same page.{halves}{logs} Made by lsbook {settings['lsbook']}."
    )


def _numbers_as_html(report):
    head = ("measure", "value", "95 % interval")
    rows = []
    for words, number, beside, explanation in lines(report):
        cells = f'<td class="number">{number}</td><td class="beside">{html.escape(beside)}</td>'
        rows.append(f"<tr><td>{html.escape(words)}</td>{cells}</tr>")
        rows.append(f'<tr class="about"><td colspan="3">{html.escape(explanation)}</td></tr>')
    return _table_as_html(head, rows, "measures")


def _table_as_html(head, rows, name="figure"):
    names = "".join(f"<th{_NUMBER if word == 'value' else ''}>{html.escape(word)}</th>" for word in head)
    body = "\n".join(rows)
    return f'<div class="wide"><table class="{name}">\n<tr>{names}</tr>\n{body}\n</table></div>'


_NUMBER = ' class="number"'


def _row_as_html(cells):
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _figure_as_html(drawn, caption, head, rows):
    """A figure, its caption, and the table of what it shows, folded."""
    listed = _table_as_html(head, [_row_as_html(row) for row in rows])
    details = f"<details><summary>The numbers of this figure</summary>{listed}</details>"
    return f"<figure>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure>\n{details}"


def _reliability_as_html(report):
    bins, found = report["bins"], report["measures"]
    rows, below = [], 0
    for b, count in enumerate(bins["counts"]):
        if count:
            mean, right, low, high = (bins[name][b] for name in ("confidence", "accuracy", "low", "high"))
            below += right < mean
            span = f"{bins['edges'][b]:.3f} to {bins['edges'][b + 1]:.3f}"
            rows.append((span, f"{count:,}", _number(mean), _number(right), f"{_number(low)} to {_number(high)}"))
    alt = f"Reliability diagram. {len(rows)} bins hold examples; accuracy is below confidence in {below} of them."
    caption = (
        "Figure 1. Above: in each bin of confidence, how often the network is right (points), with a 95 % interval of "
        "this (bands). A calibrated network would lie on the dashed diagonal; below it is over-confident. Below: how "
        f"many examples each bin holds. The ECE {_number(found['ece']['value'])} is the mean distance of the points "
        "from the diagonal, weighted by the examples."
    )
    drawn = svg(draw_reliability(report), "reliability", alt)
    return _figure_as_html(drawn, caption, ("confidence", "examples", "mean", "accuracy", "95 % interval"), rows)


def _gaps_as_html(report):
    gaps = report["gaps"]
    if "problem" in gaps:
        return f"<p>Left out: {html.escape(gaps['problem'])}.</p>"
    middle, (low, high) = _number(gaps["median"]["value"]), (_number(gaps["median"][end]) for end in ("low", "high"))
    alt = f"Histogram of the logit gaps. Their median is {middle} nats, and half of them lie between {low} and {high}."
    spans = zip(gaps["edges"][:-1], gaps["edges"][1:], gaps["counts"], strict=True)
    rows = [(f"{_number(start)} to {_number(end)}", f"{count:,}") for start, end, count in spans if count]
    drawn = svg(draw_gaps(report), "gaps", alt)
    return _figure_as_html(drawn, _on_gaps(report), ("gap (nats)", "gaps"), rows)


def _on_gaps(report):
    """The caption of the histogram of gaps."""
    gaps = report["gaps"]
    total = sum(gaps["counts"]) + gaps["outside"]
    words = f"Figure 2. Logit gaps z_y − z_j between the label and each wrong class, {total:,} of them"
    words += f" ({gaps['outside']:,} outside the axis)" if gaps["outside"] else ""
    alpha = gaps["alpha"]["value"]
    if alpha is None:
        return f"{words}. Their median is below 0, so no smoothing strength fits: most wrong classes beat the label."
    return (
        f"{words}. Dashed: their median, which is the optimal gap ln(1 + K(1 − α)/α) for α = {_strength(alpha)}. "
        "A network trained with label smoothing α is drawn to that one gap for every example and wrong class: the "
        "closer the histogram gathers around the line, the more this network is like one trained with this α; a wide "
        "one speaks for hard targets."
    )


def draw_reliability(report):
    """Figure 1: reliability diagram above, counts below."""
    parts = (np.array(report["bins"][name]) for name in ("edges", "counts", "sum_confidence", "num_correct"))
    bins = calibration.Bins(*parts)
    with _own_style():
        figure = Figure(figsize=(5.6, 5.9), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        plots.draw_reliability(above, bins)
        plots.draw_counts(below, bins)
    return figure


def draw_gaps(report):
    """Figure 2: histogram of the logit gaps, with the optimal gap of the α that fits as a dashed line."""
    gaps, edges = report["gaps"], np.array(report["gaps"]["edges"])
    height = np.array(gaps["counts"]) / (sum(gaps["counts"]) + gaps["outside"]) / np.diff(edges)
    with _own_style():
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        ax = figure.subplots()
        ax.stairs(height, edges, color=plots.SMOOTHED, fill=True, alpha=0.25)
        ax.stairs(height, edges, color=plots.SMOOTHED, linewidth=2)
        ax.vlines(gaps["median"]["value"], 0, 1.12 * height.max(), color=plots.INK, linestyle="--", linewidth=1.3)
        alpha = gaps["alpha"]["value"]
        name = "median" if alpha is None else f"optimal gap of α = {_strength(alpha)}"
        right = gaps["median"]["value"] > (edges[0] + edges[-1]) / 2
        look = {"ha": "right" if right else "left", "va": "center", "fontsize": 12}
        place = gaps["median"]["value"], 1.16 * height.max()
        ax.annotate(name, place, xytext=(-6 if right else 6, 0), textcoords="offset points", **look)
        ax.set(xlim=edges[[0, -1]], ylim=(0, 1.25 * height.max()), yticks=[])
        ax.set(xlabel="logit gap (nats)", ylabel="density")
    return figure


def _own_style():
    """The book's style for a block, whatever the reader's own; every line has a colour that the page can change."""
    ink = {f"{part}.color": plots.INK for part in ("xtick", "ytick")} | {"axes.edgecolor": plots.INK}
    spines = {f"axes.spines.{side}": False for side in ("top", "right")}
    fixed = {"text.parse_math": False, "svg.hashsalt": "lsbook", "svg.fonttype": "path", "font.family": ["DejaVu Sans"]}
    return matplotlib.rc_context(plots.STYLE | ink | spines | fixed)


def svg(figure, name, alt):
    """A figure as an <svg> element with words for those who do not see it; ids in it start with `name`."""
    buffer = io.StringIO()
    with _own_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    (box,) = re.findall(r"viewBox=\"[^\"]*\"", text)
    text = re.sub(r"\A<svg[^>]*>", f'<svg {box} role="img" aria-label="{html.escape(alt)}">', text)
    text = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    for color, variable in COLORS.items():
        text = re.sub(rf"(?i)(fill|stroke): {color}\b", rf"\1: {variable}", text)
    return text.strip()


# --- writing


def outputs(out, numbers=None):
    """The paths (page, JSON) for the options --out and --json; without the latter, the page's with another ending.

    Raises ValueError unless they end in .html (or .htm) and .json, OSError if one is a folder.
    """
    numbers = Path(out).with_suffix(".json") if numbers is None else Path(numbers)
    for option, path, suffixes in (("--out", Path(out), (".html", ".htm")), ("--json", numbers, (".json",))):
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"{option} must end in {suffixes[0]}, got {str(path)!r}")
        if path.is_dir():
            raise IsADirectoryError(f"{option} must be a file, got the folder {path}")
    return Path(out), numbers


def as_json(report):
    """The report as JSON text, the same for the same report; numbers that do not exist are null."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def save(report, out, numbers):
    """Write the page to `out` and the JSON to `numbers`: each whole, and none if there is no room for both."""
    texts, staged = {out: page(report), numbers: as_json(report)}, {}
    try:
        for path, text in texts.items():
            staged[path] = files.stage(path, text.encode())
        for path, part in staged.items():
            os.replace(part, path)
    finally:
        for part in staged.values():
            part.unlink(missing_ok=True)
