"""What becomes of an action whose driver's process was killed for another call in it."""

import pytest

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.state import RunRecord
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CRASHED, KILLED_ALONG
from scheduler_stage import Stage, action, plan

MANY = 3 * limits.POISON_NODES


def killed_along(stage: Stage, run: RunRecord, name: str = "a", outcome: str = "failed") -> str:
    """Its neighbour had to end where it runs; returns that node."""
    node = stage.dispatch_of(run, name).node
    stage.accept(run, name)
    stage.end(run, name, outcome, code=KILLED_ALONG)
    return node


@pytest.mark.parametrize("do", ["look", "write"])
@pytest.mark.parametrize("on_node_loss", ["reroute", "fail", "ask"])
def test_what_may_be_repeated_runs_again_and_is_never_poison(do: str, on_node_loss: str) -> None:
    """Its node is there, so it is no loss of one."""
    stage = Stage("n0", "n1", "n2", "n3")
    run = stage.submit(plan(action("a", do=do, on_node_loss=on_node_loss)))
    nodes = [killed_along(stage, run) for _ in range(MANY)]
    assert nodes[0] != nodes[1]
    stage.end(run, "a")
    assert run.state == "completed"
    assert stage.record(run, "a").crashed_on == ()
    assert not stage.state.admissions
    assert not stage.state.approvals


def test_where_there_is_no_other_node_it_runs_there_again() -> None:
    stage = Stage("n0", "n1")
    run = stage.submit(plan(action("a", target_node="n0")))
    assert [killed_along(stage, run) for _ in range(MANY)] == ["n0"] * MANY
    stage.end(run, "a")
    assert run.state == "completed"


def test_it_uses_up_no_retry_and_is_no_crash_among_crashes() -> None:
    retry = {"max_attempts": 2, "delay_seconds": 1, "retry_on": []}
    stage = Stage("n0", "n1")
    run = stage.submit(plan(action("a", on_error="retry", retry=retry, target_node="n0")))
    for _ in range(MANY):
        killed_along(stage, run)
    assert stage.record(run, "a").failures == 0
    stage.accept(run, "a")
    stage.end(run, "a", "failed", code=CRASHED)
    assert (stage.record(run, "a").failures, stage.states(run)) == (1, {"a": "waiting"})
    stage.live("n0", "n1", for_ms=2_000)
    killed_along(stage, run)
    stage.end(run, "a", "failed")
    assert run.state == "failed"


def test_a_member_does_its_part_again() -> None:
    stage = Stage("n0", "n1")
    stage.set_group("both", "n0", "n1")
    run = stage.submit(plan(action("a", target_group="both", target_mode="all")))
    assert killed_along(stage, run, "a@n0") == "n0"
    for name in ("a@n0", "a@n1"):
        stage.end(run, name)
    assert run.state == "completed"


@pytest.mark.parametrize("do", ["send", "push"])
def test_what_may_not_be_repeated_is_a_question(do: str) -> None:
    retry = {"max_attempts": 3, "delay_seconds": 1, "retry_on": []}
    stage = Stage("n0", "n1")
    acting = action("a", do=do, params={"pin": 1}, on_error="retry", retry=retry)
    run = stage.submit(plan(acting))
    killed_along(stage, run, outcome="unknown")
    assert stage.states(run) == {"a": "unknown"}
    (question,) = stage.state.approvals.values()
    assert (question.kind, question.options) == ("lost_effect", ("rerun", "done", "fail"))


def test_a_run_that_is_cancelled_does_not_begin_it_again() -> None:
    stage = Stage("n0")
    run = stage.submit(plan(action("a")))
    stage.accept(run, "a")
    stage.post(e.CancelAsked, run=run.run, by="eve")
    stage.end(run, "a", "failed", code=KILLED_ALONG)
    assert (run.state, stage.states(run)) == ("cancelled", {"a": "cancelled"})
    assert stage.record(run, "a").attempt == 1
