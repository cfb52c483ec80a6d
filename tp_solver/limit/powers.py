"""Powers of N, counted statement by statement and step by step (``theory/power_counting.md``, PC.1).

A Gaussian matrix sums the entries of an unrelated vector incoherently (N^1/2); an update is an outer product of vectors
that went through the program before and sums coherently (N); so does the response, the part of W x that is due to an earlier
W.T y on which x depends. Fields are counted as at most O(1): whatever exceeds that is recorded as a violation (or, with
symbolic exponents, as a condition) and goes on as O(1), so that changes are those that small updates cause.

Adjoints are N df/dv, as :mod:`tp_solver.limit.transposition` normalises them; the loss gradient, gamma0 and lr are O(1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import sympy as sp

from tp_solver import checks
from tp_solver.limit.orders import derivative, monomials
from tp_solver.limit.transposition import COTANGENT, Backward, transpose
from tp_solver.limit.tropical import NOTHING, Algebra, Form, Size
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import ONE, Average, Map, Pool, Product, Program, Role, Space, Statement, Sum, X, symbol

_half = sp.Rational(1, 2)


class Part(StrEnum):
    """Where a power of N comes from."""

    GAUSSIAN = "Gaussian"
    RESPONSE = "response"
    LEARNED = "learned"
    MEAN = "mean"
    FLUCTUATION = "fluctuation"
    MAP = "map"


@dataclass(frozen=True)
class Term:
    """One term of one statement at one time.

    Attributes:
        statement: of the forward program, or of its transpose (``backward``).
        matrix: name of the matrix; None for averages and maps.
        part: Gaussian, response or learned part of a product; mean or fluctuation of an average.
        source: what the part is built on: the transposed product, or the pair of vectors that updates the matrix.
        exponent: of N, where backward variables are N df/dv.
        relative: the exponent less that of the backward signal (forward statements: less nothing); negative: vanishes.
        time: number of updates before the statement runs.
        backward: whether the statement belongs to the transposed program.
    """

    statement: Statement
    matrix: str | None
    part: Part
    source: str
    exponent: sp.Expr
    relative: sp.Expr
    time: int
    backward: bool

    def __str__(self) -> str:
        what = f"{self.part.value} part of {self.matrix}" if self.matrix else self.part.value
        return f"t = {self.time}: {self.statement}: {what}{f' ({self.source})' if self.source else ''} ~ N^({self.exponent})"


class _Rule(NamedTuple):
    """Exponents that a matrix adds besides its own: Gaussian part (to -a-b), learned (to -2a-c), response (to -2a-2b)."""

    gaussian: sp.Expr
    learned: sp.Expr
    response: sp.Expr | None


# The update of w carries N^-1 from the adjoint N df/dv (the adjoint of what adds to the output is its cotangent itself); sums over
# sites give N, or N^1/2 where they are incoherent; the data have no sites; the readout's backward product carries the N of N df/dv.
_RULES: Mapping[tuple[Role, bool], _Rule] = {
    (Role.HIDDEN, False): _Rule(_half, sp.S.Zero, sp.S.One),
    (Role.HIDDEN, True): _Rule(_half, sp.S.Zero, sp.S.One),
    (Role.INPUT, False): _Rule(sp.S.Zero, sp.S.NegativeOne, None),
    (Role.BIAS, False): _Rule(sp.S.Zero, sp.S.NegativeOne, None),
    (Role.OUTPUT_BIAS, False): _Rule(sp.S.Zero, sp.S.Zero, None),
    (Role.READOUT, False): _Rule(_half, sp.S.One, sp.Integer(2)),
    (Role.READOUT, True): _Rule(sp.S.One, sp.S.One, None),
}

Key = tuple[str, int]
"""A variable at a time."""


class Record(NamedTuple):
    """A term before it is translated to sympy."""

    statement: Statement
    matrix: str | None
    part: Part
    source: str
    size: Size
    time: int
    backward: bool


class Excess(NamedTuple):
    """A form that must not be positive for the limit to exist, and the term it comes from."""

    record: Record
    form: Form


class Counted:
    """The powers of N of a program and its training, up to a number of updates (attributes are read-only).

    Attributes:
        records: every term of every product and average.
        violations: terms that grow with N whatever the symbols are.
        conditions: forms in the symbolic exponents that must be <= 0.
        steps: number of updates that were counted.
    """

    def __init__(self, program: Program, parameterization: Parameterization, steps: int | None = None) -> None:
        self.program, self.parameterization = program, parameterization
        self.backward: Backward = transpose(program)
        self.algebra = Algebra(parameterization.exponents)
        self.records: list[Record] = []
        self.violations: list[Excess] = []
        self.conditions: list[Excess] = []
        self._spaces = program.spaces() | {COTANGENT: Space.OUTPUT}
        self._size: dict[Key, Size] = {}
        self._change: dict[Key, Size] = {}
        self._tangents: dict[Key, dict[Key, Size]] = {}
        self._used: dict[tuple[str, bool], list[tuple[Product, int]]] = defaultdict(list)
        self._excess: dict[str, Form] = {}
        self._shifts: dict[tuple[str, bool], tuple[Form | None, Form | None, Form | None]] = {}
        for m in program.matrices:
            for transposed in (False, True):
                if (m.role, transposed) in _RULES:
                    self._shifts[m.name, transposed] = self._exponents(m.name, transposed)
        enough = program.depth + 4
        self.steps = -1
        while self.steps < (enough if steps is None else steps) and not (steps is None and self._settled()):
            self.steps += 1
            self._step(self.steps)

    # what was found

    def size(self, variable: str, time: int) -> Size:
        """Size of a variable (adjoints: of N df/dv) after ``time`` updates; the last counted time stands for later ones."""
        return self._size.get((variable, min(time, self.steps)), NOTHING)

    def change(self, variable: str, time: int | None = None) -> Size:
        """Size of the change of a forward variable since t = 0: after ``time`` updates, or the largest over all times."""
        times = range(self.steps + 1) if time is None else (min(time, self.steps),)
        return self.algebra.plus(*(self._change.get((variable, t), NOTHING) for t in times))

    def part(self, matrix: str, part: Part, *, backward: bool = False) -> Size:
        """Largest size, over all uses and times, of one part of a matrix."""
        return self.algebra.plus(*(r.size for r in self.records if r.matrix == matrix and r.part is part and r.backward is backward))

    @property
    def signal(self) -> str:
        """The adjoint that the readout sends back."""
        return next(s.out for s in self.backward.statements if isinstance(s, Product) and s.arg == COTANGENT)

    def output_change_by(self, matrix: str) -> Size:
        """Size of the change of the output that training one matrix causes directly (its term of the tangent kernel)."""
        terms = [NOTHING]
        for r in self.records:
            if r.matrix == matrix and r.part is Part.LEARNED and not r.backward:
                adjoint = self.backward.adjoints[r.statement.out]
                terms += [r.size if adjoint == COTANGENT else self.algebra.times(r.size, self.size(adjoint, r.time - 1))]
        return self.algebra.plus(*terms)

    def gaussian_exponent(self, matrix: str) -> sp.Expr | None:
        """Exponent of the Gaussian part of W x for an x of order one; None where it is exactly zero."""
        form = self._shifts[matrix, False][0]
        return None if form is None else self.algebra.expression(form)

    # counting

    def _exponents(self, name: str, transposed: bool) -> tuple[Form | None, Form | None, Form | None]:
        """Shifts of the Gaussian, learned and response parts; None for a part that is exactly zero."""
        matrix = self.program.matrix(name)
        s, rule = self.parameterization.scaling(matrix), _RULES[matrix.role, transposed]
        form = self.algebra.form
        return (
            None if s.sigma == 0 else form(rule.gaussian - s.a - s.b),
            None if s.eta == 0 else form(rule.learned - 2 * s.a - s.c),
            None if s.sigma == 0 or rule.response is None else form(rule.response - 2 * s.a - 2 * s.b),
        )

    def _settled(self) -> bool:
        """Whether a further update would add nothing: sizes repeat, or there is no limit anyhow."""
        t = self.steps
        if t < 2:
            return False
        if self.violations:
            return True
        names = {v for v, s in self._size if s == t}
        return all(
            self._size[v, t] == self._size.get((v, t - 1)) and self._change.get((v, t)) == self._change.get((v, t - 1)) for v in names
        )

    def _step(self, t: int) -> None:
        for data in (X, ONE, COTANGENT):
            self._put(data, t, self.algebra.one, NOTHING, {})
        for s in self.program.statements:
            self._run(s, t, False)
        for s in self.backward.statements:
            self._spaces[s.out] = self._space(s)
            self._run(s, t, True)

    def _space(self, s: Statement) -> Space:
        if isinstance(s, Product):
            return Space.WIDTH
        if isinstance(s, Average) or (isinstance(s, Map) and all(self._spaces[a] is Space.SCALAR for a in s.arguments)):
            return Space.SCALAR
        return Space.WIDTH

    def _run(self, s: Statement, t: int, backward: bool) -> None:
        match s:
            case Product():
                self._product(s, t, backward)
            case Sum() | Pool():
                terms = [name for c, name in s.terms if c != 0] if isinstance(s, Sum) else [s.arg]
                tangents = self._merged([(self.algebra.one, name, t) for name in terms])
                self._finish(s, t, backward, [(self._size[n, t], self._change[n, t]) for n in terms], tangents)
            case Map() | Average():
                self._map(s, t, backward)

    def _product(self, s: Product, t: int, backward: bool) -> None:
        algebra = self.algebra
        gaussian, learned, response = self._shifts[s.matrix, s.transpose]
        x, moved = self._size[s.arg, t], self._change[s.arg, t]
        found: list[tuple[Size, Size]] = []
        chains: list[tuple[Size, str, int]] = []
        log: list[Record] = []

        def note(part: Part, source: str, size: Size) -> Size:
            if size:
                log.append(Record(s, s.matrix, part, source, size, t, backward))
            return size

        if gaussian is not None:
            found.append((note(Part.GAUSSIAN, "", algebra.shifted(x, gaussian)), algebra.shifted(moved, gaussian)))
        if response is not None:
            for earlier, time in self._used[s.matrix, not s.transpose]:
                slope = self._tangents[s.arg, t].get((earlier.out, time), NOTHING)
                if not slope or (earlier.arg, time) not in self._size:
                    continue
                factor = algebra.shifted(slope, response)
                size = algebra.times(factor, self._size[earlier.arg, time])
                if not size:
                    continue
                same = algebra.plus(algebra.times(factor, self._change[earlier.arg, time]), algebra.times(factor, moved))
                note(Part.RESPONSE, f"{earlier} at t = {time}", size)
                found.append((size, size if time < t or backward else same))
                chains.append((factor, earlier.arg, time))
        if learned is not None:
            updates: list[tuple[Size, Size, str, int]] = []
            for pair in self.backward.pairs:
                if pair.matrix != s.matrix:
                    continue
                left, right = (pair.adjoint, pair.input) if pair.transpose == s.transpose else (pair.input, pair.adjoint)
                for time in range(t):
                    factor = algebra.times(algebra.shifted(self._size[right, time], learned), x)
                    size = note(Part.LEARNED, f"{pair.adjoint} {pair.input}^T at t = {time}", algebra.times(factor, self._size[left, time]))
                    updates.append((factor, size, left, time))
            if not backward:
                self._bound_updates(s.matrix, [size for _, size, _, _ in updates])
            down = tuple(-c for c in self._excess.get(s.matrix, algebra.zero))
            for factor, size, left, time in updates:
                found.append((algebra.shifted(size, down), size))
                chains.append((algebra.shifted(factor, down), left, time))
        tangents = self._merged(chains)
        if self._spaces[s.out] is Space.WIDTH:
            tangents[s.out, t] = algebra.one
        self._used[s.matrix, s.transpose].append((s, t))
        self.records += log
        self._finish(s, t, backward, found, tangents, log)

    def _map(self, s: Map | Average, t: int, backward: bool) -> None:
        algebra = self.algebra
        slopes = {a: self._scaling(derivative(s.expression, symbol(a)), s.arguments, t) for a in s.arguments}
        size = self._scaling(s.expression, s.arguments, t)
        change = algebra.plus(*(algebra.times(slopes[a], self._change[a, t]) for a in s.arguments))
        tangents: dict[Key, Size] = {}
        if isinstance(s, Average):
            fluctuation = algebra.shifted(size, algebra.form(-_half))
            for part, value in ((Part.MEAN, size), (Part.FLUCTUATION, fluctuation)):
                self.records.append(Record(s, None, part, "", value, t, backward))
        else:
            tangents = self._merged([(slopes[a], a, t) for a in s.arguments])
        self._finish(s, t, backward, [(size, change)], tangents)

    def _scaling(self, expression: sp.Expr, arguments: tuple[str, ...], t: int) -> Size:
        """Size of an expression of variables, from its leading monomials."""
        algebra = self.algebra
        terms = []
        for powers in monomials(expression, tuple(symbol(a) for a in arguments)):
            terms.append(algebra.times(*(algebra.powered(self._size[a, t], k) for a, k in zip(arguments, powers, strict=True))))
        return algebra.plus(*terms)

    def _merged(self, chains: list[tuple[Size, str, int]]) -> dict[Key, Size]:
        """Chain rule on one site: sum over factor times derivative of the variable with respect to earlier products."""
        terms: dict[Key, list[Size]] = defaultdict(list)
        for factor, name, time in chains:
            for target, slope in self._tangents.get((name, time), {}).items():
                terms[target].append(self.algebra.times(factor, slope))
        merged = {target: self.algebra.plus(*sizes) for target, sizes in terms.items()}
        return {target: size for target, size in merged.items() if size}

    def _finish(
        self,
        s: Statement,
        t: int,
        backward: bool,
        found: list[tuple[Size, Size]],
        tangents: dict[Key, Size],
        log: list[Record] | None = None,
    ) -> None:
        algebra = self.algebra
        size = algebra.plus(*(a for a, _ in found))
        change = algebra.plus(*(b for _, b in found))
        if not backward:
            for record in log or [Record(s, None, Part.MAP, "", size, t, False)]:
                self._demand(record)
            # what exceeds O(1) was recorded; from here on it counts as O(1)
            size = algebra.reduced({algebra.zero if not any(f[1:]) and f[0] > 0 else f for f in size})
        self._put(s.out, t, size, change if t else NOTHING, tangents)

    def _demand(self, record: Record) -> None:
        for form in record.size:
            if not any(form[1:]):
                if form[0] > 0:
                    self.violations.append(Excess(record, form))
            elif not self.algebra.bounded(form):
                self.conditions.append(Excess(record, form))
                self.algebra.assume(form)

    def _bound_updates(self, matrix: str, sizes: list[Size]) -> None:
        """Updates that overwhelm the fields count as O(1) from here on, like the fields themselves."""
        if self.program.matrix(matrix).role.codomain is not Space.OUTPUT:
            for f in self.algebra.plus(*sizes):
                if not any(f[1:]) and f[0] > 0:
                    self._excess[matrix] = max(f, self._excess.get(matrix, f))

    def _put(self, name: str, t: int, size: Size, change: Size, tangents: dict[Key, Size]) -> None:
        self._size[name, t], self._change[name, t], self._tangents[name, t] = size, change, tangents


def terms(program: Program, parameterization: Parameterization, steps: int = 2) -> tuple[Term, ...]:
    """Every term of the training program and its power of N, after 0, 1, ..., ``steps`` updates.

    Args:
        program: forward program; its transpose is derived here.
        parameterization: exponents may be symbolic, the terms then are too (and hold where the limit is stable).
        steps: number of updates to follow; sizes settle after two in a multilayer perceptron.

    Raises:
        InputError: for a class in place of an instance, or a negative number of steps.
    """
    checks.instance("net", program, Program, "a Program such as tp.mlp(depth=3, activation=tp.tanh)")
    checks.instance("parameterization", parameterization, Parameterization, "a Parameterization such as tp.muP")
    return tuple(term_records(Counted(program, parameterization, checks.integer("steps", steps, minimum=0))))


def term_records(counted: Counted) -> Iterator[Term]:
    """The terms of a count, in order of execution."""
    algebra = counted.algebra
    signal = algebra.maximum(counted.size(counted.signal, counted.steps))
    for r in counted.records:
        exponent = algebra.maximum(r.size)
        relative = exponent - signal if r.backward and signal.is_finite is not False else exponent
        yield Term(r.statement, r.matrix, r.part, r.source, exponent, relative, r.time, r.backward)
