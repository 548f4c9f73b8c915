"""Data, training and prediction."""

import errno
import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save
from sklearn.datasets import load_digits
from strategies import dtypes

from lsbook import datasets, experiments, images, models, presets, targets, theory, training
from lsbook.datasets import Split
from lsbook.models import FullyConnected

SCHEDULE = {"epochs": 5, "batch_size": 8, "learning_rate": 0.1}


def hard_loss(logits, batch):
    return F.cross_entropy(logits, batch.labels)


def blobs(examples=40, seed=0):
    """Two classes in four dimensions, three standard deviations apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(examples) % 2
    inputs = torch.randn(examples, 4, generator=generator, dtype=torch.float64) + 3.0 * labels[:, None]
    return Split(inputs, labels)


# --- data


@settings(max_examples=25)
@given(st.one_of(st.sampled_from([10, 11, 150, 1786, 1787]), st.integers(10, 1787)), st.integers(0, 2**32 - 1))
def test_digits_split(train_examples, seed):
    """Disjoint, complete and class-balanced, whatever the size and the seed."""
    data = datasets.digits(train_examples, seed)
    assert (data.name, data.num_classes) == ("digits", 10)
    assert data.train.inputs.shape == (train_examples, 64)
    assert data.test.inputs.shape == (1797 - train_examples, 64)
    pixels, labels = load_digits(return_X_y=True)
    # Every example once: the labelled rows of both splits together, sorted, are those of the whole set.
    rows = torch.cat([torch.column_stack([split.inputs * 16, split.labels]) for split in (data.train, data.test)])
    expected = np.column_stack([pixels, labels])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, expected.tolist()))
    counts, share = data.train.labels.bincount(minlength=10), torch.tensor(np.bincount(labels)) / 1797
    assert (counts - train_examples * share).abs().max() < 1
    assert counts.min() >= 1
    assert data.test.labels.bincount(minlength=10).min() >= 1


def test_digits_take_whole_numbers():
    assert torch.equal(datasets.digits(np.int64(20), np.uint8(1)).train.labels, datasets.digits(20, 1).train.labels)
    for options, message in (
        ({"train_examples": 150.0}, r"train_examples must be an int, got 150\.0 \(float\)"),
        ({"train_examples": math.nan}, r"train_examples must be an int, got nan \(float\)"),
        ({"seed": None}, r"seed must be an int, got None \(NoneType\)"),
        ({"seed": 0.5}, r"seed must be an int, got 0\.5 \(float\)"),
    ):
        with pytest.raises(TypeError, match=message):
            datasets.digits(**options)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        datasets.digits(seed=-1)


def test_digits_are_the_same_for_the_same_seed_alone():
    first, again, other = datasets.digits(50, 3), datasets.digits(50, 3), datasets.digits(50, 4)
    assert all(
        torch.equal(a, b) for s in ("train", "test") for a, b in zip(getattr(first, s), getattr(again, s), strict=True)
    )
    assert not torch.equal(first.train.inputs, other.train.inputs)


def test_digits_types():
    data = datasets.digits(20)
    assert data.train.inputs.dtype == torch.float64
    assert data.train.labels.dtype == torch.int64
    assert data.train.inputs.min() == 0
    assert data.test.inputs.max() == 1
    assert datasets.digits(20, dtype=torch.float32).test.inputs.dtype == torch.float32


@pytest.mark.parametrize("train_examples", [0, 9, 1788, -1])
def test_digits_bad_size(train_examples):
    with pytest.raises(ValueError, match=rf"train_examples must lie in \[10, 1787\] for digits, got {train_examples}"):
        datasets.digits(train_examples)


# --- fit


def trained(seed=0, **options):
    model = models.build((4, 8, 2), seed=0)
    training.fit(model, blobs(), hard_loss, **(SCHEDULE | {"seed": seed} | options))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_same_seed_same_weights_to_the_last_bit():
    first = trained()
    torch.randn(10)  # other use of the global generator has no influence
    assert torch.equal(first, trained())
    assert not torch.equal(first, trained(seed=1))


def test_loss_falls():
    split, values = blobs(), []

    def record(epoch, model):
        with torch.no_grad():
            values.append(F.cross_entropy(model(split.inputs).logits, split.labels).item())

    model = models.build((4, 8, 2), seed=0)
    assert training.fit(model, split, hard_loss, **SCHEDULE, record=record) == []  # None is no row
    assert values[-1] < 0.2 * values[0]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("batch_size", [3, 10])
def test_fit_is_the_textbook_loop(momentum, weight_decay, batch_size):
    """Nesterov SGD in numpy on a linear model: g = p − y, L2 on weights and biases, v = μv + g, w −= η(g + μv)."""
    split = blobs(10)
    model = models.build((4, 2), seed=3)
    weight, bias = (p.detach().numpy().copy() for p in model.parameters())
    inputs, labels = (t.numpy() for t in split)
    velocity, generator, rate = [0.0, 0.0], torch.Generator().manual_seed(7), 0.05
    for _ in range(4):
        order = torch.randperm(10, generator=generator).numpy()
        for start in range(0, 10 - batch_size + 1, batch_size):  # full batches only
            x, y = inputs[order[start : start + batch_size]], labels[order[start : start + batch_size]]
            z = x @ weight.T + bias
            p = np.exp(z - z.max(1, keepdims=True))
            error = (p / p.sum(1, keepdims=True) - np.eye(2)[y]) / len(y)
            gradients = [error.T @ x + weight_decay * weight, error.sum(0) + weight_decay * bias]
            velocity = [momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
            steps = [g + momentum * v for g, v in zip(gradients, velocity, strict=True)]
            weight, bias = weight - rate * steps[0], bias - rate * steps[1]
    options = {"epochs": 4, "batch_size": batch_size, "learning_rate": rate, "seed": 7}
    training.fit(model, split, hard_loss, momentum=momentum, weight_decay=weight_decay, **options)
    np.testing.assert_allclose(model.head.weight.detach(), weight, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(model.head.bias.detach(), bias, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("batch_size", "batches"), [(4, [4, 4]), (5, [5, 5]), (10, [10]), (11, [10]), (1, [1] * 10)])
def test_an_epoch_is_as_many_full_batches_as_there_are(batch_size, batches):
    """No example twice, and none left out unless it does not fill a batch."""
    split, seen = blobs(10), []

    def loss(logits, batch):
        assert torch.equal(batch.inputs, split.inputs[batch.index])
        assert torch.equal(batch.labels, split.labels[batch.index])
        seen.append(batch.index.tolist())
        return hard_loss(logits, batch)

    training.fit(models.build((4, 2), 0), split, loss, epochs=2, batch_size=batch_size, learning_rate=0.1)
    assert [len(batch) for batch in seen] == batches * 2
    first, second = sum(seen[: len(batches)], []), sum(seen[len(batches) :], [])
    assert len(set(first)) == len(set(second)) == sum(batches)
    assert first != second


def test_record_is_called_before_training_and_after_each_epoch():
    model, calls = models.build((4, 2), 0), []
    start = model.head.weight.detach().clone()

    def record(epoch, given_model):
        assert given_model is model
        calls.append((epoch, torch.equal(model.head.weight, start), model.training))
        return {"epoch": epoch} if epoch % 2 == 0 else None

    history = training.fit(model, blobs(), hard_loss, **SCHEDULE, record=record)
    assert calls == [(0, True, True)] + [(epoch, False, True) for epoch in range(1, 6)]
    assert history == [{"epoch": 0}, {"epoch": 2}, {"epoch": 4}]


def test_no_epochs_leave_the_model_as_it_was():
    assert torch.equal(trained(epochs=0), torch.cat([p.flatten() for p in models.build((4, 8, 2), 0).parameters()]))


def test_a_loss_that_is_no_longer_finite_says_when():
    calls = []

    def loss(logits, batch):
        calls.append(1)
        return hard_loss(logits, batch) * (math.nan if len(calls) > 2 * 5 else 1)  # five batches an epoch

    with pytest.raises(FloatingPointError, match=r"the loss became nan in epoch 3; try a learning rate below 0\.1"):
        training.fit(models.build((4, 2), 0), blobs(), loss, **SCHEDULE)


@pytest.mark.parametrize(("inputs", "labels"), [(0, 0), (3, 2), (2, 3), (0, 3)])
def test_empty_or_uneven_data(inputs, labels):
    split = Split(torch.zeros(inputs, 4), torch.zeros(labels, dtype=torch.long))
    with pytest.raises(ValueError) as caught:
        training.fit(models.build((4, 2), 0), split, hard_loss, **SCHEDULE)
    expected = f"expected as many labels as inputs, at least one: got {inputs} inputs and {labels} labels"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        ({"epochs": 1.5}, TypeError, r"epochs must be an int, got 1\.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, ValueError, r"learning_rate must be positive and finite, got 0\.0"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be positive and finite, got nan"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate must be positive and finite, got inf"),
        ({"learning_rate": "x"}, TypeError, "learning_rate must be one real number, got 'x'"),
    ],
)
def test_bad_schedules(options, error, message):
    with pytest.raises(error, match=message):
        trained(**options)


@pytest.mark.parametrize("record", [None, lambda epoch, model: pytest.fail("recorded") if epoch else None])
def test_weights_that_are_no_longer_finite_say_when(record):
    """The loss is looked at before each step, so the last step could leave broken weights unseen."""
    options = {"epochs": 1, "batch_size": 40, "learning_rate": 1e308, "record": record}
    with pytest.raises(FloatingPointError, match=r"the weights became infinite or NaN in epoch 1; .* below 1e\+308"):
        training.fit(models.build((4, 8, 2), 0), blobs(), lambda z, batch: 1e3 * hard_loss(z, batch), **options)


# --- schedules


@pytest.mark.parametrize(
    ("schedule", "milestones", "expected"),
    [
        ("constant", (), [1, 1, 1, 1, 1]),
        ("linear", (), [1, 0.9, 0.75, 0.5, 0.1]),
        ("step", (0.5,), [1, 1, 1, 0.1, 0.1]),
        ("step", (0.1, 0.25, 0.9), [1, 0.1, 0.01, 0.01, 0.001]),
        ("one-cycle", (0.25,), [0, 0.4, 1, 2 / 3, 0.4 / 3]),
        ("one-cycle", (0.5,), [0, 0.2, 0.5, 1, 0.2]),
    ],
)
def test_rates_by_hand(schedule, milestones, expected):
    found = [training.rate(schedule, done, milestones) for done in (0.0, 0.1, 0.25, 0.5, 0.9)]
    assert found == pytest.approx(expected, rel=1e-12)


shares = st.floats(0.001, 0.999)


@given(shares, shares, st.floats(0, 0.999), st.floats(0, 1e-3))
def test_one_cycle_is_a_triangle(peak, other, done, step):
    """It rises to 1 at its milestone, falls to 0 at the end, and has no jump."""
    at = training.rate("one-cycle", done, (peak,))
    assert 0 <= at <= 1
    assert training.rate("one-cycle", peak, (peak,)) == 1
    assert training.rate("one-cycle", 1 - 1e-9, (peak,)) == pytest.approx(0, abs=1e-5)
    steepest = 1 / min(peak, 1 - peak)
    assert abs(training.rate("one-cycle", done + step, (peak,)) - at) <= steepest * step + 1e-12
    assert (training.rate("one-cycle", other, (peak,)) <= at) == (_distance(other, peak) >= _distance(done, peak))


def _distance(done, peak):
    """How far the triangle has come from its top: 0 at the peak, 1 at both ends."""
    return 1 - done / peak if done < peak else 1 - (1 - done) / (1 - peak)


@given(st.lists(shares, min_size=1, max_size=4, unique=True), st.floats(0, 0.999))
def test_steps_divide_by_ten(milestones, done):
    passed = sum(1 for m in sorted(milestones) if m <= done)
    assert training.rate("step", done, sorted(milestones)) == pytest.approx(0.1**passed, rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "milestones"),
    [
        ("constant", (0.5,)),
        ("linear", (0.5,)),
        ("one-cycle", ()),
        ("one-cycle", (0.2, 0.5)),
        ("one-cycle", (0.0,)),
        ("one-cycle", (1.0,)),
        ("step", ()),
        ("step", (0.5, 0.25)),
        ("step", (0.5, 1.0)),
        ("step", (math.nan,)),
    ],
)
def test_milestones_that_do_not_suit(schedule, milestones):
    for call in (
        lambda: training.check_milestones(schedule, milestones),
        lambda: trained(schedule=schedule, milestones=milestones),
    ):
        with pytest.raises(ValueError, match="milestones must be rising shares in .* for " + repr(schedule)):
            call()


def test_an_unknown_schedule():
    with pytest.raises(ValueError, match="schedule must be one of .*, got 'onecycle'; did you mean 'one-cycle'"):
        trained(schedule="onecycle")


@pytest.mark.parametrize(("schedule", "milestones"), [("linear", ()), ("step", (0.5, 0.8)), ("one-cycle", (0.3,))])
@pytest.mark.parametrize("interrupted", [False, True])
def test_every_step_has_the_rate_of_its_schedule(tmp_path, schedule, milestones, interrupted):
    """With a loss whose gradient in the bias is 1, each step lowers the bias by its learning rate."""
    model, biases = models.build((4, 2), 0), []

    def loss(logits, batch):
        assert model.training
        biases.append(model.head.bias[0].item())
        return logits.mean(0).sum()

    options = {"epochs": 4, "batch_size": 8, "learning_rate": 0.5, "momentum": 0.0}
    options |= {"schedule": schedule, "milestones": milestones}
    if interrupted:
        options |= {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
        stop_after(2, model, blobs(), loss, **options)
        del biases[10:]  # the steps after the checkpoint are lost, and made again
        model = models.build((4, 2), 1)
    training.fit(model, blobs(), loss, **options)
    found = -np.diff([*biases, model.head.bias[0].item()])
    expected = [0.5 * training.rate(schedule, step / 20, milestones) for step in range(20)]
    assert found == pytest.approx(expected, abs=1e-12)


# --- each option against a loop written by hand


OPTIONS = {
    "momentum": {"momentum": 0.8},
    "heavy ball": {"momentum": 0.8, "nesterov": False},
    "clipped": {"clip_norm": 0.05},
    "weight decay": {"weight_decay": 0.3},
    "decay of one": {"weight_decay": 0.3, "decay_only": ("body.1.0.weight",)},
    "decay of two": {"weight_decay": 0.3, "decay_only": ("head.weight", "body.1.0.bias")},
    "slow head": {"head_factor": 0.1},
    "fast head": {"head_factor": 3.0},
    "schedule": {"schedule": "one-cycle", "milestones": (0.4,)},
    "all": {
        "momentum": 0.8,
        "nesterov": False,
        "clip_norm": 0.05,
        "weight_decay": 0.3,
        "decay_only": ("body.1.0.weight",),
        "head_factor": 0.1,
        "schedule": "step",
        "milestones": (0.5,),
    },
}


def sgd_by_hand(weights, gradients, velocity, rate, options):
    """One step in numpy on dicts by name: clip, decay, momentum, learning rate."""
    clip, decay, names = options.get("clip_norm", 0), options.get("weight_decay", 0), options.get("decay_only", ())
    norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
    factor = min(1, clip / (norm + 1e-6)) if clip else 1  # PyTorch adds the millionth, against a norm of 0
    for name, gradient in gradients.items():
        step = factor * gradient + (decay * weights[name] if name in names or not names else 0)
        velocity[name] = options["momentum"] * velocity[name] + step
        step = step + options["momentum"] * velocity[name] if options.get("nesterov", True) else velocity[name]
        head = options.get("head_factor", 1) if name.startswith("head.") else 1
        weights[name] = weights[name] - rate * head * step


def fit_by_hand(model, split, options):
    """Three epochs of four batches of ten."""
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    velocity = {name: np.zeros_like(w) for name, w in weights.items()}
    generator = torch.Generator().manual_seed(0)
    for epoch in range(3):
        for number, batch in enumerate(torch.randperm(40, generator=generator).split(10)):
            parameters = {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}
            logits = torch.func.functional_call(model, parameters, (split.inputs[batch],)).logits
            F.cross_entropy(logits, split.labels[batch]).backward()
            gradients = {name: p.grad.numpy() for name, p in parameters.items()}
            done = (4 * epoch + number) / 12
            rate = 0.2 * training.rate(options.get("schedule", "constant"), done, options.get("milestones", ()))
            sgd_by_hand(weights, gradients, velocity, rate, options)
    return weights


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_the_loop_by_hand(name):
    options = {"momentum": 0.0} | OPTIONS[name]
    expected = fit_by_hand(models.build((4, 8, 2), 0), blobs(), options)
    model, plain = models.build((4, 8, 2), 0), models.build((4, 8, 2), 0)
    schedule = {"epochs": 3, "batch_size": 10, "learning_rate": 0.2}
    training.fit(model, blobs(), hard_loss, **schedule, **options)
    training.fit(plain, blobs(), hard_loss, **schedule, momentum=0.0)
    for key, weights in model.named_parameters():
        np.testing.assert_allclose(weights.detach(), expected[key], rtol=1e-9, atol=1e-11, err_msg=key)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_without_momentum_nesterov_is_no_matter():
    assert torch.equal(trained(momentum=0.0, nesterov=True), trained(momentum=0.0, nesterov=False))


def test_names_that_no_parameter_has():
    with pytest.raises(ValueError, match=r"decay_only must name parameters of the network, got body\.9, tail\.weight$"):
        trained(decay_only=("tail.weight", "head.weight", "body.9"))


# --- augmentation and dropout


def test_the_loss_sees_the_augmented_view():
    """Once for each batch, with one generator an epoch; labels and indices are those of the originals."""
    split, made, seen, generators = blobs(), [], [], []

    def augment(inputs, generator):
        generators.append(generator)
        made.append(inputs + torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype))
        assert len(inputs) == 8
        return made[-1]

    def loss(logits, batch):
        assert batch.inputs is made[-1]
        noise = batch.inputs - split.inputs[batch.index]
        assert (noise >= 0).all()
        assert (noise < 1).all()
        assert torch.equal(batch.labels, split.labels[batch.index])
        seen.append(noise)
        return hard_loss(logits, batch)

    training.fit(models.build((4, 8, 2), 0), split, loss, epochs=2, batch_size=8, learning_rate=0.1, augment=augment)
    assert len(made) == len(seen) == 10
    assert len(torch.cat(seen).unique(dim=0)) == 80  # no view twice
    assert [g is generators[0] for g in generators] == [True] * 5 + [False] * 5


def test_augmentation_follows_the_seed():
    def augment(inputs, generator):
        return inputs + torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)

    first = trained(augment=augment)
    torch.randn(10)
    assert torch.equal(first, trained(augment=augment))
    assert not torch.equal(first, trained())


def with_dropout(seed, epochs=2):
    model, views = models.build(models.network("fully_connected", (4,), 2, (50,), 0.5), 0), []
    model.body.register_forward_hook(lambda layer, x, y: views.append(y.detach() == 0))
    training.fit(model, blobs(), hard_loss, epochs=epochs, batch_size=40, learning_rate=1e-9, seed=seed)
    return torch.stack(views)


def test_dropout_follows_the_seed_and_leaves_the_global_generator():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = with_dropout(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(10)
    assert torch.equal(first, with_dropout(0))
    assert not torch.equal(first, with_dropout(1))
    assert not torch.equal(first[0], first[1])  # each epoch drops others


def test_random_numbers_outside_go_on_as_if_nothing_had_been():
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    with pytest.raises(KeyError), training._random_state(3, "cpu"):
        torch.randn(100)
        raise KeyError
    assert torch.equal(torch.randn(3), expected)


# --- precision


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512f", "float32"),
        ("fpu avx512f avx512_bf16", "bfloat16"),
        ("fpu amx_bf16 amx_tile", "bfloat16"),
        ("avx512_bf16x", "float32"),
        ("", "float32"),
    ],
)
def test_best_precision_of_a_cpu(monkeypatch, flags, expected):
    monkeypatch.setattr(training, "_cpu_flags", lambda: set(flags.split()))
    assert training.best_precision("cpu") == expected
    assert training.best_precision(torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor : 0\nmodel name : X\nflags\t\t: fpu avx2\n\nprocessor : 1\nflags : x\n",
            {"fpu", "avx2"},
        ),
        ("processor : 0\nFeatures : fp asimd bf16\n", set()),
        ("", set()),
        (None, set()),
    ],
)
def test_flags_of_a_cpu(monkeypatch, text, expected):
    """As Linux writes them on Intel and on ARM; no file where the system is another."""

    def fake_open(path):
        assert path == "/proc/cpuinfo"
        if text is None:
            raise FileNotFoundError(path)
        return io.StringIO(text)

    monkeypatch.setattr(training, "open", fake_open, raising=False)
    assert training._cpu_flags() - {"flags", ":"} == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_best_precision_of_a_gpu(monkeypatch, capability, expected):
    """T4, A100, H100."""
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    assert training.best_precision("cuda:1") == expected
    assert asked == ["cuda:1"]


def test_precision_of_a_spec(monkeypatch):
    monkeypatch.setattr(training, "best_precision", lambda device: f"best of {device}")
    assert training.precision_of("auto", "cuda:1") == "best of cuda:1"
    assert [training.precision_of(dtype, "cuda:1") for dtype in training.PRECISIONS] == list(training.PRECISIONS)


def picture_split(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Split(torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(count) % 4)


def picture_net(name="resnet20", dtype=torch.float32, dropout=0.0, seed=0):
    normalise = models.Normalise([0.5], [0.3])
    hidden = (6, 5) if name == "fully_connected" else ()
    return models.build(models.network(name, (1, 8, 8), 4, hidden, dropout, normalise), seed, dtype)


@pytest.mark.parametrize("name", ["fully_connected", "alexnet", "resnet20"])
@pytest.mark.parametrize(
    ("precision", "computes"),
    [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32), (None, torch.float32)],
)
def test_layers_compute_in_the_precision_and_weights_stay(name, precision, computes):
    model, layers = picture_net(name), []
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(lambda layer, x, y: layers.append(y.dtype))

    def loss(logits, batch):
        assert logits.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        return hard_loss(logits, batch)

    start = model.head.weight.detach().clone()
    training.fit(model, picture_split(), loss, epochs=1, batch_size=20, learning_rate=0.1, precision=precision)
    assert set(layers) == {computes}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.equal(model.head.weight, start)
    assert training.predict(model, picture_split().inputs, precision=precision).logits.dtype == computes


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_half_precision_ends_near_float32(precision, clip_norm):
    """Steps of a thousandth of a weight add up, which they would not if weights were rounded to half precision.

    Clipping looks at the gradients themselves, not at those that the scaler has lifted.
    """
    options = {"epochs": 20, "batch_size": 10, "learning_rate": 1e-3, "clip_norm": clip_norm}
    ends = []
    for given_ in (None, precision):
        model = models.build((4, 8, 2), 0, torch.float32)
        split = Split(blobs().inputs.float(), blobs().labels)
        training.fit(model, split, hard_loss, **options, precision=given_)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in models.build((4, 8, 2), 0, torch.float32).parameters()])
    assert (ends[1] - ends[0]).norm() < 0.05 * (ends[0] - start).norm()


def test_float16_loses_no_small_gradients():
    """A loss of 1e-6 has gradients below what float16 holds: the scaler lifts them."""
    split = Split(blobs().inputs.float(), blobs().labels)
    ends = []
    for precision in (None, "float16"):
        model = models.build((4, 8, 2), 0, torch.float32)
        start = model.body[1][0].weight.detach().clone()
        options = {"epochs": 2, "batch_size": 10, "learning_rate": 1e5, "momentum": 0.0, "precision": precision}
        training.fit(model, split, lambda z, batch: 1e-6 * hard_loss(z, batch), **options)
        ends.append(model.body[1][0].weight.detach() - start)
    torch.testing.assert_close(ends[1], ends[0], rtol=0.05, atol=0.02 * ends[0].abs().max().item())


def test_an_unknown_precision():
    with pytest.raises(ValueError, match="precision must be one of .*, got 'float23'; did you mean 'float32'"):
        trained(precision="float23")
    with pytest.raises(ValueError, match="precision must be one of"):
        training.predict(models.build((4, 2), 0), torch.zeros(1, 4), precision="half")


# --- checkpoints


class Stopped(Exception):
    """In place of a kill, where a real one would only take longer."""


def stop_after(epoch, model, split, loss, record=None, **options):
    """Train until the checkpoint of `epoch` lies there, and stop in the next epoch."""

    def stopping(at, model):
        if at > epoch:
            raise Stopped
        return record(at, model) if record else None

    with pytest.raises(Stopped):
        training.fit(model, split, loss, record=stopping, **options)


def everything(model):
    """All weights and buffers, as bytes by name."""
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def views(inputs, generator):
    return images.random_flip(images.random_shift(inputs, 2, generator), generator)


def measure(epoch, model):
    return {"epoch": epoch, "norm": model.head.weight.norm().item()} if epoch != 2 else None


RESUMED = {
    "batch normalisation": ("resnet20", {}),
    "bfloat16": ("resnet20", {"precision": "bfloat16", "clip_norm": 0.5, "weight_decay": 1e-3}),
    "gradient scaler": ("resnet20", {"precision": "float16"}),
    "dropout": ("fully_connected", {"head_factor": 0.5, "nesterov": False}),
    "dropout in float16": ("fully_connected", {"precision": "float16"}),
    "no momentum": ("alexnet", {"momentum": 0.0}),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_parts_are_one_run_to_the_last_bit(tmp_path, name, dtype):
    network, options = RESUMED[name]
    if dtype == torch.float64 and "precision" in options:
        pytest.skip("half precision belongs to float32 weights")
    dropout = 0.5 if network == "fully_connected" else 0.0
    options = options | {"epochs": 5, "batch_size": 16, "learning_rate": 0.05, "schedule": "one-cycle"}
    options |= {"milestones": (0.4,), "augment": views, "record": measure, "seed": 3}
    whole = picture_net(network, dtype, dropout)
    history = training.fit(whole, picture_split(), hard_loss, **options)
    options |= {"checkpoint": tmp_path / "c.safetensors", "checkpoint_seconds": 0}
    stop_after(3, picture_net(network, dtype, dropout), picture_split(), hard_loss, **options)
    torch.randn(5)
    part = picture_net(network, dtype, dropout, seed=9)  # what it starts from is no matter
    assert training.fit(part, picture_split(), hard_loss, **options) == history
    assert [row["epoch"] for row in history] == [0, 1, 3, 4, 5]
    assert everything(part) == everything(whole)


def test_the_gradient_scaler_goes_on_where_it_was(tmp_path):
    """Gradients of 1e6 overflow float16 at the first scales: steps are left out, and the scale must stay lowered."""
    split = Split(blobs().inputs.float(), blobs().labels)
    options = {"epochs": 4, "batch_size": 20, "learning_rate": 1e-6, "precision": "float16"}

    def loss(logits, batch):
        return 1e4 * hard_loss(logits, batch)

    whole, part = (models.build((4, 8, 2), seed, torch.float32) for seed in (0, 1))
    training.fit(whole, split, loss, **options)
    options |= {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
    stop_after(1, models.build((4, 8, 2), 0, torch.float32), split, loss, **options)
    with safe_open(tmp_path / "c", "pt") as file:
        assert json.loads(file.metadata()["progress"])["scaler"]["scale"] < 2**16
    training.fit(part, split, loss, **options)
    assert everything(part) == everything(whole)


KILLED = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import test_training as t
kill_in_writing = {kill_in_writing}
if kill_in_writing:
    real = os.replace
    def replace(*names, calls=[]):
        calls.append(1)
        if len(calls) == kill_in_writing:
            os.kill(os.getpid(), 9)
        real(*names)
    os.replace = replace
def record(epoch, model):
    print(epoch, flush=True)
    time.sleep(0.01)
    return t.measure(epoch, model)
t.killable_run({checkpoint!r}, record)
"""


def killable_run(checkpoint=None, record=measure):
    """(history, model) of 60 epochs of a net with batch normalisation, of some milliseconds each."""
    options = {"epochs": 60, "batch_size": 8, "learning_rate": 0.05, "schedule": "one-cycle", "milestones": (0.3,)}
    options |= {"augment": views, "record": record, "checkpoint": checkpoint, "checkpoint_seconds": 0}
    model = models.build(lambda: models.ResNet(1, 1, 4, models.Normalise([0.5], [0.3])), 0, torch.float32)
    history = training.fit(model, picture_split(24), hard_loss, **options)
    return history, model


def start_killable(checkpoint, kill_in_writing=0):
    here = Path(__file__).parent
    code = KILLED.format(
        root=str(here.parent), tests=str(here), checkpoint=str(checkpoint), kill_in_writing=kill_in_writing
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_killed_at_a_random_moment_and_resumed(tmp_path):
    """Twice killed without warning, wherever it happened to be, the run ends with the bits of an undisturbed one."""
    checkpoint, epochs = tmp_path / "c.safetensors", []
    for lives in (4, 8):  # epochs that it is seen to finish before the blow
        with start_killable(checkpoint) as process:
            epochs.append([int(next(process.stdout)) for _ in range(lives)])
            time.sleep(random.uniform(0, 0.05))
            process.kill()
        assert process.returncode == -signal.SIGKILL
    assert epochs[1][0] >= epochs[0][-1]  # it went on, and did not start afresh
    history, model = killable_run(checkpoint)
    expected, undisturbed = killable_run()
    assert history == expected
    assert everything(model) == everything(undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_killed_while_writing_leaves_the_older_checkpoint(tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    with start_killable(checkpoint, kill_in_writing=3) as process:
        assert [int(line) for line in process.stdout] == [0, 1, 2, 3]
    assert process.returncode == -signal.SIGKILL
    with safe_open(checkpoint, "pt") as file:
        assert json.loads(file.metadata()["progress"])["epoch"] == 2
    history, model = killable_run(checkpoint)
    expected, undisturbed = killable_run()
    assert (history, everything(model)) == (expected, everything(undisturbed))


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch, broken):
    checkpoint, real, calls = tmp_path / "c", getattr(os, broken), []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, broken, failing)
    with pytest.raises(OSError, match="no space left for c .* nothing was written"):
        trained(checkpoint=checkpoint, checkpoint_seconds=0)
    assert list(tmp_path.iterdir()) == [checkpoint]
    with safe_open(checkpoint, "pt") as file:
        assert json.loads(file.metadata()["progress"])["epoch"] == 1


def test_a_checkpoint_remembers_how_long_the_training_took(tmp_path, monkeypatch):
    """Regression: of a run that was stopped, only the last leg was counted."""
    now = [1000.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])

    def record(epoch, model):
        now[0] += 10.0  # so long is an epoch, and the start

    options = SCHEDULE | {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0, "record": record}
    assert training.seconds_before(tmp_path / "c") == training.seconds_before(None) == 0.0
    stop_after(2, models.build((4, 2), 0), blobs(), hard_loss, **options)
    first = training.seconds_before(tmp_path / "c")
    assert first == 30.0
    stop_after(4, models.build((4, 2), 0), blobs(), hard_loss, **options)
    assert training.seconds_before(tmp_path / "c") == first + 20.0
    (tmp_path / "c").write_bytes(b"no checkpoint")
    with pytest.raises(training.DamagedCheckpointError, match="delete it to start afresh"):
        training.seconds_before(tmp_path / "c")


def test_a_checkpoint_is_written_when_it_is_time(tmp_path, monkeypatch):
    """Every 60 seconds at the end of an epoch, never after the last."""
    now, written = [0.0], []
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(training, "_save_checkpoint", lambda path, stepper, epoch, *_: written.append(epoch))

    def record(epoch, model):
        now[0] = 25.0 * epoch

    options = {"batch_size": 8, "learning_rate": 0.1, "record": record}
    training.fit(models.build((4, 2), 0), blobs(), hard_loss, epochs=9, checkpoint=tmp_path / "c", **options)
    assert written == [3, 6]  # after 75 s, and after 75 more; 9 is the end
    training.fit(models.build((4, 2), 0), blobs(), hard_loss, epochs=9, checkpoint_seconds=0, **options)
    assert written == [3, 6]  # without a path, none


def saved_checkpoint(path, sizes=(4, 8, 2), epoch=2, **options):
    options = SCHEDULE | {"checkpoint": path, "checkpoint_seconds": 0} | options
    stop_after(epoch, models.build(sizes, 0), blobs(), hard_loss, **options)
    return path.read_bytes()


def rewritten(data, **metadata):
    """The checkpoint's tensors under other metadata."""
    return save(load(data), metadata or None)


def progress_of(data):
    """What a checkpoint says besides its tensors: the JSON at its beginning is as long as its first 8 bytes say."""
    return json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["progress"])


def without(data, key):
    return rewritten(data, progress=json.dumps({k: v for k, v in progress_of(data).items() if k != key}))


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "no header": lambda data: data[100:],
    "text": lambda data: b"not a checkpoint",
    "no metadata": lambda data: rewritten(data),
    "no json": lambda data: rewritten(data, progress="{"),
    **{f"no {key}": lambda data, key=key: without(data, key) for key in ("plan", "epoch", "history", "scaler")},
    "no weights": lambda data: save({}, {"progress": json.dumps(progress_of(data))}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    path = tmp_path / "some-run.safetensors"
    path.write_bytes(DAMAGE[name](saved_checkpoint(path)))
    expected = rf"(?s)the checkpoint {re.escape(str(path))} does not belong to this run or is damaged .*; delete it"
    with pytest.raises(training.DamagedCheckpointError, match=expected):
        trained(checkpoint=path)


@pytest.mark.parametrize("sizes", [(4, 9, 2), (4, 2), (4, 8, 8, 2)])
def test_another_networks_checkpoint(tmp_path, sizes):
    path = tmp_path / "c"
    saved_checkpoint(path, sizes)
    with pytest.raises(training.DamagedCheckpointError, match="does not belong to this run"):
        trained(checkpoint=path)


@pytest.mark.parametrize(
    "other",
    [
        *({"epochs": 2}, {"epochs": 9}, {"batch_size": 4}, {"seed": 1}, {"learning_rate": 0.2}, {"schedule": "linear"}),
        *({"momentum": 0.5}, {"nesterov": False}, {"weight_decay": 0.1}, {"decay_only": ("head.weight",)}),
        *({"head_factor": 0.5}, {"clip_norm": 0.5}, {"augment": views}, {"schedule": "step", "milestones": (0.5,)}),
    ],
)
def test_another_schedules_checkpoint(tmp_path, other):
    """Regression: two epochs with the checkpoint of a fourth one trained nothing, and said nothing."""
    saved_checkpoint(tmp_path / "c", epoch=4)
    with pytest.raises(
        training.DamagedCheckpointError, match=r"does not belong to this run .*it is of \{.*, not of \{"
    ):
        trained(checkpoint=tmp_path / "c", **other)


def test_a_checkpoint_of_other_milestones(tmp_path):
    """Regression: milestones and the optimizer's settings were not looked at; the run was neither of the two."""
    saved_checkpoint(tmp_path / "c", epoch=4, schedule="step", milestones=(0.2,))
    with pytest.raises(training.DamagedCheckpointError, match=r"'milestones': \[0.2\].*'milestones': \[0.9\]"):
        trained(checkpoint=tmp_path / "c", schedule="step", milestones=(0.9,))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"clip_norm": -1.0}, r"clip_norm must lie in \[0, inf\], got -1.0"),
        ({"weight_decay": -0.5}, r"weight_decay must lie in \[0, inf\], got -0.5"),
        ({"head_factor": -1.0}, "head_factor must be positive and finite, got -1.0"),
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\], got 1.5"),
        ({"seed": 2**50}, "seed must be less than"),
    ],
)
def test_settings_that_would_train_uphill(setting, message):
    with pytest.raises(ValueError, match=message):
        trained(**setting)
    with pytest.raises(TypeError, match="seed must be an int, got 1.5"):
        trained(seed=1.5)


def test_a_record_that_a_checkpoint_cannot_keep(tmp_path):
    """Regression: it was noticed at the first checkpoint, by default after a minute."""
    with pytest.raises(TypeError, match=r"record must return what JSON can hold.*: in epoch 0 it gave \{'loss': "):
        trained(checkpoint=tmp_path / "c", record=lambda epoch, model: {"loss": np.float32(1)})
    trained(record=lambda epoch, model: {"loss": np.float32(1)})  # nothing to keep it in
    history = training.fit(
        *(models.build((4, 2), 0), blobs(), hard_loss),
        **(SCHEDULE | {"checkpoint": tmp_path / "d", "record": lambda epoch, model: {epoch: (3,)}}),
    )
    assert history[0] == {"0": [3]}  # the same whether it was resumed or not


def test_apples_gpu_is_refused():
    with pytest.raises(ValueError, match="device must name a device that is available here.*'mps'"):
        training.check_device("mps")


def test_predict_wants_a_batch():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        training.predict(models.build((4, 2), 0), blobs().inputs, batch_size=0)


def test_a_checkpoint_of_another_precision(tmp_path):
    """float16 has a scaler, whose state the others lack."""
    path, split = tmp_path / "c", Split(blobs().inputs.float(), blobs().labels)
    options = SCHEDULE | {"checkpoint": path, "checkpoint_seconds": 0}
    stop_after(2, models.build((4, 2), 0, torch.float32), split, hard_loss, **options)
    with pytest.raises(training.DamagedCheckpointError, match="does not belong to this run"):
        training.fit(models.build((4, 2), 0, torch.float32), split, hard_loss, **options, precision="float16")


def test_the_bar_of_a_resumed_run_starts_where_it_was(tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(training, "progress_bar", lambda items, **options: bars.append((items, options)) or items)
    saved_checkpoint(tmp_path / "c", epoch=2)
    trained(checkpoint=tmp_path / "c", label="x")
    (_, whole), (_, options) = bars
    assert (whole["initial"], whole["total"]) == (0, 5)
    assert (options["initial"], options["total"], options["desc"]) == (2, 5, "x")


# --- batches of any make, by Adam


class Ragged(NamedTuple):
    """A batch of words: their indices and what to make of them."""

    words: torch.Tensor
    labels: torch.Tensor

    @property
    def arguments(self):
        return (self.words,)


class Tied(torch.nn.Module):
    """Words to words, the embedding and the output layer one matrix; with dropout and a buffer."""

    def __init__(self, width=4, shared=True):
        super().__init__()
        self.embedding, self.drop = torch.nn.Embedding(6, width), torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(width, 6)
        self.register_buffer("seen", torch.zeros(()))
        if shared:
            self.head.weight = self.embedding.weight

    def forward(self, words):
        if self.training:
            self.seen += len(words)
        features = self.drop(self.embedding(words))
        return models.Output(self.head(features), features)


def ragged_batches(epoch):
    """Three batches of 5, 2 and 4 words, others in every epoch."""
    generator = torch.Generator().manual_seed(epoch)
    parts = [torch.randint(6, (size,), generator=generator) for size in (5, 2, 4)]
    return [Ragged(words, (words + 1) % 6) for words in parts]


def halving(step):
    return 0.5 ** (step / 10)


def tied(width=4, shared=True, seed=0):
    return models.build(lambda: Tied(width, shared), seed)


def fit_ragged(model, epochs=5, **options):
    options = {"learning_rate": 0.05, "seed": 0, "plan": {"corpus": "words"}} | options
    return training.fit_batches(model, ragged_batches, hard_loss, halving, epochs=epochs, **options)


def stop_ragged(path, epoch=3, model=None, **options):
    """Train until the checkpoint of `epoch` lies there, and stop in the next epoch."""

    def stopping(at, model):
        if at > epoch:
            raise Stopped

    with pytest.raises(Stopped):
        fit_ragged(model or tied(), record=stopping, keep=training.Keep(path, 0), **options)


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_fit_batches_is_adam_by_hand(clip_norm):
    """Kingma and Ba (2015), algorithm 1, with the rate of each step and Vaswani's β and ε."""
    model, by_hand = tied(), tied()
    model.drop.p = by_hand.drop.p = 0.0
    fit_ragged(model, clip_norm=clip_norm)
    weights, t = list(by_hand.parameters()), 0
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for batch in (batch for epoch in range(1, 6) for batch in ragged_batches(epoch)):
        t += 1
        gradients = torch.autograd.grad(hard_loss(by_hand(batch.words).logits, batch), weights)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        factor = min(1.0, clip_norm / (norm.item() + 1e-6)) if clip_norm else 1.0
        with torch.no_grad():
            for w, g, m, v in zip(weights, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * factor * g)
                v.mul_(0.98).add_(0.02 * (factor * g) ** 2)
                w -= 0.05 * halving(t) * (m / (1 - 0.9**t)) / ((v / (1 - 0.98**t)).sqrt() + 1e-9)
    assert t == 15
    for mine, theirs in zip(weights, model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_batches_are_asked_for_by_epoch_and_recorded():
    asked, model = [], tied()
    history = training.fit_batches(
        model,
        lambda epoch: asked.append(epoch) or ragged_batches(epoch),
        hard_loss,
        halving,
        epochs=3,
        learning_rate=0.05,
        seed=0,
        plan={},
        record=lambda epoch, model: {"epoch": epoch, "seen": model.seen.item()} if epoch != 1 else None,
    )
    assert asked == [1, 2, 3]
    assert history == [{"epoch": 0, "seen": 0.0}, {"epoch": 2, "seen": 22.0}, {"epoch": 3, "seen": 33.0}]


def test_what_calls_the_model_may_be_another():
    calls, model = [], tied()
    plain = tied()
    fit_ragged(model, forward=lambda words: calls.append(len(words)) or model(words))
    fit_ragged(plain)
    assert calls == 5 * [5, 2, 4]
    assert everything(model) == everything(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shared", [True, False])
def test_two_parts_of_adam_are_one_training_to_the_last_bit(tmp_path, dtype, shared):
    """Its step count and both means go on where they were: a fresh start of Adam would end elsewhere."""
    whole, part, fresh = (tied(shared=shared, seed=seed).to(dtype) for seed in (0, 0, 9))
    fit_ragged(whole)
    stop_ragged(tmp_path / "c", model=part)
    torch.randn(5)
    fit_ragged(fresh, keep=training.Keep(tmp_path / "c"))
    assert everything(fresh) == everything(whole)
    with safe_open(tmp_path / "c", "pt") as file:
        names = set(file.keys())
        assert file.get_tensor("step.head.bias").item() == 9  # three epochs of three steps
    weights = {"embedding.weight", "head.bias"} | (
        set() if shared else {"head.weight"}
    )  # a shared matrix is named once
    assert names == {f"{kind}.{name}" for kind in ("model", "step", "exp_avg", "exp_avg_sq") for name in weights} | {
        "model.seen"
    }


def test_a_checkpoint_is_read_but_not_written_by_the_other_processes(tmp_path):
    path, whole, other = tmp_path / "c", tied(), tied(seed=9)
    fit_ragged(whole, keep=training.Keep(path, 0, writes=False))
    assert not path.exists()
    stop_ragged(path)
    before = path.read_bytes()
    fit_ragged(other, keep=training.Keep(path, 0, writes=False))
    assert everything(other) == everything(whole)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {"width": 5}}, "has the shape"),
        ({"model": {"shared": False}}, "other tensors than this network"),
        ({"epochs": 6}, "it is of"),
        ({"learning_rate": 0.1}, "it is of"),
        ({"plan": {"corpus": "other words"}}, "it is of .*'corpus': 'words'.* not of .*'other words'"),
    ],
)
def test_a_checkpoint_of_another_training_by_adam(tmp_path, change, reason):
    stop_ragged(tmp_path / "c")
    model = tied(**change.pop("model", {}))
    with pytest.raises(training.DamagedCheckpointError, match=f"(?s)does not belong to this run .*{reason}"):
        fit_ragged(model, keep=training.Keep(tmp_path / "c"), **change)


@pytest.mark.parametrize("name", ["exp_avg.head.bias", "exp_avg_sq.embedding.weight"])
def test_a_checkpoint_whose_means_do_not_fit_the_weights(tmp_path, name):
    stop_ragged(tmp_path / "c")
    data = (tmp_path / "c").read_bytes()
    state = load(data) | {name: torch.zeros(7, dtype=torch.float64)}
    (tmp_path / "c").write_bytes(save(state, {"progress": json.dumps(progress_of(data))}))
    with pytest.raises(training.DamagedCheckpointError, match="does not belong to this run"):
        fit_ragged(tied(), keep=training.Keep(tmp_path / "c"))


def test_fit_batches_says_what_is_wrong():
    with pytest.raises(ValueError, match="epochs must be at least 0, got -1"):
        fit_ragged(tied(), epochs=-1)
    with pytest.raises(ValueError, match="learning_rate must be positive and finite, got 0"):
        fit_ragged(tied(), learning_rate=0)
    with pytest.raises(FloatingPointError, match=r"in epoch 1; try a learning rate below 1e\+200"):
        fit_ragged(tied(), learning_rate=1e200)
    before = everything(model := tied())
    assert fit_ragged(model, epochs=0) == []
    assert everything(model) == before


# --- memory


class Greedy(FullyConnected):
    """A network for which the device's memory is too small."""

    def forward(self, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(("batch_size", "advice"), [(8, 4), (9, 4), (2, 1)])
def test_out_of_memory_says_which_batch_to_try(batch_size, advice):
    model, split = Greedy((4, 2)).double(), blobs()
    expected = f"does not hold a batch of {batch_size}; try batch_size {advice}, or fewer runs at a time$"
    with pytest.raises(training.DeviceMemoryError, match=expected) as caught:
        training.fit(model, split, hard_loss, epochs=1, batch_size=batch_size, learning_rate=0.1)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_memory_that_does_not_hold_one_example():
    model = Greedy((4, 2)).double().train()
    with pytest.raises(training.DeviceMemoryError, match="does not hold a batch of 1; try the CPU, or a smaller net"):
        training.predict(model, blobs().inputs, 16)
    assert model.training  # predict gives the mode back


def test_predict_takes_fewer_at_a_time_where_memory_is_short():
    class Modest(FullyConnected):
        def forward(self, inputs):
            sizes.append(len(inputs))
            if len(inputs) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().forward(inputs)

    sizes, model, inputs = [], Modest((4, 2)).double(), blobs().inputs
    found = training.predict(model, inputs, 16)
    assert sizes == [16, 8] + [4] * 10
    torch.testing.assert_close(found.logits, model.head(inputs).detach())


# --- predict


@given(st.integers(1, 20), st.integers(1, 25), dtypes.filter(lambda d: d.itemsize > 2))
def test_predict_is_forward(examples, batch_size, dtype):
    model = models.build((4, 3, 2), 0, dtype)
    inputs = torch.randn(examples, 4, generator=torch.Generator().manual_seed(examples), dtype=dtype)
    output = training.predict(model, inputs, batch_size)
    assert not output.logits.requires_grad
    for got, expected in zip(output, model(inputs), strict=True):
        torch.testing.assert_close(got, expected.detach())


@pytest.mark.parametrize("was_training", [True, False])
def test_predict_runs_in_evaluation_mode_and_gives_the_mode_back(was_training):
    class Dropping(FullyConnected):
        def forward(self, inputs):
            assert not self.training
            return super().forward(F.dropout(inputs, 0.5, self.training))

    model = Dropping((4, 2)).train(was_training)
    inputs = torch.ones(3, 4)
    assert torch.equal(*(training.predict(model, inputs).logits for _ in range(2)))
    assert model.training == was_training


def test_predict_nothing():
    with pytest.raises(ValueError, match="inputs must hold at least one example, got none"):
        training.predict(models.build((4, 2), 0), torch.zeros(0, 4))


# --- progress bars


@pytest.fixture
def plain_session(monkeypatch):
    """No notebook, no terminal, no wish."""
    for name in ("LSBOOK_PROGRESS", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ipykernel", "google.colab"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda: False, write=len, flush=int))
    return monkeypatch


def test_bars_in_a_terminal_only(plain_session):
    assert not training.show_progress()
    plain_session.setattr(sys.stderr, "isatty", lambda: True)
    assert training.show_progress()


def test_bars_in_a_live_notebook_not_in_an_executed_one(plain_session):
    plain_session.setattr(sys.stderr, "isatty", lambda: True)
    plain_session.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert not training.show_progress()  # nbclient: a kernel that no reader looks at
    plain_session.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    assert training.show_progress()
    plain_session.delenv("JPY_SESSION_NAME")
    plain_session.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert training.show_progress()


@pytest.mark.parametrize(("wish", "shown"), [("0", False), ("1", True)])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_wish_decides(plain_session, wish, shown, terminal):
    plain_session.setattr(sys.stderr, "isatty", lambda: terminal)
    plain_session.setenv("LSBOOK_PROGRESS", wish)
    assert training.show_progress() == shown


def test_a_bar_gives_the_same_items(monkeypatch):
    monkeypatch.setenv("LSBOOK_PROGRESS", "0")
    items = [3, 1, 2]
    assert training.progress_bar(items, desc="x") is items
    monkeypatch.setenv("LSBOOK_PROGRESS", "1")
    bar = training.progress_bar(items, desc="x", file=io.StringIO())
    assert bar is not items
    assert list(bar) == items


def test_training_prints_nothing_here(capsys):
    trained()
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_on_demand(monkeypatch, capsys):
    monkeypatch.setenv("LSBOOK_PROGRESS", "1")
    trained(label="toy run")
    out, err = capsys.readouterr()
    assert out == ""
    assert "toy run" in err


@pytest.mark.parametrize("unset", [None, ""])
def test_default_device(monkeypatch, unset):
    monkeypatch.delenv("LSBOOK_DEVICE", raising=False)
    if unset is not None:
        monkeypatch.setenv("LSBOOK_DEVICE", unset)
    for available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert training.default_device() == device


def test_a_device_by_wish(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LSBOOK_DEVICE", "cpu")
    assert training.default_device() == "cpu"
    monkeypatch.setattr(torch, "zeros", lambda size, device, real=torch.zeros: real(size))  # a machine with any GPU
    monkeypatch.setenv("LSBOOK_DEVICE", "cuda:1")
    assert training.default_device() == "cuda:1"


@pytest.mark.parametrize("wish", ["gpu", "cuda:99", "cuda:x", "CPU!", "meta", "xla", "0x"])
def test_a_device_that_is_not_there(monkeypatch, wish):
    monkeypatch.setenv("LSBOOK_DEVICE", wish)
    with pytest.raises(ValueError) as caught:
        training.default_device()
    expected = "LSBOOK_DEVICE must name a device that is available here, such as cpu, cuda or cuda:1; got "
    assert str(caught.value) == expected + repr(wish)


# --- plain descent


def test_descent_on_a_parabola_by_hand():
    """x ← x − η · 2 (x − 3), so x_n = 3 + (1 − 2η)ⁿ (x_0 − 3)."""
    start = torch.tensor([0.0, 5.0], dtype=torch.float64)
    result = training.descend(lambda x: 2 * (x - 3), start, learning_rate=0.1, steps=20, measure=lambda x: x)
    powers = 0.8 ** torch.arange(21, dtype=torch.float64)[:, None]
    torch.testing.assert_close(result.measured, 3 + powers * (start - 3))
    assert torch.equal(result.point, result.measured[-1])
    assert start.tolist() == [0.0, 5.0]


def test_descent_measures_numbers_or_nothing():
    options = {"learning_rate": 0.1, "steps": 3}
    start = torch.ones(2)
    measured = training.descend(
        torch.func.grad(lambda x: (x**2).sum()), start, **options, measure=lambda x: x[0].item()
    )
    assert measured.measured.tolist() == pytest.approx([1, 0.8, 0.64, 0.512])
    assert training.descend(lambda x: x, start, **options).measured.shape == (0,)
    assert torch.equal(training.descend(lambda x: x, start, learning_rate=0.1, steps=0).point, start)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    for count, inside in ((2, 2), (1, 1), (None, before)):
        with pytest.raises(KeyError), training.threads(count):
            assert torch.get_num_threads() == inside
            raise KeyError
        assert torch.get_num_threads() == before


def test_descent_that_diverges_says_so():
    with pytest.raises(FloatingPointError, match="gradient descent diverged; try a learning rate below 10"):
        training.descend(lambda x: x**3, torch.tensor([2.0]), learning_rate=10, steps=20)


def test_minimise_moves_all_tensors_to_the_minimum_of_a_parabola():
    x, y = (torch.tensor(start, dtype=torch.float64, requires_grad=True) for start in ([3.0, -2.0], [[10.0]]))
    end = training.minimise(lambda: ((x - 1) ** 2).sum() + 100 * (y[0, 0] + x[0]) ** 2 + 0.5, [x, y])
    np.testing.assert_allclose(x.detach(), [1, 1], atol=1e-9)
    np.testing.assert_allclose(y.detach(), [[-1]], atol=1e-9)
    assert end == pytest.approx(0.5, abs=1e-15)


def test_minimise_needs_far_fewer_steps_than_descent_in_a_narrow_valley():
    """Rosenbrock's valley, from the place where everyone starts."""
    point = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    end = training.minimise(lambda: (1 - point[0]) ** 2 + 100 * (point[1] - point[0] ** 2) ** 2, [point], steps=60)
    assert end < 1e-16
    np.testing.assert_allclose(point.detach(), [1, 1], atol=1e-7)


def test_minimise_stops_after_its_steps():
    point = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    assert training.minimise(lambda: (1 - point[0]) ** 2 + 100 * (point[1] - point[0] ** 2) ** 2, [point], steps=3) > 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_minimise_that_starts_nowhere_says_so(value):
    point = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(FloatingPointError, match=f"L-BFGS came to a loss of {value}"):
        training.minimise(lambda: (value * point).sum(), [point])


def test_minimise_that_ends_nowhere_says_so():
    point = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(FloatingPointError, match="L-BFGS came to a loss of (nan|-inf)"):
        training.minimise(lambda: torch.log(point).sum(), [point])


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_descent_on_logits_is_autograds_and_ends_at_the_target(alpha):
    target = targets.smooth_labels([2], 5, alpha, dtype=torch.float64)
    start = torch.tensor([[0.5, -1.0, 0.0, 2.0, 1.0]], dtype=torch.float64)

    def gradient(z):
        z = z.clone().requires_grad_()
        return torch.autograd.grad(targets.smoothed_cross_entropy(z, torch.tensor([2]), alpha), z)[0]

    expected = training.descend(gradient, start, learning_rate=0.7, steps=10).point
    found = training.descend_logits(target, start, learning_rate=0.7, steps=10)
    torch.testing.assert_close(found.point, expected)
    end = training.descend_logits(target, learning_rate=2.0, steps=2000).point
    torch.testing.assert_close(end.softmax(-1), target)
    assert (end[0, 2] - end[0, 0]).item() == pytest.approx(theory.optimal_gap(alpha, 5), abs=1e-9)


# --- a GPU


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@needs_gpu
def test_cuda_graphs_train_the_same_network(monkeypatch):
    """Weights and running means after two epochs of a small ResNet, metrics recorded in between."""
    data = datasets.digit_images("cuda")
    split = Split(data.train.inputs[:256], data.train.labels[:256])

    def state(wish):
        monkeypatch.setenv("LSBOOK_CUDA_GRAPHS", wish)
        normalise = models.Normalise([0.3], [0.4])
        model = models.build(lambda: models.ResNet(1, 1, 10, normalise), 0, torch.float32, "cuda")
        options = {"epochs": 2, "batch_size": 64, "learning_rate": 0.05, "precision": training.best_precision("cuda")}
        training.fit(
            model, split, hard_loss, record=lambda *_: training.predict(model, split.inputs) and None, **options
        )
        return model.state_dict()

    graphs, eager = state("1"), state("0")
    for name, tensor in eager.items():
        torch.testing.assert_close(graphs[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@needs_gpu
@pytest.mark.parametrize("spec", presets.specs("smoke"), ids=lambda spec: spec.name)
def test_smoke_runs_on_a_gpu(spec):
    run = experiments.train(spec, "cuda")
    assert run.provenance["device_name"] == torch.cuda.get_device_name()
    assert np.isfinite(run.history[-1]["test_nll"])


# --- several networks side by side


def _networks(count):
    return [models.build((5, 8, 3), seed) for seed in range(count)]


def _splits(count, examples=20):
    generator = torch.Generator().manual_seed(0)
    return [
        Split(
            torch.randn(examples, 5, generator=generator, dtype=torch.float64),
            torch.randint(3, (examples,), generator=generator),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("batch_size", [7, 20, 50])
def test_side_by_side_is_the_same_as_one_after_the_other(batch_size):
    together, alone, splits = _networks(3), _networks(3), _splits(3)
    settings = {"epochs": 3, "batch_size": batch_size, "learning_rate": 0.1}
    training.fit_together(together, splits, hard_loss, **settings, seeds=(4, 5, 6))
    for network, split, seed in zip(alone, splits, (4, 5, 6), strict=True):
        training.fit(network, split, hard_loss, **settings, seed=seed)
    for mine, its in zip(together, alone, strict=True):
        for a, b in zip(mine.parameters(), its.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_side_by_side_numbers_the_examples_through_the_splits():
    splits, seen = _splits(2), []

    def loss(logits, batch):
        seen.append(batch)
        return hard_loss(logits, batch)

    training.fit_together(_networks(2), splits, loss, epochs=2, batch_size=8, learning_rate=0.1, seeds=(0, 1))
    everything = torch.cat([split.inputs for split in splits]), torch.cat([split.labels for split in splits])
    assert len(seen) == 4  # 2 full batches an epoch
    for batch in seen:
        torch.testing.assert_close(batch.inputs.flatten(0, 1), everything[0][batch.index])
        torch.testing.assert_close(batch.labels, everything[1][batch.index])


def test_side_by_side_refuses_lists_of_different_lengths():
    with pytest.raises(ValueError, match="got 2, 3 and 2"):
        training.fit_together(
            _networks(2), _splits(3), hard_loss, epochs=1, batch_size=5, learning_rate=0.1, seeds=(0, 1)
        )


def test_side_by_side_notices_a_loss_that_is_not_finite():
    settings = {"epochs": 2, "batch_size": 5, "learning_rate": 1, "seeds": [0]}
    with pytest.raises(FloatingPointError, match="in epoch 1"):
        training.fit_together(_networks(1), _splits(1), lambda logits, _: logits.sum() * torch.nan, **settings)
