"""From a key of [task] in an input file to data: bundled sets by name, files by path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tp_solver.errors import InputError
from tp_solver.program.task import Task

ARRAYS = ("X", "y", "X_test", "y_test")
"""What a file of arrays may hold."""
FILES = ("images", "labels", "images_test", "labels_test")
"""Keys of a table of idx files that are paths."""
_SAVEZ = 'numpy.savez("data.npz", X=X, y=y) writes such a file'


def placed(base: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of idx files with its paths taken from the folder ``base``."""
    return {key: str(base / value) if key in FILES else value for key, value in table.items()}


def task_from_arrays(path: Path) -> Task:
    """The task in an .npz file of X and y, perhaps X_test and y_test.

    Raises:
        InputError: for a file that cannot be read or holds other arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # numpy and zip raise many kinds for files that are none
        raise InputError(str(path), f"a file that cannot be read ({type(error).__name__})", "an .npz file of arrays", _SAVEZ) from error
    unknown = sorted(set(arrays) - set(ARRAYS))
    if unknown or not {"X", "y"} <= set(arrays):
        raise InputError(str(path), f"the arrays {sorted(arrays)}", f"X and y, perhaps {ARRAYS[2]} and {ARRAYS[3]}", _SAVEZ)
    return Task(arrays["X"], arrays["y"], arrays.get("X_test"), arrays.get("y_test"), path.stem)


TASKS: dict[str, Callable[[Path, Any], Task]] = {
    "digits": lambda base, table: Task.digits(**table),
    "mnist": lambda base, table: Task.mnist(**table),
    "idx": lambda base, table: Task.from_idx(**placed(base, table)),
    "arrays": lambda base, name: task_from_arrays(base / name),
}
"""How each key becomes data, from the folder that paths refer to and the clean value."""
