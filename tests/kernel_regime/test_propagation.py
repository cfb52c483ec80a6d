"""Kernels at initialisation: the recursion they must equal, real wide networks, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import tp_solver as tp
from tp_solver.errors import InputError, ProgramError
from tp_solver.kernel_regime.constants import numeric_constants
from tp_solver.kernel_regime.propagation import propagate
from tp_solver.limit.spec import limit_spec
from tp_solver.numerics.duals import dual
from tp_solver.program.architectures import mlp
from tp_solver.symbols.activation import SHIPPED, Activation, X, linear, relu, tanh

D = 6
DATA = np.random.default_rng(0).standard_normal((4, D))
GRAM = DATA @ DATA.T


def unit_scales(net):
    scales = {m.name: 1.0 for m in net.matrices}
    return {**scales, "W0": D**-0.5}


def unit_rates(net):
    rates = {m.name: 1.0 for m in net.matrices}
    return {**rates, "W0": 1 / D}


def dual_map(f, kernel):
    q = kernel.diagonal()
    return dual(f, f, q[:, None], q[None, :], kernel)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("activation", SHIPPED, ids=lambda a: a.name)
def test_ntk_recursion(activation, depth):
    """In the NTK parametrization Theta^1 = Q^1, Theta^{l+1} = Q^{l+1} + sigma_w^2 Theta^l V'(Q^l); here there is no output bias."""
    sw, sb = 1.3, 0.4
    net = mlp(depth, activation, bias=sb)
    scales = {m.name: sw if m.name.startswith("W") else sb for m in net.matrices} | {"W0": sw / np.sqrt(D)}
    got = propagate(net, scales, {name: s**2 for name, s in scales.items()}, GRAM)
    nngp = sw**2 * GRAM / D + sb**2
    tangent = nngp
    for _ in range(depth):
        slope = dual_map(activation.derivative, nngp)
        nngp = sw**2 * dual_map(activation.expression, nngp) + sb**2
        tangent = nngp + sw**2 * tangent * slope
    # identical expectations in another order: rounding of numbers up to about fifty
    assert got.ntk == pytest.approx(tangent - sb**2, abs=1e-12 * np.abs(tangent).max())
    assert got.output_covariance == pytest.approx(nngp - sb**2, abs=1e-12 * np.abs(nngp).max())


def test_gradient_kernels_of_a_deep_net():
    """G^L = s_L^2 V'(Q^L), G^l = s_l^2 G^{l+1} V'(Q^l)."""
    net = mlp(3, relu)
    scales = {"W0": D**-0.5, "W1": 1.4, "W2": 0.9, "W3": 2.0}
    got = propagate(net, scales, dict.fromkeys(scales, 1.0), GRAM)
    q1 = GRAM / D
    q2 = 1.4**2 * dual_map(relu.expression, q1)
    q3 = 0.9**2 * dual_map(relu.expression, q2)
    g3 = 4.0 * dual_map(relu.derivative, q3)
    g2 = 0.9**2 * g3 * dual_map(relu.derivative, q2)
    g1 = 1.4**2 * g2 * dual_map(relu.derivative, q1)
    for g, exact in zip(got.G, (g1, g2, g3), strict=True):
        assert g == pytest.approx(exact, rel=1e-13, abs=1e-14)
    assert got.parts["W0"] == pytest.approx(g1 * GRAM, rel=1e-13)
    assert got.parts["W3"] == pytest.approx(got.Phi[2], rel=1e-13)


def test_zero_rates_select_terms():
    net = mlp(2, tanh)
    got = propagate(net, unit_scales(net), {"W0": 0.0, "W1": 0.0, "W2": 3.0}, GRAM)
    assert got.ntk == pytest.approx(3.0 * got.Phi[1], rel=1e-15)


def residual(blocks, activation=tanh):
    def network(x):
        h = tp.input_matrix("W0") @ x
        for k in range(blocks):
            h = h + sp.Rational(1, 2) * (tp.hidden_matrix(f"W{k + 1}") @ activation(h))
        return tp.readout("w") @ activation(h)

    return tp.program(network)


def test_residual_recursion():
    """Q^{l+1} = Q^l + V(Q^l) / 4 and G-sums of the same kind, by hand for two blocks."""
    net = residual(2)
    got = propagate(net, unit_scales(net), unit_rates(net), GRAM)
    q1 = GRAM / D
    q2 = q1 + dual_map(tanh.expression, q1) / 4
    q3 = q2 + dual_map(tanh.expression, q2) / 4
    assert got.output_covariance == pytest.approx(dual_map(tanh.expression, q3), rel=1e-12)
    s1, s2, s3 = (dual_map(tanh.derivative, q) for q in (q1, q2, q3))
    g3 = s3
    g2 = g3 + s2 * g3 / 4
    g1 = g2 + s1 * g2 / 4
    exact = dual_map(tanh.expression, q3) + g3 * dual_map(tanh.expression, q2) / 4 + g2 * dual_map(tanh.expression, q1) / 4 + g1 * GRAM / D
    assert got.ntk == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_uses_of_a_shared_matrix_side_by_side(shared):
    """f = w (erf(W h) + erf(W relu(h))): fields and adjoints of both uses are correlated, as those of two matrices are not."""

    def network(x):
        h = tp.input_matrix("W0") @ x
        return tp.readout("w") @ (
            tp.erf(tp.hidden_matrix("W1") @ tp.linear(h)) + tp.erf(tp.hidden_matrix("W1" if shared else "W2") @ relu(h))
        )

    Q, erf = GRAM / D, tp.erf
    both = float(shared)
    arguments = {(0, 0): Q, (1, 1): dual_map(relu.expression, Q), (0, 1): Q / 2, (1, 0): Q / 2}  # <h relu(h')> = q_12 / 2
    lengths = [arguments[0, 0].diagonal(), arguments[1, 1].diagonal()]
    value, adjoint = (
        {(i, j): dual(f, f, lengths[i][:, None], lengths[j], k if i == j else both * k) for (i, j), k in arguments.items()}
        for f in (erf.expression, erf.derivative)
    )
    own = [(0, 0), (1, 1)]
    pairs = list(arguments) if shared else own
    hidden = sum(adjoint[p] * arguments[p] for p in pairs)
    through = {(0, 0): 1, (1, 1): dual_map(relu.derivative, Q), (0, 1): 1 / 2, (1, 0): 1 / 2}  # <1 relu'(h')> = 1 / 2
    first = sum(adjoint[p] * through[p] for p in pairs) * Q
    found = tp.kernels(tp.program(network), tp.ntk, DATA, layers=True)
    assert found.nngp == pytest.approx(sum(value.values()), rel=1e-12)
    assert sum(k for name, k in found.parts.items() if name in ("W1", "W2")) == pytest.approx(hidden, rel=1e-12)
    assert found.parts["W0"] == pytest.approx(first, rel=1e-12)
    assert found.ntk == pytest.approx(sum(value.values()) + hidden + first, rel=1e-12)


def plain(p, x, n):
    h = p["W0"] @ x / np.sqrt(D) + p["b1"]
    h = p["W1"] @ jnp.tanh(h) / np.sqrt(n) + p["b2"]
    return p["w"] @ jnp.tanh(h) / np.sqrt(n)


def plain_program():
    def network(x):
        h = tanh(tp.input_matrix("W0") @ x + tp.bias("b1", 0.5))
        h = tanh(tp.hidden_matrix("W1") @ h + tp.bias("b2", 0.5))
        return tp.readout("w") @ h

    return tp.program(network)


def tied(p, x, n):
    """The same matrix three times, with a skip of activations: second moments across uses, of either sign."""
    a = jax.nn.relu(p["W0"] @ x / np.sqrt(D))
    a = a + jax.nn.relu(p["W1"] @ a / np.sqrt(n))
    a = a - 0.5 * jnp.tanh(p["W1"] @ a / np.sqrt(n))
    a = jax.nn.relu(p["W1"] @ a / np.sqrt(n))
    return p["w"] @ a / np.sqrt(n)


def tied_program():
    W1 = tp.hidden_matrix("W1")

    def network(x):
        a = relu(tp.input_matrix("W0") @ x)
        a = a + relu(W1 @ a)
        a = a - sp.Rational(1, 2) * tanh(W1 @ a)
        return tp.readout("w") @ relu(W1 @ a)

    return tp.program(network)


@pytest.mark.parametrize(("program", "forward"), [(plain_program, plain), pytest.param(tied_program, tied, marks=pytest.mark.slow)])
def test_against_a_wide_network(program, forward):
    """Mean empirical tangent kernel of eight nets of width 3000: within 2 % of the norm, and three of its standard errors.

    One net fluctuates by 2 % (plain) to 5 % (tied: its kernel of nearly cancelling paths is heavy in a few sites).
    """
    n, net = 3000, program()
    biases = {m.name: float(m.sigma) for m in net.matrices if m.name.startswith("b")}
    shapes = {"W0": (n, D), "W1": (n, n), "w": (n,), "b1": (n,), "b2": (n,)}
    # weights carry 1/sqrt(n) outside the trained matrix, and adjoints of biases have n entries of size 1/sqrt(n): all rates are 1
    got = propagate(net, unit_scales(net) | biases, unit_rates(net), GRAM)
    gradient = jax.jit(jax.grad(lambda p, x: forward(p, x, n)))
    points = DATA[:2].astype(np.float32)
    measured = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        p = {m.name: np.float32(biases.get(m.name, 1.0)) * rng.standard_normal(shapes[m.name], dtype=np.float32) for m in net.matrices}
        first, second = gradient(p, points[0]), gradient(p, points[1])
        measured.append([sum(float(jnp.vdot(a[k], b[k])) for k in a) for a, b in ((first, first), (first, second), (second, second))])
    exact = got.ntk[[0, 0, 1], [0, 1, 1]]
    deviation = np.linalg.norm(np.mean(measured, axis=0) - exact)
    assert deviation <= 0.02 * np.linalg.norm(exact)
    assert deviation <= 3 * np.linalg.norm(np.std(measured, axis=0, ddof=1)) / np.sqrt(len(measured))


@pytest.mark.slow
def test_ties_matter():
    """Untying the matrix changes the kernel far more than the test above allows."""
    tied_net = tied_program()

    def network(x):
        a = relu(tp.input_matrix("W0") @ x)
        a = a + relu(tp.hidden_matrix("W1") @ a)
        a = a - sp.Rational(1, 2) * tanh(tp.hidden_matrix("W2") @ a)
        return tp.readout("w") @ relu(tp.hidden_matrix("W3") @ a)

    free = tp.program(network)
    a, b = (propagate(net, unit_scales(net), unit_rates(net), GRAM).ntk for net in (tied_net, free))
    assert np.linalg.norm(a - b) > 0.1 * np.linalg.norm(b)


def test_transposed_use():
    """A matrix used only as W.T is a matrix like any other."""

    def network(x):
        return tp.readout("w") @ tanh(tp.hidden_matrix("W1").T @ tanh(tp.input_matrix("W0") @ x))

    net, plain_net = tp.program(network), mlp(2, tanh)
    a = propagate(net, unit_scales(net), unit_rates(net), GRAM).ntk
    b = propagate(plain_net, unit_scales(plain_net), unit_rates(plain_net), GRAM).ntk
    assert a == pytest.approx(b, rel=1e-14)


@pytest.mark.slow
def test_sums_of_gaussians_and_shifts_are_gaussians():
    """phi(-2 h) through sums is phi with a rescaled field, and two sums of the same products are one field."""
    shifted = Activation("shifted", lambda x: sp.tanh(x + sp.Rational(1, 2)))

    def network(x):
        h = tp.input_matrix("W0") @ x
        both = tp.entrywise(lambda a, b: a * b, tanh(h), tanh(-2 * h))
        return tp.readout("w") @ shifted(tp.hidden_matrix("W1") @ both)

    net = tp.program(network)
    got = propagate(net, unit_scales(net), unit_rates(net), GRAM)
    product = sp.tanh(X) * sp.tanh(-2 * X)
    q2 = dual_map(product, GRAM / D)
    slope = dual_map(shifted.derivative, q2)
    exact = dual_map(shifted.expression, q2) + slope * q2 + slope * dual_map(sp.diff(product), GRAM / D) * GRAM / D
    assert got.ntk == pytest.approx(exact, rel=1e-11)


def tied_relu(x):
    W1 = tp.hidden_matrix("W1")
    a = relu(tp.input_matrix("W0") @ x + tp.bias("b", 0.5))
    a = a + relu(W1 @ a)
    a = a - sp.Rational(1, 2) * relu(W1 @ a)
    return tp.readout("w") @ relu(W1 @ a) + tp.bias("bo")


def turned(x):
    return tp.readout("w") @ tp.gelu(tp.hidden_matrix("W2").T @ relu(tp.hidden_matrix("W1") @ tp.gelu(tp.input_matrix("W0") @ x)))


COMPILED = {
    "biases everywhere": mlp(3, relu, bias=0.3, bias_rate=0.09, output_bias=0.2),
    "ten layers": mlp(10, tp.erf),
    "residual": residual(2, tp.erf),
    "tied": tp.program(tied_relu),
    "transposed": tp.program(turned),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_kernels_of_every_layer_are_those_read_one_by_one(name):
    """Phi, G and the term of every matrix, not only the sum: what is recorded and compiled for blocks of inputs, of one set and of two,
    against the statements evaluated one after the other, which the tests above hold against recursions typed out."""
    net, parameterization = COMPILED[name], tp.ntk.times((1.2, 0.9, 1.1))
    plain = propagate(net, *numeric_constants(net, limit_spec(net, parameterization), D), GRAM)
    read = {"nngp": plain.output_covariance, "ntk": plain.ntk, "Phi": np.array(plain.Phi), "G": np.array(plain.G), **plain.parts}
    whole, cross = (tp.kernels(net, parameterization, *sets, layers=True) for sets in ((DATA,), (DATA[:1], DATA[1:])))
    for k, cut in ((whole, ...), (cross, (..., slice(0, 1), slice(1, None)))):
        compiled = {"nngp": k.nngp, "ntk": k.ntk, "Phi": k.Phi, "G": k.G, **k.parts}
        assert set(compiled) == set(read)
        for what, exact in read.items():
            assert compiled[what] == pytest.approx(exact[cut], rel=0, abs=1e-13 * np.abs(exact).max()), what


def test_deep_linear_is_elementary():
    """All dual maps are identities: K = (L + 1) x.x'/D, also a hundred layers deep."""
    net = mlp(100, linear)
    got = propagate(net, unit_scales(net), unit_rates(net), GRAM)
    assert got.ntk == pytest.approx(101 * GRAM / D, rel=1e-12)


def test_permutation_and_subsets():
    """Kernels of a subset of the points, in another order, are the subset of the kernels."""
    net, order = mlp(2, tanh, bias=True), np.array([2, 0])
    scales = {**unit_scales(net), "b1": 0.0, "b2": 0.0}
    whole = propagate(net, scales, unit_rates(net), GRAM)
    part = propagate(net, scales, unit_rates(net), GRAM[np.ix_(order, order)])
    assert part.ntk == pytest.approx(whole.ntk[np.ix_(order, order)], rel=1e-13)


def two_fields(x):
    h = tp.input_matrix("W0") @ x
    stream = tanh(h) + tp.hidden_matrix("W1") @ tanh(h)
    return tp.readout("w") @ tanh(stream)


def both_ways(x):
    W1 = tp.hidden_matrix("W1")
    return tp.readout("w") @ tanh(W1.T @ tanh(W1 @ tanh(tp.input_matrix("W0") @ x)))


def symbolic(x):
    return tp.readout("w") @ tanh(sp.Symbol("beta") * (tp.input_matrix("W0") @ x))


@pytest.mark.parametrize("network", [two_fields, both_ways, symbolic], ids=lambda f: f.__name__)
def test_what_is_not_gaussian_is_refused(network):
    net = tp.program(network)
    with pytest.raises(ProgramError) as error:
        propagate(net, unit_scales(net), unit_rates(net), GRAM)
    assert error.value.hint


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"scales": {"W0": 1.0}}, "scales"),
        ({"scales": {"W0": 1.0, "W1": -1.0}}, "scales['W1']"),
        ({"rates": {"W0": 1.0, "W1": np.nan}}, "rates['W1']"),
        ({"rates": {"W0": 1.0, "W1": 1.0, "W9": 1.0}}, "rates"),
        ({"gram": np.ones((2, 3))}, "gram"),
        ({"gram": np.array([[1.0, 2.0], [0.0, 1.0]])}, "gram"),
        ({"gram": np.array([[1.0, 2.0], [2.0, 1.0]])}, "gram"),
    ],
)
def test_bad_input(change, field):
    net = mlp(1, tanh)
    arguments = {"scales": {"W0": 1.0, "W1": 1.0}, "rates": {"W0": 1.0, "W1": 1.0}, "gram": GRAM} | change
    with pytest.raises(InputError) as error:
        propagate(net, arguments["scales"], arguments["rates"], arguments["gram"])
    assert error.value.field == field and error.value.hint
