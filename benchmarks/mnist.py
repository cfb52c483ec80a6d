"""Ten MNIST digits with three hidden tanh layers: the limit by the march or by extrapolation, finite nets, and the kernel limit.

Two runs, both cross-entropy, muP, learning rate 1, 1 000 steps, tested on 1 000 other images: 100 images in batches of 50, whose limit
the march computes, and 1 000 images in batches of 100, whose limit is extrapolated from nets of four widths. The learning rate was
chosen so that the slowest case (gamma0 = 0.1) ends well below the loss it starts from, while the loss of all three still falls
smoothly; at four times the rate it still does. Updates scale as gamma0^2 with f = output / gamma0, so that one rate serves all three:
predictions start to move at the same speed.

Every finished piece (a net; a march; the kernel limit) is kept in a folder and never computed twice: interrupt it, and call it again.
All times are processor seconds of one thread, compilation included; memory is the peak of the process that computed the piece.

    python benchmarks/mnist.py [--quick] [--folder DIR] [--images 100 1000] [--gamma0 1 3 0.1] [--parts nets kernel march]
                               [--samples 2048] [--tol 0.1] [--figure PATH]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

# before numpy and jax start: threads that wait for each other burn processor time, for small arrays more than for large ones
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

import tp_solver as tp
from tp_solver import plot
from tp_solver.finite.experiment import prepare
from tp_solver.finite.simulate_at import simulate_at, without_kernels
from tp_solver.numerics.width_fit import Design, fit_widths, influences
from tp_solver.storage import Record, read_record, write_record

GAMMA0 = (1.0, 3.0, 0.1)
NET = tp.mlp(depth=3, activation=tp.tanh)
RESAMPLES = 400


@dataclass(frozen=True)
class Run:
    """One of the two runs.

    Attributes:
        images, batch, steps, test: sizes.
        rows: steps at which predictions are read.
        seeds: width -> number of nets.
        samples, tol: of the march.
    """

    images: int
    batch: int
    steps: int
    test: int
    rows: tuple[int, ...]
    seeds: tuple[tuple[int, int], ...]
    samples: int = 2048
    tol: float = 0.1

    @property
    def task(self) -> tp.Task:
        """The images."""
        return tp.Task.mnist(points=self.images, test=self.test)

    @property
    def training(self) -> tp.GradientDescent:
        """The rule."""
        return tp.GradientDescent(lr=1.0, steps=self.steps, loss=tp.CrossEntropy(), batches=tp.Batches(self.batch))


ROWS = (0, 10, 20, 35, 50, 75, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800, 900, 1000)
SEEDS = ((128, 32), (256, 24), (512, 16), (1024, 8))
FULL = {100: Run(100, 50, 1000, 1000, ROWS, SEEDS), 1000: Run(1000, 100, 1000, 1000, ROWS, SEEDS)}
SMALL_ROWS, SMALL_SEEDS = (0, 1, 3, 6), ((16, 4), (32, 4), (64, 4))
SMALL = {
    100: Run(20, 10, 6, 50, SMALL_ROWS, SMALL_SEEDS, 256, 0.1),
    1000: Run(40, 20, 6, 50, SMALL_ROWS, SMALL_SEEDS),
}


class Curve(NamedTuple):
    """What is shown of a method: mean and standard error of test loss and test accuracy at all rows, and what it cost."""

    loss: np.ndarray
    loss_error: np.ndarray
    accuracy: np.ndarray
    accuracy_error: np.ndarray
    seconds: float
    peak: float
    remark: str = ""


# pieces, kept in the folder ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shelf:
    """Where finished pieces lie: one file each, named by what it is and by a hash of all its inputs."""

    folder: Path

    def path(self, run: Run, name: str) -> Path:
        """The file of a piece."""
        inputs = (run.images, run.test, run.rows, run.training, NET.statements, name)
        tag = hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]
        return self.folder / f"{run.images}_images" / f"{name}_{tag}.npz"

    def get(self, run: Run, name: str) -> Record | None:
        """A finished piece, or None."""
        path = self.path(run, name)
        return read_record(path) if path.exists() else None

    def get_or_make(self, run: Run, name: str, make: Callable[[], dict[str, np.ndarray]]) -> Record:
        """A piece, computed if it is not there."""
        found = self.get(run, name)
        if found is None:
            start = time.process_time()
            arrays = make()
            seconds = time.process_time() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            path = self.path(run, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            found = Record("mnist piece", {"seconds": seconds, "peak": peak}, arrays)
            write_record(path, found)
            print(f"{run.images} images, {name}: {seconds:.1f} s, {peak:.2f} GiB", file=sys.stderr, flush=True)
        return found


def net_name(gamma0: float, width: int, label: int) -> str:
    """Name of the piece that holds a net."""
    return f"net_gamma0_{gamma0:g}_width_{width}_seed_{label}"


def make_net(run: Run, gamma0: float, width: int, label: int) -> dict[str, np.ndarray]:
    """One trained net's answers. Initial functions are subtracted: they vanish in the limit, but not their noise, 1/(gamma0 sqrt(N))."""
    nets = simulate_at(run.rows, NET, tp.muP, run.training, run.task, gamma0, [width], [label], centred=True)
    assert nets.f_test is not None
    assert nets.loss_test is not None
    return {"f": nets.f[0, 0], "f_test": nets.f_test[0, 0], "loss": nets.loss[0, 0], "loss_test": nets.loss_test[0, 0]}


def make_kernel(run: Run) -> dict[str, np.ndarray]:
    """The limit gamma0 -> 0: training in function space with the kernel of initialisation."""
    task, rows = run.task, list(run.rows)
    dynamics = tp.KernelDynamics.of(NET, tp.muP, run.training, task.X, task.y, task.X_test, gamma0=0.0)
    found = dynamics.run(task.y_test)
    return {"f_test": found.f_test[rows], "loss": found.loss[rows], "loss_test": found.loss_test[rows]}


def make_march(run: Run, gamma0: float, folder: Path) -> dict[str, np.ndarray]:
    """The limit by the march, in float32; its runs are kept as they go, so that an interrupted one goes on."""
    kept = folder / "march"
    kept.mkdir(parents=True, exist_ok=True)
    method = tp.March(tol=run.tol, dtype="float32", recorded=(0, run.steps), tested=run.rows)
    sol = tp.solve(tp.limit(NET, tp.muP, run.training), run.task, gamma0, run.samples, method=method, checkpoint=kept)
    print(sol, file=sys.stderr, flush=True)
    assert sol.f_test is not None
    assert sol.loss_test is not None
    return {
        "f_test": sol.f_test,
        "f_test_error": sol.stderr("f_test"),
        "loss": sol.loss[list(run.rows)],
        "loss_test": sol.loss_test,
        "loss_test_error": sol.stderr("loss_test"),
        "ranks": np.array(list(sol.details["ranks"].values())),
    }


# curves out of pieces ------------------------------------------------------------------------------------------------


def accuracy(f: np.ndarray, task: tp.Task) -> np.ndarray:
    """Share of right answers of outputs (..., points, classes)."""
    return np.mean(f.argmax(axis=-1) == task.y_test.argmax(axis=-1), axis=-1)


def cost(records: Sequence[Record]) -> tuple[float, float]:
    """Processor seconds of all together, and the largest peak memory in GiB."""
    return sum(r.header["seconds"] for r in records), max(r.header["peak"] for r in records)


def kernel_curve(record: Record, task: tp.Task) -> Curve:
    """Nothing is sampled where the initial function vanishes."""
    right = accuracy(record.arrays["f_test"], task)
    return Curve(record.arrays["loss_test"], 0 * right, right, 0 * right, *cost([record]))


def march_curve(record: Record, task: tp.Task) -> Curve:
    """The error of the accuracy comes from noise of the size of f's standard error, point by point."""
    a = record.arrays
    noisy = a["f_test"] + a["f_test_error"] * np.random.default_rng(0).standard_normal((100, *a["f_test"].shape))
    ranks = f"ranks {a['ranks'].min()} to {a['ranks'].max()}"
    return Curve(
        a["loss_test"], a["loss_test_error"], accuracy(a["f_test"], task), accuracy(noisy, task).std(axis=0), *cost([record]), ranks
    )


def nets_curve(records: Sequence[Record], task: tp.Task) -> Curve:
    """Mean over seeds of the nets' own losses and accuracies."""
    losses = np.array([r.arrays["loss_test"] for r in records])
    right = np.array([accuracy(r.arrays["f_test"], task) for r in records])
    scale = 1 / np.sqrt(len(records))
    return Curve(
        losses.mean(axis=0), scale * losses.std(axis=0, ddof=1), right.mean(axis=0), scale * right.std(axis=0, ddof=1), *cost(records)
    )


def as_ensemble(run: Run, gamma0: float, width: int, records: Sequence[Record]) -> tp.Ensemble:
    """The nets of one width as the ensemble that ``extrapolate`` reads; its rows are those of the run, not all steps."""
    experiment = prepare(NET, tp.muP, run.training, run.task, gamma0, [width], len(records), True, 0, "float32")
    return without_kernels(experiment, {name: np.array([[r.arrays[name] for r in records]]) for name in records[0].arrays})


def make_extrapolation(run: Run, gamma0: float, nets: dict[int, list[Record]]) -> dict[str, np.ndarray]:
    """The limit from nets of all widths; the error of the accuracy by resampling the same nets, with what their noise takes from it."""
    sol, task = tp.extrapolate(*(as_ensemble(run, gamma0, width, records) for width, records in nets.items())), run.task
    assert sol.f_test is not None
    assert sol.loss_test is not None
    values = [np.array([r.arrays["f_test"] for r in records]) for records in nets.values()]
    design = Design(tuple(nets), tuple(map(len, nets.values())), tuple((k,) for k in range(len(nets))))
    rng = np.random.default_rng(0)
    fit = fit_widths(design, values, rng)
    draws = design.draws(RESAMPLES, rng)
    right, spread = accuracy(sol.f_test, task), np.empty(len(run.rows))
    for t in range(len(run.rows)):
        moved = influences(design, [v[:, t].reshape(len(v), -1) for v in values], fit.weights)
        noisy = accuracy(fit.limit[t] + (draws @ moved).reshape(RESAMPLES, *fit.limit[t].shape), task)
        spread[t] = np.hypot(noisy.std(), noisy.mean() - right[t])
    remark = np.array(sol.message.split("; ", 1)[-1])
    return {
        "loss": sol.loss_test,
        "loss_error": sol.stderr("loss_test"),
        "accuracy": right,
        "accuracy_error": spread,
        "remark": remark,
        "f_test": sol.f_test,
    }


def extrapolated_curve(record: Record, nets: dict[int, list[Record]]) -> Curve:
    """The seconds of the nets count too."""
    a = record.arrays
    seconds, peak = cost([record, *(r for records in nets.values() for r in records)])
    return Curve(a["loss"], a["loss_error"], a["accuracy"], a["accuracy_error"], seconds, peak, str(a["remark"]))


def curves(run: Run, shelf: Shelf) -> dict[tuple[float, str], Curve]:
    """All that the folder holds of a run: (gamma0, method) -> curve; the kernel limit goes by gamma0 = 0."""
    task, found = run.task, {}
    record = shelf.get(run, "kernel")
    if record is not None:
        found[0.0, "kernel limit"] = kernel_curve(record, task)
    for gamma0 in sorted(GAMMA0):
        record = shelf.get(run, march_name(run, gamma0))
        if record is not None:
            found[gamma0, "march"] = march_curve(record, task)
        nets = {width: list(stored_nets(run, shelf, gamma0, width, count)) for width, count in run.seeds}
        nets = {width: records for width, records in nets.items() if len(records) >= 4}
        if len(nets) >= 3:
            name = f"extrapolated_gamma0_{gamma0:g}_" + "_".join(f"{len(records)}x{width}" for width, records in nets.items())
            made = shelf.get_or_make(run, name, lambda gamma0=gamma0, nets=nets: make_extrapolation(run, gamma0, nets))
            found[gamma0, "extrapolated"] = extrapolated_curve(made, nets)
        found |= {(gamma0, f"nets of {width}"): nets_curve(records, task) for width, records in nets.items()}
    return found


def stored_nets(run: Run, shelf: Shelf, gamma0: float, width: int, count: int) -> Iterator[Record]:
    """The finished nets of a width."""
    for label in range(count):
        record = shelf.get(run, net_name(gamma0, width, label))
        if record is not None:
            yield record


def march_name(run: Run, gamma0: float) -> str:
    """Name of the piece that holds a march."""
    return f"march_gamma0_{gamma0:g}_samples_{run.samples}_tol_{run.tol:g}"


# what is printed and drawn -------------------------------------------------------------------------------------------


def print_table(run: Run, found: dict[tuple[float, str], Curve]) -> None:
    """Loss and accuracy at a tenth, three tenths and the end of training."""
    shown = sorted({int(np.argmin(np.abs(np.array(run.rows) - share * run.steps))) for share in (0.1, 0.3, 1.0)})
    heads = " | ".join(f"test loss, step {run.rows[k]} | accuracy" for k in shown)
    print(f"\n{run.images} images, {run.steps} steps of {run.batch}, {run.test} test images\n")
    print(f"| gamma0 | method | {heads} | processor s | GiB |\n|{'---|' * (4 + 2 * len(shown))}")
    for (gamma0, method), c in found.items():
        cells = " | ".join(
            f"{c.loss[k]:.4f} +- {c.loss_error[k]:.4f} | {100 * c.accuracy[k]:.2f} +- {100 * c.accuracy_error[k]:.2f} %" for k in shown
        )
        print(f"| {gamma0:g} | {method} | {cells} | {c.seconds:.0f} | {c.peak:.2f} |")
    for (gamma0, method), c in found.items():
        if c.remark:
            print(f"\ngamma0 = {gamma0:g}, {method}: {c.remark}.")


COLOURS = {0.0: "0.35", 0.1: "#3b6fb6", 1.0: "#d98b1d", 3.0: "#b3263a"}


def draw(found: dict[int, dict[tuple[float, str], Curve]], runs: dict[int, Run], path: Path) -> None:
    """A row of panels per run: test loss and accuracy against steps, and the loss after training against 1/width.

    Lines are limits, open circles the widest nets, dots the narrowest, bands and bars 95 % intervals.
    """
    from matplotlib.figure import Figure

    with plot.style():
        figure = Figure(figsize=(9.6, 2.9 * len(found)), layout="constrained")
        panels = figure.subplots(len(found), 3, squeeze=False, width_ratios=(1.2, 1.2, 1))
        for line, (images, of_run) in zip(panels, found.items(), strict=True):
            run = runs[images]
            for axes, what in zip(line, ("loss", "accuracy"), strict=False):
                for key in of_run:
                    _draw_curve(axes, run, of_run, key, what)
                axes.set(xscale="log", xlim=(run.rows[1], run.steps), xlabel="step")
                axes.set_title(f"{run.images} images, batches of {run.batch}")
            line[0].set(ylabel="test loss", yscale="log")
            line[0].yaxis.set_major_locator(FixedLocator([0.3, 0.5, 0.7, 1, 1.5, 2]))
            line[0].yaxis.set_major_formatter("{x:g}")
            line[0].yaxis.set_minor_locator(NullLocator())
            line[1].set_ylabel("test accuracy, %")
            _draw_widths(line[2], run, of_run)
        strengths = sorted({gamma0 for of_run in found.values() for gamma0, _ in of_run})
        figure.legend(handles=_handles(strengths, next(iter(runs.values()))), loc="outside lower center", ncols=6)
        plot.save(figure, path)


def _handles(strengths: Sequence[float], run: Run) -> list[Line2D]:
    words = {0.0: r"kernel limit ($\gamma_0 \to 0$)"}
    lines = [Line2D([], [], color=COLOURS[g], ls=_dashes(g), label=words.get(g, rf"limit, $\gamma_0 = {g:g}$")) for g in strengths]
    widths = [width for width, _ in run.seeds]
    marks = (("o", "none", f"nets, width {widths[-1]}"), (".", "0.35", f"nets, width {widths[0]}"))
    return lines + [Line2D([], [], color="0.35", marker=m, mfc=c, ls="none", ms=4, label=text) for m, c, text in marks]


def _dashes(gamma0: float) -> Any:
    return "-" if gamma0 else (0, (4, 2))


def _draw_curve(axes: Any, run: Run, found: dict[tuple[float, str], Curve], key: tuple[float, str], what: str) -> None:
    (gamma0, method), c = key, found[key]
    scale = 1 if what == "loss" else 100
    # the first row is of the untrained net, which has no place on a logarithmic axis
    mean, error = scale * getattr(c, what)[1:], scale * getattr(c, f"{what}_error")[1:]
    rows, colour = np.array(run.rows)[1:], COLOURS[gamma0]
    if method in ("kernel limit", "march", "extrapolated"):
        if method == "extrapolated" and (gamma0, "march") in found:
            return  # one line per limit; the table and the last panel have both
        axes.plot(rows, mean, color=colour, ls=_dashes(gamma0), zorder=3)
        axes.fill_between(rows, mean - 1.96 * error, mean + 1.96 * error, color=colour, alpha=0.25, lw=0)
        return
    widths = [width for width, _ in run.seeds]
    marks = {f"nets of {widths[-1]}": ("o", "none", 4), f"nets of {widths[0]}": (".", colour, 4)}
    if method in marks:
        marker, fill, size = marks[method]
        axes.plot(rows, mean, color=colour, ls="none", marker=marker, mfc=fill, ms=size, mew=0.8, zorder=4)


def _draw_widths(axes: Any, run: Run, found: dict[tuple[float, str], Curve]) -> None:
    """Loss after training against 1/width, with the limits at zero."""
    inverse = [0.0, *(1 / width for width, _ in reversed(run.seeds))]
    for gamma0 in sorted({g for g, _ in found} - {0.0}):
        at_zero = [(0.0, found[gamma0, m], "D" if m == "march" else "d") for m in ("march", "extrapolated") if (gamma0, m) in found]
        nets = [(1 / w, found[gamma0, f"nets of {w}"], "o") for w, _ in run.seeds if (gamma0, f"nets of {w}") in found]
        for x, c, marker in at_zero + nets:
            style: dict[str, Any] = {
                "marker": marker,
                "mfc": "none" if marker == "o" else None,
                "ms": 4,
                "mew": 0.8,
                "capsize": 2,
                "elinewidth": 0.8,
            }
            axes.errorbar(x, c.loss[-1], 1.96 * c.loss_error[-1], color=COLOURS[gamma0], ls="none", clip_on=False, zorder=4, **style)
        line = sorted((x, c.loss[-1]) for x, c, _ in at_zero[:1] + nets)
        axes.plot(*zip(*line, strict=True), color=COLOURS[gamma0], lw=0.7, alpha=0.6)
    axes.set(xlabel="width", xlim=(0, 1.06 * inverse[-1]), ylabel=f"test loss, step {run.steps}", title="nets approach their limit")
    axes.set_xticks(inverse, [r"$\infty$", *(str(width) for width, _ in reversed(run.seeds))], rotation=45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that the script runs")
    parser.add_argument("--folder", type=Path, help="where finished pieces are kept (a temporary folder if left out)")
    parser.add_argument("--images", type=int, nargs="+", choices=(100, 1000), default=(100, 1000), help="which runs")
    parser.add_argument("--gamma0", type=float, nargs="+", choices=GAMMA0, default=GAMMA0, help="which strengths, in this order")
    parser.add_argument(
        "--parts", nargs="*", choices=("nets", "kernel", "march"), default=("nets", "kernel", "march"), help="what to compute"
    )
    parser.add_argument("--samples", type=int, help="of the march (2048, or 256 with --quick, if left out)")
    parser.add_argument("--tol", type=float, help="of the march (0.1 if left out)")
    parser.add_argument("--figure", type=Path, help="where to draw what the folder holds")
    given = parser.parse_args()
    asked = {name: value for name, value in (("samples", given.samples), ("tol", given.tol)) if value is not None}
    runs = {images: replace(run, **asked) for images, run in (SMALL if given.quick else FULL).items()}
    with tempfile.TemporaryDirectory() as spare:
        shelf = Shelf(given.folder or Path(spare))
        for images in given.images:
            compute(runs[images], shelf, given.gamma0, given.parts, marched=images == 100)
        found = {images: curves(runs[images], shelf) for images in given.images}
    for images, of_run in found.items():
        print_table(runs[images], of_run)
    if given.figure is not None:
        draw(found, runs, given.figure)


def compute(run: Run, shelf: Shelf, strengths: Sequence[float], parts: Sequence[str], marched: bool) -> None:
    """Everything that is asked for and not there."""
    if "kernel" in parts:
        shelf.get_or_make(run, "kernel", lambda: make_kernel(run))
    for gamma0 in strengths:
        if "nets" in parts:
            for width, count in run.seeds:
                for label in range(count):
                    shelf.get_or_make(
                        run, net_name(gamma0, width, label),
                        lambda gamma0=gamma0, width=width, label=label: make_net(run, gamma0, width, label),
                    )  # fmt: skip
        if "march" in parts and marched:
            shelf.get_or_make(run, march_name(run, gamma0), lambda gamma0=gamma0: make_march(run, gamma0, shelf.folder))


if __name__ == "__main__":
    main()
