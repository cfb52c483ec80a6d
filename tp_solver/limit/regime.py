"""Which limit a parameterization has: unstable, trivial, kernel or feature learning (``theory/power_counting.md``, PC.2).

Decided by the powers of N that :mod:`tp_solver.limit.powers` counts; the closed formulas of Yang & Hu (2020, Theorem 3.3 and
Corollary 3.9) for multilayer perceptrons are what the tests compare with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, reduce
from typing import Any

import sympy as sp
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean

from tp_solver import checks
from tp_solver.limit.cure import Cure, find_cure
from tp_solver.limit.powers import Counted, Excess, Part
from tp_solver.limit.tropical import Form, Size
from tp_solver.program.parameterization import CLASS_ROLES, CLASSES, Parameterization
from tp_solver.program.statements import Product, Program, Role, Space


class Regime(StrEnum):
    """The kind of limit."""

    UNSTABLE = "unstable"
    TRIVIAL = "trivial"
    KERNEL = "kernel"
    FEATURE = "feature learning"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class RegimeReport:
    """What power counting says about a parameterization of a program.

    Attributes:
        regime: None where it depends on symbols.
        exponents: matrix -> r_j, where training matrix j changes its product by N^(-r_j) (oo for a frozen one).
        r: the smallest over all matrices but those that add to the output.
        violated: sentences: which term grows, or fails to survive, its power of N, and the inequality it breaks.
        conditions: 'stable', 'nontrivial', 'unstable', 'trivial', 'kernel', 'feature learning' -> condition on the symbols.
        sets: the same as sets of values, for a single symbol in the exponents (else empty).
    """

    parameterization: Parameterization
    program: Program = field(repr=False)
    regime: Regime | None
    exponents: Mapping[str, sp.Expr]
    r: sp.Expr
    violated: tuple[str, ...]
    conditions: Mapping[str, Boolean]
    sets: Mapping[str, sp.Set]
    counted: Counted = field(repr=False, compare=False)

    @cached_property
    def _remedy(self) -> Cure | None:
        bad = self.regime in (Regime.UNSTABLE, Regime.TRIVIAL) and not self.counted.algebra.letters
        return find_cure(self.counted) if bad else None

    @property
    def cure(self) -> str:
        """The smallest change that gives a stable, nontrivial limit, in words: fewest layer classes, then the smallest
        change of c at fixed a and b; empty where nothing is to be cured or symbols are left."""
        if self._remedy is not None:
            return self._remedy.text
        if self.regime not in (Regime.UNSTABLE, Regime.TRIVIAL):
            return ""
        if self.counted.algebra.letters:
            return "give values to the symbols in the exponents to see the smallest cure"
        return "no change of exponents cures it: check for zero initialisations (sigma = 0) and frozen layers (eta = 0)"

    @property
    def cured(self) -> Parameterization | None:
        """The parameterization after the cure, if there is one."""
        return self._remedy.parameterization if self._remedy is not None else None

    def field_change_exponents(self, step: int) -> tuple[sp.Expr, ...]:
        """For every reported layer: h changes by N^exponent from t = 0 until after ``step`` updates.

        The output at t = 0 may be subtracted (a centred start); for unstable parameterizations the exponents are those
        of an update small enough that fields stay O(1), and only step 1 is meaningful.
        """
        step = checks.integer("step", step, minimum=1)
        return tuple(self.counted.algebra.maximum(self.counted.change(layer.pre, step)) for layer in self.program.layers)

    def output_change_exponent(self, step: int) -> sp.Expr:
        """The output changes by N^exponent from t = 0 until after ``step`` updates."""
        step = checks.integer("step", step, minimum=1)
        return self.counted.algebra.maximum(self.counted.change(self.program.output, step))

    def __str__(self) -> str:
        rows = [f"{self.parameterization.name} on {self.program.name}: {self.regime or 'depends on the symbols'}"]
        width = max(map(len, self.exponents))
        roles = {m.name: m.role for m in self.program.matrices}
        rows += [f"  {name:{width}} ({roles[name]}): training changes its product by N^({-r})" for name, r in self.exponents.items()]
        rows += [f"  violated: {sentence}" for sentence in self.violated]
        rows += [f"  cure: {self.cure}"] if self.cure else []
        if self.regime is None:
            rows += [f"  {name}: {condition}" for name, condition in self.conditions.items()]
        return "\n".join(rows)

    def _repr_latex_(self) -> str:
        def text(words: str) -> str:
            return r"\text{" + words.replace("_", r"\_").replace("^", r"\textasciicircum ") + "}"

        rows = [rf"{text(self.parameterization.name)} & {text(str(self.regime or 'depends on the symbols'))}"]
        rows += [rf"r_{{{text(name)}}} & {sp.latex(r)}" for name, r in self.exponents.items()]
        rows += [rf"{text('violated')} & {text(sentence)}" for sentence in self.violated]
        rows += [rf"{text('cure')} & {text(self.cure)}"] if self.cure else []
        if self.regime is None:
            rows += [rf"{text(name)} & {sp.latex(condition)}" for name, condition in self.conditions.items()]
        return r"$\begin{array}{ll} " + r" \\ ".join(rows) + r" \end{array}$"


def regime(parameterization: Parameterization, net: Program) -> RegimeReport:
    """The regime of a parameterization, by counting powers of N through the program and its training.

    Args:
        parameterization: exponents may be sympy symbols; then ``.conditions`` (and ``.sets`` for one symbol) answer.
        net: any program.

    Raises:
        InputError: for a class or a name in place of an instance.
        ParameterizationError: for symbolic exponents with too many competing powers.

    Example: ``print(tp.regime(tp.standard, tp.mlp(depth=3, activation=tp.tanh)))``
    """
    checks.instance(
        "parameterization", parameterization, Parameterization, "a Parameterization such as tp.muP", "pass tp.muP itself, not its name"
    )
    checks.instance("net", net, Program, "a Program such as tp.mlp(depth=3, activation=tp.tanh)", "build one with tp.mlp or tp.program")
    counted = Counted(net, parameterization)
    algebra = counted.algebra
    exponents = {m.name: -algebra.maximum(counted.part(m.name, Part.LEARNED)) for m in net.matrices}
    inner = [exponents[m.name] for m in net.matrices if m.role.codomain is not Space.OUTPUT]
    sets, conditions = _answers(counted)
    decided = next((k for k in Regime if conditions[k.value] is sp.true), None)
    return RegimeReport(
        parameterization=parameterization,
        program=net,
        regime=decided,
        exponents=exponents,
        r=sp.Min(*inner),
        violated=_sentences(counted, decided, exponents),
        conditions=conditions,
        sets=sets,
        counted=counted,
    )


def _answers(counted: Counted) -> tuple[dict[str, sp.Set], dict[str, Boolean]]:
    """Conditions on the symbols, and the sets they describe for one symbol."""
    algebra, program = counted.algebra, counted.program
    spaces = program.spaces()
    fields = [s.out for s in program.statements if spaces[s.out] is Space.WIDTH]
    output = counted.change(program.output)
    moved = algebra.plus(*(counted.change(v) for v in fields))
    must = frozenset(e.form for e in (*counted.conditions, *counted.violations))

    def expressions(forms: Size) -> list[sp.Expr]:
        return [algebra.expression(f) for f in sorted(forms)]

    stable = sp.And(*(sp.Le(e, 0) for e in expressions(must)))
    learns = sp.Or(*(sp.Eq(e, 0) for e in expressions(output)))
    moves = sp.Or(*(sp.Eq(e, 0) for e in expressions(moved)))
    symbols = sorted(set().union(*(a.free_symbols for a in algebra.letters)), key=str)
    if len(symbols) == 1:
        sets = _sets(symbols[0], expressions(must), expressions(output), expressions(moved))
        if sets is not None:
            return sets, {name: _relation(s, symbols[0]) for name, s in sets.items()}
    return {}, {
        "stable": stable,
        "nontrivial": sp.And(stable, learns),
        Regime.UNSTABLE.value: sp.Not(stable),
        Regime.TRIVIAL.value: sp.And(stable, *(sp.Lt(e, 0) for e in expressions(output))),
        Regime.KERNEL.value: sp.And(stable, learns, *(sp.Lt(e, 0) for e in expressions(moved))),
        Regime.FEATURE.value: sp.And(stable, learns, moves),
    }


def _domain(q: sp.Symbol) -> sp.Set:
    if q.is_positive:
        return sp.Interval.open(0, sp.oo)
    if q.is_negative:
        return sp.Interval.open(-sp.oo, 0)
    return sp.Interval(0, sp.oo) if q.is_nonnegative else sp.S.Reals


def _relation(values: sp.Set, q: sp.Symbol) -> Boolean:
    """The condition that q lies in the set, without the empty statement that q is finite."""
    if values == _domain(q):
        return sp.true
    relation = values.as_relational(q)
    return relation.replace(lambda e: isinstance(e, Relational) and e.has(sp.oo, -sp.oo), lambda _: sp.true)


def _sets(q: sp.Symbol, must: list[sp.Expr], output: list[sp.Expr], moved: list[sp.Expr]) -> dict[str, sp.Set] | None:
    """Values of one symbol in each regime; None where sympy cannot solve the inequalities."""
    domain, x = _domain(q), sp.Dummy("q", real=True)

    def solutions(relation: Any, e: sp.Expr) -> sp.Set:
        condition = relation(e.subs(q, x), 0)
        if condition in (sp.true, sp.false):
            return sp.S.Reals if condition == sp.true else sp.S.EmptySet
        return condition.as_set()

    def together(relation: Any, forms: list[sp.Expr]) -> sp.Set:
        return reduce(lambda a, b: a.intersect(b), (solutions(relation, e) for e in forms), domain)

    def either(relation: Any, forms: list[sp.Expr]) -> sp.Set:
        return reduce(lambda a, b: a.union(b), (solutions(relation, e) for e in forms), sp.S.EmptySet)

    try:
        stable = together(sp.Le, must)
        nontrivial = stable.intersect(either(sp.Eq, output))
        feature = nontrivial.intersect(either(sp.Eq, moved))
        kernel, trivial, unstable = nontrivial - feature, stable - nontrivial, domain - stable
    except (NotImplementedError, TypeError, ValueError):
        return None
    return {
        "stable": stable,
        "nontrivial": nontrivial,
        Regime.UNSTABLE.value: unstable,
        Regime.TRIVIAL.value: trivial,
        Regime.KERNEL.value: kernel,
        Regime.FEATURE.value: feature,
    }


def _sentences(counted: Counted, decided: Regime | None, exponents: Mapping[str, sp.Expr]) -> tuple[str, ...]:
    """What is violated, the worst instance of every kind of term once."""
    worst: dict[tuple[str, Part], Excess] = {}
    for e in counted.violations:
        key = (str(e.record.statement), e.record.part)
        if key not in worst or e.form > worst[key].form:
            worst[key] = e
    sentences = tuple(_sentence(counted, e.record.matrix, e, e.form) for e in sorted(worst.values(), key=lambda e: e.record.time))
    if decided is Regime.TRIVIAL and not counted.algebra.letters:
        program = counted.program
        change = counted.algebra.maximum(counted.change(program.output))
        readout = next(m for m in program.matrices if m.role is Role.READOUT)
        sentences += (
            f"output {program.output}: training changes it by N^({change}) only; nontrivial needs the exponent 0, through "
            f"{readout.name} itself (r = {exponents[readout.name]}, needed 0) or through the layers below",
        )
    return sentences


def _sentence(counted: Counted, name: str | None, excess: Excess, form: Form) -> str:
    record, power = excess.record, counted.algebra.expression(form)
    head = f"{record.statement} at t = {record.time}: the {record.part.value} part grows as N^({power})"
    if name is None:
        return f"{head}; fields must stay O(1)"
    matrix = counted.program.matrix(name)
    s = counted.parameterization.scaling(matrix)
    place = f"{name} ({next((CLASSES[k] for k, roles in enumerate(CLASS_ROLES) if matrix.role in roles), matrix.role)})"
    if record.part is Part.GAUSSIAN:
        return f"{head}; {place} needs a + b >= {s.a + s.b + power}, got {s.a + s.b}"
    if record.part is Part.LEARNED:
        needed = f"{place} needs 2 a + c >= {2 * s.a + s.c + power} with the other layers as they are, got {2 * s.a + s.c}"
        return f"{head}, that is r = {-power} < 0; {needed}"
    if isinstance(record.statement, Product) and matrix.role is Role.READOUT:
        return f"{head}; {place} needs a + b + r >= 1 with r the smallest r_j of the layers below, got {1 - power}"
    return f"{head}; {place} needs smaller updates in the layers that {record.statement.arguments[0]} depends on"
