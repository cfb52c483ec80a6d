"""The symbolic reading of a program: every statement becomes an expression in random fields and kernels.

A product answers with "Gaussian part + response part + learned part" (:mod:`tp_solver.limit.master`); a map, a sum and an
average stand for themselves. The step is read once, with time as an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import sympy as sp

from tp_solver.limit.master import Response, live_responses, outer
from tp_solver.limit.memory import Memory
from tp_solver.limit.naming import Names
from tp_solver.limit.spec import LimitSpec
from tp_solver.limit.transposition import COTANGENT
from tp_solver.program.parameterization import D
from tp_solver.program.statements import ONE, Average, Layer, Map, Product, Role, Sum, X, symbol
from tp_solver.symbols import notation
from tp_solver.symbols.notation import GAMMA0, NU, C, Expectation, Kernel, Observable, S, T, over_past, over_points

Time: TypeAlias = sp.Expr | None
"""A time, or None for the state at initialisation."""


@dataclass(frozen=True)
class Reading:
    """How the statements of one step read at infinite width.

    Args:
        names: the dictionary from variables to nodes.
        spec: scale and rate of every matrix in the limit.
        memory: learning rates, and what weights remember of their pushes and of their start.
        initial: whether only the state at initialisation is read: no past, nothing learned, no times.
    """

    names: Names
    spec: LimitSpec
    memory: Memory
    initial: bool = False

    @property
    def eta(self) -> Mapping[str, sp.Expr]:
        """The learning rate of every matrix (zero: frozen), the factor of a schedule apart."""
        return self.memory.rates

    @property
    def now(self) -> Time:
        return None if self.initial else T

    @property
    def then(self) -> Time:
        return None if self.initial else S

    @cached_property
    def learning(self) -> frozenset[str]:
        """Matrices whose learned part reaches the fields."""
        return frozenset(m for m, eta in self.eta.items() if not self.initial and eta * self.spec.matrices[m].rate != 0)

    @cached_property
    def responses(self) -> tuple[Response, ...]:
        """The responses that are not structurally zero."""
        return live_responses(self.names.program, self.names.backward, self.learning, self.initial)

    def scale(self, matrix: str) -> sp.Expr:
        """Variance of a matrix in the limit, per kernel that it multiplies (Phi^0 = x.x'/D is one)."""
        return self._per_input(matrix) * self.spec.matrices[matrix].scale ** 2

    def correlation(self, matrix: str) -> sp.Expr:
        """Covariance of the random part of a matrix between two times, per kernel that it multiplies."""
        if self.initial or self.scale(matrix) == 0:
            return self.scale(matrix)
        return self.scale(matrix) * self.memory.correlation(matrix, self.spec.matrices[matrix].deviation)

    def rate(self, matrix: str) -> sp.Expr:
        """Rate of a matrix in the limit, per kernel that it multiplies."""
        return self._per_input(matrix) * self.spec.matrices[matrix].rate

    def _per_input(self, matrix: str) -> sp.Expr:
        return D if self.names.program.matrix(matrix).role is Role.INPUT else sp.S.One

    # -- expressions -------------------------------------------------------------------------------------------------

    def value(self, variable: str, point: sp.Expr, time: Time) -> sp.Expr:
        """A variable as it is written inside other expressions."""
        if variable == ONE:
            return sp.S.One
        if self.names.inlined(variable):
            return self.names.activated(variable, point, time)
        if variable in self.names.substituted:
            return self.definition(variable, point, time)
        return self.names.node(variable, point, time)

    def definition(self, variable: str, point: sp.Expr, time: Time) -> sp.Expr:
        """The right-hand side of a variable's equation."""
        match self.names.statement[variable]:
            case Product() as s:
                return self.product(s, point, time)
            case Sum() as s:
                return sp.Add(*(c * self.value(v, point, time) for c, v in s.terms))
            case Map() as s:
                return self._map(s, point, time)
            case Average() as s:
                return (
                    sp.S.Zero
                    if self.initial and self.odd(s.out)
                    else Expectation(self._substituted(s.expression, s.arguments, point, time))
                )
        raise AssertionError(variable)

    def odd(self, variable: str) -> bool:
        """Backward variables are linear in the readout, which forward ones do not know at initialisation."""
        return variable in self.names.backward.spaces

    def product(self, s: Product, point: sp.Expr, time: Time) -> sp.Expr:
        """Gaussian part, response part, learned part."""
        if s.arg == COTANGENT and self.names.seeded:
            error = Observable("e", (), (point, C), () if time is None else (time,))
            return notation.PastSum(error * self.names.column(time), (C, 1, notation.K))
        return sp.Add(*self.parts(s, point, time))

    def parts(self, s: Product, point: sp.Expr, time: Time) -> Iterator[sp.Expr]:
        """The terms of a product."""
        correlation = self.correlation(s.matrix)
        if correlation != 0:
            yield self.names.gaussian(s, point, time)
        for r in self.responses:
            if r.use.product == s:
                kernel = Kernel(*split(self.names.response_key(r.use, r.other)), (point, NU), () if self.initial else (time, S))
                summand = kernel * self.value(r.other.product.arg, NU, self.then)
                constant, varying = correlation.as_independent(S, T, as_Add=False)
                yield constant * (over_points(summand) if self.initial else over_past(varying * summand, r.present))
        if s.matrix in self.learning:
            for pair in self.names.backward.pairs:
                if pair.matrix == s.matrix:
                    left, right = outer(pair, s.transpose)
                    pushed = sp.Mul(self.memory.push(s.matrix), GAMMA0, self.rate(s.matrix))
                    constant, varying = pushed.as_independent(S, T, as_Add=False)
                    yield constant * over_past(varying * self._update(s, left, right, point, time), False)

    def _update(self, s: Product, left: str, right: str, point: sp.Expr, time: Time) -> sp.Expr:
        """What one outer product of the update adds, per point nu and time s."""
        if COTANGENT in (s.arg, left):
            error = Observable("e", (), (NU, C) if self.names.seeded else (NU,), (S,))
            return error if left == COTANGENT else error * self.value(left, NU, S)
        error = sp.S.One if self.names.seeded else Observable("e", (), (NU,), (S,))
        return self.kernel(s.arg, right, (point, NU), (time, S)) * error * self.value(left, NU, S)

    def kernel(self, a: str, b: str, points: tuple[sp.Expr, sp.Expr], times: tuple[Time, Time]) -> sp.Expr:
        """The average over sites of two variables."""
        value = {} if {a, b} & {ONE, X} else {"a": self.value(a, points[0], times[0]), "b": self.value(b, points[1], times[1])}
        return self.names.kernel(a, b, points, () if self.initial else times, value)

    def _map(self, s: Map, point: sp.Expr, time: Time) -> sp.Expr:
        if s.out in self.names.post:
            return self.names.activated(s.out, point, time)
        for a in s.arguments:
            if layer := self._sloped(s, a):
                return self.names.activated(layer.post, point, time, order=1) * self.value(a, point, time)
        return self._substituted(s.expression, s.arguments, point, time)

    def _sloped(self, s: Map, argument: str) -> Layer | None:
        """The layer whose phi'(h) the map multiplies the argument with, if it does just that."""
        for layer in self.names.program.layers:
            forward = self.names.statement[layer.post]
            assert isinstance(forward, Map)
            slope = sp.diff(forward.expression, symbol(layer.pre))
            if not slope.is_number and s.expression == slope * symbol(argument):
                return layer
        return None

    def slope(self, s: Map, argument: str, point: sp.Expr) -> sp.Expr:
        """What a map that is linear in one argument multiplies it with, at initialisation."""
        if layer := self._sloped(s, argument):
            return self.names.activated(layer.post, point, None, order=1)
        return self._substituted(sp.diff(s.expression, symbol(argument)), tuple(a for a in s.arguments if a != argument), point, None)

    def _substituted(self, expression: sp.Expr, arguments: tuple[str, ...], point: sp.Expr, time: Time) -> sp.Expr:
        return expression.xreplace({symbol(a): self.value(a, point, time) for a in arguments})


def split(key: tuple[str | int, ...]) -> tuple[str, tuple[str | int, ...]]:
    return str(key[0]), key[1:]
