"""A network with its input Jacobian: what the paper claims and what is measured (Kim and Yang, arXiv:2312.03386).

Three weight layers, erf, inputs in two dimensions. Prints Markdown tables; times are processor seconds of this process, compilation
apart. ``--quick`` shrinks everything to check that the script runs.

    python benchmarks/jacobian.py [--quick]
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence

import numpy as np

# before jax starts: threads that wait for each other burn processor time, for small arrays more than for large ones
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp

import tp_solver as tp
from tp_solver.finite.experiment import precision
from tp_solver.finite.jacobian import empirical_jacobian_ntk, joint_values
from tp_solver.finite.network import blueprint, draw, stacked_weights
from tp_solver.finite.robust import train_robustly
from tp_solver.kernel_regime.jacobian import JacobianKernels, jacobian_kernels, matrix
from tp_solver.kernel_regime.robust_training import robust_training

NET = tp.mlp(depth=2, activation=tp.erf, bias=0.3, bias_rate=0.09)
PAR = tp.ntk.times(1.5)
X = np.random.default_rng(0).standard_normal((6, 2))
X_TEST = np.random.default_rng(1).standard_normal((4, 2))


def target(x: np.ndarray) -> np.ndarray:
    return np.sin(2 * x[:, 0]) * np.cos(x[:, 1])


TASK = tp.Task(X, target(X), X_TEST, target(X_TEST))


def row(what: str, claimed: str, measured: str) -> None:
    print(f"| {what} | {claimed} | {measured} |")


def empirical_kernels(theory: JacobianKernels, widths: Sequence[int], seeds: int) -> None:
    """The tangent kernel of F at finite width."""
    found = [[empirical_jacobian_ntk(draw(NET, PAR, 2, n, seed=s), X)[..., 0, 0] for s in range(seeds)] for n in widths]
    errors = np.array([[np.linalg.norm(k - theory.ntk) for k in of_width] for of_width in found]) / np.linalg.norm(theory.ntk)
    means = errors.mean(axis=1)
    slope = np.polyfit(np.log(widths), np.log(means), 1)[0]
    row(
        f"slope of the relative error of the empirical JNTK, n = {widths[0]}..{widths[-1]}, {seeds} seeds",
        "-0.5; in [-0.7, -0.25]",
        f"{slope:.2f} ({', '.join(f'{m:.3f}' for m in means)})",
    )


def initial_covariance(theory: JacobianKernels, width: int, draws: int) -> None:
    """Nets at initialisation are samples of the joint Gaussian process."""
    blank, batch, rows = blueprint(NET, PAR, 2, width, 1, 1.0, "float64"), 50, []
    with precision():
        run = jax.jit(jax.vmap(lambda w: joint_values(blank.net, w, blank.numbers, jnp.asarray(X).T)))
        for start in range(0, draws, batch):
            rows.append(np.asarray(run(stacked_weights(blank, range(start, start + batch)))).reshape(batch, -1))
    F = np.concatenate(rows)
    products = F[:, :, None] * F[:, None, :]
    gap, error = products.mean(axis=0) - matrix(theory.nngp), products.std(axis=0) / np.sqrt(len(F))
    relative, expected = (np.linalg.norm(v) / np.linalg.norm(theory.nngp) for v in (gap, error))
    row(
        f"covariance of (f, df/dx) over {draws} nets, n = {width}, largest deviation",
        "within 4 standard errors",
        f"{np.abs(gap / error).max():.1f} standard errors (relative error {relative:.3f}, expected {expected:.3f})",
    )


def trained_nets(widths: tuple[int, int], seeds: int) -> None:
    """Nets trained with the penalty, against the linear equation from where each of them starts."""
    training = tp.GradientDescent(lr=0.5, steps=120)
    theory = robust_training(NET, PAR, training, TASK, 0.1)
    nets = train_robustly(NET, PAR, training, TASK, 0.1, widths=widths, seeds=seeds, progress=False)
    assert nets.F_test is not None
    found = np.concatenate([nets.F, nets.F_test], axis=3)
    expected = np.array([[theory.evolve(F[0], training.steps) for F in of_width] for of_width in found])
    gap, P = np.abs(found[:, :, -1] - expected), TASK.P
    both = f"n = {widths[0]} to {widths[1]}, {seeds} seeds"
    for what, values in (("f", gap[:, :, :P, 0].max(axis=2)), ("(f, df/dx)", gap[:, :, :P].max(axis=(2, 3)))):
        mean, error = values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(seeds)
        row(
            f"net against equation at time 60, largest error of {what} on training points, {both}",
            "halves or better",
            f"{mean[0]:.3f} +- {error[0]:.3f} to {mean[1]:.3f} +- {error[1]:.3f}: {mean[0] / mean[1]:.2f} times",
        )
    test = gap[:, :, P:, 0].max(axis=2)
    row(
        f"the same, f on test points, n = {widths[1]}",
        "at most 0.2",
        f"{test[1].mean():.3f} +- {test[1].std(ddof=1) / np.sqrt(seeds):.3f} (n = {widths[0]}: {test[0].mean():.3f})",
    )


def ends(penalties: Sequence[float]) -> None:
    """The trained predictor does not depend on the penalty."""
    solved = [robust_training(NET, PAR, tp.GradientFlow(time=60, steps=1), TASK, p).at(math.inf) for p in penalties]
    shift = max(np.abs(s.F_test - solved[0].F_test).max() for s in solved)  # type: ignore[operator]
    row(f"end of training at penalties {', '.join(f'{p:g}' for p in penalties)}, largest difference on test points", "none", f"{shift:.1e}")


def timings(points: int, dimension: int) -> None:
    """Kernels of (f, df/dx) on a larger problem."""
    inputs = np.random.default_rng(0).standard_normal((points, dimension))
    print("\n| both kernels of (f, df/dx), three weight layers | first call (s) | next (s) |\n|---|---|---|")
    for activation in (tp.erf, tp.tanh):
        net, seconds = tp.mlp(depth=2, activation=activation), []
        for _ in range(2):
            start = time.process_time()
            found = jacobian_kernels(net, PAR, inputs)
            seconds.append(time.process_time() - start)
        size = 2 * found.ntk.nbytes / 2**20
        print(f"| {activation.name}, {points} inputs in {dimension} dimensions ({size:.0f} MiB) | {seconds[0]:.1f} | {seconds[1]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller nets and fewer draws")
    quick = parser.parse_args().quick
    theory = jacobian_kernels(NET, PAR, X)
    print("| what | claimed | measured |\n|---|---|---|")
    empirical_kernels(theory, (64, 256) if quick else (64, 128, 256, 512, 1024), 3 if quick else 6)
    initial_covariance(theory, 64 if quick else 256, 200 if quick else 4000)
    trained_nets((16, 64) if quick else (64, 256), 4 if quick else 24)
    ends((0.01, 1.0))
    timings(10 if quick else 100, 4 if quick else 64)


if __name__ == "__main__":
    main()
