"""Accuracy of the march against samples: problems T3 and E3, against 32 768 samples at tolerance 1e-3.

Prints Markdown tables: the error of single replicates and its slope, the error of solves as they come (four replicates, default
tolerance) beside the standard error that they report. ``--quick`` shrinks everything to check that the script runs.

    python benchmarks/accuracy.py [--quick] [--problems T3 E3]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import numpy as np

# before jax starts: threads that wait for each other burn processor time, for small arrays more than for large ones
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

from reference_problems import Problem, e3, t3


def rms(a: np.ndarray) -> float:
    return float(np.sqrt(np.mean(a**2)))


def table(name: str, problem: Problem, largest: int, counts: Sequence[int], seeds: int, copies: int) -> None:
    """One problem: a row per number of samples, then the slopes."""
    far = problem.solve(largest, 1e-3, copies, seed=1000)
    print(
        f"\n{name}: reference {copies} x {largest} samples, tolerance 1e-3, standard error {rms(far.stderr('f')):.1e}; "
        f"f has the size {rms(far.f):.3f}.\n"
    )
    print("| samples | tolerance | one replicate | its scatter | a solve | its standard error | ranks |\n|---|---|---|---|---|---|---|")
    single, whole = [], []
    for samples in counts:
        sols = [problem.solve(samples, None, 4, seed, bias=True) for seed in range(seeds)]
        runs = np.array([tr.f[..., 0] for sol in sols for tr in sol.kernels.trajectories])  # type: ignore[attr-defined]
        single.append(rms(runs - far.f))
        whole.append(rms(np.array([sol.f for sol in sols]) - far.f))
        ranks = sols[0].details["ranks"].values()
        print(
            f"| {samples} | {sols[0].details['tolerance']:.2g} | {single[-1]:.5f} | {np.sqrt(np.mean(runs.var(axis=0, ddof=1))):.5f} | "
            f"{whole[-1]:.5f} | {rms(np.array([sol.stderr('f') for sol in sols])):.5f} | {min(ranks)} to {max(ranks)} |",
            flush=True,
        )
    slopes = [np.polyfit(np.log(counts), np.log(errors), 1)[0] for errors in (single, whole)]
    print(f"\n{name}: slope of one replicate {slopes[0]:.2f}, of a solve {slopes[1]:.2f}.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that the script runs")
    parser.add_argument("--problems", nargs="+", choices=("T3", "E3"), default=("T3", "E3"))
    given = parser.parse_args()
    if given.quick:
        table("T3, 4 steps", t3(4), 1024, (128, 256), 1, 2)
        return
    if "T3" in given.problems:
        table("T3", t3(), 32768, (256, 512, 1024, 2048, 4096), 8, 8)
    if "E3" in given.problems:
        table("E3", e3(), 32768, (1024, 2048, 4096), 2, 4)


if __name__ == "__main__":
    main()
