"""Who goes next among many runs that wait for the same nodes.

The one rule: the run that has had the least, weighted by its priority; within a run, first in
first out. A run that begins to wait starts level with the least served one that waits, so it
neither starves others nor claims what it did not ask for. Deliberately absent: nodes.
"""

import heapq
from collections import deque

from imlmesh_orchestrator.core.state import ActionRecord, RunRecord
from imlmesh_protocol import limits

Entry = tuple[RunRecord, ActionRecord]


def cost_of(priority: int) -> float:
    """What one action counts: two steps of priority double a run's share."""
    return float(2 ** (-priority / 2))


class FairQueue:
    """Ready units of work of many runs."""

    __slots__ = ("_count", "_heap", "_of_run", "_sweep_at")

    def __init__(self) -> None:
        self._of_run: dict[str, deque[Entry]] = {}
        #: (served, tie-breaker, run, its queue); `served` may be out of date
        self._heap: list[tuple[float, int, RunRecord, deque[Entry]]] = []
        self._count = 0
        self._sweep_at = limits.QUEUED_RUNS_SWEPT

    def add(self, run: RunRecord, record: ActionRecord, level: float) -> None:
        """Queue a unit; `level` is what the run served last had had."""
        queue = self._of_run.get(run.run)
        if queue is None:
            if len(self) >= self._sweep_at:
                self._sweep()
            # level with whoever waits here, or with the last one served where nobody does
            run.served = max(run.served, self._heap[0][0] if self._heap else level)
            queue = self._of_run[run.run] = deque()
            self._count += 1
            heapq.heappush(self._heap, (run.served, self._count, run, queue))
        queue.append((run, record))

    def _sweep(self) -> None:
        """Runs that have ended, most of them cancelled, wait for nothing."""
        self._heap = [row for row in self._heap if not row[2].ended]
        heapq.heapify(self._heap)
        self._of_run = {run.run: queue for _, _, run, queue in self._heap}
        self._sweep_at = max(limits.QUEUED_RUNS_SWEPT, 2 * len(self._heap))

    def __len__(self) -> int:
        """How many runs wait, or waited when they ended."""
        return len(self._heap)

    def entries(self) -> list[Entry]:
        """All that wait, in no order."""
        return [entry for _, _, _, queue in self._heap for entry in queue]

    def first(self) -> Entry | None:
        """Whose turn it is."""
        heap = self._heap
        while heap:
            served, place, run, queue = heap[0]
            if not queue:
                heapq.heappop(heap)
                del self._of_run[run.run]
            elif len(heap) > 1 and run.served > served + limits.SERVED_AT_ONCE:
                heapq.heapreplace(heap, (run.served, place, run, queue))
            else:
                return queue[0]
        return None

    def take(self) -> None:
        """Take away what `first` gave: it waits no more."""
        self._heap[0][3].popleft()[1].queued = False

    def put_aside(self) -> Entry:
        """Take away what `first` gave, which waits elsewhere."""
        return self._heap[0][3].popleft()
