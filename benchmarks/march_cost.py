"""What a march costs: against steps, against points at fixed rank, against the rate of matrix products; and the published problem.

Prints Markdown tables. Times are processor seconds on one thread, compilation apart (`steps`, `points`, `floor`), taken in one run;
only their ratios mean something. ``--quick`` shrinks everything to check that the script runs.

    python benchmarks/march_cost.py [--quick]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from march_and_nets import error_of_one, march, nets, problem, rms, timed  # first: it sets the thread counts

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
    theory, task = published(5 if small else 50)
    big, copies = (1024, 2) if small else (32768, 4)
    reference = march(theory, task, big, 1e-3, replicates=copies, seed=1000)
    size = rms(reference.f)
    print("| | processor s, compilation apart | rms error of f, relative | times as cheap |\n|---|---|---|---|")
    print(f"| published alternating solver | {PUBLISHED:.0f} | a few percent | |")
    rows = []
    for samples, tol in ((256, 2e-2),) if small else ((256, 2e-2), (512, 1e-2), (1024, 1e-2), (4096, 2e-3)):
        run = timed(lambda samples=samples, tol=tol: march(theory, task, samples, tol, replicates=1))
        error = error_of_one(march(theory, task, samples, tol, replicates=4 if small else 16, seed=7), reference.f)
        rows.append((run.seconds, error))
        print(
            f"| march, {samples} samples, tolerance {tol:g} | {run.seconds:.3f} | {error / size:.4f} | {PUBLISHED / run.seconds:.0f} |",
            flush=True,
        )
    sizes = ((128, 8),) if small else ((128, 400), (256, 200), (512, 80), (1024, 24), (2000, 16), (2048, 16))
    every = [nets(theory, task, width, seeds, reference.f) for width, seeds in sizes]
    if not small:
        wide = next(r for r in every if r.width == 2000)
        error = (wide.variance / 4 + wide.bias2) ** 0.5
        cost = 4 * wide.seconds
        enough = min((row for row in rows if row[1] <= error), default=None)
        ratio = f"{cost / enough[0]:.0f}" if enough else "-"
        print(f"| four nets of width 2 000 | {cost:.2f} | {error / size:.4f} | the march at no larger an error: {ratio} |")
    for seconds, error in rows:
        best = min(every, key=lambda r: r.needed(error) * r.seconds)
        needed = best.needed(error)
        if np.isfinite(needed):
            cost = needed * best.seconds
            label = f"{needed:.0f} nets of width {best.width}, the cheapest"
            print(f"| {label} | {cost:.2f} | {error / size:.4f} | the march: {cost / seconds:.0f} |")
        else:
            print(f"| nets of every width | never | {error / size:.4f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that the script runs")
    small = parser.parse_args().quick
    against_steps(small)
    against_points(small)
    against_products(small)
    against_the_published(small)


if __name__ == "__main__":
    main()
