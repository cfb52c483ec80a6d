"""``solve``: from equations and data to a solution."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.limit.equations import LimitEquations
from tp_solver.limit.regime import Regime
from tp_solver.numerics.memory_maps import make_room_for_programs
from tp_solver.program.schedules import CONSTANT
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent
from tp_solver.solve.accuracy import tolerance_for
from tp_solver.solve.methods import METHODS, Auto, FixedPoint, KernelRegime, Linear, March, Method
from tp_solver.solve.progress import watched
from tp_solver.solve.solution import Solution, Status

SAMPLES = 4096
"""Samples where nobody says how many; with ``rtol`` they say nothing."""


def solve(
    theory: LimitEquations,
    task: Task,
    gamma0: float = 1.0,
    samples: int = SAMPLES,
    replicates: int = 4,
    seed: int = 0,
    method: str | Method | None = None,
    progress: bool | None = None,
    checkpoint: Any = None,
    rtol: float | None = None,
) -> Solution:
    """Solve the limiting equations on a task, at infinite width.

    Args:
        theory: what :func:`tp_solver.limit` derived.
        task: the data.
        gamma0: feature-learning strength (f = output / gamma0); 0 is the kernel limit.
        samples: Monte-Carlo sites per replicate, even, at least 64; in the kernel regime for kernels without a closed form alone.
        replicates: independent scramblings; standard errors come from them.
        seed: of all random numbers; the same seed gives the same bits.
        method: "march" (default where features are learned), "fixed_point", "linear", "kernel" (default in the kernel
            regime), "auto" (the march to one percent, or ``rtol``, with advice where extrapolated nets are cheaper: then it takes the usual
            samples, and ``message`` and ``details["advice"]`` say what the other way costs), or a record with options such as
            ``March(tol=1e-3)``.
        progress: show a progress bar on stderr; None shows one in a terminal.
        checkpoint: a folder in which the runs of a march are kept: the same call after a crash, an interrupt or in another process
            goes on from there, to the same bits. Files are named by all inputs, so that solves may share a folder; delete them at will.
        rtol: march only, instead of ``samples``: the standard error of f, as a root mean square over times and points, relative to
            that of f. Samples, tolerance and substeps are chosen by rounds of rising effort (``details["rounds"]``), up to 131 072
            samples; where that is not enough the status is "stalled", with the best that was reached.

    Returns:
        The solution; ``status`` says how it ended. A diverging run is no error: it is reported, with the last good state.

    Raises:
        InputError: for malformed arguments, before any compilation.
        ProgramError: for programs that the method cannot represent.
    """
    checks.instance("theory", theory, LimitEquations, "the result of tp.limit(net, parameterization, training)")
    checks.instance("task", task, Task, "a Task such as tp.Task(X, y)")
    gamma0 = checks.number("gamma0", gamma0, minimum=0.0, hint="gamma0 = 0 is the kernel (NTK) limit")
    samples = checks.integer("samples", samples, minimum=64)
    if samples % 2:
        raise InputError("samples", samples, "an even number", "sites come in antithetic pairs")
    replicates = checks.integer("replicates", replicates, minimum=1)
    seed = checks.integer("seed", seed, minimum=0)
    if progress is not None:
        checks.flag("progress", progress)
    chosen = chosen_method(theory, gamma0, method)
    if isinstance(chosen, Auto):
        if rtol is not None:
            rtol = check_target(rtol, samples, replicates, chosen)
        return _advised(theory, task, gamma0, samples, rtol, replicates, seed, chosen, progress, checkpoint)
    if rtol is not None:
        rtol = check_target(rtol, samples, replicates, chosen)
    task.targets(theory.training.loss)
    if theory.program.free_symbols:
        raise InputError(
            "theory",
            f"the symbols {', '.join(map(str, theory.program.free_symbols))}",
            "numbers for all coefficients",
            "net.bind({symbol: value})",
        )
    if checkpoint is not None:
        if not isinstance(chosen, March):
            raise InputError("checkpoint", checkpoint, f"None for method {chosen.name!r}", "only marches are kept")
        if not isinstance(checkpoint, (str, os.PathLike)) or not str(checkpoint) or not Path(checkpoint).is_dir():
            raise InputError("checkpoint", checkpoint, "an existing folder", "create it first; runs are kept there and found again")
    make_room_for_programs()
    with watched(progress) as tick:
        if isinstance(chosen, March):
            from tp_solver.solve.feature import solve_march

            return solve_march(theory, task, gamma0, samples, rtol, replicates, seed, chosen, checkpoint, tick)
        if isinstance(chosen, Linear):
            from tp_solver.solve.feature import solve_linear

            return solve_linear(theory, task, gamma0, chosen, tick)
        if isinstance(chosen, FixedPoint):
            from tp_solver.solve.fixed_point import solve_fixed_point

            return solve_fixed_point(theory, task, gamma0, samples, replicates, seed, chosen, tick)
        from tp_solver.solve.kernel import solve_kernel
        from tp_solver.solve.sampled_kernels import Sampling

        return solve_kernel(theory, task, gamma0, Sampling(samples, replicates, seed, tolerance_for(samples)))


def _advised(
    theory: LimitEquations,
    task: Task,
    gamma0: float,
    samples: int,
    rtol: float | None,
    replicates: int,
    seed: int,
    method: Auto,
    progress: bool | None,
    checkpoint: Any,
) -> Solution:
    """A march to the target, unless its first steps say that nets are the better instrument."""
    from tp_solver.numerics.sites import told_by_first
    from tp_solver.solve.advice import advise_from, try_march

    error = method.error if rtol is None else rtol
    trial = try_march(theory, task, gamma0, method.dtype, seed)
    march = March(dtype=method.dtype)
    if isinstance(trial, Solution):
        if trial.status is Status.INTERRUPTED:
            return replace(trial, message=f"interrupted in the first steps, which were to tell {march.name} or extrapolate")
        # what ends the first steps ends the whole run, which then says so of all its steps
        return solve(theory, task, gamma0, samples, replicates, seed, march, progress, checkpoint)
    advice = advise_from(trial, theory, task, error, method.dtype)
    marching = told_by_first(advice.method == march.name)  # it was timed, and several processes have to do the same
    target = error if marching and samples == SAMPLES else None
    found = solve(theory, task, gamma0, samples, replicates, seed, march, progress, checkpoint, target)
    message = found.message if marching else f"{found.message}; {advice}"
    return replace(found, message=message, details={**found.details, "advice": str(advice)})


def check_target(rtol: Any, samples: int, replicates: int, method: Method) -> float:
    """A relative standard error that the method can choose its effort for.

    Raises:
        InputError: for what is none, another method than a march, or a march whose effort is given already.
    """
    rtol = checks.number("rtol", rtol, above=0.0)
    if isinstance(method, Auto):
        method = March(dtype=method.dtype)
    if not isinstance(method, March):
        raise InputError("rtol", rtol, f"None for method {method.name!r}", "only marches choose their samples: method='march'")
    least = 100 * float(np.finfo(method.dtype).eps)
    if not least <= rtol < 1:
        raise InputError(
            "rtol", rtol, f"a number from {least:.0e} ({method.dtype} resolves no less) to below 1", "rtol=0.01 is one percent"
        )
    if samples != SAMPLES:
        raise InputError("samples", samples, "nothing beside rtol", "rtol chooses the samples; give one of the two")
    if method.tol is not None:
        raise InputError("tol", method.tol, "None beside rtol", "rtol chooses the tolerance too: March() without tol")
    if not method.bias:
        raise InputError("bias", method.bias, "True beside rtol", "the error that rtol bounds holds the biases")
    if replicates < 2:
        raise InputError("replicates", replicates, "at least 2 beside rtol", "a single replicate does not show its scatter")
    return rtol


def chosen_method(theory: LimitEquations, gamma0: float, method: Any) -> Method:
    """The method's record, checked against the regime.

    Raises:
        InputError: for what is no method, or one that cannot solve this theory.
    """
    if method is None:
        method = March() if theory.regime is Regime.FEATURE and gamma0 > 0 else KernelRegime()
        return _able(theory, method)
    if isinstance(method, str):
        method = METHODS[checks.one_of("method", method, METHODS)]()
    checks.instance("method", method, tuple(METHODS.values()), "a method such as 'march' or March(tol=1e-3)")
    if isinstance(method, Auto) and (theory.regime is not Regime.FEATURE or gamma0 == 0):
        method = KernelRegime()
    if not isinstance(method, KernelRegime):
        if theory.regime is not Regime.FEATURE:
            raise InputError(
                "method", method.name, f"'kernel' for the {theory.regime.value} regime", "leave method out: the regime chooses it"
            )
        if gamma0 == 0:
            raise InputError(
                "gamma0", gamma0, f"a number > 0 for method {method.name!r}", "gamma0 = 0 is the kernel limit: method='kernel'"
            )
    return _able(theory, method)


def _able(theory: LimitEquations, method: Method) -> Method:
    """Refuse what a method would ignore in silence."""
    training = theory.training
    if not isinstance(training, GradientDescent) or isinstance(method, Auto):  # the march takes every rule
        return method
    for name, value, able in (
        ("momentum", training.momentum, (March, Linear, KernelRegime)),
        ("weight_decay", training.weight_decay, (March, Linear)),
        ("temperature", training.temperature, (March,)),
        ("batches", training.batches or 0, (March, Linear, KernelRegime)),
        ("schedule", 0 if training.schedule == CONSTANT else training.schedule, (March, Linear, KernelRegime)),
    ):
        if value and not isinstance(method, able):
            raise InputError(
                name, value, f"none for method {method.name!r}",
                f"{' and '.join(repr(a().name) for a in able)} can, and tp.simulate",
            )  # fmt: skip
    return method
