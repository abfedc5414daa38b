"""When to beat, and which beat was answered: what all leases of this node count from.

The one rule: an answer renews from the *sending* of the beat, never from its own arrival, so that
the node's idea of a lease always ends before the orchestrator's.
"""

from imlmesh_protocol.limits import BEATS_REMEMBERED


class Heart:
    """Numbers beats and remembers when each was sent; times in ms."""

    def __init__(self, interval_ms: int) -> None:
        self._interval_ms = interval_ms
        self._number = 0
        self._sent_ms: dict[int, int] = {}
        self.next_ms = 0
        #: sending of the last answered beat, or the begin of the session
        self.answered_ms = 0

    def beat(self, at_ms: int) -> int:
        """The number of the beat sent now; it is repeated early unless an answer comes."""
        self._number += 1
        self._sent_ms[self._number] = at_ms
        if len(self._sent_ms) > BEATS_REMEMBERED:
            del self._sent_ms[next(iter(self._sent_ms))]
        self.next_ms = at_ms + self._interval_ms // 3
        return self._number

    def answered(self, number: int) -> None:
        """Beat `number` was answered; one that is not remembered is ignored."""
        sent_ms = self._sent_ms.get(number)
        if sent_ms is None:
            return
        self.answered_ms = max(self.answered_ms, sent_ms)
        self._sent_ms = {n: at for n, at in self._sent_ms.items() if n > number}
        if not self._sent_ms:
            self.next_ms = sent_ms + self._interval_ms

    def met(self, at_ms: int) -> None:
        """The orchestrator answered this session's first question: as good as an answered beat."""
        self.answered_ms = max(self.answered_ms, at_ms)

    def scatter(self, dice: int) -> None:
        """Come a little earlier: a fleet that comes back together must not beat in step."""
        self.next_ms -= dice % (self._interval_ms // 6)
