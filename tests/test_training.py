"""Data, networks, training and prediction."""

import io
import math
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from strategies import dtypes

from lsbook import datasets, models, targets, theory, training
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


# --- models


def test_logits_are_features_times_templates():
    model = models.build((6, 5, 4, 3), seed=0)
    inputs = torch.randn(7, 6, dtype=torch.float64)
    output = model(inputs)
    assert output.logits.shape == (7, 3)
    assert output.features.shape == (7, 4)
    assert (output.features >= 0).all()
    torch.testing.assert_close(output.logits, output.features @ model.head.weight.T + model.head.bias)


def test_network_by_hand():
    model = models.build((3, 4, 2), seed=1)
    weights = [p.detach().numpy() for p in model.parameters()]
    x = np.array([[0.5, -1.0, 2.0]])
    by_hand = np.maximum(x @ weights[0].T + weights[1], 0) @ weights[2].T + weights[3]
    np.testing.assert_allclose(model(torch.tensor(x)).logits.detach(), by_hand, rtol=1e-14)


def test_images_are_flattened_and_no_hidden_layer_is_allowed():
    model = models.build((12, 3), seed=0)
    output = model(torch.randn(2, 3, 4, dtype=torch.float64))
    assert output.logits.shape == (2, 3)
    assert output.features.shape == (2, 12)


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    first = models.build((6, 5, 3), seed=0)
    torch.randn(100)
    again, other = models.build((6, 5, 3), seed=0), models.build((6, 5, 3), seed=1)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)


def test_building_leaves_the_global_generator_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    models.build((6, 5, 3), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_building_does_not_reset_the_generator_of_a_gpu(monkeypatch):
    """Regression: torch.manual_seed seeds every device, and fork_rng(devices=[]) gives only the CPU's back."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    models.build((6, 3), seed=0)
    assert seeded == []


def test_dtype_of_a_model():
    for dtype in (torch.float32, torch.float64):
        assert {p.dtype for p in models.build((4, 3, 2), 0, dtype).parameters()} == {dtype}


@pytest.mark.parametrize("sizes", [(), (5,)])
def test_too_few_sizes(sizes):
    with pytest.raises(ValueError) as caught:
        FullyConnected(sizes)
    assert str(caught.value) == f"sizes must name at least inputs and num_classes, got {sizes}"


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
        for start in range(0, 10, batch_size):
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


def test_every_epoch_shows_each_example_once():
    split, seen = blobs(10), []

    def loss(logits, batch):
        assert torch.equal(batch.inputs, split.inputs[batch.index])
        assert torch.equal(batch.labels, split.labels[batch.index])
        seen.append(batch.index.tolist())
        return hard_loss(logits, batch)

    training.fit(models.build((4, 2), 0), split, loss, epochs=2, batch_size=4, learning_rate=0.1)
    assert [len(batch) for batch in seen] == [4, 4, 2] * 2
    first, second = sum(seen[:3], []), sum(seen[3:], [])
    assert sorted(first) == sorted(second) == list(range(10))
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
