"""Ways to solve a limit, as records of their options; ``solve(method="march")`` means the record with its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tp_solver import checks
from tp_solver.errors import InputError


@dataclass(frozen=True)
class March:
    """The causal limit operator: any program, one pass in time.

    Args:
        tol: directions whose share of the squared size is below this are dropped; None chooses 4 / samples, what the
            samples can resolve, at most 0.01.
        times: times whose single-site samples are kept for densities; None keeps the first and the last.
        recorded: times whose kernels are recorded (A and B need every step up to theirs); None records all times of a short run, and
            21 evenly spaced ones where all would take more than a quarter of a GiB.
        tested: times at which the test points are predicted; None predicts them at all times, or at 21 evenly spaced ones where that would
            cost more than the march itself (many test points and many steps).
        bias: whether to repeat all replicates with half the samples, at the same tolerance and at four times it, so that standard
            errors hold the finite-sample bias and the truncation, which repeats do not show.
        substeps: gradient flow only: Euler steps per reported interval (the result is extrapolated from this and twice as
            many; the difference enters the standard error).
        dtype: "float64" or "float32".
        memory: GiB that the march may take; None allows what the machine has. More is refused before anything is compiled; bases
            that would outgrow it end the run with status "rank_saturated".
    """

    tol: float | None = None
    times: tuple[int, ...] | None = None
    bias: bool = True
    substeps: int = 4
    dtype: str = "float64"
    recorded: tuple[int, ...] | None = None
    tested: tuple[int, ...] | None = None
    memory: float | None = None
    name = "march"

    def __post_init__(self) -> None:
        if self.tol is not None:
            object.__setattr__(self, "tol", checks.number("tol", self.tol, above=0.0, maximum=1.0))
        for name in ("times", "recorded", "tested"):
            given = getattr(self, name)
            if given is not None:
                if isinstance(given, (str, int)) or not hasattr(given, "__iter__"):
                    raise InputError(name, given, "a sequence of times", f"{name}=(0, 50, 100)")
                object.__setattr__(self, name, tuple(checks.integer(name, t, minimum=0) for t in given))
        if self.memory is not None:
            object.__setattr__(self, "memory", checks.number("memory", self.memory, above=0.0, hint="memory is in GiB"))
        checks.flag("bias", self.bias)
        checks.integer("substeps", self.substeps, minimum=1)
        checks.one_of("dtype", self.dtype, ("float64", "float32"))


@dataclass(frozen=True)
class Linear:
    """Exact algebra for programs whose maps are all linear: no sampling (``theory/feature_learning.md``).

    Args:
        substeps: gradient flow only, as for :class:`March`.
    """

    substeps: int = 64
    name = "linear"

    def __post_init__(self) -> None:
        checks.integer("substeps", self.substeps, minimum=1)


@dataclass(frozen=True)
class FixedPoint:
    """Self-consistent iteration on explicit two-time kernels Phi, G, A, B (Bordelon & Pehlevan 2022).

    Programs whose maps are all linear take exact sites instead of samples, and single entries of A and B are exact.

    Args:
        max_iterations: sweeps before giving up.
        tol: relative residual of the error signal below which the iteration has converged; kernels may change ten times that.
        truncation: share of a noise covariance's variance below which directions are dropped; None chooses 4 / samples.
        substeps: gradient flow only, as for :class:`March`.
        memory: GiB that fields and kernels may take; more is refused.
    """

    max_iterations: int = 60
    tol: float = 1e-6
    truncation: float | None = None
    substeps: int = 4
    memory: float = 2.0
    name = "fixed_point"

    def __post_init__(self) -> None:
        checks.integer("max_iterations", self.max_iterations, minimum=1)
        checks.number("tol", self.tol, above=0.0)
        checks.integer("substeps", self.substeps, minimum=1)
        checks.number("memory", self.memory, above=0.0)
        if self.truncation is not None:
            checks.number("truncation", self.truncation, above=0.0, maximum=1.0)


@dataclass(frozen=True)
class KernelRegime:
    """Kernels at initialisation and the linear dynamics they drive; also the limit gamma0 -> 0 of any program."""

    name = "kernel"


@dataclass(frozen=True)
class Auto:
    """The march, at the effort that the target asks for, with advice from its first steps where nets of several widths, extrapolated,
    would be cheaper (:func:`tp_solver.advise`); kernels where nothing else is to be solved.

    Args:
        error: the target, as ``rtol`` of ``solve``, which comes first.
        dtype: "float64" or "float32".
    """

    error: float = 0.01
    dtype: str = "float64"
    name = "auto"

    def __post_init__(self) -> None:
        if not checks.number("error", self.error, above=0.0) < 1.0:
            raise InputError("error", self.error, "a number below 1", "error=0.01 is one percent")
        checks.one_of("dtype", self.dtype, ("float64", "float32"))


Method = March | Linear | FixedPoint | KernelRegime | Auto
METHODS: dict[str, type[Any]] = {m.name: m for m in (March, Linear, FixedPoint, KernelRegime, Auto)}
