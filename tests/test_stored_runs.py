"""The runs that the book keeps in data/runs: complete, whole, small, and in the regime that they stand for."""

import numpy as np
import pytest

from lsbook import experiments, files, presets, runs, sweeps

SPECS = {spec.name: spec for spec in presets.specs("laptop")}
LARGEST_FOLDER = 45e6  # bytes: a checkout is to stay small


def test_every_run_of_the_preset_is_there():
    """The folder of this checkout, whatever LSBOOK_RUNS_DATA says elsewhere."""
    assert [spec.name for spec in sweeps.missing(SPECS.values(), runs.folder())] == []


def test_nothing_else_is_there_and_it_is_small():
    known = {
        f"{spec.name}{end}"
        for p in ("laptop", "paper")
        for spec in presets.specs(p)
        for end in (".json", ".safetensors")
    }
    here = [path for path in (files.data_folder() / "runs").iterdir() if not path.name.startswith(".")]
    assert {path.name for path in here} - known == set()
    assert sum(path.stat().st_size for path in here) < LARGEST_FOLDER


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_stored_run_is_whole_and_says_what_made_it(spec):
    run = runs.load(spec.as_dict(), runs.folder())  # compares digests
    arrays, classes = run.arrays, 100 if spec.dataset == "cifar100" else 10
    assert arrays["test_logits"].shape == (10_000, classes)
    assert arrays["test_logits"].dtype == np.float16
    assert np.isfinite(arrays["test_logits"]).all()
    assert [row["epoch"] for row in run.history] == list(spec.record_epochs)
    assert run.history[-1]["test_accuracy"] == experiments.split_metrics(*run.logits_and_labels())["accuracy"]
    assert {"code", "torch", "numpy", "device", "threads", "wall_seconds", "precision"} <= set(run.provenance)
    # The stored features are those that the stored templates turn into logits of the right classes.
    shown = arrays["shown_train_features"].astype(float) @ arrays["head_weight"].T + arrays["head_bias"]
    if run.history[-1]["train_accuracy"] > 0.99:
        assert (shown.argmax(1) == arrays["shown_train_labels"]).mean() > 0.97


@pytest.mark.parametrize("spec", [s for s in SPECS.values() if s.alpha == 0], ids=lambda spec: spec.name)
def test_hard_targets_are_in_the_regime_of_their_preset(spec):
    """Memorised and over-confident; the augmented network is the counter-example, and dropout keeps MNIST's from it."""
    last = runs.load(spec.as_dict(), runs.folder()).history[-1]
    excess = last["test_confidence"] - last["test_accuracy"]
    if spec.flip:
        assert last["train_accuracy"] < 0.95
        assert excess < 0.05
    else:
        assert last["train_accuracy"] >= 0.99
        assert spec.dropout or excess > 0


@pytest.mark.parametrize("name", dict.fromkeys(spec.experiment for spec in SPECS.values()))
def test_hard_and_smoothed_networks_come_in_pairs(name):
    """The same seeds for every α, and with the same seed the same training images."""
    labels = {}
    for spec in presets.experiment(name, "laptop"):  # `load_runs` would train what is missing
        drawn = runs.load(spec.as_dict(), runs.folder()).arrays["train_labels"].tobytes()
        labels.setdefault(spec.alpha, []).append(drawn)
    assert all(others == labels[0.0] for others in labels.values())
    assert len(set(labels[0.0])) == len(labels[0.0]) >= 3
