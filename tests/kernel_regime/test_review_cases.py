"""Cases at the borders of the kernel regime: products that occur twice, inputs of zero, odd arguments."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.kernel_regime.constants import numeric_constants
from tp_solver.kernel_regime.repeated_layer import read_deep_net
from tp_solver.limit.spec import limit_spec

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4))


def repeated(depth, layer):
    """A net of tanh layers whose hidden fields are layer(W tanh(y), y)."""
    first, last = tp.input_matrix("W0"), tp.readout("w")
    hidden = [tp.hidden_matrix(f"W{k}") for k in range(1, depth)]

    def forward(x):
        y = first @ x
        for w in hidden:
            y = layer(w @ tp.tanh(y), y)
        return last @ tp.tanh(y)

    return tp.program(forward, "repeated")


DOUBLED = {
    "h + h": lambda h, y: h + h,
    "2 h": lambda h, y: 2 * h,
    "(y + h) + h": lambda h, y: (y + h) + h,
    "y/2 + y/2 + h - 3 h": lambda h, y: 0.5 * y + 0.5 * y + h - 3 * h,
}


@pytest.mark.parametrize("name", DOUBLED)
def test_products_that_occur_twice_add_up_before_they_are_squared(name):
    """W tanh(y), twice, is a matrix of twice the scale: four times the variance, not two."""
    net, parameterization = repeated(2, DOUBLED[name]), tp.ntk.times(0.6)
    scales, rates = numeric_constants(net, limit_spec(net, parameterization), X.shape[1])
    layer = read_deep_net(net, scales, rates).layer
    assert layer.skip == (1 if "y" in name else 0)
    assert [b.weight for b in layer.branches] == pytest.approx([4 * scales["W1"] ** 2])
    assert [b.rate for b in layer.branches] == pytest.approx([4 * rates["W1"]])


def test_a_doubled_layer_has_the_kernels_of_its_net():
    layer, parameterization = DOUBLED["h + h"], tp.ntk.times(0.6)
    found = tp.depth_analysis(repeated(2, layer), parameterization, X, depths=(2, 3))
    for k, depth in enumerate((2, 3)):
        expected = tp.kernels(repeated(depth, layer), parameterization, X)
        np.testing.assert_allclose(found.nngp[k], expected.nngp, rtol=1e-11)
        np.testing.assert_allclose(found.ntk[k], expected.ntk, rtol=1e-11)
