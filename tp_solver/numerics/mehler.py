"""Gaussian expectations of smooth functions by Mehler's series.

E[f(a) g(b)] = sum_k f_k(q) g_k(qp) rho^k with f_k(q) = E[f(sqrt(q) z) He_k(z)] / sqrt(k!), z ~ N(0, 1). The coefficients are
computed once per distinct variance, and by Parseval the rest of the series is at most sqrt(tail_f tail_g) |rho|^K with
tail_f = E f^2 - sum_{k < K} f_k^2: the number of terms follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sympy as sp

from tp_solver.errors import ProgramError
from tp_solver.numerics.closed_forms import Bivariate
from tp_solver.numerics.pointwise import values

TOLERANCE = 1e-13
"""Largest relative tail E f^2 - sum f_k^2; also what rounding of a few hundred coefficients leaves."""
MAX_TERMS = 16384
_BLOCK = 32
_STEP = 1 / 64
_GRID = np.arange(-13 * 64, 13 * 64 + 1) * _STEP
"""Trapezoidal nodes: for analytic integrands the rule converges geometrically, and it resolves all MAX_TERMS polynomials
(local frequency sqrt(k) <= 128, grid frequency 402); beyond |z| = 13 the integrands are below exp(-13^2 / 4) = 4e-19."""


class NotConverged(Exception):
    """The series is too long, or the function too rough (internal: the caller goes on to split quadrature)."""


@dataclass(frozen=True)
class Expansion:
    """Hermite coefficients of f(sqrt(q) z) for the distinct variances: ``coefficients`` (K, U), ``index`` like q."""

    coefficients: np.ndarray
    index: np.ndarray


def mehler(f: sp.Expr, g: sp.Expr, gauss: Bivariate, tolerance: float = TOLERANCE) -> np.ndarray:
    """E[f(a) g(b)] for smooth f and g.

    Raises:
        NotConverged: if MAX_TERMS coefficients leave a relative tail above the tolerance.
        ProgramError: if f or g is not finite on the grid.
    """
    left = expansion(f, gauss.q, tolerance)
    right = left if f == g and gauss.q is gauss.qp else expansion(g, gauss.qp, tolerance, len(left.coefficients))
    if len(left.coefficients) < len(right.coefficients):  # the bound needs both tails at the same K
        left = expansion(f, gauss.q, tolerance, len(right.coefficients))
    rho = gauss.correlation
    total = np.zeros(rho.shape)
    for a, b in zip(left.coefficients[::-1], right.coefficients[::-1], strict=True):
        total = total * rho + a[left.index] * b[right.index]
    return total


def expansion(f: sp.Expr, q: np.ndarray, tolerance: float = TOLERANCE, terms: int = 0) -> Expansion:
    """At least ``terms`` coefficients, and until the tail is below the tolerance for every variance (see :func:`mehler`)."""
    distinct, index = np.unique(q, return_inverse=True)
    sites = values(f, np.sqrt(distinct)[None, :] * _GRID[:, None])
    if not np.all(np.isfinite(sites)):
        raise ProgramError(
            "Gaussian expectation", f, "a function that is finite on thirteen standard deviations", "its Gaussian mean may not exist"
        )
    root = np.sqrt(_STEP) * np.exp(-(_GRID**2) / 4) / (2 * np.pi) ** 0.25
    weighted = root[:, None] * sites
    power = np.sum(weighted**2, axis=0)
    coarse = 2 * np.sum(weighted[::2] ** 2, axis=0)
    if np.any(np.abs(power - coarse) > np.sqrt(tolerance) * power):  # halving the step squares the error
        raise NotConverged
    blocks: list[np.ndarray] = []
    previous, current = np.zeros_like(root), root
    tail = power.copy()
    for start in range(0, MAX_TERMS, _BLOCK):
        rows = np.empty((_BLOCK, len(root)))
        for j in range(_BLOCK):
            rows[j] = current
            k = start + j
            previous, current = current, (_GRID * current - np.sqrt(k) * previous) / np.sqrt(k + 1)
        blocks.append(rows @ weighted)
        tail = tail - np.sum(blocks[-1] ** 2, axis=0)
        if len(blocks) * _BLOCK >= terms and np.all(tail <= tolerance * power):
            return Expansion(np.concatenate(blocks), index.reshape(np.shape(q)))
    raise NotConverged
