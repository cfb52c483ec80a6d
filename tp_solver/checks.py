"""Validation of user input: each check returns the clean value or raises an InputError with a hint."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import numpy as np

from tp_solver.errors import InputError

T = TypeVar("T")

FIGURE_FORMATS = ("png", "pdf", "svg")


def number(
    field: str,
    value: Any,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    hint: str = "",
) -> float:
    """A finite real number within bounds (``minimum`` inclusive, ``above`` exclusive)."""
    allowed = "a finite number"
    if minimum is not None:
        allowed += f" >= {minimum:g}"
    if above is not None:
        allowed += f" > {above:g}"
    if maximum is not None:
        allowed += f" and <= {maximum:g}" if (minimum, above) != (None, None) else f" <= {maximum:g}"
    # kind f, i, u: numpy and jax scalars, but no complex numbers, whose float() drops the imaginary part
    scalar = isinstance(value, numbers.Real) or (getattr(value, "ndim", None) == 0 and getattr(value.dtype, "kind", "") in "fiu")
    if isinstance(value, (bool, np.bool_)) or not scalar:
        raise InputError(field, value, allowed, hint or f"give {field} as a plain number")
    try:
        x = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(field, value, allowed, hint or f"give {field} as a plain number") from error
    except OverflowError as error:
        raise InputError(field, "an integer beyond float64", allowed, hint or f"choose {allowed}") from error
    bad = not math.isfinite(x)
    bad |= minimum is not None and x < minimum
    bad |= above is not None and x <= above
    bad |= maximum is not None and x > maximum
    if bad:
        raise InputError(field, value, allowed, hint or f"choose {allowed}")
    return x


def integer(field: str, value: Any, *, minimum: int, maximum: int | None = None, hint: str = "") -> int:
    """An integer within inclusive bounds; floats with an integral value are refused, as they hide mistakes."""
    allowed = f"an integer >= {minimum}" + ("" if maximum is None else f" and <= {maximum}")
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Integral, np.integer)):
        raise InputError(field, value, allowed, hint or f"write {field} without a decimal point, for example {minimum}")
    n = int(value)
    if n < minimum or (maximum is not None and n > maximum):
        raise InputError(field, value, allowed, hint or f"choose {allowed}")
    return n


def flag(field: str, value: Any, hint: str = "") -> bool:
    """A true or false value."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(field, value, "True or False", hint or "numbers and strings are not accepted here")
    return bool(value)


def array(field: str, value: Any, *, ndim: Sequence[int], hint: str = "") -> np.ndarray:
    """A finite, non-empty float64 array with one of the given numbers of axes."""
    shapes = " or ".join(str(n) for n in ndim)
    allowed = f"a finite array with {shapes} axes"
    try:
        out = np.asarray(value)
        if out.dtype.kind not in "biuf":
            raise TypeError(f"dtype {out.dtype}")
        out = out.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(field, value, allowed, hint or "give real numbers, all rows of equal length") from error
    if out.ndim not in ndim:
        raise InputError(field, f"an array of shape {out.shape}", allowed, hint or "one row per data point")
    if out.size == 0:
        raise InputError(field, f"an empty array of shape {out.shape}", allowed, hint or "give at least one data point")
    if not np.all(np.isfinite(out)):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(out))[0])
        raise InputError(field, f"a non-finite entry at {where}", allowed, hint or "remove or fill the missing values")
    return out


def items(field: str, value: Any, kind: str, hint: str = "") -> tuple[Any, ...]:
    """The entries of a sequence that is not empty; each is still to be checked."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(field, value, f"a sequence of {kind}", hint or "put it in a list")
    out = tuple(value)
    if not out:
        raise InputError(field, "an empty sequence", f"a sequence of {kind}", hint or "give at least one")
    return out


def one_of(field: str, value: Any, allowed: Iterable[str], hint: str = "") -> str:
    """A name from a closed list; the hint names the closest one."""
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = hint or (f"did you mean {near[0]!r}?" if near else "names are case-sensitive")
    raise InputError(field, value, "one of " + ", ".join(repr(n) for n in names), hint)


def instance(field: str, value: Any, kinds: type[T] | tuple[type[T], ...], expected: str, hint: str = "") -> T:
    """An instance of the given class, with a special word for a class given in place of an instance."""
    if isinstance(value, kinds):
        return value
    kinds_tuple = kinds if isinstance(kinds, tuple) else (kinds,)
    if isinstance(value, type) and issubclass(value, kinds_tuple):
        raise InputError(field, f"the class {value.__name__}", expected, f"call it: {value.__name__}(...)")
    if isinstance(value, FunctionType) and value.__module__.startswith("tp_solver"):
        raise InputError(field, f"the function {value.__name__}", expected, f"call it: {value.__name__}(...)")
    raise InputError(field, value, expected, hint or f"a {type(value).__name__} does not fit here")


def figure_path(value: Any, field: str = "path") -> Path:
    """A file in a folder that exists, whose suffix is a format of figures."""
    if not isinstance(value, (str, Path)):
        raise InputError(field, value, "the path of a file", 'for example "figure.png"')
    target = Path(value)
    one_of(field, target.suffix.lower(), [f".{name}" for name in FIGURE_FORMATS])
    if not target.parent.is_dir():
        raise InputError(field, str(target), "a file in an existing folder", f"create {target.parent} first")
    return target
