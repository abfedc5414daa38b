"""What a node measures, sees and says while it works, and how it keeps that while it is cut off.

The one rule: live things go straight to the outbox; what waited too long goes to the spool, and from
there behind everything else. Deliberately absent: results, which are the journal's.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from imlmesh_node.drain import Drain
from imlmesh_node.inbox import Refusals
from imlmesh_node.outbox import Outbox
from imlmesh_node.presence import Clocks, Presence
from imlmesh_node.readings import Readings
from imlmesh_node.space import Space
from imlmesh_node.spool import Kept, Spool
from imlmesh_node.stock import Sort
from imlmesh_node.streams import EventStreams
from imlmesh_protocol.limits import SPOOL_FREE_BYTES, SPOOL_LOOK_MS, SPOOL_TURN_MS
from imlmesh_runtime.clock import boot_ms


class Edge:
    """Needs a running loop; `folder` is the node's."""

    def __init__(
        self,
        folder: Path,
        outbox: Outbox,
        presence: Presence,
        clocks: Clocks,
        refusals: Refusals,
    ) -> None:
        self._outbox = outbox
        self._presence = presence
        self._unsettled: Callable[[], int] = int
        space = Space(folder, SPOOL_FREE_BYTES)
        self.spool = Spool.at(folder / "spool.db", clocks.mesh, space.refusal, refusals.note)
        is_open = self._is_open
        keep_readings = partial(self.spool.keep, Sort.READINGS)
        self._readings = Readings(outbox.send, is_open, clocks.mesh, refusals.note, keep_readings)
        keep_events = partial(self.spool.keep, Sort.EVENTS)
        self.streams = EventStreams(outbox.send, is_open, self._readings, keep_events)
        self._drain = Drain(self.spool, self, self._send)
        self._timer: asyncio.TimerHandle | None = None

    def start(self, unsettled: Callable[[], int]) -> None:
        """Look from time to time whether something can leave; `unsettled` counts results."""
        self._unsettled = unsettled
        self._on_time()

    def end_readings(self) -> None:
        """Send the last ones, while somebody may still listen."""
        self._readings.close()

    async def close(self) -> None:
        """Write down what could not be sent."""
        if self._timer is not None:
            self._timer.cancel()
        self.streams.close()
        await self.spool.close()

    @property
    def session(self) -> int | None:
        return self._presence.session if self._presence.is_open else None

    @property
    def unacked(self) -> int:
        return self._outbox.unacked

    @property
    def unsettled(self) -> int:
        return self._unsettled()

    def _is_open(self) -> bool:
        return self._presence.is_open

    def _send(self, sort: Sort, records: list[Kept]) -> None:
        sender = self.streams if sort is Sort.EVENTS else self._readings
        sender.send_spooled(records)

    def _on_time(self) -> None:
        try:
            self._drain.turn(boot_ms())
        finally:
            # also behind a fault of ours, which the loop tells: what waits must leave some day.
            # What came into an empty spool did not come within the last second
            pause_ms = SPOOL_TURN_MS if len(self.spool.stock) else SPOOL_LOOK_MS
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(pause_ms / 1_000, self._on_time)
