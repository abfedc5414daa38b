"""Runs as people see them: the list, one run with its actions, its story.

The one rule: an action's state is told by its last dispatch or by its own row, whichever is
later; one that has neither is pending.
"""

import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.waves import waves
from imlmesh_orchestrator.store.codec import decode
from imlmesh_orchestrator.views.approvals import of_run
from imlmesh_orchestrator.views.telling import Alias, story_entry, waiting_text
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.iml.plan import Action, Plan
from imlmesh_protocol.states import RUN_ENDED, ActionState, RunState

Row = Mapping[str, Any]

# ids of dispatches begin with "<run>/", and "0" is the character after "/"
_SHOWN = """SELECT *, CASE WHEN state = 'pending' AND EXISTS (SELECT 1 FROM dispatches
    WHERE dispatch > run || '/' AND dispatch < run || '0') THEN 'running' ELSE state END AS shown
    FROM runs"""
_DISPATCHES = """SELECT * FROM dispatches
    WHERE dispatch > :run || '/' AND dispatch < :run || '0' ORDER BY planned_seq"""
_ACTIONS = "SELECT * FROM actions WHERE run = :run"
_OF_RUN = "SELECT seq, run, at_ms, cause, kind, version, body FROM changes WHERE run = ?"
_NAMED = 3


@dataclass(slots=True)
class Standing:
    """What the projections say of one action."""

    state: str = ActionState.PENDING
    seq: int = 0
    dispatches: list[Row] = field(default_factory=list)
    result_seq: int | None = None
    ended_at_ms: int | None = None
    code: str | None = None
    message: str | None = None
    reasons: dict[str, str] | None = None


def find_run(database: sqlite3.Connection, name: str) -> str:
    """The id that `name` is, or uniquely begins; `run.not_found`, `run.ambiguous`."""
    end = f"{name}{chr(sys.maxunicode)}" if name else ""
    sql = "SELECT run FROM runs WHERE run >= ? AND run < ? LIMIT 3"
    found = [row[0] for row in database.execute(sql, (name, end))]
    if name in found or len(found) == 1:
        return name if name in found else str(found[0])
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
    rows = _rows(database, sql, (counter, state, min(limit, limits.RUN_LIST)))
    return [_summary(database, row, standings(database, row["run"]), alias) for row in rows]


def show_run(
    database: sqlite3.Connection, name: str, alias: Alias, effects: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    """One run whole. `effects` are the drivers' own, by module and action."""
    run = find_run(database, name)
    row = _rows(database, f"{_SHOWN} WHERE run = ?", (run,))[0]
    document = database.execute("SELECT document FROM plans WHERE digest = ?", (row["digest"],))
    plan = Plan.model_validate_json(document.fetchone()[0])
    known = standings(database, run)
    by_wave = waves(plan)
    wave_of = {name: number for number, names in enumerate(by_wave, 1) for name in names}
    places = msgpack.unpackb(row["places"]) if row["places"] else {}
    error = {"code": row["code"], "message": row["message"]} if row["code"] else None
    last = database.execute("SELECT max(seq) FROM changes WHERE run = ?", (run,)).fetchone()[0]
    return {
        "schema": "imlmesh.run/1",
        **_summary(database, row, known, alias),
        "file": row["file"],
        "digest": row["digest"],
        "error": error,
        "waves": by_wave,
        "seq": last or 0,
        "actions": [
            {
                **_declared(action, effects),
                "wave": wave_of[action.id],
                **_standing(database, known.get(action.id, Standing()), alias),
                "line": places.get(action.id, (None, None))[0],
                "column": places.get(action.id, (None, None))[1],
            }
            for action in plan.actions
        ],
        "approvals": of_run(database, run),
    }


def story(database: sqlite3.Connection, name: str, alias: Alias) -> list[dict[str, Any]]:
    """Every change of the run in words, in order."""
    run = find_run(database, name)
    rows = database.execute(f"{_OF_RUN} ORDER BY seq", (run,))
    return [story_entry(seq, decode(*row), alias) for seq, *row in rows]


def changes_after(
    database: sqlite3.Connection, run: str | None, after: int, limit: int
) -> list[tuple[int, c.Change]]:
    """The next stored changes, of one run or of everything, beyond the seq `after`."""
    which = "run = ?" if run is not None else "? IS NULL"
    columns = "seq, run, at_ms, cause, kind, version, body"
    sql = f"SELECT {columns} FROM changes WHERE {which} AND seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
    rows = database.execute(sql, (run, after, limit))
    return [(seq, decode(*row)) for seq, *row in rows]


def run_ended(database: sqlite3.Connection, run: str) -> str | None:
    """The state in which the run ended; None while it goes on."""
    row = database.execute("SELECT state FROM runs WHERE run = ?", (run,)).fetchone()
    return row[0] if row and RunState(row[0]) in RUN_ENDED else None


def standings(database: sqlite3.Connection, run: str) -> dict[str, Standing]:
    """By action id; what is pending is not in it."""
    found: dict[str, Standing] = {}
    for row in _rows(database, _DISPATCHES, {"run": run}):
        standing = found.setdefault(split_dispatch(row["dispatch"])[1], Standing())
        standing.dispatches.append(row)
        seq = row["result_seq"] or row["planned_seq"]
        if seq > standing.seq:
            standing.seq = seq
            standing.state = row["action_state"] or ActionState.RUNNING
            standing.ended_at_ms = row["ended_at_ms"] if row["action_state"] else None
            standing.code, standing.message = row["code"], row["message"]
            standing.result_seq = row["result_seq"] if row["action_state"] else None
    for row in _rows(database, _ACTIONS, {"run": run}):
        standing = found.setdefault(row["action"], Standing())
        if row["seq"] > standing.seq:
            standing.seq, standing.state = row["seq"], row["state"]
            standing.code, standing.message = row["code"], row["message"]
            waits = row["state"] in (ActionState.WAITING, ActionState.UNKNOWN)
            standing.ended_at_ms = None if waits else row["at_ms"]
            standing.result_seq = None
            standing.reasons = msgpack.unpackb(row["reasons"]) if row["reasons"] else None
    return found


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
        "waits_for": [] if ended else _waits_for(database, row["run"], known, alias),
        "unconfirmed": bool(row["unconfirmed"]),
        "by": row["asked_by"],
        "submitted_at_ms": row["submitted_at_ms"],
        "ended_at_ms": row["ended_at_ms"],
        "counts": {str(state): count for state, count in counts.items()},
        "actions": row["actions"],
    }


def _waits_for(
    database: sqlite3.Connection, run: str, known: Mapping[str, Standing], alias: Alias
) -> list[str]:
    found = [
        f"approval {approval['approval']} of {approval['action']}"
        for approval in of_run(database, run)
        if approval["state"] == "pending"
    ]
    waiting = [(name, s) for name, s in known.items() if s.state == ActionState.WAITING]
    for name, standing in waiting[:_NAMED]:
        reasons = waiting_text(standing.reasons or {}, alias)
        found.append(f"a node for {name}" + (f" ({reasons})" if reasons else ""))
    if len(waiting) > _NAMED:
        found.append(f"nodes for {len(waiting) - _NAMED} more actions")
    return found


def _declared(action: Action, effects: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    target = "any node"
    for way in ("node", "group", "selector"):
        wanted = getattr(action, f"target_{way}")
        if wanted is not None:
            target = f"{way} {wanted}"
    effect = str(action.effect) if action.effect else effects.get((action.module, action.action))
    return {
        "id": action.id,
        "label": action.label,
        "module": action.module,
        "action": action.action,
        "effect": effect,
        "target": target,
    }


def _standing(database: sqlite3.Connection, standing: Standing, alias: Alias) -> dict[str, Any]:
    last = standing.dispatches[-1] if standing.dispatches else None
    node = split_dispatch(last["dispatch"])[2] if last else None
    if standing.state == ActionState.WAITING:
        node = None
    planned_at_ms = standing.dispatches[0]["planned_at_ms"] if last else None
    error = {"code": standing.code, "message": standing.message} if standing.code else None
    found: dict[str, Any] = {
        "state": str(standing.state),
        "node": node,
        "node_alias": alias(node) if node else None,
        "attempt": len(standing.dispatches),
        "error": error,
        "result": _result(database, standing.result_seq),
        "planned_at_ms": planned_at_ms,
        "ended_at_ms": standing.ended_at_ms,
        "duration_ms": last["duration_ms"] if last else None,
        "reasons": standing.reasons,
        "dispatches": [_dispatch(row) for row in standing.dispatches],
    }
    if last:
        found["effect"] = last["effect"]
    return found


def _dispatch(row: Row) -> dict[str, Any]:
    _, _, node, attempt = split_dispatch(row["dispatch"])
    return {
        "dispatch": row["dispatch"],
        "node": node,
        "attempt": attempt,
        "state": row["state"],
        "planned_at_ms": row["planned_at_ms"],
        "ended_at_ms": row["ended_at_ms"],
        "error": {"code": row["code"], "message": row["message"]} if row["code"] else None,
    }


def _result(database: sqlite3.Connection, seq: int | None) -> Any:
    if seq is None:
        return None
    sql = "SELECT run, at_ms, cause, kind, version, body FROM changes WHERE seq = ?"
    row = database.execute(sql, (seq,)).fetchone()
    if len(row[5]) > limits.API_RESULT_BYTES:
        return {"truncated": True}
    change = decode(*row)
    return change.result if isinstance(change, c.ResultTaken) else None


def _rows(
    database: sqlite3.Connection, sql: str, params: Iterable[Any] | Mapping[str, Any]
) -> list[Row]:
    cursor = database.execute(sql, params)  # type: ignore[arg-type]
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
