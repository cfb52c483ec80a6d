"""What the user defines, as plain trees for files: programs, parameterizations, training rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tp_solver.errors import FileFormatError
from tp_solver.program.losses import LOSSES
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.positions import Grid, Padding, Window
from tp_solver.program.schedules import CONSTANT, Batches, Schedule
from tp_solver.program.statements import Average, Layer, Map, Matrix, Pool, Product, Program, Role, Statement, Sum
from tp_solver.program.training import GradientDescent, GradientFlow, Training
from tp_solver.symbols.serialization import from_tree, to_tree

T = TypeVar("T")
_TRIPLES = ("a", "b", "c", "alpha", "sigma", "eta")


def program_to_tree(program: Program) -> dict[str, Any]:
    """Everything a program consists of."""
    return {
        "name": program.name,
        "matrices": [[m.name, m.role.name, to_tree(m.sigma), to_tree(m.rate)] for m in program.matrices],
        "statements": [[type(s).__name__, *_WRITERS[type(s)](s)] for s in program.statements],
        "output": program.output,
        "layers": [[v.index, v.pre, v.post, v.activation] for v in program.layers],
        "grid": list(program.grid),
    }


def program_from_tree(tree: Mapping[str, Any]) -> Program:
    """The program that :func:`program_to_tree` took apart.

    Raises:
        FileFormatError: for anything else.
    """

    def build() -> Program:
        return Program(
            _text(tree["name"]),
            tuple(Matrix(_text(name), Role[role], from_tree(sigma), from_tree(rate)) for name, role, sigma, rate in tree["matrices"]),
            tuple(_READERS[kind](*parts) for kind, *parts in tree["statements"]),
            _text(tree["output"]),
            tuple(Layer(int(i), _text(pre), _text(post), _text(activation)) for i, pre, post, activation in tree["layers"]),
            _grid(tree.get("grid", [])),
        )

    return _guarded("program", build)


def parameterization_to_tree(parameterization: Parameterization) -> dict[str, Any]:
    """Name, exponents and constants; those of a bias on the output where they are not zero, so that names of older runs stay."""
    fields = (*_TRIPLES, "output_bias") if any(parameterization.output_bias) else _TRIPLES
    return {"name": parameterization.name} | {f: [to_tree(e) for e in getattr(parameterization, f)] for f in fields}


def parameterization_from_tree(tree: Mapping[str, Any]) -> Parameterization:
    """The parameterization that :func:`parameterization_to_tree` took apart.

    Raises:
        FileFormatError: for anything else.
    """

    def build() -> Parameterization:
        found = [tuple(map(from_tree, tree[f])) for f in (*_TRIPLES, "output_bias") if f in tree or f in _TRIPLES]
        return Parameterization(_text(tree["name"]), *found)

    return _guarded("parameterization", build)


def training_to_tree(training: Training) -> dict[str, Any]:
    """Rule, its numbers, and the name of the loss."""
    rule = next(name for name, kind in RULES.items() if isinstance(training, kind))
    loss = next(name for name, kind in LOSSES.items() if isinstance(training.loss, kind))
    tree = {"rule": rule, "steps": training.steps, "loss": loss}
    if isinstance(training, GradientDescent):
        tree |= {"pace": training.lr, "momentum": training.momentum, "weight_decay": training.weight_decay}
        tree |= {"temperature": training.temperature, "schedule": [training.schedule.name, to_tree(training.schedule.factor)]}
        return tree | {"batches": None if training.batches is None else [training.batches.size, training.batches.seed]}
    return tree | {"pace": training.time}


def training_from_tree(tree: Mapping[str, Any]) -> Training:
    """The training rule that :func:`training_to_tree` took apart.

    Raises:
        FileFormatError: for anything else.
    """

    def build() -> Training:
        loss = LOSSES[tree["loss"]]()
        if RULES[tree["rule"]] is GradientDescent:
            batches, (name, factor) = tree.get("batches"), tree.get("schedule", (CONSTANT.name, to_tree(CONSTANT.factor)))
            return GradientDescent(
                tree["pace"],
                tree["steps"],
                loss,
                tree.get("momentum", 0.0),
                tree.get("weight_decay", 0.0),
                tree.get("temperature", 0.0),
                None if batches is None else Batches(*batches),
                Schedule(_text(name), from_tree(factor)),
            )
        return GradientFlow(tree["pace"], tree["steps"], loss)

    return _guarded("training", build)


RULES: dict[str, type[GradientDescent] | type[GradientFlow]] = {"gradient_descent": GradientDescent, "gradient_flow": GradientFlow}
"""Training rules by the names that files use."""

_WRITERS: dict[type, Callable[[Any], list[Any]]] = {
    Product: lambda s: [s.out, s.matrix, s.arg, s.transpose, *([] if s.window is None else [_window_to_tree(s.window)])],
    Map: lambda s: [s.out, to_tree(s.expression), list(s.arguments)],
    Sum: lambda s: [s.out, [[to_tree(c), x] for c, x in s.terms]],
    Average: lambda s: [s.out, to_tree(s.expression), list(s.arguments)],
    Pool: lambda s: [s.out, s.arg, _window_to_tree(s.window), s.transpose],
}
_READERS: dict[str, Callable[..., Statement]] = {
    "Product": lambda out, matrix, arg, transpose, *window: Product(
        _text(out), _text(matrix), _text(arg), bool(transpose), *map(_window_from_tree, window)
    ),
    "Pool": lambda out, arg, window, transpose: Pool(_text(out), _text(arg), _window_from_tree(window), bool(transpose)),
    "Map": lambda out, expression, arguments: Map(_text(out), from_tree(expression), tuple(map(_text, arguments))),
    "Sum": lambda out, terms: Sum(_text(out), tuple((from_tree(c), _text(x)) for c, x in terms)),
    "Average": lambda out, expression, arguments: Average(_text(out), from_tree(expression), tuple(map(_text, arguments))),
}


def _window_to_tree(w: Window) -> list[Any]:
    return [list(w.inputs), list(w.size), list(w.stride), w.padding.value, w.shared]


def _window_from_tree(tree: list[Any]) -> Window:
    inputs, size, stride, padding, shared = tree
    return Window(_grid(inputs), _grid(size), _grid(stride), Padding(padding), bool(shared))


def _grid(value: list[Any]) -> Grid:
    if not all(isinstance(n, int) and n > 0 for n in value):
        raise TypeError(f"{value!r} is no grid")
    return tuple(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _guarded(field: str, build: Callable[[], T]) -> T:
    """Whatever goes wrong in building means that the tree is not ours."""
    try:
        return build()
    except FileFormatError:
        raise
    except Exception as error:
        raise FileFormatError(
            field, f"a description that cannot be read ({type(error).__name__}: {error})", f"a {field} written by tp_solver",
            "the file is damaged or was not written by tp_solver",
        ) from error  # fmt: skip
