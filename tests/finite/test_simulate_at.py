"""Nets that are read at chosen rows only: the nets of ``simulate``, and what ``extrapolate`` makes of them."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.finite.simulate_at import simulate_at
from tp_solver.numerics.width_fit import Design, fit_widths

NET = tp.mlp(depth=2, activation=tp.tanh)
TASK = tp.Task.digits(classes=(0, 1, 2), points=9, test=6)
ROWS = (0, 2, 5, 6)


def rule(**more) -> tp.GradientDescent:
    return tp.GradientDescent(lr=0.8, steps=6, loss=tp.CrossEntropy(), **more)


@pytest.mark.parametrize(
    ("training", "centred"),
    [
        (rule(batches=tp.Batches(4, seed=3), momentum=0.5), False),
        (rule(batches=tp.Batches(4), weight_decay=0.1, temperature=1e-3), True),
    ],
    ids=["minibatches and momentum", "decay, noise, centred"],
)
def test_the_same_nets_as_simulate(training, centred):
    """A batch of 4 of 9 points has short last pieces too."""
    whole = tp.simulate(NET, tp.muP, training, TASK, 1.5, [16], seeds=2, centred=centred, times=(0,), progress=False)
    read = simulate_at(ROWS, NET, tp.muP, training, TASK, 1.5, [16], seeds=2, centred=centred, dtype="float64")
    for name in ("f", "f_test", "loss", "loss_test"):
        np.testing.assert_allclose(getattr(read, name), getattr(whole, name)[:, :, list(ROWS)], rtol=1e-11, atol=1e-12, err_msg=name)
    assert read.success


def test_kernels_are_not_there():
    read = simulate_at(ROWS, NET, tp.muP, rule(), TASK, widths=[8], seeds=1)
    with pytest.raises(tp.RangeError, match="recorded rows"):
        read.ntk(0)


def test_extrapolation_reads_chosen_rows():
    """The limit of f at the chosen rows, and its loss."""
    widths, rows = (8, 16), (0, 3, 6)
    read = simulate_at(rows, NET, tp.muP, rule(), TASK, 1.0, widths, seeds=4)
    sol = tp.extrapolate(read)
    fit = fit_widths(Design(widths, (4, 4), ((0, 1),)), list(read.f_test), np.random.default_rng(0))
    np.testing.assert_allclose(sol.f_test, fit.limit, rtol=1e-12)
    np.testing.assert_allclose(sol.stderr("f_test"), fit.stderr, rtol=1e-12)
    correct = np.log(np.sum(np.exp(fit.limit - np.sum(fit.limit * TASK.y_test, axis=-1, keepdims=True)), axis=-1))
    np.testing.assert_allclose(sol.loss_test, correct.mean(axis=-1), rtol=1e-9)


def test_a_diverging_net_is_reported():
    wild = tp.GradientDescent(lr=1e6, steps=6, loss=tp.SquaredError())
    read = simulate_at(ROWS, tp.mlp(depth=2, activation=tp.linear), tp.muP, wild, TASK, widths=[8], seeds=1)
    assert read.status == "nonfinite"
    assert read.first_bad.item() > 0


@pytest.mark.parametrize("rows", [(), (2, 1), (0, 7), (0, 0), (-1,), 3, (0, 1.5)])
def test_malformed_rows(rows):
    with pytest.raises(tp.InputError, match="rows"):
        simulate_at(rows, NET, tp.muP, rule(), TASK, widths=[8], seeds=1)


def test_flows_are_refused():
    with pytest.raises(tp.InputError, match="training"):
        simulate_at((0,), NET, tp.muP, tp.GradientFlow(time=1.0, steps=2), tp.Task(TASK.X, TASK.y), widths=[8], seeds=1)
