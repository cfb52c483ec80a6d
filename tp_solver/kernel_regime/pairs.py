"""Second moments over pairs of data points and pairs of positions, and what layers over positions do to them.

Trailing axes of an array run over positions: none for programs without a grid; the positions i and j of both points where pooling
mixes them ("all pairs"); one position i = j where nothing does ("same position": exact, as windows then map the diagonal to itself).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.kernel_regime.recording import Kind, piece
from tp_solver.program.positions import Grid, Padding, Window

Array = jax.Array


class Pairs(NamedTuple):
    """<u v> for u and v at the points of two sets: of set 1 each with itself (n1, ...), of set 2 likewise (n2, ...), and of every
    point of set 1 with every point of set 2 (n1, n2, ...); u is read at the first point and position, v at the second."""

    left: Array
    right: Array
    cross: Array

    def mapped(self, function: Callable[[Array], Array]) -> Pairs:
        """The same function of all three."""
        return Pairs(*(function(a) for a in self))


Points = tuple[Array, Array]
"""A number for every point of both sets, (n1, *grid) and (n2, *grid)."""


class Positions(NamedTuple):
    """How positions are stored: the number of axes of the grid, and whether all pairs of positions are kept."""

    rank: int
    all_pairs: bool

    @property
    def axes(self) -> int:
        """Trailing axes of an array."""
        return self.rank * (2 if self.all_pairs else 1)


@piece(Kind.MIXING, static=(2, 3))
def inputs(x1: Array, x2: Array, grid: Grid, kept: Positions) -> Pairs:
    """x . x' over channels, for inputs (n, D) of both sets."""
    if not grid:
        return Pairs(jnp.sum(x1 * x1, axis=1), jnp.sum(x2 * x2, axis=1), jnp.matmul(x1, x2.T, precision=jax.lax.Precision.HIGHEST))
    u, v = (x.reshape(len(x), -1, x.shape[1] // prod(grid)) for x in (x1, x2))
    own, cross = ("aic,ajc->aij", "aic,bjc->abij") if kept.all_pairs else ("aic,aic->ai", "aic,bic->abi")
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    tail = grid + grid if kept.all_pairs else grid
    return Pairs(
        exact(own, u, u).reshape(len(x1), *tail),
        exact(own, v, v).reshape(len(x2), *tail),
        exact(cross, u, v).reshape(len(x1), len(x2), *tail),
    )


@piece(Kind.ENTRYWISE, static=(1,))
def constant(like: Pairs, kept: Positions) -> Pairs:
    """Ones, the same at all positions, for the points of ``like``; of all pairs one entry, to be broadcast."""
    left, right = (_module(a).ones((len(a),) + (1,) * kept.axes, a.dtype) for a in (like.left, like.right))
    return Pairs(left, right, _module(like.cross).ones((1, 1) + (1,) * kept.axes, like.cross.dtype))


@piece(Kind.ENTRYWISE, static=(1,))
def vanishing(like: Pairs, kept: Positions) -> Pairs:
    """Zeros without positions, for the points of ``like``."""
    return like.mapped(lambda a: _module(a).zeros(a.shape[: a.ndim - kept.axes], a.dtype))


def _module(a: Array) -> ModuleType:
    """What makes arrays of the same kind."""
    return np if isinstance(a, np.ndarray) else jnp


@piece(Kind.ENTRYWISE)
def scaled(factor: float, moments: Pairs) -> Pairs:
    """A multiple."""
    return moments.mapped(lambda a: factor * a)


@piece(Kind.ENTRYWISE)
def times(one: Pairs, two: Pairs, factor: float) -> Pairs:
    """A multiple of the product entry by entry, in one pass through memory."""
    return Pairs(*(factor * a * b for a, b in zip(one, two, strict=True)))


@piece(Kind.ENTRYWISE)
def total(terms: Sequence[Pairs]) -> Pairs:
    """The sum of one or more."""
    return Pairs(*(sum(parts[1:], start=parts[0]) for parts in zip(*terms, strict=True)))


@piece(Kind.ENTRYWISE, static=(1, 2))
def seen(values: Points, first: bool, kept: Positions) -> Pairs:
    """Numbers of points as those of pairs, read at the first or at the second point and position, broadcastable."""
    left, right = map(sides(kept)[0 if first else 1], values)
    return Pairs(left, right, left[:, None] if first else right[None, :])


@piece(Kind.MIXING, static=(2,))
def contracted(one: Pairs, two: Pairs, kept: Positions) -> Pairs:
    """Products summed over the positions that are kept."""
    axes = tuple(range(-kept.axes, 0))
    return Pairs(*(jnp.sum(a * b, axis=axes) for a, b in zip(one, two, strict=True)))


@piece(Kind.ENTRYWISE)
def tangent(terms: Sequence[tuple[float, Sequence[Sequence[Pairs]]]]) -> Pairs:
    """The sum of rate times products, over terms (rate, products of factors): one pass through memory."""

    def part(k: int) -> Array:
        products: Iterable[Any] = (rate * sum(prod(f[k] for f in factors) for factors in uses) for rate, uses in terms)
        return sum(products)

    return Pairs(part(0), part(1), part(2))


@piece(Kind.ENTRYWISE)
def stacked(moments: Sequence[Pairs]) -> Pairs:
    """One axis more, in front."""
    return Pairs(*(jnp.stack(list(parts)) for parts in zip(*moments, strict=True)))


@piece(Kind.MIXING, static=(1,))
def summed(moments: Pairs, kept: Positions) -> Pairs:
    """The sum over equal positions."""
    axes = tuple(range(-kept.rank, 0))
    return moments.mapped(lambda a: jnp.sum(same_position(a, kept), axis=axes))


@piece(Kind.MIXING, static=(1,))
def averaged_over_positions(moments: Pairs, kept: Positions) -> Pairs:
    """The mean over equal positions."""
    axes = tuple(range(-kept.rank, 0))
    return moments.mapped(lambda a: jnp.mean(same_position(a, kept), axis=axes))


def variances(moments: Pairs, kept: Positions) -> tuple[Array, Array]:
    """<u u> of the points of both sets at each position, (n, *grid)."""
    return same_position(moments.left, kept), same_position(moments.right, kept)


def same_position(a: Array, kept: Positions) -> Array:
    """The entries i = j, (..., *grid)."""
    return _diagonal(a, kept.rank) if kept.all_pairs else a


def _diagonal(a: Array, rank: int) -> Array:
    lead, grid = a.shape[: a.ndim - 2 * rank], a.shape[a.ndim - rank :]
    count = prod(grid)
    return jnp.diagonal(a.reshape(*lead, count, count), axis1=-2, axis2=-1).reshape(*lead, *grid)


def sides(kept: Positions) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """What turns variances (n, *grid) into functions of the first, and of the second position of pairs."""
    if not kept.all_pairs or kept.rank == 0:
        return (lambda q: q), (lambda q: q)
    single = (1,) * kept.rank
    return (lambda q: q.reshape(*q.shape, *single)), (lambda q: q.reshape(q.shape[0], *single, *q.shape[1:]))


@piece(Kind.MIXING, static=(0, 2, 3))
def through(window: Window, moments: Pairs, kept: Positions, transpose: bool) -> Pairs:
    """What a matrix seen through a window does to the moments of its argument, its scale apart: the mean over offsets a of the
    moments at (i + a, j + a). Transposed, the adjoint of that linear map. Without axes of positions all of them are the same."""
    if kept.rank == 0:
        return moments
    seen = partial(_seen, window, kept)
    moments = _at_every_position(moments, (window.outputs if transpose else window.inputs) * (2 if kept.all_pairs else 1))
    if not transpose:
        return moments.mapped(seen)
    return moments.mapped(lambda a: _adjoint(seen, a, window.inputs * (2 if kept.all_pairs else 1)))


@piece(Kind.MIXING, static=(0, 2, 3, 4))
def averaged(window: Window, moments: Pairs, kept: Positions, first: bool, transpose: bool) -> Pairs:
    """The mean over a window of the first (second) position; transposed, the adjoint of that linear map."""
    if kept.rank == 0:
        return moments
    lead = -2 * kept.rank if first else -kept.rank

    def mean(a: Array) -> Array:
        for axis in range(kept.rank):
            a = _summed(window, axis, (lead + axis,), a) / window.size[axis]
        return a

    def spread(a: Array) -> Array:
        shape = list(a.shape[a.ndim - 2 * kept.rank :])
        start = 0 if first else kept.rank
        shape[start : start + kept.rank] = window.inputs
        return _adjoint(mean, a, tuple(shape))

    positions = window.outputs if transpose else window.inputs
    moments = _at_every_position(moments, positions + (1,) * kept.rank if first else positions)
    return moments.mapped(spread if transpose else mean)


def _at_every_position(moments: Pairs, positions: Grid) -> Pairs:
    """With an entry for each of these positions: what is the same at all of them has one."""
    return moments.mapped(lambda a: jnp.broadcast_to(a, jnp.broadcast_shapes(a.shape, positions)))


def _adjoint(linear: Callable[[Array], Array], a: Array, positions: Grid) -> Array:
    argument = jax.ShapeDtypeStruct(a.shape[: a.ndim - len(positions)] + positions, a.dtype)
    (out,) = jax.linear_transpose(linear, argument)(a)
    return out


def _seen(window: Window, kept: Positions, a: Array) -> Array:
    if kept.all_pairs and not window.shared:  # different matrices are independent: only i = j is left
        d = _seen(window, Positions(kept.rank, False), _diagonal(a, kept.rank))
        lead, count = d.shape[: d.ndim - kept.rank], prod(window.outputs)
        full = d.reshape(*lead, count)[..., None] * jnp.eye(count, dtype=a.dtype)
        return full.reshape(*lead, *window.outputs, *window.outputs)
    for axis in range(kept.rank):
        axes = (axis - 2 * kept.rank, axis - kept.rank) if kept.all_pairs else (axis - kept.rank,)
        a = _summed(window, axis, axes, a) / window.size[axis]
    return a


def _summed(window: Window, axis: int, axes: tuple[int, ...], a: Array) -> Array:
    """Sum over the offsets along one axis of the grid, which moves along all of ``axes`` of the array at once."""
    n, k, s, low, m = (values[axis] for values in (window.inputs, window.size, window.stride, window.before, window.outputs))
    if k == n and m == 1:  # the whole axis
        if len(axes) == 1:
            return jnp.sum(a, axis=axes[0], keepdims=True)
        return jnp.expand_dims(jnp.sum(jnp.diagonal(a, axis1=axes[0], axis2=axes[1]), axis=-1), _places(a, axes))
    high = (m - 1) * s + k - n - low
    for place in axes:
        a = _extended(a, place, low, high, window.padding)
    total = None
    for offset in range(k):
        part = a
        for place in axes:
            part = jax.lax.slice_in_dim(part, offset, offset + (m - 1) * s + 1, s, axis=place % a.ndim)
        total = part if total is None else total + part
    assert total is not None
    return total


def _places(a: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis % a.ndim for axis in axes)


def _extended(a: Array, axis: int, low: int, high: int, padding: Padding) -> Array:
    """The array with what lies beyond the edges of an axis."""
    axis %= a.ndim
    if padding is Padding.CIRCULAR:
        n = a.shape[axis]
        parts = [jax.lax.slice_in_dim(a, n - low, n, axis=axis), a, jax.lax.slice_in_dim(a, 0, max(high, 0), axis=axis)]
        return jnp.concatenate(parts, axis=axis)
    widths = [(0, 0)] * a.ndim
    widths[axis] = (low, max(high, 0))
    return jnp.pad(a, widths)
