"""Verdicts on claims, computed from intervals; and the numbers that the paper reports, with their source."""

import tomllib
from typing import NamedTuple

import numpy as np
from scipy import stats

from . import files
from .checks import check_real, real_array


class Interval(NamedTuple):
    """A mean over n seeds and its confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, spec):
        spec = spec or ".3f"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def mean_interval(values, confidence=0.95):
    """Student's t interval for the mean of n ≥ 2 independent values (one a seed): mean ± t · s/√n.

    Raises ValueError for fewer than two values, NaN, or confidence outside (0, 1); TypeError for what is no number.
    """
    values = real_array(values, "values")
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"values must be at least two finite numbers, one a seed, got {values!r}")
    if not 0 < check_real(confidence, "confidence") < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(values))


def paired_difference(treated, control, confidence=0.95):
    """Interval of the mean of treated − control, where entry i of both comes from the same seed.

    Pairing removes what the two share (split, initial weights, order), so far fewer seeds are needed.
    Raises ValueError for different shapes, and as `mean_interval` does.
    """
    treated, control = real_array(treated, "treated"), real_array(control, "control")
    if treated.shape != control.shape:
        raise ValueError(f"treated and control must be paired, got shapes {treated.shape} and {control.shape}")
    return mean_interval(treated - control, confidence)


def contrast(values, weights, confidence=0.95):
    """Interval of Σ_c w_c · mean over seeds of values[c], for C settings that were all measured with the same n seeds.

    The model is y_cs = m_c + b_s + noise: a seed shifts all settings alike, which weights that sum to 0 cancel. The
    noise is estimated from all settings together, s² = Σ (y_cs − ȳ_c − ȳ_s + ȳ)²/((C − 1)(n − 1)), and the interval is
    Student's with that many degrees of freedom, ± t · s √(Σ w²/n). With two settings and weights 1 and −1 it is
    `paired_difference`; with more it needs fewer seeds, if the noise is the same in all settings and independent.

    values (C, n) with C, n ≥ 2; weights (C,), not all 0, of sum 0. Raises ValueError for others, TypeError for what is
    no number. Source: Box, Hunter and Hunter (2005), chapter 4, randomised blocks.
    """
    values, weights = real_array(values, "values"), real_array(weights, "weights")
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise ValueError(f"values must be finite, of shape (settings, seeds), 2 or more each, got {values!r:.80}")
    if weights.shape != values.shape[:1] or not weights.any() or abs(weights.sum()) > 1e-9 * np.abs(weights).sum():
        raise ValueError(f"weights must be one a setting, of sum 0 and not all 0, got {weights!r:.80}")
    if not 0 < check_real(confidence, "confidence") < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    (settings, seeds), by_setting = values.shape, values.mean(axis=1)
    noise = values - by_setting[:, None] - values.mean(axis=0) + values.mean()
    freedom = (settings - 1) * (seeds - 1)
    error = np.sqrt((noise**2).sum() / freedom * (weights**2).sum() / seeds)
    mean, half = float(weights @ by_setting), float(stats.t.ppf((1 + confidence) / 2, freedom) * error)
    return Interval(mean, mean - half, mean + half, seeds)


def exponential(interval):
    """The interval of a ratio from that of its logarithm: e to the mean and to both ends."""
    mean, low, high = np.exp(interval[:3])
    return Interval(float(mean), float(low), float(high), interval.n)


def verdict(interval, claim):
    """Whether the interval of a difference lies on the claimed side of 0: supported, contradicted or undetermined.

    claim is "higher" (the difference is positive) or "lower" (negative).
    Raises ValueError for another claim, and unless low ≤ high.
    """
    if claim not in ("higher", "lower"):
        raise ValueError(f"claim must be 'higher' or 'lower', got {claim!r}")
    if not interval.low <= interval.high:  # NaN too: it would count as "contradicted"
        raise ValueError(f"interval must have low ≤ high, got {interval.low} and {interval.high}")
    if interval.low <= 0 <= interval.high:
        return "undetermined"
    return "supported" if (interval.low > 0) == (claim == "higher") else "contradicted"


def paper(table):
    """One table of the paper's reported numbers, from data/paper.toml: a list of dicts, one a row.

    Raises ValueError if there is no such table.
    """
    with open(files.data_folder() / "paper.toml", "rb") as file:
        tables = tomllib.load(file)
    if table not in tables:
        raise ValueError(f"data/paper.toml has no table {table!r}; it has {', '.join(tables)}")
    return tables[table]
