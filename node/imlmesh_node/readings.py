"""What drivers measure on its way to the orchestrator: gathered, then many readings in a message.

The one rule: one signature for all that was measured within a second, whatever it is; the one who
verifies pays for each signature and hardly for each reading. What nobody can take waits for a while, then
goes to the spool; where that has no room the oldest are dropped and counted.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from imlmesh_node.outbox import Letter
from imlmesh_node.spool import Kept, Record
from imlmesh_protocol import limits
from imlmesh_protocol.telemetry import MIXED, is_metric
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.clock import Clock, boot_ms


@dataclass(slots=True)
class Measured:
    """One reading. `at_ms` counts since boot: mesh time may not be known yet."""

    module: str
    metric: str
    unit: str
    at_ms: int
    value: float


#: keep(records): whether they are written down
Keep = Callable[[Sequence[Record]], bool]


def no_spool(records: Sequence[Record]) -> bool:
    """Nothing can be written down."""
    return False


class Readings:
    """Sends through `send` while `is_open` says so; `clock` is mesh time; `note(code, text, count)` is
    told of what was dropped."""

    def __init__(
        self,
        send: Callable[[Letter], None],
        is_open: Callable[[], bool],
        clock: Clock,
        note: Callable[[str, str, int], None],
        keep: Keep = no_spool,
    ) -> None:
        """`keep` writes readings down for later and says whether it could."""
        self._keep = keep
        self._send = send
        self._is_open = is_open
        self._clock = clock
        self._note = note
        self._waiting: deque[Measured] = deque()
        #: when each metric was measured last, ms since boot
        self._measured_ms: dict[str, int] = {}
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, module: str, metric: str, value: float, unit: str, dropped: int) -> None:
        """Queue one reading of now; `dropped` were left out before it."""
        self._dropped += dropped
        name = f"{module}.{metric}"
        last_ms = self._measured_ms.get(name, 0)
        if not last_ms and not self._may_begin(name):
            return
        # of readings at one time only the first is kept, so a burst takes a millisecond each
        at_ms = self._measured_ms[name] = max(boot_ms(), last_ms + 1)
        if len(self._waiting) >= limits.TELEMETRY_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(Measured(module, name, unit, at_ms, value))
        if self._timer is None:
            self._later()

    def _may_begin(self, name: str) -> bool:
        """Whether a metric may be sent that was not measured before."""
        if not is_metric(name):
            self._note("telemetry.invalid", f"{name[:80]!r} is no name of a metric", 1)
            return False
        if len(self._measured_ms) >= limits.TELEMETRY_METRICS:
            text = f"{name}: {limits.TELEMETRY_METRICS} metrics are sent already"
            self._note("telemetry.metrics", text, 1)
            return False
        return True

    def send_all(self) -> None:
        """Send what was gathered, if somebody listens."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_open():
            late_ms = boot_ms() - limits.SPILL_MS
            if len(self._waiting) >= limits.SPILL_READINGS or (
                self._waiting and self._waiting[0].at_ms <= late_ms
            ):
                self._spill()
            if self._waiting:
                self._later()
            return
        if self._dropped:
            self._note("telemetry.rate", f"{self._dropped} readings were dropped", self._dropped)
            self._dropped = 0
        waiting = list(self._waiting)
        self._waiting.clear()
        self._send_messages(waiting, self._clock.now_ms() - boot_ms(), qos=0)

    def send_spooled(self, records: Iterable[Kept]) -> None:
        """Send what was written down, so that the broker's word says when it has arrived."""
        readings = []
        for kept in records:
            module, metric, unit, value = kept.values
            readings.append(Measured(module, metric, unit, kept.at_ms, value))
        self._send_messages(readings, 0, qos=1)

    def _send_messages(self, readings: list[Measured], offset_ms: int, *, qos: int) -> None:
        for part in _parts(readings):
            modules = {reading.module for reading in part}
            name = modules.pop() if len(modules) == 1 else MIXED
            self._send(Letter(Kind.EVENT, _fields(part, offset_ms), f"telemetry/{name}", qos=qos))

    def _spill(self) -> None:
        for part in _parts(list(self._waiting)):
            rows = [(each.at_ms, each.module, each.metric, each.unit, each.value) for each in part]
            if not self._keep(rows):
                return
            for _ in part:
                self._waiting.popleft()

    def close(self) -> None:
        """Send what is left, or write it down."""
        self.send_all()
        if not self._is_open():
            self._spill()
        if self._timer is not None:
            self._timer.cancel()

    def _later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(limits.TELEMETRY_GATHER_MS / 1_000, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.send_all()


def _parts(readings: list[Measured]) -> Iterable[list[Measured]]:
    for start in range(0, len(readings), limits.TELEMETRY_MESSAGE):
        yield readings[start : start + limits.TELEMETRY_MESSAGE]


def _fields(readings: list[Measured], offset_ms: int) -> dict[str, Any]:
    """Columns by metric, and the units of those that have one."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for reading in readings:
        times, values = columns.setdefault(reading.metric, ([], []))
        times.append(reading.at_ms + offset_ms)
        values.append(reading.value)
    fields: dict[str, Any] = {"readings": columns}
    units = {reading.metric: reading.unit for reading in readings if reading.unit}
    return fields | {"units": units} if units else fields
