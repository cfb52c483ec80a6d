"""Every activation, shipped or typed by a user: finite far out, and sympy's derivative is the derivative of what runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.errors import ProgramError
from tp_solver.symbols.activation import SHIPPED, Activation, X

USER = (
    Activation("silu", lambda x: x / (1 + sp.exp(-x))),
    Activation("silu, written otherwise", lambda x: x * sp.exp(x) / (1 + sp.exp(x))),
    Activation("softplus", lambda x: sp.log(1 + sp.exp(x))),
    Activation("log cosh", lambda x: sp.log(sp.cosh(x))),
    Activation("log cosh, written otherwise", lambda x: sp.log(sp.exp(x) + sp.exp(-x))),
    Activation("sigmoid", lambda x: 1 / (1 + sp.exp(-x))),
    Activation("tanh by exponentials", lambda x: (sp.exp(x) - sp.exp(-x)) / (sp.exp(x) + sp.exp(-x))),
    Activation("sech", lambda x: 1 / sp.cosh(x)),
    Activation("mish", lambda x: x * sp.tanh(sp.log(1 + sp.exp(x)))),
    Activation("elu", lambda x: sp.Piecewise((x, x > 0), (sp.exp(x) - 1, True))),
    Activation("abs", sp.Abs),
    Activation("sin 2x", lambda x: sp.sin(2 * x)),
    Activation("cubic", lambda x: x**3 / 3 - x),
    Activation("hard tanh", lambda x: sp.Max(-1, sp.Min(1, x))),
    Activation("squared relu", lambda x: sp.Max(x, 0) ** 2),
    Activation("softsign", lambda x: x / (1 + sp.Abs(x))),
    Activation("gaussian", lambda x: sp.exp(-(x**2) / 2)),
)
every_activation = pytest.mark.parametrize("activation", [*SHIPPED, *USER], ids=lambda a: a.name)
both_precisions = pytest.mark.parametrize("x64", [True, False], ids=["float64", "float32"])


@both_precisions
@every_activation
def test_value_and_derivative_are_finite_far_out(activation, x64):
    with jax.enable_x64(x64):
        x = jnp.asarray([-1000.0, -90.0, -20.0, 0.0, 20.0, 90.0, 1000.0])
        for expression in (activation.expression, activation.derivative):
            value = np.asarray(lower(expression, (X,))(x))
            assert np.isfinite(value).all(), f"{expression} at {x[~np.isfinite(value)]}"


@every_activation
def test_derivative_is_the_gradient_of_the_lowered_value(activation):
    with jax.enable_x64(True):
        # away from the kinks of the list, which sit at integers
        x = jnp.asarray([-7.3, -2.6, -1.2, -0.55, -0.01, 0.02, 0.7, 1.4, 3.1, 8.8])
        value, derivative = lower(activation.expression, (X,)), lower(activation.derivative, (X,))
        witness = jax.vmap(jax.grad(lambda t: value(t) * 1.0))(x)
        found = jnp.broadcast_to(derivative(x), x.shape)
    # two orders of evaluation of one formula: rounding only
    np.testing.assert_allclose(found, witness, rtol=1e-12, atol=1e-12)


@every_activation
def test_rewriting_keeps_the_value(activation):
    typed = sp.sympify(activation.function(X))
    with jax.enable_x64(True):
        for point in (-3.2, -0.4, 0.3, 2.1):
            expected = float(typed.subs(X, sp.Rational(str(point))).evalf(30))
            assert float(lower(activation.expression, (X,))(jnp.asarray(point))) == pytest.approx(expected, rel=1e-13, abs=1e-14)


@pytest.mark.parametrize(
    ("name", "smooth", "linear"),
    [
        ("linear", True, True),
        ("tanh", True, False),
        ("erf", True, False),
        ("relu", False, False),
        ("leaky_relu", False, False),
        ("gelu", True, False),
        ("sin", True, False),
    ],
)
def test_shipped_activations_know_what_they_are(name, smooth, linear):
    (activation,) = (a for a in SHIPPED if a.name == name)
    assert (activation.smooth, activation.linear) == (smooth, linear)


def test_a_kink_differentiated_twice_is_refused():
    (relu,) = (a for a in SHIPPED if a.name == "relu")
    with pytest.raises(ProgramError, match="delta function"):
        lower(sp.diff(relu.derivative, X), (X,))


def test_an_unknown_function_is_refused():
    with pytest.raises(ProgramError, match="Hint: "):
        lower(sp.besselj(0, X), (X,))


def test_symbols_without_a_value_are_named():
    with pytest.raises(ProgramError, match="'q'"):
        lower(sp.Symbol("q") * X, (X,))
