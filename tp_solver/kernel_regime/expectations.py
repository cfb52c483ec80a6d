"""Expectations <F(h) F'(h')> for the propagation of moments: of arrays at hand, or as jax functions that a survey has prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver.kernel_regime.pairs import Pairs, Points, Positions, sides, variances
from tp_solver.kernel_regime.recording import Kind, piece
from tp_solver.kernel_regime.terms import Factor, Gaussian, Term
from tp_solver.numerics.duals import dual, dual_function, in_closed_form

SLACK = 1.5
"""Room above the largest variance seen in a survey, for inputs that were not surveyed."""
Functions = tuple[sp.Expr, sp.Expr]


@dataclass(frozen=True)
class Survey:
    """What a run through a program has met: largest variances by function and argument, and the functions that are asked for by
    their arguments, so that all functions of the same arguments are evaluated together."""

    largest: dict[tuple[sp.Expr, Gaussian], float] = field(default_factory=dict)
    functions: dict[tuple[Gaussian, Gaussian], list[Functions]] = field(default_factory=dict)

    def note(self, s: Term, t: Term, q: float, qp: float) -> None:
        """Two terms and the largest variances of their arguments."""
        for term, variance in ((s, q), (t, qp)):
            key = (term.factor, term.forward)
            self.largest[key] = max(self.largest.get(key, 0.0), variance)
        asked = self.functions.setdefault((s.forward, t.forward), [])
        if (s.factor, t.factor) not in asked:
            asked.append((s.factor, t.factor))

    def note_one(self, f: Factor, q: float) -> None:
        """A function whose mean is asked for, and the largest variance of its argument."""
        key = (f[1], f[0])
        self.largest[key] = max(self.largest.get(key, 0.0), q)

    def bound(self, f: sp.Expr, u: Gaussian, g: sp.Expr, v: Gaussian) -> float:
        """An upper bound of the variances, a power of two: few different ones, so that layers share what is compiled."""
        if in_closed_form(f, g):  # whatever the variances are
            return 1.0
        largest = SLACK * max(self.largest[f, u], self.largest[g, v])
        return float(np.exp2(np.ceil(np.log2(largest)))) if largest > 0 else 1.0


@dataclass(frozen=True)
class Concrete:
    """Expectations of arrays of numbers, noted in a survey."""

    survey: Survey

    def between(
        self, s: Term, t: Term, u: Pairs | None, v: Pairs | None, c: Pairs | None, like: Pairs, kept: Positions
    ) -> Mapping[Functions, Pairs]:
        arguments = _arguments(u, v, c, like, kept)
        sizes = [max(float(np.max(a[k])) for a in arguments) for k in (0, 1)]
        self.survey.note(s, t, *sizes)
        values: Any = [dual(s.factor, t.factor, *map(np.asarray, a)) for a in arguments]
        return {(s.factor, t.factor): Pairs(*values)}

    def mean(self, f: Factor, u: Pairs, kept: Positions) -> Points:
        q = [np.asarray(a) for a in variances(u, kept)]
        self.survey.note_one(f, max(float(np.max(a)) for a in q))
        left, right = (dual(f[1], sp.S.One, a, 1.0, 0.0) for a in q)
        return left, right  # type: ignore[return-value]


@dataclass(frozen=True)
class Traced:
    """Expectations as jax functions, for variances as large as a survey found them."""

    survey: Survey

    def between(
        self, s: Term, t: Term, u: Pairs | None, v: Pairs | None, c: Pairs | None, like: Pairs, kept: Positions
    ) -> Mapping[Functions, Pairs]:
        asked = self.survey.functions[s.forward, t.forward]
        bounded = tuple((f, g, self.survey.bound(f, s.forward, g, t.forward)) for f, g in asked)
        found = _together(bounded, kept)(u, v, c, like)
        return {functions: found[k] for k, functions in enumerate(asked)}

    def mean(self, f: Factor, u: Pairs, kept: Positions) -> Points:
        found = _alone(f[1], self.survey.bound(f[1], f[0], f[1], f[0]), kept)(u)
        return found[0], found[1]


@lru_cache(maxsize=512)
def _alone(f: sp.Expr, largest: float, kept: Positions) -> Callable[[Pairs], Points]:
    """E f(a) of the variances."""

    def evaluated(u: Pairs) -> Points:
        left, right = (dual_function(f, sp.S.One, largest)(q, jnp.ones_like(q), jnp.zeros_like(q)) for q in variances(u, kept))
        return left, right

    return piece(Kind.EXPECTATION)(evaluated)


@lru_cache(maxsize=512)
def _together(functions: tuple[tuple[sp.Expr, sp.Expr, float], ...], kept: Positions) -> Callable[..., tuple[Pairs, ...]]:
    """Several expectations of the same arguments in one compiled function, which shares what they have in common."""

    def evaluated(u: Pairs | None, v: Pairs | None, c: Pairs | None, like: Pairs) -> tuple[Pairs, ...]:
        left, right, cross = _arguments(u, v, c, like, kept)
        # both sets' own moments at once: half as much to compile
        own = [jnp.concatenate(both) for both in zip(left, right, strict=True)]
        found = ((dual_function(*f)(*own), dual_function(*f)(*cross)) for f in functions)
        return tuple(Pairs(both[: len(left[0])], both[len(left[0]) :], crossed) for both, crossed in found)

    return piece(Kind.EXPECTATION)(evaluated)


def _arguments(u: Pairs | None, v: Pairs | None, c: Pairs | None, like: Pairs, kept: Positions) -> Pairs:
    """(q, qp, c) for each part of the moments, broadcastable."""
    shaped = next((m for m in (c, u, v) if m is not None), like)
    zero = partial(shaped.mapped, lambda a: 0 * a)
    (q1, q2), (p1, p2) = (variances(zero() if m is None else m, kept) for m in (u, v))
    i, j = sides(kept)
    c = zero() if c is None else c
    return Pairs(
        (i(q1), j(p1), c.left),  # type: ignore[arg-type]
        (i(q2), j(p2), c.right),  # type: ignore[arg-type]
        (i(q1)[:, None], j(p2)[None, :], c.cross),  # type: ignore[arg-type]
    )
