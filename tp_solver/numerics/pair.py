"""What a Gaussian expectation of a pair is made of: a part per variance on either side, and a part per pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True, eq=False)
class Dual:
    """A pure jax function (q, qp, c) -> E[f(a) g(b)] of broadcastable arrays.

    Attributes:
        left, right: what depends on one variance, (parts, *q.shape) and (parts, *qp.shape).
        pairs: the expectation from both and (q, qp, c).
    """

    left: Callable[[jax.Array], jax.Array]
    right: Callable[[jax.Array], jax.Array]
    pairs: Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

    def __call__(self, q: jax.Array, qp: jax.Array, c: jax.Array) -> jax.Array:
        return self.pairs(self.left(q), self.right(qp), q, qp, c)


def nothing(q: jax.Array) -> jax.Array:
    """No part of one variance, (0, *q.shape)."""
    return jnp.zeros((0, *q.shape), q.dtype)


def entrywise(function: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> Dual:
    """A dual without parts of one variance."""

    def pairs(left: jax.Array, right: jax.Array, q: jax.Array, qp: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.broadcast_to(function(q, qp, c), jnp.broadcast_shapes(q.shape, qp.shape, c.shape)).astype(c.dtype)

    return Dual(nothing, nothing, pairs)
