"""One SQLite file, one writer thread: how orchestrator and node remember.

The one rule: all writes of a file go through its one writer, one transaction for each piece of
work, and `done` is called on the event loop only after COMMIT returned. Readers use connections
of their own. Deliberately absent: any idea of what the tables mean.
"""

import asyncio
import contextlib
import os
import queue
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from imlmesh_protocol.errors import MeshError, StoreError
from imlmesh_protocol.limits import FREE_SPACE_BYTES, FREE_SPACE_PART, WAL_PART, WAL_PRESIZE_BYTES

Work = Callable[[sqlite3.Connection], Any]
Done = Callable[[Any, MeshError | None], None]

# a little below the pre-sized WAL of 4 MiB: it is recycled instead of growing, and the commit that
# copies it back, ten times as long as another, is rare
_AUTOCHECKPOINT_BYTES = 3_686_400
_LEAST_PAGES = 64
# A commit of a few rows writes a page for each table that it touches, and SD cards wear by what is written:
# small pages halve that and are a little quicker; 64 KB in a single row take a third longer.
_PAGE_BYTES, _SMALL_PAGE_BYTES = 4_096, 1_024
_BUSY_MS = 5_000
# a commit longer than this would delay heartbeats and timers if it ran on the loop
_QUICK_NS = 3_000_000
# doubt about the disk: a slow transaction adds, a quick one takes away; so one pause of the machine
# changes nothing, and a slow disk is noticed at its third commit
_SLOW_ADDS = 4
_TOO_MUCH = 9
_MOST = 32


class Store(Protocol):
    """What engines need of a database; `MemoryStore` and `FailingStore` are its twins."""

    def submit(self, work: Work, done: Done) -> None:
        """Run `work` in one transaction, then call `done(result, error)` on the loop thread."""
        ...

    def checkpoint(self) -> None:
        """Bring what was committed from the write-ahead log into the file itself; while nothing else
        is under way."""
        ...

    async def sync(self) -> None:
        """Return when all that was committed survives a power cut, whatever `synchronous` says; raises
        `store.failed`."""
        ...

    async def close(self) -> None:
        """Finish what was submitted and close the file."""
        ...


async def run(store: Store, work: Work) -> Any:
    """Submit `work` and wait for its result; raises the `StoreError` it ended with."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(result: Any, error: MeshError | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    store.submit(work, done)
    return await future


def connect(
    path: Path | str,
    *,
    synchronous: str = "FULL",
    read_only: bool = False,
    page_bytes: int = _PAGE_BYTES,
) -> Any:
    """A connection with the pragmas of every file of ours; `store.failed` when it cannot open.

    `page_bytes` is that of a new file.
    """
    try:
        if read_only:
            database = sqlite3.connect(
                f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
        else:
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        database.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        if not read_only:
            database.execute(f"PRAGMA page_size={page_bytes}")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(f"PRAGMA synchronous={synchronous}")
            # Debian's SQLite writes zeros over all that is deleted, which is pages more in each commit
            database.execute("PRAGMA secure_delete=FAST")
            _checkpoint_after(database, _AUTOCHECKPOINT_BYTES)
            database.execute("PRAGMA foreign_keys=ON")
    except sqlite3.Error as exc:
        raise _coded(exc, str(path)) from exc
    return database


def _checkpoint_after(database: sqlite3.Connection, size: int) -> None:
    """Copy the write-ahead log back when it has so many bytes."""
    page_bytes = database.execute("PRAGMA page_size").fetchone()[0]
    pages = max(_LEAST_PAGES, size // page_bytes)
    database.execute(f"PRAGMA wal_autocheckpoint={pages}")


def _coded(error: sqlite3.Error, where: str) -> StoreError:
    """A full disk and a file that is no database any more are told apart from everything else."""
    name = str(getattr(error, "sqlite_errorname", ""))
    # the index of the write-ahead log is a file of its own, and says it in other words
    if name.startswith("SQLITE_FULL") or name == "SQLITE_IOERR_SHMSIZE":
        code = "store.full"
    elif name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        code = "store.corrupt"
    else:
        code = "store.failed"
    return StoreError(code, f"{where}: {error}")


def free_space(folder: Path) -> tuple[int, int]:
    """(free bytes of the disk of this folder, how many of them are not for what is new)."""
    disk = shutil.disk_usage(folder)
    return disk.free, min(FREE_SPACE_BYTES, disk.total // FREE_SPACE_PART)


def open_file(
    path: Path,
    migrations: Sequence[str],
    *,
    synchronous: str = "FULL",
    presize_bytes: int = WAL_PRESIZE_BYTES,
    page_bytes: int = _PAGE_BYTES,
) -> Any:
    """Open, check and migrate a file; the connection is ready for one writer.

    `migrations` are SQL scripts in order; `user_version` counts those applied. A file that has
    data is copied to `<name>.before-<version>` first. A disk that is full is no reason to refuse: what
    it holds is to be read, and may end.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = connect(path, synchronous=synchronous, page_bytes=page_bytes)
    try:
        verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise StoreError("store.corrupt", f"{path}: {verdict}")
        _migrate(database, path, migrations)
        _presize(database, min(presize_bytes, free_space(path.parent)[0] // WAL_PART))
    except sqlite3.Error as exc:
        database.close()
        raise _coded(exc, str(path)) from exc
    except StoreError:
        database.close()
        raise
    return database


def _migrate(database: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise StoreError("store.version", f"{path}: made by a newer version ({version})")
    if version == len(migrations):
        return
    if version:
        _back_up(database, path.with_name(f"{path.name}.before-{len(migrations)}"))
    # all or none of them: the copy is of a file that some version of ours wrote as it is
    scripts = ";\n".join(migrations[version:])
    database.executescript(
        f"BEGIN IMMEDIATE;{scripts};PRAGMA user_version={len(migrations)};COMMIT;"
    )


def _back_up(database: sqlite3.Connection, path: Path) -> None:
    """Copy the whole of it; what a start that was killed left of a copy has no name."""
    draft = path.with_name(f"{path.name}.draft")
    left = (draft, draft.with_name(f"{draft.name}-journal"))
    for file in left:
        file.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(draft)) as copy:
            database.backup(copy)
        draft.replace(path)
    finally:
        for file in left:
            file.unlink(missing_ok=True)


def _presize(database: sqlite3.Connection, size: int) -> None:
    """Grow the WAL once: commits into a recycled WAL are a third faster than into a growing one."""
    if not size:
        return
    if size < WAL_PRESIZE_BYTES:
        _checkpoint_after(database, size * 7 // 8)
    database.execute("CREATE TABLE IF NOT EXISTS _presize (filler BLOB)")
    try:
        database.execute("INSERT INTO _presize VALUES (zeroblob(?))", (size,))
    except sqlite3.OperationalError as exc:
        if _coded(exc, "").code != "store.full":
            raise  # on a full disk it stays as it is
    database.execute("DELETE FROM _presize")
    database.execute("PRAGMA wal_checkpoint(RESTART)")


def transact(database: sqlite3.Connection, work: Work) -> Any:
    """Run `work` between BEGIN IMMEDIATE and COMMIT; on any error nothing of it stays."""
    try:
        database.execute("BEGIN IMMEDIATE")
        try:
            result = work(database)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
    except sqlite3.Error as exc:
        raise _coded(exc, "commit") from exc
    except MeshError:
        raise
    except Exception as exc:
        raise StoreError("store.failed", f"{type(exc).__name__}: {exc}") from exc
    return result


class Database:
    """A file and its writer thread; use from one event loop.

    `inline` says that commits are many and short: they run on the loop itself for as long as the disk
    is quick, since two hops between threads cost more (docs/adr/0006), and a new file has small pages.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[str],
        *,
        synchronous: str = "FULL",
        inline: bool = False,
        presize_bytes: int = WAL_PRESIZE_BYTES,
    ) -> None:
        self.path = path
        self._inline = inline
        self._doubt = 0
        #: work that the thread has and has not answered
        self._pending = 0
        self._database = open_file(
            path,
            migrations,
            synchronous=synchronous,
            presize_bytes=presize_bytes,
            page_bytes=_SMALL_PAGE_BYTES if inline else _PAGE_BYTES,
        )
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[Work, Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name=f"write-{path.stem}", daemon=True)
        self._thread.start()

    def submit(self, work: Work, done: Done) -> None:
        if self._inline and not self._pending and self._doubt < _TOO_MUCH:
            done(*self._attempt(work))
            return
        self._pending += 1
        self._queue.put((work, done))

    def checkpoint(self) -> None:
        self._database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    async def sync(self) -> None:
        # commits are in the log until a checkpoint, which brings both files to the disk by itself
        try:
            await asyncio.to_thread(_to_disk, self.path.with_name(f"{self.path.name}-wal"))
        except OSError as exc:
            raise StoreError("store.failed", f"{self.path}: {exc}") from exc

    async def close(self) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        # a copy of the file alone is then whole; who still reads it elsewhere is not waited for
        with contextlib.suppress(sqlite3.Error):
            self._database.execute("PRAGMA busy_timeout=0")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._database.close()

    def _transact(self, work: Work) -> Any:
        return transact(self._database, work)

    def _attempt(self, work: Work) -> tuple[Any, MeshError | None]:
        """Result or error of one transaction; notes how long the disk took."""
        result: Any = None
        error: MeshError | None = None
        began_ns = time.monotonic_ns()
        try:
            result = self._transact(work)
        except MeshError as exc:
            error = exc
        slow = time.monotonic_ns() - began_ns > _QUICK_NS
        self._doubt = min(_MOST, self._doubt + _SLOW_ADDS) if slow else max(0, self._doubt - 1)
        return result, error

    def _write(self) -> None:
        while (entry := self._queue.get()) is not None:
            work, done = entry
            result, error = self._attempt(work)
            try:
                self._loop.call_soon_threadsafe(self._answer, done, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits for this any more

    def _answer(self, done: Done, result: Any, error: MeshError | None) -> None:
        self._pending -= 1
        done(result, error)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class MemoryStore:
    """The twin without a disk: the same SQL at once, on the caller's thread."""

    def __init__(self, migrations: Sequence[str]) -> None:
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        for script in migrations:
            self.database.executescript(script)

    def submit(self, work: Work, done: Done) -> None:
        try:
            result = transact(self.database, work)
        except MeshError as exc:
            done(None, exc)
        else:
            done(result, None)

    def checkpoint(self) -> None:
        """There is no log."""

    async def sync(self) -> None:
        """There is no disk."""

    async def close(self) -> None:
        self.database.close()


class FailingStore:
    """The twin whose disk is broken: everything submitted ends in `store.failed`."""

    def submit(self, work: Work, done: Done) -> None:
        done(None, StoreError("store.failed", "this store always fails"))

    def checkpoint(self) -> None:
        """Nothing was committed."""

    async def sync(self) -> None:
        raise StoreError("store.failed", "this store always fails")

    async def close(self) -> None:
        return None
