"""Positions of a grid (pixels of an image, sites of a sequence) and the windows through which layers look at them.

A variable over a grid has one column per data point and position. A window says which positions each output position sees;
it knows nothing of the numbers that meet there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError, ProgramError

Grid = tuple[int, ...]
"""Number of positions along each axis; () for programs without positions."""


class Padding(Enum):
    """What a window meets beyond the edge of the grid."""

    CIRCULAR = "circular"
    """The opposite edge."""
    ZERO = "zero"
    """Zeros, as many as keep ceil(positions / stride) outputs; they count in the normalisation."""
    VALID = "valid"
    """Nothing: only windows that lie inside the grid."""


@dataclass(frozen=True)
class Window:
    """From a grid to a grid: output position i sees the input positions stride i + offset - before, offset < size, per axis.

    Attributes:
        inputs: the grid that the window looks at.
        size, stride: per axis, at least 1.
        padding: see :class:`Padding`.
        shared: whether one matrix serves all output positions (convolution) or each has its own (locally connected).
    """

    inputs: Grid
    size: Grid
    stride: Grid
    padding: Padding
    shared: bool = True

    def __post_init__(self) -> None:
        for axis, (n, k, s) in enumerate(zip(self.inputs, self.size, self.stride, strict=True)):
            if k > n and self.padding is not Padding.ZERO:
                raise ProgramError(
                    f"window axis {axis}",
                    f"size {k} on {n} positions",
                    f"a size of at most {n}",
                    "take a smaller window, or pool less before",
                )
            if self.padding is Padding.CIRCULAR and n % s:
                raise ProgramError(
                    f"window axis {axis}", f"stride {s} around a circle of {n} positions", f"a stride that divides {n}",
                    "use padding='zero' or another grid",
                )  # fmt: skip

    @property
    def outputs(self) -> Grid:
        """The grid of output positions."""
        valid = self.padding is Padding.VALID
        return tuple((n - k) // s + 1 if valid else -(-n // s) for n, k, s in zip(self.inputs, self.size, self.stride, strict=True))

    @property
    def before(self) -> Grid:
        """Positions beyond the lower edge that the first window covers, per axis; an odd total leaves the larger part above."""
        if self.padding is Padding.VALID:
            return (0,) * len(self.inputs)
        return tuple(max((m - 1) * s + k - n, 0) // 2 for n, m, k, s in zip(self.inputs, self.outputs, self.size, self.stride, strict=True))

    @property
    def count(self) -> int:
        """Number of positions in a window, those beyond the edge included."""
        return prod(self.size)

    @property
    def trivial(self) -> bool:
        """Whether every output sees just the input of its own position, through one matrix."""
        return self.shared and self.count == 1 and self.outputs == self.inputs

    @cached_property
    def table(self) -> np.ndarray:
        """Flat input position per output position and offset, (outputs, offsets), row-major; -1 beyond the edge."""
        flat = np.zeros((1, 1), int)
        for n, m, k, s, low in zip(self.inputs, self.outputs, self.size, self.stride, self.before, strict=True):
            at = s * np.arange(m)[:, None] + np.arange(k) - low
            at = at % n if self.padding is Padding.CIRCULAR else np.where((at < 0) | (at >= n), -1, at)
            outside = (flat[:, None, :, None] < 0) | (at[None, :, None, :] < 0)
            joint = np.where(outside, -1, flat[:, None, :, None] * n + at[None, :, None, :])
            flat = joint.reshape(flat.shape[0] * m, flat.shape[1] * k)
        return flat

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        stride = "" if set(self.stride) <= {1} else f", stride {'x'.join(map(str, self.stride))}"
        return f"{size} window{stride}, {self.padding.value}{'' if self.shared else ', one matrix per position'}"


def window_over(grid: Grid, what: str, size: Any, stride: Any, padding: Any, shared: bool = True) -> Window:
    """A window from what a user gives: numbers for all axes or one number per axis.

    Raises:
        InputError: for sizes that are no positive integers, or as many as the grid has not axes.
        ProgramError: for a variable without positions, or a window that does not fit.
    """
    if not grid:
        raise ProgramError(
            what, "a variable without positions", "one over a grid", "give the grid of the inputs: tp.program(f, grid=(16, 16))"
        )
    chosen = Padding(checks.one_of("padding", padding, [p.value for p in Padding]))
    return Window(grid, _per_axis("size", size, grid), _per_axis("stride", stride, grid), chosen, shared)


def everything(grid: Grid) -> Window:
    """The window that sees all positions at once."""
    return Window(grid, grid, (1,) * len(grid), Padding.VALID)


def grid_of(value: Any) -> Grid:
    """A grid from a number or a sequence of numbers of positions."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(checks.integer(f"grid[{k}]", n, minimum=1) for k, n in enumerate(value))
    return (checks.integer("grid", value, minimum=1, hint="grid=(16, 16) for images, grid=(16,) for sequences, () for none"),)


def channels_of(grid: Grid, dimension: int) -> int:
    """Channels at each position of inputs of a dimension.

    Raises:
        InputError: if the positions do not divide the dimension.
    """
    if dimension % prod(grid):
        raise InputError(
            "X", f"inputs of dimension {dimension}", f"a multiple of the {prod(grid)} positions of the grid {grid}",
            "an input lists all channels of the first position, then those of the next, row by row",
        )  # fmt: skip
    return dimension // prod(grid)


def _per_axis(field: str, value: Any, grid: Grid) -> Grid:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != len(grid):
            raise InputError(field, value, f"one integer, or {len(grid)} of them", f"the grid is {grid}")
        return tuple(checks.integer(f"{field}[{k}]", n, minimum=1) for k, n in enumerate(value))
    return (checks.integer(field, value, minimum=1),) * len(grid)
