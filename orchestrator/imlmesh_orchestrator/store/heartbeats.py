"""Heartbeats on their way to output: gathered, written together, forgotten after two days.

The one rule: a beat that cannot be written is dropped and counted; it never holds up anything.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import msgpack

from imlmesh_orchestrator.store.files import OpenStore
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError, StoreError

log = logging.getLogger(__name__)

_INSERT = "INSERT OR IGNORE INTO heartbeats (node, at_ms, beat, health) VALUES (?,?,?,?)"
_FORGET = "DELETE FROM heartbeats WHERE at_ms < ?"
_FORGET_EVERY_MS = 3_600_000


class Heartbeats:
    """Gathers rows and writes them 500 at a time, or after a second."""

    def __init__(self, open_store: OpenStore) -> None:
        self._open_store = open_store
        self._rows: list[tuple[str, int, int, bytes]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._forget_at_ms = 0
        self.dropped = 0

    def add(self, node: str, at_ms: int, beat: int, health: Mapping[str, Any]) -> None:
        self._rows.append((node, at_ms, beat, msgpack.packb(health)))
        if len(self._rows) >= limits.HEARTBEAT_ROWS:
            self.write()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(limits.HEARTBEAT_WRITE_MS / 1_000, self.write)

    def write(self) -> None:
        """Hand over what was gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows, self._rows = self._rows, []
        if not rows:
            return
        at_ms = rows[-1][1]
        forget = at_ms >= self._forget_at_ms
        if forget:
            self._forget_at_ms = at_ms + _FORGET_EVERY_MS

        def work(database: Any) -> None:
            database.executemany(_INSERT, rows)
            if forget:
                database.execute(_FORGET, (at_ms - limits.HEARTBEATS_KEPT_MS,))

        def done(_: Any, error: MeshError | None) -> None:
            if error is not None:
                self._lose(len(rows), error)

        try:
            self._open_store("output").submit(work, done)
        except StoreError as exc:
            self._lose(len(rows), exc)

    def _lose(self, count: int, error: MeshError) -> None:
        self.dropped += count
        log.error("%d heartbeats were not kept: %s", count, error, extra={"code": error.code})
