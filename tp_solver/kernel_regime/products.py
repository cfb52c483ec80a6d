"""Means of products of functions of several Gaussians, from those of one and of two (``theory/kernel_regime.md``, KR.12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce

import jax.numpy as jnp
import sympy as sp

from tp_solver.kernel_regime.maps import SAMPLED, NoClosedKernels
from tp_solver.kernel_regime.pairs import Array, Pairs, Positions, sides, variances
from tp_solver.kernel_regime.terms import Factor, Gaussian, shown
from tp_solver.symbols.activation import X

Points = tuple[Array, Array]
"""A number for every point of both sets, (n1, *grid) and (n2, *grid)."""
Number = Array | float
"""Python's own numbers leave the precision to the arrays."""


def seen(values: Points, first: bool, kept: Positions) -> Pairs:
    """Numbers of points as those of pairs, read at the first or at the second point and position, broadcastable."""
    left, right = map(sides(kept)[0 if first else 1], values)
    return Pairs(left, right, left[:, None] if first else right[None, :])


@dataclass(frozen=True)
class Means:
    """How means are found.

    Attributes:
        covariance: of two Gaussians over pairs, None for zero.
        one: E F(h) at every point; two: E F(h) F'(h') over pairs.
        kept: how positions are stored.
    """

    covariance: Callable[[Gaussian, Gaussian], Pairs | None]
    one: Callable[[Factor], Points]
    two: Callable[[Factor, Factor], Pairs | None]
    kept: Positions

    def of_points(self, factors: Sequence[Factor], like: Points) -> Points:
        """The mean of a product at one point, for all points."""
        found = [self._cluster_at_points(c) for c in self._clusters([(f, True) for f in factors if f[0]])]
        constant = float(sp.Mul(*(f for g, f in factors if not g)))
        ones = tuple(constant * jnp.ones_like(v) for v in like)
        out = [reduce(jnp.multiply, [p[k] for p in found], ones[k]) for k in (0, 1)]
        return out[0], out[1]

    def of_pairs(self, first: Sequence[Factor], second: Sequence[Factor], ones: Pairs) -> Pairs | None:
        """The mean of a product at the first point times another at the second."""
        constant = float(sp.Mul(*(f for g, f in (*first, *second) if not g)))
        total = ones.mapped(lambda a: constant * a)
        for cluster in self._clusters([(f, side) for side, fs in ((True, first), (False, second)) for f in fs if f[0]]):
            left, right = ([f for f, side in cluster if side is which] for which in (True, False))
            if not left or not right:
                part: Pairs | None = seen(self._cluster_at_points(cluster), bool(left), self.kept)
            elif len(left) == len(right) == 1:
                part = self.two(left[0], right[0])
            else:
                part = self._polynomial(cluster)
            if part is None:
                return None
            total = Pairs(*(a * b for a, b in zip(total, part, strict=True)))
        return total

    def _clusters(self, nodes: list[tuple[Factor, bool]]) -> list[list[tuple[Factor, bool]]]:
        """Factors that are correlated, through others too."""
        out: list[list[tuple[Factor, bool]]] = []
        for node in nodes:
            near = [c for c in out if any(self.covariance(node[0][0], other[0][0]) is not None for other in c)]
            out = [c for c in out if not any(c is n for n in near)] + [[node, *(v for c in near for v in c)]]
        return out

    def _cluster_at_points(self, cluster: list[tuple[Factor, bool]]) -> Points:
        if len(cluster) == 1:
            return self.one(cluster[0][0])
        factors = _checked(cluster)

        @cache
        def covariance(i: int, j: int) -> Points | None:
            return self._at_points(factors[i][0], factors[j][0])

        def entry(k: int, i: int, j: int) -> Number:
            found = covariance(i, j)
            return 0.0 if found is None else found[k]

        functions = [f for _, f in factors]
        variance = covariance(0, 0)
        assert variance is not None  # what has none is correlated with nothing
        # the zeros give odd powers, whose mean is zero, the shape of points
        left, right = (jnp.zeros_like(v) + wick(functions, partial(entry, k)) for k, v in enumerate(variance))
        return left, right

    def _polynomial(self, cluster: list[tuple[Factor, bool]]) -> Pairs:
        """Polynomials of jointly Gaussian variables, some at the first point and some at the second."""

        @cache
        def covariance(i: int, j: int) -> Pairs | None:
            (((g, _), at), ((h, _), other)) = cluster[i], cluster[j]
            if at is other:
                found = self._at_points(g, h)
                return None if found is None else seen(found, at, self.kept)
            return self.covariance(g, h) if at else self.covariance(h, g)

        def entry(k: int, i: int, j: int) -> Number:
            found = covariance(i, j)
            return 0.0 if found is None else found[k]

        functions = [f for _, f in _checked(cluster)]
        return Pairs(*(jnp.asarray(wick(functions, partial(entry, k))) for k in range(3)))

    def _at_points(self, g: Gaussian, h: Gaussian) -> Points | None:
        found = self.covariance(g, h)
        return None if found is None else variances(found, self.kept)


def _checked(cluster: list[tuple[Factor, bool]]) -> list[Factor]:
    """Factors of correlated Gaussians, which have to be polynomials.

    Raises:
        NoClosedKernels: if one is not.
    """
    factors = [f for f, _ in cluster]
    if not all(f.is_polynomial(X) for _, f in factors):
        raise NoClosedKernels(
            "kernels", f"the mean of a product of functions of {len(factors)} correlated fields, {', '.join(shown(g) for g, _ in factors)}",
            "of at most two, one at either point, or polynomials", SAMPLED,
        )  # fmt: skip
    return factors


def wick(functions: Sequence[sp.Expr], covariance: Callable[[int, int], Number]) -> Number:
    """The mean of a product of polynomials of centred Gaussians, by Isserlis' theorem.

    Args:
        functions: polynomials in ``activation.X``, one of each Gaussian.
        covariance: of two of the Gaussians, or the variance of one.
    """

    @cache
    def moment(powers: tuple[int, ...]) -> Number:
        i = next((k for k, n in enumerate(powers) if n), None)
        if i is None:
            return 1.0
        rest = _less(powers, i)
        return sum((n * covariance(i, j) * moment(_less(rest, j)) for j, n in enumerate(rest) if n), start=0.0)

    total: Number = 0.0
    monomials: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for f in functions:
        terms = sp.Poly(f, X).terms()
        monomials = [((*powers, n), c * float(a)) for powers, c in monomials for (n,), a in terms]
    for powers, c in monomials:
        if sum(powers) % 2 == 0:
            total = total + c * moment(powers)
    return total


def _less(powers: tuple[int, ...], i: int) -> tuple[int, ...]:
    return (*powers[:i], powers[i] - 1, *powers[i + 1 :])
