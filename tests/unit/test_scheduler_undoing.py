"""What is undone after losses, refusals and changes of the driver; what cannot be is said."""

from dataclasses import replace
from typing import Any

import pytest

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.events import Retried
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.manifest import Manifest
from scheduler_stage import TOY, Stage, action, plan


def reject(stage: Stage, run: Any, name: str) -> None:
    dispatch = stage.dispatch_of(run, name)
    refusals = ((dispatch.dispatch, Fault("policy.path", "no")),)
    stage.post(e.RejectArrived, node=dispatch.node, refusals=refusals)


def rolling_back(**more: Any) -> tuple[Stage, Any]:
    """A run whose only action failed and is now being undone."""
    stage = Stage("pi")
    x = action("x", on_error="rollback", rollback={"action": "u"})
    run = stage.submit(plan(x, action("u", **more)))
    stage.end(run, "x", "failed")
    return stage, run


@pytest.mark.parametrize("way", ["failed", "timed_out", "rejected", "offline"])
def test_a_cancelled_rollback_asks_nobody_and_is_confirmed(way: str) -> None:
    stage, run = rolling_back()
    dispatch = stage.dispatch_of(run, "x~pi")
    stage.post(e.CancelAsked, run=run.run, by="eve")
    if way == "rejected":
        reject(stage, run, "x~pi")
    elif way == "offline":
        stage.post(e.NodeLeft, node="pi", boot=1, session=1)
    else:
        stage.report(dispatch, way)
    assert stage.state.approvals == {}
    assert run.state == "cancelled"


def test_a_compensation_whose_gate_is_skipped_has_failed() -> None:
    approval = {"timeout_seconds": 10, "timeout_behavior": "skip"}
    stage, run = rolling_back(requires_approval=True, approval=approval)
    stage.live("pi", for_ms=12_000)
    assert (run.state, stage.units(run)["x~pi"]) == ("failed", "failed")


def test_what_was_lost_after_it_had_been_accepted_is_undone() -> None:
    stage = Stage("pi-1", "pi-2")
    x = action("x", do="write", on_error="rollback", rollback={"action": "u"})
    run = stage.submit(plan(x, action("u")))
    stage.accept(run, "x")
    stage.live("pi-2", for_ms=12_000)
    assert stage.dispatch_of(run, "x").node == "pi-2"
    reject(stage, run, "x")
    assert [key for key in run.units if "~" in key] == ["x~pi-1"]


def test_a_skipped_member_that_had_worked_is_undone_and_stays_skipped() -> None:
    stage = Stage("pi-1", "pi-2")
    x = action(
        "x",
        do="write",
        target_mode="rolling",
        rolling={"batch_size": 2},
        on_node_loss="wait",
        on_error="rollback",
        rollback={"action": "u"},
    )
    run = stage.submit(plan(x, action("u")))
    stage.post(e.NodeGone, node="pi-1", boot=1, session=1)
    stage.end(run, "x@pi-1", "failed", code="node.interrupted")
    stage.end(run, "x@pi-2", "failed")
    assert stage.units(run)["x@pi-1"] == "skipped"
    stage.beat("pi-1", "pi-1")
    while running := stage.running(run):
        stage.end(run, running[0])
    assert run.state == "failed"
    assert [stage.units(run)[key] for key in ("x@pi-1", "x~pi-1", "x~pi-2")] == [
        "skipped",
        "completed",
        "completed",
    ]


def test_what_cannot_be_undone_because_the_driver_is_gone_is_pending() -> None:
    stage = Stage("pi")
    turn = action("a", do="turn", params={"pin": 4, "to": 1})
    run = stage.submit(plan(turn, action("x", "a", on_error="rollback")))
    stage.end(run, "a", result={"before": 0})
    module = TOY.modules["toy"]
    rest = {name: one for name, one in module.actions.items() if name != "turn"}
    stage.birth("pi", session=2, manifest=Manifest({"toy": replace(module, actions=rest)}))
    stage.end(run, "x", "failed")
    assert (run.state, run.compensation_pending) == ("failed", True)


def test_an_undo_of_a_kept_action_is_not_filled_with_the_memory_of_now() -> None:
    stage = Stage("pi")
    stage.post(e.MemorySet, session="default", key="k", value=4, by="eve")
    turn = action(
        "a",
        do="turn",
        params={"pin": "{{memory.k}}", "to": 1},
        memory={"read_keys": ["k"]},
    )
    what = plan(turn, action("x", "a", on_error="rollback"))
    stage.post(e.MemorySet, session="default", key="k", value=9, by="eve")
    kept = {"a": [["pi"], {"before": 0}]}
    run = stage.submit(what, retried=Retried("r-1-aaaa", kept, {}, ()))
    stage.end(run, "x", "failed")
    assert (run.state, run.compensation_pending) == ("failed", True)
    fault = run.units["a~pi"].fault
    assert fault is not None
    assert fault.code == "template.no_result"


def test_a_kept_action_whose_dependency_failed_and_was_continued_lets_the_next_one_run() -> None:
    stage = Stage("pi")
    what = plan(action("d", on_error="continue"), action("a", "d"), action("x", "a"))
    run = stage.submit(what, retried=Retried("r-1-aaaa", {"a": [["pi"], 1]}, {}, ()))
    assert "x" in stage.running(run)


def test_a_kept_all_action_of_which_a_part_was_undone_gives_what_is_left() -> None:
    stage = Stage("pi-1", "pi-2")
    what = plan(action("a", target_mode="all"), action("x", "a", params={"v": "{{result.a}}"}))
    kept = {"a": [["pi-1", "pi-2"], {"pi-2": 1}]}
    run = stage.submit(what, retried=Retried("r-1-aaaa", kept, {}, ()))
    assert stage.states(run)["x"] == "running"
