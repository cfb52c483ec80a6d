"""Entrywise maps and averages of fields (``theory/kernel_regime.md``, KR.10 to KR.12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import sympy as sp

from tp_solver.errors import ProgramError
from tp_solver.kernel_regime.separation import separated
from tp_solver.kernel_regime.terms import Factor, Field, Gaussian, Term, atoms, collected, linear, multiplied, ratio, rescaled, shown
from tp_solver.limit.transposition import COTANGENT
from tp_solver.numerics.pointwise import Parity, parity_of
from tp_solver.program.statements import Average, Map, Pool, Product, Statement, symbol
from tp_solver.symbols.activation import X

OVER_POSITIONS = "average tp.empirical_ntk(tp.draw(net, parameterization, D, width, seed=s), X) over finite nets"
SAMPLED = f"tp.sampled_kernels takes any program without positions, and tp.solve falls back on it; over a grid {OVER_POSITIONS}"
_AFTER_POOL = "put a convolution between pooling and the next activation"
_HINT = f"in closed form, fields enter by sums of products of functions of one Gaussian field each; {SAMPLED}"


class NoClosedKernels(ProgramError):
    """A program whose kernels have no closed form here; sampling has no such bounds."""


@dataclass(frozen=True)
class Mixture:
    """A Gaussian whose coefficients are numbers per data point: sum of weight times Gaussian."""

    parts: tuple[tuple[sp.Expr, Gaussian], ...]


Source = Statement | Mixture
"""What an atom comes from."""
Group = tuple[str, bool]
"""The products of one matrix in one orientation, which are jointly Gaussian; different groups are independent."""


@dataclass
class Known:
    """What has been read of a program.

    Attributes:
        fields: variable -> field.
        sources: atom -> what it comes from, in order (data variables have none).
        opaque: atoms that are not Gaussian given the other side of the program.
        averages: average -> the field whose mean it is, without the terms whose mean is zero.
        groups: atom -> the groups it is made of.
    """

    fields: dict[str, Field]
    sources: dict[str, Source] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)
    averages: dict[str, Field] = field(default_factory=dict)
    groups: dict[str, frozenset[Group]] = field(default_factory=dict)
    made: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def place(self, s: Product | Pool) -> str:
        """The atom of a product or a pool; the same of the same field twice is the same atom."""
        key = (s.matrix if isinstance(s, Product) else None, s.transpose, s.window, self.fields[s.arg])
        if (name := self.made.setdefault(key, s.out)) != s.out:
            return name
        self.sources[s.out] = s
        if isinstance(s, Product):
            self.groups[s.out] = frozenset({(s.matrix, s.transpose)})
        else:
            argument = self.fields[s.arg]
            self.groups[s.out] = self._of(atoms(argument))
            if not linear(argument) or atoms(argument) & self.opaque:
                self.opaque.add(s.out)
        return s.out

    def mixed(self, argument: str) -> Gaussian:
        """The field of a variable, a linear one, as one atom."""
        name = self.made.setdefault((Mixture, self.fields[argument]), f"[{argument}]")
        if name not in self.sources:
            self.sources[name] = Mixture(tuple((t.weight, t.forward) for t in self.fields[argument]))
            self.groups[name] = self._of(atoms(self.fields[argument]))
        return ((name, 1.0),)

    def independent(self, g: Gaussian, h: Gaussian) -> bool:
        """Whether two Gaussians have no group in common."""
        return not self._of({v for v, _ in g}) & self._of({v for v, _ in h})

    def _of(self, names: set[str]) -> frozenset[Group]:
        return frozenset().union(*(self.groups.get(v, frozenset()) for v in names))


def apply(s: Map, known: Known) -> Field:
    """An entrywise map of forward fields, possibly times one adjoint.

    Raises:
        ProgramError: for one that does not separate, or is not linear in an adjoint.
    """
    out = _mapped(s, known)
    for t in out:
        _require_tractable(s, t, known)
    return out


def _mapped(s: Map, known: Known) -> Field:
    if unbound := s.expression.free_symbols - {symbol(a) for a in s.arguments}:
        raise ProgramError(str(s), f"the symbols {sorted(map(str, unbound))}", "numbers", "bind them with program.bind({...})")
    adjoints = [a for a in s.arguments if any(t.backward for t in known.fields[a])]
    if not adjoints:
        return collected(_forward(s, s.expression, s.arguments, known))
    (adjoint, *others) = adjoints
    slope = sp.diff(s.expression, symbol(adjoint))
    if others or symbol(adjoint) in slope.free_symbols or s.expression.xreplace({symbol(adjoint): sp.S.Zero}) != 0:
        raise NoClosedKernels(str(s), s.expression, "a map linear in one adjoint", _HINT)
    slopes = _forward(s, slope, tuple(a for a in s.arguments if a != adjoint), known)
    if any(not t.constant for t in slopes) and any(n in known.opaque for t in known.fields[adjoint] for n, _ in t.backward):
        raise ProgramError(str(s), "an activation right after a mean over positions", "a matrix between them", _AFTER_POOL)
    return collected(multiplied(t, factor) for factor in slopes for t in known.fields[adjoint])


def averaged(s: Average, known: Known) -> Field:
    """The field of an average: its own symbol as a weight, or nothing where the mean is zero.

    Terms linear in an adjoint have mean zero: z is independent of every forward field (no forward product reads what a backward
    one writes, which :func:`tp_solver.kernel_regime.fields.read` makes sure of) and has mean zero itself (KR.11).
    """
    terms = _mapped(Map(s.out, s.expression, s.arguments), known)
    assert not any(n == COTANGENT for t in terms for n, _ in t.backward)  # the one adjoint that is no product lives on the outputs
    known.averages[s.out] = kept = tuple(t for t in terms if not t.backward and not _odd(t, known))
    for t in kept:
        _require_tractable(s, t, known)
    return (Term((), (), sp.S.One, symbol(s.out)),) if kept else ()


def _odd(t: Term, known: Known) -> bool:
    """Whether a factor is odd in a Gaussian that the other factors do not know."""
    for k, (g, f) in enumerate(t.factors):
        rest = [h for j, (h, _) in enumerate(t.factors) if j != k]
        if g and all(known.independent(g, h) for h in rest) and (f == X or parity_of(f) is Parity.ODD):
            return True
    return False


def _forward(s: Statement, expression: sp.Expr, arguments: Sequence[str], known: Known) -> list[Term]:
    """A function of forward fields as terms; where that needs Gaussians with a scale of their own at every data point, of those."""
    weighted = [a for a in arguments if any(t.weight is not sp.S.One for t in known.fields[a])]
    mixable = [a for a in weighted if known.fields[a] and linear(known.fields[a])]
    for chosen in ([], mixable) if mixable else ([],):
        carriers = _Carriers(s, known)
        inner = {symbol(a): carriers.field(a, a in chosen) for a in arguments}
        found = separated(expression.xreplace(inner), carriers.symbols)
        if found is not None:
            return [carriers.term(constant, factors) for constant, factors in found]
    gaussians = [shown(g) for g in carriers.gaussians]
    got = f"a function of {len(gaussians)} Gaussian fields, {' and '.join(gaussians)}, that does not separate"
    if len(gaussians) == 1:
        got = f"a function of the field {gaussians[0]} and of averages that does not separate"
    raise NoClosedKernels(str(s), got, "sums of products of functions of one Gaussian field each", _HINT)


class _Carriers:
    """The Gaussians that a map depends on, up to their scale, each with a symbol."""

    def __init__(self, s: Statement, known: Known) -> None:
        self.statement, self.known = s, known
        self.gaussians: list[Gaussian] = []

    @property
    def symbols(self) -> list[sp.Symbol]:
        return [self._symbol(k) for k in range(len(self.gaussians))]

    def field(self, argument: str, mixed: bool) -> sp.Expr:
        """A variable as an expression in these symbols and those of averages."""
        if mixed:
            return self._of(self.known.mixed(argument), X)
        return sp.Add(*(sp.Mul(t.weight, *(self._of(g, f) for g, f in t.factors)) for t in self.known.fields[argument]))

    def term(self, constant: sp.Expr, factors: dict[sp.Symbol, sp.Expr]) -> Term:
        """A product of functions of these symbols."""
        found: list[Factor] = [(self.gaussians[k], f.xreplace({v: X})) for k, v in enumerate(self.symbols) if (f := factors.get(v))]
        (g, f), *others = found or [((), sp.S.One)]
        return Term((), g, f, constant, tuple(others))

    def _of(self, g: Gaussian, f: sp.Expr) -> sp.Expr:
        if not g:
            return f
        if any(name in self.known.opaque for name, _ in g):
            raise ProgramError(
                str(self.statement), "a function of the mean of something not Gaussian", "a function of a Gaussian field", _AFTER_POOL
            )
        for k, h in enumerate(self.gaussians):
            if (r := ratio(g, h)) is not None:
                return rescaled(f, r, self._symbol(k))
        self.gaussians.append(g)
        return rescaled(f, 1.0, self._symbol(len(self.gaussians) - 1))

    @staticmethod
    def _symbol(k: int) -> sp.Symbol:
        return X if k == 0 else sp.Symbol(f"x#{k}", real=True)


def _require_tractable(s: Statement, t: Term, known: Known) -> None:
    """Factors of correlated Gaussians have to be polynomials."""
    for (g, f), (h, e) in combinations(t.factors, 2):
        if not known.independent(g, h) and not (f.is_polynomial(X) and e.is_polynomial(X)):
            raise NoClosedKernels(
                str(s), f"a function of two correlated Gaussian fields, {shown(g)} and {shown(h)}",
                "independent ones (of different matrices), or polynomials", SAMPLED,
            )  # fmt: skip
