"""The march against nets across activations and feature-learning strengths, and on a hundred digits with ten classes."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp

GRAM = np.array([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]])
X = np.sqrt(3) * np.linalg.cholesky(GRAM)
TASK = tp.Task(X, [1.0, -1.0, 0.5])
ACTIVATIONS = {"tanh": (tp.tanh, 0.3), "relu": (tp.relu, 0.1), "gelu": (tp.gelu, 0.1)}
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)
every_strength = pytest.mark.parametrize("gamma0", [0.05, 1.0, 4.0])


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


def compared(sol, ens):
    """Rms deviation of f and its rms combined standard error."""
    assert sol.success and ens.success, sol.message
    return rms(ens.f[0].mean(axis=0) - sol.f), rms(np.hypot(ens.stderr("f")[0], sol.stderr("f")))


def problem(name, gamma0):
    """Rates fall with gamma0 squared past one: kernels grow by as much, and nets would leave the stable range."""
    activation, lr = ACTIVATIONS[name]
    return tp.mlp(2, activation), tp.GradientDescent(lr / max(1.0, gamma0), 16)


@pytest.mark.parametrize(("name", "gamma0"), [("tanh", 4.0), ("relu", 0.05), ("gelu", 1.0)])
def test_march_follows_nets(name, gamma0):
    net, training = problem(name, gamma0)
    sol = tp.solve(tp.limit(net, tp.muP, training), TASK, gamma0, samples=2048)
    ens = tp.simulate(net, tp.muP, training, TASK, gamma0, (256,), 48, centred=True, times=(0, 16), progress=False)
    deviation, error = compared(sol, ens)
    assert error <= 0.01 and deviation <= 3 * error + 1 / 256


@pytest.mark.slow
@every_activation
@every_strength
def test_march_follows_nets_in_full(name, gamma0):
    net, training = problem(name, gamma0)
    sol = tp.solve(tp.limit(net, tp.muP, training), TASK, gamma0, samples=16384)
    ens = tp.simulate(net, tp.muP, training, TASK, gamma0, (1000,), 160, centred=True, times=(0, 16), progress=False)
    deviation, error = compared(sol, ens)
    assert error <= 0.003 and deviation <= 2 * error


@every_activation
def test_a_rate_past_stability_is_reported(name):
    activation, _ = ACTIVATIONS[name]
    theory = tp.limit(tp.mlp(2, activation), tp.muP, tp.GradientDescent(200.0, 40))
    sol = tp.solve(theory, TASK, 1.0, samples=512, replicates=2)
    assert sol.status is tp.Status.DIVERGED and "lower lr" in sol.message
    assert 0 < sol.steps < 40 and np.isfinite(sol.f).all()


@pytest.mark.slow
def test_a_hundred_digits_with_ten_classes():
    """Ten outputs, cross-entropy: predictions of the nets and of the limit at all times."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    chosen = np.random.default_rng(0).permutation(len(digits.data))[:100]
    data = digits.data[chosen]
    data = np.sqrt(data.shape[1]) * data / np.linalg.norm(data, axis=1, keepdims=True)
    task = tp.Task(data, digits.target[chosen])
    net, training = tp.mlp(2, tp.tanh), tp.GradientDescent(1.0, 20, tp.CrossEntropy())
    method = tp.March(tol=3e-3, recorded=(0,))
    sol = tp.solve(tp.limit(net, tp.muP, training), task, 1.0, samples=16384, method=method)
    ens = tp.simulate(net, tp.muP, training, task, 1.0, (1000,), 48, centred=True, times=(0,), progress=False)
    deviation, error = compared(sol, ens)
    assert error <= 0.003 and deviation <= 2 * error
