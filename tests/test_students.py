"""Training by distillation: a student's spec, what its teacher sees, what is kept; and noisy or grouped labels.

The losses themselves stand in test_distillation.py.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import strategies  # noqa: F401 (one thread)
import torch
import torch.nn.functional as F
from scipy.stats import binomtest, chisquare

from lsbook import cli, datasets, experiments, models, presets, runs, sweeps, targets, teachers, training
from lsbook.experiments import Spec

TEACHER = Spec(
    experiment="teacher",
    preset="smoke",
    dataset="digit_images",
    train_examples=48,
    alpha=0.1,
    epochs=2,
    batch_size=16,
    learning_rate=0.02,
    seed=3,
    hidden=(20,),
    dtype="float32",
    shift=1,
    keep="views",
    draw_classes=(0, 1),
    record_epochs=(0, 2),
)
PLAIN = replace(TEACHER, experiment="student", alpha=0.0, hidden=(12,), draw_classes=(), keep="predictions")
STUDENT = replace(PLAIN, teacher=TEACHER, temperature=2.0)
STILL = replace(STUDENT, shift=0)  # sees the images as they are
RESNET = replace(TEACHER, network="resnet20", hidden=(), epochs=1, record_epochs=(1,))


@pytest.fixture(autouse=True)
def small_digits(monkeypatch):
    """The digits as 16 × 16 pixels, only 100 of them held out; and no teacher known from another test."""
    data = datasets.load("digit_images")
    train, test = (
        datasets.Split(x[:n, :, ::2, ::2].clone(), y[:n]) for (x, y), n in ((data.train, 600), (data.test, 100))
    )
    monkeypatch.setattr(datasets, "load", lambda *_: data._replace(train=train, test=test))
    experiments._teacher.cache_clear()
    yield
    experiments._teacher.cache_clear()


def weights_of(spec, folder=None):
    """The trained weights of a spec, all in one row."""
    model, _ = experiments.fit_spec(spec, experiments.data_of(spec), folder=folder)
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


def assert_same_run(found, expected):
    assert found.history == expected.history
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)


# --- specs


def test_a_students_spec_equals_its_own_json():
    chain = replace(PLAIN, experiment="grandchild", teacher=STUDENT)
    for spec in (STUDENT, STILL, chain, replace(STUDENT, temperature=1.0, imitation="logits", beta=0.6)):
        values = json.loads(json.dumps(spec.as_dict()))
        assert values == spec.as_dict()
        assert Spec.from_dict(values) == spec == presets.spec_of(values)
        assert Spec.from_dict(values).name == spec.name
    assert chain.as_dict()["teacher"]["teacher"] == TEACHER.as_dict()
    assert STUDENT.name != replace(STUDENT, teacher=replace(TEACHER, alpha=0.2)).name


def test_specs_without_a_teacher_are_as_before():
    """Regression guard: the name of a run that was stored before there were students, and the keys of its spec."""
    (spec,) = presets.experiment("cifar10-alexnet", "laptop", seed=0, alpha=0.1)
    new = {"label_noise", "groups", "draw_classes", "keep", "teacher", "temperature", "student_temperature"}
    assert not (new | {"beta", "imitation"}) & spec.as_dict().keys()
    assert (runs.folder() / f"{spec.name}.json").is_file()


@pytest.mark.parametrize(
    ("spec", "change", "error", "message"),
    [
        (PLAIN, {"beta": 0.5}, ValueError, "beta must be left alone without a teacher, got {'beta': 0.5}"),
        (PLAIN, {"temperature": 2}, ValueError, "temperature must be left alone without a teacher"),
        (PLAIN, {"student_temperature": 2}, ValueError, "student_temperature must be left alone without a teacher"),
        (PLAIN, {"imitation": "logits"}, ValueError, "imitation must be left alone without a teacher"),
        (PLAIN, {"teacher": "someone"}, TypeError, "teacher must be a Spec, got 'someone' (str)"),
        (STUDENT, {"seed": 4}, ValueError, "seed must be that of the teacher, which sees the same data: got 4, not 3"),
        (STUDENT, {"train_examples": 47}, ValueError, "train_examples must be that of the teacher"),
        (STUDENT, {"dataset": "mnist"}, ValueError, "dataset must be that of the teacher"),
        (STUDENT, {"classes": (1, 2)}, ValueError, "classes must be that of the teacher"),
        (STUDENT, {"groups": (0, 1) * 5}, ValueError, "groups must be that of the teacher"),
        (STUDENT, {"held_out": "validation"}, ValueError, "held_out must be that of the teacher"),
        (STUDENT, {"label_noise": 0.2}, ValueError, "label_noise must be that of the teacher"),
        (STUDENT, {"dtype": "float64"}, ValueError, "dtype must be that of the teacher"),
        (STUDENT, {"alpha": 0.1}, ValueError, "a student's own labels must be hard, got alpha 0.1"),
        (STUDENT, {"loss": "focal"}, ValueError, "a student's own labels must be hard, got alpha 0 and loss 'focal'"),
        (STUDENT, {"imitation": "logits"}, ValueError, "must be left alone where logits are imitated, got 2 and 0"),
        (
            STUDENT,
            {"imitation": "logits", "temperature": 1, "student_temperature": 3},
            ValueError,
            "temperature and student_temperature must be left alone where logits are imitated, got 1 and 3",
        ),
        (
            STUDENT,
            {"imitation": "logit"},
            ValueError,
            "imitation must be one of 'probabilities', 'logits', got 'logit'",
        ),
        (STUDENT, {"beta": 1.1}, ValueError, "beta must lie in [0, 1], got 1.1"),
        (STUDENT, {"beta": -0.1}, ValueError, "beta must lie in [0, 1], got -0.1"),
        (STUDENT, {"beta": float("nan")}, ValueError, "beta must"),
        (STUDENT, {"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
        (STUDENT, {"temperature": -1}, ValueError, "temperature must be positive and finite, got -1"),
        (STUDENT, {"temperature": float("inf")}, ValueError, "temperature must be positive and finite, got inf"),
        (STUDENT, {"student_temperature": -1}, ValueError, "student_temperature must lie in [0, "),
        (TEACHER, {"shift": 0}, ValueError, "draw_classes need augmentation to draw from: set shift or flip"),
        (TEACHER, {"record_epochs": ()}, ValueError, "draw_classes are drawn at recorded epochs: set record_epochs"),
        (TEACHER, {"record_epochs": (3,)}, ValueError, "draw_classes are drawn at recorded epochs"),
        (TEACHER, {"draw_classes": (1,)}, ValueError, "draw_classes must be () or 2 different ones, got (1,)"),
        (
            TEACHER,
            {"draw_classes": (1, 2, 3)},
            ValueError,
            "draw_classes must be () or 2 different ones, got (1, 2, 3)",
        ),
        (TEACHER, {"draw_classes": (1, 1)}, ValueError, "draw_classes must be () or 2 different ones, got (1, 1)"),
        (TEACHER, {"draw_classes": (1, -1)}, ValueError, "draw_classes must be at least 0, got -1"),
        (TEACHER, {"draw_classes": 3}, TypeError, "draw_classes must be a tuple of class indices, got 3 (int)"),
        (TEACHER, {"keep": "view"}, ValueError, "got 'view'; did you mean 'views'?"),
        (TEACHER, {"outside": "noise"}, ValueError, "outside needs keep 'logits', "),
        (TEACHER, {"label_noise": -0.1}, ValueError, "label_noise must lie in [0, 1], got -0.1"),
        (TEACHER, {"label_noise": 1.5}, ValueError, "label_noise must lie in [0, 1], got 1.5"),
        (TEACHER, {"groups": (0, -1)}, ValueError, "groups must be at least 0, got -1"),
    ],
)
def test_bad_specs(spec, change, error, message):
    with pytest.raises(error) as caught:
        replace(spec, **change)
    assert message in str(caught.value)


@pytest.mark.parametrize("groups", [(0, 1), (0, 1) * 6, (0, 2) * 5, (1, 2) * 5, (0,) * 10])
def test_groups_that_do_not_fit(groups):
    """Too few, too many, an empty one in the middle or in front, and one alone."""
    with pytest.raises(ValueError, match=r"groups must name a group 0, 1, … for each of the 10 classes.* got \("):
        experiments.data_of(replace(PLAIN, groups=groups))


def test_draws_of_a_class_that_is_not_there_fail_before_training(monkeypatch):
    monkeypatch.setattr(training, "fit", None)
    for classes in ((0, 10), (12, 3)):
        with pytest.raises(ValueError, match=r"classes must be among the labels, got \(.* no example has"):
            experiments.train(replace(TEACHER, draw_classes=classes), "cpu")


def test_a_students_loss_needs_the_teacher():
    with pytest.raises(ValueError, match="teacher must be a function from a batch to logits"):
        experiments.loss_of(STUDENT)


# --- what the teacher is asked


@pytest.fixture
def asked(monkeypatch):
    """Pairs of what students saw and what their teacher was asked, with the state that its network was in."""
    seen, make = {"student": [], "teacher": []}, experiments._student_loss

    class Spying(teachers.Teacher):
        def __call__(self, inputs):
            answer = super().__call__(inputs)
            trainable = [weights.requires_grad for weights in self.model.parameters()]
            seen["teacher"].append((inputs, answer, self.model.training, any(trainable), self))
            return answer

    def spying_loss(spec, teacher):
        loss = make(spec, teacher)

        def spy(logits, batch):
            seen["student"].append((batch, logits))
            return loss(logits, batch)

        return spy

    monkeypatch.setattr(teachers, "Teacher", Spying)
    monkeypatch.setattr(experiments, "_student_loss", spying_loss)
    return seen


@pytest.mark.parametrize("network", ["fully_connected", "resnet20"])
def test_the_teacher_sees_what_the_student_sees(asked, network):
    """Each view, in evaluation mode, without a gradient; and neither its weights nor its running means move."""
    known = {"fully_connected": TEACHER, "resnet20": RESNET}[network]
    before = weights_of(known)
    weights_of(replace(STUDENT, teacher=known, flip=True))
    data = experiments.data_of(STUDENT)
    assert len(asked["student"]) == len(asked["teacher"]) == 6
    for (batch, logits), (inputs, answer, is_training, trainable, _) in zip(*asked.values(), strict=True):
        assert torch.equal(batch.inputs, inputs)
        assert not torch.equal(batch.inputs, data.train.inputs[batch.index])
        assert logits.requires_grad and not answer.requires_grad and not is_training and not trainable
    teacher = asked["teacher"][0][-1]
    assert torch.equal(torch.cat([tensor.flatten() for tensor in teacher.model.state_dict().values()]), before)
    batch = asked["student"][-1][0]
    answer = training.predict(teacher.model, batch.inputs, precision="float32").logits
    assert torch.equal(asked["teacher"][-1][1], answer)


def test_without_augmentation_the_teacher_answers_once(asked):
    weights_of(STILL)
    ((inputs, everything, *_),) = asked["teacher"]
    assert torch.equal(inputs, experiments.data_of(STILL).train.inputs)
    answer = experiments.answers_of(STILL, experiments.data_of(STILL))
    batch = asked["student"][0][0]
    assert torch.equal(answer(batch), everything[batch.index])


def test_the_second_student_computes_nothing_anew_and_ends_with_the_same_bits():
    hot = replace(STUDENT, temperature=4.0, hidden=(7, 5), beta=0.5)
    alone = experiments.train(hot, "cpu")
    experiments._teacher.cache_clear()
    weights_of(STUDENT)
    teacher = experiments._teacher(TEACHER, "cpu", None)
    assert (teacher.asked, teacher.computed) == (6, 6)
    second = experiments.train(hot, "cpu")
    assert (teacher.asked, teacher.computed) == (12, 6)
    assert_same_run(second, alone)


def test_shared_answers_are_those_of_a_teacher_without_memory(monkeypatch):
    with_memory = weights_of(STUDENT)
    monkeypatch.setattr(teachers, "MEMORY", 0)
    experiments._teacher.cache_clear()
    assert torch.equal(weights_of(STUDENT), with_memory)
    assert experiments._teacher(TEACHER, "cpu", None).bytes == 0


def network(seed=0, shape=(3, 8, 8)):
    return models.build(models.network("fully_connected", shape, 10, (6,)), seed, torch.float32)


def batches(count, generator=None):
    generator = generator or torch.Generator().manual_seed(0)
    return [torch.rand(4, 3, 8, 8, generator=generator) for _ in range(count)]


def test_memory_ends_somewhere(monkeypatch):
    """Beyond it, answers are right and computed anew; those within it stay. A batch that fits still finds its place."""
    monkeypatch.setattr(teachers, "MEMORY", 2 * 4 * 10 * 4 + 50)  # two answers of 4 · 10 float32, and a small one
    teacher, inputs = teachers.Teacher(network()), batches(4)
    first = [teacher(part) for part in inputs]
    again = [teacher(part) for part in inputs]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert (teacher.asked, teacher.computed, teacher.bytes) == (8, 6, 320)
    small = inputs[3][:1]
    assert torch.equal(teacher(small), teacher(small))
    assert (teacher.computed, teacher.bytes) == (7, 360)


def test_equal_bytes_of_another_shape_type_or_order_are_another_batch():
    """Regression: a batch was known by its bytes alone."""
    asked = []

    class Net(torch.nn.Module):
        def forward(self, inputs):
            asked.append((inputs.shape, inputs.dtype))
            return models.Output(inputs.flatten(1).double(), inputs)

    teacher, numbers = teachers.Teacher(Net()), torch.arange(2 * 3 * 3 * 3, dtype=torch.uint8)
    square = numbers.view(2, 3, 3, 3)
    last = square.permute(0, 3, 1, 2)  # the same bytes, as channels side by side
    assert last.is_contiguous(memory_format=torch.channels_last)
    for inputs in (square, last, numbers.view(6, 3, 3, 1), square.view(torch.int8), numbers.view(1, 54)):
        for _ in range(2):
            assert torch.equal(teacher(inputs), inputs.flatten(1).double())
    assert (len(asked), teacher.computed) == (5, 5)
    zero = torch.zeros(2, 3, 3, 3)
    assert not torch.equal(torch.signbit(teacher(zero)), torch.signbit(teacher(-zero)))


def test_a_batch_with_gaps_in_memory():
    whole = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    teacher = teachers.Teacher(network())
    assert torch.equal(teacher(whole[::2]), teacher(whole[::2].clone()))
    assert not torch.equal(teacher(whole[::2]), teacher(whole[1::2]))


# --- the loss that a student learns by


def test_a_student_that_listens_to_labels_alone_is_a_hard_network():
    hard = weights_of(PLAIN)
    assert torch.equal(weights_of(replace(STUDENT, beta=0.0)), hard)
    assert torch.equal(weights_of(replace(STUDENT, beta=0.0, temperature=1.0, imitation="logits")), hard)
    assert not torch.equal(weights_of(STUDENT), hard)


def test_a_student_without_labels_does_not_depend_on_them(monkeypatch):
    """β = 1: with any other labels, the same weights."""
    expected, fit = weights_of(STUDENT), training.fit
    split = experiments.data_of(STUDENT).train
    teacher = experiments.answers_of(STUDENT, experiments.data_of(STUDENT))

    def wrong(model, split, *rest, **options):
        return fit(model, split._replace(labels=(split.labels + 1) % 10), *rest, **options)

    monkeypatch.setattr(training, "fit", wrong)
    assert torch.equal(weights_of(STUDENT), expected)
    batch = training.Batch(split.inputs[:9], split.labels[:9], torch.arange(9))
    logits = torch.randn(9, 10, generator=torch.Generator().manual_seed(0))
    loss = experiments.loss_of(replace(STUDENT, temperature=1.0), teacher)(logits, batch)
    torch.testing.assert_close(loss, F.cross_entropy(logits, teacher(batch).softmax(1)))


@pytest.mark.parametrize(("own", "used"), [(0.0, 2.0), (1.0, 1.0), (3.0, 3.0)])
def test_temperatures_of_teacher_and_student(own, used):
    spec = replace(STUDENT, beta=0.3, student_temperature=own, loss_multiplier=3.0)
    generator = torch.Generator().manual_seed(5)
    logits, answer = torch.randn(2, 9, 10, generator=generator, dtype=torch.float64)
    labels = torch.arange(9)
    found = experiments.loss_of(spec, lambda _: answer)(logits, training.Batch(logits, labels, labels))
    soft = -((answer / 2).softmax(1) * (logits / used).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, 3 * (0.7 * F.cross_entropy(logits, labels) + 0.3 * used**2 * soft))


def test_imitated_logits():
    spec = replace(STUDENT, beta=0.6, temperature=1.0, imitation="logits", loss_multiplier=2.0)
    generator = torch.Generator().manual_seed(6)
    logits, answer = torch.randn(2, 9, 10, generator=generator, dtype=torch.float64)
    labels = torch.arange(9)
    found = experiments.loss_of(spec, lambda _: answer)(logits, training.Batch(logits, labels, labels))
    by_hand = 0.4 * F.cross_entropy(logits, labels) + 0.6 * ((logits - answer) ** 2).sum(1).mean() / 2
    torch.testing.assert_close(found, 2 * by_hand)
    assert weights_of(replace(spec, learning_rate=1e-3)).isfinite().all()


# --- weights on the disk


class Stopped(Exception):
    """In place of a kill."""


def stop_at(epoch, monkeypatch):
    """Let the training of every run end with `Stopped` at the end of an epoch; earlier ones leave a checkpoint."""
    real_record, real_fit = experiments._record, training.fit

    def stopping(data, spec, precision, at, model):
        if at == epoch:
            raise Stopped
        return real_record(data, spec, precision, at, model)

    monkeypatch.setattr(training, "fit", lambda *args, **options: real_fit(*args, **options, checkpoint_seconds=0))
    monkeypatch.setattr(experiments, "_record", stopping)


def test_a_student_trains_and_stores_its_teacher(tmp_path):
    run = experiments.load_or_train(STUDENT, tmp_path, "cpu")
    assert runs.is_stored(TEACHER.as_dict(), tmp_path) and runs.is_stored(STUDENT.as_dict(), tmp_path)
    assert [path.name for path in (tmp_path / ".weights").iterdir()] == [f"{TEACHER.name}.safetensors"]
    assert [path.stem for path in runs.paths(tmp_path)] == sorted([STUDENT.name, TEACHER.name])
    experiments._teacher.cache_clear()
    assert_same_run(runs.load(STUDENT.as_dict(), tmp_path), experiments.train(STUDENT, "cpu"))
    assert_same_run(runs.load(TEACHER.as_dict(), tmp_path), experiments.train(TEACHER, "cpu"))
    assert run.spec["teacher"] == TEACHER.as_dict()


@pytest.mark.parametrize("spec", [STUDENT, STILL], ids=["augmented", "still"])
def test_an_interrupted_student_ends_with_the_same_bits(tmp_path, monkeypatch, spec):
    """In a new process, which has to ask the teacher anew."""
    expected = experiments.train(spec, "cpu")
    experiments.load_or_train(TEACHER, tmp_path, "cpu")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(Stopped):
            experiments.load_or_train(spec, tmp_path, "cpu")
    assert [path.name for path in (tmp_path / ".checkpoints").iterdir()] == [f"{spec.name}.safetensors"]
    experiments._teacher.cache_clear()
    resumed = experiments.load_or_train(spec, tmp_path, "cpu")
    assert resumed.provenance["resumed"]
    assert_same_run(resumed, expected)


def test_an_interrupted_teacher_keeps_its_draws(tmp_path, monkeypatch):
    expected = experiments.train(TEACHER, "cpu")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(Stopped):
            experiments.load_or_train(TEACHER, tmp_path, "cpu")
    assert not (tmp_path / ".weights").exists()
    assert_same_run(experiments.load_or_train(TEACHER, tmp_path, "cpu"), expected)


def test_a_stored_teacher_without_weights_is_trained_to_the_same_ones(tmp_path, monkeypatch):
    """And, if that is interrupted, from its checkpoint on; its stored run stays as it is."""
    experiments.load_or_train(TEACHER, tmp_path, "cpu")
    path = experiments.weights_path(TEACHER, tmp_path)
    before, stored = path.read_bytes(), {p.name: p.read_bytes() for p in tmp_path.glob("*.*") if p.is_file()}
    path.unlink()
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(Stopped):
            experiments.load_or_train(STUDENT, tmp_path, "cpu")
    begun, record = [], experiments._record
    monkeypatch.setattr(experiments, "_record", lambda *args: begun.append((args[1], args[3])) or record(*args))
    experiments.load_or_train(STUDENT, tmp_path, "cpu")
    assert begun == [(TEACHER, 2), *((STUDENT, epoch) for epoch in range(3))]
    assert path.read_bytes() == before
    assert {name: (tmp_path / name).read_bytes() for name in stored} == stored
    assert list((tmp_path / ".checkpoints").iterdir()) == []


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_damaged_weights_are_named(tmp_path, damage):
    experiments.load_or_train(TEACHER, tmp_path, "cpu")
    path = experiments.weights_path(TEACHER, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="delete the file to train again") as caught:
        experiments.load_or_train(STUDENT, tmp_path, "cpu")
    assert str(path) in str(caught.value)
    assert not runs.is_stored(STUDENT.as_dict(), tmp_path)
    path.unlink()
    experiments.load_or_train(STUDENT, tmp_path, "cpu")


def test_weights_of_another_network_are_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    teachers.save_weights(network(), path)
    with pytest.raises(ValueError, match="are damaged or belong to another network") as caught:
        teachers.load_weights(network(shape=(1, 8, 8)), path)
    assert str(path) in str(caught.value)
    other = network(seed=1)
    teachers.load_weights(other, path)
    for name, tensor in network().state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_only_teachers_leave_their_weights(tmp_path):
    for keep, left in (("logits", 0), ("predictions", 0), ("views", 1), ("weights", 2)):
        experiments.load_or_train(replace(PLAIN, keep=keep), tmp_path, "cpu")
        assert len(list(tmp_path.glob(".weights/*"))) == left, keep


def test_a_retrained_teacher_is_not_remembered(tmp_path, monkeypatch):
    """A student of this process learns from the weights that lie there now."""
    experiments.load_or_train(STUDENT, tmp_path, "cpu")
    first = experiments._teacher(TEACHER, "cpu", tmp_path)
    monkeypatch.setenv("LSBOOK_RETRAIN", "1")
    experiments.load_or_train(TEACHER, tmp_path, "cpu")
    assert experiments._teacher(TEACHER, "cpu", tmp_path) is not first


@pytest.mark.slow
def test_students_in_two_processes(tmp_path):
    """Both want the same teacher, one trains it, and both end as they would alone."""
    whole = {"dataset": "digits", "shift": 0}  # not `small_digits`, which other processes do not know
    teacher = replace(TEACHER, draw_classes=(), **whole)
    specs = experiments.variants(replace(STUDENT, teacher=teacher, **whole), temperature=(2.0, 3.0))
    sweeps.run_all(specs, tmp_path, device="cpu", jobs=2)
    assert [path.stem for path in runs.paths(tmp_path)] == sorted(spec.name for spec in (teacher, *specs))
    for spec in specs:
        assert_same_run(runs.load(spec.as_dict(), tmp_path), experiments.train(spec, "cpu"))


@pytest.mark.slow
def test_smoke_tries_distillation(tmp_path):
    assert cli.main(["run", "digits-student-smoke", "--folder", str(tmp_path), "--device", "cpu"]) == 0
    (student,) = presets.experiment("digits-student", "smoke")
    assert len(runs.load(student.as_dict(), tmp_path).arrays["test_predictions"]) == 100
    assert runs.load(student.teacher.as_dict(), tmp_path).arrays["draws"].shape[0] == 3


# --- labels


def test_noise_is_of_the_right_rate_and_even():
    """A share η (K − 1)/K of wrong labels, all wrong classes equally often; smoothing's targets on average."""
    labels = torch.arange(100_000) % 10
    data = datasets.Dataset("made", 10, *2 * (datasets.Split(labels, labels),), tuple("0123456789"))
    for rate in (0.0, 0.2, 0.4, 1.0):
        found = experiments.noisy_labels(replace(PLAIN, label_noise=rate), data)
        wrong = found != labels
        assert binomtest(int(wrong.sum()), len(labels), rate * 0.9).pvalue > 1e-3
        if rate:
            assert chisquare(torch.bincount((found - labels)[wrong] % 10, minlength=10)[1:]).pvalue > 1e-3
        table = torch.zeros(10, 10, dtype=torch.float64)
        table.index_put_((labels, found), torch.ones((), dtype=torch.float64), accumulate=True)
        expected = targets.smooth_labels(torch.arange(10), 10, rate, dtype=torch.float64)
        # five standard deviations of a share among 10,000
        assert ((table / 10_000 - expected).abs() <= 5 * (expected * (1 - expected) / 10_000).sqrt() + 1e-12).all()


def test_teacher_and_student_have_the_same_wrong_labels():
    known = replace(TEACHER, label_noise=0.5)
    student = replace(STUDENT, teacher=known, label_noise=0.5)
    clean, noisy, own = (experiments.data_of(spec) for spec in (TEACHER, known, student))
    assert torch.equal(noisy.train.labels, own.train.labels)
    assert torch.equal(noisy.train.inputs, clean.train.inputs)
    assert torch.equal(noisy.test.labels, clean.test.labels)
    assert not torch.equal(noisy.train.labels, clean.train.labels)
    assert torch.equal(experiments.data_of(known).train.labels, noisy.train.labels)
    other = experiments.data_of(replace(known, seed=4))
    assert not torch.equal(other.train.labels, noisy.train.labels)
    assert experiments.train(known, "cpu").arrays["train_labels"].tolist() == noisy.train.labels.tolist()


def test_more_noise_keeps_what_less_noise_has_changed():
    """One draw for all rates, so that rates are compared on the same examples."""
    found = [experiments.data_of(replace(PLAIN, label_noise=rate)).train.labels for rate in (0.0, 0.2, 0.4)]
    changed = found[1] != found[0]
    assert changed.any() and torch.equal(found[2][changed], found[1][changed])


def test_noise_on_the_small_digits_without_pixels():
    spec = replace(experiments.DIGITS_FEW, label_noise=0.4)
    noisy, clean = experiments.data_of(spec), experiments.data_of(experiments.DIGITS_FEW)
    assert 0.2 < (noisy.train.labels != clean.train.labels).double().mean() < 0.55
    assert torch.equal(noisy.test.labels, clean.test.labels)


def test_groups_for_classes():
    groups = (1, 0, 2, 1, 0, 2, 1, 0, 2, 0)
    spec = replace(PLAIN, groups=groups, keep="logits")
    plain, grouped = experiments.data_of(PLAIN), experiments.data_of(spec)
    assert (grouped.num_classes, grouped.class_names) == (3, ("group 0", "group 1", "group 2"))
    for split in ("train", "test"):
        mine, whole = getattr(grouped, split), getattr(plain, split)
        assert torch.equal(mine.inputs, whole.inputs)
        assert mine.labels.tolist() == [groups[label] for label in whole.labels.tolist()]
    run = experiments.train(spec, "cpu")
    assert run.arrays["test_logits"].shape == (100, 3)
    student = replace(STUDENT, groups=groups, teacher=replace(TEACHER, groups=groups))
    assert experiments.train(student, "cpu").arrays["test_predictions"].max() < 3


def test_groups_of_some_classes_with_noise():
    spec = replace(PLAIN, classes=(7, 3, 5), groups=(0, 1, 1), label_noise=1.0)
    data, plain = experiments.data_of(spec), experiments.data_of(replace(PLAIN, classes=(7, 3, 5)))
    assert data.test.labels.tolist() == [min(label, 1) for label in plain.test.labels.tolist()]
    assert set(data.train.labels.tolist()) == {0, 1}


# --- what is kept


def test_draws_are_differences_of_logits_in_the_same_views_at_every_epoch():
    run, data = experiments.train(TEACHER, "cpu"), experiments.data_of(TEACHER)
    labels = data.train.labels
    count = min((labels == label).sum().item() for label in (0, 1))
    assert (run.arrays["draws"].shape, run.arrays["draws"].dtype) == ((2, 2 * count, 5), np.float16)
    assert all("draws" not in row for row in run.history)
    chosen = [i for label in (0, 1) for i in (labels == label).nonzero().flatten().tolist()[:count]]
    augment = experiments.augmentation(TEACHER)
    trained, _ = experiments.fit_spec(TEACHER, data)
    for row, model in enumerate((experiments.model_of(TEACHER, data), trained)):
        for view in range(5):
            seen = augment(data.train.inputs[chosen], torch.Generator().manual_seed(view))
            logits = training.predict(model, seen).logits.double()
            np.testing.assert_array_equal(run.arrays["draws"][row, :, view], (logits[:, 0] - logits[:, 1]).half())
    assert len(np.unique(run.arrays["draws"][0, 0])) > 1


def test_draws_change_nothing_else():
    run, plain = experiments.train(TEACHER, "cpu"), experiments.train(replace(TEACHER, draw_classes=()), "cpu")
    assert run.history == plain.history
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(run.arrays[name], array, err_msg=name)
    assert run.arrays.keys() - plain.arrays.keys() == {"draws"}


def test_few_draws_are_made(monkeypatch):
    monkeypatch.setattr(experiments, "DRAW_EXAMPLES", 2)
    assert experiments.train(TEACHER, "cpu").arrays["draws"].shape == (2, 4, 5)


@pytest.mark.parametrize("shift", [0, 1])
def test_kept_views(monkeypatch, shift):
    monkeypatch.setattr(experiments, "KEPT_TRAIN_EXAMPLES", 10)
    monkeypatch.setattr(experiments, "VIEWED_TEST_EXAMPLES", 30)
    spec = replace(TEACHER, draw_classes=(), shift=shift)
    run, whole = experiments.train(spec, "cpu"), experiments.train(replace(spec, keep="logits"), "cpu")
    expected = {"train_logits": (10, 10), "train_labels": (10,), "test_logits": (30, 10), "test_labels": (30,)}
    expected |= {"view_logits": (10, 10)} if shift else {}
    assert {name: array.shape for name, array in run.arrays.items()} == expected
    for name in expected.keys() - {"view_logits"}:
        np.testing.assert_array_equal(run.arrays[name], whole.arrays[name][: len(run.arrays[name])])
    assert [row["epoch"] for row in run.history] == [0, 2]
    for key, value in whole.history[-1].items():  # on all that is held out, not only on what is kept
        assert run.history[-1][key] == pytest.approx(value, rel=2e-3), key
    if shift:
        assert run.arrays["view_logits"].dtype == np.float16
        assert not np.array_equal(run.arrays["view_logits"], run.arrays["train_logits"])


@pytest.mark.parametrize("keep", ["predictions", "weights"])
@pytest.mark.parametrize("dataset", ["digits", "digit_images"])
def test_kept_predictions(keep, dataset):
    spec = replace(PLAIN, keep=keep, dataset=dataset, shift=0)
    run, whole = experiments.train(spec, "cpu"), experiments.train(replace(spec, keep="logits"), "cpu")
    assert {name: array.dtype.name for name, array in run.arrays.items()} == {"test_predictions": "uint8"}
    np.testing.assert_array_equal(run.arrays["test_predictions"], whole.arrays["test_logits"].argmax(1))
    right = run.arrays["test_predictions"] == whole.arrays["test_labels"]
    assert run.history[-1]["test_accuracy"] == pytest.approx(right.mean(), abs=0.011)  # float16 may make a tie
