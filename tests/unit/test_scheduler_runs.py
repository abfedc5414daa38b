"""Runs from plan to end: order, failures, cancel, time to live."""

import pytest

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import ActionEnded, GroupFrozen, RunEnded
from scheduler_stage import Stage, action, plan


def test_a_chain_goes_one_after_the_other_and_the_run_completes() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b", "a"), action("c", "b")))
    assert stage.states(run) == {"a": "running", "b": "pending", "c": "pending"}
    stage.end(run, "a")
    assert stage.states(run) == {"a": "completed", "b": "running", "c": "pending"}
    stage.end(run, "b")
    stage.end(run, "c")
    assert run.state == "completed"


def test_independent_actions_spread_over_the_nodes() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(*(action(f"a{i}") for i in range(10))))
    assert len(stage.state.nodes["pi-1"].live) == len(stage.state.nodes["pi-2"].live) == 5
    assert all(state == "running" for state in stage.states(run).values())


def test_an_action_waits_for_all_of_its_dependencies() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b"), action("c", "a", "b")))
    stage.end(run, "b")
    assert stage.states(run)["c"] == "pending"
    stage.end(run, "a")
    assert stage.states(run)["c"] == "running"


def test_sequential_runs_one_action_at_a_time_in_stable_order() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(
        plan(action("b", "z"), action("a"), action("z"), execution_mode="sequential")
    )
    order = []
    while not run.ended:
        (running,) = [name for name, state in stage.states(run).items() if state == "running"]
        order.append(running)
        stage.end(run, running)
    assert order == ["a", "z", "b"]


def test_abort_skips_what_has_not_started_and_lets_the_rest_end() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b"), action("c", "b")))
    stage.end(run, "a", "failed")
    assert stage.states(run) == {"a": "failed", "b": "running", "c": "skipped"}
    assert run.state == "running"
    stage.end(run, "b")
    assert run.state == "failed"
    (ended,) = [change for change in stage.changes if isinstance(change, RunEnded)]
    assert ended.fault is not None
    assert ended.fault.code == "driver.failed"


def test_continue_runs_the_dependents_of_a_failed_action() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", on_error="continue"), action("b", "a")))
    stage.end(run, "a", "failed")
    assert stage.states(run)["b"] == "running"
    stage.end(run, "b")
    assert run.state == "completed"


def test_skip_drops_the_descendants_and_keeps_other_branches() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("a", on_error="skip"),
            action("b", "a"),
            action("c", "b"),
            action("other"),
        )
    )
    stage.end(run, "a", "timed_out", code="driver.timeout")
    stage.end(run, "other")
    assert stage.states(run) == {
        "a": "skipped",
        "b": "skipped",
        "c": "skipped",
        "other": "completed",
    }
    assert run.state == "completed"


def test_sequential_goes_on_after_a_skipped_branch() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("a", on_error="skip"),
            action("b", "a"),
            action("c"),
            execution_mode="sequential",
        )
    )
    stage.end(run, "a", "failed")
    assert stage.states(run) == {"a": "skipped", "b": "skipped", "c": "running"}


def test_templates_take_results_of_ancestors_and_the_node() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("read"),
            action(
                "use",
                "read",
                params={
                    "v": "{{result.read.value}}",
                    "t": "on {{node.id}} in {{env.IML_SITE}}",
                },
            ),
        )
    )
    stage.end(run, "read", result={"value": 21.5})
    assert stage.sent(run, "use").params == {"v": 21.5, "t": "on pi in garden"}


def test_a_template_without_result_fails_the_action_by_its_code() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(action("read"), action("use", "read", params={"v": "{{result.read.nothing}}"}))
    )
    stage.end(run, "read", result={"value": 1})
    assert run.state == "failed"
    fault = run.actions["use"].fault
    assert fault is not None
    assert fault.code == "template.no_result"


def test_the_error_of_a_continued_action_can_be_read() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("a", on_error="continue"),
            action("b", "a", params={"why": "{{result.a._error.code}}"}),
        )
    )
    stage.end(run, "a", "failed", code="driver.not_found")
    assert stage.sent(run, "b").params == {"why": "driver.not_found"}


def test_cancel_ends_what_waits_and_asks_nodes_to_stop_the_rest() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b", "a")))
    commands = stage.post(e.CancelAsked, run=run.run, by="eve")
    assert k.SendCancel("pi", (run.actions["a"].dispatch,)) in commands
    assert stage.states(run) == {"a": "running", "b": "cancelled"}
    stage.end(run, "a", "cancelled", code="action.cancelled")
    assert run.state == "cancelled"


def test_a_cancel_that_no_node_confirms_ends_unconfirmed() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", do="send")))
    stage.post(e.CancelAsked, run=run.run, by="eve")
    stage.live("pi", for_ms=30_000)
    assert run.state == "cancelled"
    (ended,) = [change for change in stage.changes if isinstance(change, RunEnded)]
    assert ended.unconfirmed


def test_a_result_after_an_unconfirmed_cancel_is_kept_as_evidence() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", do="send")))
    dispatch = stage.dispatch_of(run, "a")
    stage.post(e.CancelAsked, run=run.run, by="eve")
    stage.live("pi", for_ms=30_000)
    commands = stage.report(dispatch)
    assert commands == [k.SendAck("pi", None, (dispatch.dispatch,))]
    assert type(stage.changes[-1]).__name__ == "ResultKept"
    assert run.actions["a"].state == "cancelled"
    before = len(stage.changes)
    assert stage.report(dispatch) == commands
    assert len(stage.changes) == before


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_an_ended_run_cannot_be_cancelled(state: str) -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a")))
    stage.end(run, "a", state)
    (refusal,) = stage.post(e.CancelAsked, run=run.run, by="eve")
    assert isinstance(refusal, k.Refuse)
    assert refusal.fault.code == "run.ended"


def test_a_group_is_frozen_when_its_first_action_becomes_ready() -> None:
    stage = Stage("pi-1", "pi-2")
    stage.post(e.GroupSet, group="soil", nodes=("pi-1",))
    run = stage.submit(
        plan(action("a", target_group="soil"), action("b", "a", target_group="soil"))
    )
    stage.post(e.GroupSet, group="soil", nodes=("pi-2",))
    stage.end(run, "a")
    assert stage.dispatch_of(run, "b").node == "pi-1"
    assert len([change for change in stage.changes if isinstance(change, GroupFrozen)]) == 1


def test_an_empty_group_fails_the_action() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", target_group="nobody")))
    assert run.state == "failed"
    fault = run.actions["a"].fault
    assert fault is not None
    assert fault.code == "place.empty_group"


def test_targets_node_alias_and_selector_choose_the_node() -> None:
    stage = Stage("pi-1")
    stage.birth("desk", alias="big", os="linux", cpu=8)
    run = stage.submit(
        plan(
            action("by-id", target_node="pi-1"),
            action("by-alias", target_node="big"),
            action("by-fact", target_selector="cpu >= 4"),
        )
    )
    nodes = {name: stage.dispatch_of(run, name).node for name in run.actions}
    assert nodes == {"by-id": "pi-1", "by-alias": "desk", "by-fact": "desk"}


def test_labels_set_later_let_a_waiting_action_go() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", target_selector="room == kitchen")))
    assert stage.states(run) == {"a": "waiting"}
    stage.post(e.LabelsSet, node="pi", labels={"room": "kitchen"})
    assert stage.states(run) == {"a": "running"}


def test_a_run_that_waits_too_long_fails_at_its_ttl() -> None:
    stage = Stage()
    run = stage.submit(plan(action("a"), ttl_seconds=10))
    assert stage.states(run) == {"a": "waiting"}
    stage.pass_time(10_000)
    assert run.state == "failed"
    (ended,) = [change for change in stage.changes if isinstance(change, RunEnded)]
    assert ended.fault is not None
    assert ended.fault.code == "run.expired"


def test_a_node_that_refuses_is_passed_over_and_the_last_code_counts() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a")))
    for code in ("policy.path", "policy.command"):
        dispatch = stage.dispatch_of(run, "a")
        refusal = e.Fault(code, "not here")
        stage.post(e.RejectArrived, node=dispatch.node, refusals=((dispatch.dispatch, refusal),))
    assert {d.node for d in stage.state.dispatches.values()} == {"pi-1", "pi-2"}
    fault = run.actions["a"].fault
    assert fault is not None
    assert (run.state, fault.code) == ("failed", "policy.command")


def test_not_started_is_placed_again_whatever_its_effect() -> None:
    stage = Stage("pi-1")
    run = stage.submit(plan(action("a", do="send")))
    stage.end(run, "a", "failed", code="action.not_started")
    assert stage.dispatch_of(run, "a").dispatch.endswith("/2")
    stage.end(run, "a")
    assert run.state == "completed"


def test_a_result_sent_twice_counts_once_and_is_settled_twice() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b", "a")))
    dispatch = stage.dispatch_of(run, "a")
    stage.report(dispatch)
    before = len(stage.changes)
    assert stage.report(dispatch) == [k.SendAck("pi", None, (dispatch.dispatch,))]
    assert len(stage.changes) == before


def test_a_result_with_another_hash_is_refused() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a")))
    dispatch = stage.dispatch_of(run, "a")
    forged = e.Result(dispatch.dispatch, b"0" * 32, "completed", 1)
    (report,) = stage.post(e.ResultsArrived, node="pi", results=(forged,))
    assert isinstance(report, k.ReportRefusal)
    assert report.fault.code == "dispatch.hash"
    assert stage.states(run) == {"a": "running"}


def test_a_node_cannot_report_for_another() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", target_node="pi-1")))
    dispatch = stage.dispatch_of(run, "a")
    lie = e.Result(dispatch.dispatch, dispatch.hash, "completed", 1)
    (report,) = stage.post(e.ResultsArrived, node="pi-2", results=(lie,))
    assert isinstance(report, k.ReportRefusal)
    assert stage.states(run) == {"a": "running"}


def test_no_more_than_the_window_is_given_to_one_node() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(*(action(f"a{i}") for i in range(300))))
    assert len(stage.state.nodes["pi"].live) == 256
    for i in range(256):
        stage.end(run, f"a{i}")
    for i in range(256, 300):
        stage.end(run, f"a{i}")
    assert run.state == "completed"


def test_nothing_is_dispatched_while_the_store_is_behind() -> None:
    stage = Stage("pi")
    stage.post(e.OutflowMeasured, behind=True)
    run = stage.submit(plan(action("a")))
    assert stage.states(run) == {"a": "pending"}
    stage.post(e.OutflowMeasured, behind=False)
    assert stage.states(run) == {"a": "running"}


def test_too_many_runs_are_refused() -> None:
    stage = Stage()
    stage.scheduler.state.active = 1_000
    event = e.PlanSubmitted(stage.now_ms, "q", 1, plan(action("a")), "d", "eve")
    changes, (refusal,) = stage.scheduler.handle(event)
    assert changes == []
    assert isinstance(refusal, k.Refuse)
    assert refusal.fault.code == "run.too_many"


def test_claims_and_lease_travel_with_the_dispatch() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(action("a", do="push", params={"pin": 17}, lease_seconds=20), action("b"))
    )
    sent = stage.sent(run, "a")
    assert (sent.claims, sent.lease_ms, sent.when_cut_off) == (("pin:17",), 20_000, "finish")
    assert stage.sent(run, "b").when_cut_off == "stop"


def test_a_lease_is_never_shorter_than_two_heartbeats() -> None:
    # a node would end the work before its next beat could renew the lease, again and again
    stage = Stage("pi")
    run = stage.submit(plan(action("a", lease_seconds=1)))
    assert stage.sent(run, "a").lease_ms == 2 * stage.state.nodes["pi"].heartbeat_ms


def test_an_action_ended_by_nobody_else_has_its_cause() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", target_group="nobody")))
    (ended,) = [change for change in stage.changes if isinstance(change, ActionEnded)]
    created = next(change for change in stage.changes if change.__class__.__name__ == "RunCreated")
    assert ended.cause == created.cause
    assert run.ended
