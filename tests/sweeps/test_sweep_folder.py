"""The folder of a sweep under kill -9, damage and foreign files (promises R4 and R13)."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_problems import MANY, NETS, TASK, files

from tp_solver.errors import FileFormatError, InputError
from tp_solver.sweeps.folder import FAILED, MANIFEST, POINT, RECORD, TASKS, Folder
from tp_solver.sweeps.runs import EnsembleRun
from tp_solver.sweeps.sweep import sweep

GRID = {"lr": [0.1, 0.2]}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    where = tmp_path_factory.mktemp("uninterrupted") / "runs"
    assert sweep(NETS, MANY, where).status().complete
    return files(where)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    where = tmp_path_factory.mktemp("original") / "runs"
    sweep(NETS, GRID, where)
    return where


@pytest.fixture
def where(original, tmp_path):
    shutil.copytree(original, tmp_path / "runs")
    return tmp_path / "runs"


def entries(where: Path) -> list[Path]:
    return sorted(p for p in where.iterdir() if len(p.name) == 64)


# kill -9 ------------------------------------------------------------------------------------------------------------


def worker(where: Path, how: str = "whole", number: int = 0) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("sweep_problems.py")), str(where), how, str(number)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def killed_at_random(where: Path, rng: random.Random) -> int:
    """Let a process work on the sweep, and kill it some time after its first new entry; its exit status."""
    before = len(entries(where)) if where.is_dir() else 0
    process = worker(where)
    while process.poll() is None and (not where.is_dir() or len(entries(where)) == before):
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.4))
    process.kill()
    return process.wait()


def seen(where: Path) -> dict[Path, int]:
    """Every entry that is there is whole; when each was written."""
    home = Folder(where)
    for entry in entries(where):
        home.check(entry.name)
    return {entry: (entry / RECORD).stat().st_mtime_ns for entry in entries(where)}


def test_killed_sweeps_go_on_where_they_stopped(tmp_path, uninterrupted, monkeypatch):
    where, rng = tmp_path / "runs", random.Random(4)
    held: dict[Path, int] = {}
    for how, number in (("writing", 5), ("placing", 7), ("random", 0)):
        status = killed_at_random(where, rng) if how == "random" else worker(where, how, number).wait()
        now = seen(where)
        assert held.items() <= now.items(), "no finished run is lost or computed again"
        if how != "random":
            assert status == -signal.SIGKILL
            assert len(now) == len(held) + number - 1
            assert list(where.glob(".*.part")), "the process died in the middle of an entry"
        held = now
    executed, execute = [], EnsembleRun.execute
    monkeypatch.setattr(EnsembleRun, "execute", lambda self, kept: (executed.append(self), execute(self, kept))[1])
    assert sweep(NETS, MANY, where).status().complete
    assert len(executed) == 36 - len(held)
    assert files(where) == uninterrupted


@pytest.mark.slow
def test_fifty_kills_at_random_moments(tmp_path, uninterrupted):
    rng, kills, rounds = random.Random(11), 0, 0
    while kills < 50:
        where, held = tmp_path / f"runs{rounds}", {}
        for _ in range(100):
            kills += killed_at_random(where, rng) == -signal.SIGKILL
            now = seen(where)
            assert held.items() <= now.items()
            held = now
            if len(held) == 36 or kills >= 50:
                break
        assert sweep(NETS, MANY, where).status().complete
        assert held.items() <= seen(where).items()
        assert files(where) == uninterrupted
        rounds += 1


def test_only_what_dead_processes_left_is_removed(where):
    host = socket.gethostname()
    alive, dead, old = (where / f".{h}.{p}.{'0' * 32}.part" for h, p in ((host, os.getpid()), (host, 2**22 + 1), ("elsewhere", 1)))
    recent, other = where / f".elsewhere.2.{'0' * 32}.part", where / ".mine.part"
    for part in (alive, dead, old, recent, other):
        part.mkdir()
    os.utime(old, (0, 0))
    sweep(NETS, GRID, where)
    assert [p.exists() for p in (alive, dead, old, recent, other)] == [True, False, False, True, True]


# damage -------------------------------------------------------------------------------------------------------------


def flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "truncated record": lambda e: os.truncate(e / RECORD, 100),
    "empty record": lambda e: os.truncate(e / RECORD, 0),
    "no record": lambda e: (e / RECORD).unlink(),
    "no point": lambda e: (e / POINT).unlink(),
    "empty entry": lambda e: [(e / f).unlink() for f in (RECORD, POINT)],
    "record of another point": lambda e: shutil.copy(next(o for o in entries(e.parent) if o != e) / RECORD, e / RECORD),
    "entry of another point": lambda e: [shutil.copy(next(o for o in entries(e.parent) if o != e) / f, e / f) for f in (RECORD, POINT)],
    "pickle": lambda e: (e / POINT).write_bytes(pickle.dumps({"inputs": 1})),
    "list": lambda e: (e / POINT).write_text("[1]"),
    "other keys": lambda e: (e / POINT).write_text('{"inputs": {}}'),
    "deep": lambda e: (e / POINT).write_text("[" * 100000),
    "a file": lambda e: (shutil.rmtree(e), e.write_text("mine")),
    **{f"bit of record at {w}": lambda e, w=w: flip(e / RECORD, w) for w in (0.0, 0.1, 0.5, 0.9, 1.0)},
    **{f"bit of point at {w}": lambda e, w=w: flip(e / POINT, w) for w in (0.0, 0.3, 0.6, 1.0)},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_entries_are_missing_and_made_again(where, original, damage):
    watching = sweep(NETS, GRID, where)
    broken = entries(where)[0]
    result = next(r for r in watching.results() if r.name == broken.name)
    damage(broken)
    assert watching.status().count("missing") == 1
    assert len(watching.results()) == 1
    with pytest.raises(FileFormatError) as caught:
        _ = result.record
    assert broken.name in caught.value.field
    assert sweep(NETS, GRID, where).status().complete
    assert files(where) == files(original)


@pytest.mark.parametrize("damage", [lambda p: os.truncate(p, 50), lambda p: p.unlink(), lambda p: flip(p, 0.5)], ids=["cut", "gone", "bit"])
def test_damaged_data_is_written_again_before_it_is_used(where, original, damage):
    damage(next((where / TASKS).iterdir()))
    shutil.rmtree(entries(where)[0])
    assert sweep(NETS, GRID, where).status().complete
    assert files(where) == files(original)


def test_data_under_a_wrong_name_is_refused(where):
    import tp_solver as tp

    home, name = Folder(where), "0" * 64
    right = next((where / TASKS).iterdir())
    assert home.task(right.stem).X.tolist() == TASK.X.tolist()
    shutil.copy(right, where / TASKS / f"{name}.npz")
    with pytest.raises(FileFormatError, match="data of another task"):
        home.task(name)
    with pytest.raises(FileFormatError):
        tp.load(right)  # a task is no solution and no ensemble


@pytest.mark.parametrize("content", ["", "{", "[]", '{"strange": 1}', "\udcff"], ids=["empty", "cut", "list", "foreign", "binary"])
def test_damaged_errors_of_points_are_tried_again(where, content):
    entry = entries(where)[0]
    shutil.rmtree(entry)
    (where / FAILED).mkdir()
    (where / FAILED / f"{entry.name}.json").write_text(content, errors="surrogateescape")
    assert sweep(NETS, GRID, where).status().complete
    assert not list((where / FAILED).iterdir())


# folders that are not ours ------------------------------------------------------------------------------------------


def test_a_folder_of_another_sweep(where, must_be_answered):
    must_be_answered(lambda: sweep(NETS, {"gamma0": [1.0]}, where), "folder", "a sweep over lr")
    must_be_answered(lambda: sweep(NETS, GRID | {"gamma0": [1.0]}, where), "folder", "a sweep over lr")


def test_a_folder_with_other_files(tmp_path, must_be_answered):
    (tmp_path / "thesis.tex").write_text("precious")
    must_be_answered(lambda: sweep(NETS, GRID, tmp_path), "folder", "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    must_be_answered(lambda: sweep(NETS, GRID, tmp_path / "thesis.tex"), "folder", "the file")
    must_be_answered(lambda: sweep(NETS, GRID, tmp_path / "thesis.tex" / "runs"), "folder", "thesis.tex")


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", '{"kind": "other", "schema": 1, "parameters": ["lr"]}', '{"kind": "tp_solver sweep", "schema": "1"}', "\x80"],
)
def test_damaged_descriptions_of_folders(where, content):
    (where / MANIFEST).write_text(content)
    with pytest.raises(FileFormatError, match=MANIFEST):
        sweep(NETS, GRID, where)


def test_folders_of_later_versions(where):
    later = json.loads((where / MANIFEST).read_text()) | {"schema": 99}
    (where / MANIFEST).write_text(json.dumps(later))
    with pytest.raises(FileFormatError, match=r"version 99.*update tp_solver"):
        sweep(NETS, GRID, where)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_folders_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="can be written"):
        sweep(NETS, GRID, tmp_path / "runs")
