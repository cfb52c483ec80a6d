"""Kernels of a program on data: NNGP, NTK and every layer's Phi and G (``theory/kernel_regime.md``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.kernel_regime.constants import numeric_constants
from tp_solver.kernel_regime.propagation import propagate
from tp_solver.limit.spec import limit_spec
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Program


@dataclass(frozen=True)
class KernelSet:
    """Kernels between n1 and n2 inputs, each (n1, n2).

    Attributes:
        nngp: covariance of the initial output at gamma0 = 1 where it is O(1): scale^2 <x x'> at the readout.
        ntk: tangent kernel, rates eta included, lr not.
        Phi, G: per reported layer, (layers, n1, n2).
        parts: matrix -> its term of the tangent kernel.
    """

    nngp: np.ndarray
    ntk: np.ndarray
    Phi: np.ndarray
    G: np.ndarray
    parts: Mapping[str, np.ndarray]


def kernels(net: Program, parameterization: Parameterization, X: Any, X2: Any = None) -> KernelSet:
    """Kernels at initialisation of a program at infinite width."""
    X = checks.array("X", X, ndim=(2,), hint="X is (n1, D)")
    both = X if X2 is None else np.concatenate([X, checks.array("X2", X2, ndim=(2,), hint="X2 is (n2, D)")])
    scales, rates = numeric_constants(net, limit_spec(net, parameterization), X.shape[1])
    out = propagate(net, scales, rates, both @ both.T)
    rows, columns = slice(0, len(X)), slice(0 if X2 is None else len(X), len(both))
    cut = lambda k: k[..., rows, columns]  # noqa: E731
    return KernelSet(
        cut(out.output_covariance), cut(out.ntk), cut(np.array(out.Phi)), cut(np.array(out.G)), {m: cut(k) for m, k in out.parts.items()}
    )
