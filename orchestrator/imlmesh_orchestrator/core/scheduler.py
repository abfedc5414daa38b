"""The core of the orchestrator: one event in, changes and commands out.

The one rule: every event has one handler in `_HANDLE`; after it all that is ready and has a node
with room is placed. State is written by `apply` alone, so a replay rebuilds everything but the
volatile queues, which `Restarted` fills again.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from imlmesh_orchestrator.core import (
    admission,
    approvals,
    doubts,
    enrolment,
    evidence,
    flow,
    joins,
    liveness,
    memory,
    permits,
    runs,
    silence,
    stragglers,
    tokens,
)
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core import permit_events as pe
from imlmesh_orchestrator.core.apply import apply
from imlmesh_orchestrator.core.commands import Command, Refuse, Reply
from imlmesh_orchestrator.core.deadlines import Deadline, Deadlines
from imlmesh_orchestrator.core.dispatching import take_accepts, take_rejects
from imlmesh_orchestrator.core.placement import Pools
from imlmesh_orchestrator.core.placing import place_ready
from imlmesh_orchestrator.core.results import take_results
from imlmesh_orchestrator.core.state import RunRecord, State
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import DISPATCH_LIVE, Admission, DispatchState, RunState
from imlmesh_protocol.tick import Tick


class Scheduler:
    """Holds the state; `env` are the IML_ variables that templates may read.

    `history` are the stored changes of nodes, groups, memory and runs that have not ended. With
    `four_eyes` nobody opens a gate of a run that they submitted.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        history: Iterable[c.Change] = (),
        *,
        four_eyes: bool = False,
    ) -> None:
        self.state = State()
        self._env = env
        self._four_eyes = four_eyes
        self._deadlines = Deadlines(self._matters)
        self._pools = Pools()
        for change in history:
            apply(self.state, change)

    def handle(self, event: e.Event | Tick) -> tuple[list[c.Change], list[Command]]:
        """Decide on one event; its changes are already applied to `state`.

        What a removed node said on its way out is not even heard.
        """
        if self.state.admissions and self._is_of_removed(event):
            return [], []
        turn = Turn(
            self.state,
            self._deadlines,
            self._pools,
            self._env,
            self._four_eyes,
            event.at_ms,
            event.cause,
        )
        _HANDLE[type(event)](turn, event)
        place_ready(turn)
        if turn.sent:
            self._deadlines.add_sent(event.at_ms + limits.ACCEPT_MS, turn.sent)
        return turn.changes, turn.commands

    def _is_of_removed(self, event: e.Event | Tick) -> bool:
        node = getattr(event, "node", "") if type(event) in _OF_NODES else ""
        return self.state.admission_of(node) is Admission.REVOKED

    def next_deadline_ms(self) -> int | None:
        """When a `Tick` is wanted, in mesh time."""
        return self._deadlines.next_ms()

    def _matters(self, kind: Deadline, key: Any) -> bool:
        """Whether a deadline still means anything: what it is about has not ended."""
        if kind in (Deadline.NODE, Deadline.INVENTORY, Deadline.PERMITS):
            return True
        if kind in (Deadline.ADMISSION, Deadline.PROBE):
            return key in self.state.admissions
        if kind is Deadline.PERMIT:
            return key in self.state.permits
        if kind is Deadline.APPROVAL:
            return key in self.state.approvals
        if kind in (Deadline.EXPIRY, Deadline.CANCEL, Deadline.START, Deadline.RETRY):
            run = self.state.runs.get(key[0] if kind is Deadline.RETRY else key)
            return run is not None and not run.ended
        names = key if kind is Deadline.ACCEPT else (key,)
        found = (self.state.dispatches.get(name) for name in names)
        return any(one is not None and one.state in DISPATCH_LIVE for one in found)


def _restarted(turn: Turn, event: e.Restarted) -> None:
    """Fill the volatile queues from the replayed state; nodes will tell what they hold."""
    state = turn.state
    turn.change(c.EpochRaised(turn.at_ms, turn.cause, event.epoch))
    for dispatch in state.dispatches.values():
        if dispatch.state in DISPATCH_LIVE:
            turn.deadlines.add_sent(turn.at_ms, [dispatch.dispatch])
            turn.deadlines.add(
                turn.at_ms + limits.START_MS + dispatch.timeout_ms,
                Deadline.FINISH,
                dispatch.dispatch,
            )
            if dispatch.started_ms:
                stragglers.started(turn, dispatch)
            if dispatch.on_loss == "reroute":
                over_ms = turn.at_ms + limits.reroute_ms(dispatch.lease_ms)
                turn.deadlines.add(over_ms, Deadline.REROUTE, dispatch.dispatch)
    admission.restarted(turn)
    permits.restarted(turn)
    for approval in state.approvals.values():
        turn.deadlines.add(approval.expires_at_ms, Deadline.APPROVAL, approval.approval)
    for run in list(state.runs.values()):
        if run.ended:
            continue
        turn.deadlines.add(run.expires_at_ms, Deadline.EXPIRY, run.run)
        if run.state is RunState.CANCELLING:
            turn.deadlines.add(turn.at_ms + limits.CANCEL_MS, Deadline.CANCEL, run.run)
        if run.starts_at_ms > turn.at_ms:
            turn.deadlines.add(run.starts_at_ms, Deadline.START, run.run)
        for unit in run.units.values():
            if unit.retry_at_ms > turn.at_ms:
                turn.deadlines.add(unit.retry_at_ms, Deadline.RETRY, (run.run, unit.key))
        flow.release_open(turn, run)


def _bus_opened(turn: Turn, event: e.BusOpened) -> None:
    liveness.bus_opened(turn)


def _bus_closed(turn: Turn, event: e.BusClosed) -> None:
    turn.state.bus_open = False


def _stood_still(turn: Turn, event: e.StoodStill) -> None:
    silence.fresh_windows(turn)


def _stop_asked(turn: Turn, event: e.StopAsked) -> None:
    turn.state.stopping = True


def _outflow_measured(turn: Turn, event: e.OutflowMeasured) -> None:
    turn.state.behind = event.behind


def _group_set(turn: Turn, event: e.GroupSet) -> None:
    known = turn.state.nodes.keys() | turn.state.enrolled.keys()
    unknown = [node for node in event.nodes if node not in known]
    if unknown:
        fault = Fault("place.unknown_node", f"no node {', '.join(unknown)}")
        turn.command(Refuse(event.cause, fault))
        return
    turn.change(c.GroupChanged(turn.at_ms, turn.cause, event.group, event.nodes))
    turn.command(Reply(event.cause, event.group))
    turn.pools.room()


def _labels_set(turn: Turn, event: e.LabelsSet) -> None:
    node = turn.state.nodes.get(event.node)
    if node is None:
        turn.command(Refuse(event.cause, Fault("node.not_found", f"no node {event.node}")))
        return
    labels = {**node.labels, **event.labels}
    kept = {name: value for name, value in labels.items() if value is not None}
    turn.change(c.LabelsChanged(turn.at_ms, turn.cause, node.node, kept))
    turn.command(Reply(event.cause, node.node))
    turn.pools.room()


def _born(turn: Turn, event: e.NodeBirth) -> None:
    known = turn.state.nodes.get(event.node)
    lost = known is not None and event.journal_since > known.boot
    began = known is not None and event.boot > known.boot
    came = known is None or (event.boot, event.session) != (known.boot, known.session)
    held = liveness.born(turn, event)
    permits.born(turn, event, lost=lost, began=began, came=came)
    admission.remind(turn, event.node)
    if held:
        evidence.of_return(turn, event.node)


def _beat(turn: Turn, event: e.HeartbeatArrived) -> None:
    if liveness.beat(turn, event):
        evidence.of_return(turn, event.node)


def _results_arrived(turn: Turn, event: e.ResultsArrived) -> None:
    take_results(turn, event)
    evidence.of_results(turn, event)


def _inventory_arrived(turn: Turn, event: e.InventoryArrived) -> None:
    if liveness.take_inventory(turn, event):
        admission.answered(turn, event.node)


def _tick(turn: Turn, event: Tick) -> None:
    wanted_ms = turn.deadlines.next_ms()
    if wanted_ms is not None and event.at_ms - wanted_ms > limits.TICK_LATE_MS:
        # nobody was heard meanwhile either
        silence.fresh_windows(turn)
    for kind, key in turn.deadlines.take_due(event.at_ms):
        _DUE[kind](turn, key)


def _node_due(turn: Turn, key: str) -> None:
    liveness.look(turn, key)


def _dispatch_due(act: Callable[[Turn, Any], None]) -> Callable[[Turn, str], None]:
    """Look at a dispatch, when it is still under way."""

    def due(turn: Turn, key: str) -> None:
        dispatch = turn.state.dispatches.get(key)
        if dispatch is not None and dispatch.state in DISPATCH_LIVE:
            act(turn, dispatch)

    return due


def _unaccepted(turn: Turn, sent: Iterable[str]) -> None:
    for name in sent:
        dispatch = turn.state.dispatches.get(name)
        if dispatch is not None and dispatch.state is DispatchState.PLANNED:
            liveness.unanswered(turn, dispatch)


def _cancel_due(turn: Turn, key: str) -> None:
    run = turn.state.runs.get(key)
    if run is not None and run.state is RunState.CANCELLING:
        runs.end_unconfirmed(turn, run)


def _open_run_due(act: Callable[[Turn, RunRecord], None]) -> Callable[[Turn, str], None]:
    """Look at a run, when it has not ended."""

    def due(turn: Turn, key: str) -> None:
        run = turn.state.runs.get(key)
        if run is not None and not run.ended:
            act(turn, run)

    return due


def _retry_due(turn: Turn, key: tuple[str, str]) -> None:
    run = turn.state.runs.get(key[0])
    if run is not None and not run.ended:
        runs.retry_due(turn, run, key[1])


def _approval_due(turn: Turn, key: str) -> None:
    approval = turn.state.approvals.get(key)
    if approval is not None:
        approvals.expire(turn, approval)


_DUE: dict[Deadline, Callable[[Turn, Any], None]] = {
    Deadline.NODE: _node_due,
    Deadline.ACCEPT: _unaccepted,
    Deadline.FINISH: _dispatch_due(liveness.overdue),
    Deadline.STRAGGLER: _dispatch_due(stragglers.look),
    Deadline.REROUTE: _dispatch_due(liveness.reroute),
    Deadline.EXPIRY: _open_run_due(runs.expire),
    Deadline.START: _open_run_due(runs.start_due),
    Deadline.RETRY: _retry_due,
    Deadline.CANCEL: _cancel_due,
    Deadline.APPROVAL: _approval_due,
    Deadline.INVENTORY: liveness.inventory_due,
    Deadline.ADMISSION: admission.due,
    Deadline.PROBE: admission.probe_due,
    Deadline.PERMIT: permits.due,
    Deadline.PERMITS: permits.bring_again,
}

_HANDLE: dict[type[e.Event | Tick], Callable[[Turn, Any], None]] = {
    e.Restarted: _restarted,
    e.BusOpened: _bus_opened,
    e.BusClosed: _bus_closed,
    e.LoopbackMeasured: silence.loopback,
    e.StoodStill: _stood_still,
    e.SilenceExplained: silence.explain,
    e.StopAsked: _stop_asked,
    e.PlanSubmitted: runs.submit,
    e.CancelAsked: runs.cancel,
    e.PauseAsked: runs.pause,
    e.ResumeAsked: runs.resume,
    e.MemorySet: memory.put,
    e.MemoryDeleteAsked: memory.delete,
    e.AnswerGiven: approvals.answer,
    e.GroupSet: _group_set,
    e.LabelsSet: _labels_set,
    e.AdmissionAsked: admission.ask,
    pe.PermitAsked: permits.grant,
    pe.PermitWithdrawAsked: permits.withdraw,
    e.EvidenceSeen: evidence.seen,
    e.NodeBirth: _born,
    e.EnrolAsked: enrolment.enrol,
    e.GrantAsked: enrolment.grant,
    e.TokenAsked: tokens.create,
    e.TokenRevokeAsked: tokens.revoke,
    e.JoinAsked: joins.ask,
    e.JoinAnswered: joins.answer,
    e.JoinWindowAsked: joins.open_door,
    e.NodeGone: liveness.gone,
    e.NodeLeft: liveness.left,
    e.EscalationArrived: liveness.escalated,
    e.HeartbeatArrived: _beat,
    e.AcceptArrived: take_accepts,
    e.RejectArrived: take_rejects,
    e.ResultsArrived: _results_arrived,
    e.InventoryArrived: _inventory_arrived,
    e.OutflowMeasured: _outflow_measured,
    e.SealContradicted: doubts.contradicted,
    e.AcknowledgementGiven: doubts.acknowledge,
    Tick: _tick,
}

_OF_NODES = frozenset(
    {
        e.NodeBirth,
        e.NodeGone,
        e.NodeLeft,
        e.HeartbeatArrived,
        e.AcceptArrived,
        e.RejectArrived,
        e.ResultsArrived,
        e.InventoryArrived,
    }
)
