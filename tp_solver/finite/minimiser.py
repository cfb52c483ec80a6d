"""Which of the many functions that fit the data gradient descent reaches, in the linearised regime.

Nonnenmacher, Reeb & Steinwart 2021 (arXiv 2011.02408). A linearised net interpolates its training points in many ways. Gradient
descent in any batches moves inside the span of their gradients, so all of its runs end at the interpolation nearest to the initial
weights in the metric of the rates. The loss is the squared error throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.finite.linearised import LinearisedNet, stacked
from tp_solver.program.losses import SquaredError
from tp_solver.program.task import Task


@dataclass(frozen=True, eq=False)
class Minimiser:
    """Where gradient descent on a linearised net ends; :func:`minimiser` makes one.

    With K the tangent kernel, f = f_0(x) + K(x, X) K(X, X)^+ (y - f_0(X)), the sum of two parts: what interpolates the labels and
    what is left of the initial function.

    Attributes:
        f, f_test: predictions at the end, shaped like the labels, (P,) or (P, K).
        interpolation: K(x, X) K(X, X)^+ y on the test points.
        initial: f_0(x) - K(x, X) K(X, X)^+ f_0(X) on the test points; for a net that is homogeneous of degree L in its weights it
            grows as the L-th power of the initial scale. Zero where f_0 is subtracted.
        y_test: test labels, or None.
        rank: of K(X, X), at most P K.
        residual: largest |f - y| on the training points: above rounding only if K cannot reach the labels.
    """

    f: np.ndarray
    f_test: np.ndarray
    interpolation: np.ndarray
    initial: np.ndarray
    y_test: np.ndarray | None
    rank: int
    residual: float

    @property
    def signal(self) -> float:
        """Root mean square of the predictions on the test points, the unit of distances between minimisers."""
        return _rms(self.f_test)

    @property
    def mse(self) -> float:
        """Mean squared error on the test points; NaN without test labels."""
        return _mse(self.f_test, self.y_test)

    @property
    def mse_interpolation(self) -> float:
        """The same of the interpolating part alone, what f_0 = 0 would leave."""
        return _mse(self.interpolation, self.y_test)

    @property
    def mse_initial(self) -> float:
        """Mean square of the part that the initial function induces."""
        return float(np.mean(self.initial**2))

    def __str__(self) -> str:
        cross = self.mse - self.mse_interpolation - self.mse_initial
        return "\n".join(
            [
                f"minimiser of gradient descent: rank {self.rank}, largest training residual {self.residual:.1e}",
                f"{'test error, mean square':<28} {self.mse:>10.4g}",
                f"{'  of the interpolation':<28} {self.mse_interpolation:>10.4g}",
                f"{'  of the initial function':<28} {self.mse_initial:>10.4g}",
                f"{'  twice their product':<28} {cross:>10.4g}",
            ]
        )


def minimiser(twin: Any, task: Any, centred: bool = False) -> Minimiser:
    """The function that gradient descent on the squared error reaches, in closed form: any batches in any order, with momentum or
    without, and gradient flow, whatever the rate, as long as it converges.

    f = f_0 + Phi(x) Phi(X)^+ (y - f_0(X)) with features Phi = df/dw sqrt(gamma0^2 eta n^-c), by contractions of the tangent
    kernel: the features are never formed.

    Args:
        twin: a linearised net, ``tp.linearise(tp.draw(...))``.
        task: with test inputs.
        centred: subtract f_0 on all points before the loss.

    Raises:
        InputError: naming the argument.
    """
    twin, task, y = fitting(twin, task)
    centred = checks.flag("centred", centred)
    if task.X_test is None:
        raise InputError("task", "a task without test points", "a task with X_test", "all minimisers agree on the training points")
    points = np.concatenate([task.X, task.X_test])
    size = y.size
    reach = stacked(twin.kernel(points, task.X))
    start = twin.predict(points)
    start = np.zeros_like(start) if centred else start
    kernel = (reach[:size] + reach[:size].T) / 2
    values, vectors = np.linalg.eigh(kernel)
    kept = values > size * np.finfo(twin.of.dtype).eps * max(values[-1], 0.0)
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    def spread(labels: np.ndarray) -> np.ndarray:
        """K(x, X) K(X, X)^+ labels on all points."""
        return (reach @ (inverse @ labels.reshape(size))).reshape(start.shape)

    interpolation, initial = spread(y), start - spread(start[: task.P])
    f = interpolation + initial
    scalar = task.scalar(SquaredError())
    return Minimiser(
        shaped(f[: task.P], scalar),
        shaped(f[task.P :], scalar),
        shaped(interpolation[task.P :], scalar),
        shaped(initial[task.P :], scalar),
        task.y_test,
        int(kept.sum()),
        float(np.abs(f[: task.P] - y).max()),
    )


def fitting(twin: Any, task: Any) -> tuple[LinearisedNet, Task, np.ndarray]:
    """A twin and a task that belong together, and the labels as (P, K).

    Raises:
        InputError: naming the argument.
    """
    twin = checks.instance("twin", twin, LinearisedNet, "a linearised net", "tp.linearise(tp.draw(net, tp.ntk, dimension=5, width=512))")
    task = checks.instance("task", task, Task, "a Task such as tp.Task(X, y, X_test, y_test)")
    y = task.y.reshape(task.P, -1)
    if twin.of.dimension != task.D:
        raise InputError("task", f"inputs of dimension {task.D}", f"dimension {twin.of.dimension}", "draw the net for these inputs")
    if y.shape[1] != twin.of.outputs:
        raise InputError("task", f"labels with {y.shape[1]} outputs", f"{twin.of.outputs} outputs", "draw the net with as many outputs")
    return twin, task, y


def shaped(f: np.ndarray, scalar: bool) -> np.ndarray:
    """Predictions (P, K) shaped like labels."""
    return f[:, 0] if scalar else f


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _mse(f: np.ndarray, y: np.ndarray | None) -> float:
    return float("nan") if y is None else float(np.mean((f - y) ** 2))
