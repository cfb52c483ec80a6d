"""The limiting equations of a network and its training, as a record that prints, explains and is looked up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from tp_solver.errors import RangeError
from tp_solver.limit.spec import LimitSpec
from tp_solver.limit.transposition import Backward
from tp_solver.program.parameterization import N, Parameterization
from tp_solver.program.statements import Program
from tp_solver.program.training import Training
from tp_solver.symbols.equation import Equation, Key, Kind


@dataclass(frozen=True)
class Vanished:
    """A term that the limit drops.

    Attributes:
        term: which part of which matrix (or of which average), and what it is built on.
        statement: the statement it belongs to, as printed.
        power: exponent of N, below zero; for backward fields relative to the backward signal.
    """

    term: str
    statement: str
    power: sp.Expr

    @property
    def how_fast(self) -> str:
        """The decay in words, with what a hundredfold width does to it."""
        factor = f", a factor {float(100**self.power):.2g} per hundredfold width" if self.power.is_number else ""
        return f"dies as N^({self.power}){factor}"

    def __str__(self) -> str:
        return f"{self.term} in {self.statement}: {self.how_fast}"

    def latex(self) -> str:
        """The power as LaTeX."""
        return sp.latex(N**self.power)


class VanishedTerms(tuple[Vanished, ...]):
    """The dropped terms, slowest decay first; prints one a line."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing vanishes"

    __repr__ = __str__


@dataclass(frozen=True, eq=False)
class LimitEquations:
    """What a network and its training become as the width goes to infinity (made by :func:`tp_solver.limit`).

    ``theory["h", 2]`` is one equation, ``theory.explain("A", 1)`` says where it comes from, ``theory.vanished`` lists what
    does not survive. Prints as text, shows itself as LaTeX in a notebook.

    Attributes:
        program, parameterization, training: what was given.
        spec: regime, and scale and rate of every matrix in the limit.
        backward: the transposed program.
        equations: all of them, in order.
        vanished: terms with a negative power of N.
        notes: conventions, in words.
        survivors: key -> the surviving powers of N behind an equation, in words.
        aliases: further keys -> the key of an equation.
    """

    program: Program
    parameterization: Parameterization
    training: Training
    spec: LimitSpec
    backward: Backward
    equations: tuple[Equation, ...]
    vanished: VanishedTerms = field(default_factory=VanishedTerms)
    notes: tuple[str, ...] = ()
    survivors: Mapping[Key, str] = field(default_factory=dict)
    aliases: Mapping[Key, Key] = field(default_factory=dict)

    @property
    def regime(self) -> Any:
        """The regime that the exponents lead to."""
        return self.spec.regime

    def keys(self) -> tuple[Key, ...]:
        """The keys of all equations, in order."""
        return tuple(e.key for e in self.equations)

    def __getitem__(self, key: Any) -> Equation:
        """One equation, e.g. ``theory["h", 2]``, ``theory["f"]``.

        Raises:
            RangeError: listing the valid keys.
        """
        wanted = key if isinstance(key, tuple) else (key,)
        try:
            wanted = self.aliases.get(wanted, wanted)
        except TypeError:
            wanted = ()
        for e in self.equations:
            if e.key == wanted and not any(isinstance(k, bool) for k in wanted):
                return e
        valid = ", ".join(_shown(k) for k in self.keys())
        similar = [_shown(k) for k in self.keys() if wanted and k[0] == wanted[0]]
        hint = f"for {wanted[0]!r} there is {', '.join(similar)}" if similar else "print the equations to see all symbols"
        raise RangeError("equation", key, f"one of {valid}", hint)

    def explain(self, symbol: str, *layer: int | str) -> str:
        """Why one equation is there: which matrix, which rule of the master theorem, which earlier products it sums over, and
        the power of N with which it survives.

        Raises:
            RangeError: for a symbol or layer without an equation.
        """
        equation = self[(symbol, *layer)]
        lines = [str(equation), equation.why, self.survivors.get(equation.key, "")]
        return "\n".join(line for line in lines if line)

    @property
    def signature(self) -> str:
        """A fingerprint of the structure of all equations: equal for equal limits, however they were parameterized."""
        return hashlib.sha256("\n".join(e.fingerprint for e in self.equations).encode()).hexdigest()

    def __str__(self) -> str:
        head = f"{self.program.name}, {self.parameterization.name}, {self.training}: {_regime_name(self.regime)} regime as N -> infinity"
        blocks = [head]
        for kind in Kind:
            lines = [f"  {e}" for e in self.equations if e.kind is kind]
            if lines:
                blocks.append("\n".join([f"{kind.value}:", *lines]))
        if self.notes:
            blocks.append("\n".join(["notes:", *(f"  {n}" for n in self.notes)]))
        if self.vanished:
            blocks.append("\n".join(["vanished:", *(f"  {v}" for v in self.vanished)]))
        return "\n\n".join(blocks)

    def __repr__(self) -> str:
        what = f"{self.program.name}, {self.parameterization.name}, {_regime_name(self.regime)}"
        return f"LimitEquations({what}: {len(self.equations)} equations)"

    def latex(self) -> str:
        """One aligned block with every equation, without dollar signs."""
        ordered = [e for kind in Kind for e in self.equations if e.kind is kind]
        return "\\begin{aligned}\n" + " \\\\\n".join(e.latex("&") for e in ordered) + "\n\\end{aligned}"

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex()}\n$$"


def _shown(key: Key) -> str:
    return repr(key[0]) if len(key) == 1 else repr(key)


def _regime_name(regime: Any) -> str:
    return str(getattr(regime, "value", regime))
