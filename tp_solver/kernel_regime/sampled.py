"""Losses without closed form: the map iterated, or the flow integrated, over draws of the initial function
(``theory/kernel_training.md``, KT.1 and KT.2).

The state has a row for every point and, below them, one for every coefficient: c moves by e as f moves by K e.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from tp_solver.errors import BudgetError
from tp_solver.kernel_regime.stepped import steps_of
from tp_solver.kernel_regime.trajectory import KernelTrajectory, exact_trajectory, first_bad, last_good, point_losses, point_slopes, split
from tp_solver.program.losses import Loss
from tp_solver.program.training import GradientDescent, GradientFlow, Training

REPLICATES = 8
"""Independent scramblings that the standard errors come from."""
SOBOL_DIMENSIONS = 1024
"""Leading directions of the initial function that take Sobol coordinates; later ones are pseudo-random."""
RTOL, ATOL = 1e-10, 1e-12
"""Tolerances of the integrator per step; errors of the result are up to a hundred times larger."""
MAX_STEPS = 100_000
"""Steps of the integrator before it gives up."""

Rows = tuple[np.ndarray, ...]
"""Per time: mean of the state (Pa + P, K), mean products of f (Pa, Pa, K; a zero for a single draw), mean losses (points,)."""
Run = Callable[[np.ndarray], Rows]
"""Initial functions (n, Pa, K) -> what is reported of them, each part stacked along a leading axis (T + 1)."""


def sampled_trajectory(
    kernel: np.ndarray, y: np.ndarray, labels: np.ndarray, training: Training, covariance: np.ndarray | None, draws: int, seed: int
) -> KernelTrajectory:
    """Mean and covariance over draws of the initial function; one draw, zero, where it is not random.

    Args:
        kernel: (Pa, Pa), rates included; y: (P, K); labels: y, with test labels appended or not.
        covariance: of the initial function, (Pa, Pa), or None for a start at zero.
        draws: number of initial functions, rounded up to 16 times a power of two; seed: of their scramblings.

    Raises:
        BudgetError: if the integrator of a flow needs more steps than it may take.
    """
    all_points, outputs = len(kernel), y.shape[1]
    run = _runner(kernel, y, labels, training)
    if covariance is None:
        state, _, losses = run(np.zeros((1, all_points, outputs)))
        f, coefficients = state[:, :all_points], state[:, all_points:]
        return exact_trajectory(f, np.broadcast_to(0.0, (*f.shape[:2], all_points, outputs)), losses, coefficients)
    means, squares, losses_, coefficients_, second = [], [], [], [], np.zeros(())
    for start in _initial(covariance, outputs, draws, seed):
        state, square, loss = run(start)
        means.append(state[:, :all_points])
        coefficients_.append(state[:, all_points:])
        squares.append(np.einsum("taak->tak", square))
        losses_.append(loss)
        second = second + square / REPLICATES
    f = np.mean(means, axis=0)
    f_cov = second - f[:, :, None] * f[:, None]
    # variances about the common mean, so that the average over replicates is the reported one
    spread = np.stack(squares) - 2 * np.stack(means) * f + f**2
    train, test = split(np.stack(losses_), len(y))
    error = [np.std(v, axis=0, ddof=1) / np.sqrt(REPLICATES) for v in (np.stack(means), spread, train, test)]
    bad = first_bad(f, f_cov)
    return KernelTrajectory(
        f[:, : len(y)],
        f[:, len(y) :],
        f_cov,
        error[0],
        error[1],
        train.mean(axis=0),
        test.mean(axis=0),
        error[2],
        error[3],
        np.ascontiguousarray(np.stack(coefficients_)[:, last_good(bad)]),
        bad,
    )


def _initial(covariance: np.ndarray, outputs: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Initial functions (n, Pa, K) per replicate: scrambled Sobol points and their negatives."""
    from scipy.stats import qmc

    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-14 * values[-1]
    factor = (vectors[:, kept] * np.sqrt(values[kept]))[:, ::-1]
    half = 1 << int(np.ceil(np.log2(-(-draws // (2 * REPLICATES)))))
    dimensions = factor.shape[1] * outputs
    for stream in np.random.default_rng(seed).spawn(REPLICATES):
        uniform = qmc.Sobol(min(dimensions, SOBOL_DIMENSIONS), scramble=True, rng=stream).random(half)
        normal = ndtri(np.clip(uniform, 1e-16, 1 - 1e-16))
        normal = np.concatenate([normal, stream.standard_normal((half, dimensions - normal.shape[1]))], axis=1)
        f = np.einsum("ar,nrk->nak", factor, normal.reshape(half, factor.shape[1], outputs))
        yield np.concatenate([f, -f])


def _runner(kernel: np.ndarray, y: np.ndarray, labels: np.ndarray, training: Training) -> Run:
    reach = np.concatenate([kernel[:, : len(y)], np.eye(len(y))]) / len(y)
    run = partial(_flow, training) if isinstance(training, GradientFlow) else partial(_descent, training)

    def from_start(f: np.ndarray) -> Rows:
        start = np.concatenate([f, np.zeros((len(f), *y.shape))], axis=1)
        with jax.enable_x64(True):
            return run(*(jnp.asarray(a) for a in (reach, y, labels, start)))

    return from_start


def _report(loss: Loss, reach: jax.Array, labels: jax.Array, state: jax.Array) -> tuple[jax.Array, ...]:
    """Means over draws of the state, of the products of f and of the losses."""
    f = state[:, : len(reach) - reach.shape[1]]
    second = jnp.einsum("nak,nbk->abk", f, f) / len(f) if len(f) > 1 else jnp.zeros(())
    return jnp.mean(state, axis=0), second, jnp.mean(point_losses(loss, labels, f), axis=0)


def _velocity(loss: Loss, reach: jax.Array, y: jax.Array, state: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    """K e for the points and e for the coefficients, with e = -(1/P) dl/df, times weights (P,)."""
    return -jnp.einsum("ap,npk->nak", reach * weights, point_slopes(loss, y, state))


@partial(jax.jit, static_argnums=0)
def _step(
    loss: Loss,
    numbers: tuple[float, float, jax.Array],
    reach: jax.Array,
    y: jax.Array,
    labels: jax.Array,
    state: jax.Array,
    velocity: jax.Array,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """The next state, the velocity that leads to it, and the report of the present one.

    ``numbers``: momentum, factor of the learning rate, and P p (P,).
    """
    momentum, factor, weights = numbers
    velocity = _velocity(loss, reach, y, state, weights) + momentum * velocity
    return state + factor * velocity, velocity, _report(loss, reach, labels, state)


def _descent(training: GradientDescent, reach: jax.Array, y: jax.Array, labels: jax.Array, state: jax.Array) -> Rows:
    velocity, rows = jnp.zeros_like(state), []
    last = (0.0, np.ones(len(y)))
    for factor, weights in (*steps_of(training, len(y)), last):
        numbers = (training.momentum, float(factor), jnp.asarray(weights))
        state, velocity, row = _step(training.loss, numbers, reach, y, labels, state, velocity)
        rows.append(row)
    return tuple(np.stack([np.asarray(v) for v in part]) for part in zip(*rows, strict=True))


def _flow(training: GradientFlow, reach: jax.Array, y: jax.Array, labels: jax.Array, state: jax.Array) -> Rows:
    rows, exhausted = _integrated(training.loss, reach, y, labels, state, jnp.linspace(0.0, training.time, training.steps + 1))
    if exhausted:
        raise BudgetError(
            "time", f"a flow to time {training.time:g} that needs more than {MAX_STEPS} steps", "a flow that the integrator can follow",
            "the kernel's fastest mode is too fast for so long a time: shorten it, or use tp.GradientDescent below its critical rate",
        )  # fmt: skip
    return tuple(np.asarray(part) for part in rows)


@partial(jax.jit, static_argnums=0)
def _integrated(
    loss: Loss, reach: jax.Array, y: jax.Array, labels: jax.Array, state: jax.Array, times: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Reports at the given times, and whether the steps ran out; rows after a failure are infinite."""
    import diffrax

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, state, args: _velocity(loss, reach, y, state)),
        diffrax.Dopri8(),
        times[0],
        times[-1],
        None,
        state,
        saveat=diffrax.SaveAt(ts=times, fn=lambda t, state, args: _report(loss, reach, labels, state)),
        stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
        max_steps=MAX_STEPS,
        throw=False,
    )
    return solution.ys, solution.result == diffrax.RESULTS.max_steps_reached
