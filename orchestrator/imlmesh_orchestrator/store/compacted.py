"""The changes of runs, wherever they lie: in rows of their own, or packed since their run ended long ago.

The one rule: whoever asks for changes of runs asks here, and is told the same before and after.
Deliberately absent: when a run is packed; `compaction` knows.
"""

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import lru_cache, partial
from typing import Any

import msgpack

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.codec import FORMS, VERSION
from imlmesh_orchestrator.store.recent import ChangeRow
from imlmesh_protocol.errors import StoreError

COLUMNS = "seq, run, at_ms, cause, kind, version, body"
_BODY = "SELECT run, body FROM compacted WHERE first_seq = ?"
_AROUND = "SELECT max(first_seq) FROM compacted WHERE run = ? AND first_seq <= ?"
_SPAN = """SELECT min(first), max(last) FROM (
    SELECT min(seq) AS first, max(seq) AS last FROM changes WHERE run = :run
    UNION ALL SELECT min(first_seq), max(last_seq) FROM compacted WHERE run = :run)"""
_OPEN = 8  # packs that a view holds open: ~2 MB


def _places(made_by: type[c.Change], *names: str) -> list[int]:
    """Where in the body of such a change these fields stand."""
    own = [f.name for f in fields(made_by) if f.name not in ("at_ms", "cause", "run")]
    return [own.index(name) for name in names]


_PLANNED, _CREATED = FORMS[c.DispatchPlanned].kind, FORMS[c.RunCreated].kind
_TRAVELLED = _places(c.DispatchPlanned, "bin", "hash")
_PLAN, _DIGEST = _places(c.RunCreated, "plan", "digest")


def changes_after(
    database: sqlite3.Connection, run: str | None, after: int, most: int
) -> list[ChangeRow]:
    """The next changes beyond the seq `after`, of one run or of everything, in order. Of an attempt
    that was packed `bin` and `hash` are empty."""
    which = "run = ?" if run is not None else "? IS NULL"
    sql = f"SELECT {COLUMNS} FROM changes WHERE {which} AND seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
    found = database.execute(sql, (run, after, most)).fetchall()
    for first in _packs_after(database, run, after, most):
        if len(found) >= most:
            found.sort()
            del found[most:]
            if first > found[-1][0]:
                break
        found += [row for row in _pack_at(database, first) if row[0] > after]
    found.sort()
    return found[:most]


def _packs_after(
    database: sqlite3.Connection, run: str | None, after: int, most: int
) -> Iterator[int]:
    """Where the packs begin that may hold one of the next changes: those that go on beyond `after`, then
    as many as may be needed of those that begin there. In order."""
    # said, for without it SQLite would read all packs to find the few that go on
    which, index = ("run = ?", "compacted_of_run") if run else ("? IS NULL", "compacted_to")
    going = f"""SELECT first_seq FROM compacted INDEXED BY {index}
        WHERE {which} AND last_seq > ? AND first_seq <= ? ORDER BY first_seq"""  # noqa: S608
    yield from (first for (first,) in database.execute(going, (run, after, after)).fetchall())
    beginning = f"""SELECT first_seq FROM compacted WHERE {which} AND first_seq > ?
        ORDER BY first_seq LIMIT ?"""  # noqa: S608
    yield from (first for (first,) in database.execute(beginning, (run, after, most)).fetchall())


def span(database: sqlite3.Connection, run: str) -> tuple[int, int]:
    """The seqs of the first and the last change of a run."""
    first, last = database.execute(_SPAN, {"run": run}).fetchone()
    return int(first), int(last)


class ChangesOf:
    """Single changes of one run, by seq; packs that were opened stay open for the next question."""

    def __init__(self, database: sqlite3.Connection, run: str) -> None:
        self._database = database
        self._run = run
        self._rows = lru_cache(_OPEN)(partial(_pack_at, database))

    def at(self, seq: int) -> ChangeRow:
        """The change of this seq, which is one of the run's."""
        sql = f"SELECT {COLUMNS} FROM changes WHERE seq = ?"  # noqa: S608
        row: ChangeRow | None = self._database.execute(sql, (seq,)).fetchone()
        if row is None:
            (first,) = self._database.execute(_AROUND, (self._run, seq)).fetchone()
            row = next(row for row in self._rows(first) if row[0] == seq)
        return row


def pack(database: sqlite3.Connection, rows: Sequence[ChangeRow]) -> bytes:
    """What `compacted` holds of these changes of one run: all but what only travelling needed, and
    plans that `plans` holds."""
    kept = [
        (seq, at_ms, cause, kind, version, _shortened(database, kind, version, body))
        for seq, _, at_ms, cause, kind, version, body in rows
    ]
    return zlib.compress(msgpack.packb(kept))


def _pack_at(database: sqlite3.Connection, first: int) -> list[ChangeRow]:
    """The changes of the pack that begins with this one."""
    run, body = database.execute(_BODY, (first,)).fetchone()
    try:
        return [
            (seq, run, at_ms, cause, kind, version, _whole(database, kind, own))
            for seq, at_ms, cause, kind, version, own in msgpack.unpackb(zlib.decompress(body))
        ]
    except (ValueError, zlib.error, msgpack.UnpackException) as exc:
        raise StoreError("store.corrupt", f"changes of {run} from {first}: {exc}") from exc


def _shortened(database: sqlite3.Connection, kind: str, version: int, body: bytes) -> bytes:
    if version != VERSION or kind not in (_PLANNED, _CREATED):
        return body
    values = msgpack.unpackb(body)
    if kind == _PLANNED:
        for place in _TRAVELLED:
            values[place] = b""
    elif _document(database, values) == values[_PLAN]:
        values[_PLAN] = ""
    return bytes(msgpack.packb(values))


def _whole(database: sqlite3.Connection, kind: str, body: bytes) -> bytes:
    if kind != _CREATED:
        return body
    values = msgpack.unpackb(body)
    values[_PLAN] = values[_PLAN] or _document(database, values)
    return bytes(msgpack.packb(values))


def _document(database: sqlite3.Connection, values: Sequence[Any]) -> str | None:
    """The text of the plan that a RunCreated names."""
    sql = "SELECT document FROM plans WHERE digest = ?"
    found = database.execute(sql, (values[_DIGEST],)).fetchone()
    return found and str(found[0])
