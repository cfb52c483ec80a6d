"""Width scans: an observable of finite nets over widths and seeds, and the powers of the width that it follows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError, TPError
from tp_solver.finite.dense import Weights
from tp_solver.finite.experiment import integers, labels_of, precision
from tp_solver.finite.network import FiniteNet, blueprint, stacked_weights
from tp_solver.finite.slopes import Sizes, Slope, resampled, sizes, slope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Observable = Callable[[FiniteNet], Any]

LANES = 2**21
"""Trained numbers that are held side by side: small nets run many at once, large ones one after another."""
ROUNDS = 10
"""An interrupted scan keeps the rounds that are complete at all widths."""


@dataclass(frozen=True)
class Exponents:
    """Powers of the width that theory expects, or bounds on them; None where it says nothing."""

    mean: float | None = None
    sd: float | None = None
    rms: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class WidthScan:
    """Values of an observable; :func:`width_scan` makes one. Print it for a table.

    Attributes:
        values: (widths, seeds, ...).
        widths, seeds: what the leading axes hold.
        expected: powers of the width to print beside the measured ones.
        name: of the observable.
        resamples: bootstrap samples behind every interval.
        interrupted: whether seeds are missing because the scan was stopped.
    """

    values: np.ndarray
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    expected: Exponents
    name: str
    resamples: int
    interrupted: bool = field(default=False)

    @property
    def mean(self) -> np.ndarray:
        """Mean over seeds, (widths, ...)."""
        return self.values.mean(axis=1)

    @property
    def sd(self) -> np.ndarray:
        """Standard deviation over seeds, (widths, ...)."""
        return self.values.std(axis=1, ddof=1)

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes of mean, sd and rms over all entries, arrays (widths,)."""
        return sizes(self.values)

    @cached_property
    def stderr(self) -> Sizes:
        """Standard errors of the sizes."""
        return Sizes(*(np.std(v, axis=0) for v in (self._samples.mean, self._samples.sd, self._samples.rms)))

    @cached_property
    def slope_mean(self) -> Slope | None:
        """Power of the width of the mean (a bias, where the observable is an error); None where noise hides it.

        Noise hides it where, at any width, the size of the mean with its noise taken off is below a tenth of its standard error.
        A mean that is nothing but noise passes at one width with a probability of 0.3 (one entry) to 0.5 (many independent
        ones): 10 to 25 % of such scans get a slope from two widths, 3 to 12 % from three, 1 to 6 % from four. Their
        intervals give them away: 98 % or more hold zero (and most, over octaves of widths, span more than two powers).
        """
        return self._slope("mean", self.sizes.sd / len(self.seeds) ** 0.5 / 10)

    @cached_property
    def slope_sd(self) -> Slope | None:
        """Power of the width of the standard deviation over seeds; None where there is none."""
        return self._slope("sd", 1e-14 * self.sizes.rms)

    @cached_property
    def slope_rms(self) -> Slope | None:
        """Power of the width of the root mean square; None where everything vanishes."""
        return self._slope("rms", np.zeros(len(self.widths)))

    @cached_property
    def _samples(self) -> Sizes:
        return resampled(self.values, self.resamples)

    def _slope(self, which: str, floor: np.ndarray) -> Slope | None:
        return slope(self.widths, getattr(self.sizes, which), getattr(self._samples, which), floor)

    def __str__(self) -> str:
        names = ("mean", "sd", "rms")
        rows = [["width", *(f"|{n}|" if n == "mean" else n for n in names)]]
        for w, width in enumerate(self.widths):
            rows.append([str(width), *(f"{getattr(self.sizes, n)[w]:.4g} +- {getattr(self.stderr, n)[w]:.1g}" for n in names)])
        rows.append(["slope", *("below noise" if s is None else str(s) for s in (self.slope_mean, self.slope_sd, self.slope_rms))])
        expected = [getattr(self.expected, n) for n in names]
        if any(e is not None for e in expected):
            rows.append(["expected", *("" if e is None else f"{e:+g}" for e in expected)])
        columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
        title = f"{self.name}, {len(self.seeds)} nets per width" + (" (interrupted)" if self.interrupted else "")
        return "\n".join([title, *("  ".join(["", *(c.rjust(k) for c, k in zip(row, columns, strict=True))]) for row in rows)])

    def plot(self, path: Any = None) -> Figure:
        """Sizes against width with the fitted powers (and the expected ones, dotted); written to ``path`` where one is given.

        Raises:
            InputError: for a path whose folder does not exist, or an unknown suffix.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        axes = figure.subplots()
        widths = np.asarray(self.widths, float)
        middle = np.exp(np.log(widths).mean())
        for which, marker, color in (("mean", "o", "#1b4f9c"), ("sd", "s", "#c2571a"), ("rms", "^", "0.35")):
            size, error, found = getattr(self.sizes, which), getattr(self.stderr, which), getattr(self, f"slope_{which}")
            shown = size > 0
            label = which if found is None else f"{which}: {found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
            axes.errorbar(widths[shown], size[shown], error[shown], fmt=marker, color=color, label=label, markersize=4, capsize=2)
            if found is None:
                continue
            height = np.exp(np.log(size).mean())
            axes.plot(widths, height * (widths / middle) ** found.value, color=color, linewidth=1)
            if (power := getattr(self.expected, which)) is not None:
                axes.plot(widths, height * (widths / middle) ** power, ":", color=color, linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="width", title=self.name)
        axes.set_xticks(widths, [str(w) for w in self.widths])
        axes.minorticks_off()
        axes.title.set_fontsize(9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
        if path is not None:
            figure.savefig(_target(path), dpi=200)
        return figure


def _target(path: Any) -> Path:
    if not isinstance(path, (str, Path)):
        raise InputError("path", path, "the path of a file", 'for example "scan.png"')
    target = Path(path)
    checks.one_of("path", target.suffix.lower(), (".png", ".pdf", ".svg"))
    if not target.parent.is_dir():
        raise InputError("path", str(target), "a file in an existing folder", f"create {target.parent} first")
    return target


class _Run:
    """The nets of one width."""

    def __init__(self, observable: Observable, blank: FiniteNet, most: int) -> None:
        self.observable, self.blank = observable, blank
        self.shapes = jax.eval_shape(lambda: stacked_weights(blank, (0,)))
        numbers = sum(v.size for v in self.shapes.values())
        self.lanes = max(1, min(most, LANES // numbers))
        self.many = jax.jit(jax.vmap(self.one))

    def one(self, w: Weights) -> Any:
        """The observable of the net with these arrays."""
        return self.observable(self.blank.moved(w))

    @cached_property
    def traceable(self) -> bool:
        """Whether jax can trace the observable; one that computes with numpy runs net by net."""
        try:
            jax.eval_shape(self.many, self.shapes)
        except TPError:
            raise
        except Exception:
            # whatever it is, it comes back when the observable meets numbers
            return False
        return True

    @cached_property
    def blind(self) -> bool:
        """Whether what is traced does not see the weights: then jax maps it over no axis."""
        try:
            jax.eval_shape(jax.vmap(self.one, out_axes=None), self.shapes)
        except ValueError:
            return False
        return True

    def values(self, labels: Sequence[int], tick: Callable[[int], Any]) -> np.ndarray:
        """Values (seeds, ...) of the nets with these labels."""
        with precision():
            return np.concatenate([self.chunk(labels[k : k + self.lanes], tick) for k in range(0, len(labels), self.lanes)])

    def chunk(self, labels: Sequence[int], tick: Callable[[int], Any]) -> np.ndarray:
        """Values of at most ``lanes`` nets; missing ones are filled up, so that one compilation serves all."""
        if self.traceable:
            padded = [*labels, *[labels[-1]] * (self.lanes - len(labels))]
            out = np.asarray(self.many(stacked_weights(self.blank, padded)))[: len(labels)]
        else:
            out = np.array([self.one({m: w[0] for m, w in stacked_weights(self.blank, (k,)).items()}) for k in labels])
        if out.dtype.kind not in "biuf" or not np.isfinite(out).all():
            shown = f"{out.ravel()[0]!r}" if out.dtype.kind not in "biuf" else "a value that is not finite"
            raise InputError("observable", shown, "finite real numbers", f"at width {self.blank.width}, nets {list(labels)[:4]}")
        # zeros may be true of every net, such as derivatives of a linear one; the exact question costs a trace
        if self.traceable and out.any() and (out == out[0]).all() and self.blind:
            raise InputError(
                "observable",
                f"the same value for every net of width {self.blank.width}, whatever its weights",
                "something that depends on the net",
                "jax traces the observable once for all nets: what is random must come from the net, not from numpy or the clock",
            )
        tick(len(labels))
        return out.astype(float)


def width_scan(
    observable: Observable,
    net: Any,
    parameterization: Any,
    dimension: Any,
    widths: Sequence[int],
    seeds: Any = 20,
    outputs: Any = 1,
    gamma0: Any = 1.0,
    expected: Exponents = Exponents(),
    dtype: Any = "float64",
    resamples: Any = 1000,
    progress: bool | None = None,
) -> WidthScan:
    """Measure an observable of finite nets at initialisation, over widths and seeds (Golikov et al. 2022, arXiv 2208.13614).

    Nets of one width run side by side where the observable can be traced by jax (what this library offers for a finite net
    can), else one after another. Ctrl-C ends the scan with the seeds that all widths have so far, if these are two or more.

    Args:
        observable: a function of a :class:`FiniteNet` that returns a number or an array, of one shape at all widths; for
            instance ``lambda f: tp.empirical_ntk(f, X)[:, :, 0, 0] - theory``, whose mean is then a bias. It has to be a
            function of the net alone: random numbers of the host (numpy's, say) are drawn once, while jax traces, and are the
            same for all nets of a width. Where nothing else is left this is an error; mixed with the net it cannot be noticed.
        net, parameterization, dimension, outputs, gamma0, dtype: as for :func:`tp_solver.draw`.
        widths: at least two different integers.
        seeds: number of nets per width (at least 2), or the integers that label them.
        expected: powers of the width to print beside the measured ones.
        resamples: bootstrap samples over seeds, behind the 95 % intervals.
        progress: show a bar on stderr; by default if that is a terminal.

    Raises:
        InputError: for malformed arguments, or an observable that is not finite, changes its shape or does not depend on the net.
        ProgramError, ParameterizationError: as :func:`tp_solver.draw`.
    """
    if not callable(observable):
        raise InputError("observable", observable, "a function of a finite net", "lambda f: tp.empirical_ntk(f, X)")
    widths = tuple(sorted(integers("widths", widths, 1, "widths=(64, 128, 256, 512)")))
    labels = labels_of(seeds)
    for what, got in (("widths", widths), ("seeds", labels)):
        if len(got) < 2:
            raise InputError(what, got, f"at least two {what}", "slopes need two widths, standard deviations two seeds")
    checks.instance("expected", expected, Exponents, "tp.Exponents(mean=-1, sd=-0.5)")
    resamples = checks.integer("resamples", resamples, minimum=100)
    blanks = [blueprint(net, parameterization, dimension, width, outputs, gamma0, dtype) for width in widths]
    rounds = [part.tolist() for part in np.array_split(labels, min(ROUNDS, len(labels)))]
    runs = [_Run(observable, blank, len(rounds[0])) for blank in blanks]
    found: list[np.ndarray] = []
    try:
        with _bar(progress, len(runs) * len(labels)) as bar:
            for part in rounds:
                found.append(_stacked([run.values(part, bar.update) for run in runs], widths))
    except KeyboardInterrupt:
        if sum(v.shape[1] for v in found) < 2:
            raise
    values = np.concatenate(found, axis=1)
    name = getattr(observable, "__name__", type(observable).__name__).replace("<lambda>", "observable")
    seen = labels[: values.shape[1]]
    return WidthScan(values, widths, seen, expected, name, resamples, len(seen) < len(labels))


def _stacked(values: list[np.ndarray], widths: Sequence[int]) -> np.ndarray:
    """(widths, seeds, ...), if all widths have one shape."""
    for v, width in zip(values, widths, strict=True):
        if v.shape != values[0].shape:
            raise InputError(
                "observable",
                f"an array of shape {v.shape[1:]} at width {width}",
                f"the shape {values[0].shape[1:]} of width {widths[0]}",
                "return what does not depend on the width, such as a kernel or a norm",
            )
    return np.stack(values)


def _bar(progress: bool | None, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="net", file=sys.stderr, leave=False, disable=not (sys.stderr.isatty() if progress is None else progress))
