"""Who goes next among many runs that wait for the same nodes.

The one rule: the run that has had the least, weighted by its priority; within a run, first in
first out. A run that begins to wait starts level with the one served last, so it neither starves
others nor claims what it did not ask for. Deliberately absent: nodes.
"""

import heapq
from collections import deque
from collections.abc import Iterator

from imlmesh_orchestrator.core.state import ActionRecord, RunRecord

Entry = tuple[RunRecord, ActionRecord]


def cost_of(priority: int) -> float:
    """What one action counts: two steps of priority double a run's share."""
    return float(2 ** (-priority / 2))


class FairQueue:
    """Ready units of work of many runs."""

    __slots__ = ("_count", "_heap", "_of_run")

    def __init__(self) -> None:
        self._of_run: dict[str, deque[Entry]] = {}
        #: (served, tie-breaker, run) of each run in `_of_run`; `served` may be out of date
        self._heap: list[tuple[float, int, str]] = []
        self._count = 0

    def add(self, run: RunRecord, record: ActionRecord, level: float) -> None:
        """Queue a unit; `level` is what the run served last had had."""
        queue = self._of_run.get(run.run)
        if queue is None:
            run.served = max(run.served, level)
            queue = self._of_run[run.run] = deque()
            self._count += 1
            heapq.heappush(self._heap, (run.served, self._count, run.run))
        queue.append((run, record))

    def first(self) -> Entry | None:
        """Whose turn it is."""
        while self._heap:
            served, place, name = self._heap[0]
            queue = self._of_run[name]
            if not queue:
                heapq.heappop(self._heap)
                del self._of_run[name]
                continue
            now = queue[0][0].served
            if now > served:
                heapq.heapreplace(self._heap, (now, place, name))
                continue
            return queue[0]
        return None

    def pop(self) -> None:
        """Take away what `first` gave."""
        self._of_run[self._heap[0][2]].popleft()

    def __bool__(self) -> bool:
        return self.first() is not None

    def __iter__(self) -> Iterator[Entry]:
        for queue in self._of_run.values():
            yield from queue
