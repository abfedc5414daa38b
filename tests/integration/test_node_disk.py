"""A node process whose journal is torn, or whose disk is full, in a mesh with an orchestrator process."""

import shutil
from pathlib import Path
from typing import Any

from orchestrator_mesh import Mesh, action, plan

NODES = ("pi-1",)


def once(name: str, **params: Any) -> dict[str, Any]:
    return action(name, "act", params=params, target_node="pi-1")


async def test_a_torn_journal_is_told_and_what_it_held_is_asked_about_at_once(mesh: Mesh) -> None:
    folder = mesh.home.node("pi-1")
    run = (await mesh.submit(plan(once("a", marker="ran", hang=True))))["run"]
    marker = folder / "files" / "ran"
    await mesh.until("health", lambda _: marker.exists())
    await mesh.kill("pi-1")
    (folder / "journal.db").write_bytes(b"torn" * 10_000)
    await mesh.node("pi-1")
    asked = await mesh.until("approvals?state=pending", lambda found: found["approvals"])
    assert [(each["kind"], each["run"]) for each in asked["approvals"]] == [("lost_effect", run)]
    shown = await mesh.until("nodes/pi-1", lambda found: found["escalation"])
    assert shown["escalation"]["code"] == "journal.lost"
    assert any(problem.startswith("asks for a person") for problem in shown["problems"])
    assert len(list(folder.glob("journal.db.lost-*"))) >= 1
    # what it may be told is taken again
    other = (await mesh.submit(plan(once("b", value=1))))["run"]
    assert (await mesh.ended(other))["state"] == "completed"
    assert len(marker.read_text().splitlines()) == 1


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size >>= 1
    assert shutil.disk_usage(disk).free < 4_096
    return filler


async def test_on_a_full_disk_it_finishes_and_reports_but_begins_nothing_that_counts(
    mesh: Mesh, small_disk: Path
) -> None:
    await mesh.kill("pi-1")
    folder = mesh.home.node("pi-1")
    shutil.copytree(folder, small_disk, dirs_exist_ok=True)
    shutil.rmtree(folder)
    folder.symlink_to(small_disk)
    await mesh.node("pi-1")
    await mesh.online("pi-1")
    process = mesh.processes["pi-1"]
    go = folder / "files" / "begun"
    begun = (await mesh.submit(plan(once("begun", marker="begun", delay_ms=3_000))))["run"]
    await mesh.until("health", lambda _: go.exists())
    filler = fill(small_disk)
    refused = await mesh.ended((await mesh.submit(plan(once("new", marker="new"))))["run"])
    assert (refused["state"], refused["actions"][0]["error"]["code"]) == ("failed", "journal.full")
    assert not (folder / "files" / "new").exists()
    # what it holds ends, and what may be repeated goes on: the journal has room of its own
    assert (await mesh.ended(begun))["state"] == "completed"
    many = [action(f"p{n}", "echo", params={"value": "x" * 500}) for n in range(200)]
    pure = await mesh.ended((await mesh.submit(plan(*many)))["run"])
    assert pure["state"] == "completed"
    filler.unlink()
    again = await mesh.ended((await mesh.submit(plan(once("later", value=1))))["run"])
    assert again["state"] == "completed"
    assert mesh.processes["pi-1"] is process
    assert process.returncode is None
