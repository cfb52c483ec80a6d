"""Gradient kernels at initialisation, where backward fields are linear in Gaussian fields that forward fields do not know.

Gradient independence is used as a consequence, not an assumption: it holds for fields whose products have no surviving
response to forward fields (``theory/tensor_programs.md``, "Gradient independence"; Yang, arXiv:2006.14548).
"""

from __future__ import annotations

import sympy as sp

from tp_solver.limit.reading import Reading
from tp_solver.limit.transposition import COTANGENT
from tp_solver.program.statements import Average, Map, Product, Space, Sum, symbol
from tp_solver.symbols.notation import MU, NU, Expectation

Linear = list[tuple[sp.Expr, Product]]
"""Coefficients made of forward fields, and the products whose Gaussian parts they multiply."""


def gradient_kernel(reading: Reading, a: str, b: str) -> sp.Expr | None:
    """The average of two backward fields at initialisation, in kernels of the layers above.

    Returns:
        None if one of them holds a response to another backward field, so that it is no combination of Gaussian parts.
    """
    first, second = _linear(reading, a, MU), _linear(reading, b, NU)
    if first is None or second is None:
        return None
    return sp.Add(*(Expectation(x * y) * _covariance(reading, p, q) for x, p in first for y, q in second))


def _covariance(reading: Reading, p: Product, q: Product) -> sp.Expr:
    if (p.matrix, p.transpose) != (q.matrix, q.transpose):
        return sp.S.Zero
    overlap = sp.S.One if p.arg == COTANGENT else reading.kernel(p.arg, q.arg, (MU, NU), (None, None))
    return reading.scale(p.matrix) * overlap


def _linear(reading: Reading, variable: str, point: sp.Expr) -> Linear | None:
    names = reading.names
    backward = names.backward.spaces
    match names.statement[variable]:
        case Product() as s:
            return None if any(r.use.product == s for r in reading.responses) else [(sp.S.One, s)]
        case Sum() as s:
            parts = [_scaled(c, _linear(reading, v, point)) for c, v in s.terms]
            return None if any(p is None for p in parts) else [term for p in parts if p for term in p]
        case Average():
            return []  # the mean of what is odd in the readout
        case Map() as s:
            total: Linear = []
            for a in (a for a in s.arguments if a in backward and backward[a] is Space.WIDTH):
                slope = reading.slope(s, a, point)
                inner = _linear(reading, a, point)
                if inner is None or slope.has(symbol(a)):
                    return None
                total += _scaled(slope, inner) or []
            return total
    raise AssertionError(variable)


def _scaled(factor: sp.Expr, terms: Linear | None) -> Linear | None:
    return None if terms is None else [(factor * c, p) for c, p in terms]
