"""Writes _static/explorers/growth-data.js, what the explorer `growth` shows of two small networks in training.

    python _ext/growth_data.py

The networks are those of "How the clusters form": digits, seed 0, hard targets and α = 0.1, trained anew up to each
epoch (a run takes a second). A picture holds 50 held-out images a digit; its two numbers are of all held-out images of
the three, as in the chapter's table. All is kept in thousandths: between machines, float64 runs differ by far less.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from lsbook import experiments, geometry

TARGET = Path(__file__).resolve().parents[1] / "_static" / "explorers" / "growth-data.js"
ALPHAS = (0.0, 0.1)
DIGITS = (3, 5, 8)
EPOCHS = experiments.DIGITS_FEW.record_epochs
PER_CLASS = 50  # images drawn of each digit
BASE = replace(experiments.DIGITS_FEW, seed=0, record_epochs=())
HEAD = """// Written by _ext/growth_data.py; do not edit.
// For each α a frame for each epoch: coordinates in the plane of the three templates, in thousandths: the templates'
// `corners`, for each class `points` as [x, y]; spread over distance (`tightness`) and mean distance of class centres.
window.lsbook = window.lsbook || {};
window.lsbook.growthData = """


def picture(alpha, epochs):
    """Coordinates of all held-out images of the three digits (N, 2), their labels (N,), and the `geometry.Plane`."""
    arrays = experiments.train(replace(BASE, alpha=alpha, epochs=epochs)).arrays
    mine = np.isin(arrays["test_labels"], DIGITS)
    plane = geometry.template_plane(arrays["head_weight"], arrays["head_bias"], DIGITS)
    return geometry.project(arrays["test_features"][mine], plane), arrays["test_labels"][mine], plane


def thousandths(values):
    return np.rint(1e3 * np.asarray(values)).astype(int).tolist()


def frame(alpha, epochs):
    """What is kept of one network after so many epochs."""
    points, labels, plane = picture(alpha, epochs)
    return {
        "corners": thousandths(plane.corners),
        "points": [thousandths(points[labels == digit][:PER_CLASS]) for digit in DIGITS],
        "tightness": thousandths(geometry.tightness(points, labels)),
        "distance": thousandths(geometry.mean_distance(geometry.class_means(points, labels)[1])),
    }


def everything():
    """All that the explorer needs; `images` is how many held-out images the numbers are of."""
    return {
        "classes": list(DIGITS),
        "epochs": list(EPOCHS),
        "images": len(picture(0.0, 0)[1]),
        "frames": {f"{alpha:g}": [frame(alpha, epochs) for epochs in EPOCHS] for alpha in ALPHAS},
    }


def script(data):
    """The text of the data script, a line for each class of points."""
    text = json.dumps(data, separators=(",", ":"))
    return HEAD + text.replace("]],[[", "]],\n[[").replace(',"points"', ',\n"points"') + ";\n"


def read():
    """What the committed script holds."""
    text = TARGET.read_text(encoding="utf-8")
    return json.loads(text.split("growthData = ")[1].rstrip().removesuffix(";"))


if __name__ == "__main__":
    TARGET.write_text(script(everything()), encoding="utf-8", newline="\n")
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")
