"""Fields of a program at initialisation as sums of terms ``c z F(h) F'(h') ...`` and their algebra (``theory/kernel_regime.md``, KR.10)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import sympy as sp

from tp_solver.symbols.activation import X

Gaussian = tuple[tuple[str, float], ...]
"""A linear combination of atoms: (variable, coefficient), sorted by length of name, then name. Empty: none."""
Factor = tuple[Gaussian, sp.Expr]
"""F(h): the Gaussian h, and F in ``activation.X``."""


@dataclass(frozen=True)
class Term:
    """``c z F(h)``, with further factors of further Gaussians.

    Attributes:
        backward: z (empty: 1).
        forward, factor: h (empty where F is constant) and F in ``activation.X``.
        weight: c, a number per data point: an expression in symbols of averages.
        others: the further factors.
    """

    backward: Gaussian
    forward: Gaussian
    factor: sp.Expr
    weight: sp.Expr = sp.S.One
    others: tuple[Factor, ...] = ()

    @property
    def factors(self) -> tuple[Factor, ...]:
        """All factors, constants too."""
        return ((self.forward, self.factor), *self.others)

    @property
    def constant(self) -> bool:
        """Whether it is the same at all sites, z apart."""
        return not self.others and self.factor.is_number


Field = tuple[Term, ...]
"""A sum of terms."""


def linear(field: Field) -> bool:
    """Whether a field is a linear combination of atoms, with weights per data point."""
    return all(not t.others and (t.factor.is_number if t.backward else t.factor == X) for t in field)


def atoms(field: Field) -> set[str]:
    """All atoms of a field."""
    return {name for t in field for g in (t.backward, *(h for h, _ in t.factors)) for name, _ in g}


def ratio(g: Gaussian, h: Gaussian) -> float | None:
    """r with g = r h, if there is one."""
    if [v for v, _ in g] != [v for v, _ in h]:
        return None
    r = g[0][1] / h[0][1]
    return r if all(abs(a - r * b) <= 1e-14 * abs(a) for (_, a), (_, b) in zip(g, h, strict=True)) else None


def rescaled(factor: sp.Expr, r: float, variable: sp.Expr = X) -> sp.Expr:
    """F(r h) as a function of h, in another variable where one is given."""
    return factor.xreplace({X: variable if r == 1 else sp.Float(r, 17) * variable})


def merged(parts: Iterable[tuple[Gaussian, float]]) -> Gaussian:
    """The sum of multiples of Gaussians."""
    total: dict[str, float] = defaultdict(float)
    for g, scale in parts:
        for v, c in g:
            total[v] += scale * c
    # v9 before v10, so that all layers read alike
    return tuple((v, c) for v, c in sorted(total.items(), key=lambda atom: (len(atom[0]), atom[0])) if c)


def product(factors: Iterable[Factor]) -> tuple[Factor, ...]:
    """Factors of the same Gaussian, up to its scale, as one."""
    out: list[Factor] = []
    for g, f in factors:
        if X not in f.free_symbols:
            g = ()
        for k, (h, other) in enumerate(out):
            r = 1.0 if g == h else ratio(g, h) if g and h else None
            if r is not None:
                out[k] = (h, other * rescaled(f, r))
                break
        else:
            out.append((g, f))
    return tuple(out)


def multiplied(s: Term, t: Term) -> Term:
    """The product of two terms, of which at most one holds an adjoint."""
    (g, f), *others = product((*s.factors, *t.factors))
    return Term(s.backward or t.backward, g, f, s.weight * t.weight, tuple(others))


def shown(g: Gaussian) -> str:
    """A Gaussian for a message."""
    return " + ".join(v if c == 1 else f"{c:g} {v}" for v, c in g)


def collected(terms: Iterable[Term]) -> Field:
    """Merge what shares z, h and the weight; sums of Gaussians are one Gaussian, whatever they are sums of."""
    by_pair: dict[tuple[Gaussian, sp.Expr, tuple[Factor, ...]], list[sp.Expr]] = defaultdict(list)
    for t in terms:
        number, weight, factors = _normal(t)
        if len(factors) == 1:  # functions of one Gaussian add up to one function
            ((g, f),) = factors
            by_pair[t.backward, weight, ((g, sp.S.One),)].append(number * f)
        else:
            by_pair[t.backward, weight, factors].append(number)
    out: list[Term] = []
    linear_parts: dict[sp.Expr, list[tuple[Gaussian, float]]] = defaultdict(list)
    by_function: dict[tuple[sp.Expr, tuple[Factor, ...]], list[tuple[Gaussian, float]]] = defaultdict(list)
    for (z, weight, factors), values in by_pair.items():
        total = sp.Add(*values)
        if total == 0:
            continue
        number, function = total.as_independent(X, as_Add=False)
        if len(factors) == 1:
            factors = ((factors[0][0], function),)
        if z:
            by_function[weight, factors].append((z, float(number)))
        elif len(factors) == 1 and function == X:
            linear_parts[weight].append((factors[0][0], float(number)))
        else:
            (h, f), *others = factors
            out.append(Term((), h, number * f if others else total, weight, tuple(others)))
    for (weight, ((h, f), *others)), parts in by_function.items():
        if z := merged(parts):
            out.append(Term(z, h, f, weight, tuple(others)))
    for weight, parts in linear_parts.items():
        if h := merged(parts):
            out.append(Term((), h, X, weight))
    return tuple(out)


def _normal(t: Term) -> tuple[sp.Expr, sp.Expr, tuple[Factor, ...]]:
    """The number in front, the rest of the weight, and the factors in a fixed order (a single one whole)."""
    number, weight = (
        (t.weight, sp.S.One)
        if t.weight is sp.S.One or t.weight.is_number
        else t.weight.as_independent(*t.weight.free_symbols, as_Add=False)
    )
    factors: list[Factor] = []
    for g, f in t.factors:
        if X not in f.free_symbols:
            number *= f
        else:
            factors.append((g, f))
    if len(factors) <= 1:
        return number, weight, tuple(factors) or (((), sp.S.One),)
    for k, (g, f) in enumerate(factors):
        c, function = f.as_independent(X, as_Add=False)
        number *= c
        factors[k] = (g, function)
    return number, weight, tuple(sorted(factors, key=lambda v: (v[0], str(v[1]))))
