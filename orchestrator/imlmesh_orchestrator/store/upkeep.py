"""Makes roll-ups when their time is over, and forgets what is older than it may be.

The one rule: a small piece of work at a time, with a pause behind it, so that the file belongs to
those who write results and readings. Deliberately absent: what a piece is; `rollups` knows.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable

from imlmesh_orchestrator.store.files import OpenStore
from imlmesh_orchestrator.store.rollups import Kept, forget, roll_up
from imlmesh_protocol import limits
from imlmesh_protocol.errors import StoreError
from imlmesh_runtime.background import Background
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.sqlite import run

log = logging.getLogger(__name__)


class Upkeep:
    """Looks after output from `start` to `close`. `is_needed` says whether there is a file yet."""

    def __init__(
        self, open_store: OpenStore, clock: Clock, kept: Kept, is_needed: Callable[[], bool]
    ) -> None:
        self._open_store = open_store
        self._clock = clock
        self._kept = kept
        self._is_needed = is_needed
        self._runner = Background("looking after telemetry", self._run)

    def start(self) -> None:
        self._runner.start()

    async def close(self) -> None:
        await self._runner.close()

    async def once(self) -> bool:
        """One piece of work; whether there may be more. StoreError when the file refuses."""
        now_ms = self._clock.now_ms()

        def piece(database: sqlite3.Connection) -> bool:
            # roll-ups first: what is not rolled up is never forgotten
            return roll_up(database, now_ms) or forget(database, now_ms, self._kept)

        more: bool = await run(self._open_store("output"), piece)
        return more

    async def _run(self) -> None:
        while True:
            try:
                while self._is_needed() and await self.once():  # noqa: ASYNC110 - a pause, not a wait
                    await asyncio.sleep(limits.UPKEEP_PAUSE_MS / 1_000)
            except StoreError as exc:
                log.error("telemetry is not looked after: %s", exc, extra={"code": exc.code})
            await asyncio.sleep(limits.UPKEEP_EVERY_MS / 1_000)
