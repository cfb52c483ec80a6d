"""A bias on the output in the limit: its powers of N, what blows up and how it is cured, and what it adds to the equations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy as sp

from tp_solver.errors import InputError, ParameterizationError
from tp_solver.limit.derive import limit
from tp_solver.limit.regime import Regime, regime
from tp_solver.limit.spec import limit_spec
from tp_solver.program.architectures import mlp
from tp_solver.program.losses import CrossEntropy
from tp_solver.program.parameterization import integrable, mean_field, muP, ntk, standard, standard_1n
from tp_solver.program.training import GradientDescent
from tp_solver.symbols.activation import tanh
from tp_solver.symbols.notation import GAMMA0

half = sp.Rational(1, 2)
PLAIN, NET, RANDOM = mlp(2, tanh), mlp(2, tanh, output_bias=True), mlp(2, tanh, output_bias=half)
DESCENT = GradientDescent(lr=0.1, steps=20)
RISING = replace(muP, output_bias=(muP.a[0], muP.b[0], muP.c[0]))
"""The exponents that a bias of sites has: nothing divides what it does to the output by N."""


@pytest.mark.parametrize(("parameterization", "r"), [(muP, 0), (mean_field, 0), (ntk, 0), (standard_1n, 1)], ids=lambda p: str(p)[:24])
def test_it_moves_the_output_at_the_same_pace_whatever_the_others_do(parameterization, r):
    with_bias, without = regime(parameterization, NET), regime(parameterization, PLAIN)
    assert with_bias.exponents["b3"] == r
    assert (with_bias.regime, with_bias.r) == (without.regime, without.r)
    assert limit_spec(NET, parameterization).matrices["b3"].rate == (r == 0)


def test_exponents_that_blow_up_are_refused_with_a_cure():
    report = regime(RISING, NET)
    assert report.regime is Regime.UNSTABLE and report.exponents["b3"] == -1
    assert report.cured.output_bias == (-half, half, 1) and regime(report.cured, NET).regime is Regime.FEATURE
    with pytest.raises(ParameterizationError, match=r"b3 \(output bias\) needs 2 a \+ c >= 0.*c of the bias on the output from 0 to 1"):
        limit_spec(NET, RISING)
    wide = replace(ntk, output_bias=(0, -half, 0))
    with pytest.raises(
        ParameterizationError, match=r"b3 \(output bias\) needs a \+ b >= 0, got -1/2.*b of the bias on the output from -1/2 to 0"
    ):
        limit_spec(RANDOM, wide)
    # a bias that only ever learns does not start anywhere
    assert limit_spec(NET, wide).regime is Regime.KERNEL


def test_the_rest_of_a_net_is_cured_as_without_it():
    alone, both = regime(standard, PLAIN), regime(standard, NET)
    assert both.cured == alone.cured and both.cure == alone.cure
    broken = regime(replace(standard, output_bias=(0, 0, -2)), NET)
    assert broken.cured == alone.cured
    assert broken.cure == f"{alone.cure}; then change c of the bias on the output from -2 to 0"


def test_an_output_that_learns_through_its_bias_alone():
    """Nothing else moves: the tangent kernel is the constant."""
    theory = limit(mlp(3, tanh, output_bias=True), integrable, DESCENT)
    assert theory.regime is Regime.KERNEL and theory["K"].rhs == 1


def test_a_random_bias_needs_a_random_readout():
    """Where the readout's start fades, f(0) would be one random constant."""
    for parameterization in (muP, mean_field):
        with pytest.raises(ParameterizationError, match=r"random bias b3 .*sigma = 0 for b3"):
            limit(RANDOM, parameterization, DESCENT)
    assert limit_spec(RANDOM, ntk).matrices["b3"].scale == 0.5
    faded = limit_spec(RANDOM, replace(muP, output_bias=(0, half, 0)))
    assert faded.matrices["b3"].scale == 0 and not faded.random_output
    without_start = limit_spec(RANDOM, replace(ntk, sigma=(1, 1, 0)))
    assert without_start.regime is Regime.KERNEL and without_start.random_output


def test_noise_does_not_average_out():
    with pytest.raises(InputError, match=r"temperature.*bias b3 of the output"):
        limit(NET, muP, GradientDescent(lr=0.1, steps=2, temperature=0.1))


@pytest.mark.parametrize("rule", [DESCENT, GradientDescent(0.1, 20, momentum=0.5, weight_decay=0.1), GradientDescent((0.1, 0.2, 0.3), 20)])
def test_feature_learning_adds_the_gathered_errors(rule):
    """f gains (1/gamma0) sum_s kappa(t, s) gamma0 sum_nu e_nu(s), the kernel its rate; all other equations stay."""
    plain, theory = limit(PLAIN, muP, rule), limit(NET, muP, rule)
    gained = str(theory["f"]).removeprefix(str(plain["f"]))
    scale = {"one": "eta sum_{s<t} sum_nu e_nu(s)", "memory": "sum_{s<t} sum_nu e_nu(s) kappa(t,s)"}
    scale["rates"] = "eta_b3 sum_{s<t} sum_nu e_nu(s)"
    assert gained == " + " + scale["rates" if isinstance(rule.lr, tuple) else "memory" if rule.momentum else "one"]
    rate = sp.Symbol("eta_b3", nonnegative=True) if isinstance(rule.lr, tuple) else 1
    assert sp.expand(theory["K"].rhs - plain["K"].rhs - rate) == 0
    changed = {"f", "K"} | {e.key[0] for e in theory.equations} - {e.key[0] for e in plain.equations}
    assert {str(e) for e in theory.equations if e.key[0] not in changed} == {str(e) for e in plain.equations if e.key[0] not in changed}
    assert "learned part of b3 (df one^T): N^(0), survives" in theory.explain("f")


def test_every_output_gathers_its_own_errors():
    theory = limit(NET, muP, GradientDescent(0.1, 20, CrossEntropy()))
    assert str(theory["f"]).endswith("+ eta sum_{s<t} sum_nu e_nu,c(s)")


def test_the_limit_does_not_know_how_it_was_parameterized():
    theories = [limit(NET, p, DESCENT) for p in (muP, mean_field, muP.shifted((1, 0, -3)), replace(muP, output_bias=(1, -1, -2)))]
    assert len({t.signature for t in theories}) == 1


def test_kernel_regime_adds_variance_and_rate():
    plain, theory = limit(PLAIN, ntk, DESCENT), limit(RANDOM, ntk, DESCENT)
    assert sp.expand(theory["f", 0].rhs - plain["f", 0].rhs - half**2 / GAMMA0**2) == 0
    assert theory["K"].rhs - plain["K"].rhs == 1
    still = limit(RANDOM, standard_1n, DESCENT)
    assert still["K"].rhs == limit(PLAIN, standard_1n, DESCENT)["K"].rhs
    assert any("b3" in v.term for v in still.vanished)
