"""From a spec to a run on images: each kind of network on scikit-learn's digits, and the split of the paper."""

from dataclasses import replace

import numpy as np
import pytest
import strategies  # noqa: F401 (one thread)
import torch
from scipy.stats import chisquare

from lsbook import datasets, experiments, runs, training
from lsbook.experiments import Spec

TINY = Spec(
    experiment="tiny",
    preset="smoke",
    dataset="digit_images",
    train_examples=48,
    alpha=0.1,
    epochs=2,
    batch_size=16,
    learning_rate=0.02,
    seed=0,
    hidden=(20, 12),
    dtype="float32",
    schedule="linear",
    record_epochs=(0, 1, 2),
)
NETWORKS = {
    "fully_connected": (TINY, 12),
    "alexnet": (replace(TINY, network="alexnet", hidden=(), shift=2), 192),
    "resnet20": (replace(TINY, network="resnet20", hidden=(), shift=2, flip=True), 64),
}


@pytest.fixture(scope="module", autouse=True)
def small_digits():
    """The digits as 16 × 16 pixels, and only 100 of them held out, so that a run takes a second."""
    data = datasets.load("digit_images")
    train, test = (
        datasets.Split(x[:n, :, ::2, ::2].clone(), y[:n]) for (x, y), n in ((data.train, 600), (data.test, 100))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", lambda *_: data._replace(train=train, test=test))
        yield


@pytest.fixture(scope="module")
def tiny_runs(small_digits):
    return {name: experiments.train(spec, "cpu") for name, (spec, _) in NETWORKS.items()}


@pytest.fixture
def numbered(monkeypatch):
    """10,500 made images for training and 50 others, whose first two pixels are their number, under CIFAR-10's name."""

    def split(first, count):
        number = torch.arange(first, first + count)
        pixels = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = (number // 256).byte(), (number % 256).byte()
        return datasets.Split(pixels, number % 10)

    data = datasets.Dataset("cifar10", 10, split(0, 10_500), split(20_000, 50), tuple("0123456789"))
    monkeypatch.setattr(datasets, "load", lambda *_: data)


def numbers(pixels):
    return (pixels[:, 0, 0, 0].int() * 256 + pixels[:, 0, 0, 1].int()).tolist()


# --- what a run keeps


@pytest.mark.parametrize("name", NETWORKS)
def test_arrays_of_a_run_on_images(tiny_runs, name):
    run, width = tiny_runs[name], NETWORKS[name][1]
    found = {key: (array.shape, array.dtype.name) for key, array in run.arrays.items()}
    shown = {split: len(run.arrays[f"shown_{split}_labels"]) for split in ("train", "test")}
    expected = {"head_weight": ((10, width), "float32"), "head_bias": ((10,), "float32")}
    for split, count in (("train", 48), ("test", 100)):
        expected |= {
            f"{split}_logits": ((count, 10), "float16"),
            f"{split}_labels": ((count,), "uint8"),
            f"shown_{split}_features": ((shown[split], width), "float16"),
            f"shown_{split}_labels": ((shown[split],), "uint8"),
        }
    assert found == expected
    assert run.spec == NETWORKS[name][0].as_dict()
    assert (run.provenance["device"], run.provenance["precision"]) == ("cpu", "float32")


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_those_of_the_data(tiny_runs, name):
    data = experiments.data_of(TINY)
    arrays = tiny_runs[name].arrays
    assert arrays["train_labels"].tolist() == data.train.labels.tolist()
    assert arrays["test_labels"].tolist() == datasets.load("digit_images").test.labels.tolist()
    for split in (data.train, data.test):
        which = "train" if split is data.train else "test"
        counts = [min(100, (split.labels == label).sum().item()) for label in (3, 5, 8)]
        assert arrays[f"shown_{which}_labels"].tolist() == [3] * counts[0] + [5] * counts[1] + [8] * counts[2]


@pytest.mark.parametrize("name", NETWORKS)
def test_stored_logits_are_stored_features_times_templates(tiny_runs, name):
    arrays = {key: array.astype(np.float64) for key, array in tiny_runs[name].arrays.items()}
    for split in ("train", "test"):
        rows = np.concatenate([np.flatnonzero(arrays[f"{split}_labels"] == label)[:100] for label in (3, 5, 8)])
        features = arrays[f"shown_{split}_features"]
        by_hand = features @ arrays["head_weight"].T + arrays["head_bias"]
        # Every feature may be off by half a float16 ulp, 2^-11 of its size, and so may the logit.
        bound = 2.0**-11 * (features @ np.abs(arrays["head_weight"]).T + np.abs(by_hand)) + 1e-5
        assert (np.abs(by_hand - arrays[f"{split}_logits"][rows]) <= 1.01 * bound).all()


def test_features_are_kept_of_few_examples_where_they_are_wide():
    """100 a class, but no more than 64,000 numbers: 17 of each of three classes at 1,200 features."""
    labels = torch.arange(3_000) % 10
    for classes, width, count in (((3, 5, 8), 64, 100), ((3, 5, 8), 1200, 17), (tuple(range(10)), 64, 100)):
        shown = experiments.shown_examples(labels, classes, width)
        assert labels[shown].tolist() == [label for label in classes for _ in range(count)]
        assert shown[:count].tolist() == [classes[0] + 10 * i for i in range(count)]  # the first of them


@pytest.mark.parametrize("name", ["fully_connected", "resnet20"])
def test_arrays_of_a_network_that_knows_some_classes(name):
    """Features of the classes that it does not know, in place of the shown ones."""
    spec, width = NETWORKS[name]
    spec = replace(spec, classes=(7, 0, 3))
    run, whole = experiments.train(spec, "cpu"), datasets.load("digit_images")
    probed = {key: array for key, array in run.arrays.items() if key.startswith("probe")}
    rows = {split: len(probed[f"probe_{split}_labels"]) for split in ("train", "test")}
    known = sum((whole.test.labels == label).sum().item() for label in spec.classes)
    expected = {"head_weight": ((3, width), "float32"), "head_bias": ((3,), "float32")}
    for split, count in (("train", 48), ("test", known)):
        expected |= {
            f"{split}_logits": ((count, 3), "float16"),
            f"{split}_labels": ((count,), "uint8"),
            f"probe_{split}_features": ((rows[split], width), "float16"),
            f"probe_{split}_labels": ((rows[split],), "uint8"),
        }
    assert {key: (array.shape, array.dtype.name) for key, array in run.arrays.items()} == expected
    assert set(run.arrays["train_labels"].tolist()) == {0, 1, 2}
    model, _ = experiments.fit_spec(spec, experiments.data_of(spec))
    split = experiments.probe_data(spec).test
    features = training.predict(model, split.inputs).features.half()
    np.testing.assert_array_equal(probed["probe_test_features"], features)
    np.testing.assert_array_equal(probed["probe_test_labels"], split.labels)


def test_few_training_logits_are_kept(monkeypatch):
    monkeypatch.setattr(experiments, "KEPT_TRAIN_EXAMPLES", 10)
    arrays = experiments.train(replace(TINY, epochs=0, record_epochs=()), "cpu").arrays
    assert (arrays["train_logits"].shape, arrays["train_labels"].shape) == ((10, 10), (10,))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_row_of_the_history_is_on_whole_splits(tiny_runs, name, monkeypatch):
    """Also where earlier rows look at a sample."""
    monkeypatch.setattr(experiments, "RECORD_EXAMPLES", 20)
    spec, whole = NETWORKS[name][0], tiny_runs[name]
    sampled = experiments.train(spec, "cpu")
    assert [row["epoch"] for row in sampled.history] == [0, 1, 2]
    assert sampled.history[-1] == whole.history[-1]
    assert sampled.history[1] != whole.history[1]
    for split in ("train", "test"):
        logits, labels = (torch.tensor(array) for array in whole.logits_and_labels(split))
        logits, last = logits.double(), whole.history[-1]
        assert last[f"{split}_accuracy"] == pytest.approx(
            (logits.argmax(1) == labels).double().mean().item(), abs=0.003
        )
        nll = torch.nn.functional.cross_entropy(logits, labels.long()).item()
        assert last[f"{split}_nll"] == pytest.approx(nll, rel=2e-3)
        assert last[f"{split}_confidence"] == pytest.approx(logits.softmax(1).amax(1).mean().item(), rel=2e-3)


def test_networks_learn(tiny_runs):
    for name, (spec, _) in NETWORKS.items():
        run = experiments.train(
            replace(spec, train_examples=300, epochs=6, record_epochs=(6,), learning_rate=0.05), "cpu"
        )
        assert run.history[-1]["test_accuracy"] > 0.5, name  # by chance, a tenth


def test_networks_start_from_normalised_pixels():
    data = experiments.data_of(TINY)
    model = experiments.model_of(TINY, data)
    pixels = model.normalise(data.train.inputs)
    assert pixels.mean().item() == pytest.approx(0, abs=1e-5)
    assert pixels.std(correction=0).item() == pytest.approx(1, abs=1e-5)


# --- which examples


def test_validation_takes_the_last_10000_training_images(numbered):
    spec = replace(TINY, dataset="cifar10", held_out="validation", train_examples=500)
    data = experiments.data_of(spec)
    assert numbers(data.test.inputs) == list(range(500, 10_500))
    assert sorted(numbers(data.train.inputs)) == list(range(500))
    assert numbers(experiments.data_of(replace(spec, train_examples=7)).train.inputs) == numbers(data.train.inputs)[:7]
    with pytest.raises(
        ValueError, match="train_examples must be at most 500 on cifar10 with validation held out, got 501"
    ):
        experiments.data_of(replace(spec, train_examples=501))


def test_test_images_are_held_out_otherwise(numbered):
    spec = replace(TINY, dataset="cifar10", train_examples=10_500)
    data = experiments.data_of(spec)
    assert numbers(data.test.inputs) == list(range(20_000, 20_050))
    assert sorted(numbers(data.train.inputs)) == list(range(10_500))
    with pytest.raises(
        ValueError, match="train_examples must be at most 10500 on cifar10 with test held out, got 10501"
    ):
        experiments.data_of(replace(spec, train_examples=10_501))


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_the_seed_draws_the_examples(numbered, held_out):
    spec = replace(TINY, dataset="cifar10", held_out=held_out, train_examples=100)
    first, again, other = (experiments.data_of(replace(spec, seed=seed)) for seed in (1, 1, 2))
    assert numbers(first.train.inputs) == numbers(again.train.inputs)
    assert numbers(first.train.inputs) != numbers(other.train.inputs)
    assert numbers(first.test.inputs) == numbers(other.test.inputs)  # all seeds are judged by the same images
    assert len(set(numbers(first.train.inputs))) == 100
    assert [n % 10 for n in numbers(first.train.inputs)] == first.train.labels.tolist()  # labels go with their images


@pytest.mark.parametrize(("held_out", "pool", "judged"), [("test", 10_500, (20_000, 20_050)), ("validation", 500, 0)])
def test_some_classes_of_a_split(numbered, held_out, pool, judged):
    """The classes are picked within each split, and only then the training examples are drawn."""
    spec = replace(TINY, dataset="cifar10", held_out=held_out, classes=(5, 2), train_examples=pool // 5)
    data = experiments.data_of(spec)
    assert (data.num_classes, data.class_names) == (2, ("5", "2"))
    assert sorted(numbers(data.train.inputs)) == [n for n in range(pool) if n % 10 in (5, 2)]
    assert numbers(data.test.inputs) == [n for n in range(*(judged or (500, 10_500))) if n % 10 in (5, 2)]
    for split in (data.train, data.test):
        assert [(5, 2)[label] for label in split.labels.tolist()] == [n % 10 for n in numbers(split.inputs)]
    fewer = experiments.data_of(replace(spec, train_examples=7))
    assert numbers(fewer.train.inputs) == numbers(data.train.inputs)[:7]
    message = f"train_examples must be at most {pool // 5} on cifar10 of 2 classes with {held_out} held out, got "
    with pytest.raises(ValueError, match=message):
        experiments.data_of(replace(spec, train_examples=pool // 5 + 1))


def test_probes_are_the_first_images_of_the_classes_left_out(numbered):
    """30 a class and split where there are as many, with the labels of the whole set, whatever is trained on."""
    spec = replace(TINY, dataset="cifar10", classes=(5, 2, 8), train_examples=100)
    probed, left_out = experiments.probe_data(spec), (0, 1, 3, 4, 6, 7, 9)
    assert experiments.PROBE_EXAMPLES == 30
    assert probed.num_classes == 10
    assert numbers(probed.train.inputs) == [label + 10 * i for label in left_out for i in range(30)]
    assert numbers(probed.test.inputs) == [20_000 + label + 10 * i for label in left_out for i in range(5)]
    for split in (probed.train, probed.test):
        assert split.labels.tolist() == [n % 10 for n in numbers(split.inputs)]
    other = experiments.probe_data(replace(spec, classes=(8, 5, 2), seed=3, train_examples=50))
    assert numbers(other.train.inputs) == numbers(probed.train.inputs)
    for classes in ((), tuple(range(10))):
        with pytest.raises(ValueError, match="spec.classes must leave out some of the 10 classes"):
            experiments.probe_data(replace(spec, classes=classes))


@pytest.mark.parametrize(
    ("classes", "message"),
    [((1, 10), "classes must be less than 10 on cifar10, got 10"), (range(10), "must leave out")],
)
def test_classes_that_are_not_to_be_had(numbered, classes, message):
    with pytest.raises(ValueError, match=message):
        experiments.data_of(replace(TINY, dataset="cifar10", classes=classes))


def seen_by(spec, monkeypatch):
    """What the loss of a run is shown: indices, labels and views of every batch."""
    batches, make = [], experiments.smoothing_loss

    def spying(alpha, multiplier=1.0):
        loss = make(alpha, multiplier)

        def spy(logits, batch):
            batches.append(batch)
            return loss(logits, batch)

        return spy

    with monkeypatch.context() as patch:
        patch.setattr(experiments, "smoothing_loss", spying)
        experiments.train(spec, "cpu")
    return batches


def test_hard_and_smoothed_see_the_same_views_in_the_same_order(monkeypatch):
    spec = replace(TINY, shift=2, flip=True)
    smoothed, hard, other = (seen_by(s, monkeypatch) for s in (spec, replace(spec, alpha=0.0), replace(spec, seed=1)))
    assert len(smoothed) == len(hard) == 6
    for a, b in zip(smoothed, hard, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(smoothed[0].inputs, other[0].inputs)
    data = experiments.data_of(spec)
    assert torch.equal(smoothed[0].labels, data.train.labels[smoothed[0].index])
    assert not torch.equal(smoothed[0].inputs, data.train.inputs[smoothed[0].index])


@pytest.mark.parametrize(("options", "same"), [({}, True), ({"shift": 2}, False), ({"flip": True}, False)])
def test_views_without_augmentation_are_the_images(monkeypatch, options, same):
    spec = replace(TINY, epochs=1, record_epochs=(), **options)
    data, (first, *_) = experiments.data_of(spec), seen_by(spec, monkeypatch)
    assert torch.equal(first.inputs, data.train.inputs[first.index]) == same


def test_another_loss_sees_the_same_views(monkeypatch):
    """`seen_by` spies on smoothing; so this one looks at what reaches the other loss."""
    seen, focal = [], experiments.alternatives.focal

    def spy(logits, labels, strength, validate):
        seen.append((labels, strength, validate))
        return focal(logits, labels, strength, validate)

    monkeypatch.setitem(experiments.alternatives.LOSSES, "focal", spy)
    spec = replace(TINY, shift=2, flip=True)
    experiments.train(replace(spec, alpha=0.0, loss="focal", strength=3.0), "cpu")
    smoothed = seen_by(spec, monkeypatch)
    assert len(seen) == len(smoothed)
    for (labels, strength, validate), batch in zip(seen, smoothed, strict=True):
        assert torch.equal(labels, batch.labels)
        assert (strength, validate) == (3.0, False)


@pytest.mark.parametrize(
    "change", [{"shift": 2}, {"flip": True}, {"dropout": 0.5}, {"loss_multiplier": 3.0}, {"init_std": 0.03}]
)
def test_fields_that_only_runs_on_images_use_matter(tiny_runs, change):
    other = experiments.train(replace(TINY, **change), "cpu")
    assert not np.array_equal(other.arrays["head_weight"], tiny_runs["fully_connected"].arrays["head_weight"])


def test_training_on_images_is_deterministic(tiny_runs):
    again = experiments.train(NETWORKS["resnet20"][0], "cpu")
    assert again.history == tiny_runs["resnet20"].history
    for name, array in tiny_runs["resnet20"].arrays.items():
        assert np.array_equal(again.arrays[name], array), name


# --- images from another data set


@pytest.fixture
def another_set(monkeypatch):
    """60 images of noise under MNIST's name, as large as those of `small_digits`; the others stay what they are."""
    load = datasets.load
    pixels = torch.randint(256, (60, 1, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    noise = datasets.Dataset("mnist", 10, *2 * (datasets.Split(pixels, torch.arange(60) % 10),), tuple("0123456789"))
    monkeypatch.setattr(datasets, "load", lambda name, *rest: noise if name == "mnist" else load(name, *rest))
    return noise.test.inputs


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_outside_images_are_kept(another_set, tiny_runs, name):
    """In place of features; all else, and the network above all, is as without them."""
    spec = replace(NETWORKS[name][0], outside="mnist")
    run, plain = experiments.train(spec, "cpu"), tiny_runs[name]
    logits = run.arrays["outside_logits"]
    assert (logits.shape, logits.dtype.name) == ((60, 10), "float16")
    model, _ = experiments.fit_spec(spec, experiments.data_of(spec))
    np.testing.assert_array_equal(logits, training.predict(model, another_set).logits.half())
    assert run.history == plain.history
    kept = {key for key in plain.arrays if not key.startswith("shown")}
    assert set(run.arrays) == kept | {"outside_logits"}
    assert all(np.array_equal(run.arrays[key], plain.arrays[key]) for key in kept)


def test_the_first_outside_images_are_shown(another_set, monkeypatch):
    spec = replace(TINY, outside="mnist")
    assert experiments.OUTSIDE_EXAMPLES == 5_000
    assert torch.equal(experiments.outside_inputs(spec), another_set)
    monkeypatch.setattr(experiments, "OUTSIDE_EXAMPLES", 7)
    assert torch.equal(experiments.outside_inputs(spec), another_set[:7])


def test_noise_from_outside(numbered):
    """Every value of a pixel equally often, the same pixels every time."""
    spec = replace(TINY, dataset="cifar10", outside="noise")
    noise = experiments.outside_inputs(spec)
    assert (noise.shape, noise.dtype) == ((5_000, 1, 4, 4), torch.uint8)
    assert torch.equal(noise, experiments.outside_inputs(replace(spec, seed=1)))
    counts = torch.bincount(noise.flatten().long(), minlength=256)
    assert len(counts) == 256 and chisquare(counts).pvalue > 0.001
    assert experiments.train(spec, "cpu").arrays["outside_logits"].shape == (5_000, 10)


def test_outside_images_of_another_shape(numbered, monkeypatch):
    """Regression: it trained to the end before it looked at them."""
    load = datasets.load
    wide = load("cifar10")._replace(test=datasets.Split(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), torch.zeros(5)))
    monkeypatch.setattr(datasets, "load", lambda name, *rest: wide if name == "cifar100" else load(name, *rest))

    def no_training(*_, **__):
        raise AssertionError("trained although the images do not fit")

    monkeypatch.setattr(training, "fit", no_training)
    message = r"outside images must have the shape \(1, 4, 4\) of cifar10, got cifar100 with \(3, 4, 4\)"
    spec = replace(TINY, dataset="cifar10", outside="cifar100")
    for call in (experiments.outside_inputs, lambda spec: experiments.train(spec, "cpu")):
        with pytest.raises(ValueError, match=message):
            call(spec)


# --- stored, interrupted, resumed


class Stopped(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("name", NETWORKS)
def test_an_interrupted_run_is_stored_as_if_undisturbed(tmp_path, monkeypatch, tiny_runs, name):
    spec, real_record, real_fit = NETWORKS[name][0], experiments._record, training.fit

    def stopping(data, spec, precision, epoch, model):
        if epoch == 2:
            raise Stopped
        return real_record(data, spec, precision, epoch, model)

    monkeypatch.setattr(training, "fit", lambda *args, **options: real_fit(*args, **options, checkpoint_seconds=0))
    monkeypatch.setattr(experiments, "_record", stopping)
    with pytest.raises(Stopped):
        experiments.load_or_train(spec, tmp_path, "cpu")
    assert not runs.is_stored(spec.as_dict(), tmp_path)
    assert [path.name for path in (tmp_path / ".checkpoints").iterdir()] == [f"{spec.name}.safetensors"]
    begun = []
    monkeypatch.setattr(experiments, "_record", lambda *args: begun.append(args[3]) or real_record(*args))
    experiments.load_or_train(spec, tmp_path, "cpu")
    assert begun == [2]  # the one epoch that was missing
    stored, expected = runs.load(spec.as_dict(), tmp_path), tiny_runs[name]
    assert stored.history == expected.history
    for key, array in expected.arrays.items():
        assert np.array_equal(stored.arrays[key], array), key
    assert list((tmp_path / ".checkpoints").iterdir()) == []


def test_a_run_on_images_is_small(tmp_path, tiny_runs):
    """Half precision and few features: ResNet-20 on these digits takes less than 100 kB."""
    path = runs.save(tiny_runs["resnet20"], tmp_path)
    assert path.with_suffix(runs.ARRAYS).stat().st_size < 100_000


def test_logits_that_float16_cannot_hold_are_kept_in_float32():
    """Regression: they were stored as infinities."""
    values = torch.tensor([[1.0, 7e4]])
    assert torch.equal(experiments._half(values), values)
    assert experiments._half(values / 2).dtype == torch.float16


@pytest.mark.parametrize(("name", "value"), [("hidden", 64), ("decay_only", "head.weight")])
def test_one_value_where_several_belong(name, value):
    with pytest.raises(TypeError, match=rf"{name} must be a tuple, such as \({value!r},\), got {value!r}"):
        replace(experiments.DIGITS_FEW, **{name: value})
