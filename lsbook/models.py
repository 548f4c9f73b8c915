"""Networks whose forward gives logits and the features of the penultimate layer."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn


class Output(NamedTuple):
    """Logits (N, K) and penultimate features (N, D); logits = features @ head.weight.T + head.bias."""

    logits: torch.Tensor
    features: torch.Tensor


class FullyConnected(nn.Module):
    """Input → ReLU layers of the given widths → linear head.

    sizes = (inputs, hidden …, num_classes). The rows of `head.weight` (with `head.bias`) are the class templates.
    """

    def __init__(self, sizes):
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"sizes must name at least inputs and num_classes, got {tuple(sizes)}")
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes[:-1])]
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.head = nn.Linear(*sizes[-2:])

    def forward(self, inputs):
        features = self.body(inputs)
        return Output(self.head(features), features)


def build(sizes, seed, dtype=torch.float64, device="cpu"):
    """A `FullyConnected` net whose initial weights depend on `seed` alone, not on the device or on earlier draws."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would reset a GPU's too
        model = FullyConnected(sizes)
    return model.to(device=device, dtype=dtype)
