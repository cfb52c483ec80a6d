"""One run of a sweep as a record: what to solve or to simulate. It travels as a tree of plain data, never as a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tp_solver import checks
from tp_solver.errors import FileFormatError, InputError
from tp_solver.finite.ensemble import Ensemble
from tp_solver.finite.experiment import prepare, recorded_times
from tp_solver.finite.simulate import MEMORY, simulate
from tp_solver.limit.derive import limit
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.serialization import (
    parameterization_from_tree,
    parameterization_to_tree,
    program_from_tree,
    program_to_tree,
    training_from_tree,
    training_to_tree,
)
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent, GradientFlow, Training
from tp_solver.solve.dispatch import SAMPLES, check_target, chosen_method, solve
from tp_solver.solve.methods import METHODS, Auto, March, Method
from tp_solver.solve.solution import Solution, Status
from tp_solver.storage import digest, save_ensemble, save_solution

SCHEMA = 1
"""Version of the descriptions of runs; part of every hash, so that versions never mistake each other's results."""
METHOD_RECORDS = tuple(METHODS.values())


@dataclasses.dataclass(frozen=True, eq=False)
class LimitRun:
    """Derive the limit of a net and solve it on a task: the arguments of :func:`tp_solver.limit` and :func:`tp_solver.solve`.

    Args:
        net, parameterization, training: as for :func:`tp_solver.limit`.
        task, gamma0, samples, replicates, seed, method, rtol: as for :func:`tp_solver.solve`.

    Raises:
        InputError: for malformed arguments; what only the derivation can see is found when the run is executed.
    """

    net: Program
    parameterization: Parameterization
    training: Training
    task: Task
    gamma0: float = 1.0
    samples: int = SAMPLES
    replicates: int = 4
    seed: int = 0
    method: str | Method | None = None
    rtol: float | None = None

    def __post_init__(self) -> None:
        _check_subject(self)
        clean: dict[str, Any] = {
            "gamma0": checks.number("gamma0", self.gamma0, minimum=0.0, hint="gamma0 = 0 is the kernel (NTK) limit"),
            "samples": checks.integer("samples", self.samples, minimum=64),
            "replicates": checks.integer("replicates", self.replicates, minimum=1),
            "seed": checks.integer("seed", self.seed, minimum=0),
            "method": _method(self.method),
        }
        if clean["samples"] % 2:
            raise InputError("samples", self.samples, "an even number", "sites come in antithetic pairs")
        if self.rtol is not None:  # where no method is given, the march is the only one that may be chosen
            clean["rtol"] = check_target(self.rtol, clean["samples"], clean["replicates"], clean["method"] or March())
        _set(self, clean)

    def options(self) -> dict[str, Any]:
        """Everything but the net, the parameterization, the training rule and the task, as JSON has it."""
        chosen = _method(self.method)
        method = None if chosen is None else {"name": chosen.name} | dataclasses.asdict(chosen)
        target = {} if self.rtol is None else {"rtol": self.rtol}  # left out where there is none: earlier names stay
        return {n: getattr(self, n) for n in ("gamma0", "samples", "replicates", "seed")} | {"method": method} | target

    def execute(self, kept: Path | None = None) -> Solution:
        """Derive and solve.

        Args:
            kept: folder of this run alone, made when it is needed, in which a march keeps how far it has come and goes on from there.

        Raises:
            TPError: as ``limit`` and ``solve``.
            KeyboardInterrupt: if interrupted; the steps done so far are no result of a sweep.
        """
        theory = limit(self.net, self.parameterization, self.training)
        if not isinstance(chosen_method(theory, self.gamma0, self.method), (March, Auto)):
            kept = None  # nothing else takes long enough
        if kept is not None:
            kept.mkdir(exist_ok=True)
        solution = solve(
            theory, self.task, self.gamma0, self.samples, self.replicates, self.seed, self.method,
            progress=False, checkpoint=kept, rtol=self.rtol,
        )  # fmt: skip
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        return solution


@dataclasses.dataclass(frozen=True, eq=False)
class EnsembleRun:
    """Train finite nets on a task: the arguments of :func:`tp_solver.simulate`.

    Args:
        net, parameterization, training, task, gamma0, seeds, centred, times, seed, dtype, memory: as for
            :func:`tp_solver.simulate`.
        widths: as there, or a single one.

    Raises:
        TPError: naming the argument.
    """

    net: Program
    parameterization: Parameterization
    training: Training
    task: Task
    gamma0: float = 1.0
    widths: Any = (128, 512, 2048)
    seeds: Any = 8
    centred: bool = False
    times: Any = None
    seed: int = 0
    dtype: str = "float64"
    memory: float = MEMORY

    def __post_init__(self) -> None:
        _check_subject(self)
        widths = self.widths if isinstance(self.widths, Iterable) else (self.widths,)
        checked = prepare(
            self.net,
            self.parameterization,
            self.training,
            self.task,
            self.gamma0,
            widths,
            self.seeds,
            self.centred,
            self.seed,
            self.dtype,
        )
        clean: dict[str, Any] = {n: getattr(checked, n) for n in ("gamma0", "widths", "seeds", "centred", "seed")}
        clean |= {"times": recorded_times(self.times, self.training.steps), "memory": checks.number("memory", self.memory, above=0.0)}
        _set(self, clean)

    def options(self) -> dict[str, Any]:
        """Everything but the net, the parameterization, the training rule and the task, as JSON has it."""
        plain = {n: getattr(self, n) for n in ("gamma0", "centred", "seed", "dtype", "memory")}
        return plain | {n: list(getattr(self, n)) for n in ("widths", "seeds", "times")}

    def execute(self, kept: Path | None = None) -> Ensemble:
        """Draw and train the nets.

        Args:
            kept: as for :meth:`LimitRun.execute`, not used: nets that were cut are trained again.

        Raises:
            TPError: as ``simulate``.
        """
        return simulate(
            self.net, self.parameterization, self.training, self.task, self.gamma0, self.widths, self.seeds, self.centred,
            self.times, self.seed, self.dtype, self.memory, progress=False,
        )  # fmt: skip


Run = LimitRun | EnsembleRun
RUNS: dict[str, type[LimitRun] | type[EnsembleRun]] = {"limit": LimitRun, "ensemble": EnsembleRun}
"""Runs by the names that files use."""
_SAVERS: dict[type, Callable[[Any, Any], None]] = {Solution: save_solution, Ensemble: save_ensemble}


def run_to_tree(run: Run, task: str) -> dict[str, Any]:
    """A run as plain data, with the name of its task (see :func:`task_name`) in place of the arrays."""
    return {
        "schema": SCHEMA,
        "kind": next(name for name, kind in RUNS.items() if isinstance(run, kind)),
        "program": program_to_tree(run.net),
        "parameterization": parameterization_to_tree(run.parameterization),
        "training": training_to_tree(run.training),
        "task": task,
        "options": run.options(),
    }


def run_from_tree(tree: Mapping[str, Any], task: Task) -> Run:
    """The run that :func:`run_to_tree` took apart.

    Raises:
        FileFormatError: for anything else.
    """
    try:
        kind, options = RUNS[tree["kind"]], dict(tree["options"])
        program, parameterization = program_from_tree(tree["program"]), parameterization_from_tree(tree["parameterization"])
        training = training_from_tree(tree["training"])
        if options.get("method") is not None:
            method = dict(options["method"])
            options["method"] = METHODS[method.pop("name")](**method)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            "run", f"a description that cannot be read ({type(error).__name__}: {error})", "a run written by tp_solver", "sweep again"
        ) from error
    return kind(program, parameterization, training, task, **options)


def run_name(tree: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a run's tree, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(tree).encode()).hexdigest()


def canonical(tree: Any) -> str:
    """JSON in one way only: sorted keys, no spaces, no NaN."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def task_name(task: Task) -> str:
    """sha256 over the bytes of a task's arrays and its name."""
    return hashlib.sha256(f"{canonical(task.name)} {digest(task_arrays(task))}".encode()).hexdigest()


def task_arrays(task: Task) -> dict[str, Any]:
    """The arrays of a task under the names that :func:`tp_solver.storage.stored_task` reads."""
    return {f"task/{n}": getattr(task, n) for n in ("X", "y", "X_test", "y_test") if getattr(task, n) is not None}


def save_record(record: Solution | Ensemble, path: Path) -> None:
    """Write what a run returned."""
    _SAVERS[type(record)](record, path)


def _check_subject(run: Run) -> None:
    checks.instance("net", run.net, Program, "a program such as tp.mlp(depth=3, activation=tp.tanh)")
    checks.instance("parameterization", run.parameterization, Parameterization, "a Parameterization such as tp.muP")
    rules = (GradientDescent, GradientFlow)
    checks.instance("training", run.training, rules, "a training rule such as tp.GradientDescent(lr=0.1, steps=100)")
    checks.instance("task", run.task, Task, "a Task such as tp.Task(X, y)")
    run.task.targets(run.training.loss)


def _method(method: Any) -> Method | None:
    if isinstance(method, str):
        return METHODS[checks.one_of("method", method, METHODS)]()
    if method is None:
        return None
    return checks.instance("method", method, METHOD_RECORDS, "a method such as 'march' or March(tol=1e-3)")


def _set(run: Run, clean: Mapping[str, Any]) -> None:
    for name, value in clean.items():
        object.__setattr__(run, name, value)
