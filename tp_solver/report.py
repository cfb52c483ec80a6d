"""Markdown reports and LaTeX files of a run: what was asked, the equations, the table, the figure, and how to run it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tp_solver.compare import Comparison
from tp_solver.finite.ensemble import Ensemble
from tp_solver.limit.equations import LimitEquations
from tp_solver.solve.solution import Solution
from tp_solver.storage import versions
from tp_solver.symbols.equation import Kind

SHORT = (Kind.FIELD, Kind.OUTPUT)
"""The equations that a brief print shows."""


@dataclass(frozen=True, eq=False)
class Report:
    """The parts of a report; :meth:`write` makes a folder of them.

    Attributes:
        title: its heading.
        settings: the inputs as TOML.
        again: the command that runs it again, from within the folder.
        theory: the limiting equations, or None.
        sol, ens, comparison: what was computed, each perhaps None.
        verdict: text to show as it is, e.g. the regime.
        figures: files beside the report.
        seconds: stage -> how long it took.
    """

    title: str
    settings: str
    again: str
    theory: LimitEquations | None = None
    sol: Solution | None = None
    ens: Ensemble | None = None
    comparison: Comparison | None = None
    verdict: str = ""
    figures: Sequence[str] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def markdown(self) -> str:
        """The report, for viewers that typeset ``$$``."""
        parts = [f"# {self.title}"]
        if self.verdict:
            parts.append(_block("text", self.verdict))
        for name in self.figures:
            parts.append(f"![{Path(name).stem}]({name})")
        if self.comparison is not None:
            parts += ["## Theory against nets", self.comparison.markdown(), _LEGEND]
        records = [str(r) for r in (self.sol, self.ens) if r is not None]
        if records:
            parts += ["## Runs", _block("text", "\n".join(records))]
        if self.sol is not None and self.sol.details:
            parts.append("\n".join(f"- {name}: {value}" for name, value in self.sol.details.items()))
        if self.theory is not None:
            parts += ["## Equations", *_equations(self.theory)]
        parts += ["## Inputs", _block("toml", self.settings)]
        if self.seconds:
            parts.append("Took " + ", ".join(f"{s:.0f} s for {stage}" for stage, s in self.seconds.items()) + ".")
        parts += ["## Run it again", "In this folder:", _block("sh", self.again)]
        parts.append("Written by " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".")
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Write report.md, and equations.tex where there are equations."""
        (folder / "report.md").write_text(self.markdown())
        if self.theory is not None:
            (folder / "equations.tex").write_text(latex_document(self.theory))


def brief(theory: LimitEquations) -> str:
    """The equations of the fields and the outputs alone, as text."""
    lines = [f"{theory.program.name}, {theory.parameterization.name}: {theory.regime} regime as N -> infinity"]
    return "\n".join([*lines, *(f"  {e}" for e in theory.equations if e.kind in SHORT)])


def latex_document(theory: LimitEquations) -> str:
    """A LaTeX file with all equations under their headings, ready to be typeset."""
    body = []
    for kind in Kind:
        rows = [e.latex("&") for e in theory.equations if e.kind is kind]
        if rows:
            joined = " \\\\\n".join(rows)
            body.append(f"\\section*{{{kind.value.capitalize()}}}\n\\begin{{align*}}\n{joined}\n\\end{{align*}}")
    head = [
        f"% {theory.program.name}, {theory.parameterization.name}, {theory.training}",
        r"\documentclass{article}",
        r"\usepackage{amsmath}",
        r"\usepackage[a4paper,landscape,margin=2cm]{geometry}",
        r"\allowdisplaybreaks",
        r"\begin{document}",
    ]
    return "\n".join([*head, *body, r"\end{document}", ""])


_LEGEND = (
    "Nets of the largest width, averaged over seeds, against the limit. The standard error combines the scatter over seeds with "
    "the error of the solution; a deviation of up to about three of them is what chance alone makes. Extremes (largest) are larger."
)


def _equations(theory: LimitEquations) -> list[str]:
    parts = []
    for kind in Kind:
        rows = [e.latex("&") for e in theory.equations if e.kind is kind]
        if rows:
            joined = " \\\\\n".join(rows)
            parts += [f"**{kind.value}**", f"$$\n\\begin{{aligned}}\n{joined}\n\\end{{aligned}}\n$$"]
    if theory.vanished:
        parts += ["**vanished**", _block("text", str(theory.vanished))]
    return parts


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"
