"""Changes of runs that ended long ago are packed, and nobody is told anything else for that."""

import asyncio
import itertools
import sqlite3
import zlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.compaction import Compaction, _put, next_piece
from imlmesh_orchestrator.store.lifecycle import _KNOWN, Lifecycle, replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.permits import RARE
from imlmesh_orchestrator.store.reading import FileReader, MemoryReader, Reader
from imlmesh_orchestrator.store.rollups import used_bytes
from imlmesh_orchestrator.views import stories
from imlmesh_protocol import limits
from imlmesh_protocol.errors import StoreError
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.sqlite import Database, Done, MemoryStore, Store, Work, connect
from past_files import FILES, Files
from past_runs import submit
from scheduler_stage import Stage, action, plan
from waiting import eventually

_ROWS = "SELECT seq, run FROM changes WHERE run IS NOT NULL ORDER BY seq"
_AWAITED = """INSERT INTO outflow (seq, file, id)
    SELECT seq, 'output', 'x' FROM changes WHERE seq >= ? AND run IS NOT NULL LIMIT 1"""
_ATTEMPT = """SELECT dispatch, run FROM dispatches, runs
    WHERE dispatch > run || '/' AND dispatch < run || '0' LIMIT 1"""
_COUNTERS = "SELECT counter, first_seq FROM compacted JOIN runs USING (run)"
_PACKED = "SELECT run, count(*) FROM compacted GROUP BY run"


@pytest.fixture(params=["real", "memory"])
async def files(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Files]:
    stores: dict[str, Store] = {}
    readers: dict[str, Reader] = {}
    for file in FILES:
        if request.param == "real":
            path = tmp_path / f"{file}.db"
            stores[file] = Database(path, migrations(file), inline=file == "lifecycle")
            readers[file] = FileReader(path)
        else:
            stores[file] = MemoryStore(migrations(file))
            readers[file] = MemoryReader(stores[file])
    opened = await Files.open(stores, readers)
    await opened.remember()
    yield opened
    for file in FILES:
        readers[file].close()
        await stores[file].close()


async def test_all_is_told_as_before(files: Files) -> None:
    before, held = await files.told(), await files.readers["lifecycle"].ask(replay)
    ledger = await files.rows("SELECT entry FROM entries", file="metadata")
    states = {run["state"] for run in before["runs"]}
    assert states >= {"completed", "failed", "cancelled"}
    old = {run["run"] for run in before["runs"] if (run["ended_at_ms"] or 1 << 62) < files.old_ms}
    kinds = {row["kind"] for run in old for row in before[run]["story"]}
    assert kinds >= {"approval-closed", "compensations-planned", "memory-written", "result-kept"}
    assert kinds >= {"retry-planned", "run-retried", "members-fixed", "action-unknown"}
    await files.compact()
    rows, packed = await files.rows(_ROWS), await files.rows(_PACKED)
    # one result is too large
    assert len([run for _, run in rows if run in old]) == 1
    assert {run for run, _ in packed} == old
    assert max(count for _, count in packed) > 1
    assert await files.told() == before
    again = await files.again()
    assert await again.told() == before
    assert await again.readers["lifecycle"].ask(replay) == held
    await again.compact()
    assert (await files.rows(_ROWS), await files.rows(_PACKED)) == (rows, packed)
    await again.move()
    assert await files.rows("SELECT entry FROM entries", file="metadata") == ledger


async def test_of_what_a_replay_reads_nothing_is_a_run_s(files: Files) -> None:
    known = await files.rows(_KNOWN)
    assert len(known) > 5
    assert {run for run, *_ in known} == {None}
    assert not [kind for kind in RARE if issubclass(kind, c.RunChange)]


async def test_what_only_travelled_and_plans_that_are_stored_are_not_kept(files: Files) -> None:
    named = "SELECT run FROM runs WHERE retry_of IS NOT NULL"
    [(run,)] = await files.rows(named)
    plain = b"".join(
        body for (body,) in await files.rows("SELECT body FROM changes WHERE run = ?", run)
    )
    await files.compact()
    sql = "SELECT body FROM compacted WHERE run = ?"
    packed = b"".join(zlib.decompress(body) for (body,) in await files.rows(sql, run))
    for word in (b"target_mode", b"timeout_ms"):  # of the plan; of what travels
        assert word in plain
        assert word not in packed
    ask = files.readers["lifecycle"].ask
    changes = [change for _, change in await ask(lambda db: stories.changes_after(db, run, 0, 99))]
    created, planned = (
        next(one for one in changes if isinstance(one, kind))
        for kind in (c.RunCreated, c.DispatchPlanned)
    )
    assert [each.id for each in created.plan.actions] == ["a", "x", "u"]
    assert (planned.bin, planned.hash) == (b"", b"")


async def test_a_plan_whose_stored_text_is_another_is_kept(files: Files) -> None:
    sql = "UPDATE plans SET document = replace(document, ?, ?)"
    await files.write(sql, ':"undone"', ':"other"')
    ask = files.readers["lifecycle"].ask
    before = await ask(lambda db: stories.changes_after(db, None, 0, 10_000))
    await files.compact()
    after = await ask(lambda db: stories.changes_after(db, None, 0, 10_000))
    plans = [
        [one.plan for _, one in each if isinstance(one, c.RunCreated)] for each in (before, after)
    ]
    assert plans[0] == plans[1]
    assert len([one for one in plans[1] if one.session_id == "undone"]) == 2


async def test_young_runs_open_runs_and_the_last_change_stay(files: Files) -> None:
    stage = Stage("pi-1")
    run = submit(stage, plan(action("a")))
    stage.end(run, "a")
    own = [each for each in stage.changes if isinstance(each, c.RunChange)]
    for change in own:
        change.run = "r-99-last"
        if isinstance(change, c.RunCreated):
            change.counter = 99
        elif hasattr(change, "dispatch"):
            change.dispatch = "r-99-last/a/pi-1/1"
    await files.commit(*own)
    await files.move()
    # what was copied leaves outflow with the next commit: that it is gone is all that is left to be done
    await files.write("DELETE FROM outflow")
    before = await files.told()
    ended = {run["run"]: run["ended_at_ms"] for run in before["runs"]}
    await files.compact()
    left = {run for _, run in await files.rows(_ROWS)}
    assert {run for run, at_ms in ended.items() if (at_ms or 1 << 62) >= files.old_ms} <= left
    assert (await files.rows(_ROWS))[-1] == (files.lifecycle.last_seq, "r-99-last")
    again = await files.again()
    assert again.lifecycle.last_seq == files.lifecycle.last_seq
    await again.commit(c.EpochRaised(9, "e", 9))
    assert await again.told() != before
    await again.move()
    await again.compact()
    assert "r-99-last" not in {run for _, run in await files.rows(_ROWS)}


async def test_what_is_not_copied_or_not_told_stays(files: Files) -> None:
    every = await files.rows(_ROWS)
    [(third, run), *_] = [row for row in every if row[0] > files.lifecycle.last_seq // 3]
    compaction = files.compaction(lambda: third)
    while await compaction.once():
        pass
    rows = await files.rows(_ROWS)
    assert [row for row in rows if row[0] > third] == [row for row in every if row[0] > third]
    assert (third, run) not in rows
    half = files.lifecycle.last_seq // 2
    await files.write(_AWAITED, half)
    [(waits,)] = await files.rows("SELECT seq FROM outflow")
    await files.compact()
    assert [row for row in await files.rows(_ROWS) if row[0] >= waits] == [
        row for row in every if row[0] >= waits
    ]


async def test_a_late_result_is_stored_shown_and_packed_later(files: Files) -> None:
    await files.compact()
    [(dispatch, run)] = await files.rows(_ATTEMPT)
    packs = "SELECT count(*) FROM compacted WHERE run = ?"
    [(first,)] = await files.rows(packs, run)
    await files.commit(c.ResultKept(5, "m", run, dispatch, "completed", "very late", None))
    await files.move()
    await files.commit(c.EpochRaised(6, "e", 9))
    before = await files.told()
    assert before[run]["story"][-1]["kind"] == "result-kept"
    assert before[run]["shown"]["seq"] == files.lifecycle.last_seq - 1
    copied = "SELECT count(*) FROM results WHERE id LIKE ? || '@%'"
    [(count,)] = await files.rows(copied, dispatch, file="output")
    assert count == 1
    await files.compact()
    assert await files.rows(packs, run) == [(first + 1,)]
    assert await files.told() == before


async def test_a_piece_of_work_is_small_and_the_oldest_run_is_first(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, compaction = await files.told(), files.compaction()
    monkeypatch.setattr(limits, "COMPACT_RUNS", 2)
    monkeypatch.setattr(limits, "COMPACT_ROWS", 9)
    counters: list[int] = []
    more = True
    while more:
        left = len(await files.rows(_ROWS))
        seen = await files.rows(_COUNTERS)
        more = await compaction.once()
        assert 0 <= left - len(await files.rows(_ROWS)) <= 9
        new = await files.rows(_COUNTERS)
        counters += [counter for counter, _ in sorted(set(new) - set(seen))]
    assert counters == sorted(counters)
    assert len(set(counters)) > 5
    assert await files.told() == before


async def test_whatever_breaks_a_piece_leaves_all_of_it_or_nothing(files: Files) -> None:
    """Other than a kill, which has a test of its own: the transaction ends at each of its statements."""
    before, rows = await files.told(), await files.rows(_ROWS)
    real = files.stores["lifecycle"]

    class Breaking:
        left = 0

        def submit(self, work: Work, done: Done) -> None:
            real.submit(lambda database: work(Broken(database)), done)

    class Broken:
        total_changes = property(lambda self: self._database.total_changes)

        def __init__(self, database: sqlite3.Connection) -> None:
            self._database = database

        def execute(self, *given: Any) -> Any:
            Breaking.left -= 1
            if Breaking.left == 0:
                raise sqlite3.OperationalError("disk I/O error")
            return self._database.execute(*given)

    files.lifecycle._store = Breaking()  # type: ignore[assignment]
    compaction, broken = files.compaction(), 0
    for number in itertools.count(1):
        Breaking.left = number
        try:
            await compaction.once()
        except StoreError:
            broken += 1
            assert await files.rows(_ROWS) == rows
            assert await files.rows(_PACKED) == []
        else:
            break
    assert broken > 2
    assert len(await files.rows(_ROWS)) < len(rows)
    assert await files.told() == before


async def test_a_change_that_is_not_there_any_more_is_not_packed(files: Files) -> None:
    question = partial(next_piece, counter=0, before_ms=files.old_ms, below=1 << 62)
    piece = await files.readers["lifecycle"].ask(question)
    [(seq, _), *rows] = await files.rows(_ROWS)
    await files.write("DELETE FROM changes WHERE seq = ?", seq)
    with pytest.raises(StoreError, match=r"store\.failed"):
        await files.lifecycle.rewrite(partial(_put, packs=piece.packs))
    assert (await files.rows(_ROWS), await files.rows(_PACKED)) == (rows, [])


async def test_a_damaged_pack_is_called_that(files: Files) -> None:
    await files.compact()
    await files.write("UPDATE compacted SET body = x'00'")
    with pytest.raises(StoreError, match=r"store\.corrupt"):
        await files.told()


async def test_a_full_disk_does_not_keep_it_from_packing(tmp_path: Path) -> None:
    """The file may not grow by a page: what is packed has room in what its rows leave."""
    path = tmp_path / "lifecycle.db"
    store = Database(path, migrations("lifecycle"), inline=True)
    files = {"lifecycle": store, **{f: MemoryStore(migrations(f)) for f in FILES[1:]}}
    reader = FileReader(path)
    opened = await Files.open(files, {"lifecycle": reader})
    await opened.remember()
    before = await opened.told()
    database = store._database
    # in one row of no use lie all the pages that are free
    database.execute("VACUUM")
    [(pages,)] = database.execute("PRAGMA page_count").fetchall()
    assert database.execute(f"PRAGMA max_page_count={pages}").fetchone() == (pages,)
    held = used_bytes(database)
    await opened.compact()
    assert used_bytes(database) < held - limits.COMPACT_BYTES // 2
    assert await opened.told() == before
    reader.close()
    for each in files.values():
        await each.close()


class Full(MemoryStore):
    """Finds no room so many times."""

    full = 0

    def submit(self, work: Work, done: Done) -> None:
        if self.full > 0:
            self.full -= 1
            done(None, StoreError("store.full", "no room"))
        else:
            super().submit(work, done)


async def test_without_any_room_it_waits_and_goes_on_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "COMPACT_EVERY_MS", 1)
    monkeypatch.setattr(limits, "UPKEEP_PAUSE_MS", 0)
    store = Full(migrations("lifecycle"))
    stores: dict[str, Store] = {f: MemoryStore(migrations(f)) for f in FILES[1:]}
    files = await Files.open({"lifecycle": store, **stores}, {"lifecycle": MemoryReader(store)})
    await files.remember()
    rows, compaction = await files.rows(_ROWS), files.compaction()
    # what room there is belongs to the commit that waits for it
    files.lifecycle.waits = True
    store.full = 3
    compaction.start()
    for _ in range(50):
        await asyncio.sleep(0)
    assert (store.full, await files.rows(_ROWS)) == (3, rows)
    files.lifecycle.waits = False
    await eventually(lambda: store.full == 0 and "old runs stay as they are" in caplog.text)
    packed = "SELECT count(DISTINCT run) FROM compacted"
    await eventually(lambda: store.database.execute(packed).fetchone()[0] > 8)
    await compaction.close()
    assert not files.lifecycle.waits


async def test_the_store_shrinks_to_less_than_a_quarter(tmp_path: Path) -> None:
    path = tmp_path / "lifecycle.db"
    store, reader = Database(path, migrations("lifecycle"), inline=True), FileReader(path)
    lifecycle = Lifecycle(store, (await reader.ask(replay)).marks)
    stage = Stage("pi-1")
    for _ in range(4):
        run = submit(stage, plan(*(action(f"a{number}") for number in range(250))))
        while not run.ended:
            for key in stage.running(run):
                stage.end(run, key)
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    lifecycle.commit([*stage.changes, c.EpochRaised(1, "e", 9)], done.set_result)
    assert await done is None
    await lifecycle.rewrite(lambda database: database.execute("DELETE FROM outflow") and None)
    before = used_bytes(store._database)
    clock = ManualClock(stage.now_ms + limits.COMPACT_AFTER_MS + 1)
    compaction = Compaction(lifecycle, reader, clock, lambda: 1 << 62)
    while await compaction.once():
        pass
    after = used_bytes(store._database)
    assert after < before / 4
    reader.close()
    await store.close()
    with_file = connect(path, read_only=True)
    assert with_file.execute("PRAGMA quick_check").fetchone() == ("ok",)
    with_file.close()
