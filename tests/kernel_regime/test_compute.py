"""Kernels of programs on data: one or two sets, blocks, precision, derivatives, budgets; convolution against a recursion of its own."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import tp_solver as tp
from tp_solver.errors import BudgetError, InputError, ProgramError, RangeError
from tp_solver.kernel_regime import compute

RNG = np.random.default_rng(3)
HE = tp.ntk.times((2**0.5, 2**0.5, 1))
NETS = {
    "relu": tp.mlp(depth=2, activation=tp.relu, bias=0.3, bias_rate=0.09),
    "erf": tp.mlp(depth=3, activation=tp.erf),
    "tanh": tp.mlp(depth=2, activation=tp.tanh, bias=True),
    "cnn": tp.cnn(depth=2, activation=tp.relu, grid=(6,), bias=0.2),
    "flat": tp.cnn(depth=2, activation=tp.gelu, grid=(2, 3), size=2, padding="zero", head=tp.dense),
    "local": tp.cnn(depth=2, activation=tp.erf, grid=(6,), layer=tp.local),
}
X = RNG.standard_normal((7, 12))
Z = np.concatenate([X[2:4], RNG.standard_normal((3, 12))])


PICKS = (lambda k: k.nngp, lambda k: k.ntk, lambda k: k.Phi, lambda k: k.G, lambda k: sum(k.parts.values()))


def agree(found: tp.KernelSet, whole: tp.KernelSet, cut) -> None:
    for pick in PICKS:
        # equal inputs in two different sets: a correlation of one is known to rounding only
        np.testing.assert_allclose(pick(found), pick(whole)[cut], rtol=0, atol=3e-8 * np.abs(pick(whole)).max())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ("tanh", "cnn", "local", "flat") else []) for name in NETS]
)
def test_one_set_and_two_sets_agree(name):
    whole = tp.kernels(NETS[name], tp.ntk, np.concatenate([X, Z]), layers=True)
    agree(tp.kernels(NETS[name], tp.ntk, X, Z, layers=True), whole, (..., slice(0, 7), slice(7, None)))
    np.testing.assert_array_equal(whole.ntk, whole.ntk.T)
    np.testing.assert_allclose(sum(whole.parts.values()), whole.ntk, rtol=1e-12)
    assert np.linalg.eigvalsh(whole.ntk)[0] > -1e-10


@pytest.mark.parametrize("name", ["relu", pytest.param("cnn", marks=pytest.mark.slow)])
def test_blocks_change_nothing(name, monkeypatch):
    whole = tp.kernels(NETS[name], tp.ntk, np.concatenate([X, Z]), layers=True)
    monkeypatch.setattr(compute._Job, "sides", (3, 2))
    agree(tp.kernels(NETS[name], tp.ntk, X, Z, layers=True), whole, (..., slice(0, 7), slice(7, None)))
    monkeypatch.setattr(compute._Job, "sides", (3, 3))
    agree(tp.kernels(NETS[name], tp.ntk, np.concatenate([X, Z]), layers=True), whole, ...)


@pytest.mark.parametrize("name", ["relu", "tanh", "cnn"])
def test_single_precision_agrees_with_double(name):
    double, single = (tp.kernels(NETS[name], tp.ntk, X, dtype=d) for d in ("float64", "float32"))
    assert single.ntk.dtype == np.float32 and single.nngp.dtype == np.float32
    for a, b in ((single.nngp, double.nngp), (single.ntk, double.ntk)):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max())


def recursion(x: np.ndarray, y: np.ndarray, depth: int, shared: bool = True) -> tuple[float, float, float, float]:
    """The convolutional kernels of Arora et al. 2019 for ReLU on a circle, window 3: flattened NNGP and NTK, pooled NNGP and NTK.

    With matrices of their own at every position different positions are independent.
    """
    positions = len(x)

    def patch(S):
        turns = [np.roll(np.roll(S, -a, 0), -a, 1) for a in (-1, 0, 1)]
        return sum(turns) / 3 * (1 if shared else np.eye(positions))

    def expectations(S, q, qp):
        size = np.sqrt(np.outer(q, qp))
        cosine = np.clip(S / size, -1, 1)
        angle = np.arccos(cosine)
        return size / np.pi * (np.sin(angle) + (np.pi - angle) * cosine), (np.pi - angle) / np.pi

    own = [patch(v @ v.T / v.shape[1]) for v in (x, y)]
    S = T = patch(x @ y.T / x.shape[1])
    for layer in range(depth):
        value, slope = expectations(S, *(np.diag(o) for o in own))
        own = [expectations(o, np.diag(o), np.diag(o))[0] for o in own]
        if layer < depth - 1:
            own = [patch(o) for o in own]
            S, T = patch(value), patch(slope * T) + patch(value)
        else:
            S, T = value, value + slope * T
    return float(np.trace(S) / positions), float(np.trace(T) / positions), float(S.mean()), float(T.mean())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_convolution_is_the_recursion_over_pairs_of_positions(depth):
    x, y = RNG.standard_normal((2, 6, 4))
    flat, pooled, local, local_pooled = (
        tp.kernels(tp.cnn(depth, tp.relu, grid=(6,), layer=layer, head=head), HE, x[None], y[None])
        for layer in (tp.conv, tp.local)
        for head in (tp.dense, tp.pooled)
    )
    wanted = recursion(x, y, depth)
    found = [float(k[0, 0]) for k in (flat.nngp, flat.ntk, pooled.nngp, pooled.ntk)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    np.testing.assert_allclose((local.nngp, local.ntk), (flat.nngp, flat.ntk), rtol=1e-12)
    found = [float(k[0, 0]) for k in (local.nngp, local.ntk, local_pooled.nngp, local_pooled.ntk)]
    np.testing.assert_allclose(found, recursion(x, y, depth, shared=False), rtol=1e-12)


def test_pooled_kernels_do_not_see_shifts_and_flattened_ones_do():
    x, y = RNG.standard_normal((2, 1, 6, 2))
    moved = np.roll(x, 2, axis=1)
    for head, invariant in ((tp.pooled, True), (tp.dense, False)):
        net = tp.cnn(2, tp.relu, grid=(6,), head=head)
        here, there = (tp.kernels(net, tp.ntk, v, y).ntk for v in (x, moved))
        assert np.allclose(here, there, rtol=1e-12) is invariant


@pytest.mark.slow
def test_keeping_equal_positions_alone_is_exact_where_nothing_is_pooled():
    """The same program with a mean over windows of one position, which changes nothing but makes it keep all pairs."""
    W0, W1, w = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w")

    def net(trivial: bool) -> tp.Program:
        def network(x):
            x = tp.relu(tp.conv(W0, x, 2, padding="zero"))
            x = tp.pool(x, 1) if trivial else x
            return tp.dense(w, tp.relu(tp.conv(W1, x, 3, stride=2, padding="zero")))

        return tp.program(network, "net", grid=(3, 4))

    with_all, without = (tp.kernels(net(trivial), tp.ntk, X, layers=True) for trivial in (True, False))
    for a, b in ((with_all.nngp, without.nngp), (with_all.ntk, without.ntk), (with_all.Phi, without.Phi), (with_all.G, without.G)):
        np.testing.assert_allclose(a, b, rtol=1e-11)


@pytest.mark.parametrize("name", ["relu", "tanh", "cnn", "flat"])
def test_kernel_functions_have_the_right_slopes(name):
    """Against central differences."""
    function = tp.kernel_function(NETS[name], tp.ntk, X)
    with jax.enable_x64(True):
        x, y = jnp.asarray(X[:2]), jnp.asarray(X[2:3])

        def total(v):
            k = function(v, y)
            return k.ntk.sum() + k.nngp.sum()

        value_and_slope = jax.jit(jax.value_and_grad(total))
        slope = np.asarray(value_and_slope(x)[1])
        direction = RNG.standard_normal(x.shape)
        step = 1e-5
        ahead, behind = (value_and_slope(x + s * direction)[0] for s in (step, -step))
        wanted = float(ahead - behind) / (2 * step)
    np.testing.assert_allclose(np.sum(slope * direction), wanted, rtol=1e-6)


ALIKE = RNG.standard_normal(4)
COLLINEAR = np.stack([ALIKE, ALIKE, -ALIKE, np.zeros(4), RNG.standard_normal(4)])
"""A point twice, its opposite, zero, and another."""


def _residual(x):
    h = tp.input_matrix("W0") @ x
    return tp.readout("w") @ tp.relu(h + tp.hidden_matrix("W1") @ tp.relu(h))


def _normalised(x):
    h = tp.hidden_matrix("W1") @ tp.relu(tp.input_matrix("W0") @ x)
    size = tp.average(lambda a: a**2, h)
    return tp.readout("w") @ tp.erf(tp.entrywise(lambda a, q: a / sp.sqrt(q + sp.Rational(1, 1000)), h, size))


BARE = {
    "relu": tp.mlp(2, tp.relu),
    "erf": tp.mlp(2, tp.erf),
    "gelu": tp.mlp(1, tp.gelu),
    "tanh": tp.mlp(1, tp.tanh),
    "pooled": tp.cnn(1, tp.relu, grid=(4,), size=2, head=tp.pooled),
    "residual": tp.program(_residual),
    "normalised": tp.program(_normalised),
}
"""Without biases, so that variances vanish at zero and correlations are one, zero and minus one."""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", BARE)
def test_gradients_are_finite_at_coincident_opposite_and_zero_inputs(name, dtype):
    """NNGP and NTK, forward and backward; both modes give the same numbers, and not zeros."""
    function = tp.kernel_function(BARE[name], HE, COLLINEAR)
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(COLLINEAR, dtype)

        def both(v):
            k = function(v, x)
            return jnp.stack([k.nngp, k.ntk])

        modes = jax.jit(lambda v: (jax.jacfwd(both)(v).sum((1, 2)), jax.jacrev(lambda u: both(u).sum((1, 2)))(v)))
        forward, backward = (np.asarray(slope) for slope in modes(x))
    assert forward.dtype == backward.dtype == np.dtype(dtype)
    assert np.isfinite(forward).all() and np.isfinite(backward).all()
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(forward, backward, atol=tolerance * np.abs(forward).max())
    assert np.all(np.abs(forward).max(axis=(1, 2)) > 0.1)


def test_gradient_at_a_point_with_itself():
    """d/dx K(x, x) of the NNGP of ReLU is 2 K(x, x) x / |x|^2, by homogeneity, though arccos has no derivative there."""
    function = tp.kernel_function(tp.mlp(depth=2, activation=tp.relu), HE, X)
    with jax.enable_x64(True):
        x = jnp.asarray(X[:1])
        slope = jax.grad(lambda v: function(v, v).nngp[0, 0])(x)
        value = function(x, x).nngp[0, 0]
        np.testing.assert_allclose(slope, 2 * value * x / jnp.sum(x**2), rtol=1e-9)


def test_zero_inputs_are_finite():
    with_zero = np.concatenate([X, np.zeros((1, 12))])
    for net in NETS.values():
        k = tp.kernels(net, tp.ntk, with_zero)
        assert np.isfinite(k.ntk).all() and np.isfinite(k.nngp).all()


def test_blocks_come_once_each_and_make_the_whole():
    """A function of all inputs at once knows no blocks; what is assembled has every one of them, and their transposes, in place."""
    net, many = NETS["erf"], RNG.standard_normal((700, 12))
    assembled, seen = tp.kernels(net, tp.ntk, many), np.zeros((700, 700), int)
    with jax.enable_x64(True):
        whole = np.asarray(tp.kernel_function(net, tp.ntk, many)(jnp.asarray(many), jnp.asarray(many)).ntk)
    for block in tp.kernel_blocks(net, tp.ntk, many):
        seen[block.rows, block.columns] += 1
        np.testing.assert_array_equal(block.kernels.ntk, assembled.ntk[block.rows, block.columns])
    assert seen[np.triu_indices(700)].min() == 1 and seen.max() == 1
    assert seen[-1, 0] == 0, "one block: nothing is assembled"
    np.testing.assert_allclose(assembled.ntk, whole, rtol=0, atol=1e-12 * whole.max())


def test_budgets_are_refused_before_any_work():
    with pytest.raises(BudgetError, match="kernel_blocks"):
        tp.kernels(NETS["erf"], tp.ntk, np.ones((20_000, 4)), memory=4.0)
    image = tp.cnn(2, tp.relu, grid=(64, 64))
    with pytest.raises(BudgetError, match="one pair of inputs"):
        tp.kernels(image, tp.ntk, np.ones((2, 64 * 64)), memory=1.0)
    with pytest.raises(BudgetError, match="one pair of inputs"):
        next(iter(tp.kernel_blocks(image, tp.ntk, np.ones((2, 64 * 64)), memory=1.0)))


def test_layers_are_kept_when_asked_for():
    k = tp.kernels(NETS["erf"], tp.ntk, X)
    with pytest.raises(RangeError, match="layers=True"):
        _ = k.Phi
    assert "nngp" in str(k)


W0, W1, w = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w")


@pytest.mark.parametrize(
    ("function", "grid", "error", "text"),
    [
        (lambda x: w @ tp.global_pool(tp.relu(tp.conv(W0, x, 5))), (4,), ProgramError, "size 5 on 4 positions"),
        (lambda x: w @ tp.global_pool(tp.relu(tp.conv(W0, x, 3, stride=3))), (8,), ProgramError, "stride 3 around a circle"),
        (lambda x: w @ tp.pool(tp.relu(tp.conv(W0, x, 3)), 3), (8,), ProgramError, "divides the positions"),
        (lambda x: w @ tp.relu(tp.conv(W0, x, 3)), (8,), ProgramError, "one output per input"),
        (lambda x: w @ tp.global_pool(tp.relu(tp.conv(W0, x, (3, 3)))), (8,), InputError, "size"),
        (lambda x: w @ tp.global_pool(tp.relu(tp.conv(W0, x, 3, padding="same"))), (8,), InputError, "padding"),
        (lambda x: w @ tp.relu(tp.conv(W0, x, 3)), (), ProgramError, "grid"),
        (lambda x: w @ tp.global_pool(tp.relu(W0 @ x)), (), ProgramError, "grid"),
        (lambda x: w @ tp.global_pool(tp.relu(tp.conv("W0", x, 3))), (8,), ProgramError, "matrix"),
        (lambda x: tp.pooled(w, tp.relu(tp.conv(W1, tp.relu(tp.conv(W1, W0 @ x, 3)), 2))), (8,), ProgramError, "same window"),
        (lambda x: tp.pooled(w, tp.relu(tp.pool(W0 @ x, 2) + W0 @ x)), (8,), ProgramError, "same positions"),
        (lambda x: tp.pooled(w, tp.relu(tp.conv(W1.T, tp.relu(W0 @ x), 3))), (8,), ProgramError, "transpose"),
        (lambda x: tp.pooled(w, tp.relu(tp.conv(W0, x, 3))), (0,), InputError, "grid"),
        (lambda x: tp.pooled(w, tp.relu(tp.conv(W0, x, 3))), "8", InputError, "grid"),
    ],
)
def test_malformed_grids_and_windows(function, grid, error, text):
    with pytest.raises(error, match=text):
        tp.program(function, "net", grid=grid)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"X": np.full((2, 12), np.nan)}, InputError, "non-finite"),
        ({"X": np.ones(12)}, InputError, "X"),
        ({"X": np.ones((2, 13))}, InputError, "positions"),
        ({"X": np.ones((2, 4, 3))}, InputError, "grid|positions"),
        ({"X2": np.ones((2, 6))}, InputError, "dimension"),
        ({"dtype": "float16"}, InputError, "float64"),
        ({"memory": 0}, InputError, "memory"),
        ({"layers": 1}, InputError, "layers"),
        ({"net": "cnn"}, InputError, "program"),
        ({"parameterization": "ntk"}, InputError, "Parameterization"),
    ],
)
def test_bad_input(change, error, text):
    arguments = {"net": NETS["cnn"], "parameterization": tp.ntk, "X": X} | change
    with pytest.raises(error, match=text):
        tp.kernels(**arguments)


def test_what_leaves_the_gaussian_class_is_refused():
    after_mean = tp.program(lambda x: tp.pooled(w, tp.relu(tp.pool(tp.relu(W0 @ x), 2))), "net", grid=(4,))
    both = tp.program(lambda x: w @ tp.tanh(W1.T @ tp.tanh(W1 @ tp.tanh(W0 @ x))))
    for net in (after_mean, both):
        with pytest.raises(ProgramError):
            tp.kernels(net, tp.ntk, X)


def test_limits_of_convolutional_programs_are_refused_with_directions():
    rule = tp.GradientDescent(lr=0.1, steps=2)
    with pytest.raises(
        ProgramError, match=r"one site per layer.*\(KR\.8\) and \(KR\.9\).*tp\.kernels\(.*tp\.KernelDynamics\.of\(.*tp\.simulate"
    ):
        tp.limit(NETS["cnn"], tp.ntk, rule)
    assert tp.KernelDynamics.of(NETS["cnn"], tp.ntk, rule, X, X[:, 0]).at(2).f.shape == (7,)
    page = (Path(__file__).parents[2] / "theory" / "kernel_regime.md").read_text()
    assert r"\mathcal P[S]_{ij}" in page.split(r"\tag{KR.8}")[0][-200:] and r"\tag{KR.9}" in page
