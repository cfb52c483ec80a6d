"""Training in function space: f moves by the constant tangent kernel times the error (``theory/kernel_training.md``).

Discrete time: f(t + 1) = f(t) + K e(t) + momentum (f(t) - f(t - 1)); flow: df/dt = K e; with e = -p dl/df on the training
points, K all points by training points; minibatches and schedules step by step. The mean over random initial functions is reported
with its covariance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import BudgetError, InputError
from tp_solver.kernel_regime.affine import affine_trajectory, covariance_at, is_affine, solver_at
from tp_solver.kernel_regime.compute import KernelSet, kernels
from tp_solver.kernel_regime.covariance import covariance_matrix
from tp_solver.kernel_regime.filters import whole_steps
from tp_solver.kernel_regime.sampled import REPLICATES, sampled_trajectory
from tp_solver.kernel_regime.spectrum import KernelModes, kernel_modes
from tp_solver.kernel_regime.trajectory import KernelTrajectory, point_slopes
from tp_solver.limit.spec import limit_spec
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Program
from tp_solver.program.training import GradientDescent, GradientFlow, Training, assign_rates, require_gradients_alone

MEMORY = 2**31
"""Bytes that the stored covariances may take."""
_RULE = "tp.GradientDescent(lr=0.1, steps=100)"


def dynamics(
    kernel: np.ndarray,
    y: np.ndarray,
    training: Training,
    f0_covariance: np.ndarray | None = None,
    draws: int = 2048,
    seed: int = 0,
    y_test: np.ndarray | None = None,
) -> KernelTrajectory:
    """Mean and covariance of f in the kernel regime at all reported times.

    Squared error (any loss whose gradient is f - y) in closed form, mean and covariance alike. For other losses the exact
    map is iterated (for flow: integrated, errors below 1e-8) over quasi-random antithetic initial functions in 8 independent
    scramblings, or once where the initial function is zero.

    Args:
        kernel: tangent kernel over all points (training points first), learning rates included, (Pa, Pa). For flow: rates
            per unit of time.
        y: targets as the loss reads them, (P,) or (P, K) with P <= Pa; outputs share the kernel and are independent at start.
        training: steps (or time), momentum and loss; its learning rate is not read, as the kernel holds it.
        f0_covariance: covariance of the initial function, (Pa, Pa); at strength gamma0 it is the ``nngp`` kernel over gamma0^2.
            None: f starts at zero. At gamma0 = 0 that covariance has no limit: pass None for the centred dynamics (for
            squared error its mean is the mean at every gamma0).
        draws: number of initial functions for losses without a closed form, rounded up to 16 times a power of two.
        seed: of the scramblings.
        y_test: targets of the other points, for ``loss_test`` only, (Pa - P,) or (Pa - P, K).

    Raises:
        InputError: for malformed arrays. BudgetError: if the covariances would not fit, or a flow needs too many steps.
    """
    kernel = covariance_matrix("kernel", kernel)
    y = checks.array("y", y, ndim=(1, 2), hint="y is (P,) or (P, K)")
    y = y.reshape(len(y), -1)
    points, all_points = len(y), len(kernel)
    if points > all_points:
        raise InputError("y", f"{points} labels", f"at most {all_points}, the points of the kernel", "training points come first")
    checks.instance("training", training, (GradientDescent, GradientFlow), "a training rule", _RULE)
    require_gradients_alone(training, "the kernel regime")
    labels = y
    if y_test is not None:
        held = checks.array("y_test", y_test, ndim=(1, 2), hint="y_test is (Pa - P,) or (Pa - P, K)")
        held = held.reshape(len(held), -1)
        if held.shape != (all_points - points, y.shape[1]):
            raise InputError(
                "y_test", f"shape {held.shape}", f"shape {(all_points - points, y.shape[1])}", "one row per other point of the kernel"
            )
        labels = np.concatenate([y, held])
    draws = checks.integer("draws", draws, minimum=2 * REPLICATES)
    seed = checks.integer("seed", seed, minimum=0)
    start = None if f0_covariance is None else _alike("f0_covariance", f0_covariance, all_points)
    affine = is_affine(training.loss, y.shape[1])
    stored = (training.steps + 1) * all_points**2 * 8 * (1 if affine else y.shape[1])
    if stored > MEMORY and start is not None:
        raise BudgetError(
            "f_cov", f"{stored / 2**30:.1f} GiB", f"at most {MEMORY / 2**30:.0f} GiB", "fewer steps or test points, or a centred run"
        )
    if affine:
        return affine_trajectory(kernel, y, labels, training, start)
    return sampled_trajectory(kernel, y, labels, training, start, draws, seed)


def _alike(field: str, value: Any, points: int) -> np.ndarray:
    covariance = covariance_matrix(field, value)
    if len(covariance) != points:
        raise InputError(field, f"shape {covariance.shape}", f"shape {(points, points)}, like the kernel", "give it over all points")
    return covariance


def rated_kernels(
    net: Program, parameterization: Parameterization, rates: Mapping[str, float], X: np.ndarray, X2: np.ndarray | None = None
) -> tuple[KernelSet, np.ndarray]:
    """Kernels (of every layer only where rates differ), and the tangent kernel with a learning rate per matrix."""
    several = len(set(rates.values())) > 1
    found = kernels(net, parameterization, X, X2, layers=several)
    return found, rated_ntk(found, rates)


def rated_ntk(found: KernelSet, rates: Mapping[str, float]) -> np.ndarray:
    """The tangent kernel with a learning rate per matrix: the sum of its terms, each times the rate."""
    if len(set(rates.values())) == 1:
        return next(iter(rates.values())) * found.ntk
    return np.sum([rates[name] * part for name, part in found.parts.items()], axis=0)


def rates_of(training: Training, program: Program) -> dict[str, float]:
    """The learning rate of every matrix; one for flow, whose time takes the place of lr times steps."""
    return training.rates(program) if isinstance(training, GradientDescent) else assign_rates(1.0, program)


@dataclass(frozen=True)
class FunctionMoments:
    """Mean and covariance of the function over initialisations at one time.

    Attributes:
        f: mean on the training points, (P,) or (P, K) like the labels; f_test: on the other points.
        f_cov: covariance over all points, training points first, (Pa, Pa), the same for every output; (Pa, Pa, K) for losses
            without closed form and several outputs; None for a start at zero.
        f_stderr: Monte-Carlo standard error of the mean on all points, (Pa,) or (Pa, K); zero where exact.
    """

    f: np.ndarray
    f_test: np.ndarray
    f_cov: np.ndarray | None
    f_stderr: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class KernelDynamics:
    """Training in function space with kernels that are given: an infinitely wide net in the kernel regime, or any fixed kernel.

    Full batch, ``Loss = sum_mu l(f_mu, y_mu) / P``; descent moves f by lr K e, flow at the rate K e, with e = -(1/P) dl/df
    (``theory/kernel_training.md``; Jacot et al., arXiv:1806.07572; Lee et al., arXiv:1902.06720). Prints the modes as a table.

    Args:
        ntk: tangent kernel over all points, training points first, the layers' eta included and lr not, (Pa, Pa). For
            training of the last layer alone give the readout's term of it: the ensemble then ends as the posterior of the
            Gaussian process with kernel ``nngp``.
        y: labels of the training points as the loss reads them, (P,) or (P, K), P <= Pa.
        training: rule and loss; descent with one lr for everything (:meth:`of` takes one per matrix).
        nngp: covariance of the initial function, (Pa, Pa), e.g. the NNGP kernel over gamma0^2; None for a start at zero.
        draws, seed: of initial functions, for losses without closed form (see :func:`dynamics`).

    Raises:
        InputError: for kernels that are not symmetric positive semidefinite or do not match, labels that the loss does not
            read, or several learning rates.
    """

    ntk: np.ndarray
    y: np.ndarray
    training: Training
    nngp: np.ndarray | None = None
    draws: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        checks.instance("training", self.training, (GradientDescent, GradientFlow), "a training rule", _RULE)
        require_gradients_alone(self.training, "the kernel regime")
        if isinstance(self.training, GradientDescent) and not isinstance(self.training.lr, float):
            raise InputError("training.lr", self.training.lr, "one number", "KernelDynamics.of(net, ...) takes a rate per matrix")
        object.__setattr__(self, "ntk", covariance_matrix("ntk", self.ntk))
        y = self.training.loss.labels(checks.array("y", self.y, ndim=(1, 2), hint="y is (P,) or (P, K)"), "y")
        object.__setattr__(self, "y", y)
        if len(y) > len(self.ntk):
            raise InputError("y", f"{len(y)} labels", f"at most {len(self.ntk)}, the points of ntk", "training points come first")
        if self.nngp is not None:
            object.__setattr__(self, "nngp", _alike("nngp", self.nngp, len(self.ntk)))
        checks.integer("draws", self.draws, minimum=2 * REPLICATES)
        checks.integer("seed", self.seed, minimum=0)

    @classmethod
    def of(
        cls, net: Program, parameterization: Parameterization, training: Training, X: Any, y: Any, X_test: Any = None, gamma0: float = 1.0
    ) -> KernelDynamics:
        """The dynamics of a program's kernels at initialisation, lr per matrix included.

        Several learning rates are kept as one, the largest, which ``critical_lr`` then refers to, with the kernel's terms in
        proportion.

        Args:
            net: any program with kernels, convolutional ones too.
            X: (P, D), or (P, *grid, channels); X_test: the same of other points, or None.
            gamma0: divides the initial function (``theory/notation.md``, NO.2); 0 for a start at zero.

        Raises:
            InputError, ProgramError: naming the argument.
        """
        checks.instance("training", training, (GradientDescent, GradientFlow), "a training rule", _RULE)
        gamma0 = checks.number("gamma0", gamma0, minimum=0.0)
        checks.instance("net", net, Program, "a program such as tp.mlp(depth=3, activation=tp.relu)")
        X = checks.array("X", X, ndim=tuple({2, 2 + len(net.grid)}), hint="X is (P, D), or (P, *grid, channels)")
        both = X if X_test is None else np.concatenate([X, _rows_like(X, X_test)])
        rates = rates_of(training, net)
        found, kernel = rated_kernels(net, parameterization, rates, both)
        largest = max(rates.values()) or 1.0
        if isinstance(training, GradientDescent):
            training = replace(training, lr=max(rates.values()))
        random = gamma0 > 0 and limit_spec(net, parameterization).random_output
        return cls(kernel / largest, y, training, found.nngp / gamma0**2 if random else None)

    @property
    def points(self) -> int:
        """P, the number of training points."""
        return len(self.y)

    @property
    def lr(self) -> float:
        """The learning rate of descent; one for flow."""
        return self.training.lr if isinstance(self.training, GradientDescent) else 1.0

    @property
    def critical_lr(self) -> float:
        """The largest learning rate that converges: see :func:`tp_solver.kernel_regime.spectrum.critical_rate`."""
        return self.modes.critical_lr

    @cached_property
    def modes(self) -> KernelModes:
        """Directions of the training set that learn independently, with their rates; prints as a table and plots."""
        return kernel_modes(self.ntk[: self.points, : self.points], self._initial_error, self.training)

    def run(self, y_test: Any = None) -> KernelTrajectory:
        """Mean and covariance at all reported times, and losses; see :func:`dynamics`.

        Args:
            y_test: labels of the other points, for the test loss only, (M,) or (M, K).

        Raises:
            InputError, BudgetError: as :func:`dynamics`.
        """
        held = None if y_test is None else self.training.loss.labels(checks.array("y_test", y_test, ndim=(1, 2)), "y_test")
        return dynamics(self.lr * self.ntk, self.y, self.training, self.nngp, self.draws, self.seed, held)

    def at(self, time: float) -> FunctionMoments:
        """Mean and covariance at one time, in closed form for squared error.

        Args:
            time: steps of descent or time of flow, whatever the rule reports; math.inf for the end of training (squared error
                only: directions with eigenvalue zero stay as they were, those below P times the machine precision too).

        Raises:
            InputError: for a time that the rule does not have, or infinity where training diverges or has no end.
            BudgetError: as :func:`dynamics`.
        """
        if not self._affine:
            k = self._until(time)
            row = -1 if time > 0 else 0
            f_cov = None if self.nngp is None else k.f_cov[row]
            if f_cov is not None and k.f.shape[-1] == 1:
                f_cov = f_cov[..., 0]
            return FunctionMoments(self._shaped(k.f[row]), self._shaped(k.f_test[row]), f_cov, self._shaped(k.f_stderr[row]))
        influence = self._influence(self.ntk[:, : self.points], time)
        f = self._shaped(influence @ self._columns)
        f_cov = None
        if self.nngp is not None:
            prior = self.nngp[:, : self.points]
            f_cov = covariance_at(self.nngp, prior, prior[: self.points], influence)
        return FunctionMoments(f[: self.points], f[self.points :], f_cov, np.zeros_like(f))

    def predict(self, ntk_new: Any, time: float, nngp_new: Any = None, prior_variance: Any = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean and variance at new points, in blocks of any size.

        Args:
            ntk_new: tangent kernel between new and training points, (M, P), without lr.
            time: as for :meth:`at`.
            nngp_new, prior_variance: covariance of the initial function between new and training points, (M, P), and its
                variance at the new points, (M,); without them no variance is computed.

        Returns:
            Mean (M,) or (M, K), and variance (M,) or None. For losses without closed form only the mean: put points whose
            variance matters among the test points.

        Raises:
            InputError: for arrays that do not match, or as :meth:`at`.
        """
        ntk_new = _matrix("ntk_new", ntk_new, self.points)
        if (nngp_new is None) != (prior_variance is None) or (nngp_new is not None and (self.nngp is None or not self._affine)):
            raise InputError(
                "nngp_new", "one of nngp_new and prior_variance, or a variance that has no closed form here", "both or none",
                "a variance needs squared error and dynamics that were given nngp",
            )  # fmt: skip
        if not self._affine:
            return self._shaped(self.lr * ntk_new @ self._until(time).coefficients.mean(axis=0) * (time > 0)), None
        influence = self._influence(ntk_new, time)
        mean = self._shaped(influence @ self._columns)
        if nngp_new is None or self.nngp is None:
            return mean, None
        nngp_new = _matrix("nngp_new", nngp_new, self.points)
        prior_variance = checks.array("prior_variance", prior_variance, ndim=(1,), hint="prior_variance is (M,)")
        if not len(ntk_new) == len(nngp_new) == len(prior_variance):
            raise InputError("nngp_new", f"{len(nngp_new)} rows", f"{len(ntk_new)} rows, like ntk_new", "one row per new point")
        return mean, covariance_at(prior_variance, nngp_new, self.nngp[: self.points, : self.points], influence)

    @property
    def _columns(self) -> np.ndarray:
        return self.y.reshape(len(self.y), -1)

    @property
    def _affine(self) -> bool:
        return is_affine(self.training.loss, self._columns.shape[1])

    @property
    def _initial_error(self) -> np.ndarray:
        with jax.enable_x64(True):
            y = jnp.asarray(self._columns)
            return -np.asarray(point_slopes(self.training.loss, y, jnp.zeros((1, *y.shape)))[0])

    def _influence(self, ntk: np.ndarray, time: float) -> np.ndarray:
        """B with f = f_0 + B (y - f_0), (n, P)."""
        return self.lr * ntk @ solver_at(self.lr * self.ntk[: self.points, : self.points], self.training, time)

    def _until(self, time: float) -> KernelTrajectory:
        """The dynamics to one time, for losses without closed form."""
        value = checks.number(
            "time", time, minimum=0.0, hint=f"the {self.training.loss.name} loss has no closed form, and its minimum may lie at infinity"
        )
        if isinstance(self.training, GradientFlow):
            rule: Training = GradientFlow(value or 1.0, 1, self.training.loss)
        elif not self.training.even:
            rule = self.training
            if whole_steps(value) not in (0, rule.steps):
                raise InputError("time", value, f"0 or {rule.steps}, the end of the rule", "run() has the steps between")
        else:
            rule = replace(self.training, steps=max(whole_steps(value), 1))
        return dynamics(self.lr * self.ntk, self.y, rule, self.nngp, self.draws, self.seed)

    def _shaped(self, f: np.ndarray) -> np.ndarray:
        return f[..., 0] if self.y.ndim == 1 else f

    def __str__(self) -> str:
        others = len(self.ntk) - self.points
        start = "starting at zero" if self.nngp is None else "over random initial functions"
        lines = [f"training in function space, {self.points} training and {others} other points, {start}"]
        if isinstance(self.training, GradientDescent):
            lines.append(f"  lr is {self.lr / self.critical_lr:.4g} times the critical one")
        return "\n".join([*lines, str(self.modes)])

    __repr__ = __str__


def _matrix(field: str, value: Any, points: int) -> np.ndarray:
    out = checks.array(field, value, ndim=(2,), hint=f"{field} is (M, P)")
    if out.shape[1] != points:
        raise InputError(field, f"{out.shape[1]} columns", f"{points} columns, one per training point", "new points are rows")
    return out


def _rows_like(X: np.ndarray, X_test: Any) -> np.ndarray:
    out = checks.array("X_test", X_test, ndim=(X.ndim,), hint="one row per point, like X")
    if out.shape[1:] != X.shape[1:]:
        raise InputError("X_test", f"shape {out.shape}", f"(M, {', '.join(map(str, X.shape[1:]))}), like X", "use the same features")
    return out
