"""The linearised twin of a finite net: f_lin(x; w) = f(x; w0) + df(x; w0)(w - w0), trained by the same rules as the net.

Wide nets in the kernel regime follow their twins (Lee, Xiao, Schoenholz et al. 2019, arXiv 1902.06720). A twin is a net whose
predictions are expanded at the weights that its numbers hold; whatever trains a net trains its twin.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.finite.dense import Array, Net, Numbers, Weights
from tp_solver.finite.empirical import empirical_ntk
from tp_solver.finite.experiment import Experiment, precision
from tp_solver.finite.network import FiniteNet


class Expansion(NamedTuple):
    """The numbers of a twin: those of the net, and where it is expanded."""

    of: Numbers
    origin: Weights

    @property
    def rate(self) -> dict[str, Any]:
        """w <- w - rate dLoss/dw, as for the net."""
        return self.of.rate


@dataclass(frozen=True)
class ExpandedNet(Net):
    """A net whose predictions are affine in the weights: the first-order expansion at the weights that its numbers hold."""

    def predict(self, weights: Weights, numbers: Expansion, x: Array) -> Array:  # type: ignore[override]
        """f_lin at the inputs x (D, P), shape (P, K)."""
        return expanded(self, numbers, jax.tree.map(jnp.subtract, weights, numbers.origin), x)


def expanded(net: Net, numbers: Expansion, move: Weights, x: Array) -> Array:
    """f(x; w0) + df(x; w0) move, shape (P, K), by one product of the Jacobian with a vector."""

    def f(weights: Weights) -> Array:
        return Net.predict(net, weights, numbers.of, x)

    value, slope = jax.jvp(f, (numbers.origin,), (move,))
    return value + slope


@dataclass(frozen=True, eq=False)
class TwinExperiment(Experiment):
    """An experiment with the twin of one net: each has its own origin."""

    origin: Weights

    def numbers(self, width: int) -> Expansion:  # type: ignore[override]
        """Multipliers and rates of the net, and the origin."""
        return Expansion(super().numbers(width), self.origin)


def twin_of(experiment: Experiment, width: int, label: int) -> TwinExperiment:
    """The experiment of the twin of one net, to be marched from the same weights."""
    parts = {f.name: getattr(experiment, f.name) for f in fields(Experiment)}
    net = experiment.net
    parts |= {"net": ExpandedNet(net.program, net.loss, net.outputs), "widths": (width,), "seeds": (label,)}
    origin = {name: w[0] for name, w in experiment.draw(width, (label,)).items()}
    return TwinExperiment(**parts, origin=origin)


@dataclass(frozen=True, eq=False, repr=False)
class LinearisedNet:
    """A net expanded to first order at the weights that it holds; :func:`linearise` makes one.

    Attributes:
        of: the net; its weights are w0.
    """

    of: FiniteNet

    @property
    def net(self) -> ExpandedNet:
        """The expanded program."""
        return ExpandedNet(self.of.net.program, self.of.net.loss, self.of.net.outputs)

    @property
    def numbers(self) -> Expansion:
        """Multipliers and rates, and w0."""
        return Expansion(self.of.numbers, self.of.w)

    def predict(self, X: Any, w: Any = None) -> np.ndarray:
        """f_lin at the inputs X (P, D), shape (P, K).

        Args:
            X: inputs.
            w: weights by matrix, arrays of the shapes of w0; w0 itself by default, where the twin is the net.

        Raises:
            InputError: for inputs of another dimension, or weights that do not fit.
        """
        moved = None if w is None else self._fitting(w)
        x = self.of.columns("X", X)
        with precision():
            at = self.of.w if moved is None else {name: jnp.asarray(v, self.of.dtype) for name, v in moved.items()}
            return np.asarray(_predictions(self.net, at, self.numbers, x))

    def kernel(self, X: Any, X2: Any = None) -> np.ndarray:
        """The tangent kernel, ``sum_j gamma0^2 eta_j n^-c_j <df(x)/dw^j, df(x')/dw^j>``, shape (P, P2, K, K); it never moves.

        Raises:
            InputError: for inputs of another dimension.
        """
        return empirical_ntk(self.of, X, X2)

    def critical_rate(self, X: Any) -> float:
        """2 P / (largest eigenvalue of the kernel on X): full-batch descent on the squared error converges below, diverges above.

        Units of lr. Lee et al. 2019, Section 2; the net itself does not diverge just above, it catapults.

        Raises:
            InputError: for inputs of another dimension, or a kernel that is zero (nothing is trained).
        """
        k = self.kernel(X)
        top = np.linalg.eigvalsh(stacked(k))[-1]
        if not top > 0:
            raise InputError("X", "inputs with a tangent kernel of zero", "a net that can move there", "is every rate eta zero, or X?")
        return float(2 * len(k) / top)

    def _fitting(self, w: Any) -> dict[str, np.ndarray]:
        wanted = {name: v.shape for name, v in self.of.w.items()}
        if not isinstance(w, dict) or {name: np.shape(v) for name, v in w.items()} != wanted:
            shown = {name: np.shape(v) for name, v in w.items()} if isinstance(w, dict) else w
            raise InputError("w", shown, f"arrays by matrix of shapes {wanted}", "move the net's own: twin.of.w")
        return {name: checks.array(f"w[{name!r}]", v, ndim=range(1, 8)) for name, v in w.items()}

    def __repr__(self) -> str:
        return f"LinearisedNet({self.of!r})"


def linearise(net: Any) -> LinearisedNet:
    """The linearised twin of a finite net: its first-order expansion at the weights that it holds.

    Args:
        net: a net, as :func:`tp_solver.draw` makes it, of any program.

    Raises:
        InputError: if it is no finite net.
    """
    net = checks.instance("net", net, FiniteNet, "a finite net", "draw one: tp.draw(tp.mlp(...), tp.ntk, dimension=5, width=512)")
    return LinearisedNet(net)


@partial(jax.jit, static_argnums=0)
def _predictions(net: ExpandedNet, weights: Weights, numbers: Expansion, x: Array) -> Array:
    return net.predict(weights, numbers, x)


def stacked(kernel: np.ndarray) -> np.ndarray:
    """From (P, P2, K, K) to a matrix (P K, P2 K)."""
    rows, columns, outputs, _ = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(rows * outputs, columns * outputs)
