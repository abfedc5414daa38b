"""An action whose driver process dies wherever it runs, on real nodes: the kernel could do that for memory.

The work is pure and waits at a twin of a serial port; the test kills the process that does it.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from orchestrator_mesh import Mesh, opened_mesh, plan

NODES = ("pi-1", "pi-2", "pi-3")
POLICY = """
profile = "local_worker"
[modules]
allow = ["fake", "iot"]
[serial]
mock = ["/dev/ttyS0"]
"""


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with opened_mesh(tmp_path) as made:
        await made.orchestrator()
        for name in NODES:
            folder = await made.let_in(name)
            (folder / "policy.toml").write_text(POLICY)
            (folder / "policy.toml").chmod(0o600)
            await made.node(name)
        await made.online(*NODES)
        yield made


async def kill_its_driver(mesh: Mesh, run: str, killed: set[str]) -> None:
    """Wait until the action runs on a node where its driver was not killed yet, then kill that."""
    while True:
        shown = await mesh.get(f"runs/{run}")
        (bad,) = (unit for unit in shown["actions"] if unit["id"] == "bad")
        node = bad["node"]
        if bad["state"] == "running" and node and node not in killed:
            break
        assert shown["state"] in ("pending", "running"), shown
        await asyncio.sleep(0.05)
    agent = psutil.Process(mesh.processes[node].pid)
    while not (found := [one for one in agent.children(recursive=True) if _is_driver(one)]):  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(0.05)
    os.kill(found[0].pid, signal.SIGKILL)
    killed.add(node)


def _is_driver(process: psutil.Process) -> bool:
    try:
        return "imlmesh_drivers.child" in process.cmdline()
    except psutil.Error:
        return False


async def test_after_three_nodes_it_is_poison_and_no_node_is_to_blame(mesh: Mesh) -> None:
    agents = {name: mesh.processes[name].pid for name in NODES}
    bad = {
        "id": "bad",
        "module": "iot",
        "action": "receive_uart",
        "params": {"timeout": 30.0},
        "on_error": "skip",
    }
    echo = {"module": "fake", "action": "noop"}
    text = plan(bad, {**echo, "id": "after", "depends_on": ["bad"]}, {**echo, "id": "free"})
    run = (await mesh.submit(text))["run"]
    killed: set[str] = set()
    for _ in NODES:
        await kill_its_driver(mesh, run, killed)
    ended = await mesh.ended(run)

    assert killed == set(NODES)
    units = {unit["id"]: unit for unit in ended["actions"]}
    assert {name: unit["state"] for name, unit in units.items()} == {
        "bad": "skipped",
        "after": "skipped",
        "free": "completed",
    }
    assert units["bad"]["error"]["code"] == "action.poison"
    assert ended["state"] == "completed"
    found = (await mesh.get("nodes"))["nodes"]
    assert {node["node"]: (node["admission"], node["liveness"]) for node in found} == dict.fromkeys(
        NODES, ("open", "online")
    )
    assert all(mesh.processes[name].returncode is None for name in NODES)
    assert {name: mesh.processes[name].pid for name in NODES} == agents
