"""How a node comes to its journal, also when the one of before cannot be read.

The one rule: what cannot be read, or lacks commits, is set aside and kept, and the new one says
that it began in place of another; a full disk or a newer version is never a reason for that.
"""

import contextlib
import logging
import sqlite3
from pathlib import Path

from imlmesh_node.journal import Journal, Loaded
from imlmesh_protocol.errors import StoreError
from imlmesh_protocol.limits import JOURNALS_KEPT

log = logging.getLogger(__name__)

# SQLite's write-ahead log: 0x377f0682 or 0x377f0683, and a header of 32 bytes
_WAL_MAGIC = b"\x37\x7f\x06"
_WAL_HEADER_BYTES = 32
_PARTS = ("", "-wal", "-shm")


async def open_journal(path: Path, wall_ms: int) -> tuple[Journal, Loaded]:
    """The journal at `path` and what it holds; StoreError when there can be none."""
    has_log = _has_log(path)
    lost = "it is empty" if _is_empty(path) else ""
    try:
        if not lost:
            journal = Journal.open(path)
            try:
                loaded = await journal.load(wall_ms)
            except StoreError:
                await journal.close()
                raise
            if loaded.clean or has_log:
                return journal, loaded
            await journal.close()
            lost = "its write-ahead log is missing"
    except StoreError as exc:
        if exc.code != "store.corrupt":
            raise
        lost = exc.message
    boot = _boot_of(path)
    kept = set_aside(path, wall_ms)
    log.error("the journal is lost (%s) and kept as %s", lost, kept.name)
    journal = Journal.open(path)
    return journal, await journal.load(max(wall_ms, boot + 1), lost=True)


def set_aside(path: Path, wall_ms: int) -> Path:
    """Give a database and its log another name, which is returned; older ones are removed."""
    kept = path.with_name(f"{path.name}.lost-{wall_ms}")
    for part in _PARTS:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + part).rename(kept.with_name(kept.name + part))
    for old in sorted(path.parent.glob(f"{path.name}.lost-*[0-9]"))[:-JOURNALS_KEPT]:
        for part in _PARTS:
            old.with_name(old.name + part).unlink(missing_ok=True)
    return kept


def _is_empty(path: Path) -> bool:
    """SQLite would take an empty file for a new one."""
    return path.exists() and not path.stat().st_size


def _has_log(path: Path) -> bool:
    """Whether a write-ahead log lies beside it, as it does unless the last agent closed it."""
    try:
        with path.with_name(f"{path.name}-wal").open("rb") as file:
            head = file.read(_WAL_HEADER_BYTES)
    except OSError:
        return False
    return len(head) == _WAL_HEADER_BYTES and head.startswith(_WAL_MAGIC)


def _boot_of(path: Path) -> int:
    """The last boot that a journal names, if that can still be read: numbers must go on rising."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
        ) as database:
            row = database.execute("SELECT value FROM meta WHERE name = 'boot'").fetchone()
            return int(row[0])
    except (sqlite3.Error, TypeError, ValueError):
        return 0
