"""Keeps the printed blocks of these pages in step with the code.

python theory/print_blocks.py            rewrites what stands between `<!-- printed: NAME -->` and `<!-- end -->`
python theory/print_blocks.py --check    changes nothing; exits with 1 and names the blocks that differ
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sympy as sp

import tp_solver as tp
from tp_solver.symbols.equation import Kind

PAGES = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- printed: (?P<name>\w+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)

NET = tp.mlp(depth=2, activation=tp.tanh)
DEEP = tp.mlp(depth=3, activation=tp.tanh)
TRAIN = tp.GradientDescent(lr=0.1, steps=100)
HALF = sp.Rational(1, 2)


def text(*parts: object) -> str:
    return "```text\n" + "\n".join(str(p) for p in parts) + "\n```\n"


def program() -> str:
    return text(NET)


def backward() -> str:
    return text(tp.limit(NET, tp.muP, TRAIN).backward)


def explain() -> str:
    theory = tp.limit(NET, tp.muP, TRAIN)
    return text(theory.explain("A", 1), "", theory.explain("B", 1))


def tied() -> str:
    W0, W1, w = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w")
    net = tp.program(lambda x: w @ tp.tanh(W1 @ tp.tanh(W1 @ tp.tanh(W0 @ x))), "tied")
    theory = tp.limit(net, tp.muP, TRAIN)
    covariances = [e for e in theory.equations if e.kind is Kind.GAUSSIAN and e.key[0] == "u"]
    return text(*covariances, theory["h", 2])


TABLE = (
    tp.standard,
    tp.standard_1n,
    tp.ntk,
    tp.muP,
    tp.mean_field,
    tp.Parameterization("standard start, muP rates", a=0, b=(0, HALF, 1), c=(-1, 0, 1)),
    tp.integrable,
    tp.Parameterization("muP, hidden layers too slow", a=(-HALF, 0, HALF), b=HALF, c=(0, HALF, 0)),
    tp.Parameterization("NTK, rates N^-1/2", a=(0, HALF, HALF), b=0, c=HALF),
)


def table() -> str:
    rows = ["| name | $a$ | $b$ | $c$ | $r_0, r_1, r_2$; readout | regime |", "|---|---|---|---|---|---|"]
    for p in TABLE:
        report = tp.regime(p, DEEP)
        *inner, last = report.exponents.values()
        exponents = " | ".join("(" + ", ".join(map(str, e)) + ")" for e in (p.a, p.b, p.c))
        rows.append(f"| {p.name} | {exponents} | {', '.join(map(str, inner))}; {last} | {report.regime} |")
    return "\n".join(rows) + "\n"


def cure() -> str:
    return text(tp.regime(tp.standard, DEEP), "", tp.regime(tp.integrable, DEEP))


def output_bias() -> str:
    theory = tp.limit(tp.mlp(depth=2, activation=tp.tanh, output_bias=True), tp.muP, TRAIN)
    lazy = tp.limit(tp.mlp(depth=2, activation=tp.tanh, output_bias=2), tp.ntk, TRAIN)
    return text(theory["f"], theory["K"], "", lazy["f", 0], lazy["K"])


def symbolic() -> str:
    q = sp.Symbol("q")
    family = tp.Parameterization("family", a=(0, HALF, q), b=0, c=1 - 2 * q)
    return text(tp.regime(family, DEEP))


def feature() -> str:
    return text(tp.limit(NET, tp.muP, TRAIN))


def remembered() -> str:
    rule = tp.GradientDescent(lr=0.1, steps=100, momentum=0.9, weight_decay=0.01, temperature=0.001, batches=tp.Batches(10))
    theory = tp.limit(NET, tp.muP, rule)
    shown = (("u", 2), ("h", 2), ("z", 2), ("e",), ("p",), ("kappa",), ("C",))
    return text(*(theory[key] if len(key) > 1 else theory[key[0]] for key in shown))


def feature_latex() -> str:
    return f"$$\n{tp.limit(NET, tp.muP, TRAIN).latex()}\n$$\n"


def cross_entropy() -> str:
    theory = tp.limit(NET, tp.muP, tp.GradientDescent(lr=0.1, steps=100, loss=tp.CrossEntropy()))
    return text(*(e for e in theory.equations if e.kind is Kind.FIELD), theory["f"], theory["e"])


def kernel() -> str:
    theory = tp.limit(NET, tp.ntk, TRAIN)
    return text(*(e for e in theory.equations if e.kind in (Kind.GAUSSIAN, Kind.KERNEL, Kind.OUTPUT)))


def normalised() -> str:
    W0, W1, w = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w")

    def network(x: Any) -> Any:
        u = (W1 @ tp.tanh(W0 @ x)).named("y")
        return w @ tp.tanh(tp.entrywise(lambda a, q: a / sp.sqrt(q), u, tp.average(lambda a: a**2, u).named("q")))

    theory = tp.limit(tp.program(network, "normalised"), tp.ntk, TRAIN)
    return text(*(e for e in theory.equations if e.kind in (Kind.FIELD, Kind.KERNEL)), theory["K"])


def heavy_ball() -> str:
    theory = tp.limit(NET, tp.ntk, tp.GradientDescent(lr=0.1, steps=100, momentum=0.9))
    return text(theory["f"], theory["e"])


def selected() -> str:
    theory = tp.limit(NET, tp.standard_1n, TRAIN)
    return text(theory["K"], "", theory.vanished)


PRINTERS: Mapping[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        program,
        backward,
        explain,
        tied,
        table,
        cure,
        output_bias,
        symbolic,
        feature,
        feature_latex,
        cross_entropy,
        kernel,
        normalised,
        heavy_ball,
        selected,
        remembered,
    )
}


def printed(page: Path) -> str:
    """The page with every block as the code prints it now."""
    return BLOCK.sub(lambda m: m[1] + PRINTERS[m["name"]]() + m[4], page.read_text(encoding="utf-8"))


def stale(page: Path) -> list[str]:
    """Names of the blocks of a page that differ from what the code prints."""
    return [m["name"] for m in BLOCK.finditer(page.read_text(encoding="utf-8")) if m["body"] != PRINTERS[m["name"]]()]


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    different = 0
    for page in sorted(PAGES.glob("*.md")):
        for name in stale(page):
            different += 1
            print(f"{page.name}: {name} {'differs' if arguments else 'rewritten'}")
        if not arguments:
            page.write_text(printed(page), encoding="utf-8")
    return int(bool(arguments) and different > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
