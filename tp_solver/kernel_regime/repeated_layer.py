"""A deep program as one layer that repeats: y' = a y + sum_m W_m f_m(y) + b (``theory/depth.md``, KD.6).

Read off the statements of the program, so that what is iterated to a depth of a million is the layer of the net at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import sympy as sp

from tp_solver.errors import ProgramError
from tp_solver.program.statements import ONE, Map, Product, Program, Role, Sum, symbol
from tp_solver.program.statements import X as INPUT
from tp_solver.symbols.activation import X

_HINT = "the field of every layer has to be a y + sum_m W_m f_m(y) + b with y the field of the layer before, and all layers alike"


@dataclass(frozen=True)
class Branch:
    """A matrix on a function of the field: ``weight`` times <f f'> in covariances, ``rate`` times <f f'> in tangent kernels."""

    function: sp.Expr
    weight: float
    rate: float


@dataclass(frozen=True)
class RepeatedLayer:
    """How one field makes the next.

    Attributes:
        branches: the products; functions are expressions in ``activation.X``.
        skip: a.
        bias, bias_rate: variance of b, and its term in the tangent kernel.
    """

    branches: tuple[Branch, ...]
    skip: float
    bias: float
    bias_rate: float


@dataclass(frozen=True)
class DeepNet:
    """The first field W x + b, the layer that repeats, and the readout.

    Attributes:
        first: its function is ``activation.X``, the inputs.
        first_bias, first_bias_rate: as in the layer.
        layer: what repeats.
        readout: what makes the output of the last field.
    """

    first: Branch
    first_bias: float
    first_bias_rate: float
    layer: RepeatedLayer
    readout: Branch


@dataclass(frozen=True)
class _Parts:
    """A variable in terms of the field of the layer before: a multiple of it, products of its functions, and a bias."""

    skip: sp.Expr
    branches: tuple[Branch, ...]
    bias: float
    bias_rate: float


def read_deep_net(program: Program, scales: Mapping[str, float], rates: Mapping[str, float]) -> DeepNet:
    """Find the layer that repeats.

    Args:
        program: a net with at least two reported layers, whose fields are those that the activations act on.
        scales, rates: matrix -> standard deviation and term in the tangent kernel (numbers, as for the kernels of the program).

    Raises:
        ProgramError: for a net whose layers differ, share weights, act on positions or take averages, or whose field does not follow
            from the field of the layer before.
    """
    return _Reader(program, scales, rates).read()


class _Reader:
    def __init__(self, program: Program, scales: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self.program, self.scales, self.rates = program, scales, rates
        self.made = {s.out: s for s in program.statements}

    def read(self) -> DeepNet:
        program = self.program
        if program.grid:
            raise ProgramError(program.name, "a net over positions", "dense layers", _HINT)
        last, *shifts = program.output_terms
        if shifts:
            raise ProgramError(
                program.name, f"the bias {shifts[0].matrix} on the output", "an output without one",
                "leave it out: at every depth it adds its variance to the NNGP and its rate to the tangent kernel",
            )  # fmt: skip
        fields: list[str] = []
        # what the activations act on, and what the readout sees, apart from functions of a field that is there already
        for name in (*(v.pre for v in program.layers), last.arg):
            if not fields or not self._follows(name, fields[-1]):
                fields.append(name)
        if len(fields) < 2:
            raise ProgramError(
                program.name, "one layer", "at least two, so that there is one that repeats", "for example tp.mlp(depth=3, ...)"
            )
        products = [s.matrix for s in program.products()]
        if shared := [m for k, m in enumerate(products) if m in products[:k]]:
            raise ProgramError(program.name, f"{shared[0]} used twice", "independent matrices", "shared weights correlate the layers")
        first = self._parts(fields[0], INPUT)
        if len(first.branches) != 1 or first.branches[0].function != X or first.skip != 0:
            raise ProgramError(program.name, f"the field {fields[0]}", "W x + b in the first layer", _HINT)
        layers = [self._parts(new, old) for old, new in pairwise(fields)]
        if different := [k for k, v in enumerate(layers) if v != layers[0]]:
            k = different[0]
            raise ProgramError(program.name, f"{fields[k + 1]} made unlike {fields[1]}", "layers that repeat", _HINT)
        return DeepNet(
            first.branches[0],
            first.bias,
            first.bias_rate,
            RepeatedLayer(layers[0].branches, float(layers[0].skip), layers[0].bias, layers[0].bias_rate),
            self._branch(last, fields[-1]),
        )

    def _parts(self, name: str, origin: str) -> _Parts:
        """A field in terms of an earlier one."""
        if name == origin:
            return _Parts(sp.S.One, (), 0.0, 0.0)
        terms = self._terms(name, origin)
        skip = terms.pop(origin, sp.S.Zero)
        branches: list[Branch] = []
        bias = bias_rate = 0.0
        for out, c in terms.items():
            s, square = self.made[out], float(c) ** 2
            assert isinstance(s, Product)
            if self._is_bias(s):
                bias += square * self.scales[s.matrix] ** 2
                bias_rate += square * self.rates[s.matrix]
            elif square > 0:
                branch = self._branch(s, origin)
                branches.append(Branch(branch.function, square * branch.weight, square * branch.rate))
        return _Parts(skip, tuple(branches), bias, bias_rate)

    def _terms(self, name: str, origin: str) -> dict[str, sp.Expr]:
        """A field as a linear combination of an earlier one and of products, each with its whole coefficient: one that occurs twice adds
        up before anything is squared."""
        if name == origin:
            return {origin: sp.S.One}
        match self.made.get(name):
            case Product():
                return {name: sp.S.One}
            case Sum() as s:
                out: dict[str, sp.Expr] = {}
                for c, v in s.terms:
                    for term, inner in self._terms(v, origin).items():
                        out[term] = out.get(term, sp.S.Zero) + c * inner
                return out
        raise ProgramError(self.program.name, f"{name}, which {origin} does not make", "layers that repeat", _HINT)

    def _is_bias(self, s: Product) -> bool:
        return self.program.matrix(s.matrix).role is Role.BIAS and s.arg == ONE

    def _branch(self, s: Product, origin: str) -> Branch:
        if s.transpose or s.window is not None:
            raise ProgramError(str(s), "a transpose or a window", "plain products", _HINT)
        return Branch(self._function(s.arg, origin), self.scales[s.matrix] ** 2, self.rates[s.matrix])

    def _follows(self, name: str, origin: str) -> bool:
        """Whether a variable is an entrywise function of another."""
        try:
            self._function(name, origin)
        except ProgramError:
            return False
        return True

    def _function(self, name: str, origin: str) -> sp.Expr:
        """A variable as an entrywise function of the field ``origin``."""
        if name == origin:
            return X
        match self.made.get(name):
            case Map() as s:
                return s.expression.xreplace({symbol(a): self._function(a, origin) for a in s.arguments})
            case Sum() as s:
                return sp.Add(*(c * self._function(v, origin) for c, v in s.terms))
        raise ProgramError(self.program.name, f"{name}, which is no function of {origin}", "one matrix per branch of a layer", _HINT)
