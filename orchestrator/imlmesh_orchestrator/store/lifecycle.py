"""The truth: commits changes with their projections, and gives them back after a restart.

The one rule: one transaction for each step of the engine; who watches hears of a change only when
it is committed, in the order of seq. Deliberately absent: deciding, and questions of people.
"""

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.codec import decode
from imlmesh_orchestrator.store.projections import Batch, Source, Statement
from imlmesh_orchestrator.store.recent import Recent
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.states import Liveness
from imlmesh_runtime.rows import Many, write_rows
from imlmesh_runtime.sqlite import Done, Store, Work, run

log = logging.getLogger(__name__)

Numbered = tuple[int, c.Change]
Watcher = Callable[[Sequence[Numbered]], None]

_COLUMNS = "run, at_ms, cause, kind, version, body"
_KNOWN = f"""SELECT {_COLUMNS} FROM changes WHERE seq IN (
    SELECT max(seq) FROM epochs UNION ALL
    SELECT seq FROM enrolled UNION ALL SELECT seq FROM certificates UNION ALL
    SELECT seq FROM tokens UNION ALL SELECT seq FROM joins UNION ALL
    SELECT seq FROM join_window UNION ALL SELECT seq FROM aliases UNION ALL
    SELECT seq FROM grants UNION ALL
    SELECT seq FROM escalations UNION ALL SELECT seq FROM permits UNION ALL
    SELECT described_seq FROM nodes UNION ALL SELECT liveness_seq FROM nodes UNION ALL
    SELECT seq FROM admissions UNION ALL
    SELECT seq FROM labels UNION ALL SELECT seq FROM groups UNION ALL
    SELECT seq FROM memory UNION ALL SELECT seq FROM nonces UNION ALL
    SELECT seq FROM doubts) ORDER BY seq"""  # noqa: S608
_OF_OPEN_RUNS = f"""SELECT {_COLUMNS} FROM changes
    WHERE run IN (SELECT run FROM runs WHERE ended_at_ms IS NULL) ORDER BY seq"""  # noqa: S608
_MARKS = """SELECT
    (SELECT coalesce(max(seq), 0) FROM changes),
    (SELECT coalesce(max(at_ms), 0) FROM changes WHERE seq = (SELECT max(seq) FROM changes)),
    (SELECT coalesce(max(epoch), 0) FROM epochs),
    (SELECT coalesce(max(counter), 0) FROM runs),
    (SELECT coalesce(max(counter), 0) FROM approvals),
    (SELECT count(*) FROM outflow),
    (SELECT coalesce(max(seq), 0) FROM outflow)"""


@dataclass(frozen=True, slots=True)
class Marks:
    """How far everything has counted; all 0 in a new file. `at_ms` is that of the last change."""

    seq: int
    at_ms: int
    epoch: int
    run_counter: int
    approval_counter: int
    outflow_rows: int
    outflow_seq: int


@dataclass(frozen=True, slots=True)
class Replay:
    """What `apply` needs after a restart: who is enrolled, nodes, their admissions and labels, groups,
    epoch, memory, nonces, then all of open runs."""

    marks: Marks
    changes: list[c.Change]


def replay(database: sqlite3.Connection) -> Replay:
    """A question for a `Reader` of lifecycle. Ended runs keep their projection alone."""
    known = [decode(*row) for row in database.execute(_KNOWN)]
    changes: list[c.Change] = []
    for change in known:
        # the table of liveness leads from offline to anything else only through online
        if isinstance(change, c.LivenessChanged) and change.liveness is not Liveness.ONLINE:
            changes.append(replace(change, liveness=Liveness.ONLINE))
        if not (isinstance(change, c.GroupChanged) and not change.nodes):
            changes.append(change)
    changes.sort(key=lambda change: not isinstance(change, c.NodeDescribed))
    changes += [decode(*row) for row in database.execute(_OF_OPEN_RUNS)]
    return Replay(read_marks(database), changes)


def read_marks(database: sqlite3.Connection) -> Marks:
    """A question for a `Reader` of lifecycle."""
    return Marks(*database.execute(_MARKS).fetchone())


class Lifecycle:
    """The writing side of lifecycle.db, used from the event loop."""

    def __init__(self, store: Store, marks: Marks) -> None:
        self._store = store
        self._next_seq = marks.seq + 1
        self._watchers: list[Watcher] = []
        self._sources: dict[str, Source] = {}
        #: what nobody who watches has heard of yet, by commit
        self._untold: deque[Sequence[Numbered]] = deque()
        #: digests of plans that this process has stored: a large plan is not written again and again
        self._plans: set[str] = set()
        #: rows on their way to other files, by commit: (seq of the last, at_ms, rows)
        self._flowing: deque[tuple[int, int, int]] = deque()
        if marks.outflow_rows:
            self._flowing.append((marks.outflow_seq, marks.at_ms, marks.outflow_rows))
        self._moved_seq = 0
        #: commits that the ledger does not tell of yet: (seq of the last change, at_ms)
        self._unledgered: deque[tuple[int, int]] = deque()
        if marks.seq:
            self._unledgered.append((marks.seq, marks.at_ms))
        #: for the mover, which would otherwise read again what was just written
        self.recent = Recent(marks.seq)
        #: seq of the last committed change, and of the one before the last commit began
        self.last_seq = self.before_seq = marks.seq
        #: whether a commit that finds the disk full is tried until it fits
        self.patient = False
        #: whether one waits for that now, and who hears when it begins and ends
        self.waits = False
        self.on_wait: Callable[[bool], None] = lambda waits: None
        self._awaiting_try: list[asyncio.Future[None]] = []

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` with (seq, change) of every commit, after it."""
        self._watchers.append(watcher)

    def expect(self, cause: str, source: Source) -> None:
        """Where the plan that `cause` submits was written; kept with its run."""
        self._sources[cause] = source

    def forget(self, cause: str) -> None:
        """The submission of `cause` made no run."""
        self._sources.pop(cause, None)

    def commit(self, changes: list[c.Change], done: Callable[[MeshError | None], None]) -> None:
        """What the engine commits with: one transaction, then `done(error)`, then the watchers."""
        if len(self._plans) > limits.PLANS_KNOWN:
            self._plans.clear()
        batch = Batch(self._plans)
        first = self._next_seq
        numbered = list(enumerate(changes, first))
        for seq, change in numbered:
            batch.add(seq, change, self._sources)
        self._next_seq = first + len(changes)
        statements = batch.statements()
        if self._moved_seq:
            # rows that were copied leave with the next commit, never by one of their own
            statements.append(("DELETE FROM outflow WHERE seq <= ?", [(self._moved_seq,)]))
            self._moved_seq = 0
        rows = len(batch.outflow)

        def ended(_: Any, error: MeshError | None) -> None:
            if error is None:
                self.before_seq, self.last_seq = self.last_seq, self._next_seq - 1
                if changes:
                    self.recent.add(batch.changes, batch.outflow)
                    self._unledgered.append((self.last_seq, changes[-1].at_ms))
                if rows:
                    self._flowing.append((batch.outflow[-1][0], changes[-1].at_ms, rows))
                self._untold.append(numbered)
                # at the latest; whoever lets go of what was decided asks for it earlier
                asyncio.get_running_loop().call_soon(self.tell)
            done(error)

        self._submit(lambda database: _execute(database, statements), ended)

    async def tried(self) -> None:
        """Return when a commit that waits for room was tried again."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        awaiting = [each for each in self._awaiting_try if not each.done()]
        self._awaiting_try = [*awaiting, future]
        await future

    async def rewrite(self, work: Work) -> None:
        """One transaction beside the commits, of what says the same in another way; it waits for no room."""
        await run(self._store, work)

    def _submit(self, work: Work, ended: Done) -> None:
        def done(result: Any, error: MeshError | None) -> None:
            waited, self.waits = self.waits, self.patient and _is_full(error)
            if self.waits != waited:
                log.warning("lifecycle waits for room: %s", error or "it has it")
                self.on_wait(self.waits)
            if not self.waits:
                ended(result, error)
                return
            again = asyncio.get_running_loop().call_later
            again(limits.STORE_RETRY_MS / 1_000, self._submit, work, ended)
            awaiting, self._awaiting_try = self._awaiting_try, []
            for each in awaiting:
                if not each.done():
                    each.set_result(None)

        self._store.submit(work, done)

    def tell(self) -> None:
        """Let those who watch hear of what was committed."""
        while self._untold:
            numbered = self._untold.popleft()
            for watcher in self._watchers:
                try:
                    watcher(numbered)
                except Exception:
                    # what is stored and sent does not depend on who watches
                    log.exception("a watcher failed")

    def moved(self, seq: int) -> None:
        """The mover copied everything up to `seq`."""
        self._moved_seq = seq
        while self._flowing and self._flowing[0][0] <= seq:
            self._flowing.popleft()

    def ledgered(self, seq: int) -> None:
        """The ledger tells of everything up to `seq`."""
        while self._unledgered and self._unledgered[0][0] <= seq:
            self._unledgered.popleft()

    def unledgered(self, now_ms: int) -> tuple[int, int]:
        """(changes that the ledger does not tell of yet, age of the oldest in ms)."""
        if not self._unledgered:
            return 0, 0
        # the first commit may be told of in part: it counts as a whole
        first, at_ms = self._unledgered[0]
        return self.last_seq - first + 1, max(0, now_ms - at_ms)

    def outflow(self, now_ms: int) -> tuple[int, int]:
        """(rows that wait for the mover, age of the oldest in ms)."""
        if not self._flowing:
            return 0, 0
        return sum(rows for _, _, rows in self._flowing), max(0, now_ms - self._flowing[0][1])


def _is_full(error: MeshError | None) -> bool:
    return error is not None and error.code == "store.full"


def _execute(database: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    for sql, rows in statements:
        if isinstance(sql, Many):
            write_rows(database, sql, rows)
        else:
            database.executemany(sql, rows)
