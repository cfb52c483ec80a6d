"""Files: what is read is what was written, and everything else is refused in words."""

from __future__ import annotations

import json
import os
import zipfile

import numpy as np
import pytest
import sympy as sp

import tp_solver as tp
from tp_solver.errors import FileFormatError, InputError
from tp_solver.finite.ensemble import ensemble_arrays
from tp_solver.program.parameterization import PRESETS
from tp_solver.program.serialization import (
    parameterization_from_tree,
    parameterization_to_tree,
    program_from_tree,
    program_to_tree,
    training_from_tree,
    training_to_tree,
)
from tp_solver.restore import KERNEL_READERS, load
from tp_solver.solve.marched import MarchedKernels
from tp_solver.storage import HEADER, SCHEMA, Record, digest, read_record, save_ensemble, save_solution, write_record
from tp_solver.symbols.activation import SHIPPED, X
from tp_solver.symbols.functions import logsumexp, sigmoid, softplus
from tp_solver.symbols.serialization import from_tree, to_tree

RNG = np.random.default_rng(0)
NET = tp.mlp(depth=2, activation=tp.tanh)
TRAIN = tp.GradientDescent(lr=0.3, steps=3)
TASK = tp.Task(RNG.standard_normal((4, 3)), [1.0, -1.0, 1.0, -1.0], RNG.standard_normal((2, 3)), [1.0, -1.0], name="four points")


@pytest.fixture(scope="module")
def kernel_solution():
    return tp.solve(tp.limit(NET, tp.ntk, TRAIN), TASK)


@pytest.fixture(scope="module")
def marched():
    return tp.solve(tp.limit(NET, tp.muP, TRAIN), TASK, samples=64, replicates=2)


@pytest.fixture(scope="module")
def ensemble():
    return tp.simulate(NET, tp.muP, TRAIN, TASK, widths=(4, 8), seeds=2, progress=False)


@pytest.fixture
def saved(kernel_solution, tmp_path):
    path = tmp_path / "solution.npz"
    save_solution(kernel_solution, path)
    return path


# expressions --------------------------------------------------------------------------------------------------------

y, q = sp.Symbol("y"), sp.Symbol("q", positive=True, integer=True)
EXPRESSIONS = [
    *(a.expression for a in SHIPPED),
    *(a.derivative for a in SHIPPED),
    *(getattr(p, f)[k] for p in PRESETS.values() for f in ("a", "b", "c", "alpha") for k in range(3)),
    sigmoid(X) * (1 - sigmoid(X)),
    softplus(-X * y),
    logsumexp(X, 2 * y, q),
    sp.diff(logsumexp(X, y), X),
    sp.Piecewise((X, X > 0), (sp.exp(X) - 1, True)),
    sp.Piecewise((0, sp.And(X > -1, X <= 1)), (X, sp.Or(sp.Ne(X, 2), X < -5)), (1, True)),
    sp.Heaviside(X, sp.Rational(1, 2)) + sp.sign(X) * sp.Abs(X) + sp.Min(X, y, 3),
    sp.Mul(2, X + 1, evaluate=False),
    sp.Add(X, X, evaluate=False),
    sp.Float(0.1) * X + sp.Float("0.1", 60) + sp.Float(-2.5e-300) + sp.Float(0.0),
    sp.Integer(-(7**50)) + sp.Rational(-3, 7) + sp.pi * sp.E ** (q / 2),
    sp.sqrt(2) * sp.erf(X / sp.sqrt(2)) ** 3,
]


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
def test_expressions_come_back(expression):
    back = from_tree(json.loads(json.dumps(to_tree(expression))))
    assert back == expression
    assert sp.srepr(back) == sp.srepr(expression), "also in what is known about symbols"


@pytest.mark.parametrize(
    "expression",
    [sp.Function("g")(X), sp.Integral(X, X), sp.Dummy("x"), sp.I * X, sp.zoo, sp.nan, sp.Derivative(sp.Function("g")(X), X)],
    ids=str,
)
def test_expressions_that_cannot_be_stored(expression):
    with pytest.raises(InputError):
        to_tree(expression)


TREES = [
    "tanh(x)", 3, None, [], [[]], ["Symbol"], ["eval", "1"], ["symbol", "x"], ["symbol", "", {}], ["symbol", "x", {"real": 1}],
    ["symbol", "x", {"__class__": True}], ["integer", "1e5"], ["integer", "9" * 500], ["integer", "٣"],
    ["integer", 3], ["rational", "1", "0"],
    ["float", 0, "1", 10**9, 53], ["float", 2, "1", 0, 53], ["float", 0, "1", 0, 10**9], ["constant", "c"], ["constant", ["pi"]],
    ["Pow", ["integer", "9"], ["integer", "999999999"]],
    ["Pow", ["integer", "9"], ["Pow", ["integer", "9"], ["integer", "300"]]],
    ["tanh", ["integer", "1"], ["integer", "2"]], ["Lambda", ["integer", "1"], ["integer", "1"]], ["os.system", ["symbol", "x", {}]],
    ["symbol", "x", {"positive": True, "negative": True}],
]  # fmt: skip


@pytest.mark.parametrize("tree", TREES, ids=lambda t: str(t)[:40])
def test_trees_that_are_none_of_ours(tree):
    with pytest.raises(FileFormatError) as caught:
        from_tree(tree)
    assert caught.value.hint
    assert len(str(caught.value)) < 600


def test_deep_trees_are_refused():
    tree = ["symbol", "x", {}]
    for _ in range(5000):
        tree = ["tanh", tree]
    with pytest.raises(FileFormatError):
        from_tree(tree)


# programs, parameterizations, training ------------------------------------------------------------------------------


def everything():
    W0, W1, w = tp.input_matrix("W0"), tp.hidden_matrix("W1"), tp.readout("w")
    a = sp.Symbol("a", positive=True)

    def net(x):
        h = tp.tanh(W0 @ x + tp.bias("b", sigma=sp.Rational(1, 3), rate=2)).named("first")
        size = tp.average(lambda v: v**2, h)
        g = tp.entrywise(lambda v, c: v / sp.sqrt(1 + c), W1 @ h + a * h, size)
        return w @ tp.relu(W1.T @ tp.gelu(g))

    return tp.program(net)


@pytest.mark.parametrize("program", [NET, tp.mlp(1, tp.gelu, bias=0.5, output_bias=True), everything()], ids=["mlp", "bias", "everything"])
def test_programs_come_back(program):
    assert program_from_tree(json.loads(json.dumps(program_to_tree(program)))) == program


@pytest.mark.parametrize(
    "parameterization", [*PRESETS.values(), tp.Parameterization("q", a=(0, q, 1 - q), b=0, c=q / 2, sigma=0.3)], ids=lambda p: p.name
)
def test_parameterizations_come_back(parameterization):
    assert parameterization_from_tree(json.loads(json.dumps(parameterization_to_tree(parameterization)))) == parameterization


@pytest.mark.parametrize(
    "training",
    [
        TRAIN,
        tp.GradientDescent((0.1, 0.0, 0.3), 7, tp.Logistic()),
        tp.GradientDescent({"W0": 0.1, "W1": 0.2, "W2": 1 / 3}, 7, tp.CrossEntropy()),
        tp.GradientDescent(0.1, 7, momentum=0.9),
        tp.GradientDescent(0.1, 7, weight_decay=0.1, temperature=0.2, batches=tp.Batches(3), schedule=tp.warmup(2) * tp.cosine(0.1)),
        tp.GradientDescent(0.1, 7, batches=tp.Batches(3, None), schedule=tp.step_decay(2)),
        tp.GradientFlow(2.5, 10),
    ],
    ids=str,
)
def test_training_rules_come_back(training):
    assert training_from_tree(json.loads(json.dumps(training_to_tree(training)))) == training


def test_a_rule_written_before_there_was_momentum():
    tree = {"rule": "gradient_descent", "pace": 0.1, "steps": 3, "loss": "logistic"}
    assert training_from_tree(tree) == tp.GradientDescent(0.1, 3, tp.Logistic())


@pytest.mark.parametrize("tree", [{}, {"rule": "descent"}, {"rule": "gradient_descent", "pace": -1, "steps": 3, "loss": "logistic"}, 3])
def test_trees_of_no_training(tree):
    with pytest.raises(FileFormatError):
        training_from_tree(tree)


def test_trees_of_no_program():
    good = program_to_tree(NET)
    for name in good:
        for wrong in (None, 7, [["Product", 1]], "text"):
            if not (isinstance(good[name], str) and isinstance(wrong, str)):
                with pytest.raises(FileFormatError):
                    program_from_tree(good | {name: wrong})


# records ------------------------------------------------------------------------------------------------------------


def test_a_solution_comes_back(marched, tmp_path):
    path = tmp_path / "sol.npz"
    marched.save(path)
    back = load(path)
    assert back.theory.signature == marched.theory.signature
    for name in ("f", "loss", "f_test", "loss_test"):
        assert np.array_equal(getattr(back, name), getattr(marched, name))
        assert np.array_equal(back.stderr(name), marched.stderr(name))
    steps = TRAIN.steps
    for name, args in {"Phi": (1, steps, 0), "G": (2, 1, steps), "A": (1, steps, 1), "B": (1, steps, 1), "ntk": (steps,)}.items():
        assert np.array_equal(getattr(back, name)(*args), getattr(marched, name)(*args))
        assert np.array_equal(back.stderr(name, *args), marched.stderr(name, *args))
    assert np.array_equal(back.fields(2, steps).z, marched.fields(2, steps).z)
    assert np.array_equal(back.predict(TASK.X_test), marched.predict(TASK.X_test))
    assert (back.status, back.message, back.method, back.gamma0) == (marched.status, marched.message, marched.method, marched.gamma0)
    assert back.task.name == "four points"
    assert str(back) == str(marched)


def test_a_kernel_regime_solution_comes_back(saved, kernel_solution):
    back = load(saved)
    assert np.array_equal(back.f_cov, kernel_solution.f_cov)
    assert np.array_equal(back.predict(TASK.X), kernel_solution.predict(TASK.X))


def test_an_ensemble_comes_back(ensemble, tmp_path):
    save_ensemble(ensemble, tmp_path / "ens.npz")
    back = load(tmp_path / "ens.npz")
    for name, values in ensemble_arrays(ensemble).items():
        assert np.array_equal(ensemble_arrays(back)[name], values), name
    assert (back.program, back.parameterization, back.training) == (NET, tp.muP, TRAIN)
    assert repr(back) == repr(ensemble)


def test_kernels_of_every_kind_have_a_reader():
    assert set(KERNEL_READERS) >= {"MarchedKernels", "StaticKernels"}
    assert KERNEL_READERS[MarchedKernels.__name__] == MarchedKernels.from_arrays


def test_files_are_plain_arrays(saved):
    with np.load(saved, allow_pickle=False) as stored:
        header = json.loads(stored[HEADER].tobytes())
        arrays = {n: stored[n] for n in stored.files if n != HEADER}
    assert (header["schema"], header["kind"]) == (SCHEMA, "solution")
    assert header["sha256"] == digest(arrays)
    assert {"numpy", "jax", "sympy", "python", "tp-solver"} <= set(header["versions"])


def test_writing_is_atomic(saved, kernel_solution, monkeypatch):
    whole = saved.read_bytes()

    def full_disk(*_, allow_pickle):
        raise OSError("no space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_solution(kernel_solution, saved)
    assert saved.read_bytes() == whole
    assert [p.name for p in saved.parent.iterdir()] == [saved.name], "nothing is left behind"


def test_an_existing_file_is_replaced(saved, ensemble):
    save_ensemble(ensemble, saved)
    assert np.array_equal(load(saved).f, ensemble.f)
    assert os.listdir(saved.parent) == [saved.name]


# damage -------------------------------------------------------------------------------------------------------------


def same(a, b):
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("f", "loss", "f_cov")) and str(a) == str(b)


def test_every_truncation_is_refused(saved):
    whole = saved.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 25).astype(int):
        saved.write_bytes(whole[:length])
        with pytest.raises(FileFormatError) as caught:
            load(saved)
        assert str(saved) in caught.value.field
        assert caught.value.hint


def test_flipped_bits_are_refused_or_harmless(saved, kernel_solution):
    """A flip in a date or an unused field of the archive changes nothing; any other must be found."""
    whole, refused = saved.read_bytes(), 0
    places = np.unique(np.linspace(0, len(whole) - 1, 150).astype(int))
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(place % 8)
        saved.write_bytes(bytes(damaged))
        try:
            assert same(load(saved), kernel_solution)
        except FileFormatError as error:
            assert error.hint
            refused += 1
    assert refused > 0.8 * len(places)


def rewritten(path, **changes):
    """The same file with other entries in the header, and a checksum that fits."""
    record = read_record(path)
    header = {k: v for k, v in (record.header | changes).items() if v is not ...}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with open(path, "wb") as stream:
        np.savez(stream, **{HEADER: text}, **record.arrays)


TREE = ["tanh", ["symbol", "x", {}]]
HEADERS = {
    "a later version": {"schema": SCHEMA + 1},
    "no version": {"schema": ...},
    "a version in words": {"schema": "1"},
    "an unknown kind": {"kind": "sweep"},
    "no kind": {"kind": ...},
    "unknown kernels": {"kernels": "FutureKernels"},
    "an unknown status": {"status": "fine"},
    "no program": {"program": ...},
    "a program of something else": {"program": TREE},
    "a negative gamma0": {"gamma0": -1.0},
    "no training": {"training": None},
    "no checksum": {"sha256": ...},
}


@pytest.mark.parametrize("changes", HEADERS.values(), ids=HEADERS)
def test_headers_that_do_not_fit(saved, changes):
    rewritten(saved, **changes)
    with pytest.raises(FileFormatError) as caught:
        load(saved)
    assert str(saved) in caught.value.field
    assert caught.value.hint
    assert len(str(caught.value)) < 700


def test_a_later_version_says_to_update(saved):
    rewritten(saved, schema=SCHEMA + 7)
    with pytest.raises(FileFormatError, match=rf"version {SCHEMA + 7}.*update tp_solver"):
        load(saved)


def test_missing_and_misshapen_arrays(saved):
    record = read_record(saved)
    for name in ("f", "loss", "task/X", "kernels/Phi"):
        write_record(saved, Record("solution", record.header, {n: a for n, a in record.arrays.items() if n != name}))
        with pytest.raises(FileFormatError):
            load(saved)
    write_record(saved, Record("solution", record.header, record.arrays | {"f": record.arrays["f"][:, :2]}))
    with pytest.raises(FileFormatError, match="damaged"):
        load(saved)


def test_swapped_arrays_fail_the_checksum(saved):
    with np.load(saved) as stored:
        arrays = {n: stored[n] for n in stored.files}
    with open(saved, "wb") as stream:
        np.savez(stream, **arrays | {"f": arrays["f"] + 1e-12})
    with pytest.raises(FileFormatError, match="checksum"):
        load(saved)


FOREIGN = {
    "nothing": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("f = 1"),
    "another npz": lambda p: np.savez(p, f=np.ones(3)),
    "a header that is no JSON": lambda p: np.savez(p, header=np.frombuffer(b"{", np.uint8)),
    "a header that is a list": lambda p: np.savez(p, header=np.frombuffer(b"[1]", np.uint8)),
    "a header of numbers": lambda p: np.savez(p, header=np.ones(3)),
    "a deep header": lambda p: np.savez(p, header=np.frombuffer(b"[" * 100_000, np.uint8)),
    "pickled objects": lambda p: np.savez(p, header=np.array([{}], dtype=object)),
    "a zip of text": lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "text"),
    "no file": lambda p: None,
    "a folder": lambda p: p.mkdir(),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files(make, tmp_path):
    path = tmp_path / "foreign.npz"
    make(path)
    with pytest.raises(FileFormatError) as caught:
        load(path)
    assert caught.value.field == str(path)
    assert caught.value.hint


@pytest.mark.parametrize("path", [3, None, "", b"bytes"])
def test_paths_that_are_none(path, kernel_solution):
    with pytest.raises(InputError):
        load(path)
    with pytest.raises(InputError):
        kernel_solution.save(path)


def test_places_that_cannot_be_written(kernel_solution, tmp_path):
    for path in (tmp_path / "no" / "folder.npz", tmp_path):
        with pytest.raises(InputError) as caught:
            kernel_solution.save(path)
        assert caught.value.hint
    with pytest.raises(InputError):
        save_ensemble(kernel_solution, tmp_path / "x.npz")
