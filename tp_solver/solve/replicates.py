"""What methods that run replicates share: series over time, values with standard errors, the record of the solution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import jax.numpy as jnp
import numpy as np

from tp_solver.limit.equations import LimitEquations
from tp_solver.program.statements import Average, Map, Program, Statement, symbol
from tp_solver.program.task import Task
from tp_solver.program.training import GradientFlow
from tp_solver.solve.machine import loss_and_error
from tp_solver.solve.prepare import Prepared, prepare
from tp_solver.solve.solution import Solution, Status


class Recorded(Protocol):
    """What every replicate answers: outputs f (T, P, K), at new points (T, P_new, K) or None, loss (T,)."""

    @property
    def f(self) -> np.ndarray: ...

    @property
    def f_new(self) -> np.ndarray | None: ...

    @property
    def loss(self) -> np.ndarray: ...


R = TypeVar("R", bound=Recorded)


@dataclass(frozen=True)
class Runs(Generic[R]):
    """Replicates at one setting of samples, tolerance and step size, subsampled to the reported times."""

    trajectories: tuple[R, ...]
    stride: int

    def series(self, name: str) -> np.ndarray:
        """(replicates, times, ...), cut to the shortest replicate."""
        values = [getattr(tr, name) for tr in self.trajectories]
        rows = min(len(v) for v in values)
        return np.array([v[: rows : self.stride] for v in values])


def prepared_in_steps(theory: LimitEquations, task: Task, substeps: int) -> Prepared:
    """A flow becomes gradient descent with that many steps per reported interval."""
    return prepare(theory, task, theory.training.refined(substeps) if isinstance(theory.training, GradientFlow) else None)


def estimates(main: Runs[R], others: Mapping[str, Runs[R]], prepared: Prepared) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Values and standard errors of f, loss, f_test, loss_test, each f with an output axis."""
    values: dict[str, np.ndarray] = {}
    errors: dict[str, np.ndarray] = {}
    others_series = {kind: _series(runs, prepared) for kind, runs in others.items()}
    for name, samples in _series(main, prepared).items():
        value = samples.mean(axis=0)
        variance = samples.var(axis=0, ddof=1) / len(samples) if len(samples) > 1 else np.zeros_like(value)
        for kind, series in others_series.items():
            moved = shift(samples, series[name])
            variance = variance + moved**2
            if kind == "step size":  # first order in the step: extrapolate, and keep the whole difference as its error
                value = value - np.where(np.isfinite(moved), moved, 0.0)  # steps too long to go on leave nothing to extrapolate from
        values[name], errors[name] = value, np.sqrt(variance)
    # f is deterministic, so its loss is that of the mean; the mean of the losses would be larger by the scatter squared
    values["loss"] = _loss(values["f"], prepared.y, prepared)
    if "loss_test" in values and prepared.y_test is not None:
        values["loss_test"] = _loss(values["f_test"], prepared.y_test, prepared)
    return values, errors


def shift(main: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean difference to the main runs of the same replicates."""
    rows = min(main.shape[1], other.shape[1])
    out = np.full(main.shape[1:], np.inf)
    out[:rows] = other[:, :rows].mean(axis=0) - main[: len(other), :rows].mean(axis=0)
    return out


def _series(runs: Runs[R], prepared: Prepared) -> dict[str, np.ndarray]:
    """What is reported, per replicate and time."""
    out = {"f": runs.series("f"), "loss": runs.series("loss")}
    if runs.trajectories[0].f_new is not None:
        out["f_test"] = runs.series("f_new")
        if prepared.y_test is not None:
            out["loss_test"] = _loss(out["f_test"], prepared.y_test, prepared)
    return out


def _loss(f: np.ndarray, labels: np.ndarray, prepared: Prepared) -> np.ndarray:
    """Mean over the points of outputs (..., points, K)."""
    flat = f.reshape(-1, f.shape[-1])
    y = np.broadcast_to(labels, f.shape).reshape(flat.shape)
    per_point, _ = loss_and_error(prepared.loss, jnp.asarray(flat), jnp.asarray(y))
    return np.asarray(per_point).reshape(f.shape[:-1]).mean(axis=-1)


def solution(
    theory: LimitEquations, task: Task, gamma0: float, method: str, values: dict[str, np.ndarray], errors: dict[str, np.ndarray],
    kernels: Any, status: Status, message: str, details: dict[str, Any],
) -> Solution:  # fmt: skip
    def squeezed(a: np.ndarray | None) -> np.ndarray | None:
        return a[..., 0] if a is not None and task.scalar(theory.training.loss) else a

    shown = {k: (squeezed(v) if k.startswith("f") else v) for k, v in errors.items()}
    f = squeezed(values["f"])
    assert f is not None
    return Solution(
        theory, task, gamma0, method, f, values["loss"], squeezed(values.get("f_test")), values.get("loss_test"),
        {k: v for k, v in shown.items() if v is not None}, kernels, status, message, details=details,
    )  # fmt: skip


def nonlinear_statement(program: Program) -> Statement | None:
    """The first statement that is not linear in its arguments, if there is one."""
    return next((s for s in program.statements if isinstance(s, Average) or (isinstance(s, Map) and not _is_linear(s))), None)


def _is_linear(s: Map) -> bool:
    """Whether the map is a combination of its arguments with constant coefficients and no constant term."""
    names = [symbol(a) for a in s.arguments]
    return not any(s.expression.diff(a).free_symbols for a in names) and s.expression.subs(dict.fromkeys(names, 0)) == 0
