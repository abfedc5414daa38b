"""Real processes and disks: an orchestrator that packs its old runs, killed or without room, tells the same."""

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from imlmesh_orchestrator.audit.book import book_of_home
from imlmesh_orchestrator.audit.verify import verify
from imlmesh_orchestrator.store.lifecycle import replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.reading import FileReader
from imlmesh_runtime.sqlite import Database, MemoryStore, Store
from orchestrator_mesh import ME, Mesh, action, opened_mesh, plan
from past_files import FILES, Files
from waiting import eventually

pytestmark = pytest.mark.usefixtures("broker_program")
KILLS = 4
_OLD = "UPDATE runs SET ended_at_ms = ended_at_ms - 31 * 86400000"
_LEFT = "SELECT count(*) FROM changes WHERE run IS NOT NULL"
_PACKS = "SELECT count(*) FROM compacted"
#: packs what is old, a few changes at a time, and says so behind each piece; of a piece whose number is
#: the second argument it ends, in the hands of whoever kills it, before its COMMIT
_COMPACTING = """
import asyncio, sys
from pathlib import Path
from imlmesh_orchestrator.store.compaction import Compaction
from imlmesh_orchestrator.store.lifecycle import Lifecycle, replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.reading import FileReader
from imlmesh_protocol import limits
from imlmesh_runtime.clock import MeshClock
from imlmesh_runtime.sqlite import Database

async def compact(path, stop):
    limits.COMPACT_ROWS = 20
    store, reader = Database(path, migrations("lifecycle"), inline=True), FileReader(path)
    lifecycle = Lifecycle(store, (await reader.ask(replay)).marks)
    rewrite, pieces = lifecycle.rewrite, 0

    async def rewrite_and_stop(work):
        nonlocal pieces
        pieces += 1

        def stopped(database):
            work(database)
            if pieces == stop:
                print("stops", flush=True)
                sys.stdin.read()

        await rewrite(stopped)

    lifecycle.rewrite = rewrite_and_stop
    compaction = Compaction(lifecycle, reader, MeshClock(), lambda: 1 << 62)
    while await compaction.once():
        pass
    print("whole", flush=True)

asyncio.run(compact(Path(sys.argv[1]), int(sys.argv[2])))
"""


def rows(mesh: Mesh, sql: str) -> list[Any]:
    path = mesh.home.orchestrator / "lifecycle.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(sql).fetchall()


async def _told(mesh: Mesh, runs: list[str]) -> dict[str, Any]:
    """What the API says of these runs, but for when they ended, which the tests move, and for lines of
    logs, which no restart survives."""
    found: dict[str, Any] = {}
    for run in runs:
        found[run] = await mesh.get(f"runs/{run}")
        found[run].pop("ended_at_ms")
        found[f"{run} story"] = await mesh.get(f"runs/{run}/story")
        for after in (0, 500):
            query = f"events?run={run}&after={after}"
            found[query] = (await mesh.http.get(query)).text
    return found


async def _past(mesh: Mesh) -> tuple[list[str], dict[str, Any]]:
    """Ended runs, and what is told of them; then no orchestrator runs, and they seem to be old."""
    await mesh.orchestrator()
    await mesh.node("pi-1")
    await mesh.online("pi-1")
    echoes = [action(f"e{n}", "echo", params={"value": "x" * 2_000}) for n in range(200)]
    chain = [action("a0"), *(action(f"a{n}", after=(f"a{n - 1}",)) for n in range(1, 30))]
    bad = action("bad", "act", params={"marker": "marks", "fail_times": 9})
    texts = [plan(*echoes), plan(*chain), plan(bad, action("last", after=("bad",))), plan(*chain)]
    runs = [(await mesh.submit(text))["run"] for text in texts]
    states = [(await mesh.ended(run))["state"] for run in runs]
    assert states == ["completed", "completed", "failed", "completed"]
    told = await _told(mesh, runs)
    assert await mesh.kill(ME, signal.SIGTERM) == 0
    with contextlib.closing(sqlite3.connect(mesh.home.orchestrator / "lifecycle.db")) as database:
        database.execute("DELETE FROM outflow")  # the orchestrator ended well: all of it was copied
        database.execute(_OLD)
        database.commit()
    return runs, told


async def test_an_orchestrator_that_is_killed_while_it_packs_tells_the_same(tmp_path: Path) -> None:
    async with opened_mesh(tmp_path) as mesh:
        runs, before = await _past(mesh)
        for _ in range(KILLS):
            [(seen,)] = rows(mesh, _PACKS)
            await mesh.orchestrator()
            await eventually(lambda seen=seen: rows(mesh, _PACKS) > [(seen,)] or _whole(mesh), 30)
            await mesh.kill(ME)
        await mesh.orchestrator()
        await eventually(lambda: _whole(mesh), 30)
        await mesh.until("health", lambda _: True)
        assert await _told(mesh, runs) == before
        await mesh.online("pi-1")
        answer = await mesh.http.post(f"runs/{runs[2]}/retry", json={})
        assert answer.status_code == 202, answer.text
        await mesh.kill(ME, signal.SIGTERM)
        verdict = verify(book_of_home(mesh.home))
        assert (verdict.findings, verdict.sealed) == ([], verdict.entries)


async def test_on_a_disk_that_is_low_old_runs_are_packed_and_leave_room(
    tmp_path: Path, small_disk: Path
) -> None:
    async with opened_mesh(tmp_path) as mesh:
        shutil.rmtree(mesh.home.orchestrator)
        (small_disk / "stores").mkdir(mode=0o700)
        mesh.home.orchestrator.symlink_to(small_disk / "stores")
        runs, before = await _past(mesh)
        with (small_disk / "filler").open("wb", buffering=0) as filler:
            while shutil.disk_usage(small_disk).free > 600_000:
                filler.write(bytes(50_000))
        await mesh.orchestrator()
        await eventually(lambda: _whole(mesh), 30)
        health = await mesh.until("health", lambda found: found["store"]["low"])
        assert not health["store"]["waits"]
        assert await _told(mesh, runs) == before
        assert await mesh.kill(ME, signal.SIGTERM) == 0
        [(free,)], [(pages,)] = (
            rows(mesh, f"PRAGMA {name}_count") for name in ("freelist", "page")
        )
        assert free > pages // 4


def _whole(mesh: Mesh) -> bool:
    """Whether no change of an old run is a row any more."""
    return rows(mesh, _LEFT) == [(0,)]


async def test_a_kill_before_the_commit_leaves_nothing_of_the_piece(tmp_path: Path) -> None:
    path = tmp_path / "lifecycle.db"
    store: Store = Database(path, migrations("lifecycle"), inline=True)
    others: dict[str, Store] = {file: MemoryStore(migrations(file)) for file in FILES[1:]}
    reader = FileReader(path)
    files = await Files.open({"lifecycle": store, **others}, {"lifecycle": reader})
    await files.remember()
    before, held = await files.told(), await reader.ask(replay)
    await store.close()
    for stop in (1, 4):
        left, packs = await files.rows(_LEFT), await files.rows(_PACKS)
        assert await _compacting(path, stop) == b"stops\n"
        assert await files.told() == before
        # the pieces before it are whole, and it is not there
        if stop == 1:
            assert (await files.rows(_LEFT), await files.rows(_PACKS)) == (left, packs)
        else:
            assert await files.rows(_LEFT) < left
            assert await files.rows(_PACKS) > packs
    assert await _compacting(path, 0) == b"whole\n"
    assert await files.told() == before
    assert await reader.ask(replay) == held
    reader.close()


async def _compacting(path: Path, stop: int) -> bytes:
    """What the process says before it is killed."""
    arguments = (sys.executable, "-c", _COMPACTING, str(path), str(stop))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            return await process.stdout.readline()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
