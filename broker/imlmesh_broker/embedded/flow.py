"""What is on its way to one client: bytes to write, acknowledgements awaited, messages that wait.

The one rule: messages keep their order. For a client that reads slowly QoS 0 is dropped first, and
QoS 1 beyond limits.BROKER_QUEUED_BYTES ends it. Pure. Deliberately absent: sending again.
"""

from collections import deque

from imlmesh_broker.embedded import codec
from imlmesh_protocol import limits

_JOINED_BYTES = 256 * 1024  # in `unsent` before messages wait
_WAITING_BYTES = 128  # what a message that waits costs beside its payload
_PACKET_IDS = 65_535


class Flow:
    """The way to one client. Whoever uses it writes `unsent` away, and then calls `go_on`."""

    def __init__(self) -> None:
        self.unsent = bytearray()
        self.waiting_bytes = 0
        self.dropped = 0
        self.is_open = True
        self._awaited: set[int] = set()
        self._waiting: deque[tuple[bytes, bytes, int, bool, int]] = deque()
        self._last_id = 0

    def deliver(self, topic: bytes, payload: bytes, qos: int, retain: bool = False) -> bool:
        """Take one message; False when the client is too slow to be kept.

        A retained one is kept elsewhere anyway, so while it waits it costs its place alone.
        """
        if not self._waiting and self._may_send(qos):
            self._send(topic, payload, qos, retain)
            return True
        if not qos and self.waiting_bytes > limits.BROKER_QUEUED_QOS0_BYTES:
            self.dropped += 1
            return True
        cost = _WAITING_BYTES if retain else _WAITING_BYTES + len(payload)
        self._waiting.append((topic, payload, qos, retain, cost))
        self.waiting_bytes += cost
        return self.waiting_bytes <= limits.BROKER_QUEUED_BYTES

    def acknowledge(self, packet_id: int) -> None:
        """The client has it; an id that is not awaited means nothing. Then call `go_on`."""
        self._awaited.discard(packet_id)

    def go_on(self) -> None:
        """Send what waits and may go now."""
        while self._waiting and self._may_send(self._waiting[0][2]):
            topic, payload, qos, retain, cost = self._waiting.popleft()
            self.waiting_bytes -= cost
            self._send(topic, payload, qos, retain)

    def _may_send(self, qos: int) -> bool:
        return (
            self.is_open
            and (not qos or len(self._awaited) < limits.BROKER_INFLIGHT_MESSAGES)
            and len(self.unsent) < _JOINED_BYTES
        )

    def _send(self, topic: bytes, payload: bytes, qos: int, retain: bool) -> None:
        packet_id = 0
        if qos:
            packet_id = self._last_id % _PACKET_IDS + 1
            while packet_id in self._awaited:
                packet_id = packet_id % _PACKET_IDS + 1
            self._last_id = packet_id
            self._awaited.add(packet_id)
        self.unsent += codec.publish(topic, payload, packet_id, retain)
