"""The feature-learning limit by marching: replicates, error bars, gradient flow, and the exact linear case."""

from __future__ import annotations

from dataclasses import dataclass, field
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
from tp_solver.solve.accuracy import Effort, solve_to, tolerance_for
from tp_solver.solve.checkpoint import Checkpoint, Checkpoints, checkpoints
from tp_solver.solve.comparisons import Comparisons
from tp_solver.solve.deviations import SAMPLING, Check, Estimate, scatter
from tp_solver.solve.layout import Home
from tp_solver.solve.marched import MarchedKernels, final_ranks
from tp_solver.solve.memory import Load, march_bytes, physical_memory, require_memory
from tp_solver.solve.methods import Linear, March
from tp_solver.solve.prepare import Prepared
from tp_solver.solve.progress import Told
from tp_solver.solve.replicates import (
    LONG_STEPS,
    MAIN,
    STEP_SIZE,
    Runs,
    estimates,
    nonlinear_statement,
    prepared_in_steps,
    relative_errors,
    solution,
)
from tp_solver.solve.solution import Solution, Status
from tp_solver.solve.trajectory import Trajectory, first_capacity, march

HALF, COARSE, FINE = "half the samples", "looser tolerance", "tighter tolerance"
"""Groups of runs beside the main one."""
LOOSER = 4.0
"""Tolerance of the runs that show the truncation, in units of that of the main runs."""


def solve_march(
    theory: LimitEquations,
    task: Task,
    gamma0: float,
    samples: int,
    rtol: float | None,
    replicates: int,
    seed: int,
    method: March,
    folder: Any,
    tick: Told,
) -> Solution:
    """Replicated marches; standard errors hold the scatter, the finite-sample bias, the truncation and the step size
    (``theory/limit_operator.md``, LO.7). A target ``rtol`` chooses the samples, the tolerance and the substeps by itself."""
    steps = theory.training.steps
    for name, given in (("times", method.times), ("recorded", method.recorded), ("tested", method.tested)):
        if given and max(given) > steps:
            raise InputError(name, max(given), f"times from 0 to {steps}", "times count reported steps; the last one is steps")
    options = {"dtype": method.dtype, "times": method.times, "recorded": method.recorded, "tested": method.tested}
    kept = checkpoints(folder, theory, task, gamma0, options)
    marches = Marches(theory, task, gamma0, replicates, seed, method, kept, tick)
    if rtol is not None:
        return solve_to(rtol, method.substeps, marches.solution)
    tol = method.tol if method.tol is not None else tolerance_for(samples)
    return marches.solution(Effort(samples, tol, method.substeps), RESOLVED)


@dataclass
class Marches:
    """All runs of a solve, at whatever effort; compiled steps are shared between them.

    Attributes:
        capacity: room of every basis that was enough so far.
        known: numbers of the run in so many substeps.
    """

    theory: LimitEquations
    task: Task
    gamma0: float
    replicates: int
    seed: int
    method: March
    kept: Checkpoints
    tick: Told
    capacity: dict[Home, int] | None = None
    known: dict[int, Prepared] = field(default_factory=dict)

    @property
    def flow(self) -> bool:
        return isinstance(self.theory.training, GradientFlow)

    def prepared(self, substeps: int) -> Prepared:
        """Theory and task made numeric, a flow in so many steps per reported interval."""
        if substeps not in self.known:
            self.known[substeps] = prepared_in_steps(self.theory, self.task, substeps)
        return self.known[substeps]

    def runs(self, group: str, samples: int, tol: float, substeps: int) -> Runs[Trajectory]:
        """One march per replicate, up to an interrupt."""
        prepared = self.prepared(substeps)
        stride = substeps if self.flow else 1
        method, steps = self.method, self.theory.training.steps
        dtype = jnp.dtype(method.dtype)
        keep = method.times if method.times is not None else (0, steps)
        recorded = recorded_steps(prepared, method.recorded, steps, stride)
        held = self.replicates * (1 + self.flow + method.bias)  # the runs beside the main ones have half their samples, twice
        load = Load(samples, held, dtype.itemsize, len(keep), len(recorded))
        budget = physical_memory() if method.memory is None else method.memory * 2**30
        require_memory(prepared, load, self.capacity or first_capacity(prepared.columns, self.task.P), budget)
        out = []
        for k in range(self.replicates):
            self.tick.begin(group, f"{k + 1} of {self.replicates}")
            trajectory = march(
                prepared.setting,
                prepared.columns,
                SampledColumns(samples, (self.seed, k)),
                Placement.of(samples, jax.devices()),
                prepared.batch(self.gamma0, tol, dtype),
                prepared.course,
                self.capacity or first_capacity(prepared.columns, self.task.P),
                prepared.test_inputs,
                frozenset(t * stride for t in keep),
                recorded,
                prediction_steps(prepared, method.tested, steps, stride),
                self.kept.of({"seed": self.seed, "replicate": k, "samples": samples, "tol": tol, "substeps": substeps}),
                lambda capacity: march_bytes(prepared, load, capacity) <= budget,
                self.tick,
            )
            self.capacity = dict(trajectory.capacity)
            out.append(trajectory)
            if _interrupted(trajectory):
                break
        return Runs(tuple(out), stride)

    def groups(self, effort: Effort) -> tuple[dict[str, Runs[Trajectory]], list[Check]]:
        """The main runs, those that show their errors, up to an interrupt, and which of them to compare."""
        samples, tol = effort.samples, effort.tol
        fine = effort.substeps * 2 if self.flow else 1
        substeps = self.flow * (fine + effort.substeps) + (not self.flow) + 2 * fine * self.method.bias
        self.tick.expect(self.replicates * self.theory.training.steps * substeps)
        groups = {MAIN: self.runs(MAIN, samples, tol, fine)}
        if any(tr.failure is not None for tr in groups[MAIN].trajectories):
            return groups, []
        plan: list[tuple[str, Check, tuple[int, float, int]]] = []
        half, loose = samples // 4 * 2, min(LOOSER * tol, 1.0)
        if self.flow:
            plan.append((LONG_STEPS, STEP_SIZE, (samples, tol, effort.substeps)))
        if self.method.bias:
            plan.append((HALF, Check("finite samples", MAIN, HALF, half / (samples - half)), (half, tol, fine)))
            plan.append((COARSE, Check("truncation", HALF, COARSE, _per_difference(tol, loose)), (half, loose, fine)))
        checks = [check for _, check, _ in plan]
        for name, _, setting in plan:
            groups[name] = self.runs(name, *setting)
            if any(map(_interrupted, groups[name].trajectories)):
                return groups, checks
        if self.method.bias and (loose == tol or _ranks(groups[COARSE]) == _ranks(groups[HALF])):  # the same directions show nothing
            checks[-1] = Check("truncation", HALF, FINE, _per_difference(tol, tol / LOOSER))
            groups[FINE] = self.runs(FINE, half, tol / LOOSER, fine)
        return groups, checks

    def solution(self, effort: Effort, target: float) -> Solution:
        """Solve at a given effort; ``target`` is the largest relative standard error of f that passes."""
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            groups, checks = self.groups(effort)
            whole = {name for name, runs in groups.items() if name == MAIN or not any(map(_interrupted, runs.trajectories))}
            unknown = [c.kind for c in checks if not {c.near, c.far} <= whole]
            checks = [c for c in checks if c.kind not in unknown]
            prepared = self.prepared(effort.substeps * 2 if self.flow else 1)
            found = estimates(groups, checks, prepared)
        main = groups[MAIN]
        comparisons = Comparisons.between(groups, checks, found.removed)
        kernels = MarchedKernels(prepared, main.trajectories, main.stride, np.asarray(self.task.X), self.gamma0, comparisons)
        status, message = _outcome(main, effort.samples, found.of["f"], target)
        if unknown:
            status, message = Status.INTERRUPTED, f"all steps done, but not the runs that estimate {' and '.join(sorted(unknown))}"
        elif self.replicates == 1 and not checks:
            message += "; no error estimate from a single replicate"
        details = {
            "ranks": final_ranks(main.trajectories),
            "tolerance": effort.tol,
            "samples": effort.samples,
            "replicates": len(main.trajectories),
            "transfer identity": float(max((tr.identity.max() for tr in main.trajectories if len(tr.identity)), default=np.nan)),
            "errors": relative_errors(found.of["f"]),
            "biases": found.deviations,
            "removed": sorted(found.removed),
        }
        details |= {"substeps": effort.substeps} if self.flow else {}
        if HALF in comparisons.groups and (order := _sampling_order(main, groups[HALF])) is not None:
            details["sampling order"] = order
        tested = tuple(t // main.stride for t in main.trajectories[0].tested)
        return solution(self.theory, self.task, self.gamma0, self.method.name, found.of, kernels, status, message, details, tested)


def solve_linear(theory: LimitEquations, task: Task, gamma0: float, method: Linear, tick: Told) -> Solution:
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
            frozenset(range(0, steps * stride + 1, stride)),
            Checkpoint(None),
            lambda capacity: True,
            tick,
        )
        return Runs((trajectory,), stride)

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        fine = method.substeps * 2 if flow else 1
        prepared = prepared_in_steps(theory, task, fine)
        main = runs(fine)
        healthy = main.trajectories[0].failure is None
        groups = {MAIN: main} | ({LONG_STEPS: runs(method.substeps)} if flow and healthy else {})
        checks = [STEP_SIZE] if LONG_STEPS in groups else []
        found = estimates(groups, checks, prepared)
    comparisons = Comparisons.between(groups, checks, found.removed)
    kernels = MarchedKernels(prepared, main.trajectories, main.stride, np.asarray(task.X), gamma0, comparisons)
    status, message = _outcome(main, None, found.of["f"], RESOLVED)
    details = {"ranks": final_ranks(main.trajectories), "tolerance": EXACT_TOL, "errors": relative_errors(found.of["f"])}
    return solution(theory, task, gamma0, method.name, found.of, kernels, status, message, details)


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


PREDICTIONS = 2**16
"""Predictions at test points, over all times, that cost little beside compiling a step."""


def prediction_steps(prepared: Prepared, wanted: tuple[int, ...] | None, steps: int, stride: int) -> frozenset[int]:
    """The steps at which test points are predicted, ``stride`` per reported time."""
    if wanted is not None:
        return frozenset(t * stride for t in wanted)
    tests = 0 if prepared.test_inputs is None else len(prepared.test_inputs[0])
    if tests <= 3 * len(prepared.x) or tests * (steps + 1) <= PREDICTIONS:  # a training point costs three passes forward
        return frozenset(range(0, steps * stride + 1, stride))
    return frozenset(int(t) * stride for t in np.linspace(0, steps, 21).round())


EXACT_TOL = 1e-15
"""Share of the squared size below which a direction is rounding noise."""


RESOLVED = 0.05
"""Largest standard error of f, and largest violation of <(W x) y> = <x (W^T y)>, relative to their sizes, that passes."""


REMEDIES = {
    SAMPLING: "raise samples or replicates",
    "finite samples": "raise samples",
    "truncation": "lower tol, with samples to match",
    "step size": "raise substeps",
}
"""What helps against each part of the error of f."""
SMALL_TOLERANCE = 1e-2
"""Up to here the truncation is of first order in the tolerance; above, it falls more slowly (by its 0.6th power between 0.1 and 0.03,
measured on a hundred MNIST images), and the square root is assumed."""


def _per_difference(tol: float, other: float) -> float:
    """Truncation error at a tolerance per difference between another and it."""
    order = 1.0 if tol <= SMALL_TOLERANCE else 0.5
    return 1 / ((other / tol) ** order - 1)


def _ranks(runs: Runs[Trajectory]) -> list[dict[Home, int]]:
    return [dict(tr.used) for tr in runs.trajectories]


def _sampling_order(main: Runs[Trajectory], half: Runs[Trajectory]) -> float | None:
    """By which power of the samples the scatter of f falls; None where nothing scatters."""
    sizes = [float(np.sqrt(np.mean(scatter(runs.series("f")) ** 2))) for runs in (main, half)]
    if not min(sizes) > 0.0:
        return None
    count = [source.samples for runs in (main, half) if isinstance(source := runs.trajectories[0].source, SampledColumns)]
    return float(np.log(sizes[1] / sizes[0]) / np.log(count[0] / count[1]))


def _interrupted(trajectory: Trajectory) -> bool:
    return trajectory.failure is not None and trajectory.failure.status is Status.INTERRUPTED


def _outcome(main: Runs[Trajectory], samples: int | None, f: Estimate, target: float) -> tuple[Status, str]:
    """How the march ended; success needs the identity of transposition and the estimated error to be small."""
    failures = [tr.failure for tr in main.trajectories if tr.failure is not None]
    if failures:
        bad = min(failures, key=lambda failure: failure.time)
        last = f"the last good state is step {(bad.time - 1) // main.stride}" if bad.time else "no state is good"
        return bad.status, f"{bad.quantity} at step {-(-bad.time // main.stride)}; {last}; {bad.status.advice}"
    worst = max(max(tr.used.values()) for tr in main.trajectories)
    if samples is not None and worst > samples // 8:
        return Status.RANK_SATURATED, f"{worst} directions for {samples} samples; {Status.RANK_SATURATED.advice}"
    parts = relative_errors(f)
    relative = float(np.linalg.norm(list(parts.values())))
    identity = max(float(tr.identity.max()) for tr in main.trajectories)
    if not relative <= target:  # NaN does not pass
        most = max(parts, key=lambda kind: parts[kind] if np.isfinite(parts[kind]) else np.inf)
        return (
            Status.STALLED,
            f"the estimated error of f is {relative:.1%} of its size, mostly {most} ({parts[most]:.1%}): {REMEDIES[most]}",
        )
    if not identity <= RESOLVED:
        return Status.STALLED, f"<(W x) y> and <x (W^T y)> differ by {identity:.1%} of their size; {Status.STALLED.advice}"
    return Status.COMPLETED, f"all steps done, at most {worst} directions"
