"""The same bits on one and four devices, and in one and two processes, which end together when one of them is interrupted."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tp_solver.numerics.basis import MANY

RUN = """
import os
import shutil
import signal
import sys
import time

import numpy as np
import jax
import tp_solver as tp

if len(sys.argv) > 2:
    jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
rng = np.random.default_rng(0)
X = rng.standard_normal((POINTS, 2)) @ rng.standard_normal((2, 8))
task = tp.Task(X, np.sign(X[:, 0]), rng.standard_normal((2, 8)), np.ones(2))
rule = tp.GradientDescent(lr=0.3, steps=4, momentum=0.5, weight_decay=0.1, temperature=0.02, batches=tp.Batches(3), schedule=tp.cosine(0.2))
net = tp.mlp(depth=2, activation=tp.tanh)
def solved():
    return tp.solve(tp.limit(net, tp.muP, rule), task, samples=4096, replicates=1, method=tp.March(bias=False), checkpoint=CHECKPOINT)


if len(sys.argv) > 4:  # Ctrl-C in this process alone, during the second step; the copy is what it leaves
    from tp_solver.solve.progress import Watch

    told = Watch.__call__

    def pressed(self, step, loss, rank):
        if step == 2 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        told(self, step, loss, rank)

    Watch.__call__ = pressed
    cut = solved()
    assert cut.status is tp.Status.INTERRUPTED and len(cut.f) == 2, (cut.status, len(cut.f))
    Watch.__call__ = told
    if jax.process_index() == 0:
        shutil.copytree(CHECKPOINT, sys.argv[4])
sol = solved()
assert sol.success, sol.message
out = {"f": sol.f, "f_test": sol.f_test, "loss": sol.loss, "ntk": sol.ntk(4), "Phi": sol.Phi(2, 4, 2), "G": sol.G(1, 4, 4)}
out |= {"h": sol.fields(2, 4).h, "new": sol.predict(X[:2] + 1.0)}
if jax.process_index() == 0:
    np.savez(sys.argv[1], devices=jax.device_count(), **out)
"""


def started(path, devices, *arguments, checkpoint=None, points=4):
    """A process that solves with so many devices of its own."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    script = RUN.replace("CHECKPOINT", repr(checkpoint and str(checkpoint))).replace("POINTS", str(points))
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path), *arguments], env={**os.environ, "XLA_FLAGS": flags}, stderr=subprocess.PIPE, text=True
    )


def result(path, process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one device says."""
    path = tmp_path_factory.mktemp("alone") / "one.npz"
    found = result(path, started(path, 1))
    assert found["devices"] == 1
    return found


def same_bits(one, other):
    assert set(one) == set(other)
    return [name for name in one if name != "devices" and one[name].tobytes() != other[name].tobytes()]


def test_four_devices_give_the_same_bits(alone, tmp_path):
    found = result(tmp_path / "four.npz", started(tmp_path / "four.npz", 4))
    assert found["devices"] == 4
    assert same_bits(alone, found) == []


def test_many_points_give_the_same_bits_on_four_devices(tmp_path):
    """Directions of many vectors are found otherwise."""
    paths = {devices: tmp_path / f"{devices}.npz" for devices in (1, 4)}
    one, four = (result(path, started(path, devices, points=MANY + 2)) for devices, path in paths.items())
    assert len(one["f"][0]) == MANY + 2
    assert same_bits(one, four) == []


@pytest.mark.slow
def test_one_core_gives_the_same_bits(alone, tmp_path):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not bind processes to cores")
    process = started(tmp_path / "core.npz", 1)
    os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    assert same_bits(alone, result(tmp_path / "core.npz", process)) == []


def test_two_processes_give_the_same_bits(alone, tmp_path):
    """Over loopback, two devices each. An interrupt of the second one ends both after the same step; both go on from the
    checkpoint, and so does a process alone."""
    folder, cut = tmp_path / "kept", tmp_path / "cut"
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    path = tmp_path / "two.npz"
    both = [started(path, 2, address, str(k), str(cut), checkpoint=folder) for k in (0, 1)]
    try:
        _, errors = both[1].communicate(timeout=300)
        assert both[1].returncode == 0, errors[-3000:]
        found = result(path, both[0])
    finally:  # one that waits for the other would wait for ever
        for process in both:
            process.kill()
    assert found["devices"] == 4
    assert same_bits(alone, found) == []
    again = tmp_path / "again.npz"
    for left in (folder, cut):
        assert len(list(left.iterdir())) == 1
    assert same_bits(alone, result(again, started(again, 1, checkpoint=cut))) == []
