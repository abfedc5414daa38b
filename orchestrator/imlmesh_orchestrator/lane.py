"""Telemetry that came and that nobody has looked at yet: behind everything else, and fair.

The one rule: nodes take turns, and each has room of its own; who sends too much loses its own
messages, unread, and nobody else's. A few milliseconds of it at a time, so that results never wait longer.
Deliberately absent: what a message says; it is not even verified here.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from imlmesh_orchestrator.share import Shares
from imlmesh_protocol import limits
from imlmesh_protocol.wire.topics import Topic
from imlmesh_runtime.clock import boot_ms

_FULL_S = 0.01  # the writer needs about that long to make room
_TURN_NS = limits.TELEMETRY_TURN_MS * 1_000_000


class _Waiting:
    """What one node sent, oldest first."""

    __slots__ = ("messages", "size")

    def __init__(self) -> None:
        self.messages: deque[tuple[Topic, bytes]] = deque()
        self.size = 0


class Lane:
    """Calls `take(topic, payload)` for each message, unless `is_full()`, and `lose(node)` for each
    that is dropped."""

    def __init__(
        self,
        take: Callable[[Topic, bytes], None],
        lose: Callable[[str], None],
        is_full: Callable[[], bool],
    ) -> None:
        self._take = take
        self._is_full = is_full
        self._lose = lose
        self._shares = Shares(limits.TELEMETRY_MESSAGES_PER_S, limits.TELEMETRY_MESSAGES_BURST)
        self._nodes: OrderedDict[str, _Waiting] = OrderedDict()
        self._size = 0
        self._scheduled = False

    def put(self, topic: Topic, payload: bytes) -> None:
        """Queue a message of the node that `topic` names, if it does not send too many."""
        if not self._shares.take(topic.name, 1, boot_ms()):
            self._lose(topic.name)
            return
        waiting = self._nodes.get(topic.name)
        if waiting is None:
            waiting = self._nodes[topic.name] = _Waiting()
        waiting.messages.append((topic, payload))
        self._grow(waiting, len(payload))
        while waiting.messages and (
            waiting.size > limits.TELEMETRY_LANE_NODE_BYTES
            or self._size > limits.TELEMETRY_LANE_BYTES
        ):
            _, dropped = waiting.messages.popleft()
            self._grow(waiting, -len(dropped))
            self._lose(topic.name)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def empty(self) -> None:
        """Take all that waits, now."""
        while self._nodes:
            self._take_one()

    def _turn(self) -> None:
        pause_s = 0.0
        end_ns = time.monotonic_ns() + _TURN_NS
        try:
            while self._nodes and time.monotonic_ns() < end_ns:
                if self._is_full():
                    # what comes meanwhile costs nothing but its bytes
                    pause_s = _FULL_S
                    break
                self._take_one()
        finally:
            # also behind a fault of ours, which the loop tells: others still want their turn
            self._scheduled = bool(self._nodes)
            if self._scheduled:
                asyncio.get_running_loop().call_later(pause_s, self._turn)

    def _take_one(self) -> None:
        node, waiting = self._nodes.popitem(last=False)
        if not waiting.messages:
            return
        topic, payload = waiting.messages.popleft()
        self._grow(waiting, -len(payload))
        if waiting.messages:
            self._nodes[node] = waiting
        self._take(topic, payload)

    def _grow(self, waiting: _Waiting, size: int) -> None:
        waiting.size += size
        self._size += size
