"""Means over positions of Gaussian fields, followed by an activation: a window of one position commutes with pooling."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp

CHANNELS = 2
IMAGES = np.random.default_rng(5).standard_normal((3, 6, CHANNELS))


def head(x, second):
    """Layers above the pooled field: dense, or a convolution, pooling and an activation again."""
    W1, w = tp.hidden_matrix("W1"), tp.readout("w")
    if not second:
        return tp.dense(w, tp.relu(x))
    return tp.pooled(w, tp.erf(tp.pool(tp.conv(W1, tp.relu(x), 1, 1, "circular"), 2, 1, "circular")))


def pooled_inputs(size, stride):
    """Means over circular windows that start at every ``stride``-th position less what the window puts before it."""
    before = (size - 1) // 2 if stride == 1 else 0
    columns = [(np.arange(size) + start - before) % 6 for start in range(0, 6, stride)]
    return np.stack([IMAGES[:, c].mean(axis=1) for c in columns], axis=1)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, "circular"), (2, 2, "valid")])
def test_pooling_fields_is_pooling_inputs(size, stride, padding, second):
    W0 = tp.input_matrix("W0")
    net = tp.program(lambda x: head(tp.pool(tp.conv(W0, x, 1, 1, "circular"), size, stride, padding), second), "pooled", (6,))
    plain = tp.program(lambda x: head(tp.conv(W0, x, 1, 1, "circular"), second), "plain", (6 // stride,))
    found = tp.kernels(net, tp.ntk, IMAGES, layers=True)
    expected = tp.kernels(plain, tp.ntk, pooled_inputs(size, stride), layers=True)
    assert found.nngp == pytest.approx(expected.nngp, rel=1e-12, abs=1e-14)
    assert found.ntk == pytest.approx(expected.ntk, rel=1e-12, abs=1e-14)
    for name in found.parts:
        assert found.parts[name] == pytest.approx(expected.parts[name], rel=1e-12, abs=1e-14)


def test_two_means_of_the_same_adjoint():
    """A field that two means read: the cross terms of both count."""
    W0, w = tp.input_matrix("W0"), tp.readout("w")

    def net(x):
        h = tp.conv(W0, x, 1, 1, "circular")
        return tp.dense(w, tp.relu(tp.pool(h, 3, 1, "circular") + tp.pool(h, 2, 1, "circular")))

    def plain(x):
        return tp.dense(w, tp.relu(tp.conv(W0, x, 1, 1, "circular")))

    found = tp.kernels(tp.program(net, "two means", (6,)), tp.ntk, IMAGES)
    expected = tp.kernels(tp.program(plain, "plain", (6,)), tp.ntk, pooled_inputs(3, 1) + pooled_inputs(2, 1))
    assert found.ntk == pytest.approx(expected.ntk, rel=1e-12, abs=1e-14)
