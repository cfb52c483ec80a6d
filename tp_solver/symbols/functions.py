"""Sympy functions whose derivatives and values stay finite for every real argument.

Where a derivative does not exist (the root of a vanishing variance, the arcsine of a full correlation) it is zero here, the
symmetric choice. Values are computed in ``elementwise.py``; the derivatives there follow from ``fdiff`` here.

``canonical`` rewrites what users type (``1/(1 + exp(-x))``, ``log(1 + exp(x))``, ``log(cosh(x))``) into them, before any
derivative is taken, so that no overflow such as ``inf/inf`` can arise from a derivative that sympy produced.
"""

from __future__ import annotations

import sympy as sp


class sigmoid(sp.Function):
    """1 / (1 + exp(-x))."""

    nargs = 1

    @classmethod
    def eval(cls, x):
        if x.is_zero:
            return sp.Rational(1, 2)
        return None

    def fdiff(self, argindex=1):
        return self * (1 - self)

    def _eval_is_real(self):
        return self.args[0].is_real

    def _latex(self, printer):
        return rf"\sigma\left({printer._print(self.args[0])}\right)"


class softplus(sp.Function):
    """log(1 + exp(x))."""

    nargs = 1

    def fdiff(self, argindex=1):
        return sigmoid(self.args[0])

    def _eval_is_real(self):
        return self.args[0].is_real


class logsumexp(sp.Function):
    """log(sum_k exp(x_k)); its derivatives are the entries of the softmax."""

    def fdiff(self, argindex=1):
        return sp.exp(self.args[argindex - 1] - self)

    def _eval_is_real(self):
        return all(x.is_real for x in self.args) or None


class inverse_root(sp.Function):
    """1 / sqrt(x) for x > 0, and 0 at x = 0."""

    nargs = 1

    @classmethod
    def eval(cls, x):
        if x.is_number and x.is_nonnegative:
            return sp.S.Zero if x.is_zero else 1 / sp.sqrt(x)
        return None

    def fdiff(self, argindex=1):
        return -(self**3) / 2

    def _eval_is_real(self):
        return self.args[0].is_real


class root(sp.Function):
    """sqrt(x) for x >= 0."""

    nargs = 1

    @classmethod
    def eval(cls, x):
        return sp.sqrt(x) if x.is_number and x.is_nonnegative else None

    def fdiff(self, argindex=1):
        return inverse_root(self.args[0]) / 2

    def _eval_is_real(self):
        return self.args[0].is_real


class arcsine(sp.Function):
    """arcsin(x) of a correlation; rounding may carry x beyond -1 or 1, where it is what it is at -1 or 1."""

    nargs = 1

    @classmethod
    def eval(cls, x):
        if x.is_zero:
            return sp.S.Zero
        return -cls(-x) if x.could_extract_minus_sign() else None

    def fdiff(self, argindex=1):
        return arcsine_slope(self.args[0])

    def _eval_is_real(self):
        return self.args[0].is_real


class arcsine_slope(sp.Function):
    """1 / sqrt(1 - x^2), and 0 at x = -1 and 1."""

    nargs = 1

    @classmethod
    def eval(cls, x):
        return cls(-x) if x.could_extract_minus_sign() else None

    def fdiff(self, argindex=1):
        return self.args[0] * self**3

    def _eval_is_real(self):
        return self.args[0].is_real


class arcsine_integral(sp.Function):
    """x arcsin(x) + sqrt(1 - x^2), whose derivative is arcsin(x)."""

    nargs = 1

    @classmethod
    def eval(cls, x):
        return cls(-x) if x.could_extract_minus_sign() else None

    def fdiff(self, argindex=1):
        return arcsine(self.args[0])

    def _eval_is_real(self):
        return self.args[0].is_real


class damped_sinh(sp.Function):
    """exp(-v) sinh(u) for v >= |u|, without overflow."""

    nargs = 2

    @classmethod
    def eval(cls, u, v):
        if u.is_zero:
            return sp.S.Zero
        return -cls(-u, v) if u.could_extract_minus_sign() else None

    def fdiff(self, argindex=1):
        return damped_cosh(*self.args) if argindex == 1 else -self

    def _eval_is_real(self):
        return all(a.is_real for a in self.args) or None


class damped_cosh(sp.Function):
    """exp(-v) cosh(u) for v >= |u|, without overflow."""

    nargs = 2

    @classmethod
    def eval(cls, u, v):
        if u.is_zero:
            return sp.exp(-v)
        return cls(-u, v) if u.could_extract_minus_sign() else None

    def fdiff(self, argindex=1):
        return damped_sinh(*self.args) if argindex == 1 else -self

    def _eval_is_real(self):
        return all(a.is_real for a in self.args) or None


def canonical(expression: sp.Expr) -> sp.Expr:
    """Rewrite exponentials that overflow into the stable functions above; the value is unchanged."""
    u, c = sp.Wild("u"), sp.Wild("c", exclude=[0])

    def stable_power(base: sp.Expr, power: sp.Expr) -> sp.Expr:
        match = base.match(1 + sp.exp(u))
        if match and power.is_negative:
            return sigmoid(-match[u]) ** (-power)
        if isinstance(base, sp.cosh) and power.is_negative:
            return sp.sech(base.args[0]) ** (-power)
        return sp.Pow(base, power)

    def hyperbolic(total: sp.Expr) -> sp.Expr:
        for sign, function in ((1, sp.cosh), (-1, sp.sinh)):
            match = total.match(sp.exp(u) + sign * sp.exp(-u))
            if match:
                return 2 * function(match[u])
        return total

    def stable_log(argument: sp.Expr) -> sp.Expr:
        match = argument.match(1 + sp.exp(u))
        if match:
            return softplus(match[u])
        match = argument.match(c * sp.cosh(u))
        if match and c in match:
            return sp.log(match[c] / 2) + softplus(2 * match[u]) - match[u]
        return sp.log(argument)

    out = expression.replace(lambda e: e.is_Add and len(e.args) == 2, hyperbolic)
    out = out.replace(sp.log, stable_log)
    out = out.replace(sp.Pow, stable_power)
    out = out.replace(sp.sinh(u) * sp.sech(u), sp.tanh(u))
    # exp(u) sigmoid(-u) = sigmoid(u): the other common way to type a sigmoid
    return out.replace(
        lambda e: e.is_Mul and any(isinstance(f, sp.exp) and sigmoid(-f.args[0]) in e.args for f in e.args),
        _merge_exponential,
    )


def _merge_exponential(product: sp.Expr) -> sp.Expr:
    factors = list(product.args)
    for f in product.args:
        if isinstance(f, sp.exp) and sigmoid(-f.args[0]) in factors:
            factors.remove(f)
            factors.remove(sigmoid(-f.args[0]))
            factors.append(sigmoid(f.args[0]))
    return sp.Mul(*factors)
