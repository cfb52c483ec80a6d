"""Single against double precision with the same draws (promise R7)."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp

TASK = tp.Task(np.sqrt(3) * np.linalg.cholesky([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]]), [1.0, -1.0, 0.5], [[0.5, 1, 0]])
THEORY = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.5, steps=100))


def solved(dtype):
    method = tp.March(bias=False, dtype=dtype, recorded=(0, 50, 100))
    return tp.solve(THEORY, TASK, 1.5, samples=512, replicates=1, method=method)


def test_order_parameters_agree_over_a_hundred_steps():
    """They do as long as both keep the same directions: a residual at the very tolerance may be kept by one and not by the other,
    and then the two differ by sampling noise from there on."""
    double, single = solved("float64"), solved("float32")
    assert double.details["ranks"] == single.details["ranks"]
    named = {name: getattr(double, name) for name in ("f", "f_test", "loss")}
    pairs = {name: (a, getattr(single, name)) for name, a in named.items()}
    for t in (50, 100):
        pairs |= {f"ntk({t})": (double.ntk(t), single.ntk(t))}
        for layer in (1, 2):
            pairs |= {
                f"{n}({layer}, 100, {t})": (getattr(double, n)(layer, 100, t), getattr(single, n)(layer, 100, t)) for n in ("Phi", "G")
            }
    errors = {name: np.linalg.norm(a - b) / np.linalg.norm(a) for name, (a, b) in pairs.items()}
    assert max(errors.values()) <= 1e-4, errors
    assert errors["f"] == pytest.approx(0, abs=1e-5) and errors["f"] > 1e-12, "the precisions differ"
