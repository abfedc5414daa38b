"""The way of telemetry, put together: lane, checks, writer, and the upkeep of what is stored.

The one rule: whatever comes this way, and however much of it, costs others nothing but its bytes.
Deliberately absent: decisions of each part; they stand in its own file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imlmesh_orchestrator.lane import Lane
from imlmesh_orchestrator.store.files import OpenStore
from imlmesh_orchestrator.store.rollups import Kept
from imlmesh_orchestrator.store.telemetry import Recorder, SeriesRow
from imlmesh_orchestrator.store.upkeep import Upkeep
from imlmesh_orchestrator.stream import Stream
from imlmesh_orchestrator.telemetry import Telemetry
from imlmesh_protocol.wire.topics import Topic
from imlmesh_runtime.clock import Clock


@dataclass(frozen=True, slots=True)
class Held:
    """The series that output held at the start, and how long it keeps what."""

    series: Sequence[SeriesRow] = ()
    kept: Kept = field(default_factory=Kept)


class Intake:
    """`held` is the store's at the start; `take(topic, payload)` is `Inbound.telemetry`, called
    for each message when its turn has come; while `is_low()` nothing is kept."""

    def __init__(
        self,
        open_store: OpenStore,
        held: Held,
        clock: Clock,
        stream: Stream,
        take: Callable[[Topic, bytes], None],
        is_low: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clock = clock
        self._stream = stream
        self._made = bool(held.series)
        self.recorder = Recorder(open_store, clock, is_low)
        self._telemetry = Telemetry(self.recorder, self._refuse, held.series)
        self._lane = Lane(take, self._lose, lambda: self.recorder.full)
        # where nothing was ever kept there is no file to look after, and none is made for that
        self._upkeep = Upkeep(
            open_store, clock, held.kept, lambda: self._made or self.recorder.written > 0
        )

    def start(self) -> None:
        """Begin to look after what is stored."""
        self._upkeep.start()

    async def close(self) -> None:
        """Take and write what is there."""
        await self._upkeep.close()
        self._lane.empty()
        await self.recorder.close()

    def came(self, topic: Topic, payload: bytes) -> None:
        """A message that nobody has looked at yet."""
        self._lane.put(topic, payload)

    def measured(self, node: str, name: str, fields: Mapping[str, Any], at_ms: int) -> None:
        """The fields of a believed message about `name`."""
        self._telemetry.take(node, name, fields["readings"], fields.get("units", {}), at_ms)

    def beat(self, node: str, at_ms: int, beat: int, health: Mapping[str, Any]) -> None:
        """A believed heartbeat."""
        self._telemetry.beat(node, at_ms, beat, health)

    def _refuse(self, at_ms: int, node: str, code: str, text: str) -> None:
        self._stream.refusal(at_ms, {"node": node}, code, text)

    def _lose(self, node: str) -> None:
        """Nobody looked at its signature, so nobody is blamed."""
        text = "a message of readings was dropped unread"
        place = {"topic": f"telemetry of {node}"}
        self._stream.refusal(self._clock.now_ms(), place, "telemetry.rate", text)
