"""The node's durable record of dispatches and unsettled results: one file, journal.db.

The one rule: the changes of one engine step are one transaction; `done` is called after it.
A dispatch has one row, from taken to settled; several changes of it in one step are one write.
Rows are found by number, which the open journal knows for each dispatch that it holds: an index
of names would be another page in every commit.
Deliberately absent: params; after a restart nothing is run again, so nobody would read them.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from imlmesh_node import permit_rows
from imlmesh_node.core.changes import (
    Bulk,
    Change,
    DispatchSettled,
    DispatchTaken,
    FloorRaised,
    IntentRecorded,
    LossTold,
    QuarantineSet,
    ResultRecord,
    ResultRecorded,
)
from imlmesh_node.core.state import HeldPermitRecord, JournalRecord
from imlmesh_node.witness import Kept
from imlmesh_protocol.errors import Fault, MeshError, StoreError
from imlmesh_protocol.limits import (
    JOURNAL_RETRY_MS,
    JOURNAL_TRIES,
    RESULT_CHUNK_BYTES,
    RESULT_CHUNKS,
    SEALS_KEPT,
)
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.codec import pack
from imlmesh_protocol.wire.messages import OUTCOMES
from imlmesh_runtime.rows import Many, write_rows
from imlmesh_runtime.sqlite import Database, Store, Work, run

log = logging.getLogger(__name__)

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
    # place is the number of the dispatch and the index of the chunk, see `_place`
    """
    CREATE TABLE chunks (place INTEGER PRIMARY KEY, data BLOB NOT NULL);
    INSERT INTO meta VALUES ('since', 0), ('lost', 0), ('opened', 0), ('closed', 0);
    """,
    permit_rows.TABLE,
)
_CLOSED = """UPDATE meta SET value = (SELECT value FROM meta WHERE name = 'opened')
    WHERE name = 'closed'"""

_SET = "UPDATE meta SET value = ? WHERE name = ?"
_OLD_SEALS = """DELETE FROM seals WHERE what <> 'last' AND number NOT IN
    (SELECT number FROM seals WHERE what <> 'last' ORDER BY number DESC LIMIT ?)"""

_SETTLE = Many(
    "DELETE FROM dispatches WHERE number IN (VALUES",
    ")",
    one="DELETE FROM dispatches WHERE number = ?",
)
_TAKE = Many("INSERT INTO dispatches (number, id, hash, effect, taken_ms, started, result) VALUES")
_START = Many(
    "UPDATE dispatches SET started = 1 WHERE number IN (VALUES",
    ")",
    one="UPDATE dispatches SET started = 1 WHERE number = ?",
)
_RESULT = Many(
    "WITH ended (told, place) AS (VALUES",
    ") UPDATE dispatches SET result = ended.told FROM ended WHERE number = ended.place",
    one="UPDATE dispatches SET result = ? WHERE number = ?",
)
_CHUNK = Many("INSERT INTO chunks (place, data) VALUES")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an earlier agent left; `floor` is (epoch, seq), `boot` this start's number.

    `since` is the boot with which this journal began, `lost` whether it began in place of another
    and nobody has heard of that; `clean` whether the agent before closed it.
    """

    records: tuple[JournalRecord, ...]
    floor: tuple[int, int]
    boot: int
    quarantined: bool
    #: the last seal of the ledger that this node witnessed
    seal: bytes | None = None
    since: int = 1
    lost: bool = False
    clean: bool = True
    permits: Mapping[str, HeldPermitRecord] = field(default_factory=dict)
    #: the latest mesh time that was written down
    mesh_ms: int = 0
    #: the boot that wrote this journal last; 0 without
    last: int = 0


class Journal:
    """Reads once, at start; afterwards only writes. `store` is a Database or a twin of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        #: the row of every dispatch that is not settled
        self._numbers: dict[str, int] = {}
        self._last_number = 0
        #: rows with a result in chunks
        self._bulky: set[int] = set()

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """The journal of a file; StoreError when it cannot be used.

        A disk that is full is no reason to refuse: what is in the file is to be reported.
        """
        return cls(Database(path, MIGRATIONS, inline=True))

    async def load(self, wall_ms: int, *, lost: bool = False) -> Loaded:
        """Everything, and a new boot number, higher than all before and than `wall_ms` - 1.

        `lost`: this one begins in place of another.
        """
        loaded: Loaded
        loaded, numbers = await run(self._store, lambda database: _load(database, wall_ms, lost))
        # so that the file itself tells whether it was closed, even if its log gets lost
        self._store.checkpoint()
        self._numbers = {r.dispatch: n for r, n in zip(loaded.records, numbers, strict=True)}
        self._last_number = max(numbers, default=0)
        self._bulky = {
            self._numbers[r.dispatch] for r in loaded.records if r.result and r.result.bulk
        }
        return loaded

    def commit(self, changes: list[Change], done: Callable[[MeshError | None], None]) -> None:
        """Store the changes of one step, then call `done`."""
        rows = _Rows(self._numbers, self._last_number, self._bulky)
        for change in changes:
            _GATHER[type(change)](rows, change)
        self._last_number = rows.last_number
        self._submit(lambda database: _write(database, rows), done, JOURNAL_TRIES)

    def _submit(self, work: Work, done: Callable[[MeshError | None], None], tries: int) -> None:
        """A full disk may have room in a moment; until then nothing that rests on it leaves."""

        def ended(_result: Any, error: MeshError | None) -> None:
            if error is not None and error.code == "store.full" and tries > 1:
                again = asyncio.get_running_loop().call_later
                again(JOURNAL_RETRY_MS / 1_000, self._submit, work, done, tries - 1)
            else:
                done(error)

        self._store.submit(work, ended)

    def raise_boot(self, boot: int, done: Callable[[MeshError | None], None]) -> None:
        """Store that this start has that number and that the journal began with it, then call `done`."""

        def write(database: sqlite3.Connection) -> None:
            database.executemany(_SET, [(boot, "boot"), (boot, "since")])

        self._submit(write, done, JOURNAL_TRIES)

    def read_chunk(self, id: str, index: int, done: Callable[[bytes], None]) -> None:
        """Call `done` with a chunk of a result that is not settled; never, once it is or cannot be read."""
        number = self._numbers.get(id)
        if number is None:
            return

        def read(database: sqlite3.Connection) -> bytes | None:
            query = "SELECT data FROM chunks WHERE place = ?"
            row = database.execute(query, (_place(number, index),)).fetchone()
            return None if row is None else bytes(row[0])

        def answer(data: bytes | None, error: MeshError | None) -> None:
            if data is not None:
                done(data)
            elif error is not None:
                log.error("a chunk of %s cannot be read: %s", id, error)

        self._store.submit(read, answer)

    def keep_seals(
        self, seals: list[tuple[Kept, bytes]], done: Callable[[MeshError | None], None]
    ) -> None:
        """Store seals of the ledger, then call `done`; a `last` one takes the place of the one before."""
        self._store.submit(
            lambda database: _write_seals(database, seals), lambda _result, error: done(error)
        )

    async def close(self) -> None:
        """Without this a next agent that finds no write-ahead log knows that commits are missing."""
        with contextlib.suppress(StoreError):
            await run(self._store, lambda database: database.execute(_CLOSED).rowcount)
        await self._store.close()


def _load(database: sqlite3.Connection, wall_ms: int, lost: bool) -> tuple[Loaded, list[int]]:
    """What is there, and the numbers of its rows; SQLite itself does not see when a disk changed a value."""
    try:
        return _load_rows(database, wall_ms, lost)
    except (sqlite3.Error, MeshError):
        raise
    except Exception as exc:
        text = f"it holds what nobody wrote: {type(exc).__name__} {exc}"
        raise StoreError("store.corrupt", text.rstrip()) from exc


def _load_rows(database: sqlite3.Connection, wall_ms: int, lost: bool) -> tuple[Loaded, list[int]]:
    meta = dict(database.execute("SELECT name, value FROM meta").fetchall())
    boot = max(meta["boot"] + 1, wall_ms)
    # one that was made before this was counted began with some boot or other
    since = meta["since"] or (1 if meta["boot"] else boot)
    told = {"boot": boot, "since": since, "lost": int(lost or meta["lost"])}
    told["opened"] = meta["opened"] + 1
    database.executemany(_SET, [(value, name) for name, value in told.items()])
    rows = database.execute(
        "SELECT number, id, hash, effect, started, result FROM dispatches ORDER BY number"
    ).fetchall()
    records = tuple(
        JournalRecord(id, hash, Effect(effect), bool(started), _decode(id, hash, result))
        for _, id, hash, effect, started, result in rows
    )
    clean = meta["closed"] == meta["opened"]
    seal = database.execute("SELECT seal FROM seals WHERE what = 'last'").fetchone()
    floor, quarantined = (meta["epoch"], meta["seq"]), bool(meta["quarantined"])
    lost = bool(told["lost"])
    permits = permit_rows.load(database)
    loaded = Loaded(
        records,
        floor,
        boot,
        quarantined,
        seal and seal[0],
        since,
        lost,
        clean,
        permits,
        meta["mesh_ms"],
        meta["boot"],
    )
    return loaded, [row[0] for row in rows]


def _write_seals(database: sqlite3.Connection, seals: list[tuple[Kept, bytes]]) -> None:
    for what, seal in seals:
        if what is Kept.LAST:
            database.execute("DELETE FROM seals WHERE what = 'last'")
        database.execute("INSERT INTO seals (what, seal) VALUES (?,?)", (str(what), seal))
    database.execute(_OLD_SEALS, (SEALS_KEPT,))


class _Rows:
    """The writes of one step, gathered so that each kind is one statement for all rows."""

    def __init__(self, numbers: dict[str, int], last_number: int, bulky: set[int]) -> None:
        self._numbers = numbers
        self._bulky = bulky
        self.last_number = last_number
        self.taken: dict[str, list[Any]] = {}
        self.started: list[tuple[int]] = []
        self.results: list[tuple[bytes, int]] = []
        self.chunks: list[tuple[int, bytes]] = []
        self.settled: list[tuple[int]] = []
        self.settled_chunks: list[tuple[int, int]] = []
        self.floor: FloorRaised | None = None
        self.loss_told = False
        self.quarantine: QuarantineSet | None = None
        #: what is rare, in its order
        self.others: list[tuple[str, tuple[Any, ...]]] = []

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
        if result.bulk is not None:
            number, packed = self._numbers[result.dispatch], memoryview(change.packed)
            self._bulky.add(number)
            for index in range(result.bulk.chunks):
                start = index * RESULT_CHUNK_BYTES
                data = packed[start : start + RESULT_CHUNK_BYTES]
                self.chunks.append((_place(number, index), bytes(data)))

    def settle(self, change: DispatchSettled) -> None:
        number = self._numbers.pop(change.dispatch)
        self.settled.append((number,))
        if number in self._bulky:
            self._bulky.discard(number)
            self.settled_chunks.append((_place(number, 0), _place(number + 1, 0)))

    def raise_floor(self, change: FloorRaised) -> None:
        self.floor = change

    def tell_loss(self, change: LossTold) -> None:
        self.loss_told = True

    def quarantined(self, change: QuarantineSet) -> None:
        self.quarantine = change

    def permit(self, change: Any) -> None:
        self.others += permit_rows.ROWS[type(change)](change)


_GATHER: dict[type, Callable[[_Rows, Any], None]] = {
    DispatchTaken: _Rows.take,
    IntentRecorded: _Rows.start,
    ResultRecorded: _Rows.record,
    DispatchSettled: _Rows.settle,
    FloorRaised: _Rows.raise_floor,
    LossTold: _Rows.tell_loss,
    QuarantineSet: _Rows.quarantined,
    **dict.fromkeys(permit_rows.ROWS, _Rows.permit),
}


def _write(database: sqlite3.Connection, rows: _Rows) -> None:
    write_rows(database, _SETTLE, rows.settled)
    if rows.settled_chunks:
        sql = "DELETE FROM chunks WHERE place >= ? AND place < ?"
        database.executemany(sql, rows.settled_chunks)
    write_rows(database, _TAKE, rows.taken.values())
    write_rows(database, _START, rows.started)
    write_rows(database, _RESULT, rows.results)
    write_rows(database, _CHUNK, rows.chunks)
    for statement, row in rows.others:
        database.execute(statement, row)
    if rows.floor is not None:
        place = ((rows.floor.epoch, "epoch"), (rows.floor.seq, "seq"))
        database.executemany(_SET, place)
    if rows.loss_told:
        database.execute(_SET, (0, "lost"))
    if rows.quarantine is not None:
        held = int(rows.quarantine.quarantined)
        database.execute(_SET, (held, "quarantined"))


def _encode(result: ResultRecord) -> bytes:
    fault = result.error and [result.error.code, result.error.message]
    bulk = result.bulk and [result.bulk.size, result.bulk.sha256]
    return pack([result.outcome, result.result, fault, result.duration_ms, bulk])


def _place(number: int, index: int) -> int:
    return number * RESULT_CHUNKS + index


def _decode(id: str, hash: bytes, packed: bytes | None) -> ResultRecord | None:
    if packed is None:
        return None
    # rows of before there were chunks have no fifth value
    outcome, value, fault, duration_ms, *rest = msgpack.unpackb(packed)
    if outcome not in OUTCOMES:
        raise ValueError(f"an outcome {outcome!r}")
    bulk = Bulk(*rest[0]) if rest and rest[0] else None
    return ResultRecord(id, hash, outcome, value, fault and Fault(*fault), duration_ms, bulk)
