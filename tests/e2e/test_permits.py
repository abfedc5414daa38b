"""A node that is cut off does what a permit allows, also after a power cut, and reports it once.

Real broker, orchestrator and node; each effect leaves a line in a file of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from forked import Forked, Start, typed
from imlmesh.client import Client
from imlmesh.mesh import Mesh, make_mesh
from imlmesh.running import RunningMesh
from imlmesh_protocol.errors import LinkError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

NODE = "pi-a"
BUDGET = 2
POLICY = """\
profile = "local_worker"

[roots]
write = ["files"]

[modules]
allow = ["fake", "filesystem"]
"""
PLAN: dict[str, Any] = {
    "protocol_version": "2.0",
    "plan_id": "water",
    "execution_mode": "parallel",
    "actions": [
        {
            "id": "valve",
            "module": "fake",
            "action": "act",
            "params": {"marker": "effects.txt", "delay_ms": 300, "value": 7},
        },
        {
            "id": "note",
            "module": "filesystem",
            "action": "write_file",
            "params": {"path": "note.txt", "content": "valve said {{result.valve.value}}"},
            "depends_on": ["valve"],
        },
    ],
}


class Home:
    """One home whose orchestrator and node are started and killed by hand."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._processes: dict[str, Forked] = {}

    def start_orchestrator(self) -> None:
        place = ("--home", str(self.mesh.home.root), "--broker", self.mesh.control_address)
        self._start("orchestrator", "imlmesh_orchestrator", *place)

    def start_node(self) -> None:
        self._start(NODE, "imlmesh_node", str(self.mesh.home.node(NODE)))

    def kill(self, name: str) -> None:
        """SIGKILL to the process and to its children."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait_here(60)

    def kill_all(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def ask(self, path: str) -> dict[str, Any] | None:
        """What the orchestrator answers; None while there is none."""
        with contextlib.suppress(LinkError):
            return Client.connect(self.mesh.home.root).get(path)
        return None

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`imlmesh ARGUMENTS` to its end."""
        root = self.mesh.home.root
        return typed(arguments, root, {**os.environ, "IMLMESH_HOME": str(root)})

    def type(self, *arguments: str) -> dict[str, Any]:
        """The JSON that `imlmesh ARGUMENTS` prints."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def effects(self) -> list[str]:
        """The dispatches whose effect happened, in order."""
        file = self.mesh.home.node(NODE) / "files" / "effects.txt"
        return file.read_text().split() if file.exists() else []

    def _start(self, name: str, module: str, *arguments: str) -> None:
        log = self.mesh.home.logs / f"{name}.log"
        self._processes[name] = Forked(Start(module, arguments, log))


async def until(ready: Callable[[], Any], what: str, timeout_s: float = 40) -> Any:
    """The first true answer of `ready`."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                if found := await asyncio.to_thread(ready):
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"it did not happen in time: {what}")


@contextlib.asynccontextmanager
async def opened_home(folder: Path) -> AsyncIterator[Home]:
    """A home with broker, orchestrator and a node that is online."""
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    broker = RunningMesh(make_mesh(folder / "home", "lan")[0], print)
    home = Home(broker.mesh)
    try:
        await broker.start_broker()
        home.mesh = broker.mesh
        home.start_orchestrator()
        await until(lambda: home.ask("health"), "the orchestrator answers")
        client = Client.connect(home.mesh.home.root)
        await asyncio.to_thread(home.mesh.own_node, client, NODE, policy)
        home.start_node()
        await until(lambda: online(home), "the node is online")
        yield home
    finally:
        home.kill_all()
        await broker.stop()


def online(home: Home) -> bool:
    found = home.ask("nodes") or {"nodes": []}
    return any(node["liveness"] == "online" for node in found["nodes"])


@pytest.mark.timeout(150)
async def test_a_cut_off_node_runs_a_permit_across_a_power_cut_and_reports_each_run_once(
    tmp_path: Path,
) -> None:
    plan = tmp_path / "water.json"
    plan.write_text(json.dumps(PLAN))
    elsewhere = {**PLAN["actions"][0], "target_selector": 'os == "linux"'}
    away = tmp_path / "away.json"
    away.write_text(json.dumps({**PLAN, "actions": [elsewhere]}))
    async with opened_home(tmp_path) as home:
        refused = home.run("permit", "grant", str(away), "--node", NODE, "--after", "1s")
        assert refused.returncode == 3, refused.stderr
        assert "permit.target" in refused.stderr
        assert "away.json" in refused.stderr
        terms = ("--node", NODE, "--every", "1s", "--budget", str(BUDGET), "--for", "1h")
        permit = home.type("permit", "grant", str(plan), *terms)["permit"]
        await until(lambda: home.ask(f"permits/{permit}")["held"], "the node holds it")
        assert not home.effects(), "it ran while the orchestrator was there"
        home.kill("orchestrator")
        await until(home.effects, "the first run by permit")
        home.kill(NODE)
        home.start_node()
        await until(lambda: f"{permit}-{BUDGET}/valve/{NODE}/1" in home.effects(), "the last run")
        home.start_orchestrator()
        shown = lambda: home.ask(f"permits/{permit}")  # noqa: E731
        reported = await until(
            lambda: (found := shown()) and found["reported"] == BUDGET and found, "all are reported"
        )
        runs = (home.ask("runs") or {})["runs"]
        assert sorted(run["run"] for run in runs) == reported["runs"]
        assert {run["by"] for run in runs} == {permit}
        counted = Counter(home.effects())
        assert set(counted.values()) == {1}, "an effect that must happen once"
        assert len(counted) == BUDGET, "as often as the budget says"
        last = home.ask(f"runs/{permit}-{BUDGET}") or {}
        assert last["state"] == "completed", last["error"]
        note = home.mesh.home.node(NODE) / "files" / "note.txt"
        assert note.read_text() == "valve said 7"
        assert home.type("audit", "verify")["intact"]
        for words in (("list",), ("show", permit[:3]), ("withdraw", permit)):
            said = home.run("permit", *words)
            assert said.returncode == 0, said.stderr
            assert permit in said.stdout
        assert (home.ask(f"permits/{permit}") or {})["state"] == "withdrawn"
