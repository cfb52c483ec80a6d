"""Memory of a march: predicted, refused over budget before anything is compiled, and a run that stops where it outgrows it."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

import tp_solver as tp

RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 30))
TASK = tp.Task(X, np.sign(X[:, 0]))
THEORY = tp.limit(tp.mlp(depth=3, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.3, steps=4))
MEASURED = """
import sys

import numpy as np
import tp_solver as tp
from tp_solver.solve.memory import Load, march_bytes
from tp_solver.solve.prepare import prepare

X = np.random.default_rng(0).standard_normal((16, 30))
task = tp.Task(X, np.sign(X[:, 0]))
training = tp.GradientDescent(lr=0.3, steps=20, weight_decay=float(sys.argv[1]))
theory = tp.limit(tp.mlp(depth=3, activation=tp.tanh), tp.muP, training)
method = tp.March(bias=False, dtype="float32", tol=0.005)
tp.solve(theory, task, samples=256, replicates=1, method=method)


def peak():
    # of this program alone: getrusage would count that of the process that started it
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])


before = peak()
sol = tp.solve(theory, task, samples=2**15, replicates=2, method=method)
measured = (peak() - before) * 2**10
load = Load(2**15, 2, 4, 2, 21)
print(march_bytes(prepare(theory, task), load, sol.kernels.trajectories[0].capacity) / measured)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are measured in the units of Linux")
@pytest.mark.parametrize("decay", [0.0, 0.01], ids=["partners at rest", "partners that decay"])
def test_the_predicted_peak_is_the_measured_one(decay):
    # bases that are full: the empty part of the room takes addresses, but no memory
    done = subprocess.run([sys.executable, "-c", MEASURED, str(decay)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.75 <= float(done.stdout) <= 1.25, done.stdout


def test_too_much_is_refused_at_once():
    start = time.process_time()
    with pytest.raises(tp.BudgetError, match=r"GiB.*at most 0.2 GiB.*fewer samples.*replicates.*float32.*times"):
        tp.solve(THEORY, TASK, samples=2**16, method=tp.March(memory=0.2))
    with pytest.raises(tp.BudgetError, match="GiB"):  # what no machine has
        tp.solve(THEORY, TASK, samples=2**40)
    assert time.process_time() - start < 2


def test_bases_that_outgrow_the_budget_end_the_run():
    """Many points and a tight tolerance: the first guess of the room fits, the next does not."""
    many = tp.Task(RNG.standard_normal((30, 30)), np.sign(RNG.standard_normal(30)))
    options = {"tol": 1e-4, "bias": False, "memory": 0.12}
    theory = tp.limit(tp.mlp(depth=3, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=3.0, steps=12))
    sol = tp.solve(theory, many, gamma0=2.0, samples=2048, replicates=1, method=tp.March(**options))
    assert sol.status is tp.Status.RANK_SATURATED and "no memory" in sol.message
    assert np.isfinite(sol.f).all() and sol.steps < 12


@pytest.mark.parametrize("memory", [0.0, -1.0, np.nan, "2"])
def test_bad_budgets(memory):
    with pytest.raises(tp.InputError, match="memory"):
        tp.March(memory=memory)
