"""The kernel regime as a Solution: initial kernels of the program and the linear dynamics in function space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.errors import RangeError
from tp_solver.kernel_regime.affine import is_affine
from tp_solver.kernel_regime.compute import KernelSet
from tp_solver.kernel_regime.dynamics import rated_kernels, rates_of
from tp_solver.kernel_regime.filters import edge, growth_per_step
from tp_solver.kernel_regime.spectrum import critical_rate
from tp_solver.kernel_regime.trajectory import KernelTrajectory, last_good
from tp_solver.limit.equations import LimitEquations
from tp_solver.limit.regime import Regime
from tp_solver.program.losses import SquaredError
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent, GradientFlow, Training
from tp_solver.solve.kernel_records import within
from tp_solver.solve.kernel_training import train
from tp_solver.solve.machine import loss_and_error
from tp_solver.solve.sampled_kernels import SampledKernels, Sampling
from tp_solver.solve.solution import Fields, Solution, Status

RUNAWAY = 1e8
"""Growth of the loss that counts as divergence where steps differ, so that no critical rate tells."""


@dataclass(frozen=True, eq=False)
class StaticKernels:
    """Kernels that do not move: those of initialisation, whatever the time.

    Attributes:
        Phi_layers, G_layers: (layers, P, P), G of a single output; tangent: (P, P) without lr.
        e: mean weighted errors (T + 1, P, K) where there are several outputs, else None.
        e_cov: their covariance at equal times, summed over outputs, (T + 1, P, P); NaN where it has no closed form.
        coefficients: those of the last good state, (replicates, P, K): what new points are predicted with.
        theory, task: their kernels with the training points.
        errors: standard errors of the kernels under the same names, where they were sampled; else empty.
        sampling: how they were, or None.
        gamma0: as solved.
    """

    Phi_layers: np.ndarray
    G_layers: np.ndarray
    tangent: np.ndarray
    e: np.ndarray | None
    e_cov: np.ndarray | None
    coefficients: np.ndarray
    theory: LimitEquations
    task: Task
    errors: Mapping[str, np.ndarray] = field(default_factory=dict)
    sampling: Sampling | None = None
    gamma0: float = 1.0

    def Phi(self, layer: int, t: int, s: int) -> np.ndarray:
        return self.Phi_layers[layer - 1]

    def G(self, layer: int, t: int, s: int) -> np.ndarray:
        """Constant for one output; for several, that of the loss gradients, whose errors shrink with time."""
        return self.G_layers[layer - 1] * self._signal(t, s)

    def _signal(self, t: int, s: int) -> np.ndarray:
        """What errors of several outputs multiply G by."""
        if self.e is None or self.e_cov is None:
            return np.ones_like(self.tangent)
        fluctuation = self.e_cov[t] if t == s else np.where(self.e_cov[t] == 0, 0.0, np.nan)
        if np.isnan(fluctuation).any():
            raise RangeError(
                "G", "loss gradients of a random initial function", "squared error and equal times",
                "simulate the nets for this one, or start from zero (gamma0 = 0 or a mean-field readout)",
            )  # fmt: skip
        return np.asarray(self.e[t] @ self.e[s].T + fluctuation)

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
        theory = self.theory
        if self.sampling is not None:
            found = train(theory, self.task, self.gamma0, X, None, self.sampling)
            row = last_good(found.trajectory.first_bad)
            return found.trajectory.f_test[row], found.f_stderr[row, self.task.P :]
        _, kernel = rated_kernels(theory.program, theory.parameterization, rates_of(theory.training, theory.program), X, self.task.X)
        f = np.einsum("ap,rpk->rak", kernel, self.coefficients)
        return f.mean(axis=0), np.std(f, axis=0, ddof=1) / np.sqrt(len(f)) if len(f) > 1 else np.zeros_like(f[0])

    def stderr(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        """Zero in closed form; of sampled kernels for several outputs that of G alone, the errors of f being errors of f."""
        match name:
            case "ntk" if "tangent" in self.errors:
                return self.errors["tangent"]
            case "Phi" | "G" if name in self.errors:
                layer, t, s = args
                return self.errors[name][layer - 1] * (np.abs(self._signal(t, s)) if name == "G" else 1.0)
        return np.zeros_like(self.tangent)

    def freedom(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        known = np.inf if self.sampling is None or name in ("A", "B") else self.sampling.replicates - 1.0
        return np.full_like(self.tangent, known)

    def arrays(self) -> dict[str, np.ndarray]:
        several = {} if self.e is None or self.e_cov is None else {"e": self.e, "e_cov": self.e_cov}
        kept = {"Phi": self.Phi_layers, "G": self.G_layers, "tangent": self.tangent, "coefficients": self.coefficients}
        if self.sampling is not None:
            kept |= {f"stderr/{name}": a for name, a in self.errors.items()} | {"sampling": np.array(astuple(self.sampling))}
        return kept | several

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], theory: Any, task: Any, gamma0: float) -> StaticKernels:
        coefficients = arrays.get("coefficients")
        sampling = None
        if "sampling" in arrays:
            samples, replicates, seed, tol = arrays["sampling"]
            sampling = Sampling(int(samples), int(replicates), int(seed), float(tol))
        if coefficients is None:  # a file of version 0.1.0
            coefficients = train(theory, task, gamma0, None, None, sampling or Sampling()).trajectory.coefficients
        return cls(
            arrays["Phi"], arrays["G"], arrays["tangent"], arrays.get("e"), arrays.get("e_cov"), coefficients, theory, task,
            within(arrays, "stderr/"), sampling, gamma0,
        )  # fmt: skip


def solve_kernel(theory: LimitEquations, task: Task, gamma0: float, how: Sampling) -> Solution:
    """Function-space training with the kernel of initialisation: the kernel regime, or the limit gamma0 -> 0 of any other.

    For a random initial function ``f`` is the mean and ``f_cov`` the covariance; at gamma0 = 0 the dynamics is centred.
    Kernels without a closed form are sampled, as ``how`` says: standard errors are theirs then, and ``details["kernels"]`` has their size.
    ``details`` hold ``critical_lr``, the rate below which descent converges (per matrix where lr is), and ``lr_over_critical``.
    """
    P, loss = task.P, theory.training.loss
    _, y_test = task.targets(loss)
    found = train(theory, task, gamma0, task.X_test, y_test, how)
    trajectory, initial, kernel = found.trajectory, found.initial, found.kernel
    squeeze = task.scalar(loss)

    def shown(f: np.ndarray) -> np.ndarray:
        return f[..., 0] if squeeze else f

    values, errors = {"f": shown(trajectory.f)}, {"f": shown(found.f_stderr[:, :P])}
    values["loss"], errors["loss"] = trajectory.loss, found.loss_stderr
    if task.X_test is not None:
        values["f_test"], errors["f_test"] = shown(trajectory.f_test), shown(found.f_stderr[:, P:])
        if y_test is not None:
            values["loss_test"], errors["loss_test"] = trajectory.loss_test, found.loss_test_stderr
    e, e_cov = (None, None) if squeeze else _error_moments(theory, task, trajectory)
    Phi, G = (layers[:, :P, :P] for layers in (initial.Phi, initial.G))
    noise, sampling = _noise(initial, P)
    static = StaticKernels(
        Phi, G, initial.ntk[:P, :P], e, e_cov, trajectory.coefficients, theory, task, noise, sampling, gamma0
    )  # fmt: skip
    bad, f_cov = trajectory.first_bad, trajectory.f_cov
    if bad is not None:
        f_cov = f_cov[:bad]
        values, errors = ({k: v[:bad] for k, v in d.items()} for d in (values, errors))
    details = _stability(theory, kernel[:P, :P], initial.ntk[:P, :P]) | _told(initial)
    status, message = _ending(theory.training, trajectory, details, is_affine(loss, trajectory.f.shape[-1]))
    lazy = theory.regime is Regime.FEATURE
    covariance = f_cov[..., 0] if squeeze else f_cov
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
        static,
        status,
        message + (", the limit gamma0 -> 0" if lazy else ""),
        f_cov=covariance if theory.spec.random_output else None,
        details=details,
        freedom={name: np.full(e.shape, sampling.replicates - 1.0) for name, e in errors.items()} if sampling else {},
    )


def _noise(initial: KernelSet, points: int) -> tuple[dict[str, np.ndarray], Sampling | None]:
    """Standard errors over the training points, and how kernels were sampled."""
    if not isinstance(initial, SampledKernels):
        return {}, None
    cut, error = (..., slice(0, points), slice(0, points)), initial.stderr
    return {"Phi": error.Phi[cut], "G": error.G[cut], "tangent": error.ntk[cut]}, initial.sampling


def _told(initial: KernelSet) -> dict[str, Any]:
    """How kernels were sampled, with their standard errors relative to their root mean squares; nothing of exact ones."""
    if not isinstance(initial, SampledKernels):
        return {}
    shares = {n: float(np.sqrt(np.mean(e**2) / np.mean(v**2))) for n, v, e in _pairs(initial)}
    return {"kernels": asdict(initial.sampling) | {f"stderr of {n}": share for n, share in shares.items()}}


def _pairs(initial: SampledKernels) -> tuple[tuple[str, np.ndarray, np.ndarray], ...]:
    return ("nngp", initial.nngp, initial.stderr.nngp), ("ntk", initial.ntk, initial.stderr.ntk)


def _stability(theory: LimitEquations, kernel: np.ndarray, ntk: np.ndarray) -> dict[str, Any]:
    """The largest learning rate that converges, per matrix where lr is, and how far lr is from it.

    Args:
        kernel: of the training points, (P, P), with lr; ntk: the same without.
    """
    training, curvature = theory.training, theory.training.loss.curvature
    if isinstance(training, GradientFlow):
        return {"critical_lr": critical_rate(ntk, 0.0, curvature)}
    within = critical_rate(kernel, training.momentum, curvature)
    if isinstance(training.lr, float):
        return {"critical_lr": critical_rate(ntk, training.momentum, curvature), "lr_over_critical": 1 / within}
    critical = {name: within * rate if rate else 0.0 for name, rate in training.rates(theory.program).items()}
    return {"critical_lr": critical, "lr_over_critical": 1 / within}


def _ending(training: Training, trajectory: KernelTrajectory, details: Mapping[str, Any], affine: bool) -> tuple[Status, str]:
    """How the run ended. Above the critical rate squared error diverges, however few steps were asked for."""
    bad, over = trajectory.first_bad, details.get("lr_over_critical", 0.0) if training.even else 0.0
    parts = []
    if not training.even and bad is None and trajectory.loss[-1] > RUNAWAY * max(1.0, trajectory.loss[0]):
        return Status.DIVERGED, f"the loss has grown to {trajectory.loss[-1]:.3g}; {Status.DIVERGED.advice}"
    if over > 1 + 1e-9:
        assert isinstance(training, GradientDescent)
        parts.append(f"lr is {over:.4g} times the critical rate {_shown(details['critical_lr'])}")
        if affine:
            growth = growth_per_step(np.array([over * edge(training.momentum)]), training.momentum)[0]
            parts.append(f"the error along the leading mode of the kernel grows {growth:.4g}-fold per step")
        else:
            parts.append("below it every step is sure to lower the loss" if not training.momentum else "it is no longer sure to converge")
    if bad is None and not (affine and over > 1 + 1e-9):
        return Status.COMPLETED, "; ".join([*_origin(trajectory, details), *parts])
    status = Status.DIVERGED if parts else Status.NONFINITE
    if bad is not None:
        parts.append(f"not finite: f at step {bad}; the last good state is step {bad - 1}")
    return status, "; ".join([*parts, status.advice])


def _origin(trajectory: KernelTrajectory, details: Mapping[str, Any]) -> list[str]:
    """What was sampled."""
    kernels = [f"kernels were sampled, the tangent kernel to {details['kernels']['stderr of ntk']:.2%}"] if "kernels" in details else []
    functions = ["initial functions were sampled"] if trajectory.f_stderr.any() else []
    return kernels + functions or ["no sampling"]


def _shown(critical: Any) -> str:
    if isinstance(critical, Mapping):
        return "(" + ", ".join(f"{name}: {rate:.4g}" for name, rate in critical.items()) + ")"
    return f"{critical:.4g}"


def _error_moments(theory: LimitEquations, task: Task, trajectory: KernelTrajectory) -> tuple[np.ndarray, np.ndarray]:
    """Mean (T + 1, P, K) of the weighted errors e = -p dl/df, and their covariance summed over outputs (T + 1, P, P)."""
    P = task.P
    y, _ = task.targets(theory.training.loss)
    with jax.enable_x64(True):
        flat = trajectory.f.reshape(-1, y.shape[1])
        _, error = loss_and_error(theory.training.loss, jnp.asarray(flat), jnp.asarray(np.tile(y, (len(trajectory.f), 1))))
    p = _weights(theory.training, P)
    covariance = trajectory.f_cov[:, :P, :P].sum(axis=-1) * p[:, :, None] * p[:, None]
    if not isinstance(theory.training.loss, SquaredError):
        covariance = np.where(covariance == 0, 0.0, np.nan)
    return np.asarray(error).reshape(trajectory.f.shape) * p[..., None], covariance


def _weights(training: Training, points: int) -> np.ndarray:
    """p_mu of all times, (T + 1, P); the last time, which no update follows, has those of the last update, as in the march."""
    if isinstance(training, GradientFlow):
        return np.full((training.steps + 1, points), 1 / points)
    p = training.point_weights(points)
    return np.concatenate([p, p[-1:]])
