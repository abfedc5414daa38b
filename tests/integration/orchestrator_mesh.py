"""A home with a real broker, an orchestrator process and node processes, asked through the API."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2

from forked import Forked, Start
from imlmesh.client import Client
from imlmesh.mesh import let_in
from imlmesh_broker import Broker, BrokerPlace, choose_broker
from imlmesh_node.joining import Place
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.entry.endpoint import last_port
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys

MESH, ME = "home", "orchestra"
WITHIN_S = 50
Process = Forked | asyncio.subprocess.Process
POLICY = """
profile = "local_worker"
[roots]
write = ["files"]
[modules]
allow = ["fake", "filesystem"]
"""
ENDED = {"completed", "failed", "cancelled"}


def action(name: str, do: str = "noop", after: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    module = "fake" if do in ("noop", "echo", "act") else "filesystem"
    return {"id": name, "module": module, "action": do, "depends_on": list(after), **more}


def plan(*actions: dict[str, Any], **more: Any) -> str:
    head = {"protocol_version": "2.0", "plan_id": "test", "description": "A test"}
    return json.dumps({**head, "execution_mode": "parallel", **more, "actions": list(actions)})


class Mesh:
    """A home with a broker; processes are started and killed by name."""

    def __init__(
        self, home: Home, port: int, control_port: int, broker: Broker | None = None
    ) -> None:
        self.home = home
        self.broker = broker
        self.port = port
        self.control_port = control_port
        self.processes: dict[str, Process] = {}
        self.http = httpx2.AsyncClient(
            base_url="http://imlmesh/v1/",
            transport=httpx2.AsyncHTTPTransport(verify=False, uds=str(home.api_socket)),
            timeout=WITHIN_S,
            trust_env=False,
        )

    async def start(self, name: str, module: str, *arguments: str) -> Forked:
        process = Forked(Start(module, arguments, self.home.logs / f"{name}.log"))
        self.processes[name] = process
        return process

    async def orchestrator(self, name: str = ME) -> Forked:
        arguments = ("--home", str(self.home.root), "--broker", f"127.0.0.1:{self.control_port}")
        # beside the ports of this test process, where it is found again after a restart
        arguments += ("--join", f"127.0.0.1:{last_port(self.home)}")
        return await self.start(name, "imlmesh_orchestrator", *arguments)

    async def node(self, name: str) -> None:
        await self.start(name, "imlmesh_node", str(await self.let_in(name)))

    async def begin(self, *nodes: str) -> None:
        """Returns when orchestrator and nodes have found each other."""
        await self.orchestrator()
        for name in nodes:
            await self.node(name)
        await self.online(*nodes)

    async def let_in(self, name: str) -> Path:
        """The folder of an enrolled node, which need not run."""
        folder = self.home.node(name)
        if not folder.exists():
            place = Place(MESH, name, ME, (f"127.0.0.1:{self.port}",), timing="lan")
            await self.until("health", lambda _: True)
            with Client.connect(self.home.root) as client:
                profile = "local_worker"
                await asyncio.to_thread(let_in, client, folder, place, profile, POLICY)
        return folder

    async def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        process = self.processes.pop(name)
        if process.returncode is None:
            os.killpg(process.pid, number)
        with self._told(lambda: f"{name} to end"):
            async with asyncio.timeout(WITHIN_S):
                return await process.wait()

    def kill_broker(self) -> None:
        """It starts again by itself."""
        assert self.broker is not None
        assert self.broker.pid is not None
        os.kill(self.broker.pid, signal.SIGKILL)

    async def get(self, path: str) -> dict[str, Any]:
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, path: str, holds: Any) -> dict[str, Any]:
        """The answer to `path` as soon as it holds; also across a restart of the API."""
        last = "no answer"
        with self._told(lambda: f"{path}; last: {last}"):
            async with asyncio.timeout(WITHIN_S):
                while True:
                    with contextlib.suppress(httpx2.TransportError):
                        answer = await self.http.get(path)
                        last = answer.text
                        if answer.status_code == 200 and holds(found := answer.json()):
                            return found
                    await asyncio.sleep(0.05)

    async def online(self, *names: str) -> None:
        def all_online(found: dict[str, Any]) -> bool:
            online = {n["node"] for n in found["nodes"] if n["liveness"] == "online"}
            return online >= set(names)

        await self.until("nodes", all_online)

    async def submit(self, text: str, status: int = 202) -> dict[str, Any]:
        answer = await self.http.post("runs", json={"text": text, "file": "plan.iml.json"})
        assert answer.status_code == status, answer.text
        return answer.json()

    async def ended(self, run: str) -> dict[str, Any]:
        return await self.until(f"runs/{run}", lambda found: found["state"] in ENDED)

    @contextlib.contextmanager
    def _told(self, what: Callable[[], str]) -> Iterator[None]:
        """Whoever waited in vain says for what, with the ends of all logs."""
        try:
            yield
        except TimeoutError:
            ends = {file.name: file.read_text()[-3_000:] for file in self.home.logs.glob("*.log")}
            logs = "".join(f"\n--- {name}\n{end}" for name, end in ends.items())
            raise AssertionError(f"waited {WITHIN_S} s for {what()}{logs}") from None

    async def events(
        self, opened: asyncio.Event | None = None, **params: Any
    ) -> AsyncIterator[tuple[str, int | None, Any]]:
        async with self.http.stream("GET", "events", params=params) as answer:
            assert answer.status_code == 200
            if opened is not None:
                opened.set()
            kind, seq = "", None
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "id":
                    seq = int(value)
                elif name == "data":
                    yield kind, seq, json.loads(value)
                    kind, seq = "", None


@contextlib.asynccontextmanager
async def opened_mesh(folder: Path, environ: Mapping[str, str] = os.environ) -> AsyncIterator[Mesh]:
    """A mesh with its broker, which `environ` may name; all processes are killed at the end."""
    home = Home(folder / "h")
    Authority.create(home, MESH, ME)
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    broker = choose_broker(environ)(MESH, ME, place, ControlKeys.load(home.ca, MESH).context)
    await broker.start()
    made = Mesh(home, broker.port, broker.control_port, broker)
    try:
        yield made
    finally:
        await made.http.aclose()
        for name in list(made.processes):
            await made.kill(name)
        await broker.stop()
