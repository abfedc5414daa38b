"""Copies outflow rows into output and input, in order, idempotent by id.

The one rule: it never delays a commit of lifecycle; when it lags too far it says so, and the
core stops dispatching until it has caught up. Deliberately absent: telemetry, which goes straight.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from imlmesh_orchestrator.store.files import OpenStore
from imlmesh_orchestrator.store.lifecycle import Lifecycle
from imlmesh_orchestrator.store.reading import Reader
from imlmesh_protocol import limits
from imlmesh_protocol.errors import StoreError
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.sqlite import run

log = logging.getLogger(__name__)

_NEXT = """SELECT o.seq, o.file, o.id, coalesce(o.body, c.body), c.run, c.at_ms, c.kind, c.version
    FROM outflow o JOIN changes c ON c.seq = o.seq WHERE o.seq > ? ORDER BY o.seq LIMIT ?"""
# id, body, run, at_ms, kind, version: what of them each file keeps
_INTO: dict[str, tuple[str, Callable[[Sequence[Any]], Sequence[Any]]]] = {
    "output": (
        "INSERT OR IGNORE INTO results (id, body, run, at_ms, kind, version) VALUES (?,?,?,?,?,?)",
        lambda row: row,
    ),
    "input": (
        "INSERT OR IGNORE INTO plans (digest, document, at_ms) VALUES (?,?,?)",
        lambda row: (row[0], row[1], row[3]),
    ),
}


class Mover:
    """`on_behind(behind)` is called when the lag passes a limit, and when it is gone."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        reader: Reader,
        open_store: OpenStore,
        clock: Clock,
        on_behind: Callable[[bool], None],
    ) -> None:
        self._lifecycle = lifecycle
        self._reader = reader
        self._open_store = open_store
        self._clock = clock
        self._on_behind = on_behind
        self._position = 0
        self._wake = asyncio.Event()
        self._mover: asyncio.Task[None] | None = None
        self.behind = False

    def start(self) -> None:
        """Copy what is left from last time, then what comes."""
        self._lifecycle.watch(lambda _: self._wake.set())
        self._wake.set()
        self._mover = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Copy what is there, as far as the files allow, and end."""
        if self._mover is not None:
            self._mover.cancel()
            await asyncio.wait([self._mover])
        try:
            while await self.move():
                pass
        except StoreError as exc:
            log.warning("outflow stays for the next start: %s", exc)

    async def move(self) -> bool:
        """Copy the next rows; whether there may be more. StoreError when a file refuses."""
        rows = await self._reader.ask(
            lambda database: database.execute(_NEXT, (self._position, limits.MOVE_ROWS)).fetchall()
        )
        for file in sorted({row[1] for row in rows}):
            await run(self._open_store(file), _insert(file, [r for r in rows if r[1] == file]))
        if rows:
            self._position = rows[-1][0]
            self._lifecycle.moved(self._position)
        self.measure()
        return len(rows) == limits.MOVE_ROWS

    def measure(self) -> None:
        """Compare the lag with its limits."""
        rows, age_ms = self._lifecycle.outflow(self._clock.now_ms())
        behind = rows > limits.OUTFLOW_ROWS or age_ms > limits.OUTFLOW_AGE_MS
        if behind != self.behind:
            self.behind = behind
            log.warning("store.behind: %s (%d rows, %d ms)", behind, rows, age_ms)
            self._on_behind(behind)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while await self.move():
                    pass
            except StoreError as exc:
                log.error("outflow waits: %s", exc, extra={"code": exc.code})
                self.measure()
                self._wake.set()
                await asyncio.sleep(limits.OUTFLOW_AGE_MS / 5_000)
            await asyncio.sleep(limits.MOVE_EVERY_MS / 1_000)


def _insert(file: str, rows: list[tuple[Any, ...]]) -> Callable[[sqlite3.Connection], None]:
    sql, kept = _INTO[file]

    def work(database: sqlite3.Connection) -> None:
        database.executemany(sql, [kept(row[2:]) for row in rows])

    return work
