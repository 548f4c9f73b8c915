"""Data sets as tensors on the device."""

from typing import NamedTuple

import torch

from .checks import check_int


class Split(NamedTuple):
    """Inputs (N, …) and labels (N,) on one device."""

    inputs: torch.Tensor
    labels: torch.Tensor


class Dataset(NamedTuple):
    """A training split and a held-out one."""

    name: str
    num_classes: int
    train: Split
    test: Split


def digits(train_examples=150, seed=0, dtype=torch.float64, device="cpu"):
    """scikit-learn's 1,797 handwritten digits (8 × 8 pixels, 10 classes), which ship with that package.

    A class-balanced random `train_examples` of them are for training, all others are held out. The same seed
    gives the same split anywhere. Inputs are pixels in [0, 1], flattened to (N, 64).

    Raises ValueError unless 10 ≤ train_examples ≤ 1787, so that each class can stand in both splits, or if seed < 0;
    TypeError if one of them is no whole number.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    seed = check_int(seed, "seed", 0)
    if not 10 <= check_int(train_examples, "train_examples") <= 1787:
        raise ValueError(f"train_examples must lie in [10, 1787] for digits, got {train_examples}")
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 16, labels, train_size=train_examples, stratify=labels, random_state=seed)
    train_x, test_x = (torch.as_tensor(x, dtype=dtype, device=device) for x in parts[:2])
    train_y, test_y = (torch.as_tensor(y, dtype=torch.long, device=device) for y in parts[2:])
    return Dataset("digits", 10, Split(train_x, train_y), Split(test_x, test_y))
