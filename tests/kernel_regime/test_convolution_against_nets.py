"""Card A4: kernels of convolutional programs against finite nets of the same program."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.finite.empirical import empirical_ntk_trace

HE = tp.ntk.times((2**0.5, 2**0.5, 1))
X = np.random.default_rng(0).standard_normal((3, 6 * 4))


@pytest.mark.parametrize("head", [tp.dense, tp.pooled])
def test_empirical_kernels_of_a_circular_net(head):
    """Two convolutional layers of width 256, 12 seeds: within 3 standard errors; at width 64 nets and their mean are further off.

    Of the mean this is the noise alone: for ReLU the bias is below that of 1000 nets.
    """
    net = tp.cnn(2, tp.relu, grid=(6,), head=head)
    wanted = tp.kernels(net, HE, X).ntk
    deviation, of_mean = {}, {}
    for width in (64, 256):
        found = np.array([tp.empirical_ntk(tp.draw(net, HE, 24, width, seed=s), X)[..., 0, 0] for s in range(12)])
        deviation[width] = np.sqrt(np.mean((found - wanted) ** 2))
        of_mean[width] = np.abs(found.mean(axis=0) - wanted).max()
    error = np.std(found, axis=0, ddof=1) / np.sqrt(12)
    assert np.all(np.abs(found.mean(axis=0) - wanted) < 3 * error)
    assert deviation[256] < 0.75 * deviation[64]
    assert of_mean[256] < 0.75 * of_mean[64]


@pytest.mark.parametrize("head", [tp.dense, tp.pooled])
def test_the_bias_falls_with_the_width(head):
    """Where it stands out of the noise, for x + x^2 / 2: mean kernels minus the limit as 1 / n, faster than their noise."""
    net = tp.cnn(2, tp.Activation("quadratic", lambda x: x + x**2 / 2), grid=(6,), head=head)
    wanted = tp.kernels(net, tp.ntk, X).ntk

    def bias(finite):
        return empirical_ntk_trace(finite, X) - wanted

    scan = tp.width_scan(bias, net, tp.ntk, 24, (8, 32), 1000, outputs=16, progress=False)
    assert scan.slope_mean.value == pytest.approx(-1.0, abs=0.2)
    assert scan.slope_mean.high < -0.5
    assert scan.sizes.mean[1] < 0.4 * scan.sizes.mean[0]


@pytest.mark.slow
def test_simulated_kernels_of_strides_pools_biases_and_local_layers():
    """Phi, G and the tangent kernel of an ensemble, by the nets' own code, in two dimensions."""
    W0, W1, w, b = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w"), tp.bias("b", 0.3)

    def network(x):
        x = tp.pool(tp.tanh(tp.conv(W0, x, 3) + b), 2)
        return tp.dense(w, tp.tanh(tp.local(W1, x, (2, 3), stride=(1, 2), padding="zero")))

    net = tp.program(network, "mixed", grid=(4, 6))
    X = np.random.default_rng(1).standard_normal((3, 4 * 6 * 2))
    task = tp.Task(X, np.array([1.0, -1.0, 0.5]))
    seeds = 24
    ens = tp.simulate(net, tp.ntk, tp.GradientDescent(lr=0.2, steps=1), task, widths=[128], seeds=seeds)
    theory = tp.kernels(net, tp.ntk, X, layers=True)
    pairs = [(ens.ntk(0), theory.ntk)]
    pairs += [(ens.Phi(k + 1, 0, 0), theory.Phi[k]) for k in range(2)] + [(ens.G(k + 1, 0, 0), theory.G[k]) for k in range(2)]
    for found, wanted in pairs:
        v = found[0]
        error = np.std(v, axis=0, ddof=1) / np.sqrt(seeds) + 0.01 * np.abs(wanted).max()  # the bias of width 128 is of order 1/n
        assert np.all(np.abs(v.mean(axis=0) - wanted) < 3.5 * error)


@pytest.mark.slow
def test_a_trained_net_is_kernel_regression():
    """Width 256, 20 points, trained to a loss of 1e-3 from a centred start: relative difference on other points below 0.2."""
    net = tp.cnn(2, tp.relu, grid=(6,))
    rng = np.random.default_rng(2)
    X = rng.standard_normal((40, 24))
    y = np.sign(X.reshape(40, 6, 4)[:, :, 0].sum(axis=1))
    k = tp.kernels(net, HE, X).ntk
    regression = k[20:, :20] @ np.linalg.solve(k[:20, :20], y[:20])
    task = tp.Task(X[:20], y[:20], X[20:], y[20:])
    lr = 0.4 * tp.critical_rate(k[:20, :20])
    ens = tp.simulate(net, HE, tp.GradientDescent(lr=lr, steps=3000), task, widths=[256], seeds=2, times=(0,), centred=True)
    assert ens.loss[..., -1].max() < 1e-3
    difference = np.linalg.norm(ens.f_test[0, :, -1] - regression, axis=1) / np.linalg.norm(regression)
    assert difference.mean() < 0.2
