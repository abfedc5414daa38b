"""What speaks against a node, when the mesh itself quarantines it, and how it comes out again."""

import pytest

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.evidence import KINDS
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CRASHED, KILLED_ALONG
from imlmesh_protocol.states import Admission
from scheduler_stage import Stage, action, plan

QUARANTINED, OPEN = Admission.QUARANTINED, Admission.OPEN
SHELL_KINDS = [kind for kind in KINDS if kind != "crashes"]
MINUTES = 60_000


def see(stage: Stage, node: str, *marks: str, kind: str = "malformed") -> None:
    for mark in marks:
        stage.post(e.EvidenceSeen, node=node, kind=kind, text=f"it said {mark}", mark=mark)


def convict(stage: Stage, node: str, kind: str = "malformed") -> None:
    """Exactly as much as is enough."""
    see(stage, node, *(f"m{i}" for i in range(KINDS[kind][0])), kind=kind)


def admission(stage: Stage, node: str) -> Admission:
    found: Admission = stage.state.admission_of(node)
    return found


def rows(stage: Stage, node: str) -> list[a.EvidenceKept]:
    kept = (change for change in stage.changes if isinstance(change, a.EvidenceKept))
    return [change for change in kept if change.node == node]


def answer_probes(stage: Stage, node: str, for_ms: int, *others: str) -> None:
    """The node beats and answers every question about its inventory."""
    for _ in range(for_ms // 2_000):
        for command in stage.pass_time(2_000):
            if isinstance(command, k.AskInventory) and command.node == node:
                fields = {"node": node, "nonce": command.nonce, "held": (), "unsettled": ()}
                stage.post(e.InventoryArrived, **fields)
        stage.beat(node, *others)


@pytest.mark.parametrize("kind", SHELL_KINDS)
def test_enough_evidence_quarantines_and_the_row_says_why(kind: str) -> None:
    stage = Stage("a", "b")
    enough, words = KINDS[kind]
    see(stage, "a", *(f"m{i}" for i in range(enough - 1)), kind=kind)
    assert admission(stage, "a") is OPEN
    see(stage, "a", "last", kind=kind)
    assert admission(stage, "a") is QUARANTINED
    record = stage.state.admissions["a"]
    assert record.reason == f"{enough} {words}, the last: it said last"
    assert (record.by, record.until_ms) == ("imlmesh", stage.now_ms + limits.QUARANTINE_MS)
    assert [row.verdict for row in rows(stage, "a")] == ["counted"] * (enough - 1) + ["quarantined"]


@pytest.mark.parametrize("kind", SHELL_KINDS)
def test_the_same_sighting_counts_once_and_an_old_one_no_more(kind: str) -> None:
    stage = Stage("a", "b")
    see(stage, "a", *["again"] * 50, kind=kind)
    assert len(rows(stage, "a")) == 1
    for i in range(20):
        stage.live("a", "b", for_ms=limits.EVIDENCE_MS // (KINDS[kind][0] - 1) + 2_000)
        see(stage, "a", f"m{i}", kind=kind)
    assert admission(stage, "a") is OPEN


def test_kinds_do_not_add_up() -> None:
    stage = Stage("a", "b")
    for kind in SHELL_KINDS:
        see(stage, "a", *(f"m{i}" for i in range(KINDS[kind][0] - 1)), kind=kind)
    assert admission(stage, "a") is OPEN


def test_the_rows_of_one_node_are_few_whatever_it_does() -> None:
    stage = Stage("a", "b")
    convict(stage, "b")  # so that nobody else may be quarantined
    for i in range(500):
        see(stage, "a", f"m{i}")
    assert len(rows(stage, "a")) == limits.EVIDENCE_KEPT
    assert len(stage.state.sightings["a"].marks) < limits.EVIDENCE_MALFORMED


@pytest.mark.parametrize(("fleet", "most"), [(1, 1), (2, 1), (9, 1), (10, 2), (24, 4)])
def test_no_more_than_a_fifth_of_the_fleet_and_of_a_tiny_one_one(fleet: int, most: int) -> None:
    stage = Stage(*(f"n{i}" for i in range(fleet)))
    for i in range(fleet):
        convict(stage, f"n{i}")
    assert [admission(stage, f"n{i}") for i in range(fleet)].count(QUARANTINED) == most
    if fleet > most:
        alarm = rows(stage, f"n{most}")[-1]
        assert alarm.verdict == "alarm"
        assert f"{most} of {fleet} nodes are in quarantine already" in alarm.detail


def test_no_more_than_five_in_half_an_hour_even_when_they_were_released() -> None:
    fleet = [f"n{i}" for i in range(9)]
    stage = Stage(*fleet)
    for node in fleet[:7]:
        convict(stage, node)
        if admission(stage, node) is QUARANTINED:
            stage.post(e.AdmissionAsked, node=node, admission=OPEN, reason="fine", by="eve")
    verdicts = [rows(stage, node)[-1].verdict for node in fleet[:7]]
    assert verdicts == ["quarantined"] * 5 + ["alarm"] * 2
    stage.live(*fleet, for_ms=limits.QUARANTINES_MS + 2_000)
    convict(stage, fleet[8])
    assert admission(stage, fleet[8]) is QUARANTINED


def test_whom_people_quarantined_does_not_use_up_what_the_mesh_may() -> None:
    stage = Stage("a", "b", "d")
    for node in ("a", "b"):
        stage.post(e.AdmissionAsked, node=node, admission=QUARANTINED, reason="odd", by="eve")
    convict(stage, "d")
    assert admission(stage, "d") is QUARANTINED


def test_a_persons_quarantine_has_no_end_and_evidence_does_not_change_it() -> None:
    stage = Stage("a", "b")
    stage.post(e.AdmissionAsked, node="a", admission=QUARANTINED, reason="odd", by="eve")
    convict(stage, "a")
    stage.live("a", "b", for_ms=3 * limits.QUARANTINE_MS)
    assert (stage.state.admissions["a"].by, stage.state.admissions["a"].reason) == ("eve", "odd")


def test_when_its_time_is_over_it_answers_probes_and_is_released() -> None:
    stage = Stage("a", "b")
    convict(stage, "a")
    run = stage.submit(plan(action("one", target_node="a")))
    answer_probes(stage, "a", limits.QUARANTINE_MS, "b")
    assert admission(stage, "a") is QUARANTINED
    answer_probes(stage, "a", (limits.PROBES - 2) * limits.PROBE_EVERY_MS, "b")
    assert (admission(stage, "a"), stage.states(run)) == (QUARANTINED, {"one": "waiting"})
    answer_probes(stage, "a", 2 * limits.PROBE_EVERY_MS, "b")
    assert (admission(stage, "a"), stage.states(run)) == (OPEN, {"one": "running"})


@pytest.mark.parametrize("why", ["silent", "unanswered", "again"])
def test_who_does_not_hold_out_on_probation_stays_twice_as_long(why: str) -> None:
    stage = Stage("a", "b")
    convict(stage, "a")
    if why == "silent":
        stage.live("b", for_ms=limits.QUARANTINE_MS + 2_000)
    elif why == "unanswered":
        stage.live("a", "b", for_ms=limits.QUARANTINE_MS + limits.PROBE_EVERY_MS + 2_000)
    else:
        answer_probes(stage, "a", limits.QUARANTINE_MS + 2_000, "b")
        see(stage, "a", "once more")
    record = stage.state.admissions["a"]
    assert record.until_ms - record.changed_ms == 2 * limits.QUARANTINE_MS
    assert "(prolonged: " in record.reason
    answer_probes(stage, "a", 2 * limits.QUARANTINE_MS, "b")
    assert admission(stage, "a") is QUARANTINED
    answer_probes(stage, "a", 4 * limits.PROBE_EVERY_MS, "b")
    assert admission(stage, "a") is OPEN


def test_it_doubles_up_to_a_day_and_tells_one_reason() -> None:
    stage = Stage("a", "b")
    convict(stage, "a")
    spans = []
    for _ in range(9):
        record = stage.state.admissions["a"]
        spans.append(record.until_ms - record.changed_ms)
        stage.pass_time(spans[-1])
    assert spans[:3] == [limits.QUARANTINE_MS * each for each in (1, 2, 4)]
    assert spans[-1] == limits.QUARANTINE_LONGEST_MS
    assert stage.state.admissions["a"].reason.count("prolonged") == 1


def test_a_restart_forgets_neither_the_quarantine_nor_its_end() -> None:
    stage = Stage("a", "b")
    convict(stage, "a")
    again = Stage(history=stage.changes)
    assert again.state.admissions == stage.state.admissions
    assert list(again.state.quarantined_ms) == [stage.state.admissions["a"].changed_ms]
    again.birth("a", boot=2)
    again.birth("b", boot=2)
    answer_probes(again, "a", limits.QUARANTINE_MS + 5 * limits.PROBE_EVERY_MS, "b")
    assert admission(again, "a") is OPEN


def crash(stage: Stage, digest: str, node: str = "a", code: str = CRASHED) -> None:
    event = {"dice": 7, "plan": plan(action("one", do="send", target_node=node)), "by": "eve"}
    stage.post(e.PlanSubmitted, digest=digest, **event)
    run = list(stage.state.runs.values())[-1]
    stage.accept(run, "one")
    stage.end(run, "one", "failed" if code == CRASHED else "unknown", code=code)


def test_crashes_of_different_plans_in_a_row_speak_against_the_node() -> None:
    stage = Stage("a", "b")
    for i in range(limits.EVIDENCE_CRASHES):
        assert admission(stage, "a") is OPEN
        crash(stage, f"d{i}")
    assert admission(stage, "a") is QUARANTINED


def test_what_is_killed_for_another_accuses_nobody_and_clears_nobody() -> None:
    stage = Stage("a", "b")
    for i in range(3 * limits.EVIDENCE_CRASHES):
        crash(stage, f"along{i}", code=KILLED_ALONG)
    assert not stage.state.sightings
    for i in range(limits.EVIDENCE_CRASHES):
        assert admission(stage, "a") is OPEN
        crash(stage, f"d{i}", code=KILLED_ALONG)
        crash(stage, f"d{i}")
    assert admission(stage, "a") is QUARANTINED


def test_poison_quarantines_nobody() -> None:
    """One plan that crashes wherever it runs, again and again."""
    stage = Stage("a", "b", "d")
    for _ in range(10):
        for node in ("a", "b", "d"):
            crash(stage, "poison", node)
    assert not stage.state.admissions


def test_something_that_completes_clears_the_crashes() -> None:
    stage = Stage("a", "b")
    for i in range(3 * limits.EVIDENCE_CRASHES):
        crash(stage, f"d{i}")
        if i % (limits.EVIDENCE_CRASHES - 1) == 0:
            run = stage.submit(plan(action("one", target_node="a")))
            stage.end(run, "one")
    assert admission(stage, "a") is OPEN


def test_nobody_is_quarantined_for_a_failure_that_a_plan_is_to_blame_for() -> None:
    stage = Stage("a", "b")
    for i in range(3 * limits.EVIDENCE_CRASHES):
        run = stage.submit(plan(action("one", target_node="a")))
        stage.end(run, "one", "failed", code=("driver.failed", "policy.path")[i % 2])
    assert not stage.state.admissions
