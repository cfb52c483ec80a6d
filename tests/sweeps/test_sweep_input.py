"""Bad input to sweeps is answered before anything is computed."""

from __future__ import annotations

import concurrent.futures
import functools

import numpy as np
import pytest
from sweep_problems import NET, NETS, RULE, TASK, THEORY

import tp_solver as tp
from tp_solver.sweeps.runs import EnsembleRun, LimitRun
from tp_solver.sweeps.sweep import sweep


def run(gamma0, lr=0.1):
    return LimitRun(NET, tp.ntk, tp.GradientDescent(lr=lr, steps=2), TASK, gamma0=gamma0)


def useless(gamma0):
    return gamma0


MARCH = LimitRun(NET, tp.muP, RULE, TASK)
BAD = {
    "misspelt parameter": (NETS, {"gama0": [1.0]}, "grid", "gama0"),
    "misspelt parameter of the rule": (NETS, {"momentun": [0.5]}, "grid", "momentun"),
    "parameter of the net": (NETS, {"depth": [1, 2]}, "grid", "depth"),
    "parameter of the other kind of run": (THEORY, {"widths": [4, 8]}, "grid", "widths"),
    "parameter of another rule": (THEORY, {"training": [tp.GradientFlow(1.0, 2)], "lr": [0.1]}, "grid", "lr"),
    "misspelt parameter of a function": (run, {"gamma": [1.0]}, "grid", "gamma"),
    "missing parameter of a function": (run, {"lr": [0.1]}, "grid", "lr"),
    "empty grid": (NETS, {}, "grid", "an empty grid"),
    "no points": (NETS, [], "grid", "an empty list"),
    "no values": (NETS, {"lr": []}, "grid['lr']", "an empty sequence"),
    "a value instead of values": (NETS, {"lr": 0.1}, "grid['lr']", "0.1"),
    "a text instead of values": (NETS, {"dtype": "float32"}, "grid['dtype']", "float32"),
    "a key that is no name": (NETS, {1: [0.1]}, "grid", "1"),
    "no grid": (NETS, None, "grid", "None"),
    "a text for a grid": (NETS, "lr", "grid", "lr"),
    "a point that is none": (NETS, [{"lr": 0.1}, 0.2], "grid[1]", "0.2"),
    "an empty point": (NETS, [{}], "grid", "an empty grid"),
    "points of different parameters": (NETS, [{"lr": 0.1}, {"gamma0": 0.1}], "grid[1]", "gamma0"),
    "repeated value": (NETS, {"lr": [0.1, 0.2, 0.1]}, "grid", "lr = 0.1; and lr = 0.1"),
    "repeated point": (NETS, [{"lr": 0.1}, {"lr": 0.1}], "grid", "the same run twice"),
    "parameter that changes nothing": (lambda lr, x: NETS, {"lr": [0.1], "x": [1, 2]}, "grid", "x = 1; and lr = 0.1, x = 2"),
    "bad value": (NETS, {"lr": [0.1, -1.0]}, "lr", "-1"),
    "NaN": (THEORY, {"gamma0": [float("nan")]}, "gamma0", "nan"),
    "bad value in a function": (run, {"gamma0": [-2.0]}, "gamma0", "-2"),
    "odd samples": (THEORY, {"samples": [65]}, "samples", "65"),
    "target and samples": (MARCH, {"samples": [512], "rtol": [0.01]}, "samples", "512"),
    "target of one": (MARCH, {"rtol": [0.1, 1.0]}, "rtol", "1.0"),
    "target as text": (MARCH, {"rtol": ["1%"]}, "rtol", "1%"),
    "target for kernels": (MARCH, {"rtol": [0.1], "method": ["kernel"]}, "rtol", "0.1"),
    "target for one replicate": (MARCH, {"rtol": [0.1], "replicates": [1]}, "replicates", "1"),
    "target for nets": (NETS, {"rtol": [0.1]}, "grid", "rtol"),
    "unknown method": (THEORY, {"method": ["marsh"]}, "method", "marsh"),
    "bad width": (NETS, {"widths": [4, 0]}, "widths[0]", "0"),
    "function that returns no run": (useless, {"gamma0": [1.0]}, "experiment", "1.0"),
    "no experiment": (3, {"gamma0": [1.0]}, "experiment", "3"),
    "a net for an experiment": (NET, {"gamma0": [1.0]}, "experiment", "mlp"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_malformed_sweeps(case, tmp_path, must_be_answered):
    experiment, grid, field, value = case
    must_be_answered(lambda: sweep(experiment, grid, tmp_path / "runs"), field, value)
    assert not (tmp_path / "runs").exists()


def test_the_nearest_name_is_suggested(tmp_path):
    with pytest.raises(tp.InputError, match="did you mean 'gamma0'"):
        sweep(NETS, {"gama0": [1.0]}, tmp_path)
    with pytest.raises(tp.InputError, match="did you mean 'momentum'"):
        sweep(NETS, {"momentun": [0.5]}, tmp_path)
    with pytest.raises(tp.InputError, match=r"sweep over net=\[...\], or give a function"):
        sweep(NETS, {"activation": [tp.tanh]}, tmp_path)


@pytest.mark.parametrize(
    ("executor", "value"),
    [("threads", "threads"), (3, "3"), (concurrent.futures.ThreadPoolExecutor, "the class ThreadPoolExecutor"), (map, "the class map")],
    ids=["text", "number", "class", "another class"],
)
def test_executors_without_submit(executor, value, tmp_path, must_be_answered):
    must_be_answered(lambda: sweep(NETS, {"lr": [0.1]}, tmp_path / "runs", executor), "executor", value)
    assert not (tmp_path / "runs").exists()


def test_an_executor_that_is_shut_down(tmp_path, must_be_answered):
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.shutdown()
    must_be_answered(lambda: sweep(NETS, {"lr": [0.1]}, tmp_path / "runs", pool), "executor", "a submit that fails")


@pytest.mark.parametrize("folder", [None, 3, ""], ids=["none", "number", "empty"])
def test_what_is_no_folder(folder, must_be_answered):
    must_be_answered(lambda: sweep(NETS, {"lr": [0.1]}, folder), "folder", repr(folder))


def test_progress_is_a_flag(tmp_path, must_be_answered):
    must_be_answered(lambda: sweep(NETS, {"lr": [0.1]}, tmp_path / "runs", progress="no"), "progress", "no")


@pytest.mark.parametrize("kind", [LimitRun, EnsembleRun])
@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"net": tp.tanh}, "net", "tanh"),
        ({"parameterization": "muP"}, "parameterization", "muP"),
        ({"training": tp.GradientDescent}, "training", "the class GradientDescent"),
        ({"task": TASK.X}, "task", "array"),
        ({"gamma0": -1}, "gamma0", "-1"),
        ({"seed": 1.5}, "seed", "1.5"),
        ({"training": tp.GradientDescent(0.1, 2, tp.Logistic()), "task": tp.Task(TASK.X, [0.0, 1.0, 2.0])}, "y", "0"),
    ],
    ids=lambda c: ",".join(c) if isinstance(c, dict) else None,
)
def test_malformed_runs(kind, change, field, value, must_be_answered):
    good = {"net": NET, "parameterization": tp.muP, "training": RULE, "task": TASK}
    must_be_answered(lambda: kind(**(good | change)), field, value)


def test_defaults_and_partial_functions_are_welcome(tmp_path):
    from tp_solver.sweeps.grid import plan

    assert len(plan(run, {"gamma0": [1.0, 2.0]}).points) == 2
    assert len(plan(functools.partial(run, lr=0.2), {"gamma0": np.array([1.0, 2.0])}).points) == 2
    assert len(plan(lambda **given: run(**given), {"gamma0": (1, 2), "lr": range(1, 3)}).points) == 4


def test_values_of_equal_names_stay_apart():
    from tp_solver.sweeps.grid import plan

    twins = [tp.Task(TASK.X, TASK.y * k, name="twin") for k in (1, 2, 3)]
    made = plan(NETS, {"task": twins, "widths": [4, (4, 8)]})
    assert made.axes[0].labels == ("twin", "twin (2)", "twin (3)")
    assert made.axes[1].labels == ("4", "4, 8")
    assert made.label(made.points[-1]) == "task = twin (3), widths = 4, 8"
    assert [a.numeric for a in made.axes] == [False, False]
