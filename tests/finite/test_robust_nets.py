"""Finite nets with their input Jacobians, and their training with a penalty on them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tp_solver as tp
from tp_solver.errors import BudgetError, InputError
from tp_solver.finite import jacobian
from tp_solver.finite.experiment import precision
from tp_solver.finite.jacobian import empirical_jacobian_ntk, joint_values, value_and_jacobian
from tp_solver.finite.network import draw
from tp_solver.finite.robust import train_robustly

SW, SB = 1.5, 0.3
NET = tp.mlp(depth=2, activation=tp.erf, bias=SB, bias_rate=SB**2)  # three weight layers
PAR = tp.ntk.times(SW)
X = np.random.default_rng(0).standard_normal((6, 2))
X_TEST = np.random.default_rng(1).standard_normal((4, 2))


def target(x):
    return np.sin(2 * x[:, 0]) * np.cos(x[:, 1])


TASK = tp.Task(X, target(X), X_TEST, target(X_TEST))
PENALTY = 0.1
FLOW = tp.GradientFlow(time=60.0, steps=6)


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


def test_the_kernel_of_the_jacobian_is_the_derivative_of_the_tangent_kernel():
    """Card A7: d_x d_x' of the tangent kernel, exactly at every width where the activation is smooth; by central differences."""
    net, step = draw(NET, PAR, 2, 16), 1e-4
    kernel = empirical_jacobian_ntk(net, X[:3], X[3:])[..., 0, 0]
    moves = step * np.eye(2)

    def tangent(u, v):
        return tp.empirical_ntk(net, X[:3] + u, X[3:] + v)[..., 0, 0]

    assert kernel[:, 0, :, 0] == pytest.approx(tangent(0, 0), abs=1e-12)
    for a, u in enumerate(moves):
        assert kernel[:, 1 + a, :, 0] == pytest.approx((tangent(u, 0) - tangent(-u, 0)) / (2 * step), abs=1e-6)
        for b, v in enumerate(moves):
            mixed = tangent(u, v) - tangent(u, -v) - tangent(-u, v) + tangent(-u, -v)
            assert kernel[:, 1 + a, :, 1 + b] == pytest.approx(mixed / (4 * step**2), abs=1e-5)


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


WIDE = draw(NET, PAR, 2, 512)
CONVOLVED = draw(tp.cnn(2, tp.erf, grid=(8,), head=tp.pooled), tp.ntk, 8, 16)


@pytest.mark.parametrize("net", [WIDE, CONVOLVED], ids=["wide", "convolved"])
def test_memory_of_the_kernel_is_what_compilation_says(net):
    """A net fits into what its compiled kernel takes, and not into less: a wide one, and one over a grid."""
    x = np.random.default_rng(2).standard_normal((5, net.dimension))
    with precision():
        used = jacobian._kernel.lower(net, *2 * (net.columns("X", x),)).compile().memory_analysis()
    need = (used.temp_size_in_bytes + used.output_size_in_bytes) / 2**30
    with pytest.raises(BudgetError, match="gib"):
        empirical_jacobian_ntk(net, x, gib=0.99 * need)
    found = empirical_jacobian_ntk(net, x, gib=1.01 * need)
    with precision():  # traced, only the result counts
        np.testing.assert_allclose(jax.jit(lambda n: empirical_jacobian_ntk(n, x, gib=need) + 0.0)(net), found, atol=1e-12 * found.max())
        np.testing.assert_allclose(jax.jit(lambda a: empirical_jacobian_ntk(net, a) + 0.0)(x), found, atol=1e-12 * found.max())
        with pytest.raises(BudgetError, match="gib"):
            jax.jit(lambda n: empirical_jacobian_ntk(n, x, gib=1e-6))(net)


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
