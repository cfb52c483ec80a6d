"""Which times a march records, and what the others cost: nothing but their kernels."""

from __future__ import annotations

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.plot import loss_curves
from tp_solver.solve.feature import prediction_steps, recorded_steps
from tp_solver.solve.prepare import prepare

TASK = tp.Task(np.random.default_rng(2).standard_normal((4, 5)), [1.0, -1.0, 0.5, -0.5], np.eye(5)[:2])
THEORY = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.3, steps=8))


def solved(**options):
    return tp.solve(THEORY, TASK, 1.0, samples=256, replicates=2, method=tp.March(bias=False, **options))


def test_recorded_times_do_not_change_the_run(tmp_path):
    whole, few = solved(), solved(recorded=(0, 3, 8))
    assert np.array_equal(whole.f, few.f) and np.array_equal(whole.f_test, few.f_test)
    for t, s in ((0, 0), (3, 8), (8, 8)):
        assert few.Phi(1, t, s) == pytest.approx(whole.Phi(1, t, s), rel=1e-12)
        assert few.G(2, t, s) == pytest.approx(whole.G(2, t, s), rel=1e-12)
        # observers have met fewer vectors: their directions differ within the tolerance
        assert few.Phi(2, t, s) == pytest.approx(whole.Phi(2, t, s), abs=0.01)
    assert few.ntk(3) == pytest.approx(whole.ntk(3), abs=0.02)
    few.save(tmp_path / "few")
    again = tp.load(tmp_path / "few")
    assert np.array_equal(again.Phi(1, 3, 8), few.Phi(1, 3, 8))
    with pytest.raises(tp.RangeError, match="recorded"):
        again.ntk(4)


def test_test_points_are_predicted_at_chosen_times(tmp_path):
    task = tp.Task(TASK.X, TASK.y, TASK.X_test, [1.0, -1.0])
    methods = [tp.March(tested=times, bias=False) for times in (None, (0, 5))]
    every, few = (tp.solve(THEORY, task, 1.0, samples=256, replicates=2, method=method) for method in methods)
    assert every.test_times == tuple(range(9)) and few.test_times == (0, 5)
    for name in ("f_test", "loss_test"):
        assert np.array_equal(getattr(few, name), getattr(every, name)[[0, 5]])
        # with biases it would not: what is significant is judged over all rows together
        assert few.stderr(name) == pytest.approx(every.stderr(name)[[0, 5]], rel=1e-12)
    few.save(tmp_path / "few")
    again = tp.load(tmp_path / "few")
    assert again.test_times == (0, 5) and np.array_equal(again.loss_test, few.loss_test)
    nets = tp.simulate(tp.mlp(depth=2, activation=tp.tanh), tp.muP, THEORY.training, task, 1.0, widths=(64, 128), seeds=2)
    rows = {row.quantity: row for row in tp.compare(few, nets).rows}
    assert rows["loss_test, final"].theory == few.loss_test[-1]
    assert rows["loss_test, final"].nets == pytest.approx(nets.loss_test[-1, :, 5].mean())
    assert [len(line.get_xdata()) for line in loss_curves(few, nets, test=True).axes[0].lines] == [9, 9, 2]


def test_many_test_points_are_predicted_rarely_by_themselves():
    rng = np.random.default_rng(2)
    many = tp.Task(TASK.X, TASK.y, rng.standard_normal((1000, 5)))
    chosen = prediction_steps(prepare(THEORY, many), None, 1000, 2)
    assert len(chosen) == 21 and {0, 1000, 2000} <= chosen
    assert prediction_steps(prepare(THEORY, many), None, 8, 1) == frozenset(range(9))


def test_unrecorded_times_are_refused():
    few = solved(recorded=(0, 3, 8))
    with pytest.raises(tp.RangeError, match=r"0, 3, 8.*March\(recorded"):
        few.Phi(1, 4, 0)
    with pytest.raises(tp.RangeError, match="every step up to t"):
        few.A(1, 3, 0)
    assert np.isfinite(solved(recorded=range(4)).A(1, 3, 1)).all()


def test_long_runs_record_a_few_times_by_themselves():
    short = prepare(THEORY, TASK)
    assert recorded_steps(short, None, 8, 1) == frozenset(range(9))
    assert recorded_steps(short, (0, 4), 8, 3) == {0, 12}
    many = tp.Task(np.random.default_rng(2).standard_normal((100, 5)), np.ones(100))
    chosen = recorded_steps(prepare(THEORY, many), None, 1000, 1)
    assert len(chosen) == 21 and {0, 500, 1000} <= chosen


@pytest.mark.parametrize("recorded", [3, "all", (-1, 2), (0.5,)])
def test_bad_times(recorded):
    with pytest.raises(tp.InputError, match="recorded"):
        tp.March(recorded=recorded)


@pytest.mark.parametrize("name", ["recorded", "times", "tested"])
def test_times_after_the_end(name):
    with pytest.raises(tp.InputError, match=f"{name}: got 9"):
        solved(**{name: (0, 9)})


def test_gradients_of_a_light_step_pass_through_its_batch_alone():
    """Steps that are not recorded leave the other points' gradients out: nothing but the directions that are met changes."""
    rule = tp.GradientDescent(lr=0.3, steps=8, momentum=0.5, batches=tp.Batches(3, seed=1))
    theory = tp.limit(tp.mlp(depth=2, activation=tp.linear), tp.muP, rule)
    exact = tp.solve(theory, TASK, 1.0, method="linear")
    light = tp.solve(theory, TASK, 1.0, samples=512, replicates=1, method=tp.March(tol=1e-12, bias=False, recorded=(0,)))
    assert np.abs(light.f - exact.f).max() < 1e-8
    theory = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, rule)
    whole, light = (tp.solve(theory, TASK, 1.0, samples=2048, method=tp.March(bias=False, recorded=r)) for r in (None, (0,)))
    error = np.hypot(whole.stderr("f"), light.stderr("f"))
    assert np.sqrt(np.mean((whole.f - light.f) ** 2)) < 3 * np.sqrt(np.mean(error**2)) < 0.01
