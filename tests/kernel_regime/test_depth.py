"""Card A5: phases, rates at large depth, and the repeated layer against kernels of the deep program."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

import tp_solver as tp
from tp_solver.kernel_regime.depth_rates import Law

elu = tp.Activation("elu", lambda x: sp.Piecewise((x, x > 0), (sp.exp(x) - 1, True)))
X = np.random.default_rng(0).standard_normal((3, 5))
X *= 5**0.5 / np.linalg.norm(X, axis=1, keepdims=True)


@pytest.mark.parametrize(("activation", "bias", "scale"), [(tp.relu, 0.0, 2**0.5), (tp.erf, 0.3, 1.3)])
def test_the_repeated_layer_is_that_of_the_deep_program(activation, bias, scale):
    deep = tp.mlp(6, activation, bias=bias or False, bias_rate=bias**2 if bias else 1)
    wanted = tp.kernels(deep, tp.ntk.times(scale), X).ntk
    shallow = tp.mlp(2, activation, bias=bias or False, bias_rate=bias**2 if bias else 1)
    found = tp.depth_analysis(shallow, tp.ntk.times(scale), X, (3, 6))
    size = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    np.testing.assert_allclose(found.ratio[1], wanted / size, atol=1e-10)


def test_relu_on_the_edge():
    """The ratio at L = 10^4, and L (ratio - 1/4) growing as 3/8 log L: not the 1/L of the published bound."""
    depths = np.array([999, 9999, 99999])
    found = tp.depth_analysis(tp.mlp(2, tp.relu), tp.ntk.times(2**0.5), X, tuple(depths))
    ratio = found.ratio[:, [0, 0, 1], [1, 2, 2]].mean(axis=1)
    assert abs(ratio[1] - 0.2504) < 2e-4
    slopes = np.diff((depths + 1) * (ratio - 0.25)) / np.diff(np.log(depths + 1))
    np.testing.assert_allclose(slopes, 0.375, atol=0.02)
    assert abs(found.rate.limit - 0.25) < 1e-6 and abs(found.rate.rate - 0.375) < 1e-3


def test_erf_on_the_edge():
    edge = tp.edge_of_chaos(tp.erf, 0.2)
    assert abs(tp.fixed_point(tp.erf, edge.weight_scale, 0.2).chi_1 - 1) < 1e-8
    net = tp.mlp(2, tp.erf, bias=0.2, bias_rate=0.04)
    found = tp.depth_analysis(net, tp.ntk.times(edge.weight_scale), X, (3, 9999))
    assert 0.331 < found.ratio[1, 0, 1] < 0.3333
    # the average kernel tends to q* and a third of it
    np.testing.assert_allclose(found.average_ntk[1] / edge.q, np.where(np.eye(3), 1, 1 / 3), rtol=4e-3)


def test_average_relu_kernels_on_the_edge():
    """Card A5: A^L = Theta^L / L of inputs of any length tends to lam s_w^2 |x| |x'| / D, lam = 1 of an input with itself, else 1/4."""
    lengths = np.array([0.5, 1.0, 2.0])
    found = tp.depth_analysis(tp.mlp(2, tp.relu), tp.ntk.times(2**0.5), lengths[:, None] * X, (9999, 99999))
    lam = found.average_ntk / (2 * np.outer(lengths, lengths))
    others = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(lam[:, ~others], 1, rtol=1e-10)
    assert np.all(np.abs(lam[:, others] - 0.25).max(axis=1) < (1e-3, 1e-4))


def test_the_table_of_the_edge():
    assert abs(tp.fixed_point(tp.relu, sp.sqrt(2)).chi_1 - 1) < 1e-12
    for activation, weight in ((tp.tanh, 1.302), (elu, 1.227)):
        assert abs(tp.fixed_point(activation, weight, 0.2).chi_1 - 1) < 0.005
    assert tp.fixed_point(tp.tanh, 1.0, 0.3).phase is tp.Phase.ORDERED
    assert tp.fixed_point(tp.tanh, 2.0, 0.3).phase is tp.Phase.CHAOTIC
    assert tp.edge_of_chaos(tp.relu).exact_weight_scale == sp.sqrt(2)


def test_ordered_kernels_collapse():
    """log (diagonal - other entry) / L falls with log chi_1, within 3 %."""
    net, scale = tp.mlp(2, tp.erf, bias=0.3, bias_rate=0.09), 0.9
    found = tp.depth_analysis(net, tp.ntk.times(scale), X, (3, 30))
    chi = tp.fixed_point(tp.erf, scale, 0.3).chi_1
    assert found.rate.rate == pytest.approx(np.log(chi), rel=0.03)


def test_residual_streams_reach_a_quarter():
    """Card A5: within 0.002 of 1/4 at L = 10^4 whatever s_w, at the rate log(L) / L of ReLU without a skip connection."""
    W0, W1, W2, w = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.hidden_matrix("W2"), tp.readout("w")

    def stream(x):
        y = W0 @ x
        for W in (W1, W2):
            y = y + W @ tp.relu(y)
        return w @ tp.relu(y)

    for scale in (0.5**0.5, 2**0.5, 8**0.5):
        found = tp.depth_analysis(tp.program(stream), tp.ntk.times((1, scale, 1)), X, (3, 9999))
        assert abs(found.ratio[1, 0, 1] - 0.25) < 2e-3
        assert found.rate.law is Law.LOGARITHM and found.rate.rate == pytest.approx(0.375, rel=0.02)


def test_bad_input():
    for field, call in (
        ("X", lambda: tp.depth_analysis(tp.mlp(2, tp.relu), tp.ntk, X[:1])),
        ("activation", lambda: tp.fixed_point("relu", 1.0)),
        ("weight_scale", lambda: tp.fixed_point(tp.relu, -1.0)),
        ("bias_scale", lambda: tp.edge_of_chaos(tp.relu, float("nan"))),
    ):
        with pytest.raises(tp.InputError) as error:
            call()
        assert error.value.field == field and error.value.hint


CHAOTIC = tp.mlp(2, tp.erf, bias=0.3, bias_rate=0.09)


def test_chaotic_diagonals_explode_and_the_rest_settles():
    """The diagonal grows as chi_1^L; other entries end at q* c* / (1 - chi_c), less the bias that the readout does not have."""
    found = tp.depth_analysis(CHAOTIC, tp.ntk.times(2.0), X, (29, 200, 201))
    at = found.fixed_point
    assert at.phase is tp.Phase.CHAOTIC and found.rate.law is Law.EXPLOSION
    assert found.rate.predicted_rate == pytest.approx(np.log(at.chi_1), rel=1e-12) == pytest.approx(0.4056, abs=5e-5)
    assert found.rate.rate == pytest.approx(found.rate.predicted_rate, rel=1e-3)
    np.testing.assert_allclose(found.log_ntk[2] - found.log_ntk[1], np.log(at.chi_1), rtol=1e-9)
    others = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(found.ntk[2][others], found.ntk[1][others], rtol=1e-9)
    np.testing.assert_allclose(found.ntk[2][others], at.q * at.c / (1 - at.chi_c) - 0.09, rtol=1e-8)
    assert np.all(found.ratio[2][others] < 1e-15)


def test_chaotic_kernels_are_those_of_the_deep_program():
    found = tp.depth_analysis(CHAOTIC, tp.ntk.times(2.0), X, (29,))
    wanted = tp.kernels(tp.mlp(29, tp.erf, bias=0.3, bias_rate=0.09), tp.ntk.times(2.0), X)
    np.testing.assert_allclose(found.ntk[0], wanted.ntk, rtol=1e-11)
    np.testing.assert_allclose(found.nngp[0], wanted.nngp, rtol=1e-11)


@pytest.mark.parametrize(
    ("activation", "law", "rate"),
    [pytest.param(tp.erf, Law.LOGARITHM, -1.06654, id="erf"), pytest.param(elu, Law.ROOT, -0.40342, id="elu", marks=pytest.mark.slow)],
)
def test_smooth_rates_on_the_edge(activation, law, rate):
    """KD.11: log L / L for a smooth activation, L^(-1/2) where its second derivative jumps; measured beside predicted."""
    edge = tp.edge_of_chaos(activation, 0.2)
    net = tp.mlp(2, activation, bias=0.2, bias_rate=0.04)
    found = tp.depth_analysis(net, tp.ntk.times(edge.weight_scale), X, (3,)).rate
    assert found.law is law
    assert found.predicted_limit == 1 / 3 and found.limit == pytest.approx(1 / 3, abs=1e-6)
    assert found.predicted_rate == pytest.approx(rate, abs=1e-5)
    assert found.rate == pytest.approx(found.predicted_rate, rel=5e-4)
