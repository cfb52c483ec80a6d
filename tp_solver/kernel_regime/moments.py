"""Second moments of the fields of a program over pairs of data points, as jax arrays (``theory/kernel_regime.md``, KR.1 and KR.2).

Products of one matrix in one orientation are jointly Gaussian with covariance scale^2 <x x'>, all others independent; means over
positions are linear; everything else is a Gaussian expectation of two functions (:mod:`tp_solver.numerics.duals`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

import sympy as sp

from tp_solver.kernel_regime.fields import Reading
from tp_solver.kernel_regime.maps import Mixture
from tp_solver.kernel_regime.pairs import Pairs, Points, Positions, averaged, constant, scaled, through, times, total
from tp_solver.kernel_regime.products import Means
from tp_solver.kernel_regime.terms import Factor, Field, Gaussian, Term
from tp_solver.kernel_regime.weights import Weights
from tp_solver.program.statements import Pool, Product
from tp_solver.symbols.activation import X


class Expectations(Protocol):
    """How <F(h) F'(h')> is found."""

    def between(
        self, s: Term, t: Term, u: Pairs | None, v: Pairs | None, c: Pairs | None, like: Pairs, kept: Positions
    ) -> Mapping[tuple[sp.Expr, sp.Expr], Pairs]:
        """<F(h) F'(h')> of two terms, and possibly of other functions of the same arguments that will be asked for.

        Args:
            u, v, c: <h h>, <h' h'> and <h h'>; None for zero.
            like: moments of the right shape.
        """
        ...

    def mean(self, f: Factor, u: Pairs, kept: Positions) -> Points:
        """E F(h) at the points of both sets.

        Args:
            u: <h h>.
        """
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
        self._duals: dict[tuple[sp.Expr, Gaussian, tuple[Factor, ...], sp.Expr, Gaussian, tuple[Factor, ...]], Pairs | None] = {}
        self._points: dict[sp.Expr, Points] = {}
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
        if s.weight is not sp.S.One or t.weight is not sp.S.One:
            bare = self._product(replace(s, weight=sp.S.One), replace(t, weight=sp.S.One))
            return self._weights.times(self._weights.times(bare, s.weight, True), t.weight, False)
        for term, other, first in ((s, t, True), (t, s, False)):
            if pooled := next((n for n, _ in term.backward if n in self._reading.opaque), None):
                return self._through_mean(term, pooled, other, first)
        forward = self._forward(s, t)
        if not s.backward:
            return forward
        backward = self._parts(s.backward, t.backward)
        if not backward or forward is None:
            return None
        ((factor, covariance),) = backward if len(backward) == 1 else [(1.0, total([scaled(c, a) for c, a in backward]))]
        return times(covariance, forward, factor)

    def _through_mean(self, term: Term, pooled: str, other: Term, first: bool) -> Pairs | None:
        """A term whose adjoint holds a mean of ``z F(h)``, which depends on the other term through F too: read what is averaged."""
        pool, weight = self._reading.sources[pooled], dict(term.backward)[pooled]
        assert isinstance(pool, Pool) and term.constant  # maps of such means are refused
        argument, far = self._reading.fields[pool.arg], (other,)
        rest = tuple((n, c) for n, c in term.backward if n != pooled)
        near = (Term(rest, (), sp.S.One),) if rest else ()
        moved, kept = ((self.inner(a, far) if first else self.inner(far, a)) for a in (argument, near))
        return _scaled(float(term.factor), _total((_scaled(weight, self._mean(pool, moved, first)), kept)))

    def _covariance(self, g: Gaussian, h: Gaussian) -> Pairs | None:
        return _total(_scaled(c, a) for c, a in self._parts(g, h))

    def _parts(self, g: Gaussian, h: Gaussian) -> list[tuple[float, Pairs]]:
        """Coefficients and covariances of the atoms that are not independent."""
        pairs = ((c * d, self._atom(v, w)) for v, c in g for w, d in h)
        return [(c, a) for c, a in pairs if a is not None]

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
        if isinstance(s, Mixture):
            return _total(self._weights.times(self._covariance(g, ((b, 1.0),)), w, True) for w, g in s.parts)
        if isinstance(t, Mixture):
            return _total(self._weights.times(self._covariance(((a, 1.0),), g), w, False) for w, g in t.parts)
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
        seen = argument if s.window is None else through(s.window, argument, self._kept, s.transpose)
        return _scaled(self._scales[s.matrix] ** 2, seen)

    def _mean(self, s: Pool, argument: Pairs | None, first: bool) -> Pairs | None:
        return None if argument is None else averaged(s.window, argument, self._kept, first, s.transpose)

    def _forward(self, s: Term, t: Term) -> Pairs | None:
        """<F(h) F'(h')> of the forward parts of two terms."""
        key = (s.factor, s.forward, s.others, t.factor, t.forward, t.others)
        if key not in self._duals:
            self._duals[key] = self._expectation(s, t)
        return self._duals[key]

    def _expectation(self, s: Term, t: Term) -> Pairs | None:
        fields = self._reading.fields
        for term, other, first in ((s, t, True), (t, s, False)):
            if pooled := next((n for n, _ in term.forward if n in self._reading.opaque), None):
                pool, weight = self._reading.sources[pooled], dict(term.forward)[pooled]
                assert isinstance(pool, Pool)
                rest = tuple((n, c) for n, c in term.forward if n != pooled)
                far = (replace(other, backward=()),)
                moved = self.inner(fields[pool.arg], far) if first else self.inner(far, fields[pool.arg])
                remaining = Term((), rest, X)
                kept = None if not rest else self._forward(remaining, t) if first else self._forward(s, remaining)
                return _total((_scaled(weight, self._mean(pool, moved, first)), kept))
        if s.others or t.others:
            return self._means.of_pairs(s.factors, t.factors, self._ones())
        if s.factor == X and t.factor == X:
            return self._covariance(s.forward, t.forward)
        if s.factor.is_number and t.factor.is_number:
            return _scaled(float(s.factor * t.factor), self._ones())
        return self._dual(s, t)

    def _dual(self, s: Term, t: Term) -> Pairs | None:
        u, v = (self._covariance(term.forward, term.forward) for term in (s, t))
        c = self._covariance(s.forward, t.forward)
        found = self._expectations.between(s, t, u, v, c, self._ones(), self._kept)
        for (f, g), moments in found.items():
            self._duals[f, s.forward, (), g, t.forward, ()] = moments
        return found[s.factor, t.factor]

    @property
    def _means(self) -> Means:
        # made when asked for, as are the weights: kept, they would keep all arrays until a garbage collection
        return Means(self._covariance, self._mean_of, lambda f, g: self._forward(_of(f), _of(g)), self._kept)

    @property
    def _weights(self) -> Weights:
        return Weights(self._reading.averages, self._means, self._ones, self._points)

    def _mean_of(self, f: Factor) -> Points:
        """E F(h) at the points of both sets."""
        u = self._covariance(f[0], f[0])
        return self._expectations.mean(f, scaled(0.0, self._ones()) if u is None else u, self._kept)

    def _ones(self) -> Pairs:
        one = next(iter(self._data.values()))
        return constant(one, self._kept)


def _of(f: Factor) -> Term:
    return Term((), f[0], f[1])


def _scaled(factor: float, moments: Pairs | None) -> Pairs | None:
    return moments if moments is None or factor == 1.0 else scaled(factor, moments)


def _total(terms: Iterable[Pairs | None]) -> Pairs | None:
    found = [m for m in terms if m is not None]
    return found[0] if len(found) == 1 else total(found) if found else None
