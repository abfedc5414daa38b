"""The ledger made of changes: once each, in order, whatever ends the process; over file and memory."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.admission_changes import AdmissionChanged, EvidenceKept
from imlmesh_orchestrator.store.codec import FORMS
from imlmesh_orchestrator.store.ledger import LedgerFile, commitment
from imlmesh_orchestrator.store.ledgered import LEDGERED, short, told_of
from imlmesh_orchestrator.store.lifecycle import Lifecycle, replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.mover import Mover
from imlmesh_orchestrator.store.reading import FileReader, MemoryReader, Reader
from imlmesh_protocol import limits, merkle
from imlmesh_protocol.errors import Fault, StoreError
from imlmesh_protocol.states import ActionState, Admission, DispatchState, Effect, RunState
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.sqlite import Database, FailingStore, MemoryStore, Store, run

RUN = "r-1-bcdf"


@dataclass
class Files:
    stores: dict[str, Store]
    readers: dict[str, Reader]
    told: list[bool]
    clock: ManualClock

    async def open(self, broken: bool = False) -> tuple[Lifecycle, Mover, LedgerFile]:
        """As after a restart; with `broken` nothing can be written into metadata."""
        held = await self.readers["lifecycle"].ask(replay)
        lifecycle = Lifecycle(self.stores["lifecycle"], held.marks)
        failing = FailingStore()
        breaks = [False]
        self.breaks = breaks

        def open_store(file: str) -> Store:
            return failing if file == "metadata" and breaks[0] else self.stores[file]

        ledger = LedgerFile(open_store, held.marks.seq)
        await ledger.load()
        breaks[0] = broken
        reader = self.readers["lifecycle"]
        mover = Mover(lifecycle, reader, open_store, self.clock, self.told.append, ledger)
        return lifecycle, mover, ledger

    async def rows(self, sql: str) -> list[Any]:
        return await self.readers["metadata"].ask(lambda database: database.execute(sql).fetchall())

    async def entries(self) -> list[tuple[str, str, str]]:
        return await self.rows("SELECT kind, actor, subject FROM entries ORDER BY n")

    async def told_of(self, n: int) -> list[dict[str, Any]]:
        payloads = await self.rows("SELECT payload FROM payloads ORDER BY n")
        return told_of(payloads[n - 1][0])


@pytest.fixture(params=["real", "memory"])
async def files(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Files]:
    stores: dict[str, Store] = {}
    readers: dict[str, Reader] = {}
    for file in ("lifecycle", "output", "input", "metadata"):
        if request.param == "real":
            path = tmp_path / f"{file}.db"
            stores[file] = Database(path, migrations(file))
            readers[file] = FileReader(path)
        else:
            stores[file] = MemoryStore(migrations(file))
            readers[file] = MemoryReader(stores[file])
    yield Files(stores, readers, [], ManualClock(100))
    for file in stores:
        readers[file].close()
        await stores[file].close()


async def commit(lifecycle: Lifecycle, *changes: c.Change) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    lifecycle.commit(
        list(changes),
        lambda error: future.set_exception(error) if error else future.set_result(None),
    )
    await future


def planned(action: str, cause: str = "q-1-1", at_ms: int = 11) -> c.DispatchPlanned:
    name = f"{RUN}/{action}/pi-1/1"
    effect = Effect.PURE
    return c.DispatchPlanned(
        at_ms, cause, RUN, name, action, "pi-1", 1, b"bin", b"h" * 32, effect, 1, 1, "reroute"
    )


def taken(action: str, result: Any, cause: str = "m", node: str = "pi-1") -> c.ResultTaken:
    name = f"{RUN}/{action}/{node}/1"
    done, completed = DispatchState.COMPLETED, ActionState.COMPLETED
    return c.ResultTaken(12, cause, RUN, name, action, done, completed, result, None, 3)


def ended() -> c.RunEnded:
    return c.RunEnded(20, "m", RUN, RunState.COMPLETED, None, False, False)


async def test_changes_become_entries_in_their_order(files: Files) -> None:
    lifecycle, mover, ledger = await files.open()
    await commit(lifecycle, c.EpochRaised(1, "e", 1), planned("a"))
    await commit(lifecycle, taken("a", {"x": 1}), ended())
    await mover.move()
    assert await files.entries() == [
        ("epoch-raised", "orchestrator", "1"),
        ("dispatch-planned", "orchestrator", RUN),
        ("result-taken", "pi-1", RUN),
        ("run-ended", "orchestrator", RUN),
    ]
    [told] = await files.told_of(3)
    assert (told["dispatch"], told["result"]) == (f"{RUN}/a/pi-1/1", {"x": 1})
    rows = await files.rows("SELECT entry, salt, payload FROM entries JOIN payloads USING (n)")
    prev, leaves = bytes(32), []
    for n, (entry, salt, payload) in enumerate(rows, 1):
        fields = msgpack.unpackb(entry)
        assert (fields["n"], fields["prev"]) == (n, prev)
        assert fields["payload"] == commitment(salt, payload)
        prev = merkle.leaf_hash(entry)
        leaves.append(prev)
    assert ledger.tip.peaks.root() == merkle.root_of(leaves)


async def test_a_commit_has_no_row_more_for_the_ledger(files: Files) -> None:
    lifecycle, _, _ = await files.open()
    await commit(lifecycle, planned("a"), planned("b"))
    tables = await files.readers["lifecycle"].ask(
        lambda database: [
            database.execute(sql).fetchone()[0]
            for sql in (
                "SELECT count(*) FROM changes",
                "SELECT count(*) FROM outflow",
                "SELECT count(*) FROM dispatches",
            )
        ]
    )
    assert tables == [2, 0, 2], "a dispatch is a change and its projection, and nothing flows out"


async def test_each_change_is_told_once_whatever_ends_the_process(files: Files) -> None:
    """Where the mover is cut off does not matter: the entries and how far they go are one commit."""
    expected = []
    for number in range(6):
        lifecycle, mover, ledger = await files.open()
        names = [f"{number}{letter}" for letter in "abc"]
        for name in names:
            await commit(lifecycle, planned(name, cause=name))
            expected.append(f"{RUN}/{name}/pi-1/1")
        if number % 3 == 0:
            continue  # killed before the mover had looked
        moving = asyncio.ensure_future(mover.move())
        if number % 3 == 1:
            for _ in range(number):
                await asyncio.sleep(0)
            moving.cancel()  # killed, or closed, in the middle; what began may commit
            await asyncio.wait([moving])
            await ledger.settled()
            if number == 4:
                await mover.move()  # as when the mover is closed and moves what is left
        else:
            await moving
    _, mover, ledger = await files.open()
    await mover.move()
    found = [(await files.told_of(n))[0]["dispatch"] for n in range(1, ledger.tip.size + 1)]
    assert found == expected
    assert await mover.move() is False
    assert ledger.tip.size == len(expected)


async def test_a_message_of_many_results_is_one_entry(files: Files) -> None:
    lifecycle, mover, _ = await files.open()
    names = [f"a{number}" for number in range(limits.LEDGER_ROWS + 5)]
    await commit(lifecycle, *(planned(name) for name in names))
    await commit(lifecycle, *(taken(name, number) for number, name in enumerate(names)))
    await commit(lifecycle, taken("x", 1, cause="another"), taken("x", 1, "another", "pi-2"))
    await mover.move()
    kinds = [(kind, actor) for kind, actor, _ in await files.entries()]
    assert kinds == [
        *[("dispatch-planned", "orchestrator")] * 2,
        *[("result-taken", "pi-1")] * 3,
        ("result-taken", "pi-2"),
    ]
    assert len(await files.told_of(3)) == limits.LEDGER_ROWS
    assert [row["result"] for row in await files.told_of(4)] == [*range(200, 205)]


async def test_only_what_the_table_names_is_told(files: Files) -> None:
    lifecycle, mover, ledger = await files.open()
    by_action = c.MemoryWritten(1, "m", "s", "k", 1, 1, f"{RUN}/a/pi-1/1")
    by_person = c.MemoryWritten(2, "m", "s", "k", 2, 1, "anna")
    await commit(lifecycle, by_action, by_person, c.ActionWaiting(3, "m", RUN, "a", {}))
    await mover.move()
    assert await files.entries() == [("memory-written", "anna", "s")]
    assert ledger.tip.seq == 3, "what is not told is not looked at again"


async def test_large_values_stand_as_their_hash(files: Files) -> None:
    lifecycle, mover, _ = await files.open()
    await commit(lifecycle, taken("a", {"text": "x" * 10_000}), taken("b", "y" * 300))
    await mover.move()
    first, second = (row["result"] for row in await files.told_of(1))
    assert first["bytes"] > 10_000
    assert second == short("y" * 300) != "y" * 300
    assert short("y" * 200) == "y" * 200


async def test_entries_are_never_changed_or_deleted(files: Files) -> None:
    lifecycle, mover, ledger = await files.open()
    await commit(lifecycle, planned("a"), ended())
    await mover.move()
    for sql in (
        "UPDATE entries SET actor = 'me'",
        "DELETE FROM entries WHERE n = 2",
        "INSERT INTO entries SELECT 9, entry, at_ms, actor, kind, subject FROM entries LIMIT 1",
        "INSERT OR REPLACE INTO entries SELECT 1, entry, 0, '', '', '' FROM entries LIMIT 1",
    ):
        with pytest.raises(StoreError, match="entries are"):
            await ledger.work(lambda database, sql=sql: database.execute(sql))
    assert len(await files.entries()) == 2


async def test_a_ledger_that_cannot_be_written_stops_dispatching(files: Files) -> None:
    lifecycle, mover, _ = await files.open(broken=True)
    await commit(lifecycle, planned("a"))
    with pytest.raises(StoreError):
        await mover.move()
    files.clock.advance(limits.OUTFLOW_AGE_MS + 1)
    mover.measure()
    assert (files.told, mover.behind) == ([True], True)
    files.breaks[0] = False
    await mover.move()
    assert (files.told, mover.behind) == ([True, False], False)
    assert await files.entries() == [("dispatch-planned", "orchestrator", RUN)]


async def test_an_older_lifecycle_is_noticed_and_told_of_all_the_same(files: Files) -> None:
    lifecycle, mover, _ = await files.open()
    await commit(lifecycle, planned("a"), ended())
    await mover.move()
    older = LedgerFile(lambda file: files.stores[file], 1)
    assert await older.load() is False
    assert older.tip.seq == 1
    newer = LedgerFile(lambda file: files.stores[file], 2)
    assert await newer.load() is True


async def test_time_never_goes_back_in_the_ledger(files: Files) -> None:
    lifecycle, mover, _ = await files.open()
    await commit(lifecycle, planned("a", at_ms=50), planned("b", cause="later", at_ms=40))
    await mover.move()
    times = await files.rows("SELECT at_ms FROM entries ORDER BY n")
    assert times == [(50,), (50,)]


#: what is no decision of its own, or is told by what follows from it
UNTOLD = {
    c.NodeReturned,
    c.NonceUsed,
    c.MembersFixed,
    c.GroupFrozen,
    c.ActionWaiting,
    c.DispatchAccepted,
    c.DispatchStarted,
    c.RetryPlanned,
    c.ActionEnded,
    c.ActionsEnded,
    c.RunAborting,
    c.RollbackDue,
}


def test_of_every_class_of_change_somebody_decided_whether_it_is_told() -> None:
    assert {*FORMS} - {*LEDGERED} == UNTOLD


async def test_decisions_about_nodes_and_what_speaks_against_them_are_told(files: Files) -> None:
    lifecycle, mover, ledger = await files.open()
    decided = AdmissionChanged(7, "q", "pi-1", Admission.QUARANTINED, "it smells", "eve", 0)
    seen = EvidenceKept(8, "m", "pi-1", "malformed", "no such field", "counted")
    await commit(lifecycle, decided, seen)
    await mover.move()
    assert ledger.tip.size == 2
    [[first], [second]] = [await files.told_of(n) for n in (1, 2)]
    assert (first["admission"], first["reason"], first["by"]) == ("quarantined", "it smells", "eve")
    assert (second["evidence"], second["verdict"]) == ("malformed", "counted")


def test_the_table_names_fields_that_the_changes_have() -> None:
    for made_by, told in LEDGERED.items():
        names = {*made_by.__dataclass_fields__}
        assert {told.subject, *told.names.split()} <= names, made_by.__name__


def test_a_file_that_cannot_grow_says_so_and_keeps_what_it_had(tmp_path: Path) -> None:
    """What `store.behind` rests on: nothing of entries that do not fit stays."""

    async def live() -> None:
        store = Database(tmp_path / "metadata.db", migrations("metadata"))
        ledger = LedgerFile(lambda _: store, 0)
        await ledger.load()
        body = msgpack.packb([1])
        await ledger.append([(1, None, 1, "e", "epoch-raised", body)], 1)
        # the room that the presized WAL left
        store._database.execute("VACUUM")
        pages = await ledger.work(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        store._database.execute(f"PRAGMA max_page_count={pages}")
        rows = [(n, None, n, f"e{n}", "epoch-raised", msgpack.packb([n])) for n in range(2, 9_000)]
        with pytest.raises(StoreError) as caught:
            await ledger.append(rows, 9_000)
        assert caught.value.code == "store.full"
        assert (ledger.tip.size, ledger.tip.seq) == (1, 1)
        await store.close()

    asyncio.run(live())
    with sqlite3.connect(tmp_path / "metadata.db") as database:
        assert database.execute("SELECT count(*) FROM entries").fetchone() == (1,)
    database.close()


async def test_what_is_still_in_memory_and_what_the_file_says_become_the_same_entries(
    files: Files,
) -> None:
    lifecycle, mover, _ = await files.open()
    fault = Fault("driver.crashed", "exit 9", {"exit": 9})
    failed = replace(taken("b", None), state=DispatchState.FAILED, fault=fault)
    large = {"text": "ü" * limits.LEDGER_VALUE_BYTES}
    changes = (planned("a"), planned("b"), taken("a", large), failed, ended())
    await commit(lifecycle, *changes)
    await mover.move()
    from_memory = await files.rows("SELECT payload FROM payloads ORDER BY n")
    await commit(lifecycle, *changes[2:])
    _, after_restart, _ = await files.open()
    await after_restart.move()
    from_file = await files.rows("SELECT payload FROM payloads ORDER BY n")
    told = [told_of(payload) for (payload,) in from_memory[1:]]
    again = [told_of(payload) for (payload,) in from_file[-len(told) :]]
    assert told == again
    assert len(from_file) == len(from_memory) + len(told)


async def test_what_was_copied_is_on_the_disk_before_lifecycle_forgets_it(files: Files) -> None:
    lifecycle, mover, _ = await files.open()
    await commit(lifecycle, c.EpochRaised(1, "e", 1), planned("a"))
    await commit(lifecycle, taken("a", {"x": 1}))
    output, asked = files.stores["output"], []

    async def no_power() -> None:
        asked.append(await run(output, lambda db: db.execute("SELECT * FROM results").fetchall()))
        raise StoreError("store.failed", "the power is gone")

    output.sync = no_power  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        await mover.move()
    assert len(asked[0]) == 1
    assert lifecycle.outflow(files.clock.now_ms())[0] == 1


class Dying:
    """A store whose process ends at the `last`-th commit of the mover: before it, or just behind it."""

    def __init__(self, inner: Store, life: list[int], behind: bool) -> None:
        self._inner, self._life, self._behind = inner, life, behind

    def submit(self, work: Any, done: Any) -> None:
        self._life[0] -= 1
        gone = StoreError("store.failed", "the process is gone")
        if self._life[0] > 0:
            self._inner.submit(work, done)
        elif self._life[0] == 0 and self._behind:
            self._inner.submit(work, lambda _result, _error: done(None, gone))
        else:
            done(None, gone)

    async def sync(self) -> None:
        if self._life[0] <= 0:
            raise StoreError("store.failed", "the process is gone")
        await self._inner.sync()


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("last", range(1, 8))
async def test_dead_at_any_commit_of_the_mover_nothing_is_lost_or_doubled(
    files: Files, last: int, behind: bool
) -> None:
    lifecycle, _, _ = await files.open()
    await commit(lifecycle, c.EpochRaised(1, "e", 1), planned("a"), planned("b"))
    await commit(lifecycle, taken("a", {"x": 1}))
    await commit(lifecycle, taken("b", {"x": 2}, "m2"), ended())
    life, real = [last], dict(files.stores)
    for file in ("output", "input", "metadata"):
        files.stores[file] = Dying(real[file], life, behind)  # type: ignore[assignment]
    died = False
    try:
        _, mover, _ = await files.open()
        while await mover.move():
            pass
    except StoreError:
        died = True
    assert died == (life[0] <= 0)
    files.stores.update(real)
    _, mover, _ = await files.open()
    while await mover.move():
        pass
    kinds = [kind for kind, _, _ in await files.entries()]
    assert kinds == [
        "epoch-raised",
        "dispatch-planned",
        "result-taken",
        "result-taken",
        "run-ended",
    ]
    query = "SELECT id FROM results ORDER BY id"
    found = await files.readers["output"].ask(lambda database: database.execute(query).fetchall())
    assert [id.split("/")[1] for (id,) in found] == ["a", "b"]
