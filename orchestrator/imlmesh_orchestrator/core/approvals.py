"""Questions to people: asked, answered once, or expired.

The one rule: nobody's silence repeats an effect; the option chosen by silence is always `fail`.
"""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import runs
from imlmesh_orchestrator.core.commands import Refuse, Reply
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.events import AnswerGiven
from imlmesh_orchestrator.core.state import (
    ActionRecord,
    ApprovalRecord,
    DispatchRecord,
    RunRecord,
)
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import ActionState, ApprovalState, DispatchState

LOST_EFFECT = "lost_effect"
_OPTIONS = ("rerun", "done", "fail")
_SYSTEM = "imlmesh"


def ask_lost_effect(
    turn: Turn, run: RunRecord, record: ActionRecord, dispatch: DispatchRecord, fault: Fault
) -> None:
    """Nobody knows whether the effect happened: the action is unknown until a person says."""
    turn.change(
        c.ActionUnknown(turn.at_ms, turn.cause, run.run, record.action.id, dispatch.dispatch, fault)
    )
    counter = turn.state.approval_counter + 1
    approval = f"a-{counter}"
    alias = turn.state.nodes[dispatch.node].alias
    message = (
        f"{record.action.id} ({record.action.module}.{record.action.action}, effect "
        f"{dispatch.effect}) may or may not have happened on {alias}: {fault.message}"
    )
    expires_at_ms = turn.at_ms + limits.APPROVAL_MS
    turn.change(
        c.ApprovalAsked(
            turn.at_ms,
            turn.cause,
            run.run,
            approval,
            counter,
            LOST_EFFECT,
            record.action.id,
            dispatch.dispatch,
            message,
            _OPTIONS,
            "fail",
            expires_at_ms,
        )
    )
    turn.deadlines.add(expires_at_ms, Deadline.APPROVAL, approval)


def answer(turn: Turn, event: AnswerGiven) -> None:
    """A person's answer; the first one counts."""
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
    closed = ApprovalState.DENIED if event.option == "fail" else ApprovalState.APPROVED
    _settle(turn, approval, closed, event.option, event.by)
    turn.command(Reply(event.cause, event.option))


def expire(turn: Turn, approval: ApprovalRecord) -> None:
    """Nobody answered: the option for silence is taken."""
    _settle(turn, approval, ApprovalState.EXPIRED, approval.on_expiry, _SYSTEM)


def close_for_dispatch(turn: Turn, dispatch: DispatchRecord) -> None:
    """The node's journal answered first: the question is superseded."""
    for approval in list(turn.state.approvals.values()):
        if approval.dispatch == dispatch.dispatch:
            _close(turn, approval, ApprovalState.SUPERSEDED, None, _SYSTEM)


def _settle(
    turn: Turn, approval: ApprovalRecord, closed: ApprovalState, option: str, by: str
) -> None:
    run = turn.state.runs[approval.run]
    record = run.actions[approval.action]
    _close(turn, approval, closed, option, by)
    if option == "rerun":
        turn.change(
            c.DispatchEnded(
                turn.at_ms,
                turn.cause,
                run.run,
                approval.dispatch,
                DispatchState.SUPERSEDED,
                Fault("action.failed_by_person", f"{by} asked to run it again"),
            )
        )
        runs.wait_again(turn, run, record, {})
    elif option == "done":
        fault = Fault("action.done_by_person", f"{by} says that it happened")
        turn.change(
            c.ActionEnded(
                turn.at_ms, turn.cause, run.run, record.action.id, ActionState.COMPLETED, fault
            )
        )
        runs.after_end(turn, run, record)
    else:
        runs.fail(turn, run, record, Fault("action.failed_by_person", f"{by} chose {option}"))


def _close(
    turn: Turn, approval: ApprovalRecord, closed: ApprovalState, option: str | None, by: str
) -> None:
    turn.change(
        c.ApprovalClosed(
            turn.at_ms, turn.cause, approval.run, approval.approval, closed, option, by
        )
    )
