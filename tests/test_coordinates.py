"""The coordinate check: measured exponents against counted ones."""

import numpy as np
import pytest
import sympy as sp

from tp_solver import errors
from tp_solver.coordinates import coordinate_check
from tp_solver.program.architectures import mlp
from tp_solver.program.parameterization import PRESETS, Parameterization, mean_field, muP, ntk
from tp_solver.symbols.activation import tanh

NET = mlp(3, tanh)
# Slopes of 20 seeds scatter by 0.02 to 0.03 between widths 32 and 256 (their bootstrap intervals).
OPTIONS = {"widths": (32, 96, 256), "seeds": 20}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_agrees_with_power_counting(preset):
    check = coordinate_check(preset, NET, **OPTIONS)
    assert check.agrees(0.1), str(check)
    low, high = check.intervals.T
    assert (low < check.slopes).all() and (check.slopes < high).all() and (high - low < 0.2).all()


def test_a_wrong_count_is_noticed():
    check = coordinate_check(ntk, NET, **OPTIONS)
    wrong = coordinate_check(muP, NET, **OPTIONS)
    assert not type(check)(**{**vars(check), "slopes": wrong.slopes}).agrees(0.1)
    assert not check.agrees(1e-6)


def test_the_theta_shift_changes_nothing():
    one, two = (coordinate_check(p, NET, **OPTIONS) for p in (muP, mean_field))
    np.testing.assert_allclose(one.changes, two.changes, rtol=1e-9)
    assert one.counted == two.counted


def test_frozen_layers_do_not_move():
    frozen = Parameterization("frozen", muP.a, muP.b, muP.c, muP.alpha, 1, (0, 0, 1))
    check = coordinate_check(frozen, NET, **OPTIONS)
    assert (check.changes[:, :3] == 0).all() and (check.slopes[:3] == -np.inf).all()
    assert check.agrees(0.1), str(check)


def test_it_prints_and_plots():
    check = coordinate_check(muP, NET, **OPTIONS)
    assert "counted" in str(check) and "N = 96" in str(check) and str(check).count("\n") == 5
    assert len(check.plot().axes[0].get_legend().get_texts()) == 4


BAD = [
    {"seeds": 1}, {"seeds": 2.5}, {"widths": (64,)}, {"widths": 64}, {"steps": 0}, {"lr": 0}, {"lr": float("nan")},
    {"gamma0": 0}, {"task": 3}, {"seed": -1},
]  # fmt: skip


@pytest.mark.parametrize("options", BAD, ids=str)
def test_bad_input(options):
    with pytest.raises(errors.TPError, match="Hint"):
        coordinate_check(muP, NET, **options)


def test_symbols_are_refused():
    with pytest.raises(errors.ParameterizationError, match="bind"):
        coordinate_check(Parameterization("mine", (0, sp.Symbol("q"), 0), 0, 0), NET)
    with pytest.raises(errors.InputError, match="net"):
        coordinate_check(muP, mlp)
