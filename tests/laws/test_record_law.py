"""Nouns are frozen records: nothing changes them, they print, and equal ones are equal."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from tp_solver.program.architectures import mlp
from tp_solver.program.losses import CrossEntropy, Logistic, SquaredError
from tp_solver.program.parameterization import PRESETS, Parameterization, muP
from tp_solver.program.statements import Average, Layer, Map, Matrix, Product, Program, Role, Sum, symbol
from tp_solver.program.task import Task
from tp_solver.program.tracing import average, bias, entrywise, hidden_matrix, input_matrix, program, readout
from tp_solver.program.training import GradientDescent, GradientFlow
from tp_solver.symbols.activation import SHIPPED, Activation, tanh

HALF = sp.Rational(1, 2)


def records() -> list[object]:
    """Fresh ones at every call, so that equality is not identity."""
    return [
        Activation("cube", lambda x: x**3),
        tanh,
        muP.shifted(HALF),
        Parameterization("mine", a=(0, sp.Symbol("q"), HALF), b=0, c=0),
        mlp(2, tanh),
        mlp(3, tanh, bias=True),
        mlp(3, tanh, bias=True, output_bias=HALF),
        Parameterization("mine", a=0, b=0, c=0, output_bias=(0, HALF, 1)),
        Matrix("W1", Role.HIDDEN),
        Product("h", "W1", "x1"),
        Map("y", sp.tanh(symbol("h")), ("h",)),
        Sum("s", ((HALF, "h"), (sp.S.One, "y"))),
        Average("m", symbol("h") ** 2, ("h",)),
        Layer(1, "h1", "x1", "tanh"),
        GradientDescent(lr=0.1, steps=3),
        GradientDescent(lr=(0.1, 0.2, 0.3), steps=3, loss=Logistic()),
        GradientDescent(lr=0.1, steps=3, momentum=0.9),
        GradientFlow(time=2.0, steps=4),
        SquaredError(),
        Logistic(),
        CrossEntropy(),
    ]


NAMES = [f"{k} {type(r).__name__}" for k, r in enumerate(records())]
every_record = pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)


@every_record
def test_records_are_frozen(index):
    record = records()[index]
    for f in fields(record):
        with pytest.raises(FrozenInstanceError):
            setattr(record, f.name, getattr(record, f.name))
    with pytest.raises((FrozenInstanceError, TypeError)):
        record.something_new = 1


@every_record
def test_equal_records_are_equal_and_hash_alike(index):
    one, other = records()[index], records()[index]
    assert one == other
    assert hash(one) == hash(other)
    assert sum(one == r for r in records()) == 1


@every_record
def test_records_print(index):
    text = str(records()[index])
    assert text
    assert "object at 0x" not in text


def test_programs_and_tasks_survive_pickling():
    for record in (mlp(2, tanh, bias=0.5, output_bias=True), muP, GradientDescent(0.1, 3)):
        assert pickle.loads(pickle.dumps(record)) == record


def test_arrays_of_a_task_cannot_be_written():
    X = np.ones((3, 2))
    task = Task(X, [1.0, -1.0, 1.0])
    X[0, 0] = 5.0
    assert task.X[0, 0] == 1.0
    for values in (task.X, task.y):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0.0


def test_program_prints_every_statement():
    w0, w1, w, b = input_matrix("W0"), hidden_matrix("W1"), readout("w"), bias("b", sigma=HALF, rate=0)
    kappa = sp.Symbol("kappa")

    def network(x):
        h = (w0 @ x).named("stream")
        z = entrywise(lambda a, m: a - m, h, average(lambda a: a, h)).named("centred")
        return w @ tanh(kappa * (w1.T @ tanh(z)) + b)

    net = program(network)
    assert str(net) == "\n".join(
        [
            "program network",
            "  W0: input matrix",
            "  W1: hidden matrix",
            "  w: readout matrix",
            "  b: bias, sigma = 1/2, rate = 0",
            "  stream = W0 x",
            "  v2 = average(stream; stream)",
            "  centred = map(stream - v2; stream, v2)",
            "  x1 = map(tanh(centred); centred)",
            "  v5 = W1.T x1",
            "  v6 = (kappa) v5",
            "  v7 = b one",
            "  h2 = v6 + v7",
            "  x2 = map(tanh(h2); h2)",
            "  f = w x2",
            "  output f",
        ]
    )
    assert net.free_symbols == (kappa,)
    assert net.bind({kappa: 2}).free_symbols == ()
    assert net.bind({kappa: 2}) == net.bind({kappa: sp.Integer(2)})
    assert net.free_symbols == (kappa,), "binding makes a new program"


def test_program_of_an_mlp_is_what_one_writes_by_hand():
    w0, w1, w2 = input_matrix("W0"), hidden_matrix("W1"), readout("W2")
    by_hand = program(lambda x: w2 @ tanh(w1 @ tanh(w0 @ x)), name=mlp(2, tanh).name)
    assert by_hand == mlp(2, tanh)
    assert isinstance(by_hand, Program)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_parameterizations_print_every_exponent(preset):
    text, latex = str(preset), preset._repr_latex_()
    assert preset.name in text
    assert preset.name in latex
    *rows, last = text.splitlines()[2:]
    for k, row in enumerate(rows):
        assert row.split() == [
            ("input", "hidden", "readout")[k],
            *(str(getattr(preset, f)[k]) for f in ("a", "b", "c", "alpha", "sigma", "eta")),
        ]
    assert last.split() == ["out", "bias", *map(str, preset.output_bias)]


@pytest.mark.parametrize("theta", [HALF, -1, Fraction(1, 3), (0, HALF, 1), sp.Symbol("theta")])
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_theta_shift_leaves_the_training_run_unchanged(preset, theta):
    shifted = preset.shifted(theta, name="shifted")
    for k in range(3):
        for combination in (lambda p, k=k: p.a[k] + p.b[k], lambda p, k=k: 2 * p.a[k] + p.c[k]):
            assert sp.expand(combination(shifted) - combination(preset)) == 0
    assert (shifted.alpha, shifted.sigma, shifted.eta) == (preset.alpha, preset.sigma, preset.eta)
    assert shifted.shifted(tuple(-t for t in theta) if isinstance(theta, tuple) else -theta, name=preset.name) == preset


def test_mean_field_and_mup_are_one_class():
    theta = tuple(m - p for m, p in zip(PRESETS["mean_field"].a, muP.a, strict=True))
    shifted = muP.shifted(theta)
    assert (shifted.a, shifted.b, shifted.c) == tuple(getattr(PRESETS["mean_field"], f) for f in "abc")


def test_binding_a_parameterization():
    q, s = sp.symbols("q s")
    mine = Parameterization("mine", a=(0, q, 1), b=0, c=-1, sigma=(1, s, 1))
    assert mine.free_symbols == (q, s)
    bound = mine.bind({q: 0.5, s: 0.3})
    assert bound.free_symbols == ()
    assert bound.a == (0, HALF, 1)
    assert float(bound.sigma[1]) == 0.3
    assert mine.free_symbols == (q, s)


def test_activations_compare_by_name_and_expression():
    assert Activation("tanh", lambda x: sp.tanh(x)) == tanh
    assert Activation("tanh", lambda x: sp.sinh(x) / sp.cosh(x)) == tanh
    assert Activation("tanh", sp.erf) != tanh
    assert len(set(SHIPPED)) == 7
