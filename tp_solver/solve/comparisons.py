"""Runs at other settings beside the main ones: what is kept of them for error bars of kernels and for predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tp_solver.solve.deviations import Check
from tp_solver.solve.endings import Ending
from tp_solver.solve.kernel_records import KernelRecords, within
from tp_solver.solve.layout import Layout
from tp_solver.solve.replicates import MAIN, Runs
from tp_solver.solve.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Comparisons:
    """The groups of runs beside the main one, and what they show.

    Attributes:
        groups: for the error bars of kernels.
        checks: which groups to compare.
        endings: of the groups whose deviations were removed from f, and are from predictions.
        removed: the kinds of those deviations.
    """

    groups: Mapping[str, tuple[KernelRecords, ...]] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    endings: Mapping[str, tuple[Ending, ...]] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    @classmethod
    def between(cls, groups: Mapping[str, Runs[Trajectory]], checks: Sequence[Check], removed: frozenset[str]) -> Comparisons:
        """Of all that the runs hold, what is needed later."""
        used = sorted({name for c in checks for name in (c.near, c.far)} - {MAIN})
        corrected = sorted({name for c in checks if c.kind in removed for name in (c.near, c.far)} - {MAIN})
        return cls(
            {name: tuple(KernelRecords.of(tr, groups[name].stride) for tr in groups[name].trajectories) for name in used},
            tuple(checks),
            {name: tuple(Ending.of(tr) for tr in groups[name].trajectories) for name in corrected},
            removed,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, with names that :meth:`from_arrays` understands."""
        out: dict[str, np.ndarray] = {f"check/{c.kind}/{c.near}/{c.far}": np.array(c.factor) for c in self.checks}
        for name, runs in self.groups.items():
            out |= {f"group/{name}/{k}/{n}": a for k, run in enumerate(runs) for n, a in run.arrays().items()}
        out |= {f"removed/{kind}": np.array(True) for kind in self.removed}
        for name, ends in self.endings.items():
            out |= {f"ending/{name}/{k}/{n}": a for k, end in enumerate(ends) for n, a in end.arrays().items()}
            out |= {f"ending/{name}/{k}/time": np.array(end.time) for k, end in enumerate(ends)}
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], plan: Layout) -> Comparisons:
        """Rebuild from :meth:`arrays`; files of earlier versions hold none."""
        checks = []
        for name, factor in within(arrays, "check/").items():
            kind, near, far = name.split("/")
            checks.append(Check(kind, near, far, float(factor)))
        groups = {name: tuple(map(KernelRecords.from_arrays, runs)) for name, runs in _nested(within(arrays, "group/")).items()}
        endings = {
            name: tuple(Ending.from_arrays(run, plan, int(run["time"])) for run in runs)
            for name, runs in _nested(within(arrays, "ending/")).items()
        }
        return cls(groups, tuple(checks), endings, frozenset(within(arrays, "removed/")))


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, list[dict[str, np.ndarray]]]:
    """Arrays "name/replicate/...": name -> per replicate, what follows."""
    out = {}
    for name in dict.fromkeys(n.split("/")[0] for n in arrays):
        mine = within(arrays, f"{name}/")
        out[name] = [within(mine, f"{k}/") for k in range(len({n.split("/")[0] for n in mine}))]
    return out
