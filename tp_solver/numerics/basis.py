"""A growing orthonormal basis of sampled vectors, padded to a fixed capacity so that it can live under jit.

Vectors are rows of site arrays (:mod:`tp_solver.numerics.sites`); ``<a b> = (1/S) sum_s a_s b_s`` (``theory/limit_operator.md``, LO.3).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.numerics.sites import combine, gram, inner, over_points

FEW = 16
"""Directions that a step may append of many vectors, less ``SPARE``. Where there are more, all are found, at a cost that grows as the
square and the cube of the number of vectors."""
SPARE = 4
MANY = 8 * FEW
"""Vectors from which on it pays to look for few."""
BLOCKS = 4
"""Of a Krylov space, FEW vectors each: with them what is left out exceeds the threshold by a few percent at most, even where residuals
are many and alike."""
TIGHT = 1e-8
"""Tolerance below which rounding shows: one projection leaves an error of eps / sqrt(tol) in directions, a difference of Gram matrices
one of eps."""


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


def extend(basis: Basis, vectors: jax.Array, squares: jax.Array, tol: float) -> tuple[Basis, jax.Array]:
    """Append the directions of ``vectors``, P rows, whose squared residual exceeds ``tol`` times their squared scale.

    The scale is the larger of the present one and a quarter of the first one met, so that vanishing signals bring no noise.

    Args:
        squares: ``<v_mu v_mu>``, (P,).

    Returns:
        The basis, and the coordinates (P, capacity) of the vectors in it.
    """
    present = jnp.max(squares)
    scale = jnp.where(basis.used == 0, present, basis.scale)
    threshold = tol * jnp.maximum(present, 0.25 * scale)
    c = coordinates(basis, vectors)
    missing = jnp.sum(squares - jnp.sum(c * c, axis=1))

    def settled() -> _Grown:
        return basis.rows, jnp.zeros((), jnp.int32), c

    def wholly() -> _Grown:
        known, residual = jax.lax.cond(tol < TIGHT, _projected_twice, _projected, basis, vectors, c)
        values, axes = _principal(residual, None)
        lengths = _lengths(values, threshold)
        return _append(basis, known, values > threshold, combine((axes / lengths).T, residual), axes * lengths)

    def leading() -> _Grown:
        found, axes = _leading(vectors, c)
        residual = _outside(basis, combine(axes.T, vectors))
        values, turn = _principal(residual, axes)
        fresh = combine((turn / _lengths(values, threshold)).T, residual)
        more = (found[-SPARE] > threshold) | (tol < TIGHT)
        return jax.lax.cond(more, wholly, lambda: _append(basis, c, values > threshold, fresh, inner(vectors, fresh)))

    # the trace bounds the largest residual eigenvalue: below the threshold nothing can be appended
    rounding = 100 * jnp.finfo(vectors.dtype).eps * jnp.sum(squares)
    grown = leading if len(squares) >= MANY else wholly
    rows, count, c = jax.lax.cond(missing > threshold - rounding, grown, settled)
    return Basis(rows, basis.used + count, scale), c


_Grown = tuple[jax.Array, jax.Array, jax.Array]
"""Rows of a basis, how many were appended, and coordinates of the vectors."""


def _append(basis: Basis, c: jax.Array, keep: jax.Array, fresh: jax.Array, shares: jax.Array) -> _Grown:
    """The leading rows of ``fresh``, with the coordinates ``shares`` in them; those without room are lost, but counted."""
    slots = jnp.where(keep, basis.used + jnp.arange(len(keep)), basis.capacity)
    rows = basis.rows.at[..., slots, :].set(fresh, mode="drop")
    return rows, jnp.sum(keep, dtype=jnp.int32), c.at[:, slots].set(shares, mode="drop")


def _projected(basis: Basis, vectors: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coordinates and residuals."""
    return c, vectors - combine(c, basis.rows)


def _projected_twice(basis: Basis, vectors: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same after a second projection, which removes the rounding of the first."""
    return _projected(basis, vectors, c + coordinates(basis, vectors - combine(c, basis.rows)))


def _principal(residual: jax.Array, axes: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues of the residuals' Gram matrix, largest first, and its eigenvectors as columns, with a sign that is fixed in the space
    of all vectors, which ``axes`` (P, k) say where the residuals are combinations by them."""
    values, turn = jnp.linalg.eigh(gram(residual))
    values, turn = values[::-1], turn[:, ::-1]
    # an eigenvector has no sign of its own: left to rounding, other precisions and machines would meet other samples
    directions = turn if axes is None else axes @ turn
    generic = jnp.sqrt(jnp.arange(1, len(directions) + 1, dtype=values.dtype))
    return values, jnp.where(generic @ directions < 0, -turn, turn)


def _lengths(values: jax.Array, threshold: jax.Array) -> jax.Array:
    """Of the directions to append; 1 for others."""
    return jnp.sqrt(jnp.where(values > threshold, values, 1.0))


def _outside(basis: Basis, vectors: jax.Array) -> jax.Array:
    """The part that is orthogonal to the basis, of few vectors; the second projection removes the rounding of the first."""
    for _ in range(2):
        vectors = vectors - combine(coordinates(basis, vectors), basis.rows)
    return vectors


def _leading(vectors: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The FEW largest eigenvalues (from below) of the residuals' Gram matrix ``<v v'> - c c'`` and nearly its eigenvectors, orthonormal
    columns (P, FEW), at a cost linear in the number of vectors: a block Lanczos iteration from a fixed start."""
    P, size = vectors.shape[-2], FEW * BLOCKS
    start = np.linalg.qr(np.random.default_rng(20261128).standard_normal((P, FEW)))[0]

    def image_of(axes: jax.Array) -> jax.Array:
        return inner(vectors, combine(axes.T, vectors)) - c @ over_points(c, axes)

    def block(k: int, known: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        last, space, images = known
        image = image_of(last)
        space, images = (jax.lax.dynamic_update_slice(a, v, (0, FEW * k)) for a, v in ((space, last), (images, image)))
        fresh = image
        for _ in range(2):
            fresh = jnp.linalg.qr(fresh - space @ over_points(space, fresh))[0]
        return fresh, space, images

    nothing = jnp.zeros((P, size), vectors.dtype)
    _, space, images = jax.lax.fori_loop(0, BLOCKS, block, (jnp.asarray(start, vectors.dtype), nothing, nothing))
    inside = over_points(space, images)
    values, turn = jnp.linalg.eigh((inside + inside.T) / 2)
    return values[::-1][:FEW], space @ turn[:, ::-1][:, :FEW]


def enlarged(basis: Basis, capacity: int) -> Basis:
    """The same basis with more room."""
    pad = [(0, 0)] * (basis.rows.ndim - 2) + [(0, capacity - basis.capacity), (0, 0)]
    return basis._replace(rows=jnp.pad(basis.rows, pad))
