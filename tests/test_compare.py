"""Comparisons of made-up runs with known deviations, of a real kernel-regime run, and their figures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

import tp_solver as tp
from tp_solver import plot
from tp_solver.compare import compare
from tp_solver.errors import InputError, RangeError
from tp_solver.finite.ensemble import Ensemble
from tp_solver.solve.solution import Fields, Solution, Status

NET, STEPS, P, TESTS = tp.mlp(depth=2, activation=tp.tanh), 6, 4, 3
TRAIN = tp.GradientDescent(lr=0.2, steps=STEPS)
RNG = np.random.default_rng(3)
TASK = tp.Task(RNG.standard_normal((P, 3)), [1.0, -1.0, 1.0, -1.0], RNG.standard_normal((TESTS, 3)), [1.0, -1.0, 1.0])
WIDTHS, SEEDS = (64, 256, 1024), 12
SIZES = {"f": (STEPS + 1, P), "f_test": (STEPS + 1, TESTS), "loss": (STEPS + 1,), "loss_test": (STEPS + 1,)}
TRUE = {name: RNG.uniform(0.5, 1.0, size) for name, size in SIZES.items()}
KERNEL = np.eye(P) + 0.2


@dataclass(frozen=True)
class FakeKernels:
    """One kernel for every layer and time, known exactly."""

    def Phi(self, layer, t, s):
        return KERNEL

    G = A = B = Phi

    def ntk(self, t):
        return KERNEL

    def fields(self, layer, t):
        return Fields(*np.random.default_rng(layer).standard_normal((2, 500, P)))

    def predict(self, X):
        raise NotImplementedError

    def stderr(self, name, args):
        return np.zeros((P, P))

    def freedom(self, name, args):
        return np.full((P, P), np.inf)

    def arrays(self):
        return {}


class WithoutNTK(FakeKernels):
    """Several outputs have no tangent kernel in this form."""

    def ntk(self, t):
        raise RangeError("ntk", "several outputs", "one output", "compare G")


def solution(parameterization=tp.muP, training=TRAIN, net=NET, task=TASK, **changes):
    made = Solution(
        tp.limit(net, parameterization, training), task, 1.0, "march", TRUE["f"], TRUE["loss"], TRUE["f_test"], TRUE["loss_test"],
        {name: np.full(size, 1e-3) for name, size in SIZES.items()}, FakeKernels(), Status.COMPLETED, "done",
    )  # fmt: skip
    return replace(made, **changes)


def ensemble(bias=0.0, widths=WIDTHS, seeds=SEEDS, spread=1.0, task=TASK, seed=0, **changes):
    """Records that scatter as spread / sqrt(N) around the truth plus a bias that does not fall with the width."""
    rng, lead = np.random.default_rng(seed), (len(widths), seeds)

    def scattered(true):
        scale = spread / np.sqrt(np.asarray(widths, float)).reshape(-1, *[1] * (true.ndim + 1))
        return true + bias + scale * rng.standard_normal((*lead, *true.shape))

    kernels = scattered(np.broadcast_to(KERNEL, (2, 2, 2, P, P)))
    sites = rng.standard_normal((*lead, 2, 2, 20, P))
    made = Ensemble(
        tuple(widths), tuple(range(seeds)), (0, STEPS), 1.0, False, NET, tp.muP, TRAIN, task,
        *(scattered(TRUE[n]) for n in ("f", "loss", "f_test", "loss_test")),
        kernels, kernels, scattered(np.broadcast_to(KERNEL, (2, P, P))), sites, sites, np.full(lead, -1),
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture(scope="module")
def sol():
    return solution()


def test_chance_alone_agrees_and_a_bias_does_not(sol):
    # unbiased: every row is within chance; 17 rows, so that four standard errors are exceeded once in about a thousand draws
    assert compare(sol, ensemble()).agrees(sigmas=4)
    # a bias of 0.05 at N = 1024 and 12 seeds, whose combined s.e. is 0.01
    biased = compare(sol, ensemble(bias=0.05))
    assert not biased.agrees(sigmas=3)
    assert biased["f, rms"].sigmas > 4


def test_numbers_are_those_of_the_arrays(sol):
    ens = ensemble()
    c = compare(sol, ens)
    mean, error = ens.f[-1].mean(axis=0), np.hypot(1e-3, ens.f[-1].std(axis=0, ddof=1) / np.sqrt(SEEDS))
    assert c.rms_f == pytest.approx(np.sqrt(np.mean((mean - sol.f) ** 2)), rel=1e-12)
    assert c.stderr_f == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-12)
    assert c["f, rms"].deviation == pytest.approx(c.rms_f, rel=1e-12)
    assert c["f, rms"].sigmas == pytest.approx(c.rms_f / c.stderr_f)
    final = c["loss, final"]
    assert (final.theory, final.nets) == pytest.approx((sol.loss[-1], ens.loss[-1, :, -1].mean()))
    assert final.deviation == pytest.approx(final.nets - final.theory)
    largest = c["loss, largest"]
    assert largest.extreme
    assert abs(largest.deviation) == pytest.approx(np.abs(ens.loss[-1].mean(axis=0) - sol.loss).max())
    phi = ens.Phi(2, STEPS, STEPS)[-1]
    relative = np.linalg.norm(phi.mean(axis=0) - KERNEL) / np.linalg.norm(KERNEL)
    assert c[f"Phi^2({STEPS},{STEPS}), relative"].deviation == pytest.approx(relative)
    with pytest.raises(RangeError):
        c["f, rsm"]


def test_slope_of_the_deviation_per_net(sol):
    c = compare(sol, ensemble())
    # per net the deviation is spread / sqrt(N) by construction; 28 numbers x 12 seeds per width determine the slope to 0.02
    assert c.slope == pytest.approx(-0.5, abs=0.06)
    assert c.slope_interval[0] < -0.5 < c.slope_interval[1]
    assert c.slope_interval[1] - c.slope_interval[0] < 0.2
    flat = compare(sol, ensemble(bias=3.0))
    assert abs(flat.slope) < 0.02
    assert compare(sol, ensemble(widths=(64,))).slope is None


def test_widths_in_any_order(sol):
    up = ensemble()
    flipped = {
        n: getattr(up, n)[::-1] for n in ("f", "loss", "f_test", "loss_test", "feature_kernels", "gradient_kernels", "tangent_kernels")
    }
    down = compare(sol, replace(up, widths=WIDTHS[::-1], **flipped))
    assert down.widths == WIDTHS
    assert str(down) == str(compare(sol, up))


def test_theta_shifts_are_the_same_run(sol):
    assert compare(sol, ensemble(parameterization=tp.muP.shifted(1))).rms_f > 0


DIFFERENT = {
    "programs": lambda: (solution(net=tp.mlp(depth=2, activation=tp.sin)), ensemble()),
    "parameterizations": lambda: (solution(), ensemble(parameterization=tp.ntk)),
    "numbers of steps": lambda: (solution(training=tp.GradientDescent(0.2, STEPS + 1)), ensemble()),
    "learning rates": lambda: (solution(training=tp.GradientDescent(0.1, STEPS)), ensemble()),
    "training rules": lambda: (solution(training=tp.GradientFlow(0.2, STEPS)), ensemble()),
    "losses": lambda: (solution(training=tp.GradientDescent(0.2, STEPS, tp.Logistic())), ensemble()),
    "values of y": lambda: (solution(task=tp.Task(TASK.X, -TASK.y, TASK.X_test, TASK.y_test)), ensemble()),
    "shapes of X": lambda: (solution(task=tp.Task(TASK.X[:, :2], TASK.y)), ensemble()),
    "values of X_test": lambda: (solution(task=tp.Task(TASK.X, TASK.y, 2 * TASK.X_test, TASK.y_test)), ensemble()),
    "gamma0": lambda: (solution(gamma0=2.0), ensemble()),
}


@pytest.mark.parametrize(("what", "make"), DIFFERENT.items(), ids=DIFFERENT)
def test_different_runs_are_refused_by_name(what, make):
    with pytest.raises(InputError, match=f"different {what}") as caught:
        compare(*make())
    assert caught.value.field == "sol, ens"
    assert caught.value.hint


def test_one_rate_per_layer_is_the_same_as_one_rate():
    compare(solution(training=tp.GradientDescent((0.2, 0.2, 0.2), STEPS)), ensemble())


@pytest.mark.parametrize(
    ("sol", "ens", "field"),
    [
        (lambda: solution(), lambda: ensemble(seeds=1), "ens"),
        (lambda: solution(), lambda: ensemble(first_bad=np.full((3, SEEDS), 2)), "ens"),
        (lambda: solution(f=TRUE["f"][:3], status=Status.DIVERGED), lambda: ensemble(), "sol"),
    ],
    ids=["one seed", "nets that blew up", "a run that was cut short"],
)
def test_unusable_runs_are_refused(sol, ens, field):
    with pytest.raises(InputError) as caught:
        compare(sol(), ens())
    assert caught.value.field == field


def test_what_cannot_be_compared_is_said():
    c = compare(solution(kernels=WithoutNTK(), status=Status.RANK_SATURATED, message="too few samples"), ensemble())
    assert any("ntk" in n and "several outputs" in n for n in c.notes)
    assert any("rank_saturated" in n for n in c.notes)
    assert all(n in str(c) for n in c.notes)
    no_test = tp.Task(TASK.X, TASK.y)
    bare = compare(solution(task=no_test, f_test=None, loss_test=None, errors={n: np.zeros(SIZES[n]) for n in ("f", "loss")}), ensemble())
    assert any("test points" in n for n in bare.notes)
    with pytest.raises(RangeError):
        bare["f_test, rms"]


def test_variance_over_seeds_is_held_against_the_covariance():
    """In the kernel regime f(0) is random: mean and variance are both compared."""
    points = P + TESTS
    covariance = np.broadcast_to(0.04 * np.eye(points), (STEPS + 1, points, points))
    sol = solution(tp.ntk, f_cov=covariance)
    seeds = 400  # the variance is then known to 7 %, and over 28 independent entries to 1.5 %
    rng = np.random.default_rng(0)

    def random_nets(deviation):
        nets = ensemble(widths=(64, 128), seeds=seeds, parameterization=tp.ntk, spread=0.1)
        shapes = {n: (2, seeds, *SIZES[n]) for n in ("f", "f_test")}
        return replace(nets, **{n: TRUE[n] + deviation * rng.standard_normal(s) for n, s in shapes.items()})

    right, wrong = compare(sol, random_nets(0.2)), compare(sol, random_nets(0.26))
    assert right["variance of f, rms"].sigmas < 2
    assert right["variance of f_test, rms"].sigmas < 2
    assert right["variance of f, rms"].theory == pytest.approx(0.04)
    assert wrong["variance of f, rms"].sigmas > 3
    assert any("centred" in n for n in right.notes)
    centred = compare(sol, replace(random_nets(0.2), centred=True))
    assert not any(r.quantity.startswith(("variance", "loss")) for r in centred.rows)


def test_a_kernel_regime_run_end_to_end():
    train, task = tp.GradientDescent(lr=0.5, steps=3), tp.Task(TASK.X, TASK.y)
    net = tp.mlp(depth=1, activation=tp.erf)
    sol = tp.solve(tp.limit(net, tp.ntk, train), task)
    ens = tp.simulate(net, tp.ntk, train, task, widths=(512,), seeds=40, progress=False)
    c = compare(sol, ens)
    # corrections of order 1/N = 0.002 are far below the s.e. over 40 seeds; entries of one time are correlated, hence not 3
    assert c.agrees(sigmas=4), c
    assert c.slope is None


@pytest.mark.parametrize("outputs", [1, 3])
def test_several_outputs(outputs):
    """Labels with an output axis; the tangent kernel is compared where it has the same meaning on both sides."""
    rng = np.random.default_rng(1)
    train, task = tp.GradientDescent(lr=0.3, steps=2), tp.Task(TASK.X, rng.standard_normal((P, outputs)), TASK.X_test)
    sol = tp.solve(tp.limit(tp.mlp(1, tp.erf), tp.ntk, train), task)
    ens = tp.simulate(tp.mlp(1, tp.erf), tp.ntk, train, task, widths=(512,), seeds=30, progress=False)
    c = compare(sol, ens)
    rows = ("f, rms", "f_test, rms", "loss, final", "variance of f, rms", "variance of f_test, rms", "Phi^1(2,2), relative")
    assert all(c[name].sigmas < 4 for name in rows), c  # as above
    assert any(n.startswith("ntk") for n in c.notes) == (outputs > 1)


def test_tables_show_every_row(sol):
    c = compare(sol, ensemble())
    for row in c.rows:
        assert row.quantity in str(c)
        assert f"| {row.quantity} |" in c.markdown()
    assert "nan" not in str(c)
    assert f"{c.slope:.3f}" in str(c)


# figures ------------------------------------------------------------------------------------------------------------


def test_the_figure_of_a_comparison(sol, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = compare(sol, ensemble()).plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert dict(matplotlib.rcParams) == before, "defaults stay the user's"
    panels = figure.get_axes()
    assert len([a for a in panels if a.get_images()]) == 4, "kernels of theory and nets, twice"
    labels = {a.get_xlabel() for a in panels}
    assert {"training time (steps)", "width $N$"} <= labels
    assert all(a.get_ylabel() for a in panels if a.get_xlabel() in ("training time (steps)", "width $N$"))


@pytest.mark.parametrize("suffix", plot.FORMATS)
def test_formats(sol, tmp_path, suffix):
    assert plot.save(plot.loss_curves(sol), tmp_path / f"losses.{suffix}").stat().st_size > 3000


def test_legends_do_not_cover_the_data(sol):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = plot.width_deviation(compare(sol, ensemble()))
    FigureCanvasAgg(figure).draw()
    ax = figure.get_axes()[0]
    box = ax.get_legend().get_window_extent()
    points = np.concatenate([ax.transData.transform(line.get_xydata()) for line in ax.get_lines()])
    assert not any(box.contains(*p) for p in points)


def test_solutions_and_ensembles_share_the_functions(sol):
    ens = ensemble()
    assert len(plot.loss_curves(sol).get_axes()[0].get_lines()) == 1
    assert len(plot.loss_curves(sol, ens, test=True).get_axes()[0].get_lines()) == 1 + len(WIDTHS)
    assert len(plot.kernels(ens, name="G", layer=2).get_axes()) == 2
    heights = [p.get_data().values for p in plot.field_densities(sol, ens, layer=2).get_axes()[0].patches]
    assert len(heights) == 2
    assert all(np.sum(h) > 0 for h in heights)


BAD = {
    "a task": (lambda: plot.loss_curves(TASK), InputError),
    "nothing": (lambda: plot.loss_curves(), InputError),
    "a misspelt kernel": (lambda: plot.kernels(ensemble(), name="phi"), InputError),
    "a layer that is not there": (lambda: plot.kernels(ensemble(), layer=5), RangeError),
    "a point that is not there": (lambda: plot.field_densities(ensemble(), point=9), InputError),
    "an unknown suffix": (lambda: compare(solution(), ensemble()).plot("figure.bmp"), InputError),
    "a missing folder": (lambda: compare(solution(), ensemble()).plot("no/such/folder.png"), InputError),
    "no path": (lambda: compare(solution(), ensemble()).plot(3), InputError),
}


@pytest.mark.parametrize(("call", "kind"), BAD.values(), ids=BAD)
def test_bad_requests_for_figures(call, kind):
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.hint
