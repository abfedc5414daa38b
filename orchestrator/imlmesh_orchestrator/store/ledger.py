"""The ledger on disk: entries that are only ever appended, their hashes, and the seals over them.

The one rule: entries and the change up to which they were made are one transaction, so every
change becomes an entry once, in order, whenever the process ends. Each function is one transaction's
work. Deliberately absent: who signs, and who is told.
"""

import asyncio
import hmac
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgpack

from imlmesh_orchestrator.store.files import OpenStore
from imlmesh_orchestrator.store.ledgered import ChangeRow, Draft, drafts_of
from imlmesh_protocol import merkle
from imlmesh_protocol.errors import MeshError, StoreError
from imlmesh_runtime.rows import Many, write_rows
from imlmesh_runtime.sqlite import run

T = TypeVar("T")

SALT_BYTES = 32
#: what stands before the first entry
NOTHING = bytes(merkle.HASH_BYTES)
FIELDS = ("n", "at_ms", "actor", "kind", "subject", "payload", "prev")

# after so many entries the event loop may have the interpreter: it would wait up to 5 ms for it
_TURN = 3

_ENTRIES = Many("INSERT INTO entries (n, entry, at_ms, actor, kind, subject) VALUES")
_PAYLOADS = Many("INSERT OR REPLACE INTO payloads (n, salt, payload) VALUES")
_HASHES = Many("INSERT OR REPLACE INTO hashes (level, at, hash) VALUES")


@dataclass(frozen=True, slots=True)
class Tip:
    """Where the ledger ends: its tree, the hash and time of the last entry, and the change (seq of
    lifecycle) up to which entries were made."""

    peaks: merkle.Peaks = merkle.NO_PEAKS
    prev: bytes = NOTHING
    at_ms: int = 0
    seq: int = 0

    @property
    def size(self) -> int:
        """How many entries there are."""
        return self.peaks.size


def commitment(salt: bytes, payload: bytes) -> bytes:
    """What an entry holds of its payload."""
    return hmac.digest(salt, payload, "sha256")


def encode_entry(n: int, at_ms: int, draft: Draft, payload: bytes, prev: bytes) -> bytes:
    """The exact bytes of an entry; `payload` is the commitment, `prev` the hash of the entry before."""
    values = (n, at_ms, draft.actor, draft.kind, draft.subject, payload, prev)
    packed: bytes = msgpack.packb(dict(zip(FIELDS, values, strict=True)))
    return packed


def append(database: sqlite3.Connection, tip: Tip, rows: Sequence[ChangeRow], seq: int) -> Tip:
    """Make entries of changes, up to the change `seq`; returns where the ledger ends now."""
    entries: list[tuple[Any, ...]] = []
    payloads: list[tuple[Any, ...]] = []
    hashes: list[tuple[Any, ...]] = []
    peaks, prev, at_ms = tip.peaks, tip.prev, tip.at_ms
    for draft in drafts_of(rows):
        salt = os.urandom(SALT_BYTES)
        n, at_ms = peaks.size + 1, max(at_ms, draft.at_ms)
        entry = encode_entry(n, at_ms, draft, commitment(salt, draft.payload), prev)
        prev = merkle.leaf_hash(entry)
        peaks, made = peaks.append(prev)
        entries.append((n, entry, at_ms, draft.actor, draft.kind, draft.subject))
        payloads.append((n, salt, draft.payload))
        hashes += made
        if not n % _TURN:
            time.sleep(0)
    write_rows(database, _ENTRIES, entries)
    write_rows(database, _PAYLOADS, payloads)
    write_rows(database, _HASHES, hashes)
    set_position(database, seq)
    return Tip(peaks, prev, at_ms, seq)


def set_position(database: sqlite3.Connection, seq: int) -> None:
    """Entries were made of all changes up to `seq`."""
    database.execute("INSERT OR REPLACE INTO ledgered (id, seq) VALUES (1, ?)", (seq,))


def load_tip(database: sqlite3.Connection) -> Tip:
    """Where the ledger ends; `store.corrupt` when hashes that it rests on are missing."""
    last = database.execute("SELECT n, at_ms FROM entries ORDER BY n DESC LIMIT 1").fetchone()
    position = database.execute("SELECT seq FROM ledgered").fetchone()
    seq = position[0] if position else 0
    if last is None:
        return Tip(seq=seq)
    peaks = peaks_at(database, last[0])
    return Tip(peaks, find_hash(database, 0, last[0] - 1), last[1], seq)


def find_hash(database: sqlite3.Connection, level: int, at: int) -> bytes:
    """The stored root of a complete subtree; `store.corrupt` when it is missing."""
    sql = "SELECT hash FROM hashes WHERE level = ? AND at = ?"
    row = database.execute(sql, (level, at)).fetchone()
    if row is None:
        raise StoreError("store.corrupt", f"the ledger has no hash {level}/{at}")
    return bytes(row[0])


def peaks_at(database: sqlite3.Connection, size: int) -> merkle.Peaks:
    """The tree as it was at `size` entries."""
    return merkle.peaks_at(size, lambda level, at: find_hash(database, level, at))


def prove(database: sqlite3.Connection, old: int, new: int) -> list[bytes]:
    """That the ledger of `new` entries begins with that of `old`."""
    return merkle.prove(old, new, lambda level, at: find_hash(database, level, at))


def keep_seal(
    database: sqlite3.Connection, size: int, root: bytes, at_ms: int, seal: bytes
) -> None:
    """Store a signed head."""
    sql = "INSERT INTO seals (size, root, at_ms, seal) VALUES (?,?,?,?)"
    database.execute(sql, (size, root, at_ms, seal))


def last_seal(database: sqlite3.Connection) -> tuple[int, bytes] | None:
    """(size, document) of the newest seal."""
    row = database.execute("SELECT size, seal FROM seals ORDER BY number DESC LIMIT 1").fetchone()
    return None if row is None else (row[0], bytes(row[1]))


def known_witnesses(output: sqlite3.Connection) -> list[tuple[str, bytes]]:
    """A question to output: the last seal that each node named."""
    return [(row[0], row[1]) for row in output.execute("SELECT node, seal FROM witnessed")]


class LedgerFile:
    """metadata.db as the ledger's: `tip` is where it ends, after what was committed. `last_seq` is
    the last change that lifecycle held at the start."""

    def __init__(self, open_store: OpenStore, last_seq: int = 0) -> None:
        self._last_seq = last_seq
        self._open_store = open_store
        self._appending: asyncio.Future[None] | None = None
        self.tip = Tip()

    async def load(self) -> bool:
        """Find the end; whether lifecycle is not older than it.

        An older lifecycle gives numbers of changes again; entries are made of them all the same.
        """
        self.tip = await self.work(load_tip)
        last_seq = self._last_seq
        if self.tip.seq <= last_seq:
            return True
        await self.work(lambda database: set_position(database, last_seq))
        self.tip = replace(self.tip, seq=last_seq)
        return False

    async def append(self, rows: Sequence[ChangeRow], seq: int) -> None:
        """Make entries of changes up to `seq`; StoreError when they cannot be stored."""
        tip = self.tip
        if not rows:
            # what is not told of is looked at again after a restart
            self.tip = replace(tip, seq=seq)
            return
        appended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._appending = appended

        def done(result: Tip, error: MeshError | None) -> None:
            # also when nobody waits any more: the next entry follows the last one that was stored
            self._appending = None
            if error is None:
                self.tip = result
            if not appended.cancelled():
                appended.set_result(None) if error is None else appended.set_exception(error)

        store = self._open_store("metadata")
        store.submit(lambda database: append(database, tip, rows, seq), done)
        await asyncio.shield(appended)

    async def settled(self) -> None:
        """Return when nothing is being appended; a mover that was cancelled may have left something."""
        if self._appending is not None:
            await asyncio.wait([self._appending])

    async def work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction of the file."""
        found: T = await run(self._open_store("metadata"), work)
        return found
