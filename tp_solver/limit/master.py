"""The master theorem: what a product with a Gaussian matrix is at infinite width (``theory/tensor_programs.md``, TP.3).

    Z^{W x} = Gaussian + scale^2 sum over products W^T y made EARLIER of E[d Z^x / d Z^{W^T y}] Z^y   (+ learned part)

One training step is a list of statements, and training runs it again and again. So a product of time s is earlier than
one of time t if s < t, or if s = t and it stands before it in the list: nothing else decides between s < t and s <= t.
(Yang, arXiv:2009.10685, Theorem 2.10; Yang and Hu, arXiv:2011.14522, Section 7.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tp_solver.limit.transposition import Backward, Pair
from tp_solver.program.statements import Average, Map, Product, Program, Role, Space, Statement, symbol

PRESENT, PAST = 0, 1
Reach = frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Use:
    """A product with a hidden matrix, and where it stands in the step.

    Attributes:
        position: place in the list of one step, from 0.
        product: the statement.
    """

    position: int
    product: Product


@dataclass(frozen=True)
class Response:
    """One term of the response sum of ``use``: it runs over the products ``other`` with the transposed matrix.

    Attributes:
        present: whether the product of the same step counts (s <= t); otherwise only earlier steps do (s < t).
    """

    use: Use
    other: Use
    present: bool


def step(program: Program, backward: Backward) -> tuple[Statement, ...]:
    """The statements of one training step, in order (the loss gradient stands between the two halves)."""
    return program.statements + backward.statements


def transposed(program: Program, backward: Backward) -> dict[str, str]:
    """Output of a backward product -> output of the forward product that it transposes (hidden matrices and readout)."""
    spaces = program.spaces()
    live = [s for s in reversed(program.statements) if isinstance(s, Product) and s.out in backward.adjoints]
    forward = [s.out for s in live if spaces[s.arg] is Space.WIDTH]
    return dict(zip([s.out for s in backward.statements if isinstance(s, Product)], forward, strict=True))


def hidden_uses(program: Program, statements: Iterable[Statement]) -> tuple[Use, ...]:
    """The products with hidden matrices in the list of one step, in order."""
    products = ((k, s) for k, s in enumerate(statements) if isinstance(s, Product))
    return tuple(Use(k, s) for k, s in products if program.matrix(s.matrix).role is Role.HIDDEN)


def earlier(uses: Iterable[Use], use: Use) -> tuple[Response, ...]:
    """The products that the response part of ``use`` sums over, each with its range of times."""
    return tuple(
        Response(use, u, u.position < use.position)
        for u in uses
        if u.product.matrix == use.product.matrix and u.product.transpose != use.product.transpose
    )


def family(uses: Iterable[Use], use: Use) -> tuple[Use, ...]:
    """The products whose Gaussian parts are jointly Gaussian with that of ``use``: same matrix, same orientation."""
    return tuple(u for u in uses if (u.product.matrix, u.product.transpose) == (use.product.matrix, use.product.transpose))


def outer(pair: Pair, transpose: bool) -> tuple[str, str]:
    """The update of W is a sum of outer products L R^T: (L, R) as W (or, transposed, W^T) sees them."""
    return (pair.adjoint, pair.input) if pair.transpose == transpose else (pair.input, pair.adjoint)


def live_responses(
    program: Program,
    backward: Backward,
    learning: Collection[str],
    initial: bool = False,
) -> tuple[Response, ...]:
    """The responses that are not structurally zero.

    A response vanishes unless its field depends, through statements, learned parts and other responses, on the Gaussian
    part of the earlier product.

    Args:
        learning: the matrices whose learned part survives.
        initial: at initialisation only. There is no past then, and backward fields are odd in the readout's Gaussian
            while forward fields do not depend on it: the mean derivative of one kind by the other is zero (gradient
            independence, as an outcome).
    """
    statements = step(program, backward)
    spaces = {**program.spaces(), **backward.spaces}
    uses = hidden_uses(program, statements)
    odd = {s.out for s in backward.statements}
    edges: set[tuple[str, str, int]] = set()
    for s in statements:
        if isinstance(s, Average):
            continue
        names = s.arguments if not isinstance(s, Map) else [a for a in s.arguments if symbol(a) in s.expression.free_symbols]
        if not isinstance(s, Product):
            edges |= {(s.out, a, PRESENT) for a in names if spaces[a] is Space.WIDTH}
        elif s.matrix in learning and not initial:
            edges |= {(s.out, outer(p, s.transpose)[0], PAST) for p in backward.pairs if p.matrix == s.matrix}
    candidates = [r for u in uses for r in earlier(uses, u)]
    if initial:
        candidates = [r for r in candidates if r.present and (r.use.product.arg in odd) == (r.other.product.out in odd)]
    live: set[Response] = set()
    while True:
        reach = _closure(edges, [s.out for s in statements])
        fresh = {r for r in candidates if r not in live and _depends(reach, r)}
        if not fresh:
            return tuple(r for r in candidates if r in live)
        live |= fresh
        for r in fresh:
            edges |= {(r.use.product.out, r.other.product.arg, lag) for lag in ((PRESENT, PAST) if r.present else (PAST,))}


def _depends(reach: dict[str, Reach], r: Response) -> bool:
    there = reach[r.use.product.arg]
    return (r.other.product.out, PAST) in there or (r.present and (r.other.product.out, PRESENT) in there)


def _closure(edges: Collection[tuple[str, str, int]], variables: Iterable[str]) -> dict[str, Reach]:
    """variable -> what it depends on, itself included, in the same step or in earlier ones."""
    reads: dict[str, list[tuple[str, int]]] = {}
    for out, read, lag in edges:
        reads.setdefault(out, []).append((read, lag))
    reach: dict[str, Reach] = {}
    for v in variables:
        seen = {(v, PRESENT)}
        todo = [(v, PRESENT)]
        while todo:
            name, lag = todo.pop()
            for read, more in reads.get(name, ()):
                node = (read, max(lag, more))
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
        reach[v] = frozenset(seen)
    return reach
