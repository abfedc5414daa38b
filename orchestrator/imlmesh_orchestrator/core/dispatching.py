"""From a ready action to a dispatch, and from a node's words about it to the action's end.

The one rule: a dispatch is committed before it is sent, keeps its bytes for life, and ends once.
What a result means is decided by the dispatch's state and the result's code, never by its text.
"""

import hashlib
from collections.abc import Mapping
from itertools import islice
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import runs
from imlmesh_orchestrator.core.approvals import ask_lost_effect, close_for_dispatch
from imlmesh_orchestrator.core.commands import ReportRefusal, SendAck, SendDispatch
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.events import (
    AcceptArrived,
    RejectArrived,
    Result,
    ResultsArrived,
)
from imlmesh_orchestrator.core.placement import Pool, exhausted, pick, refresh
from imlmesh_orchestrator.core.state import (
    RECENT_DISPATCHES,
    ActionRecord,
    DispatchRecord,
    NodeRecord,
    RunRecord,
)
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault, InputError
from imlmesh_protocol.ids import dispatch_id, split_dispatch
from imlmesh_protocol.iml.plan import Action
from imlmesh_protocol.iml.template import Scope, render
from imlmesh_protocol.manifest import ActionSpec
from imlmesh_protocol.states import (
    DISPATCH_LIVE,
    ActionState,
    DispatchState,
    Effect,
    RunState,
)
from imlmesh_protocol.wire.messages import encode_dispatch

_OUTCOME = {
    "completed": DispatchState.COMPLETED,
    "failed": DispatchState.FAILED,
    "timed_out": DispatchState.TIMED_OUT,
    "cancelled": DispatchState.CANCELLED,
    "unknown": DispatchState.UNKNOWN,
}
#: the node's proof that the effect did not happen, or that it ended work it may repeat
_AGAIN = frozenset({"action.not_started", "action.lease_lost", "node.interrupted"})


def place_ready(turn: Turn) -> None:
    """Dispatch all that is ready and has a node with room."""
    state = turn.state
    if not state.bus_open or state.behind:
        return
    while turn.pools.due:
        _, pool = turn.pools.due.popitem()
        refresh(state, pool)
        while pool.waiting:
            run, record = pool.waiting[0]
            if record.ended or record.state is ActionState.RUNNING or not run.starting:
                pool.waiting.popleft()
                continue
            node = pick(pool, record)
            if node is not None:
                pool.waiting.popleft()
                _dispatch(turn, run, record, node, pool.specs[node.node])
            elif exhausted(pool, record):
                pool.waiting.popleft()
                fault = record.fault or Fault("place.no_node", "every node refused it")
                runs.fail(turn, run, record, fault)
            else:
                if not pool.eligible:
                    _tell_waiting(turn, pool)
                turn.pools.block(pool)
                break
        turn.pools.drop_empty(pool)


def _tell_waiting(turn: Turn, pool: Pool) -> None:
    """Every run says what it waits for, not only the one whose action is the pool's first."""
    reasons = dict(islice(pool.refused.items(), limits.WAITING_REASONS))
    for run, record in [*islice(reversed(pool.waiting), pool.untold)][::-1]:
        if record.state is ActionState.PENDING and run.starting:
            turn.change(c.ActionWaiting(turn.at_ms, turn.cause, run.run, record.action.id, reasons))
    pool.untold = 0


def _dispatch(
    turn: Turn, run: RunRecord, record: ActionRecord, node: NodeRecord, spec: ActionSpec
) -> None:
    action = record.action
    try:
        params = _params(turn, run, record, node) if record.templated else action.params
        claims = spec.claims_for(params) if spec.claims else ()
    except InputError as exc:
        runs.fail(turn, run, record, Fault(exc.code, exc.message))
        return
    except KeyError as exc:
        runs.fail(turn, run, record, Fault("action.params", f"{exc.args[0]} is missing"))
        return
    effect = action.effect or spec.effect
    on_loss = loss_policy(action, effect)
    lease_ms = action.lease_seconds * 1_000 if action.lease_seconds else node.lost_ms
    attempt = record.attempt + 1
    dispatch = dispatch_id(run.run, action.id, node.node, attempt)
    encoded = encode_dispatch(
        dispatch,
        action.module,
        action.action,
        params,
        effect,
        action.timeout * 1_000,
        lease_ms,
        "stop" if on_loss == "reroute" else "finish",
        claims,
    )
    turn.change(
        c.DispatchPlanned(
            turn.at_ms,
            turn.cause,
            run.run,
            dispatch,
            action.id,
            node.node,
            attempt,
            encoded,
            hashlib.sha256(encoded).digest(),
            effect,
            action.timeout * 1_000,
            lease_ms,
            on_loss,
        )
    )
    turn.command(SendDispatch(node.node, dispatch, encoded))
    turn.sent.append(dispatch)


def send(turn: Turn, dispatch: DispatchRecord) -> None:
    """The dispatch's own bytes go out (again); they must be accepted in time."""
    turn.command(SendDispatch(dispatch.node, dispatch.dispatch, dispatch.bin))
    turn.sent.append(dispatch.dispatch)


def _params(
    turn: Turn, run: RunRecord, record: ActionRecord, node: NodeRecord
) -> Mapping[str, Any]:
    results: dict[str, Any] = {}
    for name in run.needed:
        done = run.actions[name]
        if done.state is ActionState.COMPLETED:
            results[name] = done.result
        elif done.ended and done.fault is not None:
            results[name] = done.fault
    rendered: Mapping[str, Any] = render(record.action.params, Scope(results, turn.env, node.node))
    return rendered


def loss_policy(action: Action, effect: Effect) -> str:
    """What the loss of its node means: the plan's word, else by effect and target.

    A plan's reroute was checked against the manifests of then; the node's own may be stricter.
    """
    if action.on_node_loss == "reroute" and not effect.repeatable:
        return "ask"
    if action.on_node_loss is not None:
        return str(action.on_node_loss)
    if not effect.repeatable:
        return "ask"
    return "wait" if action.target_node is not None else "reroute"


def take_accepts(turn: Turn, event: AcceptArrived) -> None:
    """The node's journal holds them; a started one has a running driver."""
    started = set(event.started)
    for name, digest in event.dispatches:
        dispatch = turn.state.dispatches.get(name)
        if dispatch is None or not _is_own(turn, event.node, dispatch, digest):
            continue
        if dispatch.state is DispatchState.PLANNED:
            accepted(turn, dispatch)
        if name in started and dispatch.state is DispatchState.ACCEPTED:
            turn.change(c.DispatchStarted(turn.at_ms, turn.cause, dispatch.run, name))


def accepted(turn: Turn, dispatch: DispatchRecord) -> None:
    """From now on the node answers for it; we look again when it should long have ended."""
    turn.change(c.DispatchAccepted(turn.at_ms, turn.cause, dispatch.run, dispatch.dispatch))
    lost_ms = turn.state.nodes[dispatch.node].lost_ms
    at_ms = turn.at_ms + limits.START_MS + dispatch.timeout_ms + lost_ms
    turn.deadlines.add(at_ms, Deadline.FINISH, dispatch.dispatch)


def take_rejects(turn: Turn, event: RejectArrived) -> None:
    """The node will not do it: another one, or the action fails with this node's code."""
    for name, fault in event.refusals:
        dispatch = turn.state.dispatches.get(name)
        if dispatch is None or dispatch.node != event.node or dispatch.state not in DISPATCH_LIVE:
            continue
        run = turn.state.runs[dispatch.run]
        record = run.actions[dispatch.action]
        full = fault.code == "node.full"
        if full:
            turn.state.nodes[event.node].full = True
        ended = DispatchState.SUPERSEDED if full else DispatchState.REJECTED
        turn.change(c.DispatchEnded(turn.at_ms, turn.cause, dispatch.run, name, ended, fault))
        runs.wait_again(turn, run, record, {event.node: fault.code})
    turn.pools.room()


def take_results(turn: Turn, event: ResultsArrived) -> None:
    """Each result counts once; all that were understood are settled."""
    settled = []
    for result in event.results:
        if _take(turn, event.node, result):
            settled.append(result.dispatch)
    if settled:
        turn.command(SendAck(event.node, None, tuple(settled)))
    turn.pools.room()


def _take(turn: Turn, node: str, result: Result) -> bool:
    dispatch = turn.state.dispatches.get(result.dispatch)
    if dispatch is None:
        return _take_forgotten(turn, node, result)
    if not _is_own(turn, node, dispatch, result.hash):
        return False
    if dispatch.state in DISPATCH_LIVE or dispatch.state is DispatchState.UNKNOWN:
        run = turn.state.runs[dispatch.run]
        record = run.actions[dispatch.action]
        if record.ended:
            _keep(turn, dispatch.run, result)
        elif _OUTCOME[result.outcome] is not dispatch.state:
            _decide(turn, run, record, dispatch, result)
    elif dispatch.state is DispatchState.SUPERSEDED:
        _keep(turn, dispatch.run, result)
    return True


def _take_forgotten(turn: Turn, node: str, result: Result) -> bool:
    """A result of a run that is over and forgotten: evidence, if it names the node that sent it."""
    try:
        run, _, owner, _ = split_dispatch(result.dispatch)
        known = owner == node
    except InputError:
        known = False
    if not known:
        text = f"{result.dispatch[:120]!r} is not a dispatch of {node}"
        turn.command(ReportRefusal(node, Fault("dispatch.unknown", text)))
        return False
    presence = turn.state.presence.get(node)
    if presence is None or presence.evidence >= limits.EVIDENCE_PER_NODE:
        text = f"{node} has reported too many results of runs that are over"
        turn.command(ReportRefusal(node, Fault("dispatch.unknown", text)))
        return True
    presence.evidence += 1
    _keep(turn, run, result)
    return True


def _decide(
    turn: Turn, run: RunRecord, record: ActionRecord, dispatch: DispatchRecord, result: Result
) -> None:
    fault = result.error
    if result.outcome == "completed":
        _finish(turn, run, record, dispatch, result, ActionState.COMPLETED)
    elif result.outcome == "unknown":
        if dispatch.on_loss == "fail":
            _finish(turn, run, record, dispatch, result, runs.failed_state(record))
            return
        _finish(turn, run, record, dispatch, result, None)
        fault = fault or Fault("node.interrupted", "the node does not know how it ended")
        ask_lost_effect(turn, run, record, dispatch, fault)
    elif result.outcome == "cancelled" and run.state is RunState.CANCELLING:
        _finish(turn, run, record, dispatch, result, ActionState.CANCELLED)
    elif fault is not None and fault.code in _AGAIN and _may_repeat(dispatch, fault):
        _finish(turn, run, record, dispatch, result, None)
        runs.wait_again(turn, run, record, {dispatch.node: fault.code})
    else:
        _finish(turn, run, record, dispatch, result, runs.failed_state(record))


def _may_repeat(dispatch: DispatchRecord, fault: Fault) -> bool:
    if fault.code == "action.not_started":
        return True
    return dispatch.effect.repeatable and dispatch.on_loss in ("reroute", "wait")


def _finish(
    turn: Turn,
    run: RunRecord,
    record: ActionRecord,
    dispatch: DispatchRecord,
    result: Result,
    action_state: ActionState | None,
) -> None:
    if dispatch.state is DispatchState.UNKNOWN:
        close_for_dispatch(turn, dispatch)
    turn.change(
        c.ResultTaken(
            turn.at_ms,
            turn.cause,
            run.run,
            dispatch.dispatch,
            record.action.id,
            _OUTCOME[result.outcome],
            action_state,
            result.result,
            result.error,
            result.duration_ms,
        )
    )
    if action_state is not None:
        runs.after_end(turn, run, record)


def _keep(turn: Turn, run: str, result: Result) -> None:
    """Evidence, once: the node sends its result again until our ack arrives."""
    kept = turn.state.kept
    if result.dispatch in kept:
        return
    kept[result.dispatch] = None
    if len(kept) > RECENT_DISPATCHES:
        del kept[next(iter(kept))]
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


def _is_own(turn: Turn, node: str, dispatch: DispatchRecord, digest: bytes) -> bool:
    """Whether a node speaks of a dispatch that is its own, and of these very bytes."""
    if dispatch.node == node and dispatch.hash == digest:
        return True
    if dispatch.node != node:
        fault = Fault("dispatch.unknown", f"{dispatch.dispatch} is not a dispatch of {node}")
    else:
        fault = Fault("dispatch.hash", f"{dispatch.dispatch}: another dispatch of that name")
    turn.command(ReportRefusal(node, fault))
    return False


def give_up(turn: Turn, dispatch: DispatchRecord, fault: Fault) -> None:
    """The node is gone, or has forgotten the dispatch: do what was decided for that case.

    What may not be repeated is never placed again without a person's word, whatever was decided.
    """
    run = turn.state.runs[dispatch.run]
    record = run.actions[dispatch.action]
    if dispatch.on_loss == "fail":
        _end(turn, dispatch, DispatchState.UNKNOWN, fault)
        runs.fail(turn, run, record, fault)
    elif dispatch.on_loss == "ask" or not dispatch.effect.repeatable:
        _end(turn, dispatch, DispatchState.UNKNOWN, fault)
        ask_lost_effect(turn, run, record, dispatch, fault)
    else:
        _end(turn, dispatch, DispatchState.SUPERSEDED, fault)
        runs.wait_again(turn, run, record, {dispatch.node: fault.code})


def _end(turn: Turn, dispatch: DispatchRecord, new: DispatchState, fault: Fault) -> None:
    turn.change(
        c.DispatchEnded(turn.at_ms, turn.cause, dispatch.run, dispatch.dispatch, new, fault)
    )
