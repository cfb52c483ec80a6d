"""A tensor program run with dense arrays: vectors are (n, P), a matrix is an array times its multiplier.

Everything here is a function of the trained arrays ``w`` (``W = alpha n^-a w``); derivatives are left to ``jax.grad``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tp_solver.elementwise import lower
from tp_solver.program.losses import Loss, gradient
from tp_solver.program.statements import ONE, Average, Map, Product, Program, Role, Sum, X, symbol

Array = jax.Array
Weights = dict[str, Array]


class Numbers(NamedTuple):
    """The numbers of a parameterization at one width; run-time inputs of the compiled steps."""

    multiplier: dict[str, Any]
    """W = multiplier w, that is alpha n^-a."""
    rate: dict[str, Any]
    """w <- w - rate dLoss/dw, that is lr gamma0^2 eta n^-c."""
    tangent: dict[str, Any]
    """gamma0^2 eta n^-c: the rate without lr, for the tangent kernel."""
    backward: Any
    """gamma0 n^m, which makes df/dh of order one."""
    gamma0: Any


class Data(NamedTuple):
    """Inputs with one column per point, labels with one row per point; the test parts may be None."""

    X: Array
    y: Array
    X_test: Array | None
    y_test: Array | None


@dataclass(frozen=True)
class Net:
    """What is static in a run: the program, the loss, the number of outputs."""

    program: Program
    loss: Loss
    outputs: int

    def variables(self, weights: Weights, numbers: Numbers, x: Array, shifts: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Every variable of the forward program.

        Args:
            weights: the trained arrays w.
            x: inputs, shape (D, P).
            shifts: arrays added to variables as they are computed; the gradient with respect to a zero shift is the adjoint.
        """
        shifts = shifts or {}
        values = {X: x, ONE: jnp.ones((1, x.shape[1]), x.dtype)}
        for s in self.program.statements:
            match s:
                case Product():
                    w = weights[s.matrix].T if s.transpose else weights[s.matrix]
                    out = numbers.multiplier[s.matrix] * (w @ values[s.arg])
                case Sum():
                    out = sum((float(c) * values[name] for c, name in s.terms), start=jnp.zeros((), x.dtype))
                case Map():
                    out = _entrywise(s, values, x.dtype)
                case Average():
                    out = jnp.mean(_entrywise(s, values, x.dtype), axis=0, keepdims=True)
            values[s.out] = out + shifts[s.out] if s.out in shifts else out
        return values

    def outputs_of(self, values: Mapping[str, Array], numbers: Numbers) -> Array:
        """f = (1/gamma0) x the output variable, shape (P, K)."""
        return values[self.program.output].T / numbers.gamma0

    def predict(self, weights: Weights, numbers: Numbers, x: Array) -> Array:
        """f at the inputs x (D, P), shape (P, K)."""
        return self.outputs_of(self.variables(weights, numbers, x), numbers)

    def point_loss(self, f: Array, y: Array) -> Array:
        """l per data point, shape (P,), for f and y of shape (P, K)."""
        symbols_f, symbols_y, value, _ = gradient(self.loss, self.outputs)
        return jnp.broadcast_to(lower(value, symbols_f + symbols_y)(*f.T, *y.T), f.shape[:1])

    def shape(self, matrix: str, width: int, dimension: int) -> tuple[int, int]:
        """Shape of a matrix at a width."""
        role = self.program.matrix(matrix).role
        rows = self.outputs if role is Role.READOUT else width
        columns = {Role.INPUT: dimension, Role.BIAS: 1}.get(role, width)
        return rows, columns

    def compile_expressions(self) -> None:
        """Lower every expression now, so that one without a jax counterpart is refused before anything else happens.

        Raises:
            ProgramError: see :func:`tp_solver.elementwise.lower`.
        """
        for s in self.program.statements:
            if isinstance(s, (Map, Average)):
                _lowered(s)
        symbols_f, symbols_y, value, _ = gradient(self.loss, self.outputs)
        lower(value, symbols_f + symbols_y)


def _lowered(s: Map | Average) -> Any:
    return lower(s.expression, tuple(symbol(a) for a in s.arguments))


def _entrywise(s: Map | Average, values: Mapping[str, Array], dtype: Any) -> Array:
    arguments = [values[a] for a in s.arguments]
    # a constant expression comes back as a plain number
    shape = jnp.broadcast_shapes(*(a.shape for a in arguments))
    return jnp.broadcast_to(jnp.asarray(_lowered(s)(*arguments), dtype), shape)
