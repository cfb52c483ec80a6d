"""Empirical tangent kernels of finite nets: full, averaged over outputs, and the pseudo-kernel of the summed output.

``Theta[m, n, k, l] = sum_j rate_j <df_k(x_m)/dw^j, df_l(x_n)/dw^j>`` with the rates gamma0^2 eta_j n^-c_j of the
parameterization, so that gradient flow at learning rate one obeys df/dt = Theta e (``theory/notation.md``, NO.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import BudgetError, InputError
from tp_solver.finite import tangent
from tp_solver.finite.dense import Array, Net, Numbers
from tp_solver.finite.experiment import precision
from tp_solver.finite.network import FiniteNet, on_host
from tp_solver.finite.tangent import Gradients

MEMORY = 4.0
"""Default memory budget in GiB."""

Overlap = Callable[[Net, Gradients, Gradients, Numbers], Array]


def by_outputs(net: Net, one: Gradients, two: Gradients, numbers: Numbers) -> Array:
    """The full kernel, (P, P', q, r)."""
    return jnp.transpose(tangent.kernel(net, one, two, numbers), (0, 2, 1, 3))


def averaged(net: Net, one: Gradients, two: Gradients, numbers: Numbers) -> Array:
    """The kernel averaged over outputs, (P, P')."""
    return tangent.trace(net, one, two, numbers) / net.outputs


def empirical_ntk(net: FiniteNet, X: Any, X2: Any = None, memory: float = MEMORY) -> np.ndarray:
    """The tangent kernel of a finite net by structured derivatives, in blocks of points.

    Per use of a hidden matrix it costs 2 K P n^2 operations for the adjoints and 2 n (K P)^2 for the inner products; the readout,
    whose adjoint does not depend on the net, costs P^2 n. Inside a jax transformation it is one block.

    Args:
        net: from :func:`draw`.
        X: inputs (n1, D).
        X2: inputs (n2, D); X by default, which halves the work over several blocks.
        memory: GiB that the result and the work may take.

    Returns:
        (n1, n2, K, K); entry [m, n, k, l] belongs to f_k(X_m) and f_l(X2_n).

    Raises:
        InputError: for malformed inputs, or a net that has left the finite numbers.
        BudgetError: if the result and one block of a single point do not fit.
    """
    return _checked(net, X, X2, memory, by_outputs)


def empirical_ntk_trace(net: FiniteNet, X: Any, X2: Any = None, memory: float = MEMORY) -> np.ndarray:
    """The tangent kernel averaged over outputs, ``sum_k Theta[m, n, k, k] / K``, shape (n1, n2).

    Arguments and errors as :func:`empirical_ntk`; K P n^2 for the adjoints outweighs everything else.
    """
    return _checked(net, X, X2, memory, averaged)


class Points(NamedTuple):
    """Inputs (D, P), and the directions (q, K) of the outputs at them."""

    x: Array
    directions: Any

    @property
    def number(self) -> int:
        """P."""
        return self.x.shape[1]


def _checked(net: Any, X: Any, X2: Any, memory: Any, overlap: Overlap) -> np.ndarray:
    net, memory = checked_net(net), checked_budget(memory)
    each = np.eye(net.outputs)
    two = None if X2 is None else Points(net.columns("X2", X2), each)
    return between(net, Points(net.columns("X", X), each), two, overlap, memory)


def checked_net(net: Any) -> FiniteNet:
    """The net itself; InputError for anything else."""
    return checks.instance("net", net, FiniteNet, "a finite net", "draw one: tp.draw(net, parameterization, dimension, width)")


def checked_budget(memory: Any) -> float:
    """A number of GiB above zero."""
    return checks.number("memory", memory, above=0.0, hint="memory is a number of GiB, e.g. 4.0")


def between(net: FiniteNet, one: Points, two: Points | None, overlap: Overlap, memory: float) -> np.ndarray:
    """An overlap of gradients between two sets of points (or one and itself), from as few blocks as the budget allows."""
    most = max(p.number for p in (one, two) if p is not None)
    size = _block_size(net, one, two, overlap, memory)
    with precision():
        if size >= most or is_traced((net.w, one, two)):
            return _finite(on_host(_one_block(net, one, two, overlap)))
        return _finite(_from_blocks(net, one, two, overlap, size))


def is_traced(arrays: Any) -> bool:
    """Whether any of a tree of arrays is inside a jax transformation, where there are no numbers yet."""
    return not all(isinstance(on_host(leaf), np.ndarray) for leaf in jax.tree.leaves(arrays))


@partial(jax.jit, static_argnames="overlap")
def _one_block(net: FiniteNet, one: Points, two: Points | None, overlap: Overlap) -> Array:
    first = tangent.gradients(net.net, net.w, net.numbers, *one)
    second = first if two is None else tangent.gradients(net.net, net.w, net.numbers, *two)
    return overlap(net.net, first, second, net.numbers)


@jax.jit
def _gradients(net: FiniteNet, points: Points) -> Gradients:
    return tangent.gradients(net.net, net.w, net.numbers, *points)


@partial(jax.jit, static_argnames=("net", "overlap"))
def _overlap(net: Net, one: Gradients, two: Gradients, numbers: Numbers, overlap: Overlap) -> Array:
    return overlap(net, one, two, numbers)


def _from_blocks(net: FiniteNet, one: Points, two: Points | None, overlap: Overlap, size: int) -> np.ndarray:
    """Assemble blocks; for one set of points only those on and above the diagonal are computed."""
    symmetric, other = two is None, two or one
    out: np.ndarray | None = None
    for i, above in _blocks(one, size):
        first = _gradients(net, above)
        for j, below in _blocks(other, size):
            if symmetric and j < i:
                continue
            second = first if symmetric and i == j else _gradients(net, below)
            part = np.asarray(_overlap(net.net, first, second, net.numbers, overlap))
            if out is None:
                out = np.empty((one.number, other.number, *part.shape[2:]), part.dtype)
            rows, columns = slice(i, min(i + size, one.number)), slice(j, min(j + size, other.number))
            part = part[: rows.stop - i, : columns.stop - j]
            out[rows, columns] = part
            if symmetric:
                out[columns, rows] = part.swapaxes(0, 1) if part.ndim == 2 else part.transpose(1, 0, 3, 2)
    assert out is not None, "there is at least one point"
    return out


def _blocks(points: Points, size: int) -> Iterator[tuple[int, Points]]:
    """Blocks of the same number of points, the last filled up with its last point so that one compilation serves all."""
    for start in range(0, points.number, size):
        block = points.x[:, start : start + size]
        yield start, points._replace(x=jnp.pad(block, ((0, 0), (0, size - block.shape[1])), mode="edge"))


def _block_size(net: FiniteNet, one: Points, two: Points | None, overlap: Overlap, memory: float) -> int:
    """Points per block, as even as the budget allows.

    Raises:
        BudgetError: if the result and a block of one point do not fit.
    """
    other = two or one
    entries = len(one.directions) * len(other.directions) if overlap is by_outputs else 1
    result = one.number * other.number * entries * net.dtype.itemsize
    most = max(one.number, other.number)
    for count in range(1, most + 1):
        size = -(-most // count)
        if _need(net, (one,) if two is None and count == 1 else (one, other), size, entries) + result <= memory * 2**30:
            return size
    need = _need(net, (one, other), 1, entries) + result
    raise BudgetError(
        "memory",
        f"a need of {need / 2**30:.3g} GiB, {result / 2**30:.3g} of them for the result",
        f"at most {memory:.3g} GiB",
        "use fewer inputs, empirical_ntk_trace or pseudo_ntk (K^2 times smaller), a net in float32, or raise memory=",
    )


def _need(net: FiniteNet, held: tuple[Points, ...], points: int, entries: int) -> int:
    """Estimated bytes of the gradients of one or two blocks of points and of their overlap, its result included."""
    program = net.program
    variables = sum(net.width * prod(program.grids()[s.out]) for s in program.statements) * points
    sides = [tangent.shapes(net.net, net.width, net.channels, len(p.directions), points) for p in held]
    leaves = [v.size for v in jax.tree.leaves(sides)]
    # the way back through a window holds the patches of every direction, once gathered and once to be scattered
    windowed = {s.matrix for s in program.products() if s.window is not None}
    spread = sum(max((tangent.directions(u) * u.right.size for m in windowed for u in s[m]), default=0) for s in sides)
    made = sum(tangent.entries_made(net.net, m, a, b) for m, a, b in tangent.pairs_of_uses(sides[0], sides[-1]))
    # the largest of the gradients exists in two orders of its axes
    return net.dtype.itemsize * (sum(leaves) + max(leaves) + len(held) * variables + 2 * spread + made + entries * points**2)


def _finite(value: np.ndarray) -> np.ndarray:
    """The kernel itself, unless the net has left the finite numbers."""
    if isinstance(value, np.ndarray) and not np.isfinite(value).all():
        raise InputError(
            "net", "a kernel that is not finite", "a net with finite weights", "the net has diverged; train it with a smaller rate"
        )
    return value
