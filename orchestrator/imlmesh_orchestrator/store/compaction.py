"""Packs the changes of runs that ended long ago, so that lifecycle grows by less for each of them.

The one rule: a small piece of work at a time, each one transaction with a pause behind it; what somebody
still has to copy, to tell or to count from stays a row. Deliberately absent: how it is read; `compacted` knows.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from imlmesh_orchestrator.store.compacted import COLUMNS, pack
from imlmesh_orchestrator.store.lifecycle import Lifecycle
from imlmesh_orchestrator.store.reading import Reader
from imlmesh_orchestrator.store.recent import ChangeRow
from imlmesh_protocol import limits
from imlmesh_protocol.errors import StoreError
from imlmesh_runtime.background import Background
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.rows import Many, write_rows

log = logging.getLogger(__name__)

_RUNS = "SELECT counter, run, ended_at_ms FROM runs WHERE counter >= ? ORDER BY counter LIMIT ?"
# marks count from the last change; a row of outflow may be copied once more after a restart
_BELOW = """SELECT min(?, (SELECT coalesce(max(seq), 0) FROM changes),
    coalesce((SELECT min(seq) FROM outflow), ?))"""
# of what creates a run little is left, however large its plan is
_OF_RUN = f"""SELECT {COLUMNS} FROM changes WHERE run = ? AND seq < ?
    AND (length(body) <= ? OR kind = 'run-created') ORDER BY seq LIMIT ?"""  # noqa: S608
_GONE = Many("DELETE FROM changes WHERE seq IN (VALUES", ")")
_PACKED = Many("INSERT INTO compacted (first_seq, last_seq, run, body) VALUES")


@dataclass(frozen=True, slots=True)
class Pack:
    """Some changes of one run, in order, and what `compacted` will hold of them."""

    run: str
    seqs: Sequence[int]
    body: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of work: what is packed at once, and the counter of the run where the next one begins; 0
    when all runs were seen."""

    packs: list[Pack]
    following: int


class Compaction:
    """Looks after lifecycle from `start` to `close`. `told` is the seq up to which the ledger tells."""

    def __init__(
        self, lifecycle: Lifecycle, reader: Reader, clock: Clock, told: Callable[[], int]
    ) -> None:
        self._lifecycle = lifecycle
        self._reader = reader
        self._clock = clock
        self._told = told
        self._counter = 0
        self._runner = Background("packing old runs", self._run)

    def start(self) -> None:
        self._runner.start()

    async def close(self) -> None:
        await self._runner.close()

    async def once(self) -> bool:
        """One piece of work; whether runs are left to look at. StoreError when the file refuses."""
        before_ms = self._clock.now_ms() - limits.COMPACT_AFTER_MS
        question = partial(
            next_piece, counter=self._counter, before_ms=before_ms, below=self._told() + 1
        )
        piece = await self._reader.ask(question)
        if piece.packs:
            await self._lifecycle.rewrite(partial(_put, packs=piece.packs))
        self._counter = piece.following
        return bool(piece.following)

    async def _run(self) -> None:
        while True:
            try:
                # what room there is belongs to the commit that waits for it
                while not self._lifecycle.waits and await self.once():  # noqa: ASYNC110
                    await asyncio.sleep(limits.UPKEEP_PAUSE_MS / 1_000)
            except StoreError as exc:
                log.warning("old runs stay as they are: %s", exc, extra={"code": exc.code})
            await asyncio.sleep(limits.COMPACT_EVERY_MS / 1_000)


def next_piece(database: sqlite3.Connection, counter: int, before_ms: int, below: int) -> Piece:
    """A question to lifecycle: the next changes of runs from this counter on that ended before then;
    none from the seq `below` on."""
    runs = database.execute(_RUNS, (counter, limits.COMPACT_RUNS)).fetchall()
    below = database.execute(_BELOW, (below, below)).fetchone()[0]
    packs: list[Pack] = []
    rows_left, bytes_left = limits.COMPACT_ROWS, limits.COMPACT_BYTES
    for number, run, ended_at_ms in runs:
        if ended_at_ms is None or ended_at_ms >= before_ms:
            continue
        given = database.execute(_OF_RUN, (run, below, limits.COMPACT_BYTES, rows_left))
        rows = list(_as_many(given, bytes_left))
        if rows:
            packs.append(Pack(run, [row[0] for row in rows], pack(database, rows)))
        rows_left -= len(rows)
        bytes_left -= sum(len(row[6]) for row in rows)
        if rows_left <= 0 or bytes_left <= 0:
            return Piece(packs, number)
    return Piece(packs, runs[-1][0] + 1 if len(runs) == limits.COMPACT_RUNS else 0)


def _as_many(rows: Iterator[ChangeRow], size: int) -> Iterator[ChangeRow]:
    """The first rows, until they have so many bytes."""
    for row in rows:
        yield row
        size -= len(row[6])
        if size <= 0:
            return


def _put(database: sqlite3.Connection, packs: Sequence[Pack]) -> None:
    """Rows go first, so that their pages are used again at once: the file does not grow by this."""
    seqs = [(seq,) for made in packs for seq in made.seqs]
    before = database.total_changes
    write_rows(database, _GONE, seqs)
    if database.total_changes - before != len(seqs):
        raise StoreError("store.failed", f"changes of {packs[0].run} are not what they were")
    rows = [(made.seqs[0], made.seqs[-1], made.run, made.body) for made in packs]
    write_rows(database, _PACKED, rows)
