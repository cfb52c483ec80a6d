"""Variables of a program at initialisation as sums of terms (:mod:`tp_solver.kernel_regime.moments` evaluates them).

At initialisation every matrix product is a centred Gaussian over sites (``theory/tensor_programs.md``): products of one
matrix in one orientation are jointly Gaussian with covariance scale^2 <x x'>, all others independent. Averages over sites are
numbers, one per data point. Forward variables are functions of such Gaussians h; adjoints are linear in the products z of the
backward program, which are independent of every h because the readout has mean zero and the forward program never reads it
(gradient independence at initialisation: no response <d delta / d h> survives, as delta is linear in an independent variable of
mean zero).

The mean over a window of positions of something that is not such a Gaussian is an atom of its own, which only products, sums and
further means may read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import sympy as sp

from tp_solver.errors import ProgramError
from tp_solver.kernel_regime.maps import SAMPLED, Known, Mixture, NoClosedKernels, Source, apply, averaged
from tp_solver.kernel_regime.terms import Factor, Field, Gaussian, Term, collected
from tp_solver.limit.transposition import COTANGENT, Backward
from tp_solver.program.statements import ONE, Average, Map, Pool, Product, Program, Sum
from tp_solver.program.statements import X as INPUTS
from tp_solver.symbols.activation import X

__all__ = ["Factor", "Field", "Gaussian", "Mixture", "Reading", "Term", "read"]


@dataclass(frozen=True)
class Reading:
    """Every variable of a program and its transpose as a field.

    Attributes:
        fields: variable -> field.
        sources: atom -> what it comes from (data variables have none).
        opaque: atoms that are not Gaussian given the other side of the program.
        averages: average -> the field whose mean it is.
    """

    fields: Mapping[str, Field]
    sources: Mapping[str, Source]
    opaque: frozenset[str]
    averages: Mapping[str, Field]


def read(program: Program, backward: Backward) -> Reading:
    """Read a program and its transpose, statement by statement.

    Raises:
        ProgramError: for maps that do not separate into functions of one Gaussian field each, or of means of non-Gaussian ones, a
            matrix used together with its transpose in the forward program, or unbound coefficients.
    """
    _refuse(program)
    known = Known({INPUTS: _forward_atom(INPUTS), ONE: _forward_atom(ONE), COTANGENT: _backward_atom(COTANGENT)})
    for statements, atom in ((program.statements, _forward_atom), (backward.statements, _backward_atom)):
        for s in statements:
            match s:
                case Sum():
                    known.fields[s.out] = add(s, known.fields)
                case Map():
                    known.fields[s.out] = apply(s, known)
                case Average():
                    known.fields[s.out] = averaged(s, known)
                case Product() | Pool():
                    known.fields[s.out] = atom(known.place(s))
    return Reading(known.fields, known.sources, frozenset(known.opaque), known.averages)


def _refuse(program: Program) -> None:
    """A matrix that is read both ways: its products respond to each other, and the backward program to the forward one."""
    orientations: dict[str, bool] = {}
    for s in program.statements:
        if isinstance(s, Product) and orientations.setdefault(s.matrix, s.transpose) != s.transpose:
            raise NoClosedKernels(
                str(s),
                f"{s.matrix} together with its transpose",
                "one orientation per matrix for kernels in closed form",
                f"their products respond to each other: {SAMPLED}",
            )


def _forward_atom(name: str) -> Field:
    """The field of a forward product (or of a data variable, which only ever meets its own second moments)."""
    return (Term((), ((name, 1.0),), X),)


def _backward_atom(name: str) -> Field:
    """The field of a backward product."""
    return (Term(((name, 1.0),), (), sp.S.One),)


def add(s: Sum, fields: Mapping[str, Field]) -> Field:
    """Linear combination; the coefficients must be numbers."""
    terms: list[Term] = []
    for c, name in s.terms:
        if not c.is_number:
            raise ProgramError(str(s), c, "a number as coefficient", f"bind it: program.bind({{{c}: value}})")
        terms += [replace(t, factor=c * t.factor) for t in fields[name]]
    return collected(terms)
