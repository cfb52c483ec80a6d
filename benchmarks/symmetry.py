"""Card B4: what the symmetry of a kernel is worth in samples, claimed beside measured (Xiao and Pennington, arXiv:2207.04612).

Inputs are six patches of dimension six, each on the sphere of squared length six; one hidden ReLU layer acts on patches (or, fully
connected, on all of them), read out per patch (VEC, and LCN with weights of their own per patch) or after a mean over patches (GAP).
Run: python benchmarks/symmetry.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy as np

import tp_solver as tp
from tp_solver.kernel_regime.symmetry import LearningCurve, rotation

PATCHES = CHANNELS = 6
GRID = (PATCHES,)
HE = tp.ntk.times((2**0.5, 2**0.5, 1))
NETS = {
    "FCN": tp.mlp(1, tp.relu),
    "LCN": tp.cnn(1, tp.relu, GRID, size=1, layer=tp.local, head=tp.dense),
    "VEC": tp.cnn(1, tp.relu, GRID, size=1, head=tp.dense),
    "GAP": tp.cnn(1, tp.relu, GRID, size=1, head=tp.pooled),
}
Target = Callable[[np.ndarray], np.ndarray]
SIGNS = np.array([1.0, -1.0] * (PATCHES // 2))
TARGETS: Mapping[str, Target] = {
    "same function of every patch": lambda z: np.sum(z[:, :, 0] * z[:, :, 1], axis=1),
    "sign depends on the patch": lambda z: np.sum(SIGNS * z[:, :, 0] * z[:, :, 1], axis=1),
    "products across patches": lambda z: np.sum(z[:, :, 0] * np.roll(z[:, :, 1], -1, axis=1), axis=1),
}


def inputs(points: int, seed: int = 0) -> np.ndarray:
    """(points, patches x channels), every patch of squared length ``CHANNELS``."""
    z = np.random.default_rng(seed).standard_normal((points, PATCHES, CHANNELS))
    return (z * CHANNELS**0.5 / np.linalg.norm(z, axis=2, keepdims=True)).reshape(points, -1)


def curve(net: tp.Program, target: Target, samples: tuple[int, ...], test: int, turned: bool = False) -> LearningCurve:
    """Test error against samples, the inputs rotated as a whole if ``turned`` (the targets are those of the unrotated ones)."""
    X = inputs(max(samples) + test)
    y = target(X.reshape(len(X), PATCHES, CHANNELS))
    y = y / np.std(y)
    X = X @ rotation(X.shape[1], seed=1).matrix.T if turned else X
    n = max(samples)
    return tp.learning_curve(net, HE, X[:n], y[:n], X[n:], y[n:], samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="at most 400 samples")
    samples = (100, 400) if parser.parse_args().quick else (100, 400, 1600)
    test = 300 if len(samples) == 2 else 1000
    print(f"test NMSE with {test} test points")
    print(f"{'target':<36} {'net':<4} " + " ".join(f"{f'n = {n}':>9}" for n in samples))
    for name, target in TARGETS.items():
        for net, program in NETS.items():
            found = curve(program, target, samples, test)
            print(f"{name:<36} {net:<4} " + " ".join(f"{e:>9.3f}" for e in found.nmse), flush=True)
    for net in ("FCN", "VEC"):
        found = curve(NETS[net], TARGETS["same function of every patch"], samples, test, turned=True)
        print(f"{'the first, all inputs rotated':<36} {net:<4} " + " ".join(f"{e:>9.3f}" for e in found.nmse), flush=True)
    print(
        "claimed: the first target: GAP < .1, VEC in (.5, .9), FCN > .9 at n = 100; VEC < .15, FCN > .6 at n = 400;\n"
        "  the second: GAP > .9 at every n; the third: FCN < .3, VEC and GAP > 1 at n = 1600;\n"
        "  rotated: FCN as before, VEC no longer learns; LCN = VEC throughout"
    )
    print(tp.kernel_symmetry(NETS["GAP"], HE, inputs(6)))
    print(tp.kernel_symmetry(NETS["VEC"], HE, inputs(6)))


if __name__ == "__main__":
    main()
