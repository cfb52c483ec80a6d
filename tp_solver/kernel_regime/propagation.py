"""Kernels at initialisation of any program whose activations act on Gaussian fields (``theory/kernel_regime.md``, KR.1 and KR.2).

The forward program and its transpose are read once, statement by statement; nothing here knows an architecture, and no layer has a
tangent kernel of its own: that of a matrix is <adjoint adjoint'> <input input'>, summed over its uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.kernel_regime.covariance import covariance_matrix
from tp_solver.kernel_regime.expectations import Concrete, Survey, Traced
from tp_solver.kernel_regime.fields import Reading, read
from tp_solver.kernel_regime.moments import Expectations, Moments
from tp_solver.kernel_regime.pairs import (
    Pairs,
    Positions,
    averaged_over_positions,
    constant,
    contracted,
    inputs,
    summed,
    tangent,
    through,
    total,
    vanishing,
)
from tp_solver.limit.transposition import COTANGENT, Backward, Pair, transpose
from tp_solver.program.statements import ONE, Pool, Program, X

NEARLY_ZERO = 2.0**-80
"""A squared length relative to others that stands for zero where there is no value at zero."""

Factors = tuple[Pairs, ...]


class LayerKernels(NamedTuple):
    """Kernels between two sets of inputs, each a :class:`Pairs` without positions.

    Phi and G hold one entry per layer, or none where layers were not asked for. Over a grid Phi is the mean over positions; G the
    sum, so that it is the covariance of the whole df/dh.
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
    seen: Survey = field(init=False, default_factory=Survey)
    """The expectations that the program needs, and how large variances get."""

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
        """Learn how large the variances get at inputs of such squared lengths above zero (per position), and at zero; series and
        quadratures choose their length by it. One position is enough: variances are largest where all positions hold the same."""

        with jax.enable_x64(True):
            q: Any = np.asarray(squared_lengths, np.float64)
            # at zero an activation may be largest, but averages may divide by it: there, close to it
            q = np.append(q, q.min() * NEARLY_ZERO if self.reading.averages else 0.0)
            self.concrete(Pairs(q, q[:1], np.sqrt(q)[:, None] * np.sqrt(q)[:1]))

    def concrete(self, data: Pairs, layers: bool = True) -> LayerKernels:
        """Kernels of a program without a grid from float64 numpy arrays, which are noted in the survey."""
        return self._kernels(data, Positions(0, False), Concrete(self.seen), layers)

    def kernels(self, data: Pairs, layers: bool = True) -> LayerKernels:
        """Kernels of inputs with these products; traceable by jax, once :meth:`survey` has seen inputs of that size.

        Compiled as a whole every layer is compiled of its own; recorded (:mod:`tp_solver.kernel_regime.recording`) all layers share.
        """
        return self._kernels(data, self.kept, Traced(self.seen), layers)

    def _kernels(self, data: Pairs, kept: Positions, expectations: Expectations, layers: bool) -> LayerKernels:
        ones = constant(data, kept)
        moments = Moments(self.reading, {X: data, ONE: ones, COTANGENT: ones}, self.scales, kept, expectations)
        flat = vanishing(data, kept)  # constants have one entry for all pairs: what is returned takes the shape of this
        uses: dict[str, list[Factors]] = {m.name: [] for m in self.program.matrices}
        for p, q in self._pairs_of_uses():
            uses[p.matrix] += self._factors(moments, p, q, kept)

        def kernel(names: Iterable[str]) -> Pairs:
            terms = tuple((self.rates[name], tuple(uses[name])) for name in names if uses[name])
            return total((tangent(terms), flat)) if terms else flat

        def own(variable: str, over_positions: Callable[[Pairs, Positions], Pairs]) -> Pairs:
            found = moments.of(variable, variable)
            return flat if found is None else total((over_positions(found, kept) if kept.axes else found, flat))

        reported = self.program.layers if layers else ()
        return LayerKernels(
            nngp=own(self.program.output, summed),
            ntk=kernel(uses),
            Phi=tuple(own(v.post, averaged_over_positions) for v in reported),
            G=tuple(own(self.backward.adjoints.get(v.pre, ""), summed) for v in reported),
            parts={name: kernel([name]) for name in uses} if layers else {},
        )

    def _pairs_of_uses(self) -> Iterator[tuple[Pair, Pair]]:
        """All pairs of uses of the same matrix."""
        for p in self.backward.pairs:
            for q in self.backward.pairs:
                if p.matrix == q.matrix:
                    yield p, q

    def _factors(self, moments: Moments, p: Pair, q: Pair, kept: Positions) -> list[Factors]:
        """<adjoint adjoint'> and <input input'> as its window sees it, unless one of them vanishes; their sum over positions at once,
        as moments over pairs of positions are large."""
        adjoint, argument = moments.of(p.adjoint, q.adjoint), moments.of(p.input, q.input)
        if adjoint is None or argument is None:
            return []
        if not kept.axes:
            return [(adjoint, argument)]
        return [(contracted(adjoint, argument if p.window is None else through(p.window, argument, kept, False), kept),)]


@dataclass(frozen=True)
class InitialKernels:
    """Kernels over all data points at initialisation, each (Pa, Pa), symmetric.

    Attributes:
        Phi: <phi(h^l) phi(h^l)> per reported layer.
        G: covariance of the O(1)-normalised df/dh^l per reported layer; the readout's adjoint has covariance scale^2.
        parts: matrix -> its term of the tangent kernel, rate included.
        output_covariance: covariance of the initial output at gamma0 = 1 where it is O(1): scale^2 <x x'> at the readout, plus the
            variance of a bias.
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
    gram = covariance_matrix("gram", gram)
    with jax.enable_x64(True):
        data: Any = (gram.diagonal(), gram.diagonal(), gram)
        found = ready.concrete(Pairs(*data))
    whole: Any = jax.tree.map(_symmetric, found, is_leaf=lambda x: isinstance(x, Pairs))
    return InitialKernels(whole.Phi, whole.G, whole.parts, whole.nngp)


def _symmetric(moments: Pairs) -> np.ndarray:
    """The kernel of one set of points with itself; equal points are exactly equal on the diagonal alone."""
    out = np.array(moments.cross)
    out = (out + out.T) / 2
    np.fill_diagonal(out, np.asarray(moments.left))
    return out


def _per_matrix(name: str, given: Mapping[str, float], program: Program) -> dict[str, float]:
    names = [m.name for m in program.matrices]
    if not isinstance(given, Mapping) or set(given) != set(names):
        raise InputError(name, given, f"one number for each of {names}", "print the program to see its matrices")
    return {m: checks.number(f"{name}[{m!r}]", given[m], minimum=0.0) for m in names}
