"""Phases of deep layers: fixed points against plain iteration, the edge of chaos against its definition, and what has no answer."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad

import tp_solver as tp
from tp_solver.errors import InputError, ProgramError
from tp_solver.kernel_regime.critical_line import phase_equations
from tp_solver.kernel_regime.one_point import Q, curves, formula, hermite_squares
from tp_solver.kernel_regime.phases import Phase, depth_scale, fixed_point
from tp_solver.kernel_regime.variance_map import Fate
from tp_solver.numerics.duals import dual
from tp_solver.symbols.activation import X

elu = tp.Activation("elu", lambda x: sp.Piecewise((x, x > 0), (sp.exp(x) - 1, True)))
cube = tp.Activation("cube", lambda x: x**3)
hard = tp.Activation("hard", lambda x: sp.Max(sp.Min(x, 1), -1))


def integral(g, q):
    """E g(sqrt(q) z) by an independent integrator, told of the kinks at -1, 0 and 1."""
    f = sp.lambdify(X, g, "scipy")
    places = sorted(k / np.sqrt(q) for k in (-1, 0, 1))
    value, _ = quad(lambda z: f(np.sqrt(q) * z) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), -12, 12, points=places, epsabs=1e-13, limit=400)
    return value


# means of one Gaussian -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [tp.erf, tp.relu, tp.gelu, tp.sin, cube], ids=lambda a: a.name)
def test_means_agree_with_their_formulas(activation):
    """Ten orders of magnitude of variances against the closed forms, to rounding."""
    f, q = activation.expression, np.geomspace(1e-8, 1e2, 25)
    second, backward = (sp.lambdify(Q, formula(g), "scipy") for g in (f, sp.diff(f, X)))
    got = curves(f, q)
    # the formula of sin cancels at small q
    assert got[0] == pytest.approx(second(q) + 0 * q, rel=1e-13, abs=1e-15)
    assert got[1] == pytest.approx(backward(q) + 0 * q, rel=1e-12)
    slope = sp.lambdify(Q, sp.diff(formula(f), Q), "scipy")
    assert got[2] == pytest.approx(slope(q) + 0 * q, rel=1e-11)


@pytest.mark.parametrize("activation", [tp.tanh, elu, hard], ids=lambda a: a.name)
def test_means_agree_with_another_integrator(activation):
    f = activation.expression
    g = sp.diff(f, X)
    for q in (0.07, 0.9, 6.0):
        second, backward, slope, linear = curves(f, np.array([q]))[:, 0]
        assert second == pytest.approx(integral(f**2, q), rel=1e-11)
        assert backward == pytest.approx(integral(g**2, q), rel=1e-11)
        assert slope == pytest.approx(integral(X * f * g, q) / q, rel=1e-11)
        assert linear == pytest.approx(integral(X * f, q) / np.sqrt(q), rel=1e-11)


def test_hermite_series_is_the_dual():
    """sum a_k^2 c^k = E f(u) f(v), an independent code."""
    q, c = np.array([0.3, 2.0]), np.array([0.2, 0.9])
    for f in (tp.erf.expression, tp.relu.expression):
        series = hermite_squares(f, q)
        assert np.sum(series * c ** np.arange(len(series))[:, None], axis=0) == pytest.approx(dual(f, f, q, q, c * q), rel=1e-10)


# acceptance of card A1 -----------------------------------------------------------------------------------------------


def test_table_of_the_edge():
    assert abs(fixed_point(tp.relu, sp.sqrt(2)).chi_1 - 1) < 1e-12
    assert abs(fixed_point(tp.relu, np.sqrt(2)).chi_1 - 1) < 1e-12
    assert abs(fixed_point(tp.tanh, 1.302, 0.2).chi_1 - 1) < 0.005
    assert abs(fixed_point(elu, 1.227, 0.2).chi_1 - 1) < 0.005


# fixed points --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "weight", "bias"),
    [(tp.erf, 0.9, 0.4), (tp.erf, 2.0, 0.3), (tp.sin, 3.0, 0.1), (tp.gelu, 1.3, 0.2), (tp.relu, 1.2, 0.5)],
    ids=lambda v: getattr(v, "name", None),
)
def test_fixed_points_are_where_iteration_ends(activation, weight, bias):
    """Variance, correlation and both slopes against three hundred layers of the two-point recursion, from another start."""
    f = activation.expression
    g = sp.diff(f, X)
    q, c = np.array(2.3), np.array(0.35)
    for _ in range(300):
        new = weight**2 * dual(f, f, q, q, q) + bias**2
        c = (weight**2 * dual(f, f, q, q, c * q) + bias**2) / new
        q = new
    found = fixed_point(activation, weight, bias)
    assert found.fate is Fate.SETTLES
    assert found.q == pytest.approx(float(q), rel=1e-11)
    assert found.c == pytest.approx(float(c), abs=1e-9)
    assert found.chi_1 == pytest.approx(float(weight**2 * dual(g, g, q, q, q)), rel=1e-11)
    assert found.chi_c == pytest.approx(float(weight**2 * dual(g, g, q, q, c * q)), rel=1e-8)
    h = 1e-5 * q
    ahead, behind = (weight**2 * dual(f, f, v, v, v) for v in (q + h, q - h))
    assert found.chi_q == pytest.approx(float((ahead - behind) / (2 * h)), rel=1e-7)
    assert found.phase is (Phase.CHAOTIC if found.chi_1 > 1 else Phase.ORDERED)
    assert found.xi_c == pytest.approx(1 / abs(np.log(found.chi_c)))


def test_exact_results():
    half = fixed_point(tp.relu, 1, sp.Rational(1, 2))
    assert (half.exact_q, half.exact_chi_1) == (sp.Rational(1, 2), sp.Rational(1, 2))
    assert fixed_point(tp.leaky_relu, 1, 1).exact_q == sp.Rational(20000, 9999)
    bent = fixed_point(tp.Activation("bent", lambda x: x + x**2 / 4), sp.Rational(1, 2), sp.Rational(1, 2))
    assert bent.exact_q is not None and float(bent.exact_q) == pytest.approx(bent.q, rel=1e-12)
    assert float(bent.exact_chi_1) == pytest.approx(bent.chi_1, rel=1e-12)
    assert fixed_point(tp.tanh, sp.Rational(1, 2)).exact_chi_1 == sp.Rational(1, 4)
    assert fixed_point(tp.relu, 2).exact_chi_1 == 2
    # numbers that came as floats are not dressed up as exact
    assert fixed_point(tp.relu, 0.9, 0.5).exact_q is None


def test_every_fate():
    stays = fixed_point(tp.relu, sp.sqrt(2), start=3.0)
    assert (stays.fate, stays.q, stays.c, stays.phase) == (Fate.STAYS, 3.0, 1.0, Phase.EDGE)
    linear = fixed_point(tp.linear, 1)
    assert linear.fate is Fate.STAYS and linear.c is None
    grows = fixed_point(tp.relu, 2, 0.3)
    assert (grows.fate, grows.q, grows.xi_q) == (Fate.DIVERGES, np.inf, None) and grows.chi_1 == pytest.approx(2.0, rel=1e-12)
    dies = fixed_point(tp.tanh, 0.9)
    assert (dies.q, dies.c) == (0.0, None) and dies.chi_1 == pytest.approx(0.81, rel=1e-12)
    # cubes: a small variance dies, a large one explodes, and the correlations of both are lost
    small, large = (fixed_point(cube, 0.1, start=s) for s in (1.0, 10.0))
    assert (small.q, small.c, small.phase) == (0.0, 0.0, Phase.ORDERED)
    assert (large.q, large.c, large.chi_1) == (np.inf, 0.0, np.inf)
    assert [slope > 1 for _, slope in large.others] == [False, True]


def test_too_many_oscillations():
    """sin at sw = 60 would have q* = 1800, sixty periods within one standard deviation: refused, not guessed."""
    with pytest.raises(ProgramError, match="oscillates"):
        fixed_point(tp.sin, 60)
    assert fixed_point(tp.sin, 15).q == pytest.approx(112.5, rel=1e-9)


def test_several_fixed_points():
    """GELU at sw = 1.5: zero is stable, and what is above the unstable fixed point diverges."""
    low, high = (fixed_point(tp.gelu, 1.5, start=s) for s in (1.0, 2.0))
    ((barrier, slope),) = low.others
    assert low.q == 0 and high.fate is Fate.DIVERGES
    assert 1.0 < barrier < 2.0 and slope > 1
    second = 1.5**2 * dual(tp.gelu.expression, tp.gelu.expression, barrier, barrier, barrier)
    assert float(second) == pytest.approx(barrier, rel=1e-11)
    assert "unstable" in str(low)


def test_tiny_biases_still_count():
    assert fixed_point(tp.tanh, 0.5, 1e-6).q == pytest.approx(1e-12 / 0.75, rel=1e-9)


def test_depth_scales():
    assert depth_scale(1.0) == np.inf and depth_scale(0.0) == 0.0
    assert depth_scale(np.exp(-0.1)) == pytest.approx(10.0) and depth_scale(np.exp(0.1)) == pytest.approx(10.0)


# the edge of chaos ---------------------------------------------------------------------------------------------------


def test_edge_in_symbols():
    relu, erf, sin = (tp.edge_of_chaos(a) for a in (tp.relu, tp.erf, tp.sin))
    assert relu.exact_weight_scale == sp.sqrt(2) and relu.q is None
    assert erf.exact_weight_scale == sp.sqrt(sp.pi) / 2 and erf.exact_q == 0
    assert sin.exact_weight_scale == 1
    found = phase_equations(tp.erf)
    assert sp.simplify(found.weight_squared - sp.pi * sp.sqrt(1 + 4 * Q) / 4) == 0
    assert phase_equations(tp.relu).bias_squared == 0
    assert phase_equations(tp.tanh) is None


@pytest.mark.parametrize(("activation", "bias"), [(tp.erf, 0.3), (tp.tanh, 0.2), (elu, 0.2), (tp.gelu, 0.5), (hard, 0.3)], ids=str)
def test_edge_is_critical_and_stable(activation, bias):
    edge = tp.edge_of_chaos(activation, bias)
    found = fixed_point(activation, edge.weight_scale, bias, start=edge.q)
    assert abs(found.chi_1 - 1) < 1e-11
    assert found.q == pytest.approx(edge.q, rel=1e-9)
    assert found.phase is Phase.EDGE and found.xi_c == np.inf
    assert edge.chi_q == pytest.approx(found.chi_q, rel=1e-9) and edge.chi_q < 1
    for factor, phase in ((0.999, Phase.ORDERED), (1.001, Phase.CHAOTIC)):
        near = fixed_point(activation, factor * edge.weight_scale, bias, start=edge.q)
        assert near.phase is phase


def test_edges_of_the_table():
    assert tp.edge_of_chaos(tp.tanh, 0.2).weight_scale == pytest.approx(1.302, abs=0.003)
    assert tp.edge_of_chaos(elu, 0.2).weight_scale == pytest.approx(1.227, abs=0.003)
    assert "1.304" in str(tp.edge_of_chaos(tp.tanh, 0.2))


def test_no_edge_is_an_answer():
    with pytest.raises(InputError, match="edge of chaos") as relu:
        tp.edge_of_chaos(tp.relu, 0.2)
    assert "no finite variance" in relu.value.hint
    with pytest.raises(InputError) as gelu:
        tp.edge_of_chaos(tp.gelu, 0.2)
    assert "s_w = 1.547" in gelu.value.hint and "unstable" in gelu.value.hint


# diagrams ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diagram():
    return tp.phase_diagram(tp.erf, np.linspace(0.6, 2.4, 10), [0.0, 0.2, 0.7])


def test_diagrams_hold_fixed_points(diagram):
    rng = np.random.default_rng(0)
    for k in rng.choice(len(diagram.rows), 6, replace=False):
        row = diagram.rows[k]
        one = fixed_point(tp.erf, row.weight_scale, row.bias_scale)
        assert (row.phase, row.fate) == (one.phase, one.fate)
        assert row.q == pytest.approx(one.q, rel=1e-10) and row.xi_c == pytest.approx(one.xi_c, rel=1e-8)
        assert row.c == pytest.approx(one.c, abs=1e-10) if one.c is not None else row.c is None
    assert diagram.phases.shape == diagram.xi_c.shape == diagram.q.shape == (3, 10)


def test_diagrams_hold_the_edge(diagram):
    for k, bias in enumerate(diagram.bias_scales):
        critical = diagram.critical_weight_scale(bias)
        assert critical == pytest.approx(tp.edge_of_chaos(tp.erf, bias).weight_scale, rel=1e-3)
        ordered = np.array([p is Phase.ORDERED for p in diagram.phases[k]])
        assert np.array_equal(ordered, diagram.weight_scales < critical)
    assert diagram.critical_weight_scale(1e3) is None


def test_diagrams_print_and_plot(diagram, tmp_path):
    text = str(diagram)
    assert "ooxxxxxxxx" in text and "chaotic" in text and len(text.splitlines()) == 2 + 3 + 1 + 1 + 30
    figure = diagram.plot(tmp_path / "erf.png")
    assert (tmp_path / "erf.png").stat().st_size > 10_000
    assert len(figure.axes) == 3
    # hatched, and no curve of the edge but a point
    tp.phase_diagram(tp.relu, [1.0, 1.3, 1.5, 2.0], [0.0, 0.5]).plot(tmp_path / "relu.svg")


# bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "field", "got"),
    [
        (lambda: tp.fixed_point("tanh", 1.0), "activation", "tanh"),
        (lambda: tp.fixed_point(tp.tanh, 0), "weight_scale", "0"),
        (lambda: tp.fixed_point(tp.tanh, np.nan), "weight_scale", "nan"),
        (lambda: tp.fixed_point(tp.tanh, sp.Symbol("s")), "weight_scale", "s"),
        (lambda: tp.fixed_point(tp.tanh, 1, -0.1), "bias_scale", "-0.1"),
        (lambda: tp.fixed_point(tp.tanh, 1, 0, start=0.0), "start", "0.0"),
        (lambda: tp.edge_of_chaos(tp.tanh, np.inf), "bias_scale", "inf"),
        (lambda: tp.edge_of_chaos(np.tanh), "activation", "tanh"),
        (lambda: tp.phase_diagram(tp.tanh, [1.0, 0.5]), "weight_scales", "[1.0, 0.5]"),
        (lambda: tp.phase_diagram(tp.tanh, [0.0, 0.5]), "weight_scales", "[0.0, 0.5]"),
        (lambda: tp.phase_diagram(tp.tanh, [1.0], [[0.0]]), "bias_scales", "shape (1, 1)"),
        (lambda: tp.phase_diagram(tp.tanh, [1.0], [np.nan]), "bias_scales", "non-finite"),
    ],
)
def test_bad_input(call, field, got, must_be_answered):
    must_be_answered(call, field, got)


def test_bad_plots(diagram, tmp_path):
    with pytest.raises(InputError, match="existing folder"):
        diagram.plot(tmp_path / "nowhere" / "a.png")
    with pytest.raises(InputError, match="path"):
        diagram.plot(tmp_path / "a.gif")
    with pytest.raises(InputError, match="at least two"):
        tp.phase_diagram(tp.erf, [1.0], [0.1]).plot()
