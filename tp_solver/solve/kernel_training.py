"""Training in function space with the kernels of a theory, in closed form or sampled, and what sampling does to its errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from tp_solver.kernel_regime.compute import KernelSet, kernels
from tp_solver.kernel_regime.dynamics import dynamics, rated_ntk, rates_of
from tp_solver.kernel_regime.maps import NoClosedKernels
from tp_solver.kernel_regime.trajectory import KernelTrajectory
from tp_solver.limit.equations import LimitEquations
from tp_solver.program.task import Task
from tp_solver.solve.sampled_kernels import SampledKernels, Sampling, sampled_kernels


@dataclass(frozen=True)
class Trained:
    """Dynamics on training and other points.

    Attributes:
        trajectory: with the mean kernels, where they are sampled.
        initial: kernels over all points.
        kernel: the tangent kernel with lr, which enters per matrix, (Pa, Pa).
        f_stderr: standard error of f on all points, (T + 1, Pa, K); loss_stderr, loss_test_stderr: (T + 1,).
    """

    trajectory: KernelTrajectory
    initial: KernelSet
    kernel: np.ndarray
    f_stderr: np.ndarray
    loss_stderr: np.ndarray
    loss_test_stderr: np.ndarray


def initial_kernels(theory: LimitEquations, X: np.ndarray, how: Sampling) -> KernelSet:
    """Kernels over points X (n, D) of every layer: in closed form, sampled where the program has none."""
    program, parameterization = theory.program, theory.parameterization
    try:
        return kernels(program, parameterization, X, layers=True)
    except NoClosedKernels:
        return sampled_kernels(program, parameterization, X, None, how.samples, how.replicates, how.seed, how.tol)


def train(
    theory: LimitEquations, task: Task, gamma0: float, X_test: np.ndarray | None, y_test: np.ndarray | None, how: Sampling
) -> Trained:
    """Dynamics on the training points, then on others; ``how`` is for kernels without a closed form.

    With sampled kernels the dynamics is repeated with those of every replicate and setting: what it makes of their differences is
    the standard error, beside that of its own draws.
    """
    X = task.X if X_test is None else np.concatenate([task.X, X_test])
    found = initial_kernels(theory, X, how)
    rates = rates_of(theory.training, theory.program)
    y, _ = task.targets(theory.training.loss)
    random = theory.spec.random_output and gamma0 > 0

    def run(one: KernelSet) -> KernelTrajectory:
        start = one.nngp / gamma0**2 if random else None
        return dynamics(rated_ntk(one, rates), y, theory.training, start, y_test=y_test)

    out = run(found)
    own = {"f": out.f_stderr, "loss": out.loss_stderr, "loss_test": out.loss_test_stderr}
    if isinstance(found, SampledKernels):
        runs = {id(one): _values(run(one)) for kept in found.groups.values() for one in kept}
        with np.errstate(invalid="ignore", over="ignore"):
            own = {name: np.hypot(e, found.estimate(partial(_read, runs, name)).stderr) for name, e in own.items()}
    return Trained(out, found, rated_ntk(found, rates), own["f"], own["loss"], own["loss_test"])


def _read(runs: Mapping[int, Mapping[str, np.ndarray]], name: str, one: KernelSet) -> np.ndarray:
    return runs[id(one)][name]


def _values(trajectory: KernelTrajectory) -> dict[str, np.ndarray]:
    f = np.concatenate([trajectory.f, trajectory.f_test], axis=1)
    return {"f": f, "loss": trajectory.loss, "loss_test": trajectory.loss_test}
