"""Kernels at initialisation of any program whose activations act on Gaussian fields (``theory/kernel_regime.md``, KR.1 and KR.2).

The forward program and its transpose are read once, statement by statement; nothing here knows an architecture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError, ProgramError
from tp_solver.kernel_regime.gaussian_fields import Field, Moments, add, apply, backward_gaussian, forward_gaussian
from tp_solver.limit.transposition import COTANGENT, Backward, Pair, transpose
from tp_solver.program.statements import ONE, Average, Map, Product, Program, Statement, Sum, X


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
    """Kernels at initialisation.

    Args:
        program: a traced network without averages, coefficients bound to numbers.
        scales: matrix -> s >= 0 with product covariance s^2 <x x'>. Constants such as 1/sqrt(D) belong to the scale of an
            input matrix, as ``gram`` does not hold them; the scale of a bias is its standard deviation.
        rates: matrix -> weight >= 0 of its term in the tangent kernel (eta alpha^2; 0 for terms that the exponents drop).
        gram: x_mu . x_nu over all points, (Pa, Pa).

    Raises:
        InputError: for missing, unknown or malformed scales and rates, or a gram matrix that is not symmetric.
        ProgramError: for averages, maps of two Gaussian fields, a matrix used together with its transpose in the forward
            program, or unbound coefficients.

    Example: ``propagate(tp.mlp(depth=1, activation=tp.tanh), {"W0": 1, "W1": 1}, {"W0": 1, "W1": 1}, X @ X.T / D)``.
    """
    scales, rates = _per_matrix("scales", scales, program), _per_matrix("rates", rates, program)
    gram = checks.array("gram", gram, ndim=(2,), hint="gram is X @ X.T")
    if gram.shape[0] != gram.shape[1] or not np.allclose(gram, gram.T, rtol=1e-10, atol=1e-12):
        raise InputError("gram", f"an array of shape {gram.shape}", "a symmetric square matrix", "gram is X @ X.T")
    backward = transpose(program)
    _refuse(program)
    moments = Moments(len(gram))
    fields = _fields(program, backward, scales, moments, (gram + gram.T) / 2)

    uses: dict[str, list[Pair]] = defaultdict(list)
    for pair in backward.pairs:
        uses[pair.matrix].append(pair)
    parts = {}
    for name, pairs in uses.items():
        terms = [
            moments.inner(fields[p.adjoint], fields[q.adjoint]) * moments.inner(fields[p.input], fields[q.input])
            for p in pairs
            for q in pairs
        ]
        total = np.sum(terms, axis=0)
        parts[name] = rates[name] * (total + total.T) / 2
    last = next(s for s in program.products() if s.out == program.output)
    dead: Field = ()
    return InitialKernels(
        Phi=tuple(moments.inner(fields[v.post], fields[v.post]) for v in program.layers),
        G=tuple(moments.inner(g, g) for g in (fields.get(backward.adjoints.get(v.pre, ""), dead) for v in program.layers)),
        parts=parts,
        output_covariance=scales[last.matrix] ** 2 * moments.inner(fields[last.arg], fields[last.arg]),
    )


def _fields(program: Program, backward: Backward, scales: Mapping[str, float], moments: Moments, gram: np.ndarray) -> dict[str, Field]:
    """The field of every variable, and the covariances of all products, in program order."""
    ones = np.ones_like(gram)
    fields = {X: forward_gaussian(X), ONE: forward_gaussian(ONE), COTANGENT: backward_gaussian(COTANGENT)}
    for name, second in ((X, gram), (ONE, ones), (COTANGENT, ones)):
        moments.set_product(name, name, second)
    families: dict[tuple[str, bool], list[Product]] = defaultdict(list)

    def run(statements: tuple[Statement, ...], product) -> None:
        for s in statements:
            match s:
                case Product():
                    fields[s.out] = product(s.out)
                    family = families[s.matrix, s.transpose]
                    family.append(s)
                    for other in family:
                        moments.set_product(s.out, other.out, scales[s.matrix] ** 2 * moments.inner(fields[s.arg], fields[other.arg]))
                case Sum():
                    fields[s.out] = add(s, fields)
                case Map():
                    fields[s.out] = apply(s, fields)

    run(program.statements, forward_gaussian)
    run(backward.statements, backward_gaussian)
    return fields


def _per_matrix(field: str, given: Mapping[str, float], program: Program) -> dict[str, float]:
    names = [m.name for m in program.matrices]
    if not isinstance(given, Mapping) or set(given) != set(names):
        raise InputError(field, given, f"one number for each of {names}", "print the program to see its matrices")
    return {name: checks.number(f"{field}[{name!r}]", given[name], minimum=0.0) for name in names}


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
