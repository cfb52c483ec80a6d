"""The folder of a sweep: entries that appear whole or not at all, whoever is killed when.

    sweep.json            names of the parameters
    tasks/<hash>.npz      data that several points share
    <hash>/point.json     what was computed, and the checksum of the record
    <hash>/record.npz     the solution or ensemble
    failed/<hash>.json    the error of a point that failed
    .<hash>.march/        checkpoints of a point that is not finished; to be deleted at will

Nothing here holds a time, a host or an order of events: the same sweep leaves the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tp_solver.errors import FileFormatError, InputError, TPError
from tp_solver.program.task import Task
from tp_solver.storage import Record, read_record, stored_task, write_record
from tp_solver.sweeps.runs import SCHEMA, canonical, run_name, task_arrays, task_name

MANIFEST, POINT, RECORD, TASKS, FAILED = "sweep.json", "point.json", "record.npz", "tasks", "failed"
HALFWAY = ".march"
KIND = "tp_solver sweep"
ORPHANED = 24 * 3600.0
"""Seconds after which the unfinished writing of another host is taken for dead."""
_PART = re.compile(r"\.(.*)\.(\d+)\.[0-9a-f]{32}\.part")


@dataclass(frozen=True)
class Failure:
    """Why a point failed: the parts of its error (see :class:`tp_solver.errors.TPError`), or its text alone."""

    error: str
    message: str
    field: str = ""
    got: str = ""
    expected: str = ""
    hint: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The record of an error."""
        if isinstance(error, TPError):
            return cls(type(error).__name__, str(error), error.field, str(error.got)[:500], error.expected, error.hint)
        return cls(type(error).__name__, str(error)[:2000])

    def __str__(self) -> str:
        return f"{self.error}: {self.message}"


@dataclass(frozen=True, eq=False)
class Folder:
    """Where the points of a sweep lie."""

    path: Path
    _checked: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def opened(cls, path: Any, parameters: tuple[str, ...]) -> Folder:
        """The folder of a sweep over these parameters, made if it is not there.

        Raises:
            InputError: for something that is no path, a folder in use for something else, or one of another sweep.
            FileFormatError: for a damaged or later ``sweep.json``.
        """
        if not isinstance(path, (str, os.PathLike)) or not str(path):
            raise InputError("folder", path, "the path of a folder", 'for example "runs"')
        root = Path(path)
        if root.exists() and not root.is_dir():
            raise InputError("folder", f"the file {root}", "a folder", "choose another name")
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder = cls(root.resolve())
            folder._claim(sorted(parameters))
            folder._sweep_up()
        except OSError as error:
            raise InputError("folder", str(root), "a folder that can be written to", f"{type(error).__name__}: {error}") from error
        return folder

    def finished(self, name: str) -> bool:
        """Whether a whole, undamaged result lies there."""
        try:
            self.check(name)
        except FileFormatError:
            return False
        return True

    def check(self, name: str) -> None:
        """Compare an entry with its name and its checksum.

        Raises:
            FileFormatError: for an entry that is absent, damaged or foreign.
        """
        entry = self.path / name
        try:
            marks = tuple(m for f in (POINT, RECORD) for m in ((entry / f).stat().st_mtime_ns, (entry / f).stat().st_size))
            if self._checked.get(name) == marks:
                return
            point = _mapping(entry / POINT)
            found = hashlib.sha256((entry / RECORD).read_bytes()).hexdigest()
        except OSError as error:
            raise FileFormatError(
                str(entry), f"no whole entry ({type(error).__name__})", "a finished point of a sweep", "run the sweep again"
            ) from error
        if set(point) != {"inputs", "record"} or run_name(point["inputs"]) != name or point["record"] != found:
            raise FileFormatError(str(entry), "files that fail their checksum", "the files as written", "run the sweep again")
        self._checked[name] = marks

    def record_path(self, name: str) -> Path:
        """The file of a finished point.

        Raises:
            FileFormatError: for an entry that is absent, damaged or foreign.
        """
        self.check(name)
        return self.path / name / RECORD

    def publish(self, tree: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        """Add an entry; if another process was faster, its entry (of the same content) stays."""
        name = run_name(tree)
        with self._part() as part:
            write(part / RECORD)
            checksum = hashlib.sha256((part / RECORD).read_bytes()).hexdigest()
            (part / POINT).write_text(canonical({"inputs": tree, "record": checksum}))
            self._place(part, name)
        (self.path / FAILED / f"{name}.json").unlink(missing_ok=True)
        self.start_anew(name)

    def halfway(self, name: str) -> Path:
        """Where a point that is not finished may keep how far it has come; whoever computes it goes on from there."""
        return self.path / f".{name}{HALFWAY}"

    def start_anew(self, name: str) -> None:
        """Forget how far a point has come."""
        shutil.rmtree(self.halfway(name), ignore_errors=True)

    def fail(self, name: str, failure: Failure) -> None:
        """Keep the error of a point."""
        self._write(Path(FAILED) / f"{name}.json", lambda path: path.write_text(canonical(asdict(failure))))

    def failure(self, name: str) -> Failure | None:
        """The error of a point, None for a point that did not fail (or whose file is damaged: it may be tried again)."""
        try:
            return Failure(**{k: str(v) for k, v in _mapping(self.path / FAILED / f"{name}.json").items()})
        except (FileFormatError, OSError, TypeError):
            return None

    def forgive(self, name: str) -> None:
        """Forget the error of a point."""
        (self.path / FAILED / f"{name}.json").unlink(missing_ok=True)

    def keep_task(self, name: str, task: Task) -> None:
        """Write the data of a task, once; a damaged file is written anew."""
        try:
            self.task(name)
        except FileFormatError:
            record = Record("task", {"task": task.name}, task_arrays(task))
            self._write(Path(TASKS) / f"{name}.npz", lambda path: write_record(path, record))

    def task(self, name: str) -> Task:
        """The data of a task.

        Raises:
            FileFormatError: for a file that is absent, damaged or foreign.
        """
        path = self.path / TASKS / f"{name}.npz"
        task = stored_task(read_record(path))
        if task_name(task) != name:
            raise FileFormatError(str(path), "data of another task", "the data that its name stands for", "run the sweep again")
        return task

    def _claim(self, parameters: list[str]) -> None:
        manifest = self.path / MANIFEST
        if not manifest.exists():
            others = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
            if others and MANIFEST not in others:  # another process may have just claimed it
                raise InputError(
                    "folder", f"{self.path}, which holds {others[0]}", "a new folder, or one of a sweep", "choose another name"
                )
            tree = {"kind": KIND, "schema": SCHEMA, "parameters": parameters}
            self._write(Path(MANIFEST), lambda path: path.write_text(canonical(tree)))
        found = _mapping(manifest)
        if found.get("kind") != KIND or not isinstance(found.get("schema"), int) or not isinstance(found.get("parameters"), list):
            raise FileFormatError(str(manifest), "a file that is not ours", "the sweep.json of a sweep", "choose another folder")
        if found["schema"] > SCHEMA:
            raise FileFormatError(str(manifest), f"version {found['schema']}", f"version {SCHEMA} or earlier", "update tp_solver")
        if found["parameters"] != parameters:
            raise InputError(
                "folder",
                f"a folder with a sweep over {', '.join(map(str, found['parameters']))}",
                f"a new folder, or one of a sweep over {', '.join(parameters)}",
                "every sweep has a folder of its own; more values of the same parameters may be added",
            )

    def _write(self, name: Path, write: Callable[[Path], Any]) -> None:
        """A single file, whole or not at all."""
        with self._part() as part:
            write(part / name.name)
            (self.path / name).parent.mkdir(exist_ok=True)
            os.replace(part / name.name, self.path / name)

    @contextmanager
    def _part(self) -> Iterator[Path]:
        """A folder of this process alone, on the same disk; its name says whose it is, should it be left behind."""
        part = self.path / f".{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}.part"
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _place(self, part: Path, name: str) -> None:
        target = self.path / name
        for _ in range(4):
            try:
                os.replace(part, target)
                return
            except OSError:
                if self.finished(name):
                    return
                if not part.exists() or not os.path.lexists(target):
                    raise
                with self._part() as aside:  # a damaged entry, or something that is not ours, in the place of ours
                    os.replace(target, aside / "damaged")
        raise FileFormatError(str(target), "an entry that cannot be replaced", "a folder for sweeps alone", "choose another folder")

    def _sweep_up(self) -> None:
        """Remove what killed processes left behind."""
        for part in self.path.glob(".*.part"):
            if (owner := _PART.fullmatch(part.name)) is None:
                continue
            host, pid = owner.groups()
            try:
                here = host == socket.gethostname() and os.name == "posix"
                gone = not _alive(int(pid)) if here else time.time() - part.stat().st_mtime > ORPHANED
            except OSError:  # its owner has just finished
                continue
            if gone:
                shutil.rmtree(part, ignore_errors=True)
        for kept in self.path.glob(f".*{HALFWAY}"):
            name = kept.name.removeprefix(".").removesuffix(HALFWAY)
            if self.finished(name):
                self.start_anew(name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _mapping(path: Path) -> dict[str, Any]:
    try:
        out = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileFormatError(str(path), "text that is not JSON", "a file written by a sweep", "it is damaged or not ours") from error
    if not isinstance(out, dict):
        raise FileFormatError(str(path), "JSON of another shape", "a file written by a sweep", "it is damaged or not ours")
    return out
