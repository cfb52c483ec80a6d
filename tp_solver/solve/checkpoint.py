"""Checkpoints of marches: what a crash, a signal or the end of a job's time leaves behind, and how a run goes on from there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from tp_solver.errors import FileFormatError
from tp_solver.limit.equations import LimitEquations
from tp_solver.numerics.sites import Placement, told_by_first
from tp_solver.program.serialization import parameterization_to_tree, program_to_tree, training_to_tree
from tp_solver.program.task import Task
from tp_solver.solve.journal import Midway, midway_arrays, midway_from_arrays
from tp_solver.solve.layout import Layout
from tp_solver.storage import Record, digest, read_record, versions, write_record

KIND = "march in progress"
SECONDS = 30.0
"""Time between two checkpoints of a run."""


@dataclass
class Checkpoint:
    """The file of one run; it is written at most every :data:`SECONDS`, and at the end.

    Args:
        path: the file, or None for a run that is not kept.
    """

    path: Path | None
    written: float = field(default_factory=time.monotonic)

    def load(self, plan: Layout, placement: Placement) -> Midway | None:
        """Where the run stopped, its sites placed, or None if it has not begun.

        Raises:
            FileFormatError: for a file that is damaged, foreign or of a later version.
        """
        if self.path is None or not self.path.exists():
            return None
        record = read_record(self.path)
        if record.kind != KIND:
            raise FileFormatError(str(self.path), f"a {record.kind}", f"a {KIND}", "delete the file to start the run again")
        return midway_from_arrays(record.arrays, plan, placement)

    def save(self, midway: Midway) -> None:
        """Write now, atomically; of several processes, the first one does."""
        if self.path is not None:
            arrays = midway_arrays(midway)
            if jax.process_index() == 0:
                write_record(self.path, Record(KIND, {"t": midway.t}, arrays))
            self.written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write again, by the clock of the first process."""
        return self.path is not None and told_by_first(time.monotonic() - self.written >= SECONDS)


@dataclass(frozen=True)
class Checkpoints:
    """The folder in which the runs of a solve are kept, one file each, named by everything that the run depends on.

    Args:
        folder: an existing folder, or None to keep nothing.
        inputs: what all runs of the solve have in common.
    """

    folder: Path | None
    inputs: str = ""

    def of(self, run: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint of one run, by the numbers that set it apart."""
        if self.folder is None:
            return Checkpoint(None)
        name = hashlib.sha256((self.inputs + json.dumps(run, sort_keys=True)).encode()).hexdigest()
        return Checkpoint(self.folder / f"march-{name[:24]}.npz")


def checkpoints(folder: Any, theory: LimitEquations, task: Task, gamma0: float, options: Mapping[str, Any]) -> Checkpoints:
    """The checkpoints of a solve in an existing folder (None: nothing is kept); other solves may share it."""
    if folder is None:
        return Checkpoints(None)
    arrays = {n: getattr(task, n) for n in ("X", "y", "X_test", "y_test") if getattr(task, n) is not None}
    inputs = {
        "program": program_to_tree(theory.program),
        "parameterization": parameterization_to_tree(theory.parameterization),
        "training": training_to_tree(theory.training),
        "task": digest(arrays),
        "gamma0": gamma0,
        "options": dict(options),
        "versions": versions(),  # other versions may round otherwise
    }
    return Checkpoints(Path(folder), json.dumps(inputs, sort_keys=True))
