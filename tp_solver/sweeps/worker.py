"""What an executor runs: a module-level function of plain texts, so that nothing but text has to travel."""

from __future__ import annotations

import json
from pathlib import Path

from tp_solver.errors import FileFormatError
from tp_solver.finite.ensemble import Ensemble
from tp_solver.solve.solution import Solution
from tp_solver.sweeps.folder import Failure, Folder
from tp_solver.sweeps.runs import Run, run_from_tree, run_name, save_record


def run_point(folder: str, text: str, ticket: str) -> str:
    """Execute one run and put its record, or its error, into the folder; a run that was cut goes on where it was.

    Args:
        folder: the folder of the sweep, which workers share with the process that submits.
        text: the run's tree as JSON.
        ticket: differs between submissions, for executors that remember the answers of equal calls.

    Returns:
        The name of the point.
    """
    home, tree = Folder(Path(folder)), json.loads(text)
    name = run_name(tree)
    if home.finished(name):  # another process was faster
        return name
    try:
        record = _executed(run_from_tree(tree, home.task(tree["task"])), home, name)
    except Exception as error:
        if not home.finished(name):  # else another process was faster, and has removed the checkpoints of both
            home.fail(name, Failure.of(error))
        return name
    home.publish(tree, lambda path: save_record(record, path))
    return name


def _executed(run: Run, home: Folder, name: str) -> Solution | Ensemble:
    try:
        return run.execute(home.halfway(name))
    except FileFormatError:  # a damaged checkpoint is none
        home.start_anew(name)
        return run.execute(home.halfway(name))
