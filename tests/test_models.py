"""Networks against PyTorch's own layers, hand-written forwards and parameter counts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dtypes
from torch import nn

from lsbook import models
from lsbook.models import AlexNet, FullyConnected, LocalResponseNorm, Normalise, ResidualBlock, ResNet

# The layer keeps its α/n in float32, half an ulp off: 6e-8 of the sum.
LRN_TOLERANCE = {"rtol": 1e-7, "atol": 0}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameters(model):
    return sum(weights.numel() for weights in model.parameters())


def settled(model, inputs):
    """The model in evaluation mode, after batch normalisation has seen some inputs."""
    model.train()
    for _ in range(3):
        model(inputs)
    return model.eval()


# --- fully connected


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


def test_dropout_acts_in_training_only():
    inputs = normal(200, 6)
    model, plain = (models.build(models.network("fully_connected", (6,), 3, (500,), p), seed=0) for p in (0.5, 0.0))
    torch.manual_seed(0)
    features, expected = model.train()(inputs).features, plain(inputs).features
    kept = features != 0
    torch.testing.assert_close(features[kept], 2 * expected[kept])  # scaled up, so that the mean stays
    assert kept[expected > 0].double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert all(torch.equal(a, b) for a, b in zip(model.eval()(inputs), plain(inputs), strict=True))


def test_each_hidden_layer_has_its_dropout():
    widths = []
    model = FullyConnected((6, 5, 4, 3), dropout=0.25)
    for layer in {layer for layer in model.modules() if isinstance(layer, nn.Dropout)}:
        assert layer.p == 0.25
        layer.register_forward_hook(lambda layer, x, y: widths.append(y.shape[1]))
    model(torch.zeros(1, 6))
    assert widths == [5, 4]
    assert not any(isinstance(layer, nn.Dropout) for layer in FullyConnected((6, 5, 4, 3)).modules())


@pytest.mark.parametrize("dropout", [-0.1, 1.1, float("nan")])
def test_dropout_is_a_probability(dropout):
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\]"):
        FullyConnected((4, 3, 2), dropout)


# --- pixels to numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalise_by_hand(dtype):
    mean, std = np.array([0.5, 0.1, 0.9]), np.array([0.25, 1.0, 0.01])
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), dtype=np.uint8)
    pixels[0, :, 0, :2] = 0, 255
    layer = Normalise(mean, std).to(dtype)
    expected = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    found = layer(torch.tensor(pixels))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=100 * torch.finfo(dtype).eps)


def test_normalise_passes_what_is_floating_point():
    inputs = normal(2, 3, 4, 4)
    assert Normalise([0.5] * 3, [0.2] * 3)(inputs) is inputs


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_channel_without_spread_cannot_be_normalised(std):
    with pytest.raises(ValueError, match="std must be positive in every channel, got"):
        Normalise([0.5, 0.5], [0.2, std])


@pytest.mark.parametrize("name", models.NETWORKS)
def test_networks_take_pixels(name):
    """Given pixels, a network computes what it computes of the normalised images."""
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    make = models.network(name, (3, 8, 8), 10, (7,) if name == "fully_connected" else (), 0.0, Normalise(mean, std))
    model = models.build(make, 0).eval()
    pixels = torch.randint(256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    by_hand = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(model(pixels).logits, model(by_hand.double()).logits, rtol=1e-5, atol=1e-5)


# --- local response normalisation


def norm_by_hand(x, size=9, alpha=1e-3, beta=0.75, divide=True):
    """The sum written out, one channel after the other, in float64."""
    squares, result = x.double() ** 2, []
    for i in range(x.shape[1]):
        around = squares[:, max(0, i - size // 2) : i + size // 2 + 1].sum(1)
        result.append(x[:, i].double() / (1 + alpha / (size if divide else 1) * around) ** beta)
    return torch.stack(result, 1)


def reference_norm(size=9):
    return nn.LocalResponseNorm(size, alpha=1e-3, beta=0.75, k=1)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 6), st.integers(1, 6))
scales = st.sampled_from([1e-3, 1.0, 30.0, 1e3])  # at 30 the sum is about as large as the 1, at 1,000 it is all


@settings(max_examples=60)
@given(shapes, scales, st.integers(0, 2**32), st.sampled_from([1, 3, 5, 9]))
def test_local_response_norm_is_pytorchs_and_the_written_out_sum(shape, scale, seed, size):
    x = (scale * normal(*shape, seed=seed)).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    found, expected = LocalResponseNorm(shape[1], size).double()(x), reference_norm(size)(twin)
    torch.testing.assert_close(found, expected, **LRN_TOLERANCE)
    torch.testing.assert_close(found, norm_by_hand(x, size), **LRN_TOLERANCE)
    weight = normal(*shape, seed=seed + 1)
    gradient, wanted = (torch.autograd.grad((y * weight).sum(), z)[0] for y, z in ((found, x), (expected, twin)))
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max().item())


def test_local_response_norm_in_float32_and_channels_last():
    x = 30 * normal(2, 64, 5, 7, dtype=torch.float32).to(memory_format=torch.channels_last)
    found = LocalResponseNorm(64)(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, norm_by_hand(x).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mistake", [{"divide": False}, {"size": 4 * 2 + 3}, {"size": 7}, {"beta": 0.5}])
def test_the_usual_mistakes_are_not_within_tolerance(mistake):
    x = 30 * normal(2, 64, 4, 4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(LocalResponseNorm(64).double()(x), norm_by_hand(x, **mistake), rtol=1e-3, atol=0)


def test_local_response_norm_has_no_weights():
    assert list(LocalResponseNorm(8).parameters()) == []
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        LocalResponseNorm(8, 0)
    with pytest.raises(ValueError, match="size must be odd, as many channels on both sides, got 4"):
        LocalResponseNorm(8, 4)


def test_the_norm_of_large_activations_in_float16():
    """Regression: 300² is infinite in float16, so that large activations became 0."""
    x = torch.full((1, 9, 2, 2), 300.0)
    expected = LocalResponseNorm(9)(x)
    found = LocalResponseNorm(9)(x.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=0)


# --- AlexNet


def alexnet_by_hand(model, x, norm_before_pool=(False, True)):
    """The paper's order with PyTorch's own functions: conv, pool, norm; conv, norm, pool; two dense layers."""
    weights = dict(model.named_parameters())
    for name, norm_first in zip(("conv1", "conv2"), norm_before_pool, strict=True):
        x = F.relu(F.conv2d(x, weights[f"body.{name}.0.weight"], weights[f"body.{name}.0.bias"], padding=2))
        steps = [lambda x: F.max_pool2d(x, 3, 2, 1), reference_norm()]
        for step in reversed(steps) if norm_first else steps:
            x = step(x)
    x = x.flatten(1)
    for name in ("dense1", "dense2"):
        x = F.relu(x @ weights[f"body.{name}.0.weight"].T + weights[f"body.{name}.0.bias"])
    return x @ weights["head.weight"].T + weights["head.bias"], x


def test_alexnet_by_hand():
    """Inputs so large that the norm matters: 100 standard deviations."""
    model, x = models.build(AlexNet, 0), 100 * normal(3, 3, 32, 32)
    logits, features = alexnet_by_hand(model, x)
    output = model(x)
    torch.testing.assert_close(output.logits, logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(output.features, features, rtol=1e-6, atol=1e-6)
    for other in ((True, True), (False, False), (True, False)):
        wrong, _ = alexnet_by_hand(model, x, other)
        assert (wrong - logits).abs().max() > 1e-3 * logits.abs().max(), other


def test_alexnet_shapes():
    model = AlexNet()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "body.conv1.0.weight": (64, 3, 5, 5),
        "body.conv2.0.weight": (64, 64, 5, 5),
        "body.dense1.0.weight": (384, 8 * 8 * 64),
        "body.dense2.0.weight": (192, 384),
        "head.weight": (10, 192),
    }
    biases = 64 + 64 + 384 + 192 + 10
    assert parameters(model) == 4_800 + 102_400 + 1_572_864 + 73_728 + 1_920 + biases
    outputs = {}
    for name in ("conv1", "conv2", "dense1"):
        layer = getattr(model.body, name)
        layer.register_forward_hook(lambda layer, x, y, name=name: outputs.update({name: tuple(y.shape)}))
    model(torch.zeros(2, 3, 32, 32))
    assert outputs == {"conv1": (2, 64, 16, 16), "conv2": (2, 4096), "dense1": (2, 384)}


@pytest.mark.parametrize("side", [30, 33])
def test_alexnet_needs_sides_that_halve_twice(side):
    with pytest.raises(ValueError, match=f"side must be a multiple of 4, got {side}"):
        AlexNet(side=side)
    with pytest.raises(ValueError, match="side must be at least 4, got 0"):
        AlexNet(side=0)


# --- ResNet


def resnet_parameters(blocks, num_classes, channels=3):
    """Counted from He et al.: 6n + 2 layers, two numbers of each batch normalisation for every channel."""
    stem = channels * 16 * 9 + 2 * 16
    stages, before = 0, 16
    for width in (16, 32, 64):
        stages += before * width * 9 + (2 * blocks - 1) * width * width * 9 + 2 * blocks * 2 * width
        before = width
    return stem + stages + 64 * num_classes + num_classes


@pytest.mark.parametrize(
    ("name", "depth", "published", "exact"),
    [("resnet20", 20, 0.27, {10: 269_722, 100: 275_572}), ("resnet56", 56, 0.85, {10: 853_018, 100: 858_868})],
)
def test_resnet_depth_and_parameters(name, depth, published, exact):
    """0.27 and 0.85 million are He et al.'s Table 6."""
    for num_classes, count in exact.items():
        model = models.network(name, (3, 32, 32), num_classes)()
        assert sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in model.modules()) == depth
        assert parameters(model) == count == resnet_parameters((depth - 2) // 6, num_classes)
        assert count / 1e6 == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize(("inputs", "outputs", "side"), [(4, 4, 6), (4, 8, 6), (16, 32, 8), (2, 4, 5)])
def test_shortcut_by_hand(inputs, outputs, side):
    """With the branch switched off, a block is its shortcut: every other pixel, zeros in the new channels."""
    block, x = ResidualBlock(inputs, outputs).double(), normal(2, inputs, side, side)
    nn.init.zeros_(block.norm2.weight)
    expected = np.maximum(x.numpy(), 0)
    if outputs != inputs:
        expected, extra = expected[:, :, ::2, ::2], (outputs - inputs) // 2
        expected = np.pad(expected, ((0, 0), (extra, extra), (0, 0), (0, 0)))
    np.testing.assert_array_equal(block(x).detach(), expected)


def norm_batch(x, layer, training):
    """Batch normalisation in the formula: the batch's mean and (biased) variance, or the running ones."""
    mean, variance = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
    if not training:
        mean, variance = layer.running_mean, layer.running_var
    mean, scale, bias = (t[:, None, None] for t in (mean, layer.weight / (variance + 1e-5).sqrt(), layer.bias))
    return (x - mean) * scale + bias


def resnet_by_hand(model, x, training):
    stem, norm, _, *blocks = model.body[:-1]
    x = F.relu(norm_batch(F.conv2d(x, stem.weight, padding=1), norm, training))
    for i, b in enumerate(blocks):
        first_of_stage = i > 0 and i % (len(blocks) // 3) == 0
        stride = 2 if first_of_stage else 1
        y = F.relu(norm_batch(F.conv2d(x, b.conv1.weight, stride=stride, padding=1), b.norm1, training))
        y = norm_batch(F.conv2d(y, b.conv2.weight, padding=1), b.norm2, training)
        if first_of_stage:
            zeros = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
            x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
        x = F.relu(x + y)
    features = x.mean((2, 3))
    return features @ model.head.weight.T + model.head.bias, features


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_resnet_by_hand(blocks, training):
    model, x = models.build(lambda: ResNet(blocks), 0), normal(4, 3, 8, 8)
    settled(model, normal(16, 3, 8, 8, seed=1)).train(training)
    expected = resnet_by_hand(model, x, training)
    for found, wanted in zip(model(x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_resnet_trains_on_batches_and_predicts_image_by_image():
    model, x = models.build(lambda: ResNet(1), 0), normal(8, 3, 8, 8)
    settled(model, x)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.testing.assert_close(model(x).logits[:3], model(x[:3]).logits)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    model.train()
    assert not torch.allclose(model(x).logits[:3], model(x[:3]).logits)
    assert not torch.equal(before["body.1.running_mean"], model.body[1].running_mean)


def test_resnet_needs_a_block():
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        ResNet(0)


# --- all networks


@pytest.mark.parametrize(
    ("name", "width", "hidden"),
    [("fully_connected", 11, (12, 11)), ("alexnet", 192, ()), ("resnet20", 64, ()), ("resnet56", 64, ())],
)
@pytest.mark.parametrize(("shape", "num_classes"), [((3, 32, 32), 10), ((1, 28, 28), 100)])
def test_features_and_logits_of_every_network(name, width, hidden, shape, num_classes):
    model = models.build(models.network(name, shape, num_classes, hidden), 0)
    logits, features = settled(model, normal(4, *shape))(normal(2, *shape, seed=1))
    assert (tuple(logits.shape), tuple(features.shape)) == ((2, num_classes), (2, width))
    assert (features >= 0).all()
    assert features.any()
    torch.testing.assert_close(logits, features @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("alexnett", (3, 32, 32), 10),
            ValueError,
            "got 'alexnett'; did you mean 'alexnet'",
        ),
        ((None, (3, 32, 32), 10), TypeError, "network must be a string, got None"),
        (
            ("alexnet", (3, 32, 32), 10, (5,)),
            ValueError,
            r"got hidden=\(5,\), dropout=0.0 for alexnet",
        ),
        (("resnet20", (3, 32, 32), 10, (), 0.5), ValueError, r"got hidden=\(\), dropout=0.5 for resnet20"),
        (("resnet20", (3, 32, 28), 10), ValueError, r"resnet20 takes inputs of shape \(C, S, S\), got \(3, 32, 28\)"),
        (("alexnet", (64,), 10), ValueError, r"alexnet takes inputs of shape \(C, S, S\), got \(64,\)"),
    ],
)
def test_networks_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        models.network(*arguments)


# --- build


@pytest.mark.parametrize("name", models.NETWORKS)
def test_building_is_deterministic_and_in_one_precision(name):
    make = models.network(name, (3, 8, 8), 10, (5,) if name == "fully_connected" else ())
    first, again, other = models.build(make, 3), models.build(make, 3), models.build(make, 4)
    state = first.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in again.state_dict().items())
    assert not torch.equal(first.head.weight, other.head.weight)
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("name", ["alexnet", "resnet20"])
def test_convolutions_lie_in_channels_last_order(name):
    model = models.build(models.network(name, (3, 32, 32), 10), 0, torch.float32)
    kernels = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert not all(kernel.is_contiguous() for kernel in kernels)
    plain = models.network(name, (3, 32, 32), 10)()
    plain.load_state_dict(model.state_dict())  # the same numbers, in whichever order they lie
    x = normal(2, 3, 32, 32, dtype=torch.float32)
    torch.testing.assert_close(model.eval()(x).logits, plain.eval()(x).logits, rtol=1e-4, atol=1e-5)


def test_initial_weights_of_a_given_spread():
    make = models.network("fully_connected", (100,), 10, (400, 400))
    model = models.build(make, 0, init_std=0.03)
    for layer in (layer for layer in model.modules() if isinstance(layer, nn.Linear)):
        count = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(0.03, abs=5 * 0.03 / (2 * count) ** 0.5)
        assert layer.weight.mean().item() == pytest.approx(0, abs=5 * 0.03 / count**0.5)
        assert not layer.bias.any()
    again = models.build(make, 0, init_std=0.03)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_initial_spread_leaves_convolutions_as_they_are():
    plain, drawn = models.build(AlexNet, 0), models.build(AlexNet, 0, init_std=0.01)
    assert torch.equal(plain.body.conv1[0].weight, drawn.body.conv1[0].weight)
    assert not torch.equal(plain.head.weight, drawn.head.weight)


def test_resnet_kernels_start_with_he_spread():
    """√(2 / (9 · outputs)), so that the size of a signal does not change from layer to layer."""
    for layer in models.build(lambda: ResNet(2), 0).modules():
        if isinstance(layer, nn.Conv2d):
            std = (2 / (9 * layer.out_channels)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(std, rel=5 / (2 * layer.weight.numel()) ** 0.5)


@given(dtypes)
@settings(max_examples=4)
def test_all_of_a_network_has_the_precision_asked_for(dtype):
    model = models.build(models.network("resnet20", (3, 8, 8), 10, normalise=Normalise([0.5] * 3, [0.2] * 3)), 0, dtype)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_do_not_depend_on_the_sessions_default_precision(dtype):
    """Regression: chapters set float64, so a run trained in one began with other weights than in a shell."""
    first = models.build((6, 5, 3), 0, dtype)
    before = torch.get_default_dtype()
    try:
        for default in (torch.float64, torch.float32):
            torch.set_default_dtype(default)
            again = models.build((6, 5, 3), 0, dtype)
            assert torch.get_default_dtype() == default
            for one, other in zip(first.parameters(), again.parameters(), strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_default_dtype(before)
