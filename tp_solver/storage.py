"""Files of records: one .npz of plain arrays with a JSON header, written atomically and checked on reading.

Nothing in a file is ever evaluated: arrays are read without pickle, expressions are trees over a closed list of classes
(:mod:`tp_solver.symbols.serialization`), and the limiting equations are derived again from the program.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tp_solver import checks
from tp_solver.errors import FileFormatError, InputError
from tp_solver.program.serialization import parameterization_to_tree, program_to_tree, training_to_tree
from tp_solver.program.task import Task

if TYPE_CHECKING:
    from tp_solver.finite.ensemble import Ensemble
    from tp_solver.solve.solution import Solution

SCHEMA = 1
"""Version of the format; files of later versions are refused."""
HEADER = "header"
LOADERS = "tp.load reads files written by sol.save and tp.save_ensemble"


class Record(NamedTuple):
    """What a file holds: the kind of record, its header, and its arrays by name."""

    kind: str
    header: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def group(self, name: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with ``name/``, without that."""
        return {n.removeprefix(f"{name}/"): a for n, a in self.arrays.items() if n.startswith(f"{name}/")}


def save_solution(solution: Solution, path: Any) -> None:
    """Write a solution and its inputs to one file, atomically.

    Args:
        solution: what :func:`tp_solver.solve` returned.
        path: the file, by convention ``.npz``; an existing one is replaced.

    Raises:
        InputError: for a path whose folder does not exist, or an expression that cannot be stored.
    """
    arrays = {n: getattr(solution, n) for n in ("f", "loss", "f_test", "loss_test", "f_cov") if getattr(solution, n) is not None}
    arrays |= {f"errors/{n}": a for n, a in solution.errors.items()}
    arrays |= {f"freedom/{n}": a for n, a in solution.freedom.items()}
    arrays |= {f"kernels/{n}": a for n, a in solution.kernels.arrays().items()}
    header = _inputs(solution.theory, solution.task) | {
        "gamma0": solution.gamma0,
        "method": solution.method,
        "status": str(solution.status),
        "message": solution.message,
        "kernels": type(solution.kernels).__name__,
        "details": _plain(solution.details),
        "tested": None if solution.tested is None else list(solution.tested),
    }
    write_record(path, Record("solution", header, arrays | _task_arrays(solution.task)))


def save_ensemble(ensemble: Ensemble, path: Any) -> None:
    """Write an ensemble and its inputs to one file, atomically.

    Args:
        ensemble: what :func:`tp_solver.simulate` returned.
        path: the file, by convention ``.npz``; an existing one is replaced.

    Raises:
        InputError: for a path whose folder does not exist, or an expression that cannot be stored.
    """
    from tp_solver.finite.ensemble import Ensemble, ensemble_arrays

    checks.instance("ensemble", ensemble, Ensemble, "what tp.simulate returned")
    header = _inputs(ensemble, ensemble.task) | {"gamma0": ensemble.gamma0, "status": ensemble.status, "message": ensemble.message}
    arrays = {f"records/{n}": a for n, a in ensemble_arrays(ensemble).items()}
    write_record(path, Record("ensemble", header, arrays | _task_arrays(ensemble.task)))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    names = ("tp-solver", "numpy", "scipy", "sympy", "jax")
    return {"python": platform.python_version()} | {n: _version(n) for n in names}


def write_record(path: Any, record: Record) -> None:
    """Write a record so that a reader finds either the old file or the whole new one.

    Raises:
        InputError: for something that is no path, or a folder that does not exist.
    """
    target = _path(path)
    if not target.parent.is_dir():
        raise InputError("path", str(target), "a file in an existing folder", f"create {target.parent} first")
    if target.is_dir():
        raise InputError("path", str(target), "a file, not a folder", f"for example {target / 'record.npz'}")
    arrays = {n: np.asarray(a) for n, a in record.arrays.items()}
    header = {"schema": SCHEMA, "kind": record.kind, "versions": versions()} | record.header | {"sha256": digest(arrays)}
    text = json.dumps(header).encode()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")  # threads and hosts may write the same file at once
    try:
        with open(temporary, "wb") as stream, zipfile.ZipFile(stream, "w", allowZip64=True) as archive:
            for name, a in {HEADER: np.frombuffer(text, np.uint8), **arrays}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, a, allow_pickle=False)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_record(path: Any) -> Record:
    """Read and check a record.

    Raises:
        FileFormatError: for a file that is absent, truncated, damaged, foreign, or of a later version.
    """
    source = _path(path)
    field = str(source)
    if not source.is_file():
        what = "a folder" if source.is_dir() else "no file there"
        raise FileFormatError(field, what, "a file written by tp_solver", LOADERS)
    try:
        with zipfile.ZipFile(io.BytesIO(source.read_bytes())) as archive:
            arrays = {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist()}
    except Exception as error:  # a damaged archive fails in many ways: zip, zlib, numpy, struct, memory
        raise FileFormatError(
            field, f"a file that cannot be read ({type(error).__name__}: {error})"[:200], "a whole .npz file written by tp_solver",
            "it is truncated, damaged, or not ours; restore a copy, or solve again",
        ) from error  # fmt: skip
    header = _header(field, arrays.pop(HEADER, None))
    if digest(arrays) != header.get("sha256"):
        raise FileFormatError(field, "arrays that fail their checksum", "the arrays as written", "it is damaged: restore a copy")
    return Record(header["kind"], header, arrays)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and contents."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {a.dtype.str} {np.shape(arrays[name])} ".encode())
        total.update(a.tobytes())
    return total.hexdigest()


def stored_task(record: Record) -> Task:
    """The task of a record.

    Raises:
        FileFormatError: if its arrays are missing.
    """
    data = record.group("task")
    if not {"X", "y"} <= set(data):
        raise FileFormatError("task", f"the arrays {sorted(data)}", "X and y", "the file is incomplete")
    return Task(data["X"], data["y"], data.get("X_test"), data.get("y_test"), str(record.header.get("task", "task")))


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    if name == f"{HEADER}.npy":  # read to the end, where zip compares its own checksum
        return np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _header(field: str, raw: np.ndarray | None) -> dict[str, Any]:
    foreign = FileFormatError(field, "a file without a tp_solver header", "a file written by tp_solver", LOADERS)
    if raw is None or raw.dtype != np.uint8:
        raise foreign
    try:
        header = json.loads(raw.tobytes())
    except (ValueError, RecursionError) as error:
        raise foreign from error
    if not isinstance(header, dict) or not isinstance(header.get("schema"), int) or not isinstance(header.get("kind"), str):
        raise foreign
    if not 1 <= header["schema"] <= SCHEMA:
        raise FileFormatError(
            field,
            f"a file of format version {header['schema']}",
            f"version {SCHEMA} or earlier",
            "update tp_solver: a later one wrote it",
        )
    return header


def _inputs(source: Any, task: Task) -> dict[str, Any]:
    return {
        "program": program_to_tree(source.program),
        "parameterization": parameterization_to_tree(source.parameterization),
        "training": training_to_tree(source.training),
        "task": task.name,
    }


def _task_arrays(task: Task) -> dict[str, np.ndarray]:
    return {f"task/{n}": getattr(task, n) for n in ("X", "y", "X_test", "y_test") if getattr(task, n) is not None}


def _plain(value: Any) -> Any:
    """Figures of a run as JSON has them; anything else as text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, Iterable) else str(value)


def _path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise InputError("path", path, "the path of a file", 'for example "solution.npz"')
    return Path(path)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
