"""A pure action that takes far longer than others of its kind gets one second copy elsewhere.

The one rule: the unit of work has one dispatch that lives. The slow one becomes unknown, so nobody
waits for it, but if it completes first, that counts, and the copy is stopped; if the copy ends
first, the slow one is. Only pure work: of anything else a second one might do harm. Deliberately
absent: members, which nobody else can do, and work that a person was asked about.
"""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import flow, gates
from imlmesh_orchestrator.core.commands import SendCancel
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.placement import barred, candidates, pool_key, why_not
from imlmesh_orchestrator.core.silence import may_judge
from imlmesh_orchestrator.core.state import ActionRecord, DispatchRecord, NodeRecord, RunRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import DispatchState, Effect, Liveness

#: targets that leave no choice of another node
_BOUND = frozenset({"node", "order", "bound"})
_OVER = frozenset({DispatchState.COMPLETED, DispatchState.SUPERSEDED})


def started(turn: Turn, dispatch: DispatchRecord) -> None:
    """A driver runs; if it may be copied, look again how long it takes."""
    if dispatch.effect is Effect.PURE and dispatch.on_loss == "reroute":
        _look_at(turn, turn.at_ms + limits.STRAGGLER_MS, dispatch)


def look(turn: Turn, dispatch: DispatchRecord) -> None:
    """It still runs: too long by now?"""
    run = turn.state.runs[dispatch.run]
    record = run.units[dispatch.action]
    if record.copied or record.dispatch != dispatch.dispatch or not run.starting:
        return
    running_ms = turn.at_ms - dispatch.started_ms
    usual_ms = _usual_ms(run, record)
    limit_ms = max(limits.STRAGGLER_FACTOR * (usual_ms or 0), limits.STRAGGLER_MS)
    if usual_ms is not None and running_ms < limit_ms:
        _look_at(turn, dispatch.started_ms + limit_ms, dispatch)
    elif usual_ms is None or not _may_copy(turn, run, record, dispatch):
        # ever more rarely, so that a long action costs a handful of looks
        _look_at(turn, turn.at_ms + max(limits.STRAGGLER_MS, running_ms // 2), dispatch)
    else:
        text = f"it runs for {running_ms} ms, others took {usual_ms} ms: one copy elsewhere"
        fault = Fault("action.straggler", text)
        new = DispatchState.UNKNOWN
        turn.change(c.DispatchEnded(turn.at_ms, turn.cause, run.run, dispatch.dispatch, new, fault))
        flow.wait_again(turn, run, record, {dispatch.node: fault.code})


def won(turn: Turn, run: RunRecord, record: ActionRecord, dispatch: DispatchRecord) -> None:
    """This dispatch of the unit completed first: the other one is stopped."""
    if not record.copied:
        return
    name = record.dispatch if dispatch.dispatch == record.copied else record.copied
    other = turn.state.dispatches.get(name)
    if other is None or other is dispatch or other.state in _OVER:
        return
    fault = Fault("action.straggler", f"{dispatch.dispatch} completed first")
    new = DispatchState.SUPERSEDED
    turn.change(c.DispatchEnded(turn.at_ms, turn.cause, run.run, name, new, fault))
    turn.command(SendCancel(other.node, (name,)))


def _look_at(turn: Turn, at_ms: int, dispatch: DispatchRecord) -> None:
    turn.deadlines.add(at_ms, Deadline.STRAGGLER, dispatch.dispatch)


def _usual_ms(run: RunRecord, record: ActionRecord) -> int | None:
    """The median of what others of its kind took in this run; None while too few have ended."""
    took = run.durations.get((record.action.module, record.action.action), ())
    if len(took) < limits.STRAGGLER_SAMPLES:
        return None
    return sorted(took)[len(took) // 2]


def _may_copy(turn: Turn, run: RunRecord, record: ActionRecord, slow: DispatchRecord) -> bool:
    state = turn.state
    if not may_judge(state) or state.behind or state.doubts or state.stopping:
        return False
    if not run.may_place(record) or record.approved or gates.may_ask(state, run, record):
        return False
    key = pool_key(run, record)
    return key[3] not in _BOUND and any(
        _is_free(turn, node) and why_not(node, *key[:3]) is None
        for node in candidates(state, key)
        if node.node != slow.node
    )


def _is_free(turn: Turn, node: NodeRecord) -> bool:
    online = node.liveness is Liveness.ONLINE and not node.full
    return online and len(node.live) < limits.NODE_SLOTS and barred(turn.state, node.node) is None
