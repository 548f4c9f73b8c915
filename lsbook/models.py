"""Networks whose forward gives logits and the features of the penultimate layer."""

from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .checks import check_choice, check_int, check_number


class Output(NamedTuple):
    """Logits (N, K) and penultimate features (N, D); logits = features @ head.weight.T + head.bias."""

    logits: torch.Tensor
    features: torch.Tensor


class Normalise(nn.Module):
    """uint8 images (N, C, H, W) → (x/255 − mean) / std of each channel, in the precision of the network's weights.

    It is the first layer of a network on images, so that networks are given pixels, and no one forgets the step.
    Input that is floating point already passes as it is.
    """

    def __init__(self, mean, std):
        super().__init__()
        mean, std = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(std, dtype=torch.float64)
        if not (std > 0).all():
            raise ValueError(f"std must be positive in every channel, got {std.tolist()}")
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", -mean / std)

    def forward(self, images):
        if images.is_floating_point():
            return images
        # In rows of pixels with their channels side by side: four times as fast as one channel after the other.
        rows, width = images.permute(0, 2, 3, 1).flatten(2), images.shape[3]
        rows = torch.addcmul(self.offset.repeat(width), rows.to(self.scale.dtype), self.scale.repeat(width))
        return rows.unflatten(2, (width, -1)).permute(0, 3, 1, 2)


class _Network(nn.Module):
    """`body` gives the features, `head` the logits; both may start from uint8 images."""

    def __init__(self, body, head, normalise=None):
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.body = body
        self.head = head

    def forward(self, inputs):
        features = self.body(self.normalise(inputs))
        return Output(self.head(features), features)


class FullyConnected(_Network):
    """Input → ReLU layers of the given widths, each followed by dropout if asked for → linear head.

    sizes = (inputs, hidden …, num_classes). The rows of `head.weight` (with `head.bias`) are the class templates.
    """

    def __init__(self, sizes, dropout=0.0, normalise=None):
        if len(sizes) < 2:
            raise ValueError(f"sizes must name at least inputs and num_classes, got {tuple(sizes)}")
        drop = [nn.Dropout(dropout)] if check_number(dropout, "dropout", 0, 1) else []
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU(), *drop) for a, b in pairwise(sizes[:-1])]
        super().__init__(nn.Sequential(nn.Flatten(), *layers), nn.Linear(*sizes[-2:]), normalise)


class LocalResponseNorm(nn.Module):
    """xᵢ / (1 + (α/n) Σⱼ xⱼ²)^β over the n channels j nearest to i: the paper's AlexNet, n = 9, α = 0.001, β = ¾.

    The sum over neighbours is a 1×1 convolution with a banded matrix, which keeps the channels-last layout. PyTorch's
    own layer (the same numbers) changes the layout and is slower by far. The square root taken twice is the power ¾.
    """

    def __init__(self, channels, size=9, alpha=1e-3):
        super().__init__()
        if check_int(size, "size", 1) % 2 == 0:
            raise ValueError(f"size must be odd, as many channels on both sides, got {size}")
        channel = torch.arange(channels)
        near = (channel[:, None] - channel).abs() <= size // 2
        self.register_buffer("band", (alpha / size * near)[:, :, None, None])

    def forward(self, x):
        if x.dtype == torch.float16:  # where 300² is infinite already
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x.float()).half()
        root = (1 + F.conv2d(x * x, self.band.to(x.dtype))).rsqrt()
        return x * root * root.sqrt()


class AlexNet(_Network):
    """The paper's small AlexNet for CIFAR-10: conv 5×5×64, pool, LRN, conv 5×5×64, LRN, pool, dense 384, dense 192.

    Pools are 3 × 3 with stride 2; LRN is local response normalisation. Takes (N, channels, side, side) with side a
    multiple of 4; features are the 192 outputs of the last ReLU.
    """

    def __init__(self, channels=3, side=32, num_classes=10, normalise=None):
        if check_int(side, "side", 4) % 4:
            raise ValueError(f"side must be a multiple of 4, got {side}")
        pool, relu = nn.MaxPool2d(3, stride=2, padding=1), nn.ReLU(inplace=True)
        body = {
            "conv1": nn.Sequential(nn.Conv2d(channels, 64, 5, padding=2), relu, pool, LocalResponseNorm(64)),
            "conv2": nn.Sequential(nn.Conv2d(64, 64, 5, padding=2), relu, LocalResponseNorm(64), pool, nn.Flatten()),
            "dense1": nn.Sequential(nn.Linear(64 * (side // 4) ** 2, 384), relu),
            "dense2": nn.Sequential(nn.Linear(384, 192), nn.ReLU()),
        }
        super().__init__(nn.Sequential(OrderedDict(body)), nn.Linear(192, num_classes), normalise)


class ResidualBlock(nn.Module):
    """relu(x′ + bn(conv(relu(bn(conv(x)))))), both 3 × 3; where the width grows, x′ is every other pixel of x, with
    channels of zeros added on both sides (He et al. 2016, option A: a shortcut without weights)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.stride, self.extra = (1, 0) if inputs == outputs else (2, (outputs - inputs) // 2)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu_(self.norm1(self.conv1(x)))))
        if self.extra:  # in channels-last order: else the gradient comes back in the other, and mixing them is slow
            x = x.permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride]
            x = F.pad(x, (self.extra, self.extra)).permute(0, 3, 1, 2)
        return F.relu_(y.add_(x))


class GlobalMean(nn.Module):
    """The mean of each channel: (N, C, H, W) → (N, C); its gradient lies in channels-last order too."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


class ResNet(_Network):
    """ResNet-(6n + 2) for small images: conv 3×3×16, three stages of n blocks with 16, 32, 64 channels, global mean.

    n = 3 is ResNet-20, n = 9 the paper's ResNet-56. Features are the 64 channel means.
    """

    def __init__(self, blocks, channels=3, num_classes=10, normalise=None):
        widths = [16] * (check_int(blocks, "blocks", 1) + 1) + [32] * blocks + [64] * blocks
        stem = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        stages = [ResidualBlock(a, b) for a, b in pairwise(widths)]
        super().__init__(nn.Sequential(*stem, *stages, GlobalMean()), nn.Linear(64, num_classes), normalise)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


NETWORKS = ("fully_connected", "alexnet", "resnet20", "resnet56")


def network(name, input_shape, num_classes, hidden=(), dropout=0.0, normalise=None):
    """A function without arguments that makes the network `name` (one of NETWORKS) for inputs of `input_shape`.

    hidden and dropout belong to "fully_connected" alone, which takes inputs of any shape; the others take (C, S, S).
    Raises ValueError for an unknown name, or for an option that this network has not.
    """
    check_choice(name, "network", NETWORKS)
    if name == "fully_connected":
        inputs = torch.Size(input_shape).numel()
        return partial(FullyConnected, (inputs, *hidden, num_classes), dropout, normalise)
    if hidden or dropout:
        raise ValueError(
            f"hidden and dropout belong to fully_connected, got hidden={hidden}, dropout={dropout} for {name}"
        )
    if len(input_shape) != 3 or input_shape[1] != input_shape[2]:
        raise ValueError(f"{name} takes inputs of shape (C, S, S), got {tuple(input_shape)}")
    channels, side = input_shape[:2]
    if name == "alexnet":
        return partial(AlexNet, channels, side, num_classes, normalise)
    return partial(ResNet, {"resnet20": 3, "resnet56": 9}[name], channels, num_classes, normalise)


def initialise(model, std):
    """Draw all weights of the linear layers anew from N(0, std²) and set their biases to 0, in place."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)


@contextmanager
def _default_dtype(dtype):
    """Draw in `dtype` inside the block; a session that has set another default would draw other numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(make, seed, dtype=torch.float64, device="cpu", init_std=None):
    """A network whose initial weights depend on `seed` and `dtype` alone: not on the device, nor on earlier draws.

    make : sizes of a `FullyConnected` net, or a function without arguments that makes a network (see `network`)
    init_std : draw the weights of linear layers from N(0, init_std²) instead of PyTorch's default

    On images the weights lie in channels-last order, the faster one for convolutions on CPUs and GPUs.
    """
    with torch.random.fork_rng(devices=[]), _default_dtype(dtype):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would reset a GPU's too
        model = make() if callable(make) else FullyConnected(make)
        if init_std is not None:
            initialise(model, init_std)
    return model.to(device=device, dtype=dtype, memory_format=torch.channels_last)
