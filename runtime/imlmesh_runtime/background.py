"""Work that goes on beside everything else, from `start` to `close`.

The one rule: nobody loses it unnoticed. A bug in it is logged with its place, and it begins anew.
Deliberately absent: what may go wrong in the world; each work catches that itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from imlmesh_protocol import limits

log = logging.getLogger(__name__)


class Background:
    """`work` is called again when it raises; the log calls it `what`."""

    def __init__(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        self._what = what
        self._work = work
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._runner = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Cancel it, and wait until it has ended."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])

    async def _run(self) -> None:
        while True:
            try:
                await self._work()
            except Exception:
                pause_s = limits.BEGIN_ANEW_MS / 1_000
                log.exception("%s: begins anew in %g s", self._what, pause_s)
                await asyncio.sleep(pause_s)
            else:
                return
