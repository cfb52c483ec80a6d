"""The backward program, derived from the forward one by one rule per kind of statement (``theory/tensor_programs.md``).

Adjoints are normalised so that no power of N appears: the adjoint of a vector variable v is ``n df/dv`` in units of the
output cotangent, that of an average is ``df/dc``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import sympy as sp

from tp_solver.program.statements import Average, Map, Product, Program, Role, Space, Statement, Sum, symbol

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


@dataclass(frozen=True)
class Backward:
    """The transposed program.

    Attributes:
        statements: in execution order; they read forward variables and ``COTANGENT``.
        adjoints: forward variable -> variable holding its adjoint.
        pairs: what updates each matrix, one per use.
    """

    statements: tuple[Statement, ...]
    adjoints: Mapping[str, str]
    pairs: tuple[Pair, ...]

    def __str__(self) -> str:
        return "\n".join([str(s) for s in self.statements] + [f"update {p.matrix}: {p.adjoint} {p.input}^T" for p in self.pairs])


def transpose(program: Program) -> Backward:
    """Derive the backward program: products give transposed products, maps give maps with the differentiated
    expression, sums give sums, averages start or pass on adjoints."""
    spaces = program.spaces()
    out: list[Statement] = []
    pairs: list[Pair] = []
    received: dict[str, list[tuple[sp.Expr, str]]] = defaultdict(list)
    adjoints: dict[str, str] = {program.output: COTANGENT}

    def collect(variable: str) -> str | None:
        """Sum what a variable received; a single unscaled contribution needs no statement."""
        terms = received[variable]
        if variable == program.output:
            return COTANGENT
        if not terms:
            return None
        if len(terms) == 1 and terms[0][0] == 1:
            adjoints[variable] = terms[0][1]
        else:
            adjoints[variable] = f"d{variable}"
            if spaces[variable] is Space.SCALAR:
                names = tuple(dict.fromkeys(n for _, n in terms))
                total = sp.Add(*(c * symbol(n) for c, n in terms))
                out.append(Map(f"d{variable}", total, names))
            else:
                out.append(Sum(f"d{variable}", tuple(terms)))
        return adjoints[variable]

    def pass_through(expression: sp.Expr, arguments: tuple[str, ...], adjoint: str, tag: str) -> None:
        """Contributions d expression / d argument * adjoint, as sums where the factor is constant."""
        for k, name in enumerate(arguments):
            factor = sp.diff(expression, symbol(name))
            if factor == 0:
                continue
            inner = tuple(a for a in arguments if symbol(a) in factor.free_symbols)
            contribution = f"d{name}_{tag}" if k or len(arguments) > 1 else f"d{name}"
            product = factor * symbol(adjoint)
            args = tuple(dict.fromkeys((*inner, adjoint)))
            if spaces[name] is Space.SCALAR:
                out.append(Average(contribution, product, args))
            elif not inner and spaces_of(adjoint) is Space.WIDTH:
                received[name].append((factor, adjoint))
                continue
            else:
                contribution = f"{contribution}_{tag}" if received[name] or _multiple(program, name) else contribution
                out.append(Map(contribution, product, args))
            received[name].append((sp.Integer(1), contribution))

    def spaces_of(adjoint: str) -> Space:
        for variable, name in adjoints.items():
            if name == adjoint:
                return spaces[variable]
        return Space.WIDTH

    for s in reversed(program.statements):
        adjoint = collect(s.out)
        if adjoint is None:
            continue
        match s:
            case Product():
                pairs.append(Pair(s.matrix, adjoint, s.arg, s.transpose))
                if spaces[s.arg] is Space.WIDTH:
                    single = not _multiple(program, s.arg)
                    name = f"d{s.arg}" if single else f"d{s.arg}_{s.out}"
                    out.append(Product(name, s.matrix, adjoint, not s.transpose))
                    received[s.arg].append((sp.Integer(1), name))
            case Sum():
                for c, name in s.terms:
                    received[name].append((c, adjoint))
            case Map() | Average():
                pass_through(s.expression, s.arguments, adjoint, s.out)
    return Backward(tuple(out), adjoints, tuple(pairs))


def _multiple(program: Program, variable: str) -> bool:
    """Whether several statements read the variable, so that its adjoint is a sum of named contributions."""
    return sum(s.arguments.count(variable) for s in program.statements) > 1


def populations(program: Program) -> dict[str, str]:
    """Sites that are the same neurons: variables tied by entrywise statements, and all that one matrix reads (or writes).

    Returns:
        variable -> a representative variable of its population, for the WIDTH variables.
    """
    parent: dict[str, str] = {}

    def root(v: str) -> str:
        parent.setdefault(v, v)
        while parent[v] != v:
            v = parent[v]
        return v

    def join(a: str, b: str) -> None:
        parent[root(b)] = root(a)

    spaces = program.spaces()
    above: dict[str, str] = {}
    below: dict[str, str] = {}
    for s in program.statements:
        if spaces[s.out] is Space.WIDTH:
            root(s.out)
        if isinstance(s, Product):
            if program.matrix(s.matrix).role is Role.HIDDEN:
                top, bottom = (s.arg, s.out) if s.transpose else (s.out, s.arg)
                join(above.setdefault(s.matrix, top), top)
                join(below.setdefault(s.matrix, bottom), bottom)
        else:
            width = [a for a in (*s.arguments, s.out) if spaces[a] is Space.WIDTH]
            for a in width[1:]:
                join(width[0], a)
    return {v: root(v) for v in parent}
