"""Gaussian processes on given kernels: posterior mean and covariance, marginal likelihood (``theory/uncertainty.md``, KU.1 and KU.2).

Nothing is ever added to a diagonal but the noise that was asked for. A kernel that is singular all the same is solved on its
range if the labels lie there, with the rank reported, and refused if they do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigh, lapack, solve_triangular

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.covariance import NEGATIVE, SINGLE, covariance_matrix

COINCIDENT = 1e-8
"""Points whose kernel distance k(x,x) + k(x',x') - 2 k(x,x') is below this times k(x,x) + k(x',x') count as one."""
CONSISTENT = 1e-8
"""Part of the labels outside the range of a singular kernel, relative to all of them, that counts as rounding."""


@dataclass(frozen=True, eq=False)
class Factor:
    """K + ridge, factorised; :func:`factorise` makes one.

    Attributes:
        lower: Cholesky factor of K + ridge, or of its restriction to ``basis``.
        basis: orthonormal columns that span the range, (P, rank); None for full rank.
        points, rank: P and the numerical rank.
        condition_number: on the range (an estimate in the 1-norm where the rank is full).
        cutoff: eigenvalues below it count as zero; noise above it makes the rank full.
        why: what makes it singular, in words; empty for full rank.
    """

    lower: np.ndarray
    basis: np.ndarray | None
    points: int
    rank: int
    condition_number: float
    cutoff: float
    why: str

    def whiten(self, b: np.ndarray) -> np.ndarray:
        """w with w.T w = b.T (K + ridge)^+ b, for b of shape (P, m); (rank, m)."""
        inside = b if self.basis is None else self.basis.T @ b
        return solve_triangular(self.lower, inside, lower=True, check_finite=False)

    def solve(self, b: np.ndarray) -> np.ndarray:
        """(K + ridge)^+ b, for b of shape (P, m)."""
        w = solve_triangular(self.lower, self.whiten(b), lower=True, trans=1, check_finite=False)
        return w if self.basis is None else self.basis @ w

    def require_in_range(self, field: str, b: np.ndarray) -> None:
        """Refuse columns that a singular K cannot reach.

        Raises:
            InputError: naming the rank and the cause.
        """
        if self.basis is None:
            return
        outside = np.linalg.norm(b - self.basis @ (self.basis.T @ b), axis=0)
        if np.any(outside > CONSISTENT * np.linalg.norm(b, axis=0)):
            raise InputError(
                "kernel",
                f"a singular matrix of rank {self.rank} on {self.points} points{self.why}, which {field} does not fit",
                f"a kernel of full rank, or noise above {self.cutoff:.1g}",
                "give noise (its size is your statement about the labels), or drop repeated points",
            )


def factorise(kernel: np.ndarray, ridge: float) -> Factor:
    """Factorise K + ridge for a kernel that has passed :func:`covariance_matrix`; a singular one on its range."""
    points, eps = len(kernel), np.finfo(float).eps
    matrix = kernel.copy()
    np.fill_diagonal(matrix, kernel.diagonal() + ridge)
    blur = COINCIDENT * float(np.abs(kernel).max())
    # kernels are computed: their difference at coincident points is rounding, which noise must exceed
    pair = _coincident(kernel) if ridge < blur else None
    if pair is None:
        try:
            lower = cholesky(matrix, lower=True, check_finite=False)
            reciprocal = float(lapack.dpocon(lower, np.abs(matrix).sum(axis=0).max(), uplo="L")[0])
            if reciprocal > points * eps:
                return Factor(lower, None, points, points, 1 / reciprocal, 0.0, "")
        except LinAlgError:
            pass
    values, vectors = eigh(matrix, check_finite=False)
    top = max(float(values[-1]), 0.0)
    cutoff = max(points * eps * top, 0.0 if pair is None else blur)
    kept = values > cutoff
    why = "" if pair is None else f" (points {pair[0]} and {pair[1]} coincide)"
    number = top / float(values[kept][0]) if kept.any() else 1.0
    return Factor(np.diag(np.sqrt(values[kept])), vectors[:, kept], points, int(kept.sum()), number, cutoff, why)


def _coincident(kernel: np.ndarray) -> tuple[int, int] | None:
    """The closest two points, if the kernel cannot tell them apart."""
    if len(kernel) < 2:
        return None
    d = kernel.diagonal()
    total = d[:, None] + d
    gap = total - 2 * kernel - COINCIDENT * total
    np.fill_diagonal(gap, np.inf)
    i, j = (int(k) for k in np.unravel_index(np.argmin(gap), gap.shape))
    return (i, j) if gap[i, j] <= 0 else None


@dataclass(frozen=True, eq=False, repr=False)
class GaussianProcess:
    """A Gaussian process of mean zero conditioned on noisy labels; :func:`condition` makes one.

    Outputs are independent and share the kernel. ``cross`` is the kernel between new and training points, (n, P).

    Attributes:
        kernel: on the training points, (P, P).
        y: labels, (P,) or (P, K).
        noise: variance of the labels given the function.
        factor: the factorised K + noise, with its ``rank`` and ``condition_number``.
        weights: (K + noise)^-1 y, shaped like y.
    """

    kernel: np.ndarray
    y: np.ndarray
    noise: float
    factor: Factor
    weights: np.ndarray

    def mean(self, cross: Any) -> np.ndarray:
        """Posterior mean at new points, (n,) or (n, K)."""
        return self._cross(cross) @ self.weights

    def covariance(self, cross: Any, own: Any) -> np.ndarray:
        """Posterior covariance of the function (without noise) at new points, the same for every output, (n, n).

        Args:
            cross: (n, P).
            own: kernel of the new points, (n, n).

        Raises:
            InputError: for malformed arrays, or where the blocks are not those of one kernel (a negative variance).
        """
        own = covariance_matrix("own", own)
        white = self._whitened(cross, len(own))
        out = own - white.T @ white
        out[np.diag_indices_from(out)] = _variances(own.diagonal(), white)
        return out

    def variance(self, cross: Any, diagonal: Any) -> np.ndarray:
        """Diagonal of :meth:`covariance`, (n,), from the prior variances ``diagonal`` (n,) alone."""
        prior = checks.array("diagonal", diagonal, ndim=(1,), hint="diagonal is (n,), the prior variances")
        return _variances(prior, self._whitened(cross, len(prior)))

    def log_marginal_likelihood(self) -> LogMarginalLikelihood:
        """Log density of the labels with its slopes in the noise and in the scale of the kernel."""
        return log_marginal_likelihood(self.kernel, self.y, self.noise)

    def _cross(self, cross: Any) -> np.ndarray:
        out = checks.array("cross", cross, ndim=(2,), hint="cross is (n, P): new points by training points")
        if out.shape[1] != len(self.kernel):
            raise InputError("cross", f"shape {out.shape}", f"(n, {len(self.kernel)})", "rows are new points, columns are training points")
        return out

    def _whitened(self, cross: Any, count: int) -> np.ndarray:
        block = self._cross(cross)
        if len(block) != count:
            raise InputError("cross", f"{len(block)} rows", f"{count}, one per new point", "both blocks are of the same new points")
        return self.factor.whiten(block.T)

    def __str__(self) -> str:
        outputs = 1 if self.y.ndim == 1 else self.y.shape[1]
        rank = "" if self.factor.basis is None else f", rank {self.factor.rank}{self.factor.why}"
        return (
            f"Gaussian process on {len(self.kernel)} points, {outputs} output{'s' * (outputs > 1)}, noise {self.noise:g}, "
            f"condition {self.factor.condition_number:.1e}{rank}"
        )

    __repr__ = __str__


def _variances(prior: np.ndarray, white: np.ndarray) -> np.ndarray:
    """prior - |white|^2, with what rounding makes negative set to zero."""
    out = prior - np.einsum("ri,ri->i", white, white)
    lowest = int(np.argmin(out))
    if out[lowest] < -NEGATIVE * SINGLE * max(float(prior.max()), float(-prior.min())):
        raise InputError(
            "cross",
            f"a posterior variance {out[lowest]:.3g} at new point {lowest}",
            "blocks of one positive semidefinite kernel over training and new points",
            "all three blocks must come from the same kernel",
        )
    return np.maximum(out, 0.0)


def condition(kernel: Any, y: Any, noise: float = 0.0) -> GaussianProcess:
    """Condition a Gaussian process on labels (``theory/uncertainty.md``, KU.1; Rasmussen and Williams 2006, algorithm 2.1).

    Args:
        kernel: prior covariance of the training points, (P, P).
        y: labels, (P,) or (P, K); K independent outputs with the same kernel.
        noise: variance s^2 >= 0 of the labels given the function.

    Raises:
        InputError: for malformed arrays; for an asymmetric or indefinite kernel (naming the lowest eigenvalue); for a
            singular one without noise (coincident points) whose range does not hold the labels.
    """
    kernel = covariance_matrix("kernel", kernel)
    y = labels(y, len(kernel))
    noise = checks.number("noise", noise, minimum=0.0, hint="noise is a variance, >= 0")
    factor = factorise(kernel, noise)
    columns = y.reshape(len(y), -1)
    factor.require_in_range("y", columns)
    return GaussianProcess(kernel, y, noise, factor, factor.solve(columns).reshape(y.shape))


def labels(y: Any, points: int) -> np.ndarray:
    """Labels (P,) or (P, K) that go with so many points."""
    out = checks.array("y", y, ndim=(1, 2), hint="y is (P,) or (P, K)")
    if len(out) != points:
        raise InputError("y", f"{len(out)} labels", f"{points}, one per row of the kernel", "check that kernel and labels belong together")
    return out


def log_density(covariance: jax.Array, y: jax.Array) -> jax.Array:
    """log N(y; 0, covariance), summed over the columns of y (P, K); jax-traceable, differentiable in both arguments.

    NaN for a covariance that is not positive definite: :func:`log_marginal_likelihood` checks, this does not.
    """
    lower = jnp.linalg.cholesky(covariance)
    white = jax.scipy.linalg.solve_triangular(lower, y, lower=True)
    volume = jnp.sum(jnp.log(jnp.diagonal(lower))) + 0.5 * len(y) * jnp.log(2 * jnp.pi)
    return -0.5 * jnp.sum(white**2) - y.shape[1] * volume


@dataclass(frozen=True)
class LogMarginalLikelihood:
    """Log density of the labels under the prior, ``log N(y; 0, scale K + noise)``, summed over outputs.

    Attributes:
        value: in nats.
        d_noise, d_scale: its derivatives with respect to the noise variance and to the factor on the kernel.
    """

    value: float
    d_noise: float
    d_scale: float

    def __str__(self) -> str:
        return f"log marginal likelihood {self.value:.6g} (d/d noise {self.d_noise:.4g}, d/d scale {self.d_scale:.4g})"


def log_marginal_likelihood(kernel: Any, y: Any, noise: float = 0.0, scale: float = 1.0) -> LogMarginalLikelihood:
    """Log marginal likelihood and its slopes (``theory/uncertainty.md``, KU.2), in float64.

    Args:
        kernel: (P, P).
        y: labels, (P,) or (P, K).
        noise: variance s^2 >= 0 of the labels given the function.
        scale: factor > 0 on the kernel.

    Raises:
        InputError: as :func:`condition`, and for every singular ``scale K + noise``: the labels have no density then.
    """
    kernel = covariance_matrix("kernel", kernel)
    y = labels(y, len(kernel))
    noise = checks.number("noise", noise, minimum=0.0, hint="noise is a variance, >= 0")
    scale = checks.number("scale", scale, above=0.0)
    factor = factorise(scale * kernel, noise)
    if factor.basis is not None:
        raise InputError(
            "kernel",
            f"a singular matrix of rank {factor.rank} on {factor.points} points{factor.why}",
            f"a kernel of full rank, or noise above {factor.cutoff:.1g}: the labels have no density else",
            "give noise, or drop repeated points",
        )
    with jax.enable_x64(True):
        value, (d_noise, d_scale) = _slopes()(noise, scale, jnp.asarray(kernel), jnp.asarray(y.reshape(len(y), -1)))
        return LogMarginalLikelihood(float(value), float(d_noise), float(d_scale))


@cache
def _slopes() -> Any:
    def value(noise: jax.Array, scale: jax.Array, kernel: jax.Array, y: jax.Array) -> jax.Array:
        return log_density(scale * kernel + noise * jnp.eye(len(kernel), dtype=kernel.dtype), y)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
