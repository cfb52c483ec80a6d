"""Cases at the borders of the kernel regime: products that occur twice, inputs of zero, odd arguments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import tp_solver as tp
from tp_solver.errors import InputError
from tp_solver.kernel_regime.compute import _ready
from tp_solver.kernel_regime.constants import numeric_constants
from tp_solver.kernel_regime.depth_rates import Law
from tp_solver.kernel_regime.jacobian import _Model
from tp_solver.kernel_regime.propagation import Propagation
from tp_solver.kernel_regime.repeated_layer import read_deep_net
from tp_solver.limit.spec import limit_spec

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4))


def repeated(depth, layer):
    """A net of tanh layers whose hidden fields are layer(W tanh(y), y)."""
    first, last = tp.input_matrix("W0"), tp.readout("w")
    hidden = [tp.hidden_matrix(f"W{k}") for k in range(1, depth)]

    def forward(x):
        y = first @ x
        for w in hidden:
            y = layer(w @ tp.tanh(y), y)
        return last @ tp.tanh(y)

    return tp.program(forward, "repeated")


DOUBLED = {
    "h + h": lambda h, y: h + h,
    "2 h": lambda h, y: 2 * h,
    "(y + h) + h": lambda h, y: (y + h) + h,
    "y/2 + y/2 + h - 3 h": lambda h, y: 0.5 * y + 0.5 * y + h - 3 * h,
}


@pytest.mark.parametrize("name", DOUBLED)
def test_products_that_occur_twice_add_up_before_they_are_squared(name):
    """W tanh(y), twice, is a matrix of twice the scale: four times the variance, not two."""
    net, parameterization = repeated(2, DOUBLED[name]), tp.ntk.times(0.6)
    scales, rates = numeric_constants(net, limit_spec(net, parameterization), X.shape[1])
    layer = read_deep_net(net, scales, rates).layer
    assert layer.skip == (1 if "y" in name else 0)
    assert [b.weight for b in layer.branches] == pytest.approx([4 * scales["W1"] ** 2])
    assert [b.rate for b in layer.branches] == pytest.approx([4 * rates["W1"]])


@pytest.mark.slow
def test_a_doubled_layer_has_the_kernels_of_its_net():
    layer, parameterization = DOUBLED["h + h"], tp.ntk.times(0.6)
    found = tp.depth_analysis(repeated(2, layer), parameterization, X, depths=(2, 3))
    for k, depth in enumerate((2, 3)):
        expected = tp.kernels(repeated(depth, layer), parameterization, X)
        np.testing.assert_allclose(found.nngp[k], expected.nngp, rtol=1e-11)
        np.testing.assert_allclose(found.ntk[k], expected.ntk, rtol=1e-11)


def bump(readout_of):
    """w readout_of(W1 10 exp(-h^2 / 2)): the smaller the input, the larger the fields of the second layer."""
    peak = tp.Activation("peak", lambda x: 10 * sp.exp(-(x**2) / 2))
    first, hidden, last = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w")
    return tp.program(lambda x: last @ readout_of(hidden @ peak(first @ x)), "bump")


def test_inputs_of_zero_are_surveyed():
    """The second layer's variance is 100 at x = 0, and almost none at large inputs."""
    net = bump(tp.erf)
    ready = Propagation(net, *numeric_constants(net, limit_spec(net, tp.ntk), 2))
    ready.survey(_Model(net, tp.ntk, None, 2, 32).squared_lengths)
    for seen in (_ready(net, tp.ntk, 2, 18, 18).seen, ready.seen):
        assert max(v for (f, _), v in seen.largest.items() if f.has(sp.erf)) == pytest.approx(100)


@pytest.mark.slow
def test_kernels_of_zero_next_to_large_inputs():
    """The series of tanh has to be long enough for the variance at x = 0."""
    z = np.linspace(-9, 9, 20001)
    expected = np.trapezoid(np.tanh(10 * z) ** 2 * np.exp(-(z**2) / 2), z) / np.sqrt(2 * np.pi)
    found = tp.kernels(bump(tp.tanh), tp.ntk, np.array([[0.0, 0.0], [300.0, 400.0]]))
    assert found.nngp[0, 0] == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "jit"])
def test_kernel_functions_refuse_inputs_of_another_shape(compiled):
    function = tp.kernel_function(tp.mlp(1, tp.erf), tp.ntk, X)
    function = jax.jit(function) if compiled else function
    with jax.enable_x64(True):
        np.testing.assert_allclose(function(X, X).nngp, tp.kernels(tp.mlp(1, tp.erf), tp.ntk, X).nngp, rtol=1e-12)
        for field, inputs in (("x1", (X[:, :2], X[:, :2])), ("x2", (X, X[:, :2])), ("x1", (X[None], X)), ("x2", (X, X[0]))):
            with pytest.raises(InputError) as error:
                function(*map(jnp.asarray, inputs))
            assert error.value.field == field and error.value.hint


NET, Y = tp.mlp(1, tp.erf), RNG.standard_normal(3)
REFUSED = {
    "constant test targets": (lambda: tp.learning_curve(NET, tp.ntk, X, Y, X, np.ones(3), (2,)), "y_test"),
    "one test point": (lambda: tp.learning_curve(NET, tp.ntk, X, Y, X[:1], Y[:1], (2,)), "y_test"),
    "no samples": (lambda: tp.learning_curve(NET, tp.ntk, X, Y, X, Y, []), "samples"),
    "samples None": (lambda: tp.learning_curve(NET, tp.ntk, X, Y, X, Y, None), "samples"),
    "samples a number": (lambda: tp.learning_curve(NET, tp.ntk, X, Y, X, Y, 5.0), "samples"),
    "transformations a number": (lambda: tp.kernel_symmetry(NET, tp.ntk, X, 5), "transformations"),
    "transformations of random numbers": (lambda: tp.kernel_symmetry(NET, tp.ntk, X, RNG), "transformations"),
    "a kernel of one argument": (lambda: tp.KernelRegressor(lambda X: X @ X.T).fit(X, Y), "kernel"),
    "inputs on a grid that the net has not": (
        lambda: tp.KernelDynamics.of(NET, tp.ntk, tp.GradientDescent(0.1, 3), X.reshape(3, 2, 2), Y), "X",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments(name):
    call, field = REFUSED[name]
    with pytest.raises(InputError) as error:
        call()
    assert error.value.field == field and error.value.hint


def test_dynamics_take_grids_of_any_dimension():
    first, last = tp.input_matrix("W0"), tp.readout("w")
    net = tp.program(lambda x: last @ tp.global_pool(tp.relu(tp.conv(first, x, (1, 2, 1)))), "volume", (2, 2, 2))
    X = RNG.standard_normal((3, 2, 2, 2, 1))
    found = tp.KernelDynamics.of(net, tp.ntk, tp.GradientDescent(0.1, 3), X[:2], Y[:2], X[2:])
    np.testing.assert_allclose(found.ntk, tp.kernels(net, tp.ntk, X).ntk, rtol=1e-12)


@pytest.mark.parametrize(
    ("activation", "scale"), [(tp.tanh, 0.7), (tp.tanh, 0.95), (tp.erf, 0.7)], ids=["tanh 0.7", "tanh 0.95", "erf 0.7"]
)
def test_the_ordered_phase_without_biases(activation, scale):
    """The variance dies out: pairs keep their correlations, and differences fall with the diagonal, as chi_1^L (KD.12)."""
    depths = (1, 2, 5)
    found = tp.depth_analysis(tp.mlp(2, activation), tp.ntk.times(scale), X, depths=depths)
    chi = scale**2 * (1 if activation is tp.tanh else 4 / np.pi)
    assert found.fixed_point.q == 0 and found.rate.law is Law.COLLAPSE
    assert found.rate.predicted_rate == pytest.approx(np.log(chi))
    assert found.rate.rate == pytest.approx(np.log(chi), rel=2e-3) and found.rate.rate_spread < 1e-3 * abs(np.log(chi))
    if activation is tp.erf:
        expected = [tp.kernels(tp.mlp(d, activation), tp.ntk.times(scale), X).ntk for d in depths]
        np.testing.assert_allclose(found.ntk, expected, rtol=1e-11)


def test_a_stream_that_dies_out():
    """y / 2 + W tanh(y) at a small scale: all that is left is linear, and no depth beyond float64 is looked at."""
    found = tp.depth_analysis(repeated(2, lambda h, y: 0.5 * y + h), tp.ntk.times(0.3), X, depths=(1, 3))
    assert found.fixed_point.q == 0 and found.fixed_point.growth == pytest.approx(0.34)
    assert np.isfinite(found.ntk).all() and found.rate.layers.max() < 300
