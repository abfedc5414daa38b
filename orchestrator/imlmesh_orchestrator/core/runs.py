"""What people and time do to a run: submit, pause, resume, cancel, expire.

The one rule: nothing here places or ends an action by itself; that is `flow`.
"""

from imlmesh_orchestrator.core import asking, doubts, flow
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.commands import Refuse, Reply, SendCancel
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.events import CancelAsked, PauseAsked, PlanSubmitted, ResumeAsked
from imlmesh_orchestrator.core.state import ActionRecord, RunRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.ids import run_id
from imlmesh_protocol.states import ActionState, DispatchState, Liveness, RunState


def submit(turn: Turn, event: PlanSubmitted) -> None:
    """A new run, and its first actions ready; or the run that this nonce already names."""
    state = turn.state
    doubted = doubts.refusal(turn)
    if doubted is not None:
        turn.command(Refuse(event.cause, doubted))
        return
    if event.retried is not None and (later := _retried_by(turn, event.retried.of)):
        text = f"{event.retried.of} was retried by {later}: retry that one"
        turn.command(Refuse(event.cause, Fault("run.retried", text)))
        return
    nonce = event.plan.nonce if event.retried is None else None
    if nonce is not None and nonce in state.nonces:
        _answer_again(turn, event, nonce)
        return
    if state.active >= limits.ACTIVE_RUNS:
        turn.command(Refuse(event.cause, Fault("run.too_many", f"{state.active} runs are active")))
        return
    counter = state.run_counter + 1
    run = run_id(counter, event.dice)
    ttl_ms = (event.plan.ttl_seconds or 0) * 1_000 or limits.RUN_TTL_MS
    expires_at_ms = max(turn.at_ms, event.starts_at_ms) + ttl_ms
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
            event.priority,
            event.starts_at_ms,
        )
    )
    if nonce is not None:
        turn.change(c.NonceUsed(turn.at_ms, turn.cause, nonce, run, event.digest))
    turn.command(Reply(event.cause, run))
    turn.deadlines.add(expires_at_ms, Deadline.EXPIRY, run)
    if event.starts_at_ms > turn.at_ms:
        turn.deadlines.add(event.starts_at_ms, Deadline.START, run)
    record = state.runs[run]
    if event.retried is not None:
        _take_over(turn, record, event)
    if not record.ended:
        flow.release_open(turn, record)


def _retried_by(turn: Turn, run: str) -> str:
    """The run that retries this one; of those long ended `retrying` knows."""
    return next((one.run for one in turn.state.runs.values() if one.of == run), "")


def _answer_again(turn: Turn, event: PlanSubmitted, nonce: str) -> None:
    run, digest = turn.state.nonces[nonce]
    if digest == event.digest:
        turn.command(Reply(event.cause, run))
        return
    text = f"the nonce {nonce!r} names {run}, which is of another plan"
    turn.command(Refuse(event.cause, Fault("plan.nonce_reused", text)))


def _take_over(turn: Turn, run: RunRecord, event: PlanSubmitted) -> None:
    """Keep what the run that is retried completed; leave out what nobody wants again."""
    retried = event.retried
    assert retried is not None  # noqa: S101 - the caller looked
    turn.change(
        c.RunRetried(
            turn.at_ms,
            turn.cause,
            run.run,
            retried.of,
            retried.kept,
            retried.again,
            retried.left,
        )
    )
    for name in retried.left:
        flow.skip_descendants(turn, run, run.actions[name])
    flow.finish_if_done(turn, run)


def pause(turn: Turn, event: PauseAsked) -> None:
    """Nothing new starts until it is resumed; what runs goes on."""
    run = _open_run(turn, event)
    if run is None:
        return
    if run.state is RunState.CANCELLING:
        turn.command(Refuse(event.cause, Fault("run.ended", f"{run.run} is {run.state}")))
        return
    if run.state is not RunState.PAUSED:
        turn.change(c.RunPaused(turn.at_ms, turn.cause, run.run, event.by))
    turn.command(Reply(event.cause, str(run.state)))


def resume(turn: Turn, event: ResumeAsked) -> None:
    """A paused run goes on."""
    run = _open_run(turn, event)
    if run is None:
        return
    if run.state is not RunState.PAUSED:
        turn.command(Refuse(event.cause, Fault("run.not_paused", f"{run.run} is {run.state}")))
        return
    turn.change(c.RunResumed(turn.at_ms, turn.cause, run.run, event.by))
    turn.command(Reply(event.cause, str(run.state)))
    flow.release_open(turn, run)


def _open_run(turn: Turn, event: PauseAsked | ResumeAsked | CancelAsked) -> RunRecord | None:
    """The run that is asked for, unless it is unknown or over; then the request is refused."""
    run = turn.state.runs.get(event.run)
    if run is None:
        turn.command(Refuse(event.cause, Fault("run.not_found", f"no run {event.run}")))
        return None
    if run.ended:
        turn.command(Refuse(event.cause, Fault("run.ended", f"{run.run} is {run.state}")))
        return None
    return run


def start_due(turn: Turn, run: RunRecord) -> None:
    """Its not_before has come."""
    flow.release_open(turn, run)


def retry_due(turn: Turn, run: RunRecord, key: str) -> None:
    """A failed unit has waited long enough for its next try."""
    record = run.units[key]
    if record.state is not ActionState.WAITING or record.retry_at_ms > turn.at_ms:
        return
    if record.undoes:
        flow.undo_next(turn, run)
    else:
        flow.seek(turn, run, record)


def cancel(turn: Turn, event: CancelAsked) -> None:
    """A person wants the run to stop: what waits ends now, what runs when its node confirms."""
    run = _open_run(turn, event)
    if run is None:
        return
    if run.state is not RunState.CANCELLING:
        turn.change(c.RunCancelling(turn.at_ms, turn.cause, run.run, event.by))
        turn.deadlines.add(turn.at_ms + limits.CANCEL_MS, Deadline.CANCEL, run.run)
        flow.end_waiting(turn, run)
    send_cancels(turn, run)
    turn.command(Reply(event.cause, str(run.state)))


def confirm_cancel(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    """The node never had what it was to stop: the action ends as cancelled."""
    fault = Fault("action.cancelled", "cancelled before it reached its node")
    state, name = DispatchState.CANCELLED, record.dispatch
    turn.change(c.DispatchEnded(turn.at_ms, turn.cause, run.run, name, state, fault))
    flow.end_cancelled(turn, run, [record.key], fault)


def send_cancels(turn: Turn, run: RunRecord) -> None:
    """Ask every node that works for this run to stop."""
    by_node: dict[str, list[str]] = {}
    for record in run.units.values():
        if record.state is ActionState.RUNNING and record.dispatch:
            node = turn.state.dispatches[record.dispatch].node
            by_node.setdefault(node, []).append(record.dispatch)
            if record.copied:
                node = turn.state.dispatches[record.copied].node
                by_node.setdefault(node, []).append(record.copied)
    for node, dispatches in by_node.items():
        turn.command(SendCancel(node, tuple(dispatches)))


def end_unconfirmed(turn: Turn, run: RunRecord) -> None:
    """No answer to a cancel in time: the run ends, and says that it does not know."""
    fault = Fault("action.cancelled", "the node has not confirmed the cancel")
    left = [
        record
        for record in run.units.values()
        if not record.ended and record.key not in run.compensation_only
    ]
    for record in left:
        dispatch = turn.state.dispatches.get(record.dispatch)
        if dispatch is not None and dispatch.state is not DispatchState.UNKNOWN:
            state, name = DispatchState.UNKNOWN, record.dispatch
            turn.change(c.DispatchEnded(turn.at_ms, turn.cause, run.run, name, state, fault))
    keys = [record.key for record in left]
    asking.supersede(turn, run, keys)
    turn.change(
        c.ActionsEnded(turn.at_ms, turn.cause, run.run, tuple(keys), ActionState.CANCELLED, fault)
    )
    flow.end_run(turn, run, RunState.CANCELLED, None, unconfirmed=True)
    turn.pools.room()


def expire(turn: Turn, run: RunRecord) -> None:
    """The run's time to live is over: what still waits, for a node or for its return, fails."""
    for record in list(run.units.values()):
        if record.state is not ActionState.RUNNING or not record.dispatch:
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
            flow.break_off(turn, run, record, fault)
    turn.pools.room()
    if run.starting:
        flow.abort(turn, run, "", Fault("run.expired", "the run's ttl_seconds are over"))
    if not run.ended:
        # what still runs may lose its node later, and nothing waits for that one any more
        turn.deadlines.add(turn.at_ms + limits.START_MS, Deadline.EXPIRY, run.run)
