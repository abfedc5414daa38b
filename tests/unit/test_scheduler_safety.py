"""What must never happen to an effect or a run: twice, after a cancel, without an end or a reason."""

from typing import Any

import pytest

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.admission_changes import EvidenceKept
from imlmesh_orchestrator.core.calls import Calls
from imlmesh_orchestrator.core.changes import ActionWaiting, ResultKept
from imlmesh_orchestrator.core.placing import loss_policy
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_orchestrator.core.state import ActionRecord
from imlmesh_orchestrator.views.nodes import live_dispatches
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import DispatchState, Effect
from scheduler_stage import Stage, action, plan


def inventory(stage: Stage, node: str, *held: str) -> list[k.Command]:
    nonce = stage.state.presence[node].asked
    return stage.post(e.InventoryArrived, node=node, nonce=nonce, held=held, unsettled=())


def late(dispatch: str) -> e.Result:
    return e.Result(dispatch, b"h", "completed", 1, "late")


def test_a_restart_does_not_repeat_once_work_that_waits_for_its_lost_node() -> None:
    before = Stage("pi")
    run = before.submit(
        plan(action("a", do="send", target_node="pi", on_node_loss="wait"), ttl_seconds=3_600)
    )
    before.accept(run, "a")
    dispatch = before.dispatch_of(run, "a").dispatch
    before.pass_time(10_000)
    assert before.liveness("pi") == "lost"
    after = Stage(history=before.changes)
    after.pass_time(60_000)
    after.birth("pi", session=2)
    assert not any(isinstance(each, k.SendDispatch) for each in inventory(after, "pi", dispatch))
    again = after.state.runs[run.run]
    after.end(again, "a")
    assert again.state == "completed"
    assert list(after.state.dispatches) == [dispatch]


def test_a_journal_that_lost_once_work_asks_although_the_plan_says_wait() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", do="send", on_node_loss="wait")))
    stage.accept(run, "a")
    stage.birth("pi", boot=2)
    inventory(stage, "pi")
    assert stage.states(run) == {"a": "unknown"}


def test_reroute_counts_only_for_what_may_be_repeated() -> None:
    wanted = plan(action("a", on_node_loss="reroute")).actions[0]
    one = ActionRecord("a", wanted, Calls().of(wanted), None, {}, False, ())
    assert loss_policy(one, Effect.PURE) == "reroute"
    assert loss_policy(one, Effect.ONCE) == "ask"


def test_a_lease_that_was_renewed_is_waited_for_again() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", lease_seconds=60)))
    stage.accept(run, "a")
    first = stage.dispatch_of(run, "a").node
    other = "pi-2" if first == "pi-1" else "pi-1"
    stage.live(other, for_ms=8_000)
    assert stage.liveness(first) == "lost"
    stage.live("pi-1", "pi-2", for_ms=50_000)
    heard_ms = stage.now_ms
    stage.live(other, for_ms=64_000)
    assert stage.dispatch_of(run, "a").node == first, "the entry of the first loss is void"
    stage.live(other, for_ms=heard_ms + 68_000 - stage.now_ms)
    assert stage.dispatch_of(run, "a").node == other


def test_cancelled_work_that_was_lost_on_its_way_is_not_sent_again() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b", "a")))
    stage.post(e.CancelAsked, run=run.run, by="eve")
    stage.pass_time(3_000)
    stage.beat("pi")
    commands = stage.pass_time(limits.ACCEPT_MS - 3_000)
    assert not any(isinstance(each, k.SendDispatch) for each in commands)
    assert any(isinstance(each, k.AskInventory) for each in commands)
    inventory(stage, "pi")
    assert (run.state, stage.states(run)["a"]) == ("cancelled", "cancelled")
    replayed = Scheduler({}, stage.changes).state
    assert replayed.runs == stage.state.runs


def test_a_cancel_that_got_lost_is_said_again_when_the_node_tells_what_it_holds() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a")))
    stage.accept(run, "a")
    dispatch = stage.dispatch_of(run, "a").dispatch
    stage.post(e.CancelAsked, run=run.run, by="eve")
    stage.birth("pi", session=2)
    assert k.SendCancel("pi", (dispatch,)) in inventory(stage, "pi", dispatch)
    stage.live("pi", for_ms=limits.CANCEL_MS)
    assert run.state == "cancelled"
    stage.birth("pi", session=3)
    assert k.SendCancel("pi", (dispatch,)) in inventory(stage, "pi", dispatch)


def test_a_node_lost_after_the_ttl_does_not_hold_the_run_for_ever() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", target_node="pi", timeout=3_600), ttl_seconds=10))
    stage.accept(run, "a")
    stage.live("pi", for_ms=12_000)
    assert (run.ended, stage.states(run)["a"]) == (False, "running")
    stage.pass_time(120_000)
    assert (run.state, run.actions["a"].fault.code) == ("failed", "node.lost")


def test_many_overdue_dispatches_are_one_question() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(*(action(f"a{n}", timeout=1) for n in range(20))))
    pairs = tuple((d.dispatch, d.hash) for d in stage.state.dispatches.values())
    stage.post(e.AcceptArrived, node="pi", dispatches=pairs, started=())
    stage.live("pi", for_ms=66_000)
    commands = stage.pass_time(2_000)
    assert sum(isinstance(each, k.AskInventory) for each in commands) == 1
    assert not run.ended


def test_every_run_says_what_it_waits_for() -> None:
    stage = Stage("pi")
    stage.pass_time(10_000)
    runs = [stage.submit(plan(action("a", target_node="pi"), action("b"))) for _ in range(3)]
    assert [stage.states(run) for run in runs] == [{"a": "waiting", "b": "waiting"}] * 3
    told = [each for each in stage.changes if isinstance(each, ActionWaiting)]
    assert [each.reasons for each in told] == [{"pi": "node.lost"}] * 6


def test_reasons_are_bounded() -> None:
    stage = Stage(*(f"n{number}" for number in range(limits.WAITING_REASONS + 5)))
    stage.pass_time(10_000)
    stage.submit(plan(action("a")))
    (told,) = [each for each in stage.changes if isinstance(each, ActionWaiting)]
    assert len(told.reasons) == limits.WAITING_REASONS


def test_the_reason_of_a_refusal_survives_a_restart() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a")))
    for _ in range(2):
        dispatch = stage.dispatch_of(run, "a")
        refusals = ((dispatch.dispatch, Fault("policy.path", "no")),)
        stage.post(e.RejectArrived, node=dispatch.node, refusals=refusals)
        assert Scheduler({}, stage.changes).state.runs == stage.state.runs
    assert run.actions["a"].fault == Fault("policy.path", "no")


@pytest.mark.parametrize("name", ["r-1-x/a/pi/²", f"r-1-x/a/pi/{'9' * 5_000}", "no", "r/a/pj/1"])
def test_a_result_that_cannot_be_the_node_s_own_is_reported_and_not_kept(name: str) -> None:
    stage = Stage("pi")
    commands = stage.post(e.ResultsArrived, node="pi", results=(late(name),))
    assert [type(each) for each in commands] == [k.ReportRefusal]
    assert not any(isinstance(each, ResultKept) for each in stage.changes)


def test_a_result_of_a_forgotten_run_is_evidence() -> None:
    stage = Stage("pi")
    commands: list[Any] = stage.post(e.ResultsArrived, node="pi", results=(late("r-9-x/a/pi/1"),))
    assert commands == [k.SendAck("pi", None, ("r-9-x/a/pi/1",))]
    (kept,) = [each for each in stage.changes if isinstance(each, ResultKept)]
    assert (kept.run, kept.result) == ("r-9-x", "late")


def test_a_result_of_a_forgotten_run_is_not_settled_before_its_node_is_here_again() -> None:
    """After a restart the node is known and has not introduced itself: its journal keeps the result."""
    stage = Stage("pi")
    stage.state.presence.clear()
    result = late("r-9-x/a/pi/1")
    assert stage.post(e.ResultsArrived, node="pi", results=(result,)) == []
    stage.birth("pi", session=2)
    told = stage.post(e.ResultsArrived, node="pi", results=(result,))
    assert told == [k.SendAck("pi", None, ("r-9-x/a/pi/1",))]
    assert [each.result for each in stage.changes if isinstance(each, ResultKept)] == ["late"]


def test_deadlines_of_what_has_ended_are_swept_out() -> None:
    stage = Stage("pi")
    heap = stage.scheduler._deadlines
    same = plan(action("a"))
    for _ in range(6_000):
        submitted = e.PlanSubmitted(stage.now_ms, "q", 7, same, "d", "eve")
        run = stage.scheduler.handle(submitted)[1][0].value
        dispatch = next(iter(stage.state.nodes["pi"].live))
        result = e.Result(dispatch, stage.state.dispatches[dispatch].hash, "completed", 1)
        stage.scheduler.handle(e.ResultsArrived(stage.now_ms, "r", "pi", (result,)))
        assert stage.state.runs[run].ended
    assert len(heap) < 10_000
    stage.pass_time(6_000)
    assert stage.liveness("pi") == "lost"


def test_a_node_that_invents_results_fills_no_store() -> None:
    stage = Stage("pi")
    before = len(stage.changes)
    for number in range(limits.EVIDENCE_PER_NODE + 5):
        commands = stage.post(
            e.ResultsArrived, node="pi", results=(late(f"r-{number}-xxxx/a/pi/1"),)
        )
        if number == limits.EVIDENCE_PER_NODE // 2:
            stage.birth("pi", session=2)
    kept = [c for c in stage.changes[before:] if isinstance(c, ResultKept)]
    assert len(kept) == limits.EVIDENCE_PER_NODE
    assert [type(one) for one in commands] == [k.ReportRefusal, k.SendAck]


@pytest.mark.parametrize("whose", ["unknown", "older", "foreign", "of other bytes"])
def test_a_lease_or_result_of_no_attempt_of_ours_changes_nothing_and_is_told(whose: str) -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", do="send", target_node="pi-1", on_node_loss="ask")))
    dispatch = stage.dispatch_of(run, "a")
    node, name, digest = "pi-1", dispatch.dispatch, dispatch.hash
    if whose == "unknown":
        name = "r-77-none/a/pi-1/1"
    elif whose == "older":
        # given up and asked about, then done again by a person's word: the first attempt is over
        stage.accept(run, "a")
        stage.pass_time(10_000)
        stage.birth("pi-1", boot=2)
        inventory(stage, "pi-1")
        stage.answer("rerun")
        assert stage.dispatch_of(run, "a").dispatch != name
    elif whose == "foreign":
        node = "pi-2"
    else:
        digest = b"other"
    before = [(d.dispatch, d.state, d.started_ms) for d in stage.state.dispatches.values()]
    states = stage.states(run)
    told = stage.post(e.AcceptArrived, node=node, dispatches=((name, digest),), started=(name,))
    result = e.Result(name, digest, "completed", 1, "bad")
    told += stage.post(e.ResultsArrived, node=node, results=(result,))
    assert [(d.dispatch, d.state, d.started_ms) for d in stage.state.dispatches.values()] == before
    assert stage.states(run) == states
    kept = [each for each in stage.changes if isinstance(each, ResultKept)]
    reported = [each for each in told if isinstance(each, k.ReportRefusal)]
    rows = [each for each in stage.changes if isinstance(each, EvidenceKept)]
    # a result of its own work is kept as such; a lease, and what is another's or false, is refused, shown and kept
    assert [each.result for each in kept] == (["bad"] if whose in ("unknown", "older") else [])
    assert len(reported) == {"unknown": 1, "older": 1}.get(whose, 2)
    assert [(row.node, row.evidence, row.verdict) for row in rows] == [(node, "foreign", "kept")]
    assert [each for each in told if isinstance(each, k.SendCancel)] == (
        [k.SendCancel(node, (name,))] if whose == "older" else []
    )
    # again it is no news
    stage.post(e.AcceptArrived, node=node, dispatches=((name, digest),), started=(name,))
    assert [each for each in stage.changes if isinstance(each, EvidenceKept)] == rows


def test_a_beat_that_claims_the_work_of_another_node_changes_nothing_and_is_kept() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", do="send", target_node="pi-1")))
    dispatch = stage.dispatch_of(run, "a")
    for _ in range(3):
        told = stage.beat("pi-2", held=(dispatch.dispatch,))
    assert dispatch.state is DispatchState.PLANNED
    assert stage.dispatch_of(run, "a").node == "pi-1"
    rows = [each for each in stage.changes if isinstance(each, EvidenceKept)]
    assert [(row.node, row.evidence, row.verdict) for row in rows] == [("pi-2", "foreign", "kept")]
    assert [type(each) for each in told] == [k.SendAck, k.ReportRefusal]
    assert live_dispatches(stage.state, stage.state.nodes["pi-2"]) == 0


def test_what_was_given_up_counts_as_long_as_its_node_says_that_it_holds_it() -> None:
    """So a drain waits for it: the driver works on."""
    stage = Stage("pi")
    run = stage.submit(plan(action("a", do="send", target_node="pi")))
    stage.accept(run, "a")
    dispatch = stage.dispatch_of(run, "a").dispatch
    stage.pass_time(10_000)
    assert stage.dispatch_of(run, "a").state is DispatchState.UNKNOWN
    known = stage.state.nodes["pi"]
    assert live_dispatches(stage.state, known) == 0, "nobody knows of a lost node"
    stage.beat("pi", held=(dispatch,))
    stage.beat("pi", held=(dispatch,))
    assert live_dispatches(stage.state, known) == 1
    stage.end(run, "a")
    assert live_dispatches(stage.state, known) == 0
