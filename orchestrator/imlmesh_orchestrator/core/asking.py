"""Questions to people: how each kind is put, and how one is closed.

The one rule: silence never repeats an effect and never lets a gate open. Deliberately absent: what
an answer leads to; `approvals` knows.
"""

from collections.abc import Iterable

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.state import (
    ActionRecord,
    ApprovalRecord,
    DispatchRecord,
    RunRecord,
)
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.iml.plan import Approval
from imlmesh_protocol.states import ApprovalState

GATE, LOST_EFFECT, COMPENSATION = "gate", "lost_effect", "compensation"
APPROVE, DENY, SKIP = "approve", "deny", "skip"
RERUN, DONE, FAIL = "rerun", "done", "fail"
#: who answers when nobody did
SYSTEM = "imlmesh"

_DEFAULT = Approval.model_validate({})


def ask_gate(turn: Turn, run: RunRecord, record: ActionRecord, reason: str, digest: str) -> None:
    """May this run? The plan says what is asked, how long, and what silence means."""
    action = record.action
    asked = action.approval or _DEFAULT
    call = f"{record.key} ({action.module}.{action.action}): {reason}"
    again = record.approved or (record.parent is not None and record.parent.approved)
    said = f"{asked.message} [{call}]" if asked.message else call
    message = f"what was approved has changed, so once more: {said}" if again else said
    extra = [option for option in asked.clarification_options if option not in (APPROVE, DENY)]
    expires_ms = (asked.timeout_seconds or 0) * 1_000 or limits.APPROVAL_MS
    _ask(
        turn,
        run,
        record,
        GATE,
        message,
        (APPROVE, DENY, *dict.fromkeys(extra)),
        DENY if asked.timeout_behavior == "reject" else SKIP,
        expires_ms=expires_ms,
        risk=asked.risk_level,
        digest=digest,
    )


def ask_lost_effect(
    turn: Turn, run: RunRecord, record: ActionRecord, dispatch: DispatchRecord, fault: Fault
) -> None:
    """Nobody knows whether the effect happened: the unit is unknown until a person says."""
    turn.change(
        c.ActionUnknown(turn.at_ms, turn.cause, run.run, record.key, dispatch.dispatch, fault)
    )
    alias = turn.state.nodes[dispatch.node].alias
    message = (
        f"{record.key} ({record.action.module}.{record.action.action}, effect "
        f"{dispatch.effect}) may or may not have happened on {alias}: {fault.message}"
    )
    options = (RERUN, DONE, FAIL)
    _ask(turn, run, record, LOST_EFFECT, message, options, FAIL, dispatch=dispatch.dispatch)


def ask_compensation(turn: Turn, run: RunRecord, record: ActionRecord, fault: Fault) -> None:
    """Something could not be undone: again, done by hand, or left as it is?"""
    alias = turn.state.nodes[record.node].alias
    message = f"{record.undoes} could not be undone on {alias}: {fault.message} ({fault.code})"
    options = (RERUN, DONE, FAIL)
    _ask(turn, run, record, COMPENSATION, message, options, FAIL, dispatch=record.dispatch)


def _ask(
    turn: Turn,
    run: RunRecord,
    record: ActionRecord,
    kind: str,
    message: str,
    options: tuple[str, ...],
    on_expiry: str,
    *,
    dispatch: str = "",
    expires_ms: int = limits.APPROVAL_MS,
    risk: str = "",
    digest: str = "",
) -> None:
    counter = turn.state.approval_counter + 1
    approval = f"a-{counter}"
    expires_at_ms = turn.at_ms + expires_ms
    turn.change(
        c.ApprovalAsked(
            turn.at_ms,
            turn.cause,
            run.run,
            approval,
            counter,
            kind,
            record.key,
            dispatch,
            message,
            options,
            on_expiry,
            expires_at_ms,
            risk,
            digest,
        )
    )
    turn.deadlines.add(expires_at_ms, Deadline.APPROVAL, approval)


def close(
    turn: Turn, approval: ApprovalRecord, closed: ApprovalState, option: str | None, by: str
) -> None:
    """The question is answered, expired or superseded."""
    turn.change(
        c.ApprovalClosed(
            turn.at_ms, turn.cause, approval.run, approval.approval, closed, option, by
        )
    )


def supersede(turn: Turn, run: RunRecord, keys: Iterable[str]) -> None:
    """Questions about these units no longer matter."""
    if run.questions:
        for approval in [run.questions[key] for key in keys if key in run.questions]:
            record = turn.state.approvals[approval]
            close(turn, record, ApprovalState.SUPERSEDED, None, SYSTEM)


def kind_of_question(turn: Turn, run: RunRecord, key: str) -> str | None:
    """The kind of the open question about a unit, if any."""
    approval = run.questions.get(key)
    return turn.state.approvals[approval].kind if approval is not None else None
