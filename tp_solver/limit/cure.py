"""The smallest change of a parameterization that gives it a stable, nontrivial limit (``theory/power_counting.md``, "Cures").

Powers are counted once with symbolic rates. Stability is then a polyhedron in the exponents c, nontriviality a union of
its facets; the change that touches the fewest layer classes, then the smallest in the sum of |change of c|, lies where as
many of these planes meet as exponents may move, so a finite search over exact rationals finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

import sympy as sp

from tp_solver.errors import ParameterizationError
from tp_solver.limit.powers import Counted
from tp_solver.limit.tropical import Form
from tp_solver.program.parameterization import CLASS_ROLES, CLASSES, Parameterization
from tp_solver.program.statements import Program, Role


@dataclass(frozen=True)
class Cure:
    """A parameterization that works, and what was changed, in words."""

    parameterization: Parameterization
    text: str


def healthy(counted: Counted) -> bool:
    """Whether numeric exponents give a stable limit whose output learns."""
    algebra = counted.algebra
    return not counted.violations and not counted.conditions and counted.change(counted.program.output) == algebra.one


def find_cure(counted: Counted) -> Cure | None:
    """The smallest cure of an unstable or trivial parameterization with numeric exponents; None if there is none.

    Rates first: fewest layer classes, then the smallest sum of |change of c|. Where the fields already explode or vanish at
    initialisation, a + b must change first. A bias on the output stands apart: nothing else depends on its exponents, and what it
    learns alone makes no limit worth having.
    """
    program, original = counted.program, counted.parameterization
    if len(program.output_terms) > 1:
        return _with_output_bias(program, original)
    repaired, words = _repaired_initialisation(counted)
    if repaired is None:
        return _change_of_rates(program, original)
    again = Counted(program, repaired)
    if healthy(again):
        return Cure(repaired, words)
    rates = _change_of_rates(program, repaired)
    return Cure(rates.parameterization, f"{words}; then {rates.text}") if rates else None


def _with_output_bias(program: Program, p: Parameterization) -> Cure | None:
    """The cure of the rest, and exponents of the output's bias that grow brought back to where it is of order one."""
    a, b, c = p.output_bias
    m = program.matrix(program.output_terms[1].matrix)
    kept = (a, b if m.sigma == 0 else sp.Max(b, -a), c if m.rate == 0 else sp.Max(c, -2 * a))
    pairs = zip("bc", p.output_bias[1:], kept[1:], strict=True)
    words = [f"{name} of the bias on the output from {old} to {new}" for name, old, new in pairs if old != new]
    rest = Counted(_without_output_bias(program), replace(p, output_bias=kept))
    if healthy(rest):
        return Cure(rest.parameterization, "change " + " and ".join(words))
    cure = find_cure(rest)
    if cure is None or not words:
        return cure
    return Cure(cure.parameterization, f"{cure.text}; then change {' and '.join(words)}")


def _without_output_bias(program: Program) -> Program:
    readout, bias = program.output_terms
    return replace(
        program,
        matrices=tuple(m for m in program.matrices if m.role is not Role.OUTPUT_BIAS),
        statements=tuple(s for s in program.statements if s.out not in (bias.out, program.output)),
        output=readout.out,
    )


def _repaired_initialisation(counted: Counted) -> tuple[Parameterization | None, str]:
    """a + b moved to where fields start at O(1), if they do not."""
    program, p, algebra = counted.program, counted.parameterization, counted.algebra
    fields = [s.out for s in program.products() if s.out != program.output]
    start = [e.record.time for e in counted.violations]
    if 0 not in start and all(counted.size(v, 0) == algebra.one for v in fields):
        return None, ""
    b, words = list(p.b), []
    for k, roles in enumerate(CLASS_ROLES):
        for m in program.matrices:
            shift = counted.gaussian_exponent(m.name) if m.role in roles else None
            if shift is None or shift == 0 or (m.role is Role.READOUT and shift < 0):
                continue
            b[k] = p.b[k] + shift
            least = "at least " if m.role is Role.READOUT else ""
            words.append(
                f"a + b of the {CLASSES[k]} class must be {least}{p.a[k] + b[k]} (now {p.a[k] + p.b[k]}): b from {p.b[k]} to {b[k]}"
            )
            break
    return (replace(p, b=tuple(b)), "; ".join(words)) if words else (None, "")


def _change_of_rates(program: Program, p: Parameterization) -> Cure | None:
    letters = tuple(sp.Dummy(f"c_{name}", real=True) for name in CLASSES)
    try:
        counted = Counted(program, replace(p, c=letters))
    except ParameterizationError:  # too many competing powers: a chain of vanishing fields, which rates alone do not cure
        return None
    if counted.violations:
        return None
    order = [counted.algebra.letters.index(c) + 1 if c in counted.algebra.letters else 0 for c in letters]

    def plane(form: Form) -> Form:
        return (form[0], *(form[k] if k else 0 for k in order))

    stable = [plane(e.form) for e in counted.conditions]
    learning = [plane(f) for f in counted.change(program.output)]
    now = tuple(Fraction(int(c.p), int(c.q)) for c in p.c)
    present = [k for k, roles in enumerate(CLASS_ROLES) if any(m.role in roles for m in program.matrices) and p.eta[k] != 0]
    for size in range(1, len(present) + 1):
        found = {
            point
            for classes in combinations(present, size)
            for point in _vertices(stable, learning, now, classes)
            if all(_value(f, point) <= 0 for f in stable) and max(_value(f, point) for f in learning) == 0
        }
        for point in sorted(found, key=lambda c: (sum(abs(x - y) for x, y in zip(c, now, strict=True)), c)):
            cured = replace(p, c=tuple(sp.Rational(x.numerator, x.denominator) for x in point))
            if healthy(Counted(program, cured)):
                moved = [f"c of the {CLASSES[k]} class from {now[k]} to {point[k]}" for k in present if point[k] != now[k]]
                return Cure(cured, "change " + " and ".join(moved))
    return None


def _vertices(
    stable: list[Form], learning: list[Form], now: tuple[Fraction, ...], classes: tuple[int, ...]
) -> Iterator[tuple[Fraction, ...]]:
    """Points where as many planes meet as classes may move: one plane on which the output learns, others from
    stability, learning, or an exponent that stays."""
    stay = [tuple(-now[k] if i < 0 else int(i == k) for i in range(-1, 3)) for k in classes]
    for first in learning:
        for others in combinations([f for f in (*stable, *learning, *stay) if f != first], len(classes) - 1):
            solution = _meet((first, *others), now, classes)
            if solution is not None:
                yield solution


def _meet(planes: tuple[Form, ...], now: tuple[Fraction, ...], classes: tuple[int, ...]) -> tuple[Fraction, ...] | None:
    rows = [[*(Fraction(f[k + 1]) for k in classes), -sum((f[k + 1] * now[k] for k in range(3) if k not in classes), f[0])] for f in planes]
    size = len(rows)
    for i in range(size):
        pivot = next((r for r in range(i, size) if rows[r][i]), None)
        if pivot is None:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        rows = [row if r == i else [x - row[i] * y for x, y in zip(row, rows[i], strict=True)] for r, row in enumerate(rows)]
    point = list(now)
    for k, row in zip(classes, rows, strict=True):
        point[k] = row[-1]
    return tuple(point)


def _value(form: Form, point: tuple[Fraction, ...]) -> Fraction:
    return sum((a * x for a, x in zip(form[1:], point, strict=True)), form[0])
