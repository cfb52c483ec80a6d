"""Numbers for the symbolic constants of a limit."""

from __future__ import annotations

import sympy as sp

from tp_solver.errors import InputError
from tp_solver.limit.spec import LimitSpec
from tp_solver.program.parameterization import D
from tp_solver.program.statements import Program


def numeric_constants(program: Program, spec: LimitSpec, dimension: int) -> tuple[dict[str, float], dict[str, float]]:
    """Initial scale s_j and learning coefficient e_j (without lr) of every matrix.

    Args:
        program: the network.
        spec: its limit.
        dimension: input dimension D; biases act on the constant 1, whose dimension is one.

    Raises:
        InputError: for constants that still hold symbols.
    """
    scales: dict[str, float] = {}
    rates: dict[str, float] = {}
    for m in program.matrices:
        limits = spec.matrices[m.name]
        for what, expression, out in (("scale", limits.scale, scales), ("rate", limits.rate, rates)):
            value = sp.sympify(expression).subs(D, 1 if m.role.shifts else dimension)
            if value.free_symbols:
                raise InputError(
                    f"{what} of {m.name}", value, "a number", "bind the symbols of the parameterization first: parameterization.bind({...})"
                )
            out[m.name] = float(value)
    return scales, rates
