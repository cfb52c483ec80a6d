"""What an executor runs: a module-level function of plain texts, so that nothing but text has to travel."""

from __future__ import annotations

import json
from pathlib import Path

from tp_solver.sweeps.folder import Failure, Folder
from tp_solver.sweeps.runs import run_from_tree, run_name, save_record


def run_point(folder: str, text: str, ticket: str) -> str:
    """Execute one run and put its record, or its error, into the folder.

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
        record = run_from_tree(tree, home.task(tree["task"])).execute()
    except Exception as error:
        home.fail(name, Failure.of(error))
        return name
    home.publish(tree, lambda path: save_record(record, path))
    return name
