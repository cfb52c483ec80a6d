"""How an entrywise map scales when its arguments are small: the leading monomials of its Taylor series at zero.

An argument of size N^e contributes k e to a monomial in which it has power k (``theory/power_counting.md``, PC.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from typing import Any

import sympy as sp

from tp_solver.errors import ProgramError
from tp_solver.symbols.functions import logsumexp, sigmoid, softplus

Powers = tuple[Any, ...]
"""The power of each argument in one monomial."""

_HIGHEST = 6
"""Derivatives of a higher order are not looked at: a map that vanishes faster counts as zero."""


class _Singular(Exception):
    """The map has no Taylor series at zero (a quotient, a root, a delta function)."""


def monomials(expression: sp.Expr, arguments: tuple[sp.Symbol, ...]) -> tuple[Powers, ...]:
    """Leading monomials of a map at zero arguments; empty for a map that is zero.

    Kinks are homogeneous: Max(x, 0) has power 1, its derivative power 0, a delta function power -1. Symbolic coefficients are
    generic (not zero).

    Example: x -> (1,) for tanh; (dx, h) -> (1, 0) for dx (1 - tanh(h)^2); (0,) for exp.
    """
    stand_in = tuple(sp.Symbol(f"_{k}", real=True) for k in range(len(arguments)))
    return _monomials(expression.xreplace(dict(zip(arguments, stand_in, strict=True))), stand_in)


@cache
def derivative(expression: sp.Expr, argument: sp.Symbol) -> sp.Expr:
    """d expression / d argument, remembered."""
    return sp.diff(expression, argument)


@cache
def _monomials(expression: sp.Expr, arguments: tuple[sp.Symbol, ...]) -> tuple[Powers, ...]:
    return tuple(sorted(_minimal(_leading(_without_kinks(expression), arguments))))


def _without_kinks(e: sp.Expr) -> sp.Expr:
    """Kinks as generic factors times homogeneous expressions; our stable functions as elementary ones."""

    def factor() -> sp.Symbol:
        return sp.Dummy("k", positive=True)

    def pieces(*parts: sp.Expr) -> sp.Expr:
        return sp.Add(*(factor() * p for p in parts))

    e = e.replace(softplus, lambda u: sp.log(1 + sp.exp(u))).replace(sigmoid, lambda u: 1 / (1 + sp.exp(-u)))
    e = e.replace(logsumexp, lambda *u: sp.log(sp.Add(*map(sp.exp, u))))
    e = e.replace(sp.Heaviside, lambda *_: factor()).replace(sp.sign, lambda *_: factor())
    e = e.replace(sp.DiracDelta, lambda u, *_: factor() / u)
    e = e.replace(sp.Max, pieces).replace(sp.Min, pieces).replace(sp.Abs, pieces)
    return e.replace(lambda x: isinstance(x, sp.Piecewise), lambda x: pieces(*(branch for branch, _ in x.args)))


def _leading(e: sp.Expr, arguments: tuple[sp.Symbol, ...]) -> set[Powers]:
    if not e.has(*arguments):
        return set() if _vanishes(e) else {(0,) * len(arguments)}
    if isinstance(e, sp.Mul):
        return {_plus(*powers) for powers in product(*(_minimal(_leading(f, arguments)) for f in e.args))}
    if isinstance(e, sp.Pow) and e.exp.is_Rational:
        inner = _minimal(_leading(e.base, arguments))
        if len(inner) == 1 or not e.exp.is_Integer or e.exp < 0:
            power = sp.Rational(e.exp)
            return {tuple(_plain(power * k) for k in powers) for powers in inner}
    if e in arguments:
        return {tuple(int(a == e) for a in arguments)}
    try:
        return set(_taylor(e, arguments, 0))
    except _Singular:
        return _structural(e, arguments)


def _taylor(e: sp.Expr, arguments: tuple[sp.Symbol, ...], index: int) -> Iterator[Powers]:
    """Monomials by repeated differentiation, one argument after the other."""
    if index == len(arguments):
        if not _vanishes(e):
            yield (0,) * index
        return
    x = arguments[index]
    for k in range(_HIGHEST + 1):
        at_zero = e.subs(x, 0)
        if at_zero.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
            raise _Singular
        constant = False
        for powers in _taylor(at_zero, arguments, index + 1):
            yield (*powers[:index], k, *powers[index + 1 :])
            constant |= not any(powers)
        e = derivative(e, x)
        if constant or e == 0:
            return


def _structural(e: sp.Expr, arguments: tuple[sp.Symbol, ...]) -> set[Powers]:
    """Without a Taylor series: sums keep their largest terms, roots and quotients scale homogeneously."""
    if isinstance(e, sp.Add):
        return set().union(*(_leading(a, arguments) for a in e.args))
    raise ProgramError(
        "entrywise map", e, "a function whose behaviour at small arguments can be read off",
        "keep logarithms and exponentials of 1/x away from fields that may vanish with the width",
    )  # fmt: skip


def _vanishes(e: sp.Expr) -> bool:
    if e == 0:
        return True
    generic = {s: sp.Float(0.3 + 0.618 * k) for k, s in enumerate(sorted(e.free_symbols, key=str), start=1)}
    try:
        return bool(abs(complex(e.subs(generic).evalf())) < 1e-10)
    except (TypeError, ValueError):
        return False


def _plain(x: sp.Rational) -> Any:
    return int(x) if x.is_Integer else x


def _plus(*powers: Powers) -> Powers:
    return tuple(
        _plain(sp.Add(*column)) if any(isinstance(c, sp.Basic) for c in column) else sum(column) for column in zip(*powers, strict=True)
    )


def _minimal(found: Iterable[Powers]) -> set[Powers]:
    """Drop monomials that are another one times further arguments."""
    every = set(found)
    return {p for p in every if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in every)}
