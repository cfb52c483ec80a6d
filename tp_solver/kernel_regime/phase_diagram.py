"""Phases of an activation over a grid of weight and bias scales, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.critical_line import edge_line
from tp_solver.kernel_regime.phases import Phase, depth_scale, phase_of
from tp_solver.kernel_regime.variance_map import Fate, settle
from tp_solver.symbols.activation import Activation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTERS = {Phase.ORDERED: "o", Phase.EDGE: "|", Phase.CHAOTIC: "x"}
DEFAULT_WEIGHTS = np.linspace(0.5, 3.0, 41)
DEFAULT_BIASES = np.linspace(0.0, 1.0, 21)


class Row(NamedTuple):
    """One layer of a phase diagram; the fields are those of ``FixedPoint``."""

    bias_scale: float
    weight_scale: float
    q: float
    c: float | None
    chi_1: float
    xi_c: float
    phase: Phase
    fate: Fate


@dataclass(frozen=True)
class PhaseDiagram:
    """Where dense layers with one activation stand (``theory/depth.md``, KD.2 to KD.5).

    Attributes:
        activation: phi.
        weight_scales, bias_scales: sw (nw,) and sb (nb,).
        rows: one per pair of scales, the weight scale running fastest.
        edge: the edge of chaos as a curve: sb, sw and q* (3, n), for plotting; it may leave the grid, and is empty where there is none.
    """

    activation: Activation
    weight_scales: np.ndarray
    bias_scales: np.ndarray
    rows: tuple[Row, ...]
    edge: np.ndarray

    @property
    def chi_1(self) -> np.ndarray:
        """Shape (nb, nw)."""
        return self._grid(np.array([r.chi_1 for r in self.rows]))

    @property
    def xi_c(self) -> np.ndarray:
        """Correlation length in layers, infinite on the edge, (nb, nw)."""
        return self._grid(np.array([r.xi_c for r in self.rows]))

    @property
    def q(self) -> np.ndarray:
        """The variance that is reached, infinite where it diverges, (nb, nw)."""
        return self._grid(np.array([r.q for r in self.rows]))

    @property
    def phases(self) -> np.ndarray:
        """Of type :class:`Phase`, (nb, nw)."""
        return self._grid(np.array([r.phase for r in self.rows], dtype=object))

    def _grid(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(len(self.bias_scales), len(self.weight_scales))

    def critical_weight_scale(self, bias_scale: float) -> float | None:
        """Where the edge crosses a bias scale, from the curve (linear between its points); None where it does not."""
        bias, weight, _ = self.edge
        bias_scale = checks.number("bias_scale", bias_scale, minimum=0.0)
        if bias.size == 0 or not bias.min() - 1e-6 <= bias_scale <= bias.max() + 1e-12:
            return None
        order = np.argsort(bias)
        return float(np.interp(bias_scale, bias[order], weight[order]))

    def __str__(self) -> str:
        return "\n".join([*self._map(), "", *self._table()])

    __repr__ = __str__

    def _map(self) -> Iterator[str]:
        """One letter per layer, large bias scales on top."""
        yield f"phases of {self.activation.name}: {', '.join(f'{letter} {phase.value}' for phase, letter in LETTERS.items())}"
        yield f"s_b  s_w from {self.weight_scales[0]:g} to {self.weight_scales[-1]:g}"
        for bias, phases in list(zip(self.bias_scales, self.phases, strict=True))[::-1]:
            yield f"{bias:<5.3g}" + "".join(LETTERS[p] for p in phases)

    def _table(self) -> Iterator[str]:
        yield f"{'s_b':>6} {'s_w':>6} {'q*':>10} {'c*':>8} {'chi_1':>9} {'xi_c':>8}  phase"
        for r in self.rows:
            c = "none" if r.c is None else f"{r.c:.4f}"
            yield f"{r.bias_scale:>6.3g} {r.weight_scale:>6.3g} {r.q:>10.4g} {c:>8} {r.chi_1:>9.4g} {r.xi_c:>8.3g}  {r.phase.value}"

    def plot(self, path: Any = None) -> Figure:
        """The correlation length over the plane of scales with the edge of chaos, and cuts through it.

        Args:
            path: where to save the figure (the suffix decides the format), or None.

        Raises:
            InputError: for a path whose folder does not exist, an unknown suffix, or a diagram of a single weight or bias scale.
        """
        if min(len(self.weight_scales), len(self.bias_scales)) < 2:
            raise InputError("plot", "a single weight or bias scale", "at least two of each", "print it instead")
        from tp_solver.kernel_regime.depth_figures import phase_figure, saved

        return saved(phase_figure(self), path)


def phase_diagram(
    activation: Activation, weight_scales: Any = DEFAULT_WEIGHTS, bias_scales: Any = DEFAULT_BIASES, start: float = 1.0
) -> PhaseDiagram:
    """Phases, fixed points and correlation lengths of dense layers over a grid of scales.

    Args:
        activation: phi.
        weight_scales, bias_scales: sw > 0 and sb >= 0, increasing.
        start: variance of the first layer (see :func:`tp_solver.fixed_point`).

    Raises:
        InputError: for malformed input.

    Example: ``tp.phase_diagram(tp.tanh).plot("tanh.png")``.
    """
    activation = checks.instance("activation", activation, Activation, "an Activation such as tp.tanh")
    weights, biases = _axis("weight_scales", weight_scales, 1e-300), _axis("bias_scales", bias_scales, 0.0)
    start = checks.number("start", start, above=0.0)
    sb, sw = (a.reshape(-1) for a in np.meshgrid(biases, weights, indexing="ij"))
    s = settle(((activation.expression, 1.0),), 0.0, sw**2, sb**2, start)
    rows = tuple(
        Row(
            bias_scale=float(sb[i]),
            weight_scale=float(sw[i]),
            q=float(s.q[i]),
            c=None if np.isnan(s.c[i]) else float(s.c[i]),
            chi_1=float(s.chi_1[i]),
            xi_c=depth_scale(float(s.chi_c[i])),
            phase=phase_of(float(s.chi_1[i])),
            fate=s.fate[i],
        )
        for i in range(len(sw))
    )
    return PhaseDiagram(activation, weights, biases, rows, edge_line(activation.expression))


def _axis(field: str, value: Any, smallest: float) -> np.ndarray:
    out = checks.array(field, value, ndim=(1,), hint=f"{field} is a list of numbers")
    if out[0] < smallest or np.any(np.diff(out) <= 0):
        raise InputError(
            field, out.tolist(), "increasing numbers " + ("> 0" if smallest else ">= 0"), "for example numpy.linspace(0.5, 3, 26)"
        )
    return out
