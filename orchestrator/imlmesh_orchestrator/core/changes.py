"""What the orchestrator decided, as it is stored: the append-only truth.

The one rule: `core/apply.py` turns these, and nothing else, into state; a replay of them gives
the same state. Fields are plain values, so that each change is one row of `changes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imlmesh_protocol.errors import Fault
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.manifest import Manifest
from imlmesh_protocol.states import (
    ActionState,
    ApprovalState,
    DispatchState,
    Effect,
    Liveness,
    RunState,
)


@dataclass(slots=True)
class Change:
    at_ms: int
    cause: str


@dataclass(slots=True)
class EpochRaised(Change):
    epoch: int


@dataclass(slots=True)
class NodeEnrolled(Change):
    """From now on what is signed by `identity` (a raw public key) is the node's; its id is taken for
    ever. `profile` is the ceiling that `by` granted."""

    node: str
    alias: str
    identity: bytes
    profile: str
    by: str


@dataclass(slots=True)
class CertificateIssued(Change):
    """The certificate that an enrolled node calls the broker with; `not_after_ms` is wall time."""

    node: str
    serial: str
    not_after_ms: int


@dataclass(slots=True)
class NodeDescribed(Change):
    """A birth: who the node is and what it can do. The first one makes the node known."""

    node: str
    alias: str
    boot: int
    session: int
    manifest: Manifest
    facts: Mapping[str, Any]
    profile: str
    heartbeat_ms: int
    lost_ms: int


@dataclass(slots=True)
class NodeReturned(Change):
    """A birth that says nothing new but its session: described again, it would fill the store."""

    node: str
    boot: int
    session: int


@dataclass(slots=True)
class LivenessChanged(Change):
    node: str
    liveness: Liveness
    reason: str


@dataclass(slots=True)
class VerdictsFrozen(Change):
    """An alarm: `silent` of `of` nodes fell silent together, so it is not about single ones; none is
    lost until they speak, the broker says that they are gone, or a person does."""

    silent: tuple[str, ...]
    of: int


@dataclass(slots=True)
class VerdictsResumed(Change):
    """Silence is judged again, after a fresh window; `by` is a person, or imlmesh."""

    by: str
    reason: str


@dataclass(slots=True)
class NodeEscalated(Change):
    """The node asked for a person."""

    node: str
    fault: Fault


@dataclass(slots=True)
class LabelsChanged(Change):
    """All labels of the node after the change."""

    node: str
    labels: Mapping[str, Any]


@dataclass(slots=True)
class GroupChanged(Change):
    """All nodes of the group after the change; none means that the group is gone."""

    group: str
    nodes: tuple[str, ...]


@dataclass(slots=True)
class MemoryWritten(Change):
    """A value of a session's memory; `by` is the dispatch or the person that wrote it."""

    session: str
    key: str
    value: Any
    size: int
    by: str


@dataclass(slots=True)
class MemoryDropped(Change):
    """A value is gone: deleted by a person, or the oldest one made room."""

    session: str
    key: str
    by: str


@dataclass(slots=True)
class NonceUsed(Change):
    """From now on this nonce names the run `of`, as long as the plan's digest is the same."""

    nonce: str
    of: str
    digest: str


@dataclass(slots=True)
class DoubtRaised(Change):
    """Something holds a signed head of the ledger that the ledger does not contain: it was cut or
    rewritten. Nothing new starts until a person acknowledges. `witness` is a node, or what it was."""

    witness: str
    size: int
    root: bytes


@dataclass(slots=True)
class DoubtsAcknowledged(Change):
    """A person knows of all doubts that are open and wants to go on without what was lost."""

    by: str
    reason: str


@dataclass(slots=True)
class RunChange(Change):
    """A change of one run. `action`, where there is one, is the key of the unit of work: the id of
    an action, `ID@NODE` for a member, `ID~NODE` for the compensation of an action on a node."""

    run: str


@dataclass(slots=True)
class RunCreated(RunChange):
    counter: int
    plan: Plan
    digest: str
    by: str
    expires_at_ms: int
    priority: int
    starts_at_ms: int


@dataclass(slots=True)
class RunRetried(RunChange):
    """The run takes over from an ended one; see `events.Retried` for the shapes."""

    of: str
    kept: Mapping[str, Any]
    again: Mapping[str, str]
    left: tuple[str, ...]


@dataclass(slots=True)
class RunPaused(RunChange):
    by: str


@dataclass(slots=True)
class RunResumed(RunChange):
    by: str


@dataclass(slots=True)
class MembersFixed(RunChange):
    """The nodes that a member-wise action stands for, one member each, in the order of rolling."""

    action: str
    nodes: tuple[str, ...]


@dataclass(slots=True)
class GroupFrozen(RunChange):
    """The nodes that the group stands for in this run, from now to its end."""

    group: str
    nodes: tuple[str, ...]


@dataclass(slots=True)
class ActionWaiting(RunChange):
    """The action is ready but not placed; `reasons` maps node id to error code."""

    action: str
    reasons: Mapping[str, str]


@dataclass(slots=True)
class DispatchPlanned(RunChange):
    """One attempt: `bin` is the exact bytes that travel, `hash` their SHA-256.

    `on_loss` is what the loss of the node means for it: reroute, wait, fail or ask.
    """

    dispatch: str
    action: str
    node: str
    attempt: int
    bin: bytes
    hash: bytes
    effect: Effect
    timeout_ms: int
    lease_ms: int
    on_loss: str


@dataclass(slots=True)
class DispatchAccepted(RunChange):
    dispatch: str


@dataclass(slots=True)
class DispatchStarted(RunChange):
    dispatch: str


@dataclass(slots=True)
class DispatchEnded(RunChange):
    """A dispatch that ended without a result: rejected, superseded, unknown; or to be redone."""

    dispatch: str
    state: DispatchState
    fault: Fault | None


@dataclass(slots=True)
class ResultTaken(RunChange):
    """A node's result; with `action_state` it also ends the action."""

    dispatch: str
    action: str
    state: DispatchState
    action_state: ActionState | None
    result: Any
    fault: Fault | None
    duration_ms: int


@dataclass(slots=True)
class RetryPlanned(RunChange):
    """A failure was reported; the action is tried again, not before `retry_at_ms`."""

    action: str
    failures: int
    fault: Fault
    retry_at_ms: int


@dataclass(slots=True)
class ResultKept(RunChange):
    """A result that came too late to count, kept as evidence. `run` may have been forgotten."""

    dispatch: str
    outcome: str
    result: Any
    fault: Fault | None


@dataclass(slots=True)
class ActionEnded(RunChange):
    """A unit that ended other than by a result of its own; what was undone keeps its fault."""

    action: str
    state: ActionState
    fault: Fault | None


@dataclass(slots=True)
class ActionsEnded(RunChange):
    """Many actions that end alike: skipped after an abort, cancelled with their run."""

    actions: tuple[str, ...]
    state: ActionState
    fault: Fault


@dataclass(slots=True)
class ActionUnknown(RunChange):
    """Nobody knows whether the effect of this once or physical action happened."""

    action: str
    dispatch: str
    fault: Fault


@dataclass(slots=True)
class ApprovalAsked(RunChange):
    """A question to a person; `on_expiry` is the option that silence chooses.

    `digest` is what a gate is bound to: plan, params and nodes; `risk` the plan's word, or "".
    """

    approval: str
    counter: int
    kind: str
    action: str
    dispatch: str
    message: str
    options: tuple[str, ...]
    on_expiry: str
    expires_at_ms: int
    risk: str
    digest: str


@dataclass(slots=True)
class ApprovalClosed(RunChange):
    approval: str
    state: ApprovalState
    option: str | None
    by: str


@dataclass(slots=True)
class RunCancelling(RunChange):
    by: str


@dataclass(slots=True)
class RunAborting(RunChange):
    """Nothing new starts in this run; it fails when what runs has ended."""

    fault: Fault
    action: str


@dataclass(slots=True)
class RollbackDue(RunChange):
    """This action failed and wants itself and its ancestors undone, when all that runs has ended."""

    action: str


@dataclass(slots=True)
class CompensationsPlanned(RunChange):
    """What is undone, in this order: (key, key of what is undone, node, action, params) each.

    Without params `action` is an action of the plan; with params it is the driver's own undo, and
    they are its params, already filled in.
    """

    compensations: tuple[tuple[str, str, str, str, Mapping[str, Any] | None], ...]


@dataclass(slots=True)
class RunEnded(RunChange):
    state: RunState
    fault: Fault | None
    unconfirmed: bool
    compensation_pending: bool
