"""A computation with moments written down once, and replayed on block after block as few compiled functions.

A piece is a function of moments (:mod:`tp_solver.kernel_regime.pairs`). On numpy arrays it runs as it stands, on jax arrays compiled; on
what is yet to come it writes itself down. The record is cut into segments, each around an expectation or a piece that mixes entries, and
a last one; pieces that work entry by entry cost no pass through memory of their own, but are done where they are first needed. Segments
that do the same to their arguments share a compilation, whatever their numbers are: the layers of a deep net are compiled once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, wraps
from operator import getitem
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


class Kind(Enum):
    """What a piece does, which says where it is compiled."""

    ENTRYWISE = "entry by entry"  # with what needs it first
    EXPECTATION = "expectation"  # at the head of a segment, with what it needs
    MIXING = "mixing"  # at the head of a segment; reads entries more than once, so that what it needs is computed before
    PART = "part"  # with that of which it is a part


@dataclass(frozen=True)
class Later:
    """The result of a step that is yet to run."""

    record: Record
    place: int

    def __getitem__(self, k: int) -> Later:
        return self.record.noted(getitem, Kind.PART, (self, k))


class Step(NamedTuple):
    """A piece, and the flat list of its arguments: results to come, numbers, and what is the same for all blocks."""

    piece: Callable[..., Any]
    kind: Kind
    leaves: tuple[Any, ...]
    structure: Hashable

    @property
    def needs(self) -> Iterable[int]:
        return (leaf.place for leaf in self.leaves if isinstance(leaf, Later))


class Record:
    """Steps in the order in which they are met; the arguments of the whole come first."""

    def __init__(self, arguments: int) -> None:
        self.arguments = arguments
        self.steps: list[Step] = []
        self._places: dict[Step, int] = {}

    def noted(self, piece: Callable[..., Any], kind: Kind, arguments: tuple[Any, ...]) -> Later:
        """The result of a piece; of one that is noted already, the same."""
        leaves, structure = jax.tree.flatten(arguments)
        step = Step(piece, kind, tuple(leaves), structure)
        if step not in self._places:
            self._places[step] = self.arguments + len(self.steps)
            self.steps.append(step)
        return Later(self, self._places[step])


def piece(kind: Kind, static: tuple[int, ...] = ()) -> Callable[[F], F]:
    """Makes a piece of a function of moments.

    Args:
        static: positions of the arguments that are no arrays or numbers.
    """

    def made(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = jax.jit(function, static_argnums=static)

        @wraps(function)
        def called(*arguments: Any) -> Any:
            leaves = jax.tree.leaves([a for k, a in enumerate(arguments) if k not in static])
            if later := next((leaf for leaf in leaves if isinstance(leaf, Later)), None):
                return later.record.noted(function, kind, arguments)
            if any(isinstance(leaf, jax.Array) for leaf in leaves):
                return compiled(*arguments)
            return function(*arguments)

        return called

    return made  # type: ignore[return-value]


@dataclass(frozen=True)
class Given:
    """An argument of a segment."""

    place: int


@dataclass(frozen=True)
class Made:
    """The result of a step of the segment itself."""

    place: int


@dataclass(frozen=True)
class Number:
    """A floating point number, which does not change what is compiled."""

    place: int


class Segment(NamedTuple):
    """Steps that are compiled as one function, named from within: equal segments are the same function."""

    steps: tuple[tuple[Callable[..., Any], tuple[Any, ...], Any], ...]
    results: tuple[int, ...]


class Call(NamedTuple):
    """A segment at its place in the whole: where its arguments are, its numbers, where the results go, what is not needed after it."""

    segment: Segment
    arguments: tuple[int, ...]
    numbers: jax.Array
    results: tuple[int, ...]
    done: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Replay:
    """A recorded computation: a function of jax arrays, not to be compiled."""

    calls: tuple[Call, ...]
    results: tuple[int, ...]
    structure: Any

    def __call__(self, *arguments: jax.Array) -> Any:
        values: dict[int, Any] = dict(enumerate(arguments))
        for call in self.calls:
            found = _compiled(call.segment)(call.numbers, tuple(values[k] for k in call.arguments))
            values.update(zip(call.results, found, strict=True))
            for k in call.done:
                del values[k]
        return jax.tree.unflatten(self.structure, [values[k] for k in self.results])

    def peak(self, *arguments: jax.ShapeDtypeStruct) -> int:
        """Bytes that are held at once between two segments, for arguments of these shapes."""
        values: dict[int, Any] = dict(enumerate(arguments))
        most = 0
        for call in self.calls:
            found = jax.eval_shape(_compiled(call.segment), call.numbers, tuple(values[k] for k in call.arguments))
            values.update(zip(call.results, found, strict=True))
            most = max(most, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(values)))
            for k in call.done:
                del values[k]
        return most


def replay(computation: Callable[..., Any], arguments: int, dtype: np.dtype) -> Replay:
    """Write a computation down.

    Args:
        computation: a function of that many arrays made of pieces; it is called once, with what is yet to come.
        dtype: of the arrays that it will run on, and of its numbers.
    """
    record = Record(arguments)
    leaves, structure = jax.tree.flatten(computation(*(Later(record, k) for k in range(arguments))))
    wanted = tuple(leaf.place for leaf in leaves)
    groups = _grouped(record, wanted)
    last = {k: n for n, group in enumerate(groups) for place in group for k in record.steps[place - arguments].needs}
    last |= dict.fromkeys(wanted, len(groups))
    return Replay(tuple(_call(record, group, n, last, dtype) for n, group in enumerate(groups)), wanted, structure)


def _grouped(record: Record, wanted: Iterable[int]) -> list[list[int]]:
    """The places of the steps of each segment."""
    needed = _needed(record, wanted)
    steps = {place: record.steps[place - record.arguments] for place in needed}
    heads = [place for place in needed if steps[place].kind in (Kind.EXPECTATION, Kind.MIXING)]
    at = {place: n for n, place in enumerate(heads)}
    earliest: dict[int, int] = {}
    for place in needed:
        earliest[place] = at.get(place, max((earliest.get(k, 0) for k in steps[place].needs), default=0))
    groups: list[list[int]] = [[] for _ in (*heads, None)]
    users: dict[int, set[int]] = {place: set() for place in needed} | {place: {len(heads)} for place in wanted}
    for place in reversed(needed):
        step, n = steps[place], earliest[place]
        if step.kind is Kind.ENTRYWISE:
            # where it is first needed, or before if others need it too: else that one would not be as the others are
            n = max(n, min(users[place]) - (len(users[place]) > 1))
        groups[n].insert(0, place)
        for k in step.needs:
            users.setdefault(k, set()).add(max(n - (step.kind is Kind.MIXING), 0))
    return [group for group in groups if group]


def _needed(record: Record, wanted: Iterable[int]) -> list[int]:
    """Places of the steps that the results need, in order."""
    needed = set(wanted)
    for k in reversed(range(len(record.steps))):
        if record.arguments + k in needed:
            needed.update(record.steps[k].needs)
    return sorted(k for k in needed if k >= record.arguments)


def _call(record: Record, group: list[int], n: int, last: dict[int, int], dtype: np.dtype) -> Call:
    own = {place: k for k, place in enumerate(group)}
    given: dict[int, int] = {}
    numbers: list[float] = []

    def named(leaf: Any) -> Hashable:
        if isinstance(leaf, Later):
            return Made(own[leaf.place]) if leaf.place in own else Given(given.setdefault(leaf.place, len(given)))
        if isinstance(leaf, float):
            numbers.append(leaf)
            return Number(len(numbers) - 1)
        return leaf

    steps = [record.steps[place - record.arguments] for place in group]
    named_steps = tuple((step.piece, tuple(map(named, step.leaves)), step.structure) for step in steps)
    leaving = [place for place in group if last[place] > n]
    done = tuple(k for k in given if last[k] == n)
    segment = Segment(named_steps, tuple(own[place] for place in leaving))
    return Call(segment, tuple(given), jnp.asarray(np.asarray(numbers, dtype)), tuple(leaving), done)


@lru_cache(maxsize=512)
def _compiled(segment: Segment) -> Callable[..., tuple[Any, ...]]:
    def run(numbers: jax.Array, given: tuple[Any, ...]) -> tuple[Any, ...]:
        made: list[Any] = []

        def value(leaf: Any) -> Any:
            kinds: dict[type, Any] = {Given: given, Made: made, Number: numbers}
            return kinds[type(leaf)][leaf.place] if type(leaf) in kinds else leaf

        for piece, leaves, structure in segment.steps:
            made.append(piece(*jax.tree.unflatten(structure, list(map(value, leaves)))))
        return tuple(made[k] for k in segment.results)

    return jax.jit(run)
