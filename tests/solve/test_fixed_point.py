"""The self-consistent solver: agreement with the march and the exact algebra, honest ends, predictions, files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.errors import BudgetError, RangeError
from tp_solver.numerics.pivoted_cholesky import causal_factor
from tp_solver.solve.layout import layout
from tp_solver.solve.site_process import precedes, sides, site_populations
from tp_solver.solve.stored import StoredKernels

X = np.sqrt(3) * np.linalg.cholesky(np.array([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]]))
Y = np.array([1, -1, 0.5])
X_TEST = np.array([[1.0, 0.2, -0.4], [-0.3, 1.1, 0.8]])
T3 = tp.Task(X, Y, X_TEST, np.array([1.0, -1.0]))
STEEP = tp.GradientDescent(lr=0.5, steps=16)


def rms(a: Any) -> float:
    return float(np.sqrt(np.mean(np.asarray(a) ** 2)))


def both(net: Any, task: tp.Task, training: Any, gamma0: float, samples: int, **options: Any) -> tuple[tp.Solution, tp.Solution]:
    theory = tp.limit(net, tp.muP, training)
    fixed = tp.solve(theory, task, gamma0=gamma0, samples=samples, replicates=2, method=tp.FixedPoint(**options))
    marched = tp.solve(theory, task, gamma0=gamma0, samples=samples, replicates=2, method=tp.March(bias=False))
    return fixed, marched


@pytest.fixture(scope="module")
def t3() -> tuple[tp.Solution, tp.Solution]:
    return both(tp.mlp(depth=2, activation=tp.tanh), T3, STEEP, 1.5, 16384)


def test_agrees_with_the_march(t3: tuple[tp.Solution, tp.Solution]) -> None:
    fixed, marched = t3
    assert fixed.success
    assert fixed.status is tp.Status.CONVERGED
    # the acceptance bound is 0.003; scatter of either method here is 0.0002, dropping the equal-time response costs 0.008
    assert rms(fixed.f - marched.f) < 0.0015
    assert rms(fixed.f_test - marched.f_test) < 0.003
    for layer in (1, 2):
        for name in ("Phi", "G"):
            a, b = (getattr(sol, name)(layer, 16, 8) for sol in (fixed, marched))
            assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b)
    # A and B only through their action, as G and Phi are nearly singular
    A_G = sum(fixed.A(1, 16, s) @ fixed.G(2, s, 5) for s in range(16))
    marched_A_G = sum(marched.A(1, 16, s) @ marched.G(2, s, 5) for s in range(16))
    assert np.linalg.norm(A_G - marched_A_G) < 0.05 * np.linalg.norm(marched_A_G)
    assert np.allclose(fixed.ntk(16), marched.ntk(16), rtol=0.02, atol=0.02)


def test_the_history_is_a_record_of_true_residuals(t3: tuple[tp.Solution, tp.Solution]) -> None:
    fixed, _ = t3
    for residuals, changes, count in zip(
        fixed.details["residuals"], fixed.details["kernel changes"], fixed.details["iterations"], strict=True
    ):
        assert len(residuals) == len(changes) == count <= 25
        assert residuals[-1] <= 1e-6
        assert changes[-1] <= 1e-5
    assert fixed.details["residuals"][0][0] > 0.1, "the first guess is no solution"
    assert fixed.details["operations"] > 16384 * 51 * 51, "at least one kernel of 51 rows"


def test_responses_and_their_equal_time_part(t3: tuple[tp.Solution, tp.Solution]) -> None:
    fixed, _ = t3
    assert all(np.all(fixed.A(1, t, s) == 0) for t in range(0, 17, 4) for s in range(t, 17, 4)), "forward responses are strictly earlier"
    assert all(np.all(fixed.B(1, t, s) == 0) for t in range(0, 13, 4) for s in range(t + 1, 17, 4))
    assert np.abs(fixed.B(1, 2, 2)).max() > 0.05, "the backward response has an equal-time part"


def test_predictions_after_solving(t3: tuple[tp.Solution, tp.Solution]) -> None:
    fixed, _ = t3
    assert np.allclose(fixed.predict(X_TEST), fixed.f_test[-1], atol=1e-12)
    # training points are in the span: only the truncation, 4 / samples of a variance, separates them
    assert rms(fixed.predict(X) - fixed.f[-1]) < 0.002


def test_linear_programs_are_solved_exactly() -> None:
    net = tp.mlp(depth=3, activation=tp.linear)
    theory = tp.limit(net, tp.muP, tp.GradientDescent(lr=0.3, steps=10))
    fixed = tp.solve(theory, T3, gamma0=1.0, method=tp.FixedPoint(tol=1e-12))
    exact = tp.solve(theory, T3, gamma0=1.0, method="linear")
    assert fixed.success, fixed.message
    assert fixed.details["exact"]
    assert np.abs(fixed.f - exact.f).max() < 1e-10
    assert np.abs(fixed.f_test - exact.f_test).max() < 1e-10
    for layer in (1, 2, 3):
        for name in ("Phi", "G") if layer == 3 else ("Phi", "G", "A", "B"):
            for t, s in ((10, 7), (3, 3), (10, 0), (2, 9)):
                # kernels leave out directions of relative variance 1e-13 and less on either side
                assert np.abs(getattr(fixed, name)(layer, t, s) - getattr(exact, name)(layer, t, s)).max() < 1e-8
    assert np.all(fixed.stderr("f") == 0)


def test_golden_deep_linear() -> None:
    theory = tp.limit(tp.mlp(depth=4, activation=tp.linear), tp.muP, tp.GradientDescent(lr=0.15, steps=19))
    sol = tp.solve(theory, tp.Task([[1.0]], [1.0]), gamma0=1.3, method=tp.FixedPoint(tol=1e-12))
    assert sol.success, sol.message
    golden = [0, 0.75, 1.128548440871, 0.868347980666, 1.090963953353, 0.910979155217]
    assert np.abs(sol.f[:6, 0] - golden).max() < 1e-10
    assert abs(sol.f[19, 0] - 0.989747644489) < 1e-10
    assert abs(sol.Phi(4, 5, 5).item() - 2.702067968326) < 1e-9
    assert abs(sol.A(3, 5, 2).item() + 0.087749334841) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (tp.CrossEntropy(), np.array([0, 1, 2])),
        pytest.param(tp.Logistic(), np.array([1, -1, 1]), marks=pytest.mark.slow),
        pytest.param(tp.SquaredError(), np.eye(3)[:, :2], marks=pytest.mark.slow),
    ],
    ids=["cross-entropy", "logistic", "two outputs"],
)
def test_losses_and_outputs(loss: Any, labels: np.ndarray) -> None:
    net = tp.mlp(depth=2, activation=tp.tanh, bias=True)
    fixed, marched = both(net, tp.Task(X, labels), tp.GradientDescent(lr=0.5, steps=10, loss=loss), 1.0, 2048, tol=1e-5)
    assert fixed.success, fixed.message
    assert fixed.f.shape == marched.f.shape
    # 2 048 samples, 2 replicates: either scatters by up to 0.003
    assert rms(fixed.f - marched.f) < 0.01
    assert np.abs(fixed.loss - marched.loss).max() < 0.01


@pytest.mark.slow
def test_a_matrix_used_twice_and_a_residual_stream() -> None:
    first, second, hidden, out = tp.input_matrix("W0"), tp.hidden_matrix("V"), tp.hidden_matrix("W"), tp.readout("w")

    def tied(x: Any) -> Any:
        h = hidden @ tp.tanh(first @ x)
        h = h + 0.5 * (second @ tp.tanh(hidden @ tp.tanh(h)))
        return out @ tp.tanh(h)

    net = tp.program(tied)
    assert len(site_populations(layout(net))) == 1, "all sites are the same neurons"
    fixed, marched = both(net, tp.Task(X, Y), tp.GradientDescent(lr=0.3, steps=10), 1.0, 2048, tol=1e-5)
    assert fixed.success, fixed.message
    assert rms(fixed.f - marched.f) < 0.01


def test_order_of_statements_decides_who_responds() -> None:
    plan = layout(tp.mlp(depth=3, activation=tp.tanh))
    below, above = sides(plan)["W1"]
    assert not precedes(plan, below, above).any(), "phi(h) is computed before the transposed product"
    assert precedes(plan, above, below).all(), "the gradient comes after the product"
    assert len(site_populations(plan)) == 3


@pytest.mark.slow
def test_gradient_flow_is_extrapolated() -> None:
    net = tp.mlp(depth=2, activation=tp.linear)
    theory = tp.limit(net, tp.muP, tp.GradientFlow(time=1.0, steps=2))
    fixed = tp.solve(theory, tp.Task(X, Y), gamma0=1.0, method=tp.FixedPoint(tol=1e-11, substeps=2))
    exact = tp.solve(theory, tp.Task(X, Y), gamma0=1.0, method=tp.Linear(substeps=2))
    assert fixed.success, fixed.message
    assert fixed.f.shape == (3, 3)
    assert np.abs(fixed.f - exact.f).max() < 1e-9
    assert np.all(fixed.stderr("f")[1:] > 0), "the difference of two step sizes stays in the error"


def test_an_unfinished_iteration_says_so() -> None:
    theory = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.5, steps=4))
    sol = tp.solve(theory, T3, gamma0=1.5, samples=256, replicates=1, method=tp.FixedPoint(max_iterations=2))
    assert sol.status is tp.Status.MAX_ITERATIONS
    assert not sol.success
    assert "2 sweeps" in sol.message
    assert "march" in sol.message


def test_divergent_training_is_not_a_solution() -> None:
    theory = tp.limit(tp.mlp(depth=2, activation=tp.linear), tp.muP, tp.GradientDescent(lr=50.0, steps=30))
    sol = tp.solve(theory, tp.Task(X, Y), gamma0=1.0, samples=256, replicates=1, method=tp.FixedPoint(max_iterations=30))
    assert not sol.success
    assert sol.status in (tp.Status.NONFINITE, tp.Status.MAX_ITERATIONS, tp.Status.STALLED)


def test_memory_is_refused_before_it_is_taken(must_be_answered: Any) -> None:
    theory = tp.limit(tp.mlp(depth=3, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.1, steps=20000))
    with pytest.raises(BudgetError):
        tp.solve(theory, T3, method="fixed_point")
    must_be_answered(lambda: tp.solve(theory, T3, method="fixed_point"), "memory", "GiB")


def test_kernels_survive_a_round_trip(tmp_path: Any) -> None:
    theory = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.5, steps=4))
    sol = tp.solve(theory, T3, samples=256, replicates=2, method="fixed_point")
    sol.save(tmp_path / "sol.npz")
    loaded = tp.load(tmp_path / "sol.npz")
    again = loaded.kernels
    assert isinstance(again, StoredKernels)
    assert np.array_equal(loaded.f, sol.f)
    for name, args in (("Phi", (2, 4, 1)), ("G", (1, 4, 4)), ("A", (1, 3, 1)), ("B", (1, 3, 3)), ("ntk", (2,))):
        assert np.array_equal(getattr(again, name)(*args), getattr(sol.kernels, name)(*args))
        assert np.array_equal(again.stderr(name, args), sol.kernels.stderr(name, args))
    assert np.allclose(again.predict(X_TEST)[0], sol.kernels.predict(X_TEST)[0], atol=1e-12)
    assert sol.fields(1, 4).h.shape == (512, 3)
    with pytest.raises(RangeError, match="kept"):
        sol.fields(1, 2)


def test_causal_factor() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((12, 5)) @ rng.standard_normal((5, 40))
    vectors[4:8] = 0.5 * vectors[:4]
    covariance = vectors @ vectors.T / 40
    found = causal_factor(vectors, 4, 1e-10)
    assert list(found.pivots) == [0, 1, 2, 3, 8], "rank five, and rows that are explained bring none"
    assert np.allclose(found.rows @ found.rows.T, covariance, atol=1e-12)
    assert all(np.all(found.rows[i, found.pivots > i] == 0) for i in range(12)), "no row leans on a later pivot"
    A = rng.standard_normal((3, 12))
    assert np.allclose(found.unwhitened(A @ found.rows) @ covariance, A @ covariance), "supported on pivots, with the same action"
    nearby = vectors + 1e-7 * rng.standard_normal(vectors.shape)
    assert causal_factor(nearby, 4, 1e-18).rank > 5, "noise brings pivots"
    assert causal_factor(nearby, 4, 1e-18, found, 1e9).rank == 5, "pivots are kept while no row is far beyond the limit"
