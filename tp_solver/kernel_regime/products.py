"""Means of products of functions of several Gaussians, from those of one and of two (``theory/kernel_regime.md``, KR.12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod

import sympy as sp

from tp_solver.kernel_regime.maps import SAMPLED, NoClosedKernels
from tp_solver.kernel_regime.pairs import Array, Pairs, Points, Positions, seen, variances
from tp_solver.kernel_regime.recording import Kind, piece
from tp_solver.kernel_regime.terms import Factor, Gaussian, shown
from tp_solver.symbols.activation import X

Number = Array | float
"""Python's own numbers leave the precision to the arrays."""


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

    def of_points(self, factors: Sequence[Factor], ones: Pairs) -> Points:
        """The mean of a product at one point, for all points."""
        found = [self._cluster_at_points(c) for c in self._clusters([(f, True) for f in factors if f[0]])]
        whole = _at_points(_constant(factors), ones, found, self.kept)
        return whole[0], whole[1]

    def of_pairs(self, first: Sequence[Factor], second: Sequence[Factor], ones: Pairs) -> Pairs | None:
        """The mean of a product at the first point times another at the second."""
        parts = [ones]
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
            parts.append(part)
        return _over_pairs(_constant([*first, *second]), parts)

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
        covariances = [[self.covariance(g, h) for h, _ in factors] for g, _ in factors]
        found = _wick_at_points(tuple(f for _, f in factors), covariances, self.kept)
        return found[0], found[1]

    def _polynomial(self, cluster: list[tuple[Factor, bool]]) -> Pairs:
        """Polynomials of jointly Gaussian variables, some at the first point and some at the second."""
        places = tuple(at for _, at in cluster)
        covariances = [
            [self.covariance(g, h) if at or not other else self.covariance(h, g) for (h, _), other in cluster] for (g, _), at in cluster
        ]
        return _wick_over_pairs(tuple(f for _, f in _checked(cluster)), places, covariances, self.kept)


Covariances = Sequence[Sequence[Pairs | None]]
"""Of all Gaussians of a product with each other; None for zero."""


def _constant(factors: Sequence[Factor]) -> float:
    return float(sp.Mul(*(f for g, f in factors if not g)))


@piece(Kind.ENTRYWISE, static=(3,))
def _at_points(constant: float, ones: Pairs, means: Sequence[Points], kept: Positions) -> Points:
    """A multiple of a product of means at points."""
    left, right = (constant * one * prod(m[k] for m in means) for k, one in enumerate(variances(ones, kept)))
    return left, right


@piece(Kind.ENTRYWISE)
def _over_pairs(constant: float, means: Sequence[Pairs]) -> Pairs:
    """A multiple of a product of means over pairs."""
    return Pairs(*(constant * prod(parts) for parts in zip(*means, strict=True)))


@piece(Kind.ENTRYWISE, static=(0, 2))
def _wick_at_points(functions: tuple[sp.Expr, ...], covariances: Covariances, kept: Positions) -> Points:
    """The mean of a product of polynomials of Gaussians at the same point."""
    known = [[None if c is None else variances(c, kept) for c in row] for row in covariances]

    def entry(k: int, i: int, j: int) -> Number:
        found = known[i][j]
        return 0.0 if found is None else found[k]

    own = known[0][0]
    assert own is not None  # what has no variance is correlated with nothing
    # the zeros give odd powers, whose mean is zero, the shape of points
    left, right = (0 * v + wick(functions, partial(entry, k)) for k, v in enumerate(own))
    return left, right


@piece(Kind.ENTRYWISE, static=(0, 1, 3))
def _wick_over_pairs(functions: tuple[sp.Expr, ...], places: tuple[bool, ...], covariances: Covariances, kept: Positions) -> Pairs:
    """The mean of a product of polynomials of Gaussians, each at the first or the second point."""

    def over_pairs(i: int, j: int) -> Pairs | None:
        found = covariances[i][j]
        if found is None or places[i] is not places[j]:
            return found
        return seen(variances(found, kept), places[i], kept)

    known = [[over_pairs(i, j) for j in range(len(places))] for i in range(len(places))]

    def entry(k: int, i: int, j: int) -> Number:
        found = known[i][j]
        return 0.0 if found is None else found[k]

    left, right, cross = (wick(functions, partial(entry, k)) for k in range(3))
    return Pairs(left, right, cross)  # type: ignore[arg-type]


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
