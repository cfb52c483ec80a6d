"""Width scans: the nets they draw, sizes without bias, intervals that cover, what happens on the way."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import tp_solver as tp
from tp_solver.errors import InputError
from tp_solver.finite.empirical import empirical_ntk
from tp_solver.finite.network import draw
from tp_solver.finite.slopes import measured_slope, resampled, sizes, slope
from tp_solver.finite.width_scan import Exponents, width_scan

X = np.random.default_rng(0).standard_normal((3, 2))
NET = tp.mlp(2, tp.tanh, bias=0.2)


def scan(observable, widths=(4, 8), seeds=3, net=NET, parameterization=tp.ntk, dimension=2, **options):
    return width_scan(observable, net, parameterization, dimension, widths, seeds, progress=False, **options)


def top(net):
    return np.linalg.eigvalsh(empirical_ntk(net, X)[:, :, 0, 0])[-1]


def test_values_are_those_of_single_nets():
    """Side by side under vmap or one after another with numpy: the same nets, whatever else is in the scan."""
    traced = scan(lambda net: empirical_ntk(net, X)[:, :, 0, 1], widths=(8, 4), seeds=(5, 2, 9), outputs=2, gamma0=0.5)
    eager = scan(top, seeds=(5, 2, 9))
    assert traced.widths == (4, 8) and traced.seeds == (5, 2, 9) and traced.values.shape == (2, 3, 3, 3)
    for w, width in enumerate(traced.widths):
        for s, seed in enumerate(traced.seeds):
            finite = draw(NET, tp.ntk, 2, width, seed=seed, outputs=2, gamma0=0.5)
            np.testing.assert_allclose(traced.values[w, s], empirical_ntk(finite, X)[:, :, 0, 1], atol=1e-13)
            assert eager.values[w, s] == pytest.approx(top(draw(NET, tp.ntk, 2, width, seed=seed)), rel=1e-12)
    np.testing.assert_allclose(traced.mean, traced.values.mean(axis=1))
    np.testing.assert_allclose(traced.sd, traced.values.std(axis=1, ddof=1))


def synthetic(rng, widths=(16, 32, 64, 128), seeds=50):
    """Values with mean 3 / n and standard deviation 2 / sqrt(n) in every one of four entries."""
    n = np.array(widths, float)[:, None, None]
    return 3 / n + 2 / np.sqrt(n) * rng.standard_normal((len(widths), seeds, 4))


def test_sizes_have_no_bias():
    """Over many repeats the squares average to 9 / n^2, 4 / n and their sum: the noise of the mean is taken off."""
    rng = np.random.default_rng(1)
    n = np.array([16.0, 32.0, 64.0, 128.0])
    repeats = [sizes(synthetic(rng)) for _ in range(400)]
    variance, square = (np.mean([getattr(r, name) ** 2 for r in repeats], axis=0) for name in ("sd", "rms"))
    np.testing.assert_allclose(variance, 4 / n, rtol=0.02)
    np.testing.assert_allclose(square, 4 / n + 9 / n**2, rtol=0.02)
    mean = np.mean([r.rms**2 - r.sd**2 for r in repeats], axis=0)
    error = np.std([r.rms**2 - r.sd**2 for r in repeats], axis=0) / 20
    assert np.all(np.abs(mean - 9 / n**2) < 4 * error)
    assert np.all(error < 0.2 * 4 / n / 50), "a tenth of the noise of the mean would have been seen"


def test_resamples_are_centred():
    """Bootstrap samples scatter about the sizes themselves, also where the mean is mostly noise."""
    values = synthetic(np.random.default_rng(2))
    found, samples = sizes(values), resampled(values, 4000)
    for name in ("sd", "rms"):
        np.testing.assert_allclose(np.mean(getattr(samples, name) ** 2, axis=0), getattr(found, name) ** 2, rtol=0.02)
    squares = samples.rms**2 - samples.sd**2
    noise = found.sd**2 / 50
    assert np.all(np.abs(squares.mean(axis=0) - (found.rms**2 - found.sd**2)) < 0.1 * noise)


def test_intervals_cover_the_power():
    """95 % intervals of the power of sd hold the true one in 90 to 98 % of 200 repeats."""
    rng = np.random.default_rng(3)
    widths, held = (16, 32, 64, 128), 0
    for k in range(200):
        values = synthetic(rng, widths, 60)
        found = slope(widths, sizes(values).sd, resampled(values, 300, seed=k).sd, np.zeros(4))
        held += found.low <= -0.5 <= found.high
    assert 180 <= held <= 196


def test_a_mean_below_its_noise_has_no_power():
    class Values:
        """Draws with a mean of zero, by width and seed."""

        def __init__(self):
            self.rng = np.random.default_rng(4)

        def __call__(self, net):
            float(net.w["W0"][0, 0])  # not to be traced
            return self.rng.standard_normal(3) / net.width**0.5

    found = scan(Values(), widths=(4, 16, 64), seeds=100, expected=Exponents(mean=-1, sd=-0.5))
    assert found.slope_mean is None
    assert found.slope_sd.value == pytest.approx(-0.5, abs=0.05)
    text = str(found)
    assert text.startswith("Values, 100 nets per width")
    assert "below noise" in text and "expected" in text and "-0.5" in text.splitlines()[-1]


def test_a_constant_has_a_power_and_no_spread():
    def power(net):
        float(net.w["W0"][0, 0])  # not to be traced
        return net.width**-0.25

    found = scan(power, widths=(4, 8, 16))
    assert found.slope_rms.value == pytest.approx(-0.25, abs=1e-12)
    assert found.slope_mean.value == pytest.approx(-0.25, abs=1e-12)
    assert found.slope_sd is None


RNG = np.random.default_rng(5)


@pytest.mark.parametrize(
    ("observable", "seeds"),
    [(lambda net: RNG.standard_normal(), 20), (lambda net: RNG.standard_normal(3), 2), (lambda net: net.width**-0.25, 3)],
    ids=["random", "random, one net at a time", "constant"],
)
def test_observables_that_do_not_see_the_net(observable, seeds):
    """Randomness of the host is frozen by tracing: one number for all nets must not pass for a mean without scatter."""
    with pytest.raises(InputError, match=r"width 4, whatever its weights.*must come from the net") as caught:
        scan(observable, seeds=seeds)
    assert caught.value.field == "observable"


def test_equal_values_of_different_nets_pass():
    """Signs, ranks and derivatives that vanish may agree among all nets; they are seen to come from the weights, or to be zero."""
    rank = scan(lambda net: jnp.linalg.matrix_rank(net.w["W0"]) * 1.0)
    assert (rank.values == 2).all() and rank.slope_sd is None
    assert (scan(lambda net: 0.0).values == 0).all()


def test_interrupted_scans_keep_what_all_widths_have():
    class Stops:
        """Ctrl-C at the eleventh net."""

        seen = 0

        def __call__(self, net):
            value = float(net.w["W0"][0, 0])
            self.seen += 1
            if self.seen > 10:
                raise KeyboardInterrupt
            return value

    found = scan(Stops(), seeds=20)
    assert found.interrupted and found.seeds == (0, 1, 2, 3) and found.values.shape == (2, 4)
    assert "interrupted" in str(found)
    whole = scan(lambda net: net.w["W0"][0, 0], seeds=20)
    np.testing.assert_array_equal(found.values, whole.values[:, :4])
    stops = Stops()
    stops.seen = 10
    with pytest.raises(KeyboardInterrupt):
        scan(stops, seeds=20)


def test_plot(tmp_path):
    found = scan(lambda net: empirical_ntk(net, X), expected=Exponents(sd=-0.5))
    figure = found.plot(tmp_path / "scan.png")
    assert (tmp_path / "scan.png").stat().st_size > 10_000
    assert any("sd:" in t.get_text() for t in figure.axes[0].get_legend().get_texts())
    for bad in (tmp_path / "scan.gif", tmp_path / "nowhere" / "scan.png", 3):
        with pytest.raises(InputError):
            found.plot(bad)


def test_power_of_given_numbers():
    widths = np.array([4, 8, 16, 32])
    found = measured_slope(widths, 3.0 / widths**2, 0.1 / widths**2)
    assert found.value == pytest.approx(-2.0, abs=1e-12)
    assert found.high - found.low == pytest.approx(2 * 1.96 * (0.1 / 3) / np.sqrt(np.sum((np.log(widths) - np.log(widths).mean()) ** 2)))
    assert str(found).startswith("-2.000 [-2.0")


def one(net):
    return 1.0


BAD = {
    "a number in place of an observable": (lambda: scan(3.0), "observable", "3.0"),
    "one width": (lambda: scan(one, widths=(4,)), "widths", "(4,)"),
    "the same width twice": (lambda: scan(one, widths=(4, 4)), "widths", "(4, 4)"),
    "one seed": (lambda: scan(one, seeds=1), "seeds", "(0,)"),
    "few resamples": (lambda: scan(one, resamples=10), "resamples", "10"),
    "a number in place of exponents": (lambda: scan(one, expected=-0.5), "expected", "-0.5"),
    "no program": (lambda: scan(one, net="mlp"), "net", "mlp"),
    "values at zero": (lambda: measured_slope([4, 8], [1.0, 0.0], [0.1, 0.1]), "values", "0.0"),
    "errors that are missing": (lambda: measured_slope([4, 8], [1.0, 0.5], [0.1]), "widths", "2 widths"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, must_be_answered):
    call, field, value = BAD[name]
    must_be_answered(call, field, value)


@pytest.mark.parametrize(
    ("observable", "message"),
    [(lambda net: net.w["W0"] * np.inf, "not finite"), (lambda net: net.w["W0"], "width 8"), (lambda net: "word", "finite real numbers")],
    ids=["infinite", "shape of the width", "text"],
)
def test_observables_that_answer_wrongly(observable, message):
    with pytest.raises(InputError, match=message) as caught:
        scan(observable)
    assert caught.value.field == "observable"
