"""A growing orthonormal basis of sampled vectors, padded to a fixed capacity so that it can live under jit.

Vectors are rows, shape (P, S); ``<a b> = (1/S) sum_s a_s b_s`` (``theory/limit_operator.md``, "Growing the basis").
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Basis(NamedTuple):
    """Orthonormal rows (capacity, S), zero beyond ``used``, and the scale that the tolerance refers to.

    ``used`` may exceed the capacity: then directions were lost, and the step that lost them has to be repeated with more
    room (the caller checks).
    """

    rows: jax.Array
    used: jax.Array
    scale: jax.Array

    @staticmethod
    def empty(capacity: int, sites: int, dtype: jnp.dtype) -> Basis:
        return Basis(jnp.zeros((capacity, sites), dtype), jnp.zeros((), jnp.int32), jnp.zeros((), dtype))


def coordinates(basis: Basis, vectors: jax.Array) -> jax.Array:
    """Coordinates (P, capacity) of the vectors' projections."""
    return vectors @ basis.rows.T / vectors.shape[1]


def extend(basis: Basis, vectors: jax.Array, tol: float) -> tuple[Basis, jax.Array]:
    """Append the directions of ``vectors`` (P, S) whose squared residual exceeds ``tol`` times their squared scale.

    The scale is the larger of the present one and a quarter of the first one met, so that vanishing signals bring no noise.

    Returns:
        The basis, and the coordinates (P, capacity) of the vectors in it.
    """
    capacity, sites = basis.rows.shape
    squares = jnp.mean(vectors * vectors, axis=1)
    present = jnp.max(squares)
    scale = jnp.where(basis.used == 0, present, basis.scale)
    threshold = tol * jnp.maximum(present, 0.25 * scale)
    c = coordinates(basis, vectors)
    missing = jnp.sum(squares - jnp.sum(c * c, axis=1))

    def grown(_: None) -> tuple[jax.Array, jax.Array, jax.Array]:
        residual = vectors - c @ basis.rows
        correction = residual @ basis.rows.T / sites
        residual = residual - correction @ basis.rows
        values, directions = jnp.linalg.eigh(residual @ residual.T / sites)
        values, directions = values[::-1], directions[:, ::-1]
        keep = values > threshold
        lengths = jnp.sqrt(jnp.where(keep, values, 1.0))
        fresh = (directions / lengths).T @ residual
        slots = jnp.where(keep, basis.used + jnp.arange(len(values)), capacity)
        rows = basis.rows.at[slots].set(fresh, mode="drop")
        full = (c + correction).at[:, slots].set(jnp.where(keep, directions * lengths, 0.0), mode="drop")
        return rows, basis.used + jnp.sum(keep, dtype=jnp.int32), full

    # the trace bounds the largest residual eigenvalue: below the threshold nothing can be appended
    rounding = 100 * jnp.finfo(vectors.dtype).eps * jnp.sum(squares)
    rows, count, c = jax.lax.cond(missing > threshold - rounding, grown, lambda _: (basis.rows, basis.used, c), None)
    return Basis(rows, count, scale), c


def enlarged(basis: Basis, capacity: int) -> Basis:
    """The same basis with more room."""
    pad = capacity - basis.rows.shape[0]
    return basis._replace(rows=jnp.pad(basis.rows, ((0, pad), (0, 0))))
