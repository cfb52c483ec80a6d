"""How the learning rate changes, and which points each step sees: definitions that equations, solvers and nets read alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.symbols.notation import T

STEPS = sp.Symbol("steps", integer=True, positive=True)
"""The number of updates of a run, in the expression of a schedule."""


@dataclass(frozen=True)
class Schedule:
    """A factor of the learning rate: the update of step t has the rate lr x factor(t).

    Schedules multiply: ``tp.warmup(10) * tp.cosine()``.

    Args:
        name: how it prints.
        factor: a sympy expression >= 0 in ``tp.T`` (the step, from 0) and ``tp.STEPS`` (how many there are).

    Raises:
        InputError: for other symbols.
    """

    name: str
    factor: sp.Expr

    def __post_init__(self) -> None:
        checks.instance("name", self.name, str, "a text")
        try:
            factor = sp.sympify(self.factor)
        except (sp.SympifyError, TypeError) as error:
            raise InputError("factor", self.factor, "a sympy expression in tp.T", "0.9 ** tp.T") from error
        object.__setattr__(self, "factor", factor)
        if unknown := factor.free_symbols - {T, STEPS}:
            raise InputError(
                "factor", f"the symbols {sorted(map(str, unknown))}", "an expression in tp.T and tp.STEPS", "put numbers in their place"
            )

    def values(self, steps: int) -> np.ndarray:
        """The factors of all steps, (steps,).

        Raises:
            InputError: for a factor that is negative or not finite at some step.
        """
        try:
            with np.errstate(all="ignore"):
                found = np.asarray(sp.lambdify((T, STEPS), self.factor, "numpy")(np.arange(steps, dtype=float), float(steps)))
        except Exception as error:  # functions without numbers fail in many ways
            raise InputError(
                "schedule", self.factor, "an expression that has a number at every step", "use sympy's own functions"
            ) from error
        if not (np.issubdtype(found.dtype, np.floating) or np.issubdtype(found.dtype, np.integer)):
            raise InputError("schedule", self.factor, "a real expression", f"its values are of type {found.dtype}")
        values = np.broadcast_to(found.astype(float), (steps,)).copy()
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if len(bad):
            raise InputError(
                "schedule", f"a factor {values[bad[0]]} at step {bad[0]}", "finite factors >= 0", f"its factor is {self.factor}"
            )
        return values

    def __mul__(self, other: Schedule) -> Schedule:
        if not isinstance(other, Schedule):
            return NotImplemented
        if CONSTANT in (self, other):
            return self if other == CONSTANT else other
        return Schedule(f"{self.name} x {other.name}", self.factor * other.factor)

    def __str__(self) -> str:
        return self.name


CONSTANT = Schedule("constant", sp.S.One)
"""The learning rate stays what it is."""


def cosine(final: float = 0.0) -> Schedule:
    """Half a cosine from 1 to ``final`` over the run (Loshchilov and Hutter 2017, without restarts)."""
    end = sp.nsimplify(checks.number("final", final, minimum=0.0), rational=True)
    return Schedule(f"cosine to {final:g}", end + (1 - end) * (1 + sp.cos(sp.pi * T / STEPS)) / 2)


def step_decay(every: int, factor: float = 0.1) -> Schedule:
    """Times ``factor`` after every so many steps."""
    period = checks.integer("every", every, minimum=1)
    base = sp.nsimplify(checks.number("factor", factor, minimum=0.0), rational=True)
    return Schedule(f"x {factor:g} every {period} steps", base ** sp.floor(T / period))


def warmup(steps: int) -> Schedule:
    """Linear growth over the first ``steps`` updates: factors 1/steps, 2/steps, ..., 1."""
    count = checks.integer("steps", steps, minimum=1)
    return Schedule(f"warmup over {count} steps", sp.Min(1, (T + 1) / sp.Integer(count)))


@dataclass(frozen=True)
class Batches:
    """Minibatches: each epoch passes through all points once, in pieces of ``size`` (the last piece holds what is left).

    Args:
        size: points per step.
        seed: shuffles every epoch anew; None keeps the order of the data.
    """

    size: int
    seed: int | None = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", checks.integer("size", self.size, minimum=1))
        if self.seed is not None:
            object.__setattr__(self, "seed", checks.integer("seed", self.seed, minimum=0, hint="None keeps the order of the data"))

    def chosen(self, points: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the points of every step, (steps, size), and their weights 1/(points of the batch); a shorter batch repeats
        its first point with weight 0.

        Raises:
            InputError: for batches larger than the data.
        """
        if self.size > points:
            raise InputError(
                "batches", f"size {self.size} for {points} points", f"a size of at most {points}", "batches=None is the full batch"
            )
        rng = np.random.default_rng(self.seed)
        indices: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        while len(indices) < steps:
            order = np.arange(points) if self.seed is None else rng.permutation(points)
            for start in range(0, points, self.size):
                piece = order[start : start + self.size]
                missing = self.size - len(piece)
                indices.append(np.concatenate([piece, np.full(missing, piece[0])]))
                weights.append(np.concatenate([np.full(len(piece), 1 / len(piece)), np.zeros(missing)]))
        return np.array(indices[:steps]), np.array(weights[:steps])

    def point_weights(self, points: int, steps: int) -> np.ndarray:
        """p_mu(t) of every step and point, (steps, points)."""
        indices, weights = self.chosen(points, steps)
        out = np.zeros((steps, points))
        np.add.at(out, (np.arange(steps)[:, None], indices), weights)
        return out

    def __str__(self) -> str:
        return f"batches of {self.size}" + (", in order" if self.seed is None else "")


def check_schedule(value: Any) -> Schedule:
    """A schedule."""
    return checks.instance("schedule", value, Schedule, "a schedule such as tp.cosine()", "leave it out for a constant rate")
