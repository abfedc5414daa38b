"""How much one node may send: so many a second in the long run, and so many at once.

The one rule: each node has a share of its own, so that none can use up another's. Deliberately
absent: the clock; the caller says what time it is.
"""

from dataclasses import dataclass

from imlmesh_protocol import limits


@dataclass(slots=True)
class _Left:
    left: float
    at_ms: int


class Shares:
    """Of all nodes, each with `per_s` and `at_once`; a node that was never heard of has all of it."""

    def __init__(self, per_s: float, at_once: int) -> None:
        self._per_ms = per_s / 1_000
        self._at_once = at_once
        self._nodes: dict[str, _Left] = {}

    def take(self, node: str, count: int, at_ms: int) -> bool:
        """Use up `count`; False, and nothing used, when the node has less."""
        room = self._nodes.get(node)
        if room is None:
            if len(self._nodes) >= limits.ENROLLED_NODES:
                # names that nobody has enrolled come by way of a broker alone, which is not trusted
                del self._nodes[next(iter(self._nodes))]
            room = self._nodes[node] = _Left(self._at_once, at_ms)
        grown = room.left + (at_ms - room.at_ms) * self._per_ms
        room.left, room.at_ms = min(self._at_once, grown), at_ms
        if room.left < count:
            return False
        room.left -= count
        return True
