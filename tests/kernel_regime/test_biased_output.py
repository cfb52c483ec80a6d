"""Kernels of nets with a bias on the output: arc-cosine closed forms, positions, finite nets, the lazy limit."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp

SW, SB = 1.3, 0.4
PAR = tp.ntk.times(SW)
RNG = np.random.default_rng(5)
X = RNG.standard_normal((4, 6))


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


def arc_cosine(X, depth):
    """NNGP and NTK with a bias in every layer, the last included: K <- sw^2 E relu relu + sb^2, Theta <- K + sw^2 Theta E step step."""
    K = SW**2 * X @ X.T / X.shape[1] + SB**2
    theta = K
    for _ in range(depth):
        size = np.sqrt(np.outer(np.diag(K), np.diag(K)))
        angle = np.arccos(np.clip(K / size, -1, 1))
        np.fill_diagonal(angle, 0.0)
        both = (np.pi - angle) / (2 * np.pi)
        K = SW**2 * size * (np.sin(angle) / (2 * np.pi) + both * np.cos(angle)) + SB**2
        theta = K + SW**2 * theta * both
    return K, theta


def test_dense_nets_in_closed_form():
    """Weights and biases standard normal and trained at rate one, as Lee et al. (arXiv:1902.06720) and the peer write them."""
    found = tp.kernels(tp.mlp(3, tp.relu, bias=SB, bias_rate=SB**2, output_bias=SB), PAR, X, layers=True)
    nngp, ntk = arc_cosine(X, 3)
    np.testing.assert_allclose(found.nngp, nngp, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, ntk, rtol=1e-12)
    np.testing.assert_allclose(found.parts["b4"], SB**2, rtol=1e-14)
    # the readout and its bias are the last layer, whose tangent kernel is the covariance of the output
    np.testing.assert_allclose(found.parts["W3"] + found.parts["b4"], found.nngp, rtol=1e-12)


def convolutional(output_bias):
    return tp.cnn(1, tp.relu, (3,), 2, padding="zero", bias=SB, bias_rate=0.7, output_bias=output_bias)


def test_over_positions_there_is_one_bias():
    with_bias, without = (tp.kernels(convolutional(b), PAR, X) for b in (SB, False))
    np.testing.assert_allclose(with_bias.nngp - without.nngp, SB**2, rtol=1e-12)
    np.testing.assert_allclose(with_bias.ntk - without.ntk, 0.7, rtol=1e-12)


def test_tangent_kernels_of_wide_nets():
    """The mean over nets lies within twice its rms standard error."""
    net = tp.mlp(2, tp.relu, bias=SB, bias_rate=SB**2, output_bias=SB)
    found = np.array([tp.empirical_ntk_trace(tp.draw(net, PAR, 6, 512, seed=k, outputs=3, gamma0=0.7), X) for k in range(32)])
    error = rms(found.std(axis=0, ddof=1) / np.sqrt(len(found)))
    expected = arc_cosine(X, 2)[1]
    assert rms(found.mean(axis=0) - expected) < 2 * error
    assert 4 * error < SB**2, "without the term of the bias the line above would fail"


@pytest.mark.parametrize("parameterization", [tp.ntk, tp.muP], ids=["ntk", "muP"])
def test_finite_nets_start_with_it_whatever_their_width(parameterization):
    """f gains b / gamma0, the same at all points; 240 of them have the variance sigma^2 / gamma0^2."""
    net, plain = (tp.mlp(1, tp.erf, output_bias=b) for b in (2.0, False))
    shifts = []
    for seed in range(40):
        with_bias, without = (tp.draw(f, parameterization, 6, (8, 64)[seed % 2], seed, outputs=6, gamma0=4.0) for f in (net, plain))
        gained = with_bias.predict(X) - without.predict(X)
        np.testing.assert_allclose(gained, np.tile(gained[0], (4, 1)), atol=1e-14)
        shifts.append(gained[0])
    assert np.mean(np.square(shifts)) == pytest.approx(0.25, abs=3 * 0.25 * np.sqrt(2 / 240))


def test_muP_trains_it_too_in_the_lazy_limit():
    """gamma0 = 0: the kernel of the lazy limit has the bias' rate, which may be named in the rates of training."""
    task = tp.Task(X, RNG.standard_normal(4))
    net = tp.mlp(2, tp.relu, output_bias=True)
    rule = tp.GradientDescent({"W0": 0.0, "W1": 0.2, "W2": 0.3, "b3": 0.5}, 5)
    sol = tp.solve(tp.limit(net, tp.muP, rule), task, gamma0=0.0)
    parts = tp.kernels(net, tp.muP, X, layers=True).parts
    K, f = 0.2 * parts["W1"] + 0.3 * parts["W2"] + 0.5, np.zeros(4)
    for t in range(6):
        np.testing.assert_allclose(sol.f[t], f, atol=1e-12)
        f = f + K @ (task.y - f) / 4


def test_depth_is_analysed_without_it():
    with pytest.raises(tp.ProgramError, match=r"bias b3 on the output.*leave it out"):
        tp.depth_analysis(tp.mlp(2, tp.relu, output_bias=True), tp.ntk, X)
