"""A target accuracy: how the effort is chosen, and what is said where it is out of reach."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.errors import BudgetError
from tp_solver.solve import accuracy, trajectory
from tp_solver.solve.accuracy import CAP, GROWTH, PILOT, ROUNDS, Effort, solve_to

TASK = tp.Task(np.sqrt(3) * np.linalg.cholesky([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]]), [1.0, -1.0, 0.5], [[0.5, 1, 0]])
THEORY = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.5, steps=4))


class Known:
    """Solves whose errors follow known laws; they remember the efforts that they were given."""

    def __init__(self, sampling=0.3, bias=1.0, truncation=1.0, step=0.0, rank=10, noise=0.0):
        self.laws, self.rank, self.efforts = (sampling, bias, truncation, step), rank, []
        self.rng, self.noise = np.random.default_rng(0), noise

    def errors(self, effort):
        sampling, bias, truncation, step = self.laws
        sizes = {
            "sampling": sampling * effort.samples**-0.75,
            "finite samples": bias / effort.samples,
            "truncation": truncation * effort.tol,
        }
        sizes |= {"step size": step / effort.substeps} if step else {}
        return {kind: size * np.exp(self.noise * self.rng.standard_normal()) for kind, size in sizes.items()}

    def __call__(self, effort, target):
        self.efforts.append(effort)
        errors = self.errors(effort)
        reached = np.linalg.norm(list(errors.values())) <= target and 8 * self.rank <= effort.samples
        details = {"errors": errors, "ranks": {"a": self.rank}, "sampling order": 0.75}
        return self.ended(tp.Status.COMPLETED if reached else tp.Status.STALLED, details)

    @staticmethod
    def ended(status, details):
        zero = np.zeros(2)
        return tp.Solution(THEORY, TASK, 1.0, "march", zero, zero, None, None, {"loss": zero}, None, status, "done", details=details)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("target", [0.1, 0.01, 1e-3, 2e-4])
@pytest.mark.parametrize("laws", [{}, {"truncation": 4.0}, {"bias": 6.0}, {"step": 0.05}, {"truncation": 0.0, "bias": 0.0}, {"rank": 900}])
def test_targets_are_reached_with_little_more_than_needed(laws, target, noise):
    known = Known(**laws, noise=noise)
    sol = solve_to(target, 2, known)
    assert sol.status is tp.Status.COMPLETED and f"{target:g}" in sol.message
    assert len(sol.details["rounds"]) == len(known.efforts) <= ROUNDS and sol.details["rtol"] == target
    assert sol.details["rounds"][-1]["error"] <= target
    counts = [e.samples for e in known.efforts]
    assert all(a <= b <= GROWTH * a for a, b in itertools.pairwise(counts)) and counts[0] == PILOT
    assert all(c == 1 << (c.bit_length() - 1) for c in counts), "quasi-random points want powers of two"
    if not noise and counts[-1] > PILOT:  # a quarter of the samples would not do, at whatever tolerance
        sampling, bias, *_ = known.laws
        fewer = counts[-1] / 4
        assert (
            np.hypot(sampling * fewer**-0.75, bias / fewer) > 0.7 * target or 8 * known.rank > fewer or 0.5 / fewer > known.efforts[-1].tol
        )


def test_a_target_that_is_met_at_once_costs_one_round():
    known = Known()
    assert solve_to(0.2, 1, known).success and known.efforts == [Effort(PILOT, 4 / PILOT, 1)]


@pytest.mark.parametrize(("laws", "target"), [({"sampling": 40.0}, 1e-3), ({"sampling": 2000.0}, 1e-3), ({"rank": CAP}, 0.1)])
def test_targets_out_of_reach(laws, target):
    """The best is returned, with numbers; a hopeless target is given up without the longest run."""
    known = Known(**laws)
    sol = solve_to(target, 1, known)
    assert sol.status is tp.Status.STALLED and not sol.success
    assert f"at most {CAP}" in sol.message and f"target of {target:g}" in sol.message
    assert "rank" in laws or "mostly sampling" in sol.message
    assert max(e.samples for e in known.efforts) <= CAP // (1 if laws.get("sampling") == 40.0 else 8)


def test_samples_that_do_not_fit_leave_the_rounds_before():
    known = Known(sampling=3.0)

    def attempt(effort, target):
        if effort.samples > 4 * PILOT:
            raise BudgetError("memory", "9 GiB", "2 GiB", "cut something")
        return known(effort, target)

    sol = solve_to(1e-3, 1, attempt)
    assert sol.status is tp.Status.STALLED and "9 GiB" in sol.message
    with pytest.raises(BudgetError):
        solve_to(1e-3, 1, lambda effort, target: attempt(Effort(CAP, 1e-3, 1), target))


@pytest.mark.parametrize("status", [tp.Status.DIVERGED, tp.Status.INTERRUPTED])
@pytest.mark.parametrize("rounds", [0, 1])
def test_rounds_that_end_otherwise(status, rounds):
    known = Known()

    def attempt(effort, target):
        return known(effort, target) if len(known.efforts) < rounds else Known.ended(status, {"bad": True})

    sol = solve_to(1e-4, 1, attempt)
    assert sol.status is status
    assert ("bad" in sol.details) == (not rounds or status is tp.Status.DIVERGED)
    assert rounds == 0 or status is tp.Status.DIVERGED or "round 2" in sol.message


def test_an_error_that_is_not_known_asks_for_more_of_everything():
    known = Known()

    def attempt(effort, target):
        sol = known(effort, target)
        if effort.substeps < 4:
            sol.details["errors"]["step size"] = np.inf
            return Known.ended(tp.Status.STALLED, sol.details)
        return sol

    assert solve_to(0.05, 1, attempt).success and known.efforts[-1].substeps == 4


# real marches -------------------------------------------------------------------------------------------------------


def test_a_march_reaches_its_target_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "PILOT", 64)
    sol = tp.solve(THEORY, TASK, 1.5, rtol=0.03, replicates=3, checkpoint=tmp_path)
    assert sol.success and len(sol.details["rounds"]) > 1
    relative = np.sqrt(np.mean(sol.stderr("f") ** 2) / np.mean(sol.f**2))
    assert relative <= 0.03 and relative == pytest.approx(sol.details["rounds"][-1]["error"], rel=1e-9)
    assert relative == pytest.approx(np.linalg.norm(list(sol.details["errors"].values())), rel=1e-9)
    assert "sampling" in str(sol) and "truncation" in str(sol)
    begun, original = [], trajectory.advance
    monkeypatch.setattr(trajectory, "advance", lambda *arguments: begun.append(1) or original(*arguments))
    again = tp.solve(THEORY, TASK, 1.5, rtol=0.03, replicates=3, checkpoint=tmp_path)
    assert not begun and np.array_equal(again.f, sol.f) and again.details == sol.details


def test_kernels_and_predictions_hold_the_deviations_too(tmp_path):
    """At a loose tolerance the truncation is removed from f and from predictions, and widens the bars of kernels."""
    sol = tp.solve(THEORY, TASK, 1.5, samples=512, replicates=3, method=tp.March(tol=0.1))
    assert "truncation" in sol.details["removed"] and set(sol.details["errors"]) == {"sampling", "finite samples", "truncation"}
    assert sol.predict(TASK.X_test) == pytest.approx(sol.f_test[-1], abs=1e-10)
    plain = tp.solve(THEORY, TASK, 1.5, samples=512, replicates=3, method=tp.March(tol=0.1, bias=False))
    for name, args in {"Phi": (2, 4, 2), "G": (1, 4, 4), "ntk": (3,)}.items():
        assert (sol.stderr(name, *args) >= plain.stderr(name, *args) - 1e-15).all()
        assert np.sqrt(np.mean(sol.stderr(name, *args) ** 2)) > 1.1 * np.sqrt(np.mean(plain.stderr(name, *args) ** 2))
    sol.save(tmp_path / "sol")
    back = tp.load(tmp_path / "sol")
    assert np.array_equal(back.predict(TASK.X_test), sol.predict(TASK.X_test))
    for name, args in {"f": (), "loss": (), "Phi": (2, 4, 2), "ntk": (3,)}.items():
        one, two = sol.interval(name, *args), back.interval(name, *args, level=0.95)
        assert np.array_equal(one.low, two.low) and np.array_equal(one.high, two.high)
        wide = sol.interval(name, *args, level=0.99)
        assert (wide.low <= one.low).all() and (wide.high >= one.high).all() and (wide.high > wide.low).any()


def test_a_single_replicate_has_no_interval():
    sol = tp.solve(THEORY, TASK, 1.5, samples=64, replicates=1, method=tp.March(bias=False))
    assert np.isinf(sol.interval("loss").high).all() and np.isinf(sol.interval("Phi", 1, 4, 4).low).all()


def test_errors_of_zero_leave_intervals_of_no_width():
    sol = Known.ended(tp.Status.COMPLETED, {})
    assert np.array_equal(sol.interval("loss").low, sol.loss) and np.array_equal(sol.interval("loss").high, sol.loss)


REFUSED = {
    "both": ({"samples": 256, "rtol": 0.01}, "samples: got 256"),
    "zero": ({"rtol": 0.0}, "rtol: got 0"),
    "one": ({"rtol": 1.0}, "rtol: got 1"),
    "below rounding": ({"rtol": 1e-16}, "rtol: got 1e-16.*2e-14"),
    "below single rounding": ({"rtol": 1e-6, "method": tp.March(dtype="float32")}, "rtol: got 1e-06.*float32"),
    "nan": ({"rtol": float("nan")}, "rtol: got nan"),
    "text": ({"rtol": "1%"}, "rtol: got '1%'"),
    "another method": ({"rtol": 0.01, "method": "fixed_point"}, "rtol.*'fixed_point'.*method='march'"),
    "the kernel limit": ({"rtol": 0.01, "gamma0": 0.0}, "rtol.*'kernel'"),
    "a tolerance": ({"rtol": 0.01, "method": tp.March(tol=1e-3)}, "tol: got 0.001"),
    "no biases": ({"rtol": 0.01, "method": tp.March(bias=False)}, "bias: got False"),
    "one replicate": ({"rtol": 0.01, "replicates": 1}, "replicates: got 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_targets(case):
    options, text = REFUSED[case]
    with pytest.raises(tp.InputError, match=text):
        tp.solve(THEORY, TASK, **({"gamma0": 1.5} | options))


@pytest.mark.parametrize("level", [0.0, 1.0, -1, float("nan"), "95%"])
def test_bad_levels(level):
    sol = Known.ended(tp.Status.COMPLETED, {})
    with pytest.raises(tp.InputError, match="level"):
        sol.interval("loss", level=level)
