"""Second moments of the fields of a program over pairs of data points, as jax arrays (``theory/kernel_regime.md``, KR.1 and KR.2).

Products of one matrix in one orientation are jointly Gaussian with covariance scale^2 <x x'>, all others independent; means over
positions are linear; everything else is a Gaussian expectation of two functions (:mod:`tp_solver.numerics.duals`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import jax
import numpy as np
import sympy as sp

from tp_solver.kernel_regime.fields import Field, Gaussian, Reading, Term
from tp_solver.kernel_regime.pairs import Pairs, Positions, averaged, constant, through, variances
from tp_solver.program.statements import Pool, Product
from tp_solver.symbols.activation import X


class Expectations(Protocol):
    """How <F(h) F'(h')> is found."""

    def bound(self, key: tuple[sp.Expr, Gaussian], variances: jax.Array) -> float:
        """An upper bound of the variances of a function's argument: given the function, its argument, and the variances at hand."""
        ...

    def function(self, f: sp.Expr, g: sp.Expr, largest: float) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
        """E f(a) g(b) as a function of two variances and the covariance, for variances up to the largest."""
        ...


class Moments:
    """<u v> of fields, each evaluated once; None stands for zero.

    Args:
        reading: the fields of the program.
        data: moments of the data variables (inputs, the constant, the cotangent).
        scales: matrix -> standard deviation of its product per unit of <x x>.
        kept: how positions are stored.
        expectations: see :class:`Expectations`.
    """

    def __init__(
        self, reading: Reading, data: Mapping[str, Pairs], scales: Mapping[str, float], kept: Positions, expectations: Expectations
    ) -> None:
        self._reading, self._data, self._scales, self._kept, self._expectations = reading, data, scales, kept, expectations
        self._atoms: dict[tuple[str, str], Pairs | None] = {}
        self._duals: dict[tuple[Term, Term], Pairs | None] = {}
        for name in reading.sources:  # in program order, so that deep programs do not recurse deeply
            self._atom(name, name)

    def of(self, a: str, b: str) -> Pairs | None:
        """<a b> of two variables of the program or of its transpose."""
        return self.inner(self._reading.fields.get(a, ()), self._reading.fields.get(b, ()))

    def inner(self, a: Field, b: Field) -> Pairs | None:
        """<a b> of two fields."""
        return _total(self._product(s, t) for s in a for t in b)

    def _product(self, s: Term, t: Term) -> Pairs | None:
        if bool(s.backward) != bool(t.backward):
            return None
        forward = self._forward(s, t)
        if not s.backward:
            return forward
        backward = self._covariance(s.backward, t.backward)
        return None if backward is None or forward is None else Pairs(*(z * f for z, f in zip(backward, forward, strict=True)))

    def _covariance(self, g: Gaussian, h: Gaussian) -> Pairs | None:
        return _total(_scaled(c * d, self._atom(v, w)) for v, c in g for w, d in h)

    def _atom(self, a: str, b: str) -> Pairs | None:
        if (a, b) not in self._atoms:
            self._atoms[a, b] = self._evaluated(a, b)
        return self._atoms[a, b]

    def _evaluated(self, a: str, b: str) -> Pairs | None:
        """Two atoms: means over positions read through to what they average; products of one matrix; else independent."""
        if a in self._data or b in self._data:
            return self._data[a] if a == b else None
        s, t = self._reading.sources[a], self._reading.sources[b]
        fields = self._reading.fields
        if isinstance(s, Pool):
            return self._mean(s, self.inner(fields[s.arg], fields[b]), True)
        if isinstance(t, Pool):
            return self._mean(t, self.inner(fields[a], fields[t.arg]), False)
        assert isinstance(s, Product) and isinstance(t, Product)
        if (s.matrix, s.transpose) != (t.matrix, t.transpose):
            return None
        argument = self.inner(fields[s.arg], fields[t.arg])
        if argument is None:
            return None
        return _scaled(self._scales[s.matrix] ** 2, through(s.window, argument, self._kept, s.transpose))

    def _mean(self, s: Pool, argument: Pairs | None, first: bool) -> Pairs | None:
        return None if argument is None else averaged(s.window, argument, self._kept, first, s.transpose)

    def _forward(self, s: Term, t: Term) -> Pairs | None:
        """<F(h) F'(h')> of the forward parts of two terms."""
        if (s, t) not in self._duals:
            self._duals[s, t] = self._expectation(s, t)
        return self._duals[s, t]

    def _expectation(self, s: Term, t: Term) -> Pairs | None:
        fields = self._reading.fields
        for term, other, first in ((s, t, True), (t, s, False)):
            if pooled := next((n for n, _ in term.forward if n in self._reading.opaque), None):
                pool, weight = self._reading.sources[pooled], dict(term.forward)[pooled]
                assert isinstance(pool, Pool)
                rest = tuple((n, c) for n, c in term.forward if n != pooled)
                far = (Term((), other.forward, other.factor),)
                moved = self.inner(fields[pool.arg], far) if first else self.inner(far, fields[pool.arg])
                remaining = Term((), rest, X)
                kept = None if not rest else self._forward(remaining, t) if first else self._forward(s, remaining)
                return _total((_scaled(weight, self._mean(pool, moved, first)), kept))
        if s.factor == X and t.factor == X:
            return self._covariance(s.forward, t.forward)
        if s.factor.is_number and t.factor.is_number:
            return _scaled(float(s.factor * t.factor), self._ones())
        return self._dual(s, t)

    def _dual(self, s: Term, t: Term) -> Pairs | None:
        u, v = (self._covariance(term.forward, term.forward) for term in (s, t))
        c = self._covariance(s.forward, t.forward)
        like = next(m for m in (c, u, v, self._ones()) if m is not None)
        zero = like.mapped(lambda a: np.zeros(a.shape, a.dtype))  # type: ignore[arg-type,return-value]
        (q1, q2), (p1, p2) = (variances(zero if m is None else m, self._kept) for m in (u, v))
        sizes = ((s, q1), (s, q2), (t, p1), (t, p2))
        largest = max(self._expectations.bound((term.factor, term.forward), q.max()) for term, q in sizes)
        function = self._expectations.function(s.factor, t.factor, largest)
        i, j = self._sides()
        c = zero if c is None else c
        return Pairs(
            function(i(q1), j(p1), c.left),
            function(i(q2), j(p2), c.right),
            function(i(q1)[:, None], j(p2)[None, :], c.cross),
        )

    def _sides(self) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
        """Variances (n, *grid) as functions of the first and of the second position."""
        rank = self._kept.rank
        if not self._kept.all_pairs or rank == 0:
            return (lambda q: q), (lambda q: q)
        return (
            lambda q: q.reshape(*q.shape, *(1,) * rank),
            lambda q: q.reshape(q.shape[0], *(1,) * rank, *q.shape[1:]),
        )

    def _ones(self) -> Pairs:
        one = next(iter(self._data.values()))
        return constant(one, self._kept)


def _scaled(factor: float, moments: Pairs | None) -> Pairs | None:
    return moments if moments is None or factor == 1.0 else moments.mapped(lambda a: factor * a)


def _total(terms: Iterable[Pairs | None]) -> Pairs | None:
    found = [m for m in terms if m is not None]
    if not found:
        return None
    return Pairs(*(sum(parts[1:], start=parts[0]) for parts in zip(*found, strict=True)))
