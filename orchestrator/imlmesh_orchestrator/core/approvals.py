"""Answers of people, and what they lead to.

The one rule: the first answer counts, for what it was asked about and nothing else, and nobody's
silence repeats an effect or opens a gate.
"""

from imlmesh_orchestrator.core import asking, flow, gates
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.commands import Refuse, Reply
from imlmesh_orchestrator.core.events import AnswerGiven
from imlmesh_orchestrator.core.state import ActionRecord, ApprovalRecord, RunRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol.errors import Fault, InputError
from imlmesh_protocol.states import ActionState, ApprovalState, DispatchState, RunState


def answer(turn: Turn, event: AnswerGiven) -> None:
    """A person's answer; the first one counts, and with four eyes not that of who submitted."""
    approval = turn.state.approvals.get(event.approval)
    if approval is None:
        fault = Fault("approval.closed", f"{event.approval} is not open")
        turn.command(Refuse(event.cause, fault))
        return
    if event.option not in approval.options:
        options = ", ".join(approval.options)
        fault = Fault("approval.option", f"{event.option[:40]!r} is none of {options}")
        turn.command(Refuse(event.cause, fault))
        return
    submitter = turn.state.runs[approval.run].by
    if turn.four_eyes and approval.kind == asking.GATE and event.by == submitter:
        fault = Fault("approval.four_eyes", f"{event.by} submitted {approval.run}")
        turn.command(Refuse(event.cause, fault))
        return
    refused = event.option in (asking.DENY, asking.FAIL)
    if approval.kind == asking.GATE and not refused and _has_changed(turn, approval):
        _ask_anew(turn, approval)
        text = f"what {event.approval} asked about has changed, so it is asked anew"
        turn.command(Refuse(event.cause, Fault("approval.superseded", text)))
        return
    closed = ApprovalState.DENIED if refused else ApprovalState.APPROVED
    _settle(turn, approval, closed, event.option, event.by)
    turn.command(Reply(event.cause, event.option))


def _has_changed(turn: Turn, approval: ApprovalRecord) -> bool:
    """Whether something else would run now than what the question is bound to, or nothing could."""
    run = turn.state.runs[approval.run]
    record = run.units[approval.action]
    try:
        return gates.digest_of(turn.state, turn.env, run, record) != approval.digest
    except InputError:
        return True


def _ask_anew(turn: Turn, approval: ApprovalRecord) -> None:
    """The unit goes the way to its gate once more, with what would run now."""
    run = turn.state.runs[approval.run]
    asking.close(turn, approval, ApprovalState.SUPERSEDED, None, asking.SYSTEM)
    flow.wait_again(turn, run, run.units[approval.action], {})


def expire(turn: Turn, approval: ApprovalRecord) -> None:
    """Nobody answered: the option for silence is taken."""
    _settle(turn, approval, ApprovalState.EXPIRED, approval.on_expiry, asking.SYSTEM)


def _settle(
    turn: Turn, approval: ApprovalRecord, closed: ApprovalState, option: str, by: str
) -> None:
    run = turn.state.runs[approval.run]
    record = run.units[approval.action]
    asking.close(turn, approval, closed, option, by)
    if approval.kind == asking.GATE:
        _pass_gate(turn, run, record, closed, option, by)
    elif option == asking.RERUN:
        _run_again(turn, run, record, approval.dispatch, by)
    elif option == asking.DONE:
        fault = Fault("action.done_by_person", f"{by} says that it happened")
        flow.end(turn, run, record, ActionState.COMPLETED, fault)
    else:
        flow.fail(turn, run, record, Fault("action.failed_by_person", f"{by} chose {option}"))


def _pass_gate(
    turn: Turn,
    run: RunRecord,
    record: ActionRecord,
    closed: ApprovalState,
    option: str,
    by: str,
) -> None:
    if option == asking.SKIP and not record.undoes:
        fault = Fault("approval.expired", "nobody answered in time, so it was skipped")
        flow.end(turn, run, record, ActionState.SKIPPED, fault)
    elif closed is ApprovalState.EXPIRED:
        flow.fail(turn, run, record, Fault("approval.expired", "nobody answered in time"))
    elif closed is ApprovalState.DENIED:
        flow.fail(turn, run, record, Fault("approval.denied", f"{by} chose {option}"))
    else:
        flow.wait_again(turn, run, record, {})


def _run_again(turn: Turn, run: RunRecord, record: ActionRecord, dispatch: str, by: str) -> None:
    """What nobody knew the end of is given up; whatever it still reports is only evidence."""
    known = turn.state.dispatches.get(dispatch)
    if known is not None and known.state is DispatchState.UNKNOWN:
        fault = Fault("action.rerun_by_person", f"{by} asked to run it again")
        state = DispatchState.SUPERSEDED
        turn.change(c.DispatchEnded(turn.at_ms, turn.cause, run.run, dispatch, state, fault))
    if run.aborting is None or record.undoes or run.state is RunState.CANCELLING:
        flow.wait_again(turn, run, record, {})
    else:
        flow.fail(turn, run, record, Fault("node.lost", "the run ends, so it is not run again"))
