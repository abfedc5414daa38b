"""Runs as people see them: the list, and one run with its actions.

The one rule: a run that goes on says what it waits for. Deliberately absent: how its actions
stand, which `standing` knows, and its story.
"""

import sqlite3
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgpack

from imlmesh_orchestrator.core.waves import waves
from imlmesh_orchestrator.store.compacted import span
from imlmesh_orchestrator.views.actions import ActionsView
from imlmesh_orchestrator.views.approvals import of_run
from imlmesh_orchestrator.views.standing import (
    Results,
    Row,
    Standing,
    retried_of,
    rows_of,
    standings,
    units_of,
)
from imlmesh_orchestrator.views.telling import utc, waiting_text
from imlmesh_orchestrator.views.units import Alias, unit_text
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.states import (
    PRESENT,
    RUN_ENDED,
    ActionState,
    ApprovalState,
    Liveness,
    RunState,
)

# a pending run that has a dispatch is running; ids of dispatches begin with "<run>/", and "0" is
# the character after "/"
_SHOWN = """SELECT *, CASE WHEN state = 'pending' AND EXISTS (SELECT 1 FROM dispatches
    WHERE dispatch > run || '/' AND dispatch < run || '0') THEN 'running' ELSE state END AS shown
    FROM runs"""
_LIVENESS = "SELECT node, liveness FROM nodes"
_NAMED = 3


def find_run(database: sqlite3.Connection, name: str) -> str:
    """The id that `name` is, or uniquely begins; `run.not_found`, `run.ambiguous`.

    A whole number is unique: r-1 is not r-10-k3fq.
    """
    sql = "SELECT run FROM runs WHERE run >= ? AND run < ? LIMIT 3"
    found: list[str] = []
    for beginning in (f"{name}-", name) if name else ():
        end = f"{beginning}{chr(sys.maxunicode)}"
        found = [row[0] for row in database.execute(sql, (beginning, end))]
        if name in found or len(found) == 1:
            return name if name in found else found[0]
    if found:
        raise InputError("run.ambiguous", f"{name} may be {', '.join(found)}")
    raise InputError("run.not_found", f"no run {name[:80]!r}")


def list_runs(
    database: sqlite3.Connection, alias: Alias, limit: int, before: int | None, state: str
) -> list[dict[str, Any]]:
    """The latest runs first; `state` "" means any."""
    wanted = f"SELECT * FROM ({_SHOWN}) WHERE counter < ? AND ? IN ('', shown)"  # noqa: S608
    sql = f"{wanted} ORDER BY counter DESC LIMIT ?"
    counter = before if before is not None else 1 << 62
    rows = rows_of(database, sql, (counter, state, min(limit, limits.RUN_LIST)))
    return [_summary(database, row, standings(database, row["run"]), alias) for row in rows]


def show_run(
    database: sqlite3.Connection,
    name: str,
    alias: Alias,
    effects: Mapping[tuple[str, str], str],
    *,
    whole: bool = False,
) -> dict[str, Any]:
    """One run whole. `effects` are the drivers' own, by module and action; large results are left
    out unless `whole`."""
    run = find_run(database, name)
    row = rows_of(database, f"{_SHOWN} WHERE run = ?", (run,))[0]
    plan = plan_of(database, row["digest"])
    known = standings(database, run)
    shown = ActionsView(database, run, known, alias, effects)
    retried = retried_of(database, run, row["retried_seq"])
    results = Results(database, run, retried, whole=whole)
    by_wave = waves(plan)
    wave_of = {name: number for number, names in enumerate(by_wave, 1) for name in names}
    places = msgpack.unpackb(row["places"]) if row["places"] else {}
    error = {"code": row["code"], "message": row["message"]} if row["code"] else None
    return {
        "schema": "imlmesh.run/1",
        **_summary(database, row, known, alias),
        "file": row["file"],
        "digest": row["digest"],
        "error": error,
        "waves": by_wave,
        "seq": span(database, run)[1],
        "actions": [
            {
                **shown.of(action, results),
                "wave": wave_of.get(action.id, 0),
                "line": places.get(action.id, (None, None))[0],
                "column": places.get(action.id, (None, None))[1],
            }
            for action in plan.actions
        ],
        "approvals": of_run(database, run),
    }


def plan_of(database: sqlite3.Connection, digest: str) -> Plan:
    """The plan of a run, as it was submitted."""
    found = database.execute("SELECT document FROM plans WHERE digest = ?", (digest,)).fetchone()
    return Plan.model_validate_json(found[0])


def run_ended(database: sqlite3.Connection, run: str) -> str | None:
    """The state in which the run ended; None while it goes on."""
    row = database.execute("SELECT state FROM runs WHERE run = ?", (run,)).fetchone()
    return row[0] if row and RunState(row[0]) in RUN_ENDED else None


def _summary(
    database: sqlite3.Connection, row: Row, known: Mapping[str, Standing], alias: Alias
) -> dict[str, Any]:
    counts = Counter(str(standing.state) for standing in known.values())
    if row["actions"] > len(known):
        counts[ActionState.PENDING] += row["actions"] - len(known)
    ended = row["ended_at_ms"] is not None
    return {
        "run": row["run"],
        "plan_id": row["plan_id"],
        "description": row["description"],
        "state": row["shown"],
        "waits_for": [] if ended else _waits_for(database, row, known, alias),
        "unconfirmed": bool(row["unconfirmed"]),
        "compensation_pending": bool(row["compensation_pending"]),
        "by": row["asked_by"],
        "priority": row["priority"],
        "of": row["retry_of"],
        "starts_at_ms": row["starts_at_ms"] or None,
        "submitted_at_ms": row["submitted_at_ms"],
        "ended_at_ms": row["ended_at_ms"],
        "counts": {str(state): count for state, count in counts.items()},
        "actions": row["actions"],
    }


def _waits_for(
    database: sqlite3.Connection, row: Row, known: Mapping[str, Standing], alias: Alias
) -> list[str]:
    found = [
        f"approval {approval['approval']} of {unit_text(approval['unit'], alias)}"
        for approval in of_run(database, row["run"])
        if approval["state"] == ApprovalState.PENDING
    ]
    if row["shown"] == RunState.PAUSED:
        found.append(f"imlmesh run resume {row['run']}")
    # what a retry keeps has ended without a dispatch before anything begins
    elif row["starts_at_ms"] > row["submitted_at_ms"] and all(
        standing.ended and not standing.dispatches for _, standing in units_of(known)
    ):
        found.append(f"its time to start, {utc(row['starts_at_ms'])}")
    waiting = [(key, s) for key, s in units_of(known) if s.state == ActionState.WAITING]
    for key, standing in waiting[:_NAMED]:
        unit = unit_text(key, alias)
        if standing.retry_at_ms is not None:
            found.append(f"the next try of {unit}, {utc(standing.retry_at_ms)}")
            continue
        reasons = waiting_text(standing.reasons or {}, alias)
        found.append(f"a node for {unit}" + (f" ({reasons})" if reasons else ""))
    if len(waiting) > _NAMED:
        found.append(f"nodes for {len(waiting) - _NAMED} more actions")
    return found + _silent(database, known, alias)


def _silent(database: sqlite3.Connection, known: Mapping[str, Standing], alias: Alias) -> list[str]:
    """What runs on a node that is not there and may still tell how it ended."""
    running = [(key, s.node) for key, s in units_of(known) if s.state == ActionState.RUNNING]
    if not running:
        return []
    gone = {
        n: how for n, how in database.execute(_LIVENESS) if how and Liveness(how) not in PRESENT
    }
    left = [(key, node) for key, node in running if node in gone]
    found = [
        f"word of {unit_text(key, alias)} from {alias(node)} ({gone[node]})"
        for key, node in left[:_NAMED]
        if node
    ]
    if len(left) > _NAMED:
        found.append(f"word of {len(left) - _NAMED} more actions")
    return found
