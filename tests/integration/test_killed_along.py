"""Calls whose driver's process is killed because another call in it ran too long, on a real node.

Two modules, so two processes: in `fake` a call hangs beside one that must happen once, in `iot` one waits
too long at a twin of a serial port beside one that may be repeated.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator_mesh import Mesh, action, opened_mesh, plan
from waiting import eventually

POLICY = """
profile = "local_worker"
[roots]
write = ["files"]
[modules]
allow = ["fake", "iot"]
[serial]
mock = ["/dev/ttyS0", "/dev/ttyS1"]
"""
LATE = {"timeout": 1, "on_error": "continue"}


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with opened_mesh(tmp_path) as made:
        await made.orchestrator()
        folder = await made.let_in("pi")
        (folder / "policy.toml").write_text(POLICY)
        (folder / "policy.toml").chmod(0o600)
        await made.node("pi")
        await made.online("pi")
        yield made


def receive(name: str, port: str, for_s: float, **more: object) -> dict[str, object]:
    params = {"port": port, "timeout": for_s}
    return {"id": name, "module": "iot", "action": "receive_uart", "params": params, **more}


async def outcomes(mesh: Mesh, run: str) -> dict[str, tuple[str, int]]:
    """State and attempt of each action once the run has ended."""
    ended = await mesh.ended(run)
    return {unit["id"]: (unit["state"], unit["attempt"]) for unit in ended["actions"]}


async def test_it_runs_again_or_a_person_is_asked(mesh: Mesh) -> None:
    marker = mesh.home.node("pi") / "files" / "once"
    beside = plan(
        action("once", "act", params={"delay_ms": 20_000, "marker": "once"}),
        receive("again", "/dev/ttyS1", 8.0),
    )
    run = (await mesh.submit(beside))["run"]
    await eventually(marker.exists, 30)
    await mesh.until(
        f"runs/{run}", lambda found: {unit["state"] for unit in found["actions"]} == {"running"}
    )
    late = plan(
        action("hangs", "act", params={"hang": True}, **LATE),
        receive("waits", "/dev/ttyS0", 30.0, **LATE),
    )
    killing = (await mesh.submit(late))["run"]
    pending = "approvals?state=pending"
    [question] = (await mesh.until(pending, lambda found: found["approvals"]))["approvals"]
    assert (question["action"], question["kind"]) == ("once", "lost_effect")
    answer = await mesh.http.post(
        f"approvals/{question['approval']}/answer", json={"option": "done"}
    )
    assert answer.status_code == 200
    assert await outcomes(mesh, run) == {"once": ("completed", 1), "again": ("completed", 2)}
    assert await outcomes(mesh, killing) == {"hangs": ("failed", 1), "waits": ("failed", 1)}
    assert len(marker.read_text().splitlines()) == 1
    (node,) = (await mesh.get("nodes"))["nodes"]
    assert (node["admission"], node["liveness"]) == ("open", "online")
