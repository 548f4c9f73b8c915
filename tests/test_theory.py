"""The closed forms against 50-digit arithmetic, against descent and solvers, and against the loss they describe."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from strategies import BELOW_ONE, SMALLEST, alphas, class_counts, small_class_counts

from lsbook import theory, training
from lsbook.targets import smooth_labels, smoothed_cross_entropy

mp = mpmath.mp.clone()
mp.dps = 50
TINY = 2.0**-1074  # one step of the subnormal numbers: below 1e-307, rounding is absolute

temperatures = st.one_of(
    st.sampled_from([1.0, 1e-3, 0.5, 2.0, 4.0, 1e6, SMALLEST, 1e308]), st.floats(1e-3, 1e3), st.floats(SMALLEST, 1e308)
)
times = st.one_of(
    st.sampled_from([0.0, SMALLEST, 1e-300, 1e-16, 1e-5, 1.0, 1e300]), st.floats(0, 1e300), st.floats(0, 1e6)
)


def near(actual, expected, rel=1e-12, steps=1):
    """Equal to 12 digits, or to `steps` of the smallest subnormal."""
    assert isinstance(actual, float)
    if actual == expected:  # both infinite, too
        return
    assert abs(mp.mpf(actual) - expected) <= max(rel * abs(expected), steps * TINY), (actual, float(expected))


def exact_gap(alpha, num_classes):
    alpha = mp.mpf(alpha)
    return mp.inf if alpha == 0 else mp.log(1 + num_classes * (1 - alpha) / alpha)


# --- each closed form in 50 digits


@given(alphas, class_counts)
def test_epsilon_from_alpha(alpha, num_classes):
    near(theory.epsilon_from_alpha(alpha, num_classes), mp.mpf(alpha) * (num_classes - 1) / num_classes)


@given(alphas, class_counts)
def test_alpha_from_epsilon(share, num_classes):
    epsilon = share * (1 - 1 / num_classes)
    near(theory.alpha_from_epsilon(epsilon, num_classes), mp.mpf(epsilon) * num_classes / (num_classes - 1), steps=2)


@given(alphas, class_counts)
def test_optimal_gap(alpha, num_classes):
    near(theory.optimal_gap(alpha, num_classes), exact_gap(alpha, num_classes))


@given(st.one_of(st.sampled_from([0.0, 1e-300, 709.0, 745.0, math.inf]), st.floats(0, 1000)), class_counts)
def test_alpha_from_gap(gap, num_classes):
    # Where e^−g is subnormal its step, multiplied by K, is the step of the result.
    near(theory.alpha_from_gap(gap, num_classes), num_classes / (mp.exp(gap) + num_classes - 1), steps=num_classes)


@given(alphas, class_counts)
def test_optimal_probs(alpha, num_classes):
    true, other = theory.optimal_probs(alpha, num_classes)
    near(true, 1 - mp.mpf(alpha) + mp.mpf(alpha) / num_classes)
    near(other, mp.mpf(alpha) / num_classes)


@given(alphas, class_counts)
def test_loss_floor(alpha, num_classes):
    with mp.workdps(400):  # 1 − 5e-324 must not be rounded to 1
        other = mp.mpf(alpha) / num_classes
        true = 1 - mp.mpf(alpha) + other
        entropy = -true * mp.log(true) - ((num_classes - 1) * other * mp.log(other) if alpha else 0)
    # A subnormal α (K − 1)/K is rounded to a step, then multiplied by ln(K/α) < 800.
    near(theory.loss_floor(alpha, num_classes), entropy, steps=800)


@given(alphas, class_counts, temperatures)
def test_collapsed_teacher_alpha(alpha, num_classes, temperature):
    gap = exact_gap(alpha, num_classes)
    expected = num_classes / (mp.exp(gap / mp.mpf(temperature)) + num_classes - 1)
    # g carries a relative error of some 1e-15, and in e^(g/T) that is multiplied by g/T ≤ 745.
    near(theory.collapsed_teacher_alpha(alpha, num_classes, temperature), expected, rel=1e-11, steps=num_classes)


@given(alphas, class_counts)
def test_hessian_eigenvalues(alpha, num_classes):
    other = mp.mpf(alpha) / num_classes
    along, across = theory.hessian_eigenvalues(alpha, num_classes)
    near(along, num_classes * other * (1 - mp.mpf(alpha) + other), steps=num_classes)
    near(across, other)


@given(times, class_counts)
def test_hard_target_gap_solves_its_equation(time, num_classes):
    """e^g + (K − 1) g = 1 + K t, compared with the root in 50 digits."""
    gap = theory.hard_target_gap(time, num_classes)
    root, right = mp.mpf(gap), 1 + num_classes * mp.mpf(time)
    for _ in range(60):  # Newton from the answer; the left side is convex and rising, so it converges to the root
        step = (mp.exp(root) + (num_classes - 1) * root - right) / (mp.exp(root) + num_classes - 1)
        root -= step
        if abs(step) <= mp.mpf(10) ** -45 * abs(root):
            break
    assert abs(mp.exp(root) + (num_classes - 1) * root - right) <= mp.mpf(10) ** -40 * right
    near(gap, max(root, mp.mpf(0)))


@given(st.one_of(st.floats(-1e4, 1e4), st.floats(-1, 1)), alphas, class_counts)
def test_loss_at_gap(gap, alpha, num_classes):
    exact = mp.log(1 + (num_classes - 1) * mp.exp(-mp.mpf(gap))) + mp.mpf(alpha) * gap * (num_classes - 1) / num_classes
    # For g < 0 the two terms have opposite signs: digits are counted from the larger.
    assert theory.loss_at_gap(gap, alpha, num_classes) == pytest.approx(float(exact), rel=1e-12, abs=1e-15 * abs(gap))


@given(alphas, class_counts)
def test_loss_at_the_optimal_gap_is_the_floor(alpha, num_classes):
    """Regression: at α = 0, where the gap is infinite, it was 0 · ∞."""
    loss = theory.loss_at_gap(theory.optimal_gap(alpha, num_classes), alpha, num_classes)
    assert loss == pytest.approx(theory.loss_floor(alpha, num_classes), rel=1e-12, abs=1e-300)


@given(st.one_of(st.sampled_from([0.0, 1e-12, 0.1, 0.5, 1.0]), st.floats(0, 1)), class_counts, st.floats(1e-9, 1e4))
def test_penalised_gap_solves_its_equation(alpha, num_classes, strength):
    """K/(e^g + K − 1) = α + λ g: at the answer minus and plus a hair, the difference changes sign."""
    gap = theory.penalised_gap(alpha, num_classes, strength)
    assert 0 <= gap <= theory.optimal_gap(alpha, num_classes)

    def excess(g):
        return num_classes / (mp.exp(g) + num_classes - 1) - mp.mpf(alpha) - mp.mpf(strength) * g

    hair = 1e-13 + 1e-12 * gap
    assert excess(mp.mpf(gap) - hair) > 0 > excess(mp.mpf(gap) + hair)


# --- inverses, agreement, limits


@given(alphas, class_counts)
def test_conversions_invert_each_other(alpha, num_classes):
    back = theory.alpha_from_epsilon(theory.epsilon_from_alpha(alpha, num_classes), num_classes)
    near(back, mp.mpf(alpha), rel=1e-15, steps=2)


@given(alphas, class_counts)
def test_gap_and_alpha_invert_each_other(alpha, num_classes):
    near(theory.alpha_from_gap(theory.optimal_gap(alpha, num_classes), num_classes), mp.mpf(alpha), steps=num_classes)


@given(st.floats(1e-12, 700), class_counts)
def test_alpha_and_gap_invert_each_other(gap, num_classes):
    # α near 1 keeps 16 digits of α, not of 1 − α: the gap comes back to K units in its last place of α.
    back = theory.optimal_gap(theory.alpha_from_gap(gap, num_classes), num_classes)
    assert back == pytest.approx(gap, rel=1e-12, abs=4e-16 * num_classes)


@given(alphas, class_counts, st.data())
def test_optimum_is_the_smoothed_label(alpha, num_classes, data):
    """theory never imports targets; that they agree is a result."""
    label = data.draw(st.integers(0, num_classes - 1))
    targets = smooth_labels([label], num_classes, alpha, dtype=torch.float64)[0].numpy()
    expected = np.full(num_classes, theory.optimal_probs(alpha, num_classes)[1])
    expected[label] = theory.optimal_probs(alpha, num_classes)[0]
    np.testing.assert_allclose(targets, expected, rtol=1e-12, atol=num_classes * TINY)


@given(alphas, class_counts)
def test_floor_is_the_loss_at_the_optimal_gap(alpha, num_classes):
    logits = torch.zeros(1, num_classes, dtype=torch.float64)
    logits[0, 1] = min(theory.optimal_gap(alpha, num_classes), 1e3)
    loss = smoothed_cross_entropy(logits, torch.tensor([1]), alpha).item()
    assert loss == pytest.approx(theory.loss_floor(alpha, num_classes), rel=1e-12, abs=1e-12)


@given(st.floats(1e-3, 0.999), small_class_counts, st.floats(0.1, 5))
def test_no_other_gap_is_better(alpha, num_classes, shift):
    def loss(gap):
        logits = torch.zeros(1, num_classes, dtype=torch.float64)
        logits[0, 0] = gap
        return smoothed_cross_entropy(logits, torch.tensor([0]), alpha).item()

    best = theory.optimal_gap(alpha, num_classes)
    assert loss(best) <= min(loss(best + shift), loss(best - shift)) + 1e-14


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 0.9, 1.0])
def test_newton_descent_finds_the_gap(alpha, num_classes):
    """From random logits, with autograd's gradient and Hessian of the loss, down to the closed forms."""
    label = torch.tensor([num_classes - 1])
    logits = torch.randn(1, num_classes, generator=torch.Generator().manual_seed(num_classes), dtype=torch.float64)

    def loss(z):
        return smoothed_cross_entropy(z.reshape(1, -1), label, alpha)

    z = logits[0]
    for _ in range(200):
        gradient = torch.autograd.functional.jacobian(loss, z)
        # The Hessian is singular along (1, …, 1); adding that direction leaves the step in the others as it is.
        hessian = torch.autograd.functional.hessian(loss, z) + 1.0
        step = torch.linalg.solve(hessian, gradient)
        largest = step.abs().max().item()
        if largest < 1e-13:
            break
        z = z - step * min(1.0, 1.0 / largest)
    assert (z[-1] - z[:-1]).numpy() == pytest.approx(theory.optimal_gap(alpha, num_classes), rel=1e-10, abs=1e-10)
    assert loss(z).item() == pytest.approx(theory.loss_floor(alpha, num_classes), rel=1e-12)


def minimise(function, start):
    """Point where L-BFGS ends, from `start`, to the rounding of float64."""
    point = start.clone().requires_grad_()
    training.minimise(lambda: function(point), [point], steps=500)
    return point.detach()


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize(("alpha", "strength"), [(0.0, 0.01), (0.1, 0.01), (0.1, 0.0), (0.5, 1.0), (1.0, 0.3)])
def test_descent_with_a_penalty_finds_the_penalised_gap(alpha, strength, num_classes):
    label = torch.tensor([0])
    z = minimise(
        lambda z: smoothed_cross_entropy(z, label, alpha) + strength / 2 * (z**2).sum(),
        torch.linspace(-1, 1, num_classes, dtype=torch.float64)[None],
    )
    gap = theory.penalised_gap(alpha, num_classes, strength)
    assert (z[0, 0] - z[0, 1:]).numpy() == pytest.approx(gap, rel=1e-6, abs=1e-6)
    assert theory.penalised_gap(alpha, num_classes, 0) == theory.optimal_gap(alpha, num_classes)


@pytest.mark.parametrize("label", [0, 3])
def test_descent_with_class_weights_finds_the_weighted_optimum(label):
    weight = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)
    loss_of = {"labels": torch.tensor([label]), "alpha": 0.3, "weight": weight}
    z = minimise(lambda z: smoothed_cross_entropy(z, **loss_of), torch.zeros(1, 4, dtype=torch.float64))
    targets = smooth_labels([label], 4, 0.3, dtype=torch.float64)
    expected = theory.weighted_optimal_probs(targets, weight)
    np.testing.assert_allclose(z.softmax(-1), expected, atol=1e-7)
    np.testing.assert_allclose(theory.weighted_optimal_probs(targets, [1, 1, 1, 1]), targets, rtol=1e-15)


@given(st.floats(1e-6, 1), small_class_counts, st.floats(0.05, 100), st.data())
def test_a_collapsed_teacher_teaches_smoothed_labels(alpha, num_classes, temperature, data):
    """Softmax of logits with the optimal gap, divided by T, is the row of smoothed labels with α_T."""
    label, offset = data.draw(st.integers(0, num_classes - 1)), data.draw(st.floats(-10, 10))
    logits = torch.full((num_classes,), offset, dtype=torch.float64)
    logits[label] += theory.optimal_gap(alpha, num_classes)
    alpha_t = theory.collapsed_teacher_alpha(alpha, num_classes, temperature)
    expected = smooth_labels([label], num_classes, alpha_t, dtype=torch.float64)[0]
    torch.testing.assert_close((logits / temperature).softmax(-1), expected, rtol=1e-10, atol=1e-13)


@given(st.floats(1e-3, 1), st.integers(2, 60))
def test_hessian_eigenvalues_against_eigvalsh(alpha, num_classes):
    p = smooth_labels([0], num_classes, alpha, dtype=torch.float64)[0]
    values = torch.linalg.eigvalsh(torch.diag(p) - torch.outer(p, p)).numpy()
    along, across = theory.hessian_eigenvalues(alpha, num_classes)
    expected = sorted([0.0, along] + [across] * (num_classes - 2))
    np.testing.assert_allclose(values, expected, atol=1e-14)


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_hard_target_gap_against_an_ode_solver(num_classes):
    """dz/dt = y − softmax(z) from equal logits, all K of them, integrated by scipy."""

    def flow(_, z):
        p = np.exp(z - z.max())
        return np.eye(1, num_classes)[0] - p / p.sum()

    times = np.array([0.01, 0.3, 1, 10, 100, 1000])
    solved = solve_ivp(flow, (0, 1000), np.zeros(num_classes), t_eval=times, rtol=1e-10, atol=1e-12, method="LSODA")
    np.testing.assert_allclose(solved.y[0] - solved.y[1], theory.hard_target_gap(times, num_classes), rtol=1e-6)


@given(times, class_counts)
def test_hard_target_gap_is_a_gap(time, num_classes):
    """Regression: it came out as −3e-16 at t = 0, which `alpha_from_gap` turns away."""
    gap = theory.hard_target_gap(time, num_classes)
    assert gap >= 0
    assert 0 <= theory.alpha_from_gap(gap, num_classes) <= 1
    assert theory.hard_target_gap(0, num_classes) == 0


def test_hard_target_gap_grows_like_the_logarithm_of_time():
    for num_classes in (2, 10, 1000):
        for time in (1e12, 1e100, 1e300):
            excess = theory.hard_target_gap(time, num_classes) - math.log(num_classes * time)
            assert abs(excess) < 1e-7


@pytest.mark.parametrize("num_classes", [2, 10, 32000])
def test_limits(num_classes):
    gap, log_k = theory.optimal_gap, math.log(num_classes)
    assert gap(0, num_classes) == math.inf
    assert gap(1, num_classes) == 0
    assert theory.optimal_probs(0, num_classes) == (1, 0)
    assert theory.optimal_probs(1, num_classes) == pytest.approx((1 / num_classes, 1 / num_classes), rel=1e-15)
    assert theory.loss_floor(0, num_classes) == 0
    assert theory.loss_floor(1, num_classes) == pytest.approx(log_k, rel=1e-14)
    assert theory.hessian_eigenvalues(0, num_classes) == (0, 0)
    assert theory.epsilon_from_alpha(1, num_classes) == pytest.approx(1 - 1 / num_classes, rel=1e-15)
    assert theory.alpha_from_epsilon(1 - 1 / num_classes, num_classes) == pytest.approx(1, rel=1e-15)
    assert theory.alpha_from_gap(math.inf, num_classes) == 0
    assert theory.alpha_from_gap(0, num_classes) == 1
    cold, same, hot = (theory.collapsed_teacher_alpha(0.1, num_classes, t) for t in (1e-3, 1, 1e9))
    assert cold < 1e-300
    assert same == pytest.approx(0.1, rel=1e-12)
    assert hot == pytest.approx(1, rel=1e-7)
    assert theory.collapsed_teacher_alpha(0, num_classes, 5) == 0  # hard targets stay hard at every temperature
    assert theory.collapsed_teacher_alpha(1, num_classes, 5) == 1
    assert theory.collapsed_teacher_alpha(0.1, num_classes, 1e-320) == 0


def test_numbers_of_the_book():
    assert theory.optimal_gap(0.1, 10) == pytest.approx(4.5108595, abs=1e-7)
    assert theory.optimal_gap(theory.alpha_from_epsilon(0.1, 10), 10) == pytest.approx(math.log(81), rel=1e-14)
    assert theory.collapsed_teacher_alpha(0.1, 10, np.array([1, 2, 4])) == pytest.approx([0.1, 0.539, 0.827], abs=5e-4)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True), class_counts)
def test_monotone_in_alpha(values, num_classes):
    values = np.sort(values)
    assert (np.diff(theory.optimal_gap(values, num_classes)[values > 0]) <= 0).all()
    for rising in (
        theory.epsilon_from_alpha(values, num_classes),
        theory.loss_floor(values, num_classes),
        theory.collapsed_teacher_alpha(values, num_classes, 2.0),
        theory.optimal_probs(values, num_classes)[1],
    ):
        assert (np.diff(rising) >= -1e-15).all()


@given(st.floats(1e-6, 0.99), class_counts)
def test_monotone_in_classes_and_temperature(alpha, num_classes):
    assert theory.optimal_gap(alpha, num_classes + 1) > theory.optimal_gap(alpha, num_classes)
    by_temperature = theory.collapsed_teacher_alpha(alpha, num_classes, np.linspace(0.5, 8, 16))
    assert (np.diff(by_temperature) > 0).all()


# --- the confidence penalty at the strength that matches smoothing


def penalised_loss(gap, num_classes, strength):
    """−ln p_y − β H(p) in 50 digits, by its sums: a class that leads K − 1 equal ones by `gap`."""
    other = 1 / (mp.exp(gap) + num_classes - 1)
    true = mp.exp(gap) * other
    entropy = -true * mp.log(true) - (num_classes - 1) * other * mp.log(other)
    return -mp.log(true) - strength * entropy


open_alphas = alphas.filter(lambda alpha: 0 < alpha < 1)


@given(open_alphas, class_counts)
def test_matching_penalty(alpha, num_classes):
    true = 1 - mp.mpf(alpha) * (num_classes - 1) / num_classes
    near(theory.matching_penalty(alpha, num_classes), 1 / (true * exact_gap(alpha, num_classes)))


# (Below 1e-15 even 50 digits do not tell these losses apart.)
@given(open_alphas.filter(lambda alpha: alpha > 1e-15), class_counts, st.sampled_from([1e-6, 0.1, 0.9, 1.1, 2.0, 1e3]))
def test_the_matching_penalty_asks_for_the_gap_of_smoothing(alpha, num_classes, factor):
    """No other gap is better; nor is a lead of another class, a negative gap."""
    gap, strength = exact_gap(alpha, num_classes), mp.mpf(theory.matching_penalty(alpha, num_classes))
    best = penalised_loss(gap, num_classes, strength)
    assert best < penalised_loss(factor * gap, num_classes, strength)
    assert best < penalised_loss(-factor * gap, num_classes, strength)


@given(open_alphas.filter(lambda alpha: alpha > 1e-6), class_counts, st.floats(-20, 20))
def test_slope_of_the_penalised_loss(alpha, num_classes, gap):
    """(1 − p)(β p g − 1), against a numerical derivative; 0 at the optimal gap."""
    strength = mp.mpf(theory.matching_penalty(alpha, num_classes))
    for g in (mp.mpf(gap), exact_gap(alpha, num_classes)):
        true = 1 / (1 + (num_classes - 1) * mp.exp(-g))
        expected = (1 - true) * (strength * true * g - 1)
        slope = mp.diff(lambda x: penalised_loss(x, num_classes, strength), g)
        assert abs(slope - expected) <= 1e-12 * max(abs(expected), 1e-3)
    assert abs(expected) < 1e-12  # of the last, the optimal gap


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_descent_with_the_matching_penalty_finds_the_gap(alpha, num_classes):
    """On all K free logits, from a start off the symmetric line."""
    strength = theory.matching_penalty(alpha, num_classes)
    logits = (torch.arange(num_classes, dtype=torch.float64) / num_classes).requires_grad_()

    def loss():
        log_probs = logits.log_softmax(-1)
        return -log_probs[0] + strength * (log_probs.exp() * log_probs).sum()

    training.minimise(loss, [logits])
    gaps = (logits[0] - logits[1:]).detach().numpy()
    np.testing.assert_allclose(gaps, theory.optimal_gap(alpha, num_classes), rtol=1e-5)


@pytest.mark.parametrize(
    ("alpha", "num_classes", "error", "message"),
    [
        (0, 10, ValueError, "alpha must lie strictly between 0 and 1, where the gap is finite and not 0, got 0"),
        (1.0, 10, ValueError, "alpha must lie strictly between 0 and 1, where the gap is finite and not 0, got 1.0"),
        (-0.1, 10, ValueError, "alpha must lie in [0, 1], got -0.1"),
        (math.nan, 10, ValueError, "alpha must lie in [0, 1], got nan"),
        ([0.1], 10, TypeError, "alpha must be one real number, got [0.1] (list)"),
        (0.1, 1, ValueError, "num_classes must be at least 2, got 1"),
        (0.1, 2.0, TypeError, "num_classes must be an int, got 2.0 (float)"),
    ],
)
def test_bad_values_of_the_matching_penalty(alpha, num_classes, error, message):
    with pytest.raises(error) as caught:
        theory.matching_penalty(alpha, num_classes)
    assert str(caught.value) == message


# --- the unconstrained-features model

decays = st.floats(-12, 3).map(lambda power: 10.0**power)
per_class_counts = st.one_of(st.sampled_from([1, 2, 5, 5000]), st.integers(1, 10**6))
shares = st.one_of(st.sampled_from([0.0, 1e-12, 0.1, 0.5, BELOW_ONE, 1.0]), st.floats(0, 1))


def exact_strength(alpha, num_classes, per_class, weight_decay, feature_decay):
    return mp.mpf(alpha) + num_classes * mp.sqrt(per_class * mp.mpf(weight_decay) * mp.mpf(feature_decay))


@given(shares, class_counts, per_class_counts, decays, decays)
def test_unconstrained_features_solve_their_equations(alpha, num_classes, per_class, weight_decay, feature_decay):
    """K/(e^g + K − 1) = α + K √(n λ_W λ_H), λ_W ‖W‖² = λ_H ‖H‖², and g = ‖w‖ ‖h‖ K/(K − 1)."""
    given_values = alpha, num_classes, per_class, weight_decay, feature_decay
    gap, template, feature = theory.unconstrained_features(*given_values)
    strength = exact_strength(*given_values)
    if strength >= 1 + 1e-15:
        assert (gap, template, feature) == (0, 0, 0)
        return
    hair = 1e-13 * gap + 2e-15 * num_classes  # near 1, the strength is rounded, and the gap is K times 1 − strength
    low, high = (num_classes / (mp.exp(mp.mpf(gap) + d) + num_classes - 1) for d in (hair, -hair))
    assert low <= strength <= high
    assert template * feature * num_classes / (num_classes - 1) == pytest.approx(gap, rel=1e-12)
    sides = weight_decay * num_classes * template**2, feature_decay * num_classes * per_class * feature**2
    assert sides[0] == pytest.approx(sides[1], rel=1e-12)


@given(shares, class_counts, per_class_counts, decays, decays, st.floats(1, 100))
def test_unconstrained_gap_falls_in_each_strength(alpha, num_classes, per_class, weight_decay, feature_decay, factor):
    start = {"alpha": alpha, "per_class": per_class, "weight_decay": weight_decay, "feature_decay": feature_decay}
    gap = theory.unconstrained_features(num_classes=num_classes, **start).gap
    more = {name: value * factor for name, value in start.items()}
    more |= {"alpha": min(1.0, alpha * factor), "per_class": math.ceil(per_class * factor)}
    for name, value in more.items():
        other = theory.unconstrained_features(num_classes=num_classes, **(start | {name: value})).gap
        assert other <= gap, name
        if gap > 0 and value > start[name] and factor > 1.5 and name != "alpha":
            strength = exact_strength(alpha, num_classes, per_class, weight_decay, feature_decay)
            assert other < gap or strength - alpha < 1e-15 * strength, name
    assert 0 <= gap <= theory.optimal_gap(alpha, num_classes)


@pytest.mark.parametrize(
    ("alpha", "num_classes", "per_class", "weight_decay", "feature_decay"),
    [
        (0.0, 2, 1, 0.01, 0.02),
        (0.0, 4, 3, 5e-3, 2e-3),
        (0.0, 10, 2, 1e-3, 1e-3),
        (0.1, 3, 4, 0.02, 1e-3),
        (0.1, 10, 3, 1e-3, 5e-4),
        (0.5, 5, 2, 0.01, 0.01),
        (0.3, 4, 2, 0.2, 0.2),  # α + K √(n λ_W λ_H) = 1.43: nothing pays
        (1.0, 3, 2, 1e-2, 1e-1),  # the same by smoothing alone
    ],
)
def test_descent_finds_the_unconstrained_features(alpha, num_classes, per_class, weight_decay, feature_decay):
    """From random templates and features, in one dimension more than K − 1."""
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    generator = torch.Generator().manual_seed(num_classes)
    start = torch.randn(num_classes * (per_class + 1), num_classes, generator=generator, dtype=torch.float64)

    def loss(point):
        weight, features = point[:num_classes], point[num_classes:]
        penalty = weight_decay * (weight**2).sum() + feature_decay * (features**2).sum()
        return smoothed_cross_entropy(features @ weight.T, labels, alpha) + penalty / 2

    end = minimise(loss, start)
    weight, features = end[:num_classes], end[num_classes:]
    gap, template, feature = theory.unconstrained_features(alpha, num_classes, per_class, weight_decay, feature_decay)
    near_enough = {"rtol": 1e-5, "atol": 2e-5}
    np.testing.assert_allclose(weight.norm(dim=1), template, **near_enough)
    np.testing.assert_allclose(features.norm(dim=1), feature, **near_enough)
    np.testing.assert_allclose(weight.sum(dim=0), 0, atol=2e-5)
    logits = features @ weight.T
    gaps = (logits[range(len(labels)), labels, None] - logits)[labels[:, None] != torch.arange(num_classes)]
    np.testing.assert_allclose(gaps, gap, **near_enough)
    penalty = (weight_decay * num_classes * template**2 + feature_decay * len(labels) * feature**2) / 2
    assert loss(end).item() == pytest.approx(theory.loss_at_gap(gap, alpha, num_classes) + penalty, abs=1e-9)
    cosines = (features @ weight[labels].T).diagonal() / (template * feature or math.inf)
    np.testing.assert_allclose(cosines, 1 if gap else 0, atol=2e-5)


def test_unconstrained_features_at_the_ends():
    """Almost no penalty: the gap of smoothing alone. Strong enough: nothing. And no NaN at the ends of float64."""
    assert theory.unconstrained_features(0.1, 10, 5, 1e-20, 1e-20).gap == pytest.approx(theory.optimal_gap(0.1, 10))
    assert theory.unconstrained_features(1.0, 10, 5, 1e-6, 1e-6) == (0, 0, 0)
    assert theory.unconstrained_features(0.0, 10, 1, 0.1, 0.1) == (0, 0, 0)  # K √(λ_W λ_H) = 1
    assert theory.unconstrained_features(0.0, 10, 1, 0.0999, 0.1).gap > 0
    # Regression: the ratio of the norms overflowed, although neither norm does.
    for strong, weak in ((1e308, SMALLEST), (SMALLEST, 1e308)):
        gap, template, feature = theory.unconstrained_features(0.0, 10, 1, strong, weak)
        assert template * feature * 10 / 9 == pytest.approx(gap, rel=1e-12)
        assert 0 < min(template, feature) < max(template, feature) < math.inf
    assert theory.unconstrained_features(0.0, 10, 10**30, SMALLEST, 1e308) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"alpha": -0.1}, ValueError, "alpha must lie in [0, 1], got -0.1"),
        ({"alpha": 1.1}, ValueError, "alpha must lie in [0, 1], got 1.1"),
        ({"alpha": math.nan}, ValueError, "alpha must lie in [0, 1], got nan"),
        ({"alpha": [0.1]}, TypeError, "alpha must be one real number, got [0.1] (list)"),
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        ({"num_classes": 10.0}, TypeError, "num_classes must be an int, got 10.0 (float)"),
        ({"per_class": 0}, ValueError, "per_class must be at least 1, got 0"),
        ({"per_class": 2.5}, TypeError, "per_class must be an int, got 2.5 (float)"),
        ({"weight_decay": 0}, ValueError, "weight_decay must be positive and finite, got 0"),
        ({"weight_decay": math.inf}, ValueError, "weight_decay must be positive and finite, got inf"),
        ({"feature_decay": -1e-3}, ValueError, "feature_decay must be positive and finite, got -0.001"),
        ({"feature_decay": math.nan}, ValueError, "feature_decay must be positive and finite, got nan"),
        ({"feature_decay": True}, TypeError, "feature_decay must be one real number, got True (bool)"),
    ],
)
def test_bad_values_of_the_unconstrained_model(change, error, message):
    right = {"alpha": 0.1, "num_classes": 10, "per_class": 5, "weight_decay": 1e-3, "feature_decay": 1e-3}
    with pytest.raises(error) as caught:
        theory.unconstrained_features(**(right | change))
    assert str(caught.value) == message


# --- shapes and errors

ONE_ALPHA = [theory.epsilon_from_alpha, theory.optimal_gap, theory.loss_floor]


@pytest.mark.parametrize(
    "function", [*ONE_ALPHA, theory.hard_target_gap, theory.alpha_from_gap, theory.alpha_from_epsilon]
)
def test_arrays_go_through_entry_by_entry(function):
    values = np.array([[0.0, 0.1], [0.25, 0.5]])
    result = function(values, 4)
    assert result.shape == (2, 2)
    assert result.tolist() == [[function(v, 4) for v in row] for row in values.tolist()]
    assert values.tolist() == [[0.0, 0.1], [0.25, 0.5]]


def test_arrays_of_alpha_and_temperature_broadcast():
    table = theory.collapsed_teacher_alpha(np.array([[0.1], [0.5]]), 10, [1.0, 2.0, 4.0])
    assert table.shape == (2, 3)
    assert table[1, 2] == theory.collapsed_teacher_alpha(0.5, 10, 4.0)
    true, other = theory.optimal_probs(np.array([0.1, 0.5]), 10)
    assert true.shape == other.shape == (2,)
    np.testing.assert_allclose(true + 9 * other, 1, rtol=1e-15)


@pytest.mark.parametrize("function", [*ONE_ALPHA, theory.optimal_probs, theory.hessian_eigenvalues])
@pytest.mark.parametrize(
    ("alpha", "num_classes", "error", "message"),
    [
        (-0.1, 10, ValueError, "alpha must lie in [0, 1], got -0.1"),
        (math.nan, 10, ValueError, "alpha must lie in [0, 1], got nan"),
        ([0.1, 2.0], 10, ValueError, "alpha must lie in [0, 1], got 2.0"),
        ([], 10, ValueError, "alpha must hold at least one number, got an empty array"),
        ("0.1", 10, TypeError, "alpha must be a real number or an array of them, got '0.1'"),
        (True, 10, TypeError, "alpha must be a real number or an array of them, got True"),
        (0.1, 1, ValueError, "num_classes must be at least 2, got 1"),
        (0.1, 10.0, TypeError, "num_classes must be an int, got 10.0 (float)"),
    ],
)
def test_bad_alpha_and_num_classes(function, alpha, num_classes, error, message):
    with pytest.raises(error) as caught:
        function(alpha, num_classes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.alpha_from_epsilon(0.91, 10), "epsilon must lie in [0, 0.9], got 0.91"),
        (lambda: theory.alpha_from_epsilon(-1e-9, 10), "epsilon must lie in [0, 0.9], got -1e-09"),
        (lambda: theory.alpha_from_gap(-1, 10), "gap must lie in [0, inf], got -1.0"),
        (lambda: theory.alpha_from_gap(math.nan, 10), "gap must lie in [0, inf], got nan"),
        (lambda: theory.hard_target_gap(-1, 10), "time must lie in [0, 1e+300], got -1.0"),
        (lambda: theory.hard_target_gap(math.inf, 10), "time must lie in [0, 1e+300], got inf"),
        (
            lambda: theory.collapsed_teacher_alpha(0.1, 10, 0),
            "temperature must lie in [4.94066e-324, 1.79769e+308], got 0.0",
        ),
        (lambda: theory.collapsed_teacher_alpha(0.1, 10, -2), "1.79769e+308], got -2.0"),
        (lambda: theory.collapsed_teacher_alpha(0, 10, math.inf), "1.79769e+308], got inf"),  # ∞/∞ has no value
        (lambda: theory.collapsed_teacher_alpha(0.1, 1, 2), "num_classes must be at least 2, got 1"),
        (lambda: theory.loss_at_gap(math.nan, 0.1, 10), "gap must lie in [-1.79769e+308, inf], got nan"),
        (lambda: theory.loss_at_gap(-math.inf, 0.1, 10), "gap must lie in [-1.79769e+308, inf], got -inf"),
        (
            lambda: theory.loss_at_gap([1, 2], [0.1, 0.2, 0.3], 10),
            "gap and alpha must have shapes that broadcast, got (2,) and (3,)",
        ),
        (
            lambda: theory.collapsed_teacher_alpha([0.1, 0.2], 10, [1, 2, 3]),
            "alpha and temperature must have shapes that broadcast, got (2,) and (3,)",
        ),
        (lambda: theory.loss_at_gap(1, 1.1, 10), "alpha must lie in [0, 1], got 1.1"),
        (lambda: theory.penalised_gap(1.1, 10, 1), "alpha must lie in [0, 1], got 1.1"),
        (lambda: theory.penalised_gap(0.1, 10, -1), "strength must lie in [0, 1e+300], got -1"),
        (lambda: theory.penalised_gap(0.1, 10, math.inf), "strength must lie in [0, 1e+300], got inf"),
        (lambda: theory.penalised_gap(1, 10, math.nan), "strength must lie in [0, 1e+300], got nan"),
        (lambda: theory.weighted_optimal_probs([0.5, -0.5], [1, 1]), "targets must lie in [0, 1.79769e+308], got -0.5"),
        (lambda: theory.weighted_optimal_probs([0.5, math.inf], [1, 1]), "1.79769e+308], got inf"),
        (
            lambda: theory.weighted_optimal_probs([0.5, 0.5], [1, 0]),
            "weight must lie in [4.94066e-324, 1.79769e+308], got 0.0",
        ),
        (lambda: theory.weighted_optimal_probs([0.5, 0.5], [1, math.inf]), "1.79769e+308], got inf"),
        (lambda: theory.weighted_optimal_probs([[0.5, 0.5], [0, 0]], [1, 1]), "a positive, finite sum in every row"),
        (lambda: theory.weighted_optimal_probs([1e200, 1], [1e200, 1]), "a positive, finite sum in every row"),
        (
            lambda: theory.weighted_optimal_probs([0.5, 0.5], [1, 1, 1]),
            "expected targets (..., K) and weight (K,), got (2,) and (3,)",
        ),
    ],
)
def test_bad_values_of_the_others(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


def test_alpha_next_to_one_is_not_rounded_away():
    assert theory.optimal_gap(BELOW_ONE, 10) == pytest.approx(10 * 2.0**-53, rel=1e-12)


def test_the_strongest_penalty_leaves_almost_no_gap():
    assert 0 <= theory.penalised_gap(0.1, 10, 1e300) < 1e-12


def test_an_infinite_gap_is_the_end_of_hard_training():
    assert theory.loss_at_gap(math.inf, 0, 10) == 0
    assert theory.loss_at_gap(math.inf, 0.1, 10) == math.inf
