"""Every notebook runs from top to bottom, at small size, in a fresh kernel and an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))

if not NOTEBOOKS:
    pytest.skip("there is no notebook yet", allow_module_level=True)


LONG = ("edge_of_chaos", "jacobian_regularisation", "wide_nets_are_linear")
"""Half a minute each: what they show is held by tests of their own."""


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] if p.stem in LONG else []) for p in NOTEBOOKS], ids=[p.stem for p in NOTEBOOKS]
)
def test_notebook_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("TP_SOLVER_SMALL", "1")  # notebooks read it to choose widths, seeds and steps
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert any(cell.cell_type == "code" for cell in notebook.cells)
    # a kernel that hangs is a failure too; no cell of a small run comes near this many seconds
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    errors = [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    assert not errors


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_reads_the_size_switch(path):
    assert "TP_SOLVER_SMALL" in path.read_text()
