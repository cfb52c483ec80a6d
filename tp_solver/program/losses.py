"""Losses, each one symbolic expression per data point; gradients come from sympy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import sympy as sp

from tp_solver.errors import InputError
from tp_solver.symbols.functions import logsumexp, softplus


class Loss(Protocol):
    """A loss per data point: an expression in outputs and labels, and how raw labels become an array (P, K)."""

    @property
    def name(self) -> str:
        """How it prints."""
        ...

    @property
    def curvature(self) -> float:
        """The largest eigenvalue that the Hessian of l in the outputs can have."""
        ...

    def expression(self, f: tuple[sp.Symbol, ...], y: tuple[sp.Symbol, ...]) -> sp.Expr:
        """l(f, y) for K outputs."""
        ...

    def labels(self, y: np.ndarray, field: str) -> np.ndarray:
        """Labels as floats, shape (P,) for a scalar output or (P, K)."""
        ...


@dataclass(frozen=True)
class SquaredError:
    """l = |f - y|^2 / 2 for real labels, shape (P,) or (P, K)."""

    name: str = "squared error"

    @property
    def curvature(self) -> float:
        """One everywhere."""
        return 1.0

    def expression(self, f: tuple[sp.Symbol, ...], y: tuple[sp.Symbol, ...]) -> sp.Expr:
        """sum_k (f_k - y_k)^2 / 2."""
        return sp.Add(*((a - b) ** 2 for a, b in zip(f, y, strict=True))) / 2

    def labels(self, y: np.ndarray, field: str) -> np.ndarray:
        """Any real labels."""
        return y


@dataclass(frozen=True)
class Logistic:
    """l = log(1 + exp(-y f)) for labels -1, +1, shape (P,)."""

    name: str = "logistic"

    @property
    def curvature(self) -> float:
        """A quarter, reached at f = 0."""
        return 0.25

    def expression(self, f: tuple[sp.Symbol, ...], y: tuple[sp.Symbol, ...]) -> sp.Expr:
        """log(1 + exp(-y f)), stable for every f."""
        return sp.Add(*(softplus(-b * a) for a, b in zip(f, y, strict=True)))

    def labels(self, y: np.ndarray, field: str) -> np.ndarray:
        """Labels -1 or +1; anything else is an InputError that names the first one."""
        bad = ~np.isin(y, (-1.0, 1.0))
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InputError(field, f"{y[where]:g} at {where}", "labels -1 or +1 for the logistic loss", "map 0/1 labels with 2 * y - 1")
        return y


@dataclass(frozen=True)
class CrossEntropy:
    """l = logsumexp(f) - y.f for labels given as integers (P,) or one-hot rows (P, K)."""

    name: str = "cross-entropy"

    @property
    def curvature(self) -> float:
        """A half, between two classes of probability one half (diag(p) - p p^T; Boehning 1992)."""
        return 0.5

    def expression(self, f: tuple[sp.Symbol, ...], y: tuple[sp.Symbol, ...]) -> sp.Expr:
        """logsumexp(f) - sum_k y_k f_k."""
        return logsumexp(*f) - sp.Add(*(a * b for a, b in zip(f, y, strict=True)))

    def labels(self, y: np.ndarray, field: str, classes: int | None = None) -> np.ndarray:
        """One-hot rows (P, K) from class numbers, or distributions over the classes as given; InputError for others."""
        if y.ndim == 1:
            if (y < 0).any() or (y != np.round(y)).any():
                raise InputError(
                    field, "labels that are no class numbers", "integers 0..K-1 or one-hot rows", "encode the classes as 0, 1, 2, ..."
                )
            return np.eye(classes or max(2, int(y.max()) + 1))[y.astype(int)]
        if (y < 0).any() or not np.allclose(y.sum(axis=1), 1.0, atol=1e-9):
            raise InputError(field, "rows that do not sum to one", "one-hot rows", "each row is a distribution over the classes")
        return y


LOSSES: dict[str, type] = {"squared_error": SquaredError, "logistic": Logistic, "cross_entropy": CrossEntropy}


def gradient(loss: Loss, outputs: int) -> tuple[tuple[sp.Symbol, ...], tuple[sp.Symbol, ...], sp.Expr, tuple[sp.Expr, ...]]:
    """Symbols f_k and y_k, the loss per data point, and its derivatives with respect to each f_k."""
    f = sp.symbols(f"f_1:{outputs + 1}", real=True)
    y = sp.symbols(f"y_1:{outputs + 1}", real=True)
    value = loss.expression(f, y)
    return f, y, value, tuple(sp.diff(value, k) for k in f)
