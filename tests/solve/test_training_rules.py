"""Momentum, decay, noise, schedules and minibatches: printed memory against the recursion, march against nets."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

import tp_solver as tp
from tp_solver.program.update import DECAY, MOMENTUM, RATE, TEMPERATURE
from tp_solver.symbols.equation import Kind
from tp_solver.symbols.notation import Observable, S, T

GRAM = np.array([[1.0, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]])
TASK = tp.Task(np.sqrt(3) * np.linalg.cholesky(GRAM), np.array([1.0, -1.0, 0.5]), np.eye(3)[:2] * 1.5, np.array([0.5, -0.5]))
NET = tp.mlp(depth=2, activation=tp.tanh)
RULES = {
    "momentum": {"momentum": 0.7},
    "decay": {"weight_decay": 0.1},
    "noise": {"weight_decay": 0.1, "temperature": 0.05},
    "minibatches": {"batches": tp.Batches(2)},
    "schedule": {"schedule": tp.warmup(4) * tp.cosine(0.1)},
    "everything": {
        "momentum": 0.5,
        "weight_decay": 0.1,
        "temperature": 0.05,
        "batches": tp.Batches(2),
        "schedule": tp.cosine(0.2),
    },
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def descent(rule, lr=0.3, steps=16):
    return tp.GradientDescent(lr=lr, steps=steps, **rule)


def number(expression, training, t, s):
    """A printed definition at two times, with the numbers of the rule."""
    values = {RATE: training.lr, MOMENTUM: training.momentum, DECAY: training.weight_decay, TEMPERATURE: training.temperature}
    rates = training.lr * training.schedule.values(training.steps)
    expression = sp.sympify(expression).subs({T: t, S: s}, simultaneous=True).doit()
    expression = expression.replace(lambda e: isinstance(e, Observable), lambda e: sp.Float(rates[int(e.times[0])]))
    return float(expression.subs(values))


@every_rule
def test_printed_memory_is_the_recursion(rule):
    """kappa(t, s) is what a push of one at step s has done by t, and C(t, s) the covariance of the weights, by stepping the update."""
    training = descent(rule, steps=8)
    theory = tp.limit(NET, tp.muP, training)
    pace = training.pace(NET)
    named = {e.key[0]: e.rhs for e in theory.equations if e.key[0] in ("kappa", "C")}
    assert ("kappa" in named) == bool(training.momentum or training.weight_decay)
    assert ("C" in named) == bool(training.weight_decay or training.temperature)
    for s in range(6):
        w, v = 0.0, 0.0
        for t in range(s, 8):
            v = pace.carry * v + (t == s)
            w = pace.keep["W1"][t] * w + training.lr * pace.factor[t] * v
            if "kappa" in named:
                assert number(named["kappa"], training, t + 1, s) == pytest.approx(w, rel=1e-12)
    covariance = np.eye(1)  # of w(0), w(1), ...: each new weight is keep x the last + kick x noise
    for t in range(7):
        row = pace.keep["W1"][t] * covariance[-1]
        covariance = np.block([[covariance, row[:, None]], [row, pace.keep["W1"][t] * row[-1] + pace.kick["W1"][t] ** 2]])
    for t, s in ((0, 0), (3, 3), (7, 2), (2, 7), (5, 4)):
        assert number(named.get("C", 1), training, t, s) == pytest.approx(covariance[t, s], rel=1e-12)


def defined(theory):
    """Symbols, and labels of quantities, of the "where" block."""
    found = [e.lhs for e in theory.equations if e.kind is Kind.DEFINITION]
    return {q.label if isinstance(q, Observable) else q for q in found}


@every_rule
@pytest.mark.parametrize("lr", [0.3, (0.1, 0.2, 0.3), (0.1, 0.0, 0.3)], ids=["one rate", "rates", "a frozen layer"])
@pytest.mark.parametrize("parameterization", [tp.muP, tp.ntk], ids=["muP", "ntk"])
def test_printed_rates_have_values(rule, lr, parameterization):
    """No symbol of a rate, a momentum, a decay or a memory is left without a definition."""
    training = tp.GradientDescent(lr=lr, steps=8, **rule)
    if parameterization is tp.ntk and (training.weight_decay or training.temperature):
        pytest.skip("refused in the kernel regime")
    theory = tp.limit(NET, parameterization, training)
    known = defined(theory)
    for equation in theory.equations:
        symbols = {s for s in equation.rhs.free_symbols if str(s).startswith(("eta", "beta", "lambda", "tau"))}
        labels = {o.label for o in equation.rhs.atoms(Observable) if o.label.startswith(("eta", "kappa", "C"))}
        assert symbols | labels <= known, equation


def test_rates_per_layer_under_a_schedule():
    """In the kernel regime the printed step is that of the solver: K holds the rates, eta(t) what the schedule makes of all of them."""
    training = tp.GradientDescent(lr=(0.1, 0.2, 0.3), steps=6, momentum=0.5, schedule=tp.step_decay(2, 0.5))
    theory = tp.limit(NET, tp.ntk, training)
    values = {e.lhs: e.rhs for e in theory.equations if e.kind is Kind.DEFINITION and isinstance(e.lhs, sp.Symbol)}
    factor = next(e.rhs for e in theory.equations if e.key == ("eta",))
    parts = tp.kernels(NET, tp.ntk, TASK.X, layers=True).parts
    printed = theory["K"].rhs
    kernel = sum(float(values[sp.Symbol(f"eta_{m}", nonnegative=True)]) * part for m, part in parts.items())
    assert {sp.Symbol(f"eta_{m}", nonnegative=True) for m in parts} <= printed.free_symbols
    f, velocity = np.zeros(3), np.zeros(3)
    solved = tp.solve(theory, TASK, gamma0=0.0).f
    for t in range(7):
        assert solved[t] == pytest.approx(f, abs=1e-12)
        velocity = 0.5 * velocity + kernel @ (TASK.y - f) / 3  # v(t) = beta v(t - 1) + K e
        f = f + float(factor.subs(T, t)) * velocity  # f(t + 1) = f(t) + eta(t) v(t)
    assert "eta(t) v_mu(t)" in str(theory["f"])


@pytest.mark.parametrize("name", ["minibatches", "everything"])
def test_march_agrees_with_nets(name):
    """Reduced: within 3 combined standard errors (rms), which are at most 0.008."""
    deviation, error = against_nets(RULES[name], steps=8, samples=1024, width=400, seeds=20)
    assert error < 0.008
    assert deviation < 3 * error


@pytest.mark.slow
@every_rule
def test_march_agrees_with_wide_nets(rule):
    """The acceptance line: at most twice the rms combined standard error, itself at most 0.003."""
    deviation, error = against_nets(rule, steps=16, samples=16384, width=1000, seeds=64)
    assert error < 0.003
    assert deviation < 2 * error


def against_nets(rule, steps, samples, width, seeds):
    """rms over times, training and test points of the deviation, and of the combined standard error."""
    training = descent(rule, steps=steps)
    sol = tp.solve(tp.limit(NET, tp.muP, training), TASK, 1.5, samples=samples, seed=1)
    assert sol.success, sol.message
    ens = tp.simulate(NET, tp.muP, training, TASK, gamma0=1.5, widths=[width], seeds=seeds, centred=True, progress=False)
    squares = []
    for name in ("f", "f_test"):
        nets = getattr(ens, name)[0]
        mean, spread = nets.mean(axis=0), nets.std(axis=0, ddof=1) / np.sqrt(seeds)
        squares.append(np.array([(getattr(sol, name) - mean) ** 2, spread**2 + sol.stderr(name) ** 2]).reshape(2, -1))
    return np.sqrt(np.concatenate(squares, axis=1).mean(axis=1))


@pytest.mark.parametrize("sigma", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_start_fades_and_noise_takes_its_place(sigma):
    """Without learning Phi of a linear layer is C(t, s) x.x'/D times its initial scale: march, nets and the printed C."""
    training = tp.GradientDescent(lr=0.2, steps=6, weight_decay=0.5, temperature=0.8)
    par = tp.Parameterization("scaled", tp.muP.a, tp.muP.b, tp.muP.c, tp.muP.alpha, (sigma, sigma, 1), tp.muP.eta)
    net = tp.mlp(depth=2, activation=tp.linear)
    theory = tp.limit(net, par, training)
    correlation = {e.key[0]: e.rhs for e in theory.equations}["C" if sigma == 1 else "C_W0"]
    sol = tp.solve(theory, TASK, 1e-3, samples=4096)
    ens = tp.simulate(net, par, training, TASK, gamma0=1e-3, widths=[600], seeds=6, progress=False)
    for t, s in ((6, 6), (6, 3)):
        expected = sigma**2 * number(correlation, training, t, s) * GRAM
        assert sol.Phi(1, t, s) == pytest.approx(expected, abs=0.05 * expected.max())
        assert ens.Phi(1, t, s)[0].mean(axis=0) == pytest.approx(expected, abs=0.08 * expected.max())


@pytest.mark.parametrize("name", ["momentum", "decay", "minibatches", "schedule"])
def test_linear_nets_without_sampling(name):
    """The exact method and the sampled march are one update on two kinds of sites; directions below 1e-10 of the square are dropped."""
    net, training = tp.mlp(depth=3, activation=tp.linear), descent(RULES[name], lr=0.1)
    theory = tp.limit(net, tp.muP, training)
    exact = tp.solve(theory, TASK, 1.0, method="linear")
    sampled = tp.solve(theory, TASK, 1.0, samples=512, method=tp.March(tol=1e-10, bias=False))
    assert exact.f == pytest.approx(sampled.f, abs=1e-6)
    assert exact.f_test == pytest.approx(sampled.f_test, abs=1e-6)
    with pytest.raises(tp.RangeError, match="A and B"):
        exact.A(1, 3, 1)


def test_plain_rules_are_the_plain_run():
    """One batch of all points in order, a constant schedule and no decay are full-batch descent."""
    plain, same = (
        tp.solve(tp.limit(NET, tp.muP, descent(rule, steps=6)), TASK, 1.0, samples=256, method=tp.March(bias=False))
        for rule in ({}, {"batches": tp.Batches(3, None), "schedule": tp.Schedule("one", 1 + 0 * tp.T)})
    )
    assert same.f == pytest.approx(plain.f, abs=1e-13)


@pytest.mark.slow
def test_noise_is_reproducible_and_different_per_replicate():
    theory = tp.limit(NET, tp.muP, descent(RULES["noise"], steps=4))
    one, two = (tp.solve(theory, TASK, 1.0, samples=256, replicates=2, seed=3) for _ in range(2))
    assert np.array_equal(one.f, two.f)
    assert not np.array_equal(one.f, tp.solve(theory, TASK, 1.0, samples=256, replicates=2, seed=4).f)
    assert one.stderr("f")[-1].max() > 0
