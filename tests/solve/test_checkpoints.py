"""Marches that are cut and go on: the same bits, whatever cut them (promises R5 and R15)."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.solve import checkpoint, chunk, trajectory
from tp_solver.solve.progress import Watch

TASK = tp.Task(np.random.default_rng(4).standard_normal((5, 6)), [1.0, -1.0, 0.5, -0.5, 1.0], np.eye(6)[:2], [1.0, -1.0])
NET = tp.mlp(depth=2, activation=tp.tanh)
RULES = {
    "plain": {},
    "everything": {"momentum": 0.5, "weight_decay": 0.1, "temperature": 0.05, "batches": tp.Batches(2), "schedule": tp.cosine(0.2)},
}
OPTIONS = {"samples": 256, "replicates": 2, "method": tp.March(tol=1e-3, recorded=(0, 6, 12))}


def solved(rule, folder=None):
    theory = tp.limit(NET, tp.muP, tp.GradientDescent(lr=0.4, steps=12, **RULES[rule]))
    return tp.solve(theory, TASK, 1.2, checkpoint=folder, **OPTIONS)


def counted(advance, before=lambda steps: None):
    """The same, but told beforehand how many steps were made so far."""

    def counting(*arguments):
        before(counting.steps)
        made = advance(*arguments)
        counting.steps += made.done
        return made

    counting.steps = 0
    return counting


@pytest.fixture(scope="module", params=RULES)
def whole(request):
    """A rule, its uninterrupted solution, and how many steps that took."""
    made = counted(trajectory.advance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectory, "advance", made)
        return request.param, solved(request.param), made.steps


def assert_same_bits(one, two):
    assert one.status is two.status and one.message == two.message
    for name in ("f", "f_test", "loss", "loss_test"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
        assert np.array_equal(one.stderr(name), two.stderr(name))
    for t, s in ((0, 6), (12, 12)):
        assert np.array_equal(one.Phi(1, t, s), two.Phi(1, t, s)) and np.array_equal(one.G(2, t, s), two.G(2, t, s))
    assert np.array_equal(one.ntk(6), two.ntk(6))
    assert np.array_equal(one.fields(1, 12).h, two.fields(1, 12).h)
    assert np.array_equal(one.predict(TASK.X[:2] / 2)[0], two.predict(TASK.X[:2] / 2)[0])
    assert one.details == two.details


@pytest.mark.parametrize("cut", [1, 9, 20, 30])
def test_an_interrupted_solve_goes_on(whole, cut, tmp_path, monkeypatch):
    """Ctrl-C after a number of steps: in the first replicate, in the second, among the runs that estimate errors."""
    rule, expected, steps = whole
    cuts = iter([cut])

    def signalled(made):
        if made >= cut and next(cuts, None):
            os.kill(os.getpid(), signal.SIGINT)

    begun = counted(trajectory.advance, signalled)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(trajectory, "advance", begun)
        assert solved(rule, tmp_path).status is tp.Status.INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, handler)
    assert_same_bits(solved(rule, tmp_path), expected)
    assert begun.steps == steps  # nothing was done twice
    assert_same_bits(solved(rule, tmp_path), expected)
    assert begun.steps == steps  # finished runs are read, not run


@pytest.mark.parametrize("rule", RULES)
def test_bits_do_not_depend_on_how_many_steps_a_call_makes(rule, monkeypatch):
    """One step a call or many, as the clock allows; kernels recorded at some times split calls too."""
    theory = tp.limit(NET, tp.muP, tp.GradientDescent(lr=0.4, steps=40, **RULES[rule]))
    task = tp.Task(TASK.X, TASK.y)
    sols, calls = [], []
    for seconds in (0.0, 1e6):
        monkeypatch.setattr(chunk, "SECONDS", seconds)
        made = counted(trajectory.advance, lambda steps: calls.append(seconds))  # noqa: B023
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trajectory, "advance", made)
            sols.append(tp.solve(theory, task, 1.2, samples=256, replicates=1, method=tp.March(tol=1e-3, bias=False, recorded=(0, 20, 40))))
    assert calls.count(1e6) < calls.count(0.0) / 2
    one, many = sols
    assert np.array_equal(one.f, many.f) and np.array_equal(one.loss, many.loss) and one.details == many.details
    assert np.array_equal(one.Phi(1, 20, 40), many.Phi(1, 20, 40)) and np.array_equal(one.fields(2, 40).z, many.fields(2, 40).z)


@pytest.mark.slow
@pytest.mark.parametrize("told", [1, 12, 130, 420], ids=["first step", "first replicate", "second replicate", "error estimate"])
def test_an_interrupt_of_the_usual_size_ends_in_two_seconds(told, tmp_path, monkeypatch):
    """Problem E3 with the usual 4096 samples: from Ctrl-C between two steps to the solution that is returned. Not while a step is
    compiled, which nothing can cut short."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    problem, call, seen = importlib.import_module("reference_problems").e3(), Watch.__call__, []

    def pressed(self, *arguments):
        seen.append(time.monotonic())
        if len(seen) == told:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)  # another thread may receive the signal first
        call(self, *arguments)

    monkeypatch.setattr(Watch, "__call__", pressed)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sol = tp.solve(problem.theory, problem.task, problem.gamma0, checkpoint=tmp_path)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - seen[told - 1] < 2
    assert sol.status is tp.Status.INTERRUPTED
    assert len(seen) == told, "nothing more is begun"
    assert len(list(tmp_path.glob("march-*.npz"))) >= 1 + (told - 1) // problem.theory.training.steps


def test_what_is_recorded_keeps_nothing_else_alive(monkeypatch):
    """Arrays of a call are as long as a call may be; a view of one step would keep them all."""
    kept, save = [], checkpoint.Checkpoint.save
    monkeypatch.setattr(checkpoint.Checkpoint, "save", lambda self, midway: kept.append(midway.journal) or save(self, midway))
    theory = tp.limit(NET, tp.muP, tp.GradientDescent(lr=0.4, steps=12))
    tp.solve(theory, tp.Task(TASK.X, TASK.y), 1.2, samples=256, replicates=1, method=tp.March(bias=False))
    (journal,) = kept
    arrays = [*journal.f, *(a for entries in journal.records.values() for a in entries.values())]
    assert all(a.base is None or a.base.nbytes == a.nbytes for a in arrays)


KILLED = """
import sys
sys.path.insert(0, {folder!r})
from tp_solver.solve import checkpoint
checkpoint.SECONDS = 0.0
from test_checkpoints import solved
print("ready", flush=True)
solved("everything", {kept!r})
"""


@pytest.mark.slow
def test_a_killed_process_loses_nothing_that_was_written(tmp_path):
    script = KILLED.format(folder=str(Path(__file__).parent), kept=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("march-*.npz"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert list(tmp_path.glob("march-*.npz"))
    assert_same_bits(solved("everything", tmp_path), solved("everything"))


def test_files_of_other_solves_are_left_alone(tmp_path):
    solved("plain", tmp_path)
    names = set(tmp_path.iterdir())
    theory = tp.limit(NET, tp.muP, tp.GradientDescent(lr=0.4, steps=12))
    other = tp.solve(theory, TASK, 1.3, checkpoint=tmp_path, **OPTIONS)
    assert len(set(tmp_path.iterdir())) == 2 * len(names)
    assert np.array_equal(other.f, tp.solve(theory, TASK, 1.3, **OPTIONS).f)


def test_damaged_and_foreign_files_are_answered(tmp_path):
    solved("plain", tmp_path)
    victim = sorted(tmp_path.iterdir())[0]
    content = victim.read_bytes()
    for damaged in (content[: len(content) // 2], content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], b"nothing"):
        victim.write_bytes(damaged)
        with pytest.raises(tp.FileFormatError, match=victim.name):
            solved("plain", tmp_path)
    solved("plain").save(victim)
    with pytest.raises(tp.FileFormatError, match="a solution"):
        solved("plain", tmp_path)


@pytest.mark.parametrize("folder", [3, "", "no/such/folder", __file__])
def test_bad_folders(folder):
    with pytest.raises(tp.InputError, match="checkpoint"):
        solved("plain", folder)


def test_other_methods_keep_nothing(tmp_path):
    with pytest.raises(tp.InputError, match="checkpoint"):
        tp.solve(tp.limit(NET, tp.ntk, tp.GradientDescent(0.1, 3)), TASK, checkpoint=tmp_path)


def test_checkpoints_are_written_in_time(tmp_path, monkeypatch):
    """Every step where no time may pass, else only the end."""
    written, original = [], checkpoint.write_record

    def counted(path, record):
        written.append(int(record.header["t"]))
        original(path, record)

    monkeypatch.setattr(checkpoint, "write_record", counted)
    theory = tp.limit(NET, tp.muP, tp.GradientDescent(lr=0.4, steps=3))
    tp.solve(theory, TASK, 1.0, samples=128, replicates=1, method=tp.March(bias=False), checkpoint=tmp_path)
    assert written == [4]
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    tp.solve(theory, TASK, 1.1, samples=128, replicates=1, method=tp.March(bias=False), checkpoint=tmp_path)
    assert written == [4, 1, 2, 3, 4]
