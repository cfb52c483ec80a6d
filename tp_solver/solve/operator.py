"""Weight matrices at infinite width (``theory/limit_operator.md``, LO.2).

A hidden matrix is the operator ``W = [s (eps_u Q^T + V eps_r^T) + V M Q^T] / S``: Q and V are orthonormal bases of what it
has met below and above, eps_u and eps_r their Gaussian partners, and M what it has learned. Input and readout matrices have
one side of fixed dimension, so they are a few numbers per site. What a step learns is a push; :mod:`tp_solver.solve.moving` moves
the weights by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tp_solver.numerics.basis import Basis, coordinates, extend
from tp_solver.numerics.sites import combine, inner, mean, over_points
from tp_solver.program.statements import Role


class OperatorState(NamedTuple):
    """What a hidden matrix is made of: bases of R vectors below and K above, their partners (site arrays), learned (K, R)."""

    below: Basis
    above: Basis
    eps_u: jax.Array
    eps_r: jax.Array
    learned: jax.Array


class LimitOperator:
    """A hidden matrix during one step; the partners already carry the initial scale."""

    def __init__(self, state: OperatorState, tol: float) -> None:
        self.state = state
        self._tol = tol
        self.squares: dict[str, jax.Array] = {}
        """Per vector met: its squared sizes (P,)."""
        self.below: dict[str, jax.Array] = {}
        self.above: dict[str, jax.Array] = {}
        self.response: dict[tuple[bool, str], jax.Array] = {}
        self.met: dict[tuple[bool, str], jax.Array] = {}
        """Per product (transposed or not, argument): its response, and how many opposite directions it could respond to."""
        self.push: jax.Array | float = 0.0
        """What the step's outer products add to the velocity, (K, R)."""

    def coordinates_below(self, name: str, x: jax.Array) -> jax.Array:
        """Coordinates (P, R) of a vector in the lower basis, which grows to hold it."""
        if name not in self.below:
            self.squares[name] = mean(x * x)
            basis, c = extend(self.state.below, x, self.squares[name], self._tol)
            self.state = self.state._replace(below=basis)
            self.below = {k: v for k, v in self.below.items()} | {name: c}
        return self.below[name]

    def coordinates_above(self, name: str, y: jax.Array) -> jax.Array:
        """Coordinates (P, K) of a vector in the upper basis, which grows to hold it."""
        if name not in self.above:
            self.squares[name] = mean(y * y)
            basis, d = extend(self.state.above, y, self.squares[name], self._tol)
            self.state = self.state._replace(above=basis)
            self.above = {k: v for k, v in self.above.items()} | {name: d}
        return self.above[name]

    def forward(self, name: str, x: jax.Array) -> jax.Array:
        """Gaussian part, response to earlier transposed products, learned part."""
        c = self.coordinates_below(name, x)
        s = self.state
        a = inner(x, s.eps_r)
        self.response[False, name], self.met[False, name] = a, s.above.used
        return combine(c, s.eps_u) + combine(a + c @ s.learned.T, s.above.rows)

    def backward(self, name: str, y: jax.Array) -> jax.Array:
        """The same with the roles of the two sides exchanged."""
        d = self.coordinates_above(name, y)
        s = self.state
        b = inner(y, s.eps_u)
        self.response[True, name], self.met[True, name] = b, s.below.used
        return combine(d, s.eps_r) + combine(b + d @ s.learned, s.below.rows)

    def keep(self, points: jax.Array) -> None:
        """Go on with some of the points alone."""
        self.below, self.above = ({k: c[points] for k, c in known.items()} for known in (self.below, self.above))

    def update(self, above: str, y: jax.Array, below: str, x: jax.Array, weights: jax.Array) -> None:
        """Push by ``sum_nu weights_nu y_nu x_nu^T``."""
        d, c = self.coordinates_above(above, y), self.coordinates_below(below, x)
        self.push = self.push + over_points(d * weights[:, None], c)


class Probe:
    """A hidden matrix met by new points: projection on the trained bases plus the noise that the projection leaves out.

    One-point functions are exact in law, and the trained state is not touched (``theory/limit_operator.md``, LO.6).
    """

    def __init__(
        self, state: OperatorState, scale: jax.Array, noise: dict[tuple[bool, str], jax.Array], met: dict[tuple[bool, str], jax.Array]
    ) -> None:
        self.state, self._scale, self._noise, self._met = state, scale, noise, met

    def forward(self, name: str, x: jax.Array) -> jax.Array:
        """As for training points, with ``sqrt(rho)`` independent noise, rho = <x x> - c.c."""
        s = self.state
        c = coordinates(s.below, x)
        response = self._masked(inner(x, s.eps_r), (False, name))
        return combine(c, s.eps_u) + self._rest((False, name), x, c) + combine(response + c @ s.learned.T, s.above.rows)

    def backward(self, name: str, y: jax.Array) -> jax.Array:
        """A transposed matrix in the forward program."""
        s = self.state
        d = coordinates(s.above, y)
        response = self._masked(inner(y, s.eps_u), (True, name))
        return combine(d, s.eps_r) + self._rest((True, name), y, d) + combine(response + d @ s.learned, s.below.rows)

    def _masked(self, response: jax.Array, product: tuple[bool, str]) -> jax.Array:
        """Only what the training points' own product could respond to: later directions would bring noise alone."""
        return jnp.where(jnp.arange(response.shape[1]) < self._met[product], response, 0.0)

    def _rest(self, product: tuple[bool, str], x: jax.Array, c: jax.Array) -> jax.Array:
        rho = jnp.maximum(mean(x * x) - jnp.sum(c * c, axis=1), 0.0)
        return self._scale * jnp.sqrt(rho)[:, None] * self._noise[product]


class InputSites:
    """An input matrix or bias: per site, one weight per input direction; ``weights`` and ``push`` are site arrays of r vectors."""

    def __init__(self, weights: jax.Array) -> None:
        self.weights = weights
        self.push: jax.Array | float = 0.0

    def forward(self, name: str, x: jax.Array) -> jax.Array:
        return combine(x, self.weights)

    def backward(self, name: str, y: jax.Array) -> jax.Array:
        raise NotImplementedError("programs never transpose an input matrix")

    def update(self, above: str, y: jax.Array, below: str, x: jax.Array, weights: jax.Array) -> None:
        """Push by ``sum_nu weights_nu x_nu y_nu``."""
        self.push = self.push + combine((x * weights[:, None]).T, y)

    @property
    def stepped(self) -> jax.Array:
        """The weights after a step of plain gradient descent."""
        return self.weights + self.push


class InputProbe:
    """An input matrix met by new points: what the training inputs do not span brings fresh noise."""

    def __init__(self, weights: jax.Array, rest: jax.Array) -> None:
        self._weights, self._rest = weights, rest

    def forward(self, name: str, x: jax.Array) -> jax.Array:
        return combine(x, self._weights) + self._rest

    def backward(self, name: str, y: jax.Array) -> jax.Array:
        raise NotImplementedError("programs never transpose an input matrix")


class ReadoutSites:
    """A readout: per site, one weight per output; ``weights`` and ``push`` are site arrays of K vectors, outputs averages."""

    def __init__(self, weights: jax.Array) -> None:
        self.weights = weights
        self.push: jax.Array | float = 0.0

    def forward(self, name: str, x: jax.Array) -> jax.Array:
        return inner(x, self.weights)

    def backward(self, name: str, y: jax.Array) -> jax.Array:
        return combine(y, self.weights)

    def update(self, above: str, y: jax.Array, below: str, x: jax.Array, weights: jax.Array) -> None:
        """Push by ``sum_nu weights_nu y_nu x_nu``."""
        self.push = self.push + combine((y * weights[:, None]).T, x)

    @property
    def stepped(self) -> jax.Array:
        """The weights after a step of plain gradient descent."""
        return self.weights + self.push


class OutputBias(ReadoutSites):
    """A bias on the output: the readout of the constant 1, whose weights are one number per output, the same at all sites."""

    def forward(self, name: str, x: jax.Array) -> jax.Array:
        return super().forward(name, self._everywhere(x))

    def backward(self, name: str, y: jax.Array) -> jax.Array:
        raise NotImplementedError("programs never transpose a bias")

    def update(self, above: str, y: jax.Array, below: str, x: jax.Array, weights: jax.Array) -> None:
        super().update(above, y, below, self._everywhere(x), weights)

    def _everywhere(self, x: jax.Array) -> jax.Array:
        """The constant (P, 1) at every site."""
        *blocks, _, sites = self.weights.shape
        return jnp.broadcast_to(x, (*blocks, len(x), sites))


SITES: Mapping[Role, type[InputSites | ReadoutSites]] = {
    Role.INPUT: InputSites,
    Role.BIAS: InputSites,
    Role.READOUT: ReadoutSites,
    Role.OUTPUT_BIAS: OutputBias,
}
"""What acts for a matrix with weights per site."""
