"""Powers of N, counted statement by statement, against the closed formulas for multilayer perceptrons."""

import random
from fractions import Fraction

import pytest
import sympy as sp

from tp_solver.errors import InputError, ParameterizationError
from tp_solver.limit.orders import monomials
from tp_solver.limit.powers import Part, terms
from tp_solver.limit.regime import Regime, regime
from tp_solver.limit.spec import MatrixLimit, limit_spec
from tp_solver.program.architectures import mlp
from tp_solver.program.parameterization import (
    PRESETS,
    D,
    Parameterization,
    integrable,
    mean_field,
    muP,
    ntk,
    standard,
    standard_1n,
)
from tp_solver.program.tracing import average, bias, entrywise, hidden_matrix, input_matrix, program, readout
from tp_solver.symbols.activation import SHIPPED, Activation, linear, relu, tanh

half = sp.Rational(1, 2)
x, y = sp.symbols("x y", real=True)


def residual(blocks: int = 3):
    weights = [hidden_matrix(f"W{k}") for k in range(1, blocks + 1)]
    first, last, beta = input_matrix("W0"), readout("w"), sp.Symbol("beta")

    def net(v):
        h = first @ v
        for w in weights:
            h = h + beta * (w @ tanh(h))
        return last @ tanh(h)

    return program(net, "residual")


def tied():
    first, middle, last = input_matrix("W0"), hidden_matrix("W1"), readout("w")
    return program(lambda v: last @ tanh(middle @ tanh(middle @ tanh(first @ v))), "tied")


def transposed():
    first, middle, last = input_matrix("W0"), hidden_matrix("W1"), readout("w")
    return program(lambda v: last @ tanh(middle.T @ tanh(middle @ tanh(first @ v))), "transposed")


def formulas(p: Parameterization, depth: int):
    """Regime and r_j by the closed formulas (Yang & Hu 2020, Theorem 3.3), for fields of order one at initialisation."""
    a, b, c = (p.a[0], *[p.a[1]] * (depth - 1), p.a[2]), p.b, (p.c[0], *[p.c[1]] * (depth - 1), p.c[2])
    m = min(a[-1] + b[2], 2 * a[-1] + c[-1])
    r = [c[j] + 2 * a[j] - int(j > 0) + m for j in range(depth)]
    stable = a[-1] + b[2] >= half and min(r) >= 0 and 2 * a[-1] + c[-1] >= 1 and a[-1] + b[2] + min(r) >= 1
    nontrivial = a[-1] + b[2] + min(r) == 1 or 2 * a[-1] + c[-1] == 1
    kind = Regime.UNSTABLE
    if stable:
        kind = Regime.TRIVIAL if not nontrivial else Regime.FEATURE if min(r) == 0 else Regime.KERNEL
    return kind, [*r, 2 * a[-1] + c[-1] - 1]


TABLE = {
    "standard": (standard, Regime.UNSTABLE, None),
    "standard_1n": (standard_1n, Regime.KERNEL, half),
    "ntk": (ntk, Regime.KERNEL, half),
    "muP": (muP, Regime.FEATURE, 0),
    "mean_field": (mean_field, Regime.FEATURE, 0),
    "standard init, muP rates": (Parameterization("tp5", (0, 0, 0), (0, half, 1), (-1, 0, 1)), Regime.FEATURE, 0),
}


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("name", TABLE)
def test_published_parameterizations(name, depth):
    p, kind, r = TABLE[name]
    report = regime(p, mlp(depth, tanh))
    assert report.regime is kind
    expected_kind, exponents = formulas(p, depth)
    assert expected_kind is kind
    assert list(report.exponents.values()) == exponents
    if name == "standard_1n":
        # the input layer is too slow; without a hidden layer nothing else moves the field
        assert report.exponents["W0"] == sp.Rational(3, 2)
        assert report.r == (sp.Rational(3, 2) if depth == 1 else half)
    elif r is not None:
        assert report.r == r
    if name == "standard" and depth > 1:
        assert report.r == -1


@pytest.mark.parametrize("activation", [tanh, relu, linear])
def test_integrable_regimes(activation):
    kinds = [regime(integrable, mlp(depth, activation)).regime for depth in (1, 2, 3, 4)]
    # depth 2: the first update of the one hidden matrix is O(1) even though its Gaussian part vanishes
    assert kinds == [Regime.FEATURE, Regime.FEATURE, Regime.TRIVIAL, Regime.TRIVIAL]


def test_random_exponents_agree_with_the_formulas():
    rng = random.Random(0)
    nets = {depth: mlp(depth, tanh) for depth in (1, 2, 3)}
    seen = dict.fromkeys(Regime, 0)

    def pick(low, high):
        return Fraction(rng.randint(2 * low, 2 * high), 2)

    for _ in range(300):
        depth = rng.choice((1, 2, 3))
        a = [pick(-1, 1) for _ in range(3)]
        # readout and rates drawn around the stable region, or else nearly all would be unstable
        b = (-a[0], Fraction(1, 2) - a[1], pick(0, 2) + Fraction(1, 2) * (rng.random() < 0.8) - a[2])
        c = (pick(-2, 1) - 2 * a[0], pick(-1, 2) - 2 * a[1], pick(0, 2) + Fraction(1, 2) * (rng.random() < 0.8) - 2 * a[2])
        p = Parameterization("random", tuple(a), b, c)
        report = regime(p, nets[depth])
        kind, exponents = formulas(p, depth)
        assert report.regime is kind, p
        assert list(report.exponents.values()) == exponents, p
        assert report.counted.steps <= 4
        seen[kind] += 1
        if kind in (Regime.UNSTABLE, Regime.TRIVIAL) and seen[kind] <= 25:
            assert report.cured is not None, p
            assert regime(report.cured, nets[depth]).regime in (Regime.KERNEL, Regime.FEATURE)
    assert min(seen.values()) >= 10, seen


def test_general_symbols_give_the_published_inequalities():
    a0, a1, a2, b2, c0, c1, c2 = sp.symbols("a0 a1 a2 b2 c0 c1 c2", real=True)
    p = Parameterization("general", (a0, a1, a2), (-a0, half - a1, b2), (c0, c1, c2))
    net = mlp(2, tanh)
    report = regime(p, net)
    assert report.regime is None
    assert report.sets == {}
    m = sp.Min(a2 + b2, 2 * a2 + c2)
    rng = random.Random(1)
    for _ in range(25):
        values = {s: sp.Rational(rng.randint(-4, 4), 2) for s in (a0, a1, a2, b2, c0, c1, c2)}
        kind, _ = formulas(p.bind(values), 2)
        true = [k for k in Regime if report.conditions[k.value].subs(values) == sp.true]
        assert true == [kind]
        if kind is not Regime.UNSTABLE:
            assert report.exponents["W0"].subs(values) == (c0 + 2 * a0 + m).subs(values)


def test_one_symbol_gives_sets():
    q = sp.Symbol("q")
    # from NTK (q = 1/2) to mean field (q = 1), with the readout updated maximally all the way
    report = regime(Parameterization("bridge", (0, half, q), 0, (1 - 2 * q,) * 3), mlp(3, tanh))
    assert report.regime is None
    assert report.sets["kernel"] == sp.Interval.Ropen(half, 1)
    assert report.sets["feature learning"] == sp.FiniteSet(1)
    assert report.sets["stable"] == sp.Interval(half, 1)
    assert report.sets["unstable"] == sp.Union(sp.Interval.open(-sp.oo, half), sp.Interval.open(1, sp.oo))
    assert report.conditions["feature learning"] == sp.Eq(q, 1)
    assert report.conditions["stable"] == sp.And(half <= q, q <= 1)
    assert report.conditions["trivial"] == sp.false
    assert "kernel" in str(report)
    assert report._repr_latex_().startswith("$")
    with pytest.raises(ParameterizationError, match="Eq\\(q, 1\\)"):
        limit_spec(mlp(3, tanh), report.parameterization)


def test_a_symbol_that_does_not_matter_is_decided():
    q = sp.Symbol("q")
    report = regime(muP.shifted(q), mlp(2, tanh))
    assert report.regime is Regime.FEATURE
    assert report.conditions["feature learning"] == sp.true


@pytest.mark.parametrize("name", PRESETS)
def test_theta_shift_changes_nothing(name):
    net = mlp(3, tanh)
    shifted = PRESETS[name].shifted((Fraction(1, 3), Fraction(-1, 2), Fraction(2, 5)))
    a, b = regime(PRESETS[name], net), regime(shifted, net)
    assert (a.regime, a.exponents, a.r) == (b.regime, b.exponents, b.r)
    assert a.field_change_exponents(2) == b.field_change_exponents(2)
    if a.regime is not Regime.UNSTABLE:
        assert limit_spec(net, PRESETS[name]) == limit_spec(net, shifted)


def test_mup_and_mean_field_have_one_limit():
    net = mlp(3, tanh)
    assert limit_spec(net, muP) == limit_spec(net, mean_field)
    assert limit_spec(net, muP) != limit_spec(net, ntk)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (standard_1n, (sp.Rational(-3, 2), -half, -half)),
        (ntk, (-half, -half, -half)),
        (muP, (0, 0, 0)),
        (mean_field, (0, 0, 0)),
        (standard, (-half, half, half)),
        (integrable, (-1, -half, -1)),
    ],
)
def test_changes_of_the_fields(p, expected):
    report = regime(p, mlp(3, tanh))
    assert report.field_change_exponents(1) == expected
    if report.regime is not Regime.UNSTABLE:
        assert report.field_change_exponents(3) == expected


def test_change_of_the_output():
    net = mlp(3, tanh)
    assert [regime(p, net).output_change_exponent(1) for p in (muP, ntk, standard_1n, standard)] == [0, 0, 0, 1]


def test_violations_are_named_and_cured():
    report = regime(standard, mlp(3, tanh))
    text = " ".join(report.violated)
    assert "f = W3 x3" in text
    assert "needs 2 a + c >= 1" in text
    assert report.cure == "change c of the hidden class from 0 to 1 and c of the readout class from 0 to 1"
    assert report.cured.c == (0, 1, 1)
    with pytest.raises(ParameterizationError, match="change c of the hidden class"):
        limit_spec(mlp(3, tanh), standard)


@pytest.mark.parametrize(
    ("p", "depth"),
    [
        (integrable, 3),
        (integrable, 4),
        (Parameterization("exploding fields", 0, (0, 0, half), 1), 3),
        (Parameterization("exploding output", 0, (0, half, 0), 1), 2),
        (Parameterization("all vanish", 2, 0, 0), 2),
    ],
)
def test_cures_of_initialisations(p, depth):
    net = mlp(depth, tanh)
    report = regime(p, net)
    assert report.regime in (Regime.UNSTABLE, Regime.TRIVIAL)
    assert "a + b of the" in report.cure
    assert regime(report.cured, net).regime in (Regime.KERNEL, Regime.FEATURE)


def test_smallest_cure_prefers_one_class():
    slow = Parameterization("slow", (0, half, 1), 0, (2, 2, 0))
    report = regime(slow, mlp(3, tanh))
    assert report.regime is Regime.TRIVIAL
    assert report.cure == "change c of the readout class from 0 to -1"
    fast = regime(Parameterization("fast", (0, half, 1), 0, (-1, Fraction(-7, 2), -1)), mlp(3, tanh))
    assert fast.cure == "change c of the hidden class from -7/2 to -1"


@pytest.mark.parametrize("make", [residual, tied, transposed])
@pytest.mark.parametrize("name", ["muP", "ntk", "standard_1n", "standard"])
def test_other_programs(make, name):
    assert regime(PRESETS[name], make()).regime is TABLE[name][1]
    if name == "muP":
        assert all(m.rate != 0 and m.scale != 0 for m in limit_spec(make(), muP).matrices.values())


def test_biases_and_averages():
    for b, rate in ((True, 1), (0.5, 1)):
        spec = limit_spec(mlp(2, tanh, bias=b), muP)
        assert spec.matrices["b1"] == MatrixLimit(0 if b is True else 0.5, rate)
    first, last, frozen = input_matrix("W0"), readout("w"), bias("b", sigma=1, rate=0)

    def net(v):
        h = first @ v + frozen
        norm = average(lambda u: u**2, h)
        return last @ tanh(entrywise(lambda u, s: u / sp.sqrt(s), h, norm))

    normalised = program(net)
    report = regime(muP, normalised)
    assert report.regime is Regime.FEATURE
    assert report.exponents["b"] == sp.oo
    assert limit_spec(normalised, muP).matrices["b"] == MatrixLimit(1, 0)
    fluctuations = {t.exponent for t in terms(normalised, muP) if t.part is Part.FLUCTUATION}
    assert fluctuations == {-half}


def test_limit_spec_selects():
    net = mlp(3, tanh)
    one = sp.Integer(1)
    assert limit_spec(net, standard_1n).matrices == {
        "W0": MatrixLimit(1 / sp.sqrt(D), 0),
        **{f"W{j}": MatrixLimit(one, one) for j in (1, 2, 3)},
    }
    full = limit_spec(net, ntk)
    assert full.matrices["W0"] == MatrixLimit(1 / sp.sqrt(D), 1 / D)
    assert full.random_output
    assert full.backward_exponent == half
    feature = limit_spec(net, Parameterization("mine", (0, half, 1), 0, (-1, 0, -1), alpha=(1, 2, 3), sigma=(1, 5, 7), eta=(1, 1, 11)))
    assert feature.matrices["W1"] == MatrixLimit(10, 0)  # frozen in the limit: r_1 = 1
    assert feature.matrices["W3"] == MatrixLimit(21, 99)
    assert not feature.random_output
    zero_readout = limit_spec(net, Parameterization("mine", (0, half, 1), (0, 0, half), -1))
    assert zero_readout.matrices["W3"] == MatrixLimit(0, 1)
    frozen_readout = limit_spec(net, Parameterization("mine", (0, half, 1), 0, (-1, -1, -half)))
    assert frozen_readout.matrices["W3"] == MatrixLimit(1, 0)
    slow = limit_spec(net, Parameterization("slow", (0, half, 1), 0, (2, 2, 0)))
    assert slow.regime is Regime.TRIVIAL
    assert all(m.rate == 0 for m in slow.matrices.values())
    with pytest.raises(ParameterizationError, match="vanishes"):
        limit_spec(net, Parameterization("compensated", (0, sp.Rational(2, 3), sp.Rational(2, 3)), 0, -1))


def test_exact_zeros_drop_their_part():
    zero_readout = Parameterization("zero", (0, half, 1), 0, -1, sigma=(1, 1, 0))
    report = regime(zero_readout, mlp(2, tanh))
    assert report.regime is Regime.FEATURE
    # nothing moves the fields before the readout has learned
    assert report.field_change_exponents(1) == (-sp.oo, -sp.oo)
    assert report.field_change_exponents(2) == (0, 0)
    features = Parameterization("random features", (0, half, 1), 0, -1, eta=(0, 0, 1))
    report = regime(features, mlp(2, tanh))
    assert report.regime is Regime.KERNEL
    assert report.r == sp.oo
    dead = regime(Parameterization("dead", (0, half, 1), 0, -1, eta=0), mlp(2, tanh))
    assert dead.regime is Regime.TRIVIAL
    assert dead.cured is None
    assert "frozen" in dead.cure


def test_terms_list_what_survives():
    found = terms(mlp(2, tanh), muP)
    first = [t for t in found if t.time == 0 and not t.backward]
    assert {t.part for t in first} == {Part.GAUSSIAN}
    assert {str(t.statement): t.exponent for t in first} == {"h1 = W0 x": 0, "h2 = W1 x1": 0, "f = W2 x2": -half}
    later = {(t.part, t.source): t.relative for t in found if t.time == 1 and str(t.statement) == "h2 = W1 x1"}
    assert later[Part.GAUSSIAN, ""] == 0
    assert later[Part.RESPONSE, "dx1 = W1.T dh2 at t = 0"] == 0
    assert later[Part.LEARNED, "dh2 x1^T at t = 0"] == 0
    # the backward response is there at equal times, the forward one only from strictly earlier steps
    back = {t.source for t in found if t.backward and t.part is Part.RESPONSE and t.time == 1}
    assert back == {"h2 = W1 x1 at t = 0", "h2 = W1 x1 at t = 1"}
    ahead = {t.source for t in found if not t.backward and t.matrix == "W1" and t.part is Part.RESPONSE}
    assert ahead == {"dx1 = W1.T dh2 at t = 0", "dx1 = W1.T dh2 at t = 1"}
    lazy = terms(mlp(2, tanh), ntk)
    assert {t.relative for t in lazy if t.backward and t.part is Part.GAUSSIAN} == {0}
    assert {t.relative for t in lazy if t.backward and t.matrix == "W1" and t.part is Part.LEARNED} == {-half}
    assert "N^" in str(lazy[0])


def test_orders_of_vanishing():
    for activation in SHIPPED:
        assert monomials(activation.expression, (x,)) == ((1,),)
        assert monomials(activation.derivative, (x,)) == ((0,),) or activation.name == "linear"
    assert monomials(x**2 * y, (x, y)) == ((2, 1),)
    assert monomials(y * (1 - sp.tanh(x) ** 2), (x, y)) == ((0, 1),)
    assert monomials(1 - sp.cos(x), (x,)) == ((2,),)
    assert monomials(sp.exp(x), (x,)) == ((0,),)
    assert monomials(x / sp.sqrt(y), (x, y)) == ((1, -half),)
    assert monomials(sp.tanh(x) + y**2, (x, y)) == ((0, 2), (1, 0))
    shifted = Activation("shifted", lambda v: sp.cosh(v))
    assert regime(muP, mlp(2, shifted)).regime is Regime.FEATURE


@pytest.mark.parametrize("wrong", ["muP", Parameterization, None, 3])
def test_wrong_kinds_are_answered(wrong):
    with pytest.raises(InputError, match="expected"):
        regime(wrong, mlp(1, tanh))
    with pytest.raises(InputError, match="net"):
        regime(muP, wrong)
    with pytest.raises(InputError, match="net"):
        regime(muP, mlp)
    with pytest.raises(InputError, match="step"):
        regime(muP, mlp(1, tanh)).field_change_exponents(0)
