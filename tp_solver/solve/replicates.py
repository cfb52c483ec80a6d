"""What methods that run replicates share: series over time, values with standard errors, the record of the solution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax.numpy as jnp
import numpy as np

from tp_solver.limit.equations import LimitEquations
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.program.statements import Average, Map, Program, Statement, symbol
from tp_solver.program.task import Task
from tp_solver.program.training import GradientFlow
from tp_solver.solve.deviations import Check, Estimate, deviation, estimate, estimate_of, removable, resolved
from tp_solver.solve.machine import loss_and_error
from tp_solver.solve.prepare import Prepared, prepare
from tp_solver.solve.solution import Solution, Status


class Recorded(Protocol):
    """What every replicate answers: outputs f (T, P, K), at new points (times, P_new, K) or None, its columns."""

    @property
    def f(self) -> np.ndarray: ...

    @property
    def f_new(self) -> np.ndarray | None: ...

    @property
    def source(self) -> SampledColumns | ExactColumns: ...


R = TypeVar("R", bound=Recorded)
MAIN = "main"
"""The group of runs whose values are reported."""
LONG_STEPS = "long steps"
STEP_SIZE = Check("step size", MAIN, LONG_STEPS, 1.0, always=True)
"""Of a flow: the main runs take two Euler steps for every one of the others."""
ROUNDING = 1e-10
"""A prediction below this is zero for the purpose of relative errors."""


@dataclass(frozen=True)
class Runs(Generic[R]):
    """Replicates at one setting of samples, tolerance and step size, subsampled to the reported times."""

    trajectories: tuple[R, ...]
    stride: int

    def series(self, name: str) -> np.ndarray:
        """(replicates, times, ...), cut to the shortest replicate."""
        values = [getattr(tr, name) for tr in self.trajectories]
        rows = min(len(v) for v in values)
        return np.array([v[: rows : self.stride] for v in values])

    def predicted(self) -> np.ndarray | None:
        """(replicates, tested times, P_new, K), cut to the shortest replicate."""
        values = [tr.f_new for tr in self.trajectories if tr.f_new is not None]
        return np.array([v[: min(len(v) for v in values)] for v in values]) if values else None

    @property
    def sampled(self) -> bool:
        """Whether sites are samples."""
        return any(isinstance(tr.source, SampledColumns) for tr in self.trajectories)


def prepared_in_steps(theory: LimitEquations, task: Task, substeps: int) -> Prepared:
    """A flow becomes gradient descent with that many steps per reported interval."""
    return prepare(theory, task, theory.training.refined(substeps) if isinstance(theory.training, GradientFlow) else None)


class Estimates(NamedTuple):
    """What groups of runs say.

    Attributes:
        of: "f", "loss" and, where there are test points, "f_test", "loss_test"; each f with an output axis.
        deviations: kind -> root mean square of what runs at another setting say about the error of f, before any removal.
        removed: the kinds that were removed.
    """

    of: dict[str, Estimate]
    deviations: dict[str, float]
    removed: frozenset[str]


def estimates(runs: Mapping[str, Runs[R]], checks: Sequence[Check], prepared: Prepared) -> Estimates:
    """Estimates of f, loss, f_test, loss_test.

    Args:
        runs: groups by name, the reported one as :data:`MAIN`.
        checks: which groups differ in what; what the deviations of f say about removing is done everywhere.
    """
    main = runs[MAIN]
    series = {name: _series(group, prepared) for name, group in runs.items()}
    errors = {
        name: {c.kind: deviation(series[c.near][name], series[c.far][name], series[MAIN][name], c.factor) for c in checks}
        for name in series[MAIN]
    }
    always = frozenset(c.kind for c in checks if c.always)
    removed = removable(series[MAIN]["f"], errors["f"], always)
    out = {name: estimate(values, errors[name], removed, main.sampled) for name, values in series[MAIN].items()}
    # f is deterministic, so its loss is that of the mean; the mean of the losses would be larger by the scatter squared
    out["loss"] = estimate_of(lambda f: _loss(f, prepared.y, prepared), series[MAIN]["f"], errors["f"], removed, main.sampled)
    labels = prepared.y_test
    if "f_test" in out and labels is not None:
        out["loss_test"] = estimate_of(
            lambda f: _loss(f, labels, prepared), series[MAIN]["f_test"], errors["f_test"], removed, main.sampled
        )
    return Estimates(out, {kind: float(np.sqrt(resolved(error).square)) for kind, error in errors["f"].items()}, removed)


def relative_errors(f: Estimate) -> dict[str, float]:
    """Root mean squares over times and points of the parts of the standard error of f, relative to that of f."""
    size = max(float(np.sqrt(np.mean(f.value**2))) if f.value.size else 0.0, ROUNDING)
    return {kind: float(np.sqrt(np.mean(part**2))) / size for kind, part in f.parts.items()} if f.value.size else {}


def _series(runs: Runs[R], prepared: Prepared) -> dict[str, np.ndarray]:
    """What every replicate has of its own, per time: its outputs."""
    out = {"f": runs.series("f")}
    if (new := runs.predicted()) is not None:
        out["f_test"] = new
    return out


def _loss(f: np.ndarray, labels: np.ndarray, prepared: Prepared) -> np.ndarray:
    """Mean over the points of outputs (..., points, K)."""
    flat = f.reshape(-1, f.shape[-1])
    y = np.broadcast_to(labels, f.shape).reshape(flat.shape)
    per_point, _ = loss_and_error(prepared.loss, jnp.asarray(flat), jnp.asarray(y))
    return np.asarray(per_point).reshape(f.shape[:-1]).mean(axis=-1)


def solution(
    theory: LimitEquations, task: Task, gamma0: float, method: str, found: Mapping[str, Estimate],
    kernels: Any, status: Status, message: str, details: dict[str, Any], tested: tuple[int, ...] | None = None,
) -> Solution:  # fmt: skip
    """The record; outputs of a single-output task lose their output axis."""
    scalar = task.scalar(theory.training.loss)

    def shown(name: str, a: np.ndarray) -> np.ndarray:
        return a[..., 0] if scalar and name.startswith("f") else a

    values, errors, freedom = (
        {name: shown(name, a) for name, a in arrays.items()}
        for arrays in (
            {name: e.value for name, e in found.items()},
            {name: e.stderr for name, e in found.items()},
            {name: e.effective_freedom for name, e in found.items()},
        )
    )
    return Solution(
        theory, task, gamma0, method, values["f"], values["loss"], values.get("f_test"), values.get("loss_test"),
        errors, kernels, status, message, details=details, freedom=freedom, tested=tested,
    )  # fmt: skip


def nonlinear_statement(program: Program) -> Statement | None:
    """The first statement that is not linear in its arguments, if there is one."""
    return next((s for s in program.statements if isinstance(s, Average) or (isinstance(s, Map) and not _is_linear(s))), None)


def _is_linear(s: Map) -> bool:
    """Whether the map is a combination of its arguments with constant coefficients and no constant term."""
    names = [symbol(a) for a in s.arguments]
    return not any(s.expression.diff(a).free_symbols for a in names) and s.expression.subs(dict.fromkeys(names, 0)) == 0
