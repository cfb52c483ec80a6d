"""Ready-made programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.program.layers import conv, pooled
from tp_solver.program.statements import Program
from tp_solver.program.tracing import Vector, Weight, hidden_matrix, input_matrix, program, readout
from tp_solver.program.tracing import bias as bias_vector
from tp_solver.symbols.activation import Activation


def mlp(depth: int, activation: Activation, bias: Any = False, bias_rate: Any = 1, output_bias: Any = False) -> Program:
    """A multilayer perceptron with ``depth`` hidden layers and ``depth + 1`` weight matrices W0..W{depth}.

    Args:
        depth: number of hidden layers, at least 1.
        activation: entrywise nonlinearity, e.g. ``tp.tanh``.
        bias: of the hidden layers: False for none; True for trained biases that start at zero; a number sigma_b for trained biases
            with initial N(0, sigma_b^2). For frozen biases write the program out with ``tp.bias(name, sigma, rate=0)``.
        bias_rate: rate of all biases relative to the base rate; sigma_b^2 is the NTK parameterization's h = W x + sigma_b b with
            b ~ N(0, 1) trained.
        output_bias: the same as ``bias``, on the output.

    Raises:
        InputError: for a depth below 1, a class or string in place of an activation, or a negative bias scale.
    """
    depth = checks.integer("depth", depth, minimum=1, hint="depth counts hidden layers; depth=1 is the two-layer net")
    checks.instance("activation", activation, Activation, "an Activation such as tp.tanh", "wrap a function: tp.Activation(name, function)")
    net = _matrices(depth, bias, bias_rate, output_bias)

    def network(x: Vector) -> Vector:
        for weight, b in zip(net.weights, net.biases, strict=True):
            h = weight @ x
            x = activation(h if b is None else h + b)
        return net.shifted(net.last @ x)

    return program(network, f"mlp(depth={depth}, activation={activation.name}{net.biased})")


def cnn(
    depth: int,
    activation: Activation,
    grid: Any,
    size: Any = 3,
    stride: Any = 1,
    padding: str = "circular",
    bias: Any = False,
    bias_rate: Any = 1,
    layer: Callable[..., Vector] = conv,
    head: Callable[[Weight, Vector], Vector] = pooled,
    output_bias: Any = False,
) -> Program:
    """A convolutional network with ``depth`` hidden layers over a grid of positions, in one or more dimensions.

    Args:
        depth, activation, bias, bias_rate, output_bias: as for :func:`mlp`; biases are the same at all positions.
        grid: positions of an input, e.g. (16, 16) for images; inputs of dimension D have D / 256 channels at each.
        size, stride, padding: of every window, see :func:`tp_solver.conv`.
        layer: ``tp.conv``, or ``tp.local`` for locally connected layers.
        head: ``tp.pooled`` reads out the mean over positions, ``tp.dense`` all positions with weights of their own.

    Raises:
        InputError, ProgramError: for arguments that do not fit together.

    Example: ``tp.cnn(depth=3, activation=tp.relu, grid=(16, 16), padding="zero")``.
    """
    depth = checks.integer("depth", depth, minimum=1, hint="depth counts hidden layers")
    checks.instance("activation", activation, Activation, "an Activation such as tp.tanh", "wrap a function: tp.Activation(name, function)")
    for field, value, example in (("layer", layer, "tp.conv or tp.local"), ("head", head, "tp.pooled or tp.dense")):
        if not callable(value):
            raise InputError(field, value, f"a function such as {example}", f"{field}={example.split()[0]}, without quotes")
    net = _matrices(depth, bias, bias_rate, output_bias)

    def network(x: Vector) -> Vector:
        for weight, b in zip(net.weights, net.biases, strict=True):
            h = layer(weight, x, size, stride, padding)
            x = activation(h if b is None else h + b)
        return net.shifted(head(net.last, x))

    name = f"cnn(depth={depth}, activation={activation.name}, {padding}{net.biased})"
    return program(network, name, grid)


class _Matrices(NamedTuple):
    """Weights of the hidden layers, their biases (None for none), the readout, and the bias on the output or None."""

    weights: list[Weight]
    biases: list[Weight | None]
    last: Weight
    output_bias: Weight | None

    def shifted(self, out: Vector) -> Vector:
        """The output, with its bias."""
        return out if self.output_bias is None else out + self.output_bias

    @property
    def biased(self) -> str:
        """Which biases there are, for names."""
        there = ("bias", self.biases[0]), ("output bias", self.output_bias)
        return "".join(f", {name}" for name, b in there if b is not None)


def _matrices(depth: int, bias: Any, bias_rate: Any, output_bias: Any) -> _Matrices:
    sigma_b, sigma_out = _deviation("bias", bias), _deviation("output_bias", output_bias)
    weights = [input_matrix("W0"), *(hidden_matrix(f"W{j}") for j in range(1, depth))]
    biases = [None if sigma_b is None else bias_vector(f"b{j}", sigma_b, bias_rate) for j in range(1, depth + 1)]
    shift = None if sigma_out is None else bias_vector(f"b{depth + 1}", sigma_out, bias_rate)
    return _Matrices(weights, biases, readout(f"W{depth}"), shift)


def _deviation(field: str, bias: Any) -> Any:
    """Initial standard deviation; None for no bias."""
    if isinstance(bias, (bool, np.bool_)):
        return 0 if bias else None
    return checks.number(field, bias, minimum=0.0)
