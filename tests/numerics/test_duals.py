"""Gaussian expectations against scipy's adaptive quadrature, which shares no code with them."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad
from scipy.special import erf

from tp_solver.elementwise import lower
from tp_solver.errors import InputError, ProgramError
from tp_solver.numerics.closed_forms import PAIRS, QP, C, NoClosedForm, Q, closed_form
from tp_solver.numerics.duals import RULES, dual
from tp_solver.numerics.mehler import NotConverged, mehler
from tp_solver.numerics.pointwise import concrete, kinks
from tp_solver.numerics.split_quadrature import split_quadrature
from tp_solver.symbols.activation import SHIPPED, X, gelu, relu, tanh

CASES = [(0.7, 1.3, 0.4), (1.6, 0.5, -0.8)]
TABLE = [a.expression for a in SHIPPED if a is not tanh] + [a.derivative for a in SHIPPED if a is not tanh]
HARD_TANH = sp.Max(-1, sp.Min(X, 1))
ELU = sp.Piecewise((X, X > 0), (sp.exp(X) - 1, True))


def reference(f: sp.Expr, g: sp.Expr, q: float, qp: float, c: float) -> float:
    """Nested adaptive quadrature of the whitened pair, split at the kinks that the caller's functions have at 0, -1 and 1."""
    fn, gn = (sp.lambdify(X, e, modules=[{"Heaviside": lambda x, *_: float(x > 0), "erf": erf}, "numpy"]) for e in (f, g))
    slope, rest = c / q, np.sqrt(qp - c * c / q)

    def pieces(h, places):
        edges = [-8.5, *sorted(p for p in places if -8.5 < p < 8.5), 8.5]
        return sum(quad(h, a, b, epsabs=1e-12, epsrel=1e-11)[0] for a, b in pairwise(edges))

    def density(z):
        return np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

    def outer(z):
        a = np.sqrt(q) * z
        mean = slope * a
        return density(z) * fn(a) * pieces(lambda w: density(w) * gn(mean + rest * w), [(k - mean) / rest for k in (-1, 0, 1)])

    return pieces(outer, [k / np.sqrt(q) for k in (-1, 0, 1)])


def entry(rule, f, g, q, qp, c):
    found = rule(f, g, 2.0 ** np.ceil(np.log2(np.max([q, qp]))))
    return concrete(found, *np.broadcast_arrays(q, qp, c)) if found else None


def tabled(f, g, q, qp, c):
    return concrete(lower(closed_form(f, g), (Q, QP, C)), np.array(q), np.array(qp), np.array(c))


REPRESENTATIVES: dict[type, sp.Expr] = {
    type(sp.S.One): sp.S.One, sp.Abs: sp.Abs(X), sp.sign: sp.sign(X), sp.erf: sp.erf(-1.5 * X),
    sp.sin: sp.sin(2 * X), sp.cos: sp.cos(X / 2), sp.exp: sp.exp(X / 3),
}  # fmt: skip


@pytest.mark.parametrize("kinds", [k for k in PAIRS if sp.DiracDelta not in k], ids=lambda p: f"{p[0].__name__}-{p[1].__name__}")
def test_every_entry_of_the_table(kinds):
    f, g = (REPRESENTATIVES[k] for k in kinds)
    g = g.subs(X, sp.Rational(5, 4) * X)
    for case in CASES:
        assert tabled(f, g, *case) == pytest.approx(reference(f, g, *case), abs=1e-10)


@pytest.mark.parametrize("f", [e for e in TABLE if not e.is_number], ids=str)
def test_shipped_activations_have_closed_forms(f):
    for case in CASES:
        assert tabled(f, f, *case) == pytest.approx(reference(f, f, *case), abs=1e-10)


@pytest.mark.parametrize(
    ("f", "g"),
    [
        (X**3 - 2 * X, X**2 * sp.exp(-(X**2))),  # powers and decays by Stein and tilting
        (X**2 * sp.erf(X), X * sp.erf(2 * X)),
        (X * sp.sin(X), X**2 * sp.exp(X / 2)),
        (gelu.expression, gelu.derivative),
        (relu.expression, relu.derivative),
    ],
    ids=str,
)
def test_rewrite_rules(f, g):
    for case in CASES:
        try:
            value = tabled(f, g, *case)
        except NoClosedForm:
            value = float(dual(f, g, *case))
        assert value == pytest.approx(reference(f, g, *case), abs=1e-10)


def test_polynomials_are_isserlis():
    """core identities: E[a^2 b^2] = q q' + 2 c^2 and E[a^3 b^3] = 9 q q' c + 6 c^3, to rounding."""
    q, qp, c = 0.7, 1.3, -0.6
    assert dual(X**2, X**2, q, qp, c) == pytest.approx(q * qp + 2 * c**2, rel=1e-14)
    assert dual(X**3, X**3, q, qp, c) == pytest.approx(9 * q * qp * c + 6 * c**3, rel=1e-14)


@pytest.mark.parametrize(("f", "g"), [(X, tanh.expression), (X**3 + 1, HARD_TANH), (sp.sign(X), X), (X**2, sp.log(1 + X**2))], ids=str)
def test_polynomial_times_anything(f, g):
    for case in CASES:
        assert dual(f, g, *case) == pytest.approx(reference(f, g, *case), abs=1e-10)


SMOOTH = [tanh.expression, tanh.derivative, X / (1 + sp.exp(-X)), sp.log(1 + sp.exp(X)), sp.sin(X) ** 2 + X, gelu.expression]


@pytest.mark.parametrize(("f", "g"), [(f, f) for f in SMOOTH] + [(SMOOTH[0], SMOOTH[2]), (SMOOTH[1], SMOOTH[3])], ids=str)
def test_mehler_against_quadrature(f, g):
    for case in CASES:
        assert entry(mehler, f, g, *case) == pytest.approx(reference(f, g, *case), abs=1e-10)


def test_mehler_with_unequal_lengths():
    """A short and a long series: both tails must be small, or the product's is not."""
    case = (2.5, 0.7, 0.9)
    assert float(dual(sp.tanh(X), sp.erf(3 * X), *case)) == pytest.approx(reference(sp.tanh(X), sp.erf(3 * X), *case), abs=1e-10)


@pytest.mark.parametrize("q", [1e-3, 1.0, 10.0, 60.0])
def test_mehler_at_large_variance(q):
    """Thousands of terms, against the arcsine law of erf; 1e-12 is a hundred times the tail that is allowed."""
    c = q * np.array([1.0, 0.99, 0.3, -0.7])
    exact = 2 / np.pi * np.arcsin(2 * c / (1 + 2 * q))
    assert entry(mehler, sp.erf(X), sp.erf(X), q, q, c) == pytest.approx(exact, abs=1e-12)


def test_mehler_says_when_it_cannot():
    with pytest.raises(NotConverged):
        mehler(sp.tanh(X), sp.tanh(X), 1e4)


SLOW = pytest.mark.slow
"""Seconds to compile: as many lines as the continuous integration has time for."""


@pytest.mark.parametrize(
    ("f", "g"),
    [
        pytest.param(HARD_TANH, tanh.expression, marks=SLOW),
        (sp.tanh(X - 1) * sp.Heaviside(X), sp.erf(X) * sp.Abs(X + 1)),  # no closed form inside either
        pytest.param(HARD_TANH, HARD_TANH, marks=SLOW),
        pytest.param(ELU, ELU, marks=SLOW),
        pytest.param(sp.Max(X, 0) ** 2, ELU, marks=SLOW),
    ],
    ids=str,
)
def test_split_quadrature(f, g):
    for case in CASES:
        assert entry(RULES[-1], f, g, *case) == pytest.approx(reference(f, g, *case), abs=1e-9)


def test_split_quadrature_at_full_and_nearly_full_correlation():
    """Exact values: E relu(a)^4 = 3 q^2 / 2 on the diagonal, and the arc-cosine kernel next to it."""
    square = sp.Max(X, 0) ** 2
    assert dual(square, square, 0.8, 0.8, 0.8) == pytest.approx(1.5 * 0.64, rel=1e-10)
    rho = np.array([1 - 1e-6, 1 - 1e-3, -1 + 1e-3])
    theta = np.arccos(rho)
    second = (3 * np.sin(theta) * np.cos(theta) + (np.pi - theta) * (1 + 2 * np.cos(theta) ** 2)) / (2 * np.pi)  # Cho & Saul, n = 2
    assert dual(square, square, 1.0, 1.0, rho) == pytest.approx(second, abs=1e-10)


@pytest.mark.slow
def test_split_quadrature_at_very_large_variance():
    """Against the arcsine law: erf is nearly a step on the scale of the Gaussian."""
    q, qp, rho = (
        np.array([1e4, 1e4, 3e3, 1e4, 10.0, 0.1]),
        np.array([1e4, 1e4, 1e4, 2.0, 10.0, 0.1]),
        np.array([1, 0.9999, 0.5, -0.9, 0.3, -0.5]),
    )
    c = rho * np.sqrt(q * qp)
    f = sp.erf(X)
    assert concrete(split_quadrature(f, f, 1e4), q, qp, c) == pytest.approx(dual(f, f, q, qp, c), rel=1e-12)
    assert np.all(np.isfinite(dual(sp.tanh(X), sp.tanh(X), q, qp, c)))


def test_kinks_are_found():
    assert kinks(HARD_TANH) == (-1.0, 1.0)
    assert kinks(sp.Abs(X**2 - 4)) == (-2.0, 2.0)
    assert kinks(ELU) == (0.0,)
    assert kinks(tanh.expression) == ()


@pytest.mark.parametrize("activation", SHIPPED, ids=lambda a: a.name)
def test_diagonal_is_the_second_moment(activation):
    """Fully correlated entries, with a covariance wrong in the last bits, are one-dimensional second moments."""
    q = np.array([0.3, 1.7])
    f = activation.expression
    fn = sp.lambdify(X, f, modules=[{"erf": erf}, "numpy"])
    exact = [
        sum(quad(lambda z, v=v: fn(np.sqrt(v) * z) ** 2 * np.exp(-z * z / 2), a, b, epsabs=1e-13)[0] for a, b in ((-9, 0), (0, 9)))
        / np.sqrt(2 * np.pi)
        for v in q
    ]
    assert dual(f, f, q, q, q * (1 - 2e-16)) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize(
    "f", [*(a.expression for a in SHIPPED), *(a.derivative for a in SHIPPED), HARD_TANH, pytest.param(ELU, marks=SLOW)], ids=str
)
def test_zero_variance(f):
    """A point at zero: b = 0 surely, so the mean factorises."""
    at_zero = float(f.subs(X, 0))
    alone = dual(f, sp.S.One, 0.9, 1.0, 0.0)
    assert dual(f, f, np.array([0.9, 0.0]), np.zeros(2), np.zeros(2)) == pytest.approx(np.array([alone, at_zero]) * at_zero, abs=1e-11)


def test_matrices_are_symmetric_and_positive():
    x = np.random.default_rng(0).standard_normal((12, 4))
    kernel = x @ x.T / 4
    q = kernel.diagonal()
    for f in (tanh.derivative, relu.derivative):
        value = dual(f, f, q[:, None], q[None, :], kernel)
        assert value == pytest.approx(value.T, abs=1e-14)
        assert np.linalg.eigvalsh(value).min() > -1e-13


def test_broadcasting_and_mixed_functions():
    q, qp = np.array([0.5, 1.0]), np.array([0.7, 1.1, 0.2])
    c = np.full((2, 3), 0.1)
    out = dual(tanh.expression, relu.expression, q[:, None], qp[None, :], c)
    assert out.shape == (2, 3)
    for i, j in product(range(2), range(3)):
        assert out[i, j] == pytest.approx(float(dual(tanh.expression, relu.expression, q[i], qp[j], 0.1)), abs=1e-10)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((-1.0, 1.0, 0.0), "q"),
        ((1.0, np.nan, 0.0), "qp"),
        ((1.0, 1.0, 1.5), "c"),
        ((1.0, 1.0, "a"), "c"),
        ((np.ones(2), np.ones(3), np.ones(2)), "c"),
    ],
)
def test_bad_covariances(arguments, field):
    with pytest.raises(InputError) as error:
        dual(X, X, *arguments)
    assert error.value.field == field and error.value.hint


@pytest.mark.parametrize("f", [sp.DiracDelta(X), X * sp.Symbol("k"), sp.exp(X**2), sp.log(X), sp.Abs(sp.sin(X)), 1 / X], ids=str)
def test_bad_functions(f):
    with pytest.raises(ProgramError) as error:
        dual(f, sp.tanh(X), 1.0, 1.0, 0.5)
    assert error.value.hint


DEAD_ZONES = {
    "relu(x - 1)": sp.Max(X - 1, 0),
    "soft threshold": sp.Max(X - 1, 0) - sp.Max(-X - 1, 0),
    "a curved one": sp.Max(X - 1, 0) * sp.exp(-X / 2),
}


@pytest.mark.parametrize("name", DEAD_ZONES)
@pytest.mark.parametrize("largest", [0.25, 1.0])
def test_dead_zones(name, largest):
    """At a twentieth of the largest variance nothing but a far tail is left, which must not count as an error."""
    f = DEAD_ZONES[name]
    entries = [(largest, largest, 0.5 * largest), (largest, 0.3 * largest, -0.3 * largest), (largest, largest / 50, 0.1 * largest)]
    found = dual(f, f, *(np.array(v) for v in zip(*entries, strict=True)))
    expected = [reference(f, f, *v) for v in entries]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12 * found[0])
    own = reference(f, sp.S.One * f, largest, largest, largest * (1 - 1e-13))
    assert dual(f, f, largest, largest, largest) == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize("largest", [1e-2, 1 / 144, 1e-3, 1e-8])
def test_dead_zones_beyond_all_fields(largest):
    """What lies more than ten standard deviations away is nothing, not an error."""
    found = dual(sp.Max(X - 1, 0), sp.Max(X - 1, 0), largest, np.array([largest, largest / 3]), np.array([largest, largest / 10]))
    assert np.all((found >= 0) & (found < 1e-20))
    mixed = dual(sp.tanh(X), sp.Max(X - 1, 0), largest, largest, largest / 2)
    assert abs(mixed) < 1e-20
