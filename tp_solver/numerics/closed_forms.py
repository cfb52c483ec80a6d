"""Gaussian expectations in closed form: a table of pairs of functions, extended by two rewrite rules.

A function is a sum of terms ``coefficient x^power exp(-decay x^2) base(x)``. Decays are absorbed by tilting the Gaussian,
powers are lowered by Stein's lemma E[a F] = q E[dF/da] + c E[dF/db], and what is left is a pair of bases from ``PAIRS``
(Cho & Saul 2009 for |x| and sign; Williams 1997 for erf). ReLU, its leaky form, GELU, and all polynomials follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import sympy as sp

from tp_solver.symbols.activation import X


class NoClosedForm(Exception):
    """The table has no entry for this pair (internal: the caller goes on to quadrature)."""


@dataclass(frozen=True)
class Bivariate:
    """(a, b) ~ N(0, [[q, c], [c, qp]]), entry by entry of broadcastable arrays."""

    q: np.ndarray
    qp: np.ndarray
    c: np.ndarray

    @property
    def correlation(self) -> np.ndarray:
        """c / sqrt(q qp), and 0 where a variance vanishes."""
        scale = np.sqrt(self.q * self.qp)
        return np.clip(np.divide(self.c, scale, out=np.zeros(np.shape(self.c + scale)), where=scale > 0), -1.0, 1.0)

    def swapped(self) -> Bivariate:
        """(b, a)."""
        return Bivariate(self.qp, self.q, self.c)

    def tilted(self, s: float, t: float) -> tuple[Bivariate, np.ndarray]:
        """The Gaussian proportional to density times exp(-s a^2 - t b^2), and the normalisation E[exp(-s a^2 - t b^2)]."""
        det = self.q * self.qp - self.c**2
        norm = (1 + 2 * s * self.q) * (1 + 2 * t * self.qp) - 4 * s * t * self.c**2
        return Bivariate((self.q + 2 * t * det) / norm, (self.qp + 2 * s * det) / norm, self.c / norm), norm**-0.5


@dataclass(frozen=True)
class Term:
    """coefficient x^power exp(-decay x^2) base(slope x); ``base`` is a sympy function class, or that of 1."""

    coefficient: float
    power: int
    decay: float
    base: type
    slope: float

    def lowered(self) -> Term:
        return replace(self, power=self.power - 1)

    def derivative(self) -> tuple[Term, ...]:
        base = self.base(sp.Float(self.slope, 17) * X) if self.slope else sp.S.One
        return parse(sp.diff(sp.Float(self.coefficient, 17) * X**self.power * base, X))


ONE = type(sp.S.One)
Rule = Callable[[Bivariate, float, float], np.ndarray | float]


def _abs_abs(g: Bivariate, k: float, m: float) -> np.ndarray:
    rho = g.correlation
    return 2 / np.pi * abs(k * m) * np.sqrt(g.q * g.qp) * (np.sqrt((1 - rho) * (1 + rho)) + rho * np.arcsin(rho))


def _exponential(g: Bivariate, k: float, m: float) -> np.ndarray:
    return np.exp((k**2 * g.q + m**2 * g.qp + 2 * k * m * g.c) / 2)


def _cosine_of(g: Bivariate, k: float, m: float) -> np.ndarray:
    """E cos(k a + m b)."""
    return np.exp(-(k**2 * g.q + m**2 * g.qp + 2 * k * m * g.c) / 2)


PAIRS: dict[tuple[type, type], Rule] = {
    (ONE, ONE): lambda g, k, m: 1.0,
    (sp.Abs, sp.Abs): _abs_abs,
    (sp.Abs, ONE): lambda g, k, m: abs(k) * np.sqrt(2 * g.q / np.pi),
    (sp.sign, sp.sign): lambda g, k, m: np.sign(k * m) * 2 / np.pi * np.arcsin(g.correlation),
    (sp.sign, ONE): lambda g, k, m: 0.0,
    (sp.Abs, sp.sign): lambda g, k, m: 0.0,
    (sp.erf, sp.erf): lambda g, k, m: 2 / np.pi * np.arcsin(2 * k * m * g.c / np.sqrt((1 + 2 * k**2 * g.q) * (1 + 2 * m**2 * g.qp))),
    (sp.erf, ONE): lambda g, k, m: 0.0,
    (sp.erf, sp.Abs): lambda g, k, m: 0.0,
    (sp.erf, sp.cos): lambda g, k, m: 0.0,
    (sp.erf, sp.sign): lambda g, k, m: (
        np.sign(m) * 2 / np.pi * np.arcsin(g.correlation * np.sqrt(2 * k**2 * g.q / (1 + 2 * k**2 * g.q)) * np.sign(k))
    ),
    (sp.sin, sp.sin): lambda g, k, m: (_cosine_of(g, k, -m) - _cosine_of(g, k, m)) / 2,
    (sp.cos, sp.cos): lambda g, k, m: (_cosine_of(g, k, -m) + _cosine_of(g, k, m)) / 2,
    (sp.sin, sp.cos): lambda g, k, m: 0.0,
    (sp.sin, ONE): lambda g, k, m: 0.0,
    (sp.cos, ONE): lambda g, k, m: _cosine_of(g, k, 0.0),
    (sp.exp, sp.exp): _exponential,
    (sp.exp, ONE): lambda g, k, m: _exponential(g, k, 0.0),
}
"""E[base(k a) base'(m b)]; the mirrored pairs follow by swapping a and b."""

_BASES = {kind for pair in PAIRS for kind in pair} - {ONE}


@cache
def parse(f: sp.Expr) -> tuple[Term, ...]:
    """Write f as a sum of terms.

    Raises:
        NoClosedForm: if f is not such a sum.
    """
    f = f.replace(lambda e: isinstance(e, (sp.Max, sp.Min)) and len(e.args) == 2, _as_abs)
    f = f.replace(sp.Heaviside, lambda u, *_: (1 + sp.sign(u)) / 2).replace(sp.erfc, lambda u: 1 - sp.erf(u))
    f = f.replace(lambda e: isinstance(e, (sp.sinh, sp.cosh)), lambda e: e.rewrite(sp.exp))
    f = sp.expand(f)
    return tuple(_term(t) for t in sp.Add.make_args(f) if t != 0)


def _as_abs(e: sp.Expr) -> sp.Expr:
    a, b = e.args
    half = sp.Abs(sp.expand(a - b)) / 2
    return (a + b) / 2 + (half if isinstance(e, sp.Max) else -half)


def _term(product: sp.Expr) -> Term:
    number, rest = product.as_independent(X, as_Add=False)
    coefficient, power, decay = sp.sympify(number), 0, sp.S.Zero
    base, slope = ONE, sp.S.Zero
    for factor in sp.Mul.make_args(rest):
        if factor == 1:
            continue
        root, exponent = factor.as_base_exp()
        if root == X and exponent.is_Integer and exponent > 0:
            power += int(exponent)
            continue
        kind, new_slope = type(factor), None
        if isinstance(factor, sp.exp):
            quadratic = sp.Poly(factor.args[0], X) if factor.args[0].is_polynomial(X) else None
            if quadratic is None or quadratic.degree() > 2:
                raise NoClosedForm
            decay -= quadratic.coeff_monomial(X**2)
            coefficient *= sp.exp(quadratic.coeff_monomial(1))
            new_slope = quadratic.coeff_monomial(X)
            if new_slope == 0:
                continue
        elif kind in _BASES:
            new_slope = sp.expand(factor.args[0] / X)
        if new_slope is None or not new_slope.is_number or base is not ONE:
            raise NoClosedForm
        base, slope = kind, new_slope
    if not coefficient.is_number or not decay >= 0:
        raise NoClosedForm
    return Term(float(coefficient), power, float(decay), base, float(slope))


def closed_form(f: sp.Expr, g: sp.Expr, gauss: Bivariate) -> np.ndarray:
    """E[f(a) g(b)] from the table.

    Raises:
        NoClosedForm: if a pair of terms is not in it.
    """
    shape = np.broadcast_shapes(gauss.q.shape, gauss.qp.shape, gauss.c.shape)
    total = np.zeros(shape)
    for t in parse(f):
        for u in parse(g):
            total = total + _pair(t, u, gauss)
    return total


def _pair(t: Term, u: Term, gauss: Bivariate) -> np.ndarray | float:
    if t.decay or u.decay:
        tilted, norm = gauss.tilted(t.decay, u.decay)
        return norm * _pair(replace(t, decay=0.0), replace(u, decay=0.0), tilted)
    if t.power == 0 and u.power > 0:
        return _pair(u, t, gauss.swapped())
    if t.power:
        rest = t.lowered()
        total: np.ndarray | float = 0.0
        for d in rest.derivative():
            total = total + gauss.q * _pair(d, u, gauss)
        for d in u.derivative():
            total = total + gauss.c * _pair(rest, d, gauss)
        return total
    scale = t.coefficient * u.coefficient
    if (t.base, u.base) in PAIRS:
        return scale * PAIRS[t.base, u.base](gauss, t.slope, u.slope)
    if (u.base, t.base) in PAIRS:
        return scale * PAIRS[u.base, t.base](gauss.swapped(), u.slope, t.slope)
    raise NoClosedForm
