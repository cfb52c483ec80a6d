"""A net with its layer repeated: outputs at chosen depths, and the rate of approach at depths that suit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.errors import ProgramError
from tp_solver.kernel_regime.correlation_map import Coefficients, Fields, LayerMap, Means, homogeneous, resolved
from tp_solver.kernel_regime.depth_rates import DepthRate, EdgeExpansion, Law, edge_expansion, fit_exponent, fit_ratio
from tp_solver.kernel_regime.phases import FixedPoint, depth_scale
from tp_solver.kernel_regime.repeated_layer import DeepNet
from tp_solver.kernel_regime.variance_map import EDGE_WIDTH, GRID, Fate, summed

FAR = 100_000
"""Depth to which an algebraic approach is followed for its rate."""
DECAY = 22
"""Correlation lengths over which an exponential decay is followed: to 1e-10."""
LOWEST = -300.0
"""Logarithm of the smallest variance that a rate is looked for at."""
SAMPLES = 20
"""Chebyshev nodes at small angles for the expansion of the backward factor."""


class Outputs(NamedTuple):
    """At each depth: log diagonals (T, n); of the pairs (T, P) the correlation, the tangent kernel as others * exp(log_scale), and
    the angle between the last fields."""

    log_nngp: np.ndarray
    log_ntk: np.ndarray
    correlation: np.ndarray
    others: np.ndarray
    log_scale: np.ndarray
    angle: np.ndarray

    def log_mean(self) -> np.ndarray:
        """Logarithm of the geometric mean of both diagonal entries of the tangent kernel, (T, P)."""
        i, j = np.triu_indices(self.log_ntk.shape[1], 1)
        return (self.log_ntk[:, i] + self.log_ntk[:, j]) / 2

    @property
    def ratio(self) -> np.ndarray:
        """Tangent kernel over the geometric mean of its diagonal entries, (T, P)."""
        return self.others * np.exp(self.log_scale - self.log_mean())


@dataclass(frozen=True, eq=False)
class Repetition:
    """A net, its first fields, and its layer ready to be repeated. All work is done in float64: call under ``jax.enable_x64``."""

    net: DeepNet
    start: Fields
    depth: int
    layer: LayerMap
    coefficients: Callable[[jax.Array], Coefficients]
    advance: Callable[[Fields, Coefficients, int], tuple[Fields, Coefficients]]
    readout: Callable[[Fields], tuple[jax.Array, ...]]

    @classmethod
    def prepare(cls, net: DeepNet, start: Fields, fixed: FixedPoint, depth: int) -> Repetition:
        """Compile the layer for variances up to the largest that this net will see.

        Raises:
            ProgramError: if the variance leaves float64.
        """
        layer = net.layer
        free = all(homogeneous(b.function) for b in layer.branches)
        largest = 1.0 if free else largest_variance(net, float(np.exp(np.max(start.log_q))), fixed, depth)
        i, j = np.triu_indices(len(start.log_q), 1)
        pairs = tuple(map(int, i)), tuple(map(int, j))
        first = np.asarray(start.log_q)
        typical = first if free or not 0 < fixed.q < np.inf else np.maximum(first, np.log(fixed.q))
        repeated = resolved(lambda size: LayerMap(layer, largest, pairs, size), typical)
        compiled = (jax.jit(f) for f in (repeated.coefficients, repeated.advance, cls._readout(net, repeated)))
        return cls(net, Fields(*map(jnp.asarray, start)), depth, repeated, *compiled)

    def outputs(self, depths: np.ndarray) -> Outputs:
        """At these depths, increasing.

        Raises:
            ProgramError: if the variance leaves float64.
        """
        fields, at = self.start, 1
        coefficients = self.coefficients(fields.log_q)
        rows = []
        for depth in depths:
            fields, coefficients = self.advance(fields, coefficients, int(depth) - at)
            at = int(depth)
            row = [np.asarray(v) for v in (*self.readout(fields), fields.angle)]
            if not all(np.all(np.isfinite(v)) for v in row):
                raise ProgramError(
                    "depth_analysis", f"numbers beyond float64 at depth {at}", "a variance that float64 holds",
                    "fewer layers, or a weight scale nearer to the edge of chaos",
                )  # fmt: skip
            rows.append(row)
        return Outputs(*(np.stack(v) for v in zip(*rows, strict=True)))

    @staticmethod
    def _readout(net: DeepNet, layer: LayerMap) -> Callable[[Fields], tuple[jax.Array, ...]]:
        branch = net.readout
        means = Means(branch, layer.largest, layer.free and homogeneous(branch.function))
        i, j = layer.indices

        def outputs(fields: Fields) -> tuple[jax.Array, ...]:
            log_q, angle, excess, shared_ntk = fields
            one, cosine, first, second = jnp.ones_like(log_q), jnp.cos(angle), log_q[i], log_q[j]
            per_source = -excess if means.free else -fields.log_ntk
            own, shared = means.pair(0, log_q, log_q, one), means.pair(0, first, second, cosine)
            back, shared_back = means.pair(1, log_q, log_q, one), means.pair(1, first, second, cosine)
            gain = branch.weight * back + branch.rate * own * jnp.exp(per_source)
            log_scale = (first + second) / 2
            added = shared if means.free else shared * jnp.exp(-log_scale)
            return (
                jnp.log(branch.weight * own) + means.amplitude(log_q),
                fields.log_ntk + jnp.log(gain),
                shared / jnp.sqrt(own[i] * own[j]),
                branch.weight * shared_back * shared_ntk + branch.rate * added,
                log_scale,
            )

        return outputs

    def measure(self, fixed: FixedPoint) -> DepthRate:
        """The rate at which the tangent kernel approaches its limit, at depths that show it."""
        length = depth_scale(fixed.chi_1 / fixed.unit)
        # where the variance itself dies out, so do all differences, whatever becomes of the correlations
        dying = self._vanishes(fixed) and fixed.chi_1 < fixed.unit and length < np.inf
        if not dying and (fixed.c is None or (fixed.c == 1 and abs(fixed.chi_1 / fixed.growth - 1) <= EDGE_WIDTH)):
            return self._algebraic(fixed)
        if fixed.chi_1 < fixed.unit:
            # layers whose variance moves are slow
            far = FAR if dying else np.inf
            return self._collapse(length, far, float(np.log(fixed.chi_1 / fixed.unit)), float(np.log(fixed.unit)))
        layers = np.unique(np.linspace(10, 10 + max(20, 20 * length), 40).astype(int))
        logs = self.outputs(layers - 1).log_ntk - layers[:, None] * np.log(fixed.unit)
        return fit_exponent(Law.EXPLOSION, layers, logs, float(np.log(fixed.chi_1 / fixed.unit)))

    def _vanishes(self, fixed: FixedPoint) -> bool:
        """Whether a variance that is looked at as a number falls to zero exponentially."""
        return not self.layer.free and fixed.q == 0 and fixed.growth < 1 - EDGE_WIDTH

    def _algebraic(self, fixed: FixedPoint) -> DepthRate:
        expansion = self.expansion(fixed)
        # a variance that is looked at as a number must not grow beyond what was asked for, nor vanish
        far = FAR if self.layer.free or fixed.fate is not Fate.DIVERGES else self.depth
        if self._vanishes(fixed):
            far = int(min(far, LOWEST / np.log(fixed.growth)))
        layers = np.unique(np.geomspace(max(3, far / 100), max(4, far), 40).round().astype(int))
        ratio = self.outputs(layers - 1).ratio
        law = Law.LOGARITHM if expansion is None else expansion.law
        if law is Law.NONE or len(layers) < 12:
            known = expansion.limit if expansion else None, expansion.rate if expansion else None
            return DepthRate(law, None, None, 0.0, 0.0, *known, layers, ratio)
        return fit_ratio(law, layers, ratio, expansion)

    def _collapse(self, length: float, far: float, predicted: float, unit: float) -> DepthRate:
        """log of |mean of the two diagonal entries - the other entry| / L, between transients and rounding."""
        first, last = max(4, 5 * length), max(12, DECAY * length)
        start, stop = (first, last) if last <= far else (4, 40)
        layers = np.unique(np.linspace(start, stop, 40).round().astype(int))
        out = self.outputs(layers - 1)
        i, j = np.triu_indices(out.log_ntk.shape[1], 1)
        gap = np.abs(np.cosh((out.log_ntk[:, i] - out.log_ntk[:, j]) / 2) - out.ratio)
        clear = np.all(gap > 1e-12, axis=1)
        with np.errstate(divide="ignore"):
            logs = np.log(gap) + out.log_mean() - (np.log(layers) + layers * unit)[:, None]
        if last > far:
            return DepthRate(Law.COLLAPSE, None, None, 0.0, 0.0, None, predicted, layers, logs)
        if clear.sum() < 3:
            return fit_exponent(Law.COLLAPSE, layers[:3], logs[:3], predicted)
        return fit_exponent(Law.COLLAPSE, layers[clear], logs[clear], predicted)

    def expansion(self, fixed: FixedPoint) -> EdgeExpansion | None:
        """What the layer itself says about the approach; None where the variance does not come to rest at a positive value."""
        if not self.layer.free and not 0 < fixed.q < np.inf:
            return None
        log_q = np.zeros(1) if self.layer.free else np.full(1, np.log(fixed.q))
        width = 0.5 / max(1.0, float(np.exp(log_q[0] / 2)))
        x = np.cos(np.pi * (np.arange(SAMPLES) + 0.5) / SAMPLES)
        factor = jax.jit(self.layer.small_angles)(jnp.asarray(log_q), jnp.asarray(np.cos(width * (x + 1) / 2)))
        return edge_expansion(np.polynomial.chebyshev.chebfit(x, np.asarray(factor), SAMPLES - 1), width)


def largest_variance(net: DeepNet, start: float, fixed: FixedPoint, depth: int) -> float:
    """A bound of the variances within ``depth`` layers.

    Raises:
        ProgramError: if that is beyond what activations can be evaluated at.
    """
    if fixed.fate is not Fate.DIVERGES:
        q = np.array([max(start, fixed.q, 1e-6)])
        # one layer more, for variances that jump
        layer = net.layer
        after = layer.skip**2 * q + summed(tuple((b.function, b.weight) for b in layer.branches), q)[0] + layer.bias
        return 1.5 * float(max(q[0], after[0]))
    layer = net.layer
    second = summed(tuple((b.function, b.weight) for b in layer.branches), GRID)[0]
    with np.errstate(all="ignore"):
        step = np.maximum((layer.skip**2 - 1) * GRID + second + layer.bias, 0.0)
        spent = np.cumsum(np.diff(GRID) / np.maximum(step[:-1], step[1:]) * (GRID[1:] > start))
    within = np.flatnonzero(spent <= depth)
    return float(2 * GRID[min(len(GRID) - 1, (within[-1] if len(within) else 0) + 2)])
