"""A mesh inside this process: real stores, signatures and API, a link of memory."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2

from imlmesh.client import Client
from imlmesh.mesh import let_in
from imlmesh_node.joining import Place
from imlmesh_node.journal import Journal
from imlmesh_node.main import load_setup as load_node_setup
from imlmesh_node.running import RunningNode
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.ledger import Pace
from imlmesh_orchestrator.main import RunningOrchestrator, load_setup
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol.wire.topics import node_subscriptions, orchestrator_subscriptions
from imlmesh_runtime.clock import MeshClock
from imlmesh_runtime.link.memory import MemoryHub, MemoryLink, MemoryPump
from imlmesh_runtime.paths import Home
from orchestrator_mesh import ENDED, ME, MESH, POLICY, plan

#: every entry is sealed at once
AT_ONCE = Pace(entries=1, every_ms=1_000, apart_ms=20, again_ms=500, store_ms=20)
WITHIN_S = 30


class LedgerMesh:
    """Orchestrator and nodes that are started and stopped by name."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._hub = MemoryHub(random.Random(1))
        self._pump = MemoryPump(self._hub)
        self.running: RunningOrchestrator | None = None
        self.nodes: dict[str, RunningNode] = {}
        self._http: httpx2.AsyncClient | None = None

    @property
    def shell(self) -> Shell:
        assert self.running is not None
        assert self.running.shell is not None
        return self.running.shell

    async def start(self, pace: Pace = AT_ONCE) -> Shell:
        setup = load_setup(self.home, None)
        setup = replace(setup, notary=replace(setup.notary, pace=pace))
        link = MemoryLink(self._hub, setup.me, orchestrator_subscriptions(setup.mesh))
        self.running = RunningOrchestrator(setup, link)
        shell = await self.running.start()
        self._http = httpx2.AsyncClient(
            base_url="http://imlmesh/v1/",
            transport=httpx2.AsyncHTTPTransport(verify=False, uds=str(self.home.api_socket)),
            timeout=WITHIN_S,
            trust_env=False,
        )
        return shell

    async def stop(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None
        if self.running is not None:
            await self.running.close()
            self.running = None

    async def node(self, name: str, wall_ms: int | None = None) -> RunningNode:
        """A node that runs; `wall_ms` is what its own clock says when it starts."""
        folder = self.home.node(name)
        if not folder.exists():
            place = Place(MESH, name, ME, ("127.0.0.1:1",), timing="lan")
            with Client.connect(self.home.root) as client:
                await asyncio.to_thread(let_in, client, folder, place, "local_worker", POLICY)
        setup = load_node_setup(folder)
        journal = Journal.open(folder / "journal.db")
        loaded = await journal.load(MeshClock().now_ms() if wall_ms is None else wall_ms)
        link = MemoryLink(self._hub, name, node_subscriptions(MESH, name))
        node = self.nodes[name] = RunningNode(setup, journal, loaded, link)
        node.start()
        return node

    async def stop_node(self, name: str) -> None:
        await self.nodes.pop(name).stop()

    async def online(self, *names: str) -> None:
        await self.until(lambda: all(map(self.shell.is_live, names)))

    async def until(self, holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while True:
                if holds():
                    return
                await asyncio.sleep(0.01)

    async def get(self, path: str, **params: Any) -> dict[str, Any]:
        assert self._http is not None
        answer = await self._http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert self._http is not None
        answer = await self._http.post(path, json=body)
        return answer.status_code, answer.json()

    async def run(self, *actions: dict[str, Any], **more: Any) -> dict[str, Any]:
        """A run of these actions, once it has ended."""
        status, found = await self.post("runs", {"text": plan(*actions, **more)})
        assert status == 202, found
        async with asyncio.timeout(WITHIN_S):
            while True:
                run = await self.get(f"runs/{found['run']}")
                if run["state"] in ENDED:
                    return run
                await asyncio.sleep(0.02)

    def witnessed(self, *names: str) -> bool:
        """Whether all is told, and these nodes were heard to name a seal of it."""
        ledger = self.shell.ledger
        tip, last = ledger.file.tip, ledger.last
        if tip.seq < self.shell.lifecycle.last_seq or last is None or last.size != tip.size:
            return False
        return all(
            name in ledger.witnessed
            and ledger.witnessed[name] == self.nodes[name].witness.document
            and self.nodes[name].witness.size == last.size
            for name in names
        )

    async def close(self) -> None:
        for name in list(self.nodes):
            await self.stop_node(name)
        await self.stop()
        self._pump.close()


@contextlib.asynccontextmanager
async def opened_ledger(folder: Path, *names: str) -> AsyncIterator[LedgerMesh]:
    """A running mesh with these nodes online."""
    home = Home(folder / "h")
    Authority.create(home, MESH, ME)
    mesh = LedgerMesh(home)
    try:
        await mesh.start()
        for name in names:
            await mesh.node(name)
        await mesh.online(*names)
        yield mesh
    finally:
        await mesh.close()
