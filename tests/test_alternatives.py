"""Each loss against a sum in a loop, against smoothing where they are equal, and against finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import dtypes, integer_dtypes, logits_and_labels

from lsbook import alternatives, theory, training
from lsbook.targets import smoothed_cross_entropy

# A strength of each that is in use, and the one that leaves the cross-entropy alone.
STRENGTHS = {"smoothing": 0.1, "confidence-penalty": 0.3, "focal": 3.0, "margin": 6.0, "maximum-suppression": 0.1}
NONE = {name: math.inf if name == "margin" else 0.0 for name in STRENGTHS}
names = st.sampled_from(sorted(STRENGTHS))


def by_hand(name, logits, label, strength):
    """The loss of one example, from its definition, in Python's floats."""
    top = max(logits)
    log_total = top + math.log(math.fsum(math.exp(z - top) for z in logits))
    log_probs = [z - log_total for z in logits]
    surprise, classes = -log_probs[label], len(logits)
    if name == "smoothing":
        return (1 - strength) * surprise - strength / classes * math.fsum(log_probs)
    if name == "confidence-penalty":
        entropy = -math.fsum(math.exp(log) * log for log in log_probs)
        return surprise - strength * entropy
    if name == "focal":
        wrong = math.fsum(math.exp(log) for k, log in enumerate(log_probs) if k != label)
        return wrong**strength * surprise
    if name == "margin":
        return surprise + 0.1 * math.fsum(max(0.0, top - z - strength) for z in logits)
    return surprise + strength * (top - math.fsum(logits) / classes)


@pytest.mark.parametrize("name", STRENGTHS)
@given(case=logits_and_labels(), share=st.sampled_from([0.0, 0.01, 0.5, 1.0]))
def test_against_a_sum_by_hand(name, case, share):
    logits, labels = case
    strength = share if name in ("smoothing", "maximum-suppression") else {0.0: 0.0, 0.01: 1.0}.get(share, 10 * share)
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    expected = math.fsum(by_hand(name, row, label, strength) for row, label in rows) / len(labels)
    found = alternatives.loss(name)(logits, labels, strength)
    assert (found.shape, found.dtype) == ((), torch.float64)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", STRENGTHS)
def test_gradients_against_finite_differences(name):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(5, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([0, 3, 1, 2, 2])
    for strength in {STRENGTHS[name], NONE[name], 1.0}:
        assert torch.autograd.gradcheck(lambda z, s=strength: alternatives.loss(name)(z, labels, s), logits)


@given(names, logits_and_labels())
def test_gradients_are_finite(name, case):
    """Also where p_y is 1 in float64, which powers and logarithms of 1 − p_y do not take kindly to."""
    logits, labels = case
    for strength in (STRENGTHS[name], 1.0, NONE[name]):
        z = logits.clone().requires_grad_()
        alternatives.loss(name)(z, labels, strength).backward()
        assert z.grad.isfinite().all()
        assert z.grad.sum(-1).abs().max() < 1e-9  # no loss knows the logits' offset


@given(names, logits_and_labels())
def test_without_strength_all_are_the_cross_entropy(name, case):
    logits, labels = case
    expected = F.cross_entropy(logits, labels).item()
    assert alternatives.loss(name)(logits, labels, NONE[name]).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(logits_and_labels(), st.floats(0, 1))
def test_maximum_suppression_is_smoothing_where_the_prediction_is_right(case, strength):
    logits, labels = case
    top = logits.argmax(-1)
    expected = smoothed_cross_entropy(logits, top, strength).item()
    assert alternatives.maximum_suppression(logits, top, strength).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    # Where it is wrong, the two differ by α times the lead of the largest logit over the label's.
    lead = (logits.amax(-1) - logits.gather(-1, labels[:, None])[:, 0]).mean().item()
    difference = alternatives.maximum_suppression(logits, labels, strength).item()
    difference -= alternatives.smoothing(logits, labels, strength).item()
    assert difference == pytest.approx(strength * lead, rel=1e-9, abs=1e-8)


@given(logits_and_labels(), st.floats(0, 10))
def test_the_penalty_is_the_divergence_from_uniform(case, strength):
    """Cross-entropy + β KL(p‖u), less the constant β ln K; smoothing has KL(u‖p)."""
    logits, labels = case
    log_probs, classes = logits.log_softmax(-1), logits.shape[1]
    uniform = torch.full_like(logits, -math.log(classes))
    divergence = F.kl_div(uniform, log_probs, log_target=True, reduction="batchmean").item()
    expected = F.cross_entropy(logits, labels).item() + strength * (divergence - math.log(classes))
    found = alternatives.confidence_penalty(logits, labels, strength).item()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(logits_and_labels())
def test_smoothing_is_the_books_loss(case):
    logits, labels = case
    assert torch.equal(alternatives.smoothing(logits, labels, 0.3), smoothed_cross_entropy(logits, labels, 0.3))


def test_a_margin_charges_nothing_within_it():
    logits, labels = torch.tensor([[3.0, 0.0, 1.0]], dtype=torch.float64), torch.tensor([0])
    plain = F.cross_entropy(logits, labels).item()
    assert alternatives.margin(logits, labels, 3.0).item() == pytest.approx(plain, rel=1e-15)
    assert alternatives.margin(logits, labels, 2.5).item() == pytest.approx(plain + 0.05, rel=1e-12)
    assert alternatives.margin(logits, labels, 0.0).item() == pytest.approx(plain + 0.5, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_descent_ends_at_the_gap_of_smoothing(classes):
    """On one example: what `theory.matching_penalty` promises of the penalty, and smoothing's own gap."""
    alpha, labels = 0.1, torch.tensor([0])
    losses = {
        "smoothing": alpha,
        "maximum-suppression": alpha,
        "confidence-penalty": theory.matching_penalty(alpha, classes),
    }
    for name, strength in losses.items():
        logits = F.one_hot(labels, classes).double().requires_grad_()
        training.minimise(lambda z=logits, n=name, s=strength: alternatives.loss(n)(z, labels, s), [logits])
        gaps = (logits[0, 0] - logits[0, 1:]).detach().numpy()
        assert gaps == pytest.approx(theory.optimal_gap(alpha, classes), rel=1e-6), name


def test_the_focal_loss_has_no_optimal_gap():
    gaps = torch.linspace(0, 50, 200, dtype=torch.float64)
    labels = torch.zeros(1, dtype=torch.long)
    for gamma in (0.0, 1.0, 3.0):
        logits = torch.stack([gaps, torch.zeros_like(gaps)], dim=1)
        values = [alternatives.focal(z[None], labels, gamma).item() for z in logits]
        assert all(b < a or a < 1e-14 for a, b in zip(values, values[1:], strict=False))


# --- types


@given(names, dtypes, logits_and_labels(max_rows=3))
def test_half_precision_is_widened(name, dtype, case):
    logits, labels = case[0].to(dtype), case[1]
    found = alternatives.loss(name)(logits, labels, STRENGTHS[name])
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = alternatives.loss(name)(logits.double(), labels, STRENGTHS[name]).item()
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(names, integer_dtypes)
def test_labels_of_any_integer_type(name, dtype):
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 127, 5])
    expected = alternatives.loss(name)(logits, labels, STRENGTHS[name])
    assert torch.equal(alternatives.loss(name)(logits, labels.to(dtype), STRENGTHS[name]), expected)


@given(names, logits_and_labels())
def test_looking_at_the_values_changes_none(name, case):
    function = alternatives.loss(name)
    assert torch.equal(function(*case, STRENGTHS[name], validate=False), function(*case, STRENGTHS[name]))


# --- bad input

LOGITS, LABELS = torch.zeros(2, 3), torch.tensor([0, 2])


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        # Regression: PyTorch's own IndexError came first, and on a GPU an assertion that ends the process.
        (LOGITS, torch.tensor([0, 3]), ValueError, "labels must lie in [0, 2] for num_classes = 3, got 3"),
        (LOGITS, torch.tensor([-1, 0]), ValueError, "labels must lie in [0, 2] for num_classes = 3, got -1"),
        (LOGITS, torch.tensor([-100, 0]), ValueError, "labels must lie in [0, 2] for num_classes = 3, got -100"),
        (LOGITS, torch.tensor([0.0, 1.0]), TypeError, "labels must be integers (class indices), got dtype torch.fl"),
        (LOGITS, torch.tensor([True, False]), TypeError, "labels must be integers (class indices), got dtype torch.b"),
        (LOGITS, torch.tensor([0]), ValueError, "logits must have the shape of labels plus one last dimension"),
        (torch.zeros(0, 3), LABELS[:0], ValueError, "labels must hold at least one label, got an empty batch"),
        (torch.zeros(2, 1), LABELS, ValueError, "num_classes must be at least 2, got 1"),
        (torch.zeros(2, 3, dtype=torch.int64), LABELS, TypeError, "logits must be floating point"),
        ([[0.0, 1.0]], torch.tensor([0]), TypeError, "logits must be a torch tensor"),
        (LOGITS, [0, 2], TypeError, "labels must be a torch tensor"),
        (torch.tensor([[0, math.nan]]), torch.tensor([0]), ValueError, "logits must be finite, got 1 of 2 entries"),
        (torch.tensor([[0, math.inf]]), torch.tensor([0]), ValueError, "logits must be finite, got 1 of 2 entries"),
    ],
)
def test_bad_logits_and_labels(name, logits, labels, error, message):
    with pytest.raises(error) as caught:
        alternatives.loss(name)(logits, labels, STRENGTHS[name])
    assert message in str(caught.value)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    ("name", "strength", "error", "message"),
    [
        *[(name, -0.1, ValueError, "strength must lie in [0, ") for name in STRENGTHS],
        *[(name, math.nan, ValueError, "strength must lie in [0, ") for name in STRENGTHS],
        *[(name, "0.1", TypeError, "strength must be one real number, got '0.1' (str)") for name in STRENGTHS],
        *[(name, math.inf, ValueError, "strength must lie in") for name in STRENGTHS if name != "margin"],
        ("smoothing", 1.1, ValueError, "strength must lie in [0, 1], got 1.1"),  # regression: it said alpha
        ("maximum-suppression", 1.1, ValueError, "strength must lie in [0, 1], got 1.1"),
        ("focal", 0.5, ValueError, "strength (γ of the focal loss) must be 0 or at least 1, got 0.5"),
    ],
)
def test_bad_strengths(name, strength, error, message, validate):
    with pytest.raises(error) as caught:
        alternatives.loss(name)(LOGITS, LABELS, strength, validate)
    assert message in str(caught.value)


def test_losses_by_name():
    assert set(alternatives.LOSSES) == set(STRENGTHS)
    assert alternatives.loss("focal") is alternatives.focal
    with pytest.raises(ValueError, match="loss must be one of 'smoothing', .* got 'foccal'; did you mean 'focal'?"):
        alternatives.loss("foccal")
    with pytest.raises(TypeError, match="loss must be a string, got None"):
        alternatives.loss(None)
