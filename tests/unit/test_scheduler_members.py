"""target_mode all and rolling, quorum, fallback_nodes, barrier."""

from typing import Any

import pytest

from imlmesh_orchestrator.core import events as e
from imlmesh_protocol.errors import Fault
from scheduler_stage import Stage, action, plan

NODES = ("pi-1", "pi-2", "pi-3")
ALL = {"target_group": "roof", "target_mode": "all"}


def roof(*nodes: str) -> Stage:
    stage = Stage(*(nodes or NODES))
    stage.set_group("roof", *(nodes or NODES))
    return stage


def test_all_runs_on_every_node_of_the_group_at_once_and_its_result_is_by_node() -> None:
    stage = roof()
    params = {"one": "{{result.a.pi-2.t}}", "each": "{{result.a.*.t}}", "whole": "{{result.a}}"}
    run = stage.submit(plan(action("a", **ALL), action("b", "a", params=params)))
    assert stage.running(run) == ["a@pi-1", "a@pi-2", "a@pi-3"]
    for number, node in enumerate(NODES):
        stage.end(run, f"a@{node}", result={"t": number})
    assert stage.states(run)["a"] == "completed"
    whole = {node: {"t": number} for number, node in enumerate(NODES)}
    assert stage.sent(run, "b").params == {"one": 1, "each": [0, 1, 2], "whole": whole}


def test_all_fails_with_partial_when_one_member_fails() -> None:
    stage = roof()
    run = stage.submit(plan(action("a", **ALL)))
    stage.end(run, "a@pi-2", "failed")
    assert stage.states(run)["a"] == "running"
    stage.end(run, "a@pi-1")
    stage.end(run, "a@pi-3")
    assert run.state == "failed"
    assert run.actions["a"].fault.code == "action.partial"
    assert run.actions["a"].fault.details == {"pi-2": "driver.failed"}


def test_a_quorum_is_enough_and_an_unreachable_node_counts_as_failed() -> None:
    stage = roof()
    stage.live("pi-1", "pi-2", for_ms=10_000)
    assert stage.liveness("pi-3") == "lost"
    run = stage.submit(plan(action("a", quorum=2, **ALL)))
    assert stage.units(run)["a@pi-3"] == "failed"
    stage.end(run, "a@pi-1")
    stage.end(run, "a@pi-2")
    assert run.state == "completed"


def test_a_quorum_above_the_group_sends_nothing() -> None:
    stage = roof()
    run = stage.submit(plan(action("a", quorum=4, **ALL)))
    assert (run.state, run.actions["a"].fault.code) == ("failed", "action.partial")
    assert run.dispatches == []


def test_a_quorum_does_not_wait_for_a_person_s_word_on_a_lost_node() -> None:
    stage = roof()
    run = stage.submit(plan(action("a", do="send", quorum=2, **ALL)))
    stage.accept(run, "a@pi-3")
    stage.live("pi-1", "pi-2", for_ms=12_000)
    assert stage.units(run)["a@pi-3"] == "unknown"
    stage.end(run, "a@pi-1")
    stage.end(run, "a@pi-2")
    assert run.state == "completed"
    assert stage.state.approvals == {}


def test_without_a_quorum_a_lost_once_member_asks() -> None:
    stage = roof()
    run = stage.submit(plan(action("a", do="send", **ALL)))
    stage.accept(run, "a@pi-3")
    stage.live("pi-1", "pi-2", for_ms=12_000)
    stage.end(run, "a@pi-1")
    stage.end(run, "a@pi-2")
    assert stage.states(run)["a"] == "running"
    stage.answer("done")
    assert run.state == "completed"


def test_a_member_never_moves() -> None:
    stage = roof()
    run = stage.submit(plan(action("a", on_error="continue", **ALL), action("b", "a")))
    stage.accept(run, "a@pi-3")
    stage.live("pi-1", "pi-2", for_ms=12_000)
    stage.end(run, "a@pi-1")
    stage.end(run, "a@pi-2")
    assert stage.units(run)["a@pi-3"] == "failed"
    assert run.actions["a"].fault.details == {"pi-3": "node.lost"}
    assert stage.states(run)["b"] == "running"


def test_members_retry_each_for_themselves() -> None:
    stage = roof()
    retry = {"max_attempts": 2, "delay_seconds": 1.0, "retry_on": []}
    run = stage.submit(plan(action("a", on_error="retry", retry=retry, **ALL)))
    stage.end(run, "a@pi-1", "failed")
    stage.end(run, "a@pi-2")
    stage.live(*NODES, for_ms=2_000)
    stage.end(run, "a@pi-1")
    stage.end(run, "a@pi-3")
    assert run.state == "completed"


def test_rolling_goes_batch_by_batch_and_stops_at_too_many_failures() -> None:
    nodes = tuple(f"pi-{n}" for n in range(6))
    stage = roof(*nodes)
    rolling = {"batch_size": 2, "max_failures": 1}
    target = {"target_group": "roof", "target_mode": "rolling", "rolling": rolling}
    run = stage.submit(plan(action("a", **target)))
    assert stage.running(run) == ["a@pi-0", "a@pi-1"]
    stage.end(run, "a@pi-0", "failed")
    assert stage.running(run) == ["a@pi-1"]
    stage.end(run, "a@pi-1")
    assert stage.running(run) == ["a@pi-2", "a@pi-3"]
    stage.end(run, "a@pi-2", "failed")
    stage.end(run, "a@pi-3")
    assert [stage.units(run)[f"a@pi-{n}"] for n in (4, 5)] == ["skipped", "skipped"]
    left_out = run.units["a@pi-4"].fault
    assert (left_out.code, left_out.message) == (
        "action.dependency",
        "its action ended before its turn came",
    )
    assert (run.state, run.actions["a"].fault.code) == ("failed", "action.partial")


def test_rolling_completes_with_as_many_failures_as_may_be() -> None:
    stage = roof()
    target = {"target_group": "roof", "target_mode": "rolling", "rolling": {"max_failures": 1}}
    run = stage.submit(plan(action("a", **target)))
    for node, outcome in zip(NODES, ("failed", "completed", "completed"), strict=True):
        stage.end(run, f"a@{node}", outcome)
    assert run.state == "completed"


def test_a_rolling_batch_goes_on_after_a_restart() -> None:
    stage = roof()
    run = stage.submit(plan(action("a", target_group="roof", target_mode="rolling")))
    stage.end(run, "a@pi-1")
    again = Stage(history=stage.changes)
    again.now_ms = stage.now_ms
    for node in NODES:
        again.birth(node)
    found = again.state.runs[run.run]
    assert again.running(found) == ["a@pi-2"]
    again.end(found, "a@pi-2")
    again.end(found, "a@pi-3")
    assert found.state == "completed"


def test_a_group_is_frozen_when_its_first_action_is_ready() -> None:
    stage = roof()
    run = stage.submit(plan(action("a", **ALL), action("b", "a", **ALL)))
    stage.set_group("roof", "pi-1")
    for node in NODES:
        stage.end(run, f"a@{node}")
    assert stage.running(run) == ["b@pi-1", "b@pi-2", "b@pi-3"]


@pytest.mark.parametrize(
    ("target", "nodes"),
    [
        ({"target_selector": 'site == "roof"'}, ["pi-1", "pi-3"]),
        ({"target_node": "pi-2"}, ["pi-2"]),
        ({}, ["pi-1", "pi-2", "pi-3"]),
    ],
)
def test_all_stands_for_what_its_target_names(target: dict[str, Any], nodes: list[str]) -> None:
    stage = Stage(*NODES)
    for node in ("pi-1", "pi-3"):
        stage.post(e.LabelsSet, node=node, labels={"site": "roof"})
    run = stage.submit(plan(action("a", target_mode="all", **target)))
    assert stage.running(run) == [f"a@{node}" for node in nodes]


def test_a_sequential_run_does_the_members_of_one_action_side_by_side() -> None:
    stage = roof()
    run = stage.submit(plan(action("a", **ALL), action("b"), execution_mode="sequential"))
    assert len(stage.running(run)) == 3
    for node in NODES:
        stage.end(run, f"a@{node}")
    assert stage.running(run) == ["b"]


def test_cancel_ends_members_with_their_action() -> None:
    stage = roof()
    run = stage.submit(plan(action("a", target_group="roof", target_mode="rolling")))
    stage.accept(run, "a@pi-1")
    stage.post(e.CancelAsked, run=run.run, by="eve")
    stage.end(run, "a@pi-1", "cancelled", code="action.cancelled")
    assert run.state == "cancelled"
    assert set(stage.units(run).values()) == {"cancelled"}


def test_fallback_nodes_are_tried_in_order_when_the_target_is_lost() -> None:
    stage = Stage(*NODES)
    run = stage.submit(plan(action("a", target_node="pi-1", fallback_nodes=["pi-3", "pi-2"])))
    assert stage.running(run) == ["a"]
    assert stage.dispatch_of(run, "a").node == "pi-1"
    stage.live("pi-2", "pi-3", for_ms=12_000)
    assert stage.dispatch_of(run, "a").node == "pi-3"


def test_a_suspect_target_is_waited_for_and_not_passed_over() -> None:
    stage = Stage(*NODES)
    stage.post(e.NodeGone, node="pi-1", boot=1, session=1)
    run = stage.submit(plan(action("a", target_node="pi-1", fallback_nodes=["pi-2"])))
    assert stage.states(run)["a"] == "waiting"
    stage.beat("pi-1", "pi-1")
    assert stage.dispatch_of(run, "a").node == "pi-1"


def test_a_refusing_target_is_passed_over() -> None:
    stage = Stage(*NODES)
    run = stage.submit(plan(action("a", target_node="pi-1", fallback_nodes=["pi-2"])))
    dispatch = stage.dispatch_of(run, "a")
    refusals = ((dispatch.dispatch, Fault("policy.path", "no")),)
    stage.post(e.RejectArrived, node="pi-1", refusals=refusals)
    assert stage.dispatch_of(run, "a").node == "pi-2"


def test_a_barrier_holds_a_whole_wave_until_the_one_before_has_ended() -> None:
    stage = Stage("pi")
    actions = [action("a"), action("b", on_error="continue"), action("c", "a"), action("d", "c")]
    run = stage.submit(plan(*actions, barrier=True))
    stage.end(run, "a")
    assert stage.running(run) == ["b"]
    stage.end(run, "b", "failed")
    assert stage.running(run) == ["c"]
    stage.end(run, "c")
    stage.end(run, "d")
    assert run.state == "completed"


def test_a_barrier_passes_over_a_wave_that_was_skipped() -> None:
    stage = Stage("pi")
    actions = [
        action("a", on_error="skip"),
        action("b", "a"),
        action("c"),
        action("d", "c"),
        action("e", "d"),
    ]
    run = stage.submit(plan(*actions, barrier=True))
    stage.end(run, "c")
    assert stage.running(run) == ["a"]
    stage.end(run, "a", "failed")
    stage.end(run, "d")
    stage.end(run, "e")
    assert stage.states(run)["b"] == "skipped"
    assert run.state == "completed"


def test_a_module_version_that_does_not_satisfy_keeps_a_node_out() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), module_requirements={"toy": ">=2"}))
    (told,) = [c for c in stage.changes if type(c).__name__ == "ActionWaiting"]
    assert told.reasons == {"pi": "module.version"}
    assert stage.states(run)["a"] == "waiting"
    fits = stage.submit(plan(action("a"), module_requirements={"toy": ">=1,<2"}))
    assert stage.states(fits)["a"] == "running"
