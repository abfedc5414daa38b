"""What nodes may do by themselves: who gives it, that they hold it, and what they then report.

The one rule: a run by permit is recorded whole, once, when all that its node has to say of it is here;
until then nothing of it is settled. Whether the permit was withdrawn meanwhile changes nothing about
what happened. Deliberately absent: deciding when it runs; its node does that, cut off from us.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import doubts
from imlmesh_orchestrator.core import permit_changes as p
from imlmesh_orchestrator.core.asking import SYSTEM
from imlmesh_orchestrator.core.commands import DropPermits, Refuse, Reply, SendPermit
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.events import NodeBirth, Result
from imlmesh_orchestrator.core.permit_events import PermitAsked, PermitWithdrawAsked
from imlmesh_orchestrator.core.permit_state import PermitRecord, ReportRecord
from imlmesh_orchestrator.core.placement import barred
from imlmesh_orchestrator.core.presence import Presence
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault, ProtocolError
from imlmesh_protocol.permits import (
    Course,
    End,
    Permit,
    PermitAction,
    course,
    dispatch_of,
    packed_dispatch,
    permit_id,
    permit_run,
    split_permit_run,
)
from imlmesh_protocol.states import (
    NOT_BELIEVED,
    PRESENT,
    ActionState,
    Admission,
    DispatchState,
    RunState,
)
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.dispatches import Dispatch
from imlmesh_protocol.wire.permits import pack_permit, permit_of

_DEPENDENCY = Fault("action.dependency", "an action that it waits for did not complete")
_NO_REASON = Fault("driver.failed", "the node gave no reason")


def grant(turn: Turn, event: PermitAsked) -> None:
    """A new permit, on its way to its node if that is here."""
    fault = doubts.refusal(turn) or _unfit(turn, event)
    if fault is not None:
        turn.command(Refuse(event.cause, fault))
        return
    counter = turn.state.permit_counter + 1
    permit = Permit(
        event.mesh,
        permit_id(counter, event.dice),
        event.node,
        event.plan.plan_id,
        event.digest,
        event.budget,
        turn.at_ms,
        turn.at_ms + event.for_ms,
        event.rule,
        event.actions,
    )
    body = _body(permit)
    if isinstance(body, Fault):
        turn.command(Refuse(event.cause, body))
        return
    plan, digest, by = event.plan, event.digest, event.by
    where, until = (permit.id, counter, event.node), (event.budget, permit.to_ms, by)
    turn.change(p.PermitGranted(turn.at_ms, turn.cause, *where, plan, digest, body, *until))
    turn.command(Reply(event.cause, permit.id))
    turn.deadlines.add(permit.to_ms, Deadline.PERMIT, permit.id)
    bring(turn, event.node)


def _body(permit: Permit) -> bytes | Fault:
    """What is signed, read once as its node will read it: from here on nobody may refuse it."""
    try:
        unpack(pack(permit.rule.value))
    except ProtocolError as exc:
        return Fault("permit.rule", exc.message)
    try:
        body = pack_permit(permit)
    except ProtocolError as exc:
        return Fault("permit.unfit", exc.message)
    if len(body) > limits.PERMIT_BYTES:
        text = f"it takes {len(body):,} bytes, at most {limits.PERMIT_BYTES:,}"
        return Fault("permit.too_large", text)
    try:
        permit_of(body)
    except ProtocolError as exc:
        return Fault("permit.too_large", exc.message)
    return body


def _unfit(turn: Turn, event: PermitAsked) -> Fault | None:
    state = turn.state
    if event.node not in state.nodes:
        return Fault("permit.node", f"no node {event.node} was ever here")
    if (code := barred(state, event.node)) is not None:
        return Fault("permit.node", f"{state.alias_of(event.node)}: {code}")
    if len(_of_node(turn, event.node)) >= limits.PERMITS_NODE:
        return Fault("permit.too_many", f"{event.node} has {limits.PERMITS_NODE} permits")
    not_over = [one.permit for one in state.permits.values() if one.permit.to_ms > turn.at_ms]
    if sum(permit.node == event.node for permit in not_over) >= limits.PERMITS_NODE_KEPT:
        text = (
            f"{event.node} keeps the counts of {limits.PERMITS_NODE_KEPT} permits until their time"
        )
        return Fault("permit.too_many", text)
    kept = sum(not one.forgotten(turn.at_ms) for one in state.permits.values())
    if kept >= limits.PERMITS:
        return Fault("permit.too_many", f"the mesh keeps {kept} permits")
    return None


def withdraw(turn: Turn, event: PermitWithdrawAsked) -> None:
    """A person takes it back; a node that is cut off hears so when it is here again."""
    record = turn.state.permits.get(event.permit)
    if record is None:
        fault = Fault("permit.not_found", f"no permit {event.permit[:80]}")
        turn.command(Refuse(event.cause, fault))
    elif record.ended:
        fault = Fault("permit.ended", f"{event.permit} is over: {record.ended}")
        turn.command(Refuse(event.cause, fault))
    else:
        _end(turn, record, p.WITHDRAWN, event.by)
        bring(turn, record.permit.node)
        turn.command(Reply(event.cause, event.permit))


def due(turn: Turn, name: str) -> None:
    """The time of a permit is over."""
    record = turn.state.permits.get(name)
    if record is not None and not record.ended and record.permit.to_ms <= turn.at_ms:
        _end(turn, record, p.EXPIRED, SYSTEM)
        bring(turn, record.permit.node)


def restarted(turn: Turn) -> None:
    """What a replay does not fill."""
    for record in turn.state.permits.values():
        if not record.ended:
            turn.deadlines.add(record.permit.to_ms, Deadline.PERMIT, record.permit.id)


def born(turn: Turn, event: NodeBirth, *, lost: bool, began: bool, came: bool) -> None:
    """A node tells which permits it holds. One that lost its journal also lost how often it ran them;
    one that `began` anew with less than it reported has an older one in its place, maybe from before the
    permit came. Of a node that goes on, the broker may have kept a birth from before its last runs. It
    `came` with a new session, or answers what we brought: with another refusal, if it were brought at once.
    """
    turn.state.presence[event.node].permits = event.permits
    for run in [run for run, one in turn.state.reports.items() if one.node == event.node]:
        del turn.state.reports[run]
    drops_all = barred(turn.state, event.node) is not None
    for record in _of_node(turn, event.node):
        last = max(record.reported, default=0)
        used = event.permits.get(record.permit.id, last if drops_all else 0)
        if lost or (began and used < last):
            _end(turn, record, p.JOURNAL_LOST, SYSTEM)
    if came or event.node not in turn.state.permits_watched:
        bring(turn, event.node)


def admission_changed(turn: Turn, node: str, new: Admission) -> None:
    """Who may get no work has no permits either, until it may again."""
    if new is Admission.REVOKED:
        for record in _of_node(turn, node):
            _end(turn, record, p.REVOKED, SYSTEM)
    bring(turn, node)


def bring(turn: Turn, node: str) -> None:
    """Send a node that is here what it lacks, and have it drop what it may not; look again later."""
    presence, known = turn.state.presence.get(node), turn.state.nodes.get(node)
    if presence is None or known is None or known.liveness not in PRESENT:
        return
    wanted = {} if barred(turn.state, node) else {r.permit.id: r for r in _of_node(turn, node)}
    # one that is about to end would be refused, and the answer would bring it again
    missing = [
        record
        for name, record in wanted.items()
        if name not in presence.permits and record.permit.to_ms > turn.at_ms
    ]
    strange = tuple(
        name
        for name in presence.permits
        if name not in wanted and not _may_end_its_run(turn, node, presence, name)
    )
    for record in missing:
        turn.command(SendPermit(node, record.body))
    if strange:
        turn.command(DropPermits(node, strange))
    if (missing or strange) and node not in turn.state.permits_watched:
        turn.state.permits_watched.add(node)
        turn.deadlines.add(turn.at_ms + limits.PERMIT_AGAIN_MS, Deadline.PERMITS, node)


def beat(turn: Turn, node: str, presence: Presence, held: tuple[str, ...]) -> None:
    """A beat tells what its node holds; a run that went on by permit may be over, which then may be dropped."""
    before, presence.held = presence.held, held
    if before != held and barred(turn.state, node) is not None:
        bring(turn, node)


def _may_end_its_run(turn: Turn, node: str, presence: Presence, permit: str) -> bool:
    """Of a node that is cordoned or draining what has begun goes on, and that is the whole run: none begins
    while the node is here."""
    record = turn.state.permits.get(permit)
    if record is None or record.ended or turn.state.admission_of(node) in NOT_BELIEVED:
        return False
    held = presence.held
    return held is None or any(name.startswith(f"{permit}-") for name in held)


def bring_again(turn: Turn, node: str) -> None:
    """It was brought some time ago; has the node told since what it holds?"""
    turn.state.permits_watched.discard(node)
    bring(turn, node)


def take(turn: Turn, node: str, result: Result) -> tuple[str, ...] | None:
    """Settle what is recorded with this result of a run by permit: the ids, none while others are
    missing. None when it is no such result, or one that no permit allows: there was another of that name,
    or its permit never went so far."""
    run, _, rest = result.dispatch.partition("/")
    found = split_permit_run(run)
    record = turn.state.permits.get(found[0]) if found else None
    if found is None or record is None or record.permit.node != node:
        return None
    number = found[1]
    if not 1 <= number <= record.permit.budget or not _is_of(record.permit, number, rest, result):
        return None
    if number in record.reported:
        known = turn.state.dispatches.get(result.dispatch)
        return (result.dispatch,) if known is None or known.state == result.outcome else None
    if turn.state.admission_of(node) in NOT_BELIEVED:
        return ()  # all of the run is told again when it is believed: a part settled now would be missed
    report = turn.state.reports.get(run) or ReportRecord(node)
    results = dict(report.results)
    results.setdefault(result.dispatch, result)  # a repeat was not measured: the first counts
    attempts, ended = _attempts(record.permit, number, results)
    if ended is None:
        _gather(turn, run, report, result)
        return ()
    turn.state.reports.pop(run, None)
    _record(turn, record, number, attempts, ended)
    told = {one.dispatch.id for one in attempts}
    for strange in [one for name, one in results.items() if name not in told]:
        # it cannot have come to that: what is left of it is the node's word
        told_of = (strange.dispatch, strange.outcome, strange.result, strange.error)
        turn.change(c.ResultKept(turn.at_ms, turn.cause, run, *told_of))
    return tuple(results)


def is_of_permit(turn: Turn, node: str, dispatch: str) -> bool:
    """Whether a node may go on with it, since a permit of ours allowed it."""
    found = split_permit_run(dispatch.partition("/")[0])
    record = turn.state.permits.get(found[0]) if found else None
    return record is not None and record.permit.node == node


def _gather(turn: Turn, run: str, report: ReportRecord, result: Result) -> None:
    """Keep a result until those of its run that are missing come, if there is room; else its node sends
    it again. The run that has waited longest always has room, so one by one all become whole."""
    if result.dispatch in report.results:
        return
    reports, size = turn.state.reports, len(pack(result.result))
    own = [name for name, one in reports.items() if one.node == report.node]
    if own and run != own[0]:
        others = [reports[name] for name in own[1:]]
        count, held = sum(len(one.results) for one in others), sum(one.size for one in others)
        if count >= limits.PERMIT_REPORTS or held + size > limits.PERMIT_REPORTS_BYTES:
            return
    reports[run] = report
    report.results[result.dispatch] = result
    report.size += size


def _of_node(turn: Turn, node: str) -> list[PermitRecord]:
    """Permits of a node that hold."""
    known = turn.state.permits.values()
    return [record for record in known if record.permit.node == node and not record.ended]


def _end(turn: Turn, record: PermitRecord, why: str, by: str) -> None:
    permit = record.permit
    turn.change(p.PermitEnded(turn.at_ms, turn.cause, permit.id, permit.node, why, by))


def _is_of(permit: Permit, number: int, rest: str, result: Result) -> bool:
    """Whether the permit allows an attempt of that name, and it is the one that the node means."""
    for action in permit.actions:
        for attempt in range(1, limits.PERMIT_TRIES + 1):
            if rest == f"{action.id}/{permit.node}/{attempt}":
                return _hash(dispatch_of(permit, number, action, attempt)) == result.hash
    return False


def _hash(dispatch: Dispatch) -> bytes:
    return sha256(packed_dispatch(dispatch)).digest()


@dataclass(slots=True)
class _Attempt:
    """One attempt that a run came to, with its result."""

    action: PermitAction
    attempt: int
    dispatch: Dispatch
    result: Result


def _attempts(
    permit: Permit, number: int, results: Mapping[str, Result]
) -> tuple[list[_Attempt], Course | None]:
    """What a run came to by these results, in order; without an end while one is missing."""
    attempts: list[_Attempt] = []
    ends: dict[str, End] = {}
    while (following := course(permit.actions, ends)).next is not None:
        action, attempt = following.next
        dispatch = dispatch_of(permit, number, action, attempt)
        result = results.get(dispatch.id)
        if result is None:
            return attempts, None
        attempts.append(_Attempt(action, attempt, dispatch, result))
        code = result.error.code if result.error else ""
        ends[action.id] = End(attempt, result.outcome, code)
    return attempts, following


def _record(
    turn: Turn, record: PermitRecord, number: int, attempts: list[_Attempt], ended: Course
) -> None:
    """The whole run becomes changes, as if it had been dispatched and answered just now."""
    at_ms, cause, permit = turn.at_ms, turn.cause, record.permit
    run, counter = permit_run(permit.id, number), turn.state.run_counter + 1
    turn.change(p.PermitRunReported(at_ms, cause, permit.id, permit.node, number, run))
    plan, by = record.plan, permit.id
    turn.change(c.RunCreated(at_ms, cause, run, counter, plan, permit.digest, by, at_ms, 0, 0))
    last = {one.action.id: one for one in attempts}
    for one in attempts:
        _record_attempt(turn, run, one, last=last[one.action.id] is one)
    if ended.skipped:
        state = ActionState.SKIPPED
        turn.change(c.ActionsEnded(at_ms, cause, run, ended.skipped, state, _DEPENDENCY))
    state_of_run = RunState.FAILED if ended.failed else RunState.COMPLETED
    fault = last[ended.failed].result.error or _NO_REASON if ended.failed else None
    turn.change(c.RunEnded(at_ms, cause, run, state_of_run, fault, False, False))


def _record_attempt(turn: Turn, run: str, one: _Attempt, *, last: bool) -> None:
    """One attempt and its end; after it another one unless it is the `last` of its action."""
    at_ms, cause = turn.at_ms, turn.cause
    action, attempt, dispatch, result = one.action, one.attempt, one.dispatch, one.result
    packed, node = packed_dispatch(dispatch), dispatch.id.split("/")[2]
    what = (dispatch.id, action.id, node, attempt, packed, sha256(packed).digest())
    terms = (action.effect, action.timeout_ms, 0, "fail")
    turn.change(c.DispatchPlanned(at_ms, cause, run, *what, *terms))
    state, told = DispatchState(result.outcome), (result.result, result.error, result.duration_ms)
    new = _ended_as(action, result) if last else None
    turn.change(c.ResultTaken(at_ms, cause, run, dispatch.id, action.id, state, new, *told))
    if not last:
        fault = result.error or _NO_REASON
        turn.change(c.RetryPlanned(at_ms, cause, run, action.id, attempt, fault, at_ms))


def _ended_as(action: PermitAction, result: Result) -> ActionState:
    if result.outcome == "completed":
        return ActionState.COMPLETED
    skips = action.on_error == "skip" and result.outcome != "unknown"
    return ActionState.SKIPPED if skips else ActionState.FAILED
