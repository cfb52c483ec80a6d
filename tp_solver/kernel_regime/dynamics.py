"""Training in the kernel regime: f moves by the constant tangent kernel times the error (``theory/kernel_regime.md``, KR.7 and KR.8).

Discrete time: f(t + 1) = f(t) + K e(t); flow: df/dt = K e; with e = -p dl/df on the training points, K all points by training
points with the learning rates inside. The mean over random initial functions is reported with its covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from scipy.special import ndtri

from tp_solver import checks
from tp_solver.elementwise import lower
from tp_solver.errors import BudgetError, InputError
from tp_solver.program.losses import Loss, gradient
from tp_solver.program.training import GradientDescent, GradientFlow, Training

REPLICATES = 8
"""Independent scramblings that the standard errors come from."""
SOBOL_DIMENSIONS = 1024
"""Leading directions of the initial function that take Sobol coordinates; later ones are pseudo-random."""
MEMORY = 2**31
"""Bytes that the stored covariances may take."""
RTOL, ATOL = 1e-9, 1e-11


@dataclass(frozen=True)
class KernelTrajectory:
    """Mean and covariance of the function over random initial functions.

    Attributes:
        f: mean on the training points, (T + 1, P, K).
        f_test: mean on the other points, (T + 1, Pa - P, K).
        f_cov: covariance over all points of each output, (T + 1, Pa, Pa, K).
        f_stderr: Monte-Carlo standard error of the mean on all points, (T + 1, Pa, K); zero where exact.
        variance_stderr: the same of the diagonal of ``f_cov``.
        loss, loss_test: mean over initial functions and over training (test) points of the loss, (T + 1,); NaN without test labels.
        loss_stderr, loss_test_stderr: their Monte-Carlo standard errors, zero where exact.
        first_bad: the first row that is not finite (a diverging run), or None.
    """

    f: np.ndarray
    f_test: np.ndarray
    f_cov: np.ndarray
    f_stderr: np.ndarray
    variance_stderr: np.ndarray
    loss: np.ndarray
    loss_test: np.ndarray
    loss_stderr: np.ndarray
    loss_test_stderr: np.ndarray
    first_bad: int | None


def dynamics(
    kernel: np.ndarray,
    y: np.ndarray,
    training: Training,
    f0_covariance: np.ndarray | None = None,
    draws: int = 2048,
    seed: int = 0,
    y_test: np.ndarray | None = None,
) -> KernelTrajectory:
    """Mean and covariance of f in the kernel regime.

    Squared error (any loss whose gradient is f - y) in closed form, mean and covariance alike. For other losses the exact
    map is iterated (for flow: integrated, tolerances 1e-9) over quasi-random antithetic initial functions in 8 independent
    scramblings, or once where the initial function is zero.

    Args:
        kernel: tangent kernel over all points (training points first), learning rates included, (Pa, Pa). For flow: rates
            per unit of time.
        y: targets as the loss reads them, (P,) or (P, K) with P <= Pa; outputs share the kernel and are independent at start.
        training: steps (or time) and loss; its learning rate is not read, as the kernel holds it.
        f0_covariance: covariance of the initial function, (Pa, Pa); at strength gamma0 it is the ``output_covariance`` over
            gamma0^2. None: f starts at zero. At gamma0 = 0 that covariance has no limit: pass None for the centred dynamics
            (for squared error its mean is the mean at every gamma0).
        draws: number of initial functions for losses without a closed form, rounded up to 16 times a power of two.
        seed: of the scramblings.
        y_test: targets of the other points, for ``loss_test`` only, (Pa - P,) or (Pa - P, K).

    Raises:
        InputError: for malformed arrays. BudgetError: if the covariances would not fit.
    """
    kernel = _symmetric("kernel", kernel)
    y = checks.array("y", y, ndim=(1, 2), hint="y is (P,) or (P, K)")
    y = y.reshape(len(y), -1)
    points, all_points = len(y), len(kernel)
    if points > all_points:
        raise InputError("y", f"{points} labels", f"at most {all_points}, the points of the kernel", "training points come first")
    checks.instance("training", training, (GradientDescent, GradientFlow), "a training rule", "tp.GradientDescent(lr=0.1, steps=100)")
    labels = y
    if y_test is not None:
        held = checks.array("y_test", y_test, ndim=(1, 2), hint="y_test is (Pa - P,) or (Pa - P, K)")
        held = held.reshape(len(held), -1)
        if held.shape != (all_points - points, y.shape[1]):
            raise InputError(
                "y_test", f"shape {held.shape}", f"shape {(all_points - points, y.shape[1])}", "one row per other point of the kernel"
            )
        labels = np.concatenate([y, held])
    draws = checks.integer("draws", draws, minimum=2 * REPLICATES)
    seed = checks.integer("seed", seed, minimum=0)
    covariance = np.zeros_like(kernel) if f0_covariance is None else _symmetric("f0_covariance", f0_covariance)
    if covariance.shape != kernel.shape:
        raise InputError("f0_covariance", f"shape {covariance.shape}", f"shape {kernel.shape}, like the kernel", "give it over all points")
    outputs = y.shape[1]
    affine = _is_affine(training.loss, outputs)
    stored = (training.steps + 1) * all_points**2 * 8 * (1 if affine else outputs)
    if stored > MEMORY and f0_covariance is not None:
        raise BudgetError(
            "f_cov", f"{stored / 2**30:.1f} GiB", f"at most {MEMORY / 2**30:.0f} GiB", "fewer steps or test points, or a centred run"
        )
    start = None if f0_covariance is None else covariance
    if affine:
        return _affine(kernel, y, labels, training, start)
    return _sampled(kernel, y, labels, training, start, draws, seed)


def _symmetric(field: str, value: np.ndarray) -> np.ndarray:
    out = checks.array(field, value, ndim=(2,), hint=f"{field} is (Pa, Pa)")
    scale = np.abs(out).max()
    if out.shape[0] != out.shape[1] or not np.allclose(out, out.T, rtol=0, atol=1e-9 * scale):
        raise InputError(field, f"an array of shape {out.shape}", "a symmetric square matrix", "kernels are (Pa, Pa), symmetric")
    lowest = np.linalg.eigvalsh(out)[0]
    if lowest < -1e-8 * scale * len(out):
        raise InputError(field, f"an eigenvalue {lowest:.3g}", "a positive semidefinite matrix", "a kernel is a covariance")
    return (out + out.T) / 2


def _is_affine(loss: Loss, outputs: int) -> bool:
    """Whether dl/df = f - y, so that the dynamics is linear with unit slope."""
    f, y, _, slopes = gradient(loss, outputs)
    return all(sp.expand(s - a + b) == 0 for s, a, b in zip(slopes, f, y, strict=True))


def _filters(training: Training, eigenvalues: np.ndarray) -> np.ndarray:
    """(1 - r(t)) / lambda, where r(t) is what is left at time t of an error along an eigenvector: (T + 1, P)."""
    if isinstance(training, GradientFlow):
        t = np.linspace(0.0, training.time, training.steps + 1)[:, None]
        small = np.abs(eigenvalues) < 1e-300
        safe = np.where(small, 1.0, eigenvalues)
        return np.where(small, t, -np.expm1(-safe * t) / safe)
    sums = [np.zeros_like(eigenvalues)]
    for _ in range(training.steps):  # the geometric series, without a division by small eigenvalues
        sums.append(1.0 + (1.0 - eigenvalues) * sums[-1])
    return np.stack(sums)


def _affine(kernel: np.ndarray, y: np.ndarray, labels: np.ndarray, training: Training, covariance: np.ndarray | None) -> KernelTrajectory:
    """f(t) = f_0 + K p^(1/2) U g(t) U^T p^(1/2) (y - f_0), with p^(1/2) K p^(1/2) = U Lambda U^T on the training points."""
    points, all_points = len(y), len(kernel)
    root = points**-0.5
    eigenvalues, vectors = np.linalg.eigh(root * kernel[:points, :points] * root)
    with np.errstate(over="ignore", invalid="ignore"):
        filters = _filters(training, eigenvalues)
        reach = kernel[:, :points] @ (root * vectors)
        f = np.einsum("ai,ti,ik->tak", reach, filters, root * vectors.T @ y, optimize=True)
        shape = (len(filters), all_points, all_points, y.shape[1])
        f_cov = np.broadcast_to(0.0, shape)
        if covariance is not None:
            f_cov = np.broadcast_to(np.stack(list(_propagated(reach, filters, root * vectors, covariance)))[..., None], shape)
        # the loss is quadratic with unit curvature
        with jax.enable_x64(True):
            losses = np.asarray(_losses(training.loss, labels)(jnp.asarray(f)))
        losses = losses + np.einsum("taak->ta", f_cov)[:, : len(labels)] / 2
    return _exact(f, f_cov, losses, points)


def _exact(f: np.ndarray, f_cov: np.ndarray, losses: np.ndarray, points: int) -> KernelTrajectory:
    """A trajectory without sampling error."""
    none, zero = np.broadcast_to(0.0, f.shape), np.zeros(len(f))
    train, test = _split(losses, points)
    return KernelTrajectory(f[:, :points], f[:, points:], f_cov, none, none, train, test, zero, zero, _first_bad(f, f_cov))


def _split(losses: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over training and over test points of (..., points), NaN where there are no test labels."""
    train, test = losses[..., :points].mean(axis=-1), losses[..., points:]
    return train, test.mean(axis=-1) if test.shape[-1] else np.full(train.shape, np.nan)


def _losses(loss: Loss, labels: np.ndarray) -> Callable[[jax.Array], jax.Array]:
    """f (n, Pa, K) -> loss of every labelled point, (n, points)."""
    outputs = labels.shape[1]
    f_symbols, y_symbols, value, _ = gradient(loss, outputs)
    compiled = lower(value, (*f_symbols, *y_symbols))

    def losses(f: jax.Array) -> jax.Array:
        f = f[:, : len(labels)]
        return jnp.broadcast_to(compiled(*(f[..., k] for k in range(outputs)), *(labels[:, k] for k in range(outputs))), f.shape[:2])

    return losses


def _propagated(reach: np.ndarray, filters: np.ndarray, columns: np.ndarray, covariance: np.ndarray) -> Iterator[np.ndarray]:
    """A C A^T per time, A = 1 - (K ...) acting on the initial function of the training points."""
    for g in filters:
        a = np.eye(len(covariance))
        a[:, : len(columns)] -= (reach * g) @ columns.T
        yield a @ covariance @ a.T


def _sampled(
    kernel: np.ndarray, y: np.ndarray, labels: np.ndarray, training: Training, covariance: np.ndarray | None, draws: int, seed: int
) -> KernelTrajectory:
    """Mean and covariance over draws of the initial function; one draw, zero, where it is not random."""
    points, all_points = len(y), len(kernel)
    run = _runner(kernel, y, training, _summary(_losses(training.loss, labels), covariance is not None))
    if covariance is None:
        f, _, losses = run(np.zeros((1, all_points, y.shape[1])))
        return _exact(f, np.broadcast_to(0.0, (*f.shape[:2], all_points, f.shape[2])), losses, points)
    means, squares, losses_, second = [], [], [], np.zeros(())
    for start in _initial(covariance, y.shape[1], draws, seed):
        mean, square, loss = run(start)
        means.append(mean)
        squares.append(np.einsum("taak->tak", square))
        losses_.append(loss)
        second = second + square / REPLICATES
    f = np.mean(means, axis=0)
    f_cov = second - f[:, :, None] * f[:, None]
    # variances about the common mean, so that the average over replicates is the reported one
    spread = np.stack(squares) - 2 * np.stack(means) * f + f**2
    train, test = _split(np.stack(losses_), points)
    error = [np.std(v, axis=0, ddof=1) / np.sqrt(REPLICATES) for v in (np.stack(means), spread, train, test)]
    return KernelTrajectory(
        f[:, :points],
        f[:, points:],
        f_cov,
        error[0],
        error[1],
        train.mean(axis=0),
        test.mean(axis=0),
        error[2],
        error[3],
        _first_bad(f, f_cov),
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


Report = Callable[[jax.Array], tuple[jax.Array, ...]]


def _summary(losses: Callable[[jax.Array], jax.Array], random: bool) -> Report:
    """Means over draws of f (Pa, K), of its products (Pa, Pa, K; none where f is not random), and of the losses (points,)."""

    def summary(f: jax.Array) -> tuple[jax.Array, ...]:
        second = jnp.einsum("nak,nbk->abk", f, f) / len(f) if random else jnp.zeros(())
        return jnp.mean(f, axis=0), second, jnp.mean(losses(f), axis=0)

    return summary


def _velocity(kernel: np.ndarray, y: np.ndarray, loss: Loss) -> Callable[[jax.Array], jax.Array]:
    """f (n, Pa, K) -> K e, with e = -(1/P) dl/df."""
    outputs = y.shape[1]
    f_symbols, y_symbols, _, slopes = gradient(loss, outputs)
    compiled = [lower(s, (*f_symbols, *y_symbols)) for s in slopes]
    reach = kernel[:, : len(y)] / len(y)

    def velocity(f: jax.Array) -> jax.Array:
        trained = f[:, : len(y)]
        arguments = [*(trained[..., k] for k in range(outputs)), *(y[:, k] for k in range(outputs))]
        slope = jnp.stack([jnp.broadcast_to(s(*arguments), trained.shape[:2]) for s in compiled], axis=-1)
        return -jnp.einsum("ap,npk->nak", reach, slope)

    return velocity


Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""Initial functions (n, Pa, K) -> what is reported of them at every time, each stacked along a leading axis (T + 1)."""


def _runner(kernel: np.ndarray, y: np.ndarray, training: Training, report: Report) -> Run:
    """The compiled dynamics, to be run from several sets of initial functions."""
    velocity = _velocity(kernel, y, training.loss)
    return _flow(velocity, training, report) if isinstance(training, GradientFlow) else _descent(velocity, training, report)


def _descent(velocity: Callable, training: GradientDescent, report: Report) -> Run:
    step = jax.jit(lambda f: (f + velocity(f), report(f)))

    def run(start: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = []
        with jax.enable_x64(True):
            f = jnp.asarray(start)
            for _ in range(training.steps + 1):
                f, row = step(f)
                rows.append(row)
            return tuple(np.stack(part) for part in zip(*rows, strict=True))

    return run


def _flow(velocity: Callable, training: GradientFlow, report: Report) -> Run:
    from scipy.integrate import DOP853

    times = np.linspace(0.0, training.time, training.steps + 1)
    slope, summary = jax.jit(velocity), jax.jit(report)

    def run(start: np.ndarray) -> tuple[np.ndarray, ...]:
        def field(_: float, f: np.ndarray) -> np.ndarray:
            return np.asarray(slope(f.reshape(start.shape))).reshape(-1)

        with jax.enable_x64(True):
            rows = [summary(start)]
            solver = DOP853(field, 0.0, start.reshape(-1), training.time, rtol=RTOL, atol=ATOL)
            while solver.status == "running":
                solver.step()
                due = times[len(rows) :][times[len(rows) :] <= solver.t]
                if solver.status != "failed" and len(due):
                    between = solver.dense_output()
                    rows += [summary(between(t).reshape(start.shape)) for t in due]
            rows += [tuple(np.full_like(part, np.nan) for part in rows[0])] * (len(times) - len(rows))
            return tuple(np.stack(part) for part in zip(*rows, strict=True))

    return run


def _first_bad(f: np.ndarray, f_cov: np.ndarray) -> int | None:
    diagonal = np.einsum("taak->tak", f_cov)
    bad = ~(np.isfinite(f) & np.isfinite(diagonal)).all(axis=(1, 2))
    return int(np.argmax(bad)) if bad.any() else None
