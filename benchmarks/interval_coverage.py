"""How often the reported 95 % intervals hold a far larger run (promise R9): problem T3, predictions, losses and kernels.

Every repeat is a solve of its own seed; the reference has ten times the samples, a tighter tolerance and eight times the
replicates. Prints a Markdown table. ``--quick`` makes few repeats, to check that the script runs.

    python benchmarks/interval_coverage.py [--quick] [--samples 256] [--repeats 200] [--replicates 4]
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass

import numpy as np

# before jax starts: threads that wait for each other burn processor time, for small arrays more than for large ones
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

from reference_problems import Problem, t3

import tp_solver as tp


@dataclass(frozen=True)
class Quantity:
    """A series, or a kernel at given layer and times."""

    name: str
    args: tuple[int, ...] = ()

    def seen(self, a: np.ndarray) -> np.ndarray:
        """Of a series all times but the first, when predictions are zero exactly."""
        return a if self.args else a[1:]

    def value(self, sol: tp.Solution) -> np.ndarray:
        return self.seen(getattr(sol, self.name)(*self.args) if self.args else getattr(sol, self.name))

    def interval(self, sol: tp.Solution) -> tuple[np.ndarray, np.ndarray]:
        low, high = sol.interval(self.name, *self.args)
        return self.seen(low), self.seen(high)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})" if self.args else self.name


SERIES = tuple(Quantity(name) for name in ("f", "loss", "f_test", "loss_test"))
TWO_TIMES = ((1, 16, 16), (2, 16, 16), (2, 16, 8))
KERNELS = tuple(Quantity(name, args) for name in ("Phi", "G") for args in TWO_TIMES) + tuple(Quantity("ntk", (t,)) for t in (0, 4, 16))


@dataclass(frozen=True)
class Coverage:
    """Of one quantity: per entry, the share of repeats whose interval held the reference; rms error and half width."""

    entries: np.ndarray
    error: float
    width: float


def coverage(problem: Problem, samples: int, replicates: int, repeats: int, reference: tp.Solution) -> dict[Quantity, Coverage]:
    """Solve with seeds 0, 1, ... and look whether the intervals hold the reference."""
    held: dict[Quantity, list[np.ndarray]] = {q: [] for q in (*SERIES, *KERNELS)}
    size: dict[Quantity, list[tuple[float, float]]] = {q: [] for q in held}
    for seed in range(repeats):
        sol = problem.solve(samples, None, replicates, seed, bias=True)
        for q in held:
            low, high = q.interval(sol)
            target = q.value(reference)
            held[q].append(((low <= target) & (target <= high)).ravel())
            size[q].append((float(np.mean((q.value(sol) - target) ** 2)), float(np.mean(((high - low) / 2) ** 2))))
    return {q: Coverage(np.mean(held[q], axis=0), *map(float, np.sqrt(np.mean(size[q], axis=0)))) for q in held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, to check that the script runs")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--replicates", type=int, default=4)
    given = parser.parse_args()
    repeats, copies = (4, 4) if given.quick else (given.repeats, 8 * given.replicates)

    start = time.process_time()
    reference = t3().solve(10 * given.samples, None, copies, seed=10**6, bias=True)
    rows = coverage(t3(), given.samples, given.replicates, repeats, reference)
    seconds = time.process_time() - start
    print(
        f"{repeats} repeats of {given.replicates} x {given.samples} samples against {copies} x {10 * given.samples}: "
        f"{seconds:.0f} processor seconds.\n"
    )
    print("| quantity | entries | covered | worst entry | best entry | rms error | rms half width |\n|---|---|---|---|---|---|---|")
    for q, row in rows.items():
        e = row.entries
        print(f"| {q} | {e.size} | {e.mean():.1%} | {e.min():.1%} | {e.max():.1%} | {row.error:.2e} | {row.width:.2e} |")


if __name__ == "__main__":
    main()
