"""How runs end that do not end well: a status from a closed list, what and when, and the last good state."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.solve import chunk, feature, trajectory
from tp_solver.solve.march import Moment

GRAM = np.array([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]])
X = np.sqrt(3) * np.linalg.cholesky(GRAM)
Y = np.array([1.0, -1.0, 0.5])
NEW = np.array([[0.3, 0.2, 0.1]])
TASK = tp.Task(X, Y, NEW, [0.3])
MARCH = tp.March(tol=0.01, bias=False)


def solved(activation, lr, steps, method, task=TASK, strength=1.5, samples=256, replicates=2):
    theory = tp.limit(tp.mlp(2, activation), tp.muP, tp.GradientDescent(lr, steps))
    return tp.solve(theory, task, strength, samples=samples, replicates=replicates, method=method)


def assert_cut(sol, steps):
    """Everything that is held is good, and everything held has the same length."""
    assert not sol.success and 0 < sol.steps < steps
    assert len(sol.f) == len(sol.f_test) == len(sol.loss) == len(sol.loss_test) == sol.steps + 1
    for name in ("f", "f_test", "loss", "loss_test"):
        assert np.isfinite(getattr(sol, name)).all() and sol.stderr(name).shape == getattr(sol, name).shape
    assert f"at step {sol.steps + 1}" in sol.message and f"last good state is step {sol.steps}" in sol.message
    last = sol.steps
    assert np.isfinite(sol.Phi(2, last, last)).all() and np.isfinite(sol.G(1, last, 0)).all() and np.isfinite(sol.ntk(last)).all()
    with pytest.raises(tp.RangeError, match=f"0 to {last}"):
        sol.Phi(1, last + 1, 0)
    assert str(sol.status) in str(sol) and sol.status.advice in sol.message


@pytest.mark.parametrize(("activation", "method"), [(tp.linear, "linear"), (tp.relu, MARCH)], ids=["linear", "march"])
def test_a_rate_that_is_too_large(activation, method):
    """Homogeneous nets without bounds run away within a few steps; the message names what did."""
    sol = solved(activation, 8.0, 30, method)
    assert sol.status in (tp.Status.DIVERGED, tp.Status.NONFINITE)
    assert_cut(sol, 30)
    assert any(quantity in sol.message for quantity in ("the loss at", "the kernel of", "the tangent kernel at", "f at")), sol.message
    assert "lower lr or gamma0" in sol.message
    # up to there it is the run that would have ended in time
    calm = solved(activation, 8.0, sol.steps, method, replicates=sol.details.get("replicates", 1))
    assert sol.f == pytest.approx(calm.f, rel=1e-9)
    last = sol.steps
    assert sol.Phi(1, last, last) == pytest.approx(calm.Phi(1, last, last), rel=1e-9)


def test_predictions_after_divergence_are_those_of_the_last_good_state():
    sol = solved(tp.relu, 8.0, 30, MARCH)
    assert sol.predict(NEW) == pytest.approx(sol.f_test[-1], rel=1e-9)


def test_the_first_bad_step_is_the_first(monkeypatch):
    """One step before, the loss is still below the bound that counts as divergence."""
    sol = solved(tp.linear, 8.0, 30, "linear")
    bound = trajectory.RUNAWAY
    assert sol.loss.max() <= bound * max(1.0, sol.loss[0])
    assert sol.loss[-1] > 10 * sol.loss[0]
    monkeypatch.setattr(trajectory, "RUNAWAY", np.inf)
    onward = solved(tp.linear, 8.0, sol.steps + 1, "linear")
    assert np.array_equal(onward.f[:-1], sol.f)
    assert onward.loss[-1] > bound * max(1.0, sol.loss[0]), "the next step is the first bad one"


def test_bounded_activations_may_thrash_without_leaving_the_numbers():
    """A run that merely fails to learn is completed: the loss says so."""
    sol = solved(tp.tanh, 20.0, 10, MARCH)
    assert sol.status in (tp.Status.COMPLETED, tp.Status.RANK_SATURATED, tp.Status.DIVERGED)
    assert np.isfinite(sol.f).all() and sol.loss.max() > sol.loss[0]


def test_the_kernel_regime_diverges_too():
    theory = tp.limit(tp.mlp(2, tp.tanh), tp.ntk, tp.GradientDescent(1e6, 200))
    sol = tp.solve(theory, tp.Task(X, Y), 1.0)
    assert sol.status in (tp.Status.DIVERGED, tp.Status.NONFINITE) and not sol.success
    assert np.isfinite(sol.f).all() and np.isfinite(sol.loss).all() and 0 < sol.steps < 200
    assert f"at step {sol.steps + 1}" in sol.message and f"last good state is step {sol.steps}" in sol.message


def test_a_gradient_flow_with_steps_too_long():
    theory = tp.limit(tp.mlp(2, tp.linear), tp.muP, tp.GradientFlow(400.0, 10))
    sol = tp.solve(theory, TASK, 1.5, method=tp.Linear(substeps=1))
    assert sol.status in (tp.Status.DIVERGED, tp.Status.NONFINITE) and not sol.success
    assert np.isfinite(sol.f).all() and sol.steps < 10


def test_too_few_samples_for_the_directions():
    sol = solved(tp.tanh, 0.5, 5, tp.March(tol=1e-12, bias=False), samples=64)
    assert sol.status == tp.Status.RANK_SATURATED and not sol.success
    assert "raise samples" in sol.message and max(sol.details["ranks"].values()) > 64 // 8
    assert len(sol.f) == 6 and np.isfinite(sol.f).all(), "the values are there, marked as doubtful"
    assert solved(tp.tanh, 0.5, 5, MARCH, samples=1024).status == tp.Status.COMPLETED


@pytest.mark.parametrize("violation", [0.3, np.nan])
def test_a_march_that_breaks_the_identity_of_transposition_is_no_success(violation, monkeypatch):
    """<(W x) y> = <x (W^T y)> is the true residual of a march: whatever else is fine, it has to hold."""
    march = trajectory.march
    broken = np.array([0.0, violation, 0.0])
    monkeypatch.setattr(feature, "march", lambda *arguments: replace(march(*arguments), identity=broken))
    sol = solved(tp.tanh, 0.3, 2, MARCH)
    assert sol.status is tp.Status.STALLED and not sol.success and "<(W x) y>" in sol.message
    monkeypatch.setattr(feature, "march", march)
    assert solved(tp.tanh, 0.3, 2, MARCH).success


def interrupted_at(call, advance):
    """Steps, but Ctrl-C arrives before the given call."""
    calls = iter(range(10**6))

    def replacement(*arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        return advance(*arguments)

    return replacement


@pytest.mark.parametrize(("activation", "method"), [(tp.linear, "linear"), (tp.tanh, MARCH)], ids=["linear", "march"])
def test_an_interrupt_returns_what_there_is(activation, method, monkeypatch):
    whole = solved(activation, 0.3, 8, method)
    monkeypatch.setattr(trajectory, "advance", interrupted_at(5, trajectory.advance))
    sol = solved(activation, 0.3, 8, method)
    assert sol.status == tp.Status.INTERRUPTED and not sol.success
    assert_cut(sol, 8)
    assert np.array_equal(sol.f, whole.f[: sol.steps + 1]) or sol.f == pytest.approx(whole.f[: sol.steps + 1], abs=0.02)
    assert "Ctrl-C" in sol.message and "solve again" in sol.message


def test_an_interrupt_in_a_later_replicate(monkeypatch):
    """Values are means over what every replicate has."""
    monkeypatch.setattr(trajectory, "advance", interrupted_at(9 + 4, trajectory.advance))
    sol = solved(tp.tanh, 0.3, 8, MARCH)
    assert sol.status == tp.Status.INTERRUPTED
    assert_cut(sol, 8)


def test_an_interrupt_before_the_first_state(monkeypatch):
    monkeypatch.setattr(trajectory, "advance", interrupted_at(0, trajectory.advance))
    sol = solved(tp.tanh, 0.3, 8, MARCH)
    assert sol.status == tp.Status.INTERRUPTED and "no state is good" in sol.message


def test_every_status_has_an_advice():
    names = {"completed", "converged", "max_iterations", "stalled", "diverged", "nonfinite", "lost_psd", "rank_saturated", "interrupted"}
    names |= {"poor_fit"}
    assert {str(s) for s in tp.Status} == names and all(s.advice for s in tp.Status)


def test_no_good_state_still_prints():
    sol = tp.solve(tp.limit(tp.mlp(2, tp.tanh), tp.muP, tp.GradientDescent(0.3, 3)), tp.Task([[1.0]], [1e200]), samples=64, replicates=1)
    assert sol.status == tp.Status.NONFINITE and len(sol.f) == 0 and "nonfinite" in str(sol)


def test_a_coarser_flow_that_diverges_leaves_the_finer_one():
    X = np.random.default_rng(0).standard_normal((3, 4))
    theory = tp.limit(tp.mlp(2, tp.linear), tp.muP, tp.GradientFlow(time=240.0, steps=10))
    sol = tp.solve(theory, tp.Task(X, [1.0, -1.0, 0.5]), 0.3, method=tp.Linear(substeps=4))
    assert not sol.success and np.isfinite(sol.f).all() and np.isinf(sol.stderr("f")[-1]).all()


def test_the_fewest_samples_have_a_bias_too():
    sol = solved(tp.tanh, 0.3, 3, tp.March(), samples=64)
    assert sol.details["biases"]["finite samples"] > 0


@pytest.mark.parametrize("run", [0, 3], ids=["the first run", "an error estimate"])
def test_a_signal_waits_for_the_end_of_the_step(monkeypatch, run):
    """SIGINT in the middle of a step: the state is whole, predictions work, and nothing escapes."""
    steps, begun, pressed = 6, [], []
    before = signal.getsignal(signal.SIGINT)
    original = trajectory.advance

    def signalled(*arguments):
        begun.append(1)
        if len(begun) == run * (steps + 1) + 3:
            os.kill(os.getpid(), signal.SIGINT)
            pressed.append(time.monotonic())
        return original(*arguments)

    monkeypatch.setattr(chunk, "SECONDS", 0.0)  # one step a call
    monkeypatch.setattr(trajectory, "advance", signalled)
    theory = tp.limit(tp.mlp(2, tp.tanh), tp.muP, tp.GradientDescent(0.3, steps))
    sol = tp.solve(theory, tp.Task(X, Y), 1.0, samples=256, replicates=2)
    assert sol.status is tp.Status.INTERRUPTED and not sol.success
    assert sol.steps == (2 if run == 0 else steps)
    assert time.monotonic() - pressed[0] < 2, "whatever is left to compute included (promise R15)"
    assert sol.predict(X) == pytest.approx(sol.f[-1], abs=0.02)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_update_that_is_no_number_ends_the_run_in_its_own_step():
    """Adjoints that no hidden matrix meets show in the weights alone where nothing is recorded."""
    fine = dict.fromkeys(("W0",), np.ones(2))
    moment = Moment(np.zeros((3, 1)), np.array(0.5), np.array(0.0), {"x1": np.ones(3)}, fine, {}, np.zeros(1, int), None)
    assert chunk._finite(moment)
    broken = moment._replace(weights={"W0": np.array([1.0, np.nan])})
    assert not chunk._finite(broken)
    assert trajectory._trouble(broken, 7) == trajectory.Failure(tp.Status.NONFINITE, "the update of W0", 7)
