"""The node as a witness: keeps the last seal of the ledger and refuses what does not follow from it.

The one rule: a seal is stored before the node names it, and a head that was once stored is given
up only for one that provably contains it, or by a person's word that the ledger key signed; what it
gave up or refused is kept as evidence. Deliberately absent: why the ledger was cut or rewritten.
"""

import logging
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from imlmesh_protocol import merkle
from imlmesh_protocol.errors import MeshError, ProtocolError, TrustError
from imlmesh_protocol.wire.documents import FindKey
from imlmesh_protocol.wire.seals import Seal, own_seal, read_seal

log = logging.getLogger(__name__)


class Kept(StrEnum):
    """Why a seal is in the journal."""

    LAST = "last"
    GIVEN_UP = "given_up"
    REFUSED = "refused"


#: stores (what, document) pairs, all or nothing, then calls back
KeepSeals = Callable[[list[tuple[Kept, bytes]], Callable[[MeshError | None], None]], None]


class Witness:
    """`last` is the document that the journal held at the start."""

    def __init__(self, mesh: str, find_key: FindKey, keep: KeepSeals, last: bytes | None) -> None:
        self._mesh = mesh
        self._find_key = find_key
        self._keep = keep
        #: what is stored, and so may be named
        self.document = last
        self._seal = None if last is None else own_seal(last)

    @property
    def size(self) -> int:
        """How many entries the last believed seal speaks of; 0 without one."""
        return 0 if self._seal is None else self._seal.size

    def take(self, fields: Mapping[str, Any]) -> None:
        """The fields of a command `seal`; TrustError `seal.invalid`, `seal.rollback`, `seal.fork`."""
        if not {"seal", "from", "proof"} <= fields.keys():
            raise ProtocolError("message.invalid", "a seal without its proof")
        document = fields["seal"]
        seal = read_seal(document, self._find_key)
        if seal.mesh != self._mesh:
            raise TrustError("seal.invalid", f"a seal of mesh {seal.mesh[:80]}")
        last = self._seal
        if last is None or (last.head in seal.breaks and seal.size > 0):
            self._accept(seal, document)
        elif seal.size < last.size:
            self._refuse("seal.rollback", last, seal, document)
        elif seal.size == last.size:
            if seal.root != last.root:
                self._refuse("seal.fork", last, seal, document)
        elif fields["from"] == last.size:
            if merkle.verify(last.size, last.root, seal.size, seal.root, fields["proof"]):
                self._accept(seal, document)
            else:
                self._refuse("seal.fork", last, seal, document)
        # else: the proof is for others; the orchestrator sees which seal we name, and sends ours

    def _accept(self, seal: Seal, document: bytes) -> None:
        kept = [(Kept.LAST, document)]
        if self._seal is not None and self._seal.head in seal.breaks and self.document is not None:
            log.error("a person gave up %d entries of the ledger", self._seal.size)
            kept.insert(0, (Kept.GIVEN_UP, self.document))
        # the next one is compared with this one, also while it is being stored
        self._seal = seal

        def stored(error: MeshError | None) -> None:
            if error is None:
                self.document = document
            else:
                log.error("a seal is not kept: %s", error, extra={"code": error.code})

        self._keep(kept, stored)

    def _refuse(self, code: str, last: Seal, seal: Seal, document: bytes) -> None:
        self._keep([(Kept.REFUSED, document)], lambda _: None)
        text = f"a seal of {seal.size} entries does not follow from ours of {last.size}"
        raise TrustError(code, text)
