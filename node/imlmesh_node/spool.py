"""Events and readings that nobody could take, on the disk: one file, spool.db.

The one rule: it may be lost. It shares nothing with the journal, no commit of which ever waits for
it; what is torn is set aside, and without room on the disk nothing is written. Records are not sealed:
they are signed when they are sent. Deliberately absent: when; `drain` and those who measure know.
"""

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from imlmesh_node.opening import set_aside
from imlmesh_node.stock import Row, Sort, Stock
from imlmesh_protocol.errors import Fault, MeshError, StoreError
from imlmesh_protocol.wire.codec import pack
from imlmesh_runtime.clock import MeshClock, machine_boot
from imlmesh_runtime.sqlite import Database, Store

log = logging.getLogger(__name__)

MIGRATIONS = (
    """
    CREATE TABLE records (number INTEGER PRIMARY KEY, sort TEXT NOT NULL, count INTEGER NOT NULL,
        size INTEGER NOT NULL, machine TEXT NOT NULL, offset_ms INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE TABLE dropped (sort TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO dropped VALUES ('events', 0), ('readings', 0);
    """,
)
_KEEP = """INSERT INTO records (number, sort, count, size, machine, offset_ms, body)
    VALUES (?,?,?,?,?,?,?)"""
_READ = "SELECT machine, offset_ms, body FROM records WHERE number = ?"
_COUNT = "UPDATE dropped SET count = ? WHERE sort = ?"
_DELETE = "DELETE FROM records WHERE number = ?"
_ROWS = "SELECT sort, number, count, size FROM records ORDER BY number"

#: (ms since boot, then what its sender wants back)
Record = Sequence[Any]
#: note(code, text, count)
Note = Callable[[str, str, int], None]


@dataclass(frozen=True, slots=True)
class Kept:
    """A record that comes back; `at_ms` is mesh time as well as it is known, `age_ms` its distance."""

    at_ms: int
    age_ms: int
    values: tuple[Any, ...]


class Spool:
    """`open_store` opens the file; that of a new one is called when the first record comes."""

    def __init__(
        self,
        open_store: Callable[[], Store],
        clock: MeshClock,
        no_space: Callable[[], Fault | None],
        note: Note,
    ) -> None:
        self._open_store = open_store
        self._clock = clock
        self._no_space = no_space
        self._note = note
        self._store: Store | None = None
        self._loading = False
        self.stock = Stock()
        #: records by sort that were dropped since the file was made
        self.dropped: Counter[Sort] = Counter()

    @classmethod
    def at(
        cls, path: Path, clock: MeshClock, no_space: Callable[[], Fault | None], note: Note
    ) -> "Spool":
        """The spool of a file; one that cannot be used is told, and costs the start nothing."""
        spool = cls(lambda: _database(path), clock, no_space, note)
        if path.exists():
            spool.load()
        return spool

    def load(self) -> None:
        """Open it and learn what is there."""
        if (store := self._opened()) is not None:
            self._loading = True
            store.submit(_load, self._loaded)

    def health(self) -> dict[str, int]:
        """What a heartbeat says of it; nothing where there is nothing to say."""
        told = {
            "spooled_records": len(self.stock),
            "dropped_events": self.dropped[Sort.EVENTS],
            "dropped_readings": self.dropped[Sort.READINGS],
        }
        return {name: count for name, count in told.items() if count}

    def keep(self, sort: Sort, records: Sequence[Record]) -> bool:
        """Write records down, unless the disk has no room: then they stay with the caller."""
        if self._loading or self._no_space() is not None:
            return False
        if (store := self._opened()) is None:
            return False
        body = pack(records)
        row, gone = self.stock.add(sort, len(records), len(body))
        self._drop(gone, "it is full")
        # a time that is known is final, so that what goes out again is recognised
        machine = "" if self._clock.synced else machine_boot()
        offset_ms = self._clock.offset_ms
        values = (row.number, sort, row.count, row.size, machine, offset_ms, body)
        dropped = self._counts()

        def write(database: sqlite3.Connection) -> None:
            database.execute(_KEEP, values)
            _delete(database, gone)
            if gone:
                database.executemany(_COUNT, dropped)

        def written(_result: Any, error: MeshError | None) -> None:
            if error is not None:
                self._drop(self.stock.remove([row]), error.message)

        store.submit(write, written)
        return True

    def read(self, rows: Sequence[Row], done: Callable[[list[Kept]], None]) -> None:
        """Call `done` with the records of these rows, in order; without those that are gone. What cannot
        be read is dropped: nothing behind it waits for it."""

        def read(database: sqlite3.Connection) -> list[tuple[str, int, bytes] | None]:
            return [database.execute(_READ, (row.number,)).fetchone() for row in rows]

        def answer(
            found: list[tuple[str, int, bytes] | None] | None, error: MeshError | None
        ) -> None:
            if error is not None:
                self._spoilt(rows, error)
            records: list[Kept] = []
            for row, each in zip(rows, found or (), strict=False):
                try:
                    records += self._kept(*each) if each is not None else ()
                except (ValueError, TypeError) as exc:
                    self._spoilt([row], exc)
            done(records)

        if self._store is not None:
            self._store.submit(read, answer)

    def forget(self, rows: Sequence[Row]) -> None:
        """They were sent."""
        removed = self.stock.remove(rows)
        if removed and self._store is not None:
            self._store.submit(lambda database: _delete(database, removed), _report)

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()

    def _kept(self, machine: str, offset_ms: int, body: bytes) -> list[Kept]:
        if machine and machine == machine_boot():
            # the clock was not set then and may be now, and time since boot is sure
            offset_ms = self._clock.offset_ms
        now_ms = self._clock.now_ms()
        found = [(at_ms + offset_ms, tuple(values)) for at_ms, *values in msgpack.unpackb(body)]
        return [Kept(at_ms, max(0, now_ms - at_ms), values) for at_ms, values in found]

    def _drop(self, rows: Sequence[Row], why: str) -> None:
        for row in rows:
            self.dropped[row.sort] += row.count
            text = f"{row.count} {row.sort} were dropped from the spool: {why}"
            self._note("spool.full", text, row.count)

    def _spoilt(self, rows: Sequence[Row], why: Exception) -> None:
        """A disk may change what lies on it; the rows themselves are forgotten with their batch."""
        log.error("%d rows of the spool cannot be read: %s", len(rows), why)
        self._drop(rows, "it cannot be read")
        if self._store is not None:
            counts = self._counts()
            self._store.submit(
                lambda database: database.executemany(_COUNT, counts) and None, _report
            )

    def _counts(self) -> list[tuple[int, str]]:
        return [(self.dropped[each], str(each)) for each in Sort]

    def _opened(self) -> Store | None:
        if self._store is None:
            try:
                self._store = self._open_store()
            except StoreError as exc:
                log.error("nothing can be spooled: %s", exc, extra={"code": exc.code})
        return self._store

    def _loaded(self, found: Any, error: MeshError | None) -> None:
        self._loading = False
        if error is not None:
            log.error("the spool cannot be read: %s", error)
            return
        rows, dropped = found
        self.stock = Stock(rows)
        self.dropped.update(dropped)


def _report(_result: Any, error: MeshError | None) -> None:
    if error is not None:
        log.error("the spool was not written: %s", error, extra={"code": error.code})


def _load(database: sqlite3.Connection) -> tuple[list[Row], dict[Sort, int]]:
    rows = [Row(Sort(sort), *rest) for sort, *rest in database.execute(_ROWS)]
    dropped = database.execute("SELECT sort, count FROM dropped").fetchall()
    return rows, {Sort(sort): count for sort, count in dropped}


def _delete(database: sqlite3.Connection, rows: Sequence[Row]) -> None:
    if rows:
        database.executemany(_DELETE, [(row.number,) for row in rows])


def _database(path: Path) -> Database:
    try:
        return Database(path, MIGRATIONS, synchronous="NORMAL", presize_bytes=0)
    except StoreError as exc:
        if exc.code != "store.corrupt":
            raise
        kept = set_aside(path, time.time_ns() // 1_000_000)
        log.error("the spool is lost (%s) and kept as %s", exc.message, kept.name)
        return Database(path, MIGRATIONS, synchronous="NORMAL", presize_bytes=0)
