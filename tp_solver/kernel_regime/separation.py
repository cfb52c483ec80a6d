"""Functions of several variables as sums of products of functions of one (``theory/kernel_regime.md``, KR.12)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import sympy as sp

Separated = tuple[sp.Expr, dict[sp.Symbol, sp.Expr]]
"""A constant, and a function of each variable that the product depends on."""
MOST = 200
"""Products that an expression may fall into."""


def separated(e: sp.Expr, variables: Sequence[sp.Symbol]) -> list[Separated] | None:
    """An expression as a sum of products of functions of one variable each, whose constants may hold other symbols.

    Sums, products, integer powers and exponentials of sums are taken apart; nothing is expanded that need not be.

    Returns:
        the products, or None where this does not separate the expression.
    """
    met = [v for v in variables if v in e.free_symbols]
    if not met:
        return [(e, {})]
    if len(met) == 1 and e.free_symbols <= {met[0]}:
        return [(sp.S.One, {met[0]: e})]
    match e:
        case sp.Add():
            parts = [separated(a, variables) for a in e.args]
            return None if None in parts else [p for part in parts if part for p in part]
        case sp.Mul():
            return _product([separated(a, variables) for a in e.args])
        case sp.exp() if isinstance(e.args[0].expand(), sp.Add):
            return _product([separated(sp.exp(a), variables) for a in e.args[0].expand().args])
        case sp.Pow() if e.exp.is_Integer:
            base, power = separated(e.base, variables), int(e.exp)
            if base is not None and len(base) == 1:
                ((c, factors),) = base
                return [(c**power, {v: f**power for v, f in factors.items()})]
            return _product([base] * power) if power > 0 else None
    return None


def _product(parts: Sequence[list[Separated] | None]) -> list[Separated] | None:
    """The product of sums, multiplied out."""
    count = 1
    for part in parts:
        count *= len(part) if part else 1
    if None in parts or count > MOST:
        return None
    out: list[Separated] = []
    for chosen in product(*(p for p in parts if p is not None)):
        constant: sp.Expr = sp.S.One
        factors: dict[sp.Symbol, sp.Expr] = {}
        for c, functions in chosen:
            constant *= c
            for v, f in functions.items():
                factors[v] = factors.get(v, sp.S.One) * f
        out.append((constant, factors))
    return out
