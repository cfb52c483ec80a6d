"""``simulate_at``: finite nets on many points for many steps, of which nothing is kept but predictions at chosen rows.

``simulate`` answers for every point at every step and keeps kernels: at a thousand points, a thousand steps and ten outputs that
costs seven times the training itself, and 0.4 GiB of tangent kernel per net. Here a step costs its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.errors import InputError
from tp_solver.finite import dynamics
from tp_solver.finite.dense import Array, Data, Net, Numbers, Weights
from tp_solver.finite.dynamics import Base, Clock, Course, Moving, Rule
from tp_solver.finite.ensemble import Ensemble
from tp_solver.finite.experiment import Experiment, clock_of, integers, moving_from, precision, prepare
from tp_solver.program.training import GradientDescent

BLOCK = 64
"""Steps per compiled call at most, so that Ctrl-C is answered."""


def simulate_at(
    rows: Sequence[int],
    net: Any,
    parameterization: Any,
    training: Any,
    task: Any,
    gamma0: float = 1.0,
    widths: Sequence[int] = (128, 512, 2048),
    seeds: Any = 8,
    centred: bool = False,
    seed: int = 0,
    dtype: str = "float32",
) -> Ensemble:
    """Train the nets of :func:`tp_solver.simulate` by descent, and read their predictions and losses at chosen rows only.

    Args:
        rows: rows 0..steps in ascending order; row t is the state after t updates.
        net, parameterization, training, task, gamma0, widths, seeds, centred, seed, dtype: as for :func:`tp_solver.simulate`; the
            same nets, up to rounding.

    Returns:
        An ensemble in which f, f_test, loss and loss_test have one entry per chosen row instead of one per step, always with an
        output axis, and which holds no kernels and no fields (``times`` is empty). ``first_bad`` counts chosen rows.
        :func:`tp_solver.extrapolate` takes several of the same rows.

    Raises:
        TPError: naming the argument, before any compilation.
    """
    experiment = prepare(net, parameterization, training, task, gamma0, widths, seeds, centred, seed, dtype)
    steps = experiment.training.steps
    if not isinstance(experiment.training, GradientDescent):
        raise InputError("training", experiment.training, "gradient descent", "tp.simulate follows a flow")
    rows = integers("rows", rows, 0, f"rows=(0, {steps})")
    if list(rows) != sorted(rows) or rows[-1] > steps:
        raise InputError("rows", rows, f"ascending integers from 0 to {steps}", "the last row is steps")
    with precision():
        nets = [[_readings(experiment, width, label, rows) for label in experiment.seeds] for width in experiment.widths]
    arrays = {name: np.array([[one[name] for one in line] for line in nets]) for name in nets[0][0]}
    return without_kernels(experiment, arrays)


def without_kernels(experiment: Experiment, arrays: dict[str, np.ndarray]) -> Ensemble:
    """An ensemble of predictions and losses alone.

    Args:
        arrays: f (W, S, rows, P, K), loss (W, S, rows), and f_test and loss_test where there are any.
    """
    lead, layers, P = (len(experiment.widths), len(experiment.seeds)), experiment.net.program.depth, experiment.task.P
    bad = np.any([~np.isfinite(a).reshape(*a.shape[:3], -1).all(axis=-1) for a in arrays.values()], axis=0)
    first = np.where(bad.any(axis=2), bad.argmax(axis=2), -1)
    no_kernels, no_fields = np.zeros((*lead, 0, 0, layers, P, P)), np.zeros((*lead, 0, layers, 0, P))
    return Ensemble(
        experiment.widths, experiment.seeds, (), experiment.gamma0, experiment.centred, experiment.net.program,
        experiment.parameterization, experiment.training, experiment.task,
        arrays["f"], arrays["loss"], arrays.get("f_test"), arrays.get("loss_test"),
        no_kernels, no_kernels, np.zeros((*lead, 0, P)), no_fields, no_fields, first,
    )  # fmt: skip


def _readings(experiment: Experiment, width: int, label: int, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """What one net answers at the rows, each with a leading axis of rows."""
    net, data = experiment.net, experiment.data
    numbers, clock = experiment.numbers(width), clock_of(experiment, width)
    weights = experiment.draw(width, (label,))
    base = Base(
        jnp.zeros_like(data.y)[None], None if data.X_test is None else jnp.zeros((1, data.X_test.shape[1], net.outputs), data.X.dtype)
    )
    if experiment.centred:
        start = dynamics.row(net, weights, base, numbers, data)
        base = Base(start["f"], start.get("f_test"))
    moving = moving_from(experiment, width, (label,), weights)
    found, now = [], 0
    for target in rows:
        while now < target:
            stop = min(now + BLOCK, target)
            moving = train(net, experiment.rule, moving, base, numbers, data, clock, now, stop)
            jax.block_until_ready(moving)
            now = stop
        found.append({name: np.asarray(v[0]) for name, v in dynamics.row(net, moving.weights, base, numbers, data).items()})
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train(net: Net, rule: Rule, moving: Moving, base: Base, numbers: Numbers, data: Data, clock: Clock, start: Any, stop: Any) -> Moving:
    """Updates ``start`` to ``stop - 1``, and nothing else; one compilation serves all lengths."""
    assert clock.course is not None  # simulate_at refuses flows
    course: Course = clock.course

    def one(moving: Moving, base: Base) -> Moving:
        def velocity(t: Array, w: Weights) -> Weights:
            x, y, f_0 = data.X, data.y, base.f
            p = jnp.full(len(y), 1 / len(y), x.dtype)
            if course.points is not None and course.weights is not None:
                chosen, p = course.points[t], course.weights[t]
                x, y, f_0 = x[:, chosen], y[chosen], f_0[chosen]
            slope = jax.grad(lambda v: jnp.sum(p * net.point_loss(net.predict(v, numbers, x) - f_0, y)))(w)
            return {name: -numbers.rate[name] * s for name, s in slope.items()}

        return jax.lax.fori_loop(start, stop, lambda t, old: rule.move(partial(velocity, t), old, clock, t), moving)

    return jax.vmap(one)(moving, base)
