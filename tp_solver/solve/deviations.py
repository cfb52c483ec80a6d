"""How far sampled runs are from the limit: scatter over replicates, and what runs at another setting show (LO.7).

Replicates show neither the bias of finite samples nor the truncation nor the step size. Each is of first order in a number x
(one over the samples, the tolerance, the step), so that the difference between two values of x tells the error at a third.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Parts = Mapping[str, np.ndarray]

SIGNIFICANT = 16.0
"""Mean square of a deviation, in units of its own noise, from which on it may be removed: four standard errors, as few replicates know
their noise badly, and the noise of what is removed in error is larger than what it saves."""
DOUBT = 0.5
"""Share of a removed deviation that stays in the interval: it is of first order only about."""
SAMPLING = "sampling"


@dataclass(frozen=True)
class Check:
    """Two groups of runs that differ in one respect.

    Attributes:
        kind: what they show: "finite samples", "truncation", "step size".
        near, far: names of the groups; replicate k of one has the random numbers of replicate k of the other.
        factor: error of the main runs per difference far - near, x / (x_far - x_near).
        always: whether to extrapolate without asking whether the deviation is significant: where no noise could be in the way.
    """

    kind: str
    near: str
    far: str
    factor: float
    always: bool = False


@dataclass(frozen=True)
class Estimate:
    """A value with what is known of its error.

    Attributes:
        value: the estimate.
        parts: kind -> its share of the standard error, all of the shape of the value; scatter is called "sampling".
        freedom: degrees of freedom of the scatter: replicates - 1, infinite where nothing was sampled.
    """

    value: np.ndarray
    parts: Parts
    freedom: float

    @property
    def stderr(self) -> np.ndarray:
        """Root of the sum of squares of the parts."""
        with np.errstate(invalid="ignore"):
            return np.sqrt(sum(p**2 for p in self.parts.values()))

    @property
    def effective_freedom(self) -> np.ndarray:
        """Degrees of freedom of the standard error (Welch and Satterthwaite): every part was measured with those of the replicates."""
        total = self.stderr
        if not 0 < self.freedom < np.inf:
            return np.full(total.shape, self.freedom)
        size = np.where((total > 0) & np.isfinite(total), total, 1.0)
        fourth = sum((np.where(np.isfinite(p), p, 0.0) / size) ** 4 for p in self.parts.values())
        return self.freedom / np.where((total > 0) & (fourth > 0), fourth, 1.0)


def deviation(near: np.ndarray, far: np.ndarray, main: np.ndarray, factor: float) -> np.ndarray:
    """Estimated error of the main runs per replicate, (replicates, times, ...); infinite at times that a run did not reach."""
    rows = min(near.shape[1], far.shape[1], main.shape[1])
    count = min(len(near), len(far), len(main))
    out = np.full((count, *main.shape[1:]), np.inf)
    out[:, :rows] = factor * (far[:count, :rows] - near[:count, :rows])
    return out


@dataclass(frozen=True)
class Resolved:
    """A deviation of one array against its own noise.

    Attributes:
        mean: over replicates; infinite where it is not known.
        spread: standard error of the mean, zero where it is not known or for a single replicate.
        square, noise: mean squares of the two, over what is known.
    """

    mean: np.ndarray
    spread: np.ndarray
    square: float
    noise: float

    @property
    def trust(self) -> float:
        """Share of the mean square that noise does not explain, between 0 and 1."""
        return max(0.0, 1.0 - self.noise / self.square) if self.square > 0 else 0.0

    @property
    def size(self) -> np.ndarray:
        """Root mean square of the true deviation, entry by entry: for a Gaussian one of the variance that noise does not explain, its
        expectation given the mean is ``trust * mean``, its variance ``trust * spread**2``."""
        known = np.isfinite(self.mean)
        mean = np.where(known, self.mean, 0.0)
        return np.where(known, np.sqrt((self.trust * mean) ** 2 + self.trust * self.spread**2), np.inf)


def resolved(errors: np.ndarray) -> Resolved:
    """Mean and noise of a deviation (replicates, ...)."""
    known = np.isfinite(errors).all(axis=0)
    finite = np.where(known, errors, 0.0)
    mean, spread = finite.mean(axis=0), scatter(finite)
    square, noise = (float(np.mean(a[known] ** 2)) if known.any() else 0.0 for a in (mean, spread))
    return Resolved(np.where(known, mean, np.inf), spread, square, noise)


def scatter(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over replicates (zero for a single one)."""
    if len(values) == 1:
        return np.zeros(values.shape[1:])
    return np.std(values, axis=0, ddof=1) / np.sqrt(len(values))


def removable(main: np.ndarray, errors: Mapping[str, np.ndarray], always: frozenset[str]) -> frozenset[str]:
    """The kinds whose removal helps: significant ones, whose square exceeds the variance that removing them adds."""
    paired = {kind for kind, error in errors.items() if len(error) == len(main)}
    out = paired & always
    for kind in paired - always:
        found = resolved(errors[kind])
        if found.noise <= 0.0:  # a single replicate does not tell
            continue
        added = np.mean(scatter(without(main, {kind: errors[kind]})) ** 2) - np.mean(scatter(main) ** 2)
        if found.square > SIGNIFICANT * found.noise and found.square - found.noise > added:
            out.add(kind)
    return frozenset(out)


def without(main: np.ndarray, errors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Values per replicate less their deviations; what is not known is not removed."""
    for error in errors.values():
        main = main - np.where(np.isfinite(error).all(axis=0), error, 0.0)
    return main


def estimate(main: np.ndarray, errors: Mapping[str, np.ndarray], removed: frozenset[str], sampled: bool) -> Estimate:
    """Mean over replicates (first axis), less the deviations to be removed.

    Args:
        main: values (replicates, ...).
        errors: kind -> deviations (replicates, ...).
        removed: kinds to remove; half of what is removed stays in the error.
        sampled: whether there is sampling noise, which a single replicate does not show.
    """
    values = without(main, {kind: errors[kind] for kind in errors if kind in removed})
    parts = {SAMPLING: scatter(values)}
    for kind, error in errors.items():
        found = resolved(error)
        parts[kind] = np.abs(DOUBT * found.mean) if kind in removed else found.size
    return Estimate(values.mean(axis=0), parts, len(main) - 1.0 if sampled else np.inf)


def estimate_of(
    function: Callable[[np.ndarray], np.ndarray], main: np.ndarray, errors: Mapping[str, np.ndarray], removed: frozenset[str], sampled: bool
) -> Estimate:
    """A function of the mean over replicates, with the scatter of the means that leave one replicate out (jackknife).

    The mean of the function would be biased by its curvature times the scatter squared.
    """
    values = without(main, {kind: errors[kind] for kind in errors if kind in removed})
    mean = values.mean(axis=0)
    value = function(mean)

    def noise(draws: np.ndarray) -> np.ndarray:
        """Standard error of the function from draws whose mean is added to that of the values."""
        count, center = len(draws), draws.mean(axis=0)
        if count == 1:
            return np.zeros_like(value)
        return np.sqrt((count - 1) * np.var([function(mean + (center - d) / (count - 1)) for d in draws], axis=0))

    parts = {SAMPLING: noise(values)}
    for kind, error in errors.items():
        found, finite = resolved(error), np.isfinite(error).all(axis=0)
        share, spread = (DOUBT, 0.0) if kind in removed else (found.trust, found.trust**0.5)
        moved = function(mean + np.where(finite, share * found.mean, 0.0)) - value
        known = finite.all(axis=tuple(range(value.ndim, mean.ndim)))
        parts[kind] = np.where(known, np.hypot(moved, spread * noise(np.where(finite, error, 0.0))), np.inf)
    return Estimate(value, parts, len(main) - 1.0 if sampled else np.inf)
