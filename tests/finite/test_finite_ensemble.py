"""The ensemble's record: reproducibility, precision, memory, failure, and what it says to bad input."""

import time
from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from tp_solver import errors
from tp_solver.finite import dynamics
from tp_solver.finite.ensemble import ensemble_arrays, from_arrays
from tp_solver.finite.experiment import _base, _first_row, clock_of, march, moving_from, precision, prepare
from tp_solver.finite.simulate import simulate
from tp_solver.program.architectures import mlp
from tp_solver.program.losses import Logistic
from tp_solver.program.parameterization import Parameterization, muP, standard
from tp_solver.program.schedules import Batches, cosine
from tp_solver.program.task import Task
from tp_solver.program.tracing import bias, hidden_matrix, input_matrix, program, readout
from tp_solver.program.training import GradientDescent
from tp_solver.symbols.activation import Activation, relu, tanh

RNG = np.random.default_rng(1)
TASK = Task(RNG.standard_normal((4, 3)), np.array([1.0, -1.0, 0.5, -0.2]), RNG.standard_normal((2, 3)), np.array([0.3, -0.3]))
NET, TRAIN = mlp(2, tanh), GradientDescent(0.3, 12)
Q = sp.Symbol("q", real=True)


def run(**options):
    defaults = {"net": NET, "parameterization": muP, "training": TRAIN, "task": TASK, "widths": (8, 16), "seeds": 3, "progress": False}
    return simulate(**(defaults | options))


@pytest.fixture(scope="module")
def ens():
    return run()


def test_shapes_and_times(ens):
    assert ens.f.shape == (2, 3, 13, 4) and ens.f_test.shape == (2, 3, 13, 2)
    assert ens.loss.shape == ens.loss_test.shape == (2, 3, 13)
    assert ens.times == tuple(range(13)) and ens.widths == (8, 16) and ens.seeds == (0, 1, 2)
    assert ens.Phi(1, 3, 7).shape == ens.G(2, 0, 12).shape == ens.ntk(5).shape == (2, 3, 4, 4)
    h, z = ens.fields(1, 12)
    assert h.shape == z.shape == (2, 3, 8, 4)
    np.testing.assert_allclose(ens.Phi(1, 3, 7), ens.Phi(1, 7, 3).swapaxes(-1, -2))
    np.testing.assert_allclose(np.einsum("snp,snq->spq", np.tanh(h[0]), np.tanh(h[0])) / 8, ens.Phi(1, 12, 12)[0], atol=1e-14)
    assert ens.status == "completed" and ens.success and "6 nets" in ens.message


def test_default_times_of_a_long_run():
    ens = run(training=GradientDescent(0.3, 50), widths=(8,), seeds=1)
    assert ens.times == (0, 12, 25, 38, 50)
    assert run(training=GradientDescent(0.3, 50), widths=(8,), seeds=1, times=(50, 7)).times == (7, 50)


def test_same_seed_same_bits_and_nets_do_not_depend_on_each_other(ens):
    again = run(widths=(16, 8), seeds=(2, 0))
    assert np.array_equal(again.f[0, 0], ens.f[1, 2]) and np.array_equal(again.f[1, 1], ens.f[0, 0])
    other = run(seed=1)
    assert np.abs(other.f - ens.f).max() > 0.01
    assert len(np.unique(ens.f[:, :, 5, 0])) == 6


def test_nets_side_by_side_are_the_nets_one_by_one(ens):
    e = prepare(NET, muP, TRAIN, TASK, 1.0, (16,), 3, False, 0, "float64")
    with precision():
        series, looks = march(e, 16, e.seeds, (12,), lambda *state: dynamics.look(e.net, 4, *state), clock_of(e, 16))
    np.testing.assert_allclose(series["f"][..., 0], ens.f[1], atol=1e-12)
    np.testing.assert_allclose(looks[0].ntk[:, :, 0, :, 0], ens.ntk(12)[1], atol=1e-11)


def test_what_is_recorded_does_not_change_the_run(ens):
    assert np.array_equal(run(times=(3,)).f, ens.f)


def test_float32_follows_float64(ens):
    single = run(dtype="float32")
    assert single.f.dtype == np.float32 and ens.f.dtype == np.float64
    # Rounding at 1e-7, a dozen steps of a stable run.
    np.testing.assert_allclose(single.f, ens.f, atol=1e-5)
    np.testing.assert_allclose(single.Phi(2, 12, 12), ens.Phi(2, 12, 12), atol=1e-5)
    np.testing.assert_allclose(single.ntk(12), ens.ntk(12), atol=1e-4)


def test_stderr(ens):
    np.testing.assert_allclose(ens.stderr("f"), ens.f.std(axis=1, ddof=1) / np.sqrt(3))
    assert ens.stderr("Phi", 1, 0, 12).shape == (2, 4, 4) and ens.stderr("ntk", 4).shape == (2, 4, 4)
    for call in (("fa",), ("f", 1), ("Phi", 1), ("ntk",)):
        with pytest.raises(errors.InputError, match="Hint"):
            ens.stderr(*call)
    with pytest.raises(errors.InputError, match="at least two seeds"):
        run(widths=(8,), seeds=1).stderr("f")


def test_out_of_range(ens):
    for call in (
        lambda: ens.Phi(0, 0, 0), lambda: ens.Phi(3, 0, 0), lambda: ens.G(1, 13, 0), lambda: ens.G(1, 0, -1),
        lambda: ens.ntk(1.5), lambda: ens.fields(True, 0), lambda: ens.fields(1, 99),
    ):  # fmt: skip
        with pytest.raises(errors.RangeError, match="Hint"):
            call()


def test_arrays_there_and_back(ens):
    arrays = ensemble_arrays(ens)
    back = from_arrays(arrays, NET, muP, TRAIN, TASK)
    assert np.array_equal(back.f, ens.f) and np.array_equal(back.G(1, 2, 3), ens.G(1, 2, 3))
    assert back.widths == ens.widths and back.times == ens.times and back.message == ens.message
    del arrays["f"]
    with pytest.raises(errors.FileFormatError, match="no array 'f'"):
        from_arrays(arrays, NET, muP, TRAIN, TASK)
    with pytest.raises(errors.FileFormatError, match="shape"):
        from_arrays(ensemble_arrays(ens) | {"loss": ens.loss[:, :, 1:]}, NET, muP, TRAIN, TASK)


def test_task_without_test_points():
    ens = run(task=Task(TASK.X, TASK.y), widths=(8,), seeds=2, times=(0,))
    assert ens.f_test is None and ens.loss_test is None
    with pytest.raises(errors.InputError, match="X_test"):
        ens.stderr("f_test")
    assert np.array_equal(ens.f, run(widths=(8,), seeds=2).f)


def test_a_diverging_run_says_where():
    ens = run(net=mlp(2, Activation("cube", lambda x: x**3)), training=GradientDescent(20.0, 12), parameterization=standard)
    assert not ens.success and ens.status == "nonfinite"
    w, s, row = min(((w, s, ens.first_bad[w, s]) for w in range(2) for s in range(3) if ens.first_bad[w, s] >= 0), key=lambda k: k[2])
    assert f"width {ens.widths[w]}, seed {s}, at step {row}" in ens.message
    assert np.isfinite(ens.f[w, s, :row]).all() and np.isnan(ens.f[w, s, row:]).all() and np.isnan(ens.loss_test[w, s, row:]).all()
    assert np.isnan(ens.Phi(1, 12, 0)[w, s]).all() and np.isnan(ens.ntk(12)[w, s]).all()
    assert np.isfinite(ens.Phi(1, 0, 0)).all() and np.isfinite(ens.ntk(row - 1)[w, s]).all()


def test_memory_is_refused_before_anything_runs():
    began = time.perf_counter()
    with pytest.raises(errors.BudgetError) as caught:
        run(widths=(64, 100_000))
    assert time.perf_counter() - began < 2
    assert "width 100000" in str(caught.value) and all(word in str(caught.value) for word in ("width", "times", "float32", "GiB"))
    with pytest.raises(errors.BudgetError):
        run(memory=1e4)


RULES = {
    "descent": {},
    "heavy ball": {"momentum": 0.5},
    "decay": {"weight_decay": 0.1},
    "decay and momentum": {"weight_decay": 0.1, "momentum": 0.5},
    "noise": {"temperature": 0.1, "batches": Batches(2), "schedule": cosine()},
    "everything": {"momentum": 0.5, "weight_decay": 0.1, "temperature": 0.1},
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_memory_estimate_is_that_of_the_compiled_step(rule):
    width = 1000
    e = prepare(NET, muP, replace(TRAIN, **rule), TASK, 1.0, (width,), 1, False, 0, "float64")
    with precision():
        weights, numbers, data = e.draw(width, (0,)), e.numbers(width), e.data
        base = _base(e, weights, numbers, data)
        rows = _first_row(e, dynamics.row(e.net, weights, base, numbers, data))
        moving = moving_from(e, width, (0,), weights)
        step = dynamics.advance.lower(e.net, e.rule, moving, rows, base, numbers, data, clock_of(e, width), 0, 1).compile()
    used = step.memory_analysis()
    peak = used.argument_size_in_bytes + used.temp_size_in_bytes
    assert 0.75 < e.working_bytes(width, 1) / peak < 1.25


SYMBOLIC = program(lambda x: readout("w") @ (Q * tanh(hidden_matrix("W1") @ tanh(input_matrix("W0") @ x))))
BIASED = program(lambda x: readout("w") @ tanh(input_matrix("W0") @ x + bias("b", sigma=Q)))
BAD = [
    ({"net": tanh}, "net"),
    ({"net": mlp}, "net"),
    ({"net": SYMBOLIC}, "bind"),
    ({"net": BIASED}, "bias b"),
    ({"parameterization": "muP"}, "parameterization"),
    ({"parameterization": Parameterization("mine", (0, Q, Q), 0, 0)}, "bind"),
    ({"training": GradientDescent}, "call it"),
    ({"training": 0.1}, "training"),
    ({"training": GradientDescent((0.1, 0.2), 3)}, "lr"),
    ({"training": GradientDescent(0.1, 3, Logistic())}, "labels -1 or"),
    ({"task": (TASK.X, TASK.y)}, "task"),
    ({"gamma0": 0}, "kernel"),
    ({"gamma0": float("nan")}, "gamma0"),
    ({"gamma0": -1.0}, "gamma0"),
    ({"gamma0": "1"}, "gamma0"),
    ({"widths": 128}, "widths"),
    ({"widths": ()}, "widths"),
    ({"widths": (64, 0)}, r"widths\[1\]"),
    ({"widths": (64, 64.0)}, r"widths\[1\]"),
    ({"widths": (64, 64)}, "different"),
    ({"seeds": 0}, "seeds"),
    ({"seeds": 2.0}, "seeds"),
    ({"seeds": (1, -1)}, r"seeds\[1\]"),
    ({"seeds": True}, "seeds"),
    ({"centred": 1}, "centred"),
    ({"times": (0, 13)}, "times"),
    ({"times": 3}, "times"),
    ({"times": (-1,)}, r"times\[0\]"),
    ({"seed": -1}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"dtype": "float16"}, "dtype"),
    ({"memory": 0}, "memory"),
    ({"memory": "2GB"}, "memory"),
    ({"progress": "yes"}, "progress"),
]


@pytest.mark.parametrize(("options", "word"), BAD, ids=[f"{next(iter(options))} {k}" for k, (options, _) in enumerate(BAD)])
def test_bad_input(options, word):
    began = time.perf_counter()
    with pytest.raises(errors.TPError, match=word) as caught:
        run(**options)
    assert time.perf_counter() - began < 0.5
    assert "expected" in str(caught.value) and "Hint" in str(caught.value)


def test_relu_runs_and_shows_progress(capsys):
    for progress, wanted in ((True, True), (None, False), (False, False)):  # stderr is no terminal here
        run(net=mlp(1, relu), widths=(8,), seeds=1, progress=progress, times=(12,))
        assert ("net" in capsys.readouterr().err) is wanted
