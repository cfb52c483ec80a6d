"""Progress on stderr, quiet when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(show: bool | None) -> Iterator[Callable[[int, float, int], None]]:
    """A callback (step, loss, rank) that shows the march's progress; ``show=None`` asks whether stderr is a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda step, loss, rank: None
        return
    from tqdm import tqdm

    with tqdm(unit=" steps", file=sys.stderr, leave=False) as bar:

        def tick(step: int, loss: float, rank: int) -> None:
            bar.set_postfix_str(f"step {step}, loss {loss:.4g}, rank {rank}", refresh=False)
            bar.update()

        yield tick
