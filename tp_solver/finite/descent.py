"""Optimisers at work on a linearised net, until it interpolates or does not.

Optimisers that rescale every weight by its own history leave the span of the gradients, in which gradient descent stays, and end
elsewhere, depending on batches, their order and the rate (Nonnenmacher, Reeb & Steinwart 2021, arXiv 2011.02408).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.finite.dense import Array, Net, Weights
from tp_solver.finite.experiment import precision
from tp_solver.finite.linearised import Expansion, LinearisedNet, expanded
from tp_solver.finite.minimiser import fitting, shaped
from tp_solver.finite.optimisers import transformation
from tp_solver.program.losses import SquaredError
from tp_solver.program.task import Task

DIVERGED = 1e8
"""A residual that many times the initial one (or the largest label) has diverged."""
CALL_SECONDS = 0.5
"""Length of one compiled call, so that Ctrl-C is answered."""


class Ending(StrEnum):
    """How a descent ended; ``advice`` says what to do about it."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    DIVERGED = "diverged"

    @property
    def advice(self) -> str:
        """What to do about it."""
        return {
            Ending.CONVERGED: "nothing to do",
            Ending.MAX_STEPS: "allow more steps; if the residual has stopped falling, lower the rate or let it decay",
            Ending.DIVERGED: "lower the rate: full-batch descent needs lr < twin.critical_rate(X), batches of b points less",
        }[self]


@dataclass(frozen=True, eq=False)
class Descent:
    """Where an optimiser took a linearised net; :func:`descend` makes one.

    Attributes:
        f, f_test: predictions at the end, shaped like the labels; ``f_test`` is None without test points.
        w: the weights at the end, by matrix.
        residual: largest |f - y| on the training points.
        steps: updates made.
        status: how it ended. Only a converged run says where the optimiser goes.
    """

    f: np.ndarray
    f_test: np.ndarray | None
    w: dict[str, np.ndarray]
    residual: float
    steps: int
    status: Ending

    @property
    def success(self) -> bool:
        """Whether the residual fell below the tolerance."""
        return self.status is Ending.CONVERGED

    @property
    def message(self) -> str:
        """What the status means."""
        return f"{self.status} after {self.steps} steps, largest training residual {self.residual:.1e}: {self.status.advice}"


def descend(
    twin: Any,
    task: Any,
    optimiser: Any,
    batch: int | None = None,
    seed: int = 0,
    steps: int = 1_000_000,
    tol: float = 1e-7,
    centred: bool = False,
) -> Descent:
    """Train a linearised net on the squared error until it interpolates.

    The optimiser acts on u = w / sqrt(gamma0^2 eta n^-c), the coordinates in which the library's update is plain gradient descent
    with rate lr; they are the same for all parameterizations that a theta-shift connects. A batch's loss is the mean over its
    points. No Jacobian is formed: memory is a few times the weights.

    Args:
        twin: a linearised net, ``tp.linearise(tp.draw(...))``.
        task: labels of any size; test points are optional.
        optimiser: ``tp.SGD(lr)``, ``tp.AdaGrad(lr)``, ``tp.Adam(lr)``, or any optax ``GradientTransformation``.
        batch: points per update, drawn without replacement in a new order every epoch; None for all points.
        seed: of the orders.
        steps: updates at most, to the next whole epoch.
        tol: the run has converged once max |f - y| over the training points is below, in units of y.
        centred: subtract f_0 on all points before the loss.

    Returns:
        Descent: with a status; nothing is raised if the optimiser does not arrive.

    Raises:
        InputError: naming the argument, before any compilation.
    """
    twin, task, y = fitting(twin, task)
    rule = transformation(optimiser)
    batch = task.P if batch is None else checks.integer("batch", batch, minimum=1, maximum=task.P, hint="None takes all points")
    seed = checks.integer("seed", seed, minimum=0)
    steps = checks.integer("steps", steps, minimum=1)
    tol = checks.number("tol", tol, above=0.0)
    floor = 100 * np.finfo(twin.of.dtype).eps * max(1.0, float(np.abs(y).max()))
    if tol < floor:
        raise InputError("tol", tol, f"at least {floor:.1g} in {twin.of.dtype}", "draw the net in float64, or loosen the tolerance")
    centred = checks.flag("centred", centred)
    with precision():
        numbers = twin.numbers
        data = _data(twin, task, y, centred)
        trained = [name for name, rate in numbers.of.tangent.items() if rate > 0]
        rest = {name: jnp.zeros_like(numbers.origin[name]) for name in trained}
        residual = _residual(twin.net, rest, numbers, data)
        state = State(rest, rule.init(rest), jnp.zeros((), int), residual)
        last = DIVERGED * max(float(residual), float(np.abs(y).max()))
        per_epoch = -(-task.P // batch)
        state = _run(twin.net, rule.update, batch, state, numbers, data, jax.random.key(seed), -(-steps // per_epoch), tol, last)
        w = {name: v + _move(state.u, numbers)[name] if name in state.u else v for name, v in numbers.origin.items()}
        scalar = task.scalar(SquaredError())
        # a centred function is f - f_0
        f, f_test = (
            None if X is None else shaped(twin.predict(X, w) - (twin.predict(X) if centred else 0.0), scalar) for X in (task.X, task.X_test)
        )
        end = float(state.residual)
        status = Ending.CONVERGED if end < tol else Ending.MAX_STEPS if end <= last else Ending.DIVERGED
        arrays = {name: np.asarray(v) for name, v in w.items()}
    return Descent(f, f_test, arrays, end, int(state.epoch) * per_epoch, status)  # type: ignore[arg-type]


class Batchable(NamedTuple):
    """Inputs (D, P) and what their predictions f_lin are compared with, (P, K)."""

    x: Array
    target: Array


class State(NamedTuple):
    """Of a descent between two epochs: the coordinates, the optimiser's state, the epochs done, the residual."""

    u: Weights
    memory: Any
    epoch: Any
    residual: Any


def _data(twin: LinearisedNet, task: Task, y: np.ndarray, centred: bool) -> Batchable:
    target = y + (twin.predict(task.X) if centred else 0.0)
    return Batchable(twin.of.columns("X", task.X), jnp.asarray(target, twin.of.dtype))


def _run(
    net: Net,
    update: Callable,
    batch: int,
    state: State,
    numbers: Expansion,
    data: Batchable,
    key: Array,
    epochs: int,
    tol: float,
    last: float,
) -> State:
    """Epochs until the end, in calls of about half a second."""
    length = 1
    while int(state.epoch) < epochs and tol <= float(state.residual) <= last:
        began = time.perf_counter()
        stop = min(int(state.epoch) + length, epochs)
        state = _epochs(net, update, batch, state, numbers, data, key, stop, tol, last)
        jax.block_until_ready(state.residual)
        elapsed = max(time.perf_counter() - began, 1e-9)
        length = max(1, min(4 * length, int(length * CALL_SECONDS / elapsed)))
    return state


@partial(jax.jit, static_argnums=(0, 1, 2))
def _epochs(
    net: Net, update: Callable, batch: int, state: State, numbers: Expansion, data: Batchable, key: Array, stop: Any, tol: Any, last: Any
) -> State:
    """Epochs up to number ``stop``, or until the residual is below ``tol`` or above ``last``."""
    points = data.x.shape[1]
    count = -(-points // batch)
    # a last batch that is not full is filled with points that do not count
    counts = jnp.arange(count * batch) < points

    def step(carry: tuple[Weights, Any], chosen: tuple[Array, Array]) -> tuple[tuple[Weights, Any], None]:
        u, memory = carry
        index, counted = chosen
        x = data.x[:, index]
        error, pull = jax.vjp(lambda v: _error(net, v, numbers, Batchable(x, data.target[index])), u)
        (slope,) = pull(jnp.where(counted, 1.0 / jnp.sum(counted), 0.0).astype(error.dtype)[:, None] * error)
        moves, memory = update(slope, memory, u)
        return (jax.tree.map(jnp.add, u, moves), memory), None

    def epoch(state: State) -> State:
        order = jnp.arange(points) if batch == points else jax.random.permutation(jax.random.fold_in(key, state.epoch), points)
        order = jnp.resize(order, (count * batch,))
        chosen = (order.reshape(count, batch), counts.reshape(count, batch))
        (u, memory), _ = jax.lax.scan(step, (state.u, state.memory), chosen)
        return State(u, memory, state.epoch + 1, _residual(net, u, numbers, data))

    def going(state: State) -> Array:
        return (state.epoch < stop) & (state.residual >= tol) & (state.residual <= last)

    return jax.lax.while_loop(going, epoch, state)


def _move(u: Weights, numbers: Expansion) -> Weights:
    """w - w0; matrices without a rate stay."""
    still = {name: jnp.zeros_like(w) for name, w in numbers.origin.items() if name not in u}
    return still | {name: jnp.sqrt(numbers.of.tangent[name]) * v for name, v in u.items()}


def _error(net: Net, u: Weights, numbers: Expansion, data: Batchable) -> Array:
    return expanded(net, numbers, _move(u, numbers), data.x) - data.target


@partial(jax.jit, static_argnums=0)
def _residual(net: Net, u: Weights, numbers: Expansion, data: Batchable) -> Array:
    return jnp.max(jnp.abs(_error(net, u, numbers, data)))
