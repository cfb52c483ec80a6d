"""What must hold for every entry of the tables of Gaussian expectations and for every way of computing them, found by enumeration.

Independent witnesses: sampling with standard errors, Price's theorem and the heat equation between entries, finite differences.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from scipy.special import erf

from tp_solver.elementwise import lower
from tp_solver.errors import InputError, ProgramError
from tp_solver.numerics.closed_forms import ONE, PAIRS, QP, C, NoClosedForm, Q, closed_form
from tp_solver.numerics.duals import RULES, dual, dual_function
from tp_solver.numerics.pointwise import concrete, continuous
from tp_solver.numerics.split_quadrature import split_quadrature
from tp_solver.symbols.activation import SHIPPED, X, gelu, relu, tanh

LARGEST = 2.0
ELU = sp.Piecewise((X, X > 0), (sp.exp(X) - 1, True))
HARD_TANH = sp.Max(-1, sp.Min(X, 1))
SOFTPLUS = sp.log(1 + sp.exp(X))
CANDIDATES = ((relu.expression, relu.expression), (tanh.expression, SOFTPLUS), (X**3 + X, HARD_TANH), (ELU, HARD_TANH))
BY_RULE = {rule: next((p for p in CANDIDATES if next(r for r in RULES if r(*p, LARGEST)) is rule), None) for rule in RULES}
"""A pair of functions that every rule is the one to answer for."""


def representative(kind: type, slope: sp.Expr) -> sp.Expr:
    return sp.S.One if kind is ONE else kind(slope * X)


def entry(a: type, b: type) -> tuple[sp.Expr, sp.Expr]:
    return representative(a, sp.Rational(-3, 2)), representative(b, sp.Rational(4, 5))


ENTRIES = [entry(*pair) for pair in PAIRS]
MIRRORED = [entry(*pair[::-1]) for pair in PAIRS if pair[0] is not pair[1]]
POINTWISE = [(f, g) for f, g in ENTRIES if not (f * g).has(sp.DiracDelta)]
FORMULAS = [*POINTWISE, (gelu.expression, gelu.expression), (relu.expression, relu.derivative)]
QUADRATURE = BY_RULE[RULES[3]]
QUICK = [*FORMULAS, *(p for p in BY_RULE.values() if p and p != QUADRATURE)]
PAIRS_OF_ALL = [*QUICK, QUADRATURE]
WITH_SLOW = [*QUICK, pytest.param(QUADRATURE, marks=pytest.mark.slow)]
"""Quadrature takes seconds to compile."""
Q0, QP0, C0 = np.array([0.7, 1.6, 1.1, 0.2]), np.array([1.3, 0.5, 1.1, 1.9]), np.array([0.4, -0.8, 1.0, 0.05])


def names(pair):
    return " | ".join(map(str, pair))


def evaluated(form: sp.Expr) -> np.ndarray:
    return np.broadcast_to(concrete(lower(form, (Q, QP, C)), Q0, QP0, C0), Q0.shape)


def table(f: sp.Expr, g: sp.Expr) -> np.ndarray:
    return evaluated(closed_form(f, g))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_every_rule_has_a_pair_to_answer_for(rule):
    assert BY_RULE[rule] is not None


NORMALS = np.random.default_rng(7).standard_normal((2, 400_000))


@cache
def sampled(f: sp.Expr, k: int, second: bool) -> np.ndarray:
    a = np.sqrt(Q0[k]) * NORMALS[0]
    b = C0[k] / Q0[k] * a + np.sqrt(QP0[k] - C0[k] ** 2 / Q0[k]) * NORMALS[1]
    heaviside = {"Heaviside": lambda x, *_: np.heaviside(x, 0.5), "erf": erf}
    return np.broadcast_to(sp.lambdify(X, f, modules=[heaviside, "numpy"])(b if second else a), a.shape)


@pytest.mark.parametrize("pair", PAIRS_OF_ALL, ids=names)
def test_against_sampling(pair):
    """Within four and a half standard errors of 400 000 draws; the chance of a false alarm in all cases together is 1e-3."""
    f, g = pair
    exact = dual(f, g, Q0, QP0, C0)
    for k in (0, 1):
        draws = sampled(f, k, False) * sampled(g, k, True)
        error = draws.std() / np.sqrt(len(draws))
        assert abs(draws.mean() - exact[k]) <= 4.5 * error + 1e-12


@pytest.mark.parametrize("pair", [*ENTRIES, *MIRRORED], ids=names)
def test_price(pair):
    """dE/dc = E f' g' and dE/dq = E f'' g / 2 between entries of the table, delta functions included."""
    f, g = pair
    checked = 0
    for variable, left, right, factor in ((C, 1, 1, 1), (Q, 2, 0, 2), (QP, 0, 2, 2)):
        try:
            expected = table(sp.diff(f, X, left), sp.diff(g, X, right)) / factor
        except NoClosedForm:
            continue
        assert evaluated(sp.diff(closed_form(f, g), variable)) == pytest.approx(expected, rel=1e-11, abs=1e-12)
        checked += 1
    assert checked or (f * g).has(sp.DiracDelta)


@pytest.mark.parametrize("pair", [p for p in [*ENTRIES, *MIRRORED] if (p[0] * p[1]).has(sp.DiracDelta)], ids=names)
def test_delta_functions_are_narrow_gaussians(pair):
    width = sp.Rational(1, 2000)
    narrow = [e.replace(sp.DiracDelta, lambda u: sp.exp(-((u / width) ** 2) / 2) / (width * sp.sqrt(2 * sp.pi))) for e in pair]
    assert table(*narrow) == pytest.approx(table(*pair), rel=1e-5)


def function(pair, dtype=jnp.float64):
    found = dual_function(*pair, LARGEST)
    return lambda q, qp, c: found(*(jnp.asarray(v, dtype) for v in (q, qp, c)))


@pytest.mark.parametrize("pair", WITH_SLOW, ids=names)
def test_gradients_against_differences(pair):
    """Central differences of fourth order, of the values that the other tests hold."""
    with jax.enable_x64(True):
        gradient = jax.jit(jax.vmap(jax.grad(function(pair), argnums=(0, 1, 2))))(*map(jnp.asarray, (Q0, QP0, C0)))
    for k in range(3):
        h = 1e-3 * np.eye(3)[k]
        at = {s: dual(*pair, Q0 + s * h[0], QP0 + s * h[1], C0 + s * h[2]) for s in (-2, -1, 1, 2)}
        difference = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / 12e-3
        assert np.asarray(gradient[k]) == pytest.approx(difference, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("pair", [BY_RULE[r] for r in RULES[:2] if BY_RULE[r]] + [(gelu.expression, gelu.expression)], ids=names)
def test_mixed_second_derivatives(pair):
    """Of the kernel of two points x and x' in the plane, d^2 k / dx dx', against differences of gradients; also where x = x'."""
    with jax.enable_x64(True):
        f = function(pair)
        kernel = lambda x, y: f(x @ x, y @ y, x @ y)  # noqa: E731
        x = jnp.array([0.6, -0.5])
        mixed = jax.jit(jax.jacfwd(jax.jacfwd(kernel, 1), 0))
        slope = jax.jit(jax.grad(kernel, 1))
        for y in (jnp.array([0.9, 0.3]), x, -0.5 * x):
            h = 1e-3
            columns = []
            for e in jnp.eye(2):
                at = {s: slope(x + s * h * e, y) for s in (-2, -1, 1, 2)}
                columns.append((8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h))
            aligned = np.linalg.matrix_rank(np.stack([x, y])) == 1
            if pair != BY_RULE[RULES[0]] or not aligned:
                assert np.asarray(mixed(x, y)) == pytest.approx(np.stack(columns).T, rel=1e-6, abs=1e-8)


def test_second_derivative_of_a_relu_kernel_where_points_coincide():
    """d^2 k / dx dx' = E[relu'(a) relu'(b) w w^T], which is half of the identity at x = x' and zero at x = -x'."""
    with jax.enable_x64(True):
        f = function((relu.expression, relu.expression))
        mixed = jax.jit(jax.jacfwd(jax.jacfwd(lambda x, y: f(x @ x, y @ y, x @ y), 1), 0))
        for x in np.random.default_rng(3).standard_normal((20, 5)):
            assert np.asarray(mixed(x, x)) == pytest.approx(np.eye(5) / 2, abs=1e-14)
            assert np.asarray(mixed(x, -x)) == pytest.approx(np.zeros((5, 5)), abs=1e-14)


CONTINUOUS = [*(a.expression for a in SHIPPED), SOFTPLUS, HARD_TANH, ELU]


@pytest.mark.parametrize("f", [*CONTINUOUS[:-1], pytest.param(CONTINUOUS[-1], marks=pytest.mark.slow)], ids=str)
def test_slope_at_full_correlation(f):
    """V is C^1 where points coincide: dV/dc = E f'^2, in both precisions, with c and q from different roundings."""
    assert continuous(f)
    q = np.array([0.3, 1.0, 1.7])
    slope = sp.diff(f, X)
    exact = dual(slope, slope, q, q, q)
    for dtype, tolerance in ((jnp.float64, 1e-12), (jnp.float32, 3e-6)):
        with jax.enable_x64(dtype == jnp.float64):
            grad = jax.jit(jax.vmap(jax.grad(function((f, f), dtype), argnums=2)))
            for shift in (0.0, 1.0, -1.0):
                c = jnp.asarray(q, dtype) * (1 + shift * jnp.finfo(dtype).eps)
                got = grad(jnp.asarray(q, dtype), jnp.asarray(q, dtype), c)
                assert got.dtype == dtype
                assert np.asarray(got) == pytest.approx(exact, rel=tolerance)


def edges(dtype) -> list[np.ndarray]:
    tiny = 1e-12 if dtype == jnp.float64 else 1e-8
    eps = float(jnp.finfo(dtype).eps)
    sizes, correlations = [0.0, tiny, 1.0, LARGEST], [-1 - eps, -1, -1 + eps, -1 + 40 * eps, 0, 0.5, 1 - 40 * eps, 1 - eps, 1, 1 + eps]
    points = [(q, qp, r * np.sqrt(q * qp)) for q, qp, r in product(sizes, sizes, correlations)]
    return [np.array(v, dtype=dtype) for v in zip(*points, strict=True)]


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)], ids=["single", "double"])
@pytest.mark.parametrize("pair", WITH_SLOW, ids=names)
def test_never_nan(pair, dtype):
    """Values and derivatives at zero variances and full correlation; second ones for closed forms and series."""
    with jax.enable_x64(dtype == jnp.float64):
        f = function(pair, dtype)
        gradient = jax.grad(f, argnums=(0, 1, 2))
        derivatives = [f, gradient]
        if pair not in (BY_RULE[RULES[2]], QUADRATURE):
            derivatives.append(jax.jacfwd(gradient, argnums=(0, 1, 2)))
        for out in jax.tree.leaves(jax.jit(jax.vmap(lambda *x: [d(*x) for d in derivatives]))(*edges(dtype))):
            assert out.dtype == dtype
            assert np.all(np.isfinite(out))


@pytest.mark.parametrize("pair", WITH_SLOW, ids=names)
def test_single_precision(pair):
    with jax.enable_x64(False):
        got = np.asarray(jax.jit(function(pair, jnp.float32))(Q0, QP0, C0))
    exact = dual(*pair, Q0, QP0, C0)
    scale = np.sqrt(dual(pair[0], pair[0], Q0, Q0, Q0) * dual(pair[1], pair[1], QP0, QP0, QP0))
    assert got.dtype == np.float32
    assert np.all(np.abs(got - exact) <= 2e-6 * scale)


@pytest.mark.parametrize("f", dict.fromkeys(f for p in QUICK for f in p), ids=str)
def test_gram_matrices_are_positive(f):
    """Of random points, one of them zero, two equal, two opposite, two nearly equal."""
    x = np.random.default_rng(5).standard_normal((9, 4)) / 2
    x[0], x[2], x[4], x[6] = 0.0, x[1], -x[3], x[5] * (1 + 1e-7)
    kernel = x @ x.T
    q = kernel.diagonal()
    value = dual(f, f, q[:, None], q[None, :], kernel)
    assert value == pytest.approx(value.T, abs=1e-13)
    # next to full correlation a jump of f turns rounding of the correlation into its square root
    slack = 1e-13 if continuous(f) else 1e-7
    assert np.linalg.eigvalsh((value + value.T) / 2).min() >= -slack * max(np.trace(value), 1.0)


def test_split_quadrature_knows_the_closed_forms():
    """The last rule, forced on functions that others answer for."""
    f, g = relu.derivative, gelu.expression
    assert concrete(split_quadrature(f, g, LARGEST), Q0, QP0, C0) == pytest.approx(dual(f, g, Q0, QP0, C0), rel=1e-12)


def test_inside_a_traced_function():
    """Plans are made while something else is being traced, and rows are computed on their own shape."""
    x = np.random.default_rng(1).standard_normal((6, 3))
    kernel, q = x @ x.T / 3, np.sum(x * x, axis=1) / 3

    @jax.jit
    def value(q, c):
        f = sp.tanh(sp.Rational(7, 9) * X)
        return dual_function(f, f, 2.3)(q[:, None], q[None, :], c)

    with jax.enable_x64(True):
        got = np.asarray(value(q, kernel))
    f = sp.tanh(sp.Rational(7, 9) * X)
    assert got == pytest.approx(dual(f, f, q[:, None], q[None, :], kernel), rel=1e-11)


def test_bad_arguments():
    with pytest.raises(InputError) as error:
        dual_function(X, X, 0.0)
    assert error.value.field == "largest" and error.value.hint
    for f in (sp.DiracDelta(X), X * sp.Symbol("k"), sp.exp(X**2), 1 / X):
        with pytest.raises(ProgramError) as refused:
            dual_function(f, sp.tanh(X), 1.0)
        assert refused.value.hint
