"""Tensor programs and dynamical mean-field theory of wide neural networks.

``limit`` derives what happens as the width goes to infinity, ``solve`` solves it, ``simulate`` trains real finite-width nets
under the same definition, ``compare`` shows both side by side.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tp_solver.compare import Comparison, compare
from tp_solver.errors import BudgetError, FileFormatError, InputError, ParameterizationError, ProgramError, RangeError, TPError
from tp_solver.finite.ensemble import Ensemble
from tp_solver.limit.derive import limit
from tp_solver.limit.equations import LimitEquations
from tp_solver.limit.regime import Regime, RegimeReport, regime
from tp_solver.program.architectures import cnn, mlp
from tp_solver.program.losses import CrossEntropy, Logistic, SquaredError
from tp_solver.program.parameterization import D, N, Parameterization, integrable, mean_field, muP, ntk, standard, standard_1n
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.tracing import (
    average,
    bias,
    conv,
    dense,
    entrywise,
    global_pool,
    hidden_matrix,
    input_matrix,
    local,
    pool,
    pooled,
    program,
    readout,
)
from tp_solver.program.training import GradientDescent, GradientFlow
from tp_solver.solve.dispatch import solve
from tp_solver.solve.methods import FixedPoint, KernelRegime, Linear, March
from tp_solver.solve.solution import Solution, Status
from tp_solver.storage import save_ensemble
from tp_solver.symbols.activation import Activation, erf, gelu, leaky_relu, linear, relu, sin, tanh

if TYPE_CHECKING:
    from tp_solver.coordinates import CoordinateCheck, coordinate_check
    from tp_solver.finite.simulate import simulate
    from tp_solver.kernel_regime.compute import KernelSet, kernel_blocks, kernel_function, kernels
    from tp_solver.restore import load

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "BudgetError",
    "Comparison",
    "CoordinateCheck",
    "CrossEntropy",
    "D",
    "Ensemble",
    "FileFormatError",
    "FixedPoint",
    "GradientDescent",
    "GradientFlow",
    "InputError",
    "KernelRegime",
    "KernelSet",
    "LimitEquations",
    "Linear",
    "Logistic",
    "March",
    "N",
    "Parameterization",
    "ParameterizationError",
    "Program",
    "ProgramError",
    "RangeError",
    "Regime",
    "RegimeReport",
    "Solution",
    "SquaredError",
    "Status",
    "TPError",
    "Task",
    "average",
    "bias",
    "cnn",
    "compare",
    "conv",
    "coordinate_check",
    "dense",
    "entrywise",
    "erf",
    "gelu",
    "global_pool",
    "hidden_matrix",
    "input_matrix",
    "integrable",
    "kernel_blocks",
    "kernel_function",
    "kernels",
    "leaky_relu",
    "limit",
    "linear",
    "load",
    "local",
    "mean_field",
    "mlp",
    "muP",
    "ntk",
    "pool",
    "pooled",
    "program",
    "readout",
    "regime",
    "relu",
    "save_ensemble",
    "simulate",
    "sin",
    "solve",
    "standard",
    "standard_1n",
    "tanh",
]

_AT_FIRST_USE = {
    "CoordinateCheck": "tp_solver.coordinates",
    "coordinate_check": "tp_solver.coordinates",
    "KernelSet": "tp_solver.kernel_regime.compute",
    "kernel_blocks": "tp_solver.kernel_regime.compute",
    "kernel_function": "tp_solver.kernel_regime.compute",
    "kernels": "tp_solver.kernel_regime.compute",
    "load": "tp_solver.restore",
    "simulate": "tp_solver.finite.simulate",
}
"""Names whose modules import jax, which alone takes longer than everything else here."""


def __getattr__(name: str) -> Any:
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_AT_FIRST_USE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
