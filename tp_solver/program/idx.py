"""The idx format of MNIST and its relatives: a magic number, big-endian sizes, then the entries. Gzip is read as it is."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tp_solver.errors import FileFormatError, InputError

_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 24
_EXPECTED = "an idx file, plain or gzipped"
_HINT = "images are named like train-images-idx3-ubyte.gz, labels like train-labels-idx1-ubyte.gz"


@dataclass(frozen=True)
class Header:
    """What an idx file says of itself.

    Attributes:
        dtype: of the entries.
        shape: sizes of the axes, the samples first.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def read_header(field: str, path: Any, ndim: Sequence[int]) -> Header:
    """The header alone, so that files that do not belong together are refused before their entries are read.

    Args:
        field: the argument to be named in errors.
        path: a file, gzipped or not.
        ndim: the numbers of axes that make sense here.

    Raises:
        InputError: for no path, or a file that is missing or cannot be opened.
        FileFormatError: for a file that is no idx file, or has another number of axes.
    """
    with _opened(field, path) as stream:
        return _header(field, Path(path), stream, ndim)


def read_idx(field: str, path: Any, ndim: Sequence[int]) -> np.ndarray:
    """The entries, in the shape and the dtype that the file states (native byte order).

    Args:
        field: the argument to be named in errors.
        path: a file, gzipped or not.
        ndim: the numbers of axes that make sense here.

    Raises:
        InputError: for no path, or a file that is missing or cannot be opened.
        FileFormatError: for a file that is no idx file, has another number of axes, more or fewer entries than it states, or
            entries that are not finite.
    """
    with _opened(field, path) as stream:
        source = Path(path)
        header = _header(field, source, stream, ndim)
        size = prod(header.shape) * header.dtype.itemsize
        content = _read(stream, size + 1)
    if len(content) != size:
        found = "more than that" if len(content) > size else f"{len(content)}"
        got = f"{source.name}, which states {size} bytes of entries and has {found}"
        raise FileFormatError(field, got, _EXPECTED, "it is damaged or cut short: fetch it again")
    entries = np.frombuffer(content, header.dtype).reshape(header.shape).astype(header.dtype.newbyteorder("="))
    if not np.isfinite(entries).all():
        raise FileFormatError(field, f"{source.name}, which has entries that are not finite", "finite entries", "the file is damaged")
    return entries


@contextmanager
def _opened(field: str, path: Any) -> Iterator[BufferedIOBase]:
    """The bytes of a file, unpacked if they begin like gzip, whatever the file is called."""
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise InputError(field, path, "the path of an idx file", _HINT)
    try:
        with open(path, "rb") as raw:
            packed = raw.read(len(_GZIP)) == _GZIP
            raw.seek(0)
            yield gzip.GzipFile(fileobj=raw) if packed else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        got = f"{Path(path).name}, which cannot be unpacked ({error})"
        raise FileFormatError(field, got, _EXPECTED, "it is damaged or cut short: fetch it again") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(field, f"the path {path} ({why})", _EXPECTED, _neighbour(path)) from error


def _neighbour(path: Any) -> str:
    """A hint for a missing file: the same name with or without .gz, if there is one."""
    name = str(path)
    other = name.removesuffix(".gz") if name.endswith(".gz") else name + ".gz"
    try:
        return f"did you mean {other}?" if Path(other).is_file() else _HINT
    except ValueError:
        return _HINT


def _header(field: str, source: Path, stream: BufferedIOBase, ndim: Sequence[int]) -> Header:
    magic = _read(stream, 4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        got = f"{source.name}, which begins with the bytes {magic.hex(' ') or '(none)'}"
        raise FileFormatError(field, got, f"{_EXPECTED}: 00 00, a type of 08 to 0e, the number of axes", _HINT)
    axes = magic[3]
    if axes not in ndim:
        allowed = f"{' or '.join(map(str, ndim))} {'axis' if tuple(ndim) == (1,) else 'axes'}"
        raise FileFormatError(field, f"{source.name}, which has {axes}", allowed, f"are images and labels swapped? {_HINT}")
    sizes = _read(stream, 4 * axes)
    if len(sizes) < 4 * axes:
        got = f"{source.name}, which ends within its header"
        raise FileFormatError(field, got, _EXPECTED, "it is damaged or cut short: fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
    if 0 in shape:
        raise FileFormatError(field, f"{source.name}, which is empty: shape {shape}", "at least one sample", "choose another file")
    return Header(np.dtype(_DTYPES[magic[2]]), shape)


def _read(stream: BufferedIOBase, size: int) -> bytes:
    """At most ``size`` bytes, in pieces: a damaged header may state more than there is memory."""
    pieces = []
    while size and (piece := stream.read(min(size, _CHUNK))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
