"""The compiled parts of a run: training steps, and the look at a net between them.

All functions carry a leading axis of nets ("lanes"); only the weights, the rows and the centring differ between lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tp_solver.finite import tangent
from tp_solver.finite.dense import Array, Data, Net, Numbers, Weights
from tp_solver.program.statements import Space

Rows = dict[str, Array]
Velocity = Callable[[Weights], Weights]
"""Minus the gradient times the rate."""


class Base(NamedTuple):
    """What centring subtracts: the initial predictions, or zeros."""

    f: Array
    f_test: Array | None


class Course(NamedTuple):
    """Numbers of every update of gradient descent.

    Attributes:
        factor: of the learning rate, (steps,).
        carry: share of the velocity that is carried on.
        keep, kick: per matrix the share that is kept and the deviation of the noise, (steps,); empty where there is none of either.
        points, weights: the points of every batch and their weights in the loss, (steps, size); None for the full batch.
    """

    factor: Array
    carry: Any
    keep: dict[str, Array]
    kick: dict[str, Array]
    points: Array | None
    weights: Array | None


class Clock(NamedTuple):
    """Time per reported row and integrator steps per row of a flow, or the course of gradient descent."""

    time: Any = None
    substeps: Any = None
    course: Course | None = None


class Moving(NamedTuple):
    """The weights, their velocity (without entries where the rule forgets it), and a key where there is noise."""

    weights: Weights
    velocity: Weights
    key: Array | None


class Look(NamedTuple):
    """One net at one time: (layers, n, P) arrays, the tangent kernel (P, K, P, K), and some sites for densities."""

    phi: Array
    g: Array
    ntk: Array
    h_sites: Array
    z_sites: Array


def _moved(weights: Weights, by: float | Array, velocity: Weights) -> Weights:
    return {name: w + by * velocity[name] for name, w in weights.items()}


def descent(velocity: Velocity, state: Moving, clock: Clock, t: Array) -> Moving:
    """One update of gradient descent; the rates already hold the step."""
    course = _course(clock)
    return state._replace(weights=_moved(state.weights, course.factor[t], velocity(state.weights)))


def heavy_ball(velocity: Velocity, state: Moving, clock: Clock, t: Array) -> Moving:
    """One update of gradient descent that carries a share of the velocity on."""
    course = _course(clock)
    carried = _moved(velocity(state.weights), course.carry, state.velocity)
    return state._replace(weights=_moved(state.weights, course.factor[t], carried), velocity=carried)


def langevin(velocity: Velocity, state: Moving, clock: Clock, t: Array) -> Moving:
    """One update with weight decay or noise, and a velocity if there is one: the general rule."""
    course = _course(clock)
    new = (heavy_ball if state.velocity else descent)(velocity, state, clock, t)
    weights = new.weights
    if course.keep:  # decay acts on the weights before the update
        weights = {name: w + (course.keep[name][t] - 1) * state.weights[name] for name, w in weights.items()}
    if course.kick and state.key is not None:
        keys = jax.random.split(jax.random.fold_in(state.key, t), len(weights))
        noise = {name: jax.random.normal(key, weights[name].shape, weights[name].dtype) for name, key in zip(weights, keys, strict=True)}
        weights = {name: w + course.kick[name][t] * noise[name] for name, w in weights.items()}
    return new._replace(weights=weights)


def _course(clock: Clock) -> Course:
    assert clock.course is not None  # clock_of gives one to every descent
    return clock.course


def runge_kutta(velocity: Velocity, state: Moving, clock: Clock, t: Array) -> Moving:
    """One reported interval of gradient flow by the classic fourth-order rule."""
    dt = clock.time / clock.substeps

    def step(_: Array, w: Weights) -> Weights:
        k = velocity(w)
        total = k
        for fraction, weight in ((0.5, 2.0), (0.5, 2.0), (1.0, 1.0)):
            k = velocity(_moved(w, fraction * dt, k))
            total = _moved(total, weight, k)
        return _moved(w, dt / 6, total)

    return state._replace(weights=jax.lax.fori_loop(0, clock.substeps, step, state.weights))


def _forgotten(weights: Weights) -> Weights:
    return {}


def _at_rest(weights: Weights) -> Weights:
    return {name: jnp.zeros_like(w) for name, w in weights.items()}


@dataclass(frozen=True)
class Rule:
    """How weights move from one reported row to the next, how many arrays of the size of the weights that takes, and the velocity
    before the first."""

    move: Callable[[Velocity, Moving, Clock, Array], Moving]
    copies: int
    before: Callable[[Weights], Weights] = _forgotten


DESCENT = Rule(descent, 1)
HEAVY_BALL = Rule(heavy_ball, 2, _at_rest)
FADING = Rule(langevin, 1)
FADING_BALL = Rule(langevin, 2, _at_rest)
LANGEVIN = Rule(langevin, 4)
LANGEVIN_BALL = Rule(langevin, 5, _at_rest)
RUNGE_KUTTA = Rule(runge_kutta, 5)


def _loss(net: Net, weights: Weights, base: Base, numbers: Numbers, data: Data) -> Array:
    return jnp.mean(net.point_loss(net.predict(weights, numbers, data.X) - base.f, data.y))


def _batch_loss(net: Net, weights: Weights, base: Base, numbers: Numbers, data: Data, course: Course, t: Array) -> Array:
    """The loss of the batch of step t."""
    if course.points is None or course.weights is None:
        return _loss(net, weights, base, numbers, data)
    chosen = course.points[t]
    f = net.predict(weights, numbers, data.X[:, chosen]) - base.f[chosen]
    return jnp.sum(course.weights[t] * net.point_loss(f, data.y[chosen]))


def _training_row(net: Net, weights: Weights, base: Base, numbers: Numbers, data: Data) -> Rows:
    f = net.predict(weights, numbers, data.X) - base.f
    return {"f": f, "loss": jnp.mean(net.point_loss(f, data.y))}


def _test_row(net: Net, weights: Weights, base: Base, numbers: Numbers, data: Data) -> Rows:
    if data.X_test is None or base.f_test is None:
        return {}
    f = net.predict(weights, numbers, data.X_test) - base.f_test
    return {"f_test": f} if data.y_test is None else {"f_test": f, "loss_test": jnp.mean(net.point_loss(f, data.y_test))}


@partial(jax.jit, static_argnums=0)
def row(net: Net, weights: Weights, base: Base, numbers: Numbers, data: Data) -> Rows:
    """Predictions and losses of the nets as they are: ``f`` (lanes, P, K), ``loss`` (lanes,), and the same for test points."""

    def one(w: Weights, base: Base) -> Rows:
        return _training_row(net, w, base, numbers, data) | _test_row(net, w, base, numbers, data)

    return jax.vmap(one)(weights, base)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def advance(
    net: Net, rule: Rule, moving: Moving, rows: Rows, base: Base, numbers: Numbers, data: Data, clock: Clock, start: Any, stop: Any
) -> tuple[Moving, Rows]:
    """Train from row ``start`` to row ``stop``, writing rows start..stop-1 (test points: start+1..stop).

    One compilation serves all lengths.
    """
    first = [m.name for m in net.program.matrices if m.role.domain is Space.DATA]

    def one(moving: Moving, rows: Rows, base: Base) -> tuple[Moving, Rows]:
        def velocity(t: Array, w: Weights) -> Weights:
            def loss(v: Weights) -> Array:
                if clock.course is None:
                    return _loss(net, v, base, numbers, data)
                return _batch_loss(net, v, base, numbers, data, clock.course, t)

            slope = jax.grad(loss)(w)
            # One, but known only after the last gradient: XLA then updates in place, where it would else copy every matrix
            # once per step. A gradient that is not finite makes it NaN.
            done = 1.0 + 0.0 * sum(jnp.sum(slope[name]) for name in first)
            return {name: -(done * numbers.rate[name]) * s for name, s in slope.items()}

        def body(t: Array, state: tuple[Moving, Rows]) -> tuple[Moving, Rows]:
            old, rows = state
            new = rule.move(partial(velocity, t), old, clock, t)
            # Test points meet the new weights: read after the update, the old ones need no copy.
            now = {k: (t, v) for k, v in _training_row(net, old.weights, base, numbers, data).items()}
            now |= {k: (t + 1, v) for k, v in _test_row(net, new.weights, base, numbers, data).items()}
            return new, {k: rows[k].at[at].set(v) for k, (at, v) in now.items()}

        return jax.lax.fori_loop(start, stop, body, (moving, rows))

    return jax.vmap(one)(moving, rows, base)


@partial(jax.jit, static_argnums=0)
def layer_fields(net: Net, weights: Weights, numbers: Numbers, data: Data) -> Array:
    """The fields h^l of every reported layer, shape (lanes, layers, n, P)."""

    def one(w: Weights) -> Array:
        values = net.variables(w, numbers, data.X)
        return jnp.stack(_rows_of_positions(net, values, [layer.pre for layer in net.program.layers], mean=True))

    return jax.vmap(one)(weights)


def _rows_of_positions(net: Net, values: Mapping[str, Array], names: Sequence[str], mean: bool) -> list[Array]:
    """Variables (n, P J) over a grid as (n J', P), scaled so that 1/(n J') times a scalar product of columns is 1/n times the sum
    (mean) over positions and sites; J' is the largest number of positions, the rest is zeros."""
    grids = net.program.grids()
    counts = [prod(grids[v]) for v in names]
    out = []
    for name, count in zip(names, counts, strict=True):
        v = values[name]
        rows = v.reshape(len(v), -1, count).swapaxes(1, 2).reshape(len(v) * count, -1)
        scale = (max(counts) / (count if mean else 1)) ** 0.5
        missing = len(v) * (max(counts) - count)
        out.append(rows if scale == 1 and not missing else jnp.pad(scale * rows, ((0, missing), (0, 0))))
    return out


def _first_position(net: Net, values: Mapping[str, Array], names: Sequence[str], sites: int) -> list[Array]:
    """Some sites of variables over a grid at its first position, (sites, P)."""
    grids = net.program.grids()
    return [values[v].reshape(len(values[v]), -1, prod(grids[v]))[:sites, :, 0] for v in names]


@partial(jax.jit, static_argnums=(0, 1))
def look(net: Net, sites: int, weights: Weights, base: Base, numbers: Numbers, data: Data) -> Look:
    """Fields and kernels of the nets as they are (``theory/notation.md``, NO.4).

    Backward fields are ``g = gamma0 n^m df_mu/dh_mu`` for one output and ``-gamma0 n^m dLoss/dh_mu`` for several (of the batch, if
    ``data`` has its weights).
    The tangent kernel is ``K = sum_j gamma0^2 eta_j n^-c_j <df_mu/dw^j, df_nu/dw^j>``, so that gradient flow obeys
    ``df/dt = sum_nu K e_nu`` per unit lr, and gamma0 drops out.
    """
    layers = net.program.layers
    names = {v for layer in layers for v in (layer.pre, layer.post)} | {s.out for s in net.program.products()}

    def one(w: Weights, base: Base) -> Look:
        def run(shifts: dict[str, Array]) -> dict[str, Array]:
            return net.variables(w, numbers, data.X, shifts)

        def predictions(shifts: dict[str, Array]) -> Array:
            return net.outputs_of(run(shifts), numbers)

        directions = jnp.eye(net.outputs)
        values, each = tangent.adjoints(net, w, numbers, data.X, directions, names)
        zeros = {v: jnp.zeros_like(values[v]) for v in names}
        if net.outputs == 1:
            signal = {v: each[v][0] for v in names}
        else:

            def loss(shifts: dict[str, Array]) -> Array:
                each = net.point_loss(predictions(shifts) - base.f, data.y)
                return jnp.mean(each) if data.p is None else jnp.sum(data.p * each)

            slope = jax.grad(loss)(zeros)
            signal = {v: -slope[v] for v in names}
        pre, post = [layer.pre for layer in layers], [layer.post for layer in layers]
        g = numbers.backward * jnp.stack(_rows_of_positions(net, signal, pre, mean=False))
        z = numbers.backward * jnp.stack(_first_position(net, signal, post, sites))
        h = jnp.stack(_first_position(net, values, pre, sites))
        phi = jnp.stack(_rows_of_positions(net, values, post, mean=True))
        uses = tangent.outer_products(net, values, each, directions, numbers, data.X.shape[1])
        return Look(phi, g, tangent.kernel(net, uses, uses, numbers), h, z)

    return jax.vmap(one)(weights, base)


@partial(jax.jit, static_argnums=0)
def curvature(net: Net, f: Array, y: Array) -> Array:
    """Largest norm over points of the Hessian of l with respect to the outputs."""

    def point(f_point: Array, y_point: Array) -> Array:
        return net.point_loss(f_point[None], y_point[None])[0]

    return jnp.max(jnp.linalg.norm(jax.vmap(jax.hessian(point))(f, y), axis=(1, 2)))
