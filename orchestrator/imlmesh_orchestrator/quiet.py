"""How many heartbeats wait to be read, and whether they wait too long.

The one rule: what one node sends fills its own room first. Beats that waited long here were no silence of
their nodes, nor of those whose beats are still behind them. Deliberately absent: the beats themselves.
"""

from collections import Counter

from imlmesh_protocol import limits
from imlmesh_protocol.errors import ProtocolError


class Quiet:
    """By the node that the topic names; nobody has looked at a signature yet."""

    def __init__(self) -> None:
        self._nodes: Counter[str] = Counter()
        self._count = self._bytes = self._late_ms = 0

    def came(self, node: str, size: int) -> None:
        """One more waits; ProtocolError `link.full` when it must not."""
        if (
            self._nodes[node] >= limits.HEARTBEATS_WAITING_NODE
            or self._count >= limits.HEARTBEATS_WAITING
            or self._bytes + size > limits.HEARTBEATS_WAITING_BYTES
        ):
            raise ProtocolError("link.full", "too many heartbeats wait")
        self._count += 1
        self._bytes += size
        self._nodes[node] += 1

    def read(self, node: str, size: int, at_ms: int, waited_ms: int) -> bool:
        """One waits no more; whether that took so long that nobody may be judged, once a second."""
        self._count -= 1
        self._bytes -= size
        self._nodes[node] -= 1
        if not self._nodes[node]:
            del self._nodes[node]
        if min(waited_ms, at_ms - self._late_ms) < limits.TICK_LATE_MS:
            return False
        self._late_ms = at_ms
        return True
