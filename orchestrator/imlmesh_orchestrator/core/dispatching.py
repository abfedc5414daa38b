"""From a node's words about a dispatch to the end of the unit of work.

The one rule: a dispatch ends once. What a result means is decided by the dispatch's state and the result's code, never by its text.
"""

from collections.abc import Callable

from imlmesh_orchestrator.core import asking, flow, poison, retry, stragglers
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.commands import (
    ReportRefusal,
    SendAdmission,
    SendCancel,
    SendDispatch,
)
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.events import (
    AcceptArrived,
    RejectArrived,
    Result,
)
from imlmesh_orchestrator.core.evidence_rows import FOREIGN, keep
from imlmesh_orchestrator.core.state import ActionRecord, DispatchRecord, NodeRecord, RunRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CRASHED, KILLED_ALONG, Fault, InputError
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.states import (
    ACTION_ENDED,
    DISPATCH_LIVE,
    NOT_BELIEVED,
    ActionState,
    DispatchState,
    RunState,
)

# a name of an enum costs ten times a global, and these are asked for with every action
_COMPLETED, _UNKNOWN = ActionState.COMPLETED, DispatchState.UNKNOWN
_OUTCOME = {
    "completed": DispatchState.COMPLETED,
    "failed": DispatchState.FAILED,
    "timed_out": DispatchState.TIMED_OUT,
    "cancelled": DispatchState.CANCELLED,
    "unknown": DispatchState.UNKNOWN,
}
#: of a node that is not believed no dispatch is live; whatever it says of these is evidence
_UNTOLD = frozenset({DispatchState.UNKNOWN, DispatchState.SUPERSEDED})
#: the node's proof that the effect did not happen, or that it ended work it may repeat
_AGAIN = frozenset({"action.not_started", "action.lease_lost", "node.interrupted", KILLED_ALONG})


def send(turn: Turn, dispatch: DispatchRecord) -> None:
    """The dispatch's own bytes go out (again); they must be accepted in time."""
    turn.command(SendDispatch(dispatch.node, dispatch.dispatch, dispatch.bin))
    turn.sent.append(dispatch.dispatch)


def take_accepts(turn: Turn, event: AcceptArrived) -> None:
    """The node's journal holds them; a started one has a running driver."""
    started = set(event.started)
    moved: list[str] = []
    for name, digest in event.dispatches:
        dispatch = turn.state.dispatches.get(name)
        if dispatch is None:
            text = f"{event.node} holds {name[:120]}, which nobody knows"
            _keep_foreign(turn, event.node, Fault("dispatch.unknown", text))
            continue
        if not is_own(turn, event.node, dispatch, digest):
            continue
        if dispatch.state is DispatchState.PLANNED:
            accepted(turn, dispatch)
        elif dispatch.state is DispatchState.SUPERSEDED:
            moved.append(name)
            text = f"{event.node} holds {name}, which was given up"
            _keep_foreign(turn, event.node, Fault("dispatch.unknown", text))
        if name in started and dispatch.state is DispatchState.ACCEPTED:
            turn.change(c.DispatchStarted(turn.at_ms, turn.cause, dispatch.run, name))
            stragglers.started(turn, dispatch)
    if moved:
        turn.command(SendCancel(event.node, tuple(moved)))


def accepted(turn: Turn, dispatch: DispatchRecord) -> None:
    """From now on the node answers for it; we look again when it should long have ended."""
    turn.change(c.DispatchAccepted(turn.at_ms, turn.cause, dispatch.run, dispatch.dispatch))
    lost_ms = turn.state.nodes[dispatch.node].lost_ms
    at_ms = turn.at_ms + limits.START_MS + dispatch.timeout_ms + lost_ms
    turn.deadlines.add(at_ms, Deadline.FINISH, dispatch.dispatch)


_NOT_NOW = frozenset({"node.full", "node.stopping", "node.quarantined"})


def take_rejects(turn: Turn, event: RejectArrived) -> None:
    """The node will not do it: another one, or the action fails with this node's code.

    A full node gets nothing before its next heartbeat; likewise one that is about to end, or still
    believes that it is quarantined, and hears once more that it is not.
    """
    for name, fault in event.refusals:
        dispatch = turn.state.dispatches.get(name)
        if dispatch is None or dispatch.node != event.node:
            continue
        if dispatch.state is not DispatchState.PLANNED:
            continue  # what was accepted ends with a result
        run = turn.state.runs[dispatch.run]
        record = run.units[dispatch.action]
        full = fault.code in _NOT_NOW
        if fault.code == "node.quarantined":
            turn.command(SendAdmission(event.node, "release"))
        if full:
            turn.state.nodes[event.node].full = True
        ended = DispatchState.SUPERSEDED if full else DispatchState.REJECTED
        turn.change(c.DispatchEnded(turn.at_ms, turn.cause, dispatch.run, name, ended, fault))
        if not full and (record.node or not run.starting):
            flow.break_off(turn, run, record, fault)  # nobody else may do it
        else:
            flow.wait_again(turn, run, record, {event.node: fault.code})
    turn.pools.room()


def take(turn: Turn, node: str, result: Result) -> bool:
    """What a node says of the end of a dispatch; whether it was understood, and is settled."""
    dispatch = turn.state.dispatches.get(result.dispatch)
    if dispatch is None:
        return take_forgotten(turn, node, result)
    if dispatch.node != node or dispatch.hash != result.hash:
        return is_own(turn, node, dispatch, result.hash)
    if turn.state.admissions and turn.state.admission_of(node) in NOT_BELIEVED:
        if dispatch.state in _UNTOLD:
            _keep(turn, dispatch.run, result)
    elif dispatch.state in DISPATCH_LIVE or dispatch.state is DispatchState.UNKNOWN:
        run = turn.state.runs[dispatch.run]
        record = run.units[dispatch.action]
        if record.state in ACTION_ENDED:
            _keep(turn, dispatch.run, result)
        elif result.outcome == "completed":
            if record.copied:
                stragglers.won(turn, run, record, dispatch)
            _finish(turn, run, record, dispatch, result, _COMPLETED)
        elif result.dispatch == record.copied:
            _keep(turn, dispatch.run, result)  # its copy does it
        elif _OUTCOME[result.outcome] is not dispatch.state:
            _decide(turn, run, record, dispatch, result)
    elif dispatch.state is DispatchState.SUPERSEDED:
        _keep(turn, dispatch.run, result)
    return True


def take_forgotten(turn: Turn, node: str, result: Result) -> bool:
    """A result of a run that is over and forgotten, or that no permit allows: evidence, if it names the
    node that sent it."""
    try:
        run, _, owner, _ = split_dispatch(result.dispatch)
        known = owner == node
    except InputError:
        known = False
    if not known:
        text = f"{result.dispatch[:120]!r} is not a dispatch of {node}"
        _keep_foreign(turn, node, Fault("dispatch.unknown", text))
        return False
    presence = turn.state.presence.get(node)
    if presence is None:
        return False  # not settled: it comes again after the birth that its next beat is asked for
    if presence.evidence >= limits.EVIDENCE_PER_NODE:
        text = f"{node} has reported too many results of runs that are over"
        turn.command(ReportRefusal(node, Fault("dispatch.unknown", text)))
        return True
    presence.evidence += 1
    _keep(turn, run, result)
    return True


def _decide(
    turn: Turn, run: RunRecord, record: ActionRecord, dispatch: DispatchRecord, result: Result
) -> None:
    fault = result.error or Fault("driver.failed", "the node gave no reason")
    if record.state is ActionState.AWAITING_APPROVAL:
        # a compensation that a person is asked about: only its success would change anything
        _keep(turn, dispatch.run, result)
    elif result.outcome == "unknown":
        _take_unknown(turn, run, record, dispatch, result)
    elif result.outcome == "cancelled" and run.state is RunState.CANCELLING:
        _finish(turn, run, record, dispatch, result, ActionState.CANCELLED)
    elif fault.code in _AGAIN and _may_repeat(dispatch, fault):
        if fault.code == "action.lease_lost":
            # whatever it is given ends likewise, at once, until a beat of it is answered
            turn.state.nodes[dispatch.node].full = True
        _finish(turn, run, record, dispatch, result, None)
        flow.wait_again(turn, run, record, {dispatch.node: fault.code})
    else:
        _take_failure(turn, run, record, dispatch, result)


def _take_unknown(
    turn: Turn, run: RunRecord, record: ActionRecord, dispatch: DispatchRecord, result: Result
) -> None:
    fault = result.error or Fault("node.interrupted", "the node does not know how it ended")
    if dispatch.on_loss == "fail":
        _finish(turn, run, record, dispatch, result, flow.failed_state(record))
        return
    _finish(turn, run, record, dispatch, result, None)
    _ask(turn, run, record, dispatch, fault)


def _take_failure(
    turn: Turn, run: RunRecord, record: ActionRecord, dispatch: DispatchRecord, result: Result
) -> None:
    """The node reports that it failed: another try, a question, or the end."""
    fault = result.error or Fault("driver.failed", "the node gave no reason")
    if fault.code == CRASHED and _take_crash(turn, run, record, dispatch, result):
        return
    wanted = run.starting or (record.undoes and run.state is not RunState.CANCELLING)
    retry_at_ms = (
        retry.next_try_ms(run, record, dispatch.effect, fault.code, turn.at_ms)
        if wanted and result.outcome in ("failed", "timed_out")
        else None
    )
    if retry_at_ms is not None:
        _finish(turn, run, record, dispatch, result, None)
        failures, key = record.failures + 1, record.key
        turn.change(
            c.RetryPlanned(turn.at_ms, turn.cause, run.run, key, failures, fault, retry_at_ms)
        )
        turn.deadlines.add(retry_at_ms, Deadline.RETRY, (run.run, key))
    elif record.undoes:
        _finish(turn, run, record, dispatch, result, None)
        flow.break_off(turn, run, record, fault)
    else:
        _finish(turn, run, record, dispatch, result, flow.failed_state(record))


def _take_crash(
    turn: Turn, run: RunRecord, record: ActionRecord, dispatch: DispatchRecord, result: Result
) -> bool:
    """Its driver crashed: too often, or it is tried elsewhere; False when it is as any failure."""
    fault = result.error or Fault(CRASHED, "the node gave no reason")
    poisoned = poison.verdict(turn.state, record, dispatch, fault)
    if poisoned is not None:
        _finish(turn, run, record, dispatch, result, None)
        flow.fail(turn, run, record, poisoned)
        return True
    if poison.may_move(turn.state, run, record, dispatch):
        _finish(turn, run, record, dispatch, result, None)
        flow.wait_again(turn, run, record, {dispatch.node: fault.code})
        return True
    return False


def _ask(
    turn: Turn, run: RunRecord, record: ActionRecord, dispatch: DispatchRecord, fault: Fault
) -> None:
    """Nobody knows how it ended, and it may not simply be repeated."""
    if record.undoes:
        flow.break_off(turn, run, record, fault)
        return
    asking.ask_lost_effect(turn, run, record, dispatch, fault)
    if record.parent is not None:
        flow.advance(turn, run, record.parent)


def _may_repeat(dispatch: DispatchRecord, fault: Fault) -> bool:
    if fault.code == "action.not_started":
        return True
    # who was killed along has a node, so what the plan says of a loss is not asked
    stays = fault.code == KILLED_ALONG or dispatch.on_loss in ("reroute", "wait")
    return stays and dispatch.effect.repeatable


def _finish(
    turn: Turn,
    run: RunRecord,
    record: ActionRecord,
    dispatch: DispatchRecord,
    result: Result,
    action_state: ActionState | None,
) -> None:
    if dispatch.state is _UNKNOWN:
        asking.supersede(turn, run, [record.key])  # the node's journal answered first
    turn.change(
        c.ResultTaken(
            turn.at_ms,
            turn.cause,
            run.run,
            dispatch.dispatch,
            record.key,
            _OUTCOME[result.outcome],
            action_state,
            result.result,
            result.error,
            result.duration_ms,
        )
    )
    if action_state is not None:
        flow.after_end(turn, run, record)


def _keep(turn: Turn, run: str, result: Result) -> None:
    """Evidence, once: the node sends its result again until our ack arrives."""
    if not _is_news(turn, result.dispatch):
        return
    turn.change(
        c.ResultKept(
            turn.at_ms,
            turn.cause,
            run,
            result.dispatch,
            result.outcome,
            result.result,
            result.error,
        )
    )


def is_own(turn: Turn, node: str, dispatch: DispatchRecord, digest: bytes) -> bool:
    """Whether a node speaks of a dispatch that is its own, and of these very bytes."""
    if dispatch.node == node and dispatch.hash == digest:
        return True
    if dispatch.node != node:
        fault = Fault("dispatch.unknown", f"{dispatch.dispatch} is not a dispatch of {node}")
    else:
        fault = Fault("dispatch.hash", f"{dispatch.dispatch}: another dispatch of that name")
    _keep_foreign(turn, node, fault)
    return False


def _keep_foreign(turn: Turn, node: str, fault: Fault) -> None:
    """What a node says of work that is not its own changes nothing: it is told, and kept once."""
    turn.command(ReportRefusal(node, fault))
    if _is_news(turn, fault.message):
        keep(turn, node, FOREIGN, fault.message, "kept")


def _is_news(turn: Turn, what: str) -> bool:
    """Whether nothing was kept of that of late."""
    kept = turn.state.kept
    if what in kept:
        return False
    kept[what] = None
    if len(kept) > limits.RECENT_DISPATCHES:
        del kept[next(iter(kept))]
    return True


def each_live(turn: Turn, node: NodeRecord, act: Callable[[DispatchRecord], None]) -> None:
    """`act` may end dispatches, and through a failing run also later ones of this list."""
    for name in list(node.live):
        dispatch = turn.state.dispatches.get(name)
        if dispatch is not None and dispatch.state in DISPATCH_LIVE:
            act(dispatch)


def give_up(turn: Turn, dispatch: DispatchRecord, fault: Fault) -> None:
    """The node is gone, or has forgotten the dispatch: do what was decided for that case.

    What may not be repeated is never placed again without a person's word, whatever was decided.
    """
    run = turn.state.runs[dispatch.run]
    record = run.units[dispatch.action]
    if dispatch.on_loss == "fail":
        _end(turn, dispatch, DispatchState.UNKNOWN, fault)
        flow.fail(turn, run, record, fault)
    elif dispatch.on_loss == "ask" or not dispatch.effect.repeatable:
        _end(turn, dispatch, DispatchState.UNKNOWN, fault)
        _ask(turn, run, record, dispatch, fault)
    else:
        _end(turn, dispatch, DispatchState.SUPERSEDED, fault)
        flow.wait_again(turn, run, record, {dispatch.node: fault.code})


def _end(turn: Turn, dispatch: DispatchRecord, new: DispatchState, fault: Fault) -> None:
    turn.change(
        c.DispatchEnded(turn.at_ms, turn.cause, dispatch.run, dispatch.dispatch, new, fault)
    )
