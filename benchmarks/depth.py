"""Card A5: what becomes of kernels with depth, claimed beside measured (Hayou, Doucet and Rousseau, arXiv:1905.13654).

Phases and the edge of chaos, the tangent kernel on it, on both sides of it, and in residual streams, with the rates of approach.
L counts weight layers. Prints a Markdown table; times are processor seconds of this process, compilation included.

    python benchmarks/depth.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

import numpy as np
import sympy as sp

# before jax starts: threads that wait for each other burn processor time, for small arrays more than for large ones
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import tp_solver as tp
from tp_solver.kernel_regime.depth import DepthAnalysis
from tp_solver.numerics.duals import dual
from tp_solver.program.tracing import Vector

X = np.random.default_rng(0).standard_normal((3, 5))
X *= 5**0.5 / np.linalg.norm(X, axis=1, keepdims=True)  # |x|^2 = D
OTHERS = np.triu_indices(len(X), 1)
ELU = tp.Activation("elu", lambda x: sp.Piecewise((x, x > 0), (sp.exp(x) - 1, True)))


def row(claim: str, claimed: str, measured: str) -> None:
    print(f"| {claim} | {claimed} | {measured} |", flush=True)


def dense(activation: tp.Activation, bias: float = 0.0, depth: int = 2) -> tp.Program:
    return tp.mlp(depth, activation, bias=bias or False, bias_rate=bias**2 if bias else 1)


def analysed(net: tp.Program, scale: float | tuple[float, ...], layers: Sequence[int]) -> DepthAnalysis:
    """The analysis at these numbers L of weight layers."""
    return tp.depth_analysis(net, tp.ntk.times(scale), X, tuple(L - 1 for L in layers))


def pairs(matrices: np.ndarray) -> np.ndarray:
    """Entries between different inputs, (..., pairs)."""
    return matrices[..., OTHERS[0], OTHERS[1]]


def listed(values: Sequence[float] | np.ndarray, form: str) -> str:
    return ", ".join(format(float(v), form) for v in values)


# phases --------------------------------------------------------------------------------------------------------------


def edges() -> None:
    """The table of the edge, and what is known of it in symbols."""
    row("chi_1 of ReLU at s_w = sqrt 2, s_b = 0", "1 to 1e-12", f"1 to {abs(tp.fixed_point(tp.relu, 2**0.5).chi_1 - 1):.0e}")
    for activation, weight, bias in ((tp.tanh, 1.302, 0.2), (ELU, 1.227, 0.2)):
        found, edge = tp.fixed_point(activation, weight, bias), tp.edge_of_chaos(activation, bias)
        row(
            f"chi_1 of {activation.name} at s_w = {weight}, s_b = {bias}",
            "1 within 0.005",
            f"{found.chi_1:.4f} (edge at s_w = {edge.weight_scale:.4f})",
        )
    exact = [tp.edge_of_chaos(a).exact_weight_scale for a in (tp.relu, tp.erf, tp.sin)]
    row("edge of ReLU, erf, sin without biases, in symbols", "sqrt 2; slope at zero: sqrt(pi)/2, 1", ", ".join(map(str, exact)))
    cases = ((tp.erf, 0.3), (tp.tanh, 0.2), (ELU, 0.2), (tp.gelu, 0.5))
    worst, right = 0.0, []
    for activation, bias in cases:
        edge = tp.edge_of_chaos(activation, bias)
        assert edge.q is not None
        worst = max(worst, abs(tp.fixed_point(activation, edge.weight_scale, bias, start=edge.q).chi_1 - 1))
        near = [tp.fixed_point(activation, f * edge.weight_scale, bias, start=edge.q).phase for f in (0.999, 1.001)]
        right.append(near == [tp.Phase.ORDERED, tp.Phase.CHAOTIC])
    row("chi_1 on the edge of erf, tanh, ELU, GELU with biases", "1", f"1 to {worst:.0e}")
    row("phase 0.1 % below and above it", "ordered, chaotic", f"so for {sum(right)} of {len(cases)}")


def fixed_points() -> None:
    """Against 300 layers of the plain recursion in double precision."""
    cases = ((tp.erf, 0.9, 0.4), (tp.erf, 2.0, 0.3), (tp.sin, 3.0, 0.1), (tp.gelu, 1.3, 0.2), (tp.relu, 1.2, 0.5))
    gaps = []
    for activation, weight, bias in cases:
        f = activation.expression
        q, c = np.array(2.3), np.array(0.35)
        for _ in range(300):
            new = weight**2 * dual(f, f, q, q, q) + bias**2
            c = (weight**2 * dual(f, f, q, q, c * q) + bias**2) / new
            q = new
        found = tp.fixed_point(activation, weight, bias)
        assert found.c is not None
        gaps.append((abs(found.q / float(q) - 1), abs(found.c - float(c))))
    q_gap, c_gap = np.max(gaps, axis=0)
    row("q*, c* of five layers against 300 layers of iteration", "equal", f"to {q_gap:.0e}, {c_gap:.0e}")


def diagram() -> None:
    """The grid and the curve in it against the edge computed for one bias at a time."""
    found = tp.phase_diagram(tp.erf, np.linspace(0.6, 2.4, 37), np.linspace(0.0, 0.9, 10))
    edge = np.array([tp.edge_of_chaos(tp.erf, bias).weight_scale for bias in found.bias_scales])
    curve = np.array([found.critical_weight_scale(bias) for bias in found.bias_scales])
    ordered = np.array([[p is tp.Phase.ORDERED for p in of_bias] for of_bias in found.phases])
    row(
        "phase diagram of erf: its critical line against the edge at ten biases",
        "equal to 1e-3",
        f"to {np.abs(curve / edge - 1).max():.0e}",
    )
    right = np.sum(ordered == (found.weight_scales < edge[:, None]))
    row(f"phase diagram of erf: phases of {ordered.size} layers", "those of the edge", f"{right} of {ordered.size}")


def lengths() -> None:
    """xi_c diverges as one over the distance from the edge."""
    edge = tp.edge_of_chaos(tp.tanh, 0.2)
    assert edge.q is not None
    away = np.geomspace(1e-4, 1e-2, 5)
    slopes = []
    for side in (-1, 1):
        found = [tp.fixed_point(tp.tanh, edge.weight_scale * (1 + side * a) ** 0.5, 0.2, start=edge.q).xi_c for a in away]
        slopes.append(np.polyfit(np.log(away), np.log(found), 1)[0])
    row("power of the correlation length in the distance from the edge (ordered, chaotic), tanh", "-1", listed(slopes, ".3f"))


# the tangent kernel --------------------------------------------------------------------------------------------------


def deep_programs() -> None:
    """The repeated layer is that of the deep program."""
    worst = 0.0
    for activation, bias, scale in ((tp.relu, 0.0, 2**0.5), (tp.erf, 0.3, 1.3)):
        wanted = np.asarray(tp.kernels(dense(activation, bias, depth=6), tp.ntk.times(scale), X).ntk)
        size = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
        worst = max(worst, np.abs(analysed(dense(activation, bias), scale, (7,)).ratio[0] - wanted / size).max())
    row("repeated layer against kernels of the 6-layer program (ReLU, erf)", "equal to 1e-10", f"to {worst:.0e}")


def relu_on_the_edge(deepest: int) -> None:
    layers = [10**k for k in range(3, deepest + 1)]
    start = time.process_time()
    found = analysed(dense(tp.relu), 2**0.5, layers)
    seconds = time.process_time() - start
    ratio = pairs(found.ratio)
    mean, at = ratio.mean(axis=1), layers.index(10_000)
    average = found.average_ntk[at]
    row("ReLU edge: A^L of one input over s_w^2 at L = 10^4", "1", f"{average[0, 0] / 2:.6f}")
    row("ReLU edge: ratio at L = 10^4", "0.2504 +- 0.0002", f"{mean[at]:.5f} (worst pair {ratio[at].max():.5f})")
    slopes = np.diff(np.array(layers) * (mean - 0.25)) / np.diff(np.log(layers))
    row(f"ReLU edge: slope of L (ratio - 1/4) against log L, decades from 10^3 to 10^{deepest}", "3/8 +- 0.02", listed(slopes, ".4f"))
    errors = np.array(layers) * (mean - 0.25)
    names = ", ".join(f"10^{k}" for k in range(3, deepest + 1))
    row(f"ReLU edge: L (ratio - 1/4) at L = {names}", "bounded (paper's text); grows (card)", listed(errors, ".2f"))
    rate = found.rate
    assert rate.limit is not None and rate.rate is not None
    row("ReLU edge: fitted limit and rate of log(L)/L", "1/4, 3/8", f"{rate.limit:.7f}, {rate.rate:.5f}")
    row(f"ReLU edge: time to L = 10^{deepest}", "< 10 s", f"{seconds:.1f} processor s")


def smooth_on_the_edge(activation: tp.Activation, bias: float) -> None:
    found = analysed(dense(activation, bias), tp.edge_of_chaos(activation, bias).weight_scale, (10_000,))
    rate = found.rate
    assert rate.limit is not None and rate.rate is not None and rate.predicted_rate is not None
    name = f"{activation.name} edge, s_b = {bias}"
    row(f"{name}: ratio at L = 10^4", "in [0.331, 0.3333]", f"{pairs(found.ratio).mean():.5f}")
    row(f"{name}: fitted limit", "1/3", f"{rate.limit:.7f}")
    row(f"{name}: fitted rate of log(L)/L", f"{rate.predicted_rate:.4f} (predicted from one layer)", f"{rate.rate:.4f}")


def ordered(activation: tp.Activation, weight: float, bias: float) -> None:
    """Collapse to a constant kernel: divided by L first, as the decay is L chi_1^L."""
    chi = tp.fixed_point(activation, weight, bias).chi_1
    found = analysed(dense(activation, bias), weight, (2,))
    rate = found.rate
    assert rate.rate is not None
    raw = np.polyfit(rate.layers, rate.values.mean(axis=1) + np.log(rate.layers), 1)[0]
    row(
        f"ordered {activation.name}, s_w = {weight}, s_b = {bias}: slope of log((diagonal - other) / L)",
        f"log chi_1 = {np.log(chi):.4f} within 3 %",
        f"{rate.rate:.4f}, off by {100 * abs(rate.rate / np.log(chi) - 1):.2f} % (without / L: {100 * abs(raw / np.log(chi) - 1):.0f} %)",
    )


def chaotic(activation: tp.Activation, weight: float, bias: float) -> None:
    chi = tp.fixed_point(activation, weight, bias).chi_1
    found = analysed(dense(activation, bias), weight, (50, 100))
    others = pairs(found.ntk)
    growth = np.diff(found.log_ntk, axis=0).mean() / 50
    name = f"chaotic {activation.name}, s_w = {weight}, s_b = {bias}"
    row(f"{name}: growth of log diagonal, L = 50 to 100", f"log chi_1 = {np.log(chi):.6f}", f"{growth:.6f}")
    row(
        f"{name}: relative spread of the other entries at L = 50, 100",
        "to one constant",
        listed(np.ptp(others, axis=1) / others[:, 0], ".0e"),
    )
    row(f"{name}: diagonal at L = 50, 100", "no constant (against the paper's wording)", listed(found.ntk[:, 0, 0], ".1e"))


def stream() -> tp.Program:
    """y' = y + W relu(y)."""
    first, *hidden, last = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.hidden_matrix("W2"), tp.readout("w")

    def residual(x: Vector) -> Vector:
        y = first @ x
        for matrix in hidden:
            y = y + matrix @ tp.relu(y)
        return last @ tp.relu(y)

    return tp.program(residual)


def residual_streams(variances: Sequence[float]) -> None:
    found = [analysed(stream(), (1, v**0.5, 1), (10_000,)) for v in variances]
    ratios = [pairs(f.ratio).mean() for f in found]
    name = "residual ReLU streams, s_w^2 = " + ", ".join(f"{v:g}" for v in variances)
    row(f"{name}: ratio at L = 10^4", "1/4 within 0.002", listed(ratios, ".5f"))
    row(f"{name}: phase", "edge of chaos at every s_w", ", ".join({f.fixed_point.phase.value for f in found}))
    row(f"{name}: fitted rate of log(L)/L", "log(L)/L; 3/8 (predicted)", listed([f.rate.rate or np.nan for f in found], ".4f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case of each kind")
    quick = parser.parse_args().quick
    smooth = (tp.erf,) if quick else (tp.erf, tp.tanh)
    start = time.process_time()
    print("| claim | claimed | measured |\n|---|---|---|")
    edges()
    fixed_points()
    diagram()
    lengths()
    deep_programs()
    relu_on_the_edge(4 if quick else 5)
    for activation in smooth:
        smooth_on_the_edge(activation, 0.2)
    for weight in (0.9,) if quick else (0.9, 1.1):
        ordered(tp.erf, weight, 0.3)
    for activation in smooth:
        chaotic(activation, 2.0, 0.3)
    residual_streams((2.0,) if quick else (0.5, 2.0, 8.0))
    print(f"\n{time.process_time() - start:.0f} processor seconds")


if __name__ == "__main__":
    main()
