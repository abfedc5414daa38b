"""What happened to a node: everything its core ever hears of.

The one rule: past tense, `at_ms` in mesh time, `cause` naming the message or event it came from.
Events are mutable only because that makes them three times cheaper; nobody changes one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imlmesh_protocol.errors import Fault
from imlmesh_protocol.permits import Permit
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.dispatches import Dispatch


@dataclass(slots=True)
class Arrival:
    """One dispatch of a delegate. `hash` is the SHA-256 of its bin.

    `refusal` is the guard's word, `instant` the executor's: it ends at once and takes no slot.
    """

    dispatch: Dispatch
    hash: bytes
    refusal: Fault | None = None
    instant: bool = False


@dataclass(slots=True)
class SessionOpened:
    """Connected, and the orchestrator has answered with the time. `dice` spreads heartbeats; `mesh_ms`
    is its time now, 0 where that is `at_ms`; `forgot`: it knows this node from before its journal began."""

    at_ms: int
    session: int
    epoch: int
    cause: str = ""
    dice: int = 0
    mesh_ms: int = 0
    forgot: bool = False


@dataclass(slots=True)
class SessionClosed:
    at_ms: int
    reason: str
    cause: str = ""


@dataclass(slots=True)
class DelegateArrived:
    """A verified delegate; (`epoch`, `seq`) is its place among all that orchestrators sent.

    `unread`: ids of what could not be read, and why.
    """

    at_ms: int
    dispatches: tuple[Arrival, ...]
    epoch: int
    seq: int
    cause: str = ""
    unread: tuple[tuple[str, Fault], ...] = ()


@dataclass(slots=True)
class AckArrived:
    """Answers a heartbeat (`beat`, or None), settles results, and wants chunks: (dispatch, index)."""

    at_ms: int
    beat: int | None
    settled: tuple[str, ...]
    epoch: int = 0
    seq: int = 0
    cause: str = ""
    wants: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class CancelArrived:
    at_ms: int
    dispatches: tuple[str, ...]
    cause: str = ""


@dataclass(slots=True)
class QuarantineArrived:
    """The orchestrator puts this node in quarantine, or releases it; its place as of a delegate."""

    at_ms: int
    quarantined: bool
    epoch: int
    seq: int
    cause: str = ""


@dataclass(slots=True)
class PermitArrived:
    """Believed permits with their documents to be held, and ids of those that hold no more; its place as
    of a delegate."""

    at_ms: int
    permits: tuple[tuple[Permit, bytes], ...]
    drop: tuple[str, ...]
    epoch: int
    seq: int
    cause: str = ""


@dataclass(slots=True)
class DispatchChecked:
    """The guard's word on a dispatch that the core itself made; see `commands.CheckDispatch`."""

    at_ms: int
    arrival: Arrival
    cause: str = ""


@dataclass(slots=True)
class SourceTold:
    """A source of this node saw something."""

    at_ms: int
    source: str
    values: Mapping[str, Any]
    cause: str = ""


@dataclass(slots=True)
class InventoryAsked:
    at_ms: int
    nonce: str
    cause: str = ""


@dataclass(slots=True)
class RebirthAsked:
    """The orchestrator, or a new epoch of it, wants to hear everything again."""

    at_ms: int
    cause: str = ""
    epoch: int = 0


@dataclass(slots=True)
class DriverFinished:
    """A driver's work ended, or its kill is confirmed. `outcome` is one of messages.OUTCOMES.

    A result that one message cannot carry comes as `packed`, its msgpack, and not as `result`.
    """

    at_ms: int
    dispatch: str
    outcome: str
    result: Any = None
    error: Fault | None = None
    duration_ms: int = 0
    cause: str = ""
    packed: bytes = b""


@dataclass(slots=True)
class ShutdownAsked:
    """The agent shall end: what runs may take `finish_ms` more, then drivers are stopped; then a
    goodbye is sent. Asked again, the shorter time holds."""

    at_ms: int
    finish_ms: int = 0
    cause: str = ""


Event = (
    SessionOpened
    | SessionClosed
    | DelegateArrived
    | AckArrived
    | CancelArrived
    | QuarantineArrived
    | PermitArrived
    | DispatchChecked
    | SourceTold
    | InventoryAsked
    | RebirthAsked
    | DriverFinished
    | Tick
    | ShutdownAsked
)
