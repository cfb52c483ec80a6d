"""From named parameters to the points of a sweep, every mistake answered before anything is computed."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.program.task import Task
from tp_solver.sweeps.runs import EnsembleRun, LimitRun, Run, run_name, run_to_tree, task_name

Values = Mapping[str, Any]
_EXAMPLE = '{"gamma0": [0.1, 1, 3], "lr": [0.1, 0.2]}'
_NET_WORDS = ("depth", "activation", "bias", "output_bias", "width")


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """A parameter and the labels of its values, in the order in which they are given."""

    name: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(v, (numbers.Real, np.number)) and not isinstance(v, bool) for v in self.values)


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One run of a sweep.

    Attributes:
        values: parameter -> value, as the user gave it.
        position: for every axis, which of its labels.
        run: what is solved or simulated.
        tree: the run as plain data.
        name: hash of the tree, the name of the point's folder.
    """

    values: Values
    position: tuple[int, ...]
    run: Run
    tree: Mapping[str, Any]
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All points of a sweep. ``shape`` is one length per axis for a grid, and the number of points for a list of points."""

    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    shape: tuple[int, ...]

    def axis(self, field: str, name: Any) -> int:
        """Where an axis is.

        Raises:
            InputError: for an unknown name.
        """
        names = [a.name for a in self.axes]
        return names.index(checks.one_of(field, name, names))

    def label(self, point: Point) -> str:
        """A point in words."""
        return ", ".join(f"{a.name} = {a.labels[k]}" for a, k in zip(self.axes, point.position, strict=True))


def plan(experiment: Any, grid: Any) -> Plan:
    """The points of a sweep.

    Args:
        experiment: a :class:`LimitRun` or :class:`EnsembleRun`, whose fields (and those of its training rule) the parameters
            replace; or a function of the parameters that returns one.
        grid: parameter -> sequence of values, for all combinations; or a sequence of points, each parameter -> value.

    Raises:
        InputError: for unknown parameters, empty grids, points that would repeat a run, or what is no run.
    """
    if not isinstance(experiment, (LimitRun, EnsembleRun)) and not callable(experiment):
        checks.instance(
            "experiment", experiment, (LimitRun, EnsembleRun), "a tp.LimitRun, a tp.EnsembleRun, or a function that returns one"
        )
    if isinstance(grid, Mapping):
        axes = tuple(_axis(name, checks.items(f"grid[{name!r}]", given, "values")) for name, given in _named(grid).items())
        positions = list(itertools.product(*(range(len(a.values)) for a in axes)))
        chosen: list[Values] = [{a.name: a.values[k] for a, k in zip(axes, place, strict=True)} for place in positions]
        shape = tuple(len(a.values) for a in axes)
    else:
        chosen = _listed(grid)
        axes = tuple(_axis_of_list(name, [values[name] for values in chosen]) for name in chosen[0])
        positions = [tuple(a.labels.index(_label(values[a.name])) for a in axes) for values in chosen]
        shape = (len(chosen),)
    _check_names(experiment, [a.name for a in axes])
    names: dict[int, str] = {}
    made: list[tuple[Run, Mapping[str, Any], str]] = []
    for values in chosen:
        run = _run(experiment, values)
        if id(run.task) not in names:  # the runs keep their tasks alive, so that ids stay theirs
            names[id(run.task)] = task_name(run.task)
        tree = run_to_tree(run, names[id(run.task)])
        made.append((run, tree, run_name(tree)))
    points = tuple(Point(v, p, *m) for v, p, m in zip(chosen, positions, made, strict=True))
    out = Plan(axes, points, shape)
    _check_different(out)
    return out


def tasks_of(points: Iterable[Point]) -> dict[str, Task]:
    """The different tasks of some points by their names."""
    return {p.tree["task"]: p.run.task for p in points}


def _named(grid: Mapping[Any, Any]) -> Mapping[str, Any]:
    if not grid:
        raise InputError("grid", "an empty grid", "parameter names with their values", _EXAMPLE)
    for name in grid:
        checks.instance("grid", name, str, "names of parameters as keys", _EXAMPLE)
    return grid


def _listed(grid: Any) -> list[Values]:
    if isinstance(grid, str) or not isinstance(grid, Iterable):
        raise InputError("grid", grid, "a mapping from parameters to values, or a list of points", _EXAMPLE)
    points = list(grid)
    if not points:
        raise InputError("grid", "an empty list of points", "at least one point", '[{"gamma0": 1.0}]')
    for k, point in enumerate(points):
        if not isinstance(point, Mapping):
            raise InputError(f"grid[{k}]", point, "a mapping from parameters to values", '{"gamma0": 1.0, "lr": 0.1}')
        if set(_named(point)) != set(points[0]):
            raise InputError(f"grid[{k}]", f"the parameters {list(point)}", f"{list(points[0])}, as in the first point", "name all of them")
    return points


def _axis(name: str, values: tuple[Any, ...]) -> Axis:
    """Values of equal names are numbered."""
    texts = [_label(v) for v in values]
    before = [texts[:k].count(text) for k, text in enumerate(texts)]
    return Axis(name, values, tuple(f"{text} ({n + 1})" if n else text for text, n in zip(texts, before, strict=True)))


def _axis_of_list(name: str, values: list[Any]) -> Axis:
    """Different values by their labels: there is no order to tell equal names apart."""
    kept = {_label(v): v for v in reversed(values)}
    labels = tuple(dict.fromkeys(map(_label, values)))
    return Axis(name, tuple(kept[label] for label in labels), labels)


def _label(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return repr(float(value)).removesuffix(".0")
    if isinstance(value, (tuple, list, np.ndarray)) and len(value) > 0:
        return ", ".join(map(_label, value))
    text = getattr(value, "name", None)
    text = text if isinstance(text, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_names(experiment: Any, names: list[str]) -> None:
    if isinstance(experiment, (LimitRun, EnsembleRun)):
        allowed = [*_fields(experiment), *_fields(experiment.training)]
        for name in names:
            hint = "sweep over net=[...], or give a function of the parameters that returns the run" if name in _NET_WORDS else ""
            checks.one_of("grid", name, allowed, hint)
        return
    parameters = _signature(experiment)
    kinds = {p.kind for p in parameters.values()}
    open_ended = inspect.Parameter.VAR_KEYWORD in kinds
    by_name = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name in names:
        if not open_ended:
            checks.one_of("grid", name, by_name)
    lacking = [n for n, p in by_name.items() if p.default is p.empty and n not in names]
    if lacking:
        raise InputError("grid", f"the parameters {names}", f"values for {', '.join(lacking)} too", f"the function needs it: {_EXAMPLE}")


def _signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise InputError("experiment", function, "a function whose parameters can be read", "wrap it: lambda gamma0: ...") from error


def _run(experiment: Any, values: Values) -> Run:
    if isinstance(experiment, (LimitRun, EnsembleRun)):
        return _replaced(experiment, values)
    run = experiment(**values)
    wanted = "a function that returns tp.LimitRun(...) or tp.EnsembleRun(...)"
    return run if isinstance(run, LimitRun) else checks.instance("experiment", run, EnsembleRun, wanted, "return the run")


def _replaced(run: Run, values: Values) -> Run:
    own = {n: v for n, v in values.items() if n in _fields(run)}
    training = own.get("training", run.training)
    rest = {n: v for n, v in values.items() if n not in own}
    if rest:
        for name in rest:
            checks.one_of("grid", name, _fields(training))
        own["training"] = dataclasses.replace(training, **rest)
    return dataclasses.replace(run, **own)


def _fields(record: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(record))


def _check_different(made: Plan) -> None:
    seen: dict[str, Point] = {}
    for point in made.points:
        if point.name in seen:
            raise InputError(
                "grid",
                f"the same run twice: {made.label(seen[point.name])}; and {made.label(point)}",
                "different runs at all points",
                "remove the repeated value, or the parameter that changes nothing",
            )
        seen[point.name] = point
