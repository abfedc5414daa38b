"""What a shell is given: its voice, its stores; and who asks to be let in.

The one rule: plain data, made by whoever puts an orchestrator together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from imlmesh_orchestrator.intake import Held
from imlmesh_orchestrator.ledger import Notary
from imlmesh_orchestrator.store.files import OpenStore
from imlmesh_orchestrator.store.reading import Reader
from imlmesh_runtime.sqlite import Store
from imlmesh_runtime.trust import Signer


@dataclass(frozen=True, slots=True)
class Voice:
    """Who the orchestrator is and how it signs."""

    mesh: str
    me: str
    signer: Signer
    #: the ledger key, and whose seals are believed
    notary: Notary


@dataclass(frozen=True, slots=True)
class Stores:
    """lifecycle's writer and reader, the way to the files that are copied into, and what output
    held at the start: of telemetry, and the seals that nodes witnessed."""

    lifecycle: Store
    reader: Reader
    open_store: OpenStore
    held: Held = field(default_factory=Held)
    witnessed: Sequence[tuple[str, bytes]] = ()


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Who wants in: id, alias, raw public key of its identity, ceiling of its rights."""

    node: str
    alias: str
    identity: bytes
    profile: str
