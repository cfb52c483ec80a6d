"""The march or extrapolation from nets: which is cheaper, over points, outputs and wanted error, and what the advice foretold.

Three hidden tanh layers in muP, gamma0 = 1, scikit-learn's digits, full batches: two classes with squared error (one output) and ten
with cross-entropy. Errors are standard errors of predictions on 100 other images after training, in units of their rms size, as
``tp.solve`` and ``tp.extrapolate`` report them. Both are run at two settings; a power law through those of the march, and the law
1 / error^2 for the nets (with at least four seeds of the widest), give the processor seconds for the wanted error. "Unresolved": more
directions than an eighth of the 2 048 samples, so that ``tp.solve`` would end as ``rank_saturated``. Seconds are those
of one thread, compilation apart, taken in one run.

    python benchmarks/who_wins.py [--quick] [--points 10 40 160] [--outputs 1 10]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

# before numpy and jax start: threads that wait for each other burn processor time, for small arrays more than for large ones
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import numpy as np

import tp_solver as tp
from tp_solver.finite.simulate_at import simulate_at

advice = import_module("tp_solver.solve.advice")  # tp_solver.solve is the verb, which hides the folder
WIDTHS = {128: 16, 256: 8, 512: 6, 1024: 4}
ERRORS = (0.03, 0.01, 0.003)


@dataclass(frozen=True)
class Case:
    """A task and its limit."""

    points: int
    outputs: int
    steps: int
    test: int

    @property
    def task(self) -> tp.Task:
        """Digits of two or of ten classes."""
        return tp.Task.digits(classes=(0, 1) if self.outputs == 1 else range(10), points=self.points, test=self.test)

    @property
    def theory(self) -> tp.LimitEquations:
        """Rates at which the loss falls smoothly to a few percent of where it starts (one output), or to about a half (ten)."""
        loss, lr = (tp.SquaredError(), 0.3) if self.outputs == 1 else (tp.CrossEntropy(), 1.0)
        return tp.limit(tp.mlp(depth=3, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=lr, steps=self.steps, loss=loss))


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the processor seconds of the second call, which compiles nothing."""
    call()
    start = time.process_time()
    return call(), time.process_time() - start


def relative(sol: tp.Solution) -> float:
    """Standard error of test predictions after training, over their size."""
    assert sol.f_test is not None
    return float(np.sqrt(np.mean(sol.stderr("f_test")[-1] ** 2) / np.mean(sol.f_test[-1] ** 2)))


@dataclass(frozen=True)
class Marched:
    """The march at two sample counts: error and seconds of each, whether its directions are resolved, and their number at the last."""

    errors: tuple[float, ...]
    seconds: tuple[float, ...]
    resolved: tuple[bool, ...]
    rank: int

    def cost(self, error: float) -> float:
        """Seconds for an error, by the power law through both, at least those of the fewest samples that resolve all directions."""
        if not any(self.resolved):
            return np.inf
        slope = np.log(self.seconds[1] / self.seconds[0]) / np.log(self.errors[0] / self.errors[1])
        if not (np.isfinite(slope) and slope > 0):
            return np.inf
        return max(self.seconds[self.resolved.index(True)], self.seconds[1] * (self.errors[1] / error) ** slope)


def march(case: Case, counts: tuple[int, int]) -> Marched:
    """``tp.solve`` with its tolerance tied to the samples, and test points predicted at the first and the last time, as by the nets."""
    theory, task = case.theory, case.task
    errors, seconds, resolved, rank = [], [], [], 0
    for samples in counts:
        method = tp.March(tol=8 / samples, recorded=(0,), tested=(0, case.steps))
        sol, took = timed(partial(tp.solve, theory, task, 1.0, samples, method=method, progress=False))
        errors.append(relative(sol))
        seconds.append(took)
        resolved.append(sol.status is not tp.Status.RANK_SATURATED)
        rank = max(sol.details["ranks"].values())
        if rank > samples / 2:  # hopeless, and the next one dear
            break
    return Marched(tuple(errors), tuple(seconds), tuple(resolved), rank)


@dataclass(frozen=True)
class Trained:
    """Nets: the error of their extrapolation, seconds of all, seeds of the widest, and N x (relative scatter)^2 of one net."""

    error: float
    seconds: float
    seeds: int
    scatter: float
    check: str

    def cost(self, error: float) -> float:
        """Seconds for an error, at least those of four seeds of the widest."""
        return self.seconds * max(advice.FEWEST / self.seeds, (self.error / error) ** 2)


def train(case: Case, widths: dict[int, int]) -> Trained:
    """Nets of all widths, in the precision of the march."""
    theory, task = case.theory, case.task
    ensembles, total = [], 0.0
    for width, seeds in widths.items():
        rows, options = (0, case.steps), {"centred": True, "dtype": "float64"}
        ens, took = timed(partial(simulate_at, rows, theory.program, tp.muP, theory.training, task, 1.0, [width], seeds, **options))
        ensembles.append(ens)
        total += took
    sol = tp.extrapolate(*ensembles)
    f = [ens.f_test[0, :, -1] for ens in ensembles if ens.f_test is not None]
    found = [n * np.mean(v.var(axis=0, ddof=1)) / np.mean(v.mean(axis=0) ** 2) for n, v in zip(widths, f, strict=True)]
    return Trained(relative(sol), total, min(widths.values()), float(np.sqrt(np.mean(found))), str(sol.status))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that the script runs")
    parser.add_argument("--points", type=int, nargs="+", default=(10, 40, 160))
    parser.add_argument("--outputs", type=int, nargs="+", choices=(1, 10), default=(1, 10))
    given = parser.parse_args()
    widths = {16: 4, 32: 4, 64: 4} if given.quick else WIDTHS
    points, outputs = ((10,), (1,)) if given.quick else (given.points, given.outputs)
    print("| points | outputs | error | march s | nets s | wins by | advice: march s | nets s | advised | rank found, foretold |")
    print(f"|{'---|' * 10}")
    notes = []
    for P in points:
        for K in outputs:
            case = Case(P, K, 10 if given.quick else 60, 20 if given.quick else 100)
            counts = (256, 512) if given.quick else (512, 2048)
            marched, trained = march(case, counts), train(case, widths)
            trial = advice.try_march(case.theory, case.task, 1.0, "float64", 0)
            assert isinstance(trial, advice.Trial)
            per_sample = advice.predict_ranks(trial.ranks, case.steps)[-1] * (trial.tol * counts[1] / 8) ** trial.growth
            for error in ERRORS:
                said = advice.advise_from(trial, case.theory, case.task, error, "float64")
                a, b = marched.cost(error), trained.cost(error)
                winner = "march" if a < b else "extrapolate"
                by = f", {max(a, b) / min(a, b):.2g}" if np.isfinite(a) else ""
                marches = f"{a:.2g}" if np.isfinite(a) else "unresolved"
                print(
                    f"| {P} | {K} | {error:g} | {marches} | {b:.2g} | {winner}{by} | {said.march_seconds:.2g} |"
                    f" {said.nets_seconds:.2g} | {said.method} | {marched.rank}, {per_sample:.0f} |",
                    flush=True,
                )
            pairs = [f"{e:.4f} in {s:.2g} s" for e, s in zip(marched.errors, marched.seconds, strict=True)]
            slope = np.log(marched.errors[0] / marched.errors[-1]) / np.log(counts[1] / counts[0])
            notes.append(
                f"{P} points, {K} outputs: march {' and '.join(pairs)} (slope {slope:.2f}), foretold {trial.error:.4f} at {trial.samples}; "
                f"nets {trained.error:.4f} in {trained.seconds:.2g} s, scatter {trained.scatter:.2f} / sqrt(N), {trained.check}"
            )
            print(notes[-1], marched, trained, trial, file=sys.stderr, flush=True)
    print("\n" + "\n\n".join(notes))


if __name__ == "__main__":
    main()
