"""How far the fields of finite nets move in training: the raw material of a coordinate check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from tp_solver.finite import dynamics
from tp_solver.finite.dense import Array, Data, Numbers, Weights
from tp_solver.finite.dynamics import Base
from tp_solver.finite.experiment import clock_of, lanes, march, precision, prepare
from tp_solver.finite.simulate import MEMORY


@dataclass(frozen=True, eq=False)
class FieldChanges:
    """Root mean square changes from the first row to the last.

    Attributes:
        layers: change of h^l over sites and points, (widths, seeds, layers).
        output: change of f over points and outputs, (widths, seeds).
    """

    widths: tuple[int, ...]
    layers: np.ndarray
    output: np.ndarray


def field_changes(
    net: Any,
    parameterization: Any,
    training: Any,
    task: Any,
    gamma0: float = 1.0,
    widths: Sequence[int] = (64, 128, 256, 512),
    seeds: Any = 20,
    centred: bool = True,
    seed: int = 0,
    dtype: str = "float64",
    memory: float = MEMORY,
) -> FieldChanges:
    """Train finite nets as :func:`tp_solver.simulate` does (arguments and errors alike) and measure how far h^l and f move."""
    experiment = prepare(net, parameterization, training, task, gamma0, widths, seeds, centred, seed, dtype)
    need = experiment.working_bytes(max(experiment.widths), 2)
    batch = lanes(experiment, memory, need, held=0)

    def fields(weights: Weights, base: Base, numbers: Numbers, data: Data) -> Array:
        return dynamics.layer_fields(experiment.net, weights, numbers, data)

    layers, output = [], []
    with precision():
        for width in experiment.widths:
            clock = clock_of(experiment, width)
            for k in range(0, len(experiment.seeds), batch):
                labels = experiment.seeds[k : k + batch]
                rows, (before, after) = march(experiment, width, labels, (0, experiment.training.steps), fields, clock)
                layers.append(np.asarray(jnp.sqrt(jnp.mean((after - before) ** 2, axis=(2, 3)))))
                output.append(np.asarray(jnp.sqrt(jnp.mean((rows["f"][:, -1] - rows["f"][:, 0]) ** 2, axis=(1, 2)))))
    shape = (len(experiment.widths), len(experiment.seeds))
    return FieldChanges(experiment.widths, np.concatenate(layers).reshape(*shape, -1), np.concatenate(output).reshape(shape))
