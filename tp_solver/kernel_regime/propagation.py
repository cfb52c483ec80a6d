"""Kernels at initialisation of any program whose activations act on Gaussian fields (``theory/kernel_regime.md``, KR.1 and KR.2).

The forward program and its transpose are read once, statement by statement; nothing here knows an architecture, and no layer has a
tangent kernel of its own: that of a matrix is <adjoint adjoint'> <input input'>, summed over its uses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
import sympy as sp

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.fields import Gaussian, Reading, read
from tp_solver.kernel_regime.moments import Expectations, Moments
from tp_solver.kernel_regime.pairs import Pairs, Positions, constant, inputs, same_position, through
from tp_solver.limit.transposition import COTANGENT, Backward, Pair, transpose
from tp_solver.numerics.duals import Expectation, dual, dual_function
from tp_solver.program.statements import ONE, Pool, Program, X

SLACK = 1.5
"""Room above the largest variance seen in a survey, for inputs that were not surveyed."""


@dataclass(frozen=True)
class _Concrete:
    """Expectations of arrays of numbers, without compiling the program; they note how large variances get."""

    largest: dict[tuple[sp.Expr, Gaussian], float]

    def bound(self, key: tuple[sp.Expr, Gaussian], variances: jax.Array) -> float:
        self.largest[key] = max(self.largest.get(key, 0.0), SLACK * float(variances)) or 1.0
        return self.largest[key]

    def function(self, f: sp.Expr, g: sp.Expr, largest: float) -> Expectation:
        return lambda *arrays: dual(f, g, *map(np.asarray, arrays))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Traced:
    """Expectations as jax functions, for variances as large as a survey found them."""

    largest: dict[tuple[sp.Expr, Gaussian], float]

    def bound(self, key: tuple[sp.Expr, Gaussian], variances: jax.Array) -> float:
        return self.largest[key]

    def function(self, f: sp.Expr, g: sp.Expr, largest: float) -> Expectation:
        return dual_function(f, g, largest)


class LayerKernels(NamedTuple):
    """Kernels between two sets of inputs, each a :class:`Pairs` without positions, stacked over layers where there are several.

    Phi, over a grid, is the mean over positions; G the sum, so that it is the covariance of the whole df/dh.
    """

    nngp: Pairs
    ntk: Pairs
    Phi: tuple[Pairs, ...]
    G: tuple[Pairs, ...]
    parts: Mapping[str, Pairs]


@dataclass(frozen=True, eq=False)
class Propagation:
    """A program made ready: read symbolically, with numbers for its matrices.

    Args:
        program: a traced network, coefficients bound to numbers.
        scales: matrix -> s >= 0 with product covariance s^2 <x x'>. Constants such as 1/sqrt(D) belong to the scale of an
            input matrix; the scale of a bias is its standard deviation.
        rates: matrix -> weight >= 0 of its term in the tangent kernel (eta alpha^2; 0 for terms that the exponents drop).

    Raises:
        InputError: for missing, unknown or malformed scales and rates.
        ProgramError: for what leaves the Gaussian class (see :func:`tp_solver.kernel_regime.fields.read`).
    """

    program: Program
    scales: Mapping[str, float]
    rates: Mapping[str, float]
    backward: Backward = field(init=False)
    reading: Reading = field(init=False)
    largest: dict[tuple[sp.Expr, Gaussian], float] = field(init=False, default_factory=dict)
    """Largest variances that a survey has seen, by function and argument."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", _per_matrix("scales", self.scales, self.program))
        object.__setattr__(self, "rates", _per_matrix("rates", self.rates, self.program))
        object.__setattr__(self, "backward", transpose(self.program))
        object.__setattr__(self, "reading", read(self.program, self.backward))

    @property
    def kept(self) -> Positions:
        """All pairs of positions where something is averaged over positions; else pairs of the same position carry everything."""
        return Positions(len(self.program.grid), any(isinstance(s, Pool) for s in self.program.statements))

    def data(self, x1: jax.Array, x2: jax.Array) -> Pairs:
        """x . x' of inputs (n1, D) and (n2, D)."""
        return inputs(x1, x2, self.program.grid, self.kept)

    def survey(self, squared_lengths: np.ndarray) -> None:
        """Learn how large the variances get at inputs of such squared lengths (per position); series and quadratures choose their
        length by it. One position is enough: variances are largest where all positions hold the same."""

        q = np.asarray(squared_lengths, float)
        self.concrete(Pairs(q, q[:1], np.sqrt(q)[:, None] * np.sqrt(q)[:1]))  # type: ignore[arg-type]

    def concrete(self, data: Pairs) -> LayerKernels:
        """Kernels of a program without a grid from arrays of numbers: slower for many inputs, but nothing is compiled anew."""
        return self._kernels(data, Positions(0, False), _Concrete(self.largest))

    def kernels(self, data: Pairs) -> LayerKernels:
        """Kernels of inputs with these products; traceable by jax, once :meth:`survey` has seen inputs of that size."""
        return self._kernels(data, self.kept, _Traced(self.largest))

    def _kernels(self, data: Pairs, kept: Positions, expectations: Expectations) -> LayerKernels:
        ones = constant(data, kept)
        moments = Moments(self.reading, {X: data, ONE: ones, COTANGENT: ones}, self.scales, kept, expectations)
        flat = data.mapped(lambda a: np.zeros(a.shape[: a.ndim - kept.axes], a.dtype))  # type: ignore[arg-type,return-value]

        def summed(m: Pairs | None, mean: bool = False) -> Pairs:
            """Over the positions i = j."""
            if m is None:
                return flat
            axes = tuple(range(-kept.rank, 0))
            equal = m.mapped(lambda a: same_position(a, kept))
            return equal.mapped(lambda a: a.mean(axis=axes) if mean else a.sum(axis=axes))

        uses: dict[str, list[Pair]] = defaultdict(list)
        for pair in self.backward.pairs:
            uses[pair.matrix].append(pair)
        parts = {m: _scaled(self.rates[m], self._tangent(moments, uses[m], kept, flat)) for m in uses}
        last = next(s for s in self.program.products() if s.out == self.program.output)
        adjoints = self.backward.adjoints
        return LayerKernels(
            nngp=summed(moments.of(last.out, last.out)),
            ntk=Pairs(*(sum(a[1:], start=a[0]) for a in zip(*parts.values(), strict=True))),
            Phi=tuple(summed(moments.of(v.post, v.post), mean=True) for v in self.program.layers),
            G=tuple(summed(moments.of(adjoints.get(v.pre, ""), adjoints.get(v.pre, ""))) for v in self.program.layers),
            parts=parts,
        )

    def _tangent(self, moments: Moments, uses: list[Pair], kept: Positions, flat: Pairs) -> Pairs:
        """<adjoint adjoint'> <input input'> over all pairs of uses of a matrix, summed over pairs of positions."""
        total = flat
        axes = tuple(range(-kept.axes, 0))
        for p in uses:
            for q in uses:
                adjoint, argument = moments.of(p.adjoint, q.adjoint), moments.of(p.input, q.input)
                if adjoint is not None and argument is not None:
                    seen = through(p.window, argument, kept, False)
                    total = Pairs(*(t + (a * b).sum(axis=axes) for t, a, b in zip(total, adjoint, seen, strict=True)))
        return total


@dataclass(frozen=True)
class InitialKernels:
    """Kernels over all data points at initialisation, each (Pa, Pa), symmetric.

    Attributes:
        Phi: <phi(h^l) phi(h^l)> per reported layer.
        G: covariance of the O(1)-normalised df/dh^l per reported layer; the readout's adjoint has covariance scale^2.
        parts: matrix -> its term of the tangent kernel, rate included.
        output_covariance: covariance of the initial output at gamma0 = 1 where it is O(1): scale^2 <x x'> at the readout.
    """

    Phi: tuple[np.ndarray, ...]
    G: tuple[np.ndarray, ...]
    parts: Mapping[str, np.ndarray]
    output_covariance: np.ndarray

    @property
    def ntk(self) -> np.ndarray:
        """The tangent kernel: the sum of the terms of all matrices, (Pa, Pa)."""
        return np.sum(list(self.parts.values()), axis=0)


def propagate(program: Program, scales: Mapping[str, float], rates: Mapping[str, float], gram: np.ndarray) -> InitialKernels:
    """Kernels at initialisation, from the scalar products of the inputs alone.

    Args:
        program, scales, rates: as for :class:`Propagation`; a program without a grid.
        gram: x_mu . x_nu over all points, (Pa, Pa).

    Raises:
        InputError: for missing, unknown or malformed scales and rates, or a gram matrix that is not symmetric.
        ProgramError: for what leaves the Gaussian class, or unbound coefficients.

    Example: ``propagate(tp.mlp(depth=1, activation=tp.tanh), {"W0": 1, "W1": 1}, {"W0": 1, "W1": 1}, X @ X.T / D)``.
    """
    ready = Propagation(program, scales, rates)
    gram = checks.array("gram", gram, ndim=(2,), hint="gram is X @ X.T")
    if gram.shape[0] != gram.shape[1] or not np.allclose(gram, gram.T, rtol=1e-10, atol=1e-12):
        raise InputError("gram", f"an array of shape {gram.shape}", "a symmetric square matrix", "gram is X @ X.T")
    gram = (gram + gram.T) / 2
    lowest = float(np.linalg.eigvalsh(gram)[0])
    if lowest < -1e-10 * np.abs(gram).max() * len(gram):
        raise InputError("gram", f"an eigenvalue {lowest:.3g}", "a positive semidefinite matrix", "gram is X @ X.T")
    found = ready.concrete(Pairs(gram.diagonal(), gram.diagonal(), gram))  # type: ignore[arg-type]
    whole: Any = jax.tree.map(_symmetric, found, is_leaf=lambda x: isinstance(x, Pairs))
    return InitialKernels(whole.Phi, whole.G, whole.parts, whole.nngp)


def _symmetric(moments: Pairs) -> np.ndarray:
    """The kernel of one set of points with itself; equal points are exactly equal on the diagonal alone."""
    out = np.array(moments.cross)
    out = (out + out.T) / 2
    np.fill_diagonal(out, np.asarray(moments.left))
    return out


def _scaled(factor: float, moments: Pairs) -> Pairs:
    return moments.mapped(lambda a: factor * a)


def _per_matrix(name: str, given: Mapping[str, float], program: Program) -> dict[str, float]:
    names = [m.name for m in program.matrices]
    if not isinstance(given, Mapping) or set(given) != set(names):
        raise InputError(name, given, f"one number for each of {names}", "print the program to see its matrices")
    return {m: checks.number(f"{name}[{m!r}]", given[m], minimum=0.0) for m in names}
