"""Averages over sites as numbers per data point, and what they multiply (``theory/kernel_regime.md``, KR.10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.kernel_regime.pairs import Pairs, Points, seen, times
from tp_solver.kernel_regime.products import Means
from tp_solver.kernel_regime.recording import Kind, piece
from tp_solver.kernel_regime.terms import Field


class Weights:
    """Functions of averages at the points of both sets, each evaluated once.

    Args:
        averages: average -> the forward field whose mean it is.
        means: how means are found.
        ones: moments of the constant 1.
        values: those that are known; new ones are added.
    """

    def __init__(self, averages: Mapping[str, Field], means: Means, ones: Callable[[], Pairs], values: dict[sp.Expr, Points]) -> None:
        self._averages, self._means, self._ones, self._values = averages, means, ones, values

    def times(self, moments: Pairs | None, weight: sp.Expr, first: bool) -> Pairs | None:
        """Moments times a weight at the first (second) point."""
        if moments is None or weight is sp.S.One:
            return moments
        return times(moments, seen(self._value(weight), first, self._means.kept), 1.0)

    def _value(self, weight: sp.Expr) -> Points:
        if weight not in self._values:
            names = tuple(sorted(weight.free_symbols, key=str))
            found = _applied(weight, names, [self._average(v) for v in names])
            self._values[weight] = found[0], found[1]
        return self._values[weight]

    def _average(self, name: sp.Symbol) -> Points:
        if name not in self._values:
            terms = self._averages[name.name]
            assert terms  # an average of nothing is no weight
            products = [[self._means.of_points(t.factors, self._ones())] for t in terms]
            for factors, t in zip(products, terms, strict=True):
                factors += [] if t.weight is sp.S.One else [self._value(t.weight)]
            found = _summed(products)
            self._values[name] = found[0], found[1]
        return self._values[name]


@piece(Kind.ENTRYWISE, static=(0, 1))
def _applied(function: sp.Expr, names: tuple[sp.Symbol, ...], values: Sequence[Points]) -> Points:
    """A function of averages, at all points."""
    lowered = lower(function, names)
    return lowered(*(v[0] for v in values)), lowered(*(v[1] for v in values))


@piece(Kind.ENTRYWISE)
def _summed(products: Sequence[Sequence[Points]]) -> Points:
    """The sum of products, at all points."""
    left, right = (sum(prod(v[k] for v in factors) for factors in products) for k in (0, 1))
    return left, right  # type: ignore[return-value]
