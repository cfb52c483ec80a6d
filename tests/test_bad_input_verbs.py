"""Bad input to the verbs, which refuse it before they begin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

import tp_solver as tp

NAN, INF = float("nan"), float("inf")
HALF = sp.Rational(1, 2)
q = sp.Symbol("q")

NET = tp.mlp(depth=2, activation=tp.tanh)
TRAIN = tp.GradientDescent(lr=0.1, steps=4)
BATCHED = tp.limit(tp.mlp(2, tp.linear), tp.muP, tp.GradientDescent(lr=0.1, steps=4, batches=tp.Batches(2)))
HUGE = tp.limit(tp.mlp(2, tp.linear), tp.muP, tp.GradientDescent(lr=0.1, steps=4, batches=tp.Batches(50)))
NOISY = tp.limit(tp.mlp(2, tp.linear), tp.muP, tp.GradientDescent(lr=0.1, steps=4, weight_decay=0.2, temperature=0.1))
SILENT = replace(tp.muP, sigma=(1, 1, 0))
HEAVY = tp.limit(tp.mlp(2, tp.linear), tp.muP, tp.GradientDescent(lr=0.1, steps=4, momentum=0.9))
TASK = tp.Task(np.linspace(-1.0, 1.0, 12).reshape(4, 3), [1.0, -1.0, 1.0, -1.0])
W0, W1, w = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w")
SYMBOLIC = tp.Parameterization("mine", a=(0, q, HALF), b=0, c=0)
SYMBOLIC_NET = tp.program(lambda x: w @ tp.tanh(q * (W1 @ tp.tanh(W0 @ x))))


def simulate(net=NET, parameterization=tp.muP, training=TRAIN, task=TASK, widths=(8, 16), seeds=2, **options):
    return lambda: tp.simulate(net, parameterization, training, task, widths=widths, seeds=seeds, progress=False, **options)


REGIME = {
    "regime of a preset by name": (lambda: tp.regime("muP", NET), "parameterization", "'muP'"),
    "regime of the class": (lambda: tp.regime(tp.Parameterization, NET), "parameterization", "the class Parameterization"),
    "regime, arguments swapped": (lambda: tp.regime(NET, tp.muP), "parameterization", "Program("),
    "regime without a net": (lambda: tp.regime(tp.muP, None), "net", "None"),
    "regime of a function": (lambda: tp.regime(tp.muP, tp.mlp), "net", "the function mlp"),
    "step zero of a regime": (lambda: tp.regime(tp.muP, NET).field_change_exponents(0), "step", "0"),
    "equation that does not exist": (lambda: tp.limit(NET, tp.muP, TRAIN)["h", 7], "equation", "('h', 7)"),
    "explaining what does not exist": (lambda: tp.limit(NET, tp.muP, TRAIN).explain("H", 1), "equation", "('H', 1)"),
}

LIMIT = {
    "limit of a function": (lambda: tp.limit(lambda x: x, tp.muP, TRAIN), "net", "<lambda>"),
    "limit of the verb mlp": (lambda: tp.limit(tp.mlp, tp.muP, TRAIN), "net", "the function mlp"),
    "limit with a preset by name": (lambda: tp.limit(NET, "muP", TRAIN), "parameterization", "'muP'"),
    "limit, arguments swapped": (lambda: tp.limit(NET, TRAIN, tp.muP), "parameterization", "GradientDescent("),
    "limit of a training class": (lambda: tp.limit(NET, tp.muP, tp.GradientDescent), "training", "the class GradientDescent"),
    "limit without training": (lambda: tp.limit(NET, tp.muP, 0.1), "training", "0.1"),
    "limit with symbolic exponents": (lambda: tp.limit(NET, SYMBOLIC, TRAIN), "parameterization 'mine'", "depend on q"),
    "limit of an unstable parameterization": (lambda: tp.limit(NET, tp.standard, TRAIN), "parameterization 'standard'", "unstable"),
    "limit with too many rates": (lambda: tp.limit(NET, tp.muP, tp.GradientDescent(lr=(0.1,) * 9, steps=2)), "lr", "9 rates"),
}

SIMULATE = {
    "simulating a function": (simulate(net=np.tanh), "net", "tanh"),
    "simulating an activation": (simulate(net=tp.tanh), "net", "Activation("),
    "simulating the verb mlp": (simulate(net=tp.mlp), "net", "the function mlp"),
    "simulating symbols": (simulate(net=SYMBOLIC_NET), "net", "['q']"),
    "simulating symbolic exponents": (simulate(parameterization=SYMBOLIC), "parameterization", "['q']"),
    "simulating a preset by name": (simulate(parameterization="ntk"), "parameterization", "'ntk'"),
    "simulating without training": (simulate(training=None), "training", "None"),
    "simulating the training class": (simulate(training=tp.GradientFlow), "training", "the class GradientFlow"),
    "simulating arrays": (simulate(task=TASK.X), "task", "array("),
    "simulating the task class": (simulate(task=tp.Task), "task", "the class Task"),
    "simulating labels that the loss cannot read": (
        simulate(training=tp.GradientDescent(lr=0.1, steps=4, loss=tp.Logistic()), task=tp.Task(TASK.X, [0, 1, 0, 1])),
        "y",
        "0 at (0,)",
    ),
    "simulating with too few rates": (simulate(training=tp.GradientDescent(lr=(0.1,), steps=4)), "lr", "1 rates"),
    "simulating at gamma0 = 0": (simulate(gamma0=0.0), "gamma0", "0.0"),
    "simulating at gamma0 nan": (simulate(gamma0=NAN), "gamma0", "nan"),
    "simulating at negative gamma0": (simulate(gamma0=-1.0), "gamma0", "-1.0"),
    "simulating at infinite gamma0": (simulate(gamma0=INF), "gamma0", "inf"),
    "simulating at gamma0 as text": (simulate(gamma0="1"), "gamma0", "'1'"),
    "one width": (simulate(widths=64), "widths", "64"),
    "no widths": (simulate(widths=()), "widths", "an empty sequence"),
    "width zero": (simulate(widths=(8, 0)), "widths[1]", "0"),
    "fractional width": (simulate(widths=(8.0,)), "widths[0]", "8.0"),
    "a width twice": (simulate(widths=(8, 8)), "widths", "(8, 8)"),
    "widths as text": (simulate(widths="64"), "widths", "'64'"),
    "no seeds": (simulate(seeds=0), "seeds", "0"),
    "an empty list of seeds": (simulate(seeds=[]), "seeds", "an empty sequence"),
    "fractional seeds": (simulate(seeds=2.5), "seeds", "2.5"),
    "a seed twice": (simulate(seeds=[1, 1]), "seeds", "(1, 1)"),
    "negative seed": (simulate(seed=-1), "seed", "-1"),
    "seed nan": (simulate(seed=NAN), "seed", "nan"),
    "centred as text": (simulate(centred="yes"), "centred", "'yes'"),
    "half precision": (simulate(dtype="float16"), "dtype", "'float16'"),
    "misspelt precision": (simulate(dtype="flaot32"), "dtype", "'flaot32'"),
    "a time after the end": (simulate(times=(0, 5)), "times", "5"),
    "a negative time": (simulate(times=(-1,)), "times[0]", "-1"),
    "no memory": (simulate(memory=0), "memory", "0"),
    "memory nan": (simulate(memory=NAN), "memory", "nan"),
    "too little memory": (simulate(memory=1000, widths=(4096,)), "memory", "a need of"),
    "progress as text": (lambda: tp.simulate(NET, tp.muP, TRAIN, TASK, widths=(8,), progress="no"), "progress", "'no'"),
}

COORDINATE_CHECK = {
    "checking a preset by name": (lambda: tp.coordinate_check("muP", NET), "parameterization", "'muP'"),
    "checking with arguments swapped": (lambda: tp.coordinate_check(NET, tp.muP), "net", "Parameterization("),
    "checking symbolic exponents": (lambda: tp.coordinate_check(SYMBOLIC, NET), "parameterization", "['q']"),
    "checking one width": (lambda: tp.coordinate_check(tp.muP, NET, widths=(64,)), "widths", "(64,)"),
    "checking one seed": (lambda: tp.coordinate_check(tp.muP, NET, seeds=1), "seeds", "1"),
    "checking no steps": (lambda: tp.coordinate_check(tp.muP, NET, steps=0), "steps", "0"),
    "checking at rate nan": (lambda: tp.coordinate_check(tp.muP, NET, lr=NAN), "lr", "nan"),
    "checking on arrays": (lambda: tp.coordinate_check(tp.muP, NET, task=TASK.X), "task", "array("),
}


def solve(theory=None, task=TASK, **options):
    return lambda: tp.solve(tp.limit(NET, tp.muP, TRAIN) if theory is None else theory, task, **options)


SOLVE = {
    "solving a net": (solve(theory=NET), "theory", "Program("),
    "solving the verb limit": (solve(theory=tp.limit), "theory", "the function limit"),
    "solving the class of equations": (lambda: tp.solve(type(tp.limit(NET, tp.muP, TRAIN)), TASK), "theory", "the class LimitEquations"),
    "solving for arrays": (solve(task=TASK.X), "task", "array("),
    "solving for the task class": (solve(task=tp.Task), "task", "the class Task"),
    "solving at gamma0 nan": (solve(gamma0=NAN), "gamma0", "nan"),
    "solving at infinite gamma0": (solve(gamma0=INF), "gamma0", "inf"),
    "solving at negative gamma0": (solve(gamma0=-0.5), "gamma0", "-0.5"),
    "solving at gamma0 as text": (solve(gamma0="1.0"), "gamma0", "'1.0'"),
    "no samples": (solve(samples=0), "samples", "0"),
    "fractional samples": (solve(samples=4096.0), "samples", "4096.0"),
    "samples as text": (solve(samples="many"), "samples", "'many'"),
    "no replicates": (solve(replicates=0), "replicates", "0"),
    "negative replicates": (solve(replicates=-4), "replicates", "-4"),
    "negative seed of a solve": (solve(seed=-1), "seed", "-1"),
    "seed of a solve as text": (solve(seed="0"), "seed", "'0'"),
    "misspelt method": (solve(method="marhc"), "method", "'marhc'"),
    "method that is a number": (solve(method=3), "method", "3"),
    "linear method for tanh": (solve(method="linear"), "method", "'linear'"),
    "method class": (solve(method=tp.March), "method", "the class March"),
    "march in the kernel regime": (lambda: tp.solve(tp.limit(NET, tp.ntk, TRAIN), TASK, method="march"), "method", "'march'"),
    "march at gamma0 = 0": (solve(gamma0=0.0, method="march"), "gamma0", "0.0"),
    "odd samples": (solve(samples=65), "samples", "65"),
    "march to tolerance nan": (lambda: tp.March(tol=NAN), "tol", "nan"),
    "march to tolerance zero": (lambda: tp.March(tol=0.0), "tol", "0.0"),
    "march keeping times as text": (lambda: tp.March(times="all"), "times", "'all'"),
    "march in half precision": (lambda: tp.March(dtype="float16"), "dtype", "'float16'"),
    "fixed point without iterations": (lambda: tp.FixedPoint(max_iterations=0), "max_iterations", "0"),
    "fixed point to a negative tolerance": (lambda: tp.FixedPoint(tol=-1e-6), "tol", "-1e-06"),
    "linear without substeps": (lambda: tp.Linear(substeps=0), "substeps", "0"),
    "solving labels that the loss cannot read": (
        lambda: tp.solve(tp.limit(NET, tp.muP, tp.GradientDescent(lr=0.1, steps=2, loss=tp.Logistic())), tp.Task(TASK.X, [0, 1, 0, 1])),
        "y",
        "0 at (0,)",
    ),
    "fixed point with minibatches": (lambda: tp.solve(BATCHED, TASK, method="fixed_point"), "batches", "size=2"),
    "linear method with noise": (lambda: tp.solve(NOISY, TASK, method="linear"), "temperature", "0.1"),
    "kernel method with decay": (lambda: tp.solve(NOISY, TASK, gamma0=0.0), "weight_decay", "0.2"),
    "kernel regime with decay": (lambda: tp.limit(tp.mlp(2, tp.tanh), tp.ntk, NOISY.training), "training", "decay or noise"),
    "noise on weights that start at zero": (lambda: tp.limit(tp.mlp(2, tp.tanh), SILENT, NOISY.training), "temperature", "W2"),
    "batches larger than the data": (lambda: tp.solve(HUGE, TASK), "batches", "size 50"),
    "batches larger than the nets' data": (
        lambda: tp.simulate(NET, tp.muP, HUGE.training, TASK, widths=[8], seeds=1),
        "batches",
        "size 50",
    ),
    "fixed point with momentum": (lambda: tp.solve(HEAVY, TASK, method="fixed_point"), "momentum", "0.9"),
    "solving with symbols": (lambda: tp.solve(tp.limit(SYMBOLIC_NET, tp.muP, TRAIN), TASK), "theory", "the symbols q"),
}

COMPARE = {
    "comparing arrays": (lambda: tp.compare(TASK.X, TASK.X), "sol", "array("),
    "comparing nothing": (lambda: tp.compare(None, None), "sol", "None"),
    "comparing a task": (lambda: tp.compare(TASK, TASK), "sol", "Task("),
}

TABLE = REGIME | LIMIT | SIMULATE | COORDINATE_CHECK | SOLVE | COMPARE


@pytest.mark.parametrize(("call", "field", "value"), TABLE.values(), ids=TABLE)
def test_bad_input_is_answered(call, field, value, must_be_answered):
    must_be_answered(call, field, value)
