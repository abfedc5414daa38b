"""Nodes that are heard and do not hear: a beat that only comes again is no news."""

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import LivenessChanged
from imlmesh_protocol import limits
from scheduler_stage import HEARTBEAT_MS, LOST_MS, Stage, action, plan


def repeats(stage: Stage, node: str, for_ms: int) -> None:
    """Its beats come, all with the number of its last one."""
    third_ms = HEARTBEAT_MS // 3
    for _ in range(for_ms // third_ms):
        stage.pass_time(third_ms)
        stage.beat_again(node)
    stage.pass_time(for_ms % third_ms)


def reasons(stage: Stage) -> list[str]:
    return [c.reason for c in stage.changes if isinstance(c, LivenessChanged)]


def test_a_deaf_node_is_suspect_then_lost_as_a_silent_one_is() -> None:
    stage = Stage("pi")
    stage.beat("pi")
    repeats(stage, "pi", 3_999)
    assert stage.liveness("pi") == "online"
    repeats(stage, "pi", 1)
    assert stage.liveness("pi") == "suspect"
    repeats(stage, "pi", 2_000)
    assert stage.liveness("pi") == "lost"
    assert reasons(stage) == ["birth", "deaf for 4000 ms", "deaf too long"]


def test_every_beat_is_answered_so_that_it_may_hear_again() -> None:
    stage = Stage("pi")
    stage.beat("pi")
    repeats(stage, "pi", 2 * LOST_MS)
    assert [c.beat for c in stage.beat_again("pi") if isinstance(c, k.SendAck)] == [1]


def test_whoever_is_here_and_deaf_is_not_awaited_any_longer() -> None:
    """After our own connection was away nodes have more time to come back; this one is here."""
    stage = Stage("pi")
    stage.beat("pi")
    stage.post(e.BusClosed)
    stage.post(e.BusOpened)
    repeats(stage, "pi", 4_000)
    assert stage.liveness("pi") == "suspect"
    repeats(stage, "pi", 2_000)
    assert stage.liveness("pi") == "lost"


def test_a_lost_answer_or_two_are_nothing() -> None:
    stage = Stage("pi")
    for _ in range(20):
        stage.beat("pi")
        repeats(stage, "pi", HEARTBEAT_MS)
    assert reasons(stage) == ["birth"]
    assert stage.state.presence["pi"].jitter_ms == 0


def test_it_gets_no_new_work_and_is_back_with_its_second_new_beat() -> None:
    stage = Stage("deaf", "fine")
    stage.beat("fine", "deaf")
    for _ in range(12):
        stage.pass_time(HEARTBEAT_MS // 3)
        stage.beat("fine")
        stage.beat_again("deaf")
    run = stage.submit(plan(*(action(f"a{i}") for i in range(6))))
    assert {stage.dispatch_of(run, f"a{i}").node for i in range(6)} == {"fine"}
    stage.beat("deaf")
    assert stage.liveness("deaf") != "online"  # it lives; whether it hears, the next one tells
    stage.beat_again("deaf")
    assert stage.liveness("deaf") != "online"
    stage.beat("deaf")
    assert stage.liveness("deaf") == "online"


def test_its_work_moves_by_the_lease_of_its_last_new_beat() -> None:
    stage = Stage("deaf")
    stage.beat("deaf")
    heard_ms = stage.now_ms
    run = stage.submit(plan(action("a")))
    stage.accept(run, "a")
    first = stage.dispatch_of(run, "a")
    stage.birth("fine")
    while stage.dispatch_of(run, "a") is first:
        stage.pass_time(100)
        stage.beat("fine")
        stage.beat_again("deaf")
        assert stage.now_ms < heard_ms + 3 * LOST_MS
    waited_ms = stage.now_ms - heard_ms
    assert limits.reroute_ms(first.lease_ms) <= waited_ms < limits.reroute_ms(first.lease_ms) + 200
