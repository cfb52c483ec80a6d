"""The two problems on which accuracy is measured: T3, three points and two hidden layers; E3, ten points and three."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import tp_solver as tp


@dataclass(frozen=True)
class Problem:
    """Equations, data and feature-learning strength."""

    theory: tp.LimitEquations
    task: tp.Task
    gamma0: float

    def solve(self, samples: int, tol: float | None, replicates: int, seed: int, bias: bool = False) -> tp.Solution:
        """The march."""
        return tp.solve(
            self.theory, self.task, self.gamma0, samples, replicates, seed, method=tp.March(tol=tol, bias=bias), progress=False
        )  # fmt: skip


def t3(steps: int = 16) -> Problem:
    """T3: P = D = 3 with a given Gram matrix, two hidden tanh layers, 16 steps, gamma0 = 1.5; and two points to predict."""
    gram = np.array([[1.0, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 1.2]])
    X = np.sqrt(3.0) * np.linalg.cholesky(gram)
    theory = tp.limit(tp.mlp(depth=2, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.5, steps=steps))
    return Problem(theory, tp.Task(X, [1.0, -1.0, 0.5], [[1.0, 0.5, -0.3], [-0.4, 1.2, 0.8]], [0.5, -0.5], "T3"), 1.5)


def e3(steps: int = 100) -> Problem:
    """E3: ten random points in 25 dimensions, three hidden tanh layers, 100 steps, gamma0 = 1."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((10, 25))
    y = np.sign(rng.standard_normal(10))
    theory = tp.limit(tp.mlp(depth=3, activation=tp.tanh), tp.muP, tp.GradientDescent(lr=0.1, steps=steps))
    return Problem(theory, tp.Task(X, y, name="E3"), 1.0)
