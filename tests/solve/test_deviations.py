"""Estimates from replicates: their intervals, what is removed, and what is left where something is not known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student_t

from tp_solver.solve.deviations import DOUBT, SAMPLING, deviation, estimate, estimate_of, removable, resolved, scatter

REPLICATES, ENTRIES = 4, (6, 3)
SINGLE = np.random.default_rng(0).standard_normal((1, 5))


def drawn(rng, bias, noise):
    """Main values with scatter 1 about a bias, and a measurement of that bias with its own noise."""
    main = bias + rng.standard_normal((REPLICATES, *ENTRIES))
    return main, bias + noise * rng.standard_normal((REPLICATES, *ENTRIES))


@pytest.mark.parametrize(("bias", "noise", "gone"), [(0.0, 2.0, False), (0.4, 2.0, False), (1.0, 2.0, False), (0.5, 0.1, True)])
def test_intervals_hold_the_truth(bias, noise, gone):
    """The truth is zero; biases of nothing to two standard errors, measured well or badly, removed or not."""
    rng = np.random.default_rng(3)
    held, removals = [], 0
    for _ in range(400):
        main, error = drawn(rng, bias, noise)
        removed = removable(main, {"a": error}, frozenset())
        removals += len(removed)
        found = estimate(main, {"a": error}, removed, True)
        half = student_t.ppf(0.975, found.effective_freedom) * found.stderr
        held.append(np.abs(found.value) <= half)
    assert 0.93 <= np.mean(held) <= 0.98
    assert (removals > 0.8 * 400) if gone else (removals < 0.2 * 400)


@pytest.mark.parametrize("order", [0.8, 1.0, 1.3])
def test_large_deviations_that_are_not_quite_of_first_order(order):
    """A tolerance and four times it: x**order gives a third of the difference for order one only."""
    rng, held, x = np.random.default_rng(4), [], 3.0
    for _ in range(200):
        noise = rng.standard_normal((3, REPLICATES, *ENTRIES))
        main, near, far = x + noise[0], x + 0.3 * noise[1], 4**order * x + 0.3 * noise[2]
        error = deviation(near, far, main, 1 / 3)
        removed = removable(main, {"a": error}, frozenset())
        found = estimate(main, {"a": error}, removed, True)
        held.append(np.abs(found.value) <= student_t.ppf(0.975, found.effective_freedom) * found.stderr)
        assert removed == {"a"}
    assert np.mean(held) >= 0.95


def test_a_deviation_within_its_noise_counts_as_little():
    rng = np.random.default_rng(5)
    shares = [np.mean(resolved(rng.standard_normal((REPLICATES, *ENTRIES))).size ** 2) for _ in range(300)]
    plain = np.mean([np.mean(rng.standard_normal((REPLICATES, *ENTRIES)).mean(axis=0) ** 2) for _ in range(300)])
    assert np.mean(shares) < 0.25 * plain
    certain = 3.0 + 1e-3 * rng.standard_normal((REPLICATES, *ENTRIES))
    assert resolved(certain).size == pytest.approx(certain.mean(axis=0), rel=1e-5)


def test_what_is_removed_leaves_half_of_itself_as_doubt():
    rng = np.random.default_rng(6)
    main, error = drawn(rng, 5.0, 0.1)
    found = estimate(main, {"a": error}, frozenset({"a"}), True)
    assert found.value == pytest.approx((main - error).mean(axis=0), rel=1e-14)
    assert found.parts["a"] == pytest.approx(DOUBT * error.mean(axis=0), rel=1e-14)
    assert found.parts[SAMPLING] == pytest.approx(scatter(main - error), rel=1e-14)


def test_the_jackknife_of_a_linear_function_is_its_scatter():
    rng = np.random.default_rng(7)
    main, error = drawn(rng, 0.5, 0.3)
    weights = rng.standard_normal(ENTRIES[1])
    direct = estimate(main @ weights, {"a": error @ weights}, frozenset({"a"}), True)
    through = estimate_of(lambda f: f @ weights, main, {"a": error}, frozenset({"a"}), True)
    assert through.value == pytest.approx(direct.value, rel=1e-12)
    for kind in (SAMPLING, "a"):
        assert through.parts[kind] == pytest.approx(np.abs(direct.parts[kind]), rel=1e-10)


def test_times_that_a_run_did_not_reach_are_not_known():
    main, short = np.ones((2, 4, 3)), np.full((2, 2, 3), 1.5)
    error = deviation(main, short, main, 2.0)
    assert (error[:, :2] == 1.0).all() and np.isinf(error[:, 2:]).all()
    for removed in (frozenset(), frozenset({"a"})):
        found = estimate(main, {"a": error}, removed, True)
        assert np.isinf(found.stderr[2:]).all() and np.isfinite(found.stderr[:2]).all() and np.isfinite(found.value).all()
    loss = estimate_of(lambda f: (f**2).mean(axis=-1), main, {"a": error}, frozenset(), True)
    assert np.isinf(loss.stderr[2:]).all() and np.isfinite(loss.stderr[:2]).all()


@pytest.mark.parametrize(("sampled", "freedom"), [(True, 0.0), (False, np.inf)])
def test_a_single_replicate_does_not_know_its_scatter(sampled, freedom):
    error = np.full_like(SINGLE, 0.1)
    assert not removable(SINGLE, {"a": error}, frozenset()), "no noise to compare with"
    found = estimate(SINGLE, {"a": error}, frozenset(), sampled)
    assert found.stderr == pytest.approx(np.full(5, 0.1)) and (found.effective_freedom == freedom).all()


def test_degrees_of_freedom_lie_between_one_part_and_all():
    rng = np.random.default_rng(8)
    main, error = drawn(rng, 1.0, 0.5)
    alone, both = (estimate(main, errors, frozenset(), True).effective_freedom for errors in ({}, {"a": error}))
    assert (alone == REPLICATES - 1).all()
    assert (both >= REPLICATES - 1 - 1e-9).all() and (both <= 2 * (REPLICATES - 1) + 1e-9).all() and both.max() > 4
