"""What lies in the spool, by kind: how much, and what has to go when there is too much.

The one rule: the oldest telemetry goes first, and an event only when no telemetry is left. Results are
not here at all: the journal keeps each until it is settled. Pure: no disk, no clock.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from imlmesh_protocol.limits import SPOOL_BYTES, SPOOL_EVENTS, SPOOL_READINGS


class Sort(StrEnum):
    """What a row of the spool holds."""

    EVENTS = "events"
    READINGS = "readings"


_MOST = {Sort.EVENTS: SPOOL_EVENTS, Sort.READINGS: SPOOL_READINGS}


@dataclass(frozen=True, slots=True)
class Row:
    """`count` records in `size` bytes."""

    sort: Sort
    number: int
    count: int
    size: int


class Stock:
    """`rows` are those of the disk, oldest first within each sort."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows: dict[Sort, deque[Row]] = {sort: deque() for sort in Sort}
        self._last = 0
        self.size = 0
        #: records by sort
        self.counts: Counter[Sort] = Counter()
        for row in rows:
            self._keep(row)

    def __len__(self) -> int:
        """Records of all sorts."""
        return self.counts.total()

    def add(self, sort: Sort, count: int, size: int) -> tuple[Row, list[Row]]:
        """A new row, and those that have to go for it, which may be itself."""
        row = Row(sort, self._last + 1, count, size)
        self._keep(row)
        gone: list[Row] = []
        while self.counts[sort] > _MOST[sort]:
            gone.append(self._lose(sort))
        while self.size > SPOOL_BYTES:
            least = next(each for each in (Sort.READINGS, Sort.EVENTS) if self._rows[each])
            gone.append(self._lose(least))
        return row, gone

    def oldest(self, sort: Sort, records: int) -> list[Row]:
        """The oldest rows that together hold at most so many records, but at least one row."""
        found: list[Row] = []
        for row in self._rows[sort]:
            if found and records < row.count:
                break
            found.append(row)
            records -= row.count
        return found

    def remove(self, rows: Iterable[Row]) -> list[Row]:
        """They are no longer needed; returns those that were still there."""
        removed = []
        for row in rows:
            # what goes was the oldest a moment ago, so it is near the front
            if row in self._rows[row.sort]:
                self._rows[row.sort].remove(row)
                self._forget(row)
                removed.append(row)
        return removed

    def _keep(self, row: Row) -> None:
        self._rows[row.sort].append(row)
        self._last = max(self._last, row.number)
        self.counts[row.sort] += row.count
        self.size += row.size

    def _lose(self, sort: Sort) -> Row:
        row = self._rows[sort].popleft()
        self._forget(row)
        return row

    def _forget(self, row: Row) -> None:
        self.counts[row.sort] -= row.count
        self.size -= row.size
