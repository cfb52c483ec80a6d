"""The command line: what it answers to good and to bad inputs, and what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

import tp_solver as tp
from tp_solver import config
from tp_solver.cli import COMMANDS, main
from tp_solver.errors import InputError
from tp_solver.restore import load

EXAMPLE = Path(tp.__file__).parent / "examples" / "demo.toml"
SMALL = """
[network]
depth = 1
activation = "erf"
[parameterization]
preset = "ntk"
[training]
lr = 0.5
steps = 3
[task]
arrays = "points.npz"
[simulate]
widths = [16, 32]
seeds = 3
times = "ends"
"""


@pytest.fixture
def small(tmp_path):
    """A run in the kernel regime, where theory costs nothing."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "points.npz", X=rng.standard_normal((4, 3)), y=[1.0, -1.0, 1.0, -1.0], X_test=rng.standard_normal((2, 3)))
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_the_example_is_the_one_described():
    """What the demo promises, read from the file it runs."""
    c = config.read(EXAMPLE)
    assert c.net() == tp.mlp(depth=3, activation=tp.tanh)
    assert c.parameterization() is tp.muP
    assert c.options("solve")["gamma0"] == 1.0
    widths = c.options("simulate")["widths"]
    assert (min(widths), max(widths)) == (64, 1024)
    task = c.task()
    assert task.P == 40
    assert len(task.X_test) >= 40
    assert set(task.y) == {-1.0, 1.0}
    assert c.options("simulate")["times"] == (0, c.training().steps)


def test_compare_leaves_a_whole_folder(small, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", str(small), "--out", str(out), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert "f, rms" in shown.out
    assert "kernel regime" in shown.out
    assert shown.err == ""
    found = {p.name for p in out.iterdir()}
    assert found == {"solution.npz", "ensemble.npz", "comparison.png", "equations.tex", "report.md", "inputs.toml", "data.npz"}
    text = (out / "report.md").read_text()
    for part in ("(comparison.png)", "| f, rms |", "$$", "tp-solver compare inputs.toml", "numpy", "lr = 0.5"):
        assert part in text
    latex = (out / "equations.tex").read_text()
    assert latex.count(r"\begin{align*}") == latex.count(r"\end{align*}") > 2
    sol, ens = load(out / "solution.npz"), load(out / "ensemble.npz")
    assert str(tp.Task(sol.task.X, sol.task.y)) == str(tp.Task(ens.task.X, ens.task.y))


def test_the_folder_runs_again_to_the_same_numbers(small, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["simulate", str(small), "--set", "training.steps=2", "--out", str(first), "--quiet"]) == 0
    assert main(["simulate", str(first / "inputs.toml"), "--out", str(second), "--quiet"]) == 0
    a, b = load(first / "ensemble.npz"), load(second / "ensemble.npz")
    assert a.training.steps == b.training.steps == 2
    assert np.array_equal(a.f, b.f)


def test_derive_and_regime(small, tmp_path, capsys):
    assert main(["derive", str(small), "--set", "parameterization.preset=muP", "--out", str(tmp_path / "d")]) == 0
    shown = capsys.readouterr()
    assert "feature learning regime" in shown.out
    assert "h^1_mu(t)" in shown.out
    assert "written to" in shown.err
    assert main(["regime", str(small), "--set", 'parameterization.preset="standard"', "--out", str(tmp_path / "r")]) == 0
    assert "unstable" in capsys.readouterr().out
    assert "cure" in (tmp_path / "r" / "report.md").read_text()


def test_progress_goes_to_stderr(small, tmp_path, capsys):
    assert main(["solve", str(small), "--out", str(tmp_path / "s")]) == 0
    shown = capsys.readouterr()
    assert "theory" in shown.err
    assert "theory ..." not in shown.out
    assert "test loss" not in shown.out, "the task has no test labels"


def test_a_target_in_place_of_samples(small, tmp_path, capsys):
    out, more = tmp_path / "out", ["--set", "parameterization.preset=muP", "--set", "training.steps=2"]
    small.write_text(SMALL + "[solve]\nrtol = 0.2\nreplicates = 2\n")
    assert main(["solve", str(small), "--out", str(out), "--quiet", *more]) == 0
    sol = load(out / "solution.npz")
    assert sol.success and sol.details["rtol"] == 0.2 and sol.details["rounds"][-1]["error"] <= 0.2
    assert config.read(out / "inputs.toml").options("solve") == {"rtol": 0.2, "replicates": 2}
    for change in ("solve.replicates=1", "solve.method=fixed_point"):
        assert main(["compare", str(small), "--out", str(tmp_path / "no"), *more, "--set", change]) == 2
        assert "Error: solve.r" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


FIRST_STEP = """
import os, sys, time
from tp_solver.cli import main
from tp_solver.solve.progress import Watch

def first(self, step, loss, rank):
    print(step, file=sys.stderr, flush=True)
    os._exit(0)

Watch.__call__ = first
main(["demo", "--out", sys.argv[1]])
"""


@pytest.mark.slow
def test_the_demo_takes_its_first_step_soon(tmp_path, record_property):
    """From the start of a process to the end of the first step, imports, derivation and compilation included; the second of two
    processes, so that files are in memory. In processor time, as others may keep the machine busy: alone, it takes no longer."""
    for _ in range(2):
        start, before = time.monotonic(), os.times()
        done = subprocess.run([sys.executable, "-c", FIRST_STEP, str(tmp_path)], capture_output=True, text=True, timeout=120)
        seconds, after = time.monotonic() - start, os.times()
        assert done.returncode == 0 and done.stderr.splitlines()[-1] == "1", done.stderr[-2000:]
    record_property("seconds_to_the_first_step", seconds)
    assert after.children_user + after.children_system - before.children_user - before.children_system <= 15


# --set and exact numbers --------------------------------------------------------------------------------------------


def test_overrides(small):
    c = config.read(small, ["training.steps=7", "network.activation=relu", "training.lr=[0.1, 0.2]", "solve.gamma0 = 1.5"])
    assert c.training() == tp.GradientDescent((0.1, 0.2), 7)
    assert config.read(small, ["training.momentum=0.5"]).training().momentum == 0.5
    assert c.net() == tp.mlp(1, tp.relu)
    assert config.read(small, ["network.output_bias=0.5"]).net() == tp.mlp(1, tp.erf, output_bias=0.5)
    assert c.options("solve") == {"gamma0": 1.5}
    assert config.read(EXAMPLE, ["task.digits.points=10"]).task().P == 10


def test_exact_exponents(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[parameterization]\nname = "mine"\na = ["-1/2", 0, 0.5]\nb = "+1/2"\nc = ["1/3", " 2 / 7 ", "-.25"]\nalpha = ["1/sqrt(D)", 1, 2.5]'
        '\noutput_bias = [0, "1/2", 1]'
    )
    p = config.read(path).parameterization()
    assert p.a == (sp.Rational(-1, 2), 0, sp.Rational(1, 2))
    assert p.b == (sp.Rational(1, 2),) * 3
    assert p.c == (sp.Rational(1, 3), sp.Rational(2, 7), sp.Rational(-1, 4))
    assert p.alpha == (1 / sp.sqrt(tp.D), 1, sp.Float(2.5))
    assert p.output_bias == (0, sp.Rational(1, 2), 1)


def test_presets_can_be_written_out(tmp_path):
    path = tmp_path / "mup.toml"
    path.write_text(
        '[parameterization]\nname = "muP"\na = ["-1/2", 0, "1/2"]\nb = ["1/2", "1/2", "1/2"]\nc = [0, 0, 0]\nalpha = ["1/sqrt(D)", 1, 1]'
    )
    assert config.read(path).parameterization() == tp.muP


def test_gradient_flow(small):
    c = config.read(small, ["training.rule=gradient_flow", "training.time=2.5"])
    with pytest.raises(InputError, match=r"training\.lr"):
        c.training()
    text = SMALL.replace("lr = 0.5", 'rule = "gradient_flow"\ntime = 2.5\nloss = "logistic"')
    small.write_text(text)
    assert config.read(small).training() == tp.GradientFlow(2.5, 3, tp.Logistic())
    with pytest.raises(InputError, match=r"training\.momentum"):
        config.read(small, ["training.momentum=0.5"]).training()


def test_written_inputs_are_the_inputs(tmp_path):
    table = {
        "training": {"lr": {"W0": 0.1, "odd name": 1e-7}, "steps": 3, "loss": 'a "quoted"\n\\ text'},
        "x": {"flag": True, "many": [1, 2.5, ["a"]]},
    }
    assert tomllib.loads(config.to_toml(table)) == table


# bad input ----------------------------------------------------------------------------------------------------------

WRONG = {
    "misspelt section": ("trainig.lr=1", "trainig", "'training'"),
    "misspelt key": ("network.dept=3", "network.dept", "'depth'"),
    "key of another section": ("simulate.samples=3", "simulate.samples", "[solve]"),
    "misspelt subkey": ("task.digits.point=3", "task.digits.point", "'points'"),
    "misspelt activation": ('network.activation="tahn"', "network.activation", "'tanh'"),
    "misspelt preset": ("parameterization.preset=mup", "parameterization.preset", "'muP'"),
    "misspelt rule": ("training.rule=gradient_decent", "training.rule", "'gradient_descent'"),
    "misspelt loss": ("training.loss=logistics", "training.loss", "'logistic'"),
    "misspelt method": ("solve.method=marsh", "solve.method", "'march'"),
    "depth as text": ('network.depth="3"', "network.depth", ""),
    "depth zero": ("network.depth=0", "network.depth", ""),
    "depth with a decimal point": ("network.depth=3.0", "network.depth", "decimal"),
    "depth true": ("network.depth=true", "network.depth", ""),
    "output bias as text": ('network.output_bias="yes"', "network.output_bias", "sigma_b"),
    "exponents of the output bias": ("parameterization.output_bias=[0, 1]", "parameterization.output_bias", "[0, "),
    "negative rate": ("training.lr=-0.1", "training.lr", ""),
    "rate nan": ("training.lr=nan", "training.lr", ""),
    "momentum one": ("training.momentum=1.0", "training.momentum", ""),
    "momentum as text": ("training.momentum=much", "training.momentum", ""),
    "rate infinite": ("training.lr=inf", "training.lr", ""),
    "rate of a date": ("training.lr=2020-01-01", "training.lr", ""),
    "too many rates": ("training.lr=[1, 2, 3, 4, 5]", "training.lr", ""),
    "no steps": ("training.steps=0", "training.steps", ""),
    "time with descent": ("training.time=1.0", "training.time", "gradient_flow"),
    "gamma0 negative": ("solve.gamma0=-1", "solve.gamma0", ""),
    "gamma0 zero for nets": ("solve.gamma0=0", "solve.gamma0", ""),
    "odd samples": ("solve.samples=101", "solve.samples", ""),
    "target as text": ("solve.rtol=1%", "solve.rtol", ""),
    "target zero": ("solve.rtol=0.0", "solve.rtol", ""),
    "target nan": ("solve.rtol=nan", "solve.rtol", ""),
    "target one": ("solve.rtol=1", "solve.rtol", "one percent"),
    "a target and samples": ("solve.rtol=0.01", "solve.samples", "rtol chooses the samples"),
    "misspelt target": ("solve.rtoll=0.01", "solve.rtoll", "'rtol'"),
    "widths as a number": ("simulate.widths=64", "simulate.widths", "["),
    "unclosed list": ("simulate.widths=[64", "simulate.widths", "["),
    "one width twice": ("simulate.widths=[64, 64]", "simulate.widths", ""),
    "width zero": ("simulate.widths=[0]", "simulate.widths[0]", ""),
    "time after the end": ("simulate.times=[0, 1000]", "simulate.times", ""),
    "precision": ("simulate.dtype=float16", "simulate.dtype", ""),
    "centred as text": ("simulate.centred=yes", "simulate.centred", ""),
    "a preset and exponents": ("parameterization.a=1", "parameterization", "remove"),
    "digits that are not there": ("task.digits.points=100000", "task.digits.points + test", ""),
    "one class": ("task.digits.classes=[1]", "task.digits.classes", ""),
    "two kinds of data": ("task.arrays=x.npz", "task", ""),
    "figure format": ("output.figure=jpg", "output.figure", ""),
    "section that is a number": ("network=3", "--set", "for example"),
    "no equals sign": ("network.depth", "--set", "--set"),
    "no key": ("=3", "--set", "--set"),
}


@pytest.mark.parametrize(("override", "field", "hint"), WRONG.values(), ids=WRONG)
def test_bad_entries_are_named(override, field, hint, tmp_path, capsys, monkeypatch, compilations):
    monkeypatch.chdir(tmp_path)
    before = len(compilations)
    assert main(["demo", "--set", override]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"Error: {field}: got " in shown.err
    assert hint in shown.err.split("Hint: ")[1]
    assert "Traceback" not in shown.err
    assert len(compilations) == before, "refused before anything is compiled"
    assert not list(tmp_path.iterdir()), "and before anything is written"


EXPONENTS = {
    "a symbol": '"q"',
    "a formula": '"1/2 + 1/2"',
    "code": "\"__import__('os').getpid()\"",
    "a zero denominator": '"1/0"',
    "an inexact float": "0.333",
    "a huge number": '"1/99999999999999999999"',
    "nan": "nan",
    "two entries": "[0, 1]",
    "a flag": "true",
    "foreign digits": '"½"',
}


@pytest.mark.parametrize("value", EXPONENTS.values(), ids=EXPONENTS)
def test_bad_exponents_are_named(value, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'[parameterization]\nname = "mine"\na = {value}\nb = 0\nc = 0\n')
    with pytest.raises(InputError, match=r"^parameterization\.a") as caught:
        config.read(path).parameterization()
    assert caught.value.hint


FILES = {
    "no TOML": b"[network\ndepth = 3",
    "a key twice": b"[network]\ndepth = 3\ndepth = 4",
    "no text": b"\xff\xfe\x00",
    "a key outside the sections": b"depth = 3",
    "an empty file": b"",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_bad_files(content, tmp_path, capsys):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert main(["derive", str(path)]) == 2
    err = capsys.readouterr().err
    assert "Hint" in err
    assert "Traceback" not in err
    for place in (tmp_path / "absent.toml", tmp_path):
        assert main(["derive", str(place)]) == 2


@pytest.mark.parametrize(
    "arrays", [{"X": np.ones((2, 2))}, {"x": np.ones((2, 2)), "y": np.ones(2)}, {"X": np.ones((2, 2)), "y": [1, np.nan]}, None]
)
def test_bad_arrays(small, arrays, capsys):
    (small.parent / "points.npz").unlink()
    if arrays is not None:
        np.savez(small.parent / "points.npz", **arrays)
    assert main(["solve", str(small)]) == 2
    assert "Error: task.arrays" in capsys.readouterr().err


def test_pickled_arrays_are_not_read(small, capsys):
    np.savez(small.parent / "points.npz", X=np.array([{}], dtype=object), y=np.ones(1))
    assert main(["solve", str(small)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_usage_errors_leave_with_two():
    for arguments in ([], ["dmeo"], ["derive"], ["demo", "--sett", "a.b=1"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_every_command_is_described(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in (*COMMANDS, "demo"))


def test_a_run_that_blows_up_is_reported_and_kept(small, tmp_path, capsys):
    out = tmp_path / "out"
    code = main(
        [
            "simulate",
            str(small),
            "--set",
            "training.lr=1e6",
            "--set",
            "training.steps=40",
            "--set",
            "parameterization.preset=standard",
            "--out",
            str(out),
        ]
    )
    assert code == 1
    assert "nonfinite" in capsys.readouterr().err
    assert not load(out / "ensemble.npz").success


def test_interrupts_end_quietly(small, monkeypatch, capsys):
    def interrupted(run):
        """As if Ctrl-C were pressed."""
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "derive", interrupted)
    assert main(["derive", str(small)]) == 130
    assert "Traceback" not in capsys.readouterr().err
