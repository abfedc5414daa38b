"""While the ledger is doubted nothing new starts; what runs goes on; a person ends it."""

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import DoubtRaised, DoubtsAcknowledged
from imlmesh_protocol import limits
from scheduler_stage import Stage, action, plan, refusals

HEAD = (7, b"r" * 32)


def doubt(stage: Stage, size: int = 7, root: bytes = b"r" * 32) -> list[k.Command]:
    return stage.post(e.SealContradicted, witness="pi", size=size, root=root)


def submit(stage: Stage) -> list[k.Command]:
    return stage.post(e.PlanSubmitted, dice=5, plan=plan(action("a")), digest="d", by="anna")


def test_no_plan_is_taken_and_nothing_is_dispatched_until_a_person_acknowledges() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b", "a")))
    doubt(stage)
    refused = submit(stage)
    assert refusals(refused) == ["ledger.doubted"]
    assert isinstance(refused[0], k.Refuse)
    assert "pi holds" in refused[0].fault.message
    # what ran is taken, and what became ready waits
    stage.end(run, "a")
    assert stage.states(run) == {"a": "completed", "b": "pending"}
    first = len(stage.commands)
    answered = stage.post(e.AcknowledgementGiven, by="anna", reason="a disk died")
    assert [one.value for one in answered if isinstance(one, k.Reply)] == [1]
    assert [one.dispatch for one in stage.commands[first:] if isinstance(one, k.SendDispatch)]
    stage.end(run, "b")
    assert run.state == "completed"
    assert refusals(submit(stage)) == []


def test_a_doubt_is_raised_once_and_what_was_given_up_raises_none() -> None:
    stage = Stage("pi")
    doubt(stage)
    doubt(stage)
    assert [type(c) for c in stage.changes].count(DoubtRaised) == 1
    stage.post(e.AcknowledgementGiven, by="anna", reason="known")
    doubt(stage)
    assert (stage.state.doubts, [*stage.state.acknowledged]) == ({}, [HEAD])
    doubt(stage, 8)
    assert [*stage.state.doubts] == [(8, b"r" * 32)]


def test_without_a_doubt_there_is_nothing_to_acknowledge() -> None:
    stage = Stage("pi")
    assert refusals(stage.post(e.AcknowledgementGiven, by="a", reason="b")) == ["ledger.undoubted"]
    assert not any(isinstance(change, DoubtsAcknowledged) for change in stage.changes)


def test_a_restart_forgets_neither_doubts_nor_what_was_given_up() -> None:
    stage = Stage("pi")
    doubt(stage)
    stage.post(e.AcknowledgementGiven, by="anna", reason="known")
    doubt(stage, 9)
    after = Stage(history=stage.changes)
    assert after.state.doubts == {(9, b"r" * 32): "pi"}
    assert [*after.state.acknowledged] == [HEAD]
    assert refusals(submit(after)) == ["ledger.doubted"]


def test_doubts_are_bounded() -> None:
    stage = Stage("pi")
    for number in range(limits.LEDGER_DOUBTS + 5):
        doubt(stage, number + 1)
    assert len(stage.state.doubts) == limits.LEDGER_DOUBTS


def test_what_was_never_accepted_is_not_sent_again_while_history_may_be_missing() -> None:
    """The store is an older copy: the node did it long ago, was settled, and has forgotten it."""
    before = Stage("pi")
    run = before.submit(plan(action("risky", do="send"), action("look")))
    stage = Stage(history=before.changes)
    stage.birth("pi", boot=1)
    doubt(stage)
    first = len(stage.commands)
    nonce = stage.state.presence["pi"].asked
    stage.post(e.InventoryArrived, node="pi", nonce=nonce, held=(), unsettled=())
    stage.live("pi", for_ms=4 * limits.ACCEPT_MS)
    assert not [one for one in stage.commands[first:] if isinstance(one, k.SendDispatch)]
    assert not stage.state.approvals
    stage.post(e.AcknowledgementGiven, by="anna", reason="a disk died")
    again = stage.state.runs[run.run]
    assert stage.states(again)["risky"] == "unknown"
    assert [a.kind for a in stage.state.approvals.values()] == ["lost_effect"]
    stage.live("pi", for_ms=2 * limits.ACCEPT_MS)
    sent = {one.dispatch for one in stage.commands[first:] if isinstance(one, k.SendDispatch)}
    assert sent == {stage.dispatch_of(again, "look").dispatch}
    stage.answer("done")
    stage.end(again, "look")
    assert again.state == "completed"
