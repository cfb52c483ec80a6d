"""Kernels against those of neural-tangents (tests/golden/README-peer.md), and both against a plain recursion over pairs of positions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.numerics.duals import dual
from tp_solver.program.statements import Program
from tp_solver.symbols.activation import erf, gelu, relu

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "peer_kernels.npz")
ABOUT = json.loads(str(GOLDEN["about"]))
WEIGHT, BIAS = ABOUT["weight_std"], ABOUT["bias_std"]
CASES = {case["name"]: case for case in ABOUT["cases"]}
ACTIVATIONS = {"relu": relu, "erf": erf, "gelu": gelu}

Record = dict[str, Any]


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Six inputs and four others, (inputs, positions..., channels)."""
    source = CASES[name]["inputs"]
    return GOLDEN[f"inputs/{source}/1"], GOLDEN[f"inputs/{source}/2"]


def our_program(name: str) -> Program:
    """The network of a golden case in statements of ours."""
    layers = CASES[name]["layers"]
    numbers: Iterator[int] = itertools.count()

    def apply(records: Sequence[Record], x: Any) -> Any:
        for r in records:
            kind = r["layer"]
            if kind == "activation":
                x = ACTIVATIONS[r["name"]](x)
            elif kind == "residual":
                x = x + apply(r["branch"], x)
            elif kind == "average":
                x = tp.pool(x, r["filter"], r["strides"], r["padding"])
            elif kind == "global_average":
                x = tp.global_pool(x)
            elif kind != "flatten":  # which shows at the readout alone
                number = next(numbers)
                weight = tp.hidden_matrix(f"W{number}") if number else tp.input_matrix("W0")
                if kind == "dense":
                    x = weight @ x
                elif kind == "conv":
                    x = tp.conv(weight, x, r["filter"], r["strides"], r["padding"])
                else:
                    assert kind == "local"
                    x = tp.local(weight, x, r["filter"], r["strides"], r["padding"])
                if kind != "local":
                    x = x + tp.bias(f"b{number}", BIAS, BIAS**2)
        return x

    flat = layers[-2] == {"layer": "flatten"}

    def network(x: Any) -> Any:
        last = tp.readout("last")
        return tp.dense(last, apply(layers[:-1], x)) if flat else last @ apply(layers[:-1], x)

    assert layers[-1] == {"layer": "dense"}
    return tp.program(network, name, grid=inputs(name)[0].shape[1:-1])


def ours(name: str, first: np.ndarray, second: np.ndarray | None) -> np.ndarray:
    """NNGP and NTK, (2, n1, n2)."""
    flat = [None if x is None else x.reshape(len(x), -1) for x in (first, second)]
    got = tp.kernels(our_program(name), tp.ntk.times(WEIGHT), *flat)
    return np.stack([got.nngp, got.ntk])


class Recursion:
    """Covariance and tangent kernel of all pairs (input, position), layer by layer, by loops over windows."""

    def __init__(self, x: np.ndarray) -> None:
        self.grid = x.shape[1:-1]
        x = x.reshape(len(x), -1, x.shape[-1])
        self.covariance = np.einsum("npc,mqc->npmq", x, x) / x.shape[-1]
        self.tangent = np.zeros_like(self.covariance)

    def linear(self, maps: Sequence[np.ndarray], gain: float, shift: float) -> None:
        """The sum over maps of map K map^T, times a gain, plus a shift."""
        sums = lambda k: sum(np.einsum("op,npmq,rq->nomr", a, k, a, optimize=True) for a in maps)  # noqa: E731
        self.covariance, self.tangent = gain * sums(self.covariance) + shift, gain * sums(self.tangent)

    def window(self, r: Record) -> list[np.ndarray]:
        """Per offset of a window, which input an output position sees: (outputs, inputs) of zeros and ones."""
        axes = []
        for n, k, s in zip(self.grid, r["filter"], r["strides"], strict=True):
            outputs = (n - k) // s + 1 if r["padding"] == "valid" else -(-n // s)
            before = 0 if r["padding"] == "valid" else max((outputs - 1) * s + k - n, 0) // 2
            sees = np.zeros((k, outputs, n))
            for offset, i in itertools.product(range(k), range(outputs)):
                at = i * s + offset - before
                if r["padding"] == "circular" or 0 <= at < n:
                    sees[offset, i, at % n] = 1
            axes.append(sees)
        self.grid = tuple(sees.shape[1] for sees in axes)
        joint = [np.ones((1, 1))]
        for sees in axes:
            joint = [np.kron(a, b) for a in joint for b in sees]
        return joint

    def apply(self, records: Sequence[Record]) -> None:
        for r in records:
            kind = r["layer"]
            positions = self.covariance.shape[1]
            if kind == "activation":
                phi = ACTIVATIONS[r["name"]]
                k = self.covariance.reshape(len(self.covariance) * positions, -1)
                q, qp = (np.broadcast_to(v, k.shape) for v in (k.diagonal()[:, None], k.diagonal()))
                self.tangent = self.tangent * dual(phi.derivative, phi.derivative, q, qp, k).reshape(self.tangent.shape)
                self.covariance = dual(phi.expression, phi.expression, q, qp, k).reshape(self.tangent.shape)
            elif kind == "residual":
                before = self.covariance, self.tangent
                self.apply(r["branch"])
                self.covariance, self.tangent = self.covariance + before[0], self.tangent + before[1]
            elif kind == "average":
                maps = self.window(r)
                self.linear([sum(maps) / len(maps)], 1.0, 0.0)
            elif kind == "global_average":
                self.linear([np.full((1, positions), 1 / positions)], 1.0, 0.0)
            elif kind == "flatten":
                self.linear(np.eye(positions)[:, None, :], 1 / positions, 0.0)
            else:
                maps = [np.eye(positions)] if kind == "dense" else self.window(r)
                self.linear(maps, WEIGHT**2 / len(maps), 0.0 if kind == "local" else BIAS**2)
                if kind == "local":  # matrices of different positions are independent
                    same = np.eye(self.covariance.shape[1])[:, None, :]
                    self.covariance, self.tangent = self.covariance * same, self.tangent * same
                self.tangent = self.tangent + self.covariance


@cache
def by_recursion(name: str) -> np.ndarray:
    """NNGP and NTK among all ten inputs, (2, 10, 10)."""
    x = np.concatenate(inputs(name))
    x = x[:, None, :] if x.ndim == 2 else x
    chain = Recursion(x)
    chain.apply(CASES[name]["layers"][:-1])
    nngp = WEIGHT**2 * chain.covariance
    return np.stack([nngp, WEIGHT**2 * chain.tangent + nngp])[:, :, 0, :, 0]


def error(got: np.ndarray, exact: np.ndarray) -> float:
    """Largest deviation over the largest entry, the worse of the two kernels."""
    assert got.shape == exact.shape
    return max(float(np.abs(g - e).max() / np.abs(e).max()) for g, e in zip(got, exact, strict=True))


def where_the_peer_rounds(name: str) -> np.ndarray:
    """Entries that its relu spoils by up to 1e-8: tangent kernels of an input with itself (the angle is not quite zero)."""
    spoiled = np.zeros((2, 6, 6), bool)
    spoiled[1] = np.eye(6) * name.endswith("relu")
    return spoiled


def test_all_kinds_are_there() -> None:
    assert len(CASES) == 111
    assert set(QUICK) <= set(CASES)
    for word in (
        "dense10",
        "residual",
        "circular",
        "zero",
        "valid",
        "stride2",
        "average",
        "global",
        "flatten",
        "local",
        "conv2",
        *ACTIVATIONS,
    ):
        assert any(word in name for name in CASES), word


QUICK = (
    "dense3-relu",
    "dense10-erf",
    "dense3-gelu",
    "residual-two-layers-relu",
    "conv1-zero-flatten-erf",
    "conv1-valid-stride2-even-global-relu",
    "conv1-zero-stride2-even-flatten-relu",
    "conv1-overlapping-average-zero-global-relu",
    "local-then-conv1-flatten-relu",
    "conv2-residual-circular-global-relu",
)
"""One case of every kind; the rest is a matter of minutes, most of them compilation."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES])
def test_kernels_against_peer(name: str) -> None:
    one, two = GOLDEN[f"kernels/{name}/one"], GOLDEN[f"kernels/{name}/two"]
    exact = by_recursion(name)
    spoiled = where_the_peer_rounds(name)
    assert error(exact[:, :6, 6:], two) < 1e-13
    assert error(np.where(spoiled, one, exact[:, :6, :6]), one) < 1e-13
    assert error(exact[:, :6, :6], one) < 1e-8
    got = ours(name, np.concatenate(inputs(name)), None)
    assert error(got[:, :6, 6:], two) < 1e-10
    assert error(np.where(spoiled, one, got[:, :6, :6]), one) < 1e-10
    assert error(got, exact) < 1e-10  # the diagonal too


@pytest.mark.parametrize("name", ["dense3-relu", "conv1-circular-average-global-relu"])
def test_two_sets_against_peer(name: str) -> None:
    assert error(ours(name, *inputs(name)), GOLDEN[f"kernels/{name}/two"]) < 1e-10


@pytest.mark.parametrize("depth", [1, 3])
def test_diagonal_of_relu(depth: int) -> None:
    """E relu(h)^2 = q/2 and E relu'(h)^2 = 1/2: the entries that cannot be compared with the peer, by hand."""
    first, _ = inputs(f"dense{depth}-relu")
    q = WEIGHT**2 * (first**2).mean(1) + BIAS**2
    tangent = q
    for level in range(depth):
        q = WEIGHT**2 * q / 2 + BIAS**2 * (level < depth - 1)
        tangent = q + WEIGHT**2 * tangent / 2
    got = ours(f"dense{depth}-relu", first, None)
    assert got[0].diagonal() == pytest.approx(q, rel=1e-14)
    assert got[1].diagonal() == pytest.approx(tangent, rel=1e-14)
