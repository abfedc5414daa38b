"""A slow pure action gets one copy elsewhere; the first result counts, the other is stopped."""

from typing import Any

import pytest

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import DispatchPlanned, ResultKept
from imlmesh_orchestrator.core.state import DispatchRecord, RunRecord
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from scheduler_stage import HEARTBEAT_MS, Stage, action, plan

NODES = ("pi-1", "pi-2", "pi-3")
TOOK_MS = 1_200  # three times that is over before a silent node is suspect


def start(stage: Stage, run: RunRecord, name: str) -> DispatchRecord:
    dispatch = stage.dispatch_of(run, name)
    pairs = ((dispatch.dispatch, dispatch.hash),)
    started = (dispatch.dispatch,)
    stage.post(e.AcceptArrived, node=dispatch.node, dispatches=pairs, started=started)
    return dispatch


def complete(stage: Stage, dispatch: DispatchRecord, took_ms: int = TOOK_MS) -> list[k.Command]:
    result = e.Result(dispatch.dispatch, dispatch.hash, "completed", took_ms, None, None)
    return stage.post(e.ResultsArrived, node=dispatch.node, results=(result,))


def slow_run(stage: Stage, samples: int = 5, **slow: Any) -> tuple[RunRecord, DispatchRecord]:
    """A run of which all but the action `slow` have completed in the usual time."""
    quick = [action(f"q{i}") for i in range(samples)]
    run = stage.submit(plan(*quick, action("slow", **slow)))
    for name in run.actions:
        start(stage, run, name)
    for one in quick:
        complete(stage, stage.dispatch_of(run, one["id"]))
    return run, stage.dispatch_of(run, "slow")


def copied(run: RunRecord) -> bool:
    return run.units["slow"].copied != ""


def pass_beating(stage: Stage, for_ms: int) -> None:
    stage.live(*NODES, for_ms=for_ms)


def test_a_pure_action_over_three_medians_gets_one_copy_on_another_node() -> None:
    stage = Stage(*NODES)
    run, slow = slow_run(stage)
    stage.pass_time(3 * TOOK_MS - 1)
    assert not copied(run)
    stage.pass_time(1)
    assert copied(run)
    copy = stage.dispatch_of(run, "slow")
    assert copy.node != slow.node
    assert (slow.state, copy.state) == ("unknown", "planned")
    start(stage, run, "slow")
    pass_beating(stage, 60_000)
    planned = [c for c in stage.changes if isinstance(c, DispatchPlanned) and c.action == "slow"]
    assert len(planned) == 2


def test_the_copy_wins_and_the_slow_one_is_stopped() -> None:
    stage = Stage(*NODES)
    run, slow = slow_run(stage)
    stage.pass_time(3 * TOOK_MS)
    copy = start(stage, run, "slow")
    commands = complete(stage, copy)
    assert k.SendCancel(slow.node, (slow.dispatch,)) in commands
    assert run.state == "completed"
    stage.report(slow)
    assert slow.state == "superseded"
    assert [c.dispatch for c in stage.changes if isinstance(c, ResultKept)] == [slow.dispatch]


def test_the_slow_one_wins_and_the_copy_is_stopped() -> None:
    stage = Stage(*NODES)
    run, slow = slow_run(stage)
    stage.pass_time(3 * TOOK_MS)
    copy = start(stage, run, "slow")
    commands = complete(stage, slow)
    assert k.SendCancel(copy.node, (copy.dispatch,)) in commands
    assert (slow.state, copy.state) == ("completed", "superseded")
    assert run.state == "completed"
    assert not stage.state.nodes[copy.node].live


def test_the_failure_of_the_slow_one_is_evidence_while_its_copy_runs() -> None:
    stage = Stage(*NODES)
    run, slow = slow_run(stage)
    stage.pass_time(3 * TOOK_MS)
    copy = start(stage, run, "slow")
    stage.report(slow, "failed")
    assert run.state == "running"
    complete(stage, copy)
    assert run.state == "completed"


def test_the_slow_one_still_counts_when_its_copy_is_refused_and_waits() -> None:
    stage = Stage(*NODES)
    run, slow = slow_run(stage)
    stage.pass_time(3 * TOOK_MS)
    copy = stage.dispatch_of(run, "slow")
    for node in NODES:
        stage.state.nodes[node].full = True
    refusals = ((copy.dispatch, Fault("node.full", "full")),)
    stage.post(e.RejectArrived, node=copy.node, refusals=refusals)
    assert run.units["slow"].state == "waiting"
    complete(stage, slow)
    assert run.state == "completed"


def test_a_copy_that_is_lost_moves_as_any_work() -> None:
    stage = Stage(*NODES)
    run, _slow = slow_run(stage)
    stage.pass_time(3 * TOOK_MS)
    copy = start(stage, run, "slow")
    stage.live(*(node for node in NODES if node != copy.node), for_ms=10_000)
    assert stage.dispatch_of(run, "slow").node != copy.node
    complete(stage, stage.dispatch_of(run, "slow"))
    assert run.state == "completed"


@pytest.mark.parametrize(
    "slow",
    [
        {"do": "write"},
        {"do": "send", "effect": "once"},
        {"target_node": "pi-1"},
        {"target_mode": "all"},
        {"on_node_loss": "wait"},
    ],
)
def test_nothing_else_is_ever_copied(slow: dict[str, Any]) -> None:
    stage = Stage(*NODES)
    quick = [action(f"q{i}") for i in range(6)]
    run = stage.submit(plan(*quick, action("slow", **slow)))
    for name, unit in list(run.units.items()):
        if unit.dispatch:
            start(stage, run, name)
    for one in quick:
        complete(stage, stage.dispatch_of(run, one["id"]))
    pass_beating(stage, 40_000)
    assert not any(unit.copied for unit in run.units.values())


def test_four_samples_are_too_few() -> None:
    stage = Stage(*NODES)
    run, _ = slow_run(stage, samples=4)
    pass_beating(stage, 40_000)
    assert not copied(run)


def test_without_a_free_node_there_is_no_copy_until_there_is() -> None:
    stage = Stage("pi-1")
    run, _ = slow_run(stage)
    stage.live("pi-1", for_ms=20_000)
    assert not copied(run)
    stage.birth("pi-2")
    stage.live("pi-1", "pi-2", for_ms=20_000)
    assert copied(run)


def test_quick_work_is_never_copied_before_a_second_is_over() -> None:
    stage = Stage(*NODES)
    quick = [action(f"q{i}") for i in range(5)]
    run = stage.submit(plan(*quick, action("slow")))
    for name in run.actions:
        start(stage, run, name)
    for one in quick:
        complete(stage, stage.dispatch_of(run, one["id"]), 10)
    stage.pass_time(limits.STRAGGLER_MS - 1)
    assert not copied(run)
    stage.pass_time(1)
    assert copied(run)


def test_a_cancel_stops_both() -> None:
    stage = Stage(*NODES)
    run, slow = slow_run(stage)
    stage.pass_time(3 * TOOK_MS)
    copy = start(stage, run, "slow")
    commands = stage.post(e.CancelAsked, run=run.run, by="eve")
    stopped = {name for c in commands if isinstance(c, k.SendCancel) for name in c.dispatches}
    assert stopped == {slow.dispatch, copy.dispatch}
    stage.report(slow, "cancelled")
    assert run.state == "cancelling"
    stage.report(copy, "cancelled")
    assert run.state == "cancelled"


def test_a_replay_knows_of_the_copy() -> None:
    stage = Stage(*NODES)
    run, _ = slow_run(stage)
    stage.pass_time(3 * TOOK_MS)
    assert stage.replayed().runs[run.run] == run


def test_a_long_action_without_others_of_its_kind_costs_few_looks() -> None:
    stage = Stage("pi-1")
    run = stage.submit(plan(action("slow", timeout=3_600)))
    start(stage, run, "slow")
    before = stage._causes
    stage.live("pi-1", for_ms=600_000)
    assert stage._causes - before < 3 * 600_000 // HEARTBEAT_MS
