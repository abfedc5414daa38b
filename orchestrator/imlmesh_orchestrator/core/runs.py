"""A run from its plan to its end: what becomes ready, what an end means for the rest.

The one rule: an action's end is handled in one place, `after_end`, whichever way it came.
"""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.commands import Refuse, Reply, SendCancel
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.events import CancelAsked, PlanSubmitted
from imlmesh_orchestrator.core.state import ActionRecord, RunRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.ids import run_id
from imlmesh_protocol.states import (
    ActionState,
    ApprovalState,
    DispatchState,
    Liveness,
    RunState,
)

_WAITING = frozenset({ActionState.PENDING, ActionState.WAITING, ActionState.AWAITING_APPROVAL})
_DEPENDENCY = "an action that it waits for did not complete"


def submit(turn: Turn, event: PlanSubmitted) -> None:
    """A new run, and its first actions ready."""
    state = turn.state
    if state.active >= limits.ACTIVE_RUNS:
        turn.command(Refuse(event.cause, Fault("run.too_many", f"{state.active} runs are active")))
        return
    counter = state.run_counter + 1
    run = run_id(counter, event.dice)
    ttl_ms = (event.plan.ttl_seconds or 0) * 1_000 or limits.RUN_TTL_MS
    expires_at_ms = turn.at_ms + ttl_ms
    turn.change(
        c.RunCreated(
            turn.at_ms,
            turn.cause,
            run,
            counter,
            event.plan,
            event.digest,
            event.by,
            expires_at_ms,
        )
    )
    turn.command(Reply(event.cause, run))
    turn.deadlines.add(expires_at_ms, Deadline.EXPIRY, run)
    release_open(turn, state.runs[run])


def release_open(turn: Turn, run: RunRecord) -> None:
    """Make ready what no gate holds back: at the start of a run, and after a restart."""
    if run.sequence is not None:
        _release_next(turn, run)
        return
    for gate in run.gates:
        if not gate.remaining:
            for action in gate.members:
                if run.actions[action].state in _WAITING:
                    _ready(turn, run, run.actions[action])


def _release_next(turn: Turn, run: RunRecord) -> None:
    """Sequential: the first action that has not ended, when it is not under way already."""
    assert run.sequence is not None  # noqa: S101 - callers looked
    while run.cursor < len(run.sequence):
        record = run.actions[run.sequence[run.cursor]]
        if not record.ended:
            if record.state in _WAITING:
                _ready(turn, run, record)
            return
        run.cursor += 1


def _ready(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    """An action whose dependencies are satisfied waits for a node from now on."""
    if not run.starting or record.ended:
        return
    group = record.action.target_group
    if group is not None and group not in run.groups:
        nodes = turn.state.groups.get(group, ())
        turn.change(c.GroupFrozen(turn.at_ms, turn.cause, run.run, group, nodes))
    if group is not None and not run.groups[group]:
        fail(turn, run, record, Fault("place.empty_group", f"group {group} has no node"))
        return
    turn.pools.add(run, record)


def wait_again(turn: Turn, run: RunRecord, record: ActionRecord, reasons: dict[str, str]) -> None:
    """The action has no dispatch any more and looks for a node again."""
    turn.change(c.ActionWaiting(turn.at_ms, turn.cause, run.run, record.action.id, reasons))
    if run.starting:
        turn.pools.add(run, record)
    else:
        _end_waiting(turn, run)


def fail(turn: Turn, run: RunRecord, record: ActionRecord, fault: Fault) -> None:
    """The action ends without a result of its own; on_error says what that means."""
    turn.change(
        c.ActionEnded(
            turn.at_ms, turn.cause, run.run, record.action.id, failed_state(record), fault
        )
    )
    after_end(turn, run, record)


def failed_state(record: ActionRecord) -> ActionState:
    """What a failed action becomes: with on_error skip it counts as skipped."""
    return ActionState.SKIPPED if record.action.on_error == "skip" else ActionState.FAILED


def after_end(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    """An action has just ended: release, skip or abort what depends on it, end the run."""
    if run.ended:
        return
    if record.satisfied:
        if run.sequence is None:
            for gate in record.opens:
                if not gate.remaining:
                    for action in gate.members:
                        _ready(turn, run, run.actions[action])
    elif record.state is ActionState.SKIPPED and run.starting:
        _skip(turn, run, _descendants(run, record))
    elif record.state is ActionState.FAILED and run.starting:
        abort(turn, run, record.action.id, record.fault or Fault("internal", ""))
    if run.ended:
        return
    if run.sequence is not None and run.starting:
        _release_next(turn, run)
    finish_if_done(turn, run)


def abort(turn: Turn, run: RunRecord, action: str, fault: Fault) -> None:
    """Nothing new starts; what runs may end; the rest is skipped."""
    turn.change(c.RunAborting(turn.at_ms, turn.cause, run.run, fault, action))
    _end_waiting(turn, run)


def _end_waiting(turn: Turn, run: RunRecord) -> None:
    waiting = [name for name, record in run.actions.items() if record.state in _WAITING]
    if run.state is RunState.CANCELLING:
        _end_many(turn, run, waiting, ActionState.CANCELLED, Fault("action.cancelled", "cancelled"))
    else:
        _skip(turn, run, waiting)
    finish_if_done(turn, run)


def _skip(turn: Turn, run: RunRecord, actions: list[str]) -> None:
    _end_many(turn, run, actions, ActionState.SKIPPED, Fault("action.dependency", _DEPENDENCY))


def _end_many(
    turn: Turn, run: RunRecord, actions: list[str], new: ActionState, fault: Fault
) -> None:
    if actions:
        turn.change(c.ActionsEnded(turn.at_ms, turn.cause, run.run, tuple(actions), new, fault))


def _descendants(run: RunRecord, record: ActionRecord) -> list[str]:
    """All that can now never start, in the order of the plan."""
    found: set[str] = set()
    todo = [record]
    while todo:
        for gate in todo.pop().opens:
            for name in gate.members:
                below = run.actions[name]
                if name not in found and not below.ended:
                    found.add(name)
                    todo.append(below)
    return [name for name in run.actions if name in found]


def finish_if_done(turn: Turn, run: RunRecord) -> None:
    """End the run when its last action has ended."""
    if run.open or run.ended:
        return
    if run.state is RunState.CANCELLING:
        end_run(turn, run, RunState.CANCELLED, None)
    elif run.aborting is not None:
        end_run(turn, run, RunState.FAILED, run.aborting)
    else:
        end_run(turn, run, RunState.COMPLETED, None)


def end_run(
    turn: Turn, run: RunRecord, new: RunState, fault: Fault | None, *, unconfirmed: bool = False
) -> None:
    turn.change(c.RunEnded(turn.at_ms, turn.cause, run.run, new, fault, unconfirmed))


def cancel(turn: Turn, event: CancelAsked) -> None:
    """A person wants the run to stop: what waits ends now, what runs when its node confirms."""
    run = turn.state.runs.get(event.run)
    if run is None:
        turn.command(Refuse(event.cause, Fault("run.not_found", f"no run {event.run}")))
        return
    if run.ended:
        turn.command(Refuse(event.cause, Fault("run.ended", f"{run.run} is {run.state}")))
        return
    if run.state is not RunState.CANCELLING:
        turn.change(c.RunCancelling(turn.at_ms, turn.cause, run.run, event.by))
        turn.deadlines.add(turn.at_ms + limits.CANCEL_MS, Deadline.CANCEL, run.run)
        _end_waiting(turn, run)
    send_cancels(turn, run)
    turn.command(Reply(event.cause, str(run.state)))


def confirm_cancel(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    """The node never had what it was to stop: the action ends as cancelled."""
    fault = Fault("action.cancelled", "cancelled before it reached its node")
    state, name = DispatchState.CANCELLED, record.dispatch
    turn.change(c.DispatchEnded(turn.at_ms, turn.cause, run.run, name, state, fault))
    _end_many(turn, run, [record.action.id], ActionState.CANCELLED, fault)
    finish_if_done(turn, run)


def send_cancels(turn: Turn, run: RunRecord) -> None:
    """Ask every node that works for this run to stop."""
    by_node: dict[str, list[str]] = {}
    for record in run.actions.values():
        if record.state is ActionState.RUNNING:
            node = turn.state.dispatches[record.dispatch].node
            by_node.setdefault(node, []).append(record.dispatch)
    for node, dispatches in by_node.items():
        turn.command(SendCancel(node, tuple(dispatches)))


def end_unconfirmed(turn: Turn, run: RunRecord) -> None:
    """No answer to a cancel in time: the run ends, and says that it does not know."""
    fault = Fault("action.cancelled", "the node has not confirmed the cancel")
    left = []
    for record in run.actions.values():
        if record.ended:
            continue
        left.append(record.action.id)
        dispatch = turn.state.dispatches[record.dispatch]
        if dispatch.state is not DispatchState.UNKNOWN:
            turn.change(
                c.DispatchEnded(
                    turn.at_ms,
                    turn.cause,
                    run.run,
                    record.dispatch,
                    DispatchState.UNKNOWN,
                    fault,
                )
            )
    close_approvals(turn, run, left)
    _end_many(turn, run, left, ActionState.CANCELLED, fault)
    end_run(turn, run, RunState.CANCELLED, None, unconfirmed=True)


def close_approvals(turn: Turn, run: RunRecord, actions: list[str]) -> None:
    """Questions that no longer matter are superseded."""
    for approval in list(turn.state.approvals.values()):
        if approval.run == run.run and approval.action in actions:
            turn.change(
                c.ApprovalClosed(
                    turn.at_ms,
                    turn.cause,
                    run.run,
                    approval.approval,
                    ApprovalState.SUPERSEDED,
                    None,
                    "imlmesh",
                )
            )


def expire(turn: Turn, run: RunRecord) -> None:
    """The run's time to live is over: what still waits, for a node or for its return, fails."""
    if run.ended:
        return
    for record in list(run.actions.values()):
        if record.state is not ActionState.RUNNING:
            continue
        dispatch = turn.state.dispatches[record.dispatch]
        node = turn.state.nodes[dispatch.node]
        if node.liveness in (Liveness.LOST, Liveness.OFFLINE):
            fault = Fault("node.lost", f"{node.alias} did not come back in time")
            turn.change(
                c.DispatchEnded(
                    turn.at_ms,
                    turn.cause,
                    run.run,
                    dispatch.dispatch,
                    DispatchState.UNKNOWN,
                    fault,
                )
            )
            fail(turn, run, record, fault)
    if run.starting:
        abort(turn, run, "", Fault("run.expired", "the run's ttl_seconds are over"))
    if not run.ended:
        # what still runs may lose its node later, and nothing waits for that one any more
        turn.deadlines.add(turn.at_ms + limits.START_MS, Deadline.EXPIRY, run.run)
