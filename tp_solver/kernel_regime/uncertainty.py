"""Uncertainty of infinitely wide networks: what an ensemble of them predicts, in closed form (``theory/uncertainty.md``).

All ensembles follow one rule. Training moves the function by an affine map, f = f_0 + B (y + noise - f_0(X)), so that a Gaussian
initial function stays Gaussian (KU.3); methods differ in the kernel that makes B, in the initial function and in the noise.

The kernels come from ``kernels(net, parameterization, np.concatenate([X, X_test]))``: training points first, as many as there
are labels; every other point is a test point. Outputs are independent and share the covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.affine import covariance_at, solver_at
from tp_solver.kernel_regime.covariance import covariance_matrix
from tp_solver.kernel_regime.gaussian_process import CONSISTENT, Factor, condition, factorise
from tp_solver.kernel_regime.predictive import Predictive, UncertaintyTable
from tp_solver.program.losses import SquaredError
from tp_solver.program.training import GradientDescent, GradientFlow, Training


class Kernels(Protocol):
    """Whatever holds the two kernels over training and test points: a ``KernelSet``."""

    @property
    def nngp(self) -> Any:
        """Covariance of the initial function at gamma0 = 1, (P + n, P + n)."""

    @property
    def ntk(self) -> Any:
        """Tangent kernel, (P + n, P + n)."""


@dataclass(frozen=True, eq=False)
class _Joint:
    """Kernels and labels that have been looked at."""

    nngp: np.ndarray
    ntk: np.ndarray
    y: np.ndarray

    @property
    def points(self) -> int:
        return len(self.y)


def _joint(kernels: Kernels, y: Any) -> _Joint:
    for name in ("nngp", "ntk"):
        if not hasattr(kernels, name):
            hint = "kernels(net, parameterization, np.concatenate([X, X_test]))"
            raise InputError("kernels", kernels, "the kernels of a net on training and test points", hint)
    nngp, ntk = covariance_matrix("nngp", kernels.nngp), covariance_matrix("ntk", kernels.ntk)
    if nngp.shape != ntk.shape:
        raise InputError("ntk", f"shape {ntk.shape}", f"shape {nngp.shape}, like nngp", "both are over training and test points")
    y = checks.array("y", y, ndim=(1, 2), hint="y is (P,) or (P, K)")
    _has_test_points(ntk, len(y))
    return _Joint(nngp, ntk, y)


def _has_test_points(kernel: np.ndarray, points: int) -> None:
    if points >= len(kernel):
        raise InputError(
            "y", f"{points} labels for {len(kernel)} points", "fewer labels than points", "the kernel holds the test points after them"
        )


def affine_law(
    name: str, kernel: Any, start: Any, y: Any, ridge: float = 0.0, label_noise: float = 0.0, meaning: str = "law of an ensemble"
) -> Predictive:
    """Law of f = f_0 + B (y + e - f_0(X)) on the test points, with B = kernel_*X (kernel_XX + ridge)^-1 (KU.3).

    Every other ensemble here is this one with its own kernel, start and noise.

    Args:
        name: how it prints.
        kernel: what training moves the function by, training points first, (P + n, P + n).
        start: covariance of the initial function f_0, of mean zero, (P + n, P + n).
        y: labels, (P,) or (P, K).
        ridge: weight >= 0 of the penalty |theta - theta_0|^2 / 2 beside the sum of squares over 2; 0 trains to interpolation.
        label_noise: variance >= 0 of the noise e that each member adds to its labels.
        meaning: how it prints below the name.

    Raises:
        InputError: for malformed arrays; for asymmetric or indefinite kernels; for a kernel that is singular without ridge
            where its range holds neither the labels nor the initial functions.
    """
    kernel, start = covariance_matrix("kernel", kernel), covariance_matrix("start", start)
    y = checks.array("y", y, ndim=(1, 2), hint="y is (P,) or (P, K)")
    if start.shape != kernel.shape:
        raise InputError("start", f"shape {start.shape}", f"shape {kernel.shape}, like the kernel", "give it over all points")
    _has_test_points(kernel, len(y))
    ridge = checks.number("ridge", ridge, minimum=0.0)
    label_noise = checks.number("label_noise", label_noise, minimum=0.0)
    return _affine(name, meaning, kernel, start, y, ridge, label_noise)


def _affine(
    name: str, meaning: str, kernel: np.ndarray, start: np.ndarray, y: np.ndarray, ridge: float = 0.0, label_noise: float = 0.0
) -> Predictive:
    """Trained to convergence, with a penalty or without."""
    points = len(y)
    factor = factorise(kernel[:points, :points], ridge)
    factor.require_in_range("y", y.reshape(points, -1))
    _require_reachable(factor, start[:points, :points])
    influence = factor.solve(kernel[:points, points:]).T
    return Predictive(name, meaning, *_moments(influence, start, y, label_noise), factor)


def _moments(influence: np.ndarray, start: np.ndarray, y: np.ndarray, label_noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of f_0 + B (y + e - f_0(X)) for f_0 ~ GP(0, start): the one rule (KU.3)."""
    points = len(y)
    mean = (influence @ y.reshape(points, -1)).reshape(-1, *y.shape[1:])
    noisy = start[:points, :points] + label_noise * np.eye(points)
    out = covariance_at(start[points:, points:], start[points:, :points], noisy, influence)
    # symmetric to the last bit, with the variances that rounding makes negative set to zero
    out = (out + out.T) / 2
    np.fill_diagonal(out, np.maximum(out.diagonal(), 0.0))
    return mean, out


def _require_reachable(factor: Factor, start: np.ndarray) -> None:
    """Initial functions that a singular kernel cannot train away have no interpolating limit."""
    if factor.basis is None:
        return
    outside = start - factor.basis @ (factor.basis.T @ start)
    outside = outside - (outside @ factor.basis) @ factor.basis.T
    if outside.diagonal().max() > CONSISTENT * start.diagonal().max():
        raise InputError(
            "kernel",
            f"a singular matrix of rank {factor.rank} on {factor.points} points{factor.why}, which the initial function does not fit",
            f"a kernel of full rank, or a penalty above {factor.cutoff:.1g}",
            "an ensemble trained for a finite time has no such condition: deep_ensemble(kernels, y, tp.GradientFlow(...))",
        )


def _posterior(name: str, kernel: np.ndarray, y: np.ndarray, noise: float) -> Predictive:
    points = len(y)
    process = condition(kernel[:points, :points], y, noise)
    mean, covariance = process.mean(kernel[points:, :points]), process.covariance(kernel[points:, :points], kernel[points:, points:])
    return Predictive(
        f"{name} posterior, noise {process.noise:g}", f"posterior of the prior GP(0, {name})", mean, covariance, process.factor
    )


def nngp_posterior(kernels: Kernels, y: Any, noise: float = 0.0) -> Predictive:
    """Bayesian inference with an infinitely wide network: the posterior of GP(0, NNGP) (KU.1; Lee et al., arXiv:1711.00165).

    Args:
        kernels: over training and test points.
        y: labels, (P,) or (P, K).
        noise: variance s^2 >= 0 of the labels.

    Raises:
        InputError: for malformed arrays, asymmetric or indefinite kernels, and singular ones without noise.
    """
    k = _joint(kernels, y)
    return _posterior("NNGP", k.nngp, k.y, noise)


def ntk_gp(kernels: Kernels, y: Any, noise: float = 0.0) -> Predictive:
    """The posterior of GP(0, NTK) (KU.1; He, Lakshminarayanan and Teh, arXiv:2007.05864). Arguments as :func:`nngp_posterior`."""
    k = _joint(kernels, y)
    return _posterior("NTK", k.ntk, k.y, noise)


def deep_ensemble(kernels: Kernels, y: Any, training: Training | None = None, gamma0: float = 1.0) -> Predictive:
    """Networks trained on squared error from independent initialisations (KU.4; Lee et al., arXiv:1902.06720).

    Its law is Gaussian but not a posterior: neither of the NNGP nor of the NTK prior.

    Args:
        kernels: over training and test points.
        y: labels, (P,) or (P, K).
        training: ``tp.GradientFlow(time, steps)`` or ``tp.GradientDescent(lr, steps)`` for the law at its end; None: trained
            to convergence.
        gamma0: feature-learning strength > 0; the covariance is proportional to 1/gamma0^2.

    Raises:
        InputError: for malformed arrays, another loss than squared error, learning rates per matrix, or (without ``training``)
            a singular kernel, and where the dynamics overflows.
    """
    k = _joint(kernels, y)
    start = k.nngp / checks.number("gamma0", gamma0, above=0.0) ** 2
    return _trained("deep ensemble", k.ntk, start, k.y, training)


def random_network_distillation(kernels: Kernels, points: int, training: Training | None = None, gamma0: float = 1.0) -> Predictive:
    """Error of a network trained to imitate another random one on the training points (KU.7; Burda et al., arXiv:1810.12894).

    The difference of the two is trained from GP(0, 2 NNGP) to zero: ``variance`` is the expected squared error at the test
    points, twice the variance of the deep ensemble; ``mean`` is zero.

    Args:
        kernels: over training and test points.
        points: number of training points, P.
        training, gamma0: as for :func:`deep_ensemble`.

    Raises:
        InputError: as :func:`deep_ensemble`.
    """
    points = checks.integer("points", points, minimum=1)
    k = _joint(kernels, np.zeros(points))
    predictor = target = k.nngp / checks.number("gamma0", gamma0, above=0.0) ** 2
    return _trained("random network distillation", k.ntk, predictor + target, k.y, training)


def _trained(name: str, kernel: np.ndarray, start: np.ndarray, y: np.ndarray, training: Training | None) -> Predictive:
    """Without penalty, to convergence or to the end of a training rule."""
    meaning = "law of an ensemble, no posterior"
    if training is None:
        return _affine(f"{name}, trained to convergence", meaning, kernel, start, y)
    checks.instance("training", training, (GradientDescent, GradientFlow), "a training rule, or None for convergence")
    checks.instance("training.loss", training.loss, SquaredError, "squared error", "tp.solve has the ensembles of other losses")
    points = len(y)
    if isinstance(training, GradientDescent):
        rate = checks.number("training.lr", training.lr, minimum=0.0, hint="one learning rate for all matrices; tp.solve takes several")
        end, name = float(training.steps), f"{name} after {training.steps} steps of rate {rate:g}"
    else:
        rate, end, name = 1.0, training.time, f"{name} at time {training.time:g}"
    influence = rate * kernel[points:, :points] @ solver_at(rate * kernel[:points, :points], training, end)
    mean, covariance = _moments(influence, start, y)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError("training.lr", rate, "a stable learning rate", "the dynamics diverges and overflows: lower lr, or fewer steps")
    return Predictive(name, meaning, mean, covariance)


def sample_then_optimise(kernels: Kernels, y: Any, noise: float = 0.0) -> Predictive:
    """Networks whose readout alone is trained: a sample of the NNGP posterior each (KU.5; Matthews et al. 2017, Lee et al. 2019).

    Args:
        kernels: over training and test points.
        y: labels, (P,) or (P, K).
        noise: s^2 >= 0. Each member minimises the sum of squares against labels with noise of that variance, plus s^2 times
            the squared distance of the readout from its initial values (in units of their standard deviation); 0 trains to
            interpolation.

    Raises:
        InputError: as :func:`nngp_posterior`.
    """
    k = _joint(kernels, y)
    noise = checks.number("noise", noise, minimum=0.0)
    return _affine(
        f"sample-then-optimise, noise {noise:g}", "samples of the posterior of GP(0, NNGP)", k.nngp, k.nngp, k.y, noise, label_noise=noise
    )


def randomised_prior(kernels: Kernels, y: Any, noise: float = 0.0) -> Predictive:
    """Networks plus a frozen random function that makes their start GP(0, NTK) (KU.6; He et al., arXiv:2007.05864, "NTKGP").

    Args:
        kernels: over training and test points.
        y: labels, (P,) or (P, K).
        noise: s^2 >= 0 of the penalty and of the labels, as in :func:`sample_then_optimise`; 0 trains to interpolation.

    Raises:
        InputError: as :func:`ntk_gp`; and where NTK - NNGP is no covariance, so that there is no such frozen function.
    """
    k = _joint(kernels, y)
    noise = checks.number("noise", noise, minimum=0.0)
    frozen = covariance_matrix("ntk - nngp", k.ntk - k.nngp, size=float(np.abs(k.ntk).max()))
    return _affine(
        f"randomised prior, noise {noise:g}",
        "samples of the posterior of GP(0, NTK)",
        k.ntk,
        k.nngp + frozen,
        k.y,
        noise,
        label_noise=noise,
    )


def anchored_ensemble(kernels: Kernels, y: Any, penalty: float) -> Predictive:
    """Networks held to their initial parameters, trained on labels with noise (KU.6; Pearce et al., arXiv:1810.05546).

    Each member minimises ``sum (f - y - e)^2 / 2 + penalty |theta - theta_0|^2 / 2`` with e of variance ``penalty``, to convergence
    (each square over the relative learning rate of its parameter). Its start is GP(0, NNGP): the mean is that of the NTK-GP
    posterior with noise ``penalty``, the covariance is not (:func:`randomised_prior` has both).

    Args:
        kernels: over training and test points.
        y: labels, (P,) or (P, K).
        penalty: b > 0.

    Raises:
        InputError: for malformed arrays, asymmetric or indefinite kernels.
    """
    k = _joint(kernels, y)
    penalty = checks.number("penalty", penalty, above=0.0, hint="without penalty it is deep_ensemble(kernels, y)")
    return _affine(
        f"anchored ensemble, penalty {penalty:g}", "law of an ensemble, no posterior", k.ntk, k.nngp, k.y, penalty, label_noise=penalty
    )


def compare_uncertainties(kernels: Kernels, y: Any, noise: float = 0.0) -> UncertaintyTable:
    """Every method on the same data, side by side.

    Args:
        kernels: over training and test points.
        y: labels, (P,) or (P, K).
        noise: s^2 >= 0 for the methods that have one, and the penalty of the anchored ensemble (left out at 0, where it is the
            deep ensemble). Deep ensemble and distillation train to convergence.

    Raises:
        InputError: as the methods.
    """
    k = _joint(kernels, y)
    rows = [nngp_posterior(k, y, noise), sample_then_optimise(k, y, noise), deep_ensemble(k, y), ntk_gp(k, y, noise)]
    rows.append(randomised_prior(k, y, noise))
    if noise > 0:
        rows.append(anchored_ensemble(k, y, noise))
    rows.append(random_network_distillation(k, len(k.y)))
    return UncertaintyTable(tuple(rows))
