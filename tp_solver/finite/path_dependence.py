"""How far the minimisers of optimisers lie apart: from gradient descent's, between batch sizes, and between orders of the batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.finite.descent import Descent, descend
from tp_solver.finite.linearised import LinearisedNet
from tp_solver.finite.minimiser import Minimiser, minimiser
from tp_solver.finite.optimisers import transformation
from tp_solver.program.task import Task


@dataclass(frozen=True, eq=False, repr=False)
class PathDependence:
    """Descents of several optimisers on one linearised net; :func:`path_dependence` makes one.

    Distances are root mean squares over the test points in units of the root mean square of gradient descent's own predictions.

    Attributes:
        closed: where gradient descent ends, in closed form.
        runs: (optimiser, batch) -> one descent per order of the batches; batch None is all points, of which there is one order.
    """

    closed: Minimiser
    runs: Mapping[tuple[str, int | None], tuple[Descent, ...]]

    def apart(self, one: Any, other: Any) -> float:
        """Distance of two functions on the test points (arrays shaped like the labels)."""
        return float(np.sqrt(np.mean((np.asarray(one) - np.asarray(other)) ** 2))) / self.closed.signal

    def from_closed(self, name: str, batch: int | None = None) -> float:
        """Largest distance over orders to where gradient descent ends.

        Raises:
            InputError: for a pair that was not run.
        """
        return max(self.apart(f, self.closed.f_test) for f in self._ends(name, batch))

    def between_orders(self, name: str, batch: int) -> float:
        """Smallest distance between two orders of the same batches; NaN where there is one order.

        Raises:
            InputError: for a pair that was not run.
        """
        pairs = list(combinations(self._ends(name, batch), 2))
        return min(self.apart(a, b) for a, b in pairs) if pairs else float("nan")

    def from_full(self, name: str, batch: int) -> float:
        """Smallest distance over orders between batches and all points at once.

        Raises:
            InputError: for a pair that was not run.
        """
        (full,) = self._ends(name, None)
        return min(self.apart(f, full) for f in self._ends(name, batch))

    @property
    def success(self) -> bool:
        """Whether every run interpolates; what did not arrive says nothing about where it would have gone."""
        return all(run.success for found in self.runs.values() for run in found)

    def _ends(self, name: str, batch: int | None) -> list[np.ndarray]:
        if (name, batch) not in self.runs:
            raise InputError("(optimiser, batch)", (name, batch), f"one of {list(self.runs)}", "what was run is in runs")
        return [run.f_test for run in self.runs[name, batch] if run.f_test is not None]

    def __str__(self) -> str:
        rows = [
            "distances on the test points, over the size of what gradient descent learns",
            f"{'optimiser':<24} {'batch':>6} {'from GD':>9} {'from full':>9} {'orders':>9} {'test MSE':>9} {'residual':>9} {'steps':>8}",
            f"{'GD, closed form':<24} {'any':>6} {0:>9.1g} {'':>9} {'':>9} {self.closed.mse:>9.3g} {self.closed.residual:>9.1g}",
        ]
        for (name, batch), found in self.runs.items():
            full = f"{self.from_full(name, batch):.2g}" if batch is not None and (name, None) in self.runs else ""
            orders = f"{self.between_orders(name, batch):.2g}" if batch is not None and len(found) > 1 else ""
            mse = np.mean([np.mean((run.f_test - self.closed.y_test) ** 2) for run in found]) if self.closed.y_test is not None else np.nan
            failed = next((f"  {run.status}" for run in found if not run.success), "")
            rows.append(
                f"{name:<24} {batch or 'all':>6} {self.from_closed(name, batch):>9.2g} {full:>9} {orders:>9} {mse:>9.3g} "
                f"{max(run.residual for run in found):>9.1g} {max(run.steps for run in found):>8}{failed}"
            )
        return "\n".join(rows)

    def __repr__(self) -> str:
        return f"PathDependence({list(self.runs)})"


def path_dependence(
    twin: Any,
    task: Any,
    optimisers: Any,
    batches: Sequence[int] = (),
    orders: int = 2,
    seed: int = 0,
    steps: int = 1_000_000,
    tol: float = 1e-7,
    centred: bool = False,
) -> PathDependence:
    """Run optimisers on a linearised net with all points at once and in batches of several sizes and orders, and compare the ends.

    Args:
        twin, task, steps, tol, centred: as for :func:`descend`; the task needs test inputs.
        optimisers: what :func:`descend` takes, by the name to print; or a sequence of records that print themselves.
        batches: points per update, besides all at once.
        orders: how many orders of every batch size, seeded seed, seed + 1, ...

    Raises:
        InputError: naming the argument.
    """
    checks.instance("twin", twin, LinearisedNet, "a linearised net", "tp.linearise(tp.draw(...))")
    checks.instance("task", task, Task, "a Task with X_test")
    named = _named(optimisers)
    for optimiser in named.values():
        transformation(optimiser)
    if isinstance(batches, (str, int)) or not hasattr(batches, "__iter__"):
        raise InputError("batches", batches, "a sequence of integers", "batches=(4,)")
    sizes = tuple(checks.integer("batches", b, minimum=1, maximum=task.P - 1, hint="all points at once are run anyway") for b in batches)
    orders, seed = checks.integer("orders", orders, minimum=1), checks.integer("seed", seed, minimum=0)
    closed = minimiser(twin, task, centred)
    runs: dict[tuple[str, int | None], tuple[Descent, ...]] = {}
    for name, optimiser in named.items():
        runs[name, None] = (descend(twin, task, optimiser, None, seed, steps, tol, centred),)
        for b in sizes:
            runs[name, b] = tuple(descend(twin, task, optimiser, b, seed + k, steps, tol, centred) for k in range(orders))
    return PathDependence(closed, runs)


def _named(optimisers: Any) -> dict[str, Any]:
    if isinstance(optimisers, Mapping):
        named = {str(name): optimiser for name, optimiser in optimisers.items()}
    elif isinstance(optimisers, (list, tuple)) and not hasattr(optimisers, "update"):
        named = {str(optimiser): optimiser for optimiser in optimisers}
        if len(named) < len(optimisers):
            raise InputError("optimisers", optimisers, "different optimisers", "a mapping names them as you like")
    else:
        raise InputError("optimisers", optimisers, "a mapping from names to optimisers, or a sequence", '{"AdaGrad": tp.AdaGrad(0.2)}')
    if not named:
        raise InputError("optimisers", optimisers, "at least one optimiser", '{"AdaGrad": tp.AdaGrad(0.2)}')
    return named
