"""The maps of one layer, of variances and of correlations, and where repeating them leads (``theory/depth.md``, KD.1 to KD.3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import sympy as sp

from tp_solver.kernel_regime.one_point import TERMS, curves, hermite_squares, require_resolved
from tp_solver.symbols.activation import X

GRID = np.geomspace(1e-8, 1e8, 16 * 16 + 1)
"""Variances between which fixed points are looked for; below lies zero, above lies divergence."""
SMALLEST = 1e-30
"""Variances below it are zero."""
FLAT = 1e-11
"""Relative change of the variance per layer below which it is none."""
TINY = 1e-16
"""Stands for a vanishing variance where two inputs are compared."""
EDGE_WIDTH = 1e-6
"""|chi - 1| up to which a layer counts as critical: its correlation length exceeds a million layers."""

Branches = tuple[tuple[sp.Expr, float], ...]
"""Pairs of a function f_m, in ``activation.X``, and the squared scale s_m^2 of the matrix that acts on it."""


class Fate(Enum):
    """What becomes of the variance with depth; the value is how it prints."""

    SETTLES = "settles"
    STAYS = "stays where it starts"
    DIVERGES = "grows without bound"


@dataclass(frozen=True)
class Layer:
    """The layer h' = a h + sum_m W_m f_m(h) + b, as it acts on second moments.

    Attributes:
        branches: the f_m and the s_m^2.
        skip: a^2.
        bias: variance of b.
    """

    branches: Branches
    skip: float = 0.0
    bias: float = 0.0


class Settled(NamedTuple):
    """Where variances and correlations end, one entry per pair of a weight and a bias; see ``FixedPoint``. c is NaN where each
    pair of inputs keeps its own."""

    fate: tuple[Fate, ...]
    q: np.ndarray
    c: np.ndarray
    chi_1: np.ndarray
    chi_c: np.ndarray
    chi_q: np.ndarray
    growth: np.ndarray


def summed(branches: Branches, q: np.ndarray) -> np.ndarray:
    """sum_m s_m^2 E f_m^2, the same of f_m', the derivative of the first by q, and sum_m s_m^2 (E z f_m)^2: (4, *q.shape).

    The last is the part of the first that is linear in the field.
    """
    with np.errstate(over="ignore"):
        rows = [w * curves(f, q) ** np.array([1, 1, 1, 2]).reshape(4, *(1,) * np.ndim(q)) for f, w in branches]
    return np.sum(rows, axis=0)


def settle(branches: Branches, skip: float, weight: np.ndarray, bias: np.ndarray, start: float) -> Settled:
    """Repeat q' = skip q + weight sum_m s_m^2 E f_m(sqrt(q) z)^2 + bias from ``start``, and the map of correlations at its end.

    The step q' - q keeps its sign between fixed points, so that the next one in its direction is where q goes: d log q' / d log q is
    at least -1/2, as the logarithm of a Gaussian density falls no faster with that of its variance, so that nothing oscillates.

    Args:
        branches, skip: of the layer.
        weight, bias: arrays (m,), one entry per layer to look at.
        start: the first variance.
    """
    step = _step(GRID, skip, weight[:, None], bias[:, None], summed(branches, GRID)[0])
    first = _step(np.array([start]), skip, weight, bias, summed(branches, np.array([start]))[0])
    flat = np.all(np.abs(step) < FLAT, axis=1)
    fate = [Fate.STAYS if f else Fate.SETTLES for f in flat]
    q = np.full(len(weight), start)
    start = float(np.clip(start, GRID[1], GRID[-2]))
    place = int(np.searchsorted(GRID, start))
    low, high = np.full((2, len(weight)), start)
    for i in np.flatnonzero(~flat & (np.abs(first) > FLAT)):
        if first[i] > 0:
            above = np.flatnonzero(step[i, place:] <= 0)
            if len(above) == 0:
                fate[i], q[i] = Fate.DIVERGES, np.inf
            else:
                high[i] = GRID[place + above[0]]
                low[i] = max(start, GRID[place + above[0] - 1])
        else:
            below = np.flatnonzero(step[i, :place] >= 0)
            low[i] = GRID[below[-1]] if len(below) else SMALLEST if bias[i] > 0 else 0.0
            high[i] = min(start, GRID[below[-1] + 1] if len(below) else GRID[0])
    open_ = (high > low) & (low > 0)
    q[open_] = refine(branches, skip, weight[open_], bias[open_], low[open_], high[open_])
    q[(low == 0) & (high > 0)] = 0.0
    return _around(branches, skip, weight, bias, fate, q)


def _step(q: np.ndarray, skip: float, weight: np.ndarray, bias: np.ndarray, second: np.ndarray) -> np.ndarray:
    """q' / q - 1; what overflows counts as growth."""
    with np.errstate(all="ignore"):
        return np.nan_to_num((skip - 1) + (weight * second + bias) / q, nan=np.inf, posinf=np.inf)


def refine(branches: Branches, skip: float, weight: np.ndarray, bias: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The fixed points between bounds at which q' - q has opposite signs: Newton in log q, halving where that leaves the bounds."""
    low, high = low.copy(), high.copy()

    def stepped(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        second, _, slope, _ = summed(branches, q)
        return _step(q, skip, weight, bias, second), skip + weight * slope

    rising = stepped(low)[0] > 0
    q = np.sqrt(low * high)
    for _ in range(80):
        step, slope = stepped(q)
        left = (step > 0) == rising
        low, high = np.where(left, q, low), np.where(left, high, q)
        with np.errstate(all="ignore"):
            moved = q * np.exp(-step / (slope - 1 - step))
        inside = (moved > low) & (moved < high)
        new = np.where(step == 0, q, np.where(inside, moved, np.sqrt(low * high)))
        if np.all(np.abs(new - q) <= 4e-16 * q):
            break
        q = new
    return new


def roots(layer: Layer) -> tuple[tuple[float, float], ...]:
    """All fixed points of the variance on the grid, zero included, with the slopes of the map there; none where all q are."""
    one, bias = np.array([1.0]), np.array([layer.bias])
    second = summed(layer.branches, GRID)[0]
    step = _step(GRID, layer.skip, one, bias, second)
    if np.all(np.abs(step) < FLAT):
        return ()
    change = np.flatnonzero((step[:-1] > 0) != (step[1:] > 0))
    many = np.ones(len(change))
    found = refine(layer.branches, layer.skip, many, many * layer.bias, GRID[change], GRID[change + 1]) if len(change) else np.zeros(0)
    if layer.bias == 0 and all(f.subs(X, 0) == 0 for f, _ in layer.branches):
        found = np.concatenate([[0.0], found])
    slopes = layer.skip + summed(layer.branches, found)[2]
    return tuple((float(q), float(s)) for q, s in zip(found, slopes, strict=True))


def _around(branches: Branches, skip: float, weight: np.ndarray, bias: np.ndarray, fate: list[Fate], q: np.ndarray) -> Settled:
    """Slopes at the end, and the correlation that is reached there."""
    diverges = np.isinf(q)
    at = np.where(diverges, GRID[-1], q)
    for f, _ in branches:
        require_resolved(f, float(np.max(at, where=(at > 0) & ~diverges, initial=1.0)))
    second, backward, slope, _ = summed(branches, at)
    with np.errstate(all="ignore"):
        if diverges.any():  # corrections fall as q^(-1/2): one step of extrapolation
            nearer = summed(branches, at / 4)
            second = np.where(diverges, at * _at_infinity(second / at, nearer[0] / (at / 4)), second)
            backward = np.where(diverges, _at_infinity(backward, nearer[1]), backward)
        chi_1 = np.nan_to_num(skip + weight * backward, nan=np.inf, posinf=np.inf)
        chi_q = skip + weight * slope
        own = skip + weight * second / at + np.where(diverges, 0.0, bias / at)
        growth = np.where(q == 0, chi_q, np.nan_to_num(own, nan=np.inf, posinf=np.inf))
        relative = chi_1 / growth
        if (vanishing := (q == 0) & (chi_1 < TINY)).any():  # flatter than a straight line at zero, such as x^3
            near = summed(branches, np.full_like(q, np.sqrt(TINY)))
            relative = np.where(vanishing, near[1] * np.sqrt(TINY) / near[0], relative)
            chi_1, chi_q = (np.where(vanishing, 0.0, x) for x in (chi_1, chi_q))
    c, chi_c = np.ones_like(q), chi_1.copy()
    chaotic = np.isnan(relative) | (relative > 1 + np.where(diverges, 1e-3, EDGE_WIDTH))
    if chaotic.any():
        c[chaotic], chi_c[chaotic] = _correlation(branches, skip, weight[chaotic], bias[chaotic], np.maximum(at[chaotic], TINY))
    if (straight := ~chaotic & ((bias == 0) | diverges)).any():  # a linear layer leaves correlations as they are
        own = np.maximum(at, TINY)
        rows = summed(branches, own)
        c[straight & (weight * (rows[0] - rows[3]) <= EDGE_WIDTH * (skip * own + weight * rows[0]))] = np.nan
    return Settled(tuple(fate), q, c, chi_1, chi_c, chi_q, growth)


def _at_infinity(far: np.ndarray, nearer: np.ndarray) -> np.ndarray:
    """The limit of a + b q^(-1/2) from its values at q and q / 4, and infinity for what still grows."""
    with np.errstate(all="ignore"):
        return np.where(far / nearer < 1.1, 2 * far - nearer, np.inf)


def _correlation(branches: Branches, skip: float, weight: np.ndarray, bias: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stable correlation below one in the chaotic phase, and the slope of the map of covariances there.

    The map is a power series in c with coefficients that are squares, hence convex: Newton's steps from zero rise to the root.
    """
    series = weight * sum(w * hermite_squares(f, q) for f, w in branches)
    own = skip * q + weight * summed(branches, q)[0] + bias
    series[0], series[1] = series[0] + bias, series[1] + skip * q
    power = np.arange(1, TERMS)[:, None]
    c = np.zeros_like(q)
    with np.errstate(all="ignore"):
        for _ in range(100):
            value, slope = (np.polynomial.polynomial.polyval(c, a / own, tensor=False) for a in (series, power * series[1:]))
            new = np.clip(c - (value - c) / (slope - 1), c, 1.0)
            done = np.max(np.abs(new - c)) < 1e-15
            c = new
            if done:
                break
    found = np.isfinite(own) & np.isfinite(c)
    return np.where(found, np.where(c < 1e-15, 0.0, c), np.nan), np.where(found, slope * own / q, np.inf)
