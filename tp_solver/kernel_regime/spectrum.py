"""Decay per direction of the kernel, and the largest learning rate that converges (``theory/kernel_training.md``, KT.5 and KT.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tp_solver import checks
from tp_solver.kernel_regime.covariance import covariance_matrix
from tp_solver.kernel_regime.filters import edge, filter_at, growth_per_step, moving
from tp_solver.program.training import GradientFlow, Training, check_momentum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8
"""Modes that a printed table lists."""


def critical_rate(kernel: Any, momentum: float = 0.0, curvature: float = 1.0) -> float:
    """The largest learning rate at which full-batch training with a constant kernel converges.

    ``2 (1 + momentum) / (curvature lambda_max(K / P))``: for squared error (curvature 1) training converges below and diverges
    above (KT.5; Lee et al., arXiv:1902.06720; Polyak 1964). For a loss of smaller curvature it is a lower bound without
    momentum: below it every step lowers the loss, above it anything may happen.

    Args:
        kernel: tangent kernel of the training points, (P, P), the layers' eta included, lr not.
        momentum: of the heavy ball, in [0, 1).
        curvature: the largest that the loss can have, e.g. ``tp.Logistic().curvature``.

    Returns:
        The rate; infinity for a kernel that is zero.

    Raises:
        InputError: for a kernel that is no symmetric positive semidefinite matrix, or a momentum or curvature out of range.
    """
    kernel = covariance_matrix("kernel", kernel)
    momentum = check_momentum(momentum)
    curvature = checks.number("curvature", curvature, above=0.0)
    largest = np.linalg.eigvalsh(kernel)[-1] * curvature / len(kernel)
    return float(edge(momentum) / largest) if largest > 0 else np.inf


@dataclass(frozen=True, eq=False, repr=False)
class KernelModes:
    """Directions of the training set that learn independently of each other, fastest first. Prints as a table.

    Rates and errors are those of squared error, whose modes decay exactly so. For the other losses eigenvalues are multiplied by
    the largest curvature of the loss, so that rates are the fastest that modes can have; at f = 0 they are exact for the logistic
    loss.

    Attributes:
        eigenvalues: of K / P times the curvature, per unit of lr (descent) or of time (flow), (P,), falling.
        vectors: directions in the space of training points, orthonormal columns, (P, P).
        share: part of the squared initial error (that of f = 0) along each, summing to one, (P,).
        rates: decay of an error per step, or per unit of time, in the long run: exp(-rate t), (P,); negative where it grows.
        training: the rule.
    """

    eigenvalues: np.ndarray
    vectors: np.ndarray
    share: np.ndarray
    rates: np.ndarray
    training: Training

    @property
    def time_constants(self) -> np.ndarray:
        """Steps, or time, in which an error falls by a factor e, (P,); infinite where it does not fall."""
        with np.errstate(divide="ignore"):
            return np.where(self.rates > 0, 1.0 / np.where(self.rates > 0, self.rates, 1.0), np.inf)

    @property
    def critical_lr(self) -> float:
        """See :func:`critical_rate`; of descent without momentum where the rule is a flow."""
        momentum = 0.0 if isinstance(self.training, GradientFlow) else self.training.momentum
        return float(edge(momentum) / self.eigenvalues[0]) if self.eigenvalues[0] > 0 else np.inf

    def left(self, time: float) -> np.ndarray:
        """Share of the initial error that is left along each mode, (P,), negative where it has changed sign (KT.4).

        Args:
            time: steps of descent, time of flow, or math.inf.

        Raises:
            InputError: for a time that the rule does not have, or infinity where training diverges.
        """
        lr = 1.0 if isinstance(self.training, GradientFlow) else self.training.lr
        return filter_at(self.training, lr * self.eigenvalues, time).left

    def plot(self, path: Any = None) -> Figure:
        """Eigenvalues with their shares of the error, and the decay of the leading modes in time.

        Args:
            path: where to save it (.png, .pdf or .svg), or None.

        Raises:
            InputError: for a path whose folder does not exist, or an unknown suffix.
        """
        from matplotlib.figure import Figure

        end = self.training.time if isinstance(self.training, GradientFlow) else self.training.steps
        times = np.unique(np.linspace(0, end, 200) if isinstance(self.training, GradientFlow) else np.linspace(0, end, 200).round())
        figure = Figure(figsize=(8.4, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        modes = np.arange(1, len(self.eigenvalues) + 1)
        positive = self.eigenvalues > 0
        left.semilogy(modes[positive], self.eigenvalues[positive], "o-", color="black", markersize=3, linewidth=1.0)
        left.set(xlabel="mode", ylabel="eigenvalue of $K/P$ (line)")
        other = left.twinx()
        other.bar(modes, self.share, color="C1", alpha=0.45, width=0.8)
        other.set(ylabel="share of the initial error (bars)", ylim=(0, None))
        curves = np.abs([self.left(float(t)) for t in times])
        for k in range(min(SHOWN, len(modes))):
            right.semilogy(times, np.maximum(curves[:, k], 1e-16), color=f"C{k}", linewidth=1.2, label=f"mode {k + 1}, {self.share[k]:.0%}")
        total = np.sqrt(np.square(curves) @ self.share)
        right.semilogy(times, total, color="black", linewidth=1.8, label="error of the mean, rms")
        right.set(xlabel="time" if isinstance(self.training, GradientFlow) else "step", ylabel="share of the error left")
        right.set_ylim(max(1e-8, total.min() / 30), None)
        right.legend(frameon=False, fontsize=7)
        for ax in (left, right):
            ax.spines[["top"]].set_visible(False)
        if path is not None:
            figure.savefig(checks.figure_path(path), dpi=200)
        return figure

    def __str__(self) -> str:
        unit = "per unit of time" if isinstance(self.training, GradientFlow) else "per step"
        constant = "time constant" if isinstance(self.training, GradientFlow) else "steps to 1/e"
        lines = [
            f"{len(self.eigenvalues)} kernel modes, {self.training}; critical lr {self.critical_lr:.4g}",
            f"  {'mode':>4} {'eigenvalue':>12} {'share of error':>15} {'decay ' + unit:>24} {constant:>14}",
        ]
        for k in range(min(SHOWN, len(self.eigenvalues))):
            lines.append(
                f"  {k + 1:>4} {self.eigenvalues[k]:>12.4g} {self.share[k]:>15.2%} {self.rates[k]:>24.4g} {self.time_constants[k]:>14.4g}"
            )
        rest = self.share[SHOWN:]
        if len(rest):
            last = f"slowest {self.rates[-1]:.4g}"
            lines.append(f"  {'rest':>4} {self.eigenvalues[-1]:>12.4g} {rest.sum():>15.2%} {last:>24} {self.time_constants[-1]:>14.4g}")
        return "\n".join(lines)

    __repr__ = __str__


def kernel_modes(kernel: np.ndarray, initial_error: np.ndarray, training: Training) -> KernelModes:
    """The modes of a tangent kernel.

    Args:
        kernel: (P, P), without lr; initial_error: -dl/df at f = 0, (P, K); training: with a single lr, if it descends.
    """
    values, vectors = np.linalg.eigh(kernel / len(kernel))
    values, vectors = np.where(moving(values), values, 0.0)[::-1] * training.loss.curvature, vectors[:, ::-1]
    squares = np.sum((vectors.T @ initial_error) ** 2, axis=1)
    share = squares / squares.sum() if squares.sum() > 0 else squares
    if isinstance(training, GradientFlow):
        return KernelModes(values, vectors, share, values, training)
    with np.errstate(divide="ignore"):
        rates = -np.log(growth_per_step(training.lr * values, training.momentum))
    # rounding of an eigenvalue that is zero is no growth
    return KernelModes(values, vectors, share, np.where(np.abs(rates) < 1e-15, 0.0, rates), training)
