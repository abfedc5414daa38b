"""What a node's core asks for; the shell performs it after the commit, in order.

The one rule: imperative, and complete: the shell adds only what the core may not know (health,
manifest, signatures). Pins made safe after a kill are the executor's own duty, not a command.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from imlmesh_node.core.changes import Bulk, ResultRecord
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.dispatches import Dispatch


class KillReason(StrEnum):
    """Why a running driver is ended, and so how its dispatch ends once that is confirmed."""

    TIMEOUT = "timeout"
    CANCEL = "cancel"
    LEASE = "lease"
    SHUTDOWN = "shutdown"


def killed(dispatch: Dispatch, reason: KillReason) -> tuple[str, Fault]:
    """(outcome, fault) of a dispatch whose driver was killed for `reason`."""
    if reason is KillReason.TIMEOUT:
        return "timed_out", Fault("driver.timeout", f"not done after {dispatch.timeout_ms} ms")
    if reason is KillReason.CANCEL:
        return "cancelled", Fault("action.cancelled", "cancelled while it ran")
    if reason is KillReason.LEASE:
        return "failed", Fault("action.lease_lost", "the node was cut off and ended the work")
    return interrupted(dispatch.effect, "the node was shut down while it ran")


def interrupted(effect: Effect, message: str) -> tuple[str, Fault]:
    """(outcome, fault) of work that the end of the agent cut short."""
    return cut_short(effect), Fault("node.interrupted", message)


def cut_short(effect: Effect) -> str:
    """The outcome of what ended in the middle by no fault of its own: unknown if it matters."""
    return "failed" if effect.repeatable else "unknown"


def left_over(effect: Effect, *, started: bool) -> tuple[str, Fault]:
    """(outcome, fault) of what an earlier agent held and said no end of."""
    if started:
        return interrupted(effect, "the machine or its agent restarted while it ran")
    return "failed", Fault("action.not_started", "the agent restarted before it started")


@dataclass(slots=True)
class SendAccept:
    """`pairs` are (dispatch id, hash); `started` those of them whose driver has started."""

    pairs: tuple[tuple[str, bytes], ...]
    started: tuple[str, ...] = ()


@dataclass(slots=True)
class SendReject:
    refusals: tuple[tuple[str, Fault], ...]


@dataclass(slots=True)
class SendComplete:
    """`early`: how repeatable work ended, which may leave before the commit."""

    results: tuple[ResultRecord, ...]
    early: bool = False


@dataclass(slots=True)
class SendChunk:
    """One piece of a result whose `bulk` the journal has."""

    result: ResultRecord
    bulk: Bulk
    index: int


@dataclass(slots=True)
class SendHeartbeat:
    beat: int
    held: tuple[str, ...]


@dataclass(slots=True)
class SendStatus:
    """`state` is online (a birth) or offline (a goodbye, the last command of an agent); `permits` are
    those that a birth tells of, with how often each has run."""

    state: str
    permits: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Escalate:
    """Ask for a person."""

    fault: Fault


@dataclass(slots=True)
class SendInventory:
    nonce: str
    held: tuple[str, ...]
    unsettled: tuple[str, ...]


@dataclass(slots=True)
class RunDriver:
    """`early`: repeatable work that may begin before the commit."""

    dispatch: Dispatch
    early: bool = False


@dataclass(slots=True)
class CheckDispatch:
    """Ask the guard about a dispatch of the core's own; answered by one DispatchChecked. `hash` is that of
    its bin, as it was permitted."""

    dispatch: Dispatch
    hash: bytes


@dataclass(slots=True)
class KillDriver:
    """End a running driver; answered by exactly one DriverFinished, its own or that of `killed`."""

    dispatch: Dispatch
    reason: KillReason


@dataclass(slots=True)
class NoteRefusal:
    """Count a message that is not acted upon."""

    fault: Fault


Command = (
    SendAccept
    | SendReject
    | SendComplete
    | SendChunk
    | SendHeartbeat
    | SendStatus
    | Escalate
    | SendInventory
    | RunDriver
    | CheckDispatch
    | KillDriver
    | NoteRefusal
)
