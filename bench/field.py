"""A mesh to measure: real Mosquitto, an orchestrator in this process, nodes in theirs.

The one rule: everything of it lives in one temporary folder and ends with the `async with`.
"""

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.raw import RawPair
from imlmesh_broker.mosquitto import BrokerPlace, Mosquitto
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.main import RunningOrchestrator, load_setup
from imlmesh_orchestrator.shell import Shell
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys

MESH = "bench"
ECHO = "echo"
POLICY = 'profile = "local_worker"\n\n[roots]\nwrite = ["files"]\n\n[modules]\nallow = ["fake"]\n'
_READY_S = 20


@dataclass
class Field:
    home: Home
    authority: Authority
    broker: Mosquitto
    port: int

    def provision(self, name: str) -> Path:
        folder = self.home.node(name)
        if not folder.exists():
            self.authority.provision(
                name,
                folder,
                brokers=(f"127.0.0.1:{self.port}",),
                timing="lan",
                policy_text=POLICY,
                profile="local_worker",
            )
        return folder

    @contextlib.contextmanager
    def process(self, module: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A Python process that ends with the block; its log goes into the folder."""
        with (folder / "bench.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", module, str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
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
        """The raw pair on the same broker."""
        keys = ControlKeys.load(self.home.ca, MESH)
        with self.process("bench.raw", self.provision(ECHO)):
            pair = await RawPair.connect(keys, self.port, MESH, ECHO)
            try:
                yield pair
            finally:
                await pair.close()

    @contextlib.asynccontextmanager
    async def mesh(self, nodes: int, *, serve: bool = False) -> AsyncIterator[Shell]:
        """An orchestrator in this process and so many node processes, all online."""
        setup = load_setup(self.home, f"127.0.0.1:{self.port}")
        running = RunningOrchestrator(setup)
        with contextlib.ExitStack() as children:
            shell = await running.start(serve=serve)
            try:
                for index in range(nodes):
                    folder = self.provision(f"n{index}")
                    children.enter_context(self.process("imlmesh_node", folder))
                await online(shell, nodes)
                gc.collect()
                gc.freeze()
                gc.set_threshold(50_000)
                yield shell
            finally:
                await running.close()


@contextlib.asynccontextmanager
async def field() -> AsyncIterator[Field]:
    """A home, its keys and its broker."""
    with tempfile.TemporaryDirectory(prefix="imlmesh-bench-") as folder:
        home = Home(Path(folder))
        authority = Authority.create(home, MESH, "orchestrator")
        keys = ControlKeys.load(home.ca, MESH)
        place = BrokerPlace(home.broker, home.ca / "ca.pem", home.logs / "broker.log")
        broker = Mosquitto(MESH, "orchestrator", place, keys.context)
        port = await broker.start()
        try:
            yield Field(home, authority, broker, port)
        finally:
            await broker.stop()


async def online(shell: Shell, nodes: int) -> None:
    """Wait until so many nodes are online, and their inventories are in."""
    async with asyncio.timeout(_READY_S):
        while True:
            live = [n for n in shell.state.nodes.values() if shell.is_live(n.node)]
            asked = [p for p in shell.state.presence.values() if p.asked]
            if len(live) >= nodes and not asked:
                return
            await asyncio.sleep(0.01)
