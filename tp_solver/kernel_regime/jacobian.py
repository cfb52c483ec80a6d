"""A network and its input Jacobian as one Gaussian process, with the tangent kernel of both (``theory/jacobian.md``).

F(x) = (f(x), df/dx_1, ..., df/dx_D). Both kernels of F are derivatives of the kernels of f: nothing here knows a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from tp_solver import checks
from tp_solver.errors import BudgetError, InputError, ProgramError
from tp_solver.kernel_regime.compute import kernel_function, require_finite
from tp_solver.kernel_regime.constants import numeric_constants
from tp_solver.kernel_regime.pairs import Pairs
from tp_solver.kernel_regime.propagation import Propagation
from tp_solver.limit.spec import limit_spec
from tp_solver.numerics.compiled import Compiled, compiled
from tp_solver.numerics.memory_maps import make_room_for_programs
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.positions import channels_of
from tp_solver.program.statements import Average, Map, Program

GIB = 4.0
"""Default memory budget."""
BLOCK_BYTES = 2**26
"""Size of the result for one block of pairs; what its computation takes beside it is the compiler's to say."""
KINKED = (sp.Max, sp.Min, sp.Abs, sp.sign, sp.Heaviside, sp.Piecewise, sp.floor, sp.ceiling)

Blocks = Callable[[jax.Array, jax.Array], jax.Array]
"""From inputs (n1, D) and (n2, D) to the kernels of F, (2, n1, 1 + D, n2, 1 + D), NNGP first."""


@dataclass(frozen=True, eq=False, repr=False)
class JacobianKernels:
    """Kernels of F = (f, df/dx) between n1 and n2 inputs; :func:`jacobian_kernels` makes one. Prints as a table.

    Attributes:
        nngp: covariance of the initial F at gamma0 = 1, (n1, 1 + D, n2, 1 + D): entry [m, a, n, b] is
            d_{x_a} d_{x'_b} K(x_m, x'_n), where the derivative 0 is the function itself.
        ntk: tangent kernel of F, rates eta included, lr not; likewise.
        symmetric: whether both sets of inputs are the same.
    """

    nngp: np.ndarray
    ntk: np.ndarray
    symmetric: bool = False

    @property
    def dimension(self) -> int:
        """D."""
        return self.nngp.shape[1] - 1

    def sample(self, draws: int, seed: int = 0, gamma0: float = 1.0) -> np.ndarray:
        """Initial functions with their derivatives, from the joint Gaussian process of variance nngp / gamma0^2.

        Args:
            draws: how many; seed: of the random numbers; gamma0: feature-learning strength > 0.

        Returns:
            (draws, n1, 1 + D).

        Raises:
            InputError: for malformed arguments, or kernels between two sets of inputs.
        """
        draws = checks.integer("draws", draws, minimum=1)
        seed = checks.integer("seed", seed, minimum=0)
        gamma0 = checks.number("gamma0", gamma0, above=0.0, hint="at gamma0 = 0 initial functions have no limit")
        if not self.symmetric:
            raise InputError("X2", "kernels between two sets of inputs", "those of one set", "sample from jacobian_kernels(net, par, X)")
        n, entries = self.nngp.shape[:2]
        values, vectors = np.linalg.eigh(matrix(self.nngp))
        root = vectors * np.sqrt(np.maximum(values, 0.0)) / gamma0
        return (np.random.default_rng(seed).standard_normal((draws, n * entries)) @ root.T).reshape(draws, n, entries)

    def __str__(self) -> str:
        n1, n2 = self.nngp.shape[0], self.nngp.shape[2]
        lines = [
            f"kernels of (f, df/dx) of {n1} x {n2} inputs of dimension {self.dimension}{', symmetric' if self.symmetric else ''}",
            f"  {'':<20} {'rms':>12} {'smallest':>12} {'largest':>12}",
        ]
        parts = (("f, f", np.s_[:, :1, :, :1]), ("f, df/dx", np.s_[:, :1, :, 1:]), ("df/dx, df/dx", np.s_[:, 1:, :, 1:]))
        for name, kernel in (("nngp", self.nngp), ("ntk", self.ntk)):
            for what, at in parts:
                v = kernel[at]
                lines.append(f"  {name + ' of ' + what:<20} {np.sqrt(np.mean(v**2)):>12.5g} {v.min():>12.5g} {v.max():>12.5g}")
        return "\n".join(lines)

    __repr__ = __str__


def matrix(kernel: np.ndarray) -> np.ndarray:
    """From (n1, 1 + D, n2, 1 + D) to (n1 (1 + D), n2 (1 + D)), the entries of a point side by side."""
    n1, entries, n2, _ = kernel.shape
    return kernel.reshape(n1 * entries, n2 * entries)


def jacobian_kernels(net: Program, parameterization: Parameterization, X: Any, X2: Any = None, memory: float = GIB) -> JacobianKernels:
    """NNGP and NTK of a network together with its derivatives with respect to the input.

    JNNGP_ab(x, x') = d_{x_a} d_{x'_b} K(x, x') and JNTK_ab likewise, with d_0 the identity (Kim and Yang, arXiv:2312.03386, Theorems on the
    joint process; ``theory/jacobian.md``, KJ.1 and KJ.2). float64; of one set of inputs only pairs on and above the diagonal are computed.

    Args:
        net: a program with smooth activations, over a grid too.
        parameterization: its exponents and constants.
        X: inputs (n1, D), or (n1, *grid, channels), over which D runs row-major.
        X2: a second set; None for the kernels of X with itself.
        memory: GiB that the results and the work may take.

    Raises:
        ProgramError: for activations whose slope has a kink or a jump (ReLU), for programs that leave the Gaussian class, and for a
            zero input under a norm without a floor.
        InputError: for malformed inputs. BudgetError: if the kernels do not fit.

    Example: ``jacobian_kernels(tp.mlp(depth=2, activation=tp.erf), tp.ntk, X).ntk``.
    """
    return rated_jacobian_kernels(net, parameterization, None, X, X2, memory)


def rated_jacobian_kernels(
    net: Any, parameterization: Any, rates: Mapping[str, float] | None, X: Any, X2: Any = None, memory: float = GIB
) -> JacobianKernels:
    """The same with a learning rate per matrix, by which its term of the tangent kernel is multiplied (None: all one)."""
    net = checks.instance("net", net, Program, "a program such as tp.mlp(depth=2, activation=tp.erf)")
    parameterization = checks.instance("parameterization", parameterization, Parameterization, "a Parameterization such as tp.ntk")
    require_smooth(net)
    x1 = _flat("X", X, net)
    x2 = x1 if X2 is None else _flat("X2", X2, net)
    if x1.shape[1] != x2.shape[1]:
        raise InputError("X2", f"inputs of dimension {x2.shape[1]}", f"dimension {x1.shape[1]}, as X", "use the same features")
    memory = checks.number("memory", memory, above=0.0, hint="memory is in GiB")
    lengths = np.sum(np.concatenate([x1, x2]) ** 2, axis=1)
    largest = int(np.ceil(np.log2(lengths.max()))) if lengths.any() else 0
    chosen = None if rates is None else tuple(sorted(rates.items()))
    make_room_for_programs()
    block = _block(_Model(net, parameterization, chosen, x1.shape[1], largest), len(x1), len(x2), memory)
    out = np.empty((2, len(x1), 1 + x1.shape[1], len(x2), 1 + x1.shape[1]))
    for rows, columns in _blocks(len(x1), len(x2), block.sides, X2 is None):
        with jax.enable_x64(True):
            found = np.asarray(block.run.call(_padded(x1[rows], block.sides[0]), _padded(x2[columns], block.sides[1])))
        found = found[:, : rows.stop - rows.start, :, : columns.stop - columns.start]
        require_finite("jacobian_kernels", dict(zip(("nngp", "ntk"), found.transpose(0, 2, 4, 1, 3), strict=True)))
        if X2 is None:
            swapped = found.transpose(0, 3, 4, 1, 2)
            if rows == columns:
                found = found + swapped
                found /= 2
            else:
                out[:, columns, :, rows] = swapped
        out[:, rows, :, columns] = found
        del found  # the next block needs its room
    return JacobianKernels(out[0], out[1], X2 is None)


def require_smooth(net: Program) -> None:
    """Refuse maps whose second derivative is not a continuous function.

    Raises:
        ProgramError: naming the map. The tangent kernel of df/dx needs E phi''(u) phi''(v): infinite at equal inputs where the slope
            jumps (ReLU), and out of reach of derivatives of the kernel where phi'' does (ELU).
    """
    for s in net.statements:
        if isinstance(s, (Map, Average)) and s.expression.has(*KINKED):
            raise ProgramError(
                f"statement {s.out}",
                s.expression,
                "a map with a continuous second derivative",
                "input derivatives have no tangent kernel at equal inputs for kinks: take tp.erf, tp.tanh, tp.gelu or another smooth one",
            )


class _Model(NamedTuple):
    """What a compiled block depends on."""

    net: Program
    parameterization: Parameterization
    rates: tuple[tuple[str, float], ...] | None
    dimension: int
    largest: int
    """Squared lengths of inputs lie below 2^largest."""

    @property
    def squared_lengths(self) -> np.ndarray:
        """The largest, and smaller ones."""
        return 2.0 ** (self.largest - np.arange(15.0))


def _flat(field: str, X: Any, net: Program) -> np.ndarray:
    X = checks.array(field, X, ndim=tuple({2, 2 + len(net.grid)}), hint=f"{field} is (n, D), or (n, *grid, channels)")
    if X.ndim > 2 and X.shape[1:-1] != net.grid:
        raise InputError(field, f"inputs on {X.shape[1:-1]} positions", f"{net.grid}, as the program", "axes are (n, *grid, channels)")
    flat = X.reshape(len(X), -1)
    channels_of(net.grid, flat.shape[1])
    return flat


class _Block(NamedTuple):
    """The kernels of as many inputs at a time as fit."""

    sides: tuple[int, int]
    run: Compiled


def _block(model: _Model, n1: int, n2: int, memory: float) -> _Block:
    """A block that fits beside the kernels of n1 and n2 inputs, about as large as can be.

    Raises:
        BudgetError: if not even one pair does. Kernels that do not fit themselves are refused before anything is compiled.
    """
    pair = 2 * (1 + model.dimension) ** 2 * 8
    room = memory * 2**30 - pair * n1 * n2
    side = min(max(n1, n2), max(1, int((BLOCK_BYTES / pair) ** 0.5)))
    while True:
        sides = height, breadth = _even(n1, side), _even(n2, side)
        work = 2 * pair * height * breadth  # at least: with its transpose, for one set of inputs
        if work <= room:
            with jax.enable_x64(True):
                run = compiled(_kernels(model), *(jax.ShapeDtypeStruct((n, model.dimension), np.float64) for n in sides))
            work = run.results + max(run.scratch, run.results)
            if work <= room:
                return _Block(sides, run)
        if side == 1 or room <= 0:
            raise BudgetError(
                "memory",
                f"a need of {pair * n1 * n2 / 2**30 + work / 2**30:.3g} GiB for {n1} x {n2} inputs of dimension {model.dimension}",
                f"at most {memory:g} GiB",
                "give fewer inputs at a time, as X and X2, or raise memory",
            )
        # a block takes about as much per pair whatever its size, and every size is compiled anew, which takes seconds
        side = max(1, int(0.9 * side * (room / work) ** 0.5))


def _even(inputs: int, side: int) -> int:
    """Inputs per block, so that as few blocks are as even as can be: the last one is padded."""
    return -(-inputs // -(-inputs // side))


def _blocks(n1: int, n2: int, sides: tuple[int, int], symmetric: bool) -> Iterator[tuple[slice, slice]]:
    for i in range(0, n1, sides[0]):
        for j in range(i if symmetric else 0, n2, sides[1]):
            yield slice(i, min(i + sides[0], n1)), slice(j, min(j + sides[1], n2))


def _padded(x: np.ndarray, length: int) -> jax.Array:
    return jnp.asarray(x if len(x) == length else np.resize(x, (length, x.shape[1])))


@lru_cache(maxsize=32)
def _kernels(model: _Model) -> Blocks:
    return jax.jit(_by_products(model) if not model.net.grid else _by_inputs(model))


def _by_products(model: _Model) -> Blocks:
    """Programs without a grid see inputs through q = x.x, q' = x'.x' and c = x.x' alone (KJ.3): a few derivatives in these and outer
    products of inputs are all it takes, whatever the dimension."""
    scales, rates = numeric_constants(model.net, limit_spec(model.net, model.parameterization), model.dimension)
    if model.rates is not None:
        rates = {m: rates[m] * lr for m, lr in model.rates}
    ready = Propagation(model.net, scales, rates)
    with jax.enable_x64(True):
        ready.survey(model.squared_lengths)

    def blocks(x1: jax.Array, x2: jax.Array) -> jax.Array:
        data = ready.data(x1, x2)

        def moved(s: jax.Array, t: jax.Array) -> jax.Array:
            """(2, n1, n2), after moves s of (q, c) by the first input and t of (q', c) by the second."""
            found = ready.kernels(Pairs(data.left + s[0], data.right + t[0], data.cross + s[1] + t[1]))
            return jnp.stack([found.nngp.cross, found.ntk.cross])

        zero = jnp.zeros(2, x1.dtype)
        # derivatives by (1, q, c) x (1, q', c), (2, n1, n2, 3, 3)
        k = _joined(lambda t: _joined(lambda s: moved(s, t))(zero))(zero)
        # what d_a takes from (1, q, c), (n1, 1 + D, n2), and d'_b from (1, q', c), (n1, n2, 1 + D)
        twice1, twice2, u, v = (jnp.pad(w, ((0, 0), (1, 0))) for w in (2 * x1, 2 * x2, x1, x2))
        one = jnp.eye(1, u.shape[1], dtype=u.dtype)
        left = (one[:, :, None], twice1[:, :, None], v.T[None])
        right = (one[None], twice2[None], u[:, None])
        slopes = [_combined([k[..., i, j][:, :, None] for i in range(3)], left) for j in range(3)]
        out = _combined([slope[..., None] for slope in slopes], [v[:, None] for v in right])
        # d_a d'_b c
        return out + k[..., 0, 2][:, :, None, :, None] * jnp.diag(1.0 - one[0])[:, None]

    return blocks


def _by_inputs(model: _Model) -> Blocks:
    """Over a grid: derivatives in the inputs themselves, reverse in the first and forward in the second."""
    example = np.zeros((len(model.squared_lengths), model.dimension))
    example[:, 0] = np.sqrt(model.squared_lengths)
    function = kernel_function(model.net, model.parameterization, example)

    def both(x: jax.Array, y: jax.Array) -> jax.Array:
        found = function(x[None], y[None])
        ntk = found.ntk[0, 0] if model.rates is None else sum(lr * found.parts[m][0, 0] for m, lr in model.rates)
        return jnp.stack([found.nngp[0, 0], ntk])

    def by_first(x: jax.Array, y: jax.Array) -> jax.Array:
        value, pull = jax.vjp(lambda u: both(u, y), x)
        return jnp.concatenate([value[:, None], jax.vmap(pull)(jnp.eye(2, dtype=x.dtype))[0]], axis=-1)

    def pair(x: jax.Array, y: jax.Array) -> jax.Array:
        return _joined(lambda v: by_first(x, v))(y)

    def blocks(x1: jax.Array, x2: jax.Array) -> jax.Array:
        return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(x1, x2).transpose(2, 0, 3, 1, 4)

    return blocks


def _joined(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """A function of a vector with its derivatives behind it, (..., 1 + size), traced once."""

    def joined(v: jax.Array) -> jax.Array:
        slopes, value = jax.jacfwd(lambda u: (function(u),) * 2, has_aux=True)(v)
        return jnp.concatenate([value[..., None], slopes], axis=-1)

    return joined


def _combined(weights: Sequence[jax.Array], vectors: Sequence[jax.Array]) -> jax.Array:
    """sum_i weights_i vectors_i, broadcast."""
    return sum((w * v for w, v in zip(weights[1:], vectors[1:], strict=True)), start=weights[0] * vectors[0])
