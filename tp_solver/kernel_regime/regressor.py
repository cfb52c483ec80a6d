"""A scikit-learn estimator: Gaussian-process regression with the kernel of an infinitely wide network, or with any other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import validate_data

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.compute import kernels
from tp_solver.kernel_regime.gaussian_process import LogMarginalLikelihood, condition
from tp_solver.kernel_regime.predictive import Predictive
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Program

BLOCK = 512
"""New points whose kernels are held at a time."""

Kernel = Callable[[np.ndarray, np.ndarray | None], Any]
"""(n1, D) and (n2, D) or None (the first again) -> (n1, n2)."""


class DataError(InputError, ValueError):
    """Data that no estimator accepts; also a ValueError, which scikit-learn's tools expect."""


class UnfittedError(InputError, NotFittedError):
    """A question that only a fitted estimator can answer; also scikit-learn's NotFittedError."""


@dataclass(frozen=True)
class NNGPKernel:
    """Kernel of the Bayesian infinitely wide network: the covariance of its initial function.

    Args:
        net: a program, e.g. ``tp.mlp(depth=3, activation=tp.relu)``.
        parameterization: e.g. ``tp.ntk.times(2**0.5)``.
    """

    net: Program
    parameterization: Parameterization

    def __post_init__(self) -> None:
        _check(self.net, self.parameterization)

    def __call__(self, X: np.ndarray, X2: np.ndarray | None = None) -> np.ndarray:
        """(n1, D) and (n2, D) -> (n1, n2)."""
        return np.asarray(kernels(self.net, self.parameterization, X, X2).nngp)


@dataclass(frozen=True)
class TangentKernel:
    """Tangent kernel of the infinitely wide network, learning rates of its layers included. Arguments as :class:`NNGPKernel`."""

    net: Program
    parameterization: Parameterization

    def __post_init__(self) -> None:
        _check(self.net, self.parameterization)

    def __call__(self, X: np.ndarray, X2: np.ndarray | None = None) -> np.ndarray:
        """(n1, D) and (n2, D) -> (n1, n2)."""
        return np.asarray(kernels(self.net, self.parameterization, X, X2).ntk)


def _check(net: Any, parameterization: Any) -> None:
    checks.instance("net", net, Program, "a program", "tp.mlp(depth=3, activation=tp.relu)")
    checks.instance("parameterization", parameterization, Parameterization, "a parameterization", "tp.ntk.times(2**0.5)")


class KernelRegressor(RegressorMixin, BaseEstimator):
    """Gaussian-process regression with ``fit``, ``predict(X, return_std=True)`` and ``score``, on any kernel.

    The prior has mean zero: centre the labels. Several outputs are independent and share the kernel.

    Args:
        kernel: ``NNGPKernel(net, parameterization)``, ``TangentKernel(net, parameterization)``, or any function (X (n1, D), X2 (n2, D) or
            None) -> (n1, n2) that is a covariance.
        noise: variance >= 0 of the labels given the function; 0 interpolates.

    Attributes:
        process_: the conditioned process (after ``fit``), with its rank and condition number in ``process_.factor``.
        X_fit_: the training inputs, (P, D).
        n_features_in_: D.

    Raises:
        InputError: from ``fit`` for a kernel that is asymmetric, indefinite, or singular without noise; DataError (an InputError
            and a ValueError) for malformed data; UnfittedError (an InputError and scikit-learn's NotFittedError) before ``fit``.
    """

    def __init__(self, kernel: Kernel, noise: float = 0.0) -> None:
        self.kernel = kernel
        self.noise = noise

    def fit(self, X: Any, y: Any) -> KernelRegressor:
        """Condition on inputs (P, D) and labels (P,) or (P, K)."""
        hint = "NNGPKernel(net, parameterization), TangentKernel(net, parameterization), or a function of X and X2"
        if not callable(self.kernel):
            raise InputError("kernel", self.kernel, "a callable (X, X2) -> (n1, n2)", hint)
        if not _takes_two(self.kernel):
            raise InputError("kernel", "a function that cannot be called with X and X2", "a callable (X, X2) -> (n1, n2)", hint)
        noise = checks.number("noise", self.noise, minimum=0.0, hint="noise is a variance, >= 0")
        try:
            X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        except ValueError as error:
            raise _data_error("X, y", error) from error
        self.process_ = condition(self.kernel(X, None), y.astype(np.float64), noise)
        self.X_fit_ = X
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Posterior mean, (n,) or (n, K), and with ``return_std`` the standard deviation of the function (without noise) too.

        Args:
            X: new inputs, (n, D).
            return_std: scikit-learn's switch; the standard deviation comes shaped like the mean.
        """
        X = self._new(X)
        means, variances = [], []
        for start in range(0, len(X), BLOCK):
            block = X[start : start + BLOCK]
            cross = self.kernel(block, self.X_fit_)
            means.append(self.process_.mean(cross))
            if return_std:
                variances.append(self.process_.variance(cross, np.diagonal(self.kernel(block, None))))
        mean = np.concatenate(means)
        if not return_std:
            return mean
        std = np.sqrt(np.concatenate(variances))
        return mean, np.broadcast_to(std.reshape(-1, *(1,) * (mean.ndim - 1)), mean.shape).copy()

    def posterior(self, X: Any) -> Predictive:
        """Mean and full covariance at new inputs (n, D), as a record that prints and plots."""
        X = self._new(X)
        cross, own = self.kernel(X, self.X_fit_), self.kernel(X, None)
        process = self.process_
        name = f"KernelRegressor, noise {process.noise:g}"
        meaning = f"posterior of the prior GP(0, {getattr(self.kernel, '__name__', type(self.kernel).__name__)})"
        return Predictive(name, meaning, process.mean(cross), process.covariance(cross, own), process.factor)

    def log_marginal_likelihood(self) -> LogMarginalLikelihood:
        """Log density of the training labels, summed over outputs, with its slopes in the noise and in the scale of the kernel."""
        self._fitted()
        return self.process_.log_marginal_likelihood()

    def _fitted(self) -> None:
        if not hasattr(self, "process_"):
            raise UnfittedError("KernelRegressor", "an estimator before fit", "a fitted one", "call fit(X, y) first")

    def _new(self, X: Any) -> np.ndarray:
        self._fitted()
        try:
            return validate_data(self, X, reset=False, dtype=np.float64)
        except ValueError as error:
            raise _data_error("X", error) from error

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = True
        tags.target_tags.multi_output = True
        return tags


def _takes_two(kernel: Kernel) -> bool:
    try:
        inspect.signature(kernel).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _data_error(field: str, error: ValueError) -> DataError:
    """scikit-learn's words, in the form of this library's errors."""
    return DataError(
        field, f"a refusal by scikit-learn: {error}", "finite numbers, X (n, D) and y (n,) or (n, K)", "one row per data point"
    )
