"""The conventions and public names that checks written elsewhere rely on, called as an outsider would."""

from __future__ import annotations

import inspect
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

import tp_solver as tp

STEPS, P, D, TESTS = 3, 3, 3, 2
GRAM = np.array([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]])
X, Y = np.sqrt(3) * np.linalg.cholesky(GRAM), np.array([1, -1, 0.5])
X_NEW, Y_NEW = np.random.default_rng(0).standard_normal((TESTS, D)), np.array([1.0, -1.0])
TASK = tp.Task(X, Y, X_test=X_NEW, y_test=Y_NEW)
TRAIN = tp.GradientDescent(lr=0.5, steps=STEPS)
NET, LINES = tp.mlp(depth=2, activation=tp.tanh), tp.mlp(depth=2, activation=tp.linear)
PRESETS = ("muP", "mean_field", "ntk", "standard", "standard_1n", "integrable")
HALF = Fraction(1, 2)


def solved(net=NET, parameterization=tp.muP, train=TRAIN, task=TASK, **options):
    options = {"samples": 128, "replicates": 2, "seed": 0} | options
    return tp.solve(tp.limit(net, parameterization, train), task, **options)


def simulated(net=NET, parameterization=tp.muP, train=TRAIN, task=TASK, **options):
    options = {"gamma0": 1.5, "widths": [16, 32], "seeds": 3, "progress": False} | options
    return tp.simulate(net, parameterization, train, task, **options)


@pytest.fixture(scope="module")
def theory():
    return tp.limit(NET, tp.muP, TRAIN)


@pytest.fixture(scope="module")
def sol():
    return solved(gamma0=1.5)


@pytest.fixture(scope="module")
def exact():
    return solved(LINES, gamma0=1.5, method="linear")


@pytest.fixture(scope="module")
def ens():
    return simulated()


@pytest.fixture(scope="module")
def kernel():
    return solved(parameterization=tp.ntk)


# --- conventions: depth, parameterizations ---


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_counts_hidden_layers_and_there_is_one_more_weight(depth):
    net = tp.mlp(depth=depth, activation=tp.tanh, bias=False)
    assert net.depth == depth
    assert [m.name for m in net.matrices] == [f"W{j}" for j in range(depth + 1)]
    assert [m.role.name.lower() for m in net.matrices] == ["input", *["hidden"] * (depth - 1), "readout"]


def test_a_parameterization_is_name_a_b_c_and_constants_of_one():
    mine = tp.Parameterization("mine", (-HALF, 0, HALF), (HALF, HALF, HALF), (0, 0, 0), alpha=1, sigma=1, eta=1)
    assert mine == tp.Parameterization("mine", (-HALF, 0, HALF), (HALF, HALF, HALF), (0, 0, 0))
    assert mine.alpha == mine.sigma == mine.eta == (1, 1, 1)


def test_presets_have_one_over_root_D_on_the_input_layer():
    for name in PRESETS:
        preset = getattr(tp, name)
        assert sp.simplify(preset.alpha[0] - 1 / sp.sqrt(tp.D)) == 0
        assert preset.sigma == preset.eta == (1, 1, 1)


def test_muP_has_the_exponents_of_tensor_programs_four():
    half = sp.Rational(1, 2)
    assert list(zip(tp.muP.a, tp.muP.b, tp.muP.c, strict=True)) == [(-half, half, 0), (0, half, 0), (half, half, 0)]


def test_mean_field_is_the_class_of_muP_by_the_shift_at_any_depth():
    shifted = tp.muP.shifted(HALF)
    assert (shifted.a, shifted.b, shifted.c) == (tp.mean_field.a, tp.mean_field.b, tp.mean_field.c)
    for depth in (1, 2, 3):
        net = tp.mlp(depth=depth, activation=tp.tanh)
        assert tp.limit(net, tp.muP, TRAIN).signature == tp.limit(net, tp.mean_field, TRAIN).signature


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("muP", "feature learning"),
        ("mean_field", "feature learning"),
        ("ntk", "kernel"),
        ("standard", "unstable"),
        ("standard_1n", "kernel"),
        ("integrable", "trivial"),
    ],
)
def test_regimes_of_the_presets_at_three_hidden_layers(name, words):
    report = tp.regime(getattr(tp, name), tp.mlp(depth=3, activation=tp.tanh))
    assert report.regime == words == str(report.regime)
    assert report.regime is tp.Regime(words)
    assert list(report.exponents) == ["W0", "W1", "W2", "W3"]
    assert bool(report.violated) == bool(report.cure) == (words in ("unstable", "trivial"))


def test_a_symbolic_exponent_gets_conditions():
    q = sp.Symbol("q")
    report = tp.regime(tp.Parameterization("mine", a=(0, sp.Rational(1, 2), q), b=0, c=1 - 2 * q), NET)
    assert report.regime is None
    assert report.conditions["feature learning"] == sp.Eq(q, 1)
    assert report.sets["kernel"] == sp.Interval.Ropen(sp.Rational(1, 2), 1)


# --- conventions: update, gamma0, times ---


def test_the_update_by_hand_at_depth_one():
    """f = <alpha w h> / gamma0 and w <- w - lr gamma0^2 eta dLoss/dw, solved in the two directions w(0), h(0)."""
    lr, gamma0, alpha, eta = 0.3, 1.7, 2.0, (0.5, 1.0, 1.4)
    chosen = tp.Parameterization(
        "own", tp.mean_field.a, tp.mean_field.b, tp.mean_field.c, alpha=(tp.mean_field.alpha[0], 1, alpha), eta=eta
    )
    task = tp.Task(np.full((1, 4), 1.0), [0.8])  # |x|^2 = D
    net = tp.mlp(depth=1, activation=tp.linear)
    sol = solved(net, chosen, tp.GradientDescent(lr=lr, steps=4), task, gamma0=gamma0, method="linear")
    w, h, f = np.array([1.0, 0.0]), np.array([0.0, 1.0]), []
    for _ in range(5):
        f.append(alpha * (w @ h) / gamma0)
        e = (0.8 - f[-1]) * lr * gamma0**2 * alpha / gamma0
        w, h = w + e * eta[2] * h, h + e * eta[0] * w
    np.testing.assert_allclose(sol.f[:, 0], f, atol=1e-12)


def test_the_shift_gives_the_same_trajectories_and_canonical_kernels(ens):
    other = simulated(parameterization=tp.mean_field)
    for one, two in ((ens.f, other.f), (ens.G(1, 3, 2), other.G(1, 3, 2)), (ens.Phi(2, 3, 0), other.Phi(2, 3, 0))):
        np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-12)  # the same draws, other powers of N: rounding only


def test_the_total_strength_is_gamma0_over_the_readout_scale():
    def run(scale, gamma0):
        own = tp.Parameterization("own", tp.muP.a, tp.muP.b, tp.muP.c, alpha=(tp.muP.alpha[0], 1, scale), eta=1 / sp.Integer(scale) ** 2)
        return solved(LINES, own, gamma0=gamma0, method="linear").f

    np.testing.assert_allclose(run(2, 3.0), run(1, 1.5), atol=1e-10)


def test_gamma0_of_zero_is_the_kernel_limit_for_solve_and_an_error_for_simulate():
    lazy = solved(gamma0=0)
    assert lazy.method == "kernel" and lazy.success
    np.testing.assert_allclose(lazy.f, solved(parameterization=tp.ntk).f, atol=1e-12)
    with pytest.raises(tp.TPError, match=r"gamma0.*Hint"):
        simulated(gamma0=0)


def test_the_last_row_has_forward_and_backward_fields(sol, ens):
    for record in (sol, ens):
        assert record.Phi(2, STEPS, STEPS).shape[-2:] == record.G(1, STEPS, 0).shape[-2:] == record.ntk(STEPS).shape[-2:] == (P, P)
        h, z = record.fields(2, STEPS)
        assert h.shape == z.shape and h.shape[-1] == P
    with pytest.raises(tp.RangeError):
        sol.Phi(1, STEPS + 1, 0)
    with pytest.raises(tp.RangeError):
        sol.Phi(0, 0, 0)


# --- conventions: kernels ---


def test_unit_sigma_gives_the_covariance_of_the_inputs_over_D(exact, kernel):
    np.testing.assert_allclose(exact.Phi(1, 0, 0), GRAM, atol=1e-12)
    np.testing.assert_allclose(solved(LINES, tp.ntk).Phi(1, 0, 0), GRAM, atol=1e-12)


def test_Phi_is_the_covariance_of_activations_of_the_fields(sol):
    h, _ = sol.fields(1, 0)
    np.testing.assert_allclose(np.tanh(h).T @ np.tanh(h) / len(h), sol.Phi(1, 0, 0), atol=0.02)  # truncation at 128 samples


def test_G_is_that_of_the_derivative_of_the_output(exact):
    """Deep linear at t = 0: every gradient has unit variance for every point."""
    np.testing.assert_allclose(exact.G(1, 0, 0), np.ones((P, P)), atol=1e-12)


def test_the_tangent_kernel_is_the_sum_over_layers_eta_included():
    eta = (2, 3, 5)
    own = tp.Parameterization("own", tp.muP.a, tp.muP.b, tp.muP.c, tp.muP.alpha, eta=eta)
    for record in (solved(LINES, own, gamma0=0.5, method="linear"), simulated(parameterization=own, gamma0=0.5)):
        for t in (0, STEPS):
            parts = (record.G(1, t, t) * GRAM, record.G(2, t, t) * record.Phi(1, t, t), record.Phi(2, t, t))
            np.testing.assert_allclose(record.ntk(t), sum(e * part for e, part in zip(eta, parts, strict=True)), rtol=1e-9, atol=1e-10)


def test_several_outputs_have_one_gradient_kernel_that_of_the_loss_gradients():
    task, net = tp.Task(X, np.stack([Y, -2 * Y], axis=1)), tp.mlp(depth=1, activation=tp.linear)
    sol, nets = solved(net, task=task, method="linear"), simulated(net, task=task, gamma0=1.0, widths=[512])
    assert sol.f.shape == (STEPS + 1, P, 2) and nets.f.shape == (1, 3, STEPS + 1, P, 2)
    assert sol.G(1, 0, 0).shape == (P, P) and nets.G(1, 0, 0).shape == (1, 3, P, P)
    e = task.y / P
    np.testing.assert_allclose(sol.G(1, 0, 0), e @ e.T, atol=1e-12)
    assert np.abs(nets.G(1, 0, 0).mean(axis=(0, 1)) / (e @ e.T) - 1).max() < 0.2  # 1536 sites: 4 %


# --- conventions: test points, the kernel regime, data, words ---


def test_test_points_leave_training_untouched_bit_for_bit(sol):
    without = solved(task=tp.Task(X, Y), gamma0=1.5)
    assert without.f_test is None and without.loss_test is None
    for one, two in ((sol.f, without.f), (sol.G(1, 3, 1), without.G(1, 3, 1)), (sol.ntk(3), without.ntk(3))):
        assert np.array_equal(one, two)


def test_prediction_on_new_points_is_that_of_test_points(sol, exact, kernel):
    for record in (sol, exact, kernel):
        np.testing.assert_allclose(record.predict(X_NEW), record.f_test[-1], atol=1e-10)
    np.testing.assert_allclose(exact.predict(X), exact.f[-1], atol=1e-10)


def test_the_kernel_regime_has_a_mean_and_a_covariance(kernel):
    louder = solved(parameterization=tp.ntk, gamma0=2.0)
    assert kernel.f_cov.shape == (STEPS + 1, P + TESTS, P + TESTS)
    assert np.array_equal(kernel.f, louder.f) and np.array_equal(kernel.ntk(0), louder.ntk(STEPS))
    np.testing.assert_allclose(kernel.f_cov, 4 * louder.f_cov, atol=1e-12)
    assert np.abs(kernel.f[0]).max() == 0 and np.diagonal(kernel.f_cov[0]).min() > 0
    assert solved(parameterization=tp.standard_1n).f_cov is not None


def test_centred_nets_start_at_zero_and_others_do_not():
    centred, random = (simulated(parameterization=tp.ntk, centred=c) for c in (True, False))
    assert np.abs(centred.f[:, :, 0]).max() == np.abs(centred.f_test[:, :, 0]).max() == 0
    assert np.abs(random.f[:, :, 0]).min() > 0
    assert not any("variance" in row.quantity for row in tp.compare(solved(parameterization=tp.ntk, gamma0=1.5), centred).rows)
    assert any("variance" in row.quantity for row in tp.compare(solved(parameterization=tp.ntk, gamma0=1.5), random).rows)


def test_digits_are_scaled_to_D_and_labelled():
    task = tp.Task.digits(classes=(3, 8), points=20, test=10, seed=1)
    assert task.X.shape == (20, 64) and task.X_test.shape == (10, 64) and task.y.shape == (20,) and task.y_test.shape == (10,)
    np.testing.assert_allclose((np.concatenate([task.X, task.X_test]) ** 2).sum(axis=1), 64)
    assert set(task.y) == {-1.0, 1.0}
    three = tp.Task.digits(classes=(0, 1, 2), points=6, test=3, seed=0)
    assert three.y.shape == (6, 3) and (three.y.sum(axis=1) == 1).all() and set(three.y.ravel()) == {0.0, 1.0}


def test_samples_and_replicates_have_the_stated_defaults():
    defaults = {k: v.default for k, v in inspect.signature(tp.solve).parameters.items()}
    assert (defaults["gamma0"], defaults["samples"], defaults["replicates"], defaults["seed"]) == (1.0, 4096, 4, 0)
    assert list(defaults)[:7] == ["theory", "task", "gamma0", "samples", "replicates", "seed", "method"]


# --- public names ---


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        ("mlp", ["depth", "activation", "bias"]),
        ("Activation", ["name", "function"]),
        ("GradientDescent", ["lr", "steps", "loss"]),
        ("GradientFlow", ["time", "steps"]),
        ("Task", ["X", "y", "X_test", "y_test"]),
        ("Parameterization", ["name", "a", "b", "c", "alpha", "sigma", "eta"]),
        ("regime", ["parameterization", "net"]),
        ("limit", ["net", "parameterization", "training"]),
        ("simulate", ["net", "parameterization", "training", "task", "gamma0", "widths", "seeds", "centred"]),
        ("compare", ["sol", "ens"]),
    ],
)
def test_signatures(verb, names):
    assert list(inspect.signature(getattr(tp, verb)).parameters)[: len(names)] == names


def test_activations_come_ready_made_and_of_ones_own():
    for name in ("linear", "tanh", "erf", "relu", "leaky_relu", "gelu", "sin"):
        assert isinstance(getattr(tp, name), tp.Activation)
    own = tp.Activation("swish", lambda x: x / (1 + sp.exp(-x)))
    assert tp.mlp(depth=1, activation=own, bias=True).depth == 1


def test_the_face_of_a_theory(theory):
    assert "A^1" in str(theory["h", 2])
    assert "W1" in theory.explain("A", 1)
    assert len(theory.vanished) >= 1 and "N^" in str(theory.vanished)
    assert theory._repr_latex_().startswith("$$")
    for key in (("Phi", 1), ("G", 2), ("A", 1), ("B", 1), ("z", 1), ("g", 2), ("h", 1), ("u", 2), ("r", 1), "f", "K"):
        assert "=" in str(theory[key])


def test_a_solution_has_the_stated_shapes(sol):
    assert sol.f.shape == (STEPS + 1, P) and sol.f_test.shape == (STEPS + 1, TESTS)
    assert sol.loss.shape == sol.loss_test.shape == (STEPS + 1,)
    assert sol.stderr("f").shape == sol.f.shape and (sol.stderr("f")[1:] > 0).all()
    for name in ("Phi", "G", "A", "B"):
        assert getattr(sol, name)(1, 2, 1).shape == (P, P)
    assert sol.predict(X_NEW).shape == (TESTS,)
    assert sol.fields(1, 0).h.shape == sol.fields(1, 0).z.shape == (2 * 128, P)
    assert isinstance(sol.success, bool) and str(sol.status) and sol.message


def test_the_loss_is_that_of_the_predictions(sol, exact):
    for record in (sol, exact):
        np.testing.assert_allclose(record.loss, ((record.f - Y) ** 2 / 2).mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(record.loss_test, ((record.f_test - Y_NEW) ** 2 / 2).mean(axis=1), rtol=1e-12)


def test_an_output_axis_is_kept_where_the_labels_have_one():
    column = solved(LINES, task=tp.Task(X, Y[:, None], X_NEW, Y_NEW[:, None]), method="linear")
    flat = solved(LINES, method="linear")
    assert column.f.shape == (STEPS + 1, P, 1) and column.f_test.shape == (STEPS + 1, TESTS, 1)
    assert column.predict(X_NEW).shape == (TESTS, 1)
    np.testing.assert_allclose(column.f[..., 0], flat.f, atol=1e-14)


def test_responses_are_causal(sol, exact):
    for record in (sol, exact):
        assert np.abs(record.A(1, 1, 1)).max() == np.abs(record.B(1, 1, 2)).max() == 0
        assert np.abs(record.A(1, 2, 1)).max() > 0 and np.abs(record.B(1, 2, 1)).max() > 0
    assert np.abs(sol.B(1, 2, 2)).max() > 0 == np.abs(exact.B(1, 2, 2)).max()  # at equal times by the curvature of phi alone


def test_integers_and_one_hot_rows_are_the_same_labels():
    train, classes = tp.GradientDescent(lr=0.5, steps=2, loss=tp.CrossEntropy()), [0, 2, 1]
    runs = [solved(train=train, task=tp.Task(X, y), gamma0=0) for y in (np.array(classes), np.eye(3)[classes])]
    assert runs[0].f.shape == (3, P, 3) and np.array_equal(runs[0].f, runs[1].f)
    assert runs[0].loss[0] == pytest.approx(np.log(3)) and runs[0].loss[-1] < runs[0].loss[0]


def test_the_logistic_loss_takes_minus_and_plus_one():
    train, net = tp.GradientDescent(lr=0.5, steps=2, loss=tp.Logistic()), tp.mlp(depth=1, activation=tp.linear)
    sol = solved(net, train=train, task=tp.Task(X, np.array([1, -1, 1])), gamma0=0)
    assert sol.f.shape == (3, P) and sol.loss[0] == pytest.approx(np.log(2))
    with pytest.raises(tp.TPError, match="-1 or"):
        solved(net, train=train, task=tp.Task(X, np.array([1, 0, 1])))


def test_one_rate_per_matrix():
    one, each, named = 0.2, [0.2, 0.2, 0.2], {"W0": 0.2, "W1": 0.2, "W2": 0.2}
    runs = [solved(LINES, train=tp.GradientDescent(lr=lr, steps=STEPS), method="linear").f for lr in (one, each, named)]
    assert np.array_equal(runs[0], runs[1]) and np.array_equal(runs[0], runs[2])
    frozen = solved(LINES, train=tp.GradientDescent(lr=(0.2, 0.0, 0.2), steps=STEPS), method="linear").f
    assert not np.allclose(frozen, runs[0])


def test_gradient_flow_reports_as_many_rows():
    flow = solved(LINES, train=tp.GradientFlow(time=1.0, steps=STEPS), method=tp.Linear(substeps=2))
    assert flow.f.shape == (STEPS + 1, P) and flow.G(1, STEPS, STEPS).shape == (P, P)


def test_an_ensemble_answers_with_two_leading_axes(ens):
    lead = (2, 3)
    assert ens.f.shape == (*lead, STEPS + 1, P) and ens.f_test.shape == (*lead, STEPS + 1, TESTS)
    assert ens.loss.shape == ens.loss_test.shape == (*lead, STEPS + 1)
    assert ens.Phi(1, 3, 0).shape == ens.G(2, 3, 3).shape == ens.ntk(0).shape == (*lead, P, P)
    assert ens.fields(1, 0).h.shape[:2] == lead
    assert ens.stderr("f").shape == (2, STEPS + 1, P)
    assert ens.success is True and ens.status == "completed" and ens.message
    np.testing.assert_allclose(ens.loss, ((ens.f - Y) ** 2 / 2).mean(axis=-1), rtol=1e-12)


def test_a_comparison_prints_and_draws(sol, ens):
    cmp = tp.compare(sol, ens)
    assert "deviation" in str(cmp)
    assert cmp.plot().axes


def test_a_solution_is_saved_and_loaded(sol, kernel, tmp_path):
    for record in (sol, kernel):
        record.save(tmp_path / "record.npz")
        again = tp.load(tmp_path / "record.npz")
        assert np.array_equal(again.f, record.f) and np.array_equal(again.loss, record.loss)
        assert np.array_equal(again.Phi(2, 3, 1), record.Phi(2, 3, 1)) and np.array_equal(again.ntk(1), record.ntk(1))
        assert np.array_equal(again.predict(X_NEW), record.predict(X_NEW))
        assert (again.status, again.success, again.message) == (record.status, record.success, record.message)


def test_the_coordinate_check_ships():
    check = tp.coordinate_check(tp.muP, tp.mlp(depth=1, activation=tp.tanh), widths=(32, 64), seeds=3)
    assert check.names == ("h1", "f") and "slope" in str(check) and check.plot().axes


# --- reference problems ---


def test_the_reference_problem_T3():
    np.testing.assert_allclose(X @ X.T / 3, GRAM, atol=1e-12)
    theory = tp.limit(NET, tp.muP, tp.GradientDescent(lr=0.5, steps=16))
    lazy = tp.solve(theory, tp.Task(X, Y), gamma0=0)
    assert theory.regime == "feature learning" and lazy.success and lazy.f.shape == (17, P)


def test_the_reference_problem_E3():
    rng = np.random.default_rng(1)
    task = tp.Task(rng.standard_normal((10, 25)), np.sign(rng.standard_normal(10)))
    theory = tp.limit(tp.mlp(depth=3, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.1, steps=100))
    lazy = tp.solve(theory, task, gamma0=0)
    assert theory.regime == "feature learning" and lazy.f.shape == (101, 10)
