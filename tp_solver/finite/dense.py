"""A tensor program run with dense arrays: vectors are (n, P), a matrix is an array times its multiplier.

Over a grid a vector has one column per data point and position, (n, P J) with the positions running fastest.

Everything here is a function of the trained arrays ``w`` (``W = alpha n^-a w``); derivatives are left to ``jax.grad``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.elementwise import lower
from tp_solver.program.losses import Loss, gradient
from tp_solver.program.positions import Window
from tp_solver.program.statements import ONE, Average, Map, Pool, Product, Program, Space, Sum, X, symbol

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
    """Inputs with one column per point, labels with one row per point; the test parts may be None, and the weights p of the points
    too, where all count alike."""

    X: Array
    y: Array
    X_test: Array | None
    y_test: Array | None
    p: Array | None = None


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
            x: inputs, shape (D, P); over a grid D runs over positions (row-major), then channels.
            shifts: arrays added to variables as they are computed; the gradient with respect to a zero shift is the adjoint.
        """
        shifts = shifts or {}
        points, grids = x.shape[1], self.program.grids()
        values = {X: channels_first(x, self.program), ONE: jnp.ones((1, points), x.dtype)}
        for s in self.program.statements:
            found = {name: spread_over(values[name], prod(grids[name]), prod(grids[s.out])) for name in s.arguments}
            match s:
                case Product(window=None):
                    w = weights[s.matrix].T if s.transpose else weights[s.matrix]
                    out = numbers.multiplier[s.matrix] * (w @ values[s.arg])
                case Product(window=Window() as window):
                    out = numbers.multiplier[s.matrix] * seen_through(window, weights[s.matrix], values[s.arg])
                case Pool():
                    out = jnp.mean(patches(s.window, values[s.arg]), axis=-1).reshape(len(values[s.arg]), -1)
                case Sum():
                    out = sum((float(c) * found[name] for c, name in s.terms), start=jnp.zeros((), x.dtype))
                case Map():
                    out = _entrywise(s, found, x.dtype)
                case Average():
                    out = jnp.mean(_entrywise(s, found, x.dtype), axis=0, keepdims=True)
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

    def shape(self, matrix: str, width: int, channels: int) -> tuple[int, ...]:
        """Shape of a matrix at a width: (rows, columns), followed by the offsets of its window and led, where every position has
        a matrix of its own, by the positions."""
        role = self.program.matrix(matrix).role
        rows = self.outputs if role.codomain is Space.OUTPUT else width
        columns = 1 if role.shifts else channels if role.domain is Space.DATA else width
        window = next(s.window for s in self.program.products() if s.matrix == matrix)
        if window is None:
            return rows, columns
        return (rows, columns, window.count) if window.shared else (prod(window.outputs), rows, columns, window.count)

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


def channels_first(x: Array, program: Program) -> Array:
    """Inputs (D, P) with one column per point and position: (channels, P J)."""
    positions = prod(program.grid)
    return x.reshape(positions, -1, x.shape[1]).transpose(1, 2, 0).reshape(-1, x.shape[1] * positions)


def spread_over(v: Array, positions: int, wanted: int) -> Array:
    """A variable that is the same at all positions, repeated for each of them; others are left as they are."""
    return v if positions == wanted or positions != 1 else jnp.repeat(v, wanted, axis=1)


def patches(window: Window, v: Array) -> Array:
    """What every output position sees, (n, P, outputs, offsets), with zeros beyond the edge."""
    columns = v.reshape(len(v), -1, prod(window.inputs))
    table = window.table
    return jnp.where(jnp.asarray(table >= 0), columns[:, :, np.maximum(table, 0)], jnp.zeros((), v.dtype))


def seen_through(window: Window, w: Array, v: Array) -> Array:
    """sum over offsets of W_a v_(i + a), over the root of their number: (rows, P outputs)."""
    contraction = "rca,cpia->rpi" if window.shared else "irca,cpia->rpi"
    out = jnp.einsum(contraction, w, patches(window, v)) * window.count**-0.5
    return out.reshape(out.shape[0], -1)


def _lowered(s: Map | Average) -> Any:
    return lower(s.expression, tuple(symbol(a) for a in s.arguments))


def _entrywise(s: Map | Average, values: Mapping[str, Array], dtype: Any) -> Array:
    arguments = [values[a] for a in s.arguments]
    # a constant expression comes back as a plain number
    shape = jnp.broadcast_shapes(*(a.shape for a in arguments))
    return jnp.broadcast_to(jnp.asarray(_lowered(s)(*arguments), dtype), shape)
