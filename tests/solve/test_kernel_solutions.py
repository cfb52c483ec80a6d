"""Solutions of the kernel regime: momentum, rates per matrix, the critical rate, new points, files."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.kernel_regime.compute import kernels
from tp_solver.kernel_regime.dynamics import KernelDynamics

RNG = np.random.default_rng(5)
X, NEW = RNG.standard_normal((5, 4)), RNG.standard_normal((3, 4))
Y = np.array([1.0, -0.5, 0.3, 0.8, -1.0])
NET = tp.mlp(2, tp.erf, bias=0.1, bias_rate=0.01)
TASK = tp.Task(X, Y, NEW, [0.1, 0.2, 0.3])
CRITICAL = KernelDynamics.of(NET, tp.ntk, tp.GradientDescent(1.0, 1), X, Y).critical_lr


def solved(training, task=TASK, gamma0=1.0, parameterization=tp.ntk):
    return tp.solve(tp.limit(NET, parameterization, training), task, gamma0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_solution_is_the_dynamics_of_its_kernels(momentum):
    training = tp.GradientDescent(0.5 * CRITICAL, 30, momentum=momentum)
    sol = solved(training, gamma0=2.0)
    d = KernelDynamics.of(NET, tp.ntk, training, X, Y, NEW, gamma0=2.0)
    for t in (0, 1, 7, 30):
        at = d.at(t)
        assert sol.f[t] == pytest.approx(at.f, abs=1e-12) and sol.f_test[t] == pytest.approx(at.f_test, abs=1e-12)
        assert sol.f_cov[t] == pytest.approx(at.f_cov, abs=1e-12)
    assert sol.details["critical_lr"] == pytest.approx(d.critical_lr, rel=1e-10)
    assert sol.details["lr_over_critical"] == pytest.approx(0.5 / (1 + momentum), rel=1e-10)
    assert sol.success and sol.predict(NEW) == pytest.approx(sol.f_test[-1], abs=1e-12)


def test_momentum_at_gamma0_zero_of_a_feature_learning_net():
    training = tp.GradientDescent(1.0, 20, momentum=0.5)
    sol = solved(training, gamma0=0.0, parameterization=tp.muP)
    assert sol.f[-1] == pytest.approx(KernelDynamics.of(NET, tp.muP, training, X, Y).at(20).f, abs=1e-12) and sol.f_cov is None


@pytest.mark.parametrize("names", [{"W0": 0.0, "W1": 0.0, "W2": 1.0}, (0.0, 0.0, 1.0)], ids=["mapping", "sequence"])
def test_freezing_all_but_the_readout_gives_the_posterior(names):
    """Biases follow the weight before them, so that they are frozen too; momentum gets there in fewer steps (KT.8)."""
    half = 0.5 * solved(tp.GradientDescent(names, 1)).details["critical_lr"]["W2"] * 1.9
    lr = {k: half * v for k, v in names.items()} if isinstance(names, dict) else tuple(half * v for v in names)
    sol = solved(tp.GradientDescent(lr, 4000, momentum=0.9))
    K = kernels(NET, tp.ntk, np.concatenate([X, NEW])).nngp
    weights = np.linalg.solve(K[:5, :5], K[:5])
    assert sol.f_test[-1] == pytest.approx(weights[:, 5:].T @ Y, abs=1e-9)
    assert sol.f_cov[-1] == pytest.approx(K - K[:, :5] @ weights, abs=1e-9)
    assert sol.details["critical_lr"]["W0"] == sol.details["critical_lr"]["b1"] == 0.0 < sol.details["critical_lr"]["W2"]
    assert sol.details["lr_over_critical"] == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_above_the_critical_rate_is_divergence(momentum):
    """However few steps were asked for, and whether or not numbers have left the range; the message names the rate."""
    critical = (1 + momentum) * CRITICAL
    for steps in (3, 100):
        sol = solved(tp.GradientDescent(1.1 * critical, steps, momentum=momentum))
        assert sol.status is tp.Status.DIVERGED and not sol.success
        assert f"critical rate {critical:.4g}" in sol.message and "1.1 times" in sol.message and sol.status.advice in sol.message
        assert len(sol.f) == steps + 1, "finite states are kept"
    assert sol.loss[-1] > 100 * sol.loss[0]
    calm = solved(tp.GradientDescent(0.9 * critical, 100, momentum=momentum))
    assert calm.success and calm.loss[-1] < 0.1 * calm.loss[0] and "critical" not in calm.message


def test_divergence_beyond_the_range_of_numbers():
    sol = solved(tp.GradientDescent(50 * CRITICAL, 400))
    assert sol.status is tp.Status.DIVERGED and 0 < sol.steps < 400
    assert f"f at step {sol.steps + 1}" in sol.message and f"last good state is step {sol.steps}" in sol.message
    assert np.isfinite(sol.f).all() and np.isfinite(sol.f_cov).all() and len(sol.f_cov) == len(sol.f) == len(sol.loss_test)
    assert sol.predict(X) == pytest.approx(sol.f[-1], rel=1e-8)


def test_a_loss_of_falling_curvature_may_go_beyond():
    task = tp.Task(X, np.sign(Y))
    sol = solved(tp.GradientDescent(6 * CRITICAL, 50, tp.Logistic()), task)
    assert sol.success and sol.details["lr_over_critical"] == pytest.approx(1.5, rel=1e-9)
    assert "1.5 times the critical rate" in sol.message and "sure to lower" in sol.message
    flow = solved(tp.GradientFlow(5.0, 2), tp.Task(X, Y))
    assert flow.details == pytest.approx({"critical_lr": CRITICAL}, rel=1e-10)


def test_new_points_of_a_sampled_solution_and_its_file(tmp_path):
    """Predictions come from the stored coefficients: with errors, the same bits from a file, and without them from a new run."""
    sol = solved(tp.GradientDescent(2.0, 15, tp.Logistic(), momentum=0.5), tp.Task(X, np.sign(Y), NEW))
    f, error = sol.kernels.predict(NEW)
    assert f[:, 0] == pytest.approx(sol.f_test[-1], abs=1e-12) and error[:, 0] == pytest.approx(sol.stderr("f_test")[-1], rel=1e-9)
    sol.save(tmp_path / "sol.npz")
    back = tp.load(tmp_path / "sol.npz")
    assert back.theory.training.momentum == 0.5 and np.array_equal(back.predict(NEW), sol.predict(NEW))
    assert back.details == sol.details
    arrays = {k: v for k, v in sol.kernels.arrays().items() if k != "coefficients"}
    older = type(sol.kernels).from_arrays(arrays, sol.theory, sol.task, sol.gamma0)
    assert np.all(np.abs(older.predict(NEW)[0] - f) < 6 * error), "a new run, without the test points: other draws"


def test_what_is_printed():
    theory = tp.limit(NET, tp.ntk, tp.GradientDescent(0.1, 20, momentum=0.9))
    assert str(theory["f"]) == "f_mu(t + 1) = f_mu(t) + beta (f_mu(t) - f_mu(t - 1)) + eta sum_nu K_mu,nu e_nu(t)"
    assert str(theory["beta"]) == "beta = 0.9" and "at rest" in str(theory) and "momentum 0.9" in str(theory)
    plain = tp.limit(NET, tp.ntk, tp.GradientDescent(0.1, 20))
    keys = plain.keys()
    assert "beta" not in keys and ("beta",) not in keys and "momentum" not in str(plain) and "beta" not in str(plain)
    classes = tp.limit(NET, tp.ntk, tp.GradientDescent(0.1, 20, tp.CrossEntropy(), 0.9))
    assert "beta (f_mu,c(t) - f_mu,c(t - 1))" in str(classes["f"])


def test_the_end_of_training_is_the_last_row_of_a_long_run():
    sol = solved(tp.GradientDescent(0.9 * CRITICAL, 4000))
    end = KernelDynamics.of(NET, tp.ntk, tp.GradientDescent(0.9 * CRITICAL, 1), X, Y, NEW).at(math.inf)
    assert sol.f_test[-1] == pytest.approx(end.f_test, abs=1e-7) and sol.f_cov[-1] == pytest.approx(end.f_cov, abs=1e-7)
