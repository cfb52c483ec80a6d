"""Gaussian expectations by Gauss-Legendre panels that end at every kink, refined until two refinements agree.

No panel ever holds a kink, so that convergence stays geometric; Gauss-Hermite across a kink would not converge.
"""

from __future__ import annotations

import numpy as np
import sympy as sp

from tp_solver.errors import ProgramError
from tp_solver.numerics.closed_forms import Bivariate
from tp_solver.numerics.pointwise import kinks, values

TOLERANCE = 1e-11
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_RADII = np.array([0.0, 0.25, 1.0, 2.5, 4.5, 7.0, 10.0])
_HALF_LINE = np.array([0.0, 0.1, 0.4, 1.0, 2.0, 3.5, 5.5, 8.0, 11.0])
_LEVELS = 7
_CHUNK = 2_000_000


def moments(g: sp.Expr, q: np.ndarray, powers: int) -> np.ndarray:
    """E[b^j g(b)] for b ~ N(0, q) and j = 0..powers, shape (powers + 1, *q.shape).

    Raises:
        ProgramError: if refinement does not settle.
    """
    distinct, index = np.unique(q, return_inverse=True)
    root = np.sqrt(distinct)
    breaks = np.broadcast_to(np.concatenate([-_HALF_LINE[:0:-1], _HALF_LINE]), (len(root), 2 * len(_HALF_LINE) - 1))
    inner = [_ratio(np.full_like(root, k), root) for k in kinks(g)]
    breaks = np.sort(np.concatenate([breaks, *(np.clip(k, -11, 11)[:, None] for k in inner)], axis=1), axis=1)

    def rule(level: int, rows: np.ndarray) -> np.ndarray:
        z, w = _panels(breaks[rows], level)
        b = root[rows, None] * z
        density = w * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * values(g, b)
        return np.stack([np.sum(density * b**j, axis=1) for j in range(powers + 1)], axis=1)

    out = _refine(rule, len(root), f"the mean of {g}")
    return np.moveaxis(out[index.reshape(-1)], 0, -1).reshape(powers + 1, *np.shape(q))


def split_quadrature(f: sp.Expr, g: sp.Expr, gauss: Bivariate) -> np.ndarray:
    """E[f(a) g(b)] in polar coordinates of the whitened plane.

    Kinks at zero are fixed angles, others are one radius per angle, and angles at which two of them cross end a panel too.

    Raises:
        ProgramError: if refinement does not settle.
    """
    shape = np.broadcast_shapes(gauss.q.shape, gauss.qp.shape, gauss.c.shape)
    sa, sb, rho = (np.broadcast_to(v, shape).reshape(-1) for v in (np.sqrt(gauss.q), np.sqrt(gauss.qp), gauss.correlation))
    theta = np.arccos(rho)
    kinks_f, kinks_g = np.array([k for k in kinks(f) if k]), np.array([k for k in kinks(g) if k])
    corners = [np.full_like(theta, np.pi / 2), np.full_like(theta, 3 * np.pi / 2), theta + np.pi / 2, theta - np.pi / 2]
    for k in kinks_f:
        for m in kinks_g:
            first = _ratio(np.full_like(sa, k), sa)
            second = _ratio(_ratio(np.full_like(sb, m), sb) - rho * first, np.sqrt((1 - rho) * (1 + rho)))
            corners.append(np.arctan2(second, first))
    full = np.broadcast_to([0.0, 2 * np.pi], (len(theta), 2))
    angles = np.sort(np.concatenate([np.mod(np.stack(corners, axis=1), 2 * np.pi), full], axis=1), axis=1)

    def rule(level: int, rows: np.ndarray) -> np.ndarray:
        t, wt = _panels(angles[rows], level)
        ca, cb = sa[rows, None] * np.cos(t), sb[rows, None] * np.cos(t - theta[rows, None])
        crossing = [_ratio(np.full_like(c, k), c) for c, ks in ((ca, kinks_f), (cb, kinks_g)) for k in ks]
        radii = np.broadcast_to(_RADII, (*t.shape, len(_RADII)))
        radii = np.sort(np.concatenate([radii, *(np.clip(r, 0, _RADII[-1])[..., None] for r in crossing)], axis=-1), axis=-1)
        r, wr = _panels(radii, level)
        product = values(f, ca[..., None] * r) * values(g, cb[..., None] * r)
        return np.einsum("nt,ntr->n", wt / (2 * np.pi), wr * r * np.exp(-(r**2) / 2) * product)[:, None]

    width = (6 + len(kinks_f) * len(kinks_g)) * (len(_RADII) + len(kinks_f) + len(kinks_g)) * len(_NODES) ** 2
    return _refine(rule, len(theta), f"the mean of {f} times {g}", width)[:, 0].reshape(shape)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, and 0 (a harmless break point) where the denominator vanishes."""
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator != 0)


def _panels(breaks: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on the panels between sorted breaks (..., B), each halved ``level`` times: (..., n)."""
    fractions = np.linspace(0.0, 1.0, 2**level + 1)
    left, length = breaks[..., :-1, None], np.diff(breaks)[..., None]
    start = left + length * fractions[:-1]
    size = (length / 2**level)[..., None]
    nodes = start[..., None] + size * (_NODES + 1) / 2
    weights = np.broadcast_to(size * _WEIGHTS / 2, nodes.shape)
    return nodes.reshape(*breaks.shape[:-1], -1), weights.reshape(*breaks.shape[:-1], -1)


def _refine(rule, count: int, what: str, width: int = 4096) -> np.ndarray:
    """Halve all panels of the entries that have not settled, until none is left."""

    def evaluate(level: int, rows: np.ndarray) -> np.ndarray:
        size = max(1, _CHUNK // (width * 4**level))
        return np.concatenate([rule(level, rows[i : i + size]) for i in range(0, len(rows), size)])

    rows = np.arange(count)
    out = evaluate(0, rows)
    for level in range(1, _LEVELS):
        finer = evaluate(level, rows)
        error = np.max(np.abs(finer - out[rows]), axis=1)
        out[rows] = finer
        open_ = ~(error <= TOLERANCE * (1 + np.max(np.abs(finer), axis=1)))
        rows = rows[open_]
        if len(rows) == 0:
            return out
    raise ProgramError("Gaussian expectation", what, "an integral that converges", "the function may grow too fast or be singular")
