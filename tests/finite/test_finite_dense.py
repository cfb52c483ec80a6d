"""The compiled training step against a hand computation, finite differences, and symmetries that are exact at any width."""

from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from tp_solver.finite.changes import field_changes
from tp_solver.finite.experiment import precision, prepare
from tp_solver.finite.simulate import simulate
from tp_solver.program.architectures import mlp
from tp_solver.program.losses import CrossEntropy, Logistic
from tp_solver.program.parameterization import PRESETS, Parameterization, mean_field, muP, ntk
from tp_solver.program.task import Task
from tp_solver.program.tracing import average, bias, entrywise, hidden_matrix, input_matrix, program, readout
from tp_solver.program.training import GradientDescent, GradientFlow
from tp_solver.symbols.activation import gelu, linear, tanh

RNG = np.random.default_rng(0)
X, X_TEST = RNG.standard_normal((4, 3)), RNG.standard_normal((2, 3))
Y = np.array([1.0, -1.0, 0.5, -0.2])
TASK = Task(X, Y, X_TEST, np.array([0.3, -0.3]))
SIGNS = Task(X, np.sign(Y), X_TEST, np.array([1.0, -1.0]))
CLASSES = Task(X, np.array([0, 1, 2, 1]), X_TEST, np.array([2, 0]))
MULTI = Task(X, np.stack([Y, -Y + 0.1], axis=1), X_TEST, np.zeros((2, 2)))
W0, W1, OUT = input_matrix("W0"), hidden_matrix("W1"), readout("w")


def residual(x):
    h = W0 @ x
    for k in (1, 2):
        h = h + sp.Rational(1, 2) * (hidden_matrix(f"R{k}") @ tanh(h))
    return OUT @ tanh(h)


def tied(x):
    return OUT @ tanh(W1 @ tanh(W1 @ tanh(W0 @ x)))


def transposed(x):
    return OUT @ tanh(W1.T @ tanh(W1 @ tanh(W0 @ x)) + bias("b", sigma=0.5))


def normalised(x):
    h = W1 @ tanh(W0 @ x)
    size = average(lambda v: v**2, h)
    return OUT @ tanh(entrywise(lambda v, c: v / sp.sqrt(c + 1), h, size))


PROGRAMS = [mlp(2, gelu, bias=0.3, output_bias=0.2), program(residual), program(tied), program(transposed), program(normalised)]


def run(net, parameterization, training, task, **options):
    defaults = {"widths": (16,), "seeds": 2, "progress": False}
    return simulate(net, parameterization, training, task, **(defaults | options))


def test_deep_linear_net_against_numpy_by_hand():
    n, g0, lr, steps = 7, 1.3, 0.4, 3
    net, rates = mlp(2, linear), (0.4, 0.2, 0.3)
    ens = run(net, mean_field, GradientDescent(rates, steps), TASK, gamma0=g0, widths=(n,), seeds=1, seed=5)
    experiment = prepare(net, mean_field, GradientDescent(lr, steps), TASK, g0, (n,), 1, False, 5, "float64")
    with precision():
        w0, w1, w2 = (np.asarray(experiment.draw(n, (0,))[k])[0] for k in ("W0", "W1", "W2"))
    P, D = X.shape
    for t in range(steps + 1):
        # f = w2 W1 W0 x / (gamma0 n sqrt(n D)); every w moves by lr gamma0^2 n dLoss/dw
        h1 = w0 @ X.T / np.sqrt(D)
        h2 = w1 @ h1 / np.sqrt(n)
        f = (w2 @ h2)[0] / (n * g0)
        np.testing.assert_allclose(ens.f[0, 0, t], f, atol=1e-13)
        np.testing.assert_allclose(ens.f_test[0, 0, t], (w2 @ w1 @ w0 @ X_TEST.T)[0] / (n * g0 * np.sqrt(n * D)), atol=1e-13)
        np.testing.assert_allclose(ens.loss[0, 0, t], np.mean((f - Y) ** 2) / 2, atol=1e-13)
        np.testing.assert_allclose(ens.loss_test[0, 0, t], np.mean((ens.f_test[0, 0, t] - TASK.y_test) ** 2) / 2, atol=1e-13)
        g2 = np.repeat(w2.T, P, axis=1)
        g1 = w1.T @ g2 / np.sqrt(n)
        np.testing.assert_allclose(ens.Phi(1, t, t)[0, 0], h1.T @ h1 / n, atol=1e-13)
        np.testing.assert_allclose(ens.G(1, t, t)[0, 0], g1.T @ g1 / n, atol=1e-13)
        np.testing.assert_allclose(ens.G(2, t, 0)[0, 0], np.full((P, P), (w2 @ initial_readout(ens, n)).item() / n), atol=1e-13)
        np.testing.assert_allclose(ens.fields(1, t).z[0, 0], g1[: ens.fields(1, t).z.shape[2]], atol=1e-13)
        np.testing.assert_allclose(ens.fields(2, t).h[0, 0], h2, atol=1e-13)
        e = (Y - f) / P
        step = g0**2 * n / (n * g0)
        w0, w1, w2 = (
            w0 + rates[0] * step * (g1 * e) @ X / np.sqrt(D),
            w1 + rates[1] * step * (g2 * e) @ h1.T / np.sqrt(n),
            w2 + rates[2] * step * (h2 @ e)[None],
        )


def initial_readout(ens, n):
    experiment = prepare(ens.program, mean_field, ens.training, TASK, ens.gamma0, (n,), 1, False, 5, "float64")
    with precision():
        return np.asarray(experiment.draw(n, (0,))["W2"])[0].T


@pytest.mark.parametrize("base", [muP, ntk], ids=lambda p: p.name)
def test_theta_shift_changes_nothing(base):
    theta = (Fraction(1, 2), Fraction(-1, 3), 1)
    one, two = (run(PROGRAMS[0], p, GradientDescent(0.3, 8), TASK, times=(0, 2, 8)) for p in (base, base.shifted(theta)))
    # Powers of n are rounded differently; 8 steps amplify 1e-16 by less than 1e4.
    np.testing.assert_allclose(one.f, two.f, atol=1e-12)
    np.testing.assert_allclose(one.G(1, 8, 2), two.G(1, 8, 2), atol=1e-12)
    np.testing.assert_allclose(one.ntk(8), two.ntk(8), atol=1e-11)


def test_muP_and_mean_field_are_one_class():
    one, two = (run(mlp(2, tanh), p, GradientDescent(0.3, 5), TASK, gamma0=1.5) for p in (muP, mean_field))
    np.testing.assert_allclose(one.f, two.f, atol=1e-12)


@pytest.mark.parametrize("net", PROGRAMS, ids=lambda p: p.name)
@pytest.mark.parametrize("parameterization", [muP, ntk], ids=lambda p: p.name)
def test_tangent_kernel_is_the_slope_of_f_in_lr(net, parameterization):
    lr = 1e-5
    ens = run(net, parameterization, GradientDescent(lr, 1), TASK, gamma0=0.7)
    kernel, error = ens.ntk(0)[0], (Y - ens.f[0, :, 0]) / len(Y)
    slope = (ens.f[0, :, 1] - ens.f[0, :, 0]) / lr
    # Second order in lr is left: a relative 1e-5 times a factor of order ten.
    np.testing.assert_allclose(slope, np.einsum("smn,sn->sm", kernel, error), rtol=1e-3, atol=1e-4 * np.abs(slope).max())
    np.testing.assert_allclose(kernel, kernel.swapaxes(1, 2), atol=1e-12)


def test_tangent_kernel_of_several_outputs_and_of_layers_rates():
    lr, training = 1e-5, GradientDescent(1e-5, 1, CrossEntropy())
    mine = Parameterization("mine", muP.a, muP.b, muP.c, muP.alpha, (1, 2, 1), (Fraction(1, 2), 2, 3))
    ens = run(mlp(2, tanh), mine, training, CLASSES, gamma0=0.7)
    f = ens.f[0, :, 0]
    soft = np.exp(f) / np.exp(f).sum(-1, keepdims=True)
    error = (np.eye(3)[CLASSES.y.astype(int)] - soft) / 4
    slope = (ens.f[0, :, 1] - f) / lr
    np.testing.assert_allclose(slope, np.einsum("smknl,snl->smk", ens.ntk(0)[0], error), atol=1e-3 * np.abs(slope).max())
    assert ens.ntk(0).shape == (1, 2, 4, 3, 4, 3)


def test_tangent_kernel_is_the_sum_of_layer_products():
    ens = run(mlp(2, tanh), muP, GradientDescent(0.5, 4), TASK, gamma0=2.0)
    inputs = X @ X.T / 3
    for t in (0, 4):
        expected = ens.G(1, t, t) * inputs + ens.G(2, t, t) * ens.Phi(1, t, t) + ens.Phi(2, t, t)
        np.testing.assert_allclose(ens.ntk(t), expected, atol=1e-11)


def test_initial_tangent_kernel_does_not_depend_on_gamma0():
    one, two = (run(mlp(2, tanh), ntk, GradientDescent(0.1, 1), TASK, gamma0=g) for g in (0.5, 2.0))
    np.testing.assert_allclose(one.ntk(0), two.ntk(0), rtol=1e-12)
    np.testing.assert_allclose(one.f[:, :, 0] * 0.5, two.f[:, :, 0] * 2.0, rtol=1e-12)


def test_gradient_kernel_of_several_outputs_is_that_of_the_loss():
    ens = run(mlp(2, tanh), mean_field, GradientDescent(0.1, 1), MULTI, gamma0=1.7, seeds=1)
    experiment = prepare(ens.program, mean_field, ens.training, MULTI, 1.7, (16,), 1, False, 0, "float64")
    with precision():
        w = np.asarray(experiment.draw(16, (0,))["W2"])[0]
    # -gamma0 n dLoss/dh of f = w tanh(h) / (gamma0 n), with all sites on record
    slope = 1 - np.tanh(ens.fields(2, 0).h[0, 0]) ** 2
    delta = slope * (w.T @ ((MULTI.y - ens.f[0, 0, 0]) / 4).T)
    np.testing.assert_allclose(ens.G(2, 0, 0)[0, 0], delta.T @ delta / 16, atol=1e-13)


@pytest.mark.parametrize("net", PROGRAMS, ids=lambda p: p.name)
def test_every_program_learns(net):
    ens = run(net, muP, GradientDescent(0.4, 60), TASK, gamma0=0.7)
    assert ens.success
    assert (ens.loss[..., -1] < 0.5 * ens.loss[..., 0]).all()


@pytest.mark.parametrize(
    ("loss", "task", "outputs"),
    [(Logistic(), SIGNS, ()), (CrossEntropy(), CLASSES, (3,)), (GradientDescent(0.1, 1).loss, MULTI, (2,))],
    ids=["logistic", "cross-entropy", "several outputs"],
)
def test_losses(loss, task, outputs):
    ens = run(mlp(2, tanh), muP, GradientDescent(0.5, 30, loss), task, times=(0, 30))
    assert ens.f.shape == (1, 2, 31, 4, *outputs) and ens.f_test.shape == (1, 2, 31, 2, *outputs)
    assert (ens.loss[..., -1] < 0.8 * ens.loss[..., 0]).all() and np.isfinite(ens.loss_test).all()
    assert ens.G(2, 0, 30).shape == (1, 2, 4, 4)


def test_gradient_flow_is_the_limit_of_small_steps():
    flow = run(mlp(2, tanh), muP, GradientFlow(2.0, 4), TASK, gamma0=1.5)
    errors = []
    for substeps in (8, 16, 32):
        descent = run(mlp(2, tanh), muP, GradientFlow(2.0, 4).refined(substeps), TASK, gamma0=1.5, times=(0,))
        errors.append(np.abs(descent.f[:, :, ::substeps] - flow.f).max())
    # Euler's error halves with its step; were the flow itself off, the ratio would tend to one.
    assert 1.8 < errors[0] / errors[1] < 2.3 and 1.8 < errors[1] / errors[2] < 2.2


def test_gradient_flow_of_a_frozen_kernel_is_exponential():
    # One readout over fixed features: f(t) = y + exp(-K t / P)(f0 - y), exactly.
    frozen = Parameterization("frozen", muP.a, muP.b, muP.c, muP.alpha, 1, (0, 0, 1))
    ens = run(mlp(2, tanh), frozen, GradientFlow(3.0, 3), TASK)
    values, vectors = np.linalg.eigh(ens.ntk(0)[0] / 4)
    for t in range(4):
        decay = np.einsum("sik,sk,sjk->sij", vectors, np.exp(-values * t), vectors)
        expected = Y + np.einsum("sij,sj->si", decay, ens.f[0, :, 0] - Y)
        # Fourth order at a tenth of the fastest time: (0.1)^4 / 120 per unit time, below 1e-6.
        np.testing.assert_allclose(ens.f[0, :, t], expected, atol=3e-6)


def test_momentum_of_a_frozen_kernel_is_the_heavy_ball_of_the_function():
    # One readout over fixed features: f(t + 1) = f(t) + K e(t) + momentum (f(t) - f(t - 1)), exactly.
    frozen = Parameterization("frozen", muP.a, muP.b, muP.c, muP.alpha, 1, (0, 0, 1))
    ens = run(mlp(2, tanh), frozen, GradientDescent(0.7, 12, momentum=0.8), TASK)
    kernel = 0.7 * ens.ntk(0)[0] / 4
    now = before = ens.f[0, :, 0]
    for t in range(13):
        np.testing.assert_allclose(ens.f[0, :, t], now, atol=1e-12)
        now, before = now + np.einsum("sij,sj->si", kernel, Y - now) + 0.8 * (now - before), now
    assert np.abs(ens.f - run(mlp(2, tanh), frozen, GradientDescent(0.7, 12), TASK).f).max() > 0.05


def test_momentum_against_two_steps_by_hand():
    """w(2) = w(1) - rate grad(w(1)) + momentum (w(1) - w(0)), for a net of one hidden unit."""
    lr, momentum, x, y = 0.3, 0.6, X[:1], Y[:1]
    ens = run(mlp(1, tanh), ntk, GradientDescent(lr, 2, momentum=momentum), Task(x, y), widths=(1,), seeds=1)
    with precision():
        start = prepare(mlp(1, tanh), ntk, GradientDescent(lr, 2), Task(x, y), 1.0, (1,), 1, False, 0, "float64").draw(1, (0,))
    a, v = np.array(start["W0"])[0, 0], float(np.asarray(start["W1"])[0, 0, 0])
    step_a, step_v = np.zeros(3), 0.0
    for t in range(3):
        h = a @ x[0] / np.sqrt(3)
        f = v * np.tanh(h)
        assert ens.f[0, 0, t, 0] == pytest.approx(f, abs=1e-13)
        slope_a, slope_v = (f - y[0]) * v / np.cosh(h) ** 2 * x[0] / np.sqrt(3), (f - y[0]) * np.tanh(h)
        step_a, step_v = momentum * step_a - lr * slope_a, momentum * step_v - lr * slope_v
        a, v = a + step_a, v + step_v


def test_centring_subtracts_the_initial_predictions():
    ens = run(mlp(2, tanh), ntk, GradientDescent(0.1, 1), TASK, centred=True, gamma0=1.0)
    assert (ens.f[:, :, 0] == 0).all() and (ens.f_test[:, :, 0] == 0).all()
    slope = np.einsum("wsmn,n->wsm", ens.ntk(0), Y / 4) * 0.1
    np.testing.assert_allclose(ens.f[:, :, 1], slope, atol=0.1 * np.abs(slope).max())


def test_field_changes_are_those_of_the_recorded_fields():
    training = GradientDescent(0.3, 5)
    ens = run(mlp(2, tanh), muP, training, TASK, centred=True)
    changes = field_changes(mlp(2, tanh), muP, training, TASK, widths=(16,), seeds=2)
    assert changes.layers.shape == (1, 2, 2) and changes.output.shape == (1, 2)
    for layer in (1, 2):
        moved = ens.fields(layer, 5).h - ens.fields(layer, 0).h
        # all 16 sites are on record
        np.testing.assert_allclose(changes.layers[0, :, layer - 1], np.sqrt((moved[0] ** 2).mean(axis=(1, 2))), rtol=1e-10)
    np.testing.assert_allclose(changes.output, np.sqrt((ens.f[:, :, -1] ** 2).mean(axis=-1)), rtol=1e-10)


def test_every_preset_runs():
    for name, p in PRESETS.items():
        ens = run(mlp(2, tanh), p, GradientDescent(0.05, 2), TASK)
        assert ens.success, name


def test_deviation_between_seeds_falls_as_one_over_the_root_of_the_width():
    widths = (16, 64, 256)
    ens = run(mlp(2, tanh), muP, GradientDescent(0.3, 15), TASK, widths=widths, seeds=24, centred=True, times=(15,))
    spread = np.sqrt(ens.f[:, :, -1].var(axis=1, ddof=1).mean(axis=-1))
    slope = np.polyfit(np.log(widths), np.log(spread), 1)[0]
    # 24 seeds x 4 correlated points know each spread to 10 %: 0.1 / log 16 x 1.4 = 0.05 on the slope.
    assert abs(slope + 0.5) < 0.2
