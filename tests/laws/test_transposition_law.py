"""The backward program is the gradient: on random small programs, run with plain arrays, it equals ``jax.grad``."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from tp_solver.elementwise import lower
from tp_solver.errors import ProgramError
from tp_solver.limit.transposition import COTANGENT, Backward, transpose
from tp_solver.program.architectures import mlp
from tp_solver.program.statements import ONE, Average, Map, Product, Program, Role, Space, Statement, Sum, X, symbol
from tp_solver.program.tracing import Vector, average, bias, entrywise, hidden_matrix, input_matrix, program, readout
from tp_solver.symbols.activation import Activation, erf, gelu, relu, sin, tanh

N, D, P = 7, 3, 4
"""Sites, input dimension and data points: all different, so that a transposed axis cannot pass."""

Arrays = dict[str, jax.Array]


def shape_of(space: Space, outputs: int) -> tuple[int, ...]:
    return {Space.DATA: (D, P), Space.WIDTH: (N, P), Space.OUTPUT: (outputs, P), Space.SCALAR: (P,)}[space]


def evaluate(s: Statement, values: Arrays, matrices: Arrays) -> jax.Array:
    match s:
        case Product():
            matrix = matrices[s.matrix]
            return (matrix.T if s.transpose else matrix) @ values[s.arg]
        case Sum():
            return sum(float(c) * values[name] for c, name in s.terms)  # type: ignore[return-value]
        case Map() | Average():
            value = lower(s.expression, tuple(map(symbol, s.arguments)))(*(values[a] for a in s.arguments))
            return jnp.broadcast_to(value, (N, P)).mean(axis=0) if isinstance(s, Average) else value
    raise AssertionError(s)


def run(
    statements: tuple[Statement, ...], spaces: dict[str, Space], values: Arrays, matrices: Arrays, shifts: Arrays, outputs: int
) -> Arrays:
    """Execute statements on top of known values, adding ``shifts`` to the variables they name."""
    values = dict(values)
    for s in statements:
        value = jnp.broadcast_to(evaluate(s, values, matrices), shape_of(spaces[s.out], outputs))
        values[s.out] = value + shifts[s.out] if s.out in shifts else value
    return values


def draw(net: Program, outputs: int, rng: np.random.Generator) -> Arrays:
    sizes = {Role.INPUT: (N, D), Role.BIAS: (N, 1), Role.HIDDEN: (N, N), Role.READOUT: (outputs, N), Role.OUTPUT_BIAS: (outputs, 1)}
    return {m.name: jnp.asarray(rng.standard_normal(sizes[m.role]) / np.sqrt(sizes[m.role][1])) for m in net.matrices}


def gradients_by_transposition(
    net: Program, back: Backward, values: Arrays, matrices: Arrays, cotangent: jax.Array
) -> tuple[Arrays, Arrays]:
    """Gradient of every matrix, and ``n df/dv`` (``df/dc`` for averages) of every variable, from the derived program alone."""
    readouts = {m.name for m in net.matrices if m.role.codomain is Space.OUTPUT}
    scaled = {name: N * w if name in readouts else w for name, w in matrices.items()}
    outputs = cotangent.shape[0]
    known = run(back.statements, dict(back.spaces), {**values, COTANGENT: cotangent}, scaled, {}, outputs)
    gradients = {name: jnp.zeros_like(w) for name, w in matrices.items()}
    for pair in back.pairs:
        adjoint, given = known[pair.adjoint], known[pair.input]
        outer = given @ adjoint.T if pair.transpose else adjoint @ given.T
        gradients[pair.matrix] += outer / (1 if pair.matrix in readouts else N)
    return gradients, {v: known[a] for v, a in back.adjoints.items()}


def gradients_by_jax(net: Program, known: Arrays, matrices: Arrays, cotangent: jax.Array) -> tuple[Arrays, Arrays]:
    spaces, outputs = net.spaces(), cotangent.shape[0]

    def value(matrices: Arrays, shifts: Arrays) -> jax.Array:
        return jnp.sum(cotangent * run(net.statements, spaces, known, matrices, shifts, outputs)[net.output])

    shifts = {s.out: jnp.zeros(shape_of(spaces[s.out], outputs)) for s in net.statements}
    by_matrix, by_shift = jax.grad(value, argnums=(0, 1))(matrices, shifts)
    return by_matrix, {v: g * (N if spaces[v] is Space.WIDTH else 1) for v, g in by_shift.items()}


def worst_deviation(net: Program, outputs: int, seed: int, back: Backward | None = None) -> float:
    """Largest deviation over all matrices and variables, relative to the largest entry of each gradient (and to 1)."""
    back = transpose(net) if back is None else back
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        matrices = draw(net, outputs, rng)
        inputs = {X: jnp.asarray(rng.standard_normal((D, P))), ONE: jnp.ones((1, P))}
        cotangent = jnp.asarray(rng.standard_normal((outputs, P)))
        values = run(net.statements, net.spaces(), inputs, matrices, {}, outputs)
        by_matrix, by_variable = gradients_by_transposition(net, back, values, matrices, cotangent)
        matrix_witness, variable_witness = gradients_by_jax(net, inputs, matrices, cotangent)
        deviation = 0.0
        for got, expected in ((by_matrix, matrix_witness), (by_variable, variable_witness)):
            for name, exact in expected.items():
                found = got.get(name, jnp.zeros_like(exact))
                assert found.shape == exact.shape, name
                deviation = max(deviation, float(jnp.abs(found - exact).max() / jnp.maximum(1.0, jnp.abs(exact).max())))
    return deviation


def random_program(seed: int) -> Program:
    """Compose tracing operations at random; every tenth of them or so is of each kind."""
    rng = random.Random(seed)
    hidden = [hidden_matrix("W1"), hidden_matrix("W2")]
    inputs = [input_matrix("W0"), input_matrix("U0")]
    biases = [bias("b1", 1), bias("b2", sp.Rational(1, 2))]
    activations = [tanh, erf, sin, gelu, relu, Activation("swish", lambda x: x / (1 + sp.exp(-x)))]

    def layer_norm(v: Vector) -> Vector:
        mean, square = average(lambda a: a, v), average(lambda a: a**2, v)
        return entrywise(lambda a, m, s: (a - m) / sp.sqrt(s - m**2 + 1), v, mean, square)

    def gate(v: Vector, u: Vector) -> Vector:
        return entrywise(lambda a, c: a * sp.tanh(c), v, average(lambda a, b: a * sp.cos(b), v, u))

    def bounded(v: Vector) -> Vector:
        return rng.choice([tanh, sin, erf])(v)

    def network(x: Vector) -> Vector:
        known = [bounded(inputs[0] @ x)]
        operations: list[Callable[[Vector, Vector], Vector]] = [
            lambda v, u: rng.choice(activations)(v),
            lambda v, u: rng.choice(hidden) @ v,
            lambda v, u: rng.choice(hidden).T @ v,
            lambda v, u: v + rng.choice(hidden) @ u,  # skip connection
            lambda v, u: sp.Rational(1, 2) * v - u / 3,
            lambda v, u: v * bounded(u),
            lambda v, u: entrywise(lambda a, b: sp.tanh(a) * b + a / (1 + b**2), v, u),
            lambda v, u: layer_norm(v),
            gate,
            lambda v, u: v + rng.choice(biases),
            lambda v, u: v + inputs[1] @ x,
            lambda v, u: v + v,
        ]
        for _ in range(rng.randint(3, 7)):
            v = rng.choice(operations)(rng.choice(known[-2:]), rng.choice(known))
            known.append(bounded(v) if rng.random() < 0.3 else v)
        out = readout("w") @ known[-1]
        return out + bias("c") if seed % 4 == 0 else out

    return program(network, f"random {seed}")


def has_weight_sharing(net: Program) -> bool:
    return any(sum(p.matrix == m.name for p in net.products()) > 1 for m in net.matrices)


SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_backward_program_is_the_gradient(seed):
    # sums of a few hundred float64 products: rounding is below 1e-13 relative, a wrong term is of order one
    assert worst_deviation(random_program(seed), outputs=1 + seed % 3, seed=seed) < 1e-10


def test_random_programs_cover_what_the_law_is_about():
    nets = [random_program(seed) for seed in SEEDS]
    assert sum(has_weight_sharing(n) for n in nets) >= 5
    assert sum(any(p.transpose for p in n.products()) for n in nets) >= 5
    assert sum(any(isinstance(s, Average) for s in n.statements) for n in nets) >= 10
    assert sum(any(isinstance(s, Map) and len(s.arguments) > 1 for s in n.statements) for n in nets) >= 10
    assert sum(any(m.role is Role.BIAS for m in n.matrices) for n in nets) >= 5
    assert sum(len(n.output_terms) == 2 for n in nets) >= 5


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("with_bias", [False, True])
def test_multilayer_perceptrons(depth, with_bias):
    net = mlp(depth, tanh, with_bias)
    assert worst_deviation(net, outputs=2, seed=depth) < 1e-10
    # the names that equations and reports are printed with
    assert {f"{v}{layer}" for v in ("h", "x") for layer in range(1, depth + 1)} <= set(transpose(net).adjoints)
    assert all(transpose(net).adjoints[f"{v}{layer}"] == f"d{v}{layer}" for v in ("h", "x") for layer in range(1, depth + 1))


def residual() -> Program:
    w0, blocks, last = input_matrix("W0"), [hidden_matrix(f"W{k}") for k in range(1, 5)], readout("w")

    def network(x: Vector) -> Vector:
        stream = w0 @ x
        for block in blocks:
            stream = stream + block @ tanh(stream) / 2
        return last @ tanh(stream)

    return program(network)


def weight_tied() -> Program:
    w0, w1, last = input_matrix("W0"), hidden_matrix("W1"), readout("w")
    return program(lambda x: last @ tanh(w1 @ tanh(w1 @ tanh(w0 @ x))), "tied")


def linear_average() -> Program:
    """A vector read by nothing but a linear average: its adjoint is the same at every site."""
    w0, u0, last = input_matrix("W0"), input_matrix("U0"), readout("w")
    return program(lambda x: last @ tanh(entrywise(lambda a, c: a * c, w0 @ x, average(lambda a: 3 * a, u0 @ x))), "linear average")


@pytest.mark.parametrize("net", [residual(), weight_tied(), linear_average()], ids=lambda n: n.name)
def test_named_architectures(net):
    assert worst_deviation(net, outputs=1, seed=5) < 1e-10


def test_a_wrong_backward_program_is_noticed():
    net = weight_tied()
    back = transpose(net)
    unrelated = replace(back, pairs=back.pairs[:1] + back.pairs[2:])
    flipped = replace(
        back,
        statements=tuple(
            replace(s, transpose=not s.transpose) if isinstance(s, Product) and s.matrix == "W1" else s for s in back.statements
        ),
    )
    assert worst_deviation(net, 1, 0, unrelated) > 1e-2
    assert worst_deviation(net, 1, 0, flipped) > 1e-2


def test_pairs_of_a_shared_matrix():
    pairs = [p for p in transpose(weight_tied()).pairs if p.matrix == "W1"]
    assert [(p.adjoint, p.input) for p in pairs] == [("dh3", "x2"), ("dh2", "x1")]


def test_adjoint_names_cannot_be_taken():
    w0, w = input_matrix("W0"), readout("w")
    net = program(lambda x: w @ tanh((w0 @ x).named("dh")).named("h"))
    with pytest.raises(ProgramError, match=r"named: got 'dh'.*Hint: "):
        transpose(net)
