"""Cost of the limit against wide nets and against the self-consistent iteration, on problem E3 (three hidden tanh layers).

Prints Markdown tables. All times are processor seconds of this process on one thread, compilation apart, taken in one run;
only their ratios mean something. ``--quick`` shrinks everything to check that the script runs.

    python benchmarks/march_and_nets.py [--quick] [--skip-fixed-point]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# before numpy and jax start: threads that wait for each other burn processor time, for small arrays more than for large ones
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import numpy as np

import tp_solver as tp


@dataclass(frozen=True)
class Timed:
    """A result, the processor seconds of the warm call, and those that the first call spent on top (compilation)."""

    value: Any
    seconds: float
    compilation: float


def timed(call: Callable[[], Any], repeats: int = 3) -> Timed:
    """First call apart, then the median of warm repeats."""
    start = time.process_time()
    value = call()
    first = time.process_time() - start
    warm = []
    for _ in range(repeats):
        start = time.process_time()
        value = call()
        warm.append(time.process_time() - start)
    return Timed(value, float(np.median(warm)), max(0.0, first - float(np.median(warm))))


def problem(steps: int) -> tuple[tp.LimitEquations, tp.Task]:
    """E3: depth 3, tanh, muP, ten random points in 25 dimensions, lr 0.1, gamma0 = 1."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((10, 25))
    y = np.sign(rng.standard_normal(10))
    return tp.limit(tp.mlp(depth=3, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.1, steps=steps)), tp.Task(X, y)


def rms(a: np.ndarray) -> float:
    return float(np.sqrt(np.mean(a**2)))


def march(theory: tp.LimitEquations, task: tp.Task, samples: int, tol: float, replicates: int, seed: int = 0) -> tp.Solution:
    """With kernels of the first and the last time, as the nets keep them."""
    method = tp.March(tol=tol, bias=False, recorded=(0, theory.training.steps))
    return tp.solve(theory, task, 1.0, samples, replicates, seed, method=method, progress=False)


def error_of_one(solution: tp.Solution, reference: np.ndarray) -> float:
    """Rms error of f of a single replicate."""
    return rms(np.array([tr.f[..., 0] for tr in solution.kernels.trajectories]) - reference)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Nets:
    """Nets of one width: processor seconds of one, scatter of one, and the bias of their mean."""

    width: int
    seconds: float
    variance: float
    bias2: float

    def needed(self, target: float) -> float:
        """How many seeds bring the mean to the target error; infinite below the bias."""
        return max(1.0, np.ceil(self.variance / (target**2 - self.bias2))) if self.bias2 < target**2 else np.inf


def nets(theory: tp.LimitEquations, task: tp.Task, width: int, seeds: int, reference: np.ndarray) -> Nets:
    """Train nets of one width and measure their error."""

    def train() -> tp.Ensemble:
        return tp.simulate(
            theory.program, theory.parameterization, theory.training, task, gamma0=1.0, widths=[width], seeds=seeds,
            times=(0, theory.training.steps), progress=False,
        )  # fmt: skip

    run = timed(train, repeats=1)
    f = run.value.f[0]
    variance = float(np.mean(f.var(axis=0, ddof=1)))
    bias2 = max(0.0, float(np.mean((f.mean(axis=0) - reference) ** 2)) - variance / seeds)
    return Nets(width, run.seconds / seeds, variance, bias2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that the script runs")
    parser.add_argument("--skip-fixed-point", action="store_true", help="leave the slow self-consistent iteration out")
    quick = parser.parse_args().quick
    skip = parser.parse_args().skip_fixed_point
    steps = 20 if quick else 100
    theory, task = problem(steps)

    big, copies = (4096, 2) if quick else (32768, 4)
    reference_run = march(theory, task, big, 1e-3, replicates=copies, seed=1000)
    reference = reference_run.f
    print(f"Reference: {copies} replicates of {big} samples, tolerance 1e-3 (standard error {rms(reference_run.stderr('f')):.1e}).\n")

    print("| march | processor s | compilation s | rms error of f | ranks |\n|---|---|---|---|---|")
    marches: dict[int, tuple[float, float]] = {}
    for samples, tol in ((1024, 1e-2),) if quick else ((1024, 1e-2), (4096, 3e-3), (16384, 1e-3)):
        run = timed(lambda samples=samples, tol=tol: march(theory, task, samples, tol, replicates=1))
        error = error_of_one(march(theory, task, samples, tol, replicates=4 if samples > 10000 else 8, seed=7), reference)
        ranks = run.value.details["ranks"].values()
        print(
            f"| {samples} samples, tol {tol:g} | {run.seconds:.2f} | {run.compilation:.1f} | {error:.4f} | {min(ranks)} to {max(ranks)} |",
            flush=True,
        )
        marches[samples] = (run.seconds, error)

    sizes = ((128, 16), (2000, 2)) if quick else ((128, 500), (256, 240), (512, 80), (1024, 24), (2000, 10), (2048, 10))
    rows = [nets(theory, task, width, seeds, reference) for width, seeds in sizes]
    for samples, (cost, target) in marches.items():
        print(f"\nNets whose seed mean reaches the rms error {target:.4f} of the march with {samples} samples ({cost:.2f} s):\n")
        print("| width | s per net | scatter of one | bias | seeds needed | processor s | times the march |\n|---|---|---|---|---|---|---|")
        for r in rows:
            n = r.needed(target)
            known = f"{n:.0f} | {n * r.seconds:.1f} | {n * r.seconds / cost:.0f}" if np.isfinite(n) else "never | - | -"
            print(f"| {r.width} | {r.seconds:.3f} | {r.variance**0.5:.4f} | {r.bias2**0.5:.4f} | {known} |", flush=True)

    cost = next(iter(marches.values()))[0] if quick else marches[4096][0]
    if not skip:
        samples = 512 if quick else 4096
        run = timed(
            lambda: tp.solve(theory, task, gamma0=1.0, samples=samples, replicates=1, method="fixed_point", progress=False), repeats=1
        )
        d = run.value.details
        print(
            f"\nfixed_point, {samples} samples: {run.seconds:.1f} s (compilation {run.compilation:.1f} s), {run.value.status}, "
            f"iterations {d.get('iterations')}, operations {d.get('operations')}, rms error {rms(run.value.f - reference):.4f}, "
            f"{run.seconds / cost:.0f} times the march",
            flush=True,
        )

    print("\n| steps | march, processor s | largest rank |\n|---|---|---|")
    lengths = (10, 20) if quick else (100, 200, 400, 800, 1600)
    costs = []
    samples, tol = (1024, 1e-2) if quick else (4096, 3e-3)
    last: tp.Solution | None = None
    for length in lengths:
        long_theory, _ = problem(length)
        run = timed(lambda theory=long_theory: march(theory, task, samples, tol, replicates=1), repeats=1)
        costs.append(run.seconds)
        last = run.value
        print(f"| {length} | {run.seconds:.2f} | {max(last.details['ranks'].values())} |", flush=True)
    slope = np.polyfit(np.log(lengths), np.log(costs), 1)[0]
    assert last is not None
    long_theory, _ = problem(lengths[-1])
    check = march(long_theory, task, 2 * samples if quick else 16384, 1e-3, replicates=1, seed=1000)
    print(f"\nExponent of cost in steps: {slope:.2f}; rms error of f at {lengths[-1]} steps: {rms(last.f - check.f):.4f}.")


if __name__ == "__main__":
    main()
