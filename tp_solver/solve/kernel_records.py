"""What runs at other settings leave behind for the error bars of kernels: coordinates at the recorded times, and no samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tp_solver.errors import RangeError
from tp_solver.solve.deviations import Check
from tp_solver.solve.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class KernelRecords:
    """The part of a trajectory that kernels need (see :class:`tp_solver.solve.trajectory.Trajectory`), by reported times.

    Attributes:
        recorded: reported times of the rows.
        ntk, coordinates, squares: as there; what is recorded at other times than reported ones does not exist.
    """

    recorded: tuple[int, ...]
    ntk: np.ndarray
    coordinates: Mapping[str, np.ndarray]
    squares: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, run: Trajectory, stride: int) -> KernelRecords:
        """Without samples and state; ``stride`` steps make a reported time."""
        return cls(tuple(t // stride for t in run.recorded), run.ntk, run.coordinates, run.squares)

    def index(self, time: int) -> int:
        """Where a reported time stands.

        Raises:
            RangeError: for a time that was not recorded.
        """
        if time not in self.recorded:
            shown = ", ".join(map(str, self.recorded[:12])) + (f", ..., {self.recorded[-1]}" if len(self.recorded) > 12 else "")
            raise RangeError("t", time, f"a recorded time: {shown}", "solve with method=March(recorded=(...))")
        return self.recorded.index(time)

    def arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, with names that :meth:`from_arrays` understands."""
        out = {"recorded": np.array(self.recorded, dtype=np.int64), "ntk": self.ntk}
        return out | {f"{group}/{v}": a for group in ("coordinates", "squares") for v, a in getattr(self, group).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> KernelRecords:
        """Rebuild from :meth:`arrays`."""
        return cls(
            tuple(map(int, arrays["recorded"])), arrays["ntk"], within(arrays, "coordinates/"), within(arrays, "squares/")
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Comparisons:
    """The groups of runs beside the main one, and what they show."""

    groups: Mapping[str, tuple[KernelRecords, ...]] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, with names that :meth:`from_arrays` understands."""
        out: dict[str, np.ndarray] = {f"check/{c.kind}/{c.near}/{c.far}": np.array(c.factor) for c in self.checks}
        for name, runs in self.groups.items():
            out |= {f"group/{name}/{k}/{n}": a for k, run in enumerate(runs) for n, a in run.arrays().items()}
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Comparisons:
        """Rebuild from :meth:`arrays`; files of earlier versions hold none."""
        checks = []
        for name, factor in within(arrays, "check/").items():
            kind, near, far = name.split("/")
            checks.append(Check(kind, near, far, float(factor)))
        stored = within(arrays, "group/")
        groups = {}
        for name in dict.fromkeys(n.split("/")[0] for n in stored):
            mine = within(stored, f"{name}/")
            count = len({n.split("/")[0] for n in mine})
            groups[name] = tuple(KernelRecords.from_arrays(within(mine, f"{k}/")) for k in range(count))
        return cls(groups, tuple(checks))


def within(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, without that."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
