"""The node's durable record of dispatches and unsettled results: one file, journal.db.

The one rule: the changes of one engine step are one transaction; `done` is called after it.
A dispatch has one row, from taken to settled; several changes of it in one step are one write.
Rows are found by number, which the open journal knows for each dispatch that it holds: an index
of names would be another page in every commit.
Deliberately absent: params; after a restart nothing is run again, so nobody would read them.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from imlmesh_node.core.changes import (
    Change,
    DispatchSettled,
    DispatchTaken,
    FloorRaised,
    IntentRecorded,
    QuarantineSet,
    ResultRecord,
    ResultRecorded,
)
from imlmesh_node.core.state import JournalRecord
from imlmesh_node.witness import Kept
from imlmesh_protocol.errors import Fault, MeshError
from imlmesh_protocol.limits import SEALS_KEPT
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.codec import pack
from imlmesh_runtime.sqlite import Database, Store, run

MIGRATIONS = (
    """
    CREATE TABLE dispatches (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        hash BLOB NOT NULL,
        effect TEXT NOT NULL,
        taken_ms INTEGER NOT NULL,
        started INTEGER NOT NULL,
        result BLOB
    );
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('boot', 0), ('epoch', 0), ('seq', 0);
    """,
    """
    CREATE TABLE seals (number INTEGER PRIMARY KEY, what TEXT NOT NULL, seal BLOB NOT NULL);
    """,
    "INSERT INTO meta VALUES ('quarantined', 0)",
)

_OLD_SEALS = """DELETE FROM seals WHERE what <> 'last' AND number NOT IN
    (SELECT number FROM seals WHERE what <> 'last' ORDER BY number DESC LIMIT ?)"""

_TAKE = """INSERT INTO dispatches (number, id, hash, effect, taken_ms, started, result)
    VALUES (?,?,?,?,?,?,?)"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an earlier agent left; `floor` is (epoch, seq), `boot` this start's number."""

    records: tuple[JournalRecord, ...]
    floor: tuple[int, int]
    boot: int
    quarantined: bool
    #: the last seal of the ledger that this node witnessed
    seal: bytes | None = None


class Journal:
    """Reads once, at start; afterwards only writes. `store` is a Database or a twin of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        #: the row of every dispatch that is not settled
        self._numbers: dict[str, int] = {}
        self._last_number = 0

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """The journal of a file; StoreError when it cannot be used."""
        return cls(Database(path, MIGRATIONS, inline=True))

    async def load(self, wall_ms: int) -> Loaded:
        """Everything, and a new boot number, higher than all before and than `wall_ms` - 1."""
        loaded: Loaded
        loaded, numbers = await run(self._store, lambda database: _load(database, wall_ms))
        self._numbers = {r.dispatch: n for r, n in zip(loaded.records, numbers, strict=True)}
        self._last_number = max(numbers, default=0)
        return loaded

    def commit(self, changes: list[Change], done: Callable[[MeshError | None], None]) -> None:
        """Store the changes of one step, then call `done`."""
        rows = _Rows(self._numbers, self._last_number)
        for change in changes:
            _GATHER[type(change)](rows, change)
        self._last_number = rows.last_number
        self._store.submit(
            lambda database: _write(database, rows), lambda _result, error: done(error)
        )

    def keep_seals(
        self, seals: list[tuple[Kept, bytes]], done: Callable[[MeshError | None], None]
    ) -> None:
        """Store seals of the ledger, then call `done`; a `last` one takes the place of the one before."""
        self._store.submit(
            lambda database: _write_seals(database, seals), lambda _result, error: done(error)
        )

    async def close(self) -> None:
        await self._store.close()


def _load(database: sqlite3.Connection, wall_ms: int) -> tuple[Loaded, list[int]]:
    """What is there, and the numbers of its rows."""
    meta = dict(database.execute("SELECT name, value FROM meta").fetchall())
    boot = max(meta["boot"] + 1, wall_ms)
    database.execute("UPDATE meta SET value = ? WHERE name = 'boot'", (boot,))
    rows = database.execute(
        "SELECT number, id, hash, effect, started, result FROM dispatches ORDER BY number"
    ).fetchall()
    records = tuple(
        JournalRecord(id, hash, Effect(effect), bool(started), _decode(id, hash, result))
        for _, id, hash, effect, started, result in rows
    )
    seal = database.execute("SELECT seal FROM seals WHERE what = 'last'").fetchone()
    floor, quarantined = (meta["epoch"], meta["seq"]), bool(meta["quarantined"])
    loaded = Loaded(records, floor, boot, quarantined, seal and seal[0])
    return loaded, [row[0] for row in rows]


def _write_seals(database: sqlite3.Connection, seals: list[tuple[Kept, bytes]]) -> None:
    for what, seal in seals:
        if what is Kept.LAST:
            database.execute("DELETE FROM seals WHERE what = 'last'")
        database.execute("INSERT INTO seals (what, seal) VALUES (?,?)", (str(what), seal))
    database.execute(_OLD_SEALS, (SEALS_KEPT,))


class _Rows:
    """The writes of one step, gathered so that each kind is one statement for all rows."""

    def __init__(self, numbers: dict[str, int], last_number: int) -> None:
        self._numbers = numbers
        self.last_number = last_number
        self.taken: dict[str, list[Any]] = {}
        self.started: list[tuple[int]] = []
        self.results: list[tuple[bytes, int]] = []
        self.settled: list[tuple[int]] = []
        self.floor: FloorRaised | None = None
        self.quarantine: QuarantineSet | None = None

    def take(self, change: DispatchTaken) -> None:
        id = change.dispatch
        self.last_number = self._numbers[id] = self.last_number + 1
        effect = str(change.effect)
        self.taken[id] = [self.last_number, id, change.hash, effect, change.at_ms, 0, None]

    def start(self, change: IntentRecorded) -> None:
        row = self.taken.get(change.dispatch)
        if row is None:
            self.started.append((self._numbers[change.dispatch],))
        else:
            row[5] = 1

    def record(self, change: ResultRecorded) -> None:
        result = change.result
        row = self.taken.get(result.dispatch)
        if row is None:
            self.results.append((_encode(result), self._numbers[result.dispatch]))
        else:
            row[6] = _encode(result)

    def settle(self, change: DispatchSettled) -> None:
        self.settled.append((self._numbers.pop(change.dispatch),))

    def raise_floor(self, change: FloorRaised) -> None:
        self.floor = change

    def quarantined(self, change: QuarantineSet) -> None:
        self.quarantine = change


_GATHER: dict[type, Callable[[_Rows, Any], None]] = {
    DispatchTaken: _Rows.take,
    IntentRecorded: _Rows.start,
    ResultRecorded: _Rows.record,
    DispatchSettled: _Rows.settle,
    FloorRaised: _Rows.raise_floor,
    QuarantineSet: _Rows.quarantined,
}


def _write(database: sqlite3.Connection, rows: _Rows) -> None:
    for statement, values in (
        ("DELETE FROM dispatches WHERE number = ?", rows.settled),
        (_TAKE, rows.taken.values()),
        ("UPDATE dispatches SET started = 1 WHERE number = ?", rows.started),
        ("UPDATE dispatches SET result = ? WHERE number = ?", rows.results),
    ):
        if values:
            database.executemany(statement, values)
    if rows.floor is not None:
        place = ((rows.floor.epoch, "epoch"), (rows.floor.seq, "seq"))
        database.executemany("UPDATE meta SET value = ? WHERE name = ?", place)
    if rows.quarantine is not None:
        held = int(rows.quarantine.quarantined)
        database.execute("UPDATE meta SET value = ? WHERE name = 'quarantined'", (held,))


def _encode(result: ResultRecord) -> bytes:
    fault = result.error and [result.error.code, result.error.message]
    return pack([result.outcome, result.result, fault, result.duration_ms])


def _decode(id: str, hash: bytes, packed: bytes | None) -> ResultRecord | None:
    if packed is None:
        return None
    outcome, value, fault, duration_ms = msgpack.unpackb(packed)
    return ResultRecord(id, hash, outcome, value, fault and Fault(*fault), duration_ms)
