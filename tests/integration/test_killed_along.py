"""Calls whose driver's process is killed because another call in it ran too long, on a real node.

Two modules, so two processes: in `fake` a call hangs beside one that must happen once, in `iot` one waits
too long at a twin of a serial port beside one that may be repeated.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator_mesh import Mesh, action, opened_mesh, plan

POLICY = """
profile = "local_worker"
[roots]
write = ["files"]
[modules]
allow = ["fake", "iot"]
[serial]
mock = ["/dev/ttyS0", "/dev/ttyS1"]
"""
LATE = {"timeout": 2, "on_error": "continue"}


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


async def test_it_runs_again_or_a_person_is_asked(mesh: Mesh) -> None:
    text = plan(
        action("hangs", "act", params={"hang": True}, **LATE),
        action("once", "act", params={"delay_ms": 20_000, "marker": "once"}),
        receive("waits", "/dev/ttyS0", 30.0, **LATE),
        receive("again", "/dev/ttyS1", 4.0),
    )
    run = (await mesh.submit(text))["run"]
    pending = "approvals?state=pending"
    [question] = (await mesh.until(pending, lambda found: found["approvals"]))["approvals"]
    assert (question["action"], question["kind"]) == ("once", "lost_effect")
    answer = await mesh.http.post(
        f"approvals/{question['approval']}/answer", json={"option": "done"}
    )
    assert answer.status_code == 200
    ended = await mesh.ended(run)
    units = {unit["id"]: unit for unit in ended["actions"]}
    assert {name: (unit["state"], unit["attempt"]) for name, unit in units.items()} == {
        "hangs": ("failed", 1),
        "once": ("completed", 1),
        "waits": ("failed", 1),
        "again": ("completed", 2),
    }
    marker = mesh.home.node("pi") / "files" / "once"
    assert len(marker.read_text().splitlines()) == 1
    (node,) = (await mesh.get("nodes"))["nodes"]
    assert (node["admission"], node["liveness"]) == ("open", "online")
