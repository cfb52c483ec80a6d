"""Gaussian processes of wide networks on handwritten digits (card A1) and uncertainty by seven methods (card B2): claimed | measured.

The claims are those of the cards of Lee et al., arXiv:1711.00165, and Juengermann, Laasri and Merkle, arXiv:2201.04746. Every closed
form of the second stands beside a Monte-Carlo run: gradient descent on linear models with random initial functions.

    python benchmarks/uncertainty.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np

# before jax starts: threads that wait for each other burn processor time, for small arrays more than for large ones
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import tp_solver as tp
from tp_solver.kernel_regime.compute import KernelSet, kernels
from tp_solver.kernel_regime.predictive import Predictive
from tp_solver.kernel_regime.regressor import KernelRegressor, NNGPKernel, TangentKernel
from tp_solver.kernel_regime.uncertainty import (
    anchored_ensemble,
    compare_uncertainties,
    deep_ensemble,
    nngp_posterior,
    ntk_gp,
    random_network_distillation,
    randomised_prior,
    sample_then_optimise,
)

RELU = (tp.mlp(depth=2, activation=tp.relu), tp.ntk.times(2**0.5))
ERF = (tp.mlp(depth=2, activation=tp.erf, bias=0.3, bias_rate=0.09), tp.ntk.times(1.3))
NOISE = 0.1


def row(quantity: str, claimed: str, measured: str) -> None:
    print(f"| {quantity} | {claimed} | {measured} |", flush=True)


def digits(points: int, test: int) -> tp.Task:
    """Ten regression outputs -0.1, 0.9."""
    task = tp.Task.digits(classes=tuple(range(10)), points=points, test=test)
    return tp.Task(task.X, task.y - 0.1, task.X_test, task.y_test - 0.1)


def card_a1(quick: bool) -> None:
    points, test = (100, 200) if quick else (500, 1000)
    task = digits(points, test)
    print(f"\nCard A1: digits, {points} training and {test} test points, targets -0.1 and 0.9, no noise\n")
    print("| quantity | claimed | measured |\n|---|---|---|")
    for name, kernel in (
        ("relu, NNGP", NNGPKernel(*RELU)),
        ("erf, NNGP", NNGPKernel(*ERF)),
        ("relu, NTK (cannot be told apart)", TangentKernel(*RELU)),
    ):
        start = time.process_time()
        mean, std = KernelRegressor(kernel).fit(task.X, task.y).predict(task.X_test, return_std=True)
        seconds = time.process_time() - start
        variance, error = std[:, 0] ** 2, ((mean - task.y_test) ** 2).sum(axis=1)
        bins = np.array_split(np.argsort(variance), 20)
        binned = np.corrcoef(*([v[rows].mean() for rows in bins] for v in (variance, error)))[0, 1]
        row(f"{name}: accuracy", ">= 0.97", f"{np.mean(mean.argmax(axis=1) == task.y_test.argmax(axis=1)):.3f}")
        row(f"{name}: corr(variance, squared error)", ">= 0.4", f"{np.corrcoef(variance, error)[0, 1]:.3f}")
        row(f"{name}: the same over 20 bins", ">= 0.85", f"{binned:.3f}")
        row(f"{name}: fit and predict, compilation included", "< 5 s", f"{seconds:.1f} processor s")


def width_trend(quick: bool) -> None:
    (points, test), widths, steps = ((60, 200), (8, 32, 128), 100) if quick else ((300, 600), (8, 16, 32, 64, 128, 256, 512), 300)
    task = digits(points, test)
    k = kernels(*RELU, np.concatenate([task.X, task.X_test]))
    rate = 0.9 * points / np.linalg.eigvalsh(np.asarray(k.ntk)[:points, :points])[-1]
    training = tp.GradientDescent(lr=rate, steps=steps)
    print(f"\nTrained relu nets (five each, initial function subtracted), {points} training and {test} test points, {steps} steps\n")
    print("| width | test mean squared error | standard error |\n|---|---|---|")
    errors = []
    for width in widths:
        nets = tp.simulate(
            *RELU, training, task, gamma0=1.0, widths=[width], seeds=5, centred=True, times=(steps,), dtype="float32", progress=False
        )  # fmt: skip
        error = ((nets.f_test[0, :, -1] - task.y_test) ** 2).mean(axis=(1, 2))
        errors.append(error.mean())
        print(f"| {width} | {error.mean():.5f} | {error.std(ddof=1) / 5**0.5:.5f} |", flush=True)
    for p in (deep_ensemble(k, task.y, training), nngp_posterior(k, task.y)):
        print(f"| infinite: {p.name} | {np.mean((p.mean - task.y_test) ** 2):.5f} | 0 |")
    print("\n| quantity | claimed | measured |\n|---|---|---|")
    row("test error falls with the width", "monotone in the mean over 5 seeds", "yes" if np.all(np.diff(errors) < 0) else "no")


def root(kernel: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(kernel)
    return vectors * np.sqrt(np.maximum(values, 0))


def descend(features: np.ndarray, start: np.ndarray, targets: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Descent in the weights of f = f_0 + F w on |f(X) - targets|^2 / 2 + ridge |w|^2 / 2: f at the test points."""
    points = targets.shape[-1]
    trained = features[:points]
    rate = 1.0 / (np.linalg.norm(trained, 2) ** 2 + ridge)
    w = np.zeros((len(start), features.shape[1]))
    slope = np.full_like(w, np.inf)
    while np.abs(slope).max() > 1e-6:
        slope = (start[:, :points] + w @ trained.T - targets) @ trained + ridge * w
        w -= rate * slope
    return start[:, points:] + w @ features[points:].T


def sampled(k: KernelSet, y: np.ndarray, draws: int) -> dict[str, tuple[Predictive, Callable[[], np.ndarray]]]:
    """Every method beside a run that draws from it."""
    rng, points = np.random.default_rng(0), len(y)
    nngp, ntk = np.asarray(k.nngp), np.asarray(k.ntk)

    def gaussian(kernel: np.ndarray) -> np.ndarray:
        return rng.standard_normal((draws, len(kernel))) @ root(kernel).T

    def noisy() -> np.ndarray:
        return y + np.sqrt(NOISE) * rng.standard_normal((draws, points))

    def distillation() -> np.ndarray:
        target = gaussian(nngp)
        return descend(root(ntk), gaussian(nngp), target[:, :points]) - target[:, points:]

    return {
        "NNGP posterior": (nngp_posterior(k, y, NOISE), lambda: descend(root(nngp), gaussian(nngp), noisy(), NOISE)),
        "sample, then optimise": (sample_then_optimise(k, y), lambda: descend(root(nngp), gaussian(nngp), y)),
        "deep ensemble": (deep_ensemble(k, y), lambda: descend(root(ntk), gaussian(nngp), y)),
        "NTK-GP posterior": (ntk_gp(k, y, NOISE), lambda: descend(root(ntk), gaussian(nngp) + gaussian(ntk - nngp), noisy(), NOISE)),
        "randomised prior": (randomised_prior(k, y), lambda: descend(root(ntk), gaussian(nngp) + gaussian(ntk - nngp), y)),
        "anchored ensemble": (anchored_ensemble(k, y, NOISE), lambda: descend(root(ntk), gaussian(nngp), noisy(), NOISE)),
        "random network distillation": (random_network_distillation(k, points), distillation),
    }


def card_b2(quick: bool) -> None:
    draws = 500 if quick else 2000
    rng = np.random.default_rng(4)
    X, X_test, y = rng.standard_normal((6, 5)), rng.standard_normal((30, 5)), rng.standard_normal(6)
    k = kernels(*ERF, np.concatenate([X, X_test]))
    print(f"\nCard B2: variance at 30 test points, Monte Carlo ({draws} trained linear models) over closed form, mean and extremes\n")
    print("| quantity | claimed | measured |\n|---|---|---|")
    variances = {}
    for name, (closed, run) in sampled(k, y, draws).items():
        f = run()
        variances[name] = f.var(axis=0)
        ratio = variances[name] / closed.variance
        row(name, "1 within 5 %", f"{ratio.mean():.3f} ({ratio.min():.3f} to {ratio.max():.3f})")
    twice = variances["random network distillation"] / variances["deep ensemble"]
    row("distillation over deep ensemble", "2.0 +- 0.1", f"{twice.mean():.3f}")
    at_training = kernels(*ERF, np.concatenate([X, X]))
    left = max(p.variance.max() for p in compare_uncertainties(at_training, y)) / np.asarray(at_training.nngp).max()
    row("variance at the training points, relative", "0", f"{left:.1e}")
    print(f"\nThe ordering is computed, not assumed:\n\n{compare_uncertainties(k, y)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that the script runs")
    quick = parser.parse_args().quick
    card_a1(quick)
    card_b2(quick)
    width_trend(quick)


if __name__ == "__main__":
    main()
