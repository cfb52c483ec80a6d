"""Tables and figures of sweeps."""

from __future__ import annotations

import numpy as np
import pytest
from sweep_problems import NET, NETS, TASK, THEORY

import tp_solver as tp
from tp_solver.sweeps.sweep import sweep

GRID = {"gamma0": [0.5, 1.0], "lr": [0.1, 0.2, 0.4], "seed": [0, 1]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return sweep(NETS, GRID, tmp_path_factory.mktemp("views") / "runs")


@pytest.fixture(scope="module")
def theory(tmp_path_factory):
    return sweep(THEORY, {"lr": [0.05, 0.1, 0.2]}, tmp_path_factory.mktemp("theory") / "runs")


def test_tables_hold_the_numbers_of_the_records(swept):
    table = swept.table("loss")
    assert table.values.shape == table.stderr.shape == table.status.shape == (2, 3, 2)
    last = swept.results()[-1].record
    assert table.values[1, 2, 1] == last.loss[0, :, -1].mean()
    assert table.stderr[1, 2, 1] == pytest.approx(last.stderr("loss")[0, -1], rel=1e-14)
    lines = str(table).splitlines()
    assert lines[0].split() == ["gamma0", "lr", "seed", "loss", "s.e.", "status"]
    assert len(lines) == 13
    assert lines[-1].split()[:3] == ["1", "0.4", "1"]
    assert float(lines[-1].split()[3]) == pytest.approx(table.values[1, 2, 1], rel=1e-4)
    assert (table.values[:, 2] < table.values[:, 0]).all(), "a larger rate learns more in three steps"


def test_tables_of_solutions(theory):
    table = theory.table("loss_test")
    assert [r.record.loss_test[-1] for r in theory.results()] == table.values.tolist()
    np.testing.assert_array_equal(table.stderr, 0.0)
    shares = theory.table("accuracy").values
    f = theory.results()[-1].record.f[-1]
    assert shares[-1] == np.mean(np.sign(f) == TASK.y)
    assert theory.table("accuracy_test").values.shape == (3,)
    assert theory.table(lambda sol: sol.loss[0]).values == pytest.approx(theory.results()[0].record.loss[0])


def test_accuracy_of_classes(tmp_path):
    task = tp.Task(TASK.X, [0, 1, 2])
    rule = tp.GradientDescent(0.5, 4, tp.CrossEntropy())
    done = sweep(tp_run(task, rule), {"gamma0": [1.0]}, tmp_path / "runs")
    record = done.results()[0].record
    assert record.f.shape == (1, 2, 5, 3, 3)
    expected = np.mean(record.f[0, :, -1].argmax(axis=-1) == [0, 1, 2])
    assert done.table("accuracy").values[0] == pytest.approx(expected)


def tp_run(task, rule):
    from tp_solver.sweeps.runs import EnsembleRun

    return EnsembleRun(NET, tp.muP, rule, task, widths=4, seeds=2)


def test_diverged_points_have_no_number(tmp_path):
    done = sweep(NETS, {"lr": [0.1, 1e200]}, tmp_path / "runs")
    table = done.table()
    assert np.isfinite(table.values[0])
    assert np.isnan(table.values[1])
    assert list(table.status) == ["completed", "nonfinite"]
    done.plot(tmp_path / "figure.png")


def test_runaway_losses_leave_the_others_visible(tmp_path):
    done = sweep(NETS, {"lr": [0.1, 0.2, 300.0], "gamma0": [0.5, 1.0]}, tmp_path / "runs")
    values = done.table().values
    start = max(r.record.loss[0, :, 0].mean() for r in done.results())
    assert values.max() > 1e3 * start
    curves, map_ = done.plot(tmp_path / "figure.png").axes[:2]
    lowest = min(r.record.loss[0].mean(axis=0)[r.record.loss[0].mean(axis=0) < 3 * start].min() for r in done.results())
    assert lowest / 2 < curves.get_ylim()[0] < lowest if curves.get_yscale() == "log" else curves.get_ylim()[0] == 0
    assert curves.get_ylim()[1] == pytest.approx(3 * start)
    assert map_.images[0].norm.vmax == pytest.approx(3 * start)
    np.testing.assert_allclose(map_.images[0].get_array(), values.T)


def test_one_call_draws_curves_and_a_heat_map(swept, tmp_path):
    figure = swept.plot(tmp_path / "phases.png", "loss", x="lr", y="gamma0")
    assert (tmp_path / "phases.png").stat().st_size > 5000
    curves, map_ = figure.axes[:2]
    assert len(curves.lines) == 12
    image = map_.images[0].get_array()
    np.testing.assert_allclose(image, swept.table("loss").values.mean(axis=2))
    assert (map_.get_xlabel(), map_.get_ylabel()) == ("lr", "gamma0")
    assert "mean over seed" in map_.get_title()
    assert [t.get_text() for t in map_.get_xticklabels()] == ["0.1", "0.2", "0.4"]
    default = swept.plot()
    assert (default.axes[1].get_xlabel(), default.axes[1].get_ylabel()) == ("gamma0", "lr")


def test_one_parameter_is_drawn_as_a_curve(theory, tmp_path):
    figure = theory.plot(tmp_path / "rates.pdf", "accuracy_test")
    right = figure.axes[1]
    assert not right.images
    np.testing.assert_allclose(right.lines[0].get_ydata(), theory.table("accuracy_test").values)
    assert figure.axes[0].get_ylabel() == "test loss"


def test_lists_of_points_are_drawn_too(swept, tmp_path):
    points = [{"gamma0": g, "lr": lr, "seed": 0} for g, lr in ((0.5, 0.1), (1.0, 0.2))]
    listed = sweep(NETS, points, swept.folder.path)
    assert listed.table().values.shape == (2,)
    image = listed.plot().axes[1].images[0].get_array().filled(np.nan)
    assert np.isnan(image[0, 1])
    assert np.isnan(image[1, 0])
    assert image[1, 1] == listed.table().values[1]


BAD = {
    "quantity": (lambda s: s.table("losses"), "quantity", "losses"),
    "no quantity": (lambda s: s.table(3), "quantity", "3"),
    "x": (lambda s: s.plot(x="gama0"), "x", "gama0"),
    "y": (lambda s: s.plot(y="width"), "y", "width"),
    "the same twice": (lambda s: s.plot(x="lr", y="lr"), "y", "lr"),
    "suffix": (lambda s: s.plot("figure.docx"), "path", ".docx"),
    "folder": (lambda s: s.plot("/nowhere/figure.png"), "path", "/nowhere"),
    "state": (lambda s: s.status().count("finished"), "state", "finished"),
    "executor": (lambda s: s.retry("threads"), "executor", "threads"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_malformed_views(case, swept, must_be_answered):
    call, field, value = case
    must_be_answered(lambda: call(swept), field, value)


def test_quantities_without_labels(tmp_path, must_be_answered):
    done = sweep(tp_run(tp.Task(TASK.X, TASK.y), tp.GradientDescent(0.1, 2)), {"gamma0": [1.0]}, tmp_path / "runs")
    must_be_answered(lambda: done.table("loss_test"), "quantity", "loss_test")
    must_be_answered(lambda: done.table("accuracy_test"), "quantity", "accuracy_test")


def test_nothing_to_draw(tmp_path, must_be_answered):
    done = sweep(NETS, {"gamma0": [1.0]}, tmp_path / "runs")
    done.results()[0].record  # noqa: B018
    (done.folder.path / done.plan.points[0].name / "record.npz").unlink()
    must_be_answered(lambda: done.plot(), "plot", "a sweep without finished points")


def test_a_sweep_prints_where_it_stands(swept):
    assert "12 done" in repr(swept)
    assert "0 missing" in str(swept.status())
    assert "sweep over gamma0, lr, seed" in repr(swept)
