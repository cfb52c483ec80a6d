"""The estimator: scikit-learn's own checks, card A1 on handwritten digits, and what it refuses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator

import tp_solver as tp
from tp_solver.errors import InputError
from tp_solver.kernel_regime.compute import kernels
from tp_solver.kernel_regime.regressor import KernelRegressor, NNGPKernel, TangentKernel
from tp_solver.kernel_regime.uncertainty import deep_ensemble, nngp_posterior, ntk_gp

RNG = np.random.default_rng(0)
X, X_TEST, Y = RNG.standard_normal((20, 4)), RNG.standard_normal((7, 4)), RNG.standard_normal((20, 3))
RELU = (tp.mlp(depth=2, activation=tp.relu), tp.ntk.times(2**0.5))
ERF = (tp.mlp(depth=2, activation=tp.erf, bias=0.3, bias_rate=0.09), tp.ntk.times(1.3))


def arcsine(X, X2=None):
    """Williams' kernel of one erf layer, by hand: a kernel that is not the library's."""
    X2 = X if X2 is None else X2
    product, left, right = (0.1 + a / X.shape[1] for a in (X @ X2.T, (X**2).sum(axis=1), (X2**2).sum(axis=1)))
    return 2 / np.pi * np.arcsin(2 * product / np.sqrt(np.outer(1 + 2 * left, 1 + 2 * right)))


def test_scikit_learn_accepts_the_estimator():
    """Every check of scikit-learn's, no exceptions; those of packages that are not installed skip themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(KernelRegressor(arcsine, noise=0.01), on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] not in ("passed", "skipped")}
    assert not failed
    assert sum(r["status"] == "passed" for r in results) >= 45


@pytest.mark.slow
def test_scikit_learn_accepts_the_estimator_on_a_net():
    """The same with the kernel of a net, which is computed anew for each of the checks' many data sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(KernelRegressor(NNGPKernel(*ERF), noise=0.01), on_skip=None, on_fail=None)
    assert not {r["check_name"]: r["exception"] for r in results if r["status"] not in ("passed", "skipped")}


@pytest.mark.parametrize(
    ("kernel", "posterior"), [(NNGPKernel(*RELU), nngp_posterior), (TangentKernel(*RELU), ntk_gp)], ids=["NNGP", "NTK"]
)
def test_it_is_the_posterior(kernel, posterior):
    expected = posterior(kernels(*RELU, np.concatenate([X, X_TEST])), Y, 0.1)
    model = KernelRegressor(kernel, noise=0.1).fit(X, Y)
    mean, std = model.predict(X_TEST, return_std=True)
    assert mean == pytest.approx(expected.mean, abs=1e-10)
    assert std.shape == (7, 3)
    assert std == pytest.approx(np.repeat(expected.std[:, None], 3, axis=1), abs=1e-10)
    whole = model.posterior(X_TEST)
    assert whole.covariance == pytest.approx(expected.covariance, abs=1e-10)
    assert type(kernel).__name__ in whole.meaning
    assert model.predict(X_TEST) == pytest.approx(mean, abs=0)
    one = KernelRegressor(kernel, noise=0.1).fit(X, Y[:, 0])
    assert [a.shape for a in one.predict(X_TEST, return_std=True)] == [(7,), (7,)]
    assert one.predict(X_TEST) == pytest.approx(mean[:, 0], abs=1e-12)


def test_any_kernel():
    """A kernel of scikit-learn's against its own regressor, in two blocks of new points; score and marginal likelihood."""
    peer = GaussianProcessRegressor(RBF(2.0), alpha=0.05, optimizer=None).fit(X, Y)
    model = KernelRegressor(RBF(2.0), noise=0.05).fit(X, Y)
    new = RNG.standard_normal((600, 4))
    assert model.predict(new) == pytest.approx(peer.predict(new), abs=1e-10)
    assert model.predict(new, return_std=True)[1] == pytest.approx(peer.predict(new, return_std=True)[1], abs=1e-10)
    assert model.log_marginal_likelihood().value == pytest.approx(peer.log_marginal_likelihood(), rel=1e-10)
    assert model.score(X, Y) == pytest.approx(peer.score(X, Y), abs=1e-10)


def test_it_goes_where_estimators_go():
    model = KernelRegressor(NNGPKernel(*ERF), noise=0.3)
    twin = clone(model)
    assert twin.get_params() == model.get_params() and twin is not model
    assert twin.set_params(noise=0.5).noise == 0.5 and model.noise == 0.3
    assert "KernelRegressor" in repr(model)
    search = GridSearchCV(KernelRegressor(arcsine), {"noise": [1e-3, 1.0], "kernel": [arcsine, RBF(0.1)]}, cv=2).fit(X, np.sin(X[:, 0]))
    assert search.best_params_["kernel"] is arcsine


# card A1 -----------------------------------------------------------------------------------------------------------------


def digits(points, test):
    """Ten regression outputs -0.1, 0.9."""
    task = tp.Task.digits(classes=tuple(range(10)), points=points, test=test)
    return tp.Task(task.X, task.y - 0.1, task.X_test, task.y_test - 0.1)


@pytest.mark.parametrize("net", [RELU, ERF], ids=["relu", "erf"])
def test_digits(net):
    """Card A1: accuracy >= 0.97; variance and squared error correlate >= 0.4 pointwise and >= 0.85 over 20 bins (500, 1000 points)."""
    task = digits(500, 1000)
    mean, std = KernelRegressor(NNGPKernel(*net)).fit(task.X, task.y).predict(task.X_test, return_std=True)
    assert np.mean(mean.argmax(axis=1) == task.y_test.argmax(axis=1)) >= 0.97
    variance, error = std[:, 0] ** 2, ((mean - task.y_test) ** 2).sum(axis=1)
    assert np.corrcoef(variance, error)[0, 1] >= 0.4
    bins = np.array_split(np.argsort(variance), 20)
    assert np.corrcoef(*([v[rows].mean() for rows in bins] for v in (variance, error)))[0, 1] >= 0.85


def assert_trend(task, widths, steps):
    """Test error of trained nets (mean over five seeds) falls with the width, and its gap to the infinite net's with it.

    The initial function is subtracted: with it the error of a single net tends to the GP's plus the variance of the ensemble.
    """
    k = kernels(*RELU, np.concatenate([task.X, task.X_test]))
    rate = 0.9 * task.P / np.linalg.eigvalsh(np.asarray(k.ntk)[: task.P, : task.P])[-1]
    training = tp.GradientDescent(lr=rate, steps=steps)
    error = []
    for width in widths:  # one by one, as the kernels of all of them would not fit
        nets = tp.simulate(
            *RELU, training, task, gamma0=1.0, widths=[width], seeds=5, centred=True, times=(steps,), dtype="float32", progress=False
        )  # fmt: skip
        error.append(np.mean((nets.f_test[0, :, -1] - task.y_test) ** 2))
    process, limit = (np.mean((p.mean - task.y_test) ** 2) for p in (nngp_posterior(k, task.y), deep_ensemble(k, task.y, training)))
    assert np.all(np.diff(error) < 0), error
    assert process < error[-1] < 1.5 * process, (error, process)
    per_doubling = np.diff(np.log(error - limit)) / np.diff(np.log2(widths))
    assert np.all(per_doubling < -0.4), (error, limit)


def test_trained_nets_approach_the_gaussian_process():
    """Card A1, reduced."""
    assert_trend(digits(60, 200), (8, 32, 128), 100)


@pytest.mark.slow
def test_trained_nets_approach_the_gaussian_process_up_to_width_512():
    """Card A1: n = 8 .. 512, 300 training and 600 test points."""
    assert_trend(digits(300, 600), (8, 16, 32, 64, 128, 256, 512), 300)


# what is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bad_input():
    model = KernelRegressor(NNGPKernel(*ERF), noise=0.1)
    for question in (lambda: model.predict(X), model.log_marginal_likelihood, lambda: model.posterior(X)):
        for kind in (InputError, NotFittedError):
            with pytest.raises(kind, match="call fit"):
                question()
    cases = (
        (lambda: KernelRegressor("ntk").fit(X, Y), "kernel: got 'ntk'"),
        (lambda: KernelRegressor(arcsine, noise=-1).fit(X, Y), "noise: got -1"),
        (lambda: KernelRegressor(lambda a, b: np.ones((len(a), 3))).fit(X, Y), "square"),
        (lambda: KernelRegressor(lambda a, b: -a @ a.T, noise=1.0).fit(X, Y), "lowest eigenvalue"),
        (lambda: KernelRegressor(lambda a, b: a @ a.T).fit(X, Y), "rank 4 on 20 points"),
        (lambda: KernelRegressor(lambda a, b: np.full((len(a),) * 2, np.nan)).fit(X, Y), "non-finite"),
        (lambda: KernelRegressor(TangentKernel(*RELU)).fit(np.concatenate([X, X[:1]]), np.arange(21.0)), "points 0 and 20 coincide"),
        (lambda: NNGPKernel("mlp", tp.ntk), "net: got 'mlp'"),
        (lambda: TangentKernel(tp.mlp, tp.ntk), "net: got the function mlp"),
        (lambda: TangentKernel(RELU[0], "ntk"), "parameterization: got 'ntk'"),
    )
    for call, match in cases:
        with pytest.raises(InputError, match=match):
            call()
    data = (
        (lambda: model.fit(X * np.nan, Y), "NaN"),
        (lambda: model.fit(X, Y[:-1]), "inconsistent numbers of samples"),
        (lambda: model.fit(X[0], Y), "Expected 2D array"),
        (lambda: model.fit(X, Y).predict(X[:, :2]), "2 features"),
        (lambda: model.fit(X, Y).predict(X * np.inf), "infinity"),
    )
    for call, match in data:
        for kind in (InputError, ValueError):
            with pytest.raises(kind, match=match):
                call()
