"""What the variables of a program are called in its limiting equations, and the sympy nodes that stand for them.

Reported layers give the letters of the field: h = pre-activation, z = adjoint of the activation, g = adjoint of the
pre-activation, Phi and G = their covariances, u and r = forward and backward Gaussian fields, A and B = forward and
backward responses. Whatever is no layer keeps the name it has in the program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import sympy as sp

from tp_solver.limit.master import Use, hidden_uses, step, transposed
from tp_solver.limit.transposition import COTANGENT, Backward
from tp_solver.program.statements import ONE, Layer, Map, Product, Program, Role, Space, Statement, Sum, X, symbol
from tp_solver.symbols import activation
from tp_solver.symbols.equation import Key
from tp_solver.symbols.notation import C, Entrywise, Expectation, Field, Kernel, Observable

Index = int | str


@dataclass(frozen=True)
class Names:
    """The dictionary between a program and its equations.

    Args:
        program, backward: the forward program and its transpose.
        several: whether there are several outputs, so that f, e and y carry the index c.
        seeded: whether the backward pass starts with the errors of all outputs (gradients of the loss) rather than with 1
            (gradients of the output).
        moving: whether the random part of every matrix changes in training, by decay or noise.
    """

    program: Program
    backward: Backward
    several: bool = False
    seeded: bool = False
    moving: bool = False
    defined: dict[Key, tuple[str, str]] = field(default_factory=dict, compare=False)
    """Kernels handed out so far: key -> the two variables."""

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """One training step."""
        return step(self.program, self.backward)

    @cached_property
    def statement(self) -> dict[str, Statement]:
        return {s.out: s for s in self.statements}

    @cached_property
    def spaces(self) -> dict[str, Space]:
        return {**self.program.spaces(), **self.backward.spaces}

    @cached_property
    def uses(self) -> dict[str, Use]:
        """Output variable -> the product with a hidden matrix that gives it."""
        return {u.product.out: u for u in hidden_uses(self.program, self.statements)}

    @cached_property
    def pre(self) -> dict[str, int]:
        return _first((v.pre, v.index) for v in self.program.layers)

    @cached_property
    def post(self) -> dict[str, int]:
        return _first((v.post, v.index) for v in self.program.layers)

    @cached_property
    def z(self) -> dict[str, int]:
        """Adjoints of activations."""
        adjoint = self.backward.adjoints
        return _first((adjoint[v.post], v.index) for v in self.program.layers if v.post in adjoint)

    @cached_property
    def g(self) -> dict[str, int]:
        """Adjoints of pre-activations."""
        adjoint = self.backward.adjoints
        return _first((adjoint[v.pre], v.index) for v in self.program.layers if v.pre in adjoint)

    @cached_property
    def activations(self) -> dict[sp.Expr, str]:
        """Activation as an expression in ``activation.X`` -> its letter; the identity needs none."""
        found = dict.fromkeys(self._expression(v.post, v.pre) for v in self.program.layers)
        found.pop(activation.X, None)
        return {e: "phi" if len(found) == 1 else f"phi_{k + 1}" for k, e in enumerate(found)}

    def _expression(self, post: str, pre: str) -> sp.Expr:
        statement = self.statement[post]
        assert isinstance(statement, Map)
        return statement.expression.xreplace({symbol(pre): activation.X})

    def written(self, layer: Layer) -> str | None:
        """The letter of a layer's activation; None for the identity."""
        return self.activations.get(self._expression(layer.post, layer.pre))

    @cached_property
    def readout(self) -> Product:
        """The product that gives the output, a bias apart."""
        return self.program.output_terms[0]

    @cached_property
    def readout_vector(self) -> str:
        """The variable that holds the readout's column: the output of its transposed product."""
        return next(s.out for s in self.backward.statements if isinstance(s, Product) and s.arg == COTANGENT)

    @cached_property
    def substituted(self) -> frozenset[str]:
        """Variables that need no equation of their own: what one sum reads and nothing else."""
        reads = Counter(a for s in self.statements for a in s.arguments)
        kept = {*self.pre, *self.post, *self.z, *self.g, self.readout_vector}
        kept |= {n for p in self.backward.pairs for n in (p.adjoint, p.input)}
        into_sum = {a for s in self.statements if isinstance(s, Sum) for a in s.arguments}
        return frozenset(v for v in into_sum - kept if reads[v] == 1)

    # -- variables ---------------------------------------------------------------------------------------------------

    def key(self, variable: str) -> Key:
        """The key under which a variable's equation is found."""
        if variable in self.pre:
            return ("h", self.pre[variable])
        if variable in self.z:
            return ("z", self.z[variable])
        if variable in self.g:
            return ("g", self.g[variable])
        if variable == self.readout_vector:
            return (self.readout.matrix,)
        return (variable,)

    def node(self, variable: str, point: sp.Expr, time: sp.Expr | None) -> sp.Expr:
        """A variable that has an equation of its own, at a data point and a time (None: at initialisation)."""
        label, *layers = self.key(variable)
        kind = Observable if self.spaces[variable] is Space.SCALAR else Field
        everywhere = variable == self.readout_vector and not self.seeded
        return kind(label, layers, () if everywhere else (point,), _times(time))

    def column(self, time: sp.Expr | None) -> sp.Expr:
        """The readout's column: one number per site (and per output, where there are several)."""
        if self.seeded:
            return Field(self.readout.matrix, (), (C,), _times(time))
        return self.node(self.readout_vector, sp.S.Zero, time)

    def activated(self, variable: str, point: sp.Expr, time: sp.Expr | None, order: int = 0) -> sp.Expr:
        """phi(h), or a derivative, for the activation that gives ``variable``."""
        layer = self.program.layers[self.post[variable] - 1]
        expression = self._expression(layer.post, layer.pre)
        at = self.node(layer.pre, point, time)
        letter = self.activations.get(expression)
        return Entrywise(letter, order, at) if letter else sp.diff(expression, activation.X, order).xreplace({activation.X: at})

    def inlined(self, variable: str) -> bool:
        """Whether the variable is written as phi(h)."""
        return variable in self.post and variable not in self.pre

    # -- Gaussian fields and responses -------------------------------------------------------------------------------

    def _home(self, variable: str) -> Index:
        """The layer whose pre-activation the variable adds to, or its own name."""
        while variable not in self.pre and variable in self.substituted:
            variable = next(s.out for s in self.statements if variable in s.arguments)
        return self.pre.get(variable, variable)

    @cached_property
    def indices(self) -> dict[str, Index]:
        """Output of a product with a hidden matrix or a readout -> which side of the matrix it belongs to (A^l, B^l, r^l)."""
        hidden_or_last = [s for s in self.program.products() if self.spaces[s.arg] is Space.WIDTH]
        forward = _distinct({s.out: self.post.get(s.arg, s.arg) for s in hidden_or_last})
        return forward | {b: forward[f] for b, f in transposed(self.program, self.backward).items()}

    @cached_property
    def gaussians(self) -> dict[str, tuple[str, Index]]:
        """Output of a product -> letter and index of its Gaussian part."""
        bias = {m.name for m in self.program.matrices if m.role is Role.BIAS}
        forward = [s for s in self.program.products() if self.spaces[s.out] is Space.WIDTH]
        u = _distinct({s.out: self._home(s.out) for s in forward if s.matrix not in bias})
        b = _distinct({s.out: self._home(s.out) for s in forward if s.matrix in bias})
        r = {s.out: self.indices[s.out] for s in self.backward.statements if isinstance(s, Product)}
        return {o: (letter, i) for letter, part in (("u", u), ("b", b), ("r", r)) for o, i in part.items()}

    def gaussian(self, product: Product, point: sp.Expr, time: sp.Expr | None) -> sp.Expr:
        """The Gaussian part of a product: static for input matrices, biases and the readout, if the weights keep their start."""
        letter, index = self.gaussians[product.out]
        role = self.program.matrix(product.matrix).role
        points = {Role.BIAS: (), Role.READOUT: (C,) if self.seeded else ()}.get(role, (point,))
        return Field(letter, (index,), points, _times(time) if role is Role.HIDDEN or self.moving else ())

    def response_key(self, use: Use, other: Use) -> Key:
        """A for forward products, B for backward ones, numbered by the layer below the matrix."""
        i, j = self.indices[use.product.out], self.indices[other.product.out]
        letter = "B" if use.product.out in self.backward.spaces else "A"
        return (letter, i) if i == j else (letter, i, j)

    # -- kernels -----------------------------------------------------------------------------------------------------

    def _kernel_name(self, variable: str) -> tuple[str, Index]:
        if variable in self.backward.spaces:
            return "G", self.g.get(variable, variable)
        return "Phi", self.post.get(variable, variable)

    def kernel(
        self, a: str, b: str, points: tuple[sp.Expr, sp.Expr], times: tuple[sp.Expr, sp.Expr] | tuple[()], value: Mapping[str, sp.Expr]
    ) -> sp.Expr:
        """The average of two variables; a named kernel where both belong to the same pass, else written out.

        Args:
            a, b: what one matrix reads (or writes).
            points, times: of the first and the second.
            value: the expression of either, for the ones written out.
        """
        if ONE in (a, b):
            return sp.S.One
        if a == b == X:
            return Kernel("Phi", (0,), points)
        (la, i), (lb, j) = self._kernel_name(a), self._kernel_name(b)
        if la != lb:
            return Expectation(value["a"] * value["b"])
        if _rank(j) < _rank(i):
            a, b, i, j, points, times = b, a, j, i, points[::-1], times[::-1]
        key: Key = (la, i) if i == j else (la, i, j)
        self.defined[key] = (a, b)
        return Kernel(la, key[1:], points, times)


def _times(time: sp.Expr | None) -> tuple[sp.Expr, ...]:
    return () if time is None else (time,)


def _rank(index: Index) -> tuple[bool, str, int]:
    return (True, index, 0) if isinstance(index, str) else (False, "", index)


def _first(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name, index in pairs:
        out.setdefault(name, index)
    return out


def _distinct(wanted: Mapping[str, Index]) -> dict[str, Index]:
    """The wanted index where no other variable wants it, else the variable's own name."""
    count = Counter(wanted.values())
    return {out: index if count[index] == 1 else out for out, index in wanted.items()}
