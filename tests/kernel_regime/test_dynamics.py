"""Function-space dynamics: closed forms against explicit iteration, sampled losses against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import expit, logsumexp, softmax

from tp_solver.errors import BudgetError, InputError
from tp_solver.kernel_regime import dynamics as dynamics_module
from tp_solver.kernel_regime.dynamics import dynamics
from tp_solver.program.losses import CrossEntropy, Logistic
from tp_solver.program.training import GradientDescent, GradientFlow

P, TEST, STEPS = 5, 3, 12
ALL = P + TEST
RNG = np.random.default_rng(3)
KERNEL, START = (a @ a.T / 10 for a in RNG.standard_normal((2, ALL, 10)))
Y = RNG.standard_normal((P, 2))
SIGNS = np.sign(Y[:, 0])
ONE_HOT = np.eye(3)[[0, 2, 1, 1, 0]]


def joined(k):
    return np.concatenate([k.f, k.f_test], axis=1)


def test_squared_error_is_the_explicit_iteration():
    """f(t + 1) = f(t) + K (y - f) / P and Cov(t + 1) = M Cov M^T, to rounding."""
    held = np.ones((TEST, 2))
    k = dynamics(KERNEL, Y, GradientDescent(lr=1.0, steps=STEPS), START, y_test=held)
    f, cov = np.zeros((ALL, 2)), START
    step = np.eye(ALL)
    step[:, :P] -= KERNEL[:, :P] / P
    for t in range(STEPS + 1):
        assert joined(k)[t] == pytest.approx(f, abs=1e-12)
        for output in range(2):
            assert k.f_cov[t, :, :, output] == pytest.approx(cov, abs=1e-12)
        assert k.loss[t] == pytest.approx(((f[:P] - Y) ** 2).sum() / (2 * P) + np.trace(cov[:P, :P]) / P, abs=1e-12)  # two outputs
        assert k.loss_test[t] == pytest.approx(((f[P:] - held) ** 2).sum() / (2 * TEST) + np.trace(cov[P:, P:]) / TEST, abs=1e-12)
        f = f + KERNEL[:, :P] @ (Y - f[:P]) / P
        cov = step @ cov @ step.T
    assert not k.f_stderr.any() and k.first_bad is None
    assert k.f.shape == (STEPS + 1, P, 2) and k.f_test.shape == (STEPS + 1, TEST, 2)


def test_singular_kernels():
    """Duplicated points and a kernel of rank two: no division by the vanishing eigenvalues."""
    x = np.random.default_rng(0).standard_normal((ALL, 2))
    x[1] = x[0]
    kernel = x @ x.T
    k = dynamics(kernel, Y, GradientDescent(lr=1.0, steps=STEPS), START)
    f = np.zeros((ALL, 2))
    for _ in range(STEPS):
        f = f + kernel[:, :P] @ (Y - f[:P]) / P
    assert joined(k)[-1] == pytest.approx(f, abs=1e-12)
    flow = dynamics(kernel, Y, GradientFlow(time=4.0, steps=2), START)
    assert joined(flow)[-1] == pytest.approx(expm_mean(generator(kernel), 4.0), abs=1e-11)


def generator(kernel):
    """d/dt (f, y) = A (f, y): the affine flow as one linear flow."""
    a = np.zeros((ALL + P, ALL + P))
    a[:ALL, :P] -= kernel[:, :P] / P
    a[:ALL, ALL:] += kernel[:, :P] / P
    return a


def expm_mean(a, time):
    return (expm(time * a) @ np.concatenate([np.zeros((ALL, 2)), Y]))[:ALL]


def test_flow_is_the_matrix_exponential():
    k = dynamics(KERNEL, Y, GradientFlow(time=6.0, steps=3), START)
    for row, time in enumerate((0.0, 2.0, 4.0, 6.0)):
        move = expm(time * generator(KERNEL))[:ALL, :ALL]
        assert joined(k)[row] == pytest.approx(expm_mean(generator(KERNEL), time), abs=1e-12)
        assert k.f_cov[row, :, :, 0] == pytest.approx(move @ START @ move.T, abs=1e-12)


@pytest.mark.parametrize("training", [GradientDescent(lr=1.0, steps=STEPS), GradientFlow(time=6.0, steps=4)], ids=["descent", "flow"])
def test_sampled_covariance_agrees_with_the_closed_form(training, monkeypatch):
    """The Monte-Carlo path on the squared error: antithetic draws make the mean exact, the covariance is within five errors."""
    exact = dynamics(KERNEL, Y, training, START)
    monkeypatch.setattr(dynamics_module, "is_affine", lambda *_: False)
    sampled = dynamics(KERNEL, Y, training, START, draws=4096)
    assert joined(sampled) == pytest.approx(joined(exact), abs=1e-8)  # the tolerance of the flow's integrator
    assert np.all(np.abs(sampled.loss - exact.loss) <= 5 * sampled.loss_stderr + 1e-9) and sampled.loss_stderr.max() < 0.02
    variance, expected = (np.einsum("taak->tak", k.f_cov) for k in (sampled, exact))
    assert np.abs(variance - expected).max() <= 0.02 * expected.max()
    assert np.all(np.abs(variance - expected) <= 5 * sampled.variance_stderr + 1e-9)
    assert sampled.f_cov == pytest.approx(exact.f_cov, abs=0.03 * expected.max())


def brute_force(slope, outputs, draws):
    f = np.einsum("ab,nbk->nak", np.linalg.cholesky(START), np.random.default_rng(9).standard_normal((draws, ALL, outputs)))
    for _ in range(STEPS):
        f = f - np.einsum("ap,npk->nak", KERNEL[:, :P] / P, slope(f[:, :P]))
    return f


@pytest.mark.parametrize(
    ("loss", "y", "slope", "expected_loss"),
    [
        (
            Logistic(),
            SIGNS,
            lambda f: -SIGNS[:, None] * expit(-SIGNS[:, None] * f),
            lambda f: np.logaddexp(0, -SIGNS * f[..., 0]),
        ),
        (
            CrossEntropy(),
            ONE_HOT,
            lambda f: softmax(f, axis=-1) - ONE_HOT,
            lambda f: logsumexp(f, axis=-1) - (ONE_HOT * f).sum(axis=-1),
        ),
    ],
    ids=["logistic", "cross-entropy"],
)
def test_other_losses_against_brute_force(loss, y, slope, expected_loss):
    """Mean and variance within four combined standard errors of independent pseudo-random draws, and those errors are small."""
    draws, outputs = 20_000, 1 if y.ndim == 1 else y.shape[1]
    f = brute_force(slope, outputs, draws)
    k = dynamics(KERNEL, y, GradientDescent(lr=1.0, steps=STEPS, loss=loss), START)
    mean, variance = f.mean(axis=0), f.var(axis=0)
    mean_error = np.hypot(f.std(axis=0) / np.sqrt(draws), k.f_stderr[-1])
    variance_error = np.hypot(((f - mean) ** 2).std(axis=0) / np.sqrt(draws), k.variance_stderr[-1])
    assert np.all(np.abs(joined(k)[-1] - mean) <= 4 * mean_error)
    assert np.all(np.abs(np.einsum("aak->ak", k.f_cov[-1]) - variance) <= 4 * variance_error)
    value = expected_loss(f[:, :P])
    loss_error = np.hypot(value.mean(axis=1).std() / np.sqrt(draws), k.loss_stderr[-1])
    assert abs(k.loss[-1] - value.mean()) <= 4 * loss_error < 0.02
    assert np.isnan(k.loss_test).all()
    assert k.f_stderr.max() < 0.005 and k.variance_stderr.max() < 0.03 * variance.max()


def test_centred_losses_are_deterministic():
    k = dynamics(KERNEL, SIGNS, GradientDescent(lr=1.0, steps=STEPS, loss=Logistic()))
    f = np.zeros((ALL, 1))
    for t in range(STEPS + 1):
        assert joined(k)[t] == pytest.approx(f, abs=1e-13)
        f = f + KERNEL[:, :P] @ (SIGNS[:, None] * expit(-SIGNS[:, None] * f[:P])) / P
    assert not k.f_cov.any() and not k.f_stderr.any()


def test_covariance_scales_and_mean_does_not():
    """Cov f_0 / gamma0^2: for the squared error the mean is that of every gamma0."""
    training = GradientDescent(lr=1.0, steps=STEPS)
    one, quarter, centred = (dynamics(KERNEL, Y, training, c) for c in (START, START / 4, None))
    assert joined(one) == pytest.approx(joined(quarter), abs=0) and joined(one) == pytest.approx(joined(centred), abs=0)
    assert one.f_cov == pytest.approx(4 * quarter.f_cov, rel=1e-13)
    assert not centred.f_cov.any()


def test_seeds():
    training = GradientDescent(lr=1.0, steps=3, loss=Logistic())
    a, b, c = (dynamics(KERNEL, SIGNS, training, START, draws=256, seed=s) for s in (0, 0, 1))
    assert np.array_equal(a.f_cov, b.f_cov) and not np.array_equal(a.f_cov, c.f_cov)


def test_test_points_do_not_touch_training():
    training = GradientDescent(lr=1.0, steps=STEPS)
    alone, more = dynamics(KERNEL[:P, :P], Y, training), dynamics(KERNEL, Y, training)
    assert alone.f == pytest.approx(more.f, abs=1e-14) and alone.f_test.shape == (STEPS + 1, 0, 2)


def test_divergence_is_reported():
    """Factor (1 - lambda)^t overflows: the row where that happens is named, earlier rows are finite."""
    k = dynamics(300 * KERNEL, SIGNS, GradientDescent(lr=1.0, steps=400), START)
    assert k.first_bad is not None and 0 < k.first_bad <= 400
    assert np.isfinite(joined(k)[: k.first_bad]).all()
    assert dynamics(KERNEL, SIGNS, GradientDescent(lr=1.0, steps=400)).first_bad is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kernel": np.ones((3, 4))}, "kernel"),
        ({"kernel": -np.eye(ALL)}, "kernel"),
        ({"kernel": np.full((ALL, ALL), np.nan)}, "kernel"),
        ({"y": np.ones(ALL + 1)}, "y"),
        ({"training": GradientDescent}, "training"),
        ({"f0_covariance": np.eye(P)}, "f0_covariance"),
        ({"y_test": np.ones((TEST + 1, 2))}, "y_test"),
        ({"draws": 3}, "draws"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input(change, field):
    arguments = {"kernel": KERNEL, "y": Y, "training": GradientDescent(lr=1.0, steps=2), "f0_covariance": START} | change
    with pytest.raises(InputError) as error:
        dynamics(**arguments)
    assert error.value.field == field and error.value.hint


def test_a_covariance_that_does_not_fit_is_refused():
    with pytest.raises(BudgetError) as error:
        dynamics(np.eye(200), np.ones(5), GradientDescent(lr=1.0, steps=20_000), np.eye(200))
    assert error.value.hint
