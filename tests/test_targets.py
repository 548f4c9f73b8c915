"""Smoothed targets and the loss, against hand-made cases, torch in float64 and direct sums."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    BELOW_ONE,
    SMALLEST,
    alphas,
    amount,
    class_counts,
    conventions,
    dtypes,
    integer_dtypes,
    logits_and_labels,
    small_class_counts,
)

from lsbook.targets import sequence_cross_entropy, smooth_labels, smoothed_cross_entropy

FLOAT64 = {"dtype": torch.float64}


def close(actual, expected, tolerance=1e-15):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


def dense_losses(logits, targets):
    """−Σ_k y_k log p_k of each row, in float64, with the targets written out: the definition."""
    return -(targets.double() * logits.double().log_softmax(dim=-1)).sum(dim=-1)


# --- targets, by hand


@pytest.mark.parametrize(
    ("label", "num_classes", "amount", "options", "expected"),
    [
        (0, 4, 0.4, {}, [0.7, 0.1, 0.1, 0.1]),  # the book's first example
        (0, 5, 0.1, {}, [0.92, 0.02, 0.02, 0.02, 0.02]),
        (2, 10, 0.1, {}, [0.01] * 2 + [0.91] + [0.01] * 7),
        (1, 2, 0.5, {}, [0.25, 0.75]),
        (0, 4, 0.3, {"convention": "others"}, [0.7, 0.1, 0.1, 0.1]),
        (9, 10, 0.09, {"convention": "others"}, [0.01] * 9 + [0.91]),  # ε = α (K − 1)/K
        (3, 6, 0.1, {"convention": "others", "padding_index": 0}, [0, 0.025, 0.025, 0.9, 0.025, 0.025]),  # OpenNMT
        (3, 5, 0.4, {"padding_index": 1}, [0.1, 0, 0.1, 0.7, 0.1]),
        (1, 5, 0.4, {"padding_index": 1}, [0] * 5),
        (-100, 3, 0.3, {"ignore_index": -100}, [0] * 3),
        (2, 3, 0.3, {"ignore_index": 2}, [0] * 3),
    ],
)
def test_hand_made_targets(label, num_classes, amount, options, expected):
    close(smooth_labels([label], num_classes, amount, **FLOAT64, **options), [expected])


@pytest.mark.parametrize("num_classes", [2, 3, 32000])
@pytest.mark.parametrize("convention", ["uniform", "others"])
def test_the_two_ends(num_classes, convention):
    labels = torch.tensor([0, 1, num_classes - 1])
    assert torch.equal(smooth_labels(labels, num_classes, 0, convention), F.one_hot(labels, num_classes).float())
    end = amount(1.0, num_classes, convention)
    close(
        smooth_labels(labels, num_classes, end, convention, **FLOAT64),
        torch.full((3, num_classes), 1 / num_classes, **FLOAT64),
    )


def test_ignored_rows_are_zero_and_others_do_not_change():
    labels = torch.tensor([3, -100, 0, 2])
    rows = smooth_labels(labels, 4, 0.4, padding_index=0, ignore_index=-100)
    assert torch.equal(rows[[1, 2]], torch.zeros(2, 4))
    assert torch.equal(rows[[0, 3]], smooth_labels([3, 2], 4, 0.4, padding_index=0))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 4)])
def test_any_shape_of_labels(shape):
    labels = torch.arange(math.prod(shape)).reshape(shape) % 3
    targets = smooth_labels(labels, 3, 0.3, **FLOAT64)
    assert targets.shape == (*shape, 3)
    close(targets, 0.7 * F.one_hot(labels, 3).double() + 0.1)


def test_lists_arrays_and_tensors_give_the_same():
    expected = smooth_labels(torch.tensor([[0, 2]]), 3, 0.3)
    integers = (np.int64, np.uint8, np.uint16, np.int32, np.uint64)
    for labels in ([[0, 2]], ((0, 2),), *(np.array([[0, 2]], dtype=d) for d in integers)):
        assert torch.equal(smooth_labels(labels, 3, 0.3), expected)


@given(integer_dtypes, class_counts)
def test_integer_dtype_of_labels_does_not_matter(dtype, num_classes):
    """Regression: uint8 labels were turned away, or indexed as a mask, for 256 classes and more."""
    labels = torch.tensor([0, min(num_classes, torch.iinfo(dtype).max) - 1], dtype=dtype)
    expected = smooth_labels(labels.long(), num_classes, 0.1)
    assert torch.equal(smooth_labels(labels, num_classes, 0.1), expected)
    assert torch.equal(smooth_labels(labels, num_classes, 0.1, ignore_index=-100), expected)


def test_dtype_of_the_result():
    assert smooth_labels([1], 3, 0.1).dtype == torch.get_default_dtype() == torch.float32
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert smooth_labels([1], 3, 0.1, padding_index=0, dtype=dtype).dtype == dtype


def test_given_labels_are_left_as_they_were():
    labels = torch.tensor([2, 0, -100])
    smooth_labels(labels, 3, 0.1, padding_index=0, ignore_index=-100)
    assert labels.tolist() == [2, 0, -100]


# --- targets, over the whole range


@given(class_counts, alphas, conventions, dtypes, st.data())
def test_rows_are_distributions(num_classes, alpha, convention, dtype, data):
    label = data.draw(st.integers(0, num_classes - 1))
    row = smooth_labels([label], num_classes, amount(alpha, num_classes, convention), convention, dtype=dtype)[
        0
    ].double()
    info = torch.finfo(dtype)
    # Each of the K equal entries is rounded once, to half a unit or, when subnormal, to half the smallest step.
    tolerance = 2 * info.eps + num_classes * info.smallest_normal * info.eps
    assert abs(math.fsum(row.tolist()) - 1) <= tolerance
    assert (row >= 0).all()
    assert row.argmax() == label or row.max() - row[label] <= info.eps  # a tie at α = 1
    others = torch.cat([row[:label], row[label + 1 :]])
    assert (others == others[0]).all()


@given(class_counts.filter(lambda k: k > 2), alphas, conventions, st.data())
def test_padding_is_the_same_as_one_class_fewer(num_classes, alpha, convention, data):
    padding = data.draw(st.integers(0, num_classes - 1))
    label = data.draw(st.integers(0, num_classes - 2))
    given_amount = amount(alpha, num_classes - 1, convention)
    shifted = label + (label >= padding)
    row = smooth_labels([shifted], num_classes, given_amount, convention, padding_index=padding, **FLOAT64)[0]
    assert row[padding] == 0
    without = torch.cat([row[:padding], row[padding + 1 :]])
    # (K = 2 once the padding is gone is still two classes.)
    assert torch.equal(without, smooth_labels([label], num_classes - 1, given_amount, convention, **FLOAT64)[0])


@given(class_counts, alphas, st.data())
def test_conventions_convert(num_classes, alpha, data):
    label = data.draw(st.integers(0, num_classes - 1))
    epsilon = alpha * ((num_classes - 1) / num_classes)
    epsilon = min(epsilon, 1 - 1 / num_classes)  # the two roundings of the bound may differ
    uniform = smooth_labels([label], num_classes, alpha, **FLOAT64)
    others = smooth_labels([label], num_classes, epsilon, "others", **FLOAT64)
    close(uniform, others, 1e-15)


# --- the loss against the definition


@given(logits_and_labels(), alphas, conventions)
def test_loss_is_the_direct_sum(case, alpha, convention):
    logits, labels = case
    given_amount = amount(alpha, logits.shape[1], convention)
    losses = smoothed_cross_entropy(logits, labels, given_amount, convention, reduction="none")
    targets = smooth_labels(labels, logits.shape[1], given_amount, convention, **FLOAT64)
    # Beside 1e4-sized log-probabilities a small loss is a difference: its digits are counted from 1e4.
    scale = 1e-15 * (1 + logits.abs().max().item())
    torch.testing.assert_close(losses, dense_losses(logits, targets), rtol=1e-12, atol=8 * scale)
    close(smoothed_cross_entropy(logits, labels, given_amount, convention), losses.mean(), 1e-12)
    close(smoothed_cross_entropy(logits, labels, given_amount, convention, reduction="sum"), losses.sum(), 1e-12)


def test_loss_by_hand_with_the_math_module():
    logits, alpha = [1.0, -2.0, 0.5], 0.3
    log_sum = math.log(math.fsum(math.exp(z) for z in logits))
    by_hand = math.fsum(-y * (z - log_sum) for y, z in zip([0.8, 0.1, 0.1], logits, strict=True))
    assert smoothed_cross_entropy(torch.tensor([logits], **FLOAT64), torch.tensor([0]), alpha).item() == pytest.approx(
        by_hand, rel=1e-14
    )


@given(logits_and_labels(small_class_counts), alphas)
def test_loss_is_torch_with_probability_targets(case, alpha):
    logits, labels = case
    expected = F.cross_entropy(logits, smooth_labels(labels, logits.shape[1], alpha, **FLOAT64))
    tolerance = 1e-14 * (1 + logits.abs().max().item())
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, alpha), expected, rtol=1e-12, atol=tolerance)


@given(logits_and_labels(small_class_counts), alphas)
def test_two_decompositions(case, alpha):
    """(1 − α) H(y, p) + α H(u, p), and CE + α (z_y − z̄)."""
    logits, labels = case
    loss = smoothed_cross_entropy(logits, labels, alpha)
    hard, log_probs = F.cross_entropy(logits, labels), logits.log_softmax(-1)
    true = logits.gather(1, labels[:, None])[:, 0]
    tolerance = 1e-14 * (1 + logits.abs().max().item())
    for expected in (
        (1 - alpha) * hard - alpha * log_probs.mean(),
        hard + alpha * (true - logits.mean(1)).mean(),
    ):
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=tolerance)


@given(logits_and_labels(small_class_counts), alphas, conventions)
def test_ignored_positions_do_not_count(case, alpha, convention):
    logits, labels = case
    given_amount = amount(alpha, logits.shape[1], convention)
    padded = torch.cat([logits, torch.full_like(logits[:2], 7.0)])
    padded_labels = torch.cat([labels, torch.tensor([-100] * 2)[: len(padded) - len(labels)]])
    plain = smoothed_cross_entropy(logits, labels, given_amount, convention)
    close(smoothed_cross_entropy(padded, padded_labels, given_amount, convention), plain, 1e-12)
    other = torch.where(padded_labels == -100, -1, padded_labels)
    close(smoothed_cross_entropy(padded, other, given_amount, convention, ignore_index=-1), plain, 1e-12)
    rows = smoothed_cross_entropy(padded, padded_labels, given_amount, convention, reduction="none")
    assert (rows[len(labels) :] == 0).all()


def test_shapes_of_the_loss():
    logits, labels = torch.randn(2, 3, 5, **FLOAT64), torch.tensor([[0, 1, 2], [4, 3, 3]])
    losses = smoothed_cross_entropy(logits, labels, 0.1, reduction="none")
    assert losses.shape == (2, 3)
    assert torch.equal(losses[1, 2], smoothed_cross_entropy(logits[1, 2], labels[1, 2], 0.1))
    close(smoothed_cross_entropy(logits, labels, 0.1), losses.mean(), 1e-14)


def test_weights_multiply_the_smoothed_target():
    """PyTorch's behaviour, which the book explains: w_k y_k, and the mean divides by the labels' own weights."""
    logits, labels = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]], **FLOAT64), torch.tensor([2, 0])
    weight = torch.tensor([0.5, 2.0, 3.0], **FLOAT64)
    weighted = smooth_labels(labels, 3, 0.3, **FLOAT64) * weight
    losses = dense_losses(logits, weighted)
    close(smoothed_cross_entropy(logits, labels, 0.3, weight=weight, reduction="none"), losses, 1e-14)
    close(smoothed_cross_entropy(logits, labels, 0.3, weight=weight), losses.sum() / (3.0 + 0.5), 1e-14)


def test_weights_can_flip_the_answer():
    """w = (0.01, 0.99), α = 0.1, true class 0: the optimum is (0.161, 0.839), the wrong class."""
    logits = torch.zeros(1, 2, requires_grad=True, **FLOAT64)
    weight, label = torch.tensor([0.01, 0.99], **FLOAT64), torch.tensor([0])
    optimizer = torch.optim.LBFGS([logits], tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = smoothed_cross_entropy(logits, label, 0.1, weight=weight)
        loss.backward()
        return loss

    optimizer.step(closure)
    close(logits.detach().softmax(-1), [[0.0095 / 0.059, 0.0495 / 0.059]], 1e-6)


def test_weights_of_any_float_dtype():
    """Regression: half-precision logits are widened, and half-precision weights were not."""
    logits, labels = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([1])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        weight = torch.tensor([0.5, 2.0, 4.0], dtype=dtype)
        expected = smoothed_cross_entropy(logits, labels, 0.3, weight=weight.float())
        assert torch.equal(smoothed_cross_entropy(logits, labels, 0.3, weight=weight), expected)
        assert torch.equal(smoothed_cross_entropy(logits.to(dtype).float(), labels, 0.3, weight=weight), expected)
        close(smoothed_cross_entropy(logits.to(dtype), labels, 0.3, weight=weight), expected, 1e-6)


@given(logits_and_labels(small_class_counts, max_rows=3), alphas, conventions)
def test_gradient_is_p_minus_y(case, alpha, convention):
    logits, labels = case
    logits.requires_grad_()
    given_amount = amount(alpha, logits.shape[1], convention)
    (gradient,) = torch.autograd.grad(
        smoothed_cross_entropy(logits, labels, given_amount, convention, reduction="sum"), logits
    )
    targets = smooth_labels(labels, logits.shape[1], given_amount, convention, **FLOAT64)
    close(gradient, logits.detach().softmax(-1) - targets, 1e-13)
    assert gradient.sum(-1).abs().max() < 1e-13


@pytest.mark.parametrize("convention", ["uniform", "others"])
@pytest.mark.parametrize("given_amount", [0.0, 0.1, 0.5])
def test_gradcheck(convention, given_amount):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, generator=generator, requires_grad=True, **FLOAT64)
    weight = torch.rand(5, generator=generator, **FLOAT64)
    labels = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(
        lambda z: smoothed_cross_entropy(z, labels, given_amount, convention, weight=weight, ignore_index=2), logits
    )
    assert torch.autograd.gradcheck(lambda z: sequence_cross_entropy(z, labels, given_amount, 2, convention), logits)
    assert torch.autograd.gradgradcheck(lambda z: smoothed_cross_entropy(z, labels, given_amount, convention), logits)


@given(dtypes, st.data(), alphas)
def test_every_float_dtype(dtype, data, alpha):
    """Finite, and as near to the float64 loss of the same (rounded) logits as the working precision lets it be."""
    logits, labels = data.draw(logits_and_labels(dtype=dtype))
    logits.requires_grad_()
    loss = smoothed_cross_entropy(logits, labels, alpha)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = smoothed_cross_entropy(logits.detach().double(), labels, alpha).item()
    eps = torch.finfo(loss.dtype).eps
    assert loss.item() == pytest.approx(exact, rel=50 * eps, abs=50 * eps * (1 + logits.detach().abs().max().item()))
    loss.backward()
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


def test_validate_changes_no_value():
    logits, labels = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)), torch.tensor([0, -100, 6, 3])
    assert torch.equal(
        smoothed_cross_entropy(logits, labels, 0.1), smoothed_cross_entropy(logits, labels, 0.1, validate=False)
    )


def test_validate_false_looks_at_no_value():
    """On the meta device there are no values: any look at one raises."""
    logits, labels = torch.empty(2, 3, device="meta"), torch.empty(2, dtype=torch.long, device="meta")
    assert smoothed_cross_entropy(logits, labels, 0.1, validate=False).shape == ()
    with pytest.raises((NotImplementedError, RuntimeError)):
        smoothed_cross_entropy(logits, labels, 0.1)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(2), TypeError, "labels must be integers (class indices), got dtype torch.float32"),
        (torch.zeros(2, dtype=torch.bool), TypeError, "got dtype torch.bool"),
        (torch.zeros(0, dtype=torch.long), ValueError, "labels must hold at least one label"),
    ],
)
def test_validate_false_still_checks_the_kind_of_labels(labels, error, message):
    """Regression: 0.7 was taken for class 0, and an empty batch gave NaN."""
    logits = torch.zeros(len(labels), 3)
    for loss in (
        lambda: smoothed_cross_entropy(logits, labels, 0.1, validate=False),
        lambda: sequence_cross_entropy(logits, labels, 0.1, 1, validate=False),
    ):
        with pytest.raises(error) as caught:
            loss()
        assert message in str(caught.value)


def test_weights_that_leave_no_label_matter_only_to_the_mean():
    logits, labels, weight = torch.zeros(2, 3), torch.tensor([0, 0]), torch.tensor([0.0, 1.0, 1.0])
    for reduction in ("sum", "none"):
        assert smoothed_cross_entropy(logits, labels, 0.3, weight=weight, reduction=reduction).isfinite().all()
    assert smoothed_cross_entropy(logits, labels, 0.3, weight=weight, validate=False).isnan()


def test_weights_too_large_for_the_logits():
    """Regression: float64 weights were found finite, and became infinite in the logits' float32."""
    logits, labels = torch.zeros(2, 5), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="weight, in the precision of logits, must be finite, got 5 of 5 entries"):
        smoothed_cross_entropy(logits, labels, 0.1, weight=torch.full((5,), 1e39, dtype=torch.float64))


def test_weights_go_to_the_device_and_dtype_of_the_logits():
    """The meta device stands in for a GPU."""
    logits, labels = torch.empty(2, 3, device="meta"), torch.empty(2, dtype=torch.long, device="meta")
    weight = torch.ones(3, dtype=torch.float64)
    loss = smoothed_cross_entropy(logits, labels, 0.1, weight=weight, validate=False)
    assert (loss.device.type, loss.dtype) == ("meta", torch.float32)


# --- sequences


@st.composite
def padded_batch(draw):
    """(logits (B, T, V), labels (B, T), padding index): at least one real token."""
    vocabulary, batch, length = draw(st.integers(3, 50)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    padding = draw(st.integers(0, vocabulary - 1))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0, 2500.0]))
    logits = (torch.randn(batch, length, vocabulary, generator=generator, **FLOAT64) * scale).clamp(-1e4, 1e4)
    labels = torch.randint(vocabulary, (batch, length), generator=generator)
    labels[torch.rand(batch, length, generator=generator) < 0.3] = padding
    labels[0, 0] = (padding + 1) % vocabulary
    return logits, labels, padding


@given(padded_batch(), alphas, conventions)
def test_sequence_loss_is_the_direct_sum_per_token(case, alpha, convention):
    logits, labels, padding = case
    given_amount = amount(alpha, logits.shape[-1] - 1, convention)
    targets = smooth_labels(labels, logits.shape[-1], given_amount, convention, padding_index=padding, **FLOAT64)
    expected = dense_losses(logits, targets).sum() / (labels != padding).sum()
    tolerance = 1e-14 * (1 + logits.abs().max().item())
    actual = sequence_cross_entropy(logits, labels, given_amount, padding, convention)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=tolerance)


@given(padded_batch(), alphas)
def test_padded_positions_have_no_say(case, alpha):
    logits, labels, padding = case
    is_padding = labels == padding
    other = torch.where(is_padding[..., None], torch.full_like(logits, -1e4), logits)
    other[is_padding] += torch.arange(logits.shape[-1], **FLOAT64)
    assert torch.equal(
        sequence_cross_entropy(logits, labels, alpha, padding), sequence_cross_entropy(other, labels, alpha, padding)
    )
    logits.requires_grad_()
    sequence_cross_entropy(logits, labels, alpha, padding).backward()
    assert (logits.grad[is_padding] == 0).all()
    if alpha > 0.01:
        assert (logits.grad[~is_padding] != 0).any()


@given(padded_batch(), alphas, st.integers(1, 6))
def test_length_of_the_padding_does_not_matter(case, alpha, extra):
    logits, labels, padding = case
    longer = torch.cat([logits, torch.ones(logits.shape[0], extra, logits.shape[-1], **FLOAT64)], dim=1)
    longer_labels = torch.cat([labels, torch.full((labels.shape[0], extra), padding)], dim=1)
    loss = sequence_cross_entropy(logits, labels, alpha, padding)
    assert torch.equal(sequence_cross_entropy(longer, longer_labels, alpha, padding), loss)
    tokens = labels != padding
    one_by_one = [
        sequence_cross_entropy(z, y, alpha, padding) for z, y in zip(logits[tokens], labels[tokens], strict=True)
    ]
    torch.testing.assert_close(torch.stack(one_by_one).mean(), loss, rtol=1e-12, atol=1e-12)


def test_a_masked_padding_logit_leaves_the_others_their_digits():
    """Regression: the padding's log-probability was subtracted from a sum that it had swamped (2.167 for 2.308)."""
    logits, labels = torch.tensor([[0.0, 1.0, 2.0, -1e9]]), torch.tensor([0])
    unmasked = smoothed_cross_entropy(logits[:, :3].double(), labels, 0.1)
    assert sequence_cross_entropy(logits, labels, 0.1, 3).item() == pytest.approx(unmasked.item(), rel=1e-6)


def test_sequence_loss_by_hand():
    """Two tokens with equal logits over V = 5, one padding: each costs ln 5 whatever the target."""
    loss = sequence_cross_entropy(torch.zeros(1, 3, 5, **FLOAT64), torch.tensor([[2, 4, 0]]), 0.1, 0)
    assert loss.item() == pytest.approx(math.log(5), rel=1e-15)


def test_sequence_loss_in_half_precision():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 1000, generator=generator) * 1e3
    labels = torch.randint(1000, (4, 6), generator=generator)
    for dtype in (torch.float16, torch.bfloat16):
        exact = sequence_cross_entropy(logits.to(dtype).double(), labels, 0.1, 0).item()
        assert sequence_cross_entropy(logits.to(dtype), labels, 0.1, 0).item() == pytest.approx(exact, rel=1e-5)


# --- bad input: each error names the argument, what was given and what was expected

LOGITS, LABELS = torch.zeros(2, 4), torch.tensor([0, 3])
ALPHA_RANGE = "must lie in [0, 1], got"
EPSILON = "alpha (the epsilon of convention 'others') must lie in [0, "


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": -SMALLEST}, ValueError, f"alpha {ALPHA_RANGE} -5e-324"),
        ({"alpha": 1.1}, ValueError, f"alpha {ALPHA_RANGE} 1.1"),
        ({"alpha": math.nan}, ValueError, f"alpha {ALPHA_RANGE} nan"),
        ({"alpha": math.inf}, ValueError, f"alpha {ALPHA_RANGE} inf"),
        ({"alpha": "0.1"}, TypeError, "alpha must be one real number, got '0.1' (str)"),
        ({"alpha": None}, TypeError, "alpha must be one real number, got None (NoneType)"),
        ({"alpha": True}, TypeError, "alpha must be one real number, got True (bool)"),
        ({"alpha": torch.tensor(0.1)}, TypeError, "alpha must be one real number, got tensor(0.1000) (Tensor)"),
        ({"alpha": 0.8, "convention": "others"}, ValueError, f"{EPSILON}0.75], got 0.8"),
        ({"alpha": -0.1, "convention": "others"}, ValueError, f"{EPSILON}0.75], got -0.1"),
        ({"alpha": math.nan, "convention": "others"}, ValueError, f"{EPSILON}0.75], got nan"),
        ({"alpha": 0.7, "convention": "others", "padding_index": 0}, ValueError, f"{EPSILON}0.666667], got 0.7"),
        ({"convention": "paper"}, ValueError, "convention must be 'uniform' (α/K on every class) or 'others' (ε/(K−1)"),
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        ({"num_classes": -4}, ValueError, "num_classes must be at least 2, got -4"),
        ({"num_classes": 4.0}, TypeError, "num_classes must be an int, got 4.0 (float)"),
        ({"num_classes": True}, TypeError, "num_classes must be an int, got True (bool)"),
        ({"num_classes": "4"}, TypeError, "num_classes must be an int, got '4' (str)"),
        ({"num_classes": 2, "padding_index": 0}, ValueError, "num_classes must be at least 3, got 2"),
        ({"padding_index": 4}, ValueError, "padding_index must lie in [0, 3] for num_classes = 4, got 4"),
        ({"padding_index": -1}, ValueError, "padding_index must lie in [0, 3] for num_classes = 4, got -1"),
        ({"padding_index": 0.0}, TypeError, "padding_index must be an int, got 0.0 (float)"),
        ({"ignore_index": -100.0}, TypeError, "ignore_index must be an int, got -100.0 (float)"),
        ({"labels": [4]}, ValueError, "labels must lie in [0, 3] for num_classes = 4, got 4"),
        ({"labels": [0, -1]}, ValueError, "labels must lie in [0, 3] for num_classes = 4, got -1"),
        (
            {"labels": [-1], "ignore_index": -100},
            ValueError,
            "labels must lie in [0, 3] for num_classes = 4, or -100 (ignored), got -1",
        ),
        ({"labels": []}, ValueError, "labels must hold at least one label, got an empty batch of shape (0,)"),
        (
            {"labels": torch.empty(0, 3, dtype=torch.long)},
            ValueError,
            "labels must hold at least one label, got an empty batch of shape (0, 3)",
        ),
        ({"labels": [0.0]}, TypeError, "labels must be integers (class indices), got dtype torch.float32"),
        ({"labels": [True]}, TypeError, "labels must be integers (class indices), got dtype torch.bool"),
        ({"labels": [1j]}, TypeError, "labels must be integers (class indices), got dtype torch.complex64"),
        ({"labels": "cat"}, TypeError, "labels must be an integer tensor, array or list, got 'cat'"),
        ({"labels": None}, TypeError, "labels must be an integer tensor, array or list, got None"),
        ({"labels": [[0], [1, 2]]}, TypeError, "labels must be an integer tensor, array or list, got [[0], [1, 2]]"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a floating torch.dtype, got torch.int64"),
        ({"dtype": "float32"}, TypeError, "dtype must be a floating torch.dtype, got 'float32'"),
    ],
)
def test_bad_input_to_smooth_labels(arguments, error, message):
    with pytest.raises(error) as caught:
        smooth_labels(**({"labels": [0], "num_classes": 4, "alpha": 0.1} | arguments))
    assert message in str(caught.value)


BAD_FOR_BOTH_LOSSES = [
    ({"alpha": 1.1}, ValueError, f"alpha {ALPHA_RANGE} 1.1"),
    ({"alpha": math.nan}, ValueError, f"alpha {ALPHA_RANGE} nan"),
    ({"alpha": "x"}, TypeError, "alpha must be one real number, got 'x' (str)"),
    ({"convention": "paper"}, ValueError, "convention must be 'uniform'"),
    ({"convention": None}, TypeError, "convention must be a string, got None (NoneType)"),
    (
        {"labels": torch.zeros(2, dtype=torch.long, device="meta")},
        ValueError,
        "logits and labels must be on one device, got cpu and meta",
    ),
    ({"logits": [[0.0, 1.0]]}, TypeError, "logits must be a torch tensor, got [[0.0, 1.0]] (list)"),
    ({"logits": np.zeros((2, 4))}, TypeError, "logits must be a torch tensor, got array("),
    ({"logits": LOGITS.long()}, TypeError, "logits must be floating point, got dtype torch.int64"),
    (
        {"logits": torch.zeros(3, 4)},
        ValueError,
        "logits must have the shape of labels plus one last dimension of classes: got logits (3, 4) and labels (2,)",
    ),
    ({"logits": torch.tensor(0.0), "labels": torch.tensor(0)}, ValueError, "got logits () and labels ()"),
    ({"logits": LOGITS * math.nan}, ValueError, "logits must be finite, got 8 of 8 entries NaN or infinite"),
    ({"labels": [0, 1]}, TypeError, "labels must be a torch tensor, got [0, 1] (list)"),
    ({"labels": LABELS.double()}, TypeError, "labels must be integers (class indices), got dtype torch.float64"),
    ({"labels": LABELS + 1}, ValueError, "labels must lie in [0, 3] for num_classes = 4"),
    ({"labels": LABELS - 1}, ValueError, "labels must lie in [0, 3] for num_classes = 4"),
    (
        {"logits": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
        ValueError,
        "labels must hold at least one label, got an empty batch of shape (0,)",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *BAD_FOR_BOTH_LOSSES,
        ({"alpha": 0.76, "convention": "others"}, ValueError, f"{EPSILON}0.75], got 0.76"),
        ({"logits": torch.zeros(2, 1)}, ValueError, "num_classes must be at least 2, got 1"),
        (
            {"labels": torch.tensor([-100, -100])},
            ValueError,
            "labels must hold at least one label that counts, got only the ignored -100",
        ),
        ({"ignore_index": None}, TypeError, "ignore_index must be an int, got None (NoneType)"),
        ({"weight": [1.0] * 4}, TypeError, "weight must be a torch tensor, got [1.0, 1.0, 1.0, 1.0] (list)"),
        ({"weight": torch.ones(3)}, ValueError, "weight must have shape (4,), one entry a class, got (3,)"),
        ({"weight": torch.ones(4).long()}, TypeError, "weight must be floating point, got dtype torch.int64"),
        ({"reduction": "average"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'average'"),
        ({"reduction": None}, TypeError, "reduction must be a string, got None (NoneType)"),
        ({"weight": torch.tensor([1, 1, 1, math.nan])}, ValueError, "weight must be finite, got 1 of 4 entries"),
        ({"weight": torch.tensor([1, 1, 1, -1.0])}, ValueError, "weight must have no negative entry, got a smallest"),
        ({"weight": torch.zeros(4)}, ValueError, "weight must have a positive entry, got zeros only"),
        (
            {"weight": torch.tensor([0, 0, 1.0, 1.0]), "labels": torch.tensor([0, -100])},
            ValueError,
            "weight must be positive for at least one label of the batch with reduction 'mean'",
        ),
    ],
)
def test_bad_input_to_the_loss(arguments, error, message):
    with pytest.raises(error) as caught:
        smoothed_cross_entropy(**({"logits": LOGITS, "labels": LABELS, "alpha": 0.1} | arguments))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *BAD_FOR_BOTH_LOSSES,
        ({"alpha": 0.67, "convention": "others"}, ValueError, f"{EPSILON}0.666667], got 0.67"),
        ({"logits": torch.zeros(2, 2)}, ValueError, "num_classes must be at least 3, got 2"),
        ({"padding_index": 4}, ValueError, "padding_index must lie in [0, 3] for num_classes = 4, got 4"),
        ({"padding_index": None}, TypeError, "padding_index must be an int, got None (NoneType)"),
        (
            {"labels": torch.tensor([1, 1])},
            ValueError,
            "labels must hold at least one label that counts, got only the ignored 1",
        ),
    ],
)
def test_bad_input_to_the_sequence_loss(arguments, error, message):
    with pytest.raises(error) as caught:
        sequence_cross_entropy(**({"logits": LOGITS, "labels": LABELS, "alpha": 0.1, "padding_index": 1} | arguments))
    assert message in str(caught.value)


def test_the_ends_of_the_ranges_are_inside():
    for alpha in (0, SMALLEST, BELOW_ONE, 1):
        smoothed_cross_entropy(LOGITS, LABELS, alpha)
    for num_classes in (2, 3, 7, 10, 49, 32000):
        logits = torch.zeros(1, num_classes)
        smoothed_cross_entropy(logits, torch.tensor([1]), 1 - 1 / num_classes, "others")
        smooth_labels([num_classes - 1], num_classes, 1 - 1 / num_classes, "others")
