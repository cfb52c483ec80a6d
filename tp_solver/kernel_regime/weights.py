"""Averages over sites as numbers per data point, and what they multiply (``theory/kernel_regime.md``, KR.10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.kernel_regime.pairs import Array, Pairs, variances
from tp_solver.kernel_regime.products import Means, Points, seen
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
        return _multiplied(moments, seen(self._value(weight), first, self._means.kept))

    def _value(self, weight: sp.Expr) -> Points:
        if weight not in self._values:
            names = tuple(sorted(weight.free_symbols, key=str))
            found = [self._average(v) for v in names]
            function = lower(weight, names)
            self._values[weight] = function(*(f[0] for f in found)), function(*(f[1] for f in found))
        return self._values[weight]

    def _average(self, name: sp.Symbol) -> Points:
        if name not in self._values:
            like = variances(self._ones(), self._means.kept)
            total: Points | None = None
            for t in self._averages[name.name]:
                part = self._means.of_points(t.factors, like)
                if t.weight is not sp.S.One:
                    weight = self._value(t.weight)
                    part = part[0] * weight[0], part[1] * weight[1]
                total = part if total is None else (total[0] + part[0], total[1] + part[1])
            assert total is not None  # an average of nothing is no weight
            self._values[name] = total
        return self._values[name]


@jax.jit
def _multiplied(a: Pairs, b: Pairs) -> Pairs:
    return Pairs(*(_entry(u, v) for u, v in zip(a, b, strict=True)))


def _entry(u: Array, v: Array) -> Array:
    return u * v
