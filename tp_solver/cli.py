"""The command line: ``tp-solver demo | derive | regime | solve | simulate | compare``.

Results go to stdout and into a folder, progress and errors to stderr. Exit codes: 0 done, 1 a run that did not end well (its
record is written), 2 malformed input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from inspect import BoundArguments, signature
from pathlib import Path
from typing import Any

from tp_solver import config as inputs
from tp_solver import plot, report
from tp_solver.compare import compare
from tp_solver.config import Config, inside
from tp_solver.errors import TPError
from tp_solver.finite.ensemble import Ensemble
from tp_solver.finite.experiment import prepare, recorded_times
from tp_solver.finite.simulate import simulate
from tp_solver.limit.derive import limit
from tp_solver.limit.equations import LimitEquations
from tp_solver.limit.regime import regime
from tp_solver.program.task import Task
from tp_solver.report import Report
from tp_solver.solve.dispatch import check_target, chosen_method, solve
from tp_solver.solve.solution import Solution
from tp_solver.storage import save_ensemble, versions

DEMO, INPUTS = "demo.toml", "inputs.toml"


@dataclass
class Run:
    """One call of the command line: its inputs, its folder, and how long the stages took."""

    command: str
    config: Config
    folder: Path
    quiet: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def open(self) -> None:
        """Make the folder and write the inputs into it, before anything long begins."""
        self.folder.mkdir(parents=True, exist_ok=True)
        inputs.write(self.config, self.folder / INPUTS)

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Say on stderr what is being done, and keep the time it took."""
        self.say(f"{what} ...")
        start = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - start
        self.say(f"{what}: {self.seconds[what]:.1f} s")

    def say(self, text: str) -> None:
        """A line on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @property
    def bars(self) -> bool:
        """Whether to show progress bars: only where they can be redrawn."""
        return not self.quiet and sys.stderr.isatty()

    def figure(self, figure: Any, stem: str) -> str:
        """Save a figure into the folder; the file's name."""
        name = f"{stem}.{self.config.options('output').get('figure', plot.FORMATS[0])}"
        plot.save(figure, self.folder / name)
        return name

    def report(self, title: str, theory: LimitEquations | None = None) -> Report:
        """A report with the parts that all commands share."""
        again = {"demo": "compare"}.get(self.command, self.command)
        settings = (self.folder / INPUTS).read_text()
        return Report(title, settings, f"tp-solver {again} {INPUTS} --out .", theory, seconds=self.seconds)

    def finish(self, made: Report) -> int:
        """Write the report and say where everything is; the exit code."""
        made.write(self.folder)
        self.say(f"written to {self.folder}: {', '.join(sorted(p.name for p in self.folder.iterdir()))}")
        code = 0
        for record in (made.sol, made.ens):
            if record is not None and not record.success:
                print(f"tp-solver: {record.status}: {record.message}", file=sys.stderr)
                code = 1
        return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: as after the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(arguments)
    try:
        config = inputs.read(args.file, args.set)
        chosen = args.out or config.options("output").get("folder") or f"tp-solver-{args.command}"
        return args.call(Run(args.command, config, Path(chosen), args.quiet))
    except TPError as error:
        print(f"tp-solver: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tp-solver: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tp-solver: interrupted", file=sys.stderr)
        return 130


def _derive(run: Run) -> int:
    """Print the limiting equations."""
    theory = _theory(run)
    run.open()
    print(theory)
    return run.finish(run.report("Limiting equations", theory))


def _regime(run: Run) -> int:
    """Print the regime, and the cure where there is something to cure."""
    verdict = str(regime(run.config.parameterization(), run.config.net()))
    run.open()
    print(verdict)
    return run.finish(replace(run.report("Regime"), verdict=verdict))


def _solve(run: Run) -> int:
    """Solve the limit."""
    task, theory = run.config.task(), _theory(run)
    _check_target(run, theory, task)
    run.open()
    sol = _solution(run, theory, task)
    print(sol)
    figure = run.figure(plot.loss_curves(sol), "losses")
    return run.finish(replace(run.report("Solution of the limit", theory), sol=sol, figures=(figure,)))


def _simulate(run: Run) -> int:
    """Train finite nets."""
    task = run.config.task()
    _check_nets(run, task)
    run.open()
    ens = _ensemble(run, task)
    print(ens)
    figure = run.figure(plot.loss_curves(ens), "losses")
    return run.finish(replace(run.report("Ensemble of finite nets"), ens=ens, figures=(figure,)))


def _compare(run: Run) -> int:
    """Solve the limit, train finite nets on the same data, and show both."""
    task, theory = run.config.task(), _theory(run)
    _check_target(run, theory, task)
    _check_nets(run, task)
    run.open()
    print(report.brief(theory) + "\n", flush=True)
    sol = _solution(run, theory, task)
    ens = _ensemble(run, task)
    comparison = compare(sol, ens)
    print(comparison)
    figure = run.figure(comparison.plot(), "comparison")
    made = run.report("Theory against finite nets", theory)
    return run.finish(replace(made, sol=sol, ens=ens, comparison=comparison, figures=(figure,)))


def _theory(run: Run) -> LimitEquations:
    with inside("training"):
        return limit(run.config.net(), run.config.parameterization(), run.config.training())


def _solution(run: Run, theory: LimitEquations, task: Task) -> Solution:
    with run.stage("theory"), inside("solve"):
        sol = solve(theory, task, progress=run.bars, **run.config.options("solve"))
    if run.config.options("output").get("solution", True):
        sol.save(run.folder / "solution.npz")
    return sol


def _ensemble(run: Run, task: Task) -> Ensemble:
    call = _experiment(run, task)
    with run.stage("nets"), inside("solve", "simulate"):
        ens = simulate(*call.args, **call.kwargs)
    save_ensemble(ens, run.folder / "ensemble.npz")
    return ens


def _check_target(run: Run, theory: LimitEquations, task: Task) -> None:
    """Refuse a target accuracy that the method cannot be given, before anything is written."""
    call = signature(solve).bind(theory, task, **run.config.options("solve"))
    call.apply_defaults()
    a = call.arguments
    if a["rtol"] is not None:
        with inside("solve"):
            check_target(a["rtol"], a["samples"], a["replicates"], chosen_method(theory, a["gamma0"], a["method"]))


def _check_nets(run: Run, task: Task) -> None:
    """Refuse a malformed experiment before the theory is solved."""
    a = _experiment(run, task).arguments
    with inside("solve", "simulate", "training"):
        prepare(*(a[n] for n in signature(prepare).parameters))
        recorded_times(a["times"], a["training"].steps)


def _experiment(run: Run, task: Task) -> BoundArguments:
    """The call of ``simulate`` that the inputs ask for."""
    config = run.config
    gamma0 = config.options("solve").get("gamma0", signature(solve).parameters["gamma0"].default)
    run_of = config.net(), config.parameterization(), config.training(), task, gamma0
    call = signature(simulate).bind(*run_of, progress=run.bars, **config.options("simulate"))
    call.apply_defaults()
    return call


COMMANDS: dict[str, Callable[[Run], int]] = {
    "derive": _derive,
    "regime": _regime,
    "solve": _solve,
    "simulate": _simulate,
    "compare": _compare,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tp-solver", description="Infinite-width limits of neural networks, derived, solved, and set beside finite nets."
    )
    parser.add_argument("--version", action="version", version=f"tp-solver {versions()['tp-solver']}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, call in COMMANDS.items():
        sub = commands.add_parser(name, help=_summary(call), description=_summary(call))
        sub.add_argument("file", help="TOML file with the inputs")
        _options(sub, call)
    demo = commands.add_parser(
        "demo", help="the shipped example: " + _summary(_compare), description=f"compare, run on the shipped {DEMO}."
    )
    _options(demo, _compare)
    with resources.as_file(resources.files("tp_solver") / "examples" / DEMO) as path:
        demo.set_defaults(file=path)
    return parser


def _options(parser: argparse.ArgumentParser, call: Callable[[Run], int]) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one input; may be repeated")
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: tp-solver-COMMAND)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(call=call)


def _summary(call: Callable[[Run], int]) -> str:
    return (call.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
