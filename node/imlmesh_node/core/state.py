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
    QuarantineSet,
    ResultRecord,
    ResultRecorded,
)
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
class AgentState:
    """`records` by dispatch id, in the order taken; `floor` is the highest (epoch, seq) stored;
    `lost`: an earlier journal was, and no orchestrator has heard of it."""

    records: dict[str, JournalRecord] = field(default_factory=dict)
    floor: tuple[int, int] = (0, 0)
    lost: bool = False
    quarantined: bool = False


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


_APPLY: dict[type, Callable[[AgentState, Any], None]] = {
    DispatchTaken: _taken,
    IntentRecorded: _started,
    ResultRecorded: _recorded,
    DispatchSettled: _settled,
    FloorRaised: _raised,
    LossTold: _loss_told,
    QuarantineSet: _quarantine,
}
