"""Order parameters read off marched trajectories: kernels from coordinates, responses by least squares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tp_solver.errors import InputError, RangeError
from tp_solver.numerics.noise import ExactColumns, SampledColumns
from tp_solver.program.statements import Layer, Product
from tp_solver.program.training import GradientFlow
from tp_solver.solve.comparisons import Comparisons
from tp_solver.solve.deviations import Check, Estimate, deviation, estimate
from tp_solver.solve.endings import Ending, predictions
from tp_solver.solve.formal import FormalResponses, formal_responses
from tp_solver.solve.kernel_records import KernelRecords, within
from tp_solver.solve.layout import Home, Layout
from tp_solver.solve.march import response_key
from tp_solver.solve.prepare import Prepared, prepare
from tp_solver.solve.replicates import MAIN
from tp_solver.solve.solution import Fields
from tp_solver.solve.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class MarchedKernels:
    """Kernels of a march, averaged over its replicates.

    Attributes:
        prepared: the numbers of the run.
        trajectories: one per replicate.
        stride: recorded steps per reported time (larger than 1 for a refined gradient flow).
        X: training inputs (P, D).
        gamma0: as solved.
        comparisons: runs at other settings, for error bars.
    """

    prepared: Prepared
    trajectories: tuple[Trajectory, ...]
    stride: int
    X: np.ndarray
    gamma0: float
    comparisons: Comparisons = field(default_factory=Comparisons)
    _formal: dict[int, FormalResponses] = field(default_factory=dict)

    @property
    def plan(self) -> Layout:
        """Static structure of the program."""
        return self.prepared.setting.plan

    def Phi(self, layer: int, t: int, s: int) -> np.ndarray:
        """Mean over replicates of <phi(h(t)) phi(h(s))>."""
        return np.mean(self._replicates("Phi", (layer, t, s)), axis=0)

    def G(self, layer: int, t: int, s: int) -> np.ndarray:
        """Mean over replicates of <g(t) g(s)>."""
        return np.mean(self._replicates("G", (layer, t, s)), axis=0)

    def A(self, layer: int, t: int, s: int) -> np.ndarray:
        """Forward response, by least squares in the recorded coordinates."""
        return np.mean(self._replicates("A", (layer, t, s)), axis=0)

    def B(self, layer: int, t: int, s: int) -> np.ndarray:
        """Backward response, by least squares in the recorded coordinates."""
        return np.mean(self._replicates("B", (layer, t, s)), axis=0)

    def ntk(self, t: int) -> np.ndarray:
        """Tangent kernel."""
        return np.mean(self._replicates("ntk", (t,)), axis=0)

    def stderr(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        """Scatter, finite samples, truncation and step size as for f (LO.7); the scatter alone for A and B."""
        return self._estimate(name, args).stderr

    def freedom(self, name: str, args: tuple[int, ...]) -> np.ndarray:
        """Degrees of freedom of the standard error."""
        return self._estimate(name, args).effective_freedom

    def _estimate(self, name: str, args: tuple[int, ...]) -> Estimate:
        """Kernels are Gram matrices of samples and stay so: deviations are not removed from them."""
        main = np.array(self._replicates(name, args))
        errors = {}
        if name in self._readers:
            times = args if name == "ntk" else args[1:]
            errors = {check.kind: self._deviation(check, main, name, args, times) for check in self.comparisons.checks}
        return estimate(main, errors, frozenset(), isinstance(self.trajectories[0].source, SampledColumns))

    def _deviation(self, check: Check, main: np.ndarray, name: str, args: tuple[int, ...], times: tuple[int, ...]) -> np.ndarray:
        near, far = (self._records if g == MAIN else self.comparisons.groups[g] for g in (check.near, check.far))
        if not all(t in run.recorded for run in (*near, *far) for t in times):  # a run that diverged before
            return np.full_like(main, np.inf)
        read = self._readers[name]
        one, other = (np.array([read(run, *args) for run in group])[:, None] for group in (near, far))
        return deviation(one, other, main[:, None], check.factor)[:, 0]

    def fields(self, layer: int, t: int) -> Fields:
        """Samples of all replicates, one after the other."""
        variables = self._layer(layer)
        kept = self.trajectories[0].fields
        if t * self.stride not in kept:
            times = tuple(sorted(k // self.stride for k in kept))
            raise RangeError("t", t, f"a time whose samples were kept: {times}", "solve with method=March(times=(...))")
        z = self.plan.backward.adjoints.get(variables.post)
        h, zs = (
            np.concatenate([tr.fields[t * self.stride][v].T for tr in self.trajectories]) if v else np.zeros((0, len(self.X)))
            for v in (variables.pre, z)
        )
        return Fields(h, zs)

    def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Final outputs at new inputs (P_new, K), corrected as f is, and their standard error."""

        def of(runs: Sequence[Ending]) -> np.ndarray:
            return predictions(self.prepared, self.prepared.course, runs, self.X, X, self.gamma0)

        main = of([Ending.of(tr) for tr in self._at_the_end()])
        found = {MAIN: main} | {name: of(runs) for name, runs in self.comparisons.endings.items()}
        corrections = [c for c in self.comparisons.checks if c.kind in self.comparisons.removed]
        errors = {c.kind: deviation(found[c.near][:, None], found[c.far][:, None], main[:, None], c.factor)[:, 0] for c in corrections}
        result = estimate(main, errors, frozenset(errors), isinstance(self.trajectories[0].source, SampledColumns))
        return result.value, result.stderr

    def _at_the_end(self) -> list[Trajectory]:
        """The replicates whose state is that of the last reported time: after a failure others may have gone further."""
        shortest = min(len(tr.f) for tr in self.trajectories)
        return [tr for tr in self.trajectories if len(tr.f) == shortest]

    def _layer(self, layer: int) -> Layer:
        return self.plan.program.layers[layer - 1]

    @property
    def _records(self) -> tuple[KernelRecords, ...]:
        return tuple(KernelRecords.of(tr, self.stride) for tr in self.trajectories)

    @property
    def _readers(self) -> dict[str, Callable[..., np.ndarray]]:
        return {"Phi": self._feature, "G": self._gradient, "ntk": self._tangent}

    def _replicates(self, name: str, args: tuple[int, ...]) -> list[np.ndarray]:
        if name in self._readers:
            return [self._readers[name](run, *args) for run in self._records]
        response = {"A": self._forward, "B": self._backward}[name]
        return [response(tr, *args) for tr in self.trajectories]

    def _feature(self, run: KernelRecords, layer: int, t: int, s: int) -> np.ndarray:
        return self._gram(run, self._layer(layer).post, t, s)

    def _gradient(self, run: KernelRecords, layer: int, t: int, s: int) -> np.ndarray:
        return self._gram(run, self._adjoint(self._layer(layer).pre), t, s)

    def _tangent(self, run: KernelRecords, t: int) -> np.ndarray:
        if not self.prepared.setting.scalar:
            raise RangeError(
                "ntk",
                "a solution with several outputs",
                "one output",
                "several outputs propagate loss gradients instead",
            )
        return run.ntk[run.index(t)]

    def _adjoint(self, variable: str) -> str:
        if variable not in self.plan.backward.adjoints:
            raise RangeError("layer", variable, "a layer that the output depends on", "the gradient at this layer is zero")
        return self.plan.backward.adjoints[variable]

    def _gram(self, run: KernelRecords, variable: str, t: int, s: int) -> np.ndarray:
        i, j = run.index(t), run.index(s)
        c = run.coordinates[variable]
        gram = c[i] @ c[j].T
        if t == s:  # the diagonal does not suffer from the truncation
            np.fill_diagonal(gram, run.squares[variable][i])
        return gram

    def _forward(self, tr: Trajectory, layer: int, t: int, s: int) -> np.ndarray:
        """A: what the product that reads phi(h) returns of the transposed products before it."""
        return self._response(tr, self._product(lambda p: p.arg == self._layer(layer).post and not p.transpose, layer), t, s)

    def _backward(self, tr: Trajectory, layer: int, t: int, s: int) -> np.ndarray:
        """B: what the transposed product of the same matrix returns of the products before it."""
        matrix = self._product(lambda p: p.arg == self._layer(layer).post and not p.transpose, layer).matrix
        used = next(q.adjoint for q in self.plan.backward.pairs if q.matrix == matrix and q.input == self._layer(layer).post)
        return self._response(tr, self._product(lambda p: p.matrix == matrix and p.arg == used and p.transpose, layer), t, s)

    def _product(self, wanted: Any, layer: int) -> Product:
        for p in self.plan.hidden_products():
            if wanted(p):
                return p
        raise RangeError("layer", layer, "a layer that a hidden matrix reads", "responses live between two hidden layers")

    def _response(self, tr: Trajectory, product: Product, t: int, s: int) -> np.ndarray:
        """The coefficients of the earlier opposite products, first one of each time, in the response of ``product`` at t."""
        sequence = self.plan.hidden_products()
        found: dict[str, Product] = {}  # the same product again is the same vector
        for q in sequence:
            if q.matrix == product.matrix and q.transpose != product.transpose:
                found.setdefault(q.arg, q)
        opposite = list(found.values())
        if isinstance(tr.source, ExactColumns):
            self._require_plain()
            if 0 not in self._formal:
                self._formal[0] = formal_responses(self.prepared, tr, self.gamma0)
            return self._formal[0].response(product, opposite[0], t * self.stride, s * self.stride)
        if tr.recorded[: t * self.stride + 1] != tuple(range(t * self.stride + 1)):
            raise RangeError("t", t, "a solution that recorded every step up to t", "solve with method=March(recorded=range(t + 1))")
        here = sequence.index(product)
        scale, course = self.prepared.columns.scales[product.matrix], self.prepared.course
        agreement = course.correlation(product.matrix, t * self.stride, s * self.stride) if scale else 1.0
        target = tr.responses[response_key(product.matrix, product.transpose, product.arg)][t * self.stride] / (scale**2 if scale else 1.0)
        blocks: list[np.ndarray] = []
        wanted: int | None = None
        for i in range(t * self.stride + 1):
            for q in opposite:
                if i < t * self.stride or sequence.index(q) < here:
                    if i == s * self.stride and wanted is None:
                        wanted = len(blocks)
                    blocks.append(tr.coordinates[self.plan.coordinate_key(q.arg, self.plan.side_of(q))][i])
        points = len(target)
        if wanted is None:
            return np.zeros((points, points))
        # directions below 1e-3 of the largest carry sampling noise alone; A G does not depend on them
        solution = np.linalg.lstsq(np.concatenate(blocks).T, target.T, rcond=1e-3)[0]
        return solution[wanted * points : (wanted + 1) * points].T / agreement

    def _require_plain(self) -> None:
        if not self.prepared.course.plain:
            raise RangeError(
                "A and B", "an exact solution with momentum, decay, a schedule or minibatches", "plain gradient descent",
                "method='march' estimates them",
            )  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, with names that :meth:`from_arrays` understands."""
        out: dict[str, np.ndarray] = {"stride": np.array(self.stride), "count": np.array(len(self.trajectories))}
        for k, tr in enumerate(self.trajectories):
            pre = f"r{k}/"
            out |= {f"{pre}{n}": getattr(tr, n) for n in ("f", "loss", "ntk", "identity")}
            out[f"{pre}recorded"] = np.array(tr.recorded, dtype=np.int64)
            for group in ("coordinates", "squares", "responses"):
                out |= {f"{pre}{group}/{v}": a for v, a in getattr(tr, group).items()}
            out |= {f"{pre}fields/{t}/{v}": a for t, kept in tr.fields.items() for v, a in kept.items()}
            out |= {f"{pre}{n}": a for n, a in Ending.of(tr).arrays().items()}
        return out | {f"comparisons/{n}": a for n, a in self.comparisons.arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], theory: Any, task: Any, gamma0: float) -> MarchedKernels:
        """Rebuild from :meth:`arrays`."""
        stride = int(arrays["stride"])
        flow = isinstance(theory.training, GradientFlow)
        prepared = prepare(theory, task, theory.training.refined(stride) if flow else None)
        trajectories = []
        for k in range(int(arrays["count"])):
            pre = f"r{k}/"
            mine = {n.removeprefix(pre): a for n, a in arrays.items() if n.startswith(pre)}
            if not {"f", "loss", "ntk", "identity", "stream"} <= set(mine):
                raise InputError("kernels", f"no replicate {k}", "all replicates in the file", "the file is incomplete")
            fields: dict[int, dict[str, np.ndarray]] = {}
            for n in [n for n in mine if n.startswith("fields/")]:
                _, t, v = n.split("/", 2)
                fields.setdefault(int(t), {})[v] = mine[n]
            groups = {g: within(mine, f"{g}/") for g in ("coordinates", "squares", "responses")}
            end = Ending.from_arrays(mine, prepared.setting.plan, len(mine["f"]) - 1)
            trajectories.append(
                Trajectory(
                    mine["f"], None, (), mine["loss"], mine["ntk"], mine["identity"],
                    tuple(map(int, mine.get("recorded", np.arange(len(mine["f"]))))), groups["coordinates"], groups["squares"],
                    groups["responses"], fields, end.state, end.met, end.source, {}, {}, None,
                )
            )  # fmt: skip
        comparisons = Comparisons.from_arrays(within(arrays, "comparisons/"), prepared.setting.plan)
        return cls(prepared, tuple(trajectories), stride, np.asarray(task.X), gamma0, comparisons)


def final_ranks(trajectories: tuple[Trajectory, ...]) -> dict[str, int]:
    """Largest final rank of every basis over the replicates, by name: runs that were cut hold their bases in another order."""
    homes: list[Home] = sorted(trajectories[0].used, key=str)
    return {str(h): max(tr.used[h] for tr in trajectories) for h in homes}
