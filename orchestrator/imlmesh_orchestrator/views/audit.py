"""The ledger as people read it: which entries, and one with all that it says.

The one rule: what is shown is read from the bytes that are hashed; the columns only find them.
"""

import sqlite3
from dataclasses import dataclass
from typing import Any

import msgpack

from imlmesh_orchestrator.store.ledger import find_hash
from imlmesh_orchestrator.store.ledgered import readable, told_of
from imlmesh_protocol.errors import InputError

_LIST = """SELECT e.n, e.entry, p.payload FROM entries e LEFT JOIN payloads p ON p.n = e.n
    WHERE e.at_ms >= ?1 AND (?2 = '' OR e.kind = ?2) AND (?3 = '' OR e.actor = ?3)
    AND (?4 = '' OR e.subject = ?4 OR e.subject LIKE ?5 ESCAPE '~') ORDER BY e.n DESC LIMIT ?6"""
_SHOW = """SELECT e.n, e.entry, p.payload, p.salt FROM entries e LEFT JOIN payloads p ON p.n = e.n
    WHERE e.n = ?"""

#: entries shown when nobody says how many
LISTED = 50


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries; empty text means any. `subject` may be the beginning of one."""

    since_ms: int = 0
    kind: str = ""
    actor: str = ""
    subject: str = ""
    limit: int = LISTED


def list_entries(database: sqlite3.Connection, wanted: Wanted) -> list[dict[str, Any]]:
    """The newest entries that fit, the oldest of them first."""
    begins = "".join(f"~{sign}" if sign in "~%_" else sign for sign in wanted.subject) + "%"
    question = (wanted.since_ms, wanted.kind, wanted.actor, wanted.subject, begins, wanted.limit)
    return [_entry(*row) for row in reversed(database.execute(_LIST, question).fetchall())]


def show_entry(database: sqlite3.Connection, n: int) -> dict[str, Any]:
    """One entry with its hashes; `ledger.not_found`."""
    row = database.execute(_SHOW, (n,)).fetchone()
    if row is None:
        raise InputError("ledger.not_found", f"the ledger has no entry {n}")
    entry = msgpack.unpackb(row[1])
    sealed = database.execute("SELECT min(size) FROM seals WHERE size >= ?", (n,)).fetchone()[0]
    hashes = {
        "prev": entry["prev"].hex(),
        "commitment": entry["payload"].hex(),
        "leaf": find_hash(database, 0, n - 1).hex(),
    }
    return {"schema": "imlmesh.audit-entry/1", **_entry(*row[:3]), "sealed_by": sealed, **hashes}


def _entry(n: int, data: bytes, payload: bytes | None) -> dict[str, Any]:
    entry = msgpack.unpackb(data)
    told = {name: entry[name] for name in ("at_ms", "actor", "kind", "subject")}
    if payload is None:
        return {"n": n, **told, "cause": None, "told": None, "erased": True}
    cause = msgpack.unpackb(payload)["cause"]
    return {"n": n, **told, "cause": cause, "told": readable(told_of(payload)), "erased": False}
