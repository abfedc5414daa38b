"""An orchestrator without a broker, at whose endpoint nodes join."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imlmesh.client import Client
from imlmesh_node.entering import Told, Wish, enter
from imlmesh_node.joining import NewKeys, Place, write_folder
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.main import RunningOrchestrator, load_setup
from imlmesh_protocol.wire.joining import JoinToken
from imlmesh_runtime.link.address import address_text
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import unverified_context

NOWHERE = "127.0.0.1:9"
QUIET = Told(lambda code, door: None, lambda error: None)


class Front:
    """The way in of one home; restarted at will."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        Authority.create(self.home, "home", "orchestra")
        self.running: RunningOrchestrator | None = None

    async def open(self, at: Address | None = None) -> None:
        """`at`: where nodes join, or at the next free port."""
        where = None if at is None else address_text(*at)
        self.running = RunningOrchestrator(load_setup(self.home, NOWHERE, where))
        await self.running.start()

    async def close(self) -> None:
        if self.running is not None:
            await self.running.close()
        self.running = None

    @property
    def state(self) -> Any:
        assert self.running is not None
        assert self.running.shell is not None
        return self.running.shell.state

    @property
    def refused(self) -> dict[str, int]:
        assert self.running is not None
        assert self.running.shell is not None
        return dict(self.running.shell.stream.refused)

    @property
    def address(self) -> tuple[str, int]:
        assert self.running is not None
        assert self.running.joining is not None
        assert self.running.joining.endpoint is not None
        return self.running.joining.endpoint.address

    async def api(self, ask: Callable[[Client], Any]) -> Any:
        def asked() -> Any:
            with Client.connect(self.home.root) as client:
                return ask(client)

        return await asyncio.to_thread(asked)

    async def token(self, **asked: Any) -> JoinToken:
        made = await self.api(lambda client: client.post("tokens", asked))
        return JoinToken.parse(made["text"])

    async def raw(self, data: bytes) -> bytes:
        """Whatever is sent, over TLS; what comes back until the end."""
        context = unverified_context()
        try:
            reader, writer = await asyncio.open_connection(*self.address, ssl=context)
            writer.write(data)
            await writer.drain()
            answer = await reader.read()
            writer.close()
        except (ssl.SSLError, ConnectionError):
            return b""
        return answer


async def join(folder: Path, token: JoinToken | None, told: Told = QUIET, **wish: Any) -> Path:
    """What `imlmesh node join` does, with the name of the folder as the id."""
    keys = NewKeys.kept(folder)
    wanted = Wish(wish.pop("node", folder.name), wish.pop("profile", ""), token, **wish)
    found = await enter(wanted, keys, told)
    place = Place(found.mesh, wanted.node, found.orchestrator, (found.broker,), join=(found.join,))
    write_folder(folder, place, keys, found.papers, None)
    return folder
