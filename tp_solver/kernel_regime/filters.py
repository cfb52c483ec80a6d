"""How much of an error is left along one direction of the kernel, for the rules of training (``theory/kernel_training.md``, KT.3 to KT.6).

Eigenvalues are those of p^(1/2) K p^(1/2) on the training points, learning rates included: per step for descent, per unit of
time for flow. With r(t) the share of the initial error that is left, the filter is g(t) = (1 - r(t)) / lambda, which has no
singularity at lambda = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.stepped import require_equal_steps
from tp_solver.program.training import GradientDescent, GradientFlow, Training

CUTOFF = np.finfo(float).eps
"""Eigenvalues below this times their number times the largest one are rounding: such directions never move."""


def moving(eigenvalues: np.ndarray) -> np.ndarray:
    """Which directions move at all, (P,): the others have eigenvalues that are zero but for rounding, of either sign."""
    return eigenvalues > CUTOFF * len(eigenvalues) * eigenvalues.max(initial=0.0)


def reported_filters(training: Training, eigenvalues: np.ndarray) -> np.ndarray:
    """g at every reported time, (T + 1, P).

    Raises:
        InputError: for rules whose steps differ.
    """
    require_equal_steps(training)
    if isinstance(training, GradientFlow):
        return np.stack([_flow(t, eigenvalues) for t in np.linspace(0.0, training.time, training.steps + 1)])
    before, rows = np.zeros_like(eigenvalues), [np.zeros_like(eigenvalues)]
    for _ in range(training.steps):
        now = rows[-1]
        rows.append(1.0 + (1.0 - eigenvalues) * now + training.momentum * (now - before))
        before = now
    return np.stack(rows)


class Filter(NamedTuple):
    """g and r at one time, each (P,)."""

    moved: np.ndarray
    left: np.ndarray


def filter_at(training: Training, eigenvalues: np.ndarray, time: float) -> Filter:
    """g and r at one time: a number of steps for descent, a time for flow, or infinity.

    Raises:
        InputError: for a time that the rule does not have, or infinity where the training diverges.
    """
    require_equal_steps(training)
    if isinstance(time, float) and time == np.inf:
        return _settled(training, eigenvalues)
    time = checks.number("time", time, minimum=0.0, hint="a number of steps, or a time of gradient flow; math.inf is the end of training")
    if isinstance(training, GradientFlow):
        return Filter(_flow(time, eigenvalues), np.exp(-eigenvalues * time))
    return _descended(eigenvalues, training.momentum, whole_steps(time))


def whole_steps(time: float) -> int:
    """A number of steps.

    Raises:
        InputError: for a time between two of them.
    """
    if time != int(time):
        raise InputError("time", time, "a whole number of steps", "gradient descent has states at whole steps only")
    return int(time)


def _flow(time: float, eigenvalues: np.ndarray) -> np.ndarray:
    small = np.abs(eigenvalues) < 1e-300
    safe = np.where(small, 1.0, eigenvalues)
    return np.where(small, time, -np.expm1(-safe * time) / safe)


def _descended(eigenvalues: np.ndarray, momentum: float, steps: int) -> Filter:
    """The companion matrix of two successive states, with the constant push as a third column, to the power ``steps``.

    r starts from (1, 1) without push, g from (0, 0) with it.
    """
    step = np.zeros((len(eigenvalues), 3, 3))
    step[:, 0, 0], step[:, 0, 1], step[:, 0, 2] = 1.0 + momentum - eigenvalues, -momentum, 1.0
    step[:, 1, 0] = step[:, 2, 2] = 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        power = np.linalg.matrix_power(step, steps)
        return Filter(power[:, 0, 2], power[:, 0, 0] + power[:, 0, 1])


def _settled(training: Training, eigenvalues: np.ndarray) -> Filter:
    largest = eigenvalues.max(initial=0.0)
    if isinstance(training, GradientDescent) and largest >= edge(training.momentum):
        raise InputError(
            "time",
            np.inf,
            "a finite number of steps",
            f"training diverges: the rate is {largest / edge(training.momentum):.4g} times the critical one",
        )
    moves = moving(eigenvalues)
    return Filter(np.where(moves, 1.0 / np.where(moves, eigenvalues, 1.0), 0.0), np.where(moves, 0.0, 1.0))


def edge(momentum: float) -> float:
    """The eigenvalue below which descent converges: the roots of z^2 - (1 + beta - lambda) z + beta lie inside the unit circle."""
    return 2.0 * (1.0 + momentum)


def growth_per_step(eigenvalues: np.ndarray, momentum: float) -> np.ndarray:
    """Factor by which errors shrink (or grow, above one) per step of descent in the long run, (P,)."""
    middle = (1.0 + momentum - eigenvalues) / 2
    root = np.sqrt((middle**2 - momentum).astype(complex))
    return np.maximum(np.abs(middle + root), np.abs(middle - root))
