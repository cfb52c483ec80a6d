"""``advise``: from the first steps of a march, which instrument reaches a wanted error cheaper (``theory/limit_operator.md``).

The march costs 12 S R operations per point, layer and step, nets of width N cost 6 N^2; what the counts leave open is measured: ranks,
errors and seconds of the march on its own first steps, seconds of nets on a few products of their shapes. The constants below are
about what the first steps cannot show; each says what it was measured on, and ``benchmarks/who_wins.py`` sets predictions beside runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

from tp_solver import checks
from tp_solver.errors import InputError
from tp_solver.limit.equations import LimitEquations
from tp_solver.limit.regime import Regime
from tp_solver.numerics.memory_maps import make_room_for_programs
from tp_solver.program.statements import Role
from tp_solver.program.task import Task
from tp_solver.program.training import GradientFlow
from tp_solver.solve.accuracy import tolerance_for
from tp_solver.solve.feature import COARSE, FINE, HALF, LOOSER, solve_march
from tp_solver.solve.methods import March
from tp_solver.solve.replicates import MAIN
from tp_solver.solve.solution import Solution, Status

STEPS = 20
"""First steps that are marched."""
SAMPLES = 1024
"""Samples of the first steps; half of them, and another tolerance, are tried as well."""
LEVELLING = 0.7
"""Each doubling of the time multiplies ranks by a power of two whose exponent is this share of the last doubling's. From 20 steps that
foretells 61, 121 and 259 directions where there were 58 (ten random points, 320 steps), 146 (40 digits, 160 steps) and 244 (20 MNIST
images of ten classes, 80 steps), at a tolerance of 1e-2."""
SLOPE = 0.7
"""The error that a march reports falls like samples^-SLOPE, its tolerance being tied to them. Measured on digits from 512 to 2 048 samples:
0.37 to 0.49 (10, 40 and 160 of two classes, 10 of ten) and 0.91 (40 of ten). The errors after 20 steps that it starts from are larger than
those after 60, so that seconds come out 0.7 to 2.8 times what was measured."""
CARRIED = 8.0
"""The most directions that S samples can carry are S / CARRIED."""
MOST_SAMPLES = 2**16
"""More are not advised on a CPU."""
SCATTER, SPREADING = 0.5, 0.85
"""Predictions of one net of width N with K outputs scatter by SCATTER K^SPREADING / sqrt(N) of their size. Measured: 0.72, 0.40 and 0.39
for one output (10, 40 and 160 digits), 4.2, 3.5 and 2.9 for ten (10 and 40 digits, 1 000 MNIST images)."""
NARROWEST = 128
"""The narrowest width of an extrapolation: from here to 1 024 the fit in 1/N held on MNIST at gamma0 = 0.1, 1 and 3."""
RATIOS = (1, 2, 4, 8)
"""Widths of an extrapolation in units of the narrowest; the seeds fall in proportion, so that all widths scatter alike."""
FEWEST = 4
"""Seeds of the widest at least."""
OVERHEAD = 1.3
"""Processor seconds of a net over those of its matrix products: with it 4.8 s are foretold for 32, 16, 8 and 4 nets where 16, 8, 6 and 4
took 3.8 (ten digits, 60 steps); not measured elsewhere."""
REPLICATES = 4
"""Of the march that is advised, as ``tp.solve`` has it; it also runs as many of half the samples, at two tolerances."""


@dataclass(frozen=True)
class Advice:
    """Which instrument, and the numbers behind it; prints as one sentence.

    Attributes:
        method: "march" or "extrapolate".
        error: wanted standard error of predictions, in units of their rms size.
        rank: directions of the largest basis of the march after the last step; samples: what it needs.
        march_error: predicted for those samples, above ``error`` where none suffice.
        march_seconds: processor seconds of ``tp.solve`` with four replicates and its runs for the biases.
        widths, seeds: nets for :func:`tp_solver.extrapolate`; nets_seconds: processor seconds to train them.
        steps: of the trial march.
    """

    method: str
    error: float
    rank: int
    samples: int
    march_error: float
    march_seconds: float
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    nets_seconds: float
    steps: int

    def __str__(self) -> str:
        reach = f"reaches {self.error:.1%}" if self.march_error <= self.error else f"stops at {self.march_error:.1%}"
        march = f"the march {reach} in {_duration(self.march_seconds)} ({self.samples} samples, {self.rank} directions at the end)"
        seeds, widths = ("/".join(map(str, v)) for v in (self.seeds, self.widths))
        nets = f"extrapolation reaches {self.error:.1%} in {_duration(self.nets_seconds)} ({seeds} nets of widths {widths})"
        first, verb, second = (march, "tp.solve", nets) if self.method == "march" else (nets, "tp.extrapolate", march)
        return f"{verb}: {first}, while {second}, in processor time predicted from {self.steps} steps"


@dataclass(frozen=True)
class Trial:
    """The first steps of a march.

    Attributes:
        ranks: largest rank after each step.
        growth: exponent of the rank in 1 / tolerance.
        error: relative error of predictions after the last step, of as many replicates as are advised; samples, tol: that it belongs to.
        fixed: processor seconds per step without samples; each: per step, sample and direction.
    """

    ranks: tuple[int, ...]
    growth: float
    error: float
    samples: int
    tol: float
    fixed: float
    each: float


class _Log:
    """Watches marches: per group of runs, and run, the rank and processor time of every step."""

    def __init__(self) -> None:
        self.groups: dict[str, list[list[tuple[int, float]]]] = {}
        self.runs: list[list[tuple[int, float]]] = []

    def expect(self, steps: int) -> None:
        """How many are to come does not matter."""

    def begin(self, group: str, run: str) -> None:
        self.runs = self.groups.setdefault(group, [])
        self.runs.append([])

    def __call__(self, step: int, loss: float, rank: int) -> None:
        if step <= len(self.runs[-1]):  # outgrew its room and was begun again
            self.runs[-1].clear()
        self.runs[-1].append((rank, time.process_time()))

    def of(self, group: str) -> list[tuple[int, float]]:
        """The last run of a group, which compiles nothing."""
        return self.groups[group][-1]


def advise(theory: LimitEquations, task: Task, gamma0: float = 1.0, error: float = 0.01, dtype: str = "float64", seed: int = 0) -> Advice:
    """Say which instrument reaches a wanted error cheaper: the march, or nets of several widths extrapolated in 1/N.

    Marches the first steps with few samples, in three settings, which takes tens of seconds (most of them compilation). Take the
    predicted seconds to a factor of two or three, and the advice as settled where they differ by more;
    ``benchmarks/who_wins.py`` prints predictions next to what was measured.

    Args:
        theory: what :func:`tp_solver.limit` derived, in the feature-learning regime.
        task: the data; predictions at the test points count, at the training points if there are none.
        gamma0: feature-learning strength > 0.
        error: wanted standard error of predictions after training, in units of their rms size.
        dtype: "float64" or "float32", of both instruments.
        seed: of the trial march.

    Raises:
        InputError: for malformed arguments, or outside the feature-learning regime, where nothing needs to be sampled.
    """
    checks.instance("theory", theory, LimitEquations, "the result of tp.limit(net, parameterization, training)")
    checks.instance("task", task, Task, "a Task such as tp.Task(X, y)")
    gamma0 = checks.number("gamma0", gamma0, above=0.0, hint="gamma0 = 0 is the kernel limit, which tp.solve computes exactly")
    error = checks.number("error", error, above=0.0, maximum=1.0, hint="a share of the size of predictions, e.g. 0.01")
    checks.one_of("dtype", dtype, ("float64", "float32"))
    seed = checks.integer("seed", seed, minimum=0)
    if theory.regime is not Regime.FEATURE:
        raise InputError("theory", f"the {theory.regime.value} regime", "feature learning", "tp.solve needs no samples here")
    task.targets(theory.training.loss)
    make_room_for_programs()
    trial = try_march(theory, task, gamma0, dtype, seed)
    if isinstance(trial, Solution):
        if trial.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        raise InputError(
            "theory", f"a march that is {trial.status} ({trial.message})", "a run whose first steps end well", trial.status.advice
        )
    return advise_from(trial, theory, task, error, dtype)


def advise_from(trial: Trial, theory: LimitEquations, task: Task, error: float, dtype: str) -> Advice:
    """The advice that a trial march gives for an error."""
    steps = theory.training.steps
    samples, rank, reached, march_seconds = predict_march(trial, steps, error)
    widths = tuple(NARROWEST * r for r in RATIOS)
    seeds = seeds_for(error, task.targets(theory.training.loss)[0].shape[1])
    nets_seconds = steps * sum(s * OVERHEAD * seconds_per_step(theory, task, n, dtype) for n, s in zip(widths, seeds, strict=True))
    march = reached <= error and march_seconds <= nets_seconds
    return Advice(
        "march" if march else "extrapolate", error, rank, samples, reached, march_seconds, widths, seeds, nets_seconds, len(trial.ranks)
    )


def try_march(theory: LimitEquations, task: Task, gamma0: float, dtype: str, seed: int) -> Trial | Solution:
    """March the first steps: two replicates, two of half the samples, two of those at another tolerance.

    Returns:
        What they tell, or the solution of a march that did not come to the end of these steps.
    """
    training, steps = theory.training, min(STEPS, theory.training.steps)
    if isinstance(training, GradientFlow):
        training = replace(training, time=training.time * steps / training.steps)
    short, log, tol = replace(theory, training=replace(training, steps=steps)), _Log(), tolerance_for(SAMPLES)
    method = March(tol=tol, dtype=dtype, recorded=(0,), tested=(0, steps))
    sol = solve_march(short, task, gamma0, SAMPLES, None, 2, seed, method, None, log)
    if sol.status is Status.INTERRUPTED or sol.steps < steps or not {HALF, COARSE} <= set(log.groups):
        return sol
    main, half = log.of(MAIN), log.of(HALF)
    other = log.of(FINE if FINE in log.groups else COARSE)
    settings = ((SAMPLES, main), (SAMPLES // 2, half), (SAMPLES // 2, other))
    # all steps but the first, as they are told of in bunches
    times = np.array([(run[-1][1] - run[0][1]) / max(1, len(run) - 1) for _, run in settings])
    work = np.array([[1.0, s * np.mean([r for r, _ in run])] for s, run in settings])
    each = float(nnls(work / times[:, None], np.ones(3))[0][1]) if np.all(times > 0) else 0.0  # a single step has no time of its own
    each = max(each, seconds_per_direction(theory, task, main[-1][0], dtype))  # the products themselves, which few samples hide
    fixed = max(0.0, float(np.median(times - each * work[:, 1])))
    growth = float(np.clip(np.abs(np.log(other[-1][0] / half[-1][0])) / np.log(LOOSER), 0.0, 1.0))
    return Trial(tuple(r for r, _ in main), growth, _relative_error(sol) * np.sqrt(2 / REPLICATES), SAMPLES, tol, float(fixed), float(each))


def _relative_error(sol: Solution) -> float:
    name = "f" if sol.f_test is None else "f_test"
    return float(np.sqrt(np.mean(sol.stderr(name)[-1] ** 2) / np.mean(np.square(getattr(sol, name)[-1]))))


def predict_march(trial: Trial, steps: int, error: float) -> tuple[int, int, float, float]:
    """Samples, final rank, relative error and processor seconds of ``tp.solve`` to a wanted error.

    Samples double until the error falls below, and ranks stay below what samples can carry.
    """
    samples = trial.samples // 2
    while True:
        finer = trial.tol / tolerance_for(samples)
        reached = trial.error * (trial.samples / samples) ** SLOPE
        ranks = np.array(predict_ranks(trial.ranks, steps)) * finer**trial.growth
        if (reached <= error and ranks[-1] <= samples / CARRIED) or samples >= MOST_SAMPLES:
            break
        samples *= 2
    ranks = np.minimum(ranks, samples)
    if ranks[-1] > samples / CARRIED:
        reached = max(reached, 1.0)  # noise directions only
    settings = ((REPLICATES, samples, 1.0), (REPLICATES, samples // 2, 1.0), (REPLICATES, samples // 2, LOOSER**-trial.growth))
    seconds = sum(n * np.sum(trial.fixed + trial.each * s * np.minimum(more * ranks, s)) for n, s, more in settings)
    return samples, int(ranks[-1]), reached, float(seconds)


def predict_ranks(known: Sequence[int], steps: int) -> np.ndarray:
    """Largest rank after every step, (steps,), the first ones known: growth levels off from doubling to doubling."""
    count, now = len(known), known[-1]
    if steps <= count:
        return np.array(known[:steps], float)
    exponent = np.log2(now / known[count // 2 - 1]) if count > 1 else 0.0
    doublings = np.log2(np.arange(count + 1, steps + 1) / count)
    gained = exponent * LEVELLING * (1 - LEVELLING**doublings) / (1 - LEVELLING)
    return np.concatenate([known, now * 2.0**gained])


def seeds_for(error: float, outputs: int) -> tuple[int, ...]:
    """Nets per width, from the narrowest, whose extrapolation has a relative error; at least four of the widest."""
    x = 1 / np.array(RATIOS)
    share = 1 / len(x) + x.mean() ** 2 / np.sum((x - x.mean()) ** 2)  # variance of the limit over that of each width's mean
    scatter = SCATTER * outputs**SPREADING
    widest = max(FEWEST, int(np.ceil(share * scatter**2 / (NARROWEST * RATIOS[-1] * error**2))))
    return tuple(widest * RATIOS[-1] // r for r in RATIOS)


def seconds_per_direction(theory: LimitEquations, task: Task, rank: int, dtype: str) -> float:
    """Processor seconds per step, sample and direction of the march's matrix products: six for every hidden matrix."""
    hidden, samples = sum(m.role is Role.HIDDEN for m in theory.program.matrices), 8192
    points = getattr(getattr(theory.training, "batches", None), "size", task.P)
    with jax.enable_x64(True):
        y, q = jnp.full((points, samples), 1e-3, dtype), jnp.full((rank, samples), 1e-3, dtype)
        took = _timed(lambda count: _projections(y, q, count))
    return 3 * hidden * took / (samples * rank)


def _timed(call: Callable[[int], Any]) -> float:
    """Processor seconds per repetition."""
    jax.block_until_ready(call(1))
    took, count = 0.0, 1
    while took < 0.02 and count < 1024:
        count *= 4
        start = time.process_time()
        jax.block_until_ready(call(count))
        took = time.process_time() - start
    return took / count


@jax.jit
def _projections(y: Any, q: Any, count: Any) -> Any:
    """Onto directions and back, ``count`` times."""
    return jax.lax.fori_loop(0, count, lambda _, v: v + 1e-9 * (v @ q.T) @ q, y)


def seconds_per_step(theory: LimitEquations, task: Task, width: int, dtype: str) -> float:
    """Processor seconds of the matrix products of one training step of a net, timed on arrays of their shapes."""
    training = theory.training
    points = getattr(getattr(training, "batches", None), "size", task.P)
    outputs = task.targets(training.loss)[0].shape[1]
    shapes = {Role.INPUT: (width, task.D), Role.READOUT: (outputs, width), Role.BIAS: (width, 1)}
    arrays = [shapes.get(m.role, (width, width)) for m in theory.program.matrices]
    with jax.enable_x64(True):
        w = [jnp.full(s, 1e-3, dtype) for s in arrays]
        x = [jnp.full((s[1], points), 1e-3, dtype) for s in arrays]
        return _timed(lambda count: _products(w, x, count))


@jax.jit
def _products(w: list[Any], x: list[Any], count: Any) -> list[Any]:
    """Forward, backward and update of every matrix, ``count`` times."""

    def step(_: Any, w: list[Any]) -> list[Any]:
        out = []
        for a, v in zip(w, x, strict=True):
            y = jnp.tanh(a @ v)
            back = jnp.tanh(a.T @ y)
            out.append(a + 1e-6 * (y @ (v + back).T))
        return out

    return jax.lax.fori_loop(0, count, step, w)


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"
