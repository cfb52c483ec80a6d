"""Functions compiled before they run, so that what they will take of memory is known and not guessed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax


class Compiled(NamedTuple):
    """A function compiled for arguments of certain shapes, with the bytes that a call takes beside its arguments (0 where the compiler
    does not tell)."""

    call: Callable[..., Any]
    results: int
    scratch: int
    """Held until the results are there."""


def compiled(function: Callable[..., Any], *arguments: Any) -> Compiled:
    """A function made ready for arguments like these; of equal functions, shapes and places, the same.

    Args:
        function: from jax.jit, for callers that always set the same precision.
        arguments: trees of arrays, none of them traced, or of their shapes.
    """
    leaves, structure = jax.tree.flatten(arguments)
    return _compiled(function, structure, tuple(map(_kind, leaves)))


def _kind(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and type, and where an array lies that must not be moved."""
    place = leaf.sharding if isinstance(leaf, jax.Array) and leaf.committed else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


@lru_cache(maxsize=64)
def _compiled(function: Any, structure: Any, kinds: tuple[jax.ShapeDtypeStruct, ...]) -> Compiled:
    call = function.lower(*jax.tree.unflatten(structure, kinds)).compile()
    used = call.memory_analysis()
    return Compiled(call, 0, 0) if used is None else Compiled(call, used.output_size_in_bytes, used.temp_size_in_bytes)
