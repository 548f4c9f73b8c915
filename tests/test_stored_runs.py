"""The runs that the book keeps in data/runs: complete, whole, small, and in the regime that they stand for."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from lsbook import calibration, experiments, files, presets, runs, sweeps, translation, translation_metrics

ALL = presets.specs("laptop")
IMAGES = [spec for spec in ALL if isinstance(spec, experiments.Spec)]
SPECS = {spec.name: spec for spec in IMAGES if spec.keep == "logits"}
LEAN = {spec.name: spec for spec in IMAGES if spec.keep != "logits"}  # teachers and students
TRANSLATION = {spec.name: spec for spec in ALL if isinstance(spec, translation.TranslationSpec)}
TEST_PAIRS = {"multi30k": 1_000}
CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100}
LARGEST_FOLDER = 51.5e6  # bytes: the whole checkout is to stay below 60 MB


def test_every_run_of_the_preset_is_there():
    """The folder of this checkout, whatever LSBOOK_RUNS_DATA says elsewhere."""
    assert [spec.name for spec in sweeps.missing(ALL, runs.folder())] == []


def test_nothing_else_is_there_and_it_is_small():
    known = {
        f"{spec.name}{end}"
        for p in ("laptop", "paper")
        for spec in presets.specs(p)
        for end in (".json", ".safetensors.xz")
    }
    here = [path for path in (files.data_folder() / "runs").iterdir() if not path.name.startswith(".")]
    assert {path.name for path in here} - known == set()
    assert sum(path.stat().st_size for path in here) < LARGEST_FOLDER


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_stored_run_on_images_is_whole_and_says_what_made_it(spec):
    run = runs.load(spec.as_dict(), runs.folder())  # compares digests
    arrays, known = run.arrays, len(spec.classes) or CLASSES[spec.dataset]
    # Test sets have 10,000 images; the set of which some classes are left out has equally many of each.
    assert arrays["test_logits"].shape == (10_000 * known // CLASSES[spec.dataset], known)
    assert arrays["test_logits"].dtype == np.float16
    assert np.isfinite(arrays["test_logits"]).all()
    assert arrays["head_weight"].shape[0] == known
    for split in ("train", "test"):
        assert set(arrays[f"{split}_labels"].tolist()) == set(range(known))
    assert [row["epoch"] for row in run.history] == list(spec.record_epochs)
    assert run.history[-1]["test_accuracy"] == experiments.split_metrics(*run.logits_and_labels())["accuracy"]
    assert {"code", "torch", "numpy", "device", "threads", "wall_seconds", "precision"} <= set(run.provenance)
    prefix = "outside" if spec.outside else "probe" if spec.classes else "shown"
    assert {name.split("_")[0] for name in arrays} == {"head", "train", "test", prefix}


@pytest.mark.parametrize("spec", [s for s in SPECS.values() if s.outside], ids=lambda spec: spec.name)
def test_a_network_is_less_sure_of_images_from_outside(spec):
    run = runs.load(spec.as_dict(), runs.folder())
    outside, own = run.arrays["outside_logits"], run.arrays["test_logits"]
    assert (outside.shape, outside.dtype) == ((experiments.OUTSIDE_EXAMPLES, 10), np.float16)
    assert np.isfinite(outside).all()
    assert calibration.confidence(outside).mean() < calibration.confidence(own).mean()


SHOWN = [s for s in SPECS.values() if not s.classes and not s.outside]


@pytest.mark.parametrize("spec", SHOWN, ids=lambda spec: spec.name)
def test_stored_features_are_those_that_the_templates_turn_into_the_right_logits(spec):
    run = runs.load(spec.as_dict(), runs.folder())
    features, arrays = run.arrays["shown_train_features"].astype(float), run.arrays
    if run.history[-1]["train_accuracy"] > 0.99:
        logits = features @ arrays["head_weight"].T + arrays["head_bias"]
        assert (logits.argmax(1) == arrays["shown_train_labels"]).mean() > 0.97


@pytest.mark.parametrize("spec", [s for s in SPECS.values() if s.classes], ids=lambda spec: spec.name)
def test_features_for_probes_are_those_of_the_classes_left_out(spec):
    """30 of each class and split, in the order of the classes, and of more use than chance to tell them apart."""
    arrays = runs.load(spec.as_dict(), runs.folder()).arrays
    left_out = [label for label in range(CLASSES[spec.dataset]) if label not in spec.classes]
    width = arrays["head_weight"].shape[1]
    for split in ("train", "test"):
        features, labels = arrays[f"probe_{split}_features"], arrays[f"probe_{split}_labels"]
        assert labels.tolist() == [label for label in left_out for _ in range(30)]
        assert (features.shape, features.dtype) == ((30 * len(left_out), width), np.float16)
        assert np.isfinite(features).all()
    means = arrays["probe_train_features"].astype(float).reshape(len(left_out), 30, width).mean(axis=1)
    nearest = cdist(arrays["probe_test_features"].astype(float), means).argmin(axis=1)
    accuracy = (np.array(left_out)[nearest] == arrays["probe_test_labels"]).mean()
    assert accuracy > 3 / len(left_out)


@pytest.mark.parametrize("spec", [s for s in SPECS.values() if s.alpha == 0], ids=lambda spec: spec.name)
def test_hard_targets_are_in_the_regime_of_their_preset(spec):
    """Memorised and over-confident; the augmented network is the counter-example, and dropout keeps MNIST's from it.

    Other losses than cross-entropy hold the confidence down as smoothing does.
    """
    last = runs.load(spec.as_dict(), runs.folder()).history[-1]
    excess = last["test_confidence"] - last["test_accuracy"]
    if spec.flip:
        assert last["train_accuracy"] < 0.95
        assert excess < 0.05
    else:
        assert last["train_accuracy"] >= (0.99 if spec.loss == "smoothing" else 0.98)
        assert spec.dropout or spec.loss != "smoothing" or excess > 0


def drawn(spec):
    """The labels of the first training images, in the order in which the seed drew them (nothing is trained here)."""
    return runs.load(spec.as_dict(), runs.folder()).arrays["train_labels"].tobytes()


@pytest.mark.parametrize("name", dict.fromkeys(spec.experiment for spec in SPECS.values()))
def test_hard_and_smoothed_networks_come_in_pairs(name):
    """The same seeds for every α, and with the same seed the training images of the hard network of these settings.

    That stands in the same experiment, or, for the range of α, in another one, which has more seeds.
    """
    labels = defaultdict(dict)
    for spec in presets.experiment(name, "laptop"):
        labels[spec.alpha][spec.seed] = drawn(spec)
    settings = replace(spec, experiment="any", alpha=0.0)
    twins = [s for s in SPECS.values() if replace(s, experiment="any", seed=spec.seed) == settings]
    hard = {twin.seed: drawn(twin) for twin in twins}
    assert len({frozenset(by_seed) for by_seed in labels.values()}) == 1
    for by_seed in labels.values():
        assert by_seed == {seed: hard[seed] for seed in by_seed}
    assert len(set(hard.values())) == len(hard) >= 3
    assert 0.0 in labels or len(by_seed) >= 2


# --- teachers and students


def kept(spec):
    """Shapes and types of all that such a run keeps."""
    if spec.keep != "views":
        return {"test_predictions": ((10_000,), "uint8")}
    known, draws = CLASSES[spec.dataset], len(spec.record_epochs)
    return {
        **{f"{name}_logits": ((count, known), "float16") for name, count in (("train", 1_000), ("test", 2_000))},
        **{f"{name}_labels": ((count,), "uint8") for name, count in (("train", 1_000), ("test", 2_000))},
        **({"view_logits": ((1_000, known), "float16")} if spec.shift or spec.flip else {}),
        **(
            {"draws": ((draws, 2 * experiments.DRAW_EXAMPLES, experiments.DRAWS), "float16")}
            if spec.draw_classes
            else {}
        ),
    }


def held_out_labels(dataset):
    """Of all held-out images, by a run that keeps them."""
    spec = next(s for s in SPECS.values() if s.dataset == dataset and not s.classes)
    return runs.load(spec.as_dict(), runs.folder()).arrays["test_labels"]


@pytest.mark.parametrize("spec", LEAN.values(), ids=LEAN)
def test_a_stored_teacher_or_student_is_whole_and_says_what_made_it(spec):
    run = runs.load(spec.as_dict(), runs.folder())  # compares digests
    assert {name: (array.shape, array.dtype.name) for name, array in run.arrays.items()} == kept(spec)
    assert all(np.isfinite(array).all() for array in run.arrays.values())
    assert [row["epoch"] for row in run.history] == list(spec.record_epochs)
    assert {"code", "torch", "numpy", "device", "threads", "wall_seconds", "precision"} <= set(run.provenance)
    labels, accuracy = held_out_labels(spec.dataset), run.history[-1]["test_accuracy"]
    if spec.keep == "views":
        right = calibration.accuracy(*run.logits_and_labels())
        assert run.arrays["test_labels"].tolist() == labels[:2_000].tolist()
        assert right == pytest.approx(accuracy, abs=0.05)  # of a fifth of the images
    else:
        right = (run.arrays["test_predictions"] == labels).mean()
        assert right == pytest.approx(accuracy, abs=1e-3)  # logits in float16 may tie
    assert spec.teacher is None or runs.is_stored(spec.teacher.as_dict(), runs.folder())


@pytest.mark.parametrize("spec", [s for s in LEAN.values() if s.draw_classes], ids=lambda spec: spec.name)
def test_stored_draws_tell_the_classes_apart(spec):
    """In the end the first class has the larger logit in its own images, and the second in its."""
    draws = runs.load(spec.as_dict(), runs.folder()).arrays["draws"].astype(float)
    first, second = draws[-1].reshape(2, -1).mean(1)
    assert first > 0 > second
    assert draws[-1].std(1).mean() > 0  # the views differ


# --- translation


@pytest.mark.parametrize("spec", TRANSLATION.values(), ids=TRANSLATION)
def test_a_stored_run_of_translation_is_whole_and_says_what_made_it(spec):
    run = runs.load(spec.as_dict(), runs.folder())  # compares digests
    arrays, sentences = run.arrays, TEST_PAIRS[spec.dataset]
    tokens, temperatures = len(arrays["test_correct"]), translation.TEMPERATURES
    assert arrays["temperatures"].tolist() == list(temperatures)
    for name in ("test_confidence", "test_nll"):
        assert (arrays[name].shape, arrays[name].dtype) == ((len(temperatures) + 1, tokens), np.float16)
        assert np.isfinite(arrays[name]).all()
    assert np.unique(arrays["test_sentence"]).tolist() == list(range(sentences))
    assert set(arrays["search_beams"].tolist()) == set(spec.beams)
    assert arrays["search_counts"].shape == (len(arrays["search_beams"]), 2, sentences, 10)
    assert arrays["head_weight"].shape == (3, spec.width)
    assert [row["epoch"] for row in run.history] == list(spec.record_epochs)
    assert run.history[-1]["test_accuracy"] == arrays["test_correct"].mean()
    assert {"code", "torch", "device", "wall_seconds", "precision", "sacrebleu"} <= set(run.provenance)
    assert set(run.provenance["translations"]) == set(translation.SENTENCES[spec.dataset])
    assert run.provenance["shown_words"] == [piece[1:] for piece in translation.SHOWN_PIECES[spec.dataset]]


@pytest.mark.parametrize("spec", TRANSLATION.values(), ids=TRANSLATION)
def test_a_stored_translator_translates(spec):
    """At T = 1 far better than chance and well below perfect, and greedy search close to a wider one."""
    arrays = runs.load(spec.as_dict(), runs.folder()).arrays
    scores = np.array(translation_metrics.bleu_of_counts(arrays["search_counts"][:, 0].sum(1, dtype=int)))
    at_one = scores[arrays["search_temperatures"] == 1]
    assert 20 < at_one.min() <= at_one.max() < 60
    assert np.ptp(at_one) < 5
    assert arrays["test_special_mass"].sum() < 0.01  # on tokens that are never right, even if smoothing gives them mass


@pytest.mark.parametrize("spec", TRANSLATION.values(), ids=TRANSLATION)
def test_the_fitted_temperature_of_a_stored_translator_is_between_the_best_of_the_grid(spec):
    """The NLL on val is convex in 1/T: its minimum lies between the neighbours of the best T of the grid."""
    arrays = runs.load(spec.as_dict(), runs.folder()).arrays
    best = int(arrays["val_nll"].argmin())
    assert 0 < best < len(translation.TEMPERATURES) - 1
    (temperature,) = arrays["fitted_temperature"]
    assert arrays["temperatures"][best - 1] < temperature < arrays["temperatures"][best + 1]
    # On the test set, the fitted T is about as good as T = 1 or better.
    nll = arrays["test_nll"].astype(float).mean(1)
    assert nll[-1] <= nll[translation.TEMPERATURES.index(1.0)] + 0.01


@pytest.mark.parametrize("spec", TRANSLATION.values(), ids=TRANSLATION)
def test_stored_features_of_words_are_those_that_the_output_layer_turns_into_the_right_word(spec):
    """Of the three words, the one that was to be said is the likeliest, nearly always."""
    arrays = runs.load(spec.as_dict(), runs.folder()).arrays
    for split in ("train", "test"):
        labels = arrays[f"shown_{split}_labels"]
        assert set(labels.tolist()) == {0, 1, 2}
        logits = arrays[f"shown_{split}_features"].astype(float) @ arrays["head_weight"].T + arrays["head_bias"]
        assert (logits.argmax(1) == labels).mean() > 0.9


@pytest.mark.parametrize("name", dict.fromkeys(spec.experiment for spec in TRANSLATION.values()))
def test_hard_and_smoothed_translators_come_in_pairs(name):
    """The same seeds for every α, the same test sentences and references for all."""
    by_alpha, tests = defaultdict(set), set()
    for spec in presets.experiment(name, "laptop"):
        by_alpha[spec.alpha].add(spec.seed)
        arrays = runs.load(spec.as_dict(), runs.folder()).arrays
        references = arrays["search_counts"][0, :, :, 9]  # their tokens
        tests.add((arrays["test_sentence"].tobytes(), references.tobytes()))
    assert len(tests) == len(set(map(frozenset, by_alpha.values()))) == 1
    assert set(by_alpha) >= {0.0, 0.1}
