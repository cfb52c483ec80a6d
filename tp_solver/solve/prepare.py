"""A theory and a task made numeric: coordinates, constants, and the static layout that a step is compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tp_solver.kernel_regime.constants import numeric_constants
from tp_solver.limit.equations import LimitEquations
from tp_solver.program.losses import Loss
from tp_solver.program.schedules import CONSTANT
from tp_solver.program.statements import Role
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent, Training
from tp_solver.solve.layout import Columns, layout
from tp_solver.solve.machine import input_coordinates
from tp_solver.solve.march import Batch, Setting
from tp_solver.solve.moving import Course


@dataclass(frozen=True, eq=False)
class Prepared:
    """A theory and a task made numeric."""

    setting: Setting
    columns: Columns
    x: np.ndarray
    test_inputs: tuple[np.ndarray, np.ndarray] | None
    y: np.ndarray
    y_test: np.ndarray | None
    kernel_rates: dict[str, float]
    rates: dict[str, float]
    loss: Loss
    course: Course

    def batch(self, gamma0: float, tol: float, dtype: Any) -> Batch:
        """Runtime numbers of a step."""
        P = len(self.x)
        return Batch(
            np.asarray(self.x, dtype),
            np.asarray(self.y, dtype),
            np.full(P, 1 / P, dtype),
            np.asarray(gamma0, dtype),
            np.asarray(tol, dtype),
            {m: np.asarray(r, dtype) for m, r in self.rates.items()},
            {m: np.asarray(r, dtype) for m, r in self.kernel_rates.items()},
        )


def prepare(theory: LimitEquations, task: Task, training: GradientDescent | None = None) -> Prepared:
    """Numbers for everything that the march needs; ``training`` replaces the theory's (a refined gradient flow)."""
    program, loss = theory.program, theory.training.loss
    rule = training or theory.training
    lr = rule.rates(program) if isinstance(rule, GradientDescent) else {m.name: 1.0 for m in program.matrices}
    scales, kernel_rates = numeric_constants(theory.program, theory.spec, task.D)
    y, y_test = task.targets(loss)
    x, x_test, rest = input_coordinates(task.X, task.X_test)
    test_inputs = None if x_test is None or rest is None else (x_test, rest)
    inputs = {m.name: x.shape[1] for m in program.matrices if m.role is Role.INPUT}
    inputs |= {m.name: 1 for m in program.matrices if m.role is Role.BIAS}
    plan = layout(program)
    return Prepared(
        Setting(plan, loss, task.scalar(loss) or y.shape[1] == 1),
        Columns(plan, scales, inputs, y.shape[1]),
        x, test_inputs, y, y_test, kernel_rates,
        {m: lr[m] * r for m, r in kernel_rates.items()}, loss, _course(theory, rule, scales, task.P),
    )  # fmt: skip


def _course(theory: LimitEquations, rule: Training, scales: Mapping[str, float], points: int) -> Course:
    """Numbers of every update."""
    if not isinstance(rule, GradientDescent):  # kernels of a flow: nothing is stepped
        rule = rule.refined(1)
    units = {}
    for name, scale in scales.items():
        deviation = float(theory.spec.matrices[name].deviation)
        units[name] = scale / deviation if deviation else 0.0
    return Course(
        rule.pace(theory.program),
        rule.point_weights(points),
        units,
        scales,
        fades=rule.weight_decay > 0,
        kicks=rule.temperature > 0,
        plain=rule.update.plain and rule.batches is None and rule.schedule == CONSTANT,
    )
