"""Standard Gaussian columns for the sites of one population: quasi-random, antithetic, with exact second moments.

Columns come in two parities (``theory/limit_operator.md``, "Less noise"): even ones are equal on the two halves of the
sites, odd ones have opposite signs, so that averages that vanish by the symmetry of the readout vanish exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import ndtri
from scipy.stats import qmc

SOBOL_DIMENSIONS = 64
"""Leading columns that come from one scrambled Sobol sequence; later ones are pseudo-random."""


@dataclass(frozen=True)
class SampledColumns:
    """Monte-Carlo sites: ``samples`` of them, with columns that do not change when more columns are drawn.

    Args:
        samples: number of sites S, even.
        seed: integers that name the stream (seed, replicate, population).
    """

    samples: int
    seed: tuple[int, ...]

    def columns(self, even: int, odd: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns with zero mean, unit variance and no correlation, the leading quarter as many of each parity as there are site
        pairs (``theory/limit_operator.md``, LO.5); later ones on average.

        Args:
            even, odd: how many of each parity.
            order: (even + odd,) rank of importance of each column, even ones first; the best-distributed Sobol
                coordinates go to the lowest ranks.

        Returns:
            (even, S) and (odd, S) arrays.
        """
        half = self.samples // 2
        total = even + odd
        rng = np.random.default_rng([20261122, *self.seed])
        engine = qmc.Sobol(SOBOL_DIMENSIONS, scramble=True, rng=np.random.default_rng(rng.integers(2**63)))
        uniform = _balanced(engine, half)[:, : min(total, SOBOL_DIMENSIONS)]
        normal = ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
        later = [rng.standard_normal(half) for _ in range(total - normal.shape[1])]
        raw = np.concatenate([normal.T, np.array(later).reshape(-1, half)])
        rank = np.argsort(np.argsort(order, kind="stable"), kind="stable")
        e = _decorrelated(raw[rank[:even]], order[:even], mean=True)
        o = _decorrelated(raw[rank[even:]], order[even:], mean=False)
        return np.concatenate([e, e], axis=1), np.concatenate([o, -o], axis=1)

    def fresh(self, rows: int, sites: int) -> Iterator[np.ndarray]:
        """Arrays (rows, sites) of noise that belongs to no column, equal on the two halves of the sites."""
        rng = np.random.default_rng([20261123, *self.seed])
        while True:
            half = rng.standard_normal((rows, sites // 2))
            yield np.concatenate([half, half], axis=1)


@dataclass(frozen=True)
class ExactColumns:
    """Sites that are the Gaussian directions themselves: inner products of linear combinations are exact.

    With ``<a b> = (1/S) sum_s a_s b_s`` and columns ``sqrt(S) e_k`` every second moment is that of the Gaussian space, so a
    program whose maps are all linear is solved without sampling.
    """

    def columns(self, even: int, odd: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(even, S) and (odd, S) orthonormal columns with S = even + odd."""
        total = even + odd
        eye = np.sqrt(total) * np.eye(total)
        return eye[:even], eye[even:]

    def fresh(self, rows: int, sites: int) -> Iterator[np.ndarray]:
        """Zeros: noise that is independent of every column drops out of all averages of two linear combinations."""
        while True:
            yield np.zeros((rows, sites))


def _balanced(engine: qmc.Sobol, points: int) -> np.ndarray:
    """The first ``points`` Sobol points; powers of two are balanced, other counts are a prefix of the next power."""
    return engine.random(1 << int(np.ceil(np.log2(max(points, 2)))))[:points]


def _decorrelated(raw: np.ndarray, order: np.ndarray, mean: bool) -> np.ndarray:
    """Gram-Schmidt in order of importance, so that earlier columns never depend on later ones."""
    count, half = raw.shape
    trusted = min(count, half // 4)  # beyond this the residuals would no longer be near Gaussian
    by_rank = np.argsort(order, kind="stable")
    out = raw.copy()
    chosen = raw[by_rank[:trusted]]
    if mean:
        chosen = np.concatenate([np.ones((1, half)), chosen])
    if len(chosen):
        # by the Cholesky factor of the Gram matrix: random columns are well conditioned, and a threaded QR takes hundreds of times as long
        factor = np.linalg.cholesky(chosen @ chosen.T / half)
        q = solve_triangular(factor, chosen, lower=True)
        out[by_rank[:trusted]] = q[1:] if mean else q
    return out
