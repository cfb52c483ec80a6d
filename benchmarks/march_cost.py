"""What a march costs: against steps, against points at fixed rank, against the rate of matrix products; and the published problem.

Prints Markdown tables. Times are processor seconds on one thread, compilation apart (`steps`, `points`, `floor`), taken in one run;
only their ratios mean something. ``--quick`` shrinks everything to check that the script runs.

    python benchmarks/march_cost.py [--quick] [--only steps points floor published]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

# isort: off
from march_and_nets import error_of_one, march, nets, problem, rms, timed  # before numpy: it sets the thread counts
import numpy as np

# isort: on
import tp_solver as tp

PUBLISHED = 1183.0
"""Processor seconds of the published alternating solver on two hidden tanh layers, five points, 50 steps, error a few percent."""


def in_two_dimensions(points: int, steps: int) -> tuple[tp.LimitEquations, tp.Task]:
    """Points of a smooth function of two coordinates: their number does not change the rank."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((points, 2))
    theory = tp.limit(tp.mlp(depth=3, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.1, steps=steps))
    return theory, tp.Task(X, np.sin(X[:, 0]))


def published(steps: int) -> tuple[tp.LimitEquations, tp.Task]:
    """Two hidden tanh layers, five points; the rate 0.1 of the summed losses is 0.5 of their mean."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((5, 20))
    theory = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.5, steps=steps))
    return theory, tp.Task(X, np.sign(rng.standard_normal(5)))


def exponent(sizes: Any, costs: Any) -> float:
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def against_steps(small: bool) -> None:
    lengths = (10, 20) if small else (200, 400, 800, 1600, 3200)
    samples = 512 if small else 4096
    print("| steps | processor s | largest rank |\n|---|---|---|")
    costs = []
    for length in lengths:
        theory, task = problem(length)
        run = timed(lambda theory=theory, task=task: march(theory, task, samples, 3e-3, replicates=1), repeats=1)
        costs.append(run.seconds)
        print(f"| {length} | {run.seconds:.2f} | {max(run.value.details['ranks'].values())} |", flush=True)
    print(f"\nExponent of the cost in the steps: {exponent(lengths, costs):.2f}.\n")


def against_points(small: bool) -> None:
    """The difference between a long run and a short one: what steps cost, without growing bases."""
    counts = (8, 16) if small else (40, 80, 160, 320, 640)
    samples, short, long = (512, 2, 4) if small else (4096, 10, 60)
    print("| points | processor s per step | largest rank | room |\n|---|---|---|---|")
    costs = []
    for points in counts:
        # one room for all, and kernels of the first time alone: the cost of a step, whatever the number of points
        seconds = []
        for steps in (short, long):
            theory, task = in_two_dimensions(points, steps)
            method = tp.March(tol=0.03, bias=False, recorded=(0,), tested=(0,))
            run = timed(
                lambda theory=theory, task=task, method=method: tp.solve(
                    theory, task, samples=samples, replicates=1, method=method, progress=False
                )
            )
            seconds.append(run.seconds)
        costs.append((seconds[1] - seconds[0]) / (long - short))
        room = max(run.value.kernels.trajectories[0].capacity.values())
        print(f"| {points} | {costs[-1]:.4f} | {max(run.value.details['ranks'].values())} | {room} |", flush=True)
    print(f"\nExponent of the cost of a step in the points: {exponent(counts, np.maximum(costs, 1e-9)):.2f}.\n")


def against_products(small: bool) -> None:
    """Time of a step against the matrix products in it, at the rate that products of the same shape reach alone."""
    import jax
    import jax.numpy as jnp

    points, samples, steps = (10, 512, 4) if small else (100, 4096, 40)
    print("| numbers | processor s per step | products alone | share of the floor |\n|---|---|---|---|")
    rng = np.random.default_rng(7)
    X, y = rng.standard_normal((points, 50)), rng.integers(0, 10, points)
    for dtype in ("float32", "float64"):
        seconds, rooms = [], {}
        for length in (steps, 3 * steps):
            theory = tp.limit(tp.mlp(depth=3, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.5, steps=length, loss=tp.CrossEntropy()))
            method = tp.March(tol=0.1, bias=False, recorded=(0,), tested=(0,), dtype=dtype)
            run = timed(
                lambda theory=theory, method=method: tp.solve(
                    theory, tp.Task(X, y), samples=samples, replicates=1, method=method, progress=False
                )
            )
            seconds.append(run.seconds)
            rooms = run.value.kernels.trajectories[0].capacity
        step = (seconds[1] - seconds[0]) / (2 * steps)
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            room = int(np.mean([n for home, n in rooms.items() if home.side is not None]))
            x, q = (jnp.asarray(rng.standard_normal((rows, samples)), dtype) for rows in (points, room))
            product = jax.jit(lambda a, b: a @ b.T)
            product(x, q).block_until_ready()
            rates = []
            for _ in range(20):
                start = time.process_time()
                product(x, q).block_until_ready()
                rates.append(2 * points * samples * room / max(time.process_time() - start, 1e-9))
        # per hidden matrix and step: four products forward, four backward, of points x samples with the room of a basis
        operations = 2 * points * samples * 4 * sum(n for home, n in rooms.items() if home.side is not None)
        floor = operations / float(np.median(rates))
        print(f"| {dtype} | {step:.4f} | {floor:.4f} | {floor / step:.2f} |", flush=True)
    print()


def against_the_published(small: bool) -> None:
    """The published solver's problem: the march, four wide nets, and as many nets as it takes of the width that is cheapest for the error.

    March and nets alike keep kernels of the first and the last time alone. Errors are rms over times and points, of one replicate.
    """
    theory, task = published(5 if small else 50)
    big, copies = (1024, 2) if small else (65536, 16)

    reference = march(theory, task, big, 2.5e-4, copies, 1000)
    size = rms(reference.f)
    print(f"Reference: {copies} replicates of {big} samples, relative standard error {rms(reference.stderr('f')) / size:.1e}.\n")
    sizes = ((128, 8),) if small else ((128, 8192), (256, 2048), (512, 512), (1024, 64), (2000, 16), (2048, 16))
    every = [nets(theory, task, width, seeds, reference.f) for width, seeds in sizes]
    print("| width | s per net | scatter of one, relative | bias of the mean, relative |\n|---|---|---|---|")
    for r in every:
        print(f"| {r.width} | {r.seconds:.4f} | {r.variance**0.5 / size:.4f} | {r.bias2**0.5 / size:.5f} |", flush=True)
    print("\n| march | processor s | rms error of f, relative | published solver | four nets of width 2 000 | cheapest nets |")
    print(f"|{'---|' * 6}")
    wide = every[-1] if small else next(r for r in every if r.width == 2000)
    four = (wide.variance / 4 + wide.bias2) ** 0.5
    settings = ((256, 2e-2),) if small else ((256, 1e-2), (512, 1e-2), (1024, 1e-2), (4096, 2e-3), (16384, 1e-3), (65536, 5e-4))
    for samples, tol in settings:
        seconds = timed(lambda samples=samples, tol=tol: march(theory, task, samples, tol, 1), repeats=3 if samples > 4096 else 9).seconds
        error = error_of_one(march(theory, task, samples, tol, 4 if small else 16, 7), reference.f)
        best = min(every, key=lambda r: r.needed(error) * r.seconds)
        needed = best.needed(error)
        rival = f"{needed:.0f} of width {best.width}: {needed * best.seconds / seconds:.1f} times" if np.isfinite(needed) else "never"
        wider = f"{4 * wide.seconds / seconds:.0f} times" if error <= four else "error too large"
        cheaper = f"{PUBLISHED / seconds:.0f} times | {wider} | {rival}"
        print(f"| {samples} samples, tolerance {tol:g} | {seconds:.4f} | {error / size:.5f} | {cheaper} |", flush=True)
    print(f"\nFour nets of width {wide.width}: {4 * wide.seconds:.2f} s, relative error {four / size:.5f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"steps": against_steps, "points": against_points, "floor": against_products, "published": against_the_published}
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that the script runs")
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables), help="some of the tables")
    given = parser.parse_args()
    for name in given.only:
        tables[name](given.quick)


if __name__ == "__main__":
    main()
