"""Kernels of a program on data: NNGP, NTK and every layer's Phi and G (``theory/kernel_regime.md``).

Pairs of inputs are computed in square blocks that fit into fast memory and into a budget; for one set of inputs, only those on and
above the diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import BudgetError, InputError, ProgramError, RangeError
from tp_solver.kernel_regime.constants import numeric_constants
from tp_solver.kernel_regime.pairs import Pairs, stacked
from tp_solver.kernel_regime.propagation import LayerKernels, Propagation
from tp_solver.kernel_regime.recording import Replay, replay
from tp_solver.limit.spec import limit_spec
from tp_solver.numerics.memory_maps import make_room_for_programs
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.positions import channels_of
from tp_solver.program.statements import Program

DTYPES = ("float64", "float32")
FAST_BYTES = 2**19
"""Size of one array of a block: what a core keeps at hand."""
GRID_BYTES = 2**21
"""The same over a grid, where a block takes more pieces. Arrays much larger come anew from the system, page by page, at every piece."""
TEMPORARIES = 3
"""Arrays of the size of a block that a compiled piece takes beside its arguments and results."""
SURVEYED = 16
"""Lengths of inputs at which variances are looked at, to set the length of series."""


@dataclass(frozen=True, eq=False)
class KernelSet:
    """Kernels between n1 and n2 inputs, each (n1, n2).

    Attributes:
        nngp: covariance of the initial output at gamma0 = 1 where it is O(1): scale^2 <x x'> at the readout, plus the variance of a
            bias on the output.
        ntk: tangent kernel, rates eta included, lr not.
        layers: Phi, G and the parts of the tangent kernel, where they were asked for.
        symmetric: whether both sets of inputs are the same.
    """

    nngp: np.ndarray
    ntk: np.ndarray
    layers: Layers | None = None
    symmetric: bool = False

    @property
    def Phi(self) -> np.ndarray:
        """<phi(h^l) phi(h^l)> per reported layer, (layers, n1, n2); over a grid the mean over positions."""
        return self._of_layers().Phi

    @property
    def G(self) -> np.ndarray:
        """Covariance of the O(1)-normalised df/dh^l per reported layer, (layers, n1, n2); over a grid summed over positions."""
        return self._of_layers().G

    @property
    def parts(self) -> Mapping[str, np.ndarray]:
        """Matrix -> its term of the tangent kernel, rate included, (n1, n2)."""
        return self._of_layers().parts

    def _of_layers(self) -> Layers:
        if self.layers is None:
            raise RangeError("layers", "kernels of the output alone", "kernels of all layers", "ask for them: tp.kernels(..., layers=True)")
        return self.layers

    def __str__(self) -> str:
        n1, n2 = self.nngp.shape
        head = f"kernels of {n1} x {n2} inputs, {self.nngp.dtype}{', symmetric' if self.symmetric else ''}"
        rows = [("nngp", self.nngp), ("ntk", self.ntk)]
        if self.layers is not None:
            rows += [(f"{what}^{k + 1}", v) for what, layers in (("Phi", self.Phi), ("G", self.G)) for k, v in enumerate(layers)]
            rows += [(f"ntk of {name}", v) for name, v in self.parts.items()]
        lines = [f"  {'':<12} {'mean':>12} {'smallest':>12} {'largest':>12}"]
        lines += [f"  {name:<12} {v.mean():>12.5g} {v.min():>12.5g} {v.max():>12.5g}" for name, v in rows]
        return "\n".join([head, *lines])

    __repr__ = __str__


class Layers(NamedTuple):
    """Kernels of every layer; see :class:`KernelSet`."""

    Phi: np.ndarray
    G: np.ndarray
    parts: Mapping[str, np.ndarray]


class KernelArrays(NamedTuple):
    """What a kernel function returns: jax arrays (n1, n2), with leading axis of layers for Phi and G."""

    nngp: jax.Array
    ntk: jax.Array
    Phi: jax.Array
    G: jax.Array
    parts: Mapping[str, jax.Array]


class Block(NamedTuple):
    """Kernels of the inputs ``rows`` with the inputs ``columns``."""

    rows: slice
    columns: slice
    kernels: KernelSet


def kernels(
    net: Program,
    parameterization: Parameterization,
    X: Any,
    X2: Any = None,
    layers: bool = False,
    dtype: str = "float64",
    memory: float = 4.0,
) -> KernelSet:
    """Kernels at initialisation of a program at infinite width.

    Args:
        net: a program such as ``tp.mlp(depth=3, activation=tp.relu)``, or one over a grid of positions; averages (layer normalisation) and
            functions of several fields that separate (gates) are part of the closed form.
        parameterization: its exponents and constants; for one that learns features these are the kernels of the lazy limit.
        X: (n1, D), or (n1, *grid, channels).
        X2: a second set; None for the kernels of X with itself, half of which follow by symmetry.
        layers: whether to return Phi, G and the parts of every layer too.
        dtype: "float64" or "float32".
        memory: GiB that the results and the work may take.

    Raises:
        InputError: for malformed inputs. ProgramError: for programs without a closed form (:func:`tp_solver.sampled_kernels` takes those).
        ParameterizationError: for a parameterization without a limit.
        BudgetError: if the results, or one block, do not fit: the message says what would.

    Example: ``tp.kernels(tp.mlp(depth=3, activation=tp.relu), tp.ntk, X).ntk``.
    """
    job = _job(net, parameterization, X, X2, layers, dtype, memory)
    job.require_results()
    n1, n2 = job.shape
    out: dict[str, np.ndarray] = {}
    for block in job.blocks():
        for name, values in _named(block.kernels).items():
            whole = out.setdefault(name, np.empty((*values.shape[:-2], n1, n2), values.dtype))
            whole[..., block.rows, block.columns] = values
            if job.symmetric and block.rows != block.columns:
                whole[..., block.columns, block.rows] = np.swapaxes(values, -1, -2)
    return _assembled(out, job.symmetric)


def kernel_blocks(
    net: Program,
    parameterization: Parameterization,
    X: Any,
    X2: Any = None,
    layers: bool = False,
    dtype: str = "float64",
    memory: float = 4.0,
) -> Iterator[Block]:
    """The kernels of :func:`kernels` block by block, for results that do not fit into memory.

    For one set of inputs only blocks with ``rows`` not after ``columns`` come; the others are their transposes.

    Raises:
        InputError, ProgramError, ParameterizationError, BudgetError: as :func:`kernels`, before the first block.
    """
    return _job(net, parameterization, X, X2, layers, dtype, memory).blocks()


def kernel_function(net: Program, parameterization: Parameterization, like: Any) -> Callable[[jax.Array, jax.Array], KernelArrays]:
    """The kernels as a pure jax function of two sets of inputs, to be compiled, differentiated and mapped.

    Args:
        like: inputs (n, D), or (n, *grid, channels), of the size that the function will meet: they set the length of series.

    Returns:
        a function of (n1, D) and (n2, D) jax arrays; its precision is theirs. It raises an InputError for other shapes, under jit too.
        At a zero input a norm without a floor divides by zero: called with arrays the function raises the ProgramError of
        :func:`kernels`; compiled, mapped or differentiated it cannot know, and the kernels of that input are NaN.

    Raises:
        InputError, ProgramError, ParameterizationError: as :func:`kernels`.
    """
    net, parameterization = _checked(net, parameterization)
    example = _flat("like", like, net)
    ready = _ready(net, parameterization, example.shape[1], *_range(net, example))

    def function(x1: jax.Array, x2: jax.Array) -> KernelArrays:
        for name, x in (("x1", x1), ("x2", x2)):
            if np.ndim(x) != 2 or np.shape(x)[1] != example.shape[1]:
                shape = f"(n, {example.shape[1]}), as the example"
                raise InputError(name, f"an array of shape {np.shape(x)}", shape, "constants of the net depend on the dimension")
        found = _crossed(ready.kernels(ready.data(x1, x2)))
        if ready.reading.averages:
            with suppress(jax.errors.TracerArrayConversionError):  # no numbers yet
                require_finite("kernel_function", {"nngp": np.asarray(found.nngp), "ntk": np.asarray(found.ntk)})
        return found

    return function


class _Job(NamedTuple):
    """Checked inputs and a compiled block."""

    ready: Propagation
    x1: np.ndarray
    x2: np.ndarray
    symmetric: bool
    layers: bool
    memory: float

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.x1), len(self.x2)

    @property
    def _pair_bytes(self) -> int:
        """Bytes of one array per pair of inputs."""
        return self.x1.itemsize * prod(self.ready.program.grid) ** (2 if self.ready.kept.all_pairs else 1)

    @property
    def _results(self) -> int:
        """Kernels returned per pair of inputs."""
        program = self.ready.program
        return 2 + (2 * program.depth + len(program.matrices) if self.layers else 0)

    @property
    def sides(self) -> tuple[int, int]:
        """Inputs along the sides of a block.

        Raises:
            BudgetError: if not even one pair fits.
        """
        wanted = ((GRID_BYTES if self.ready.kept.axes else FAST_BYTES) / self._pair_bytes) ** 0.5
        side, budget = _power_of_two_below(max(1.0, wanted)), self.memory * 2**30
        while self._work(*self._cut(side)) > budget:
            if side == 1:
                raise BudgetError(
                    "memory", f"a need of {self._work(1, 1) / 2**30:.3g} GiB for one pair of inputs", f"at most {self.memory:g} GiB",
                    "cut the positions by a stride or pooling of the inputs, take dtype='float32', or raise memory",
                )  # fmt: skip
            side //= 2
        return self._cut(side)

    def _cut(self, side: int) -> tuple[int, int]:
        if self.ready.kept.axes:
            return min(side, self.shape[0]), min(side, self.shape[1])
        # few different shapes, as each is compiled anew
        return tuple(min(side, 2 * _power_of_two_below(max(1, n - 1)) if n > 1 else 1) for n in self.shape)  # type: ignore[return-value]

    def _work(self, height: int, breadth: int) -> int:
        """Bytes that a block takes."""
        held = _held(self.ready, self.layers, self.x1.dtype, self.x1.shape[1], height, breadth)
        return held + TEMPORARIES * height * breadth * self._pair_bytes

    def require_results(self) -> None:
        n1, n2 = self.shape
        need = n1 * n2 * self.x1.itemsize * self._results
        block = self._work(*self.sides)
        if need + block > self.memory * 2**30:
            raise BudgetError(
                "memory", f"a need of {(need + block) / 2**30:.3g} GiB for kernels of {n1} x {n2} inputs", f"at most {self.memory:g} GiB",
                "take dtype='float32', leave out layers, go through tp.kernel_blocks, which holds one block at a time, or raise memory",
            )  # fmt: skip

    def blocks(self) -> Iterator[Block]:
        (height, breadth), (n1, n2) = self.sides, self.shape
        block = _block(self.ready, self.layers, self.x1.dtype)
        for i in range(0, n1, height):
            rows = slice(i, min(i + height, n1))
            for j in range(i if self.symmetric else 0, n2, breadth):
                columns = slice(j, min(j + breadth, n2))
                with jax.enable_x64(True):
                    found = block(_padded(self.x1[rows], height), _padded(self.x2[columns], breadth))
                    cut = (..., slice(0, rows.stop - i), slice(0, columns.stop - j))
                    same = self.symmetric and i == j
                    arrays = {name: _exact_diagonal(values, same)[cut] for name, values in found.items()}
                if self.ready.reading.averages:
                    require_finite("kernels", arrays)
                yield Block(rows, columns, _assembled(arrays, same))


PART = "ntk of "


def _job(net: Any, parameterization: Any, X: Any, X2: Any, layers: Any, dtype: Any, memory: Any) -> _Job:
    net, parameterization = _checked(net, parameterization)
    x1 = _flat("X", X, net)
    x2 = x1 if X2 is None else _flat("X2", X2, net)
    if x1.shape[1] != x2.shape[1]:
        raise InputError("X2", f"inputs of dimension {x2.shape[1]}", f"dimension {x1.shape[1]}, as X", "use the same features")
    kind = np.dtype(checks.one_of("dtype", dtype, DTYPES))
    memory = checks.number("memory", memory, above=0.0, hint="memory is in GiB")
    ready = _ready(net, parameterization, x1.shape[1], *_range(net, x1, x2))
    job = _Job(ready, x1.astype(kind), x2.astype(kind), X2 is None, checks.flag("layers", layers), memory)
    _ = job.sides  # refused now, not at the first block
    make_room_for_programs()
    return job


def _checked(net: Any, parameterization: Any) -> tuple[Program, Parameterization]:
    return (
        checks.instance("net", net, Program, "a program such as tp.mlp(depth=3, activation=tp.relu)"),
        checks.instance("parameterization", parameterization, Parameterization, "a Parameterization such as tp.ntk"),
    )


def _flat(field: str, X: Any, net: Program) -> np.ndarray:
    """Inputs (n, D) from (n, D) or (n, *grid, channels)."""
    shape = ("n", *map(str, net.grid), "channels")
    X = checks.array(field, X, ndim=tuple({2, len(shape)}), hint=f"{field} is (n, D)" + (f" or ({', '.join(shape)})" if net.grid else ""))
    if X.ndim > 2 and X.shape[1:-1] != net.grid:
        raise InputError(field, f"inputs on {X.shape[1:-1]} positions", f"{net.grid}, as the program", f"axes are ({', '.join(shape)})")
    flat = X.reshape(len(X), -1)
    channels_of(net.grid, flat.shape[1])
    return flat


@lru_cache(maxsize=64)
def _ready(net: Program, parameterization: Parameterization, dimension: int, low: int, high: int) -> Propagation:
    """The program made ready for inputs whose squared length per position lies between 2^low and 2^high, or is zero.

    Variances depend on the inputs through that length alone (over a grid: are largest where it is the same everywhere).
    """
    scales, rates = numeric_constants(net, limit_spec(net, parameterization), channels_of(net.grid, dimension))
    ready = Propagation(net, scales, rates)
    lengths = np.exp2(np.linspace(low, high, min(SURVEYED - 1, high - low + 1)))
    ready.survey(lengths)
    return ready


@lru_cache(maxsize=64)
def _block(ready: Propagation, layers: bool, dtype: np.dtype) -> Replay:
    """The kernels of one block of inputs x1, x2 by name, each with the diagonal of the rows' own moments."""

    def kernels(x1: jax.Array, x2: jax.Array) -> dict[str, Pairs]:
        found = ready.kernels(ready.data(x1, x2), layers)
        out = {"nngp": found.nngp, "ntk": found.ntk}
        if layers:
            out |= {"Phi": stacked(found.Phi), "G": stacked(found.G)} | {f"{PART}{m}": part for m, part in found.parts.items()}
        return out

    with jax.enable_x64(True):
        return replay(kernels, 2, dtype)


@lru_cache(maxsize=256)
def _held(ready: Propagation, layers: bool, dtype: np.dtype, dimension: int, height: int, breadth: int) -> int:
    """Bytes that a block holds at once between its pieces."""
    with jax.enable_x64(True):
        return _block(ready, layers, dtype).peak(*(jax.ShapeDtypeStruct((n, dimension), dtype) for n in (height, breadth)))


def _range(net: Program, *sets: np.ndarray) -> tuple[int, int]:
    """Exponents of two between which the squared length of the inputs lies, per position; zeros apart."""
    lengths = np.concatenate([np.sum(x.reshape(len(x), prod(net.grid), -1) ** 2, axis=2).ravel() for x in sets])
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return 0, 0
    return int(np.floor(np.log2(lengths.min()))), int(np.ceil(np.log2(lengths.max())))


def _power_of_two_below(size: float) -> int:
    return 1 << int(np.log2(size))


def _crossed(found: LayerKernels) -> KernelArrays:
    return KernelArrays(
        found.nngp.cross,
        found.ntk.cross,
        jnp.stack([m.cross for m in found.Phi]),
        jnp.stack([m.cross for m in found.G]),
        {m: part.cross for m, part in found.parts.items()},
    )


def _padded(x: np.ndarray, length: int) -> jax.Array:
    """Inputs repeated up to one length, so that all blocks share a compilation."""
    return jnp.asarray(x if len(x) == length else np.resize(x, (length, x.shape[1])))


def _exact_diagonal(moments: Pairs, same: bool) -> np.ndarray:
    """Of one set of inputs with itself: symmetric, with the diagonal on which correlations are exactly one."""
    values = np.asarray(moments.cross)
    if not same:
        return values
    values = (values + np.swapaxes(values, -1, -2)) / 2
    at = np.arange(values.shape[-1])
    values[..., at, at] = np.asarray(moments.left)
    return values


def require_finite(where: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse kernels (..., n1, n2) that are not numbers, as those of a zero input under a norm without a floor.

    Raises:
        ProgramError: naming the kernel and the first two inputs.
    """
    for name, values in arrays.items():
        if not np.all(np.isfinite(values)):
            i, j = (int(k) for k in np.argwhere(~np.isfinite(values))[0][-2:])
            raise ProgramError(
                where, f"a non-finite {name} of inputs {i} and {j} of a block", "finite averages, not zero where divided by",
                "an input may be zero: normalise by sqrt(q + 1e-5) rather than by sqrt(q), or leave it out",
            )  # fmt: skip


def _named(found: KernelSet) -> dict[str, np.ndarray]:
    out = {"nngp": found.nngp, "ntk": found.ntk}
    if found.layers is not None:
        out |= {"Phi": found.Phi, "G": found.G} | {PART + m: v for m, v in found.parts.items()}
    return out


def _assembled(arrays: Mapping[str, np.ndarray], symmetric: bool) -> KernelSet:
    parts = {name.removeprefix(PART): v for name, v in arrays.items() if name.startswith(PART)}
    layers = Layers(arrays["Phi"], arrays["G"], parts) if parts else None
    return KernelSet(arrays["nngp"], arrays["ntk"], layers, symmetric)
