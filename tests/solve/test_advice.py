"""Which instrument: laws that the predictions obey, and predictions next to what happens."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.numerics.width_fit import Design, fit_widths

advice = import_module("tp_solver.solve.advice")  # tp_solver.solve is the verb, which hides the folder

NET = tp.mlp(depth=2, activation=tp.tanh)


def problem(points: int, steps: int) -> tuple[tp.LimitEquations, tp.Task]:
    return tp.limit(NET, tp.muP, tp.GradientDescent(lr=0.3, steps=steps)), tp.Task.digits(points=points, test=20)


def trial(**more) -> advice.Trial:
    tol = advice.tolerance_for(1024)
    known = {"ranks": (10, 12, 14, 16), "growth": 0.4, "error": 0.02, "samples": 1024, "tol": tol, "fixed": 1e-3, "each": 1e-8}
    return advice.Trial(**(known | more))


def test_known_ranks_stay_and_growth_levels_off():
    ranks = advice.predict_ranks((10, 12, 14, 16), 64)
    assert len(ranks) == 64
    np.testing.assert_array_equal(ranks[:4], (10, 12, 14, 16))
    doublings = ranks[[3, 7, 15, 31, 63]]
    growth = np.diff(np.log2(doublings))
    np.testing.assert_allclose(growth[1:] / growth[:-1], advice.LEVELLING)
    np.testing.assert_allclose(growth[0], advice.LEVELLING * np.log2(16 / 12))


def test_saturated_ranks_stay():
    np.testing.assert_array_equal(advice.predict_ranks((7,) * 8, 100), np.full(100, 7))
    np.testing.assert_array_equal(advice.predict_ranks((7, 9, 11), 2), (7, 9))


def test_samples_are_the_fewest_that_do():
    samples, rank, reached, _ = advice.predict_march(trial(), 100, 0.01)
    assert reached <= 0.01 < reached * 2**advice.SLOPE
    assert rank <= samples / advice.CARRIED


def test_a_rank_that_follows_the_samples_is_no_march():
    """Ranks that grow like 1 / tolerance reach the samples whatever their number: only noise is left."""
    *_, reached, _ = advice.predict_march(trial(ranks=(900, 900), growth=1.0), 100, 0.01)
    assert reached >= 1.0


def test_smaller_errors_cost_more():
    costs = [advice.predict_march(trial(), 100, e)[-1] for e in (0.03, 0.01, 0.003)]
    assert costs == sorted(costs)
    seeds = [advice.seeds_for(e, 10)[-1] for e in (0.3, 0.01, 0.003)]
    assert seeds[0] == advice.FEWEST
    np.testing.assert_allclose(seeds[2] / seeds[1], (0.01 / 0.003) ** 2, rtol=0.05)


def test_seeds_give_the_wanted_error():
    """Predictions of size one that scatter as assumed, fitted by ``extrapolate``'s own rule."""
    error, scatter = 0.05, advice.SCATTER * 10**advice.SPREADING
    seeds = advice.seeds_for(error, 10)
    widths = tuple(advice.NARROWEST * r for r in advice.RATIOS)
    rng = np.random.default_rng(0)
    values = [1 + scatter / np.sqrt(n) * rng.standard_normal((s, 200)) for n, s in zip(widths, seeds, strict=True)]
    fit = fit_widths(Design(widths, seeds, tuple((k,) for k in range(4))), values, rng)
    np.testing.assert_allclose(np.sqrt(np.mean(fit.stderr**2)), error, rtol=0.1)


@pytest.mark.slow
def test_advice_in_one_sentence(monkeypatch):
    monkeypatch.setattr(advice, "STEPS", 4)
    monkeypatch.setattr(advice, "SAMPLES", 128)
    theory, task = problem(4, 6)
    found = advice.advise(theory, task, error=0.1)
    assert found.method in ("march", "extrapolate")
    assert found.steps == 4
    assert found.march_seconds > 0
    assert found.nets_seconds > 0
    text = str(found)
    assert "\n" not in text
    assert all(str(n) in text for n in (found.samples, found.rank, *found.widths))
    first = {"march": found.march_seconds, "extrapolate": found.nets_seconds}[found.method]
    assert first == min(found.march_seconds, found.nets_seconds) or found.march_error > found.error


@pytest.mark.parametrize(("error", "better"), [pytest.param(0.2, "march", marks=pytest.mark.slow), (0.2, "extrapolate")])
def test_auto_marches_and_says_what_would_be_cheaper(monkeypatch, error, better):
    monkeypatch.setattr(advice, "STEPS", 4)
    monkeypatch.setattr(advice, "SAMPLES", 128)
    monkeypatch.setattr(advice, "seconds_per_step", lambda *_: 1e9 if better == "march" else 1e-12)
    theory, task = problem(4, 6)
    sol = tp.solve(theory, task, method=tp.Auto(error=error))
    assert sol.method == "march" and np.isfinite(sol.f).all()
    assert sol.details["advice"].startswith({"march": "tp.solve: the march", "extrapolate": "tp.extrapolate"}[better])
    assert ("tp.extrapolate:" in sol.message) == (better == "extrapolate")
    assert sol.details.get("rtol") == (error if better == "march" else None)


@pytest.mark.parametrize("told", [1, 6, 14, 22], ids=["main", "main again", "half", "coarse"])
def test_an_interrupt_of_the_trial_ends_all(monkeypatch, told):
    """Ctrl-C in any of the runs of the first steps is no reason to begin the whole march, nor a trial to advise from."""
    monkeypatch.setattr(advice, "STEPS", 4)
    monkeypatch.setattr(advice, "SAMPLES", 128)
    log, seen = advice._Log.__call__, []

    def pressed(self, *arguments):
        seen.append(1)
        if len(seen) == told:
            raise KeyboardInterrupt
        log(self, *arguments)

    monkeypatch.setattr(advice._Log, "__call__", pressed)
    theory, task = problem(4, 6)
    sol = tp.solve(theory, task, method="auto")
    assert sol.status is tp.Status.INTERRUPTED and "first steps" in sol.message
    assert len(seen) == told
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        tp.advise(theory, task)


def test_auto_takes_kernels_where_there_is_no_more():
    theory = tp.limit(NET, tp.ntk, tp.GradientDescent(lr=0.1, steps=5))
    assert tp.solve(theory, problem(4, 6)[1], method="auto").method == "kernel"
    assert tp.solve(*problem(4, 6), gamma0=0, method="auto").method == "kernel"


@pytest.mark.slow
def test_ranks_and_errors_are_foretold():
    """From 20 steps of 160, to a factor of 1.5 and of 3."""
    theory, task = problem(20, 160)
    found = advice.advise(theory, task, error=0.03)
    method = tp.March(tol=advice.tolerance_for(found.samples), recorded=(0,))
    sol = tp.solve(theory, task, samples=found.samples, method=method, progress=False)
    assert 1 / 1.5 < found.rank / max(sol.details["ranks"].values()) < 1.5
    assert 1 / 3 < found.march_error / advice._relative_error(sol) < 3


@pytest.mark.parametrize(
    ("options", "field"),
    [({"error": 0.0}, "error"), ({"error": float("nan")}, "error"), ({"gamma0": 0.0}, "gamma0"), ({"dtype": "int8"}, "dtype")],
)
def test_malformed_arguments(options, field):
    with pytest.raises(tp.InputError, match=field):
        advice.advise(*problem(4, 6), **options)


def test_the_kernel_regime_needs_no_advice():
    theory = tp.limit(NET, tp.ntk, tp.GradientDescent(lr=0.1, steps=5))
    with pytest.raises(tp.InputError, match="regime"):
        advice.advise(theory, problem(4, 6)[1])


def test_a_march_whose_first_steps_blow_up_is_solved_without_advice():
    theory = tp.limit(tp.mlp(depth=2, activation=tp.relu), tp.muP, tp.GradientDescent(lr=50.0, steps=40))
    task = tp.Task(np.random.default_rng(0).standard_normal((4, 5)), [1.0, -1.0, 0.5, -0.5])
    sol = tp.solve(theory, task, 1.0, method="auto")
    assert sol.status in (tp.Status.DIVERGED, tp.Status.NONFINITE) and "advice" not in sol.details
    with pytest.raises(tp.InputError, match="lower lr"):
        tp.advise(theory, task, 1.0)


def test_advice_for_a_single_step():
    theory = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.1, steps=1))
    said = tp.advise(theory, tp.Task(np.random.default_rng(0).standard_normal((4, 5)), [1.0, -1.0, 0.5, -0.5]), 1.0, 0.05)
    assert said.march_seconds > 0 and said.steps == 1
