"""Permits in the journal: their table, the rows of changes about them, and what is read at a start.

The one rule: as of `journal`, whose transaction these rows are part of.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

from imlmesh_node.core import changes as c
from imlmesh_node.core.state import HeldPermitRecord
from imlmesh_protocol.errors import Fault, ProtocolError
from imlmesh_protocol.permits import Permit
from imlmesh_protocol.wire.permits import own_permit, unreadable_permit

Row = tuple[str, tuple[Any, ...]]

TABLE = """
    CREATE TABLE permits (
        id TEXT PRIMARY KEY,
        document BLOB NOT NULL,
        used INTEGER NOT NULL DEFAULT 0,
        begun_ms INTEGER NOT NULL DEFAULT 0,
        open INTEGER NOT NULL DEFAULT 0,
        spent INTEGER NOT NULL DEFAULT 0,
        dropped INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    INSERT INTO meta VALUES ('mesh_ms', 0);
    """
_ALL = "SELECT id, document, used, begun_ms, open, spent, dropped FROM permits ORDER BY id"
_TAKEN = """INSERT INTO permits (id, document) VALUES (?,?)
    ON CONFLICT (id) DO UPDATE SET document = excluded.document, dropped = 0"""
_BEGUN = "UPDATE permits SET used = ?, begun_ms = ?, open = 1, spent = 1 WHERE id = ?"
_NOTED = "UPDATE permits SET begun_ms = min(begun_ms, ?), spent = spent AND ?"
_LATER = "UPDATE meta SET value = max(value, ?) WHERE name = 'mesh_ms'"
_MESH_MS = "UPDATE meta SET value = ? WHERE name = 'mesh_ms'"


def load(database: sqlite3.Connection) -> dict[str, HeldPermitRecord]:
    """All permits by id; their signatures are not looked at."""
    found = {}
    for id, document, used, begun_ms, is_open, spent, dropped in database.execute(_ALL):
        permit, refusal = _read(id, document)
        flags = (bool(is_open), bool(spent), bool(dropped))
        found[id] = HeldPermitRecord(permit, document, used, begun_ms, *flags, refusal)
    return found


def _read(id: str, document: bytes) -> tuple[Permit, Fault | None]:
    """One that cannot be read, as after a change of version, runs nothing and keeps its count: with an
    error here the node would not start, and nobody would hear of its results."""
    try:
        return own_permit(document), None
    except ProtocolError as exc:
        return unreadable_permit(id, document), Fault("permit.untrusted", f"{id}: {exc.message}")


def _taken(change: c.PermitTaken) -> list[Row]:
    return [(_TAKEN, (change.permit.id, change.document))]


def _dropped(change: c.PermitDropped) -> list[Row]:
    return [("UPDATE permits SET dropped = 1 WHERE id = ?", (change.permit,))]


def _forgotten(change: c.PermitForgotten) -> list[Row]:
    return [("DELETE FROM permits WHERE id = ?", (change.permit,))]


def _begun(change: c.PermitRunBegun) -> list[Row]:
    row = (change.number, change.at_ms, change.permit)
    return [(_BEGUN, row), (_LATER, (change.at_ms,))]


def _ended(change: c.PermitRunEnded) -> list[Row]:
    return [("UPDATE permits SET open = 0 WHERE id = ?", (change.permit,))]


def _noted(change: c.MeshTimeNoted) -> list[Row]:
    return [(_MESH_MS, (change.at_ms,)), (_NOTED, (change.at_ms, not change.met))]


ROWS: dict[type, Callable[[Any], list[Row]]] = {
    c.PermitTaken: _taken,
    c.PermitDropped: _dropped,
    c.PermitForgotten: _forgotten,
    c.PermitRunBegun: _begun,
    c.PermitRunEnded: _ended,
    c.MeshTimeNoted: _noted,
}
