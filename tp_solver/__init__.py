"""Tensor programs and dynamical mean-field theory of wide neural networks.

``limit`` derives what happens as the width goes to infinity, ``solve`` solves it, ``simulate`` trains real finite-width nets
under the same definition, ``compare`` shows both side by side.
"""

from tp_solver.errors import (
    BudgetError,
    FileFormatError,
    InputError,
    ParameterizationError,
    ProgramError,
    RangeError,
    TPError,
)
from tp_solver.finite.ensemble import Ensemble
from tp_solver.finite.simulate import simulate
from tp_solver.limit.derive import limit
from tp_solver.limit.equations import LimitEquations
from tp_solver.limit.regime import Regime, RegimeReport, regime
from tp_solver.program.architectures import mlp
from tp_solver.program.losses import CrossEntropy, Logistic, SquaredError
from tp_solver.program.parameterization import (
    D,
    N,
    Parameterization,
    integrable,
    mean_field,
    muP,
    ntk,
    standard,
    standard_1n,
)
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.tracing import average, bias, entrywise, hidden_matrix, input_matrix, program, readout
from tp_solver.program.training import GradientDescent, GradientFlow
from tp_solver.solve.dispatch import solve
from tp_solver.solve.methods import FixedPoint, KernelRegime, Linear, March
from tp_solver.solve.solution import Solution, Status
from tp_solver.symbols.activation import Activation, erf, gelu, leaky_relu, linear, relu, sin, tanh

__version__ = "0.1.0"
