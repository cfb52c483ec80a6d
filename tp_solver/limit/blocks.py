"""The equations of a reading, block by block: fields, Gaussian fields, responses, kernels; and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator

import sympy as sp

from tp_solver.limit.independence import gradient_kernel
from tp_solver.limit.master import Response, outer
from tp_solver.limit.reading import Reading, split
from tp_solver.limit.transposition import COTANGENT
from tp_solver.program.parameterization import D
from tp_solver.program.statements import Product, Space, Statement
from tp_solver.symbols import notation
from tp_solver.symbols.equation import Equation, Key, Kind
from tp_solver.symbols.notation import MU, NU, Expectation, Kernel, Observable, S, T

_SAME = "The adjoint of this pre-activation and that of the activation on the right are one variable."


def fields(reading: Reading) -> Iterator[Equation]:
    """One equation per variable that has a name of its own."""
    names = reading.names
    if names.seeded:
        yield _column(reading)
    for s in names.statements:
        if names.spaces[s.out] is Space.OUTPUT or names.inlined(s.out) or s.out in names.substituted:
            continue
        rhs = reading.definition(s.out, MU, reading.now)
        yield Equation(names.key(s.out), names.node(s.out, MU, reading.now), rhs, Kind.FIELD, why(reading, s))
    for variable in (v for v in names.g if v in names.z):
        # as for a linear phi: no statement stands between the adjoints of an activation and of a pre-activation
        g = notation.Field("g", (names.g[variable],), (MU,), () if reading.initial else (T,))
        yield Equation(("g", names.g[variable]), g, names.node(variable, MU, reading.now), Kind.FIELD, _SAME)


def _column(reading: Reading) -> Equation:
    s = reading.names.statement[reading.names.readout_vector]
    assert isinstance(s, Product)
    rhs = sp.Add(*reading.parts(s, MU, reading.now))
    return Equation((s.matrix,), reading.names.column(reading.now), rhs, Kind.FIELD, why(reading, s))


def covariances(reading: Reading) -> Iterator[Equation]:
    """The covariance of every Gaussian field, and between those of the same matrix in the same orientation."""
    names = reading.names
    products = [s for s in names.statements if isinstance(s, Product) and s.out in names.gaussians and reading.correlation(s.matrix) != 0]
    for k, a in enumerate(products):
        for b in products[k:]:
            if (a.matrix, a.transpose) != (b.matrix, b.transpose) or (reading.initial and reading.odd(a.out) != reading.odd(b.out)):
                continue
            (la, i), (lb, j) = names.gaussians[a.out], names.gaussians[b.out]
            key = (la, i) if a is b else (la, i, j) if la == lb else (la, i, lb, j)
            lhs = Expectation(names.gaussian(a, MU, reading.now) * names.gaussian(b, NU, reading.then))
            averaged = sp.S.One if a.arg == COTANGENT else reading.kernel(a.arg, b.arg, (MU, NU), (reading.now, reading.then))
            yield Equation(key, lhs, reading.correlation(a.matrix) * averaged, Kind.GAUSSIAN, _why_gaussian(reading, a, b))


def response_kernels(reading: Reading) -> Iterator[Equation]:
    """One equation per response that is not structurally zero."""
    names, times = reading.names, () if reading.initial else (T, S)
    for r in reading.responses:
        key = names.response_key(r.use, r.other)
        moved = reading.value(r.use.product.arg, MU, reading.now)
        noise = names.gaussian(r.other.product, NU, reading.then)
        mean = Expectation(notation.Response(moved, noise))
        yield Equation(key, Kernel(*split(key), (MU, NU), times), mean, Kind.RESPONSE, _why_response(reading, r))


def kernels(reading: Reading) -> Iterator[Equation]:
    """Phi and G of every layer, and every other kernel that an equation above has used."""
    names, adjoint = reading.names, reading.names.backward.adjoints
    yield Equation(("Phi", 0), Kernel("Phi", (0,), (MU, NU)), _gram(), Kind.KERNEL, "The inputs: D is fixed, nothing changes in training.")
    for layer in names.program.layers:
        reading.kernel(layer.post, layer.post, (MU, NU), (reading.now, reading.then))
        if layer.pre in adjoint:
            reading.kernel(adjoint[layer.pre], adjoint[layer.pre], (MU, NU), (reading.now, reading.then))
    times = () if reading.initial else (T, S)
    found: dict[Key, Equation] = {}
    while missing := [key for key in names.defined if key not in found]:
        for key in missing:
            a, b = names.defined[key]
            recursion = gradient_kernel(reading, a, b) if reading.initial and reading.odd(a) else None
            rhs = Expectation(reading.value(a, MU, reading.now) * reading.value(b, NU, reading.then)) if recursion is None else recursion
            reason = f"Average over sites of {a} and {b}: N terms of size one over N, so N^(0); fluctuations die as N^(-1/2)."
            if recursion is not None:
                reason += "\nGradient independence: the Gaussian parts of backward fields do not know the forward fields."
            found[key] = Equation(key, Kernel(str(key[0]), key[1:], (MU, NU), times), rhs, Kind.KERNEL, reason)
    yield from (found[key] for key in sorted(found, key=lambda k: (k[0] == "G", len(k), list(map(str, k)))))


def common_eta(reading: Reading) -> sp.Expr:
    """The learning rate that all matrices share, or 1 where they differ (K then contains them)."""
    return next(iter(reading.eta.values())) if reading.memory.shared else sp.S.One


def pace(reading: Reading) -> sp.Expr:
    """What multiplies K in a step: the shared rate, or what a schedule makes of all rates."""
    return reading.memory.factor(T) if reading.memory.scheduled else common_eta(reading)


def tangent_kernel(reading: Reading) -> sp.Expr:
    """K: for each trained matrix, rate x overlap of what its updates write x overlap of what they read, over its uses."""
    terms: list[sp.Expr] = []
    pairs = reading.names.backward.pairs
    for a in pairs:
        for b in (p for p in pairs if p.matrix == a.matrix):
            rate = reading.eta[a.matrix] * reading.rate(a.matrix) / (common_eta(reading) or sp.S.One)
            if rate == 0 or (reading.initial and a.transpose != b.transpose):
                continue  # at initialisation <forward x backward> = 0: odd in the readout
            (la, ra), (lb, rb) = outer(a, False), outer(b, False)
            overlaps = [
                sp.S.One if i == COTANGENT else reading.kernel(i, j, (MU, NU), (reading.now, reading.then)) for i, j in ((la, lb), (ra, rb))
            ]
            terms.append(sp.Mul(rate, *overlaps))
    return sp.Add(*terms)


def place(reading: Reading, s: Statement) -> str:
    """A statement and where it stands."""
    return f"{s} (statement {reading.names.statements.index(s) + 1} of {len(reading.names.statements)})"


def why(reading: Reading, s: Statement) -> str:
    """Which matrix and rule a variable's equation follows from."""
    products = [s] if isinstance(s, Product) else [reading.names.statement[a] for a in s.arguments if a in reading.names.substituted]
    lines = [] if isinstance(s, Product) else [f"Follows the statement {place(reading, s)}."]
    for p in products:
        lines += _why_product(reading, p) if isinstance(p, Product) else [why(reading, p)]
    return "\n".join(lines)


def _why_product(reading: Reading, s: Product) -> Iterator[str]:
    matrix = reading.names.program.matrix(s.matrix)
    kind = str(matrix.role) if matrix.role.shifts else f"{matrix.role} matrix"
    yield f"Product {place(reading, s)} with the {kind} {s.matrix}; master theorem, product rule:"
    if reading.correlation(s.matrix) != 0:
        letter, i = reading.names.gaussians[s.out]
        yield f"  Gaussian part {letter}^{i}: independent of the other matrices, covariance as in [{letter!r}, {i!r}]."
    for r in reading.responses:
        if r.use.product == s:
            yield f"  Response part {_shown(reading.names.response_key(r.use, r.other))}: {_range(reading, r)}."
    if s.matrix in reading.learning:
        for pair in (p for p in reading.names.backward.pairs if p.matrix == s.matrix):
            left, right = outer(pair, s.transpose)
            yield f"  Learned part: the updates {left} {right}^T of the steps s < t, each through the overlap of {right} with {s.arg}."


def _range(reading: Reading, r: Response) -> str:
    word = "earlier in the same step, so s <= t" if r.present else "later in the step, so only s < t"
    word = "earlier in the same pass" if reading.initial else word
    return f"sums over {place(reading, r.other.product)}, which comes {word}"


def _why_response(reading: Reading, r: Response) -> str:
    s = r.use.product
    return (
        f"Response of {place(reading, s)}, matrix {s.matrix}; master theorem, response rule:\n"
        f"  {s.matrix}{'.T' if s.transpose else ''} {s.arg} {_range(reading, r)}.\n"
        f"  The mean derivative of {s.arg} with respect to the Gaussian part of {r.other.product.out}, total within one site;\n"
        "  for activations with a kink it is defined by Gaussian integration by parts."
    )


def _why_gaussian(reading: Reading, a: Product, b: Product) -> str:
    if a is b:
        overlap = "" if a.arg == COTANGENT else f" times the overlap of {a.arg} with itself"
        rule = f"covariance = scale^2{overlap}"
        return f"Gaussian part of {place(reading, a)}; master theorem, Gaussian rule: {rule}."
    return f"{a} and {b} use the same matrix in the same orientation: their Gaussian parts are jointly Gaussian."


def _gram() -> sp.Expr:
    i = sp.Symbol("i", integer=True, positive=True)
    return notation.PastSum(Observable("x", (), (MU, i)) * Observable("x", (), (NU, i)), (i, 1, D)) / D


def _shown(key: tuple[str | int, ...]) -> str:
    return f"{key[0]}^{','.join(map(str, key[1:]))}"
