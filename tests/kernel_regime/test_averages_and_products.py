"""Kernels of programs with averages (layer normalisation) and with products of fields (gates): independent formulas and finite nets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from scipy.special import erf

import tp_solver as tp
from tp_solver.errors import ProgramError
from tp_solver.kernel_regime.separation import separated

D = 4
X = np.random.default_rng(0).standard_normal((3, D))
Q0 = X @ X.T / D
W0, V0, W1, V1, w = tp.input_matrix("W0"), tp.input_matrix("V0"), tp.hidden_matrix("W1"), tp.hidden_matrix("V1"), tp.readout("w")


def rms_norm(h, floor=0):
    return tp.entrywise(lambda a, q: a / sp.sqrt(q + floor), h, tp.average(lambda a: a**2, h))


def layer_norm(h):
    return rms_norm(tp.entrywise(lambda a, m: a - m, h, tp.average(lambda a: a, h)))


def times(a, b):
    return tp.entrywise(lambda x, y: x * y, a, b)


def gated(x):
    h = rms_norm(W0 @ x)
    return w @ times(tp.erf(W1 @ h), V1 @ h)


def residual(x):
    h = W0 @ x
    return w @ tp.erf(rms_norm(h + W1 @ tp.erf(layer_norm(h))))


NETS = {
    "before": tp.program(lambda x: w @ tp.erf(layer_norm(W1 @ tp.erf(layer_norm(W0 @ x)))), "before"),
    "after": tp.program(lambda x: w @ layer_norm(tp.relu(W1 @ layer_norm(tp.relu(W0 @ x)))), "after"),
    "residual": tp.program(residual, "residual"),
    "gated": tp.program(gated, "gated"),
    "bilinear": tp.program(lambda x: w @ tp.linear(times(W0 @ x, V0 @ x)), "bilinear"),
}


def mean(f, g, q):
    """E f(a) g(b) over pairs of a covariance matrix, by the trapezoidal rule in two dimensions."""
    z = np.linspace(-9, 9, 181)
    weights = np.exp(-(z**2) / 2) / np.sum(np.exp(-(z**2) / 2))
    out = np.zeros_like(q)
    for i in range(len(q)):
        for j in range(len(q)):
            a = np.sqrt(q[i, i]) * z
            c = q[i, j] / np.sqrt(q[i, i])
            b = c * z[:, None] + np.sqrt(max(q[j, j] - c**2, 0)) * z[None, :]
            out[i, j] = np.sum(weights[:, None] * weights[None, :] * f(a)[:, None] * g(b))
    return out


def correlations(q):
    return q / np.sqrt(np.outer(q.diagonal(), q.diagonal()))


def test_normalisation_before_activations_against_quadrature():
    """Unit variances forward; backward 1 / sqrt(q q'), and nothing through the averages."""

    def slope(x):
        return 2 / np.sqrt(np.pi) * np.exp(-(x**2))

    phi1 = mean(erf, erf, correlations(Q0))
    phi2 = mean(erf, erf, correlations(phi1))
    g2 = mean(slope, slope, correlations(phi1)) * correlations(phi1) / phi1
    g1 = g2 * mean(slope, slope, correlations(Q0)) * correlations(Q0) / Q0
    found = tp.kernels(NETS["before"], tp.ntk, X, layers=True)
    assert found.nngp == pytest.approx(phi2, rel=1e-10)
    assert found.Phi == pytest.approx(np.array([phi1, phi2]), rel=1e-10)
    assert found.ntk == pytest.approx(phi2 + g2 * phi1 + g1 * Q0, rel=1e-10)


def test_normalisation_after_activations_against_quadrature():
    """Means are subtracted, and both means and variances divide."""

    def step(q):
        positive = [np.sqrt(q.diagonal() / (2 * np.pi)), q.diagonal() / 2]
        variance = positive[1] - positive[0] ** 2
        cosine = np.clip(correlations(q), -1, 1)
        angle = np.arccos(cosine)
        second = np.sqrt(np.outer(q.diagonal(), q.diagonal())) * (np.sin(angle) + (np.pi - angle) * cosine) / (2 * np.pi)
        scale = np.sqrt(np.outer(variance, variance))
        return (second - np.outer(positive[0], positive[0])) / scale, (np.pi - angle) / (2 * np.pi) / scale

    phi1, slopes1 = step(Q0)
    phi2, slopes2 = step(phi1)
    found = tp.kernels(NETS["after"], tp.ntk, X)
    assert found.nngp == pytest.approx(phi2, rel=1e-7, abs=1e-12)
    assert found.ntk == pytest.approx(phi2 + slopes2 * phi1 + slopes2 * slopes1 * Q0, rel=1e-7)


@pytest.mark.parametrize("name", NETS)
def test_nets_of_width_128(name):
    """The means of the tangent kernels of 100 nets, whose noise is above their bias."""
    net = NETS[name]
    found = np.array([tp.empirical_ntk(tp.draw(net, tp.ntk, D, 128, seed=s), X)[..., 0, 0] for s in range(100)])
    wanted = tp.kernels(net, tp.ntk, X).ntk
    error = found.std(axis=0, ddof=1) / 10
    assert np.abs((found.mean(axis=0) - wanted) / error).max() < 4
    # there is something to be seen: neither a scale nor a correlation could be off by much
    assert np.all(error.diagonal() < 0.1 * wanted.diagonal())


def test_what_is_normalised_has_no_scale():
    found, scaled = (tp.kernels(NETS["before"], tp.ntk, s * X, layers=True) for s in (1.0, 3.0))
    assert scaled.nngp == pytest.approx(found.nngp, rel=1e-12)
    assert scaled.parts["W0"] == pytest.approx(found.parts["W0"], rel=1e-12)  # x x' over sqrt(q q')


def test_products_of_independent_fields():
    bilinear = tp.kernels(NETS["bilinear"], tp.ntk, X)
    assert bilinear.nngp == pytest.approx(Q0**2, rel=1e-12)
    assert bilinear.ntk == pytest.approx(3 * Q0**2, rel=1e-12)


def test_polynomials_of_correlated_fields():
    """<h (h + u) h' (h' + u')> = q q' + 2 c^2 + c k; the same product twice is one field."""

    def network(x):
        h = W0 @ x
        return w @ tp.linear(times(h, h + W1 @ tp.erf(h)))

    q, k = Q0.diagonal(), mean(erf, erf, Q0)
    assert tp.kernels(tp.program(network), tp.ntk, X).nngp == pytest.approx(np.outer(q, q) + 2 * Q0**2 + Q0 * k, rel=1e-10)
    single = tp.kernels(tp.program(network), tp.ntk, X, dtype="float32").nngp
    assert single.dtype == np.float32 and single == pytest.approx(np.outer(q, q) + 2 * Q0**2 + Q0 * k, rel=1e-5)
    twice = tp.program(lambda x: w @ tp.linear(times(tp.erf(W0 @ x), W0 @ x)))
    once = tp.program(lambda x: w @ tp.Activation("once", lambda a: a * sp.erf(a))(W0 @ x))
    for name in ("nngp", "ntk"):
        assert getattr(tp.kernels(twice, tp.ntk, X), name) == pytest.approx(getattr(tp.kernels(once, tp.ntk, X), name), rel=1e-12)


def test_kernel_functions_have_the_right_slopes():
    """Against central differences."""
    net = NETS["gated"]
    with jax.enable_x64(True):
        function = tp.kernel_function(net, tp.ntk, X)

        def one(x):
            return jnp.sum(function(x, jnp.asarray(X[1:])).ntk)

        point, along = jnp.asarray(X[:1]), jnp.asarray(np.random.default_rng(1).standard_normal((1, D)))
        slope = float(jnp.vdot(jax.grad(one)(point), along))
        step = 1e-5
        difference = float(one(point + step * along) - one(point - step * along)) / (2 * step)
    assert slope == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("name", ["gated", "residual"])
def test_blocks_are_parts_of_the_whole(name):
    """Averages and factors are those of the block's own inputs."""
    many = np.random.default_rng(2).standard_normal((40, D))
    (whole,) = tp.kernel_blocks(NETS[name], tp.ntk, many, layers=True)
    blocks = list(tp.kernel_blocks(NETS[name], tp.ntk, many, many[:30], layers=True, memory=2e-5))
    assert len({(b.rows.start, b.columns.start) for b in blocks}) == len(blocks) > 6
    for block in blocks:
        for pick in (lambda k: k.nngp, lambda k: k.ntk, lambda k: k.Phi, lambda k: k.G):
            assert pick(block.kernels) == pytest.approx(pick(whole.kernels)[..., block.rows, block.columns], rel=1e-9, abs=1e-12)


def test_positions_are_normalised_one_by_one():
    """Normalising the channels of every position, by hand through the inputs' lengths."""
    x = np.random.default_rng(3).standard_normal((3, 5, 2))
    length = np.sqrt(np.mean(x**2, axis=2, keepdims=True))
    normed = tp.program(lambda v: tp.dense(w, tp.erf(tp.conv(W1, rms_norm(tp.conv(W0, v, 1)), 3))), "normed", grid=(5,))
    plain = tp.program(lambda v: tp.dense(w, tp.erf(tp.conv(W1, tp.conv(W0, v, 1), 3))), "plain", grid=(5,))
    assert tp.kernels(normed, tp.ntk, x).nngp == pytest.approx(tp.kernels(plain, tp.ntk, x / length).nngp, rel=1e-12)


def test_training_in_function_space():
    """A solution, its prediction at new points, and the same dynamics asked for directly."""
    rule = tp.GradientDescent(lr=0.2, steps=6)
    task = tp.Task(X, np.array([1.0, -1.0, 0.5]))
    new = np.random.default_rng(5).standard_normal((2, D))
    sol = tp.solve(tp.limit(NETS["gated"], tp.ntk, rule), task)
    direct = tp.KernelDynamics.of(NETS["gated"], tp.ntk, rule, X, task.y, X_test=new).at(6)
    assert sol.f[-1] == pytest.approx(direct.f, rel=1e-9)
    assert sol.predict(new) == pytest.approx(direct.f_test, rel=1e-9)


def test_zero_inputs_have_no_direction():
    with pytest.raises(ProgramError, match=r"normalise by sqrt\(q \+ 1e-5\)"):
        tp.kernels(NETS["before"], tp.ntk, np.vstack([X, np.zeros(D)]))
    net = tp.program(lambda x: w @ tp.erf(rms_norm(W0 @ x, 1e-3)))
    assert tp.kernels(net, tp.ntk, np.vstack([X, np.zeros(D)])).nngp[3] == pytest.approx(np.zeros(4), abs=0)


@pytest.mark.parametrize("name", ["before", "residual"])
def test_kernel_functions_of_zero_inputs(name):
    """Called with arrays they refuse as the matrix does; traced they are NaN there, and right elsewhere."""
    function = tp.kernel_function(NETS[name], tp.ntk, X)
    with jax.enable_x64(True):
        x = jnp.asarray(np.vstack([X, np.zeros(D)]))
        for one, two in ((x, x[:2]), (x[:2], x)):
            with pytest.raises(ProgramError, match=r"kernel_function.*normalise by sqrt\(q \+ 1e-5\)"):
                function(one, two)
        for transformed in (jax.jit(function), lambda v, u: jax.vmap(lambda row: function(row[None], u))(v)):
            traced = np.asarray(transformed(x, x[:2]).ntk).reshape(4, 2)
            np.testing.assert_allclose(traced[:3], function(x[:3], x[:2]).ntk, rtol=1e-12)
            assert np.isnan(traced[3]).all()
        slope = np.asarray(jax.grad(lambda v: function(v, x[:2]).ntk[:3].sum())(x))
        assert np.isfinite(slope[:3]).all()


def test_jacobian_kernels_of_norms_without_a_floor():
    """The scale of the input does not count, so that f does not change along it; at zero there is no slope."""
    net = tp.program(lambda x: w @ tp.erf(W1 @ tp.erf(rms_norm(W0 @ x))))
    k = tp.jacobian_kernels(net, tp.ntk, X)
    plain = tp.kernels(net, tp.ntk, X)
    np.testing.assert_allclose(k.ntk[:, 0, :, 0], plain.ntk, rtol=1e-12)
    for kernel in (k.nngp, k.ntk):
        along = np.einsum("ia,ianb->inb", X, kernel[:, 1:])
        assert np.abs(along).max() < 1e-12 * np.abs(kernel).max()
    with pytest.raises(ProgramError, match=r"jacobian_kernels.*normalise by sqrt\(q \+ 1e-5\)"):
        tp.jacobian_kernels(net, tp.ntk, np.vstack([X, np.zeros(D)]))


def test_gates_separate():
    """Sums, products, powers and exponentials of sums come apart; what stays mixed is told from what does not."""
    a, b, c = sp.symbols("a b c", real=True)
    gate = a * b / (1 + sp.exp(-a))
    assert separated(gate, (a, b)) == [(1, {a: a / (1 + sp.exp(-a)), b: b})]
    for e in (gate, c * (a - b) ** 2 / sp.sqrt(c + 1), sp.exp(a + b + 2 * c), (a * b + c) ** 3):
        found = separated(e, (a, b))
        assert all(f.free_symbols <= {v} for _, factors in found for v, f in factors.items())
        total = sp.Add(*(sp.Mul(constant, *factors.values()) for constant, factors in found))
        assert sp.expand(sp.powsimp(total - e, force=True)) == 0
    for e in (sp.tanh(a * b), sp.exp(c * a), sp.tanh(a + c), 1 / (a + b)):
        assert separated(e, (a, b)) is None


def test_averages_of_products_of_correlated_fields():
    """<h (h + u)> = q, and odd powers have mean zero."""

    def network(x):
        h = W0 @ x
        second, third = (tp.average(f, h, h + V0 @ x) for f in (lambda a, b: a * b, lambda a, b: a * b**2))
        return w @ tp.linear(tp.entrywise(lambda a, c, d: a * (c + d), h, second, third))

    q = Q0.diagonal()
    assert tp.kernels(tp.program(network), tp.ntk, X).nngp == pytest.approx(Q0 * np.outer(q, q), rel=1e-12)


@pytest.mark.slow
def test_a_swish_gate_against_nets():
    """Series for either factor; 200 nets of width 256."""
    net = tp.program(lambda x: w @ tp.entrywise(lambda a, b: a * b / (1 + sp.exp(-a)), tp.linear(W0 @ x), V0 @ x), "swish")
    found = np.array([tp.empirical_ntk(tp.draw(net, tp.ntk, D, 256, seed=s), X)[..., 0, 0] for s in range(200)])
    error = found.std(axis=0, ddof=1) / np.sqrt(200)
    assert np.abs((found.mean(axis=0) - tp.kernels(net, tp.ntk, X).ntk) / error).max() < 4


def product_of_correlated(x):
    h = W0 @ x
    return w @ times(tp.erf(h), tp.erf(h + W1 @ tp.erf(h)))


@pytest.mark.parametrize(
    "network",
    [
        lambda x: w @ tp.entrywise(lambda a, b: sp.tanh(a * b), tp.linear(W0 @ x), V0 @ x),
        lambda x: w @ tp.erf(layer_norm(tp.relu(W0 @ x))),
        product_of_correlated,
    ],
    ids=["inseparable", "shifted", "correlated"],
)
def test_what_does_not_separate_is_refused(network):
    with pytest.raises(ProgramError, match=r"tp\.sampled_kernels"):
        tp.kernels(tp.program(network), tp.ntk, X)
