"""Responses of programs whose maps are all linear, exactly: every vector as a combination of the Gaussian fields.

Each product's Gaussian field at each time is a formal symbol; the rows that the program carries are the coefficients of all
symbols, so a response A or B is an entry, also where the fields are linearly dependent (``theory/feature_learning.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver.limit.transposition import COTANGENT
from tp_solver.program.statements import ONE, Product, Role, X
from tp_solver.solve.layout import Columns
from tp_solver.solve.machine import Env, loss_and_error, run
from tp_solver.solve.march import Setting
from tp_solver.solve.operator import InputSites, ReadoutSites
from tp_solver.solve.prepare import Prepared

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

    def __init__(self, name: str, scale: float, book: _Book, inner: Any, partners: Mapping[str, str]) -> None:
        self._name, self._scale, self._book, self._inner, self._partners = name, scale, book, inner, partners
        self.t = 0
        self.met: dict[bool, list[tuple[int, str, np.ndarray]]] = {False: [], True: []}
        self.weights: list[np.ndarray] = []

    def forward(self, name: str, x: jax.Array) -> jax.Array:
        return self._act(name, np.asarray(x), False)

    def backward(self, name: str, y: jax.Array) -> jax.Array:
        return self._act(name, np.asarray(y), True)

    def _act(self, name: str, rows: np.ndarray, transpose: bool) -> jax.Array:
        out = np.zeros_like(rows)
        out[:, self._book.columns((self._name, transpose, name), self.t)] = np.eye(len(rows))
        for s, other, vectors in self.met[not transpose]:
            response = rows[:, self._book.columns((self._name, not transpose, other), s)]
            coefficients = self._scale**2 * response
            if s < len(self.weights):  # learned at step s: the partner of the pair, met in this orientation
                coefficients = coefficients + self._inner(name, self.t, self._partners[other], s) * self.weights[s]
            out = out + coefficients @ vectors
        self.met[transpose].append((self.t, name, rows))
        return jnp.asarray(out)


@dataclass(frozen=True)
class FormalResponses:
    """All responses of a linear run: rows (P, symbols) of every product's argument at every time."""

    book: _Book
    rows: Mapping[tuple[str, int], np.ndarray]

    def response(self, product: Product, opposite: Product, t: int, s: int) -> np.ndarray:
        """d(argument of ``product`` at t) / d(Gaussian field of ``opposite`` at s), (P, P)."""
        return self.rows[product.arg, t][:, self.book.columns((opposite.matrix, opposite.transpose, opposite.arg), s)]


class Coordinated(Protocol):
    """An exact run: outputs f (T, P, K), and variable -> coordinates (T, P, k) whose inner products are its covariance."""

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

    def inner(a: str, t: int, b: str, s: int) -> np.ndarray:
        return trajectory.coordinates[a][t] @ trajectory.coordinates[b][s].T

    with jax.enable_x64(True):
        acting: dict[str, Any] = {}
        for m in program.matrices:
            if m.role is Role.HIDDEN:
                mine = [p for p in plan.backward.pairs if p.matrix == m.name]
                partners = {p.adjoint: p.input for p in mine} | {p.input: p.adjoint for p in mine}
                acting[m.name] = _FormalMatrix(m.name, columns.scales[m.name], book, inner, partners)
            elif m.role is Role.READOUT:
                acting[m.name] = ReadoutSites(jnp.zeros((columns.outputs, width)))
            else:
                acting[m.name] = InputSites(jnp.zeros((columns.inputs[m.name], width)))
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
                    acting[p.matrix].update(p.adjoint, env[p.adjoint], p.input, env[p.input], rate * weights)
    return FormalResponses(book, rows)
