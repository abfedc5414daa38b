"""Orchestrator and nodes are killed at random instants of runs that retry, ask, roll and roll back.

Real broker, real nodes; every effect leaves a line in a file of its node. Wherever the kill of an
orchestrator falls, the run ends as it does undisturbed, and each effect is there as often as the
rules say. With a node something may be lost: then a person is asked, and nothing happens twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from imlmesh.client import Client
from imlmesh.mesh import Mesh, make_mesh
from imlmesh.planning import Plan
from imlmesh.running import RunningMesh
from imlmesh_protocol.errors import LinkError, MeshError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


NODES = ("pi-a", "pi-b", "pi-c")
#: of the orchestrator; `make chaos` has more. Every commit point is killed at in tests/sim.
KILLS = int(os.environ.get("KILLS", "10"))
NODE_KILLS = max(4, KILLS // 2)
LONGEST_S = 200 + 10 * KILLS
POLICY = """\
profile = "local_worker"

[roots]
write = ["files"]

[modules]
allow = ["fake"]
"""
#: lines in the files of all nodes, for each run
EFFECTS = {"retried": 3, "asked": 1, "rolled": 3, "breaks": 1, "undo": 6}
EXPECTED = {
    "state": "failed",
    "code": "driver.failed",
    "units": {"undo": "completed"}
    | dict.fromkeys(("retried", "asked", "rolled", "breaks"), "rolled_back"),
}


class Home:
    """One home whose orchestrator is started and killed by hand."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.client: Client | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Start `python -m ARGUMENTS`; its output goes to a log file."""
        with (self.mesh.home.logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments], stdout=log, stderr=log, process_group=0
            )

    def start_again(self, name: str) -> None:
        """Kill a process and start it anew."""
        self.kill(name)
        if name == "orchestrator":
            self.start_orchestrator()
        else:
            self.start_node(name)

    def start_node(self, name: str) -> None:
        self.start(name, "imlmesh_node", str(self.mesh.home.node(name)))

    def start_orchestrator(self) -> None:
        place = ("--home", str(self.mesh.home.root), "--broker", self.mesh.control_address)
        self.start("orchestrator", "imlmesh_orchestrator", *place)

    def kill(self, name: str) -> None:
        """SIGKILL to the process and to its children."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_all(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def ask(self, path: str) -> dict[str, Any] | None:
        """What the orchestrator answers; None while there is none."""
        with contextlib.suppress(LinkError):
            if self.client is None:
                self.client = Client.connect(self.mesh.home.root)
            return self.client.get(path)
        return None

    def answer(self) -> None:
        """Approve whatever waits at a gate, and say of everything that was lost that it happened."""
        found = self.ask("approvals?state=pending") or {"approvals": []}
        for each in found["approvals"]:
            option = "approve" if each["kind"] == "gate" else "done"
            with contextlib.suppress(MeshError):
                self.client.post(f"approvals/{each['approval']}/answer", {"option": option})

    def effects(self, run: str) -> Counter[str]:
        """How often each dispatch of the run left its line: {dispatch id: lines}."""
        lines: list[str] = []
        for name in NODES:
            for file in (self.mesh.home.node(name) / "files").glob("*.txt"):
                lines += file.read_text().split()
        return Counter(line for line in lines if line.startswith(f"{run}/"))


def own_node(home: Home, name: str, policy: Path) -> None:
    """The folder of a node, as soon as the orchestrator answers."""
    while home.ask("health") is None:
        time.sleep(0.05)
    assert home.client is not None
    home.mesh.own_node(home.client, name, policy)


@contextlib.asynccontextmanager
async def opened_home(folder: Path) -> AsyncIterator[Home]:
    """A home with broker, orchestrator and three nodes that are online."""
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    broker = RunningMesh(make_mesh(folder / "home", "lan")[0], print)
    home = Home(broker.mesh)
    try:
        await broker.start_broker()
        home.mesh = broker.mesh
        home.start_orchestrator()
        for name in NODES:
            await asyncio.to_thread(own_node, home, name, policy)
            home.start_node(name)
        async with asyncio.timeout(30):
            await online(home)
        home.client.put("groups/garden", {"nodes": list(NODES)})
        yield home
    finally:
        home.kill_all()
        await broker.stop()


async def online(home: Home) -> None:
    """Returns when all nodes are."""
    while True:
        found = home.ask("nodes") or {"nodes": []}
        if {n["node"] for n in found["nodes"] if n["liveness"] == "online"} >= set(NODES):
            return
        await asyncio.sleep(0.05)


def waits_of_all_kinds() -> Plan:
    """A retry, a gate, a rolling batch, and a failure that undoes them all."""
    plan = Plan("all-waits", description="Every kind of waiting", execution_mode="parallel")
    undone = {"rollback": {"action": "undo"}}
    again = {"delay_seconds": 0.2, "retry_on": []}
    act(plan, "retried", fail_times=2, target_node="pi-a", on_error="retry", retry=again, **undone)
    act(plan, "asked", "retried", target_node="pi-b", requires_approval=True, **undone)
    act(plan, "rolled", "asked", target_group="garden", target_mode="rolling", **undone)
    act(plan, "breaks", "rolled", fail_times=9, target_node="pi-c", on_error="rollback", **undone)
    act(plan, "undo")
    return plan


def act(plan: Plan, name: str, *after: str, fail_times: int = 0, **more: Any) -> None:
    params = {"marker": f"{name}.txt", "delay_ms": 60, "fail_times": fail_times}
    plan.action(name, "fake.act", params, after=after, **more)


async def play(home: Home, kills: list[tuple[float, str]]) -> list[dict[str, Any]]:
    """Two runs at once from their submission to their ends.

    Of `kills` each names a process and after how many seconds it is killed, counted from when the
    orchestrator last began to answer.
    """
    runs = [home.client.submit(waits_of_all_kinds())["run"] for _ in range(2)]
    waiting = list(kills)
    since_s: float | None = time.monotonic()
    while True:
        await asyncio.sleep(0.05)
        if waiting and since_s is not None and time.monotonic() - since_s >= waiting[0][0]:
            since_s = None
            home.start_again(waiting.pop(0)[1])
        home.answer()
        found = [home.ask(f"runs/{run}") for run in runs]
        if None in found:
            continue
        since_s = since_s or time.monotonic()
        if not waiting and all(run["ended_at_ms"] for run in found):
            return found


async def ended(home: Home, kills: list[tuple[float, str]], said: str) -> list[dict[str, Any]]:
    """`play`; fails when a run does not end."""
    try:
        async with asyncio.timeout(60):
            return await play(home, kills)
    except TimeoutError:
        pytest.fail(f"{said}, did not end: {home.ask('runs')} {home.ask('approvals')}")


def ending(run: dict[str, Any]) -> dict[str, Any]:
    """How a run and its units ended."""
    states = {unit["id"]: unit["state"] for unit in run["actions"]}
    return {"state": run["state"], "code": run["error"]["code"], "units": states}


@pytest.mark.timeout(LONGEST_S)
async def test_a_killed_orchestrator_changes_no_ending_and_repeats_no_effect(
    tmp_path: Path,
) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    async with opened_home(tmp_path) as home:
        began_s = time.monotonic()
        calm = await play(home, [])
        half_s = (time.monotonic() - began_s) / 2
        assert [ending(run) for run in calm] == [EXPECTED] * 2
        for _ in range(KILLS // 2):
            kills = [(dice.uniform(0, half_s), "orchestrator") for _ in range(2)]
            said = f"seed {seed}, killed {kills}"
            for run in await ended(home, kills, said):
                assert ending(run) == EXPECTED, said
                effects = home.effects(run["run"])
                assert set(effects.values()) == {1}, f"{said}: {effects}"
                assert Counter(name.split("/")[1] for name in effects) == EFFECTS, said


@pytest.mark.timeout(LONGEST_S)
async def test_a_killed_node_repeats_no_effect_and_every_run_ends(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    async with opened_home(tmp_path) as home:
        for _ in range(NODE_KILLS // 2):
            nodes = dice.sample(NODES, 2)
            kills = [(dice.uniform(0, 1.5), name) for name in nodes]
            said = f"seed {seed}, killed {kills}"
            for run in await ended(home, kills, said):
                states = {unit["id"]: unit["state"] for unit in run["actions"]}
                over = {"completed", "failed", "skipped", "rolled_back"}
                assert run["state"] in ("completed", "failed"), said
                assert set(states.values()) <= over, f"{said}: {states}"
                effects = home.effects(run["run"])
                assert set(effects.values()) <= {1}, f"{said}: {effects}"
                found = Counter(name.split("/")[1] for name in effects)
                assert found <= Counter(EFFECTS), f"{said}: {found}"
