"""The files that are copied into, each made with its first row.

The one rule: whoever needs a file asks here, so that each has one writer. Deliberately absent:
lifecycle, which the engine owns.
"""

from collections.abc import Callable
from pathlib import Path

from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_runtime.sqlite import Database, Store

OpenStore = Callable[[str], Store]

# NORMAL: what a power cut loses is telemetry, or is copied again from lifecycle. The ledger must not lose what a
# seal speaks of: made again it would have other salts, and its witnesses would call it a fork
_FILES = {"input": "NORMAL", "output": "NORMAL", "metadata": "FULL"}


class Files:
    """output.db, input.db and metadata.db of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Database] = {}

    def open_made(self) -> None:
        """Open what an earlier start made: checking a large file must not hold up the mesh later."""
        for file in _FILES:
            if self.has(file):
                self.store(file)

    def has(self, file: str) -> bool:
        """Whether the file was made."""
        return self.path(file).exists()

    def path(self, file: str) -> Path:
        return self._folder / f"{file}.db"

    def store(self, file: str) -> Store:
        """The writer of `output`, `input` or `metadata`; StoreError when the file cannot be opened."""
        database = self._open.get(file)
        if database is None:
            database = Database(self.path(file), migrations(file), synchronous=_FILES[file])
            self._open[file] = database
        return database

    async def close(self) -> None:
        for database in self._open.values():
            await database.close()
        self._open.clear()
