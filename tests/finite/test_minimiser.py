"""Which minimiser an optimiser reaches in the linearised regime (Nonnenmacher, Reeb & Steinwart 2021)."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from tp_solver.errors import InputError
from tp_solver.finite.descent import Ending, descend
from tp_solver.finite.linearised import linearise
from tp_solver.finite.minimiser import minimiser
from tp_solver.finite.network import draw
from tp_solver.finite.optimisers import SGD, AdaGrad, Adam
from tp_solver.finite.path_dependence import path_dependence
from tp_solver.program.architectures import mlp
from tp_solver.program.parameterization import mean_field, ntk
from tp_solver.program.task import Task
from tp_solver.symbols.activation import relu, tanh

N, WIDTH, TEST = 20, 200, 200
RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((N + TEST, 5))
VALUES = np.sin(POINTS[:, 0]) + 0.5 * POINTS[:, 1] * POINTS[:, 2]
TASK = Task(POINTS[:N], VALUES[:N], POINTS[N:], VALUES[N:])
NET = mlp(1, relu)
SMALL = Task(TASK.X[:6], TASK.y[:6], TASK.X_test[:9], TASK.y_test[:9])
BOTH = Task(SMALL.X, np.stack([SMALL.y, -(SMALL.y**2)], axis=1), SMALL.X_test)


@pytest.fixture(scope="module")
def twin():
    return linearise(draw(NET, ntk, 5, WIDTH))


@pytest.fixture(scope="module")
def small():
    return linearise(draw(mlp(2, tanh), ntk, 5, 12))


def safe_rate(twin, task):
    """1 / max K(x, x): no batch has a mean loss of curvature above it."""
    return 1 / np.einsum("aakk->a", twin.kernel(task.X)).max()


# the claim -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(twin):
    optimisers = {"SGD": SGD(safe_rate(twin, TASK)), "AdaGrad": AdaGrad(0.2)}
    return path_dependence(twin, TASK, optimisers, batches=(4,), orders=3)


def test_gradient_descent_reaches_the_closed_form_whatever_the_batches(study, record_property):
    """|GD - closed| / |signal| < 1e-5 and |SGD - GD| < 1e-4 at a training residual below 1e-7."""
    assert study.success
    assert max(run.residual for runs in study.runs.values() for run in runs) < 1e-7
    record_property("GD - closed", study.from_closed("SGD"))
    record_property("SGD - GD", study.from_full("SGD", 4))
    assert study.from_closed("SGD") < 1e-5
    assert study.from_closed("SGD", 4) < 1e-5
    (full,) = study.runs["SGD", None]
    assert max(np.abs(run.f_test - full.f_test).max() for run in study.runs["SGD", 4]) < 1e-4
    assert study.between_orders("SGD", 4) < 1e-6
    assert study.closed.rank == N and study.closed.residual < 1e-12


def test_adagrad_ends_elsewhere_depending_on_batches_and_their_order(study, record_property):
    """More than 5 % from gradient descent, between batches and all points, and between orders."""
    for name, value in (
        ("from GD", study.from_closed("AdaGrad")),
        ("batches from all points", study.from_full("AdaGrad", 4)),
        ("between orders", study.between_orders("AdaGrad", 4)),
    ):
        record_property(name, value)
        assert value > 0.05, name


@pytest.mark.parametrize(("depth", "slope"), [(1, 4), (2, 6)])
def test_the_initial_function_induces_an_error_of_the_power_2l_of_the_scale(depth, slope, record_property):
    """L weight layers of relu without biases: f is homogeneous of degree L. Through alpha and through sigma alike."""
    for scales, scaled in (((0.25, 1.0, 4.0), ntk.times), ((0.5, 2.0), lambda s: replace(ntk, sigma=s))):
        found = [minimiser(linearise(draw(mlp(depth, relu), scaled(s), 5, 100)), TASK) for s in scales]
        errors = [m.mse_initial for m in found]
        fitted = np.polyfit(np.log(scales), np.log(errors), 1)[0]
        record_property(f"L = {depth + 1}", float(fitted))
        assert fitted == pytest.approx(slope, abs=0.2)
        assert fitted == pytest.approx(slope, abs=1e-6), "exact, at one draw of the weights"
        # what interpolates does not depend on the scale
        np.testing.assert_allclose(found[0].interpolation, found[-1].interpolation, atol=1e-10)


def test_centring_removes_it_exactly(twin):
    """Both in the closed form and in the descent, at a scale where the initial function is all there is."""
    loud = linearise(draw(NET, ntk.times(4.0), 5, WIDTH))
    raw, centred = minimiser(loud, TASK), minimiser(loud, TASK, centred=True)
    assert raw.mse_initial > 10 * raw.mse_interpolation
    np.testing.assert_array_equal(centred.initial, 0.0)
    np.testing.assert_array_equal(centred.f_test, centred.interpolation)
    np.testing.assert_allclose(centred.interpolation, raw.interpolation, atol=1e-12)
    np.testing.assert_allclose(centred.f_test, minimiser(twin, TASK, centred=True).f_test, atol=1e-10)
    run = descend(loud, TASK, SGD(safe_rate(loud, TASK), momentum=0.9), centred=True)
    assert run.success and np.abs(run.f_test - centred.f_test).max() < 1e-5
    np.testing.assert_allclose(run.f, TASK.y, atol=1e-7)


# the traps -----------------------------------------------------------------------------------------------------------------------


def test_stopping_early_is_not_the_minimiser(twin):
    """SGD differs from descent as long as the residual is not small: the status says so."""
    rate = safe_rate(twin, TASK)
    early = [descend(twin, TASK, SGD(rate), batch=batch, steps=200) for batch in (None, 4)]
    assert [run.status for run in early] == [Ending.MAX_STEPS] * 2 and not early[0].success
    assert np.abs(early[0].f_test - early[1].f_test).max() > 0.01
    assert early[0].steps == 200 and "200 steps" in early[0].message and early[0].status.advice in early[0].message


def test_a_large_epsilon_turns_adagrad_into_gradient_descent(twin):
    """And so does the initial accumulator of optax's defaults, which is large against squared gradients of a wide net."""
    import optax

    optimisers = {"textbook": AdaGrad(0.2), "large epsilon": AdaGrad(2.0, epsilon=1.0), "optax's defaults": optax.adagrad(0.2)}
    found = path_dependence(twin, TASK, optimisers)
    assert found.success
    assert found.from_closed("textbook") > 0.05
    assert found.from_closed("large epsilon") < 0.01
    assert found.from_closed("optax's defaults") < 0.01


def test_adams_preconditioner_matters_and_its_bias_correction_does_not(twin):
    """Without the correction of the bias it ends elsewhere still; with the mean of the gradients alone it ends with descent."""
    import optax

    def uncorrected(g, state, u):
        m, v = (
            jax.tree.map(lambda a, b, d=d, k=k: d * a + (1 - d) * b**k, s, g) for s, d, k in zip(state, (0.9, 0.999), (1, 2), strict=True)
        )
        return jax.tree.map(lambda a, b: -0.01 * a / (b**0.5 + 1e-8), m, v), (m, v)

    plain = optax.GradientTransformation(lambda u: (u, u), uncorrected)  # u starts at zero
    mean = optax.chain(optax.ema(0.9), optax.scale(-3.0))
    found = path_dependence(twin, TASK, {"Adam": Adam(0.01), "no correction": plain, "no preconditioner": mean})
    assert found.success
    assert found.from_closed("Adam") > 0.05 and found.from_closed("no correction") > 0.05
    assert found.from_closed("no preconditioner") < 1e-5


def test_momentum_stays_in_the_span(twin):
    run = descend(twin, TASK, SGD(safe_rate(twin, TASK), momentum=0.9), batch=5, seed=3)
    assert run.success
    np.testing.assert_allclose(run.f_test, minimiser(twin, TASK).f_test, atol=1e-5)


# the closed form -----------------------------------------------------------------------------------------------------------------


def features(twin, points):
    """df/dw sqrt(rate), stacked: (P K, weights)."""
    with jax.enable_x64(True):
        slopes = jax.jit(jax.jacrev(lambda w: twin.of.net.predict(w, twin.of.numbers, np.asarray(points).T)))(twin.of.w)
    rates = twin.of.numbers.tangent
    parts = [np.sqrt(rates[name]) * np.asarray(s).reshape(-1, twin.of.w[name].size) for name, s in slopes.items()]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("outputs", [1, 2])
def test_against_the_pseudoinverse_of_stacked_features(outputs):
    """Mean-field scaling with layer rates 1, 1/2, 0: the metric of the rates is not that of the weights."""
    rates = replace(mean_field, eta=(1, 0.5, 0))
    twin = linearise(draw(mlp(2, tanh, bias=0.2), rates, 5, 12, outputs=outputs, gamma0=0.7))
    task = SMALL if outputs == 1 else BOTH
    phi, phi_test = features(twin, task.X), features(twin, task.X_test)
    y, start, start_test = task.y.reshape(-1), twin.predict(task.X).reshape(-1), twin.predict(task.X_test).reshape(-1)
    found = minimiser(twin, task)
    reach = phi_test @ np.linalg.pinv(phi)
    np.testing.assert_allclose(found.f_test.reshape(-1), start_test + reach @ (y - start), atol=1e-9)
    np.testing.assert_allclose(found.initial.reshape(-1), start_test - reach @ start, atol=1e-9)
    np.testing.assert_allclose(found.f, task.y, atol=1e-10)
    assert found.f_test.shape == (9,) if outputs == 1 else (9, 2)
    assert found.rank == 6 * outputs
    if outputs == 1:
        return
    # and descent gets there, with the frozen readout where it was
    run = descend(twin, task, SGD(0.9 * twin.critical_rate(task.X), momentum=0.9), steps=200_000, tol=1e-6)
    assert run.success and np.abs(run.f_test - found.f_test).max() < 1e-4
    np.testing.assert_array_equal(run.w["W2"], twin.of.w["W2"])
    np.testing.assert_allclose(twin.predict(task.X_test, run.w).reshape(-1), run.f_test.reshape(-1), atol=1e-14)


def test_errors_and_table(twin):
    found = minimiser(twin, TASK)
    assert found.mse == pytest.approx(np.mean((found.f_test - TASK.y_test) ** 2), rel=1e-14)
    assert found.mse_interpolation == pytest.approx(np.mean((found.interpolation - TASK.y_test) ** 2), rel=1e-14)
    assert found.signal == pytest.approx(np.sqrt(np.mean(found.f_test**2)), rel=1e-14)
    for value in (found.mse, found.mse_interpolation, found.mse_initial):
        assert f"{value:.4g}" in str(found)
    unlabelled = minimiser(twin, Task(TASK.X, TASK.y, TASK.X_test))
    assert np.isnan(unlabelled.mse) and unlabelled.mse_initial == found.mse_initial and "nan" in str(unlabelled)


def test_labels_that_cannot_be_fitted(small):
    """One input twice with two labels: the closed form takes their mean and says what is left; a descent does not converge."""
    task = Task(SMALL.X[[0, 0, 1, 2]], np.array([1.0, -0.5, 0.3, 0.2]), SMALL.X_test)
    found = minimiser(small, task)
    assert found.rank == 3 and found.residual == pytest.approx(0.75, abs=1e-9)
    np.testing.assert_allclose(found.f, [0.25, 0.25, 0.3, 0.2], atol=1e-9)
    run = descend(small, task, SGD(small.critical_rate(task.X) / 2), steps=20_000)
    assert run.status is Ending.MAX_STEPS and run.residual == pytest.approx(0.75, abs=1e-6)
    np.testing.assert_allclose(run.f_test, found.f_test, atol=1e-5)


# the descent ---------------------------------------------------------------------------------------------------------------------


def by_hand(twin, task, rate, batch, orders, adagrad):
    """Epochs over explicit features in numpy, with the order of the points given."""
    phi, y, start = features(twin, task.X), task.y, twin.predict(task.X)[:, 0]
    u, sums = np.zeros(phi.shape[1]), np.zeros(phi.shape[1])
    for order in orders:
        for k in range(0, len(y), batch):
            chosen = order[k : k + batch]
            g = phi[chosen].T @ (start[chosen] + phi[chosen] @ u - y[chosen]) / len(chosen)
            sums += g**2
            u -= rate * (g / np.sqrt(sums + 1e-16) if adagrad else g)
    return twin.predict(task.X_test)[:, 0] + features(twin, task.X_test) @ u


@pytest.mark.parametrize("adagrad", [False, True])
@pytest.mark.parametrize("batch", [None, 4])
def test_updates_by_hand(small, batch, adagrad):
    """Three epochs over six points; of batches of four the second has two, and is a mean over two."""
    rule = AdaGrad(0.05) if adagrad else SGD(0.1)
    run = descend(small, SMALL, rule, batch=batch, seed=11, steps=6 if batch else 3)
    assert run.steps == (6 if batch else 3) and run.status is Ending.MAX_STEPS
    with jax.enable_x64(True):
        key = jax.random.key(11)
        orders = [np.asarray(jax.random.permutation(jax.random.fold_in(key, e), 6)) for e in range(3)]
    if batch is None:
        orders = [np.arange(6)] * 3
    expected = by_hand(small, SMALL, 0.05 if adagrad else 0.1, batch or 6, orders, adagrad)
    np.testing.assert_allclose(run.f_test, expected, atol=1e-12)


def test_seeds_and_orders(small):
    runs = [descend(small, SMALL, AdaGrad(0.05), batch=2, seed=s, steps=30).f_test for s in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-4


def test_the_coordinates_do_not_depend_on_the_representative():
    """A theta-shift moves powers of the width between weights, multipliers and rates; AdaGrad must not notice."""
    ends = []
    for parameterization in (ntk, ntk.shifted((0.5, -0.5, 1))):
        twin = linearise(draw(mlp(2, tanh), parameterization, 5, 12))
        ends.append(descend(twin, SMALL, AdaGrad(0.05), batch=3, steps=60).f_test)
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-11)


def test_divergence_is_reported(small):
    run = descend(small, SMALL, SGD(1.2 * small.critical_rate(SMALL.X)))
    assert run.status is Ending.DIVERGED and not run.success and "lower the rate" in run.message and np.isfinite(run.residual)
    assert descend(small, SMALL, SGD(1e200)).status is Ending.DIVERGED


def test_without_test_points(small):
    run = descend(small, Task(SMALL.X, SMALL.y), SGD(0.1), steps=3)
    assert run.f_test is None and run.f.shape == (6,)


def test_the_table_of_a_study(study):
    lines = str(study).splitlines()
    assert len(lines) == 3 + 4 and all(name in "".join(lines) for name in ("AdaGrad", "SGD", "closed form"))
    assert f"{study.from_closed('AdaGrad'):.2g}" in lines[5]
    with pytest.raises(InputError) as error:
        study.from_closed("AdaGrad", 7)
    assert error.value.hint


def test_failures_are_seen_in_the_table(small):
    found = path_dependence(small, SMALL, [SGD(1.2 * small.critical_rate(SMALL.X)), SGD(1e-6)], steps=500)
    assert not found.success and "diverged" in str(found) and "max_steps" in str(found)


# bad input -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"twin": NET}, "twin", "mlp(depth=1"),
        ({"task": 3}, "task", "3"),
        ({"task": Task(np.ones((2, 4)), [1.0, 2.0])}, "task", "inputs of dimension 4"),
        ({"task": BOTH}, "task", "labels with 2 outputs"),
        ({"optimiser": "adam"}, "optimiser", "adam"),
        ({"optimiser": SGD}, "optimiser", "SGD"),
        ({"batch": 0}, "batch", "0"),
        ({"batch": 7}, "batch", "7"),
        ({"seed": -1}, "seed", "-1"),
        ({"steps": 0}, "steps", "0"),
        ({"tol": 0.0}, "tol", "0"),
        ({"tol": 1e-16}, "tol", "1e-16"),
        ({"centred": 1}, "centred", "1"),
    ],
)
def test_bad_arguments_of_a_descent(change, field, value, small, must_be_answered):
    arguments = {"twin": small, "task": SMALL, "optimiser": SGD(0.1)} | change
    must_be_answered(lambda: descend(**arguments), field, value)


def test_other_bad_arguments(small, must_be_answered):
    must_be_answered(lambda: minimiser(small.of, SMALL), "twin", "FiniteNet")
    must_be_answered(lambda: minimiser(small, Task(SMALL.X, SMALL.y)), "task", "a task without test points")
    must_be_answered(lambda: SGD(-1.0), "lr", "-1")
    must_be_answered(lambda: SGD(0.1, momentum=1.0), "momentum", "1.0")
    must_be_answered(lambda: AdaGrad(0.1, epsilon=0), "epsilon", "0")
    must_be_answered(lambda: Adam(0.1, beta2=1.0), "beta2", "1.0")
    must_be_answered(lambda: Adam(np.nan), "lr", "nan")
    must_be_answered(lambda: path_dependence(small, SMALL, SGD(0.1)), "optimisers", "SGD")
    must_be_answered(lambda: path_dependence(small, SMALL, []), "optimisers", "[]")
    must_be_answered(lambda: path_dependence(small, SMALL, [SGD(0.1), SGD(0.1)]), "optimisers", "SGD")
    must_be_answered(lambda: path_dependence(small, SMALL, [SGD(0.1)], batches=4), "batches", "4")
    must_be_answered(lambda: path_dependence(small, SMALL, [SGD(0.1)], batches=(6,)), "batches", "6")
    must_be_answered(lambda: path_dependence(small, SMALL, [SGD(0.1)], orders=0), "orders", "0")


def test_float32_cannot_reach_the_default_tolerance(must_be_answered):
    single = linearise(draw(mlp(1, tanh), ntk, 5, 12, dtype="float32"))
    must_be_answered(lambda: descend(single, SMALL, SGD(0.1)), "tol", "1e-07")
    assert descend(single, SMALL, SGD(single.critical_rate(SMALL.X) / 2, 0.9), tol=1e-3).success
