"""The edge of chaos: scales at which a layer neither contracts nor expands gradients (``theory/depth.md``, KD.5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp
from scipy.optimize import brentq

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.one_point import Q, curves, formula
from tp_solver.kernel_regime.phases import scale
from tp_solver.kernel_regime.variance_map import FLAT, GRID
from tp_solver.numerics.pointwise import kinks
from tp_solver.symbols.activation import Activation, X

WEIGHT = sp.Symbol("s_w", positive=True)
BIAS = sp.Symbol("s_b", nonnegative=True)
"""The scales in formulas."""
SMALLEST = 1e-4
"""Where roots other than zero are looked for from; nearer to zero, differences that are cubic in q drown in rounding."""


@dataclass(frozen=True)
class PhaseEquations:
    """The equations of the phases of an activation as formulas in q, s_w, s_b (``theory/depth.md``, KD.1 and KD.5).

    Attributes:
        variance: q' as a function of q.
        chi_1: as a function of q.
        weight_squared, bias_squared: the edge of chaos as a curve with the parameter q = q*.
    """

    variance: sp.Expr
    chi_1: sp.Expr
    weight_squared: sp.Expr
    bias_squared: sp.Expr

    def __str__(self) -> str:
        return "\n".join(
            (
                f"q' = {self.variance}",
                f"chi_1 = {self.chi_1}",
                f"edge of chaos: s_w^2 = {self.weight_squared}, s_b^2 = {self.bias_squared}",
            )
        )


def phase_equations(activation: Activation) -> PhaseEquations | None:
    """Formulas where the Gaussian means of phi^2 and phi'^2 have closed forms, else None.

    Raises:
        InputError: for anything but an activation.
    """
    activation = checks.instance("activation", activation, Activation, "an Activation such as tp.erf")
    second, backward = formula(activation.expression), formula(activation.derivative)
    if second is None or backward is None:
        return None
    return PhaseEquations(
        variance=WEIGHT**2 * second + BIAS**2,
        chi_1=WEIGHT**2 * backward,
        weight_squared=sp.simplify(1 / backward),
        bias_squared=sp.simplify(Q - second / backward),
    )


@dataclass(frozen=True)
class EdgeOfChaos:
    """A point of the edge of chaos.

    Attributes:
        weight_scale, bias_scale: sw and sb.
        q: the stable variance there; None where every variance is a fixed point.
        chi_q: the slope of the map of variances, at most one.
        others: weight scales and variances at which chi_1 = 1 as well, but whose variance is unstable or whose weights are larger.
        exact_weight_scale, exact_q: as formulas where sympy has them, else None.
    """

    weight_scale: float
    bias_scale: float
    q: float | None
    chi_q: float
    others: tuple[tuple[float, float], ...]
    exact_weight_scale: sp.Expr | None
    exact_q: sp.Expr | None

    def __str__(self) -> str:
        exact = "" if self.exact_weight_scale is None else f" = {self.exact_weight_scale}"
        q = "any" if self.q is None else f"{self.q:.10g}"
        return f"edge of chaos at s_b = {self.bias_scale:g}: s_w = {self.weight_scale:.10g}{exact}, q* = {q}"


def edge_of_chaos(activation: Activation, bias_scale: Any = 0) -> EdgeOfChaos:
    """The critical weight scale for a bias scale: chi_1 = 1 at a stable fixed point of the variance.

    On the edge, q alone fixes both scales: sw^2 = 1 / E phi'^2 and sb^2 = q - E phi^2 / E phi'^2. The variances that belong to the
    given sb are all looked for between 1e-8 and 1e8, and zero.

    Args:
        activation: phi.
        bias_scale: sb >= 0; a sympy number gives exact results where there are any.

    Raises:
        InputError: for malformed input, or an activation that has no edge at this bias scale.

    Source: Hayou et al., arXiv:1905.13654.

    Example: ``tp.edge_of_chaos(tp.tanh, 0.2).weight_scale``.
    """
    activation = checks.instance("activation", activation, Activation, "an Activation such as tp.tanh")
    exact = scale("bias_scale", bias_scale)
    bias = float(exact)
    f = activation.expression
    if bias == 0 and np.all(np.abs(bias_squared(f, GRID)) < FLAT * GRID):
        weight = float(curves(f, np.array([1.0]))[1, 0]) ** -0.5
        return EdgeOfChaos(weight, bias, None, 1.0, (), _exact_flat(f), None)
    found = sorted(_candidates(f, bias), key=lambda p: p[0])
    stable = [p for p in found if p[2] <= 1 + 1e-9]
    if not stable:
        where = "; ".join(f"s_w = {w:.6g} with q* = {q:.6g}, which is unstable" for w, q, _ in found) or "at no finite variance"
        raise InputError(
            "bias_scale", bias_scale, f"a bias scale at which {activation.name} has an edge of chaos with a stable variance",
            f"chi_1 = 1 {where}; the phase diagram shows where there is an edge",
        )  # fmt: skip
    weight, q, slope = stable[0]
    at_zero = q == 0
    return EdgeOfChaos(
        weight_scale=weight,
        bias_scale=bias,
        q=q,
        chi_q=slope,
        others=tuple(p[:2] for p in found if p is not stable[0]),
        exact_weight_scale=sp.simplify(1 / sp.Abs(sp.diff(f, X).subs(X, 0))) if at_zero and 0.0 not in kinks(f) else None,
        exact_q=sp.S.Zero if at_zero else None,
    )


def bias_squared(f: sp.Expr, q: np.ndarray) -> np.ndarray:
    """sb^2 on the edge of chaos at q* = q; negative where there is no edge."""
    second, backward, _, _ = curves(f, q)
    with np.errstate(all="ignore"):
        return np.nan_to_num(q - second / backward, nan=-np.inf)


def edge_line(f: sp.Expr) -> np.ndarray:
    """Rows sb, sw, q of the stable part of the edge of chaos, on a fine grid of q: (3, n)."""
    q = np.geomspace(1e-8, 1e4, 12 * 40 + 1)
    second, backward, slope, _ = curves(f, q)
    with np.errstate(all="ignore"):
        b2, w2 = q - second / backward, 1 / backward
        good = np.isfinite(w2) & (b2 >= -FLAT * q) & (slope * w2 <= 1 + 1e-9)
    return np.stack([np.sqrt(np.maximum(b2, 0.0)), np.sqrt(w2), q])[:, good]


def _candidates(f: sp.Expr, bias: float) -> list[tuple[float, float, float]]:
    """(sw, q, slope of the map of variances) wherever chi_1 = 1 at a fixed point q."""

    def excess(q: float) -> float:
        return float(bias_squared(f, np.array([q]))[0] - bias**2) / q

    grid = GRID[GRID >= SMALLEST]
    values = (bias_squared(f, grid) - bias**2) / grid
    finite = np.isfinite(values)
    crossings = np.flatnonzero(((values[:-1] > 0) != (values[1:] > 0)) & finite[:-1] & finite[1:])
    found = [_root(excess, float(grid[k]), float(grid[k + 1])) for k in crossings]
    out = []
    if bias == 0 and f.subs(X, 0) == 0:
        (near, *_), (_, at_zero, *_) = curves(f, np.array([SMALLEST, 0.0])).T
        if at_zero > 1e-20:  # the slope is one: whether zero is stable shows in what the layer does nearby
            out.append((float(at_zero**-0.5), 0.0, 1.0 if near / at_zero <= SMALLEST else np.inf))
    for q in found:
        _, backward, slope, _ = curves(f, np.array([q]))[:, 0]
        out.append((float(backward**-0.5), q, float(slope / backward)))
    return out


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    first, last = function(low), function(high)
    if first * last >= 0:  # a bound is the root, to rounding
        return low if abs(first) < abs(last) else high
    return float(brentq(function, low, high, xtol=1e-300, rtol=4e-15))


def _exact_flat(f: sp.Expr) -> sp.Expr | None:
    backward = formula(sp.diff(f, X))
    return None if backward is None else sp.simplify(1 / sp.sqrt(backward))
