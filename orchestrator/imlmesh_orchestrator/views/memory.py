"""The memory of sessions as people see it.

The one rule: a value is read where it was written, in the change; the table only points there.
"""

import sqlite3
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.codec import decode
from imlmesh_protocol.errors import InputError

_COLUMNS = "session, key, size, at_ms, written_by"


def list_memory(database: sqlite3.Connection, session: str | None) -> list[dict[str, Any]]:
    """The keys of one session, or of all, without their values; the oldest-written first."""
    sql = f"SELECT {_COLUMNS} FROM memory WHERE ?1 IS NULL OR session = ?1 ORDER BY seq"  # noqa: S608
    return [_entry(row) for row in database.execute(sql, (session,))]


def show_memory(database: sqlite3.Connection, session: str, key: str) -> dict[str, Any]:
    """One key with its value; `memory.not_found`."""
    sql = "SELECT seq FROM memory WHERE session = ? AND key = ?"
    found = database.execute(sql, (session, key)).fetchone()
    if found is None:
        raise InputError("memory.not_found", f"session {session[:80]} has no key {key[:80]!r}")
    row = database.execute(
        "SELECT run, at_ms, cause, kind, version, body FROM changes WHERE seq = ?", found
    ).fetchone()
    change = decode(*row)
    assert isinstance(change, c.MemoryWritten)  # noqa: S101 - the projection wrote its seq
    head = (change.session, change.key, change.size, change.at_ms, change.by)
    return {"schema": "imlmesh.memory/1", **_entry(head), "value": change.value}


def _entry(row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(("session", "key", "size", "at_ms", "by"), row, strict=True))
