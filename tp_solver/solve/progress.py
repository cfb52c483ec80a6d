"""Progress on stderr, quiet when nobody watches, and interrupts that wait for a moment between two steps."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Tick = Callable[[int, float, int], None]


@contextmanager
def watched(show: bool | None) -> Iterator[Tick]:
    """A callback (step, loss, rank), to be called between steps: it shows progress and raises a pending KeyboardInterrupt.

    Ctrl-C inside a compiled step would lose the state that the step has taken over; here it waits for the step's end. A
    second Ctrl-C does not wait.

    Args:
        show: whether to show a bar; None asks whether stderr is a terminal.
    """
    pending = threading.Event()

    def later(number: int, frame: FrameType | None) -> None:
        if pending.is_set():
            raise KeyboardInterrupt
        pending.set()

    def check() -> None:
        if pending.is_set():
            raise KeyboardInterrupt

    with _handling_interrupts(later), _bar(show) as bar:

        def tick(step: int, loss: float, rank: int) -> None:
            bar(step, loss, rank)
            check()

        yield tick


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


@contextmanager
def _bar(show: bool | None) -> Iterator[Tick]:
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda step, loss, rank: None
        return
    from tqdm import tqdm

    with tqdm(unit=" steps", file=sys.stderr, leave=False) as bar:

        def advance(step: int, loss: float, rank: int) -> None:
            bar.set_postfix_str(f"step {step}, loss {loss:.4g}, rank {rank}", refresh=False)
            bar.update()

        yield advance
