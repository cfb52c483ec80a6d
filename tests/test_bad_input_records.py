"""Bad questions to the records: layers and times out of range, misspelt names, new points of a wrong shape, damaged files."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp

NAN = float("nan")
NET = tp.mlp(depth=2, activation=tp.tanh)
TRAIN = tp.GradientDescent(lr=0.1, steps=2)
TASK = tp.Task(np.linspace(-1.0, 1.0, 6).reshape(2, 3), [1.0, -1.0])


@pytest.fixture(scope="module")
def ensemble():
    return tp.simulate(NET, tp.muP, TRAIN, TASK, widths=(4, 8), seeds=2, progress=False)


@pytest.fixture(scope="module")
def solution():
    return tp.solve(tp.limit(NET, tp.muP, TRAIN), TASK, samples=64, replicates=2)


QUESTIONS = {
    "layer zero": (lambda r: r.Phi(0, 0, 0), "layer", "0"),
    "layer after the last": (lambda r: r.Phi(3, 0, 0), "layer", "3"),
    "negative layer": (lambda r: r.G(-1, 0, 0), "layer", "-1"),
    "fractional layer": (lambda r: r.G(1.0, 0, 0), "layer", "1.0"),
    "layer as text": (lambda r: r.G("1", 0, 0), "layer", "'1'"),
    "time after the end": (lambda r: r.Phi(1, 3, 0), "t", "3"),
    "negative time": (lambda r: r.Phi(1, 0, -1), "s", "-1"),
    "time nan": (lambda r: r.Phi(1, NAN, 0), "t", "nan"),
    "kernel at no time": (lambda r: r.ntk(9), "t", "9"),
    "fields of no layer": (lambda r: r.fields(7, 0), "layer", "7"),
    "error of a misspelt name": (lambda r: r.stderr("phi", 1, 0, 0), "name", "'phi'"),
    "error of a number": (lambda r: r.stderr(1), "name", "1"),
    "error with too few arguments": (lambda r: r.stderr("Phi", 1), "stderr('Phi', ...)", "(1,)"),
    "error with too many arguments": (lambda r: r.stderr("f", 1), "stderr('f', ...)", "(1,)"),
    "error of absent test points": (lambda r: r.stderr("f_test"), "name", "'f_test'"),
}


@pytest.mark.parametrize(("ask", "field", "value"), QUESTIONS.values(), ids=QUESTIONS)
def test_ensembles_answer_bad_questions(ask, field, value, ensemble, must_be_answered):
    must_be_answered(lambda: ask(ensemble), field, value)


SOLUTION_ONLY = {
    "response of the last layer": (lambda r: r.A(2, 1, 0), "layer", "2"),
    "response at no time": (lambda r: r.B(1, 1, 5), "s", "5"),
    "predicting one point without axes": (lambda r: r.predict([1.0, 2.0, 3.0]), "X_new", "(3,)"),
    "predicting in another dimension": (lambda r: r.predict(np.ones((2, 4))), "X_new", "4 columns"),
    "predicting at nan": (lambda r: r.predict([[1.0, NAN, 0.0]]), "X_new", "(0, 1)"),
    "predicting at text": (lambda r: r.predict("here"), "X_new", "'here'"),
    "predicting nowhere": (lambda r: r.predict(np.zeros((0, 3))), "X_new", "(0, 3)"),
}


@pytest.mark.parametrize(("ask", "field", "value"), (QUESTIONS | SOLUTION_ONLY).values(), ids=QUESTIONS | SOLUTION_ONLY)
def test_solutions_answer_bad_questions(ask, field, value, solution, must_be_answered):
    must_be_answered(lambda: ask(solution), field, value)


def test_records_are_frozen(ensemble, solution):
    for record in (ensemble, solution):
        with pytest.raises(AttributeError):
            record.f = 0.0


def test_comparing_different_runs(ensemble, solution, must_be_answered):
    other = tp.solve(tp.limit(NET, tp.muP, tp.GradientDescent(lr=0.1, steps=1)), TASK, samples=64, replicates=2)
    must_be_answered(lambda: tp.compare(other, ensemble), "sol, ens", "steps")
    must_be_answered(lambda: tp.compare(ensemble, solution), "sol", "Ensemble(")
    must_be_answered(lambda: tp.compare(solution, solution), "ens", "solution of")


def test_asking_a_comparison_for_what_it_does_not_hold(ensemble, solution, must_be_answered):
    comparison = tp.compare(solution, ensemble)
    must_be_answered(lambda: comparison["lsos"], "quantity", "'lsos'")


def test_files_that_are_none_of_ours(tmp_path, solution, must_be_answered):
    saved = tmp_path / "sol.npz"
    solution.save(saved)
    whole = saved.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    np.savez(tmp_path / "foreign.npz", a=np.ones(3))
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    for name, content in {
        "empty.npz": b"",
        "text.npz": b"not a solution",
        "short.npz": whole[:-200],
        "flipped.npz": bytes(flipped),
    }.items():
        (tmp_path / name).write_bytes(content)
    for name in ("empty.npz", "text.npz", "short.npz", "flipped.npz", "foreign.npz", "pickled.npz", "absent.npz"):
        path = tmp_path / name
        must_be_answered(lambda path=path: tp.load(path), str(path), "")
    must_be_answered(lambda: tp.load(3), "path", "3")
    must_be_answered(lambda: tp.load(tmp_path), str(tmp_path), "")
    must_be_answered(lambda: solution.save(tmp_path / "no" / "such" / "folder.npz"), "path", "folder")
