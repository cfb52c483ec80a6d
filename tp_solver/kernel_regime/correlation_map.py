"""One layer after another, as a compiled loop over the angles between fields (``theory/depth.md``, KD.7 to KD.9).

Correlations approach one so closely that float64 cannot hold them, so that angles are iterated. From layer to layer 1 - c is multiplied
by a mean of positive numbers, 1 - c' = B + sqrt(q1 q2 / q1' q2') m(theta) (1 - c), m(theta) (1 - cos theta) = int_0^theta s(t) sin t dt,
where s is the very factor that the layer puts on the tangent kernel (Price's theorem), and B vanishes for inputs of equal variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.kernel_regime.one_point import line_rule
from tp_solver.kernel_regime.repeated_layer import Branch, RepeatedLayer
from tp_solver.numerics.closed_forms import ONE, NoClosedForm, parse
from tp_solver.numerics.duals import dual_function
from tp_solver.numerics.pointwise import kinks
from tp_solver.symbols.activation import X

STILL = 1e-14
"""Relative change of a variance that is rounding."""
SIZES = (24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers of Chebyshev nodes over angles from 0 to pi."""
TAIL = 1e-14
"""Size of the last coefficients, relative to the first, at which there are enough."""


class Fields(NamedTuple):
    """Second moments of a layer's fields over n inputs and the P pairs i < j of them, in logarithms as they may grow without bound.

    Attributes:
        log_q: variances (n,).
        angle: arccos of the correlations (P,).
        excess: log of the diagonal of the tangent kernel over the variances, which stays moderate where both grow alike (n,).
        shared: the other entries of the tangent kernel over sqrt(q1 q2), which stay moderate even where the diagonal explodes (P,).
    """

    log_q: jax.Array
    angle: jax.Array
    excess: jax.Array
    shared: jax.Array

    @property
    def log_ntk(self) -> jax.Array:
        """Logarithm of the diagonal of the tangent kernel, (n,)."""
        return self.log_q + self.excess


class Coefficients(NamedTuple):
    """What one layer does at given variances.

    Attributes:
        growth: log(q' / q), (n,).
        apart: B, (P,).
        backward, source: s(0), and sum_m rate_m <f_m^2> in units of squared amplitudes, (n,).
        curves: s(theta), m(theta), and sum_m rate_m <f_m f_m'> at the Chebyshev nodes, (P, 3, N).
    """

    growth: jax.Array
    apart: jax.Array
    backward: jax.Array
    source: jax.Array
    curves: jax.Array


def homogeneous(f: sp.Expr) -> bool:
    """Whether f(k x) = k f(x) for k > 0: straight lines that meet at zero."""
    try:
        terms = parse(f)
    except NoClosedForm:
        return False
    return all(t.decay == 0 and (t.base, t.power) in ((ONE, 1), (sp.Abs, 0), (sp.sign, 1)) for t in terms)


@dataclass(frozen=True)
class Means:
    """<f f'> and <f' f'> of a branch as functions of log variances and an angle.

    Attributes:
        largest: bound of the variances.
        free: whether f is homogeneous and looked at with unit variance, in units of sqrt(q), so that no variance is too large.
    """

    branch: Branch
    largest: float
    free: bool

    def amplitude(self, log_q: jax.Array) -> jax.Array:
        """Logarithm of what f f' is to be multiplied by, for two fields of this variance."""
        return log_q if self.free else jnp.zeros_like(log_q)

    def seen(self, log_q: jax.Array) -> jax.Array:
        """The variance at which f is looked at."""
        return jnp.ones_like(log_q) if self.free else jnp.exp(log_q)

    def pair(self, derivative: int, log_q: jax.Array, log_p: jax.Array, cosine: jax.Array) -> jax.Array:
        """<f f'> (derivative 0) or <f' f'> (1) of two fields."""
        f = sp.diff(self.branch.function, X, derivative)
        q, p = self.seen(log_q), self.seen(log_p)
        return dual_function(f, f, self.largest)(q, p, jnp.sqrt(q * p) * cosine)


@dataclass(frozen=True)
class LayerMap:
    """A layer made ready to be repeated for inputs whose variances stay below ``largest``.

    Args:
        layer: what repeats.
        largest: bound of the variances.
        pairs: indices i < j of the pairs of inputs, (2, P).
        size: number of Chebyshev coefficients.
    """

    layer: RepeatedLayer
    largest: float
    pairs: tuple[tuple[int, ...], tuple[int, ...]]
    size: int

    @property
    def means(self) -> tuple[Means, ...]:
        return tuple(Means(b, self.largest, self.free) for b in self.layer.branches)

    @property
    def free(self) -> bool:
        """Whether all branches are homogeneous."""
        return all(homogeneous(b.function) for b in self.layer.branches)

    def coefficients(self, log_q: jax.Array) -> Coefficients:
        """At these variances, from scratch."""
        second, derivative = self._diagonals(log_q)
        growth, apart = self._variances(log_q, second)
        backward, source = jnp.full_like(log_q, self.layer.skip**2), jnp.zeros_like(log_q)
        for b, f, slope in zip(self.layer.branches, second, derivative, strict=True):
            backward, source = backward + b.weight * slope, source + b.rate * f
        return Coefficients(growth, apart, backward, source, self._curves(log_q))

    def refreshed(self, log_q: jax.Array, old: Coefficients) -> Coefficients:
        """At these variances, given that homogeneous branches look the same at all."""
        if not self.free:
            return self.coefficients(log_q)
        growth, apart = self._variances(log_q, self._diagonals(log_q)[0])
        return old._replace(growth=growth, apart=apart)

    def _diagonals(self, log_q: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """E f_m^2 in units of squared amplitudes, and E f_m'^2, of each branch (n,): one-dimensional, exact to rounding."""
        seen = jnp.zeros(1) if self.free else log_q
        root = jnp.exp(seen / 2)[:, None]
        functions = [b.function for b in self.layer.branches]
        z, w = line_rule(jnp.exp(seen)[:, None], tuple(sorted({k for f in functions for k in kinks(f)})))
        rows = [jnp.sum(w * lower(g, (X,))(root * z) ** 2, axis=-1) for f in functions for g in (f, sp.diff(f, X))]
        full = [jnp.broadcast_to(r, log_q.shape) for r in rows]
        return full[::2], full[1::2]

    def _curves(self, log_q: jax.Array) -> jax.Array:
        i, j = self.indices
        first, second, cosine = log_q[i][:, None], log_q[j][:, None], jnp.cos(nodes(self.size))
        shape = (len(self.pairs[0]), self.size)
        between, shared = jnp.full(shape, self.layer.skip**2, log_q.dtype), jnp.zeros(shape, log_q.dtype)
        for m in self.means:
            between = between + m.branch.weight * m.pair(1, first, second, cosine)
            shared = shared + m.branch.rate * m.pair(0, first, second, cosine)
        return jnp.stack([between, between @ averages(self.size), shared], axis=1)

    def _variances(self, log_q: jax.Array, second: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """log(q'/q), and B = (1/2) sum of squared differences of what makes the two fields, each over its root of q'."""
        i, j = self.indices
        layer = self.layer
        per_q = jnp.zeros_like(log_q) if self.free else -log_q
        shares = sum(b.weight * f for b, f in zip(layer.branches, second, strict=True))
        growth = jnp.log(layer.skip**2 + shares * jnp.exp(per_q) + layer.bias * jnp.exp(-log_q))
        unit = jnp.exp(-growth / 2)  # sqrt(q / q')
        scale = jnp.exp(-(log_q + growth) / 2)  # 1 / sqrt(q')
        apart = layer.skip**2 * (unit[i] - unit[j]) ** 2 + layer.bias * (scale[i] - scale[j]) ** 2
        for b, f in zip(layer.branches, second, strict=True):
            apart = apart + b.weight * (f[i] * (unit[i] - unit[j]) ** 2 if self.free else self._difference(b, log_q, scale))
        return growth, apart / 2

    def _difference(self, b: Branch, log_q: jax.Array, scale: jax.Array) -> jax.Array:
        """E (f(sqrt(q1) z) / sqrt(q1') - f(sqrt(q2) z) / sqrt(q2'))^2 over pairs."""
        i, j = self.indices
        q, f = jnp.exp(log_q), lower(b.function, (X,))
        z, w = line_rule(jnp.stack([q[i], q[j]], axis=-1), kinks(b.function))
        return jnp.sum(
            w * (f(jnp.sqrt(q[i])[:, None] * z) * scale[i][:, None] - f(jnp.sqrt(q[j])[:, None] * z) * scale[j][:, None]) ** 2, axis=-1
        )

    @property
    def indices(self) -> tuple[jax.Array, jax.Array]:
        i, j = self.pairs
        return jnp.asarray(i, jnp.int32), jnp.asarray(j, jnp.int32)

    def step(self, fields: Fields, c: Coefficients) -> Fields:
        """The next layer's fields."""
        i, j = self.indices
        log_q, angle, excess, shared = fields
        between, average, own = jnp.unstack(interpolated(c.curves, angle), axis=1)
        growth, log_scale = (c.growth[i] + c.growth[j]) / 2, (log_q[i] + log_q[j]) / 2
        away = c.apart + 2 * jnp.sin(angle / 2) ** 2 * average * jnp.exp(-growth)
        new_angle = 2 * jnp.arcsin(jnp.sqrt(jnp.clip(away / 2, 0.0, 1.0)))

        per_source = -excess if self.free else -fields.log_ntk
        gain = c.backward + c.source * jnp.exp(per_source) + self.layer.bias_rate * jnp.exp(-fields.log_ntk)
        added = (own if self.free else own * jnp.exp(-log_scale)) + self.layer.bias_rate * jnp.exp(-log_scale)
        new_shared = (between * shared + added) * jnp.exp(-growth)
        return Fields(log_q + c.growth, new_angle, excess + (jnp.log(gain) - c.growth), new_shared)

    def small_angles(self, log_q: jax.Array, cosine: jax.Array) -> jax.Array:
        """The backward factor between fields of one variance at these correlations."""
        total = jnp.full_like(cosine, self.layer.skip**2)
        for m in self.means:
            total = total + m.branch.weight * m.pair(1, log_q, log_q, cosine)
        return total

    def advance(self, fields: Fields, c: Coefficients, layers: jax.Array) -> tuple[Fields, Coefficients]:
        """So many layers later; what belongs to the variances is computed anew only while they move."""

        def body(_: jax.Array, carry: tuple[Fields, Coefficients]) -> tuple[Fields, Coefficients]:
            fields, c = carry
            still = jnp.abs(c.growth) <= STILL
            fields = self.step(fields, c._replace(growth=jnp.where(still, 0.0, c.growth)))
            same = self.free and self.layer.bias == 0
            c = c if same else jax.lax.cond(jnp.all(still), lambda: c, lambda: self.refreshed(fields.log_q, c))
            return fields, c

        return jax.lax.fori_loop(0, layers, body, (fields, c))


def nodes(size: int) -> np.ndarray:
    """Angles between 0 and pi at which functions of the angle are sampled: Chebyshev's, in decreasing order."""
    return np.pi / 2 * (1 + np.cos(np.pi * (np.arange(size) + 0.5) / size))


def transform(size: int) -> np.ndarray:
    """Values at the nodes times this matrix are Chebyshev coefficients, (size, size)."""
    k = np.arange(size)
    out = 2 / size * np.cos(np.pi * np.outer(k + 0.5, k) / size)
    out[:, 0] /= 2
    return out


@cache
def averages(size: int) -> np.ndarray:
    """Values of s at the nodes times this matrix are those of m, the mean of s over correlations from cos(theta) to 1, (size, size)."""
    u, w = np.polynomial.legendre.leggauss(size // 2 + 16)
    theta = nodes(size)[:, None]
    t = theta * (u + 1) / 2
    weights = w * theta / 2 * np.sin(t) / (2 * np.sin(theta / 2) ** 2)
    basis = np.polynomial.chebyshev.chebvander(2 * t / np.pi - 1, size - 1)
    return transform(size) @ np.einsum("jg,jgk->kj", weights, basis)


def interpolated(curves: jax.Array, angle: jax.Array) -> jax.Array:
    """Functions known at the nodes (P, K, N), at angles (P,), by the barycentric formula: (P, K)."""
    size = curves.shape[-1]
    signs = np.sin(np.pi * (np.arange(size) + 0.5) / size) * (-1.0) ** np.arange(size)
    away = angle[:, None] - nodes(size)
    weights = signs / jnp.where(away == 0, np.finfo(float).tiny, away)
    return jnp.einsum("pn,pkn->pk", weights, curves) / jnp.sum(weights, axis=1)[:, None]


def resolved(make: Callable[[int], LayerMap], log_q: np.ndarray) -> LayerMap:
    """The map with the fewest nodes that resolve it at these variances (and, failing all, the most)."""
    for trial in (96, SIZES[-1]):
        curves = np.asarray(jax.jit(make(trial).coefficients)(jnp.asarray(log_q)).curves)
        series = np.abs(curves @ transform(trial))
        for size in SIZES[: SIZES.index(trial)]:
            if np.all(series[..., size - 3 :] <= TAIL * series.max(axis=-1, keepdims=True)):
                return make(size)
    return make(SIZES[-1])
