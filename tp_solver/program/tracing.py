"""From a user's function to a program: symbolic vectors that write down what is done to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import sympy as sp

from tp_solver.errors import InputError, ProgramError, TPError
from tp_solver.program.positions import Grid, Window, grid_of
from tp_solver.program.statements import (
    ONE,
    Average,
    Layer,
    Map,
    Matrix,
    Pool,
    Product,
    Program,
    Role,
    Space,
    Statement,
    Sum,
    X,
    coefficient,
    symbol,
)
from tp_solver.symbols.activation import Activation
from tp_solver.symbols.functions import canonical


@dataclass(frozen=True)
class Weight:
    """A matrix as the user writes it: ``W @ x``, ``W.T @ x``, and for a bias ``h + b``."""

    matrix: Matrix
    transposed: bool = False

    @property
    def T(self) -> Weight:
        """The transpose."""
        return Weight(self.matrix, not self.transposed)

    def __matmul__(self, x: Any) -> Vector:
        if not isinstance(x, Vector):
            raise ProgramError(self.matrix.name, x, "a traced vector on the right of @", "use it inside the function given to tp.program")
        return x.trace.product(self, x)


def _named(name: str, role: Role) -> Weight:
    if not isinstance(name, str) or not name.isidentifier():
        raise InputError("matrix name", name, "an identifier", 'for example "W1"')
    return Weight(Matrix(name, role))


def input_matrix(name: str) -> Weight:
    """A trained matrix from the inputs (fixed dimension D) to N sites."""
    return _named(name, Role.INPUT)


def hidden_matrix(name: str) -> Weight:
    """A trained matrix from N sites to N sites; using it twice ties the weights."""
    return _named(name, Role.HIDDEN)


def readout(name: str) -> Weight:
    """A trained matrix from N sites to the outputs."""
    return _named(name, Role.READOUT)


def bias(name: str, sigma: Any = 0, rate: Any = 1) -> Weight:
    """A trained bias, initialised N(0, sigma^2), trained at ``rate`` times the base rate (0: frozen).

    What it is added to decides what it is: ``h + b`` has one entry per site, ``w @ x + b`` one per output, with the exponents
    ``output_bias`` of the parameterization (``theory/power_counting.md``, PC.8).
    """
    matrix = _named(name, Role.BIAS).matrix
    scales = []
    for what, value in (("sigma", sigma), ("rate", rate)):
        scale = coefficient(f"bias {name!r} {what}", value, "a finite number >= 0")
        if scale.is_number and not scale >= 0:
            raise InputError(f"bias {name!r} {what}", value, "a finite number >= 0", "sigma = 0 starts at zero, rate = 0 freezes")
        scales.append(scale)
    return Weight(Matrix(matrix.name, Role.BIAS, *scales))


_CURE = {
    Space.DATA: "inputs meet an input matrix first: W0 @ x",
    Space.WIDTH: "an input matrix acts on the inputs alone; between sites use tp.hidden_matrix",
    Space.OUTPUT: "the readout comes last; only a bias is added to it",
    Space.SCALAR: "an average enters through tp.entrywise, together with a vector",
}
"""What to do with a variable that lives in the wrong space."""


@dataclass
class Trace:
    """Collects the statements of one traced function of inputs over a grid."""

    grid: Grid = ()
    statements: list[Statement] = field(default_factory=list)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    spaces: dict[str, Space] = field(default_factory=lambda: {X: Space.DATA, ONE: Space.DATA})
    layers: list[Layer] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.grids |= {X: self.grid, ONE: self.single}

    @property
    def single(self) -> Grid:
        """One position per axis: the grid of what is the same at all positions."""
        return (1,) * len(self.grid)

    def add(self, statement: Statement, space: Space, grid: Grid) -> Vector:
        self.statements.append(statement)
        self.spaces[statement.out] = space
        self.grids[statement.out] = grid
        return Vector(self, statement.out)

    def fresh(self) -> str:
        return f"v{len(self.statements) + 1}"

    def use(self, matrix: Matrix) -> None:
        known = self.matrices.setdefault(matrix.name, matrix)
        if known != matrix:
            raise ProgramError("matrix name", matrix.name, "one matrix per name", "give the two matrices different names")

    def product(self, weight: Weight, x: Vector, window: Window | None = None) -> Vector:
        matrix = weight.matrix
        self.use(matrix)
        role = matrix.role
        needs, gives = (role.codomain, role.domain) if weight.transposed else (role.domain, role.codomain)
        if weight.transposed and role is not Role.HIDDEN:
            raise ProgramError(
                f"{matrix.name}.T", "a transpose in the forward program", "a hidden matrix", "only hidden matrices map sites to sites"
            )
        if self.spaces[x.name] is not needs:
            raise ProgramError(
                f"{matrix.name} @ {x.name}",
                f"a variable in the {self.spaces[x.name].value} space",
                f"one in the {needs.value} space",
                _CURE[self.spaces[x.name]],
            )
        if weight.transposed and window is not None:
            raise ProgramError(
                f"{matrix.name}.T", "a transpose through a window", "the matrix itself", "windows run forward; use another matrix"
            )
        self.one_window(matrix.name, window)
        grid = self.grids[x.name] if window is None else window.outputs
        return self.add(Product(self.fresh(), matrix.name, x.name, weight.transposed, window), gives, grid)

    def one_window(self, matrix: str, window: Window | None) -> None:
        """A matrix has one number per offset of its window, so that all its uses share the window's size."""
        for s in self.statements:
            if isinstance(s, Product) and s.matrix == matrix and s.window != window:
                raise ProgramError(
                    matrix,
                    f"{window or 'no window'} after {s.window or 'no window'}",
                    "the same window over the same grid in all uses of a matrix",
                    "take another matrix, or the same size, stride and padding on the same grid",
                )

    def pool(self, x: Vector, window: Window) -> Vector:
        self.require(x, Space.WIDTH, "a mean over positions")
        return self.add(Pool(self.fresh(), x.name, window), Space.WIDTH, window.outputs)

    def add_bias(self, v: Vector, bias: Weight) -> Vector:
        """A bias of sites, or of the output where ``v`` is that of a readout."""
        one = Vector(self, ONE)
        if self.spaces.get(v.name) is not Space.OUTPUT:
            return self.combine([(sp.Integer(1), v), (sp.Integer(1), bias @ one)])
        if any(isinstance(s, Sum) and s.out == v.name for s in self.statements):
            raise ProgramError(
                f"{v.name} + {bias.matrix.name}", "a second bias on the output", "one", "two biases there are one of summed variance"
            )
        shift = self.product(Weight(replace(bias.matrix, role=Role.OUTPUT_BIAS), bias.transposed), one)
        terms = ((sp.Integer(1), v.name), (sp.Integer(1), shift.name))
        return self.add(Sum(self.fresh(), terms), Space.OUTPUT, self.grids[v.name])

    def combine(self, terms: list[tuple[sp.Expr, Vector]]) -> Vector:
        for _, v in terms:
            self.require(v, Space.WIDTH, "a sum")
        grid = self.common_grid("a sum", tuple(v for _, v in terms))
        return self.add(Sum(self.fresh(), tuple((sp.sympify(c), v.name) for c, v in terms)), Space.WIDTH, grid)

    def common_grid(self, what: str, vectors: tuple[Vector, ...]) -> Grid:
        """The positions that vectors share; only a bias is the same at all of them."""
        biases = {s.out for s in self.statements if isinstance(s, Product) and s.arg == ONE}
        grids = {self.grids[v.name] for v in vectors if v.name not in biases and self.spaces[v.name] is Space.WIDTH}
        if len(grids) > 1:
            raise ProgramError(
                f"{what} of {', '.join(v.name for v in vectors)}",
                f"positions {' and '.join(map(str, sorted(grids)))}",
                "vectors over the same positions",
                "pool or convolve the larger one with a stride first",
            )
        return grids.pop() if grids else self.single

    def entrywise(self, expression: sp.Expr, args: tuple[Vector, ...]) -> Vector:
        for v in args:
            if v.trace is not self or self.spaces[v.name] is not Space.SCALAR:
                self.require(v, Space.WIDTH, "an entrywise map")
        if all(self.spaces[v.name] is Space.SCALAR for v in args):
            raise ProgramError("entrywise map", "averages only", "at least one vector over the sites", "multiply by a vector")
        grid = self.common_grid("an entrywise map", args)
        return self.add(Map(self.fresh(), expression, tuple(dict.fromkeys(v.name for v in args))), Space.WIDTH, grid)

    def require(self, v: Vector, space: Space, what: str) -> None:
        if v.trace is not self:
            raise ProgramError(what, v.name, "vectors of the function being traced", "do not keep vectors between calls of tp.program")
        if self.spaces[v.name] is not space:
            raise ProgramError(
                f"{what} of {v.name}",
                f"a variable in the {self.spaces[v.name].value} space",
                f"one in the {space.value} space",
                _CURE[self.spaces[v.name]],
            )


@dataclass(frozen=True, eq=False)
class Vector:
    """A symbolic vector inside a traced function; supports ``+ - *``, activations, and ``W @ v``."""

    trace: Trace
    name: str

    __array_ufunc__ = None  # numpy must not take a vector for an object to be repeated

    def apply_activation(self, activation: Activation) -> Vector:
        t = self.trace
        out = t.entrywise(activation(symbol(self.name)), (self,))
        t.layers.append(Layer(len(t.layers) + 1, self.name, out.name, activation.name))
        return out

    def named(self, name: str) -> Vector:
        """Give the variable a name of its own in the printed program."""
        if not isinstance(name, str) or not name.isidentifier():
            raise ProgramError("named", name, "an identifier", 'for example "stream"')
        self.trace.names[self.name] = name
        return self

    def __add__(self, other: Any) -> Vector:
        if isinstance(other, Weight) and other.matrix.role is Role.BIAS:
            return self.trace.add_bias(self, other)
        if not isinstance(other, Vector):
            raise ProgramError(f"{self.name} + ...", other, "a vector or a bias", "write a constant shift as an activation")
        return self.trace.combine([(sp.Integer(1), self), (sp.Integer(1), other)])

    __radd__ = __add__

    def __sub__(self, other: Vector) -> Vector:
        return self + (-1) * other

    def __neg__(self) -> Vector:
        return (-1) * self

    def __mul__(self, other: Any) -> Vector:
        if isinstance(other, Vector):
            return self.trace.entrywise(symbol(self.name) * symbol(other.name), (self, other))
        return self.trace.combine([(coefficient(f"... * {self.name}", other), self)])

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Vector:
        if isinstance(other, Vector):
            return self.trace.entrywise(symbol(self.name) / symbol(other.name), (self, other))
        c = coefficient(f"{self.name} / ...", other)
        if c == 0:
            raise ProgramError(f"{self.name} / ...", other, "a divisor other than zero", "check the coefficient")
        return self * (1 / c)

    def __pow__(self, power: Any) -> Vector:
        return self.trace.entrywise(symbol(self.name) ** coefficient(f"{self.name} ** ...", power), (self,))

    def __repr__(self) -> str:
        return f"Vector({self.name})"


def entrywise(function: Callable[..., sp.Expr], *vectors: Vector) -> Vector:
    """An entrywise map of several vectors (or averages), e.g. ``tp.entrywise(lambda a, b: a * sympy.tanh(b), a, b)``."""
    if not vectors or not all(isinstance(v, Vector) for v in vectors):
        raise ProgramError("entrywise", vectors, "at least one traced vector", "use it inside tp.program")
    return vectors[0].trace.entrywise(_applied("entrywise", function, vectors), vectors)


def average(function: Callable[..., sp.Expr], *vectors: Vector) -> Vector:
    """An average over the sites, one number per data point, usable in later entrywise maps."""
    if not vectors or not all(isinstance(v, Vector) for v in vectors):
        raise ProgramError("average", vectors, "at least one traced vector", "use it inside tp.program")
    trace = vectors[0].trace
    for v in vectors:
        trace.require(v, Space.WIDTH, "an average")
    expression = _applied("average", function, vectors)
    grid = trace.common_grid("an average", vectors)
    return trace.add(Average(trace.fresh(), expression, tuple(dict.fromkeys(v.name for v in vectors))), Space.SCALAR, grid)


def _applied(what: str, function: Callable[..., sp.Expr], vectors: tuple[Vector, ...]) -> sp.Expr:
    if not callable(function):
        raise ProgramError(what, function, "a function, then vectors", f"tp.{what}(lambda a: sympy.tanh(a), v)")
    try:
        value = function(*(symbol(v.name) for v in vectors))
    except Exception as error:
        raise ProgramError(
            what,
            f"a function that fails on symbols ({type(error).__name__}: {error})",
            "a function with one argument per vector",
            "use sympy functions (sympy.tanh, not numpy.tanh)",
        ) from error
    return canonical(coefficient(what, value, "a finite sympy expression"))


def program(function: Callable[[Vector], Vector], name: str | None = None, grid: Any = ()) -> Program:
    """Trace a function of the inputs into a tensor program.

    Args:
        function: takes the traced inputs ``x`` and returns the output of one readout, with or without a bias.
        name: how the program prints; the function's name by default.
        grid: positions of an input, for convolutions: (16, 16) for images; an input of dimension D then has D / 256 channels.

    Raises:
        InputError: for a malformed grid.
        ProgramError: if the function returns anything but a readout's output, or uses no activation or identity layer.

    Example::

        W0, W1, w = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w")
        net = tp.program(lambda x: w @ tp.tanh(W1 @ tp.tanh(W0 @ x)))
    """
    if not callable(function):
        raise ProgramError("program", function, "a function of the inputs", "tp.program(lambda x: w @ tp.tanh(W0 @ x))")
    trace = Trace(grid_of(grid))
    try:
        out = function(Vector(trace, X))
    except TPError:
        raise
    except Exception as error:
        raise ProgramError(
            getattr(function, "__name__", "program"),
            f"a function that fails on a traced vector ({type(error).__name__}: {error})",
            "a function of the inputs alone",
            "inside it use W @ v, + - * /, activations, tp.entrywise and tp.average",
        ) from error
    if not isinstance(out, Vector) or out.trace is not trace or trace.spaces[out.name] is not Space.OUTPUT:
        raise ProgramError(
            getattr(function, "__name__", "program"),
            out,
            "the output of a readout",
            "end the function with return w @ x, or w @ x + b, with w = tp.readout(...) and b = tp.bias(...)",
        )
    if trace.grids[out.name] != trace.single:
        raise ProgramError(
            out.name,
            f"an output at {' x '.join(map(str, trace.grids[out.name]))} positions",
            "one output per input",
            "end with w @ tp.global_pool(x), or with tp.dense(w, x) for a flattened readout",
        )
    if not trace.layers:
        raise ProgramError("program", "no activation", "at least one activation", "use tp.linear for a linear layer")
    names = dict(trace.names)
    for layer in trace.layers:
        names.setdefault(layer.post, f"x{layer.index}")
        names.setdefault(layer.pre, f"h{layer.index}")
    names.setdefault(out.name, "f")
    uses = Counter(names.get(v, v) for v in trace.spaces)
    if clash := [n for n, count in uses.items() if count > 1]:
        raise ProgramError("named", clash[0], "a different name for every variable", "choose another name for one of the variables")
    return Program(
        name or str(getattr(function, "__name__", "program")),
        tuple(trace.matrices.values()),
        tuple(s.renamed(names) for s in trace.statements),
        names[out.name],
        tuple(Layer(v.index, names[v.pre], names[v.post], v.activation) for v in trace.layers),
        trace.grid,
    )
