"""Losses with dl/df = f - y: mean and covariance in closed form at any time (``theory/kernel_training.md``, KT.3 and KT.7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver import checks
from tp_solver.kernel_regime.filters import filter_at, moving, reported_filters, whole_steps
from tp_solver.kernel_regime.stepped import stepped_solvers
from tp_solver.kernel_regime.trajectory import KernelTrajectory, exact_trajectory, point_losses
from tp_solver.program.losses import Loss, gradient
from tp_solver.program.training import GradientDescent, Training


def is_affine(loss: Loss, outputs: int) -> bool:
    """Whether dl/df = f - y, so that the dynamics is linear with unit slope."""
    f, y, _, slopes = gradient(loss, outputs)
    return all(sp.expand(s - a + b) == 0 for s, a, b in zip(slopes, f, y, strict=True))


@dataclass(frozen=True, eq=False)
class Eigenmodes:
    """w^(1/2) K w^(1/2) = U Lambda U^T on the training points, whose errors the loss weighs by w, for example 1/P.

    Directions that do not move are left out: K u = 0 there, and a long time would make much of its rounding.

    Attributes:
        eigenvalues: (M,), M <= P, positive and rising, learning rates included.
        columns: w^(1/2) U, (P, M).
    """

    eigenvalues: np.ndarray
    columns: np.ndarray

    def solver(self, filters: np.ndarray) -> np.ndarray:
        """S = w^(1/2) U g U^T w^(1/2), (P, P), which takes initial errors y - f_0 to coefficients c with f = f_0 + K c."""
        return (self.columns * filters) @ self.columns.T


def eigenmodes(kernel: np.ndarray, root: np.ndarray) -> Eigenmodes:
    """The modes of a kernel of the training points, (P, P), learning rates included, for roots of weights w^(1/2), (P,)."""
    eigenvalues, vectors = np.linalg.eigh(root[:, None] * kernel * root)
    moves = moving(eigenvalues)
    return Eigenmodes(eigenvalues[moves], root[:, None] * vectors[:, moves])


def _evenly(points: int) -> np.ndarray:
    return np.full(points, points**-0.5)


def affine_trajectory(
    kernel: np.ndarray, y: np.ndarray, labels: np.ndarray, training: Training, covariance: np.ndarray | None
) -> KernelTrajectory:
    """Mean and covariance at all reported times.

    Args:
        kernel: (Pa, Pa), rates included; y: (P, K); labels: y, with test labels appended or not.
        covariance: of the initial function, (Pa, Pa), or None for a start at zero.
    """
    points, all_points = len(y), len(kernel)
    inner = kernel[:points, :points]
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(training, GradientDescent) and not training.even:
            coefficients = np.stack(list(stepped_solvers(inner, training, y)))
            influences = (kernel[:, :points] @ s for s in stepped_solvers(inner, training, np.eye(points)))
        else:
            modes = eigenmodes(inner, _evenly(points))
            filters = reported_filters(training, modes.eigenvalues)
            coefficients = np.einsum("pi,ti,ik->tpk", modes.columns, filters, modes.columns.T @ y, optimize=True)
            reach = kernel[:, :points] @ modes.columns
            influences = ((reach * g) @ modes.columns.T for g in filters)
        f = np.einsum("ap,tpk->tak", kernel[:, :points], coefficients)
        shape = (len(coefficients), all_points, all_points, y.shape[1])
        f_cov = np.broadcast_to(0.0, shape)
        if covariance is not None:
            f_cov = np.broadcast_to(np.stack(list(_propagated(influences, covariance)))[..., None], shape)
        with jax.enable_x64(True):
            losses = np.asarray(point_losses(training.loss, jnp.asarray(labels), jnp.asarray(f)))
        # the loss is quadratic with unit curvature
        losses = losses + np.einsum("taak->ta", f_cov)[:, : len(labels)] / 2
    return exact_trajectory(f, f_cov, losses, coefficients)


def _propagated(influences: Iterator[np.ndarray], covariance: np.ndarray) -> Iterator[np.ndarray]:
    """A C A^T per time, A = 1 - K S acting on the initial function of the training points; ``influences`` are K S, (Pa, P)."""
    for influence in influences:
        a = np.eye(len(covariance))
        a[:, : influence.shape[1]] -= influence
        yield a @ covariance @ a.T


def solver_at(kernel: np.ndarray, training: Training, time: float) -> np.ndarray:
    """S at one time, (P, P), for a kernel of the training points with rates included; see :meth:`Eigenmodes.solver`.

    Raises:
        InputError: for a time that the rule does not have, or infinity where the training diverges.
    """
    if isinstance(training, GradientDescent) and not training.even:
        steps = whole_steps(checks.number("time", time, minimum=0.0, maximum=float(training.steps), hint="a step of the rule"))
        return next(islice(stepped_solvers(kernel, training, np.eye(len(kernel))), steps, None))
    modes = eigenmodes(kernel, _evenly(len(kernel)))
    return modes.solver(filter_at(training, modes.eigenvalues, time).moved)


def covariance_at(prior: np.ndarray, prior_train: np.ndarray, train_covariance: np.ndarray, influence: np.ndarray) -> np.ndarray:
    """Cov f of some points: C_** + B C B^T - B C_X* - C_*X B^T with B = K_*X S, (M, M).

    Args:
        prior: covariance of the initial function on the points, (M, M), or (M,) for variances alone, which are then returned.
        prior_train: the same between them and the training points, (M, P); train_covariance: (P, P).
        influence: B, (M, P).
    """
    if prior.ndim == 1:
        return (
            prior
            + np.einsum("ap,pq,aq->a", influence, train_covariance, influence, optimize=True)
            - 2 * np.sum(influence * prior_train, axis=1)
        )
    cross = influence @ prior_train.T
    return prior + influence @ train_covariance @ influence.T - cross - cross.T
