"""When something must be looked at again.

The one rule: nobody takes an entry back; whoever finds one asks the state whether it still means
anything. That makes setting a deadline cheap and forgetting one impossible.
"""

import heapq
from collections.abc import Callable
from enum import IntEnum

from imlmesh_protocol import limits


class Deadline(IntEnum):
    """What to look at; the key of an entry names it."""

    NODE = 1  # a node: still heard?
    ACCEPT = 2  # dispatches sent within a moment: accepted?
    FINISH = 3  # a dispatch: should have ended long ago
    REROUTE = 4  # a dispatch of a lost node: its lease is over
    EXPIRY = 5  # a run: its time to live
    CANCEL = 6  # a run: nodes should have confirmed
    APPROVAL = 7  # an approval: nobody answered
    INVENTORY = 8  # a node: has it answered what it holds?
    RETRY = 9  # (run, unit): its next try
    START = 10  # a run: its not_before
    ADMISSION = 11  # a node: the time of its admission is over
    PROBE = 12  # a node on probation: has it answered?
    STRAGGLER = 13  # a dispatch that may be copied: does it take too long?
    PERMIT = 14  # a permit: its time is over
    PERMITS = 15  # a node: does it hold the permits that it should?


Key = str | tuple[str, ...] | list[str]


class Deadlines:
    """`matters(kind, key)` tells whether an entry still means anything."""

    def __init__(self, matters: Callable[[Deadline, Key], bool]) -> None:
        self._heap: list[tuple[int, int, Deadline, Key]] = []
        self._count = 0
        self._matters = matters
        self._sweep_at = limits.DEADLINES_SWEPT
        self._gathered: list[str] = []
        self._gathered_ms = 0

    def add(self, at_ms: int, kind: Deadline, key: Key) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at_ms, self._count, kind, key))
        if len(self._heap) >= self._sweep_at:
            self._heap = [entry for entry in self._heap if self._matters(entry[2], entry[3])]
            heapq.heapify(self._heap)
            self._sweep_at = max(limits.DEADLINES_SWEPT, 4 * len(self._heap))
            self._gathered_ms = 0  # the entry that was gathered for may be among the swept

    def add_sent(self, at_ms: int, dispatches: list[str]) -> None:
        """Look whether these were accepted, at this time or a moment later."""
        due_ms = -(-at_ms // limits.ACCEPT_GATHER_MS) * limits.ACCEPT_GATHER_MS
        if due_ms == self._gathered_ms:
            self._gathered += dispatches
            return
        self._gathered = [*dispatches]
        self.add(due_ms, Deadline.ACCEPT, self._gathered)
        self._gathered_ms = due_ms

    def __len__(self) -> int:
        return len(self._heap)

    def take_due(self, now_ms: int) -> list[tuple[Deadline, Key]]:
        """All entries that are due, in the order of their times."""
        due = []
        while self._heap and self._heap[0][0] <= now_ms:
            _, _, kind, key = heapq.heappop(self._heap)
            due.append((kind, key))
        return due

    def next_ms(self) -> int | None:
        return self._heap[0][0] if self._heap else None
