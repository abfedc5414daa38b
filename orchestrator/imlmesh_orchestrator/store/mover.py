"""Copies outflow rows into output and input, and makes the ledger of changes; in order, each once.

The one rule: it never delays a commit of lifecycle; when it lags too far it says so, and the
core stops dispatching until it has caught up. Deliberately absent: telemetry, which goes straight.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from imlmesh_orchestrator.store.files import OpenStore
from imlmesh_orchestrator.store.ledger import LedgerFile
from imlmesh_orchestrator.store.ledgered import KINDS
from imlmesh_orchestrator.store.lifecycle import Lifecycle
from imlmesh_orchestrator.store.reading import Reader
from imlmesh_protocol import limits
from imlmesh_protocol.errors import StoreError
from imlmesh_runtime.background import Background
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.rows import Many, write_rows
from imlmesh_runtime.sqlite import run

log = logging.getLogger(__name__)

_NEXT = """SELECT o.seq, o.file, o.id, coalesce(o.body, c.body), c.run, c.at_ms, c.kind, c.version
    FROM outflow o JOIN changes c ON c.seq = o.seq WHERE o.seq > ? ORDER BY o.seq LIMIT ?"""
_TOLD = f"""SELECT seq, run, at_ms, cause, kind, body FROM changes
    WHERE seq > ? AND kind IN ({",".join("?" * len(KINDS))}) ORDER BY seq LIMIT ?"""  # noqa: S608
# id, body, run, at_ms, kind, version: what of them each file keeps
_INTO: dict[str, tuple[Many, Callable[[Sequence[Any]], Sequence[Any]]]] = {
    "output": (
        Many("INSERT OR IGNORE INTO results (id, body, run, at_ms, kind, version) VALUES"),
        lambda row: row,
    ),
    "input": (
        Many("INSERT OR IGNORE INTO plans (digest, document, at_ms) VALUES"),
        lambda row: (row[0], row[1], row[3]),
    ),
}


class Mover:
    """`on_behind(behind)` is called when the lag passes a limit or `is_scarce()` says that the disk has
    no room for more, and when that is over."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        reader: Reader,
        open_store: OpenStore,
        clock: Clock,
        on_behind: Callable[[bool], None],
        ledger: LedgerFile,
        is_scarce: Callable[[], bool] = lambda: False,
    ) -> None:
        self._lifecycle = lifecycle
        self._reader = reader
        self._open_store = open_store
        self._clock = clock
        self._on_behind = on_behind
        self._ledger = ledger
        self._is_scarce = is_scarce
        self._position = 0
        self._wake = asyncio.Event()
        self._runner = Background("copying what is told", self._run)
        self.behind = False

    def start(self) -> None:
        """Copy what is left from last time, then what comes."""
        self._lifecycle.watch(lambda _: self._wake.set())
        self._runner.start()

    async def close(self) -> bool:
        """Copy what is there, as far as the files allow, and end; whether they allowed it."""
        await self._runner.close()
        try:
            while await self.move():
                pass
        except StoreError as exc:
            log.warning("outflow stays for the next start: %s", exc)
            return False
        return True

    async def move(self) -> bool:
        """Copy the next rows; whether there may be more. StoreError when a file refuses."""
        seen, after = self._lifecycle.last_seq, self._position
        rows = self._lifecycle.recent.outflow(after, limits.MOVE_ROWS)
        if rows is None:
            rows = await self._ask(_NEXT, after)
        for file in sorted({row[1] for row in rows}):
            store = self._open_store(file)
            await run(store, _insert(file, [r for r in rows if r[1] == file]))
            # from now on lifecycle forgets that they were to be copied, and its commits are on the disk
            await store.sync()
        full = len(rows) == limits.MOVE_ROWS
        if rows:
            self._lifecycle.moved(rows[-1][0])
        self._position = rows[-1][0] if full else max([seen, *(row[0] for row in rows[-1:])])
        more = await self._tell_ledger()
        self._lifecycle.recent.forget(min(self._position, self._ledger.tip.seq))
        self.measure()
        return more or full

    async def _ask(self, sql: str, after: int, *kinds: str) -> list[Any]:
        """Rows of lifecycle behind a change."""
        question = (after, *kinds, limits.MOVE_ROWS)
        return await self._reader.ask(lambda database: database.execute(sql, question).fetchall())

    async def _tell_ledger(self) -> bool:
        """Make entries of the next changes; whether there may be more."""
        # the changes are read where they are: the hot path writes no row for the ledger
        await self._ledger.settled()
        seen, told = self._lifecycle.last_seq, self._ledger.tip.seq
        if seen <= told:
            self._lifecycle.ledgered(told)
            return False
        rows = self._lifecycle.recent.changes(told, KINDS, limits.MOVE_ROWS)
        if rows is None:
            rows = await self._ask(_TOLD, told, *KINDS)
        full = len(rows) == limits.MOVE_ROWS
        last = rows[-1][0] if rows else seen
        await self._ledger.append(rows, last if full else max(seen, last))
        self._lifecycle.ledgered(self._ledger.tip.seq)
        return full

    def measure(self) -> None:
        """Compare lag and room with their limits."""
        rows, age_ms = self._lifecycle.outflow(self._clock.now_ms())
        untold, untold_ms = self._lifecycle.unledgered(self._clock.now_ms())
        behind = (
            rows > limits.OUTFLOW_ROWS
            or untold > limits.LEDGER_CHANGES
            or max(age_ms, untold_ms) > limits.OUTFLOW_AGE_MS
            or self._is_scarce()
        )
        if behind != self.behind:
            self.behind = behind
            text = "store.behind: %s (%d rows, %d ms; ledger %d changes, %d ms)"
            log.warning(text, behind, rows, age_ms, untold, untold_ms)
            self._on_behind(behind)

    async def _run(self) -> None:
        self._wake.set()
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
        write_rows(database, sql, [kept(row[2:]) for row in rows])

    return work
