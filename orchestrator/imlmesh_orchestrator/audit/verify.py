"""Whether a ledger is what it was: every entry, the chain, the tree, each seal, each witness.

The one rule: it goes on after what it finds, so that everything wrong is told at once, and each
finding says where. A note is what an auditor should know and nobody did wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from imlmesh_orchestrator.audit.book import Book, Row, beside_of
from imlmesh_orchestrator.ledger import OUTPUT
from imlmesh_orchestrator.store.ledger import FIELDS, NOTHING, commitment
from imlmesh_orchestrator.store.ledgered import told_of
from imlmesh_protocol import limits, merkle
from imlmesh_protocol.errors import TrustError
from imlmesh_protocol.wire.seals import Head, Seal, read_seal

_TYPES = (int, int, str, str, str, bytes, bytes)
_INTENT = "dispatch-planned"
_OUTCOMES = ("result-taken", "dispatch-ended", "result-kept")


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` is one word for scripts; `n` the entry that it is about, or None."""

    what: str
    n: int | None
    text: str


@dataclass(slots=True)
class Verdict:
    """What was found. `sealed` is the size of the newest good seal, `witnesses` who holds which size
    of a good one."""

    mesh: str
    entries: int = 0
    root: bytes = merkle.EMPTY_ROOT
    sealed: int = 0
    erased: int = 0
    witnesses: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    #: findings beyond the limit, which are counted alone
    more: int = 0
    notes: list[str] = field(default_factory=list)

    def find(self, what: str, n: int | None, text: str) -> None:
        """Something is wrong."""
        if len(self.findings) < limits.AUDIT_FINDINGS:
            self.findings.append(Finding(what, n, text))
        else:
            self.more += 1


def verify(book: Book) -> Verdict:
    """Read the whole ledger and say all that is wrong with it; StoreError when it cannot be read."""
    verdict = Verdict(book.mesh)
    seals = _seals(book, verdict)
    witnessed = _witnessed(book, verdict)
    sizes = {*(seal.size for seal in seals), *(seal.size for _, seal in witnessed)}
    roots = _Walk(book, verdict).walk(sizes)
    breaks = {head for seal in seals for head in seal.breaks}
    for seal in seals:
        _compare_seal(verdict, seal, roots, breaks)
    for who, seal in witnessed:
        _compare_witness(verdict, who, seal, roots, breaks)
    verdict.sealed = max((s.size for s in seals if roots.get(s.size) == s.root), default=0)
    _tell_rest(verdict, book)
    return verdict


def _seals(book: Book, verdict: Verdict) -> list[Seal]:
    found = []
    for size, document in book.seals:
        try:
            seal = read_seal(document, book.find_key)
        except TrustError as exc:
            verdict.find("signature", None, f"the seal of {size} entries: {exc.message}")
            continue
        if (seal.size, seal.mesh) != (size, book.mesh):
            verdict.find("signature", None, f"the seal of {size} entries is of another ledger")
            continue
        found.append(seal)
    return found


def _witnessed(book: Book, verdict: Verdict) -> list[tuple[str, Seal]]:
    found = []
    for who, document in book.witnessed:
        try:
            seal = read_seal(document, book.find_key)
        except TrustError as exc:
            # it was believed before it was stored: this file was changed since, or the keys were
            verdict.find("signature", None, f"what {who} witnessed: {exc.message}")
            continue
        if seal.mesh == book.mesh:
            found.append((who, seal))
    return found


def _compare_seal(verdict: Verdict, seal: Seal, roots: dict[int, bytes], breaks: set[Head]) -> None:
    if roots.get(seal.size) == seal.root:
        return
    if seal.head in breaks:
        verdict.notes.append(f"a person gave up the {seal.size} entries of an earlier seal")
    elif seal.size > verdict.entries:
        text = f"a seal of {seal.size} entries is stored, there are {verdict.entries}: cut"
        verdict.find("cut", None, text)
    else:
        text = f"the first {seal.size} entries are not those that were sealed"
        verdict.find("root", seal.size, text)


def _compare_witness(
    verdict: Verdict, who: str, seal: Seal, roots: dict[int, bytes], breaks: set[Head]
) -> None:
    if roots.get(seal.size) == seal.root:
        if who == OUTPUT:  # known here alone, it speaks against an older file and for nothing
            return
        verdict.witnesses[who] = max(seal.size, verdict.witnesses.get(who, 0))
    elif seal.head in breaks:
        verdict.notes.append(f"{who} witnessed {seal.size} entries that a person gave up")
    elif seal.size > verdict.entries:
        text = f"{who} witnessed {seal.size} entries, there are {verdict.entries}: cut, or older"
        verdict.find("cut", None, text)
    else:
        text = f"{who} witnessed {seal.size} other entries than the first {seal.size}"
        verdict.find("fork", seal.size, text)


def _tell_rest(verdict: Verdict, book: Book) -> None:
    unsealed = verdict.entries - verdict.sealed
    if not book.keys:
        verdict.notes.append("no ledger key is here, so no seal can be believed")
    if unsealed > 0:
        verdict.notes.append(f"the last {unsealed} entries are not sealed yet")
    if not verdict.witnesses:
        verdict.notes.append("no node witnessed a seal: who holds the ledger key can rewrite it")
    if verdict.erased:
        verdict.notes.append(f"the payloads of {verdict.erased} entries were erased")


class _Walk:
    """One pass over the entries."""

    def __init__(self, book: Book, verdict: Verdict) -> None:
        self._book = book
        self._verdict = verdict
        self._peaks = merkle.NO_PEAKS
        self._prev, self._at_ms, self._n = NOTHING, 0, 0
        #: by run: its dispatches, and whether their outcome was told; None when something was erased
        self._open: dict[str, dict[str, bool]] = {}
        self._blind = False
        self._doubts = 0

    def walk(self, sizes: set[int]) -> dict[int, bytes]:
        """Look at every entry; the roots at `sizes`."""
        roots = {0: merkle.EMPTY_ROOT}
        for row in self._book.rows():
            self._look(row)
            if self._peaks.size in sizes:
                roots[self._peaks.size] = self._peaks.root()
        self._verdict.entries = self._peaks.size
        self._verdict.root = self._peaks.root()
        left = sum(not told for one in self._open.values() for told in one.values())
        if self._doubts:
            text = f"{self._doubts} doubts are open: the orchestrator is read-only"
            self._verdict.notes.append(f"{text} until a person acknowledges")
        if left:
            self._verdict.notes.append(f"{left} dispatches are under way: no outcome is told yet")
        return roots

    def _look(self, row: Row) -> None:
        find = self._verdict.find
        if row.n != self._n + 1:
            find("gap", row.n, f"entry {row.n} follows entry {self._n}")
        self._n = row.n
        leaf = merkle.leaf_hash(row.entry)
        self._peaks, made = self._peaks.append(leaf)
        for level, at, found in made:
            if row.hashes is not None and row.hashes.get((level, at)) != found:
                find("hash", row.n, f"the stored hash {level}/{at} is not that of the entries")
        entry = _entry_of(row.entry)
        if entry is None:
            find("entry", row.n, f"entry {row.n} cannot be read")
        else:
            self._look_into(row, entry)
        self._prev = leaf

    def _look_into(self, row: Row, entry: dict[str, Any]) -> None:
        find = self._verdict.find
        if entry["n"] != row.n:
            find("order", row.n, f"in the place of entry {row.n} lies entry {entry['n']}")
        if entry["prev"] != self._prev:
            find("chain", row.n, f"entry {row.n} does not follow the one before it")
        if entry["at_ms"] < self._at_ms:
            find("time", row.n, f"entry {row.n} is older than the one before it")
        self._at_ms = max(self._at_ms, entry["at_ms"])
        if row.salt is None or row.payload is None:
            self._verdict.erased += 1
            self._blind = True
        elif commitment(row.salt, row.payload) != entry["payload"]:
            find("payload", row.n, f"the payload of entry {row.n} is not what it commits to")
        else:
            self._look_at_payload(row, entry, row.payload)
        beside = {name: entry[name] for name in ("at_ms", "actor", "kind", "subject")}
        if beside != {name: row.beside.get(name) for name in beside}:
            find("words", row.n, f"what stands beside entry {row.n} is not what it says")

    def _look_at_payload(self, row: Row, entry: dict[str, Any], payload: bytes) -> None:
        try:
            self._follow(row.n, entry, told_of(payload))
            told = beside_of(entry, payload)
        except (ValueError, KeyError, TypeError, msgpack.UnpackException):
            self._verdict.find("payload", row.n, f"the payload of entry {row.n} cannot be read")
            return
        if "rows" in row.beside and told != row.beside:
            text = f"what stands beside entry {row.n} is not what its payload says"
            self._verdict.find("words", row.n, text)

    def _follow(self, n: int, entry: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        """Intents and outcomes of dispatches; only of runs that have not ended, to hold few."""
        kind, run = entry["kind"], entry["subject"]
        if kind == _INTENT:
            self._open.setdefault(run, {}).update({row["dispatch"]: False for row in rows})
        elif kind in _OUTCOMES:
            of_run = self._open.get(run)
            for row in rows:
                if of_run is not None and row["dispatch"] in of_run:
                    of_run[row["dispatch"]] = True
                elif kind == "result-taken" and not self._blind:
                    text = f"entry {n} tells a result of {row['dispatch']}, which was never planned"
                    self._verdict.find("intent", n, text)
        elif kind in ("doubt-raised", "doubts-acknowledged"):
            self._doubts = self._doubts + len(rows) if kind == "doubt-raised" else 0
        elif kind == "run-ended":
            for dispatch, told in self._open.pop(run, {}).items():
                if not told:
                    text = f"{dispatch} was planned; its run ended and no outcome was told"
                    self._verdict.notes.append(text)


def _entry_of(data: bytes) -> dict[str, Any] | None:
    try:
        entry = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException):
        return None
    if type(entry) is not dict or tuple(entry) != FIELDS:
        return None
    return entry if tuple(map(type, entry.values())) == _TYPES else None
