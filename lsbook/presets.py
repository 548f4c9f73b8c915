"""Which runs the book is made of: every experiment in each preset, with its seeds and smoothing strengths.

smoke trains each kind of network for seconds, on scikit-learn's digits as images, without any download.
laptop needs hours on two CPU cores: the paper's data and regime (networks that fit their training set almost perfectly
and are over-confident), by fewer images and epochs. paper is the paper's own schedule, for a GPU.
"""

import json
from dataclasses import replace
from pathlib import Path

from . import runs, theory, translation
from .checks import check_choice
from .experiments import Spec, run_all, variants

SEEDS = (0, 1, 2, 3, 4)
FEW_SEEDS = (0, 1, 2)

# What chapters call the experiments of preset laptop with hard and smoothed networks, in the order of their tables.
TITLES = {
    "mnist-fc": "MNIST, fully connected",
    "cifar10-alexnet": "CIFAR-10, AlexNet",
    "cifar10-resnet20": "CIFAR-10, ResNet-20",
    "cifar100-resnet20": "CIFAR-100, ResNet-20",
    "cifar10-alexnet-augmented": "CIFAR-10, AlexNet, augmented",
}

# --- smoke: does everything run? A few steps on small images, float32, so that any machine can.

_SMOKE = Spec(
    experiment="digits-fc",
    preset="smoke",
    dataset="digit_images",
    train_examples=256,
    alpha=0.0,
    epochs=2,
    batch_size=64,
    learning_rate=0.05,
    seed=0,
    hidden=(64, 64),
    schedule="one-cycle",
    milestones=(0.25,),
    dtype="float32",
    record_epochs=(0, 1, 2),
)
_SMOKE_IMAGES = {"hidden": (), "shift": 2, "dtype": "auto"}
_SMOKE_TEACHER = replace(
    _SMOKE,
    experiment="digits-teacher",
    network="alexnet",
    flip=True,
    draw_classes=(3, 8),
    keep="views",
    **_SMOKE_IMAGES,
)
_SMOKE_STUDENT = replace(_SMOKE_TEACHER, experiment="digits-student", draw_classes=(), keep="predictions")

# --- laptop

_MNIST = Spec(
    experiment="mnist-fc",
    preset="laptop",
    dataset="mnist",
    train_examples=60_000,
    alpha=0.0,
    epochs=6,
    batch_size=128,
    learning_rate=0.1,
    seed=0,
    hidden=(1200, 1200),
    schedule="linear",
    dtype="auto",
    record_epochs=(0, 1, 2, 3, 4, 5, 6),
)
_ALEXNET = Spec(
    experiment="cifar10-alexnet",
    preset="laptop",
    dataset="cifar10",
    train_examples=12_000,
    alpha=0.0,
    epochs=12,
    batch_size=128,
    learning_rate=0.05,
    seed=0,
    network="alexnet",
    schedule="one-cycle",
    milestones=(0.25,),
    dtype="auto",
    record_epochs=(0, 1, 2, 4, 6, 8, 10, 12),
)
# The counter-example: all images, shifted and mirrored, and a schedule too short to learn them by heart.
_AUGMENTED = replace(
    _ALEXNET,
    experiment="cifar10-alexnet-augmented",
    train_examples=50_000,
    epochs=5,
    shift=4,
    flip=True,
    record_epochs=(0, 1, 2, 3, 4, 5),
)
_RESNET = replace(
    _ALEXNET,
    experiment="cifar10-resnet20",
    network="resnet20",
    train_examples=6_000,
    epochs=20,
    batch_size=64,
    weight_decay=1e-4,
    record_epochs=(0, 1, 2, 5, 10, 15, 20),
)
_RESNET_100 = replace(
    _RESNET,
    experiment="cifar100-resnet20",
    dataset="cifar100",
    epochs=28,
    record_epochs=(0, 1, 2, 5, 10, 15, 20, 24, 28),
)

# The same network over the range of α; what the experiment above has at α = 0 and 0.1 is not trained again.
_ALEXNET_ALPHAS = replace(_ALEXNET, experiment="cifar10-alexnet-alphas")
# Half of CIFAR-100's classes, every other one in the order of their names. The rest are for a linear probe.
_HALF = replace(
    _RESNET_100,
    experiment="cifar100-half-resnet20",
    classes=tuple(range(0, 100, 2)),
    epochs=20,
    record_epochs=(0, 10, 20),
)

# What MNIST's network says of noise.
_NOISE = replace(_MNIST, experiment="mnist-fc-noise", outside="noise")

# Other losses than smoothing, at the strength that asks for its gap, and what each network says of CIFAR-100.
_LOSSES = replace(_ALEXNET, experiment="cifar10-alexnet-smoothing", outside="cifar100")
_STRENGTHS = {
    "confidence-penalty": round(theory.matching_penalty(0.1, 10), 4),
    "margin": round(theory.optimal_gap(0.1, 10), 4),
}

# --- distillation: teachers that their students can follow through a shared view of each image

# The paper's grids of its Figure 5; the strengths whose draws of logits Figure 6 needs.
ALPHAS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)
TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 8.0, 12.0, 16.0)
DRAWN_ALPHAS = (0.0, 0.1, 0.3)
AIRPLANE, DOG = 0, 5

_TEACHER = replace(
    _RESNET,
    experiment="cifar10-teacher",
    train_examples=3_300,  # 300 of nearly every class, for the draws
    shift=1,  # and no mirroring: so many views a network can learn by heart in a few epochs
    epochs=20,
    batch_size=32,
    draw_classes=(AIRPLANE, DOG),
    keep="views",
    record_epochs=(0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20),
)
_STUDENT = replace(
    _ALEXNET,
    experiment="cifar10-student",
    train_examples=3_300,
    shift=1,
    epochs=14,
    batch_size=32,
    learning_rate=0.02,
    keep="predictions",
    record_epochs=(14,),
)
_MNIST_TEACHER = replace(
    _MNIST, experiment="mnist-teacher", batch_size=256, shift=2, keep="weights", record_epochs=(0, 6)
)
_MNIST_STUDENT = replace(
    _MNIST_TEACHER,
    experiment="mnist-student",
    shift=0,
    hidden=(800, 800),
    clip_norm=1.0,  # else the squared difference of logits diverges at once
    keep="predictions",
    record_epochs=(6,),
)
# The student's loss on MNIST: 0.4 of cross-entropy, 0.6 of half the squared difference of the logits.
_BY_LOGITS = {"beta": 0.6, "imitation": "logits"}
# Few images, learnt by heart with their wrong labels; teacher and student are the same kind of network. It is a small
# one, because differences of a point between 30 cells need many seeds more than they need a good network.
_NOISY = replace(
    _ALEXNET,
    experiment="cifar10-noise",
    network="fully_connected",
    hidden=(256, 256),
    train_examples=2_000,
    epochs=14,
    batch_size=32,
    learning_rate=0.02,
    keep="weights",
    record_epochs=(0, 14),
)
NOISE_RATES = (0.0, 0.2, 0.4)

# --- translation: number names in smoke, Multi30k in laptop, and in paper Multi30k at length and the paper's own WMT

_NUMBER_NAMES = replace(
    translation.NUMBER_NAMES,
    preset="smoke",
    epochs=2,
    train_pairs=2_000,
    dtype="float32",
    record_epochs=(0, 1, 2),
    beams=(1,),
)
_MULTI30K = replace(
    _NUMBER_NAMES,
    experiment="multi30k-transformer",
    preset="laptop",
    dataset="multi30k",
    vocabulary=4_000,
    width=128,
    hidden=512,
    epochs=8,
    learning_rate=3e-3,
    warmup=600,
    dropout=0.1,
    clip_norm=1.0,
    train_pairs=0,
    dtype="auto",
    record_epochs=(0, 1, 2, 3, 4, 5, 6, 7, 8),
    beams=(1, 4, 8),
)
_PAPER_MULTI30K = replace(
    _MULTI30K,
    preset="paper",
    vocabulary=8_000,
    width=256,
    layers=3,
    hidden=1_024,
    dropout=0.3,
    epochs=100,
    batch_tokens=8_000,
    learning_rate=1e-3,
    warmup=2_000,
    record_epochs=(0, 1, 2, 5, 10, 20, 30, 40, 60, 80, 100),
)
# The base model of Vaswani et al. (2017). Their largest rate is (width × warmup)^−½. A batch holds about 25,000 tokens
# of each language, so 4.5 million pairs make some 5,400 steps an epoch, and 56 epochs the paper's 300,000.
_PAPER_WMT = replace(
    _PAPER_MULTI30K,
    experiment="wmt14-transformer",
    dataset="wmt14_en_de",
    vocabulary=32_000,
    width=512,
    heads=8,
    layers=6,
    hidden=2_048,
    dropout=0.1,
    norm="post",
    epochs=56,
    batch_tokens=50_000,
    learning_rate=round((512 * 4_000) ** -0.5, 7),
    warmup=4_000,
    schedule="inverse square root",
    clip_norm=0.0,
    longest=250,
    record_epochs=(0, 1, 2, 4, 8, 16, 32, 56),
)

# --- paper: the settings of its appendix. An epoch is the 312 full batches that 40,000 images make, so 1,250 epochs
# are its 390,000 steps and 205 its 64,000.

_PAPER_MNIST = replace(
    _MNIST,
    preset="paper",
    epochs=100,
    shift=2,
    # It averages gradients with weights 0.9 and 0.1 and steps by 1: the same as heavy-ball momentum with rate 0.1.
    nesterov=False,
    head_factor=0.1,
    # "Variance 0.03" read as a standard deviation. As a variance, the logits would start at about ±90.
    init_std=0.03,
    record_epochs=(0, 1, 2, 5, 10, 20, 50, 100),
)
_PAPER_ALEXNET = replace(
    _ALEXNET,
    preset="paper",
    train_examples=40_000,
    held_out="validation",
    epochs=1250,
    learning_rate=0.1,
    momentum=0.0,
    schedule="step",
    milestones=(1 / 3, 2 / 3),
    loss_multiplier=3.0,
    # The paper does not speak of augmentation for this network; that it reaches 86.8 % suggests some. Our choice.
    shift=4,
    flip=True,
    # The paper says 0.04 on these layers, the code that it links to 0.004. The smaller is our choice.
    weight_decay=0.004,
    decay_only=("body.dense1.0.weight", "body.dense2.0.weight"),
    record_epochs=(0, 1, 5, 20, 50, 100, 200, 417, 600, 834, 1000, 1250),
)
_PAPER_RESNET = replace(
    _ALEXNET,
    experiment="cifar100-resnet56",
    preset="paper",
    dataset="cifar100",
    network="resnet56",
    train_examples=40_000,
    held_out="validation",
    shift=4,
    flip=True,
    epochs=205,
    learning_rate=0.1,
    schedule="step",
    milestones=(0.5, 0.75),
    loss_multiplier=3.0,
    weight_decay=1e-4,
    clip_norm=1.0,
    record_epochs=(0, 1, 5, 20, 50, 100, 120, 155, 180, 205),
)

# Figure 5 and Figure 6. Draws about every 4,000 steps, so 16 times after the start.
_PAPER_TEACHER = replace(
    _PAPER_RESNET,
    experiment="cifar10-teacher",
    dataset="cifar10",
    draw_classes=(AIRPLANE, DOG),
    keep="views",
    record_epochs=(0, 13, 26, 38, 51, 64, 77, 90, 103, 115, 128, 141, 154, 167, 179, 192, 205),
)
_PAPER_STUDENT = replace(
    _PAPER_ALEXNET, experiment="cifar10-student", keep="predictions", record_epochs=(_PAPER_ALEXNET.epochs,)
)
_PAPER_MNIST_TEACHER = replace(
    _PAPER_MNIST, experiment="mnist-teacher", keep="weights", record_epochs=(0, _PAPER_MNIST.epochs)
)
_PAPER_MNIST_STUDENT = replace(
    _PAPER_MNIST_TEACHER,
    experiment="mnist-student",
    shift=0,
    hidden=(800, 800),
    clip_norm=1.0,  # as in laptop; the paper does not speak of it
    keep="predictions",
    record_epochs=(_PAPER_MNIST.epochs,),
)


def _with_dropout(spec):
    """The MNIST net with dropout instead of smoothing, the paper's other teacher."""
    return replace(spec, experiment=f"{spec.experiment}-dropout", dropout=0.5)


def _smoke():
    networks = {"digits-alexnet": "alexnet", "digits-resnet20": "resnet20"}
    pictures = [replace(_SMOKE, experiment=e, network=n, **_SMOKE_IMAGES) for e, n in networks.items()]
    both = [s for spec in (_SMOKE, *pictures, _NUMBER_NAMES) for s in variants(spec, alpha=(0.0, 0.1))]
    return [*both, _with_dropout(_SMOKE), _SMOKE_TEACHER, taught_by(_SMOKE_STUDENT, _SMOKE_TEACHER, temperature=2.0)]


def _laptop():
    return [
        *variants(_MNIST, seed=SEEDS, alpha=(0.0, 0.1)),
        *variants(_with_dropout(_MNIST), seed=SEEDS),
        *variants(_NOISE, seed=FEW_SEEDS, alpha=(0.0, 0.1)),
        *variants(_ALEXNET, seed=SEEDS, alpha=(0.0, 0.1)),
        *variants(_RESNET, seed=FEW_SEEDS, alpha=(0.0, 0.1)),
        *variants(_RESNET_100, seed=FEW_SEEDS, alpha=(0.0, 0.05, 0.1)),
        *variants(_AUGMENTED, seed=FEW_SEEDS, alpha=(0.0, 0.1)),
        *variants(_HALF, seed=FEW_SEEDS, alpha=(0.0, 0.1)),
        *_losses(FEW_SEEDS),
        *variants(_ALEXNET_ALPHAS, seed=(0, 1), alpha=(0.2, 0.5, 0.05)),
        *variants(_MULTI30K, seed=FEW_SEEDS, alpha=(0.0, 0.1)),
        *figure_5(_TEACHER, _STUDENT, (0, 1)),
        *mnist_distillation(_MNIST_TEACHER, _MNIST_STUDENT, SEEDS),
        *noise_grid(_NOISY, SEEDS),
    ]


def _losses(seeds):
    """The same seeds with hard targets, smoothing and every other loss."""
    hard = variants(_LOSSES, seed=seeds)
    smoothed = [replace(spec, alpha=0.1) for spec in hard]
    others = [
        replace(spec, experiment=f"cifar10-alexnet-{loss}", loss=loss, strength=strength)
        for spec in hard
        for loss, strength in _STRENGTHS.items()
    ]
    return [*hard, *smoothed, *others]


def taught_by(student, teacher, **settings):
    """The spec of a student of `teacher`: `student` with the teacher's seed and labels, and these settings."""
    return replace(student, seed=teacher.seed, label_noise=teacher.label_noise, teacher=teacher, **settings)


def _teacher_of(teacher, alpha, **settings):
    """A teacher of Figure 5. Draws take a third of the time, so only those that Figure 6 shows have them."""
    drawn = {} if alpha in DRAWN_ALPHAS else {"draw_classes": (), "record_epochs": (0, teacher.epochs)}
    return replace(teacher, alpha=alpha, **drawn, **settings)


def figure_5(teacher, student, seeds):
    """Teachers, and the students of the paper's Figure 5 with the teacher's temperature alone raised.

    An experiment for each curve: the teacher's name, and the student's with -direct (smoothing, no teacher),
    -temperature (a hard teacher at several T) and -alpha (smoothed teachers at T = 1).
    """
    name, specs = student.experiment, []
    for seed in seeds:
        alphas = sorted({*ALPHAS, *DRAWN_ALPHAS})
        teachers = {alpha: _teacher_of(teacher, alpha=alpha, seed=seed) for alpha in alphas}
        alone = replace(student, seed=seed, experiment=f"{name}-direct")
        hot = [
            taught_by(student, teachers[0.0], experiment=f"{name}-temperature", temperature=t, student_temperature=1.0)
            for t in TEMPERATURES
        ]
        smoothed = [taught_by(student, teachers[a], experiment=f"{name}-alpha") for a in ALPHAS[1:]]
        specs += [*teachers.values(), *variants(alone, alpha=ALPHAS), *hot, *smoothed]
    return specs


def mnist_distillation(teacher, student, seeds):
    """The paper's experiment on MNIST: teachers with dropout, with smoothing and with neither, and their students;
    students alone, with hard and with smoothed targets."""
    kinds = {"dropout": _with_dropout(teacher), "smoothed": replace(teacher, alpha=0.1), "hard": teacher}
    specs = []
    for seed in seeds:
        own = {kind: replace(spec, seed=seed) for kind, spec in kinds.items()}
        alone = replace(student, seed=seed, experiment=f"{student.experiment}-direct")
        taught = [
            taught_by(student, spec, experiment=f"{student.experiment}-{kind}", **_BY_LOGITS)
            for kind, spec in own.items()
        ]
        specs += [*own.values(), *variants(alone, alpha=(0.0, 0.1)), *taught]
    return specs


def noise_grid(network, seeds):
    """Hard and smoothed networks at each rate of label noise; students of the same kind at T = 1, 4 and β = ½, 1."""
    specs = []
    for teacher in variants(network, label_noise=NOISE_RATES, seed=seeds, alpha=(0.0, 0.1)):
        # A student of its teacher's kind and seed would begin with its teacher's initial weights.
        student = replace(network, experiment=f"{network.experiment}-student", keep="predictions", restart=1)
        cells = variants(taught_by(student, teacher), temperature=(1.0, 4.0), beta=(0.5, 1.0))
        specs += [teacher, *cells]
    return specs


def _paper():
    cifar10 = replace(_PAPER_RESNET, experiment="cifar10-resnet56", dataset="cifar10")
    return [
        *variants(_PAPER_MNIST, seed=SEEDS, alpha=(0.0, 0.1)),
        *variants(_with_dropout(_PAPER_MNIST), seed=SEEDS),
        *variants(_PAPER_ALEXNET, seed=SEEDS, alpha=(0.0, 0.1)),
        *variants(_PAPER_RESNET, seed=SEEDS, alpha=(0.0, 0.05, 0.1)),
        *figure_5(_PAPER_TEACHER, _PAPER_STUDENT, SEEDS),
        *mnist_distillation(_PAPER_MNIST_TEACHER, _PAPER_MNIST_STUDENT, SEEDS),
        *variants(cifar10, seed=SEEDS, alpha=(0.0, 0.1)),
        *variants(_PAPER_MULTI30K, seed=SEEDS, alpha=(0.0, 0.1)),
        *variants(_PAPER_WMT, seed=FEW_SEEDS, alpha=(0.0, 0.1)),
    ]


_PRESETS = {"smoke": _smoke, "laptop": _laptop, "paper": _paper}


def names():
    """The presets, from the quickest to the slowest."""
    return tuple(_PRESETS)


def specs(preset):
    """All specs of a preset. Raises ValueError for an unknown one, with the nearest name."""
    return _PRESETS[check_choice(preset, "preset", names())]()


def experiment(name, preset, **wanted):
    """The specs of one experiment in a preset whose fields have the values `wanted`, in the order of the preset.

    >>> [(s.alpha, s.seed) for s in experiment("cifar100-resnet20", "laptop", seed=1)]
    [(0.0, 1), (0.05, 1), (0.1, 1)]
    """
    mine = [spec for spec in specs(preset) if spec.experiment == name]
    if not mine:
        check_choice(
            name, f"experiment of preset {preset!r}", tuple(dict.fromkeys(s.experiment for s in specs(preset)))
        )
    return [spec for spec in mine if all(getattr(spec, key) == value for key, value in wanted.items())]


def load_runs(name, preset="laptop"):
    """The stored runs of one experiment, a dict of α → list of runs over seeds; what is not stored is trained now.

    Raises ValueError for an unknown experiment, with the nearest name.
    """
    by_alpha = {}
    for spec in experiment(name, preset):
        by_alpha.setdefault(spec.alpha, []).append(spec)
    return {alpha: run_all(group, runs.folder()) for alpha, group in sorted(by_alpha.items())}


def find(text):
    """The specs that `text` names: a preset, EXPERIMENT-PRESET, a run, or the path of a JSON file with one spec.

    Raises ValueError with the nearest name if there is none; FileNotFoundError if it ends in .json and is not there.
    """
    if text.endswith(".json"):
        return [_read_spec(Path(text))]
    known = {name: specs(name) for name in names()}
    everything = [spec for group in known.values() for spec in group]
    if named := [spec for spec in everything if spec.name == text]:
        return named[:1]
    for spec in everything:
        known.setdefault(f"{spec.experiment}-{spec.preset}", []).append(spec)
    return known[check_choice(text, "what to run (a preset, EXPERIMENT-PRESET, a run or FILE.json)", known)]


def spec_of(values):
    """The spec object of a stored spec, a plain dict as `runs.Run` holds it: of translation, or of images.

    Raises TypeError, ValueError as their classes do.

    >>> spec_of(specs("smoke")[0].as_dict()) == specs("smoke")[0]
    True
    """
    kind = translation.TranslationSpec if values.get("network") == "transformer" else Spec
    return kind.from_dict(values)


def _read_spec(path):
    """The spec in a JSON file; the file of a stored run will do, too."""
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError(f"expected an object with the fields of a spec, got {values!r:.80}")
        return spec_of(values.get("spec", values))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must hold a spec as JSON, as `lsbook show RUN` prints it: {error}") from error
