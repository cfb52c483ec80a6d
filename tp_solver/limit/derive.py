"""The verb ``limit``: from a program, a parameterization and a training rule to the limiting equations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import sympy as sp

from tp_solver import checks
from tp_solver.errors import InputError, ProgramError
from tp_solver.limit import blocks
from tp_solver.limit.equations import LimitEquations
from tp_solver.limit.memory import Memory, memory
from tp_solver.limit.naming import Names
from tp_solver.limit.reading import Reading
from tp_solver.limit.regime import Regime
from tp_solver.limit.spec import limit_spec
from tp_solver.limit.survival import Survey
from tp_solver.limit.transposition import transpose
from tp_solver.program import update
from tp_solver.program.losses import CrossEntropy, gradient
from tp_solver.program.parameterization import Parameterization
from tp_solver.program.schedules import CONSTANT, STEPS
from tp_solver.program.statements import Program, Role
from tp_solver.program.training import GradientDescent, GradientFlow, Training, require_gradients_alone
from tp_solver.symbols import activation
from tp_solver.symbols.equation import Equation, Key, Kind
from tp_solver.symbols.notation import (
    GAMMA0,
    MU,
    NU,
    C,
    Entrywise,
    Expectation,
    K,
    Kernel,
    Observable,
    P,
    PastSum,
    Response,
    T,
    over_points,
)


def limit(net: Program, parameterization: Parameterization, training: Training) -> LimitEquations:
    """Derive what a network and its training become as the width goes to infinity.

    Powers of N are counted statement by statement and decide the regime; the master theorem then reads every matrix product
    of one training step, with time as an index (``theory/feature_learning.md``, FL.1 to FL.7; Bordelon and Pehlevan, arXiv:2205.09653).

    Args:
        net: a program such as ``tp.mlp(depth=3, activation=tp.tanh)``.
        parameterization: exponents and constants, e.g. ``tp.muP``; the exponents must be numbers.
        training: ``tp.GradientDescent(...)`` or ``tp.GradientFlow(...)``.

    Returns:
        The feature-learning equations (fields, kernels, responses), or the kernel recursion and its linear dynamics, or, in
        the trivial regime, the statement that nothing moves.

    Raises:
        InputError: for arguments of the wrong type, or learning rates that do not fit the program.
        ProgramError: for a program over a grid of positions, whose equations have no printed form; the message says what there is.
        ParameterizationError: if the training is unstable, naming the term that explodes and the cure.
    """
    checks.instance("net", net, Program, "a Program such as tp.mlp(depth=3, activation=tp.tanh)", "trace a function with tp.program")
    if net.grid:
        raise ProgramError(
            "net", f"a program on {' x '.join(map(str, net.grid))} positions", "a program without positions",
            "equations are written for one site per layer, without indices of positions: over a grid the recursion is (KR.8) and (KR.9) of "
            "theory/kernel_regime.md, its kernels come from tp.kernels(net, parameterization, X, layers=True), training with them from "
            "tp.KernelDynamics.of(net, parameterization, training, X, y), finite nets from tp.simulate",
        )  # fmt: skip
    checks.instance("parameterization", parameterization, Parameterization, "a Parameterization such as tp.muP")
    checks.instance("training", training, (GradientDescent, GradientFlow), "a training rule such as tp.GradientDescent(lr=0.1, steps=100)")
    backward = transpose(net)
    spec = limit_spec(net, parameterization)
    eta, rates = _learning_rates(net, training)
    remembered = memory(training, eta)
    _require_gaussian_start(net, parameterization, remembered)
    derive, initial = _BY_REGIME[spec.regime]
    several = isinstance(training.loss, CrossEntropy)
    # one kernel serves all outputs at initialisation, so the backward pass is then seeded with 1 also for several of them
    names = Names(net, backward, several, seeded=several and not initial, moving=not (initial or remembered.static))
    reading = Reading(names, spec, remembered, initial)
    equations = (
        *derive(reading, training),
        *_errors(names, training),
        *_definitions(names),
        *rates,
        *_remembered(reading),
        *_constants(training),
    )
    _refuse_clashes(equations)
    survey = Survey(net, parameterization, reading)
    return LimitEquations(
        net,
        parameterization,
        training,
        spec,
        backward,
        equations,
        survey.vanished(),
        _notes(names, training),
        survey.survivors(),
        _aliases(names),
    )


def _feature(reading: Reading, training: Training) -> Iterator[Equation]:
    """Fields through training, their kernels and responses, the output as an average."""
    yield from blocks.fields(reading)
    yield from blocks.covariances(reading)
    yield from blocks.response_kernels(reading)
    yield _output(reading, (T,))
    if not reading.names.several:
        yield Equation(("K",), _tangent((T, reading.then)), blocks.tangent_kernel(reading), Kind.OUTPUT, _WHY_K)
    yield from blocks.kernels(reading)


def _lazy(reading: Reading, training: Training) -> Iterator[Equation]:
    """Fields at initialisation only; the output moves by the tangent kernel that the exponents select."""
    yield from blocks.fields(reading)
    yield from blocks.covariances(reading)
    yield from blocks.response_kernels(reading)
    yield from _initial_output(reading)
    require_gradients_alone(training, "the kernel regime")
    now, following = _outputs(reading.names, (T,)), _outputs(reading.names, (T + 1,))
    error = Observable("e", (), (NU, C) if reading.names.several else (NU,), (T,))
    pushed = over_points(_tangent(()) * error)
    if reading.memory.scheduled and reading.memory.carry != 0:
        # the velocity, as the last move is no longer a multiple of it
        last = Observable("v", (), (MU, C) if reading.names.several else (MU,), (T - 1,))
        velocity = Observable("v", (), (MU, C) if reading.names.several else (MU,), (T,))
        yield Equation(("v",), velocity, reading.memory.carry * last + pushed, Kind.OUTPUT, "The velocity of the output; v(-1) = 0.")
        moved = blocks.pace(reading) * velocity
    else:
        moved = blocks.pace(reading) * pushed + reading.memory.carry * (now - _outputs(reading.names, (T - 1,)))
    yield Equation(("K",), _tangent(()), blocks.tangent_kernel(reading), Kind.OUTPUT, _WHY_K)
    yield Equation(
        ("f",), following, now + moved, Kind.OUTPUT, "Weights move so little that the output is linear in them: K stays what it was."
    )
    yield from blocks.kernels(reading)


def _trivial(reading: Reading, training: Training) -> Iterator[Equation]:
    """Nothing moves: the output stays what it was at initialisation."""
    yield from blocks.fields(reading)
    yield from blocks.covariances(reading)
    yield from blocks.response_kernels(reading)
    yield from _initial_output(reading)
    still = _outputs(reading.names, (T,))
    yield Equation(
        ("f",), still, _outputs(reading.names, (sp.S.Zero,)), Kind.OUTPUT, "Every change of the output carries a negative power of N."
    )
    yield from blocks.kernels(reading)


_BY_REGIME: Mapping[Any, Any] = {Regime.FEATURE: (_feature, False), Regime.KERNEL: (_lazy, True), Regime.TRIVIAL: (_trivial, True)}
"""How the equations are derived, and whether the state at initialisation is all there is."""

_WHY_K = (
    "Tangent kernel: for every trained matrix whose updates move the output at order N^0, rate x overlap of what its updates write x "
    "overlap of what they read."
)


def _outputs(names: Names, times: tuple[sp.Expr, ...], point: sp.Expr = MU) -> sp.Expr:
    return Observable("f", (), (point, C) if names.several else (point,), times)


def _tangent(times: Any) -> sp.Expr:
    return Kernel("K", (), (MU, NU), times)


def _output(reading: Reading, times: tuple[sp.Expr, ...]) -> Equation:
    s, *biases = reading.names.program.output_terms
    average = Expectation(reading.names.column(T) * reading.value(s.arg, MU, T))
    reason = f"{blocks.place(reading, s)}, an average over sites, over gamma0."
    for b in biases:
        reason += f"\n{blocks.place(reading, b)}: one number per output, which starts at zero and gathers the errors."
    shifts = (part / GAMMA0 for b in biases for part in reading.parts(b, MU, T))
    return Equation(("f",), _outputs(reading.names, times), sp.Add(average / GAMMA0, *shifts), Kind.OUTPUT, reason)


def _initial_output(reading: Reading) -> Iterator[Equation]:
    names, terms = reading.names, reading.names.program.output_terms
    zero, place = (sp.S.Zero,), "; ".join(blocks.place(reading, s) for s in terms)
    start = _outputs(names, zero)
    if not reading.spec.random_output:
        yield Equation(("f", 0), start, sp.S.Zero, Kind.OUTPUT, f"{place}: the initial output vanishes with the width.")
        return
    other = _outputs(names, zero, NU)
    variance = sp.Add(*(reading.scale(s.matrix) * reading.kernel(s.arg, s.arg, (MU, NU), (None, None)) for s in terms)) / GAMMA0**2
    yield Equation(
        ("f", 0),
        Expectation(start * other),
        variance,
        Kind.OUTPUT,
        f"{place}: Gaussian with mean zero over draws of the network.",
    )


def _learning_rates(net: Program, training: Training) -> tuple[dict[str, sp.Expr], tuple[Equation, ...]]:
    """The symbol of every matrix's learning rate (0: frozen), and their values."""
    if isinstance(training, GradientFlow):
        return dict.fromkeys((m.name for m in net.matrices), update.RATE), ()
    values = training.rates(net)
    if len(set(values.values())) == 1 and all(values.values()):
        lr = sp.Float(next(iter(values.values())))
        constant = Equation(("eta",), update.RATE, lr, Kind.DEFINITION, _WHY_RATE)
        return dict.fromkeys(values, update.RATE), (constant if training.schedule == CONSTANT else _scheduled(lr, training),)
    symbols = {m: sp.Symbol(f"eta_{m}", nonnegative=True) if v else sp.S.Zero for m, v in values.items()}
    numbers = tuple(Equation((f"eta_{m}",), symbols[m], sp.Float(v), Kind.DEFINITION, _WHY_RATE) for m, v in values.items() if v)
    return symbols, numbers if training.schedule == CONSTANT else (*numbers, _scheduled(sp.S.One, training))


_WHY_RATE = "The learning rate of the training rule."


def _scheduled(lr: sp.Expr, training: GradientDescent) -> Equation:
    """eta(t): a rate, or one where every matrix has its own, times the factor of the schedule."""
    over_time = lr * training.schedule.factor.subs(STEPS, training.steps)
    eta = Observable(str(update.RATE), (), (), (T,))
    return Equation(("eta",), eta, over_time, Kind.DEFINITION, f"{_WHY_RATE[:-1]}, {training.schedule}.")


_MEANINGS = (
    (update.MOMENTUM, "beta", "momentum", "The momentum of the training rule."),
    (update.DECAY, "lambda", "weight_decay", "The weight decay of the training rule, per unit of learning rate."),
    (update.TEMPERATURE, "tau", "temperature", "The temperature of the noise that every weight receives."),
)
"""Constants of the update: symbol, key, attribute of the training rule, meaning."""


def _constants(training: Training) -> Iterator[Equation]:
    """Values of the constants that the rule uses."""
    if isinstance(training, GradientDescent):
        for symbol, key, attribute, why in _MEANINGS:
            if value := getattr(training, attribute):
                yield Equation((key,), symbol, sp.Float(value), Kind.DEFINITION, why)


def _remembered(reading: Reading) -> Iterator[Equation]:
    """kappa and C, where training learns features."""
    if not reading.initial:
        yield from reading.memory.definitions({m: limit.deviation for m, limit in reading.spec.matrices.items()})


def _require_gaussian_start(net: Program, parameterization: Parameterization, remembered: Memory) -> None:
    """Noise enters with the power of N of the initial weights, which a matrix that starts at zero does not tell."""
    if remembered.temperature == 0:
        return
    for m in net.matrices:
        if m.role is Role.OUTPUT_BIAS:
            raise InputError(
                "temperature", f"noise on the bias {m.name} of the output", "noise on matrices alone",
                "one number per output does not average out over sites: leave the bias out, or train without noise",
            )  # fmt: skip
        if parameterization.scaling(m).sigma == 0:
            raise InputError(
                "temperature", f"noise on the matrix {m.name}, which starts at zero", "matrices that start Gaussian (sigma > 0)",
                "give it a small sigma, or train without noise",
            )  # fmt: skip


def _errors(names: Names, training: Training) -> Iterator[Equation]:
    """The weighted error e = -p dl/df, by differentiating the loss."""
    batches = training.batches if isinstance(training, GradientDescent) else None
    weight = Observable("p", (), (MU,), () if batches is None else (T,))
    e = Observable("e", (), (MU, C) if names.several else (MU,), (T,))
    why = f"Minus the derivative of the {training.loss.name} loss with respect to the output, weighted."
    if names.several:
        loss = Observable("l", (), (MU,), (T,))
        yield Equation(("e",), e, -weight * Response(loss, _outputs(names, (T,))), Kind.OUTPUT, why)
        yield Equation(("l",), loss, _pointwise(training, 3)[0], Kind.DEFINITION, "The loss per data point, written for three outputs.")
    else:
        yield Equation(("e",), e, weight * (-_pointwise(training, 1)[1]), Kind.OUTPUT, why)
    if batches is None:
        yield Equation(("p",), weight, 1 / P, Kind.DEFINITION, "Full batch: every training point counts alike, test points not at all.")
        return
    chosen = Observable("b", (), (MU,), (T,))
    why = f"The {batches}: b is 1 for the points of the batch of step t, else 0, and the weights of a batch sum to 1."
    yield Equation(("p",), weight, chosen / PastSum(Observable("b", (), (NU,), (T,)), (NU, 1, P)), Kind.DEFINITION, why)


def _pointwise(training: Training, outputs: int) -> tuple[sp.Expr, sp.Expr]:
    """Loss and first derivative at one data point, in the notation of the equations."""
    f, y, loss, slopes = gradient(training.loss, outputs)
    several = [()] if outputs == 1 else [(sp.Integer(k + 1),) for k in range(outputs)]
    at = {a: Observable("f", (), (MU, *k), (T,)) for a, k in zip(f, several, strict=True)}
    at |= {a: Observable("y", (), (MU, *k)) for a, k in zip(y, several, strict=True)}
    return loss.xreplace(at), slopes[0].xreplace(at)


def _definitions(names: Names) -> Iterator[Equation]:
    x = activation.X
    called = {letter: expression for expression, letter in names.activations.items()}
    for letter, expression in called.items():
        users = [v for v in names.program.layers if names.written(v) == letter]
        why = f"The activation {users[0].activation} of layer{'s' * (len(users) > 1)} {', '.join(str(v.index) for v in users)}."
        yield Equation((letter,), Entrywise(letter, 0, x), expression, Kind.DEFINITION, why)
        yield Equation((letter + "'",), Entrywise(letter, 1, x), sp.diff(expression, x), Kind.DEFINITION, "Its derivative, by sympy.")


def _notes(names: Names, training: Training) -> tuple[str, ...]:
    notes = ["<.> averages over sites; mu runs over all points, nu over training points; time t is the state after t updates"]
    if names.activations:
        described = dict.fromkeys(f"{names.written(v)} is {v.activation}" for v in names.program.layers if names.written(v))
        notes.append("; ".join(described))
    if isinstance(training, GradientFlow):
        notes.append("gradient flow is the limit eta -> 0 at fixed eta t")
    elif training.momentum:
        notes.append("the run starts at rest: what is written for time -1 is that of time 0")
    if names.seeded:
        notes.append(f"g and z are gradients of the loss, summed over the outputs c = 1..{K}")
    return tuple(notes)


def _aliases(names: Names) -> dict[Key, Key]:
    """Further keys: names of variables, and layers that share a pre-activation."""
    out: dict[Key, Key] = {}
    for s in names.statements:
        if not names.inlined(s.out) and s.out not in names.substituted and names.key(s.out) != (s.out,):
            out[(s.out,)] = names.key(s.out)
    adjoint = names.backward.adjoints
    for layer in names.program.layers:
        for letter, variable in (("h", layer.pre), ("z", adjoint.get(layer.post)), ("g", adjoint.get(layer.pre))):
            if variable is not None and names.key(variable)[0] == letter:
                out[(letter, layer.index)] = names.key(variable)
    return {alias: key for alias, key in out.items() if alias != key}


def _refuse_clashes(equations: tuple[Equation, ...]) -> None:
    seen: set[Key] = set()
    for e in equations:
        if e.key in seen:
            raise ProgramError(
                "named",
                e.key[0],
                "a name that the equations do not use already",
                "f, e, p, b, v, K, l, eta, beta, lambda, tau and phi are taken: rename it",
            )
        seen.add(e.key)
