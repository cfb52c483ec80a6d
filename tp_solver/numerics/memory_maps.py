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
GROWTH = 0.1
"""Of the maps granted, that may come to those left by the last time, before it is worth a next."""
PATIENCE = 1.0
"""Seconds between looks: many calls are shorter than a look, and a compilation takes milliseconds per map."""


@dataclass
class _Known:
    """When a look was taken last, and how many maps may be in use before programs are forgotten: forgetting them may not help."""

    looked: float = -float("inf")
    bearable: float = 0.0


_known = _Known()


def maps_in_use() -> int:
    """Memory maps of this process; 0 where the system does not tell."""
    try:
        with OURS.open("rb") as listed:
            return sum(1 for _ in listed)
    except OSError:
        return 0


def make_room_for_programs() -> None:
    """Forget what jax has compiled, for whomever, if the process holds most of the memory maps that it may; what is still needed is
    compiled again."""
    now = time.monotonic()
    if now - _known.looked < PATIENCE:
        return
    _known.looked = now
    try:
        granted = int(GRANTED.read_text())
    except (OSError, ValueError):
        return
    if maps_in_use() > max(SHARE * granted, _known.bearable):
        jax.clear_caches()
        gc.collect()
        _known.bearable = maps_in_use() + GROWTH * granted
