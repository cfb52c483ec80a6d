"""Two-time kernels of the hidden matrices: covariances Phi and G, responses A and B, and what the site processes need of them.

Rows and columns are (time, use, point), flattened: for a matrix whose lower side meets x and whose upper side meets y,
``Phi = <x x'>``, ``G = <y y'>``, ``A = <dx/dr^y>``, ``B = <dy/du^x>`` (``theory/feature_learning.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg.blas import dsyrk

from tp_solver.numerics.pivoted_cholesky import Factor, causal_factor
from tp_solver.solve.layout import Layout
from tp_solver.solve.site_process import Side, precedes, sides


@dataclass(frozen=True, eq=False)
class Facing:
    """One side of a hidden matrix: its vectors' covariance, and their response to what the other side's products returned.

    Attributes:
        side, other: the vectors here, and those opposite.
        covariance: (n, n), n = times uses P.
        factor: causal factor of the covariance.
        whitened: (n, rank) response to the whitened noise of the opposite products, times the initial scale.
        response: (n, n') response to the noise itself, times the squared scale; supported on the opposite pivots.
        responds: (uses, uses') whether a vector can respond to an opposite one of the same step.
    """

    side: Side
    other: Side
    covariance: np.ndarray
    factor: Factor
    whitened: np.ndarray
    response: np.ndarray
    responds: np.ndarray


@dataclass(frozen=True)
class Grid:
    """Sizes and tolerance shared by all kernels: ``times`` (steps + 1), ``points`` P, ``truncation``, ``slack`` (see
    :func:`tp_solver.numerics.pivoted_cholesky.causal_factor`)."""

    times: int
    points: int
    truncation: float
    slack: float = 1.0


def initial(plan: Layout, grid: Grid, vectors: Mapping[str, np.ndarray]) -> dict[str, Facing]:
    """Kernels without responses from vectors (T, uses, P, S) per side key."""
    out = {}
    for below, above in sides(plan).values():
        for side, other in ((below, above), (above, below)):
            n, m = (grid.times * len(s.variables) * grid.points for s in (side, other))
            sampled = vectors[side.key]
            factor = causal_factor(sampled.reshape(n, -1), grid.points, grid.truncation)
            out[side.key] = Facing(side, other, gram(sampled), factor, np.zeros((n, 0)), np.zeros((n, m)), precedes(plan, side, other))
    return out


def gram(vectors: np.ndarray) -> np.ndarray:
    """<v v'> (n, n) of (T, uses, P, S) or (T, P, S) samples."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    upper = dsyrk(1.0 / flat.shape[1], flat.T, trans=1)  # half the work of a general product
    return np.triu(upper) + np.triu(upper, 1).T


def measure(facing: Facing, opposite: Factor, vectors: np.ndarray, columns: np.ndarray, grid: Grid) -> Facing:
    """Kernels measured anew.

    Args:
        facing: as before.
        opposite: factor of the noise that the vectors were computed with.
        vectors: (T, uses, P, S).
        columns: (k, S) its columns, which carry the initial scale.
    """
    flat = vectors.reshape(-1, vectors.shape[-1])
    whitened = flat @ columns[: opposite.rank].T / flat.shape[1]
    t, use = _places(facing.side, grid)
    s, other = (a[opposite.pivots] for a in _places(facing.other, grid))
    earlier = (s[None, :] < t[:, None]) | ((s[None, :] == t[:, None]) & facing.responds[use][:, other])
    whitened = np.where(earlier, whitened, 0.0)
    return replace(
        facing,
        covariance=gram(vectors),
        factor=causal_factor(flat, grid.points, grid.truncation, facing.factor, grid.slack),
        whitened=whitened,
        response=opposite.unwhitened(whitened),
    )


def coefficients(facing: Facing, pairs: list[tuple[str, str]], weights: np.ndarray, grid: Grid) -> np.ndarray:
    """What the product with the vectors here returns of the opposite vectors: responses, and the learned part of the matrix.

    Args:
        pairs: (variable here, variable opposite) whose outer products the matrix has learned.
        weights: (T, P) their weights, learning coefficient included.

    Returns:
        (n, n'), zero for opposite vectors that come later.
    """
    T, P = grid.times, grid.points
    n, here, there = len(facing.covariance), facing.side.variables, facing.other.variables
    covariance = facing.covariance.reshape(n, T, len(here), P)
    learned = np.zeros((n, T, len(there), P))
    for a, b in pairs:
        learned[:, :, there.index(b)] += covariance[:, :, here.index(a)] * weights
    t, _ = _places(facing.side, grid)
    learned *= (np.arange(T)[None, :] < t[:, None])[:, :, None, None]
    return facing.response + learned.reshape(n, -1)


def change(new: Facing, old: Facing) -> float:
    """Largest relative change of covariance and whitened response, Frobenius norms."""
    size = np.linalg.norm(new.covariance)
    if not np.isfinite(size):
        return np.inf
    rank = max(new.whitened.shape[1], old.whitened.shape[1])
    a, b = (np.pad(f.whitened, ((0, 0), (0, rank - f.whitened.shape[1]))) for f in (new, old))
    tiny = np.finfo(np.float64).tiny
    return float(
        max(
            np.linalg.norm(new.covariance - old.covariance) / (size + tiny),
            np.linalg.norm(a - b) / (np.sqrt(np.trace(new.covariance)) + np.linalg.norm(a) + tiny),
        )
    )


def _places(side: Side, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Time and use of every row."""
    uses, P = len(side.variables), grid.points
    rows = np.arange(grid.times * uses * P)
    return rows // (uses * P), rows // P % uses
