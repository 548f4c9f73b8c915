"""Time to train several students of one teacher: its answers computed once, against an online teacher for each student.

ResNet-56 teaches AlexNets at different temperatures on images of CIFAR's shape, shifted and mirrored. The teacher's
weights are its initial ones: the time does not depend on them. The online teacher answers every batch of every student
anew; a `teachers.Teacher` answers the first student's batches and finds the others' among them. All students end with
the same weights on both sides (the script asserts it). Both take turns within one run; the ratio is taken turn by turn.

Usage: python benchmarks/distillation.py [--turns N] [--students N] [--steps N]
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from images import made_images
from machine import describe
from tabulate import tabulate

from lsbook import datasets, experiments, teachers, training
from lsbook.presets import taught_by

TEACHER = experiments.Spec(
    experiment="benchmark-teacher",
    preset="smoke",
    dataset="cifar10",
    train_examples=128,
    alpha=0.0,
    epochs=1,
    batch_size=32,
    learning_rate=0.02,
    seed=0,
    network="resnet56",
    shift=4,
    flip=True,
    dtype="auto",
)
STUDENT = replace(TEACHER, experiment="benchmark-student", network="alexnet")


def fit(spec, data, answer):
    """Train the student as `experiments.fit_spec` does, with `answer` for its teacher; the weights, in one row."""
    model = experiments.model_of(spec, data)
    options = {name: getattr(spec, name) for name in ("epochs", "batch_size", "learning_rate", "seed")}
    options |= {"precision": training.precision_of(spec.dtype, "cpu"), "augment": experiments.augmentation(spec)}
    training.fit(model, data.train, experiments.loss_of(spec, answer), **options)
    return torch.cat([weights.detach().flatten() for weights in model.parameters()])


def online(specs, data, teacher):
    """A teacher that computes every answer when it is asked, as a plain loop does it."""
    precision = training.precision_of(TEACHER.dtype, "cpu")
    return [fit(s, data, lambda b: training.predict(teacher, b.inputs, precision=precision).logits) for s in specs]


def shared(specs, data, teacher):
    """One `teachers.Teacher` for all, who knows nothing yet."""
    teacher = teachers.Teacher(teacher, training.precision_of(TEACHER.dtype, "cpu"))
    found = [fit(spec, data, lambda batch: teacher(batch.inputs)) for spec in specs]
    assert teacher.computed * len(specs) == teacher.asked, "students did not see the same views"
    return found


def timed(side, *arguments):
    started = time.perf_counter()
    return side(*arguments), time.perf_counter() - started


def summary(values):
    """Median [lower quartile, upper quartile]."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.4g} [{low:.4g}, {high:.4g}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--students", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    count = options.steps * TEACHER.batch_size
    split, teacher = datasets.Split(*made_images((3, 32, 32), count)), replace(TEACHER, train_examples=count)
    data = datasets.Dataset("made", 10, split, split, tuple("0123456789"))
    student = replace(STUDENT, train_examples=count)
    specs = [taught_by(student, teacher, temperature=1.0 + t) for t in range(options.students)]
    model, seconds = experiments.model_of(teacher, data), []
    for _ in range(options.turns + 1):
        (a, slow), (b, fast) = (timed(side, specs, data, model) for side in (online, shared))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), "the two sides end with other weights"
        assert not torch.equal(b[0], b[-1]), "the temperature did not matter"
        seconds.append((slow, fast))
    slow, fast = zip(*seconds[1:], strict=True)  # the first turn is not counted
    ratios = [a / b for a, b in seconds[1:]]
    print(describe())
    what = f"{options.students} students, {options.steps} steps of {TEACHER.batch_size} images each"
    print(f"{what}, {torch.get_num_threads()} threads, {options.turns} turns; median [quartiles]")
    headers = ["online teacher (s)", "shared answers (s)", "ratio"]
    print(tabulate([[*map(summary, (slow, fast, ratios))]], headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
