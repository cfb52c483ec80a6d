"""Kernels on samples of sites: the closed forms where there are some, finite nets and quadrature where there are none."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

import tp_solver as tp
from tp_solver.errors import BudgetError, InputError, ProgramError

D = 5
X = np.random.default_rng(0).standard_normal((4, D))
W0, V0, W1, w = tp.input_matrix("W0"), tp.input_matrix("V0"), tp.hidden_matrix("W1"), tp.readout("w")
RULE = tp.GradientDescent(lr=0.5, steps=4)


def normalised(h):
    return tp.entrywise(lambda a, q: a / sp.sqrt(q), h, tp.average(lambda a: a**2, h))


def tied(x):
    return w @ tp.erf(normalised(W1 @ tp.erf(W1 @ tp.erf(W0 @ x) + tp.bias("b1", 0.5)))) + tp.bias("bo")


TIED = tp.program(tied, "tied, normalised, with biases")
BOTH = tp.program(lambda x: w @ tp.tanh(W1.T @ tp.tanh(W1 @ tp.tanh(W0 @ x))), "both ways")
APART = tp.program(lambda x: w @ tp.tanh(tp.hidden_matrix("V1").T @ tp.tanh(W1 @ tp.tanh(W0 @ x))), "independent")
INSEPARABLE = tp.program(lambda x: w @ tp.entrywise(lambda a, b: sp.tanh(a * b), tp.linear(W0 @ x), V0 @ x), "inseparable")

OVER_GRID = tp.cnn(1, tp.tanh, grid=(4,))


@pytest.mark.parametrize(
    ("net", "parameterization"),
    [(TIED, tp.ntk), (TIED, tp.muP), (tp.mlp(2, tp.erf), tp.mean_field), (tp.mlp(2, tp.erf), tp.standard_1n)],
    ids=["tied-ntk", "tied-muP", "mlp-mean_field", "mlp-standard_1n"],
)
def test_closed_forms(net, parameterization):
    """Every kernel and every part, in the conventions of each parameterization, within its standard errors, which are small."""
    exact = tp.kernels(net, parameterization, X, layers=True)
    found = tp.sampled_kernels(net, parameterization, X, samples=1024, replicates=8)
    for name in ("nngp", "ntk", "Phi", "G"):
        value, error, wanted = (getattr(k, name) for k in (found, found.stderr, exact))
        assert np.sqrt(np.mean(error**2) / np.mean(wanted**2)) < 0.03
        assert np.sqrt(np.mean(((value - wanted) / error) ** 2)) < 2.0, name
        assert np.abs((value - wanted) / error).max() < 5.4, name  # one in a thousand for seven degrees of freedom
    for name, part in exact.parts.items():
        assert found.parts[name] == pytest.approx(part, rel=0, abs=5.4 * found.stderr.parts[name].max()), name


def test_a_matrix_and_its_transpose_against_nets():
    """100 nets of width 256, whose bias is below their noise; independent matrices would be seen."""
    nets = np.array([tp.empirical_ntk(tp.draw(BOTH, tp.ntk, D, 256, seed=k), X)[..., 0, 0] for k in range(100)])
    found, other = (tp.sampled_kernels(net, tp.ntk, X, samples=1024, replicates=8) for net in (BOTH, APART))
    error = nets.std(axis=0, ddof=1) / 10
    assert np.abs((nets.mean(axis=0) - found.ntk) / np.hypot(error, found.stderr.ntk)).max() < 4
    assert np.abs((other.ntk - found.ntk) / np.hypot(other.stderr.ntk, found.stderr.ntk)).max() > 15
    with pytest.raises(ProgramError, match=r"tp\.sampled_kernels"):
        tp.kernels(BOTH, tp.ntk, X)


def test_an_inseparable_map_against_quadrature():
    """<tanh(a b)^2> on the diagonal, by the trapezoidal rule."""
    z = np.linspace(-9, 9, 721)
    weights = np.exp(-(z**2) / 2) / np.sum(np.exp(-(z**2) / 2))
    wanted = [weights @ np.tanh(q * np.outer(z, z)) ** 2 @ weights for q in np.sum(X**2, axis=1) / D]
    found = tp.sampled_kernels(INSEPARABLE, tp.ntk, X, samples=1024, replicates=8)
    assert np.abs((found.nngp.diagonal() - wanted) / found.stderr.nngp.diagonal()).max() < 5.4
    assert found.stderr.nngp.max() < 0.02 * max(wanted)


def test_two_sets_of_points_are_a_block_of_the_whole():
    whole = tp.sampled_kernels(BOTH, tp.ntk, X, samples=1024, replicates=2)
    block = tp.sampled_kernels(BOTH, tp.ntk, X[:1], X[1:], samples=1024, replicates=2)
    for name in ("nngp", "ntk", "Phi", "G"):
        assert np.array_equal(getattr(block, name), getattr(whole, name)[..., :1, 1:])
    assert "sampled, 2 times 1024 sites" in str(whole)


def test_training_with_sampled_kernels(tmp_path):
    """The dynamics of the mean kernels, with standard errors that other seeds bear out; files keep the bits."""
    new, y = X[2:], np.array([1.0, -1.0])
    theory, task = tp.limit(BOTH, tp.ntk, RULE), tp.Task(X[:2], y, new, np.zeros(2))
    sols = [tp.solve(theory, task, gamma0=0.7, samples=1024, seed=s) for s in range(6)]
    sol = sols[0]
    found = tp.sampled_kernels(BOTH, tp.ntk, X, samples=1024)
    direct = tp.KernelDynamics(found.ntk, y, RULE, found.nngp / 0.7**2).at(RULE.steps)
    assert sol.f[-1] == pytest.approx(direct.f, rel=1e-9)
    assert sol.f_cov[-1] == pytest.approx(direct.f_cov, rel=1e-9)
    assert sol.success and "kernels were sampled" in sol.message and sol.details["kernels"]["samples"] == 1024
    scatter = np.std([s.f[-1] for s in sols], axis=0, ddof=1)
    claimed = np.sqrt(np.mean([s.stderr("f")[-1] ** 2 for s in sols], axis=0))
    assert np.all(scatter < 3 * claimed) and np.all(claimed < 6 * scatter)
    assert np.array_equal(sol.stderr("ntk", 0), found.stderr.ntk[:2, :2])
    assert np.array_equal(sol.predict(new), sol.f_test[-1])
    sol.save(tmp_path / "sampled.npz")
    again = tp.load(tmp_path / "sampled.npz")
    assert np.array_equal(again.predict(new), sol.predict(new))
    assert np.array_equal(again.stderr("G", 1, 0, 0), sol.stderr("G", 1, 0, 0)) and again.stderr("G", 1, 0, 0).min() > 0


def test_advice_over_a_grid_leads_somewhere():
    """Maps that do not separate: no closed form, no samples, but finite nets as both errors say."""

    def gated(x):
        return tp.pooled(w, tp.entrywise(lambda a, b: sp.tanh(a * b), tp.linear(tp.conv(W0, x, 3)), tp.conv(V0, x, 3)))

    net = tp.program(gated, grid=(4,))
    for kernels in (tp.kernels, tp.sampled_kernels):
        with pytest.raises(ProgramError, match=r"over a grid average tp\.empirical_ntk|elsewhere average tp\.empirical_ntk"):
            kernels(net, tp.ntk, np.ones((2, 8)))
    found = [tp.empirical_ntk(tp.draw(net, tp.ntk, 8, 16, seed=s), np.ones((2, 8)))[..., 0, 0] for s in range(2)]
    assert np.mean(found, axis=0).shape == (2, 2)


def test_the_lazy_limit_is_centred():
    """gamma0 = 0 of a parameterization that learns features: the mean of the kernel regime."""
    task = tp.Task(X, np.array([1.0, -1.0, 0.5, 0.0]))
    lazy, mean = (tp.solve(tp.limit(BOTH, p, RULE), task, gamma0=g, samples=1024) for p, g in ((tp.muP, 0.0), (tp.ntk, 1.0)))
    assert lazy.f == pytest.approx(mean.f, rel=1e-12)
    assert np.all(lazy.stderr("f")[1:] > 0) and not lazy.stderr("f")[0].any()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"net": OVER_GRID}, ProgramError, r"^net: got a program on 4 positions; .*tp\.kernels\(.*tp\.empirical_ntk\(tp\.draw\("),
        ({"net": OVER_GRID, "X": np.ones((2, 4, 3))}, ProgramError, "^net: got a program on 4 positions"),
        ({"X": X[0]}, InputError, "X is"),
        ({"X2": X[:, 1:]}, InputError, "X2"),
        ({"samples": 65}, InputError, "even"),
        ({"replicates": 1}, InputError, "replicates"),
        ({"tol": 0.0}, InputError, "tol"),
        ({"memory": 1e-6}, BudgetError, "fewer samples"),
        ({"net": tp.program(lambda x: w @ tp.tanh(sp.Symbol("beta") * (W0 @ x)))}, ProgramError, "beta"),
    ],
    ids=["positions", "inputs over positions", "shape", "dimensions", "odd", "one replicate", "tolerance", "memory", "symbol"],
)
def test_bad_input(change, error, text):
    arguments = {"net": BOTH, "parameterization": tp.ntk, "X": X} | change
    with pytest.raises(error, match=text):
        tp.sampled_kernels(**arguments)
