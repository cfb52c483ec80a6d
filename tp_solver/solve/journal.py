"""What a march has recorded so far, and how it is written to a file half way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from tp_solver.errors import FileFormatError
from tp_solver.numerics.basis import Basis
from tp_solver.numerics.sites import Placement, fetched
from tp_solver.solve.layout import ABOVE, BELOW, Home, Layout
from tp_solver.solve.march import Moment, SiteState
from tp_solver.solve.operator import OperatorState

Arrays = dict[str, np.ndarray]


@dataclass
class Journal:
    """Series and records of a run, one entry per time.

    Attributes:
        f, loss, identity: per time; new: outputs at new points, per tested time.
        records: recorded time -> "ntk", "coordinates/...", "squares/...", "responses/..." -> array.
        fields: time -> variable -> samples.
        met: of the last time, see :class:`tp_solver.solve.march.Moment`.
    """

    f: list[np.ndarray] = field(default_factory=list)
    loss: list[np.ndarray] = field(default_factory=list)
    identity: list[np.ndarray] = field(default_factory=list)
    new: list[np.ndarray] = field(default_factory=list)
    records: dict[int, Arrays] = field(default_factory=dict)
    fields: dict[int, Arrays] = field(default_factory=dict)
    met: dict[str, dict[tuple[bool, str], int]] = field(default_factory=dict)

    def note(self, t: int, moment: Moment) -> None:
        """Add the time that comes next; its arrays are on the host."""
        self.f.append(np.asarray(moment.f))
        self.loss.append(np.asarray(moment.loss))
        self.identity.append(np.asarray(moment.identity))
        self.met = {m: {k: int(n) for k, n in counts.items()} for m, counts in moment.met.items()}
        if moment.record is None:
            return
        kept = {"ntk": np.asarray(moment.record.ntk)}
        groups = (("coordinates", moment.record.coordinates), ("squares", moment.squares), ("responses", moment.record.responses))
        for group, arrays in groups:
            kept |= {f"{group}/{v}": np.asarray(a) for v, a in arrays.items()}
        self.records[t] = kept

    def group(self, name: str) -> dict[str, list[np.ndarray]]:
        """Variable -> its arrays at all recorded times, of "coordinates", "squares" or "responses"."""
        out: dict[str, list[np.ndarray]] = {}
        for kept in self.records.values():
            for key, a in kept.items():
                if key.startswith(f"{name}/"):
                    out.setdefault(key.removeprefix(f"{name}/"), []).append(a)
        return out


@dataclass(frozen=True)
class Midway:
    """A march between two steps.

    Attributes:
        t: the time that the next step starts from; one past the last where the run is complete.
        capacity, held: room of every basis, and directions in use at the last recorded time.
        state: weights before the next step; last: those of the last recorded time; both with the same bases.
        journal: what was recorded.
    """

    t: int
    capacity: Mapping[Home, int]
    held: Mapping[Home, int]
    state: SiteState
    last: SiteState
    journal: Journal


def midway_arrays(midway: Midway) -> Arrays:
    """Flat arrays, from which :func:`midway_from_arrays` builds the same again, to the last bit."""
    journal = midway.journal
    out: dict[str, Any] = {"t": np.array(midway.t)}
    out |= {f"series/{name}": np.array(getattr(journal, name)) for name in ("f", "loss", "identity", "new") if getattr(journal, name)}
    out |= {f"record/{t}/{key}": a for t, kept in journal.records.items() for key, a in kept.items()}
    out |= {f"fields/{t}/{v}": a for t, kept in journal.fields.items() for v, a in kept.items()}
    out |= {f"met/{m}/{int(tr)}/{v}": np.array(n) for m, counts in journal.met.items() for (tr, v), n in counts.items()}
    out |= {f"capacity/{home}": np.array(n) for home, n in midway.capacity.items()}
    out |= {f"held/{home}": np.array(n) for home, n in midway.held.items()}
    for name, state in (("state", midway.state), ("last", midway.last)):
        out |= {f"{name}/sites/{m}": a for m, a in state.sites.items()}
        out |= {f"{name}/velocity/{m}": a for m, a in state.velocity.items()}
        for m, op in state.operators.items():
            out |= {f"{name}/operators/{m}/{part}": getattr(op, part) for part in ("eps_u", "eps_r", "learned")}
    bases = {f"{m}/{side}": getattr(op, side) for m, op in midway.state.operators.items() for side in (BELOW, ABOVE)}
    for key, basis in (bases | {f"{k}/observer": b for k, b in midway.state.observers.items()}).items():
        out |= {f"basis/{key}/{part}": getattr(basis, part) for part in ("rows", "used", "scale")}
    return {name: fetched(a) for name, a in out.items()}


def midway_from_arrays(arrays: Mapping[str, np.ndarray], plan: Layout, placement: Placement) -> Midway:
    """The state that :func:`midway_arrays` took apart.

    Raises:
        FileFormatError: for arrays of another run.
    """
    try:
        return _rebuilt(arrays, plan, placement)
    except (KeyError, ValueError) as error:
        raise FileFormatError(
            "checkpoint", f"arrays without {error}", "those of a march of the same program", "delete the file to start the run again"
        ) from error


def _rebuilt(arrays: Mapping[str, np.ndarray], plan: Layout, placement: Placement) -> Midway:
    with jax.enable_x64(True):
        on_device = {n: placement.put(a) for n, a in arrays.items() if n.split("/")[0] in ("state", "last", "basis")}

    def under(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}

    def basis(key: str, partners: jax.Array | None = None) -> Basis:
        """The last state may be from before its bases grew: it has as many rows as partners."""
        rows, used, scale = (on_device[f"basis/{key}/{part}"] for part in ("rows", "used", "scale"))
        return Basis(rows if partners is None else rows[..., : partners.shape[-2], :], used, scale)

    def state(name: str) -> SiteState:
        operators = {}
        for m in plan.hidden:
            eps_u, eps_r, learned = (on_device[f"{name}/operators/{m}/{part}"] for part in ("eps_u", "eps_r", "learned"))
            operators[m] = OperatorState(basis(f"{m}/{BELOW}", eps_u), basis(f"{m}/{ABOVE}", eps_r), eps_u, eps_r, learned)
        sites, velocity = ({m: on_device[f"{name}/{what}/{m}"] for m in under(f"{name}/{what}/")} for what in ("sites", "velocity"))
        return SiteState(operators, sites, {k: basis(f"{k}/observer") for k in plan.observers}, velocity)

    f, loss, identity, new = (list(arrays.get(f"series/{name}", ())) for name in ("f", "loss", "identity", "new"))
    journal = Journal(f, loss, identity, new)
    for what, kept in (("record", journal.records), ("fields", journal.fields)):
        for key, a in under(f"{what}/").items():
            t, name = key.split("/", 1)
            kept.setdefault(int(t), {})[name] = a
    journal.records, journal.fields = (dict(sorted(kept.items())) for kept in (journal.records, journal.fields))
    for key, n in under("met/").items():
        m, transpose, v = key.split("/", 2)
        journal.met.setdefault(m, {})[bool(int(transpose)), v] = int(n)
    capacity, held = ({h: int(arrays[f"{what}/{h}"]) for h in plan.bases} for what in ("capacity", "held"))
    return Midway(int(arrays["t"]), capacity, held, state("state"), state("last"), journal)
