"""The journal over a real file, over memory, and over a disk that always fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from imlmesh_node.core.changes import (
    Bulk,
    Change,
    DispatchSettled,
    DispatchTaken,
    FloorRaised,
    IntentRecorded,
    MeshTimeNoted,
    PermitDropped,
    PermitForgotten,
    PermitRunBegun,
    PermitRunEnded,
    PermitTaken,
    QuarantineSet,
    ResultRecord,
    ResultRecorded,
)
from imlmesh_node.core.state import AgentState, apply
from imlmesh_node.journal import MIGRATIONS, Journal
from imlmesh_protocol.errors import Fault, MeshError, StoreError
from imlmesh_protocol.limits import RESULT_CHUNK_BYTES
from imlmesh_protocol.permits import Permit, PermitAction, Rule
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.codec import pack
from imlmesh_protocol.wire.permits import pack_permit, sign_permit
from imlmesh_runtime.sqlite import Database, FailingStore, MemoryStore, Store, run

DONE = ResultRecord("r/b/pi/1", b"2", "completed", {"value": [1, None, "é", b"x"]}, None, 12)
FAILED = ResultRecord("r/c/pi/1", b"3", "failed", None, Fault("driver.failed", "no"), 0)


@pytest.fixture(params=["file", "memory"])
async def make_store(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Callable[[], Store]]:
    """Opens the same store again and again, as restarts do."""
    memory = MemoryStore(MIGRATIONS)
    opened: list[Store] = []

    def make() -> Store:
        if request.param == "memory":
            return memory
        opened.append(Database(tmp_path / "journal.db", MIGRATIONS))
        return opened[-1]

    yield make
    for store in opened:
        await store.close()


async def commit(journal: Journal, *changes: Change) -> None:
    ended: asyncio.Future[MeshError | None] = asyncio.get_running_loop().create_future()
    journal.commit(list(changes), ended.set_result)
    error = await asyncio.wait_for(ended, 10)
    if error is not None:
        raise error


async def test_what_was_committed_is_there_after_a_restart(
    make_store: Callable[[], Store],
) -> None:
    journal = Journal(make_store())
    steps: list[list[Change]] = [
        [
            DispatchTaken("r/a/pi/1", b"1", Effect.ONCE, 5),
            IntentRecorded("r/a/pi/1"),
            DispatchTaken("r/b/pi/1", b"2", Effect.PURE, 5),
            IntentRecorded("r/b/pi/1"),
            ResultRecorded(DONE),
            DispatchTaken("r/c/pi/1", b"3", Effect.PHYSICAL, 5),
            FloorRaised(3, 44),
        ],
        [IntentRecorded("r/c/pi/1")],
        [ResultRecorded(FAILED), DispatchTaken("r/d/pi/1", b"4", Effect.PURE, 9)],
        [DispatchSettled("r/b/pi/1"), FloorRaised(3, 50)],
    ]
    state = AgentState()
    for step in steps:
        await commit(journal, *step)
        for change in step:
            apply(state, change)
    loaded = await Journal(make_store()).load(1_000)
    assert loaded.records == tuple(state.records.values())
    assert loaded.floor == state.floor == (3, 50)
    assert loaded.records[1].result == FAILED


async def test_what_was_held_at_a_restart_goes_on_as_the_same_row(
    make_store: Callable[[], Store],
) -> None:
    await commit(
        Journal(make_store()),
        DispatchTaken("r/a/pi/1", b"1", Effect.ONCE, 5),
        DispatchTaken("r/c/pi/1", b"3", Effect.ONCE, 5),
    )
    journal = Journal(make_store())
    await journal.load(1)
    await commit(
        journal,
        DispatchSettled("r/a/pi/1"),
        ResultRecorded(FAILED),
        DispatchTaken("r/e/pi/1", b"5", Effect.ONCE, 7),
    )
    loaded = await Journal(make_store()).load(1)
    assert [record.dispatch for record in loaded.records] == ["r/c/pi/1", "r/e/pi/1"]
    assert [record.result for record in loaded.records] == [FAILED, None]


async def test_a_large_result_is_kept_in_chunks_until_it_is_settled(
    make_store: Callable[[], Store],
) -> None:
    packed = pack("x" * (2 * RESULT_CHUNK_BYTES + 5))
    large = ResultRecord("r/a/pi/1", b"1", "completed", None, None, 3, Bulk(len(packed), b"s" * 32))
    journal = Journal(make_store())
    await commit(
        journal,
        DispatchTaken("r/a/pi/1", b"1", Effect.ONCE, 5),
        DispatchTaken("r/b/pi/1", b"2", Effect.ONCE, 5),
        ResultRecorded(DONE),
        ResultRecorded(large, packed),
    )
    journal = Journal(make_store())
    loaded = await journal.load(1)
    assert [record.result for record in loaded.records] == [large, DONE]
    chunks = [await chunk(journal, "r/a/pi/1", index) for index in range(3)]
    assert b"".join(chunks) == packed
    assert [len(each) for each in chunks[:2]] == [RESULT_CHUNK_BYTES] * 2
    await commit(journal, DispatchSettled("r/a/pi/1"))
    store = make_store()
    assert await run(store, lambda db: db.execute("SELECT count(*) FROM chunks").fetchone()) == (0,)
    loaded = await Journal(store).load(1)
    assert [record.result for record in loaded.records] == [DONE]


async def chunk(journal: Journal, id: str, index: int) -> bytes:
    read: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    journal.read_chunk(id, index, read.set_result)
    return await asyncio.wait_for(read, 10)


async def test_a_boot_number_is_higher_than_all_before(make_store: Callable[[], Store]) -> None:
    journal = Journal(make_store())
    assert (await journal.load(7_000)).boot == 7_000
    assert (await journal.load(6_000)).boot == 7_001  # a clock that went back
    assert (await journal.load(9_000)).boot == 9_000


async def test_a_step_is_stored_whole_or_not_at_all(make_store: Callable[[], Store]) -> None:
    journal = Journal(make_store())
    await commit(journal, DispatchTaken("r/a/pi/1", b"1", Effect.ONCE, 5))
    with pytest.raises(StoreError) as caught:
        await commit(
            journal,
            DispatchTaken("r/b/pi/1", b"2", Effect.ONCE, 6),
            DispatchSettled("r/a/pi/1"),
            FloorRaised(-1, None),  # type: ignore[arg-type]
        )
    assert caught.value.code == "store.failed"
    loaded = await Journal(make_store()).load(1)
    assert [record.dispatch for record in loaded.records] == ["r/a/pi/1"]
    assert loaded.floor == (0, 0)


async def test_a_broken_disk_is_said_to_be_one() -> None:
    journal = Journal(FailingStore())
    with pytest.raises(StoreError) as caught:
        await commit(journal, FloorRaised(1, 1))
    assert caught.value.code == "store.failed"
    with pytest.raises(StoreError):
        await journal.load(1)


async def test_a_quarantine_is_remembered_until_the_release(
    make_store: Callable[[], Store],
) -> None:
    for quarantined in (True, False):
        journal = Journal(make_store())
        await journal.load(1)
        await commit(journal, QuarantineSet(not quarantined), QuarantineSet(quarantined))
        assert (await Journal(make_store()).load(1)).quarantined is quarantined


async def test_permits_and_how_often_they_ran_are_there_after_a_restart(
    make_store: Callable[[], Store],
) -> None:
    """The rows give what the fold of the changes gives, whatever their order in a step."""
    actions = (PermitAction("a", "fake", "act", {}, Effect.ONCE, 60_000),)
    permits = [
        Permit("home", f"p-{n}-kq7x", "pi", "p", "d", 5, 0, 9_000, Rule("every", 1_000), actions)
        for n in (1, 2, 3)
    ]
    taken = [PermitTaken(one, sign_permit(pack_permit(one), bytes, b"12345678")) for one in permits]
    one, two, three = (permit.id for permit in permits)
    steps: list[list[Change]] = [
        [MeshTimeNoted(100, met=True), *taken],
        [PermitRunBegun(one, 1, 700), PermitRunBegun(two, 1, 800)],
        [PermitRunEnded(one), PermitDropped(two)],
        [MeshTimeNoted(750, met=False)],
        [PermitRunBegun(three, 4, 900), MeshTimeNoted(850, met=True), taken[1]],
        [PermitForgotten(one)],
    ]
    expected = AgentState()
    for step in steps:
        journal = Journal(make_store())
        await journal.load(1)
        await commit(journal, *step)
        for change in step:
            apply(expected, change)
        loaded = await Journal(make_store()).load(1)
        assert loaded.permits == expected.permits
        assert loaded.mesh_ms == expected.mesh_ms
