"""Training in function space against trained nets: what Lee et al. (arXiv:1902.06720) claim, and what is measured here.

Three weight layers, erf, eight points on a sphere. Prints a Markdown table. ``--quick`` takes fewer and narrower nets, to check that
the script runs.

    python benchmarks/function_space_training.py [--quick]
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# before jax starts: threads that wait for each other burn processor time, for small arrays more than for large ones
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

from scipy.integrate import solve_ivp
from scipy.special import expit

import tp_solver as tp
from tp_solver.kernel_regime.dynamics import KernelDynamics

POINTS, TESTS, DIMENSION = 8, 6, 4
NET, PARAMETERIZATION = tp.mlp(2, tp.erf, bias=0.3, bias_rate=0.09), tp.ntk.times(1.2)


@dataclass(frozen=True)
class Row:
    """A claim, and what was found."""

    what: str
    claimed: str
    measured: str

    def __str__(self) -> str:
        return f"| {self.what} | {self.claimed} | {self.measured} |"


def problem() -> tp.Task:
    """Points of length sqrt(D); a smooth target."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((POINTS + TESTS, DIMENSION))
    x *= np.sqrt(DIMENSION) / np.linalg.norm(x, axis=1, keepdims=True)
    return tp.Task(x[:POINTS], 0.5 + np.sin(2 * x[:POINTS, 0]) / 2, x[POINTS:])


def trained(training: tp.GradientDescent, task: tp.Task, width: int, seeds: int | tuple[int, ...]) -> tp.Ensemble:
    return tp.simulate(NET, PARAMETERIZATION, training, task, widths=(width,), seeds=seeds, times=(0, training.steps), progress=False)


def ensembles(task: tp.Task, critical: float, width: int, seeds: int) -> Iterator[Row]:
    """Mean and variance over trained nets at the end of training, on the test points."""
    frozen = {"W0": 0.0, "W1": 0.0, "W2": 1.0}
    last = KernelDynamics.of(NET, PARAMETERIZATION, tp.GradientDescent(frozen, 1, momentum=0.8), task.X, task.y).critical_lr / 2
    rules = {
        "descent": tp.GradientDescent(0.5 * critical, 150),
        "heavy ball, momentum 0.7": tp.GradientDescent(0.4 * critical, 60, momentum=0.7),
        "last layer alone, against the posterior of the NNGP": tp.GradientDescent(
            {k: v * last for k, v in frozen.items()}, 150, momentum=0.8
        ),
    }
    for name, training in rules.items():
        end = KernelDynamics.of(NET, PARAMETERIZATION, training, task.X, task.y, task.X_test).at(math.inf)
        start = time.perf_counter()
        f = trained(training, task, width, seeds).f_test[0, :, -1]
        seconds = time.perf_counter() - start
        error = f.std(axis=0, ddof=1) / np.sqrt(seeds)
        deviation, ratio = np.abs(f.mean(axis=0) - end.f_test), f.var(axis=0, ddof=1) / np.diag(end.f_cov)[POINTS:]
        which = f"{seeds} nets of width {width}, {name}"
        yield Row(f"{which}: mean - theory, largest", "< 3 s.e.", f"{np.max(deviation / error):.2f} s.e. ({deviation.max():.3f})")
        yield Row(
            f"{which}: variance over theory, mean", "1 ± 0.1", f"{ratio.mean():.3f} ± {np.sqrt(2 / seeds):.3f} per point ({seconds:.0f} s)"
        )


def edge(task: tp.Task, critical: float, widths: tuple[int, ...], seeds: int) -> Iterator[Row]:
    """On both sides of the critical rate, linear dynamics and finite nets."""
    for factor, claim in ((0.9, "converges"), (1.1, "diverges")):
        sol = tp.solve(tp.limit(NET, PARAMETERIZATION, tp.GradientDescent(factor * critical, 400)), task)
        yield Row(
            f"linear dynamics at {factor} of the critical rate {critical:.3f}",
            claim,
            f"{sol.status}, loss {sol.loss[0]:.2f} to {sol.loss[-1]:.1e}",
        )
    for width in widths:
        start = trained(tp.GradientDescent(0.0, 1), task, width, seeds)
        own = 2 * POINTS / np.linalg.eigvalsh(start.ntk(0)[0])[:, -1]
        calm, thrown, fallen = [], [], []
        for k in range(seeds):
            below, above = (trained(tp.GradientDescent(c * own[k], 400), task, width, (k,)) for c in (0.9, 1.3))
            calm.append(below.loss[0, 0])
            thrown.append(above.loss[0, 0])
            fallen.append(2 * POINTS / np.linalg.eigvalsh(above.ntk(400)[0, 0])[-1] / own[k])
        steady = sum(bool((np.diff(run[run > 1e-20]) <= 0).all()) for run in calm)
        yield Row(f"nets of width {width} at 0.9 of their own critical rate", "loss monotone", f"{steady} of {seeds}")
        peaks = ", ".join(f"{run.max() / run[0]:.1f}" for run in thrown)
        yield Row(f"nets of width {width} at 1.3: largest over initial loss", "> 2", peaks)
        yield Row(f"nets of width {width} at 1.3: final loss", "converges", f"at most {max(run[-1] for run in thrown):.0e}")
        yield Row(
            f"nets of width {width} at 1.3: critical rate at the end", "above 1.3 of the initial", ", ".join(f"{r:.2f}" for r in fallen)
        )


def flow(task: tp.Task, steps: int) -> Iterator[Row]:
    """The logistic loss under gradient flow, on train and test points, by two integrators."""
    y, time_ = np.sign(task.y), 500.0
    d = KernelDynamics.of(NET, PARAMETERIZATION, tp.GradientFlow(time_, steps, tp.Logistic()), task.X, y, task.X_test, gamma0=0.0)

    def velocity(_: float, f: np.ndarray) -> np.ndarray:
        return d.ntk[:, :POINTS] @ (y * expit(-y * f[:POINTS])) / POINTS

    times = np.linspace(0, time_, steps + 1)
    exact = solve_ivp(velocity, (0, time_), np.zeros(len(d.ntk)), method="DOP853", rtol=1e-12, atol=1e-13, t_eval=times).y.T
    d.run()
    start = time.perf_counter()
    run = d.run()
    seconds = time.perf_counter() - start
    gap = np.abs(np.concatenate([run.f, run.f_test], axis=1)[..., 0] - exact).max()
    yield Row(
        f"logistic flow to time {time_:g}, 14 points: against DOP853 at 1e-12", "< 1e-8", f"{gap:.1e} ({seconds:.2f} s, compiled before)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and narrower nets")
    quick = parser.parse_args().quick
    task = problem()
    d = KernelDynamics.of(NET, PARAMETERIZATION, tp.GradientDescent(1.0, 1), task.X, task.y)
    print(f"{d.modes}\n\n| three-layer erf net, N = 8 | claimed | measured |\n|---|---|---|")
    for row in ensembles(task, d.critical_lr, 64 if quick else 256, 16 if quick else 200):
        print(row, flush=True)
    for row in edge(task, d.critical_lr, (128,) if quick else (256, 1024), 2 if quick else 3):
        print(row, flush=True)
    for row in flow(task, 4 if quick else 50):
        print(row, flush=True)


if __name__ == "__main__":
    main()
