"""A network with its input Jacobian: kernels against a layerwise recursion and finite nets, regularised training against its equation."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from scipy.linalg import expm
from scipy.special import erf

import tp_solver as tp
from tp_solver.errors import BudgetError, InputError, ProgramError
from tp_solver.finite.experiment import precision
from tp_solver.finite.jacobian import empirical_jacobian_ntk, joint_values, value_and_jacobian
from tp_solver.finite.network import blueprint, draw, stacked_weights
from tp_solver.finite.robust import train_robustly
from tp_solver.kernel_regime import jacobian
from tp_solver.kernel_regime.compute import kernels
from tp_solver.kernel_regime.dynamics import KernelDynamics
from tp_solver.kernel_regime.jacobian import jacobian_kernels, matrix
from tp_solver.kernel_regime.robust_training import robust_training
from tp_solver.program.tracing import bias, conv, global_pool, input_matrix, program, readout

SW, SB = 1.5, 0.3
NET = tp.mlp(depth=2, activation=tp.erf, bias=SB, bias_rate=SB**2)  # three weight layers
PAR = tp.ntk.times(SW)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 2))
X_TEST = np.random.default_rng(1).standard_normal((4, 2))


def target(x):
    return np.sin(2 * x[:, 0]) * np.cos(x[:, 1])


TASK = tp.Task(X, target(X), X_TEST, target(X_TEST))
PENALTY = 0.1
FLOW = tp.GradientFlow(time=60.0, steps=6)


@pytest.fixture(scope="module")
def both():
    return jacobian_kernels(NET, PAR, X)


@pytest.fixture(scope="module")
def solved():
    return robust_training(NET, PAR, FLOW, TASK, PENALTY)


# the kernels ----------------------------------------------------------------------------------------------------------

Z = np.arange(-130, 131) / 10
W = np.exp(-(Z**2) / 2) / np.sqrt(2 * np.pi) / 10  # trapezoids: exact to rounding for smooth integrands
ERF = [
    erf,
    lambda u: 2 / np.sqrt(np.pi) * np.exp(-(u**2)),
    lambda u: -4 * u / np.sqrt(np.pi) * np.exp(-(u**2)),
    lambda u: (8 * u**2 - 4) / np.sqrt(np.pi) * np.exp(-(u**2)),
    lambda u: (24 * u - 16 * u**3) / np.sqrt(np.pi) * np.exp(-(u**2)),
]
"""erf and its derivatives, typed here."""


def layer(c_left, c_right, c, order):
    """E D_a g(h(x)) D_b g(h(x')) for g the derivative ``order`` of erf, from the covariances (1 + D, 1 + D) of (h, dh/dx) at x with
    itself, at x' with itself, and between both, by Stein's lemma and quadrature."""
    q, p, s = c_left[0, 0], c_right[0, 0], c[0, 0]
    u = np.sqrt(q) * Z[:, None]
    v = s / np.sqrt(q) * Z[:, None] + np.sqrt(max(p - s**2 / q, 0.0)) * Z[None, :]

    def mean(i, j):
        return np.einsum("i,j,ij->", W, W, ERF[order + i](u) * ERF[order + j](v))

    size = len(c)
    out = np.empty((size, size))
    out[0, 0] = mean(0, 0)
    for a in range(1, size):
        # <dh(x)_a h(x)>, <dh(x)_a h(x')>; <dh(x')_a h(x')>, <dh(x')_a h(x)>
        out[a, 0] = c_left[a, 0] * mean(2, 0) + c[a, 0] * mean(1, 1)
        out[0, a] = c_right[a, 0] * mean(0, 2) + c[0, a] * mean(1, 1)
    for a, b in itertools.product(range(1, size), repeat=2):
        out[a, b] = (
            c[a, b] * mean(1, 1)
            + c_left[a, 0] * (c[0, b] * mean(3, 1) + c_right[b, 0] * mean(2, 2))
            + c[a, 0] * (c[0, b] * mean(2, 2) + c_right[b, 0] * mean(1, 3))
        )
    return out


def layerwise(x, y):
    """JNNGP and JNTK of two inputs by the recursion of covariances, layer by layer; nothing is differentiated."""
    pairs = {"left": (x, x), "right": (y, y), "cross": (x, y)}

    def first(u, v):
        d = len(u)
        out = np.empty((1 + d, 1 + d))
        out[0, 0], out[0, 1:], out[1:, 0], out[1:, 1:] = u @ v, u, v, np.eye(d)
        return SW**2 * out / d

    bias_part = np.zeros((1 + len(x), 1 + len(x)))
    bias_part[0, 0] = SB**2
    c = {name: first(*p) + bias_part for name, p in pairs.items()}
    tangent = dict(c)
    for depth in range(2):
        constant = bias_part if depth == 0 else 0.0
        ends = {"left": ("left", "left"), "right": ("right", "right"), "cross": ("left", "right")}
        phi, slope = ({n: layer(c[a], c[b], c[n], order) for n, (a, b) in ends.items()} for order in (0, 1))
        c = {n: SW**2 * phi[n] + constant for n in ends}
        tangent = {n: c[n] + SW**2 * product_rule(slope[n], tangent[n]) for n in ends}
    return c["cross"], tangent["cross"]


def product_rule(p, t):
    """d_a d'_b of a product of two functions of x and x'."""
    out = p[0, 0] * t + t[0, 0] * p
    out += np.outer(p[:, 0], t[0]) + np.outer(t[:, 0], p[0])
    out[0], out[:, 0] = p[0, 0] * t[0] + t[0, 0] * p[0], p[0, 0] * t[:, 0] + t[0, 0] * p[:, 0]
    out[0, 0] = p[0, 0] * t[0, 0]
    return out


def test_derivatives_of_the_kernel_are_the_layerwise_recursion(both):
    """At different inputs and, where derivatives of arcsines might fail, at equal ones."""
    worst = 0.0
    for m, n in ((0, 1), (1, 0), (2, 5), (0, 0), (3, 3)):
        c, t = layerwise(X[m], X[n])
        worst = max(worst, np.abs(both.nngp[m, :, n] - c).max(), np.abs(both.ntk[m, :, n] - t).max())
    assert worst < 1e-10


def test_kernels_of_the_function_are_the_ordinary_ones(both):
    plain = kernels(NET, PAR, X)
    assert both.nngp[:, 0, :, 0] == pytest.approx(plain.nngp, abs=1e-13)
    assert both.ntk[:, 0, :, 0] == pytest.approx(plain.ntk, abs=1e-13)


def test_both_kernels_are_covariances(both):
    for kernel in (both.nngp, both.ntk):
        assert np.array_equal(matrix(kernel), matrix(kernel).T)
        values = np.linalg.eigvalsh(matrix(kernel))
        assert values[0] > 1e-6 * values[-1]  # positive definite: distinct inputs, an activation that is no polynomial


def test_two_sets_and_blocks(both, monkeypatch):
    monkeypatch.setattr(jacobian, "BLOCK_BYTES", 9 * 16 * 4)  # two inputs at a time
    cut = jacobian_kernels(NET, PAR, X[:5])
    assert cut.ntk == pytest.approx(both.ntk[:5, :, :5], abs=1e-13)
    cross = jacobian_kernels(NET, PAR, X[:3], X[2:])
    assert cross.nngp == pytest.approx(both.nngp[:3, :, 2:], abs=1e-13)
    assert not cross.symmetric and cut.symmetric and "ntk of df/dx, df/dx" in str(cross)


def test_both_ways_of_differentiating_agree():
    """In the scalar products of inputs, and in the inputs themselves."""
    net = tp.mlp(depth=2, activation=tp.sin, bias=SB)
    model = jacobian._Model(
        net, PAR, (("W0", 1.0), ("W1", 0.5), ("W2", 2.0), *((b.name, 1.0) for b in net.matrices if "b" in b.name)), 2, 3
    )
    with jax.enable_x64(True):
        one, two = (np.asarray(jax.jit(way(model))(jnp.asarray(X), jnp.asarray(X))) for way in (jacobian._by_products, jacobian._by_inputs))
    assert one == pytest.approx(two, abs=1e-12)


def test_zero_input_and_equal_inputs():
    """No NaN where a variance or the distance of two inputs vanishes: equal inputs have the limit of close ones."""
    net = tp.mlp(depth=1, activation=tp.gelu)
    k = jacobian_kernels(net, tp.ntk, np.array([[0.0, 0.0], [1.0, -0.5], [1.0, -0.5]]))
    assert np.isfinite(k.nngp).all() and np.isfinite(k.ntk).all()
    assert k.ntk[1, :, 1] == pytest.approx(k.ntk[1, :, 2], abs=1e-13)
    near = jacobian_kernels(net, tp.ntk, np.array([[1.0, -0.5]]), np.array([[1.0 + 1e-7, -0.5]]))
    assert near.ntk[0, :, 0] == pytest.approx(k.ntk[1, :, 1], abs=1e-5)


def pooled(x):
    return readout("w") @ global_pool(tp.erf(conv(input_matrix("C"), x, size=3) + bias("b", sigma=SB, rate=1.0)))


def test_convolutions_against_differences():
    """Central differences of the kernels of a convolutional net with global pooling."""
    net = program(pooled, grid=(4,))
    x, y = RNG.standard_normal((1, 8)), RNG.standard_normal((2, 8))
    k, step = jacobian_kernels(net, tp.ntk, x, y), 1e-3
    moves = [np.zeros((2, 8)), *(step * np.stack([e, -e]) for e in np.eye(8)[:3])]

    def difference(name, u, v):
        signs = [s for s, m in (((1.0, -1.0), u), ((1.0, -1.0), v))]
        total = 0.0
        for i, j in itertools.product(range(2), repeat=2):
            total = total + signs[0][i] * signs[1][j] * getattr(kernels(net, tp.ntk, x + u[i], y + v[j]), name)
        return total / (4 * step**2)

    for a, b in ((1, 1), (2, 3)):
        assert k.ntk[0, a, :, b] == pytest.approx(difference("ntk", moves[a], moves[b])[0], abs=2e-6)
        assert k.nngp[0, a, :, b] == pytest.approx(difference("nngp", moves[a], moves[b])[0], abs=2e-6)
    assert k.ntk[:, 0, :, 0] == pytest.approx(kernels(net, tp.ntk, x, y).ntk, abs=1e-12)


# against finite nets --------------------------------------------------------------------------------------------------


def errors(widths, seeds, kernel):
    """|eJNTK - JNTK| / |JNTK|, (widths, seeds)."""
    found = [[empirical_jacobian_ntk(draw(NET, PAR, 2, n, seed=s), X)[..., 0, 0] for s in range(seeds)] for n in widths]
    return np.array([[np.linalg.norm(k - kernel) for k in row] for row in found]) / np.linalg.norm(kernel)


def slope(widths, values):
    return np.polyfit(np.log(widths), np.log(values.mean(axis=1)), 1)[0]


def test_empirical_kernel_approaches_with_the_root_of_the_width(both):
    widths = (64, 256, 1024)
    assert -0.7 <= slope(widths, errors(widths, 6, both.ntk)) <= -0.25


@pytest.mark.slow
def test_empirical_kernel_at_all_widths(both):
    widths = (64, 128, 256, 512, 1024)
    found = errors(widths, 6, both.ntk)
    assert -0.7 <= slope(widths, found) <= -0.25
    assert found.mean(axis=1)[-1] < 0.1


def scores(draws, width, covariance):
    """Deviations of the covariance of F over nets, in standard errors."""
    blank, total, squares = blueprint(NET, PAR, 2, width, 1, 1.0, "float64"), 0.0, 0.0
    batch = 50
    with precision():
        run = jax.jit(jax.vmap(lambda w: joint_values(blank.net, w, blank.numbers, jnp.asarray(X).T)))
        for start in range(0, draws, batch):
            F = np.asarray(run(stacked_weights(blank, range(start, start + batch)))).reshape(batch, -1)
            products = F[:, :, None] * F[:, None, :]
            total, squares = total + products.sum(axis=0), squares + (products**2).sum(axis=0)
    mean = total / draws
    return (mean - covariance) / np.sqrt((squares / draws - mean**2) / draws)


def test_initial_nets_are_the_joint_process(both):
    assert np.abs(scores(1000, 256, matrix(both.nngp))).max() < 4


@pytest.mark.slow
def test_initial_nets_are_the_joint_process_with_many_draws(both):
    assert np.abs(scores(4000, 256, matrix(both.nngp))).max() < 4


def test_samples_of_the_process(both):
    draws = both.sample(20_000, seed=3, gamma0=2.0).reshape(20_000, -1)
    expected = matrix(both.nngp) / 4
    error = np.sqrt((np.outer(expected.diagonal(), expected.diagonal()) + expected**2) / len(draws))
    assert (np.abs(draws.T @ draws / len(draws) - expected) / error).max() < 4.5


def trained(seeds):
    """Mean over nets of the largest deviation from the linear equation started where the net starts: of f and of (f, df/dx) on the
    training points, and of f on the test points, for widths 64 and 256."""
    descent = tp.GradientDescent(lr=0.5, steps=120)
    theory = robust_training(NET, PAR, descent, TASK, PENALTY)
    nets = train_robustly(NET, PAR, descent, TASK, PENALTY, widths=(64, 256), seeds=seeds, progress=False)
    assert nets.F_test is not None
    found = np.concatenate([nets.F, nets.F_test], axis=3)
    expected = np.array([[theory.evolve(F[0], 120) for F in row] for row in found])
    gap = np.abs(found[:, :, -1] - expected)
    return gap[:, :, :6, 0].max(axis=2).mean(axis=1), gap[:, :, :6].max(axis=(2, 3)).mean(axis=1), gap[:, :, 6:, 0].max(axis=2).mean(axis=1)


def test_trained_nets_approach_the_linear_equation():
    """120 steps at rate 0.5: time 60."""
    f, joint, test = trained(24)
    assert f[0] >= 2 * f[1]
    assert joint[0] >= 2 * joint[1]
    assert test[1] <= 0.2


# training in function space -------------------------------------------------------------------------------------------


def generator(theory, penalty):
    """dF/dt = -A F + b on all points."""
    everything, train = matrix(theory.kernels.ntk), 3 * 6
    weight = np.tile([1.0, penalty, penalty], 6) / 6
    a = np.zeros_like(everything)
    a[:, :train] = everything[:, :train] * weight
    y = np.zeros((6, 3))
    y[:, 0] = TASK.y
    return a, y.ravel()


def exact(theory, penalty, time):
    """Mean and covariance by the exponential of the whole linear system, the targets as further constants."""
    a, y = generator(theory, penalty)
    size, train = len(a), len(y)
    whole = np.zeros((size + train, size + train))
    whole[:size, :size], whole[:size, size:] = -a, a[:, :train]
    move = expm(time * whole)[:size]
    return move[:, size:] @ y, move[:, :size] @ matrix(theory.kernels.nngp) @ move[:, :size].T


def test_flow_is_the_matrix_exponential(solved):
    for row, time in ((0, 0.0), (2, 20.0), (6, 60.0)):
        mean, covariance = exact(solved, PENALTY, time)
        now = solved.at(time)
        assert np.concatenate([now.F, now.F_test]).ravel() == pytest.approx(mean, abs=1e-9)
        assert matrix(now.covariance) == pytest.approx(covariance, abs=1e-9)
        assert solved.F[row] == pytest.approx(now.F, abs=1e-12) and solved.F_test[row] == pytest.approx(now.F_test, abs=1e-12)
        variance = covariance.diagonal().reshape(10, 3)
        assert solved.variance[row] == pytest.approx(variance[:6], abs=1e-9)
        assert solved.variance_test[row] == pytest.approx(variance[6:], abs=1e-9)
        assert solved.loss[row] == pytest.approx(((now.F[:, 0] - TASK.y) ** 2 + variance[:6, 0]).mean() / 2, abs=1e-9)
        assert solved.slope_test[row] ** 2 == pytest.approx((now.F_test[:, 1:] ** 2 + variance[6:, 1:]).sum(axis=1).mean(), abs=1e-9)


def test_the_end_does_not_depend_on_the_penalty(solved):
    """Only on there being one: then the training points keep their labels and lose their slopes."""
    end = solved.at(math.inf)
    other = robust_training(NET, PAR, FLOW, TASK, 1.0).at(math.inf)
    for name in ("F", "F_test", "covariance"):
        assert getattr(end, name) == pytest.approx(getattr(other, name), abs=1e-7)
    assert end.F[:, 0] == pytest.approx(TASK.y, abs=1e-8) and end.F[:, 1:] == pytest.approx(0.0, abs=1e-8)
    assert np.abs(end.covariance[:6]).max() < 1e-8 and np.abs(end.covariance[6:, 0, 6:, 0]).max() > 1e-3
    plain = robust_training(NET, PAR, FLOW, TASK, 0.0).at(math.inf)
    assert np.abs(plain.F_test[:, 0] - end.F_test[:, 0]).max() > 0.1
    assert np.abs(solved.at(60.0).F_test[:, 0] - end.F_test[:, 0]).max() > 0.05  # 60 is not the end


def test_without_penalty_it_is_ordinary_training():
    plain = robust_training(NET, PAR, FLOW, TASK, 0.0)
    usual = KernelDynamics.of(NET, PAR, FLOW, X, TASK.y, X_TEST)
    run = usual.run()
    assert plain.F[:, :, 0] == pytest.approx(run.f[..., 0], abs=1e-10) and plain.F_test[:, :, 0] == pytest.approx(
        run.f_test[..., 0], abs=1e-10
    )
    assert plain.at(7.0).covariance[:, 0, :, 0] == pytest.approx(usual.at(7.0).f_cov, abs=1e-10)
    assert plain.critical_lr == pytest.approx(usual.critical_lr)


def test_descent_with_momentum_and_rates_is_the_explicit_iteration():
    """A rate per matrix, the heavy ball, and a divergence above the critical rate, which a penalty lowers."""
    rates = {"W0": 0.2, "W1": 0.4, "W2": 0.1}
    training = tp.GradientDescent(lr=rates, steps=9, momentum=0.6)
    theory = robust_training(NET, PAR, training, TASK, PENALTY)
    plain = kernels(NET, PAR, np.concatenate([X, X_TEST]), layers=True)
    spread = training.rates(NET)
    assert theory.lr * theory.kernels.ntk[:, 0, :, 0] == pytest.approx(sum(spread[m] * k for m, k in plain.parts.items()), abs=1e-12)
    a, y = generator(theory, PENALTY)
    F = last = np.zeros(len(a))
    for _ in range(9):
        F, last = F + theory.lr * a[:, : len(y)] @ (y - F[: len(y)]) + 0.6 * (F - last), F
    assert theory.F[-1].ravel() == pytest.approx(F[: len(y)], abs=1e-12)
    assert theory.at(9).F_test.ravel() == pytest.approx(F[len(y) :], abs=1e-12)
    assert theory.evolve(np.zeros((10, 3)), 9).ravel() == pytest.approx(F, abs=1e-12)
    assert theory.critical_lr == pytest.approx(2 * 1.6 * 6 / np.linalg.eigvals(6 * a[:18, :18]).real.max())
    stronger = robust_training(NET, PAR, training, TASK, 10.0)
    assert stronger.critical_lr < theory.critical_lr
    fast = tp.GradientDescent(lr=1.01 * robust_training(NET, PAR, FLOW, TASK, 10.0).critical_lr, steps=5)
    with pytest.raises(InputError, match="diverges"):
        robust_training(NET, PAR, fast, TASK, 10.0).at(math.inf)


def test_new_points_and_several_outputs(solved):
    X_new = np.concatenate([X_TEST[1:3], X[:1]])
    expected = np.concatenate([solved.at(20.0).F_test[1:3], solved.at(20.0).F[:1]])
    assert solved.predict(X_new, 20.0) == pytest.approx(expected, abs=1e-12)
    two = tp.Task(X, np.stack([TASK.y, -2 * TASK.y], axis=1))
    several = robust_training(NET, PAR, FLOW, two, PENALTY, gamma0=0.0)
    assert several.F.shape == (7, 6, 3, 2) and several.F_test is None and several.loss_test is None
    assert several.F[..., 0] == pytest.approx(solved.F, abs=1e-12) and several.F[..., 1] == pytest.approx(-2 * solved.F, abs=1e-12)
    assert several.at(20.0).covariance is None and not several.variance.any()
    assert several.loss == pytest.approx(5 * ((solved.F[:, :, 0] - TASK.y) ** 2).mean(axis=1) / 2, abs=1e-12)


def test_strength_scales_the_initial_function(solved):
    strong = robust_training(NET, PAR, FLOW, TASK, PENALTY, gamma0=2.0)
    assert strong.variance_test == pytest.approx(solved.variance_test / 4, abs=1e-12)
    assert np.abs(strong.F - solved.F).max() < 1e-12


def test_prints_and_plots(solved, tmp_path):
    text = str(solved)
    assert "penalty 0.1" in text and "test rms |df/dx|" in text and len(text.splitlines()) == 10
    solved.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="path"):
        solved.plot(tmp_path / "nowhere" / "a.png")


# the finite side ------------------------------------------------------------------------------------------------------


def test_values_and_kernel_of_a_finite_net():
    """Derivatives against differences, the kernel against stacked Jacobians, with two outputs."""
    net = draw(tp.mlp(depth=1, activation=tp.erf, bias=SB), PAR, 2, 24, outputs=2, gamma0=1.5)
    F = value_and_jacobian(net, X)
    assert F.shape == (6, 3, 2) and F[:, 0] == pytest.approx(net.predict(X), abs=1e-14)
    for a, e in enumerate(np.eye(2) * 1e-5):
        assert F[:, 1 + a] == pytest.approx((net.predict(X + e) - net.predict(X - e)) / 2e-5, abs=1e-8)
    with precision():
        stacked = jax.jit(jax.jacrev(lambda w: joint_values(net.net, w, net.numbers, jnp.asarray(X).T)))(net.w)
    expected = sum(net.numbers.tangent[m] * np.einsum("paknc,qblnc->paqbkl", v, v[:2]) for m, v in stacked.items())
    assert empirical_jacobian_ntk(net, X, X[:2]) == pytest.approx(expected, abs=1e-12)


def test_without_penalty_finite_training_is_simulate():
    training = tp.GradientDescent(lr=0.4, steps=6)
    nets = train_robustly(NET, PAR, training, TASK, 0.0, widths=(8,), seeds=2, progress=False)
    usual = tp.simulate(NET, PAR, training, TASK, widths=(8,), seeds=2, progress=False)
    assert nets.f == pytest.approx(usual.f, abs=1e-13) and nets.f_test == pytest.approx(usual.f_test, abs=1e-13)
    assert nets.loss == pytest.approx(usual.loss, abs=1e-13) and nets.loss_test == pytest.approx(usual.loss_test, abs=1e-13)


def test_finite_training_descends_on_the_penalised_loss(tmp_path):
    """One update of the loss as it reads; flow never rises."""
    net = draw(NET, PAR, 2, 8)
    nets = train_robustly(NET, PAR, tp.GradientDescent(lr=0.4, steps=1), TASK, 0.7, widths=(8,), seeds=(0,), progress=False)

    def loss(w):
        with precision():
            F = joint_values(net.net, w, net.numbers, jnp.asarray(X).T)[..., 0]
            return jnp.mean((F[:, 0] - TASK.y) ** 2 + 0.7 * jnp.sum(F[:, 1:] ** 2, axis=1)) / 2

    with precision():
        moved = {m: net.w[m] - 0.4 * net.numbers.rate[m] * g for m, g in jax.jit(jax.grad(loss))(net.w).items()}
    assert nets.F[0, 0, 1] == pytest.approx(value_and_jacobian(net.moved(moved), X)[..., 0], abs=1e-12)
    assert nets.F[0, 0, 0] == pytest.approx(value_and_jacobian(net, X)[..., 0], abs=1e-12)
    flow = train_robustly(NET, PAR, tp.GradientFlow(time=10.0, steps=2), TASK, 0.7, widths=(8,), seeds=2, progress=False)
    total = flow.loss + 0.35 * flow.slope**2
    assert (np.diff(total, axis=2) < 0).all()
    assert "rms |df/dx|" in str(flow) and len(str(flow).splitlines()) == 5
    flow.plot(tmp_path / "nets.png")
    assert (tmp_path / "nets.png").exists()


# bad input ------------------------------------------------------------------------------------------------------------

ELU = tp.Activation("elu", lambda x: sp.Piecewise((x, x > 0), (sp.exp(x) - 1, True)))


@pytest.mark.parametrize("activation", [tp.relu, tp.leaky_relu, ELU, tp.Activation("abs", sp.Abs)], ids=lambda a: a.name)
def test_kinks_are_refused(activation):
    net = tp.mlp(depth=2, activation=activation)
    with pytest.raises(ProgramError, match="continuous second derivative"):
        jacobian_kernels(net, PAR, X)
    with pytest.raises(ProgramError, match="continuous second derivative"):
        robust_training(net, PAR, FLOW, TASK, 0.1)


def test_bad_kernels():
    with pytest.raises(InputError, match="X2"):
        jacobian_kernels(NET, PAR, X, X[:, :1])
    with pytest.raises(InputError, match="non-finite"):
        jacobian_kernels(NET, PAR, np.array([[1.0, np.nan]]))
    with pytest.raises(InputError, match="net"):
        jacobian_kernels("mlp", PAR, X)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="memory"):
        jacobian_kernels(NET, PAR, X, memory=1e-6)
    with pytest.raises(InputError, match="memory"):
        jacobian_kernels(NET, PAR, X, memory=0)
    with pytest.raises(InputError, match="one set"):
        jacobian_kernels(NET, PAR, X[:2], X[2:4]).sample(3)


def test_bad_training(solved, both):
    with pytest.raises(InputError, match="penalty"):
        robust_training(NET, PAR, FLOW, TASK, -0.1)
    with pytest.raises(InputError, match="squared error"):
        robust_training(NET, PAR, tp.GradientFlow(1.0, 1, tp.Logistic()), tp.Task(X, np.sign(TASK.y)), 0.1)
    with pytest.raises(InputError, match="task"):
        robust_training(NET, PAR, FLOW, X, 0.1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="F0"):
        solved.evolve(np.zeros((6, 3)), 1.0)
    with pytest.raises(InputError, match="time"):
        solved.at(-1.0)
    with pytest.raises(InputError, match="X2"):
        solved.predict(np.zeros((2, 3)), 1.0)
    with pytest.raises(InputError, match="gamma0"):
        both.sample(2, gamma0=0.0)
    with pytest.raises(InputError, match="draws"):
        both.sample(0)


def test_bad_finite_input():
    net = draw(NET, PAR, 2, 8)
    with pytest.raises(InputError, match="dimension"):
        value_and_jacobian(net, np.zeros((2, 3)))
    with pytest.raises(InputError, match="net"):
        empirical_jacobian_ntk(NET, X)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="gib"):
        empirical_jacobian_ntk(net, X, gib=1e-6)
    with pytest.raises(InputError, match="penalty"):
        train_robustly(NET, PAR, FLOW, TASK, math.nan, widths=(8,), seeds=1)
    with pytest.raises(BudgetError, match="memory"):
        train_robustly(NET, PAR, FLOW, TASK, 0.1, widths=(8,), seeds=1, memory=1000)
    with precision():
        broken = net.moved({m: w * np.nan for m, w in net.w.items()})
    with pytest.raises(InputError, match="finite"):
        empirical_jacobian_ntk(broken, X)
