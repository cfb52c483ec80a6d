"""Values and kinks of a scalar expression in ``activation.X``."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.errors import ProgramError
from tp_solver.symbols.activation import X

_KINKED = (sp.Max, sp.Min, sp.Abs, sp.sign, sp.Heaviside, sp.Piecewise)


def values(f: sp.Expr, x: np.ndarray) -> np.ndarray:
    """f at every entry of x, float64, same shape."""
    with jax.enable_x64(True):
        out = np.asarray(lower(f, (X,))(jnp.asarray(x, dtype=jnp.float64)), dtype=np.float64)
    return np.broadcast_to(out, np.shape(x))


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
    roots = sp.solveset(difference, X, sp.S.Reals)
    if not isinstance(roots, sp.FiniteSet) and roots is not sp.S.EmptySet:
        raise ProgramError(
            "Gaussian expectation", f, "kinks at places that sympy can solve for", f"rewrite {difference} = 0 with polynomials"
        )
    return {float(r) for r in roots}
