"""Uncertainty of wide networks: every closed form against descent on sampled linear models, and on linearised finite nets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf
from scipy.integrate import solve_ivp

import tp_solver as tp
from tp_solver.errors import InputError
from tp_solver.kernel_regime.compute import kernels
from tp_solver.kernel_regime.uncertainty import (
    affine_law,
    anchored_ensemble,
    compare_uncertainties,
    deep_ensemble,
    nngp_posterior,
    ntk_gp,
    random_network_distillation,
    randomised_prior,
    sample_then_optimise,
)

P, TEST, D = 6, 8, 5
SW, SB = 1.4, 0.3
NOISE = 0.1
RNG = np.random.default_rng(4)
X, X_TEST = RNG.standard_normal((P, D)), RNG.standard_normal((TEST, D))
ALL = np.concatenate([X, X_TEST])
Y = np.array([1.0, -1.0, 0.5, -0.5, 2.0, 0.0])
NET = tp.mlp(depth=2, activation=tp.erf, bias=SB, bias_rate=SB**2)
PARAMETERIZATION = tp.ntk.times(SW)


@cache
def joint():
    return kernels(NET, PARAMETERIZATION, ALL)


# Monte Carlo: linear models f = f_0 + F w, trained by gradient descent from w = 0 --------------------------------------

DRAWS = 20_000
"""Standard error of a variance: 1 %, a fifth of the tolerance."""


def root(kernel):
    values, vectors = np.linalg.eigh(kernel)
    return vectors * np.sqrt(np.maximum(values, 0))


def gaussian(kernel, rng, draws=DRAWS):
    return rng.standard_normal((draws, len(kernel))) @ root(kernel).T


def descend(features, start, targets, ridge=0.0):
    """Descent in the weights on |f(X) - targets|^2 / 2 + ridge |w|^2 / 2, to a gradient of 1e-6: f at the test points.

    Args:
        features: (P + TEST, weights); start: f_0 per draw, (draws, P + TEST); targets: (P,) or (draws, P).
    """
    trained = features[:P]
    rate = 1.0 / (np.linalg.norm(trained, 2) ** 2 + ridge)
    w = np.zeros((len(start), features.shape[1]))
    for _ in range(20_000):
        slope = (start[:, :P] + w @ trained.T - targets) @ trained + ridge * w
        if np.abs(slope).max() < 1e-6:
            return start[:, P:] + w @ features[P:].T
        w -= rate * slope
    raise AssertionError("the descent did not converge")


def assert_sampled(prediction, f, tolerance=0.05, sigmas=4.0):
    """Variances within the tolerance, the mean and covariances within so many standard errors."""
    draws = len(f)
    sampled = np.cov(f.T)
    v = prediction.variance
    assert np.abs(np.diagonal(sampled) / v - 1).max() <= tolerance
    assert np.all(np.abs(f.mean(axis=0) - prediction.mean) <= sigmas * np.sqrt(v / draws))
    error = np.sqrt((prediction.covariance**2 + np.outer(v, v)) / draws)
    assert np.all(np.abs(sampled - prediction.covariance) <= sigmas * error)


def noisy(rng, variance):
    return Y + np.sqrt(variance) * rng.standard_normal((DRAWS, P))


def sampled_deep_ensemble(rng):
    return descend(root(joint().ntk), gaussian(joint().nngp, rng), Y)


def sampled_last_layer(rng):
    return descend(root(joint().nngp), gaussian(joint().nngp, rng), Y)


def sampled_last_layer_with_noise(rng):
    return descend(root(joint().nngp), gaussian(joint().nngp, rng), noisy(rng, NOISE), NOISE)


def sampled_randomised_prior(rng):
    start = gaussian(joint().nngp, rng) + gaussian(joint().ntk - joint().nngp, rng)
    return descend(root(joint().ntk), start, Y)


def sampled_randomised_prior_with_noise(rng):
    start = gaussian(joint().nngp, rng) + gaussian(joint().ntk - joint().nngp, rng)
    return descend(root(joint().ntk), start, noisy(rng, NOISE), NOISE)


def sampled_anchored(rng):
    return descend(root(joint().ntk), gaussian(joint().nngp, rng), noisy(rng, NOISE), NOISE)


def sampled_distillation(rng):
    """The predictor learns the target's outputs on X; what is left at the test points is the error."""
    target = gaussian(joint().nngp, rng)
    return descend(root(joint().ntk), gaussian(joint().nngp, rng), target[:, :P]) - target[:, P:]


@dataclass(frozen=True)
class Case:
    name: str
    closed_form: Callable
    sampled: Callable


CASES = [
    Case("deep ensemble", lambda k: deep_ensemble(k, Y), sampled_deep_ensemble),
    Case("sample then optimise", lambda k: sample_then_optimise(k, Y), sampled_last_layer),
    Case("NNGP posterior", lambda k: nngp_posterior(k, Y), sampled_last_layer),
    Case("NNGP posterior, noise", lambda k: nngp_posterior(k, Y, NOISE), sampled_last_layer_with_noise),
    Case("NTK-GP posterior", lambda k: ntk_gp(k, Y), sampled_randomised_prior),
    Case("randomised prior", lambda k: randomised_prior(k, Y), sampled_randomised_prior),
    Case("NTK-GP posterior, noise", lambda k: ntk_gp(k, Y, NOISE), sampled_randomised_prior_with_noise),
    Case("anchored ensemble", lambda k: anchored_ensemble(k, Y, NOISE), sampled_anchored),
    Case("distillation", lambda k: random_network_distillation(k, P), sampled_distillation),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_closed_forms_against_descent_on_linear_models(case):
    """Card B2: variances within 5 %, here at every test point and with the whole covariance."""
    assert_sampled(case.closed_form(joint()), case.sampled(np.random.default_rng(1)))


def test_distillation_has_twice_the_ensemble_variance():
    """Card B2, by Monte Carlo on both sides: 2.0 +- 0.1."""
    ensemble = sampled_deep_ensemble(np.random.default_rng(2)).var(axis=0)
    error = (sampled_distillation(np.random.default_rng(3)) ** 2).mean(axis=0)
    assert np.mean(error / ensemble) == pytest.approx(2.0, abs=0.1)
    closed = random_network_distillation(joint(), P).variance / deep_ensemble(joint(), Y).variance
    assert closed == pytest.approx(2.0, abs=1e-12)


def test_ensembles_during_training():
    """Flow by an integrator and descent by steps, on draws of the initial function; and the limit of long training."""
    k, rng = joint(), np.random.default_rng(5)
    f0 = gaussian(k.nngp, rng)
    reach = k.ntk[:, :P] / P
    flow = solve_ivp(lambda _, f: ((Y - f.reshape(DRAWS, -1)[:, :P]) @ reach.T).reshape(-1), (0, 4.0), f0.reshape(-1), rtol=1e-7, atol=1e-9)
    assert_sampled(deep_ensemble(k, Y, tp.GradientFlow(time=4.0, steps=3)), flow.y[:, -1].reshape(DRAWS, -1)[:, P:])
    f = f0
    for _ in range(7):
        f = f + 0.5 * (Y - f[:, :P]) @ reach.T
    assert_sampled(deep_ensemble(k, Y, tp.GradientDescent(lr=0.5, steps=7)), f[:, P:])
    late, end = deep_ensemble(k, Y, tp.GradientFlow(time=2000.0, steps=1)), deep_ensemble(k, Y)
    assert late.mean == pytest.approx(end.mean, abs=1e-9)
    assert late.covariance == pytest.approx(end.covariance, abs=1e-9)
    early = random_network_distillation(k, P, tp.GradientFlow(time=4.0, steps=1))
    assert early.variance == pytest.approx(2 * deep_ensemble(k, Y, tp.GradientFlow(time=4.0, steps=1)).variance, rel=1e-12)


# Monte Carlo on finite nets, linearised where they start ----------------------------------------------------------------


def net_function(params, x):
    """f and the features of the readout, written out by hand."""
    w0, b1, w1, b2, w2 = params
    n = len(w2)
    h1 = SW * x @ w0.T / jnp.sqrt(D) + SB * b1
    h2 = SW * erf(h1) @ w1.T / jnp.sqrt(n) + SB * b2
    features = SW * erf(h2) / jnp.sqrt(n)
    return features @ w2, features


def draw_params(key, width):
    keys = jax.random.split(key, 5)
    shapes = ((width, D), (width,), (width, width), (width,), (width,))
    return tuple(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))


def linearised(width, key):
    """f_0, a frozen random function, the tangent kernel and the readout's part of it, of one net."""
    start, other = jax.random.split(key)
    params, x = draw_params(start, width), jnp.asarray(ALL)
    f0, features = net_function(params, x)
    w0, b1, w1, b2, w2 = params
    # products with df/dtheta for all points at once: adjoints of both fields
    h1 = SW * x @ w0.T / jnp.sqrt(D) + SB * b1
    h2 = SW * erf(h1) @ w1.T / jnp.sqrt(width) + SB * b2
    slope = lambda h: 2 / jnp.sqrt(jnp.pi) * jnp.exp(-(h**2))  # noqa: E731
    d2 = SW * w2 * slope(h2) / jnp.sqrt(width)
    d1 = SW * (d2 @ w1) * slope(h1) / jnp.sqrt(width)
    last = features @ features.T
    ntk = last + (d2 @ d2.T) * (SW**2 * erf(h1) @ erf(h1).T / width + SB**2) + (d1 @ d1.T) * (SW**2 * x @ x.T / D + SB**2)
    # He et al.: delta(x) = df/dtheta(x) theta', theta' random, zero in the readout
    direction = (*draw_params(other, width)[:-1], jnp.zeros(width))
    frozen = jax.jvp(lambda p: net_function(p, x)[0], (params,), (direction,))[1]
    return f0, frozen, ntk, last


def test_the_linearised_nets_are_linearised():
    """The products written out above against the Jacobian, in single precision like the nets."""
    key = jax.random.key(0)
    _, _, ntk, last = jax.jit(linearised, static_argnums=0)(8, key)
    params = draw_params(jax.random.split(key)[0], 8)
    jacobian = jax.jit(jax.jacobian(lambda p: net_function(p, jnp.asarray(ALL))[0]))(params)
    parts = [np.asarray(j).reshape(len(ALL), -1) for j in jacobian]
    assert np.asarray(ntk) == pytest.approx(sum(j @ j.T for j in parts), abs=1e-5 * float(ntk.max()))
    assert np.asarray(last) == pytest.approx(parts[-1] @ parts[-1].T, abs=1e-5 * float(last.max()))


@cache
def linearised_nets(width, draws):
    batch = jax.jit(lambda keys: jax.lax.map(lambda key: linearised(width, key), keys, batch_size=20))
    return [np.asarray(a).astype(float) for a in batch(jax.random.split(jax.random.key(7), draws))]


def train_linearised(kernel, start, targets, ridge=0.0, steps=3000):
    """Descent on every linearised net, each with its own kernel (draws, all, all): theta - theta_0 = J^T c, c moved by descent."""
    with jax.enable_x64(True):
        own, cross = jnp.asarray(kernel[:, :P, :P]), jnp.asarray(kernel[:, P:, :P])
        rate = 1.0 / (jnp.trace(own, axis1=1, axis2=2) + ridge)[:, None]
        residual = lambda c: jnp.asarray(start[:, :P]) + jnp.einsum("npq,nq->np", own, c) - targets  # noqa: E731
        step = lambda _, c: c - rate * (residual(c) + ridge * c)  # noqa: E731
        c = jax.jit(lambda c: jax.lax.fori_loop(0, steps, step, c))(jnp.zeros((len(start), P)))
        assert np.abs(residual(c) + ridge * c).max() < 1e-3
        return start[:, P:] + np.einsum("npq,nq->np", cross, np.asarray(c))


def check_finite_nets(width, draws, tolerance):
    """Mean over test points of the variance ratio to the closed forms, for every ensemble."""
    f0, frozen, ntk, last = linearised_nets(width, draws)
    rng = np.random.default_rng(8)
    noise = Y + np.sqrt(NOISE) * rng.standard_normal((draws, P))
    k, other = joint(), np.roll(f0, 1, axis=0)
    trained = {
        "deep ensemble": (deep_ensemble(k, Y), train_linearised(ntk, f0, Y)),
        "readout alone": (sample_then_optimise(k, Y), train_linearised(last, f0, Y)),
        "readout alone, noise": (nngp_posterior(k, Y, NOISE), train_linearised(last, f0, noise, NOISE)),
        "randomised prior": (ntk_gp(k, Y), train_linearised(ntk, f0 + frozen, Y)),
        "anchored": (anchored_ensemble(k, Y, NOISE), train_linearised(ntk, f0, noise, NOISE)),
        "distillation": (random_network_distillation(k, P), train_linearised(ntk, f0, other[:, :P]) - other[:, P:]),
    }
    ratios = {name: float(np.mean(f.var(axis=0) / p.variance)) for name, (p, f) in trained.items()}
    assert all(abs(r - 1) <= tolerance for r in ratios.values()), ratios
    twice = np.mean((trained["distillation"][1] ** 2).mean(axis=0) / trained["deep ensemble"][1].var(axis=0))
    assert twice == pytest.approx(2.0, abs=0.1)


@pytest.mark.slow
def test_closed_forms_against_linearised_nets():
    """Card B2 at width 256: variances within 5 % (mean over test points; 2000 nets), distillation over ensemble 2.0 +- 0.1."""
    check_finite_nets(256, 2000, 0.05)


@pytest.mark.slow
def test_closed_forms_against_wider_linearised_nets():
    """The same at width 512."""
    check_finite_nets(512, 2000, 0.05)


# identities --------------------------------------------------------------------------------------------------------------


def test_no_variance_is_left_at_the_training_points():
    """Without noise, relative to the prior variance: below 1e-10; the mean is the labels."""
    k = kernels(NET, PARAMETERIZATION, np.concatenate([X, X]))
    for prediction in (
        nngp_posterior(k, Y), sample_then_optimise(k, Y), deep_ensemble(k, Y), ntk_gp(k, Y), randomised_prior(k, Y)
    ):  # fmt: skip
        assert prediction.mean == pytest.approx(Y, abs=1e-10)
        assert np.abs(prediction.covariance).max() <= 1e-10 * k.nngp.max()
    distilled = random_network_distillation(k, P)
    assert np.abs(distilled.covariance).max() <= 1e-10 * k.nngp.max() and not distilled.mean.any()
    held = anchored_ensemble(k, Y, NOISE)
    assert held.variance.min() > 0.01 and np.abs(held.mean - Y).max() > 0.01


def test_ensembles_that_are_posteriors():
    """Training from a sample of the prior with its own kernel samples the posterior (Bayes' rule is another computation)."""
    k = joint()
    for noise in (0.0, NOISE):
        for ensemble, posterior in ((sample_then_optimise, nngp_posterior), (randomised_prior, ntk_gp)):
            assert ensemble(k, Y, noise).mean == pytest.approx(posterior(k, Y, noise).mean, abs=1e-12)
            assert ensemble(k, Y, noise).covariance == pytest.approx(posterior(k, Y, noise).covariance, abs=1e-12)
    law = affine_law("by hand", k.ntk, k.nngp, Y)
    assert law.covariance == pytest.approx(deep_ensemble(k, Y).covariance, abs=1e-14)


def test_the_deep_ensemble_is_no_posterior():
    """It has neither the NNGP's nor the NTK's variance, and the NTK-GP's mean."""
    k = joint()
    ensemble = deep_ensemble(k, Y)
    assert ensemble.mean == pytest.approx(ntk_gp(k, Y).mean, abs=1e-12)
    for posterior in (nngp_posterior(k, Y), ntk_gp(k, Y)):
        assert np.abs(ensemble.variance / posterior.variance - 1).min() > 0.01
    assert "no posterior" in ensemble.meaning and "no posterior" in str(ensemble)


def test_the_table_prints_the_ordering():
    table = compare_uncertainties(joint(), Y, NOISE)
    assert [p.name.split(",")[0] for p in table] == [
        "NNGP posterior", "sample-then-optimise", "deep ensemble", "NTK posterior", "randomised prior", "anchored ensemble",
        "random network distillation",
    ]  # fmt: skip
    rows = str(table).splitlines()
    assert len(rows) == 2 + 7
    ratio = np.mean(table.predictions[2].variance / table.predictions[0].variance)
    assert f"{ratio:.3f}" in rows[4]
    assert len(compare_uncertainties(joint(), Y).predictions) == 6


def test_several_outputs_and_gamma0():
    k = joint()
    both = deep_ensemble(k, np.stack([Y, -2 * Y], axis=1), gamma0=2.0)
    one = deep_ensemble(k, Y)
    assert both.mean == pytest.approx(np.stack([one.mean, -2 * one.mean], axis=1), abs=1e-13)
    assert both.covariance == pytest.approx(one.covariance / 4, abs=1e-13)
    assert random_network_distillation(k, P, gamma0=2.0).covariance == pytest.approx(one.covariance / 2, abs=1e-13)


def test_a_prediction_prints_and_draws(tmp_path):
    x = np.linspace(-2, 2, 25)[:, None]
    X1 = np.array([[-1.5], [0.3], [1.2]])
    prediction = nngp_posterior(kernels(NET, PARAMETERIZATION, np.concatenate([X1, x])), Y[:3], 0.01)
    text = str(prediction)
    assert "NNGP posterior, noise 0.01: 25 test points, 1 output" in text
    assert f"{prediction.mean[3]:.4g}" in text and f"{prediction.std[3]:.4g}" in text and "condition number" in text
    low, high = prediction.interval(0.95)
    assert high - low == pytest.approx(2 * 1.959964 * prediction.std, rel=1e-6)
    figure = prediction.plot(x, tmp_path / "posterior.png", X=X1, y=Y[:3])
    assert (tmp_path / "posterior.png").stat().st_size > 1000
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx(prediction.mean)
    with pytest.raises(InputError, match=r"x: got shape \(24, 1\)"):
        prediction.plot(x[1:])
    with pytest.raises(InputError, match="path"):
        prediction.plot(x, tmp_path / "figure.txt")
    with pytest.raises(InputError, match="existing folder"):
        prediction.plot(x, tmp_path / "none" / "figure.png")
    with pytest.raises(InputError, match="coverage"):
        prediction.interval(1.0)


# what is refused ---------------------------------------------------------------------------------------------------------

METHODS = [nngp_posterior, ntk_gp, deep_ensemble, sample_then_optimise, randomised_prior, lambda k, y: anchored_ensemble(k, y, 0.1)]


def changed(**parts):
    return SimpleNamespace(**{"nngp": joint().nngp, "ntk": joint().ntk, **parts})


@pytest.mark.parametrize("method", METHODS)
def test_bad_kernels_and_labels(method):
    skew = joint().ntk.copy()
    skew[0, 1] += 0.1
    for bad, match in (
        (changed(ntk=skew), "ntk: got an asymmetric matrix"),
        (changed(nngp=joint().nngp - 1.0 * np.eye(len(ALL))), "nngp: got a matrix whose lowest eigenvalue is -"),
        (changed(ntk=joint().ntk[:-1, :-1]), r"ntk: got shape \(13, 13\)"),
        (changed(nngp=joint().nngp * np.nan), "nngp: got a non-finite entry"),
        (joint().ntk, "kernels: got"),
    ):
        with pytest.raises(InputError, match=match):
            method(bad, Y)
    with pytest.raises(InputError, match="y: got 14 labels for 14 points"):
        method(joint(), np.zeros(14))
    with pytest.raises(InputError, match="y: got a non-finite entry"):
        method(joint(), Y * np.nan)


@pytest.mark.parametrize("method", METHODS[:-1])
def test_coincident_training_points(method):
    twice = kernels(NET, PARAMETERIZATION, np.concatenate([X, X[:1], X_TEST]))
    with pytest.raises(InputError, match="points 0 and 6 coincide"):
        method(twice, np.append(Y, 3.0))
    assert method(twice, np.append(Y, Y[0])).mean == pytest.approx(method(joint(), Y).mean, abs=1e-6)


def test_an_initial_function_that_training_cannot_move():
    """A kernel that sees one direction of the inputs, and initial functions that use all of them."""
    ntk = np.outer(ALL[:, 0], ALL[:, 0])
    with pytest.raises(InputError, match="initial function does not fit"):
        deep_ensemble(changed(ntk=ntk), 2 * X[:, 0])
    flow = deep_ensemble(changed(ntk=ntk), 2 * X[:, 0], tp.GradientFlow(time=1e6, steps=1))
    assert flow.mean == pytest.approx(2 * X_TEST[:, 0], abs=1e-9)


def test_bad_arguments():
    k = joint()
    cases = (
        (lambda: nngp_posterior(k, Y, -1.0), "noise: got -1"),
        (lambda: ntk_gp(k, Y, "0.1"), "noise: got '0.1'"),
        (lambda: sample_then_optimise(k, Y, np.nan), "noise"),
        (lambda: randomised_prior(k, Y, -1.0), "noise"),
        (lambda: anchored_ensemble(k, Y, 0.0), r"penalty: got 0.*deep_ensemble"),
        (lambda: deep_ensemble(k, Y, gamma0=0.0), "gamma0"),
        (lambda: deep_ensemble(k, Y, tp.GradientDescent), "training: got the class"),
        (lambda: deep_ensemble(k, Y, tp.GradientFlow(time=1.0, steps=1, loss=tp.Logistic())), "squared error"),
        (lambda: deep_ensemble(k, Y, tp.GradientDescent(lr=(0.1, 0.1, 0.1), steps=2)), "training.lr"),
        (lambda: deep_ensemble(k, Y, tp.GradientDescent(lr=100.0, steps=5000)), "diverges"),
        (lambda: random_network_distillation(k, 0), "points: got 0"),
        (lambda: random_network_distillation(k, 14), "14 labels for 14 points"),
        (lambda: randomised_prior(changed(ntk=k.nngp / 2), Y), "ntk - nngp: got a matrix whose lowest eigenvalue"),
        (lambda: affine_law("x", k.ntk, k.nngp[:-1, :-1], Y), "start: got shape"),
        (lambda: affine_law("x", k.ntk, k.nngp, Y, ridge=-1.0), "ridge"),
        (lambda: affine_law("x", k.ntk, k.nngp, Y, label_noise=-1.0), "label_noise"),
    )
    for call, match in cases:
        with pytest.raises(InputError, match=match):
            call()
    # the tangent kernel of a net whose readout alone is trained leaves nothing for a frozen function, which is no mistake
    only = SimpleNamespace(nngp=k.nngp, ntk=k.nngp * (1 + 1e-16))
    assert randomised_prior(only, Y).covariance == pytest.approx(nngp_posterior(k, Y).covariance, abs=1e-12)
