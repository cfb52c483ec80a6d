"""Regularised training in function space: against the matrix exponential, ordinary training, iteration, and trained nets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import expm

import tp_solver as tp
from tp_solver.errors import InputError, ProgramError
from tp_solver.finite.robust import train_robustly
from tp_solver.kernel_regime.compute import kernels
from tp_solver.kernel_regime.dynamics import KernelDynamics
from tp_solver.kernel_regime.jacobian import matrix
from tp_solver.kernel_regime.robust_training import robust_training

SW, SB = 1.5, 0.3
NET = tp.mlp(depth=2, activation=tp.erf, bias=SB, bias_rate=SB**2)  # three weight layers
PAR = tp.ntk.times(SW)
X = np.random.default_rng(0).standard_normal((6, 2))
X_TEST = np.random.default_rng(1).standard_normal((4, 2))


def target(x):
    return np.sin(2 * x[:, 0]) * np.cos(x[:, 1])


TASK = tp.Task(X, target(X), X_TEST, target(X_TEST))
PENALTY = 0.1
FLOW = tp.GradientFlow(time=60.0, steps=6)


@pytest.fixture(scope="module")
def solved():
    return robust_training(NET, PAR, FLOW, TASK, PENALTY)


# against finite nets


def trained(widths, seeds):
    """Mean over nets of the largest deviation from the linear equation started where the net starts: of f and of (f, df/dx) on the
    training points, and of f on the test points, per width."""
    descent = tp.GradientDescent(lr=0.5, steps=120)
    theory = robust_training(NET, PAR, descent, TASK, PENALTY)
    nets = train_robustly(NET, PAR, descent, TASK, PENALTY, widths=widths, seeds=seeds, progress=False)
    assert nets.F_test is not None
    found = np.concatenate([nets.F, nets.F_test], axis=3)
    expected = np.array([[theory.evolve(F[0], 120) for F in row] for row in found])
    gap = np.abs(found[:, :, -1] - expected)
    return gap[:, :, :6, 0].max(axis=2).mean(axis=1), gap[:, :, :6].max(axis=(2, 3)).mean(axis=1), gap[:, :, 6:, 0].max(axis=2).mean(axis=1)


@pytest.mark.parametrize(("widths", "seeds"), [((16, 64), 16), pytest.param((64, 256), 24, marks=pytest.mark.slow)], ids=["small", "full"])
def test_trained_nets_approach_the_linear_equation(widths, seeds):
    """Card A7: at time 60 (120 steps at rate 0.5) the error on training points halves or better where the width is four times larger, and
    is at most 0.2 on test points."""
    f, joint, test = trained(widths, seeds)
    assert f[0] >= 2 * f[1]
    assert joint[0] >= 2 * joint[1]
    assert test[1] <= 0.2


# training in function space -------------------------------------------------------------------------------------------


def generator(theory, penalty):
    """dF/dt = -A F + b on all points."""
    everything, train = matrix(theory.kernels.ntk), 3 * 6
    weight = np.tile([1.0, penalty, penalty], 6) / 6
    a = np.zeros_like(everything)
    a[:, :train] = everything[:, :train] * weight
    y = np.zeros((6, 3))
    y[:, 0] = TASK.y
    return a, y.ravel()


def exact(theory, penalty, time):
    """Mean and covariance by the exponential of the whole linear system, the targets as further constants."""
    a, y = generator(theory, penalty)
    size, train = len(a), len(y)
    whole = np.zeros((size + train, size + train))
    whole[:size, :size], whole[:size, size:] = -a, a[:, :train]
    move = expm(time * whole)[:size]
    return move[:, size:] @ y, move[:, :size] @ matrix(theory.kernels.nngp) @ move[:, :size].T


def test_flow_is_the_matrix_exponential(solved):
    for row, time in ((0, 0.0), (2, 20.0), (6, 60.0)):
        mean, covariance = exact(solved, PENALTY, time)
        now = solved.at(time)
        assert np.concatenate([now.F, now.F_test]).ravel() == pytest.approx(mean, abs=1e-9)
        assert matrix(now.covariance) == pytest.approx(covariance, abs=1e-9)
        assert solved.F[row] == pytest.approx(now.F, abs=1e-12) and solved.F_test[row] == pytest.approx(now.F_test, abs=1e-12)
        variance = covariance.diagonal().reshape(10, 3)
        assert solved.variance[row] == pytest.approx(variance[:6], abs=1e-9)
        assert solved.variance_test[row] == pytest.approx(variance[6:], abs=1e-9)
        assert solved.loss[row] == pytest.approx(((now.F[:, 0] - TASK.y) ** 2 + variance[:6, 0]).mean() / 2, abs=1e-9)
        assert solved.slope_test[row] ** 2 == pytest.approx((now.F_test[:, 1:] ** 2 + variance[6:, 1:]).sum(axis=1).mean(), abs=1e-9)


def test_the_end_does_not_depend_on_the_penalty(solved):
    """Only on there being one: then the training points keep their labels and lose their slopes."""
    end = solved.at(math.inf)
    other = robust_training(NET, PAR, FLOW, TASK, 1.0).at(math.inf)
    for name in ("F", "F_test", "covariance"):
        assert getattr(end, name) == pytest.approx(getattr(other, name), abs=1e-7)
    assert end.F[:, 0] == pytest.approx(TASK.y, abs=1e-8) and end.F[:, 1:] == pytest.approx(0.0, abs=1e-8)
    assert np.abs(end.covariance[:6]).max() < 1e-8 and np.abs(end.covariance[6:, 0, 6:, 0]).max() > 1e-3
    plain = robust_training(NET, PAR, FLOW, TASK, 0.0).at(math.inf)
    assert np.abs(plain.F_test[:, 0] - end.F_test[:, 0]).max() > 0.1
    assert np.abs(solved.at(60.0).F_test[:, 0] - end.F_test[:, 0]).max() > 0.05  # 60 is not the end


def test_without_penalty_it_is_ordinary_training():
    plain = robust_training(NET, PAR, FLOW, TASK, 0.0)
    usual = KernelDynamics.of(NET, PAR, FLOW, X, TASK.y, X_TEST)
    run = usual.run()
    assert plain.F[:, :, 0] == pytest.approx(run.f[..., 0], abs=1e-10) and plain.F_test[:, :, 0] == pytest.approx(
        run.f_test[..., 0], abs=1e-10
    )
    assert plain.at(7.0).covariance[:, 0, :, 0] == pytest.approx(usual.at(7.0).f_cov, abs=1e-10)
    assert plain.critical_lr == pytest.approx(usual.critical_lr)


def test_descent_with_momentum_and_rates_is_the_explicit_iteration():
    """A rate per matrix, the heavy ball, and a divergence above the critical rate, which a penalty lowers."""
    rates = {"W0": 0.2, "W1": 0.4, "W2": 0.1}
    training = tp.GradientDescent(lr=rates, steps=9, momentum=0.6)
    theory = robust_training(NET, PAR, training, TASK, PENALTY)
    plain = kernels(NET, PAR, np.concatenate([X, X_TEST]), layers=True)
    spread = training.rates(NET)
    assert theory.lr * theory.kernels.ntk[:, 0, :, 0] == pytest.approx(sum(spread[m] * k for m, k in plain.parts.items()), abs=1e-12)
    a, y = generator(theory, PENALTY)
    F = last = np.zeros(len(a))
    for _ in range(9):
        F, last = F + theory.lr * a[:, : len(y)] @ (y - F[: len(y)]) + 0.6 * (F - last), F
    assert theory.F[-1].ravel() == pytest.approx(F[: len(y)], abs=1e-12)
    assert theory.at(9).F_test.ravel() == pytest.approx(F[len(y) :], abs=1e-12)
    assert theory.evolve(np.zeros((10, 3)), 9).ravel() == pytest.approx(F, abs=1e-12)
    assert theory.critical_lr == pytest.approx(2 * 1.6 * 6 / np.linalg.eigvals(6 * a[:18, :18]).real.max())
    stronger = robust_training(NET, PAR, training, TASK, 10.0)
    assert stronger.critical_lr < theory.critical_lr
    fast = tp.GradientDescent(lr=1.01 * robust_training(NET, PAR, FLOW, TASK, 10.0).critical_lr, steps=5)
    with pytest.raises(InputError, match="diverges"):
        robust_training(NET, PAR, fast, TASK, 10.0).at(math.inf)


def test_new_points_and_several_outputs(solved):
    X_new = np.concatenate([X_TEST[1:3], X[:1]])
    expected = np.concatenate([solved.at(20.0).F_test[1:3], solved.at(20.0).F[:1]])
    assert solved.predict(X_new, 20.0) == pytest.approx(expected, abs=1e-12)
    two = tp.Task(X, np.stack([TASK.y, -2 * TASK.y], axis=1))
    several = robust_training(NET, PAR, FLOW, two, PENALTY, gamma0=0.0)
    assert several.F.shape == (7, 6, 3, 2) and several.F_test is None and several.loss_test is None
    assert several.F[..., 0] == pytest.approx(solved.F, abs=1e-12) and several.F[..., 1] == pytest.approx(-2 * solved.F, abs=1e-12)
    assert several.at(20.0).covariance is None and not several.variance.any()
    assert several.loss == pytest.approx(5 * ((solved.F[:, :, 0] - TASK.y) ** 2).mean(axis=1) / 2, abs=1e-12)


def test_strength_scales_the_initial_function(solved):
    strong = robust_training(NET, PAR, FLOW, TASK, PENALTY, gamma0=2.0)
    assert strong.variance_test == pytest.approx(solved.variance_test / 4, abs=1e-12)
    assert np.abs(strong.F - solved.F).max() < 1e-12


def test_prints_and_plots(solved, tmp_path):
    text = str(solved)
    assert "penalty 0.1" in text and "test rms |df/dx|" in text and len(text.splitlines()) == 10
    solved.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="path"):
        solved.plot(tmp_path / "nowhere" / "a.png")


def test_bad_training(solved):
    with pytest.raises(ProgramError, match="continuous second derivative"):
        robust_training(tp.mlp(depth=2, activation=tp.relu), PAR, FLOW, TASK, 0.1)
    with pytest.raises(InputError, match="penalty"):
        robust_training(NET, PAR, FLOW, TASK, -0.1)
    with pytest.raises(InputError, match="squared error"):
        robust_training(NET, PAR, tp.GradientFlow(1.0, 1, tp.Logistic()), tp.Task(X, np.sign(TASK.y)), 0.1)
    with pytest.raises(InputError, match="task"):
        robust_training(NET, PAR, FLOW, X, 0.1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="F0"):
        solved.evolve(np.zeros((6, 3)), 1.0)
    with pytest.raises(InputError, match="time"):
        solved.at(-1.0)
    with pytest.raises(InputError, match="X2"):
        solved.predict(np.zeros((2, 3)), 1.0)
