"""A growing orthonormal basis of sampled vectors, padded to a fixed capacity so that it can live under jit.

Vectors are rows of site arrays (:mod:`tp_solver.numerics.sites`); ``<a b> = (1/S) sum_s a_s b_s`` (``theory/limit_operator.md``, LO.3).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.numerics.sites import combine, inner

FEW = 16
"""Directions that a step looks for among the residuals of many vectors."""
SPARE = 4
"""As many of them are not exact. Where more than the others have to be appended, all directions are found, at a cost that grows as
the square and the cube of the number of vectors."""
MANY = 6 * FEW
"""Vectors from which on that pays."""
POWERS = 2
"""Of the residuals' Gram matrix, to find its leading directions; their appended part is exact after any number."""


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
        # one projection leaves an error of eps / sqrt(tol) in the directions: only tight tolerances need a second
        known, residual = jax.lax.cond(tol < 1e-8, _projected_twice, _projected, basis, vectors, c)
        values, axes = _principal(residual, None)
        lengths = _lengths(values, threshold)
        return _append(basis, known, values > threshold, combine((axes / lengths).T, residual), axes * lengths)

    def leading() -> _Grown:
        axes, residual = _leading(basis, vectors, c)
        values, turn = _principal(residual, axes)
        fresh = combine((turn / _lengths(values, threshold)).T, residual)
        return jax.lax.cond(values[-SPARE] > threshold, wholly, lambda: _append(basis, c, values > threshold, fresh, inner(vectors, fresh)))

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
    values, turn = jnp.linalg.eigh(inner(residual, residual))
    values, turn = values[::-1], turn[:, ::-1]
    # an eigenvector has no sign of its own: left to rounding, other precisions and machines would meet other samples
    directions = turn if axes is None else axes @ turn
    generic = jnp.sqrt(jnp.arange(1, len(directions) + 1, dtype=values.dtype))
    return values, jnp.where(generic @ directions < 0, -turn, turn)


def _lengths(values: jax.Array, threshold: jax.Array) -> jax.Array:
    """Of the directions to append; 1 for others."""
    return jnp.sqrt(jnp.where(values > threshold, values, 1.0))


def _leading(basis: Basis, vectors: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Orthonormal axes (P, FEW) that nearly span the leading eigenvectors of the residuals' Gram matrix ``<v v'> - c c'``, and the
    residuals combined by them (FEW rows), at a cost linear in the number of vectors (randomised subspace iteration, its start fixed)."""
    start = np.random.default_rng(20261128).standard_normal((vectors.shape[-2], FEW))
    axes = jnp.asarray(np.linalg.qr(start)[0], vectors.dtype)
    for _ in range(POWERS):
        axes = jnp.linalg.qr(inner(vectors, combine(axes.T, vectors)) - c @ (c.T @ axes))[0]
    some = combine(axes.T, vectors)
    for _ in range(2):  # the second projection removes the rounding of the first
        some = some - combine(coordinates(basis, some), basis.rows)
    return axes, some


def enlarged(basis: Basis, capacity: int) -> Basis:
    """The same basis with more room."""
    pad = [(0, 0)] * (basis.rows.ndim - 2) + [(0, capacity - basis.capacity), (0, 0)]
    return basis._replace(rows=jnp.pad(basis.rows, pad))
