"""The printed equations, word for word; to accept a change, run tests/golden/regenerate.py and read the difference."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from matplotlib.mathtext import MathTextParser

GOLDEN = Path(__file__).parents[1] / "golden"
_spec = importlib.util.spec_from_file_location("golden_regenerate", GOLDEN / "regenerate.py")
assert _spec is not None and _spec.loader is not None
regenerate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(regenerate)
CASES = regenerate.cases()


@pytest.mark.parametrize("name", CASES)
def test_printed_equations_are_the_recorded_ones(name):
    for suffix, content in regenerate.contents(CASES[name]).items():
        assert content == (GOLDEN / f"{name}{suffix}").read_text(encoding="utf-8")


def test_every_recorded_file_belongs_to_a_case():
    assert {p.stem for p in GOLDEN.iterdir() if p.suffix in (".txt", ".tex")} == set(CASES)


def test_latex_compiles_line_by_line():
    # mathtext has no aligned environment, so each equation is set alone
    parser = MathTextParser("agg")
    for line in {equation.latex() for theory in CASES.values() for equation in theory.equations}:
        parser.parse(f"${line}$")


@pytest.mark.parametrize("name", CASES)
def test_the_block_holds_every_equation(name):
    assert CASES[name].latex().count("&=") == len(CASES[name].equations)
