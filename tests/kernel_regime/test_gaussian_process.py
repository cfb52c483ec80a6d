"""Gaussian-process conditioning: against scikit-learn's, on its own identities, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

import tp_solver as tp
from tp_solver.errors import InputError
from tp_solver.kernel_regime.compute import kernels
from tp_solver.kernel_regime.covariance import covariance_matrix
from tp_solver.kernel_regime.gaussian_process import condition, log_marginal_likelihood

RNG = np.random.default_rng(0)
X, X_TEST = RNG.standard_normal((12, 3)), RNG.standard_normal((5, 3))
Y = RNG.standard_normal((12, 2))
RADIAL = RBF(1.3)
K, CROSS, OWN = RADIAL(X), RADIAL(X_TEST, X), RADIAL(X_TEST)


@pytest.mark.parametrize("noise", [1e-3, 0.2])
def test_posterior_is_that_of_scikit_learn(noise):
    peer = GaussianProcessRegressor(RADIAL, alpha=noise, optimizer=None).fit(X, Y)
    mean, covariance = peer.predict(X_TEST, return_cov=True)
    process = condition(K, Y, noise)
    assert process.mean(CROSS) == pytest.approx(mean, abs=1e-11)
    for output in range(2):
        assert process.covariance(CROSS, OWN) == pytest.approx(covariance[..., output], abs=1e-11)
    assert process.variance(CROSS, np.diagonal(OWN)) == pytest.approx(np.diagonal(covariance[..., 0]), abs=1e-11)
    assert process.log_marginal_likelihood().value == pytest.approx(peer.log_marginal_likelihood(), rel=1e-11)
    assert "12 points, 2 outputs" in str(process)


def test_slopes_of_the_marginal_likelihood_are_those_of_scikit_learn():
    """Theirs are with respect to logarithms of the hyperparameters, ours to the hyperparameters."""
    scale, noise = 1.7, 0.3
    peer = GaussianProcessRegressor(ConstantKernel(scale) * RBF(1.3, "fixed") + WhiteKernel(noise), alpha=0, optimizer=None).fit(X, Y)
    value, slopes = peer.log_marginal_likelihood(np.log([scale, noise]), eval_gradient=True)
    ours = log_marginal_likelihood(K, Y, noise, scale)
    assert ours.value == pytest.approx(value, rel=1e-11)
    assert ours.d_scale * scale == pytest.approx(slopes[0], rel=1e-10)
    assert ours.d_noise * noise == pytest.approx(slopes[1], rel=1e-10)
    assert f"{ours.value:.6g}" in str(ours)


def test_without_noise_it_interpolates():
    own = RADIAL(np.concatenate([X, X_TEST]))
    process = condition(K, Y)
    assert process.mean(own[:, :12])[:12] == pytest.approx(Y, abs=1e-8)
    covariance = process.covariance(own[:, :12], own)
    assert covariance.diagonal()[:12].max() <= 1e-10
    assert covariance.diagonal()[12:].min() > 1e-3
    assert np.abs(covariance[:12]).max() <= 1e-10  # uncorrelated with everything, too
    assert process.factor.rank == 12 and process.factor.basis is None
    assert process.factor.condition_number == pytest.approx(np.linalg.cond(K, 1), rel=0.5)


def test_one_column_or_several():
    one, two = condition(K, Y[:, 0], 0.1), condition(K, Y, 0.1)
    assert one.mean(CROSS).shape == (5,)
    assert one.mean(CROSS) == pytest.approx(two.mean(CROSS)[:, 0], abs=1e-13)
    total = sum(log_marginal_likelihood(K, Y[:, k], 0.1).value for k in range(2))
    assert log_marginal_likelihood(K, Y, 0.1).value == pytest.approx(total, rel=1e-13)


REPEATED = np.concatenate([np.arange(12), [4]])
"""Point 4 a second time, at the end."""


def test_coincident_points_without_noise():
    """The same label twice is the same as once; two labels are refused, and the pair is named; noise averages them."""
    kernel, cross = K[np.ix_(REPEATED, REPEATED)], CROSS[:, REPEATED]
    once, twice = condition(K, Y), condition(kernel, Y[REPEATED])
    assert twice.factor.rank == 12
    assert twice.mean(cross) == pytest.approx(once.mean(CROSS), abs=1e-6)
    assert twice.variance(cross, np.diagonal(OWN)) == pytest.approx(once.variance(CROSS, np.diagonal(OWN)), abs=1e-6)
    assert "points 4 and 12 coincide" in str(twice)
    other = Y[REPEATED].copy()
    other[-1, 0] += 0.1
    with pytest.raises(InputError, match=r"rank 12 on 13 points \(points 4 and 12 coincide\).*noise above"):
        condition(kernel, other)
    with pytest.raises(InputError, match="the labels have no density"):
        log_marginal_likelihood(kernel, Y[REPEATED])
    noisy = condition(kernel, other, 1e-5)
    assert noisy.factor.rank == 13
    assert noisy.mean(kernel)[4] == pytest.approx(other[[4, 12]].mean(axis=0), abs=1e-3)


@pytest.mark.parametrize("which", ["nngp", "ntk"])
def test_coincident_inputs_of_a_net(which):
    """Rounding inside computed kernels must not make two points out of one."""
    rows = np.concatenate([X, X[:1]])
    kernel = getattr(kernels(tp.mlp(depth=3, activation=tp.relu), tp.ntk.times(2**0.5), rows), which)
    y = np.arange(13.0)
    with pytest.raises(InputError, match="points 0 and 12 coincide"):
        condition(kernel, y)
    y[-1] = y[0]
    assert condition(kernel, y).mean(kernel) == pytest.approx(y, abs=1e-6)


def test_a_kernel_of_low_rank():
    """Linear regression in three dimensions: labels on the plane are fitted, others refused."""
    kernel, slope = X @ X.T, np.array([1.0, -2.0, 0.5])
    process = condition(kernel, X @ slope)
    assert process.factor.rank == 3
    assert process.mean(X_TEST @ X.T) == pytest.approx(X_TEST @ slope, abs=1e-12)
    assert process.variance(X_TEST @ X.T, (X_TEST**2).sum(axis=1)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="rank 3 on 12 points, which y does not fit"):
        condition(kernel, Y)
    with pytest.raises(InputError, match="rank 0 on 2 points"):
        condition(np.zeros((2, 2)), [0.0, 1.0])
    assert condition(np.zeros((2, 2)), [0.0, 0.0]).mean(np.ones((1, 2))) == 0


def test_indefinite_kernels_are_named_by_their_lowest_eigenvalue():
    bad = K - 0.5 * np.eye(12)
    lowest = np.linalg.eigvalsh(bad)[0]
    assert lowest < -0.4
    with pytest.raises(InputError, match=f"lowest eigenvalue is {lowest:.3g}.*positive semidefinite"):
        condition(bad, Y)
    with pytest.raises(InputError, match="lowest eigenvalue"):  # noise would hide it from a Cholesky factorisation
        condition(bad, Y, noise=1.0)
    with pytest.raises(InputError, match="lowest eigenvalue"):
        log_marginal_likelihood(bad, Y, noise=1.0)
    rounding = K - 1e-13 * np.eye(12)
    assert covariance_matrix("kernel", rounding) == pytest.approx(rounding, abs=0)


def test_asymmetric_kernels_are_refused():
    bad = K.copy()
    bad[2, 7] += 1e-3
    with pytest.raises(InputError, match=r"\(2, 7\) and \(7, 2\)|\(7, 2\) and \(2, 7\)"):
        condition(bad, Y)
    single = K.astype(np.float32)
    single[2, 7] *= np.float32(1 + 1e-6)
    assert covariance_matrix("kernel", single)[2, 7] == covariance_matrix("kernel", single)[7, 2]
    with pytest.raises(InputError, match="asymmetric"):
        covariance_matrix("kernel", single.astype(float))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((K[:, :5], Y), "square"),
        ((K * np.nan, Y), "kernel: got a non-finite entry"),
        ((K, Y[:5]), "y: got 5 labels; expected 12"),
        ((K, Y * np.inf), "y: got a non-finite entry"),
        ((K, Y, -0.1), "noise: got -0.1"),
        ((K, Y, "none"), "noise: got 'none'"),
    ],
)
def test_bad_input(arguments, match):
    with pytest.raises(InputError, match=match):
        condition(*arguments)
    with pytest.raises(InputError, match=match):
        log_marginal_likelihood(*arguments)


def test_bad_blocks():
    process = condition(K, Y, 0.1)
    with pytest.raises(InputError, match=r"cross: got shape \(12, 5\)"):
        process.mean(CROSS.T)
    with pytest.raises(InputError, match="cross: got 4 rows; expected 5"):
        process.covariance(CROSS[:4], OWN)
    with pytest.raises(InputError, match=r"posterior variance -.* at new point 0"):
        process.variance(CROSS, [1e-3, 1.0, 1.0, 1.0, 1.0])
    with pytest.raises(InputError, match="posterior variance"):
        process.covariance(2 * CROSS, OWN)
    with pytest.raises(InputError, match="diagonal"):
        process.variance(CROSS, OWN)
    with pytest.raises(InputError, match="scale: got 0"):
        log_marginal_likelihood(K, Y, 0.1, scale=0)
