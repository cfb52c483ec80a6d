"""``extrapolate``: an estimate of the infinite-width limit from nets of several widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tp_solver import checks
from tp_solver.errors import FileFormatError, InputError, RangeError
from tp_solver.finite.ensemble import Ensemble
from tp_solver.limit.derive import limit
from tp_solver.numerics.width_fit import CHUNK, Design, WidthFit, fit_widths, influences
from tp_solver.program.losses import gradient
from tp_solver.solve.solution import Fields, Solution, Status

FEWEST_SEEDS = 4
REFUSED = 0.01
"""A smallest p-value below this, corrected for the number of fits, says that the fit does not hold."""


class Estimate(NamedTuple):
    """What a fit in 1/width says of an array: its limit, the standard error, and c in limit + c / N."""

    limit: np.ndarray
    stderr: np.ndarray
    coefficient: np.ndarray


@dataclass(frozen=True, eq=False)
class ExtrapolatedKernels:
    """Kernels extrapolated from nets, at the rows that the nets recorded.

    Attributes:
        times: recorded rows (T of them).
        feature, gradient: of (T, T, layers, P, P).
        tangent: of (T, P, P), or None for several outputs.
        direct: "loss" and perhaps "loss_test", extrapolated from the nets' own losses, (steps + 1,): a second estimate, beside
            the loss of the extrapolated f that the solution reports.
    """

    times: tuple[int, ...]
    feature: Estimate
    gradient: Estimate
    tangent: Estimate | None
    direct: Mapping[str, Estimate]

    def Phi(self, layer: int, t: int, s: int) -> np.ndarray:
        """Extrapolated feature kernel."""
        return self.feature.limit[self._row("t", t), self._row("s", s), layer - 1]

    def G(self, layer: int, t: int, s: int) -> np.ndarray:
        """Extrapolated gradient kernel."""
        return self.gradient.limit[self._row("t", t), self._row("s", s), layer - 1]

    def A(self, layer: int, t: int, s: int) -> np.ndarray:
        """Refused: nets do not show it."""
        raise _not_seen("A", "the responses of the limit")

    def B(self, layer: int, t: int, s: int) -> np.ndarray:
        """Refused: nets do not show it."""
        raise _not_seen("B", "the responses of the limit")

    def ntk(self, t: int) -> np.ndarray:
        """Extrapolated tangent kernel."""
        return self._tangent().limit[self._row("t", t)]

    def fields(self, layer: int, t: int) -> Fields:
        """Refused: sites of finite nets are no samples of the limit."""
        raise _not_seen("fields", "single sites of the limit")

    def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Refused: the nets are gone."""
        raise RangeError(
            "predict",
            "an extrapolated solution",
            "a solution of the limit",
            "give the task X_test before simulating: f_test is extrapolated",
        )

    def stderr(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        """Standard error of Phi, G or ntk."""
        if name == "ntk":
            return self._tangent().stderr[self._row("t", args[0])]
        layer, t, s = args
        found = self.feature if name == "Phi" else self.gradient
        return found.stderr[self._row("t", t), self._row("s", s), layer - 1]

    def freedom(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        """Infinite: the errors of the fit are widened already."""
        return np.full_like(self.stderr(name, args), np.inf)

    def arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, with names that :meth:`from_arrays` understands."""
        groups = {"Phi": self.feature, "G": self.gradient, "ntk": self.tangent} | {f"direct/{n}": e for n, e in self.direct.items()}
        named = {f"{n}/{part}": a for n, e in groups.items() if e is not None for part, a in e._asdict().items()}
        return {"times": np.asarray(self.times, dtype=np.int64), **named}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], theory: Any, task: Any, gamma0: float) -> ExtrapolatedKernels:
        """Rebuild from :meth:`arrays`."""

        def read(name: str) -> Estimate:
            return Estimate(*(arrays[f"{name}/{part}"] for part in Estimate._fields))

        direct = {n: read(f"direct/{n}") for n in ("loss", "loss_test") if f"direct/{n}/limit" in arrays}
        times = tuple(int(t) for t in arrays["times"])
        tangent = read("ntk") if "ntk/limit" in arrays else None
        kernels, T, P = cls(times, read("Phi"), read("G"), tangent, direct), len(times), len(task.X)
        sizes = {"Phi": (T, T, theory.program.depth, P, P), "G": (T, T, theory.program.depth, P, P), "ntk": (T, P, P)}
        for name, found in (("Phi", kernels.feature), ("G", kernels.gradient), ("ntk", tangent)):
            for part in found or ():
                if part.shape != sizes[name]:
                    raise FileFormatError(name, f"shape {part.shape}", f"the shape {sizes[name]}", "the file is damaged")
        return kernels

    def _tangent(self) -> Estimate:
        if self.tangent is None:
            raise RangeError("ntk", "a solution with several outputs", "one output", "the nets' own is ens.ntk(t), between all outputs")
        return self.tangent

    def _row(self, field: str, t: int) -> int:
        if t not in self.times:
            raise RangeError(field, t, f"one of the recorded rows {self.times}", "choose them with tp.simulate(..., times=(...))")
        return self.times.index(t)


def _not_seen(name: str, what: str) -> RangeError:
    return RangeError(name, "an extrapolated solution", "a solution of the limit", f"nets do not show {what}: tp.solve computes them")


@dataclass(frozen=True, eq=False)
class _Nets:
    """The nets of all widths, in increasing order of the width."""

    first: Ensemble
    parts: tuple[tuple[Ensemble, int], ...]
    design: Design

    def of(self, name: str) -> list[np.ndarray]:
        """A record of every width, each (seeds, ...)."""
        return [getattr(ens, name)[w] for ens, w in self.parts]


def extrapolate(*ensembles: Ensemble, resamples: int = 200, seed: int = 0) -> Solution:
    """Estimate the limit N -> infinity from trained nets: value(N) = limit + c/N, fitted by weighted least squares.

    An estimate from experiments, not a solution: the better instrument where many points make the limit's rank approach its
    samples (``theory/limit_operator.md``). ``tp.compare`` sets it beside other nets; beside the very nets that it was made from,
    the errors are not independent. Every quantity has its own fit, with one set of weights for all its entries, from each width's
    own variance over seeds (moderated towards one that falls like 1/N, which matters for few seeds). A term d/N^2 is added where
    four widths or more do not fit without it (p < 0.05).

    Standard errors are those of a bootstrap over seeds: nets of one ensemble are resampled together over its widths, as they go by
    the same labels, and different ensembles independently. For f and the kernels, which are linear in the nets, the bootstrap's
    variance is taken in closed form. +-1.96 of them cover the limit in about 92 % of cases with 16 seeds, 90 % with 8 and 85 %
    with 4 (measured on Gaussian scatter). ``loss`` and ``loss_test`` are those of the extrapolated f; their noise, and the rise of
    the loss that noise in f makes, enter their errors. The mean of the nets' losses carries the variance of f as well, which is of
    order 1/N: extrapolated directly it is a second estimate, in ``details`` and in ``kernels.direct``.

    The check sums chi^2 of the residuals over widths and entries; its distribution comes from resampled seeds, as entries of one
    net go together. p-values of all fits are in ``details``; the smallest one times their number below 0.01 makes the status
    ``poor_fit``. Two widths leave nothing to check.

    Args:
        ensembles: what ``tp.simulate`` returned, with at least two widths and four seeds each; several ones of the same run
            serve for different seeds per width, as narrow nets are cheap.
        resamples: bootstrap samples behind the errors of the losses, at least 100 (200 know an error to 5 %).
        seed: of the bootstrap; the same seed gives the same bits.

    Returns:
        A solution with ``method`` "extrapolated". It answers Phi, G and ntk at the nets' recorded rows, but not A, B, fields or
        predict, which raise RangeError.

    Raises:
        InputError: for too few widths or seeds, a width given twice, nets that did not stay finite, ensembles of different
            runs, or a random initial function (kernel regime, nets not centred), whose limit is no number.
        ParameterizationError: if there is no limit.
    """
    nets = _checked(ensembles)
    resamples = checks.integer("resamples", resamples, minimum=100)
    seed = checks.integer("seed", seed, minimum=0)
    ens, design = nets.first, nets.design
    theory = limit(ens.program, ens.parameterization, ens.training)
    if theory.spec.random_output and not ens.centred:
        raise InputError(
            "ensemble", "nets whose initial function stays random at infinite width", "nets with a deterministic limit",
            "simulate with centred=True, or solve: mean and covariance are exact in the kernel regime",
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    series = {n: fit_widths(design, nets.of(n), rng) for n in ("f", "loss", "f_test", "loss_test") if getattr(ens, n) is not None}
    depth, scalar = ens.program.depth, ens.task.scalar(ens.training.loss)
    layers = {
        name: [fit_widths(design, [a[:, :, :, k] for a in nets.of(record)], rng) for k in range(depth)]
        for name, record in (("Phi", "feature_kernels"), ("G", "gradient_kernels"))
    }
    tangent = fit_widths(design, nets.of("tangent_kernels"), rng) if scalar else None
    fits = series | {f"{name}^{k + 1}": fit for name, found in layers.items() for k, fit in enumerate(found)}
    fits |= {} if tangent is None else {"ntk": tangent}

    values, errors = {}, {}
    for name, labels in zip(("f", "f_test"), ens.task.targets(ens.training.loss), strict=True):
        if name not in series:
            continue
        values[name], errors[name] = series[name].limit, series[name].stderr
        if labels is not None:
            loss = name.replace("f", "loss")
            values[loss], errors[loss] = _losses(nets, name, series[name], labels, resamples, rng)
    kernels = ExtrapolatedKernels(
        ens.times,
        _estimate(layers["Phi"], axis=2),
        _estimate(layers["G"], axis=2),
        None if tangent is None else Estimate(tangent.limit, tangent.stderr, tangent.coefficient),
        {n: Estimate(fit.limit, fit.stderr, fit.coefficient) for n, fit in series.items() if n.startswith("loss")},
    )
    status, verdict = _verdict(design, fits)
    return Solution(
        theory, ens.task, ens.gamma0, "extrapolated", values["f"], values["loss"], values.get("f_test"), values.get("loss_test"), errors,
        kernels, status, f"{_sources(nets, series['f'])}; {verdict}", details=_details(nets, fits),
    )  # fmt: skip


def _estimate(fits: Sequence[WidthFit], axis: int) -> Estimate:
    """The layers' fits side by side."""
    return Estimate(*(np.stack([getattr(fit, name) for fit in fits], axis=axis) for name in Estimate._fields))


def _losses(
    nets: _Nets, name: str, fit: WidthFit, labels: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of the extrapolated predictions at all times and its standard error, (steps + 1,) each."""
    import jax

    from tp_solver.elementwise import lower

    points, K = labels.shape
    outputs, targets, expression, _ = gradient(nets.first.training.loss, K)
    per_point = lower(expression, (*outputs, *targets))
    mean = jax.jit(lambda f, y: per_point(*(f[..., k] for k in range(K)), *y.T).mean(axis=-1))
    values = [np.reshape(v, (*v.shape[:2], points * K)) for v in nets.of(name)]
    limits = fit.limit.reshape(-1, points * K)
    # the first draw is of no noise
    draws = np.vstack([np.zeros((1, sum(nets.design.sizes))), nets.design.draws(resamples, rng)])
    at_once = max(1, CHUNK // (len(draws) * points * K))
    found = []
    with jax.enable_x64(True):
        for t in range(0, len(limits), at_once):
            moved = influences(nets.design, [np.reshape(v[:, t : t + at_once], (len(v), -1)) for v in values], fit.weights)
            f = limits[t : t + at_once].ravel() + draws @ moved
            found.append(np.asarray(mean(f.reshape(len(draws), -1, points, K), labels)))
    estimate, noisy = np.split(np.concatenate(found, axis=1), [1])
    rise = noisy.mean(axis=0) - estimate[0]
    return estimate[0], np.hypot(noisy.std(axis=0, ddof=1), rise)


def _checked(ensembles: Sequence[Any]) -> _Nets:
    """The nets in order of width; refuses what cannot be fitted."""
    if not ensembles:
        raise InputError("ensemble", "no ensemble", "at least one", "tp.extrapolate(tp.simulate(net, ...))")
    for ens in ensembles:
        checks.instance("ensemble", ens, Ensemble, "the result of tp.simulate(net, ...)")
        if not ens.success:
            raise InputError("ensemble", f"an ensemble that ended as {ens.status}", "nets that all stayed finite", ens.message[:200])
        if len(ens.seeds) < FEWEST_SEEDS:
            got = f"{len(ens.seeds)} seeds per width"
            raise InputError("ensemble", got, f"at least {FEWEST_SEEDS}", "errors come from their scatter: simulate with seeds=16")
        for what, one, other in _differences(ensembles[0], ens):
            raise InputError("ensemble", f"different {what}: {one} and {other}", "ensembles of the same run", "simulate them alike")
    found = sorted(((ens, w) for ens in ensembles for w in range(len(ens.widths))), key=lambda part: part[0].widths[part[1]])
    widths = tuple(int(ens.widths[w]) for ens, w in found)
    if len(set(widths)) < len(widths):
        raise InputError("ensemble", f"the widths {widths}", "every width once", "simulate all seeds of a width together")
    if len(widths) < 2:
        raise InputError("ensemble", f"the width {widths[0]} alone", "at least two widths", "simulate with widths=(64, 128, 256, 512)")
    groups = tuple(tuple(k for k, (other, _) in enumerate(found) if other is ens) for ens in ensembles)
    return _Nets(ensembles[0], tuple(found), Design(widths, tuple(len(ens.seeds) for ens, _ in found), groups))


def _differences(one: Ensemble, other: Ensemble) -> Iterator[tuple[str, Any, Any]]:
    """What makes two ensembles different runs."""
    a, b = one.program, other.program
    if (a.matrices, a.statements, a.output) != (b.matrices, b.statements, b.output):
        yield "programs", a.name, b.name
    if one.parameterization != other.parameterization:
        yield "parameterizations", one.parameterization.name, other.parameterization.name
    for name in ("training", "gamma0", "centred", "times"):
        if getattr(one, name) != getattr(other, name):
            yield name, getattr(one, name), getattr(other, name)
    for name in ("X", "y", "X_test", "y_test"):
        x, z = getattr(one.task, name), getattr(other.task, name)
        if (x is None) != (z is None) or (x is not None and not np.array_equal(x, z)):
            yield f"values of {name}", one.task.name, other.task.name


def _sources(nets: _Nets, f: WidthFit) -> str:
    """Where the estimate comes from, and how much the fit moves f."""
    design = nets.design
    counts = sorted(set(design.seeds))
    seeds = f"{counts[0]} seeds each" if len(counts) == 1 else f"{', '.join(map(str, design.seeds))} seeds"
    law = "limit + c/N" + ("" if f.order == 1 else " + d/N^2")
    c, noise, widest = _rms(f.coefficient), _rms(f.coefficient_stderr), design.widths[-1]
    return (
        f"an estimate from experiments, not a solution: {'centred ' if nets.first.centred else ''}nets of widths "
        f"{', '.join(map(str, design.widths))} with {seeds}; f = {law} with rms c = {c:.3g} (s.e. {noise:.2g}), "
        f"{c / widest:.1e} at width {widest}"
    )


def _verdict(design: Design, fits: Mapping[str, WidthFit]) -> tuple[Status, str]:
    """What the checks of all fits say together."""
    known = {name: fit.p_value for name, fit in fits.items() if np.isfinite(fit.p_value)}
    if not known:
        reason = "two widths leave nothing to check it with" if len(design.widths) == 2 else "nothing scatters over seeds"
        return Status.COMPLETED, f"the fit is not checked: {reason}"
    worst = min(known, key=lambda name: known[name])
    p = min(1.0, len(known) * known[worst])
    if p < REFUSED:
        return Status.POOR_FIT, f"the fit does not hold (p = {p:.1e}, worst for {worst}); {Status.POOR_FIT.advice}"
    return Status.COMPLETED, f"the fit holds (p = {p:.2g} over {len(known)} checks)"


def _details(nets: _Nets, fits: Mapping[str, WidthFit]) -> dict[str, Any]:
    """Figures of the fits."""
    out: dict[str, Any] = {"widths": list(nets.design.widths), "seeds": list(nets.design.seeds)}
    out["p_values"] = {name: fit.p_value if np.isfinite(fit.p_value) else None for name, fit in fits.items()}
    out["orders"] = {name: fit.order for name, fit in fits.items()}
    out["rms_c"] = {name: _rms(fit.coefficient) for name, fit in fits.items() if np.size(fit.coefficient)}
    for name in ("loss", "loss_test"):
        if name in fits:
            out[f"direct_{name}"] = [float(fits[name].limit[-1]), float(fits[name].stderr[-1])]
    return out


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
