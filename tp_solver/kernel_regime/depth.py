"""What becomes of the tangent kernel with depth (``theory/depth.md``, KD.6 to KD.12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.constants import numeric_constants
from tp_solver.kernel_regime.correlation_map import Fields
from tp_solver.kernel_regime.depth_rates import DepthRate
from tp_solver.kernel_regime.phases import FixedPoint, layer_fixed_point
from tp_solver.kernel_regime.repeated_layer import DeepNet, read_deep_net
from tp_solver.kernel_regime.repetition import Repetition
from tp_solver.kernel_regime.variance_map import Layer
from tp_solver.limit.spec import limit_spec
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_DEPTHS = tuple(int(d) for d in np.unique(np.geomspace(1, 10_000, 41).round()))

_ABSENT = -300.0
"""Logarithm of a tangent kernel that is none."""


@dataclass(frozen=True, eq=False)
class DepthAnalysis:
    """Kernels of one net at many depths, between n inputs.

    A net of depth d has d hidden fields and L = d + 1 layers of weights. Diagonals may grow or shrink without bound, so that they
    are kept as logarithms and the rest in proportion.

    Attributes:
        name: of the net whose layer is repeated.
        fixed_point: of that layer, with phase and correlation length, from the mean variance of the first fields.
        depths: (T,).
        log_nngp, log_ntk: diagonals at the output, (T, n).
        correlation: of the outputs, nngp_ij / sqrt(nngp_ii nngp_jj), (T, n, n).
        ratio: ntk_ij / sqrt(ntk_ii ntk_jj), (T, n, n); zero where a diagonal that explodes leaves nothing of it.
        average_ntk: A^L = ntk / L, for layers with a skip connection over growth^(L - 2) as well, (T, n, n); the diagonal is infinite
            where it leaves float64.
        angle: between the last hidden fields, the arccos of their correlation to full relative precision, (T, n, n).
        rate: how the tangent kernel approaches its limit, measured and predicted.
    """

    name: str
    fixed_point: FixedPoint
    depths: np.ndarray
    log_nngp: np.ndarray
    log_ntk: np.ndarray
    correlation: np.ndarray
    ratio: np.ndarray
    average_ntk: np.ndarray
    angle: np.ndarray
    rate: DepthRate

    @property
    def layers(self) -> np.ndarray:
        """L = depth + 1, the number of weight layers, (T,)."""
        return self.depths + 1

    @property
    def nngp(self) -> np.ndarray:
        """Covariance of the outputs, (T, n, n); infinite or zero where it leaves float64."""
        scale = (self.log_nngp[:, :, None] + self.log_nngp[:, None, :]) / 2
        return _scaled(self.correlation, scale)

    @property
    def ntk(self) -> np.ndarray:
        """The tangent kernel, (T, n, n); infinite where it leaves float64."""
        growth = (self.depths - 1) * np.log(self.fixed_point.unit)
        return _scaled(self.average_ntk, (np.log(self.layers) + growth)[:, None, None])

    def __str__(self) -> str:
        average = self.average_ntk
        off = ~np.eye(self.ratio.shape[1], dtype=bool)
        head = f"{'L':>8} {'A diagonal':>13} {'A others':>13} {'ratio, mean':>13} {'ratio, spread':>14} {'angle, mean':>12}"
        rows = [f"{self.name}, repeated: {self.fixed_point.phase.value}, {self.rate}", "", str(self.fixed_point), "", head]
        for t, layers in enumerate(self.layers):
            ratio = self.ratio[t][off]
            rows.append(
                f"{layers:>8} {average[t].diagonal().mean():>13.6g} {average[t][off].mean():>13.6g} {ratio.mean():>13.8f} "
                f"{np.ptp(ratio):>14.2e} {self.angle[t][off].mean():>12.5g}"
            )
        return "\n".join(rows)

    __repr__ = __str__

    def plot(self, path: Any = None) -> Figure:
        """Ratio and angle against depth, and the approach to the limit with what is predicted.

        Args:
            path: where to save the figure (the suffix decides the format), or None.

        Raises:
            InputError: for a path whose folder does not exist, or an unknown suffix.
        """
        from tp_solver.kernel_regime.depth_figures import depth_figure, saved

        return saved(depth_figure(self), path)


def depth_analysis(net: Program, parameterization: Parameterization, X: Any, depths: Sequence[int] = DEFAULT_DEPTHS) -> DepthAnalysis:
    """Repeat the layer of a net up to any depth: phase, correlation length, and the tangent kernel with its limit and its rate.

    The layer is read off the program, so that at depth d the kernels are those of the same net with d hidden layers. Dense nets
    with and without biases and streams y + sum_m W_m f_m(y) are layers of this kind.

    Args:
        net: a program with at least two equal hidden layers; its own depth does not matter otherwise.
        parameterization: one whose limit is in the kernel regime, e.g. ``tp.ntk.times(sw)``.
        X: inputs (n, D), at least two, none of them zero unless there are biases.
        depths: numbers of hidden fields at which to report, increasing; a million takes seconds.

    Raises:
        InputError: for malformed input. ProgramError: for a net that is not one layer repeated, or whose variance leaves float64.
        ParameterizationError: for a parameterization without a limit.

    Source: Hayou et al., arXiv:1905.13654; for the rates KD.9 to KD.11.

    Example::

        net = tp.mlp(depth=2, activation=tp.relu)
        print(tp.depth_analysis(net, tp.ntk.times(2**0.5), X))
    """
    net = checks.instance("net", net, Program, "a program such as tp.mlp(depth=2, activation=tp.relu)")
    X = checks.array("X", X, ndim=(2,), hint="X is (n, D)")
    if len(X) < 2:
        raise InputError("X", f"{len(X)} input", "at least two", "the question is how their kernels differ")
    wanted = _depths(depths)
    spec = limit_spec(net, parameterization)
    deep = read_deep_net(net, *numeric_constants(net, spec, X.shape[1]))
    start, layer = first_fields(deep, X), deep.layer
    variance = float(np.exp(start.log_q).mean())
    fixed = layer_fixed_point(Layer(tuple((b.function, b.weight) for b in layer.branches), layer.skip**2, layer.bias), variance)
    with jax.enable_x64(True):
        repeated = Repetition.prepare(deep, start, fixed, int(wanted[-1]))
        rate = repeated.measure(fixed)
        out = repeated.outputs(wanted)
    n = len(X)
    i, j = np.triu_indices(n, 1)
    # per layer, and per growth where a stream adds up
    norm = (np.log(wanted + 1) + (wanted - 1) * np.log(fixed.unit))[:, None]
    average = _square(_scaled(out.others, out.log_scale - norm), n, 0.0)
    with np.errstate(over="ignore"):
        average[:, np.arange(n), np.arange(n)] = np.exp(out.log_ntk - norm)
    ratio = _scaled(out.others, out.log_scale - (out.log_ntk[:, i] + out.log_ntk[:, j]) / 2)
    return DepthAnalysis(
        net.name, fixed, wanted, out.log_nngp, out.log_ntk,
        _square(out.correlation, n, 1.0), _square(ratio, n, 1.0), average, _square(out.angle, n, 0.0), rate,
    )  # fmt: skip


def first_fields(net: DeepNet, X: np.ndarray) -> Fields:
    """Second moments of W x + b and its tangent kernel, as numpy arrays.

    Raises:
        InputError: for an input of zero without biases.
    """
    size, angle = _geometry(X, net.first.weight, net.first_bias)
    if not np.all(size > 0):
        raise InputError("X", f"row {int(np.argmin(size))}, a field of zero variance", "inputs that are not zero", "drop it, or add biases")
    tangent, between = _geometry(X, net.first.rate, net.first_bias_rate)
    trained = bool(np.all(tangent > 0))
    log_q = 2 * np.log(size)
    # a first layer that is not trained has no tangent kernel; what comes after makes up for any start
    excess = 2 * np.log(tangent) - log_q if trained else np.full_like(log_q, _ABSENT)
    i, j = np.triu_indices(len(X), 1)
    shared = np.cos(between) * tangent[i] * tangent[j] / (size[i] * size[j])
    arrays: Any = (log_q, angle, excess, shared)
    return Fields(*arrays)


def _geometry(X: np.ndarray, weight: float, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the vectors (sqrt(weight) x, sqrt(bias)) and the angles of all pairs i < j.

    Angles come from sums and differences of unit vectors, so that small ones are precise.
    """
    v = np.concatenate([np.sqrt(weight) * X, np.full((len(X), 1), np.sqrt(bias))], axis=1)
    size = np.linalg.norm(v, axis=1)
    u = v / np.where(size > 0, size, 1.0)[:, None]
    i, j = np.triu_indices(len(X), 1)
    return size, 2 * np.arctan2(np.linalg.norm(u[i] - u[j], axis=1), np.linalg.norm(u[i] + u[j], axis=1))


def _depths(depths: Any) -> np.ndarray:
    out = checks.array("depths", depths, ndim=(1,), hint="a list of integers")
    if np.any(out != out.round()) or out[0] < 1 or np.any(np.diff(out) <= 0):
        raise InputError("depths", depths, "increasing integers >= 1", "for example (1, 10, 100, 1000)")
    return out.astype(int)


def _square(pairs: np.ndarray, n: int, diagonal: float) -> np.ndarray:
    """Entries i < j (T, P) as symmetric matrices (T, n, n)."""
    out = np.full((len(pairs), n, n), diagonal)
    i, j = np.triu_indices(n, 1)
    out[:, i, j] = out[:, j, i] = pairs
    return out


def _scaled(values: np.ndarray, logarithms: np.ndarray) -> np.ndarray:
    """values exp(logarithms), which may be large and small together."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.sign(values) * np.exp(np.log(np.abs(values)) + logarithms)
