"""A growing orthonormal basis of sampled vectors, padded to a fixed capacity so that it can live under jit.

Vectors are rows of site arrays (:mod:`tp_solver.numerics.sites`); ``<a b> = (1/S) sum_s a_s b_s`` (``theory/limit_operator.md``, LO.3).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tp_solver.numerics.sites import combine, inner, mean

MANY = 32
"""Vectors from which on the Gram matrix of residuals and its eigenvectors, whose cost grows as the square and the cube of their number,
are not found before it is known that a direction has to be appended."""
POWERS = 10
SURE = 0.7
"""Share of the threshold that the estimate of the largest eigenvalue, which comes from below, has to reach before a closer look."""


class Basis(NamedTuple):
    """Orthonormal rows, a site array of ``capacity`` vectors, zero beyond ``used``, and the scale that the tolerance refers to.

    ``used`` may exceed the capacity: then directions were lost, and the step that lost them has to be repeated with more
    room (the caller checks).
    """

    rows: jax.Array
    used: jax.Array
    scale: jax.Array

    @staticmethod
    def of(rows: jax.Array) -> Basis:
        """Without any direction yet, in the room of some zeros."""
        return Basis(rows, jnp.zeros((), jnp.int32), jnp.zeros((), rows.dtype))

    @property
    def capacity(self) -> int:
        """Room for directions."""
        return self.rows.shape[-2]


def coordinates(basis: Basis, vectors: jax.Array) -> jax.Array:
    """Coordinates (P, capacity) of the vectors' projections."""
    return inner(vectors, basis.rows)


def extend(basis: Basis, vectors: jax.Array, tol: float) -> tuple[Basis, jax.Array]:
    """Append the directions of ``vectors``, P rows, whose squared residual exceeds ``tol`` times their squared scale.

    The scale is the larger of the present one and a quarter of the first one met, so that vanishing signals bring no noise.

    Returns:
        The basis, and the coordinates (P, capacity) of the vectors in it.
    """
    capacity = basis.capacity
    squares = mean(vectors * vectors)
    present = jnp.max(squares)
    scale = jnp.where(basis.used == 0, present, basis.scale)
    threshold = tol * jnp.maximum(present, 0.25 * scale)
    c = coordinates(basis, vectors)
    missing = jnp.sum(squares - jnp.sum(c * c, axis=1))

    def residual_of(c: jax.Array) -> tuple[jax.Array, jax.Array]:
        return c, vectors - combine(c, basis.rows)

    def twice(c: jax.Array) -> tuple[jax.Array, jax.Array]:
        c = c + coordinates(basis, vectors - combine(c, basis.rows))
        return residual_of(c)

    def grown(c: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        # one projection leaves an error of eps / sqrt(tol) in the directions: only tight tolerances need a second
        c, residual = jax.lax.cond(tol < 1e-8, twice, residual_of, c)
        values, directions = jnp.linalg.eigh(inner(residual, residual))
        values, directions = values[::-1], directions[:, ::-1]
        # an eigenvector has no sign of its own: left to rounding, other precisions and machines would meet other samples
        generic = jnp.sqrt(jnp.arange(1, len(values) + 1, dtype=values.dtype))
        directions = jnp.where(generic @ directions < 0, -directions, directions)
        keep = values > threshold
        lengths = jnp.sqrt(jnp.where(keep, values, 1.0))
        return c, combine((directions / lengths).T, residual), jnp.where(keep, directions * lengths, 0.0), keep

    def settled(c: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        P = len(squares)
        return c, jnp.zeros_like(vectors), jnp.zeros((P, P), vectors.dtype), jnp.zeros(P, bool)

    # the trace bounds the largest residual eigenvalue: below the threshold nothing can be appended
    rounding = 100 * jnp.finfo(vectors.dtype).eps * jnp.sum(squares)
    grows = missing > threshold - rounding
    if len(vectors) >= MANY:
        estimate = partial(_largest_residual, vectors, c, squares)
        grows &= jax.lax.cond(grows, estimate, lambda: missing) > SURE * threshold - rounding
    c, fresh, shares, keep = jax.lax.cond(grows, grown, settled, c)
    slots = jnp.where(keep, basis.used + jnp.arange(len(keep)), capacity)
    rows = basis.rows.at[..., slots, :].set(fresh, mode="drop")
    c = c.at[:, slots].set(shares, mode="drop")
    return Basis(rows, basis.used + jnp.sum(keep, dtype=jnp.int32), scale), c


def _largest_residual(vectors: jax.Array, c: jax.Array, squares: jax.Array) -> jax.Array:
    """The largest eigenvalue of the residuals' Gram matrix ``<v v'> - c c'`` from below, by powers of it, at a cost linear in the vectors.

    The first vector is its column of the largest residual.
    """

    def gram(w: jax.Array) -> jax.Array:
        return inner(vectors, combine(w[None, :], vectors))[:, 0] - c @ (c.T @ w)

    def power(_: int, known: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w, size = known
        w = gram(w / jnp.where(size > 0, size, 1.0))
        return w, jnp.sqrt(jnp.sum(w * w))

    first = jax.nn.one_hot(jnp.argmax(squares - jnp.sum(c * c, axis=1)), len(squares), dtype=vectors.dtype)
    return jax.lax.fori_loop(0, POWERS, power, (first, jnp.ones((), vectors.dtype)))[1]


def enlarged(basis: Basis, capacity: int) -> Basis:
    """The same basis with more room."""
    pad = [(0, 0)] * (basis.rows.ndim - 2) + [(0, capacity - basis.capacity), (0, 0)]
    return basis._replace(rows=jnp.pad(basis.rows, pad))
