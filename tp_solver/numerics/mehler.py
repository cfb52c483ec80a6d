"""Gaussian expectations of smooth functions by Mehler's series, as jax functions.

E[f(a) g(b)] = sum_k f_k(q) g_k(qp) rho^k with f_k(q) = E[f(sqrt(q) z) He_k(z)] / sqrt(k!), z ~ N(0, 1). Coefficients are taken
once per variance, not per pair. By Parseval the rest of the series is at most sqrt(tail_f tail_g) |rho|^K with
tail_f = E f^2 - sum_{k < K} f_k^2, for every rho including 1: the number of terms is chosen so that it is negligible for all
variances up to the largest one expected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.errors import ProgramError
from tp_solver.numerics.pair import Dual
from tp_solver.numerics.pointwise import values
from tp_solver.symbols.activation import X
from tp_solver.symbols.functions import inverse_root, root

TOLERANCE = 1e-13
"""Largest relative tail E f^2 - sum f_k^2; also what rounding of a few hundred coefficients leaves."""
MAX_TERMS = 8192
REACH = 13.0
"""Trapezoidal nodes end here: beyond it the integrands are below exp(-13^2 / 4) = 4e-19."""
_STEPS = tuple(1 / n for n in (4, 6, 8, 12, 16, 24, 32, 48, 64))
_OCTAVES = 2.0 ** -np.arange(0, 24, 2)
"""Fractions of the largest variance at which the number of terms is checked."""
_UNROLLED = 8

_root, _inverse_root = (lower(s(X), (X,)) for s in (root, inverse_root))


class NotConverged(Exception):
    """The series is too long, or the function too rough (internal: the caller goes on to split quadrature)."""


@dataclass(frozen=True)
class Series:
    """Nodes z (G,) and weighted polynomials (K, G): ``f_k(q) = sum_z basis[k, z] f(sqrt(q) z)``."""

    nodes: np.ndarray
    basis: np.ndarray

    def coefficients(self, f: sp.Expr, q: jax.Array) -> jax.Array:
        """f_k(q), shape (K, *q.shape)."""
        nodes = jnp.asarray(self.nodes, q.dtype).reshape(-1, *(1,) * q.ndim)
        sites = jnp.broadcast_to(lower(f, (X,))(_root(q) * nodes), (len(self.nodes), *q.shape)).astype(q.dtype)
        return jnp.tensordot(jnp.asarray(self.basis, q.dtype), sites, axes=1, precision=jax.lax.Precision.HIGHEST)


def mehler(f: sp.Expr, g: sp.Expr, largest: float) -> Dual:
    """E[f(a) g(b)] for smooth f and g and variances up to ``largest``.

    Raises:
        NotConverged: if MAX_TERMS coefficients leave a relative tail above the tolerance.
        ProgramError: if f or g is not finite on the grid.
    """
    terms = max(_terms(f, largest), _terms(g, largest))
    return _summed(f, g, terms, min(_step(f, largest, terms), _step(g, largest, terms)))


@cache
def _summed(f: sp.Expr, g: sp.Expr, terms: int, step: float) -> Dual:
    """sum_k f_k(q) g_k(qp) rho^k by Horner's rule."""
    series = _series(terms, step)

    def pairs(left: jax.Array, right: jax.Array, q: jax.Array, qp: jax.Array, c: jax.Array) -> jax.Array:
        return horner(left, right, jnp.clip(c * _inverse_root(q) * _inverse_root(qp), -1.0, 1.0))

    return Dual(partial(series.coefficients, f), partial(series.coefficients, g), pairs)


def horner(left: jax.Array, right: jax.Array, x: jax.Array) -> jax.Array:
    """sum_k left[k] right[k] x^k, broadcast."""

    def add(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total * x + pair[0] * pair[1], None

    start = jnp.zeros(jnp.broadcast_shapes(left.shape[1:], right.shape[1:], x.shape), x.dtype)
    return jax.lax.scan(add, start, (left[::-1], right[::-1]), unroll=_UNROLLED)[0]


@cache
def _terms(f: sp.Expr, largest: float) -> int:
    """How many coefficients leave a negligible tail for every variance up to the largest."""
    q = largest * _OCTAVES
    weighted, step = _sites(f, q, _STEPS[-1]), _STEPS[-1]
    power = np.sum(weighted**2, axis=0)
    coarse = 2 * np.sum(weighted[_half(len(weighted))] ** 2, axis=0)
    if np.any(np.abs(power - coarse) > np.sqrt(TOLERANCE) * power):  # halving the step squares the error
        raise NotConverged
    tail, block = power.copy(), 32
    polynomials = _polynomials(step)
    for start in range(0, MAX_TERMS, block):
        rows = np.stack([next(polynomials) for _ in range(block)])
        tail = tail - np.sum((rows @ weighted) ** 2, axis=0)
        if np.all(tail <= TOLERANCE * power):
            return start + block
    raise NotConverged


@cache
def _step(f: sp.Expr, largest: float, terms: int) -> float:
    """The widest grid on which the coefficients are those of the finest one, to rounding."""
    q = largest * _OCTAVES
    finest = _series(terms, _STEPS[-1]).basis @ values(f, np.sqrt(q) * _grid(_STEPS[-1])[:, None])
    scale = np.max(np.abs(finest), axis=0)
    for step in _STEPS[:-1]:
        got = _series(terms, step).basis @ values(f, np.sqrt(q) * _grid(step)[:, None])
        if np.all(np.abs(got - finest) <= 4e-15 * scale):
            return step
    return _STEPS[-1]


@cache
def _series(terms: int, step: float) -> Series:
    grid, polynomials = _grid(step), _polynomials(step)
    weight = np.sqrt(step) * np.exp(-(grid**2) / 4) / (2 * np.pi) ** 0.25
    return Series(grid, np.stack([next(polynomials) * weight for _ in range(terms)]))


def _grid(step: float) -> np.ndarray:
    half = round(REACH / step)
    return np.arange(-half, half + 1) * step


def _half(count: int) -> np.ndarray:
    """Every other node, the middle one among them."""
    return np.arange((count // 2) % 2, count, 2)


def _sites(f: sp.Expr, q: np.ndarray, step: float) -> np.ndarray:
    """f(sqrt(q) z) times the square root of the weights, (G, U)."""
    grid = _grid(step)
    sites = values(f, np.sqrt(q)[None, :] * grid[:, None])
    if not np.all(np.isfinite(sites)):
        raise ProgramError(
            "Gaussian expectation", f, "a function that is finite on thirteen standard deviations", "its Gaussian mean may not exist"
        )
    return np.sqrt(step) * np.exp(-(grid**2) / 4)[:, None] / (2 * np.pi) ** 0.25 * sites


def _polynomials(step: float) -> Iterator[np.ndarray]:
    """He_k / sqrt(k!) times the square root of the weights, k = 0, 1, ..."""
    grid = _grid(step)
    current = np.sqrt(step) * np.exp(-(grid**2) / 4) / (2 * np.pi) ** 0.25
    previous, k = np.zeros_like(current), 0
    while True:
        yield current
        previous, current = current, (grid * current - np.sqrt(k) * previous) / np.sqrt(k + 1)
        k += 1
