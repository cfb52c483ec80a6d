"""What several processes that step through the same run have to agree on."""

from __future__ import annotations

from collections.abc import Callable

from tp_solver.numerics.sites import told_by_any


def agreed_interrupt(tell: Callable[[], None]) -> bool:
    """Tell of some steps, and hear whether Ctrl-C was pressed in any of the processes: one that stopped alone would leave the others
    waiting for its share of the next step. All have to call this after the same step.

    Args:
        tell: tells this process; it raises KeyboardInterrupt where this process is to stop.
    """
    try:
        tell()
        pressed = False
    except KeyboardInterrupt:
        pressed = True
    return told_by_any(pressed)
