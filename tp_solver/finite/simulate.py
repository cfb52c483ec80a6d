"""``simulate``: an ensemble of finite nets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tp_solver import checks
from tp_solver.finite import dynamics
from tp_solver.finite.ensemble import Ensemble
from tp_solver.finite.experiment import Experiment, clock_of, lanes, march, precision, prepare, recorded_times

MEMORY = 2 * 2**30
"""Default memory budget in bytes."""
SITES = 4096
"""Single-site samples kept per width, over all seeds."""
SITE_BYTES = 64 * 2**20
"""What the single-site samples may take at most."""


def simulate(
    net: Any,
    parameterization: Any,
    training: Any,
    task: Any,
    gamma0: float = 1.0,
    widths: Sequence[int] = (128, 512, 2048),
    seeds: Any = 8,
    centred: bool = False,
    times: Sequence[int] | None = None,
    seed: int = 0,
    dtype: str = "float64",
    memory: float = MEMORY,
    progress: bool | None = None,
) -> Ensemble:
    """Train finite nets under the very definition that the limit is derived from, with gradients from ``jax.grad``.

    f = (1/gamma0) x output of the program; w <- w - lr gamma0^2 eta n^-c dLoss/dw; Loss = sum_mu l_mu / P
    (``theory/notation.md``, NO.2). Gradient flow is integrated by the classic Runge-Kutta rule with steps of at most a tenth of the
    fastest time scale of the initial net.

    Args:
        net: a program, e.g. ``tp.mlp(depth=3, activation=tp.tanh)``.
        parameterization: exponents and constants, without free symbols; any regime, unstable ones included.
        training: ``tp.GradientDescent`` or ``tp.GradientFlow``.
        task: the data.
        gamma0: feature-learning strength > 0.
        widths: different integers >= 1.
        seeds: number of nets per width, or a sequence of integers that label them.
        centred: subtract the initial net's predictions (training and test points) before the loss.
        times: rows 0..steps at which kernels and fields are recorded; all up to 20 steps, else five evenly spaced ones.
        seed: of all random numbers. A net depends on (seed, width, seed label) alone, not on the others.
        dtype: "float64" or "float32" (the same draws, rounded).
        memory: budget in bytes for one net in training plus all records.
        progress: show a progress bar on stderr; None shows one in a terminal.

    Returns:
        Ensemble: records with leading axes (widths, seeds). Its ``success`` is False if a net left the finite numbers.

    Raises:
        TPError: naming the argument, before any compilation; BudgetError if one net does not fit into ``memory``.
    """
    from tqdm import tqdm

    experiment = prepare(net, parameterization, training, task, gamma0, widths, seeds, centred, seed, dtype)
    rows = recorded_times(times, experiment.training.steps)
    memory = checks.number("memory", memory, above=0.0, hint="memory is a number of bytes, e.g. 2 * 2**30")
    if progress is not None:
        checks.flag("progress", progress)
    quiet = None if progress is None else not progress  # None: tqdm asks whether stderr is a terminal
    sites = _sites(experiment, len(rows))
    held = _record_bytes(experiment, len(rows), sites)
    batch = lanes(experiment, memory, experiment.working_bytes(max(experiment.widths), len(rows)), held)
    parts = []
    with (
        precision(),
        tqdm(total=len(experiment.widths) * len(experiment.seeds), unit="net", disable=quiet) as bar,
    ):
        for width in experiment.widths:
            bar.set_description(f"width {width}")
            chunks = []
            clock = clock_of(experiment, width)
            for k in range(0, len(experiment.seeds), batch):
                labels = experiment.seeds[k : k + batch]
                chunks.append(_records(experiment, width, labels, rows, sites, clock))
                bar.update(len(labels))
            parts.append({name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]})
    return _ensemble(experiment, rows, {name: np.stack([p[name] for p in parts]) for name in parts[0]})


def _records(
    experiment: Experiment, width: int, labels: Sequence[int], rows: Sequence[int], sites: int, clock: dynamics.Clock
) -> dict[str, np.ndarray]:
    """All records of a few nets, arrays with a leading axis of nets."""
    series, looks = march(experiment, width, labels, rows, lambda *state: dynamics.look(experiment.net, sites, *state), clock)
    over_times = {name: np.stack([np.asarray(getattr(one, name)) for one in looks], axis=1) for name in dynamics.Look._fields}
    return series | {
        "feature_kernels": _grams(over_times["phi"]),
        "gradient_kernels": _grams(over_times["g"]),
        "tangent_kernels": over_times["ntk"],
        "site_h": over_times["h_sites"],
        "site_z": over_times["z_sites"],
    }


def _grams(fields: np.ndarray) -> np.ndarray:
    """(1/n) x^T x between all recorded times: from (nets, T, layers, n, P) to (nets, T, T, layers, P, P)."""
    nets, T, layers, n, P = fields.shape
    columns = fields.transpose(0, 2, 3, 1, 4).reshape(nets, layers, n, T * P)
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged net is reported by its status
        gram = (columns.swapaxes(2, 3) @ columns / n).reshape(nets, layers, T, P, T, P)
    return gram.transpose(0, 2, 4, 1, 3, 5)


def _ensemble(experiment: Experiment, rows: tuple[int, ...], arrays: dict[str, np.ndarray]) -> Ensemble:
    arrays = arrays | {"first_bad": _blank_after_failure(arrays, rows)}
    if experiment.task.scalar(experiment.training.loss):
        arrays["f"] = arrays["f"][..., 0]
        arrays["tangent_kernels"] = arrays["tangent_kernels"][..., 0, :, 0]
        if "f_test" in arrays:
            arrays["f_test"] = arrays["f_test"][..., 0]
    answers: dict[str, Any] = {"f_test": None, "loss_test": None} | arrays
    return Ensemble(
        experiment.widths,
        experiment.seeds,
        rows,
        experiment.gamma0,
        experiment.centred,
        experiment.net.program,
        experiment.parameterization,
        experiment.training,
        experiment.task,
        **answers,
    )


def _blank_after_failure(arrays: dict[str, np.ndarray], rows: Sequence[int]) -> np.ndarray:
    """First row that is not finite per net (-1 for none), (W, S); blanks every record from there on, in place."""
    series = [arrays[name] for name in ("f", "loss", "f_test", "loss_test") if name in arrays]
    two_time = [arrays[name] for name in ("feature_kernels", "gradient_kernels")]
    one_time = [arrays[name] for name in ("tangent_kernels", "site_h", "site_z")]
    bad = np.any([_not_finite(a) for a in series], axis=0)
    diagonal = range(len(rows)), range(len(rows))
    recorded = [_not_finite(a[:, :, *diagonal]) for a in two_time] + [_not_finite(a) for a in one_time]
    bad[:, :, list(rows)] |= np.any(recorded, axis=0)
    first = np.where(bad.any(axis=2), bad.argmax(axis=2), -1)
    for w, s in np.argwhere(first >= 0):
        late = np.asarray(rows) >= first[w, s]
        for a in series:
            a[w, s, first[w, s] :] = np.nan
        for a in (*two_time, *one_time):
            a[w, s, late] = np.nan
        for a in two_time:
            a[w, s][:, late] = np.nan
    return first


def _not_finite(a: np.ndarray) -> np.ndarray:
    """Whether anything at (width, seed, time) is not finite."""
    return ~np.isfinite(a).reshape(*a.shape[:3], -1).all(axis=-1)


def _sites(experiment: Experiment, looks: int) -> int:
    """Sites kept per net: the same number for all, so that the record is one array."""
    task, nets = experiment.task, len(experiment.widths) * len(experiment.seeds)
    each = nets * looks * 2 * experiment.net.program.depth * task.P * experiment.dtype.itemsize
    return max(1, min(min(experiment.widths), SITES // len(experiment.seeds), SITE_BYTES // each))


def _record_bytes(experiment: Experiment, looks: int, sites: int) -> int:
    """Memory of the records of the whole ensemble."""
    task, K, L = experiment.task, experiment.net.outputs, experiment.net.program.depth
    points = task.P + (0 if task.X_test is None else len(task.X_test))
    series = (experiment.training.steps + 1) * (points * K + 2)
    kernels = 2 * L * (looks * task.P) ** 2 + looks * (task.P * K) ** 2
    # chunks are joined once per width and once per ensemble
    return (
        2 * experiment.dtype.itemsize * len(experiment.widths) * len(experiment.seeds) * (series + kernels + 2 * looks * L * sites * task.P)
    )
