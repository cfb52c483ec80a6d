"""The single-site process of a population of sites, run through all times under given Gaussian fields and two-time kernels.

What a hidden matrix returns at time t is ``u(t) + sum over earlier vectors y on its other side of C(t, s) y(s)``: u was
sampled beforehand, and C holds responses and learned part (``theory/feature_learning.md``). All other statements, the
updates of input and readout weights among them, are executed as they stand. Times come in blocks: the sums over earlier
blocks are matrix products, those within a block are taken step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.limit.transposition import COTANGENT, Ties
from tp_solver.program.statements import ONE, Product, Role, Space, Statement, X
from tp_solver.solve.layout import ABOVE, BELOW, Layout
from tp_solver.solve.machine import Env, execute
from tp_solver.solve.march import Setting
from tp_solver.solve.operator import SITES

BLOCK = 16
"""Times per block."""


@dataclass(frozen=True)
class Side:
    """The vectors that a hidden matrix meets on one side, in the order of their products."""

    matrix: str
    side: str
    variables: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.matrix}.{self.side}"


@dataclass(frozen=True, eq=False)
class Population:
    """Sites that are the same neurons, and what happens on them in one step of training.

    Attributes:
        statements: forward, then backward.
        matrices: input, bias and readout matrices whose weights live on these sites.
        sides: sides of hidden matrices whose vectors live here.
        kept: further variables whose samples are kept.
        grams: pairs of variables whose equal-time inner products enter the tangent kernel.
    """

    statements: tuple[Statement, ...]
    matrices: tuple[str, ...]
    sides: tuple[Side, ...]
    kept: tuple[str, ...]
    grams: tuple[tuple[str, str], ...]


class Run(NamedTuple):
    """What one pass over all times leaves.

    ``vectors``: side key -> (T, uses, P, S); ``kept``: variable -> (T, P, S); ``grams``: "a|b" -> (T, P, P);
    ``output``: (T, P, K) network output over gamma0 where the readout sits here, else None; ``fields``: time -> variable -> (P, S).
    """

    vectors: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]
    grams: dict[str, np.ndarray]
    output: np.ndarray | None
    fields: dict[int, dict[str, np.ndarray]]


def sequence(plan: Layout) -> tuple[Statement, ...]:
    """All statements of a step."""
    return (*plan.program.statements, *plan.backward.statements)


def sides(plan: Layout) -> dict[str, tuple[Side, Side]]:
    """Hidden matrix -> its lower and upper side."""
    found: dict[str, dict[str, dict[str, None]]] = {m: {BELOW: {}, ABOVE: {}} for m in plan.hidden}
    for s in sequence(plan):
        if isinstance(s, Product) and s.matrix in found:
            found[s.matrix][ABOVE if s.transpose else BELOW][s.arg] = None
    return {m: (Side(m, BELOW, tuple(v[BELOW])), Side(m, ABOVE, tuple(v[ABOVE]))) for m, v in found.items()}


def precedes(plan: Layout, later: Side, earlier: Side) -> np.ndarray:
    """(uses of ``later``, uses of ``earlier``): whether, within one step, the product with the earlier vector comes before the
    later vector is computed, or computes it, so that the later one can respond to it."""
    statements = sequence(plan)
    product = {s.arg: k for k, s in reversed(list(enumerate(statements))) if isinstance(s, Product) and s.matrix == earlier.matrix
               and s.transpose == (earlier.side == ABOVE)}  # fmt: skip
    computed = {s.out: k for k, s in enumerate(statements)}
    return np.array([[product[y] <= computed[x] for y in earlier.variables] for x in later.variables], dtype=bool)


@cache
def site_populations(plan: Layout) -> tuple[Population, ...]:
    """Populations from the lowest to the highest; entrywise statements, averages, shared weights and the output tie sites together."""
    program, backward = plan.program, plan.backward
    spaces = {**program.spaces(), **backward.spaces}
    ties = Ties()
    root = ties.root

    def local(s: Statement) -> list[str]:
        """The sites that a statement touches: vectors, averages of them and outputs, and its matrix's side."""
        if not isinstance(s, Product):
            return [v for v in (*s.arguments, s.out) if spaces[v] is not Space.DATA]
        if program.matrix(s.matrix).role is Role.HIDDEN:
            return [f"{s.matrix}.{BELOW if s.transpose else ABOVE}", s.out]
        return [f"{s.matrix}.", *(v for v in (s.arg, s.out) if spaces[v] is not Space.DATA)]

    def met(s: Product) -> list[str]:
        return [f"{s.matrix}.{ABOVE if s.transpose else BELOW}", s.arg]

    statements = sequence(plan)
    for s in statements:
        tied = [local(s)]
        if isinstance(s, Product) and s.matrix in plan.hidden:
            tied.append(met(s))
        for names in tied:
            for v in names[1:]:
                ties.join(names[0], v)
    order = list(dict.fromkeys(root(local(s)[0]) for s in statements))
    reported = [v for layer in program.layers for v in (layer.post, backward.adjoints.get(layer.pre)) if v is not None]
    trained = [v for p in backward.pairs if p.matrix not in plan.hidden for v in (p.adjoint, p.input)]
    both = [side for pair in sides(plan).values() for side in pair]
    out = []
    for name in order:

        def here(variables: Iterable[str], name: str = name) -> tuple[str, ...]:
            return tuple(dict.fromkeys(v for v in variables if spaces[v] is Space.WIDTH and root(v) == name))

        out.append(
            Population(
                tuple(s for s in statements if root(local(s)[0]) == name),
                tuple(m.name for m in program.matrices if m.role is not Role.HIDDEN and root(f"{m.name}.") == name),
                tuple(side for side in both if root(side.key) == name),
                here((*reported, *trained)),
                tuple((a, b) for a, b in gram_pairs(plan) if here((a,)) and here((b,))),
            )
        )
    return tuple(out)


def gram_pairs(plan: Layout) -> list[tuple[str, str]]:
    """Pairs of variables whose equal-time inner products the tangent kernel is made of."""
    return list(dict.fromkeys(pair for _, upper, lower in _pairs_of_uses(plan) for pair in (upper, lower)))


def tangent_kernel(plan: Layout, rates: Mapping[str, float], grams: Mapping[str, np.ndarray]) -> np.ndarray:
    """sum over matrices and pairs of their uses of rate <y y'> <x x'>, y above and x below, over any leading axes."""
    total: Any = 0.0
    for matrix, (y, y2), (x, x2) in _pairs_of_uses(plan):
        total = total + rates[matrix] * grams[f"{y}|{y2}"] * grams[f"{x}|{x2}"]
    return total


def _pairs_of_uses(plan: Layout) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """Matrix, upper vectors, lower vectors of every two of its uses."""
    uses = [(p.matrix, *((p.input, p.adjoint) if p.transpose else (p.adjoint, p.input))) for p in plan.backward.pairs]
    return [(m, (y, y2), (x, x2)) for m, y, x in uses for n, y2, x2 in uses if m == n]


class Drive(NamedTuple):
    """The numbers of a pass: data x (P, r), errors e (T, P, K), gamma0, and learning coefficients with lr."""

    x: jax.Array
    e: jax.Array
    gamma0: jax.Array
    rates: dict[str, jax.Array]


@partial(jax.jit, static_argnums=(0, 1))
def _block(
    setting: Setting, index: int, drive: Drive, weights: dict[str, jax.Array], fields: dict[str, jax.Array], near: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]:
    """Consecutive times.

    Args:
        drive: with the errors of these times, (b, P, K).
        weights: site weights at the first of them.
        fields: product output -> (b, P, S), Gaussian part and sums over earlier blocks.
        near: product output -> (b, P, b uses P), coefficients of this block's vectors on the other side.

    Returns:
        The weights after, vectors per side (b, uses, P, S), and everything recorded per time.
    """
    plan = setting.plan
    population = site_populations(plan)[index]
    sites = next(iter(fields.values() if fields else weights.values())).shape[-1]
    times, points = drive.e.shape[:2]
    slots = {(side.key, v): k for side in population.sides for k, v in enumerate(side.variables)}

    def step(carry: Any, now: Any) -> Any:
        weights, vectors = carry
        t, e, field, coefficient = now
        acting: dict[str, Any] = {m: SITES[plan.program.matrix(m).role](weights[m]) for m in population.matrices}
        one = jnp.ones_like(e) if setting.scalar else e
        env: Env = {X: drive.x, ONE: jnp.ones_like(drive.x[:, :1]), COTANGENT: one}
        for s in population.statements:
            if isinstance(s, Product) and s.matrix in plan.hidden:
                other = vectors[f"{s.matrix}.{BELOW if s.transpose else ABOVE}"]
                env[s.out] = field[s.out] + coefficient[s.out] @ other.reshape(-1, sites)
            else:
                env[s.out] = execute(s, env, acting)
            for (key, v), k in slots.items():
                if v == s.out:
                    vectors = vectors | {key: vectors[key].at[t, k].set(env[v])}
        record = {v: env[v] for v in (*population.kept, *_reported(plan, population))}
        record |= {f"{a}|{b}": env[a] @ env[b].T / sites for a, b in population.grams}
        if plan.program.output in env:
            record[plan.program.output] = env[plan.program.output] / drive.gamma0
        share = e[:, 0] if setting.scalar else jnp.ones_like(e[:, 0])
        for p in plan.backward.pairs:
            if p.matrix in acting:
                acting[p.matrix].update(p.adjoint, env[p.adjoint], p.input, env[p.input], drive.rates[p.matrix] * drive.gamma0 * share)
        return ({m: a.stepped for m, a in acting.items()}, vectors), record

    empty = {s.key: jnp.zeros((times, len(s.variables), points, sites)) for s in population.sides}
    (weights, vectors), record = jax.lax.scan(step, (weights, empty), (jnp.arange(times), drive.e, fields, near))
    return weights, vectors, record


def _reported(plan: Layout, population: Population) -> tuple[str, ...]:
    """Fields shown as samples: h and the adjoint of phi(h)."""
    names = [v for layer in plan.program.layers for v in (layer.pre, plan.backward.adjoints.get(layer.post)) if v is not None]
    return tuple(v for v in names if any(s.out == v for s in population.statements))


def run_population(
    setting: Setting,
    index: int,
    drive: Drive,
    weights: Mapping[str, jax.Array],
    noise: Mapping[str, tuple[np.ndarray, np.ndarray]],
    coefficients: Mapping[str, np.ndarray],
    keep: frozenset[int],
) -> Run:
    """One pass of a population through all times.

    Args:
        weights: initial site weights of its input and readout matrices.
        noise: "matrix.side" of the vectors a product reads -> factor (T uses P, k) and columns (k, S) of what it returns.
        coefficients: the same key -> (T uses P, T uses' P), causal: what the product returns of earlier vectors on the other side.
        keep: times whose fields are kept.
    """
    plan = setting.plan
    population = site_populations(plan)[index]
    both = {s.key: s for pair in sides(plan).values() for s in pair}
    products = [s for s in population.statements if isinstance(s, Product) and s.matrix in plan.hidden]
    e = np.asarray(drive.e)
    T, P = e.shape[:2]
    count = -(-T // BLOCK)
    size = -(-T // count)
    held = {m: weights[m] for m in population.matrices}
    sites = next(iter([*(w.shape[1] for w in held.values()), *(c.shape[1] for _, c in noise.values())]))
    vectors = {s.key: np.zeros((T, len(s.variables), P, sites)) for s in population.sides}
    kept = {v: np.zeros((T, P, sites)) for v in population.kept}
    small: list[dict[str, np.ndarray]] = []
    fields: dict[int, dict[str, np.ndarray]] = {}
    for start in range(0, T, size):
        stop = min(T, start + size)
        far, near = {}, {}
        for s in products:
            read = both[f"{s.matrix}.{ABOVE if s.transpose else BELOW}"]
            other = f"{s.matrix}.{BELOW if s.transpose else ABOVE}"
            slot = read.variables.index(s.arg)
            rows = np.arange(start, stop)[:, None] * len(read.variables) * P + slot * P + np.arange(P)
            width = len(both[other].variables) * P
            factor, columns = noise[read.key]
            C = coefficients[read.key][rows.reshape(-1)]
            total = factor[rows.reshape(-1)] @ columns
            if start:
                total += C[:, : start * width] @ vectors[other][:start].reshape(-1, sites)
            far[s.out] = _padded(total.reshape(stop - start, P, sites), size)
            block = np.zeros((size, P, size * width))
            block[: stop - start, :, : (stop - start) * width] = C[:, start * width : stop * width].reshape(stop - start, P, -1)
            near[s.out] = jnp.asarray(block)
        held, new, record = _block(setting, index, drive._replace(e=_padded(e[start:stop], size)), held, far, near)
        for key, history in vectors.items():
            history[start:stop] = np.asarray(new[key])[: stop - start]
        for v, samples in kept.items():
            samples[start:stop] = np.asarray(record[v])[: stop - start]
        for t in sorted(keep & set(range(start, stop))):
            fields[t] = {v: np.asarray(record[v])[t - start] for v in _reported(plan, population)}
        small.append({k: np.asarray(v)[: stop - start] for k, v in record.items() if "|" in k or k == plan.program.output})
    joined = {k: np.concatenate([p[k] for p in small]) for k in small[0]}
    output = joined.pop(plan.program.output, None)
    return Run(vectors, kept, joined, output, fields)


def _padded(a: np.ndarray, size: int) -> jax.Array:
    return jnp.asarray(np.pad(a, ((0, size - len(a)),) + ((0, 0),) * (a.ndim - 1)))
