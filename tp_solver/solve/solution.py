"""The record of a solved limit, whatever method solved it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError, RangeError
from tp_solver.limit.equations import LimitEquations
from tp_solver.program.task import Task


class Status(StrEnum):
    """How a solve ended; the text of each is the advice."""

    COMPLETED = "completed"
    CONVERGED = "converged"
    MAX_ITERATIONS = "max_iterations"
    STALLED = "stalled"
    DIVERGED = "diverged"
    NONFINITE = "nonfinite"
    LOST_PSD = "lost_psd"
    RANK_SATURATED = "rank_saturated"
    INTERRUPTED = "interrupted"
    POOR_FIT = "poor_fit"

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _ADVICE[self]


_ADVICE = {
    Status.COMPLETED: "nothing to do",
    Status.CONVERGED: "nothing to do",
    Status.MAX_ITERATIONS: "allow more iterations, or use method='march', which needs none",
    Status.STALLED: "raise samples or loosen the tolerance: the residual has reached its noise floor",
    Status.DIVERGED: "lower lr or gamma0: the training run itself is unstable",
    Status.NONFINITE: "lower lr or gamma0, and check the data for extreme values",
    Status.LOST_PSD: "raise samples: a kernel lost positive semi-definiteness",
    Status.RANK_SATURATED: "raise samples or the tolerance: there are too few samples for the directions kept",
    Status.INTERRUPTED: "solve again; the record holds the steps done so far",
    Status.POOR_FIT: "leave out the narrowest nets or simulate wider ones: what is left of the fit in 1/N is more than chance",
}
SUCCESSES = (Status.COMPLETED, Status.CONVERGED)


class Fields(NamedTuple):
    """Single-site samples of a layer: the field h and the pre-gradient z (adjoint of phi(h)), each (sites, P)."""

    h: np.ndarray
    z: np.ndarray


class Interval(NamedTuple):
    """Lower and upper bounds of an array, entry by entry."""

    low: np.ndarray
    high: np.ndarray


class Kernels(Protocol):
    """Order parameters of a solution; layers count from 1, all answers are (P, P) arrays.

    Methods raise RangeError for what the method of solution does not hold.
    """

    def Phi(self, layer: int, t: int, s: int) -> np.ndarray: ...

    def G(self, layer: int, t: int, s: int) -> np.ndarray: ...

    def A(self, layer: int, t: int, s: int) -> np.ndarray: ...

    def B(self, layer: int, t: int, s: int) -> np.ndarray: ...

    def ntk(self, t: int) -> np.ndarray: ...

    def fields(self, layer: int, t: int) -> Fields: ...

    def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Final predictions at new inputs and their standard errors, each (P_new, K)."""
        ...

    def stderr(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        """Standard error of Phi, G, A, B or ntk; zeros where nothing was sampled."""
        ...

    def freedom(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        """Degrees of freedom of that standard error; infinite where it is known, or its error is Gaussian."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything needed to rebuild the kernels from a file."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """The limit N -> infinity of one training run; :func:`tp_solver.solve` makes one.

    Attributes:
        f: predictions on the training points, (steps + 1, P) or (steps + 1, P, K); row t is the state after t updates.
        loss: sum_mu p_mu l_mu, (steps + 1,).
        f_test, loss_test: the same for the test points (mean over them), or None; their rows are those of ``test_times``.
        f_cov: kernel regime only: covariance of the predictions over the random initial function, (steps + 1, Pa, Pa) over
            training then test points, per output; None where the limit is deterministic.
        errors: standard errors of f, loss, f_test, loss_test: scatter over replicates plus estimated biases.
        tested: times of the rows of f_test and loss_test; None where they are all times.
        freedom: their degrees of freedom (zero: a single replicate); infinite for what is not listed.
        theory, task, gamma0, method: what was solved, and how.
        status, message: how it ended (see :class:`Status`).
        details: figures of the run, e.g. ranks, residuals, iterations.
    """

    theory: LimitEquations
    task: Task
    gamma0: float
    method: str
    f: np.ndarray
    loss: np.ndarray
    f_test: np.ndarray | None
    loss_test: np.ndarray | None
    errors: Mapping[str, np.ndarray]
    kernels: Kernels
    status: Status
    message: str
    f_cov: np.ndarray | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    freedom: Mapping[str, np.ndarray] = field(default_factory=dict)
    tested: tuple[int, ...] | None = None

    @property
    def test_times(self) -> tuple[int, ...]:
        """Times of the rows of f_test and loss_test."""
        return tuple(range(len(self.f))) if self.tested is None else self.tested

    @property
    def success(self) -> bool:
        """Whether the solve ended well."""
        return self.status in SUCCESSES

    @property
    def steps(self) -> int:
        """Number of recorded intervals; smaller than asked for if the run diverged."""
        return len(self.f) - 1

    @property
    def depth(self) -> int:
        """Number of reported layers."""
        return self.theory.program.depth

    def Phi(self, layer: int, t: int, s: int) -> np.ndarray:
        """Feature kernel <phi(h_mu(t)) phi(h_nu(s))>, (P, P) (``theory/feature_learning.md``, FL.5).

        Raises:
            RangeError: for a layer or time out of range.
        """
        return self.kernels.Phi(self._layer(layer), self._time("t", t), self._time("s", s))

    def G(self, layer: int, t: int, s: int) -> np.ndarray:
        """Gradient kernel <g_mu(t) g_nu(s)>, (P, P); for several outputs the kernel of the loss gradients.

        Raises:
            RangeError: for a layer or time out of range.
        """
        return self.kernels.G(self._layer(layer), self._time("t", t), self._time("s", s))

    def A(self, layer: int, t: int, s: int) -> np.ndarray:
        """Forward response <d phi(h^l_mu(t)) / d r^l_nu(s)>, (P, P), l = 1..depth - 1; zero unless s < t in an MLP.

        Entries are ill-defined where G is singular: compare A G, never A entry by entry.

        Raises:
            RangeError: for a layer or time out of range.
        """
        return self.kernels.A(self._inner_layer(layer), self._time("t", t), self._time("s", s))

    def B(self, layer: int, t: int, s: int) -> np.ndarray:
        """Backward response <d g^{l+1}_mu(t) / d u^{l+1}_nu(s)>, (P, P), l = 1..depth - 1; zero unless s <= t in an MLP.

        Raises:
            RangeError: for a layer or time out of range.
        """
        return self.kernels.B(self._inner_layer(layer), self._time("t", t), self._time("s", s))

    def ntk(self, t: int) -> np.ndarray:
        """Tangent kernel at time t with the layers' eta but without lr, (P, P): df/dt = lr sum_nu K e_nu in gradient flow.

        Raises:
            RangeError: for a time out of range, or several outputs, whose tangent kernel the loss-gradient form does not hold.
        """
        return self.kernels.ntk(self._time("t", t))

    def ntk_alignment(self, t: int) -> float:
        """Cosine between the tangent kernel and the label kernel y y^T, between 0 and 1."""
        K = self.ntk(t)
        y, _ = self.task.targets(self.theory.training.loss)
        return float(np.sum(K * (y @ y.T)) / (np.linalg.norm(K) * np.linalg.norm(y @ y.T)))

    def fields(self, layer: int, t: int) -> Fields:
        """Single-site samples of h and z, for densities, each (sites, P), at a kept time (first and last by default).

        Raises:
            RangeError: for a layer out of range or a time whose samples were not kept.
        """
        return self.kernels.fields(self._layer(layer), self._time("t", t))

    def predict(self, X_new: Any) -> np.ndarray:
        """Final predictions at new inputs, (P_new,) or (P_new, K), without solving again.

        Args:
            X_new: (P_new, D).

        Raises:
            InputError: for NaN or a wrong number of columns.
        """
        X = checks.array("X_new", X_new, ndim=(2,), hint="X_new is (P_new, D)")
        if X.shape[1] != self.task.D:
            raise InputError("X_new", f"{X.shape[1]} columns", f"{self.task.D} columns, as the training inputs", "use the same features")
        return self._squeezed(self.kernels.predict(X)[0])

    def stderr(self, name: str, *args: int) -> np.ndarray:
        """Standard error of ``f``, ``f_test``, ``loss``, ``loss_test`` (no arguments), or of ``Phi``, ``G``, ``A``, ``B``,
        ``ntk`` (the arguments of the method). Zeros where nothing was sampled.

        Raises:
            InputError: for an unknown name or arguments that do not fit.
        """
        methods: dict[str, Callable[..., np.ndarray]] = {"Phi": self.Phi, "G": self.G, "A": self.A, "B": self.B, "ntk": self.ntk}
        checks.one_of("name", name, ("f", "f_test", "loss", "loss_test", *methods))
        if name in methods:
            wanted = 1 if name == "ntk" else 3
            if len(args) != wanted:
                raise InputError(
                    f"stderr({name!r}, ...)", args, f"{wanted} further arguments", 'stderr("Phi", layer, t, s), stderr("ntk", t)'
                )
            methods[name](*args)
            return self.kernels.stderr(name, args)
        if args:
            raise InputError(f"stderr({name!r}, ...)", args, "no further arguments", f"the whole array is answered: stderr({name!r})")
        if name not in self.errors:
            raise InputError("name", name, "a quantity that was computed", "give the task X_test and y_test")
        return self.errors[name]

    def interval(self, name: str, *args: int, level: float = 0.95) -> Interval:
        """Bounds between which the limit lies with that probability, entry by entry (``theory/limit_operator.md``, LO.7).

        The standard error times the quantile of Student's distribution: few replicates know their scatter badly. A single
        replicate does not know it at all, and its bounds are infinite.

        Args:
            name, args: as for :meth:`stderr`.
            level: between 0 and 1.

        Raises:
            InputError: as :meth:`stderr`, and for a level out of range. RangeError: for a layer or time out of range.
        """
        from scipy.stats import t as student_t  # slow to import

        level = checks.number("level", level, above=0.0)
        if level >= 1.0:
            raise InputError("level", level, "a number below 1", "level=0.95 leaves one in twenty out")
        error = self.stderr(name, *args)
        kernels: dict[str, Callable[..., np.ndarray]] = {"Phi": self.Phi, "G": self.G, "A": self.A, "B": self.B, "ntk": self.ntk}
        known = np.full(error.shape, np.inf)
        freedom = self.kernels.freedom(name, args) if name in kernels else self.freedom.get(name, known)
        value = kernels[name](*args) if name in kernels else getattr(self, name)
        sampled = freedom > 0
        half = np.where(sampled, student_t.ppf(0.5 + level / 2, np.where(sampled, freedom, 1.0)) * error, np.inf)
        return Interval(value - half, value + half)

    def save(self, path: Any) -> None:
        """Write everything, the inputs included, to one .npz file (atomically, no pickle); :func:`tp_solver.load` reads it."""
        from tp_solver.storage import save_solution

        save_solution(self, path)

    def _squeezed(self, f: np.ndarray) -> np.ndarray:
        return f[..., 0] if self.task.scalar(self.theory.training.loss) else f

    def _layer(self, layer: Any) -> int:
        return self._counted("layer", layer, 1, self.depth, "layers count from 1")

    def _inner_layer(self, layer: Any) -> int:
        return self._counted("layer", layer, 1, self.depth - 1, "A and B live between two hidden layers")

    def _time(self, name: str, t: Any) -> int:
        last = self.steps
        return self._counted(name, t, 0, last, "times count updates; the last row has had them all")

    @staticmethod
    def _counted(name: str, value: Any, low: int, high: int, hint: str) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
            raise RangeError(name, value, f"an integer from {low} to {high}", hint)
        return int(value)

    def __str__(self) -> str:
        lines = [
            f"solution of {self.theory.program.name}, {self.theory.parameterization.name}, gamma0 = {self.gamma0:g}",
            f"  {self.theory.training}",
            f"  method {self.method}: {self.status} ({self.message})",
            *self._shares(),
            f"  {'step':>6} {'loss':>12} {'s.e.':>9}" + (f" {'test loss':>12} {'s.e.':>9}" if self.loss_test is not None else ""),
        ]
        for t in sorted({0, self.steps // 4, self.steps // 2, self.steps}) if len(self.f) else ():  # a first state may be bad
            row = f"  {t:>6} {self.loss[t]:>12.6f} {self.errors['loss'][t]:>9.1e}"
            if self.loss_test is not None:
                k = self.test_times.index(t) if t in self.test_times else None
                row += f" {'':>22}" if k is None else f" {self.loss_test[k]:>12.6f} {self.errors['loss_test'][k]:>9.1e}"
            lines.append(row)
        return "\n".join(lines)

    def _shares(self) -> list[str]:
        """A line on the error of f, where it is known."""
        shares = self.details.get("errors") or {}
        named = ", ".join(f"{kind} {share:.2g}" for kind, share in shares.items())
        return [f"  standard error of f, relative: {named}"] if named else []

    __repr__ = __str__
