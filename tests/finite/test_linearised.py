"""Linearised twins: against hand-made features, function space and finite differences; wide nets follow them (Lee et al. 2019)."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
import sympy as sp

from tp_solver.finite.linearised import LinearisedNet, linearise
from tp_solver.finite.network import draw
from tp_solver.finite.simulate import simulate
from tp_solver.finite.twins import train_with_twin
from tp_solver.kernel_regime.compute import kernels
from tp_solver.program.architectures import mlp
from tp_solver.program.losses import CrossEntropy, Logistic, SquaredError
from tp_solver.program.parameterization import mean_field, muP, ntk
from tp_solver.program.task import Task
from tp_solver.program.tracing import hidden_matrix, input_matrix, program, readout
from tp_solver.program.training import GradientDescent, GradientFlow
from tp_solver.symbols.activation import erf, tanh

RNG = np.random.default_rng(0)
X, X_TEST = RNG.standard_normal((4, 3)), RNG.standard_normal((2, 3))
Y = np.array([1.0, -1.0, 0.5, -0.2])
TASK = Task(X, Y, X_TEST, np.array([0.3, -0.3]))
SIGNS = Task(X, np.sign(Y), X_TEST)
CLASSES = Task(X, np.array([0, 1, 2, 1]), X_TEST)


def tied(x):
    h = input_matrix("W0") @ x
    for _ in range(2):
        h = h + sp.Rational(1, 2) * (hidden_matrix("R") @ tanh(h))
    return readout("w") @ tanh(h)


NETS = {"biases": mlp(2, erf, bias=0.3, bias_rate=0.09), "tied residual": program(tied)}


def moved(twin: LinearisedNet, size: float, seed: int = 5):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(w) + size * rng.standard_normal(w.shape) for name, w in twin.of.w.items()}


@pytest.mark.parametrize(("net", "outputs"), [(NETS["biases"], 2), (NETS["tied residual"], 1)], ids=NETS)
def test_the_twin_is_the_first_order_expansion(net, outputs):
    """Equal at w0, affine in w, and off by the square of the move: a tenth of the move leaves a hundredth of the error."""
    twin = linearise(draw(net, mean_field, 3, 20, outputs=outputs, gamma0=1.3))
    start = twin.predict(X)
    assert start.shape == (4, outputs)
    np.testing.assert_allclose(start, twin.of.predict(X), rtol=1e-14)
    far, near = moved(twin, 1.0), moved(twin, 0.1)
    np.testing.assert_allclose(twin.predict(X, near) - start, 0.1 * (twin.predict(X, far) - start), atol=1e-13)

    def error(size):
        w = moved(twin, size)
        with jax.enable_x64(True):
            exact = twin.of.moved({name: jax.numpy.asarray(v) for name, v in w.items()}).predict(X)
        return np.abs(exact - twin.predict(X, w)).max()

    assert error(1e-2) > 1e-6
    assert error(1e-3) / error(1e-2) == pytest.approx(1e-2, rel=0.15)


def test_training_against_features_by_hand():
    """One hidden layer in mean-field scaling at gamma0 = 1.3: features typed out, w <- w - lr gamma0^2 n dLoss/dw."""
    n, g0, lr, steps = 6, 1.3, 0.4, 12
    run = train_with_twin(
        mlp(1, tanh), mean_field, GradientDescent(lr, steps), TASK, gamma0=g0, widths=(n,), seeds=(3,), times=(0,), progress=False
    )
    twin = linearise(draw(mlp(1, tanh), mean_field, 3, n, seed=3, gamma0=g0))
    w0, w1 = (np.asarray(twin.of.w[name]) for name in ("W0", "W1"))

    def features(points):
        h = points @ w0.T / np.sqrt(3)
        inner = (w1 * (1 - np.tanh(h) ** 2))[:, :, None] * points[:, None, :] / np.sqrt(3)
        return np.concatenate([inner.reshape(len(points), -1), np.tanh(h)], axis=1) / (n * g0)

    f0 = [np.tanh(p @ w0.T / np.sqrt(3)) @ w1[0] / (n * g0) for p in (X, X_TEST)]
    phi, phi_test = features(X), features(X_TEST)
    move = np.zeros(phi.shape[1])
    for t in range(steps + 1):
        f = f0[0] + phi @ move
        np.testing.assert_allclose(run.f_lin[0, 0, t], f, atol=1e-13)
        np.testing.assert_allclose(run.f_lin_test[0, 0, t], f0[1] + phi_test @ move, atol=1e-13)
        np.testing.assert_allclose(run.loss_lin[0, 0, t], np.mean((f - Y) ** 2) / 2, atol=1e-13)
        move -= lr * g0**2 * n * phi.T @ (f - Y) / 4
    kernel = g0**2 * n * phi @ phi.T
    np.testing.assert_allclose(run.kernels[0, 0, 0], kernel, atol=1e-12)
    np.testing.assert_allclose(twin.kernel(X)[:, :, 0, 0], kernel, atol=1e-12)
    np.testing.assert_allclose(twin.kernel(X, X_TEST)[:, :, 0, 0], g0**2 * n * phi @ phi_test.T, atol=1e-12)
    assert twin.critical_rate(X) == pytest.approx(2 * 4 / np.linalg.eigvalsh(kernel)[-1], rel=1e-12)
    assert run.critical_rates[0, 0] == pytest.approx(twin.critical_rate(X), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "task", "slope", "momentum"),
    [
        (SquaredError(), TASK, lambda f: f - Y, 0.7),
        (Logistic(), SIGNS, lambda f: -np.sign(Y) / (1 + np.exp(np.sign(Y) * f)), 0.0),
    ],
    ids=["squared error, momentum", "logistic"],
)
def test_training_in_weights_is_training_in_function_space(loss, task, slope, momentum):
    """The twin's kernel never moves: f(t + 1) = f(t) - lr K l'(f) / P, also with the last move made again."""
    lr, steps = 0.5, 15
    net = mlp(2, erf, bias=0.3, bias_rate=0.09)
    run = train_with_twin(net, ntk, GradientDescent(lr, steps, loss, momentum), task, widths=(16,), seeds=2, progress=False)
    for seed in range(2):
        twin = linearise(draw(net, ntk, 3, 16, seed=seed))
        kernel = twin.kernel(np.concatenate([X, X_TEST]), X)[:, :, 0, 0]
        f, last = twin.predict(np.concatenate([X, X_TEST]))[:, 0], 0.0
        for t in range(steps + 1):
            np.testing.assert_allclose(run.f_lin[0, seed, t], f[:4], atol=1e-12)
            np.testing.assert_allclose(run.f_lin_test[0, seed, t], f[4:], atol=1e-12)
            last = momentum * last - lr * kernel @ slope(f[:4]) / 4
            f = f + last


def test_flow_of_the_twin_is_the_matrix_exponential():
    run = train_with_twin(mlp(2, erf), ntk, GradientFlow(6.0, 3), TASK, widths=(16,), seeds=1, centred=True, progress=False)
    values, vectors = np.linalg.eigh(run.kernels[0, 0, 0] / 4)
    for t in range(4):
        expected = vectors @ (-np.expm1(-2.0 * t * values) * (vectors.T @ Y))
        np.testing.assert_allclose(run.f_lin[0, 0, t], expected, atol=2e-6)  # the classic Runge-Kutta rule at a tenth of the time scale


def test_several_outputs_and_shapes():
    run = train_with_twin(mlp(1, tanh), muP, GradientDescent(0.2, 4, CrossEntropy()), CLASSES, widths=(8,), seeds=3, progress=False)
    assert run.f_lin.shape == run.f.shape == (1, 3, 5, 4, 3) and run.f_lin_test.shape == (1, 3, 5, 2, 3)
    assert run.kernels.shape == (1, 3, 5, 4, 3, 4, 3) and run.times == (0, 1, 2, 3, 4)
    assert run.gap.shape == run.gap_test.shape == (1, 3, 5) and run.largest_gap.shape == (1, 3)
    assert run.gap[..., 0].max() < 1e-14
    assert (run.gap[..., -1] > 1e-4).all() and (run.gap_test[..., -1] > 1e-4).all()
    np.testing.assert_array_equal(run.kernel_drift[..., 0], 0.0)


def test_the_net_beside_the_twin_is_the_simulated_one():
    options = {"widths": (8,), "seeds": (0, 4), "centred": True, "seed": 7, "gamma0": 1.5, "times": (0, 3), "progress": False}
    run = train_with_twin(mlp(2, tanh), muP, GradientDescent(0.2, 3), TASK, **options)
    ensemble = simulate(mlp(2, tanh), muP, GradientDescent(0.2, 3), TASK, **options)
    for mine, theirs in (
        (run.f, ensemble.f),
        (run.f_test, ensemble.f_test),
        (run.loss, ensemble.loss),
        (run.kernels[:, :, 1], ensemble.ntk(3)),
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_a_net_that_trains_its_readout_alone_is_its_own_twin():
    """No gap at any time, while training does something."""
    run = train_with_twin(mlp(2, tanh), replace(ntk, eta=(0, 0, 1)), GradientDescent(0.5, 20), TASK, widths=(9,), seeds=2, progress=False)
    assert np.abs(run.f[:, :, -1] - run.f[:, :, 0]).max() > 0.1
    assert run.largest_gap.max() < 1e-13
    assert run.kernel_drift.max() < 1e-13


# Wide Neural Networks of Any Depth Evolve as Linear Models: three weight layers, erf, eight points --------------------------------

DEPTH2 = mlp(2, erf, bias=0.1, bias_rate=0.01)
SCALED = ntk.times(1.5)


def eight_points():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 4))
    x *= 2 / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2]
    return Task(x, y / y.std())


def infinite(task):
    """The kernel at infinite width, and its critical rate."""
    theta = kernels(DEPTH2, SCALED, task.X).ntk
    return theta, 2 * task.P / np.linalg.eigvalsh(theta)[-1]


def check_slopes(widths, seeds, steps, record_property):
    task = eight_points()
    theta, critical = infinite(task)
    run = train_with_twin(
        DEPTH2, SCALED, GradientDescent(0.5 * critical, steps), task, widths=widths, seeds=seeds, times=(0,), progress=False
    )
    fluctuation = np.linalg.norm((run.kernels[:, :, 0] - theta).reshape(len(widths), seeds, -1), axis=2) / np.linalg.norm(theta)
    slopes = {
        "gap": run.slope(run.largest_gap),
        "drift": run.slope(run.kernel_drift[:, :, -1]),
        "initial fluctuation": run.slope(fluctuation),
    }
    for name, slope in slopes.items():
        record_property(name, str(slope))
        assert slope.low < slope.value < slope.high
    assert run.loss[..., -1].mean() < 1e-3 * run.loss[..., 0].mean(), "trained"
    # |f - f_lin| <= C n^-1/2 of the theorem is a bound: the exponents are near -1, only the initial kernel has -1/2
    assert -1.3 <= slopes["gap"].value <= -0.6, slopes
    assert -1.3 <= slopes["drift"].value <= -0.6, slopes
    return slopes


def test_nets_follow_their_twins_as_the_width_grows(record_property):
    """Card B1, reduced: slopes of the gap and of the kernel's drift in [-1.3, -0.6]."""
    check_slopes((64, 256), 32, 150, record_property)


@pytest.mark.slow
def test_nets_follow_their_twins_as_the_width_grows_in_full(record_property):
    """Card B1: the same up to width 512, and -0.5 +- 0.1 for the initial kernel."""
    slopes = check_slopes((64, 128, 256, 512), 32, 300, record_property)
    assert slopes["initial fluctuation"].value == pytest.approx(-0.5, abs=0.1)


def test_the_initial_kernel_fluctuates_as_one_over_root_n(record_property):
    """No training, so more seeds: the exponent of |K_0 - Theta| is -1/2, not -1."""
    task = eight_points()
    theta, _ = infinite(task)
    widths = (64, 128, 256)
    found = [
        np.mean([np.linalg.norm(linearise(draw(DEPTH2, SCALED, 4, n, seed=s)).kernel(task.X)[:, :, 0, 0] - theta) for s in range(96)])
        for n in widths
    ]
    slope = np.polyfit(np.log(widths), np.log(found), 1)[0]
    record_property("slope", float(slope))
    assert slope == pytest.approx(-0.5, abs=0.1)


def at_rate(factor, width, seed):
    """One net and its twin at a multiple of the twin's own critical rate."""
    task = eight_points()
    critical = linearise(draw(DEPTH2, SCALED, 4, width, seed=seed)).critical_rate(task.X)
    rule = GradientDescent(factor * critical, 300)
    return train_with_twin(DEPTH2, SCALED, rule, task, widths=(width,), seeds=(seed,), times=(0,), progress=False)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_linear_twin_diverges_just_above_its_critical_rate(seed):
    below, above = at_rate(0.9, 128, seed), at_rate(1.1, 128, seed)
    assert below.loss_lin[0, 0, -1] < 1e-10
    # the top mode is multiplied by 1 - 2.2 = -1.2 per step
    last = above.loss_lin[0, 0, -20:]
    assert last[-1] > 1e30
    np.testing.assert_allclose(last[1:] / last[:-1], 1.2**2, rtol=1e-6)
    # the net itself is monotone below, and no net diverges above
    assert (np.diff(below.loss[0, 0]) <= 1e-12).all()
    assert above.loss[0, 0, -1] < 1e-3 * above.loss[0, 0, 0]


def test_the_finite_net_catapults(record_property):
    """At 1.3 times the critical rate the loss of a net rises, its kernel shrinks below 2 P / lr, and then it converges."""
    ratios = []
    for seed in range(4):
        run = at_rate(1.3, 512, seed)
        loss = run.loss[0, 0]
        tops = [np.linalg.eigvalsh(k)[-1] for k in run.kernels[0, 0]]
        ratios.append(loss.max() / loss[0])
        assert loss[-1] < 1e-6 * loss[0], "and then converges"
        assert run.training.lr * tops[0] / 8 == pytest.approx(2.6)
        assert run.training.lr * tops[1] / 8 < 2.0
    record_property("largest loss over initial loss", str(ratios))
    # how high depends on the share of the top mode in the initial error
    assert np.mean(ratios) > 2 and min(ratios) > 1.5


# the record ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return train_with_twin(mlp(1, tanh), ntk, GradientDescent(0.5, 40), TASK, widths=(16, 64), seeds=4, progress=False)


def test_slopes_of_known_powers(small):
    power = np.array([[1.0, 1.0, 2.0, 2.0], [0.5, 0.5, 1.0, 1.0]])
    assert small.slope(power).value == pytest.approx(-0.5, abs=1e-12)
    assert small.slope(np.full((2, 4), 3.0)) == small.slope(np.full((2, 4), 3.0), seed=1)
    assert small.slope(np.full((2, 4), 3.0)).high == pytest.approx(0.0, abs=1e-12)
    # means of four draws from (1, 1, 2, 2) are 1, 5/4, 3/2, 7/4, 2; ratios up to (5/4) / 2 have the probability 9/256, below it 5/256
    for side, end in ((1, small.slope(power).low), (-1, small.slope(power).high)):
        assert end == pytest.approx(-0.5 + side * np.log(0.625) / np.log(4), abs=1e-12)


def test_the_table_and_the_figure(small, tmp_path):
    lines = str(small).splitlines()
    assert len(lines) == 5 and lines[2].split()[0] == "16" and lines[4].split()[0] == "slope"
    assert f"{small.largest_gap[0].mean():.4g}" in lines[2]
    for suffix in ("png", "pdf"):
        small.plot(tmp_path / f"twins.{suffix}")
        assert (tmp_path / f"twins.{suffix}").stat().st_size > 5000
    figure = small.plot()
    curves = [line.get_ydata() for ax in figure.axes[:2] for line in ax.lines]
    assert any(np.array_equal(c, small.f[1, 0, :, 0]) for c in curves) and any(np.array_equal(c, small.f_lin[1, 0, :, 0]) for c in curves)


def test_a_twin_that_overflows_is_drawn_and_printed(tmp_path):
    """Also: one output and no test points."""
    run = train_with_twin(mlp(1, tanh), ntk, GradientDescent(1e7, 40), Task(X, Y), widths=(16,), seeds=1, times=(7,), progress=False)
    assert run.f.shape == run.f_lin.shape == (1, 1, 41, 4) and run.kernels.shape == (1, 1, 3, 4, 4) and run.times == (0, 7, 40)
    assert run.f_test is None and run.f_lin_test is None and run.gap_test is None
    assert not np.isfinite(run.loss_lin).all()
    assert "nan" in str(run) or "inf" in str(run)
    run.plot(tmp_path / "twins.svg")


# bad input -----------------------------------------------------------------------------------------------------------------------

RULE = GradientDescent(0.1, 2)


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"net": 3}, "net", "3"),
        ({"training": GradientDescent}, "training", "the class GradientDescent"),
        ({"gamma0": 0}, "gamma0", "0"),
        ({"widths": ()}, "widths", "an empty sequence"),
        ({"seeds": 0}, "seeds", "0"),
        ({"times": (3,)}, "times", "3"),
        ({"memory": -1}, "memory", "-1"),
        ({"memory": 1000}, "memory", "a need of"),
        ({"progress": 2}, "progress", "2"),
        ({"dtype": "float16"}, "dtype", "'float16'"),
    ],
)
def test_bad_arguments(change, field, value, must_be_answered):
    arguments = {"net": mlp(1, tanh), "parameterization": ntk, "training": RULE, "task": TASK} | change
    must_be_answered(lambda: train_with_twin(**arguments), field, value)


def test_bad_arguments_of_a_twin(small, tmp_path, must_be_answered):
    twin = linearise(draw(mlp(1, tanh), ntk, 3, 8))
    must_be_answered(lambda: linearise(mlp(1, tanh)), "net", "mlp(depth=1")
    must_be_answered(lambda: linearise(draw), "net", "the function draw")
    must_be_answered(lambda: twin.predict(np.ones((2, 5))), "X", "inputs of dimension 5")
    must_be_answered(lambda: twin.predict([[np.nan, 0, 1]]), "X", "a non-finite entry")
    must_be_answered(lambda: twin.predict(X, {"W0": np.ones((8, 3))}), "w", "W0")
    must_be_answered(lambda: twin.predict(X, 3), "w", "3")
    must_be_answered(lambda: small.slope(np.ones((3, 4))), "values", "shape (3, 4)")
    must_be_answered(lambda: small.slope(np.zeros((2, 4))), "values", "0")
    must_be_answered(lambda: small.plot("x.xyz"), "path", ".xyz")
    must_be_answered(lambda: small.plot(tmp_path / "none" / "x.png"), "path", "none/x.png")


def test_nothing_to_train(must_be_answered):
    still = linearise(draw(mlp(1, tanh), replace(ntk, eta=0), 3, 8))
    still.kernel(X)  # compiles
    must_be_answered(lambda: still.critical_rate(X), "X", "a tangent kernel of zero")
