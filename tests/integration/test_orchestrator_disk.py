"""An orchestrator process whose disk fills while plans run: nothing new, nothing lost, and no restart."""

import asyncio
import contextlib
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator_mesh import ME, Mesh, action, opened_mesh, plan
from waiting import eventually

pytestmark = pytest.mark.usefixtures("broker_program")
_JUDGED = "SELECT seq FROM changes WHERE kind = 'liveness-changed'"
STORES = ("lifecycle", "output", "metadata", "input")


@pytest.fixture
async def mesh(tmp_path: Path, small_disk: Path) -> AsyncIterator[Mesh]:
    """Its stores lie on a disk of 16 MB."""
    async with opened_mesh(tmp_path) as made:
        shutil.rmtree(made.home.orchestrator)
        stores = small_disk / "stores"
        stores.mkdir(mode=0o700)
        made.home.orchestrator.symlink_to(stores)
        await made.orchestrator()
        await made.node("pi-1")
        await made.online("pi-1")
        yield made


class Filler:
    """A file of somebody else on the disk of the stores."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._file = disk / "filler"

    def leave(self, free: int) -> None:
        """Take all but so many bytes."""
        with self._file.open("ab", buffering=0) as file:
            size = 1 << 20
            while size >= 4_096:
                if shutil.disk_usage(self._disk).free - size < free:
                    size >>= 1
                    continue
                try:
                    file.write(b"\0" * size)
                except OSError:
                    size >>= 1

    def remove(self) -> None:
        self._file.unlink()


@pytest.fixture
def filler(small_disk: Path) -> Filler:
    return Filler(small_disk)


def rows(mesh: Mesh, query: str, store: str = "lifecycle") -> list[Any]:
    path = mesh.home.orchestrator / f"{store}.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


def acts(count: int, **params: Any) -> str:
    made = {"marker": "marks", "delay_ms": 1_500, **params}
    return plan(*(action(f"a{i}", "act", params=made) for i in range(count)))


def marks(mesh: Mesh) -> Counter[str]:
    file = mesh.home.node("pi-1") / "files" / "marks"
    return Counter(file.read_text().split() if file.exists() else [])


async def ended_once(mesh: Mesh, run: str, count: int) -> None:
    assert (await mesh.ended(run))["state"] == "completed"
    mine = {name: times for name, times in marks(mesh).items() if name.startswith(f"{run}/")}
    assert len(mine) == count
    assert set(mine.values()) == {1}


def log_of(mesh: Mesh) -> str:
    return (mesh.home.logs / f"{ME}.log").read_text()


def times_waited(mesh: Mesh) -> int:
    text = log_of(mesh)
    return text.count("lifecycle waits for room: ") - text.count("waits for room: it has it")


async def waits_for_room(mesh: Mesh, filler: Filler) -> str:
    """A run in whose middle a commit found no room."""
    run = (await mesh.submit(acts(16, result_bytes=180_000, delay_ms=1_000)))["run"]
    await mesh.until("health", lambda _: marks(mesh))
    filler.leave(0)
    await mesh.until("health", lambda found: found["store"]["waits"])
    return str(run)


async def whole(mesh: Mesh) -> None:
    """Every store is in order once the process has ended, and knows of every result."""
    assert await mesh.kill(ME, 15) == 0
    for store in STORES:
        assert rows(mesh, "PRAGMA integrity_check", store) == [("ok",)], store
    (taken,) = rows(mesh, "SELECT count(*) FROM changes WHERE kind = 'result-taken'")
    assert rows(mesh, "SELECT count(*) FROM results", "output") == [taken]


async def test_below_the_floor_nothing_new_is_taken_and_what_runs_is_recorded(
    mesh: Mesh, filler: Filler
) -> None:
    run = (await mesh.submit(acts(8)))["run"]
    await mesh.until("health", lambda _: marks(mesh))
    filler.leave(500_000)
    low = await mesh.until("health", lambda found: found["store"]["low"])
    assert not low["store"]["waits"]
    before = rows(mesh, "SELECT count(*) FROM runs"), rows(mesh, "SELECT count(*) FROM plans")
    problem = await mesh.submit(acts(1), 503)
    assert problem["code"] == "store.full"
    value = await mesh.http.put("memory/x?session=s", json={"value": 1})
    assert (value.status_code, value.json()["code"]) == (503, "store.full")
    assert before == (
        rows(mesh, "SELECT count(*) FROM runs"),
        rows(mesh, "SELECT count(*) FROM plans"),
    )
    await ended_once(mesh, run, 8)
    dropped = low["telemetry"]["dropped"]
    shed = await mesh.until("health", lambda found: found["telemetry"]["dropped"] > dropped)
    written = shed["telemetry"]["written"]
    filler.remove()
    await mesh.until("health", lambda found: not found["store"]["low"])
    again = (await mesh.submit(acts(1)))["run"]
    await ended_once(mesh, again, 1)
    kept = await mesh.until("health", lambda found: found["telemetry"]["written"] > written)
    assert kept["pid"] == low["pid"]
    await whole(mesh)


async def test_a_commit_that_finds_no_room_waits_and_nothing_is_lost_or_doubled(
    mesh: Mesh, filler: Filler
) -> None:
    pid = (await mesh.get("health"))["pid"]
    run = await waits_for_room(mesh, filler)
    full = await mesh.get("health")
    assert full["store"]["low"]
    # it answers, refuses, and does not end while it waits
    assert (await mesh.submit(acts(1), 503))["code"] == "store.full"
    assert (await mesh.get(f"runs/{run}"))["state"] == "running"
    label = await mesh.http.post("nodes/pi-1/labels", json={"labels": {"shelf": 1}})
    assert (label.status_code, label.json()["code"]) == (503, "store.full"), "it is not done later"
    assert times_waited(mesh) == 1
    judged = rows(mesh, _JUDGED)
    # a node repeats its beat each third of its interval: so many, and it was silent for a window
    await mesh.until("health", lambda found: found["messages"]["refused"].get("store.full", 0) > 12)
    filler.remove()
    await mesh.until("health", lambda found: not found["store"]["waits"])
    await ended_once(mesh, run, 16)
    again = (await mesh.submit(acts(1)))["run"]
    await ended_once(mesh, again, 1)
    assert (await mesh.get("health"))["pid"] == pid
    assert rows(mesh, _JUDGED) == judged, "what was not heard speaks against nobody"
    await whole(mesh)


async def test_killed_while_it_waits_for_room_its_next_start_waits_too_and_goes_on(
    mesh: Mesh, filler: Filler
) -> None:
    run = await waits_for_room(mesh, filler)
    await mesh.kill(ME)
    starting = asyncio.create_task(mesh.orchestrator())
    await eventually(lambda: "the start waits for room" in log_of(mesh) or times_waited(mesh) == 2)
    filler.remove()
    await starting
    await ended_once(mesh, run, 16)
    await whole(mesh)


async def test_told_to_end_while_it_waits_for_room_it_ends_in_time(
    mesh: Mesh, filler: Filler
) -> None:
    run = await waits_for_room(mesh, filler)
    process = mesh.processes.pop(ME)
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    filler.remove()
    await mesh.orchestrator()
    await ended_once(mesh, run, 16)
    await whole(mesh)
