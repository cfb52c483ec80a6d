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
from tp_solver.program.layers import conv, dense, global_pool, local, pool, pooled
from tp_solver.program.losses import CrossEntropy, Logistic, SquaredError
from tp_solver.program.parameterization import D, N, Parameterization, integrable, mean_field, muP, ntk, standard, standard_1n
from tp_solver.program.schedules import STEPS, Batches, Schedule, cosine, step_decay, warmup
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.tracing import average, bias, entrywise, hidden_matrix, input_matrix, program, readout
from tp_solver.program.training import GradientDescent, GradientFlow
from tp_solver.solve.dispatch import solve
from tp_solver.solve.methods import Auto, FixedPoint, KernelRegime, Linear, March
from tp_solver.solve.solution import Solution, Status
from tp_solver.storage import save_ensemble
from tp_solver.symbols.activation import Activation, erf, gelu, leaky_relu, linear, relu, sin, tanh
from tp_solver.symbols.notation import T

if TYPE_CHECKING:
    from tp_solver.coordinates import CoordinateCheck, coordinate_check
    from tp_solver.extrapolation import extrapolate
    from tp_solver.finite.descent import descend
    from tp_solver.finite.empirical import empirical_ntk, empirical_ntk_trace
    from tp_solver.finite.gaussianity import cumulants, mmd2
    from tp_solver.finite.hierarchy import predicted_drift, second_kernel
    from tp_solver.finite.jacobian import empirical_jacobian_ntk
    from tp_solver.finite.linearised import LinearisedNet, linearise
    from tp_solver.finite.minimiser import Minimiser, minimiser
    from tp_solver.finite.network import FiniteNet, draw
    from tp_solver.finite.optimisers import SGD, AdaGrad, Adam
    from tp_solver.finite.path_dependence import path_dependence
    from tp_solver.finite.pseudo import pseudo_ntk
    from tp_solver.finite.robust import train_robustly
    from tp_solver.finite.simulate import simulate
    from tp_solver.finite.simulate_at import simulate_at
    from tp_solver.finite.twins import train_with_twin
    from tp_solver.finite.width_scan import width_scan
    from tp_solver.kernel_regime.compute import KernelSet, kernel_blocks, kernel_function, kernels
    from tp_solver.kernel_regime.critical_line import edge_of_chaos
    from tp_solver.kernel_regime.depth import depth_analysis
    from tp_solver.kernel_regime.dynamics import KernelDynamics
    from tp_solver.kernel_regime.gaussian_process import log_marginal_likelihood
    from tp_solver.kernel_regime.jacobian import jacobian_kernels
    from tp_solver.kernel_regime.phase_diagram import phase_diagram
    from tp_solver.kernel_regime.phases import Phase, fixed_point
    from tp_solver.kernel_regime.regressor import KernelRegressor, NNGPKernel, TangentKernel
    from tp_solver.kernel_regime.robust_training import robust_training
    from tp_solver.kernel_regime.spectrum import critical_rate
    from tp_solver.kernel_regime.symmetry import kernel_symmetry, learning_curve
    from tp_solver.kernel_regime.uncertainty import (
        anchored_ensemble,
        compare_uncertainties,
        deep_ensemble,
        nngp_posterior,
        ntk_gp,
        random_network_distillation,
        randomised_prior,
        sample_then_optimise,
    )
    from tp_solver.restore import load
    from tp_solver.solve.advice import Advice, advise
    from tp_solver.solve.sampled_kernels import SampledKernels, sampled_kernels
    from tp_solver.sweeps.runs import EnsembleRun, LimitRun
    from tp_solver.sweeps.sweep import Sweep, sweep

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "STEPS",
    "Activation",
    "AdaGrad",
    "Adam",
    "Advice",
    "Auto",
    "Batches",
    "BudgetError",
    "Comparison",
    "CoordinateCheck",
    "CrossEntropy",
    "D",
    "Ensemble",
    "EnsembleRun",
    "FileFormatError",
    "FiniteNet",
    "FixedPoint",
    "GradientDescent",
    "GradientFlow",
    "InputError",
    "KernelDynamics",
    "KernelRegime",
    "KernelRegressor",
    "KernelSet",
    "LimitEquations",
    "LimitRun",
    "Linear",
    "LinearisedNet",
    "Logistic",
    "March",
    "Minimiser",
    "N",
    "NNGPKernel",
    "Parameterization",
    "ParameterizationError",
    "Phase",
    "Program",
    "ProgramError",
    "RangeError",
    "Regime",
    "RegimeReport",
    "SampledKernels",
    "Schedule",
    "Solution",
    "SquaredError",
    "Status",
    "Sweep",
    "T",
    "TPError",
    "TangentKernel",
    "Task",
    "advise",
    "anchored_ensemble",
    "average",
    "bias",
    "cnn",
    "compare",
    "compare_uncertainties",
    "conv",
    "coordinate_check",
    "cosine",
    "critical_rate",
    "cumulants",
    "deep_ensemble",
    "dense",
    "depth_analysis",
    "descend",
    "draw",
    "edge_of_chaos",
    "empirical_jacobian_ntk",
    "empirical_ntk",
    "empirical_ntk_trace",
    "entrywise",
    "erf",
    "extrapolate",
    "fixed_point",
    "gelu",
    "global_pool",
    "hidden_matrix",
    "input_matrix",
    "integrable",
    "jacobian_kernels",
    "kernel_blocks",
    "kernel_function",
    "kernel_symmetry",
    "kernels",
    "leaky_relu",
    "learning_curve",
    "limit",
    "linear",
    "linearise",
    "load",
    "local",
    "log_marginal_likelihood",
    "mean_field",
    "minimiser",
    "mlp",
    "mmd2",
    "muP",
    "nngp_posterior",
    "ntk",
    "ntk_gp",
    "path_dependence",
    "phase_diagram",
    "pool",
    "pooled",
    "predicted_drift",
    "program",
    "pseudo_ntk",
    "random_network_distillation",
    "randomised_prior",
    "readout",
    "regime",
    "relu",
    "robust_training",
    "sample_then_optimise",
    "sampled_kernels",
    "save_ensemble",
    "second_kernel",
    "simulate",
    "simulate_at",
    "sin",
    "solve",
    "standard",
    "standard_1n",
    "step_decay",
    "sweep",
    "tanh",
    "train_robustly",
    "train_with_twin",
    "warmup",
    "width_scan",
]

_AT_FIRST_USE = {
    "tp_solver.coordinates": (
        "CoordinateCheck",
        "coordinate_check",
    ),
    "tp_solver.finite.descent": ("descend",),
    "tp_solver.finite.empirical": (
        "empirical_ntk",
        "empirical_ntk_trace",
    ),
    "tp_solver.finite.gaussianity": (
        "cumulants",
        "mmd2",
    ),
    "tp_solver.finite.hierarchy": (
        "predicted_drift",
        "second_kernel",
    ),
    "tp_solver.finite.jacobian": ("empirical_jacobian_ntk",),
    "tp_solver.finite.linearised": (
        "LinearisedNet",
        "linearise",
    ),
    "tp_solver.finite.minimiser": (
        "Minimiser",
        "minimiser",
    ),
    "tp_solver.finite.network": (
        "FiniteNet",
        "draw",
    ),
    "tp_solver.finite.optimisers": (
        "SGD",
        "AdaGrad",
        "Adam",
    ),
    "tp_solver.finite.path_dependence": ("path_dependence",),
    "tp_solver.finite.pseudo": ("pseudo_ntk",),
    "tp_solver.finite.robust": ("train_robustly",),
    "tp_solver.finite.simulate": ("simulate",),
    "tp_solver.finite.simulate_at": ("simulate_at",),
    "tp_solver.finite.twins": ("train_with_twin",),
    "tp_solver.finite.width_scan": ("width_scan",),
    "tp_solver.extrapolation": ("extrapolate",),
    "tp_solver.sweeps.runs": (
        "EnsembleRun",
        "LimitRun",
    ),
    "tp_solver.sweeps.sweep": (
        "Sweep",
        "sweep",
    ),
    "tp_solver.kernel_regime.compute": (
        "KernelSet",
        "kernel_blocks",
        "kernel_function",
        "kernels",
    ),
    "tp_solver.kernel_regime.critical_line": ("edge_of_chaos",),
    "tp_solver.kernel_regime.depth": ("depth_analysis",),
    "tp_solver.kernel_regime.dynamics": ("KernelDynamics",),
    "tp_solver.kernel_regime.gaussian_process": ("log_marginal_likelihood",),
    "tp_solver.kernel_regime.jacobian": ("jacobian_kernels",),
    "tp_solver.kernel_regime.phase_diagram": ("phase_diagram",),
    "tp_solver.kernel_regime.phases": (
        "Phase",
        "fixed_point",
    ),
    "tp_solver.kernel_regime.regressor": (
        "KernelRegressor",
        "NNGPKernel",
        "TangentKernel",
    ),
    "tp_solver.kernel_regime.robust_training": ("robust_training",),
    "tp_solver.kernel_regime.spectrum": ("critical_rate",),
    "tp_solver.kernel_regime.symmetry": (
        "kernel_symmetry",
        "learning_curve",
    ),
    "tp_solver.kernel_regime.uncertainty": (
        "anchored_ensemble",
        "compare_uncertainties",
        "deep_ensemble",
        "nngp_posterior",
        "ntk_gp",
        "random_network_distillation",
        "randomised_prior",
        "sample_then_optimise",
    ),
    "tp_solver.restore": ("load",),
    "tp_solver.solve.advice": (
        "Advice",
        "advise",
    ),
    "tp_solver.solve.sampled_kernels": (
        "SampledKernels",
        "sampled_kernels",
    ),
}
"""Names by modules that import jax, which alone takes longer than everything else here."""
_HOME = {name: module for module, names in _AT_FIRST_USE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
