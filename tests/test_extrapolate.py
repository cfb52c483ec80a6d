"""Extrapolation in width: made-up nets with a known limit, errors that cover it, and real nets against both solvers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.compare import compare
from tp_solver.errors import FileFormatError, InputError, RangeError
from tp_solver.extrapolation import ExtrapolatedKernels, extrapolate
from tp_solver.numerics.width_fit import Design, fit_widths, influences
from tp_solver.restore import load
from tp_solver.storage import read_record, write_record

STEPS, P, TESTS = 4, 3, 2
TRAIN = tp.GradientDescent(lr=0.5, steps=STEPS)
NET = tp.mlp(depth=2, activation=tp.tanh)
X = np.sqrt(3) * np.linalg.cholesky(np.array([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]]))
Y = np.array([1.0, -1.0, 0.5])
TASK = tp.Task(X, Y, X[:TESTS] / 2, np.array([0.3, -0.4]))
CLASSES = tp.Task(X, [0, 1, 2], X[:TESTS] / 2, [0, 2])
WIDTHS = (64, 128, 256, 512)
SERIES = ("f", "f_test", "loss", "loss_test")
RECORDS = (*SERIES, "feature_kernels", "gradient_kernels", "tangent_kernels")


def simulated(**options):
    given = {"training": TRAIN, "widths": (4,), "seeds": 1, "times": (0, STEPS), "progress": False} | options
    training = given.pop("training")
    return tp.simulate(NET, tp.muP, training, TASK, 1.5, **given)


@pytest.fixture(scope="module")
def small():
    return simulated()


@pytest.fixture(scope="module")
def small_classes(small):
    """The same with the shapes that three classes make."""
    training = tp.GradientDescent(lr=0.5, steps=STEPS, loss=tp.CrossEntropy())
    wide = {n: np.repeat(getattr(small, n)[..., None], 3, axis=-1) for n in ("f", "f_test")}
    tangent = np.ones((1, 1, 2, P, 3, P, 3))
    return replace(small, task=CLASSES, training=training, tangent_kernels=tangent, **wide)


@pytest.fixture(scope="module")
def repeats(small):
    """The same with many rows, each to be a repeat of its own."""
    long = {n: np.repeat(getattr(small, n)[:, :, :1], 200, axis=2) for n in SERIES}
    return replace(small, training=tp.GradientDescent(lr=0.1, steps=199), times=(0, 199), **long)


def law(small, size=1.0, bend=0.0):
    """Name -> coefficients of 1, 1/N and 1/N^2, of the shape of one net's records."""
    rng = np.random.default_rng(5)
    shapes = {n: getattr(small, n).shape[2:] for n in RECORDS}
    return {n: np.stack([rng.uniform(0.5, 1, s), size * rng.uniform(1, 3, s), bend * rng.uniform(1, 2, s)]) for n, s in shapes.items()}


def made(small, powers, widths=WIDTHS, seeds=16, noise=0.1, seed=0, labels=None):
    """Nets that scatter as noise / sqrt(N), and whose means over seeds follow the law exactly."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, terms in powers.items():
        means = np.stack([terms[0] + terms[1] / n + terms[2] / n**2 for n in widths])
        scatter = rng.standard_normal((len(widths), seeds, *terms.shape[1:]))
        scatter -= scatter.mean(axis=1, keepdims=True)
        scatter *= noise / np.sqrt(np.reshape(widths, (-1, *[1] * (scatter.ndim - 1))))
        arrays[name] = means[:, None] + scatter
    bad = np.full((len(widths), seeds), -1)
    return replace(small, widths=tuple(widths), seeds=tuple(labels or range(seeds)), first_bad=bad, **arrays)


def squared(f, y):
    return np.mean((f - y) ** 2, axis=-1) / 2


def cross_entropy(f, classes):
    chosen = np.take_along_axis(f, np.asarray(classes)[None, :, None], axis=2)[..., 0]
    return (np.log(np.exp(f).sum(axis=2)) - chosen).mean(axis=1)


# made-up nets -------------------------------------------------------------------------------------------------------


def test_a_known_limit_is_recovered(small):
    powers = law(small)
    sol = extrapolate(made(small, powers))
    assert sol.success and sol.method == "extrapolated" and sol.status == "completed"
    for name, labels in (("f", Y), ("f_test", TASK.y_test)):
        np.testing.assert_allclose(getattr(sol, name), powers[name][0], rtol=1e-12)
        loss = name.replace("f", "loss")
        np.testing.assert_allclose(getattr(sol, loss), squared(powers[name][0], labels), rtol=1e-12)
        np.testing.assert_allclose(sol.kernels.direct[loss].limit, powers[loss][0], rtol=1e-12)
    for name, record in (("Phi", "feature_kernels"), ("G", "gradient_kernels")):
        for i, t in enumerate(small.times):
            for j, s in enumerate(small.times):
                for layer in (1, 2):
                    np.testing.assert_allclose(getattr(sol, name)(layer, t, s), powers[record][0, i, j, layer - 1], rtol=1e-12)
    np.testing.assert_allclose(sol.kernels.feature.coefficient, powers["feature_kernels"][1], rtol=1e-9)
    np.testing.assert_allclose(sol.ntk(STEPS), powers["tangent_kernels"][0, -1], rtol=1e-12)
    assert set(sol.details["orders"].values()) == {1}
    assert sol.details["rms_c"]["f"] == pytest.approx(np.sqrt(np.mean(powers["f"][1] ** 2)))
    assert all(sol.stderr(n).shape == getattr(sol, n).shape and (sol.stderr(n) > 0).all() for n in SERIES)
    assert (sol.stderr("Phi", 1, 0, STEPS) > 0).all() and (sol.stderr("ntk", 0) > 0).all()


def test_several_outputs(small_classes):
    powers = law(small_classes)
    sol = extrapolate(made(small_classes, powers))
    np.testing.assert_allclose(sol.f, powers["f"][0], rtol=1e-12)
    np.testing.assert_allclose(sol.loss, cross_entropy(powers["f"][0], [0, 1, 2]), rtol=1e-12)
    np.testing.assert_allclose(sol.loss_test, cross_entropy(powers["f_test"][0], [0, 2]), rtol=1e-12)
    np.testing.assert_allclose(sol.G(2, STEPS, 0), powers["gradient_kernels"][0, 1, 0, 1], rtol=1e-12)
    with pytest.raises(RangeError, match="several outputs"):
        sol.ntk(0)


def test_the_print_says_what_it_is(small):
    text = str(extrapolate(made(small, law(small))))
    for words in (
        "method extrapolated",
        "an estimate from experiments",
        "64, 128, 256, 512 with 16 seeds",
        "c/N",
        "rms c = ",
        "the fit holds",
    ):
        assert words in text


def test_a_second_power_is_taken_where_it_shows(small):
    powers = law(small, bend=400.0)
    nets = made(small, powers, widths=(32, *WIDTHS), noise=0.02)
    sol = extrapolate(nets)
    assert set(sol.details["orders"].values()) == {2} and sol.success and "d/N^2" in sol.message
    np.testing.assert_allclose(sol.f, powers["f"][0], rtol=1e-10)
    np.testing.assert_allclose(sol.kernels.feature.coefficient, powers["feature_kernels"][1], rtol=1e-8)


def test_three_widths_that_do_not_fit(small):
    sol = extrapolate(made(small, law(small, bend=400.0), widths=(32, 64, 128), noise=0.02))
    assert not sol.success and sol.status == "poor_fit" and "simulate wider ones" in sol.message
    assert set(sol.details["orders"].values()) == {1}


def test_two_widths_are_not_checked(small):
    powers = law(small)
    sol = extrapolate(made(small, powers, widths=(64, 256)))
    assert sol.success and "not checked: two widths" in sol.message
    assert set(sol.details["p_values"].values()) == {None}
    np.testing.assert_allclose(sol.f, powers["f"][0], rtol=1e-12)


def test_nets_that_do_not_scatter(small):
    """Where all seeds agree, as f(0) = 0 of a zero readout, the fit is exact and its error zero."""
    powers = law(small)
    sol = extrapolate(made(small, powers, noise=0.0))
    np.testing.assert_allclose(sol.f, powers["f"][0], rtol=1e-12)
    assert np.max(sol.stderr("f")) < 1e-15 and "not checked: nothing scatters" in sol.message


def test_seeds_of_one_ensemble_go_together(small):
    """The same offset of a seed at all widths moves the limit by just that; apart, widths know nothing of each other."""
    powers = law(small)
    nets, offset = made(small, powers, noise=0.0), np.random.default_rng(0).standard_normal(16)
    moved = replace(nets, f=nets.f + offset[None, :, None, None])
    error = offset.std(ddof=1) / 4
    np.testing.assert_allclose(extrapolate(moved).stderr("f"), error, rtol=1e-10)
    one_each = [replace(moved, widths=moved.widths[k : k + 1], first_bad=moved.first_bad[k : k + 1],
                        **{n: getattr(moved, n)[k : k + 1] for n in RECORDS}) for k in (3, 1, 0, 2)]  # fmt: skip
    apart = extrapolate(*one_each)
    np.testing.assert_allclose(apart.f, extrapolate(moved).f, rtol=1e-12)
    weights = fit_widths(Design(WIDTHS, (16,) * 4, ((0, 1, 2, 3),)), list(moved.f), np.random.default_rng(0)).weights
    assert np.linalg.norm(weights) < 0.95 and weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(apart.stderr("f"), error * np.linalg.norm(weights), rtol=1e-10)


def test_different_seeds_per_width(small):
    powers = law(small)
    narrow, wide = made(small, powers, (32, 64), 12), made(small, powers, (512, 256), 5, labels=range(100, 105))
    sol = extrapolate(wide, narrow)
    assert sol.details["widths"] == [32, 64, 256, 512] and sol.details["seeds"] == [12, 12, 5, 5] and "12, 12, 5, 5 seeds" in sol.message
    np.testing.assert_allclose(sol.f, powers["f"][0], rtol=1e-12)


# errors and the check -----------------------------------------------------------------------------------------------


def gaussian(rng, seeds, bend=0.0):
    """Thirty entries that go together in three ways, as those of one net do."""
    mix = rng.standard_normal((3, 30))
    return [1 + 3 / n + bend / n**2 + rng.standard_normal((seeds, 3)) @ mix / np.sqrt(n) for n in WIDTHS]


def test_errors_are_those_of_a_bootstrap():
    """The closed form against means of nets drawn again, label by label."""
    rng, seeds = np.random.default_rng(1), 8
    values, design = gaussian(rng, seeds), Design(WIDTHS, (seeds,) * 4, ((0, 1), (2, 3)))
    fit = fit_widths(design, values, rng)
    again = []
    for _ in range(4000):
        picks = np.repeat(rng.integers(seeds, size=(2, seeds)), 2, axis=0)
        again.append(sum(w * v[k].mean(axis=0) for w, v, k in zip(fit.weights, values, picks, strict=True)))
    widened = np.std(again, axis=0) * np.sqrt(seeds / (seeds - 1))
    np.testing.assert_allclose(fit.stderr, widened, rtol=0.06)
    draws = design.draws(4000, rng) @ influences(design, values, fit.weights)
    np.testing.assert_allclose(fit.stderr, draws.std(axis=0), rtol=0.06)


@pytest.mark.parametrize(("seeds", "groups"), [(16, ((0, 1, 2, 3),)), (8, ((0,), (1,), (2,), (3,)))], ids=["together", "apart"])
def test_intervals_cover_and_the_check_is_fair(seeds, groups):
    """200 repeats: a nominal 95 % interval covers the limit in 90 to 98 %; the check refuses 1 % of good fits."""
    rng, design = np.random.default_rng(2), Design(WIDTHS, (seeds,) * 4, groups)
    fits = [fit_widths(design, gaussian(rng, seeds), rng) for _ in range(200)]
    covered = np.mean([np.abs(fit.limit - 1) < 1.96 * fit.stderr for fit in fits])
    assert 0.90 <= covered <= 0.98, covered
    p = np.array([fit.p_value for fit in fits])
    assert np.mean(p < 0.01) <= 0.03 and 0.3 <= np.median(p) <= 0.7
    three = replace(design, widths=WIDTHS[:3], seeds=(seeds,) * 3, groups=tuple(g[:3] for g in groups if 3 not in g or len(g) > 1))
    bent = [fit_widths(three, gaussian(rng, seeds, bend=16000.0)[:3], rng).p_value for _ in range(50)]
    assert np.mean(np.array(bent) < 0.01) >= 0.9


@pytest.mark.parametrize("far", [0.5, 0.01], ids=["far from the labels", "at the labels"])
def test_losses_are_covered(repeats, far):
    """Also near zero loss, where the noise of f makes the loss larger rather than noisy."""
    rng, seeds = np.random.default_rng(3), 16
    n = np.reshape(WIDTHS, (4, 1, 1, 1))
    f = Y + far + 2 / n + rng.standard_normal((4, seeds, 200, P)) / np.sqrt(n)
    powers = law(repeats)
    nets = made(repeats, powers, seeds=seeds)
    sol = extrapolate(replace(nets, f=f, loss=squared(f, Y)))
    assert 0.90 <= np.mean(np.abs(sol.f - Y - far) < 1.96 * sol.stderr("f")) <= 0.98
    covered = np.mean(np.abs(sol.loss - far**2 / 2) < 1.96 * sol.stderr("loss"))
    assert 0.90 <= covered <= (0.98 if far > 0.1 else 1.0), covered
    np.testing.assert_allclose(sol.loss, squared(sol.f, Y), rtol=1e-12)
    # the nets' own losses carry the variance of f, which is of order 1/N and goes with the fit
    direct = sol.kernels.direct["loss"]
    assert np.mean(np.abs(direct.limit - far**2 / 2) < 1.96 * direct.stderr) >= 0.90


# real nets ----------------------------------------------------------------------------------------------------------


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def assert_close(estimate, sol, last):
    """Within three combined standard errors, quantity by quantity."""
    assert estimate.success and sol.success, (estimate.message, sol.message)
    queries = [(n,) for n in SERIES]
    queries += [(name, layer, t, s) for name in ("Phi", "G") for layer in (1, 2) for t, s in ((0, 0), (last, 0), (last, last))]
    queries += [("ntk", 0), ("ntk", last)]
    for name, *args in queries:
        one, other = ((getattr(k, name)(*args) if args else getattr(k, name)) for k in (estimate, sol))
        error = np.hypot(estimate.stderr(name, *args), sol.stderr(name, *args))
        assert rms(one - other) <= 3 * rms(error), (name, args, rms(one - other), rms(error))


@pytest.fixture(scope="module")
def t3():
    """The reference problem T3: limit and nets."""
    training = tp.GradientDescent(lr=0.5, steps=16)
    sol = tp.solve(tp.limit(NET, tp.muP, training), TASK, 1.5, samples=2048)
    return sol, simulated(training=training, widths=WIDTHS, seeds=16, times=(0, 16))


def test_nets_against_the_march(t3):
    sol, ens = t3
    estimate = extrapolate(ens)
    assert_close(estimate, sol, 16)
    assert rms(estimate.stderr("f")) <= 0.006
    assert estimate.details["direct_loss"][0] == pytest.approx(estimate.loss[-1], abs=3 * estimate.stderr("loss")[-1])
    table = compare(estimate, ens)
    assert table.agrees() and "limit (extrapolated)" in str(table)


def test_linear_nets_against_the_exact_solution():
    net, training = tp.mlp(depth=2, activation=tp.linear), tp.GradientDescent(lr=0.2, steps=6)
    exact = tp.solve(tp.limit(net, tp.muP, training), TASK, 1.0, method="linear")
    ens = tp.simulate(net, tp.muP, training, TASK, 1.0, widths=(64, 128, 256), seeds=24, times=(0, 6), progress=False)
    assert_close(extrapolate(ens), exact, 6)


# refusals and files -------------------------------------------------------------------------------------------------


def test_what_nets_do_not_show(small):
    sol = extrapolate(made(small, law(small)))
    for call in (
        lambda: sol.A(1, 2, 0), lambda: sol.B(1, 2, 0), lambda: sol.fields(1, 0), lambda: sol.predict(X), lambda: sol.stderr("A", 1, 2, 0),
        lambda: sol.Phi(1, 1, 0), lambda: sol.ntk(2), lambda: sol.Phi(3, 0, 0),
    ):  # fmt: skip
        with pytest.raises(RangeError) as caught:
            call()
        assert caught.value.hint


def test_bad_input(small, must_be_answered):
    powers = law(small)
    good = made(small, powers)
    must_be_answered(lambda: extrapolate(), "ensemble", "no ensemble")
    must_be_answered(lambda: extrapolate("nets"), "ensemble", "nets")
    must_be_answered(lambda: extrapolate(good, None), "ensemble", "None")
    must_be_answered(lambda: extrapolate(made(small, powers, (64,))), "ensemble", "the width 64 alone")
    must_be_answered(lambda: extrapolate(made(small, powers, seeds=3)), "ensemble", "3 seeds")
    must_be_answered(lambda: extrapolate(good, good), "ensemble", "the widths (64, 64,")
    must_be_answered(lambda: extrapolate(good, resamples=5), "resamples", "5")
    must_be_answered(lambda: extrapolate(good, seed=-1), "seed", "-1")
    broken = replace(good, first_bad=np.where(np.arange(16) == 3, 2, good.first_bad))
    must_be_answered(lambda: extrapolate(broken), "ensemble", "nonfinite")
    wider = made(small, powers, (1024, 2048))
    for what, changed in (
        ("gamma0", replace(wider, gamma0=0.5)),
        ("training", replace(wider, training=tp.GradientDescent(lr=0.4, steps=STEPS))),
        ("parameterizations", replace(wider, parameterization=tp.mean_field)),
        ("centred", replace(wider, centred=True)),
        ("programs", replace(wider, program=tp.mlp(depth=2, activation=tp.erf))),
        ("values of X_test", replace(wider, task=tp.Task(X, Y))),
    ):
        must_be_answered(lambda changed=changed: extrapolate(good, changed), "ensemble", f"different {what}")


def test_random_initial_functions_are_refused(small):
    nets = replace(made(small, law(small)), parameterization=tp.ntk)
    with pytest.raises(InputError, match="centred=True"):
        extrapolate(nets)
    sol = extrapolate(replace(nets, centred=True))
    assert sol.f_cov is None and "centred nets" in sol.message
    with pytest.raises(tp.ParameterizationError):
        extrapolate(replace(nets, parameterization=tp.standard))


def test_files(small, small_classes, tmp_path):
    for k, nets in enumerate((small, small_classes)):
        sol = extrapolate(made(nets, law(nets)))
        path = tmp_path / f"{k}.npz"
        sol.save(path)
        back = load(path)
        assert str(back) == str(sol) and back.details == sol.details
        for name in SERIES:
            np.testing.assert_array_equal(getattr(back, name), getattr(sol, name))
            np.testing.assert_array_equal(back.stderr(name), sol.stderr(name))
        for name in ("Phi", "G"):
            np.testing.assert_array_equal(getattr(back, name)(2, STEPS, 0), getattr(sol, name)(2, STEPS, 0))
            np.testing.assert_array_equal(back.stderr(name, 2, STEPS, 0), sol.stderr(name, 2, STEPS, 0))
        assert isinstance(back.kernels, ExtrapolatedKernels)
        np.testing.assert_array_equal(back.kernels.direct["loss_test"].limit, sol.kernels.direct["loss_test"].limit)
    record = read_record(path)
    write_record(path, record._replace(arrays=record.arrays | {"kernels/times": np.array([0])}))
    with pytest.raises(FileFormatError, match="Phi"):
        load(path)


def test_the_same_seed_gives_the_same_bits(small):
    nets = made(small, law(small))
    one, other, third = (extrapolate(nets, seed=k) for k in (0, 0, 1))
    np.testing.assert_array_equal(one.stderr("loss"), other.stderr("loss"))
    assert one.details == other.details and (one.stderr("loss") != third.stderr("loss")).any()
