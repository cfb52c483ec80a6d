"""The second kernel of the neural tangent hierarchy, and what it says about the drift of the tangent kernel.

``dTheta_t/dt = - (1/P) O_3 (f - y)`` with ``O_3(x, x', x'') = <grad Theta(x, x'), grad f(x'')>`` (Huang & Yau 2019, arXiv
1909.08156; Golikov, Pokonechnyy & Korviakov 2022, arXiv 2208.13614). Derivatives of the kernel are derivatives of the
structured products along gradients, never arrays of the size (weights)^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.finite import tangent
from tp_solver.finite.dense import Array, Weights
from tp_solver.finite.empirical import by_outputs, checked_net, empirical_ntk
from tp_solver.finite.experiment import precision
from tp_solver.finite.network import FiniteNet, on_host


def second_kernel(net: FiniteNet, X: Any, X2: Any = None, X3: Any = None) -> np.ndarray:
    """``O_3 = sum_j rate_j <dTheta(x, x')/dw^j, df(x'')/dw^j>``.

    Args:
        net: from :func:`tp_solver.draw`.
        X, X2: inputs (n1, D), (n2, D) of the kernel; X2 is X by default.
        X3: inputs (n3, D) of the direction; X by default.

    Returns:
        (n1, n2, n3, K, K, K). It is O(1/n) in the NTK parameterization; odd activations without biases make its mean over
        nets vanish, so take the root mean square.

    Raises:
        InputError: for malformed inputs.
    """
    net = checked_net(net)
    x = net.columns("X", X)
    x2 = None if X2 is None else net.columns("X2", X2)
    x3 = x if X3 is None else net.columns("X3", X3)
    with precision():
        return on_host(_second_kernel(net, x, x2, x3))


@dataclass(frozen=True, eq=False)
class Drift:
    """Theta_t - Theta_0 at leading order in 1/n, each (P, P, K, K).

    Attributes:
        first: the integral of O_3 along the linearised flow.
        second: that of O_4, the derivative of O_3. It has the same power of 1/n (Dyer & Gur-Ari 2019, arXiv 1909.11304) and two
            residuals instead of one, so that ``first`` alone is accurate for small residuals only.
    """

    first: np.ndarray
    second: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """first + second; what is left is O(1/n^2)."""
        return self.first + self.second


def predicted_drift(net: FiniteNet, X: Any, y: Any, time: Any) -> Drift:
    """How the tangent kernel moves under gradient flow on ``sum (f - y)^2 / (2 P)`` at learning rate one, from derivatives at its start.

    With e_s the residuals of the linearised flow, ``Theta_t - Theta_0 = - int O_3 e_s ds / P + int int O_4 e_s e_s' ds' ds / P^2``
    over s' < s < t.

    Args:
        net: at its initial weights.
        X, y: the training points (P, D) and labels (P,) or (P, K).
        time: t >= 0.

    Raises:
        InputError: for malformed data or a negative time.
    """
    net = checked_net(net)
    x = net.columns("X", X)
    y = _labels(net, y, x.shape[1])
    time = checks.number("time", time, minimum=0.0) / len(y)
    start = (net.predict(X) - y).ravel()
    kernel = empirical_ntk(net, X).transpose(0, 2, 1, 3).reshape(len(start), len(start))
    rates, modes = np.linalg.eigh(kernel)
    at_start = modes.T @ start
    weight = modes @ (_integral(rates, time) * at_start)
    # a bilinear form in the modes is a sum over its singular vectors: as many second derivatives as residuals, not their square
    u, size, v = np.linalg.svd(_ordered(rates, time) * np.outer(at_start, at_start))
    pairs = [(modes @ a).reshape(y.shape) for a in (u * size).T], [(modes @ a).reshape(y.shape) for a in v]
    with precision():
        first = _first(net, x, jnp.asarray(weight.reshape(y.shape), net.dtype))
        second = _second(net, x, *(jnp.asarray(np.array(p), net.dtype) for p in pairs))
        return Drift(-np.asarray(first), np.asarray(second))


def _integral(rates: np.ndarray, time: Any) -> np.ndarray:
    """int_0^t exp(-rate s) ds."""
    x = rates * time
    small = np.abs(x) < 1e-8
    return time * np.where(small, 1.0, -np.expm1(-np.where(small, 0.0, x)) / np.where(small, 1.0, x))


def _ordered(rates: np.ndarray, time: float) -> np.ndarray:
    """int_0^t exp(-rate_i s) int_0^s exp(-rate_j s') ds' ds, to 1e-10: Gauss-Legendre after s = t v^3, fine where fast modes live."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    v = (1 + nodes) / 2
    s = time * v**3
    return (np.exp(-np.outer(rates, s)) * (1.5 * time * v**2 * weights)) @ np.array([_integral(rates, t) for t in s])


def _labels(net: FiniteNet, y: Any, points: int) -> np.ndarray:
    out = checks.array("y", y, ndim=(1, 2), hint="y is (P,) or (P, K)")
    out = out[:, None] if out.ndim == 1 else out
    if out.shape != (points, net.outputs):
        raise InputError("y", f"an array of shape {np.shape(y)}", f"labels of shape {(points, net.outputs)}", "one row per point of X")
    return out


def _along(net: FiniteNet, x: Array, x2: Array | None, direction: Weights) -> Array:
    """The derivative of the tangent kernel along a direction in the space of the trained arrays."""
    outputs = jnp.eye(net.outputs)

    def kernel(w: Weights) -> Array:
        one = tangent.gradients(net.net, w, net.numbers, x, outputs)
        two = one if x2 is None else tangent.gradients(net.net, w, net.numbers, x2, outputs)
        return by_outputs(net.net, one, two, net.numbers)

    return jax.jvp(kernel, (net.w,), (direction,))[1]


def _ascent(net: FiniteNet, x: Array, weight: Array) -> Weights:
    """rate_j grad_j ``sum weight * f`` for weights (P, K)."""
    slope = jax.grad(lambda w: jnp.sum(weight * net.net.predict(w, net.numbers, x)))(net.w)
    return {name: net.numbers.tangent[name] * s for name, s in slope.items()}


@jax.jit
def _second_kernel(net: FiniteNet, x: Array, x2: Array | None, x3: Array) -> Array:
    P, K = x3.shape[1], net.outputs
    units = jnp.eye(P * K).reshape(P * K, P, K)
    out = jax.lax.map(lambda unit: _along(net, x, x2, _ascent(net, x3, unit)), units)
    return jnp.moveaxis(out.reshape(P, K, *out.shape[1:]), (0, 1), (2, 5))


@jax.jit
def _first(net: FiniteNet, x: Array, weight: Array) -> Array:
    """O_3 applied to weights (P, K) of the third slot."""
    return _along(net, x, None, _ascent(net, x, weight))


@jax.jit
def _second(net: FiniteNet, x: Array, third: Array, fourth: Array) -> Array:
    """O_4 applied to pairs of weights (pairs, P, K) of the third and the fourth slot."""

    def one(pair: tuple[Array, Array]) -> Array:
        def slope(w: Weights) -> Array:
            return _first(net.moved(w), x, pair[0])

        return jax.jvp(slope, (net.w,), (_ascent(net, x, pair[1]),))[1]

    return jnp.sum(jax.lax.map(one, (third, fourth)), axis=0)
