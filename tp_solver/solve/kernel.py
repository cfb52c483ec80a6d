"""The kernel regime as a Solution: initial kernels of the program and the linear dynamics in function space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.errors import RangeError
from tp_solver.kernel_regime.constants import numeric_constants
from tp_solver.kernel_regime.dynamics import KernelTrajectory, dynamics
from tp_solver.kernel_regime.propagation import InitialKernels, propagate
from tp_solver.limit.equations import LimitEquations
from tp_solver.limit.regime import Regime
from tp_solver.program.losses import SquaredError
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent
from tp_solver.solve.machine import loss_and_error
from tp_solver.solve.solution import Fields, Solution, Status


@dataclass(frozen=True, eq=False)
class StaticKernels:
    """Kernels that do not move: those of initialisation, whatever the time.

    Attributes:
        Phi_layers, G_layers: (layers, P, P), G of a single output; tangent: (P, P) without lr.
        e: mean weighted errors (T + 1, P, K) where there are several outputs, else None.
        e_cov: their covariance at equal times, summed over outputs, (T + 1, P, P); NaN where it has no closed form.
        theory, task, gamma0: to predict at new points.
    """

    Phi_layers: np.ndarray
    G_layers: np.ndarray
    tangent: np.ndarray
    e: np.ndarray | None
    e_cov: np.ndarray | None
    theory: LimitEquations
    task: Task
    gamma0: float

    def Phi(self, layer: int, t: int, s: int) -> np.ndarray:
        return self.Phi_layers[layer - 1]

    def G(self, layer: int, t: int, s: int) -> np.ndarray:
        """Constant for one output; for several, that of the loss gradients, whose errors shrink with time."""
        if self.e is None or self.e_cov is None:
            return self.G_layers[layer - 1]
        fluctuation = self.e_cov[t] if t == s else np.where(self.e_cov[t] == 0, 0.0, np.nan)
        if np.isnan(fluctuation).any():
            raise RangeError(
                "G", "loss gradients of a random initial function", "squared error and equal times",
                "simulate the nets for this one, or start from zero (gamma0 = 0 or a mean-field readout)",
            )  # fmt: skip
        return self.G_layers[layer - 1] * (self.e[t] @ self.e[s].T + fluctuation)

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
        several = {} if self.e is None or self.e_cov is None else {"e": self.e, "e_cov": self.e_cov}
        return {"Phi": self.Phi_layers, "G": self.G_layers, "tangent": self.tangent, **several}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], theory: Any, task: Any, gamma0: float) -> StaticKernels:
        return cls(arrays["Phi"], arrays["G"], arrays["tangent"], arrays.get("e"), arrays.get("e_cov"), theory, task, gamma0)


def _trajectory(
    theory: LimitEquations, task: Task, gamma0: float, X_test: np.ndarray | None, y_test: np.ndarray | None
) -> tuple[KernelTrajectory, InitialKernels]:
    """Dynamics on training and other points; lr enters per matrix."""
    program = theory.program
    scales, rates = numeric_constants(theory.program, theory.spec, task.D)
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
    e, e_cov = (None, None) if squeeze else _error_moments(theory, task, trajectory)
    Phi, G = (np.array([k[:P, :P] for k in layers]) for layers in (initial.Phi, initial.G))
    kernels = StaticKernels(Phi, G, initial.ntk[:P, :P], e, e_cov, theory, task, gamma0)
    bad = trajectory.first_bad
    if bad is not None:
        values, errors = ({k: v[:bad] for k, v in d.items()} for d in (values, errors))
    status = Status.COMPLETED if bad is None else Status.NONFINITE
    how = "initial functions were sampled" if trajectory.f_stderr.any() else "no sampling"
    message = how if bad is None else f"f at step {bad}; the last good state is step {bad - 1}; {status.advice}"
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


def _error_moments(theory: LimitEquations, task: Task, trajectory: KernelTrajectory) -> tuple[np.ndarray, np.ndarray]:
    """Mean (T + 1, P, K) of the weighted errors e = -p dl/df, and their covariance summed over outputs (T + 1, P, P)."""
    P = task.P
    y, _ = task.targets(theory.training.loss)
    with jax.enable_x64(True):
        flat = trajectory.f.reshape(-1, y.shape[1])
        _, error = loss_and_error(theory.training.loss, jnp.asarray(flat), jnp.asarray(np.tile(y, (len(trajectory.f), 1))))
    covariance = trajectory.f_cov[:, :P, :P].sum(axis=-1) / P**2
    if not isinstance(theory.training.loss, SquaredError):
        covariance = np.where(covariance == 0, 0.0, np.nan)
    return np.asarray(error).reshape(trajectory.f.shape) / P, covariance
