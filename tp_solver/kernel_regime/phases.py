"""Order and chaos: what depth does to the variance of a field and to the correlation of two (``theory/depth.md``, KD.1 to KD.4).

One layer is h' = sw W phi(h) / sqrt(n) + sb b. The variance of its field follows q' = sw^2 E phi(sqrt(q) z)^2 + sb^2; at the fixed
point q* of that map, chi_1 = sw^2 E phi'(sqrt(q*) z)^2 decides between order (below one), chaos (above) and the edge between.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import sympy as sp

from tp_solver import checks
from tp_solver.kernel_regime.one_point import Q, formula
from tp_solver.kernel_regime.variance_map import EDGE_WIDTH, Fate, Layer, roots, settle
from tp_solver.numerics.pointwise import kinks
from tp_solver.symbols.activation import Activation, X


class Phase(Enum):
    """Where a layer stands; the value is how it prints."""

    ORDERED = "ordered"
    CHAOTIC = "chaotic"
    EDGE = "edge of chaos"


def phase_of(chi: float) -> Phase:
    """The phase of a layer by its chi_1."""
    if abs(chi - 1) <= EDGE_WIDTH:
        return Phase.EDGE
    return Phase.ORDERED if chi < 1 else Phase.CHAOTIC


def depth_scale(chi: float) -> float:
    """Layers over which chi^l changes by a factor e, 1 / |log chi|: infinite at one, zero at zero and at infinity."""
    if abs(chi - 1) <= EDGE_WIDTH:
        return np.inf
    with np.errstate(divide="ignore"):
        return float(1 / abs(np.log(chi)))


@dataclass(frozen=True)
class FixedPoint:
    """Where depth leads the variance and the correlation of fields (``theory/depth.md``, KD.2 to KD.4).

    Attributes:
        fate: what becomes of the variance.
        q: the variance that is reached; infinite where it diverges, the one it started from where every variance stays.
        c: the correlation that two inputs reach, 1 in the ordered phase and on its edge; None where
            each pair keeps its own, or float64 cannot tell.
        chi_1: E of the squared factor by which one layer multiplies a gradient, at q (in the limit, where q is infinite).
        chi_c: the slope of the map of covariances at c; chi_1 where c is 1 or None.
        chi_q: the slope of the map of variances at q; None where the variance does not settle.
        xi_c, xi_q: layers over which a deviation from c and from q shrinks by a factor e; infinite on the edge. xi_q is None
            where the variance does not settle.
        phase: by chi_1 over ``unit``.
        growth: what every layer multiplies the variance by in the end; 1 where it settles at a positive one.
        unit: what chi is compared with: 1 for dense layers, the growth for layers with a skip connection.
        others: the other fixed points of the variance, stable or not, in increasing order, with the slopes of the map there.
        exact_q, exact_chi_1: as formulas where sympy has them, else None.
    """

    fate: Fate
    q: float
    c: float | None
    chi_1: float
    chi_c: float
    chi_q: float | None
    phase: Phase
    growth: float
    unit: float
    others: tuple[tuple[float, float], ...] = ()
    exact_q: sp.Expr | None = None
    exact_chi_1: sp.Expr | None = None

    @property
    def xi_c(self) -> float:
        """Correlation length in layers."""
        return depth_scale(self.chi_c / self.unit)

    @property
    def xi_q(self) -> float | None:
        """Layers over which the variance settles, None where it does not."""
        return None if self.chi_q is None else depth_scale(abs(self.chi_q))

    def __str__(self) -> str:
        def exactly(value: sp.Expr | None) -> str:
            return "" if value is None or value.is_Float or value.is_infinite else f" = {value}"

        rows = [
            ("phase", f"{self.phase.value}"),
            ("variance", self.fate.value),
            ("q*", f"{self.q:.10g}{exactly(self.exact_q)}"),
            ("c*", "none" if self.c is None else f"{self.c:.10g}"),
            ("chi_1", f"{self.chi_1:.10g}{exactly(self.exact_chi_1)}"),
            ("xi_c", f"{self.xi_c:.6g} layers"),
            ("xi_q", "none" if self.xi_q is None else f"{self.xi_q:.6g} layers"),
        ]
        if self.others:
            shown = (f"{q:.6g} ({'stable' if abs(slope) < 1 else 'unstable'})" for q, slope in self.others)
            rows.append(("other q*", ", ".join(shown)))
        return "\n".join(f"{name:9} {value}" for name, value in rows)


def fixed_point(activation: Activation, weight_scale: Any, bias_scale: Any = 0, start: float = 1.0) -> FixedPoint:
    """Where the variance and the correlations of a deep dense net end, and how fast.

    Args:
        activation: phi.
        weight_scale: sw > 0, weights N(0, sw^2 / n). A sympy number (``sympy.sqrt(2)``) gives exact results where there are any.
        bias_scale: sb >= 0, biases N(0, sb^2).
        start: variance of the first layer, which matters where there are several stable fixed points, or a line of them.

    Raises:
        InputError: for anything but an activation and numbers in range.
        ProgramError: for an activation whose kinks sympy cannot find.

    Source: Schoenholz et al., arXiv:1611.01232; Hayou et al., arXiv:1905.13654.

    Example: ``tp.fixed_point(tp.relu, sympy.sqrt(2))``.
    """
    activation = checks.instance("activation", activation, Activation, "an Activation such as tp.tanh")
    weight, bias = scale("weight_scale", weight_scale, positive=True), scale("bias_scale", bias_scale)
    start = checks.number("start", start, above=0.0)
    f = activation.expression
    found = layer_fixed_point(Layer(((f, float(weight**2)),), bias=float(bias**2)), start)
    q, chi = _exact(f, weight, bias, found)
    return FixedPoint(**{**vars(found), "exact_q": q, "exact_chi_1": chi})


def layer_fixed_point(layer: Layer, start: float) -> FixedPoint:
    """The same for any layer that takes one field to the next; numbers only."""
    s = settle(layer.branches, layer.skip, np.array([1.0]), np.array([layer.bias]), start)
    fate, q, chi_1, growth = s.fate[0], float(s.q[0]), float(s.chi_1[0]), float(s.growth[0])
    c = None if np.isnan(s.c[0]) else float(s.c[0])
    unit = growth if layer.skip else 1.0  # a stream that only adds up grows in every phase
    others = tuple((r, slope) for r, slope in roots(layer) if not np.isclose(r, q, rtol=1e-6, atol=1e-12)) if fate is not Fate.STAYS else ()
    return FixedPoint(
        fate=fate,
        q=q,
        c=c,
        chi_1=chi_1,
        chi_c=float(s.chi_c[0]),
        chi_q=None if fate is Fate.DIVERGES else float(s.chi_q[0]),
        phase=phase_of(chi_1 / unit),
        growth=growth,
        unit=unit,
        others=others,
    )


def scale(field: str, value: Any, positive: bool = False) -> sp.Expr:
    """A finite number as a sympy expression, exact if it came as one."""
    exact = isinstance(value, sp.Expr) and value.is_number and value.is_real
    given = float(value) if exact else value
    number = checks.number(field, given, above=0.0) if positive else checks.number(field, given, minimum=0.0)
    return value if exact else sp.Float(number, 17) if number != int(number) else sp.Integer(int(number))


def _exact(f: sp.Expr, weight: sp.Expr, bias: sp.Expr, found: FixedPoint) -> tuple[sp.Expr | None, sp.Expr | None]:
    """q* and chi_1 as formulas, where the scales are exact, the means have closed forms and the equation for q* is polynomial."""
    if weight.has(sp.Float) or bias.has(sp.Float):
        return None, None
    second, backward = formula(f), formula(sp.diff(f, X))
    constant = backward is not None and Q not in backward.free_symbols
    if found.fate is Fate.DIVERGES or found.fate is Fate.STAYS:
        return sp.oo if found.fate is Fate.DIVERGES else None, weight**2 * backward if constant else None
    if found.q == 0:
        at_zero = backward if constant else None if 0.0 in kinks(f) else sp.diff(f, X).subs(X, 0) ** 2
        return sp.S.Zero, None if at_zero is None else sp.simplify(weight**2 * at_zero)
    if second is None:
        return None, None
    equation, _ = sp.fraction(sp.together(weight**2 * second + bias**2 - Q))
    if not equation.is_polynomial(Q):
        return None, None
    near = [r for r in sp.roots(sp.Poly(equation, Q)) if abs(complex(r) - found.q) <= 1e-9 * found.q]
    if not near:
        return None, None
    return sp.simplify(near[0]), None if backward is None else sp.simplify(weight**2 * backward.subs(Q, near[0]))
