"""A journal that cannot be read, or lacks commits, is set aside; everything else is no reason for that."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from imlmesh_node import opening
from imlmesh_node.core.changes import Change, DispatchTaken, FloorRaised, LossTold
from imlmesh_node.journal import MIGRATIONS, Journal, Loaded
from imlmesh_node.opening import open_journal
from imlmesh_protocol.errors import MeshError, StoreError
from imlmesh_protocol.limits import JOURNALS_KEPT
from imlmesh_protocol.states import Effect
from imlmesh_runtime.sqlite import MemoryStore, run

TAKEN = DispatchTaken("r/a/pi/1", b"1", Effect.ONCE, 5)


async def commit(journal: Journal, *changes: Change) -> None:
    ended: asyncio.Future[MeshError | None] = asyncio.get_running_loop().create_future()
    journal.commit(list(changes), ended.set_result)
    error = await asyncio.wait_for(ended, 10)
    if error is not None:
        raise error


def copy_as_a_crash_leaves_it(folder: Path, to: Path) -> Path:
    """The files of an open journal, as they are on the disk at this moment."""
    to.mkdir()
    for part in ("journal.db", "journal.db-wal"):
        (to / part).write_bytes((folder / part).read_bytes())
    return to / "journal.db"


@pytest.fixture
async def crashed(tmp_path: Path) -> Path:
    """The journal of an agent that was killed in boot 7,000 while it held one dispatch."""
    folder = tmp_path / "before"
    folder.mkdir()
    journal, _ = await open_journal(folder / "journal.db", 7_000)
    await commit(journal, TAKEN, FloorRaised(3, 44))
    path = copy_as_a_crash_leaves_it(folder, tmp_path / "node")
    await journal.close()
    return path


async def opened(path: Path, wall_ms: int = 9_000) -> Loaded:
    journal, loaded = await open_journal(path, wall_ms)
    await journal.close()
    return loaded


async def test_a_kill_is_no_loss(crashed: Path) -> None:
    loaded = await opened(crashed)
    assert [record.dispatch for record in loaded.records] == ["r/a/pi/1"]
    assert (loaded.lost, loaded.since, loaded.boot) == (False, 7_000, 9_000)


async def test_a_clean_end_leaves_no_log_and_is_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    await opened(path, 1)
    assert not path.with_name("journal.db-wal").exists()
    assert (await opened(path, 2)).lost is False


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database, not at all" * 1_000)
    path.with_name("journal.db-wal").unlink()


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 100])
    path.with_name("journal.db-wal").unlink()


def torn_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 : 6 * 4096] = b"\xff" * 5 * 4096
    path.write_bytes(bytes(data))
    path.with_name("journal.db-wal").unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_log(path: Path) -> None:
    path.with_name("journal.db-wal").unlink()


def empty_log(path: Path) -> None:
    path.with_name("journal.db-wal").write_bytes(b"")


def overwritten_log(path: Path) -> None:
    log = path.with_name("journal.db-wal")
    log.write_bytes(b"\0" * log.stat().st_size)


TEARS = [garbage, truncated, torn_page, empty, no_log, empty_log, overwritten_log]


@pytest.mark.parametrize("tear", TEARS)
async def test_what_is_torn_is_kept_and_the_new_one_says_so(
    crashed: Path, tear: Callable[[Path], None]
) -> None:
    tear(crashed)
    loaded = await opened(crashed)
    assert (loaded.records, loaded.floor, loaded.lost) == ((), (0, 0), True)
    assert loaded.since == loaded.boot >= 9_000
    kept = crashed.with_name("journal.db.lost-9000")
    assert kept.exists()
    # and says it until it was told
    again = await opened(crashed, 9_500)
    assert (again.lost, again.since, again.boot) == (True, loaded.since, 9_500)


SPOILS = {
    "a result": "UPDATE dispatches SET result = x'c1'",
    "an outcome": "UPDATE dispatches SET result = x'95a3626164c0c000c0'",
    "an effect": "UPDATE dispatches SET effect = 'oncf'",
    "a count": "DELETE FROM meta WHERE name = 'seq'",
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=list(SPOILS))
async def test_a_value_that_the_disk_changed_is_a_tear_as_well(
    crashed: Path, tmp_path: Path, spoil: str
) -> None:
    """SQLite takes such a file: nothing of its own is torn."""
    with contextlib.closing(sqlite3.connect(crashed)) as database:
        with database:
            assert database.execute(spoil).rowcount == 1
        path = copy_as_a_crash_leaves_it(crashed.parent, tmp_path / "spoilt")
    loaded = await opened(path)
    assert (loaded.records, loaded.lost) == ((), True)
    assert loaded.boot > 7_000
    assert path.with_name("journal.db.lost-9000").exists()


async def test_a_loss_that_was_told_is_told_once(crashed: Path) -> None:
    garbage(crashed)
    journal, _ = await open_journal(crashed, 9_000)
    await commit(journal, LossTold())
    await journal.close()
    loaded = await opened(crashed, 9_001)
    assert (loaded.lost, loaded.since) == (False, 9_000)


async def test_boots_go_on_rising_where_the_old_number_can_be_read(crashed: Path) -> None:
    no_log(crashed)
    assert (await opened(crashed, 5)).boot > 7_000  # a clock without a battery


async def test_so_many_are_kept(crashed: Path) -> None:
    for wall_ms in range(10_000, 10_000 + JOURNALS_KEPT + 3):
        empty(crashed)
        await opened(crashed, wall_ms)
    kept = sorted(each.name for each in crashed.parent.glob("journal.db.lost-*"))
    assert len(kept) == JOURNALS_KEPT
    assert kept[-1] == f"journal.db.lost-{10_000 + JOURNALS_KEPT + 2}"


@pytest.mark.parametrize("code", ["store.full", "store.failed", "store.version"])
async def test_a_disk_in_trouble_and_a_newer_version_cost_no_journal(
    crashed: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def refuse(path: Path) -> Journal:
        raise StoreError(code, "as the test says")

    monkeypatch.setattr(opening.Journal, "open", refuse)
    with pytest.raises(StoreError) as caught:
        await open_journal(crashed, 9_000)
    assert caught.value.code == code
    monkeypatch.undo()
    assert (await opened(crashed)).lost is False


async def test_a_journal_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as database:
        database.executescript(MIGRATIONS[0])
        database.execute("UPDATE meta SET value = 6_000 WHERE name = 'boot'".replace("_", ""))
        database.execute("PRAGMA user_version = 1")
    database.close()
    loaded = await opened(path)
    assert (loaded.lost, loaded.since, loaded.boot) == (False, 1, 9_000)


class FullFor(MemoryStore):
    """The twin whose disk is full for so many commits."""

    def __init__(self, commits: int) -> None:
        super().__init__(MIGRATIONS)
        self.left = commits

    def submit(self, work: object, done: object) -> None:
        if self.left:
            self.left -= 1
            done(None, StoreError("store.full", "no room"))  # type: ignore[operator]
        else:
            super().submit(work, done)  # type: ignore[arg-type]


async def test_a_commit_that_finds_the_disk_full_waits_for_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imlmesh_node.journal.JOURNAL_RETRY_MS", 1)
    store = FullFor(3)
    await commit(Journal(store), TAKEN)
    rows = await run(store, lambda db: db.execute("SELECT id FROM dispatches").fetchall())
    assert rows == [("r/a/pi/1",)]
    with pytest.raises(StoreError) as caught:
        await commit(Journal(FullFor(1_000)), TAKEN)
    assert caught.value.code == "store.full"
