"""Long chains and many things at once: neither the stack nor the time of a turn runs out."""

from typing import Any

from imlmesh_orchestrator.core import events as e
from imlmesh_protocol import limits
from imlmesh_protocol.tick import Tick
from scheduler_stage import Stage, action, plan

READS: dict[str, Any] = {"params": {"v": "{{memory.k}}"}, "memory": {"read_keys": ["k"]}}


def test_200_all_actions_of_a_lost_node_fail_one_behind_the_other() -> None:
    stage = Stage("pi-1", "pi-2")
    stage.live("pi-1", for_ms=12_000)
    more: dict[str, Any] = {"target_node": "pi-2", "target_mode": "all", "on_error": "continue"}
    actions = [action(f"a{n}", **more) for n in range(200)]
    run = stage.submit(plan(*actions, execution_mode="sequential"))
    assert run.state == "completed"
    assert {unit.fault.code for unit in run.units.values() if unit.node and unit.fault} == {
        "node.lost"
    }


def test_a_chain_of_300_gated_actions_that_lack_a_value_ends_in_one_turn() -> None:
    stage = Stage("pi")
    behind = [[], *([f"a{n}"] for n in range(299))]
    more: dict[str, Any] = {"requires_approval": True, "on_error": "continue", **READS}
    run = stage.submit(plan(*(action(f"a{n}", *behind[n], **more) for n in range(300))))
    assert run.state == "completed"
    faults = {unit.fault.code for unit in run.units.values() if unit.fault}
    assert (faults, stage.state.approvals) == ({"memory.not_found"}, {})


def test_300_compensations_that_cannot_be_filled_are_pending() -> None:
    stage = Stage("pi")
    actions = [action(f"a{n}", rollback={"action": "u"}) for n in range(300)]
    x = action("x", *(f"a{n}" for n in range(300)), on_error="rollback")
    run = stage.submit(plan(*actions, x, action("u", requires_approval=True, **READS)))
    for n in range(300):
        stage.end(run, f"a{n}", result=1)
    stage.end(run, "x", "failed")
    assert (run.state, run.compensation_pending) == ("failed", True)


def test_gates_of_many_runs_expire_together() -> None:
    stage = Stage()
    gated: dict[str, Any] = {"requires_approval": True, "on_error": "continue"}
    what = plan(*(action(f"a{n}", **gated) for n in range(200)))
    runs = [stage.submit(what) for _ in range(5)]
    stage.now_ms += limits.APPROVAL_MS
    stage.post(Tick)
    assert {run.state for run in runs} == {"completed"}
    assert stage.state.approvals == {}


def test_questions_about_many_compensations_expire_together() -> None:
    nodes = tuple(f"n-{n}" for n in range(100))
    stage = Stage(*nodes)
    done = action("a", target_mode="all", rollback={"action": "u"})
    gate = action("x", "a", requires_approval=True, on_error="rollback")
    run = stage.submit(plan(done, gate, action("u")))
    for node in nodes:
        stage.end(run, f"a@{node}")
    for node in nodes:
        stage.post(e.NodeLeft, node=node, boot=1, session=1)
    stage.answer("deny")
    assert len(stage.state.approvals) == 100
    stage.now_ms += limits.APPROVAL_MS
    stage.post(Tick)
    assert (run.state, run.compensation_pending) == ("failed", True)
