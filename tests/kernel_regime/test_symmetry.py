"""Card B4: symmetries of kernels, and learning curves that show what they are worth (benchmarks/symmetry.py has the problem)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import tp_solver as tp
from tp_solver.errors import InputError
from tp_solver.kernel_regime.symmetry import Transformation

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from symmetry import HE, NETS, TARGETS, curve, inputs

LOCAL, SIGNED, ACROSS = TARGETS.values()


def test_which_symmetries_the_kernels_have():
    whole, same, each, shift, order = (
        "rotation of the input",
        "rotation of channels, the same at all positions",
        "rotations of channels, one per position",
        "translation by 1",
        "permutation of positions",
    )
    reports = {name: tp.kernel_symmetry(NETS[name], HE, inputs(6)) for name in ("FCN", "VEC", "LCN", "GAP")}
    assert reports["FCN"].invariant(whole)
    for name in ("VEC", "LCN"):
        assert reports[name].invariant(each) and reports[name].invariant(order) and not reports[name].invariant(whole)
        assert reports[name].separate[shift] > 0.1
    assert reports["GAP"].invariant(same) and not reports["GAP"].invariant(each) and not reports["GAP"].invariant(whole)
    assert reports["GAP"].separate[shift] < 1e-9
    assert "translation by 1" in str(reports["GAP"])


def test_learning_curves_follow_the_symmetry():
    """Claims of the card at 100 and 400 samples."""
    found = {name: curve(net, LOCAL, (100, 400), 300).nmse for name, net in NETS.items()}
    assert found["GAP"][0] < 0.1 and 0.5 < found["VEC"][0] < 0.9 and found["FCN"][0] > 0.9
    assert found["VEC"][1] < 0.15 and found["FCN"][1] > 0.6
    np.testing.assert_allclose(found["LCN"], found["VEC"], rtol=1e-8)
    assert (curve(NETS["GAP"], SIGNED, (100, 400), 300).nmse > 0.9).all()
    turned = {name: curve(NETS[name], LOCAL, (100, 400), 300, turned=True).nmse for name in ("FCN", "VEC")}
    np.testing.assert_allclose(turned["FCN"], found["FCN"], rtol=1e-6)
    assert (turned["VEC"] > 1).all()


@pytest.mark.slow
def test_learning_curves_at_1600_samples():
    nets = {name: curve(NETS[name], ACROSS, (100, 400, 1600), 1000).nmse for name in ("FCN", "VEC", "GAP")}
    assert nets["FCN"][2] < 0.3 and nets["VEC"][2] > 1 and nets["GAP"][2] > 1
    assert (curve(NETS["GAP"], SIGNED, (100, 400, 1600), 1000).nmse > 0.9).all()
    turned = {name: curve(NETS[name], LOCAL, (100, 400, 1600), 1000, turned=True).nmse for name in ("FCN", "VEC")}
    np.testing.assert_allclose(turned["FCN"], curve(NETS["FCN"], LOCAL, (100, 400, 1600), 1000).nmse, rtol=1e-6)
    assert (turned["VEC"] > 1).all()


def test_bad_input():
    X, y = inputs(8), np.arange(8.0)
    with pytest.raises(InputError, match="samples"):
        tp.learning_curve(NETS["VEC"], HE, X, y, X, y, samples=(9,))
    with pytest.raises(InputError, match="samples"):
        tp.learning_curve(NETS["VEC"], HE, X, y, X, y, samples=4)
    with pytest.raises(InputError, match="target"):
        tp.learning_curve(NETS["VEC"], HE, X, y[:3], X, y, samples=(4,))
    with pytest.raises(InputError, match="singular"):
        tp.learning_curve(NETS["VEC"], HE, np.repeat(X[:1], 8, 0), y, X, y, samples=(8,))
    with pytest.raises(InputError, match="shape"):
        tp.kernel_symmetry(NETS["VEC"], HE, X, [Transformation("half", np.eye(3))])
    with pytest.raises(InputError, match="name"):
        tp.kernel_symmetry(NETS["VEC"], HE, X).invariant("mirror")
    with pytest.raises(InputError, match="positions"):
        tp.kernel_symmetry(NETS["VEC"], HE, np.ones((2, 7)))
