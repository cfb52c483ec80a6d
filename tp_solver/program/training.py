"""Training rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.program.losses import LOSSES, Loss, SquaredError
from tp_solver.program.schedules import CONSTANT, Batches, Schedule, check_schedule
from tp_solver.program.statements import Program
from tp_solver.program.update import Pace, Update


def _check_loss(loss: Any) -> None:
    checks.instance(
        "loss",
        loss,
        tuple(LOSSES.values()),
        "a loss such as tp.SquaredError()",
        "choose tp.SquaredError(), tp.Logistic() or tp.CrossEntropy()",
    )


@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent, exact in discrete time: full batch or minibatches, with momentum, weight decay, noise and a schedule.

    ``v(t) = momentum v(t - 1) - gamma0^2 eta_j N^(-c_j) dLoss/dw``,
    ``w(t + 1) = (1 - lr weight_decay) w(t) + lr v(t) + sqrt(2 lr temperature) N^(-b_j) xi(t)``, v(-1) = 0, with ``lr`` times the
    factor of the schedule at step t; ``Loss = sum_mu p_mu(t) l(f_mu, y_mu)``, p = 1/P, or 1/|batch| on the points of the batch
    (``theory/notation.md``, NO.2; heavy ball: Polyak 1964; noise: Langevin dynamics).

    Args:
        lr: learning rate >= 0, in units of 1/loss; or one value per weight matrix in order of appearance (a sequence), or
            a mapping from matrix names to values (others keep 1 times nothing: every trained matrix must be named).
        steps: number of updates.
        loss: loss per data point.
        momentum: share of the last velocity that is carried on, in [0, 1); 0 is plain gradient descent.
        weight_decay: every weight shrinks by lr x weight_decay per step, whatever gamma0 and the width.
        temperature: of the noise that every weight receives, in units of its N^(-b); 0 for none.
        batches: ``tp.Batches(size, seed)``; None for the full batch.
        schedule: such as ``tp.cosine()``; a constant rate if left out.

    Raises:
        InputError: for values out of range; for a rate and a decay that would turn weights round (lr x weight_decay > 1).
    """

    lr: Any
    steps: int
    loss: Loss = field(default_factory=SquaredError)
    momentum: float = 0.0
    weight_decay: float = 0.0
    temperature: float = 0.0
    batches: Batches | None = None
    schedule: Schedule = CONSTANT

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", _rates(self.lr))
        object.__setattr__(self, "steps", checks.integer("steps", self.steps, minimum=1))
        _check_loss(self.loss)
        object.__setattr__(self, "momentum", check_momentum(self.momentum))
        object.__setattr__(self, "weight_decay", checks.number("weight_decay", self.weight_decay, minimum=0.0))
        object.__setattr__(self, "temperature", checks.number("temperature", self.temperature, minimum=0.0))
        if self.batches is not None:
            checks.instance("batches", self.batches, Batches, "minibatches such as tp.Batches(50)", "None is the full batch")
        largest = float(check_schedule(self.schedule).values(self.steps).max()) * max(_values(self.lr))
        if largest * self.weight_decay > 1.0:
            raise InputError(
                "weight_decay", f"{self.weight_decay:g} at a learning rate of {largest:g}", f"at most 1/lr = {1 / largest:g}",
                "a step would shrink weights to less than nothing: lower it, or the learning rate",
            )  # fmt: skip

    @property
    def update(self) -> Update:
        """Momentum, weight decay and noise."""
        return Update(self.momentum, self.weight_decay, self.temperature)

    @property
    def even(self) -> bool:
        """Whether all steps are alike: full batches at one learning rate."""
        return self.batches is None and self.schedule == CONSTANT

    def rates(self, program: Program) -> dict[str, float]:
        """The learning rate of every matrix; a bias takes the rate of the weight that precedes it in the program."""
        return assign_rates(self.lr, program)

    def pace(self, program: Program) -> Pace:
        """The numbers of every update."""
        return self.update.over_time(self.rates(program), self.schedule.values(self.steps))

    def point_weights(self, points: int) -> np.ndarray:
        """p_mu(t) of every step and point, (steps, points)."""
        if self.batches is None:
            return np.full((self.steps, points), 1 / points)
        return self.batches.point_weights(points, self.steps)

    def __str__(self) -> str:
        words = [f"lr = {self.lr}" + ("" if self.schedule == CONSTANT else f" ({self.schedule})")]
        named = (("momentum", self.momentum), ("weight decay", self.weight_decay), ("temperature", self.temperature))
        words += [f"{name} {value:g}" for name, value in named if value]
        words += [] if self.batches is None else [str(self.batches)]
        return ", ".join([f"gradient descent, {words[0]}", *words[1:], f"{self.steps} steps", self.loss.name])


@dataclass(frozen=True)
class GradientFlow:
    """Gradient flow, dw/dt = -gamma0^2 eta_j N^(-c_j) dLoss/dw, reported at steps + 1 equal times from 0 to ``time``.

    Args:
        time: final time, in units of lr times steps of gradient descent.
        steps: number of reported intervals.
        loss: loss per data point.
    """

    time: float
    steps: int
    loss: Loss = field(default_factory=SquaredError)

    def __post_init__(self) -> None:
        object.__setattr__(self, "time", checks.number("time", self.time, above=0.0))
        object.__setattr__(self, "steps", checks.integer("steps", self.steps, minimum=1))
        _check_loss(self.loss)

    @property
    def even(self) -> bool:
        """Full batches at one rate: always."""
        return True

    def refined(self, substeps: int) -> GradientDescent:
        """Gradient descent whose small-step limit this flow is: ``substeps`` Euler steps per reported interval."""
        return GradientDescent(self.time / (self.steps * substeps), self.steps * substeps, self.loss)

    def __str__(self) -> str:
        return f"gradient flow to time {self.time:g}, {self.steps} reported intervals, {self.loss.name}"


Training = GradientDescent | GradientFlow


def require_gradients_alone(training: Training, where: str) -> None:
    """Refuse weight decay and noise, which change the random part of the weights and with it their kernels.

    Args:
        where: what they have no place in.

    Raises:
        InputError: for weight decay or noise.
    """
    if isinstance(training, GradientDescent) and (training.weight_decay or training.temperature):
        raise InputError(
            "training", f"weight decay or noise in {where}", "a rule that moves weights by their gradients alone",
            "they change kernels over times of order 1/(lr weight_decay): leave both out, or take a parameterization that learns features",
        )  # fmt: skip


def check_momentum(momentum: Any) -> float:
    """A number in [0, 1): at one nothing would ever come to rest."""
    value = checks.number("momentum", momentum, minimum=0.0, hint="0 is plain gradient descent, 0.9 a common choice")
    if value >= 1.0:
        raise InputError("momentum", momentum, "a number >= 0 and < 1", "0 is plain gradient descent, 0.9 a common choice")
    return value


def _rates(lr: Any) -> Any:
    if isinstance(lr, (list, tuple, Mapping)) and not lr:
        raise InputError("lr", lr, "a number, or one number per weight matrix", "lr=0.1")
    if isinstance(lr, Mapping):
        return {str(k): checks.number(f"lr[{k!r}]", v, minimum=0.0) for k, v in lr.items()}
    if isinstance(lr, (list, tuple)):
        return tuple(checks.number(f"lr[{k}]", v, minimum=0.0) for k, v in enumerate(lr))
    return checks.number("lr", lr, minimum=0.0)


def _values(lr: Any) -> tuple[float, ...]:
    return tuple(lr.values()) if isinstance(lr, Mapping) else lr if isinstance(lr, tuple) else (lr,)


def assign_rates(lr: Any, program: Program) -> dict[str, float]:
    """Spread a learning rate over the matrices of a program (see :class:`GradientDescent`)."""
    weights = [m.name for m in program.matrices if not m.role.shifts]
    if isinstance(lr, Mapping):
        wrong = [k for k in lr if k not in {m.name for m in program.matrices}]
        lacking = [w for w in weights if w not in lr]
        if wrong or lacking:
            raise InputError("lr", f"rates for {list(lr)}", f"a rate for each of {weights}", "name every weight matrix; 0 freezes one")
        named = dict(lr)
    elif isinstance(lr, tuple):
        if len(lr) != len(weights):
            raise InputError("lr", f"{len(lr)} rates", f"one per weight matrix ({len(weights)}: {weights})", "a single number serves all")
        named = dict(zip(weights, lr, strict=True))
    else:
        named = dict.fromkeys(weights, lr)
    out: dict[str, float] = {}
    previous = named[weights[0]]
    for m in program.matrices:
        out[m.name] = previous = named.get(m.name, previous)
    return out
