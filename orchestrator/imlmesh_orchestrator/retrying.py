"""What a new run takes over from the ended one that it retries.

The one rule: what completed is kept and never repeated; what may repeat an effect is named, so
that a person is asked first. Deliberately absent: asking; the core does.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

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
from imlmesh_protocol.iml.compensation import compensation_only
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
    undoing = compensation_only(plan)
    # dependencies first, so that an undoing takes the later ones first
    names = [name for wave in waves(plan) for name in wave]
    kept: dict[str, Any] = {}
    for name in names:
        standing = known.get(name, Standing())
        if standing.state == ActionState.COMPLETED and not _partly_undone(standing):
            nodes = results.kept_nodes(name) or _nodes(standing)
            kept[name] = [nodes, results.of(name, standing)]
    again = set(names)
    if failed_only:
        below = _reached(_dependents(plan), {n for n in names if _failed(known.get(n))})
        again = _reached({action.id: action.depends_on for action in plan.actions}, below)
    left = tuple(name for name in names if name not in kept and name not in again)
    asked = _asked(plan, known, alias, before.again if before else {}, {*kept, *left, *undoing})
    places = msgpack.unpackb(row["places"]) if row["places"] else {}
    source = Source(row["file"], places)
    retried = Retried(run, kept, asked, left)
    return Taken(plan, row["digest"], source, row["priority"], retried)


def _failed(standing: Standing | None) -> bool:
    return standing is not None and standing.state in _FAILED


def _partly_undone(standing: Standing) -> bool:
    return any(m.state == ActionState.ROLLED_BACK for m in standing.members.values())


def _nodes(standing: Standing) -> list[str]:
    """Where an action completed: one node, or those of its members that did."""
    if not standing.members:
        return [standing.node] if standing.node else []
    done = standing.members.items()
    return [node for node, member in done if member.state == ActionState.COMPLETED]


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


def _asked(
    plan: Plan,
    known: Mapping[str, Standing],
    alias: Alias,
    before: Mapping[str, str],
    quiet: set[str],
) -> dict[str, str]:
    """Once and physical actions that start again although they had started: when and where.

    `before` is what the retried run had itself taken over, and perhaps never started again.
    """
    found: dict[str, str] = {}
    for action in plan.actions:
        if action.id in quiet:
            continue
        standing = known.get(action.id, Standing())
        attempts = [*standing.dispatches]
        for member in standing.members.values():
            attempts += member.dispatches
        started = [_attempt(row, alias) for row in attempts if _may_have_had_effect(row)]
        if started:
            found[action.id] = "; ".join(started)
        elif action.id in before:
            found[action.id] = before[action.id]
    return found


def _may_have_had_effect(row: Row) -> bool:
    refused = row["state"] == DispatchState.REJECTED or row["code"] in _NEVER_STARTED
    return not refused and not Effect(row["effect"]).repeatable


def _attempt(row: Row, alias: Alias) -> str:
    node = split_dispatch(row["dispatch"])[2]
    return f"on {alias(node)}, {utc(row['planned_at_ms'])} ({row['state']})"
