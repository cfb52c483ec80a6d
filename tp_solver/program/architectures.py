"""Ready-made programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.program.statements import Program
from tp_solver.program.tracing import Vector, hidden_matrix, input_matrix, program, readout
from tp_solver.program.tracing import bias as bias_vector
from tp_solver.symbols.activation import Activation


def mlp(depth: int, activation: Activation, bias: Any = False, bias_rate: Any = 1) -> Program:
    """A multilayer perceptron with ``depth`` hidden layers and ``depth + 1`` weight matrices W0..W{depth}.

    Args:
        depth: number of hidden layers, at least 1.
        activation: entrywise nonlinearity, e.g. ``tp.tanh``.
        bias: False for none; True for trained biases that start at zero; a number sigma_b for trained biases with
            initial N(0, sigma_b^2). For frozen biases write the program out with ``tp.bias(name, sigma, rate=0)``.

        bias_rate: rate of the biases relative to the base rate; sigma_b^2 is the NTK parameterization's h = W x + sigma_b b with
            b ~ N(0, 1) trained.

    Raises:
        InputError: for a depth below 1, a class or string in place of an activation, or a negative bias scale.
    """
    depth = checks.integer("depth", depth, minimum=1, hint="depth counts hidden layers; depth=1 is the two-layer net")
    checks.instance("activation", activation, Activation, "an Activation such as tp.tanh", "wrap a function: tp.Activation(name, function)")
    biased = bias if isinstance(bias, (bool, np.bool_)) else True
    sigma_b = 0 if isinstance(bias, (bool, np.bool_)) else checks.number("bias", bias, minimum=0.0)
    weights = [input_matrix("W0"), *(hidden_matrix(f"W{j}") for j in range(1, depth))]
    biases = [bias_vector(f"b{j}", sigma_b, bias_rate) for j in range(1, depth + 1)]
    last = readout(f"W{depth}")

    def network(x: Vector) -> Vector:
        for weight, b in zip(weights, biases, strict=True):
            h = weight @ x
            x = activation(h + b if biased else h)
        return last @ x

    return program(network, f"mlp(depth={depth}, activation={activation.name}{', bias' if biased else ''})")
