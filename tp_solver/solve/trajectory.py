"""Drives the march through time: capacity, divergence, prediction at new points, progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.errors import RangeError
from tp_solver.numerics.basis import Basis
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.numerics.sites import Placement
from tp_solver.solve.agreement import agreed_interrupt
from tp_solver.solve.checkpoint import Checkpoint
from tp_solver.solve.chunk import Limits, Pace, advance, at_index, consumed, longest
from tp_solver.solve.journal import Journal, Midway
from tp_solver.solve.layout import ABOVE, BELOW, Columns, Home, Layout
from tp_solver.solve.march import (
    LADDER,
    Batch,
    Moment,
    NewPoints,
    Setting,
    SiteState,
    at_time,
    grown,
    initial_state,
    new_points,
    predict,
    ranks,
    response_key,
    roomier,
)
from tp_solver.solve.moving import Course
from tp_solver.solve.solution import Status


@dataclass(frozen=True)
class Failure:
    """Why a march stopped: the kind, the quantity, and the first bad time."""

    status: Status
    quantity: str
    time: int


@dataclass(frozen=True)
class Trajectory:
    """One replicate: arrays over the times 0..last, and the final state.

    Attributes:
        f: (T + 1, P, K); loss: (T + 1,).
        tested: the times that f_new (times, P_new, K) holds, ascending; None without new points.
        identity: (T + 1,) relative violation of <(W x) y> = <x (W^T y)>.
        recorded: the times that the next four hold, ascending.
        ntk: (times, P, P), without lr; coordinates: variable -> (times, P, R); squares: variable -> (times, P); responses: product
            (see ``response_key``) -> (times, P, K).
        fields: time -> variable -> (P, S) samples.
        state: the state at the last good time, before an update; source: its columns.
        met: per matrix and product, how many opposite directions it could respond to at that time.
        used: final rank of every basis.
        failure: what stopped the march before its last step, or None.
    """

    f: np.ndarray
    f_new: np.ndarray | None
    tested: tuple[int, ...]
    loss: np.ndarray
    ntk: np.ndarray
    identity: np.ndarray
    recorded: tuple[int, ...]
    coordinates: Mapping[str, np.ndarray]
    squares: Mapping[str, np.ndarray]
    responses: Mapping[str, np.ndarray]
    fields: Mapping[int, Mapping[str, np.ndarray]]
    state: SiteState
    met: Mapping[str, Mapping[tuple[bool, str], int]]
    source: SampledColumns | ExactColumns
    capacity: Mapping[Home, int]
    used: Mapping[Home, int]
    failure: Failure | None

    def index(self, time: int) -> int:
        """Where a time stands among the recorded ones.

        Raises:
            RangeError: for a time that was not recorded.
        """
        if time not in self.recorded:
            raise RangeError("t", time, f"a recorded step: {_few(self.recorded)}", "solve with method=March(recorded=(...))")
        return self.recorded.index(time)


def _few(times: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, times[:12]))
    return f"{shown}, ..., {times[-1]}" if len(times) > 12 else shown


MARGIN = 6
"""Free directions per basis below which it is enlarged before the next step; a step that needs more starts the run again."""
RUNAWAY = 1e8
"""A loss this many times the larger of 1 and its first value counts as divergence."""


def march(
    setting: Setting,
    columns: Columns,
    source: SampledColumns | ExactColumns,
    placement: Placement,
    batch: Batch,
    course: Course,
    capacity: Mapping[Home, int],
    test_inputs: tuple[np.ndarray, np.ndarray] | None,
    keep: frozenset[int],
    recorded: frozenset[int],
    tested: frozenset[int],
    checkpoint: Checkpoint,
    affordable: Callable[[Mapping[Home, int]], bool],
    tick: Callable[[int, float, int], None],
) -> Trajectory:
    """Step through all updates of the course; a step that needs more room is repeated with more.

    ``test_inputs`` are coordinates (P_new, r) and squared norms (P_new,) outside the training inputs; ``keep`` are the times whose
    samples are kept, ``recorded`` those whose kernels and responses are, ``tested`` those at which the new points are predicted.
    The run goes on from its checkpoint, if there is one, and stops where bases would need room that is not ``affordable``.
    """
    dtype = batch.x.dtype
    steps, stream = len(course.p), _stream(source)
    plan, points = setting.plan, len(batch.x)
    setting = replace(setting, mesh=placement.mesh)
    margin = MARGIN if isinstance(source, SampledColumns) else 0  # exact sites are as many as columns: more room is another run
    stops = keep if test_inputs is None else keep | tested
    new_inputs: NewPoints | None = None
    failure: Failure | None = None
    now = checkpoint.load(plan, placement) or _start(columns, source, placement, capacity, course, dtype)
    pace = Pace()
    while now.t <= steps:
        t, journal = now.t, now.journal
        recording = t in recorded or t in keep
        wanted = replace(setting, recording=recording)
        length = longest(wanted, points, max(now.capacity.values()), dtype.itemsize)
        count = _together(t, min(pace.steps(length) if journal.loss else 1, steps + 1 - t), recorded | keep, stops)
        first = float(journal.loss[0]) if journal.loss else np.inf
        limits = Limits(np.int32(count), np.int32(margin), dtype.type(RUNAWAY * max(1.0, first)))
        nows = course.over(np.minimum(np.arange(t, t + length), steps), stream, dtype)
        try:
            chunk = advance(wanted, length, now.state, batch, nows, limits)
        except KeyboardInterrupt:
            if consumed(now.state):
                raise
            failure = Failure(Status.INTERRUPTED, "Ctrl-C", t)
            break
        pace.made(chunk.done)
        moments = jax.device_get(chunk.moments)
        good = chunk.done if chunk.healthy else chunk.done - 1
        for k in range(good):
            journal.note(t + k, at_index(moments, k))
        t += good
        used = ranks(plan, moments.used[chunk.done - 1])
        if not chunk.healthy:
            last, held = (chunk.last, ranks(plan, moments.used[good - 1])) if good else (now.last, now.held)
            now = Midway(t, now.capacity, held, chunk.state, _restored(last, chunk.last, held), journal)
            if all(used[h] <= now.capacity[h] for h in now.capacity):
                failure = _trouble(at_index(moments, good), t)
                break
            more = roomier(now.capacity, used)
            if not affordable(more):
                failure = _outgrown(more, t)
                break
            now, new_inputs = _start(columns, source, placement, more, course, dtype), None  # directions were lost: again, with more room
            continue
        if t - 1 in keep:
            journal.fields[t - 1] = {v: np.asarray(a) for v, a in chunk.fields.items()}
        if test_inputs is not None and t - 1 in tested:
            if new_inputs is None:
                new_inputs = new_points(columns, *test_inputs, source, chunk.last.size, placement, dtype)
            placed = new_inputs if course.static else at_time(new_inputs, _growth(course, t - 1))
            journal.new.append(np.asarray(predict(setting, chunk.last, journal.met, placed, batch.gamma0)))
        state, capacity = chunk.state, now.capacity
        if t <= steps and isinstance(source, SampledColumns) and any(capacity[h] - used[h] < margin for h in capacity):
            capacity = roomier(capacity, {h: n if capacity[h] - n >= margin else capacity[h] for h, n in used.items()})
            if not affordable(capacity):
                failure = _outgrown(capacity, t)
                now = Midway(t, now.capacity, used, state, chunk.last, journal)
                break
            state = grown(state, columns, source, placement, capacity, _growth(course, t))
        now = Midway(t, capacity, used, state, chunk.last, journal)
        if t > steps or checkpoint.due:
            checkpoint.save(now)
        pressed = agreed_interrupt(partial(_tell, tick, journal, moments.used, range(t - good, min(t, steps))))
        if pressed and t <= steps:  # after the last step nothing is left to cut: a pending interrupt cuts the next run
            checkpoint.save(now)
            failure = Failure(Status.INTERRUPTED, "Ctrl-C", t)
            break
    return _finished(setting, source, batch, now, test_inputs, tested, failure)


def _tell(tick: Callable[[int, float, int], None], journal: Journal, used: np.ndarray, times: range) -> None:
    """Tell of every step of a call: the loss before it, and the largest rank."""
    for t, each in zip(times, used, strict=False):
        tick(t + 1, float(journal.loss[t]), int(max(each)))


def _together(t: int, most: int, recorded: frozenset[int], stops: frozenset[int]) -> int:
    """How many steps from time t on are all recorded or all not, the last of them perhaps one to stop at."""
    for s in range(t, t + most - 1):
        if s in stops or (s + 1 in recorded) != (t in recorded):
            return s - t + 1
    return most


def _start(
    columns: Columns,
    source: SampledColumns | ExactColumns,
    placement: Placement,
    capacity: Mapping[Home, int],
    course: Course,
    dtype: Any,
) -> Midway:
    """Time zero."""
    hidden = {h: n for h, n in capacity.items() if h.side is not None}
    observers = {h.basis: n for h, n in capacity.items() if h.side is None}
    state = initial_state(columns, source, hidden, observers, course.carries, placement, dtype)
    return Midway(0, dict(capacity), dict.fromkeys(capacity, 0), state, state, Journal())


def _finished(
    setting: Setting,
    source: SampledColumns | ExactColumns,
    batch: Batch,
    now: Midway,
    test_inputs: tuple[np.ndarray, np.ndarray] | None,
    tested: frozenset[int],
    failure: Failure | None,
) -> Trajectory:
    """The record of a run that is over."""
    journal = now.journal
    final = now.held if journal.f else dict.fromkeys(now.capacity, 0)
    return Trajectory(
        f=np.array(journal.f).reshape(-1, *batch.y.shape),
        f_new=np.array(journal.new).reshape(-1, len(test_inputs[0]), batch.y.shape[1]) if test_inputs is not None else None,
        tested=tuple(sorted(tested))[: len(journal.new)],
        loss=np.array(journal.loss),
        ntk=np.array([kept["ntk"] for kept in journal.records.values()]),
        identity=np.array(journal.identity),
        recorded=tuple(journal.records),
        coordinates=_stacked(journal.group("coordinates"), _widths(setting.plan, final)),
        squares={v: np.array(arrays) for v, arrays in journal.group("squares").items()},
        responses=_stacked(journal.group("responses"), _response_widths(setting.plan, final)),
        fields=journal.fields,
        state=now.last,
        met=journal.met,
        source=source,
        capacity=now.capacity,
        used=final,
        failure=failure,
    )


def _restored(last: SiteState, later: SiteState, held: Mapping[Home, int]) -> SiteState:
    """The last good state, whose bases a further step has used up: bases only grow, so its rows are the first ``held`` of theirs."""

    def basis(b: Basis, capacity: int, count: int) -> Basis:
        rows = jnp.where(jnp.arange(capacity)[:, None] < count, b.rows[..., :capacity, :], 0.0)
        return Basis(rows, jnp.asarray(count, b.used.dtype), b.scale)

    operators = {
        m: s._replace(
            below=basis(later.operators[m].below, s.eps_u.shape[-2], held[Home(m, BELOW)]),
            above=basis(later.operators[m].above, s.eps_r.shape[-2], held[Home(m, ABOVE)]),
        )
        for m, s in last.operators.items()
    }
    observers = {k: basis(b, b.capacity, held[Home(k)]) for k, b in later.observers.items()}
    return SiteState(operators, last.sites, observers, last.velocity)


def first_capacity(columns: Columns, points: int) -> dict[Home, int]:
    """Room for a first guess: a few directions per data point. Of many points nobody knows, and the first step tells; a step costs as much
    as its room, so that this is no large one."""
    guess = min(4 * points, 76) + 20
    room = next((n for n in LADDER if n >= guess), guess)
    homes = [Home(m, side) for m in columns.plan.hidden for side in ("below", "above")]
    return {h: room for h in (*homes, *(Home(k) for k in columns.plan.observers))}


def _growth(course: Course, t: int) -> dict[str, float]:
    return {m: course.growth(m, t) for m in course.scales}


def _stream(source: SampledColumns | ExactColumns) -> int:
    """The seed of the noise in training."""
    return int(np.random.default_rng([20261124, *source.seed]).integers(2**31)) if isinstance(source, SampledColumns) else 0


def _trouble(moment: Moment, t: int) -> Failure:
    """The first recorded quantity that is not finite, or a loss that runs away."""
    quantities = {"f": moment.f, "the loss": moment.loss}
    quantities |= {} if moment.record is None else {"the tangent kernel": moment.record.ntk}
    quantities |= {f"the kernel of {v}": a for v, a in moment.squares.items()}
    quantities |= {f"the update of {m}": a for m, a in moment.weights.items()}
    for name, values in quantities.items():
        if not np.isfinite(values).all():
            return Failure(Status.NONFINITE, name, t)
    return Failure(Status.DIVERGED, "the loss", t)


def _outgrown(capacity: Mapping[Home, int], t: int) -> Failure:
    most = max(capacity.values())
    return Failure(Status.RANK_SATURATED, f"no memory for bases of {most} directions (March(memory=...) says how much it may take)", t)


def _widths(plan: Layout, used: Mapping[Home, int]) -> dict[str, int]:
    """Rank of the basis that every recorded coordinate array refers to."""
    out = {plan.coordinate_key(s.arg, h): used[h] for s in plan.hidden_products() for h in [plan.side_of(s)]}
    return out | {v: used[home] for v, home in plan.homes.items()}


def _response_widths(plan: Layout, used: Mapping[Home, int]) -> dict[str, int]:
    return {response_key(s.matrix, s.transpose, s.arg): used[plan.side_of(s).opposite] for s in plan.hidden_products()}


def _stacked(arrays: Mapping[str, list[np.ndarray]], widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Stack over times, the last axis cut or padded to the final rank."""
    out = {}
    for key, parts in arrays.items():
        out[key] = np.zeros((len(parts), len(parts[0]), widths[key]), parts[0].dtype)
        for row, part in zip(out[key], parts, strict=True):
            shared = min(row.shape[1], part.shape[1])
            row[:, :shared] = part[:, :shared]
    return out
