"""The files of an orchestrator with a past, and what a compaction of it is asked to do."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.compaction import Compaction
from imlmesh_orchestrator.store.ledger import LedgerFile
from imlmesh_orchestrator.store.lifecycle import Lifecycle, replay
from imlmesh_orchestrator.store.mover import Mover
from imlmesh_orchestrator.store.reading import Reader
from imlmesh_protocol import limits
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.sqlite import Store
from past_runs import history, told

FILES = ("lifecycle", "output", "input", "metadata")


@dataclass
class Files:
    """All files of an orchestrator, with a history in lifecycle; `old_ms` is when most runs had ended."""

    stores: dict[str, Store]
    readers: dict[str, Reader]
    lifecycle: Lifecycle
    ledger: LedgerFile
    mover: Mover
    old_ms: int

    @classmethod
    async def open(cls, stores: dict[str, Store], readers: dict[str, Reader]) -> "Files":
        """As after a start."""
        marks = (await readers["lifecycle"].ask(replay)).marks
        lifecycle = Lifecycle(stores["lifecycle"], marks)
        ledger = LedgerFile(stores.__getitem__, marks.seq)
        assert await ledger.load(), "lifecycle is older than the ledger"
        clock, reader = ManualClock(), readers["lifecycle"]
        mover = Mover(lifecycle, reader, stores.__getitem__, clock, lambda _: None, ledger)
        return cls(stores, readers, lifecycle, ledger, mover, 0)

    async def again(self) -> "Files":
        opened = await Files.open(self.stores, self.readers)
        opened.old_ms = self.old_ms
        return opened

    async def commit(self, *changes: c.Change) -> None:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.lifecycle.commit(list(changes), done.set_result)
        assert await done is None

    async def move(self) -> None:
        """Copy and tell all; what was copied leaves outflow with a commit."""
        while await self.mover.move():
            pass

    def compaction(self, told: Callable[[], int] | None = None) -> Compaction:
        known = told or (lambda: self.ledger.tip.seq)
        clock = ManualClock(self.old_ms + limits.COMPACT_AFTER_MS)
        return Compaction(self.lifecycle, self.readers["lifecycle"], clock, known)

    async def compact(self) -> None:
        compaction = self.compaction()
        while await compaction.once():
            pass

    async def told(self) -> dict[str, Any]:
        return await told(self.readers["lifecycle"], self.lifecycle.last_seq)

    async def rows(self, sql: str, *values: Any, file: str = "lifecycle") -> list[Any]:
        return await self.readers[file].ask(lambda db: db.execute(sql, values).fetchall())

    async def write(self, sql: str, *values: Any) -> None:
        """Beside everything else, into lifecycle."""
        await self.lifecycle.rewrite(lambda database: database.execute(sql, values) and None)

    async def remember(self) -> None:
        """A history, copied and told, with a last change that is no run's."""
        stage, self.old_ms = history()
        for first in range(0, len(stage.changes), 40):
            await self.commit(*stage.changes[first : first + 40])
        await self.move()
        await self.commit(c.GroupChanged(stage.now_ms, "q", "all", ("pi-1",)))
        await self.move()
