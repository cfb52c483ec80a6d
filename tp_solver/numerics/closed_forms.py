"""Gaussian expectations in closed form: a table of pairs of functions, extended by two rewrite rules.

A function is a sum of terms ``coefficient x^power exp(-decay x^2) base(slope x)``. Decays tilt the Gaussian, powers are lowered
by Stein's lemma E[a F] = q E[dF/da] + c E[dF/db], and what is left is a pair of bases from ``PAIRS`` (Cho & Saul 2009 for |x|
and sign; Williams 1997 for erf). ReLU, its leaky form, GELU, and all polynomials follow. The result is one expression in
``Q``, ``QP``, ``C``: derivatives are sympy's, and ``elementwise.lower`` makes a jax function of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import sympy as sp
from sympy.simplify.fu import TR8

from tp_solver.symbols.activation import X
from tp_solver.symbols.functions import arcsine, arcsine_integral, damped_cosh, damped_sinh, inverse_root, root

Q, QP = sp.symbols("q qp", nonnegative=True)
C = sp.Symbol("c", real=True)


class NoClosedForm(Exception):
    """The table has no entry for this pair (internal: the caller goes on to series and quadrature)."""


@dataclass(frozen=True)
class Gaussian:
    """The density of (a, b) ~ N(0, [[q, c], [c, qp]]) times exp(-s a^2 - t b^2), and the moments of what is left.

    ``swap`` exchanges the roles of a and b.
    """

    s: sp.Expr = sp.S.Zero
    t: sp.Expr = sp.S.Zero
    swap: bool = False

    def swapped(self) -> Gaussian:
        return replace(self, swap=not self.swap)

    def tilted(self, s: sp.Expr, t: sp.Expr) -> Gaussian:
        if self.swap:
            s, t = t, s
        return replace(self, s=self.s + s, t=self.t + t)

    @property
    def norm(self) -> sp.Expr:
        """E[exp(-s a^2 - t b^2)] under the untilted Gaussian."""
        return inverse_root(self._spread)

    @property
    def _spread(self) -> sp.Expr:
        return (1 + 2 * self.s * Q) * (1 + 2 * self.t * QP) - 4 * self.s * self.t * C**2

    def _variance(self, q: sp.Expr, qp: sp.Expr, t: sp.Expr) -> sp.Expr:
        return (q * (1 + 2 * t * qp) - 2 * t * C**2) * self.norm**2

    @property
    def q(self) -> sp.Expr:
        """Variance of a."""
        return self._variance(QP, Q, self.s) if self.swap else self._variance(Q, QP, self.t)

    @property
    def qp(self) -> sp.Expr:
        """Variance of b."""
        return self.swapped().q

    @property
    def c(self) -> sp.Expr:
        """Covariance."""
        return C * self.norm**2


@dataclass(frozen=True)
class Term:
    """coefficient x^power exp(-decay x^2) base(slope x); ``base`` is a sympy function class, or that of 1."""

    coefficient: sp.Expr
    power: int
    decay: sp.Expr
    base: type
    slope: sp.Expr

    def lowered(self) -> Term:
        return replace(self, power=self.power - 1)

    @property
    def expression(self) -> sp.Expr:
        """As it reads."""
        return self.coefficient * X**self.power * sp.exp(-self.decay * X**2) * (self.base(self.slope * X) if self.slope else 1)

    def derivative(self) -> tuple[Term, ...]:
        return parse(sp.diff(self.expression, X))


ONE = type(sp.S.One)
Rule = Callable[[Gaussian, sp.Expr, sp.Expr], sp.Expr]


def _abs_abs(g: Gaussian, k: sp.Expr, m: sp.Expr) -> sp.Expr:
    return 2 / sp.pi * sp.Abs(k * m) * root(g.q) * root(g.qp) * arcsine_integral(g.c * inverse_root(g.q) * inverse_root(g.qp))


def _sign_sign(g: Gaussian, k: sp.Expr, m: sp.Expr) -> sp.Expr:
    return sp.sign(k * m) * 2 / sp.pi * arcsine(g.c * inverse_root(g.q) * inverse_root(g.qp))


def _erf_erf(g: Gaussian, k: sp.Expr, m: sp.Expr) -> sp.Expr:
    return 2 / sp.pi * arcsine(2 * k * m * g.c * inverse_root(1 + 2 * k**2 * g.q) * inverse_root(1 + 2 * m**2 * g.qp))


def _erf_sign(g: Gaussian, k: sp.Expr, m: sp.Expr) -> sp.Expr:
    return sp.sign(m) * 2 / sp.pi * arcsine(sp.sqrt(2) * k * g.c * inverse_root(1 + 2 * k**2 * g.q) * inverse_root(g.qp))


def _squares(g: Gaussian, k: sp.Expr, m: sp.Expr) -> sp.Expr:
    return (k**2 * g.q + m**2 * g.qp) / 2


PAIRS: dict[tuple[type, type], Rule] = {
    (ONE, ONE): lambda g, k, m: sp.S.One,
    (sp.Abs, sp.Abs): _abs_abs,
    (sp.Abs, ONE): lambda g, k, m: sp.Abs(k) * sp.sqrt(2 / sp.pi) * root(g.q),
    (sp.sign, sp.sign): _sign_sign,
    (sp.sign, ONE): lambda g, k, m: sp.S.Zero,
    (sp.Abs, sp.sign): lambda g, k, m: sp.S.Zero,
    (sp.erf, sp.erf): _erf_erf,
    (sp.erf, ONE): lambda g, k, m: sp.S.Zero,
    (sp.erf, sp.Abs): lambda g, k, m: sp.S.Zero,
    (sp.erf, sp.cos): lambda g, k, m: sp.S.Zero,
    (sp.erf, sp.sign): _erf_sign,
    (sp.sin, sp.sin): lambda g, k, m: damped_sinh(k * m * g.c, _squares(g, k, m)),
    (sp.cos, sp.cos): lambda g, k, m: damped_cosh(k * m * g.c, _squares(g, k, m)),
    (sp.sin, sp.cos): lambda g, k, m: sp.S.Zero,
    (sp.sin, ONE): lambda g, k, m: sp.S.Zero,
    (sp.cos, ONE): lambda g, k, m: sp.exp(-(k**2) * g.q / 2),
    (sp.exp, sp.exp): lambda g, k, m: sp.exp(_squares(g, k, m) + k * m * g.c),
    (sp.exp, sp.erf): lambda g, k, m: sp.exp(k**2 * g.q / 2) * sp.erf(k * m * g.c * inverse_root(1 + 2 * m**2 * g.qp)),
    (sp.exp, sp.sin): lambda g, k, m: sp.exp((k**2 * g.q - m**2 * g.qp) / 2) * sp.sin(k * m * g.c),
    (sp.exp, sp.cos): lambda g, k, m: sp.exp((k**2 * g.q - m**2 * g.qp) / 2) * sp.cos(k * m * g.c),
    (sp.exp, ONE): lambda g, k, m: sp.exp(k**2 * g.q / 2),
    (sp.DiracDelta, ONE): lambda g, k, m: inverse_root(g.q) / sp.sqrt(2 * sp.pi) / sp.Abs(k),
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
    f = f.replace(sp.Piecewise, _as_steps)
    f = f.replace(sp.Heaviside, lambda u, *_: (1 + sp.sign(u)) / 2).replace(sp.erfc, lambda u: 1 - sp.erf(u))
    f = f.replace(lambda e: isinstance(e, (sp.sinh, sp.cosh)), lambda e: e.rewrite(sp.exp))
    f = TR8(f) if f.has(sp.sin, sp.cos) else f
    f = f.replace(sp.Abs, lambda u: u * sp.sign(u))  # so that products of |x| and sign(x) meet; _term makes |x| of x sign(x)
    f = sp.expand(f).replace(lambda e: e.is_Pow and isinstance(e.base, sp.sign) and e.exp.is_Integer, lambda e: e.base ** (e.exp % 2))
    f = f.replace(lambda e: e.is_Mul and e.has(sp.DiracDelta), _at_zero)
    return tuple(_term(t) for t in sp.Add.make_args(f) if t != 0)


def _as_steps(*branches: tuple[sp.Expr, sp.Basic]) -> sp.Expr:
    """Two branches that meet at zero."""
    if len(branches) == 2 and branches[0][1].is_Relational and branches[1][1] == sp.true:
        (first, condition), (second, _) = branches
        slope = sp.expand((condition.gts - condition.lts) / X) if hasattr(condition, "gts") else X
        if slope.is_number:
            return second + (first - second) * sp.Heaviside(slope * X)
    return sp.Piecewise(*branches)


def _at_zero(product: sp.Expr) -> sp.Expr:
    """F(x) delta(k x) = F(0) delta(k x)."""
    points = [a for a in product.args if isinstance(a, sp.DiracDelta)]
    if len(points) > 1 or len(points[0].args) > 1 or points[0].args[0].subs(X, 0) != 0:
        raise NoClosedForm
    return sp.Mul(*(a for a in product.args if a not in points)).subs(X, 0) * points[0]


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
        origin, exponent = factor.as_base_exp()
        if origin == X and exponent.is_Integer and exponent > 0:
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
    if base is sp.sign and power:
        base, power, coefficient = sp.Abs, power - 1, coefficient / slope
    if not coefficient.is_number or not decay >= 0:
        raise NoClosedForm
    return Term(coefficient, power, decay, base, slope)


def closed_form(f: sp.Expr, g: sp.Expr) -> sp.Expr:
    """E[f(a) g(b)] in ``Q``, ``QP``, ``C``, numbers in floating point.

    Raises:
        NoClosedForm: if a pair of terms is not in the table.
    """
    return _floated(exact_form(f, g))


@cache
def exact_form(f: sp.Expr, g: sp.Expr) -> sp.Expr:
    """E[f(a) g(b)] in ``Q``, ``QP``, ``C``, with numbers as exact as they are in f and g.

    Raises:
        NoClosedForm: if a pair of terms is not in the table.
    """
    total = sp.Add(*(_pair(t, u, Gaussian()) for t in parse(f) for u in parse(g)))
    # arguments of functions stay as they are (products of what belongs to one variance), everything else is one polynomial
    names = {e: sp.Dummy(real=True) for e in total.atoms(sp.Function)}
    outer = {n: e for e, n in names.items()}
    total = sp.expand(total.xreplace(names))
    shared = [n for e, n in names.items() if e.free_symbols >= {Q, QP, C}]
    return sp.collect(total, shared).xreplace(outer)


def _pair(t: Term, u: Term, gauss: Gaussian) -> sp.Expr:
    if t.decay or u.decay:
        return _pair(replace(t, decay=sp.S.Zero), replace(u, decay=sp.S.Zero), gauss.tilted(t.decay, u.decay))
    if sp.DiracDelta in (t.base, u.base):
        return _conditioned(u, t, gauss.swapped()) if t.base is sp.DiracDelta else _conditioned(t, u, gauss)
    if t.power == 0 and u.power > 0:
        return _pair(u, t, gauss.swapped())
    if t.power:
        rest = t.lowered()
        own = sp.Add(*(_pair(d, u, gauss) for d in rest.derivative()))
        return gauss.q * own + gauss.c * sp.Add(*(_pair(rest, d, gauss) for d in u.derivative()))
    scale = t.coefficient * u.coefficient * gauss.norm
    if (t.base, u.base) in PAIRS:
        return scale * PAIRS[t.base, u.base](gauss, t.slope, u.slope)
    if (u.base, t.base) in PAIRS:
        return scale * PAIRS[u.base, t.base](gauss.swapped(), u.slope, t.slope)
    raise NoClosedForm


def _conditioned(t: Term, point: Term, gauss: Gaussian) -> sp.Expr:
    """E[t(a) delta(b)] is the density of b at zero times the mean of t(a) given b = 0."""
    left = gauss.q - gauss.c**2 * inverse_root(gauss.qp) ** 2
    density = PAIRS[sp.DiracDelta, ONE](gauss.swapped(), point.slope, sp.S.Zero)
    return point.coefficient * gauss.norm * density * closed_form(t.expression, sp.S.One).subs(Q, left)


def _floated(e: sp.Expr) -> sp.Expr:
    """Numbers such as sqrt(2)/pi as one float each, so that they cost nothing where the expression is evaluated."""
    if e.is_Pow and e.exp.is_Rational and not e.base.is_number:
        return sp.Pow(_floated(e.base), e.exp)
    if e.is_number:
        return e if e.is_Rational else sp.N(e, 17)
    if e.is_Mul:
        number, rest = e.as_independent(Q, QP, C, as_Add=False)
        return _floated(number) * sp.Mul(*map(_floated, sp.Mul.make_args(rest)))
    return e.func(*map(_floated, e.args)) if e.args else e
