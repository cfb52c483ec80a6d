"""Optimisers for linearised nets, as records of their settings; optax is loaded when one is built.

Any optax ``GradientTransformation`` serves in their place. The settings here are chosen so that the textbook rule is what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from tp_solver import checks
from tp_solver.errors import InputError


class Transformation(Protocol):
    """What turns gradients into moves: optax's ``GradientTransformation``."""

    @property
    def init(self) -> Callable[..., Any]:
        """Parameters -> state."""
        ...

    @property
    def update(self) -> Callable[..., Any]:
        """(gradients, state, parameters) -> (moves, state)."""
        ...


@dataclass(frozen=True)
class SGD:
    """Gradient descent, with a share ``momentum`` of the last move made again (Polyak).

    Args:
        lr: learning rate > 0 as in ``tp.GradientDescent``.
        momentum: in [0, 1).
    """

    lr: float
    momentum: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", checks.number("lr", self.lr, above=0.0))
        momentum = checks.number("momentum", self.momentum, minimum=0.0)
        if momentum >= 1:
            raise InputError("momentum", momentum, "a number in [0, 1)", "0.9 is common")
        object.__setattr__(self, "momentum", momentum)

    def build(self) -> Transformation:
        """The optax transformation."""
        import optax

        return optax.sgd(self.lr, momentum=self.momentum or None)

    def __str__(self) -> str:
        return f"SGD {self.lr:.3g}" + (f", momentum {self.momentum:g}" if self.momentum else "")


@dataclass(frozen=True)
class AdaGrad:
    """move = -lr g / sqrt(sum of squares of g so far + epsilon), entry by entry (Duchi, Hazan & Singer 2011).

    The sums start at zero. optax's own default starts them at 0.1, far above the squared gradients of a wide net: that is gradient
    descent, and reaches its minimiser.

    Args:
        lr: > 0.
        epsilon: > 0, small against the squared gradients.
    """

    lr: float
    epsilon: float = 1e-16

    def __post_init__(self) -> None:
        for name in ("lr", "epsilon"):
            object.__setattr__(self, name, checks.number(name, getattr(self, name), above=0.0))

    def build(self) -> Transformation:
        """The optax transformation."""
        import optax

        return optax.adagrad(self.lr, initial_accumulator_value=0.0, eps=self.epsilon)

    def __str__(self) -> str:
        return f"AdaGrad {self.lr:.3g}"


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015). At a constant rate it need not settle: see the status of a descent.

    Args:
        lr: > 0.
        beta1, beta2: memories of mean and square, in [0, 1).
        epsilon: > 0.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("lr", "epsilon"):
            object.__setattr__(self, name, checks.number(name, getattr(self, name), above=0.0))
        for name in ("beta1", "beta2"):
            value = checks.number(name, getattr(self, name), minimum=0.0)
            if value >= 1:
                raise InputError(name, value, "a number in [0, 1)", "the usual pair is 0.9 and 0.999")
            object.__setattr__(self, name, value)

    def build(self) -> Transformation:
        """The optax transformation."""
        import optax

        return optax.adam(self.lr, b1=self.beta1, b2=self.beta2, eps=self.epsilon)

    def __str__(self) -> str:
        return f"Adam {self.lr:.3g}"


def transformation(optimiser: Any) -> Transformation:
    """The optax transformation behind a record, or the object itself where it is one.

    Raises:
        InputError: for anything else.
    """
    if isinstance(optimiser, (SGD, AdaGrad, Adam)):
        return _built(optimiser)
    if not isinstance(optimiser, type) and callable(getattr(optimiser, "init", None)) and callable(getattr(optimiser, "update", None)):
        return optimiser
    raise InputError("optimiser", optimiser, "SGD(lr), AdaGrad(lr), Adam(lr) or an optax transformation", "for example tp.SGD(0.1)")


@cache
def _built(optimiser: SGD | AdaGrad | Adam) -> Transformation:
    """One object per record, so that runs with equal settings share a compilation."""
    return optimiser.build()
