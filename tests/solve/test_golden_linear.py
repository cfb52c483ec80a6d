"""Deep linear nets, where everything is a finite sum: golden numbers, closed matrix equations, and the march against both."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.program.statements import Product
from tp_solver.solve.formal import formal_responses

fixed_point = import_module("tp_solver.solve.fixed_point")

STEPS, RATE, STRENGTH = 19, 0.15, 1.3
F = {1: 0.75, 2: 1.128548440871, 3: 0.868347980666, 4: 1.090963953353, 5: 0.910979155217, 10: 1.037003568652, 19: 0.989747644489}
SIZES = (1.077281715698, 1.321744584313, 1.826287203492, 2.702067968326)
# the golden numbers are printed to 12 digits
DIGITS = 1e-10

GRAM = np.array([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]])
X = np.sqrt(3) * np.linalg.cholesky(GRAM)
Y = np.array([1.0, -1.0, 0.5])


def one_point():
    return tp.limit(tp.mlp(4, tp.linear), tp.muP, tp.GradientDescent(RATE, STEPS)), tp.Task([[1.0]], [1.0])


@pytest.fixture(scope="module")
def golden():
    return tp.solve(*one_point(), STRENGTH, method="linear")


def test_golden_predictions(golden):
    assert golden.f[0, 0] == 0
    for t, value in F.items():
        assert golden.f[t, 0] == pytest.approx(value, abs=DIGITS), t


def test_golden_kernels_and_responses(golden):
    assert [golden.Phi(layer, 5, 5).item() for layer in range(1, 5)] == pytest.approx(SIZES, abs=DIGITS)
    assert golden.Phi(2, 5, 2).item() == pytest.approx(1.414785131985, abs=DIGITS)
    assert golden.A(1, 5, 2).item() == pytest.approx(-0.025004980581, abs=DIGITS)
    assert golden.A(3, 5, 2).item() == pytest.approx(-0.087749334841, abs=DIGITS)
    assert golden.success and golden.status == "completed" and not golden.stderr("f").any()


def test_reversing_the_layers_exchanges_the_two_passes(golden):
    """One point with unit input: H^l = G^(L + 1 - l), A^l = B^(L - l), at all pairs of times."""
    times = range(0, STEPS + 1, 3)
    for t in times:
        for s in times:
            for layer in range(1, 5):
                assert golden.Phi(layer, t, s) == pytest.approx(golden.G(5 - layer, t, s), abs=1e-12)
            for layer in range(1, 4):
                assert golden.A(layer, t, s) == pytest.approx(golden.B(4 - layer, t, s), abs=1e-10)


def test_responses_are_causal(golden):
    """A and, for linear maps, B vanish unless the source is strictly earlier."""
    for t, s in ((0, 0), (3, 3), (3, 4), (3, 19)):
        for layer in (1, 2, 3):
            assert golden.A(layer, t, s).item() == pytest.approx(0, abs=1e-12) and golden.B(layer, t, s).item() == pytest.approx(
                0, abs=1e-12
            )


def test_march_within_three_standard_errors(golden):
    sol = tp.solve(*one_point(), STRENGTH)
    assert sol.success and np.sqrt(np.mean(sol.stderr("f") ** 2)) < 0.002
    # 20 times in one test: the rms of the deviation in units of its error, and 1e-9 for rows where nothing is random
    assert np.sqrt(np.mean((sol.f - golden.f) ** 2)) <= 3 * np.sqrt(np.mean(sol.stderr("f") ** 2))
    assert np.all(np.abs(sol.f - golden.f) <= 3 * sol.stderr("f") + 1e-9)


def test_march_is_exact_when_nothing_is_truncated(golden):
    """Sampled columns have exact second moments, and linear nets know no others: 256 samples do."""
    sol = tp.solve(*one_point(), STRENGTH, samples=256, replicates=2, method=tp.March(tol=1e-12, bias=False))
    assert sol.f == pytest.approx(golden.f, abs=1e-8)
    for layer in range(1, 5):
        assert sol.Phi(layer, 5, 2) == pytest.approx(golden.Phi(layer, 5, 2), abs=1e-8)
        assert sol.G(layer, 19, 5) == pytest.approx(golden.G(layer, 19, 5), abs=1e-8)


def stack(read, steps, rows, columns):
    """Two-time blocks as one matrix with index (time, point)."""
    blocks = np.array([[read(t, s) for s in range(steps + 1)] for t in range(steps + 1)])
    return blocks.transpose(0, 2, 1, 3).reshape((steps + 1) * rows, (steps + 1) * columns)


class Closed:
    """The closed equations of a deep linear net (``theory/feature_learning.md``), written out in numpy.

    g does not depend on the point, so G is (T, T), A (TP, T), B (T, TP), H (TP, TP), with e (TP,).
    """

    def __init__(self, gram, y, depth, rate, strength, steps):
        self.P, self.L, self.T = len(y), depth, steps + 1
        self.y, self.strength = np.tile(y, self.T), strength
        time = np.arange(self.T)
        self.memory = rate * (time[None, :] < time[:, None])
        self.at = np.repeat(np.eye(self.T), self.P, axis=0)  # (TP, T): which time a row belongs to
        self.H0 = np.kron(np.ones((self.T, self.T)), gram)

    def start(self):
        n, T, L = self.P * self.T, self.T, self.L
        H = [self.H0] + [np.zeros((n, n))] * L
        G = [None] + [np.zeros((T, T))] * L + [np.ones((T, T))]
        return H, G, [np.zeros((n, T))] * L, [np.zeros((T, n))] * (L + 1), np.zeros(n)

    def couplings(self, layer, H, G, A, B, e):
        C = A[layer - 1] + self.strength * (self.at @ self.memory) * (H[layer - 1] @ (e[:, None] * self.at))
        D = B[layer] + self.strength * ((self.memory * G[layer + 1]) @ self.at.T) * e
        return C, D

    def sweep(self, H, G, A, B, f):
        """The right-hand sides, all evaluated with the given left-hand sides."""
        e = (self.y - f) / self.P
        new = [list(H), list(G), list(A), list(B)]
        for layer in range(1, self.L + 1):
            C, D = self.couplings(layer, H, G, A, B, e)
            h = np.linalg.inv(np.eye(len(C)) - C @ D)
            g = np.linalg.inv(np.eye(self.T) - D @ C)
            new[0][layer] = h @ (H[layer - 1] + C @ G[layer + 1] @ C.T) @ h.T
            new[1][layer] = g @ (G[layer + 1] + D @ H[layer - 1] @ D.T) @ g.T
            if layer < self.L:
                new[2][layer] = h @ C
            if layer > 1:
                new[3][layer - 1] = g @ D
            if layer == self.L:
                f = np.sum((h @ (H[layer - 1] @ D.T + C @ G[layer + 1]) @ g.T) * self.at, axis=1) / self.strength
        return (*new, f)

    def solved(self):
        """By iteration: causality makes the map nilpotent about its fixed point, so it arrives exactly."""
        state = self.start()
        for _ in range(4 * self.T * self.L):
            before, state = state, self.sweep(*state)
            if all(np.array_equal(a, b) for old, new in zip(before, state, strict=True) for a, b in zip(old, new, strict=True)):
                return state
        raise AssertionError("the iteration has to end")


@pytest.fixture(scope="module", params=[2, 3])
def three_points(request):
    """lr 0.3, 8 steps, gamma0 1.2, three correlated points."""
    depth, steps = request.param, 8
    theory = tp.limit(tp.mlp(depth, tp.linear), tp.muP, tp.GradientDescent(0.3, steps))
    sol = tp.solve(theory, tp.Task(X, Y), 1.2, method="linear")
    H = [np.kron(np.ones((steps + 1, steps + 1)), GRAM)] + [
        stack(lambda t, s, layer=layer: sol.Phi(layer, t, s), steps, 3, 3) for layer in range(1, depth + 1)
    ]
    G = (
        [None]
        + [stack(lambda t, s, layer=layer: sol.G(layer, t, s)[:1, :1], steps, 1, 1) for layer in range(1, depth + 1)]
        + [np.ones((steps + 1,) * 2)]
    )
    return sol, Closed(GRAM, Y, depth, 0.3, 1.2, steps), H, G


def test_closed_equations_have_this_solution(three_points):
    sol, closed, H, G = three_points
    h, g, _, _, f = closed.solved()
    assert sol.f.ravel() == pytest.approx(f, abs=1e-10)
    for layer in range(1, closed.L + 1):
        assert H[layer] == pytest.approx(h[layer], abs=1e-10) and G[layer] == pytest.approx(g[layer], abs=1e-10)
        for t in range(sol.steps + 1):
            assert np.ptp(sol.G(layer, t, t)) < 1e-12, "gradients of a linear net are those of every point"


def test_residuals_of_the_closed_equations(three_points):
    """The solution's own kernels and responses, put into both sides."""
    sol, closed, H, G = three_points
    # g is the same for all points: only the sum over the sources matters in A, and B does not depend on the target
    A = [np.zeros((closed.T * 3, closed.T))]
    B = [np.zeros((closed.T, closed.T * 3))]
    for layer in range(1, closed.L):
        A.append(stack(lambda t, s, layer=layer: sol.A(layer, t, s).sum(axis=1, keepdims=True), sol.steps, 3, 1))
        B.append(stack(lambda t, s, layer=layer: sol.B(layer, t, s)[:1], sol.steps, 1, 3))
    B.append(np.zeros((closed.T, closed.T * 3)))
    h, g, a, b, f = closed.sweep(H, G, A, B, sol.f.ravel())
    assert f == pytest.approx(sol.f.ravel(), abs=1e-10)
    for layer in range(1, closed.L + 1):
        assert h[layer] == pytest.approx(H[layer], abs=1e-10) and g[layer] == pytest.approx(G[layer], abs=1e-10)
    for layer in range(1, closed.L):
        assert a[layer] == pytest.approx(A[layer], abs=1e-10) and b[layer] == pytest.approx(B[layer], abs=1e-10)


def test_lazy_limit_is_reached_as_gamma0_squared():
    """max |f - f_NTK| / gamma0^2 tends to a constant: the slope of its logarithm is 2."""
    theory, task = one_point()
    kernel = tp.solve(theory, task, 0.0, method="kernel")
    strengths = np.array([0.1, 0.05, 0.025, 0.0125])
    gaps = [np.abs(tp.solve(theory, task, g, method="linear").f - kernel.f).max() for g in strengths]
    slope = np.polyfit(np.log(strengths), np.log(gaps), 1)[0]
    assert slope == pytest.approx(2, abs=0.05)
    ratios = np.array(gaps) / strengths**2
    assert ratios[-1] == pytest.approx(ratios[-2], rel=0.01)


def test_zero_strength_is_the_kernel_limit():
    """The static NTK of a deep linear net is (L + 1) K^x."""
    theory = tp.limit(tp.mlp(3, tp.linear), tp.muP, tp.GradientDescent(0.2, 10))
    sol = tp.solve(theory, tp.Task(X, Y), 0.0)
    f = np.zeros(3)
    for t in range(11):
        assert sol.f[t] == pytest.approx(f, abs=1e-10)
        f = f + 0.2 * 4 * GRAM @ (Y - f) / 3


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_catapult_map_of_one_hidden_layer(strength):
    """f' = f + eta K D + eta^2 gamma0^2 f D^2, K' = K (1 + eta^2 gamma0^2 D^2) + 4 eta gamma0^2 f D, K_0 = 2, D = 1 - f.

    At the larger strength the loss first grows.
    """
    eta, steps = 0.2, 30
    sol = tp.solve(
        tp.limit(tp.mlp(1, tp.linear), tp.muP, tp.GradientDescent(eta, steps)), tp.Task([[1.0]], [1.0]), strength, method="linear"
    )
    f, K = 0.0, 2.0
    for t in range(steps + 1):
        assert sol.f[t, 0] == pytest.approx(f, abs=1e-10) and sol.ntk(t).item() == pytest.approx(K, abs=1e-10)
        d = 1 - f
        f, K = f + eta * K * d + (eta * strength * d) ** 2 * f, K * (1 + (eta * strength * d) ** 2) + 4 * eta * strength**2 * f * d


def test_catapult():
    """Above the edge of stability, eta K_0 > 2, the loss first grows, then falls while the kernel shrinks."""
    eta, strength, steps = 1.15, 1.5, 40
    sol = tp.solve(
        tp.limit(tp.mlp(1, tp.linear), tp.muP, tp.GradientDescent(eta, steps)), tp.Task([[1.0]], [0.1]), strength, method="linear"
    )
    f, K = 0.0, 2.0
    for t in range(steps + 1):
        assert sol.f[t, 0] == pytest.approx(f, abs=1e-9) and sol.ntk(t).item() == pytest.approx(K, abs=1e-9)
        d = 0.1 - f
        f, K = f + eta * K * d + (eta * strength * d) ** 2 * f, K * (1 + (eta * strength * d) ** 2) + 4 * eta * strength**2 * f * d
    assert sol.loss.max() > 1.5 * sol.loss[0] and sol.loss[-1] < 0.1 * sol.loss[0]
    assert sol.ntk(steps).item() < 2 / eta


def test_flow_conserves_one_hidden_layer():
    """K = 2 sqrt(1 + gamma0^2 f^2) under gradient flow; the linear method says how far its extrapolated steps are from it."""
    strength = 1.5
    theory = tp.limit(tp.mlp(1, tp.linear), tp.muP, tp.GradientFlow(2.0, 8))
    sol = tp.solve(theory, tp.Task([[1.0]], [1.0]), strength, method="linear")
    kernel = np.array([sol.ntk(t).item() for t in range(9)])
    # kernels are those of the finer run, not extrapolated: first order in its step of 1/512
    assert kernel == pytest.approx(2 * np.sqrt(1 + (strength * sol.f[:, 0]) ** 2), rel=5e-3)
    # df/dt = K (1 - f): by quadrature of dt = df / (K (1 - f))
    grid = np.linspace(0, 1, 20001)
    for t in range(1, 9):
        f = grid * sol.f[t, 0]
        time = np.trapezoid(1 / (2 * np.sqrt(1 + (strength * f) ** 2) * (1 - f)), f)
        slack = sol.stderr("f")[t, 0] / (2 * (1 - sol.f[t, 0]))
        assert time == pytest.approx(t * 0.25, abs=max(slack, 1e-6))


# matrices used more than once


def injected(x):
    """The input matrix acts in both layers: their sites are the same neurons."""
    U, W, b, w = tp.input_matrix("U"), tp.hidden_matrix("W"), tp.bias("b", 0.5), tp.readout("w")
    return w @ tp.linear(W @ tp.linear(U @ x + b) + U @ x + b)


def branched(x):
    """The first layer meets two matrices, one of which meets two layers."""
    U, W1, W2, w = tp.input_matrix("U"), tp.hidden_matrix("W1"), tp.hidden_matrix("W2"), tp.readout("w")
    first = tp.linear(U @ x)
    return w @ tp.linear(W2 @ first + W2 @ tp.linear(W1 @ first))


def tied(x):
    """One adjoint belongs to two uses of a matrix."""
    U, W, w = tp.input_matrix("U"), tp.hidden_matrix("W"), tp.readout("w")
    first = tp.linear(U @ x)
    return w @ tp.linear(W @ first + W @ tp.linear(W @ first))


def autoencoded(x):
    """The transposed matrix reads what the matrix returned, with nothing in between."""
    U, W, w = tp.input_matrix("U"), tp.hidden_matrix("W"), tp.readout("w")
    return w @ tp.linear(W.T @ (W @ tp.linear(U @ x)))


@pytest.mark.parametrize("network", [tied, *(pytest.param(long, marks=pytest.mark.slow) for long in (injected, branched, autoencoded))])
def test_exact_sites_agree_with_samples(network):
    theory, task = tp.limit(tp.program(network), tp.muP, tp.GradientDescent(0.4, 3)), tp.Task(X[:2], Y[:2])
    exact = tp.solve(theory, task, method="linear")
    sampled = tp.solve(theory, task, replicates=2, method=tp.March(bias=False))
    # sampling errors are about 1e-4; sites taken for different neurons make 0.05 of it
    assert exact.success and exact.f == pytest.approx(sampled.f, abs=2e-3)
    fixed = tp.solve(theory, task, method="fixed_point")
    # the iteration stops at a residual of 1e-6
    assert fixed.success and fixed.f == pytest.approx(exact.f, abs=1e-5)


@pytest.mark.parametrize("network", [branched, tied, autoencoded])
def test_formal_responses_act_like_whitened_ones(network, monkeypatch):
    """Sum over opposite vectors of response times covariance: entries of singular kernels differ, the action must not."""
    found = []

    def compared(run, prepared, gamma0, stride):
        formal = formal_responses(prepared, run, gamma0)
        times = range(len(run.f))
        for facing in run.kernels.values():
            matrix, up = facing.side.matrix, facing.side.side == "above"
            here, there = ([Product("", matrix, v, t) for v in side.variables] for side, t in ((facing.side, up), (facing.other, not up)))
            entries = np.block([[formal.response(p, q, t, s) for s in times for q in there] for t in times for p in here])
            covariance = run.kernels[facing.other.key].covariance
            found.append(((entries @ covariance), facing.response / prepared.columns.scales[matrix] ** 2 @ covariance))

    monkeypatch.setattr(fixed_point, "_exact_responses", compared)
    theory, task = tp.limit(tp.program(network), tp.muP, tp.GradientDescent(0.4, 3)), tp.Task(X[:2], Y[:2])
    assert tp.solve(theory, task, method="fixed_point").success
    for formal, whitened in found:
        # double precision, after a truncation of 1e-13 of the variance
        assert np.abs(whitened).max() > 0.1 and formal == pytest.approx(whitened, abs=1e-6)
