"""Changes become state: the only place where the durable state is written.

The one rule: `apply` decides nothing and cannot fail on a change that was once decided, so a
replay of the stored changes gives the same state. A transition that the tables of
`protocol/states.py` do not list is a bug and stops the engine (`internal.invariant`).
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.state import (
    RECENT_DISPATCHES,
    RECENT_RUNS,
    ActionRecord,
    ApprovalRecord,
    DispatchRecord,
    NodeRecord,
    RunRecord,
    State,
)
from imlmesh_orchestrator.core.waves import gates_of, sequence_of
from imlmesh_protocol import states
from imlmesh_protocol.errors import Fault, InvariantError
from imlmesh_protocol.iml.template import has_templates, references
from imlmesh_protocol.states import (
    DISPATCH_LIVE,
    ActionState,
    DispatchState,
    RunState,
)

S = TypeVar("S", bound=StrEnum)


def apply(state: State, change: c.Change) -> None:
    """Write one change into `state`."""
    _APPLY[type(change)](state, change)


def _move(table: Mapping[S, frozenset[S]], what: str, old: S, new: S) -> S:
    if new not in table[old]:
        raise InvariantError("internal.invariant", f"{what}: {old} cannot become {new}")
    return new


def _epoch_raised(state: State, change: c.EpochRaised) -> None:
    state.epoch = change.epoch


def _node_described(state: State, change: c.NodeDescribed) -> None:
    record = state.nodes.get(change.node)
    if record is None:
        record = state.nodes[change.node] = NodeRecord(
            change.node,
            change.alias,
            change.boot,
            change.session,
            change.manifest,
            change.facts,
            change.profile,
            change.heartbeat_ms,
            change.lost_ms,
        )
    state.aliases.pop(record.alias, None)
    state.aliases[change.alias] = change.node
    record.alias = change.alias
    record.boot, record.session = change.boot, change.session
    record.manifest, record.facts = change.manifest, change.facts
    record.profile = change.profile
    record.heartbeat_ms, record.lost_ms = change.heartbeat_ms, change.lost_ms
    state.generation += 1


def _node_returned(state: State, change: c.NodeReturned) -> None:
    record = state.nodes[change.node]
    record.boot, record.session = change.boot, change.session


def _liveness_changed(state: State, change: c.LivenessChanged) -> None:
    record = state.nodes[change.node]
    record.liveness = _move(states.LIVENESS, change.node, record.liveness, change.liveness)
    state.generation += 1


def _labels_changed(state: State, change: c.LabelsChanged) -> None:
    state.nodes[change.node].labels = change.labels
    state.generation += 1


def _group_changed(state: State, change: c.GroupChanged) -> None:
    if change.nodes:
        state.groups[change.group] = change.nodes
    else:
        state.groups.pop(change.group, None)
    state.generation += 1


def _run_created(state: State, change: c.RunCreated) -> None:
    plan = change.plan
    gates, opens, wave = gates_of(plan)
    needed: set[str] = set()
    actions: dict[str, ActionRecord] = {}
    for action in plan.actions:
        templated = bool(action.params) and has_templates(action.params)
        if templated:
            needed.update(r.path[0] for r in references(action.params) if r.root == "result")
        actions[action.id] = ActionRecord(action, wave[action.id], templated, opens[action.id])
    state.runs[change.run] = RunRecord(
        run=change.run,
        plan=plan,
        digest=change.digest,
        by=change.by,
        expires_at_ms=change.expires_at_ms,
        actions=actions,
        gates=gates,
        sequence=sequence_of(plan) if plan.execution_mode == "sequential" else None,
        needed=frozenset(needed),
        open=len(actions),
    )
    state.run_counter = change.counter
    state.active += 1


def _group_frozen(state: State, change: c.GroupFrozen) -> None:
    state.runs[change.run].groups[change.group] = change.nodes


def _action_waiting(state: State, change: c.ActionWaiting) -> None:
    record = state.runs[change.run].actions[change.action]
    record.state = _move(states.ACTION, change.action, record.state, ActionState.WAITING)
    record.dispatch = ""


def _dispatch_planned(state: State, change: c.DispatchPlanned) -> None:
    run = state.runs[change.run]
    record = run.actions[change.action]
    record.state = _move(states.ACTION, change.action, record.state, ActionState.RUNNING)
    record.attempt, record.dispatch = change.attempt, change.dispatch
    if run.state is RunState.PENDING:
        run.state = RunState.RUNNING
    run.dispatches.append(change.dispatch)
    state.dispatches[change.dispatch] = DispatchRecord(
        change.dispatch,
        change.run,
        change.action,
        change.node,
        change.bin,
        change.hash,
        change.effect,
        change.timeout_ms,
        change.lease_ms,
        change.on_loss,
    )
    state.nodes[change.node].live[change.dispatch] = None


def _dispatch_accepted(state: State, change: c.DispatchAccepted) -> None:
    record = state.dispatches[change.dispatch]
    record.state = _move(states.DISPATCH, change.dispatch, record.state, DispatchState.ACCEPTED)


def _dispatch_started(state: State, change: c.DispatchStarted) -> None:
    record = state.dispatches[change.dispatch]
    record.state = _move(states.DISPATCH, change.dispatch, record.state, DispatchState.RUNNING)


def _end_dispatch(state: State, dispatch: str, new: DispatchState) -> DispatchRecord:
    record = state.dispatches[dispatch]
    record.state = _move(states.DISPATCH, dispatch, record.state, new)
    if new not in DISPATCH_LIVE:
        state.nodes[record.node].live.pop(dispatch, None)
    return record


def _dispatch_ended(state: State, change: c.DispatchEnded) -> None:
    dispatch = _end_dispatch(state, change.dispatch, change.state)
    action = state.runs[change.run].actions[dispatch.action]
    if change.state is DispatchState.REJECTED:
        action.refused_by = (*action.refused_by, dispatch.node)
        action.fault = change.fault
    elif change.state is DispatchState.SUPERSEDED:
        action.lost_on = (*action.lost_on, dispatch.node)


def _result_taken(state: State, change: c.ResultTaken) -> None:
    run = state.runs[change.run]
    dispatch = _end_dispatch(state, change.dispatch, change.state)
    record = run.actions[change.action]
    if change.action_state is not None:
        if change.action in run.needed:
            record.result = change.result
        _end_action(run, record, change.action_state, change.fault)
    elif change.state is not DispatchState.UNKNOWN:
        record.lost_on = (*record.lost_on, dispatch.node)


def _result_kept(state: State, change: c.ResultKept) -> None:
    """Evidence lives in the store; the core does not need it."""


def _end_action(
    run: RunRecord, record: ActionRecord, new: ActionState, fault: Fault | None
) -> None:
    record.state = _move(states.ACTION, record.action.id, record.state, new)
    record.fault = fault
    run.open -= 1
    if record.satisfied:
        for gate in record.opens:
            gate.remaining -= 1


def _action_ended(state: State, change: c.ActionEnded) -> None:
    run = state.runs[change.run]
    _end_action(run, run.actions[change.action], change.state, change.fault)


def _actions_ended(state: State, change: c.ActionsEnded) -> None:
    run = state.runs[change.run]
    for action in change.actions:
        _end_action(run, run.actions[action], change.state, change.fault)


def _action_unknown(state: State, change: c.ActionUnknown) -> None:
    record = state.runs[change.run].actions[change.action]
    record.state = _move(states.ACTION, change.action, record.state, ActionState.UNKNOWN)


def _approval_asked(state: State, change: c.ApprovalAsked) -> None:
    state.approvals[change.approval] = ApprovalRecord(
        change.approval,
        change.kind,
        change.run,
        change.action,
        change.dispatch,
        change.options,
        change.on_expiry,
        change.expires_at_ms,
    )
    state.approval_counter = change.counter


def _approval_closed(state: State, change: c.ApprovalClosed) -> None:
    record = state.approvals.pop(change.approval)
    record.state = _move(states.APPROVAL, change.approval, record.state, change.state)


def _run_cancelling(state: State, change: c.RunCancelling) -> None:
    run = state.runs[change.run]
    run.state = _move(states.RUN, change.run, run.state, RunState.CANCELLING)


def _run_aborting(state: State, change: c.RunAborting) -> None:
    state.runs[change.run].aborting = change.fault


def _run_ended(state: State, change: c.RunEnded) -> None:
    run = state.runs[change.run]
    run.state = _move(states.RUN, change.run, run.state, change.state)
    state.active -= 1
    state.recent.append(change.run)
    state.recent_dispatches += len(run.dispatches)
    while len(state.recent) > RECENT_RUNS or (
        state.recent_dispatches > RECENT_DISPATCHES and len(state.recent) > 1
    ):
        _forget(state, state.recent.popleft())


def _forget(state: State, run: str) -> None:
    record = state.runs.pop(run)
    state.recent_dispatches -= len(record.dispatches)
    for dispatch in record.dispatches:
        del state.dispatches[dispatch]


_APPLY: dict[type[c.Change], Callable[[State, Any], None]] = {
    c.EpochRaised: _epoch_raised,
    c.NodeDescribed: _node_described,
    c.NodeReturned: _node_returned,
    c.LivenessChanged: _liveness_changed,
    c.LabelsChanged: _labels_changed,
    c.GroupChanged: _group_changed,
    c.RunCreated: _run_created,
    c.GroupFrozen: _group_frozen,
    c.ActionWaiting: _action_waiting,
    c.DispatchPlanned: _dispatch_planned,
    c.DispatchAccepted: _dispatch_accepted,
    c.DispatchStarted: _dispatch_started,
    c.DispatchEnded: _dispatch_ended,
    c.ResultTaken: _result_taken,
    c.ResultKept: _result_kept,
    c.ActionEnded: _action_ended,
    c.ActionsEnded: _actions_ended,
    c.ActionUnknown: _action_unknown,
    c.ApprovalAsked: _approval_asked,
    c.ApprovalClosed: _approval_closed,
    c.RunCancelling: _run_cancelling,
    c.RunAborting: _run_aborting,
    c.RunEnded: _run_ended,
}
