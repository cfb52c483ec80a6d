"""The one table from scalar sympy expressions to jax functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import sympy as sp
from sympy.printing.numpy import NumPyPrinter

from tp_solver.errors import ProgramError
from tp_solver.symbols.functions import logsumexp, sigmoid, softplus

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
