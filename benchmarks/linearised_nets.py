"""Finite nets beside their linearised twins, and which minimiser an optimiser reaches: what is claimed, and what is measured here.

Lee et al. (arXiv:1902.06720): three weight layers, erf, eight points. Nonnenmacher, Reeb and Steinwart (arXiv:2011.02408): two weight
layers, relu, twenty points, width 200. Prints Markdown tables. ``--quick`` takes fewer and narrower nets, to check that the script
runs. ``--figure FILE`` draws the nets beside their twins.

    python benchmarks/linearised_nets.py [--quick] [--figure twins.png]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# before jax starts: threads that wait for each other burn processor time, for small arrays more than for large ones
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import optax

import tp_solver as tp
from tp_solver.finite.path_dependence import PathDependence
from tp_solver.finite.twins import Twins

ERF, SCALED = tp.mlp(2, tp.erf, bias=0.1, bias_rate=0.01), tp.ntk.times(1.5)
POINTS, STEPS = 8, 300


@dataclass(frozen=True)
class Row:
    """A claim, and what was found."""

    what: str
    claimed: str
    measured: str

    def __str__(self) -> str:
        return f"| {self.what} | {self.claimed} | {self.measured} |"


def eight_points() -> tp.Task:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((POINTS, 4))
    x *= 2 / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2]
    return tp.Task(x, y / y.std())


def twins(lr: float, widths: tuple[int, ...], seeds: int | tuple[int, ...], steps: int = STEPS) -> Twins:
    return tp.train_with_twin(
        ERF, SCALED, tp.GradientDescent(lr, steps), eight_points(), widths=widths, seeds=seeds, times=(0,), progress=False
    )


def widths_scan(widths: tuple[int, ...], seeds: int, figure: str | None) -> Iterator[Row]:
    """How the distance between net and twin falls with the width."""
    task = eight_points()
    theta = np.asarray(tp.kernels(ERF, SCALED, task.X).ntk)
    critical = 2 * POINTS / np.linalg.eigvalsh(theta)[-1]
    start = time.perf_counter()
    run = twins(0.5 * critical, widths, seeds)
    print(f"\n```\n{run}\n```\n\n{time.perf_counter() - start:.0f} s\n\n| what | claimed | measured |\n|---|---|---|", flush=True)
    if figure is not None:
        run.plot(figure)
    fluctuation = np.linalg.norm((run.kernels[:, :, 0] - theta).reshape(len(widths), seeds, -1), axis=2) / np.linalg.norm(theta)
    which = f"widths {widths[0]} to {widths[-1]}, {seeds} seeds, slope of"
    yield Row(f"{which} max abs(f - f_lin)", "-1.3 to -0.6, about -1", str(run.slope(run.largest_gap)))
    gaps = run.largest_gap.mean(axis=1)
    yield Row(
        "the same from width to width", "tends to -1", ", ".join(f"{v:+.2f}" for v in np.diff(np.log(gaps)) / np.diff(np.log(widths)))
    )
    yield Row(f"{which} abs(K_T - K_0)", "-1.3 to -0.6", str(run.slope(run.kernel_drift[:, :, -1])))
    yield Row(f"{which} abs(K_0 - Theta)", "-0.5 ± 0.1", str(run.slope(fluctuation)))


def edge(width: int, seeds: int) -> Iterator[Row]:
    """Nets and twins on both sides of the twin's own critical rate."""
    task = eight_points()
    own = [tp.linearise(tp.draw(ERF, SCALED, 4, width, seed=s)).critical_rate(task.X) for s in range(seeds)]
    runs = {c: [twins(c * own[s], (width,), (s,)) for s in range(seeds)] for c in (0.9, 1.1, 1.3)}

    def over(c: float, name: str) -> list[np.ndarray]:
        return [getattr(run, name)[0, 0] for run in runs[c]]

    where = f"width {width}, {seeds} seeds,"
    yield Row(
        f"{where} twins at 0.9 of the critical rate, final loss", "converge", f"at most {max(v[-1] for v in over(0.9, 'loss_lin')):.0e}"
    )
    yield Row(f"{where} twins at 1.1, final loss", "diverge", f"at least {min(v[-1] for v in over(1.1, 'loss_lin')):.0e}")
    monotone = sum(bool((np.diff(v) <= 1e-14).all()) for v in over(0.9, "loss"))
    yield Row(f"{where} nets at 0.9", "loss monotone", f"{monotone} of {seeds}")
    yield Row(f"{where} nets at 1.1, final loss", "converge", f"at most {max(v[-1] for v in over(1.1, 'loss')):.0e}")
    peaks = [v.max() / v[0] for v in over(1.3, "loss")]
    yield Row(f"{where} nets at 1.3, largest over initial loss", "> 2", ", ".join(f"{p:.1f}" for p in peaks))
    yield Row(f"{where} nets at 1.3, final loss", "converge", f"at most {max(v[-1] for v in over(1.3, 'loss')):.0e}")


def regression(points: int, test: int) -> tp.Task:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((points + test, 5))
    y = np.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2]
    return tp.Task(x[:points], y[:points], x[points:], y[points:])


def optimisers(twin: tp.LinearisedNet, task: tp.Task, quick: bool) -> PathDependence:
    rate = 1 / np.einsum("aakk->a", twin.kernel(task.X)).max()
    chosen = {"SGD": tp.SGD(rate), "momentum 0.9": tp.SGD(rate, 0.9), "AdaGrad 0.2": tp.AdaGrad(0.2)}
    if not quick:
        chosen |= {"AdaGrad 0.05": tp.AdaGrad(0.05), "AdaGrad, epsilon 1": tp.AdaGrad(2.0, 1.0), "optax.adagrad(0.2)": optax.adagrad(0.2)}
        chosen |= {"Adam 0.01": tp.Adam(0.01), "Adam 0.1": tp.Adam(0.1)}
    return tp.path_dependence(twin, task, chosen, batches=(4,), orders=2 if quick else 3)


def minimisers(quick: bool) -> Iterator[Row]:
    """Card B3."""
    task = regression(20, 200)
    twin = tp.linearise(tp.draw(tp.mlp(1, tp.relu), tp.ntk, 5, 200))
    start = time.perf_counter()
    study = optimisers(twin, task, quick)
    seconds = time.perf_counter() - start
    print(f"\n```\n{study.closed}\n\n{study}\n```\n\n{seconds:.0f} s\n\n| what | claimed | measured |\n|---|---|---|", flush=True)
    residual = max(run.residual for runs in study.runs.values() for run in runs)
    yield Row("largest training residual of all runs", "< 1e-7", f"{residual:.3e}")
    yield Row("abs(GD - closed form) over signal", "< 1e-5", f"{study.from_closed('SGD'):.0e}")
    (full,) = study.runs["SGD", None]
    assert full.f_test is not None
    yield Row("abs(SGD - GD)", "< 1e-4", f"{max(np.abs(run.f_test - full.f_test).max() for run in study.runs['SGD', 4]):.0e}")
    yield Row("AdaGrad from GD", "> 0.05", f"{study.from_closed('AdaGrad 0.2'):.3f}")
    yield Row("AdaGrad in batches of 4 from all points", "> 0.05", f"{study.from_full('AdaGrad 0.2', 4):.3f}")
    yield Row("AdaGrad in batches of 4 between orders", "> 0.05", f"{study.between_orders('AdaGrad 0.2', 4):.3f}")
    scales = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    for depth in (1, 2):
        found = [tp.minimiser(tp.linearise(tp.draw(tp.mlp(depth, tp.relu), tp.ntk.times(s), 5, 200)), task) for s in scales]
        errors = [m.mse_initial for m in found]
        slope = np.polyfit(np.log(scales), np.log(errors), 1)[0]
        shown = ", ".join(f"{v:.2g}" for v in errors)
        yield Row(f"{depth + 1} weight layers: slope of the initial function's error", f"{2 * depth + 2} ± 0.2", f"{slope:.4f} ({shown})")
    centred = tp.minimiser(tp.linearise(tp.draw(tp.mlp(1, tp.relu), tp.ntk.times(4.0), 5, 200)), task, centred=True)
    yield Row("the same with f_0 subtracted", "0 exactly", f"{centred.mse_initial:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that the script runs")
    parser.add_argument("--figure", help="a file for the figure of nets and twins (.png, .pdf or .svg)")
    chosen = parser.parse_args()
    parts = (
        widths_scan((32, 64), 4, chosen.figure) if chosen.quick else widths_scan((64, 128, 256, 512), 32, chosen.figure),
        edge(64, 2) if chosen.quick else edge(512, 4),
        minimisers(chosen.quick),
    )
    for part in parts:
        for line in part:
            print(line, flush=True)


if __name__ == "__main__":
    main()
