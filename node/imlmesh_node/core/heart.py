"""When to beat, and which beat was answered: what all leases of this node count from.

The one rule: an answer renews from the first *sending* of the beat, never from its own arrival, so
that the node's idea of a lease always ends before the orchestrator's. Until it is answered a beat
keeps its number: whoever hears the same one again and again knows that this node hears nothing.
"""


class Heart:
    """Numbers beats and remembers when the last one was first sent; times in ms."""

    def __init__(self, interval_ms: int) -> None:
        self._interval_ms = interval_ms
        self._number = 0
        #: first sending of the beat that waits for its answer
        self._sent_ms: int | None = None
        self.next_ms = 0
        #: sending of the last answered beat, and of the birth with which this session began; one that
        #: somebody asked for later may follow work that was sent before it, and lay in our socket
        self.answered_ms = 0
        self.born_ms = 0

    def beat(self, at_ms: int, *, anew: bool = False) -> int:
        """The number of the beat sent now; it is repeated early unless an answer comes.

        With a birth it begins `anew`: whoever hears that has heard no other beat of this session.
        """
        if self._sent_ms is None or anew:
            self._number += 1
            self._sent_ms = at_ms
        self.next_ms = at_ms + self._interval_ms // 3
        return self._number

    def answered(self, number: int) -> None:
        """Beat `number` was answered; unless it is the one that waits for that, it says nothing.

        After a while without answers the next beat goes out at once: it tells that this one came.
        """
        if self._sent_ms is None or number != self._number:
            return
        heard_ms = max(
            self.answered_ms, self.born_ms
        )  # a birth follows an answer, to another question
        was_deaf = self._sent_ms - heard_ms > 2 * self._interval_ms
        self.answered_ms = max(self.answered_ms, self._sent_ms)
        self.next_ms = self._sent_ms + (0 if was_deaf else self._interval_ms)
        self._sent_ms = None

    def scatter(self, dice: int) -> None:
        """Come a little earlier: a fleet that comes back together must not beat in step."""
        self.next_ms -= dice % (self._interval_ms // 6)
