"""The one table from scalar sympy expressions to jax functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import sympy as sp
from sympy.printing.numpy import NumPyPrinter

from tp_solver.errors import ProgramError
from tp_solver.symbols.functions import (
    arcsine,
    arcsine_integral,
    arcsine_slope,
    damped_cosh,
    damped_sinh,
    inverse_root,
    logsumexp,
    root,
    sigmoid,
    softplus,
)

COINCIDENT = 8
"""Correlations within this many units of rounding of -1 or 1 are -1 or 1."""
_ARCSINE = {
    64: (
        0.6629475548369097, -2.277990489441633, 3.7316474816315224, -3.7415993002001366, 2.573508064401593,
        -1.258681300394588, 0.46581061083892006, -0.1174784139555458, 0.033823977477227554, 0.0058919623838489124,
        0.011985559032731258, 0.013929824301362788, 0.017354730668996843, 0.022372086303686842, 0.030381946078023858,
        0.04464285712358516, 0.07500000000008983, 0.1666666666666666,
    ),
    32: (
        0.09469734959597223, -0.07972071595315332, 0.06379697638268081, 0.010435325974988746, 0.03199023922716213,
        0.044538813973175724, 0.07500252163633334, 0.16666665678232892,
    ),
}  # fmt: skip
"""(arcsin(m) / m - 1) / m^2 as a polynomial of m^2 <= 1/2, highest power first: Chebyshev fit, error 2e-16 (2e-8 in
single precision)."""


def _leg(x: jax.Array) -> jax.Array:
    """sqrt(1 - x^2), accurate where it is small."""
    size = jnp.abs(x)
    square = (1 - size) * (1 + size)
    return jnp.sqrt(jnp.where(square < 2 * COINCIDENT * jnp.finfo(square.dtype).eps, 0.0, square))


def _arcsine(x: jax.Array) -> jax.Array:
    # several times faster than jnp.arcsin: no branches, and the square root is the one that a kernel needs besides
    size, leg = jnp.abs(x), _leg(x)
    small = size < leg
    m = jnp.where(small, size, leg)
    square = m * m
    first, *rest = _ARCSINE[max(32, jnp.finfo(m.dtype).bits)]
    series: Any = first
    for coefficient in rest:
        series = series * square + coefficient
    part = m + m * square * series
    angle = jnp.where(small, part, math.pi / 2 - part)
    return jnp.where(x < 0, -angle, angle)


def _arcsine_slope(x: jax.Array) -> jax.Array:
    leg = _leg(x)
    return jnp.where(leg > 0, 1 / jnp.where(leg > 0, leg, 1.0), 0.0)


def _inverse_root(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, 1 / jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def _damped_sinh(u: jax.Array, v: jax.Array) -> jax.Array:
    size = jnp.abs(u)
    return -0.5 * jnp.sign(u) * jnp.exp(size - v) * jnp.expm1(-2 * size)


def _damped_cosh(u: jax.Array, v: jax.Array) -> jax.Array:
    size = jnp.abs(u)
    return 0.5 * jnp.exp(size - v) * (1 + jnp.exp(-2 * size))


def _differentiated(kind: type[sp.Function], value: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function with the derivatives that sympy has for it."""
    arguments = tuple(sp.Dummy(real=True) for _ in range(next(iter(kind.nargs))))

    @jax.custom_jvp
    def function(*x: jax.Array) -> jax.Array:
        return value(*x)

    @function.defjvp
    def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        slopes = [lower(sp.diff(kind(*arguments), a), arguments)(*primals) for a in arguments]
        return function(*primals), _fold(jnp.add, [s * t for s, t in zip(slopes, tangents, strict=True)])

    return lambda *x: function(*map(_floating, x))


def _floating(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


_SPECIAL: dict[type, tuple[str, Callable[..., Any]]] = {
    sp.erf: ("erf", jax.scipy.special.erf),
    sp.erfc: ("erfc", jax.scipy.special.erfc),
    sigmoid: ("sigmoid", jax.nn.sigmoid),
    softplus: ("softplus", jax.nn.softplus),
    logsumexp: ("logsumexp", lambda *x: jax.scipy.special.logsumexp(jnp.stack(jnp.broadcast_arrays(*x)), axis=0)),
    sp.sech: ("sech", lambda x: 2 * jnp.exp(-jnp.abs(x)) / (1 + jnp.exp(-2 * jnp.abs(x)))),
    sp.Heaviside: ("heaviside", lambda x, *_: jnp.where(x > 0, 1.0, 0.0).astype(jnp.result_type(x))),
    sp.sign: ("sign", jnp.sign),
    sp.Max: ("maximum", lambda *x: _fold(jnp.maximum, x)),
    sp.Min: ("minimum", lambda *x: _fold(jnp.minimum, x)),
    root: ("root", _differentiated(root, lambda x: jnp.sqrt(jnp.maximum(x, 0.0)))),
    inverse_root: ("inverse_root", _differentiated(inverse_root, _inverse_root)),
    arcsine: ("arcsine", _differentiated(arcsine, _arcsine)),
    arcsine_slope: ("arcsine_slope", _differentiated(arcsine_slope, _arcsine_slope)),
    arcsine_integral: ("arcsine_integral", _differentiated(arcsine_integral, lambda x: _leg(x) + x * _arcsine(x))),
    damped_sinh: ("damped_sinh", _differentiated(damped_sinh, _damped_sinh)),
    damped_cosh: ("damped_cosh", _differentiated(damped_cosh, _damped_cosh)),
}


def _fold(function: Callable[[Any, Any], Any], values: Sequence[Any]) -> Any:
    out = values[0]
    for v in values[1:]:
        out = function(out, v)
    return out


class _JaxPrinter(NumPyPrinter):
    """Prints every special function as a call by name; the names are bound in ``_NAMESPACE``."""

    _module = "jnp"

    def __init__(self) -> None:
        super().__init__({"fully_qualified_modules": False, "allow_unknown_functions": False})

    def _print_Function(self, expr: sp.Expr) -> str:
        if type(expr) in _SPECIAL:
            return f"{_SPECIAL[type(expr)][0]}({', '.join(map(self._print, expr.args))})"
        return super()._print_Function(expr)

    def _print_DiracDelta(self, expr: sp.Expr) -> str:
        raise ProgramError("lowering", expr, "a function with pointwise values", "a delta function came from differentiating a kink twice")


for _kind in _SPECIAL:
    setattr(_JaxPrinter, f"_print_{_kind.__name__}", _JaxPrinter._print_Function)

_NAMESPACE = {name: function for name, function in _SPECIAL.values()}


@cache
def lower(expression: sp.Expr, arguments: tuple[sp.Symbol, ...]) -> Callable[..., Any]:
    """A jax function of the arguments, with common subexpressions shared.

    Args:
        expression: scalar sympy expression whose free symbols are all among the arguments.
        arguments: order of the positional arguments.

    Raises:
        ProgramError: for free symbols without a value, or a sympy function that has no jax counterpart.
    """
    missing = expression.free_symbols - set(arguments)
    if missing:
        raise ProgramError(
            "lowering", f"the symbols {sorted(map(str, missing))} without values", "numbers", "bind them with program.bind({...})"
        )
    try:
        return sp.lambdify(
            arguments,
            expression,
            modules=[_NAMESPACE, {n: getattr(jnp, n) for n in dir(jnp) if not n.startswith("_")}],
            printer=_JaxPrinter(),
            cse=True,
        )
    except ProgramError:
        raise
    except Exception as error:
        raise ProgramError("lowering", str(expression), "functions that jax can evaluate", f"sympy said: {error}") from error
