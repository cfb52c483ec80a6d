"""How much memory a march needs, before anything is compiled (``theory/limit_operator.md``, LO.10)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tp_solver.errors import BudgetError
from tp_solver.limit.transposition import populations
from tp_solver.program.statements import Role, Space
from tp_solver.solve.chunk import NOTES
from tp_solver.solve.layout import ABOVE, BELOW, Home
from tp_solver.solve.prepare import Prepared

WORK = 4
"""Copies of a population's columns, in double precision, while they are made orthogonal to each other."""

OLD = 0.7
"""Size of a state that gives way to a larger one, relative to the larger one: both are there for a moment."""


@dataclass(frozen=True)
class Load:
    """What a march has to hold beside its bases.

    Attributes:
        samples: sites per replicate.
        replicates: how many runs keep their last states, those that show errors among them.
        itemsize: bytes of a number.
        kept, recorded: number of times whose samples and whose kernels are kept.
    """

    samples: int
    replicates: int
    itemsize: int
    kept: int
    recorded: int


def weight_bytes(prepared: Prepared, load: Load, capacity: Mapping[Home, int]) -> int:
    """What an update changes: weights per site and learned parts, their velocities, and partners that decay or receive noise."""
    sides = [(capacity[Home(m, BELOW)], capacity[Home(m, ABOVE)]) for m in prepared.setting.plan.hidden]
    moving = sum(_site_rows(prepared).values()) * load.samples + sum(below * above for below, above in sides)
    partners = 0 if prepared.course.static else _partners(prepared, capacity) * load.samples
    return load.itemsize * (moving * (1 + prepared.course.carries) + partners)


def state_bytes(prepared: Prepared, load: Load, capacity: Mapping[Home, int]) -> int:
    """Bases, partners, and weights, of which the last state holds its own."""
    partners = _partners(prepared, capacity)
    rows = partners + sum(capacity[Home(k)] for k in prepared.setting.plan.observers) + partners * prepared.course.static
    return load.itemsize * rows * load.samples + 2 * weight_bytes(prepared, load, capacity)


def march_bytes(prepared: Prepared, load: Load, capacity: Mapping[Home, int]) -> int:
    """Peak of a solve whose bases have that room: states of all replicates, records, and the larger of growing (columns are drawn anew)
    and of a step, with the weights that come of its call beside those it began with, and predictions."""
    plan, P, S = prepared.setting.plan, len(prepared.x), load.samples
    program, backward = plan.program, plan.backward
    state = state_bytes(prepared, load, capacity)
    fields = 2 * len(program.layers) * load.kept * P * S * load.itemsize
    rank = max(capacity.values(), default=0)
    records = load.recorded * P * load.itemsize * (rank * (len(plan.homes) + len(plan.hidden_products())) + P)
    spaces = {**program.spaces(), **backward.spaces}
    vectors = sum(spaces[s.out] is Space.WIDTH for s in (*program.statements, *backward.statements))
    step = vectors * P * S * load.itemsize + 2 * weight_bytes(prepared, load, capacity) + NOTES
    tests = 0 if prepared.test_inputs is None else len(prepared.test_inputs[0])
    forward = sum(spaces[s.out] is Space.WIDTH for s in program.statements) + len(plan.noise_products()) + 1
    predictions = tests * S * (forward * load.itemsize + 8)
    draw = 8 * S * (_partners(prepared, capacity) + WORK * _widest_population(prepared, rank))
    growth = int(OLD * state)
    return load.replicates * (state + fields + records) + max(growth + draw, step + predictions)


def require_memory(prepared: Prepared, load: Load, capacity: Mapping[Home, int], budget: float) -> None:
    """Refuse a march that would not fit from the start.

    Args:
        budget: bytes.

    Raises:
        BudgetError: with the need, the budget and ways to cut.
    """
    need = march_bytes(prepared, load, capacity)
    if need > budget:
        raise BudgetError(
            "memory", f"a march that needs {need / 2**30:.3g} GiB", f"at most {budget / 2**30:.3g} GiB",
            f"fewer samples (now {load.samples}) or replicates (now {load.replicates} states are kept), March(dtype='float32'), "
            f"or fewer kept times (March(recorded=..., times=...)); March(memory=...) raises the budget",
        )  # fmt: skip


def physical_memory() -> float:
    """Bytes of this machine's memory; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _partners(prepared: Prepared, capacity: Mapping[Home, int]) -> int:
    """Room for partners, as much as for the directions that they belong to."""
    return sum(capacity[Home(m, side)] for m in prepared.setting.plan.hidden for side in (BELOW, ABOVE))


def _site_rows(prepared: Prepared) -> dict[str, int]:
    """Weights per site of every matrix that is not hidden."""
    columns = prepared.columns
    rows = {m.name: columns.outputs for m in columns.plan.program.matrices if m.role.codomain is Space.OUTPUT}
    return rows | dict(columns.inputs)


def _widest_population(prepared: Prepared, rank: int) -> int:
    """Most Gaussian columns of one population, each hidden matrix with ``rank`` of them on either side."""
    program = prepared.setting.plan.program
    group = populations(program)
    count: dict[object, int] = dict.fromkeys(group.values(), 0)
    site = _site_rows(prepared)
    for m in program.matrices:
        use = next(s for s in program.products() if s.matrix == m.name)
        if m.role is Role.HIDDEN:
            count[group[use.out]] += rank
            count[group[use.arg]] += rank
        elif m.role is not Role.OUTPUT_BIAS:
            count[group[use.arg if m.role is Role.READOUT else use.out]] += site[m.name]
    return int(np.max(list(count.values())))
