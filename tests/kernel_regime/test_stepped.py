"""Minibatches and schedules in the kernel regime: function space against a linear model trained in weight space, and against nets."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp

RNG = np.random.default_rng(7)
FEATURES = RNG.standard_normal((9, 5)) / 2
P = 6
Y = np.sign(RNG.standard_normal(P))
RULES = {
    "minibatches": {"batches": tp.Batches(2)},
    "a rest": {"batches": tp.Batches(4, seed=3)},
    "schedule": {"schedule": tp.warmup(3) * tp.cosine(0.1)},
    "everything": {"batches": tp.Batches(4, None), "schedule": tp.step_decay(5, 0.5), "momentum": 0.6},
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
LOSSES = {
    "squared error": (tp.SquaredError(), lambda f, y: y - f),
    "logistic": (tp.Logistic(), lambda f, y: y / (1 + np.exp(y * f))),
}


def weight_space(training, error, start):
    """Outputs (steps + 1, 9) of a linear model with features as above, trained on the first P rows by the rule's own words."""
    w, velocity, out = np.zeros(5), np.zeros(5), []
    p, factors = training.point_weights(P), training.schedule.values(training.steps)
    for t in range(training.steps + 1):
        f = start + FEATURES @ w
        out.append(f)
        if t < training.steps:
            velocity = training.momentum * velocity + FEATURES[:P].T @ (p[t] * error(f[:P], Y))
            w = w + training.lr * factors[t] * velocity
    return np.array(out)


@every_rule
@pytest.mark.parametrize("loss", LOSSES)
def test_function_space_is_weight_space(rule, loss):
    kind, error = LOSSES[loss]
    training = tp.GradientDescent(lr=0.8, steps=12, loss=kind, **rule)
    found = tp.KernelDynamics(FEATURES @ FEATURES.T, Y, training).run()
    expected = weight_space(training, error, np.zeros(9))
    assert found.f[..., 0] == pytest.approx(expected[:, :P], abs=1e-12)
    assert found.f_test[..., 0] == pytest.approx(expected[:, P:], abs=1e-12)


@every_rule
def test_covariance_is_that_of_a_random_start(rule):
    """f is affine in the initial function: push every initial basis function through the weight space."""
    training = tp.GradientDescent(lr=0.8, steps=12, **rule)
    nngp = FEATURES @ FEATURES.T + np.eye(9)
    dynamics = tp.KernelDynamics(FEATURES @ FEATURES.T, Y, training, nngp)
    error = LOSSES["squared error"][1]
    zero = weight_space(training, error, np.zeros(9))
    columns = np.stack([weight_space(training, error, e) - zero for e in np.eye(9)], axis=-1)
    expected = np.einsum("tai,ij,tbj->tab", columns, nngp, columns)
    assert dynamics.run().f_cov[..., 0] == pytest.approx(expected, abs=1e-12)
    for t in (0, 7, 12):
        now = dynamics.at(t)
        assert now.f == pytest.approx(zero[t, :P], abs=1e-12)
        assert now.f_cov == pytest.approx(expected[t], abs=1e-12)
    with pytest.raises(tp.InputError, match="time"):
        dynamics.at(13)
    with pytest.raises(tp.InputError, match="time"):
        dynamics.at(np.inf)


def test_the_lazy_limit_of_a_march():
    """gamma0 -> 0 of the feature-learning march, ten-class minibatches included, is the kernel regime's own dynamics."""
    X = RNG.standard_normal((4, 4))
    task = tp.Task(X * 2 / np.linalg.norm(X, axis=1, keepdims=True), np.array([0, 1, 2, 1]), RNG.standard_normal((2, 4)))
    training = tp.GradientDescent(1.0, 6, tp.CrossEntropy(), momentum=0.5, batches=tp.Batches(2), schedule=tp.cosine(0.2))
    theory = tp.limit(tp.mlp(depth=1, activation=tp.tanh), tp.muP, training)
    lazy = tp.solve(theory, task, gamma0=0.0)
    marched = tp.solve(theory, task, gamma0=0.02, samples=4096, method=tp.March(bias=False))
    assert lazy.success
    assert lazy.f == pytest.approx(marched.f, abs=0.02)
    assert lazy.f_test == pytest.approx(marched.f_test, abs=0.02)
    assert lazy.G(1, 2, 2) == pytest.approx(marched.G(1, 2, 2), abs=0.03 * np.abs(lazy.G(1, 2, 2)).max())
    assert lazy.G(1, 2, 2)[lazy.G(1, 2, 2).diagonal() == 0].size  # points outside the batch have no gradient


def test_a_rate_past_stability_is_reported():
    """Where steps differ there is no critical rate; the loss tells."""
    training = tp.GradientDescent(lr=60.0, steps=40, batches=tp.Batches(2))
    theory = tp.limit(tp.mlp(depth=1, activation=tp.tanh), tp.ntk, training)
    sol = tp.solve(theory, tp.Task(RNG.standard_normal((4, 4)), [1.0, -1.0, 1.0, -1.0]))
    assert sol.status is tp.Status.DIVERGED and "loss has grown" in sol.message


@pytest.mark.parametrize("rule", [{"weight_decay": 0.1}, {"temperature": 0.1}], ids=["decay", "noise"])
def test_rules_that_change_kernels_are_refused(rule):
    training = tp.GradientDescent(lr=0.1, steps=3, **rule)
    with pytest.raises(tp.InputError, match="decay or noise"):
        tp.KernelDynamics(np.eye(3), np.ones(3), training)
    net, task = tp.mlp(depth=1, activation=tp.erf), tp.Task(np.eye(3), np.ones(3))
    with pytest.raises(tp.InputError, match="decay or noise"):
        tp.robust_training(net, tp.ntk, training, task, penalty=0.1)
    with pytest.raises(tp.InputError, match="decay or noise"):
        tp.train_with_twin(net, tp.ntk, training, task, widths=[8], seeds=1)


def test_closed_forms_of_equal_steps_are_refused_elsewhere():
    training = tp.GradientDescent(lr=0.1, steps=3, batches=tp.Batches(2))
    with pytest.raises(tp.InputError, match="minibatches"):
        tp.robust_training(tp.mlp(depth=1, activation=tp.erf), tp.ntk, training, tp.Task(np.eye(3), np.ones(3)), penalty=0.1)
