"""Every script in benchmarks/ says how to run it, and runs at reduced size."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
REDUCED = "--quick"
ELSEWHERE = {"peer_kernels.py": "writes golden files, in an environment that has neural-tangents"}


def is_script(path: Path) -> bool:
    """Whether a file runs something, or is there for others to import."""
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in ast.parse(path.read_text()).body)


SCRIPTS = [path for path in sorted(BENCHMARKS.glob("*.py")) if is_script(path)]
OURS = [path for path in SCRIPTS if path.name not in ELSEWHERE]


def options(path: Path) -> set[str]:
    """Names of the options that a script gives to argparse."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    return {argument.value for call in added for argument in call.args if isinstance(argument, ast.Constant)}


def test_the_scripts_are_found():
    names = {path.name for path in SCRIPTS}
    assert {"finite_diagnostics.py", "march_and_nets.py", *ELSEWHERE} <= names
    assert "kernel_cases.py" not in names, "a module of kernels_and_peer.py"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_scripts_say_how_to_run_them(path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"python benchmarks/{path.name}" in text
    if path in OURS:
        assert REDUCED in text.split(f"python benchmarks/{path.name}")[1].splitlines()[0]
        assert REDUCED in options(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", OURS, ids=lambda p: p.stem)
def test_scripts_run_at_reduced_size(path, tmp_path):
    """To exit status 0, from any folder, with a table of numbers."""
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    run = subprocess.run([sys.executable, str(path), REDUCED], capture_output=True, text=True, timeout=900, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [line for line in run.stdout.splitlines() if any(c.isdigit() for c in line)]
    assert len(rows) >= 3, run.stdout[-2000:]
    assert "nan" not in run.stdout.lower().replace("|", " ").split()
