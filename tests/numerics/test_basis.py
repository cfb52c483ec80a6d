"""Bases of sampled vectors against dense linear algebra, with few vectors and with many: directions are found in two ways."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tp_solver.numerics.basis import FEW, MANY, Basis, extend
from tp_solver.numerics.sites import mean, whole

BLOCKS, SITES = 4, 1024
TOL = 0.01
COUNTS = (MANY // 4, 2 * MANY)


def vectors(count: int, decay: float, seed: int = 0) -> np.ndarray:
    """So many rows of length SITES, of order one, whose k-th common direction weighs decay^k."""
    rng = np.random.default_rng(seed)
    weights = decay ** np.arange(120) * np.sqrt(1 - decay**2)
    return (rng.standard_normal((count, 120)) * weights) @ rng.standard_normal((120, SITES))


def in_basis(basis: Basis, rows: np.ndarray, tol: float = TOL, dtype: str = "float64") -> tuple[Basis, np.ndarray]:
    """The basis grown by some vectors, and their coordinates."""
    v = jnp.asarray(rows.reshape(len(rows), BLOCKS, -1).transpose(1, 0, 2), dtype)
    basis, c = jax.jit(extend)(basis, v, mean(v * v), tol)
    return basis, np.asarray(c)


def empty(room: int, dtype: str = "float64") -> Basis:
    return Basis.of(jnp.zeros((BLOCKS, room, SITES // BLOCKS), dtype))


def directions(basis: Basis) -> np.ndarray:
    """Rows of the basis that are in use, (R, SITES)."""
    return np.asarray(whole(basis.rows))[: int(basis.used)]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("count", COUNTS)
def test_directions_are_orthonormal_and_coordinates_are_projections(count, dtype):
    basis, rows = empty(96, dtype), vectors(count, 0.8)
    rounding = 1e-12 if dtype == "float64" else 1e-4
    for rest in (0.0, 0.3):  # from nothing, and from a basis that lacks a part
        rows = rows + rest * vectors(count, 0.7, seed=1)
        basis, c = in_basis(basis, rows, dtype=dtype)
        q = directions(basis)
        assert q @ q.T / SITES == pytest.approx(np.eye(len(q)), abs=rounding)
        assert c[:, : len(q)] == pytest.approx(rows @ q.T / SITES, abs=10 * rounding)
        assert not c[:, len(q) :].any()


@pytest.mark.parametrize("decay", [0.6, 0.8, 0.97])
@pytest.mark.parametrize("count", COUNTS)
def test_what_is_left_out_is_below_the_threshold(count, decay):
    """The largest eigenvalue of the residuals, by a dense solver: for many vectors it is found from below, so may be a little too large."""
    basis, before = empty(480), np.zeros((0, SITES))
    for seed, part in enumerate((1.0, 0.4, 0.2)):
        rows = vectors(count, decay) + part * vectors(count, decay, seed + 1)
        basis, _ = in_basis(basis, rows)
        assert int(basis.used) <= basis.capacity
        q = directions(basis)
        threshold = TOL * max(np.mean(rows**2, axis=1))
        left = rows - rows @ q.T @ q / SITES
        assert np.linalg.eigvalsh(left @ left.T / SITES)[-1] <= 1.1 * threshold
        assert q[: len(before)] == pytest.approx(before, abs=1e-14), "a direction never changes"
        least = np.linalg.eigvalsh((rows - rows @ before.T @ before / SITES) @ rows.T / SITES)
        assert len(q) - len(before) <= np.sum(least > threshold), "no more directions than the eigenvectors above the threshold"
        before = q


SPECTRA = {
    "slow decay": (np.arange(1, 601.0) / 24.5) ** -0.5,
    "slower decay": (np.arange(1, 601.0) / 15.5) ** -0.25,
    "spikes over a bulk": np.r_[[2.0] * 3, [0.8] * 597],
    "many just below": np.r_[1.3, 1.2, 1.1, np.linspace(0.999, 0.2, 200)],
    "evenly spread": np.linspace(1.05, 0.0, 300),
}
"""Eigenvalues of residuals, in units of the threshold; one that is many and alike is what a basis leaves that has grown already."""


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_directions_are_found_among_many_of_nearly_the_same_size(spectrum):
    """Repeated calls: what a first one leaves, the next ones have to find, and nothing more."""
    values, sites = SPECTRA[spectrum], 2048
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    rows = np.sqrt(sites) * (axes * np.sqrt(values)) @ np.linalg.qr(rng.standard_normal((sites, len(values))))[0].T
    basis = Basis.of(jnp.zeros((BLOCKS, 64, sites // BLOCKS)))
    v = jnp.asarray(rows.reshape(len(rows), BLOCKS, -1).transpose(1, 0, 2))
    squares = mean(v * v)
    used = []
    for _ in range(4):
        basis, _ = jax.jit(extend)(basis, v, squares, 1 / float(squares.max()))
        used.append(int(basis.used))
    q = directions(basis)
    left = np.linalg.eigvalsh((rows - rows @ q.T @ q / sites) @ rows.T / sites)[-1]
    assert left <= 1.05
    assert used[-1] <= np.sum(values > 1.0), "no direction is a mixture of small ones"
    if spectrum != "evenly spread":
        assert used[1] == used[-1] == np.sum(values > 1.0) and left < 1.01


def test_leading_directions_of_many_vectors_are_those_of_all():
    """A start that spans what is common, then a change that FEW directions hold: the ones appended span the leading eigenvectors."""
    count = 2 * MANY
    first, change = vectors(count, 0.5), 0.5 * vectors(count, 0.4, seed=3)
    basis, _ = in_basis(empty(96), first)
    held = int(basis.used)
    basis, _ = in_basis(basis, first + change)
    fresh = directions(basis)[held:]
    q = directions(basis)[:held]
    left = first + change - (first + change) @ q.T @ q / SITES
    values, axes = np.linalg.eigh(left @ left.T / SITES)
    keep = values > TOL * max(np.mean((first + change) ** 2, axis=1))
    exact = (left.T @ axes[:, keep] / np.sqrt(values[keep])).T
    assert 2 <= len(fresh) == len(exact) < FEW
    overlap = np.linalg.svd(fresh @ exact.T / SITES, compute_uv=False)
    assert overlap.min() > 1 - 1e-6


def test_more_directions_than_the_few_looked_for_are_all_appended():
    rows = vectors(2 * MANY, 0.95)
    basis, _ = in_basis(empty(120), rows)
    assert int(basis.used) == np.sum(np.linalg.eigvalsh(rows @ rows.T / SITES) > TOL * max(np.mean(rows**2, axis=1))) > FEW


@pytest.mark.parametrize("count", COUNTS)
def test_directions_without_room_are_counted(count):
    rows = vectors(count, 0.9)
    roomy, _ = in_basis(empty(96), rows)
    tight, c = in_basis(empty(8), rows)
    assert int(tight.used) == int(roomy.used) > 8 == c.shape[1]


@pytest.mark.parametrize("count", COUNTS)
def test_vectors_that_are_held_already_change_nothing(count):
    rows = vectors(count, 0.7)
    basis, c = in_basis(empty(96), rows)
    again, same = in_basis(basis, rows)
    assert int(again.used) == int(basis.used)
    assert (np.asarray(again.rows) == np.asarray(basis.rows)).all()
    assert same == pytest.approx(c, abs=1e-12)


@pytest.mark.parametrize("count", COUNTS)
def test_a_nan_brings_no_direction(count):
    rows = vectors(count, 0.7)
    rows[1, 5] = np.nan
    basis, c = in_basis(empty(96), rows)
    assert int(basis.used) == 0
    assert np.isnan(c[1]).all()
