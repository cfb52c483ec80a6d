"""The self-consistent solution: sweeps over the two-time equations until errors and kernels reproduce themselves.

Bordelon & Pehlevan (2022) with three changes (``theory/feature_learning.md``): a sweep goes from the lowest population of
sites to the highest and passes new kernels up at once; the errors take a causal quasi-Newton step with the tangent kernel;
responses are whitened Stein averages. Noise is fixed over the sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.errors import BudgetError
from tp_solver.limit.equations import LimitEquations
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.program.statements import Product
from tp_solver.program.task import Task
from tp_solver.program.training import GradientFlow
from tp_solver.solve.formal import formal_responses
from tp_solver.solve.layout import Home
from tp_solver.solve.march import Batch, SiteState
from tp_solver.solve.methods import FixedPoint
from tp_solver.solve.prepare import Prepared
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
from tp_solver.solve.site_process import sides, site_populations, tangent_kernel
from tp_solver.solve.solution import Solution, Status
from tp_solver.solve.stored import StoredKernels, averaged, final_states, reported_kernels
from tp_solver.solve.sweep import Noise, NonFinite, Swept, corrected, errors, lazy_start, operations, sweep
from tp_solver.solve.two_time import Facing, Grid

Tick = Callable[[int, float, int], None]
EXACT_TRUNCATION = 1e-13
"""Share of a variance below which a direction is rounding noise, on exact sites."""
PATIENCE = 10
"""Sweeps without progress before giving up."""
RUNAWAY = 3.0
"""Residual of a sweep that has left the basin."""
STEADY = 0.1
"""Residual from which on the horizon moves on, and pivots are kept where possible, so that the last sweeps are smooth."""


@dataclass
class Iteration:
    """One replicate: its sweeps, and where they ended.

    Attributes:
        f: (T, P, K); f_new: (T, P_new, K) or None; loss: (T,).
        e: errors that the last sweep used; kernels: two-time kernels after it.
        residuals: per sweep, |p Delta(f) - e| / |e|; changes: per sweep, largest relative change of a kernel.
    """

    f: np.ndarray
    loss: np.ndarray
    e: np.ndarray
    kernels: Mapping[str, Facing]
    source: SampledColumns | ExactColumns
    f_new: np.ndarray | None = None
    residuals: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    status: Status = Status.MAX_ITERATIONS
    where: str = ""
    operations: float = 0.0
    reported: dict[str, np.ndarray] = field(default_factory=dict)
    samples: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    state: SiteState | None = None

    @property
    def coordinates(self) -> dict[str, np.ndarray]:
        """ "matrix.side:variable" -> (T, P, k) coordinates whose inner products are the two-time covariances on that side."""
        T, P = self.f.shape[:2]
        out: dict[str, np.ndarray] = {}
        for f in self.kernels.values():
            rows = f.factor.rows.reshape(T, len(f.side.variables), P, -1)
            out |= {f"{f.side.key}:{v}": rows[:, k] for k, v in enumerate(f.side.variables)}
        return out

    @property
    def rank(self) -> int:
        """Largest number of noise directions."""
        return max((f.factor.rank for f in self.kernels.values()), default=0)


def solve_fixed_point(
    theory: LimitEquations, task: Task, gamma0: float, samples: int, replicates: int, seed: int, method: FixedPoint, tick: Tick
) -> Solution:
    """Independent replicates; all-linear programs take exact sites, one replicate and no sampling error."""
    exact = nonlinear_statement(theory.program) is None
    flow = isinstance(theory.training, GradientFlow)
    steps = theory.training.steps
    truncation = method.truncation if method.truncation is not None else EXACT_TRUNCATION if exact else min(1e-2, 4 / samples)
    sources = [ExactColumns()] if exact else [SampledColumns(samples, (seed, k)) for k in range(replicates)]
    finest = 2 * method.substeps if flow else 1  # a flow is extrapolated from this many Euler steps and half as many

    def runs(substeps: int) -> Runs[Iteration]:
        prepared = prepared_in_steps(theory, task, substeps)
        out: list[Iteration] = []
        for source in sources:
            before = out[-1] if out else None
            out.append(_iterate(prepared, gamma0, range(0, steps * substeps + 1, substeps), truncation, source, method, before, tick))
            if out[-1].status is not Status.CONVERGED:
                break
        return Runs(tuple(out), substeps)

    _check_budget(prepared_in_steps(theory, task, finest), steps * finest, samples, len(sources), method, exact)
    with jax.enable_x64(True), np.errstate(over="ignore", invalid="ignore"):  # non-finite fields are looked for, and reported
        main = runs(finest)
        healthy = all(run.status is Status.CONVERGED for run in main.trajectories)
        groups = {MAIN: main} | ({LONG_STEPS: runs(method.substeps)} if flow and healthy else {})
        prepared = prepared_in_steps(theory, task, finest)
        found = estimates(groups, [STEP_SIZE] if LONG_STEPS in groups else [], prepared).of
        good = [run for run in main.trajectories if run.state is not None]
        if exact and good:
            _exact_responses(good[0], prepared, gamma0, finest)
    every = [run for runs in groups.values() for run in runs.trajectories]
    means, spreads = averaged([run.reported for run in good])
    fields = {
        t: {k: np.concatenate([run.samples[t][k] for run in good]) for k in good[0].samples[t]} for t in (good[0].samples if good else ())
    }
    kernels = StoredKernels(
        prepared,
        means,
        spreads,
        fields,
        tuple(run.state for run in good if run.state is not None),
        tuple(run.source for run in good),
        np.asarray(task.X),
        gamma0,
    )
    status, message = _outcome(every, samples, exact)
    details = {
        "iterations": [len(run.residuals) for run in main.trajectories],
        "residuals": [run.residuals for run in main.trajectories],
        "kernel changes": [run.changes for run in main.trajectories],
        "operations": max(run.operations for run in main.trajectories),
        "ranks": {f"{key}": max(run.kernels[key].factor.rank for run in main.trajectories) for key in main.trajectories[0].kernels},
        "truncation": truncation,
        "exact": exact,
        "samples": samples,
        "replicates": len(main.trajectories),
        "errors": relative_errors(found["f"]),
    }
    return solution(theory, task, gamma0, method.name, found, kernels, status, message, details)


def _iterate(
    prepared: Prepared,
    gamma0: float,
    times: range,
    truncation: float,
    source: SampledColumns | ExactColumns,
    method: FixedPoint,
    before: Iteration | None,
    tick: Tick,
) -> Iteration:
    """Sweep until the residual of the errors is below ``tol`` and that of the kernels below ten times that.

    ``times`` are the reported ones among the Euler steps. A replicate starts from the kernels and errors of the one before:
    the fixed point does not depend on the start. Where a sweep runs away, learning is halted at a horizon (errors beyond it are
    zero, so everything stays as it is), which moves on as the part before it settles: by causality that part stands alone.
    The truncation of the responses comes down with the square of the residual: inverse factors amplify what is not consistent.
    """
    setting = prepared.setting
    batch = prepared.batch(gamma0, truncation, jnp.float64)
    grid = Grid(times.stop, len(prepared.x), truncation)
    room = min(64, grid.times * grid.points)
    noise = Noise(prepared.columns, source, {Home(s.matrix, s.side): room for pair in sides(setting.plan).values() for s in pair})
    start = lazy_start(setting, batch, noise, grid)
    e, kernels = (start.e, start.kernels) if before is None else (before.e, dict(before.kernels))
    T, P, K = e.shape
    run = Iteration(np.full((T, P, K), np.nan), np.full(T, np.nan), e, kernels, source)
    last: Swept | None = None
    horizon = stride = T
    coarse, within = max(truncation, 1e-2), np.inf
    safe, safe_e, safe_kernels = 0, start.e, start.kernels
    progress: list[float] = []
    try:
        for _ in range(method.max_iterations):
            slack = 2.0 if progress and within < STEADY else 1.0
            if not progress:
                coarse, within = max(truncation, 1e-2), np.inf
            elif progress[-1] < STEADY:
                coarse = max(truncation, min(coarse / 4, progress[-1] ** 2))
            try:
                swept = sweep(setting, batch, noise, kernels, e, replace(grid, truncation=coarse, slack=slack), frozenset((0, times[-1])))
                loss, found = (np.asarray(a) for a in errors(setting, batch, jnp.asarray(swept.f)))
                within = _relative((found - e)[:horizon], e[:horizon])
                wild = within > RUNAWAY
            except NonFinite:
                if horizon == safe + 1:
                    raise
                wild = True
            if wild and horizon > safe + 1:
                run.residuals.append(np.inf)
                run.changes.append(np.inf)
                stride = max(1, min(stride, horizon - safe) // 2)
                horizon, progress = safe + stride, []
                e, kernels = _halted(safe_e, horizon), safe_kernels
                continue
            last, kernels = swept, swept.kernels
            run.f, run.loss, run.e, run.kernels = swept.f, loss, e, kernels
            run.residuals.append(_relative(found - e, e))
            run.changes.append(swept.change)
            run.operations = max(run.operations, operations(swept.sites, kernels))
            tick(len(run.residuals), float(loss[-1]), run.rank)
            if run.residuals[-1] <= method.tol and swept.change <= 10 * method.tol and coarse == truncation:
                run.status = Status.CONVERGED
                break
            progress.append(max(within, swept.change))
            ahead = _corrected_errors(prepared, batch, swept, e, start.kernel)
            if horizon < T and within < STEADY:
                safe, safe_e, safe_kernels = horizon, ahead, kernels
                horizon, stride, progress = min(T, horizon + 2 * stride), 2 * stride, []
            if len(progress) > PATIENCE and min(progress[-PATIENCE:]) > 0.9 * min(progress[:-PATIENCE]):
                run.status = Status.STALLED
                break
            e = _halted(ahead, horizon)
    except NonFinite as error:
        run.status, run.where = Status.NONFINITE, str(error)
    except KeyboardInterrupt:
        run.status, run.where = Status.INTERRUPTED, "an interrupt"
    if last is not None:
        _record(run, last, prepared, batch, noise, times.step)
    return run


def _corrected_errors(prepared: Prepared, batch: Batch, swept: Swept, e: np.ndarray, lazy: np.ndarray) -> np.ndarray:
    """Errors after the quasi-Newton step; with several outputs the tangent kernel is that before training, ``lazy`` (P, P)."""
    setting = prepared.setting
    if setting.scalar:
        kernel = tangent_kernel(setting.plan, {m: float(r) for m, r in batch.rates.items()}, swept.grams)
    else:
        kernel = np.broadcast_to(lazy, (len(e), *lazy.shape))
    bound = 10 * max(1.0, float(np.max(np.abs(swept.f))), float(np.max(np.abs(prepared.y))))
    return np.asarray(corrected(setting, batch, jnp.asarray(swept.f), jnp.asarray(e), jnp.asarray(kernel), bound))


def _halted(e: np.ndarray, horizon: int) -> np.ndarray:
    """Errors (T, P, K) with nothing learned from ``horizon`` on."""
    return np.where(np.arange(len(e))[:, None, None] < horizon, e, 0.0)


def _record(run: Iteration, swept: Swept, prepared: Prepared, batch: Batch, noise: Noise, stride: int) -> None:
    """Read off what is reported at every ``stride``-th time; the samples themselves are let go."""
    plan = prepared.setting.plan
    run.state, run.f_new = final_states(prepared, batch, noise, swept, run.e, run.source)
    run.reported = reported_kernels(prepared, swept, stride)
    if prepared.setting.scalar:
        run.reported["ntk"] = tangent_kernel(plan, prepared.kernel_rates, swept.grams)[::stride]
    for one in swept.runs:
        for t, kept in one.fields.items():
            for layer in plan.program.layers:
                for name, v in (("h", layer.pre), ("z", plan.backward.adjoints.get(layer.post))):
                    if v in kept:
                        run.samples.setdefault(t // stride, {})[f"{name}/{layer.index}"] = kept[v].T


def _exact_responses(run: Iteration, prepared: Prepared, gamma0: float, stride: int) -> None:
    """On exact sites single entries of A and B are known too, not only their action (see :mod:`tp_solver.solve.formal`)."""
    plan = prepared.setting.plan
    formal = formal_responses(prepared, run, gamma0)
    times = range(0, len(run.f), stride)
    for layer in plan.program.layers:
        pair = next(
            (p for p in reversed(plan.backward.pairs) if p.matrix in plan.hidden and p.input == layer.post and not p.transpose), None
        )
        if pair is not None:
            forward, back = Product("", pair.matrix, pair.input, False), Product("", pair.matrix, pair.adjoint, True)
            for name, product, opposite in (("A", forward, back), ("B", back, forward)):
                entries = [[formal.response(product, opposite, t, s) for s in times] for t in times]
                run.reported[f"{name}/{layer.index}"] = np.array(entries).transpose(0, 2, 1, 3)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a) / max(float(np.linalg.norm(b)), np.finfo(np.float64).tiny))


def _outcome(runs: list[Iteration], samples: int, exact: bool) -> tuple[Status, str]:
    """The first replicate that failed speaks for all."""
    bad = next((run for run in runs if run.status is not Status.CONVERGED), None)
    worst = max(run.rank for run in runs)
    if bad is None and not exact and worst > samples // 8:
        return Status.RANK_SATURATED, f"{worst} directions for {samples} samples; {Status.RANK_SATURATED.advice}"
    speaks = bad or runs[0]
    state = f"residual {speaks.residuals[-1]:.1e}, kernel change {speaks.changes[-1]:.1e}" if speaks.residuals else "no sweep was finite"
    if bad is None:
        return Status.CONVERGED, f"{max(len(run.residuals) for run in runs)} sweeps, {state}, at most {worst} directions"
    where = f"{bad.where}, in sweep {len(bad.residuals) + 1}; " if bad.where else f"after {len(bad.residuals)} sweeps: "
    return bad.status, f"{where}{state}; {bad.status.advice}"


def _check_budget(prepared: Prepared, steps: int, samples: int, replicates: int, method: FixedPoint, exact: bool) -> None:
    """Refuse what would not fit, before anything is compiled.

    Raises:
        BudgetError: with three ways to cut.
    """
    plan = prepared.setting.plan
    rows = (steps + 1) * len(prepared.x)
    vectors = sum(len(side.variables) for pair in sides(plan).values() for side in pair)
    kept = sum(len(p.kept) for p in site_populations(plan))
    sites = rows if exact else samples
    squares = 6 * sum(len(s.variables) * max(len(a.variables) for a in pair) for pair in sides(plan).values() for s in pair)
    squares += 4 * replicates * plan.program.depth
    gib = 8 * rows * (sites * (vectors + kept) + rows * squares) / 2**30
    if gib > method.memory:
        raise BudgetError(
            "memory",
            f"{gib:.1f} GiB for {rows} rows (times x points) and {sites} samples",
            f"at most {method.memory:g} GiB",
            "lower samples, use fewer steps or points, or use method='march', which keeps no two-time arrays "
            "(or allow more: FixedPoint(memory=...))",
        )
