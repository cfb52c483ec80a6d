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
from tp_solver.numerics.pointwise import Parity, parity_of, values
from tp_solver.symbols.activation import X
from tp_solver.symbols.functions import inverse_root, root

TOLERANCE = {64: 1e-13, 32: 1e-8}
"""Largest relative tail E f^2 - sum f_k^2 by precision; also what rounding of a few hundred coefficients leaves."""
MAX_TERMS = 8192
REACH = 13
"""Trapezoidal nodes end here: beyond it the integrands are below exp(-13^2 / 4) = 4e-19."""
_DENSITIES = (4, 8, 16, 32, 64)
"""Nodes per unit of z that are tried."""
_OCTAVES = 2.0 ** -np.arange(0, 24, 2)
"""Fractions of the largest variance at which the number of terms and nodes is settled."""
_BLOCK = 32
_UNROLLED = 32

_root, _inverse_root = (lower(s(X), (X,)) for s in (root, inverse_root))


class NotConverged(Exception):
    """The series is too long, or the function too rough (internal: the caller goes on to split quadrature)."""


@dataclass(frozen=True)
class Series:
    """Nodes z >= 0 (G,) and weighted polynomials (terms, G) of even and of odd order; those that are not needed are absent."""

    nodes: np.ndarray
    even: np.ndarray
    odd: np.ndarray

    def coefficients(self, f: sp.Expr, q: jax.Array) -> jax.Array:
        """f_k(q) = E[f(sqrt(q) z) He_k(z)] / sqrt(k!), first of even, then of odd order: (terms, *q.shape)."""
        x = _root(q) * jnp.asarray(self.nodes, q.dtype).reshape(-1, *(1,) * q.ndim)
        value, parity = lower(f, (X,)), parity_of(f)
        right = jnp.broadcast_to(value(x), x.shape).astype(q.dtype)
        left = {Parity.EVEN: right, Parity.ODD: -right}.get(parity)
        if left is None:
            left = jnp.broadcast_to(value(-x), x.shape).astype(q.dtype)
        parts = [(self.even, right + left), (self.odd, right - left)]
        return jnp.concatenate([_contracted(basis, sites) for basis, sites in parts])


def _contracted(basis: np.ndarray, sites: jax.Array) -> jax.Array:
    return jnp.tensordot(jnp.asarray(basis, sites.dtype), sites, axes=1, precision=jax.lax.Precision.HIGHEST)


def mehler(f: sp.Expr, g: sp.Expr, largest: float) -> Dual:
    """E[f(a) g(b)] for smooth f and g and variances up to ``largest``.

    Raises:
        NotConverged: if MAX_TERMS coefficients leave a relative tail above the tolerance, or the integrals of f or g do not settle.
        ProgramError: if f or g is not finite on the grid.
    """
    sizes = []
    for tolerance in TOLERANCE.values():
        ended = [sp.degree(h, X) + 1 if h.has(X) else 1 for h in (f, g) if h.is_polynomial(X)]
        terms = int(min(ended)) if ended else max(_terms(h, largest, tolerance) for h in (f, g))
        sizes.append((terms, max(_density(h, largest, tolerance, terms) for h in (f, g))))
    return _summed(f, g, *sizes)


@cache
def _summed(f: sp.Expr, g: sp.Expr, *sizes: tuple[int, int]) -> Dual:
    """sum_k f_k(q) g_k(qp) rho^k by Horner's rule; ``sizes`` are terms and nodes per unit in double and in single precision."""
    orders = parity_of(f).orders & parity_of(g).orders
    series = dict(zip(TOLERANCE, (_series(orders, *size) for size in sizes), strict=True))

    def side(h: sp.Expr, q: jax.Array) -> jax.Array:
        return _for(series, q).coefficients(h, q)

    def pairs(left: jax.Array, right: jax.Array, q: jax.Array, qp: jax.Array, c: jax.Array) -> jax.Array:
        rho = jnp.clip(c * _inverse_root(q) * _inverse_root(qp), -1.0, 1.0)
        even = len(_for(series, c).even)
        return horner(left[:even], right[:even], rho * rho) + rho * horner(left[even:], right[even:], rho * rho)

    return Dual(partial(side, f), partial(side, g), pairs)


def _for(series: dict[int, Series], q: jax.Array) -> Series:
    return series[64 if q.dtype == jnp.float64 else 32]


def horner(left: jax.Array, right: jax.Array, x: jax.Array) -> jax.Array:
    """sum_k left[k] right[k] x^k, broadcast."""

    def add(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total * x + pair[0] * pair[1], None

    start = jnp.zeros(jnp.broadcast_shapes(left.shape[1:], right.shape[1:], x.shape), x.dtype)
    return jax.lax.scan(add, start, (left[::-1], right[::-1]), unroll=_UNROLLED)[0] if len(left) else start


@cache
def _sites(f: sp.Expr, largest: float) -> np.ndarray:
    """f(sqrt(q) z) on the finest grid for the variances that are tried, (G, U).

    Raises:
        NotConverged: if the finest grid does not give the mean square of f.
        ProgramError: if f is not finite there.
    """
    sites = values(f, np.sqrt(largest * _OCTAVES) * _grid(_DENSITIES[-1])[:, None])
    if not np.all(np.isfinite(sites)):
        raise ProgramError(
            "Gaussian expectation", f, "a function that is finite on thirteen standard deviations", "its Gaussian mean may not exist"
        )
    power, coarse = (np.sum((_weight(d)[:, None] * sites[:: _DENSITIES[-1] // d]) ** 2, axis=0) for d in _DENSITIES[:-3:-1])
    ends = np.max((_weight(_DENSITIES[-1])[:, None] * sites)[[0, -1]] ** 2, axis=0)
    # halving the step squares the error
    if np.any(np.abs(power - coarse) > np.sqrt(TOLERANCE[64]) * power) or np.any(ends > TOLERANCE[64] * power):
        raise NotConverged
    return sites


@cache
def _terms(f: sp.Expr, largest: float, tolerance: float) -> int:
    """How many coefficients leave a negligible tail for every variance up to the largest."""
    density = _DENSITIES[-1]
    weighted = _weight(density)[:, None] * _sites(f, largest)
    power = np.sum(weighted**2, axis=0)
    tail = power.copy()
    polynomials = _polynomials(density)
    for start in range(0, MAX_TERMS, _BLOCK):
        rows = np.stack([next(polynomials) for _ in range(_BLOCK)])
        tail = tail - np.sum((rows @ weighted) ** 2, axis=0)
        if np.all(tail <= tolerance * power):
            return start + _BLOCK
    raise NotConverged


@cache
def _density(f: sp.Expr, largest: float, tolerance: float, terms: int) -> int:
    """The fewest nodes per unit that give the coefficients of the finest grid, to rounding."""
    sites, finest = _sites(f, largest), _DENSITIES[-1]
    exact = _basis(terms, finest) @ sites
    for density in _DENSITIES[:-1]:
        error = np.abs(_basis(terms, density) @ sites[:: finest // density] - exact)
        if np.all(error <= 0.04 * tolerance * np.max(np.abs(exact), axis=0)):
            return density
    return finest


@cache
def _basis(terms: int, density: int) -> np.ndarray:
    """He_k / sqrt(k!) times the weights of the grid, (terms, G)."""
    polynomials = _polynomials(density)
    return np.stack([next(polynomials) * _weight(density) for _ in range(terms)])


@cache
def _series(orders: frozenset[int], terms: int, density: int) -> Series:
    middle = REACH * density
    half = _basis(terms, density)[:, middle:].copy()
    half[:, 0] /= 2
    return Series(_grid(density)[middle:], *(half[k::2] if k in orders else half[:0] for k in (0, 1)))


def _grid(density: int) -> np.ndarray:
    return np.arange(-REACH * density, REACH * density + 1) / density


def _weight(density: int) -> np.ndarray:
    """Square root of the weights of the trapezoidal rule."""
    return np.exp(-(_grid(density) ** 2) / 4) / (2 * np.pi) ** 0.25 / np.sqrt(density)


def _polynomials(density: int) -> Iterator[np.ndarray]:
    """He_k / sqrt(k!) times the square root of the weights, k = 0, 1, ..."""
    grid, current = _grid(density), _weight(density)
    previous, k = np.zeros_like(current), 0
    while True:
        yield current
        previous, current = current, (grid * current - np.sqrt(k) * previous) / np.sqrt(k + 1)
        k += 1
