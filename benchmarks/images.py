"""Time of the input pipeline: whole batches at once against one image after the other, from pixels to numbers.

The usual pipeline is PyTorch's DataLoader over a Dataset that opens each image with Pillow, pads, crops and mirrors
it, makes a float tensor and normalises that (what torchvision's transforms do). Ours is an index, `random_shift`,
`random_flip` and `Normalise`. Both take turns within one run; the ratio is taken turn by turn.

Usage: python benchmarks/images.py [TURNS]
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe
from tabulate import tabulate

from lsbook import images
from lsbook.models import Normalise

SHAPES = {"CIFAR": (3, 32, 32), "MNIST": (1, 28, 28)}
BORDERS = {"CIFAR": 4, "MNIST": 2}  # MNIST's digits are not mirrored
EXAMPLES, BATCH = 5_120, 128
MEAN, STD = 0.45, 0.25


class OneByOne(torch.utils.data.Dataset):
    """Images as Pillow's, each padded, cropped, mirrored and normalised when it is asked for.

    Step by step what torchvision's RandomCrop, RandomHorizontalFlip, ToTensor and Normalize do with a Pillow image,
    without their checks of arguments.
    """

    def __init__(self, inputs, labels, border, flip):
        pixels = inputs.permute(0, 2, 3, 1).squeeze(-1).contiguous().numpy()
        self.pixels, self.labels, self.border, self.flip = pixels, labels.tolist(), border, flip
        self.mean, self.std = [MEAN] * inputs.shape[1], [STD] * inputs.shape[1]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = Image.fromarray(self.pixels[index])
        if self.border:
            image = self.cropped(image)
        if self.flip and torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self.normalised(image), self.labels[index]

    def cropped(self, image):
        (width, height), border = image.size, self.border
        image = ImageOps.expand(image, border=border, fill=0)
        top, left = (torch.randint(0, 2 * border + 1, size=(1,)).item() for _ in range(2))
        return image.crop((left, top, left + width, top + height))

    def normalised(self, image):
        width, height = image.size
        tensor = torch.from_numpy(np.array(image, np.uint8, copy=True)).view(height, width, len(self.mean))
        tensor = tensor.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        mean, std = (torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (self.mean, self.std))
        return tensor.clone().sub_(mean).div_(std)


def one_by_one(inputs, labels, border, flip):
    """An epoch's batches (float32 images, labels), as a training loop usually gets them."""
    data = OneByOne(inputs, labels, border, flip)
    yield from torch.utils.data.DataLoader(data, BATCH, shuffle=True, drop_last=True)


def whole_batches(inputs, labels, border, flip):
    """The same, as `training.fit` makes them."""
    generator, channels = torch.Generator().manual_seed(0), inputs.shape[1]
    normalise = Normalise([MEAN] * channels, [STD] * channels).float()
    order = torch.randperm(len(labels), generator=generator)
    for index in order.split(BATCH)[: len(labels) // BATCH]:
        views = images.random_shift(images.take(inputs, index), border, generator)
        views = images.random_flip(views, generator) if flip else views
        yield normalise(views), labels[index]


def made_images(shape, examples):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (examples, *shape), generator=generator, dtype=torch.uint8)
    inputs = inputs.to(memory_format=torch.channels_last)  # as `datasets.load` has them, and Pillow wants them
    return inputs, torch.randint(10, (examples,), generator=generator)


def check_same_numbers(shape):
    """Without shift and flip both sides give the same images, in whichever order."""
    inputs, number = made_images(shape, BATCH)[0], torch.arange(BATCH)
    batches = [next(iter(pipeline(inputs, number, 0, False))) for pipeline in (one_by_one, whole_batches)]
    torch.testing.assert_close(*(views[labels.argsort()] for views, labels in batches), rtol=1e-4, atol=1e-5)


def microseconds(pipeline, *arguments):
    """Wall time of one epoch for each image."""
    started, count = time.perf_counter(), 0
    for batch, _ in pipeline(*arguments):
        count += len(batch)
    return 1e6 * (time.perf_counter() - started) / count


def measure(name, turns):
    """Microseconds an image of both pipelines in each turn, after one turn that is not counted."""
    check_same_numbers(SHAPES[name])
    arguments = (*made_images(SHAPES[name], EXAMPLES), BORDERS[name], name == "CIFAR")
    times = [[microseconds(pipeline, *arguments) for pipeline in (one_by_one, whole_batches)] for _ in range(turns + 1)]
    return zip(*times[1:], strict=True)


def summary(values):
    """Median [lower quartile, upper quartile]."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def main(turns=7):
    torch.set_num_threads(1)  # both sides work on one core
    print(describe(), f"{EXAMPLES} images, batches of {BATCH}, one thread, {turns} turns; median [quartiles]", sep="\n")
    rows = []
    for name in SHAPES:
        usual, ours = measure(name, turns)
        ratios = [a / b for a, b in zip(usual, ours, strict=True)]
        rows.append([f"{name} {SHAPES[name]}", summary(usual), summary(ours), summary(ratios)])
    headers = ["images", "one by one (µs an image)", "lsbook (µs an image)", "ratio"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
