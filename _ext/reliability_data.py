"""Writes _static/explorers/reliability-data.js, the stored logits that the explorer `reliability` shows.

    python _ext/reliability_data.py

A reliability diagram at any temperature needs logits and labels. They are kept as they are stored, in float16, so
nothing is rounded: for each network and α one string of base64. It is a script, not JSON, because a page opened from
disk may not fetch files.
"""

import base64
import json
from pathlib import Path

import numpy as np

from lsbook import presets, runs

TARGET = Path(__file__).resolve().parents[1] / "_static" / "explorers" / "reliability-data.js"
IMAGES = 1_400  # the first ones of the held-out images, of the 10,000 that are stored
# Which experiments of preset laptop are one network on the page, each with its α; the first one gives the title.
NETWORKS = (
    {"cifar10-alexnet": (0.0, 0.1), "cifar10-alexnet-alphas": (0.05, 0.2, 0.5)},
    {"cifar10-alexnet-augmented": (0.0, 0.1)},
)
HEAD = f"""// Written by _ext/reliability_data.py from the stored runs (seed 0); do not edit.
// The first {IMAGES:,} held-out images: their labels, a digit each, and for each network and α their logits, image
// after image, as float16 with the low byte first, in base64.
window.lsbook = window.lsbook || {{}};
window.lsbook.reliabilityData = """


def stored(experiment, alpha):
    """Logits (N, K) in float16 and labels (N,) of the images shown; FileNotFoundError without the run of seed 0."""
    (spec,) = presets.experiment(experiment, "laptop", seed=0, alpha=alpha)
    logits, labels = runs.load(spec.as_dict(), runs.folder()).logits_and_labels("test")
    if logits.dtype != np.float16:
        raise TypeError(f"logits must be stored in float16, got {logits.dtype} in {experiment}")
    return logits[:IMAGES], labels[:IMAGES]


def coded(logits):
    """The numbers as base64 of their bytes, the low one first."""
    return base64.b64encode(logits.astype("<f2").tobytes()).decode("ascii")


def network(experiments):
    """All that the explorer needs of one network: its title, and its logits for each α, in the order of α."""
    pairs = sorted((alpha, experiment) for experiment, alphas in experiments.items() for alpha in alphas)
    strengths = [{"alpha": alpha, "logits": coded(stored(experiment, alpha)[0])} for alpha, experiment in pairs]
    return {"title": presets.TITLES[next(iter(experiments))], "strengths": strengths}


def labels():
    """The labels, which all runs share: (N,)."""
    first, *others = (stored(name, a)[1] for group in NETWORKS for name, alphas in group.items() for a in alphas)
    if not all(np.array_equal(first, other) for other in others):
        raise ValueError("all runs must have the same held-out images")
    return first


def script():
    """The text of the data script, a line for each network and α."""
    data = {"labels": "".join(map(str, labels())), "networks": [network(group) for group in NETWORKS]}
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return HEAD + text.replace('{"alpha"', '\n{"alpha"').replace(',"networks"', ',\n"networks"') + ";\n"


if __name__ == "__main__":
    TARGET.write_text(script(), encoding="utf-8", newline="\n")
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")
