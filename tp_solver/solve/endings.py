"""Where runs end: the state from which new points are predicted, and how it is written to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.numerics.basis import Basis
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.numerics.sites import Placement, fetched
from tp_solver.program.statements import Role
from tp_solver.solve.kernel_records import within
from tp_solver.solve.layout import Layout
from tp_solver.solve.machine import input_coordinates
from tp_solver.solve.march import SiteState, at_time, new_points, predict, response_key
from tp_solver.solve.moving import Course
from tp_solver.solve.operator import OperatorState
from tp_solver.solve.prepare import Prepared
from tp_solver.solve.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Ending:
    """The last state of a run.

    Attributes:
        state: the weights.
        met: per matrix and product, how many opposite directions it responds to.
        source: the columns.
        time: the step that the state belongs to.
    """

    state: SiteState
    met: Mapping[str, Mapping[tuple[bool, str], int]]
    source: SampledColumns | ExactColumns
    time: int

    @classmethod
    def of(cls, run: Trajectory) -> Ending:
        return cls(run.state, run.met, run.source, len(run.f) - 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, with names that :meth:`from_arrays` understands."""
        counts = {(m, *product): n for m, products in self.met.items() for product, n in products.items()}
        out = {f"met/{response_key(*product)}": np.array(n) for product, n in counts.items()}
        stream = self.source
        out["stream"] = np.array([stream.samples, *stream.seed] if isinstance(stream, SampledColumns) else [], dtype=np.int64)
        return out | {f"state/{n}": fetched(a) for n, a in state_leaves(self.state)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], plan: Layout, time: int) -> Ending:
        """Rebuild from :meth:`arrays`."""
        met: dict[str, dict[tuple[bool, str], int]] = {m: {} for m in plan.hidden}
        for s in plan.hidden_products():
            met[s.matrix][s.transpose, s.arg] = int(arrays[f"met/{response_key(s.matrix, s.transpose, s.arg)}"])
        return cls(state_from_leaves(plan, within(arrays, "state/")), met, source_from_stream(arrays["stream"]), time)


def predictions(prepared: Prepared, course: Course, runs: Sequence[Ending], X: np.ndarray, X_new: np.ndarray, gamma0: float) -> np.ndarray:
    """Outputs at new inputs of every run, (runs, P_new, K), from the training inputs X (P, D) and the new ones (P_new, D)."""
    _, x_new, rest = input_coordinates(X, X_new)
    assert x_new is not None and rest is not None
    out = []
    with jax.enable_x64(True):
        for run in runs:
            # wherever the march ran, this is done on one device
            state = jax.tree.map(lambda a: jnp.asarray(fetched(a)), run.state._replace(observers={}, velocity={}))
            sites = next(iter(state.sites.values()))
            placement = Placement(len(sites) if sites.ndim == 3 else 0)
            points = new_points(prepared.columns, x_new, rest, run.source, state.size, placement, sites.dtype)
            points = at_time(points, {m: course.growth(m, run.time) for m in course.scales})
            out.append(np.asarray(predict(prepared.setting, state, {m: dict(n) for m, n in run.met.items()}, points, gamma0)))
    return np.array(out)


def state_leaves(state: SiteState) -> list[tuple[str, Any]]:
    """(name, array) of a site state."""
    out = [(f"sites/{m}", w) for m, w in state.sites.items()]
    for m, op in state.operators.items():
        out += [(f"operators/{m}/{n}", a) for n, a in (("eps_u", op.eps_u), ("eps_r", op.eps_r), ("learned", op.learned))]
        for side in ("below", "above"):
            basis = getattr(op, side)
            out += [(f"operators/{m}/{side}/{n}", getattr(basis, n)) for n in ("rows", "used", "scale")]
    return out


def state_from_leaves(plan: Layout, arrays: Mapping[str, np.ndarray]) -> SiteState:
    """The site state from its leaves; observers are not needed for predictions."""
    with jax.enable_x64(True):  # else doubles would be rounded to single precision
        leaf = {name: jnp.asarray(a) for name, a in arrays.items()}

    def basis(m: str, side: str) -> Basis:
        return Basis(*(leaf[f"operators/{m}/{side}/{n}"] for n in ("rows", "used", "scale")))

    operators = {
        m: OperatorState(basis(m, "below"), basis(m, "above"), *(leaf[f"operators/{m}/{n}"] for n in ("eps_u", "eps_r", "learned")))
        for m in plan.hidden
    }
    sites = {m.name: leaf[f"sites/{m.name}"] for m in plan.program.matrices if m.role is not Role.HIDDEN}
    return SiteState(operators, sites, {}, {})


def source_from_stream(stream: np.ndarray) -> SampledColumns | ExactColumns:
    return SampledColumns(int(stream[0]), tuple(int(k) for k in stream[1:])) if len(stream) else ExactColumns()
