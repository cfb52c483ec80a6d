"""Powers of the width: slopes of log size against log width, with bootstrap intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError

LEVEL = 0.95
"""Coverage of the reported intervals."""


@dataclass(frozen=True)
class Slope:
    """A power of the width: least squares of log size against log width, and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True, eq=False)
class Sizes:
    """Sizes of an observable at every width, arrays (widths,), root mean squares over its entries.

    Attributes:
        mean: of the mean over seeds, with the noise of the mean (sd^2 / seeds in the square) taken off; zero where that leaves
            nothing.
        sd: standard deviation over seeds.
        rms: root mean square over seeds.
    """

    mean: np.ndarray
    sd: np.ndarray
    rms: np.ndarray


def sizes(values: np.ndarray) -> Sizes:
    """Sizes of values (widths, seeds, ...), each without bias in its square."""
    found = _weighted(values, np.ones((1, *values.shape[:2])))
    return Sizes(found.mean[0], found.sd[0], found.rms[0])


def resampled(values: np.ndarray, resamples: int, seed: int = 0) -> Sizes:
    """Sizes (resamples, widths) of bootstrap samples over seeds, drawn for every width apart as its nets are."""
    widths, seeds = values.shape[:2]
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=(resamples, widths))
    while (alone := counts.max(axis=2) == seeds).any():  # one seed alone has no spread
        counts[alone] = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=int(alone.sum()))
    return _weighted(values, counts.astype(float))


def _weighted(values: np.ndarray, counts: np.ndarray) -> Sizes:
    """Sizes (resamples, widths) where seeds count (resamples, widths, seeds) times.

    The variance is that over pairs of different seeds, however often each counts: pairs of a seed with itself would bring the
    noise of the mean back into every resample.
    """
    widths, seeds = values.shape[:2]
    x = values.reshape(widths, seeds, -1)
    own = np.mean(x**2, axis=2)
    total = np.stack([counts[:, w] @ x[w] for w in range(widths)], axis=1)
    square = np.einsum("bws,ws->bw", counts, own) / seeds
    variance = (seeds**2 * square - np.mean(total**2, axis=2)) / (seeds**2 - np.sum(counts**2, axis=2))
    return Sizes(*(np.sqrt(np.maximum(v, 0.0)) for v in (square - variance, variance, square)))


def slope(widths: Sequence[int], size: np.ndarray, samples: np.ndarray, floor: np.ndarray) -> Slope | None:
    """The slope of sizes (widths,) with its interval from bootstrap samples (resamples, widths).

    Args:
        floor: sizes below which nothing is told from nothing, (widths,); samples below it count as that.

    Returns:
        None if a size is below its floor.
    """
    if not np.all(size > floor):
        return None
    value = log_slopes(widths, size)
    low, high = np.quantile(log_slopes(widths, np.maximum(samples, floor)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Slope(float(value), float(low), float(high))


def log_slopes(widths: Any, values: np.ndarray) -> np.ndarray:
    """Slopes of log values against log width along the last axis."""
    x = np.log(np.asarray(widths, float))
    x -= x.mean()
    return np.log(values) @ x / (x @ x)


def measured_slope(widths: Any, values: Any, stderr: Any) -> Slope:
    """The power of the width of positive numbers with standard errors, for instance an :func:`tp_solver.mmd2` per width.

    The interval propagates the errors to first order; all widths weigh the same.

    Args:
        widths, values, stderr: one entry per width, at least two different widths.

    Raises:
        InputError: for malformed arrays, or a value that is not above zero.
    """
    n, v, e = (checks.array(field, a, ndim=(1,)) for field, a in (("widths", widths), ("values", values), ("stderr", stderr)))
    if len({len(n), len(v), len(e)}) > 1 or len(set(n)) < 2:
        raise InputError("widths", f"{len(n)} widths, {len(v)} values, {len(e)} errors", "one of each per width", "two widths at least")
    if not (np.all(v > 0) and np.all(n > 0)):
        raise InputError(
            "values", float(v.min()), "numbers above zero", "a value below its noise has no logarithm; take more draws or smaller widths"
        )
    x = np.log(n) - np.log(n).mean()
    value, error = float(log_slopes(n, v)), float(np.sqrt(np.sum((x / (x @ x) * e / v) ** 2)))
    return Slope(value, value - 1.96 * error, value + 1.96 * error)
