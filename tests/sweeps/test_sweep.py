"""Sweeps: what is computed, where, and how often."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from sweep_problems import MANY, NET, NETS, RULE, TASK, THEORY, files

import tp_solver as tp
from tp_solver.errors import FileFormatError, InputError
from tp_solver.finite.ensemble import Ensemble
from tp_solver.solve.solution import Solution, Status
from tp_solver.sweeps import runs
from tp_solver.sweeps.grid import plan
from tp_solver.sweeps.runs import RUNS, EnsembleRun, LimitRun, canonical, run_from_tree, run_to_tree, task_name
from tp_solver.sweeps.sweep import State, sweep

GRID = {"lr": [0.1, 0.2], "gamma0": [0.5, 1.0, 2.0]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return sweep(NETS, GRID, tmp_path_factory.mktemp("finished") / "runs")


@pytest.fixture
def executions(monkeypatch):
    """Every run that is executed in this process, in order."""
    seen: list = []
    for kind in RUNS.values():

        def counted(self, kept=None, execute=kind.execute):
            seen.append(self)
            return execute(self, kept)

        monkeypatch.setattr(kind, "execute", counted)
    return seen


def test_results_are_what_the_verbs_return(finished):
    assert finished.status().complete
    assert finished.status().count("done") == 6
    results = finished.results()
    assert [r.values for r in results] == [{"lr": lr, "gamma0": g} for lr in GRID["lr"] for g in GRID["gamma0"]]
    rule = tp.GradientDescent(lr=0.2, steps=3)
    direct = tp.simulate(NET, tp.muP, rule, TASK, gamma0=2.0, widths=(4,), seeds=2, progress=False)
    np.testing.assert_array_equal(results[-1].record.f, direct.f)
    assert isinstance(results[0].record, Ensemble)
    assert results[0].record is results[0].record, "read once"
    assert results[-1].record.training == rule


def test_limits_are_solved_and_kept(tmp_path):
    def run(parameterization, activation, depth):
        return LimitRun(tp.mlp(depth=depth, activation=activation), parameterization, RULE, TASK, method="kernel")

    done = sweep(run, {"parameterization": [tp.ntk, tp.standard_1n], "activation": [tp.erf], "depth": [1]}, tmp_path / "runs")
    assert [a.labels for a in done.plan.axes] == [("NTK", "standard, rate 1/N"), ("erf",), ("1",)]
    for result, parameterization in zip(done.results(), (tp.ntk, tp.standard_1n), strict=True):
        assert isinstance(result.record, Solution)
        direct = tp.solve(tp.limit(tp.mlp(depth=1, activation=tp.erf), parameterization, RULE), TASK, method="kernel")
        np.testing.assert_array_equal(result.record.f, direct.f)


def test_nothing_is_computed_twice(tmp_path, executions):
    where = tmp_path / "runs"
    sweep(NETS, {"lr": [0.1, 0.2]}, where)
    assert len(executions) == 2
    before = {p: p.stat().st_mtime_ns for p in where.rglob("*") if p.is_file()}
    again = sweep(NETS, {"lr": [0.1, 0.2]}, where)
    assert len(executions) == 2
    assert again.status().complete
    more = sweep(NETS, {"lr": [0.2, 0.3, 0.1]}, where)  # a grid may grow
    assert len(executions) == 3
    assert executions[-1].training.lr == 0.3
    assert more.status().complete
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_function_a_record_and_a_list_name_the_same_runs():
    def run(lr, gamma0):
        return EnsembleRun(NET, tp.muP, tp.GradientDescent(lr=lr, steps=3), TASK, gamma0=gamma0, widths=(4,), seeds=(0, 1))

    points = [{"lr": lr, "gamma0": g} for lr in GRID["lr"] for g in GRID["gamma0"]]
    names = [[p.name for p in plan(*args).points] for args in ((NETS, GRID), (run, GRID), (NETS, points))]
    assert names[0] == names[1] == names[2]
    assert len(set(names[0])) == 6
    assert plan(NETS, points).shape == (6,)


@pytest.mark.parametrize(
    "change",
    [
        {"net": tp.mlp(depth=1, activation=tp.erf)},
        {"parameterization": tp.ntk},
        {"training": tp.GradientDescent(lr=0.1, steps=3, momentum=0.5)},
        {"task": tp.Task(TASK.X, TASK.y * 2, TASK.X_test, TASK.y_test, TASK.name)},
        {"task": tp.Task(TASK.X, TASK.y, name=TASK.name)},
        {"gamma0": 1.0 + 1e-15},
        {"widths": (5,)},
        {"seeds": (0, 2)},
        {"centred": True},
        {"times": (0, 3)},
        {"seed": 1},
        {"dtype": "float32"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_input_is_part_of_the_name(change):
    assert plan(NETS, {name: [value] for name, value in change.items()}).points[0].name != plan(NETS, {"gamma0": [1.0]}).points[0].name


def test_a_target_is_part_of_the_name_and_its_absence_changes_nothing():
    march = dataclasses.replace(THEORY, parameterization=tp.muP)
    (plain,), (one, two) = plan(march, {"gamma0": [1.0]}).points, plan(march, {"rtol": [0.1, 0.2]}).points
    assert len({plain.name, one.name, two.name}) == 3
    assert plain.name == "bd88b623dfdaf453a9ac28523cf11f914b5272ddb91a610eac699a6ac34589fa", "results of earlier versions are found"


def test_a_target_reaches_the_solver(tmp_path, monkeypatch):
    seen, real = [], runs.solve

    def noted(*args, rtol, **options):
        seen.append(rtol)
        return real(*args, **options)

    monkeypatch.setattr(runs, "solve", noted)
    assert sweep(THEORY, [{"rtol": rtol} for rtol in (0.2, 0.1)], tmp_path / "runs").status().complete
    assert seen == [0.2, 0.1]


def test_names_do_not_depend_on_the_process():
    code = "from sweep_problems import *; from tp_solver.sweeps.grid import plan\n"
    code += "print([p.name for p in plan(NETS, MANY).points] + [p.name for p in plan(THEORY, MANY).points])"
    env = os.environ | {"PYTHONHASHSEED": "271"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=Path(__file__).parent)
    assert done.stdout.strip() == str([p.name for p in plan(NETS, MANY).points] + [p.name for p in plan(THEORY, MANY).points])


@pytest.mark.parametrize(
    "run",
    [
        THEORY,
        LimitRun(NET, tp.muP, RULE, TASK, method=tp.March(tol=1e-3, times=(0, 2))),
        LimitRun(NET, tp.muP, RULE, TASK, rtol=0.05),
        LimitRun(NET, tp.muP, tp.GradientFlow(time=1.0, steps=2), TASK, gamma0=np.float32(0.3), method="fixed_point"),
        NETS,
        EnsembleRun(NET, tp.muP, RULE, TASK, widths=[4, 8], seeds=(3, 5), times=range(3), centred=True),
    ],
    ids=["kernel", "march", "target", "fixed point", "nets", "nets, all options"],
)
def test_runs_survive_the_way_to_a_worker(run):
    tree = json.loads(canonical(run_to_tree(run, task_name(TASK))))
    back = run_from_tree(tree, TASK)
    assert type(back) is type(run)
    assert canonical(run_to_tree(back, task_name(TASK))) == canonical(tree)
    assert back.options() == run.options()


@pytest.mark.parametrize("tree", [{}, {"kind": "other"}, {"kind": "limit", "options": 3}, {"kind": "limit", "options": {}, "program": 1}])
def test_foreign_descriptions_are_refused(tree):
    with pytest.raises(FileFormatError):
        run_from_tree(tree, TASK)


# executors ----------------------------------------------------------------------------------------------------------


class Later:
    """A future that is computed when it is asked for, as those of a cluster may be."""

    def __init__(self, call):
        self.call, self.ended = call, False

    def done(self):
        return self.ended

    def result(self):
        answer = self.call()
        self.ended = True
        return answer


class Cluster:
    """An executor with nothing but ``submit``, which sends calls through pickle and checks that they are plain."""

    def submit(self, function, *args):
        assert all(type(a) is str for a in args)
        assert getattr(import_module(function.__module__), function.__qualname__) is function
        function, args = pickle.loads(pickle.dumps((function, args)))
        return Later(lambda: function(*args))


def test_anything_with_submit_is_an_executor(tmp_path, finished):
    started = sweep(NETS, GRID, tmp_path / "runs", Cluster())
    assert started.status().count(State.RUNNING) == 6
    assert started.results() == ()
    assert started.wait() is started
    assert started.status().complete
    assert files(tmp_path / "runs") == files(finished.folder.path)


def test_threads(tmp_path, finished):
    with ThreadPoolExecutor(2) as pool:
        done = sweep(NETS, GRID, tmp_path / "runs", pool).wait()
    assert done.status().complete
    assert files(tmp_path / "runs") == files(finished.folder.path)


def test_processes(tmp_path, finished):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        done = sweep(NETS, GRID, tmp_path / "runs", pool).wait()
    assert done.status().complete
    assert files(tmp_path / "runs") == files(finished.folder.path)


def test_two_sweeps_at_once_share_a_folder(tmp_path, finished, executions):
    """Both compute, neither corrupts: who comes second discards."""
    gate = threading.Barrier(2)

    def one():
        gate.wait()
        sweep(NETS, GRID, tmp_path / "runs", progress=False)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert 6 <= len(executions) <= 12
    assert files(tmp_path / "runs") == files(finished.folder.path)


def test_lost_workers_are_reported_and_lose_nothing_else(tmp_path, executions):
    class Dying(Cluster):
        def submit(self, function, *args):
            future = super().submit(function, *args)
            if '"pace":0.2' in args[1]:
                future.call = lambda: (_ for _ in ()).throw(ConnectionError("the node went away"))
            elif '"pace":0.3' in args[1]:
                future.call = lambda: "computed on another disk"
            return future

    started = sweep(NETS, {"lr": [0.1, 0.2, 0.3]}, tmp_path / "runs", Dying())
    with pytest.raises(InputError, match=r"executor: got 2 lost of 3 points, first lr = 0.2 \(ConnectionError: the node went away\)"):
        started.wait()
    assert [str(s) for s in started.status().states] == ["done", "running", "missing"]
    assert sweep(NETS, {"lr": [0.1, 0.2, 0.3]}, tmp_path / "runs").status().complete
    assert [run.training.lr for run in executions] == [0.1, 0.2, 0.3]


def test_an_interrupt_takes_back_what_has_not_begun(tmp_path):
    cancelled = []

    class Interrupted(Later):
        def result(self):
            raise KeyboardInterrupt

        def cancel(self):
            cancelled.append(self)

    class Busy(Cluster):
        def submit(self, function, *args):
            return Interrupted(super().submit(function, *args).call)

    with pytest.raises(KeyboardInterrupt):
        sweep(NETS, GRID, tmp_path / "runs", Busy()).wait()
    assert len(cancelled) == 6


# failures and interrupts ---------------------------------------------------------------------------------------------


def test_failed_points_keep_their_error_and_are_retried_alone(tmp_path, executions, monkeypatch):
    real, broken = EnsembleRun.execute, [0.2, 0.3]

    def moody(self, kept):
        if self.training.lr in broken:
            executions.append(self)
            raise tp.BudgetError("memory", 3, "at most 2 bytes", "use less") if self.training.lr == 0.2 else MemoryError("too much")
        return real(self, kept)

    monkeypatch.setattr(EnsembleRun, "execute", moody)
    where, grid = tmp_path / "runs", {"lr": [0.1, 0.2, 0.3]}
    done = sweep(NETS, grid, where)
    status = done.status()
    assert [str(s) for s in status.states] == ["done", "failed", "failed"]
    first = status.failures[1]
    assert (first.error, first.field, first.got, first.expected, first.hint) == (
        "BudgetError",
        "memory",
        "3",
        "at most 2 bytes",
        "use less",
    )
    assert "MemoryError: too much" in str(status)
    assert "lr = 0.3" in str(status)
    assert np.isnan(done.table().values[1:]).all()
    assert list(done.table().status) == ["completed", "failed", "failed"]

    assert sweep(NETS, grid, where).status().count("failed") == 2
    assert len(executions) == 3, "a failure is not repeated unasked"
    broken.remove(0.2)
    again = sweep(NETS, grid, where).retry()
    assert [run.training.lr for run in executions[3:]] == [0.2, 0.3]
    assert [str(s) for s in again.status().states] == ["done", "done", "failed"]
    broken.clear()
    with ThreadPoolExecutor(1) as pool:
        assert again.retry(pool).wait().status().complete
    assert [run.training.lr for run in executions[5:]] == [0.3]
    assert not list((where / "failed").iterdir())


def test_errors_of_the_theory_are_failures(tmp_path):
    done = sweep(THEORY, {"method": ["linear"], "parameterization": [tp.muP]}, tmp_path / "runs")
    failure = done.status().failures[0]
    assert failure.error in ("ProgramError", "InputError")
    assert failure.field
    assert failure.hint


def test_an_interrupted_solve_is_no_result(tmp_path, monkeypatch):
    real = runs.solve
    monkeypatch.setattr(runs, "solve", lambda *a, **k: dataclasses.replace(real(*a, **k), status=Status.INTERRUPTED))
    with pytest.raises(KeyboardInterrupt):
        sweep(THEORY, {"gamma0": [1.0]}, tmp_path / "runs")
    monkeypatch.undo()
    assert sweep(THEORY, {"gamma0": [1.0]}, tmp_path / "runs").results()[0].record.status is Status.COMPLETED


def test_an_interrupt_leaves_the_finished_points(tmp_path, monkeypatch, executions):
    counted = EnsembleRun.execute

    def interrupted(self, kept):
        if len(executions) == 2:
            raise KeyboardInterrupt
        return counted(self, kept)

    monkeypatch.setattr(EnsembleRun, "execute", interrupted)
    where = tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        sweep(NETS, GRID, where)
    monkeypatch.setattr(EnsembleRun, "execute", counted)
    assert not list(where.glob(".*"))
    assert sweep(NETS, GRID, where).status().complete
    assert len(executions) == 6
    assert len({run.gamma0 * 10 + run.training.lr for run in executions}) == 6
