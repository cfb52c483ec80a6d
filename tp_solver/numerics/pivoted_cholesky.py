"""Truncated Cholesky factors of sampled covariances whose rows are ordered in time (``theory/core``: whitened Stein responses).

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
    if previous is not None and slack > 1:
        wanted = np.zeros(len(vectors), dtype=bool)
        wanted[previous.pivots] = True
        kept, left = _orthogonalised(vectors, block, np.where(wanted, limit / slack, np.inf))
        if kept.rank == previous.rank and np.all(left <= limit * slack):
            return kept
    return _orthogonalised(vectors, block, limit)[0]


def _orthogonalised(vectors: np.ndarray, block: int, limit: np.ndarray) -> tuple[Factor, np.ndarray]:
    """Gram-Schmidt in order, twice; a pivot is a row with more than ``limit`` (n,) left. Returns what is left out of each row (n,), too."""
    n, sites = vectors.shape
    basis = np.zeros((0, sites))
    rows = np.zeros((n, min(n, sites)))
    pivots: list[int] = []
    left = np.zeros(n)
    for start in range(0, n, block):
        part = slice(start, start + block)
        rest = vectors[part]
        for _ in range(2):
            c = rest @ basis.T / sites
            rest = rest - c @ basis
            rows[part, : len(basis)] += c
        for i in range(len(rest)):
            square = np.mean(rest[i] ** 2)
            if square > limit[start + i] and len(pivots) < rows.shape[1]:
                q = rest[i] / np.sqrt(square)
                c = rest[i:] @ q / sites
                rest[i:] -= np.outer(c, q)
                rows[start + i : start + len(rest), len(pivots)] = c
                pivots.append(start + i)
                basis = np.concatenate([basis, q[None]])
            else:
                left[start + i] = square
    return Factor(np.array(pivots, dtype=np.int64), rows[:, : len(pivots)]), left
