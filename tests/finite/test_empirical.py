"""Structured tangent kernels against stacked Jacobians."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad

import tp_solver as tp
from tp_solver.errors import InputError
from tp_solver.finite import empirical, hierarchy, tangent
from tp_solver.finite.empirical import Points, by_outputs, empirical_ntk, empirical_ntk_trace
from tp_solver.finite.experiment import precision
from tp_solver.finite.hierarchy import predicted_drift, second_kernel
from tp_solver.finite.network import draw
from tp_solver.finite.pseudo import pseudo_ntk
from tp_solver.finite.simulate import simulate
from tp_solver.program.layers import conv, dense, global_pool, local, pool
from tp_solver.program.tracing import average, bias, entrywise, hidden_matrix, input_matrix, program, readout

RNG = np.random.default_rng(0)
X, X2 = RNG.standard_normal((5, 8)), RNG.standard_normal((3, 8))
W0, W1, W2, OUT = input_matrix("W0"), hidden_matrix("W1"), hidden_matrix("W2"), readout("w")
B = bias("b", sigma=0.5, rate=0.3)


def residual(x):
    h = W0 @ x
    for k in (1, 2):
        h = h + sp.Rational(1, 2) * (hidden_matrix(f"R{k}") @ tp.tanh(h))
    return OUT @ tp.tanh(h)


def tied(x):
    return OUT @ tp.tanh(W1 @ tp.tanh(W1 @ tp.tanh(W0 @ x)))


def transposed(x):
    return OUT @ tp.tanh(W1.T @ tp.tanh(W1 @ tp.tanh(W0 @ x)) + B)


def gated(x):
    a, b = W0 @ x, input_matrix("V0") @ x
    return OUT @ (tp.erf(W1 @ tp.gelu(a)) * tp.tanh(b))


def normalised(x):
    h = W1 @ tp.tanh(W0 @ x)
    mean = average(lambda v: v, h)
    size = average(lambda v: v**2, h)
    return OUT @ tp.tanh(entrywise(lambda v, m, c: (v - m) / sp.sqrt(c + 1), h, mean, size))


def convolved(x):
    return OUT @ global_pool(tp.relu(conv(W1, tp.relu(conv(W0, x, 3) + B), 3, padding="zero")))


def pooled(x):
    return dense(OUT, tp.tanh(conv(W1, pool(tp.tanh(conv(W0, x, 2)), 2), 2, stride=2))) + B


def unshared(x):
    return dense(OUT, tp.tanh(local(W1, tp.tanh(local(W0, x, 3)), 3, padding="valid")))


def tied_convolution(x):
    h = tp.tanh(conv(W0, x, 3))
    return dense(OUT, tp.tanh(conv(W1, tp.tanh(conv(W1, h, 3)), 3)) + tp.tanh(W2 @ h))


PROGRAMS = [
    tp.mlp(1, tp.relu),
    tp.mlp(3, tp.gelu, bias=0.3, bias_rate=0.09, output_bias=0.3),
    *(program(f) for f in (residual, tied, transposed, gated, normalised)),
    *(program(f, grid=4) for f in (convolved, pooled, unshared, tied_convolution)),
    program(lambda x: OUT @ global_pool(tp.tanh(conv(W0, x, (2, 2)))), "image", grid=(2, 4)),
]


@jax.jit
def stacked(net, x):
    """The definition: Jacobians of all outputs with respect to all weights, contracted with the rates."""
    jacobians = jax.jacobian(lambda w: net.net.predict(w, net.numbers, x))(net.w)
    flat = {m: j.reshape(*j.shape[:2], -1) for m, j in jacobians.items()}
    return sum(rate * jnp.einsum("mka,nla->mnkl", flat[m], flat[m]) for m, rate in net.numbers.tangent.items())


def reference(net):
    """The stacked kernel on X and X2 together."""
    with precision():
        return np.asarray(stacked(net, jnp.asarray(np.concatenate([X, X2]).T, net.dtype)))


@pytest.mark.parametrize("net", PROGRAMS, ids=lambda p: p.name)
def test_structured_is_stacked(net):
    parameterization = (tp.ntk, tp.muP)[PROGRAMS.index(net) % 2]
    finite = draw(net, parameterization, 8, 7, seed=1, outputs=3, gamma0=0.7)
    all_points = reference(finite)
    expected, tolerance = all_points[:5, 5:], 1e-13 * np.abs(all_points).max()
    np.testing.assert_allclose(empirical_ntk(finite, X, X2), expected, atol=tolerance)
    np.testing.assert_allclose(empirical_ntk_trace(finite, X, X2), np.einsum("mnkk->mn", expected) / 3, atol=tolerance)


def test_blocks_are_one_block():
    finite = draw(tp.mlp(1, tp.tanh, bias=0.3), tp.ntk, 8, 9, outputs=2)
    points = RNG.standard_normal((11, 8))
    full = empirical_ntk(finite, points)
    sets = Points(finite.columns("X", points), np.eye(2))
    budgets = {empirical._block_size(finite, sets, None, by_outputs, memory): memory for memory in np.geomspace(1.5e-5, 4e-5, 40)}
    assert {4, 11} <= set(budgets)
    np.testing.assert_allclose(empirical_ntk(finite, points, memory=budgets[4]), full, atol=1e-13)
    np.testing.assert_allclose(empirical_ntk(finite, points, points[:3], memory=budgets[4]), full[:, :3], atol=1e-13)
    np.testing.assert_allclose(empirical_ntk_trace(finite, points, memory=1e-5), np.einsum("mnkk->mn", full) / 2, atol=1e-13)


@pytest.mark.parametrize("net", PROGRAMS, ids=lambda p: p.name)
def test_memory_is_known_before_anything_is_computed(net):
    finite = draw(net, tp.ntk, 8, 7, outputs=3)
    with precision():
        made = jax.eval_shape(lambda: tangent.gradients(finite.net, finite.w, finite.numbers, jnp.asarray(X.T), np.eye(3)))
    foretold = tangent.shapes(finite.net, 7, finite.channels, 3, 5)
    assert jax.tree.map(lambda v: v.shape, foretold) == jax.tree.map(lambda v: v.shape, made)


@pytest.mark.parametrize(("outputs", "points", "width"), [(5, 40, 256), (1, 300, 32)], ids=["adjoints", "grams"])
def test_estimate_of_memory_against_the_compiler(outputs, points, width):
    """At least what XLA allocates, and less than twice as much."""
    finite = draw(tp.mlp(3, tp.relu), tp.ntk, 10, width, outputs=outputs)
    sets = Points(finite.columns("X", RNG.standard_normal((points, 10))), np.eye(outputs))
    with precision():
        used = empirical._one_block.lower(finite, sets, None, by_outputs).compile().memory_analysis()
    allocated = used.temp_size_in_bytes + used.output_size_in_bytes
    assert allocated <= empirical._need(finite, (sets,), points, outputs**2) <= 2 * allocated


def test_traced_like_any_function():
    """Under jit and vmap the public functions work on traced nets."""
    finite = draw(tp.mlp(2, tp.tanh), tp.ntk, 8, 9, outputs=2)
    with precision():
        traced = jax.jit(lambda f: empirical_ntk(f, X) + 0.0)(finite)
        assert isinstance(empirical_ntk(finite, X), np.ndarray)
        np.testing.assert_allclose(traced, empirical_ntk(finite, X), atol=1e-14)


def test_many_positions_of_a_small_net_stack_their_gradients():
    """Where positions outnumber the entries of a matrix, the gradients themselves are the cheaper way; both agree."""
    net = program(lambda x: OUT @ global_pool(tp.tanh(conv(W1, tp.tanh(conv(W0, x, 3)), 3))), grid=16)
    points = RNG.standard_normal((2, 16))
    ways = {}
    for width in (2, 60):
        sides = tangent.shapes(draw(net, tp.ntk, 16, width, outputs=2).net, width, 1, 2, 2)["W1"][0]
        ways[width] = tangent.route(draw(net, tp.ntk, 16, width).net, "W1", sides, sides)
    assert ways == {2: tangent.Route.STACKED, 60: tangent.Route.GRAMS}
    finite = draw(net, tp.ntk, 16, 2, outputs=2)
    with precision():
        expected = np.asarray(stacked(finite, jnp.asarray(points.T)))
    np.testing.assert_allclose(empirical_ntk(finite, points), expected, atol=1e-13 * np.abs(expected).max())
    np.testing.assert_allclose(empirical_ntk_trace(finite, points), np.einsum("mnkk->mn", expected) / 2, atol=1e-13)


def test_kernel_of_the_start_of_a_simulation():
    task = tp.Task(X, np.eye(3)[[0, 1, 2, 0, 1]])
    ens = simulate(tp.mlp(2, tp.tanh), tp.muP, tp.GradientDescent(0.1, 1), task, gamma0=0.6, widths=(9,), seeds=(4,), progress=False)
    finite = draw(tp.mlp(2, tp.tanh), tp.muP, 8, 9, seed=4, outputs=3, gamma0=0.6)
    np.testing.assert_allclose(empirical_ntk(finite, X).transpose(0, 2, 1, 3), ens.ntk(0)[0, 0], atol=1e-13)
    np.testing.assert_allclose(finite.predict(X), ens.f[0, 0, 0], atol=1e-14)


def test_float32_follows_float64():
    one, two = (draw(tp.mlp(2, tp.relu), tp.ntk, 8, 64, outputs=2, dtype=t) for t in ("float32", "float64"))
    assert empirical_ntk(one, X).dtype == np.float32
    np.testing.assert_allclose(empirical_ntk(one, X), empirical_ntk(two, X), atol=1e-5)


# pseudo-kernels -----------------------------------------------------------------------------------------------------


def test_pseudo_kernel_and_its_exact_error():
    finite = draw(tp.mlp(2, tp.relu), tp.ntk, 8, 30, outputs=5)
    full, pseudo = empirical_ntk(finite, X, X2), pseudo_ntk(finite, X, X2)
    np.testing.assert_allclose(pseudo.kernel, full.sum(axis=(2, 3)) / 5, atol=1e-13)
    missed = full - pseudo.kernel[:, :, None, None] * np.eye(5)
    assert pseudo.error == pytest.approx(np.linalg.norm(missed) / np.linalg.norm(full), rel=1e-12)
    assert pseudo.error_stderr == 0.0


def test_error_of_the_pseudo_kernel_from_probes():
    finite = draw(tp.mlp(1, tp.relu), tp.ntk, 8, 40, outputs=24)
    full = empirical_ntk(finite, X)
    kappa = full.sum(axis=(2, 3)) / 24
    exact = np.linalg.norm(full - kappa[:, :, None, None] * np.eye(24)) / np.linalg.norm(full)
    found = [pseudo_ntk(finite, X, probes=6, seed=s) for s in range(40)]
    z = np.array([(p.error - exact) / p.error_stderr for p in found])
    assert np.mean([p.error for p in found]) == pytest.approx(exact, rel=0.03)
    assert 0.6 < z.std() < 1.7
    assert str(found[0]).startswith("PseudoKernel(5 x 5 for 24 outputs, relative error")


# the hierarchy ------------------------------------------------------------------------------------------------------


def test_second_kernel_is_the_slope_of_the_kernel_along_gradients():
    finite = draw(tp.mlp(1, tp.tanh, bias=0.4, bias_rate=0.2), tp.muP, 8, 6, outputs=2)
    found = second_kernel(finite, X[:2], X2[:1], X[2:4])
    assert found.shape == (2, 1, 2, 2, 2, 2)
    step = 1e-5
    with precision():
        for p, k in ((0, 1), (1, 0)):
            slope = jax.grad(lambda w, p=p, k=k: finite.net.predict(w, finite.numbers, jnp.asarray(X[2:4].T))[p, k])(finite.w)
            move = {m: step * finite.numbers.tangent[m] * v for m, v in slope.items()}
            ends = [finite.moved({m: w + sign * move[m] for m, w in finite.w.items()}) for sign in (1, -1)]
            above, below = (empirical_ntk(end, X[:2], X2[:1]) for end in ends)
            np.testing.assert_allclose(found[:, :, p, :, :, k], (above - below) / (2 * step), atol=1e-8)


def test_drift_is_second_order_in_time():
    """The prediction leaves O(t^3): a half of the time, an eighth of the error, for several outputs."""
    labels = np.stack([np.sin(X[:, 0]), X[:, 1]], axis=1)
    net, par = tp.mlp(1, tp.tanh), tp.ntk
    errors = []
    for time in (0.04, 0.02):
        ens = simulate(net, par, tp.GradientFlow(time, 1), tp.Task(X, labels), widths=(12,), seeds=1, times=(0, 1), progress=False)
        moved = (ens.ntk(1) - ens.ntk(0))[0, 0].transpose(0, 2, 1, 3)
        errors.append(np.abs(predicted_drift(draw(net, par, 8, 12, outputs=2), X, labels, time).total - moved).max())
    assert errors[0] / errors[1] == pytest.approx(8.0, rel=0.1)


def test_time_ordered_integral_against_quadrature():
    rates = np.array([0.0, 0.3, 40.0, 2000.0])
    found = hierarchy._ordered(rates, 1.5)
    for i, a in enumerate(rates):
        for j, b in enumerate(rates):
            inner = lambda s, b=b: s if b == 0 else -np.expm1(-b * s) / b  # noqa: E731
            exact, _ = quad(lambda s, a=a, inner=inner: np.exp(-a * s) * inner(s), 0, 1.5, epsabs=1e-14, limit=400, points=(1e-3, 0.05))
            assert found[i, j] == pytest.approx(exact, abs=1e-9)


# bad input ----------------------------------------------------------------------------------------------------------

NET = draw(tp.mlp(1, tp.tanh), tp.ntk, 8, 4)
MLP = tp.mlp(1, tp.tanh)
BAD = {
    "a program in place of a net": (lambda: empirical_ntk(MLP, X), "net", "Program"),
    "points of another dimension": (lambda: empirical_ntk(NET, X[:, :5]), "X", "dimension 5"),
    "a NaN in the points": (lambda: empirical_ntk(NET, X * np.nan), "X", "non-finite"),
    "a vector of points": (lambda: empirical_ntk(NET, X[0]), "X", "(8,)"),
    "other points of another dimension": (lambda: empirical_ntk_trace(NET, X, X[:, :5]), "X2", "dimension 5"),
    "no memory": (lambda: empirical_ntk(NET, X, memory=0), "memory", "0"),
    "too little memory": (lambda: empirical_ntk(NET, X, memory=1e-9), "memory", "GiB"),
    "one probe": (lambda: pseudo_ntk(NET, X, probes=1), "probes", "1"),
    "labels of another length": (lambda: predicted_drift(NET, X, np.ones(3), 1.0), "y", "(3,)"),
    "a negative time": (lambda: predicted_drift(NET, X, np.ones(5), -1.0), "time", "-1.0"),
    "a width of zero": (lambda: draw(MLP, tp.ntk, 8, 0), "width", "0"),
    "gamma0 of zero": (lambda: draw(MLP, tp.ntk, 8, 4, gamma0=0), "gamma0", "0"),
    "a symbol in the exponents": (lambda: draw(MLP, tp.Parameterization("q", sp.Symbol("q"), 0, 0), 8, 4), "parameterization", "q"),
    "a preset by name": (lambda: draw(MLP, "ntk", 8, 4), "parameterization", "ntk"),
    "an activation in place of a program": (lambda: draw(tp.tanh, tp.ntk, 8, 4), "net", "Activation"),
    "an unknown precision": (lambda: draw(MLP, tp.ntk, 8, 4, dtype="float16"), "dtype", "float16"),
    "a dimension that the grid does not divide": (lambda: draw(PROGRAMS[-1], tp.ntk, 9, 4), "X", "9"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, must_be_answered):
    call, field, value = BAD[name]
    must_be_answered(call, field, value)


def test_a_net_that_has_diverged():
    with precision(), pytest.raises(InputError, match="not finite"):
        empirical_ntk(NET.moved({m: w * np.inf for m, w in NET.w.items()}), X)
