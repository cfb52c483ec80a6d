"""Error bars mean what they say (promise R9): 95 % intervals hold a far larger run."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

import tp_solver as tp

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TASK = tp.Task(np.sqrt(3) * np.linalg.cholesky([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]]), [1.0, -1.0, 0.5])


def test_intervals_hold_a_larger_run():
    """A short training run, few samples and a tolerance loose enough for biases; all kinds of quantities together."""
    theory = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.7, steps=3))

    def solved(samples, replicates, seed, method=None):
        return tp.solve(theory, TASK, 1.5, samples=samples, replicates=replicates, seed=seed, method=method)

    quantities = (("f", ()), ("loss", ()), ("Phi", (2, 3, 1)), ("G", (1, 3, 3)), ("ntk", (3,)))
    far = solved(1280, 16, 10**6, tp.March(tol=1e-3, bias=False))
    held: dict[str, list[float]] = {name: [] for name, _ in quantities}
    for seed in range(30):
        sol = solved(128, 4, seed)
        for name, args in quantities:
            low, high = sol.interval(name, *args)
            target = getattr(far, name)(*args) if args else getattr(far, name)
            rows = slice(None) if args else slice(1, None)
            held[name].append(np.mean((low <= target)[rows] & (target <= high)[rows]))
    shares = {name: np.mean(rows) for name, rows in held.items()}
    assert 0.90 <= np.mean(list(shares.values())) <= 0.98, shares


@pytest.mark.slow
def test_intervals_hold_ten_times_the_samples(monkeypatch):
    """Two hundred repeats on T3."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    script, problems = importlib.import_module("interval_coverage"), importlib.import_module("reference_problems")
    reference = problems.t3().solve(2560, None, 32, 10**6, bias=True)
    for quantity, found in script.coverage(problems.t3(), 256, 4, 200, reference).items():
        assert 0.90 <= found.entries.mean() <= 0.98, quantity
