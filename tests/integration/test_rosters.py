"""The roster at real nodes: it reaches who joins and who was away, lowers rights, and never goes back."""

import asyncio
from typing import Any

from imlmesh_protocol.wire.documents import Roster
from imlmesh_runtime.trust import HeldTrust
from orchestrator_mesh import MESH, Mesh, action, plan

NODES = ("pi-1",)


async def roster_of(mesh: Mesh, node: str, status: str, profile: str) -> Roster:
    """What the node keeps, as soon as it says so of itself."""
    keys = mesh.home.node(node) / "keys"
    while True:
        held = HeldTrust(keys, MESH).roster
        if held is not None and held.nodes.get(node) == (status, profile):
            return held
        await asyncio.sleep(0.05)


async def grant(mesh: Mesh, node: str, profile: str) -> None:
    answer = await mesh.http.post(f"nodes/{node}/profile", json={"profile": profile})
    assert answer.status_code == 200, answer.text


async def is_profile(mesh: Mesh, node: str, profile: str) -> None:
    await mesh.until(f"nodes/{node}", lambda found: found["profile"] == profile)


def marked(name: str, **more: Any) -> dict[str, Any]:
    return action(name, "append_file", params={"path": "marks.txt", "content": name}, **more)


async def test_who_joins_gets_the_roster_that_names_it(mesh: Mesh) -> None:
    first = await roster_of(mesh, "pi-1", "active", "local_worker")
    await mesh.node("pi-2")
    second = await roster_of(mesh, "pi-2", "active", "local_worker")
    assert second.version > first.version
    assert (await roster_of(mesh, "pi-1", "active", "local_worker")).mesh == MESH


async def test_a_right_that_is_taken_away_is_gone_until_it_is_given_back(mesh: Mesh) -> None:
    await roster_of(mesh, "pi-1", "active", "local_worker")
    await grant(mesh, "pi-1", "readonly")
    await roster_of(mesh, "pi-1", "active", "readonly")
    await is_profile(mesh, "pi-1", "readonly")
    refused = await mesh.submit(plan(marked("a", target_node="pi-1")), 422)
    assert refused["code"] == "place.no_node"
    assert "policy.profile" in refused["message"]
    marks = mesh.home.node("pi-1") / "files" / "marks.txt"
    assert not marks.exists()
    await grant(mesh, "pi-1", "local_worker")
    await is_profile(mesh, "pi-1", "local_worker")
    done = (await mesh.submit(plan(marked("b", target_node="pi-1"))))["run"]
    assert (await mesh.ended(done))["state"] == "completed"
    assert marks.read_text() == "b\n"


async def test_who_was_away_hears_of_it_when_it_comes(mesh: Mesh) -> None:
    await roster_of(mesh, "pi-1", "active", "local_worker")
    await mesh.kill("pi-1")
    await grant(mesh, "pi-1", "readonly")
    await mesh.node("pi-1")
    await roster_of(mesh, "pi-1", "active", "readonly")
    await is_profile(mesh, "pi-1", "readonly")


async def test_an_orchestrator_that_starts_again_makes_no_new_roster_of_the_same(
    mesh: Mesh,
) -> None:
    before = await roster_of(mesh, "pi-1", "active", "local_worker")
    await mesh.kill("orchestra")
    await mesh.orchestrator()
    await mesh.online("pi-1")
    await grant(mesh, "pi-1", "readonly")
    after = await roster_of(mesh, "pi-1", "active", "readonly")
    assert after.version > before.version
