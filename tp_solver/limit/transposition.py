"""The backward program, derived from the forward one by one rule per kind of statement (``theory/tensor_programs.md``, TP.1).

Adjoints are normalised so that no power of N appears: with the readout's transposed product read as ``n W.T df``, the
adjoint of a vector variable v is ``n df/dv`` and that of an average c is ``df/dc``, both contracted with the output
cotangent ``df``. Read as plain ``W.T df``, the same statements give ``df/dv`` and ``(1/n) df/dc``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy as sp

from tp_solver.errors import ProgramError
from tp_solver.program.positions import Window
from tp_solver.program.statements import Average, Map, Pool, Product, Program, Space, Statement, Sum, symbol

COTANGENT = "df"
"""The variable, in the OUTPUT space, that starts the adjoints."""


@dataclass(frozen=True)
class Pair:
    """One use of a matrix in the forward program: its gradient is the outer product of ``adjoint`` (of the product's
    output) and ``input`` (for a transposed use: the other way round)."""

    matrix: str
    adjoint: str
    input: str
    transpose: bool
    window: Window | None = None


@dataclass(frozen=True)
class Backward:
    """The transposed program.

    Attributes:
        statements: in execution order; they read forward variables and ``COTANGENT``.
        adjoints: forward variable -> variable holding its adjoint.
        pairs: what updates each matrix, one per use.
        spaces: the space of every variable of these statements; a WIDTH map of averages alone is the same at every site.
    """

    statements: tuple[Statement, ...]
    adjoints: Mapping[str, str]
    pairs: tuple[Pair, ...]
    spaces: Mapping[str, Space]

    def __str__(self) -> str:
        return "\n".join([str(s) for s in self.statements] + [f"update {p.matrix}: {p.adjoint} {p.input}^T" for p in self.pairs])


def transpose(program: Program) -> Backward:
    """Derive the backward program: products give transposed products, maps give maps with the differentiated
    expression, sums give sums, means over windows spread over them, averages start or pass on adjoints.

    The adjoint of ``h`` is called ``dh``; what a variable read by several statements receives from the one that computes
    ``y`` is called ``dh_y``.

    Raises:
        ProgramError: if a forward variable already has the name of an adjoint.
    """
    spaces = program.spaces()
    reads = Counter(a for s in program.statements for a in s.arguments)
    out: list[Statement] = []
    pairs: list[Pair] = []
    received: dict[str, list[tuple[sp.Expr, str]]] = defaultdict(list)
    adjoints: dict[str, str] = {program.output: COTANGENT}
    kinds: dict[str, Space] = {COTANGENT: Space.OUTPUT}

    def emit(statement: Statement, space: Space) -> None:
        out.append(statement)
        kinds[statement.out] = space

    def collect(variable: str) -> str | None:
        """The adjoint of a variable: the sum of what it received; a single unscaled contribution needs no statement."""
        terms = received[variable]
        if variable == program.output or not terms:
            return adjoints.get(variable)
        if len(terms) == 1 and terms[0][0] == 1:
            adjoints[variable] = terms[0][1]
            return adjoints[variable]
        name = adjoints[variable] = f"d{variable}"
        if spaces[variable] is Space.SCALAR:
            arguments = tuple(dict.fromkeys(n for _, n in terms))
            emit(Map(name, sp.Add(*(c * symbol(n) for c, n in terms)), arguments), Space.SCALAR)
        else:
            emit(Sum(name, tuple(terms)), Space.WIDTH)
        return name

    def contribution(variable: str, source: str) -> str:
        return f"d{variable}" if reads[variable] == 1 else f"d{variable}_{source}"

    def differentiate(s: Map | Average, adjoint: str) -> None:
        """Contributions d expression / d argument * adjoint, as sums where the factor is constant."""
        for argument in s.arguments:
            factor = sp.diff(s.expression, symbol(argument))
            if factor == 0:
                continue
            name = contribution(argument, s.out)
            inner = tuple(a for a in s.arguments if symbol(a) in factor.free_symbols)
            arguments = tuple(dict.fromkeys((*inner, adjoint)))
            if spaces[argument] is Space.SCALAR:
                emit(Average(name, factor * symbol(adjoint), arguments), Space.SCALAR)
            elif not inner and isinstance(s, Map):
                received[argument].append((factor, adjoint))
                continue
            else:
                emit(Map(name, factor * symbol(adjoint), arguments), Space.WIDTH)
            received[argument].append((sp.S.One, name))

    for s in reversed(program.statements):
        adjoint = collect(s.out)
        if adjoint is None:
            continue
        match s:
            case Product():
                pairs.append(Pair(s.matrix, adjoint, s.arg, s.transpose, s.window))
                if spaces[s.arg] is Space.WIDTH:
                    name = contribution(s.arg, s.out)
                    emit(Product(name, s.matrix, adjoint, not s.transpose, s.window), Space.WIDTH)
                    received[s.arg].append((sp.S.One, name))
            case Sum():
                for c, name in s.terms:
                    received[name].append((c, adjoint))
            case Pool():
                name = contribution(s.arg, s.out)
                emit(Pool(name, adjoint, s.window, not s.transpose), Space.WIDTH)
                received[s.arg].append((sp.S.One, name))
            case Map() | Average():
                differentiate(s, adjoint)
    names = Counter([*spaces, COTANGENT, *(s.out for s in out)])
    if clash := [n for n, uses in names.items() if uses > 1]:
        raise ProgramError(
            "named", clash[0], "a name that no adjoint has", "the adjoint of h is called dh: choose a name without leading d"
        )
    return Backward(tuple(out), adjoints, tuple(pairs), kinds)


@dataclass
class Ties:
    """Names in disjoint groups: a union-find whose representative is that of the first name of a join."""

    parent: dict[str, str] = field(default_factory=dict)

    def root(self, v: str) -> str:
        """The representative of a name's group; an unknown name is a group of its own."""
        self.parent.setdefault(v, v)
        while self.parent[v] != v:
            v = self.parent[v]
        return v

    def join(self, a: str, b: str) -> None:
        """Merge the group of ``b`` into that of ``a``."""
        self.parent[self.root(b)] = self.root(a)


def populations(program: Program) -> dict[str, str]:
    """Sites that are the same neurons: variables tied by entrywise statements, and all that one matrix reads (or writes).

    Returns:
        variable -> a representative variable of its population, for the WIDTH variables.
    """
    ties = Ties()
    spaces = program.spaces()
    above: dict[str, str] = {}
    below: dict[str, str] = {}
    for s in program.statements:
        if spaces[s.out] is Space.WIDTH:
            ties.root(s.out)
        if isinstance(s, Product):
            top, bottom = (s.arg, s.out) if s.transpose else (s.out, s.arg)
            for side, v in ((above, top), (below, bottom)):
                if spaces[v] is Space.WIDTH:
                    ties.join(side.setdefault(s.matrix, v), v)
        else:
            width = [a for a in (*s.arguments, s.out) if spaces[a] is Space.WIDTH]
            for a in width[1:]:
                ties.join(width[0], a)
    return {v: ties.root(v) for v in ties.parent}
