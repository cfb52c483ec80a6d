"""Responses of programs whose maps are all linear, exactly: every vector as a combination of the Gaussian fields.

Each product's Gaussian field at each time is a formal symbol; the rows that the program carries are the coefficients of all
symbols, so a response A or B is an entry, also where the fields are linearly dependent (``theory/feature_learning.md``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.limit.transposition import COTANGENT
from tp_solver.program.statements import ONE, Product, Role, Space, X
from tp_solver.solve.layout import ABOVE, BELOW, Columns, Home
from tp_solver.solve.machine import Env, loss_and_error, run
from tp_solver.solve.march import Setting
from tp_solver.solve.operator import SITES
from tp_solver.solve.prepare import Prepared
from tp_solver.solve.sweep import learned_pairs

Block = tuple[str, bool, str]
"""A product by matrix, transposition and argument: its Gaussian field at one time is P symbols."""


@dataclass
class _Book:
    """Where the symbols of a block at a time stand among the columns."""

    blocks: tuple[Block, ...]
    points: int

    def columns(self, block: Block, t: int) -> slice:
        start = (t * len(self.blocks) + self.blocks.index(block)) * self.points
        return slice(start, start + self.points)

    def width(self, times: int) -> int:
        return times * len(self.blocks) * self.points


class _FormalMatrix:
    """A hidden matrix acting on coefficient rows: own symbol, responses to earlier opposite products, learned part."""

    def __init__(self, name: str, scale: float, book: _Book, inner: Any, pairs: Sequence[tuple[str, str]]) -> None:
        """``pairs``: (lower, upper) vectors whose outer products the matrix learns."""
        self._name, self._scale, self._book, self._inner, self._pairs = name, scale, book, inner, pairs
        self.t = 0
        self.met: dict[bool, list[tuple[int, str, np.ndarray]]] = {False: [], True: []}
        self.weights: list[np.ndarray] = []
        self._results: dict[tuple[int, bool, str], jax.Array] = {}

    def forward(self, name: str, x: jax.Array) -> jax.Array:
        return self._act(name, np.asarray(x), False)

    def backward(self, name: str, y: jax.Array) -> jax.Array:
        return self._act(name, np.asarray(y), True)

    def _act(self, name: str, rows: np.ndarray, transpose: bool) -> jax.Array:
        if (self.t, transpose, name) in self._results:  # the same product again is the same vector, and no further field
            return self._results[self.t, transpose, name]
        out = np.zeros_like(rows)
        out[:, self._book.columns((self._name, transpose, name), self.t)] = np.eye(len(rows))
        for s, other, vectors in self.met[not transpose]:
            response = rows[:, self._book.columns((self._name, not transpose, other), s)]
            coefficients = self._scale**2 * response
            if s < len(self.weights):  # learned at step s: the partners of the other vector, met in this orientation
                home = Home(self._name, ABOVE if transpose else BELOW)
                for partner in (pair[transpose] for pair in self._pairs if pair[not transpose] == other):
                    coefficients = coefficients + self._inner(home, name, self.t, partner, s) * self.weights[s]
            out = out + coefficients @ vectors
        self.met[transpose].append((self.t, name, rows))
        self._results[self.t, transpose, name] = jnp.asarray(out)
        return self._results[self.t, transpose, name]


@dataclass(frozen=True)
class FormalResponses:
    """All responses of a linear run: rows (P, symbols) of every product's argument at every time."""

    book: _Book
    rows: Mapping[tuple[str, int], np.ndarray]

    def response(self, product: Product, opposite: Product, t: int, s: int) -> np.ndarray:
        """d(argument of ``product`` at t) / d(Gaussian field of ``opposite`` at s), (P, P)."""
        return self.rows[product.arg, t][:, self.book.columns((opposite.matrix, opposite.transpose, opposite.arg), s)]


class Coordinated(Protocol):
    """An exact run: outputs f (T, P, K), and variable -> coordinates (T, P, k) whose inner products are its covariance; under
    "matrix.side:variable" those in another basis than the first that the variable meets."""

    @property
    def f(self) -> np.ndarray: ...

    @property
    def coordinates(self) -> Mapping[str, np.ndarray]: ...


def formal_responses(prepared: Prepared, trajectory: Coordinated, gamma0: float) -> FormalResponses:
    """Run the program once more on coefficient rows, with the order parameters of an exact trajectory."""
    setting: Setting = prepared.setting
    columns: Columns = prepared.columns
    plan, program = setting.plan, setting.plan.program
    products = [s for s in (*program.statements, *plan.backward.statements) if isinstance(s, Product) and s.matrix in plan.hidden]
    P = len(prepared.x)
    book = _Book(tuple((s.matrix, s.transpose, s.arg) for s in products), P)
    times = len(trajectory.f)
    width = book.width(times)

    recorded = trajectory.coordinates

    def inner(home: Home, a: str, t: int, b: str, s: int) -> np.ndarray:
        c, d = (recorded.get(f"{home}:{v}", recorded.get(v)) for v in (a, b))
        assert c is not None and d is not None
        return c[t] @ d[s].T

    with jax.enable_x64(True):
        acting: dict[str, Any] = {}
        for m in program.matrices:
            if m.role is Role.HIDDEN:
                acting[m.name] = _FormalMatrix(m.name, columns.scales[m.name], book, inner, learned_pairs(plan)[m.name])
            else:
                rows_of = columns.outputs if m.role.codomain is Space.OUTPUT else columns.inputs[m.name]
                acting[m.name] = SITES[m.role](jnp.zeros((rows_of, width)))
        rows: dict[tuple[str, int], np.ndarray] = {}
        x, y = jnp.asarray(prepared.x), jnp.asarray(prepared.y)
        for t in range(times):
            for name in plan.hidden:
                acting[name].t = t
            env: Env = run(program.statements, {X: x, ONE: jnp.ones_like(x[:, :1])}, acting)
            _, error = loss_and_error(setting.loss, jnp.asarray(trajectory.f[t]), y)
            e = error / P
            env[COTANGENT] = jnp.ones_like(e) if setting.scalar else e
            weights = e[:, 0] if setting.scalar else jnp.ones(P)
            env = run(plan.backward.statements, env, acting)
            rows |= {(s.arg, t): np.asarray(env[s.arg]) for s in products}
            for p in plan.backward.pairs:
                rate = prepared.rates[p.matrix] * gamma0
                if p.matrix in plan.hidden:
                    acting[p.matrix].weights[t:] = [np.asarray(rate * weights)]
                else:
                    sites = acting[p.matrix]
                    sites.update(p.adjoint, env[p.adjoint], p.input, env[p.input], rate * weights)
                    sites.weights, sites.push = sites.stepped, 0.0
    return FormalResponses(book, rows)
