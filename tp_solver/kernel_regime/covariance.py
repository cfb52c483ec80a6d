"""What counts as a covariance: one rule for every kernel that is given as a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigvalsh

from tp_solver import checks
from tp_solver.errors import InputError

ASYMMETRY = 1e-9
"""Largest difference of two mirrored entries of a kernel, relative to its largest entry."""
NEGATIVE = 1e-8
"""Negative eigenvalues down to this times points times the largest entry count as rounding."""
SINGLE = 1e4
"""Kernels in single precision are allowed this many times more."""


def covariance_matrix(field: str, value: Any, size: float = 0.0) -> np.ndarray:
    """A symmetric positive semidefinite float64 matrix.

    Args:
        field: how errors call it.
        value: (P, P).
        size: of the numbers whose rounding it inherits, where its own entries are smaller.

    Raises:
        InputError: naming the lowest eigenvalue if it is negative beyond rounding, or the entries that are not mirrored.
    """
    slack = SINGLE if getattr(value, "dtype", None) == np.float32 else 1.0
    out = checks.array(field, value, ndim=(2,), hint=f"{field} is (P, P)")
    if out.shape[0] != out.shape[1]:
        raise InputError(field, f"an array of shape {out.shape}", "a square matrix", "kernels of a set of points with itself are (P, P)")
    scale = max(float(np.abs(out).max()), size)
    gap = np.abs(out - out.T)
    if gap.max() > slack * ASYMMETRY * scale:
        i, j = (int(k) for k in np.unravel_index(np.argmax(gap), gap.shape))
        raise InputError(
            field,
            f"an asymmetric matrix: entries ({i}, {j}) and ({j}, {i}) are {out[i, j]:.6g} and {out[j, i]:.6g}",
            "a symmetric matrix",
            "a kernel between two different sets of points goes in as the cross block, not here",
        )
    out = (out + out.T) / 2
    allowed = slack * NEGATIVE * scale * len(out)
    shifted = out.copy()
    np.fill_diagonal(shifted, out.diagonal() + allowed)
    try:  # a Cholesky factorisation is ten times cheaper than the eigenvalues, which are for the message
        cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        lowest = float(eigvalsh(out, subset_by_index=[0, 0])[0])
        if lowest < -allowed:
            raise InputError(
                field,
                f"a matrix whose lowest eigenvalue is {lowest:.3g} (largest entry {scale:.3g})",
                "a positive semidefinite matrix",
                "a kernel is a covariance; noise does not mend one that is not",
            ) from None
    return out
