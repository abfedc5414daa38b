"""The processes of a mesh on this computer: broker, orchestrator, nodes; started and stopped.

The one rule: at most one of them per home, held by a lock; each is told ready only when it answers.
Deliberately absent: what they print, and the files they need (`mesh`).
"""

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from imlmesh.client import Client, path_of
from imlmesh.mesh import ADDRESS, Mesh
from imlmesh.probing import probe_broker, unsafe
from imlmesh.supervise import Program, Supervised, Supervisor
from imlmesh_broker import EVERYWHERE, Broker, BrokerPlace, choose_broker
from imlmesh_orchestrator.announcing import announced_mesh
from imlmesh_orchestrator.entry.endpoint import last_port
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, LinkError, MeshError
from imlmesh_runtime.discovery import Discovery
from imlmesh_runtime.logs import begin_anew, is_too_long
from imlmesh_runtime.trust import ControlKeys

_POLL_S = 0.1
_ALL = "0.0.0.0"  # noqa: S104 - with --lan


class RunningMesh:
    """Start in the order broker, orchestrator, nodes; `stop` ends all in the reverse order.

    With `lan` broker and join endpoint listen on all addresses of this computer.
    """

    def __init__(self, mesh: Mesh, notice: Callable[[str], None], *, lan: bool = False) -> None:
        self.mesh = mesh
        self.lan = lan
        self._discovery: Discovery | None = None
        self._supervisor = Supervisor(notice)
        self._broker: Broker | None = None
        self._lock: IO[str] | None = None

    async def start_broker(self) -> str:
        """The program that serves, once it passed the probe.

        LinkError `broker.missing`, `broker.failed`; TrustError `broker.unsafe`, `broker.lists`,
        `broker.access`; InputError `orchestrator.running`.
        """
        self._hold()
        mesh = self.mesh
        home, authority = mesh.home, mesh.authority
        keys = ControlKeys.load(home.ca, authority.mesh)
        host = EVERYWHERE if self.lan else ADDRESS
        log = home.logs / "broker.log"
        place = BrokerPlace(home.broker, home.ca, log, host, mesh.port, mesh.control_port)
        authority.renew_lists(place.served)
        chosen = choose_broker(os.environ)
        self._broker = chosen(authority.mesh, authority.orchestrator, place, keys.context)
        await self._broker.start()
        self.mesh = mesh.settle_ports(self._broker.port, self._broker.control_port)
        places = (ADDRESS, self._broker.port), (ADDRESS, self._broker.control_port)
        if error := unsafe(await probe_broker(authority, *places)):
            raise error
        return chosen.program

    def announce(self) -> Discovery:
        """Tell the network by mDNS where this mesh is, until `stop`."""
        mesh, name = self.mesh, self.mesh.authority.mesh
        announced = announced_mesh(mesh.home.ca, name, mesh.port or 0, last_port(mesh.home))
        self._discovery = Discovery(announced=announced)
        self._discovery.start()
        return self._discovery

    async def start_orchestrator(self) -> Client:
        """Returns when its API answers and it is connected to the broker."""
        home = self.mesh.home
        door = f"{_ALL if self.lan else ADDRESS}:{last_port(home)}"
        program = Program(
            "orchestrator",
            "imlmesh_orchestrator",
            ("--home", str(home.root), "--broker", self.mesh.control_address, "--join", door),
            home.logs / "orchestrator.log",
        )
        supervised = await self._supervisor.start(program)
        client: Client = await self._until(supervised, self._connected, limits.STORES_READY_MS)
        return client

    async def start_node(self, folder: Path, client: Client) -> Supervised:
        """Returns when the orchestrator sees the node of `folder` online."""
        name = folder.name
        program = Program(
            f"node {name}",
            "imlmesh_node",
            # The folder may be older than the broker's port.
            (str(folder), "--broker", self.mesh.broker_address),
            self.mesh.home.logs / f"node-{name}.log",
        )
        supervised = await self._supervisor.start(program)

        def online() -> bool:
            return bool(client.get(path_of("nodes", name))["liveness"] == "online")

        await self._until(supervised, online, limits.CHILD_READY_MS)
        return supervised

    async def wait(self, ended: asyncio.Event) -> None:
        """Until `ended`, or raise what restarting did not help against."""
        while not ended.is_set():
            self._supervisor.check()
            if self._broker is not None and self._broker.failed.done():
                self._broker.failed.result()
            await self._bound_logs()
            try:
                async with asyncio.timeout(_POLL_S * 5):
                    await ended.wait()
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """End nodes, orchestrator, broker, each within limits.STOP_MS."""
        if self._discovery is not None:
            await self._discovery.close()
        await self._supervisor.stop()
        if self._broker is not None:
            await self._broker.stop()
        if self._lock is not None:
            self._lock.close()

    async def _bound_logs(self) -> None:
        """What our processes print goes into files that only we can keep short; Mosquitto has no limit
        of its own, and one client that comes again and again fills a card within months."""
        for log in self.mesh.home.logs.glob("*.log"):
            if is_too_long(log):
                await asyncio.to_thread(begin_anew, log)

    def _hold(self) -> None:
        lock = (self.mesh.home.run / "up.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            lock.close()
            text = f"the mesh of {self.mesh.home.root} is running already"
            raise InputError("orchestrator.running", text) from exc
        self._lock = lock

    def _connected(self) -> Client | None:
        client = Client.connect(self.mesh.home.root)
        if client.get("health")["broker"]["connected"]:
            return client
        client.close()
        return None

    async def _until(
        self, supervised: Supervised, answer: Callable[[], Any], within_ms: int
    ) -> Any:
        """The first true `answer`; `process.failed` when the process ends or the time does."""
        try:
            async with asyncio.timeout(within_ms / 1000):
                while True:
                    try:
                        if found := await asyncio.to_thread(answer):
                            return found
                    except LinkError:
                        pass  # not listening yet
                    except MeshError as exc:
                        if not exc.code.endswith("not_found"):
                            raise
                    if supervised.ends:
                        raise supervised.error("ended at its start")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as exc:
            seconds = within_ms // 1000
            raise supervised.error(f"was not ready within {seconds} s") from exc
