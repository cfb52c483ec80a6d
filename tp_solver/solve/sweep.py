"""One sweep of the self-consistent equations: site processes from the lowest population to the highest, kernels in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.limit.transposition import COTANGENT
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.numerics.sites import Placement
from tp_solver.program.statements import ONE, Space, X
from tp_solver.solve.layout import ABOVE, BELOW, Columns, Home, Layout
from tp_solver.solve.machine import Env, loss_and_error, run
from tp_solver.solve.march import LADDER, Batch, Setting, initial_state, matrices
from tp_solver.solve.site_process import Drive, Run, gram_pairs, run_population, sides, site_populations, tangent_kernel
from tp_solver.solve.two_time import Facing, Grid, change, coefficients, initial, measure


class NonFinite(ArithmeticError):
    """A field is not finite; ``step`` is the first time."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"{what} at step {step}")
        self.step = step


@dataclass
class Noise:
    """Gaussian columns of one replicate, drawn again when a factor needs more of them (those in use keep their values)."""

    columns: Columns
    source: SampledColumns | ExactColumns
    capacity: dict[Home, int]
    drawn: dict[str, dict[str, np.ndarray]] | None = None

    def room(self, kernels: Mapping[str, Facing]) -> dict[str, dict[str, np.ndarray]]:
        """Columns for factors of these ranks."""
        for f in kernels.values():
            home = Home(f.side.matrix, f.side.side)
            if f.factor.rank > self.capacity[home]:
                self.capacity[home] = next((n for n in LADDER if n >= f.factor.rank * 5 // 4), f.factor.rank * 2)
                self.drawn = None
        if self.drawn is None:
            self.drawn = self.columns.draw(self.source, self.capacity)
        return self.drawn


class Swept(NamedTuple):
    """What a sweep leaves: outputs f (T, P, K), kernels per side, runs per population, equal-time inner products, and the
    largest relative change of a kernel."""

    f: np.ndarray
    kernels: dict[str, Facing]
    runs: tuple[Run, ...]
    grams: dict[str, np.ndarray]
    change: float

    @property
    def sites(self) -> int:
        """Number of samples."""
        return next(int(v.shape[-1]) for run in self.runs for v in (*run.vectors.values(), *run.kept.values()))


def sweep(
    setting: Setting, batch: Batch, noise: Noise, kernels: Mapping[str, Facing], e: np.ndarray, grid: Grid, keep: frozenset[int]
) -> Swept:
    """Run every population through all times under the present kernels and errors e (T, P, K); measure its kernels at once.

    Raises:
        NonFinite: with the first bad time.
    """
    plan = setting.plan
    now = dict(kernels)
    drive = Drive(batch.x, jnp.asarray(e), batch.gamma0, batch.rates)
    weights = e[:, :, 0] if setting.scalar else np.ones(e.shape[:2])
    learned = learned_pairs(plan)
    f = None
    runs, worst = [], 0.0
    grams = constant_grams(setting, batch)
    for index, population in enumerate(site_populations(plan)):
        drawn = noise.room(now)
        factors, fields, given = {}, {}, {}
        for s in population.sides:
            read = now[opposite(s.key)]  # its products land here
            columns = drawn[s.matrix]["eps_u" if read.side.side == BELOW else "eps_r"]
            factors[read.side.key] = read.factor
            fields[read.side.key] = (read.factor.rows, columns[: read.factor.rank])
            pairs = [(low, high) if read.side.side == BELOW else (high, low) for low, high in learned[s.matrix]]
            rate = float(batch.rates[s.matrix] * batch.gamma0)
            given[read.side.key] = coefficients(read, pairs, rate * weights, grid)
        sites = {m: jnp.asarray(drawn[m]["weights"]) for m in population.matrices}
        done = run_population(setting, index, drive, sites, fields, given, keep)
        _check(done)
        for s in population.sides:
            other = opposite(s.key)
            after = measure(now[s.key], factors[other], done.vectors[s.key], fields[other][1], grid)
            worst = max(worst, change(after, now[s.key]))
            now[s.key] = after
        grams |= done.grams
        f = done.output if done.output is not None else f
        runs.append(done)
    assert f is not None
    return Swept(f, now, tuple(runs), grams, worst)


def learned_pairs(plan: Layout) -> dict[str, list[tuple[str, str]]]:
    """Hidden matrix -> (lower, upper) vectors whose outer products it learns."""
    out: dict[str, list[tuple[str, str]]] = {m: [] for m in plan.hidden}
    for p in plan.backward.pairs:
        if p.matrix in out:
            out[p.matrix].append((p.adjoint, p.input) if p.transpose else (p.input, p.adjoint))
    return out


def opposite(key: str) -> str:
    """The other side of the same matrix."""
    matrix, side = key.rsplit(".", 1)
    return f"{matrix}.{ABOVE if side == BELOW else BELOW}"


def constant_grams(setting: Setting, batch: Batch) -> dict[str, np.ndarray]:
    """Inner products of the data variables and, for one output, of the cotangent."""
    x = np.asarray(batch.x)
    ones = np.ones((len(x), len(x)))
    return {f"{X}|{X}": x @ x.T, f"{ONE}|{ONE}": ones, f"{COTANGENT}|{COTANGENT}": ones}


def _check(done: Run) -> None:
    named = {**done.kept, **done.vectors} | ({} if done.output is None else {"f": done.output})
    for name, v in named.items():
        finite = np.isfinite(v).reshape(len(v), -1).all(axis=1)
        if not finite.all():
            raise NonFinite(name, int(np.argmin(finite)))


class Start(NamedTuple):
    """The lazy guess: tangent kernel with lr (P, P), errors (T, P, K), and kernels per side."""

    kernel: np.ndarray
    e: np.ndarray
    kernels: dict[str, Facing]


def lazy_start(setting: Setting, batch: Batch, noise: Noise, grid: Grid) -> Start:
    """Kernels as they are before training, constant in time, and the errors of the linear dynamics they drive.

    The program is run on the sites of time 0, forward once and backward once per output; the tangent kernel is that of the
    first output, as all outputs have the same one before training.
    """
    plan = setting.plan
    points = grid.points
    both = [s for pair in sides(plan).values() for s in pair]
    capacity = {Home(s.matrix, s.side): len(s.variables) * points for s in both}
    state = initial_state(noise.columns, noise.source, capacity, {k: 1 for k in plan.observers}, False, Placement(), batch.x.dtype)
    acting = matrices(plan, state, batch.tol)
    env: Env = {X: batch.x, ONE: jnp.ones_like(batch.x[:, :1])}
    env = run(plan.program.statements, env, acting)
    f0 = np.asarray(env[plan.program.output] / batch.gamma0)
    unit = [
        run(plan.backward.statements, env | {COTANGENT: jnp.zeros_like(batch.y).at[:, k].set(1.0)}, acting) for k in range(batch.y.shape[1])
    ]
    env = unit[0]
    spaces = {**plan.program.spaces(), **plan.backward.spaces}
    grams = constant_grams(setting, batch)
    for a, b in gram_pairs(plan):
        if spaces[a] is Space.WIDTH:
            grams[f"{a}|{b}"] = np.asarray(env[a] @ env[b].T) / env[a].shape[1]
    kernel = tangent_kernel(plan, {m: float(r) for m, r in batch.rates.items()}, grams)
    flat = np.broadcast_to(f0, (grid.times, *f0.shape))
    nothing = jnp.zeros((grid.times, *batch.y.shape))
    bound = 10.0 * max(1.0, float(jnp.max(jnp.abs(batch.y))))
    e = np.asarray(corrected(setting, batch, jnp.asarray(flat), nothing, jnp.broadcast_to(kernel, (grid.times, points, points)), bound))
    signal = np.ones((*e.shape[:2], 1)) if setting.scalar else e
    vectors = {}
    for s in both:
        stacked = []
        for v in s.variables:  # backward fields are linear in the cotangent
            backward = v in plan.backward.spaces
            parts = [np.asarray(u[v]) for u in unit[: signal.shape[2]]] if backward else [np.asarray(env[v])]
            share = signal if backward else np.ones((*e.shape[:2], 1))
            stacked.append(sum(share[:, :, k, None] * part for k, part in enumerate(parts)))
        vectors[s.key] = np.stack(stacked, axis=1)
    return Start(kernel, e, initial(plan, grid, vectors))


@partial(jax.jit, static_argnums=0)
def corrected(setting: Setting, batch: Batch, f: jax.Array, e: jax.Array, kernel: jax.Array, bound: Any) -> jax.Array:
    """Causal quasi-Newton step for the errors (T, P, K).

    Given outputs f (T, P, K) found with errors e, integrate what other errors would have made of them,
    ``f~(t + 1) = f~(t) + f(t + 1) - f(t) + K(t) (e~(t) - e(t))`` with the tangent kernel K (T, P, P), lr included; the
    fixed point f~ = f is unchanged. ``bound`` limits f~, for guesses whose linear dynamics would run away.
    """

    def step(now: jax.Array, at: Any) -> Any:
        ahead, used, k = at
        _, error = loss_and_error(setting.loss, now, batch.y)
        new = batch.p[:, None] * error
        return jnp.clip(now + ahead + k @ (new - used), -bound, bound), new

    ahead = jnp.concatenate([f[1:] - f[:-1], jnp.zeros_like(f[:1])])
    _, out = jax.lax.scan(step, f[0], (ahead, e, kernel))
    return out


@partial(jax.jit, static_argnums=0)
def errors(setting: Setting, batch: Batch, f: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Loss (T,) and weighted errors (T, P, K) of outputs f (T, P, K)."""

    def one(now: jax.Array) -> tuple[jax.Array, jax.Array]:
        per_point, error = loss_and_error(setting.loss, now, batch.y)
        return jnp.sum(batch.p * per_point), batch.p[:, None] * error

    return jax.vmap(one)(f)


def operations(sites: int, kernels: Mapping[str, Facing]) -> float:
    """Floating-point operations of a sweep: per side of a hidden matrix with n vectors of S sites, rank k, and n' vectors
    opposite, S n n' for the causal sums (half of a full product), S n^2 for the symmetric kernel, and 2 S n k each for
    noise and response. Factors and entrywise maps are left out."""
    total = 0.0
    for f in kernels.values():
        n, m = f.response.shape
        total += sites * (n * m + n * n + 4.0 * n * f.factor.rank)
    return total
