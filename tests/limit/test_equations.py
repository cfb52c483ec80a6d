"""The limiting equations: against core.md section 4.1, the causal order, the kernel recursion, and how they are looked up."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import sympy as sp

from tp_solver.errors import InputError, ParameterizationError, ProgramError, RangeError
from tp_solver.limit.derive import limit
from tp_solver.limit.master import earlier, hidden_uses, step
from tp_solver.limit.regime import Regime
from tp_solver.limit.transposition import transpose
from tp_solver.program.architectures import mlp
from tp_solver.program.losses import CrossEntropy, Logistic
from tp_solver.program.parameterization import D, Parameterization, integrable, mean_field, muP, ntk, standard, standard_1n
from tp_solver.program.tracing import average, entrywise, hidden_matrix, input_matrix, program, readout
from tp_solver.program.training import GradientDescent, GradientFlow
from tp_solver.program.update import RATE as ETA
from tp_solver.symbols.activation import gelu, linear, relu, tanh
from tp_solver.symbols.notation import (
    GAMMA0,
    MU,
    NU,
    Entrywise,
    Expectation,
    Field,
    Kernel,
    Observable,
    P,
    PastSum,
    Response,
    S,
    T,
    over_past,
    over_points,
)

DESCENT = GradientDescent(lr=0.1, steps=20)
POINTS, TIMES = (MU, NU), (T, S)


def phi(layer, point, t, order=0):
    return Entrywise("phi", order, Field("h", (layer,), (point,), (t,)))


def e(point=NU, t=S):
    return Observable("e", (), (point,), (t,))


def hidden_responses(theory, key):
    """(kernel, upper limit of the time sum) of each response sum in an equation."""
    out = {}
    for term in sp.Add.make_args(theory[key].rhs):
        for total in term.atoms(PastSum):
            for k in total.function.atoms(Kernel):
                if k.label in ("A", "B"):
                    out[k.label, *(int(i) for i in k.args[1])] = total.limits[-1][2]
    return out


def test_mlp_equations_are_those_of_the_literature():
    # core.md (4.1)-(4.5) for L = 3, l = 2, and the boundary layers, typed here by hand as a witness
    theory = limit(mlp(3, tanh), muP, DESCENT)
    phi1, g3 = Kernel("Phi", (1,), POINTS, TIMES), Kernel("G", (3,), POINTS, TIMES)
    a1, b2 = Kernel("A", (1,), POINTS, TIMES), Kernel("B", (2,), POINTS, TIMES)
    g2s = Field("g", (2,), (NU,), (S,))
    u2, r2 = Field("u", (2,), (MU,), (T,)), Field("r", (2,), (MU,), (T,))
    assert theory["h", 2].rhs == u2 + over_past(a1 * g2s, False) + ETA * GAMMA0 * over_past(phi1 * e() * g2s, False)
    assert theory["z", 2].rhs == (r2 + over_past(b2 * phi(2, NU, S), True) + ETA * GAMMA0 * over_past(g3 * e() * phi(2, NU, S), False))
    assert theory["g", 2].rhs == phi(2, MU, T, 1) * Field("z", (2,), (MU,), (T,))
    x0 = Kernel("Phi", (0,), POINTS)
    assert theory["h", 1].rhs == Field("u", (1,), (MU,)) + ETA * GAMMA0 * over_past(x0 * e() * Field("g", (1,), (NU,), (S,)), False)
    z3 = Field("z", (3,), (), (T,))
    assert theory["z", 3].rhs == Field("r", (3,)) + ETA * GAMMA0 * over_past(e() * phi(3, NU, S), False)
    assert theory["Phi", 2].rhs == Expectation(phi(2, MU, T) * phi(2, NU, S))
    assert theory["G", 2].rhs == Expectation(Field("g", (2,), (MU,), (T,)) * g2s)
    assert theory["A", 1].rhs == Expectation(Response(phi(1, MU, T), Field("r", (1,), (NU,), (S,))))
    assert theory["B", 2].rhs == Expectation(Response(Field("g", (3,), (MU,), (T,)), Field("u", (3,), (NU,), (S,))))
    assert theory["u", 2].rhs == phi1 and theory["r", 2].rhs == g3
    assert theory["u", 1].rhs == x0 and theory["r", 3].rhs == 1
    assert theory["f"].rhs == Expectation(z3 * phi(3, MU, T)) / GAMMA0
    y, f, p = Observable("y", (), (MU,)), Observable("f", (), (MU,), (T,)), Observable("p", (), (MU,))
    assert sp.expand(theory["e"].rhs - p * (y - f)) == 0 and theory["p"].rhs == 1 / P
    assert theory.regime is Regime.FEATURE


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_forward_responses_are_strictly_earlier_and_backward_ones_include_the_present(depth):
    theory = limit(mlp(depth, tanh), muP, DESCENT)
    for layer in range(1, depth):
        assert hidden_responses(theory, ("h", layer + 1)) == {("A", layer): T - 1}
        assert hidden_responses(theory, ("z", layer)) == {("B", layer): T}
    assert hidden_responses(theory, ("h", 1)) == {} and hidden_responses(theory, ("z", depth)) == {}


def test_a_transpose_in_the_forward_pass_moves_the_range_with_its_position():
    w0, w1, last = input_matrix("W0"), hidden_matrix("W1"), readout("W2")
    theory = limit(program(lambda x: last @ tanh(w1.T @ tanh(w1 @ tanh(w0 @ x)))), muP, DESCENT)
    # order of the products with W1: h2 = W x1, h3 = W.T x2, dx2 = W dh3, dx1 = W.T dh2
    assert hidden_responses(theory, ("h", 2)) == {("A", 1, 2): T - 1, ("A", 1): T - 1}  # of h3 and of dx1, both later
    assert hidden_responses(theory, ("h", 3)) == {("A", 2, 1): T, ("A", 2): T - 1}  # h2 earlier, dx2 later
    assert hidden_responses(theory, ("z", 2)) == {("B", 2): T, ("B", 2, 1): T - 1}  # h3 earlier, dx1 later
    assert hidden_responses(theory, ("z", 1)) == {("B", 1): T, ("B", 1, 2): T}  # h2 and dx2 both earlier


def test_the_range_is_read_off_the_order_of_the_list():
    net = mlp(2, tanh)
    statements = step(net, transpose(net))
    up, down = hidden_uses(net, statements)
    assert [r.present for r in earlier((up, down), up)] == [False]
    assert [r.present for r in earlier((up, down), down)] == [True]
    first, second = hidden_uses(net, statements[::-1])  # the same statements in the opposite order
    assert (first.product, second.product) == (down.product, up.product)
    assert [r.present for r in earlier((first, second), first)] == [False]
    assert [r.present for r in earlier((first, second), second)] == [True]


def test_constants_enter_as_variance_and_rate():
    mine = replace(muP, name="mine", sigma=(2, 3, 1), eta=(1, 5, 7), alpha=(1, 2, 1))
    theory = limit(mlp(2, tanh), mine, DESCENT)
    x0, phi1 = Kernel("Phi", (0,), POINTS), Kernel("Phi", (1,), POINTS, TIMES)
    assert theory["u", 1].rhs == 4 * D * x0  # alpha = 1 instead of 1/sqrt(D)
    assert theory["u", 2].rhs == 36 * phi1
    g2 = Field("g", (2,), (NU,), (S,))
    a1 = Kernel("A", (1,), POINTS, TIMES)
    u2 = Field("u", (2,), (MU,), (T,))
    assert theory["h", 2].rhs == u2 + 36 * over_past(a1 * g2, False) + 20 * ETA * GAMMA0 * over_past(phi1 * e() * g2, False)
    assert theory["z", 2].rhs.coeff(ETA * GAMMA0).has(PastSum) and theory["z", 2].rhs.coeff(GAMMA0, 0) == Field("r", (2,))


def test_structurally_zero_responses_are_dropped():
    # nothing that W0 learns reaches h1, so phi(h1) cannot respond to r1; g2 still responds to u2
    theory = limit(mlp(2, tanh), muP, GradientDescent(lr=[0.0, 0.1, 0.1], steps=5))
    assert hidden_responses(theory, ("h", 2)) == {}
    with pytest.raises(RangeError):
        theory["A", 1]
    assert hidden_responses(theory, ("z", 1)) == {("B", 1): T}
    assert theory["h", 1].rhs == Field("u", (1,), (MU,))


def test_learning_rates_of_matrices():
    theory = limit(mlp(2, tanh), muP, GradientDescent(lr=[0.1, 0.2, 0.0], steps=5))
    assert theory["eta_W1"].rhs == sp.Float(0.2)
    assert sp.Symbol("eta_W1", nonnegative=True) in theory["h", 2].rhs.free_symbols
    assert theory["z", 2].rhs == Field("r", (2,))
    flow = limit(mlp(2, tanh), muP, GradientFlow(time=3.0, steps=10))
    assert flow["h", 2] == limit(mlp(2, tanh), muP, DESCENT)["h", 2]
    assert any("eta -> 0" in note for note in flow.notes)


def test_the_limit_depends_on_the_parameterization_only_up_to_the_shift():
    theory = limit(mlp(3, tanh), muP, DESCENT)
    for other in (muP.shifted(sp.Rational(1, 3)), muP.shifted((1, 0, sp.Rational(-1, 2))), mean_field):
        assert limit(mlp(3, tanh), other, DESCENT).signature == theory.signature
    assert limit(mlp(3, gelu), muP, DESCENT).signature != theory.signature
    assert limit(mlp(3, tanh), standard_1n, DESCENT).signature != theory.signature


def test_partly_trained_feature_learning():
    # hidden layers too slow to move (r = 1/2): their learned part is listed, the response stays
    slow = replace(muP, name="slow hidden", c=(0, sp.Rational(1, 2), 0))
    theory = limit(mlp(2, tanh), slow, DESCENT)
    assert theory.regime is Regime.FEATURE
    assert not theory["h", 2].rhs.has(GAMMA0) and theory["h", 1].rhs.has(GAMMA0)
    dropped = {(v.statement, v.power) for v in theory.vanished if "learned part of W1" in v.term}
    assert ("h2 = W1 x1", -sp.Rational(1, 2)) in dropped


def test_kernel_regime_is_the_recursion_with_the_full_kernel():
    theory = limit(mlp(2, tanh), ntk, DESCENT)

    def slope(layer, point):
        return Entrywise("phi", 1, Field("h", (layer,), (point,)))

    kernel = {(k, i): Kernel(k, (i,), POINTS) for k in ("Phi", "G") for i in range(3)}
    assert theory.regime is Regime.KERNEL
    assert theory["u", 2].rhs == kernel["Phi", 1]
    assert theory["G", 2].rhs == Expectation(slope(2, MU) * slope(2, NU))
    assert theory["G", 1].rhs == kernel["G", 2] * Expectation(slope(1, MU) * slope(1, NU))
    assert theory["K"].rhs == kernel["Phi", 2] + kernel["G", 2] * kernel["Phi", 1] + kernel["G", 1] * kernel["Phi", 0]
    k = Kernel("K", (), POINTS)
    assert theory["f"].rhs == Observable("f", (), (MU,), (T,)) + ETA * over_points(k * e(NU, T))
    assert theory["f", 0].rhs == kernel["Phi", 2] / GAMMA0**2
    with pytest.raises(RangeError):
        theory["A", 1]
    assert any("response part of W1" in v.term for v in theory.vanished)


def test_the_kernel_is_selected_by_the_exponents():
    theory = limit(mlp(2, tanh), standard_1n, DESCENT)
    assert theory["K"].rhs == Kernel("Phi", (2,), POINTS) + Kernel("G", (2,), POINTS) * Kernel("Phi", (1,), POINTS)
    [gone] = [v for v in theory.vanished if "tangent kernel" in v.term]
    assert gone.power == -1 and "W0" in gone.term and "N^(-1)" in str(gone)
    assert "term of W0: N^(-1), vanishes" in theory.explain("K")


def test_kernel_of_a_residual_network_by_gradient_independence():
    w0, w1, last = input_matrix("W0"), hidden_matrix("W1"), readout("W2")

    def network(x):
        h = w0 @ x
        h = h + w1 @ tanh(h)
        return last @ tanh(h)

    theory = limit(program(network), ntk, DESCENT)
    s1, s2 = (Expectation(Entrywise("phi", 1, Field("h", (i,), (MU,))) * Entrywise("phi", 1, Field("h", (i,), (NU,)))) for i in (1, 2))
    assert theory["G", 1].rhs == s2 + Kernel("G", (2,), POINTS) * s1
    assert theory["h", 2].rhs == Field("h", (1,), (MU,)) + Field("u", (2,), (MU,))


def test_trivial_and_unstable():
    still = limit(mlp(3, tanh), integrable, DESCENT)
    assert still.regime is Regime.TRIVIAL
    assert still["f"].rhs == Observable("f", (), (MU,), (sp.S.Zero,)) and still["f", 0].rhs == 0
    assert len(still.vanished) > 0 and all(v.power < 0 for v in still.vanished)
    with pytest.raises(ParameterizationError):
        limit(mlp(3, tanh), standard, DESCENT)
    with pytest.raises(ParameterizationError):
        limit(mlp(2, tanh), Parameterization("q", (0, sp.Symbol("q"), 1), 0, -1), DESCENT)


def test_cross_entropy_takes_the_loss_gradient_form():
    theory = limit(mlp(2, tanh), muP, GradientDescent(lr=0.1, steps=20, loss=CrossEntropy()))
    assert not theory["h", 2].rhs.has(Observable)  # no factor e: g is the gradient of the loss
    assert "sum_c e_mu,c(t) W2_c(t)" in str(theory["z", 2])
    assert str(theory["f"]).startswith("f_mu,c(t) = ")
    logistic = limit(mlp(2, tanh), muP, GradientDescent(lr=0.1, steps=20, loss=Logistic()))
    assert "sigmoid" in str(logistic["e"]) and logistic["h", 2].rhs.has(Observable)


def test_averages_and_other_variables_keep_their_names():
    w0, w1, last = input_matrix("W0"), hidden_matrix("W1"), readout("W2")

    def network(x):
        h = w0 @ x
        c = average(lambda a: a**2, h).named("power")
        return last @ tanh(w1 @ entrywise(lambda a, b: a / sp.sqrt(b), tanh(h), c).named("unit"))

    theory = limit(program(network), muP, DESCENT)
    assert theory["power"].rhs == Expectation(Field("h", (1,), (MU,), (T,)) ** 2)
    assert theory["Phi", "unit"].rhs == Expectation(Field("unit", (), (MU,), (T,)) * Field("unit", (), (NU,), (S,)))
    assert hidden_responses(limit(mlp(2, linear), muP, DESCENT), ("h", 2)) == {("A", 1): T - 1}
    assert theory["dx1"] is theory["z", 1] and theory["h2"] is theory["h", 2]


def test_names_that_the_equations_use_are_refused():
    w0, last = input_matrix("W0"), readout("W1")
    net = program(lambda x: last @ entrywise(lambda a: a**2, tanh(w0 @ x)).named("e"))
    with pytest.raises(ProgramError, match="taken"):
        limit(net, muP, DESCENT)


def test_looking_up_and_explaining():
    theory = limit(mlp(3, relu), muP, DESCENT)
    for bad in ("q", ("h", 4), ("A", 3), ("h", True), ["h"], 3, slice(2)):
        with pytest.raises(RangeError) as caught:
            theory[bad]
        assert "('h', 1)" in str(caught.value) and "'f'" in str(caught.value)
    words = theory.explain("A", 1)
    for word in ("W1", "h2 = W1 x1", "dx1 = W1.T dh2", "s < t", "N^(0), survives", "response rule"):
        assert word in words
    assert "s <= t" in theory.explain("B", 1) and "dh2" in theory.explain("B", 1)
    assert "Gaussian part" in theory.explain("h", 2) and "Learned part" in theory.explain("h", 2)
    assert "vanishes" in theory.explain("f")  # the initial output
    assert [v.power for v in theory.vanished] == [-sp.Rational(1, 2)]
    assert theory["phi'"].rhs == relu.derivative


def test_wrong_arguments():
    with pytest.raises(InputError):
        limit(mlp, muP, DESCENT)
    with pytest.raises(InputError):
        limit(mlp(2, tanh), "muP", DESCENT)
    with pytest.raises(InputError):
        limit(mlp(2, tanh), muP, GradientDescent)
    with pytest.raises(InputError):
        limit(mlp(2, tanh), muP, GradientDescent(lr=[0.1], steps=3))


def test_nodes_are_structural():
    a, b = Field("h", (1,), (MU,), (T,)), Field("h", (1,), (MU,), (T,))
    assert a == b and hash(a) == hash(b) and a != Field("h", (2,), (MU,), (T,)) and a != Kernel("h", (1,), (MU,), (T,))
    assert a.subs(T, S) == Field("h", (1,), (MU,), (S,)) and a.free_symbols == {MU, T}
    assert a.func(*a.args) == a
    total = over_past(Field("h", (1,), (NU,), (S,)), False)
    assert total.func(*total.args) == total and isinstance(total, sp.Sum) and total.free_symbols == {T, P}
    assert Expectation(sp.Integer(3)) == 3
    assert sp.latex(a) == r"h^{1}_{\mu}(t)" and str(a) == "h^1_mu(t)"
    assert sp.latex(Kernel("Phi", (1,), POINTS, TIMES)) == r"\Phi^{1}_{\mu \nu}(t,s)"


def test_deriving_is_fast():
    limit(mlp(3, gelu), muP, DESCENT)  # sympy's own caches
    start = time.process_time()
    limit(mlp(3, tanh), muP, DESCENT)
    assert time.process_time() - start < 1.0  # measured 0.1 s


def test_constants_and_shared_fields_in_the_kernel_recursion():
    w0, w1, last = input_matrix("W0"), hidden_matrix("W1"), readout("W2")
    doubled = limit(program(lambda x: last @ (2 * tanh(w1 @ tanh(w0 @ x)))), ntk, DESCENT)
    slopes = Expectation(Entrywise("phi", 1, Field("h", (2,), (MU,))) * Entrywise("phi", 1, Field("h", (2,), (NU,))))
    assert doubled["G", 2].rhs == 4 * slopes

    def two_heads(x):
        h = w0 @ x
        return last @ (tanh(h) + relu(h))

    shared = limit(program(two_heads), ntk, DESCENT)
    assert shared["h", 2] is shared["h", 1]  # two activations of one field
    terms = sp.Add.make_args(shared["G", 1].rhs)
    assert len(terms) == 4 and all(isinstance(t, Expectation) for t in terms)
