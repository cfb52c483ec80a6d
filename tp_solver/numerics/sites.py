"""Averages over sites that lie in blocks on one or more devices, in an order that does not depend on how many.

A site array holds vectors as rows: (P, S), or (blocks, P, S / blocks) with the blocks spread over the devices of a mesh. A sum over
sites is one sum per block, then halves of the blocks are added until one is left, so that every number of devices gives the same bits
(``theory/limit_operator.md``, LO.9). Functions here are the only ones that add over sites; outside a mesh the blocks all lie on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "sites"
SPREAD = PartitionSpec(AXIS)
"""How a site array in blocks lies on a mesh."""
SAME = PartitionSpec()
"""How everything else does: the same on all devices."""
BLOCK = 512
"""Samples of a block: products with fewer waste time, more leave devices idle, for which eight blocks are enough at first."""
LARGEST_BLOCK = 1024
LANES = 8
MANY = 128
"""Vectors whose products the compiler may mix with others."""
TILE = 16
"""Rows of a matrix whose products are even."""
PORTION = 64
"""Points of a sum that one thread makes."""


def block_count(samples: int) -> int:
    """Number of blocks for so many samples, in antithetic pairs: it depends on nothing else, lest the bits depend on the machine."""
    wanted = max(min(8, samples // BLOCK), samples // LARGEST_BLOCK)
    blocks = 1
    while blocks < wanted and (samples // 2) % (2 * blocks) == 0:
        blocks *= 2
    return blocks


def in_blocks(a: np.ndarray, blocks: int) -> np.ndarray:
    """From (P, S), antithetic partners S / 2 apart, to (blocks, P, S / blocks), where partners are half a block apart."""
    rows, sites = a.shape
    return a.reshape(rows, 2, blocks, sites // (2 * blocks)).transpose(2, 0, 1, 3).reshape(blocks, rows, sites // blocks)


@dataclass(frozen=True)
class Placement:
    """Where the sites of a run lie: in so many blocks on the devices of a mesh, or of one device (None); all in one, (P, S), for 0."""

    blocks: int = 0
    mesh: Mesh | None = None

    @staticmethod
    def of(samples: int, devices: Sequence[jax.Device]) -> Placement:
        """Sampled sites, on as many of the devices as share the blocks evenly, two or more each: the compiler rounds otherwise with one."""
        blocks = block_count(samples)
        count = max((n for n in range(1, min(blocks // 2, len(devices)) + 1) if blocks % n == 0), default=1)
        return Placement(blocks, Mesh(np.array(devices[:count]), (AXIS,)) if count > 1 else None)

    def sites(self, a: np.ndarray, dtype: Any) -> jax.Array:
        """A site array from the host's (P, S)."""
        return self.put(np.asarray(in_blocks(a, self.blocks) if self.blocks else a, dtype))

    def put(self, a: np.ndarray) -> jax.Array:
        """An array of the host on the devices, whichever process they belong to: one in blocks spread, any other on all of them."""
        if self.mesh is None:
            return jnp.asarray(a)
        return jax.make_array_from_callback(a.shape, NamedSharding(self.mesh, SPREAD if a.ndim == 3 else SAME), lambda index: a[index])


def specs(tree: Any) -> Any:
    """How the arrays of a tree lie on a mesh, as :meth:`Placement.put` puts them."""
    return jax.tree.map(lambda a: SPREAD if jnp.ndim(a) == 3 else SAME, tree)


def fetched(a: Any) -> np.ndarray:
    """A device array on the host; where other processes hold parts of it, all of them have to call this."""
    if isinstance(a, jax.Array) and isinstance(a.sharding, NamedSharding) and not (a.is_fully_addressable or a.is_fully_replicated):
        a = _on_all(a.sharding.mesh)(a)
    return np.asarray(a)


@cache
def _on_all(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """An array on all devices of a mesh; kept, since jax compiles a new function at every call."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, SAME))


def told_by_first(flag: bool) -> bool:
    """What the first of several processes says; all have to call this."""
    return bool(_flags(flag)[0])


def told_by_any(flag: bool) -> bool:
    """Whether any of several processes says so; all have to call this."""
    return bool(_flags(flag).any())


def _flags(flag: bool) -> np.ndarray:
    """What all processes say, once per device, those of the first one first."""
    if jax.process_count() == 1:
        return np.array([flag])
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    return fetched(jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, SPREAD), lambda index: np.array([flag])))


def together(a: jax.Array) -> jax.Array:
    """All blocks of an array whose first axis counts those of this device."""
    if AXIS in jax.sharding.get_abstract_mesh().axis_names:
        return jax.lax.all_gather(a, AXIS, axis=0, tiled=True)
    return a


def _added(parts: jax.Array, axes: int) -> tuple[jax.Array, int]:
    """Sum over the blocks of an array whose last ``axes`` axes remain, and the number of blocks."""
    if parts.ndim == axes:
        return parts, 1
    # the barriers keep the compiler from merging this sum with what comes before and after, which rounds otherwise on other devices;
    # and a reduction it makes part of the products in spite of them, so that halves are added (blocks are a power of two)
    every = jax.lax.optimization_barrier(together(parts))
    blocks = len(every)
    while len(every) > 1:
        every = every[: len(every) // 2] + every[len(every) // 2 :]
    return jax.lax.optimization_barrier(every[0]), blocks


def _apart(vectors: int, a: jax.Array, b: jax.Array) -> jax.Array:
    """``a @ b``, of many vectors as a computation of its own: the compiler makes sums over blocks, and what is added to a product, part of
    the product where shapes suggest it, which rounds otherwise on other devices. A barrier does not keep it from that, the border of a
    conditional does; of few vectors no such case was met, and they are not worth the border."""
    if b.ndim == 2 or vectors < MANY:
        return a @ b
    shape, some = (*a.shape[:-1], b.shape[-1]), b[(0,) * b.ndim]
    return jax.lax.cond(some == some, lambda: a @ b, lambda: jnp.full(shape, jnp.nan, b.dtype))


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """<a_mu b_nu>, (P, R), for the rows of two site arrays."""
    total, blocks = _added(_apart(max(a.shape[-2], b.shape[-2]), a, jnp.swapaxes(b, -1, -2)), 2)
    return total / (blocks * a.shape[-1])


def gram(a: jax.Array) -> jax.Array:
    """<a_mu a_nu>, (P, P)."""
    rows = a.shape[-2]
    # where the number of rows is odd, threads share products otherwise
    padded = jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, -rows % TILE), (0, 0)])
    return inner(padded, padded)[:rows, :rows]


def mean(a: jax.Array) -> jax.Array:
    """<a_mu>, (P,)."""
    # as a product of matrices: the order of a plain sum depends on how many blocks there are beside
    values, ones = jax.lax.optimization_barrier((a, jnp.ones((a.shape[-1], LANES), a.dtype)))
    total, blocks = _added((values @ ones)[..., 0], 1)
    return total / (blocks * a.shape[-1])


def combine(c: jax.Array, rows: jax.Array) -> jax.Array:
    """The combinations (P, R) of the rows of a site array."""
    return _apart(max(c.shape), jnp.broadcast_to(c, (*rows.shape[:-2], *c.shape)), rows)


def over_points(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a.T @ b`` of (P, R) and (P, K), the same on all devices: in portions, as the threads that share a long sum would divide it, and
    their number depends on that of the devices."""
    (P, R), K = a.shape, b.shape[1]
    if P <= PORTION:
        return a.T @ b
    count = -(-P // PORTION)
    pad = ((0, count * PORTION - P), (0, 0))
    a, b = jnp.pad(a, pad).reshape(count, PORTION, R), jnp.pad(b, pad).reshape(count, PORTION, K)
    return jnp.sum(jnp.swapaxes(a, 1, 2) @ b, axis=0)


def whole(a: jax.Array) -> jax.Array:
    """(P, S) from a site array, on every device."""
    if a.ndim == 2:
        return a
    every = together(a)
    return jnp.moveaxis(every, 0, 1).reshape(every.shape[1], -1)


def antithetic_noise(key: jax.Array, like: jax.Array, even: bool) -> jax.Array:
    """Standard Gaussian noise for a site array in blocks, equal (or opposite, where not even) on antithetic partners."""
    blocks, rows, sites = like.shape
    meshed = AXIS in jax.sharding.get_abstract_mesh().axis_names
    first = jax.lax.axis_index(AXIS) * blocks if meshed else 0
    keys = jax.vmap(lambda block: jax.random.fold_in(key, block))(first + jnp.arange(blocks))
    half = jax.vmap(lambda k: jax.random.normal(k, (rows, sites // 2), like.dtype))(keys)
    return jnp.concatenate([half, half if even else -half], axis=-1)
