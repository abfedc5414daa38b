"""How long a node may be silent, and when nobody is judged: virtual time, no network."""

import pytest

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import LivenessChanged, VerdictsFrozen, VerdictsResumed
from imlmesh_orchestrator.core.silence import windows
from imlmesh_protocol import limits
from imlmesh_protocol.tick import Tick
from scheduler_stage import HEARTBEAT_MS, LOST_MS, Stage, action, plan, refusals

FIVE = ("pi-1", "pi-2", "pi-3", "pi-4", "pi-5")


def beats(stage: Stage, node: str, *gaps_ms: int) -> None:
    for gap_ms in gaps_ms:
        stage.pass_time(gap_ms)
        stage.beat(node)


def window_of(stage: Stage, node: str) -> tuple[int, int]:
    return windows(stage.state.nodes[node], stage.state.presence[node])


def verdicts(stage: Stage) -> list[str]:
    return [str(c.liveness) for c in stage.changes if isinstance(c, LivenessChanged)]


def frozen(stage: Stage) -> list[VerdictsFrozen]:
    return [change for change in stage.changes if isinstance(change, VerdictsFrozen)]


def resumed(stage: Stage) -> list[VerdictsResumed]:
    return [change for change in stage.changes if isinstance(change, VerdictsResumed)]


# the window of a node


def test_beats_in_time_leave_the_window_as_it_was_promised() -> None:
    stage = Stage("pi")
    beats(stage, "pi", *[HEARTBEAT_MS, HEARTBEAT_MS + 400, HEARTBEAT_MS - 300] * 10)
    assert window_of(stage, "pi") == (4_000, LOST_MS)


def test_late_beats_widen_the_window_by_twice_what_they_were_late() -> None:
    stage = Stage("pi")
    beats(stage, "pi", 3_500)
    assert window_of(stage, "pi") == (4_000 + 2_000, LOST_MS + 2_000)
    stage.pass_time(7_999)
    assert stage.liveness("pi") == "suspect"
    stage.pass_time(1)
    assert stage.liveness("pi") == "lost"


def test_the_window_never_grows_beyond_twice_its_length() -> None:
    stage = Stage("pi")
    beats(stage, "pi", *[5_900] * 50)
    assert window_of(stage, "pi") == (4_000 + LOST_MS, 2 * LOST_MS)
    assert "lost" not in verdicts(stage)


def test_beats_in_time_narrow_the_window_again() -> None:
    stage = Stage("pi")
    beats(stage, "pi", 5_500)
    wide_ms = window_of(stage, "pi")[1]
    beats(stage, "pi", *[HEARTBEAT_MS] * 6)
    assert LOST_MS < window_of(stage, "pi")[1] < LOST_MS + (wide_ms - LOST_MS) // 2
    beats(stage, "pi", *[HEARTBEAT_MS] * 60)
    assert window_of(stage, "pi")[1] == LOST_MS


def test_a_return_from_being_lost_is_no_jitter() -> None:
    stage = Stage("pi", "other")
    beats(stage, "pi", 60_000)
    assert window_of(stage, "pi")[1] == LOST_MS


@pytest.mark.parametrize("late_ms", [0, 3_500, 5_900])
def test_work_never_moves_before_its_lease_is_over_on_the_node(late_ms: int) -> None:
    stage = Stage("pi-1")
    if late_ms:
        beats(stage, "pi-1", late_ms)
        stage.beat("pi-1")
    run = stage.submit(plan(action("a")))
    stage.accept(run, "a")
    heard_ms, first = stage.now_ms, stage.dispatch_of(run, "a")
    stage.birth("pi-2")
    while stage.dispatch_of(run, "a") is first:
        stage.pass_time(100)
        stage.beat("pi-2")
        assert stage.now_ms < heard_ms + 3 * LOST_MS
    assert stage.now_ms - heard_ms >= limits.reroute_ms(first.lease_ms)
    assert stage.now_ms - heard_ms > limits.stop_ms(first.lease_ms)


# our own way to the broker, our own machine


def test_no_verdict_while_our_bus_session_is_younger_than_a_window() -> None:
    stage = Stage("pi")
    stage.pass_time(3_900)
    stage.post(e.BusClosed)
    stage.pass_time(20_000)
    stage.post(e.BusOpened)
    stage.pass_time(limits.RETURN_MS + 3_999)
    assert verdicts(stage) == ["online"]
    stage.pass_time(LOST_MS - 3_999)
    assert verdicts(stage) == ["online", "suspect", "lost"]


def test_nobody_is_judged_while_a_fleet_still_comes_back() -> None:
    """One after the other through the same door, each in the last moment: whoever is behind is only slow."""
    names = [f"n{number}" for number in range(10)]
    stage = Stage(*names)
    stage.post(e.BusClosed)
    stage.pass_time(20_000)
    stage.post(e.BusOpened)
    for number, name in enumerate(names[:-1]):
        stage.live(*names[:number], for_ms=limits.RETURN_MS)
        assert stage.liveness(name) == stage.liveness(names[-1]) == "online"
        stage.birth(name)
    # nobody comes any more: the last one is not on its way
    stage.live(*names[:-1], for_ms=limits.RETURN_MS + LOST_MS)
    assert stage.liveness(names[-1]) == "lost"
    assert {stage.liveness(name) for name in names[:-1]} == {"online"}


def test_who_has_come_back_has_no_more_time_than_before() -> None:
    stage = Stage("pi", "other")
    stage.post(e.BusClosed)
    stage.pass_time(20_000)  # no look at them is due any more
    stage.post(e.BusOpened)
    stage.beat("pi", "other")
    stage.live("other", for_ms=LOST_MS)
    assert [stage.liveness(node) for node in ("pi", "other")] == ["lost", "online"]


def test_no_verdict_while_we_do_not_hear_ourselves() -> None:
    stage = Stage("pi")
    stage.post(e.LoopbackMeasured, hears=False)
    stage.pass_time(60_000)
    assert verdicts(stage) == ["online"]
    stage.post(e.LoopbackMeasured, hears=True)
    stage.pass_time(LOST_MS - 1)
    assert "lost" not in verdicts(stage)
    stage.pass_time(1)
    assert verdicts(stage)[-1] == "lost"


def test_that_we_hear_ourselves_as_before_gives_no_fresh_window() -> None:
    stage = Stage("pi")
    for _ in range(6):
        stage.pass_time(1_000)
        stage.post(e.LoopbackMeasured, hears=True)
    assert stage.liveness("pi") == "lost"


def test_a_late_tick_is_our_own_standstill() -> None:
    stage = Stage("pi")
    stage.now_ms += 3_600_000
    stage.post(Tick)
    assert verdicts(stage) == ["online"]
    stage.pass_time(LOST_MS - 1)
    assert "lost" not in verdicts(stage)
    stage.pass_time(1)
    assert stage.liveness("pi") == "lost"


def test_a_tick_that_is_a_little_late_counts() -> None:
    stage = Stage("pi")
    stage.pass_time(LOST_MS - 1)
    stage.now_ms += 1 + limits.TICK_LATE_MS
    stage.post(Tick)
    assert stage.liveness("pi") == "lost"


def test_a_standstill_that_the_shell_saw_gives_fresh_windows() -> None:
    stage = Stage("pi")
    stage.pass_time(3_900)
    stage.post(e.StoodStill, for_ms=3_000)
    stage.pass_time(3_900)
    assert verdicts(stage) == ["online"]


# many at once


def silence_of(stage: Stage, *silent: str, for_ms: int = 8_000) -> None:
    stage.live(*(node for node in FIVE if node not in silent), for_ms=for_ms)


def test_two_silent_nodes_of_three_are_lost() -> None:
    stage = Stage(*FIVE[:3])
    stage.live("pi-1", for_ms=8_000)
    assert stage.liveness("pi-2") == stage.liveness("pi-3") == "lost"
    assert frozen(stage) == []


def test_less_than_55_percent_are_lost() -> None:
    stage = Stage(*FIVE, "pi-6")
    stage.live("pi-1", "pi-2", "pi-3", for_ms=8_000)
    assert verdicts(stage).count("lost") == 3
    assert frozen(stage) == []


def test_most_nodes_silent_at_once_freeze_all_verdicts_with_one_alarm() -> None:
    stage = Stage(*FIVE)
    silence_of(stage, *FIVE[:3], for_ms=600_000)
    assert "lost" not in verdicts(stage)
    assert stage.liveness("pi-1") == "suspect"
    (alarm,) = frozen(stage)
    assert set(alarm.silent) == set(FIVE[:3])
    assert alarm.of == 5


def test_work_of_silent_nodes_does_not_move_while_frozen() -> None:
    stage = Stage(*FIVE)
    run = stage.submit(plan(*(action(f"a{i}") for i in range(5))))
    before = {name: stage.dispatch_of(run, name) for name in run.actions}
    for name in run.actions:
        stage.accept(run, name)
    silence_of(stage, *FIVE[:3], for_ms=120_000)
    assert {name: stage.dispatch_of(run, name) for name in run.actions} == before


def test_nodes_that_fall_silent_one_after_the_other_within_a_window_count_together() -> None:
    stage = Stage(*FIVE)
    stage.live(*FIVE[1:], for_ms=2_000)
    stage.live(*FIVE[2:], for_ms=2_000)
    stage.live(*FIVE[3:], for_ms=60_000)
    assert verdicts(stage).count("lost") == 1
    assert len(frozen(stage)) == 1


def test_when_they_speak_again_verdicts_are_made_after_a_fresh_window() -> None:
    stage = Stage(*FIVE)
    silence_of(stage, *FIVE[:3], for_ms=20_000)
    stage.beat("pi-1")
    assert [change.by for change in resumed(stage)] == ["imlmesh"]
    stage.beat("pi-1")
    assert stage.liveness("pi-1") == "online"
    stage.live("pi-1", "pi-4", "pi-5", for_ms=4_000)
    assert "lost" not in verdicts(stage)
    stage.live("pi-1", "pi-4", "pi-5", for_ms=4_000)
    assert stage.liveness("pi-2") == stage.liveness("pi-3") == "lost"


def test_wills_explain_the_silence_and_need_no_freeze() -> None:
    stage = Stage(*FIVE)
    for node in FIVE[:3]:
        stage.post(e.NodeGone, node=node, boot=1, session=1)
    silence_of(stage, *FIVE[:3])
    assert verdicts(stage).count("lost") == 3
    assert frozen(stage) == []


def test_a_will_that_comes_during_a_freeze_is_proof_for_its_node() -> None:
    stage = Stage(*FIVE, "pi-6")
    stage.live("pi-5", "pi-6", for_ms=20_000)
    stage.post(e.NodeGone, node="pi-1", boot=1, session=1)
    assert stage.state.freeze is None  # three of six
    stage.live("pi-5", "pi-6", for_ms=2_000)
    assert stage.liveness("pi-1") == "lost"
    assert stage.liveness("pi-2") == "suspect"


def test_a_person_says_that_they_are_gone() -> None:
    stage = Stage(*FIVE)
    run = stage.submit(plan(action("a", target_selector='node == "pi-1"', on_node_loss="fail")))
    silence_of(stage, *FIVE[:3], for_ms=20_000)
    answered = stage.post(e.SilenceExplained, by="anna", reason="the fuse of hall 2")
    assert [c.value for c in answered if isinstance(c, k.Reply)] == [3]
    silence_of(stage, *FIVE[:3], for_ms=4_000)
    assert verdicts(stage).count("lost") == 3
    assert stage.states(run) == {"a": "failed"}
    assert [(change.by, change.reason) for change in resumed(stage)] == [
        ("anna", "the fuse of hall 2")
    ]
    assert len(frozen(stage)) == 1


def test_nothing_to_explain_is_refused() -> None:
    stage = Stage("pi")
    answered = stage.post(e.SilenceExplained, by="anna", reason="so")
    assert refusals(answered) == ["verdicts.not_frozen"]
    assert resumed(stage) == []


def test_nodes_that_left_do_not_keep_the_freeze() -> None:
    stage = Stage(*FIVE)
    silence_of(stage, *FIVE[:3], for_ms=20_000)
    stage.post(e.NodeLeft, node="pi-1", boot=1, session=1)
    assert stage.state.freeze is None


def test_a_frozen_fleet_is_looked_at_once_a_heartbeat_and_no_more() -> None:
    stage = Stage(*FIVE)
    stage.pass_time(10_000)
    ticks = stage._causes
    stage.pass_time(60_000)
    assert stage._causes - ticks <= 5 * 60_000 // HEARTBEAT_MS
