"""What several processes that step through the same run have to agree on."""

from __future__ import annotations

from collections.abc import Callable

from tp_solver.numerics.sites import told_by_any


def agreed_interrupt(tick: Callable[[int, float, int], None], step: int, loss: float, rank: int) -> bool:
    """Tell of a step, and hear whether Ctrl-C was pressed in any of the processes: one that stopped alone would leave the others
    waiting for its share of the next step. All have to call this after the same step.

    Args:
        tick: who is told; it raises KeyboardInterrupt where this process is to stop.
        step, loss, rank: what it is told.
    """
    try:
        tick(step, loss, rank)
        pressed = False
    except KeyboardInterrupt:
        pressed = True
    return told_by_any(pressed)
