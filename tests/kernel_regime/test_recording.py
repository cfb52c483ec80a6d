"""Kernels of a block are written down once: what is compiled, and how much is held at once."""

from __future__ import annotations

import gc

import jax
import numpy as np
import pytest

import tp_solver as tp
from tp_solver.kernel_regime import compute, recording

X = np.random.default_rng(1).standard_normal((48, 5))


def record(net, parameterization=tp.ntk):
    job = compute._job(net, parameterization, X, None, False, "float64", 4.0)
    return compute._block(job.ready, False, np.dtype("float64"))


def compiled(replay):
    return {call.segment for call in replay.calls}


@pytest.mark.parametrize("activation", [tp.relu, tp.erf])
def test_all_layers_share_what_is_compiled(activation):
    """Only the last piece, which sums the tangent kernel, knows how many layers there are."""
    some, many = (record(tp.mlp(depth=depth, activation=activation)) for depth in (6, 12))
    assert len(many.calls) == len(some.calls) + 6
    assert len(compiled(many)) == len(compiled(some)) == len(compiled(many) & compiled(some)) + 1 <= 5


def test_numbers_are_arguments():
    net = tp.mlp(depth=3, activation=tp.erf)
    one, other = (record(net, tp.ntk.times(factors)) for factors in ((1.1, 1.2, 0.8), (1.3, 1.7, 0.9)))
    assert compiled(one) == compiled(other)
    assert any(not np.array_equal(a.numbers, b.numbers) for a, b in zip(one.calls, other.calls, strict=True))


@pytest.mark.parametrize("net", [tp.mlp(depth=12, activation=tp.relu), tp.cnn(depth=3, activation=tp.erf, grid=(5,), padding="circular")])
def test_what_is_held_at_once_is_known(net, monkeypatch):
    inputs = X if not net.grid else X[:6]
    job = compute._job(net, tp.ntk, inputs, None, False, "float64", 4.0)
    expected = compute._held(job.ready, False, np.dtype("float64"), 5, *job.sides)
    original, seen = recording._compiled, []
    gc.collect()  # what other tests left must not go meanwhile
    before = sum(a.nbytes for a in jax.live_arrays())

    def noted(segment):
        def run(*arguments):
            out = original(segment)(*arguments)
            seen.append(sum(a.nbytes for a in jax.live_arrays()) - before)
            return out

        return run

    monkeypatch.setattr(recording, "_compiled", noted)
    tp.kernels(net, tp.ntk, inputs)
    assert 0.8 * expected < max(seen) < 1.1 * expected


def test_blocks_are_cut_to_the_budget():
    """A deep net holds arrays for every layer: its blocks are smaller, or refused."""
    net, inputs = tp.mlp(depth=20, activation=tp.relu), np.random.default_rng(2).standard_normal((150, 5))
    whole = tp.kernels(net, tp.ntk, inputs)
    blocks = list(tp.kernel_blocks(net, tp.ntk, inputs, memory=0.005))
    assert len(blocks) > len(list(tp.kernel_blocks(net, tp.ntk, inputs)))
    for rows, columns, kernels in blocks:
        assert kernels.ntk == pytest.approx(whole.ntk[rows, columns], rel=1e-13)
    with pytest.raises(tp.BudgetError, match="memory"):
        tp.kernels(net, tp.ntk, inputs, memory=1e-6)


def test_twenty_thousand_inputs_fit_into_four_gib():
    """In single precision all at once, in double precision block by block; what a block takes is known (the tests above)."""
    net, inputs = tp.mlp(depth=3, activation=tp.relu), np.random.default_rng(3).standard_normal((20_000, 100))
    compute._job(net, tp.ntk, inputs, None, False, "float32", 4.0).require_results()
    with pytest.raises(tp.BudgetError, match="float32"):
        compute._job(net, tp.ntk, inputs, None, False, "float64", 4.0).require_results()
    rows, columns, found = next(iter(tp.kernel_blocks(net, tp.ntk, inputs, memory=0.1)))
    assert found.ntk == pytest.approx(tp.kernels(net, tp.ntk, inputs[rows], inputs[columns]).ntk, rel=0, abs=1e-7)
