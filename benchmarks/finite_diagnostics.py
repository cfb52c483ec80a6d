"""Finite nets at initialisation against theory: what cards A2, A3, C1 and C4 claim beside what is measured here.

    python benchmarks/finite_diagnostics.py [--quick]

Every function below is one measurement; the tests call them at reduced sizes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

if __name__ == "__main__":
    # before jax starts: threads that wait for each other burn processor time, for small arrays more than for large ones
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import tp_solver as tp
from tp_solver.finite.empirical import empirical_ntk, empirical_ntk_trace
from tp_solver.finite.gaussianity import Discrepancy, cumulants, mmd2
from tp_solver.finite.hierarchy import predicted_drift, second_kernel
from tp_solver.finite.network import FiniteNet, draw
from tp_solver.finite.pseudo import pseudo_ntk
from tp_solver.finite.simulate import simulate
from tp_solver.finite.slopes import Slope, measured_slope
from tp_solver.finite.width_scan import Exponents, WidthScan, width_scan
from tp_solver.kernel_regime.compute import kernels

POINTS = np.random.default_rng(0).standard_normal((8, 4))
LABELS = np.sin(2 * POINTS[:, 0])
SCALED = tp.ntk.times(1.4)
SMOOTH = tp.mlp(2, tp.erf, bias=0.3, bias_rate=0.09)
"""Three layers of weights, sigma_w = 1.4, sigma_b = 0.3."""


def kernel_fluctuations(widths: Sequence[int], seeds: int) -> WidthScan:
    """(eNTK - Theta) / |Theta|_F of the smooth net (C1: sd; A3: root mean square)."""
    theory = kernels(SMOOTH, SCALED, POINTS).ntk
    size = np.linalg.norm(theory)

    def fluctuation(net: FiniteNet) -> np.ndarray:
        return (empirical_ntk(net, POINTS)[:, :, 0, 0] - theory) * len(POINTS) / size

    return width_scan(fluctuation, SMOOTH, SCALED, 4, widths, seeds, expected=Exponents(sd=-0.5, rms=-0.5))


def kernel_bias(widths: Sequence[int], seeds: int) -> WidthScan:
    """The same for x + x^2 / 2, whose bias stands out of the noise; that of erf and relu does not with hundreds of nets."""
    points = POINTS[:3] / np.linalg.norm(POINTS[:3], axis=1, keepdims=True) * 2
    net = tp.mlp(2, tp.Activation("quadratic", lambda x: x + x**2 / 2), bias=0.3, bias_rate=0.09)
    theory = kernels(net, tp.ntk, points).ntk

    def bias(finite: FiniteNet) -> np.ndarray:
        return (empirical_ntk_trace(finite, points) - theory) * 3 / np.linalg.norm(theory)

    return width_scan(bias, net, tp.ntk, 4, widths, seeds, outputs=16, expected=Exponents(mean=-1.0))


def second_kernel_size(widths: Sequence[int], seeds: int) -> WidthScan:
    """O_3 on four points (C1); its mean has no sign to keep, so the root mean square counts."""

    def third_order(net: FiniteNet) -> np.ndarray:
        return second_kernel(net, POINTS[:4])

    return width_scan(third_order, SMOOTH, SCALED, 4, widths, seeds, expected=Exponents(rms=-1.0))


@dataclass(frozen=True)
class DriftErrors:
    """|predicted - measured| / |measured| of Theta_t - Theta_0, one entry per seed."""

    first: np.ndarray
    total: np.ndarray


def drift_errors(width: int, seeds: int, horizon: float, labels: np.ndarray = LABELS) -> DriftErrors:
    """The drift of the tangent kernel in training against O_3 alone, and against O_3 and O_4."""
    task, rule = tp.Task(POINTS, labels), tp.GradientFlow(time=horizon, steps=2)
    ensemble = simulate(SMOOTH, SCALED, rule, task, gamma0=1.0, widths=(width,), seeds=seeds, times=(0, 2), progress=False)
    first, total = [], []
    for seed in range(seeds):
        moved = (ensemble.ntk(2) - ensemble.ntk(0))[0, seed]
        drift = predicted_drift(draw(SMOOTH, SCALED, 4, width, seed=seed), POINTS, labels, horizon)
        for errors, predicted in ((first, drift.first), (total, drift.total)):
            errors.append(np.linalg.norm(predicted[:, :, 0, 0] - moved) / np.linalg.norm(moved))
    return DriftErrors(np.array(first), np.array(total))


def top_eigenvalue(widths: Sequence[int], seeds: int) -> WidthScan:
    """Largest eigenvalue of the tangent kernel in the standard parameterization, where it grows with the width (C1)."""

    def largest(net: FiniteNet) -> float:
        return np.linalg.eigvalsh(empirical_ntk_trace(net, POINTS))[-1]

    return width_scan(largest, SMOOTH, tp.standard, 4, widths, seeds, expected=Exponents(mean=1.0))


def pseudo_kernel_errors(widths: Sequence[int], seeds: int) -> WidthScan:
    """Card C4, relu, three layers, five outputs, six inputs: relative errors of the pseudo-kernel in Frobenius norm and in the
    largest eigenvalue, and the ratio of condition numbers."""
    net, points = tp.mlp(2, tp.relu), np.random.default_rng(2).standard_normal((6, 10))

    def errors(finite: FiniteNet) -> np.ndarray:
        pseudo = pseudo_ntk(finite, points)
        full = empirical_ntk(finite, points).transpose(0, 2, 1, 3).reshape(30, 30)
        spectrum, small = np.linalg.eigvalsh(full), np.linalg.eigvalsh(pseudo.kernel)
        return np.array([pseudo.error, small[-1] / spectrum[-1] - 1, spectrum[-1] / spectrum[0] * small[0] / small[-1]])

    return width_scan(errors, net, tp.ntk.times(2**0.5), 10, widths, seeds, outputs=5)


def pseudo_regression_errors(widths: Sequence[int], seeds: int) -> WidthScan:
    """Card C4, the same nets: kernel regression at four new inputs with the pseudo-kernel, relative to that with the full kernel."""
    rng = np.random.default_rng(2)
    points, labels = rng.standard_normal((10, 10)), rng.standard_normal((6, 5))

    def difference(finite: FiniteNet) -> float:
        full = empirical_ntk(finite, points, points[:6]).transpose(0, 2, 1, 3)
        exact = full[6:].reshape(20, 30) @ np.linalg.solve(full[:6].reshape(30, 30), labels.ravel())
        pseudo = pseudo_ntk(finite, points, points[:6]).kernel
        found = pseudo[6:] @ np.linalg.solve(pseudo[:6], labels)
        return float(np.linalg.norm(found.ravel() - exact) / np.linalg.norm(exact))

    return width_scan(difference, tp.mlp(2, tp.relu), tp.ntk.times(2**0.5), 10, widths, seeds, outputs=5)


@dataclass(frozen=True)
class Gaussianity:
    """Card A2: draws of relu nets with three hidden layers on four inputs against their Gaussian limit, per width."""

    widths: tuple[int, ...]
    discrepancy: tuple[Discrepancy, ...]
    kurtosis: np.ndarray
    kurtosis_stderr: np.ndarray

    def mmd2_slope(self, largest: int) -> Slope:
        """Power of the width of MMD^2 up to a width, beyond which it is below its noise."""
        kept = [k for k, n in enumerate(self.widths) if n <= largest]
        found = [self.discrepancy[k] for k in kept]
        return measured_slope([self.widths[k] for k in kept], [d.value for d in found], [d.stderr for d in found])

    def kurtosis_slope(self, smallest: int) -> Slope:
        """Power of the width of the excess kurtosis from a width on, below which 1/n^2 counts."""
        kept = [k for k, n in enumerate(self.widths) if n >= smallest]
        return measured_slope([self.widths[k] for k in kept], self.kurtosis[kept], self.kurtosis_stderr[kept])


def gaussianity(widths: Sequence[int], nets: int, variance: float = 1.6, bias: float = 0.2, outputs: int = 8) -> Gaussianity:
    """MMD^2 of the first output on four inputs, and the kurtosis averaged over inputs and outputs."""
    points = np.random.default_rng(0).standard_normal((4, 4))
    net, scale = tp.mlp(3, tp.relu, bias=bias**0.5, bias_rate=bias), tp.ntk.times(variance**0.5)
    limit = kernels(net, scale, points).nngp

    def function(finite: FiniteNet) -> np.ndarray:
        return finite.predict(points)

    draws = width_scan(function, net, scale, 4, widths, nets, outputs=outputs, resamples=100).values
    found = [cumulants(d.reshape(nets, -1)) for d in draws]
    # inputs and outputs of one net are not independent: the mean is taken to be no better than one of them
    kurtosis, error = (np.array([getattr(c, name).mean() for c in found]) for name in ("kurtosis", "kurtosis_stderr"))
    return Gaussianity(tuple(widths), tuple(mmd2(d[:, :, 0], limit) for d in draws), kurtosis, error)


def circle(points: int) -> np.ndarray:
    """Evenly spaced points of the circle, off the axes."""
    angle = 2 * np.pi * (np.arange(points) + 0.5) / points
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def rank_on_circle(activation: tp.Activation, points: int = 40) -> int:
    """Numerical rank of the limiting tangent kernel with one hidden layer and biases (A3)."""
    # large weights: the harmonics of a smooth kernel decay geometrically, and the last ones must stay above rounding
    ntk = kernels(tp.mlp(1, activation, bias=0.5, bias_rate=0.25), tp.ntk.times(4.0), circle(points)).ntk
    spectrum = np.linalg.eigvalsh(ntk)
    return int(np.sum(spectrum > 1e-13 * spectrum[-1]))


def circle_profile(widths: Sequence[int], seeds: int) -> WidthScan:
    """Theta(x0, x(gamma)) around the circle (A3): its standard deviation over seeds halves from n to 4 n."""
    points = circle(40)

    def profile(net: FiniteNet) -> np.ndarray:
        return empirical_ntk(net, points[:1], points)[0, :, 0, 0]

    return width_scan(profile, tp.mlp(2, tp.relu, bias=0.3, bias_rate=0.09), tp.ntk.times(2**0.5), 2, widths, seeds)


def part(scan: WidthScan, entry: int) -> WidthScan:
    """One entry of a scan of a vector."""
    return replace(scan, values=scan.values[:, :, entry])


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    card: str
    quantity: str
    claimed: str
    measured: str


def measured(quick: bool) -> Iterable[tuple[str, Callable[[], list[Row]]]]:
    """The measurements by name; each gives the rows that it stands for."""
    wide = (32, 64, 128, 256) if quick else (32, 64, 128, 256, 512, 1024)

    def fluctuations() -> list[Row]:
        scan = kernel_fluctuations(wide, 40 if quick else 200)
        where = f"n = {wide[0]}..{wide[-1]}, {len(scan.seeds)} nets"
        return [
            Row("C1", f"slope of sd(eNTK), {where}", "-0.5 +- 0.1 (-0.471)", str(scan.slope_sd)),
            Row("A3", f"slope of |eNTK - Theta|_F / |Theta|_F, {where}", "-0.5 +- 0.1 (-0.471)", str(scan.slope_rms)),
            Row("C1", f"slope of |E eNTK - Theta|, erf, {where}", "<= -0.7 (not verified)", str(scan.slope_mean or "below its noise")),
        ]

    def bias() -> list[Row]:
        scan = kernel_bias((8, 16, 32, 64, 128), 1000 if quick else 8000)
        return [Row("C1", f"the same, x + x^2/2, n = 8..128, {len(scan.seeds)} nets", "<= -0.7 (not verified)", str(scan.slope_mean))]

    def second() -> list[Row]:
        scan = second_kernel_size((128, 256, 512) if quick else (128, 256, 512, 1024), 16 if quick else 40)
        return [Row("C1", f"slope of rms O_3, n = 128..{scan.widths[-1]}", "-1 +- 0.2", str(scan.slope_rms))]

    def drift() -> list[Row]:
        rows = []
        for horizon in (2.0,) if quick else (0.3, 2.0, 10.0):
            errors = drift_errors(1024, 1 if quick else 4, horizon)
            for name, values in (("O_3", errors.first), ("O_3 and O_4", errors.total)):
                quantity = f"relative error of the drift from {name}, n = 1024, t = {horizon:g}"
                rows.append(Row("C1", quantity, "0.2 (not verified)", f"{values.mean():.3f} (largest {values.max():.3f})"))
        return rows

    def standard() -> list[Row]:
        scan = top_eigenvalue((64, 128, 256, 512), 6 if quick else 20)
        return [Row("C1", "slope of lambda_max(eNTK), standard parameterization", "+1 +- 0.1 (+1.033)", str(scan.slope_mean))]

    def pseudo() -> list[Row]:
        scan = pseudo_kernel_errors((32, 64, 128, 256, 512), 8)
        norm, top = part(scan, 0), part(scan, 1)
        ratio = " ".join(f"{r:.2f}" for r in scan.mean[:, 2])
        predictions = pseudo_regression_errors((32, 64, 128, 256, 512), 8)
        return [
            Row("C4", "slope of |pNTK x I - eNTK|_F / |eNTK|_F", "-0.5 +- 0.1 (-0.477)", str(norm.slope_rms)),
            Row("C4", "the error itself, n = 32 and 512", "(.415 and .114)", f"{norm.sizes.rms[0]:.3f} and {norm.sizes.rms[-1]:.3f}"),
            Row("C4", "slope of the error of lambda_max", "-0.5 +- 0.15 (-0.530)", str(top.slope_rms)),
            Row("C4", "ratio of condition numbers, n = 32..512", "-> 1, monotone (4.7 to 1.47)", ratio),
            Row("C4", "slope of the difference of kernel regressions", "-0.5", str(predictions.slope_rms)),
        ]

    def gaussian() -> list[Row]:
        found = gaussianity((2, 4, 8, 16, 32, 64), 4000)
        values = " ".join(f"{d.value:.4f}" for d in found.discrepancy)
        return [
            Row("A2", "MMD^2 at n = 2..64", "(.0521 .0236 .0098 .0028 .0010 .0002)", values),
            Row("A2", "slope of MMD^2, n = 4..32, 4000 nets", "[-2.6, -1.2]", str(found.mmd2_slope(32))),
            Row("A2", "slope of the excess kurtosis, n = 8..64", "-1 +- 0.25", str(found.kurtosis_slope(8))),
        ]

    def circles() -> list[Row]:
        widths, seeds = ((100, 400), 40) if quick else ((500, 2000), 60)
        spread = circle_profile(widths, seeds).sizes.sd
        ranks = [rank_on_circle(a) for a in (tp.Activation("quadratic", lambda x: x**2), tp.relu, tp.erf)]
        return [
            Row("A3", "rank of the NTK on 40 points of the circle: quadratic, relu, erf", "5, 40, 40", ", ".join(map(str, ranks))),
            Row("A3", f"ratio of sd of the profile, n = {widths[0]} to {widths[1]}, {seeds} nets", "1/2", f"{spread[1] / spread[0]:.3f}"),
        ]

    def speed() -> list[Row]:
        rows = []
        points = np.random.default_rng(0).standard_normal((100, 100))
        for dtype, claimed in (("float32", (0.092, 0.039)), ("float64", (0.376, None))):
            net = draw(tp.mlp(3, tp.relu), tp.ntk, 100, 512, outputs=10, dtype=dtype)
            for name, call, peer in (("full", empirical_ntk, claimed[0]), ("averaged", empirical_ntk_trace, claimed[1])):
                text = "-" if peer is None else f"peer {peer} s"
                quantity = f"{name} eNTK, 4 layers of width 512, 100 points, 10 outputs, {dtype}"
                rows.append(Row("", quantity, text, f"{median_seconds(lambda call=call, net=net: call(net, points)):.3f} s"))
        return rows

    return [(f.__name__, f) for f in (speed, fluctuations, bias, second, drift, standard, pseudo, gaussian, circles)]


def median_seconds(call: Callable[[], object], repeats: int = 9) -> float:
    """Processor time of a call on one thread, the first one (which compiles) apart."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer nets and smaller widths")
    parser.add_argument("--only", nargs="*", default=None, help="names of measurements")
    options = parser.parse_args()
    print("Claimed: the card's acceptance, and in brackets what was measured for it. Slopes with 95 % intervals.\n")
    print("| card | quantity | claimed | measured |\n|---|---|---|---|")
    for name, rows in measured(options.quick):
        if options.only is None or name in options.only:
            for row in rows():
                print(f"| {row.card} | {row.quantity} | {row.claimed} | {row.measured} |", flush=True)


if __name__ == "__main__":
    main()
