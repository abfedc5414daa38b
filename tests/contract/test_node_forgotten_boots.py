"""A node whose journal is gone while its clock stands back, and the real orchestrator that remembers it."""

import asyncio
import shutil
from pathlib import Path

import pytest

from ledger_mesh import WITHIN_S, LedgerMesh, opened_ledger
from orchestrator_mesh import action, plan

YEAR_2000_MS = 946_684_800_000


async def works(mesh: LedgerMesh, marker: str) -> bool:
    """Whether the node did what it was asked, by what lies on its disk."""
    run = await mesh.run(action("a", "act", target_node="pi-1", params={"marker": marker}))
    files = mesh.home.node("pi-1") / "files"
    return run["state"] == "completed" and (files / marker).exists()


async def forget(mesh: LedgerMesh) -> None:
    """End the node; its journal is deleted."""
    await mesh.stop_node("pi-1")
    await mesh.until(lambda: not mesh.shell.is_live("pi-1"))
    for path in mesh.home.node("pi-1").glob("journal.db*"):
        path.unlink()


async def crash(mesh: LedgerMesh) -> None:
    """The node says nothing more; its journal is deleted."""
    node = mesh.nodes.pop("pi-1")
    node.link.kill()  # type: ignore[attr-defined]
    await node.stop()
    for path in mesh.home.node("pi-1").glob("journal.db*"):
        path.unlink()


@pytest.mark.parametrize("restarted", [False, True])
async def test_it_counts_on_from_what_the_orchestrator_took(
    tmp_path: Path, restarted: bool
) -> None:
    async with opened_ledger(tmp_path, "pi-1") as mesh:
        assert await works(mesh, "before")
        took = mesh.shell.state.nodes["pi-1"].boot
        await forget(mesh)
        if restarted:
            await mesh.stop()
            await mesh.start()
        await mesh.node("pi-1", YEAR_2000_MS)
        await mesh.online("pi-1")
        assert mesh.shell.state.nodes["pi-1"].boot == took + 1
        assert await works(mesh, "after")
        assert "pi-1" not in mesh.shell.state.admissions
        # the number is kept: the next start is a later one without any question
        await mesh.stop_node("pi-1")
        await mesh.until(lambda: not mesh.shell.is_live("pi-1"))
        refused = dict(mesh.shell.stream.refused)
        await mesh.node("pi-1", YEAR_2000_MS)
        await mesh.online("pi-1")
        assert mesh.shell.state.nodes["pi-1"].boot == took + 2
        assert dict(mesh.shell.stream.refused) == refused


async def test_the_same_number_twice_is_no_lock_out(tmp_path: Path) -> None:
    async with opened_ledger(tmp_path, "pi-1") as mesh:
        took = mesh.shell.state.nodes["pi-1"].boot
        await forget(mesh)
        await mesh.node("pi-1", took)
        await mesh.online("pi-1")
        assert mesh.shell.state.nodes["pi-1"].boot == took + 1
        assert await works(mesh, "after")


async def test_what_the_lost_journal_held_is_told_as_lost(tmp_path: Path) -> None:
    async with opened_ledger(tmp_path, "pi-1") as mesh:
        slow = action("a", "act", target_node="pi-1", effect="once", params={"delay_ms": 600_000})
        status, found = await mesh.post("runs", {"text": plan(slow)})
        assert status == 202, found
        run = found["run"]
        await mesh.until(lambda: mesh.shell.state.nodes["pi-1"].live)
        await crash(mesh)
        await mesh.node("pi-1", YEAR_2000_MS)
        await mesh.until(lambda: mesh.shell.state.approvals)
        # it is decided before it is stored, and shown after that
        async with asyncio.timeout(WITHIN_S):
            while True:
                shown = await mesh.get(f"runs/{run}")
                if shown["waits_for"]:
                    break
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("boot_ms", [None, YEAR_2000_MS], ids=["clock", "no-clock"])
async def test_what_an_older_journal_does_not_know_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot_ms: int | None
) -> None:
    async with opened_ledger(tmp_path, "pi-1") as mesh:
        folder = mesh.home.node("pi-1")
        await mesh.stop_node("pi-1")
        await mesh.until(lambda: not mesh.shell.is_live("pi-1"))
        shutil.copy(folder / "journal.db", tmp_path / "backup.db")
        await mesh.node("pi-1")
        await mesh.online("pi-1")
        hear = mesh.shell.message
        # what the node says of it is lost
        monkeypatch.setattr(mesh.shell, "message", lambda *message: None)
        one = action("a", "act", target_node="pi-1", effect="once", params={"marker": "marks"})
        status, found = await mesh.post("runs", {"text": plan(one)})
        assert status == 202, found
        marks = folder / "files" / "marks"
        await mesh.until(lambda: marks.exists() and marks.read_text())
        await crash(mesh)
        shutil.copy(tmp_path / "backup.db", folder / "journal.db")
        monkeypatch.setattr(mesh.shell, "message", hear)
        await mesh.node("pi-1", boot_ms)
        await mesh.until(lambda: mesh.shell.state.approvals)
        (asked,) = mesh.shell.state.approvals.values()
        assert (asked.run, asked.kind) == (found["run"], "lost_effect")
        assert await works(mesh, "after")
        assert len(marks.read_text().splitlines()) == 1
