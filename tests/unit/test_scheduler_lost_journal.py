"""A node whose journal is lost: what it held is lost or unknown at once, by effect; a person hears of it."""

import pytest

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import NodeDescribed, NodeEscalated
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from scheduler_stage import Stage, action, plan

LOST = Fault("journal.lost", "set aside")


def returned(stage: Stage, boot: int, since: int) -> list[k.Command]:
    first = len(stage.commands)
    stage.birth("pi", boot=boot, journal_since=since)
    return stage.commands[first:]


@pytest.mark.parametrize("accepted", [True, False])
def test_by_effect_at_once_whether_or_not_an_accept_was_heard(accepted: bool) -> None:
    stage = Stage("pi", "pi-2")
    run = stage.submit(
        plan(
            action("once", do="send", target_node="pi"),
            action("phys", do="push", params={"pin": 1}, target_node="pi"),
            action("again", do="write", target_node="pi"),
        )
    )
    if accepted:
        for name in ("once", "phys", "again"):
            stage.accept(run, name)
    returned(stage, boot=5, since=5)
    assert stage.states(run)["once"] == stage.states(run)["phys"] == "unknown"
    kinds = {approval.kind for approval in stage.state.approvals.values()}
    assert (kinds, len(stage.state.approvals)) == ({"lost_effect"}, 2)
    # what may be repeated is, without anybody's word
    assert stage.dispatch_of(run, "again").dispatch.endswith("/2")
    sent = [c.dispatch for c in stage.commands if isinstance(c, k.SendDispatch)]
    assert sum(name.startswith(f"{run.run}/once/") for name in sent) == 1


def test_a_birth_of_the_same_journal_loses_nothing() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", do="send")))
    stage.accept(run, "a")
    returned(stage, boot=5, since=1)
    assert stage.states(run) == {"a": "running"}
    # nor does the journal that is new, told again
    returned(stage, boot=6, since=6)
    stage.answer("rerun")
    stage.accept(run, "a")
    stage.birth("pi", boot=6, session=2, journal_since=6)
    stage.birth("pi", boot=7, journal_since=6)
    assert stage.states(run) == {"a": "running"}


def test_a_restart_of_the_orchestrator_knows_which_journal_it_was() -> None:
    """Only the last description of a node is read again, so such a birth is one."""
    stage = Stage("pi")
    returned(stage, boot=5, since=5)
    described = [c for c in stage.changes if isinstance(c, NodeDescribed)]
    assert [c.boot for c in described] == [1, 5]


def escalate(stage: Stage, fault: Fault = LOST) -> list[k.Command]:
    return stage.post(e.EscalationArrived, node="pi", fault=fault)


def test_a_call_for_a_person_is_kept_once() -> None:
    stage = Stage("pi")
    escalate(stage)
    escalate(stage)
    calls = [c for c in stage.changes if isinstance(c, NodeEscalated)]
    assert [c.fault for c in calls] == [LOST]
    record = stage.replayed().nodes["pi"]
    assert (record.escalation, record.escalated_ms) == (LOST, stage.now_ms)
    stage.pass_time(limits.ESCALATED_MS)
    escalate(stage)
    assert len([c for c in stage.changes if isinstance(c, NodeEscalated)]) == 2


def test_a_node_that_calls_all_the_time_is_refused() -> None:
    stage = Stage("pi")
    escalate(stage)
    (refused,) = escalate(stage, Fault("journal.full", "and another"))
    assert isinstance(refused, k.ReportRefusal)
    assert refused.fault.code == "escalate.rate"
    stage.pass_time(limits.ESCALATE_MS)
    escalate(stage, Fault("journal.full", "and another"))
    assert stage.state.nodes["pi"].escalation.code == "journal.full"


def test_a_stranger_is_asked_to_introduce_itself() -> None:
    assert escalate(Stage()) == [k.AskRebirth("pi")]
