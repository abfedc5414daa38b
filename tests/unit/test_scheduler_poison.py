"""What becomes of an action whose driver crashes, on one node and on the next."""

import pytest

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.state import RunRecord
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import Admission
from scheduler_stage import LOST_MS, Stage, action, plan

FOUR = ("n0", "n1", "n2", "n3")
CRASHED = "driver.crashed"


def crash(stage: Stage, run: RunRecord, name: str = "a") -> str:
    """It is accepted where it is, and its driver dies there; returns that node."""
    node = stage.dispatch_of(run, name).node
    stage.accept(run, name)
    stage.end(run, name, "failed", code=CRASHED)
    return node


@pytest.mark.parametrize("do", ["look", "write"])
@pytest.mark.parametrize("on_error", ["abort", "retry"])
def test_what_may_be_repeated_is_poison_on_the_third_distinct_node(do: str, on_error: str) -> None:
    stage = Stage(*FOUR)
    run = stage.submit(plan(action("a", do=do, on_error=on_error)))
    nodes = [crash(stage, run) for _ in range(limits.POISON_NODES)]
    assert len(set(nodes)) == 3
    assert run.state == "failed"
    assert stage.record(run, "a").fault == Fault(
        "action.poison",
        f"its driver crashed on {', '.join(nodes)}; the last: as the play says",
    )
    assert stage.record(run, "a").attempt == 3
    assert not stage.state.admissions


@pytest.mark.parametrize(
    ("on_error", "state", "then", "ends"),
    [
        ("abort", "failed", "skipped", "failed"),
        ("skip", "skipped", "skipped", "completed"),
        ("continue", "failed", "completed", "completed"),
        ("rollback", "failed", "skipped", "failed"),
    ],
)
def test_the_rest_follows_on_error(on_error: str, state: str, then: str, ends: str) -> None:
    stage = Stage(*FOUR)
    run = stage.submit(plan(action("a", on_error=on_error), action("then", "a"), action("free")))
    for _ in range(3):
        crash(stage, run)
    while running := stage.running(run):
        stage.end(run, running[0])
    assert stage.states(run) == {"a": state, "then": then, "free": "completed"}
    assert run.state == ends


@pytest.mark.parametrize("do", ["send", "push"])
def test_what_may_not_be_repeated_is_given_to_nobody_else(do: str) -> None:
    stage = Stage(*FOUR)
    run = stage.submit(plan(action("a", do=do, params={"pin": 1})))
    crash(stage, run)
    assert run.state == "failed"
    assert stage.record(run, "a").fault == Fault(CRASHED, "as the play says")
    assert stage.record(run, "a").attempt == 1


def test_its_own_retry_counts_and_stops_at_the_third_node() -> None:
    retry = {"max_attempts": 9, "delay_seconds": 1, "backoff_factor": 1, "retry_on": []}
    stage = Stage("n0", "n1", "n2")
    run = stage.submit(plan(action("a", do="send", on_error="retry", retry=retry)))
    nodes = set()
    while run.state == "running":
        nodes.add(crash(stage, run))
        stage.live("n0", "n1", "n2", for_ms=4_000)
    assert nodes == {"n0", "n1", "n2"}
    assert stage.record(run, "a").fault.code == "action.poison"


def test_where_nobody_else_can_do_it_a_crash_is_as_any_failure() -> None:
    stage = Stage("n0", "n1")
    run = stage.submit(plan(action("a", target_node="n0")))
    crash(stage, run)
    assert run.state == "failed"
    assert stage.record(run, "a").fault.code == CRASHED


def test_a_retry_may_go_where_it_crashed_when_there_is_no_other() -> None:
    retry = {"max_attempts": 2, "delay_seconds": 1, "retry_on": []}
    stage = Stage("n0", "n1")
    run = stage.submit(plan(action("a", on_error="retry", retry=retry)))
    assert {crash(stage, run), crash(stage, run)} == {"n0", "n1"}
    assert stage.states(run) == {"a": "waiting"}  # that was one failure, of two nodes
    stage.live("n0", "n1", for_ms=2_000)
    stage.end(run, "a")
    assert run.state == "completed"


def test_it_waits_for_the_other_node_and_does_not_crash_here_again() -> None:
    stage = Stage("n0", "n1")
    run = stage.submit(plan(action("a")))
    first = stage.dispatch_of(run, "a").node
    (other,) = {"n0", "n1"} - {first}
    stage.post(e.NodeGone, node=other, boot=1, session=1)
    crash(stage, run)
    assert stage.states(run) == {"a": "waiting"}
    stage.beat(other, other)
    assert stage.dispatch_of(run, "a").node == other


def test_when_the_other_node_is_lost_as_well_it_fails_with_its_crash() -> None:
    stage = Stage("n0", "n1")
    run = stage.submit(plan(action("a")))
    first = stage.dispatch_of(run, "a").node
    (other,) = {"n0", "n1"} - {first}
    stage.post(e.NodeGone, node=other, boot=1, session=1)
    crash(stage, run)
    stage.live(first, for_ms=2 * LOST_MS)
    assert run.state == "failed"
    assert stage.record(run, "a").fault.code == CRASHED


def test_nobody_in_quarantine_is_waited_for() -> None:
    stage = Stage("n0", "n1")
    run = stage.submit(plan(action("a")))
    (other,) = {"n0", "n1"} - {stage.dispatch_of(run, "a").node}
    stage.post(
        e.AdmissionAsked, node=other, admission=Admission.QUARANTINED, reason="odd", by="eve"
    )
    crash(stage, run)
    assert run.state == "failed"


def test_fallback_nodes_are_tried_in_their_order() -> None:
    stage = Stage(*FOUR)
    run = stage.submit(plan(action("a", target_node="n2", fallback_nodes=["n0", "n3", "n1"])))
    assert [crash(stage, run) for _ in range(3)] == ["n2", "n0", "n3"]
    assert stage.record(run, "a").fault.code == "action.poison"


def test_a_restart_remembers_where_it_crashed() -> None:
    stage = Stage(*FOUR)
    run = stage.submit(plan(action("a")))
    tried = [crash(stage, run), crash(stage, run)]
    again = Stage(history=stage.changes)
    for node in FOUR:
        again.birth(node, boot=2)
    run = next(iter(again.state.runs.values()))
    assert again.record(run, "a").crashed_on == tuple(tried)
    again.end(run, "a", "failed", code=CRASHED)
    assert again.record(run, "a").fault.code == "action.poison"


def test_many_poisons_quarantine_nobody() -> None:
    """Plans that differ, one after the other: each is to blame itself, and no node."""
    stage = Stage("n0", "n1", "n2")
    for i in range(2 * limits.EVIDENCE_CRASHES):
        fields = {"dice": i, "plan": plan(action("a")), "digest": f"d{i}", "by": "eve"}
        stage.post(e.PlanSubmitted, **fields)
        run = list(stage.state.runs.values())[-1]
        for _ in range(3):
            crash(stage, run)
        assert stage.record(run, "a").fault.code == "action.poison"
    assert not stage.state.admissions
    assert not [
        c for c in stage.changes if isinstance(c, a.EvidenceKept) and c.verdict != "counted"
    ]


def test_a_crash_that_others_did_not_have_still_speaks_against_the_node() -> None:
    stage = Stage("n0", "n1")
    for i in range(limits.EVIDENCE_CRASHES):
        fields = {"dice": i, "plan": plan(action("a", target_node="n0", fallback_nodes=["n1"]))}
        stage.post(e.PlanSubmitted, digest=f"d{i}", by="eve", **fields)
        run = list(stage.state.runs.values())[-1]
        assert crash(stage, run) == "n0"
        stage.end(run, "a")
        assert run.state == "completed"
    assert stage.state.admission_of("n0") is Admission.QUARANTINED
