"""The nouns of the limiting equations as sympy nodes, and how they print (``theory/notation.md``).

Nodes are structural: two that are built from the same parts are equal and hash alike, whatever program they came from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import sympy as sp
from sympy.core.symbol import Str
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import PRECEDENCE, precedence
from sympy.printing.str import StrPrinter

MU, NU = sp.symbols("mu nu", integer=True, positive=True)
"""Data points."""
T, S = sp.symbols("t s", integer=True, nonnegative=True)
"""Times, counted in updates."""
P = sp.Symbol("P", integer=True, positive=True)
"""The number of training points."""
C = sp.Symbol("c", integer=True, positive=True)
"""The output (class)."""
K = sp.Symbol("K", integer=True, positive=True)
"""The number of outputs."""
GAMMA0 = sp.Symbol("gamma0", positive=True)
"""The feature-learning strength."""

Index: TypeAlias = int | str | sp.Basic


def _index(value: Index) -> sp.Basic:
    return Str(value) if isinstance(value, str) else sp.sympify(value)


def _name(label: str, latex: bool) -> str:
    """A word as it prints: one letter or a Greek name in italics, anything longer upright."""
    if not latex:
        return label
    typeset = sp.latex(sp.Symbol(label))
    if len(label) == 1 or (typeset.startswith("\\") and "_" not in typeset):
        return typeset
    return r"\mathrm{{{}}}".format(label.replace("_", r"\_"))


class Quantity(sp.Expr):
    """A named quantity with layers on top, data points below, and times: ``h^2_mu(t)``, ``Phi^1_mu,nu(t,s)``.

    Args:
        label: its letter or name.
        layers: superscripts, integers or names.
        points: subscripts, data points (and the output).
        times: arguments; none for what does not change in training.
    """

    is_commutative = True
    precedence = (PRECEDENCE["Mul"] + PRECEDENCE["Pow"]) // 2
    """Between product and power, so that powers of a quantity are printed in brackets."""

    def __new__(cls, label: Any, layers: Iterable[Index] = (), points: Iterable[sp.Expr] = (), times: Iterable[sp.Expr] = ()) -> Quantity:
        return super().__new__(cls, Str(str(label)), sp.Tuple(*map(_index, layers)), sp.Tuple(*points), sp.Tuple(*times))

    def _eval_is_real(self) -> bool:
        return True

    @property
    def free_symbols(self) -> set[sp.Basic]:
        return set().union(*(a.free_symbols for a in (self.args[2], self.args[3])))

    @property
    def label(self) -> str:
        """The letter or name."""
        return str(self.args[0])

    @property
    def times(self) -> tuple[sp.Expr, ...]:
        """The time arguments."""
        return tuple(self.args[3])

    def _sympystr(self, printer: Any) -> str:
        _, layers, points, times = self.args
        text = self.label
        text += "^" + ",".join(str(i) for i in layers) if layers else ""
        text += "_" + ",".join(printer._print(i) for i in points) if points else ""
        return text + ("(" + ",".join(printer._print(i) for i in times) + ")" if times else "")

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        _, layers, points, times = self.args
        text = _name(self.label, True)
        text += "^{" + ",".join(_name(str(i), True) for i in layers) + "}" if layers else ""
        text += "_{" + r" ".join(printer._print(i) for i in points) + "}" if points else ""
        text += "(" + ",".join(printer._print(i) for i in times) + ")" if times else ""
        return text if exp is None else rf"\left({text}\right)^{{{exp}}}"


class Field(Quantity):
    """A random variable at one site: ``h^2_mu(t)``, ``u^2_mu(t)``."""


class Kernel(Quantity):
    """A covariance or a response between two points and two times: ``Phi^1_mu,nu(t,s)``."""


class Observable(Quantity):
    """A number per data point that no longer fluctuates: ``f_mu(t)``, ``e_mu(t)``, averages over the sites."""


class Entrywise(sp.Expr):
    """An activation or one of its derivatives at a field: ``phi(h)``, ``phi'(h)``."""

    is_commutative = True

    def __new__(cls, label: Any, order: Any, argument: Any) -> Entrywise:
        return super().__new__(cls, Str(str(label)), sp.Integer(order), sp.sympify(argument))

    def _eval_is_real(self) -> bool:
        return True

    def _sympystr(self, printer: Any) -> str:
        label, order, argument = self.args
        return f"{label}{chr(39) * int(order)}({printer._print(argument)})"

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        label, order, argument = self.args
        power = "" if exp is None else f"^{{{exp}}}"
        return f"{sp.latex(sp.Symbol(str(label)))}{chr(39) * int(order)}{power}({printer._print(argument)})"


class Expectation(sp.Expr):
    """The average over the sites, a number: ``< ... >``; constant factors stand before it."""

    is_commutative = True

    def __new__(cls, argument: Any) -> sp.Expr:
        argument = sp.sympify(argument)
        constant, varying = argument.as_independent(Quantity, Entrywise, Response, as_Add=False)
        return constant if varying == 1 else constant * super().__new__(cls, varying)

    def _eval_is_real(self) -> bool:
        return True

    def _sympystr(self, printer: Any) -> str:
        return f"<{printer._print(self.args[0])}>"

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        text = rf"\left\langle {printer._print(self.args[0])} \right\rangle"
        return text if exp is None else rf"{text}^{{{exp}}}"


class Response(sp.Expr):
    """The total derivative of one field with respect to the Gaussian part of another."""

    is_commutative = True

    def __new__(cls, field: Any, noise: Any) -> Response:
        return super().__new__(cls, sp.sympify(field), sp.sympify(noise))

    def _sympystr(self, printer: Any) -> str:
        return "d {} / d {}".format(*map(printer._print, self.args))

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        text = r"\frac{{\partial {}}}{{\partial {}}}".format(*tuple(map(printer._print, self.args)))
        return text if exp is None else rf"\left({text}\right)^{{{exp}}}"


class PastSum(sp.Sum):
    """A sum over data points and earlier times, printed as ``sum_{s<t} sum_nu``."""

    def _heads(self, printer: Any, template: str, less: str, least: str) -> list[str]:
        heads = []
        for bound, lower, upper in reversed(self.limits):
            if lower == 0 and (upper - T).is_Integer:
                heads.append(template % f"{printer._print(bound)}{less if upper == T - 1 else least}{printer._print(T)}")
            else:
                heads.append(template % printer._print(bound))
        return heads

    def _sympystr(self, printer: Any) -> str:
        heads = [h.replace("{", "").replace("}", "") if "<" not in h else h for h in self._heads(printer, "sum_{%s}", "<", "<=")]
        return " ".join(heads) + " " + printer.parenthesize(self.function, PRECEDENCE["Mul"], strict=True)

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        return (
            "".join(self._heads(printer, r"\sum_{%s}", "<", r"\leq "))
            + " "
            + printer.parenthesize(self.function, PRECEDENCE["Mul"], strict=True)
        )


def over_points(summand: sp.Expr) -> sp.Expr:
    """The sum over the training points nu."""
    return PastSum(summand, (NU, 1, P)) if summand != 0 else sp.S.Zero


def over_past(summand: sp.Expr, present: bool) -> sp.Expr:
    """The sum over the training points nu and the times s < t, or s <= t if the present counts."""
    return PastSum(summand, (NU, 1, P), (S, 0, T if present else T - 1)) if summand != 0 else sp.S.Zero


_ORDER = (sp.Number, sp.Symbol, Kernel, Expectation, Observable, Entrywise, Field, sp.Expr, sp.Sum)


class _Ordered:
    """Products in the order people write them (constants, kernels, errors, fields, sums last); Gaussian parts first in sums."""

    space = " "

    def _rank(self, factor: sp.Expr) -> tuple[int, bool, str]:
        base = factor.base if isinstance(factor, sp.Pow) else factor
        k = next((k for k, kind in enumerate(_ORDER) if isinstance(base, kind) and kind is not sp.Expr), _ORDER.index(sp.Expr))
        return k, isinstance(base, (Field, Entrywise)) and factor.has(S), self._print(factor)  # type: ignore[attr-defined]

    def _print_Mul(self, expr: sp.Mul) -> str:
        named = [a for a in expr.args if a.has(Quantity, Entrywise, Expectation, Response, sp.Sum)]
        if not named or any(a.is_Pow and a.exp.could_extract_minus_sign() for a in named):
            return super()._print_Mul(expr)  # type: ignore[misc]
        constant, sign = sp.Mul(*(a for a in expr.args if a not in named)), ""
        if constant.could_extract_minus_sign():
            constant, sign = -constant, "-"
        words = [] if constant == 1 else [self._constant(constant)]
        named.sort(key=self._rank)
        for k, a in enumerate(named):
            text = self._print(a)  # type: ignore[attr-defined]
            enclose = a.is_Add or isinstance(a, Response) or (isinstance(a, sp.Sum) and k + 1 < len(named))
            words.append(self._brackets(text) if enclose or (precedence(a) < PRECEDENCE["Mul"] and not isinstance(a, sp.Sum)) else text)
        return sign + self.space.join(words)

    def _print_Add(self, expr: sp.Add, order: Any = None) -> str:
        if not expr.has(Quantity):
            return super()._print_Add(expr, order=order)  # type: ignore[misc]
        terms = sorted(expr.args, key=lambda a: (a.has(sp.Sum), a.has(GAMMA0), a.could_extract_minus_sign(), self._rank(a)))
        text = self._print(terms[0])  # type: ignore[attr-defined]
        for a in terms[1:]:
            word = self._print(a)  # type: ignore[attr-defined]
            text += f" - {word[1:].lstrip()}" if word.startswith("-") else f" + {word}"
        return text

    def _constant(self, expr: sp.Expr) -> str:
        text = self._print(expr)  # type: ignore[attr-defined]
        return self._brackets(text) if expr.is_Add else text

    def _brackets(self, text: str) -> str:
        return f"({text})"


class TextPrinter(_Ordered, StrPrinter):
    """Plain text."""

    def _constant(self, expr: sp.Expr) -> str:
        if expr.is_Pow and expr.exp.could_extract_minus_sign():
            return f"1/{self.parenthesize(1 / expr, PRECEDENCE['Mul'])}"
        factors = expr.as_ordered_factors()
        plain = expr.is_Mul and not any(f.is_Pow and f.exp.could_extract_minus_sign() for f in factors)
        return " ".join(map(super()._constant, factors)) if plain else super()._constant(expr)


class MathPrinter(_Ordered, LatexPrinter):
    """LaTeX."""

    def _brackets(self, text: str) -> str:
        return rf"\left({text}\right)"


def text(expr: sp.Basic) -> str:
    """An expression as plain text."""
    return TextPrinter({"full_prec": False}).doprint(expr)


def latex(expr: sp.Basic) -> str:
    """An expression as LaTeX, without dollar signs."""
    return MathPrinter({"full_prec": False}).doprint(expr)
