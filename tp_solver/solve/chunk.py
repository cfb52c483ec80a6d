"""Several steps of a march in one compiled loop.

How many steps a call makes is a number, not a shape, so that every division of a run into calls goes through the same compiled
step and gives the same bits. The loop ends early where the host is needed: bases want more room, or a run blew up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.numerics.sites import SAME, specs
from tp_solver.solve.layout import Layout
from tp_solver.solve.march import Batch, Grown, Moment, Setting, SiteState, joined, step
from tp_solver.solve.moving import Learned, Now

LONGEST = 32
"""Steps of a call at most."""
NOTES = 2**20
"""Bytes that the records of a call may take: little beside the steps themselves, however few of them a call makes."""

SECONDS = 0.6
"""That a call should take at most: Ctrl-C waits for its end. Every call allocates its work space anew."""
FASTER = 8
"""Times as many steps as the call before, at most: its rate may be a lucky one."""

Partners = dict[str, tuple[jax.Array, jax.Array]]


@dataclass
class Pace:
    """How many steps to make in one call: few enough that Ctrl-C is answered soon.

    Attributes:
        count: steps of the last call.
        rate: seconds per step in it.
        since: when the call before ended.
    """

    count: int = 1
    rate: float = np.inf
    since: float = field(default_factory=time.monotonic)

    def steps(self, length: int) -> int:
        """Of the next call; several processes, whose clocks differ, make one step at a time."""
        if jax.process_count() > 1:
            return 1
        return int(np.clip(SECONDS / self.rate, 1, min(FASTER * self.count, length)))

    def made(self, count: int) -> None:
        """A call made so many steps."""
        now = time.monotonic()
        self.count, self.rate, self.since = count, max(now - self.since, 1e-6) / count, now


class Limits(NamedTuple):
    """Where a loop ends beside bad steps: after ``count``, or where a basis has fewer than ``margin`` free directions; a loss above
    ``ceiling`` is bad."""

    count: Any
    margin: Any
    ceiling: Any


class Chunk(NamedTuple):
    """What came of some steps.

    Attributes:
        done: how many steps were made, the last of them perhaps bad; healthy: whether none blew up or lost directions.
        state: weights after the last update; last: the weights that the last healthy step began with (those of the call, where none
            was healthy); both with the bases of the last.
        moments: what is known of every time made, along a leading axis that is as long as a call may be.
        fields: variable -> samples (P, S) at the last time; none where nothing is recorded.
    """

    done: int
    healthy: bool
    state: SiteState
    last: SiteState
    moments: Moment
    fields: dict[str, jax.Array]


def longest(setting: Setting, points: int, room: int, itemsize: int) -> int:
    """Steps that a call may make, a power of two: their records have to fit."""
    if not setting.recording:
        return LONGEST
    plan = setting.plan
    each = itemsize * points * (room * (len(plan.homes) + len(plan.hidden_products())) + points)
    return 1 << int(np.log2(np.clip(NOTES / each, 1, LONGEST)))


def advance(setting: Setting, length: int, state: SiteState, batch: Batch, nows: Now, limits: Limits) -> Chunk:
    """Make some steps: forward, loss, backward, update, again.

    The bases of ``state`` are used up: go on with those that are returned.

    Args:
        length: of the call, as :func:`longest` says.
        nows: numbers of the steps, stacked along a leading axis of that length.
    """
    bases = Grown({m: s.below for m, s in state.operators.items()}, {m: s.above for m, s in state.operators.items()}, state.observers)
    partners = {m: (s.eps_u, s.eps_r) for m, s in state.operators.items()}
    moving = bool(nows.keep or nows.kick)
    weights = Learned({m: s.learned for m, s in state.operators.items()}, state.sites, state.velocity, partners if moving else {})
    resting = {} if moving else partners
    bases, last, weights, done, healthy, moments, fields = _advance(setting, length, bases, resting, weights, (batch, nows, limits))
    return Chunk(int(done), bool(healthy), joined(bases, partners, weights), joined(bases, partners, last), moments, fields)


def consumed(state: SiteState) -> bool:
    """Whether the bases of a state were used up by a call that did not return."""
    return any(b.rows.is_deleted() for s in state.operators.values() for b in (s.below, s.above))


def at_index(tree: Any, index: int) -> Any:
    """One step of what was fetched of several, copied: a view would keep all of them."""
    return jax.tree.map(lambda a: np.array(a[index]), tree)


class _Loop(NamedTuple):
    """What goes round: see :class:`Chunk`; ``going`` is whether the next step may be made."""

    done: Any
    going: Any
    healthy: Any
    bases: Grown
    last: Learned
    weights: Learned
    moments: Moment
    fields: dict[str, jax.Array]


Numbers = tuple[Batch, Now, Limits]
_Out = tuple[Grown, Learned, Learned, Any, Any, Moment, dict[str, jax.Array]]


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _advance(setting: Setting, length: int, bases: Grown, partners: Partners, weights: Learned, numbers: Numbers) -> _Out:
    """The compiled part of :func:`advance`, on all devices; bases are donated, so that they grow without being copied."""
    looped = partial(_advance_blocks, setting, length)
    given = (bases, partners, weights, numbers)
    if setting.mesh is None:
        return looped(*given)
    out = (specs(bases), specs(weights), specs(weights), SAME, SAME, SAME, SAME)
    return jax.shard_map(looped, mesh=setting.mesh, in_specs=specs(given), out_specs=out, check_vma=False)(*given)


def _advance_blocks(setting: Setting, length: int, bases: Grown, partners: Partners, weights: Learned, numbers: Numbers) -> _Out:
    """What every device does with its blocks of sites."""
    batch, nows, limits = numbers

    @jax.jit  # traced once for its shapes and for the loop
    def stepped(bases: Grown, weights: Learned, now: Now) -> tuple[Grown, Learned, Moment, dict[str, jax.Array]]:
        return step(setting, bases, partners, weights, batch, now)

    _, _, moment, samples = jax.eval_shape(stepped, bases, weights, _at(nows, 0))
    notes = jax.tree.map(lambda a: jnp.zeros((length, *a.shape), a.dtype), moment)
    fields = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), samples)
    room = _room(setting.plan, bases)

    def again(loop: _Loop) -> Any:
        return (loop.done < limits.count) & loop.going

    def once(loop: _Loop) -> _Loop:
        bases, weights, moment, samples = stepped(loop.bases, loop.weights, _at(nows, loop.done))
        healthy = _finite(moment) & (moment.loss <= limits.ceiling) & jnp.all(moment.used <= room)
        notes = jax.tree.map(lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, loop.done, 0), loop.moments, moment)
        last = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), loop.weights, loop.last)
        return _Loop(
            loop.done + 1, healthy & jnp.all(moment.used + limits.margin <= room), healthy, bases, last, weights, notes, samples
        )  # fmt: skip

    start = _Loop(jnp.zeros((), jnp.int32), jnp.array(True), jnp.array(True), bases, weights, weights, notes, fields)
    end = jax.lax.while_loop(again, once, start)
    return end.bases, end.last, end.weights, end.done, end.healthy, end.moments, end.fields


def _at(nows: Now, index: Any) -> Now:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, keepdims=False), nows)


def _room(plan: Layout, bases: Grown) -> jax.Array:
    """Room of every basis, in the order of ``Moment.used``."""
    return jnp.array([bases.of(home).capacity for home in plan.bases], jnp.int32)


def _finite(moment: Moment) -> jax.Array:
    """Whether everything that the host looks at is finite."""
    looked_at = (moment.f, moment.loss, moment.squares, moment.weights, () if moment.record is None else moment.record.ntk)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(looked_at)]))
