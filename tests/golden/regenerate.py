"""Writes the printed equations that the tests compare with: python tests/golden/regenerate.py"""

from __future__ import annotations

from pathlib import Path

from tp_solver.limit.derive import limit
from tp_solver.limit.equations import LimitEquations
from tp_solver.program.architectures import mlp
from tp_solver.program.losses import CrossEntropy
from tp_solver.program.parameterization import muP, ntk, standard_1n
from tp_solver.program.statements import Program
from tp_solver.program.tracing import hidden_matrix, input_matrix, program, readout
from tp_solver.program.training import GradientDescent
from tp_solver.symbols.activation import tanh

FOLDER = Path(__file__).parent


def residual() -> Program:
    """Two residual blocks."""
    w0, w1, w2, last = input_matrix("W0"), hidden_matrix("W1"), hidden_matrix("W2"), readout("W3")

    def network(x):
        h = w0 @ x
        h = h + w1 @ tanh(h)
        h = h + w2 @ tanh(h)
        return last @ tanh(h)

    return program(network, "residual")


def tied() -> Program:
    """The same hidden matrix in two layers."""
    w0, w1, last = input_matrix("W0"), hidden_matrix("W1"), readout("W2")
    return program(lambda x: last @ tanh(w1 @ tanh(w1 @ tanh(w0 @ x))), "tied")


def there_and_back() -> Program:
    """A hidden matrix, then its transpose, both in the forward pass."""
    w0, w1, last = input_matrix("W0"), hidden_matrix("W1"), readout("W2")
    return program(lambda x: last @ tanh(w1.T @ tanh(w1 @ tanh(w0 @ x))), "there_and_back")


def cases() -> dict[str, LimitEquations]:
    """File name -> equations."""
    descent = GradientDescent(lr=0.1, steps=20)
    return {
        "mlp2_mup": limit(mlp(2, tanh), muP, descent),
        "mlp3_mup": limit(mlp(3, tanh), muP, descent),
        "mlp2_bias_mup": limit(mlp(2, tanh, bias=True), muP, descent),
        "mlp2_biases_mup": limit(mlp(2, tanh, bias=True, output_bias=True), muP, descent),
        "mlp2_biases_ntk": limit(mlp(2, tanh, bias=2, output_bias=2), ntk, descent),
        "residual2_mup": limit(residual(), muP, descent),
        "tied_mup": limit(tied(), muP, descent),
        "there_and_back_mup": limit(there_and_back(), muP, descent),
        "mlp2_mup_cross_entropy": limit(mlp(2, tanh), muP, GradientDescent(lr=0.1, steps=20, loss=CrossEntropy())),
        "mlp2_ntk": limit(mlp(2, tanh), ntk, descent),
        "residual2_ntk": limit(residual(), ntk, descent),
        "mlp2_standard_1n": limit(mlp(2, tanh), standard_1n, descent),
    }


def contents(theory: LimitEquations) -> dict[str, str]:
    """Suffix -> what the file holds."""
    return {".txt": f"{theory}\n", ".tex": f"{theory.latex()}\n"}


if __name__ == "__main__":
    for name, theory in cases().items():
        for suffix, content in contents(theory).items():
            (FOLDER / f"{name}{suffix}").write_text(content, encoding="utf-8")
            print("wrote", FOLDER / f"{name}{suffix}")
