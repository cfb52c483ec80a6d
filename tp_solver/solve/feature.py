"""The feature-learning limit by marching: replicates, error bars, gradient flow, and the exact linear case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.errors import ProgramError
from tp_solver.limit.equations import LimitEquations
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.program.statements import Average, Map, symbol
from tp_solver.program.task import Task
from tp_solver.program.training import GradientFlow
from tp_solver.solve.layout import Home
from tp_solver.solve.machine import loss_and_error
from tp_solver.solve.marched import MarchedKernels, final_ranks
from tp_solver.solve.methods import Linear, March
from tp_solver.solve.prepare import Prepared, prepare
from tp_solver.solve.solution import Solution, Status
from tp_solver.solve.trajectory import Trajectory, first_capacity, march

Tick = Callable[[int, float, int], None]


@dataclass(frozen=True)
class Runs:
    """Replicates at one setting of samples, tolerance and step size, subsampled to the reported times."""

    trajectories: tuple[Trajectory, ...]
    stride: int

    def series(self, name: str) -> np.ndarray:
        """(replicates, times, ...), cut to the shortest replicate."""
        values = [getattr(tr, name) for tr in self.trajectories]
        rows = min(len(v) for v in values)
        return np.array([v[: rows : self.stride] for v in values])


def solve_march(
    theory: LimitEquations, task: Task, gamma0: float, samples: int, replicates: int, seed: int, method: March, tick: Tick
) -> Solution:
    """Replicated marches; standard errors hold the scatter, the finite-sample bias, the truncation and the step size."""
    tol = method.tol if method.tol is not None else min(1e-2, 4 / samples)
    flow = isinstance(theory.training, GradientFlow)
    steps = theory.training.steps
    keep = method.times if method.times is not None else (0, steps)
    few = min(2, replicates)
    capacity: dict[Home, int] | None = None

    def runs(count: int, samples: int, tol: float, substeps: int) -> Runs:
        nonlocal capacity
        prepared = _prepared(theory, task, substeps)
        stride = substeps if flow else 1
        dtype = jnp.dtype(method.dtype)
        out = []
        for k in range(count):
            trajectory = march(
                prepared.setting,
                prepared.columns,
                SampledColumns(samples, (seed, k)),
                prepared.batch(gamma0, tol, dtype),
                steps * stride,
                capacity or first_capacity(prepared.columns, task.P),
                prepared.test_inputs,
                frozenset(t * stride for t in keep),
                tick,
            )
            capacity = dict(trajectory.capacity)
            out.append(trajectory)
            if trajectory.first_bad is not None:
                break
        return Runs(tuple(out), stride)

    with jax.enable_x64(True):
        fine = method.substeps * 2 if flow else 1
        prepared = _prepared(theory, task, fine)
        main = runs(replicates, samples, tol, fine)
        healthy = all(tr.first_bad is None for tr in main.trajectories)
        others: dict[str, Runs] = {}
        if healthy and flow:
            others["step size"] = runs(replicates, samples, tol, method.substeps)
        if healthy and method.bias:
            others["finite samples"] = runs(few, max(64, samples // 2 // 2 * 2), tol, fine)
            others["truncation"] = runs(few, samples, min(1.0, 4 * tol), fine)
        values, errors = _estimates(main, others, prepared)
    kernels = MarchedKernels(prepared, main.trajectories, main.stride, np.asarray(task.X), gamma0)
    status, message = _outcome(main, samples, healthy)
    details = {
        "ranks": final_ranks(main.trajectories),
        "tolerance": tol,
        "samples": samples,
        "replicates": len(main.trajectories),
        "transfer identity": float(max((tr.identity.max() for tr in main.trajectories if len(tr.identity)), default=np.nan)),
        "biases": {kind: float(np.sqrt(np.mean(_shift(main.series("f"), r.series("f")) ** 2))) for kind, r in others.items()},
    }
    return _solution(theory, task, gamma0, method.name, values, errors, kernels, status, message, details)


def solve_linear(theory: LimitEquations, task: Task, gamma0: float, method: Linear, tick: Tick) -> Solution:
    """The march on exact sites: for linear maps every average is a finite sum over Gaussian directions."""
    for s in theory.program.statements:
        if isinstance(s, Average) or (isinstance(s, Map) and not _is_linear(s)):
            raise ProgramError("method", f"'linear' for the statement {s}", "a program whose maps are all linear", "use method='march'")
    flow = isinstance(theory.training, GradientFlow)
    steps = theory.training.steps

    def runs(substeps: int) -> Runs:
        prepared = _prepared(theory, task, substeps)
        stride = substeps if flow else 1
        trajectory = march(
            prepared.setting,
            prepared.columns,
            ExactColumns(),
            prepared.batch(gamma0, EXACT_TOL, jnp.float64),
            steps * stride,
            first_capacity(prepared.columns, task.P),
            prepared.test_inputs,
            frozenset((0, steps * stride)),
            tick,
        )
        return Runs((trajectory,), stride)

    with jax.enable_x64(True):
        fine = method.substeps * 2 if flow else 1
        prepared = _prepared(theory, task, fine)
        main = runs(fine)
        healthy = main.trajectories[0].first_bad is None
        others = {"step size": runs(method.substeps)} if flow and healthy else {}
        values, errors = _estimates(main, others, prepared)
    kernels = MarchedKernels(prepared, main.trajectories, main.stride, np.asarray(task.X), gamma0)
    status, message = _outcome(main, None, healthy)
    details = {"ranks": final_ranks(main.trajectories), "tolerance": EXACT_TOL}
    return _solution(theory, task, gamma0, method.name, values, errors, kernels, status, message, details)


def _is_linear(s: Map) -> bool:
    """Whether the map is a combination of its arguments with constant coefficients and no constant term."""
    names = [symbol(a) for a in s.arguments]
    return not any(s.expression.diff(a).free_symbols for a in names) and s.expression.subs(dict.fromkeys(names, 0)) == 0


EXACT_TOL = 1e-15
"""Share of the squared size below which a direction is rounding noise."""


def _prepared(theory: LimitEquations, task: Task, substeps: int) -> Prepared:
    """A flow becomes gradient descent with that many steps per reported interval."""
    return prepare(theory, task, theory.training.refined(substeps) if isinstance(theory.training, GradientFlow) else None)


def _estimates(main: Runs, others: dict[str, Runs], prepared: Prepared) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Values and standard errors of f, loss, f_test, loss_test, each f with an output axis."""
    values: dict[str, np.ndarray] = {}
    errors: dict[str, np.ndarray] = {}
    others_series = {kind: _series(runs, prepared) for kind, runs in others.items()}
    for name, samples in _series(main, prepared).items():
        value = samples.mean(axis=0)
        variance = samples.var(axis=0, ddof=1) / len(samples) if len(samples) > 1 else np.zeros_like(value)
        for kind, series in others_series.items():
            shift = _shift(samples, series[name])
            variance = variance + shift**2
            if kind == "step size":  # first order in the step: extrapolate, and keep the whole difference as its error
                value = value - shift
        values[name], errors[name] = value, np.sqrt(variance)
    return values, errors


def _shift(main: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean difference to the main runs of the same replicates."""
    rows = min(main.shape[1], other.shape[1])
    out = np.full(main.shape[1:], np.inf)
    out[:rows] = other[:, :rows].mean(axis=0) - main[: len(other), :rows].mean(axis=0)
    return out


def _series(runs: Runs, prepared: Prepared) -> dict[str, np.ndarray]:
    """What is reported, per replicate and time."""
    out = {"f": runs.series("f"), "loss": runs.series("loss")}
    if runs.trajectories[0].f_new is not None:
        out["f_test"] = runs.series("f_new")
        if prepared.y_test is not None:
            out["loss_test"] = _test_loss(out["f_test"], prepared)
    return out


def _test_loss(f: np.ndarray, prepared: Prepared) -> np.ndarray:
    assert prepared.y_test is not None
    flat = f.reshape(-1, f.shape[-1])
    y = np.broadcast_to(prepared.y_test, f.shape).reshape(flat.shape)
    per_point, _ = loss_and_error(prepared.loss, jnp.asarray(flat), jnp.asarray(y))
    return np.asarray(per_point).reshape(f.shape[:-1]).mean(axis=-1)


def _outcome(main: Runs, samples: int | None, healthy: bool) -> tuple[Status, str]:
    if not healthy:
        bad = next(tr for tr in main.trajectories if tr.first_bad is not None)
        finite = Status.DIVERGED if "runs away" in bad.cause else Status.NONFINITE
        if bad.cause == "an interrupt":
            finite = Status.INTERRUPTED
        last = f"the last good state is step {len(bad.f) - 1}" if len(bad.f) else "no state is good"
        return finite, f"{bad.cause} at step {bad.first_bad}; {last}; {finite.advice}"
    worst = max(max(tr.used.values()) for tr in main.trajectories)
    if samples is not None and worst > samples // 8:
        return Status.RANK_SATURATED, f"{worst} directions for {samples} samples; {Status.RANK_SATURATED.advice}"
    return Status.COMPLETED, f"all steps done, at most {worst} directions"


def _solution(
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
