"""Input files: TOML read strictly, key by key, before anything is computed. Text from a file is never evaluated."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import sympy as sp

from tp_solver import checks
from tp_solver.errors import InputError, TPError
from tp_solver.plot import FORMATS
from tp_solver.program.architectures import mlp
from tp_solver.program.losses import LOSSES
from tp_solver.program.parameterization import CLASSES, PRESETS, D, Parameterization
from tp_solver.program.schedules import CONSTANT, Batches, Schedule, cosine, step_decay, warmup
from tp_solver.program.serialization import RULES
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent, GradientFlow, Training, check_momentum
from tp_solver.solve.methods import METHODS
from tp_solver.symbols.activation import SHIPPED
from tp_solver.task_sources import ARRAYS, FILES, TASKS, placed

Reader = Callable[[str, Any], Any]
"""From a field's name and a raw TOML value to the clean one."""

ACTIVATIONS = {a.name: a for a in SHIPPED}
ARCHITECTURES = {"mlp": mlp}
ENDS = "ends"
"""The word for the first and the last step."""
_PACE = {GradientDescent: "lr", GradientFlow: "time"}
_DESCENT = ("lr", "momentum", "weight_decay", "temperature", "batches", "schedule")
_OWNER = dict.fromkeys(_DESCENT, "gradient_descent") | {"time": "gradient_flow"}
"""Keys of [training] that belong to one rule only."""


@dataclass(frozen=True)
class Config:
    """A checked input file.

    Attributes:
        sections: section -> key -> clean value, for the keys that were given.
        raw: the same as TOML has them, to be written again.
        base: the folder that relative paths refer to.
    """

    sections: Mapping[str, Mapping[str, Any]]
    raw: Mapping[str, Mapping[str, Any]]
    base: Path

    def net(self) -> Program:
        """The program of [network].

        Raises:
            InputError: naming a missing key.
        """
        given = self._section("network", ("depth", "activation"))
        with inside("network"):
            return ARCHITECTURES[given.get("architecture", "mlp")](
                given["depth"], ACTIVATIONS[given["activation"]], given.get("bias", False), output_bias=given.get("output_bias", False)
            )

    def parameterization(self) -> Parameterization:
        """The parameterization of [parameterization]: a preset, or exponents and constants.

        Raises:
            InputError: naming a missing key, or a preset together with exponents.
        """
        given = dict(self._section("parameterization", ()))
        if "preset" in given:
            others = sorted(set(given) - {"preset"})
            if others:
                raise InputError("parameterization", f"a preset and also {others}", "a preset alone, or a, b and c", "remove one of them")
            return PRESETS[given["preset"]]
        given = dict(self._section("parameterization", ("a", "b", "c")))
        with inside("parameterization"):
            return Parameterization(
                given.pop("name", "mine"),
                *(given.pop(k) for k in "abc"),
                *(given.get(k, start) for k, start in (("alpha", 1), ("sigma", 1), ("eta", 1), ("output_bias", 0))),
            )

    def training(self) -> Training:
        """The training rule of [training].

        Raises:
            InputError: naming a missing key, or one that belongs to the other rule.
        """
        rule = RULES[self.sections.get("training", {}).get("rule", "gradient_descent")]
        given = self._section("training", (_PACE[rule], "steps"))
        for other, owner in _OWNER.items():
            if other in given and RULES[owner] is not rule:
                raise InputError(f"training.{other}", given[other], f"no {other} with this rule", f'it belongs to rule = "{owner}"')
        loss = LOSSES[given.get("loss", "squared_error")]()
        with inside("training"):
            if rule is GradientDescent:
                momentum, decay, temperature = (given.get(key, 0.0) for key in ("momentum", "weight_decay", "temperature"))
                batches, schedule = given.get("batches"), given.get("schedule", CONSTANT)
                return GradientDescent(given["lr"], given["steps"], loss, momentum, decay, temperature, batches, schedule)
            return GradientFlow(given["time"], given["steps"], loss)

    def task(self) -> Task:
        """The data of [task]; reads the files it names, if any.

        Raises:
            InputError: naming what is missing or malformed.
        """
        given = self._section("task", ())
        if len(given) != 1:
            raise InputError("task", f"the keys {sorted(given)}", f"one of {', '.join(SCHEMA['task'])}", _DIGITS)
        ((kind, value),) = given.items()
        with inside(f"task.{kind}"):
            return TASKS[kind](self.base, value)

    def options(self, section: str) -> dict[str, Any]:
        """The options given in [solve], [simulate] or [output], as the functions of these names take them."""
        out = dict(self.sections.get(section, {}))
        if out.get("times") == ENDS:
            out["times"] = (0, self.training().steps)
        return out

    def _section(self, name: str, required: Sequence[str]) -> Mapping[str, Any]:
        if name not in self.sections:
            raise InputError(name, "no such section", f"a section [{name}]", f"its keys are {', '.join(SCHEMA[name])}")
        for key in required:
            if key not in self.sections[name]:
                raise InputError(
                    f"{name}.{key}", "no such key", f"{key} in section [{name}]", f"keys given: {', '.join(self.sections[name])}"
                )
        return self.sections[name]


def read(path: Any, overrides: Sequence[str] = ()) -> Config:
    """Read an input file strictly, with ``section.key=value`` overrides (values as in TOML; bare words are text).

    Raises:
        InputError: naming ``section.key`` for unknown, misspelt or malformed entries, or the file for TOML that is not.
    """
    source = Path(path)
    try:
        with open(source, "rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise InputError(str(source), error.strerror or str(error), "a readable TOML file", "tp-solver demo shows an example") from error
    except (ValueError, RecursionError) as error:
        raise InputError(str(source), str(error)[:160], "a TOML file", "strings need quotes, tables a [header]") from error
    for text in overrides:
        _override(table, text)
    return Config(_checked(table), table, source.parent)


def write(config: Config, path: Path) -> None:
    """Write the inputs, overrides included, so that the run can be repeated from the file; arrays are copied beside it, and
    paths of idx files made absolute."""
    sections = {name: dict(values) for name, values in config.raw.items()}
    if "arrays" in sections.get("task", {}):
        task = config.task()
        np.savez(path.with_name("data.npz"), **{n: getattr(task, n) for n in ARRAYS if getattr(task, n) is not None})
        sections["task"]["arrays"] = "data.npz"
    if "idx" in sections.get("task", {}):
        sections["task"]["idx"] = placed(config.base.absolute(), sections["task"]["idx"])
    path.write_text(to_toml(sections))


def to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML of sections of plain values."""
    return "\n".join(
        f"[{name}]\n" + "".join(f"{_key(key)} = {_toml(value)}\n" for key, value in values.items()) for name, values in sections.items()
    )


@contextmanager
def inside(*sections: str) -> Iterator[None]:
    """Errors raised within name the section too: the first of ``sections`` that has the key."""
    try:
        yield
    except TPError as error:
        key = re.split(r"[\[. ]", error.field)[0]
        home = next((s for s in sections if key in SCHEMA.get(s, {key})), None)
        if home is None or error.field.startswith(home):
            raise
        raise type(error)(f"{home}.{error.field}", error.got, error.expected, error.hint) from error


# reading one value --------------------------------------------------------------------------------------------------


def _name_of(allowed: Sequence[str] | Mapping[str, Any]) -> Reader:
    return lambda field, value: checks.one_of(field, value, allowed)


def _whole(minimum: int) -> Reader:
    return lambda field, value: checks.integer(field, value, minimum=minimum)


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(field, value, "text in quotes", f'{field.split(".")[-1]} = "..."')
    return value


def _wholes(minimum: int) -> Reader:
    def reader(field: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or not value:
            raise InputError(field, value, "a list of integers", f"{field.split('.')[-1]} = [{minimum}, {minimum + 1}]")
        return tuple(checks.integer(f"{field}[{k}]", v, minimum=minimum) for k, v in enumerate(value))

    return reader


def _seeds(field: str, value: Any) -> Any:
    return _wholes(0)(field, value) if isinstance(value, list) else checks.integer(field, value, minimum=1)


def _samples(field: str, value: Any) -> int:
    samples = checks.integer(field, value, minimum=64)
    if samples % 2:
        raise InputError(field, value, "an even number", "sites come in antithetic pairs")
    return samples


def _share(field: str, value: Any) -> float:
    share = checks.number(field, value, above=0.0)
    if share >= 1.0:
        raise InputError(field, value, "a number above 0 and below 1", "0.01 is one percent")
    return share


def _bias(field: str, value: Any) -> Any:
    return value if isinstance(value, bool) else checks.number(field, value, minimum=0.0, hint="true, false, or the initial sigma_b")


def _rates(field: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {k: checks.number(f"{field}.{k}", v, minimum=0.0) for k, v in value.items()}
    if isinstance(value, list):
        return tuple(checks.number(f"{field}[{k}]", v, minimum=0.0) for k, v in enumerate(value))
    return checks.number(field, value, minimum=0.0)


def _momentum(field: str, value: Any) -> float:
    with inside(field.split(".")[0]):
        return check_momentum(value)


def _batches(field: str, value: Any) -> Batches:
    if not isinstance(value, dict) or "size" not in value:
        raise InputError(field, value, "a table with a size", "batches = { size = 50, seed = 0 }; without shuffling: shuffle = false")
    given = _read_keys(field, value, {"size": _whole(1), "seed": _whole(0), "shuffle": checks.flag})
    return Batches(given["size"], given.get("seed", 0) if given.get("shuffle", True) else None)


def _step_decay(field: str, value: Any) -> Schedule:
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(field, value, "steps and a factor", "step_decay = [100, 0.1]")
    return step_decay(*value)


def _schedule(field: str, value: Any) -> Schedule:
    """The product of the factors named in a table."""
    if not isinstance(value, dict) or not value:
        raise InputError(field, value, "a table of factors", "schedule = { warmup = 10, cosine = 0.0 }")
    with inside(field):
        readers: dict[str, Reader] = {"warmup": lambda f, v: warmup(v), "cosine": lambda f, v: cosine(v), "step_decay": _step_decay}
        return prod(_read_keys(field, value, readers).values(), start=CONSTANT)


def _triple(entry: Reader, names: tuple[str, ...] = CLASSES) -> Reader:
    def reader(field: str, value: Any) -> tuple[Any, ...]:
        values = value if isinstance(value, list) else [value] * 3
        if len(values) != 3:
            raise InputError(field, value, f"three entries ({', '.join(names)}), or one for all", 'for example [0, "1/2", 1]')
        return tuple(entry(f"{field}[{k}] ({names[k]})", v) for k, v in enumerate(values))

    return reader


_FRACTION = re.compile(r"[+-]?\d{1,9}(\s*/\s*\d{1,9})?|[+-]?\d{0,9}\.\d{1,9}", re.ASCII)


def _fraction(field: str, value: Any) -> sp.Expr:
    """An exact number: an integer, an exact decimal, or text such as "1/2"."""
    if isinstance(value, str):
        if not _FRACTION.fullmatch(value.strip()):
            raise InputError(field, value, 'a number or a fraction such as "1/2"', "symbols and formulas belong into Python")
        try:
            exact = Fraction(value.replace(" ", ""))
        except ZeroDivisionError as error:
            raise InputError(field, value, "a finite fraction", "the denominator is zero") from error
        return sp.Rational(exact.numerator, exact.denominator)
    number = checks.number(field, value, hint='write fractions as text: "1/3"')
    exact = Fraction(number).limit_denominator(64)
    if float(exact) != number:
        raise InputError(field, value, "an exact fraction", 'write fractions as text: "1/3"')
    return sp.Rational(exact.numerator, exact.denominator)


def _constant(field: str, value: Any) -> sp.Expr:
    """A positive number, a fraction, or the words 1/sqrt(D)."""
    if value == "1/sqrt(D)":
        return 1 / sp.sqrt(D)
    if isinstance(value, str):
        return _fraction(field, value)
    checks.number(field, value, minimum=0.0)
    return sp.sympify(value)


_SAMPLE = {"classes": _wholes(0), "points": _whole(1), "test": _whole(0), "seed": _whole(0)}
_DIGITS = "digits = { classes = [0, 1], points = 40, test = 100, seed = 0 }"


def _sample(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(field, value, "a table", _DIGITS.replace("digits", field.split(".")[-1]))
    return _read_keys(field, value, _SAMPLE)


def _idx(field: str, value: Any) -> dict[str, Any]:
    example = 'idx = { images = "x.gz", labels = "y.gz", points = 40 }'
    if not isinstance(value, dict):
        raise InputError(field, value, "a table", example)
    given = _read_keys(field, value, dict.fromkeys(FILES, _text) | _SAMPLE)
    for name in FILES[:2]:
        if name not in given:
            raise InputError(f"{field}.{name}", "no such key", "the path of an idx file", example)
    return given


SCHEMA: dict[str, dict[str, Reader]] = {
    "network": {"architecture": _name_of(ARCHITECTURES), "depth": _whole(1), "activation": _name_of(ACTIVATIONS)}
    | dict.fromkeys(("bias", "output_bias"), _bias),
    "parameterization": {"preset": _name_of(PRESETS), "name": _text}
    | dict.fromkeys("abc", _triple(_fraction))
    | {"output_bias": _triple(_fraction, ("a", "b", "c"))}
    | dict.fromkeys(("alpha", "sigma", "eta"), _triple(_constant)),
    "training": {
        "rule": _name_of(RULES),
        "lr": _rates,
        "time": lambda field, value: checks.number(field, value, above=0.0),
        "steps": _whole(1),
        "loss": _name_of(LOSSES),
        "momentum": _momentum,
        "weight_decay": lambda field, value: checks.number(field, value, minimum=0.0),
        "temperature": lambda field, value: checks.number(field, value, minimum=0.0),
        "batches": _batches,
        "schedule": _schedule,
    },
    "task": {"digits": _sample, "mnist": _sample, "idx": _idx, "arrays": _text},
    "solve": {
        "gamma0": lambda field, value: checks.number(field, value, minimum=0.0),
        "samples": _samples,
        "replicates": _whole(1),
        "seed": _whole(0),
        "method": _name_of(METHODS),
        "rtol": _share,
    },
    "simulate": {
        "widths": _wholes(1),
        "seeds": _seeds,
        "seed": _whole(0),
        "dtype": _name_of(("float64", "float32")),
        "centred": checks.flag,
        "times": lambda field, value: value if value == ENDS else _wholes(0)(field, value),
        "memory": lambda field, value: checks.number(field, value, above=0.0, hint="bytes"),
    },
    "output": {"folder": _text, "figure": _name_of(FORMATS), "solution": checks.flag},
}
"""Section -> key -> how it is read. Anything else is refused."""


def _checked(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    out = {}
    for name, values in table.items():
        if name not in SCHEMA:
            home = next((s for s, keys in SCHEMA.items() if name in keys), None)
            raise _unknown(name, "section", SCHEMA, f"{name} belongs into [{home}]" if home else "")
        if not isinstance(values, dict):
            raise InputError(name, values, f"a section [{name}]", f"write [{name}] on a line of its own, then its keys")
        out[name] = _read_keys(name, values, SCHEMA[name])
    return out


def _read_keys(section: str, values: Mapping[str, Any], keys: Mapping[str, Reader]) -> dict[str, Any]:
    for key in values:
        if key not in keys:
            home = next((s for s, others in SCHEMA.items() if key in others and section in SCHEMA), None)
            raise _unknown(f"{section}.{key}", "key", keys, f"{key} belongs into [{home}]" if home else "")
    return {key: keys[key](f"{section}.{key}", value) for key, value in values.items()}


def _unknown(field: str, what: str, allowed: Mapping[str, Any], hint: str) -> InputError:
    near = difflib.get_close_matches(field.split(".")[-1], list(allowed), n=1, cutoff=0.5)
    hint = hint or (f"did you mean {near[0]!r}?" if near else f"remove it, or check the spelling of the {what}")
    return InputError(field, f"an unknown {what}", "one of " + ", ".join(map(repr, allowed)), hint)


def _override(table: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    names = [n.strip() for n in path.split(".")]
    if not equals or not 2 <= len(names) <= 3 or not all(names):
        raise InputError("--set", text, "section.key=value", "for example --set training.steps=50")
    place: Any = table
    for k, name in enumerate(names[:-1]):
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise InputError("--set", text, f"a table at {'.'.join(names[: k + 1])}", "for example --set task.digits.points=20")
    place[names[-1]] = _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII) else json.dumps(name)
