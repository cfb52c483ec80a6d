"""How fast kernels approach their limit in depth: predicted from one layer, and measured (``theory/depth.md``, KD.9 to KD.12)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np


class Law(Enum):
    """The shape of the approach, in the number L of weight layers; the value is how it prints."""

    LOGARITHM = "ratio = limit + rate log(L)/L"
    ROOT = "ratio = limit + rate L^(-1/2)"
    COLLAPSE = "(diagonal - other entries) / L falls as exp(rate L)"
    EXPLOSION = "the diagonal grows as exp(rate L)"
    NONE = "the ratio stays"


@dataclass(frozen=True)
class EdgeExpansion:
    """Predictions for a critical layer from its backward factor s(theta) = s(0) (1 - b_1 theta - b_2 theta^2 - ...) near zero.

    Attributes:
        power: the first power of theta: 1 for activations with a kink, 2 for smoother ones; None if s is constant.
        coefficients: b_1 to b_4.
        law: logarithmic, or L^(-1/2) where theta^3 follows theta^2 (a jump in phi'').
        limit: of the ratio of tangent kernels, power / (2 power + 2).
        rate: the coefficient in the law.
    """

    power: int | None
    coefficients: tuple[float, ...]
    law: Law
    limit: float | None
    rate: float | None


def edge_expansion(series: np.ndarray, width: float) -> EdgeExpansion:
    """From Chebyshev coefficients of s(theta) on [0, width].

    Source: KD.9 to KD.11; for ReLU the limit 1/4 is that of Hayou et al., arXiv:1905.13654, for smooth activations 1/3.
    """
    polynomial = np.polynomial.chebyshev.Chebyshev(series, domain=(0.0, width))
    value = polynomial(0.0)
    derivatives = [polynomial.deriv(m)(0.0) for m in range(1, 5)]
    b1, b2, b3, b4 = (-d / value / f for d, f in zip(derivatives, (1, 2, 6, 24), strict=True))
    b = (float(b1), float(b2), float(b3), float(b4))
    scale = max(abs(b1) * width, abs(b2) * width**2)
    if scale < 1e-9:
        return EdgeExpansion(None, b, Law.NONE, None, None)
    if abs(b1) * width > 1e-6 * scale:
        return EdgeExpansion(1, b, Law.LOGARITHM, 1 / 4, float(3 / 8 + 9 / 16 * b2 / b1**2))
    if abs(b3) * width**3 > 1e-5 * scale:
        return EdgeExpansion(2, b, Law.ROOT, 1 / 3, float(0.16 * np.sqrt(2) * b3 / b2**1.5))
    second = -8 * b4 - 2 * b2 / 3  # d^2 s / dc^2 over s at c = 1, where ds / dc = 2 b_2
    return EdgeExpansion(2, b, Law.LOGARITHM, 1 / 3, float((1 - second / (6 * b2**2)) / 3))


@dataclass(frozen=True, eq=False)
class DepthRate:
    """The approach to the limit, measured at depths of its own and predicted.

    Attributes:
        law: its shape.
        limit, rate: fitted, the mean over pairs of inputs; the limit is None for exponential laws.
        limit_spread, rate_spread: largest deviation of a pair from that mean.
        predicted_limit, predicted_rate: from one layer, None where there is no prediction.
        layers: numbers L of weight layers that the fit uses, (T,).
        values: what the law speaks of at these, per pair of inputs (per input for the diagonal), (T, P).
    """

    law: Law
    limit: float | None
    rate: float | None
    limit_spread: float
    rate_spread: float
    predicted_limit: float | None
    predicted_rate: float | None
    layers: np.ndarray
    values: np.ndarray

    def __str__(self) -> str:
        if self.law is Law.NONE:
            return self.law.value
        if self.rate is None:
            return f"{self.law.value}: too shallow to measure"

        def both(name: str, measured: float, spread: float, predicted: float | None) -> str:
            known = "no prediction" if predicted is None else f"predicted {predicted:.5f}"
            return f"{name} {measured:.5f} (pairs within {spread:.1e}; {known})"

        parts = [] if self.limit is None else [both("limit", self.limit, self.limit_spread, self.predicted_limit)]
        return f"{self.law.value}: " + ", ".join([*parts, both("rate", self.rate, self.rate_spread, self.predicted_rate)])


def fit_ratio(law: Law, layers: np.ndarray, ratio: np.ndarray, expansion: EdgeExpansion | None) -> DepthRate:
    """Least squares of L (ratio - limit), with the law and what follows it, on ratios (T, P)."""
    L = layers.astype(float)
    log = np.log(L)
    terms = [L, log, np.ones_like(L), log**2 / L, log / L, 1 / L]
    if law is Law.ROOT:
        terms = [L, L**0.5, log, np.ones_like(L), log**2 * L**-0.5, log * L**-0.5, L**-0.5]
    columns = np.stack(terms, axis=1)
    size = np.linalg.norm(columns, axis=0)
    solution, *_ = np.linalg.lstsq(columns / size, L[:, None] * ratio, rcond=None)
    solution = solution / size[:, None]
    limit, rate = solution[0], solution[1]
    return DepthRate(
        law=law,
        limit=float(limit.mean()),
        rate=float(rate.mean()),
        limit_spread=float(np.abs(limit - limit.mean()).max()),
        rate_spread=float(np.abs(rate - rate.mean()).max()),
        predicted_limit=expansion.limit if expansion else None,
        predicted_rate=expansion.rate if expansion else None,
        layers=layers,
        values=ratio,
    )


def fit_exponent(law: Law, layers: np.ndarray, logarithms: np.ndarray, predicted: float) -> DepthRate:
    """Slopes of logarithms (T, P) against L, next to a constant and 1 / L."""
    L = layers.astype(float)
    slopes = np.linalg.lstsq(np.stack([L / L[-1], np.ones_like(L), L[0] / L], axis=1), logarithms, rcond=None)[0][0] / L[-1]
    return DepthRate(
        law=law,
        limit=None,
        rate=float(slopes.mean()),
        limit_spread=0.0,
        rate_spread=float(np.abs(slopes - slopes.mean()).max()),
        predicted_limit=None,
        predicted_rate=predicted,
        layers=layers,
        values=logarithms,
    )
