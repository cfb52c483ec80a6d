"""Initial weights and the numbers of a parameterization at one width (``theory/notation.md``, NO.1 and NO.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver.finite.dense import Net, Numbers, Weights
from tp_solver.program.parameterization import D, Parameterization


def numbers_at(
    net: Net, parameterization: Parameterization, width: int, channels: int, gamma0: float, lr: Mapping[str, float], dtype: np.dtype
) -> Numbers:
    """Multipliers and rates at a width, from the exact exponents.

    Args:
        channels: the dimension that input matrices act on.
        lr: learning rate of every matrix.
    """
    multiplier, tangent = {}, {}
    for m in net.program.matrices:
        s = parameterization.scaling(m)
        multiplier[m.name] = _at(s.alpha * sp.Integer(width) ** -s.a, channels)
        tangent[m.name] = gamma0**2 * _at(s.eta * sp.Integer(width) ** -s.c, channels)
    rate = {name: lr[name] * value for name, value in tangent.items()}
    backward = gamma0 * _at(sp.Integer(width) ** parameterization.backward_exponent, channels)
    return jax.tree.map(dtype.type, Numbers(multiplier, rate, tangent, backward, gamma0))


def draw_weights(
    net: Net, parameterization: Parameterization, width: int, channels: int, seed: int, labels: Sequence[int], dtype: np.dtype
) -> Weights:
    """Initial weights of the nets with the given labels, arrays with a leading axis of nets.

    Every matrix of every net has its own stream, keyed by (seed, width, label, matrix), so that no net depends on which
    others are drawn. Draws are double precision numbers, rounded for float32.
    """
    out = {}
    for j, m in enumerate(net.program.matrices):
        s = parameterization.scaling(m)
        deviation = _at(s.sigma * sp.Integer(width) ** -s.b, channels)
        shape = net.shape(m.name, width, channels)
        lanes = np.empty((len(labels), *shape), dtype)
        for lane, label in zip(lanes, labels, strict=True):
            draws = np.random.default_rng([seed, width, label, j]).standard_normal(shape)
            draws *= deviation
            lane[...] = draws
            del draws  # a second copy of the largest array would set the peak of memory
        out[m.name] = jnp.array(lanes)
    return out


def weight_units(net: Net, parameterization: Parameterization, width: int, channels: int) -> dict[str, float]:
    """N^(-b) of every matrix: the unit of the noise that its weights receive."""
    return {m.name: _at(sp.Integer(width) ** -parameterization.scaling(m).b, channels) for m in net.program.matrices}


def _at(expression: sp.Expr, channels: int) -> float:
    return float(expression.subs(D, channels))
