"""A node's memory: the durable part, which only `apply` changes, and how it is folded.

The one rule: what is here survives a kill -9; slots, claims, leases and sessions do not and live
in the agent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from imlmesh_node.core.changes import (
    Change,
    DispatchSettled,
    DispatchTaken,
    FloorRaised,
    IntentRecorded,
    LossTold,
    MeshTimeNoted,
    PermitDropped,
    PermitForgotten,
    PermitRunBegun,
    PermitRunEnded,
    PermitTaken,
    QuarantineSet,
    ResultRecord,
    ResultRecorded,
)
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.permits import Permit
from imlmesh_protocol.states import Effect


@dataclass(slots=True)
class JournalRecord:
    """What the node knows of one dispatch for as long as the orchestrator might ask."""

    dispatch: str
    hash: bytes
    effect: Effect
    started: bool = False
    result: ResultRecord | None = None


@dataclass(slots=True)
class HeldPermitRecord:
    """A permit, also one that was dropped: how many runs of it are `used`, whether the last is `open`.

    `begun_ms`: mesh time of its last run. `spent`: one has begun since the node was cut off.
    """

    permit: Permit
    document: bytes
    used: int = 0
    begun_ms: int = 0
    open: bool = False
    spent: bool = False
    dropped: bool = False
    #: volatile: why a start of the agent did not believe it any more
    refusal: Fault | None = field(default=None, compare=False)


@dataclass(slots=True)
class AgentState:
    """`records` by dispatch id, in the order taken; `floor` is the highest (epoch, seq) stored;
    `lost`: an earlier journal was, and no orchestrator has heard of it; `mesh_ms`: the latest mesh time
    that was written down."""

    records: dict[str, JournalRecord] = field(default_factory=dict)
    floor: tuple[int, int] = (0, 0)
    lost: bool = False
    quarantined: bool = False
    permits: dict[str, HeldPermitRecord] = field(default_factory=dict)
    mesh_ms: int = 0


def apply(state: AgentState, change: Change) -> None:
    """Change the memory; nothing else may."""
    _APPLY[type(change)](state, change)


def _taken(state: AgentState, change: DispatchTaken) -> None:
    state.records[change.dispatch] = JournalRecord(change.dispatch, change.hash, change.effect)


def _started(state: AgentState, change: IntentRecorded) -> None:
    state.records[change.dispatch].started = True


def _recorded(state: AgentState, change: ResultRecorded) -> None:
    state.records[change.result.dispatch].result = change.result


def _settled(state: AgentState, change: DispatchSettled) -> None:
    del state.records[change.dispatch]


def _raised(state: AgentState, change: FloorRaised) -> None:
    state.floor = (change.epoch, change.seq)


def _loss_told(state: AgentState, change: LossTold) -> None:
    state.lost = False


def _quarantine(state: AgentState, change: QuarantineSet) -> None:
    state.quarantined = change.quarantined


def _permit_taken(state: AgentState, change: PermitTaken) -> None:
    record = state.permits.get(change.permit.id)
    if record is None:
        state.permits[change.permit.id] = HeldPermitRecord(change.permit, change.document)
    else:
        record.permit, record.document = change.permit, change.document
        record.dropped, record.refusal = False, None


def _permit_dropped(state: AgentState, change: PermitDropped) -> None:
    state.permits[change.permit].dropped = True


def _permit_forgotten(state: AgentState, change: PermitForgotten) -> None:
    del state.permits[change.permit]


def _permit_run_begun(state: AgentState, change: PermitRunBegun) -> None:
    record = state.permits[change.permit]
    record.used, record.begun_ms = change.number, change.at_ms
    record.open = record.spent = True
    state.mesh_ms = max(state.mesh_ms, change.at_ms)


def _permit_run_ended(state: AgentState, change: PermitRunEnded) -> None:
    state.permits[change.permit].open = False


def _mesh_time_noted(state: AgentState, change: MeshTimeNoted) -> None:
    state.mesh_ms = change.at_ms
    for record in state.permits.values():
        # the node's own clock may have been ahead while it was cut off
        record.begun_ms = min(record.begun_ms, change.at_ms)
        record.spent = record.spent and not change.met


_APPLY: dict[type, Callable[[AgentState, Any], None]] = {
    DispatchTaken: _taken,
    IntentRecorded: _started,
    ResultRecorded: _recorded,
    DispatchSettled: _settled,
    FloorRaised: _raised,
    LossTold: _loss_told,
    QuarantineSet: _quarantine,
    PermitTaken: _permit_taken,
    PermitDropped: _permit_dropped,
    PermitForgotten: _permit_forgotten,
    PermitRunBegun: _permit_run_begun,
    PermitRunEnded: _permit_run_ended,
    MeshTimeNoted: _mesh_time_noted,
}
