"""Tensor programs: an immutable, ordered list of statements over vector variables (``theory/tensor_programs.md``).

A variable is a name. It lives in a space: WIDTH (N sites, one column per data point), DATA (a fixed input dimension),
OUTPUT (the K outputs) or SCALAR (an average, one number per data point). Powers of N do not sit in the program: they
come from the parameterization of its matrices, so that one program serves them all.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import sympy as sp

from tp_solver.errors import ProgramError
from tp_solver.program.positions import Grid, Window


class Space(Enum):
    """Where a variable lives."""

    DATA = "data"
    WIDTH = "width"
    OUTPUT = "output"
    SCALAR = "scalar"


class Role(Enum):
    """Which exponents a matrix takes, and which spaces it connects (domain, codomain)."""

    INPUT = (Space.DATA, Space.WIDTH)
    BIAS = (Space.DATA, Space.WIDTH, "bias")
    HIDDEN = (Space.WIDTH, Space.WIDTH)
    READOUT = (Space.WIDTH, Space.OUTPUT)
    OUTPUT_BIAS = (Space.DATA, Space.OUTPUT, "bias")

    @property
    def domain(self) -> Space:
        return self.value[0]

    @property
    def codomain(self) -> Space:
        return self.value[1]

    @property
    def shifts(self) -> bool:
        """Whether it acts on the constant 1: a bias, of sites or of the output."""
        return self in (Role.BIAS, Role.OUTPUT_BIAS)

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Matrix:
    """A weight matrix by name. ``sigma`` and ``rate`` are used by biases only: initial standard deviation, relative rate."""

    name: str
    role: Role
    sigma: sp.Expr = sp.S.One
    rate: sp.Expr = sp.S.One


def symbol(variable: str) -> sp.Symbol:
    """The symbol that stands for a variable inside map expressions."""
    return sp.Symbol(variable, real=True)


def coefficient(field: str, value: Any, expected: str = "a finite number or a sympy expression") -> sp.Expr:
    """A finite sympy expression from a number or an expression; text is refused, as sympy would run it."""
    if isinstance(value, sp.Expr):
        out: Any = value
    elif isinstance(value, (numbers.Real, np.integer, np.floating)) and not isinstance(value, bool):
        out = sp.sympify(value)
    else:
        out = None
    if not isinstance(out, sp.Expr) or out.has(sp.nan, sp.zoo, sp.oo, -sp.oo, sp.I):
        raise ProgramError(field, value, expected, "write a plain number, sympy.Rational(1, 2) or a sympy symbol")
    return out


@dataclass(frozen=True)
class Product:
    """``out = W arg`` or ``out = W.T arg``, at every position alike.

    Through a window: ``out_i = A^(-1/2) sum_a W_a arg_(i + a)`` over its A offsets (and the adjoint of that map).
    """

    out: str
    matrix: str
    arg: str
    transpose: bool = False
    window: Window | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        return (self.arg,)

    def renamed(self, names: Mapping[str, str]) -> Product:
        return replace(self, out=names.get(self.out, self.out), arg=names.get(self.arg, self.arg))

    def __str__(self) -> str:
        seen = f" ({self.window})" if self.window else ""
        return f"{self.out} = {self.matrix}{'.T' if self.transpose else ''} {self.arg}{seen}"


@dataclass(frozen=True)
class Map:
    """``out = expression``, entrywise in its arguments (vectors, and scalars that broadcast over sites)."""

    out: str
    expression: sp.Expr
    arguments: tuple[str, ...]

    def renamed(self, names: Mapping[str, str]) -> Map:
        swap = {symbol(a): symbol(names[a]) for a in self.arguments if a in names}
        return Map(
            names.get(self.out, self.out),
            self.expression.xreplace(swap),
            tuple(names.get(a, a) for a in self.arguments),
        )

    def __str__(self) -> str:
        return f"{self.out} = map({self.expression}; {', '.join(self.arguments)})"


@dataclass(frozen=True)
class Sum:
    """``out = sum_k c_k x_k`` with symbolic coefficients."""

    out: str
    terms: tuple[tuple[sp.Expr, str], ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.terms)

    def renamed(self, names: Mapping[str, str]) -> Sum:
        return Sum(names.get(self.out, self.out), tuple((c, names.get(x, x)) for c, x in self.terms))

    def __str__(self) -> str:
        return f"{self.out} = " + " + ".join(x if c == 1 else f"({c}) {x}" for c, x in self.terms)


@dataclass(frozen=True)
class Average:
    """``out = (1/N) sum over sites of expression``: one scalar per data point."""

    out: str
    expression: sp.Expr
    arguments: tuple[str, ...]

    def renamed(self, names: Mapping[str, str]) -> Average:
        m = Map(self.out, self.expression, self.arguments).renamed(names)
        return Average(m.out, m.expression, m.arguments)

    def __str__(self) -> str:
        return f"{self.out} = average({self.expression}; {', '.join(self.arguments)})"


@dataclass(frozen=True)
class Pool:
    """``out_i`` = mean of ``arg`` over the window of position i; transposed: its adjoint, which spreads over the window."""

    out: str
    arg: str
    window: Window
    transpose: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        return (self.arg,)

    def renamed(self, names: Mapping[str, str]) -> Pool:
        return replace(self, out=names.get(self.out, self.out), arg=names.get(self.arg, self.arg))

    def __str__(self) -> str:
        return f"{self.out} = {'spread' if self.transpose else 'mean'}({self.arg}; {self.window})"


Statement = Product | Map | Sum | Average | Pool


@dataclass(frozen=True)
class Layer:
    """A reported layer: field ``pre`` (h) and its activation ``post`` (phi(h)). Counted from 1."""

    index: int
    pre: str
    post: str
    activation: str
    """Name of the activation, for printing."""


X = "x"
ONE = "one"
"""Names of the two data variables: the inputs, and the constant 1 that biases act on."""


@dataclass(frozen=True)
class Program:
    """A traced network: matrices, statements in order, the output variable and the layers to report.

    Build one with :func:`tp_solver.mlp` or :func:`tp_solver.program`; print it to read it.
    """

    name: str
    matrices: tuple[Matrix, ...]
    statements: tuple[Statement, ...]
    output: str
    layers: tuple[Layer, ...]
    grid: Grid = ()
    """Positions of an input: inputs of dimension D are D / (number of positions) channels at each, the channel running fastest."""

    @property
    def depth(self) -> int:
        """Number of reported layers."""
        return len(self.layers)

    @property
    def free_symbols(self) -> tuple[sp.Symbol, ...]:
        """Symbolic coefficients that still need numbers before solving (see :meth:`bind`)."""
        found: set[Any] = set()
        for s in self.statements:
            if isinstance(s, Sum):
                for c, _ in s.terms:
                    found |= c.free_symbols
            elif isinstance(s, (Map, Average)):
                found |= s.expression.free_symbols - {symbol(a) for a in s.arguments}
        return tuple(sorted(found, key=str))

    def bind(self, values: Mapping[sp.Symbol, Any]) -> Program:
        """The same program with numbers (or other symbols) in place of symbolic coefficients."""
        if not isinstance(values, Mapping):
            raise ProgramError("bind", values, "a mapping from symbols to numbers", "program.bind({a: 0.5})")
        unknown = set(values) - set(self.free_symbols)
        if unknown:
            raise ProgramError(
                "bind",
                f"the symbols {sorted(map(str, unknown))}",
                f"the sympy symbols {list(map(str, self.free_symbols))}",
                "print the program to see its coefficients",
            )
        exact = {k: coefficient(f"bind[{k}]", v) for k, v in values.items()}

        def bound(s: Statement) -> Statement:
            if isinstance(s, Sum):
                return Sum(s.out, tuple((c.subs(exact), x) for c, x in s.terms))
            if isinstance(s, (Map, Average)):
                return replace(s, expression=s.expression.subs(exact))
            return s

        return replace(self, statements=tuple(bound(s) for s in self.statements))

    def matrix(self, name: str) -> Matrix:
        """The matrix of that name."""
        for m in self.matrices:
            if m.name == name:
                return m
        raise ProgramError("matrix", name, f"one of {[m.name for m in self.matrices]}", "print the program to see its matrices")

    @property
    def output_terms(self) -> tuple[Product, ...]:
        """The products whose sum is the output: that of the readout, then that of a bias on the output, where there is one."""
        made = {s.out: s for s in self.statements}
        last = made[self.output]
        parts = [last] if isinstance(last, Product) else [made[a] for a in last.arguments]
        products = [s for s in parts if isinstance(s, Product)]
        return tuple(sorted(products, key=lambda s: s.arg == ONE))

    def spaces(self) -> dict[str, Space]:
        """The space of every variable."""
        out = {X: Space.DATA, ONE: Space.DATA}
        for s in self.statements:
            out[s.out] = self._space(s, out)
        return out

    def grids(self) -> dict[str, Grid]:
        """The positions of every variable; a bias, the same at all positions, has one per axis."""
        single = (1,) * len(self.grid)
        out: dict[str, Grid] = {X: self.grid, ONE: single}
        for s in self.statements:
            if isinstance(s, (Product, Pool)) and s.window is not None:
                out[s.out] = s.window.inputs if s.transpose else s.window.outputs
            else:
                found = [out[a] for a in s.arguments if out[a] != single]
                out[s.out] = found[0] if found else single
        return out

    def _space(self, s: Statement, known: Mapping[str, Space]) -> Space:
        if isinstance(s, Product):
            role = self.matrix(s.matrix).role
            return role.domain if s.transpose else role.codomain
        if isinstance(s, Sum):
            return known[s.terms[0][1]]
        return Space.SCALAR if isinstance(s, Average) else Space.WIDTH

    def products(self) -> Iterator[Product]:
        """The matrix products, in order."""
        return (s for s in self.statements if isinstance(s, Product))

    def __str__(self) -> str:
        head = [f"program {self.name}" + (f" on {' x '.join(map(str, self.grid))} positions" if self.grid else "")]
        head += [f"  {m.name}: {m.role} matrix" for m in self.matrices if not m.role.shifts]
        head += [f"  {m.name}: {m.role}, sigma = {m.sigma}, rate = {m.rate}" for m in self.matrices if m.role.shifts]
        return "\n".join(head + [f"  {s}" for s in self.statements] + [f"  output {self.output}"])
