"""``sweep``: many runs over named parameters, in process or by any executor, kept in a folder and never computed twice."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tp_solver import checks, plot
from tp_solver.errors import InputError
from tp_solver.restore import load
from tp_solver.sweeps.figures import Line, sweep_figure
from tp_solver.sweeps.folder import Failure, Folder
from tp_solver.sweeps.grid import Plan, Point, Values, plan, tasks_of
from tp_solver.sweeps.runs import canonical
from tp_solver.sweeps.tables import UNKNOWN, Outcome, SweepTable, estimator
from tp_solver.sweeps.worker import run_point

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Future(Protocol):
    """What ``submit`` returns."""

    def done(self) -> bool:
        """Whether the call has ended."""
        ...

    def result(self) -> Any:
        """Wait for the call, and return its answer or raise its error."""
        ...


class State(StrEnum):
    """Where a point stands."""

    DONE = "done"
    FAILED = "failed"
    RUNNING = "running"
    MISSING = "missing"


@dataclass(frozen=True, eq=False, repr=False)
class SweepStatus:
    """Where all points stand; it prints as a table, with the errors of those that failed.

    Attributes:
        states: state of every point, in the order of the sweep.
        labels: the points in words.
        failures: position in that order -> error, of the failed ones.
    """

    states: tuple[State, ...]
    labels: tuple[str, ...]
    failures: Mapping[int, Failure]

    def count(self, state: State | str) -> int:
        """How many points are in a state: done, failed, running or missing."""
        return self.states.count(State(checks.one_of("state", str(state), tuple(State))))

    @property
    def complete(self) -> bool:
        """Whether every point is done."""
        return all(s is State.DONE for s in self.states)

    def __str__(self) -> str:
        lines = [f"{self.count(state):>7} {state}" for state in State]
        lines.append(f"{len(self.states):>7} points")
        return "\n".join([*lines, *(f"{self.labels[k]}\n    {failure}" for k, failure in self.failures.items())])

    __repr__ = __str__


@dataclass(frozen=True, eq=False)
class SweepResult:
    """A finished point; its record is read when it is asked for.

    Attributes:
        values: parameter -> value.
        name: hash of the run's inputs, the name of its folder.
    """

    values: Values
    name: str
    _point: Point
    _folder: Folder

    @cached_property
    def record(self) -> Outcome:
        """The solution or the ensemble.

        Raises:
            FileFormatError: if the entry was damaged meanwhile.
        """
        return load(self._folder.record_path(self.name))


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """A sweep and its folder; :func:`sweep` makes one. With an executor it answers at once, for what is finished so far.

    Attributes:
        plan: the parameters and the points.
        folder: where the results lie.
    """

    plan: Plan
    folder: Folder
    _futures: Mapping[str, Future] = field(default_factory=dict)

    def status(self) -> SweepStatus:
        """Which points are done, failed, running (submitted by this process and not ended) or missing."""
        states = tuple(map(self._state, self.plan.points))
        failures = {k: f for k, s in enumerate(states) if s is State.FAILED and (f := self.folder.failure(self.plan.points[k].name))}
        return SweepStatus(states, tuple(map(self.plan.label, self.plan.points)), failures)

    def results(self) -> tuple[SweepResult, ...]:
        """The finished points, in the order of the sweep; records are read when asked for."""
        return tuple(SweepResult(p.values, p.name, p, self.folder) for p in self.plan.points if self.folder.finished(p.name))

    def wait(self, progress: bool | None = None) -> Sweep:
        """Wait for what was submitted.

        Args:
            progress: show a bar on stderr; None shows one in a terminal.

        Raises:
            InputError: if workers were lost, or wrote elsewhere; what they finished is kept, sweeping again goes on from there.
        """
        lost: list[tuple[Point, str]] = []
        points = {p.name: p for p in self.plan.points}
        try:
            with _bar(progress, len(self._futures)) as bar:
                for name, future in self._futures.items():
                    try:
                        future.result()
                        if self._state(points[name]) is State.MISSING:
                            lost.append((points[name], "it ended, but nothing of it is in the folder"))
                    except Exception as error:
                        lost.append((points[name], f"{type(error).__name__}: {error}"))
                    bar.update()
        except BaseException:
            _cancel(self._futures.values())
            raise
        if lost:
            point, why = lost[0]
            raise InputError(
                "executor", f"{len(lost)} lost of {len(self._futures)} points, first {self.plan.label(point)} ({why})"[:400],
                "workers that live, and share the folder", "the others are kept: sweep again with the same folder",
            )  # fmt: skip
        return self

    def retry(self, executor: Any = None) -> Sweep:
        """Try the failed points again, and no others.

        Args:
            executor: as for :func:`sweep`.

        Raises:
            InputError: as :func:`sweep`.
        """
        _check_executor(executor)
        failed = [p for p in self.plan.points if self._state(p) is State.FAILED]
        for point in failed:
            self.folder.forgive(point.name)
        return _run(replace(self, _futures={}), failed, executor, None)

    def table(self, quantity: Any = "loss") -> SweepTable:
        """A quantity at all points; it prints as a table.

        Args:
            quantity: "loss", "loss_test", "accuracy" or "accuracy_test" at the last step (of an ensemble the mean over seeds at
                its largest width), or a function of the solution or ensemble that returns a number.

        Raises:
            InputError: for an unknown quantity, or one that the task has no labels for.
        """
        name, estimate = estimator(quantity)
        found = [UNKNOWN] * len(self.plan.points)
        status = [str(s) for s in self.status().states]
        for k, result in enumerate(self._each()):
            if result is not None:
                found[k], status[k] = estimate(result.record), str(result.record.status)
        shape = self.plan.shape
        rows = tuple(tuple(a.labels[k] for a, k in zip(self.plan.axes, p.position, strict=True)) for p in self.plan.points)
        values, errors = (np.array([e[k] for e in found]).reshape(shape) for k in (0, 1))
        return SweepTable(name, self.plan.axes, values, errors, np.array(status, dtype=object).reshape(shape), rows)

    def plot(self, path: Any = None, quantity: Any = "loss", x: str | None = None, y: str | None = None) -> Figure:
        """Learning curves, and a quantity over two parameters as a heat map (over one, where no second one has several values).

        Args:
            path: where to save the figure (the suffix decides the format), or None.
            quantity: as for :meth:`table`.
            x, y: names of the parameters; by default the first two with several values. Over others the mean is taken.

        Raises:
            InputError: for unknown names, a path whose folder does not exist, or a sweep without finished points.
        """
        name, estimate = estimator(quantity)
        target = None if path is None else checks.figure_path(path)
        across, up = self._plane(x, y)
        loss = "loss_test" if name.endswith("_test") else "loss"
        pairs = zip(self.plan.points, self._each(), strict=True)
        lines = [Line.of(p.position, r.record, loss, estimate(r.record)) for p, r in pairs if r is not None]
        if not lines:
            raise InputError("plot", "a sweep without finished points", "at least one", "print(sweep.status()) says why")
        figure = sweep_figure(self.plan.axes, lines, across, up, name, loss)
        if target is not None:
            plot.save(figure, target)
        return figure

    def _plane(self, x: str | None, y: str | None) -> tuple[int, int | None]:
        varied = [k for k, a in enumerate(self.plan.axes) if len(a.labels) > 1] or [0]
        up = None if y is None else self.plan.axis("y", y)
        across = next((k for k in varied if k != up), 0) if x is None else self.plan.axis("x", x)
        if up is None:
            up = next((k for k in varied if k != across), None)
        if up == across:
            raise InputError("y", y, "another parameter than x", "leave both out to take the first two")
        return across, up

    def _each(self) -> Iterator[SweepResult | None]:
        """A result for every finished point, one at a time: records may be large."""
        for p in self.plan.points:
            yield SweepResult(p.values, p.name, p, self.folder) if self.folder.finished(p.name) else None

    def _state(self, point: Point) -> State:
        if self.folder.finished(point.name):
            return State.DONE
        future = self._futures.get(point.name)
        if future is not None and not future.done():
            return State.RUNNING
        return State.MISSING if self.folder.failure(point.name) is None else State.FAILED

    def __repr__(self) -> str:
        return f"sweep over {', '.join(a.name for a in self.plan.axes)} in {self.folder.path}\n{self.status()}"


def sweep(experiment: Any, grid: Any, folder: Any, executor: Any = None, progress: bool | None = None) -> Sweep:
    """Solve or simulate at all points of a grid, keep the results in a folder, and compute none of them twice.

    A point is named by the sha256 of all that its result depends on (program, parameterization, training rule, data, options),
    and its entry appears in the folder whole or not at all: whatever is interrupted or killed, calling ``sweep`` again, from
    this process or others, goes on where it stopped. A march keeps checkpoints until its point is finished (every 30 seconds,
    and every finished replicate), and whoever takes the point up goes on from them, to the same bits; nets that were cut are
    trained again. Points that fail keep their error, and only ``retry`` tries them again.
    Versions of packages are not part of the name: records say which ones wrote them.

    Args:
        experiment: a :class:`LimitRun` or :class:`EnsembleRun`, in which the parameters replace fields (``gamma0``, ``net``,
            ``parameterization``, ``seed``, ``widths``, ...) or fields of its training rule (``lr``, ``steps``, ...); or a
            function of the parameters that returns one, which is called here and never travels.
        grid: parameter -> sequence of values, for all combinations; or a list of points, each a mapping parameter -> value.
        folder: made if it is not there; values may be added to the grid later.
        executor: None runs one point after the other in this process. Else anything whose ``submit(function, *texts)`` returns
            a future with ``done()`` and ``result()``: ``concurrent.futures`` (processes by spawn), a Dask client, a submitit
            executor. Workers must see the same folder under the same path. The call then returns at once; ``.wait()`` waits.
        progress: show a bar over points on stderr; None shows one in a terminal.

    Raises:
        InputError: for malformed arguments, unknown parameters, repeated points, a folder in use for something else, or an
            executor that does not accept work; before any computation.
        FileFormatError: for a folder whose description is damaged, or of a later version.

    Example::

        def run(gamma0, depth):
            return tp.LimitRun(tp.mlp(depth=depth, activation=tp.tanh), tp.muP, training, task, gamma0=gamma0)

        done = tp.sweep(run, {"gamma0": [0.1, 1, 3], "depth": [1, 2, 3]}, "runs")
        print(done.table("loss"))
        done.plot("phases.png")
    """
    _check_executor(executor)
    if progress is not None:
        checks.flag("progress", progress)
    planned = plan(experiment, grid)
    home = Folder.opened(folder, tuple(a.name for a in planned.axes))
    made = Sweep(planned, home)
    return _run(made, [p for p in planned.points if made._state(p) is State.MISSING], executor, progress)


def _run(made: Sweep, points: Sequence[Point], executor: Any, progress: bool | None) -> Sweep:
    home = made.folder
    for name, task in tasks_of(points).items():
        home.keep_task(name, task)
    calls = {p.name: (str(home.path), canonical(p.tree), uuid.uuid4().hex) for p in points}
    if executor is None:
        with _bar(progress, len(calls)) as bar:
            for call in calls.values():
                run_point(*call)
                bar.update()
        return made
    futures: dict[str, Future] = {}
    try:
        for name, call in calls.items():
            futures[name] = executor.submit(run_point, *call)
    except BaseException as error:
        _cancel(futures.values())
        if not isinstance(error, Exception):
            raise
        raise InputError(
            "executor", f"a submit that fails ({type(error).__name__}: {error})", "an executor that accepts work", "is it shut down?"
        ) from error
    return replace(made, _futures=futures)


def _check_executor(executor: Any) -> None:
    wanted = "None, or an executor with submit(function, *arguments)"
    if isinstance(executor, type):
        raise InputError("executor", f"the class {executor.__name__}", wanted, f"call it: {executor.__name__}(...)")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise InputError("executor", executor, wanted, "for example concurrent.futures.ThreadPoolExecutor(2)")


def _cancel(futures: Any) -> None:
    """Take back what has not begun, where the executor can."""
    for future in futures:
        cancel = getattr(future, "cancel", None)
        if callable(cancel):
            cancel()


def _bar(progress: bool | None, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total, unit="point", file=sys.stderr, leave=False, disable=not (sys.stderr.isatty() if progress is None else progress)
    )
