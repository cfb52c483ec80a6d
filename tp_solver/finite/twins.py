"""Finite nets trained side by side with their linearised twins, from the same weights and by the same rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.finite import dynamics
from tp_solver.finite.dense import Array, Data, Numbers, Weights
from tp_solver.finite.dynamics import Base
from tp_solver.finite.experiment import Experiment, clock_of, lanes, march, precision, prepare, recorded_times
from tp_solver.finite.linearised import twin_of
from tp_solver.finite.simulate import MEMORY
from tp_solver.finite.slopes import Slope, slope
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.training import GradientFlow, Training, require_gradients_alone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESAMPLES = 2000
"""Bootstrap resamples of the seeds behind an interval."""


@dataclass(frozen=True, eq=False, repr=False)
class Twins:
    """Nets of several widths (W) and seeds (S) and their linearised twins; :func:`train_with_twin` makes one.

    Attributes:
        f, f_lin: predictions of net and twin on the training points, (W, S, steps + 1, P) or (W, S, steps + 1, P, K); row t is the
            state after t updates.
        f_test, f_lin_test: the same on the test points, or None.
        loss, loss_lin: mean over the training points, (W, S, steps + 1).
        kernels: tangent kernel of the net at the recorded rows ``times``, (W, S, T, P, P) or (W, S, T, P, K, P, K), with eta and
            without lr; the kernel of the twin is that of row 0 for ever.
        widths, seeds, times, gamma0, centred, program, parameterization, training, task: what was trained.

    What is not finite is reported as it came: a twin above its critical rate grows until it overflows.
    """

    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    times: tuple[int, ...]
    gamma0: float
    centred: bool
    program: Program
    parameterization: Parameterization
    training: Training
    task: Task
    f: np.ndarray
    f_lin: np.ndarray
    f_test: np.ndarray | None
    f_lin_test: np.ndarray | None
    loss: np.ndarray
    loss_lin: np.ndarray
    kernels: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """max over training points and outputs of |f - f_lin| at every row, (W, S, steps + 1)."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.abs(self.f - self.f_lin).reshape(*self.f.shape[:3], -1).max(axis=3)

    @property
    def gap_test(self) -> np.ndarray | None:
        """The same over the test points, or None."""
        if self.f_test is None or self.f_lin_test is None:
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            return np.abs(self.f_test - self.f_lin_test).reshape(*self.f_test.shape[:3], -1).max(axis=3)

    @property
    def largest_gap(self) -> np.ndarray:
        """max over rows of :attr:`gap`, (W, S)."""
        return self.gap.max(axis=2)

    @property
    def kernel_drift(self) -> np.ndarray:
        """|K_t - K_0| / |K_0| in the Frobenius norm at the recorded rows, (W, S, T); needs row 0 among them."""
        flat = self.kernels.reshape(*self.kernels.shape[:3], -1)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.linalg.norm(flat - flat[:, :, :1], axis=3) / np.linalg.norm(flat[:, :, :1], axis=3)

    @property
    def critical_rates(self) -> np.ndarray:
        """2 P / (largest eigenvalue of K_0): gradient descent of the twin on the squared error converges below, (W, S)."""
        size = int(np.prod(self.f.shape[3:]))
        k = self.kernels[:, :, 0].reshape(len(self.widths), len(self.seeds), size, size)
        return 2 * self.task.P / np.linalg.eigvalsh(k)[..., -1]

    def slope(self, values: Any, seed: int = 0) -> Slope:
        """The power of the width that the mean over seeds of some (W, S) values follows, with its 95 % bootstrap interval over seeds.

        Raises:
            InputError: for values of another shape or not positive, a single width, or a single seed.
        """
        values = checks.array("values", values, ndim=(2,), hint="one number per width and seed, for example twins.largest_gap")
        if values.shape != (len(self.widths), len(self.seeds)):
            raise InputError("values", f"shape {values.shape}", f"shape {(len(self.widths), len(self.seeds))}", "one per width and seed")
        if not (values > 0).all():
            raise InputError("values", f"{values.min():g}", "positive numbers", "a power law is fitted to their logarithm")
        if min(values.shape) < 2:
            raise InputError("values", f"shape {values.shape}", "two widths and two seeds at least", "train more nets")
        seeds = len(self.seeds)
        counts = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=(RESAMPLES, len(self.widths)))
        found = slope(self.widths, values.mean(axis=1), np.einsum("bws,ws->bw", counts, values) / seeds, np.zeros(len(self.widths)))
        assert found is not None  # all values are above zero
        return found

    def __str__(self) -> str:
        head = f"{self.program.name}, {self.parameterization.name}, {self.training}, {len(self.seeds)} nets per width and their twins"
        columns = f"{'width':>7} {'max|f - f_lin|':>24} {'|K_T - K_0|/|K_0|':>24} {'final loss':>12} {'of the twin':>12}"
        rows = [head, columns]
        table = (self.largest_gap, self.kernel_drift[:, :, -1])
        with np.errstate(all="ignore"):
            for w, width in enumerate(self.widths):
                cells = " ".join(f"{_with_error(v[w]):>24}" for v in table)
                rows.append(f"{width:>7} {cells} {self.loss[w, :, -1].mean():>12.3g} {self.loss_lin[w, :, -1].mean():>12.3g}")
        if min(len(self.widths), len(self.seeds)) > 1 and all(np.isfinite(v).all() and (v > 0).all() for v in table):
            rows.append(f"{'slope':>7} " + " ".join(f"{self.slope(v)!s:>24}" for v in table))
        return "\n".join(rows)

    def __repr__(self) -> str:
        return f"Twins({self.program.name}, {self.parameterization.name}, widths {self.widths}, {len(self.seeds)} seeds, {self.training})"

    def plot(self, path: Any = None) -> Figure:
        """Functions, losses and deviations of nets and twins in one figure; written to ``path`` where one is given.

        Raises:
            InputError: for a path whose folder does not exist, or an unknown suffix.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.6, 6.0), layout="constrained")
        panels = figure.subplots(2, 2)
        for w, ax in zip((0, -1), panels[0], strict=True):
            _draw_functions(self, w, ax)
        _draw_losses(self, panels[1, 0])
        _draw_deviations(self, panels[1, 1])
        for ax in panels.flat:
            ax.spines[["top", "right"]].set_visible(False)
            ax.title.set_fontsize(9)
        if path is not None:
            target = Path(path)
            checks.one_of("path", target.suffix.lower(), (".png", ".pdf", ".svg"))
            if not target.parent.is_dir():
                raise InputError("path", str(target), "a file in an existing folder", f"create {target.parent} first")
            figure.savefig(target, dpi=200)
        return figure


def train_with_twin(
    net: Any,
    parameterization: Any,
    training: Any,
    task: Any,
    gamma0: float = 1.0,
    widths: Sequence[int] = (64, 128, 256, 512),
    seeds: Any = 8,
    centred: bool = False,
    times: Sequence[int] | None = None,
    seed: int = 0,
    dtype: str = "float64",
    memory: float = MEMORY,
    progress: bool | None = None,
) -> Twins:
    """Train finite nets and, from the same weights by the same rule, their linearised twins in the space of the weights.

    w <- w - lr gamma0^2 eta n^-c dLoss/dw for both, with f(x; w) for the net and f(x; w0) + df(x; w0)(w - w0) for the twin; gradient
    flow and momentum alike (Lee et al. 2019, arXiv 1902.06720, Section 2.2).

    Args:
        net, parameterization, training, task, gamma0, widths, seeds, centred, times, seed, dtype, memory, progress: as for
            :func:`tp_solver.simulate`, whose nets these are; ``times`` are the rows at which kernels are recorded, to which row 0
            and the last one are added.

    Returns:
        Twins: the record; prints as a table, plots in one call.

    Raises:
        TPError: naming the argument, before any compilation; BudgetError if net, twin and records do not fit into ``memory``.
    """
    from tqdm import tqdm

    experiment = prepare(net, parameterization, training, task, gamma0, widths, seeds, centred, seed, dtype)
    require_gradients_alone(experiment.training, "a net with a linearised twin")
    steps = experiment.training.steps
    rows = tuple(sorted({0, steps, *recorded_times(times, steps)}))
    memory = checks.number("memory", memory, above=0.0, hint="memory is a number of bytes, e.g. 2 * 2**30")
    if progress is not None:
        checks.flag("progress", progress)
    quiet = None if progress is None else not progress  # None: tqdm asks whether stderr is a terminal
    # the twin holds its origin besides what a net in training holds
    need = experiment.working_bytes(max(experiment.widths), 1) + experiment.dtype.itemsize * experiment.weights_size(max(experiment.widths))
    lanes(experiment, memory, need, _record_bytes(experiment, len(rows)))
    parts = []
    with (
        precision(),
        tqdm(total=len(experiment.widths) * len(experiment.seeds), unit="pair", disable=quiet) as bar,
    ):
        for width in experiment.widths:
            bar.set_description(f"width {width}")
            clock = clock_of(experiment, width)
            nets = []
            for label in experiment.seeds:
                nets.append(_pair(experiment, width, label, rows, clock))
                bar.update()
            parts.append({name: np.stack([one[name] for one in nets]) for name in nets[0]})
    arrays: dict[str, Any] = {"f_test": None, "f_lin_test": None} | {name: np.stack([p[name] for p in parts]) for name in parts[0]}
    if experiment.task.scalar(experiment.training.loss):
        arrays |= {name: arrays[name][..., 0] for name in ("f", "f_lin", "f_test", "f_lin_test") if arrays[name] is not None}
        arrays["kernels"] = arrays["kernels"][..., 0, :, 0]
    return Twins(
        experiment.widths,
        experiment.seeds,
        rows,
        experiment.gamma0,
        experiment.centred,
        experiment.net.program,
        experiment.parameterization,
        experiment.training,
        experiment.task,
        **arrays,
    )


def _pair(experiment: Experiment, width: int, label: int, rows: Sequence[int], clock: dynamics.Clock) -> dict[str, np.ndarray]:
    """All records of one net and its twin."""

    def kernel(weights: Weights, base: Base, numbers: Numbers, data: Data) -> Array:
        return dynamics.look(experiment.net, 1, weights, base, numbers, data).ntk[0]

    def nothing(*_: Any) -> None:
        return None

    series, kernels = march(experiment, width, (label,), rows, kernel, clock)
    twin, _ = march(twin_of(experiment, width, label), width, (label,), (), nothing, clock)
    out = {"f": series["f"], "f_lin": twin["f"], "loss": series["loss"], "loss_lin": twin["loss"]}
    if "f_test" in series:
        out |= {"f_test": series["f_test"], "f_lin_test": twin["f_test"]}
    return {name: v[0] for name, v in out.items()} | {"kernels": np.stack([np.asarray(k) for k in kernels])}


def _record_bytes(experiment: Experiment, looks: int) -> int:
    """Memory of the records of the whole ensemble, held twice while they are joined."""
    task, K = experiment.task, experiment.net.outputs
    points = task.P + (0 if task.X_test is None else len(task.X_test))
    each = 2 * (experiment.training.steps + 1) * (points * K + 2) + looks * (task.P * K) ** 2
    return 2 * experiment.dtype.itemsize * len(experiment.widths) * len(experiment.seeds) * each


def _with_error(values: np.ndarray) -> str:
    """Mean and standard error over seeds."""
    mean = f"{values.mean():.4g}"
    return mean if len(values) < 2 else f"{mean} +- {values.std(ddof=1) / np.sqrt(len(values)):.2g}"


def _draw_functions(twins: Twins, w: int, ax: Axes) -> None:
    """f on the training points in time, of the first seed of one width: nets as coloured lines, twins dashed."""
    import matplotlib

    times, name = _clock(twins)
    net, twin = (_drawable(v[w, 0].reshape(len(times), -1)) for v in (twins.f, twins.f_lin))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, net.shape[1]))
    order = np.argsort(np.argsort(net[-1]))
    for k in range(net.shape[1]):
        first = k == 0
        ax.plot(times, net[:, k], color=shades[order[k]], linewidth=2.0, label="net" if first else None)
        ax.plot(times, twin[:, k], color="black", linewidth=0.9, linestyle=(0, (4, 3)), label="linear twin" if first else None)
    # a twin that blew up would squeeze everything else
    finite = net[np.isfinite(net)]
    if finite.size:
        middle, half = (finite.max() + finite.min()) / 2, 0.65 * np.ptp(finite) + 1e-12
        ax.set_ylim(middle - half, middle + half)
    _time_axis(ax, times)
    ax.set(xlabel=name, ylabel="$f$ on the training points", title=f"width {twins.widths[w]}, one net")
    ax.legend(frameon=False, fontsize=8)


def _draw_losses(twins: Twins, ax: Axes) -> None:
    times, name = _clock(twins)
    for w, colour in zip(range(len(twins.widths)), _shades(twins), strict=True):
        with np.errstate(all="ignore"):
            net, twin = (np.exp(np.log(_drawable(v[w])).mean(axis=0)) for v in (twins.loss, twins.loss_lin))
        ax.plot(times, net, color=colour, linewidth=1.6, label=f"$n = {twins.widths[w]}$")
        ax.plot(times, twin, color=colour, linewidth=1.1, linestyle=(0, (3, 2)))
    ax.set_yscale("log")
    start, low = twins.loss[..., 0].max(), np.nanmin(_drawable(twins.loss))
    ax.set_ylim(max(low / 3, 1e-12 * start), 5 * max(start, np.nanmax(np.where(twins.loss < 100 * start, twins.loss, 0.0))))
    _time_axis(ax, times)
    ax.set(xlabel=name, ylabel="training loss", title="nets (lines) and twins (dashed), geometric means")
    ax.legend(frameon=False, fontsize=8)


def _draw_deviations(twins: Twins, ax: Axes) -> None:
    widths = np.asarray(twins.widths, float)
    for values, label, colour in (
        (twins.largest_gap, r"$\max_t |f_t - f_t^{lin}|$", "C0"),
        (twins.kernel_drift[:, :, -1], r"$|K_T - K_0|\,/\,|K_0|$", "C3"),
    ):
        values = _drawable(values)
        good = np.isfinite(values).all() and bool((values > 0).all())
        fitted = f", slope {twins.slope(values).value:.2f}" if good and min(values.shape) > 1 else ""
        ax.plot(widths, values, ".", color=colour, alpha=0.35, markersize=4)
        ax.plot(widths, values.mean(axis=1), "o-", color=colour, markersize=5, label=label + fitted)
    anchor = 2.5 * float(np.nan_to_num(_drawable(twins.kernel_drift[0, :, -1]).mean(), nan=1.0))
    for power, style in ((-0.5, ":"), (-1.0, "--")):
        ax.plot(widths, anchor * (widths / widths[0]) ** power, style, color="0.55", linewidth=1.0)
        ax.annotate(f"$n^{{{power:g}}}$", (widths[-1], anchor * (widths[-1] / widths[0]) ** power), color="0.4", fontsize=8, va="bottom")
    ax.set(xscale="log", yscale="log", xlabel="width $n$", title="how far apart, how far from lazy")
    ax.set_xticks(widths, [str(n) for n in twins.widths])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8, loc="lower left")


def _drawable(values: np.ndarray) -> np.ndarray:
    """Without what grew until it overflowed."""
    return np.where(np.abs(values) < 1e30, values, np.nan)


def _clock(twins: Twins) -> tuple[np.ndarray, str]:
    rows = np.arange(twins.training.steps + 1)
    if isinstance(twins.training, GradientFlow):
        return rows * twins.training.time / twins.training.steps, "time"
    return rows.astype(float), "step"


def _time_axis(ax: Axes, times: np.ndarray) -> None:
    """Logarithmic beyond the first interval: most happens early."""
    ax.set_xscale("symlog", linthresh=times[1], linscale=0.3)
    ax.set_xlim(0, times[-1])


def _shades(twins: Twins) -> np.ndarray:
    import matplotlib

    return matplotlib.colormaps["plasma_r"](np.linspace(0.18, 0.85, len(twins.widths)))
