"""Kernels of a network with its input Jacobian: against a layerwise recursion, differences, and finite nets at initialisation."""

from __future__ import annotations

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from scipy.special import erf

import tp_solver as tp
from tp_solver.errors import BudgetError, InputError, ProgramError
from tp_solver.finite.experiment import precision
from tp_solver.finite.jacobian import empirical_jacobian_ntk, joint_values
from tp_solver.finite.network import blueprint, draw, stacked_weights
from tp_solver.kernel_regime import jacobian
from tp_solver.kernel_regime.compute import kernels
from tp_solver.kernel_regime.jacobian import jacobian_kernels, matrix
from tp_solver.numerics.compiled import compiled
from tp_solver.program.layers import conv, global_pool
from tp_solver.program.tracing import bias, input_matrix, program, readout

SW, SB = 1.5, 0.3
NET = tp.mlp(depth=2, activation=tp.erf, bias=SB, bias_rate=SB**2)  # three weight layers
PAR = tp.ntk.times(SW)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 2))


@pytest.fixture(scope="module")
def both():
    return jacobian_kernels(NET, PAR, X)


# the kernels ----------------------------------------------------------------------------------------------------------

Z = np.arange(-130, 131) / 10
W = np.exp(-(Z**2) / 2) / np.sqrt(2 * np.pi) / 10  # trapezoids: exact to rounding for smooth integrands
ERF = [
    erf,
    lambda u: 2 / np.sqrt(np.pi) * np.exp(-(u**2)),
    lambda u: -4 * u / np.sqrt(np.pi) * np.exp(-(u**2)),
    lambda u: (8 * u**2 - 4) / np.sqrt(np.pi) * np.exp(-(u**2)),
    lambda u: (24 * u - 16 * u**3) / np.sqrt(np.pi) * np.exp(-(u**2)),
]
"""erf and its derivatives, typed here."""


def layer(c_left, c_right, c, order):
    """E D_a g(h(x)) D_b g(h(x')) for g the derivative ``order`` of erf, from the covariances (1 + D, 1 + D) of (h, dh/dx) at x with
    itself, at x' with itself, and between both, by Stein's lemma and quadrature."""
    q, p, s = c_left[0, 0], c_right[0, 0], c[0, 0]
    u = np.sqrt(q) * Z[:, None]
    v = s / np.sqrt(q) * Z[:, None] + np.sqrt(max(p - s**2 / q, 0.0)) * Z[None, :]

    def mean(i, j):
        return np.einsum("i,j,ij->", W, W, ERF[order + i](u) * ERF[order + j](v))

    size = len(c)
    out = np.empty((size, size))
    out[0, 0] = mean(0, 0)
    for a in range(1, size):
        # <dh(x)_a h(x)>, <dh(x)_a h(x')>; <dh(x')_a h(x')>, <dh(x')_a h(x)>
        out[a, 0] = c_left[a, 0] * mean(2, 0) + c[a, 0] * mean(1, 1)
        out[0, a] = c_right[a, 0] * mean(0, 2) + c[0, a] * mean(1, 1)
    for a, b in itertools.product(range(1, size), repeat=2):
        out[a, b] = (
            c[a, b] * mean(1, 1)
            + c_left[a, 0] * (c[0, b] * mean(3, 1) + c_right[b, 0] * mean(2, 2))
            + c[a, 0] * (c[0, b] * mean(2, 2) + c_right[b, 0] * mean(1, 3))
        )
    return out


def layerwise(x, y):
    """JNNGP and JNTK of two inputs by the recursion of covariances, layer by layer; nothing is differentiated."""
    pairs = {"left": (x, x), "right": (y, y), "cross": (x, y)}

    def first(u, v):
        d = len(u)
        out = np.empty((1 + d, 1 + d))
        out[0, 0], out[0, 1:], out[1:, 0], out[1:, 1:] = u @ v, u, v, np.eye(d)
        return SW**2 * out / d

    bias_part = np.zeros((1 + len(x), 1 + len(x)))
    bias_part[0, 0] = SB**2
    c = {name: first(*p) + bias_part for name, p in pairs.items()}
    tangent = dict(c)
    for depth in range(2):
        constant = bias_part if depth == 0 else 0.0
        ends = {"left": ("left", "left"), "right": ("right", "right"), "cross": ("left", "right")}
        phi, slope = ({n: layer(c[a], c[b], c[n], order) for n, (a, b) in ends.items()} for order in (0, 1))
        c = {n: SW**2 * phi[n] + constant for n in ends}
        tangent = {n: c[n] + SW**2 * product_rule(slope[n], tangent[n]) for n in ends}
    return c["cross"], tangent["cross"]


def product_rule(p, t):
    """d_a d'_b of a product of two functions of x and x'."""
    out = p[0, 0] * t + t[0, 0] * p
    out += np.outer(p[:, 0], t[0]) + np.outer(t[:, 0], p[0])
    out[0], out[:, 0] = p[0, 0] * t[0] + t[0, 0] * p[0], p[0, 0] * t[:, 0] + t[0, 0] * p[:, 0]
    out[0, 0] = p[0, 0] * t[0, 0]
    return out


def test_derivatives_of_the_kernel_are_the_layerwise_recursion(both):
    """At different inputs and, where derivatives of arcsines might fail, at equal ones."""
    worst = 0.0
    for m, n in ((0, 1), (1, 0), (2, 5), (0, 0), (3, 3)):
        c, t = layerwise(X[m], X[n])
        worst = max(worst, np.abs(both.nngp[m, :, n] - c).max(), np.abs(both.ntk[m, :, n] - t).max())
    assert worst < 1e-10


def test_kernels_of_the_function_are_the_ordinary_ones(both):
    plain = kernels(NET, PAR, X)
    assert both.nngp[:, 0, :, 0] == pytest.approx(plain.nngp, abs=1e-13)
    assert both.ntk[:, 0, :, 0] == pytest.approx(plain.ntk, abs=1e-13)


def test_both_kernels_are_covariances(both):
    for kernel in (both.nngp, both.ntk):
        assert np.array_equal(matrix(kernel), matrix(kernel).T)
        values = np.linalg.eigvalsh(matrix(kernel))
        assert values[0] > 1e-6 * values[-1]  # positive definite: distinct inputs, an activation that is no polynomial


def test_two_sets_and_blocks(both, monkeypatch):
    monkeypatch.setattr(jacobian, "BLOCK_BYTES", 9 * 16 * 4)  # two inputs at a time
    cut = jacobian_kernels(NET, PAR, X[:5])
    assert cut.ntk == pytest.approx(both.ntk[:5, :, :5], abs=1e-13)
    cross = jacobian_kernels(NET, PAR, X[:3], X[2:])
    assert cross.nngp == pytest.approx(both.nngp[:3, :, 2:], abs=1e-13)
    assert not cross.symmetric and cut.symmetric and "ntk of df/dx, df/dx" in str(cross)


def test_both_ways_of_differentiating_agree():
    """In the scalar products of inputs, and in the inputs themselves."""
    net = tp.mlp(depth=2, activation=tp.sin, bias=SB)
    model = jacobian._Model(
        net, PAR, (("W0", 1.0), ("W1", 0.5), ("W2", 2.0), *((b.name, 1.0) for b in net.matrices if "b" in b.name)), 2, 3
    )
    with jax.enable_x64(True):
        one, two = (np.asarray(jax.jit(way(model))(jnp.asarray(X), jnp.asarray(X))) for way in (jacobian._by_products, jacobian._by_inputs))
    assert one == pytest.approx(two, abs=1e-12)


def test_zero_input_and_equal_inputs():
    """No NaN where a variance or the distance of two inputs vanishes: equal inputs have the limit of close ones."""
    net = tp.mlp(depth=1, activation=tp.gelu)
    k = jacobian_kernels(net, tp.ntk, np.array([[0.0, 0.0], [1.0, -0.5], [1.0, -0.5]]))
    assert np.isfinite(k.nngp).all() and np.isfinite(k.ntk).all()
    assert k.ntk[1, :, 1] == pytest.approx(k.ntk[1, :, 2], abs=1e-13)
    near = jacobian_kernels(net, tp.ntk, np.array([[1.0, -0.5]]), np.array([[1.0 + 1e-7, -0.5]]))
    assert near.ntk[0, :, 0] == pytest.approx(k.ntk[1, :, 1], abs=1e-5)


def pooled(x):
    return readout("w") @ global_pool(tp.erf(conv(input_matrix("C"), x, size=3) + bias("b", sigma=SB, rate=1.0)))


@pytest.mark.slow
def test_convolutions_against_differences():
    """Central differences of the kernels of a convolutional net with global pooling."""
    net = program(pooled, grid=(4,))
    x, y = RNG.standard_normal((1, 8)), RNG.standard_normal((2, 8))
    k, step = jacobian_kernels(net, tp.ntk, x, y), 1e-3
    moves = [np.zeros((2, 8)), *(step * np.stack([e, -e]) for e in np.eye(8)[:3])]

    def difference(name, u, v):
        signs = [s for s, m in (((1.0, -1.0), u), ((1.0, -1.0), v))]
        total = 0.0
        for i, j in itertools.product(range(2), repeat=2):
            total = total + signs[0][i] * signs[1][j] * getattr(kernels(net, tp.ntk, x + u[i], y + v[j]), name)
        return total / (4 * step**2)

    for a, b in ((1, 1), (2, 3)):
        assert k.ntk[0, a, :, b] == pytest.approx(difference("ntk", moves[a], moves[b])[0], abs=2e-6)
        assert k.nngp[0, a, :, b] == pytest.approx(difference("nngp", moves[a], moves[b])[0], abs=2e-6)
    assert k.ntk[:, 0, :, 0] == pytest.approx(kernels(net, tp.ntk, x, y).ntk, abs=1e-12)


# memory ---------------------------------------------------------------------------------------------------------------

MEASURED = """
import sys
from pathlib import Path

import numpy as np
import tp_solver as tp
from tp_solver.kernel_regime import jacobian


def resident(field):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 2**10


net, memory = tp.cnn(depth=1, activation=tp.erf, grid=(4,), head=tp.pooled), float(sys.argv[1])
X = np.random.default_rng(0).standard_normal((100, 4))
tp.jacobian_kernels(net, tp.ntk, X[:1])
largest = int(np.ceil(np.log2((X**2).sum(axis=1).max())))
sides, run = jacobian._block(jacobian._Model(net, tp.ntk, None, 4, largest), 100, 100, memory)  # compiles, and runs nothing
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
before = resident("VmRSS")
k = tp.jacobian_kernels(net, tp.ntk, X, memory=memory)
print(*sides, k.nngp.nbytes + k.ntk.nbytes + run.results + max(run.scratch, run.results), resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are measured in the units of Linux")
@pytest.mark.parametrize(("memory", "blocks"), [(4.0, 1), (0.15, 2)], ids=["whole", "cut"])
def test_the_foretold_peak_is_the_measured_one(memory, blocks):
    """Over a grid derivatives hold a hundred times what the result takes."""
    done = subprocess.run([sys.executable, "-c", MEASURED, str(memory)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    *sides, foretold, measured = map(int, done.stdout.split())
    assert sides == [100 // blocks] * 2
    assert abs(measured - foretold) < 0.1 * foretold + 40 * 2**20  # what a process holds comes and goes by so much
    assert measured < memory * 2**30


def test_blocks_are_cut_to_what_compilation_says(monkeypatch):
    """No block takes more than the budget, and cutting changes nothing."""
    net = program(pooled, grid=(4,))
    x = RNG.standard_normal((6, 4))
    budget = 2e-4  # GiB
    made = []

    def noted(function, *shapes):
        made.append(compiled(function, *shapes))
        return made[-1]

    monkeypatch.setattr(jacobian, "compiled", noted)
    whole, cut = jacobian_kernels(net, tp.ntk, x), jacobian_kernels(net, tp.ntk, x, memory=budget)
    (first, *_, last), results = made, whole.nngp.nbytes * 2
    assert results + first.results + first.scratch > budget * 2**30 > results + last.results + last.scratch
    assert last.results < first.results == results
    assert cut.ntk == pytest.approx(whole.ntk, abs=1e-13) and cut.nngp == pytest.approx(whole.nngp, abs=1e-13)
    with pytest.raises(BudgetError, match="memory"):  # room for the kernels, but not for a pair at work
        jacobian_kernels(net, tp.ntk, x[:2], memory=5e-6)


# against finite nets --------------------------------------------------------------------------------------------------


def errors(widths, seeds, kernel):
    """|eJNTK - JNTK| / |JNTK|, (widths, seeds)."""
    found = [[empirical_jacobian_ntk(draw(NET, PAR, 2, n, seed=s), X)[..., 0, 0] for s in range(seeds)] for n in widths]
    return np.array([[np.linalg.norm(k - kernel) for k in row] for row in found]) / np.linalg.norm(kernel)


def slope(widths, values):
    return np.polyfit(np.log(widths), np.log(values.mean(axis=1)), 1)[0]


def test_empirical_kernel_approaches_with_the_root_of_the_width(both):
    widths = (64, 256, 1024)
    assert -0.7 <= slope(widths, errors(widths, 6, both.ntk)) <= -0.25


@pytest.mark.slow
def test_empirical_kernel_at_all_widths(both):
    widths = (64, 128, 256, 512, 1024)
    found = errors(widths, 6, both.ntk)
    assert -0.7 <= slope(widths, found) <= -0.25
    assert found.mean(axis=1)[-1] < 0.1


def scores(draws, width, covariance):
    """Deviations of the covariance of F over nets, in standard errors."""
    blank, total, squares = blueprint(NET, PAR, 2, width, 1, 1.0, "float64"), 0.0, 0.0
    batch = 50
    with precision():
        run = jax.jit(jax.vmap(lambda w: joint_values(blank.net, w, blank.numbers, jnp.asarray(X).T)))
        for start in range(0, draws, batch):
            F = np.asarray(run(stacked_weights(blank, range(start, start + batch)))).reshape(batch, -1)
            products = F[:, :, None] * F[:, None, :]
            total, squares = total + products.sum(axis=0), squares + (products**2).sum(axis=0)
    mean = total / draws
    return (mean - covariance) / np.sqrt((squares / draws - mean**2) / draws)


def test_initial_nets_are_the_joint_process(both):
    assert np.abs(scores(1000, 256, matrix(both.nngp))).max() < 4


@pytest.mark.slow
def test_initial_nets_are_the_joint_process_with_many_draws(both):
    assert np.abs(scores(4000, 256, matrix(both.nngp))).max() < 4


def test_samples_of_the_process(both):
    draws = both.sample(20_000, seed=3, gamma0=2.0).reshape(20_000, -1)
    expected = matrix(both.nngp) / 4
    error = np.sqrt((np.outer(expected.diagonal(), expected.diagonal()) + expected**2) / len(draws))
    assert (np.abs(draws.T @ draws / len(draws) - expected) / error).max() < 4.5


# bad input ------------------------------------------------------------------------------------------------------------

ELU = tp.Activation("elu", lambda x: sp.Piecewise((x, x > 0), (sp.exp(x) - 1, True)))


@pytest.mark.parametrize("activation", [tp.relu, tp.leaky_relu, ELU, tp.Activation("abs", sp.Abs)], ids=lambda a: a.name)
def test_kinks_are_refused(activation):
    net = tp.mlp(depth=2, activation=activation)
    with pytest.raises(ProgramError, match="continuous second derivative"):
        jacobian_kernels(net, PAR, X)


def test_bad_kernels(both):
    with pytest.raises(InputError, match="X2"):
        jacobian_kernels(NET, PAR, X, X[:, :1])
    with pytest.raises(InputError, match="non-finite"):
        jacobian_kernels(NET, PAR, np.array([[1.0, np.nan]]))
    with pytest.raises(InputError, match="net"):
        jacobian_kernels("mlp", PAR, X)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="memory"):
        jacobian_kernels(NET, PAR, X, memory=1e-6)
    with pytest.raises(InputError, match="memory"):
        jacobian_kernels(NET, PAR, X, memory=0)
    with pytest.raises(InputError, match="one set"):
        jacobian_kernels(NET, PAR, X[:2], X[2:4]).sample(3)
    with pytest.raises(InputError, match="gamma0"):
        both.sample(2, gamma0=0.0)
    with pytest.raises(InputError, match="draws"):
        both.sample(0)
