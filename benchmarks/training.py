"""Training throughput: a conventional loop against `training.fit` as `experiments` sets it up, on two cores.

The conventional loop: DataLoader, one image after the other (see images.py), float32, images and weights channel by
channel, PyTorch's own LocalResponseNorm in AlexNet, torch.optim.SGD. Both sides train the same network from the same
initial weights, with crops and flips; they take turns within one run, and the ratio is taken turn by turn. Either
side trains one network with two threads, or two networks at once with one each, as `lsbook run laptop --jobs 2` does.

Last it says how fast a loop would be that did nothing but convolve, as far as PyTorch's kernels go.

Usage: python benchmarks/training.py [--turns N] [--images N] [--accuracy] [--gpu]
--accuracy trains both sides on 5,000 images of CIFAR-10 (LSBOOK_DATA) for 5 epochs, 3 seeds, and compares accuracies
--gpu measures seconds an epoch of ResNet-56 on 40,000 images, as the paper trains it, on the GPU
"""

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import joblib
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import profile

sys.path.insert(0, str(Path(__file__).parents[1]))

from images import MEAN, STD, OneByOne, made_images
from machine import describe
from tabulate import tabulate

from lsbook import calibration, claims, datasets, experiments, models, presets, training

SPEC = experiments.Spec(
    experiment="benchmark",
    preset="smoke",
    dataset="cifar10",
    train_examples=5_000,
    alpha=0.1,
    epochs=1,
    batch_size=128,
    learning_rate=0.05,
    seed=0,
    shift=4,
    flip=True,
    schedule="one-cycle",
    milestones=(0.25,),
    dtype="auto",
)
SPECS = {name: replace(SPEC, network=name) for name in ("alexnet", "resnet20")}


def made_data(count):
    """Images of CIFAR's shape that show nothing: the time does not depend on what they show."""
    split = datasets.Split(*made_images((3, 32, 32), count))
    return datasets.Dataset("made", 10, split, split)


def conventional_model(spec, data):
    """The same network and initial weights, with PyTorch's own norm, its weights channel by channel."""
    model = models.build(models.network(spec.network, (3, 32, 32), data.num_classes), spec.seed, torch.float32)
    if spec.network == "alexnet":
        for part in (model.body.conv1, model.body.conv2):
            at = [isinstance(layer, models.LocalResponseNorm) for layer in part].index(True)
            part[at] = nn.LocalResponseNorm(9, alpha=1e-3, beta=0.75, k=1)
    return model.to(memory_format=torch.contiguous_format)


def conventional_fit(spec, data):
    """What a reader would write after PyTorch's tutorials; the schedule is the spec's."""
    torch.manual_seed(spec.seed)
    model, steps = conventional_model(spec, data).train(), spec.epochs * (spec.train_examples // spec.batch_size)
    split = OneByOne(*data.train, border=spec.shift, flip=spec.flip)
    loader = torch.utils.data.DataLoader(split, spec.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=spec.learning_rate, momentum=spec.momentum, nesterov=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: training.rate(spec.schedule, min(step, steps - 1) / steps, spec.milestones)
    )
    for _ in range(spec.epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs).logits, labels, label_smoothing=spec.alpha).backward()
            optimizer.step()
            scheduler.step()
    return model


def our_fit(spec, data, device="cpu"):
    """As `experiments.train` does it."""
    return experiments.fit_spec(spec, data, device)[0]


def images_per_second(fit, spec, data):
    started = time.perf_counter()
    fit(spec, data)
    return spec.train_examples // spec.batch_size * spec.batch_size / (time.perf_counter() - started)


def fit_in_worker(fit, spec):
    """What one of two processes does."""
    with training.threads(1):
        fit(spec, made_data(spec.train_examples))


def images_per_second_of_two(fit, spec, data):
    """Of both together, each in a process of its own; joblib keeps the processes from turn to turn."""
    started = time.perf_counter()
    joblib.Parallel(2)(joblib.delayed(fit_in_worker)(fit, spec) for _ in range(2))
    return 2 * (spec.train_examples // spec.batch_size * spec.batch_size) / (time.perf_counter() - started)


def convolutions_per_second(fit, spec, data):
    """Images a second if all but the convolutions of `fit`, forward and backward, took no time."""
    os.environ["KINETO_LOG_LEVEL"] = "6"  # the profiler would print lines of its own between the rows
    with profile() as measured:
        fit(spec, data)
    names = ("aten::mkldnn_convolution", "aten::convolution_backward")
    microseconds = sum(row.self_cpu_time_total for row in measured.key_averages() if row.key in names)
    return spec.train_examples // spec.batch_size * spec.batch_size / (microseconds / 1e6)


def summary(values):
    """Median [lower quartile, upper quartile]."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.4g} [{low:.4g}, {high:.4g}]"


WAYS = {
    "conventional": (images_per_second, conventional_fit),
    "conventional, two at once": (images_per_second_of_two, conventional_fit),
    "lsbook": (images_per_second, our_fit),
    "lsbook, two at once": (images_per_second_of_two, our_fit),
    "lsbook's convolutions alone": (convolutions_per_second, our_fit),
}


def throughput(turns, count):
    """Print images a second in full steps, and how many times the conventional loop's that is."""
    rows, data = [], made_data(count)
    for name, spec in SPECS.items():
        spec = replace(spec, train_examples=count)
        measured = [{way: speed(fit, spec, data) for way, (speed, fit) in WAYS.items()} for _ in range(turns + 1)]
        for way in WAYS:  # the first turn is not counted
            ratios = [turn[way] / turn["conventional"] for turn in measured[1:]]
            rows.append([name, way, summary([turn[way] for turn in measured[1:]]), summary(ratios)])
    headers = ["network", "way", "images/s", "times conventional"]
    print(f"{count} images a turn, precision {training.best_precision('cpu')}, {turns} turns; median [quartiles]")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def normalised(inputs):
    """The test images as the conventional side takes them."""
    mean, std = (torch.full((3, 1, 1), value) for value in (MEAN, STD))
    return (inputs / 255 - mean) / std


def accuracies(spec):
    """Test accuracy of both sides after one training with the spec's seed: (conventional, ours)."""
    data = experiments.data_of(spec)
    conventional = training.predict(conventional_fit(spec, data), normalised(data.test.inputs)).logits
    ours = training.predict(our_fit(spec, data), data.test.inputs).logits
    return [calibration.accuracy(logits.numpy(), data.test.labels.numpy()) for logits in (conventional, ours)]


def accuracy(count, epochs=5, seeds=range(3)):
    """Print accuracies of both sides over seeds, with the interval of their paired difference."""
    rows = []
    for name, spec in SPECS.items():
        spec = replace(spec, train_examples=count, epochs=epochs)
        usual, ours = zip(*(accuracies(replace(spec, seed=seed)) for seed in seeds), strict=True)
        spread = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for v in (usual, ours)]
        rows.append([name, *spread, f"{claims.paired_difference(ours, usual):+.3f}"])
    headers = ["network", "conventional", "lsbook", "difference [95 %]"]
    print(f"CIFAR-10 test accuracy, {count} images, {epochs} epochs, mean ± sd of {len(seeds)} seeds")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def gpu_epoch(turns):
    """Print seconds an epoch of the paper's ResNet-56, all 312 steps of it: what two epochs more take, halved."""
    (spec, *_) = presets.experiment("cifar100-resnet56", "paper", seed=0, alpha=0.1)
    spec = replace(spec, milestones=(), schedule="constant", record_epochs=())
    split = datasets.Split(*(tensor.cuda() for tensor in made_data(spec.train_examples).train))
    data, seconds = datasets.Dataset("made", 100, split, split), []
    for epochs in [1, 3] * (turns + 1):
        started = time.perf_counter()
        our_fit(replace(spec, epochs=epochs), data, "cuda")
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    halves = [(three - one) / 2 for one, three in zip(seconds[2::2], seconds[3::2], strict=True)]
    what = f"{torch.cuda.get_device_name()}, {training.best_precision('cuda')}"
    print(f"ResNet-56, {spec.train_examples} images, batches of {spec.batch_size}, {what}, {turns} turns")
    print(f"seconds an epoch: {summary(halves)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(describe())
    if options.gpu:
        gpu_epoch(options.turns)
    elif options.accuracy:
        accuracy(options.images)
    else:
        throughput(options.turns, options.images)


if __name__ == "__main__":
    main()
