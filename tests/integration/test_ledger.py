"""The ledger of a running mesh: what it tells, its seals, and its witnesses."""

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from forked import typed
from imlmesh_orchestrator.audit.book import book_of_home
from imlmesh_orchestrator.audit.verify import verify
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.ledger import Pace
from imlmesh_protocol.wire.seals import Seal, write_seal
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import Signer
from ledger_mesh import LedgerMesh, opened_ledger
from orchestrator_mesh import ME, MESH, action, plan


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


async def restored(mesh: LedgerMesh, earlier: Path) -> None:
    """The orchestrator is stopped, an older file takes the place of its ledger, it starts again."""
    await mesh.stop()
    shutil.copyfile(earlier, mesh.home.orchestrator / "metadata.db")
    await mesh.start()


def copied(mesh: LedgerMesh, file: str, to: Path) -> Path:
    """A copy of a store as it is now."""
    with (
        closing(sqlite3.connect(mesh.home.orchestrator / file)) as database,
        closing(sqlite3.connect(to)) as copy,
    ):
        database.backup(copy)
    return to


async def refused(mesh: LedgerMesh) -> str | None:
    """The code with which a plan is refused now."""
    status, found = await mesh.post("runs", {"text": plan(action("a"))})
    return None if status == 202 else found["errors"][0]["code"]


async def test_a_restored_older_ledger_is_read_only_until_a_person_acknowledges(
    tmp_path: Path,
) -> None:
    async with opened_ledger(tmp_path, "pi-1") as mesh:
        await mesh.run(action("a"))
        await mesh.until(lambda: mesh.witnessed("pi-1"))
        earlier = copied(mesh, "metadata.db", tmp_path / "earlier.db")
        await mesh.run(action("b"), action("c"))
        await mesh.until(lambda: mesh.witnessed("pi-1"))
        held = mesh.nodes["pi-1"].witness.size
        await restored(mesh, earlier)
        # what nodes witnessed is in another store: it is known before any of them is there
        assert await refused(mesh) == "ledger.doubted"
        found = await cli(mesh, "status", "-o", "json")
        assert any("read-only" in problem["text"] for problem in json.loads(found.out)["problems"])
        assert (await mesh.get("audit"))["entries"], "reading goes on"
        said = await cli(mesh, "audit", "verify")
        assert (said.code, "read-only" in said.err) == (1, True)
        await mesh.online("pi-1")
        await mesh.until(lambda: "seal.fork" in mesh.nodes["pi-1"].refusals.counts)
        assert mesh.nodes["pi-1"].witness.size == held, "the node does not follow"
        done = await cli(mesh, "audit", "acknowledge", "--reason", "the disk died")
        assert (done.code, "acknowledged" in done.out) == (0, True)
        await mesh.until(lambda: mesh.witnessed("pi-1"))
        run = await mesh.run(action("d"))
        assert run["state"] == "completed"
        kinds = [entry["kind"] for entry in (await mesh.get("audit", limit=1000))["entries"]]
        assert kinds.count("doubt-raised") == kinds.count("doubts-acknowledged") == 1
        await mesh.until(lambda: mesh.witnessed("pi-1"))
        again = await cli(mesh, "audit", "acknowledge", "--reason", "once more")
        assert (again.code, "ledger.undoubted" in again.err) == (3, True)
        verdict = await cli(mesh, "audit", "verify", "-o", "json")
        assert (verdict.code, json.loads(verdict.out)["findings"]) == (0, [])
        # and a restart does not ask again
        await mesh.stop()
        await mesh.start()
        assert await refused(mesh) is None


async def test_it_is_noticed_as_well_when_the_witness_comes_only_after_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the node hears nobody who counts on from an earlier place: it asks until that is passed
    monkeypatch.setattr("imlmesh_node.presence.TIME_ASK_MS", 100)
    async with opened_ledger(tmp_path, "pi-1") as mesh:
        await mesh.run(action("a"))
        await mesh.until(lambda: mesh.witnessed("pi-1"))
        await mesh.stop()
        folder = mesh.home.orchestrator
        shutil.copytree(folder, tmp_path / "earlier")
        await mesh.start()
        await mesh.online("pi-1")
        await mesh.run(action("b"))
        await mesh.until(lambda: mesh.witnessed("pi-1"))
        await mesh.stop_node("pi-1")
        await mesh.stop()
        # all stores are restored: nothing on this machine knows better
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "earlier", folder)
        await mesh.start()
        assert await refused(mesh) is None
        assert (await mesh.get("health"))["ledger"]["read_only"] is False
        await mesh.node("pi-1")
        await mesh.until(lambda: mesh.shell.state.doubts)
        assert await refused(mesh) == "ledger.doubted"
        assert (await mesh.get("health"))["ledger"]["doubts"][0]["witness"] == "pi-1"


async def test_a_lifecycle_older_than_its_ledger_is_noticed(tmp_path: Path) -> None:
    async with opened_ledger(tmp_path, "pi-1") as mesh:
        earlier = copied(mesh, "lifecycle.db", tmp_path / "earlier.db")
        await mesh.run(action("a"))
        await mesh.until(lambda: mesh.witnessed("pi-1"))
        await mesh.stop()
        for more in ("-wal", "-shm"):
            (mesh.home.orchestrator / f"lifecycle.db{more}").unlink(missing_ok=True)
        shutil.copyfile(earlier, mesh.home.orchestrator / "lifecycle.db")
        await mesh.start()
        assert await refused(mesh) == "ledger.doubted"
        assert "lifecycle" in (await mesh.get("health"))["ledger"]["doubts"][0]["witness"]
        await mesh.shell.acknowledge("anna", "a restored backup")
        await mesh.online("pi-1")
        assert (await mesh.run(action("a")))["state"] == "completed"


async def test_a_node_cannot_doubt_the_ledger_without_proof(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_ledger(tmp_path, "pi-1") as mesh:
        await mesh.until(lambda: mesh.witnessed("pi-1"))
        tip = mesh.shell.ledger.file.tip
        stranger = Signer.of_key(SigningKey(bytes(32)))
        lie = Seal(MESH, tip.size + 50, bytes(32), 1)
        mesh.nodes["pi-1"].witness.document = write_seal(lie, stranger.key_id, stranger.sign)
        await mesh.until(lambda: "a named seal is not believed" in caplog.text)
        await mesh.run(action("a"))
        assert not mesh.shell.state.doubts
        assert await refused(mesh) is None


async def test_a_node_that_missed_seals_gets_a_proof_of_its_own(tmp_path: Path) -> None:
    async with opened_ledger(tmp_path, "pi-1", "pi-2") as mesh:
        await mesh.until(lambda: mesh.witnessed("pi-1", "pi-2"))
        before = mesh.nodes["pi-2"].witness.size
        await mesh.stop_node("pi-2")
        for name in "abc":
            await mesh.run(action(name))
            await mesh.until(lambda: mesh.witnessed("pi-1"))
        await mesh.node("pi-2")
        assert mesh.nodes["pi-2"].witness.size == before, "its journal kept what it witnessed"
        await mesh.until(lambda: mesh.witnessed("pi-1", "pi-2"))
        assert mesh.nodes["pi-2"].witness.size > before
        assert "seal.fork" not in mesh.nodes["pi-2"].refusals.counts


async def test_the_last_entries_are_sealed_and_witnessed_when_the_orchestrator_stops(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "h")
    Authority.create(home, MESH, ME)
    mesh = LedgerMesh(home)
    try:
        # with the pace of real meshes nothing would be sealed for a minute
        await mesh.start(Pace())
        await mesh.node("pi-1")
        await mesh.online("pi-1")
        await mesh.run(action("a"))
        assert mesh.nodes["pi-1"].witness.document is None
        ledger = mesh.shell.ledger
        await mesh.stop()
        await mesh.until(lambda: mesh.nodes["pi-1"].witness.size == ledger.file.tip.size)
    finally:
        await mesh.close()
    verdict = verify(book_of_home(home))
    assert (verdict.findings, verdict.witnesses) == ([], {"pi-1": verdict.entries})


async def test_an_older_ledger_is_found_before_any_node_has_witnessed_the_newer_one(
    tmp_path: Path,
) -> None:
    """`imlmesh up` ends its node first, so the seal of the end is witnessed at the next start."""
    home = Home(tmp_path / "h")
    Authority.create(home, MESH, ME)
    mesh = LedgerMesh(home)
    try:
        for names in ("a", "bc"):
            await mesh.start(Pace())
            await mesh.node("pi-1")
            await mesh.online("pi-1")
            await mesh.run(*map(action, names))
            await mesh.stop_node("pi-1")
            await mesh.stop()
            assert verify(book_of_home(home)).findings == []
            if names == "a":
                earlier = copied(mesh, "metadata.db", tmp_path / "earlier.db")
        verdict = verify(book_of_home(home))
        assert max(verdict.witnesses.values(), default=0) < verdict.sealed == verdict.entries
        shutil.copyfile(earlier, home.orchestrator / "metadata.db")
        assert [each.what for each in verify(book_of_home(home)).findings] == ["cut"]
        await mesh.start(Pace())
        assert await refused(mesh) == "ledger.doubted"
        assert (await mesh.get("health"))["ledger"]["witnesses"] == 0
    finally:
        await mesh.close()


async def test_nothing_is_dispatched_while_the_ledger_is_locked(tmp_path: Path) -> None:
    async with opened_ledger(tmp_path, "pi-1") as mesh:
        await mesh.run(action("a"))
        marker = mesh.home.node("pi-1") / "files" / "marker"
        locked = sqlite3.connect(mesh.home.orchestrator / "metadata.db", isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")
        # what follows cannot be told; the first of it starts what then falls behind
        await mesh.shell.set_labels("pi-1", {"place": "shed"})
        await mesh.until(lambda: mesh.shell.mover.behind)
        write = action("w", "write_file", params={"path": "marker", "content": "done"})
        status, found = await mesh.post("runs", {"text": plan(write)})
        assert status == 202
        shown = await mesh.get(f"runs/{found['run']}")
        assert (marker.exists(), shown["actions"][0]["state"]) == (False, "pending")
        assert (await mesh.get("health"))["store"]["behind"] is True
        locked.execute("ROLLBACK")
        locked.close()
        await mesh.until(marker.exists)
        assert marker.read_text() == "done"
        await mesh.until(lambda: mesh.witnessed("pi-1"))


async def test_the_command_line_lists_and_shows(tmp_path: Path) -> None:
    async with opened_ledger(tmp_path, "pi-1") as mesh:
        run = (await mesh.run(action("a")))["run"]
        await mesh.until(lambda: mesh.witnessed("pi-1"))
        listed = await cli(mesh, "audit", "list", "--subject", run[:4], "--kind", "run-created")
        assert (listed.code, run in listed.out, "run-ended" in listed.out) == (0, True, False)
        lines = (await cli(mesh, "audit", "list", "--actor", "pi-1", "-o", "jsonl")).out
        [entry] = map(json.loads, lines.splitlines())
        assert (entry["kind"], entry["told"][0]["state"]) == ("result-taken", "completed")
        shown = await cli(mesh, "audit", "show", str(entry["n"]))
        assert (shown.code, "leaf" in shown.out, run in shown.out) == (0, True, True)
        assert (await cli(mesh, "audit", "list", "--since", "1h", "--limit", "2")).code == 0
        missing = await cli(mesh, "audit", "show", "9999")
        assert (missing.code, "ledger.not_found" in missing.err) == (3, True)
        whole = await cli(mesh, "audit", "verify")
        assert (whole.code, "whole" in whole.out, "pi-1" in whole.out) == (0, True, True)
        folder = tmp_path / "exported"
        assert (await cli(mesh, "audit", "export", str(folder))).code == 0
        twice = await cli(mesh, "audit", "export", str(folder))
        assert "folder.exists" in twice.err
    nothing = await cli(mesh, "audit", "verify", str(tmp_path / "nowhere"))
    assert (nothing.code, "home.missing" in nothing.err) == (3, True)


@dataclass
class Said:
    code: int
    out: str
    err: str


async def cli(mesh: LedgerMesh, *words: str) -> Said:
    """What `imlmesh` says of the home of this mesh, as a process."""
    home = mesh.home.root
    done = await asyncio.to_thread(typed, (*words, "--home", str(home)), home)
    return Said(done.returncode, done.stdout, done.stderr)
