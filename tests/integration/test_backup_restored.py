"""Older stores of an orchestrator are put back: nodes still obey it, nothing starts before a person says so."""

import asyncio
import contextlib
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from forked import typed
from orchestrator_mesh import ME, Mesh, action, opened_mesh, plan

pytestmark = pytest.mark.usefixtures("broker_program")


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with opened_mesh(tmp_path) as made:
        await made.orchestrator()
        await made.node("pi-1")
        await made.online("pi-1")
        yield made


def marked(name: str) -> str:
    return plan(action("a", "act", params={"marker": "marks", "value": name}))


def marks(mesh: Mesh) -> Counter[str]:
    file = mesh.home.node("pi-1") / "files" / "marks"
    return Counter(file.read_text().split() if file.exists() else [])


async def stop(mesh: Mesh) -> None:
    assert await mesh.kill(ME, 15) == 0


async def witnessed(mesh: Mesh) -> None:
    """The node holds a seal of all that the ledger has now."""
    await mesh.until("health", lambda found: found["ledger"]["witnesses"] == 1)


async def restored(mesh: Mesh, tmp_path: Path, stores: tuple[str, ...]) -> dict:
    """Stop, keep these stores, do more, and put them back; health when the node is back."""
    first = await mesh.ended((await mesh.submit(marked("first")))["run"])
    assert first["state"] == "completed"
    await stop(mesh)
    kept = tmp_path / "backup"
    shutil.copytree(mesh.home.orchestrator, kept)
    for _ in range(3):
        # epochs of which the backup knows nothing
        await mesh.orchestrator()
        await mesh.online("pi-1")
        found = await mesh.ended((await mesh.submit(marked("more")))["run"])
        assert found["state"] == "completed"
        await witnessed(mesh)
        await stop(mesh)
    for store in stores:
        for file in mesh.home.orchestrator.glob(f"{store}.db*"):
            file.unlink()
        shutil.copy(kept / f"{store}.db", mesh.home.orchestrator / f"{store}.db")
    await mesh.orchestrator()
    await mesh.online("pi-1")
    return await mesh.until("health", lambda found: found["ledger"]["read_only"])


@pytest.mark.parametrize(
    "stores", [("lifecycle",), ("lifecycle", "metadata", "output", "input")], ids=["one", "all"]
)
async def test_nodes_obey_it_and_nothing_starts_before_a_person_says_so(
    mesh: Mesh, tmp_path: Path, stores: tuple[str, ...]
) -> None:
    await restored(mesh, tmp_path, stores)
    before = marks(mesh)
    assert len(before) == 4
    refused = await mesh.submit(marked("refused"), 503)
    assert refused["code"] == "ledger.doubted"
    reason = {"reason": "the disk died; restored what we had"}
    assert (await mesh.http.post("audit/acknowledge", json=reason)).status_code == 200
    found = await mesh.ended((await mesh.submit(marked("after")))["run"])
    assert found["state"] == "completed"
    after = marks(mesh)
    assert set(after.values()) == {1}
    assert len(after) == 5


def raise_epoch(mesh: Mesh) -> int:
    """As if the last start had been an hour later; its epoch."""
    epoch = time.time_ns() // 1_000_000 + 3_600_000
    with contextlib.closing(sqlite3.connect(mesh.home.orchestrator / "lifecycle.db")) as store:
        store.execute(
            "UPDATE epochs SET epoch = ? WHERE seq = (SELECT max(seq) FROM epochs)", (epoch,)
        )
        store.commit()
    return epoch


@pytest.mark.parametrize("is_node_restarted", [False, True])
async def test_with_a_clock_that_is_behind_it_is_told_who_refuses_it_until_it_starts_with_a_higher_epoch(
    mesh: Mesh, tmp_path: Path, is_node_restarted: bool
) -> None:
    await stop(mesh)
    kept = tmp_path / "backup"
    shutil.copytree(mesh.home.orchestrator, kept)
    epoch = raise_epoch(mesh) + 1
    await mesh.orchestrator()
    await mesh.until("health", lambda found: found["epoch"] == epoch)
    await mesh.online("pi-1")
    assert (await mesh.ended((await mesh.submit(marked("first")))["run"]))["state"] == "completed"
    await stop(mesh)
    shutil.rmtree(mesh.home.orchestrator)
    shutil.copytree(kept, mesh.home.orchestrator)
    if is_node_restarted:
        await mesh.kill("pi-1")
        await mesh.node("pi-1")
    await mesh.orchestrator()
    found = await mesh.until("health", lambda found: found["outranked"])
    assert found["outranked"] == [{"node": "pi-1", "epoch": epoch}]
    assert found["epoch"] < epoch
    assert '"code": "epoch.behind"' in (mesh.home.logs / f"{ME}.log").read_text()
    told = await asyncio.to_thread(typed, ("--home", str(mesh.home.root), "status"), tmp_path)
    assert all(word in told.stdout for word in (str(epoch), "docs epoch.behind")), told
    await stop(mesh)
    # what a clock that was set does
    assert raise_epoch(mesh) > epoch
    await mesh.orchestrator()
    await mesh.online("pi-1")
    assert (await mesh.get("health"))["outranked"] == []


async def test_a_log_that_is_torn_or_missing_is_an_older_store(mesh: Mesh) -> None:
    """What a dying disk leaves of the write-ahead log: its tail is garbage, then it is gone."""
    runs = []
    for _ in range(2):
        found = await mesh.ended((await mesh.submit(marked("x")))["run"])
        runs.append(found["run"])
    await mesh.kill(ME)
    log = mesh.home.orchestrator / "lifecycle.db-wal"
    with log.open("r+b") as file:
        file.seek(0, 2)
        file.write(b"\xff" * 100_000)
    await mesh.orchestrator()
    await mesh.online("pi-1")
    # a torn tail held nothing that was ever answered for
    assert not (await mesh.get("health"))["ledger"]["read_only"]
    for run in runs:
        assert (await mesh.get(f"runs/{run}"))["state"] == "completed"
    found = await mesh.ended((await mesh.submit(marked("y")))["run"])
    assert found["state"] == "completed"
    await mesh.kill(ME)
    log.unlink()
    with contextlib.closing(sqlite3.connect(mesh.home.orchestrator / "lifecycle.db")) as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    await mesh.orchestrator()
    await mesh.online("pi-1")
    await mesh.until("health", lambda found: found["ledger"]["read_only"])
    assert (await mesh.submit(marked("z"), 503))["code"] == "ledger.doubted"
    assert set(marks(mesh).values()) == {1}
