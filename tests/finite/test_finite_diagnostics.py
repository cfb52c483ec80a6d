"""Cards A2, A3, C1 and C4: how finite nets approach their limit. The measurements are those of benchmarks/finite_diagnostics.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

import tp_solver as tp

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "finite_diagnostics.py"
SPEC = importlib.util.spec_from_file_location("finite_diagnostics", PATH)
measure = importlib.util.module_from_spec(SPEC)
sys.modules["finite_diagnostics"] = measure  # dataclasses look their module up
SPEC.loader.exec_module(measure)

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("widths", "seeds"),
    [((32, 64, 128, 256), 60), pytest.param((32, 64, 128, 256, 512, 1024), 100, marks=slow)],
    ids=["small", "full"],
)
def test_kernel_fluctuations(widths, seeds):
    """C1: sd(eNTK) has slope -0.5 +- 0.1. A3: so has |eNTK - Theta|_F / |Theta|_F."""
    scan = measure.kernel_fluctuations(widths, seeds)
    assert scan.slope_sd.value == pytest.approx(-0.5, abs=0.1)
    assert scan.slope_rms.value == pytest.approx(-0.5, abs=0.1)


def test_bias_below_the_noise():
    """C1, the trap: 200 nets of a saturating activation show no bias, and the library does not make one of the noise."""
    assert measure.kernel_fluctuations((32, 64, 128), 200).slope_mean is None


@pytest.mark.parametrize(
    ("widths", "seeds"),
    [((8, 16, 32, 64), 1000), pytest.param((8, 16, 32, 64, 128), 8000, marks=slow)],
    ids=["small", "full"],
)
def test_kernel_bias(widths, seeds):
    """C1: |E eNTK - Theta| has a slope of at most -0.7, where there are enough nets to see it."""
    scan = measure.kernel_bias(widths, seeds)
    assert scan.slope_mean.value <= -0.7
    assert scan.slope_mean.high <= -0.5, "and not that of the noise"


@pytest.mark.parametrize(
    ("widths", "seeds"),
    [((128, 256, 512), 16), pytest.param((128, 256, 512, 1024), 40, marks=slow)],
    ids=["small", "full"],
)
def test_size_of_the_second_kernel(widths, seeds):
    """C1: the root mean square of O_3 has slope -1 +- 0.2; its mean vanishes with the sign of the readout."""
    scan = measure.second_kernel_size(widths, seeds)
    assert scan.slope_rms.value == pytest.approx(-1.0, abs=0.2)
    assert scan.slope_mean is None


@pytest.mark.parametrize(("seeds", "horizon"), [(1, 2.0), pytest.param(4, 2.0, marks=slow), pytest.param(4, 10.0, marks=slow)])
def test_drift_is_predicted(seeds, horizon):
    """C1: the drift at width 1024 to 20 %. It takes O_4 beside O_3, which is of the same order in 1/n."""
    errors = measure.drift_errors(1024, seeds, horizon)
    assert errors.total.max() <= 0.2
    assert errors.first.mean() > 2 * errors.total.mean()


@slow
def test_drift_of_small_times_needs_the_second_kernel_only():
    """C1: O_3 alone predicts it to 20 % while the weights have hardly moved."""
    assert measure.drift_errors(1024, 4, 0.3).first.max() <= 0.2


def test_standard_parameterization_grows():
    """C1: the largest eigenvalue of the eNTK has slope +1 +- 0.1, which is why learning rates must be O(1/n)."""
    assert measure.top_eigenvalue((64, 128, 256, 512), 6).slope_mean.value == pytest.approx(1.0, abs=0.1)


def test_pseudo_kernel():
    """C4: slopes -0.5 +- 0.1 in norm and -0.5 +- 0.15 in the largest eigenvalue; the ratio of condition numbers falls to one."""
    scan = measure.pseudo_kernel_errors((32, 64, 128, 256, 512), 8)
    frobenius, eigenvalue = (measure.part(scan, k).slope_rms.value for k in (0, 1))
    condition = scan.mean[:, 2]
    assert frobenius == pytest.approx(-0.5, abs=0.1)
    assert eigenvalue == pytest.approx(-0.5, abs=0.15)
    assert np.all(np.diff(condition) < 0) and 1 < condition[-1] < 1.6


def test_regression_with_the_pseudo_kernel():
    """C4: what kernel regression predicts differs at the same rate, slope -0.5."""
    assert measure.pseudo_regression_errors((32, 64, 128, 256, 512), 8).slope_rms.value == pytest.approx(-0.5, abs=0.15)


@pytest.mark.parametrize("nets", [4000], ids=["full"])
def test_outputs_become_gaussian(nets):
    """A2: slope of MMD^2 in [-2.6, -1.2] over n = 4..32, of the excess kurtosis -1 +- 0.25, 4000 nets per width."""
    found = measure.gaussianity((4, 8, 16, 32, 64), nets)
    assert -2.6 <= found.mmd2_slope(largest=32).value <= -1.2
    assert found.kurtosis_slope(smallest=8).value == pytest.approx(-1.0, abs=0.25)


def test_rank_on_the_circle():
    """A3: a quadratic activation gives rank 5 (1 + 2 + 2 harmonics) on 40 points of the circle, relu and erf full rank."""
    for function in (lambda x: x**2, lambda x: 1 + x + sp.Rational(1, 3) * x**2):
        assert measure.rank_on_circle(tp.Activation("quadratic", function)) == 5
    assert measure.rank_on_circle(tp.relu) == 40
    assert measure.rank_on_circle(tp.erf) == 40


@pytest.mark.parametrize(
    ("widths", "seeds", "tolerance"), [((100, 400), 100, 0.1), pytest.param((500, 2000), 60, 0.1, marks=slow)], ids=["small", "full"]
)
def test_profile_on_the_circle(widths, seeds, tolerance):
    """A3: the standard deviation over seeds of Theta(x0, x(gamma)) halves where the width is four times larger."""
    spread = measure.circle_profile(widths, seeds).sizes.sd
    assert spread[1] / spread[0] == pytest.approx(0.5, abs=tolerance)
