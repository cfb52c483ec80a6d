"""A finite net together with its derivatives with respect to the input: F = (f, df/dx_1, ..., df/dx_D) (``theory/jacobian.md``).

The values, and their tangent kernel; :mod:`tp_solver.finite.robust` trains with a penalty on the derivatives. Everything is taken
by jax from the program that the net runs.
"""

from __future__ import annotations

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import BudgetError, InputError
from tp_solver.finite import tangent
from tp_solver.finite.dense import Array, Net, Numbers, Weights
from tp_solver.finite.empirical import is_traced
from tp_solver.finite.experiment import precision
from tp_solver.finite.network import FiniteNet, on_host
from tp_solver.numerics.compiled import compiled

GIB = 2.0
"""Default memory budget."""


def joint_values(net: Net, weights: Weights, numbers: Numbers, x: Array) -> Array:
    """F at inputs x (D, P): f first, then its D derivatives, (P, 1 + D, K). Pure, for use under jit, vmap and grad."""
    f, pull = jax.vjp(lambda inputs: Net.predict(net, weights, numbers, inputs), x)
    # points do not mix, so the gradient of a sum over points holds every point's own gradient
    ones = jnp.broadcast_to(jnp.eye(f.shape[1], dtype=f.dtype)[:, None, :], (f.shape[1], *f.shape))
    (slopes,) = jax.vmap(pull)(ones)
    return jnp.concatenate([f[:, None, :], slopes.transpose(2, 1, 0)], axis=1)


def value_and_jacobian(net: FiniteNet, X: Any) -> np.ndarray:
    """F = (f, df/dx_1, ..., df/dx_D) of a finite net.

    Args:
        net: from :func:`tp_solver.draw`.
        X: inputs (P, D); x is read as it is given, the 1/sqrt(D) of the first layer belongs to the net.

    Returns:
        (P, 1 + D, K).

    Raises:
        InputError: for malformed inputs.
    """
    net = _net(net)
    x = net.columns("X", X)
    with precision():
        return on_host(_values(net, x))


def empirical_jacobian_ntk(net: FiniteNet, X: Any, X2: Any = None, gib: float = GIB) -> np.ndarray:
    """The tangent kernel of F: ``sum_j rate_j <dF_ak(x)/dw^j, dF_bl(x')/dw^j>`` with the rates gamma0^2 eta_j n^-c_j.

    As derivatives of the tangent kernel of f, ``d_{x_a} d_{x'_b} Theta(x, x')`` with d_0 the identity, which is the same thing at every
    width (Kim and Yang, arXiv:2312.03386; ``theory/jacobian.md``, KJ.2). The gradients that jax takes leave out the jumps of a
    kinked activation's slope: (KJ.2) and the limit are for smooth ones.

    Args:
        net: from :func:`tp_solver.draw`.
        X: inputs (n1, D).
        X2: inputs (n2, D); X by default.
        gib: memory budget in GiB.

    Returns:
        (n1, 1 + D, n2, 1 + D, K, K). Inside a jax transformation the budget is that of the result alone: what is computed around it
        is not known there.

    Raises:
        InputError: for malformed inputs. BudgetError: if it does not fit.
    """
    net = _net(net)
    gib = checks.number("gib", gib, above=0.0, hint="gib is the memory budget in GiB, e.g. 2.0")
    x1 = net.columns("X", X)
    x2 = x1 if X2 is None else net.columns("X2", X2)
    shape = (x1.shape[1], 1 + net.dimension, x2.shape[1], 1 + net.dimension, net.outputs, net.outputs)
    _require(gib, net.dtype.itemsize * prod(shape))  # before anything is compiled
    with precision():
        if is_traced((net.w, x1, x2)):
            return _kernel(net, x1, x2)
        run = compiled(_kernel, net, x1, x2)
        _require(gib, run.results + run.scratch)
        found = on_host(run.call(net, x1, x2))
    if not np.isfinite(found).all():
        raise InputError("net", "a kernel that is not finite", "a net with finite weights", "did its training diverge?")
    return found


def _require(gib: float, need: int) -> None:
    if need > gib * 2**30:
        raise BudgetError("gib", f"a need of {need / 2**30:.3g} GiB", f"at most {gib:g} GiB", "give fewer inputs at a time, as X and X2")


def _net(net: Any) -> FiniteNet:
    return checks.instance("net", net, FiniteNet, "a finite net", "draw one: tp.draw(net, parameterization, dimension, width)")


@jax.jit
def _values(net: FiniteNet, x: Array) -> Array:
    return joint_values(net.net, net.w, net.numbers, x)


@jax.jit
def _kernel(net: FiniteNet, x1: Array, x2: Array) -> Array:
    """Points do not mix: the derivative by one shift of all points is the derivative by each of them."""
    each = jnp.eye(net.outputs, dtype=x1.dtype)

    def shifted(s: Array, t: Array) -> Array:
        one, two = (tangent.gradients(net.net, net.w, net.numbers, x + v[:, None], each) for x, v in ((x1, s), (x2, t)))
        return tangent.kernel(net.net, one, two, net.numbers)

    def by_first(s: Array, t: Array) -> Array:
        return jnp.concatenate([shifted(s, t)[..., None], jax.jacfwd(shifted, 0)(s, t)], axis=-1)

    zero = jnp.zeros(net.dimension, x1.dtype)
    both = jnp.concatenate([by_first(zero, zero)[..., None], jax.jacfwd(by_first, 1)(zero, zero)], axis=-1)
    return both.transpose(0, 4, 2, 5, 1, 3)  # from (P, K, P', K, a, b)
