"""A target accuracy instead of samples: from the errors of one effort to the next effort that should reach the target.

Every error is a power of a number that the effort sets (``theory/limit_operator.md``, "A target"): the scatter falls with the
samples, and the finite-sample bias as one over them; the truncation goes with the tolerance, the step size with the substeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tp_solver.errors import BudgetError
from tp_solver.solve.deviations import SAMPLING
from tp_solver.solve.solution import Solution, Status

PILOT = 512
"""Samples of the first round."""
CAP = 2**17
"""Most samples that a target may choose."""
ROUNDS = 6
GROWTH = 16
"""Largest factor between the samples of two rounds: slopes measured far below mislead."""
SHARE = 0.4
"""Of the target, for the truncation and for the step size each; the samples have the rest."""
SUBSTEPS = 1024
"""Most Euler steps per reported interval that a target may choose."""
USUAL_ORDER = 0.7
"""Of the scatter in one over the samples, where it cannot be measured."""
RANK_ORDER = 0.3
"""By which power of one over the tolerance ranks grow."""
TERMINAL = (Status.DIVERGED, Status.NONFINITE, Status.LOST_PSD, Status.INTERRUPTED)


@dataclass(frozen=True)
class Effort:
    """What a solve may spend.

    Attributes:
        samples: sites per replicate.
        tol: tolerance of the truncation.
        substeps: of a flow, Euler steps per reported interval.
    """

    samples: int
    tol: float
    substeps: int


def tolerance_for(samples: int) -> float:
    """What so many samples resolve: directions with less of the squared size carry noise."""
    return min(1e-2, 4 / samples)


@dataclass(frozen=True)
class Round:
    """One effort and what came of it: relative errors by kind, the order of the scatter, the largest rank."""

    effort: Effort
    solution: Solution
    errors: dict[str, float]
    order: float
    rank: int

    @property
    def total(self) -> float:
        """Relative standard error of f."""
        return float(np.linalg.norm(list(self.errors.values())))


def solve_to(rtol: float, substeps: int, attempt: Callable[[Effort, float], Solution]) -> Solution:
    """Raise the effort until the relative standard error of f is at most ``rtol``.

    Args:
        rtol: the target.
        substeps: of the first round.
        attempt: solves at an effort; completed if the target is reached.

    Returns:
        The solution that reached the target; or the best one, as STALLED, where the target is out of reach; or the one of the
        round that ended otherwise.
    """
    rounds: list[Round] = []
    effort: Effort | None = Effort(PILOT, tolerance_for(PILOT), substeps)
    refused = ""
    while effort is not None and len(rounds) < ROUNDS:
        try:
            solution = attempt(effort, rtol)
        except BudgetError as error:
            if not rounds:
                raise
            refused = f"; {effort.samples} samples: {error}"
            break
        if solution.status in TERMINAL:
            return _cut(solution, rounds, rtol)
        rounds.append(_round(effort, solution))
        if solution.status is Status.COMPLETED:
            return _noted(rounds[-1], rounds, rtol, Status.COMPLETED, f"{solution.message}; {_reached(rounds[-1], rtol)}")
        effort = next_effort(rounds, rtol)
    best = min(rounds, key=lambda r: r.total if np.isfinite(r.total) else np.inf)
    largest = max(best.errors, key=lambda kind: best.errors[kind])
    needed = needed_samples(rounds, rtol)
    about = f"about {needed:.2g} samples would be needed, at most {CAP} are taken" if needed > CAP else f"{len(rounds)} rounds done"
    text = f"{_reached(best, rtol)}, mostly {largest} ({best.errors[largest]:.2g}); {about}{refused}; raise rtol or replicates"
    return _noted(best, rounds, rtol, Status.STALLED, text)


def needed_samples(rounds: list[Round], rtol: float) -> float:
    """Samples at which scatter, finite-sample bias, rank and tolerance would all allow the target; a power of two."""
    last = rounds[-1]
    order = _sampling_order(rounds)
    room = rtol**2 * (1 - SHARE**2 * (1 + ("step size" in last.errors)))
    factor = 1.0
    while factor < 2.0**40:
        sampling = last.errors.get(SAMPLING, 0.0) * factor**-order
        if sampling**2 + (last.errors.get("finite samples", 0.0) / factor) ** 2 <= room:
            break
        factor *= 2.0
    samples = last.effort.samples * factor
    tol = _needed_tolerance(last, rtol)
    rank = last.rank * max(1.0, last.effort.tol / tol) ** RANK_ORDER
    least = max(8 * rank, 0.5 / tol)
    return float(max(samples, 2.0 ** np.ceil(np.log2(least))))


def next_effort(rounds: list[Round], rtol: float) -> Effort | None:
    """The effort that should reach the target; None where none does."""
    last = rounds[-1]
    if not np.isfinite(last.total):  # a run beside the main ones failed: nothing to go by but more of everything
        wanted = replace(last.effort, samples=min(4 * last.effort.samples, CAP), tol=last.effort.tol / 4, substeps=2 * last.effort.substeps)
        return wanted if wanted.samples > last.effort.samples and wanted.substeps <= SUBSTEPS else None
    needed = needed_samples(rounds, rtol)
    if needed > CAP and len(rounds) > 1 and needed > 2 * CAP:
        return None
    samples = int(min(needed, GROWTH * last.effort.samples, CAP))
    tol = float(f"{min(1e-2, max(_needed_tolerance(last, rtol), 0.5 / samples)):.1e}")
    step = last.errors.get("step size", 0.0) / (SHARE * rtol)
    substeps = int(min(np.ceil(last.effort.substeps * max(1.0, step)), SUBSTEPS))
    wanted = Effort(samples, tol, substeps)
    if wanted == last.effort:  # errors that are noise themselves: one more doubling
        wanted = replace(wanted, samples=2 * samples)
    return wanted if wanted.samples <= CAP else None


def _needed_tolerance(last: Round, rtol: float) -> float:
    """First order in the tolerance; never looser than before."""
    truncation = last.errors.get("truncation", 0.0)
    return last.effort.tol * min(1.0, SHARE * rtol / truncation) if truncation > 0 else last.effort.tol


def _sampling_order(rounds: list[Round]) -> float:
    """Between the first round and the last where there are two, else between all and half of the samples."""
    first, last = rounds[0], rounds[-1]
    order = last.order
    sizes = [r.errors.get(SAMPLING, 0.0) for r in (first, last)]
    if last.effort.samples > first.effort.samples and min(sizes) > 0:
        order = float(np.log(sizes[0] / sizes[1]) / np.log(last.effort.samples / first.effort.samples))
    return float(np.clip(order, 0.5, 1.0))


def _round(effort: Effort, solution: Solution) -> Round:
    details = solution.details
    order = details.get("sampling order")
    rank = max(details["ranks"].values(), default=0)
    return Round(effort, solution, dict(details["errors"]), USUAL_ORDER if order is None else float(order), rank)


def _reached(r: Round, rtol: float) -> str:
    return f"relative error of f {r.total:.2g} for a target of {rtol:g}, with {r.effort.samples} samples and tolerance {r.effort.tol:.2g}"


def _cut(solution: Solution, rounds: list[Round], rtol: float) -> Solution:
    """A round that did not come to its end: what the rounds before it say is better than the part of a run."""
    if solution.status is not Status.INTERRUPTED or not rounds:
        return solution
    return _noted(
        rounds[-1], rounds, rtol, solution.status, f"{solution.message}, in round {len(rounds) + 1}; {_reached(rounds[-1], rtol)}"
    )


def _noted(r: Round, rounds: list[Round], rtol: float, status: Status, message: str) -> Solution:
    """With the way there in the details."""
    listed: list[dict[str, Any]] = [
        {"samples": x.effort.samples, "tolerance": x.effort.tol, "substeps": x.effort.substeps, "error": x.total} for x in rounds
    ]
    return replace(r.solution, status=status, message=message, details={**r.solution.details, "rtol": rtol, "rounds": listed})
