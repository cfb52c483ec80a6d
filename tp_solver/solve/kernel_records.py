"""What runs at other settings leave behind for the error bars of kernels: coordinates at the recorded times, and no samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tp_solver.errors import RangeError
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


def within(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, without that."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
