"""What the orchestrator committed, read from its store, with the time at which it could be seen.

The one rule: times are those of one monotonic clock, the watcher's own; the processes that are broken are
not asked. It reads on while no orchestrator lives. Deliberately absent: what it means.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.codec import FORMS, decode
from imlmesh_protocol import limits

_EVERY_S = 0.02
_PAGE = 2_000
_WATCHED = (
    c.EpochRaised,
    c.LivenessChanged,
    c.VerdictsFrozen,
    c.VerdictsResumed,
    c.DispatchPlanned,
    c.DispatchAccepted,
    c.ResultTaken,
    c.ResultKept,
    c.ActionUnknown,
    c.ApprovalAsked,
    c.RunEnded,
)
_KINDS = ", ".join(f"'{FORMS[kind].kind}'" for kind in _WATCHED)
_NEW = f"""SELECT seq, run, at_ms, cause, kind, version, body FROM changes
    WHERE seq > ? AND kind IN ({_KINDS}) ORDER BY seq LIMIT {_PAGE}"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Seen:
    """A change and when it was seen, in seconds of `time.monotonic`."""

    at_s: float
    change: c.Change


class Watcher:
    """Reads `store` (lifecycle.db) until it is closed; `seen` is all of it, in order."""

    def __init__(self, store: Path) -> None:
        self.seen: list[Seen] = []
        self._store = store
        self._seq = 0
        self._reading = asyncio.get_running_loop().create_task(self._read_on())

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])

    def since(self, at_s: float) -> Iterator[Seen]:
        """What was seen from then on."""
        for index in range(len(self.seen) - 1, -1, -1):
            if self.seen[index].at_s < at_s:
                return iter(self.seen[index + 1 :])
        return iter(self.seen)

    async def first(
        self,
        wanted: Callable[[c.Change], bool],
        since_s: float,
        within_s: float = limits.CHAOS_SEEN_S,
    ) -> float | None:
        """Seconds from `since_s` to the first such change; None when `within_s` pass without one."""
        while True:
            now_s = time.monotonic()
            for seen in self.since(since_s):
                if wanted(seen.change):
                    return seen.at_s - since_s
            if now_s - since_s > within_s:
                return None
            await asyncio.sleep(_EVERY_S)

    async def _read_on(self) -> None:
        while True:
            # between two orchestrators the file may be locked, and at first there is none
            with contextlib.suppress(sqlite3.Error):
                self._read()
            await asyncio.sleep(_EVERY_S)

    def _read(self) -> None:
        database = sqlite3.connect(f"file:{self._store}?mode=ro", uri=True, timeout=0)
        with contextlib.closing(database):
            rows = database.execute(_NEW, (self._seq,)).fetchall()
        now_s = time.monotonic()
        for seq, *row in rows:
            self.seen.append(Seen(now_s, decode(*row)))
            self._seq = seq
