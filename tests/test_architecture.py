"""The house: which floor may import which, no circles, public jax only, a light import, documented names."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tp_solver

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tp_solver"

FLOORS = {
    "errors": set(),
    "figure_style": set(),
    "checks": {"errors"},
    "symbols": {"errors", "checks"},
    "elementwise": {"errors", "checks", "symbols"},
    "numerics": {"errors", "checks", "symbols", "elementwise"},
    "program": {"errors", "checks", "symbols"},
    "limit": {"errors", "checks", "symbols", "program"},
    "finite": {"errors", "checks", "symbols", "elementwise", "numerics", "program"},
    "storage": {"errors", "checks", "program", "finite"},
    "kernel_regime": {"errors", "checks", "figure_style", "symbols", "elementwise", "numerics", "program", "limit"},
    "solve": {"errors", "checks", "symbols", "elementwise", "numerics", "program", "limit", "kernel_regime", "storage"},
    "sweeps": {"errors", "checks", "symbols", "program", "limit", "finite", "solve", "storage", "restore", "plot"},
}
"""What each floor may import besides itself; the files on top (compare, plot, report, cli) may import everything."""

SYMPY_ONLY = ("symbols", "program", "limit")
PRIVATE_JAX = ("jax.core", "jax.interpreters", "jax.experimental", "jax._src", "jax.extend", "jaxlib")
LONGEST_FILE = 450

CONTRACT = [
    "mlp",
    "program",
    "linear",
    "tanh",
    "erf",
    "relu",
    "leaky_relu",
    "gelu",
    "sin",
    "Activation",
    "GradientDescent",
    "GradientFlow",
    "SquaredError",
    "Logistic",
    "CrossEntropy",
    "Task",
    "Parameterization",
    "muP",
    "mean_field",
    "ntk",
    "standard",
    "standard_1n",
    "integrable",
    "regime",
    "limit",
    "solve",
    "simulate",
    "compare",
    "coordinate_check",
    "load",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py"))}
SOURCES = sorted(p for folder in ("tp_solver", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def typing_only(path: Path) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING``, which never run."""
    guarded = [n for n in ast.walk(tree(path)) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {inner for n in guarded for inner in ast.walk(n)}


@cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names a file imports, inside functions too; ``from a import b`` counts as a.b."""
    names: set[str] = set()
    skipped = typing_only(path)
    for node in ast.walk(tree(path)):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def edges(module: str) -> set[str]:
    """Modules of the package that a module imports; a name inside a module counts as that module."""
    found = set()
    for name in imported(MODULES[module]):
        candidates = [m for m in MODULES if name == m or name.startswith(m + ".")]
        if candidates and (target := max(candidates, key=len)) not in (module, "tp_solver"):
            found.add(target)
    return found


def floor(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def reachable(module: str) -> set[str]:
    seen: set[str] = set()
    todo = [module]
    while todo:
        for target in edges(todo.pop()) - seen:
            seen.add(target)
            todo.append(target)
    return seen


def on_floor(*floors: str) -> list[str]:
    return [m for m in MODULES if floor(m) in floors]


@pytest.mark.parametrize("module", on_floor(*FLOORS))
def test_floors_import_downwards_only(module):
    upwards = {t for t in edges(module) if floor(t) not in {*FLOORS[floor(module)], floor(module)}}
    assert not upwards, f"{module} imports {sorted(upwards)}"


@pytest.mark.parametrize("module", on_floor(*SYMPY_ONLY))
def test_symbolic_floors_never_reach_jax(module):
    for name in {module, *reachable(module)}:
        found = {i for i in imported(MODULES[name]) if i.split(".")[0] in ("jax", "jaxlib")}
        assert not found, f"{module} reaches {name}, which imports {sorted(found)}"


@pytest.mark.parametrize("module", on_floor("finite"))
def test_the_experiment_is_an_independent_witness(module):
    assert not {m for m in reachable(module) if floor(m) in ("limit", "solve")}


def test_no_import_circles():
    state: dict[str, bool] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            raise AssertionError(" -> ".join((*path[path.index(module) :], module)))
        if module not in state:
            for target in sorted(edges(module)):
                visit(target, (*path, module))
            state[module] = True

    for module in MODULES:
        visit(module, ())


def dotted_names(path: Path) -> Iterator[str]:
    yield from imported(path)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_jax_only(path):
    private = {n for n in dotted_names(path) if any(n == p or n.startswith(p + ".") for p in PRIVATE_JAX)}
    assert not private


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda p: str(p.relative_to(ROOT)))
def test_house_rules(path):
    """No pickled files, no flipped jax settings, no keyword tunnels, no drawer for everything."""
    names = set(imported(path))
    assert not names & {"pickle", "dill", "joblib", "shelve", "marshal"}
    assert path.stem not in ("utils", "util", "misc", "common", "helpers")
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not called.endswith("config.update"), f"line {node.lineno}: a jax setting is changed for the user"
            assert called not in ("eval", "exec"), f"line {node.lineno}: {called}"
            assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords), f"line {node.lineno}"
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.args.kwarg is None, f"line {node.lineno}: {node.name} takes **{node.args.kwarg.arg}"


TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "benchmarks",
    "notebooks",
    "pyproject.toml",
    "tests",
    "theory",
    "tp_solver",
}


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [Path(line) for line in listed.stdout.splitlines()]


def test_the_top_level_is_fixed():
    assert {p.parts[0] for p in committed()} <= TOP_LEVEL


def test_no_lock_file_and_no_download_host():
    files = committed()
    assert not [p for p in files if p.suffix == ".lock" or p.name.startswith("requirements")]
    for name in ("pyproject.toml", ".ci/run"):
        assert "://" not in (ROOT / name).read_text(), f"{name} names a host"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_say_what_they_are(path):
    assert ast.get_docstring(tree(path))


# the import, in processes of their own ------------------------------------------------------------------------------

PROBE = """
import json, sys, time
start, busy = time.perf_counter(), time.process_time()
import tp_solver
wall, cpu = time.perf_counter() - start, time.process_time() - busy
loaded = sorted(sys.modules)
import jax
print(json.dumps({"wall": wall, "cpu": cpu, "loaded": loaded, "x64": jax.config.jax_enable_x64,
                  "precision": jax.config.jax_default_matmul_precision}))
"""


@cache
def probe(_: int = 0) -> dict:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def test_import_loads_nothing_heavy():
    heavy = {"matplotlib", "diffrax", "sklearn", "pandas", "tqdm.notebook", "tqdm.auto", "IPython", "optax", "equinox"}
    assert not heavy & set(probe()["loaded"])


def test_import_changes_no_jax_setting():
    assert probe()["x64"] is False
    assert probe()["precision"] is None


def test_import_is_quick(record_property):
    """In processor time, best of three: others may keep the machine busy."""
    runs = [probe(k) for k in range(3)]
    record_property("import_cpu_seconds", min(r["cpu"] for r in runs))
    record_property("import_wall_seconds", min(r["wall"] for r in runs))
    assert min(r["cpu"] for r in runs) <= 1.0


# the public names ---------------------------------------------------------------------------------------------------

PUBLIC = tuple(getattr(tp_solver, "__all__", ()))


@pytest.mark.parametrize("name", CONTRACT)
def test_the_names_of_the_contract_are_public(name):
    assert name in PUBLIC
    assert hasattr(tp_solver, name)


def test_public_names_stay_what_they_are():
    """Verbs and floors share names (tp.solve, tp_solver/solve): importing a module later must not replace a verb."""
    code = "import importlib, types, tp_solver as tp\n"
    code += f"for name in {sorted(set(MODULES) - {'tp_solver.__main__'})}: importlib.import_module(name)\n"
    code += "print([n for n in tp.__all__ if isinstance(getattr(tp, n), types.ModuleType)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_nothing_else_leaks():
    """What ``dir`` shows without an underscore is listed, or is a module of the package."""
    visible = {n for n in dir(tp_solver) if not n.startswith("_") and not isinstance(getattr(tp_solver, n), types.ModuleType)}
    assert visible <= {*PUBLIC, "annotations"}
    assert len(PUBLIC) == len(set(PUBLIC))


def documented(owner: type) -> Iterator[tuple[str, object]]:
    for name, member in vars(owner).items():
        member = getattr(member, "__func__", member)
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            yield name, member


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_docstrings(name):
    thing = getattr(tp_solver, name)
    owner = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    assert (inspect.getdoc(owner) or "").strip()
    # dataclasses without a docstring get one that only repeats the signature
    assert not (inspect.isclass(owner) and owner.__doc__.startswith(f"{owner.__name__}("))
    if inspect.isclass(thing):
        missing = [n for n, member in documented(thing) if not inspect.getdoc(member)]
        assert not missing, f"{name}: {missing}"
