"""The coordinate check: how far every layer's field moves in training, measured against the width, beside the counted powers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.finite.changes import FieldChanges, field_changes
from tp_solver.finite.experiment import prepare
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent

SEVERAL_STEPS = 3
LR, SMALL_LR = 1.0, 1e-4
"""Rates for parameterizations with a limit, and for the others, whose fields must not leave O(1) in the one step measured."""
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class CoordinateCheck:
    """Sizes of changes against width; :func:`coordinate_check` makes one.

    Attributes:
        names: the layers' fields h1, h2, ..., then the output.
        widths: the widths.
        changes: mean over seeds of the root mean square change over sites and points, (widths, names).
        stderr: its standard error over seeds, (widths, names).
        slopes: fitted exponents of the width, (names,); -inf for what does not move at all.
        intervals: 95 % bootstrap intervals over seeds, (names, 2).
        counted: exponents from power counting, one per name.
    """

    program: Program
    parameterization: Parameterization
    training: GradientDescent
    names: tuple[str, ...]
    widths: tuple[int, ...]
    changes: np.ndarray
    stderr: np.ndarray
    slopes: np.ndarray
    intervals: np.ndarray
    counted: tuple[sp.Expr, ...]

    def agrees(self, tolerance: float = 0.1) -> bool:
        """Whether every fitted exponent lies within ``tolerance`` of the counted one."""
        tolerance = checks.number("tolerance", tolerance, above=0.0)
        return all(_near(slope, float(power), tolerance) for slope, power in zip(self.slopes, self.counted, strict=True))

    def plot(self) -> Any:
        """A matplotlib figure: change against width, with lines of the counted slopes."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.0, 3.8), layout="constrained")
        axes = figure.subplots()
        widths = np.asarray(self.widths, float)
        for k, (name, power) in enumerate(zip(self.names, self.counted, strict=True)):
            if not (self.changes[:, k] > 0).all():
                continue
            label = f"{name}: {self.slopes[k]:.2f} (counted {power})"
            bars = axes.errorbar(widths, self.changes[:, k], 2 * self.stderr[:, k], fmt="o", label=label)
            middle = np.exp(np.log(self.changes[:, k]).mean())
            axes.plot(widths, middle * (widths / np.exp(np.log(widths).mean())) ** float(power), "--", color=bars[0].get_color())
        axes.set(xscale="log", yscale="log", xlabel="width", ylabel="rms change", title=f"{self.parameterization.name}, {self.training}")
        axes.title.set_fontsize("small")
        axes.set_xticks(widths, [str(w) for w in self.widths])
        axes.minorticks_off()
        axes.legend(fontsize="small")
        return figure

    def __str__(self) -> str:
        rows = [f"coordinate check: {self.parameterization.name} on {self.program.name}, {self.training}"]
        rows.append(f"  {'':6}" + "".join(f"{f'N = {w}':>12}" for w in self.widths) + f"{'slope':>10}{'95 % interval':>18}{'counted':>10}")
        for k, name in enumerate(self.names):
            low, high = self.intervals[k]
            sizes = "".join(f"{v:12.3e}" for v in self.changes[:, k])
            rows.append(f"  {name:6}{sizes}{self.slopes[k]:10.3f}{f'[{low:.3f}, {high:.3f}]':>18}{self.counted[k]!s:>10}")
        return "\n".join(rows)


def coordinate_check(
    parameterization: Parameterization,
    net: Program,
    task: Task | None = None,
    widths: Sequence[int] = (64, 128, 256, 512),
    seeds: int = 20,
    steps: int | None = None,
    gamma0: float = 1.0,
    lr: float | None = None,
    seed: int = 0,
) -> CoordinateCheck:
    """Measure how the change of every layer's field, and of the output, scales with the width.

    Centred finite nets are trained for a few steps; the root mean square of h^l - h^l(0) over sites and points, averaged over
    seeds, is fitted by a power of the width and set beside the power counted by :func:`tp_solver.regime`.

    Args:
        parameterization: without free symbols.
        net: any program.
        task: data; four random points in eight dimensions by default.
        widths: at least two different integers.
        seeds: nets per width, at least 2.
        steps: updates; by default 3 where there is a kernel or feature-learning limit, else 1 (what grows with the width
            leaves the range where its exponent can be read after one step).
        gamma0: feature-learning strength > 0.
        lr: learning rate; by default 1 where there is such a limit, else 1e-4.
        seed: of the nets and of the bootstrap.

    Raises:
        TPError: naming the argument, before any compilation.
    """
    from tp_solver.limit.regime import Regime, regime

    seeds = checks.integer("seeds", seeds, minimum=2, hint="the interval comes from resampling seeds; 20 are a good number")
    steps = None if steps is None else checks.integer("steps", steps, minimum=1)
    lr = None if lr is None else checks.number("lr", lr, above=0.0)
    task = _default_task() if task is None else task
    experiment = prepare(net, parameterization, GradientDescent(lr or LR, steps or 1), task, gamma0, widths, seeds, True, seed, "float64")
    if len(experiment.widths) < 2:
        raise InputError("widths", widths, "at least two widths", "widths=(64, 128, 256, 512)")
    report = regime(parameterization, net)
    settled = report.regime in (Regime.KERNEL, Regime.FEATURE)
    training = GradientDescent(lr or (LR if settled else SMALL_LR), steps or (SEVERAL_STEPS if settled else 1))
    counted = (*report.field_change_exponents(training.steps), report.output_change_exponent(training.steps))
    measured = field_changes(net, parameterization, training, task, gamma0, experiment.widths, seeds, True, seed)
    return _fitted(net, parameterization, training, measured, counted, seed)


def _default_task() -> Task:
    rng = np.random.default_rng(0)
    return Task(rng.standard_normal((4, 8)), np.array([1.0, -1.0, 1.0, -1.0]), name="four random points")


def _fitted(
    net: Program,
    parameterization: Parameterization,
    training: GradientDescent,
    measured: FieldChanges,
    counted: tuple[sp.Expr, ...],
    seed: int,
) -> CoordinateCheck:
    sizes = np.concatenate([measured.layers, measured.output[..., None]], axis=2)
    seeds = sizes.shape[1]
    picks = np.random.default_rng([seed, seeds]).integers(0, seeds, (RESAMPLES, len(measured.widths), seeds))
    resampled = np.stack([[size[pick].mean(axis=0) for size, pick in zip(sizes, one, strict=True)] for one in picks])
    bootstrap = np.stack([_slopes(measured.widths, one) for one in resampled])
    return CoordinateCheck(
        net,
        parameterization,
        training,
        (*(f"h{layer.index}" for layer in net.layers), "f"),
        measured.widths,
        sizes.mean(axis=1),
        sizes.std(axis=1, ddof=1) / np.sqrt(seeds),
        _slopes(measured.widths, sizes.mean(axis=1)),
        np.sort(bootstrap, axis=0)[[RESAMPLES // 40, RESAMPLES - 1 - RESAMPLES // 40]].T,
        counted,
    )


def _slopes(widths: Sequence[int], means: np.ndarray) -> np.ndarray:
    """Exponents of the width by least squares on logarithms, for means (widths, quantities)."""
    x = np.log(np.asarray(widths, float))
    still = (means == 0).all(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(means)
        fitted = (x - x.mean()) @ (y - y.mean(axis=0)) / ((x - x.mean()) ** 2).sum()
    return np.where(still, -np.inf, fitted)


def _near(slope: float, power: float, tolerance: float) -> bool:
    return slope == power if np.isinf(slope) or np.isinf(power) else bool(abs(slope - power) <= tolerance)
