"""One body over the real file and its memory twin; the failing twin; what a file survives."""

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from imlmesh_protocol.errors import StoreError
from imlmesh_runtime import sqlite
from imlmesh_runtime.sqlite import (
    Database,
    FailingStore,
    MemoryStore,
    Store,
    connect,
    open_file,
    run,
    transact,
)

FIRST = "CREATE TABLE row (id INTEGER PRIMARY KEY, text TEXT NOT NULL)"
SECOND = "ALTER TABLE row ADD COLUMN note TEXT"


@pytest.fixture(params=["file", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store
    made = Database(tmp_path / "a.db", [FIRST]) if request.param == "file" else MemoryStore([FIRST])
    yield made
    await made.close()


def insert(text: str | None) -> Any:
    return lambda database: database.execute("INSERT INTO row (text) VALUES (?)", (text,)).lastrowid


def texts(database: sqlite3.Connection) -> list[str]:
    return [text for (text,) in database.execute("SELECT text FROM row ORDER BY id")]


async def test_what_is_written_is_read(store: Store) -> None:
    assert await run(store, insert("a")) == 1
    assert await run(store, insert("b")) == 2
    assert await run(store, texts) == ["a", "b"]


async def test_work_that_fails_leaves_nothing_behind(store: Store) -> None:
    def half(database: sqlite3.Connection) -> None:
        insert("kept?")(database)
        insert(None)(database)

    with pytest.raises(StoreError) as caught:
        await run(store, half)
    assert caught.value.code == "store.failed"
    assert await run(store, texts) == []


async def test_work_is_done_in_the_order_submitted(store: Store) -> None:
    done: asyncio.Queue[Any] = asyncio.Queue()
    for text in "abc":
        store.submit(insert(text), lambda result, error: done.put_nowait((result, error)))
    assert [await done.get() for _ in range(3)] == [(1, None), (2, None), (3, None)]


async def test_the_failing_twin_fails_everything() -> None:
    with pytest.raises(StoreError):
        await run(FailingStore(), texts)


async def test_done_comes_after_the_commit(tmp_path: Path) -> None:
    store = Database(tmp_path / "a.db", [FIRST])
    await run(store, insert("a"))
    reader = connect(tmp_path / "a.db", read_only=True)
    assert texts(reader) == ["a"]
    reader.close()
    await store.close()


async def test_a_file_keeps_its_rows_and_migrates_with_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = Database(path, [FIRST])
    await run(store, insert("old"))
    await store.close()
    store = Database(path, [FIRST, SECOND])
    rows = await run(
        store, lambda database: database.execute("SELECT text, note FROM row").fetchall()
    )
    assert rows == [("old", None)]
    await store.close()
    copy = sqlite3.connect(tmp_path / "a.db.before-2")
    assert texts(copy) == ["old"]
    copy.close()


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    open_file(tmp_path / "a.db", [FIRST, SECOND]).close()
    with pytest.raises(StoreError) as caught:
        open_file(tmp_path / "a.db", [FIRST])
    assert caught.value.code == "store.version"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(StoreError) as caught:
        open_file(tmp_path / "a.db", [FIRST])
    assert caught.value.code in ("store.corrupt", "store.failed")


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    open_file(tmp_path / "a.db", [FIRST]).close()
    with pytest.raises(StoreError):
        open_file(tmp_path / "a.db", [FIRST, "CREATE TABLE other (x); CREATE TABLE row (y)"])
    database = open_file(tmp_path / "a.db", [FIRST])
    names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    assert "other" not in names
    database.close()


KILLED = """
import sys
from pathlib import Path
from imlmesh_runtime.sqlite import open_file
slow = "INSERT INTO row (text) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n " \\
    "LIMIT 60000) SELECT 'new ' || i FROM n"
print("ready", flush=True)
open_file(Path(sys.argv[1]), [sys.argv[2], sys.argv[3], slow])
print("done", flush=True)
"""


@pytest.mark.parametrize("after_s", [0.0, 0.03, 0.2])
def test_killed_in_the_middle_a_migration_happened_wholly_or_not_at_all(
    tmp_path: Path, after_s: float
) -> None:
    path = tmp_path / "a.db"
    database = open_file(path, [FIRST])
    old = [(f"old {n}",) for n in range(5_000)]
    transact(database, lambda rows: rows.executemany("INSERT INTO row (text) VALUES (?)", old))
    database.close()
    command = [sys.executable, "-c", KILLED, str(path), FIRST, SECOND]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(after_s)  # where it is by then differs, and shall
        child.kill()
    left = sqlite3.connect(path)
    version = left.execute("PRAGMA user_version").fetchone()[0]
    rows = left.execute("SELECT count(*) FROM row").fetchone()[0]
    left.close()
    assert (version, rows) in ((1, 5_000), (3, 65_000))
    whole = tmp_path / "a.db.before-3"
    if whole.exists():
        copy = sqlite3.connect(whole)
        assert copy.execute("SELECT count(*) FROM row").fetchone() == (5_000,)
        copy.close()
    # the next start finds its way, whatever lies around
    open_file(path, [FIRST, SECOND, "SELECT 1"]).close()
    copy = sqlite3.connect(whole)
    assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    copy.close()
    assert not list(tmp_path.glob("*.draft*"))


async def test_what_was_synced_is_in_files_that_a_power_cut_leaves(tmp_path: Path) -> None:
    store = Database(tmp_path / "a.db", [FIRST], synchronous="NORMAL")
    await run(store, insert("kept"))
    await store.sync()
    for name in ("a.db", "a.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / f"cut-{name}")
    await store.close()
    copy = sqlite3.connect(tmp_path / "cut-a.db")
    assert texts(copy) == ["kept"]
    copy.close()
    with pytest.raises(StoreError):
        await FailingStore().sync()


def test_a_full_disk_is_no_reason_not_to_read_what_is_there(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sqlite, "free_space", lambda folder: (0, 1))
    open_file(tmp_path / "a.db", [FIRST]).close()
    database = open_file(tmp_path / "a.db", [FIRST])
    assert texts(database) == []
    database.close()
    # and its log is not grown into the last of it
    size = (tmp_path / "a.db").stat().st_size
    assert size < 100_000


def test_the_log_is_grown_before_the_first_commit(tmp_path: Path) -> None:
    database = open_file(tmp_path / "a.db", [FIRST])
    grown = (tmp_path / "a.db-wal").stat().st_size
    for _ in range(50):
        database.execute("INSERT INTO row (text) VALUES (?)", ("x" * 500,))
    assert grown >= 4 * 1024 * 1024
    assert (tmp_path / "a.db-wal").stat().st_size == grown
    database.close()


@pytest.mark.parametrize("made_by", [4_096, 1_024], ids=["older", "new"])
async def test_short_commits_write_little_and_the_log_never_grows(
    tmp_path: Path, made_by: int
) -> None:
    """Also in a file of an older version, which keeps the pages that it has."""
    path = tmp_path / "a.db"
    with contextlib.closing(connect(path, page_bytes=made_by)) as older:
        older.execute("CREATE TABLE before (id INTEGER PRIMARY KEY)")
    store = Database(path, [FIRST], inline=True)
    log = tmp_path / "a.db-wal"
    grown = log.stat().st_size
    for _ in range(2 * grown // made_by):
        await run(store, insert("a"))
    assert log.stat().st_size <= grown
    [page_bytes] = await run(
        store, lambda database: database.execute("PRAGMA page_size").fetchone()
    )
    assert page_bytes == made_by
    await store.close()


async def test_a_new_file_of_short_commits_has_small_pages(tmp_path: Path) -> None:
    for inline, expected in ((True, 1_024), (False, 4_096)):
        store = Database(tmp_path / f"{expected}.db", [FIRST], inline=inline)
        found = await run(store, lambda database: database.execute("PRAGMA page_size").fetchone())
        assert found == (expected,)
        await store.close()


async def test_a_value_that_no_column_holds_is_a_coded_error(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        await run(store, insert(1 << 64))  # type: ignore[arg-type]
    assert caught.value.code == "store.failed"
    assert await run(store, texts) == []
