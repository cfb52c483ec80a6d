"""What a weight remembers: how far the push of step s has moved it by time t, and how its random part at t and s agree.

Both follow from the update that :mod:`tp_solver.program.update` defines (``theory/feature_learning.md``, FL.17), by unrolling its two
lines: nothing about an optimiser is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy as sp

from tp_solver.program import update
from tp_solver.program.schedules import CONSTANT
from tp_solver.program.training import GradientDescent, Training
from tp_solver.symbols.equation import Equation, Kind
from tp_solver.symbols.notation import Observable, S, T

_Q, _R = sp.symbols("q r", integer=True, nonnegative=True)
_LAG, _N = sp.symbols("m n", integer=True, positive=True)
_A, _RATIO = sp.symbols("a rho", positive=True)


@dataclass(frozen=True)
class Memory:
    """The memory of the weights under a training rule.

    Args:
        rates: symbol of the learning rate of every matrix (zero: frozen).
        carry, decay, temperature: the constants of the update, symbols or zero.
        scheduled: whether the learning rate depends on time.
    """

    rates: Mapping[str, sp.Expr]
    carry: sp.Expr
    decay: sp.Expr
    temperature: sp.Expr
    scheduled: bool

    @property
    def static(self) -> bool:
        """Whether the random part of a weight stays what it was."""
        return self.decay == 0 and self.temperature == 0

    @property
    def shared(self) -> bool:
        """Whether all matrices have the same learning rate."""
        return len(set(self.rates.values())) == 1

    def factor(self, time: sp.Expr) -> sp.Expr:
        """What all rates have in common at a step: eta(t), the rate itself where it is shared, else the factor of the schedule."""
        return Observable(str(update.RATE), (), (), (time,)) if self.scheduled else sp.S.One

    def rate(self, matrix: str, time: sp.Expr) -> sp.Expr:
        """The learning rate of a matrix at a step."""
        eta = self.rates[matrix]
        if not self.scheduled or eta == 0:
            return eta
        return self.factor(time) if self.shared else eta * self.factor(time)

    def push(self, matrix: str) -> sp.Expr:
        """kappa(t, s), or what it is where a push stays what it was: the rate of step s."""
        if self.carry == 0 and self.decay == 0:
            return self.rate(matrix, S)
        return Observable(self._named("kappa", matrix), (), (), (T, S))

    def correlation(self, matrix: str, sigma: sp.Expr) -> sp.Expr:
        """C(t, s), or 1 where the random part of a matrix stays what it was; ``sigma`` is its initial deviation in units of N^(-b)."""
        if self.static:
            return sp.S.One
        return Observable(self._named("C", matrix) if self._noise(matrix) == 0 or sigma == 1 else f"C_{matrix}", (), (), (T, S))

    def definitions(self, sigma: Mapping[str, sp.Expr]) -> Iterator[Equation]:
        """What kappa and C are, each name once; ``sigma`` per matrix as for :meth:`correlation`."""
        seen: dict[sp.Expr, None] = {}
        for matrix, deviation in sigma.items():
            pushed, correlated = self.push(matrix), self.correlation(matrix, deviation)
            if isinstance(pushed, Observable) and len(pushed.times) == 2 and self.rates[matrix] != 0 and pushed not in seen:
                seen[pushed] = None
                yield Equation((pushed.label,), pushed, self.pushed(matrix), Kind.DEFINITION, _WHY_PUSH)
            if correlated != 1 and correlated not in seen:
                seen[correlated] = None
                noise = 0 if deviation == 0 else self._noise(matrix) / deviation**2
                start = self._kept(matrix, sp.S.Zero, T) * self._kept(matrix, sp.S.Zero, S)
                yield Equation((correlated.label,), correlated, start + noise, Kind.DEFINITION, _WHY_CORRELATION)

    def pushed(self, matrix: str) -> sp.Expr:
        """How far a velocity one that was added at step s has moved the weight until time t > s."""
        if self.carry == 0:
            return self.rate(matrix, S) * self._kept(matrix, S + 1, T)
        if self.scheduled:
            return sp.Sum(self.rate(matrix, _Q) * self.carry ** (_Q - S) * self._kept(matrix, _Q + 1, T), (_Q, S, T - 1))
        total = sp.piecewise_fold(sp.summation(_RATIO**_N, (_N, 0, _LAG - 1)))
        generic = total.args[-1][0] if isinstance(total, sp.Piecewise) else total  # ratio not 1
        whole = sp.simplify((_A ** (_LAG - 1) * generic).subs(_RATIO, self.carry / _A))
        return self.rates[matrix] * whole.subs({_A: self._at(update.KEEP, matrix, _R), _LAG: T - S})

    def _noise(self, matrix: str) -> sp.Expr:
        """Covariance of the noise that a weight has received until t, and until s, in units of N^(-2b)."""
        kicks = self._at(update.KICK, matrix, _Q) ** 2
        if kicks == 0:
            return sp.S.Zero
        return sp.Sum(kicks * self._kept(matrix, _Q + 1, T) * self._kept(matrix, _Q + 1, S), (_Q, 0, sp.Min(T, S) - 1))

    def _named(self, letter: str, matrix: str) -> str:
        return letter if self.shared else f"{letter}_{matrix}"

    def _kept(self, matrix: str, start: sp.Expr, stop: sp.Expr) -> sp.Expr:
        """Share of a weight that the updates start..stop-1 keep."""
        share = self._at(update.KEEP, matrix, _R)
        return sp.Product(share, (_R, start, stop - 1)) if share.has(_R) else share ** (stop - start)

    def _at(self, expression: sp.Expr, matrix: str, time: sp.Expr) -> sp.Expr:
        constants = {update.DECAY: self.decay, update.TEMPERATURE: self.temperature, update.RATE: self.rate(matrix, time)}
        return expression.subs(constants, simultaneous=True)


def memory(training: Training, rates: Mapping[str, sp.Expr]) -> Memory:
    """The memory under a training rule, in symbols where it has numbers."""
    if not isinstance(training, GradientDescent):
        return Memory(rates, sp.S.Zero, sp.S.Zero, sp.S.Zero, False)
    return Memory(
        rates,
        update.CARRY if training.momentum else sp.S.Zero,
        update.DECAY if training.weight_decay else sp.S.Zero,
        update.TEMPERATURE if training.temperature else sp.S.Zero,
        training.schedule != CONSTANT,
    )


_WHY_PUSH = "How far a velocity of one, added at step s, has moved a weight until t: the two lines of the update, unrolled."
_WHY_CORRELATION = (
    "How the random part of a weight at t agrees with that at s, relative to its start: what decay leaves, and the noise since."
)
