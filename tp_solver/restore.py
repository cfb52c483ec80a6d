"""``load``: solutions and ensembles from files (:mod:`tp_solver.storage` writes them)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import FileFormatError, TPError
from tp_solver.extrapolation import ExtrapolatedKernels
from tp_solver.finite.ensemble import Ensemble, from_arrays
from tp_solver.limit.derive import limit
from tp_solver.limit.equations import LimitEquations
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.serialization import parameterization_from_tree, program_from_tree, training_from_tree
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.training import Training
from tp_solver.solve.kernel import StaticKernels
from tp_solver.solve.marched import MarchedKernels
from tp_solver.solve.solution import Kernels, Solution, Status
from tp_solver.solve.stored import StoredKernels
from tp_solver.storage import LOADERS, Record, read_record, stored_task

KernelReader = Callable[[Mapping[str, np.ndarray], LimitEquations, Task, float], Kernels]

KERNEL_READERS: dict[str, KernelReader] = {
    "ExtrapolatedKernels": ExtrapolatedKernels.from_arrays,
    "MarchedKernels": MarchedKernels.from_arrays,
    "StaticKernels": StaticKernels.from_arrays,
    "StoredKernels": StoredKernels.from_arrays,
}
"""Class of the kernels of a solution -> what builds them from ``arrays(), theory, task, gamma0``."""


def load(path: Any) -> Solution | Ensemble:
    """Read a solution or an ensemble from a file; its limiting equations are derived again from the stored program.

    Args:
        path: a file written by ``sol.save(path)`` or ``tp.save_ensemble(ens, path)``.

    Raises:
        InputError: for something that is no path.
        FileFormatError: for a file that is absent, truncated, damaged, not ours, or of a later version.
    """
    record = read_record(path)
    kind = _known(str(path), "kind", record.kind, _KINDS)
    try:
        return kind(record)
    except FileFormatError as error:
        raise FileFormatError(f"{path}, {error.field}", error.got, error.expected, error.hint or LOADERS) from error
    except (TPError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise FileFormatError(
            str(path),
            f"parts that do not fit ({type(error).__name__}: {error})"[:200],
            "a record written by tp_solver",
            LOADERS,
        ) from error


def _solution(record: Record) -> Solution:
    header, task = record.header, stored_task(record)
    program, parameterization, training = _inputs(record)
    theory = limit(program, parameterization, training)
    gamma0 = checks.number("gamma0", header["gamma0"], minimum=0.0)
    reader = _known("header", "kernels", header["kernels"], KERNEL_READERS)
    arrays = record.arrays
    rows = header.get("tested")  # files of earlier versions tested at all times
    tested = None if rows is None else tuple(checks.integer("tested", t, minimum=0) for t in rows)
    _fit(arrays, task, len(arrays["loss"]) if tested is None else len(tested))
    return Solution(
        theory,
        task,
        gamma0,
        str(header["method"]),
        arrays["f"],
        arrays["loss"],
        arrays.get("f_test"),
        arrays.get("loss_test"),
        record.group("errors"),
        reader(record.group("kernels"), theory, task, gamma0),
        Status(header["status"]),
        str(header["message"]),
        arrays.get("f_cov"),
        header["details"],
        record.group("freedom"),
        tested,
    )


def _ensemble(record: Record) -> Ensemble:
    return from_arrays(record.group("records"), *_inputs(record), stored_task(record))


_KINDS: dict[str, Callable[[Record], Solution | Ensemble]] = {"solution": _solution, "ensemble": _ensemble}


def _inputs(record: Record) -> tuple[Program, Parameterization, Training]:
    header = record.header
    return (
        program_from_tree(header["program"]),
        parameterization_from_tree(header["parameterization"]),
        training_from_tree(header["training"]),
    )


def _known(field: str, what: str, name: Any, table: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in table:
        raise FileFormatError(field, f"{what} {name!r}", f"one of {sorted(table)}", "update tp_solver: a later one wrote it")
    return table[name]


def _fit(arrays: Mapping[str, np.ndarray], task: Task, tested: int) -> None:
    rows = len(arrays["loss"])
    tests = 0 if task.X_test is None else len(task.X_test)
    for name, start in {"f": (rows, task.P), "f_test": (tested, tests), "loss_test": (tested,)}.items():
        if name in arrays and arrays[name].shape[: len(start)] != start:
            raise FileFormatError(name, f"shape {arrays[name].shape}", f"a shape that begins with {start}", "the file is damaged")
