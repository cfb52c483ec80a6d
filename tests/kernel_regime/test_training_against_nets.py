"""Trained finite nets against training in function space: three weight layers, erf, eight points (Lee et al., arXiv:1902.06720).

The full ensembles (200 nets of width 256) are marked slow; the others are the same checks at a size that takes seconds.
"""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.kernel_regime.compute import kernels
from tp_solver.kernel_regime.dynamics import KernelDynamics

POINTS, TESTS, DIMENSION = 8, 6, 4
NET, PARAMETERIZATION = tp.mlp(2, tp.erf, bias=0.3, bias_rate=0.09, output_bias=0.3), tp.ntk.times(1.2)
READOUT = {"W0": 0.0, "W1": 0.0, "W2": 1.0}


def task():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((POINTS + TESTS, DIMENSION))
    x *= np.sqrt(DIMENSION) / np.linalg.norm(x, axis=1, keepdims=True)
    return tp.Task(x[:POINTS], 0.5 + np.sin(2 * x[:POINTS, 0]) / 2, x[POINTS:])


TASK = task()
CRITICAL = KernelDynamics.of(NET, PARAMETERIZATION, tp.GradientDescent(1.0, 1), TASK.X, TASK.y).critical_lr


def ensemble(training, seeds, width=256):
    return tp.simulate(NET, PARAMETERIZATION, training, TASK, widths=(width,), seeds=seeds, times=(0,), progress=False)


def against_theory(training, seeds, times):
    """Per time, on the test points: largest deviation of the mean in standard errors, and mean ratio of variances to theory."""
    theory, nets = tp.solve(tp.limit(NET, PARAMETERIZATION, training), TASK), ensemble(training, seeds)
    deviations, ratios = [], []
    for t in times:
        f = nets.f_test[0, :, t]
        deviations.append(np.max(np.abs(f.mean(axis=0) - theory.f_test[t]) / (f.std(axis=0, ddof=1) / np.sqrt(len(f)))))
        ratios.append(np.mean(f.var(axis=0, ddof=1) / np.diag(theory.f_cov[t])[POINTS:]))
    return np.array(deviations), np.array(ratios)


RULES = {
    "descent": tp.GradientDescent(0.5 * CRITICAL, 120),
    "heavy ball": tp.GradientDescent(0.4 * CRITICAL, 60, momentum=0.7),
    "last layer": None,  # its critical rate needs a solution
}


def rule(name):
    if RULES[name] is not None:
        return RULES[name]
    frozen = tp.solve(tp.limit(NET, PARAMETERIZATION, tp.GradientDescent(READOUT, 1)), TASK).details["critical_lr"]["W2"]
    return tp.GradientDescent({k: 0.9 * v * frozen for k, v in READOUT.items()}, 150, momentum=0.8)


@pytest.mark.parametrize("name", RULES)
def test_ensembles_small(name):
    """32 nets, in training and at its end. The ratio of variances has an error of sqrt(2/32) per point; the six points go together."""
    training = rule(name)
    deviations, ratios = against_theory(training, 32, (2, 10, training.steps))
    assert deviations.max() < 3
    assert np.abs(ratios - 1).max() < 2 * np.sqrt(2 / 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_ensembles_of_200_nets(name):
    """At the end of training the mean lies within three standard errors, and the mean ratio of variances is 1 +- 0.1.

    On the way there errors of order 1/n are larger: every mode of a net has a rate of its own.
    """
    training = rule(name)
    deviations, ratios = against_theory(training, 200, (2, 10, training.steps))
    assert deviations[-1] < 3 and ratios[-1] == pytest.approx(1, abs=0.1)
    assert deviations.max() < 4 and ratios == pytest.approx(1, abs=0.2)


def test_the_last_layer_ends_as_the_posterior():
    """The theory that the ensemble above is compared with is the posterior of the Gaussian process."""
    sol = tp.solve(tp.limit(NET, PARAMETERIZATION, rule("last layer")), TASK)
    K = kernels(NET, PARAMETERIZATION, np.concatenate([TASK.X, TASK.X_test])).nngp
    weights = np.linalg.solve(K[:POINTS, :POINTS], K[:POINTS])
    posterior = K - K[:, :POINTS] @ weights
    assert sol.f_test[-1] == pytest.approx(weights[:, POINTS:].T @ TASK.y, abs=1e-3)
    assert np.diag(sol.f_cov[-1])[POINTS:] == pytest.approx(np.diag(posterior)[POINTS:], rel=1e-3)


def test_linear_dynamics_diverge_above_and_converge_below():
    losses = {c: tp.solve(tp.limit(NET, PARAMETERIZATION, tp.GradientDescent(c * CRITICAL, 400)), TASK).loss for c in (0.9, 1.1)}
    assert losses[0.9][-1] < 1e-4 * losses[0.9][0] and losses[1.1][-1] > 1e20 * losses[1.1][0]


def catapult(width, seed):
    """Losses of one net at 0.9 and 1.3 times the critical rate of its own initial kernel, and the final critical rate of the latter."""
    start = ensemble(tp.GradientDescent(0.0, 1), (seed,), width)
    own = 2 * POINTS / np.linalg.eigvalsh(start.ntk(0)[0, 0])[-1]
    runs = [
        tp.simulate(
            NET, PARAMETERIZATION, tp.GradientDescent(c * own, 400), TASK, widths=(width,), seeds=(seed,), times=(0, 400), progress=False
        )
        for c in (0.9, 1.3)
    ]
    end = 2 * POINTS / np.linalg.eigvalsh(runs[1].ntk(400)[0, 0])[-1]
    return runs[0].loss[0, 0], runs[1].loss[0, 0], end / own


def assert_catapulted(calm, thrown, ratio):
    falling = calm[calm > 1e-20]  # below there is rounding
    assert (np.diff(falling) <= 0).all() and calm[-1] < 1e-6 * calm[0]
    assert thrown.max() > 2 * thrown[0] and thrown[-1] < 1e-6 * thrown[0]
    assert ratio > 1.3, "the kernel has fallen until the rate is below critical"


def test_a_finite_net_is_catapulted_small():
    assert_catapulted(*catapult(256, 0))


@pytest.mark.slow
@pytest.mark.parametrize("width", [256, 1024])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_finite_nets_are_catapulted(width, seed):
    assert_catapulted(*catapult(width, seed))
