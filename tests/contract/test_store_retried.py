"""What a retry takes over of a run that was undone in part: what was undone is done again."""

import asyncio
from typing import Any

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.retrying import Taken, take_over
from imlmesh_orchestrator.store.lifecycle import Lifecycle, replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.reading import MemoryReader
from imlmesh_runtime.sqlite import MemoryStore
from scheduler_stage import Stage, action, plan

PLAN = plan(
    action("a", target_group="both", target_mode="all", rollback={"action": "u"}),
    action("x", "a", target_node="pi-3", on_error="rollback"),
    action("u"),
)


def staged() -> Stage:
    stage = Stage("pi-1", "pi-2", "pi-3")
    stage.set_group("both", "pi-1", "pi-2")
    return stage


async def taken_over(stage: Stage, run: Any) -> Taken:
    """The stage's changes go through a store, which tells what is kept."""
    store = MemoryStore(migrations("lifecycle"))
    reader = MemoryReader(store)
    lifecycle = Lifecycle(store, (await reader.ask(replay)).marks)
    done: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    lifecycle.commit(list(stage.changes), done.set_result)
    assert await done is None
    taken = await reader.ask(lambda db: take_over(db, run.run, str, False))
    reader.close()
    await store.close()
    return taken


async def test_what_was_undone_on_one_node_is_done_again() -> None:
    stage = staged()
    run = stage.submit(PLAN)
    stage.end(run, "a@pi-2", result=2)
    stage.end(run, "a@pi-1", result=1)
    stage.end(run, "x", "failed")
    stage.end(run, "a~pi-1")
    stage.end(run, "a~pi-2", "failed")
    stage.answer("fail")
    taken = await taken_over(stage, run)
    assert taken.retried is not None
    assert "a" not in taken.retried.kept
    again = stage.submit(taken.plan, retried=taken.retried)
    assert stage.states(again) == {"a": "running", "x": "pending", "u": "pending"}


async def test_a_retry_of_a_retry_that_was_undone_in_part_goes_on() -> None:
    stage = staged()
    first = stage.submit(PLAN)
    stage.end(first, "a@pi-1", result=1)
    stage.end(first, "a@pi-2", result=2)
    stage.post(e.CancelAsked, run=first.run, by="eve")
    stage.end(first, "x", "cancelled", code="action.cancelled")
    taken = await taken_over(stage, first)
    second = stage.submit(taken.plan, retried=taken.retried)
    assert stage.states(second)["a"] == "completed"
    stage.end(second, "x", "failed")
    for outcome in ("completed", "failed"):
        (one,) = stage.running(second)
        stage.end(second, one, outcome)
    stage.answer("fail")
    assert second.state == "failed"
    again = await taken_over(stage, second)
    assert not stage.submit(again.plan, retried=again.retried).ended


async def test_what_never_got_its_claim_is_tried_again_without_a_question() -> None:
    stage = staged()
    ran = action("ran", do="send", target_node="pi-1", on_error="continue")
    busy = action("busy", do="send", target_node="pi-1", on_busy="fail", on_error="continue")
    run = stage.submit(plan(ran, busy, action("last", "ran", "busy")))
    stage.end(run, "busy", "failed", code="driver.busy")
    stage.end(run, "ran", "failed")
    stage.end(run, "last", "failed")
    taken = await taken_over(stage, run)
    assert taken.retried is not None
    assert list(taken.retried.again) == ["ran"]
