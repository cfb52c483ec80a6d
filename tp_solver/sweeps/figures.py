"""The figure of a sweep: learning curves, and a scalar over one or two parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tp_solver.finite.ensemble import Ensemble
from tp_solver.plot import POSITIVE, SIGNED, style
from tp_solver.program.training import GradientFlow
from tp_solver.sweeps.grid import Axis
from tp_solver.sweeps.tables import Estimate, Outcome, curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = "plasma_r"
DASHES: Any = ("-", "--", ":", "-.")
RUNAWAY = 3.0
"""Losses above this many times the largest initial one have run away: scales end there, so that the others stay visible."""
WORDS = {"loss": "training loss", "loss_test": "test loss", "accuracy": "training accuracy", "accuracy_test": "test accuracy"}
CELLS = 64
"""Heat maps of more cells show no numbers."""


class Line(NamedTuple):
    """What a figure needs of a finished point."""

    position: tuple[int, ...]
    loss: np.ndarray
    end: float
    flow: bool
    estimate: Estimate

    @classmethod
    def of(cls, position: tuple[int, ...], record: Outcome, name: str, estimate: Estimate) -> Line:
        """From a record; ``name`` is loss or loss_test."""
        training = record.training if isinstance(record, Ensemble) else record.theory.training
        values = curve(record, name)
        steps = len(values) - 1
        if isinstance(training, GradientFlow):
            return cls(position, values, training.time * steps / training.steps, True, estimate)
        return cls(position, values, steps, False, estimate)


def sweep_figure(axes: Sequence[Axis], lines: Sequence[Line], x: int, y: int | None, quantity: str, loss: str) -> Figure:
    """Learning curves on the left; on the right the quantity over the axis x, or over x and y as a heat map.

    Points that differ in other parameters alone are averaged.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _curves(left, axes, lines, x, y, loss)
        others = [a.name for k, a in enumerate(axes) if k not in (x, y) and len(a.labels) > 1]
        named = WORDS.get(quantity, quantity)
        title = f"{named} at the last step" + (f", mean over {', '.join(others)}" if others else "")
        if y is None:
            _profile(right, axes[x], lines, x, named)
        else:
            _map(right, axes, lines, x, y, named, _ceiling(lines) if quantity == loss else np.inf)
        right.set_title(title)
    return figure


def _curves(ax: Axes, axes: Sequence[Axis], lines: Sequence[Line], x: int, y: int | None, loss: str) -> None:
    import matplotlib
    from matplotlib.lines import Line2D

    count = len(axes[x].labels)
    shades = matplotlib.colormaps[SHADES](np.linspace(0.15, 0.88, count) if count > 1 else [0.5])
    few = _some(len(axes[y].labels), len(DASHES)) if y is not None and len(axes[y].labels) <= len(DASHES) else []
    for line in lines:
        dash = DASHES[line.position[y]] if y is not None and few else "-"
        ax.plot(
            np.linspace(0, line.end, len(line.loss)),
            np.where(np.isfinite(line.loss), line.loss, np.nan),
            dash,
            color=shades[line.position[x]],
            linewidth=1.1,
            alpha=0.85,
        )
    values = np.concatenate([line.loss for line in lines])
    shown, ceiling = values[values <= _ceiling(lines)], _ceiling(lines)
    wide = shown.size > 0 and shown.min() > 0 and shown.max() > 10 * shown.min()
    if wide:
        ax.set_yscale("log")
    if shown.size < np.isfinite(values).sum():
        ax.set_ylim(shown.min() / 1.5 if wide else min(0.0, shown.min(initial=0.0)), ceiling)
    handles = [Line2D([], [], color=shades[k], label=f"{axes[x].name} = {axes[x].labels[k]}") for k in _some(count, 6)]
    if y is not None:
        handles += [Line2D([], [], color="0.3", linestyle=DASHES[k], label=f"{axes[y].name} = {axes[y].labels[k]}") for k in few]
    ax.legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
    ax.set_xlabel("training time (rate x steps)" if lines[0].flow else "training time (steps)")
    ax.set_ylabel(WORDS[loss])
    ax.margins(x=0.01)


def _profile(ax: Axes, axis: Axis, lines: Sequence[Line], x: int, quantity: str) -> None:
    groups = [[line.estimate for line in lines if line.position[x] == k] for k in range(len(axis.labels))]
    mean = np.array([_mean([e.value for e in group]) for group in groups])
    error = np.array([_mean([e.stderr**2 for e in group]) / max(len(group), 1) for group in groups]) ** 0.5
    places = np.array([float(v) for v in axis.values]) if axis.numeric else np.arange(len(axis.labels), dtype=float)
    order = np.argsort(places)
    ax.errorbar(places[order], mean[order], 2 * np.nan_to_num(error[order]), fmt="o-", color="black", markersize=4, capsize=2)
    if axis.numeric and places.min() > 0 and places.max() > 20 * places.min():
        ax.set_xscale("log")
    if not axis.numeric:
        ax.set_xticks(places, list(axis.labels))
    ax.set_xlabel(axis.name)
    ax.set_ylabel(quantity)


def _map(ax: Axes, axes: Sequence[Axis], lines: Sequence[Line], x: int, y: int, quantity: str, ceiling: float) -> None:
    from matplotlib.colors import LogNorm, Normalize

    columns, rows = axes[x].labels, axes[y].labels
    cells: list[list[list[float]]] = [[[] for _ in columns] for _ in rows]
    for line in lines:
        cells[line.position[y]][line.position[x]].append(line.estimate.value)
    image = np.array([[_mean(cell) for cell in row] for row in cells])
    known = image[np.isfinite(image)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    beyond = high > ceiling
    high = max(low, min(high, ceiling))
    top = max(abs(low), abs(high)) or 1.0
    norm = LogNorm(low, high) if low > 0 and high > 30 * low else Normalize(-top, top) if low < 0 < high else Normalize(low, high)
    ax.set_facecolor("0.85")  # cells without a number
    shown = ax.imshow(image, origin="lower", aspect="auto", cmap=SIGNED if low < 0 < high else POSITIVE, norm=norm, interpolation="nearest")
    if image.size <= CELLS:
        for (j, i), value in np.ndenumerate(image):
            dark = np.isfinite(value) and norm(value) > 0.6
            ax.text(
                i, j, f"{value:.2g}" if np.isfinite(value) else "none", ha="center", va="center", fontsize=7, color="w" if dark else "k"
            )
    for labels, axis in ((columns, ax.xaxis), (rows, ax.yaxis)):
        ticks = _some(len(labels), 10)
        axis.set_ticks(ticks, [labels[k] for k in ticks])
    ax.set_xlabel(axes[x].name)
    ax.set_ylabel(axes[y].name)
    ax.spines[:].set_visible(True)
    bar: Any = ax.figure.colorbar(shown, ax=ax, extend="max" if beyond else "neither")
    bar.outline.set_visible(False)
    bar.set_label(quantity)


def _ceiling(lines: Sequence[Line]) -> float:
    starts = [line.loss[0] for line in lines if np.isfinite(line.loss[0])]
    return RUNAWAY * max(starts) if starts else np.inf


def _mean(values: Sequence[float]) -> float:
    """NaN if any is missing: a mean over fewer seeds than elsewhere would be another quantity."""
    return float(np.mean(values)) if values else np.nan


def _some(count: int, most: int) -> list[int]:
    return sorted({int(k) for k in np.linspace(0, count - 1, min(count, most)).round()})
