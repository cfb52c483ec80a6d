"""Long series of computations must not use up the memory maps that the system grants a process."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tp_solver as tp
from tp_solver.numerics import memory_maps

X, Y = np.eye(3), np.array([1.0, -1.0, 0.5])
NET, TRAINING = tp.mlp(depth=1, activation=tp.tanh), tp.GradientDescent(lr=0.1, steps=2)

VERBS = {
    "solve": lambda: tp.solve(tp.limit(NET, tp.muP, TRAINING), tp.Task(X, Y), 0.0, progress=False),
    "simulate": lambda: tp.simulate(NET, tp.muP, TRAINING, tp.Task(X, Y), widths=(8,), seeds=1),
    "kernels": lambda: tp.kernels(NET, tp.ntk, X),
}

pytestmark = pytest.mark.skipif(not memory_maps.GRANTED.exists(), reason="no system that counts memory maps")


@pytest.fixture
def granted(tmp_path, monkeypatch):
    """Say how many maps the system grants, and look every time."""

    def grant(count: int) -> None:
        file = tmp_path / "max_map_count"
        file.write_text(f"{count}\n")
        monkeypatch.setattr(memory_maps, "GRANTED", file)

    monkeypatch.setattr(memory_maps, "PATIENCE", -1.0)
    monkeypatch.setattr(memory_maps, "_known", memory_maps._Known())
    return grant


@pytest.mark.parametrize("verb", VERBS)
def test_programs_are_forgotten_when_maps_run_short_and_only_then(verb, granted, compilations):
    granted(10**9)
    VERBS[verb]()
    other = jax.jit(lambda x: jnp.sin(x) @ x)
    other(jnp.ones((7, 7)))
    before = len(compilations)
    VERBS[verb]()
    other(jnp.ones((7, 7)))
    assert len(compilations) == before, "all of it is compiled already"
    granted(1)
    VERBS[verb]()
    after = len(compilations)
    other(jnp.ones((7, 7)))
    assert len(compilations) > after > before


def test_forgetting_gives_maps_back(granted):
    program = jax.jit(lambda x: jnp.tanh(x) @ x + jnp.cumsum(x, axis=0))
    for n in range(2, 12):
        program(jnp.ones((n, n)))
    held = memory_maps.maps_in_use()
    granted(held)
    memory_maps.make_room_for_programs()
    assert memory_maps.maps_in_use() <= held - 50


def test_nothing_is_forgotten_again_while_it_does_not_help(granted, monkeypatch):
    """A process whose maps are other things than programs would compile anew at every call."""
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1))
    granted(1000)
    for held, times in ((900, 1), (910, 1), (990, 1), (1100, 2)):
        monkeypatch.setattr(memory_maps, "maps_in_use", lambda held=held: held)
        memory_maps.make_room_for_programs()
        assert len(cleared) == times, held


def test_looks_are_rare(granted, monkeypatch):
    """Kernels of few inputs take less time than a look."""
    looks = []
    monkeypatch.setattr(memory_maps, "PATIENCE", 60.0)
    monkeypatch.setattr(memory_maps, "maps_in_use", lambda: looks.append(1) or 0)
    for _ in range(5):
        memory_maps.make_room_for_programs()
    assert len(looks) == 1
