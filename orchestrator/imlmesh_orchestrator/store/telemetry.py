"""Readings and beats on their way to output: gathered, and written together.

The one rule: what cannot be written is dropped, the oldest first, and counted; it never holds up
anything, and there is never more than one write under way. Deliberately absent: whether a reading
may come in at all.
"""

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from imlmesh_orchestrator.store.files import OpenStore
from imlmesh_orchestrator.store.rollups import Chunk, write_readings
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError, StoreError
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.rows import Many, write_rows
from imlmesh_runtime.sqlite import run

log = logging.getLogger(__name__)

#: id, node, metric, unit
SeriesRow = tuple[int, str, str, str]

_SERIES = Many("INSERT OR REPLACE INTO series (id, node, metric, unit) VALUES")
_BEATS = Many("INSERT OR IGNORE INTO heartbeats (at_ms, node, beat) VALUES")


def known_series(database: sqlite3.Connection) -> list[SeriesRow]:
    """All series of the file; a question for a reader."""
    return database.execute("SELECT id, node, metric, unit FROM series").fetchall()


class Recorder:
    """Gathers and writes 500 at a time, or after a second; what comes while `is_low()` is dropped."""

    def __init__(
        self, open_store: OpenStore, clock: Clock, is_low: Callable[[], bool] = lambda: False
    ) -> None:
        self._is_low = is_low
        self._open_store = open_store
        self._clock = clock
        self._chunks: deque[Chunk] = deque()
        self._beats: list[tuple[int, str, int]] = []
        self._series: dict[int, SeriesRow] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing = False
        #: readings and beats that wait for their turn
        self.waiting = 0
        self.written = 0
        self.dropped = 0
        #: mesh time of the last drop, 0 before the first
        self.dropped_at_ms = 0

    @property
    def full(self) -> bool:
        """Whether the file should first catch up."""
        return self.waiting > limits.TELEMETRY_UNWRITTEN // 2

    def add_series(self, row: SeriesRow) -> None:
        """A series that is new, or has another unit."""
        self._series[row[0]] = row

    def add_beat(self, node: str, at_ms: int, beat: int) -> None:
        self._beats.append((at_ms, node, beat))
        self._added(1)

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Readings of some series; both columns of each are equally long and not empty."""
        self._chunks += chunks
        self._added(sum([len(times) for times, _, _ in chunks]))

    def write(self) -> None:
        """Hand over what was gathered, unless a write is under way: it takes along what came."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing or not self.waiting:
            return
        if self._is_low():
            self._drop_all()
            return
        chunks, beats, series = self._chunks, self._beats, self._series
        count, self.waiting = self.waiting, 0
        self._chunks, self._beats, self._series = deque(), [], {}

        def work(database: sqlite3.Connection) -> None:
            write_rows(database, _SERIES, series.values())
            write_rows(database, _BEATS, beats)
            write_readings(database, chunks)

        def done(_: Any, error: MeshError | None) -> None:
            self._writing = False
            if error is None:
                self.written += count
            else:
                # its series are written with the next readings, or those would belong to nobody
                self._series = series | self._series
                self._lose(count)
                log.error("%d readings were not kept: %s", count, error, extra={"code": error.code})
            self._schedule()

        self._writing = True
        try:
            self._open_store("output").submit(work, done)
        except StoreError as exc:
            done(None, exc)

    async def close(self) -> None:
        """Write what is there, as far as the file allows."""
        while self.waiting or self._writing:
            self.write()
            try:
                # the file does one thing after the other, so this ends behind the write
                await run(self._open_store("output"), lambda _: None)
            except StoreError:
                return

    def _added(self, count: int) -> None:
        self.waiting += count
        while self.waiting > limits.TELEMETRY_UNWRITTEN:
            lost = len(self._chunks.popleft()[0]) if self._chunks else self._drop_beats()
            self.waiting -= lost
            self._lose(lost)
        self._schedule()

    def _drop_all(self) -> None:
        """The last room of the disk is for results. New series wait for readings that are kept."""
        self._lose(self.waiting)
        self._chunks.clear()
        self._beats.clear()
        self.waiting = 0

    def _drop_beats(self) -> int:
        half = (len(self._beats) + 1) // 2
        del self._beats[:half]
        return half

    def _lose(self, count: int) -> None:
        self.dropped += count
        self.dropped_at_ms = self._clock.now_ms()

    def _schedule(self) -> None:
        if self._writing or not self.waiting:
            return
        if self.waiting >= limits.TELEMETRY_ROWS:
            self.write()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(limits.TELEMETRY_WRITE_MS / 1_000, self.write)
