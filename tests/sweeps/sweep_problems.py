"""Tiny sweeps that several test files share; run as a script, one of them is worked on until it is done or killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

import tp_solver as tp
from tp_solver.solve import checkpoint
from tp_solver.sweeps import folder as folder_module
from tp_solver.sweeps.runs import EnsembleRun, LimitRun
from tp_solver.sweeps.sweep import sweep

RNG = np.random.default_rng(7)
TASK = tp.Task(RNG.standard_normal((3, 2)), [1.0, -1.0, 1.0], RNG.standard_normal((4, 2)), [1.0, -1.0, 1.0, 1.0], name="three points")
NET = tp.mlp(depth=1, activation=tp.tanh)
RULE = tp.GradientDescent(lr=0.1, steps=3)
NETS = EnsembleRun(NET, tp.muP, RULE, TASK, widths=4, seeds=2)
THEORY = LimitRun(tp.mlp(depth=1, activation=tp.erf), tp.ntk, RULE, TASK)
MARCHES = LimitRun(NET, tp.muP, RULE, TASK, samples=64, replicates=3, method=tp.March(bias=False))
MANY = {"lr": [0.01 * (k + 1) for k in range(12)], "gamma0": [0.5, 1.0, 2.0]}
GAMMAS = {"gamma0": [1.0, 2.0]}


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_placing(count: int) -> None:
    """Kill this process when an entry is whole, but not yet in its place."""
    place, seen = folder_module.Folder._place, []

    def fatal(self, part, name):
        seen.append(name)
        if len(seen) == count:
            die()
        place(self, part, name)

    folder_module.Folder._place = fatal


def die_while_writing(count: int) -> None:
    """Kill this process when half of a record is on disk."""
    publish, seen = folder_module.Folder.publish, []

    def fatal(self, tree, write):
        def half(path):
            write(path)
            if len(seen) == count:
                os.truncate(path, path.stat().st_size // 2)
                die()

        seen.append(tree)
        publish(self, tree, half)

    folder_module.Folder.publish = fatal


def die_after_checkpoints(count: int) -> None:
    """Kill this process when so many checkpoints of marches have been written, one after every step."""
    write, seen = checkpoint.write_record, []

    def fatal(path, record):
        write(path, record)
        seen.append(path)
        if len(seen) == count:
            die()

    checkpoint.SECONDS, checkpoint.write_record = 0.0, fatal


DEATHS = {
    "whole": (lambda n: None, NETS, MANY),
    "placing": (die_before_placing, NETS, MANY),
    "writing": (die_while_writing, NETS, MANY),
    "marching": (die_after_checkpoints, MARCHES, GAMMAS),
}

if __name__ == "__main__":
    where, how, number = sys.argv[1:]
    prepare, experiment, grid = DEATHS[how]
    prepare(int(number))
    sweep(experiment, grid, where)
