"""What a new run takes over from the ended one that it retries.

The one rule: what completed is kept and never repeated, by action and by node, unless somebody
began to undo it; what may repeat an effect is named, so that a person is asked first. Deliberately
absent: asking; the core does.
"""

import sqlite3
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from imlmesh_orchestrator.core.changes import RunRetried
from imlmesh_orchestrator.core.events import Retried
from imlmesh_orchestrator.core.waves import waves
from imlmesh_orchestrator.store.projections import Source
from imlmesh_orchestrator.views.runs import plan_of, run_ended
from imlmesh_orchestrator.views.standing import (
    Results,
    Row,
    Standing,
    retried_of,
    rows_of,
    standings,
)
from imlmesh_orchestrator.views.telling import utc
from imlmesh_orchestrator.views.units import Alias
from imlmesh_protocol.errors import NEVER_BEGUN, InputError
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.states import ActionState, DispatchState, Effect

_FAILED = frozenset(
    {
        ActionState.FAILED,
        ActionState.ROLLED_BACK,
        ActionState.UNKNOWN,
        ActionState.CANCELLED,
    }
)
_NEVER_STARTED = NEVER_BEGUN | {"node.full"}


@dataclass(frozen=True, slots=True)
class Taken:
    """All that the new run is submitted with."""

    plan: Plan
    digest: str
    source: Source
    priority: int
    retried: Retried


def take_over(database: sqlite3.Connection, run: str, alias: Alias, failed_only: bool) -> Taken:
    """The plan of an ended run and what stays of it; `run.not_ended`.

    With `failed_only` nothing runs but what failed, what waits for that, and what those need.
    """
    if run_ended(database, run) is None:
        raise InputError("run.not_ended", f"{run} goes on")
    row = rows_of(database, "SELECT * FROM runs WHERE run = ?", (run,))[0]
    plan = plan_of(database, row["digest"])
    known = standings(database, run)
    before = retried_of(database, run, row["retried_seq"])
    results = Results(database, run, before, whole=True)
    # dependencies first, so that an undoing takes the later ones first
    names = [name for wave in waves(plan) for name in wave]
    kept: dict[str, Any] = {}
    for name in names:
        kept.update(_kept(name, known.get(name, Standing()), results))
    again = set(names)
    if failed_only:
        below = _reached(_dependents(plan), {n for n in names if _failed(known.get(n))})
        again = _reached({action.id: action.depends_on for action in plan.actions}, below)
    left = tuple(name for name in names if name not in kept and name not in again)
    wanted = [name for name in names if name not in kept and name not in left]
    asked = _asked(wanted, kept, _Past(database, known, before), alias)
    places = msgpack.unpackb(row["places"]) if row["places"] else {}
    source = Source(row["file"], places)
    retried = Retried(run, kept, asked, left)
    return Taken(plan, row["digest"], source, row["priority"], retried)


def _failed(standing: Standing | None) -> bool:
    return standing is not None and standing.state in _FAILED


def _kept(name: str, standing: Standing, results: Results) -> dict[str, Any]:
    """What stays of an action: all of it, or what each of its members did; see `events.Retried`.

    What somebody began to undo is in a state that nobody knows, whatever became of that.
    """
    undone = {
        node
        for node, one in standing.undone_by.items()
        if any(map(_may_have_begun, one.dispatches))
    }
    members = standing.members
    undone |= {node for node, one in members.items() if one.state == ActionState.ROLLED_BACK}
    if standing.state == ActionState.COMPLETED and not undone:
        nodes = results.kept_nodes(name) or _nodes(standing)
        return {name: [nodes, results.of(name, standing)]}
    found = {}
    for node in sorted({*members, *results.kept_members(name)} - undone):
        key, member = f"{name}@{node}", members.get(node, Standing())
        # one that was kept before may have been left out this time
        if member.state == ActionState.COMPLETED or results.keeps_member(key, member):
            found[key] = [[node], results.of_member(key, member)]
    return found


def _nodes(standing: Standing) -> list[str]:
    """Where an action completed: one node, or those of its members that did."""
    if not standing.members:
        return [standing.node] if standing.node else []
    done = standing.members.items()
    return sorted(node for node, member in done if member.state == ActionState.COMPLETED)


def _dependents(plan: Plan) -> dict[str, list[str]]:
    below: dict[str, list[str]] = {}
    for action in plan.actions:
        for dependency in action.depends_on:
            below.setdefault(dependency, []).append(action.id)
    return below


def _reached(ways: Mapping[str, Iterable[str]], origins: set[str]) -> set[str]:
    """These and all that the ways lead to from them."""
    found, ahead = set(origins), list(origins)
    while ahead:
        for name in ways.get(ahead.pop(), ()):
            if name not in found:
                found.add(name)
                ahead.append(name)
    return found


@dataclass(frozen=True, slots=True)
class _Past:
    """What an ended run did, and what it had itself taken over."""

    database: sqlite3.Connection
    known: Mapping[str, Standing]
    before: RunRetried | None

    def attempts(self, name: str, kept: Container[str]) -> list[Row]:
        """Every dispatch of an action but those of kept members; of one that was not done here,
        those of the run that it was kept from."""
        standing = self.known.get(name, Standing())
        units = [standing]
        units += [m for node, m in standing.members.items() if f"{name}@{node}" not in kept]
        found = [row for unit in units for row in unit.dispatches]
        if found or self.before is None or name not in self.before.kept:
            return found
        return _past(self.database, self.before.of).attempts(name, ())


def _past(database: sqlite3.Connection, run: str) -> _Past:
    row = rows_of(database, "SELECT retried_seq FROM runs WHERE run = ?", (run,))[0]
    return _Past(database, standings(database, run), retried_of(database, run, row["retried_seq"]))


def _asked(names: Iterable[str], kept: Container[str], past: _Past, alias: Alias) -> dict[str, str]:
    """Once and physical actions that start again although they had started: when and where.

    What the retried run had to ask about and perhaps never started again is asked about too.
    """
    found: dict[str, str] = {}
    for name in names:
        attempts = past.attempts(name, kept)
        started = [_attempt(row, alias) for row in attempts if _may_have_had_effect(row)]
        if started:
            found[name] = "; ".join(started)
        elif past.before is not None and name in past.before.again:
            found[name] = past.before.again[name]
    return found


def _may_have_had_effect(row: Row) -> bool:
    return _may_have_begun(row) and not Effect(row["effect"]).repeatable


def _may_have_begun(row: Row) -> bool:
    return row["state"] != DispatchState.REJECTED and row["code"] not in _NEVER_STARTED


def _attempt(row: Row, alias: Alias) -> str:
    node = split_dispatch(row["dispatch"])[2]
    return f"on {alias(node)}, {utc(row['planned_at_ms'])} ({row['state']})"
