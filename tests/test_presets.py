"""What the presets hold against what the issue and the paper ask for, and how a spec is found by a name."""

import json
import re
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from lsbook import alternatives, datasets, experiments, models, presets, runs, theory, training, translation
from lsbook.experiments import Spec
from lsbook.translation import TranslationSpec

ALL = [spec for name in presets.names() for spec in presets.specs(name)]
IMAGES = [spec for spec in ALL if isinstance(spec, Spec)]
TRANSLATION = [spec for spec in ALL if isinstance(spec, TranslationSpec)]
IMAGE_SHAPES = {"digit_images": (1, 32, 32), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}
CLASSES = {"digit_images": 10, "mnist": 10, "cifar10": 10, "cifar100": 100}
TRAINING_EXAMPLES = {"digit_images": 1297, "mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}


def lean(spec):
    """Whether it is a teacher, a student, or what these are compared with."""
    return isinstance(spec, Spec) and spec.keep != "logits"


WHOLE = [spec for spec in ALL if not lean(spec)]


def images(preset):
    """The specs of a preset that train on images, but for teachers and students."""
    return [spec for spec in IMAGES if spec.preset == preset and not lean(spec)]


def seeds(preset, **wanted):
    """{α: set of seeds} of the specs in a preset whose fields have these values, but for teachers and students."""
    found = defaultdict(set)
    for spec in presets.specs(preset):
        if not lean(spec) and all(getattr(spec, key) == value for key, value in wanted.items()):
            found[spec.alpha].add(spec.seed)
    return dict(found)


def known_classes(spec):
    """How many classes the spec's network knows."""
    return len(spec.classes) or CLASSES[spec.dataset]


def model_of(spec):
    return models.network(spec.network, IMAGE_SHAPES[spec.dataset], known_classes(spec), spec.hidden, spec.dropout)()


def settings(spec):
    """All of a spec but the loss, its strength, seed and the experiment's name: what of one setting may be compared."""
    other = {"loss": "smoothing", "strength": 0.0} if isinstance(spec, Spec) else {}
    return replace(spec, experiment="any", alpha=0.0, seed=0, **other)


# --- every spec


def test_presets_are_those_of_the_issue():
    assert presets.names() == ("smoke", "laptop", "paper")
    assert set(presets.names()) < set(runs.PRESETS)


def test_every_spec_belongs_to_its_preset_and_has_its_own_name():
    for name in presets.names():
        assert {spec.preset for spec in presets.specs(name)} == {name}
    assert len({spec.name for spec in ALL}) == len(ALL)
    assert len({runs.spec_hash(spec.as_dict()) for spec in ALL}) == len(ALL)


def test_every_spec_equals_its_own_json():
    for spec in ALL:
        assert type(spec).from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


def test_a_stored_spec_finds_its_class():
    for spec in ALL:
        found = presets.spec_of(json.loads(json.dumps(spec.as_dict())))
        assert (type(found), found) == (type(spec), spec)
    assert "network" not in experiments.DIGITS_FEW.as_dict()  # left at its default
    assert presets.spec_of(experiments.DIGITS_FEW.as_dict()) == experiments.DIGITS_FEW
    for first in (IMAGES[0], TRANSLATION[0]):
        with pytest.raises(ValueError, match="a spec's key must be one of .*did you mean 'alpha'"):
            presets.spec_of(first.as_dict() | {"alhpa": 0})


def test_every_spec_is_of_one_of_two_kinds():
    assert len(IMAGES) + len(TRANSLATION) == len(ALL)
    assert {spec.network for spec in TRANSLATION} == {"transformer"}
    assert "transformer" not in {spec.network for spec in IMAGES}


def test_every_spec_notes_metrics_from_the_start_to_the_end():
    for spec in ALL:  # students have the end alone
        assert spec.record_epochs[0] == 0 or spec.record_epochs == (spec.epochs,) and lean(spec), spec.name
        assert spec.record_epochs[-1] == spec.epochs, spec.name
        assert list(spec.record_epochs) == sorted(set(spec.record_epochs)), spec.name


def test_every_spec_on_images_can_be_trained():
    """Enough examples for it, at least one batch of them, a network that takes these images."""
    for spec in IMAGES:
        held_out = 10_000 if spec.held_out == "validation" else 0
        share = known_classes(spec) / CLASSES[spec.dataset]  # the sets with networks of some classes are balanced
        most = (TRAINING_EXAMPLES[spec.dataset] - held_out) * share
        assert spec.batch_size <= spec.train_examples <= most, spec.name
        assert not spec.classes or max(spec.classes) < CLASSES[spec.dataset], spec.name
        assert spec.dataset in experiments.SHOWN_CLASSES
        training.check_milestones(spec.schedule, spec.milestones)
    for spec in {(s.network, s.dataset, s.hidden, s.classes): s for s in IMAGES}.values():
        assert model_of(spec).head.out_features == known_classes(spec)


@pytest.mark.parametrize("name", dict.fromkeys(f"{spec.experiment}-{spec.preset}" for spec in TRANSLATION))
def test_every_spec_of_translation_can_be_trained(name):
    """A warm-up that ends, a batch that holds any ordinary pair, greedy search and, but for smoke, a wider one."""
    for spec in presets.find(name):
        assert spec.batch_tokens >= 2_000 >= 2 * spec.longest
        assert spec.beams[0] == 1
        assert spec.preset == "smoke" or max(spec.beams) >= 4
        factor = translation.learning_rate_factor(spec, 10 * spec.warmup)
        assert factor(spec.warmup) == 1
    if spec.preset != "paper":  # those take memory
        assert translation.model_of(spec).head.out_features == spec.vocabulary


def test_decay_only_names_parameters_of_the_network():
    found = [spec for spec in IMAGES if spec.decay_only]
    assert {spec.network for spec in found} == {"alexnet"}
    shapes = {name: tuple(weights.shape) for name, weights in model_of(found[0]).named_parameters()}
    for spec in found:  # the two dense layers of 384 and 192 units, their weights alone
        assert [shapes[name] for name in spec.decay_only] == [(384, 4096), (192, 384)]
        assert spec.weight_decay > 0


def test_experiments_differ_from_each_other_in_alpha_and_seed_alone():
    """Within one experiment of one preset, so that its runs may be compared."""
    groups = defaultdict(set)
    for spec in WHOLE:
        groups[spec.experiment, spec.preset].add(replace(spec, alpha=0.0, seed=0))
    assert {key: len(group) for key, group in groups.items() if len(group) > 1} == {}


def test_every_smoothed_run_has_its_hard_twin():
    """Of the same settings and seed; in its own experiment, except for that over the range of α."""
    by_settings, by_experiment = defaultdict(set), defaultdict(set)
    for spec in WHOLE:
        by_settings[settings(spec), spec.seed].add(spec.alpha)
        by_experiment[replace(spec, alpha=0.0)].add(spec.alpha)
    assert all(0.0 in alphas for alphas in by_settings.values())
    alone = {spec.experiment for spec, alphas in by_experiment.items() if 0.0 not in alphas}
    assert alone == {"cifar10-alexnet-alphas"}


def test_no_run_is_trained_twice_under_two_names():
    by_settings = defaultdict(list)
    for spec in ALL:
        by_settings[replace(spec, experiment="any")].append(spec.name)
    assert [names for names in by_settings.values() if len(names) > 1] == []


# --- teachers and students


def test_every_teacher_is_a_run_of_its_students_preset():
    """Beside them and before them, and its weights stay for them."""
    for name in presets.names():
        earlier = set()
        for spec in presets.specs(name):
            earlier.add(spec)
            if isinstance(spec, Spec) and spec.teacher is not None:
                assert spec.teacher in earlier, spec.name
                assert spec.teacher.keep in ("views", "weights"), spec.name


@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_figure_5_has_a_curve_for_each_way(preset):
    """Of AlexNets: smoothing alone, a hard teacher at several T, smoothed teachers at T = 1; all seeds for each."""
    curves = defaultdict(lambda: defaultdict(set))
    for curve in ("direct", "temperature", "alpha"):
        for spec in presets.experiment(f"cifar10-student-{curve}", preset):
            x = {"direct": spec.alpha, "temperature": spec.temperature}.get(curve, spec.teacher and spec.teacher.alpha)
            curves[curve][x].add(spec.seed)
            assert (spec.network, spec.beta) == ("alexnet", 1.0)
            assert curve != "temperature" or (spec.teacher.alpha, spec.student_temperature) == (0.0, 1.0)
            assert curve != "alpha" or spec.temperature == 1
    assert set(curves["direct"]) == set(presets.ALPHAS) == set(curves["alpha"]) | {0.0}
    assert set(curves["temperature"]) == set(presets.TEMPERATURES)
    seeds_ = {"laptop": {0, 1}, "paper": {0, 1, 2, 3, 4}}[preset]
    assert all(found == seeds_ for curve in curves.values() for found in curve.values())
    drawn = {spec.alpha for spec in presets.experiment("cifar10-teacher", preset) if spec.draw_classes}
    assert drawn == {0.0, 0.1, 0.3}


def test_the_papers_teachers_and_students_have_its_schedules():
    by_name = {spec.experiment: spec for spec in presets.specs("paper") if lean(spec)}
    teacher, student = by_name["cifar10-teacher"], by_name["cifar10-student-direct"]
    for mine, name in ((teacher, "cifar10-resnet56"), (student, "cifar10-alexnet")):
        other = presets.experiment(name, "paper")[0]
        changed = {"keep": "logits", "draw_classes": (), "record_epochs": other.record_epochs}
        assert settings(replace(mine, **changed)) == settings(other)
    (drawn, *_) = presets.experiment("cifar10-teacher", "paper", alpha=0.0)
    steps = np.diff(drawn.record_epochs) * (drawn.train_examples // drawn.batch_size)
    assert len(steps) == 16 and np.allclose(steps, 4_000, rtol=0.07)
    for name in ("dropout", "smoothed", "hard"):
        spec = by_name[f"mnist-student-{name}"]
        assert (spec.hidden, spec.shift, spec.beta, spec.imitation) == ((800, 800), 0, 0.6, "logits")
        assert (spec.teacher.shift, spec.teacher.hidden, spec.epochs) == (2, (1200, 1200), 100)


# --- smoke and laptop


def test_smoke_trains_each_kind_of_network_on_data_that_ship_with_scikit_learn():
    specs = images("smoke")
    assert {spec.network for spec in specs} == {"fully_connected", "alexnet", "resnet20"}
    assert {spec.dataset for spec in specs} == {"digit_images"}
    assert all(spec.train_examples * spec.epochs <= 1_000 for spec in specs)
    assert any(spec.shift for spec in specs)
    assert any(spec.dropout for spec in specs)


def test_smoke_trains_a_transformer_on_number_names_which_need_no_data():
    specs = presets.experiment("number-names", "smoke")
    assert specs == [spec for spec in TRANSLATION if spec.preset == "smoke"]
    assert {spec.dataset for spec in specs} == {"number_names"}
    assert {(spec.alpha, spec.seed) for spec in specs} == {(0.0, 0), (0.1, 0)}
    assert all(spec.train_pairs * spec.epochs <= 5_000 for spec in specs)


def test_laptop_has_the_pairs_that_the_issue_asks_for():
    """At least five seeds for MNIST and AlexNet, at least three for ResNet-20 on each CIFAR set, the same for all α."""
    expected = [
        ({"dataset": "mnist", "dropout": 0.0}, {0.0, 0.1}, 5),
        ({"dataset": "mnist", "dropout": 0.5}, {0.0}, 5),
        ({"experiment": "cifar10-alexnet"}, {0.0, 0.1}, 5),
        ({"dataset": "cifar10", "network": "resnet20"}, {0.0, 0.1}, 3),
        ({"dataset": "cifar100", "network": "resnet20", "classes": ()}, {0.0, 0.05, 0.1}, 3),
        ({"experiment": "cifar100-half-resnet20"}, {0.0, 0.1}, 3),
    ]
    for wanted, alphas, least in expected:
        found = seeds("laptop", **wanted)
        assert set(found) >= alphas, wanted
        assert len(set(map(frozenset, found.values()))) == 1, wanted
        assert all(len(group) >= least for group in found.values()), wanted


def test_laptop_has_a_range_of_alphas():
    """Two experiments of one network together: at least five strengths, each with the same first two seeds."""
    found = seeds("laptop", dataset="cifar10", network="alexnet", flip=False)
    assert set(found) == {0.0, 0.05, 0.1, 0.2, 0.5}
    assert all(group >= {0, 1} for group in found.values())
    assert len({settings(s) for s in presets.specs("laptop") if s.experiment.startswith("cifar10-alexnet-al")}) == 1
    alphas, pair = (presets.experiment(name, "laptop")[0] for name in ("cifar10-alexnet-alphas", "cifar10-alexnet"))
    assert settings(alphas) == settings(pair)


def test_laptop_has_networks_that_know_half_of_the_classes():
    """Every other class of CIFAR-100, so that 50 are left for a probe; otherwise as the networks that know all."""
    half = [spec for spec in images("laptop") if spec.classes]
    assert {spec.experiment for spec in half} == {"cifar100-half-resnet20"}
    assert {spec.classes for spec in half} == {tuple(range(0, 100, 2))}
    (whole,) = presets.experiment("cifar100-resnet20", "laptop", seed=0, alpha=0.0)
    kept = {"classes": (), "epochs": whole.epochs, "record_epochs": whole.record_epochs}
    assert {settings(replace(spec, **kept)) for spec in half} == {settings(whole)}


def test_laptop_has_other_losses_at_matched_strength():
    """The same seeds for each; the margin and the penalty at the gap of α = 0.1, to the digits that a name needs."""
    found = [spec for spec in images("laptop") if spec.outside == "cifar100"]
    strengths = defaultdict(set)
    for spec in found:
        strengths[spec.experiment, spec.loss, spec.alpha, spec.strength].add(spec.seed)
    gap = theory.optimal_gap(0.1, 10)
    assert set(strengths) == {
        ("cifar10-alexnet-smoothing", "smoothing", 0.0, 0.0),
        ("cifar10-alexnet-smoothing", "smoothing", 0.1, 0.0),
        ("cifar10-alexnet-confidence-penalty", "confidence-penalty", 0.0, 0.2436),
        ("cifar10-alexnet-margin", "margin", 0.0, 4.5109),
    }
    assert (1 / (0.91 * gap), gap) == (pytest.approx(0.2436, abs=5e-5), pytest.approx(4.5109, abs=5e-5))
    assert {spec.loss for spec in found} < set(alternatives.LOSSES)
    assert len(set(map(frozenset, strengths.values()))) == 1
    assert {len(seeds_) >= 3 for seeds_ in strengths.values()} == {True}
    (pair, *_) = presets.experiment("cifar10-alexnet", "laptop")
    assert {settings(replace(spec, outside="")) for spec in found} == {settings(pair)}
    assert IMAGE_SHAPES["cifar100"] == IMAGE_SHAPES[pair.dataset]


def test_laptop_shows_noise_to_networks_on_mnist():
    """Networks as the others on MNIST, hard and smoothed, of the same seeds."""
    found = presets.experiment("mnist-fc-noise", "laptop")
    assert {spec.outside for spec in found} == {"noise"}
    assert {(spec.alpha, spec.seed) for spec in found} == {(a, s) for a in (0.0, 0.1) for s in (0, 1, 2)}
    assert {settings(replace(spec, outside="")) for spec in found} == {
        settings(spec) for spec in presets.experiment("mnist-fc", "laptop")
    }


def test_laptop_has_a_well_regularised_counter_example():
    """All images, shifted and mirrored, beside nets that see the same few images unchanged until they know them."""
    augmented = [spec for spec in images("laptop") if spec.flip and spec.shift]
    assert {spec.alpha for spec in augmented} == {0.0, 0.1}
    assert {spec.train_examples for spec in augmented} == {50_000}
    others = [s for s in images("laptop") if s.dataset != "mnist" and s not in augmented]
    assert not any(spec.flip or spec.shift for spec in others)
    assert max(spec.train_examples for spec in others) < 50_000


def test_laptop_has_a_transformer_on_all_of_multi30k():
    """Hard and smoothed differ in α alone, with the same seeds."""
    specs = [spec for spec in TRANSLATION if spec.preset == "laptop"]
    assert {(spec.experiment, spec.dataset, spec.train_pairs) for spec in specs} == {
        ("multi30k-transformer", "multi30k", 0)
    }
    found = seeds("laptop", network="transformer")
    assert set(found) == {0.0, 0.1}
    assert found[0.0] == found[0.1] >= {0, 1}
    assert len({settings(spec) for spec in specs}) == 1


# --- paper


@pytest.mark.parametrize(("network", "steps", "tolerance"), [("alexnet", 390_000, 0.0), ("resnet56", 64_000, 1e-3)])
def test_steps_of_the_paper(network, steps, tolerance):
    for spec in (s for s in presets.specs("paper") if s.network == network):
        assert (spec.batch_size, spec.train_examples, spec.held_out) == (128, 40_000, "validation")
        made = spec.epochs * (spec.train_examples // spec.batch_size)
        assert abs(made - steps) <= tolerance * steps


@pytest.mark.parametrize(("network", "drops"), [("alexnet", (130_000, 260_000)), ("resnet56", (32_000, 48_000))])
def test_the_papers_rate_drops_where_it_says(network, drops):
    """The first step at a tenth and at a hundredth of the rate, found by walking through all steps."""
    (spec, *_) = (s for s in presets.specs("paper") if s.network == network)
    total = spec.epochs * (spec.train_examples // spec.batch_size)
    rates = [training.rate(spec.schedule, step / total, spec.milestones) for step in range(total)]
    changes = [step for step in range(1, total) if rates[step] != rates[step - 1]]
    assert np.allclose(changes, drops, rtol=1e-3, atol=0)
    assert (rates[0], rates[-1]) == (1.0, pytest.approx(0.01))
    if network == "alexnet":
        assert changes == list(drops)


def test_settings_of_the_paper():
    by_name = {spec.experiment: spec for spec in presets.specs("paper") if not lean(spec)}
    resnets = [spec for spec in by_name.values() if spec.network == "resnet56"]
    assert {spec.dataset for spec in resnets} == {"cifar10", "cifar100"}
    for spec in resnets:
        assert (spec.learning_rate, spec.momentum, spec.nesterov) == (0.1, 0.9, True)
        assert (spec.weight_decay, spec.clip_norm, spec.loss_multiplier) == (1e-4, 1.0, 3.0)
        assert (spec.decay_only, spec.flip) == ((), True)
        assert spec.shift > 0
    (alexnet,) = (spec for spec in by_name.values() if spec.network == "alexnet")
    assert (alexnet.dataset, alexnet.learning_rate, alexnet.momentum) == ("cifar10", 0.1, 0.0)
    assert (alexnet.loss_multiplier, alexnet.clip_norm, alexnet.head_factor) == (3.0, 0.0, 1.0)
    for spec in (spec for spec in by_name.values() if spec.dataset == "mnist"):
        assert (spec.hidden, spec.epochs, spec.schedule, spec.shift) == ((1200, 1200), 100, "linear", 2)
        # Gradients averaged by 0.9 and 0.1, times a rate of 1, are a momentum of 0.9 at a rate of 0.1.
        assert (spec.momentum, spec.nesterov, spec.learning_rate) == (0.9, False, pytest.approx(0.1))
        assert (spec.head_factor, spec.weight_decay, spec.init_std) == (0.1, 0.0, 0.03)


def test_seeds_and_alphas_of_the_paper():
    five = {0, 1, 2, 3, 4}
    assert seeds("paper", dataset="cifar100") == {0.0: five, 0.05: five, 0.1: five}
    assert seeds("paper", network="alexnet") == {0.0: five, 0.1: five}
    assert seeds("paper", dataset="mnist", dropout=0.0) == {0.0: five, 0.1: five}
    assert seeds("paper", dataset="mnist", dropout=0.5) == {0.0: five}


def test_the_papers_transformer():
    """The base model of Vaswani et al. (2017), table 3, and its rate, section 5.3; 300,000 steps as Müller et al."""
    (spec, *others) = presets.experiment("wmt14-transformer", "paper")
    assert {settings(other) for other in others} == {settings(spec)}
    sizes = {"width": 512, "heads": 8, "layers": 6, "hidden": 2_048, "dropout": 0.1, "norm": "post", "sharing": "all"}
    assert {name: getattr(spec, name) for name in sizes} == sizes
    assert (spec.schedule, spec.warmup) == ("inverse square root", 4_000)
    assert spec.learning_rate == pytest.approx((512 * 4_000) ** -0.5, rel=1e-3)
    assert seeds("paper", dataset="wmt14_en_de") == {0.0: {0, 1, 2}, 0.1: {0, 1, 2}}
    # 4.5 million pairs of some 30 tokens a side, and little padding where lengths are alike
    assert spec.epochs * 4.5e6 * 60 / spec.batch_tokens == pytest.approx(300_000, rel=0.05)


def test_the_papers_preset_has_multi30k_at_length():
    assert seeds("paper", dataset="multi30k") == {0.0: {0, 1, 2, 3, 4}, 0.1: {0, 1, 2, 3, 4}}
    (laptop, *_) = presets.experiment("multi30k-transformer", "laptop")
    (paper, *_) = presets.experiment("multi30k-transformer", "paper")
    assert (paper.width, paper.epochs) > (laptop.width, laptop.epochs)


# --- finding


def test_find_a_preset():
    for name in presets.names():
        assert presets.find(name) == presets.specs(name)


def test_find_an_experiment_of_a_preset():
    for name in ("mnist-fc", "cifar100-resnet20"):
        assert presets.find(f"{name}-laptop") == presets.experiment(name, "laptop")


def test_find_a_run():
    for spec in ALL[::11]:  # each makes all specs anew
        assert presets.find(spec.name) == [spec]


@pytest.mark.parametrize("first", [IMAGES[0], TRANSLATION[0]], ids=lambda spec: spec.network)
def test_find_a_spec_in_a_file(tmp_path, first):
    spec = replace(first, alpha=0.37)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(spec.as_dict()))
    assert presets.find(str(path)) == [spec]


@pytest.mark.parametrize("first", [IMAGES[0], TRANSLATION[0]], ids=lambda spec: spec.network)
def test_find_the_spec_of_a_stored_run(tmp_path, first):
    spec = replace(first, alpha=0.37)
    path = runs.save(runs.Run(spec.as_dict(), {"test_logits": np.zeros((2, 3), np.float32)}), tmp_path)
    assert presets.find(str(path)) == [spec]


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("labtop", "laptop"),
        ("mnist-fc-labtop", "mnist-fc-laptop"),
        (IMAGES[-1].name[:-1], "cifar10-resnet56-paper"),
        (TRANSLATION[-1].name[:-1], "wmt14-transformer-paper"),
        ("number-name-smoke", "number-names-smoke"),
        ("cifar100-resnet20-laptop-alpha0.2-seed0", "cifar100-resnet20-laptop"),
    ],
)
def test_unknown_names_suggest_the_nearest(text, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{re.escape(nearest)}"):
        presets.find(text)


def test_an_unknown_name_that_is_like_nothing():
    with pytest.raises(ValueError, match="must be one of 'smoke', 'laptop', 'paper'.* got '€'$"):
        presets.find("€")
    with pytest.raises(
        ValueError, match="preset must be one of 'smoke', 'laptop', 'paper', got 'smokes'; did you mean"
    ):
        presets.specs("smokes")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "must hold a spec as JSON"),
        (b"", "must hold a spec as JSON"),
        (b"[1, 2]", "must hold a spec as JSON"),
        (b"\xff\xfe\x00", "must hold a spec as JSON"),
        (b"{}", "must hold a spec as JSON.*a spec must have experiment, .* got nothing"),
        (b'{"alhpa": 0}', "did you mean 'alpha'"),
        (b'{"spec": 3}', "must hold a spec as JSON"),
    ],
)
def test_files_without_a_spec(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        presets.find(str(path))


@pytest.mark.parametrize(("key", "value"), [("alpha", 2), ("alpha", "0.1"), ("seed", 0.5), ("dataset", "mnits")])
def test_a_file_with_a_bad_value(tmp_path, key, value):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(ALL[0].as_dict() | {key: value}))
    with pytest.raises(ValueError, match=f"bad.json must hold a spec as JSON.*{key} must"):
        presets.find(str(path))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        presets.find(str(tmp_path / "absent.json"))


def test_the_specs_of_one_experiment():
    found = presets.experiment("mnist-fc", "laptop")
    assert found == [spec for spec in presets.specs("laptop") if spec.experiment == "mnist-fc"]
    smoothed = presets.experiment("mnist-fc", "laptop", alpha=0.1)
    assert [(spec.alpha, spec.seed) for spec in smoothed] == [(0.1, seed) for seed in range(5)]
    (one,) = presets.experiment("mnist-fc", "laptop", alpha=0.1, seed=3)
    assert one == smoothed[3]
    assert presets.experiment("mnist-fc", "laptop", alpha=0.7) == []


def test_an_experiment_that_is_not_in_the_preset():
    with pytest.raises(ValueError, match="experiment of preset 'laptop' must be one of .*; did you mean 'mnist-fc'"):
        presets.experiment("mnist-cf", "laptop")
    with pytest.raises(ValueError, match="experiment of preset 'laptop' must be one of .* got 'cifar100-resnet56'"):
        presets.experiment("cifar100-resnet56", "laptop")
    with pytest.raises(AttributeError, match="alhpa"):
        presets.experiment("mnist-fc", "laptop", alhpa=0.1)


def test_datasets_have_the_sizes_that_these_tests_take_for_granted():
    """Of the set that needs no download; those of the others stand in data/datasets.toml."""
    data = datasets.load("digit_images")
    assert (len(data.train.labels), tuple(data.train.inputs.shape[1:])) == (1297, (1, 32, 32))


def test_every_experiment_with_two_sides_has_a_title():
    """Of those that chapters tabulate together: not networks that know half of the classes, nor those of the losses."""
    whole = [spec for spec in images("laptop") if not spec.classes and not spec.outside]
    hard, smoothed = ({spec.experiment for spec in whole if spec.alpha == alpha} for alpha in (0.0, 0.1))
    assert set(presets.TITLES) == hard & smoothed
