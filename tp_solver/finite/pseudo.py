"""The pseudo-kernel of nets with many outputs: one kernel of the summed output in place of a K x K block per pair of points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.finite.empirical import MEMORY, Points, between, by_outputs, checked_budget, checked_net
from tp_solver.finite.network import FiniteNet


@dataclass(frozen=True, eq=False, repr=False)
class PseudoKernel:
    """kappa (n1, n2), which stands for the full kernel kappa x I_K, and how far that is from the truth.

    Attributes:
        kernel: kappa.
        error: estimate of ``|Theta - kappa x I|_F / |Theta|_F``.
        error_stderr: its standard error, from the probes; zero where all directions were probed.
        outputs: K.
    """

    kernel: np.ndarray
    error: float
    error_stderr: float
    outputs: int

    def __repr__(self) -> str:
        n1, n2 = self.kernel.shape
        return f"PseudoKernel({n1} x {n2} for {self.outputs} outputs, relative error {self.error:.3g} +- {self.error_stderr:.1g})"


def pseudo_ntk(net: FiniteNet, X: Any, X2: Any = None, probes: int = 4, seed: int = 0, memory: float = MEMORY) -> PseudoKernel:
    """The kernel of grad ``K^(-1/2) sum_k f_k`` (Mohamadi, Bae & Sutherland 2022, arXiv 2206.12543), with an error estimate.

    The error is O(n^(-1/2)) at initialisation for nets with a wide linear readout; after training nothing is promised, which is
    why it is measured: ``E |u.(Theta - kappa x I) v|^2 = |Theta - kappa x I|_F^2`` over random directions u, v of the outputs.

    Args:
        net: from :func:`tp_solver.draw`; several outputs, or the kernel is the tangent kernel itself.
        X: inputs (n1, D).
        X2: inputs (n2, D); X by default.
        probes: directions on either side, at least 2; the cost is that of 1 + 2 probes outputs. All K directions are taken
            where that is cheaper, and the error is then exact.
        seed: of the directions.
        memory: GiB that the work may take.

    Raises:
        InputError, BudgetError: as :func:`tp_solver.empirical_ntk`.
    """
    net, memory = checked_net(net), checked_budget(memory)
    probes = checks.integer("probes", probes, minimum=2)
    rng = np.random.default_rng(checks.integer("seed", seed, minimum=0))
    x = net.columns("X", X)
    x2 = None if X2 is None else net.columns("X2", X2)
    K = net.outputs
    mean = np.full((1, K), K**-0.5)
    kernel = between(net, Points(x, mean), None if x2 is None else Points(x2, mean), by_outputs, memory)[:, :, 0, 0]
    if 2 * probes >= K:
        u = v = np.eye(K) * K**0.5
        seen = between(net, Points(x, u), None if x2 is None else Points(x2, v), by_outputs, memory)
    else:
        u, v = (_directions(rng, K, probes) for _ in range(2))
        seen = between(net, Points(x, u), Points(x if x2 is None else x2, v), by_outputs, memory)
    aligned = u @ v.T
    missed = seen - kernel[:, :, None, None] * aligned
    error = np.sum(missed**2, axis=(0, 1))
    # |Theta|^2 = K |kappa|^2 + 2 kappa.(Theta - kappa x I) + |Theta - kappa x I|^2, of which the first term needs no probes
    total = K * np.sum(kernel**2) + 2 * aligned * np.einsum("mn,mnuv->uv", kernel, missed) + error
    return PseudoKernel(kernel, *_ratio(error, total, 1 - len(u) / K), K)


def _directions(rng: np.random.Generator, outputs: int, count: int) -> np.ndarray:
    """Random orthogonal directions (count, K) of length sqrt(K): E u u^T = I, and all K of them know every square sum."""
    q, r = np.linalg.qr(rng.standard_normal((outputs, outputs)))
    return (q * np.sign(np.diag(r)))[:, :count].T * outputs**0.5


def _ratio(missed: np.ndarray, total: np.ndarray, unseen: float) -> tuple[float, float]:
    """sqrt(sum missed / sum total) of arrays over pairs of probes, and its jackknife error over probes on either side.

    Args:
        unseen: share of the directions that no probe took; the error vanishes with it.
    """
    count = len(total)
    value = float(np.sqrt(missed.sum() / total.sum()))
    if not unseen:
        return value, 0.0
    keep = ~np.eye(count, dtype=bool)
    left_out = [np.sqrt(missed[np.ix_(k, k)].sum() / total[np.ix_(k, k)].sum()) for k in keep]
    return value, float(np.sqrt((count - 1) / count * np.sum((left_out - np.mean(left_out)) ** 2) * unseen))
