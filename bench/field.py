"""A mesh to measure: a real broker, an orchestrator in this process, nodes in theirs.

The one rule: everything of it lives in one temporary folder and ends with the `async with`.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.raw import RawPair
from imlmesh_broker import Broker, BrokerPlace, Mosquitto
from imlmesh_node.joining import NewKeys, Place, write_folder
from imlmesh_orchestrator.answering import Newcomer
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.ca.certificates import Issued
from imlmesh_orchestrator.main import RunningOrchestrator, load_setup
from imlmesh_orchestrator.shell import Shell
from imlmesh_runtime.paths import Home
from imlmesh_runtime.process import tune
from imlmesh_runtime.trust import ControlKeys, NodeKeys

MESH = "bench"
ECHO = "echo"
POLICY = 'profile = "local_worker"\n\n[roots]\nwrite = ["files"]\n\n[modules]\nallow = ["fake"]\n'
_READY_S = 20


@dataclass
class Field:
    home: Home
    authority: Authority
    broker: Broker
    #: a second one with the same settings, so that raw pair and mesh can take turns: both speak as
    #: the orchestrator, and a broker keeps one connection of a name
    raw_broker: Broker

    def folder(self, name: str, port: int | None = None) -> Path:
        """The folder of a node that nobody enrolled yet."""
        folder = self.home.node(name)
        if not folder.exists():
            make_folder(self.authority, folder, port or self.broker.port)
        return folder

    async def node(self, shell: Shell, name: str, port: int | None = None) -> Path:
        """The folder of a node that `shell` let in."""
        folder = self.folder(name, port)
        signer = NodeKeys.load(folder, MESH).signer
        if name not in shell.state.enrolled:
            newcomer = Newcomer(name, name, signer.raw_public, "local_worker")
            serial = len(shell.state.enrolled)
            await shell.enrol(newcomer, Issued(b"", serial, 0), "bench")
        return folder

    @contextlib.contextmanager
    def process(self, module: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A Python process that ends with the block; its log goes into the folder."""
        with self.started(folder, module, str(folder)) as child:
            yield child

    @contextlib.contextmanager
    def orchestrator(self) -> Iterator[subprocess.Popen[bytes]]:
        """An orchestrator in a process of its own."""
        arguments = ("--home", str(self.home.root))
        broker = f"127.0.0.1:{self.broker.control_port}"
        command = ("imlmesh_orchestrator", *arguments, "--broker", broker)
        with self.started(self.home.root, *command) as child:
            yield child

    @contextlib.contextmanager
    def started(
        self, folder: Path, *command: str, piped: bool = False
    ) -> Iterator[subprocess.Popen[bytes]]:
        """`python -m COMMAND` until the end of the block; what it says is `piped` to us or in the log."""
        with (folder / "bench.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if piped else log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    @contextlib.asynccontextmanager
    async def raw(self) -> AsyncIterator[RawPair]:
        """The raw pair on a broker of the same kind."""
        keys = ControlKeys.load(self.home.ca, MESH)
        with self.process("bench.raw", self.folder(ECHO, self.raw_broker.port)):
            pair = await RawPair.connect(keys, self.raw_broker.control_port, MESH, ECHO)
            try:
                yield pair
            finally:
                await pair.close()

    @contextlib.asynccontextmanager
    async def mesh(self, nodes: int, *, serve: bool = False) -> AsyncIterator[Shell]:
        """An orchestrator in this process and so many node processes, all online."""
        setup = load_setup(self.home, f"127.0.0.1:{self.broker.control_port}")
        running = RunningOrchestrator(setup)
        with contextlib.ExitStack() as children:
            shell = await running.start(serve=serve)
            try:
                for index in range(nodes):
                    folder = await self.node(shell, f"n{index}")
                    children.enter_context(self.process("imlmesh_node", folder))
                await online(shell, nodes)
                tune()
                yield shell
            finally:
                await running.close()


def make_folder(authority: Authority, folder: Path, port: int) -> None:
    """Write the folder of a node that calls the broker at `port`."""
    keys = NewKeys.kept(folder)
    issued = authority.certify(keys.request, folder.name)
    papers = {"node.pem": issued.pem, **authority.papers()}
    brokers = (f"127.0.0.1:{port}",)
    place = Place(authority.mesh, folder.name, authority.orchestrator, brokers, timing="lan")
    write_folder(folder, place, keys, papers, POLICY)


@contextlib.asynccontextmanager
async def field(kind: type[Broker] = Mosquitto) -> AsyncIterator[Field]:
    """A home, its keys and its broker of that kind."""
    with tempfile.TemporaryDirectory(prefix="imlmesh-bench-") as root:
        home = Home(Path(root))
        authority = Authority.create(home, MESH, "orchestrator")
        keys = ControlKeys.load(home.ca, MESH)
        async with contextlib.AsyncExitStack() as stack:
            brokers = []
            for folder_name in ("broker", "broker-raw"):
                folder = home.root / folder_name
                if not folder.exists():
                    authority.issue_broker(folder)
                place = BrokerPlace(folder, home.ca, home.logs / f"{folder_name}.log")
                broker = kind(MESH, "orchestrator", place, keys.context)
                await broker.start()
                stack.push_async_callback(broker.stop)
                brokers.append(broker)
            yield Field(home, authority, *brokers)


async def online(shell: Shell, nodes: int) -> None:
    """Wait until so many nodes are online, and their inventories are in."""
    async with asyncio.timeout(_READY_S):
        while True:
            live = [n for n in shell.state.nodes.values() if shell.is_live(n.node)]
            asked = [p for p in shell.state.presence.values() if p.asked]
            if len(live) >= nodes and not asked:
                return
            await asyncio.sleep(0.01)
