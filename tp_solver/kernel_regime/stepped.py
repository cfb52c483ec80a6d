"""Minibatches and schedules in function space: steps that differ have no filter, and are taken one by one
(``theory/kernel_training.md``, KT.9)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tp_solver.errors import InputError
from tp_solver.program.training import GradientDescent, Training, require_gradients_alone


def require_equal_steps(training: Training) -> None:
    """Refuse rules whose steps differ, where a closed form is asked for.

    Raises:
        InputError: for minibatches, a schedule, weight decay or noise.
    """
    require_gradients_alone(training, "the kernel regime")
    if not training.even:
        raise InputError(
            "training", "minibatches or a schedule", "full batches at one learning rate",
            "KernelDynamics.run, .at and .predict and tp.solve take steps that differ",
        )  # fmt: skip


def steps_of(training: GradientDescent, points: int) -> Iterator[tuple[float, np.ndarray]]:
    """Per step the factor of the learning rate, and P p_mu(t), which is one for the full batch."""
    yield from zip(training.schedule.values(training.steps), points * training.point_weights(points), strict=True)


def stepped_solvers(kernel: np.ndarray, training: GradientDescent, columns: np.ndarray) -> Iterator[np.ndarray]:
    """S(t) applied to columns (P, M), for t = 0..steps, where f(t) = f_0 + K S(t) (y - f_0) for losses with dl/df = f - y.

    S(t + 1) = S(t) + factor(t) V(t), V(t) = momentum V(t - 1) + diag(p(t)) (1 - K S(t)), V(-1) = 0.

    Args:
        kernel: tangent kernel of the training points, (P, P), learning rates included.
    """
    moved, velocity = np.zeros_like(columns), np.zeros_like(columns)
    yield moved
    for factor, weights in steps_of(training, len(kernel)):
        push = weights[:, None] * (columns - kernel @ moved) / len(kernel)
        velocity = training.momentum * velocity + push
        moved = moved + factor * velocity
        yield moved
