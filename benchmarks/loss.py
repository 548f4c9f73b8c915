"""Time of the smoothed loss, forward and backward, against hard-target cross-entropy and the usual own implementation.

All candidates take turns within one run, so that what else the machine does meets all of them alike. Ratios are
taken turn by turn, then their median and quartiles. Usage: python benchmarks/loss.py [TURNS]
"""

import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe
from tabulate import tabulate

from lsbook.targets import smoothed_cross_entropy

SHAPES = ((4096, 10), (4096, 1000), (512, 32000))
ALPHA = 0.1


def hard(logits, labels):
    return F.cross_entropy(logits, labels)


def native(logits, labels):
    return smoothed_cross_entropy(logits, labels, ALPHA, validate=False)


def validated(logits, labels):
    return smoothed_cross_entropy(logits, labels, ALPHA)


def one_hot_and_kl(logits, labels):
    """What many projects write: targets written out, KL divergence from them. Differs from `native` by H(y^LS)."""
    num_classes = logits.shape[-1]
    targets = F.one_hot(labels, num_classes).to(logits.dtype) * (1 - ALPHA) + ALPHA / num_classes
    return F.kl_div(logits.log_softmax(dim=-1), targets, reduction="batchmean")


CANDIDATES = {"hard": hard, "lsbook": native, "lsbook, validate=True": validated, "one-hot + KLDiv": one_hot_and_kl}


def seconds(loss, logits, labels, repeats):
    """Mean wall time of one forward and backward pass."""
    started = time.perf_counter()
    for _ in range(repeats):
        torch.autograd.grad(loss(logits, labels), logits)
    return (time.perf_counter() - started) / repeats


def measure(shape, turns):
    """Seconds of each candidate in each turn: name → list."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, requires_grad=True)
    labels = torch.randint(shape[1], (shape[0],), generator=generator)
    gradients = [
        torch.autograd.grad(CANDIDATES[name](logits, labels), logits)[0] for name in ("lsbook", "one-hot + KLDiv")
    ]
    torch.testing.assert_close(*gradients)  # both sides compute the same thing
    repeats = max(1, round(0.1 / seconds(one_hot_and_kl, logits, labels, 3)))
    times = {name: [] for name in CANDIDATES}
    for _ in range(turns):
        for name, loss in CANDIDATES.items():
            times[name].append(seconds(loss, logits, labels, repeats))
    return times


def summary(values):
    """Median [lower quartile, upper quartile]."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main(turns=15):
    torch.set_num_threads(1)  # two on a shared machine wait for each other: small shapes took 30 times as long
    print(describe(), f"float32, one thread, {turns} turns; median [quartiles]", sep="\n")
    rows = []
    for shape in SHAPES:
        times = measure(shape, turns)
        for name, values in times.items():
            ratios = [a / b for a, b in zip(values, times["lsbook"], strict=True)]
            rows.append([str(shape), name, summary([1e3 * v for v in values]), summary(ratios)])
    print(tabulate(rows, ["shape", "loss", "ms", "time / lsbook's"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
