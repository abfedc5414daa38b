"""When something must be looked at again.

The one rule: entries are never removed; whoever takes one asks the state whether it still means
anything. That makes setting a deadline cheap and forgetting one impossible.
"""

import heapq
from enum import IntEnum


class Deadline(IntEnum):
    """What to look at; the key of an entry names it."""

    NODE = 1  # a node: still heard?
    ACCEPT = 2  # dispatches sent in one turn: accepted?
    FINISH = 3  # a dispatch: should have ended long ago
    REROUTE = 4  # a dispatch of a lost node: its lease is over
    EXPIRY = 5  # a run: its time to live
    CANCEL = 6  # a run: nodes should have confirmed
    APPROVAL = 7  # an approval: nobody answered


Key = str | tuple[str, ...]


class Deadlines:
    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Deadline, Key]] = []
        self._count = 0

    def add(self, at_ms: int, kind: Deadline, key: Key) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at_ms, self._count, kind, key))

    def take_due(self, now_ms: int) -> list[tuple[Deadline, Key]]:
        """All entries that are due, in the order of their times."""
        due = []
        while self._heap and self._heap[0][0] <= now_ms:
            _, _, kind, key = heapq.heappop(self._heap)
            due.append((kind, key))
        return due

    def next_ms(self) -> int | None:
        return self._heap[0][0] if self._heap else None
