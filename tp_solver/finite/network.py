"""One finite net as a record: a program, the numbers of its parameterization, and its trained arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.finite.dense import Array, Net, Numbers, Weights
from tp_solver.finite.experiment import DTYPES, precision, refuse_symbols
from tp_solver.finite.initial import draw_weights, numbers_at
from tp_solver.program.losses import SquaredError
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.positions import channels_of
from tp_solver.program.statements import Program
from tp_solver.program.training import assign_rates


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("w", "numbers"),
    meta_fields=("net", "parameterization", "dimension", "width", "gamma0"),
)
@dataclass(frozen=True, eq=False, repr=False)
class FiniteNet:
    """A finite net, f = (1/gamma0) x output of its program; :func:`draw` makes one.

    For jax it is a tree whose leaves are the arrays and the numbers: functions of a net can be compiled, vectorised and
    differentiated.

    Attributes:
        w: the trained arrays by matrix; W = alpha n^-a w.
        numbers: multipliers alpha n^-a, and rates gamma0^2 eta n^-c (learning rate one).
        net: the program as it is run, with its number of outputs.
        parameterization, dimension, width, gamma0: what the net was drawn with.
    """

    w: Weights
    numbers: Numbers
    net: Net
    parameterization: Parameterization
    dimension: int
    width: int
    gamma0: float

    @property
    def program(self) -> Program:
        """The program that the net runs."""
        return self.net.program

    @property
    def outputs(self) -> int:
        """K, the number of outputs."""
        return self.net.outputs

    @property
    def channels(self) -> int:
        """Entries of an input at each position; the dimension itself without a grid."""
        return channels_of(self.program.grid, self.dimension)

    @property
    def dtype(self) -> np.dtype:
        """Of all arrays, float64 or float32."""
        return np.dtype(self.numbers.gamma0.dtype)

    def predict(self, X: Any) -> np.ndarray:
        """f at the inputs X (P, D), shape (P, K).

        Raises:
            InputError: if X is no finite (P, D) array.
        """
        x = self.columns("X", X)
        with precision():
            return on_host(_predictions(self, x))

    def moved(self, w: Weights) -> FiniteNet:
        """The same net with other trained arrays."""
        return replace(self, w=w)

    def columns(self, field: str, X: Any) -> Array:
        """Inputs X (P, D) as the device array (D, P) that programs take.

        Raises:
            InputError: naming ``field``.
        """
        if not isinstance(X, jax.Array):
            X = checks.array(field, X, ndim=(2,), hint=f"{field} is (P, D), one row per input")
        elif X.ndim != 2 or X.size == 0:
            raise InputError(field, f"an array of shape {X.shape}", "a non-empty (P, D) array", "one row per input")
        if X.shape[1] != self.dimension:
            wanted = f"inputs of dimension {self.dimension}"
            raise InputError(field, f"inputs of dimension {X.shape[1]}", wanted, f"the net was drawn with dimension={self.dimension}")
        with precision():
            return jnp.asarray(X, self.dtype).T

    def __repr__(self) -> str:
        return (
            f"FiniteNet({self.program.name}, {self.parameterization.name}, width {self.width}, "
            f"inputs of dimension {self.dimension}, outputs {self.outputs}, gamma0 {self.gamma0:g})"
        )


def draw(
    net: Any,
    parameterization: Any,
    dimension: Any,
    width: Any,
    seed: Any = 0,
    outputs: Any = 1,
    gamma0: Any = 1.0,
    dtype: Any = "float64",
) -> FiniteNet:
    """Draw a finite net at initialisation.

    Args:
        net: a program, e.g. ``tp.mlp(depth=3, activation=tp.tanh)``.
        parameterization: exponents and constants, without free symbols.
        dimension: D, of the inputs (positions times channels over a grid).
        width: n.
        seed: the label of the net; the same net that :func:`tp_solver.simulate` trains at this width under this label (and its
            own ``seed=0``).
        outputs: K.
        gamma0: f = output / gamma0 > 0.
        dtype: "float64" or "float32" (the same draws, rounded).

    Raises:
        InputError, ProgramError, ParameterizationError: naming the argument, before anything is drawn.
    """
    blank = blueprint(net, parameterization, dimension, width, outputs, gamma0, dtype)
    label = checks.integer("seed", seed, minimum=0)
    return blank.moved({name: w[0] for name, w in stacked_weights(blank, (label,)).items()})


def blueprint(net: Any, parameterization: Any, dimension: Any, width: Any, outputs: Any, gamma0: Any, dtype: Any) -> FiniteNet:
    """A checked net without arrays (errors as :func:`draw`)."""
    net = checks.instance("net", net, Program, "a program such as tp.mlp(depth=3, activation=tp.tanh)")
    parameterization = checks.instance("parameterization", parameterization, Parameterization, "a Parameterization such as tp.ntk")
    refuse_symbols(net, parameterization)
    dimension = checks.integer("dimension", dimension, minimum=1, hint="dimension is the number of entries of an input")
    width = checks.integer("width", width, minimum=1)
    outputs = checks.integer("outputs", outputs, minimum=1)
    gamma0 = checks.number("gamma0", gamma0, above=0.0, hint="gamma0 = 0 is the kernel limit, which has no finite net")
    kind = np.dtype(checks.one_of("dtype", dtype, DTYPES))
    channels = channels_of(net.grid, dimension)
    run = Net(net, SquaredError(), outputs)
    run.compile_expressions()
    numbers = numbers_at(run, parameterization, width, channels, gamma0, assign_rates(1.0, net), kind)
    return FiniteNet({}, numbers, run, parameterization, dimension, width, gamma0)


def stacked_weights(net: FiniteNet, labels: Sequence[int]) -> Weights:
    """Initial arrays of the nets with these labels, with a leading axis of nets."""
    with precision():
        return draw_weights(net.net, net.parameterization, net.width, net.channels, 0, labels, net.dtype)


def on_host(value: Array) -> np.ndarray:
    """A numpy array; inside a jax transformation the traced value itself, so that records can be used there."""
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return value  # type: ignore[return-value]


@jax.jit
def _predictions(net: FiniteNet, x: Array) -> Array:
    return net.net.predict(net.w, net.numbers, x)
