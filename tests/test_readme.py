"""The README says what is true: its Python runs (at small size), its commands and quotations are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tp_solver as tp

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALLER = {
    "steps=200": "steps=4",
    "points=40": "points=6, test=4",
    "task, gamma0=1.0)  ": "task, gamma0=1.0, samples=256)  ",
    "widths=[128, 512, 2048], seeds=8": "widths=[16, 32], seeds=4, progress=False",
    "train, task, gamma0=gamma0)": "train, task, gamma0=gamma0, samples=64, replicates=1)",
    '{"gamma0": [0.1, 1, 3], "depth": [1, 2, 3]}': '{"gamma0": [0.5, 1], "depth": [1, 2]}',
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the block writes its figure here
    code = "\n".join(blocks("python"))
    for full, small in SMALLER.items():
        assert code.count(full) == 1, full
        code = code.replace(full, small)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "kernel: (1/2 <= q) & (q < 1)" in printed
    assert (tmp_path / "theory_and_nets.png").stat().st_size > 10_000
    assert names["sol"].f.shape == (5, 6)
    assert names["ens"].f.shape == (2, 4, 5, 6)


def test_fifteen_lines():
    """Blank lines and the imports apart."""
    lines = [line for line in blocks("python")[0].splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) <= 15


def test_one_command_each():
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("python3 -m venv")]
    assert [("tp-solver demo" in c, "pytest" in c) for c in commands] == [(True, False), (False, True)]


def test_the_quoted_error_is_the_one_raised():
    net, train = tp.mlp(depth=1, activation=tp.tanh), tp.GradientDescent(lr=0.1, steps=1)
    theory = tp.limit(net, tp.muP, train)
    with pytest.raises(tp.TPError) as caught:
        tp.solve(theory, tp.Task([[1.0]], [1.0]), gamma0=float("nan"))
    assert f"`{caught.value}`" in README


def test_every_status_and_method_is_listed():
    from tp_solver.solve.methods import METHODS

    for name in [*(s.value for s in tp.Status), *METHODS]:
        assert f"`{name}`" in README or f'`"{name}"`' in README, name
