"""The kernel regime as a Solution: initial kernels of the program and the linear dynamics in function space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tp_solver.errors import RangeError
from tp_solver.limit.equations import LimitEquations
from tp_solver.limit.regime import Regime
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent
from tp_solver.solve.constants import numeric_constants
from tp_solver.solve.kernel_dynamics import KernelTrajectory, dynamics
from tp_solver.solve.kernel_propagation import InitialKernels, propagate
from tp_solver.solve.solution import Fields, Solution, Status


@dataclass(frozen=True, eq=False)
class StaticKernels:
    """Kernels that do not move: those of initialisation, whatever the time.

    Attributes:
        Phi_layers, G_layers: (layers, P, P); tangent: (P, P) without lr.
        theory, task, gamma0: to predict at new points.
    """

    Phi_layers: np.ndarray
    G_layers: np.ndarray
    tangent: np.ndarray
    theory: LimitEquations
    task: Task
    gamma0: float

    def Phi(self, layer: int, t: int, s: int) -> np.ndarray:
        return self.Phi_layers[layer - 1]

    def G(self, layer: int, t: int, s: int) -> np.ndarray:
        return self.G_layers[layer - 1]

    def A(self, layer: int, t: int, s: int) -> np.ndarray:
        """Responses vanish in the kernel regime."""
        return np.zeros_like(self.tangent)

    def B(self, layer: int, t: int, s: int) -> np.ndarray:
        """Responses vanish in the kernel regime."""
        return np.zeros_like(self.tangent)

    def ntk(self, t: int) -> np.ndarray:
        return self.tangent

    def fields(self, layer: int, t: int) -> Fields:
        raise RangeError(
            "fields", "a kernel-regime solution", "a solution that was sampled", "fields are Gaussian here, with covariance Phi"
        )

    def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        trajectory, _ = _trajectory(self.theory, self.task, self.gamma0, X, None)
        return trajectory.f_test[-1], trajectory.f_stderr[-1, self.task.P :]

    def stderr(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        return np.zeros_like(self.tangent)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"Phi": self.Phi_layers, "G": self.G_layers, "tangent": self.tangent}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], theory: Any, task: Any, gamma0: float) -> StaticKernels:
        return cls(arrays["Phi"], arrays["G"], arrays["tangent"], theory, task, gamma0)


def _trajectory(
    theory: LimitEquations, task: Task, gamma0: float, X_test: np.ndarray | None, y_test: np.ndarray | None
) -> tuple[KernelTrajectory, InitialKernels]:
    """Dynamics on training and other points; lr enters per matrix."""
    program = theory.program
    scales, rates = numeric_constants(theory, task.D)
    X = task.X if X_test is None else np.concatenate([task.X, X_test])
    initial = propagate(program, scales, rates, X @ X.T)
    training = theory.training
    lr = training.rates(program) if isinstance(training, GradientDescent) else {m.name: 1.0 for m in program.matrices}
    kernel = np.sum([lr[m] * part for m, part in initial.parts.items()], axis=0)
    y, _ = task.targets(training.loss)
    random = theory.spec.random_output and gamma0 > 0
    return dynamics(kernel, y, training, initial.output_covariance / gamma0**2 if random else None, y_test=y_test), initial


def solve_kernel(theory: LimitEquations, task: Task, gamma0: float) -> Solution:
    """Function-space training with the kernel of initialisation: the kernel regime, or the limit gamma0 -> 0 of any other.

    For a random initial function ``f`` is the mean and ``f_cov`` the covariance; at gamma0 = 0 the dynamics is centred.
    """
    P, loss = task.P, theory.training.loss
    _, y_test = task.targets(loss)
    trajectory, initial = _trajectory(theory, task, gamma0, task.X_test, y_test)
    squeeze = task.scalar(loss)

    def shown(f: np.ndarray) -> np.ndarray:
        return f[..., 0] if squeeze else f

    values, errors = {"f": shown(trajectory.f)}, {"f": shown(trajectory.f_stderr[:, :P])}
    values["loss"], errors["loss"] = trajectory.loss, trajectory.loss_stderr
    if task.X_test is not None:
        values["f_test"], errors["f_test"] = shown(trajectory.f_test), shown(trajectory.f_stderr[:, P:])
        if y_test is not None:
            values["loss_test"], errors["loss_test"] = trajectory.loss_test, trajectory.loss_test_stderr
    kernels = StaticKernels(
        np.array([k[:P, :P] for k in initial.Phi]), np.array([k[:P, :P] for k in initial.G]), initial.ntk[:P, :P], theory, task, gamma0
    )
    bad = trajectory.first_bad
    if bad is not None:
        values, errors = ({k: v[:bad] for k, v in d.items()} for d in (values, errors))
    status = Status.COMPLETED if bad is None else Status.NONFINITE
    message = "closed form" if bad is None else f"f at step {bad}; the last good state is step {bad - 1}; {status.advice}"
    lazy = theory.regime is Regime.FEATURE
    covariance = trajectory.f_cov[..., 0] if squeeze else trajectory.f_cov
    return Solution(
        theory,
        task,
        gamma0,
        "kernel",
        values["f"],
        values["loss"],
        values.get("f_test"),
        values.get("loss_test"),
        errors,
        kernels,
        status,
        message + (", the limit gamma0 -> 0" if lazy else ""),
        f_cov=covariance if theory.spec.random_output else None,
    )
