"""People decide whether a node may get work, and what that means for the work it has."""

from typing import Any

import pytest

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_protocol.states import ADMISSION, Admission
from scheduler_stage import LOST_MS, Stage, action, plan, refusals

NOT_OPEN = [Admission.CORDONED, Admission.DRAINING, Admission.QUARANTINED, Admission.REVOKED]
NOT_BELIEVED = [Admission.QUARANTINED, Admission.REVOKED]


def put(
    stage: Stage, node: str, admission: Admission, *, for_ms: int = 0, reason: str = "it smells"
) -> list[k.Command]:
    return stage.post(
        e.AdmissionAsked, node=node, admission=admission, reason=reason, by="eve", for_ms=for_ms
    )


def enrol(stage: Stage, node: str) -> list[k.Command]:
    more = {"alias": node, "identity": b"1" * 32, "profile": "readonly", "by": "eve"}
    return stage.post(e.EnrolAsked, node=node, serial="7", not_after_ms=1 << 50, **more)


def release(stage: Stage, node: str) -> list[k.Command]:
    return put(stage, node, Admission.OPEN, reason="looked at")


def told(commands: list[k.Command]) -> list[tuple[str, str]]:
    return [(one.node, one.do) for one in commands if isinstance(one, k.SendAdmission)]


def sent_to(commands: list[k.Command]) -> list[str]:
    return [one.node for one in commands if isinstance(one, k.SendDispatch)]


def of(stage: Stage, kind: type[c.Change]) -> list[Any]:
    return [change for change in stage.changes if isinstance(change, kind)]


@pytest.mark.parametrize("admission", NOT_OPEN)
def test_what_is_not_open_gets_nothing_new_and_the_run_says_why(admission: Admission) -> None:
    stage = Stage("a")
    put(stage, "a", admission)
    run = stage.submit(plan(action("one", target_node="a")))
    assert stage.states(run) == {"one": "waiting"}
    (waiting,) = of(stage, c.ActionWaiting)
    assert waiting.reasons == {"a": f"node.{admission}"}
    if admission is not Admission.REVOKED:
        assert sent_to(release(stage, "a")) == ["a"]


@pytest.mark.parametrize("admission", NOT_OPEN)
def test_another_node_gets_it(admission: Admission) -> None:
    stage = Stage("a", "b")
    put(stage, "a", admission)
    run = stage.submit(plan(*(action(f"one{i}") for i in range(4))))
    assert {stage.dispatch_of(run, name).node for name in run.actions} == {"b"}
    ordered = stage.submit(plan(action("two", target_node="a", fallback_nodes=["b"])))
    assert stage.dispatch_of(ordered, "two").node == "b"


@pytest.mark.parametrize("admission", NOT_OPEN)
def test_a_node_may_be_judged_before_it_is_ever_born(admission: Admission) -> None:
    stage = Stage()
    assert refusals(put(stage, "a", admission)) == ["node.not_found"]
    enrol(stage, "a")
    put(stage, "a", admission)
    stage.birth("a")
    run = stage.submit(plan(action("one")))
    assert stage.states(run) == {"one": "waiting"}
    assert ("a" in stage.state.nodes) == (admission is not Admission.REVOKED)


@pytest.mark.parametrize("admission", [Admission.CORDONED, Admission.DRAINING])
@pytest.mark.parametrize("do", ["look", "write", "send", "push"])
def test_what_a_cordoned_or_draining_node_has_ends_there_and_counts(
    admission: Admission, do: str
) -> None:
    stage = Stage("a")
    run = stage.submit(plan(action("one", do=do, params={"pin": 1}), action("two", "one")))
    put(stage, "a", admission)
    assert stage.states(run)["one"] == "running"
    stage.end(run, "one")
    assert stage.states(run) == {"one": "completed", "two": "waiting"}


@pytest.mark.parametrize("admission", NOT_BELIEVED)
@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize(
    ("do", "on_node_loss", "left"),
    [
        ("look", None, "running"),
        ("write", None, "running"),
        ("look", "reroute", "running"),
        ("write", "fail", "failed"),
        ("write", "ask", "unknown"),
        ("look", "wait", "running"),
        ("send", None, "unknown"),
        ("send", "wait", "unknown"),
        ("send", "fail", "failed"),
        ("push", None, "unknown"),
        ("push", "wait", "unknown"),
        ("push", "ask", "unknown"),
        ("push", "fail", "failed"),
    ],
)
def test_the_leases_of_a_node_that_is_not_believed_are_over_at_once(
    admission: Admission, accepted: bool, do: str, on_node_loss: str | None, left: str
) -> None:
    """Repeatable work runs elsewhere, what may have happened is a person's question, and none of
    it is lost: no dispatch of the node is live any more, for whatever effect."""
    stage = Stage("a")
    more = {"on_node_loss": on_node_loss} if on_node_loss else {}
    run = stage.submit(plan(action("one", do=do, params={"pin": 1}, **more)))
    before = stage.dispatch_of(run, "one")
    if accepted:
        stage.accept(run, "one")
    stage.birth("b")
    commands = put(stage, "a", admission)
    assert stage.states(run) == {"one": left}
    assert sent_to(commands) == (["b"] if left == "running" else [])
    assert stage.state.nodes["a"].live == {}
    assert bool(stage.state.approvals) == (left == "unknown")
    assert str(before.state) == ("superseded" if left == "running" else "unknown")
    assert stage.replayed().nodes == stage.state.nodes


@pytest.mark.parametrize("do", ["look", "write"])
@pytest.mark.parametrize("wanted", [None, "wait"])
def test_what_waits_for_a_quarantined_node_begins_anew_when_it_is_released(
    do: str, wanted: str | None
) -> None:
    stage = Stage("a")
    more = {"on_node_loss": wanted} if wanted else {}
    run = stage.submit(plan(action("one", do=do, target_node="a", **more)))
    first = stage.dispatch_of(run, "one")
    put(stage, "a", Admission.QUARANTINED)
    assert stage.states(run) == {"one": "waiting"}
    assert sent_to(release(stage, "a")) == ["a"]
    second = stage.dispatch_of(run, "one")
    assert first.dispatch != second.dispatch
    stage.report(first)  # late, and of a dispatch that was given up
    assert stage.states(run) == {"one": "running"}
    stage.report(second)
    assert stage.states(run) == {"one": "completed"}


@pytest.mark.parametrize("do", ["send", "push"])
def test_the_word_of_a_quarantined_node_is_settled_kept_and_does_not_count(do: str) -> None:
    stage = Stage("a")
    run = stage.submit(plan(action("one", do=do, params={"pin": 1})))
    dispatch = stage.dispatch_of(run, "one")
    stage.accept(run, "one")
    put(stage, "a", Admission.QUARANTINED)
    for _ in range(2):
        commands = stage.report(dispatch, result={"lie": True})
        (ack,) = [one for one in commands if isinstance(one, k.SendAck)]
        assert ack.settled == (dispatch.dispatch,)
    assert stage.states(run) == {"one": "unknown"}
    (kept,) = of(stage, c.ResultKept)
    assert (kept.dispatch, kept.result) == (dispatch.dispatch, {"lie": True})
    stage.answer("done")
    assert stage.states(run) == {"one": "completed"}


@pytest.mark.parametrize("do", ["send", "push"])
def test_a_once_effect_is_repeated_by_a_persons_word_alone(do: str) -> None:
    stage = Stage("a", "b")
    run = stage.submit(plan(action("one", do=do, params={"pin": 1})))
    first = stage.dispatch_of(run, "one")
    put(stage, first.node, Admission.QUARANTINED)
    release(stage, first.node)
    stage.live("a", "b", for_ms=4 * LOST_MS)
    assert len(run.dispatches) == 1
    stage.answer("rerun")
    assert len(run.dispatches) == 2


def test_after_its_release_a_late_true_result_replaces_what_nobody_knew() -> None:
    stage = Stage("a")
    run = stage.submit(plan(action("one", do="send")))
    dispatch = stage.dispatch_of(run, "one")
    put(stage, "a", Admission.QUARANTINED)
    release(stage, "a")
    stage.report(dispatch)
    assert stage.states(run) == {"one": "completed"}
    assert not stage.state.approvals


@pytest.mark.parametrize("admission", NOT_OPEN)
def test_a_member_on_a_node_that_is_not_open_counts_as_unreachable(admission: Admission) -> None:
    stage = Stage("a", "b")
    stage.set_group("g", "a", "b")
    first = stage.submit(plan(action("gate", do="blast", target_node="b")))
    run = stage.submit(
        plan(
            action("zero", target_node="b"),
            action("one", "zero", target_group="g", target_mode="all", quorum=1),
        )
    )
    assert not first.ended
    put(stage, "a", admission)
    stage.end(run, "zero")
    if admission is Admission.REVOKED:  # it left the group before that was frozen
        assert "one@a" not in run.units
    else:
        assert str(run.units["one@a"].state) == "failed"
        assert run.units["one@a"].fault.code == f"node.{admission}"
    stage.end(run, "one@b")
    assert stage.states(run)["one"] == "completed"


def test_an_undoing_on_a_quarantined_node_asks_a_person() -> None:
    stage = Stage("a")
    run = stage.submit(
        plan(
            action("one", do="turn", params={"pin": 1, "to": 1}),
            action("two", "one", on_error="rollback"),
        )
    )
    stage.end(run, "one", result={"before": 0})
    dispatch = stage.dispatch_of(run, "two")
    put(stage, "a", Admission.QUARANTINED)
    assert str(dispatch.state) == "superseded"
    release(stage, "a")
    put(stage, "a", Admission.CORDONED)
    stage.end(run, "two", "failed")
    assert stage.state.approvals[stage.question()].kind == "compensation"


def test_a_removed_node_is_nowhere_any_more_and_not_even_heard() -> None:
    stage = Stage("a", "b")
    stage.set_group("g", "a", "b")
    stage.set_group("alone", "a")
    put(stage, "a", Admission.REVOKED)
    assert stage.state.groups == {"g": ("b",)}
    assert stage.liveness("a") == "offline"
    run = stage.submit(plan(action("one", target_mode="all")))
    assert set(run.units) == {"one", "one@b"}
    count = len(stage.changes)
    stage.birth("a", boot=7)
    assert stage.beat("a") == []
    assert len(stage.changes) == count


def test_removing_is_for_ever_and_may_be_asked_twice() -> None:
    stage = Stage("a")
    put(stage, "a", Admission.REVOKED)
    count = len(of(stage, a.AdmissionChanged))
    assert refusals(put(stage, "a", Admission.REVOKED)) == []
    assert len(of(stage, a.AdmissionChanged)) == count
    assert refusals(enrol(stage, "a")) == ["node.revoked"]
    for admission in set(Admission) - {Admission.REVOKED}:
        assert refusals(put(stage, "a", admission)) == ["node.admission"]


@pytest.mark.parametrize("before", list(Admission))
@pytest.mark.parametrize("after", list(Admission))
def test_the_table_of_transitions_is_what_happens(before: Admission, after: Admission) -> None:
    stage = Stage("a")
    if before is not Admission.OPEN:
        put(stage, "a", before)
    same = before is after and before in (Admission.OPEN, Admission.REVOKED)
    commands = put(stage, "a", after)
    allowed = same or after in ADMISSION[before]
    assert refusals(commands) == ([] if allowed else ["node.admission"])
    assert stage.state.admission_of("a") is (after if allowed else before)
    assert stage.replayed().admissions == stage.state.admissions


def test_a_node_hears_of_its_quarantine_at_each_session_and_of_its_release() -> None:
    stage = Stage("a")
    assert told(put(stage, "a", Admission.QUARANTINED)) == [("a", "quarantine")]
    first = len(stage.commands)
    stage.birth("a", session=2)
    assert told(stage.commands[first:]) == [("a", "quarantine")]
    assert told(release(stage, "a")) == [("a", "release")]
    first = len(stage.commands)
    stage.birth("a", session=3)
    assert told(stage.commands[first:]) == []
    assert told(put(stage, "a", Admission.CORDONED)) == []


def test_a_node_that_missed_its_release_is_told_again_and_gets_the_work_with_its_next_beat() -> (
    None
):
    stage = Stage("a")
    run = stage.submit(plan(action("one", do="push", params={"pin": 1})))
    dispatch = stage.dispatch_of(run, "one")
    refused = ((dispatch.dispatch, k.Fault("node.quarantined", "so it was said")),)
    commands = stage.post(e.RejectArrived, node="a", refusals=refused)
    assert told(commands) == [("a", "release")]
    assert sent_to(commands) == []
    assert stage.states(run) == {"one": "waiting"}
    assert sent_to(stage.beat("a")) == ["a"]


@pytest.mark.parametrize(
    "admission", [Admission.CORDONED, Admission.DRAINING, Admission.QUARANTINED]
)
def test_what_a_person_limited_ends_by_itself(admission: Admission) -> None:
    stage = Stage("a")
    put(stage, "a", admission, for_ms=60_000)
    stage.live("a", for_ms=58_000)
    assert stage.state.admission_of("a") is admission
    stage.live("a", for_ms=4_000)
    assert stage.state.admission_of("a") is Admission.OPEN
    assert of(stage, a.AdmissionChanged)[-1].by == "imlmesh"


def test_a_longer_time_replaces_a_shorter_one() -> None:
    stage = Stage("a")
    put(stage, "a", Admission.CORDONED, for_ms=10_000)
    put(stage, "a", Admission.CORDONED, for_ms=30_000)
    stage.live("a", for_ms=20_000)
    assert stage.state.admission_of("a") is Admission.CORDONED
    stage.live("a", for_ms=12_000)
    assert stage.state.admission_of("a") is Admission.OPEN


def test_it_all_survives_a_restart() -> None:
    stage = Stage("a", "b")
    put(stage, "a", Admission.QUARANTINED, for_ms=60_000)
    put(stage, "b", Admission.DRAINING)
    enrol(stage, "ghost")
    put(stage, "ghost", Admission.REVOKED)
    again = Stage(history=stage.changes)
    assert again.state.admissions == stage.state.admissions
    for node in ("a", "b"):
        again.birth(node, boot=2)
    run = again.submit(plan(action("one")))
    assert again.states(run) == {"one": "waiting"}
    again.live("a", "b", for_ms=70_000)
    assert again.dispatch_of(run, "one").node == "a"
