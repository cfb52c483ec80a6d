"""What benchmarks/kernels_and_peer.py compares: the same work for our library and for neural-tangents.

Neither library is imported here at the top: each process imports the one that it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

WEIGHT_STD, BIAS_STD = 1.4, 0.3
CORNER = 5
Call = Callable[[], Sequence[np.ndarray]]
"""Runs to the end and returns what is compared."""


class Case(Protocol):
    """Something that we can do, and perhaps the peer."""

    @property
    def name(self) -> str: ...

    @property
    def repeats(self) -> int:
        """Warm calls of each side."""
        ...

    def ours(self) -> Call: ...


@runtime_checkable
class SharedCase(Case, Protocol):
    """Something that both libraries can do."""

    def peer(self) -> Call: ...


def gaussian(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def peer_call(layers: list[dict[str, Any]], x: np.ndarray, x2: np.ndarray | None) -> Call:
    """A compiled kernel function of neural-tangents, both kernels at once."""
    import jax
    from peer_kernels import peer_kernel_function

    jax.config.update("jax_enable_x64", x.dtype == np.float64)
    compiled = jax.jit(peer_kernel_function(layers, WEIGHT_STD, BIAS_STD), static_argnames="get")

    def call() -> Sequence[np.ndarray]:
        found = compiled(x, x2, get=("nngp", "ntk"))
        return np.asarray(found.nngp), np.asarray(found.ntk)

    return call


@dataclass(frozen=True)
class DenseKernels:
    """NNGP and NTK of a dense net between n inputs and themselves, or n others."""

    depth: int
    activation: str
    sets: int
    dtype: str
    n: int
    dimension: int = 100
    repeats: int = 7

    @property
    def name(self) -> str:
        return f"dense, {self.depth} hidden, {self.activation}, {self.sets} set{'s' * (self.sets - 1)}, {self.dtype}"

    @property
    def data(self) -> list[np.ndarray]:
        return [gaussian((self.n, self.dimension), self.dtype, seed) for seed in range(self.sets)]

    def ours(self) -> Call:
        import tp_solver as tp

        net = tp.mlp(self.depth, getattr(tp, self.activation), bias=BIAS_STD, bias_rate=BIAS_STD**2)
        data, par = self.data, tp.ntk.times(WEIGHT_STD)

        def call() -> Sequence[np.ndarray]:
            found = tp.kernels(net, par, *data, dtype=self.dtype)
            return found.nngp, found.ntk

        return call

    def peer(self) -> Call:
        from peer_kernels import mlp

        return peer_call(mlp(self.depth, self.activation), self.data[0], self.data[1] if self.sets == 2 else None)


@dataclass(frozen=True)
class ImageKernels:
    """NNGP and NTK of three convolutions with relu, global average, dense, on small images."""

    padding: str
    dtype: str
    n: int
    side: int
    repeats: int = 3

    @property
    def name(self) -> str:
        return f"3 convolutions, global average, {self.padding}, {self.n} images {self.side} x {self.side} x 3, {self.dtype}"

    @property
    def data(self) -> np.ndarray:
        return gaussian((self.n, self.side, self.side, 3), self.dtype)

    def ours(self) -> Call:
        import tp_solver as tp

        weights = [tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.hidden_matrix("W2")]
        last = tp.readout("W3")

        def network(x: Any) -> Any:
            for k, w in enumerate(weights):
                x = tp.relu(tp.conv(w, x, 3, padding=self.padding) + tp.bias(f"b{k}", BIAS_STD, BIAS_STD**2))
            return last @ tp.global_pool(x)

        net = tp.program(network, "cnn", grid=(self.side, self.side))
        data, par = self.data.reshape(self.n, -1), tp.ntk.times(WEIGHT_STD)

        def call() -> Sequence[np.ndarray]:
            found = tp.kernels(net, par, data, dtype=self.dtype)
            return found.nngp, found.ntk

        return call

    def peer(self) -> Call:
        from peer_kernels import cnn, global_average

        return peer_call(cnn("relu", self.padding, global_average(), [[3, 3]] * 3, [[1, 1]] * 3), self.data, None)


@dataclass(frozen=True)
class EmpiricalKernel:
    """Empirical tangent kernel (inputs, inputs, outputs, outputs) of a relu net with four weight layers."""

    dtype: str
    width: int
    n: int
    outputs: int = 10
    dimension: int = 100
    repeats: int = 7

    @property
    def name(self) -> str:
        return f"empirical NTK, 4 weight layers of width {self.width}, {self.n} inputs, {self.outputs} outputs, {self.dtype}"

    def weights(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Standard normal (to, from) and biases, per layer; the readout has no bias."""
        rng = np.random.default_rng(0)
        sizes = [self.dimension, self.width, self.width, self.width, self.outputs]
        pairs = zip(sizes[1:], sizes, strict=False)
        return [(rng.standard_normal(shape).astype(self.dtype), rng.standard_normal(shape[0]).astype(self.dtype)) for shape in pairs]

    @property
    def data(self) -> np.ndarray:
        return gaussian((self.n, self.dimension), self.dtype, 1)

    def ours(self) -> Call:
        import jax
        import jax.numpy as jnp

        import tp_solver as tp
        from tp_solver.finite.empirical import empirical_ntk
        from tp_solver.finite.network import draw

        program = tp.mlp(3, tp.relu, bias=BIAS_STD, bias_rate=BIAS_STD**2)
        net = draw(program, tp.ntk.times(WEIGHT_STD), self.dimension, self.width, outputs=self.outputs, dtype=self.dtype)
        arrays = dict(net.w)
        for k, (w, b) in enumerate(self.weights()):
            arrays[f"W{k}"] = w
            arrays |= {f"b{k + 1}": BIAS_STD * b} if k < 3 else {}
        shapes = {m: net.w[m].shape for m in arrays}
        with jax.enable_x64(True):
            net = net.moved({m: jnp.asarray(w.reshape(shapes[m])) for m, w in arrays.items()})
        data = self.data
        return lambda: (empirical_ntk(net, data).transpose(0, 2, 1, 3).reshape(self.n * self.outputs, -1),)

    def peer(self) -> Call:
        import jax
        import neural_tangents as nt
        from neural_tangents import stax

        jax.config.update("jax_enable_x64", self.dtype == "float64")
        body = [layer for _ in range(3) for layer in (stax.Dense(self.width, WEIGHT_STD, BIAS_STD), stax.Relu())]
        apply = stax.serial(*body, stax.Dense(self.outputs, WEIGHT_STD, None))[1]
        params: list[Any] = []
        for k, (w, b) in enumerate(self.weights()):
            params += [(w.T, b), ()] if k < 3 else [(w.T, None)]
        structured = nt.NtkImplementation.STRUCTURED_DERIVATIVES
        compiled = jax.jit(nt.empirical_ntk_fn(apply, trace_axes=(), vmap_axes=0, implementation=structured))
        data = self.data

        def call() -> Sequence[np.ndarray]:
            found = np.asarray(compiled(data, None, params))
            return (found.transpose(0, 2, 1, 3).reshape(self.n * self.outputs, -1),)

        return call


@dataclass(frozen=True)
class ManyInputs:
    """NNGP and NTK of so many inputs that memory is the matter: all results in float32, or block by block in float64."""

    n: int
    memory: float
    dtype: str
    depth: int = 3
    dimension: int = 100
    repeats: int = 1

    @property
    def name(self) -> str:
        kept = "all results" if self.dtype == "float32" else "block by block"
        return f"dense, {self.depth} hidden, relu, {self.n} inputs in {self.memory:g} GiB, {self.dtype}, {kept}"

    def ours(self) -> Call:
        import tp_solver as tp

        net = tp.mlp(self.depth, tp.relu, bias=BIAS_STD, bias_rate=BIAS_STD**2)
        par, data = tp.ntk.times(WEIGHT_STD), gaussian((self.n, self.dimension), self.dtype)

        def whole() -> Sequence[np.ndarray]:
            found = tp.kernels(net, par, data, dtype=self.dtype, memory=self.memory)
            return found.nngp, found.ntk

        def blocks() -> Sequence[np.ndarray]:
            corner = np.zeros((CORNER, CORNER))
            for block in tp.kernel_blocks(net, par, data, dtype=self.dtype, memory=self.memory):
                corner = block.kernels.ntk[-CORNER:, -CORNER:]
            return (corner,)

        return whole if self.dtype == "float32" else blocks


Group = tuple[str, list[Case]]
"""A table: its title and its cases."""


def groups(quick: bool) -> list[Group]:
    """All tables, small with ``quick``."""
    n = 100 if quick else 1000
    kinds = ("float64", "float32")
    dense: list[Case] = [
        DenseKernels(depth, activation, sets, dtype, n)
        for dtype in kinds
        for sets in (1, 2)
        for activation in ("relu", "erf")
        for depth in (3, 10)
    ]
    images: list[Case] = [
        ImageKernels(padding, dtype, 4 if quick else 32, 6 if quick else 16) for dtype in kinds for padding in ("zero", "circular")
    ]
    empirical: list[Case] = [EmpiricalKernel(dtype, 64 if quick else 512, 20 if quick else 100) for dtype in kinds]
    many: list[Case] = [ManyInputs(500 if quick else 20_000, 4.0, dtype) for dtype in reversed(kinds)]
    return [(f"NNGP and NTK, {n} inputs of dimension 100", dense), ("Images", images), ("Finite nets", empirical), ("Many inputs", many)]
