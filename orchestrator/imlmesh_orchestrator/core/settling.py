"""What follows within the same turn: actions that became ready, and the undoing of a failed run.

The one rule: a queue, never a call within a call, since a chain of failures may be longer than the
stack. Compensations run one after the other, what worked last first.
"""

from imlmesh_orchestrator.core import asking, flow, rollback
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.placement import stuck
from imlmesh_orchestrator.core.state import ActionRecord, RunRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol.states import ActionState

#: what was skipped after it had worked stays skipped
_UNDOABLE = frozenset({ActionState.COMPLETED, ActionState.FAILED})
_UNDER_WAY = frozenset({ActionState.RUNNING, ActionState.UNKNOWN})


def settle(turn: Turn) -> None:
    """Follow up everything in the turn's queue, until it is empty."""
    while turn.ready:
        run, records = turn.ready.popleft()
        if records is not None:
            flow.ready(turn, run, records)
        elif not run.ended:
            _undo(turn, run)


def _undo(turn: Turn, run: RunRecord) -> None:
    """Plan what is undone, tell what has been, and begin the next one."""
    if run.compensations is None:
        _plan(turn, run)
    records = [run.units[key] for key in run.compensations or ()]
    for record in records:
        if record.state is ActionState.COMPLETED:
            _tell_undone(turn, run, run.units[record.undoes])
    if any(_goes_on(turn, run, record) for record in records):
        return
    for record in records:
        if not record.ended and run.may_place(record) and _begin(turn, run, record):
            return
    flow.finish_if_done(turn, run)


def _plan(turn: Turn, run: RunRecord) -> None:
    found = rollback.undoings(turn.state, run)
    rows = tuple(one.row for one in found)
    turn.change(c.CompensationsPlanned(turn.at_ms, turn.cause, run.run, rows))
    for one in found:
        if one.fault is not None:
            flow.end_one(turn, run, run.units[one.key], ActionState.FAILED, one.fault)


def _goes_on(turn: Turn, run: RunRecord, record: ActionRecord) -> bool:
    """Whether the next one waits for this one, or for the answer that lets it run."""
    if record.state is ActionState.AWAITING_APPROVAL:
        return asking.kind_of_question(turn, run, record.key) == asking.GATE
    return record.state in _UNDER_WAY or record.queued


def _begin(turn: Turn, run: RunRecord, record: ActionRecord) -> bool:
    """False when the next one may begin: this one failed, or a person is asked about its failure."""
    if record.state is ActionState.AWAITING_APPROVAL:
        return False
    fault = stuck(turn.state, run, record)
    if fault is not None:
        asking.ask_compensation(turn, run, record, fault)
        return False
    flow.seek(turn, run, record)
    return not record.ended


def _tell_undone(turn: Turn, run: RunRecord, undone: ActionRecord) -> None:
    if undone.state in _UNDOABLE:
        flow.end_one(turn, run, undone, ActionState.ROLLED_BACK, undone.fault)
    whole = undone.parent
    if whole is None or whole.state not in _UNDOABLE:
        return
    own = [run.units[key] for key in run.compensations or ()]
    done = ActionState.COMPLETED
    if all(unit.state is done for unit in own if unit.undoes in (whole.members or ())):
        flow.end_one(turn, run, whole, ActionState.ROLLED_BACK, whole.fault)
