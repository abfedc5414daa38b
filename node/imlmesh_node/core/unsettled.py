"""Results that nobody has settled: when each was last sent, and which chunk of the large ones is next.

The one rule: a result stays here until an ack names it. Deliberately absent: the results themselves,
which are the journal's.
"""

from collections.abc import Iterable

from imlmesh_node.core.bulks import Bulks
from imlmesh_node.core.changes import ResultRecord
from imlmesh_protocol.limits import NODE_UNSETTLED, NODE_UNSETTLED_BYTES, RESEND_MS


class Unsettled:
    """Dispatch ids, the one sent longest ago first; times in ms."""

    def __init__(self, results: Iterable[ResultRecord | None]) -> None:
        self._sent_ms: dict[str, int] = {}
        self.bulks = Bulks()
        for result in results:
            if result is not None:
                self.keep(result, 0)

    def __len__(self) -> int:
        return len(self._sent_ms)

    def __contains__(self, id: str) -> bool:
        return id in self._sent_ms

    @property
    def full(self) -> bool:
        """Whether nothing may be taken on until some of it is settled."""
        return len(self._sent_ms) >= NODE_UNSETTLED or self.bulks.size >= NODE_UNSETTLED_BYTES

    @property
    def due_ms(self) -> int | None:
        """When the first of them is to be sent again."""
        oldest_ms = next(iter(self._sent_ms.values()), None)
        return None if oldest_ms is None else oldest_ms + RESEND_MS

    def keep(self, result: ResultRecord, at_ms: int) -> None:
        self._sent_ms[result.dispatch] = at_ms
        if result.bulk is not None:
            self.bulks.add(result.dispatch, result.bulk.size)

    def sent(self, id: str, at_ms: int) -> None:
        """It goes out once more, if it is one of them."""
        if self._sent_ms.pop(id, None) is not None:
            self._sent_ms[id] = at_ms

    def settle(self, id: str) -> bool:
        """Whether it was one of them, which now it is no more."""
        self.bulks.forget(id)
        return self._sent_ms.pop(id, None) is not None

    def ids(self) -> tuple[str, ...]:
        return tuple(self._sent_ms)

    def due(self, at_ms: int) -> list[str]:
        """Those that are to be sent again."""
        return [id for id, sent_ms in self._sent_ms.items() if sent_ms + RESEND_MS <= at_ms]
