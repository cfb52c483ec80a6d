"""Gaussian expectations E[f(a) g(b)] of pairs of scalar functions (dual activations; ``theory/kernel_regime.md``, KR.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import factorial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver import checks
from tp_solver.elementwise import lower
from tp_solver.errors import InputError, ProgramError
from tp_solver.numerics.closed_forms import QP, C, NoClosedForm, Q, closed_form
from tp_solver.numerics.mehler import NotConverged, horner, mehler
from tp_solver.numerics.pair import Dual, entrywise, nothing
from tp_solver.numerics.pointwise import concrete, continuous, kinks
from tp_solver.numerics.split_quadrature import moments, split_quadrature
from tp_solver.symbols.activation import X
from tp_solver.symbols.functions import inverse_root

SLACK = 1e-8
"""By how much |c| may exceed sqrt(q qp), relatively, before it is an error rather than rounding."""


Expectation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@cache
def dual_function(f: sp.Expr, g: sp.Expr, largest: float) -> Expectation:
    """E[f(a) g(b)] for (a, b) ~ N(0, [[q, c], [c, qp]]) as a pure jax function of broadcastable arrays (q, qp, c).

    Closed forms where known, Mehler's series for smooth functions, otherwise quadrature split at the kinks (slow). The function
    works in the precision of its arguments, under jit, vmap, and differentiation of any order that exists: first derivatives of
    continuous functions and all derivatives of smooth ones are expectations again (Price's theorem). At full correlation and
    at zero variance values are exact (with Heaviside(0) = 1/2), and derivatives that do not exist there are zero, never NaN.

    What belongs to one variance is computed on the shape of that variance: pass q as (n, 1) and qp as (1, m).

    Args:
        f, g: expressions in ``activation.X``.
        largest: the largest variance that will occur. It fixes the number of terms and nodes, so that the relative accuracy is
            about 1e-12 in float64 for variances up to it, and degrades smoothly beyond. Closed forms do not depend on it.

    Raises:
        InputError: for a largest variance that is not a positive number.
        ProgramError: for expressions in other symbols, delta functions, or means that do not exist at the largest variance.

    Example: ``dual_function(sp.tanh(X), sp.tanh(X), 4.0)(q[:, None], q[None, :], kernel)``.
    """
    f, g = _function(f), _function(g)
    largest = checks.number("largest", largest, above=0.0)
    rule = _rule(f, g, largest)
    if rule is _table(f, g, largest) or not (continuous(f) and continuous(g)):
        return _floating(rule)
    return _floating(_differentiated(f, g, largest, rule))


def in_closed_form(f: sp.Expr, g: sp.Expr) -> bool:
    """Whether E[f(a) g(b)] is known in closed form, so that no length of a series depends on the variances."""
    return _tabled(f, g) is not None


def dual(f: sp.Expr, g: sp.Expr, q: Any, qp: Any, c: Any) -> np.ndarray:
    """E[f(a) g(b)] for (a, b) ~ N(0, [[q, c], [c, qp]]), entry by entry: :func:`dual_function` of checked arrays.

    Zero variances are allowed; where |c| reaches sqrt(q qp) within rounding it is taken as equal to it.

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
    q, qp, c = _clipped(q, qp, c)
    out = _evaluated(_rule(f, g, _bound(f, g, q, qp)), q, qp, c)
    if not np.all(np.isfinite(out)):
        raise ProgramError("Gaussian expectation", f"a non-finite mean of {f} times {g}", "a finite mean", "the variances may be too large")
    return out


def _function(f: sp.Expr) -> sp.Expr:
    f = sp.sympify(f)
    if f.free_symbols - {X} or f.has(sp.DiracDelta):
        raise ProgramError(
            "Gaussian expectation", f, "a function of x with pointwise values", "bind parameters; differentiate kinks once only"
        )
    return f


def _clipped(q: Any, qp: Any, c: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axes = tuple(range(5))
    q, qp, c = (checks.array(name, v, ndim=axes) for name, v in (("q", q), ("qp", qp), ("c", c)))
    for name, v in (("q", q), ("qp", qp)):
        if np.any(v < -1e-12):
            raise InputError(name, float(v.min()), "variances >= 0", "the kernel is not positive semidefinite")
    q, qp = np.maximum(q, 0.0), np.maximum(qp, 0.0)
    try:
        bound = np.sqrt(q * qp) + np.zeros_like(c)
    except ValueError as error:
        raise InputError("c", f"shapes {q.shape}, {qp.shape}, {c.shape}", "shapes that broadcast", "q[:, None], q[None, :], c") from error
    if np.any(np.abs(c) > bound * (1 + SLACK) + 1e-12):
        worst = float(np.max(np.abs(c) - bound))
        raise InputError("c", f"a covariance {worst:.3g} above sqrt(q qp)", "|c| <= sqrt(q qp)", "the kernel is not positive semidefinite")
    snapped = np.abs(c) >= bound * (1 - 4 * np.finfo(float).eps)
    return q, qp, np.where(snapped, np.copysign(bound, c), c)


def _bound(f: sp.Expr, g: sp.Expr, q: np.ndarray, qp: np.ndarray) -> float:
    """The largest variance, a little more where possible: then the next call finds its rule in the cache."""
    largest = float(max(q.max(initial=0.0), qp.max(initial=0.0))) or 1.0
    rounded = float(2.0 ** np.ceil(np.log2(largest)))
    try:
        _rule(f, g, rounded)
    except ProgramError:
        return largest
    return rounded


_ENTRIES = 1 << 16


def _evaluated(rule: Dual, q: np.ndarray, qp: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The rule on flat arrays whose lengths are powers of two, so that few shapes are ever compiled."""
    shape = np.broadcast_shapes(q.shape, qp.shape, c.shape)
    (left, i), (right, j) = (np.unique(v, return_inverse=True) for v in (q, qp))
    i, j = (np.broadcast_to(k.reshape(v.shape), shape).reshape(-1) for k, v in ((i, q), (j, qp)))
    flat = np.broadcast_to(c, shape).reshape(-1)
    left, right = _padded(left), _padded(right)
    sides = ((rule.left, left), (rule.right, right))
    parts = [np.zeros((0, len(v))) if side is nothing else concrete(_jitted(side), v) for side, v in sides]
    out = [np.zeros(0)]
    for s in range(0, len(flat), _ENTRIES):
        a, b, v = (_padded(k[s : s + _ENTRIES]) for k in (i, j, flat))
        out.append(concrete(_jitted(rule.pairs), parts[0][:, a], parts[1][:, b], left[a], right[b], v)[: len(flat) - s])
    return np.concatenate(out).reshape(shape)


_jitted = cache(jax.jit)


def _padded(v: np.ndarray) -> np.ndarray:
    """Repeated up to a power of two."""
    return np.resize(v, 1 << max(3, int(np.ceil(np.log2(max(len(v), 1))))))


def _floating(rule: Expectation) -> Expectation:
    """Accepts numpy arrays and numbers."""

    def expectation(q: Any, qp: Any, c: Any) -> jax.Array:
        dtype = jnp.result_type(q, qp, c, jnp.float32)
        q, qp, c = (jnp.asarray(v, dtype) for v in (q, qp, c))
        return rule(q, qp, c)

    return expectation


def _differentiated(f: sp.Expr, g: sp.Expr, largest: float, rule: Dual) -> Expectation:
    """The rule with first derivatives that are expectations themselves.

    Price: dE/dc = E f' g', dE/dq = E f'' g / 2. Where f has a kink, f'' is no function; Stein's lemma says
    E f'' g = (E a f' g - c E f' g') / q.
    """

    def slopes(q: jax.Array, qp: jax.Array, c: jax.Array) -> tuple[Callable[[], jax.Array], ...]:
        both = lambda: dual_function(_slope(f), _slope(g), largest)(q, qp, c)  # noqa: E731

        def own(h: sp.Expr, other: sp.Expr, v: jax.Array, w: jax.Array) -> jax.Array:
            if not kinks(h):
                return dual_function(sp.diff(h, X, 2), other, largest)(v, w, c) / 2
            return (dual_function(X * _slope(h), other, largest)(v, w, c) - c * both()) * _inverse_root(v) ** 2 / 2

        return lambda: own(f, g, q, qp), lambda: own(g, f, qp, q), both

    @jax.custom_jvp
    def expectation(q: jax.Array, qp: jax.Array, c: jax.Array) -> jax.Array:
        return rule(q, qp, c)

    def jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        out = expectation(*primals)
        total = jnp.zeros_like(out)
        for slope, tangent in zip(slopes(*primals), tangents, strict=True):
            if not isinstance(tangent, jax.custom_derivatives.SymbolicZero):
                total = total + slope() * tangent
        return out, total

    expectation.defjvp(jvp, symbolic_zeros=True)
    return expectation


_inverse_root = lower(inverse_root(X), (X,))


def _slope(f: sp.Expr) -> sp.Expr:
    """f' of a continuous f: what sympy writes as x delta(x) is zero."""
    return sp.diff(f, X).replace(sp.DiracDelta, lambda *_: sp.S.Zero)


def _rule(f: sp.Expr, g: sp.Expr, largest: float) -> Dual:
    for rule in RULES:
        found = rule(f, g, largest)
        if found is not None:
            return found
    raise AssertionError("the last rule always applies")


def _table(f: sp.Expr, g: sp.Expr, largest: float) -> Dual | None:
    return _tabled(f, g)


@cache
def _tabled(f: sp.Expr, g: sp.Expr) -> Dual | None:
    try:
        return entrywise(lower(closed_form(f, g), (Q, QP, C)))
    except NoClosedForm:
        return None


def _series(f: sp.Expr, g: sp.Expr, largest: float) -> Dual | None:
    if kinks(f) or kinks(g):
        return None
    try:
        return mehler(f, g, largest)
    except NotConverged:
        return None


def _polynomial(f: sp.Expr, g: sp.Expr, largest: float) -> Dual | None:
    """A polynomial times a function with kinks: the series sum_k c^k / k! E[f^(k)] E[g^(k)] ends."""
    if f.is_polynomial(X):
        return _ended(f, g, largest)
    if g.is_polynomial(X):
        mirrored = _ended(g, f, largest)
        return Dual(mirrored.right, mirrored.left, lambda left, right, q, qp, c: mirrored.pairs(right, left, qp, q, c))
    return None


@cache
def _ended(f: sp.Expr, g: sp.Expr, largest: float) -> Dual:
    degree = int(sp.degree(f, X)) if f.has(X) else 0
    means = [lower(closed_form(sp.diff(f, X, k) / factorial(k), sp.S.One), (Q,)) for k in range(degree + 1)]

    def left(q: jax.Array) -> jax.Array:
        return jnp.stack([mean(q) + jnp.zeros_like(q) for mean in means])

    def pairs(left: jax.Array, right: jax.Array, q: jax.Array, qp: jax.Array, c: jax.Array) -> jax.Array:
        return horner(left, right, c * _inverse_root(qp))

    return Dual(left, moments(g, degree + 1, largest), pairs)


RULES: tuple[Callable[[sp.Expr, sp.Expr, float], Dual | None], ...] = (_table, _series, _polynomial, split_quadrature)
"""Tried in order; a rule answers None where it does not apply."""
