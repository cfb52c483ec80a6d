"""abc-parameterizations as data (``theory/notation.md``, NO.1; Yang & Hu 2020, Definition 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import sympy as sp

from tp_solver.errors import InputError
from tp_solver.program.statements import Matrix, Role

N = sp.Symbol("N", positive=True)
"""The width."""
D = sp.Symbol("D", positive=True)
"""The input dimension."""

CLASSES = ("input", "hidden", "readout")
CLASS_ROLES = ((Role.INPUT, Role.BIAS), (Role.HIDDEN,), (Role.READOUT,))
"""The matrices whose exponents each class holds; a bias on the output has exponents of its own."""
Triple = tuple[sp.Expr, sp.Expr, sp.Expr]


@dataclass(frozen=True)
class Scaling:
    """Exponents and constants of one matrix: W = alpha N^-a w, w ~ N(0, sigma^2 N^-2b), rate eta N^-c."""

    a: sp.Expr
    b: sp.Expr
    c: sp.Expr
    alpha: sp.Expr
    sigma: sp.Expr
    eta: sp.Expr


@dataclass(frozen=True)
class Parameterization:
    """Exponents (a, b, c) and constants per layer class (input, hidden, readout).

    ``W^j = alpha_j N^(-a_j) w^j`` with ``w^j ~ N(0, sigma_j^2 N^(-2 b_j))`` trained at the rate ``eta_j N^(-c_j)``.
    Biases take the exponents of the input class, alpha = 1, and their own sigma and relative rate. A bias on the output has as many
    entries as there are outputs, whatever the width, and no sum over sites between it and f: it is of order one at a + b = 0 and
    moves by order one per step at 2 a + c = 0 (``theory/power_counting.md``, PC.8), hence exponents zero wherever the others are.

    Args:
        name: how it prints.
        a, b, c: triples of exact rationals or sympy symbols (a single value serves all three classes).
        alpha, sigma, eta: triples of positive numbers or sympy expressions (single values likewise); alpha may contain
            :data:`D`. sigma = 0 means zero initialisation, eta = 0 a frozen layer.
        output_bias: exponents (a, b, c) of a bias on the output.

    Raises:
        InputError: naming the entry, for a wrong length, NaN, an inexact float exponent, or a negative constant.
    """

    name: str
    a: Any
    b: Any
    c: Any
    alpha: Any = 1
    sigma: Any = 1
    eta: Any = 1
    output_bias: Any = (0, 0, 0)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError("parameterization name", self.name, "a non-empty string", 'Parameterization("mine", a=..., b=..., c=...)')
        for field in ("a", "b", "c"):
            object.__setattr__(self, field, _triple(field, getattr(self, field), _exponent))
        for field in ("alpha", "sigma", "eta"):
            object.__setattr__(self, field, _triple(field, getattr(self, field), _constant))
        object.__setattr__(self, "output_bias", _triple("output_bias", self.output_bias, _exponent, ("a", "b", "c")))

    @property
    def exponents(self) -> tuple[sp.Expr, ...]:
        """All exponents."""
        return (*self.a, *self.b, *self.c, *self.output_bias)

    def scaling(self, matrix: Matrix) -> Scaling:
        """Exponents and constants of one matrix of a program."""
        if matrix.role is Role.OUTPUT_BIAS:
            a, b, c = self.output_bias
            return Scaling(a, b, c, sp.Integer(1), matrix.sigma, matrix.rate)
        k = next(k for k, roles in enumerate(CLASS_ROLES) if matrix.role in roles)
        constants = (sp.Integer(1), matrix.sigma, matrix.rate) if matrix.role is Role.BIAS else (self.alpha[k], self.sigma[k], self.eta[k])
        return Scaling(self.a[k], self.b[k], self.c[k], *constants)

    @property
    def backward_exponent(self) -> sp.Expr:
        """m, with df/dh ~ N^-m once training has begun: min(a_L + b_L, 2 a_L + c_L)."""
        return sp.Min(self.a[2] + self.b[2], 2 * self.a[2] + self.c[2])

    @property
    def free_symbols(self) -> tuple[sp.Symbol, ...]:
        """Symbols in exponents and constants that have no value yet (the input dimension D excepted)."""
        found = set().union(*(e.free_symbols for e in (*self.exponents, *self.alpha, *self.sigma, *self.eta)))
        return tuple(sorted(found - {D}, key=str))

    def bind(self, values: Mapping[sp.Symbol, Any]) -> Parameterization:
        """The same parameterization with numbers in place of symbols."""
        if not isinstance(values, Mapping):
            raise InputError("bind", values, "a mapping from symbols to numbers", "parameterization.bind({q: Fraction(1, 2)})")
        unknown = set(values) - set(self.free_symbols)
        if unknown:
            raise InputError(
                "bind",
                f"the symbols {sorted(map(str, unknown))}",
                f"the sympy symbols {list(map(str, self.free_symbols))}",
                "the keys are the symbols themselves, not their names",
            )
        exponents = set().union(*(e.free_symbols for e in self.exponents))
        exact = {
            k: _exponent(f"bind[{k}]", v) if k in exponents else _sympified(f"bind[{k}]", v, "a finite number") for k, v in values.items()
        }
        parts = {f: tuple(e.subs(exact) for e in getattr(self, f)) for f in ("a", "b", "c", "alpha", "sigma", "eta", "output_bias")}
        return Parameterization(self.name, **parts)

    def times(self, alpha: Any, name: str | None = None) -> Parameterization:
        """The same with every weight multiplied by a constant: ``tp.ntk.times(sw)`` has h = sw W x / sqrt(n), W ~ N(0, 1).

        Args:
            alpha: a number > 0 or a sympy expression for all layers, or a triple (input, hidden, readout). Biases keep theirs.
        """
        factors = _triple("alpha", alpha, _constant)
        return replace(self, name=name or self.name, alpha=tuple(a * f for a, f in zip(self.alpha, factors, strict=True)))

    def shifted(self, theta: Any, name: str | None = None) -> Parameterization:
        """The theta-shift (a, b, c) -> (a + theta, b - theta, c - 2 theta): the same training run at every width.

        Args:
            theta: a value for all layers, or a triple (Yang & Hu 2020, Section 3; ``theory/power_counting.md``, PC.6).
        """
        t = _triple("theta", theta, _exponent)
        return replace(
            self,
            name=name or self.name,
            a=tuple(x + s for x, s in zip(self.a, t, strict=True)),
            b=tuple(x - s for x, s in zip(self.b, t, strict=True)),
            c=tuple(x - 2 * s for x, s in zip(self.c, t, strict=True)),
        )

    def __str__(self) -> str:
        rows = [f"parameterization {self.name}", f"  {'':8} {'a':>8} {'b':>8} {'c':>8} {'alpha':>10} {'sigma':>8} {'eta':>8}"]
        for k, cls in enumerate(CLASSES):
            exponents = " ".join(f"{e[k]!s:>8}" for e in (self.a, self.b, self.c))
            rows.append(f"  {cls:8} {exponents} {self.alpha[k]!s:>10} {self.sigma[k]!s:>8} {self.eta[k]!s:>8}")
        return "\n".join([*rows, f"  {'out bias':8} " + " ".join(f"{e!s:>8}" for e in self.output_bias)])

    def _repr_latex_(self) -> str:
        rows = [
            rf"\text{{{cls}}} & " + " & ".join(sp.latex(getattr(self, f)[k]) for f in ("a", "b", "c", "alpha", "sigma", "eta"))
            for k, cls in enumerate(CLASSES)
        ]
        rows.append(r"\text{out bias} & " + " & ".join(sp.latex(e) for e in self.output_bias))
        head = rf"\text{{{self.name}}} & a & b & c & \alpha & \sigma & \eta \\ \hline "
        return r"$\begin{array}{l|cccccc} " + head + r" \\ ".join(rows) + r" \end{array}$"


def _triple(field: str, value: Any, clean: Any, names: tuple[str, ...] = CLASSES) -> Triple:
    if isinstance(value, (list, tuple, sp.Tuple)):
        if len(value) != 3:
            hint = "one value per layer class, also when depth is 1" if names == CLASSES else f"{field}=(0, 0, 0)"
            raise InputError(field, value, f"three entries ({', '.join(names)})", hint)
        entries = tuple(value)
    else:
        entries = (value,) * 3
    return tuple(clean(f"{field}[{k}] ({names[k]})", v) for k, v in enumerate(entries))


def _sympified(field: str, value: Any, allowed: str) -> sp.Expr:
    if isinstance(value, (str, bool, type(None), type)):
        raise InputError(field, value, allowed, "write Fraction(1, 2), sympy.Rational(1, 2) or a sympy symbol")
    try:
        out = sp.sympify(value)
    except (sp.SympifyError, TypeError, ValueError) as error:
        raise InputError(field, value, allowed, "numbers and sympy expressions only") from error
    if not isinstance(out, sp.Expr) or out.has(sp.nan, sp.zoo, sp.oo, -sp.oo, sp.I):
        raise InputError(field, value, allowed, "a finite real value is needed")
    return out


def _exponent(field: str, value: Any) -> sp.Expr:
    out = _sympified(field, value, "an exact rational or a sympy expression")
    if out.is_Float:
        fraction = Fraction(float(out)).limit_denominator(64)
        if float(fraction) != float(out):
            raise InputError(field, value, "an exact rational", "write Fraction(1, 3) instead of 0.333")
        return sp.Rational(fraction.numerator, fraction.denominator)
    if out.has(sp.Float):
        raise InputError(field, value, "an exact expression", "use Rationals instead of floats in symbolic exponents")
    return out


def _constant(field: str, value: Any) -> sp.Expr:
    out = _sympified(field, value, "a number >= 0 or a sympy expression")
    if out.is_number and not out >= 0:
        raise InputError(field, value, "a number >= 0", "signs and negative rates have no meaning here")
    if field.startswith("alpha") and out == 0:
        raise InputError(field, value, "a number > 0", "to freeze a layer use eta = 0; to start it at zero use sigma = 0")
    return out


_half = sp.Rational(1, 2)
_input = (1 / sp.sqrt(D), 1, 1)

muP = Parameterization("muP", (-_half, 0, _half), (_half, _half, _half), (0, 0, 0), _input)
mean_field = Parameterization("mean field", (0, _half, 1), (0, 0, 0), (-1, -1, -1), _input)
ntk = Parameterization("NTK", (0, _half, _half), (0, 0, 0), (0, 0, 0), _input)
standard = Parameterization("standard", (0, 0, 0), (0, _half, _half), (0, 0, 0), _input)
standard_1n = Parameterization("standard, rate 1/N", (0, 0, 0), (0, _half, _half), (1, 1, 1), _input, output_bias=(0, 0, 1))
integrable = Parameterization("integrable", (0, 1, 1), (0, 0, 0), (-1, -2, -1), _input)
PRESETS = {
    "muP": muP,
    "mean_field": mean_field,
    "ntk": ntk,
    "standard": standard,
    "standard_1n": standard_1n,
    "integrable": integrable,
}
