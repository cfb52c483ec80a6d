"""The feature-learning limit by marching: replicates, error bars, gradient flow, and the exact linear case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.errors import InputError, ProgramError
from tp_solver.limit.equations import LimitEquations
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.numerics.sites import Placement
from tp_solver.program.task import Task
from tp_solver.program.training import GradientFlow
from tp_solver.solve.checkpoint import Checkpoint, checkpoints
from tp_solver.solve.layout import Home
from tp_solver.solve.marched import MarchedKernels, final_ranks
from tp_solver.solve.methods import Linear, March
from tp_solver.solve.prepare import Prepared
from tp_solver.solve.replicates import Runs, estimates, nonlinear_statement, prepared_in_steps, shift, solution
from tp_solver.solve.solution import Solution, Status
from tp_solver.solve.trajectory import Trajectory, first_capacity, march

Tick = Callable[[int, float, int], None]


def solve_march(
    theory: LimitEquations,
    task: Task,
    gamma0: float,
    samples: int,
    replicates: int,
    seed: int,
    method: March,
    folder: Any,
    tick: Tick,
) -> Solution:
    """Replicated marches; standard errors hold the scatter, the finite-sample bias, the truncation and the step size
    (``theory/limit_operator.md``, LO.7)."""
    tol = method.tol if method.tol is not None else min(1e-2, 8 / samples)
    flow = isinstance(theory.training, GradientFlow)
    steps = theory.training.steps
    for name, given in (("times", method.times), ("recorded", method.recorded)):
        if given and max(given) > steps:
            raise InputError(name, max(given), f"times from 0 to {steps}", "times count reported steps; the last one is steps")
    keep = method.times if method.times is not None else (0, steps)
    few = min(2, replicates)
    capacity: dict[Home, int] | None = None
    options = {"dtype": method.dtype, "times": method.times, "recorded": method.recorded}
    kept = checkpoints(folder, theory, task, gamma0, options)

    def runs(count: int, samples: int, tol: float, substeps: int) -> Runs[Trajectory]:
        nonlocal capacity
        prepared = prepared_in_steps(theory, task, substeps)
        stride = substeps if flow else 1
        dtype = jnp.dtype(method.dtype)
        out = []
        for k in range(count):
            trajectory = march(
                prepared.setting,
                prepared.columns,
                SampledColumns(samples, (seed, k)),
                Placement.of(samples, jax.devices()),
                prepared.batch(gamma0, tol, dtype),
                prepared.course,
                capacity or first_capacity(prepared.columns, task.P),
                prepared.test_inputs,
                frozenset(t * stride for t in keep),
                recorded_steps(prepared, method.recorded, steps, stride),
                kept.of({"seed": seed, "replicate": k, "samples": samples, "tol": tol, "substeps": substeps}),
                tick,
            )
            capacity = dict(trajectory.capacity)
            out.append(trajectory)
            if _interrupted(trajectory):
                break
        return Runs(tuple(out), stride)

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        fine = method.substeps * 2 if flow else 1
        prepared = prepared_in_steps(theory, task, fine)
        main = runs(replicates, samples, tol, fine)
        healthy = all(tr.failure is None for tr in main.trajectories)
        others: dict[str, Runs[Trajectory]] = {}
        if healthy and flow:
            others["step size"] = runs(replicates, samples, tol, method.substeps)
        if healthy and method.bias:
            others["finite samples"] = runs(replicates, samples // 4 * 2, tol, fine)
            others["truncation"] = runs(few, samples, tol / 4, fine)
        cut = {kind for kind, r in others.items() if any(_interrupted(tr) for tr in r.trajectories)}
        others = {kind: r for kind, r in others.items() if kind not in cut}
        values, errors = estimates(main, others, prepared)
    kernels = MarchedKernels(prepared, main.trajectories, main.stride, np.asarray(task.X), gamma0)
    status, message = _outcome(main, samples, values["f"], errors["f"])
    if cut:
        status, message = Status.INTERRUPTED, f"all steps done, but not the runs that estimate {' and '.join(sorted(cut))}"
    elif replicates == 1 and not others:
        message += "; no error estimate from a single replicate"
    details = {
        "ranks": final_ranks(main.trajectories),
        "tolerance": tol,
        "samples": samples,
        "replicates": len(main.trajectories),
        "transfer identity": float(max((tr.identity.max() for tr in main.trajectories if len(tr.identity)), default=np.nan)),
        "biases": {kind: float(np.sqrt(np.mean(shift(main.series("f"), r.series("f")) ** 2))) for kind, r in others.items()},
    }
    return solution(theory, task, gamma0, method.name, values, errors, kernels, status, message, details)


def solve_linear(theory: LimitEquations, task: Task, gamma0: float, method: Linear, tick: Tick) -> Solution:
    """The march on exact sites: for linear maps every average is a finite sum over Gaussian directions."""
    curved = nonlinear_statement(theory.program)
    if curved is not None:
        raise ProgramError("method", f"'linear' for the statement {curved}", "a program whose maps are all linear", "use method='march'")
    flow = isinstance(theory.training, GradientFlow)
    steps = theory.training.steps

    def runs(substeps: int) -> Runs[Trajectory]:
        prepared = prepared_in_steps(theory, task, substeps)
        stride = substeps if flow else 1
        trajectory = march(
            prepared.setting,
            prepared.columns,
            ExactColumns(),
            Placement(),
            prepared.batch(gamma0, EXACT_TOL, jnp.float64),
            prepared.course,
            first_capacity(prepared.columns, task.P),
            prepared.test_inputs,
            frozenset((0, steps * stride)),
            frozenset(range(steps * stride + 1)),
            Checkpoint(None),
            tick,
        )
        return Runs((trajectory,), stride)

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        fine = method.substeps * 2 if flow else 1
        prepared = prepared_in_steps(theory, task, fine)
        main = runs(fine)
        healthy = main.trajectories[0].failure is None
        others = {"step size": runs(method.substeps)} if flow and healthy else {}
        values, errors = estimates(main, others, prepared)
    kernels = MarchedKernels(prepared, main.trajectories, main.stride, np.asarray(task.X), gamma0)
    status, message = _outcome(main, None, values["f"], errors["f"])
    details = {"ranks": final_ranks(main.trajectories), "tolerance": EXACT_TOL}
    return solution(theory, task, gamma0, method.name, values, errors, kernels, status, message, details)


RECORDS = 2**28
"""Bytes that the records of a replicate may take if nobody says which times to record."""


def recorded_steps(prepared: Prepared, wanted: tuple[int, ...] | None, steps: int, stride: int) -> frozenset[int]:
    """The steps whose kernels are recorded, ``stride`` per reported time."""
    if wanted is not None:
        return frozenset(t * stride for t in wanted)
    plan, P = prepared.setting.plan, len(prepared.x)
    # per step: coordinates and responses of a few directions per point, and the tangent kernel
    each = 8 * P * ((len(plan.homes) + len(plan.hidden_products())) * (4 * P + 20) + P)
    if each * (steps * stride + 1) <= RECORDS:
        return frozenset(range(steps * stride + 1))
    return frozenset(int(t) * stride for t in np.linspace(0, steps, 21).round())


EXACT_TOL = 1e-15
"""Share of the squared size below which a direction is rounding noise."""


RESOLVED = 0.05
"""Largest standard error of f, and largest violation of <(W x) y> = <x (W^T y)>, relative to their sizes, that passes."""


ROUNDING = 1e-10
"""A prediction below this is zero for the purpose of relative errors."""


def _interrupted(trajectory: Trajectory) -> bool:
    return trajectory.failure is not None and trajectory.failure.status is Status.INTERRUPTED


def _outcome(main: Runs[Trajectory], samples: int | None, f: np.ndarray, error: np.ndarray) -> tuple[Status, str]:
    """How the march ended; success needs the identity of transposition and the estimated error to be small."""
    failures = [tr.failure for tr in main.trajectories if tr.failure is not None]
    if failures:
        bad = min(failures, key=lambda failure: failure.time)
        last = f"the last good state is step {(bad.time - 1) // main.stride}" if bad.time else "no state is good"
        return bad.status, f"{bad.quantity} at step {-(-bad.time // main.stride)}; {last}; {bad.status.advice}"
    worst = max(max(tr.used.values()) for tr in main.trajectories)
    if samples is not None and worst > samples // 8:
        return Status.RANK_SATURATED, f"{worst} directions for {samples} samples; {Status.RANK_SATURATED.advice}"
    relative = float(np.sqrt(np.mean(error**2) / max(np.mean(f**2), ROUNDING**2)))
    identity = max(float(tr.identity.max()) for tr in main.trajectories)
    advice = Status.STALLED.advice if main.stride == 1 else f"raise substeps (gradient flow), or {Status.STALLED.advice}"
    if not relative <= RESOLVED:  # NaN does not pass
        return Status.STALLED, f"the estimated error of f is {relative:.1%} of its size; {advice}"
    if not identity <= RESOLVED:
        return Status.STALLED, f"<(W x) y> and <x (W^T y)> differ by {identity:.1%} of their size; {Status.STALLED.advice}"
    return Status.COMPLETED, f"all steps done, at most {worst} directions"
