"""One update of gradient descent, defined once: equations, infinite-width solvers and finite nets read the symbols below.

    v(t)     = carry v(t - 1) - gradient
    w(t + 1) = keep w(t) + eta v(t) + kick xi(t),    xi standard normal in units of N^(-b)

with ``eta`` the rate of the step (``theory/feature_learning.md``, FL.17).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import sympy as sp

RATE = sp.Symbol("eta", nonnegative=True)
"""The learning rate of a step."""
MOMENTUM = sp.Symbol("beta", nonnegative=True)
DECAY = sp.Symbol("lambda", nonnegative=True)
TEMPERATURE = sp.Symbol("tau", nonnegative=True)

CARRY: sp.Expr = MOMENTUM
"""Share of the last velocity that is made again (heavy ball, Polyak 1964)."""
KEEP: sp.Expr = 1 - RATE * DECAY
"""Share of the weights that an update keeps; the coefficient is not rescaled by gamma0 or the width."""
KICK: sp.Expr = sp.sqrt(2 * RATE * TEMPERATURE)
"""Size of the noise of an update (Langevin dynamics)."""


@dataclass(frozen=True)
class Update:
    """The constants of the update above; zeros are plain gradient descent."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    temperature: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether weights only ever move by their gradients."""
        return not (self.momentum or self.weight_decay or self.temperature)

    def over_time(self, lr: Mapping[str, float], factors: np.ndarray) -> Pace:
        """Numbers of every update.

        Args:
            lr: learning rate of every matrix.
            factors: those of the schedule, (steps,).
        """
        constants = {MOMENTUM: self.momentum, DECAY: self.weight_decay, TEMPERATURE: self.temperature}

        def over(expression: sp.Expr) -> dict[str, np.ndarray]:
            number = sp.lambdify(RATE, expression.subs(constants), "numpy")
            return {m: np.broadcast_to(np.asarray(number(rate * factors), float), factors.shape).copy() for m, rate in lr.items()}

        return Pace(np.array(factors, float), float(CARRY.subs(constants)), over(KEEP), over(KICK))


class Pace(NamedTuple):
    """Numbers of every update: the factor of the learning rate (steps,), the share of the velocity that is carried on, and per
    matrix the share that is kept and the size of the noise, (steps,)."""

    factor: np.ndarray
    carry: float
    keep: dict[str, np.ndarray]
    kick: dict[str, np.ndarray]

    def variance(self, matrix: str, start: float, unit: float) -> np.ndarray:
        """Variance of the Gaussian part of a matrix at every time, (steps + 1,), from that at the start and per unit of noise."""
        out = [start]
        for keep, kick in zip(self.keep[matrix], self.kick[matrix], strict=True):
            out.append(keep**2 * out[-1] + kick**2 * unit)
        return np.array(out)
