"""Changes of runs, units of work and dispatches become state.

The one rule is that of `apply`, which alone calls this: nothing is decided here, and a change that
was once decided cannot fail. Deliberately absent: members and what a retry keeps; `apply_members`.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.calls import Calls
from imlmesh_orchestrator.core.queues import cost_of
from imlmesh_orchestrator.core.state import ActionRecord, DispatchRecord, Gate, RunRecord, State
from imlmesh_orchestrator.core.waves import link, sequence_of, stand_behind, wave_counts
from imlmesh_protocol import limits, states
from imlmesh_protocol.errors import CRASHED, NEVER_BEGUN, Fault
from imlmesh_protocol.iml.compensation import compensation_only
from imlmesh_protocol.iml.plan import Action
from imlmesh_protocol.iml.template import has_templates, references
from imlmesh_protocol.states import (
    DISPATCH_LIVE,
    ActionState,
    DispatchState,
    Effect,
    RunState,
    move,
)

# a name of an enum costs ten times a global, and these are asked for with every action
_UNIT_RUNNING, _UNIT_COMPLETED = ActionState.RUNNING, ActionState.COMPLETED
_ROLLED_BACK, _RUN_PENDING = ActionState.ROLLED_BACK, RunState.PENDING
_HELD = frozenset({DispatchState.ACCEPTED, DispatchState.RUNNING})


def _run_created(state: State, change: c.RunCreated) -> None:
    plan = change.plan
    left_out = compensation_only(plan)
    gates: dict[int, Gate] = {}
    actions: dict[str, ActionRecord] = {}
    calls = Calls()
    reading: list[ActionRecord] = []
    for action in plan.actions:
        written = vars(action)  # half the price of an attribute of a pydantic model
        name, params, call = written["id"], written["params"], calls.of(action)
        gate = None if name in left_out else stand_behind(gates, name, written["depends_on"])
        templated = bool(params) and has_templates(params)
        record = actions[name] = ActionRecord(
            name, action, call, gate, params, templated, (), call.member_wise
        )
        if templated or call.remembers:
            reading.append(record)
    link(gates.values(), actions)
    one_by_one = plan.execution_mode == "sequential"
    state.runs[change.run] = RunRecord(
        run=change.run,
        plan=plan,
        digest=change.digest,
        by=change.by,
        expires_at_ms=change.expires_at_ms,
        cost=cost_of(change.priority),
        starts_at_ms=change.starts_at_ms,
        actions=actions,
        units=actions,
        gates=list(gates.values()),
        sequence=sequence_of(plan, left_out) if one_by_one else None,
        compensation_only=left_out,
        # when one failure undoes, any result may have to be read
        needed=frozenset(actions) if any(one.undoes for one in calls) else _needed(reading),
        waves=wave_counts(gates.values()) if plan.barrier and not one_by_one else None,
        open=len(actions) - len(left_out),
    )
    state.run_counter = change.counter
    state.active += 1


def _needed(reading: Iterable[ActionRecord]) -> frozenset[str]:
    """Actions whose results are read after they ended, by templates or memory."""
    needed: set[str] = set()
    for record in reading:
        if record.templated:
            found = references(record.params)
            needed.update(r.path[0] for r in found if r.root == "result")
        if record.call.remembers:
            needed.add(record.key)
    return frozenset(needed)


def _run_paused(state: State, change: c.RunPaused) -> None:
    run = state.runs[change.run]
    run.state = move(states.RUN, change.run, run.state, RunState.PAUSED)


def _run_resumed(state: State, change: c.RunResumed) -> None:
    run = state.runs[change.run]
    run.state = move(states.RUN, change.run, run.state, RunState.RUNNING)


def _group_frozen(state: State, change: c.GroupFrozen) -> None:
    state.runs[change.run].groups[change.group] = change.nodes


def _action_waiting(state: State, change: c.ActionWaiting) -> None:
    record = state.runs[change.run].units[change.action]
    record.state = move(states.ACTION, change.action, record.state, ActionState.WAITING)
    record.dispatch = ""
    record.refused_by += tuple(node for node, code in change.reasons.items() if code == CRASHED)


def _retry_planned(state: State, change: c.RetryPlanned) -> None:
    record = state.runs[change.run].units[change.action]
    record.state = move(states.ACTION, change.action, record.state, ActionState.WAITING)
    record.dispatch, record.fault = "", change.fault
    record.failures, record.retry_at_ms = change.failures, change.retry_at_ms
    # a failure says nothing against its node, unlike losses; and a retry may go where it crashed
    record.lost_on = record.lost_on[:-1]
    record.refused_by = tuple(n for n in record.refused_by if n not in record.crashed_on)


def _dispatch_planned(state: State, change: c.DispatchPlanned) -> None:
    run = state.runs[change.run]
    record = run.units[change.action]
    record.state = move(states.ACTION, change.action, record.state, _UNIT_RUNNING)
    record.attempt, record.dispatch, record.retry_at_ms = change.attempt, change.dispatch, 0
    if record.parent is not None and record.parent.state is not _UNIT_RUNNING:
        parent = record.parent
        parent.state = move(states.ACTION, parent.key, parent.state, ActionState.RUNNING)
    elif record.undoes and record.undo_params is None:
        # all compensations by one action on one node share its dispatch ids
        run.actions[record.action.id].attempt = change.attempt
    if run.state is _RUN_PENDING:
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
    record.state = move(states.DISPATCH, change.dispatch, record.state, DispatchState.ACCEPTED)


def _dispatch_started(state: State, change: c.DispatchStarted) -> None:
    record = state.dispatches[change.dispatch]
    record.state = move(states.DISPATCH, change.dispatch, record.state, DispatchState.RUNNING)
    record.started_ms = change.at_ms


def _end_dispatch(
    state: State, run: RunRecord, dispatch: str, new: DispatchState
) -> DispatchRecord:
    record = state.dispatches[dispatch]
    record.state = move(states.DISPATCH, dispatch, record.state, new)
    if new not in DISPATCH_LIVE:
        state.nodes[record.node].live.pop(dispatch, None)
        if not run.needed:
            record.bin = b""
    return record


def _dispatch_ended(state: State, change: c.DispatchEnded) -> None:
    held = state.dispatches[change.dispatch].state in _HELD
    run = state.runs[change.run]
    dispatch = _end_dispatch(state, run, change.dispatch, change.state)
    record = run.units[dispatch.action]
    if held:
        record.worked_on = dispatch.node
    if change.state is DispatchState.REJECTED and not record.node:
        record.refused_by = (*record.refused_by, dispatch.node)
        record.fault = change.fault
    elif change.state is DispatchState.SUPERSEDED:
        record.lost_on = (*record.lost_on, dispatch.node)
    elif change.state is DispatchState.UNKNOWN:
        record.worked_on = dispatch.node
        if change.fault is not None and change.fault.code == "action.straggler":
            record.copied, record.lost_on = change.dispatch, (*record.lost_on, dispatch.node)


def _result_taken(state: State, change: c.ResultTaken) -> None:
    run = state.runs[change.run]
    dispatch = _end_dispatch(state, run, change.dispatch, change.state)
    record = run.units[change.action]
    fault = change.fault
    if fault is None or fault.code not in NEVER_BEGUN:
        record.worked_on = dispatch.node
    if fault is not None and fault.code == CRASHED:
        record.fault, record.crashed_on = fault, (*record.crashed_on, dispatch.node)
    if dispatch.started_ms and fault is None and dispatch.effect is Effect.PURE:
        kind = (record.action.module, record.action.action)
        kept: deque[int] = deque(maxlen=limits.STRAGGLER_KEPT)
        run.durations.setdefault(kind, kept).append(change.duration_ms)
    if change.action_state is not None:
        if run.needed and record.action.id in run.needed:
            record.result = change.result
        end_unit(run, record, change.action_state, fault)
    elif change.state is not DispatchState.UNKNOWN:
        record.lost_on = (*record.lost_on, dispatch.node)


def _result_kept(state: State, change: c.ResultKept) -> None:
    """Evidence lives in the store; the core does not need it."""


def end_unit(run: RunRecord, record: ActionRecord, new: ActionState, fault: Fault | None) -> None:
    """What the end of a unit leaves behind, and the gates that it opens."""
    record.state = move(states.ACTION, record.key, record.state, new)
    if new is _ROLLED_BACK:
        return
    record.fault, record.retry_at_ms = fault, 0
    run.ended_units += 1
    record.order = run.ended_units
    if record.undoes:
        run.compensation_pending |= new is not _UNIT_COMPLETED
        return
    if record.parent is not None or record.key in run.compensation_only:
        return
    run.open -= 1
    if run.waves is not None:
        run.waves[record.wave] -= 1
    if record.members is not None and record.action.id in run.needed:
        done = (m for m in record.members.values() if m.state is _UNIT_COMPLETED)
        record.result = {member.node: member.result for member in done}
    if new is _UNIT_COMPLETED or record.satisfied:
        for gate in record.opens:
            gate.remaining -= 1


def _action_ended(state: State, change: c.ActionEnded) -> None:
    run = state.runs[change.run]
    end_unit(run, run.units[change.action], change.state, change.fault)


def _actions_ended(state: State, change: c.ActionsEnded) -> None:
    run = state.runs[change.run]
    if run.aborting is not None or run.state is RunState.CANCELLING:
        run.cut_short |= any(key in run.actions for key in change.actions)
    for key in change.actions:
        end_unit(run, run.units[key], change.state, change.fault)


def _action_unknown(state: State, change: c.ActionUnknown) -> None:
    record = state.runs[change.run].units[change.action]
    record.state = move(states.ACTION, change.action, record.state, ActionState.UNKNOWN)


def _run_cancelling(state: State, change: c.RunCancelling) -> None:
    run = state.runs[change.run]
    run.state = move(states.RUN, change.run, run.state, RunState.CANCELLING)


def _run_aborting(state: State, change: c.RunAborting) -> None:
    state.runs[change.run].aborting = change.fault


def _rollback_due(state: State, change: c.RollbackDue) -> None:
    run = state.runs[change.run]
    run.rollbacks = (*run.rollbacks, change.action)


def _compensations_planned(state: State, change: c.CompensationsPlanned) -> None:
    run = state.runs[change.run]
    for key, undone, node, name, params in change.compensations:
        run.add_unit(key, _compensation(run, key, run.units[undone], node, name, params))
    run.compensations = tuple(row[0] for row in change.compensations)


def _compensation(
    run: RunRecord, key: str, undone: ActionRecord, node: str, name: str, params: Any
) -> ActionRecord:
    if params is None:
        named = run.actions[name].action
        rollback = undone.action.rollback
        overlaid = {**named.params, **(rollback.params if rollback else {})}
        action = named.model_copy(update={"params": overlaid})
    else:
        plain = {word: Action.model_fields[word].default for word in _UNDO_PLAIN}
        action = undone.action.model_copy(
            update={**plain, "action": name, "params": params, "claims": (), "rollback": None}
        )
    return ActionRecord(
        key,
        action,
        Calls().of(action),
        None,
        action.params,
        params is None and has_templates(action.params),
        (),
        attempt=0 if params is None else undone.attempt,
        node=node,
        undoes=undone.key,
        undo_params=params,
    )


#: what a plan says of an action and does not mean for the driver's undo of it
_UNDO_PLAIN = ("on_error", "retry", "requires_approval", "memory", "effect", "impact")


def _run_ended(state: State, change: c.RunEnded) -> None:
    run = state.runs[change.run]
    run.state = move(states.RUN, change.run, run.state, change.state)
    state.active -= 1
    if run.needed:  # nobody reads them any more; the store keeps them
        for unit in run.units.values():
            unit.result = None
        for dispatch in run.dispatches:
            state.dispatches[dispatch].bin = b""
    state.recent.append(change.run)
    state.recent_dispatches += len(run.dispatches)
    while len(state.recent) > limits.RECENT_RUNS or (
        state.recent_dispatches > limits.RECENT_DISPATCHES and len(state.recent) > 1
    ):
        _forget(state, state.recent.popleft())


def _forget(state: State, run: str) -> None:
    record = state.runs.pop(run)
    state.recent_dispatches -= len(record.dispatches)
    for dispatch in record.dispatches:
        del state.dispatches[dispatch]


APPLY: dict[type[c.Change], Callable[[State, Any], None]] = {
    c.RunCreated: _run_created,
    c.RunPaused: _run_paused,
    c.RunResumed: _run_resumed,
    c.GroupFrozen: _group_frozen,
    c.ActionWaiting: _action_waiting,
    c.RetryPlanned: _retry_planned,
    c.DispatchPlanned: _dispatch_planned,
    c.DispatchAccepted: _dispatch_accepted,
    c.DispatchStarted: _dispatch_started,
    c.DispatchEnded: _dispatch_ended,
    c.ResultTaken: _result_taken,
    c.ResultKept: _result_kept,
    c.ActionEnded: _action_ended,
    c.ActionsEnded: _actions_ended,
    c.ActionUnknown: _action_unknown,
    c.RunCancelling: _run_cancelling,
    c.RunAborting: _run_aborting,
    c.RollbackDue: _rollback_due,
    c.CompensationsPlanned: _compensations_planned,
    c.RunEnded: _run_ended,
}
