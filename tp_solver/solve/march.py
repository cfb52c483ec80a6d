"""The causal march: one pass through the training run at infinite width (``theory/limit_operator.md``).

Forward through the program, loss, backward through the transposed program, update, next step. Nothing is iterated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tp_solver.limit.transposition import COTANGENT
from tp_solver.numerics.basis import Basis, enlarged, extend
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.numerics.sites import SAME, Placement, inner, mean, specs, whole
from tp_solver.program.losses import Loss
from tp_solver.program.statements import ONE, Product, Role, Space, X
from tp_solver.solve.layout import ABOVE, BELOW, Columns, Home, Layout
from tp_solver.solve.machine import Env, loss_and_error, run
from tp_solver.solve.moving import Learned, Now, moved
from tp_solver.solve.operator import SITES, InputProbe, LimitOperator, OperatorState, Probe

LADDER = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Capacities that bases grow through; each new combination is one compilation."""

TRANSFERRED = 32
"""Points at most, evenly taken, at which a step checks transposition: they say as much as all."""


class SiteState(NamedTuple):
    """Everything a step needs and changes; ``velocity`` is empty for rules without momentum."""

    operators: dict[str, OperatorState]
    sites: dict[str, jax.Array]
    observers: dict[str, Basis]
    velocity: dict[str, jax.Array]

    @property
    def size(self) -> int:
        """Number of sites."""
        some = next(iter(self.sites.values()))
        return int(np.prod(some.shape) // some.shape[-2])


class Batch(NamedTuple):
    """The numbers of one run: input coordinates (P, r) (see :func:`tp_solver.solve.machine.input_coordinates`), labels
    (P, K), weights p (P,) of the points in the reported loss, the feature-learning strength, the tolerance, and per matrix the
    learning coefficient with lr (``rates``) and without (``kernel_rates``, for the tangent kernel)."""

    x: Any
    y: Any
    p: Any
    gamma0: Any
    tol: Any
    rates: dict[str, Any]
    kernel_rates: dict[str, Any]


class NewPoints(NamedTuple):
    """Points to predict at: coordinates (P_new, r), and noise, site arrays of P_new vectors, per input matrix (already scaled) and
    per product with a hidden matrix; ``scales`` are the initial standard deviations of the hidden matrices."""

    x: Any
    scales: dict[str, Any]
    rest: dict[str, jax.Array]
    noise: dict[str, dict[tuple[bool, str], jax.Array]]


@dataclass(frozen=True)
class Setting:
    """The static part of a step: what it is compiled for; ``recording`` is whether kernels, responses and samples come out of it,
    ``mesh`` the devices that its site arrays lie on, None for one."""

    plan: Layout
    loss: Loss
    scalar: bool
    recording: bool = True
    mesh: Mesh | None = None


class Moment(NamedTuple):
    """What is known of every time.

    Attributes:
        squares: variable -> mean squares per point, where nothing is recorded those that hidden matrices met (of the batch) alone.
        weights: matrix -> mean squares of the weights per site after the update.
        met: see :func:`predict`; used: directions of every basis, in the order of the layout.
    """

    f: jax.Array
    loss: jax.Array
    identity: jax.Array
    squares: dict[str, jax.Array]
    weights: dict[str, jax.Array]
    met: dict[str, dict[tuple[bool, str], jax.Array]]
    used: jax.Array
    record: Record | None


class Record(NamedTuple):
    """What is recorded of chosen times: the tangent kernel (P, P), coordinates (P, R), responses (P, K)."""

    ntk: jax.Array
    coordinates: dict[str, jax.Array]
    responses: dict[str, jax.Array]


def matrices(plan: Layout, state: SiteState, tol: Any) -> dict[str, Any]:
    """The acting matrices of a step."""
    out: dict[str, Any] = {name: LimitOperator(s, tol) for name, s in state.operators.items()}
    for m in plan.program.matrices:
        if m.role is not Role.HIDDEN:
            out[m.name] = SITES[m.role](state.sites[m.name])
    return out


class Grown(NamedTuple):
    """The part of a state that a step extends in place: bases below and above every hidden matrix, and the observers."""

    below: dict[str, Basis]
    above: dict[str, Basis]
    observers: dict[str, Basis]

    def of(self, home: Home) -> Basis:
        """The basis at a home."""
        return {BELOW: self.below, ABOVE: self.above, None: self.observers}[home.side][home.basis]


def joined(bases: Grown, partners: Mapping[str, tuple[jax.Array, jax.Array]], weights: Learned) -> SiteState:
    """A state of its parts; see :func:`step`."""
    moving = weights.partners or partners
    operators = {m: OperatorState(bases.below[m], bases.above[m], *moving[m], weights.hidden[m]) for m in moving}
    return SiteState(operators, weights.sites, bases.observers, weights.velocity)


def step(
    setting: Setting, bases: Grown, partners: Mapping[str, tuple[jax.Array, jax.Array]], weights: Learned, batch: Batch, now: Now
) -> tuple[Grown, Learned, Moment, dict[str, jax.Array]]:
    """One time: forward, loss, backward, and the update; what every device does with its blocks of sites, inside a compiled loop.

    ``partners`` are those of rules that leave them alone, else ``weights`` have them.

    Returns:
        The bases of this time, the weights after the update, what is known of this time, and the samples of all fields (P, S), none
        where nothing is recorded.
    """
    plan = setting.plan
    gamma0, tol = batch.gamma0, batch.tol
    state = joined(bases, partners, weights)
    acting = matrices(plan, state, tol)
    env: Env = {X: batch.x, ONE: jnp.ones_like(batch.x[:, :1])}
    env = run(plan.program.statements, env, acting)
    f = env[plan.program.output] / gamma0
    per_point, error = loss_and_error(setting.loss, f, batch.y)
    e = now.p[:, None] * error
    # scalar outputs propagate df/dh and weigh the updates by e; several outputs propagate the loss gradient itself
    env[COTANGENT] = jnp.ones_like(e) if setting.scalar else e
    errors = e[:, 0] if setting.scalar else jnp.ones_like(batch.p)
    if now.chosen is not None and not setting.recording:  # points outside the batch move nothing: their gradients serve records alone
        env, errors = {v: jnp.take(a, now.chosen, axis=-2) for v, a in env.items()}, errors[now.chosen]
        for m in plan.hidden:
            acting[m].keep(now.chosen)
    env = run(plan.backward.statements, env, acting)
    squares = {v: a for m in plan.hidden for v, a in acting[m].squares.items()}
    identity = _transfer_identity(plan, env, squares)
    observers, record, samples = state.observers, None, {}
    if setting.recording:  # other vectors, and their bases, serve records alone
        squares |= {v: mean(env[v] ** 2) for v in plan.homes if v in env and v not in squares}
        coordinates, observers = _observe(plan, state.observers, env, squares, acting, tol)
        samples = {v: whole(env[v]) for layer in plan.program.layers for v in _site_fields(plan, layer)}
        record = Record(
            _tangent_kernel(plan, batch.kernel_rates, env, coordinates, squares),
            coordinates,
            {response_key(m, transpose, v): a for m in plan.hidden for (transpose, v), a in acting[m].response.items()},
        )
    for pair in plan.backward.pairs:
        rate = batch.rates[pair.matrix] * gamma0
        y, x = (pair.input, pair.adjoint) if pair.transpose else (pair.adjoint, pair.input)
        acting[pair.matrix].update(y, env[y], x, env[x], rate * errors)
    grown = Grown({m: acting[m].state.below for m in plan.hidden}, {m: acting[m].state.above for m in plan.hidden}, observers)
    push = {m.name: acting[m.name].push for m in plan.program.matrices}
    met = {m: acting[m].met for m in plan.hidden}
    used = jnp.stack([grown.of(home).used for home in plan.bases])
    after = moved(plan, now, weights, weights.partners or partners, push)
    sizes = {m: mean(a * a) for m, a in after.sites.items()}
    return grown, after, Moment(f, jnp.sum(batch.p * per_point), identity, squares, sizes, met, used, record), samples


def _site_fields(plan: Layout, layer: Any) -> tuple[str, ...]:
    return tuple(v for v in (layer.pre, plan.backward.adjoints.get(layer.post)) if v is not None)


def _observe(
    plan: Layout, observers: dict[str, Basis], env: Env, squares: Mapping[str, jax.Array], acting: Mapping[str, Any], tol: Any
) -> tuple[dict[str, jax.Array], dict[str, Basis]]:
    """Coordinates of every vector in every basis that it met; observers grow, the operators already did."""
    out: dict[str, jax.Array] = {}
    bases = dict(observers)
    for m in plan.hidden:
        for side, known in ((BELOW, acting[m].below), (ABOVE, acting[m].above)):
            out |= {plan.coordinate_key(v, Home(m, side)): c for v, c in known.items()}
    for variable, home in plan.homes.items():
        if home.side is None:
            bases[home.basis], out[variable] = extend(bases[home.basis], env[variable], squares[variable], tol)
    return out, bases


def response_key(matrix: str, transpose: bool, argument: str) -> str:
    """Name under which the response of a product is recorded."""
    return f"{matrix}{'.T' if transpose else ''}:{argument}"


def _inner(a: str, b: str, plan: Layout, env: Env, coordinates: Mapping[str, jax.Array], squares: Mapping[str, jax.Array]) -> jax.Array:
    """<a_mu b_nu>, (P, P), from coordinates where both share a basis; the diagonal of a == b is exact."""
    if plan.homes[a] != plan.homes[b]:
        return inner(env[a], env[b])
    gram = coordinates[a] @ coordinates[b].T
    return gram if a != b else gram - jnp.diag(jnp.diag(gram)) + jnp.diag(squares[a])


def _tangent_kernel(
    plan: Layout, rates: Mapping[str, jax.Array], env: Env, coordinates: Mapping[str, jax.Array], squares: Mapping[str, jax.Array]
) -> jax.Array:
    """sum over matrices and pairs of their uses of rate <adjoint adjoint'> <input input'>, without lr."""
    total = jnp.zeros(())
    spaces = {**plan.program.spaces(), **plan.backward.spaces}

    def gram(a: str, b: str) -> jax.Array:
        if spaces[a] is Space.WIDTH:
            return _inner(a, b, plan, env, coordinates, squares)
        return env[a] @ env[b].T

    for p in plan.backward.pairs:
        for q in plan.backward.pairs:
            if p.matrix == q.matrix:
                above, below = (p.input, p.adjoint) if p.transpose else (p.adjoint, p.input)
                above2, below2 = (q.input, q.adjoint) if q.transpose else (q.adjoint, q.input)
                total = total + rates[p.matrix] * gram(above, above2) * gram(below, below2)
    return total


def _transfer_identity(plan: Layout, env: Env, squares: Mapping[str, jax.Array]) -> jax.Array:
    """Largest violation of <(W x) y> = <x (W^T y)> over the hidden products and some points, relative to the vectors' sizes."""

    def some(variable: str) -> jax.Array:
        points = env[variable].shape[-2]
        return env[variable][..., :: -(-points // TRANSFERRED), :]

    worst = jnp.zeros(())
    products = [s for s in (*plan.program.statements, *plan.backward.statements) if isinstance(s, Product) and s.matrix in plan.hidden]
    for p in plan.backward.pairs:
        if p.matrix not in plan.hidden:
            continue
        forward = next(s for s in products if s.matrix == p.matrix and s.arg == p.input and s.transpose == p.transpose)
        back = next((s for s in products if s.matrix == p.matrix and s.arg == p.adjoint and s.transpose != p.transpose), None)
        if back is not None:
            left, right = some(forward.out) * some(p.adjoint), some(p.input) * some(back.out)
            size = jnp.sqrt(jnp.mean(mean(some(forward.out) ** 2)) * jnp.mean(squares[p.adjoint])) + jnp.finfo(left.dtype).tiny
            worst = jnp.maximum(worst, jnp.max(jnp.abs(mean(left) - mean(right))) / size)
    return worst


def everything_met(plan: Layout) -> dict[str, dict[tuple[bool, str], int]]:
    """For states whose directions all precede the products of interest."""
    out: dict[str, dict[tuple[bool, str], int]] = {m: {} for m in plan.hidden}
    for s in plan.hidden_products():
        out[s.matrix][s.transpose, s.arg] = np.iinfo(np.int32).max
    return out


@partial(jax.jit, static_argnums=0)
def predict(setting: Setting, state: SiteState, met: dict[str, dict[tuple[bool, str], Any]], points: NewPoints, gamma0: Any) -> jax.Array:
    """Outputs (P_new, K) at new points from the state before an update; the state is not touched.

    ``met`` says per product how many opposite directions it could respond to at that time (``Moment.met``).
    """
    predicted = partial(_predict_with_blocks, setting)
    given = (state._replace(observers={}, velocity={}), met, points, gamma0)
    if setting.mesh is None:
        return predicted(*given)
    return jax.shard_map(predicted, mesh=setting.mesh, in_specs=specs(given), out_specs=SAME, check_vma=False)(*given)


def _predict_with_blocks(
    setting: Setting, state: SiteState, met: dict[str, dict[tuple[bool, str], Any]], points: NewPoints, gamma0: Any
) -> jax.Array:
    """What every device does with its blocks of sites."""
    plan = setting.plan
    acting: dict[str, Any] = {}
    for m in plan.program.matrices:
        if m.role is Role.HIDDEN:
            acting[m.name] = Probe(state.operators[m.name], points.scales[m.name], points.noise[m.name], met[m.name])
        elif m.role is Role.INPUT:
            acting[m.name] = InputProbe(state.sites[m.name], points.rest[m.name])
        else:
            acting[m.name] = SITES[m.role](state.sites[m.name])
    env: Env = {X: points.x, ONE: jnp.ones_like(points.x[:, :1])}
    return run(plan.program.statements, env, acting)[plan.program.output] / gamma0


def initial_state(
    columns: Columns,
    source: SampledColumns | ExactColumns,
    capacity: Mapping[Home, int],
    observer_capacity: Mapping[str, int],
    carries: bool,
    placement: Placement,
    dtype: Any,
) -> SiteState:
    """Fresh matrices: empty bases with Gaussian partners, random site weights, at rest if the rule carries a velocity on."""
    drawn = columns.draw(source, capacity)
    weights = {m: v["weights"] for m, v in drawn.items() if "weights" in v}
    sites = {m: placement.sites(a, dtype) for m, a in weights.items()}
    count = next(iter(weights.values())).shape[1]

    def empty(room: int) -> Basis:
        return Basis.of(placement.sites(np.zeros((room, count)), dtype))

    operators = {}
    for m in columns.plan.hidden:
        below, above = capacity[Home(m, BELOW)], capacity[Home(m, ABOVE)]
        operators[m] = OperatorState(
            empty(below),
            empty(above),
            placement.sites(drawn[m]["eps_u"], dtype),
            placement.sites(drawn[m]["eps_r"], dtype),
            placement.put(np.zeros((above, below), dtype)),
        )
    observers = {k: empty(observer_capacity[k]) for k in columns.plan.observers}
    at_rest = {m: placement.put(np.zeros(s.learned.shape, dtype)) for m, s in operators.items()}
    at_rest |= {m: placement.sites(np.zeros(a.shape), dtype) for m, a in weights.items()}
    velocity = at_rest if carries else {}
    return SiteState(operators, sites, observers, velocity)


def ranks(plan: Layout, used: Any) -> dict[Home, int]:
    """Number of directions in every basis, by name."""
    return dict(zip(plan.bases, map(int, used), strict=True))


def grown(
    state: SiteState,
    columns: Columns,
    source: SampledColumns,
    placement: Placement,
    capacity: Mapping[Home, int],
    growth: Mapping[str, float],
) -> SiteState:
    """The same state with more room; partners in use keep their values, new ones have ``growth`` times their initial deviation."""
    hidden = {h: n for h, n in capacity.items() if h.side is not None}
    drawn = columns.draw(source, hidden)
    operators, velocity = {}, dict(state.velocity)
    for m, s in state.operators.items():
        below, above = capacity[Home(m, BELOW)], capacity[Home(m, ABOVE)]
        pad = ((0, above - s.learned.shape[0]), (0, below - s.learned.shape[1]))

        def longer(old: jax.Array, columns: np.ndarray, m: str = m) -> jax.Array:
            return jnp.concatenate([old, placement.sites(growth[m] * columns[old.shape[-2] :], old.dtype)], axis=-2)

        operators[m] = OperatorState(
            enlarged(s.below, below),
            enlarged(s.above, above),
            longer(s.eps_u, drawn[m]["eps_u"]),
            longer(s.eps_r, drawn[m]["eps_r"]),
            jnp.pad(s.learned, pad),
        )
        if m in velocity:
            velocity[m] = jnp.pad(velocity[m], pad)
    return SiteState(operators, state.sites, {k: enlarged(b, capacity[Home(k)]) for k, b in state.observers.items()}, velocity)


def roomier(capacity: Mapping[Home, int], used: Mapping[Home, int]) -> dict[Home, int]:
    """Next capacities: bases that are nearly full climb the ladder past half as much again as they use."""
    out = {}
    for home, room in capacity.items():
        need = used[home] * 4 // 3 if used[home] > 0.9 * room else 0
        out[home] = room if need <= room else next((n for n in LADDER if n >= need), need)
    return out


def new_points(
    columns: Columns,
    x: np.ndarray,
    rest: np.ndarray,
    source: SampledColumns | ExactColumns,
    sites: int,
    placement: Placement,
    dtype: Any,
) -> NewPoints:
    """New points, coordinates (P_new, r) and squared norm (P_new,) outside the training inputs, with their noise."""
    plan = columns.plan
    noise = source.fresh(len(x), sites)
    inputs = {
        m.name: placement.sites(columns.scales[m.name] * np.sqrt(rest)[:, None] * next(noise), dtype)
        for m in plan.program.matrices
        if m.role is Role.INPUT
    }
    products: dict[str, dict[tuple[bool, str], jax.Array]] = {m: {} for m in plan.hidden}
    for s in plan.noise_products():
        products[s.matrix][s.transpose, s.arg] = placement.sites(next(noise), dtype)
    scales = {m: np.asarray(columns.scales[m], dtype) for m in plan.hidden}
    return NewPoints(np.asarray(x, dtype), scales, inputs, products)


def at_time(points: NewPoints, growth: Mapping[str, float]) -> NewPoints:
    """New points whose noise has the deviation that the matrices have by then."""
    scales = {m: np.asarray(growth[m] * a, a.dtype) for m, a in points.scales.items()}
    return points._replace(scales=scales, rest={m: growth[m] * a for m, a in points.rest.items()})
