"""What a solve shows of itself: which run, the step, the loss with its error, the rank, the time left; nothing where nobody watches."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from tqdm import tqdm

import tp_solver as tp
from tp_solver.solve.progress import Watch


def test_the_bar_says_how_sure_the_loss_is():
    out = io.StringIO()
    with tqdm(unit=" steps", file=out, mininterval=0.0, ncols=160) as bar:
        watch = Watch(bar, threading.Event())
        watch.expect(6)
        for k, losses in enumerate(([1.0, 0.5, 0.2], [1.0, 0.7, 0.2])):
            watch.begin("main", f"{k + 1} of 2")
            for step, loss in enumerate(losses, 1):
                watch(step, loss, 7)
    shown = out.getvalue()
    assert "main, 1 of 2: step 2, loss 0.5, rank 7" in shown, "a single run knows no error"
    assert "main, 2 of 2: step 2, loss 0.7 +- 0.1, rank 7" in shown
    assert "6/6" in shown, "the bar knows how many steps are to come, and so the time left"


def test_an_interrupt_waits_for_the_end_of_a_step():
    watch = Watch(None, threading.Event())
    watch(1, 0.5, 3)
    watch.pending.set()
    with pytest.raises(KeyboardInterrupt):
        watch(2, 0.4, 3)


def test_solves_are_quiet_unless_asked(capfd):
    rng = np.random.default_rng(2)
    theory = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.3, steps=4))
    task = tp.Task(rng.standard_normal((3, 5)), np.ones(3))
    for progress, wanted in ((None, ""), (True, "/48")):  # four replicates, and as many of two kinds with half their samples
        tp.solve(theory, task, samples=256, progress=progress)
        shown = capfd.readouterr().err
        assert wanted in shown and bool(shown) == bool(wanted)
