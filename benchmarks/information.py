"""Time and accuracy of `lsbook.information.mutual_information` and its bootstrap against the plain sum in numpy.

The plain sum adds the kernels of all draws at all means in numpy, an example at a time; its bootstrap does so for every
resample, and makes a part of them a turn, since its time grows in proportion.
Both find the same number, to 1e-6. Candidates take turns within one run; ratios are taken turn by turn.

Usage: python benchmarks/information.py [TURNS]   (one thread)
"""

import math
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe, show, summary, take_turns

from lsbook import information

EXAMPLES = 600
SHAPES = (5, 100)  # draws
RESAMPLES, PART = 200, 4
CASES = {"two collapsed clusters": (50.0, 0.0), "nearly separated": (0.0, 1e3)}


def made(num_draws, distance, width):
    """Draws of noise 1 of two clusters of 300 examples, `distance` apart and each spread by `width`."""
    rng = np.random.default_rng(0)
    means = np.repeat([0.0, distance], EXAMPLES // 2) + width * rng.normal(size=EXAMPLES)
    return means[:, None] + rng.normal(size=(EXAMPLES, num_draws))


def plain(draws, counts=1):
    """The "corrected" estimate of examples that stand counts times each in the sample."""
    num_examples, num_draws = draws.shape
    counts = np.broadcast_to(counts, num_examples).astype(float)
    means = draws.mean(axis=1)
    variance = np.average(((draws - means[:, None]) ** 2).mean(axis=1), weights=counts)
    share = math.sqrt(1 - 1 / num_draws)
    logs = np.empty(num_examples)
    for x in range(num_examples):
        weights = counts.copy()
        weights[x] = share
        exponents = -((draws[x, :, None] - means) ** 2) / (2 * variance)
        largest = exponents.max(axis=1)
        sums = np.exp(exponents - largest[:, None]) @ weights
        logs[x] = (largest + np.log(sums)).mean() - math.log(counts.sum() - counts[x] + 1)
    return math.log(share) - 0.5 - np.average(logs, weights=counts)


def plain_bootstrap(draws):
    rng = np.random.default_rng(0)
    for _ in range(PART):
        counts = np.bincount(rng.integers(0, EXAMPLES, EXAMPLES), minlength=EXAMPLES)
        plain(draws[counts > 0], counts[counts > 0])


def lsbook_bootstrap(draws):
    information.information_interval(draws, resamples=RESAMPLES)


def compare_estimates(name, draws, turns):
    found = {"lsbook": information.mutual_information(draws), "plain sum": float(plain(draws))}
    assert abs(found["lsbook"] - found["plain sum"]) < 1e-6, found
    seconds = take_turns(
        {"lsbook": partial(information.mutual_information, draws), "plain sum": partial(plain, draws)}, turns
    )
    for key, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["lsbook"], strict=True)]
        error = f"{abs(found[key] - found['plain sum']):.0e}"
        yield [
            name,
            f"{EXAMPLES} × {draws.shape[1]}",
            key,
            summary(values, 1e3),
            summary(ratios),
            f"{found[key]:.6f}",
            error,
        ]


def compare_bootstraps(name, draws, turns):
    calls = {"lsbook": partial(lsbook_bootstrap, draws), "plain sum": partial(plain_bootstrap, draws)}
    seconds = take_turns(calls, turns)
    for key, values in seconds.items():
        values = [value * (1 if key == "lsbook" else RESAMPLES / PART) for value in values]
        ratios = [a / b for a, b in zip(values, seconds["lsbook"], strict=True)]
        yield [name, key, summary(values), summary(ratios)]


def main(turns=5):
    print(describe(), f"numpy {np.__version__}", f"one thread, {turns} turns; median [quartiles]", sep="\n")
    shapes = [(name, made(num_draws, *case)) for num_draws in SHAPES for name, case in CASES.items()]
    rows = [row for name, draws in shapes for row in compare_estimates(name, draws, turns)]
    show("Mutual information", rows, ["", "draws", "by", "ms", "time / lsbook's", "nats", "off the plain sum"])
    rows = [row for name, case in CASES.items() for row in compare_bootstraps(name, made(5, *case), turns)]
    show(f"{RESAMPLES} resamples, {EXAMPLES} × 5", rows, ["", "by", "s", "time / lsbook's"])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
