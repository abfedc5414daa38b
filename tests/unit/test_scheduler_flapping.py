"""Nodes that come and go: when they get work again, and when the mesh quarantines them."""

import pytest

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import LivenessChanged
from imlmesh_protocol import limits
from imlmesh_protocol.states import Admission
from scheduler_stage import HEARTBEAT_MS, LOST_MS, Stage, action, plan

HOLDS_MS = [0, 0, 6_000, 12_000, 24_000, 48_000, 96_000, 96_000, 96_000]


def come_and_go(
    stage: Stage, node: str, away_ms: int = 1_000, others: tuple[str, ...] = ()
) -> None:
    """Its connection breaks, and it is born again in the next session; `others` live on."""
    record = stage.state.nodes[node]
    stage.post(e.NodeGone, node=node, boot=record.boot, session=record.session)
    if others:
        stage.live(*others, for_ms=away_ms)
        away_ms %= HEARTBEAT_MS
    stage.pass_time(away_ms)
    stage.birth(node, session=record.session + 1)


def held_ms(stage: Stage, node: str) -> int:
    return max(0, int(stage.state.presence[node].held_until_ms) - stage.now_ms)


def rows(stage: Stage, node: str) -> list[str]:
    kept = (change for change in stage.changes if isinstance(change, a.EvidenceKept))
    return [change.verdict for change in kept if change.node == node]


def test_the_hold_down_doubles_up_to_its_longest() -> None:
    assert [limits.hold_ms(n, LOST_MS) for n in range(1, 10)] == HOLDS_MS
    assert limits.hold_ms(1_000, 30_000) == 480_000


def test_the_first_returns_bring_work_at_once_and_later_ones_hold_it_down() -> None:
    stage = Stage("pi", "b")
    for hold_ms in HOLDS_MS[:7]:
        come_and_go(stage, "pi")
        assert held_ms(stage, "pi") == hold_ms
        assert stage.liveness("pi") == ("suspect" if hold_ms else "online")
    assert rows(stage, "pi") == ["counted"] * 5


def test_it_gets_work_when_the_hold_down_is_over() -> None:
    stage = Stage("pi")
    for _ in range(3):
        come_and_go(stage, "pi")
    run = stage.submit(plan(action("a")))
    stage.live("pi", for_ms=5_900)
    assert stage.states(run) == {"a": "waiting"}
    stage.live("pi", for_ms=2_000)
    assert stage.liveness("pi") == "online"
    assert stage.states(run) == {"a": "running"}


def test_a_hold_down_lasts_although_the_returns_that_made_it_are_old() -> None:
    stage = Stage("pi", "b")
    for _ in range(7):
        come_and_go(stage, "pi", 100)
    stage.state.presence["pi"].held_until_ms = until_ms = stage.now_ms + limits.EVIDENCE_MS + 60_000
    stage.live("pi", "b", for_ms=limits.EVIDENCE_MS)
    come_and_go(stage, "pi")
    assert stage.state.presence["pi"].held_until_ms == until_ms
    assert stage.liveness("pi") == "suspect"


def test_a_release_ends_a_hold_down_of_a_node_that_is_open() -> None:
    stage = Stage("pi", "b")
    for _ in range(4):
        come_and_go(stage, "pi")
    stage.live("pi", "b", for_ms=4_000)
    assert stage.liveness("pi") == "suspect"
    stage.post(e.AdmissionAsked, node="pi", admission=Admission.OPEN, reason="chaos", by="eve")
    stage.live("pi", "b", for_ms=2_000)
    assert stage.liveness("pi") == "online"
    come_and_go(stage, "pi")
    assert stage.liveness("pi") == "online", "its returns are forgiven as well"


def test_what_it_has_goes_on_and_its_leases_are_renewed() -> None:
    stage = Stage("pi", "b")
    run = stage.submit(plan(action("a", target_selector="node == 'pi' or node == 'b'")))
    stage.accept(run, "a")
    node, first = stage.dispatch_of(run, "a").node, stage.dispatch_of(run, "a")
    for _ in range(5):
        come_and_go(stage, node)
    stage.live("pi", "b", for_ms=20_000)
    assert stage.liveness(node) == "suspect"
    assert stage.dispatch_of(run, "a") is first
    stage.end(run, "a")
    assert run.state == "completed"


def test_held_down_and_silent_is_lost_as_ever() -> None:
    stage = Stage("pi", "b")
    for _ in range(7):
        come_and_go(stage, "pi")
    stage.live("b", for_ms=LOST_MS)
    assert stage.liveness("pi") == "lost"
    come = stage.state.nodes["pi"]
    stage.birth("pi", session=come.session + 1)
    assert stage.liveness("pi") == "suspect"  # back, and not for work yet


def test_silence_counts_as_well_as_a_broken_connection() -> None:
    stage = Stage("pi", "b")
    for hold_ms in (0, 0, 6_000):
        stage.live("b", for_ms=10_000)
        assert stage.liveness("pi") == "lost"
        stage.beat("pi", "pi")
        assert held_ms(stage, "pi") == hold_ms
    reasons = [c.reason for c in stage.changes if isinstance(c, LivenessChanged)]
    assert reasons[-1] == "comes and goes: held down for 6000 ms"


def test_a_goodbye_is_no_flap_and_old_ones_are_forgotten() -> None:
    stage = Stage("pi", "b")
    for _ in range(20):
        record = stage.state.nodes["pi"]
        stage.post(e.NodeLeft, node="pi", boot=record.boot, session=record.session)
        stage.birth("pi", session=record.session + 1)
    for _ in range(3):
        come_and_go(stage, "pi")
        come_and_go(stage, "pi")
        assert stage.liveness("pi") == "online"
        stage.live("pi", "b", for_ms=limits.EVIDENCE_MS)
    assert rows(stage, "pi") == []


@pytest.mark.parametrize("away_ms", [100, 5_000])
def test_after_so_many_it_is_quarantined_and_its_release_forgives(away_ms: int) -> None:
    stage = Stage("pi", "b", "d")
    for _ in range(limits.FLAPS_FREE + limits.EVIDENCE_FLAPS):
        assert stage.state.admission_of("pi") is Admission.OPEN
        come_and_go(stage, "pi", away_ms, ("b", "d"))
    record = stage.state.admissions["pi"]
    assert record.admission is Admission.QUARANTINED
    assert record.reason.startswith("6 returns one soon after the other, the last: it came back")
    assert rows(stage, "pi") == ["counted"] * 5 + ["quarantined"]
    stage.post(
        e.AdmissionAsked, node="pi", admission=Admission.OPEN, reason="a new cable", by="eve"
    )
    come_and_go(stage, "pi")
    assert stage.liveness("pi") == "online"


def test_no_more_of_them_are_quarantined_than_may_be() -> None:
    fleet = [f"n{i}" for i in range(5)]
    stage = Stage(*fleet)
    for _ in range(limits.FLAPS_FREE + limits.EVIDENCE_FLAPS):
        for node in fleet:
            come_and_go(stage, node, 100)
            stage.live(*fleet, for_ms=LOST_MS // 2 + 1_000)  # each for itself
    assert list(stage.state.admissions) == ["n0"]
    assert {rows(stage, node)[-1] for node in fleet[1:]} == {"alarm"}


def test_what_falls_silent_together_does_not_flap() -> None:
    fleet = [f"n{i}" for i in range(5)]
    stage = Stage(*fleet)
    for _ in range(5):
        stage.live("n0", for_ms=20_000)
        stage.beat(*fleet)
        stage.beat(*fleet)
        assert {str(stage.liveness(node)) for node in fleet} == {"online"}
    assert not any(rows(stage, node) for node in fleet)


@pytest.mark.parametrize("wills", ["all first", "at each takeover"])
def test_what_goes_away_together_does_not_flap(wills: str) -> None:
    """The site's switch blips: the broker has a will for every node, and all come back."""
    fleet = [f"n{i}" for i in range(6)]
    stage = Stage(*fleet)
    for _ in range(6):
        for node in fleet if wills == "all first" else ():
            record = stage.state.nodes[node]
            stage.post(e.NodeGone, node=node, boot=record.boot, session=record.session)
        for node in fleet:
            if wills == "all first":
                stage.pass_time(300)
                stage.birth(node, session=stage.state.nodes[node].session + 1)
            else:
                come_and_go(stage, node, 10)
        assert {str(stage.liveness(node)) for node in fleet} == {"online"}
        stage.live(*fleet, for_ms=30_000)
    assert not any(rows(stage, node) for node in fleet)
    for hold_ms in (0, 0, 6_000):
        come_and_go(stage, "n0")
        assert held_ms(stage, "n0") == hold_ms, "one that does it alone is judged as ever"
        stage.live(*fleet, for_ms=10_000)
