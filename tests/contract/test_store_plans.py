"""Runs as the scheduler plays them, through the store: given back after a restart, and shown."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.apply import apply
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.retrying import Taken, take_over
from imlmesh_orchestrator.store.lifecycle import Lifecycle, replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.reading import FileReader, MemoryReader, Reader
from imlmesh_orchestrator.views import approvals, memory, runs, stories
from imlmesh_orchestrator.views.export import export_run
from imlmesh_orchestrator.views.logs import failed_units, wanted
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_runtime.sqlite import Database, MemoryStore, Store
from scheduler_stage import Stage, action, plan

LASTING = ("nodes", "groups", "runs", "dispatches", "approvals", "memory", "nonces", "memory_bytes")


class Kept:
    """A stage whose changes are committed to a store, one commit for all that came since."""

    def __init__(self, store: Store, reader: Reader) -> None:
        self.stage = Stage("pi-1", "pi-2", "pi-3")
        self.reader = reader
        self._store = store
        self._lifecycle: Lifecycle | None = None
        self._stored = 0

    async def store(self) -> None:
        if self._lifecycle is None:
            self._lifecycle = Lifecycle(self._store, (await self.reader.ask(replay)).marks)
        changes = self.stage.changes[self._stored :]
        self._stored = len(self.stage.changes)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lifecycle.commit(
            list(changes),
            lambda error: done.set_exception(error) if error else done.set_result(None),
        )
        await done

    async def show(self, run: Any) -> dict[str, Any]:
        await self.store()
        return await self.reader.ask(lambda db: runs.show_run(db, run.run, str.upper, {}))

    async def action(self, run: Any, name: str) -> dict[str, Any]:
        shown = await self.show(run)
        return next(each for each in shown["actions"] if each["id"] == name)

    async def take_over(self, run: Any, *, failed: bool = False) -> Taken:
        await self.store()
        return await self.reader.ask(lambda db: take_over(db, run.run, str, failed))

    async def restarted(self) -> State:
        await self.store()
        state = State()
        for change in (await self.reader.ask(replay)).changes:
            apply(state, change)
        return state


@pytest.fixture(params=["real", "memory"])
async def kept(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kept]:
    path = tmp_path / "lifecycle.db"
    reader: Reader
    if request.param == "real":
        store: Store = Database(path, migrations("lifecycle"))
        reader = FileReader(path)
    else:
        store = MemoryStore(migrations("lifecycle"))
        reader = MemoryReader(store)
    yield Kept(store, reader)
    reader.close()
    await store.close()


def member_wise(mode: str, **more: Any) -> dict[str, Any]:
    return action("all", target_group="both", target_mode=mode, **more)


def waiting_retry(stage: Stage) -> Any:
    retry = {"max_attempts": 3, "retry_on": []}
    run = stage.submit(plan(action("a", on_error="retry", retry=retry)))
    stage.end(run, "a", "failed")
    return run


def open_gate(stage: Stage) -> Any:
    ask = {"message": "Really?", "risk_level": "high", "clarification_options": ["half"]}
    gated = action("a", requires_approval=True, approval=ask, params={"n": "{{node.id}}"})
    return stage.submit(plan(gated, nonce="once-only"))


def half_rolled(stage: Stage) -> Any:
    stage.set_group("both", "pi-1", "pi-2")
    run = stage.submit(plan(member_wise("rolling"), action("b", "all")))
    stage.end(run, "all@pi-1", result={"x": 1})
    return run


def undoing(stage: Stage) -> Any:
    run = stage.submit(
        plan(
            action("a", do="send", rollback={"action": "sorry"}, target_node="pi-1"),
            action("b", "a", on_error="rollback"),
            action("sorry", do="send"),
        )
    )
    stage.end(run, "a", result={"x": 1})
    stage.end(run, "b", "failed")
    return run


def written(stage: Stage) -> Any:
    stage.post(e.MemorySet, session="s", key="old", value={"deep": [1, None]}, by="eve")
    run = stage.submit(
        plan(action("a", memory={"write_key": "seen"}), action("b", "a"), session_id="s")
    )
    stage.end(run, "a", result={"x": 1})
    stage.post(e.MemorySet, session="s", key="old", value="again", by="eve")
    stage.post(e.MemorySet, session="s", key="gone", value=1, by="eve")
    stage.post(e.MemoryDeleteAsked, session="s", key="gone", by="eve")
    return run


def paused(stage: Stage) -> Any:
    run = stage.submit(plan(action("a"), action("b", "a")), priority=3)
    stage.post(e.PauseAsked, run=run.run, by="eve")
    return run


def before_its_time(stage: Stage) -> Any:
    return stage.submit(plan(action("a")), starts_at_ms=stage.now_ms + 60_000)


@pytest.mark.parametrize(
    "play",
    [waiting_retry, open_gate, half_rolled, undoing, written, paused, before_its_time],
)
async def test_a_restart_gives_everything_back(kept, play):
    run = play(kept.stage)
    found = await kept.restarted()
    for name in LASTING:
        assert getattr(found, name) == getattr(kept.stage.state, name), name
    assert list(found.memory) == list(kept.stage.state.memory), "the oldest-written comes first"
    assert list(found.nonces) == list(kept.stage.state.nonces)
    assert found.runs[run.run].units == run.units


async def test_the_oldest_nonces_are_forgotten(kept, monkeypatch):
    monkeypatch.setattr(limits, "NONCES", 2)
    for number in range(4):
        kept.stage.submit(plan(action("a"), nonce=f"n-{number}"))
        await kept.store()
    assert list((await kept.restarted()).nonces) == ["n-2", "n-3"]


async def test_a_retry_shows_when_it_goes_on(kept):
    run = waiting_retry(kept.stage)
    shown = await kept.action(run, "a")
    assert (shown["state"], shown["tries"], shown["attempt"]) == ("waiting", 1, 1)
    assert shown["error"]["code"] == "driver.failed"
    assert shown["retry_at_ms"] == run.units["a"].retry_at_ms
    [waits] = (await kept.show(run))["waits_for"]
    assert waits.startswith("the next try of a, ")
    kept.stage.pass_time(2_000)
    shown = await kept.action(run, "a")
    assert (shown["state"], shown["tries"], shown["retry_at_ms"]) == ("running", 2, None)
    kept.stage.end(run, "a", result={"x": 1})
    shown = await kept.action(run, "a")
    assert (shown["state"], shown["result"], shown["error"]) == ("completed", {"x": 1}, None)


async def test_a_gate_shows_what_it_is_bound_to(kept):
    run = open_gate(kept.stage)
    shown = await kept.action(run, "a")
    assert (shown["state"], shown["approval"]) == ("awaiting_approval", "a-1")
    found = await kept.reader.ask(lambda db: approvals.show_approval(db, "a-1"))
    assert (found["kind"], found["risk"], found["unit"]) == ("gate", "high", "a")
    assert found["options"] == ["approve", "deny", "half"]
    assert len(found["digest"]) == 64
    bound = approvals.bound_to(kept.stage.state, {}, "a-1")
    assert bound == {"params": {"n": "{{node.id}}"}, "nodes": ["pi-1", "pi-2", "pi-3"]}
    kept.stage.answer("half")
    assert (await kept.action(run, "a"))["state"] == "running"
    found = await kept.reader.ask(lambda db: approvals.show_approval(db, "a-1"))
    assert (found["state"], found["option"], found["by"]) == ("approved", "half", "adam")
    assert approvals.bound_to(kept.stage.state, {}, "a-1") == {"params": None, "nodes": None}


async def test_of_many_questions_the_most_urgent_are_listed(kept, monkeypatch):
    monkeypatch.setattr(limits, "APPROVAL_LIST", 2)
    for seconds in (600, 60, 300):
        asked = action("a", requires_approval=True, approval={"timeout_seconds": seconds})
        kept.stage.submit(plan(asked))
    kept.stage.post(e.AnswerGiven, approval="a-3", option="approve", by="adam")
    await kept.store()
    found, more = await kept.reader.ask(lambda db: approvals.list_approvals(db, "pending"))
    assert ([each["approval"] for each in found], more) == (["a-2", "a-1"], 0)
    found, more = await kept.reader.ask(lambda db: approvals.list_approvals(db, ""))
    assert ([each["approval"] for each in found], more) == (["a-2", "a-1"], 1)


async def test_members_stand_below_their_action(kept):
    run = half_rolled(kept.stage)
    shown = await kept.action(run, "all")
    assert (shown["state"], shown["mode"], shown["node"]) == ("running", "rolling", None)
    states = [(m["key"], m["alias"], m["state"], m["attempt"]) for m in shown["members"]]
    assert states == [("all@pi-1", "PI-1", "completed", 1), ("all@pi-2", "PI-2", "running", 1)]
    assert (shown["result"], len(shown["dispatches"])) == (None, 2)
    kept.stage.end(run, "all@pi-2", result={"x": 2})
    shown = await kept.action(run, "all")
    assert (shown["state"], shown["result"]) == ("completed", {"pi-1": {"x": 1}, "pi-2": {"x": 2}})
    assert shown["duration_ms"] == shown["ended_at_ms"] - shown["planned_at_ms"]
    assert (await kept.show(run))["counts"] == {"completed": 1, "running": 1}


async def test_a_member_that_failed_says_why(kept):
    kept.stage.set_group("both", "pi-1", "pi-2")
    run = kept.stage.submit(plan(member_wise("all")))
    kept.stage.end(run, "all@pi-1", result={"x": 1})
    kept.stage.end(run, "all@pi-2", "failed")
    shown = await kept.action(run, "all")
    assert (shown["state"], shown["error"]["code"]) == ("failed", "action.partial")
    assert [m["code"] for m in shown["members"]] == [None, "driver.failed"]
    assert shown["result"] == {"pi-1": {"x": 1}}
    units = await kept.reader.ask(lambda db: failed_units(db, run.run))
    assert units == {("all", "pi-2")}
    lines = [
        {"at_ms": at_ms, "action": "all", "node": node, "line": node}
        for at_ms, node in ((1, "pi-2"), (2, "pi-1"), (3, "pi-2"))
    ]
    assert [line["at_ms"] for line in wanted(lines, "all", units, 2)] == [3]
    assert wanted(lines, "other", None, None) == []


async def test_what_is_undone_shows_by_what(kept):
    run = undoing(kept.stage)
    [shown] = (await kept.action(run, "a"))["compensations"]
    assert (shown["key"], shown["action"], shown["state"]) == ("a~pi-1", "sorry", "running")
    kept.stage.end(run, "a~pi-1", "failed")
    [shown] = (await kept.action(run, "a"))["compensations"]
    assert (shown["state"], shown["approval"]) == ("awaiting_approval", "a-1")
    assert (await kept.show(run))["waits_for"] == ["approval a-1 of undoing a on PI-1"]
    kept.stage.answer("done")
    whole = await kept.show(run)
    a, b, sorry = whole["actions"]
    assert (a["state"], a["result"], a["error"]) == ("rolled_back", {"x": 1}, None)
    assert (b["state"], sorry["state"], sorry["wave"]) == ("failed", "completed", 0)
    assert (whole["state"], whole["compensation_pending"]) == ("failed", False)
    assert whole["waves"] == [["a"], ["b"]]


async def test_what_was_not_undone_is_flagged(kept):
    run = undoing(kept.stage)
    kept.stage.end(run, "a~pi-1", "failed")
    kept.stage.answer("fail")
    whole = await kept.show(run)
    assert (whole["state"], whole["compensation_pending"]) == ("failed", True)
    [shown] = whole["actions"][0]["compensations"]
    assert (shown["state"], shown["code"]) == ("failed", "action.failed_by_person")


async def test_a_run_that_is_held_says_so(kept):
    run = paused(kept.stage)
    shown = await kept.show(run)
    assert (shown["state"], shown["priority"]) == ("paused", 3)
    assert shown["waits_for"] == [f"imlmesh run resume {run.run}"]
    kept.stage.post(e.ResumeAsked, run=run.run, by="eve")
    assert (await kept.show(run))["state"] == "running"
    later = before_its_time(kept.stage)
    shown = await kept.show(later)
    assert (shown["state"], shown["starts_at_ms"]) == ("pending", later.starts_at_ms)
    assert shown["waits_for"] == ["its time to start, 1970-01-01 00:17:40 UTC"]
    kept.stage.post(e.PauseAsked, run=later.run, by="eve")
    kept.stage.post(e.ResumeAsked, run=later.run, by="eve")
    assert (await kept.show(later))["waits_for"] == shown["waits_for"], "it has not begun yet"


async def test_a_run_whose_time_came_waits_for_its_gate_alone(kept):
    start_ms = kept.stage.now_ms + 1_000
    run = kept.stage.submit(plan(action("a", requires_approval=True)), starts_at_ms=start_ms)
    kept.stage.pass_time(2_000)
    assert (await kept.show(run))["waits_for"] == [f"approval {kept.stage.question()} of a"]


async def test_memory_is_listed_by_age_and_told_in_the_story(kept):
    run = written(kept.stage)
    await kept.store()
    found = await kept.reader.ask(lambda db: memory.list_memory(db, "s"))
    assert [(each["key"], each["by"]) for each in found] == [
        ("seen", f"{run.run}/a"),
        ("old", "eve"),
    ]
    assert found == await kept.reader.ask(lambda db: memory.list_memory(db, None))
    one = await kept.reader.ask(lambda db: memory.show_memory(db, "s", "old"))
    assert (one["value"], one["size"]) == ("again", 6)
    with pytest.raises(InputError) as caught:
        await kept.reader.ask(lambda db: memory.show_memory(db, "s", "gone"))
    assert caught.value.code == "memory.not_found"
    story = await kept.reader.ask(lambda db: stories.story(db, run.run, str))
    told = [entry["text"] for entry in story if entry["kind"] == "memory-written"]
    assert told == [f"{run.run}/a wrote memory seen of session s: 4 bytes"]
    assert [entry["seq"] for entry in story] == sorted(entry["seq"] for entry in story)


async def test_a_result_too_large_for_memory_is_told_in_the_story(kept):
    writes = action("a", memory={"write_key": "big"})
    run = kept.stage.submit(plan(writes, session_id="s"))
    kept.stage.end(run, "a", result="x" * limits.MEMORY_VALUE_BYTES)
    await kept.store()
    told = [e["text"] for e in await kept.reader.ask(lambda db: stories.story(db, run.run, str))]
    gone = f"memory big of session s is gone: what {run.run}/a gave takes too much room"
    assert told.count(gone) == 1


def finished(stage: Stage) -> Any:
    """a completed on two nodes, b failed, c never ran for it, d was still waiting."""
    stage.set_group("both", "pi-1", "pi-2")
    run = stage.submit(
        plan(
            action("a", target_group="both", target_mode="all"),
            action("b", "a", do="send", target_node="pi-3"),
            action("c", "b"),
            action("d", "a", target_node="pi-2"),
            action("e", "d"),
        ),
        priority=2,
    )
    for node in ("pi-1", "pi-2"):
        stage.end(run, f"a@{node}", result={"on": node})
    stage.end(run, "b", "failed")
    stage.end(run, "d", result="d" * limits.API_RESULT_BYTES)
    return run


async def test_a_retry_keeps_what_completed_and_asks_for_the_rest(kept):
    old = finished(kept.stage)
    taken = await kept.take_over(old)
    assert (taken.priority, taken.retried.of, taken.retried.left) == (2, old.run, ())
    assert taken.retried.kept == {
        "a": [["pi-1", "pi-2"], {"pi-1": {"on": "pi-1"}, "pi-2": {"on": "pi-2"}}],
        "d": [["pi-2"], "d" * limits.API_RESULT_BYTES],
    }
    assert taken.retried.again == {"b": "on pi-3, 1970-01-01 00:16:40 UTC (failed)"}
    new = kept.stage.submit(taken.plan, retried=taken.retried)
    shown = await kept.show(new)
    a, b, c_, d, _ = shown["actions"]
    assert (shown["of"], a["state"], a["kept"], a["result"]["pi-2"]) == (
        old.run,
        "completed",
        True,
        {"on": "pi-2"},
    )
    assert (d["state"], d["node"], d["result"]) == ("completed", "pi-2", {"truncated": True})
    assert (b["state"], b["kept"], c_["state"]) == ("awaiting_approval", False, "pending")
    [asked] = shown["approvals"]
    assert "on pi-3, 1970-01-01 00:16:40 UTC" in asked["message"]
    found = await kept.restarted()
    assert found.runs[new.run] == new
    kept.stage.answer("deny")
    node = kept.stage.dispatch_of(new, "e").node
    kept.stage.end(new, "e", result=5)
    again = await kept.take_over(new)
    assert again.retried.kept == {**taken.retried.kept, "e": [[node], 5]}
    assert again.retried.again == taken.retried.again, "it may still repeat what once ran"


async def test_a_retry_of_what_failed_leaves_the_rest_alone(kept):
    old = finished(kept.stage)
    taken = await kept.take_over(old, failed=True)
    assert (list(taken.retried.kept), taken.retried.left) == (["a", "d"], ("e",))
    new = kept.stage.submit(taken.plan, retried=taken.retried)
    shown = await kept.action(new, "e")
    assert (shown["state"], shown["error"]["code"]) == ("skipped", "action.not_needed")


async def test_only_ended_runs_are_retried(kept):
    run = waiting_retry(kept.stage)
    with pytest.raises(InputError) as caught:
        await kept.take_over(run)
    assert caught.value.code == "run.not_ended"


async def test_an_export_holds_whole_results(kept):
    run = finished(kept.stage)
    await kept.store()
    found = await kept.reader.ask(lambda db: export_run(db, run.run, str, {}))
    assert found["run"]["actions"][3]["result"] == "d" * limits.API_RESULT_BYTES
    assert found["plan"]["actions"][1]["target_node"] == "pi-3"
    assert found["story"][-1]["kind"] == "run-ended"
