"""What can happen to the orchestrator, in the past tense.

Every event has `at_ms` (mesh time) and `cause` (the id of the message or request behind it), which
is copied into every change that follows from it. Mutable slotted classes: making a frozen one costs
three times as much, and nobody but the scheduler ever sees them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imlmesh_protocol.errors import Fault
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.manifest import Manifest
from imlmesh_protocol.states import Admission


@dataclass(slots=True)
class Event:
    at_ms: int
    cause: str


@dataclass(slots=True)
class Restarted(Event):
    """The process is up, the store was replayed; `epoch` is already one higher than ever before."""

    epoch: int


@dataclass(slots=True)
class BusOpened(Event):
    """Our own connection to the broker is (again) up: silence before it says nothing of nodes."""


@dataclass(slots=True)
class BusClosed(Event):
    """Our own connection is down: no verdict on any node until it is back."""


@dataclass(slots=True)
class LoopbackMeasured(Event):
    """Whether what we say to ourselves through the broker comes back in time."""

    hears: bool


@dataclass(slots=True)
class StoodStill(Event):
    """Our own machine or process did nothing for `for_ms`: it was suspended or stopped."""

    for_ms: int


@dataclass(slots=True)
class SilenceExplained(Event):
    """A person says that the nodes that fell silent together are gone."""

    by: str
    reason: str


@dataclass(slots=True)
class StopAsked(Event):
    """The process was told to end: nothing new is placed."""


@dataclass(slots=True)
class Retried:
    """What a run takes over from the ended run `of` that it retries, by action id.

    `kept` completed there: {action: [[node, ...], result]}, the result of a member-wise action by
    node; of one that did not complete each member that did, {member: [[node], result]}. `again` is
    what may repeat an effect: {action: where it ran}; `left` stays skipped.
    """

    of: str
    kept: Mapping[str, Any]
    again: Mapping[str, str]
    left: tuple[str, ...]


@dataclass(slots=True)
class PlanSubmitted(Event):
    """A validated plan; `by` is who asked, `dice` 64 random bits; nothing starts before `starts_at_ms`."""

    dice: int
    plan: Plan
    digest: str
    by: str
    priority: int = 0
    starts_at_ms: int = 0
    retried: Retried | None = None


@dataclass(slots=True)
class CancelAsked(Event):
    run: str
    by: str


@dataclass(slots=True)
class PauseAsked(Event):
    run: str
    by: str


@dataclass(slots=True)
class ResumeAsked(Event):
    run: str
    by: str


@dataclass(slots=True)
class MemorySet(Event):
    """A person writes a value of a session's memory."""

    session: str
    key: str
    value: Any
    by: str


@dataclass(slots=True)
class MemoryDeleteAsked(Event):
    session: str
    key: str
    by: str


@dataclass(slots=True)
class AnswerGiven(Event):
    """A person chose an option of an approval."""

    approval: str
    option: str
    by: str


@dataclass(slots=True)
class GroupSet(Event):
    """From now on the group has exactly these nodes (ids); none removes it."""

    group: str
    nodes: tuple[str, ...]


@dataclass(slots=True)
class LabelsSet(Event):
    """Labels of one node that change; None removes one."""

    node: str
    labels: Mapping[str, Any]


@dataclass(slots=True)
class AdmissionAsked(Event):
    """A person decides whether a node (id) may get work; `for_ms` 0 is until somebody changes it."""

    node: str
    admission: Admission
    reason: str
    by: str
    for_ms: int = 0


@dataclass(slots=True)
class EvidenceSeen(Event):
    """A message that the node itself signed speaks against it; see `evidence`.

    Sightings with the same `mark` count once.
    """

    node: str
    kind: str
    text: str
    mark: str


@dataclass(slots=True)
class EnrolAsked(Event):
    """Somebody who may (`by`) lets a node in, for whom a certificate was made. `identity` is its raw
    public key, `serial` the certificate's number as text, `not_after_ms` its end in wall time."""

    node: str
    alias: str
    identity: bytes
    profile: str
    by: str
    serial: str
    not_after_ms: int


@dataclass(slots=True)
class TokenAsked(Event):
    """A person wants a token; its secret and id were made, `key` is derived from the secret."""

    token: str
    key: bytes
    uses: int
    profile: str
    groups: tuple[str, ...]
    ttl_ms: int
    by: str


@dataclass(slots=True)
class TokenRevokeAsked(Event):
    token: str
    by: str


@dataclass(slots=True)
class JoinAsked(Event):
    """Whoever holds the key of `identity` (raw) asks to be `node`. `token`, when there is one, was
    `proven` or not; `code` is what both sides show without one; with neither it asks again.
    `profile` "" leaves it to the mesh."""

    node: str
    identity: bytes
    profile: str
    address: str
    token: str
    proven: bool
    code: str


@dataclass(slots=True)
class JoinAnswered(Event):
    """A person answers a node that waits, by its id or code. `replaces` names the node whose alias
    it takes over, `profile` is another one than it asked for; both may be ""."""

    name: str
    approved: bool
    profile: str
    replaces: str
    by: str


@dataclass(slots=True)
class JoinWindowAsked(Event):
    """A person opens the door for so long, or closes it with 0."""

    for_ms: int
    by: str


@dataclass(slots=True)
class GrantAsked(Event):
    """A person says how much a node may do at most, whatever its own policy allows."""

    node: str
    profile: str
    by: str


@dataclass(slots=True)
class NodeBirth(Event):
    """A node says that it is here, in a session of a boot, and what it can do."""

    node: str
    alias: str
    boot: int
    session: int
    manifest: Manifest
    facts: Mapping[str, Any]
    profile: str
    heartbeat_ms: int
    lost_ms: int
    #: the boot that began its journal: it knows nothing of what it held in earlier ones
    journal_since: int = 0
    #: the permits that it holds, and how often each has run
    permits: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class EscalationArrived(Event):
    """The node asks for a person."""

    node: str
    fault: Fault


@dataclass(slots=True)
class NodeGone(Event):
    """The broker's word: the connection of this session broke. Only a suspicion."""

    node: str
    boot: int
    session: int


@dataclass(slots=True)
class NodeLeft(Event):
    """The node said goodbye: its leases are ended."""

    node: str
    boot: int
    session: int


@dataclass(slots=True)
class HeartbeatArrived(Event):
    node: str
    boot: int
    session: int
    beat: int
    held: tuple[str, ...]
    health: Mapping[str, Any]


@dataclass(slots=True)
class AcceptArrived(Event):
    """The node holds these dispatches in its journal; `started` have a running driver."""

    node: str
    dispatches: tuple[tuple[str, bytes], ...]
    started: tuple[str, ...]


@dataclass(slots=True)
class RejectArrived(Event):
    node: str
    refusals: tuple[tuple[str, Fault], ...]


@dataclass(slots=True)
class Result:
    """How one dispatch ended, in the node's words. `outcome` is one of wire.messages.OUTCOMES."""

    dispatch: str
    hash: bytes
    outcome: str
    duration_ms: int
    result: Any = None
    error: Fault | None = None


@dataclass(slots=True)
class ResultsArrived(Event):
    node: str
    results: tuple[Result, ...]


@dataclass(slots=True)
class InventoryArrived(Event):
    """What the node's journal holds; answers `AskInventory` with the same nonce."""

    node: str
    nonce: str
    held: tuple[str, ...]
    unsettled: tuple[str, ...]


@dataclass(slots=True)
class OutflowMeasured(Event):
    """Whether the mover lags so far that nothing new may be dispatched (`store.behind`)."""

    behind: bool


@dataclass(slots=True)
class SealContradicted(Event):
    """The ledger does not contain this head, though the ledger key signed it; `witness` holds it."""

    witness: str
    size: int
    root: bytes


@dataclass(slots=True)
class AcknowledgementGiven(Event):
    """A person wants to go on although the ledger is doubted."""

    by: str
    reason: str
