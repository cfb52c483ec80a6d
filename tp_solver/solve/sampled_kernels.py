"""Kernels at initialisation of any program, on samples of its sites (``theory/kernel_regime.md``, KR.13).

The first step of a march without its update: the program and its transpose run on limit operators, and kernels are averages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import BudgetError, InputError, ProgramError
from tp_solver.kernel_regime.compute import KernelSet, Layers
from tp_solver.kernel_regime.constants import numeric_constants
from tp_solver.kernel_regime.maps import OVER_POSITIONS
from tp_solver.limit.spec import LimitSpec, limit_spec
from tp_solver.limit.transposition import COTANGENT, Pair
from tp_solver.numerics.memory_maps import make_room_for_programs
from tp_solver.numerics.noise import SampledColumns
from tp_solver.numerics.sites import Placement, inner
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import ONE, Program, Role, Space, X
from tp_solver.solve.accuracy import tolerance_for
from tp_solver.solve.deviations import Check, Estimate, deviation, estimate
from tp_solver.solve.layout import ABOVE, BELOW, Columns, Home, Layout, layout
from tp_solver.solve.machine import Env, input_coordinates, run
from tp_solver.solve.march import SiteState, initial_state, matrices

MAIN, HALF, OTHER = "main", "half the samples", "another tolerance"
LOOSER = 4.0
"""Tolerance of the runs that show the truncation, in units of that of the main runs."""


@dataclass(frozen=True)
class Sampling:
    """How kernels are sampled: sites per replicate, independent replicates, seed, and the share of the squared size below which
    directions are dropped."""

    samples: int = 4096
    replicates: int = 4
    seed: int = 0
    tol: float = tolerance_for(4096)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SampledKernels(KernelSet):
    """A :class:`KernelSet` of averages over samples, with standard errors: the scatter over replicates, the bias of finite samples and
    the truncation (``theory/limit_operator.md``, LO.7).

    Attributes:
        stderr: standard errors, arranged like the kernels: ``found.stderr.ntk`` (n1, n2), ``found.stderr.Phi`` (layers, n1, n2).
        groups: setting -> the kernels of every replicate.
        checks: which settings are compared for the errors that replicates do not show.
        sampling: how they were sampled.
    """

    stderr: KernelSet
    groups: Mapping[str, tuple[KernelSet, ...]]
    checks: tuple[Check, ...]
    sampling: Sampling

    def estimate(self, read: Callable[[KernelSet], np.ndarray]) -> Estimate:
        """Anything that follows from kernels, averaged over replicates, with its standard error."""
        return _estimate({g: np.array([read(k) for k in runs]) for g, runs in self.groups.items()}, self.checks)

    def __str__(self) -> str:
        rows = [("nngp", self.nngp, self.stderr.nngp), ("ntk", self.ntk, self.stderr.ntk)]
        errors = ", ".join(f"{name} {float(np.sqrt(np.mean(e**2) / np.mean(v**2))):.2%}" for name, v, e in rows)
        how = f"{self.sampling.replicates} times {self.sampling.samples} sites"
        return f"{super().__str__()}\nsampled, {how}; standard errors, relative to root mean squares: {errors}"

    __repr__ = __str__


def sampled_kernels(
    net: Program,
    parameterization: Parameterization,
    X: Any,
    X2: Any = None,
    samples: int = 4096,
    replicates: int = 4,
    seed: int = 0,
    tol: float | None = None,
    memory: float = 4.0,
) -> SampledKernels:
    """Kernels at initialisation at infinite width of any program without positions, by sampling its sites.

    For programs that :func:`tp_solver.kernels` has no closed form for: a matrix together with its transpose, maps of several
    fields that do not separate. Conventions are those of ``kernels``; ``KernelDynamics(found.ntk, y, rule, found.nngp)`` trains with them.

    Args:
        net, parameterization: as for ``kernels``.
        X: (n1, D); X2: a second set (n2, D), or None for the kernels of X with itself.
        samples: Monte-Carlo sites per replicate, even, at least 64.
        replicates: independent scramblings, at least 2: standard errors come from them.
        seed: of all random numbers.
        tol: directions whose share of the squared size is below this are dropped; None chooses what the samples resolve.
        memory: GiB that the samples may take.

    Raises:
        InputError: for malformed inputs. ProgramError: for programs over positions, unbound symbols, or kernels that are not finite.
        ParameterizationError: for a parameterization without a limit. BudgetError: for too many samples or points.

    Example: ``found = tp.sampled_kernels(net, tp.ntk, X); print(found.ntk, found.stderr.ntk)``.
    """
    net = checks.instance("net", net, Program, "a program such as tp.mlp(depth=3, activation=tp.relu)")
    checks.instance("parameterization", parameterization, Parameterization, "a Parameterization such as tp.ntk")
    if net.grid:
        raise ProgramError(
            "net", f"a program on {' x '.join(map(str, net.grid))} positions", "a program without positions",
            "a layer is sampled as one vector, and over a grid it is one per position: tp.kernels(net, parameterization, X) takes "
            f"grids where kernels have a closed form; elsewhere {OVER_POSITIONS}",
        )  # fmt: skip
    x1 = checks.array("X", X, ndim=(2,), hint="X is (n, D)")
    x2 = x1[:0] if X2 is None else checks.array("X2", X2, ndim=(2,), hint="X2 is (n, D)")
    if x2.shape[1] != x1.shape[1]:
        raise InputError("X2", f"inputs of dimension {x2.shape[1]}", f"dimension {x1.shape[1]}, as X", "use the same features")
    samples = checks.integer("samples", samples, minimum=64)
    if samples % 2:
        raise InputError("samples", samples, "an even number", "sites come in antithetic pairs")
    sampling = Sampling(
        samples,
        checks.integer("replicates", replicates, minimum=2),
        checks.integer("seed", seed, minimum=0),
        tolerance_for(samples) if tol is None else checks.number("tol", tol, above=0.0, maximum=1.0),
    )
    memory = checks.number("memory", memory, above=0.0, hint="memory is in GiB")
    make_room_for_programs()
    program = _Initial(net, limit_spec(net, parameterization), np.concatenate([x1, x2]), memory)
    n = len(x1)
    rows, columns = slice(0, n), slice(n, None) if len(x2) else slice(0, n)
    return _sampled(program, sampling, rows, columns, X2 is None)


class _Initial:
    """A program on data, ready to be run at initialisation."""

    def __init__(self, net: Program, spec: LimitSpec, inputs: np.ndarray, memory: float) -> None:
        self.plan = layout(net)
        self.scales, self.rates = numeric_constants(net, spec, inputs.shape[1])
        self.x, _, _ = input_coordinates(inputs)
        sizes = {m.name: self.x.shape[1] for m in net.matrices if m.role is Role.INPUT}
        sizes |= {m.name: 1 for m in net.matrices if m.role is Role.BIAS}
        self.columns = Columns(self.plan, self.scales, sizes, 1)
        self.memory = memory

    @property
    def capacity(self) -> dict[Home, int]:
        """Room for all that a matrix meets: a direction per point and argument."""
        met: dict[Home, set[str]] = {Home(m, side): set() for m in self.plan.hidden for side in (BELOW, ABOVE)}
        for s in self.plan.hidden_products():
            met[self.plan.side_of(s)].add(s.arg)
        return {h: max(1, len(self.x) * len(arguments)) for h, arguments in met.items()}

    def kernels(self, samples: int, tol: float, stream: tuple[int, int]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Kernels of one replicate over all points, by name, and the ranks of all bases."""
        vectors = len(self.plan.program.statements) + len(self.plan.backward.statements)
        need = 8 * samples * (vectors * len(self.x) + 4 * sum(self.capacity.values())) / 2**30
        if need > self.memory:
            raise BudgetError(
                "memory", f"a need of {need:.3g} GiB for {len(self.x)} points", f"at most {self.memory:g} GiB",
                "fewer samples with more replicates, or fewer points at a time (X2), or raise memory",
            )  # fmt: skip
        observers = dict.fromkeys(self.plan.observers, 1)
        placement, source = Placement.of(samples, jax.devices()[:1]), SampledColumns(samples, stream)
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            state = initial_state(self.columns, source, self.capacity, observers, False, placement, jnp.float64)
            found, used = _first_step(self.plan, state, jnp.asarray(self.x), self.rates, tol)
        out = {name: np.asarray(a) for name, a in found.items()}
        readout, *shifts = self.plan.program.output_terms
        variance = sum(self.scales[s.matrix] ** 2 for s in shifts)
        out["nngp"] = self.scales[readout.matrix] ** 2 * out["nngp"] + variance
        return out, {name: int(n) for name, n in used.items()}


@partial(jax.jit, static_argnums=0)
def _first_step(
    plan: Layout, state: SiteState, x: jax.Array, rates: Mapping[str, jax.Array], tol: Any
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Forward and backward at initialisation: kernels by name, and the number of directions of every basis."""
    acting = matrices(plan, state, tol)
    env: Env = {X: x, ONE: jnp.ones_like(x[:, :1]), COTANGENT: jnp.ones_like(x[:, :1])}
    env = run(plan.backward.statements, run(plan.program.statements, env, acting), acting)
    program, adjoints, spaces = plan.program, plan.backward.adjoints, {**plan.program.spaces(), **plan.backward.spaces}

    def gram(a: str, b: str) -> jax.Array:
        return inner(*_sites(env[a], env[b])) if spaces[a] is Space.WIDTH else env[a] @ env[b].T

    zero = jnp.zeros((len(x), len(x)))
    parts = {m.name: zero for m in program.matrices}
    for p in plan.backward.pairs:
        for q in plan.backward.pairs:
            if p.matrix == q.matrix:
                (above, below), (above2, below2) = (_ends(use) for use in (p, q))
                parts[p.matrix] = parts[p.matrix] + rates[p.matrix] * gram(above, above2) * gram(below, below2)
    readout = program.output_terms[0]
    out = {
        "nngp": gram(readout.arg, readout.arg),
        "ntk": sum(parts.values(), start=zero),
        "Phi": jnp.stack([gram(v.post, v.post) for v in program.layers]),
        "G": jnp.stack([gram(adjoints[v.pre], adjoints[v.pre]) if v.pre in adjoints else zero for v in program.layers]),
    }
    used = {f"{m}.{side}": basis.used for m in plan.hidden for side, basis in _bases(acting[m].state)}
    return out | {_PART + m: a for m, a in parts.items()}, used


_PART = "ntk of "


def _ends(use: Pair) -> tuple[str, str]:
    """The vectors above and below a matrix whose outer product is its gradient."""
    return (use.input, use.adjoint) if use.transpose else (use.adjoint, use.input)


def _bases(state: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return (BELOW, state.below), (ABOVE, state.above)


def _sites(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as site arrays: a map of averages alone has one number for all sites."""
    shape = max((a.shape, b.shape), key=lambda s: (len(s), s[-1]))
    return jnp.broadcast_to(a, (*shape[:-2], *a.shape[-2:-1], shape[-1])), jnp.broadcast_to(b, (*shape[:-2], *b.shape[-2:-1], shape[-1]))


def _sampled(program: _Initial, how: Sampling, rows: slice, columns: slice, symmetric: bool) -> SampledKernels:
    half, loose = max(2, how.samples // 4 * 2), min(LOOSER * how.tol, 1.0)

    def runs(samples: int, tol: float) -> tuple[tuple[KernelSet, ...], list[dict[str, int]]]:
        found = [program.kernels(samples, tol, (how.seed, k)) for k in range(how.replicates)]
        return tuple(_set({name: a[..., rows, columns] for name, a in arrays.items()}, symmetric) for arrays, _ in found), [
            r for _, r in found
        ]

    groups: dict[str, tuple[KernelSet, ...]] = {}
    groups[MAIN], _ = runs(how.samples, how.tol)
    groups[HALF], held = runs(half, how.tol)
    groups[OTHER], others = runs(half, loose)
    if others == held:  # the same directions show nothing
        loose = how.tol / LOOSER
        groups[OTHER], _ = runs(half, loose)
    checks_ = (
        Check("finite samples", MAIN, HALF, half / (how.samples - half)),
        Check("truncation", HALF, OTHER, how.tol / (loose - how.tol)),
    )
    for name, found in groups.items():
        for k, one in enumerate(found):
            if not np.isfinite(one.ntk).all() or not np.isfinite(one.nngp).all():
                raise ProgramError("sampled_kernels", f"a kernel that is not finite ({name}, replicate {k})", "finite fields", _INFINITE)
    estimates = {
        name: _estimate({g: np.array([_arrays(k)[name] for k in kept]) for g, kept in groups.items()}, checks_) for name in _arrays(one)
    }
    mean, error = (_set({name: getattr(e, which) for name, e in estimates.items()}, symmetric) for which in ("value", "stderr"))
    return SampledKernels(
        mean.nngp, mean.ntk, mean.layers, symmetric, stderr=error, groups=groups, checks=checks_, sampling=how
    )  # fmt: skip


_INFINITE = "an average that is divided by may be zero, or a map may overflow"


def _estimate(values: Mapping[str, np.ndarray], comparisons: tuple[Check, ...]) -> Estimate:
    main = values[MAIN]
    errors = {c.kind: deviation(values[c.near][:, None], values[c.far][:, None], main[:, None], c.factor)[:, 0] for c in comparisons}
    return estimate(main, errors, frozenset(), True)


def _set(arrays: Mapping[str, np.ndarray], symmetric: bool) -> KernelSet:
    parts = {name.removeprefix(_PART): a for name, a in arrays.items() if name.startswith(_PART)}
    return KernelSet(arrays["nngp"], arrays["ntk"], Layers(arrays["Phi"], arrays["G"], parts), symmetric)


def _arrays(found: KernelSet) -> dict[str, np.ndarray]:
    return {"nngp": found.nngp, "ntk": found.ntk, "Phi": found.Phi, "G": found.G} | {_PART + m: a for m, a in found.parts.items()}
