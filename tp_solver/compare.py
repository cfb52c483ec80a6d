"""``compare``: a solved limit beside an ensemble of finite nets, with the errors of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tp_solver import checks
from tp_solver.errors import InputError, ParameterizationError, RangeError
from tp_solver.finite.ensemble import Ensemble
from tp_solver.limit.spec import limit_spec
from tp_solver.program.losses import SquaredError
from tp_solver.program.training import GradientDescent, Training
from tp_solver.solve.solution import Solution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 2000
"""Bootstrap resamplings of the seeds."""
COVERAGE = 0.95


class Row(NamedTuple):
    """One line of the table: nets of the largest width, averaged over seeds, against the limit.

    Attributes:
        quantity: what is compared.
        theory, nets: the two values, or None where many numbers are compared at once.
        deviation: nets minus theory for a single number, else root mean square or relative Frobenius norm.
        stderr: combined standard error of the deviation (over seeds, and of the solution), in the same measure.
        extreme: whether it is the largest of many deviations, which is larger than its standard error also by chance.
    """

    quantity: str
    theory: float | None
    nets: float | None
    deviation: float
    stderr: float
    extreme: bool = False

    @property
    def sigmas(self) -> float:
        """Size of the deviation in units of its combined standard error."""
        if self.deviation == 0:
            return 0.0
        return abs(self.deviation) / self.stderr if self.stderr > 0 else float("inf")


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """A solution beside an ensemble; :func:`compare` makes one. Prints as a table, draws with :meth:`plot`.

    Attributes:
        sol, ens: what was compared.
        rows: the table, nets of the largest width against the limit.
        widths: in increasing order; the following arrays go with them.
        per_seed: rms over times and points of f - (f of the limit), net by net, (widths, seeds).
        seed_mean: the same of the mean over seeds, (widths,).
        noise: what the standard errors of nets and solution alone would make of ``seed_mean``, (widths,).
        slope: fitted power of the width in the per-seed deviation (rms over seeds), None for a single width.
        slope_interval: its 95 % bootstrap interval over seeds, or None.
        notes: what could not be compared, and why.
    """

    sol: Solution
    ens: Ensemble
    rows: tuple[Row, ...]
    widths: tuple[int, ...]
    per_seed: np.ndarray
    seed_mean: np.ndarray
    noise: np.ndarray
    slope: float | None
    slope_interval: tuple[float, float] | None
    notes: tuple[str, ...] = ()

    def __getitem__(self, quantity: str) -> Row:
        """One row of the table by name, e.g. ``comparison["f, rms"]``.

        Raises:
            RangeError: listing the names.
        """
        for row in self.rows:
            if row.quantity == quantity:
                return row
        raise RangeError("quantity", quantity, f"one of {[r.quantity for r in self.rows]}", "print the comparison to see its rows")

    @property
    def rms_f(self) -> float:
        """Rms over times and training points of the seed mean of f minus the limit, at the largest width."""
        return float(self.seed_mean[-1])

    @property
    def stderr_f(self) -> float:
        """Rms over times and training points of the combined standard error of that difference."""
        return float(self.noise[-1])

    def agrees(self, sigmas: float = 3.0) -> bool:
        """Whether every deviation, extremes apart, is at most ``sigmas`` combined standard errors."""
        sigmas = checks.number("sigmas", sigmas, above=0.0)
        return all(np.isfinite(r.stderr) and r.sigmas <= sigmas for r in self.rows if not r.extreme)

    def plot(self, path: Any = None) -> Figure:
        """One figure: losses, deviation against width, and final kernels side by side.

        Args:
            path: where to save it as well (the suffix decides the format), or None.

        Raises:
            InputError: for a path whose folder does not exist, or an unknown suffix.
        """
        from tp_solver.plot import comparison, save

        figure = comparison(self)
        if path is not None:
            save(figure, path)
        return figure

    def __str__(self) -> str:
        cells = self._cells()
        sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [self._title()]
        for first, *others in cells:
            lines.append("  ".join(["", first.ljust(sizes[0]), *(c.rjust(n) for c, n in zip(others, sizes[1:], strict=True))]))
        lines += ["", *(f"  {line}" for line in self._against_width()), *(f"  note: {n}" for n in self.notes)]
        return "\n".join(lines)

    __repr__ = __str__

    def markdown(self) -> str:
        """The table, the deviation against width, and the notes, as Markdown."""
        head, *body = self._cells()
        lines = ["| " + " | ".join(head) + " |", "|" + "|".join([" :-- ", *[" --: "] * (len(head) - 1)]) + "|"]
        lines += ["| " + " | ".join(c.replace("|", r"\|") for c in line) + " |" for line in body]
        return "\n".join([*lines, "", "```text", *self._against_width(), "```", *(f"\n*{n}*" for n in self.notes)])

    _repr_markdown_ = markdown

    def _title(self) -> str:
        sol, ens = self.sol, self.ens
        return (
            f"limit ({sol.method}) against {len(ens.seeds)} nets of width {self.widths[-1]}: {sol.theory.program.name}, "
            f"{ens.parameterization.name}, gamma0 = {sol.gamma0:g}, {sol.theory.training}"
        )

    def _cells(self) -> list[list[str]]:
        def shown(x: float | None) -> str:
            return "" if x is None else f"{x:.5f}"

        cells = [["quantity", "theory", f"N = {self.widths[-1]}", "deviation", "s.e.", "in s.e."]]
        for r in self.rows:
            cells.append([r.quantity, shown(r.theory), shown(r.nets), f"{r.deviation:.2e}", f"{r.stderr:.1e}", f"{r.sigmas:.1f}"])
        return cells

    def _against_width(self) -> Iterator[str]:
        yield f"{'width':>7} {'rms deviation of f, per net':>28} {'of the mean over seeds':>23} {'its s.e.':>9}"
        for k, width in enumerate(self.widths):
            yield f"{width:>7} {_rms(self.per_seed[k]):>28.5f} {self.seed_mean[k]:>23.5f} {self.noise[k]:>9.5f}"
        if self.slope is not None and self.slope_interval is not None:
            low, high = self.slope_interval
            yield f"per net, the deviation falls as width^({self.slope:.3f}), {COVERAGE:.0%} interval [{low:.3f}, {high:.3f}]"


def compare(sol: Solution, ens: Ensemble) -> Comparison:
    """Set a solution beside an ensemble of the same program, parameterization, training, data and gamma0.

    Parameterizations count as the same if their limit is (a theta-shift changes nothing). Where the initial function stays
    random (kernel regime), the variance over seeds is compared as well as the mean. Errors combine the standard error over
    seeds and that of the solution in quadrature; that of a variance is the Gaussian one, variance x sqrt(2 / (seeds - 1)).

    Args:
        sol: what :func:`tp_solver.solve` returned.
        ens: what :func:`tp_solver.simulate` returned, with at least two seeds.

    Raises:
        InputError: naming what differs, or for a run that did not end well.
    """
    sol = checks.instance("sol", sol, Solution, "the result of tp.solve(theory, task)")
    ens = checks.instance("ens", ens, Ensemble, "the result of tp.simulate(net, ...)")
    _require_same(sol, ens)
    if sol.steps < ens.training.steps:
        raise InputError("sol", f"a run of {sol.steps} steps that ended as {sol.status}", "a run that was finished", sol.message[:200])
    if not ens.success:
        raise InputError("ens", f"an ensemble that ended as {ens.status}", "nets that all stayed finite", ens.message[:200])
    if len(ens.seeds) < 2:
        raise InputError("ens", "a single seed", "at least two seeds, to know the errors", "simulate with seeds=8")
    order = np.argsort(ens.widths)
    rows, notes = _table(sol, ens, int(order[-1]))
    if not sol.success:
        notes.insert(0, f"the solution ended as {sol.status}: {sol.message}")
    difference = (ens.f - sol.f)[order]
    per_seed = np.sqrt(np.mean(difference.reshape(*difference.shape[:2], -1) ** 2, axis=2))
    seed_mean = np.array([_rms(d.mean(axis=0)) for d in difference])
    noise = np.array([_rms(np.hypot(e, sol.stderr("f"))) for e in ens.stderr("f")[order]])
    widths = tuple(int(ens.widths[k]) for k in order)
    if _random(sol, ens):
        notes.append("f(0) differs from net to net at every width, so that the deviation per net does not fall: centred=True removes it")
    slope, interval = _fitted(widths, per_seed)
    return Comparison(sol, ens, tuple(rows), widths, per_seed, seed_mean, noise, slope, interval, tuple(notes))


def _require_same(sol: Solution, ens: Ensemble) -> None:
    """Refuse records of different runs."""

    def differ(what: str, one: Any, other: Any, hint: str) -> InputError:
        return InputError("sol, ens", f"different {what}: {one} and {other}", "two records of the same run", hint)

    theory = sol.theory
    a, b = theory.program, ens.program
    if (a.matrices, a.statements, a.output) != (b.matrices, b.statements, b.output):
        raise differ("programs", a.name, b.name, "pass the same net to tp.limit and tp.simulate")
    if theory.parameterization != ens.parameterization:
        try:
            same = theory.spec == limit_spec(ens.program, ens.parameterization)
        except ParameterizationError:
            same = False
        if not same:
            names = theory.parameterization.name, ens.parameterization.name
            raise differ("parameterizations", *names, "only parameterizations with the same limit can be compared")
    for what, read in _TRAINING.items():
        one, other = read(theory.training, a), read(ens.training, b)
        if one != other:
            raise differ(what, one, other, "pass the same training rule to tp.limit and tp.simulate")
    for name in ("X", "y", "X_test", "y_test"):
        x, z = getattr(sol.task, name), getattr(ens.task, name)
        if name in ("X", "y") or (x is not None and z is not None):
            if x.shape != z.shape:
                raise differ(f"shapes of {name}", x.shape, z.shape, "pass the same task to tp.solve and tp.simulate")
            if not np.array_equal(x, z):
                raise differ(f"values of {name}", sol.task.name, ens.task.name, "pass the same task to tp.solve and tp.simulate")
    if sol.gamma0 != ens.gamma0:
        raise differ("gamma0", f"{sol.gamma0:g}", f"{ens.gamma0:g}", "pass the same gamma0 to tp.solve and tp.simulate")


_TRAINING: dict[str, Callable[[Training, Any], Any]] = {
    "training rules": lambda r, program: type(r).__name__,
    "numbers of steps": lambda r, program: r.steps,
    "losses": lambda r, program: r.loss.name,
    "learning rates": lambda r, program: r.rates(program) if isinstance(r, GradientDescent) else None,
    "updates": lambda r, program: r.update if isinstance(r, GradientDescent) else None,
    "minibatches": lambda r, program: r.batches if isinstance(r, GradientDescent) else None,
    "schedules": lambda r, program: r.schedule.factor if isinstance(r, GradientDescent) else None,
    "final times": lambda r, program: None if isinstance(r, GradientDescent) else r.time,
}


def _random(sol: Solution, ens: Ensemble) -> bool:
    return sol.f_cov is not None and not ens.centred


def _table(sol: Solution, ens: Ensemble, widest: int) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    notes: list[str] = []
    test = sol.f_test is not None and ens.f_test is not None
    scored = test and sol.loss_test is not None and ens.loss_test is not None
    if (sol.f_test is None) != (ens.f_test is None):
        notes.append("only one of the two has test points, which are left out")
    if sol.f_cov is not None and ens.centred:
        notes.append("the nets are centred: their losses are not those of a random initial function, and are left out")
        if not isinstance(sol.theory.training.loss, SquaredError):
            notes.append(f"with {sol.theory.training.loss.name} loss a centred net does not follow the mean over initial functions")
    else:
        for name in ("loss", "loss_test") if scored else ("loss",):
            rows += _numbers(name, getattr(sol, name), _nets(sol, ens, widest, name), _errors(sol, ens, widest, name))
    for name in ("f", "f_test") if test else ("f",):
        rows += _arrays(name, getattr(sol, name), _nets(sol, ens, widest, name), _errors(sol, ens, widest, name))
    if _random(sol, ens):
        rows += _variances(sol, ens, widest, test)
    last = ens.times[-1]
    for name in ("Phi", "G"):
        for layer in range(1, sol.depth + 1):
            _add_kernel(rows, notes, sol, ens, widest, name, (layer, last, last))
    _add_kernel(rows, notes, sol, ens, widest, "ntk", (last,))
    return rows, notes


def _errors(sol: Solution, ens: Ensemble, widest: int, name: str) -> np.ndarray:
    """Combined standard error: of the mean over seeds, and of the solution."""
    return np.hypot(sol.stderr(name), ens.stderr(name)[widest][_rows(sol, name)])


def _nets(sol: Solution, ens: Ensemble, widest: int, name: str) -> np.ndarray:
    """Series of the nets (seeds, times, ...) at the times that the solution has."""
    series: np.ndarray = getattr(ens, name)[widest]
    return series[:, _rows(sol, name)]


def _rows(sol: Solution, name: str) -> list[int]:
    return list(sol.test_times) if name.endswith("_test") else list(range(len(sol.f)))


def _numbers(name: str, theory: np.ndarray, nets: np.ndarray, error: np.ndarray) -> Iterator[Row]:
    """Rows of a series of numbers: the last one, and the one that deviates most."""
    mean = nets.mean(axis=0)
    worst = int(np.argmax(np.abs(mean - theory)))
    for t, words, extreme in ((len(theory) - 1, "final", False), (worst, "largest", True)):
        yield Row(f"{name}, {words}", float(theory[t]), float(mean[t]), float(mean[t] - theory[t]), float(error[t]), extreme)


def _arrays(name: str, theory: np.ndarray, nets: np.ndarray, error: np.ndarray) -> Iterator[Row]:
    """Rows of a series of arrays: rms over everything, rms over the last ones, and the entry that deviates most."""
    mean = nets.mean(axis=0)
    difference = mean - theory
    yield Row(f"{name}, rms", None, None, _rms(difference), _rms(error))
    yield Row(f"{name}, final rms", None, None, _rms(difference[-1]), _rms(error[-1]))
    k = np.unravel_index(int(np.argmax(np.abs(difference))), difference.shape)
    yield Row(f"{name}, largest", float(theory[k]), float(mean[k]), float(difference[k]), float(error[k]), True)


def _variances(sol: Solution, ens: Ensemble, widest: int, test: bool) -> Iterator[Row]:
    """Variance over seeds of the predictions against that of the limit, per output."""
    assert sol.f_cov is not None
    diagonal = np.diagonal(sol.f_cov, axis1=1, axis2=2)
    variance = diagonal if diagonal.ndim == 2 else diagonal.transpose(0, 2, 1)
    P, seeds = sol.task.P, len(ens.seeds)
    parts = {"f": variance[:, :P], "f_test": variance[:, P:]}
    for name in ("f", "f_test") if test else ("f",):
        nets = np.var(getattr(ens, name)[widest], axis=0, ddof=1)
        error = parts[name] * np.sqrt(2 / (seeds - 1))
        means = float(parts[name].mean()), float(nets.mean())
        yield Row(f"variance of {name}, rms", *means, _rms(nets - parts[name]), _rms(error))


def _add_kernel(rows: list[Row], notes: list[str], sol: Solution, ens: Ensemble, widest: int, name: str, args: tuple[int, ...]) -> None:
    """A row for one kernel, or a note on why there is none."""
    label = f"{name}({args[0]})" if name == "ntk" else f"{name}^{args[0]}({args[1]},{args[2]})"
    try:
        theory, known = getattr(sol, name)(*args), sol.stderr(name, *args)
    except RangeError as reason:
        notes.append(f"{label} is left out: {reason.field}: got {reason.got}; expected {reason.expected}")
        return
    nets, scatter = getattr(ens, name)(*args)[widest], ens.stderr(name, *args)[widest]
    if scatter.size != theory.size:
        notes.append(f"{label} is left out: that of the nets is between all outputs, that of the limit for one of them")
        return
    difference = nets.mean(axis=0).reshape(theory.shape) - theory
    error = np.hypot(known, scatter.reshape(theory.shape))
    scale = float(np.linalg.norm(theory)) or 1.0
    rows.append(Row(f"{label}, relative", None, None, float(np.linalg.norm(difference)) / scale, float(np.linalg.norm(error)) / scale))


def _fitted(widths: tuple[int, ...], per_seed: np.ndarray) -> tuple[float | None, tuple[float, float] | None]:
    """Least-squares slope of log deviation against log width, and its bootstrap interval over seeds."""
    if len(widths) < 2 or not (per_seed > 0).any(axis=1).all():
        return None, None
    x = np.log(np.asarray(widths, float))
    x = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    squares = per_seed**2
    # nets of different widths are independent, also under the same seed label
    picks = np.random.default_rng(0).integers(per_seed.shape[1], size=(RESAMPLES, *per_seed.shape))
    drawn = np.take_along_axis(np.broadcast_to(squares, picks.shape), picks, axis=2).mean(axis=2)
    slopes = 0.5 * np.log(np.maximum(drawn, np.finfo(float).tiny)) @ x
    low, high = np.quantile(slopes, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(0.5 * np.log(squares.mean(axis=1)) @ x), (float(low), float(high))


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
