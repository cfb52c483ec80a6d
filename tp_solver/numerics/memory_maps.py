"""Compiled programs and the memory maps of a process.

Every program that jax compiles holds some ten to hundred memory maps, of which Linux grants a process 65 530: a hundred marches of
different shapes would use them up, and the compiler then ends the process without a word.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from pathlib import Path

import jax

OURS, GRANTED = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
SHARE = 0.6
"""Of the maps granted, that may be in use before a computation begins: what it compiles needs some too."""
PATIENCE = 1.0
"""Seconds between looks: many calls are shorter than a look, and a compilation takes milliseconds per map."""


@dataclass
class _Looks:
    """When a look was taken last."""

    last: float = -float("inf")


_looks = _Looks()


def maps_in_use() -> int:
    """Memory maps of this process; 0 where the system does not tell."""
    try:
        with OURS.open("rb") as listed:
            return sum(1 for _ in listed)
    except OSError:
        return 0


def make_room_for_programs() -> None:
    """Forget what jax has compiled if the process holds most of the memory maps that it may: programs in use are compiled again."""
    now = time.monotonic()
    if now - _looks.last < PATIENCE:
        return
    _looks.last = now
    try:
        granted = int(GRANTED.read_text())
    except (OSError, ValueError):
        return
    if maps_in_use() > SHARE * granted:
        jax.clear_caches()
        gc.collect()
