"""Log lines and progress of running actions, and what sources see, on their way to the orchestrator;
readings pass by.

The one rule: a flood costs lines, never heartbeats: so many a second leave, so many wait, and
then the oldest are dropped and counted. Of progress only the latest is worth sending. What a source
saw waits while the node is cut off, goes to the spool after a while, and leaves with QoS 1.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from imlmesh_node.outbox import Letter
from imlmesh_node.readings import Keep, Readings, no_spool
from imlmesh_node.sizes import is_tiny
from imlmesh_node.spool import Kept
from imlmesh_protocol.ids import NAME
from imlmesh_protocol.limits import (
    LOG_LINES_BURST,
    LOG_LINES_PER_S,
    LOG_LINES_WAITING,
    PROGRESS_CHARS,
    SOURCE_EVENTS_PER_S,
    SOURCE_EVENTS_WAITING,
    SPILL_EVENTS,
    SPILL_MS,
    SPOOL_EVENTS_ROW,
)
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.clock import boot_ms

_TURN_S = 0.05
_LATE_MS = 1_000  # what a source saw says how old it is from here on
_SOURCE_EVENTS_PER_TURN = round(SOURCE_EVENTS_PER_S * _TURN_S)
_LINES_PER_TURN = round(LOG_LINES_PER_S * _TURN_S)


class EventStreams:
    """Sends through `send` while `is_open` says that a session is open."""

    def __init__(
        self,
        send: Callable[[Letter], None],
        is_open: Callable[[], bool],
        readings: Readings,
        keep: Keep = no_spool,
    ) -> None:
        """`keep` writes down what sources saw, for later, and says whether it could."""
        self._keep = keep
        self._send = send
        self._is_open = is_open
        #: hears what every source tells, whoever is there
        self.heard: Callable[[str, Mapping[str, Any]], None] = lambda name, values: None
        #: takes one reading
        self.reading = readings.add
        self._loop = asyncio.get_running_loop()
        self._lines: deque[tuple[str, str, str]] = deque()
        self._progress: dict[str, dict[str, Any]] = {}
        #: (ms since boot, name, values)
        self._sources: deque[tuple[int, str, Mapping[str, Any]]] = deque()
        self._allowance = LOG_LINES_BURST
        self._dropped = 0
        self._missed = 0
        self._timer: asyncio.TimerHandle | None = None

    def log(self, dispatch: str, line: str, stream: str) -> None:
        """Queue one line."""
        if len(self._lines) == LOG_LINES_WAITING:
            self._lines.popleft()
            self._dropped += 1
        self._lines.append((dispatch, line, stream))
        self._schedule()

    def progress(self, dispatch: str, fraction: float | None, message: str) -> None:
        """Queue progress in place of what the dispatch said before."""
        self._progress[dispatch] = {
            "dispatch": dispatch,
            "fraction": fraction,
            "message": message[:PROGRESS_CHARS],
        }
        self._schedule()

    def source(self, name: str, values: Mapping[str, Any]) -> None:
        """Queue what a source saw; `name` becomes its channel, `values` are few and plain.

        One that says too much, or has no name that fits, counts as missed like one too many.
        """
        if not NAME.fullmatch(name) or not is_tiny(values):
            self._missed += 1
            return
        self.heard(name, values)
        if len(self._sources) == SOURCE_EVENTS_WAITING:
            self._sources.popleft()
            self._missed += 1
        self._sources.append((boot_ms(), name, values))
        self._schedule()

    def send_spooled(self, records: Iterable[Kept]) -> None:
        """Send what sources saw while nobody listened."""
        for kept in records:
            name, values = kept.values
            self._send_source(name, values, kept.age_ms)

    def close(self) -> None:
        """Write down what is left of what sources saw."""
        if not self._is_open():
            self._spill()
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        if self._timer is None:
            # the lines of one read come together; the first ones should not wait for others
            pause_s = 0.0 if self._allowance > 0 else _TURN_S
            self._timer = self._loop.call_later(pause_s, self._turn)

    def _turn(self) -> None:
        self._timer = None
        if self._is_open():
            self._send_some()
        elif len(self._sources) >= SPILL_EVENTS or (
            self._sources and self._sources[0][0] <= boot_ms() - SPILL_MS
        ):
            self._spill()
        self._allowance = min(LOG_LINES_BURST, self._allowance + _LINES_PER_TURN)
        waits = self._lines or self._progress or self._sources
        if waits or self._allowance < LOG_LINES_BURST:
            self._timer = self._loop.call_later(_TURN_S, self._turn)

    def _send_some(self) -> None:
        progress, self._progress = self._progress, {}
        for fields in progress.values():
            self._send(Letter(Kind.EVENT, fields, "progress", qos=0))
        for _ in range(min(len(self._sources), _SOURCE_EVENTS_PER_TURN)):
            seen_ms, name, values = self._sources.popleft()
            self._send_source(name, values, boot_ms() - seen_ms)
        while self._lines and self._allowance > 0:
            dispatch, line, stream = self._lines.popleft()
            self._allowance -= 1
            self._send_line(dispatch, line, stream)
            if self._dropped:
                text = f"{self._dropped} lines before this one were dropped"
                self._dropped = 0
                self._send_line(dispatch, text, "log")

    def _spill(self) -> None:
        while self._sources:
            part = list(islice(self._sources, SPOOL_EVENTS_ROW))
            if not self._keep([(at_ms, name, dict(values)) for at_ms, name, values in part]):
                return
            for _ in part:
                self._sources.popleft()

    def _send_source(self, name: str, values: Mapping[str, Any], age_ms: int) -> None:
        told = dict(values)
        if age_ms >= _LATE_MS:
            told["age_ms"] = age_ms
        if self._missed:
            told["missed"] = self._missed
            self._missed = 0
        self._send(Letter(Kind.EVENT, {"values": told}, f"source/{name}"))

    def _send_line(self, dispatch: str, line: str, stream: str) -> None:
        fields = {"dispatch": dispatch, "line": line, "stream": stream}
        self._send(Letter(Kind.EVENT, fields, "log", qos=0))
