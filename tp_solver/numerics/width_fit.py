"""Fits in powers of 1/width to nets of several widths: weighted least squares, resampled seeds, and a check of the fit.

The fit is linear in the nets, so that what resampling seeds makes of it has a closed form: every net has one influence on the
estimate, and the bootstrap's variance is a sum over squared influences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import fdtrc

CHUNK = 2**22
"""Numbers worked on at once."""
CURVED = 0.05
"""A fit in 1/N whose p-value is below this takes a term in 1/N^2 where four widths or more allow it."""
CHECKS = 2000
"""Resamplings that say how far residuals go by chance."""
PRIOR = 10
"""Seeds' worth of trust in a variance that falls like 1/N: with few seeds a width's own variance is too rough to weigh by."""
ROUNDING = 1e-12
"""Scatter below this share of the largest value is taken for rounding."""


@dataclass(frozen=True)
class Design:
    """Which nets there are.

    Attributes:
        widths: W widths in increasing order.
        seeds: nets per width.
        groups: positions of the widths whose nets go by the same labels, group by group: they are resampled together.
    """

    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Seeds per group."""
        return tuple(self.seeds[group[0]] for group in self.groups)

    def powers(self, order: int) -> np.ndarray:
        """(narrowest width / N)^k for k = 0..order, (W, order + 1)."""
        return np.vander(self.widths[0] / np.asarray(self.widths, float), order + 1, increasing=True)

    def draws(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Bootstrap weights of the nets minus those of the mean, (count, sum of ``sizes``), widened by sqrt(S / (S - 1)) so that the
        variance they make is the unbiased one."""
        parts = [(rng.multinomial(s, np.full(s, 1 / s), count) - 1) / np.sqrt(s * (s - 1.0)) for s in self.sizes]
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True, eq=False)
class WidthFit:
    """value(N) = limit + coefficient / N (+ a term in 1/N^2), entry by entry; :func:`fit_widths` makes one.

    Attributes:
        limit, stderr: the estimate at N = infinity and its standard error, both of the shape of the values.
        coefficient, coefficient_stderr: c in c / N.
        order: 1, or 2 with a term in 1/N^2.
        weights: what the mean of each width counts for in the limit, (W,).
        p_value: of the check, NaN where no width is left over or nothing scatters.
    """

    limit: np.ndarray
    stderr: np.ndarray
    coefficient: np.ndarray
    coefficient_stderr: np.ndarray
    order: int
    weights: np.ndarray
    p_value: float


def fit_widths(design: Design, values: Sequence[np.ndarray], rng: np.random.Generator) -> WidthFit:
    """Extrapolate one quantity to infinite width.

    Every width weighs what its own variance over seeds says, averaged over the entries of the quantity and moderated towards a
    variance that falls like 1/N (``PRIOR``): one set of weights for all entries, so that relations between them which are linear
    hold in the limit too. The term in 1/N^2 is taken if the check without it has a p-value below ``CURVED`` and there are at
    least four widths.

    Args:
        design: the nets.
        values: one array per width, (seeds of that width, ...).
        rng: of the check.
    """
    flat = [np.reshape(v, (len(v), -1)) for v in values]
    shape = np.shape(values[0])[1:]
    precision = _precision(design, flat)
    for order in (1, 2):
        rows = _rows(design.powers(order), precision)
        p_value = _check(design, flat, precision, rows, design.powers(order), rng)
        if not p_value < CURVED or len(design.widths) < 4:
            break
    found = np.empty((4, flat[0].shape[1]))
    scale = design.widths[0]
    for part in _chunks(flat):
        means = np.stack([v[:, part].mean(axis=0, dtype=float) for v in flat])
        found[0, part], found[2, part] = rows[0] @ means, scale * (rows[1] @ means)
        for k, row in ((1, rows[0]), (3, scale * rows[1])):
            found[k, part] = _spread(design, influences(design, [v[:, part] for v in flat], row))
    limit, stderr, slope, slope_stderr = (a.reshape(shape) for a in found)
    return WidthFit(limit, stderr, slope, slope_stderr, order, rows[0], p_value)


def influences(design: Design, values: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """How far each net of each group moves the weighted sum of the widths' means, (sum of ``sizes``, entries)."""
    parts = []
    for group in design.groups:
        parts.append(sum(weights[w] * (values[w] - values[w].mean(axis=0, dtype=float)) for w in group))
    return np.concatenate(parts)


def _spread(design: Design, influence: np.ndarray) -> np.ndarray:
    """Standard error that resampling makes of influences, without resampling."""
    over = np.concatenate([np.full(s, 1 / (s * (s - 1.0))) for s in design.sizes])
    return np.sqrt(over @ influence**2)


def _precision(design: Design, flat: Sequence[np.ndarray]) -> np.ndarray:
    """One over the variance of each width's mean, averaged over entries (like 1/N where nothing scatters), (W,)."""
    variances = np.zeros(len(flat))
    for part in _chunks(flat):
        variances += [np.var(v[:, part], axis=0, ddof=1, dtype=float).sum() for v in flat]
    widths, seeds = np.asarray(design.widths, float), np.asarray(design.seeds, float)
    common = np.sum((seeds - 1) * widths * variances) / np.sum(seeds - 1)
    if common == 0.0:
        return seeds * widths
    moderated = (PRIOR * common / widths + (seeds - 1) * variances) / (PRIOR + seeds - 1)
    return seeds / (moderated / flat[0].shape[1])


def _rows(powers: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Rows that turn the widths' means into coefficients, (order + 1, W)."""
    root = np.sqrt(precision)
    return np.linalg.pinv(root[:, None] * powers) * root


def _check(
    design: Design, flat: Sequence[np.ndarray], precision: np.ndarray, rows: np.ndarray, powers: np.ndarray, rng: np.random.Generator
) -> float:
    """p-value of the residuals: chi^2 summed over widths and entries, each entry in units of its own scatter.

    Entries of one net go together, so that the sum is no chi^2 variable of as many degrees. Resampled seeds give its mean and
    variance where the fit holds, and Satterthwaite's rule the degrees; the scatter being estimated itself, the ratio is referred to
    an F distribution whose second degrees are those of all the widths' variances.
    """
    widths, terms = powers.shape
    if widths <= terms:
        return float("nan")
    # what is left of the means, in units of their errors, along the directions that no fit reaches
    root = np.sqrt(precision)
    left = np.linalg.svd(root[:, None] * powers)[0][:, terms:].T * root
    nets = sum(design.sizes)
    gram, observed, dust = np.zeros((nets, nets)), 0.0, 0.0
    largest = max(float(np.abs(v).max(initial=0.0)) for v in flat)
    for part in _chunks(flat):
        here = [v[:, part] for v in flat]
        noise = np.mean([p * np.var(v, axis=0, ddof=1, dtype=float) / len(v) for p, v in zip(precision, here, strict=True)], axis=0)
        floor = np.mean(precision / design.seeds) * (ROUNDING * largest) ** 2
        sharp = noise > floor
        if not sharp.any():
            continue
        here = [v[:, sharp] / np.sqrt(noise[sharp]) for v in here]
        means = np.stack([v.mean(axis=0, dtype=float) for v in here])
        for row in left:
            observed += float(np.sum((row @ means) ** 2))
            dust += float(np.sum((ROUNDING * np.abs(row) @ np.abs(means)) ** 2))
            influence = influences(design, here, row)
            gram += influence @ influence.T
    if not gram.any():
        return float("nan")
    draws = design.draws(CHECKS, rng)
    chance = np.einsum("bi,ij,bj->b", draws, gram, draws, optimize=True)
    degrees = 2 * chance.mean() ** 2 / chance.var()
    return float(fdtrc(degrees, sum(design.seeds) - len(design.seeds), observed / max(chance.mean(), dust)))


def _chunks(flat: Sequence[np.ndarray]) -> Iterator[slice]:
    """Slices of the entries that keep the work within ``CHUNK`` numbers."""
    entries = flat[0].shape[1]
    length = max(1, CHUNK // sum(len(v) for v in flat))
    for start in range(0, entries, length):
        yield slice(start, min(start + length, entries))
