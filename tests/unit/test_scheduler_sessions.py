"""Memory, nonce, not_before, pause, priority and retry of whole runs."""

from typing import Any

import pytest

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.events import Retried
from imlmesh_protocol import limits
from scheduler_stage import Stage, action, plan, refusals


def test_a_result_is_written_to_memory_and_read_by_a_later_run_of_the_session() -> None:
    stage = Stage("pi")
    first = stage.submit(plan(action("a", memory={"write_key": "k"}), session_id="s"))
    stage.end(first, "a", result={"t": 21})
    reader = action("a", params={"t": "{{memory.k.t}}"}, memory={"read_keys": ["k"]})
    same = stage.submit(plan(reader, session_id="s"))
    assert stage.sent(same, "a").params == {"t": 21}
    other = stage.submit(plan(reader, session_id="t"))
    assert (other.state, other.actions["a"].fault.code) == ("failed", "memory.not_found")


def test_an_all_action_writes_what_each_node_said() -> None:
    stage = Stage("pi-1", "pi-2")
    what = action("a", target_mode="all", memory={"write_key": "k"})
    run = stage.submit(plan(what))
    for node in ("pi-1", "pi-2"):
        stage.end(run, f"a@{node}", result=node)
    assert stage.state.memory == {("default", "k"): {"pi-1": "pi-1", "pi-2": "pi-2"}}


def test_a_failed_action_writes_nothing() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", memory={"write_key": "k"}, on_error="continue")))
    stage.end(run, "a", "failed")
    assert stage.state.memory == {}


def test_memory_is_bounded_and_the_oldest_written_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MEMORY_KEYS", 2)
    stage = Stage()
    for key in ("a", "b", "a", "c"):
        stage.post(e.MemorySet, session="s", key=key, value=key, by="eve")
    assert list(stage.state.memory) == [("s", "a"), ("s", "c")]
    assert stage.replayed().memory == stage.state.memory
    assert stage.replayed().memory_bytes == stage.state.memory_bytes


def test_a_person_deletes_a_value_once() -> None:
    stage = Stage()
    stage.post(e.MemorySet, session="s", key="k", value=1, by="eve")
    assert refusals(stage.post(e.MemoryDeleteAsked, session="s", key="k", by="eve")) == []
    again = stage.post(e.MemoryDeleteAsked, session="s", key="k", by="eve")
    assert refusals(again) == ["memory.not_found"]


def test_the_same_nonce_and_plan_are_the_same_run_another_plan_is_refused() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), nonce="n"))
    assert stage.submit(plan(action("a"), nonce="n")) is run
    more: dict[str, Any] = {"dice": 9, "digest": "other", "by": "eve"}
    commands = stage.post(e.PlanSubmitted, plan=plan(action("b"), nonce="n"), **more)
    assert refusals(commands) == ["plan.nonce_reused"]
    assert len(stage.state.runs) == 1
    assert stage.replayed().nonces == stage.state.nonces


def test_nothing_starts_before_not_before() -> None:
    stage = Stage("pi")
    start_ms = stage.now_ms + 10_000
    run = stage.submit(plan(action("a"), ttl_seconds=60), starts_at_ms=start_ms)
    assert run.expires_at_ms == start_ms + 60_000
    stage.live("pi", for_ms=8_000)
    assert (run.state, stage.states(run)["a"]) == ("pending", "pending")
    stage.live("pi", for_ms=4_000)
    assert stage.states(run)["a"] == "running"


def test_a_paused_run_starts_nothing_new_and_goes_on_when_resumed() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b", "a"), action("c", requires_approval=True)))
    stage.post(e.PauseAsked, run=run.run, by="eve")
    stage.end(run, "a")
    assert (run.state, stage.states(run)["b"]) == ("paused", "pending")
    stage.answer("approve")
    assert stage.states(run)["c"] == "waiting"
    stage.post(e.ResumeAsked, run=run.run, by="eve")
    assert (run.state, stage.running(run)) == ("running", ["b", "c"])


def test_a_paused_run_with_nothing_left_ends() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a")))
    stage.post(e.PauseAsked, run=run.run, by="eve")
    stage.end(run, "a")
    assert run.state == "completed"


def test_a_pause_holds_retries_too() -> None:
    stage = Stage("pi")
    retry = {"delay_seconds": 1.0, "retry_on": []}
    run = stage.submit(plan(action("a", on_error="retry", retry=retry)))
    stage.post(e.PauseAsked, run=run.run, by="eve")
    stage.end(run, "a", "failed")
    stage.live("pi", for_ms=4_000)
    assert stage.states(run)["a"] == "waiting"
    stage.post(e.ResumeAsked, run=run.run, by="eve")
    assert stage.states(run)["a"] == "running"


def test_pause_and_resume_survive_a_restart() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b", "a")))
    stage.post(e.PauseAsked, run=run.run, by="eve")
    stage.end(run, "a")
    again = Stage(history=stage.changes)
    again.birth("pi")
    found = again.state.runs[run.run]
    assert (found.state, again.running(found)) == ("paused", [])
    again.post(e.ResumeAsked, run=run.run, by="eve")
    assert again.running(found) == ["b"]


@pytest.mark.parametrize(("ask", "code"), [(e.ResumeAsked, "run.not_paused")])
def test_only_a_paused_run_can_be_resumed(ask: Any, code: str) -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a")))
    assert refusals(stage.post(ask, run=run.run, by="eve")) == [code]


def test_runs_that_wait_for_the_same_node_take_turns() -> None:
    stage = Stage("pi")
    wide = plan(*(action(f"a{n}") for n in range(limits.NODE_WINDOW + 50)))
    first = stage.submit(wide)
    second = stage.submit(plan(*(action(f"b{n}") for n in range(10))))
    assert len(stage.running(first)) == limits.NODE_WINDOW
    for name in stage.running(first)[:20]:
        stage.end(first, name)
    assert len(stage.running(second)) >= 9


def test_a_higher_priority_gets_the_larger_share_and_starves_nobody() -> None:
    stage = Stage("pi")
    full = stage.submit(plan(*(action(f"f{n}") for n in range(limits.NODE_WINDOW))))
    low = stage.submit(plan(*(action(f"a{n}") for n in range(40))), priority=0)
    high = stage.submit(plan(*(action(f"b{n}") for n in range(40))), priority=4)
    for name in stage.running(full)[:20]:
        stage.end(full, name)
    assert len(stage.running(high)) == pytest.approx(16, abs=1)
    assert len(stage.running(low)) == pytest.approx(4, abs=1)


def test_a_retry_keeps_what_completed_and_asks_before_it_repeats_an_effect() -> None:
    stage = Stage("pi")
    what = plan(action("a"), action("x", "a", do="send", params={"v": "{{result.a.v}}"}))
    again = {"x": "on pi in r-1-aaaa"}
    retried = Retried("r-1-aaaa", {"a": [["pi"], {"v": 7}]}, again, ())
    run = stage.submit(what, retried=retried)
    assert stage.states(run) == {"a": "completed", "x": "awaiting_approval"}
    stage.answer("approve")
    assert stage.sent(run, "x").params == {"v": 7}
    stage.end(run, "x")
    assert run.state == "completed"
    assert stage.replayed().runs == stage.state.runs


def test_a_retry_leaves_alone_what_nobody_wants_again() -> None:
    stage = Stage("pi")
    what = plan(action("a", on_error="skip"), action("side"), action("below", "side"))
    run = stage.submit(what, retried=Retried("r-1-aaaa", {}, {}, ("side",)))
    assert stage.states(run) == {"a": "running", "side": "skipped", "below": "skipped"}
    stage.end(run, "a")
    assert run.state == "completed"


def test_claims_and_on_busy_of_the_plan_travel_with_the_dispatch() -> None:
    stage = Stage("pi")
    what = action("a", do="push", params={"pin": 4}, claims=["bus:1"], on_busy="fail")
    run = stage.submit(plan(what))
    sent = stage.sent(run, "a")
    assert (sent.claims, sent.on_busy) == (("pin:4", "bus:1"), "fail")
