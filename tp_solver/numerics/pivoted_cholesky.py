"""Truncated Cholesky factors of sampled covariances whose rows are ordered in time (``theory/feature_learning.md``, whitened responses).

Rows keep their order, so the factor is causal: no row leans on a pivot that comes after it. Rows that earlier pivots already
explain bring none. The factor is found from the samples by orthogonalisation, not from their inner products, which would lose
half of the digits and need not stay positive.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular


class Factor(NamedTuple):
    """``<v v'> ~ rows rows^T``: pivots (k,) in rising order, rows (n, k), zero where the pivot comes later."""

    pivots: np.ndarray
    rows: np.ndarray

    @property
    def rank(self) -> int:
        """Number of pivots."""
        return len(self.pivots)

    def whitened(self, right: np.ndarray) -> np.ndarray:
        """``L^-1 right`` for the triangular block L (k, k) of the pivots."""
        return solve_triangular(self.rows[self.pivots], right, lower=True) if self.rank else right[:0]

    def unwhitened(self, left: np.ndarray) -> np.ndarray:
        """``left L^-1`` placed on the pivots' columns: (m, k) -> (m, n), zero elsewhere."""
        out = np.zeros((len(left), len(self.rows)))
        if self.rank:
            out[:, self.pivots] = solve_triangular(self.rows[self.pivots], left.T, lower=True, trans="T").T
        return out


def causal_factor(vectors: np.ndarray, block: int, tol: float, previous: Factor | None = None, slack: float = 1.0) -> Factor:
    """Factor of ``<v v'> = (1/S) sum_s v_s v'_s`` for vectors (n, S) in order.

    A row becomes a pivot if what earlier pivots leave of its mean square exceeds ``tol`` times the largest mean square of its
    block of ``block`` rows, or of a quarter of the first block's, so that vanishing signals bring no noise.

    The previous pivots are kept as long as no row is beyond that limit by a factor ``slack`` > 1 either way: then the factor is
    a smooth function of the vectors, which an iteration needs in order to converge.
    """
    squares = np.mean(vectors**2, axis=1)
    largest = np.max(squares.reshape(-1, block), axis=1)
    limit = np.repeat(tol * np.maximum(largest, 0.25 * largest[0]), block)
    if previous is not None and slack > 1 and previous.rank:
        kept = _on_pivots(vectors, previous.pivots)
        own = kept.rows[kept.pivots, np.arange(kept.rank)] ** 2
        left = squares - np.sum(kept.rows**2, axis=1)
        if np.all(own >= limit[kept.pivots] / slack) and np.all(left <= limit * slack):
            return kept
    return _on_pivots(vectors, _pivots(vectors, block, limit))


CHUNK = 16
"""Blocks that are projected on the pivots before them at once."""


def _pivots(vectors: np.ndarray, block: int, limit: np.ndarray) -> np.ndarray:
    """Rows with more than ``limit`` (n,) left after Gram-Schmidt in order, at most as many as there are sites."""
    n, sites = vectors.shape
    basis = np.zeros((min(n, sites), sites))
    pivots: list[int] = []
    for first in range(0, n, CHUNK * block):
        known = len(pivots)
        chunk = _without(vectors[first : first + CHUNK * block], basis[:known])
        for start in range(0, len(chunk), block):
            rest = _without(chunk[start : start + block], basis[known : len(pivots)])
            for i in range(len(rest)):
                row = first + start + i
                square = np.mean(rest[i] ** 2)
                if square > limit[row] and len(pivots) < len(basis):
                    q = rest[i] / np.sqrt(square)
                    rest[i:] -= np.outer(rest[i:] @ q / sites, q)
                    basis[len(pivots)] = q
                    pivots.append(row)
    return np.array(pivots, dtype=np.int64)


def _without(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """A copy without what the orthonormal basis spans; twice, as the first pass leaves rounding errors."""
    out = vectors.copy()
    for _ in range(2 if len(basis) else 0):
        out -= (out @ basis.T / vectors.shape[1]) @ basis
    return out


def _on_pivots(vectors: np.ndarray, pivots: np.ndarray) -> Factor:
    """The factor on given pivots."""
    if not len(pivots):
        return Factor(pivots, np.zeros((len(vectors), 0)))
    sites = vectors.shape[1]
    q, r = np.linalg.qr(vectors[pivots].T)
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)
    rows = vectors @ q / np.sqrt(sites)
    return Factor(pivots, np.where(pivots[None, :] <= np.arange(len(vectors))[:, None], rows, 0.0))
