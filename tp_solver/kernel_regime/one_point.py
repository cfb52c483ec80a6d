"""Means of functions of one Gaussian, E f(sqrt(q) z): as a jax function of q, and as a formula where there is one.

The panels of the quadrature end at every kink, and there are panels on the scale of z (where the weight lives) and on that of
x = sqrt(q) z (where the function lives), so that one fixed rule serves variances from 1e-12 to 1e8.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.errors import ProgramError
from tp_solver.numerics.closed_forms import QP, C, NoClosedForm, exact_form
from tp_solver.numerics.closed_forms import Q as FIRST
from tp_solver.numerics.pointwise import kinks
from tp_solver.symbols.activation import X
from tp_solver.symbols.functions import arcsine, arcsine_integral, arcsine_slope, damped_cosh, damped_sinh, inverse_root, root

Q = sp.Symbol("q", positive=True)
"""The variance in formulas."""
EDGE = 11.0
"""Standard deviations beyond which nothing is counted: the weight there is below 1e-26."""
_ORDER = 16
_OF_Z = np.array([0.25, 0.6, 1.0, 1.5, 2.0, 2.75, 3.5, 4.5, 5.5, 7.0, 8.5, EDGE])
_OF_X = 0.25 * 2.0 ** np.arange(18)


def line_rule(q: jax.Array, points: tuple[float, ...], order: int = _ORDER) -> tuple[jax.Array, jax.Array]:
    """Nodes z and weights (..., n) with sum_n w_n g(z_n) = E g(z), for functions of sqrt(q_k) z whose kinks are among ``points``.

    Args:
        q: variances (..., K) of the K fields that the function depends on.
        points: kinks, in units of the fields.
        order: nodes per panel.
    """
    nodes, weights = np.polynomial.legendre.leggauss(order)
    root = jnp.sqrt(q)[..., None]
    of_x = jnp.concatenate([-_OF_X[::-1], jnp.zeros(1), _OF_X, jnp.asarray(points, dtype=q.dtype)])
    inner = jnp.where(root > 0, of_x / jnp.where(root > 0, root, 1.0), 0.0).reshape(*q.shape[:-1], -1)
    of_z = jnp.broadcast_to(jnp.concatenate([-_OF_Z[::-1], _OF_Z]), (*q.shape[:-1], 2 * len(_OF_Z)))
    breaks = jnp.sort(jnp.clip(jnp.concatenate([inner, of_z], axis=-1), -EDGE, EDGE), axis=-1)
    left, size = breaks[..., :-1, None], jnp.diff(breaks)[..., None]
    z = (left + size * (nodes + 1) / 2).reshape(*q.shape[:-1], -1)
    return z, (size * weights / 2).reshape(z.shape) * jnp.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


@cache
def _compiled(f: sp.Expr, order: int = _ORDER) -> Callable[[jax.Array], jax.Array]:
    slope = sp.diff(f, X)
    value, derivative, points = lower(f, (X,)), lower(slope, (X,)), kinks(f)

    def rows(q: jax.Array) -> jax.Array:
        z, w = line_rule(q[:, None], points, order)
        x = jnp.sqrt(q)[:, None] * z
        a, b = (jnp.where(w > 0, g(x), 0.0) for g in (value, derivative))
        return jnp.stack([jnp.sum(w * g, -1) for g in (a * a, b * b, x * a * b / q[:, None], z * a)])

    return jax.jit(rows)


def curves(f: sp.Expr, q: np.ndarray) -> np.ndarray:
    """E f^2, E f'^2, the derivative of the first by q, and E z f, at variances q >= 0: shape (4, *q.shape).

    At zero f is straight on either side, so that the second and the third agree for f(0) = 0.
    """
    zero = np.ravel(q) == 0
    out = _in_batches(_compiled(f), np.where(zero, _NEARLY_ZERO, np.ravel(q)).astype(float), 4)
    out[2] = np.where(zero, out[1], out[2])
    return out.reshape(4, *np.shape(q))


def require_resolved(f: sp.Expr, q: float) -> None:
    """Refuse a variance at which f varies faster than the panels can tell.

    Raises:
        ProgramError: naming the function and the variance.
    """
    fine, coarse = (_in_batches(_compiled(f, order), np.array([q]), 4)[:2] for order in (_ORDER, _COARSE))
    if not np.allclose(fine, coarse, rtol=1e-8, atol=0):
        raise ProgramError(
            "Gaussian expectation", f"{f} at variance {q:.4g}", "a function that varies on the scale of its argument or of its kinks",
            "it oscillates many times within one standard deviation: take smaller scales",
        )  # fmt: skip


@cache
def _hermite(f: sp.Expr) -> Callable[[jax.Array], jax.Array]:
    value, points = lower(f, (X,)), kinks(f)

    def squares(q: jax.Array) -> jax.Array:
        z, w = line_rule(q[:, None], points)
        weighted = jnp.where(w > 0, w * value(jnp.sqrt(q)[:, None] * z), 0.0)

        def step(last: tuple[jax.Array, jax.Array], k: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            previous, current = last
            following = (z * current - jnp.sqrt(k) * previous) / jnp.sqrt(k + 1)
            return (current, following), jnp.sum(weighted * current, -1) ** 2

        _, out = jax.lax.scan(step, (jnp.zeros_like(z), jnp.ones_like(z)), jnp.arange(TERMS, dtype=q.dtype))
        return out

    return jax.jit(squares)


def hermite_squares(f: sp.Expr, q: np.ndarray) -> np.ndarray:
    """Squares of the coefficients of f(sqrt(q) z) in normalised Hermite polynomials, (TERMS, len(q)), for q > 0.

    E f(u) f(v) = sum_k a_k^2 c^k for correlation c (Mehler); what is beyond the last term belongs to correlations near one.
    """
    return _in_batches(_hermite(f), q, TERMS)


def _in_batches(function: Callable[[jax.Array], jax.Array], q: np.ndarray, rows: int) -> np.ndarray:
    """Two shapes only, so that each is compiled once: a single variance, or a full batch."""
    out = np.empty((rows, len(q)))
    with jax.enable_x64(True):
        for start in range(0, len(q), _BATCH):
            part = q[start : start + _BATCH]
            padded = np.concatenate([part, np.ones((1 if len(part) == 1 else _BATCH) - len(part))])
            out[:, start : start + _BATCH] = np.asarray(function(jnp.asarray(padded)))[:, : len(part)]
    return out


@cache
def formula(f: sp.Expr) -> sp.Expr | None:
    """E f(sqrt(q) z)^2 in closed form, as an expression in :data:`Q`, or None where the table has none."""
    try:
        found = exact_form(f, f)
    except NoClosedForm:
        return None
    plain = found.subs({FIRST: Q, QP: Q, C: Q}, simultaneous=True)
    for special, usual in _USUAL.items():
        plain = plain.replace(special, usual)
    plain = plain.replace(lambda e: e.is_Pow and not e.exp.is_Integer, lambda e: sp.expand(e.base) ** e.exp)
    return sp.simplify(plain)


TERMS = 512
"""Hermite coefficients that are looked at; the panels resolve them."""
_COARSE = 12
_BATCH = 64
_NEARLY_ZERO = 1e-30
_USUAL: dict[type, Callable[..., sp.Expr]] = {
    root: sp.sqrt,
    inverse_root: lambda x: 1 / sp.sqrt(x),
    arcsine: sp.asin,
    arcsine_slope: lambda x: 1 / sp.sqrt(1 - x**2),
    arcsine_integral: lambda x: x * sp.asin(x) + sp.sqrt(1 - x**2),
    damped_sinh: lambda u, v: (sp.exp(u - v) - sp.exp(-u - v)) / 2,
    damped_cosh: lambda u, v: (sp.exp(u - v) + sp.exp(-u - v)) / 2,
}
"""The functions of the table as sympy's own, which it can simplify; q > 0 makes them the same."""
