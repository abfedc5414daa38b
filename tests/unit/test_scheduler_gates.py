"""Approvals that are asked before something runs."""

import pytest

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import ApprovalAsked, ApprovalClosed
from imlmesh_protocol.states import ApprovalState
from scheduler_stage import Stage, action, plan, refusals


def asked(stage: Stage) -> list[ApprovalAsked]:
    return [c for c in stage.changes if isinstance(c, ApprovalAsked)]


def closed(stage: Stage) -> list[tuple[ApprovalState, str | None, str]]:
    found = [c for c in stage.changes if isinstance(c, ApprovalClosed)]
    return [(change.state, change.option, change.by) for change in found]


def gated(**more: object) -> dict[str, object]:
    return action("a", requires_approval=True, **more)


def test_requires_approval_asks_and_approve_lets_it_run() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(gated(), action("b", "a")))
    assert stage.states(run)["a"] == "awaiting_approval"
    assert run.dispatches == []
    stage.answer("approve")
    stage.end(run, "a")
    stage.end(run, "b")
    assert run.state == "completed"
    assert closed(stage) == [(ApprovalState.APPROVED, "approve", "adam")]


def test_the_plan_s_message_risk_and_time_are_asked() -> None:
    stage = Stage("pi")
    approval = {"message": "Opens the valve", "risk_level": "high", "timeout_seconds": 900}
    stage.submit(plan(gated(approval=approval)))
    (question,) = asked(stage)
    assert question.message.startswith("Opens the valve")
    assert (question.kind, question.risk) == ("gate", "high")
    assert question.expires_at_ms - question.at_ms == 900_000


@pytest.mark.parametrize(
    "what", [action("a", impact=0.71), action("a", do="blast"), gated(impact=0.0)]
)
def test_an_impact_above_the_limit_asks(what: dict[str, object]) -> None:
    stage = Stage("pi")
    run = stage.submit(plan(what))
    assert stage.states(run)["a"] == "awaiting_approval"


def test_an_impact_at_the_limit_does_not_ask() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", impact=0.7)))
    assert stage.states(run)["a"] == "running"


def test_deny_fails_the_action_and_on_error_applies() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(gated(on_error="continue"), action("b", "a")))
    stage.answer("deny")
    assert run.actions["a"].fault.code == "approval.denied"
    assert stage.states(run) == {"a": "failed", "b": "running"}


def test_silence_is_a_refusal() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(gated(approval={"timeout_seconds": 10}, on_error="retry")))
    stage.live("pi", for_ms=12_000)
    assert (run.state, run.actions["a"].fault.code) == ("failed", "approval.expired")
    assert closed(stage) == [(ApprovalState.EXPIRED, "deny", "imlmesh")]


def test_silence_may_skip() -> None:
    stage = Stage("pi")
    approval = {"timeout_seconds": 10, "timeout_behavior": "skip"}
    run = stage.submit(plan(gated(approval=approval), action("b", "a"), action("c")))
    stage.end(run, "c")
    stage.live("pi", for_ms=12_000)
    assert stage.states(run) == {"a": "skipped", "b": "skipped", "c": "completed"}
    assert run.state == "completed"


def test_clarification_options_are_answers_that_approve() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(gated(approval={"clarification_options": ["north", "south"]})))
    assert asked(stage)[0].options == ("approve", "deny", "north", "south")
    stage.answer("south")
    assert stage.states(run)["a"] == "running"
    assert closed(stage) == [(ApprovalState.APPROVED, "south", "adam")]


def test_the_first_answer_wins() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(gated()))
    approval = stage.question()
    stage.post(e.AnswerGiven, approval=approval, option="approve", by="adam")
    commands = stage.post(e.AnswerGiven, approval=approval, option="deny", by="eve")
    (refusal,) = [c for c in commands if isinstance(c, k.Refuse)]
    assert refusal.fault.code == "approval.closed"
    assert stage.states(run)["a"] == "running"


def test_with_four_eyes_the_submitter_s_own_answer_is_refused() -> None:
    stage = Stage("pi", four_eyes=True)
    run = stage.submit(plan(gated()))
    commands = stage.answer("approve", by="eve")
    assert refusals(commands) == ["approval.four_eyes"]
    assert stage.states(run)["a"] == "awaiting_approval"
    stage.answer("approve", by="adam")
    assert stage.states(run)["a"] == "running"


def test_an_approval_survives_a_restart() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(gated()))
    again = Stage(history=stage.changes)
    again.now_ms = stage.now_ms
    again.birth("pi")
    found = again.state.runs[run.run]
    assert again.states(found)["a"] == "awaiting_approval"
    again.answer("approve")
    assert again.states(found)["a"] == "running"


def test_an_approval_is_bound_to_the_params_that_were_asked_about() -> None:
    stage = Stage("pi")
    stage.post(e.MemorySet, session="s", key="k", value=1, by="eve")
    memory = {"read_keys": ["k"]}
    run = stage.submit(plan(gated(params={"v": "{{memory.k}}"}, memory=memory), session_id="s"))
    stage.live(for_ms=12_000)
    stage.answer("approve")
    assert stage.states(run)["a"] == "waiting"
    stage.post(e.MemorySet, session="s", key="k", value=2, by="eve")
    stage.birth("pi", boot=2)
    assert stage.states(run)["a"] == "awaiting_approval"
    assert asked(stage)[1].message.startswith("what was approved has changed")
    assert asked(stage)[0].digest != asked(stage)[1].digest
    stage.answer("approve")
    assert stage.sent(run, "a").params == {"v": 2}


def test_an_approval_is_bound_to_the_nodes_that_may_run_it() -> None:
    stage = Stage("pi-1")
    run = stage.submit(plan(gated()))
    stage.live(for_ms=12_000)
    stage.answer("approve")
    stage.birth("pi-2")
    assert stage.states(run)["a"] == "awaiting_approval"


def test_a_yes_to_what_has_changed_meanwhile_is_refused_and_asked_anew() -> None:
    stage = Stage("pi")
    stage.post(e.MemorySet, session="s", key="k", value=1, by="eve")
    memory = {"read_keys": ["k"]}
    run = stage.submit(plan(gated(params={"v": "{{memory.k}}"}, memory=memory), session_id="s"))
    stage.post(e.MemorySet, session="s", key="k", value=2, by="eve")
    assert refusals(stage.answer("approve")) == ["approval.superseded"]
    assert closed(stage) == [(ApprovalState.SUPERSEDED, None, "imlmesh")]
    assert stage.states(run)["a"] == "awaiting_approval"
    assert stage.replayed().runs[run.run] == run
    assert refusals(stage.answer("approve")) == []
    assert stage.sent(run, "a").params == {"v": 2}


def test_a_no_counts_whatever_has_changed() -> None:
    stage = Stage("pi-1")
    run = stage.submit(plan(gated()))
    stage.birth("pi-2")
    assert refusals(stage.answer("deny")) == []
    assert (run.state, run.actions["a"].fault.code) == ("failed", "approval.denied")


def test_a_yes_to_what_can_be_filled_no_more_fails_the_action() -> None:
    stage = Stage("pi")
    stage.post(e.MemorySet, session="s", key="k", value=1, by="eve")
    memory = {"read_keys": ["k"]}
    run = stage.submit(plan(gated(params={"v": "{{memory.k}}"}, memory=memory), session_id="s"))
    stage.post(e.MemoryDeleteAsked, session="s", key="k", by="eve")
    assert refusals(stage.answer("approve")) == ["approval.superseded"]
    assert (run.state, run.actions["a"].fault.code) == ("failed", "memory.not_found")


def test_an_all_action_asks_once_for_all_its_members() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(gated(target_mode="all")))
    assert len(asked(stage)) == 1
    assert stage.running(run) == []
    stage.answer("approve")
    assert stage.running(run) == ["a@pi-1", "a@pi-2"]


@pytest.mark.parametrize("ending", ["abort", "cancel"])
def test_what_ends_the_run_supersedes_the_question(ending: str) -> None:
    stage = Stage("pi")
    run = stage.submit(plan(gated(), action("b")))
    if ending == "abort":
        stage.end(run, "b", "failed")
    else:
        stage.post(e.CancelAsked, run=run.run, by="eve")
        stage.end(run, "b", "cancelled", code="action.cancelled")
    assert run.ended
    assert closed(stage) == [(ApprovalState.SUPERSEDED, None, "imlmesh")]


def test_a_template_that_cannot_be_filled_fails_before_anybody_is_asked() -> None:
    stage = Stage("pi")
    what = gated(params={"v": "{{memory.k}}"}, memory={"read_keys": ["k"]})
    run = stage.submit(plan(what))
    assert (run.state, run.actions["a"].fault.code) == ("failed", "memory.not_found")
    assert asked(stage) == []
