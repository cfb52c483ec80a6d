"""The limit as data: which matrices keep their Gaussian part and which are trained (``theory/power_counting.md``, PC.7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy as sp

from tp_solver.errors import ParameterizationError
from tp_solver.limit.powers import Counted, Part
from tp_solver.limit.regime import Regime, RegimeReport, regime
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Matrix, Program, Role, Space


@dataclass(frozen=True)
class MatrixLimit:
    """What is left of one matrix: its Gaussian part has standard deviation ``scale``, its updates carry ``rate``.

    ``scale`` is alpha sigma and ``rate`` is eta alpha^2, or zero for a part that vanishes with the width; ``deviation`` is sigma.
    """

    scale: sp.Expr
    rate: sp.Expr
    deviation: sp.Expr = field(default=sp.S.One, compare=False)


@dataclass(frozen=True)
class LimitSpec:
    """The limit of a program under a parameterization; equal for parameterizations that train alike.

    Attributes:
        regime: trivial, kernel or feature learning.
        matrices: name -> scale and rate. In the kernel regime a rate is that of the matrix's term in the tangent kernel:
            zero for terms that the exponents do not select.
        random_output: whether f(0) is a Gaussian process of order one over initialisations (else it vanishes).
        backward_exponent: m, where df/dh ~ N^-m in the last layer.
    """

    regime: Regime
    matrices: Mapping[str, MatrixLimit]
    random_output: bool
    backward_exponent: sp.Expr


def limit_spec(program: Program, parameterization: Parameterization) -> LimitSpec:
    """Compile exponents and constants into the limit.

    Raises:
        InputError: for a class in place of an instance.
        ParameterizationError: for an unstable parameterization (naming the term that grows, and the cure), or one whose
            regime depends on symbols without a value (naming the conditions).
    """
    report = regime(parameterization, program)
    field = f"parameterization {parameterization.name!r}"
    if report.regime is None:
        names = ", ".join(map(str, sorted(set().union(*(a.free_symbols for a in report.counted.algebra.letters)), key=str)))
        answers = "; ".join(f"{k}: {v}" for k, v in report.conditions.items() if k not in ("stable", "nontrivial"))
        raise ParameterizationError(
            field, f"exponents that depend on {names}", f"exponents that decide the regime ({answers})",
            f"give values first: parameterization.bind({{{names}: ...}})",
        )  # fmt: skip
    if report.regime is Regime.UNSTABLE:
        raise ParameterizationError(
            field, "an unstable limit: " + "; ".join(report.violated[:3]), "powers of N that do not grow", report.cure
        )
    counted = report.counted
    _require_fields_of_order_one(field, report)
    _require_one_start(field, report)
    signal = counted.algebra.maximum(counted.size(counted.signal, counted.steps))
    return LimitSpec(
        regime=report.regime,
        matrices={m.name: _matrix_limit(m, report) for m in program.matrices},
        random_output=any(_random(m, counted) for m in program.matrices if m.role.codomain is Space.OUTPUT),
        backward_exponent=1 - signal,
    )


def _require_fields_of_order_one(field: str, report: RegimeReport) -> None:
    """Refuse limits that vanishing fields carry, because a large matrix above them makes up for it.

    Such a limit is that of a linearised network; the fields as they stand would all be zero.
    """
    counted, last = report.counted, report.counted.steps
    signal = counted.algebra.maximum(counted.size(counted.signal, last))
    largest = {Regime.FEATURE: sp.Integer(0), Regime.KERNEL: sp.Rational(1, 2)}.get(report.regime or Regime.TRIVIAL)
    if largest is None:
        return
    for layer in report.program.layers:
        size = counted.algebra.maximum(counted.size(layer.pre, last))
        back = counted.algebra.maximum(counted.size(counted.backward.adjoints.get(layer.pre, ""), last))
        if size < 0 and (signal > largest or back > signal):
            raise ParameterizationError(
                field, f"a field {layer.pre} that vanishes as N^({size}) while the output learns through it", "fields of order one",
                "shift a + b between the layers so that input: a + b = 0 and hidden: a + b = 1/2",
            )  # fmt: skip


def _require_one_start(field: str, report: RegimeReport) -> None:
    """Refuse a random bias on the output where the readout's start fades: the function would begin as one random constant, on which
    all that is learned depends, so that there is no one limit."""
    counted = report.counted
    readouts = [m for m in report.program.matrices if m.role is Role.READOUT]
    starts = all(_random(m, counted) or report.parameterization.scaling(m).sigma == 0 for m in readouts)
    for m in report.program.matrices:
        if m.role is Role.OUTPUT_BIAS and _random(m, counted) and (report.regime is Regime.FEATURE or not starts):
            raise ParameterizationError(
                field, f"a random bias {m.name} of order one on an output that starts at zero",
                "a bias on the output that starts at zero",
                f"take sigma = 0 for {m.name} (output_bias=True in tp.mlp); finite nets (tp.simulate) may have a random one",
            )  # fmt: skip


def _random(matrix: Matrix, counted: Counted) -> bool:
    """Whether the start of a matrix is of order one in its products."""
    return counted.part(matrix.name, Part.GAUSSIAN) == counted.algebra.one


def _matrix_limit(matrix: Matrix, report: RegimeReport) -> MatrixLimit:
    counted, zero = report.counted, sp.Integer(0)
    s = report.parameterization.scaling(matrix)
    return MatrixLimit(
        scale=s.alpha * s.sigma if _keeps_start(matrix, report.regime, counted) else zero,
        rate=s.eta * s.alpha**2 if _trains(matrix, report, counted) else zero,
        deviation=sp.sympify(s.sigma),
    )


def _keeps_start(matrix: Matrix, kind: Regime | None, counted: Counted) -> bool:
    one = counted.algebra.one
    if matrix.role is Role.READOUT:
        # in the kernel regime the backward signal is measured in units of the initial readout
        return kind is not Regime.FEATURE or counted.part(matrix.name, Part.GAUSSIAN, backward=True) == one
    return _random(matrix, counted)


def _trains(matrix: Matrix, report: RegimeReport, counted: Counted) -> bool:
    match report.regime:
        case Regime.FEATURE:
            return report.exponents[matrix.name] == 0
        case Regime.KERNEL:
            return counted.output_change_by(matrix.name) == counted.algebra.one
    return False
