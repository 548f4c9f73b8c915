"""Writes _static/explorers/projection-data.js, the stored numbers that the explorer `projection` shows.

    python _ext/projection_data.py

A picture of the plane through three templates needs no features: an example's three logits and the products of the
templates are enough. So the file holds, for each network and each α, the products v_i · v_j of the extended templates
v_k = (w_k, b_k), and for each image its logits, its predicted class and its confidence. It is a script, not JSON,
because a page opened from disk may not fetch files.
"""

import json
from pathlib import Path

import numpy as np
from scipy.special import softmax

from lsbook import datasets, experiments, presets, runs

TARGET = Path(__file__).resolve().parents[1] / "_static" / "explorers" / "projection-data.js"
ALPHAS = (0.0, 0.1)
SPLITS = ("train", "test")
PER_CLASS = 50  # images of each class and split
# Experiment of preset laptop, title on the page, data set, classes to choose from.
NETWORKS = (
    ("cifar10-alexnet", "CIFAR-10, AlexNet", "cifar10", tuple(range(10))),
    ("cifar100-resnet20", "CIFAR-100, ResNet-20", "cifar100", experiments.SHOWN_CLASSES["cifar100"]),
)
HEAD = """// Written by _ext/projection_data.py from the stored runs (seed 0); do not edit.
// products: of the extended templates of `shown`, in 10⁻⁴; examples: for each shown class a list of
// [predicted class, confidence in 0.1 %, logits of the shown classes in hundredths].
window.lsbook = window.lsbook || {};
window.lsbook.projectionData = """


def stored_run(experiment, alpha):
    """The stored run of seed 0; raises FileNotFoundError where there is none (nothing is trained here)."""
    (spec,) = presets.experiment(experiment, "laptop", seed=0, alpha=alpha)
    return runs.load(spec.as_dict(), runs.folder())


def logits_and_labels(run, split, num_shown):
    """Logits of all classes in float64, and labels.

    Of ten classes the stored logits have enough images of each; of a hundred they have not, and the logits are computed
    from the stored features of the shown classes.
    """
    arrays = run.arrays
    if arrays["head_bias"].size == num_shown:
        return arrays[f"{split}_logits"].astype(np.float64), arrays[f"{split}_labels"]
    features = arrays[f"shown_{split}_features"].astype(np.float64)
    return features @ arrays["head_weight"].T + arrays["head_bias"], arrays[f"shown_{split}_labels"]


def products(run, shown):
    """v_i · v_j of the extended templates of the shown classes, in 10⁻⁴ as integers: nested lists, K × K."""
    templates = np.column_stack([run.arrays["head_weight"], run.arrays["head_bias"]]).astype(np.float64)[list(shown)]
    return np.rint(1e4 * templates @ templates.T).astype(int).tolist()


def examples(run, split, shown):
    """For each shown class its first images, each as [predicted class, confidence in 0.1 %, logits in hundredths]."""
    logits, labels = logits_and_labels(run, split, len(shown))
    predicted, confidence = logits.argmax(axis=1), 1e3 * softmax(logits, axis=1).max(axis=1)
    rows = np.rint(np.column_stack([predicted, confidence, 100 * logits[:, list(shown)]])).astype(int)
    return [rows[labels == label][:PER_CLASS].tolist() for label in shown]


def network(experiment, title, dataset, shown):
    """All that the explorer needs of one network: names of classes, and products and examples for each α."""
    by_alpha = {f"{alpha:g}": stored_run(experiment, alpha) for alpha in ALPHAS}
    return {
        "experiment": experiment,
        "title": title,
        "names": [name.replace("_", " ") for name in datasets.sources()[dataset]["class_names"]],
        "shown": list(shown),
        "products": {alpha: products(run, shown) for alpha, run in by_alpha.items()},
        "examples": {
            alpha: {split: examples(run, split, shown) for split in SPLITS} for alpha, run in by_alpha.items()
        },
    }


def script():
    """The text of the data script, a line for each class of examples."""
    text = json.dumps([network(*row) for row in NETWORKS], separators=(",", ":"), ensure_ascii=False)
    return HEAD + text.replace("]],[[", "]],\n[[").replace('},{"experiment"', '},\n{"experiment"') + ";\n"


if __name__ == "__main__":
    TARGET.write_text(script(), encoding="utf-8", newline="\n")
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")
