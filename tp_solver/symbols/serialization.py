"""Sympy expressions as trees of plain lists, strings and numbers, and back, without ever evaluating text.

A tree is ``[class name, part, ...]``. Only the classes listed here can be written or read, so that a file from elsewhere can
build expressions and nothing else.
"""

from __future__ import annotations

import reprlib
from typing import Any

import sympy as sp

from tp_solver.errors import FileFormatError, InputError
from tp_solver.symbols.functions import logsumexp, sigmoid, softplus

Tree = list[Any]

_CONSTANTS = {"pi": sp.pi, "e": sp.E, "euler gamma": sp.EulerGamma, "infinity": sp.oo, "true": sp.true, "false": sp.false}
_NAMES = {value: name for name, value in _CONSTANTS.items()}

_CLASSES = {
    kind.__name__: kind
    for kind in (
        sp.Add, sp.Mul, sp.Pow, sp.exp, sp.log, sp.Abs, sp.sign, sp.Max, sp.Min, sp.Heaviside, sp.DiracDelta, sp.floor, sp.ceiling,
        sp.sin, sp.cos, sp.tan, sp.cot, sp.sec, sp.csc, sp.asin, sp.acos, sp.atan, sp.sinc,
        sp.sinh, sp.cosh, sp.tanh, sp.coth, sp.sech, sp.csch, sp.asinh, sp.acosh, sp.atanh,
        sp.erf, sp.erfc, sp.erfi, sp.gamma, sp.loggamma, sigmoid, softplus, logsumexp,
        sp.Piecewise, sp.functions.elementary.piecewise.ExprCondPair,
        sp.Eq, sp.Ne, sp.Lt, sp.Le, sp.Gt, sp.Ge, sp.And, sp.Or, sp.Not,
    )
}  # fmt: skip
ASSUMPTIONS = frozenset(
    (
        "algebraic", "antihermitian", "commutative", "complex", "composite", "even", "extended_negative", "extended_nonnegative",
        "extended_nonpositive", "extended_nonzero", "extended_positive", "extended_real", "finite", "hermitian", "imaginary",
        "infinite", "integer", "irrational", "negative", "noninteger", "nonnegative", "nonpositive", "nonzero", "odd", "positive",
        "prime", "rational", "real", "transcendental", "zero",
    )
)  # fmt: skip
"""What may be known about a symbol."""
DIGITS = 400
"""Longest integer, and largest power of a number, that a tree may hold: more would stall whoever reads it."""
DEPTH = 200
"""Deepest nesting."""


def to_tree(expression: sp.Basic) -> Tree:
    """The tree of an expression.

    Raises:
        InputError: for a sympy class that cannot be stored.
    """
    if expression in _NAMES:
        return ["constant", _NAMES[expression]]
    if isinstance(expression, sp.Integer):
        return ["integer", str(int(expression))]
    if isinstance(expression, sp.Rational):
        return ["rational", str(expression.p), str(expression.q)]
    if isinstance(expression, sp.Float):
        sign, mantissa, exponent, _ = expression._mpf_
        return ["float", int(sign), str(int(mantissa)), int(exponent), int(expression._prec)]
    if isinstance(expression, sp.Symbol) and type(expression) is sp.Symbol:
        # what was said about it rather than what follows from that, where sympy remembers: equations are compared as printed
        said = getattr(expression, "_assumptions_orig", expression.assumptions0)
        return ["symbol", expression.name, {k: bool(v) for k, v in said.items() if v is not None}]
    name = type(expression).__name__
    if _CLASSES.get(name, type(None)) is not type(expression) and _stored_as(expression) is None:
        raise InputError("expression", str(expression), f"an expression without {name}", "use the functions that tp_solver can evaluate")
    return [_stored_as(expression) or name, *(to_tree(a) for a in expression.args)]


def from_tree(tree: Any) -> Any:
    """The expression of a tree.

    Raises:
        FileFormatError: for anything that :func:`to_tree` does not write.
    """
    return _read(tree, 0)


def _stored_as(expression: sp.Basic) -> str | None:
    """The listed name of a class that goes by another one (sympy's relations have two)."""
    return next((name for name, kind in _CLASSES.items() if kind is type(expression)), None)


def _read(tree: Any, depth: int) -> Any:
    if not isinstance(tree, list) or not tree or not isinstance(tree[0], str) or depth > DEPTH:
        raise _damaged(tree)
    name, parts = tree[0], tree[1:]
    leaf = _LEAVES.get(name)
    try:
        if leaf is not None:
            return leaf(*parts)
        if name not in _CLASSES:
            raise _damaged(tree)
        return _built(_CLASSES[name], [_read(p, depth + 1) for p in parts])
    except FileFormatError:
        raise
    except Exception as error:  # sympy answers wrong arguments with many kinds of errors
        raise _damaged(tree) from error


def _built(kind: Any, args: list[Any]) -> Any:
    if kind is sp.Pow and len(args) == 2 and args[0].is_number and args[1].is_number and not abs(args[1]) <= DIGITS:
        raise _damaged(["Pow", str(args[0]), str(args[1])])
    out = kind(*args)
    # automatic simplification may not undo what was written, e.g. distribute a number over a sum
    return out if type(out) is kind and list(out.args) == args else kind(*args, evaluate=False)


def _integer(text: Any) -> sp.Integer:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > DIGITS:
        raise _damaged(text)
    return sp.Integer(int(text))


def _rational(numerator: Any, denominator: Any) -> sp.Rational:
    if _integer(denominator) == 0:
        raise _damaged([numerator, denominator])
    return sp.Rational(_integer(numerator), _integer(denominator))


def _float(sign: Any, mantissa: Any, exponent: Any, precision: Any) -> sp.Float:
    if not (sign in (0, 1) and type(exponent) is int and type(precision) is int and abs(exponent) < 10_000 and 1 < precision < 4096):
        raise _damaged([sign, mantissa, exponent, precision])
    number = int(_integer(mantissa))
    # sympy takes the four parts of zero for an integer
    return sp.Float((sign, number, exponent, number.bit_length()), precision=precision) if number else sp.Float(0, precision=precision)


def _symbol(name: Any, assumptions: Any) -> sp.Symbol:
    plain = isinstance(name, str) and name and isinstance(assumptions, dict)
    if not plain or not set(assumptions) <= ASSUMPTIONS or not all(type(v) is bool for v in assumptions.values()):
        raise _damaged([name, assumptions])
    return sp.Symbol(name, **assumptions)


_LEAVES: dict[str, Any] = {
    "constant": _CONSTANTS.__getitem__,
    "integer": _integer,
    "rational": _rational,
    "float": _float,
    "symbol": _symbol,
}


def _damaged(part: Any) -> FileFormatError:
    shown = reprlib.repr(part)  # shortened: a damaged tree may be long or deep
    return FileFormatError(
        "expression", f"the part {shown}", "a tree written by tp_solver", "the file is damaged or was not written by tp_solver"
    )
