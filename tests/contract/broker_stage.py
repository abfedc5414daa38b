"""A mesh with one of the brokers, bare clients of it, and what the orchestrator writes for it."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from imlmesh_broker import Broker, BrokerPlace
from imlmesh_broker.choice import BROKERS
from imlmesh_broker.embedded.codec import Message
from imlmesh_broker.visitor import Door, Visitor
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.files import write_private
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys
from node_folders import make_node
from waiting import eventually

MESH = "home"
BASE = f"imlmesh/1/{MESH}"
ME = "orchestra"
WITHIN_S = 60


def mesh_at(root: Path, *nodes: str) -> Home:
    home = Home(root)
    authority = Authority.create(home, MESH, ME)
    for name in nodes:
        make_node(authority, name, home.node(name), brokers=("127.0.0.1:8883",))
    return home


def up(node: str, kind: str, payload: bytes = b"") -> Message:
    return Message(f"{BASE}/from/{node}/{kind}", payload, 1, False)


def down(node: str, kind: str, payload: bytes = b"") -> Message:
    return Message(f"{BASE}/to/{node}/{kind}", payload, 1, False)


@dataclass
class Stage:
    home: Home
    broker: Broker
    version: int = 0
    inside: list[Visitor] = field(default_factory=list)

    def context(self, name: str) -> ssl.SSLContext:
        if name == ME:
            return ControlKeys.load(self.home.ca, MESH).context()
        return NodeKeys.load(self.home.node(name), MESH).context()

    async def enter(
        self, name: str, *filters: str, client: str = "", will: Message | None = None
    ) -> Visitor:
        """A client with the certificate of `name`, at the port that is for it."""
        port = self.broker.control_port if name == ME else self.broker.port
        door = Door("127.0.0.1", port, self.context(name))
        visitor = await Visitor.enter(door, client or name, will)
        self.inside.append(visitor)
        if filters:
            await visitor.subscribe(*filters)
        return visitor

    async def until_refused(self, name: str, wanted: bool = True) -> None:
        async def is_so() -> bool:
            return await self.is_refused(name) == wanted

        await eventually(is_so)

    async def is_refused(self, name: str) -> bool:
        try:
            (await self.enter(name)).vanish()
        except LinkError:
            return True
        return False

    def serial(self, name: str) -> int:
        pem = (self.home.node(name) / "keys" / "node.pem").read_bytes()
        return x509.load_pem_x509_certificate(pem).serial_number

    def write_lists(self, *revoked: str) -> None:
        """As the orchestrator does."""
        Authority.open(self.home).revoke([self.serial(name) for name in revoked])

    def write_access(
        self, *, revoked: tuple[str, ...] = (), quarantined: tuple[str, ...] = ()
    ) -> None:
        """As the orchestrator does; the next version."""
        self.version += 1
        table = {"version": self.version, "revoked": revoked, "quarantined": quarantined}
        write_private(self.home.broker / "access.json", json.dumps(table).encode())

    async def applied(self) -> None:
        """Returns when the broker's side says that the version written last is in force."""
        path = self.home.broker / "applied.json"
        await eventually(lambda: json.loads(path.read_text())["version"] == self.version)


@contextlib.asynccontextmanager
async def stage_of(home: Home, kind: str) -> AsyncIterator[Stage]:
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    broker = BROKERS[kind](MESH, ME, place, ControlKeys.load(home.ca, MESH).context)
    async with asyncio.timeout(WITHIN_S):
        await broker.start()
        stage = Stage(home, broker)
        try:
            yield stage
        finally:
            for visitor in stage.inside:
                visitor.vanish()
            await broker.stop()


async def ended(visitor: Visitor) -> None:
    """Returns when the broker has closed its connection."""
    while not visitor.ended:
        with contextlib.suppress(LinkError):
            await visitor.packet()
