"""Symmetries and boundaries that every solver keeps, whatever the problem."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import tp_solver as tp

GRAM = np.array([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]])
X = np.sqrt(3) * np.linalg.cholesky(GRAM)
Y = np.array([1.0, -1.0, 0.5])
NEW = np.array([[0.3, 0.2, 0.1], [-1.0, 0.4, 2.0]])
STEPS = 6
W0, W1, READOUT = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w")


def tied(x):
    return READOUT @ tp.tanh(W1 @ tp.tanh(W1 @ tp.tanh(W0 @ x))) + tp.bias("b")


def linear_residual(x):
    h = W0 @ x
    return READOUT @ tp.linear(h + W1 @ tp.linear(h)) + tp.bias("b")


NETS = {"mlp": tp.mlp(2, tp.tanh), "tied": tp.program(tied), "linear": tp.mlp(2, tp.linear), "linear residual": tp.program(linear_residual)}
# 512 sites and a tolerance that keeps the ranks small: the laws are exact or relative to the solver's own error
METHODS = {"march": tp.March(tol=0.01, bias=False), "linear": tp.Linear(), "kernel": tp.KernelRegime()}
SOLVERS = [("mlp", "march"), ("tied", "march"), ("linear", "linear"), ("linear residual", "linear"), ("mlp", "kernel"), ("tied", "kernel")]
every_solver = pytest.mark.parametrize(("net", "method"), SOLVERS, ids=[f"{n}, {m}" for n, m in SOLVERS])


def solved(net, method, x=X, y=Y, x_test=None, parameterization=tp.muP, lr=0.3, seed=0, samples=512):
    task = tp.Task(x, y, x_test, None if x_test is None else np.zeros(len(x_test)))
    theory = tp.limit(NETS[net], parameterization, tp.GradientDescent(lr, STEPS))
    return tp.solve(
        theory, task, 1.2, samples=samples, replicates=4, seed=seed, method=METHODS[method] if isinstance(method, str) else method
    )


@cache
def reference(net, method):
    return solved(net, method)


def results(sol):
    T = sol.steps
    return [sol.f, sol.loss, sol.Phi(1, T, 2), sol.Phi(sol.depth, 2, T), sol.G(1, T, T), sol.G(sol.depth, 0, 3), sol.ntk(T)]


def same_bits(a, b):
    return all(np.array_equal(u, v) for u, v in zip(results(a), results(b), strict=True))


@every_solver
def test_same_seed_same_bits(net, method):
    assert same_bits(reference(net, method), solved(net, method))
    assert np.array_equal(solved(net, method, seed=1).f, reference(net, method).f) == (method != "march")


@every_solver
def test_theta_shift_changes_no_bit(net, method):
    """(a, b, c) -> (a + theta, b - theta, c - 2 theta), one theta for all layers or one for each."""
    for other in (tp.mean_field, tp.muP.shifted(2), tp.muP.shifted((1, 0, -3))):
        assert same_bits(reference(net, method), solved(net, method, parameterization=other)), other.name


@cache
def watched(net, method):
    """With two new points, and a training point once more."""
    return solved(net, method, x_test=np.concatenate([NEW, X[1:2]]))


@every_solver
def test_test_points_leave_the_training_results_unchanged(net, method):
    """Bit for bit where trajectories are computed; closed forms multiply larger matrices, which rounds differently."""
    if method != "kernel":
        assert same_bits(reference(net, method), watched(net, method))
    for a, b in zip(results(reference(net, method)), results(watched(net, method)), strict=True):
        assert a == pytest.approx(b, abs=1e-12)


@every_solver
def test_a_test_point_equal_to_a_training_point(net, method):
    sol = watched(net, method)
    # the march replaces what it truncates of a test activation (a share of at most tol per layer) by noise on 512 sites
    slack = 0.005 if method == "march" else 1e-10
    assert sol.f_test[:, 2] == pytest.approx(sol.f[:, 1], abs=slack)
    assert np.abs(sol.f_test[-1, 0] - sol.f[-1]).min() > 10 * slack, "other points differ"


def test_without_truncation_the_test_point_is_the_training_point():
    """Up to the sampled responses to directions of the very last backward pass, which vanish in law."""
    sol = solved("mlp", tp.March(tol=1e-13, bias=False), x_test=X[1:2])
    assert sol.f_test[:, 0] == pytest.approx(sol.f[:, 1], abs=3e-4)


@every_solver
def test_predictions_afterwards_are_those_of_test_points(net, method):
    """The number of points asked for at once plays no part, nor whether the run knew of them."""
    new = np.concatenate([NEW, X[1:2]])
    assert watched(net, method).predict(new) == pytest.approx(watched(net, method).f_test[-1], abs=1e-12)
    assert reference(net, method).predict(new) == pytest.approx(watched(net, method).f_test[-1], abs=1e-12)


def deviation(a, b, sol, other, method):
    """Largest difference: in standard errors of the two for the march, else in units of 1e-10."""
    if method != "march":
        return np.abs(a - b).max() / 1e-10
    return np.sqrt(np.mean((a - b) ** 2)) / np.sqrt(np.mean(sol.stderr("f") ** 2) + np.mean(other.stderr("f") ** 2))


@every_solver
def test_permuting_the_points_permutes_the_results(net, method):
    order = [2, 0, 1]
    sol, other = reference(net, method), solved(net, method, X[order], Y[order])
    assert deviation(other.f, sol.f[:, order], sol, other, method) <= 3
    if method != "march":
        for a, b in zip(results(other)[2:], results(sol)[2:], strict=True):
            assert a == pytest.approx(b[np.ix_(order, order)], abs=1e-10)


@every_solver
def test_two_copies_of_every_point_at_half_the_weight(net, method):
    """P doubles, so that every copy has half the weight 1/P."""
    sol, other = reference(net, method), solved(net, method, np.repeat(X, 2, axis=0), np.repeat(Y, 2))
    assert other.f[:, ::2] == pytest.approx(other.f[:, 1::2], abs=1e-10)
    assert deviation(other.f[:, ::2], sol.f, sol, other, method) <= 3
    assert other.loss == pytest.approx(sol.loss, abs=0.02 if method == "march" else 1e-10)


@pytest.mark.parametrize("method", ["march", "linear", "kernel"])
def test_zero_rates_of_hidden_layers_leave_random_features(method):
    """Only the readout learns: f(t) = y - (1 - lr Phi^L / P)^t y with the Phi^L of initialisation."""
    net = "linear" if method == "linear" else "mlp"
    features = GRAM if method == "linear" else solved(net, "kernel").Phi(2, 0, 0)
    move = np.eye(3) - 0.3 * features / 3
    expected = np.array([Y - np.linalg.matrix_power(move, t) @ Y for t in range(STEPS + 1)])
    frozen = tp.Parameterization("frozen", tp.muP.a, tp.muP.b, tp.muP.c, tp.muP.alpha, eta=(0, 0, 1))
    sol = solved(net, method, lr=(0.0, 0.0, 0.3))
    if method == "march":
        # quasi-random sites: the relative error of <tanh tanh> on 512 of them
        assert sol.f == pytest.approx(expected, abs=0.003)
        assert sol.Phi(2, STEPS, 0) == pytest.approx(sol.Phi(2, 0, 0), abs=0.01 * features.max()), "features do not move"
    else:
        assert sol.f == pytest.approx(expected, abs=1e-10)
        assert sol.Phi(2, STEPS, 0) == pytest.approx(features, abs=1e-10)
    frozen = tp.Parameterization("frozen", tp.muP.a, tp.muP.b, tp.muP.c, tp.muP.alpha, eta=(0, 0, 1))
    assert tp.regime(frozen, NETS[net]).regime is tp.Regime.KERNEL
    assert solved(net, None, parameterization=frozen).f == pytest.approx(expected, abs=1e-10)


@every_solver
def test_kernels_are_symmetric_and_positive(net, method):
    """Phi and G over all times and points are Gram matrices; so is the tangent kernel at each time."""
    sol = reference(net, method)
    times = range(STEPS + 1)
    for layer in range(1, sol.depth + 1):
        for read in (sol.Phi, sol.G):
            gram = np.block([[read(layer, t, s) for s in times] for t in times])
            scale = np.abs(gram).max()
            assert gram == pytest.approx(gram.T, abs=1e-14 * scale)
            assert np.linalg.eigvalsh(gram).min() >= -1e-13 * scale
    for t in times:
        K = sol.ntk(t)
        assert np.abs(K - K.T).max() <= 1e-13 * np.abs(K).max()
        assert np.linalg.eigvalsh(K).min() >= -1e-12 * np.abs(K).max()
        assert 0 <= sol.ntk_alignment(t) <= 1


@pytest.mark.parametrize(("net", "method"), [("mlp", "march"), ("tied", "march"), ("linear", "linear"), ("mlp", "kernel")])
def test_the_loss_of_gradient_flow_never_rises(net, method):
    theory = tp.limit(NETS[net], tp.muP, tp.GradientFlow(6.0, 12))
    sol = tp.solve(theory, tp.Task(X, Y), 1.2, samples=512, replicates=2, method=METHODS[method])
    assert np.all(np.diff(sol.loss) < 1e-9) and sol.loss[-1] < 0.5 * sol.loss[0]
