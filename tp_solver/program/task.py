"""The data: training points, labels, and optional test points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.program.losses import CrossEntropy, Loss


@dataclass(frozen=True, eq=False)
class Task:
    """Inputs and labels.

    Args:
        X: training inputs, shape (P, D).
        y: labels, shape (P,) or (P, K).
        X_test: test inputs, shape (P_test, D), or None.
        y_test: test labels, shaped like y, or None.
        name: how it prints.

    Raises:
        InputError: for NaN, empty data, or sample counts that do not match.
    """

    X: Any
    y: Any
    X_test: Any = None
    y_test: Any = None
    name: str = "task"

    def __post_init__(self) -> None:
        X = checks.array("X", self.X, ndim=(2,), hint="X is (P, D): one row per data point")
        y = _labels("y", self.y, len(X))
        X_test = y_test = None
        if self.X_test is not None:
            X_test = checks.array("X_test", self.X_test, ndim=(2,), hint="X_test is (P_test, D)")
            if X_test.shape[1] != X.shape[1]:
                raise InputError("X_test", f"{X_test.shape[1]} columns", f"{X.shape[1]} columns, as X", "use the same features")
        if self.y_test is not None:
            if X_test is None:
                raise InputError("y_test", "labels without inputs", "X_test as well", "give X_test, or drop y_test")
            y_test = _labels("y_test", self.y_test, len(X_test))
            if y_test.shape[1:] != y.shape[1:]:
                raise InputError("y_test", f"shape {y_test.shape}", f"shape (P_test, ...) like y {y.shape}", "one column per output")
        for field, value in (("X", X), ("y", y), ("X_test", X_test), ("y_test", y_test)):
            if value is not None:
                value.setflags(write=False)
            object.__setattr__(self, field, value)

    @classmethod
    def digits(cls, classes: Sequence[int] = (0, 1), points: int = 40, test: int = 100, seed: int = 0) -> Task:
        """scikit-learn's bundled 8 x 8 handwritten digits, balanced over the classes.

        Inputs are centred by the training mean and scaled to |x|^2 = D = 64; two classes are labelled -1, +1 and more are
        one-hot.

        Args:
            classes: the digits to use, at least two different ones.
            points: number of training images.
            test: number of held-out images (0 for none).
            seed: which images.
        """
        if isinstance(classes, (int, str)) or not hasattr(classes, "__iter__"):
            raise InputError("classes", classes, "a sequence of digits", "classes=(0, 1)")
        chosen = tuple(checks.integer(f"classes[{k}]", c, minimum=0, maximum=9) for k, c in enumerate(classes))
        if len(set(chosen)) != len(chosen) or len(chosen) < 2:
            raise InputError("classes", chosen, "at least two different digits", "classes=(0, 1)")
        points = checks.integer("points", points, minimum=len(chosen))
        test = checks.integer("test", test, minimum=0)
        seed = checks.integer("seed", seed, minimum=0)
        from sklearn.datasets import load_digits  # slow to import, so only when needed

        images, digit = load_digits(return_X_y=True)
        rng = np.random.default_rng(seed)
        train_rows: list[np.ndarray] = []
        test_rows: list[np.ndarray] = []
        for k, c in enumerate(chosen):
            rows = rng.permutation(np.flatnonzero(digit == c))
            n, m = (total // len(chosen) + (k < total % len(chosen)) for total in (points, test))
            if n + m > len(rows):
                raise InputError("points + test", points + test, f"at most {len(rows)} images of digit {c}", "ask for fewer points")
            train_rows.append(rows[:n])
            test_rows.append(rows[n : n + m])
        train, held = rng.permutation(np.concatenate(train_rows)), rng.permutation(np.concatenate(test_rows))
        centre = images[train].mean(axis=0)

        def inputs(rows: np.ndarray) -> np.ndarray:
            z = images[rows] - centre
            return z * np.sqrt(z.shape[1]) / np.linalg.norm(z, axis=1, keepdims=True)

        def labels(rows: np.ndarray) -> np.ndarray:
            index = np.searchsorted(np.sort(chosen), digit[rows])
            order = np.argsort(np.argsort(chosen))
            index = np.argsort(order)[index]
            return 2.0 * index - 1.0 if len(chosen) == 2 else np.eye(len(chosen))[index]

        name = f"digits {'/'.join(map(str, chosen))}, {points} points, {test} test"
        if not test:
            return cls(inputs(train), labels(train), name=name)
        return cls(inputs(train), labels(train), inputs(held), labels(held), name=name)

    @property
    def P(self) -> int:
        """Number of training points."""
        return len(self.X)

    @property
    def D(self) -> int:
        """Input dimension."""
        return self.X.shape[1]

    def targets(self, loss: Loss) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels as the loss reads them, always with an output axis: (P, K), and the same for the test points or None."""
        y = loss.labels(self.y, "y")
        y = y.reshape(len(y), -1)
        if self.y_test is None:
            return y, None
        if isinstance(loss, CrossEntropy):
            y_test = loss.labels(self.y_test, "y_test", classes=y.shape[1] if self.y_test.max() < y.shape[1] else None)
        else:
            y_test = loss.labels(self.y_test, "y_test")
        y_test = y_test.reshape(len(y_test), -1)
        if y_test.shape[1] != y.shape[1]:
            raise InputError("y_test", f"{y_test.shape[1]} classes", f"{y.shape[1]} classes, as y", "training labels must show every class")
        return y, y_test

    def scalar(self, loss: Loss) -> bool:
        """Whether predictions have no output axis: labels of shape (P,) and a loss with one output."""
        return self.y.ndim == 1 and not isinstance(loss, CrossEntropy)

    def __str__(self) -> str:
        test = "" if self.X_test is None else f", {len(self.X_test)} test points"
        return f"{self.name}: {self.P} points in {self.D} dimensions{test}"


def _labels(field: str, value: Any, count: int) -> np.ndarray:
    y = checks.array(field, value, ndim=(1, 2), hint=f"{field} is (P,) or (P, K)")
    if len(y) != count:
        raise InputError(field, f"{len(y)} labels", f"{count}, one per row of the inputs", "check that inputs and labels belong together")
    return y
