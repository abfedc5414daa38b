"""What a retry takes over of a run that was done, or undone, in part; nothing is repeated unasked."""

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.retrying import Taken, take_over
from imlmesh_orchestrator.store.lifecycle import Lifecycle, replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.reading import MemoryReader
from imlmesh_orchestrator.views.runs import show_run
from imlmesh_orchestrator.views.stories import story
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
    taken: Taken = await asked(stage, lambda db: take_over(db, run.run, str, False))
    return taken


async def shown(stage: Stage, run: Any, name: str) -> Any:
    """One action of a run as people see it."""
    found = await asked(stage, lambda db: show_run(db, run.run, str, {}))
    return next(one for one in found["actions"] if one["id"] == name)


async def asked(stage: Stage, question: Callable[[sqlite3.Connection], Any]) -> Any:
    """What a store answers that holds the stage's changes."""
    store = MemoryStore(migrations("lifecycle"))
    reader = MemoryReader(store)
    lifecycle = Lifecycle(store, (await reader.ask(replay)).marks)
    done: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    lifecycle.commit(list(stage.changes), done.set_result)
    assert await done is None
    answer = await reader.ask(question)
    reader.close()
    await store.close()
    return answer


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


async def test_of_an_action_on_several_nodes_only_those_that_failed_do_it_again() -> None:
    stage = staged()
    first = stage.submit(
        plan(
            action("a", do="send", target_group="both", target_mode="all"),
            action("b", "a", params={"n": "{{result.a.*.v}}"}, target_node="pi-3"),
        )
    )
    stage.end(first, "a@pi-1", result={"v": 1})
    stage.end(first, "a@pi-2", "failed")
    taken = await taken_over(stage, first)
    assert taken.retried.kept == {"a@pi-1": [["pi-1"], {"v": 1}]}
    assert "pi-2" in taken.retried.again["a"]
    assert "pi-1" not in taken.retried.again["a"]
    second = stage.submit(taken.plan, retried=taken.retried)
    stage.answer("approve")
    assert stage.running(second) == ["a@pi-2"]
    assert stage.replayed().runs[second.run] == second
    one = await shown(stage, second, "a")
    found = {member["node"]: (member["state"], member["kept"]) for member in one["members"]}
    assert found == {"pi-1": ("completed", True), "pi-2": ("running", False)}
    told = await asked(stage, lambda db: story(db, second.run, str))
    assert "a on pi-1 is kept" in [entry["text"] for entry in told]
    stage.end(second, "a@pi-2", result={"v": 2})
    assert stage.sent(second, "b").params == {"n": [1, 2]}
    assert (await shown(stage, second, "a"))["result"] == {"pi-1": {"v": 1}, "pi-2": {"v": 2}}
    stage.end(second, "b", "failed")
    assert (await taken_over(stage, second)).retried.kept == {
        "a": [["pi-1", "pi-2"], {"pi-1": {"v": 1}, "pi-2": {"v": 2}}]
    }


async def test_a_rolling_retry_goes_on_where_it_stopped_with_the_nodes_of_now() -> None:
    stage = staged()
    rolled = action("a", do="write", target_group="both", target_mode="rolling")
    first = stage.submit(plan(rolled))
    stage.end(first, "a@pi-1", result=1)
    stage.end(first, "a@pi-2", "failed")
    stage.set_group("both", "pi-1", "pi-2", "pi-3")
    taken = await taken_over(stage, first)
    second = stage.submit(taken.plan, retried=taken.retried)
    assert stage.running(second) == ["a@pi-2"]
    stage.end(second, "a@pi-2", result=2)
    assert stage.running(second) == ["a@pi-3"]
    stage.end(second, "a@pi-3", result=3)
    assert (await shown(stage, second, "a"))["result"] == {"pi-1": 1, "pi-2": 2, "pi-3": 3}


async def test_what_a_retry_never_came_to_is_still_kept_by_the_next_one() -> None:
    stage = staged()
    first = stage.submit(
        plan(
            action("x", do="write", on_error="continue", target_node="pi-3"),
            action("a", "x", target_group="both", target_mode="all"),
        )
    )
    stage.end(first, "x", "failed")
    stage.end(first, "a@pi-1", result=1)
    stage.end(first, "a@pi-2", "failed")
    taken = await taken_over(stage, first)
    second = stage.submit(taken.plan, retried=taken.retried)
    stage.post(e.CancelAsked, run=second.run, by="eve")
    stage.end(second, "x", "cancelled", code="action.cancelled")
    assert (await taken_over(stage, second)).retried.kept == {"a@pi-1": [["pi-1"], 1]}


async def test_what_somebody_began_to_undo_is_not_kept_and_asked_about() -> None:
    stage = staged()
    sent = action("a", do="send", target_node="pi-1", rollback={"action": "u"})
    undone = plan(sent, action("x", "a", on_error="rollback", target_node="pi-3"), action("u"))
    first = stage.submit(undone)
    stage.end(first, "a", result=1)
    stage.end(first, "x", "failed")
    assert stage.running(first) == ["a~pi-1"]
    stage.accept(first, "a~pi-1")
    stage.post(e.CancelAsked, run=first.run, by="eve")
    stage.end(first, "a~pi-1", "cancelled", code="action.cancelled")
    assert stage.states(first)["a"] == "completed"
    taken = await taken_over(stage, first)
    assert taken.retried.kept == {}
    assert list(taken.retried.again) == ["a"]


async def test_what_was_kept_and_then_undone_is_asked_about_before_it_is_done_again() -> None:
    stage = staged()
    sent = action("a", do="send", target_node="pi-1", rollback={"action": "u"})
    undone = plan(sent, action("x", "a", on_error="rollback", target_node="pi-3"), action("u"))
    first = stage.submit(undone)
    stage.end(first, "a", result=1)
    stage.post(e.CancelAsked, run=first.run, by="eve")
    stage.end(first, "x", "cancelled", code="action.cancelled")
    second = await taken_over(stage, first)
    run = stage.submit(second.plan, retried=second.retried)
    assert stage.states(run)["a"] == "completed"
    stage.end(run, "x", "failed")
    stage.end(run, "a~pi-1")
    assert stage.states(run)["a"] == "rolled_back"
    third = await taken_over(stage, run)
    assert third.retried.kept == {}
    assert "pi-1" in third.retried.again["a"]


async def test_what_is_kept_may_suffice_when_the_run_fails_before_the_rest_begins() -> None:
    stage = staged()
    stage.set_group("one", "pi-3")
    wise = {"target_mode": "all"}
    run = stage.submit(
        plan(
            action("a", target_group="both", quorum=1, **wise),
            action("x", target_group="one", quorum=2, **wise),
        ),
        retried=e.Retried("r-0-abcd", {"a@pi-1": [["pi-1"], 1]}, {}, ()),
    )
    assert (run.state, run.actions["x"].fault.code) == ("failed", "action.partial")
    assert (run.actions["a"].state, run.units["a@pi-2"].state) == ("completed", "skipped")
