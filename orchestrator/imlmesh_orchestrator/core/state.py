"""What the orchestrator's core remembers: nodes, groups, runs, dispatches, approvals, memory.

The one rule: only `core/apply.py` writes the durable part, and it does so from changes alone;
what stands in `presence`, and what the bus does, is volatile, empty after a restart, and outside the
replay comparison.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from imlmesh_orchestrator.core.calls import Call
from imlmesh_orchestrator.core.joining_state import EnrolledRecord, JoinRecord, TokenRecord
from imlmesh_orchestrator.core.permit_state import PermitRecord, ReportRecord
from imlmesh_orchestrator.core.presence import Freeze, Presence, Sightings
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.iml.plan import Action, Plan
from imlmesh_protocol.manifest import Manifest
from imlmesh_protocol.states import (
    ACTION_ENDED,
    RUN_ENDED,
    ActionState,
    Admission,
    ApprovalState,
    DispatchState,
    Effect,
    Liveness,
    RunState,
)

# a name of an enum costs ten times a global, and this one is asked for with every action
_COMPLETED = ActionState.COMPLETED


@dataclass(slots=True)
class NodeRecord:
    node: str
    alias: str
    boot: int
    session: int
    manifest: Manifest
    facts: Mapping[str, Any]
    profile: str
    heartbeat_ms: int
    lost_ms: int
    liveness: Liveness = Liveness.OFFLINE
    labels: Mapping[str, Any] = field(default_factory=dict)
    #: dispatches of this node that have not ended; a dict for its order
    live: dict[str, None] = field(default_factory=dict)
    #: what it last asked a person about, and when
    escalation: Fault | None = None
    escalated_ms: int = 0
    #: volatile: the node said that it is full; cleared by its next heartbeat
    full: bool = field(default=False, compare=False)
    #: volatile: rises with each birth that says something new
    described: int = field(default=0, compare=False)

    @property
    def names(self) -> dict[str, Any]:
        """What a selector may ask: facts, overlaid by labels, and the node's own names."""
        return {**self.facts, **self.labels, "node": self.node, "alias": self.alias}


@dataclass(slots=True)
class AdmissionRecord:
    """Of a node that is not open. `until_ms` 0 is until somebody changes it."""

    node: str
    admission: Admission
    reason: str
    by: str
    changed_ms: int
    until_ms: int
    #: volatile: whether it is on probation, how many probes it answered, whether one is under way
    probation: bool = field(default=False, compare=False)
    probes: int = field(default=0, compare=False)
    probing: bool = field(default=False, compare=False)


@dataclass(slots=True)
class Gate:
    """One distinct `depends_on` set: counts down, then releases all that wait behind it."""

    depends_on: tuple[str, ...]
    remaining: int = 0
    #: from 1; the same for all that wait behind it
    wave: int = 0
    members: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ActionRecord:
    """A unit of work: an action of the plan, one member of it, or the compensation of one.

    `key` names it within the run: `ID`, `ID@NODE` (a member), `ID~NODE` (a compensation).
    """

    key: str
    action: Action
    #: what follows from the action alone
    call: Call
    #: what it waits behind; a member like the whole, what only undoes for nothing
    gate: Gate | None
    params: Mapping[str, Any]
    templated: bool
    #: gates that count this action
    opens: tuple[Gate, ...]
    #: whether several nodes do it, each on its own
    member_wise: bool = False
    state: ActionState = ActionState.PENDING
    #: how many dispatches it has had; the current one's id, "" when none
    attempt: int = 0
    dispatch: str = ""
    result: Any = None
    fault: Fault | None = None
    #: nodes that refused it, and nodes that were lost with it
    refused_by: tuple[str, ...] = ()
    lost_on: tuple[str, ...] = ()
    #: nodes where its driver crashed
    crashed_on: tuple[str, ...] = ()
    #: failures that a node reported, and when it is tried again (0: not waiting for that)
    failures: int = 0
    retry_at_ms: int = 0
    #: the dispatch that was too slow and has a copy elsewhere, "" without one
    copied: str = ""
    #: what the approved gate was bound to, "" without one
    approved: str = ""
    #: node of the last dispatch that may have had an effect, and how many ended before this one
    worked_on: str = ""
    order: int = 0
    #: members by key, once they are fixed; a member's or compensation's own node and superior
    members: dict[str, "ActionRecord"] | None = None
    node: str = ""
    parent: "ActionRecord | None" = field(default=None, repr=False, compare=False)
    #: of a compensation: key of what it undoes, and the params of a driver's own undo
    undoes: str = ""
    undo_params: Mapping[str, Any] | None = None
    #: volatile: already in a pool
    queued: bool = field(default=False, compare=False)

    @property
    def wave(self) -> int:
        """From 1; 0 for what only undoes."""
        return self.gate.wave if self.gate else 0

    @property
    def ended(self) -> bool:
        return self.state in ACTION_ENDED

    @property
    def satisfied(self) -> bool:
        """Whether dependents may run: completed, or failed and continued."""
        if self.state is _COMPLETED:
            return True
        return self.state is ActionState.FAILED and self.action.on_error == "continue"


@dataclass(slots=True)
class RunRecord:
    run: str
    plan: Plan
    digest: str
    by: str
    expires_at_ms: int
    #: what one of its actions counts beside those of other runs; see `queues`
    cost: float
    starts_at_ms: int
    #: the actions of the plan by id, and all units of work by key: these, members, compensations;
    #: one dict while there is nothing but actions, for a second one of 100,000 costs memory and time
    actions: dict[str, ActionRecord]
    units: dict[str, ActionRecord]
    gates: list[Gate]
    #: ids in the order of a sequential run; None when actions go as soon as they can
    sequence: list[str] | None
    #: actions that run only when something is undone
    compensation_only: frozenset[str]
    #: actions whose results are read later: by templates, by memory, by an undo
    needed: frozenset[str]
    #: with a barrier: how many actions of each wave (from 1) have not ended
    waves: list[int] | None
    state: RunState = RunState.PENDING
    #: actions that have not ended, but for compensation-only ones; and how many units have
    open: int = 0
    ended_units: int = 0
    aborting: Fault | None = None
    #: whether an abort or a cancel ended actions that had not begun or were not confirmed
    cut_short: bool = False
    #: actions that failed with on_error rollback; the compensations planned for them, in order
    rollbacks: tuple[str, ...] = ()
    compensations: tuple[str, ...] | None = None
    compensation_pending: bool = False
    #: actions that may repeat an effect of the run that this one retries, and where they ran
    again: Mapping[str, str] = field(default_factory=dict)
    #: what completed there and is not repeated, by the key of its unit
    kept: Mapping[str, Any] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: open approvals by the key of the unit that they are about
    questions: dict[str, str] = field(default_factory=dict)
    dispatches: list[str] = field(default_factory=list)
    #: how many ms pure drivers of each (module, action) took of late
    durations: dict[tuple[str, str], deque[int]] = field(default_factory=dict)
    #: volatile: index into `sequence` of the first action that may not have ended
    cursor: int = field(default=0, compare=False)
    #: volatile: the share of nodes that it has had, weighted by priority
    served: float = field(default=0.0, compare=False)

    @property
    def ended(self) -> bool:
        return self.state in RUN_ENDED

    def add_unit(self, key: str, record: ActionRecord) -> None:
        """A member or a compensation."""
        if self.units is self.actions:
            self.units = dict(self.actions)
        self.units[key] = record

    @property
    def starting(self) -> bool:
        """Whether new actions of the plan may still start, now or later."""
        return self.aborting is None and self.state in _STARTING

    @property
    def starting_now(self) -> bool:
        """Whether new actions of the plan may start now."""
        return self.aborting is None and self.state in _PLACING

    def may_place(self, record: ActionRecord) -> bool:
        """Whether this unit may be given to a node now."""
        return self.state in _PLACING and (self.aborting is None or record.undoes != "")


_PLACING = frozenset({RunState.PENDING, RunState.RUNNING})
_STARTING = frozenset({RunState.PENDING, RunState.RUNNING, RunState.PAUSED})


@dataclass(slots=True)
class DispatchRecord:
    """`action` is the key of the unit of work that it is an attempt of."""

    dispatch: str
    run: str
    action: str
    node: str
    #: what is sent; empty once nobody reads it any more
    bin: bytes
    hash: bytes
    effect: Effect
    timeout_ms: int
    lease_ms: int
    on_loss: str
    state: DispatchState = DispatchState.PLANNED
    #: when its node told that the driver runs; 0 when it has not
    started_ms: int = 0


@dataclass(slots=True)
class ApprovalRecord:
    approval: str
    kind: str
    run: str
    action: str
    dispatch: str
    options: tuple[str, ...]
    on_expiry: str
    expires_at_ms: int
    digest: str = ""
    state: ApprovalState = ApprovalState.PENDING


@dataclass(slots=True)
class State:
    epoch: int = 0
    run_counter: int = 0
    approval_counter: int = 0
    enrolled: dict[str, EnrolledRecord] = field(default_factory=dict)
    #: enrolled ids by raw public key
    identities: dict[bytes, str] = field(default_factory=dict)
    tokens: dict[str, TokenRecord] = field(default_factory=dict)
    #: who waits for a person, and until when whom nobody wants to see, by raw public key
    joins: dict[bytes, JoinRecord] = field(default_factory=dict)
    ignored: dict[bytes, int] = field(default_factory=dict)
    #: until when the door is open, and by whom
    open_until_ms: int = 0
    opened_by: str = ""
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    #: of nodes that are not open, whether they were ever born or not
    admissions: dict[str, AdmissionRecord] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    runs: dict[str, RunRecord] = field(default_factory=dict)
    dispatches: dict[str, DispatchRecord] = field(default_factory=dict)
    approvals: dict[str, ApprovalRecord] = field(default_factory=dict)
    #: values by (session, key), the oldest-written first; their sizes in bytes, and the sum
    memory: dict[tuple[str, str], Any] = field(default_factory=dict)
    memory_sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    memory_bytes: int = 0
    #: nonce to (run, digest), the oldest first
    nonces: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: signed heads (size, root) that the ledger does not contain: who holds them; while there is one
    #: nothing new starts. And those that a person gave up, the oldest first
    doubts: dict[tuple[int, bytes], str] = field(default_factory=dict)
    acknowledged: dict[tuple[int, bytes], None] = field(default_factory=dict)
    permits: dict[str, PermitRecord] = field(default_factory=dict)
    permit_counter: int = 0
    active: int = 0
    #: by (module, action) how many nodes declare an impact that a person must be asked about
    risky: dict[tuple[str, str], int] = field(default_factory=dict)
    #: rises when anything that decides who may run what has changed
    generation: int = 0
    #: nodes by the generation of their last change, the latest last
    touched: dict[str, int] = field(default_factory=dict, compare=False)
    # volatile from here on
    presence: dict[str, Presence] = field(default_factory=dict)
    sightings: dict[str, Sightings] = field(default_factory=dict)
    #: when the mesh itself quarantined nodes of late
    quarantined_ms: deque[int] = field(default_factory=deque)
    bus_open: bool = False
    #: when a node that was awaited since our connection opened last came back
    returned_ms: int = 0
    #: whether what we say to ourselves through the broker comes back
    hears: bool = True
    freeze: Freeze | None = None
    #: from when to when most nodes went away the last time that they did so together
    together_ms: tuple[int, int] = (0, 0)
    #: told to end
    stopping: bool = False
    behind: bool = False
    #: dispatches whose late result was kept as evidence, oldest first
    kept: dict[str, None] = field(default_factory=dict)
    #: of runs by permit that are not whole yet
    reports: dict[str, ReportRecord] = field(default_factory=dict)
    #: nodes whose permits are looked at again: the deadline heap holds one entry for each
    permits_watched: set[str] = field(default_factory=set)
    recent: deque[str] = field(default_factory=deque)
    recent_dispatches: int = 0

    def touched_since(self, generation: int) -> list[NodeRecord]:
        """The nodes that changed after this generation."""
        latest_first = reversed(self.touched.items())
        names = takewhile(lambda one: one[1] > generation, latest_first)
        return [self.nodes[name] for name, _ in names]

    def admission_of(self, node: str) -> Admission:
        """Whether this node (id) may get work."""
        record = self.admissions.get(node)
        return Admission.OPEN if record is None else record.admission

    def find_node(self, name: str) -> NodeRecord | None:
        """A node that was born, by alias or id."""
        return self.nodes.get(self.aliases.get(name, name))

    def find_id(self, name: str) -> str | None:
        """The id of a node, born or not, by alias or id. An alias goes first: that of a replaced
        node belongs to another one, even where it was its id."""
        node = self.aliases.get(name, name)
        return node if node in self.nodes or node in self.enrolled else None

    def alias_of(self, node: str) -> str:
        """What people call a node (an id), born or not; its id when nobody introduced it."""
        record = self.nodes.get(node) or self.enrolled.get(node)
        return node if record is None else record.alias
