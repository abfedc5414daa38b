"""How much may be under way: unacknowledged messages, and those that wait for their turn.

The one rule: what is published leaves in its order, and a window's worth at a time. It is the
storage in which gmqtt keeps its unacknowledged messages; only their ids matter, since nothing
outlives a session. Deliberately absent: bytes on a wire.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError

Send = Callable[[str, bytes, int, bool], None]


class Window:
    """Lets limits.WINDOW_UNACKED QoS 1 messages out through `send`; the rest waits, bounded."""

    is_empty = True  # for gmqtt: nothing is left over from an earlier connection

    def __init__(self, send: Send) -> None:
        self._send = send
        self._ids: set[int] = set()
        self._waiting: deque[tuple[str, bytes, int, bool]] = deque()
        self._waiting_bytes = 0
        self._writable = True
        self._quiet = asyncio.Event()

    @property
    def unacked(self) -> int:
        """Sent without acknowledgement, and waiting."""
        return len(self._ids) + len(self._waiting)

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Send now or later; LinkError `link.full` when too much waits already."""
        if self._has_room() and not self._waiting:
            self._send(topic, payload, qos, retain)
            return
        waiting_bytes = self._waiting_bytes + len(topic) + len(payload)
        full = len(self._waiting) >= limits.LINK_WAITING_MESSAGES
        if full or waiting_bytes > limits.LINK_WAITING_BYTES:
            raise LinkError("link.full", f"{len(self._waiting)} messages wait for the broker")
        self._waiting.append((topic, payload, qos, retain))
        self._waiting_bytes = waiting_bytes

    def set_writable(self, now: bool) -> None:
        """The transport is full, or has room again."""
        self._writable = now
        self._drain()

    async def wait_quiet(self) -> None:
        """Return when everything is acknowledged, or `release` was called."""
        if self.unacked:
            self._quiet.clear()
            await self._quiet.wait()

    def release(self) -> None:
        """The session is over: nothing will be acknowledged any more."""
        self._quiet.set()

    def push_message(self, mid: int, _packet: bytes) -> None:
        """gmqtt sent a message under this id."""
        self._ids.add(mid)

    def remove_message_by_mid(self, mid: int) -> None:
        """The broker acknowledged it."""
        self._ids.discard(mid)
        self._drain()

    def clear(self) -> None:
        """gmqtt forgets an earlier session; there was none."""

    async def wait_empty(self) -> None:
        """gmqtt waits for what an earlier session left over: nothing."""

    def _has_room(self) -> bool:
        return self._writable and len(self._ids) < limits.WINDOW_UNACKED

    def _drain(self) -> None:
        while self._waiting and self._has_room():
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message[0]) + len(message[1])
            self._send(*message)
        if not self.unacked:
            self._quiet.set()
