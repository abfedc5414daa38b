"""SIGTERM in the middle of a start, and twice: no process ends half way, and the next one goes on."""

import asyncio
import signal
from pathlib import Path

import pytest

from orchestrator_mesh import ME, Mesh, action, plan

pytestmark = pytest.mark.usefixtures("broker_program")
NODES = ("pi-1",)
TIMES = 4


async def runs_once(mesh: Mesh, name: str) -> None:
    found = await mesh.ended(
        (await mesh.submit(plan(action("a", "act", params={"marker": name}))))["run"]
    )
    assert found["state"] == "completed"
    assert len((mesh.home.node("pi-1") / "files" / name).read_text().split()) == 1


def holder(lock: Path) -> int | None:
    """The process that wrote its number into the lock."""
    text = lock.read_text().strip()
    return int(text) if text else None


async def told_when(mesh: Mesh, name: str, lock: Path, times: int = 1) -> int:
    """The exit code of a process that is told to end as soon as it holds its lock."""
    process = mesh.processes.pop(name)
    while holder(lock) != process.pid:
        assert process.returncode is None
        await asyncio.sleep(0.001)
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        return await process.wait()


async def test_an_orchestrator_that_is_told_while_it_starts_ends_well(mesh: Mesh) -> None:
    await mesh.kill(ME)
    log = mesh.home.logs / f"{ME}.log"
    lock = mesh.home.pid_file("orchestrator")
    for _ in range(TIMES):
        await mesh.orchestrator()
        assert await told_when(mesh, ME, lock) == 0
    assert "told to end while it starts" in log.read_text()
    assert "Traceback" not in log.read_text()
    await mesh.orchestrator()
    await mesh.online("pi-1")
    await runs_once(mesh, "after")


async def test_a_node_that_is_told_while_it_starts_ends_well(mesh: Mesh) -> None:
    await mesh.kill("pi-1")
    folder = mesh.home.node("pi-1")
    for _ in range(TIMES):
        await mesh.node("pi-1")
        assert await told_when(mesh, "pi-1", folder / "node.lock") == 0
    assert "Traceback" not in (mesh.home.logs / "pi-1.log").read_text()
    await mesh.node("pi-1")
    await mesh.online("pi-1")
    await runs_once(mesh, "after")


async def test_told_twice_an_orchestrator_may_leave_something_but_never_half(mesh: Mesh) -> None:
    params = {"marker": "twice", "delay_ms": 300}
    text = plan(*(action(f"a{i}", "act", params=params) for i in range(16)))
    run = (await mesh.submit(text))["run"]
    marks = mesh.home.node("pi-1") / "files" / "twice"
    await mesh.until("health", lambda _: marks.exists())
    code = await told_when(mesh, ME, mesh.home.pid_file("orchestrator"), times=2)
    assert code in (0, 1)
    await mesh.orchestrator()
    assert (await mesh.ended(run))["state"] == "completed"
    assert len(marks.read_text().split()) == len(set(marks.read_text().split())) == 16
