"""Distillation losses against sums by the math module and smoothing; the measures against their definitions."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import alphas, class_counts, dtypes, integer_dtypes, logits_and_labels, seeds, small_class_counts

from lsbook import calibration, targets, theory
from lsbook.distillation import (
    agreement,
    agreement_beyond_accuracy,
    class_logits,
    distance_to_collapse,
    distillation_loss,
    equivalent_smoothing,
    logit_matching_loss,
    soft_targets,
    subclass_separation,
    teacher_parts,
)

FLOAT64 = {"dtype": torch.float64}
LARGEST_GAP = 1e6  # stands for the infinite gap of hard targets

temperatures = st.one_of(st.sampled_from([1e-3, 0.5, 1.0, 2.0, 4.0, 1e4]), st.floats(1e-3, 1e4))
own_temperatures = st.one_of(st.none(), st.just(1.0), temperatures)
betas = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1))


def draw(*shape, seed=0, scale=3.0):
    """Logits of the given shape, float64, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **FLOAT64) * scale


def draw_labels(classes, *shape, seed=0):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def teacher_like(logits, seed=1):
    """A teacher of the shape and scale of a student."""
    return draw(*logits.shape, seed=seed, scale=logits.abs().max().item() / 4).clamp(-1e4, 1e4)


def collapsed(labels, classes, gap, seed=0):
    """Logits with the same gap on every example, around an offset of its own."""
    offsets = torch.randint(-8, 9, (*labels.shape, 1), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(labels, classes).double() * min(gap, LARGEST_GAP) + offsets


def gradient(loss, logits):
    """The gradient of loss(logits) by logits."""
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def near(actual, expected, rel=1e-12, atol=0.0):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rel, atol=atol)


# --- the loss against the definition, by the math module


def log_softmax_by_hand(row, temperature):
    largest = max(row)
    log_sum = math.log(math.fsum(math.exp((z - largest) / temperature) for z in row))
    return [(z - largest) / temperature - log_sum for z in row]


def loss_by_hand(student, teacher, labels, beta, temperature, own=None):
    own = temperature if own is None else own
    losses = []
    for z, v, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        soft = [math.exp(log_p) for log_p in log_softmax_by_hand(v, temperature)]
        cross = -math.fsum(q * log_p for q, log_p in zip(soft, log_softmax_by_hand(z, own), strict=True))
        losses.append((1 - beta) * -log_softmax_by_hand(z, 1)[y] + beta * own**2 * cross)
    return math.fsum(losses) / len(losses)


@given(logits_and_labels(small_class_counts), betas, temperatures, own_temperatures, seeds)
def test_loss_is_the_direct_sum(case, beta, temperature, own, seed):
    student, labels = case
    teacher = teacher_like(student, seed)
    expected = loss_by_hand(student, teacher, labels, beta, temperature, own)
    found = distillation_loss(student, teacher, labels, beta, temperature, own)
    assert found.shape == ()
    # Rounding of logits of 1e4 is rounding of the loss, T_s times over: T_s² H(·, p(z/T_s)).
    scale = 1 + student.abs().max().item() * max(1, own or temperature)
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-15 * scale)


def test_loss_of_one_example_in_plain_numbers():
    student, teacher, labels = (
        torch.zeros(1, 2, **FLOAT64),
        torch.tensor([[2 * math.log(3), 0]], **FLOAT64),
        torch.tensor([0]),
    )
    # p = (½, ½) at any T_s: the hard part is ln 2, the soft part T_s² ln 2.
    for beta, own, expected in [(0, None, 1), (1, None, 4), (0.25, None, 0.75 + 1), (1, 1, 1), (0.5, 3, 0.5 + 4.5)]:
        found = distillation_loss(student, teacher, labels, beta, 2, own)
        assert found.item() == pytest.approx(expected * math.log(2), rel=1e-15)
    near(soft_targets(teacher, 2), [[0.75, 0.25]], rel=1e-15)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
def test_mean_over_examples_of_any_shape(shape):
    """Regression (a common fault): the mean over classes too, which makes the loss K times too small."""
    student, teacher, labels = draw(*shape, 5), draw(*shape, 5, seed=1), draw_labels(5, *shape)
    rows = zip(student.reshape(-1, 5), teacher.reshape(-1, 5), labels.reshape(-1), strict=True)
    expected = torch.stack([distillation_loss(z[None], v[None], y[None], 0.4, 3.0) for z, v, y in rows]).mean()
    near(distillation_loss(student, teacher, labels, 0.4, 3.0), expected)
    twice = [torch.cat([values.reshape(-1, *values.shape[len(shape) :])] * 2) for values in (student, teacher, labels)]
    near(distillation_loss(*twice, 0.4, 3.0), expected)


@given(logits_and_labels(small_class_counts), temperatures, own_temperatures)
def test_beta_mixes_its_two_ends(case, temperature, own):
    student, labels = case
    hard, mixed, soft = (
        distillation_loss(student, teacher_like(student), labels, beta, temperature, own) for beta in (0, 0.3, 1)
    )
    near(hard, F.cross_entropy(student, labels))
    near(mixed, 0.7 * hard + 0.3 * soft, rel=1e-14)


def test_the_student_softens_as_the_teacher_unless_told_otherwise():
    case = draw(4, 5), draw(4, 5, seed=1), draw_labels(5, 4)
    assert torch.equal(distillation_loss(*case, 0.5, 3.0), distillation_loss(*case, 0.5, 3.0, 3.0))
    paper = F.cross_entropy(case[0], soft_targets(case[1], 3.0))
    near(distillation_loss(*case, 1, 3.0, student_temperature=1), paper)


# --- gradients


@pytest.mark.parametrize(("beta", "temperature", "own"), [(0, 2, None), (0.3, 2, None), (1, 4, None), (0.6, 0.5, 1)])
def test_gradients_numerically(beta, temperature, own):
    student, teacher, labels = draw(3, 4, scale=1), draw(3, 4, seed=1), draw_labels(4, 3)
    assert torch.autograd.gradcheck(
        lambda z: distillation_loss(z, teacher, labels, beta, temperature, own), student.requires_grad_()
    )


@given(logits_and_labels(), betas, temperatures, own_temperatures)
def test_gradient_in_closed_form(case, beta, temperature, own):
    student, labels = case
    teacher = teacher_like(student)
    found = gradient(lambda z: distillation_loss(z, teacher, labels, beta, temperature, own), student)
    own = own or temperature
    soft = own * ((student / own).softmax(-1) - (teacher / temperature).softmax(-1))
    hard = student.softmax(-1) - F.one_hot(labels, student.shape[1])
    # Softmax of z/T with z at 1e4 and T at 1e-3 has an error of 1e-9 of its own.
    error = 1e-15 * (1 + 1e4 / min(temperature, own)) * max(1, own)
    near(found, ((1 - beta) * hard + beta * soft) / len(labels), rel=1e-12, atol=error)


def test_gradient_is_that_of_kl_divergence():
    student, teacher, labels = draw(6, 10), draw(6, 10, seed=1), draw_labels(10, 6)
    for temperature in (0.5, 1.0, 4.0):
        log_teacher = (teacher / temperature).log_softmax(-1)

        def divergence(z, t=temperature, log_q=log_teacher):
            return t**2 * F.kl_div((z / t).log_softmax(-1), log_q, reduction="batchmean", log_target=True)

        found = gradient(lambda z, t=temperature: distillation_loss(z, teacher, labels, 1, t), student)
        near(found, gradient(divergence, student), atol=1e-15)
        entropy = -(log_teacher.exp() * log_teacher).sum(-1).mean()
        near(
            distillation_loss(student, teacher, labels, 1, temperature) - temperature**2 * entropy, divergence(student)
        )


def test_squared_temperature_keeps_the_size_of_the_gradient():
    """Regression (a common fault): without T_s² it falls like 1/T², and β comes to mean less and less."""
    student, teacher, labels = draw(8, 10), draw(8, 10, seed=1), draw_labels(10, 8)

    def size(temperature):
        return gradient(lambda z: distillation_loss(z, teacher, labels, 1, temperature), student).norm().item()

    assert size(500) / size(50) == pytest.approx(1, abs=0.05)
    assert (size(500) / 500**2) / (size(50) / 50**2) == pytest.approx(1 / 100, abs=5e-4)


@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_no_gradient_to_the_teacher(beta):
    student, teacher = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    distillation_loss(student, teacher, draw_labels(4, 3), beta, 2.0).backward()
    logit_matching_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    shared = draw(3, 4).requires_grad_()  # a network that teaches itself: one path only
    distillation_loss(shared, shared, draw_labels(4, 3), 1, 2.0).backward()
    near(shared.grad, torch.zeros(3, 4), atol=1e-15)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_without_weight_the_teacher_does_not_matter(value):
    student, labels = draw(3, 4), draw_labels(4, 3)
    spoilt = torch.full((3, 4), value, **FLOAT64)
    found = gradient(lambda z: distillation_loss(z, spoilt, labels, 0, 1e4, validate=False), student)
    assert torch.equal(found, gradient(lambda z: F.cross_entropy(z, labels), student))


@pytest.mark.parametrize("label", [-1, -100, 4, 10**9])
def test_with_all_weight_on_the_teacher_the_labels_do_not_matter(label):
    student, teacher, labels = draw(3, 4), draw(3, 4, seed=1), draw_labels(4, 3)
    expected = gradient(lambda z: distillation_loss(z, teacher, labels, 1, 2.0), student)
    for others in (labels.flip(0), (labels + 1) % 4):
        assert torch.equal(gradient(lambda z, y=others: distillation_loss(z, teacher, y, 1, 2.0), student), expected)
    unknown = torch.full((3,), label)
    found = gradient(lambda z: distillation_loss(z, teacher, unknown, 1, 2.0, validate=False), student)
    assert torch.equal(found, expected)


# --- a collapsed teacher teaches label smoothing


@given(logits_and_labels(), alphas)
def test_collapsed_teacher_is_label_smoothing(case, alpha):
    student, labels = case
    classes = student.shape[1]
    teacher = collapsed(labels, classes, theory.optimal_gap(alpha, classes))
    tolerance = {"rel": 1e-10, "atol": 1e-13 * (1 + student.abs().max().item())}
    found = distillation_loss(student, teacher, labels, 1, 1)
    near(found, targets.smoothed_cross_entropy(student, labels, alpha), **tolerance)
    near(
        gradient(lambda z: distillation_loss(z, teacher, labels, 1, 1), student),
        gradient(lambda z: targets.smoothed_cross_entropy(z, labels, alpha), student),
        atol=1e-13,
    )


@given(logits_and_labels(), alphas, temperatures, own_temperatures)
def test_softened_collapsed_teacher_is_smoothing_with_another_alpha(case, alpha, temperature, own):
    student, labels = case
    classes = student.shape[1]
    teacher = collapsed(labels, classes, theory.optimal_gap(alpha, classes))
    softened = (
        theory.collapsed_teacher_alpha(alpha, classes, temperature) if alpha else alpha_of_largest(classes, temperature)
    )
    scale = own or temperature

    def smoothing(z):
        return scale**2 * targets.smoothed_cross_entropy(z / scale, labels, softened)

    # The gap stands beside an offset of 8: its rounding of 1e-15 is one of 1e-15/T in the exponent. And z/T_s rounds
    # in the exponent of the student's probabilities, which T_s multiplies.
    error, largest = 1e-13 * (1 + 1 / temperature) * scale, student.abs().max().item()
    found = distillation_loss(student, teacher, labels, 1, temperature, own)
    near(found, smoothing(student), rel=1e-10, atol=error * (scale + largest))
    near(
        gradient(lambda z: distillation_loss(z, teacher, labels, 1, temperature, own), student),
        gradient(smoothing, student),
        rel=1e-9,
        atol=error + 1e-15 * largest,
    )


def alpha_of_largest(classes, temperature):
    """α_T of the gap that stands for the infinite one of hard targets."""
    return theory.alpha_from_gap(LARGEST_GAP / temperature, classes)


# --- the whole range, and every type


@given(logits_and_labels(), dtypes, betas, temperatures, own_temperatures)
def test_half_precision_is_widened_and_nothing_overflows(case, dtype, beta, temperature, own):
    student, labels = case[0].to(dtype), case[1]
    teacher = teacher_like(case[0]).to(dtype)
    leaf = student.clone().requires_grad_()
    found = distillation_loss(leaf, teacher, labels, beta, temperature, own)
    found.backward()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.isfinite()
    assert leaf.grad.isfinite().all()
    exact = distillation_loss(student.double(), teacher.double(), labels, beta, temperature, own).item()
    # A small loss is what is left of logits of 1e4, and T_s² (z/T_s) has T_s times their size.
    scale = (own or temperature) * student.abs().max().item()
    assert found.item() == pytest.approx(exact, rel=1e-4, abs=1e-5 + 1e-6 * scale)


@given(logits_and_labels(), dtypes, temperatures)
def test_soft_targets_are_distributions(case, dtype, temperature):
    rows = soft_targets(case[0].to(dtype), temperature)
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (rows >= 0).all()
    near(rows.double().sum(-1), torch.ones(len(rows)), rel=1e-5)
    near(rows, (case[0].to(dtype).double() / temperature).softmax(-1), rel=1e-5, atol=1e-7)


def test_small_temperatures_do_not_magnify_rounding():
    """Regression: z/T first makes 1e4 and 1e4 − 2⁻¹⁰, apart by 0.98 at T = 1e-3, apart by 1 in float32."""
    logits = torch.tensor([1e4, 1e4 - 2**-10, 0])
    near(soft_targets(logits, 1e-3), (logits.double() / 1e-3).softmax(-1), rel=1e-6)


@given(integer_dtypes, betas)
def test_labels_of_any_integer_type(dtype, beta):
    student, teacher, labels = draw(3, 200), draw(3, 200, seed=1), torch.tensor([0, 127, 5])
    expected = distillation_loss(student, teacher, labels, beta, 2.0)
    assert torch.equal(distillation_loss(student, teacher, labels.to(dtype), beta, 2.0), expected)


def test_student_and_teacher_of_different_precision():
    student, teacher, labels = draw(3, 5), draw(3, 5, seed=1), draw_labels(5, 3)
    expected = distillation_loss(student, teacher, labels, 0.5, 2.0)
    for own, other in itertools.product([torch.float16, torch.float32, torch.float64], repeat=2):
        arguments = student.to(own), teacher.to(other)
        wide = torch.float64 if own == torch.float64 else torch.float32
        near(distillation_loss(*arguments, labels, 0.5, 2.0), expected.to(wide), rel=2e-3)
        assert logit_matching_loss(*arguments).dtype == wide


@given(logits_and_labels(), betas, temperatures, own_temperatures)
def test_looking_at_the_values_changes_none(case, beta, temperature, own):
    arguments = case[0], teacher_like(case[0]), case[1], beta, temperature, own
    assert torch.equal(distillation_loss(*arguments, validate=False), distillation_loss(*arguments))


def test_without_validation_no_value_is_looked_at():
    """A meta tensor has no values; looking at one raises."""
    logits, labels = torch.zeros(3, 4, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
    assert distillation_loss(logits, logits, labels, 0.5, 2.0, validate=False).is_meta
    assert logit_matching_loss(logits, logits, centred=True, validate=False).is_meta
    assert soft_targets(logits, 2.0, validate=False).is_meta
    assert subclass_separation(logits, validate=False).is_meta
    assert class_logits(logits, 2).is_meta


# --- matching logits


@given(logits_and_labels(small_class_counts), st.booleans())
def test_logit_matching_is_the_direct_sum(case, centred):
    student, teacher = case[0], teacher_like(case[0])
    losses = []
    for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
        shift = (math.fsum(z) - math.fsum(v)) / len(z) if centred else 0
        losses.append(math.fsum((a - b - shift) ** 2 for a, b in zip(z, v, strict=True)) / 2)
    found = logit_matching_loss(student, teacher, centred=centred)
    assert found.item() == pytest.approx(math.fsum(losses) / len(losses), rel=1e-11)


def test_squared_loss_is_the_limit_only_once_centred():
    """P9 of the paper's slips: K T² KL(p^t(T)‖p(T)) → ½ ‖z − v‖² holds for centred logits. The error goes like 1/T."""
    student, teacher = draw(8, 10), draw(8, 10, seed=1)
    limit = logit_matching_loss(student, teacher, centred=True).item()

    def error(temperature):
        log_p, log_q = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
        divergence = (log_q.exp() * (log_q - log_p)).sum(-1).mean().item()
        return 10 * temperature**2 * divergence - limit

    assert abs(error(1e4)) < 1e-4 * limit
    for temperature in (1e3, 1e4):  # at 1e5 rounding is as large: T² × 1e-16
        assert error(temperature) / error(10 * temperature) == pytest.approx(10, rel=0.05)
    off = logit_matching_loss(student, teacher).item() - limit
    assert off == pytest.approx(5 * (student.mean(-1) - teacher.mean(-1)).square().mean().item(), rel=1e-12)
    assert off > 0.01 * limit


def test_at_high_temperature_the_gradient_is_that_of_matching_logits():
    student, teacher, labels = draw(8, 10), draw(8, 10, seed=1), draw_labels(10, 8)
    matching = gradient(lambda z: logit_matching_loss(z, teacher, centred=True), student)
    found = gradient(lambda z: distillation_loss(z, teacher, labels, 1, 1e6), student)
    near(10 * found, matching, rel=1e-4, atol=1e-5)


def test_centring_forgets_what_is_added_to_a_row():
    student, teacher, offset = draw(4, 5), draw(4, 5, seed=1), draw(4, 1, seed=2)
    expected = logit_matching_loss(student, teacher, centred=True)
    near(logit_matching_loss(student + offset, teacher, centred=True), expected)
    near(logit_matching_loss(student, teacher + offset, centred=True), expected)
    near(logit_matching_loss(student + 2, student), torch.tensor(2.0 * 5))
    for centred in (False, True):
        assert torch.autograd.gradcheck(
            lambda z, c=centred: logit_matching_loss(z, teacher, centred=c), student.requires_grad_()
        )


@given(logits_and_labels(max_rows=2), dtypes)
def test_logit_matching_in_every_precision(case, dtype):
    student, teacher = case[0].to(dtype), teacher_like(case[0]).to(dtype)
    found = logit_matching_loss(student, teacher, centred=True)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.item() == pytest.approx(
        logit_matching_loss(student.double(), teacher.double(), centred=True).item(), rel=1e-5
    )


# --- how much smoothing a teacher is worth


@given(class_counts, alphas, temperatures, seeds)
def test_collapsed_teacher_is_worth_its_alpha(classes, alpha, temperature, seed):
    labels = draw_labels(classes, 3, seed=seed)
    gap = min(theory.optimal_gap(alpha, classes), LARGEST_GAP)
    teacher = F.one_hot(labels, classes).double() * gap
    expected = theory.alpha_from_gap(gap / temperature, classes)
    if alpha > 0:
        assert expected == pytest.approx(theory.collapsed_teacher_alpha(alpha, classes, temperature), rel=1e-9)
    found = equivalent_smoothing(teacher, labels, temperature)
    # Rounding of the exponent g/T is rounding of γ; no floor: a γ of 1e-300 has its digits too.
    assert found == pytest.approx(expected, rel=1e-14 * (20 + gap / temperature), abs=1e-320)


@given(small_class_counts, st.floats(0.001, 1), seeds)
def test_smoothed_targets_are_worth_their_alpha(classes, alpha, seed):
    labels = draw_labels(classes, 4, seed=seed)
    log_targets = targets.smooth_labels(labels, classes, alpha, **FLOAT64).log()
    assert equivalent_smoothing(log_targets, labels) == pytest.approx(alpha, rel=1e-12)


@given(logits_and_labels(), temperatures)
def test_equivalent_smoothing_is_its_definition(case, temperature):
    logits, labels = case
    wrong = (logits / temperature).softmax(-1).scatter(1, labels[:, None], 0).sum(-1)
    expected = wrong.mean().item() * logits.shape[1] / (logits.shape[1] - 1)
    assert equivalent_smoothing(logits, labels, temperature) == pytest.approx(expected, rel=1e-7, abs=1e-300)


def test_equivalent_smoothing_by_hand():
    assert equivalent_smoothing(torch.zeros(2, 3, 10), torch.zeros(2, 3, dtype=torch.long)) == pytest.approx(1)
    assert equivalent_smoothing([[0, 0], [math.log(3), 0]], [0, 0]) == pytest.approx(2 * (0.5 + 0.25) / 2)
    assert equivalent_smoothing([[0, 800.0]], [0]) == 2  # sure, and wrong: K/(K − 1)
    # 1 − p_y, which float64 would give as 0
    assert equivalent_smoothing([[100.0, 0, 0]], [0]) == pytest.approx(1.5 * 2 * math.exp(-100), rel=1e-13)
    assert equivalent_smoothing([[1.0, 0, 0]], [0], 1e-320) == 0


@pytest.mark.parametrize("measure", [equivalent_smoothing, teacher_parts, distance_to_collapse])
def test_measures_take_arrays_lists_and_tensors_of_any_shape(measure):
    logits, labels = (draw(6, 4) + 9 * F.one_hot(draw_labels(4, 6), 4)).float(), draw_labels(4, 6)
    expected = measure(logits, labels)
    others = [
        (logits.numpy(), labels.numpy()),
        (logits.tolist(), labels.tolist()),
        (logits.reshape(2, 3, 4).requires_grad_(), labels.reshape(2, 3).to(torch.uint8)),
    ]
    for case in others:
        assert measure(*case) == expected
    order = [3, 1, 5, 0, 2, 4]
    assert measure(logits[order], labels[order]) == pytest.approx(expected, rel=1e-12)
    assert measure(logits.bfloat16(), labels) == pytest.approx(expected, rel=0.2)


# --- what is left beside smoothing


def parts_by_hand(logits, labels, temperature):
    """between, within and mean ‖d‖², by loops over the definition."""
    probs, labels, classes = (logits / temperature).softmax(-1).tolist(), labels.tolist(), logits.shape[1]
    departures = [
        [0 if j == y else p[j] - (1 - p[y]) / (classes - 1) for j in range(classes)]
        for p, y in zip(probs, labels, strict=True)
    ]
    means = {
        y: [
            math.fsum(d[j] for d, k in zip(departures, labels, strict=True) if k == y) / labels.count(y)
            for j in range(classes)
        ]
        for y in labels
    }
    between = math.fsum(m * m for y in labels for m in means[y])
    within = math.fsum(
        (a - m) ** 2 for d, y in zip(departures, labels, strict=True) for a, m in zip(d, means[y], strict=True)
    )
    total = math.fsum(a * a for d in departures for a in d)
    return [value / len(labels) for value in (between, within, total)]


@given(st.integers(2, 6), st.integers(1, 20), temperatures, seeds)
def test_parts_are_their_definition_and_add_up(classes, rows, temperature, seed):
    logits, labels = draw(rows, classes, seed=seed), draw_labels(classes, rows, seed=seed)
    parts = teacher_parts(logits, labels, temperature)
    between, within, total = parts_by_hand(logits, labels, temperature)
    assert parts.between == pytest.approx(between, rel=1e-9, abs=1e-15)
    assert parts.within == pytest.approx(within, rel=1e-9, abs=1e-15)
    assert parts.between + parts.within == pytest.approx(total, rel=1e-9, abs=1e-15)
    assert parts.gamma == equivalent_smoothing(logits, labels, temperature)
    true = soft_targets(logits, temperature)[torch.arange(rows), labels]
    assert parts.confidence_spread == pytest.approx(true.std(correction=0).item(), rel=1e-9, abs=1e-15)


@given(class_counts, st.floats(1e-6, 1), temperatures, seeds)
def test_collapsed_teacher_has_nothing_beside_smoothing(classes, alpha, temperature, seed):
    labels = draw_labels(classes, 4, seed=seed)
    teacher = F.one_hot(labels, classes).double() * theory.optimal_gap(alpha, classes)
    parts = teacher_parts(teacher, labels, temperature)
    assert parts[1:] == (0, 0, 0)
    assert parts.gamma == equivalent_smoothing(teacher, labels, temperature)


def test_two_classes_leave_one_number():
    """With one wrong class there is nothing to be uneven: soft targets say only how sure the teacher is."""
    parts = teacher_parts(draw(50, 2), draw_labels(2, 50))
    assert parts.between == parts.within == 0
    assert parts.confidence_spread > 0.1


def test_each_part_sees_its_own():
    labels = torch.arange(3).repeat_interleave(4)
    alike = collapsed(labels, 3, 3.0)
    alike[torch.arange(12), (labels + 1) % 3] += 1  # every example of a class leans to the same class
    only_between = teacher_parts(alike, labels)
    assert only_between.within == pytest.approx(0, abs=1e-30)
    assert only_between.between > 1e-4
    assert only_between.confidence_spread == pytest.approx(0, abs=1e-15)
    own = collapsed(labels, 3, 3.0)
    own[torch.arange(12), (labels + 1 + torch.arange(12) % 2) % 3] += 1  # half to one side, half to the other
    only_within = teacher_parts(own, labels)
    assert only_within.between == pytest.approx(0, abs=1e-30)
    assert only_within.within == pytest.approx(only_between.between, rel=1e-12)
    harder = F.one_hot(labels, 3).double() * torch.linspace(1, 5, 12)[:, None]
    assert teacher_parts(harder, labels)[2:] == pytest.approx((0, 0), abs=1e-30)
    assert teacher_parts(harder, labels).confidence_spread > 0.1


def test_unbiased_parts_are_right_on_average():
    """Samples of 3 a class, drawn from a population whose parts are known."""
    size, few, classes = 40, 3, 4
    labels = torch.arange(classes).repeat_interleave(size)
    population = draw(classes * size, classes, scale=1) + collapsed(labels, classes, 1.0)
    truth = teacher_parts(population, labels)
    rng = np.random.default_rng(0)
    found = {True: [], False: []}
    for _ in range(1500):
        drawn = rng.integers(size, size=(classes, few)) + size * np.arange(classes)[:, None]
        sample = population[drawn.reshape(-1)], labels[drawn.reshape(-1)]
        for unbiased in found:
            found[unbiased].append(teacher_parts(*sample, unbiased=unbiased)[2:])
    means = {unbiased: np.mean(values, axis=0) for unbiased, values in found.items()}
    errors = {unbiased: np.std(values, axis=0) / 1500**0.5 for unbiased, values in found.items()}
    expected = np.array([truth.between, truth.within])
    assert np.all(np.abs(means[True] - expected) < 4 * errors[True])
    # What each sample's own means take from one part they give to the other.
    moved = truth.within / few
    assert np.all(np.abs(means[False] - expected - [moved, -moved]) < 4 * errors[False])
    assert np.all(np.abs(means[False] - expected) > 10 * errors[False])


@given(st.integers(3, 5), st.integers(2, 5), seeds)
def test_unbiased_parts_have_the_same_sum(classes, each, seed):
    labels = torch.arange(classes).repeat(each)
    logits = draw(len(labels), classes, seed=seed)
    plain, unbiased = (teacher_parts(logits, labels, unbiased=flag) for flag in (False, True))
    assert unbiased.between + unbiased.within == pytest.approx(plain.between + plain.within, rel=1e-12)
    assert unbiased.within == pytest.approx(plain.within * each / (each - 1), rel=1e-12)
    assert unbiased[:2] == plain[:2]


# --- distance to collapse


@given(logits_and_labels(), st.floats(0, 10))
def test_distance_to_collapse_is_spread_over_mean_of_the_gaps(case, lead):
    logits, labels = case
    logits = logits + lead * 1e4 * F.one_hot(labels, logits.shape[1])
    gaps = calibration.logit_gaps(logits, labels)
    assume(gaps.mean() > 1e-3)
    assert distance_to_collapse(logits, labels) == pytest.approx(gaps.std() / gaps.mean(), rel=1e-9, abs=1e-12)


@given(class_counts, st.floats(1e-3, 1e3), temperatures, seeds)
def test_distance_is_zero_just_for_collapse(classes, gap, temperature, seed):
    labels = draw_labels(classes, 3, seed=seed)
    teacher = F.one_hot(labels, classes).double() * gap
    assert distance_to_collapse(teacher, labels) == distance_to_collapse(teacher / temperature, labels) == 0
    teacher[0, labels[0]] *= 1.5
    assert distance_to_collapse(teacher, labels) > 0


def test_distance_does_not_change_with_scale():
    logits, labels = draw(20, 5) + 9 * F.one_hot(draw_labels(5, 20), 5), draw_labels(5, 20)
    expected = distance_to_collapse(logits, labels)
    for scale in (1e-3, 0.25, 1e3):
        assert distance_to_collapse(logits * scale, labels) == pytest.approx(expected, rel=1e-12)
    assert distance_to_collapse(logits + draw(20, 1, seed=3), labels) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "given"), [([[0.0, 0.0, 0.0]], "got 0"), ([[0.0, 3.0, 0.0]], "got -1.5"), ([[0, 2], [1, 0]], "got -0.5")]
)
def test_without_a_positive_gap_there_is_no_scale(logits, given):
    with pytest.raises(ValueError, match=f"logits must have a positive mean gap to the wrong classes, {given}"):
        distance_to_collapse(logits, [0] * len(logits))


# --- agreement


def test_agreement_by_hand():
    assert agreement([0, 1, 2, 2], np.array([0, 1, 2, 1])) == 0.75
    assert agreement(torch.tensor([[1, 2]], dtype=torch.uint8), [[1, 2]]) == 1
    assert agreement([0], [1]) == 0
    # The teacher errs on three: the student makes one of them, gets one right, and errs otherwise on one.
    assert agreement_beyond_accuracy([9, 1, 5, 3], [9, 2, 6, 3], labels=[0, 1, 7, 3]) == pytest.approx(1 / 3)


@given(st.integers(2, 5), st.integers(1, 30), seeds)
def test_agreement_properties(classes, count, seed):
    rng = np.random.default_rng(seed)
    student, teacher, labels = rng.integers(classes, size=(3, count))
    assert agreement(student, teacher) == agreement(teacher, student)
    assert agreement(teacher, teacher) == 1
    if (wrong := teacher != labels).any():
        assert agreement_beyond_accuracy(teacher, teacher, labels) == 1
        assert agreement_beyond_accuracy(labels, teacher, labels) == 0  # a student that is always right
        assert agreement_beyond_accuracy(student, teacher, labels) == agreement(student[wrong], teacher[wrong])


def test_independent_networks_share_mistakes_by_chance_only():
    rng = np.random.default_rng(0)
    student, teacher, labels = rng.integers(10, size=(3, 20_000))
    assert agreement_beyond_accuracy(student, teacher, labels) == pytest.approx(0.1, abs=0.01)


# --- subclasses


@given(small_class_counts, st.integers(1, 6), dtypes, seeds)
def test_class_probability_is_the_sum_of_its_subclasses(classes, size, dtype, seed):
    logits = draw(2, 3, classes * size, seed=seed, scale=10).to(dtype)
    found = class_logits(logits, size)
    assert found.shape == (2, 3, classes)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    summed = logits.double().softmax(-1).reshape(2, 3, classes, size).sum(-1)
    near(found.softmax(-1), summed, rel=1e-5 if found.dtype == torch.float32 else 1e-12, atol=1e-12)


def test_class_logits_by_hand():
    logits = torch.tensor([0, 1, 2, 3, 4, 5], **FLOAT64)
    near(class_logits(logits, 1), logits)
    near(class_logits(logits, 3), [math.log(1 + math.e + math.e**2) + shift for shift in (0, 3)])
    assert class_logits(torch.tensor([1e4, -1e4, 0, 0]).half(), 2).tolist() == pytest.approx([1e4, math.log(2)])
    assert torch.autograd.gradcheck(lambda z: class_logits(z, 3), logits.requires_grad_())


def test_subclass_targets_hold_what_two_classes_lack():
    """For two classes nothing is uneven; of four subclasses of the same network, much is."""
    logits = draw(200, 4)
    labels = class_logits(logits, 2).argmax(-1)
    assert teacher_parts(class_logits(logits, 2), labels).within == 0
    assert teacher_parts(logits, logits.argmax(-1)).within > 1e-3


def separation_by_hand(logits, temperature):
    """−ln of each example's own share in the sum over the batch, less ln n; the mean."""
    units = [F.normalize(z - z.mean(), dim=0) for z in logits]
    total = 0.0
    for i, own in enumerate(units):
        weights = [math.exp((own @ other).item() / temperature) for other in units]
        total -= math.log(weights[i] / math.fsum(weights))
    return total / len(units) - math.log(len(units))


@given(st.integers(1, 12), st.integers(2, 8), st.floats(0.05, 10), seeds)
def test_separation_is_contrastive(count, width, temperature, seed):
    logits = draw(count, width, seed=seed)
    found = subclass_separation(logits, temperature)
    assert found.item() == pytest.approx(separation_by_hand(logits, temperature), rel=1e-6, abs=1e-6 / temperature)
    assert -math.log(count) - 1e-7 <= found.item() <= 1e-7 / temperature
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert subclass_separation(logits[order], temperature).item() == pytest.approx(found.item(), abs=1e-12)
    columns = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    moved = 3 * logits[:, columns] + draw(count, 1, seed=seed + 1)
    assert subclass_separation(moved, temperature).item() == pytest.approx(
        found.item(), rel=1e-6, abs=1e-6 / temperature
    )


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 10.0])
def test_separation_of_equal_orthogonal_and_opposite_examples(temperature):
    equal = draw(1, 8).expand(4, 8)
    # Rows of a Hadamard matrix but the first: orthogonal, and of mean 0.
    hadamard = torch.tensor([[(-1) ** (i & j).bit_count() for j in range(8)] for i in range(1, 5)], **FLOAT64)
    same, apart, opposite = (
        subclass_separation(z, temperature).item() for z in (equal, hadamard, torch.cat([hadamard[:2], -hadamard[:2]]))
    )
    assert same == pytest.approx(0, abs=1e-8 / temperature)
    assert apart == pytest.approx(math.log1p(3 * math.exp(-1 / temperature)) - math.log(4), abs=1e-8 / temperature)
    assert apart < same
    assert opposite == pytest.approx(
        math.log(1 + 2 * math.exp(-1 / temperature) + math.exp(-2 / temperature)) - math.log(4), abs=1e-8 / temperature
    )


def test_separation_has_a_finite_gradient_where_logits_do_not_vary():
    cases = {
        "one logit is the same for all examples": draw(4, 6).index_fill(1, torch.tensor([2]), 1.0),
        "the logits of an example are all equal": draw(4, 6).index_fill(0, torch.tensor([2]), 1.0),
        "all logits are equal": torch.zeros(4, 6, **FLOAT64),
        "large logits": draw(4, 6, scale=1e4),
        "one example": draw(1, 6),
    }
    for name, logits in cases.items():
        for dtype in (torch.float32, torch.float64):
            found = gradient(subclass_separation, logits.to(dtype))
            assert found.isfinite().all(), name
    assert subclass_separation(draw(1, 6)).item() == pytest.approx(0, abs=1e-8)
    logits = draw(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: subclass_separation(z, 0.5), logits)


@given(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), seeds)
def test_separation_in_every_precision(dtype, seed):
    logits = draw(8, 10, seed=seed).to(dtype)
    found = subclass_separation(logits, 0.1)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(subclass_separation(logits.double(), 0.1).item(), abs=1e-4)


# --- bad input: each error names the argument, what was given and what was expected

STUDENT, TEACHER, LABELS = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0, 2])

BAD_TEMPERATURES = [
    (0, ValueError, "must be positive and finite, got 0"),
    (-1.0, ValueError, "must be positive and finite, got -1.0"),
    (math.inf, ValueError, "must be positive and finite, got inf"),
    (math.nan, ValueError, "must be positive and finite, got nan"),
    ("2", TypeError, "must be one real number, got '2' (str)"),
    (True, TypeError, "must be one real number, got True (bool)"),
    (torch.tensor(2.0), TypeError, "must be one real number, got tensor(2.) (Tensor)"),
]

BAD_PAIRS = [
    (
        {"teacher_logits": torch.zeros(2, 100)},
        ValueError,
        "teacher_logits must have the 3 classes of student_logits, got 100",
    ),
    (
        {"teacher_logits": torch.zeros(4, 3)},
        ValueError,
        "teacher_logits must have the shape of student_logits, (2, 3), got (4, 3)",
    ),
    ({"teacher_logits": torch.zeros(3)}, ValueError, "the shape of student_logits, (2, 3), got (3,)"),
    (
        {"teacher_logits": torch.zeros(2, 3, device="meta"), "validate": False},
        ValueError,
        "teacher_logits must be on the device of student_logits, cpu, got meta",
    ),
    ({"student_logits": STUDENT + math.nan}, ValueError, "student_logits must be finite, got 6 of 6 entries NaN"),
    ({"teacher_logits": TEACHER + math.nan}, ValueError, "teacher_logits must be finite, got 6 of 6 entries NaN"),
    ({"teacher_logits": TEACHER * math.inf}, ValueError, "teacher_logits must be finite, got 6 of 6 entries NaN"),
    ({"student_logits": [[0.0, 1.0]]}, TypeError, "student_logits must be a torch tensor, got [[0.0, 1.0]] (list)"),
    ({"teacher_logits": np.zeros((2, 3))}, TypeError, "teacher_logits must be a torch tensor, got array("),
    ({"student_logits": STUDENT.long()}, TypeError, "student_logits must be floating point, got dtype torch.int64"),
    ({"teacher_logits": TEACHER.long()}, TypeError, "teacher_logits must be floating point, got dtype torch.int64"),
    ({"student_logits": torch.tensor(1.0)}, ValueError, "student_logits must have shape (..., K) and hold at least"),
    (
        {"student_logits": torch.zeros(0, 3), "teacher_logits": torch.zeros(0, 3), "labels": LABELS[:0]},
        ValueError,
        "student_logits must have shape (..., K) and hold at least one example, got (0, 3)",
    ),
    ({"student_logits": torch.zeros(2, 1)}, ValueError, "num_classes must be at least 2, got 1"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *BAD_PAIRS,
        *[({"temperature": value}, error, f"temperature {message}") for value, error, message in BAD_TEMPERATURES],
        *[
            ({"student_temperature": value}, error, f"student_temperature {message}")
            for value, error, message in BAD_TEMPERATURES
        ],
        ({"temperature": None}, TypeError, "temperature must be one real number, got None (NoneType)"),
        *[({"beta": value}, ValueError, "beta must lie in [0, 1], got") for value in (-0.1, 1.1, math.nan, math.inf)],
        ({"beta": "0.5"}, TypeError, "beta must be one real number, got '0.5' (str)"),
        ({"labels": torch.tensor([0, 3])}, ValueError, "labels must lie in [0, 2] for num_classes = 3, got 3"),
        ({"labels": torch.tensor([0, -100])}, ValueError, "labels must lie in [0, 2] for num_classes = 3, got -100"),
        ({"labels": torch.tensor([3, 0]), "beta": 1}, ValueError, "labels must lie in [0, 2] for num_classes = 3"),
        ({"labels": LABELS.float()}, TypeError, "labels must be integers (class indices), got dtype torch.float32"),
        ({"labels": LABELS > 0}, TypeError, "labels must be integers (class indices), got dtype torch.bool"),
        ({"labels": [0, 2]}, TypeError, "labels must be a torch tensor, got [0, 2] (list)"),
        (
            {"labels": LABELS[:1]},
            ValueError,
            "labels must have the shape of student_logits (2, 3) less the last dimension, got (1,)",
        ),
        (
            {"labels": LABELS.to("meta"), "validate": False},
            ValueError,
            "labels must be on the device of student_logits, cpu, got meta",
        ),
        (
            {"student_logits": torch.tensor([[1e38, 0, 0]] * 2), "temperature": 0.1},
            ValueError,
            "student_logits / temperature 0.1 must be finite, got 4 of 6 entries",
        ),
    ],
)
def test_bad_input_to_the_loss(arguments, error, message):
    given = {"student_logits": STUDENT, "teacher_logits": TEACHER, "labels": LABELS, "beta": 0.5, "temperature": 2.0}
    with pytest.raises(error) as caught:
        distillation_loss(**(given | arguments))
    assert message in str(caught.value)


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_PAIRS)
def test_bad_input_to_logit_matching(arguments, error, message):
    arguments = {name: value for name, value in arguments.items() if name != "labels"}
    with pytest.raises(error) as caught:
        logit_matching_loss(**({"student_logits": STUDENT, "teacher_logits": TEACHER} | arguments))
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_even_without_weight_a_broken_teacher_is_told(value):
    with pytest.raises(ValueError, match="teacher_logits must be finite"):
        distillation_loss(STUDENT, TEACHER * value, LABELS, 0, 1)


@pytest.mark.parametrize(("temperature", "error", "message"), BAD_TEMPERATURES)
def test_bad_temperatures(temperature, error, message):
    calls = [
        lambda: soft_targets(TEACHER, temperature),
        lambda: equivalent_smoothing(TEACHER, LABELS, temperature),
        lambda: teacher_parts(TEACHER, LABELS, temperature),
        lambda: subclass_separation(TEACHER, temperature),
    ]
    for call in calls:
        with pytest.raises(error) as caught:
            call()
        assert f"temperature {message}" in str(caught.value)


@pytest.mark.parametrize("measure", [equivalent_smoothing, teacher_parts, distance_to_collapse])
@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (STUDENT, LABELS[:1], ValueError, "labels must have the shape of NAME (2, 3) less the last, got (1,)"),
        (STUDENT, LABELS.double(), TypeError, "labels must be integers (class indices), got dtype float64"),
        (STUDENT, LABELS > 0, TypeError, "labels must be integers (class indices), got dtype bool"),
        (STUDENT, LABELS + 1, ValueError, "labels must lie in [0, 2], got 1 to 3"),
        (STUDENT, LABELS - 1, ValueError, "labels must lie in [0, 2], got -1 to 1"),
        (STUDENT, [[0], [1, 2]], ValueError, "labels must be an array of class indices, got [[0], [1, 2]]"),
        (
            STUDENT,
            LABELS[:0],
            ValueError,
            "labels must hold at least one class index, got an empty array of shape (0,)",
        ),
        (STUDENT[:0], LABELS, ValueError, "NAME must have shape (..., K) with K ≥ 2 and hold an example, got (0, 3)"),
        (
            STUDENT[:, :1],
            LABELS,
            ValueError,
            "NAME must have shape (..., K) with K ≥ 2 and hold an example, got (2, 1)",
        ),
        (STUDENT + math.nan, LABELS, ValueError, "NAME must be finite, got NaN or infinity"),
        (STUDENT + math.inf, LABELS, ValueError, "NAME must be finite, got NaN or infinity"),
        ("logits", LABELS, TypeError, "NAME must be a real number or an array of them, got 'logits'"),
        ([[0], [1, 2]], LABELS, ValueError, "NAME must be a real number or an array of them, got [[0], [1, 2]]"),
    ],
)
def test_bad_input_to_the_measures(measure, logits, labels, error, message):
    with pytest.raises(error) as caught:
        measure(logits, labels)
    name = "logits" if measure is distance_to_collapse else "teacher_logits"
    assert message.replace("NAME", name) in str(caught.value)


def test_unbiased_parts_need_two_of_each_class():
    with pytest.raises(ValueError, match="labels must hold each class that occurs at least twice for unbiased=True"):
        teacher_parts(torch.zeros(3, 3), [0, 0, 1], unbiased=True)
    teacher_parts(torch.zeros(4, 3), [0, 0, 1, 1], unbiased=True)  # class 2 does not occur


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: soft_targets([[1.0, 2.0]], 1), TypeError, "teacher_logits must be a torch tensor"),
        (lambda: soft_targets(TEACHER * math.nan, 1), ValueError, "teacher_logits must be finite, got 6 of 6"),
        (
            lambda: soft_targets(torch.tensor([0.0, 1e4]), 1e-38),
            ValueError,
            "teacher_logits / temperature 1e-38 must be finite, got 1 of 2 entries",
        ),
        (lambda: agreement([], []), ValueError, "predictions must hold at least one class index, got an empty array"),
        (
            lambda: agreement([0, 1], [0]),
            ValueError,
            "teacher_predictions must have the shape of predictions, (2,), got (1,)",
        ),
        (lambda: agreement([0.0], [0]), TypeError, "predictions must be integers (class indices), got dtype float64"),
        (lambda: agreement([0], [0.5]), TypeError, "teacher_predictions must be integers (class indices), got dtype"),
        (lambda: agreement("cat", [0]), TypeError, "predictions must be integers (class indices), got dtype <U3"),
        (
            lambda: agreement_beyond_accuracy([0, 1], [0, 1], [0]),
            ValueError,
            "labels must have the shape of predictions, (2,), got (1,)",
        ),
        (
            lambda: agreement_beyond_accuracy([0, 1], [0, 1], [0, 1]),
            ValueError,
            "teacher_predictions must hold a mistake to share, got 2 right predictions",
        ),
        (
            lambda: class_logits(torch.zeros(2, 7), 2),
            ValueError,
            "subclass_logits must have 2 logits for each of two classes or more, got 7 in all",
        ),
        (lambda: class_logits(torch.zeros(2, 3), 3), ValueError, "for each of two classes or more, got 3 in all"),
        (lambda: class_logits(torch.zeros(2, 4), 0), ValueError, "subclasses must be at least 1, got 0"),
        (lambda: class_logits(torch.zeros(2, 4), 2.0), TypeError, "subclasses must be an int, got 2.0 (float)"),
        (lambda: class_logits(np.zeros((2, 4)), 2), TypeError, "subclass_logits must be a torch tensor"),
        (lambda: subclass_separation(torch.zeros(4)), ValueError, "subclass_logits must have shape (n, K·S), got (4,)"),
        (lambda: subclass_separation(torch.zeros(0, 4)), ValueError, "hold at least one example, got (0, 4)"),
        (lambda: subclass_separation(TEACHER * math.nan), ValueError, "subclass_logits must be finite, got 6 of 6"),
    ],
)
def test_bad_input_to_the_rest(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize(("dtype", "temperature"), [(torch.float32, 1e20), (torch.float64, 1e300)])
def test_a_temperature_whose_square_is_infinite(dtype, temperature):
    """Regression: an OverflowError, or an infinite loss without a word."""
    z, labels = torch.zeros(2, 3, dtype=dtype), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="the student's temperature is squared, which must be finite in"):
        distillation_loss(z, z, labels, 0.5, temperature)
