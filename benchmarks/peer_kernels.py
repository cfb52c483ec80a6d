"""Kernels of neural-tangents, for the golden files of the tests and for the side-by-side benchmark.

Runs in an environment of its own, where neural-tangents can be imported (``tests/golden/README-peer.md``); nothing here imports
tp_solver. A network is a list of layer records, plain JSON, so that the tests build the same network from our statements.

    peer/bin/python benchmarks/peer_kernels.py tests/golden/peer_kernels.npz
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from neural_tangents import stax

Record = dict[str, Any]

PADDING = {"circular": "CIRCULAR", "zero": "SAME", "valid": "VALID"}
ACTIVATION = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu}
WEIGHT_STD, BIAS_STD = 1.3, 0.4


def dense() -> Record:
    return {"layer": "dense"}


def activation(name: str) -> Record:
    return {"layer": "activation", "name": name}


def window(layer: str, size: Sequence[int], padding: str, strides: Sequence[int] | None = None) -> Record:
    """A record of one of the layers "conv", "local", "average" with a window."""
    return {"layer": layer, "filter": list(size), "padding": padding, "strides": list(strides or [1] * len(size))}


def flatten() -> Record:
    return {"layer": "flatten"}


def global_average() -> Record:
    return {"layer": "global_average"}


def residual(*branch: Record) -> Record:
    """x + branch(x)."""
    return {"layer": "residual", "branch": list(branch)}


def peer_layer(record: Record, weight_std: float, bias_std: float) -> Any:
    """The layer of neural-tangents that a record names."""
    kind = record["layer"]
    if kind == "dense":
        return stax.Dense(1, W_std=weight_std, b_std=bias_std)
    if kind == "activation":
        return ACTIVATION[record["name"]]()
    if kind in ("conv", "local"):
        # its locally connected layers have a bias of their own at every position, ours share theirs: compared without
        make, bias = (stax.Conv, bias_std) if kind == "conv" else (stax.ConvLocal, None)
        return make(1, tuple(record["filter"]), tuple(record["strides"]), PADDING[record["padding"]], W_std=weight_std, b_std=bias)
    if kind == "average":
        return stax.AvgPool(tuple(record["filter"]), tuple(record["strides"]), PADDING[record["padding"]])
    if kind == "flatten":
        return stax.Flatten()
    if kind == "global_average":
        return stax.GlobalAvgPool()
    if kind == "residual":
        branch = [peer_layer(r, weight_std, bias_std) for r in record["branch"]]
        return stax.serial(stax.FanOut(2), stax.parallel(stax.serial(*branch), stax.Identity()), stax.FanInSum())
    raise ValueError(kind)


def peer_kernel_function(layers: Sequence[Record], weight_std: float, bias_std: float) -> Any:
    """The kernel function of the layers, the last of which is the readout: dense, without bias."""
    body = [peer_layer(r, weight_std, bias_std) for r in layers[:-1]]
    return stax.serial(*body, stax.Dense(1, W_std=weight_std, b_std=None))[2]


def mlp(depth: int, name: str) -> list[Record]:
    """``depth`` hidden layers."""
    return [r for _ in range(depth) for r in (dense(), activation(name))] + [dense()]


def cnn(
    name: str, padding: str, readout: Record, sizes: Sequence[Sequence[int]], strides: Sequence[Sequence[int]], layer: str = "conv"
) -> list[Record]:
    """Convolutions (or locally connected layers) with an activation after each, a readout of positions, a dense layer."""
    body = [r for size, step in zip(sizes, strides, strict=True) for r in (window(layer, size, padding, step), activation(name))]
    return [*body, readout, dense()]


def pooled(name: str, padding: str, readout: Record, between: Record, layer: str = "conv") -> list[Record]:
    """A layer with windows of three, an average over windows, another such layer."""
    first = window(layer, [3], padding)
    return [first, activation(name), between, first, activation(name), readout, dense()]


READOUTS = {"flatten": flatten(), "global": global_average()}


def one_dimensional_cases() -> dict[str, tuple[str, list[Record]]]:
    """Lines of six and of seven sites."""
    cases: dict[str, tuple[str, list[Record]]] = {}
    for end, readout in READOUTS.items():
        for padding in PADDING:
            for name in ACTIVATION:
                cases[f"conv1-{padding}-{end}-{name}"] = ("line7", cnn(name, padding, readout, [[3], [3]], [[1], [1]]))
            cases[f"local1-{padding}-{end}-relu"] = ("line7", cnn("relu", padding, readout, [[3], [3]], [[1], [1]], "local"))
            # six sites, step two: nothing is added at the left, one site at the right
            cases[f"conv1-{padding}-stride2-even-{end}-relu"] = ("line6", cnn("relu", padding, readout, [[3], [1]], [[2], [1]]))
            cases[f"local1-{padding}-stride2-even-{end}-erf"] = ("line6", cnn("erf", padding, readout, [[3], [1]], [[2], [1]], "local"))
            average = window("average", [3], padding)
            cases[f"conv1-overlapping-average-{padding}-{end}-relu"] = ("line7", pooled("relu", "circular", readout, average))
        for padding in ("zero", "valid"):
            # seven sites: both ends alike
            cases[f"conv1-{padding}-stride2-odd-{end}-relu"] = ("line7", cnn("relu", padding, readout, [[3], [3]], [[2], [1]]))
        for padding in ("circular", "zero"):
            average = window("average", [2], "valid", [2])
            cases[f"conv1-{padding}-average-{end}-relu"] = ("line6", pooled("relu", padding, readout, average))
            cases[f"conv1-{padding}-average-{end}-erf"] = ("line6", pooled("erf", padding, readout, average))
            cases[f"local1-{padding}-average-{end}-relu"] = ("line6", pooled("relu", padding, readout, average, "local"))
        mixed = [window("local", [3], "zero"), activation("relu"), window("conv", [3], "zero"), activation("relu"), readout, dense()]
        cases[f"local-then-conv1-{end}-relu"] = ("line7", mixed)
        block = residual(activation("erf"), window("conv", [3], "zero"))
        cases[f"conv1-residual-zero-{end}-erf"] = (
            "line7",
            [window("conv", [3], "zero"), block, block, activation("erf"), readout, dense()],
        )
    return cases


def two_dimensional_cases() -> dict[str, tuple[str, list[Record]]]:
    """Images of four by four and, so that an exchange of the axes shows, of five by seven."""
    cases: dict[str, tuple[str, list[Record]]] = {}
    sizes, ones = [[3, 3], [3, 3]], [[1, 1], [1, 1]]
    for end, readout in READOUTS.items():
        for padding in PADDING:
            for name in ("relu", "erf"):
                cases[f"conv2-{padding}-{end}-{name}"] = ("image57", cnn(name, padding, readout, sizes, ones))
        for padding in ("zero", "valid"):
            cases[f"conv2-{padding}-stride2-{end}-relu"] = ("image57", cnn("relu", padding, readout, [[3, 3], [1, 3]], [[2, 2], [1, 1]]))
            cases[f"conv2-{padding}-strides12-{end}-relu"] = ("image57", cnn("relu", padding, readout, [[3, 1], [3, 3]], [[1, 2], [1, 1]]))
        cases[f"conv2-circular-stride2-{end}-relu"] = ("image44", cnn("relu", "circular", readout, [[3, 3], [1, 1]], [[2, 2], [1, 1]]))
        cases[f"conv2-circular-strides12-{end}-relu"] = ("image44", cnn("relu", "circular", readout, [[3, 3], [3, 1]], [[1, 2], [1, 1]]))
        cases[f"conv2-zero-{end}-gelu"] = ("image57", cnn("gelu", "zero", readout, sizes, ones))
        cases[f"local2-zero-{end}-relu"] = ("image57", cnn("relu", "zero", readout, sizes, ones, "local"))
        for padding in ("circular", "zero"):
            average = window("average", [2, 2], "valid", [2, 2])
            first, last = window("conv", [3, 3], padding), window("conv", [1, 1], padding)
            layers = [first, activation("relu"), average, last, activation("relu"), readout, dense()]
            cases[f"conv2-{padding}-average-{end}-relu"] = ("image44", layers)
        block = residual(activation("relu"), window("conv", [3, 3], "circular"))
        cases[f"conv2-residual-circular-{end}-relu"] = (
            "image44",
            [window("conv", [3, 3], "circular"), block, block, activation("relu"), readout, dense()],
        )
    return cases


def vector_cases() -> dict[str, tuple[str, list[Record]]]:
    """Inputs without positions."""
    cases = {f"dense{depth}-{name}": ("vector", mlp(depth, name)) for depth in (1, 3, 10) for name in ACTIVATION}
    for name in ACTIVATION:
        block = residual(activation(name), dense())
        deep = residual(activation(name), dense(), activation(name), dense())
        cases[f"residual-{name}"] = ("vector", [dense(), block, block, activation(name), dense()])
        cases[f"residual-two-layers-{name}"] = ("vector", [dense(), deep, block, activation(name), dense()])
    return cases


SHAPES = {"vector": (5,), "line6": (6, 2), "line7": (7, 2), "image44": (4, 4, 2), "image57": (5, 7, 2)}
"""Name of a set of inputs -> shape of one input: positions, then channels."""


def inputs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per shape, six inputs and four others, standard normal, rounded so that the file is small."""
    rng = np.random.default_rng(20261)
    return {name: (rng.standard_normal((6, *shape)).round(3), rng.standard_normal((4, *shape)).round(3)) for name, shape in SHAPES.items()}


def write(path: str) -> None:
    """All golden cases, float64."""
    jax.config.update("jax_enable_x64", True)
    data = inputs()
    arrays = {f"inputs/{name}/{i + 1}": x for name, pair in data.items() for i, x in enumerate(pair)}
    cases = vector_cases() | one_dimensional_cases() | two_dimensional_cases()
    described = []
    for name, (source, layers) in cases.items():
        kernel = jax.jit(peer_kernel_function(layers, WEIGHT_STD, BIAS_STD), static_argnames="get")
        x1, x2 = data[source]
        for suffix, second in (("one", None), ("two", x2)):
            value = kernel(x1, second, get=("nngp", "ntk"))
            both = np.stack([np.asarray(value.nngp), np.asarray(value.ntk)])
            if both.dtype != np.float64 or not np.isfinite(both).all():
                raise ValueError(f"{name}: {both.dtype}, finite: {np.isfinite(both).all()}")
            arrays[f"kernels/{name}/{suffix}"] = both
        described.append({"name": name, "inputs": source, "layers": layers})
        print(name, flush=True)
    made_with = {package: version(package) for package in ("neural-tangents", "jax", "jaxlib", "numpy")}
    about = {"weight_std": WEIGHT_STD, "bias_std": BIAS_STD, "readout_bias_std": 0.0, "made_with": made_with, "cases": described}
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)


if __name__ == "__main__":
    write(sys.argv[1])
