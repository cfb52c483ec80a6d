"""Runs the statements of a program on sampled sites; a matrix is anything that answers ``forward`` and ``backward``.

Vectors are rows: a WIDTH variable is a site array (P, S) or in blocks (:mod:`tp_solver.numerics.sites`), an average (P, 1), an
output (P, K), data (P, r).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.numerics.sites import mean
from tp_solver.program.losses import Loss, gradient
from tp_solver.program.statements import Average, Map, Product, Statement, Sum, symbol

Env = dict[str, jax.Array]


class ActingMatrix(Protocol):
    """What a matrix has to answer; names let it remember what it has met."""

    def forward(self, name: str, x: jax.Array) -> jax.Array:
        """``W x``."""
        ...

    def backward(self, name: str, y: jax.Array) -> jax.Array:
        """``W.T y``."""
        ...


def run(statements: Iterable[Statement], env: Env, matrices: Mapping[str, ActingMatrix]) -> Env:
    """Execute statements in order; returns ``env`` with their results added."""
    out = dict(env)
    for s in statements:
        out[s.out] = execute(s, out, matrices)
    return out


def execute(s: Statement, env: Env, matrices: Mapping[str, ActingMatrix]) -> jax.Array:
    """One statement."""
    match s:
        case Product():
            matrix = matrices[s.matrix]
            return matrix.backward(s.arg, env[s.arg]) if s.transpose else matrix.forward(s.arg, env[s.arg])
        case Sum():
            total = jnp.zeros(())
            for c, name in s.terms:
                total = total + (env[name] if c == 1 else float(c) * env[name])
            return total
        case Map():
            return _evaluate(s.expression, s.arguments, env)
        case Average():
            return mean(_evaluate(s.expression, s.arguments, env))[:, None]
    raise AssertionError(f"{s}: a statement over positions, which tp.limit refuses")


def _evaluate(expression: sp.Expr, arguments: tuple[str, ...], env: Env) -> jax.Array:
    values = [env[a] for a in arguments]
    out = lower(expression, tuple(symbol(a) for a in arguments))(*values)
    return jnp.broadcast_to(out, jnp.broadcast_shapes(*(v.shape for v in values)))


def loss_and_error(loss: Loss, f: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Loss per point (P,) and error signal -dl/df (P, K), both lowered from the loss's one expression."""
    outputs = f.shape[1]
    fs, ys, value, slopes = gradient(loss, outputs)
    columns = [*f.T, *y.T]
    per_point = lower(value, (*fs, *ys))(*columns)
    errors = [-lower(d, (*fs, *ys))(*columns) for d in slopes]
    return per_point, jnp.stack([jnp.broadcast_to(e, (f.shape[0],)) for e in errors], axis=1)


def input_coordinates(X: np.ndarray, X_new: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Exact basis of the training inputs.

    Returns:
        Training coordinates (P, r) with X X^T = c c^T, coordinates of the new points (P_new, r), and the squared norms
        (P_new,) of what the training inputs do not span.
    """
    _, singular, vt = np.linalg.svd(X, full_matrices=False)
    rank = max(1, int(np.sum(singular > 1e-12 * singular.max(initial=0.0))))
    axes = vt[:rank]
    if X_new is None:
        return X @ axes.T, None, None
    c_new = X_new @ axes.T
    rest = np.sum((X_new - c_new @ axes) ** 2, axis=1)
    return X @ axes.T, c_new, rest
