"""Permits through the store of the orchestrator: what a restart must know, and what it may forget."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.lifecycle import Lifecycle, replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.reading import FileReader, MemoryReader, Reader
from imlmesh_orchestrator.views import runs, stories
from imlmesh_protocol import limits
from imlmesh_runtime.sqlite import Database, MemoryStore, Store
from test_scheduler_permits import HOUR_MS, Play


@pytest.fixture(params=["real", "memory"])
async def twin(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[Store, Reader]]:
    store: Store
    reader: Reader
    if request.param == "real":
        store = Database(tmp_path / "lifecycle.db", migrations("lifecycle"))
        reader = FileReader(tmp_path / "lifecycle.db")
    else:
        memory = MemoryStore(migrations("lifecycle"))
        store, reader = memory, MemoryReader(memory)
    yield store, reader
    reader.close()
    await store.close()


async def stored(twin: tuple[Store, Reader], play: Play) -> list[c.Change]:
    """What a restart gives back of all that the play decided."""
    store, reader = twin
    lifecycle = Lifecycle(store, (await reader.ask(replay)).marks)
    done: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    lifecycle.commit(list(play.changes), done.set_result)
    assert await done is None
    return (await reader.ask(replay)).changes


async def test_a_restart_knows_permits_their_ends_and_what_was_reported(
    twin: tuple[Store, Reader],
) -> None:
    play = Play("pi")
    record, other = play.grant(), play.grant()
    told = (play.result(record, 2, "a"), play.result(record, 2, "b"))
    play.told(*told)
    play.withdraw(other.permit.id)
    again = Play("pi", history=await stored(twin, play))
    assert again.state.permits == play.state.permits
    assert again.told(*told) == tuple(result.dispatch for result in told)
    assert again.kept(c.RunCreated) == [], "it was recorded before the restart"
    third = again.grant()
    assert third.permit.id.startswith("p-3-"), "numbers go on"


async def test_what_the_core_forgets_the_store_forgets_too(twin: tuple[Store, Reader]) -> None:
    play = Play("pi")
    play.grant()
    play.now_ms += limits.PERMIT_KEPT_MS + 2 * HOUR_MS
    last = play.grant()
    again = Play(history=await stored(twin, play))
    assert set(again.state.permits) == set(play.state.permits) == {last.permit.id}


async def test_a_run_by_permit_is_shown_as_every_run(twin: tuple[Store, Reader]) -> None:
    play = Play("pi")
    record = play.grant()
    play.told(play.result(record, 1, "a", "failed"))
    await stored(twin, play)
    run = f"{record.permit.id}-1"
    alias: Callable[[str], str] = str
    _, reader = twin
    shown = await reader.ask(lambda database: runs.show_run(database, run, alias, {}))
    assert (shown["state"], shown["by"], shown["plan_id"]) == ("failed", record.permit.id, "play")
    assert [(one["id"], one["state"]) for one in shown["actions"]] == [
        ("a", "failed"),
        ("b", "skipped"),
    ]
    listed = await reader.ask(lambda database: runs.list_runs(database, alias, 9, None, ""))
    assert [one["run"] for one in listed] == [run]
    told = await reader.ask(lambda database: stories.changes_after(database, run, 0, 99))
    assert told[0][1].by == record.permit.id
