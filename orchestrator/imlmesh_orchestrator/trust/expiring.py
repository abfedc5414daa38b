"""Sessions that outlive the certificate that they began with: brokers look at it once, and never again.

The one rule: who has a newer certificate is left alone, for it connected anew with it. Deliberately
absent: refusing the next connection, which every broker does by itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from imlmesh_orchestrator.core.joining_state import EnrolledRecord
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_runtime.background import Background
from imlmesh_runtime.clock import Clock

log = logging.getLogger(__name__)


class ExpiredSessions:
    """Ends them by `end_session`; `enrolled` is looked at once in limits.EXPIRED_LOOK_S."""

    def __init__(
        self,
        enrolled: Mapping[str, EnrolledRecord],
        clock: Clock,
        end_session: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._enrolled = enrolled
        self._clock = clock
        self._end_session = end_session
        self._looked_ms = 0
        self._left: set[str] = set()
        self._runner = Background("ending expired sessions", self._run)

    def start(self) -> None:
        """Look now, for who ended while nobody looked, and then again and again."""
        self._runner.start()

    async def close(self) -> None:
        """Look no more."""
        await self._runner.close()

    async def _run(self) -> None:
        while True:
            now_ms = self._clock.now_ms()
            self._left.update(ended_between(self._enrolled, self._looked_ms, now_ms))
            self._looked_ms = now_ms
            for node in sorted(self._left):
                try:
                    await self._end_session(node)
                except MeshError as exc:
                    log.warning("ending the expired session of %s: %s", node, exc)
                else:
                    self._left.discard(node)
            await asyncio.sleep(limits.EXPIRED_LOOK_S)


def ended_between(
    enrolled: Mapping[str, EnrolledRecord], since_ms: int, until_ms: int
) -> list[str]:
    """The nodes whose newest certificate ended after `since_ms`, at `until_ms` at the latest."""
    return [
        node
        for node, record in enrolled.items()
        if since_ms < max(record.certificates.values(), default=0) <= until_ms
    ]
