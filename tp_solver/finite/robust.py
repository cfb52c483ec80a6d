"""Finite nets trained with a penalty on their derivatives with respect to the input (Jacobian regularisation).

Loss = sum_mu p_mu (l(f_mu, y_mu) + penalty / 2 |df/dx (x_mu)|^2) under the same update as every other experiment; the gradient of
the penalty, a derivative of derivatives, is taken by jax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.finite.dense import Array, Data, Net, Numbers, Weights
from tp_solver.finite.dynamics import Clock
from tp_solver.finite.experiment import FLOW_STEP, Experiment, clock_of, lanes, march, precision, prepare
from tp_solver.finite.jacobian import empirical_jacobian_ntk, joint_values
from tp_solver.finite.network import FiniteNet
from tp_solver.finite.simulate import MEMORY
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent, Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE_ROWS = 6
"""Times that a printed table lists."""


@dataclass(frozen=True)
class JacobianNet(Net):
    """A net that predicts F = (f, df/dx) at every point; ``outputs`` counts all K (1 + D) entries, f first.

    Labels carry the penalty in a last column, so that one compilation serves all penalties.
    """

    functions: int
    """K, the outputs of the program itself."""

    def predict(self, weights: Weights, numbers: Numbers, x: Array) -> Array:
        """F at the inputs x (D, P), shape (P, (1 + D) K)."""
        return joint_values(self, weights, numbers, x).reshape(x.shape[1], -1)

    def point_loss(self, f: Array, y: Array) -> Array:
        """l + penalty / 2 |df/dx|^2 per data point, shape (P,)."""
        values, slopes = f[:, : self.functions], f[:, self.functions :]
        return self._alone.point_loss(values, y[:, :-1]) + y[:, -1] / 2 * jnp.sum(slopes**2, axis=1)

    def shape(self, matrix: str, width: int, channels: int) -> tuple[int, ...]:
        """Shape of a matrix of the program."""
        return self._alone.shape(matrix, width, channels)

    @property
    def _alone(self) -> Net:
        return Net(self.program, self.loss, self.functions)


@dataclass(frozen=True, eq=False)
class RobustExperiment(Experiment):
    """An experiment whose nets predict F and whose labels carry the penalty."""

    penalty: float

    @property
    def data(self) -> Data:
        """The task as device arrays, with the penalty as a last column of the labels."""
        data = super().data

        def penalised(y: Array | None) -> Array | None:
            return None if y is None else jnp.concatenate([y, jnp.full((len(y), 1), self.penalty, y.dtype)], axis=1)

        y = penalised(data.y)
        assert y is not None
        return Data(data.X, y, data.X_test, penalised(data.y_test))

    @property
    def functions(self) -> int:
        """K."""
        assert isinstance(self.net, JacobianNet)
        return self.net.functions


@dataclass(frozen=True, eq=False, repr=False)
class RobustNets:
    """Nets of several widths (W) and seeds (S) trained with a penalty on their derivatives; :func:`train_robustly` makes one.

    Prints as a table, plots in one call. What is not finite is reported as it came.

    Attributes:
        F: f and its derivatives with respect to the input, on the training points, (W, S, steps + 1, P, 1 + D), with a last axis
            K where the labels have one; row t is the state after t updates.
        F_test: the same on the test points, or None.
        loss, loss_test: mean of l over the points, the penalty apart, (W, S, steps + 1); the latter None without test labels.
        widths, seeds, penalty, gamma0, centred, program, parameterization, training, task: what was trained.
    """

    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    penalty: float
    gamma0: float
    centred: bool
    program: Program
    parameterization: Parameterization
    training: Training
    task: Task
    F: np.ndarray
    loss: np.ndarray
    F_test: np.ndarray | None
    loss_test: np.ndarray | None

    @property
    def f(self) -> np.ndarray:
        """Predictions on the training points, (W, S, steps + 1, P[, K])."""
        return self.F[:, :, :, :, 0]

    @property
    def f_test(self) -> np.ndarray | None:
        """Predictions on the test points, or None."""
        return None if self.F_test is None else self.F_test[:, :, :, :, 0]

    @property
    def slope(self) -> np.ndarray:
        """Root mean square over the training points of |df/dx|, (W, S, steps + 1)."""
        return _rms_slope(self.F)

    @property
    def slope_test(self) -> np.ndarray | None:
        """The same over the test points, or None."""
        return None if self.F_test is None else _rms_slope(self.F_test)

    @property
    def times(self) -> np.ndarray:
        """Updates of descent, or time of flow, of every row, (steps + 1,)."""
        steps = self.training.steps
        return np.linspace(0.0, steps if isinstance(self.training, GradientDescent) else self.training.time, steps + 1)

    def __str__(self) -> str:
        what = f"{self.program.name}, {self.parameterization.name}, {self.training}"
        head = f"{what}, penalty {self.penalty:g} on |df/dx|^2, {len(self.seeds)} nets per width"
        clock = "step" if isinstance(self.training, GradientDescent) else "time"
        rows = [
            head,
            f"{'width':>7} {clock:>8} {'loss':>20} {'rms |df/dx|':>20}" + (f" {'test loss':>20}" if self.loss_test is not None else ""),
        ]
        shown = np.unique(np.linspace(0, self.training.steps, TABLE_ROWS).round().astype(int))
        for w, width in enumerate(self.widths):
            for t in shown:
                kinds = [self.loss, self.slope] + ([] if self.loss_test is None else [self.loss_test])
                cells = " ".join(f"{_with_error(v[w, :, t]):>20}" for v in kinds)
                rows.append(f"{width:>7} {self.times[t]:>8.4g} {cells}")
        return "\n".join(rows)

    def __repr__(self) -> str:
        return f"RobustNets({self.program.name}, {self.parameterization.name}, widths {self.widths}, penalty {self.penalty:g})"

    def plot(self, path: Any = None) -> Figure:
        """Loss and size of the derivatives over time, one line per width with a band of two standard errors.

        Args:
            path: where to save it (.png, .pdf or .svg), or None.

        Raises:
            InputError: for a path in a folder that does not exist, or of another kind.
        """
        target = None if path is None else _target(path)
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.6, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        colours = colormaps["plasma_r"](np.linspace(0.15, 0.9, len(self.widths)))
        for ax, values, name in ((left, self.loss, "loss"), (right, self.slope, r"rms $|\partial f/\partial x|$")):
            for w, (width, colour) in enumerate(zip(self.widths, colours, strict=True)):
                mean = values[w].mean(axis=0)
                ax.plot(self.times, mean, color=colour, linewidth=1.4, label=f"n = {width}")
                if len(self.seeds) > 1:
                    error = 2 * values[w].std(axis=0, ddof=1) / np.sqrt(len(self.seeds))
                    ax.fill_between(self.times, np.maximum(mean - error, 1e-3 * mean), mean + error, color=colour, alpha=0.18, linewidth=0)
            ax.set(xlabel="step" if isinstance(self.training, GradientDescent) else "time", ylabel=name)
            ax.spines[["top", "right"]].set_visible(False)
        left.set_yscale("log")
        right.set_ylim(0, None)
        right.legend(frameon=False, fontsize=8)
        if target is not None:
            figure.savefig(target, dpi=200)
        return figure


def train_robustly(
    net: Any,
    parameterization: Any,
    training: Any,
    task: Any,
    penalty: float,
    gamma0: float = 1.0,
    widths: Sequence[int] = (64, 256),
    seeds: Any = 4,
    centred: bool = False,
    seed: int = 0,
    dtype: str = "float64",
    memory: float = MEMORY,
    progress: bool | None = None,
) -> RobustNets:
    """Train finite nets with a penalty on their derivatives with respect to the input.

    Loss = sum_mu (l_mu + penalty / 2 |df/dx (x_mu)|^2) / P on the training points, |.|^2 the sum over the D entries of x (and over
    outputs); w <- w - lr gamma0^2 eta n^-c dLoss/dw as for :func:`tp_solver.simulate` (Kim and Yang, arXiv:2312.03386, for gradient
    flow and squared error; ``theory/jacobian.md``, KJ.4).

    Args:
        net, parameterization, training, task, gamma0, widths, seeds, centred, seed, dtype, memory, progress: as for
            :func:`tp_solver.simulate`, whose initial nets these are. Activations with kinks train too, but what the penalty
            does to them in the limit is not known to the library.
        penalty: lambda >= 0; at 0 this is ordinary training.

    Returns:
        RobustNets: the record; prints as a table, plots in one call.

    Raises:
        TPError: naming the argument, before any compilation; BudgetError if one net does not fit into ``memory``.
    """
    from tqdm import tqdm

    plain = prepare(net, parameterization, training, task, gamma0, widths, seeds, centred, seed, dtype)
    penalty = checks.number("penalty", penalty, minimum=0.0)
    memory = checks.number("memory", memory, above=0.0, hint="memory is a number of bytes, e.g. 2 * 2**30")
    if progress is not None:
        checks.flag("progress", progress)
    quiet = None if progress is None else not progress  # None: tqdm asks whether stderr is a terminal
    experiment = _robust(plain, penalty)
    D, K, task = plain.task.D, plain.net.outputs, plain.task
    points = task.P + (0 if task.X_test is None else len(task.X_test))
    # derivatives of derivatives: every variable, its adjoint, and the adjoints of both
    lanes(
        experiment,
        memory,
        need=(2 + 2 * K) * plain.working_bytes(max(plain.widths), 1),
        held=4 * plain.dtype.itemsize * (plain.training.steps + 1) * points * (1 + D) * K * len(plain.widths) * len(plain.seeds),
    )
    parts = []
    with (
        precision(),
        tqdm(total=len(plain.widths) * len(plain.seeds), unit="net", disable=quiet) as bar,
    ):
        for width in plain.widths:
            bar.set_description(f"width {width}")
            clock = _clock(experiment, width)
            nets = []
            for label in plain.seeds:
                rows, _ = march(experiment, width, (label,), (), lambda *_: None, clock)
                nets.append(_records(rows, experiment))
                bar.update()
            parts.append({name: np.stack([one[name] for one in nets]) for name in nets[0]})
    arrays: dict[str, Any] = {"F_test": None, "loss_test": None} | {name: np.stack([p[name] for p in parts]) for name in parts[0]}
    return RobustNets(
        plain.widths,
        plain.seeds,
        penalty,
        plain.gamma0,
        plain.centred,
        plain.net.program,
        plain.parameterization,
        plain.training,
        task,
        **arrays,
    )


def _robust(plain: Experiment, penalty: float) -> RobustExperiment:
    parts = {f.name: getattr(plain, f.name) for f in fields(Experiment)}
    net = JacobianNet(plain.net.program, plain.net.loss, plain.net.outputs * (1 + plain.task.D), plain.net.outputs)
    return RobustExperiment(**(parts | {"net": net}), penalty=penalty)


def _records(rows: dict[str, np.ndarray], experiment: RobustExperiment) -> dict[str, np.ndarray]:
    """F and the losses of one net, from what predicts F in one row and has the penalty in its loss."""
    K, D = experiment.functions, experiment.task.D
    out = {}
    for suffix in ("", "_test"):
        if f"f{suffix}" not in rows:
            continue
        F = rows[f"f{suffix}"][0]
        F = F.reshape(*F.shape[:2], 1 + D, K)
        if f"loss{suffix}" in rows:
            squares = np.sum(F[:, :, 1:] ** 2, axis=(2, 3)).mean(axis=1)
            out[f"loss{suffix}"] = rows[f"loss{suffix}"][0] - experiment.penalty / 2 * squares
        out[f"F{suffix}"] = F[..., 0] if experiment.task.scalar(experiment.training.loss) else F
    return out


def _clock(experiment: RobustExperiment, width: int) -> Clock:
    """As for every experiment, but the fastest time scale is that of the tangent kernel of F."""
    if isinstance(experiment.training, GradientDescent):
        return clock_of(experiment, width)
    net = Net(experiment.net.program, experiment.net.loss, experiment.functions)
    weights = {name: w[0] for name, w in experiment.draw(width, experiment.seeds[:1]).items()}
    first = FiniteNet(weights, experiment.numbers(width), net, experiment.parameterization, experiment.task.D, width, experiment.gamma0)
    kernel = empirical_jacobian_ntk(first, experiment.task.X)
    points, entries, K = kernel.shape[0], kernel.shape[1], kernel.shape[4]
    weight = np.full((points, entries, K), experiment.penalty)
    weight[:, 0] = experiment.training.loss.curvature
    root = np.sqrt(weight.ravel() / points)
    matrix = root[:, None] * kernel.transpose(0, 1, 4, 2, 3, 5).reshape(root.size, root.size) * root
    interval = experiment.training.time / experiment.training.steps
    substeps = int(np.ceil(interval * np.linalg.eigvalsh(matrix)[-1] / FLOW_STEP))
    return Clock(experiment.dtype.type(interval), max(1, min(substeps, 100_000)))


def _rms_slope(F: np.ndarray) -> np.ndarray:
    squares = F[:, :, :, :, 1:] ** 2
    return np.sqrt(squares.reshape(*squares.shape[:4], -1).sum(axis=4).mean(axis=3))


def _with_error(values: np.ndarray) -> str:
    """Mean and standard error over seeds."""
    mean = f"{values.mean():.4g}"
    return mean if len(values) < 2 else f"{mean} +- {values.std(ddof=1) / np.sqrt(len(values)):.2g}"


def _target(path: Any) -> Path:
    target = Path(path)
    checks.one_of("path", target.suffix.lower(), (".png", ".pdf", ".svg"))
    if not target.parent.is_dir():
        raise InputError("path", str(target), "a file in an existing folder", f"create {target.parent} first")
    return target
