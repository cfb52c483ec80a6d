"""Functions compiled before they run, so that what they will take of memory is known and not guessed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax


class Compiled(NamedTuple):
    """A function compiled for arguments of certain shapes, with the bytes that a call takes beside its arguments."""

    call: Callable[..., Any]
    results: int
    scratch: int
    """Held until the results are there."""


def compiled(function: Callable[..., Any], *arguments: Any) -> Compiled:
    """A function made ready for arguments like these; of equal functions and shapes, the same.

    Args:
        function: from jax.jit.
        arguments: trees of arrays, or of their shapes.
    """
    leaves, structure = jax.tree.flatten(arguments)
    return _compiled(function, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))


@lru_cache(maxsize=64)
def _compiled(function: Any, structure: Any, kinds: tuple[tuple[tuple[int, ...], Any], ...]) -> Compiled:
    arguments = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds])
    call = function.lower(*arguments).compile()
    used = call.memory_analysis()
    return Compiled(call, used.output_size_in_bytes, used.temp_size_in_bytes)
