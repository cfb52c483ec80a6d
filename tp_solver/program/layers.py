"""Layers over a grid of positions: convolutions, locally connected and dense layers, pooling."""

from __future__ import annotations

from typing import Any

from tp_solver.errors import ProgramError
from tp_solver.program.positions import everything, window_over
from tp_solver.program.tracing import Vector, Weight


def conv(weight: Weight, x: Vector, size: Any, stride: Any = 1, padding: str = "circular") -> Vector:
    """A convolution: at position i, the sum over a window of A offsets of ``W_a x_(i + a)``, over the square root of A.

    Args:
        weight: an input, hidden or readout matrix; it has one block W_a per offset.
        x: a vector over a grid of positions.
        size: positions of the window, for all axes or one per axis.
        stride: input positions per output position, likewise.
        padding: beyond the edge, "circular" (the opposite edge), "zero", or "valid" (windows inside the grid only).

    Raises:
        InputError, ProgramError: for a vector without positions, or a window that does not fit.

    Example::

        tp.program(lambda x: w @ tp.global_pool(tp.relu(tp.conv(W0, x, 3))), "cnn", grid=(16, 16))
    """
    return _windowed("conv", weight, x, size, stride, padding, True)


def local(weight: Weight, x: Vector, size: Any, stride: Any = 1, padding: str = "circular") -> Vector:
    """A locally connected layer: a convolution whose matrices differ from position to position (arguments as :func:`conv`)."""
    return _windowed("local", weight, x, size, stride, padding, False)


def dense(weight: Weight, x: Vector) -> Vector:
    """One matrix block per position, summed over positions (and over the root of their number): a layer of the flattened vector."""
    _traced("dense", weight, x)
    grid = x.trace.grids[x.name]
    return x.trace.product(weight, x, everything(grid) if grid else None)


def pool(x: Vector, size: Any, stride: Any = None, padding: str = "valid") -> Vector:
    """The mean over windows of positions, side by side unless ``stride`` says otherwise (arguments as :func:`conv`).

    Raises:
        InputError, ProgramError: for a vector without positions, or windows that do not end at the edge of the grid.
    """
    _traced("pool", None, x)
    window = window_over(x.trace.grids[x.name], "pool", size, size if stride is None else stride, padding)
    left = [(n - k) % s for n, k, s in zip(window.inputs, window.size, window.stride, strict=True)]
    if padding == "valid" and any(left):
        raise ProgramError(
            "pool", f"windows of {window.size} at stride {window.stride} on {window.inputs} positions", "windows that end at the edge",
            "choose a size that divides the positions",
        )  # fmt: skip
    return x.trace.pool(x, window)


def global_pool(x: Vector) -> Vector:
    """The mean over all positions."""
    _traced("global_pool", None, x)
    grid = x.trace.grids[x.name]
    if not grid:
        raise ProgramError(
            "global_pool", "a variable without positions", "one over a grid", "give the grid of the inputs: tp.program(f, grid=(16, 16))"
        )
    return x.trace.pool(x, everything(grid))


def pooled(weight: Weight, x: Vector) -> Vector:
    """A matrix acting on the mean over all positions: the readout of most convolutional networks."""
    _traced("pooled", weight, x)
    return weight @ global_pool(x)


def _windowed(what: str, weight: Weight, x: Vector, size: Any, stride: Any, padding: str, shared: bool) -> Vector:
    _traced(what, weight, x)
    return x.trace.product(weight, x, window_over(x.trace.grids[x.name], what, size, stride, padding, shared))


def _traced(what: str, weight: Weight | None, x: Vector) -> None:
    if weight is not None and not isinstance(weight, Weight):
        raise ProgramError(what, weight, "a matrix such as tp.hidden_matrix('W1')", f"tp.{what}(W, x, ...)")
    if not isinstance(x, Vector):
        raise ProgramError(what, x, "a traced vector", "use it inside the function given to tp.program")
