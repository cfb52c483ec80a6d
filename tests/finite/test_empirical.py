"""Structured tangent kernels against stacked Jacobians."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import tp_solver as tp
from tp_solver.finite.empirical import empirical_ntk, empirical_ntk_trace
from tp_solver.finite.experiment import precision
from tp_solver.finite.network import draw
from tp_solver.program.tracing import (
    average,
    bias,
    conv,
    dense,
    entrywise,
    global_pool,
    hidden_matrix,
    input_matrix,
    local,
    pool,
    program,
    readout,
)

RNG = np.random.default_rng(0)
X, X2 = RNG.standard_normal((5, 8)), RNG.standard_normal((3, 8))
W0, W1, W2, OUT = input_matrix("W0"), hidden_matrix("W1"), hidden_matrix("W2"), readout("w")
B = bias("b", sigma=0.5, rate=0.3)


def residual(x):
    h = W0 @ x
    for k in (1, 2):
        h = h + sp.Rational(1, 2) * (hidden_matrix(f"R{k}") @ tp.tanh(h))
    return OUT @ tp.tanh(h)


def tied(x):
    return OUT @ tp.tanh(W1 @ tp.tanh(W1 @ tp.tanh(W0 @ x)))


def transposed(x):
    return OUT @ tp.tanh(W1.T @ tp.tanh(W1 @ tp.tanh(W0 @ x)) + B)


def gated(x):
    a, b = W0 @ x, input_matrix("V0") @ x
    return OUT @ (tp.erf(W1 @ tp.gelu(a)) * tp.tanh(b))


def normalised(x):
    h = W1 @ tp.tanh(W0 @ x)
    mean = average(lambda v: v, h)
    size = average(lambda v: v**2, h)
    return OUT @ tp.tanh(entrywise(lambda v, m, c: (v - m) / sp.sqrt(c + 1), h, mean, size))


def convolved(x):
    return OUT @ global_pool(tp.relu(conv(W1, tp.relu(conv(W0, x, 3) + B), 3, padding="zero")))


def pooled(x):
    return dense(OUT, tp.tanh(conv(W1, pool(tp.tanh(conv(W0, x, 2)), 2), 2, stride=2)))


def unshared(x):
    return dense(OUT, tp.tanh(local(W1, tp.tanh(local(W0, x, 3)), 3, padding="valid")))


def tied_convolution(x):
    h = tp.tanh(conv(W0, x, 3))
    return dense(OUT, tp.tanh(conv(W1, tp.tanh(conv(W1, h, 3)), 3)) + tp.tanh(W2 @ h))


PROGRAMS = [
    tp.mlp(1, tp.relu),
    tp.mlp(3, tp.gelu, bias=0.3, bias_rate=0.09),
    *(program(f) for f in (residual, tied, transposed, gated, normalised)),
    *(program(f, grid=4) for f in (convolved, pooled, unshared, tied_convolution)),
    program(lambda x: OUT @ global_pool(tp.tanh(conv(W0, x, (2, 2)))), "image", grid=(2, 4)),
]


@jax.jit
def stacked(net, x):
    """The definition: Jacobians of all outputs with respect to all weights, contracted with the rates."""
    jacobians = jax.jacobian(lambda w: net.net.predict(w, net.numbers, x))(net.w)
    flat = {m: j.reshape(*j.shape[:2], -1) for m, j in jacobians.items()}
    return sum(rate * jnp.einsum("mka,nla->mnkl", flat[m], flat[m]) for m, rate in net.numbers.tangent.items())


def reference(net):
    """The stacked kernel on X and X2 together."""
    with precision():
        return np.asarray(stacked(net, jnp.asarray(np.concatenate([X, X2]).T, net.dtype)))


@pytest.mark.parametrize("parameterization", [tp.ntk, tp.muP], ids=lambda p: p.name)
@pytest.mark.parametrize("net", PROGRAMS, ids=lambda p: p.name)
def test_structured_is_stacked(net, parameterization):
    finite = draw(net, parameterization, 8, 7, seed=1, outputs=3, gamma0=0.7)
    all_points = reference(finite)
    expected, tolerance = all_points[:5, 5:], 1e-13 * np.abs(all_points).max()
    np.testing.assert_allclose(empirical_ntk(finite, X, X2), expected, atol=tolerance)
    np.testing.assert_allclose(empirical_ntk_trace(finite, X, X2), np.einsum("mnkk->mn", expected) / 3, atol=tolerance)
