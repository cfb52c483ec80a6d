"""An activation is one symbolic definition; everything else about it is derived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy as sp
from sympy.core.function import AppliedUndef

from tp_solver.errors import InputError
from tp_solver.symbols.functions import canonical

X = sp.Symbol("x", real=True)


@dataclass(frozen=True, repr=False)
class Activation:
    """An entrywise nonlinearity, given once as a function of a sympy symbol.

    Args:
        name: how it prints.
        function: maps a real sympy symbol to a sympy expression, e.g. ``lambda x: sympy.tanh(x)``.

    Calling it on a sympy expression substitutes; calling it on a traced vector adds a statement to the program.
    The derivative is sympy's (``theory/notation.md``).

    Raises:
        InputError: if the function does not return a real sympy expression of its argument alone.

    Example: ``Activation("swish", lambda x: x / (1 + sympy.exp(-x)))``.
    """

    name: str
    function: Callable[[sp.Symbol], sp.Expr] = field(compare=False)
    expression: sp.Expr = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError("activation name", self.name, "a non-empty string", 'Activation("tanh", sympy.tanh)')
        if not callable(self.function):
            raise InputError(f"activation {self.name!r}", self.function, "a function of one symbol", "pass lambda x: sympy.tanh(x)")
        try:
            value = sp.sympify(self.function(X))
        except Exception as error:
            raise InputError(
                f"activation {self.name!r}",
                f"a function that fails on a symbol ({type(error).__name__}: {error})",
                "a function of one sympy symbol",
                "use sympy functions (sympy.tanh, not numpy.tanh or math.tanh)",
            ) from error
        if not isinstance(value, sp.Expr) or value.has(sp.nan, sp.zoo, sp.oo, -sp.oo):
            raise InputError(f"activation {self.name!r}", value, "a finite sympy expression", "use sympy functions")
        extra = value.free_symbols - {X}
        if extra:
            raise InputError(
                f"activation {self.name!r}",
                f"the free symbols {sorted(map(str, extra))}",
                "an expression in its argument alone",
                "substitute numbers for the parameters first",
            )
        if undefined := value.atoms(AppliedUndef):
            raise InputError(f"activation {self.name!r}", sorted(map(str, undefined)), "functions that sympy defines", "check the spelling")
        if value.has(sp.I):
            raise InputError(f"activation {self.name!r}", value, "a real function", "remove the imaginary unit")
        object.__setattr__(self, "expression", canonical(value))

    def __call__(self, x: Any) -> Any:
        if isinstance(x, sp.Expr):
            return self.expression.subs(X, x)
        apply = getattr(x, "apply_activation", None)
        if apply is None:
            raise InputError(f"activation {self.name!r}", x, "a sympy expression or a traced vector", "call it inside tp.program")
        return apply(self)

    @property
    def derivative(self) -> sp.Expr:
        """phi'(x) as a sympy expression in ``activation.X``."""
        return sp.diff(self.expression, X)

    @property
    def smooth(self) -> bool:
        """Whether the first derivative is continuous (no kink)."""
        return not self.derivative.has(sp.Heaviside, sp.sign, sp.DiracDelta, sp.Piecewise)

    @property
    def linear(self) -> bool:
        """Whether phi is a multiple of the identity."""
        return bool(self.derivative.is_number and self.expression.subs(X, 0) == 0)

    def __repr__(self) -> str:
        return f"Activation({self.name!r}: {self.expression})"

    def _repr_latex_(self) -> str:
        return rf"$\phi(x) = {sp.latex(self.expression)}$"


linear = Activation("linear", lambda x: x)
tanh = Activation("tanh", sp.tanh)
erf = Activation("erf", sp.erf)
relu = Activation("relu", lambda x: sp.Max(x, 0))
leaky_relu = Activation("leaky_relu", lambda x: sp.Max(x, 0) + sp.Rational(1, 100) * sp.Min(x, 0))
gelu = Activation("gelu", lambda x: x * (1 + sp.erf(x / sp.sqrt(2))) / 2)
sin = Activation("sin", sp.sin)
SHIPPED = (linear, tanh, erf, relu, leaky_relu, gelu, sin)
