"""Filters, modes, critical rates and the dynamics of given kernels: closed forms against iteration, linear algebra and other
integrators."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit, softmax

from tp_solver.elementwise import lower
from tp_solver.errors import BudgetError, InputError
from tp_solver.kernel_regime import sampled
from tp_solver.kernel_regime.compute import kernels
from tp_solver.kernel_regime.dynamics import KernelDynamics, dynamics
from tp_solver.kernel_regime.filters import filter_at, growth_per_step, reported_filters
from tp_solver.kernel_regime.spectrum import critical_rate
from tp_solver.program.architectures import mlp
from tp_solver.program.losses import CrossEntropy, Logistic, SquaredError, gradient
from tp_solver.program.parameterization import muP, ntk
from tp_solver.program.training import GradientDescent, GradientFlow
from tp_solver.symbols.activation import erf

P, TEST, STEPS = 5, 3, 20
ALL = P + TEST
RNG = np.random.default_rng(11)
NTK, NNGP = (a @ a.T / 10 for a in RNG.standard_normal((2, ALL, 10)))
Y = RNG.standard_normal(P)
SIGNS, CLASSES = np.sign(Y), np.array([0, 2, 1, 1, 0])
CRITICAL = 2 * P / np.linalg.eigvalsh(NTK[:P, :P])[-1]
BALL = GradientDescent(lr=0.7 * CRITICAL, steps=STEPS, momentum=0.8)
DESCENT = GradientDescent(lr=0.7 * CRITICAL, steps=STEPS)
FLOW = GradientFlow(time=9.0, steps=3)
every_rule = pytest.mark.parametrize("training", [DESCENT, BALL, FLOW], ids=["descent", "heavy ball", "flow"])


def heavy_ball(training, slope=lambda f: f - Y, start=None):
    """KT.1 as it stands, with the map of one initial function; rows (T + 1, ALL)."""
    now = before = np.zeros(ALL) if start is None else start
    rows = [now]
    for _ in range(training.steps):
        move = -training.lr * NTK[:, :P] @ slope(now[:P]) / P + training.momentum * (now - before)
        now, before = now + move, now
        rows.append(now)
    return np.array(rows)


# squared error --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [DESCENT, BALL], ids=["descent", "heavy ball"])
def test_mean_and_covariance_are_the_explicit_iteration(training):
    """The iteration is affine in the initial function, so that its columns give the covariance exactly."""
    run = KernelDynamics(NTK, Y, training, NNGP).run()
    mean = heavy_ball(training)
    columns = np.stack([heavy_ball(training, start=e) - mean for e in np.eye(ALL)], axis=2)
    assert np.concatenate([run.f, run.f_test], axis=1)[..., 0] == pytest.approx(mean, abs=1e-12)
    assert run.f_cov[..., 0] == pytest.approx(columns @ NNGP @ columns.swapaxes(1, 2), abs=1e-12)


def test_momentum_changes_the_run_and_is_descent_at_zero():
    ball, none = (KernelDynamics(NTK, Y, GradientDescent(DESCENT.lr, STEPS, momentum=m)).run() for m in (0.8, 0.0))
    assert np.abs(ball.f - none.f).max() > 0.1
    assert np.array_equal(none.f, KernelDynamics(NTK, Y, DESCENT).run().f)


@every_rule
def test_any_time_is_the_reported_one(training):
    """Powers of the companion matrix against the recursion row by row."""
    d = KernelDynamics(NTK, Y, training, NNGP)
    run = d.run()
    for row in range(0, training.steps + 1, 1 if training is FLOW else 7):
        at = d.at(row * training.time / training.steps if training is FLOW else row)
        assert at.f == pytest.approx(run.f[row, :, 0], abs=1e-12) and at.f_test == pytest.approx(run.f_test[row, :, 0], abs=1e-12)
        assert at.f_cov == pytest.approx(run.f_cov[row, :, :, 0], abs=1e-12)


@every_rule
def test_the_end_of_training_is_what_long_training_tends_to(training):
    """B = K_*X K_XX^-1 at infinity (KT.7), whatever the rule; an error of e^-60 is left at the last time."""
    d = KernelDynamics(NTK, Y, training, NNGP)
    end, late = d.at(math.inf), d.at(float(math.ceil(60 * d.modes.time_constants.max())))
    influence = NTK[:, :P] @ np.linalg.inv(NTK[:P, :P])
    assert end.f == pytest.approx(Y, abs=1e-10)
    assert end.f_test == pytest.approx(influence[P:] @ Y, abs=1e-10)
    cross = influence @ NNGP[:P]
    assert end.f_cov == pytest.approx(NNGP + influence @ NNGP[:P, :P] @ influence.T - cross - cross.T, abs=1e-10)
    assert late.f_test == pytest.approx(end.f_test, abs=1e-9) and late.f_cov == pytest.approx(end.f_cov, abs=1e-9)


def test_filters_by_the_roots_of_the_companion_matrix():
    """r(t) from eigenvalues of the 2 x 2 matrix; far out, and where the roots are complex, equal, or beyond the edge."""
    momentum = 0.64
    eigenvalues = np.array([1e-9, (1 - 0.8) ** 2, 0.5, 3.0, 3.2399, 3.3])
    for steps in (1, 2, 17, 400):
        matrix = [np.array([[1 + momentum - v, -momentum], [1, 0]]) for v in eigenvalues]
        left = np.array([(np.linalg.matrix_power(m, steps) @ np.ones(2))[0] for m in matrix])
        g, r = filter_at(GradientDescent(1.0, 1, momentum=momentum), eigenvalues, steps)
        assert r == pytest.approx(left, rel=1e-9) and 1 - eigenvalues * g == pytest.approx(left, rel=1e-9, abs=1e-9)
        assert g == pytest.approx(reported_filters(GradientDescent(1.0, steps, momentum=momentum), eigenvalues)[-1], rel=1e-10)
        assert (left[-1] > 1) or steps < 20


def test_tiny_eigenvalues_keep_their_digits():
    """After 100 steps at eigenvalue 10^-12 the share left is 1 - 10^-10: (1 - r) / lambda would have six digits."""
    expected = -math.expm1(100 * math.log1p(-1e-12)) / 1e-12
    assert filter_at(DESCENT, np.array([1e-12]), 100).moved == pytest.approx(expected, rel=1e-13)
    assert filter_at(FLOW, np.array([1e-12, 0.0]), 3.0).moved == pytest.approx(3.0, rel=1e-11)
    assert (1 - filter_at(DESCENT, np.array([1e-12]), 100).left) / 1e-12 != pytest.approx(expected, rel=1e-9)


def test_directions_without_kernel_never_move():
    """A kernel of rank two: at infinity the error along the other three directions is what it was."""
    x = np.random.default_rng(0).standard_normal((ALL, 2))
    d = KernelDynamics(x @ x.T, Y, GradientFlow(1.0, 1), np.eye(ALL))
    end = d.at(math.inf)
    fitted = x @ np.linalg.lstsq(x[:P], Y, rcond=None)[0]
    assert np.concatenate([end.f, end.f_test]) == pytest.approx(fitted, abs=1e-12)
    assert np.trace(end.f_cov[:P, :P]) == pytest.approx(3.0, abs=1e-12)  # two of five directions are known
    assert (d.modes.time_constants[2:] == np.inf).all()


@pytest.mark.parametrize("time", [1e15, 1e17, 1e20])
def test_a_long_flow_on_a_singular_kernel_ends_where_training_ends(time):
    """Eigenvalues that are zero but for rounding, some of them negative, must not be followed for a long time."""
    a = np.random.default_rng(0).standard_normal((6, 2))
    d = KernelDynamics(a @ a.T, Y, GradientFlow(time, 2), np.eye(6))
    end, late, run = d.at(math.inf), d.at(time), d.run()
    np.testing.assert_allclose(late.f, end.f, atol=1e-12)
    np.testing.assert_allclose(late.f_cov, end.f_cov, atol=1e-12)
    np.testing.assert_allclose(run.f[-1, :, 0], end.f, atol=1e-12)
    np.testing.assert_allclose(run.f_cov[-1, ..., 0], end.f_cov, atol=1e-12)
    assert run.first_bad is None


def test_a_kernel_of_zero_moves_nothing():
    for training in (DESCENT, BALL, FLOW):
        d = KernelDynamics(np.zeros((ALL, ALL)), Y, training, NNGP)
        assert not d.run().f.any() and not d.at(float(STEPS)).f.any()
        np.testing.assert_array_equal(d.at(float(STEPS)).f_cov, NNGP)


# last layer and new points --------------------------------------------------------------------------------------------

X = RNG.standard_normal((ALL, 4))
NET = mlp(2, erf, bias=0.1, bias_rate=0.01)


def test_training_the_last_layer_alone_ends_as_the_posterior():
    K = kernels(NET, ntk, X).nngp
    frozen = {m.name: 0.0 for m in NET.matrices} | {"W2": 0.5}
    d = KernelDynamics.of(NET, ntk, GradientDescent(frozen, 10), X[:P], Y, X[P:])
    end, weights = d.at(math.inf), np.linalg.solve(K[:P, :P], K[:P])
    assert d.ntk == pytest.approx(kernels(NET, ntk, X, layers=True).parts["W2"], rel=1e-12)
    assert end.f_test == pytest.approx(weights[:, P:].T @ Y, abs=1e-8)
    assert end.f_cov == pytest.approx(K - K[:, :P] @ weights, abs=1e-8)
    whole = KernelDynamics.of(NET, ntk, GradientDescent(0.5, 10), X[:P], Y, X[P:]).at(math.inf)
    assert np.abs(np.diag(whole.f_cov)[P:] / np.diag(end.f_cov)[P:] - 1).max() > 0.02, "the ensemble is no posterior otherwise"


def test_initial_functions_that_vanish_or_are_scaled():
    assert KernelDynamics.of(NET, muP, DESCENT, X[:P], Y).nngp is None
    assert KernelDynamics.of(NET, ntk, DESCENT, X[:P], Y, gamma0=0.0).nngp is None
    one, two = (KernelDynamics.of(NET, ntk, DESCENT, X[:P], Y, gamma0=g) for g in (1.0, 2.0))
    assert one.nngp == pytest.approx(4 * two.nngp, rel=1e-13) and np.array_equal(one.ntk, two.ntk)


@every_rule
def test_new_points_are_test_points(training):
    whole, alone = KernelDynamics(NTK, Y, training, NNGP), KernelDynamics(NTK[:P, :P], Y, training, NNGP[:P, :P])
    time = 5 if training is not FLOW else 5.0
    expected = whole.at(time)
    mean, variance = alone.predict(NTK[P:, :P], time, NNGP[P:, :P], np.diag(NNGP)[P:])
    assert mean == pytest.approx(expected.f_test, abs=1e-12)
    assert variance == pytest.approx(np.diag(expected.f_cov)[P:], abs=1e-12)
    assert alone.predict(NTK[P:, :P], time)[1] is None


@pytest.mark.parametrize("training", [GradientDescent(3.0, 9, Logistic(), 0.5), GradientFlow(20.0, 1, Logistic())], ids=["ball", "flow"])
def test_new_points_without_closed_form(training):
    """By coefficients (KT.2): means of the same draws, so equal to rounding, from a run that did not know the points."""
    time = 20.0 if isinstance(training, GradientFlow) else 9
    whole = KernelDynamics(NTK, SIGNS, training, NNGP, draws=256)
    expected = whole.at(time)
    mean, _ = whole.predict(NTK[P:, :P], time)
    assert mean == pytest.approx(expected.f_test, abs=1e-9)
    assert expected.f_test == pytest.approx(whole.run().f_test[-1, :, 0], abs=1e-9) and expected.f_stderr[P:].max() < 0.02
    assert np.linalg.eigvalsh(expected.f_cov)[0] > -1e-12


# modes and critical rates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_critical_rate_divides_convergence_from_divergence(momentum):
    """0.99 of it converges, 1.01 diverges, both by what the rates of the modes say."""
    critical = critical_rate(NTK[:P, :P], momentum)
    assert critical == pytest.approx((1 + momentum) * CRITICAL, rel=1e-13)
    steps, growth = 4000, {}
    for factor in (0.99, 1.01):
        d = KernelDynamics(NTK, Y, GradientDescent(factor * critical, 10, momentum=momentum))
        assert d.critical_lr == pytest.approx(critical, rel=1e-12)
        one, two = (np.abs(d.modes.left(t)[0]) for t in (steps // 2, steps))
        growth[factor] = math.log(two / one) / (steps // 2)
        assert growth[factor] == pytest.approx(-d.modes.rates[0], rel=1e-2)  # complex roots have a phase
    assert growth[0.99] < 0 < growth[1.01]
    below, above = (KernelDynamics(NTK, Y, GradientDescent(f * critical, 400, momentum=momentum)).run().loss for f in (0.9, 1.1))
    assert below[-1] < 1e-2 * below[0] and above[-1] > 1e10 * above[0]


def test_modes_decay_at_their_rates():
    """Residuals along the modes of a run, measured between two times."""
    for training in (DESCENT, GradientFlow(40.0, 40)):
        d = KernelDynamics(NTK, Y, training)
        left = d.modes.vectors.T @ (d.run().f[..., 0] - Y).T
        measured = -np.log(np.abs(left[:, 8] / left[:, 3])) / 5
        assert measured == pytest.approx(d.modes.rates, rel=1e-6)
        assert np.abs(left[:, 0] ** 2 / (left[:, 0] ** 2).sum() - d.modes.share).max() < 1e-13
        assert left[:, 7] == pytest.approx(left[:, 0] * d.modes.left(7.0), rel=1e-9)
    assert (1 / d.modes.rates == d.modes.time_constants).all()


def test_growth_is_the_larger_root():
    for momentum in (0.0, 0.3, 0.9):
        for value in (1e-6, 0.1, 1.0, 2.5, 3.9):
            roots = np.abs(np.roots([1, -(1 + momentum - value), momentum]))
            assert growth_per_step(np.array([value]), momentum)[0] == pytest.approx(roots.max(), rel=1e-12)


@pytest.mark.parametrize(("loss", "outputs"), [(SquaredError(), 2), (Logistic(), 1), (CrossEntropy(), 2), (CrossEntropy(), 4)])
def test_curvatures_are_the_largest(loss, outputs):
    """Eigenvalues of the Hessian at many points: below the bound everywhere, and the bound is reached."""
    f, y, value, _ = gradient(loss, outputs)
    point_loss = lower(value, (*f, *y))
    rng = np.random.default_rng(0)
    label = np.eye(outputs)[0] if outputs > 1 else np.ones(1)
    points = [*rng.standard_normal((200, outputs)) * rng.exponential(3.0, (200, 1)), np.zeros(outputs)]
    points.append(np.where(np.arange(outputs) < 2, 0.0, -40.0))
    with jax.enable_x64(True):
        hessian = jax.jit(jax.hessian(lambda f: point_loss(*f, *label)))
        tops = [np.linalg.eigvalsh(np.asarray(hessian(p)))[-1] for p in points]
    assert max(tops) == pytest.approx(loss.curvature, rel=1e-12)


def test_below_the_critical_rate_the_logistic_loss_never_rises():
    d = KernelDynamics(NTK, SIGNS, GradientDescent(1.0, 1, Logistic()))
    assert d.critical_lr == pytest.approx(4 * CRITICAL)
    loss = KernelDynamics(NTK, SIGNS, GradientDescent(d.critical_lr, 200, Logistic())).run().loss
    assert (np.diff(loss) < 0).all()


def test_modes_print_and_plot(tmp_path):
    d = KernelDynamics(NTK, Y, BALL, NNGP)
    text = str(d)
    assert f"critical lr {d.critical_lr:.4g}" in text and f"{d.modes.eigenvalues[0]:.4g}" in text and "0.3889 times" in text
    many = KernelDynamics(np.diag(np.arange(1.0, 13.0)), np.ones(12), FLOW)
    assert "rest" in str(many) and "per unit of time" in str(many)
    for dynamics_ in (d, many):
        target = tmp_path / "modes.png"
        dynamics_.modes.plot(target)
        assert target.stat().st_size > 10_000


# losses without closed form -------------------------------------------------------------------------------------------

LOSSES = {
    "logistic": (Logistic(), SIGNS, lambda f: -SIGNS[:, None] * expit(-SIGNS[:, None] * f)),
    "cross-entropy": (CrossEntropy(), CLASSES, lambda f: softmax(f, axis=-1) - np.eye(3)[CLASSES]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_flow_on_all_points_by_another_integrator(name):
    loss, y, slope = LOSSES[name]
    outputs = 1 if y is SIGNS else 3

    def velocity(_, f):
        return (-NTK[:, :P] @ slope(f.reshape(ALL, outputs)[:P]) / P).reshape(-1)

    reported = np.linspace(0, 200.0, 5)
    exact = solve_ivp(velocity, (0, 200.0), np.zeros(ALL * outputs), method="DOP853", rtol=1e-12, atol=1e-13, t_eval=reported).y
    k = KernelDynamics(NTK, y, GradientFlow(200.0, 4, loss)).run()
    assert np.concatenate([k.f, k.f_test], axis=1).reshape(5, -1) == pytest.approx(exact.T, abs=1e-8)
    # and the limit of small steps: the difference to descent, at the first reported time, halves with the step
    descents = [KernelDynamics(NTK, y, GradientDescent(50.0 / n, n, loss)).at(n) for n in (250, 500)]
    gaps = [np.abs(d.f_test.reshape(TEST, -1) - k.f_test[1]).max() for d in descents]
    assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.1) and gaps[1] < 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_heavy_ball_of_other_losses(name):
    """One start at zero is the explicit iteration."""
    loss, y, slope = LOSSES[name]
    training = GradientDescent(2.0, STEPS, loss, momentum=0.9)
    k = KernelDynamics(NTK, y, training).run(y_test=np.array([1.0, -1.0, 1.0]) if y is SIGNS else np.array([0, 1, 2]))
    now = before = np.zeros((ALL, k.f.shape[2]))
    for t in range(STEPS + 1):
        assert np.concatenate([k.f[t], k.f_test[t]]) == pytest.approx(now, abs=1e-12)
        now, before = now - 2.0 * NTK[:, :P] @ slope(now[:P]) / P + 0.9 * (now - before), now
    assert np.isfinite(k.loss_test).all()


def test_heavy_ball_over_random_initial_functions():
    """Against brute force, within four standard errors of both."""
    training, draws = GradientDescent(2.0, STEPS, Logistic(), momentum=0.8), 20_000
    start = np.linalg.cholesky(NNGP) @ np.random.default_rng(1).standard_normal((ALL, draws))
    now = before = start
    for _ in range(STEPS):
        now, before = now + 2.0 * NTK[:, :P] @ (SIGNS[:, None] * expit(-SIGNS[:, None] * now[:P])) / P + 0.8 * (now - before), now
    k = KernelDynamics(NTK, SIGNS, training, NNGP).run()
    mean = np.concatenate([k.f, k.f_test], axis=1)[-1, :, 0]
    assert np.all(np.abs(now.mean(axis=1) - mean) <= 4 * np.hypot(now.std(axis=1) / draws**0.5, k.f_stderr[-1, :, 0]))
    variance, spread = np.diag(k.f_cov[-1, :, :, 0]), ((now - now.mean(axis=1, keepdims=True)) ** 2).std(axis=1) / draws**0.5
    assert np.all(np.abs(now.var(axis=1) - variance) <= 4 * np.hypot(spread, k.variance_stderr[-1, :, 0]))


def test_a_flow_that_cannot_be_followed_is_refused(monkeypatch):
    """A fast mode keeps explicit steps short for ever: too many of them are an error, not a wrong answer."""
    monkeypatch.setattr(sampled, "MAX_STEPS", 30)
    sampled._integrated.clear_cache()
    try:
        with pytest.raises(BudgetError) as error:
            dynamics(1e4 * NTK, SIGNS, GradientFlow(1e3, 2, Logistic()))
        assert error.value.field == "time" and "GradientDescent" in error.value.hint
    finally:
        sampled._integrated.clear_cache()


# bad input ------------------------------------------------------------------------------------------------------------

GOOD = {"ntk": NTK, "y": Y, "training": DESCENT, "nngp": NNGP}
WRONG = {
    "rectangular kernel": ({"ntk": np.ones((3, 4))}, "ntk"),
    "kernel that is not symmetric": ({"ntk": NTK + np.triu(np.ones((ALL, ALL)), 1)}, "ntk"),
    "indefinite kernel": ({"ntk": -NTK}, "ntk"),
    "kernel with nan": ({"ntk": np.full((ALL, ALL), np.nan)}, "ntk"),
    "more labels than points": ({"y": np.ones(ALL + 1)}, "y"),
    "labels for another loss": ({"training": GradientDescent(0.1, 3, Logistic())}, "y"),
    "training class": ({"training": GradientDescent}, "training"),
    "a rate per matrix": ({"training": GradientDescent((0.1, 0.2), 3)}, "training.lr"),
    "covariance of other points": ({"nngp": np.eye(P)}, "nngp"),
    "too few draws": ({"draws": 3}, "draws"),
    "negative seed": ({"seed": -1}, "seed"),
}


def test_kernels_in_single_precision_are_covariances_to_single_precision():
    """One rule for all kernels: rounding of float32 is neither asymmetry nor a negative eigenvalue."""
    x = np.random.default_rng(0).standard_normal((ALL, 2))
    single = (x @ x.T).astype(np.float32)
    single[0, 1] = np.nextafter(single[0, 1], np.float32(np.inf))
    rule = GradientDescent(0.1, 3)
    expected = KernelDynamics(x @ x.T, Y, rule).at(3).f
    assert KernelDynamics(single, Y, rule).at(3).f == pytest.approx(expected, rel=1e-5)
    assert critical_rate(single) == pytest.approx(critical_rate(x @ x.T), rel=1e-5)
    with pytest.raises(InputError, match="asymmetric"):
        KernelDynamics(single.astype(np.float64), Y, rule)


@pytest.mark.parametrize("name", WRONG)
def test_bad_records(name):
    change, field = WRONG[name]
    with pytest.raises(InputError) as error:
        KernelDynamics(**(GOOD | change))
    assert error.value.field == field and error.value.hint


FAST = KernelDynamics(NTK, Y, GradientDescent(1.1 * CRITICAL, 3), NNGP)
LOGISTIC = KernelDynamics(NTK, SIGNS, GradientFlow(1.0, 1, Logistic()), NNGP)
GIVEN = KernelDynamics(**GOOD)
REFUSED = {
    "infinity above the critical rate": (lambda: FAST.at(math.inf), "time"),
    "infinity of the logistic loss": (lambda: LOGISTIC.at(math.inf), "time"),
    "half a step": (lambda: GIVEN.at(1.5), "time"),
    "half a step of another loss": (lambda: KernelDynamics(NTK, SIGNS, GradientDescent(1.0, 1, Logistic())).at(1.5), "time"),
    "negative time": (lambda: GIVEN.at(-1.0), "time"),
    "time nan": (lambda: GIVEN.at(math.nan), "time"),
    "a time beyond float64": (lambda: GIVEN.at(10**400), "time"),
    "time as text": (lambda: GIVEN.at("end"), "time"),
    "new kernel of other points": (lambda: GIVEN.predict(NTK[P:], 3), "ntk_new"),
    "half a covariance": (lambda: GIVEN.predict(NTK[P:, :P], 3, NNGP[P:, :P]), "nngp_new"),
    "variances of other points": (lambda: GIVEN.predict(NTK[P:, :P], 3, NNGP[P:, :P], np.ones(2)), "nngp_new"),
    "a variance without closed form": (lambda: LOGISTIC.predict(NTK[P:, :P], 1.0, NNGP[P:, :P], np.ones(TEST)), "nngp_new"),
    "critical rate of no kernel": (lambda: critical_rate(NTK[:P]), "kernel"),
    "critical rate at momentum one": (lambda: critical_rate(NTK, 1.0), "momentum"),
    "critical rate without curvature": (lambda: critical_rate(NTK, 0.0, 0.0), "curvature"),
    "test inputs of another dimension": (lambda: KernelDynamics.of(NET, ntk, DESCENT, X[:P], Y, X[P:, :2]), "X_test"),
    "negative gamma0": (lambda: KernelDynamics.of(NET, ntk, DESCENT, X[:P], Y, gamma0=-1.0), "gamma0"),
    "no net": (lambda: KernelDynamics.of("mlp", ntk, DESCENT, X[:P], Y), "net"),
    "plot without a folder": (lambda: GIVEN.modes.plot("/nowhere/at/all.png"), "path"),
    "plot to a number": (lambda: GIVEN.modes.plot(5), "path"),
    "plot without a format": (lambda: GIVEN.modes.plot("modes.doc"), "path"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_calls(name):
    call, field = REFUSED[name]
    with pytest.raises(InputError) as error:
        call()
    assert error.value.field == field and error.value.hint


def test_a_zero_kernel_has_no_critical_rate():
    assert critical_rate(np.zeros((3, 3))) == np.inf
    still = KernelDynamics(np.zeros((3, 3)), np.ones(3), DESCENT, np.eye(3))
    assert still.critical_lr == np.inf and not still.at(math.inf).f.any() and "inf" in str(still)
