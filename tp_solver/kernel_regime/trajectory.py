"""The record of training in function space, and what its makers share."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.elementwise import lower
from tp_solver.program.losses import Loss, gradient


@dataclass(frozen=True)
class KernelTrajectory:
    """Mean and covariance of the function over random initial functions.

    Attributes:
        f: mean on the training points, (T + 1, P, K).
        f_test: mean on the other points, (T + 1, Pa - P, K).
        f_cov: covariance over all points of each output, (T + 1, Pa, Pa, K).
        f_stderr: Monte-Carlo standard error of the mean on all points, (T + 1, Pa, K); zero where exact.
        variance_stderr: the same of the diagonal of ``f_cov``.
        loss, loss_test: mean over initial functions and over training (test) points of the loss, (T + 1,); NaN without test labels.
        loss_stderr, loss_test_stderr: their Monte-Carlo standard errors, zero where exact.
        coefficients: at the last good row, (R, P, K) with R replicates (one where exact): the mean of f at any point is its
            kernel with the training points times the mean of these (``theory/kernel_training.md``, KT.2).
        first_bad: the first row that is not finite (a diverging run), or None.
    """

    f: np.ndarray
    f_test: np.ndarray
    f_cov: np.ndarray
    f_stderr: np.ndarray
    variance_stderr: np.ndarray
    loss: np.ndarray
    loss_test: np.ndarray
    loss_stderr: np.ndarray
    loss_test_stderr: np.ndarray
    coefficients: np.ndarray
    first_bad: int | None


def exact_trajectory(f: np.ndarray, f_cov: np.ndarray, losses: np.ndarray, coefficients: np.ndarray) -> KernelTrajectory:
    """A trajectory without sampling error.

    Args:
        f: mean on all points, (T + 1, Pa, K); f_cov: (T + 1, Pa, Pa, K).
        losses: mean loss of every labelled point, (T + 1, points).
        coefficients: at every row, (T + 1, P, K).
    """
    points = coefficients.shape[1]
    none, zero = np.broadcast_to(0.0, f.shape), np.zeros(len(f))
    train, test = split(losses, points)
    bad = first_bad(f, f_cov)
    # in memory as it comes back from a file, so that predictions are the same bits
    kept = np.ascontiguousarray(coefficients[last_good(bad)][None])
    return KernelTrajectory(f[:, :points], f[:, points:], f_cov, none, none, train, test, zero, zero, kept, bad)


def first_bad(f: np.ndarray, f_cov: np.ndarray) -> int | None:
    """The first row where the mean or a variance is not finite, or None."""
    diagonal = np.einsum("taak->tak", f_cov)
    bad = ~(np.isfinite(f) & np.isfinite(diagonal)).all(axis=(1, 2))
    return int(np.argmax(bad)) if bad.any() else None


def last_good(bad: int | None) -> int:
    """The row before the first bad one; the last one if none is bad."""
    return -1 if bad is None else max(bad - 1, 0)


def split(losses: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over training and over test points of (..., points), NaN where there are no test labels."""
    train, test = losses[..., :points].mean(axis=-1), losses[..., points:]
    return train, test.mean(axis=-1) if test.shape[-1] else np.full(train.shape, np.nan)


def point_losses(loss: Loss, labels: jax.Array, f: jax.Array) -> jax.Array:
    """Loss of every labelled point, (n, points), for functions f (n, Pa, K) and labels (points, K)."""
    outputs = labels.shape[1]
    f_symbols, y_symbols, value, _ = gradient(loss, outputs)
    f = f[:, : len(labels)]
    arguments = [*(f[..., k] for k in range(outputs)), *(labels[:, k] for k in range(outputs))]
    return jnp.broadcast_to(lower(value, (*f_symbols, *y_symbols))(*arguments), f.shape[:2])


def point_slopes(loss: Loss, y: jax.Array, f: jax.Array) -> jax.Array:
    """dl/df of every training point, (n, P, K), for functions f (n, Pa, K) and labels y (P, K)."""
    outputs = y.shape[1]
    f_symbols, y_symbols, _, slopes = gradient(loss, outputs)
    f = f[:, : len(y)]
    arguments = [*(f[..., k] for k in range(outputs)), *(y[:, k] for k in range(outputs))]
    return jnp.stack([jnp.broadcast_to(lower(s, (*f_symbols, *y_symbols))(*arguments), f.shape[:2]) for s in slopes], axis=-1)
