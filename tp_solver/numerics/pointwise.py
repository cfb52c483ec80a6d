"""Values, kinks and jumps of a scalar expression in ``activation.X``."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.errors import ProgramError
from tp_solver.symbols.activation import X

_KINKED = (sp.Max, sp.Min, sp.Abs, sp.sign, sp.Heaviside, sp.Piecewise)


def concrete(function: Callable[..., jax.Array], *arrays: np.ndarray) -> np.ndarray:
    """A jax function of float64 arrays, evaluated now even while something else is being traced."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return np.asarray(function(*(jnp.asarray(a, dtype=jnp.float64) for a in arrays)), dtype=np.float64)


def values(f: sp.Expr, x: np.ndarray) -> np.ndarray:
    """f at every entry of x, float64, same shape."""
    return np.broadcast_to(concrete(lower(f, (X,)), x), np.shape(x))


@cache
def kinks(f: sp.Expr) -> tuple[float, ...]:
    """Where f or a derivative may jump, in increasing order; empty for a smooth expression.

    Raises:
        ProgramError: for a kink whose place sympy cannot find, or a delta function.
    """
    if f.has(sp.DiracDelta):
        raise ProgramError("Gaussian expectation", f, "a function with pointwise values", "differentiate a kinked activation once only")
    found: set[float] = set()
    for atom in f.atoms(*_KINKED):
        for difference in _switches(atom):
            found |= _roots(difference, f)
    return tuple(sorted(found))


@cache
def continuous(f: sp.Expr) -> bool:
    """Whether f itself has no jump at its kinks."""
    places = np.array(kinks(f))
    width = 1e-9 * (1 + np.abs(places))
    left, right = values(f, places - width), values(f, places + width)
    return bool(np.all(np.abs(right - left) <= 1e-6 * (1 + np.abs(left) + np.abs(right))))


class Parity(Enum):
    """What f(-x) is."""

    EVEN = "f(x)"
    ODD = "-f(x)"
    NEITHER = "neither"

    @property
    def orders(self) -> frozenset[int]:
        """Orders modulo 2 of the Hermite polynomials that f overlaps with."""
        return {Parity.EVEN: frozenset({0}), Parity.ODD: frozenset({1})}.get(self, frozenset({0, 1}))


@cache
def parity_of(f: sp.Expr) -> Parity:
    """The parity of an expression."""
    x = np.concatenate([np.geomspace(1e-3, 30, 40), [0.0]])
    right, left = values(f, x), values(f, -x)
    slack = 1e-14 * (np.abs(right) + np.abs(left))
    if np.all(np.abs(right - left) <= slack):
        return Parity.EVEN
    return Parity.ODD if np.all(np.abs(right + left) <= slack) else Parity.NEITHER


def branch(f: sp.Expr, point: float) -> sp.Expr:
    """The smooth expression that f is around a point that is no kink."""

    def chosen(e: sp.Expr) -> sp.Expr:
        if isinstance(e, (sp.Max, sp.Min)):
            pick = max if isinstance(e, sp.Max) else min
            return pick(e.args, key=lambda a: float(a.subs(X, point)))
        if isinstance(e, sp.Piecewise):
            return next((value for value, condition in e.args if condition.subs(X, point) == sp.true), sp.nan)
        sign = 1 if e.args[0].subs(X, point) > 0 else -1
        return {sp.Abs: sign * e.args[0], sp.sign: sp.Integer(sign), sp.Heaviside: sp.Integer(max(sign, 0))}[type(e)]

    return f.replace(lambda e: isinstance(e, _KINKED), chosen)


def _switches(atom: sp.Expr) -> list[sp.Expr]:
    """Expressions whose sign decides which branch of a kinked function holds."""
    if isinstance(atom, (sp.Max, sp.Min)):
        return [a - b for i, a in enumerate(atom.args) for b in atom.args[:i]]
    if isinstance(atom, sp.Piecewise):
        relations = set().union(*(condition.atoms(sp.core.relational.Relational) for _, condition in atom.args))
        return [r.lhs - r.rhs for r in relations]
    return [atom.args[0]]


def _roots(difference: sp.Expr, f: sp.Expr) -> set[float]:
    if X not in difference.free_symbols:
        return set()
    if difference.is_polynomial(X) and sp.degree(difference, X) == 1:
        return {float(-difference.subs(X, 0) / sp.diff(difference, X))}
    roots = sp.solveset(difference, X, sp.S.Reals)
    if not isinstance(roots, sp.FiniteSet) and roots is not sp.S.EmptySet:
        raise ProgramError(
            "Gaussian expectation", f, "kinks at places that sympy can solve for", f"rewrite {difference} = 0 with polynomials"
        )
    return {float(r) for r in roots}
