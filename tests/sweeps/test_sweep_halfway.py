"""Points of a sweep that are cut half way go on from their checkpoints, which nobody sees afterwards (promises R4, R5 and R15)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_problems import GAMMAS, MARCHES, THEORY, files

from tp_solver.solve import checkpoint
from tp_solver.sweeps.grid import plan
from tp_solver.sweeps.runs import LimitRun, canonical
from tp_solver.sweeps.sweep import sweep
from tp_solver.sweeps.worker import run_point

FIRST = plan(MARCHES, GAMMAS).points[0]
STEPS = FIRST.run.training.steps


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    where = tmp_path_factory.mktemp("uninterrupted") / "runs"
    assert sweep(MARCHES, GAMMAS, where).status().complete
    return files(where)


@pytest.fixture
def written(monkeypatch):
    """The checkpoints that this process writes, one after every step: (file, time)."""
    seen, write = [], checkpoint.write_record

    def noted(path, record):
        write(path, record)
        seen.append((path, record.header["t"]))

    monkeypatch.setattr(checkpoint, "write_record", noted)
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    return seen


@pytest.fixture
def interrupted(tmp_path, monkeypatch, written):
    """A sweep that ended by Ctrl-C in the second replicate of its first point; its folder, and the files of the two replicates."""
    where, write = tmp_path / "runs", checkpoint.write_record

    def pressed(path, record):
        write(path, record)
        if len({p for p, _ in written}) == 2 and record.header["t"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_record", pressed)
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                sweep(MARCHES, GAMMAS, where)
        finally:
            signal.signal(signal.SIGINT, handler)
    whole, half = dict.fromkeys(p for p, _ in written)
    written.clear()
    return where, whole, half


def assert_gone_on(where, whole, half, t, written, uninterrupted):
    """No finished replicate is computed again, and the rest of the other begins at the time of its checkpoint."""
    assert sweep(MARCHES, GAMMAS, where).status().complete
    assert whole not in {p for p, _ in written}
    assert min(at for p, at in written if p == half) > t
    assert len({p for p, _ in written if p.parent == half.parent}) == 2, "the second and the third replicate"
    assert files(where) == uninterrupted
    assert not list(where.glob(".*"))


def test_a_killed_point_goes_on_where_it_was(tmp_path, written, uninterrupted):
    where, count = tmp_path / "runs", STEPS + 1 + 2  # all of the first replicate, two steps of the second
    script = Path(__file__).with_name("sweep_problems.py")
    done = subprocess.run([sys.executable, str(script), str(where), "marching", str(count)], stderr=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    kept = sorted((where / f".{FIRST.name}.march").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    assert len(kept) == 2
    assert_gone_on(where, *kept, 2, written, uninterrupted)


def begun(where):
    """The checkpoints that are there."""
    try:
        return {*where.glob(".*.march/march-*.npz")}
    except FileNotFoundError:  # a point has been finished meanwhile
        return set()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_of_marches(tmp_path, uninterrupted):
    """Ten sweeps, each killed twice and then finished: as often as not in the middle of a replicate."""
    script, rng, halfway = Path(__file__).with_name("sweep_problems.py"), random.Random(5), 0
    for k in range(10):
        where = tmp_path / f"runs{k}"
        for _ in range(2):
            before = begun(where)
            process = subprocess.Popen([sys.executable, str(script), str(where), "marching", "1000"], stderr=subprocess.DEVNULL)
            while process.poll() is None and begun(where) <= before:
                time.sleep(0.002)
            time.sleep(rng.uniform(0.0, 0.5))
            process.kill()
            process.wait()
            halfway += any(where.glob(".*.march/*"))
        assert sweep(MARCHES, GAMMAS, where).status().complete
        assert files(where) == uninterrupted
    assert halfway >= 5


def test_an_interrupted_point_goes_on_where_it_was(interrupted, written, uninterrupted):
    assert_gone_on(*interrupted, 1, written, uninterrupted)


def test_damaged_checkpoints_are_none(interrupted, written, uninterrupted):
    where, whole, _ = interrupted
    data = bytearray(whole.read_bytes())
    data[len(data) // 2] ^= 4
    whole.write_bytes(data)
    assert sweep(MARCHES, GAMMAS, where).status().complete
    assert whole in {p for p, _ in written}
    assert files(where) == uninterrupted


def test_a_point_that_another_process_finishes_meanwhile(tmp_path, monkeypatch, written, uninterrupted):
    """Its checkpoints go, and whoever is still at work on them leaves it at that."""
    sweep(MARCHES, {"gamma0": [2.0]}, tmp_path / "runs")
    write, call = checkpoint.write_record, (str(tmp_path / "runs"), canonical(FIRST.tree), "")
    calls = []

    def overtaken(path, record):
        calls.append(path)
        if len(calls) == 2:
            run_point(*call)
        write(path, record)

    monkeypatch.setattr(checkpoint, "write_record", overtaken)
    assert run_point(*call) == FIRST.name
    assert len(calls) > 2
    assert files(tmp_path / "runs") == uninterrupted


def test_what_a_kill_after_the_last_step_leaves_is_removed(tmp_path):
    grid = {"gamma0": [1.0]}
    done = sweep(THEORY, grid, tmp_path / "runs")
    assert not list(done.folder.path.glob(".*")), "only marches keep anything"
    for name in (done.plan.points[0].name, FIRST.name):
        done.folder.halfway(name).mkdir()
    sweep(THEORY, grid, tmp_path / "runs")
    assert [p.name for p in done.folder.path.glob(".*")] == [f".{FIRST.name}.march"], "that of a point not finished stays"


def test_failed_points_are_not_taken_for_damaged_ones(tmp_path, monkeypatch):
    calls = []

    def broken(self, kept):
        calls.append(kept)
        raise MemoryError("too much")

    monkeypatch.setattr(LimitRun, "execute", broken)
    assert sweep(MARCHES, GAMMAS, tmp_path / "runs").status().count("failed") == len(calls) == 2
