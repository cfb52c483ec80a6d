"""The printed equations mean what they say: evaluated node by node on samples, they give what finite networks do."""

from __future__ import annotations

import importlib.util
import operator
from functools import cache, reduce
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

from tp_solver.limit.derive import limit
from tp_solver.limit.master import step
from tp_solver.limit.transposition import COTANGENT, transpose
from tp_solver.program.architectures import mlp
from tp_solver.program.parameterization import D, muP
from tp_solver.program.statements import ONE, Map, Product, Role, Sum, X, symbol
from tp_solver.program.training import GradientDescent
from tp_solver.program.update import MOMENTUM as BETA
from tp_solver.symbols.activation import tanh
from tp_solver.symbols.equation import Kind
from tp_solver.symbols.notation import GAMMA0, MU, NU, Entrywise, Expectation, Observable, P, Quantity, Response, S, T

_path = Path(__file__).parents[1] / "golden" / "regenerate.py"
_spec = importlib.util.spec_from_file_location("golden_programs", _path)
assert _spec is not None and _spec.loader is not None
programs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(programs)

INPUTS = np.array([[1.2, -0.3], [0.5, 1.1]])
LABELS = np.array([1.0, -0.7])
LR, STEPS, STRENGTH, MOMENTUM = 0.8, 3, 1.5, 0.9


@cache
def compiled(arguments, expression):
    return sp.lambdify(arguments, expression, "numpy")


def padded(rows, length):
    return np.array([np.pad(r, (0, length - len(r))) for r in rows]).reshape(len(rows), length)


class Sampled:
    """Evaluates equations lazily: a field is an array over samples, a kernel an average, a response Stein's formula."""

    def __init__(self, theory, samples, seed, without=()):
        self.theory, self.samples, self.without = theory, samples, without
        self.rng = np.random.default_rng(seed)
        self.known = {}
        self.equation = {e.lhs.func(*e.lhs.args[:2]): e for e in theory.equations if isinstance(e.lhs, Quantity)}
        self.covariance = {}
        for e in (e for e in theory.equations if e.kind is Kind.GAUSSIAN):
            a, b = (e.lhs.args[0].args * 2)[:2] if not e.lhs.args[0].is_Pow else (e.lhs.args[0].base,) * 2
            first, second = (b, a) if NU in a.free_symbols and a != b else (a, b)
            self.covariance[first.args[:2], second.args[:2]] = e.rhs
        self.drawn = []  # (node, value, coordinates)
        self.white = []

    def value(self, node, env):
        node = node.xreplace(env)
        if node not in self.known:
            self.known[node] = self.compute(node)
        return self.known[node]

    def compute(self, node):
        label = node.label
        if (node.args[0], node.args[1]) in {k for pair in self.covariance for k in pair}:
            return self.draw(node)
        if label in self.without:
            return 0.0
        if label == "x":
            return INPUTS[int(node.args[2][0]), int(node.args[2][1]) - 1]
        if label == "y":
            return LABELS[int(node.args[2][0])]
        equation = self.equation[node.func(*node.args[:2])]
        env = dict(zip(equation.lhs.args[2], node.args[2], strict=True)) | dict(zip(equation.lhs.args[3], node.args[3], strict=True))
        return self.number(equation.rhs, env)

    def number(self, e, env):
        if e.is_Number:
            return float(e)
        if isinstance(e, Quantity):
            return self.value(e, env)
        if isinstance(e, Expectation):
            inner = e.args[0]
            return self.stein(inner.xreplace(env)) if isinstance(inner, Response) else np.mean(self.number(inner, env))
        if isinstance(e, Entrywise):
            expression = self.theory[str(e.args[0]) + "'" * int(e.args[1])]
            return compiled((expression.lhs.args[2],), expression.rhs)(self.number(e.args[2], env))
        if isinstance(e, sp.Sum):
            ranges = []
            for _, low, high in e.limits:
                bounds = [int(x.xreplace(env).xreplace({P: len(LABELS), D: INPUTS.shape[1]})) for x in (low, high)]
                ranges.append(range(bounds[0], bounds[1] + 1))
            names = [b for b, _, _ in e.limits]
            shift = [1 if n == NU else 0 for n in names]  # points are counted from 1 in the sums, from 0 in arrays
            total = 0.0
            for at in product(*ranges):
                total = total + self.number(e.function, {**env, **{n: sp.Integer(k - s) for n, k, s in zip(names, at, shift, strict=True)}})
            return total
        if e.is_Add:
            return sum(self.number(a, env) for a in e.args)
        if e.is_Mul:
            return reduce(operator.mul, (self.number(a, env) for a in e.args))
        if e.is_Pow:
            return self.number(e.base, env) ** self.number(e.exp, env)
        if e in env:
            return float(env[e])
        return {GAMMA0: STRENGTH, BETA: MOMENTUM, D: INPUTS.shape[1], P: len(LABELS), self.theory["eta"].lhs: LR}[e]

    def cov(self, a, b):
        for first, second in ((a, b), (b, a)):
            rhs = self.covariance.get((first.args[:2], second.args[:2]))
            if rhs is not None:
                env = {m: x.args[2][0] for m, x in ((MU, first), (NU, second)) if len(x.args[2])}
                env |= {m: x.args[3][0] for m, x in ((T, first), (S, second)) if len(x.args[3])}
                return float(self.number(rhs, env))
        return 0.0

    def draw(self, node):
        """One more Gaussian with the right covariance with all that were drawn before (they live on white coordinates)."""
        variance = self.cov(node, node)
        wanted = np.array([self.cov(node, n) for n, _, _ in self.drawn])
        known = padded([c for _, _, c in self.drawn], len(self.white))
        coordinates = np.linalg.pinv(known, rcond=1e-6) @ wanted if self.drawn else np.zeros(0)
        rest = variance - coordinates @ coordinates
        if rest > 1e-9 * variance:
            self.white.append(self.rng.standard_normal(self.samples))
            coordinates = np.append(coordinates, np.sqrt(rest))
        drawn = sum(c * w for c, w in zip(coordinates, self.white, strict=True))
        self.drawn.append((node, drawn, coordinates))
        return drawn

    def stein(self, response):
        moved, noise = response.args
        x = self.number(moved, {})
        self.value(noise, {})
        family = [d for d in self.drawn if self.related(d[0], noise)]
        rows = padded([c for _, _, c in family], len(self.white))
        slopes = np.linalg.pinv(rows @ rows.T, rcond=1e-5, hermitian=True) @ [np.mean(x * d[1]) for d in family]
        return slopes[[d[0] for d in family].index(noise)]

    def related(self, a, b):
        return (a.args[:2], b.args[:2]) in self.covariance or (b.args[:2], a.args[:2]) in self.covariance

    def outputs(self):
        return np.array(
            [
                [self.value(Observable("f", (), (sp.Integer(m),), (sp.Integer(t),)), {}) for m in range(len(LABELS))]
                for t in range(STEPS + 1)
            ]
        )


def trained(net, width, seed, momentum=0.0):
    """A finite network on the statements of the step, with dense matrices; outputs after 0, 1, ... updates."""
    rng = np.random.default_rng(seed)
    backward = transpose(net)
    shapes = {Role.INPUT: (width, INPUTS.shape[1]), Role.HIDDEN: (width, width), Role.READOUT: (1, width)}
    scale = {Role.INPUT: INPUTS.shape[1] ** -0.5, Role.HIDDEN: width**-0.5, Role.READOUT: 1.0}
    weights = {m.name: scale[m.role] * rng.standard_normal(shapes[m.role]) for m in net.matrices}
    # the mean over both signs of the readout has no fluctuation of f at the start
    outputs = []
    for sign in (1, -1):
        w = {m.name: weights[m.name] * (sign if m.role is Role.READOUT else 1) for m in net.matrices}
        run = []
        last = {name: np.zeros_like(v) for name, v in w.items()}
        for _ in range(STEPS + 1):
            v = {X: INPUTS.T, ONE: np.ones((1, len(LABELS))), COTANGENT: np.ones((1, len(LABELS)))}
            for s in step(net, backward):
                match s:
                    case Product():
                        v[s.out] = (w[s.matrix].T if s.transpose else w[s.matrix]) @ v[s.arg]
                    case Sum():
                        v[s.out] = sum(float(c) * v[a] for c, a in s.terms)
                    case Map():
                        v[s.out] = compiled(tuple(symbol(a) for a in s.arguments), s.expression)(*(v[a] for a in s.arguments))
            f = v[net.output][0] / (STRENGTH * width)
            run.append(f)
            error = (LABELS - f) / len(LABELS)
            last = {name: momentum * v for name, v in last.items()}
            for pair in backward.pairs:
                left, right = (pair.input, pair.adjoint) if pair.transpose else (pair.adjoint, pair.input)
                rate = {Role.INPUT: 1 / INPUTS.shape[1], Role.HIDDEN: 1 / width, Role.READOUT: 1.0}[net.matrix(pair.matrix).role]
                last[pair.matrix] = last[pair.matrix] + LR * STRENGTH * rate * (v[left] * error) @ v[right].T
            w = {name: v + last[name] for name, v in w.items()}
        outputs.append(run)
    return np.mean(outputs, axis=0)


@pytest.mark.parametrize("name", ["mlp", "residual", "tied", "there_and_back"])
def test_equations_agree_with_finite_networks(name):
    net = mlp(2, tanh) if name == "mlp" else getattr(programs, name)()
    theory = limit(net, muP, GradientDescent(lr=LR, steps=STEPS))
    solution = Sampled(theory, 20_000, 0).outputs()
    networks = np.mean([trained(net, 400, seed) for seed in range(16)], axis=0)

    def deviation(f):
        return np.sqrt(np.mean((f - networks) ** 2))

    # outputs are of order one; standard error of the networks' mean 0.004, their 1/N bias and the sampling error about as much
    assert deviation(solution) < 0.02
    # measured without responses: 0.04 to 0.19, four to forty times the deviation with them
    assert deviation(Sampled(theory, 20_000, 0, without=("A", "B")).outputs()) > 3 * deviation(solution)


def test_momentum_in_the_equations():
    """The push of step s has been made 1 + beta + ... times until t, in the fields and in the readout."""
    net = mlp(2, tanh)
    solution = Sampled(limit(net, muP, GradientDescent(lr=LR, steps=STEPS, momentum=MOMENTUM)), 20_000, 0).outputs()
    networks = np.mean([trained(net, 400, seed, MOMENTUM) for seed in range(16)], axis=0)
    plain = np.mean([trained(net, 400, seed) for seed in range(4)], axis=0)
    assert np.sqrt(np.mean((solution - networks) ** 2)) < 0.02 < 0.1 < np.sqrt(np.mean((plain - networks) ** 2))
