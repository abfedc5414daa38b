"""Log lines and progress of running actions on their way to the orchestrator; readings pass by.

The one rule: a flood costs lines, never heartbeats: so many a second leave, so many wait, and
then the oldest are dropped and counted. Of progress only the latest is worth sending.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from imlmesh_node.outbox import Letter
from imlmesh_node.readings import Readings
from imlmesh_protocol.limits import (
    LOG_LINES_BURST,
    LOG_LINES_PER_S,
    LOG_LINES_WAITING,
    PROGRESS_CHARS,
)
from imlmesh_protocol.wire.topics import Kind

_TURN_S = 0.05
_LINES_PER_TURN = round(LOG_LINES_PER_S * _TURN_S)


class EventStreams:
    """Sends through `send` while `open` says that a session is open."""

    def __init__(
        self, send: Callable[[Letter], None], is_open: Callable[[], bool], readings: Readings
    ) -> None:
        self._send = send
        self._is_open = is_open
        #: takes one reading
        self.reading = readings.add
        self._loop = asyncio.get_running_loop()
        self._lines: deque[tuple[str, str, str]] = deque()
        self._progress: dict[str, dict[str, Any]] = {}
        self._allowance = LOG_LINES_BURST
        self._dropped = 0
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

    def close(self) -> None:
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
        self._allowance = min(LOG_LINES_BURST, self._allowance + _LINES_PER_TURN)
        if self._lines or self._progress or self._allowance < LOG_LINES_BURST:
            self._timer = self._loop.call_later(_TURN_S, self._turn)

    def _send_some(self) -> None:
        progress, self._progress = self._progress, {}
        for fields in progress.values():
            self._send(Letter(Kind.EVENT, fields, "progress", qos=0))
        while self._lines and self._allowance > 0:
            dispatch, line, stream = self._lines.popleft()
            self._allowance -= 1
            self._send_line(dispatch, line, stream)
            if self._dropped:
                text = f"{self._dropped} lines before this one were dropped"
                self._dropped = 0
                self._send_line(dispatch, text, "log")

    def _send_line(self, dispatch: str, line: str, stream: str) -> None:
        fields = {"dispatch": dispatch, "line": line, "stream": stream}
        self._send(Letter(Kind.EVENT, fields, "log", qos=0))
