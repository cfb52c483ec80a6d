"""The functions that formulas of Gaussian expectations are made of: values against mpmath, derivatives, edges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.symbols.functions import arcsine, arcsine_integral, arcsine_slope, damped_cosh, damped_sinh, inverse_root, root

U, V = sp.symbols("u v", real=True)
NEAR_ONE = 1 - np.geomspace(1e-13, 1, 400)
CORRELATIONS = np.concatenate([np.linspace(-0.999, 0.999, 1001), NEAR_ONE, -NEAR_ONE, np.sqrt(0.5) + np.linspace(-1e-3, 1e-3, 101)])


def computed(kind, *x, dtype=np.float64):
    with jax.enable_x64(dtype == np.float64):
        return np.asarray(lower(kind(*(U, V)[: len(x)]), (U, V)[: len(x)])(*(jnp.asarray(v, dtype) for v in x)))


def exact(function, x):
    with mpmath.workdps(40):
        return np.array([float(function(mpmath.mpf(float(v)))) for v in x])


@pytest.mark.parametrize(("dtype", "units"), [(np.float64, 2.5), (np.float32, 3.0)])
def test_arcsine_to_the_last_bits(dtype, units):
    x = CORRELATIONS.astype(dtype)
    x = x[np.abs(x) < 1 - 16 * np.finfo(dtype).eps]
    reference = exact(mpmath.asin, x)
    assert np.max(np.abs(computed(arcsine, x, dtype=dtype) - reference) / np.spacing(np.abs(reference).astype(dtype))) <= units


def test_angles_between_nearly_equal_points():
    """pi / 2 - arcsine(rho) is as accurate as rho allows: the last bit of pi / 2."""
    assert np.pi / 2 - computed(arcsine, NEAR_ONE) == pytest.approx(exact(mpmath.acos, NEAR_ONE), abs=5e-16)
    assert computed(arcsine_slope, NEAR_ONE) == pytest.approx(exact(lambda v: 1 / mpmath.sqrt(1 - v * v), NEAR_ONE), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_full_correlation(dtype):
    eps = float(np.finfo(dtype).eps)
    x = np.array([1, 1 + 2 * eps, 1 - 2 * eps], dtype)
    half_pi = np.array(np.pi / 2, dtype)
    for sign in (1, -1):
        assert np.all(computed(arcsine, sign * x, dtype=dtype) == sign * half_pi)
        assert np.all(computed(arcsine_slope, sign * x, dtype=dtype) == 0)
        assert computed(arcsine_integral, sign * x, dtype=dtype) == pytest.approx(np.full(3, half_pi), rel=4 * eps)


ARGUMENTS = {
    root: [0.3, 2.0, 1e-6], inverse_root: [0.3, 2.0, 1e-3], arcsine: [-0.9, 0.1, 0.99], arcsine_slope: [-0.9, 0.1, 0.99],
    arcsine_integral: [-0.9, 0.1, 0.99], damped_sinh: [-1.5, 1e-5, 2.0], damped_cosh: [-1.5, 0.0, 2.0],
}  # fmt: skip


@pytest.mark.parametrize("kind", ARGUMENTS, ids=lambda k: k.__name__)
def test_derivatives_of_first_and_second_order(kind):
    """jax's derivatives of the lowered function, against differences of it."""
    u = np.array(ARGUMENTS[kind])
    arguments = (U,) if kind.nargs == {1} else (U, V)
    with jax.enable_x64(True):
        f = lower(kind(*arguments), arguments)
        rest = () if len(arguments) == 1 else (2.5,)
        h = 1e-4 * np.abs(u) + 1e-9
        for derivative in (f, jax.grad(f)):
            slope = jax.vmap(lambda v, g=derivative: jax.grad(g)(v, *rest))(jnp.asarray(u))
            at = {s: jax.vmap(lambda v, g=derivative: g(v, *rest))(jnp.asarray(u + s * h)) for s in (-2, -1, 1, 2)}
            difference = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h)
            assert np.asarray(slope) == pytest.approx(np.asarray(difference), rel=1e-6, abs=1e-8)


def test_roots_of_zero():
    with jax.enable_x64(True):
        for kind in (root, inverse_root):
            f = lower(kind(U), (U,))
            assert [float(g(0.0)) for g in (f, jax.grad(f), jax.grad(jax.grad(f)))] == [0, 0, 0]


def test_damped_functions_never_overflow():
    u, v = np.array([700.0, -900.0, 1e-12, 1e-300]), np.array([701.0, 900.0, 3.0, 0.0])
    for kind, function in ((damped_sinh, mpmath.sinh), (damped_cosh, mpmath.cosh)):
        with mpmath.workdps(40):
            reference = [float(mpmath.exp(-mpmath.mpf(b)) * function(mpmath.mpf(a))) for a, b in zip(u, v, strict=True)]
        assert computed(kind, u, v) == pytest.approx(np.array(reference), rel=1e-13)
    assert np.all(np.isfinite(computed(damped_sinh, [120.0, -300.0], [120.0, 300.0], dtype=np.float32)))
