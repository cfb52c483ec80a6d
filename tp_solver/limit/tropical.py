"""Sizes as tropical polynomials: the exponent of N of a quantity is the largest of finitely many linear forms.

The letters of the forms are the user's symbolic exponents. Multiplying quantities adds forms pairwise, adding quantities
unites them; what can never be the largest is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import sympy as sp

from tp_solver.errors import ParameterizationError

Form = tuple[Fraction, ...]
"""A linear form: the constant, then the coefficient of each letter."""
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
        found = {a for e in expressions for a in e.expand().as_coefficients_dict() if not a.is_Rational}
        self.letters: tuple[sp.Expr, ...] = tuple(sorted(found, key=sp.default_sort_key))
        self.zero: Form = (Fraction(0),) * (1 + len(self.letters))
        self.one: Size = frozenset({self.zero})
        self._bounds: dict[Form, Fraction] = {}

    def form(self, expression: Any) -> Form:
        """The linear form of a sympy expression in the letters."""
        parts = sp.sympify(expression).expand().as_coefficients_dict()
        constant = sum((k * v for k, v in parts.items() if k.is_Rational), sp.Integer(0))
        return tuple(Fraction(int(c.p), int(c.q)) for c in (sp.Rational(constant), *(sp.Rational(parts.get(a, 0)) for a in self.letters)))

    def expression(self, form: Form) -> sp.Expr:
        """The sympy expression of a form."""
        return sp.Add(
            *(sp.Rational(c.numerator, c.denominator) * a for c, a in zip(form, (sp.Integer(1), *self.letters), strict=True) if c)
        )

    def maximum(self, size: Size) -> sp.Expr:
        """The exponent as a sympy expression: a number, a linear form or a Max; -oo for zero."""
        return sp.Max(*(self.expression(f) for f in size)) if size else -sp.oo

    def times(self, *sizes: Size) -> Size:
        """Size of a product."""
        out = self.one
        for s in sizes:
            out = s if out is self.one else self.reduced({_plus(f, g) for f in out for g in s})
        return out

    def shifted(self, size: Size, form: Form) -> Size:
        """Size of N^form times the quantity."""
        return frozenset(_plus(f, form) for f in size)

    def powered(self, size: Size, power: Any) -> Size:
        """Size of a power of the quantity."""
        k = Fraction(int(power.p), int(power.q)) if isinstance(power, sp.Rational) else Fraction(power)
        return self.one if k == 0 else frozenset(tuple(k * c for c in f) for f in size)

    def plus(self, *sizes: Size) -> Size:
        """Size of a sum."""
        return self.reduced(frozenset().union(*sizes))

    def assume(self, form: Form) -> None:
        """From now on the form counts as <= 0."""
        if any(form[1:]):
            key, constant = _normal(form)
            self._bounds[key] = max(constant, self._bounds.get(key, constant))

    def bounded(self, form: Form) -> bool:
        """Whether the form is <= 0 under the assumptions."""
        return self._at_most(form, self.zero)

    def reduced(self, forms: Iterable[Form]) -> Size:
        """Drop every form that another one bounds from above, given the assumptions."""
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


def _normal(form: Form) -> tuple[Form, Fraction]:
    """The form divided by the modulus of its first coefficient: direction and constant."""
    scale = abs(next(c for c in form[1:] if c))
    return tuple(c / scale for c in form[1:]), form[0] / scale


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
