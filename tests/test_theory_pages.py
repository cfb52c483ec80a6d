"""The pages of theory/: printed blocks in step with the code, and every label, page, heading and link that is cited exists."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
THEORY = ROOT / "theory"
PAGES = sorted(THEORY.glob("*.md"))
README = ROOT / "README.md"
CODE = sorted(p for folder in ("tp_solver", "tests", "benchmarks", "theory") for p in (ROOT / folder).rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PREFIXES = {
    "notation": "NO",
    "tensor_programs": "TP",
    "power_counting": "PC",
    "feature_learning": "FL",
    "limit_operator": "LO",
    "kernel_regime": "KR",
    "kernel_training": "KT",
    "uncertainty": "KU",
    "depth": "KD",
    "jacobian": "KJ",
}
LABEL = re.compile(r"\b(?:" + "|".join(PREFIXES.values()) + r")\.\d+\b")
CITED = re.compile(r"theory/(?P<page>\w+)\.md`*(?:, \"(?P<heading>[^\"]+)\")?(?:, (?P<label>[A-Z]{2}\.\d+))?")


def load_printer():
    spec = importlib.util.spec_from_file_location("print_blocks", THEORY / "print_blocks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def printer():
    return load_printer()


def labels(page: Path) -> list[str]:
    return re.findall(r"\\tag\{([^}]+)\}", page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


ALL_LABELS = [label for page in PAGES for label in labels(page)]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_pages_are_there():
    assert {p.stem for p in PAGES} == set(PREFIXES)


def test_every_page_is_in_the_list_of_pages():
    """The list opens the page of notation; a reader of the README comes to every page by a link there, or by that list."""
    opening = (THEORY / "notation.md").read_text(encoding="utf-8").split("\n## ")[0]
    assert set(re.findall(r"\]\((\w+)\.md\)", opening)) == set(PREFIXES) - {"notation"}
    assert "(theory/notation.md)" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_in_step(page, printer):
    assert printer.stale(page) == [], "run: python theory/print_blocks.py"


def test_every_printer_is_used_once(printer):
    used = [m["name"] for page in PAGES for m in printer.BLOCK.finditer(page.read_text(encoding="utf-8"))]
    assert sorted(used) == sorted(printer.PRINTERS)
    opened = sum(page.read_text(encoding="utf-8").count("<!-- printed:") for page in PAGES)
    assert opened == len(used), "a block without its end"


def test_a_changed_block_is_noticed(tmp_path, printer, monkeypatch):
    source = (THEORY / "tensor_programs.md").read_text(encoding="utf-8")
    (tmp_path / "page.md").write_text(source.replace("x1 = map(tanh(h1); h1)", "x1 = map(sin(h1); h1)", 1), encoding="utf-8")
    monkeypatch.setattr(printer, "PAGES", tmp_path)
    assert printer.main(["--check"]) == 1
    assert printer.main([]) == 0
    assert printer.main(["--check"]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == source


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_labels_are_numbered_in_order(page):
    assert labels(page) == [f"{PREFIXES[page.stem]}.{k + 1}" for k in range(len(labels(page)))]
    assert labels(page)


@pytest.mark.parametrize("path", [*PAGES, README, *CODE, *NOTEBOOKS], ids=name)
def test_cited_labels_exist(path):
    cited = set(LABEL.findall(path.read_text(encoding="utf-8")))
    assert cited <= set(ALL_LABELS)


@pytest.mark.parametrize("path", [p for p in CODE if p != Path(__file__).resolve()] + NOTEBOOKS, ids=name)
def test_cited_pages_and_headings_exist(path):
    # a citation may be broken over two lines of a docstring
    flat = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    for m in CITED.finditer(flat):
        page = THEORY / f"{m['page']}.md"
        assert page.exists(), f"theory/{m['page']}.md"
        assert m["heading"] is None or m["heading"] in headings(page), f"{page.name} has no heading {m['heading']!r}"
        assert m["label"] is None or m["label"] in labels(page), f"{page.name} has no equation {m['label']}"


@pytest.mark.parametrize("page", [*PAGES, README], ids=name)
def test_links_lead_somewhere(page):
    for words, target in re.findall(r"\[([^\]]+)\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        assert (page.parent / target).exists(), f"{page.name}: [{words}]({target})"
        label = LABEL.search(words)
        if label:  # a link that names an equation leads to the page that has it
            assert label[0] in labels(page.parent / target)


@pytest.mark.parametrize("page", [*PAGES, README], ids=name)
def test_named_attributes_exist(page):
    """Every `tp.name` in the pages is public."""
    import tp_solver as tp

    for found in re.findall(r"\btp\.([A-Za-z_]\w*)", page.read_text(encoding="utf-8")):
        assert hasattr(tp, found), f"tp.{found}"
