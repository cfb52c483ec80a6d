"""What is to be simulated, checked and turned into numbers, and the march of a few nets through their training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tp_solver import checks
from tp_solver.errors import BudgetError, InputError, ParameterizationError, ProgramError
from tp_solver.finite import dynamics
from tp_solver.finite.dense import Data, Net, Numbers, Weights
from tp_solver.finite.dynamics import Base, Clock, Course, Moving, Rows, Rule
from tp_solver.finite.initial import draw_weights, numbers_at, weight_units
from tp_solver.numerics.memory_maps import make_room_for_programs
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.positions import channels_of
from tp_solver.program.statements import Program, Space
from tp_solver.program.task import Task
from tp_solver.program.training import GradientDescent, GradientFlow, Training, assign_rates

T = TypeVar("T")
DTYPES = ("float64", "float32")
NOISE = 2**20
"""The stream of a net that noise in training comes from; those of its matrices are numbered from 0."""
FLOW_STEP = 0.1
"""Integrator step of gradient flow, in units of the fastest rate of the initial net."""


@contextmanager
def precision() -> Iterator[None]:
    """Double precision allowed, and full precision of products also where the hardware would rather round."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


@dataclass(frozen=True, eq=False)
class Experiment:
    """A checked experiment; :func:`prepare` makes one."""

    net: Net
    parameterization: Parameterization
    training: Training
    task: Task
    gamma0: float
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    centred: bool
    seed: int
    dtype: np.dtype

    @property
    def rule(self) -> Rule:
        """How the weights move between reported rows."""
        if isinstance(self.training, GradientFlow):
            return dynamics.RUNGE_KUTTA
        ball = self.training.momentum > 0
        if self.training.temperature:
            return dynamics.LANGEVIN_BALL if ball else dynamics.LANGEVIN
        if self.training.weight_decay:
            return dynamics.FADING_BALL if ball else dynamics.FADING
        return dynamics.HEAVY_BALL if ball else dynamics.DESCENT

    @property
    def channels(self) -> int:
        """The dimension that input matrices act on."""
        return channels_of(self.net.program.grid, self.task.D)

    @property
    def data(self) -> Data:
        """The task as device arrays."""
        y, y_test = self.task.targets(self.training.loss)
        columns = [None if x is None else x.T for x in (self.task.X, self.task.X_test)]
        return Data(*(None if a is None else jnp.asarray(a, self.dtype) for a in (columns[0], y, columns[1], y_test)))  # type: ignore[arg-type]

    def numbers(self, width: int) -> Numbers:
        """Multipliers and rates at a width, from the exact exponents."""
        # gradient flow is the small-step limit at rate one; time takes the place of lr times steps
        training, program = self.training, self.net.program
        lr = training.rates(program) if isinstance(training, GradientDescent) else assign_rates(1.0, program)
        return numbers_at(self.net, self.parameterization, width, self.channels, self.gamma0, lr, self.dtype)

    def draw(self, width: int, labels: Sequence[int]) -> Weights:
        """Initial weights of the nets with the given seed labels (see :func:`tp_solver.finite.initial.draw_weights`)."""
        return draw_weights(self.net, self.parameterization, width, self.channels, self.seed, labels, self.dtype)

    def weights_size(self, width: int) -> int:
        """Number of trained numbers of one net."""
        return sum(int(np.prod(self.net.shape(m.name, width, self.channels))) for m in self.net.program.matrices)

    def working_bytes(self, width: int, looks: int) -> int:
        """Estimated peak memory of one net in training, its recorded fields included."""
        program, P = self.net.program, self.task.P
        test = 0 if self.task.X_test is None else len(self.task.X_test)
        spaces = program.spaces()
        vectors = sum(spaces[s.out] is Space.WIDTH for s in program.statements)
        products = sum(1 for _ in program.products())
        training = vectors * (3 * P + test)
        looking = P * (2 * vectors + 2 * program.depth + (products + 2 * program.depth) * self.net.outputs + 4 * looks * program.depth)
        weights = self.weights_size(width) * (1 + self.rule.copies)
        return self.dtype.itemsize * (weights + width * max(training, looking))


def prepare(
    net: Any, parameterization: Any, training: Any, task: Any, gamma0: Any, widths: Any, seeds: Any, centred: Any, seed: Any, dtype: Any
) -> Experiment:
    """Check everything that the user gave; nothing is compiled before that.

    Raises:
        InputError, ProgramError, ParameterizationError: naming the argument.
    """
    net = checks.instance("net", net, Program, "a program such as tp.mlp(depth=3, activation=tp.tanh)")
    parameterization = checks.instance("parameterization", parameterization, Parameterization, "a Parameterization such as tp.muP")
    training = checks.instance(
        "training", training, (GradientDescent, GradientFlow), "a training rule such as tp.GradientDescent(lr=0.1, steps=100)"
    )
    task = checks.instance("task", task, Task, "a Task such as tp.Task(X, y)")
    refuse_symbols(net, parameterization)
    gamma0 = checks.number("gamma0", gamma0, minimum=0.0)
    if gamma0 == 0.0:
        raise InputError(
            "gamma0", gamma0, "a number > 0", "finite nets have no kernel limit; take a small value such as 0.05, or solve at gamma0 = 0"
        )
    channels_of(net.grid, task.D)
    y, _ = task.targets(training.loss)
    if isinstance(training, GradientDescent):
        training.rates(net)
    checked = Net(net, training.loss, y.shape[1])
    make_room_for_programs()
    checked.compile_expressions()
    return Experiment(
        checked,
        parameterization,
        training,
        task,
        gamma0,
        integers("widths", widths, 1, "widths=(128, 512, 2048)"),
        labels_of(seeds),
        checks.flag("centred", centred),
        checks.integer("seed", seed, minimum=0),
        np.dtype(checks.one_of("dtype", dtype, DTYPES)),
    )


def refuse_symbols(net: Program, parameterization: Parameterization) -> None:
    """Raise for coefficients, biases or exponents that have no value yet."""
    if net.free_symbols:
        raise ProgramError(
            "net", f"the symbols {list(map(str, net.free_symbols))} without values", "numbers", "use net.bind({symbol: value})"
        )
    for m in net.matrices:
        found = m.sigma.free_symbols | m.rate.free_symbols
        if found:
            raise ProgramError(f"bias {m.name}", f"the symbols {sorted(map(str, found))}", "numbers", "give sigma and rate as numbers")
    if parameterization.free_symbols:
        raise ParameterizationError(
            "parameterization",
            f"the symbols {list(map(str, parameterization.free_symbols))} without values",
            "numbers",
            "use parameterization.bind({symbol: value})",
        )


def integers(field: str, value: Any, minimum: int, example: str) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise InputError(field, value, f"a sequence of integers >= {minimum}", f"for example {example}")
    out = tuple(checks.integer(f"{field}[{k}]", v, minimum=minimum) for k, v in enumerate(value))
    if not out:
        raise InputError(field, "an empty sequence", f"at least one integer >= {minimum}", f"for example {example}")
    if len(set(out)) < len(out):
        raise InputError(field, out, "different integers", "a repeated entry would repeat the very same nets")
    return out


def labels_of(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, Iterable):
        return integers("seeds", seeds, 0, "seeds=8")
    return tuple(range(checks.integer("seeds", seeds, minimum=1, hint="seeds is the number of nets per width")))


def recorded_times(times: Any, steps: int) -> tuple[int, ...]:
    """Rows at which kernels and fields are recorded: all up to 20 steps, else five evenly spaced ones, ends included."""
    if times is None:
        count = steps + 1 if steps <= 20 else 5
        return tuple(int(t) for t in np.unique(np.linspace(0, steps, count).round()))
    out = integers("times", times, 0, f"times=(0, {steps})")
    if max(out) > steps:
        raise InputError("times", max(out), f"integers from 0 to {steps}", "times count reported steps; the last row is steps")
    return tuple(sorted(out))


def lanes(experiment: Experiment, memory: float, need: int, held: int) -> int:
    """How many nets to train at once within a memory budget.

    Args:
        memory: budget in bytes.
        need: estimated bytes of one net in training.
        held: bytes of the records of the whole ensemble.

    Raises:
        BudgetError: if one net and the records do not fit.
    """
    if need + held > memory:
        raise BudgetError(
            "memory",
            f"a need of {_gib(need)} for one net of width {max(experiment.widths)} and {_gib(held)} for the records",
            f"at most {_gib(memory)}",
            "cut the largest width, cut the recorded times or data points (times=...), or use dtype='float32'; or raise memory= (bytes)",
        )
    # On a CPU nets one after another are as fast as side by side, and their bits do not depend on the budget.
    return 1 if jax.default_backend() == "cpu" else max(1, min(len(experiment.seeds), int((memory - held) // need)))


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def march(
    experiment: Experiment,
    width: int,
    labels: Sequence[int],
    times: Sequence[int],
    look: Callable[[Weights, Base, Numbers, Data], T],
    clock: Clock,
) -> tuple[dict[str, np.ndarray], list[T]]:
    """Train the nets of one width and some seeds; look at them at the given rows.

    Returns:
        rows: ``f`` (lanes, steps + 1, P, K), ``loss`` (lanes, steps + 1), and ``f_test``, ``loss_test`` where there are any.
        looks: what ``look`` returned, in the order of ``times``.
    """
    net, steps, data = experiment.net, experiment.training.steps, experiment.data
    numbers, weights = experiment.numbers(width), experiment.draw(width, labels)
    base = _base(experiment, weights, numbers, data)
    moving = moving_from(experiment, width, labels, weights)
    rows = _first_row(experiment, dynamics.row(net, weights, base, numbers, data))
    looks: list[T] = []
    now = 0
    for target in (*times, steps):
        for start, stop in _blocks(now, target):
            moving, rows = dynamics.advance(net, experiment.rule, moving, rows, base, numbers, data, clock, start, stop)
            jax.block_until_ready(rows)
        now = target
        if len(looks) < len(times):
            looks.append(look(moving.weights, base, numbers, data._replace(p=_point_weights(experiment, target))))
    # the last row is followed by no update
    last = dynamics.row(net, moving.weights, base, numbers, data)
    series = {name: np.array(values[:, : steps + 1]) for name, values in rows.items()}
    for name, values in last.items():
        series[name][:, steps] = values
    return series, looks


def _point_weights(experiment: Experiment, row: int) -> jax.Array | None:
    """p of the batch of a step; the last row, which no update follows, has that of the last one. None for full batches."""
    training = experiment.training
    if not isinstance(training, GradientDescent) or training.batches is None:
        return None
    weights = training.batches.point_weights(experiment.task.P, training.steps)
    return jnp.asarray(weights[min(row, training.steps - 1)], experiment.dtype)


def moving_from(experiment: Experiment, width: int, labels: Sequence[int], weights: Weights) -> Moving:
    """Nets at rest, each with its own key for noise."""
    keys = None
    if isinstance(experiment.training, GradientDescent) and experiment.training.temperature:
        seeds = [int(np.random.default_rng([experiment.seed, width, label, NOISE]).integers(2**31)) for label in labels]
        keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    return Moving(weights, experiment.rule.before(weights), keys)


def _base(experiment: Experiment, weights: Weights, numbers: Numbers, data: Data) -> Base:
    """What centring subtracts."""
    lanes, K = len(next(iter(weights.values()))), experiment.net.outputs
    shapes = [None if x is None else (lanes, x.shape[1], K) for x in (data.X, data.X_test)]
    zero = Base(*(None if shape is None else jnp.asarray(np.zeros(shape, experiment.dtype)) for shape in shapes))  # type: ignore[arg-type]
    if not experiment.centred:
        return zero
    start = dynamics.row(experiment.net, weights, zero, numbers, data)
    return Base(start["f"], start.get("f_test"))


def _blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Split steps into calls of about half a second, so that Ctrl-C is answered."""
    length = 1
    while start < stop:
        end, began = min(start + length, stop), time.perf_counter()
        yield start, end
        elapsed = max(time.perf_counter() - began, 1e-9)
        length = max(1, int(min(4 * length, (end - start) * 0.5 / elapsed)))
        start = end


def rows_for(steps: int) -> int:
    """Room for the rows of a run."""
    return max(64, 1 << steps.bit_length())


def _first_row(experiment: Experiment, first: Rows) -> Rows:
    """Arrays for all rows, holding the first; room is a power of two, so that one compilation serves many numbers of steps."""
    room = rows_for(experiment.training.steps)
    rows = {name: np.full((len(v), room, *v.shape[1:]), np.nan, experiment.dtype) for name, v in first.items()}
    for name, v in first.items():
        rows[name][:, 0] = v
    return {name: jnp.array(v) for name, v in rows.items()}


def clock_of(experiment: Experiment, width: int) -> Clock:
    """Time per row, and integrator steps per row so that one is at most ``FLOW_STEP`` of the fastest initial time scale.

    The time scale is one over the largest eigenvalue of (tangent kernel) x (curvature of the loss) / P, of the first seed at
    this width.
    """
    if isinstance(experiment.training, GradientDescent):
        return Clock(course=_course(experiment, experiment.training, width))
    net, data, numbers = experiment.net, experiment.data, experiment.numbers(width)
    weights = experiment.draw(width, experiment.seeds[:1])
    base = _base(experiment, weights, numbers, data)
    ntk = np.asarray(dynamics.look(net, 1, weights, base, numbers, data).ntk[0], float)
    size = experiment.task.P * net.outputs
    with np.errstate(all="ignore"):
        rate = np.linalg.norm(ntk.reshape(size, size), 2) if np.isfinite(ntk).all() else np.nan
        start = dynamics.row(net, weights, base, numbers, data)
        rate *= float(dynamics.curvature(net, start["f"][0], data.y)) / experiment.task.P
    interval = experiment.training.time / experiment.training.steps
    substeps = int(np.ceil(interval * rate / FLOW_STEP)) if np.isfinite(rate) else 1
    return Clock(experiment.dtype.type(interval), max(1, min(substeps, 100_000)))


def _course(experiment: Experiment, training: GradientDescent, width: int) -> Course:
    """Numbers of every update at a width, in room that is a power of two, so that one compilation serves many numbers of steps."""
    pace = training.pace(experiment.net.program)
    units = weight_units(experiment.net, experiment.parameterization, width, experiment.channels)

    def number(values: np.ndarray) -> jax.Array:
        room = rows_for(training.steps) - len(values)
        return jnp.asarray(np.pad(values, ((0, room), *((0, 0),) * (values.ndim - 1))), experiment.dtype)

    batches = None if training.batches is None else training.batches.chosen(experiment.task.P, training.steps)
    return Course(
        number(pace.factor),
        experiment.dtype.type(pace.carry),
        {m: number(a) for m, a in pace.keep.items()} if training.weight_decay else {},
        {m: number(a * units[m]) for m, a in pace.kick.items()} if training.temperature else {},
        None if batches is None else number(batches[0]).astype(jnp.int32),
        None if batches is None else number(batches[1]),
    )
