"""The mesh that is broken: a broker, an orchestrator and four nodes, a proxy before each of these.

The one rule: nothing of it is left when it is closed, and nothing outside of its folder is touched.
Deliberately absent: which faults are done when, which the scenarios know.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from imlmesh.chaos.ending import hear_no_more
from imlmesh.chaos.plans import GROUP, POLICY
from imlmesh.chaos.proxy import Mode, Proxy, opened_proxy
from imlmesh.chaos.watching import Watcher
from imlmesh.client import Client, path_of
from imlmesh.mesh import Mesh, make_mesh
from imlmesh.supervise import Program, launch
from imlmesh_broker import Broker, BrokerPlace, choose_broker
from imlmesh_broker.child import LOOPBACK, free_port
from imlmesh_orchestrator.core.changes import LivenessChanged
from imlmesh_orchestrator.entry.endpoint import last_port
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, MeshError
from imlmesh_protocol.states import Admission, Liveness
from imlmesh_runtime.trust import ControlKeys

ORCHESTRATOR = "orchestrator"
BROKER = "broker"
NODES = ("pi-a", "pi-b", "pi-c", "pi-d")
# that it ended and is started again is no news here
logging.getLogger("imlmesh_broker.child").setLevel(logging.ERROR)
_POLL_S, _SOON_S = 0.05, 0.002
_PORTS, _PORT_RANGE, _PORT_RANGES = 12_000, 20, 500


def from_here(node: str) -> tuple[str, ...]:
    """The node, then all others."""
    return (node, *(name for name in NODES if name != node))


class Running:
    """One program, started and ended by hand, with all that it started."""

    def __init__(self, program: Program, parent_fd: int) -> None:
        self.program = program
        #: a command that runs it somewhere else
        self.within: Sequence[str] = ()
        self._parent_fd = parent_fd
        self.process: asyncio.subprocess.Process | None = None

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def start(self, variables: Mapping[str, str] | None = None) -> None:
        self.process = await launch(self.program, self._parent_fd, variables, self.within)

    def strike(self) -> float:
        """SIGKILL, as a power cut: nothing of it goes on. The moment, of `time.monotonic`."""
        family = self._family()
        at_s = time.monotonic()
        _signal(family, signal.SIGKILL)
        return at_s

    async def kill(self) -> float:
        """`strike`, and it has ended. The moment of the first."""
        at_s = self.strike()
        if self.process is not None:
            await self.process.wait()
        self.process = None
        return at_s

    def stop(self) -> float:
        """SIGSTOP, as a suspended machine. The moment."""
        family = self._family()
        at_s = time.monotonic()
        _signal(family, signal.SIGSTOP)
        return at_s

    def go_on(self) -> float:
        """SIGCONT. The moment."""
        at_s = time.monotonic()
        _signal(self._family(), signal.SIGCONT)
        return at_s

    def _family(self) -> list[psutil.Process]:
        if self.process is None or self.process.returncode is not None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []


class Field:
    """Processes by name, proxies by name (`proxies[ORCHESTRATOR]` is the orchestrator's own)."""

    def __init__(self, mesh: Mesh, broker: Broker, watcher: Watcher) -> None:
        self.mesh = mesh
        self.broker = broker
        self.watcher = watcher
        self.running: dict[str, Running] = {}
        self.proxies: dict[str, Proxy] = {}
        self._client: Client | None = None
        self._touched = False

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """What the orchestrator answers to GET, with `body` to POST; None while there is none."""

        def call() -> dict[str, Any]:
            if self._client is None:
                self._client = Client.connect(self.mesh.home.root)
            return self._client.get(path) if body is None else self._client.post(path, body)

        try:
            return await asyncio.to_thread(call)
        except LinkError:
            # the next orchestrator may listen elsewhere; somebody may still be asking with this one
            self._client = None
        return None

    async def until(self, path: str, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The answer to GET `path` as soon as it holds; `process.failed` when it never does."""
        try:
            async with asyncio.timeout(limits.CHAOS_READY_S):
                while True:
                    found = await self.ask(path)
                    if found is not None and holds(found):
                        return found
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as exc:
            hint = f"look into {self.mesh.home.logs}"
            text = f"{path} did not become what it should within {limits.CHAOS_READY_S:g} s"
            raise MeshError("process.failed", text, hint=hint) from exc

    async def start(self, name: str, variables: Mapping[str, str] | None = None) -> None:
        """Start an ended process again; not yet there when this returns."""
        if name == BROKER:
            await self.broker.start()
        else:
            await self.running[name].start(variables)

    async def kill(self, name: str) -> float:
        """SIGKILL; the moment."""
        if name != BROKER:
            return await self.running[name].kill()
        at_s = time.monotonic()
        if self.broker.pid is not None:
            os.kill(self.broker.pid, signal.SIGKILL)
        while self.broker.pid is not None:  # noqa: ASYNC110 - it says nothing when it ends
            await asyncio.sleep(_SOON_S)
        # nobody but us starts it again
        await self.broker.stop()
        return at_s

    async def restart(self, name: str, variables: Mapping[str, str] | None = None) -> float:
        """`kill`, then `start`; the moment of the kill."""
        at_s = await self.kill(name)
        await self.start(name, variables)
        return at_s

    async def online(self, *names: str) -> None:
        """Returns when these nodes are, by default all of them."""
        wanted = set(names or NODES)

        def all_online(found: dict[str, Any]) -> bool:
            return wanted <= {n["node"] for n in found["nodes"] if n["liveness"] == "online"}

        await self.until("nodes", all_online)

    async def mend(self) -> None:
        """Nothing is broken any more, and everything is started."""
        for proxy in self.proxies.values():
            proxy.mode, proxy.delay_s = Mode.PASS, 0.0
        if self.broker.pid is None:
            await self.restart(BROKER)
        for running in self.running.values():
            if not running.lives:
                await running.start()

    async def settle(self) -> None:
        """Everything is as at the beginning, with an orchestrator that remembers no lateness and no
        coming and going: both make it wait for longer."""
        await self.mend()
        if self._touched:
            await self.restart(ORCHESTRATOR)
        self._touched = True
        await self.online()
        await self.until("health", lambda found: not found["verdicts"]["frozen"])
        # a node that was not heard yet since the start may be silent for longer
        found = await self.until("nodes", lambda found: all(n["health"] for n in found["nodes"]))
        for node in found["nodes"]:
            if node["admission"] == Admission.QUARANTINED:
                opened = {"admission": Admission.OPEN, "reason": "it was broken on purpose"}
                await self.ask(path_of("nodes", node["node"], "admission"), opened)

    async def seen_as(
        self,
        node: str,
        liveness: Liveness,
        since_s: float,
        within_s: float = limits.CHAOS_SEEN_S,
    ) -> float | None:
        """Seconds from then until the node was called that; None when it was not within that time."""

        def is_it(change: object) -> bool:
            return isinstance(change, LivenessChanged) and (change.node, change.liveness) == (
                node,
                liveness,
            )

        return await self.watcher.first(is_it, since_s, within_s)

    def files(self) -> list[Path]:
        """Where the nodes' actions leave their marks."""
        return [self.mesh.home.node(name) / "files" for name in NODES]

    def forget_client(self) -> None:
        """The next question opens a connection of its own."""
        if self._client is not None:
            self._client.close()
            self._client = None


@contextlib.asynccontextmanager
async def opened_field(folder: Path) -> AsyncIterator[Field]:
    """A mesh below `folder` whose nodes are all online; all of it is killed at the end, which no
    SIGTERM or Ctrl-C cuts short."""
    mesh, _ = make_mesh(folder / "home", "lan")
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    async with AsyncExitStack() as stack:
        read_fd, write_fd = os.pipe()
        stack.callback(os.close, read_fd)
        stack.callback(os.close, write_fd)
        broker = await _broker(mesh)
        stack.push_async_callback(broker.stop)
        watcher = Watcher(mesh.home.orchestrator / "lifecycle.db")
        stack.push_async_callback(watcher.close)
        field = Field(mesh, broker, watcher)
        stack.push_async_callback(_kill_all, field)
        try:
            await _start_orchestrator(field, stack, read_fd)
            for name in NODES:
                await _add_node(field, stack, read_fd, name, policy)
            await asyncio.gather(*(field.start(name) for name in NODES))
            await field.online()
            await asyncio.to_thread(_make_group, mesh)
            yield field
        finally:
            hear_no_more()


async def _broker(mesh: Mesh) -> Broker:
    home, authority = mesh.home, mesh.authority
    keys = ControlKeys.load(home.ca, authority.mesh)
    authority.renew_lists(home.broker / "served")
    # while it is dead nobody else may take its ports: neither clients of the system nor another mesh
    port = free_port(LOOPBACK, _PORTS + os.getpid() % _PORT_RANGES * _PORT_RANGE)
    control_port = free_port(LOOPBACK, port + 1)
    log = home.logs / "broker.log"
    place = BrokerPlace(home.broker, home.ca, log, port=port, control_port=control_port)
    chosen = choose_broker(os.environ)
    broker = chosen(authority.mesh, authority.orchestrator, place, keys.context)
    await broker.start()
    return broker


async def _start_orchestrator(field: Field, stack: AsyncExitStack, parent_fd: int) -> None:
    home = field.mesh.home
    proxy = await stack.enter_async_context(opened_proxy(field.broker.control_port))
    field.proxies[ORCHESTRATOR] = proxy
    place = ("--home", str(home.root), "--broker", f"{LOOPBACK}:{proxy.port}")
    arguments = (*place, "--join", f"{LOOPBACK}:{last_port(home)}")
    log = home.logs / "orchestrator.log"
    program = Program(ORCHESTRATOR, "imlmesh_orchestrator", arguments, log)
    field.running[ORCHESTRATOR] = Running(program, parent_fd)
    await field.start(ORCHESTRATOR)
    await field.until("health", lambda found: found["broker"]["connected"])


async def _add_node(
    field: Field, stack: AsyncExitStack, parent_fd: int, name: str, policy: Path
) -> None:
    proxy = await stack.enter_async_context(opened_proxy(field.broker.port))
    field.proxies[name] = proxy
    # its folder names the proxy alone, else the node would go around it
    behind = replace(field.mesh, port=proxy.port, control_port=field.broker.control_port)

    def let_in() -> Path:
        with Client.connect(behind.home.root) as client:
            return behind.own_node(client, name, policy)

    folder = await asyncio.to_thread(let_in)
    log = field.mesh.home.logs / f"node-{name}.log"
    field.running[name] = Running(Program(name, "imlmesh_node", (str(folder),), log), parent_fd)


def _make_group(mesh: Mesh) -> None:
    with Client.connect(mesh.home.root) as client:
        client.put(path_of("groups", GROUP), {"nodes": list(NODES)})


async def _kill_all(field: Field) -> None:
    field.forget_client()
    for running in field.running.values():
        running.strike()
    for running in field.running.values():
        await running.kill()


def _signal(family: list[psutil.Process], number: signal.Signals) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
