"""Figures of phases and depth; matplotlib is loaded when one is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tp_solver import checks
from tp_solver.figure_style import STYLE
from tp_solver.kernel_regime.depth_rates import DepthRate, Law

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tp_solver.kernel_regime.depth import DepthAnalysis
    from tp_solver.kernel_regime.phase_diagram import PhaseDiagram

HATCHED: Mapping[str, Any] = {**STYLE, "hatch.color": "0.75", "hatch.linewidth": 0.4}
DEPTHS = "viridis"
"""Colour map of correlation lengths: perceptually uniform, long is bright."""
LINES = "plasma"
LONGEST = 300.0
"""Layers at which the colours of a phase diagram end."""
FINE = 600
"""Points across a phase diagram's picture."""


@contextmanager
def style() -> Iterator[None]:
    """Defaults of these figures, undone afterwards."""
    import matplotlib

    settings: Any = dict(HATCHED)
    with matplotlib.rc_context(settings):
        yield


def saved(figure: Figure, path: Any) -> Figure:
    """The figure, written to a file if there is a path.

    Raises:
        InputError: for a path whose folder does not exist, or an unknown suffix.
    """
    if path is not None:
        target = checks.figure_path(path)
        with style():
            figure.savefig(target)
    return figure


def phase_figure(diagram: PhaseDiagram) -> Figure:
    """Left the plane of scales, coloured by the correlation length, with the edge of chaos; right cuts at constant bias scale."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(8.2, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _plane(left, diagram)
        _cuts(right, diagram)
    return figure


def _plane(ax: Axes, diagram: PhaseDiagram) -> None:
    from matplotlib.colors import LogNorm

    weights, biases = diagram.weight_scales, diagram.bias_scales
    fine, finer, length = _resolved(diagram)
    norm = LogNorm(0.5, LONGEST)
    image = ax.pcolormesh(fine, finer, np.clip(length, 0.3, LONGEST), cmap=DEPTHS, norm=norm, shading="gouraud", rasterized=True)
    bar: Any = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=24, extend="max")
    bar.outline.set_visible(False)
    bar.set_label(r"correlation length $\xi_c$ (layers)")
    if (grows := ~np.isfinite(diagram.q)).any():
        ax.contourf(weights, biases, grows.astype(float), levels=[0.5, 1.5], colors="none", hatches=["//"])
        ax.annotate("variance diverges", (0.985, 0.02), xycoords="axes fraction", ha="right", va="bottom", color="white", fontsize=8)
    sb, sw, _ = diagram.edge
    inside = (sw >= weights[0]) & (sw <= weights[-1]) & (sb <= biases[-1])
    if inside.any() and np.ptp(sb[inside]) > 1e-3:
        ax.plot(sw[inside], sb[inside], color="white", linewidth=1.8)
    elif inside.any():
        ax.plot(sw[inside][0], sb[inside][0], "o", color="white", markersize=7, clip_on=False, zorder=4)
    for name, where in (("ordered", diagram.chi_1 < 1), ("chaotic", diagram.chi_1 > 1)):
        if where.mean() > 0.05:
            row, column = np.argwhere(where).mean(axis=0)
            at = np.interp(column, np.arange(len(weights)), weights), np.interp(row, np.arange(len(biases)), biases)
            ax.text(float(at[0]), float(at[1]), name, color="white", ha="center", va="center", fontsize=11)
    ax.set(xlabel=r"weight scale $\sigma_w$", ylabel=r"bias scale $\sigma_b$", xlim=(weights[0], weights[-1]), ylim=(biases[0], biases[-1]))
    ax.set_title(f"{diagram.activation.name}: phases, edge of chaos in white")


def _resolved(diagram: PhaseDiagram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlation lengths on a finer grid of scales: weights, biases, lengths.

    1 / xi with the sign of log chi_1 passes smoothly through zero at the edge, where xi itself is a spike between grid points. Where
    the variance jumps from a finite fixed point to infinity there is nothing to interpolate.
    """
    weights, chi = diagram.weight_scales, diagram.chi_1
    signed = np.sign(chi - 1) / np.maximum(diagram.xi_c, 1e-3)
    fine = np.linspace(weights[0], weights[-1], FINE)
    out = np.array([np.interp(fine, weights, row) for row in signed])
    jumps = np.zeros(len(out), dtype=bool)
    for k, diverging in enumerate(~np.isfinite(diagram.q)):
        for i in np.flatnonzero(~diverging[:-1] & diverging[1:]):
            reached = chi[k, i + 1] * (weights[i] / weights[i + 1]) ** 2  # were the variance infinite on this side as well
            if abs(chi[k, i] - reached) > 0.05:
                out[k, (fine > weights[i]) & (fine < weights[i + 1])] = signed[k, i]
                jumps[k] = True
    finer = np.linspace(diagram.bias_scales[0], diagram.bias_scales[-1], FINE // 2)
    rows = np.interp(finer, diagram.bias_scales, np.arange(len(out)))
    low = np.minimum(rows.astype(int), max(len(out) - 2, 0))
    high = np.minimum(low + 1, len(out) - 1)
    share = np.broadcast_to((rows - low)[:, None], (len(finer), FINE))
    torn = (jumps[low] | jumps[high])[:, None] & (np.sign(out[low]) != np.sign(out[high]))
    share = np.where(torn, np.round(share), share)
    with np.errstate(divide="ignore"):
        return fine, finer, 1 / np.abs((1 - share) * out[low] + share * out[high])


def _cuts(ax: Axes, diagram: PhaseDiagram) -> None:
    import matplotlib

    picks = np.unique(np.linspace(0, len(diagram.bias_scales) - 1, 4).round().astype(int))
    chi = np.where(np.isfinite(diagram.chi_1), diagram.chi_1, np.nan)
    if np.allclose(chi[picks], chi[picks[0]], rtol=1e-6, equal_nan=True):
        picks = picks[:1]
    colours = matplotlib.colormaps[LINES](np.linspace(0.05, 0.8, len(picks)))
    for k, colour in zip(picks, colours, strict=True):
        label = r"every $\sigma_b$" if len(picks) == 1 else rf"$\sigma_b = {diagram.bias_scales[k]:.2g}$"
        ax.plot(diagram.weight_scales, chi[k], color=colour, label=label)
    ax.axhline(1.0, color="black", linewidth=0.8, linestyle=(0, (4, 2)))
    ax.set(xlabel=r"weight scale $\sigma_w$", ylabel=r"$\chi_1$", xlim=(diagram.weight_scales[0], diagram.weight_scales[-1]))
    ax.set_ylim(0, min(3.0, 1.05 * float(np.nanmax(chi))))
    ax.set_title(r"squared gradients, factor per layer")
    ax.legend(loc="upper left")


def depth_figure(analysis: DepthAnalysis) -> Figure:
    """Left the entries of the tangent kernel relative to its diagonal, in the middle angles, right the measured law."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    with style():
        figure = Figure(figsize=(9.6, 3.0), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        i, j = np.triu_indices(analysis.ratio.shape[1], 1)
        L = analysis.layers
        left.semilogx(L, analysis.ratio[:, i, j], color="0.6", linewidth=0.8)
        left.semilogx(L, analysis.ratio[:, i, j].mean(axis=1), color="black")
        limit = analysis.rate.predicted_limit
        if limit is not None:
            above = analysis.ratio[-1, i, j].mean() > limit
            left.axhline(limit, color="C3", linewidth=1.0, linestyle=(0, (4, 2)))
            left.annotate(
                _named(limit), (L[-1], limit), color="C3", ha="right", va="top" if above else "bottom",
                xytext=(0, -3 if above else 2), textcoords="offset points",
            )  # fmt: skip
        left.set(xlabel="$L$", ylabel=r"$\Theta_{12} / \sqrt{\Theta_{11} \Theta_{22}}$")
        left.set_title("tangent kernel, relative to its diagonal")
        angles = analysis.angle[:, i, j]
        far = angles.min() > 0 and angles.max() > 5 * angles.min()
        show = middle.loglog if far else middle.semilogx
        show(L, angles, color="0.6", linewidth=0.8)
        show(L, angles.mean(axis=1), color="black")
        middle.set(xlabel="$L$", ylabel=r"$\theta$", title="angle between fields")
        for ax in (left, middle):
            ax.xaxis.set_minor_formatter(NullFormatter())
        _law(right, analysis.rate)
    return figure


def _named(limit: float) -> str:
    return {1 / 4: "1/4", 1 / 3: "1/3"}.get(limit, f"{limit:.4g}")


def _law(ax: Axes, rate: DepthRate) -> None:
    L = rate.layers
    known = rate.predicted_rate
    if rate.law in (Law.LOGARITHM, Law.ROOT):
        limit = rate.predicted_limit if rate.predicted_limit is not None else rate.limit
        assert limit is not None
        scale, name = (L, "L") if rate.law is Law.LOGARITHM else (np.sqrt(L), r"\sqrt{L}")
        values = scale[:, None] * (rate.values - limit)
        ax.semilogx(L, values, color="0.6", linewidth=0.8)
        ax.semilogx(L, values.mean(axis=1), color="black", label="measured")
        if known is not None:
            guide = known * np.log(L / L[-1]) if rate.law is Law.LOGARITHM else np.full(len(L), known)
            start = values.mean(axis=1)[-1] if rate.law is Law.LOGARITHM else 0.0
            ax.semilogx(L, start + guide, color="C3", linestyle=(0, (4, 2)), label=f"predicted {known:.4f}")
        ax.set(xlabel="$L$", ylabel=rf"${name}\,(\mathrm{{ratio}} - {_named(limit)})$")
    else:
        ax.plot(L, rate.values, color="0.6", linewidth=0.8)
        ax.plot(L, rate.values.mean(axis=1), color="black", label="measured")
        if known is not None:
            ax.plot(
                L,
                rate.values.mean(axis=1)[-1] + known * (L - L[-1]),
                color="C3",
                linestyle=(0, (4, 2)),
                label=rf"slope $\log\chi_1 = {known:.4f}$",
            )
        words = r"$\log(|\Theta_{11} - \Theta_{12}| / L)$" if rate.law is Law.COLLAPSE else r"$\log\,\Theta_{11}$"
        ax.set(xlabel="$L$", ylabel="ratio" if rate.law is Law.NONE else words)
    ax.set_title("approach to the limit" if rate.law is not Law.EXPLOSION else "growth of the diagonal")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best")
