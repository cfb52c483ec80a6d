"""Gaussian expectations by Gauss-Legendre panels that end at every kink, as jax functions.

No panel ever holds a kink, so that convergence is geometric; Gauss-Hermite across a kink would not converge. Nodes move with
the variances, and the integrand is smooth between them: differentiating the sum gives the derivative, jumps included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver.elementwise import COINCIDENT, lower
from tp_solver.errors import ProgramError
from tp_solver.numerics.pair import Dual, entrywise
from tp_solver.numerics.pointwise import concrete, kinks, values
from tp_solver.numerics.shifted_means import pieces, shifted_mean
from tp_solver.symbols.activation import X
from tp_solver.symbols.functions import inverse_root, root

TOLERANCE = 1e-12
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_HALF_LINE = np.array([0.0, 1.5, 3.5, 6.0, 9.0, 13.0])
_TRANSITION = np.array([-7.0, -4.0, -1.5, 1.5, 4.0, 7.0])
_LEVELS = 4
_CHUNK = 1 << 19
"""Nodes that are held at once."""
_TAIL = 1e-2
"""Share of the size of a function at the largest variance that it is taken to have at every other, at least."""
_DEAD = 1e-17
"""Mean squares below this times squared values at moderate arguments are those of a far tail."""
_NOTHING = 1e-40
"""Products of sizes below it are zero."""
_SCALES = (1.0, 0.3, 0.02)
_CORRELATIONS = (0.0, 0.5, -0.7, 0.97, 0.9999, 1.0, -1.0)
"""Fractions of the largest variance and correlations at which the number of panels is settled."""

_root, _inverse_root = (lower(s(X), (X,)) for s in (root, inverse_root))


@dataclass(frozen=True)
class Panels:
    """How fine panels are: how often halved, and how many powers of four of x are ends besides the kinks."""

    level: int
    scales: int

    def ends(self, f: sp.Expr) -> np.ndarray:
        """Values of x that end panels."""
        bends = 0.5 * 4.0 ** np.arange(self.scales) if pieces(f) is None else np.zeros(0)
        return np.concatenate([kinks(f), bends, -bends])

    @staticmethod
    def reaching(largest: float) -> int:
        """The number of scales for variances up to the largest; none where standard deviations are of the scale of x."""
        return int(np.ceil(np.log(2 * _HALF_LINE[-1] * np.sqrt(largest)) / np.log(4))) if largest > 16 else 0


def moments(g: sp.Expr, count: int, largest: float) -> Callable[[jax.Array], jax.Array]:
    """The function q -> E[g(b) He_k(b / sqrt(q))] for b ~ N(0, q) and k < count, shape (count, *q.shape).

    Raises:
        ProgramError: if halving the panels does not settle the integral for variances up to ``largest``.
    """
    q = largest * np.array([1.0, 0.3, 0.05, 0.003])
    scale = _size(g, q, largest) * np.sqrt([[float(factorial(k))] for k in range(count)])
    panels = _settled(lambda panels: concrete(jax.jit(partial(_moments, g, count, panels)), q), largest, scale, f"the mean of {g}")
    return partial(_moments, g, count, panels)


def split_quadrature(f: sp.Expr, g: sp.Expr, largest: float) -> Dual:
    """E[f(a) g(b)] over a, and over b given a.

    Raises:
        ProgramError: if halving the panels does not settle the integral for variances up to ``largest``.
    """
    return _rule(f, g, _plan(f, g, largest))


@cache
def _plan(f: sp.Expr, g: sp.Expr, largest: float) -> Panels:
    sizes = [(s, t) for s in _SCALES for t in _SCALES if s >= t or f != g]
    q, qp = (largest * np.array(v)[:, None] for v in zip(*sizes, strict=True))
    c = np.array(_CORRELATIONS) * np.sqrt(q * qp)
    scale = _size(f, q, largest) * _size(g, qp, largest)
    what = f"the mean of {f} times {g}"
    return _settled(lambda panels: concrete(jax.jit(partial(_plane, f, g, panels, 1 << 24)), q, qp, c), largest, scale, what)


def _size(f: sp.Expr, q: np.ndarray, largest: float) -> np.ndarray:
    """What errors are compared with: sqrt(E f^2), or a share of that at the largest variance where it is smaller.

    At small variances all that is left of a function with a dead zone, such as relu(x - 1), is a far tail.
    """
    return np.maximum(_deviation(f, q), _TAIL * _deviation(f, np.array(largest)))


def _deviation(f: sp.Expr, q: np.ndarray) -> np.ndarray:
    """sqrt(E f^2)."""
    z = np.linspace(-_HALF_LINE[-1], _HALF_LINE[-1], 2001).reshape(-1, *(1,) * q.ndim)
    weighted = values(f, np.sqrt(q) * z) ** 2 * np.exp(-(z**2) / 2) * (z[1] - z[0]) / np.sqrt(2 * np.pi)
    square = np.sum(weighted, axis=0)
    # all that a dead zone leaves may lie at the ends without growing there
    usual = np.max(values(f, np.linspace(-4, 4, 81)) ** 2)
    if not np.all(np.maximum(weighted[0], weighted[-1]) <= 1e-16 * np.maximum(square, _DEAD * usual)):
        raise ProgramError("Gaussian expectation", f, "a function with a mean square", "it grows too fast for the largest variance")
    return np.sqrt(square)


@cache
def _rule(f: sp.Expr, g: sp.Expr, panels: Panels) -> Dual:
    return entrywise(partial(_plane, f, g, panels, _CHUNK))


def _moments(g: sp.Expr, count: int, panels: Panels, q: jax.Array) -> jax.Array:
    z, weight = _panels(_breaks(_places(g, panels, q)), panels.level)
    density = weight * _normal(z) * _values(g, q[..., None], z)
    previous, current, out = jnp.zeros_like(z), jnp.ones_like(z), []
    for k in range(count):
        out.append(jnp.sum(density * current, axis=-1))
        previous, current = current, z * current - k * previous
    return jnp.stack(out)


def _plane(f: sp.Expr, g: sp.Expr, panels: Panels, chunk: int, q: jax.Array, qp: jax.Array, c: jax.Array) -> jax.Array:
    """All entries, as many at once as have ``chunk`` nodes."""
    rho = c * _inverse_root(q) * _inverse_root(qp)
    rho = jnp.where(jnp.abs(rho) > 1 - COINCIDENT * jnp.finfo(rho.dtype).eps, jnp.sign(rho), rho)
    shape = jnp.broadcast_shapes(jnp.shape(q), jnp.shape(qp), jnp.shape(c))
    entries = tuple(jnp.broadcast_to(v, shape).reshape(-1) for v in (q, qp, rho))
    if pieces(g) is None and pieces(f) is not None:
        f, g, entries = g, f, (entries[1], entries[0], entries[2])
    per_panel, whole = len(_NODES) * 2**panels.level, 2 * len(_HALF_LINE) - 1
    nodes = (whole + len(panels.ends(f)) + len(_TRANSITION) * len(panels.ends(g))) * per_panel
    if pieces(g) is None:
        nodes *= (whole + len(panels.ends(g))) * per_panel
    count, batch, block = len(entries[0]), max(1, chunk // nodes), jax.vmap(partial(_entry, f, g, panels))
    if count <= batch:
        return block(*entries).reshape(shape)
    rows = -(-count // batch)
    blocks = tuple(jnp.pad(e, (0, rows * batch - count), mode="edge").reshape(rows, batch) for e in entries)
    lean = jax.checkpoint(block)  # nodes are not kept for the backward pass
    return jax.lax.map(lambda e: lean(*e), blocks).reshape(-1)[:count].reshape(shape)


def _entry(f: sp.Expr, g: sp.Expr, panels: Panels, q: jax.Array, qp: jax.Array, rho: jax.Array) -> jax.Array:
    """One pair of variances: over a, and over b given a, whose mean varies on the scale of the noise near a kink of g."""
    noise, far = _root((1 - rho) * (1 + rho)), jnp.abs(rho) > 1 / _HALF_LINE[-1]
    slope = jnp.where(far, 1 / jnp.where(far, rho, 1.0), 0.0)
    of_f, of_g = _places(f, panels, q), _places(g, panels, qp)
    crossed = (of_g[:, None] + noise * jnp.asarray(_TRANSITION, q.dtype)) * slope
    z, weight = _panels(_breaks(jnp.concatenate([of_f, crossed.reshape(-1)])), panels.level)
    parts = pieces(g)
    if parts is not None:
        given = shifted_mean(parts)(_root(qp) * rho * z, _root(qp) * noise)
    else:
        scale = _inverse_root((1 - rho) * (1 + rho))
        w, inner = _panels(_breaks((of_g - rho * z[:, None]) * scale), panels.level)
        given = jnp.sum(inner * _normal(w) * _values(g, qp, rho * z[:, None] + noise * w), axis=1)
    return jnp.sum(weight * _normal(z) * _values(f, q, z) * given)


def _places(f: sp.Expr, panels: Panels, q: jax.Array) -> jax.Array:
    """The kinks in standard deviations, and the scales of x on which a smooth function may bend: (*q.shape, places)."""
    return jnp.asarray(panels.ends(f), q.dtype) * _inverse_root(q)[..., None]


def _normal(z: jax.Array) -> jax.Array:
    return jnp.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def _breaks(places: jax.Array) -> jax.Array:
    """Sorted ends of panels on the line, (..., B), the places (..., n) among them."""
    whole = jnp.asarray(np.concatenate([-_HALF_LINE[:0:-1], _HALF_LINE]), places.dtype)
    ends = [jnp.broadcast_to(whole, (*places.shape[:-1], len(whole))), jnp.clip(places, -_HALF_LINE[-1], _HALF_LINE[-1])]
    return jnp.sort(jnp.concatenate(ends, axis=-1), axis=-1)


def _values(f: sp.Expr, q: jax.Array, z: jax.Array) -> jax.Array:
    """f(sqrt(q) z), and sympy's f(0) at q = 0 (which is 1/2 for a Heaviside function)."""
    at_zero = f.subs(X, 0)
    sites = lower(f, (X,))(_root(q) * z)
    return jnp.where(q > 0, sites, float(at_zero) if at_zero.is_finite else np.nan) + jnp.zeros_like(z)


def _panels(breaks: jax.Array, level: int) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights on the panels between sorted breaks (..., B), each halved ``level`` times: (..., n)."""
    halves = 2**level
    positions = (np.arange(halves)[:, None] + (_NODES + 1) / 2).reshape(-1) / halves
    shares = np.tile(_WEIGHTS / 2, halves) / halves
    left, length = breaks[..., :-1, None], jnp.diff(breaks)[..., None]
    nodes = left + length * jnp.asarray(positions, breaks.dtype)
    return nodes.reshape(*breaks.shape[:-1], -1), (length * jnp.asarray(shares, breaks.dtype)).reshape(*breaks.shape[:-1], -1)


def _settled(rule: Callable[[Panels], np.ndarray], largest: float, scale: np.ndarray, what: str) -> Panels:
    """The coarsest panels whose results halves of them confirm."""
    scales = Panels.reaching(largest)
    previous = rule(Panels(0, scales))
    for level in range(1, _LEVELS):
        finer = rule(Panels(level, scales))
        if np.all(np.abs(finer - previous) <= TOLERANCE * np.maximum(scale, _NOTHING)):
            return Panels(level - 1, scales)
        previous = finer
    raise ProgramError("Gaussian expectation", what, "an integral that converges", "the function may grow too fast or be singular")
