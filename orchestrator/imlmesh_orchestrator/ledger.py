"""The ledger of a running orchestrator: seals it, sends the seals, and hears what nodes witnessed.

The one rule: a seal is stored before anybody gets it, and a node's word counts only as far as the
ledger key signed it, so no node can doubt the ledger without proof. Deliberately absent: making
entries (`store/mover`) and what a contradiction means (`core/doubts`).
"""

import asyncio
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from imlmesh_orchestrator.store.files import OpenStore
from imlmesh_orchestrator.store.ledger import LedgerFile, keep_seal, last_seal, peaks_at, prove
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError, StoreError, TrustError
from imlmesh_protocol.wire.documents import FindKey
from imlmesh_protocol.wire.seals import Head, Seal, read_seal, write_seal
from imlmesh_runtime.background import Background
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.sqlite import run
from imlmesh_runtime.trust import Signer

log = logging.getLogger(__name__)

#: who "holds" a head that the ledger itself had before lifecycle was replaced by an older file
LIFECYCLE = "lifecycle.db, which is older than the ledger,"

#: who "holds" our own last seal: a file beside the ledger's, for until a node has witnessed it
OUTPUT = "output.db"

_WITNESSED = "INSERT OR REPLACE INTO witnessed (node, at_ms, seal) VALUES (?,?,?)"


@dataclass(frozen=True, slots=True)
class Pace:
    """How often is sealed, sent again and stored; the defaults are those of `limits`."""

    entries: int = limits.SEAL_ENTRIES
    every_ms: int = limits.SEAL_EVERY_MS
    apart_ms: int = limits.SEAL_APART_MS
    again_ms: int = limits.SEAL_AGAIN_MS
    store_ms: int = limits.WITNESS_STORE_MS


@dataclass(slots=True)
class Notary:
    """The ledger key of a mesh, which may roll over, those whose seals are believed, and when to
    seal."""

    mesh: str
    signer: Signer
    find_key: FindKey
    pace: Pace = Pace()


class Told(Protocol):
    """Whom the ledger speaks to."""

    def send_seal(self, node: str, fields: Mapping[str, Any]) -> None:
        """A command to one node, or to all (empty)."""
        ...

    def seal_contradicted(self, witness: str, head: Head) -> None:
        """The ledger does not contain this signed head."""
        ...

    def acknowledged_heads(self) -> Iterable[Head]:
        """Heads that a person gave up, the oldest first."""
        ...


class Ledger:
    """Seals, proofs and witnesses. `witnessed` are (node or OUTPUT, seal) that output held at the start."""

    def __init__(
        self,
        file: LedgerFile,
        notary: Notary,
        open_store: OpenStore,
        clock: Clock,
        told: Told,
        witnessed: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        self.file = file
        self._notary = notary
        self._open_store = open_store
        self._clock = clock
        self._told = told
        #: the document that each node holds, as far as it is believed
        self.witnessed: dict[str, bytes] = {}
        self._stored = list(witnessed)
        self._unstored: dict[str, bytes] = {}
        self._verified: OrderedDict[bytes, Seal] = OrderedDict()
        #: heads that were compared with the ledger, and whether it contains them
        self._contained: OrderedDict[Head, bool] = OrderedDict()
        #: the newest seal, and the size that its broadcast proof leads from
        self.last: Seal | None = None
        self._from = 0
        self._sealed_ms = 0
        self._stored_ms = 0
        self._sent_to: dict[str, int] = {}
        self._sealer = Background("sealing the ledger", self._run)
        self._asked: set[asyncio.Task[None]] = set()
        self._closed = False

    async def load(self) -> None:
        """Find the end of the file, and whether it contains what was witnessed before."""
        fits = await self.file.load()
        found = await self.file.work(last_seal)
        if found is not None:
            self.last = self._read(found[1])
            self._from = self.last.size if self.last is not None else 0
        self._sealed_ms = self._clock.now_ms()
        if not fits:
            self._told.seal_contradicted(
                LIFECYCLE, (self.file.tip.size, self.file.tip.peaks.root())
            )
        if self.last is not None:
            await self._compare("seals of metadata.db", self.last)
        for node, document in self._stored:
            seal = self._read(document)
            if seal is not None:
                if node != OUTPUT:
                    self.witnessed[node] = document
                await self._compare(node, seal)

    def start(self) -> None:
        """Begin to seal."""
        self._sealer.start()

    async def close(self, *, seal: bool = True) -> None:
        """End; with `seal`, seal what is there: call it when the last entries are made."""
        self._closed = True
        for each in self._asked:
            each.cancel()
        if self._asked:
            await asyncio.wait(self._asked)
        await self._sealer.close()
        try:
            if seal:
                await self.seal()
            await self._store_witnessed()
        except StoreError as exc:
            log.warning("the last entries are not sealed: %s", exc)

    def heard(self, node: str, document: bytes | None) -> None:
        """A believed heartbeat of `node` names this seal, or none."""
        if self._closed:
            return
        if document is None or self.witnessed.get(node) == document:
            self._bring_up(node)
            return
        seal = self._read(document)
        if seal is None:
            return
        self.witnessed[node] = self._unstored[node] = document
        self._ask(self._compare(node, seal))

    async def seal(self) -> None:
        """Sign the end of the ledger, store it, then send it to everybody."""
        tip, signer, last = self.file.tip, self._notary.signer, self.last
        if tip.size == (last.size if last is not None else 0):
            return
        breaks = [*self._told.acknowledged_heads()][-limits.SEAL_BREAKS :]
        now_ms = self._clock.now_ms()
        new = Seal(self._notary.mesh, tip.size, tip.peaks.root(), now_ms, tuple(breaks))
        document = write_seal(new, signer.key_id, signer.sign)
        # after a loss the store may hold fewer entries than its last seal speaks of: no proof leads there
        since = last.size if last is not None and last.size <= tip.size else 0

        def keep(database: sqlite3.Connection) -> list[bytes]:
            keep_seal(database, new.size, new.root, now_ms, document)
            return prove(database, since, new.size)

        proof = await self.file.work(keep)
        self.last, self._from, self._sealed_ms = new, since, now_ms
        self._unstored[OUTPUT] = document
        self._told.send_seal("", {"do": "seal", "seal": document, "from": since, "proof": proof})

    async def _run(self) -> None:
        pace = self._notary.pace
        while True:
            await asyncio.sleep(pace.apart_ms / 1_000)
            unsealed = self.file.tip.size - (self.last.size if self.last is not None else 0)
            age_ms = self._clock.now_ms() - self._sealed_ms
            try:
                if unsealed >= pace.entries or age_ms >= pace.every_ms:
                    await self.seal()
                if self._clock.now_ms() - self._stored_ms >= pace.store_ms:
                    await self._store_witnessed()
            except StoreError as exc:
                log.error("the ledger is not sealed: %s", exc, extra={"code": exc.code})

    async def _store_witnessed(self) -> None:
        rows, self._unstored = self._unstored, {}
        self._stored_ms = now_ms = self._clock.now_ms()
        if rows:
            values = [(node, now_ms, document) for node, document in rows.items()]
            store = self._open_store("output")
            try:
                await run(store, lambda database: database.executemany(_WITNESSED, values))
            except StoreError:
                # a newer one of the same node counts
                self._unstored = rows | self._unstored
                raise

    def _read(self, document: bytes) -> Seal | None:
        """The seal, if the ledger key of this mesh signed it. A fleet names the same few."""
        seal = self._verified.get(document)
        if seal is None:
            try:
                seal = read_seal(document, self._notary.find_key)
            except TrustError as exc:
                log.warning("a named seal is not believed: %s", exc, extra={"code": exc.code})
                return None
            if seal.mesh != self._notary.mesh:
                return None
            self._verified[document] = seal
            if len(self._verified) > limits.SEALS_KNOWN:
                self._verified.popitem(last=False)
        return seal

    async def _compare(self, witness: str, seal: Seal) -> None:
        """Say so when the ledger does not contain this head."""
        contained = self._contained.get(seal.head)
        if contained is None:
            contained = await self._contains(seal.head)
            self._contained[seal.head] = contained
            if len(self._contained) > limits.SEALS_KNOWN:
                self._contained.popitem(last=False)
        if not contained:
            log.error("%s holds a seal of %d entries that the ledger denies", witness, seal.size)
            self._told.seal_contradicted(witness, seal.head)

    async def _contains(self, head: Head) -> bool:
        size, root = head
        if size > self.file.tip.size:
            return False
        peaks = await self.file.work(lambda database: peaks_at(database, size))
        return peaks.root() == root

    def _bring_up(self, node: str) -> None:
        """Give a node that missed the broadcast the newest seal with a proof from its own."""
        last = self.last
        if last is None or self._sent_to.get(node) == last.size:
            return
        held = self._verified.get(self.witnessed.get(node, b""))
        size = held.size if held is not None else 0
        waited_ms = self._clock.now_ms() - self._sealed_ms
        if size >= last.size or (size == self._from and waited_ms < self._notary.pace.again_ms):
            return
        self._sent_to[node] = last.size
        self._ask(self._send_to(node, size, last))

    async def _send_to(self, node: str, size: int, last: Seal) -> None:
        found = await self.file.work(
            lambda database: (last_seal(database), prove(database, size, last.size))
        )
        if found[0] is not None and found[0][0] == last.size:
            fields = {"do": "seal", "seal": found[0][1], "from": size, "proof": found[1]}
            self._told.send_seal(node, fields)

    def _ask(self, work: Coroutine[Any, Any, None]) -> None:
        begun: asyncio.Task[None] = asyncio.get_running_loop().create_task(_logged(work))
        self._asked.add(begun)
        begun.add_done_callback(self._asked.discard)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except MeshError as exc:
        log.error("a seal could not be looked at: %s", exc, extra={"code": exc.code})
