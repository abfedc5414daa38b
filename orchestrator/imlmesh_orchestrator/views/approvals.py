"""Questions to people, as people see them.

The one rule: a question is shown with everything that an answer needs: the options, what silence
chooses, and when. Deliberately absent: answering.
"""

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from imlmesh_orchestrator.core.asking import GATE
from imlmesh_orchestrator.core.placement import candidates, pool_key, why_not
from imlmesh_orchestrator.core.rendering import params_of
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.views.units import split_unit
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.ids import split_dispatch

_COLUMNS = """approval, kind, run, action, dispatch, message, options, on_expiry, expires_at_ms,
    state, option, answered_by, asked_at_ms, risk, digest"""


def of_run(database: sqlite3.Connection, run: str) -> list[dict[str, Any]]:
    """All of one run, in order."""
    sql = f"SELECT {_COLUMNS} FROM approvals WHERE run = ? ORDER BY counter"  # noqa: S608
    return [_approval(row) for row in database.execute(sql, (run,))]


def pending_of_run(database: sqlite3.Connection, run: str) -> dict[str, str]:
    """The open question of each unit of work of one run, by key."""
    sql = "SELECT action, approval FROM approvals WHERE run = ? AND state = 'pending'"
    return dict(database.execute(sql, (run,)))


def list_approvals(database: sqlite3.Connection, state: str) -> tuple[list[dict[str, Any]], int]:
    """Those of one state, the most urgent first, or with "" all, what waits and then the latest
    first; and how many more there are."""
    chosen = "FROM approvals WHERE ? IN ('', state)"
    (count,) = database.execute(f"SELECT count(*) {chosen}", (state,)).fetchone()
    sql = f"""SELECT {_COLUMNS} {chosen}
        ORDER BY state = 'pending' DESC, CASE state WHEN 'pending' THEN expires_at_ms END,
            counter DESC LIMIT ?"""
    found = [_approval(row) for row in database.execute(sql, (state, limits.APPROVAL_LIST))]
    return found, count - len(found)


def show_approval(database: sqlite3.Connection, name: str) -> dict[str, Any]:
    """One; `approval.not_found`."""
    sql = f"SELECT {_COLUMNS} FROM approvals WHERE approval = ?"  # noqa: S608
    row = database.execute(sql, (name,)).fetchone()
    if row is None:
        raise InputError("approval.not_found", f"no approval {name[:80]!r}")
    return {"schema": "imlmesh.approval/1", **_approval(row)}


def bound_to(state: State, env: Mapping[str, str], name: str) -> dict[str, Any]:
    """What an open gate is asked about: the params, and the nodes that may run it; else nothing.

    Looks at the core's state, as it is now.
    """
    approval = state.approvals.get(name)
    if approval is None or approval.kind != GATE:
        return {"params": None, "nodes": None}
    run = state.runs[approval.run]
    record = run.units[approval.action]
    if record.members is not None:
        nodes = [member.node for member in record.members.values()]
    else:
        key = pool_key(run, record)
        module, action, version = key[:3]
        found = candidates(state, key)
        nodes = [n.node for n in found if why_not(n, module, action, version) is None]
    try:
        params = params_of(state, env, run, record, "{{node.id}}")
    except InputError:
        params = None
    return {"params": params, "nodes": sorted(state.nodes[node].alias for node in nodes)}


def _approval(row: tuple[Any, ...]) -> dict[str, Any]:
    dispatch = row[4]
    action, _, node = split_unit(row[3])
    return {
        "approval": row[0],
        "kind": row[1],
        "run": row[2],
        "unit": row[3],
        "action": action,
        "node": split_dispatch(dispatch)[2] if dispatch else node,
        "message": row[5],
        "options": json.loads(row[6]),
        "on_expiry": row[7],
        "expires_at_ms": row[8],
        "state": row[9],
        "option": row[10],
        "by": row[11],
        "asked_at_ms": row[12],
        "risk": row[13] or None,
        "digest": row[14] or None,
    }
