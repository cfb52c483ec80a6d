"""The record of an experiment; it answers the names of the solution, with two leading axes (widths, seeds)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tp_solver import checks
from tp_solver.errors import FileFormatError, InputError, RangeError
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.statements import Program
from tp_solver.program.task import Task
from tp_solver.program.training import Training


class Fields(NamedTuple):
    """Single-site samples of a layer, arrays (widths, seeds, sites, P)."""

    h: np.ndarray
    z: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble:
    """Finite nets of several widths (W) and seeds (S), trained on the same data; :func:`simulate` makes one.

    Attributes:
        f: predictions, (W, S, steps + 1, P) or (W, S, steps + 1, P, K); row t is the state after t updates.
        f_test: the same for the test points, or None.
        loss: sum_mu p_mu l_mu, (W, S, steps + 1).
        loss_test: mean over the test points, or None.
        widths, seeds: what the two leading axes hold (seeds are the labels of the random streams).
        times: rows at which kernels and fields were recorded.
        gamma0, program, parameterization, training, task, centred: what was simulated.
        first_bad: first row that is not finite, -1 for none, (W, S). From there on all records are NaN.
    """

    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    times: tuple[int, ...]
    gamma0: float
    centred: bool
    program: Program
    parameterization: Parameterization
    training: Training
    task: Task
    f: np.ndarray
    loss: np.ndarray
    f_test: np.ndarray | None
    loss_test: np.ndarray | None
    feature_kernels: np.ndarray
    gradient_kernels: np.ndarray
    tangent_kernels: np.ndarray
    site_h: np.ndarray
    site_z: np.ndarray
    first_bad: np.ndarray

    def Phi(self, layer: int, t: int, s: int) -> np.ndarray:
        """Feature kernel (1/n) phi(h_mu(t)) . phi(h_nu(s)), (W, S, P, P), at recorded rows t and s; layers count from 1.

        Raises:
            RangeError: for a layer or row that was not recorded.
        """
        return self.feature_kernels[:, :, self._row("t", t), self._row("s", s), self._layer(layer)]

    def G(self, layer: int, t: int, s: int) -> np.ndarray:
        """Gradient kernel (1/n) g_mu(t) . g_nu(s), (W, S, P, P): g = gamma0 n^m df/dh for one output, the loss gradient
        -gamma0 n^m dLoss/dh for several.

        Raises:
            RangeError: for a layer or row that was not recorded.
        """
        return self.gradient_kernels[:, :, self._row("t", t), self._row("s", s), self._layer(layer)]

    def ntk(self, t: int) -> np.ndarray:
        """Tangent kernel K of row t with the layers' eta but without lr: df/dt = lr K e. Shape (W, S, P, P), or
        (W, S, P, K, P, K) for predictions with an output axis.

        Raises:
            RangeError: for a row that was not recorded.
        """
        return self.tangent_kernels[:, :, self._row("t", t)]

    def fields(self, layer: int, t: int) -> Fields:
        """Samples of the field h and of z (the adjoint of phi(h), scaled like g), for densities, from some sites of every net.

        Raises:
            RangeError: for a layer or row that was not recorded.
        """
        k, row = self._layer(layer), self._row("t", t)
        return Fields(self.site_h[:, :, row, k], self.site_z[:, :, row, k])

    def stderr(self, name: str, *args: Any) -> np.ndarray:
        """Standard error of the mean over seeds, (W, ...): standard deviation over seeds / sqrt(seeds).

        Args:
            name: one of f, f_test, loss, loss_test, Phi, G, ntk.
            args: what the method takes, e.g. ``stderr("Phi", 1, 0, 0)``.

        Raises:
            InputError: for an unknown name, or a single seed.
        """
        values = self._answer(name, args)
        if len(self.seeds) < 2:
            raise InputError("stderr", "an ensemble of one seed", "at least two seeds", "simulate with seeds=8")
        return np.std(values, axis=1, ddof=1) / np.sqrt(len(self.seeds))

    def _answer(self, name: str, args: tuple[Any, ...]) -> np.ndarray:
        arrays = {"f": self.f, "f_test": self.f_test, "loss": self.loss, "loss_test": self.loss_test}
        methods: dict[str, Callable[..., np.ndarray]] = {"Phi": self.Phi, "G": self.G, "ntk": self.ntk}
        checks.one_of("name", name, (*arrays, *methods))
        if name in methods:
            wanted = {"Phi": 3, "G": 3, "ntk": 1}[name]
            if len(args) != wanted:
                raise InputError(
                    f"stderr({name!r}, ...)", args, f"{wanted} further arguments", 'stderr("Phi", layer, t, s), stderr("ntk", t)'
                )
            return methods[name](*args)
        if args:
            raise InputError(f"stderr({name!r}, ...)", args, "no further arguments", f"the whole array is answered: stderr({name!r})")
        value = arrays[name]
        if value is None:
            raise InputError("name", name, "a quantity that was recorded", "give the task X_test and y_test")
        return value

    @property
    def success(self) -> bool:
        """Whether every net stayed finite."""
        return not (self.first_bad >= 0).any()

    @property
    def status(self) -> str:
        """``completed`` or ``nonfinite``."""
        return "completed" if self.success else "nonfinite"

    @property
    def message(self) -> str:
        """What the status means, naming the first net that went wrong."""
        if self.success:
            return f"all {self.first_bad.size} nets completed {self.training.steps} steps"
        bad = np.where(self.first_bad >= 0, self.first_bad, np.iinfo(int).max)
        w, s = (int(k) for k in np.unravel_index(int(np.argmin(bad)), bad.shape))
        row = int(self.first_bad[w, s])
        last = f"last good state: step {row - 1}" if row else "the initial net"
        return (
            f"{int((self.first_bad >= 0).sum())} of {bad.size} nets left the finite numbers; first width {self.widths[w]}, "
            f"seed {self.seeds[s]}, at step {row} ({last}). Lower lr or gamma0, or check the regime of the parameterization"
        )

    def _layer(self, layer: Any) -> int:
        depth = self.program.depth
        if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or not 1 <= layer <= depth:
            raise RangeError("layer", layer, f"an integer from 1 to {depth}", "layers count from 1")
        return int(layer) - 1

    def _row(self, field: str, t: Any) -> int:
        if isinstance(t, bool) or not isinstance(t, (int, np.integer)) or t not in self.times:
            raise RangeError(field, t, f"one of the recorded rows {self.times}", "choose them with simulate(..., times=(...))")
        return self.times.index(int(t))

    def __repr__(self) -> str:
        return (
            f"Ensemble({self.program.name}, {self.parameterization.name}, gamma0 = {self.gamma0:g}, widths {self.widths}, "
            f"{len(self.seeds)} seeds, {self.training}: {self.status})"
        )


_ARRAYS = (
    "f", "loss", "f_test", "loss_test", "feature_kernels", "gradient_kernels", "tangent_kernels", "site_h", "site_z", "first_bad",
)  # fmt: skip
_OPTIONAL = ("f_test", "loss_test")


def ensemble_arrays(ensemble: Ensemble) -> dict[str, np.ndarray]:
    """Everything numeric in an ensemble as named arrays; with the program, parameterization, training and task it is whole."""
    out = {name: getattr(ensemble, name) for name in _ARRAYS if getattr(ensemble, name) is not None}
    for name in ("widths", "seeds", "times", "gamma0", "centred"):
        out[name] = np.asarray(getattr(ensemble, name))
    return out


def from_arrays(
    arrays: Mapping[str, np.ndarray], program: Program, parameterization: Parameterization, training: Training, task: Task
) -> Ensemble:
    """The ensemble that :func:`ensemble_arrays` took apart.

    Raises:
        FileFormatError: naming the missing array, or the one whose shape does not fit.
    """
    required = ("widths", "seeds", "times", "gamma0", "centred", *(n for n in _ARRAYS if n not in _OPTIONAL))
    for name in required:
        if name not in arrays:
            raise FileFormatError("ensemble arrays", f"no array {name!r}", f"arrays {list(required)}", "the file is incomplete")
    widths, seeds, times = (tuple(int(v) for v in np.ravel(arrays[n])) for n in ("widths", "seeds", "times"))
    lead, layers, T, P = (len(widths), len(seeds)), program.depth, len(times), task.P
    starts: dict[str, tuple[int, ...]] = {
        "f": (*lead, training.steps + 1, P),
        "loss": (*lead, training.steps + 1),
        "f_test": (*lead, training.steps + 1),
        "loss_test": (*lead, training.steps + 1),
        "feature_kernels": (*lead, T, T, layers, P, P),
        "gradient_kernels": (*lead, T, T, layers, P, P),
        "tangent_kernels": (*lead, T, P),
        "site_h": (*lead, T, layers),
        "site_z": (*lead, T, layers),
        "first_bad": lead,
    }
    for name, start in starts.items():
        if name in arrays and arrays[name].shape[: len(start)] != start:
            raise FileFormatError(name, f"shape {arrays[name].shape}", f"a shape that begins with {start}", "the file is damaged")
    numeric: dict[str, Any] = {name: np.asarray(arrays[name]) if name in arrays else None for name in _ARRAYS}
    return Ensemble(
        widths, seeds, times, float(arrays["gamma0"]), bool(arrays["centred"]), program, parameterization, training, task, **numeric
    )
