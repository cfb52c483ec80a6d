"""Bad input is answered: field, value, what is allowed, and a hint, at once and before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sympy as sp

import tp_solver as tp

NAN, INF = float("nan"), float("inf")
HALF = sp.Rational(1, 2)
q = sp.Symbol("q")


# things that are well formed --------------------------------------------------------------------------------------

W0, W1, w = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w")
NET = tp.mlp(depth=2, activation=tp.tanh)
X = np.linspace(-1.0, 1.0, 12).reshape(4, 3)
Y = np.array([1.0, -1.0, 1.0, -1.0])
SYMBOLIC = tp.Parameterization("mine", a=(0, q, HALF), b=0, c=0)


def with_nan() -> np.ndarray:
    out = X.copy()
    out[2, 1] = NAN
    return out


def traced(body: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: tp.program(body)


def leaked() -> Any:
    """A vector kept from an earlier trace."""
    kept = []

    def network(x):
        kept.append(W0 @ x)
        return w @ tp.tanh(kept[0])

    tp.program(network)
    return tp.program(lambda x: w @ tp.tanh(W0 @ x + kept[0]))


# what was done wrong: (the call, the field that opens the message, a part of the value shown)
ACTIVATIONS = {
    "activation without a name": (lambda: tp.Activation("", sp.tanh), "activation name", "''"),
    "activation with a number for a name": (lambda: tp.Activation(3, sp.tanh), "activation name", "3"),
    "activation from a string": (lambda: tp.Activation("mine", "tanh"), "activation 'mine'", "'tanh'"),
    "activation from numpy": (lambda: tp.Activation("mine", np.tanh), "activation 'mine'", "fails on a symbol"),
    "activation of two arguments": (lambda: tp.Activation("mine", lambda x, y: x + y), "activation 'mine'", "TypeError"),
    "activation that is nan": (lambda: tp.Activation("mine", lambda x: sp.nan), "activation 'mine'", "nan"),
    "activation that is infinite": (lambda: tp.Activation("mine", lambda x: x + sp.oo), "activation 'mine'", "oo"),
    "activation with a free symbol": (lambda: tp.Activation("mine", lambda x: q * x), "activation 'mine'", "['q']"),
    "complex activation": (lambda: tp.Activation("mine", lambda x: sp.I * x), "activation 'mine'", "I*x"),
    "activation that returns a list": (lambda: tp.Activation("mine", lambda x: [x]), "activation 'mine'", "[x]"),
    "undefined function": (lambda: tp.Activation("mine", lambda x: sp.Function("tahn")(x)), "activation 'mine'", "tahn(x)"),
    "activation of an array": (lambda: tp.tanh(np.ones(3)), "activation 'tanh'", "array([1., 1., 1.])"),
    "activation of a matrix": (lambda: tp.tanh(W0), "activation 'tanh'", "Weight("),
}

PROGRAMS = {
    "depth zero": (lambda: tp.mlp(depth=0, activation=tp.tanh), "depth", "0"),
    "negative depth": (lambda: tp.mlp(depth=-1, activation=tp.tanh), "depth", "-1"),
    "fractional depth": (lambda: tp.mlp(depth=2.5, activation=tp.tanh), "depth", "2.5"),
    "depth that is nan": (lambda: tp.mlp(depth=NAN, activation=tp.tanh), "depth", "nan"),
    "depth True": (lambda: tp.mlp(depth=True, activation=tp.tanh), "depth", "True"),
    "depth as text": (lambda: tp.mlp(depth="3", activation=tp.tanh), "depth", "'3'"),
    "activation by name": (lambda: tp.mlp(depth=2, activation="tanh"), "activation", "'tanh'"),
    "activation class": (lambda: tp.mlp(depth=2, activation=tp.Activation), "activation", "the class Activation"),
    "activation from sympy": (lambda: tp.mlp(depth=2, activation=sp.tanh), "activation", "tanh"),
    "bias that is nan": (lambda: tp.mlp(depth=2, activation=tp.tanh, bias=NAN), "bias", "nan"),
    "negative bias": (lambda: tp.mlp(depth=2, activation=tp.tanh, bias=-0.5), "bias", "-0.5"),
    "negative output bias": (lambda: tp.mlp(depth=2, activation=tp.tanh, output_bias=-0.5), "output_bias", "-0.5"),
    "two output biases": (traced(lambda x: w @ tp.tanh(W0 @ x) + tp.bias("a") + tp.bias("b")), "v5 + b", "a second bias"),
    "one bias on sites and output": (traced(lambda x: w @ tp.tanh(W0 @ x + tp.bias("a")) + tp.bias("a")), "matrix name", "'a'"),
    "bias as text": (lambda: tp.mlp(depth=2, activation=tp.tanh, bias="yes"), "bias", "'yes'"),
    "bias matrix with infinite scale": (lambda: tp.bias("b", sigma=INF), "bias 'b' sigma", "inf"),
    "bias matrix with a negative rate": (lambda: tp.bias("b", rate=-1), "bias 'b' rate", "-1"),
    "bias matrix with a scale as text": (lambda: tp.bias("b", sigma="1"), "bias 'b' sigma", "'1'"),
    "matrix without a name": (lambda: tp.hidden_matrix(""), "matrix name", "''"),
    "matrix named with a space": (lambda: tp.readout("my readout"), "matrix name", "my readout"),
    "program of no function": (lambda: tp.program(NET), "program", "Program("),
    "program without a readout": (traced(lambda x: tp.tanh(W0 @ x)), "<lambda>", "Vector("),
    "program that returns nothing": (traced(lambda x: None), "<lambda>", "None"),
    "program without an activation": (traced(lambda x: w @ (W0 @ x)), "program", "no activation"),
    "function of no arguments": (lambda: tp.program(lambda: None), "<lambda>", "TypeError"),
    "hidden matrix on the inputs": (traced(lambda x: w @ tp.tanh(W1 @ x)), "W1 @ x", "a variable in the data space"),
    "readout before the end": (traced(lambda x: w @ tp.tanh(w @ (W0 @ x))), "an entrywise map of v2", "output space"),
    "input matrix on sites": (traced(lambda x: w @ tp.tanh(W0 @ tp.tanh(W0 @ x))), "W0 @ v2", "width space"),
    "average used as a vector": (traced(lambda x: w @ tp.tanh(W0 @ x + tp.average(sp.cos, W0 @ x))), "a sum of v3", "scalar space"),
    "transposed readout": (traced(lambda x: w.T @ tp.tanh(W0 @ x)), "w.T", "a transpose"),
    "activation of the inputs": (traced(lambda x: w @ tp.tanh(x)), "an entrywise map of x", "data space"),
    "matrix times an array": (lambda: W0 @ X, "W0", "array("),
    "constant shift": (traced(lambda x: w @ (tp.tanh(W0 @ x) + 1)), "v2 + ...", "1"),
    "coefficient as text": (traced(lambda x: w @ (tp.tanh(W0 @ x) * "2")), "... * v2", "'2'"),
    "coefficient that is nan": (traced(lambda x: w @ (tp.tanh(W0 @ x) * NAN)), "... * v2", "nan"),
    "coefficient that is an array": (traced(lambda x: w @ (np.ones(2) * tp.tanh(W0 @ x))), "... * v2", "array([1., 1.])"),
    "division by zero": (traced(lambda x: w @ (tp.tanh(W0 @ x) / 0)), "v2 / ...", "0"),
    "one name for two matrices": (traced(lambda x: tp.readout("W0") @ tp.tanh(W0 @ x)), "matrix name", "'W0'"),
    "one name for two variables": (traced(lambda x: w @ tp.tanh((W1 @ tp.tanh(W0 @ x).named("u")).named("u"))), "named", "'u'"),
    "name of the inputs": (traced(lambda x: w @ tp.tanh(W0 @ x).named("x")), "named", "'x'"),
    "vector of another program": (leaked, "a sum", "v1"),
    "entrywise without vectors": (lambda: tp.entrywise(sp.tanh), "entrywise", "()"),
    "entrywise with too few arguments": (
        traced(lambda x: w @ tp.tanh(tp.entrywise(lambda a: a, W0 @ x, W0 @ x))),
        "entrywise",
        "TypeError",
    ),
    "average that is nan": (
        traced(lambda x: w @ tp.tanh(tp.entrywise(lambda a, c: a * c, W0 @ x, tp.average(lambda a: a * sp.nan, W0 @ x)))),
        "average",
        "nan",
    ),
    "binding an unknown symbol": (lambda: NET.bind({q: 1}), "bind", "['q']"),
    "binding no mapping": (lambda: NET.bind(3), "bind", "3"),
}

PARAMETERIZATIONS = {
    "two exponents": (lambda: tp.Parameterization("p", a=(0, HALF), b=0, c=0), "a", "(0, 1/2)"),
    "four exponents": (lambda: tp.Parameterization("p", a=0, b=[0, 0, 0, 0], c=0), "b", "[0, 0, 0, 0]"),
    "exponent that is nan": (lambda: tp.Parameterization("p", a=(0, NAN, 0), b=0, c=0), "a[1] (hidden)", "nan"),
    "infinite exponent": (lambda: tp.Parameterization("p", a=0, b=0, c=(0, 0, INF)), "c[2] (readout)", "inf"),
    "inexact exponent": (lambda: tp.Parameterization("p", a=(0, 0.333, 0), b=0, c=0), "a[1] (hidden)", "0.333"),
    "exponent as text": (lambda: tp.Parameterization("p", a="1/2", b=0, c=0), "a[0] (input)", "'1/2'"),
    "no exponent": (lambda: tp.Parameterization("p", a=None, b=0, c=0), "a[0] (input)", "None"),
    "complex exponent": (lambda: tp.Parameterization("p", a=1j, b=0, c=0), "a[0] (input)", "1j"),
    "exponent that is a class": (lambda: tp.Parameterization("p", a=Fraction, b=0, c=0), "a[0] (input)", "Fraction"),
    "array of exponents": (lambda: tp.Parameterization("p", a=np.zeros(3), b=0, c=0), "a[0] (input)", "array([0., 0., 0.])"),
    "negative scale": (lambda: tp.Parameterization("p", a=0, b=0, c=0, sigma=(1, -1, 1)), "sigma[1] (hidden)", "-1"),
    "negative rate": (lambda: tp.Parameterization("p", a=0, b=0, c=0, eta=-1), "eta[0] (input)", "-1"),
    "rate that is nan": (lambda: tp.Parameterization("p", a=0, b=0, c=0, eta=(1, NAN, 1)), "eta[1] (hidden)", "nan"),
    "multiplier zero": (lambda: tp.Parameterization("p", a=0, b=0, c=0, alpha=(1, 1, 0)), "alpha[2] (readout)", "0"),
    "parameterization without a name": (lambda: tp.Parameterization("", a=0, b=0, c=0), "parameterization name", "''"),
    "shift as text": (lambda: tp.muP.shifted("1/2"), "theta[0] (input)", "'1/2'"),
    "binding by name": (lambda: SYMBOLIC.bind({"q": HALF}), "bind", "['q']"),
    "binding to nan": (lambda: SYMBOLIC.bind({q: NAN}), "bind[q]", "nan"),
}

TRAINING = {
    "negative learning rate": (lambda: tp.GradientDescent(lr=-0.1, steps=3), "lr", "-0.1"),
    "learning rate that is nan": (lambda: tp.GradientDescent(lr=NAN, steps=3), "lr", "nan"),
    "infinite learning rate": (lambda: tp.GradientDescent(lr=INF, steps=3), "lr", "inf"),
    "learning rate as text": (lambda: tp.GradientDescent(lr="0.1", steps=3), "lr", "'0.1'"),
    "learning rate True": (lambda: tp.GradientDescent(lr=True, steps=3), "lr", "True"),
    "complex learning rate": (lambda: tp.GradientDescent(lr=np.complex128(1 + 1j), steps=3), "lr", "1+1j"),
    "no learning rates": (lambda: tp.GradientDescent(lr=[], steps=3), "lr", "[]"),
    "one bad learning rate": (lambda: tp.GradientDescent(lr=(0.1, NAN), steps=3), "lr[1]", "nan"),
    "bad learning rate by name": (lambda: tp.GradientDescent(lr={"W0": -1.0}, steps=3), "lr['W0']", "-1.0"),
    "too few learning rates": (lambda: tp.GradientDescent(lr=(0.1, 0.2), steps=3).rates(NET), "lr", "2 rates"),
    "misspelt matrix": (lambda: tp.GradientDescent(lr={"W0": 1, "W1": 1, "w2": 1}, steps=3).rates(NET), "lr", "w2"),
    "negative decay": (lambda: tp.GradientDescent(lr=0.1, steps=3, weight_decay=-0.1), "weight_decay", "-0.1"),
    "decay that turns weights round": (lambda: tp.GradientDescent(lr=2.0, steps=3, weight_decay=0.6), "weight_decay", "0.6"),
    "negative temperature": (lambda: tp.GradientDescent(lr=0.1, steps=3, temperature=-1), "temperature", "-1"),
    "nan temperature": (lambda: tp.GradientDescent(lr=0.1, steps=3, temperature=NAN), "temperature", "nan"),
    "a number of points as batches": (lambda: tp.GradientDescent(lr=0.1, steps=3, batches=5), "batches", "5"),
    "empty batches": (lambda: tp.Batches(0), "size", "0"),
    "a negative seed of batches": (lambda: tp.Batches(5, -1), "seed", "-1"),
    "a schedule class": (lambda: tp.GradientDescent(lr=0.1, steps=3, schedule=tp.Schedule), "schedule", "Schedule"),
    "a schedule function, not called": (lambda: tp.GradientDescent(lr=0.1, steps=3, schedule=tp.cosine), "schedule", "cosine"),
    "a schedule below zero": (lambda: tp.GradientDescent(lr=0.1, steps=3, schedule=tp.Schedule("down", 1 - tp.T)), "schedule", "-1"),
    "a schedule that is not finite": (lambda: tp.GradientDescent(lr=0.1, steps=3, schedule=tp.Schedule("x", 1 / tp.T)), "schedule", "inf"),
    "an imaginary schedule": (lambda: tp.GradientDescent(lr=0.1, steps=3, schedule=tp.Schedule("i", sp.I * tp.T)), "schedule", "I*t"),
    "a schedule without numbers": (lambda: tp.Schedule("g", sp.Function("g")(tp.T)).values(3), "schedule", "g(t)"),
    "a schedule with a symbol": (lambda: tp.Schedule("q", sp.Symbol("q") * tp.T), "factor", "q"),
    "a warmup of no steps": (lambda: tp.warmup(0), "steps", "0"),
    "a negative end of the cosine": (lambda: tp.cosine(-0.1), "final", "-0.1"),
    "negative momentum": (lambda: tp.GradientDescent(lr=0.1, steps=3, momentum=-0.1), "momentum", "-0.1"),
    "momentum of one": (lambda: tp.GradientDescent(lr=0.1, steps=3, momentum=1.0), "momentum", "1.0"),
    "momentum that is nan": (lambda: tp.GradientDescent(lr=0.1, steps=3, momentum=NAN), "momentum", "nan"),
    "no steps": (lambda: tp.GradientDescent(lr=0.1, steps=0), "steps", "0"),
    "negative steps": (lambda: tp.GradientDescent(lr=0.1, steps=-5), "steps", "-5"),
    "fractional steps": (lambda: tp.GradientDescent(lr=0.1, steps=10.0), "steps", "10.0"),
    "loss class": (lambda: tp.GradientDescent(lr=0.1, steps=3, loss=tp.Logistic), "loss", "the class Logistic"),
    "loss by name": (lambda: tp.GradientDescent(lr=0.1, steps=3, loss="mse"), "loss", "'mse'"),
    "no loss": (lambda: tp.GradientDescent(lr=0.1, steps=3, loss=None), "loss", "None"),
    "flow to time zero": (lambda: tp.GradientFlow(time=0.0, steps=3), "time", "0.0"),
    "flow to time nan": (lambda: tp.GradientFlow(time=NAN, steps=3), "time", "nan"),
    "flow backwards": (lambda: tp.GradientFlow(time=-1.0, steps=3), "time", "-1.0"),
    "flow without steps": (lambda: tp.GradientFlow(time=1.0, steps=0), "steps", "0"),
}

TASKS = {
    "inputs with nan": (lambda: tp.Task(with_nan(), Y), "X", "(2, 1)"),
    "inputs with one axis": (lambda: tp.Task(X[0], Y), "X", "(3,)"),
    "inputs with three axes": (lambda: tp.Task(X[None], Y), "X", "(1, 4, 3)"),
    "inputs as text": (lambda: tp.Task("digits", Y), "X", "'digits'"),
    "ragged inputs": (lambda: tp.Task([[1.0, 2.0], [3.0]], [1.0, -1.0]), "X", "[[1.0, 2.0], [3.0]]"),
    "complex inputs": (lambda: tp.Task(X + 1j, Y), "X", "array("),
    "no inputs": (lambda: tp.Task(np.zeros((0, 3)), np.zeros(0)), "X", "(0, 3)"),
    "no features": (lambda: tp.Task(np.zeros((4, 0)), Y), "X", "(4, 0)"),
    "labels do not match": (lambda: tp.Task(X, Y[:3]), "y", "3 labels"),
    "infinite label": (lambda: tp.Task(X, [1.0, -1.0, INF, 1.0]), "y", "(2,)"),
    "no labels": (lambda: tp.Task(X, None), "y", "None"),
    "labels with three axes": (lambda: tp.Task(X, np.zeros((4, 1, 1))), "y", "(4, 1, 1)"),
    "test inputs of another dimension": (lambda: tp.Task(X, Y, X[:, :2], Y), "X_test", "2 columns"),
    "test labels without inputs": (lambda: tp.Task(X, Y, y_test=Y), "y_test", "labels without inputs"),
    "test labels do not match": (lambda: tp.Task(X, Y, X[:2], Y), "y_test", "4 labels"),
    "test labels of another shape": (lambda: tp.Task(X, Y, X, Y[:, None]), "y_test", "(4, 1)"),
    "logistic labels 0 and 1": (lambda: tp.Task(X, [0, 1, 0, 1]).targets(tp.Logistic()), "y", "0 at (0,)"),
    "classes that are no integers": (lambda: tp.Task(X, [0.5, 1, 0, 1]).targets(tp.CrossEntropy()), "y", "no class numbers"),
    "rows that do not sum to one": (lambda: tp.Task(X, np.ones((4, 2))).targets(tp.CrossEntropy()), "y", "sum to one"),
    "one class of digits": (lambda: tp.Task.digits(classes=(3,)), "classes", "(3,)"),
    "one digit twice": (lambda: tp.Task.digits(classes=(3, 3)), "classes", "(3, 3)"),
    "no such digit": (lambda: tp.Task.digits(classes=(0, 12)), "classes[1]", "12"),
    "digits as text": (lambda: tp.Task.digits(classes="01"), "classes", "'01'"),
    "number of classes": (lambda: tp.Task.digits(classes=2), "classes", "2"),
    "no digits": (lambda: tp.Task.digits(points=0), "points", "0"),
    "fractional points": (lambda: tp.Task.digits(points=40.0), "points", "40.0"),
    "more digits than there are": (lambda: tp.Task.digits(points=10_000), "points + test", "10100"),
    "negative test points": (lambda: tp.Task.digits(test=-1), "test", "-1"),
    "seed as text": (lambda: tp.Task.digits(seed="0"), "seed", "'0'"),
}


TABLE = ACTIVATIONS | PROGRAMS | PARAMETERIZATIONS | TRAINING | TASKS


def test_the_table_is_long_enough():
    assert len(TABLE) >= 60


@pytest.mark.parametrize(("call", "field", "value"), TABLE.values(), ids=TABLE)
def test_bad_input_is_answered(call, field, value, must_be_answered):
    must_be_answered(call, field, value)
