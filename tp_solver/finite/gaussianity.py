"""How far draws of a net's outputs are from the Gaussian process of its limit: unbiased MMD, and cumulants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from tp_solver import checks
from tp_solver.errors import InputError

BLOCK = 512
"""Draws whose distances to all others are held at once."""


@dataclass(frozen=True)
class Discrepancy:
    """Squared maximum mean discrepancy between draws and a Gaussian, for the kernel exp(-|x - y|^2 / (2 bandwidth^2)).

    Attributes:
        value: unbiased; may be negative where the two are close.
        stderr: its standard error over draws.
        bandwidth: of the kernel.
        draws: their number S.
    """

    value: float
    stderr: float
    bandwidth: float
    draws: int


@dataclass(frozen=True, eq=False)
class Cumulants:
    """Cumulants of every coordinate of some draws, arrays (d,), with standard errors over draws.

    Attributes:
        kappa4: fourth cumulant, unbiased (k-statistic).
        kurtosis: excess kurtosis kappa4 / kappa2^2.
    """

    kappa4: np.ndarray
    kappa4_stderr: np.ndarray
    kurtosis: np.ndarray
    kurtosis_stderr: np.ndarray


def mmd2(samples: Any, covariance: Any, bandwidth: Any = None) -> Discrepancy:
    """Unbiased squared MMD between draws and N(0, covariance) (Gretton et al. 2012; used for nets by Matthews et al. 2018).

    The Gaussian side is in closed form: with s the bandwidth and K the covariance,
    ``E k(x, z) = det(1 + K / s^2)^(-1/2) exp(-x (K + s^2)^-1 x / 2)`` and ``E k(z, z') = det(1 + 2 K / s^2)^(-1/2)``, so that only
    the noise of the draws is left. A biased estimate would stop at 1/S and look like convergence.

    Args:
        samples: draws (S, d), S >= 4, d inputs (several of them, or only a marginal is tested).
        covariance: (d, d), of the limit.
        bandwidth: s > 0; by default the root mean square of |x - z| / sqrt(2) under the Gaussian, that is sqrt(trace K).

    Raises:
        InputError: for malformed draws, or a covariance that is not symmetric and positive semi-definite.
    """
    x = _draws("samples", samples)
    K = covariance_of("covariance", covariance, x.shape[1])
    s2 = (float(np.sqrt(np.trace(K))) if bandwidth is None else checks.number("bandwidth", bandwidth, above=0.0)) ** 2
    if s2 == 0:
        raise InputError("covariance", "a zero matrix", "a positive trace", "a Gaussian without spread sets no bandwidth; give bandwidth=")
    S, identity = len(x), np.eye(len(K))
    met = np.exp(-0.5 * np.einsum("si,si->s", x, cho_solve(cho_factor(K + s2 * identity), x.T).T))
    met *= np.linalg.det(identity + K / s2) ** -0.5
    itself = np.linalg.det(identity + 2 * K / s2) ** -0.5
    sums, squares = np.zeros(S), 0.0
    norms = np.sum(x**2, axis=1)
    for start in range(0, S, BLOCK):
        rows = slice(start, min(start + BLOCK, S))
        h = np.exp(-np.maximum(norms[rows, None] + norms - 2 * x[rows] @ x.T, 0.0) / (2 * s2))
        h -= met[rows, None] + met - itself
        h[np.arange(rows.stop - start), np.arange(start, rows.stop)] = 0.0
        sums[rows] = h.sum(axis=1)
        squares += float(np.sum(h**2))
    value = float(sums.sum() / (S * (S - 1)))
    # variance of a U-statistic of two draws: 4 (S - 2) zeta_1 + 2 zeta_2 over S (S - 1)
    zeta2 = max(squares / (S * (S - 1)) - value**2, 0.0)
    zeta1 = max(float(np.var(sums / (S - 1), ddof=1)) - zeta2 / (S - 1), 0.0)
    stderr = float(np.sqrt((4 * (S - 2) * zeta1 + 2 * zeta2) / (S * (S - 1))))
    return Discrepancy(value, stderr, float(np.sqrt(s2)), S)


def cumulants(samples: Any) -> Cumulants:
    """Fourth cumulants and excess kurtoses of draws (S, d), S >= 4.

    Standard errors are those of the influence function (first order in 1/S).

    Raises:
        InputError: for malformed draws, or a coordinate that does not vary.
    """
    x = _draws("samples", samples)
    S = len(x)
    x = x - x.mean(axis=0)
    m2, m3, m4 = (np.mean(x**p, axis=0) for p in (2, 3, 4))
    if not np.all(m2 > 0):
        raise InputError(
            "samples", "a coordinate that does not vary", "draws with a spread", "a zero readout gives the same output in every net"
        )
    k2 = m2 * S / (S - 1)
    k4 = S**2 * ((S + 1) * m4 - 3 * (S - 1) * m2**2) / ((S - 1) * (S - 2) * (S - 3))
    z = x / np.sqrt(m2)
    skewness, tail = m3 / m2**1.5, m4 / m2**2
    of_kappa4 = x**4 - m4 - 4 * m3 * x - 6 * m2 * (x**2 - m2)
    of_kurtosis = z**4 - tail - 4 * skewness * z - 2 * tail * (z**2 - 1)
    return Cumulants(k4, np.std(of_kappa4, axis=0) / S**0.5, k4 / k2**2, np.std(of_kurtosis, axis=0) / S**0.5)


def _draws(field: str, value: Any) -> np.ndarray:
    x = checks.array(field, value, ndim=(1, 2), hint=f"{field} is (draws, d), one row per net")
    x = x[:, None] if x.ndim == 1 else x
    if len(x) < 4:
        raise InputError(field, f"{len(x)} draws", "at least 4 draws", "a fourth moment needs more; draw thousands of nets")
    return x


def covariance_of(field: str, value: Any, size: int) -> np.ndarray:
    """A symmetric, positive semi-definite matrix of a size.

    Raises:
        InputError: naming the field.
    """
    K = checks.array(field, value, ndim=(2,))
    if K.shape != (size, size):
        raise InputError(field, f"an array of shape {K.shape}", f"one of shape {(size, size)}", "one row per coordinate of the draws")
    scale = np.abs(K).max()
    if np.abs(K - K.T).max() > 1e-10 * scale:
        raise InputError(field, "a matrix that is not symmetric", "a covariance", "take the kernel of one set of inputs")
    lowest = float(np.linalg.eigvalsh(K)[0])
    if lowest < -1e-8 * scale:
        raise InputError(field, f"an eigenvalue of {lowest:.3g}", "a positive semi-definite matrix", "no Gaussian has this covariance")
    return K
