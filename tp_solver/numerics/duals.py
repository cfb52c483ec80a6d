"""Gaussian expectations E[f(a) g(b)] of pairs of scalar functions (dual activations; ``theory/kernel_regime.md``, KR.3)."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any

import numpy as np
import sympy as sp

from tp_solver import checks
from tp_solver.errors import InputError, ProgramError
from tp_solver.numerics.closed_forms import Bivariate, NoClosedForm, closed_form
from tp_solver.numerics.mehler import NotConverged, mehler
from tp_solver.numerics.pointwise import kinks
from tp_solver.numerics.split_quadrature import moments, split_quadrature
from tp_solver.symbols.activation import X

SLACK = 1e-8
"""By how much |c| may exceed sqrt(q qp), relatively, before it is an error rather than rounding."""


def dual(f: sp.Expr, g: sp.Expr, q: Any, qp: Any, c: Any) -> np.ndarray:
    """E[f(a) g(b)] for (a, b) ~ N(0, [[q, c], [c, qp]]), entry by entry.

    Closed forms where known, Mehler's series for smooth functions, otherwise quadrature split at the kinks; relative
    accuracy about 1e-11 or better. Zero variances are allowed (the value at 0, with Heaviside(0) = 1/2); where |c|
    reaches sqrt(q qp) within rounding it is taken as equal to it, so that diagonals are exact.

    Args:
        f, g: expressions in ``activation.X``.
        q, qp, c: variances >= 0 and covariance, broadcastable arrays.

    Returns:
        float64 array of the broadcast shape.

    Raises:
        InputError: for non-finite or negative variances, or a covariance that is not positive semidefinite.
        ProgramError: for expressions in other symbols, delta functions, or means that do not exist.
    """
    f, g = _function(f), _function(g)
    gauss = _clipped(q, qp, c)
    for rule in RULES:
        out = rule(f, g, gauss)
        if out is not None:
            if not np.all(np.isfinite(out)):
                raise ProgramError(
                    "Gaussian expectation", f"a non-finite mean of {f} times {g}", "a finite mean", "the variances may be too large"
                )
            return np.broadcast_to(out, np.broadcast_shapes(gauss.q.shape, gauss.qp.shape, gauss.c.shape)).copy()
    raise AssertionError("the last rule always applies")


def _function(f: sp.Expr) -> sp.Expr:
    f = sp.sympify(f)
    if f.free_symbols - {X} or f.has(sp.DiracDelta):
        raise ProgramError(
            "Gaussian expectation", f, "a function of x with pointwise values", "bind parameters; differentiate kinks once only"
        )
    return f


def _clipped(q: Any, qp: Any, c: Any) -> Bivariate:
    same = q is qp
    axes = tuple(range(5))
    q, qp, c = (checks.array(name, v, ndim=axes) for name, v in (("q", q), ("qp", qp), ("c", c)))
    for name, v in (("q", q), ("qp", qp)):
        if np.any(v < -1e-12):
            raise InputError(name, float(v.min()), "variances >= 0", "the kernel is not positive semidefinite")
    q = np.maximum(q, 0.0)
    qp = q if same else np.maximum(qp, 0.0)
    try:
        bound = np.sqrt(q * qp) + np.zeros_like(c)
    except ValueError as error:
        raise InputError("c", f"shapes {q.shape}, {qp.shape}, {c.shape}", "shapes that broadcast", "q[:, None], q[None, :], c") from error
    if np.any(np.abs(c) > bound * (1 + SLACK) + 1e-12):
        worst = float(np.max(np.abs(c) - bound))
        raise InputError("c", f"a covariance {worst:.3g} above sqrt(q qp)", "|c| <= sqrt(q qp)", "the kernel is not positive semidefinite")
    snapped = np.abs(c) >= bound * (1 - 4 * np.finfo(float).eps)
    return Bivariate(q, qp, np.where(snapped, np.copysign(bound, c), c))


def _table(f: sp.Expr, g: sp.Expr, gauss: Bivariate) -> np.ndarray | None:
    try:
        return closed_form(f, g, gauss)
    except NoClosedForm:
        return None


def _polynomial(f: sp.Expr, g: sp.Expr, gauss: Bivariate) -> np.ndarray | None:
    """A polynomial times anything: a = (c / qp) b + independent noise leaves one-dimensional moments of g."""
    if not f.is_polynomial(X):
        return _polynomial(g, f, Bivariate(gauss.qp, gauss.q, gauss.c)) if g.is_polynomial(X) else None
    slope = np.divide(gauss.c, gauss.qp, out=np.zeros(np.broadcast_shapes(gauss.c.shape, gauss.qp.shape)), where=gauss.qp > 0)
    noise = np.maximum(gauss.q - slope * gauss.c, 0.0)
    polynomial = sp.Poly(f, X)
    by_power = moments(g, gauss.qp, polynomial.degree())
    total: np.ndarray | float = 0.0
    for (m,), coefficient in polynomial.terms():
        for j in range(0, m + 1, 2):
            even_moment = float(sp.factorial2(j - 1)) * noise ** (j // 2)
            total = total + float(coefficient) * comb(m, j) * even_moment * slope ** (m - j) * by_power[m - j]
    return np.asarray(total)


def _series(f: sp.Expr, g: sp.Expr, gauss: Bivariate) -> np.ndarray | None:
    if kinks(f) or kinks(g):
        return None
    try:
        return mehler(f, g, gauss)
    except NotConverged:
        return None


Rule = Callable[[sp.Expr, sp.Expr, Bivariate], "np.ndarray | None"]
RULES: tuple[Rule, ...] = (_table, _polynomial, _series, split_quadrature)
"""Tried in order; a rule answers None where it does not apply."""
