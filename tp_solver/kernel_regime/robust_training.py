"""Training with a penalty on the input Jacobian: a linear equation in function space (``theory/jacobian.md``, KJ.4 to KJ.6).

Loss = sum_mu (|f_mu - y_mu|^2 + penalty |df/dx (x_mu)|^2) / 2P. With F = (f, df/dx) on the training points, targets Y = (y, 0) and
weights Lambda = (1, penalty, ..., penalty) / P, flow obeys dF/dt = -JNTK Lambda (F - Y), on all points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.affine import Eigenmodes, covariance_at, eigenmodes, is_affine
from tp_solver.kernel_regime.dynamics import rates_of
from tp_solver.kernel_regime.filters import edge, filter_at, reported_filters
from tp_solver.kernel_regime.jacobian import GIB, JacobianKernels, matrix, rated_jacobian_kernels
from tp_solver.kernel_regime.stepped import require_equal_steps
from tp_solver.limit.spec import limit_spec
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent, GradientFlow, Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE_ROWS = 7
"""Times that a printed table lists."""
CURVES = 6
"""Training points whose functions a figure follows."""


@dataclass(frozen=True, eq=False)
class JacobianMoments:
    """Mean and covariance of F = (f, df/dx) over initialisations at one time.

    Attributes:
        F: mean on the training points, (P, 1 + D), with a last axis K where the labels have one; F_test: on the test points, or None.
        covariance: over all points, training points first, (Pa, 1 + D, Pa, 1 + D), the same for every output; None for a start at zero.
    """

    F: np.ndarray
    F_test: np.ndarray | None
    covariance: np.ndarray | None

    @property
    def variance(self) -> np.ndarray:
        """Of F on the training points, (P, 1 + D); zero for a start at zero."""
        if self.covariance is None:
            return np.zeros(self.F.shape[:2])
        shape = self.covariance.shape[:2]
        # rounding: at the end of training nothing is left on the training points
        return np.maximum(matrix(self.covariance).diagonal(), 0.0).reshape(shape)[: len(self.F)]

    @property
    def slope(self) -> float:
        """Root mean square of |df/dx| over training points and initialisations."""
        return float(_slope(self.F[None], self.variance[None])[0])


@dataclass(frozen=True, eq=False, repr=False)
class RobustTraining:
    """Jacobian-regularised training of an infinitely wide net; :func:`robust_training` makes one. Prints as a table, plots in one call.

    Attributes:
        kernels: of (f, df/dx) over all points, training points first; of the tangent kernel, rates in proportion to the largest, lr.
        modes: directions of the training points' (f, df/dx) that learn independently, lr and weights included.
        random: whether the initial function is random; it is zero at gamma0 = 0, and where the parameterization makes it so.
        program, parameterization, training, task, penalty, gamma0, lr: what was solved; lr is one for flow.
    """

    kernels: JacobianKernels
    modes: Eigenmodes
    random: bool
    program: Program
    parameterization: Parameterization
    training: Training
    task: Task
    penalty: float
    gamma0: float
    lr: float

    @property
    def times(self) -> np.ndarray:
        """Updates of descent, or time of flow, of every row, (T + 1,)."""
        end = self.training.time if isinstance(self.training, GradientFlow) else self.training.steps
        return np.linspace(0.0, end, self.training.steps + 1)

    @property
    def F(self) -> np.ndarray:
        """Mean over initialisations of (f, df/dx) on the training points, (T + 1, P, 1 + D), with a last axis K where the labels have
        one; row t is reported time t."""
        return self._means[:, : self.task.P]

    @property
    def F_test(self) -> np.ndarray | None:
        """The same on the test points, or None."""
        return None if self.task.X_test is None else self._means[:, self.task.P :]

    @property
    def variance(self) -> np.ndarray:
        """Over initialisations, (T + 1, P, 1 + D), the same for every output; zero for a start at zero."""
        return self._variances[:, : self.task.P]

    @property
    def variance_test(self) -> np.ndarray | None:
        """The same on the test points, or None."""
        return None if self.task.X_test is None else self._variances[:, self.task.P :]

    @cached_property
    def _means(self) -> np.ndarray:
        """On all points at all reported times."""
        reach = self._reach(self.kernels.ntk)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.stack([self._mean(reach * g) for g in self._filters])

    @cached_property
    def _variances(self) -> np.ndarray:
        shape = (len(self._filters), *self.kernels.nngp.shape[:2])
        if not self.random:
            return np.zeros(shape)
        reach, modes = self._reach(self.kernels.ntk), self._prior_modes()
        prior = matrix(self._prior).diagonal()
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.stack([covariance_at(prior, *modes, reach * g) for g in self._filters])
        # rounding: at the end of training nothing is left on the training points
        return np.maximum(found, 0.0).reshape(shape)

    @property
    def _filters(self) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return reported_filters(self.training, self.modes.eigenvalues)

    @property
    def loss(self) -> np.ndarray:
        """Squared error on the training points, the penalty apart, averaged over initialisations, (T + 1,)."""
        return _loss(self.F, self.variance, self.task.y)

    @property
    def loss_test(self) -> np.ndarray | None:
        """The same on the test points; None without test labels."""
        if self.F_test is None or self.variance_test is None or self.task.y_test is None:
            return None
        return _loss(self.F_test, self.variance_test, self.task.y_test)

    @property
    def slope(self) -> np.ndarray:
        """Root mean square of |df/dx| over training points and initialisations, (T + 1,)."""
        return _slope(self.F, self.variance)

    @property
    def slope_test(self) -> np.ndarray | None:
        """The same over the test points, or None."""
        return None if self.F_test is None or self.variance_test is None else _slope(self.F_test, self.variance_test)

    @property
    def critical_lr(self) -> float:
        """Descent converges below this rate; it falls as the penalty grows (KJ.6)."""
        momentum = self.training.momentum if isinstance(self.training, GradientDescent) else 0.0
        largest = self.modes.eigenvalues.max(initial=0.0)
        return float(edge(momentum) * self.lr / largest) if largest > 0 else np.inf

    def at(self, time: float) -> JacobianMoments:
        """Mean and covariance at one time, in closed form.

        Args:
            time: steps of descent or time of flow; math.inf for the end of training. Where the tangent kernel of (f, df/dx) is positive
                definite that end does not depend on the penalty, as long as there is one (KJ.5).

        Raises:
            InputError: for a time that the rule does not have, or infinity where training diverges.
        """
        influence = self._reach(self.kernels.ntk) * filter_at(self.training, self.modes.eigenvalues, time).moved
        F = self._mean(influence)
        covariance = None
        if self.random:
            shape = self.kernels.nngp.shape
            covariance = covariance_at(matrix(self._prior), *self._prior_modes(), influence).reshape(shape)
        test = None if self.task.X_test is None else F[self.task.P :]
        return JacobianMoments(F[: self.task.P], test, covariance)

    def evolve(self, F0: Any, time: float) -> np.ndarray:
        """One function trained from a given start.

        Args:
            F0: initial (f, df/dx) on all points, training points first, (Pa, 1 + D), with a last axis K where the labels have one.
            time: as for :meth:`at`.

        Returns:
            (f, df/dx) at that time, shaped like F0.

        Raises:
            InputError: for an F0 of another shape, or as :meth:`at`.
        """
        shape = (*self.kernels.nngp.shape[:2], *self.task.y.shape[1:])
        start = checks.array("F0", F0, ndim=(len(shape),), hint=f"F0 is {shape}: f and its derivatives on training and test points")
        if start.shape != shape:
            raise InputError("F0", f"shape {start.shape}", f"shape {shape}", "f and its derivatives, on the training points first")
        columns = start.reshape(shape[0] * shape[1], -1)
        error = _targets(self.task) - columns[: self.task.P * shape[1]]
        influence = self._reach(self.kernels.ntk) * filter_at(self.training, self.modes.eigenvalues, time).moved
        return (columns + influence @ (self.modes.columns.T @ error)).reshape(shape)

    def predict(self, X_new: Any, time: float, memory: float = GIB) -> np.ndarray:
        """Mean of (f, df/dx) at new points, (M, 1 + D), with a last axis K where the labels have one.

        Args:
            X_new: (M, D). time: as for :meth:`at`. memory: GiB.

        Raises:
            InputError: for malformed inputs, or as :meth:`at`. BudgetError: if the kernels do not fit.
        """
        found = rated_jacobian_kernels(self.program, self.parameterization, self._rates, X_new, self.task.X, memory)
        return self._mean(self._reach(found.ntk) * filter_at(self.training, self.modes.eigenvalues, time).moved)

    @property
    def _rates(self) -> dict[str, float]:
        return _in_proportion(self.training, self.program)[0]

    @property
    def _prior(self) -> np.ndarray:
        return self.kernels.nngp / self.gamma0**2

    def _prior_modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Covariance of the initial F on all points with the modes, and of the modes."""
        N = len(self.modes.columns)
        cross = matrix(self._prior)[:, :N] @ self.modes.columns
        return cross, self.modes.columns.T @ cross[:N]

    def _reach(self, ntk: np.ndarray) -> np.ndarray:
        """How far the modes carry to points with this tangent kernel, (n (1 + D), modes)."""
        return self.lr * matrix(ntk[:, :, : self.task.P]) @ self.modes.columns

    def _mean(self, influence: np.ndarray) -> np.ndarray:
        mean = influence @ (self.modes.columns.T @ _targets(self.task))
        return mean.reshape(-1, 1 + self.task.D, *self.task.y.shape[1:])

    def __str__(self) -> str:
        clock = "time" if isinstance(self.training, GradientFlow) else "step"
        names, kinds = ["loss", "rms |df/dx|"], [self.loss, self.slope]
        for name, values in (("test loss", self.loss_test), ("test rms |df/dx|", self.slope_test)):
            if values is not None:
                names.append(name)
                kinds.append(values)
        start = "over random initial functions" if self.random else "starting at zero"
        lines = [
            f"{self.program.name}, {self.parameterization.name}, {self.training}, penalty {self.penalty:g} on |df/dx|^2, {start}",
            f"  {self.task.P} training points in {self.task.D} dimensions; critical lr {self.critical_lr:.4g}",
            f"  {clock:>8}" + "".join(f" {name:>17}" for name in names),
        ]
        for t in np.unique(np.linspace(0, self.training.steps, TABLE_ROWS).round().astype(int)):
            lines.append(f"  {self.times[t]:>8.4g}" + "".join(f" {v[t]:>17.5g}" for v in kinds))
        return "\n".join(lines)

    __repr__ = __str__

    def plot(self, path: Any = None) -> Figure:
        """Losses, sizes of the derivatives, and the functions of a few training points over time, with bands of two deviations.

        Args:
            path: where to save it (.png, .pdf or .svg), or None.

        Raises:
            InputError: for a path whose folder does not exist, or an unknown suffix.
        """
        target = None if path is None else checks.figure_path(path)
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.2, 3.0), layout="constrained")
        losses, slopes, functions = figure.subplots(1, 3)
        for ax, train, test in ((losses, self.loss, self.loss_test), (slopes, self.slope, self.slope_test)):
            ax.plot(self.times, train, color="black", linewidth=1.6, label="training points")
            if test is not None:
                ax.plot(self.times, test, color="C1", linewidth=1.6, linestyle=(0, (4, 2)), label="test points")
        losses.set(ylabel="loss", yscale="log")
        slopes.set(ylabel=r"rms $|\partial f/\partial x|$")
        slopes.set_ylim(0, None)
        slopes.legend(frameon=False, fontsize=8)
        f, y = (v.reshape(*v.shape[:k], -1)[..., 0] for v, k in ((self.F[:, :, 0], 2), (self.task.y, 1)))
        deviation = np.sqrt(np.maximum(self.variance[:, :, 0], 0.0))
        for k in range(min(CURVES, self.task.P)):
            functions.plot(self.times, f[:, k], color=f"C{k}", linewidth=1.3)
            functions.fill_between(
                self.times, f[:, k] - 2 * deviation[:, k], f[:, k] + 2 * deviation[:, k], color=f"C{k}", alpha=0.13, linewidth=0
            )
            functions.plot(self.times[-1:] * 1.03, y[k : k + 1], "o", color=f"C{k}", markersize=4, clip_on=False)
        functions.set(ylabel="f at training points (dots: labels)")
        for ax in (losses, slopes, functions):
            ax.set_xlabel("time" if isinstance(self.training, GradientFlow) else "step")
            ax.spines[["top", "right"]].set_visible(False)
        if target is not None:
            figure.savefig(target, dpi=200)
        return figure


def robust_training(
    net: Program,
    parameterization: Parameterization,
    training: Training,
    task: Task,
    penalty: float,
    gamma0: float = 1.0,
    memory: float = GIB,
) -> RobustTraining:
    """Jacobian-regularised training of an infinitely wide net in closed form: mean and covariance of f and df/dx at any time.

    Loss = sum_mu (|f_mu - y_mu|^2 + penalty |df/dx (x_mu)|^2) / 2P on the training points, |.|^2 the sum over the D entries of x; the
    update rule is that of :func:`tp_solver.solve` (Kim and Yang, arXiv:2312.03386, for flow; ``theory/jacobian.md``, KJ.4 to KJ.6).

    Args:
        net: a program with smooth activations.
        parameterization: its exponents and constants; for one that learns features this is the lazy limit.
        training: descent (with momentum) or flow, squared error.
        task: the data; test points are followed too.
        penalty: lambda >= 0; at 0 this is ordinary training.
        gamma0: divides the initial function; 0 for a start at zero.
        memory: GiB that the kernels may take.

    Raises:
        ProgramError: for activations with kinks. InputError: for another loss, or malformed arguments. BudgetError: as
            :func:`jacobian_kernels`.

    Example: ``robust_training(tp.mlp(depth=2, activation=tp.erf), tp.ntk, tp.GradientFlow(time=60, steps=60), task, penalty=0.1)``.
    """
    checks.instance("net", net, Program, "a program such as tp.mlp(depth=2, activation=tp.erf)")
    checks.instance("parameterization", parameterization, Parameterization, "a Parameterization such as tp.ntk")
    checks.instance("training", training, (GradientDescent, GradientFlow), "a training rule", "tp.GradientFlow(time=60, steps=60)")
    checks.instance("task", task, Task, "a Task such as tp.Task(X, y)")
    require_equal_steps(training)
    penalty = checks.number("penalty", penalty, minimum=0.0)
    gamma0 = checks.number("gamma0", gamma0, minimum=0.0)
    y, _ = task.targets(training.loss)
    if not is_affine(training.loss, y.shape[1]):
        raise InputError("training.loss", training.loss.name, "squared error", "other losses have no closed form with a penalty")
    rates, lr = _in_proportion(training, net)
    both = task.X if task.X_test is None else np.concatenate([task.X, task.X_test])
    found = rated_jacobian_kernels(net, parameterization, rates, both, memory=memory)
    weight = np.full((task.P, 1 + task.D), penalty)
    weight[:, 0] = 1.0
    root = np.sqrt(weight.ravel() / task.P)
    train = matrix(found.ntk[: task.P, :, : task.P])
    modes = eigenmodes(lr * train, root)
    random = gamma0 > 0 and limit_spec(net, parameterization).random_output
    return RobustTraining(found, modes, random, net, parameterization, training, task, penalty, gamma0, lr)


def _in_proportion(training: Training, net: Program) -> tuple[dict[str, float], float]:
    """Learning rates relative to the largest, and the largest."""
    rates = rates_of(training, net)
    largest = max(rates.values()) or 1.0
    return {m: v / largest for m, v in rates.items()}, largest


def _targets(task: Task) -> np.ndarray:
    """(y, 0) on the training points, (P (1 + D), K)."""
    y = task.y.reshape(task.P, -1)
    out = np.zeros((task.P, 1 + task.D, y.shape[1]))
    out[:, 0] = y
    return out.reshape(-1, y.shape[1])


def _loss(F: np.ndarray, variance: np.ndarray, y: np.ndarray) -> np.ndarray:
    error = (F[:, :, 0] - y).reshape(*F.shape[:2], -1)
    return (np.sum(error**2, axis=2) + error.shape[2] * variance[:, :, 0]).mean(axis=1) / 2


def _slope(F: np.ndarray, variance: np.ndarray) -> np.ndarray:
    squares = (F[:, :, 1:] ** 2).reshape(*F.shape[:2], F.shape[2] - 1, -1)
    return np.sqrt((squares.sum(axis=3) + squares.shape[3] * variance[:, :, 1:]).sum(axis=2).mean(axis=1))
