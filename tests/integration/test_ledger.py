"""The ledger of a running mesh: what it tells, its seals, and its witnesses."""

from pathlib import Path

from imlmesh_orchestrator.audit.book import book_of_home
from imlmesh_orchestrator.audit.verify import verify
from ledger_mesh import opened_ledger
from orchestrator_mesh import action


async def test_what_was_decided_is_told_sealed_and_witnessed(tmp_path: Path) -> None:
    async with opened_ledger(tmp_path, "pi-1", "pi-2") as mesh:
        run = await mesh.run(action("a"), action("b", after=("a",)))
        await mesh.until(lambda: mesh.witnessed("pi-1", "pi-2"))
        found = (await mesh.get("audit", subject=run["run"]))["entries"]
        kinds = [entry["kind"] for entry in found]
        assert kinds == [
            "run-created",
            "dispatch-planned",
            "result-taken",
            "dispatch-planned",
            "result-taken",
            "run-ended",
        ]
        nodes = {"pi-1", "pi-2"}
        assert {entry["actor"] for entry in found if entry["kind"] == "result-taken"} <= nodes
        shown = await mesh.get(f"audit/{found[0]['n']}")
        assert shown["told"][0]["digest"] == run["digest"]
        assert shown["sealed_by"] >= shown["n"]
        health = (await mesh.get("health"))["ledger"]
        assert (health["read_only"], health["witnesses"]) == (False, 2)
        assert health["sealed"] == health["entries"] > 0
    verdict = verify(book_of_home(mesh.home))
    assert (verdict.findings, verdict.entries) == ([], verdict.sealed)
    assert verdict.entries >= health["entries"]
    assert set(verdict.witnesses) == nodes
