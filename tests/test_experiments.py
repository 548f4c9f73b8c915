"""From a spec to a run, by a spec that trains in a fraction of a second."""

import json
from dataclasses import MISSING, fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lsbook import alternatives, calibration, datasets, experiments, files, models, presets, runs, targets, training
from lsbook.experiments import DIGITS_FEW, Spec, load_or_train, run_all, variants

TINY = replace(DIGITS_FEW, preset="smoke", train_examples=20, hidden=(6,), epochs=3, record_epochs=(0, 2, 3), alpha=0.1)


@pytest.fixture(scope="module")
def tiny_run():
    return experiments.train(TINY, "cpu")


def forbid_training(*_):
    raise AssertionError("trained although a run is stored")


# --- specs


def test_a_spec_equals_its_own_json():
    for spec in (DIGITS_FEW, TINY):
        assert json.loads(json.dumps(spec.as_dict())) == spec.as_dict()
        assert Spec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


def test_fields_at_their_default_are_left_out():
    """So that a field of tomorrow, with a default that changes nothing, does not rename the runs of today."""
    required = {field.name for field in fields(Spec) if field.default is MISSING}
    assert set(TINY.as_dict()) == required | {"hidden", "record_epochs"}
    assert set(replace(TINY, dropout=0.5, flip=True).as_dict()) - set(TINY.as_dict()) == {"dropout", "flip"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alhpa": 0.1}, "a spec's key must be one of .* got 'alhpa'; did you mean 'alpha'?"),
        ({"alpha": 0.1, "seed": 0}, "a spec must have experiment, preset, .* got alpha, seed"),
        ({}, "got nothing"),
    ],
)
def test_dicts_that_are_no_spec(values, message):
    with pytest.raises(ValueError, match=message):
        Spec.from_dict(values)


def test_every_field_of_a_spec_changes_its_hash(monkeypatch):
    names = {
        "preset": "paper",
        "dtype": "float32",
        "dataset": "mnist",
        "network": "alexnet",
        "held_out": "validation",
        "flip": True,
        "nesterov": False,
        "decay_only": ("a",),
        "classes": (3, 1),
        "outside": "mnist",
        "draw_classes": (3, 1),
        "keep": "views",
        "imitation": "logits",
        "teacher": TINY,
    }
    monkeypatch.setattr(training, "check_milestones", lambda *_: None)  # else schedule and milestones change together
    for check in ("_check_kept", "_check_teacher"):  # the same with draws and shifts, or student and teacher
        monkeypatch.setattr(experiments, check, lambda *_: None)
    names |= {"schedule": "linear", "milestones": (0.5,)}
    changes = {
        field.name: names[field.name]
        if field.name in names
        else {str: "x", int: 12345, float: 0.123}.get(type(getattr(TINY, field.name)), (12345,))
        for field in fields(Spec)
    }
    del changes["loss"], changes["strength"]  # alpha is the strength of the loss that TINY has
    changed = [replace(TINY, **{name: value}) for name, value in changes.items()]
    changed += [replace(TINY, alpha=0.0, loss="focal", strength=strength) for strength in (0.0, 2.0)]
    hashes = {runs.spec_hash(spec.as_dict()) for spec in [TINY, *changed]}
    assert len(hashes) == len(fields(Spec)) + 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("alpha", [0.0, 0, -0.0, np.float32(0), np.int64(0)]),
        ("weight_decay", [1.0, 1, np.float64(1)]),
        ("seed", [3, np.int64(3), np.uint8(3)]),
        ("strength", [0.0, 0, -0.0, np.float32(0)]),
        ("hidden", [(6, 4), [6, 4], np.array([6, 4])]),
        ("record_epochs", [(0, 3), range(0, 4, 3)]),
        ("classes", [(0, 3), range(0, 4, 3), [0, 3], np.array([0, 3], np.uint8)]),
    ],
)
def test_equal_values_of_any_type_have_one_hash(name, values):
    """Regression: alpha=0 and alpha=0.0 were two runs, and a numpy seed could not be written as JSON."""
    assert len({runs.spec_hash(replace(TINY, **{name: value}).as_dict()) for value in values}) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"alpha": 1.5}, ValueError, "alpha must lie in [0, 1], got 1.5"),
        ({"alpha": "0.1"}, TypeError, "alpha must be one real number, got '0.1' (str)"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 0.5}, TypeError, "seed must be an int, got 0.5 (float)"),
        ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"train_examples": 0}, ValueError, "train_examples must be at least 1, got 0"),
        ({"classes": (3,)}, ValueError, "classes must be () or at least two different ones, got (3,)"),
        ({"classes": (3, 1, 3)}, ValueError, "classes must be () or at least two different ones, got (3, 1, 3)"),
        ({"classes": (3, -1)}, ValueError, "classes must be at least 0, got -1"),
        ({"classes": (3, 1.0)}, TypeError, "classes must be an int, got 1.0 (float)"),
        ({"classes": "35"}, TypeError, "classes must be a tuple of class indices, got '35' (str)"),
        ({"classes": 3}, TypeError, "classes must be a tuple of class indices, got 3 (int)"),
        ({"hidden": (6, 0)}, ValueError, "hidden must be at least 1, got 0"),
        ({"record_epochs": (0.5,)}, TypeError, "record_epochs must be an int, got 0.5 (float)"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive and finite, got 0"),
        ({"learning_rate": float("inf")}, ValueError, "learning_rate must be positive and finite, got inf"),
        ({"momentum": -0.1}, ValueError, "momentum must lie in [0, 1], got -0.1"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must lie in [0, 1.79769e+308], got -0.1"),
        ({"dataset": "digit"}, ValueError, "got 'digit'; did you mean 'digits'?"),
        (
            {"dataset": "Split"},
            ValueError,
            "dataset must be one of 'digits', 'digit_images', 'mnist', 'cifar10', 'cifar100', got 'Split'",
        ),
        (
            {"alpha": 0, "loss": "foccal"},
            ValueError,
            "loss must be one of 'smoothing', 'confidence-penalty', 'focal', 'margin', 'maximum-suppression', "
            "got 'foccal'; did you mean 'focal'?",
        ),
        ({"loss": None}, TypeError, "loss must be a string, got None (NoneType)"),
        ({"strength": -1}, ValueError, "strength must lie in [0, 1.79769e+308], got -1"),
        ({"strength": float("inf")}, ValueError, "strength must lie in [0, 1.79769e+308], got inf"),
        ({"strength": "3"}, TypeError, "strength must be one real number, got '3' (str)"),
        (
            {"strength": 3},
            ValueError,
            "alpha is the strength of smoothing and strength that of other losses, got loss 'smoothing' with alpha "
            "0.1 and strength 3",
        ),
        ({"loss": "focal"}, ValueError, "got loss 'focal' with alpha 0.1 and strength 0"),
        ({"loss": "focal", "strength": 3}, ValueError, "got loss 'focal' with alpha 0.1 and strength 3"),
        ({"outside": "cifar"}, ValueError, "outside must be one of '', 'noise', 'digits', "),
        ({"outside": None}, TypeError, "outside must be a string, got None (NoneType)"),
        ({"preset": "labtop"}, ValueError, "got 'labtop'; did you mean 'laptop'?"),
        ({"dtype": "float23"}, ValueError, "got 'float23'; did you mean 'float32'?"),
        ({"dtype": torch.float32}, TypeError, "dtype must be a string, got torch.float32 (dtype)"),
    ],
)
def test_bad_specs(change, error, message):
    with pytest.raises(error) as caught:
        replace(TINY, **change)
    assert message in str(caught.value)


def test_variants_come_in_order_last_choice_fastest():
    specs = variants(TINY, alpha=(0.0, 0.1), seed=range(3))
    assert [(s.alpha, s.seed) for s in specs] == [(a, n) for a in (0.0, 0.1) for n in range(3)]
    assert {s.hidden for s in specs} == {(6,)}
    assert variants(TINY) == [TINY]
    with pytest.raises(TypeError, match="nonsense"):
        variants(TINY, nonsense=(1,))


def test_stored_runs_keep_their_names():
    """A field that is added must not rename them: their specs, as they were written, give the names of their files."""
    stored = [path for path in (files.data_folder() / "runs").glob("*.json") if not path.name.startswith(".")]
    assert len(stored) >= 46
    for path in stored:
        spec = json.loads(path.read_bytes())["spec"]
        assert presets.spec_of(spec).name == path.stem
        assert presets.spec_of(spec).as_dict() == spec
        assert ("classes" in spec) == ("half" in path.stem)
        assert ("strength" in spec) == ("loss" in spec)  # what came with the other losses is in their specs alone
    assert "classes" not in TINY.as_dict()
    assert replace(TINY, classes=(3, 1)).as_dict()["classes"] == [3, 1]
    assert replace(TINY, classes=(3, 1)).name != replace(TINY, classes=(1, 3)).name  # other templates, other initially


# --- training


def test_digits_have_no_validation_split():
    with pytest.raises(ValueError, match="held_out must be 'test' on digits, .* got 'validation'"):
        experiments.data_of(replace(TINY, held_out="validation"))


def test_a_run_holds_what_the_analysis_needs(tiny_run):
    shapes = {name: array.shape for name, array in tiny_run.arrays.items()}
    assert shapes == {
        "head_weight": (10, 6),
        "head_bias": (10,),
        "train_logits": (20, 10),
        "train_features": (20, 6),
        "train_labels": (20,),
        "test_logits": (1777, 10),
        "test_features": (1777, 6),
        "test_labels": (1777,),
    }
    assert {a.dtype.name for n, a in tiny_run.arrays.items() if "labels" not in n} == {"float64"}
    a = tiny_run.arrays
    np.testing.assert_allclose(a["test_features"] @ a["head_weight"].T + a["head_bias"], a["test_logits"], atol=1e-12)
    data = datasets.digits(20, 0)
    assert (a["test_labels"] == data.test.labels.numpy()).all()
    assert tiny_run.spec == TINY.as_dict()
    assert tiny_run.provenance["device"] == "cpu"


def test_history_agrees_with_the_stored_logits(tiny_run):
    assert [row["epoch"] for row in tiny_run.history] == [0, 2, 3]
    last = tiny_run.history[-1]
    assert set(last) == {"epoch", *experiments.METRICS}
    for split in ("train", "test"):
        logits, labels = (torch.tensor(array) for array in tiny_run.logits_and_labels(split))
        assert last[f"{split}_nll"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12)
        assert last[f"{split}_accuracy"] == (logits.argmax(1) == labels).double().mean()
        assert last[f"{split}_confidence"] == pytest.approx(logits.softmax(1).max(1).values.mean().item(), rel=1e-12)


def test_training_is_deterministic_and_depends_on_the_spec(tiny_run):
    again = experiments.train(TINY, "cpu")
    assert all((again.arrays[name] == array).all() for name, array in tiny_run.arrays.items())
    assert again.history == tiny_run.history
    for change in ({"seed": 1}, {"alpha": 0.0}, {"weight_decay": 0.1}, {"learning_rate": 0.05}, {"momentum": 0.0}):
        other = experiments.train(replace(TINY, **change), "cpu")
        assert not np.array_equal(other.arrays["head_weight"], tiny_run.arrays["head_weight"]), change


def test_training_is_written_out_by_hand(tiny_run):
    """The same run without `fit`: native loss with label_smoothing, torch's own SGD."""
    data, model = datasets.digits(20, 0), models.build((64, 6, 10), 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        order = torch.randperm(20, generator=generator)  # a single batch of 20
        optimizer.zero_grad()
        F.cross_entropy(
            model(data.train.inputs[order]).logits, data.train.labels[order], label_smoothing=0.1
        ).backward()
        optimizer.step()
    np.testing.assert_allclose(model.head.weight.detach(), tiny_run.arrays["head_weight"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32")],
)
def test_every_precision_trains_and_is_stored(tmp_path, dtype, stored):
    """Half precision is what the layers compute in; the weights, and all that is stored, are float32."""
    spec = replace(DIGITS_FEW, preset="smoke", epochs=20, record_epochs=(20,), dtype=dtype, alpha=0.1)
    run = experiments.load_or_train(spec, tmp_path, "cpu")
    assert {a.dtype.name for n, a in run.arrays.items() if "labels" not in n} == {stored}
    assert run.history[-1]["train_accuracy"] > 0.95
    again = runs.load(spec.as_dict(), tmp_path)
    assert all((again.arrays[name] == array).all() for name, array in run.arrays.items())


def test_smoothing_lowers_confidence_and_training_fits():
    hard, smoothed = run_all(variants(replace(DIGITS_FEW, epochs=40, record_epochs=(40,)), alpha=(0.0, 0.2)))
    assert hard.history[-1]["train_accuracy"] == smoothed.history[-1]["train_accuracy"] == 1
    assert smoothed.history[-1]["train_confidence"] < 0.9 < hard.history[-1]["train_confidence"]


def test_smoothing_loss_is_the_books_loss():
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    batch = type("Batch", (), {"labels": labels})
    expected = targets.smoothed_cross_entropy(logits, labels, 0.3)
    assert torch.equal(experiments.smoothing_loss(0.3)(logits, batch), expected)


# --- other losses than smoothing

OTHERS = {"confidence-penalty": 0.3, "focal": 3.0, "margin": 4.0, "maximum-suppression": 0.1}


@pytest.mark.parametrize("multiplier", [1.0, 3.0])
@pytest.mark.parametrize("name", ["smoothing", *OTHERS])
def test_the_loss_of_a_spec(name, multiplier):
    options = {"alpha": 0.3} if name == "smoothing" else {"alpha": 0.0, "strength": OTHERS[name]}
    spec = replace(TINY, loss=name, loss_multiplier=multiplier, **options)
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    batch = type("Batch", (), {"labels": labels})
    expected = multiplier * alternatives.loss(name)(logits, labels, spec.alpha or spec.strength)
    torch.testing.assert_close(experiments.loss_of(spec)(logits, batch), expected, rtol=1e-15, atol=0)


def test_other_losses_train_other_networks():
    """At strength 0 all are hard targets; at another, each ends elsewhere, and less sure than those."""
    hard = experiments.train(replace(TINY, alpha=0.0, epochs=30, record_epochs=(30,)), "cpu")
    ends = {"hard": hard}
    for name, strength in OTHERS.items():
        spec = replace(TINY, alpha=0.0, loss=name, strength=strength, epochs=30, record_epochs=(30,))
        ends[name] = experiments.train(spec, "cpu")
        assert ends[name].spec["loss"] == name
        assert ends[name].spec["strength"] == strength
    weights = [run.arrays["head_weight"] for run in ends.values()]
    assert len({w.tobytes() for w in weights}) == len(ends)
    confidence = {name: run.history[-1]["train_confidence"] for name, run in ends.items()}
    assert all(confidence[name] < confidence["hard"] for name in OTHERS), confidence
    off = experiments.train(replace(TINY, alpha=0.0, loss="focal", epochs=30, record_epochs=(30,)), "cpu")
    np.testing.assert_allclose(off.arrays["head_weight"], hard.arrays["head_weight"], rtol=1e-9, atol=1e-12)


def test_digits_have_no_outside_images(monkeypatch):
    """It says so before it trains."""
    monkeypatch.setattr(training, "fit", forbid_training)
    for spec in (replace(TINY, outside="mnist"), replace(TINY, dataset="mnist", outside="digits")):
        with pytest.raises(ValueError, match="outside and dataset must both be images, got '"):
            experiments.outside_inputs(spec)
    with pytest.raises(ValueError, match="outside and dataset must both be images, got 'mnist' and 'digits'"):
        experiments.train(replace(TINY, outside="mnist"), "cpu")


# --- networks that know some of the classes

SOME = replace(TINY, classes=(7, 2, 4), train_examples=40)


def by_hand(split, classes):
    """The examples of these classes, example by example, with the labels' places among them."""
    kept = [i for i, label in enumerate(split.labels.tolist()) if label in classes]
    return split.inputs[kept], torch.tensor([classes.index(split.labels[i].item()) for i in kept])


@pytest.mark.parametrize("classes", [(7, 2, 4), (2, 4, 7), (9, 0)])
def test_data_hold_the_named_classes_renumbered_in_their_order(classes):
    data, everything = experiments.data_of(replace(SOME, classes=classes)), datasets.digits(40, 0)
    assert data.num_classes == len(classes)
    assert data.class_names == tuple(str(label) for label in classes)
    for split, whole in ((data.train, everything.train), (data.test, everything.test)):
        inputs, labels = by_hand(whole, classes)
        assert torch.equal(split.inputs, inputs)
        assert torch.equal(split.labels, labels)
        assert set(split.labels.tolist()) == set(range(len(classes)))


def test_a_network_learns_the_named_classes_alone():
    """As one that never heard of others: the same examples under the new labels give the same weights."""
    data = datasets.digits(40, 0)
    train, test = (datasets.Split(*by_hand(split, SOME.classes)) for split in (data.train, data.test))
    alone = datasets.Dataset("digits", 3, train, test, ("7", "2", "4"))
    model, history = experiments.fit_spec(replace(SOME, classes=()), alone)
    run = experiments.train(SOME, "cpu")
    np.testing.assert_array_equal(run.arrays["head_weight"], model.head.weight.detach())
    assert run.arrays["head_weight"].shape == (3, 6)
    assert run.arrays["train_labels"].tolist() == train.labels.tolist()
    assert run.arrays["test_labels"].tolist() == test.labels.tolist()
    assert run.arrays["test_logits"].shape == (len(test.labels), 3)
    assert [row["epoch"] for row in run.history] == [row["epoch"] for row in history]
    assert run.history[-1]["test_accuracy"] == pytest.approx(history[-1]["test_accuracy"], rel=1e-12)


@pytest.mark.parametrize(("dtype", "stored"), [("float64", "float64"), ("float32", "float16")])
def test_features_of_the_other_classes_are_kept(dtype, stored):
    spec = replace(SOME, dtype=dtype)
    arrays, probed = experiments.train(spec, "cpu").arrays, experiments.probe_data(spec)
    model, _ = experiments.fit_spec(spec, experiments.data_of(spec))
    assert not any(name.startswith("shown") for name in arrays)
    assert {name for name in arrays if name.startswith("probe")} == {
        f"probe_{split}_{kind}" for split in ("train", "test") for kind in ("features", "labels")
    }
    for name, split in (("train", probed.train), ("test", probed.test)):
        features, labels = arrays[f"probe_{name}_features"], arrays[f"probe_{name}_labels"]
        assert (features.shape, features.dtype.name) == ((len(split.labels), 6), stored)
        expected = training.predict(model, split.inputs).features
        np.testing.assert_allclose(features, expected, rtol=1e-12 if stored == "float64" else 2e-3, atol=1e-6)
        assert labels.dtype == np.uint8
        assert labels.tolist() == split.labels.tolist()
    assert "probe_train_features" not in experiments.train(replace(spec, classes=()), "cpu").arrays


def test_probes_are_all_digits_of_the_classes_left_out():
    """A thousand digits of all classes are drawn for training, whatever the spec trains on."""
    probed, everything = experiments.probe_data(SOME), datasets.digits(1_000, 0)
    left_out = (0, 1, 3, 5, 6, 8, 9)
    assert probed.num_classes == 10
    for split, whole in ((probed.train, everything.train), (probed.test, everything.test)):
        assert split.labels.tolist() == [k for k in left_out for _ in range((whole.labels == k).sum())]
        expected = torch.cat([whole.inputs[whole.labels == k] for k in left_out])
        assert torch.equal(split.inputs, expected)
    other = experiments.probe_data(replace(SOME, train_examples=20, alpha=0.3))
    assert torch.equal(other.train.inputs, probed.train.inputs)
    assert not torch.equal(experiments.probe_data(replace(SOME, seed=1)).train.inputs, probed.train.inputs)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((0, 10), "classes must be less than 10 on digits, got 10 among them"),
        # Regression: it trained to the end, then found no class to probe.
        (range(9, -1, -1), r"classes must leave out some of the 10 on digits, or be \(\) for all"),
    ],
)
def test_classes_that_a_data_set_cannot_give(classes, message, monkeypatch):
    monkeypatch.setattr(training, "fit", forbid_training)
    spec = replace(SOME, classes=classes)
    for call in (experiments.data_of, lambda spec: experiments.train(spec, "cpu")):
        with pytest.raises(ValueError, match=message):
            call(spec)


@pytest.mark.parametrize("classes", [(), tuple(range(10))])
def test_without_a_class_left_out_there_is_nothing_to_probe(classes):
    with pytest.raises(ValueError, match=r"spec.classes must leave out some of the 10 classes, got \("):
        experiments.probe_data(replace(SOME, classes=classes))


# --- stored or trained


def test_stores_then_loads_without_training(tmp_path, monkeypatch):
    monkeypatch.delenv("LSBOOK_RETRAIN", raising=False)
    first = load_or_train(TINY, tmp_path)
    assert runs.is_stored(TINY.as_dict(), tmp_path)
    monkeypatch.setattr(experiments, "train", forbid_training)
    second = load_or_train(TINY, tmp_path)
    assert (second.spec, second.history, second.provenance) == (first.spec, first.history, first.provenance)
    assert all((second.arrays[name] == array).all() for name, array in first.arrays.items())
    with pytest.raises(AssertionError, match="trained although"):
        load_or_train(replace(TINY, seed=9), tmp_path)


def test_without_a_folder_it_trains_and_stores_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_or_train(TINY).spec == TINY.as_dict()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("wish", "trains"), [("1", True), ("0", False), ("", False)])
def test_retrain(tmp_path, monkeypatch, tiny_run, wish, trains):
    runs.save(tiny_run, tmp_path)
    newer = replace(tiny_run, provenance={"device": "newer"})
    monkeypatch.setattr(experiments, "train", lambda *_: newer)
    monkeypatch.setenv("LSBOOK_RETRAIN", wish)
    assert (load_or_train(TINY, tmp_path).provenance == newer.provenance) == trains
    assert (runs.load(TINY.as_dict(), tmp_path).provenance == newer.provenance) == trains


def test_a_damaged_run_is_not_trained_over_silently(tmp_path, monkeypatch, tiny_run):
    monkeypatch.delenv("LSBOOK_RETRAIN", raising=False)
    runs.save(tiny_run, tmp_path).with_suffix(".safetensors.xz").write_bytes(b"")
    monkeypatch.setattr(experiments, "train", forbid_training)
    with pytest.raises(runs.DamagedRunError):
        load_or_train(TINY, tmp_path)


# --- reading many runs


def test_metrics_curves_and_gaps_of_many_runs(tiny_run):
    specs = variants(TINY, seed=range(3))
    many = run_all(specs, device="cpu")
    assert [run.spec["seed"] for run in many] == [0, 1, 2]
    assert many[0].history == tiny_run.history
    assert experiments.metric(many, "test_nll").tolist() == [run.history[-1]["test_nll"] for run in many]
    epochs, values = experiments.curve(many, "train_accuracy")
    assert epochs.tolist() == [0, 2, 3]
    assert values.shape == (3, 3)
    assert values[1, 2] == many[1].history[2]["train_accuracy"]
    gaps = experiments.logit_gaps(many, "train")
    assert gaps.shape == (3, 20, 9)
    assert (gaps[2] == calibration.logit_gaps(*many[2].logits_and_labels("train"))).all()


def test_without_runs_or_records_it_says_what_is_missing(tiny_run):
    bare = replace(tiny_run, history=[])
    for read in (experiments.metric, experiments.curve):
        with pytest.raises(ValueError, match="runs_ must hold at least one run, got none"):
            read([], "test_nll")
        for many in ([bare], [tiny_run, bare]):
            with pytest.raises(ValueError, match="a run without: set record_epochs in its spec"):
                read(many, "test_nll")


# --- linear templates by a gradient that is given


def toy_split():
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return datasets.Split(inputs, torch.arange(30) % 3)


def test_templates_follow_autograd():
    """With p − t, the steps, the loss and the gradient are those that autograd takes of the smoothed loss."""
    split, weight = toy_split(), torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    for _ in range(5):
        loss = F.cross_entropy(split.inputs @ weight, split.labels, label_smoothing=0.2)
        (gradient,) = torch.autograd.grad(loss, weight)
        weight = (weight - 0.5 * gradient).detach().requires_grad_()
    final = F.cross_entropy(split.inputs @ weight, split.labels, label_smoothing=0.2)
    (gradient,) = torch.autograd.grad(final, weight)
    found = experiments.train_templates(split, 0.2, lambda p, t: p - t, steps=5)
    torch.testing.assert_close(found[0], weight.detach())
    assert found[1:] == pytest.approx((final.item(), gradient.norm().item()), rel=1e-12)


def test_only_the_true_gradient_ends_where_it_vanishes():
    split = toy_split()
    _, right_loss, right = experiments.train_templates(split, 0.2, lambda p, t: p - t, steps=3000)
    _, wrong_loss, wrong = experiments.train_templates(split, 0.2, lambda p, t: t * (p - 1), steps=3000)
    assert right < 1e-10 < 1e-3 < wrong
    assert right_loss < wrong_loss


def test_templates_where_the_last_class_is_absent():
    """A fourth class that no example has: its template is there, and learns to stay below."""
    split = toy_split()
    assert experiments.train_templates(split, 0.2, lambda p, t: p - t, steps=1)[0].shape == (4, 3)
    end, loss, gradient = experiments.train_templates(split, 0.2, lambda p, t: p - t, steps=5, num_classes=4)
    assert end.shape == (4, 4)
    expected = F.cross_entropy(split.inputs @ end, split.labels, label_smoothing=0.2).item()
    assert loss == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 0"):
        experiments.train_templates(split, 0.2, lambda p, t: p - t, num_classes=0)


# --- many seeds side by side


SMALL = replace(experiments.DIGITS_FEW, hidden=(16,), epochs=4, record_epochs=())


def test_seeds_side_by_side_are_the_same_as_one_by_one():
    specs = experiments.variants(replace(SMALL, alpha=0.1, label_noise=0.3), seed=(3, 0, 7))
    for spec, network in zip(specs, experiments.fit_seeds(specs), strict=True):
        alone, _ = experiments.fit_spec(spec, experiments.data_of(spec))
        for mine, its in zip(network.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)


@pytest.mark.parametrize("imitation", ["probabilities", "logits"])
def test_students_side_by_side_are_the_same_as_one_by_one(imitation):
    teachers = experiments.variants(SMALL, seed=(1, 2))
    temperature = 3.0 if imitation == "probabilities" else 1.0
    settings = {"beta": 0.7, "temperature": temperature, "imitation": imitation, "learning_rate": 0.01}
    specs = [replace(SMALL, seed=t.seed, teacher=t, restart=1, **settings) for t in teachers]
    networks = experiments.fit_seeds(specs, experiments.fit_seeds(teachers))
    for spec, network in zip(specs, networks, strict=True):
        alone, _ = experiments.fit_spec(spec, experiments.data_of(spec))
        for mine, its in zip(network.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-11)


def test_groups_side_by_side_are_the_same_as_one_by_one():
    hard, smoothed = (experiments.variants(replace(SMALL, alpha=alpha), seed=(1, 2)) for alpha in (0.0, 0.1))
    teachers = experiments.fit_seeds(hard)
    students = [replace(SMALL, seed=t.seed, teacher=t, restart=1, beta=0.7, temperature=2.0) for t in hard]
    groups, known = [smoothed[:1], students, smoothed], [(), teachers, ()]
    for group, its_teachers, networks in zip(groups, known, experiments.fit_groups(groups, known), strict=True):
        for mine, its in zip(networks, experiments.fit_seeds(group, its_teachers), strict=True):
            for one, other in zip(mine.parameters(), its.parameters(), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("other", [{"hidden": (8,)}, {"epochs": 1}, {"train_examples": 60}])
def test_groups_side_by_side_must_share_network_examples_and_schedule(other):
    with pytest.raises(ValueError, match="must share network, examples and schedule, got 2 kinds in 2"):
        experiments.fit_groups([[SMALL], [replace(SMALL, **other)]])
    with pytest.raises(ValueError, match="got 0 kinds in 0"):
        experiments.fit_groups([])


@pytest.mark.parametrize(
    "other", [{"alpha": 0.2, "seed": 1}, {"hidden": (8,), "seed": 1}, {"learning_rate": 0.2, "seed": 1}]
)
def test_seeds_side_by_side_must_differ_in_the_seed_alone(other):
    with pytest.raises(ValueError, match="must differ in the seed alone"):
        experiments.fit_seeds([SMALL, replace(SMALL, **other)])


@pytest.mark.parametrize("more", [{"dropout": 0.5}, {"weight_decay": 0.1}, {"schedule": "linear"}, {"clip_norm": 1.0}])
def test_what_side_by_side_cannot_do_is_refused(more):
    with pytest.raises(ValueError, match="must be plain"):
        experiments.fit_seeds([replace(SMALL, **more)])


def test_students_side_by_side_need_a_teacher_each():
    teachers = experiments.variants(SMALL, seed=(1, 2))
    specs = [replace(SMALL, seed=t.seed, teacher=t) for t in teachers]
    with pytest.raises(ValueError, match="2 specs and 0 teachers"):
        experiments.fit_seeds(specs)
    with pytest.raises(ValueError, match="2 specs and 1 teachers"):
        experiments.fit_seeds(specs, experiments.fit_seeds(teachers[:1]))
    with pytest.raises(ValueError, match="at least one spec"):
        experiments.fit_seeds([])
