"""Time and peak memory of kernels, ours and those of neural-tangents, side by side in one run.

Every case runs in two fresh processes, one per library, each pinned to the same cores. After a first call, which compiles, the two take
turns, so that what else the machine does hits both alike. Tables in Markdown: medians of wall seconds and of processor seconds; peak
memory above that of a process that has imported its library (``VmHWM``, Linux only), with compilation, and of a warm call alone; the
largest difference between corners of the two results, over their largest entry.

    python benchmarks/kernels_and_peer.py [--peer PEER/bin/python] [--cores 1 2] [--only WORD] [--quick]

The peer's environment is described in tests/golden/README-peer.md. Without it only our columns are filled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from kernel_cases import CORNER, Case, SharedCase, groups

# the process that runs one library on one case


def memory(field: str) -> float:
    """MiB of this process, VmHWM (peak) or VmRSS (now). The peak that getrusage knows includes the parent's before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def serve(side: str, case: Case) -> None:
    """Answers each line of input by one call and a line of JSON."""
    import jax

    jax.block_until_ready(jax.jit(lambda v: v @ v + 1)(np.ones((3, 3), np.float32)))
    importlib.import_module({"ours": "tp_solver.kernel_regime.compute", "peer": "neural_tangents"}[side])
    forget_peak()
    base = memory("VmRSS")
    start = clocks()
    call = case.peer() if side == "peer" and isinstance(case, SharedCase) else case.ours()
    found = call()
    first = clocks() - start
    corners = [[v[:CORNER, -CORNER:].tolist(), v[:CORNER, :CORNER].tolist()] for v in found]
    del found
    print(json.dumps({"first": first.tolist(), "peak": memory("VmHWM") - base, "corners": corners}), flush=True)
    whole, resting = memory("VmHWM") - base, memory("VmRSS")
    for line in sys.stdin:
        if line.strip() == "end":
            break
        forget_peak()
        resting = memory("VmRSS")
        start = clocks()
        call()
        spent = clocks() - start
        whole = max(whole, memory("VmHWM") - base)
        print(json.dumps({"spent": spent.tolist(), "peak": whole, "warm": memory("VmHWM") - resting}), flush=True)


class Worker:
    """A process with one library and one case."""

    def __init__(self, python: str, side: str, case: Case, cores: int, quick: bool) -> None:
        arguments = ["--serve", side, "--case", case.name, "--cores", str(cores), *(["--quick"] if quick else [])]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([python, "-W", "ignore", __file__, *arguments], stdin=pipe, stdout=pipe, text=True)
        self.first = self.answer()
        self.calls: list[dict[str, Any]] = []

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        return json.loads(line) if line else {}

    def ask(self, word: str) -> None:
        if self.process.poll() is None and self.first:
            print(word, file=self.process.stdin, flush=True)

    def repeat(self) -> None:
        self.ask("again")
        if reply := self.answer():
            self.calls.append(reply)

    def close(self) -> None:
        self.ask("end")
        self.process.communicate(timeout=60)

    @property
    def median(self) -> np.ndarray:
        """Wall and processor seconds."""
        return np.median([c["spent"] for c in self.calls], axis=0)


def difference(one: Worker, two: Worker) -> float:
    worst = 0.0
    for a, b in zip(one.first["corners"], two.first["corners"], strict=True):
        for x, y in zip(a, b, strict=True):
            worst = max(worst, float(np.abs(np.subtract(x, y)).max() / np.abs(y).max()))
    return worst


HEAD = (
    "| case | ours, s (processor) | peer, s (processor) | peer / ours | first call, ours, processor s | peer "
    "| peak MiB, ours | peer | ours / peer | warm peak MiB, ours | peer | differ |"
)


def row(case: Case, ours: Worker, peer: Worker | None) -> str:
    """One row; cells of a side that failed or cannot are empty."""

    def cells(w: Worker | None) -> tuple[str, str, str, str]:
        if w is None or not w.calls:
            return "", "", "", ""
        peak, warm = max(c["peak"] for c in w.calls), max(c["warm"] for c in w.calls)
        wall, processor = w.median
        return f"{wall:.3g} ({processor:.3g})", f"{w.first['first'][1]:.2f}", f"{peak:.0f}", f"{warm:.0f}"

    one, two = cells(ours), cells(peer)
    both = peer is not None and ours.calls and peer.calls
    speed = f"{peer.median[1] / ours.median[1]:.2f}" if both else ""  # type: ignore[union-attr]
    small = f"{float(one[2]) / max(float(two[2]), 1.0):.2f}" if both else ""
    differ = f"{difference(ours, peer):.0e}" if both else ""  # type: ignore[arg-type]
    values = [case.name, one[0], two[0], speed, one[1], two[1], one[2], two[2], small, one[3], two[3], differ]
    return "| " + " | ".join(values) + " |"


def compare(case: Case, peer_python: str | None, cores: int, quick: bool) -> str:
    """Both sides in turn."""
    workers = [Worker(sys.executable, "ours", case, cores, quick)]
    if peer_python and isinstance(case, SharedCase):
        workers.append(Worker(peer_python, "peer", case, cores, quick))
    for k in range(case.repeats):
        for worker in workers[:: 1 if k % 2 else -1]:
            worker.repeat()
    for worker in workers:
        worker.close()
    return row(case, workers[0], workers[1] if len(workers) > 1 else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="/tmp/peer-env/bin/python", help="python of the environment that has neural-tangents")
    parser.add_argument("--cores", type=int, nargs="+", default=[1], help="one set of tables per number of cores")
    parser.add_argument("--only", default="", help="only cases whose name holds this word")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that the script runs")
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tables = groups(options.quick)
    if options.serve:
        (case,) = (c for _, group in tables for c in group if c.name == options.case)
        serve(options.serve, case)
        return
    peer = options.peer if Path(options.peer).exists() else None
    if peer is None:
        print(f"No neural-tangents: there is no {options.peer}. Its columns stay empty.\n")
    for cores in options.cores:
        for title, group in tables:
            chosen = [c for c in group if options.only in c.name]
            if not chosen:
                continue
            print(f"\n### {title}, {cores} core{'s' * (cores > 1)}\n\n{HEAD}\n|{' --- |' * HEAD.count('|', 1)}", flush=True)
            for case in chosen:
                print(compare(case, peer, cores, options.quick), flush=True)


def pin() -> None:
    """Keep a serving process, and the threads of its libraries, to its cores; before jax starts."""
    if "--serve" not in sys.argv:
        return
    cores = int(sys.argv[sys.argv.index("--cores") + 1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["OMP_NUM_THREADS"] = str(cores)
    if cores == 1:
        # threads that wait for each other burn processor time
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"


if __name__ == "__main__":
    pin()
    main()
