"""Questions to a file, beside its writer: what views, replay and the mover read with.

The one rule: a reader never writes and never waits on the event loop; each question sees one
moment of the file. Deliberately absent: what is asked.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from imlmesh_protocol.errors import StoreError
from imlmesh_runtime.sqlite import MemoryStore, connect

T = TypeVar("T")
Question = Callable[[sqlite3.Connection], T]


class Reader(Protocol):
    """Answers questions about one file."""

    async def ask(self, question: Question[T]) -> T:
        """What `question` returns for the file as it is now; `store.failed` when unreadable."""
        ...

    def close(self) -> None:
        """Ask nothing any more."""
        ...


class FileReader:
    """Reads through a connection of its own, in a thread; one question at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._turn = asyncio.Lock()
        # a question goes on in its thread when nobody waits for it any more: the next one and
        # `close` must still find the connection free
        self._using = threading.Lock()

    async def ask(self, question: Question[T]) -> T:
        async with self._turn:
            return await asyncio.to_thread(self._ask, question)

    def close(self) -> None:
        with self._using:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _ask(self, question: Question[T]) -> T:
        with self._using:
            if self._database is None:
                self._database = connect(self._path, read_only=True)
            try:
                return _moment(self._database, question)
            except sqlite3.Error as exc:
                raise StoreError("store.failed", f"{self._path.name}: {exc}") from exc


class MemoryReader:
    """Reads the memory twin, at once."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def ask(self, question: Question[T]) -> T:
        return _moment(self._store.database, question)

    def close(self) -> None:
        return None


class FailingReader:
    """The twin that can read nothing."""

    async def ask(self, question: Question[Any]) -> Any:
        raise StoreError("store.failed", "this store always fails")

    def close(self) -> None:
        return None


def _moment(database: sqlite3.Connection, question: Question[T]) -> T:
    database.execute("BEGIN")
    try:
        return question(database)
    finally:
        database.execute("COMMIT")
