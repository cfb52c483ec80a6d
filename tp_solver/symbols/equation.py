"""One equation of a limit: what it defines, how it reads, and why it is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import sympy as sp

from tp_solver.symbols import notation

Key = tuple[str | int, ...]


class Kind(Enum):
    """What an equation is about; the value is its heading."""

    GAUSSIAN = "Gaussian fields (mean zero)"
    FIELD = "fields"
    KERNEL = "kernels"
    RESPONSE = "responses"
    OUTPUT = "outputs"
    DEFINITION = "where"


@dataclass(frozen=True)
class Equation:
    """``lhs = rhs``.

    Attributes:
        key: how it is looked up, e.g. ("h", 2).
        lhs, rhs: sympy expressions.
        kind: its heading.
        why: the rule it follows from, in words.
    """

    key: Key
    lhs: sp.Expr
    rhs: sp.Expr
    kind: Kind
    why: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{notation.text(self.lhs)} = {notation.text(self.rhs)}"

    def latex(self, align: str = "") -> str:
        """``lhs = rhs`` in LaTeX without dollar signs; ``align="&"`` marks where lines of a block meet."""
        return f"{notation.latex(self.lhs)} {align}= {notation.latex(self.rhs)}"

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle {self.latex()}$"

    @property
    def fingerprint(self) -> str:
        """The structure of both sides, as a string that identifies it."""
        return f"{self.key}: {sp.srepr(self.lhs)} = {sp.srepr(self.rhs)}"
