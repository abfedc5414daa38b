"""on_error retry: what is tried again, when, and how often."""

import pytest

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import RetryPlanned
from imlmesh_protocol.errors import Fault
from scheduler_stage import Stage, action, plan

SOON = {"max_attempts": 3, "delay_seconds": 1.0, "backoff_factor": 2.0, "retry_on": []}


def delays(stage: Stage) -> list[int]:
    found = [c for c in stage.changes if isinstance(c, RetryPlanned)]
    return [change.retry_at_ms - change.at_ms for change in found]


def test_retry_tries_again_with_backoff_and_jitter_until_its_last_attempt() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", on_error="retry", retry=SOON), action("b", "a")))
    for seconds in (1, 2):
        stage.end(run, "a", "failed")
        assert stage.states(run)["a"] == "waiting"
        stage.live("pi", for_ms=2 * seconds * 1_000)
        assert stage.states(run)["a"] == "running"
    stage.end(run, "a", "failed")
    assert (run.state, stage.states(run)) == ("failed", {"a": "failed", "b": "skipped"})
    first, second = delays(stage)
    assert 750 <= first < 1_250
    assert 1_500 <= second < 2_500
    assert run.actions["a"].attempt == 3


def test_a_retried_action_that_completes_lets_the_run_go_on() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", on_error="retry", retry=SOON), action("b", "a")))
    stage.end(run, "a", "failed")
    stage.live("pi", for_ms=2_000)
    stage.end(run, "a")
    stage.end(run, "b")
    assert run.state == "completed"


@pytest.mark.parametrize(
    ("code", "again"),
    [("driver.timeout", True), ("action.lease_lost", True), ("driver.failed", False)],
)
def test_retry_without_an_object_means_timeouts_and_lost_connections(
    code: str, again: bool
) -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", on_error="retry", on_node_loss="fail")))
    stage.end(run, "a", "timed_out" if code == "driver.timeout" else "failed", code=code)
    assert stage.states(run)["a"] == ("waiting" if again else "failed")


@pytest.mark.parametrize(
    ("names", "again"), [(["RuntimeError"], True), (["Exception"], True), (["OSError"], False)]
)
def test_retry_on_names_the_builtin_class_of_a_code_or_one_of_its_bases(
    names: list[str], again: bool
) -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", on_error="retry", retry={**SOON, "retry_on": names})))
    stage.end(run, "a", "failed", code="driver.failed")
    assert stage.states(run)["a"] == ("waiting" if again else "failed")


def test_a_once_action_is_retried_only_where_the_plan_writes_retry() -> None:
    stage = Stage("pi")
    silent = stage.submit(plan(action("a", do="send", on_error="retry")))
    stage.end(silent, "a", "timed_out", code="driver.timeout")
    assert stage.states(silent)["a"] == "failed"
    written = stage.submit(plan(action("a", do="send", on_error="retry", retry=SOON)))
    stage.end(written, "a", "timed_out", code="driver.timeout")
    assert stage.states(written)["a"] == "waiting"


def test_what_nobody_knows_the_end_of_is_never_retried() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", do="send", on_error="retry", retry=SOON)))
    stage.end(run, "a", "unknown", code="node.interrupted")
    assert stage.states(run)["a"] == "unknown"
    assert delays(stage) == []


def test_a_rejection_by_every_node_is_no_reported_failure() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", on_error="retry", retry=SOON)))
    dispatch = stage.dispatch_of(run, "a")
    refusals = ((dispatch.dispatch, Fault("policy.path", "no")),)
    stage.post(e.RejectArrived, node="pi", refusals=refusals)
    assert (run.state, delays(stage)) == ("failed", [])


def test_the_next_try_survives_a_restart() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a", on_error="retry", retry={**SOON, "delay_seconds": 60})))
    stage.end(run, "a", "failed")
    again = Stage(history=stage.changes)
    again.now_ms = stage.now_ms
    again.birth("pi", boot=2)
    assert again.states(again.state.runs[run.run]) == {"a": "waiting"}
    again.live("pi", for_ms=80_000)
    assert again.states(again.state.runs[run.run]) == {"a": "running"}


def test_an_abort_ends_what_waits_for_its_next_try_as_failed() -> None:
    stage = Stage("pi")
    run = stage.submit(
        plan(action("a", on_error="retry", retry=SOON), action("b"), action("c", "a"))
    )
    stage.end(run, "a", "failed", code="driver.unavailable")
    stage.end(run, "b", "failed")
    assert stage.states(run) == {"a": "failed", "b": "failed", "c": "skipped"}
    assert run.actions["a"].fault.code == "driver.unavailable"
    assert run.aborting.code == "driver.failed"
