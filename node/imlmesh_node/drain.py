"""The way from the spool to the orchestrator, behind everything that is live.

The one rule: results first, then events, then telemetry, and none of it while the link has live messages
to carry. A row leaves the disk when the broker has taken what was in it, so a connection that breaks
costs a repetition and no record. Deliberately absent: the timer; `turn` is called from time to time.
"""

from collections.abc import Callable
from typing import Protocol

from imlmesh_node.spool import Kept, Spool
from imlmesh_node.stock import Row, Sort
from imlmesh_protocol import limits

_AT_ONCE = {
    Sort.EVENTS: limits.SPOOL_EVENTS_ROW,
    Sort.READINGS: limits.TELEMETRY_MESSAGE,
}


class Way(Protocol):
    """What a drain asks of session, link and agent."""

    @property
    def session(self) -> int | None:
        """Number of the session that is open."""

    @property
    def unacked(self) -> int:
        """Messages that the broker has not acknowledged."""

    @property
    def unsettled(self) -> int:
        """Results that nobody has settled."""


class Drain:
    """`turn` is given milliseconds of any clock that does not run backwards."""

    def __init__(self, spool: Spool, way: Way, send: Callable[[Sort, list[Kept]], None]) -> None:
        self._spool = spool
        self._way = way
        self._send = send
        self._session: int | None = None
        self._since_ms = 0
        self._results_gone = False
        #: read or sent and not yet known to have arrived at the broker
        self._sent: list[Row] = []
        self._sent_ms = 0
        self._reading = False

    def turn(self, now_ms: int) -> None:
        """Send a little, if now is a good moment."""
        way = self._way
        if way.session is None or way.session != self._session:
            # what was under way when a session ended goes out again
            self._session, self._since_ms = way.session, now_ms
            self._results_gone, self._sent, self._reading = False, [], False
        if way.session is None or not len(self._spool.stock) or self._reading:
            return
        if not self._results_gone:
            waited_ms = now_ms - self._since_ms
            self._results_gone = not way.unsettled or waited_ms >= limits.SPOOL_PATIENCE_MS
            return
        if self._sent:
            if way.unacked and now_ms - self._sent_ms < limits.SPOOL_ACKED_MS:
                return
            self._spool.forget(self._sent)
            self._sent = []
        if way.unacked <= limits.SPOOL_UNACKED:
            self._send_next(now_ms)

    def _send_next(self, now_ms: int) -> None:
        stock, session = self._spool.stock, self._session
        sort = Sort.EVENTS if stock.counts[Sort.EVENTS] else Sort.READINGS
        rows = stock.oldest(sort, _AT_ONCE[sort])
        self._reading = True

        def read(records: list[Kept]) -> None:
            if session != self._way.session or session != self._session:
                return  # it ended meanwhile; a later one begins anew
            self._reading = False
            self._sent, self._sent_ms = rows, now_ms
            self._send(sort, records)

        self._spool.read(rows, read)
