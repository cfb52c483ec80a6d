"""Variables of a program at initialisation as sums of terms ``z F(h)`` (:mod:`tp_solver.kernel_regime.moments` evaluates them).

At initialisation every matrix product is a centred Gaussian over sites (``theory/tensor_programs.md``): products of one
matrix in one orientation are jointly Gaussian with covariance scale^2 <x x'>, all others independent. Forward variables are
functions of such Gaussians h; adjoints are linear in the products z of the backward program, which are independent of every
h because the readout has mean zero and the forward program never reads it (gradient independence at initialisation: no
response <d delta / d h> survives, as delta is linear in an independent variable of mean zero).

The mean over a window of positions of something that is not such a Gaussian is an atom of its own, which only products, sums and
further means may read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sympy as sp

from tp_solver.errors import ProgramError
from tp_solver.limit.transposition import COTANGENT, Backward
from tp_solver.program.statements import ONE, Average, Map, Pool, Product, Program, Statement, Sum, symbol
from tp_solver.program.statements import X as INPUTS
from tp_solver.symbols.activation import X

Gaussian = tuple[tuple[str, float], ...]
"""A linear combination of atoms: (variable, coefficient), sorted by length of name, then name. Empty: none."""


@dataclass(frozen=True)
class Term:
    """``z F(h)``: ``backward`` is z (empty: 1), ``forward`` is h (empty where F is constant), ``factor`` is F in ``activation.X``."""

    backward: Gaussian
    forward: Gaussian
    factor: sp.Expr


Field = tuple[Term, ...]
"""A sum of terms."""


@dataclass(frozen=True)
class Reading:
    """Every variable of a program and its transpose as a field.

    Attributes:
        fields: variable -> field.
        sources: atom -> the statement it comes from (data variables have none).
        opaque: atoms that are not Gaussian given the other side of the program.
    """

    fields: Mapping[str, Field]
    sources: Mapping[str, Statement]
    opaque: frozenset[str]


def read(program: Program, backward: Backward) -> Reading:
    """Read a program and its transpose, statement by statement.

    Raises:
        ProgramError: for averages, maps of two Gaussian fields or of means of non-Gaussian ones, a matrix used together with
            its transpose in the forward program, or unbound coefficients.
    """
    _refuse(program)
    fields = {INPUTS: _forward_atom(INPUTS), ONE: _forward_atom(ONE), COTANGENT: _backward_atom(COTANGENT)}
    sources: dict[str, Statement] = {}
    opaque: set[str] = set()
    for statements, atom in ((program.statements, _forward_atom), (backward.statements, _backward_atom)):
        for s in statements:
            match s:
                case Sum():
                    fields[s.out] = add(s, fields)
                case Map():
                    fields[s.out] = apply(s, fields, frozenset(opaque))
                case Product() | Pool():
                    sources[s.out] = s
                    fields[s.out] = atom(s.out)
                    if isinstance(s, Pool) and not _gaussian(fields[s.arg], opaque):
                        opaque.add(s.out)
    return Reading(fields, sources, frozenset(opaque))


def _refuse(program: Program) -> None:
    """Statements that leave the Gaussian class."""
    orientations: dict[str, bool] = {}
    for s in program.statements:
        if isinstance(s, Average):
            raise ProgramError(
                str(s), "an average over the sites", "products, sums and maps in the kernel regime", "solve with method='march'"
            )
        if isinstance(s, Product) and orientations.setdefault(s.matrix, s.transpose) != s.transpose:
            raise ProgramError(
                str(s),
                f"{s.matrix} together with its transpose",
                "one orientation per matrix in the kernel regime",
                "their products respond to each other: solve with method='march'",
            )


def _forward_atom(name: str) -> Field:
    """The field of a forward product (or of a data variable, which only ever meets its own second moments)."""
    return (Term((), ((name, 1.0),), X),)


def _backward_atom(name: str) -> Field:
    """The field of a backward product."""
    return (Term(((name, 1.0),), (), sp.S.One),)


def _gaussian(field: Field, opaque: set[str]) -> bool:
    """Whether a field is a linear combination of Gaussian atoms."""
    linear = all(t.factor.is_number if t.backward else t.factor == X for t in field)
    return linear and not any(name in opaque for t in field for name, _ in (*t.backward, *t.forward))


def add(s: Sum, fields: dict[str, Field]) -> Field:
    """Linear combination; the coefficients must be numbers."""
    terms: list[Term] = []
    for c, name in s.terms:
        if not c.is_number:
            raise ProgramError(str(s), c, "a number as coefficient", f"bind it: program.bind({{{c}: value}})")
        terms += [Term(t.backward, t.forward, c * t.factor) for t in fields[name]]
    return _collected(terms)


def apply(s: Map, fields: dict[str, Field], opaque: frozenset[str] = frozenset()) -> Field:
    """An entrywise map of one forward Gaussian, possibly times one adjoint.

    Raises:
        ProgramError: for a map of two different Gaussians, or one that is not linear in an adjoint.
    """
    adjoints = [a for a in s.arguments if any(t.backward for t in fields[a])]
    carrier = _carrier(s, (t.forward for a in s.arguments if a not in adjoints for t in fields[a]))
    inner = {symbol(a): sp.Add(*(_rescaled(t, carrier) for t in fields[a])) for a in s.arguments if a not in adjoints}
    if any(name in opaque for name, _ in carrier):
        raise ProgramError(str(s), "a function of the mean of something not Gaussian", "a function of a Gaussian field", _AFTER_POOL)
    if not adjoints:
        return _collected([Term((), carrier, s.expression.xreplace(inner))])
    (adjoint, *others) = adjoints
    slope = sp.diff(s.expression, symbol(adjoint))
    if others or symbol(adjoint) in slope.free_symbols or s.expression.xreplace({symbol(adjoint): sp.S.Zero}) != 0:
        raise ProgramError(str(s), s.expression, "a map linear in one adjoint", _HINT)
    factor = slope.xreplace(inner)
    terms = []
    if not factor.is_number and any(name in opaque for t in fields[adjoint] for name, _ in t.backward):
        raise ProgramError(str(s), "an activation right after a mean over positions", "a matrix between them", _AFTER_POOL)
    for t in fields[adjoint]:
        joint = _carrier(s, (carrier, t.forward)) if X in factor.free_symbols else t.forward
        terms.append(Term(t.backward, joint, (_rescaled(t, joint) if t.forward else t.factor) * _moved(factor, carrier, joint)))
    return _collected(terms)


_HINT = "the kernel regime needs each activation to act on one Gaussian field (matrix products and sums of them); solve with method='march'"


_AFTER_POOL = "put a convolution between pooling and the next activation"


def _carrier(s: Statement, found: Iterable[Gaussian]) -> Gaussian:
    """The one Gaussian (up to scale) that all the fields depend on."""
    carrier: Gaussian = ()
    for g in found:
        if not g:
            continue
        if not carrier:
            carrier = g
        elif _ratio(g, carrier) is None:
            raise ProgramError(
                str(s), f"a function of two Gaussian fields, {_shown(carrier)} and {_shown(g)}", "a function of one Gaussian field", _HINT
            )
    return carrier


def _ratio(g: Gaussian, h: Gaussian) -> float | None:
    """r with g = r h, if there is one."""
    if [v for v, _ in g] != [v for v, _ in h]:
        return None
    r = g[0][1] / h[0][1]
    return r if all(abs(a - r * b) <= 1e-14 * abs(a) for (_, a), (_, b) in zip(g, h, strict=True)) else None


def _moved(factor: sp.Expr, old: Gaussian, new: Gaussian) -> sp.Expr:
    if not old or old == new:
        return factor
    r = _ratio(old, new)
    return factor.xreplace({X: sp.Float(r, 17) * X})


def _rescaled(t: Term, carrier: Gaussian) -> sp.Expr:
    return _moved(t.factor, t.forward, carrier)


def _shown(g: Gaussian) -> str:
    return " + ".join(v if c == 1 else f"{c:g} {v}" for v, c in g)


def _merged(parts: Iterable[tuple[Gaussian, float]]) -> Gaussian:
    total: dict[str, float] = defaultdict(float)
    for g, scale in parts:
        for v, c in g:
            total[v] += scale * c
    # v9 before v10, so that all layers read alike
    return tuple((v, c) for v, c in sorted(total.items(), key=lambda atom: (len(atom[0]), atom[0])) if c)


def _collected(terms: list[Term]) -> Field:
    """Merge what shares z and h; sums of Gaussians are one Gaussian, whatever they are sums of."""
    by_pair: dict[tuple[Gaussian, Gaussian], list[sp.Expr]] = defaultdict(list)
    for t in terms:
        by_pair[t.backward, t.forward if X in t.factor.free_symbols else ()].append(t.factor)
    out: list[Term] = []
    linear: list[tuple[Gaussian, float]] = []
    by_function: dict[tuple[Gaussian, sp.Expr], list[tuple[Gaussian, float]]] = defaultdict(list)
    for (z, h), factors in by_pair.items():
        factor = sp.Add(*factors)
        number, function = factor.as_independent(X, as_Add=False)
        if factor == 0:
            continue
        if z:
            by_function[h, function].append((z, float(number)))
        elif function == X:
            linear.append((h, float(number)))
        else:
            out.append(Term(z, h, factor))
    for (h, function), parts in by_function.items():
        if z := _merged(parts):
            out.append(Term(z, h, function))
    if h := _merged(linear):
        out.append(Term((), h, X))
    return tuple(out)
