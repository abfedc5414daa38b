"""One call of an action under way, as its driver sees it.

The one rule: whatever a driver says while it works goes through here, and is bounded here.
Deliberately absent: where it goes; whoever runs the call knows.
"""

import time
from collections.abc import Callable

from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import (
    LOG_LINE_BYTES,
    LOG_LINES_PER_ACTION,
    TELEMETRY_CALL_BURST,
    TELEMETRY_CALL_PER_S,
)
from imlmesh_protocol.telemetry import check_reading


def clip(text: str, limit_bytes: int) -> str:
    """`text`, cut between characters so that its UTF-8 form is at most `limit_bytes` long."""
    encoded = text.encode(errors="replace")
    return encoded[:limit_bytes].decode(errors="ignore")


class Call:
    """One call under way: its dispatch id, and the ways back for lines, progress and readings.

    The ways back are called on whatever thread the action runs on. Lines are cut at
    LOG_LINE_BYTES; after LOG_LINES_PER_ACTION one line says that the rest was dropped. Who runs a
    thread action, which nothing can kill, calls `stop`; the action asks with `check`.
    """

    __slots__ = (
        *("_dropped", "_lines", "_on_log", "_on_progress", "_on_reading", "_room", "_room_at_s"),
        *("_stopped", "dispatch"),
    )

    def __init__(
        self,
        dispatch: str,
        on_log: Callable[[str, str], None] | None = None,
        on_progress: Callable[[float | None, str], None] | None = None,
        on_reading: Callable[[str, float, str, int], None] | None = None,
    ) -> None:
        """`on_log(line, stream)`, `on_progress(fraction, message)` and `on_reading(metric, value,
        unit, how many were dropped before it)` must not block."""
        self.dispatch = dispatch
        self._on_log = on_log
        self._on_progress = on_progress
        self._on_reading = on_reading
        self._lines = 0
        self._stopped = False
        #: readings that may come now, as of `_room_at_s`
        self._room: float = TELEMETRY_CALL_BURST
        self._room_at_s = time.monotonic()
        self._dropped = 0

    def log(self, line: str, stream: str = "log") -> None:
        """Stream one line; `stream` is "log", "stdout" or "stderr"."""
        if self._on_log is None or self.full:
            return
        self._lines += 1
        if self.full:
            self._on_log(f"more than {LOG_LINES_PER_ACTION} lines: the rest is dropped", "log")
            return
        self._on_log(clip(line, LOG_LINE_BYTES), stream)

    @property
    def full(self) -> bool:
        """Whether further lines are dropped."""
        return self._lines > LOG_LINES_PER_ACTION

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Say how far it is: 0 to 1, or None when that is not known."""
        if self._on_progress is not None:
            known = None if fraction is None else float(fraction)
            self._on_progress(known, clip(message, LOG_LINE_BYTES))

    def telemetry(self, metric: str, value: float, unit: str = "") -> None:
        """Report what was measured now; kept as `<module>.<metric>` of this node.

        More than TELEMETRY_CALL_PER_S are dropped and counted. Raises `telemetry.invalid` for
        what is no finite number, and for a name or unit that nobody would keep.
        """
        check_reading(metric, value, unit)
        if self._on_reading is None:
            return
        now_s = time.monotonic()
        grown = (now_s - self._room_at_s) * TELEMETRY_CALL_PER_S
        self._room, self._room_at_s = min(TELEMETRY_CALL_BURST, self._room + grown), now_s
        if self._room < 1:
            self._dropped += 1
            return
        self._room -= 1
        dropped, self._dropped = self._dropped, 0
        self._on_reading(metric, float(value), unit, dropped)

    def pass_on(self, metric: str, value: float, unit: str, dropped: int) -> None:
        """Report what `telemetry` of a call in another process let through."""
        check_reading(metric, value, unit)
        if self._on_reading is not None:
            self._on_reading(metric, value, unit, dropped)

    def stop(self) -> None:
        """Nobody waits for this call any more."""
        self._stopped = True

    def check(self) -> None:
        """Raise `action.cancelled` when nobody waits for this call any more."""
        if self._stopped:
            raise DriverError("action.cancelled", f"{self.dispatch} was given up")
