"""Questions to people, as people see them.

The one rule: a question is shown with everything that an answer needs: the options, what silence
chooses, and when. Deliberately absent: answering.
"""

import json
import sqlite3
from typing import Any

from imlmesh_protocol.errors import InputError
from imlmesh_protocol.ids import split_dispatch

_COLUMNS = """approval, kind, run, action, dispatch, message, options, on_expiry, expires_at_ms,
    state, option, answered_by, asked_at_ms"""
_LISTED = 500


def of_run(database: sqlite3.Connection, run: str) -> list[dict[str, Any]]:
    """All of one run, in order."""
    sql = f"SELECT {_COLUMNS} FROM approvals WHERE run = ? ORDER BY counter"  # noqa: S608
    return [_approval(row) for row in database.execute(sql, (run,))]


def list_approvals(database: sqlite3.Connection, state: str) -> list[dict[str, Any]]:
    """The latest first; `state` "" means any."""
    sql = f"""SELECT {_COLUMNS} FROM approvals WHERE ? IN ('', state)
        ORDER BY counter DESC LIMIT ?"""  # noqa: S608
    return [_approval(row) for row in database.execute(sql, (state, _LISTED))]


def show_approval(database: sqlite3.Connection, name: str) -> dict[str, Any]:
    """One; `approval.not_found`."""
    sql = f"SELECT {_COLUMNS} FROM approvals WHERE approval = ?"  # noqa: S608
    row = database.execute(sql, (name,)).fetchone()
    if row is None:
        raise InputError("approval.not_found", f"no approval {name[:80]!r}")
    return {"schema": "imlmesh.approval/1", **_approval(row)}


def _approval(row: tuple[Any, ...]) -> dict[str, Any]:
    dispatch = row[4]
    return {
        "approval": row[0],
        "kind": row[1],
        "run": row[2],
        "action": row[3],
        "node": split_dispatch(dispatch)[2] if dispatch else None,
        "message": row[5],
        "options": json.loads(row[6]),
        "on_expiry": row[7],
        "expires_at_ms": row[8],
        "state": row[9],
        "option": row[10],
        "by": row[11],
        "asked_at_ms": row[12],
    }
