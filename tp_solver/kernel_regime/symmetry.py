"""What transformations of the inputs a kernel does not see, and what that is worth in samples (Xiao and Pennington, arXiv:2207.04612)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.compute import KernelSet, kernels
from tp_solver.kernel_regime.gaussian_process import factorise
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.positions import channels_of
from tp_solver.program.statements import Program

SEEN = 1e-9
"""Largest relative change of a kernel that counts as none: rounding, and the snap of correlations to one."""


@dataclass(frozen=True)
class Transformation:
    """A linear map of the inputs, x -> x M^T.

    Attributes:
        name: how it prints.
        matrix: M, (D, D).
    """

    name: str
    matrix: np.ndarray


def rotation(dimension: int, seed: int = 0) -> Transformation:
    """A random rotation of whole inputs, an element of O(D)."""
    return Transformation("rotation of the input", _orthogonal(np.random.default_rng(seed), dimension))


def rotation_of_channels(grid: Sequence[int], channels: int, seed: int = 0) -> Transformation:
    """One random rotation of the channels, the same at all positions."""
    turn = _orthogonal(np.random.default_rng(seed), channels)
    return Transformation("rotation of channels, the same at all positions", np.kron(np.eye(int(np.prod(grid))), turn))


def rotations_of_channels(grid: Sequence[int], channels: int, seed: int = 0) -> Transformation:
    """A random rotation of the channels of every position, each its own."""
    rng, count = np.random.default_rng(seed), int(np.prod(grid))
    matrix = np.zeros((count * channels, count * channels))
    for k in range(count):
        at = slice(k * channels, (k + 1) * channels)
        matrix[at, at] = _orthogonal(rng, channels)
    return Transformation("rotations of channels, one per position", matrix)


def translation(grid: Sequence[int], channels: int, shift: Sequence[int] | None = None) -> Transformation:
    """A shift around the grid, by one position along the first axis unless told otherwise."""
    grid = tuple(grid)
    by = (1,) + (0,) * (len(grid) - 1) if shift is None else tuple(shift)
    order = np.roll(np.arange(int(np.prod(grid))).reshape(grid), by, tuple(range(len(grid)))).ravel()
    return Transformation(f"translation by {', '.join(map(str, by))}", np.kron(np.eye(len(order))[order], np.eye(channels)))


def permutation_of_positions(grid: Sequence[int], channels: int, seed: int = 0) -> Transformation:
    """A random permutation of the positions."""
    order = np.random.default_rng(seed).permutation(int(np.prod(tuple(grid))))
    return Transformation("permutation of positions", np.kron(np.eye(len(order))[order], np.eye(channels)))


@dataclass(frozen=True)
class SymmetryReport:
    """How much kernels change under transformations, relative to their largest entry.

    Attributes:
        joint: name -> largest change of K(gx, gx') against K(x, x').
        separate: name -> largest change of K(gx, x') against K(x, x').
    """

    program: str
    joint: Mapping[str, float]
    separate: Mapping[str, float]

    def invariant(self, name: str) -> bool:
        """Whether the kernel does not change when both arguments are transformed.

        Raises:
            InputError: for a transformation that was not tried.
        """
        return self.joint[checks.one_of("name", name, self.joint)] <= SEEN

    def __str__(self) -> str:
        lines = [f"symmetries of the tangent kernel of {self.program}", f"  {'transformation':<48} {'of both':>16} {'of one':>16}"]
        for name in self.joint:
            cells = [f"{'invariant' if v <= SEEN else f'changes {v:.2g}':>16}" for v in (self.joint[name], self.separate[name])]
            lines.append(f"  {name:<48} {' '.join(cells)}")
        return "\n".join(lines)

    __repr__ = __str__


def kernel_symmetry(
    net: Program, parameterization: Parameterization, X: Any, transformations: Sequence[Transformation] | None = None
) -> SymmetryReport:
    """Try transformations of the inputs on the tangent kernel of a program.

    Args:
        X: (n, D) inputs in general position.
        transformations: None tries rotations of the input and, over a grid, rotations of channels (one, or one per position),
            a translation and a permutation of positions.

    Raises:
        InputError: for malformed inputs or transformations. ProgramError, ParameterizationError: as :func:`tp_solver.kernels`.
    """
    checks.instance("net", net, Program, "a program such as tp.cnn(2, tp.relu, grid=(6, 6))")
    X = checks.array("X", X, ndim=(2,), hint="X is (n, D)")
    channels = channels_of(net.grid, X.shape[1])
    chosen = _usual(net, channels) if transformations is None else checks.items("transformations", transformations, "transformations")
    found = kernels(net, parameterization, X).ntk
    crossed = kernels(net, parameterization, X, X).ntk
    joint, separate = {}, {}
    for g in chosen:
        checks.instance(
            "transformations", g, Transformation, "Transformation records", "tp_solver.kernel_regime.symmetry has the usual ones"
        )
        matrix = checks.array(g.name, g.matrix, ndim=(2,))
        if matrix.shape != (X.shape[1],) * 2:
            raise InputError(g.name, f"a matrix of shape {matrix.shape}", f"shape {(X.shape[1],) * 2}", "it acts on whole inputs")
        moved = X @ matrix.T
        joint[g.name] = _change(kernels(net, parameterization, moved).ntk, found)
        separate[g.name] = _change(kernels(net, parameterization, moved, X).ntk, crossed)
    return SymmetryReport(net.name, joint, separate)


@dataclass(frozen=True)
class LearningCurve:
    """Test error of kernel regression against the number of samples.

    Attributes:
        samples: numbers of training points, (S,).
        nmse: mean squared test error over the variance of the test targets, mean over draws of the training points, (S,).
        stderr: its standard error over draws, (S,); NaN for a single draw.
    """

    name: str
    samples: np.ndarray
    nmse: np.ndarray
    stderr: np.ndarray

    def __str__(self) -> str:
        lines = [f"learning curve of {self.name}", f"  {'samples':>8} {'test NMSE':>10} {'s.e.':>8}"]
        lines += [f"  {n:>8} {e:>10.4f} {s:>8.4f}" for n, e, s in zip(self.samples, self.nmse, self.stderr, strict=True)]
        return "\n".join(lines)

    __repr__ = __str__


def learning_curve(
    net: Program,
    parameterization: Parameterization,
    X: Any,
    y: Any,
    X_test: Any,
    y_test: Any,
    samples: Sequence[int],
    draws: int = 1,
    ridge: float = 0.0,
    seed: int = 0,
) -> LearningCurve:
    """Kernel regression with the tangent kernel on ever more training points: the trained infinitely wide net, at f(0) = 0.

    Args:
        X, y: the pool of training points, (n, D) and (n,).
        X_test, y_test: test points, (m, D) and (m,), targets not all equal.
        samples: numbers of training points, each at most n; the first points of a random order per draw.
        draws: number of random orders; the first is that of the pool itself.
        ridge: added to the diagonal, as a share of its mean.
        seed: of the orders.

    Raises:
        InputError: for malformed data, more samples than points, or labels that a singular kernel cannot fit.
    """
    X, y = checks.array("X", X, ndim=(2,)), checks.array("y", y, ndim=(1,))
    X_test, y_test = checks.array("X_test", X_test, ndim=(2,)), checks.array("y_test", y_test, ndim=(1,))
    if len(X) != len(y) or len(X_test) != len(y_test):
        raise InputError("y", f"{len(y)} and {len(y_test)} targets", f"{len(X)} and {len(X_test)}", "one target per point")
    if not np.ptp(y_test) > 0:
        raise InputError("y_test", "targets that are all equal", "targets that vary", "errors are measured in units of their variance")
    wanted = checks.items("samples", samples, "integers", "samples=(100, 400, 1600)")
    counts = [checks.integer("samples", n, minimum=1, maximum=len(X), hint="at most as many as there are points") for n in wanted]
    ridge = checks.number("ridge", ridge, minimum=0.0)
    draws, rng = checks.integer("draws", draws, minimum=1), np.random.default_rng(checks.integer("seed", seed, minimum=0))
    train: KernelSet = kernels(net, parameterization, X)
    test: KernelSet = kernels(net, parameterization, X_test, X)
    variance = float(np.var(y_test))
    errors = np.empty((draws, len(counts)))
    for draw in range(draws):
        order = np.arange(len(X)) if draw == 0 else rng.permutation(len(X))
        for k, n in enumerate(counts):
            chosen = order[:n]
            f = test.ntk[:, chosen] @ _solved(train.ntk[np.ix_(chosen, chosen)], y[chosen], ridge)
            errors[draw, k] = np.mean((f - y_test) ** 2) / variance
    spread = np.std(errors, axis=0, ddof=1) / np.sqrt(draws) if draws > 1 else np.full(len(counts), np.nan)
    return LearningCurve(net.name, np.array(counts), errors.mean(axis=0), spread)


def _solved(kernel: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    factor = factorise(kernel, ridge * float(np.trace(kernel)) / len(kernel))
    factor.require_in_range("y", y[:, None])
    return factor.solve(y[:, None])[:, 0]


def _orthogonal(rng: np.random.Generator, n: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return q * np.sign(np.diag(r))


def _change(moved: np.ndarray, still: np.ndarray) -> float:
    return float(np.max(np.abs(moved - still)) / np.max(np.abs(still)))


def _usual(net: Program, channels: int) -> tuple[Transformation, ...]:
    whole = rotation(channels * int(np.prod(net.grid or (1,))))
    if not net.grid:
        return (whole,)
    at = (net.grid, channels)
    return (whole, rotation_of_channels(*at), rotations_of_channels(*at), translation(*at), permutation_of_positions(*at))
