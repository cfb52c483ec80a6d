"""Progress on stderr, quiet when nobody watches, and interrupts that wait for a moment between two steps."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import numpy as np


class Told(Protocol):
    """Who is told of every step of a solve, between steps."""

    def expect(self, steps: int) -> None:
        """So many more steps are to come."""
        ...

    def begin(self, group: str, run: str) -> None:
        """A run begins, one of a group of runs that differ in their random numbers alone."""
        ...

    def __call__(self, step: int, loss: float, rank: int) -> None: ...


@dataclass
class Watch:
    """Shows progress, and raises a pending KeyboardInterrupt.

    Attributes:
        bar: a tqdm bar, or None where nobody watches.
        pending: set by Ctrl-C.
        group, run: what is being done.
        losses: of the runs of the group, the present one last: step -> loss.
    """

    bar: Any
    pending: threading.Event
    group: str = ""
    run: str = ""
    losses: list[dict[int, float]] = field(default_factory=list)

    def expect(self, steps: int) -> None:
        """So many more steps are to come: the bar knows the time left."""
        if self.bar is not None:
            self.bar.total = (self.bar.total or 0) + steps
            self.bar.refresh()

    def begin(self, group: str, run: str) -> None:
        """A run begins, one of a group of runs that differ in their random numbers alone."""
        self.losses = [*self.losses, {}] if group == self.group else [{}]
        self.group, self.run = group, f"{group}, {run}: "

    def __call__(self, step: int, loss: float, rank: int) -> None:
        if self.bar is not None:
            if self.losses:
                self.losses[-1][step] = loss
            self.bar.set_postfix_str(f"{self.run}step {step}, loss {loss:.4g}{self._error(step)}, rank {rank}", refresh=False)
            self.bar.update()
        if self.pending.is_set():
            raise KeyboardInterrupt

    def _error(self, step: int) -> str:
        """Standard error of the loss, from the runs that have come this far."""
        found = [run[step] for run in self.losses if step in run]
        return f" +- {np.std(found, ddof=1) / np.sqrt(len(found)):.1g}" if len(found) > 1 else ""


@contextmanager
def watched(show: bool | None) -> Iterator[Watch]:
    """What a solve tells of its steps.

    Ctrl-C inside a compiled step would lose the state that the step has taken over; here it waits for the step's end. A
    second Ctrl-C does not wait.

    Args:
        show: whether to show a bar on stderr; None asks whether that is a terminal.
    """
    pending = threading.Event()

    def later(number: int, frame: FrameType | None) -> None:
        if pending.is_set():
            raise KeyboardInterrupt
        pending.set()

    with _handling_interrupts(later):
        if not (sys.stderr.isatty() if show is None else show):
            yield Watch(None, pending)
            return
        from tqdm import tqdm

        with tqdm(unit=" steps", file=sys.stderr, leave=False) as bar:
            yield Watch(bar, pending)


@contextmanager
def _handling_interrupts(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT for a while; other threads than the main one never receive it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
