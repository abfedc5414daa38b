"""Nodes that fall silent, come back, restart or leave, and what that means for their work."""

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import ApprovalClosed, DispatchEnded, LivenessChanged
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from scheduler_stage import LOST_MS, Stage, action, plan


def inventory(
    stage: Stage, node: str, held: tuple[str, ...], unsettled: tuple[str, ...] = ()
) -> list[k.Command]:
    nonce = stage.state.presence[node].asked
    return stage.post(e.InventoryArrived, node=node, nonce=nonce, held=held, unsettled=unsettled)


def test_a_heartbeat_is_answered_with_its_number() -> None:
    stage = Stage("pi")
    assert stage.beat("pi") == [k.SendAck("pi", 1, ())]


def test_a_heartbeat_of_an_unknown_session_is_not_answered() -> None:
    stage = Stage("pi")
    stage.state.nodes["pi"].session = 9
    stage.birth("pi", session=2)
    commands = stage.post(
        e.HeartbeatArrived, node="pi", boot=1, session=1, beat=4, held=(), health={}
    )
    assert commands == [k.AskRebirth("pi")]


def test_silence_makes_suspect_then_lost() -> None:
    stage = Stage("pi")
    stage.pass_time(3_999)
    assert stage.liveness("pi") == "online"
    stage.pass_time(1)
    assert stage.liveness("pi") == "suspect"
    stage.pass_time(2_000)
    assert stage.liveness("pi") == "lost"


def test_a_will_makes_suspect_at_once_and_never_lost() -> None:
    stage = Stage("pi")
    stage.post(e.NodeGone, node="pi", boot=1, session=1)
    assert stage.liveness("pi") == "suspect"
    stage.pass_time(5_999)
    assert stage.liveness("pi") == "suspect"
    stage.pass_time(1)
    assert stage.liveness("pi") == "lost"


def test_a_will_of_an_old_session_says_nothing() -> None:
    stage = Stage("pi")
    stage.birth("pi", session=2)
    stage.post(e.NodeGone, node="pi", boot=1, session=1)
    assert stage.liveness("pi") == "online"


def test_beating_nodes_stay_online() -> None:
    stage = Stage("pi")
    stage.live("pi", for_ms=60_000)
    assert stage.liveness("pi") == "online"


def test_a_suspect_node_gets_nothing_new() -> None:
    stage = Stage("pi-1", "pi-2")
    stage.post(e.NodeGone, node="pi-1", boot=1, session=1)
    run = stage.submit(plan(*(action(f"a{i}") for i in range(4))))
    assert {stage.dispatch_of(run, name).node for name in run.actions} == {"pi-2"}


def test_pure_work_of_a_lost_node_moves_after_the_lease() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a")))
    first = stage.dispatch_of(run, "a")
    other = "pi-2" if first.node == "pi-1" else "pi-1"
    stage.accept(run, "a")
    stage.live(other, for_ms=6_000)
    assert stage.liveness(first.node) == "lost"
    assert stage.dispatch_of(run, "a") is first
    stage.pass_time(600)
    assert first.state == "superseded"
    assert stage.dispatch_of(run, "a").node == other
    stage.end(run, "a")
    assert run.state == "completed"


def test_work_moves_although_a_lost_node_spoke_once_more() -> None:
    """Its lease then counts from that beat; nobody may forget to look when it is over."""
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", do="write")))
    stage.accept(run, "a")
    node = stage.dispatch_of(run, "a").node
    other = "pi-2" if node == "pi-1" else "pi-1"
    stage.live(other, for_ms=LOST_MS)
    assert stage.liveness(node) == "lost"
    stage.beat(node)
    stage.live(other, for_ms=LOST_MS)
    assert stage.dispatch_of(run, "a").node == node
    stage.live(other, for_ms=LOST_MS)
    assert stage.dispatch_of(run, "a").node == other


def test_a_beat_that_holds_what_was_moved_is_told_to_stop() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a")))
    stage.accept(run, "a")
    first = stage.dispatch_of(run, "a")
    other = "pi-2" if first.node == "pi-1" else "pi-1"
    stage.live(other, for_ms=3 * LOST_MS)
    assert stage.dispatch_of(run, "a").node == other
    told = stage.beat(first.node, held=(first.dispatch,))
    assert k.SendCancel(first.node, (first.dispatch,)) in told


def test_a_node_that_returns_before_the_lease_ends_keeps_its_work() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", target_group=None)))
    first = stage.dispatch_of(run, "a")
    other = "pi-2" if first.node == "pi-1" else "pi-1"
    stage.accept(run, "a")
    stage.live(other, for_ms=6_000)
    stage.beat(first.node, held=(first.dispatch,))
    inventory(stage, first.node, (first.dispatch,))
    stage.live("pi-1", "pi-2", for_ms=6_000)
    assert stage.dispatch_of(run, "a") is first


def test_work_with_a_target_node_waits_for_it() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", target_node="pi-1")))
    stage.accept(run, "a")
    stage.live("pi-2", for_ms=20_000)
    assert stage.states(run) == {"a": "running"}
    assert stage.dispatch_of(run, "a").node == "pi-1"
    stage.beat("pi-1", held=(stage.dispatch_of(run, "a").dispatch,))
    stage.end(run, "a")
    assert run.state == "completed"


def test_waiting_for_a_lost_node_ends_at_the_ttl() -> None:
    stage = Stage("pi-1")
    run = stage.submit(plan(action("a", target_node="pi-1"), ttl_seconds=60))
    stage.accept(run, "a")
    stage.pass_time(60_000)
    assert run.state == "failed"
    fault = run.actions["a"].fault
    assert fault is not None
    assert fault.code == "node.lost"


def test_on_node_loss_fail_fails_the_action() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", on_node_loss="fail", target_node="pi-1")))
    stage.live("pi-2", for_ms=6_000)
    assert stage.states(run) == {"a": "failed"}


def lose_once_work() -> tuple[Stage, object]:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", do="send", target_node="pi-1"), action("b", "a")))
    stage.accept(run, "a")
    stage.live("pi-2", for_ms=6_000)
    return stage, run


def test_once_work_of_a_lost_node_asks_a_person() -> None:
    stage, run = lose_once_work()
    assert stage.states(run)["a"] == "unknown"  # type: ignore[arg-type]
    assert stage.state.approvals[stage.question()].options == ("rerun", "done", "fail")
    assert run.state == "running"  # type: ignore[attr-defined]


def test_the_answer_done_lets_the_run_go_on() -> None:
    stage, run = lose_once_work()
    stage.post(e.AnswerGiven, approval=stage.question(), option="done", by="eve")
    assert stage.states(run) == {"a": "completed", "b": "running"}  # type: ignore[arg-type]


def test_the_answer_rerun_waits_for_its_node_and_runs_again() -> None:
    stage, run = lose_once_work()
    first = stage.dispatch_of(run, "a")  # type: ignore[arg-type]
    stage.post(e.AnswerGiven, approval=stage.question(), option="rerun", by="eve")
    assert first.state == "superseded"
    ended = [change for change in stage.changes if isinstance(change, DispatchEnded)]
    assert ended[-1].fault is not None
    assert ended[-1].fault.code == "action.rerun_by_person"
    assert stage.states(run)["a"] == "waiting"  # type: ignore[arg-type]
    stage.birth("pi-1", boot=2)
    assert stage.dispatch_of(run, "a").dispatch.endswith("/2")  # type: ignore[arg-type]


def test_the_answer_fail_fails_the_action() -> None:
    stage, run = lose_once_work()
    stage.post(e.AnswerGiven, approval=stage.question(), option="fail", by="eve")
    assert stage.states(run) == {"a": "failed", "b": "skipped"}  # type: ignore[arg-type]
    assert run.state == "failed"  # type: ignore[attr-defined]


def test_nobody_answers_and_the_action_fails() -> None:
    stage, run = lose_once_work()
    stage.live("pi-2", for_ms=60 * 60_000)
    assert run.state == "failed"  # type: ignore[attr-defined]
    closed = next(change for change in stage.changes if isinstance(change, ApprovalClosed))
    assert (closed.state, closed.option) == ("expired", "fail")


def test_the_second_answer_is_refused() -> None:
    stage, _ = lose_once_work()
    question = stage.question()
    stage.post(e.AnswerGiven, approval=question, option="done", by="eve")
    (refusal,) = stage.post(e.AnswerGiven, approval=question, option="fail", by="bob")
    assert isinstance(refusal, k.Refuse)
    assert refusal.fault.code == "approval.closed"


def test_an_option_that_was_not_offered_is_refused() -> None:
    stage, _ = lose_once_work()
    (refusal,) = stage.post(e.AnswerGiven, approval=stage.question(), option="maybe", by="eve")
    assert isinstance(refusal, k.Refuse)
    assert refusal.fault.code == "approval.option"


def test_a_late_true_result_answers_the_question() -> None:
    stage, run = lose_once_work()
    stage.end(run, "a")  # type: ignore[arg-type]
    assert stage.states(run) == {"a": "completed", "b": "running"}  # type: ignore[arg-type]
    closed = next(change for change in stage.changes if isinstance(change, ApprovalClosed))
    assert closed.state == "superseded"
    assert stage.state.approvals == {}


def test_a_late_result_after_the_answer_is_only_evidence() -> None:
    stage, run = lose_once_work()
    dispatch = stage.dispatch_of(run, "a")  # type: ignore[arg-type]
    stage.post(e.AnswerGiven, approval=stage.question(), option="done", by="eve")
    stage.report(dispatch, "failed")
    assert stage.states(run)["a"] == "completed"  # type: ignore[arg-type]
    assert type(stage.changes[-1]).__name__ == "ResultKept"


def test_a_node_that_does_not_know_makes_the_action_unknown() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", do="send")))
    stage.accept(run, "a")
    stage.birth("pi", boot=2)
    stage.end(run, "a", "unknown", code="node.interrupted")
    assert stage.states(run) == {"a": "unknown"}
    assert stage.question() == "a-1"


def test_interrupted_pure_work_is_placed_again() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", do="write")))
    stage.accept(run, "a")
    stage.birth("pi", boot=2)
    stage.end(run, "a", "failed", code="node.interrupted")
    assert stage.dispatch_of(run, "a").dispatch.endswith("/2")


def test_the_same_bytes_go_out_again_until_accepted() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a")))
    dispatch = stage.dispatch_of(run, "a")
    again = k.SendDispatch("pi", dispatch.dispatch, dispatch.bin)
    stage.beat("pi")
    commands = stage.pass_time(3_999)
    assert again not in commands
    stage.beat("pi")
    assert again in stage.pass_time(1_001)
    stage.accept(run, "a")
    stage.beat("pi")
    assert again not in stage.pass_time(5_999)


def test_what_never_arrived_is_sent_again_after_the_inventory() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", do="send")))
    dispatch = stage.dispatch_of(run, "a")
    stage.birth("pi", session=2)
    commands = inventory(stage, "pi", ())
    assert k.SendDispatch("pi", dispatch.dispatch, dispatch.bin) in commands


def test_a_journal_that_lost_a_once_dispatch_makes_it_unknown() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", do="send")))
    stage.accept(run, "a")
    stage.birth("pi", boot=2)
    inventory(stage, "pi", ())
    assert stage.states(run) == {"a": "unknown"}


def test_a_journal_that_lost_a_pure_dispatch_gets_it_again() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a")))
    stage.accept(run, "a")
    stage.birth("pi", boot=2)
    inventory(stage, "pi", ())
    assert stage.dispatch_of(run, "a").dispatch.endswith("/2")


def test_work_that_was_moved_is_cancelled_on_the_node_that_returns() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a")))
    first = stage.dispatch_of(run, "a")
    other = "pi-2" if first.node == "pi-1" else "pi-1"
    stage.accept(run, "a")
    stage.live(other, for_ms=8_000)
    stage.beat(first.node, held=(first.dispatch,))
    commands = inventory(stage, first.node, (first.dispatch,))
    assert k.SendCancel(first.node, (first.dispatch,)) in commands


def test_a_goodbye_moves_pure_work_at_once_and_asks_for_once_work() -> None:
    stage = Stage("pi-1")
    run = stage.submit(plan(action("a"), action("b", do="send")))
    stage.birth("pi-2")
    stage.post(e.NodeLeft, node="pi-1", boot=1, session=1)
    assert stage.liveness("pi-1") == "offline"
    assert stage.dispatch_of(run, "a").node == "pi-2"
    assert stage.states(run)["b"] == "unknown"


def test_no_verdict_while_our_own_connection_is_down() -> None:
    stage = Stage("pi")
    stage.post(e.BusClosed)
    stage.pass_time(60_000)
    assert stage.liveness("pi") == "online"
    stage.post(e.BusOpened)
    # so long it may wait before it looks for the broker again
    stage.pass_time(limits.RETURN_MS)
    assert stage.liveness("pi") == "online"
    stage.pass_time(5_999)
    assert stage.liveness("pi") == "suspect"
    stage.pass_time(1)
    assert stage.liveness("pi") == "lost"


def test_a_restart_goes_on_where_the_store_stopped() -> None:
    before = Stage("pi")
    run = before.submit(plan(action("a"), action("b", "a"), action("c", "b")))
    before.end(run, "a")
    before.accept(run, "b")
    after = Stage(history=before.changes)
    again = after.state.runs[run.run]
    assert after.states(again) == {"a": "completed", "b": "running", "c": "pending"}
    after.birth("pi", session=2)
    inventory(after, "pi", (after.dispatch_of(again, "b").dispatch,))
    after.end(again, "b")
    after.end(again, "c")
    assert again.state == "completed"
    assert sum(d.action == "a" for d in after.state.dispatches.values()) == 1


def test_a_restart_finds_ready_actions_that_were_not_placed() -> None:
    before = Stage()
    run = before.submit(plan(action("a")))
    after = Stage(history=before.changes)
    after.birth("pi")
    assert after.states(after.state.runs[run.run]) == {"a": "running"}


def test_a_restart_while_the_node_is_gone_still_moves_its_work() -> None:
    before = Stage("pi-1")
    run = before.submit(plan(action("a")))
    before.accept(run, "a")
    after = Stage(history=before.changes)
    after.birth("pi-2")
    after.live("pi-2", for_ms=10_000 + limits.RETURN_MS)
    assert after.liveness("pi-1") == "lost"
    assert after.dispatch_of(after.state.runs[run.run], "a").node == "pi-2"


def test_replay_of_the_changes_gives_the_same_state() -> None:
    stage, _ = lose_once_work()
    replayed = Scheduler({}, stage.changes).state
    for name in ("nodes", "groups", "runs", "dispatches", "approvals", "epoch", "active"):
        assert getattr(replayed, name) == getattr(stage.state, name)


def test_liveness_changes_carry_their_reason() -> None:
    stage = Stage("pi")
    stage.pass_time(6_000)
    reasons = [c.reason for c in stage.changes if isinstance(c, LivenessChanged)]
    assert reasons == ["birth", "silent for 4000 ms", "silent too long"]


def test_a_full_node_is_left_alone_until_it_beats() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a")))
    dispatch = stage.dispatch_of(run, "a")
    refusals = ((dispatch.dispatch, Fault("node.full", "256 held")),)
    stage.post(e.RejectArrived, node="pi", refusals=refusals)
    assert stage.states(run) == {"a": "waiting"}
    stage.beat("pi")
    assert stage.states(run) == {"a": "running"}


def test_a_birth_that_says_nothing_new_is_not_described_again() -> None:
    stage = Stage("pi")
    stage.birth("pi", session=2)
    stage.birth("pi", boot=2, session=1, os="linux")
    kinds = [type(c).__name__ for c in stage.changes if getattr(c, "node", "") == "pi"]
    assert kinds == ["NodeDescribed", "LivenessChanged", "NodeReturned", "NodeDescribed"]
    assert (stage.state.nodes["pi"].boot, stage.state.nodes["pi"].session) == (2, 1)


def test_an_inventory_that_was_lost_on_its_way_is_asked_for_again() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", target_node="pi")))
    dispatch = stage.dispatch_of(run, "a")
    stage.pass_time(8_000)
    assert stage.liveness("pi") == "lost"
    stage.birth("pi", boot=2)
    stage.live("pi", for_ms=4_000)
    stage.pass_time(1_000)
    assert isinstance(stage.commands[-1], k.AskInventory)
    assert k.SendDispatch("pi", dispatch.dispatch, dispatch.bin) in inventory(stage, "pi", ())


def test_a_node_whose_leases_end_at_once_gets_nothing_before_its_next_beat() -> None:
    """It knows of no answered beat: without that, work would go to and fro as fast as messages do."""
    stage = Stage("pi")
    run = stage.submit(plan(action("a")))
    stage.accept(run, "a")
    stage.end(run, "a", "failed", code="action.lease_lost")
    assert stage.record(run, "a").attempt == 1
    assert stage.states(run) == {"a": "waiting"}
    stage.beat("pi")
    assert stage.record(run, "a").attempt == 2
