"""The tangent kernel of a finite net from products through its program, without stacked Jacobians.

The gradient of an output with respect to a matrix is a sum, over the uses of the matrix and over positions, of outer products
(adjoint of what the use computes) x (what it is applied to). Inner products of such gradients are products of two small Gram
matrices: for q directions of the outputs, P points and width n, ``2 n (q P)^2 + 2 n P^2`` operations per use, where stacked
Jacobians take ``2 n^2 (q P)^2``. Everything here is a pure function of arrays, for use under jit, vmap and jvp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from itertools import product
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tp_solver.finite.dense import Array, Net, Numbers, Weights, patches
from tp_solver.program.statements import Product, X


class Sides(NamedTuple):
    """A use of a matrix: df/dw = multiplier x sum over positions of left (x) right.

    ``left`` (q, rows, P, J) and ``right`` (q, columns, P, J). One direction stands for all q, and one point for all P: what a
    matrix is applied to does not depend on the direction, and the adjoint of the outputs themselves not on the point. Arrays,
    or shapes where nothing is computed.
    """

    left: Any
    right: Any


Gradients = dict[str, tuple[Sides, ...]]
"""The uses of every trained matrix."""


def adjoints(
    net: Net, weights: Weights, numbers: Numbers, x: Array, directions: Array, names: Iterable[str]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """All variables at inputs x (D, P), and the gradients of ``sum_k directions[q, k] f_k`` with respect to the named ones.

    Returns:
        values: every variable, (n, P J).
        adjoints: (q, n, P J) for every name.
    """
    shapes = jax.eval_shape(lambda: net.variables(weights, numbers, x))
    zeros = {name: jnp.zeros(shapes[name].shape, x.dtype) for name in names}

    def predictions(shifts: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        values = net.variables(weights, numbers, x, shifts)
        return net.outputs_of(values, numbers), values

    f, pull, values = jax.vjp(predictions, zeros, has_aux=True)
    # points do not mix, so the gradient of a sum over points holds every point's own gradient
    seeds = jnp.broadcast_to(directions[:, None, :].astype(x.dtype), (len(directions), *f.shape))
    (each,) = jax.vmap(pull)(seeds)
    return values, each


def gradients(net: Net, weights: Weights, numbers: Numbers, x: Array, directions: Array) -> Gradients:
    """The gradients of ``sum_k directions[q, k] f_k`` at inputs x (D, P) with respect to every matrix, as outer products."""
    inner = [s.out for s in net.program.products() if s not in net.program.output_terms]
    values, each = adjoints(net, weights, numbers, x, directions, inner)
    return outer_products(net, values, each, directions, numbers, x.shape[1])


def outer_products(
    net: Net, values: Mapping[str, Array], adjoint: Mapping[str, Array], directions: Array, numbers: Numbers, points: int
) -> Gradients:
    """The gradients from variables and adjoints of all products but those that the output is the sum of, whose adjoint is the
    direction itself."""
    out: Gradients = {}
    directions = jnp.asarray(directions, values[X].dtype)
    for s in net.program.products():
        last = s in net.program.output_terms
        above = (directions / numbers.gamma0)[:, :, None, None] if last else _by_point(adjoint[s.out], points)
        below = _by_point(values[s.arg][None], points)
        sides = (below, _seen(s, above)) if s.transpose else (above, _seen(s, below))
        out[s.matrix] = (*out.get(s.matrix, ()), Sides(*sides))
    return out


def _by_point(v: Array, points: int) -> Array:
    """(q, n, P J) as (q, n, P, J)."""
    return v.reshape(*v.shape[:2], points, -1)


def _seen(s: Product, v: Array) -> Array:
    """What meets the columns of the matrix: through a window, the patch of every output position, the offsets among the rows."""
    if s.window is None:
        return v
    q, n, points, _ = v.shape
    seen = patches(s.window, v.reshape(q * n, -1)) * s.window.count**-0.5
    return seen.reshape(q, n, points, -1, s.window.count).transpose(0, 1, 4, 2, 3).reshape(q, n * s.window.count, points, -1)


def shapes(net: Net, width: int, channels: int, directions: int, points: int) -> Gradients:
    """What :func:`gradients` will look like, in shapes alone."""
    grids = net.program.grids()
    out: Gradients = {}
    for s in net.program.products():
        shape = net.shape(s.matrix, width, channels)
        rows, columns = shape[:2] if s.window is None or s.window.shared else shape[1:3]
        above = (directions, columns if s.transpose else rows, points, prod(grids[s.out]))
        below = (1, rows if s.transpose else columns, points, prod(grids[s.arg]))
        if s.window is not None:
            below = (1, columns * s.window.count, points, prod(grids[s.out]))
        if s in net.program.output_terms:
            above = (directions, rows, 1, 1)
        sides = (below, above) if s.transpose else (above, below)
        out[s.matrix] = (*out.get(s.matrix, ()), Sides(*(jax.ShapeDtypeStruct(v, jnp.float32) for v in sides)))
    return out


def kernel(net: Net, one: Gradients, two: Gradients, numbers: Numbers) -> Array:
    """``sum_j rate_j <df_q(x)/dw^j, df_r(x')/dw^j>``, shape (P, q, P', r); the rates are gamma0^2 eta_j n^-c_j."""
    return jnp.transpose(_summed(net, one, two, numbers, _full), (1, 0, 3, 2))


def trace(net: Net, one: Gradients, two: Gradients, numbers: Numbers) -> Array:
    """The same, summed over q = r: (P, P')."""
    return _summed(net, one, two, numbers, _traced)


def _summed(net: Net, one: Gradients, two: Gradients, numbers: Numbers, overlap: Callable[[Sides, Sides, Route], Array]) -> Array:
    total: Any = 0.0
    for m, a, b in pairs_of_uses(one, two):
        scale = numbers.tangent[m] * numbers.multiplier[m] ** 2
        total = total + scale * overlap(a, b, route(net, m, a, b))
    return total


def pairs_of_uses(one: Gradients, two: Gradients) -> Iterator[tuple[str, Sides, Sides]]:
    """All pairs of uses of the same matrix."""
    return ((m, a, b) for m in one for a, b in product(one[m], two[m]))


class Route(Enum):
    """How the inner products of two sums of outer products are taken."""

    GRAMS = "products of two Gram matrices, over pairs of positions"
    STACKED = "the gradients written out: cheaper where positions are many and a matrix is small"
    OWN = "Gram matrices position by position, where every position has a matrix of its own"


def route(net: Net, matrix: str, a: Sides, b: Sides) -> Route:
    """The way with the fewest multiplications; shapes are enough for ``a`` and ``b``."""
    if any(s.window is not None and not s.window.shared for s in net.program.products() if s.matrix == matrix):
        return Route.OWN
    rows, columns = a.left.shape[1], a.right.shape[1]
    grams = a.left.size * b.left.size // rows + a.right.size * b.right.size // columns + gram_size(a, b)
    entries = [directions(s) * s.right.shape[2] for s in (a, b)]
    positions = a.right.shape[3]
    stacked = rows * columns * (positions * sum(entries) + prod(entries))
    return Route.STACKED if positions > 1 and stacked < grams else Route.GRAMS


def directions(s: Sides) -> int:
    """q."""
    return max(s.left.shape[0], s.right.shape[0])


def gram_size(a: Sides, b: Sides) -> int:
    """Entries of a Gram matrix over directions, points and positions."""
    return prod(directions(s) * s.right.shape[2] * s.right.shape[3] for s in (a, b))


def _full(a: Sides, b: Sides, way: Route) -> Array:
    """(q, P, r, P')."""
    match way:
        case Route.STACKED:
            return jnp.einsum("qpnc,rsnc->qprs", _stacked(a), _stacked(b))
        case Route.GRAMS:
            return jnp.sum(_gram(a.left, b.left) * _gram(a.right, b.right), axis=(2, 5))
        case Route.OWN:
            return jnp.sum(_own_gram(a.left, b.left) * _own_gram(a.right, b.right), axis=2)


def _traced(a: Sides, b: Sides, way: Route) -> Array:
    """(P, P')."""
    if a.right.shape[0] == b.right.shape[0] == 1:
        a, b = (Sides(_directions_as_rows(s.left), s.right) for s in (a, b))
    elif a.left.shape[0] == b.left.shape[0] == 1:
        a, b = (Sides(s.left, _directions_as_rows(s.right)) for s in (a, b))
    match way:
        case Route.STACKED:
            return jnp.einsum("qpnc,qsnc->ps", _stacked(a), _stacked(b))
        case Route.GRAMS:
            return jnp.sum(_common(_gram(a.left, b.left)) * _common(_gram(a.right, b.right)), axis=(0, 2, 4))
        case Route.OWN:
            return jnp.sum(_common(_own_gram(a.left, b.left)) * _common(_own_gram(a.right, b.right)), axis=(0, 2))


def _gram(u: Array, v: Array) -> Array:
    """From (q, n, P, J) and (r, n, P', J') to (q, P, J, r, P', J')."""
    flat = [a.transpose(0, 2, 3, 1).reshape(-1, a.shape[1]) for a in (u, v)]
    return (flat[0] @ flat[1].T).reshape(len(u), *u.shape[2:], len(v), *v.shape[2:])


def _own_gram(u: Array, v: Array) -> Array:
    """The same at equal positions: (q, P, J, r, P')."""
    return jnp.einsum("qnpj,rnsj->qpjrs", u, v)


def _stacked(s: Sides) -> Array:
    """The gradient itself, (q, P, rows, columns)."""
    both = [jnp.broadcast_to(v, (directions(s), v.shape[1], *s.right.shape[2:])) for v in s]
    return jnp.einsum("qnpj,qcpj->qpnc", *both)


def _directions_as_rows(v: Array) -> Array:
    """(1, q n, P, J): a sum over directions is part of the inner product."""
    return v.reshape(1, -1, *v.shape[2:])


def _common(gram: Array) -> Array:
    """One axis from two of directions, of which one is single: (q, P, J, r, ...) as (q r, P, J, ...)."""
    both = jnp.moveaxis(gram, 3, 1)
    return both.reshape(-1, *both.shape[2:])


def entries_made(net: Net, matrix: str, a: Sides, b: Sides) -> int:
    """Entries of the arrays between the gradients and their inner product; shapes are enough for ``a`` and ``b``."""
    way = route(net, matrix, a, b)
    if way is Route.STACKED:
        return sum(directions(s) * s.right.shape[2] * s.left.shape[1] * s.right.shape[1] for s in (a, b))
    grams = sum(prod(len_ * points * positions for len_, _, points, positions in (u.shape, v.shape)) for u, v in zip(a, b, strict=True))
    return grams // a.right.shape[3] if way is Route.OWN else grams
