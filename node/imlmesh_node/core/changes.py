"""What a node decided and stores: the journal is the fold of these.

The one rule: `state.apply` alone acts on them, so that replaying the journal gives the same memory.
"""

from dataclasses import dataclass
from typing import Any

from imlmesh_protocol.errors import Fault
from imlmesh_protocol.limits import RESULT_CHUNK_BYTES
from imlmesh_protocol.permits import Permit
from imlmesh_protocol.states import Effect


@dataclass(slots=True)
class Bulk:
    """A result that one message cannot carry: `size` bytes of msgpack, kept in the journal alone."""

    size: int
    sha256: bytes

    @property
    def chunks(self) -> int:
        """How many messages carry it."""
        return -(-self.size // RESULT_CHUNK_BYTES)


@dataclass(slots=True)
class ResultRecord:
    """How a dispatch ended; `outcome` is one of messages.OUTCOMES, `error` None when completed.

    With `bulk` the result itself is not here but in the journal.
    """

    dispatch: str
    hash: bytes
    outcome: str
    result: Any
    error: Fault | None
    duration_ms: int
    bulk: Bulk | None = None


@dataclass(slots=True)
class DispatchTaken:
    """The node holds this dispatch from now on: never again refused, never forgotten."""

    dispatch: str
    hash: bytes
    effect: Effect
    at_ms: int


@dataclass(slots=True)
class IntentRecorded:
    """The durable intent: committed before a once or physical effect may begin."""

    dispatch: str


@dataclass(slots=True)
class ResultRecorded:
    """`packed` is the msgpack of a result with `bulk`, to be stored and not kept in memory."""

    result: ResultRecord
    packed: bytes = b""


@dataclass(slots=True)
class DispatchSettled:
    """The orchestrator has stored the result: the node forgets the dispatch."""

    dispatch: str


@dataclass(slots=True)
class FloorRaised:
    """A delegate at or below this place is old: it is refused even after a restart."""

    epoch: int
    seq: int


@dataclass(slots=True)
class LossTold:
    """The orchestrator has heard that the journal of before is lost."""


@dataclass(slots=True)
class QuarantineSet:
    """Whether the orchestrator has put this node in quarantine; `False` is its release."""

    quarantined: bool


@dataclass(slots=True)
class PermitTaken:
    """The node holds this permit, as it was signed; one that it held before counts on."""

    permit: Permit
    document: bytes


@dataclass(slots=True)
class PermitDropped:
    """It begins no run of this permit any more; what it has run still counts, should it come again."""

    permit: str


@dataclass(slots=True)
class PermitForgotten:
    """The time of the permit is over, by the orchestrator's clock: nobody asks for it again."""

    permit: str


@dataclass(slots=True)
class PermitRunBegun:
    """One run more of the permit's budget is gone, before anything of it is done; `at_ms` in mesh time."""

    permit: str
    number: int
    at_ms: int


@dataclass(slots=True)
class PermitRunEnded:
    """Nothing of its open run is left to do: it is reported as a whole."""

    permit: str


@dataclass(slots=True)
class MeshTimeNoted:
    """So late it is by the orchestrator's clock. `met`: after the node was cut off, which now is over."""

    at_ms: int
    met: bool


Change = (
    PermitTaken
    | PermitDropped
    | PermitForgotten
    | PermitRunBegun
    | PermitRunEnded
    | MeshTimeNoted
    | DispatchTaken
    | IntentRecorded
    | ResultRecorded
    | DispatchSettled
    | FloorRaised
    | LossTold
    | QuarantineSet
)
