"""Kernels of a fixed point: the two-time arrays themselves, and the converged matrices for predictions at new points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.errors import InputError, RangeError
from tp_solver.limit.transposition import COTANGENT
from tp_solver.numerics.basis import Basis
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.numerics.sites import Placement
from tp_solver.program.statements import ONE, Role
from tp_solver.program.statements import X as INPUTS
from tp_solver.program.training import GradientFlow
from tp_solver.solve.endings import source_from_stream, state_from_leaves, state_leaves
from tp_solver.solve.layout import ABOVE, BELOW, Home
from tp_solver.solve.machine import input_coordinates
from tp_solver.solve.march import Batch, SiteState, everything_met, new_points, predict
from tp_solver.solve.operator import SITES, OperatorState
from tp_solver.solve.prepare import Prepared, prepare
from tp_solver.solve.solution import Fields
from tp_solver.solve.sweep import Noise, Swept, learned_pairs
from tp_solver.solve.two_time import Facing, gram


@dataclass(frozen=True, eq=False)
class StoredKernels:
    """Two-time kernels, averaged over replicates.

    Attributes:
        prepared: the numbers of the run.
        means: "Phi/l", "G/l", "A/l", "B/l" -> (T, P, T, P), and "ntk" -> (T, P, P) for one output, at the reported times.
        scatters: their standard errors over replicates; empty for a single replicate.
        samples: time -> "h/l" or "z/l" -> (sites, P), all replicates one after the other.
        states: per replicate, the matrices at the last time.
        sources: their Gaussian columns.
        X: training inputs (P, D).
        gamma0: as solved.
    """

    prepared: Prepared
    means: Mapping[str, np.ndarray]
    scatters: Mapping[str, np.ndarray]
    samples: Mapping[int, Mapping[str, np.ndarray]]
    states: tuple[SiteState, ...]
    sources: tuple[SampledColumns | ExactColumns, ...]
    X: np.ndarray
    gamma0: float

    def Phi(self, layer: int, t: int, s: int) -> np.ndarray:
        """<phi(h(t)) phi(h(s))>."""
        return self._read(self.means, "Phi", (layer, t, s))

    def G(self, layer: int, t: int, s: int) -> np.ndarray:
        """<g(t) g(s)>."""
        return self._read(self.means, "G", (layer, t, s))

    def A(self, layer: int, t: int, s: int) -> np.ndarray:
        """Forward response; exact entries for linear programs, otherwise supported on the pivots of G, so that A G is right."""
        return self._read(self.means, "A", (layer, t, s))

    def B(self, layer: int, t: int, s: int) -> np.ndarray:
        """Backward response; exact entries for linear programs, otherwise supported on the pivots of Phi, so that B Phi is right."""
        return self._read(self.means, "B", (layer, t, s))

    def ntk(self, t: int) -> np.ndarray:
        """Tangent kernel."""
        return self._read(self.means, "ntk", (t,))

    def stderr(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        """Scatter over replicates, zero for a single one."""
        if not self.scatters:
            return np.zeros_like(self._read(self.means, name, args))
        return self._read(self.scatters, name, args)

    def freedom(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        """Replicates less one; infinite for exact sites, zero for a single sampled replicate."""
        sampled = any(isinstance(source, SampledColumns) for source in self.sources)
        return np.full_like(self._read(self.means, name, args), len(self.sources) - 1 if sampled else np.inf)

    def fields(self, layer: int, t: int) -> Fields:
        """Samples of all replicates, one after the other; z is empty where the output does not depend on the layer."""
        if t not in self.samples:
            raise RangeError(
                "t", t, f"a time whose samples were kept: {tuple(sorted(self.samples))}", "the first and the last, if any sweep was finite"
            )
        kept = self.samples[t]
        return Fields(kept[f"h/{layer}"], kept.get(f"z/{layer}", np.zeros((0, len(self.X)))))

    def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Final outputs at new inputs (P_new, K), mean over replicates and standard error."""
        _, x_new, rest = input_coordinates(self.X, X)
        assert x_new is not None and rest is not None
        if not self.states:
            raise RangeError("predict", "a run without a finite sweep", "a solution with a state", "see sol.message")
        values = []
        setting = self.prepared.setting
        with jax.enable_x64(True):
            for state, source in zip(self.states, self.sources, strict=True):
                points = new_points(self.prepared.columns, x_new, rest, source, state.size, Placement(), jnp.float64)
                values.append(np.asarray(predict(setting, state, everything_met(setting.plan), points, self.gamma0)))
        spread = np.std(values, axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros_like(values[0])
        return np.mean(values, axis=0), spread

    def _read(self, arrays: Mapping[str, np.ndarray], name: str, args: tuple[int, ...]) -> np.ndarray:
        key = name if name == "ntk" else f"{name}/{args[0]}"
        if key not in arrays:
            if name == "ntk":
                raise RangeError(
                    "ntk",
                    "a solution with several outputs",
                    "one output",
                    "several outputs propagate the loss gradient, which is no tangent kernel",
                )
            raise RangeError("layer", args[0], f"a layer with {name}", "the output does not depend on it, or no hidden matrix reads it")
        if name == "ntk":
            return arrays[key][args[0]]
        _, t, s = args
        return arrays[key][t, :, s]

    def arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, with names that :meth:`from_arrays` understands."""
        out: dict[str, np.ndarray] = {"count": np.array(len(self.states))}
        out |= {f"means/{k}": a for k, a in self.means.items()} | {f"scatters/{k}": a for k, a in self.scatters.items()}
        out |= {f"samples/{t}/{k}": a for t, kept in self.samples.items() for k, a in kept.items()}
        for k, (state, source) in enumerate(zip(self.states, self.sources, strict=True)):
            seed = [source.samples, *source.seed] if isinstance(source, SampledColumns) else []
            out[f"r{k}/stream"] = np.array(seed, dtype=np.int64)
            out |= {f"r{k}/state/{n}": np.asarray(a) for n, a in state_leaves(state)}
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], theory: Any, task: Any, gamma0: float) -> StoredKernels:
        """Rebuild from :meth:`arrays`."""
        prepared = prepare(theory, task, theory.training.refined(1) if isinstance(theory.training, GradientFlow) else None)

        def group(name: str) -> dict[str, np.ndarray]:
            return {n.removeprefix(f"{name}/"): a for n, a in arrays.items() if n.startswith(f"{name}/")}

        samples: dict[int, dict[str, np.ndarray]] = {}
        for name, a in group("samples").items():
            t, key = name.split("/", 1)
            samples.setdefault(int(t), {})[key] = a
        count = int(arrays["count"])
        if any(f"r{k}/stream" not in arrays for k in range(count)):
            raise InputError("kernels", "missing replicates", "all replicates in the file", "the file is incomplete")
        with jax.enable_x64(True):
            states = tuple(state_from_leaves(prepared.setting.plan, group(f"r{k}/state")) for k in range(count))
        sources = tuple(source_from_stream(arrays[f"r{k}/stream"]) for k in range(count))
        return cls(prepared, group("means"), group("scatters"), samples, states, sources, np.asarray(task.X), gamma0)


def averaged(replicates: Sequence[Mapping[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Mean and standard error of arrays over replicates; no errors for a single one."""
    names = [k for k in replicates[0] if all(k in r for r in replicates)] if replicates else []
    means = {k: np.mean([r[k] for r in replicates], axis=0) for k in names}
    if len(replicates) < 2:
        return means, {}
    return means, {k: np.std([r[k] for r in replicates], axis=0, ddof=1) / np.sqrt(len(replicates)) for k in names}


def reported_kernels(prepared: Prepared, swept: Swept, stride: int) -> dict[str, np.ndarray]:
    """Phi, G, A and B of the reported layers (T, P, T, P) at every ``stride``-th time."""
    plan = prepared.setting.plan
    kept = {v: a for run in swept.runs for v, a in run.kept.items()}
    out: dict[str, np.ndarray] = {}
    for layer in plan.program.layers:
        g = plan.backward.adjoints.get(layer.pre)
        for name, v in (("Phi", layer.post), ("G", g)):
            if v in kept:
                sampled = kept[v][::stride]
                out[f"{name}/{layer.index}"] = gram(sampled).reshape(*sampled.shape[:2], *sampled.shape[:2])
        pair = next(
            (p for p in reversed(plan.backward.pairs) if p.matrix in plan.hidden and p.input == layer.post and not p.transpose), None
        )
        if pair is not None:
            scale = prepared.columns.scales[pair.matrix]
            below, above = (swept.kernels[f"{pair.matrix}.{side}"] for side in (BELOW, ABOVE))
            for name, facing, here, there in (("A", below, pair.input, pair.adjoint), ("B", above, pair.adjoint, pair.input)):
                out[f"{name}/{layer.index}"] = _entries(facing, here, there, swept.f.shape[:2], scale)[::stride, :, ::stride]
    return out


def _entries(facing: Facing, here: str, there: str, sizes: tuple[int, ...], scale: float) -> np.ndarray:
    T, P = sizes
    rows, columns = facing.side.variables, facing.other.variables
    full = facing.response.reshape(T, len(rows), P, T, len(columns), P)
    return full[:, rows.index(here), :, :, columns.index(there)] / (scale**2 if scale else 1.0)


def final_states(
    prepared: Prepared, batch: Batch, noise: Noise, swept: Swept, e: np.ndarray, source: SampledColumns | ExactColumns
) -> tuple[SiteState, np.ndarray | None]:
    """The matrices at the last time, as limit operators, and the outputs at the test points of all times (T, P_test, K).

    Args:
        e: errors (T, P, K) that the sweep used.
    """
    plan = prepared.setting.plan
    drawn = {m: {k: jnp.asarray(a) for k, a in parts.items()} for m, parts in noise.room(swept.kernels).items()}
    kept = {v: a for run in swept.runs for v, a in run.kept.items()}
    vectors = {k: a for run in swept.runs for k, a in run.vectors.items()}
    share = jnp.asarray(e[:, :, 0]) if prepared.setting.scalar else jnp.ones(e.shape[:2])
    bases, rows = {}, {}
    for key, facing in swept.kernels.items():
        room = noise.capacity[Home(facing.side.matrix, facing.side.side)]
        flat = vectors[key].reshape(-1, vectors[key].shape[-1])
        q = facing.factor.whitened(flat[facing.factor.pivots])
        bases[key] = Basis(jnp.asarray(np.pad(q, ((0, room - len(q)), (0, 0)))), jnp.asarray(len(q), jnp.int32), jnp.zeros(()))
        shape = (len(e), len(facing.side.variables), e.shape[1], room)
        rows[key] = jnp.asarray(np.pad(facing.factor.rows, ((0, 0), (0, room - facing.factor.rank))).reshape(shape))
    learned = {m: jnp.zeros((noise.capacity[Home(m, ABOVE)], noise.capacity[Home(m, BELOW)])) for m in plan.hidden}
    sites = {m.name: drawn[m.name]["weights"] for m in plan.program.matrices if m.role is not Role.HIDDEN}
    points = None
    outputs = []
    state = SiteState({}, sites, {}, {})
    for t in range(len(e)):
        operators = {
            m: OperatorState(bases[f"{m}.{BELOW}"], bases[f"{m}.{ABOVE}"], drawn[m]["eps_u"], drawn[m]["eps_r"], learned[m])
            for m in plan.hidden
        }
        state = SiteState(operators, sites, {}, {})
        if prepared.test_inputs is not None:
            if points is None:
                points = new_points(prepared.columns, *prepared.test_inputs, source, state.size, Placement(), jnp.float64)
            outputs.append(np.asarray(predict(prepared.setting, state, everything_met(prepared.setting.plan), points, batch.gamma0)))
        if t == len(e) - 1:
            break
        for m, pairs in learned_pairs(plan).items():
            below, above = (swept.kernels[f"{m}.{side}"].side.variables for side in (BELOW, ABOVE))
            for low, high in pairs:
                c, d = rows[f"{m}.{BELOW}"][t, below.index(low)], rows[f"{m}.{ABOVE}"][t, above.index(high)]
                learned[m] = learned[m] + (d * (batch.rates[m] * batch.gamma0 * share[t])[:, None]).T @ c
        data = {
            INPUTS: batch.x,
            ONE: jnp.ones_like(batch.x[:, :1]),
            COTANGENT: jnp.ones_like(batch.y) if prepared.setting.scalar else jnp.asarray(e[t]),
        }
        sites = dict(sites)
        for p in plan.backward.pairs:
            if p.matrix in sites:
                acting = SITES[plan.program.matrix(p.matrix).role](sites[p.matrix])
                y, x = (jnp.asarray(kept[v][t]) if v in kept else data[v] for v in (p.adjoint, p.input))
                acting.update(p.adjoint, y, p.input, x, batch.rates[p.matrix] * batch.gamma0 * share[t])
                sites[p.matrix] = acting.stepped
    return state, np.array(outputs) if outputs else None
