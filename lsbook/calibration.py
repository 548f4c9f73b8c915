"""How right and how sure a classifier is: pure functions of logits or probs (N, K) and labels (N,), numpy or torch.

All raise TypeError or ValueError unless logits are finite real numbers (N, K) with N ≥ 1 and K ≥ 2, probs rows that
sum to 1, and labels integers (N,) in 0 … K − 1; the error names the argument and what was given. The names say
which is which: probabilities are never guessed from values.
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.fft import dct, idct
from scipy.optimize import brentq
from scipy.special import erf, log_softmax
from scipy.stats import beta

from .checks import as_numpy, check_array, check_choice, check_int, check_number, check_seed, real_array
from .information import check_distributions

FEW = 1_000  # examples for a first guess of a temperature
MANY = 2**16  # logits for which float32 finds the temperature as well as float64
LARGEST_LOGIT = 1e300  # differences of larger ones may be infinite
DRAWS = 2**20  # of a bootstrap held in memory at once, if one resample has no more


def _array(logits):
    logits = real_array(logits, "logits")
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape (N, K) with N ≥ 1 and K ≥ 2, got {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite, got NaN or infinity")
    if np.abs(logits).max() > LARGEST_LOGIT:  # their differences must be finite too
        raise ValueError(f"logits must not exceed {LARGEST_LOGIT:g} in size, got {np.abs(logits).max():g}")
    return logits


def _labels(labels, scores, name):
    """labels as an array (N,) of class indices for scores (N, K), which the caller calls `name`."""
    try:
        labels = as_numpy(labels)
    except ValueError as error:  # lists of uneven length
        raise ValueError("labels must have shape (N,), got lists of uneven length") from error
    if labels.shape != scores.shape[:1]:
        raise ValueError(f"labels must have shape (N,) for {name} (N, K), got {labels.shape} for {scores.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers (class indices), got dtype {labels.dtype}")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels must lie in [0, {scores.shape[1] - 1}], got {labels.min()} to {labels.max()}")
    return labels


def _arrays(logits, labels):
    logits = _array(logits)
    return logits, _labels(labels, logits, "logits")


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


# --- calibration: does a prediction made with confidence c turn out right with frequency c?


def brier_score(probs, labels):
    """Mean of Σ_k (p_k − [k = y])², a float in [0, 2]: 0 where the network is sure and right. probs (N, K).

    Source: Brier (1950).
    """
    probs, labels = _probs_and_labels(probs, labels)
    probs[np.arange(len(labels)), labels] -= 1  # in the copy that the check made; p − y keeps what p² − 2p + 1 cancels
    return float(np.einsum("ij,ij->", probs, probs) / len(labels))


@dataclass(frozen=True)
class Bins:
    """Examples sorted into bins by confidence: what a reliability diagram and the ECE are made of.

    Bin b holds the confidences in (edges[b], edges[b + 1]], the first one also 0. Arrays over the B bins, edges of
    B + 1. Bins with equal edges can be added: those of two batches give those of both together.
    """

    edges: np.ndarray
    counts: np.ndarray  # examples
    sum_confidence: np.ndarray
    num_correct: np.ndarray

    @property
    def confidence(self):
        """Mean confidence of each bin, NaN where it is empty."""
        return _mean(self.sum_confidence, self.counts)

    @property
    def accuracy(self):
        """Fraction of right predictions in each bin, NaN where it is empty."""
        return _mean(self.num_correct, self.counts)

    @property
    def error(self):
        """The expected calibration error ``Σ_b n_b/N |accuracy_b − confidence_b|``, a float in [0, 1]."""
        return float(np.abs(self.num_correct - self.sum_confidence).sum() / self.counts.sum())

    def accuracy_interval(self, confidence=0.95):
        """Clopper–Pearson intervals (low, high) of the accuracies, NaN where a bin is empty."""
        tail = (1 - check_number(confidence, "confidence", 0, 1)) / 2
        right, wrong = self.num_correct, self.counts - self.num_correct
        with np.errstate(invalid="ignore"):  # an empty bin
            low = np.where(right > 0, beta.ppf(tail, right, wrong + 1), 0.0)
            high = np.where(wrong > 0, beta.ppf(1 - tail, right + 1, wrong), 1.0)
        empty = self.counts == 0
        return np.where(empty, np.nan, low), np.where(empty, np.nan, high)

    def __add__(self, other):
        if not isinstance(other, Bins):
            return NotImplemented
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("bins can be added only if they have the same edges")
        sums = (mine + its for mine, its in zip(self._sums(), other._sums(), strict=True))
        return Bins(self.edges, *sums)

    def _sums(self):
        return self.counts, self.sum_confidence, self.num_correct


def reliability_bins(probs, labels, num_bins=15, strategy="width"):
    """Predictions sorted by confidence into bins of equal width, or of (about) equal mass: `Bins`.

    strategy "width": edges 0, 1/B, …, 1. "mass": edges at quantiles of the confidences; where many are equal they
    share a bin, and others may be empty. probs (N, K), labels (N,), num_bins ≥ 1. Source: Guo et al. (2017).
    """
    return confidence_bins(*_top(*_probs_and_labels(probs, labels)), num_bins, strategy)


def confidence_bins(confidence, correct, num_bins=15, strategy="width"):
    """`reliability_bins` of predictions given by confidence (N,) in [0, 1] and whether each is right, (N,): `Bins`.

    For predictions among so many classes that their probabilities are not kept, such as the words of a translation.
    """
    confidence, correct = check_array(confidence, "confidence", 0, 1), as_numpy(correct)
    if confidence.ndim != 1 or correct.shape != confidence.shape:
        raise ValueError(f"confidence and correct must have shape (N,), got {confidence.shape} and {correct.shape}")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(f"correct must hold true or false for each prediction, got {correct!r:.80}")
    return _sorted_into(_edges(confidence, num_bins, strategy), confidence, correct)


def expected_calibration_error(probs, labels, num_bins=15, strategy="width"):
    """ECE = ``Σ_b n_b/N |accuracy_b − confidence_b|`` over `reliability_bins`: a float in [0, 1].

    Chance alone keeps it above 0, see `noise_floor`. Source: Naeini et al. (2015); Guo et al. (2017).
    """
    return reliability_bins(probs, labels, num_bins, strategy).error


def classwise_ece(probs, labels, num_bins=15):
    """Mean over classes k of the ECE of the statements "it is k, with probability p_k": a float in [0, 1].

    Equal-width bins. Source: Kull et al. (2019).
    """
    probs, labels = _probs_and_labels(probs, labels)
    edges = _edges(None, num_bins, "width")
    return float(np.mean([_sorted_into(edges, p, labels == k).error for k, p in enumerate(probs.T)]))


def debiased_ece(probs, labels, num_bins=15, strategy="width"):
    """The ECE less an estimate of what chance adds to it; may be below 0.

    In a bin of n examples with accuracy a and confidence c, chance spreads the accuracy by s = √(a(1 − a)/n). Let d be
    the distance of a from c. If a were the truth, the distance seen would on average be
    s √(2/π) e^{−d²/2s²} + d erf(d/(s√2)), which is more than d; that excess is taken off.
    Source: Kumar et al. (2019), section 5, with the normal mean in closed form.
    """
    bins = reliability_bins(probs, labels, num_bins, strategy)
    kept = bins.counts > 0
    n, accuracy, gap = bins.counts[kept], bins.accuracy[kept], np.abs(bins.accuracy - bins.confidence)[kept]
    spread = np.sqrt(accuracy * (1 - accuracy) / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(spread > 0, gap / spread, np.inf)
    average = spread * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + gap * erf(ratio / np.sqrt(2))
    return float((n * (2 * gap - average)).sum() / n.sum())


def smooth_ece(probs, labels, cells=4096):
    """Calibration error without bins: the residuals [right] − confidence, smoothed along the confidence.

    smECE_σ is the integral over [0, 1] of the absolute smoothed residual, by a Gaussian kernel of width σ reflected at
    0 and 1; the smooth ECE is the σ for which smECE_σ = σ. On a grid of `cells`, in the cosine transform, where the
    kernel multiplies frequency k by e^{−(πkσ)²/2}. A float in [0, 1]. Source: Błasiok and Nakkiran (2024).
    """
    confidence, correct = _top(*_probs_and_labels(probs, labels))
    cells = check_int(cells, "cells", 1)
    place = np.minimum((confidence * cells).astype(int), cells - 1)
    waves = dct(np.bincount(place, correct - confidence, cells) / len(correct))
    frequency = np.pi * np.arange(cells)

    def excess(width):
        return np.abs(idct(waves * np.exp(-((frequency * width) ** 2) / 2))).sum() - width

    if excess(0.0) <= 0:
        return 0.0
    # Sure and always wrong, it is 1, and rounding may put the excess there above 0.
    return float(brentq(excess, 0.0, 1.0, xtol=1e-9)) if excess(1.0) < 0 else 1.0


class Parts(NamedTuple):
    """A score = calibration + refinement: what saying each bin's accuracy would save, and what would be left."""

    score: float
    calibration: float
    refinement: float


def decompose(probs, labels, score="nll", num_bins=15, strategy="width"):
    """The score of the statement "the prediction is right", split by `reliability_bins`: `Parts`.

    score: "nll", −ln of the probability given to what came true, or "brier", its squared distance from 1. Refinement
    is the score of a forecast that says each bin's accuracy (uncertainty less resolution), calibration what the
    confidences lose against it: at least 0 where a bin's confidences are equal, but below 0 where their order within
    it tells more than its accuracy. The NLL is infinite if a confidence of 1 was wrong.
    Source: Murphy (1973); Bröcker (2009).
    """
    check_choice(score, "score", ("nll", "brier"))
    confidence, correct = _top(*_probs_and_labels(probs, labels))
    edges = _edges(confidence, num_bins, strategy)
    says = _sorted_into(edges, confidence, correct).accuracy[_bin_of(edges, confidence)]
    given, best = (_binary_score(score, forecast, correct) for forecast in (confidence, says))
    return Parts(given, given - best, best)


def _binary_score(score, forecast, correct):
    came_true = np.where(correct, forecast, 1 - forecast)
    with np.errstate(divide="ignore"):
        return float((-np.log(came_true) if score == "nll" else (1 - came_true) ** 2).mean())


# --- how sure are these numbers?


def bootstrap_ece(probs, labels, num_bins=15, num_resamples=1000, seed=0, confidence=0.95):
    """Percentile interval (low, high) of the ECE over resamples of the examples.

    Chance adds to the ECE of a resample as it added to that of the sample, so for small ECEs the interval lies too
    high: read it beside `noise_floor`. Equal-width bins. Source: Efron and Tibshirani (1993).
    """
    top, correct = _top(*_probs_and_labels(probs, labels))
    count, tail = check_int(num_resamples, "num_resamples", 1), (1 - check_number(confidence, "confidence", 0, 1)) / 2
    edges = _edges(top, num_bins, "width")
    bin_of, rng = _bin_of(edges, top), np.random.default_rng(check_seed(seed))
    residuals = [(correct - top)[bin_of == b] for b in np.unique(bin_of)]
    # How many draws fall into each bin is multinomial; within a bin they are drawn one by one.
    sizes = rng.multinomial(len(top), [len(r) / len(top) for r in residuals], size=count)
    sums = (_resampled_sums(rng, r, n) for r, n in zip(residuals, sizes.T, strict=True))
    errors = sum(np.abs(part) for part in sums) / len(top)
    low, high = np.quantile(errors, [tail, 1 - tail])
    return float(low), float(high)


def _resampled_sums(rng, values, sizes):
    """Sums of sizes[i] values drawn with replacement, for every i."""
    if sizes.sum() > DRAWS and len(sizes) > 1:
        return np.concatenate([_resampled_sums(rng, values, half) for half in np.array_split(sizes, 2)])
    dtype = np.uint16 if len(values) <= 2**16 else np.int64
    drawn = values[rng.integers(0, len(values), size=sizes.sum(), dtype=dtype)]
    ends = np.concatenate([[0], np.cumsum(drawn)])[np.cumsum(np.concatenate([[0], sizes]))]
    return np.diff(ends)


class NoiseFloor(NamedTuple):
    """ECE of a network that is calibrated: its mean, and the level that one in twenty samples exceeds."""

    mean: float
    high: float


def noise_floor(probs, num_bins=15, num_resamples=1000, seed=0, strategy="width"):
    """The ECE that a perfectly calibrated network with these confidences would show, by chance alone: `NoiseFloor`.

    Every prediction is right with the probability it claims; labels are drawn anew `num_resamples` times. An ECE below
    `high` is no evidence of miscalibration. Source: Vaicenavicius et al. (2019).
    """
    return confidence_noise_floor(_probs(probs).max(axis=1), num_bins, num_resamples, seed, strategy)


def confidence_noise_floor(confidence, num_bins=15, num_resamples=1000, seed=0, strategy="width"):
    """`noise_floor` of predictions given by their confidence (N,) alone, as `confidence_bins` takes it."""
    top = check_array(confidence, "confidence", 0, 1)
    if top.ndim != 1 or not len(top):
        raise ValueError(f"confidence must have shape (N,) with N ≥ 1, got {top.shape}")
    rng, edges = np.random.default_rng(check_seed(seed)), _edges(top, num_bins, strategy)
    order = np.argsort(top)
    top, counts = top[order], np.bincount(_bin_of(edges, top), minlength=len(edges) - 1)
    starts = np.cumsum(counts)[counts > 0] - counts[counts > 0]
    errors = []
    for _ in range(check_int(num_resamples, "num_resamples", 1)):
        residual = (rng.random(len(top)) < top) - top
        errors.append(np.abs(np.add.reduceat(residual, starts)).sum() / len(top))
    return NoiseFloor(float(np.mean(errors)), float(np.quantile(errors, 0.95)))


# --- temperature scaling


class TemperatureFit(NamedTuple):
    """The temperature with the least NLL, the NLL (nats) at 1 and there, and "" or why it is no minimum."""

    temperature: float
    nll_before: float
    nll_after: float
    problem: str


def temperature_fit(logits, labels):
    """The T > 0 that minimises the NLL of softmax(logits / T): a `TemperatureFit`.

    In β = 1/T the NLL is convex: its slope is the mean of E_p[z] − z_y, its curvature the mean variance of z under p.
    Newton's method on the slope, kept in a bracket, finds its zero. There is none if every label has the largest logit
    (the NLL falls for ever as T → 0; T is then a thousandth of the smallest difference to that logit, and the NLL at
    its limit), or if labels have no larger logits than classes have on average (T → ∞; T is then 1e6 times the largest
    such difference, but at least 1). `problem` says which. logits (N, K), labels (N,).
    """
    below, right = _below(*_arrays(logits, labels))
    inverse, problem = _best(below, right)
    return TemperatureFit(1 / inverse, _nll(below, right, 1.0), _nll(below, right, inverse), problem)


def fit_temperature(logits, labels):
    """The T > 0 that minimises the NLL of softmax(logits / T), a float; see `temperature_fit`.

    Warns (RuntimeWarning) where there is no minimum. Source: Guo et al. (2017).
    """
    inverse, problem = _best(*_below(*_arrays(logits, labels)))
    if problem:
        message = f"no temperature minimises the NLL; stopped at {1 / inverse:g}: {problem}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return 1 / inverse


def _below(logits, labels):
    """Logits less the largest of each row, and of these the labels'."""
    below = logits - logits.max(axis=1, keepdims=True)
    return below, below[np.arange(len(labels)), labels]


def _best(below, right):
    """The β that `temperature_fit` gives, and "" or why it is no minimum."""
    largest = -float(below.min())
    if largest == 0:
        return 1.0, "all logits of an example are equal"
    if not 1e-100 < largest < 1e100:  # squares would overflow or vanish: count in another unit
        unit = 2.0 ** np.frexp(largest)[1]
        inverse, problem = _best(below / unit, right / unit)
        return inverse / unit, problem
    low = min(1e-6 / largest, 1.0)
    if not right.any():
        problem = "every label has the largest logit: the NLL falls for ever as T → 0"
        return -1e3 / float(below[below < 0].max()), problem
    if _falls_for_ever(below, right, low):
        return low, "labels have no larger logits than other classes: the NLL falls for ever as T → ∞"
    return _search(below, right, low), ""


def _nll(below, right, inverse):
    """NLL at β = inverse, for logits less the largest of each row."""
    weights = np.multiply(below, inverse)
    np.exp(weights, out=weights)
    return float((np.log(np.einsum("ij->i", weights)) - inverse * right).mean())


def _slope(below, right, inverse):
    """The slope of the NLL at β = inverse and its curvature, for logits less the largest of each row."""
    weights = np.multiply(below, inverse)
    np.exp(weights, out=weights)
    total = np.einsum("ij->i", weights)  # on short rows faster than `sum`
    weights *= below
    mean = np.einsum("ij->i", weights) / total
    square = np.einsum("ij,ij->i", weights, below) / total
    return float((mean - right).mean(dtype=float)), float((square - mean**2).mean(dtype=float))


def _falls_for_ever(below, right, low):
    """Whether the NLL does not fall from low on; up to there its slope grows by less than 1e-6 of the largest gap."""
    return below.mean() - right.mean() > 1e-6 * below.min() and _slope(below, right, low)[0] >= 0


def _search(below, right, low):
    """The β where the slope is 0: in float32, which is cheaper, from a part of the examples and then from all.

    A last step in float64 makes it exact. Of `MANY` logits the rounding errors of float32 cancel to 1e-7 of β, which
    costs the NLL less than its own rounding; they go without.
    """
    point, many, stride = 1.0, below.size >= MANY, len(right) // FEW
    if 1e-12 < low < 1:  # else the differences are too large or too small for float32
        narrow = below.astype(np.float32), right.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            if stride > 1 and right[::stride].any():
                point, _ = _newton(*(part[::stride] for part in narrow), low, point, 1e-3, turns=20)
            start = point if low < point < np.inf else 1.0
            point, found = _newton(*narrow, low, start, 3e-4 if many else 1e-3, turns=20)
        if many and found and low < point < np.inf:
            return point
    return _newton(below, right, low, point if low < point < np.inf else 1.0)[0]


def _newton(below, right, low, point, tolerance=1e-6, turns=200):
    """The β > low where the slope, negative at low, is 0, and whether it was found within so many turns.

    Some label must lack the largest logit. A step out of the bracket becomes a bisection of its logarithm, but by no
    more than a factor of 8; until there is an upper end, steps are at most thousandfold. Errors are squared: after a
    step of 1e-6 nothing is left to gain.
    """
    high = np.inf
    for _ in range(turns):
        slope, curvature = _slope(below, right, point)
        low, high = (low, point) if slope > 0 else (point, high)
        furthest = min(high, 1e3 * point)
        step = -slope / curvature if curvature > 0 else np.nan
        if not (abs(step) <= tolerance * point or low < point + step < furthest):
            step = (furthest if high == np.inf else max(np.sqrt(low * high), high / 8)) - point
        if abs(step) <= tolerance * point:
            return float(point + step), True
        point += step
    return float(point), False


def _edges(confidence, num_bins, strategy):
    check_choice(strategy, "strategy", ("width", "mass"))
    edges = np.linspace(0, 1, check_int(num_bins, "num_bins", 1) + 1)
    if strategy == "mass":
        edges[1:-1] = np.quantile(confidence, edges[1:-1], method="inverted_cdf")
    return edges


def _bin_of(edges, confidence):
    """The bin of each confidence: (edge, next edge], so one on an edge counts in the lower bin."""
    return np.searchsorted(edges[1:-1], confidence, side="left")


def _sorted_into(edges, confidence, correct):
    place, size = _bin_of(edges, confidence), len(edges) - 1
    sums = (np.bincount(place, weights, size) for weights in (confidence, correct))
    return Bins(edges, np.bincount(place, minlength=size), *sums)


def _mean(total, count):
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def _top(probs, labels):
    """Largest probability of each row, and whether its class (the first of equals) is the label."""
    guess = probs.argmax(axis=1)
    return probs[np.arange(len(guess)), guess], guess == labels


def _probs(probs):
    array = check_distributions(probs, "probs")
    if array.ndim != 2:
        raise ValueError(f"probs must have shape (N, K) with N ≥ 1 and K ≥ 2, got {array.shape}")
    return np.minimum(array, 1.0)  # rounding may put a float16 above


def _probs_and_labels(probs, labels):
    probs = _probs(probs)
    return probs, _labels(labels, probs, "probs")
