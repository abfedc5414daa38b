"""What the core lets go of, and what it must not: deadlines, queues, bytes, reasons."""

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.queues import FairQueue
from imlmesh_protocol import limits
from scheduler_stage import Stage, action, plan


def test_ended_runs_hold_no_results_and_no_bytes() -> None:
    stage = Stage("pi")
    large = action("a", params={"v": "p" * 1_000})
    run = stage.submit(plan(large, action("b", "a", params={"v": "{{result.a}}"})))
    stage.end(run, "a", result="r" * 1_000)
    a, b = (stage.state.dispatches[name] for name in run.dispatches)
    assert min(len(a.bin), len(b.bin)) > 1_000
    stage.end(run, "b")
    assert (run.state, run.actions["a"].result, a.bin, b.bin) == ("completed", None, b"", b"")
    (acknowledged,) = stage.report(a, result="r" * 1_000)
    assert isinstance(acknowledged, k.SendAck), "its hash still tells that the result is its own"


def test_a_dispatch_whose_result_nobody_reads_gives_up_its_bytes_when_it_ends() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b", "a")))
    (a,) = (stage.state.dispatches[name] for name in run.dispatches)
    assert a.bin
    stage.end(run, "a")
    assert (run.state, a.bin) == ("running", b"")


def test_runs_that_were_cancelled_leave_the_queue() -> None:
    stage = Stage()
    waits = stage.submit(plan(action("a")))
    queue = FairQueue()
    for _ in range(3 * limits.QUEUED_RUNS_SWEPT):
        run = stage.submit(plan(action("a")))
        queue.add(run, run.actions["a"], 0.0)
        stage.post(e.CancelAsked, run=run.run, by="eve")
    queue.add(waits, waits.actions["a"], 0.0)
    assert len(queue) <= limits.QUEUED_RUNS_SWEPT
    assert queue.first() is not None
    stage.birth("pi")
    assert stage.running(waits) == ["a"]


def test_a_dispatch_sent_while_the_deadlines_are_swept_is_sent_again() -> None:
    stage = Stage("pi")
    other = stage.submit(plan(action("z", target_node="pi")))
    stage.end(other, "z")
    waits = stage.submit(plan(action("w")), starts_at_ms=stage.now_ms + 10**9)
    deadlines = stage.scheduler._deadlines
    stage.pass_time(200)
    # the expiry of the new run is the last but one entry before the sweep, its accept the last
    while len(deadlines) < limits.DEADLINES_SWEPT - 2:
        deadlines.add(stage.now_ms + 10**9, Deadline.EXPIRY, waits.run)
    run = stage.submit(plan(action("a", target_node="pi")))
    stage.commands.clear()
    stage.live("pi", for_ms=20_000)
    again = [one.dispatch for one in stage.commands if isinstance(one, k.SendDispatch)]
    assert again[:1] == [run.actions["a"].dispatch]


def test_what_waits_when_the_time_of_its_run_is_over_says_so() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(
            action("a", target_selector="room == attic"),
            action("b", "a"),
            action("c", target_selector="room == attic", target_mode="any", on_error="skip"),
            action("d"),
            ttl_seconds=10,
        )
    )
    stage.live("pi", for_ms=12_000)
    assert stage.states(run) == {"a": "skipped", "b": "skipped", "c": "skipped", "d": "running"}
    faults = {name: unit.fault.code for name, unit in run.actions.items() if unit.fault}
    assert faults == dict.fromkeys("abc", "run.expired")


def test_what_an_abort_stops_before_the_time_is_over_names_its_dependency() -> None:
    stage = Stage("pi")
    waits = action("w", target_selector="room == attic")
    run = stage.submit(plan(action("a"), action("d"), waits, ttl_seconds=10))
    stage.end(run, "a", "failed")
    stage.live("pi", for_ms=12_000)
    fault = run.actions["w"].fault
    assert fault is not None
    assert fault.code == "action.dependency"
