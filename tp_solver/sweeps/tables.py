"""Scalars of finished points, as arrays over the grid and as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.finite.ensemble import Ensemble
from tp_solver.program.losses import Loss
from tp_solver.solve.solution import Solution
from tp_solver.sweeps.grid import Axis

Outcome = Solution | Ensemble


class Estimate(NamedTuple):
    """A number and its standard error, NaN where unknown."""

    value: float
    stderr: float


UNKNOWN = Estimate(np.nan, np.nan)


@dataclass(frozen=True, eq=False, repr=False)
class SweepTable:
    """A quantity at all points of a sweep.

    Attributes:
        quantity: its name.
        axes: the parameters, with the labels of their values.
        values, stderr: one number per point, in the shape of the grid (for a list of points: (points,)); NaN for points that
            are not finished, did not reach their last step, or have no standard error.
        status: how each point ended, or that it failed, runs or is missing.
        rows: the labels of every point, in the order of the flattened arrays.
    """

    quantity: str
    axes: tuple[Axis, ...]
    values: np.ndarray
    stderr: np.ndarray
    status: np.ndarray
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        cells = [[*(a.name for a in self.axes), self.quantity, "s.e.", "status"]]
        for row, value, error, status in zip(self.rows, self.values.flat, self.stderr.flat, self.status.flat, strict=True):
            cells.append([*row, *("" if np.isnan(v) else f"{v:.{d}g}" for v, d in ((value, 5), (error, 2))), str(status)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells)

    __repr__ = __str__


def estimator(quantity: Any) -> tuple[str, Callable[[Outcome], Estimate]]:
    """The name of a quantity and what computes it from a record.

    Args:
        quantity: one of QUANTITIES, or a function of a solution or ensemble that returns a number.

    Raises:
        InputError: for anything else.
    """
    if callable(quantity):
        name = getattr(quantity, "__name__", type(quantity).__name__).replace("<lambda>", "quantity")
        return name, lambda record: Estimate(float(quantity(record)), np.nan)
    return quantity, QUANTITIES[checks.one_of("quantity", quantity, QUANTITIES)]


def curve(record: Outcome, name: str) -> np.ndarray:
    """A loss over time, (steps + 1,): of an ensemble the mean over seeds at its largest width.

    Raises:
        InputError: for a test loss of a task without test labels.
    """
    values = getattr(record, name)
    if values is None:
        raise InputError("quantity", name, "a quantity that was computed", "give the task X_test and y_test")
    return values[_widest(record)].mean(axis=0) if isinstance(record, Ensemble) else values


def _loss(record: Outcome, name: str) -> Estimate:
    last = curve(record, name)[-1]
    if isinstance(record, Ensemble):
        return _over_seeds(getattr(record, name)[_widest(record)][:, -1])
    return Estimate(float(last), float(record.stderr(name)[-1])) if _whole(record) else UNKNOWN


def _accuracy(record: Outcome, test: bool) -> Estimate:
    """Share of points on the right side of zero, or whose largest output is that of their class."""
    training = record.training if isinstance(record, Ensemble) else record.theory.training
    f = record.f_test if test else record.f
    y = _labels(record, training.loss, test)
    if f is None or y is None:
        raise InputError("quantity", "accuracy_test", "a quantity that was computed", "give the task X_test and y_test")
    if isinstance(record, Ensemble):
        last = f[_widest(record)][:, -1]
        shares = [_share(one, y) if np.isfinite(one).all() else np.nan for one in last]
        return _over_seeds(np.array(shares))
    return Estimate(_share(f[-1], y), np.nan) if _whole(record) else UNKNOWN


def _share(f: np.ndarray, y: np.ndarray) -> float:
    f = f.reshape(y.shape)
    return float(np.mean(f[:, 0] * y[:, 0] > 0) if y.shape[1] == 1 else np.mean(f.argmax(axis=1) == y.argmax(axis=1)))


def _labels(record: Outcome, loss: Loss, test: bool) -> np.ndarray | None:
    return record.task.targets(loss)[test]


def _whole(record: Solution) -> bool:
    return record.steps == record.theory.training.steps


def _over_seeds(values: np.ndarray) -> Estimate:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Estimate(float(np.mean(values)), float(error))


def _widest(record: Ensemble) -> int:
    return int(np.argmax(record.widths))


QUANTITIES: Mapping[str, Callable[[Outcome], Estimate]] = {
    "loss": lambda r: _loss(r, "loss"),
    "loss_test": lambda r: _loss(r, "loss_test"),
    "accuracy": lambda r: _accuracy(r, False),
    "accuracy_test": lambda r: _accuracy(r, True),
}
"""Quantities at the last step by name; of an ensemble the mean over seeds at its largest width, with its standard error."""
