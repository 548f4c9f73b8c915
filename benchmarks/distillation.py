"""Time of sweeps of students: the book's ways against an online teacher, which answers every student's batch anew.

Digits: a cell of the grid in the chapter, ten seeds, each with its own teacher and student. `experiments.fit_spec` asks
each teacher once for all examples; `experiments.fit_seeds` also trains the ten students side by side, and
`experiments.fit_groups` those of the grid's four settings.

Images: ResNet-56 teaches AlexNets at different temperatures, on images of CIFAR's shape, shifted and mirrored. The
teacher's weights are its initial ones: the time does not depend on them. A `teachers.Teacher` answers the first
student's batches and finds the others' among them. With a step of the student that takes S and an answer that takes T,
the ratio for M students is (S + T)/(S + T/M), whatever else is done well.

All students end with the same weights on all sides, but for rounding where they train side by side (the script asserts
both). The sides take turns within one run; ratios are taken turn by turn.

Usage: python benchmarks/distillation.py [--turns N] [--students N] [--steps N] [--batch N]
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from images import made_images
from machine import describe, show, summary, take_turns

from lsbook import datasets, experiments, teachers, training
from lsbook.presets import taught_by

SEEDS = range(10)
DIGITS = replace(experiments.DIGITS_FEW, epochs=60, learning_rate=0.05, record_epochs=())

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
    dtype="float32",
)


def weights_of(model):
    """All weights, in one row."""
    return torch.cat([weights.detach().flatten() for weights in model.parameters()])


def fit(spec, data, answer):
    """The weights of a student, trained as `experiments.fit_spec` does, with `answer` for its teacher."""
    model = experiments.model_of(spec, data)
    options = {name: getattr(spec, name) for name in ("epochs", "batch_size", "learning_rate", "seed")}
    options |= {"precision": training.precision_of(spec.dtype, "cpu"), "augment": experiments.augmentation(spec)}
    training.fit(model, data.train, experiments.loss_of(spec, answer), **options)
    return weights_of(model)


def online(specs, data, models):
    """Students of teachers that compute every answer when it is asked, as a plain loop does it."""
    answers = [lambda batch, m=m: training.predict(m, batch.inputs).logits for m in models]
    return [fit(*one) for one in zip(specs, data, answers, strict=True)]


def asked_once(specs, data, models):
    """Each teacher asked once, for all examples."""
    known = [training.predict(model, one.train.inputs).logits for model, one in zip(models, data, strict=True)]
    return [fit(s, one, lambda b, v=v: v[b.index]) for s, one, v in zip(specs, data, known, strict=True)]


def side_by_side(specs, models):
    return [weights_of(model) for model in experiments.fit_seeds(specs, models)]


def shared(specs, data, models):
    """One `teachers.Teacher` for all, who knows nothing yet."""
    teacher = teachers.Teacher(models[0])
    found = [fit(spec, one, lambda batch: teacher(batch.inputs)) for spec, one in zip(specs, data, strict=True)]
    assert teacher.computed * len(specs) == teacher.asked, "students did not see the same views"
    return found


def compare(title, sides, turns):
    """Print the seconds of each side and how many times the first one's they are, after a look at the weights."""
    first, *others = (torch.stack(call()) for call in sides.values())
    assert all(torch.allclose(first, other, rtol=0, atol=1e-6) for other in others), "other weights in the end"
    assert not torch.equal(first[0], first[-1]), "all students are the same"
    seconds = take_turns(sides, turns)
    slow = next(iter(seconds.values()))
    rows = [
        (name, summary(mine), summary([a / b for a, b in zip(slow, mine, strict=True)]))
        for name, mine in seconds.items()
    ]
    show(f"{title}; {turns} turns, median [quartiles]", rows, ("", "seconds", "times as fast"))


def digits():
    """The sides on digits, as functions without arguments."""
    own = [replace(DIGITS, seed=seed) for seed in SEEDS]
    specs = [taught_by(DIGITS, spec, temperature=4.0, restart=1) for spec in own]
    models, data = experiments.fit_seeds(own), [experiments.data_of(spec) for spec in specs]
    return {
        "online teacher": partial(online, specs, data, models),
        "asked once": partial(asked_once, specs, data, models),
        "side by side": partial(side_by_side, specs, models),
    }


def settings():
    """Students of ten teachers at the four settings of the chapter's grid: one after the other, and all at once."""
    own = [replace(DIGITS, seed=seed) for seed in SEEDS]
    models = experiments.fit_seeds(own)
    lessons = [{"temperature": T, "beta": beta, "restart": 1} for T in (1.0, 4.0) for beta in (0.5, 1.0)]
    groups = [[taught_by(DIGITS, spec, **lesson) for spec in own] for lesson in lessons]

    def all_at_once():
        networks = experiments.fit_groups(groups, [models] * len(groups))
        return [weights_of(network) for group in networks for network in group]

    return {
        "one by one": lambda: [weights for specs in groups for weights in side_by_side(specs, models)],
        "all at once": all_at_once,
    }


def images(students, steps, batch):
    """The sides on images."""
    own = replace(TEACHER, train_examples=steps * batch, batch_size=batch)
    split = datasets.Split(*made_images((3, 32, 32), own.train_examples))
    data = datasets.Dataset("made", 10, split, split, tuple("0123456789"))
    student = replace(own, experiment="benchmark-student", network="alexnet")
    specs = [taught_by(student, own, temperature=1.0 + t) for t in range(students)]
    everywhere = specs, [data] * students, [experiments.model_of(own, data)] * students
    return {"online teacher": partial(online, *everywhere), "shared answers": partial(shared, *everywhere)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--students", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    print(describe())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the chapter
    compare(f"Digits, {len(SEEDS)} students of {len(SEEDS)} teachers, one thread", digits(), options.turns)
    compare(f"Digits, {len(SEEDS)} students at four settings, one thread", settings(), options.turns)
    torch.set_num_threads(threads)
    what = f"{options.students} AlexNets of one ResNet-56, {options.steps} steps of {options.batch} images"
    sides = images(options.students, options.steps, options.batch)
    compare(f"{what}, {threads} threads", sides, options.turns)


if __name__ == "__main__":
    main()
