"""What the march keeps, worked out once from the program: bases, who shares sites, where each kernel is read off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tp_solver.errors import ProgramError
from tp_solver.limit.transposition import Backward, populations, transpose
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.program.statements import Product, Program, Role, Space

BELOW, ABOVE = "below", "above"


@dataclass(frozen=True)
class Home:
    """The basis in which a variable's coordinates are recorded: one side of a hidden matrix, or an observer."""

    basis: str
    side: str | None = None

    @property
    def opposite(self) -> Home:
        """The other side of the same matrix."""
        return Home(self.basis, ABOVE if self.side == BELOW else BELOW)

    def __str__(self) -> str:
        return self.basis if self.side is None else f"{self.basis}.{self.side}"


@dataclass(frozen=True, eq=False)
class Layout:
    """Static structure of a march; everything follows from the program, so two layouts of one program are equal.

    Attributes:
        program, backward: the two statement lists.
        homes: recorded variable -> where its coordinates live.
        observers: observer bases, for vectors that no hidden matrix meets.
    """

    program: Program
    backward: Backward
    homes: Mapping[str, Home]
    observers: tuple[str, ...]

    def __hash__(self) -> int:
        return hash(self.program)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.program == other.program

    @property
    def hidden(self) -> tuple[str, ...]:
        """Names of the hidden matrices."""
        return tuple(m.name for m in self.program.matrices if m.role is Role.HIDDEN)

    @property
    def bases(self) -> list[Home]:
        """All bases, in the order in which their ranks are told."""
        return [Home(m, side) for m in self.hidden for side in (BELOW, ABOVE)] + [Home(k) for k in self.observers]

    def hidden_products(self) -> list[Product]:
        """All products with hidden matrices, forward then backward."""
        return [s for s in (*self.program.statements, *self.backward.statements) if isinstance(s, Product) and s.matrix in self.hidden]

    def side_of(self, product: Product) -> Home:
        """The basis that the argument of a hidden product lives in."""
        return Home(product.matrix, ABOVE if product.transpose else BELOW)

    def coordinate_key(self, variable: str, home: Home) -> str:
        """Name under which the coordinates of a variable in a basis are recorded; a variable may meet several matrices."""
        return variable if self.homes.get(variable) == home else f"{home}:{variable}"

    def noise_products(self) -> list[Product]:
        """Forward products with hidden matrices: each needs its own noise at new points."""
        return [s for s in self.program.products() if s.matrix in self.hidden]


def layout(program: Program) -> Layout:
    """Work out where every reported vector is recorded."""
    if program.free_symbols:
        raise ProgramError(
            "program", f"the symbols {list(map(str, program.free_symbols))}", "numbers for all coefficients", "net.bind({symbol: value})"
        )
    backward = transpose(program)
    hidden = {m.name for m in program.matrices if m.role is Role.HIDDEN}
    homes: dict[str, Home] = {}
    for s in (*program.statements, *backward.statements):
        if isinstance(s, Product) and s.matrix in hidden:
            homes.setdefault(s.arg, Home(s.matrix, ABOVE if s.transpose else BELOW))
    observers: dict[str, None] = {}

    def observe(variable: str, basis: str) -> None:
        if variable not in homes:
            homes[variable] = Home(basis)
            observers[basis] = None

    spaces = {**program.spaces(), **backward.spaces}
    for p in backward.pairs:
        for v in (p.adjoint, p.input):
            if spaces[v] is Space.WIDTH:
                observe(v, f"uses of {p.matrix}")
    for layer in program.layers:
        observe(layer.post, layer.post)
        if layer.pre in backward.adjoints:
            observe(backward.adjoints[layer.pre], backward.adjoints[layer.pre])
    return Layout(program, backward, homes, tuple(observers))


@dataclass(frozen=True)
class Columns:
    """Which Gaussian columns each matrix owns, per population of sites."""

    plan: Layout
    scales: Mapping[str, float]
    inputs: Mapping[str, int]
    outputs: int

    def draw(self, source: SampledColumns | ExactColumns, capacity: Mapping[Home, int]) -> dict[str, dict[str, np.ndarray]]:
        """Unit columns for every matrix: {"weights": ...} or {"eps_u": ..., "eps_r": ...}, rows of length S.

        Site parameters come first, then the partners of all hidden matrices of the population in turn, so that the
        leading directions of each get the best-distributed columns. Capacities are rounded up to one number inside, so
        that growing never changes a column that is in use.
        """
        plan = self.plan
        group = populations(plan.program)
        sides: dict[str, list[tuple[str, str, bool, int]]] = {g: [] for g in sorted(set(group.values()))}
        room = max(capacity.values(), default=0)
        for m in plan.program.matrices:
            uses = [s for s in plan.program.products() if s.matrix == m.name]
            if m.role is Role.HIDDEN:
                top, bottom = (uses[0].arg, uses[0].out) if uses[0].transpose else (uses[0].out, uses[0].arg)
                sides[group[top]].append((m.name, "eps_u", True, room))
                sides[group[bottom]].append((m.name, "eps_r", False, room))
            elif m.role is Role.READOUT:
                sides[group[uses[0].arg]].append((m.name, "weights", False, self.outputs))
            elif m.role is not Role.OUTPUT_BIAS:
                sides[group[uses[0].out]].append((m.name, "weights", True, self.inputs[m.name]))
        out: dict[str, dict[str, np.ndarray]] = {m.name: {} for m in plan.program.matrices}
        exact = isinstance(source, ExactColumns)
        widest = max(sum(n for *_, n in members) for members in sides.values())
        for index, members in enumerate(sides.values()):
            if exact:  # every population gets the same number of sites
                members = [*members, ("", "", False, widest - sum(n for *_, n in members))]
            stream = SampledColumns(source.samples, (*source.seed, index)) if isinstance(source, SampledColumns) else source
            order = _ranks(members)
            even = sum(n for *_, parity, n in members if parity)
            columns = dict(zip((True, False), stream.columns(even, len(order) - even, order), strict=True))
            start = {True: 0, False: 0}
            for name, part, parity, n in members:
                if name:
                    side = Home(name, BELOW if part == "eps_u" else ABOVE)
                    rows = columns[parity][start[parity] : start[parity] + n]
                    out[name][part] = self.scales[name] * (rows[: capacity[side]] if side in capacity else rows)
                start[parity] += n
        for m in plan.program.matrices:
            if m.role is Role.OUTPUT_BIAS:  # starts at zero wherever features are learned
                out[m.name]["weights"] = np.zeros((self.outputs, columns[True].shape[1]))
        return out


def _ranks(members: list[tuple[str, str, bool, int]]) -> np.ndarray:
    """Rank of every column, even ones first: fixed-size matrices, then the hidden partners interleaved."""
    fixed = [k for k, (_, part, *_) in enumerate(members) if part == "weights"]
    growing = [k for k in range(len(members)) if k not in fixed]
    ranks: dict[int, np.ndarray] = {}
    start = 0
    for k in fixed:
        ranks[k] = start + np.arange(members[k][3])
        start += members[k][3]
    for j, k in enumerate(growing):
        ranks[k] = start + j + len(growing) * np.arange(members[k][3])
    by_parity = [k for k in range(len(members)) if members[k][2]] + [k for k in range(len(members)) if not members[k][2]]
    return np.concatenate([ranks[k] for k in by_parity])
