"""Which terms survive N -> infinity, and with which power of N: the words behind ``vanished`` and ``explain``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import sympy as sp

from tp_solver.limit.equations import Vanished, VanishedTerms
from tp_solver.limit.powers import Counted, Part, Term, term_records
from tp_solver.limit.reading import Reading
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Product, Program, Role
from tp_solver.symbols.equation import Key


@dataclass(frozen=True)
class Survey:
    """The counted powers of a program, collected over the steps.

    Args:
        program, parameterization: what is counted.
        reading: the reading whose equations are to be explained.
    """

    program: Program
    parameterization: Parameterization
    reading: Reading

    @cached_property
    def counted(self) -> Counted:
        return Counted(self.program, self.parameterization)

    @cached_property
    def powers(self) -> dict[tuple[str, str | None, Part, str], sp.Expr]:
        """(statement, matrix, part, source) -> largest relative exponent over the steps."""
        out: dict[tuple[str, str | None, Part, str], sp.Expr] = {}
        for term in term_records(self.counted):
            if term.part in (Part.GAUSSIAN, Part.LEARNED, Part.RESPONSE, Part.FLUCTUATION):
                key = (str(term.statement), term.matrix, term.part, _timeless(term))
                out[key] = sp.Max(out.get(key, -sp.oo), term.relative)
        return out

    def vanished(self) -> VanishedTerms:
        """Terms with a negative power, slowest decay first."""
        found = [
            Vanished(_described(matrix, part, source), statement, power)
            for (statement, matrix, part, source), power in self.powers.items()
            if power < 0
        ]
        for matrix in self.program.matrices:
            power = self._output_change(matrix.name)
            if power < 0 and self.reading.initial:
                found.append(Vanished(f"term of {matrix.name} in the tangent kernel K", f"the change of {self.program.output}", power))
        return VanishedTerms(sorted(found, key=lambda v: -v.power))

    def _output_change(self, matrix: str) -> sp.Expr:
        return self.counted.algebra.maximum(self.counted.output_change_by(matrix))

    def survivors(self) -> dict[Key, str]:
        """Key of an equation -> why its terms survive, in words."""
        names = self.reading.names
        out: dict[Key, str] = {}
        for s in names.statements:
            products = [s] if isinstance(s, Product) else [names.statement[a] for a in s.arguments if a in names.substituted]
            parts = {str(p): names.statement[p.out] for p in products if isinstance(p, Product)}
            lines = [line for text in parts for line in self._lines(text)]
            if lines:
                out[names.key(s.out)] = "\n".join(["Powers of N:", *lines])
        for r in self.reading.responses:
            lines = self._lines(str(r.use.product), Part.RESPONSE, str(r.other.product))
            reason = "W_ij has variance ~ 1/N, and the N entries of the earlier product add up coherently with the response to it"
            out[names.response_key(r.use, r.other)] = "\n".join(["Powers of N:", *lines, f"  ({reason})"])
        for s in names.statements:
            if isinstance(s, Product) and s.out in names.gaussians:
                lines = self._lines(str(s), Part.GAUSSIAN)
                if self.program.matrix(s.matrix).role is Role.HIDDEN:
                    lines.append("  (N entries of variance ~ 1/N with independent signs)")
                out[names.gaussians[s.out]] = "\n".join(["Powers of N:", *lines])
        trained = [
            f"  term of {m.name}: N^({self._output_change(m.name)}), {_fate(self._output_change(m.name))}" for m in self.program.matrices
        ]
        out["K",] = "\n".join(["Powers of N:", *trained])
        return out

    def _lines(self, statement: str, part: Part | None = None, source: str = "") -> list[str]:
        return [
            f"  {_described(matrix, kind, built_on)}: N^({power}), {_fate(power)}"
            for (where, matrix, kind, built_on), power in self.powers.items()
            if where == statement and (part is None or kind is part) and (not source or built_on == source)
        ]


def _timeless(term: Term) -> str:
    return term.source.split(" at t = ")[0]


def _described(matrix: str | None, part: Part, source: str) -> str:
    what = f"{part.value} part of {matrix}" if matrix else f"{part.value} of the average"
    return f"{what} ({source})" if source else what


def _fate(power: sp.Expr) -> str:
    return "survives" if power == 0 else "vanishes" if power.is_negative else "is not bounded"
