"""Identities of the feature-learning limit that need no simulation, and limits that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.integrate import solve_ivp
from scipy.special import erf
from scipy.stats import t as student_t

import tp_solver as tp

GRAM = np.array([[1, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]])
X = np.sqrt(3) * np.linalg.cholesky(GRAM)
Y = np.array([1.0, -1.0, 0.5])
TASK = tp.Task(X, Y)
STEPS = 8
DESCENT = tp.GradientDescent(0.4, STEPS)


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


def solved(net, strength=1.2, training=DESCENT, task=TASK, **options):
    return tp.solve(tp.limit(net, tp.muP, training), task, strength, **options)


# gamma0 -> 0


def test_march_reaches_the_kernel_limit_as_gamma0_squared():
    net = tp.mlp(2, tp.tanh)
    kernel = solved(net, 0.0, method="kernel")
    strengths = (0.4, 0.2, 0.1)
    gaps = []
    for g in strengths:
        sol = solved(net, g, replicates=8, method=tp.March(bias=False))
        gaps.append(rms(sol.f - kernel.f))
    slope = np.polyfit(np.log(strengths), np.log(gaps), 1)[0]
    # 2 in the limit; the sampling error of the last gap is a tenth of it
    assert slope >= 1.7
    assert gaps[0] > 0.005, "features are learned"


def test_noise_does_not_grow_as_gamma0_falls():
    """The antithetic readout removes what 1/gamma0 would amplify."""
    net = tp.mlp(2, tp.tanh)
    sol = solved(net, 0.05, replicates=8, method=tp.March(bias=False))
    noise = rms(np.sqrt(8) * sol.stderr("f"))
    assert noise < 0.002, "of one replicate of 4096 samples"
    assert np.abs(sol.f[0]).max() < 1e-12, "the initial function vanishes exactly"
    assert sol.f == pytest.approx(solved(net, 0.0, method="kernel").f, abs=0.005)


# identities of one site


def test_homogeneous_linear_layers_carry_the_output():
    """<h_mu g_mu> = gamma0 f_mu in every layer."""
    sol = solved(tp.mlp(3, tp.linear), method="linear")
    for t in (0, STEPS):
        for layer in (1, 2, 3):
            h, z = sol.fields(layer, t)
            assert np.mean(h * z, axis=0) == pytest.approx(1.2 * sol.f[t], abs=1e-12)


@pytest.fixture(scope="module")
def relu():
    return solved(tp.mlp(2, tp.relu), method=tp.March(times=(0, 3, STEPS), bias=False))


def test_homogeneous_rectified_layers_carry_the_output(relu):
    """As for linear layers, with g = phi'(h) z; in the last layer by construction, below it by the layer transfer."""
    for t in (0, 3, STEPS):
        for layer in (1, 2):
            h, z = relu.fields(layer, t)
            assert np.mean(np.maximum(h, 0) * z, axis=0) == pytest.approx(1.2 * relu.f[t], abs=0.003), (layer, t)
    # independent samples, as many as there are sites, would scatter by 0.01 and more
    assert np.abs(relu.f[STEPS]).min() > 0.1


def test_layer_transfer(relu):
    """<h^2 g^2> = <phi(h^1) z^1> for all pairs of points; sampled up to responses that vanish in law."""
    for sol, slope, phi, slack in (
        (relu, lambda h: (h > 0) * 1.0, lambda h: np.maximum(h, 0), 0.005),
        (solved(tp.mlp(2, tp.linear), method="linear"), np.ones_like, lambda h: h, 1e-10),
    ):
        h1, z1 = sol.fields(1, STEPS)
        h2, z2 = sol.fields(2, STEPS)
        transferred = phi(h1).T @ z1 / len(h1)
        assert np.abs(transferred).min() > 0.1
        assert h2.T @ (slope(h2) * z2) / len(h2) == pytest.approx(transferred, abs=slack)
    assert relu.details["transfer identity"] < 0.01


@pytest.fixture(scope="module")
def every_time():
    return solved(tp.mlp(2, tp.tanh), method=tp.March(tol=1e-3, times=tuple(range(STEPS + 1)), bias=False))


def test_responses_explain_what_the_initial_matrix_correlates(every_time):
    """<phi(h^1(t)) xi^1(s)> = A G^2 + Phi^1 B^T at all pairs of times, with xi = z less what the matrix has learned."""
    sol, T = every_time, STEPS + 1
    phi = [np.tanh(sol.fields(1, t).h) for t in range(T)]
    e = (Y - sol.f) / 3
    sites = len(phi[0])
    block = {
        (n, t, s): getattr(sol, n)(*((2,) if n == "G" else (1,)), t, s) for n in ("Phi", "G", "A", "B") for t in range(T) for s in range(T)
    }
    left, right = [], []
    for s in range(T):
        learned = sum(0.4 * 1.2 * phi[q] @ (block["G", s, q] * e[q]).T for q in range(s))
        xi = sol.fields(1, s).z - learned
        for t in range(T):
            left.append(phi[t].T @ xi / sites)
            right.append(sum(block["A", t, q] @ block["G", q, s] + block["Phi", t, q] @ block["B", s, q].T for q in range(T)))
    # the responses to what only comes later are zero in law, and sampling noise in the left-hand side
    assert rms(np.subtract(left, right)) < 0.01 * rms(left)
    without = [np.zeros_like(r) for r in right]
    assert rms(np.subtract(left, without)) > 0.5 * rms(left)


def test_equal_time_response_is_the_mean_curvature(every_time):
    """B(t, t) is diagonal, <phi''(h^2) z^2>, and nothing responds to what comes later.

    At t = 1 the few gradients met so far are far from dependent, so that single entries of B have a meaning.
    """
    sol = every_time
    h, z = sol.fields(2, 1)
    curvature = np.mean(-2 * np.tanh(h) / np.cosh(h) ** 2 * z, axis=0)
    assert np.abs(curvature).max() > 0.09
    assert sol.B(1, 1, 1) == pytest.approx(np.diag(curvature), abs=0.025)
    for t in (1, 4, STEPS):
        assert not sol.B(1, t - 1, t).any() and not sol.A(1, t, t).any() and not sol.A(1, t - 1, t).any()


# exact limits


def quadrature(function, slope, y, strength, lr, steps):
    """One hidden layer, one point with unit input: a particle per (u, r), averaged by Gauss-Hermite quadrature.

    h' = h + gamma0 lr e phi'(h) z, z' = z + gamma0 lr e phi(h), f = <z phi(h)> / gamma0, e = y - f.
    """
    nodes, weights = hermegauss(160)
    h, z = (a.ravel() for a in np.meshgrid(nodes, nodes))
    w = np.outer(weights, weights).ravel() / (2 * np.pi)
    out = []
    for _ in range(steps + 1):
        f = w @ (z * function(h)) / strength
        out.append(f)
        step = strength * lr * (y - f)
        h, z = h + step * slope(h) * z, z + step * function(h)
    return np.array(out)


@pytest.mark.parametrize(
    ("activation", "function", "slope"),
    [
        (tp.tanh, np.tanh, lambda h: 1 / np.cosh(h) ** 2),
        (tp.erf, erf, lambda h: 2 / np.sqrt(np.pi) * np.exp(-(h**2))),
    ],
    ids=["tanh", "erf"],
)
def test_one_hidden_layer_is_a_double_integral(activation, function, slope):
    """Every step, the first included, to three standard errors of the march."""
    exact = quadrature(function, slope, 1.0, 1.2, 0.6, 12)
    sol = solved(tp.mlp(1, activation), training=tp.GradientDescent(0.6, 12), task=tp.Task([[1.0]], [1.0]))
    assert np.abs(exact[-1]) > 0.8
    assert np.all(np.abs(sol.f[:, 0] - exact) <= 3 * sol.stderr("f")[:, 0] + 1e-9)
    assert rms(sol.stderr("f")) < 5e-4


# gradient flow


def balance(sol, t):
    """tr (K^x)^-1 H - <z^2> of one hidden layer."""
    h, z = sol.fields(1, t)
    return np.trace(np.linalg.solve(GRAM, h.T @ h)) / len(h) - np.mean(z[:, 0] ** 2)


def test_gradient_flow_keeps_layers_balanced():
    """The drift of the conserved quantity is that of the Euler steps: first order, so twice the steps halve it."""
    drifts = []
    for substeps in (16, 32):
        sol = solved(tp.mlp(1, tp.linear), training=tp.GradientFlow(4.0, 4), method=tp.Linear(substeps=substeps))
        drifts.append(balance(sol, 4) - balance(sol, 0))
        assert abs(sol.Phi(1, 4, 4) - GRAM).max() > 0.3, "the layers do move"
    assert abs(drifts[1]) < 0.02
    assert drifts[0] / drifts[1] == pytest.approx(2, abs=0.1)


def test_rectified_layers_stay_balanced_too():
    """d <|w_0|^2> = d <z^2> for every homogeneous activation: with unit inputs |w_0|^2 = h^2."""
    sol = solved(
        tp.mlp(1, tp.relu), training=tp.GradientFlow(3.0, 3), task=tp.Task([[1.0]], [1.0]), method=tp.March(substeps=16, bias=False)
    )
    (h0, z0), (h1, z1) = sol.fields(1, 0), sol.fields(1, 3)
    grown = np.mean(h1**2) - np.mean(h0**2)
    # each site conserves h^2 - z^2 up to the Euler steps
    assert grown > 0.2 and np.mean(z1**2) - np.mean(z0**2) == pytest.approx(grown, abs=0.02)


def test_gradient_flow_converges_at_second_order():
    """Euler steps extrapolated once: halving the step divides the error by four (order 2 +- 0.1)."""
    net, flow = tp.mlp(2, tp.linear), tp.GradientFlow(2.0, 4)
    reference = solved(net, training=flow, method=tp.Linear(substeps=256))
    counts = np.array([8, 16, 32])
    sols = [solved(net, training=flow, method=tp.Linear(substeps=int(n))) for n in counts]
    errors = [np.abs(s.f - reference.f).max() for s in sols]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(2, abs=0.1)
    for s, error in zip(sols, errors, strict=True):
        assert error <= s.stderr("f").max(), "the stated error holds"


def test_gradient_flow_against_a_flow_known_otherwise():
    """One hidden linear layer and one point: s = <h z> and q = <h^2> + <z^2> obey s' = gamma0 e q, q^2 - 4 s^2 = 4, f = s / gamma0."""
    strength, y, end = 1.2, 1.0, 2.0
    exact = solve_ivp(
        lambda _, s: (strength * y - s) * np.sqrt(4 + 4 * s**2), (0, end), [0.0], method="DOP853", rtol=1e-12, atol=1e-14,
        t_eval=np.linspace(0, end, 5),
    ).y[0] / strength  # fmt: skip
    counts = np.array([8, 16, 32, 64])
    task, flow = tp.Task([[1.0]], [y]), tp.GradientFlow(end, 4)
    errors = [
        np.abs(solved(tp.mlp(1, tp.linear), strength, flow, task, method=tp.Linear(substeps=int(n))).f[:, 0] - exact).max() for n in counts
    ]
    assert exact[-1] > 0.9 and errors[-1] < 1e-3
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(2, abs=0.1)


def test_the_march_integrates_the_same_flow():
    net, flow = tp.mlp(2, tp.linear), tp.GradientFlow(2.0, 4)
    exact = solved(net, training=flow, method=tp.Linear(substeps=64))
    sol = solved(net, training=flow, samples=512, replicates=2, method=tp.March(tol=1e-12, substeps=8, bias=False))
    assert np.all(np.abs(sol.f - exact.f) <= sol.stderr("f") + 1e-9) and sol.stderr("f").max() < 0.02


# what the error bars hold


def test_the_error_bar_holds_truncation_and_bias():
    """Against 8 times the samples and a tenth of the tolerance; all times and points are nearly one random number, and four replicates
    know their scatter with three degrees of freedom, hence Student's quantile (coverage over repeats: test_coverage.py)."""
    net = tp.mlp(2, tp.tanh)
    fine = solved(net, samples=8192, replicates=2, method=tp.March(tol=1e-4, bias=False))
    sol = solved(net, samples=1024, method=tp.March(tol=1e-2))
    assert set(sol.details["biases"]) == {"finite samples", "truncation"}
    coarse = solved(net, samples=1024, method=tp.March(tol=0.2))
    assert rms(coarse.f - fine.f) <= student_t.ppf(0.975, 3) * rms(coarse.stderr("f"))
    assert coarse.details["errors"]["truncation"] > 2 * sol.details["errors"]["truncation"]
    assert rms(sol.f - fine.f) <= student_t.ppf(0.975, 3) * rms(sol.stderr("f")) < 0.01
