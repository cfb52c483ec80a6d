"""Training of a bias on the output where features are learned: closed forms, methods against each other, records."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp

GRAM = np.array([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]])
TASK = tp.Task(np.sqrt(3) * np.linalg.cholesky(GRAM), np.array([1.5, -0.5, 1.0]), np.eye(3)[:2])
ALONE = {"W0": 0.0, "W1": 0.0, "W2": 0.0, "b3": 0.4}
RULES = {
    "plain": {},
    "everything": {"momentum": 0.6, "weight_decay": 0.3, "batches": tp.Batches(2), "schedule": tp.cosine(0.1)},
}
LIGHT = tp.March(tol=0.01, bias=False)


def alone(training, y):
    """f(t) of nets whose only trained number is the bias: the update as it is written down, on f itself (gamma0 drops out)."""
    weights, factors = training.point_weights(len(y)), training.schedule.values(training.steps)
    f, v, out = np.zeros(y.shape[1:]), 0.0, [np.zeros(y.shape[1:])]
    for p, factor in zip(weights, factors, strict=True):
        rate = ALONE["b3"] * factor
        v = training.momentum * v + p @ (y - f)
        f = (1 - rate * training.weight_decay) * f + rate * v
        out.append(f)
    return np.array(out)


@pytest.mark.parametrize(("method", "rule"), [("march", "everything"), ("linear", "everything"), ("fixed_point", "plain")])
def test_a_bias_that_learns_alone(method, rule):
    net = tp.mlp(2, tp.tanh if method == "march" else tp.linear, output_bias=True)
    training = tp.GradientDescent(ALONE, 5, **RULES[rule])
    theory = tp.limit(net, tp.muP, training)
    sol = tp.solve(theory, TASK, 1.7, samples=64, replicates=1, method=LIGHT if method == "march" else method)
    expected = np.tile(alone(training, TASK.y), (3, 1)).T
    np.testing.assert_allclose(sol.f, expected, atol=1e-12)
    np.testing.assert_allclose(sol.f_test, expected[:, :2], atol=1e-12)


@pytest.mark.slow
def test_exact_methods_agree():
    """Two outputs: every one has its own bias."""
    task = tp.Task(TASK.X, np.array([[1.0, 0.2], [-1.0, 0.5], [0.5, -0.8]]) + 1, TASK.X_test)
    theory = tp.limit(tp.mlp(2, tp.linear, bias=True, output_bias=True), tp.muP, tp.GradientDescent(0.2, 4))
    exact, swept = (tp.solve(theory, task, 1.2, method=m) for m in ("linear", "fixed_point"))
    np.testing.assert_allclose(swept.f, exact.f, atol=1e-8)
    np.testing.assert_allclose(swept.f_test, exact.f_test, atol=1e-8)


def test_a_solution_comes_back_with_its_bias(tmp_path):
    theory = tp.limit(tp.mlp(1, tp.tanh, output_bias=True), tp.mean_field, tp.GradientDescent(0.3, 4))
    sol = tp.solve(theory, TASK, 1.2, samples=256, replicates=2, method=LIGHT, checkpoint=tmp_path)
    sol.save(tmp_path / "sol.npz")
    back = tp.load(tmp_path / "sol.npz")
    np.testing.assert_array_equal(back.predict(TASK.X_test), sol.predict(TASK.X_test))
    np.testing.assert_allclose(sol.predict(TASK.X_test), sol.f_test[-1], atol=1e-12)
    assert back.theory.program == theory.program
    again = tp.solve(theory, TASK, 1.2, samples=256, replicates=2, method=LIGHT, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.f, sol.f)
