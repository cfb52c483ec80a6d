"""Training rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.program.losses import LOSSES, Loss, SquaredError
from tp_solver.program.statements import Program, Role


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
    """Full-batch gradient descent, exact in discrete time, with heavy-ball momentum if asked for.

    ``w(t + 1) = w(t) - lr gamma0^2 eta_j N^(-c_j) dLoss/dw + momentum (w(t) - w(t - 1))``, at rest at the start: w(-1) = w(0);
    ``Loss = sum_mu p_mu l(f_mu, y_mu)``, p = 1/P (``theory/notation.md``, NO.2; Polyak 1964).

    Args:
        lr: learning rate >= 0, in units of 1/loss; or one value per weight matrix in order of appearance (a sequence), or
            a mapping from matrix names to values (others keep 1 times nothing: every trained matrix must be named).
        steps: number of updates.
        loss: loss per data point.
        momentum: share of the last move that is made again, in [0, 1); 0 is plain gradient descent.
    """

    lr: Any
    steps: int
    loss: Loss = field(default_factory=SquaredError)
    momentum: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", _rates(self.lr))
        object.__setattr__(self, "steps", checks.integer("steps", self.steps, minimum=1))
        _check_loss(self.loss)
        object.__setattr__(self, "momentum", check_momentum(self.momentum))

    def rates(self, program: Program) -> dict[str, float]:
        """The learning rate of every matrix; a bias takes the rate of the weight that precedes it in the program."""
        return assign_rates(self.lr, program)

    def __str__(self) -> str:
        ball = f"momentum {self.momentum:g}, " if self.momentum else ""
        return f"gradient descent, lr = {self.lr}, {ball}{self.steps} steps, {self.loss.name}"


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

    def refined(self, substeps: int) -> GradientDescent:
        """Gradient descent whose small-step limit this flow is: ``substeps`` Euler steps per reported interval."""
        return GradientDescent(self.time / (self.steps * substeps), self.steps * substeps, self.loss)

    def __str__(self) -> str:
        return f"gradient flow to time {self.time:g}, {self.steps} reported intervals, {self.loss.name}"


Training = GradientDescent | GradientFlow


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


def assign_rates(lr: Any, program: Program) -> dict[str, float]:
    """Spread a learning rate over the matrices of a program (see :class:`GradientDescent`)."""
    weights = [m.name for m in program.matrices if m.role is not Role.BIAS]
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
