"""Figures. Theory is black, nets are coloured by width; matplotlib is loaded when a figure is drawn, not before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError, RangeError
from tp_solver.figure_style import STYLE
from tp_solver.finite.ensemble import Ensemble
from tp_solver.program.training import GradientFlow
from tp_solver.solve.solution import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tp_solver.compare import Comparison

Record = Solution | Ensemble

FORMATS = checks.FIGURE_FORMATS
THEORY = "black"
WIDTHS = "plasma_r"
"""Perceptually uniform, and told apart also without red or green: wider is darker."""
SIGNED, POSITIVE = "PuOr_r", "YlOrBr"
"""Colour maps of kernels with and without negative entries, told apart also without red or green."""


@contextmanager
def style() -> Iterator[None]:
    """Defaults of these figures, undone afterwards."""
    import matplotlib

    settings: Any = dict(STYLE)
    with matplotlib.rc_context(settings):
        yield


def loss_curves(*records: Record, test: bool = False, axes: Axes | None = None) -> Figure:
    """Losses against training time: lines with bands of two standard errors, one per solution and one per width.

    Args:
        records: solutions and ensembles.
        test: the loss on the test points instead.
        axes: where to draw; a new figure by default.

    Raises:
        InputError: for anything but records, or if a test loss is asked for and not there.
    """
    name = "loss_test" if test else "loss"
    with style():
        ax = _axes(axes, (4.2, 3.2))
        lines = [line for r in _records(records) for line in _series(r, name)]
        for line in sorted(lines, key=lambda line: line.theory):
            look = {"color": line.color, "label": line.label, "zorder": 3 if line.theory else 2}
            ax.plot(line.time, line.mean, linestyle=(0, (4, 2)) if line.theory and len(lines) > 1 else "-", **look)
            low, high = line.mean - 2 * line.error, line.mean + 2 * line.error
            ax.fill_between(line.time, np.maximum(low, 1e-3 * np.abs(line.mean)), high, color=line.color, alpha=0.18, linewidth=0)
        values = np.concatenate([line.mean for line in lines])
        if values.min() > 0 and values.max() > 10 * values.min():
            ax.set_yscale("log")
        flow = any(isinstance(_theory(r).training, GradientFlow) for r in records)
        ax.set_xlabel("training time (rate x steps)" if flow else "training time (steps)")
        ax.set_ylabel(f"{'test' if test else 'training'} loss ({_theory(records[0]).training.loss.name})")
        ax.margins(x=0.01)
        ax.legend(loc="upper right")
    return _figure(ax)


def kernels(
    *records: Record, name: str = "Phi", layer: int = 1, t: int | None = None, axes: Any = None, colour_label: bool = True
) -> Figure:
    """Equal-time kernels as images with one colour scale, data points in order of their labels.

    Args:
        records: solutions and ensembles; of an ensemble the mean over seeds at the largest width.
        name: "Phi" or "G".
        layer: counted from 1.
        t: time in steps; the last one that all records hold by default.
        axes: one per record; a new figure by default.
        colour_label: whether to name the kernel at the colour bar.

    Raises:
        InputError: for an unknown name. RangeError: for a layer or time that a record does not hold.
    """
    checks.one_of("name", name, ("Phi", "G"))
    time = _last(records) if t is None else t
    images = [_image(r, name, layer, time) for r in _records(records)]
    order = _by_label(records[0])
    with style():
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(2.6 * len(images) + 0.6, 2.8), layout="constrained").subplots(1, len(images), squeeze=False)[0]
        top = max(float(np.abs(image).max()) for image in images) or 1.0
        signed = min(float(image.min()) for image in images) < -0.1 * top
        scale = {"cmap": SIGNED if signed else POSITIVE, "vmin": -top if signed else 0.0, "vmax": top}
        symbol = rf"$\{name}^{{{layer}}}$" if name == "Phi" else rf"${name}^{{{layer}}}$"
        for ax, record, image in zip(axes, records, images, strict=True):
            shown = ax.imshow(image[np.ix_(order, order)], interpolation="nearest", **scale)
            ax.set_title(f"{symbol}, {_who(record)}")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_xlabel(r"data point $\nu$")
            ax.spines[:].set_visible(True)
        axes[0].set_ylabel(r"data point $\mu$, by label")
        bar = axes[0].figure.colorbar(shown, ax=list(axes), shrink=0.85, pad=0.02, aspect=18)
        bar.outline.set_visible(False)
        if colour_label:
            bar.set_label(rf"{symbol} at $t = {time}$")
    return _figure(axes[0])


def width_deviation(comparison: Comparison, axes: Axes | None = None) -> Figure:
    """Deviation of f from the limit against width: every net, their rms with the fitted power, and the mean over seeds."""
    from matplotlib.ticker import NullLocator

    with style():
        ax = _axes(axes, (4.2, 3.2))
        widths = np.asarray(comparison.widths, float)
        rms = np.sqrt(np.mean(comparison.per_seed**2, axis=1))
        colours = _colours(comparison.widths)
        for width, values in zip(comparison.widths, comparison.per_seed, strict=True):
            ax.plot(np.full(len(values), width), values, "o", markersize=3, color=colours[width], alpha=0.55, markeredgewidth=0)
        ax.plot(widths, rms, "s", color=THEORY, markersize=5, label="per net, rms over seeds")
        ax.plot(widths, comparison.seed_mean, "D", color=THEORY, markersize=4, markerfacecolor="none", label="mean over seeds")
        ax.plot(widths, comparison.noise, ":", color="0.45", label="s.e. of nets and theory")
        if comparison.slope is not None and comparison.slope_interval is not None:
            line = np.exp(np.log(rms).mean()) * (widths / np.exp(np.log(widths).mean())) ** comparison.slope
            low, high = comparison.slope_interval
            ax.plot(
                widths,
                line,
                "-",
                color=THEORY,
                linewidth=1,
                label=f"slope {comparison.slope:.2f}, 95 % in [{low:.2f}, {high:.2f}]".replace("-", "\N{MINUS SIGN}"),
            )
        ax.set(xscale="log", yscale="log", xlabel="width $N$", ylabel="rms deviation of $f$ from the limit")
        ax.set_xticks(widths, [str(w) for w in comparison.widths])
        ax.xaxis.set_minor_locator(NullLocator())
        # room for the legend below the data
        bottom = min(comparison.seed_mean.min(), comparison.noise.min(), comparison.per_seed.min())
        top = comparison.per_seed.max()
        if bottom > 0:
            ax.set_ylim(bottom * (bottom / top) ** 0.75, top * 1.3)
        ax.legend(loc="lower left", handlelength=1.6, labelspacing=0.3)
    return _figure(ax)


def field_densities(*records: Record, layer: int = 1, t: int | None = None, point: int = 0, axes: Any = None) -> Figure:
    """Densities over the sites of the field h and of the pre-gradient z at one data point.

    Args:
        records: solutions and ensembles; of an ensemble the sites of all seeds at the largest width.
        layer: counted from 1.
        t: time in steps; the last one that all records hold by default.
        point: which training point.
        axes: two of them; a new figure by default.

    Raises:
        InputError: for a point that is not there. RangeError: for a layer or a time whose samples were not kept.
    """
    time = _last(records) if t is None else t
    point = checks.integer("point", point, minimum=0, maximum=_theory(_records(records)[0]).task.P - 1)
    with style():
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(6.6, 2.8), layout="constrained").subplots(1, 2)
        for ax, which in zip(axes, ("h", "z"), strict=True):
            samples = {_who(r): _sites(r, which, layer, time, point) for r in records}
            span = max(float(np.quantile(np.abs(v), 0.999)) for v in samples.values()) or 1.0
            bins = int(np.clip(2 * min(v.size for v in samples.values()) ** (1 / 3), 12, 60))
            edges = np.linspace(-span, span, bins + 1)
            for k, (label, values) in enumerate(sorted(samples.items(), key=lambda item: item[0] == "theory")):
                theory = label == "theory"
                colour = THEORY if theory else _colours(range(len(samples)))[k]
                heights = np.histogram(values, edges, density=True)[0]
                ax.stairs(heights, edges, fill=not theory, alpha=1.0 if theory else 0.45, color=colour, label=label, linewidth=1.2)
            ax.set_xlabel(rf"${which}^{{{layer}}}_\mu(t={time})$, $\mu = {point}$")
            ax.set_ylabel("density over sites")
            ax.set_ylim(0, ax.get_ylim()[1] * 1.25)
            ax.legend(loc="upper right")
    return _figure(axes[0])


def comparison(compared: Comparison) -> Figure:
    """The figure of a comparison: losses, deviation against width, and final kernels of theory and widest nets."""
    from matplotlib.figure import Figure

    sol, ens = compared.sol, compared.ens
    test = sol.loss_test is not None and ens.loss_test is not None
    with style():
        figure = Figure(figsize=(10.2, 6.2), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.12, 1.0), hspace=0.03)
        upper, lower = halves
        panels = upper.subplots(1, 2 + test)
        for k in range(1 + test):
            loss_curves(sol, ens, test=bool(k), axes=panels[k])
        width_deviation(compared, axes=panels[-1])
        left, right = lower.subfigures(1, 2)
        for part, name, layer in ((left, "Phi", sol.depth), (right, "G", 1)):
            pair = part.subplots(1, 2)
            try:
                kernels(sol, ens, name=name, layer=layer, t=ens.times[-1], axes=pair)
            except RangeError as reason:
                for ax in pair:
                    ax.set_axis_off()
                pair[0].text(0, 0.5, f"{name}: {reason.expected}", wrap=True)
        figure.suptitle(
            f"{sol.theory.program.name}, {ens.parameterization.name}, $\\gamma_0$ = {sol.gamma0:g}, {sol.task.name}", fontsize=10
        )
    return figure


def save(figure: Figure, path: Any) -> Path:
    """Write a figure to a file; the suffix decides the format.

    Raises:
        InputError: for a path whose folder does not exist, or an unknown suffix.
    """
    target = checks.figure_path(path)
    with style():
        figure.savefig(target)
    return target


class _Line(NamedTuple):
    """A curve with its standard error, one number per recorded row."""

    label: str
    color: Any
    time: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    theory: bool


def _series(record: Record, name: str) -> list[_Line]:
    if getattr(record, name) is None:
        raise InputError(name, "a record without test labels", "a record with them", "give the task X_test and y_test")
    training = _theory(record).training
    unit = training.time / training.steps if isinstance(training, GradientFlow) else 1.0
    if isinstance(record, Solution):
        time = unit * np.asarray(record.test_times if name == "loss_test" else range(len(record.f)))
        return [_Line("theory, $N = \\infty$", THEORY, time, getattr(record, name), record.stderr(name), True)]
    values = getattr(record, name)
    time = unit * np.arange(values.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):  # of nets that blew up, the part before that is drawn
        errors = record.stderr(name) if len(record.seeds) > 1 else np.zeros_like(values[:, 0])
    colours = _colours(record.widths)
    return [_Line(f"nets, $N = {w}$", colours[w], time, values[k].mean(axis=0), errors[k], False) for k, w in enumerate(record.widths)]


def _image(record: Record, name: str, layer: int, t: int) -> np.ndarray:
    kernel = getattr(record, name)(layer, t, t)
    return kernel if isinstance(record, Solution) else kernel[int(np.argmax(record.widths))].mean(axis=0)


def _sites(record: Record, which: str, layer: int, t: int, point: int) -> np.ndarray:
    values = getattr(record.fields(layer, t), which)
    if isinstance(record, Ensemble):
        values = values[int(np.argmax(record.widths))].reshape(-1, values.shape[-1])
    # what does not depend on the data has a single column
    return values[:, min(point, values.shape[1] - 1)]


def _who(record: Record) -> str:
    return "theory" if isinstance(record, Solution) else f"nets $N = {max(record.widths)}$"


def _last(records: tuple[Record, ...]) -> int:
    held = [set(r.times) if isinstance(r, Ensemble) else set(range(r.steps + 1)) for r in _records(records)]
    shared = set.intersection(*held)
    if not shared:
        raise RangeError("t", sorted(held[0]), "a time that all records hold", "simulate with times=(...)")
    return max(shared)


def _by_label(record: Record) -> np.ndarray:
    y = record.task.y.reshape(record.task.P, -1)
    return np.lexsort((*y.T[::-1],))


def _theory(record: Any) -> Any:
    """Whatever holds the training rule and the task: equations or ensemble."""
    return _Described(record.theory.training, record.task) if isinstance(record, Solution) else record


class _Described(NamedTuple):
    training: Any
    task: Any


def _colours(widths: Any) -> dict[int, Any]:
    import matplotlib

    ordered = sorted(widths)
    shades = matplotlib.colormaps[WIDTHS](np.linspace(0.18, 0.85, len(ordered)) if len(ordered) > 1 else [0.5])
    return dict(zip(ordered, shades, strict=True))


def _records(records: tuple[Any, ...]) -> tuple[Record, ...]:
    if not records:
        raise InputError("records", "no records", "solutions and ensembles", "pass what tp.solve or tp.simulate returned")
    for r in records:
        checks.instance("records", r, (Solution, Ensemble), "solutions and ensembles", "pass what tp.solve or tp.simulate returned")
    return records


def _axes(axes: Axes | None, size: tuple[float, float]) -> Axes:
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()


def _figure(axes: Axes) -> Any:
    return axes.get_figure(root=True)
