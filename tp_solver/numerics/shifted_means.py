"""E g(m + s w), w ~ N(0, 1), for functions that are sums of x^n exp(k x) between their kinks (ELU, hard tanh, products of such)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver.numerics.closed_forms import ONE, NoClosedForm, parse
from tp_solver.numerics.pointwise import branch, kinks

_FAR = 40.0
"""Standard deviations beyond which the Gaussian density is zero in double precision."""


@dataclass(frozen=True)
class Piece:
    """Between ``low`` and ``high``, g is the sum of exp(rate x) times a polynomial (its coefficients by rising power)."""

    low: float
    high: float
    terms: tuple[tuple[float, tuple[float, ...]], ...]


@cache
def pieces(g: sp.Expr) -> tuple[Piece, ...] | None:
    """The pieces of g, or None if it is not made of such."""
    ends = (-np.inf, *kinks(g), np.inf)
    out = []
    for low, high in pairwise(ends):
        inside = [v + s for v, s in ((low, 1.0), (high, -1.0)) if np.isfinite(v)]
        point = (low + high) / 2 if len(inside) == 2 else sum(inside)
        try:
            terms = parse(branch(g, point))
        except NoClosedForm:
            return None
        polynomials: dict[float, dict[int, float]] = {}
        for t in terms:
            if t.decay != 0 or t.base not in (ONE, sp.exp):
                return None
            powers = polynomials.setdefault(float(t.slope), {})
            powers[t.power] = powers.get(t.power, 0.0) + float(t.coefficient)
        full = ((rate, tuple(p.get(n, 0.0) for n in range(max(p) + 1))) for rate, p in sorted(polynomials.items()))
        out.append(Piece(low, high, tuple(full)))
    return tuple(out)


def shifted_mean(parts: tuple[Piece, ...]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The function (m, s) -> E g(m + s w), s >= 0, of broadcastable arrays; a jump counts by the mean of its two sides at s = 0."""

    def mean(m: jax.Array, s: jax.Array) -> jax.Array:
        total = jnp.zeros(jnp.broadcast_shapes(m.shape, s.shape), m.dtype)
        for part in parts:
            for rate, coefficients in part.terms:
                total = total + _term(part, rate, coefficients, m, s)
        return total

    return mean


def _term(part: Piece, rate: float, coefficients: tuple[float, ...], m: jax.Array, s: jax.Array) -> jax.Array:
    """E[exp(rate x) P(x); low < x < high]: the exponential moves the mean."""
    moved = m + rate * s * s
    low, high = (_steps(end, moved, s) for end in (part.low, part.high))
    at_low, at_high = (0.0 if v is None else jnp.exp(-(v**2) / 2) / np.sqrt(2 * np.pi) for v in (low, high))
    moments = [_mass(low, high) + jnp.zeros_like(moved), at_low - at_high + jnp.zeros_like(moved)]
    for n in range(2, len(coefficients)):
        edges = (0.0 if v is None else v ** (n - 1) * weight for v, weight in ((low, at_low), (high, at_high)))
        moments.append((n - 1) * moments[n - 2] + next(edges) - next(edges))
    total = jnp.zeros_like(moved)
    for n, coefficient in enumerate(coefficients):
        for j in range(n + 1 if coefficient else 0):
            total = total + coefficient * comb(n, j) * moved ** (n - j) * s**j * moments[j]
    if not rate:
        return total
    return total * jnp.exp(jnp.minimum(rate * m + (rate * s) ** 2 / 2, 0.98 * np.log(float(jnp.finfo(m.dtype).max))))


def _steps(end: float, m: jax.Array, s: jax.Array) -> jax.Array | None:
    """How many standard deviations from the mean to the end; None if infinite."""
    if not np.isfinite(end):
        return None
    distance = end - m
    near = s * _FAR > jnp.abs(distance)
    return jnp.where(near, distance / jnp.where(near, s, 1.0), _FAR * jnp.sign(distance))


def _mass(low: jax.Array | None, high: jax.Array | None) -> jax.Array | float:
    """P(low < v < high), accurate in both tails."""
    if low is None or high is None:
        return _below(high) if low is None and high is not None else _below(-low) if low is not None else 1.0
    side = jnp.where(low + high > 0, -1.0, 1.0)
    return side * (_below(side * high) - _below(side * low))


def _below(x: jax.Array) -> jax.Array:
    return jax.scipy.special.erfc(-x / np.sqrt(2)) / 2
