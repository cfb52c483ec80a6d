"""Discrepancy from a Gaussian and cumulants: without bias, with errors that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.finite.gaussianity import cumulants, mmd2
from tp_solver.finite.width_scan import width_scan

RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((3, 3))
K = ROOT @ ROOT.T


def gaussian(draws):
    return RNG.standard_normal((draws, 3)) @ ROOT.T


def mixture(draws):
    """A scale mixture of the same covariance: what nets of finite width look like."""
    return np.sqrt(RNG.gamma(2.0, 0.5, (draws, 1))) * gaussian(draws)


def test_gaussian_side_in_closed_form():
    """Against the same sums over a million draws of the Gaussian."""
    x = mixture(40)
    found = mmd2(x, K, bandwidth=1.3)
    z = gaussian(400_000)
    met = np.mean([np.exp(-np.sum((z - v) ** 2, axis=1) / (2 * 1.3**2)).mean() for v in x])
    itself = np.exp(-np.sum((z[::2] - z[1::2]) ** 2, axis=1) / (2 * 1.3**2)).mean()
    pairs = np.exp(-np.sum((x[:, None] - x) ** 2, axis=2) / (2 * 1.3**2))
    expected = (pairs.sum() - 40) / (40 * 39) - 2 * met + itself
    assert found.value == pytest.approx(expected, abs=2e-3)
    assert found.bandwidth == 1.3 and found.draws == 40


def test_no_bias_and_no_floor():
    """The mean over repeats of Gaussian draws is zero within its error, where the biased estimate would give 1/S."""
    values = np.array([mmd2(gaussian(50), K).value for _ in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert values.std() / 20 < 0.02 / 50


def test_errors_of_the_discrepancy():
    """Errors are the scatter over repeats, and two of them cover a reference with ten times the draws."""
    rng = np.random.default_rng(5)

    def heavy(draws):
        return np.sqrt(rng.gamma(0.5, 2.0, (draws, 1))) * rng.standard_normal((draws, 3)) @ ROOT.T

    found = [mmd2(heavy(400), K) for _ in range(120)]
    values, errors = np.array([f.value for f in found]), np.array([f.stderr for f in found])
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)
    reference = mmd2(heavy(4000), K)
    assert np.mean(np.abs(values - reference.value) < 2 * np.hypot(errors, reference.stderr)) >= 0.9


def test_cumulants_of_a_scale_mixture():
    """Scales of variance v give an excess kurtosis 3 v: here 3 / 4, times variances^2 for the fourth cumulant."""
    scale = np.array([0.5, 2.0])
    found = [cumulants(np.sqrt(RNG.gamma(4.0, 0.25, (3000, 1))) * RNG.standard_normal((3000, 2)) * scale) for _ in range(200)]
    for name, expected in (("kurtosis", np.full(2, 0.75)), ("kappa4", 0.75 * scale**4)):
        values = np.array([getattr(f, name) for f in found])
        errors = np.array([getattr(f, f"{name}_stderr") for f in found])
        assert np.all(np.abs(values.mean(axis=0) - expected) < 4 * values.std(axis=0) / np.sqrt(200) + 0.01 * expected)
        np.testing.assert_allclose(errors.mean(axis=0), values.std(axis=0), rtol=0.25)


@pytest.mark.parametrize("depth", [1, 3])
def test_kurtosis_of_relu_nets_is_known_at_every_width(depth):
    """Without biases every hidden layer multiplies E f^4 / (E f^2)^2 by 1 + 5 / n: 3 (E phi^4 / (E phi^2)^2 - 1) = 15."""
    X = RNG.standard_normal((1, 3))
    widths = (16, 32)
    values = width_scan(lambda f: f.predict(X)[0], tp.mlp(depth, tp.relu), tp.ntk, 3, widths, 3000, outputs=8, resamples=100).values
    for n, draws in zip(widths, values, strict=True):
        found = cumulants(draws)
        expected = 3 * (1 + 5 / n) ** depth - 3
        # the outputs of one net share its layers: their mean is at least as good as one of them
        assert abs(found.kurtosis.mean() - expected) < 4 * found.kurtosis_stderr.mean()
        assert found.kurtosis.mean() == pytest.approx(expected, rel=0.3)


BAD = {
    "three draws": (lambda: mmd2(np.ones((3, 3)), K), "samples", "3 draws"),
    "draws of another dimension": (lambda: mmd2(np.ones((9, 2)), K), "covariance", "(3, 3)"),
    "a NaN": (lambda: mmd2(np.full((9, 3), np.nan), K), "samples", "non-finite"),
    "a covariance that is not symmetric": (lambda: mmd2(np.ones((9, 3)), K + np.triu(K)), "covariance", "symmetric"),
    "a covariance with a negative eigenvalue": (lambda: mmd2(np.ones((9, 3)), -K), "covariance", "eigenvalue"),
    "a covariance of zeros": (lambda: mmd2(np.ones((9, 3)), 0 * K), "covariance", "zero"),
    "a bandwidth of zero": (lambda: mmd2(np.ones((9, 3)), K, bandwidth=0), "bandwidth", "0"),
    "draws that do not vary": (lambda: cumulants(np.ones((9, 3))), "samples", "not vary"),
    "text": (lambda: cumulants("draws"), "samples", "draws"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, must_be_answered):
    call, field, value = BAD[name]
    must_be_answered(call, field, value)
