"""Variables of a program at initialisation as sums of terms ``z F(h)``, and their second moments over data points.

At initialisation every matrix product is a centred Gaussian over sites (``theory/tensor_programs.md``): products of one
matrix in one orientation are jointly Gaussian with covariance scale^2 <x x'>, all others independent. Forward variables are
functions of such Gaussians h; adjoints are linear in the products z of the backward program, which are independent of every
h because the readout has mean zero and the forward program never reads it (gradient independence at initialisation: no
response <d delta / d h> survives, as delta is linear in an independent variable of mean zero).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import sympy as sp

from tp_solver.errors import ProgramError
from tp_solver.numerics.duals import dual
from tp_solver.program.statements import Map, Statement, Sum, symbol
from tp_solver.symbols.activation import X

Gaussian = tuple[tuple[str, float], ...]
"""A linear combination of products: (variable, coefficient), sorted by name. Empty: none."""


@dataclass(frozen=True)
class Term:
    """``z F(h)``: ``backward`` is z (empty: 1), ``forward`` is h (empty where F is constant), ``factor`` is F in ``activation.X``."""

    backward: Gaussian
    forward: Gaussian
    factor: sp.Expr


Field = tuple[Term, ...]
"""A sum of terms."""


def forward_gaussian(name: str) -> Field:
    """The field of a forward product (or of a data variable, which only ever meets its own second moments)."""
    return (Term((), ((name, 1.0),), X),)


def backward_gaussian(name: str) -> Field:
    """The field of a backward product."""
    return (Term(((name, 1.0),), (), sp.S.One),)


def add(s: Sum, fields: dict[str, Field]) -> Field:
    """Linear combination; the coefficients must be numbers."""
    terms: list[Term] = []
    for c, name in s.terms:
        if not c.is_number:
            raise ProgramError(str(s), c, "a number as coefficient", f"bind it: program.bind({{{c}: value}})")
        terms += [Term(t.backward, t.forward, c * t.factor) for t in fields[name]]
    return _collected(terms)


def apply(s: Map, fields: dict[str, Field]) -> Field:
    """An entrywise map of one forward Gaussian, possibly times one adjoint.

    Raises:
        ProgramError: for a map of two different Gaussians, or one that is not linear in an adjoint.
    """
    adjoints = [a for a in s.arguments if any(t.backward for t in fields[a])]
    carrier = _carrier(s, (t.forward for a in s.arguments if a not in adjoints for t in fields[a]))
    inner = {symbol(a): sp.Add(*(_rescaled(t, carrier) for t in fields[a])) for a in s.arguments if a not in adjoints}
    if not adjoints:
        return _collected([Term((), carrier, s.expression.xreplace(inner))])
    (adjoint, *others) = adjoints
    slope = sp.diff(s.expression, symbol(adjoint))
    if others or symbol(adjoint) in slope.free_symbols or s.expression.xreplace({symbol(adjoint): sp.S.Zero}) != 0:
        raise ProgramError(str(s), s.expression, "a map linear in one adjoint", _HINT)
    factor = slope.xreplace(inner)
    terms = []
    for t in fields[adjoint]:
        joint = _carrier(s, (carrier, t.forward)) if X in factor.free_symbols else t.forward
        terms.append(Term(t.backward, joint, (_rescaled(t, joint) if t.forward else t.factor) * _moved(factor, carrier, joint)))
    return _collected(terms)


_HINT = "the kernel regime needs each activation to act on one Gaussian field (matrix products and sums of them); solve with method='march'"


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
    return tuple((v, c) for v, c in sorted(total.items()) if c)


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


class Moments:
    """Second moments <a_mu b_nu> of fields over all pairs of data points, from those of the products they are made of."""

    def __init__(self, points: int) -> None:
        self._products: dict[tuple[str, str], np.ndarray] = {}
        self._gaussians: dict[tuple[Gaussian, Gaussian], np.ndarray | None] = {}
        self._duals: dict[tuple[sp.Expr, Gaussian, sp.Expr, Gaussian], np.ndarray] = {}
        self._points = points

    def set_product(self, a: str, b: str, covariance: np.ndarray) -> None:
        """Covariance (Pa, Pa) of two products; pairs never set are independent."""
        self._products[a, b] = covariance
        self._products[b, a] = covariance.T

    def inner(self, a: Field, b: Field) -> np.ndarray:
        """<a_mu b_nu>, shape (Pa, Pa); exactly symmetric for a = b."""
        total = np.zeros((self._points, self._points))
        for s in a:
            for t in b:
                if bool(s.backward) != bool(t.backward):
                    continue
                z = self._covariance(s.backward, t.backward) if s.backward else 1.0
                if z is not None:
                    total = total + z * self._dual(s, t)
        return (total + total.T) / 2 if a == b else total

    def _covariance(self, g: Gaussian, h: Gaussian) -> np.ndarray | None:
        """Covariance of two Gaussians, None where it vanishes identically."""
        if (g, h) not in self._gaussians:
            total: np.ndarray | None = None
            for v, c in g:
                for w, d in h:
                    block = self._products.get((v, w))
                    if block is not None:
                        total = c * d * block + (0.0 if total is None else total)
            self._gaussians[g, h] = total
            self._gaussians[h, g] = None if total is None else total.T
        return self._gaussians[g, h]

    def _dual(self, s: Term, t: Term) -> np.ndarray:
        key = (s.factor, s.forward, t.factor, t.forward)
        if key not in self._duals:
            self._duals[key] = self._computed(s, t)
            self._duals[key[2:] + key[:2]] = self._duals[key].T
        return self._duals[key]

    def _computed(self, s: Term, t: Term) -> np.ndarray:
        zero = np.zeros((self._points, self._points))
        q, qp = (zero.diagonal() if v is None else v.diagonal() for v in (self._covariance(u.forward, u.forward) for u in (s, t)))
        c = self._covariance(s.forward, t.forward)
        c = zero if c is None else c
        if (s.factor, s.forward) == (t.factor, t.forward):
            i, j = np.triu_indices(self._points)
            out = np.empty_like(zero)
            out[i, j] = out[j, i] = dual(s.factor, t.factor, q[i], q[j], c[i, j])
            return out
        return dual(s.factor, t.factor, q[:, None], qp[None, :], c)
