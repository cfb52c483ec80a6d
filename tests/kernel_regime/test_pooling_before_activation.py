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


def test_a_bias_is_the_same_at_every_position():
    """What has one entry for all positions stands for each of them, for windows too."""
    W0, W1, w, b = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w"), tp.bias("b", 1.0)
    net = tp.program(lambda x: w @ tp.linear(tp.global_pool(tp.conv(W0, x, 1) + b)), "bias and mean", (6,))
    mean = IMAGES.mean(axis=1)
    assert tp.kernels(net, tp.ntk, IMAGES).nngp == pytest.approx(mean @ mean.T / CHANNELS + 1, rel=1e-12)
    # a window of one position before the mean, or after it: the same
    pooled = tp.program(lambda x: tp.dense(w, tp.relu(tp.pool(tp.conv(W0, x, 1) + b, 2))), "pooled", (6,))
    plain = tp.program(lambda x: tp.dense(w, tp.relu(tp.conv(W0, x, 1) + b)), "plain", (3,))
    found, expected = tp.kernels(pooled, tp.ntk, IMAGES), tp.kernels(plain, tp.ntk, pooled_inputs(2, 2))
    assert found.nngp == pytest.approx(expected.nngp, rel=1e-12) and found.ntk == pytest.approx(expected.ntk, rel=1e-12)

    def shared(x):  # two convolutions with one bias: what they share is correlated at all pairs of positions
        h, g = tp.conv(W0, x, 1) + b, tp.conv(tp.input_matrix("V0"), x, 1) + b
        return tp.dense(w, tp.relu(tp.conv(W1, h, 2, 1, "circular") + tp.conv(W1, g, 2, 1, "circular")))

    two = tp.program(shared, "shared", (6,))
    k = tp.kernels(two, tp.ntk, IMAGES)
    swapped = tp.kernels(two, tp.ntk, np.roll(IMAGES, 1, axis=1))
    assert k.ntk == pytest.approx(swapped.ntk, rel=1e-12) and np.linalg.eigvalsh(k.ntk).min() > 0
