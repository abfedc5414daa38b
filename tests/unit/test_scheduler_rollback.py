"""on_error rollback: what is undone, where, in which order, and what cannot be."""

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.state import RunRecord
from imlmesh_protocol.errors import Fault
from scheduler_stage import Stage, action, plan


def chain() -> Stage:
    return Stage("pi-1", "pi-2")


def undo(name: str, **params: object) -> dict[str, object]:
    return {"rollback": {"action": name, "params": params}}


def end_chain(stage: Stage, run: RunRecord, *names: str) -> None:
    for name in names:
        stage.end(run, name, result={"of": name})


def test_the_failed_action_and_its_completed_ancestors_are_undone_last_first() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("a", **undo("u", say="a")),
            action("b", "a", **undo("u", say="b")),
            action("side"),
            action("x", "b", on_error="rollback", **undo("u", say="x")),
            action("u", params={"say": "?", "kept": 1}),
        )
    )
    end_chain(stage, run, "side", "a", "b")
    assert stage.states(run)["u"] == "pending"
    stage.end(run, "x", "failed")
    for key, said in (("x~pi", "x"), ("b~pi", "b"), ("a~pi", "a")):
        assert stage.running(run) == [key]
        assert stage.sent(run, key).params == {"say": said, "kept": 1}
        stage.end(run, key)
    assert run.state == "failed"
    rolled = {"a": "rolled_back", "b": "rolled_back", "x": "rolled_back"}
    assert stage.states(run) == {**rolled, "side": "completed", "u": "completed"}
    assert run.compensation_pending is False
    names = [name.split("/", 1)[1] for name in run.dispatches[-3:]]
    assert names == ["u/pi/1", "u/pi/2", "u/pi/3"]


def test_a_compensation_runs_on_the_node_that_did_the_work() -> None:
    stage = chain()
    run = stage.submit(
        plan(
            action("a", target_node="pi-2", **undo("u")),
            action("x", "a", target_node="pi-1", on_error="rollback"),
            action("u", target_node="pi-1"),
        )
    )
    end_chain(stage, run, "a")
    stage.end(run, "x", "failed")
    assert stage.dispatch_of(run, "a~pi-2").node == "pi-2"


def test_what_never_started_is_not_undone() -> None:
    stage = Stage("pi")
    what = action("x", "a", on_error="rollback", **undo("u"))
    run = stage.submit(plan(action("a", **undo("u")), what, action("u")))
    end_chain(stage, run, "a")
    dispatch = stage.dispatch_of(run, "x")
    refusals = ((dispatch.dispatch, Fault("policy.path", "no")),)
    stage.post(e.RejectArrived, node="pi", refusals=refusals)
    assert stage.running(run) == ["a~pi"]
    stage.end(run, "a~pi")
    assert stage.states(run)["x"] == "failed"
    assert stage.states(run)["a"] == "rolled_back"


def test_what_never_got_its_claim_is_not_undone() -> None:
    stage = Stage("pi")
    what = action("x", "a", on_busy="fail", on_error="rollback", **undo("u"))
    run = stage.submit(plan(action("a", **undo("u")), what, action("u")))
    end_chain(stage, run, "a")
    stage.end(run, "x", "failed", code="driver.busy")
    assert stage.running(run) == ["a~pi"]
    stage.end(run, "a~pi")
    assert stage.states(run) == {"a": "rolled_back", "x": "failed", "u": "completed"}


def test_what_never_got_its_claim_after_a_first_try_is_undone() -> None:
    stage = Stage("pi")
    busy = {"on_busy": "fail", "on_error": "retry", "retry": {"retry_on": [], "max_attempts": 2}}
    run = stage.submit(
        plan(
            action("a", **busy, **undo("u")),
            action("u"),
        )
    )
    stage.end(run, "a", "failed")
    stage.pass_time(2_000)
    stage.end(run, "a", "failed", code="driver.busy")
    assert run.actions["a"].worked_on == "pi"


def test_a_driver_s_own_undo_serves_where_the_plan_names_none() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("a", do="turn", params={"pin": 4, "to": 1}),
            action("x", "a", on_error="rollback"),
        )
    )
    stage.end(run, "a", result={"before": 0})
    stage.end(run, "x", "failed")
    sent = stage.sent(run, "a~pi")
    assert (sent.action, sent.params) == ("turn", {"to": 0, "pin": 4})
    assert sent.id.endswith("/a/pi/2")
    stage.end(run, "a~pi")
    assert stage.states(run)["a"] == "rolled_back"


def test_an_undo_that_needs_a_result_which_never_came_is_pending_and_said() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(action("x", do="turn", params={"pin": 4, "to": 1}, on_error="rollback"))
    )
    stage.end(run, "x", "failed")
    assert (run.state, run.compensation_pending) == ("failed", True)
    assert run.units["x~pi"].fault.code == "template.no_result"


def test_a_compensation_waits_until_what_runs_has_ended() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("a", **undo("u")),
            action("b", "a"),
            action("x", "a", on_error="rollback"),
            action("u"),
        )
    )
    end_chain(stage, run, "a")
    stage.end(run, "x", "failed")
    assert stage.running(run) == ["b"]
    stage.end(run, "b")
    assert stage.running(run) == ["a~pi"]


def test_a_failed_compensation_asks_while_the_next_one_runs() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("a", **undo("u")),
            action("b", "a", **undo("u")),
            action("x", "b", on_error="rollback"),
            action("u"),
        )
    )
    end_chain(stage, run, "a", "b")
    stage.end(run, "x", "failed")
    stage.end(run, "b~pi", "failed")
    assert stage.units(run)["b~pi"] == "awaiting_approval"
    assert stage.running(run) == ["a~pi"]
    stage.end(run, "a~pi")
    assert not run.ended
    stage.answer("rerun")
    stage.end(run, "b~pi", "failed")
    stage.answer("fail")
    assert (run.state, run.compensation_pending) == ("failed", True)
    assert stage.states(run)["a"] == "rolled_back"
    assert stage.states(run)["b"] == "completed"
    assert stage.states(run)["u"] == "failed"


def test_a_person_may_have_undone_it() -> None:
    stage = chain()
    run = stage.submit(
        plan(
            action("a", target_node="pi-2", **undo("u")),
            action("x", "a", target_node="pi-1", on_error="rollback"),
            action("u"),
        )
    )
    end_chain(stage, run, "a")
    stage.live("pi-1", for_ms=12_000)
    stage.end(run, "x", "failed")
    assert stage.units(run)["a~pi-2"] == "awaiting_approval"
    stage.answer("done")
    assert (run.state, run.compensation_pending) == ("failed", False)
    assert stage.states(run)["a"] == "rolled_back"


def test_silence_about_a_compensation_leaves_it_pending() -> None:
    stage = chain()
    run = stage.submit(
        plan(
            action("a", target_node="pi-2", **undo("u")),
            action("x", "a", target_node="pi-1", on_error="rollback"),
            action("u"),
        )
    )
    end_chain(stage, run, "a")
    stage.live("pi-1", for_ms=12_000)
    stage.end(run, "x", "failed")
    stage.live("pi-1", for_ms=60 * 60_000)
    assert (run.state, run.compensation_pending) == ("failed", True)


def test_every_node_of_an_all_action_is_undone() -> None:
    stage = chain()
    run = stage.submit(
        plan(
            action("a", target_mode="all", **undo("u", was="{{result.a}}")),
            action("x", "a", on_error="rollback"),
            action("u"),
        )
    )
    stage.end(run, "a@pi-2", result=2)
    stage.end(run, "a@pi-1", result=1)
    stage.end(run, "x", "failed")
    assert stage.sent(run, "a~pi-1").params == {"was": {"pi-1": 1, "pi-2": 2}}
    stage.end(run, "a~pi-1")
    assert stage.running(run) == ["a~pi-2"]
    assert stage.states(run)["a"] == "completed"
    stage.end(run, "a~pi-2")
    assert stage.states(run)["a"] == "rolled_back"


def test_a_rollback_goes_on_after_a_restart() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("a", **undo("u")),
            action("b", "a", **undo("u")),
            action("x", "b", on_error="rollback"),
            action("u"),
        )
    )
    end_chain(stage, run, "a", "b")
    stage.end(run, "x", "failed")
    stage.end(run, "b~pi")
    again = Stage(history=stage.changes)
    again.now_ms = stage.now_ms
    again.birth("pi")
    found = again.state.runs[run.run]
    assert again.running(found) == ["a~pi"]
    again.end(found, "a~pi")
    assert (found.state, again.states(found)["a"]) == ("failed", "rolled_back")


def test_cancel_stops_a_rollback_and_says_that_it_is_pending() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("a", **undo("u")),
            action("b", "a", **undo("u")),
            action("x", "b", on_error="rollback"),
            action("u"),
        )
    )
    end_chain(stage, run, "a", "b")
    stage.end(run, "x", "failed")
    stage.post(e.CancelAsked, run=run.run, by="eve")
    stage.end(run, "b~pi", "cancelled", code="action.cancelled")
    assert (run.state, run.compensation_pending) == ("cancelled", True)
    assert stage.units(run)["a~pi"] == "cancelled"


def test_a_compensation_with_a_gate_asks_and_a_no_leaves_it_pending() -> None:
    stage = Stage("pi")
    what = action("x", on_error="rollback", **undo("u"))
    run = stage.submit(plan(what, action("u", requires_approval=True)))
    stage.end(run, "x", "failed")
    assert stage.units(run)["x~pi"] == "awaiting_approval"
    stage.answer("deny")
    assert (run.state, run.compensation_pending) == ("failed", True)


def test_who_is_done_again_waits_for_the_gate_of_the_next_one() -> None:
    stage = chain()
    run = stage.submit(
        plan(
            action("a", target_node="pi-1", **undo("u")),
            action("b", "a", target_node="pi-2", **undo("v")),
            action("x", "b", target_node="pi-1", on_error="rollback"),
            action("u", requires_approval=True),
            action("v"),
        )
    )
    end_chain(stage, run, "a", "b")
    stage.end(run, "x", "failed")
    stage.end(run, "b~pi-2", "failed", code="driver.failed")
    of_b, gate_of_a = stage.state.approvals
    assert [run.questions[key] for key in ("b~pi-2", "a~pi-1")] == [of_b, gate_of_a]
    stage.post(e.AnswerGiven, approval=of_b, option="rerun", by="eve")
    assert stage.running(run) == []
    stage.post(e.AnswerGiven, approval=gate_of_a, option="approve", by="eve")
    for key in ("b~pi-2", "a~pi-1"):
        assert stage.running(run) == [key]
        stage.end(run, key)
    assert (run.state, run.compensation_pending) == ("failed", False)


def test_a_lost_node_s_unfinished_undoing_asks_and_its_late_success_counts() -> None:
    stage = Stage("pi-1", "pi-2")
    what = action("x", target_node="pi-2", on_error="rollback", **undo("u"))
    run = stage.submit(plan(what, action("u")))
    stage.end(run, "x", "failed")
    stage.accept(run, "x~pi-2")
    dispatch = stage.dispatch_of(run, "x~pi-2")
    stage.live("pi-1", for_ms=12_000)
    assert stage.units(run)["x~pi-2"] == "awaiting_approval"
    stage.report(dispatch)
    assert stage.states(run)["x"] == "rolled_back"
    assert (run.state, stage.state.approvals) == ("failed", {})


def test_what_only_undoes_is_skipped_when_nothing_had_to_be_undone() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", on_error="rollback", **undo("u")), action("u")))
    stage.end(run, "a")
    assert (run.state, stage.states(run)) == ("completed", {"a": "completed", "u": "skipped"})
