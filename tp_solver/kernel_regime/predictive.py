"""Gaussian predictions on test points: the record that every method of uncertainty returns, and several of them side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.gaussian_process import Factor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 12
"""Test points that a printed prediction lists."""


@dataclass(frozen=True, eq=False, repr=False)
class Predictive:
    """A Gaussian prediction on n test points. Prints as a table, draws with :meth:`plot`.

    Attributes:
        name: the method, with what it was given.
        meaning: whether it is the posterior of a prior, and of which.
        mean: (n,) or (n, K), like the labels.
        covariance: of the function at the test points (without noise), the same for every output, (n, n).
        factor: the linear system that was solved, with its ``rank`` and ``condition_number``; None where none was.
    """

    name: str
    meaning: str
    mean: np.ndarray
    covariance: np.ndarray
    factor: Factor | None = None

    @property
    def variance(self) -> np.ndarray:
        """(n,), the same for every output."""
        return self.covariance.diagonal()

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, (n,)."""
        return np.sqrt(self.variance)

    def interval(self, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of central intervals, each shaped like ``mean``.

        Raises:
            InputError: for a coverage outside (0, 1).
        """
        coverage = checks.number("coverage", coverage, above=0.0)
        if coverage >= 1:
            raise InputError("coverage", coverage, "a probability below 1", "0.95 for 95 %")
        half = ndtri(0.5 + coverage / 2) * self.std.reshape(-1, *(1,) * (self.mean.ndim - 1))
        return self.mean - half, self.mean + half

    def plot(self, x: Any, path: str | Path | None = None, X: Any = None, y: Any = None) -> Figure:
        """Mean with bands of one and two standard deviations against a coordinate of the test points.

        Args:
            x: coordinate of the test points, (n,), e.g. the input itself where D = 1.
            path: where to write the figure (png, pdf, svg); None: not at all.
            X, y: coordinate (P,) and labels (P,) or (P, K) of the training points, drawn as dots.

        Raises:
            InputError: for arrays that do not match, or a path whose folder does not exist.
        """
        from matplotlib.figure import Figure

        x = _coordinate("x", x, len(self.mean))
        order, columns = np.argsort(x), self.mean.reshape(len(self.mean), -1)
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        ax = figure.subplots()
        for k, column in enumerate(columns.T):
            line = ax.plot(x[order], column[order], color="black" if columns.shape[1] == 1 else f"C{k}", linewidth=1.4, zorder=3)[0]
            for width in (1, 2):
                low, high = (column[order] + sign * width * self.std[order] for sign in (-1, 1))
                ax.fill_between(x[order], low, high, color=line.get_color(), alpha=0.14, linewidth=0)
        if X is not None and y is not None:
            dots = checks.array("y", y, ndim=(1, 2), hint="y is (P,) or (P, K)")
            at = _coordinate("X", X, len(dots))
            for k, column in enumerate(dots.reshape(len(dots), -1).T):
                ax.plot(at, column, "o", color="black" if columns.shape[1] == 1 else f"C{k}", markersize=4, zorder=4)
        ax.set(xlabel="$x$", ylabel="$f(x)$", title=self.name)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.01)
        if path is not None:
            figure.savefig(checks.figure_path(path), dpi=200)
        return figure

    def __str__(self) -> str:
        columns = self.mean.reshape(len(self.mean), -1)
        outputs = columns.shape[1]
        lines = [f"{self.name}: {len(columns)} test point{'s' * (len(columns) > 1)}, {outputs} output{'s' * (outputs > 1)}", self.meaning]
        if self.factor is not None:
            rank = "" if self.factor.basis is None else f", rank {self.factor.rank} of {self.factor.points}{self.factor.why}"
            lines.append(f"condition number {self.factor.condition_number:.1e}{rank}")
        heads = ["mean"] if outputs == 1 else [f"mean {k}" for k in range(min(outputs, 5))]
        lines.append(f"{'point':>6} {'std. dev.':>11}" + "".join(f" {h:>11}" for h in heads))
        for i in range(min(len(columns), SHOWN)):
            lines.append(f"{i:>6} {self.std[i]:>11.4g}" + "".join(f" {v:>11.4g}" for v in columns[i, : len(heads)]))
        if len(columns) > SHOWN or outputs > len(heads):
            lines.append("   ... (mean, covariance: the arrays)")
        return "\n".join(lines)

    __repr__ = __str__


def _coordinate(field: str, value: Any, count: int) -> np.ndarray:
    out = checks.array(field, value, ndim=(1, 2), hint=f"{field} is one number per point")
    if out.size != count:
        raise InputError(field, f"shape {out.shape}", f"({count},): one number per point", "choose one column of the inputs")
    return out.reshape(-1)


@dataclass(frozen=True, eq=False, repr=False)
class UncertaintyTable:
    """Several predictions of the same test points; :func:`compare_uncertainties` makes one. Prints as a table.

    Attributes:
        predictions: in the order of the table.
    """

    predictions: tuple[Predictive, ...]

    def __iter__(self) -> Iterator[Predictive]:
        return iter(self.predictions)

    def __str__(self) -> str:
        first = self.predictions[0]
        width = max(len(p.name) for p in self.predictions)
        lines = [
            f"variance at {len(first.mean)} test points, and its ratio to that of the first row where that is not zero",
            f"{'':{width}} {'mean':>10} {'largest':>10} {'mean ratio':>11} {'lowest':>8} {'highest':>8}",
        ]
        # at training points all that is left is rounding
        known = first.variance > 1e-10 * first.variance.max()
        for p in self.predictions:
            ratio = p.variance[known] / first.variance[known] if known.any() else np.full(1, np.nan)
            values = f"{p.variance.mean():>10.4g} {p.variance.max():>10.4g} {ratio.mean():>11.3f} {ratio.min():>8.3f} {ratio.max():>8.3f}"
            lines.append(f"{p.name:{width}} {values}  {p.meaning}")
        return "\n".join(lines)

    __repr__ = __str__
