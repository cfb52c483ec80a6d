"""Sizes as tropical polynomials: the exponent of N of a quantity is the largest of finitely many linear forms.

The letters of the forms are the user's symbolic exponents. Multiplying quantities adds forms pairwise, adding quantities
unites them; what can never be the largest is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import sympy as sp

from tp_solver.errors import ParameterizationError

Form = tuple[Any, ...]
"""A linear form: the constant, then the coefficient of each letter, in units that make them integers as a rule."""
Size = frozenset[Form]
"""A set of forms, standing for their maximum; the empty set stands for a quantity that is exactly zero."""

NOTHING: Size = frozenset()
_MOST = 60


class Algebra:
    """Linear forms over a fixed list of letters, and what is assumed about them.

    Args:
        expressions: the exponents that will be used; their symbols (or nonlinear parts) become the letters.
    """

    def __init__(self, expressions: Iterable[sp.Expr]) -> None:
        parts = [e.expand().as_coefficients_dict() for e in expressions]
        self.letters: tuple[sp.Expr, ...] = tuple(sorted({a for p in parts for a in p if not a.is_Rational}, key=sp.default_sort_key))
        # integers are several times faster than fractions; halves come from incoherent sums
        self._unit = lcm(2, *(int(sp.Rational(k * v if k.is_Rational else v).q) for p in parts for k, v in p.items()))
        self.zero: Form = (0,) * (1 + len(self.letters))
        self.one: Size = frozenset({self.zero})
        self._bounds: dict[Form, Any] = {}
        self._products: dict[tuple[Size, Size], Size] = {}

    def form(self, expression: Any) -> Form:
        """The linear form of a sympy expression in the letters."""
        parts = sp.sympify(expression).expand().as_coefficients_dict()
        constant = sum((k * v for k, v in parts.items() if k.is_Rational), sp.Integer(0))
        return tuple(
            _integral(Fraction(int(c.p), int(c.q)) * self._unit) for c in (constant, *(parts.get(a, sp.S.Zero) for a in self.letters))
        )

    def expression(self, form: Form) -> sp.Expr:
        """The sympy expression of a form."""
        values = (Fraction(c) / self._unit for c in form)
        return sp.Add(*(sp.Rational(c.numerator, c.denominator) * a for c, a in zip(values, (sp.S.One, *self.letters), strict=True)))

    def maximum(self, size: Size) -> sp.Expr:
        """The exponent as a sympy expression: a number, a linear form or a Max; -oo for zero."""
        return sp.Max(*(self.expression(f) for f in size)) if size else -sp.oo

    def times(self, *sizes: Size) -> Size:
        """Size of a product."""
        out = self.one
        for s in sizes:
            out = s if out == self.one else out if s == self.one else self._product(out, s)
        return out

    def _product(self, a: Size, b: Size) -> Size:
        found = self._products.get((a, b))
        if found is None:
            found = self._products[a, b] = self.reduced({_plus(f, g) for f in a for g in b})
        return found

    def shifted(self, size: Size, form: Form) -> Size:
        """Size of N^form times the quantity."""
        return frozenset(_plus(f, form) for f in size)

    def powered(self, size: Size, power: Any) -> Size:
        """Size of a power of the quantity."""
        k = Fraction(int(power.p), int(power.q)) if isinstance(power, sp.Rational) else Fraction(power)
        return self.one if k == 0 else size if k == 1 else frozenset(tuple(_integral(k * c) for c in f) for f in size)

    def plus(self, *sizes: Size) -> Size:
        """Size of a sum."""
        return self.reduced(frozenset().union(*sizes))

    def assume(self, form: Form) -> None:
        """From now on the form counts as <= 0."""
        if any(form[1:]):
            key, constant = _normal(form)
            self._bounds[key] = max(constant, self._bounds.get(key, constant))
            self._products.clear()

    def bounded(self, form: Form) -> bool:
        """Whether the form is <= 0 under the assumptions."""
        return self._at_most(form, self.zero)

    def reduced(self, forms: Collection[Form]) -> Size:
        """Drop every form that another one bounds from above, given the assumptions."""
        if not self.letters:
            return frozenset([max(forms)] if forms else [])
        if len(forms) < 2:
            return frozenset(forms)
        kept: list[Form] = []
        for f in sorted(forms, reverse=True):
            if not any(self._at_most(f, g) for g in kept):
                kept = [g for g in kept if not self._at_most(g, f)] + [f]
        if len(self.letters) == 1 and len(kept) > 2:
            kept = _envelope(kept)
        if len(kept) > _MOST:
            raise ParameterizationError(
                "exponents",
                f"more than {_MOST} competing powers of N",
                "exponents that can be compared",
                "give numbers to some of the symbols",
            )
        return frozenset(kept)

    def _at_most(self, f: Form, g: Form) -> bool:
        gap = tuple(a - b for a, b in zip(f, g, strict=True))
        if not any(gap[1:]):
            return gap[0] <= 0
        key, constant = _normal(gap)
        bound = self._bounds.get(key)
        return bound is not None and constant <= bound


def _plus(f: Form, g: Form) -> Form:
    return tuple(a + b for a, b in zip(f, g, strict=True))


def _normal(form: Form) -> tuple[Form, Any]:
    """The form divided by a positive number that depends on its direction only: direction and constant."""
    if all(isinstance(c, int) for c in form):
        unit = gcd(*form[1:])
        return tuple(c // unit for c in form[1:]), form[0] // unit if form[0] % unit == 0 else Fraction(form[0], unit)
    common = lcm(*(Fraction(c).denominator for c in form))
    return _normal(tuple(int(c * common) for c in form))


def _integral(x: Fraction) -> Any:
    return x.numerator if x.denominator == 1 else x


def _envelope(lines: list[Form]) -> list[Form]:
    """The lines c + k q that are the largest for some real q."""
    kept: list[Form] = []
    for c, k in sorted(lines, key=lambda f: (f[1], f[0])):
        if kept and kept[-1][1] == k:
            kept.pop()
        while len(kept) > 1 and (kept[-2][0] - c) * (kept[-1][1] - kept[-2][1]) <= (kept[-2][0] - kept[-1][0]) * (k - kept[-2][1]):
            kept.pop()
        kept.append((c, k))
    return kept
