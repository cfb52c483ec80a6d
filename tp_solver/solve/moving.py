"""How the weights of a march move from one time to the next: the update of :mod:`tp_solver.program.update`, at infinite width.

A hidden matrix has a random part, its Gaussian partners, which decay shrinks and noise refreshes, and a learned part with a velocity
(``theory/limit_operator.md``, LO.8); weights per site are both at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from tp_solver.numerics.sites import antithetic_noise
from tp_solver.program.statements import Role
from tp_solver.program.update import Pace
from tp_solver.solve.layout import Layout

EPS_U, EPS_R = "eps_u", "eps_r"


class Learned(NamedTuple):
    """The part of a state that an update changes.

    Attributes:
        hidden: learned part of every hidden matrix, (K, R).
        sites: weights per site of every other matrix.
        velocity: per matrix, shaped like its entry above; empty for rules that carry nothing on.
        partners: per hidden matrix (eps_u, eps_r); empty for rules that leave them alone.
    """

    hidden: dict[str, jax.Array]
    sites: dict[str, jax.Array]
    velocity: dict[str, jax.Array]
    partners: dict[str, tuple[jax.Array, jax.Array]]


class Now(NamedTuple):
    """Numbers of one update, or of several along a leading axis: the factor of the learning rate, the weights p (P,) of the points, those
    that have any (None where all may), the share of the velocity that is carried on, per matrix the share that is kept and the size of
    the noise (empty where there is none of either), and a key where there is noise."""

    factor: Any
    p: Any
    chosen: Any
    carry: Any
    keep: dict[str, Any]
    kick: dict[str, Any]
    key: jax.Array | None


@dataclass(frozen=True, eq=False)
class Course:
    """The numbers of all updates of a run.

    Attributes:
        pace: see :class:`Pace`.
        p: weights of the points, (steps, P).
        units: matrix -> its standard deviation per unit of N^(-b).
        scales: matrix -> its initial standard deviation.
        fades, kicks: whether weights decay, and receive noise.
        plain: whether every step is one of full-batch gradient descent at the same rate.
    """

    pace: Pace
    p: np.ndarray
    units: Mapping[str, float]
    scales: Mapping[str, float]
    fades: bool
    kicks: bool
    plain: bool

    @property
    def carries(self) -> bool:
        """Whether there is a velocity."""
        return self.pace.carry > 0

    @property
    def static(self) -> bool:
        """Whether the random part of every matrix stays what it was."""
        return not (self.fades or self.kicks)

    def over(self, times: np.ndarray, stream: int, dtype: Any) -> Now:
        """The numbers of the updates after some times, stacked; at the last time, which none follows, those of no move at all."""
        steps = len(self.p)
        last, k = times >= steps, np.minimum(times, steps - 1)
        moving = np.where(last, 0.0, 1.0)
        return Now(
            np.asarray(moving * self.pace.factor[k], dtype),
            np.asarray(self.p[k], dtype),
            self._chosen[k] if self.batch < self.p.shape[1] else None,
            np.full(len(times), self.pace.carry, dtype),
            {m: np.asarray(np.where(last, 1.0, a[k]), dtype) for m, a in self.pace.keep.items()} if self.fades else {},
            {m: np.asarray(moving * a[k] * self.units[m], dtype) for m, a in self.pace.kick.items()} if self.kicks else {},
            jax.vmap(partial(jax.random.fold_in, jax.random.key(stream)))(times.astype(np.uint32)) if self.kicks else None,
        )

    def growth(self, matrix: str, t: int) -> float:
        """Standard deviation of the random part of a matrix at time t over that at the start (zero for a matrix without one)."""
        return float(np.sqrt(self._variances[matrix][t]))

    def correlation(self, matrix: str, t: int, s: int) -> float:
        """C(t, s) of the printed equations, s and t in any order."""
        early, late = sorted((t, s))
        return float(self._variances[matrix][early] * np.prod(self.pace.keep[matrix][early:late]))

    @cached_property
    def batch(self) -> int:
        """Most points that a step weighs."""
        return int(np.max(np.sum(self.p > 0, axis=1), initial=0))

    @cached_property
    def _chosen(self) -> np.ndarray:
        """Points of every step, (steps, batch), those without weight last."""
        return np.argsort(self.p <= 0, axis=1, kind="stable")[:, : self.batch].astype(np.int32)

    @cached_property
    def _variances(self) -> dict[str, np.ndarray]:
        """Per matrix the variance of its random part at all times, relative to the start."""
        ratios = {m: (self.units[m] / scale) ** 2 if scale else 0.0 for m, scale in self.scales.items()}
        return {m: self.pace.variance(m, 1.0, ratio) for m, ratio in ratios.items()}


def moved(plan: Layout, now: Now, before: Learned, partners: Mapping[str, tuple[jax.Array, jax.Array]], push: Mapping[str, Any]) -> Learned:
    """The weights after an update; ``push`` is what the gradients add to the velocity of every matrix."""
    weights = {**before.hidden, **before.sites}
    velocity = {m: now.carry * v + push[m] for m, v in before.velocity.items()} or dict(push)
    keys = {} if now.key is None else dict(zip(weights, jax.random.split(now.key, (len(weights), 2)), strict=True))

    def kicked(m: str, part: str, values: jax.Array) -> jax.Array:
        """Kept and refreshed: noise has the symmetry of the columns under exchange of the two halves of the sites."""
        kept = now.keep[m] * values if now.keep else values
        if not now.kick:
            return kept
        even = part == EPS_U or (part != EPS_R and plan.program.matrix(m).role is not Role.READOUT)
        return kept + now.kick[m] * antithetic_noise(keys[m][0 if part != EPS_R else 1], values, even)

    hidden = {m: (now.keep[m] * a if now.keep else a) + now.factor * velocity[m] for m, a in before.hidden.items()}
    sites = {m: kicked(m, "weights", a) + now.factor * velocity[m] for m, a in before.sites.items()}
    changed = {m: (kicked(m, EPS_U, u), kicked(m, EPS_R, r)) for m, (u, r) in partners.items()} if now.keep or now.kick else {}
    return Learned(hidden, sites, velocity if before.velocity else {}, changed)
