"""Where a node looks for its broker: at the addresses that it was given, then wherever mDNS says.

The one rule: an address that was given is tried first, and a mesh that is heard counts only when its
root hash is that of our own CA. While it looks, the node says on the network that it waits. A node
whose addresses are all of this computer never asks the network. Deliberately absent: connecting.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence

from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, MeshError
from imlmesh_runtime.discovery import MESHES, Discovery, Service
from imlmesh_runtime.link.address import JOIN_PORT
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.multicast import is_loopback, nearest_first

log = logging.getLogger(__name__)

#: on a node's computer the orchestrator cannot be asked
_HINTS = {
    "link.down": "look whether the mesh is up, and whether a firewall lets its TCP port through"
}

Tell = Callable[[LinkError], None]
Look = Callable[[Service], Discovery]


def log_error(error: LinkError) -> None:
    """Tell it to who reads the log."""
    log.warning("%s", error, extra={"code": error.code, "hint": error.hint})


def look(me: Service) -> Discovery:
    """Listen for meshes, and announce that `me` waits for one."""
    return Discovery(announced=me, watched=MESHES)


class Finder:
    """The `Addresses` of one node's link.

    `given` are tried first, `me` is what the node says of itself, `line` the command that helps
    where mDNS does not. `tell` gets `discovery.blocked` or `discovery.nothing` with it, and why no
    address lets us in when that lasts.
    """

    def __init__(
        self, given: Sequence[Address], me: Service, line: str, tell: Tell, look: Look = look
    ) -> None:
        self._given = tuple(given)
        self._me = me
        self._line = line
        self._tell = tell
        self._look = look
        self._asks = not given or not all(is_loopback(address) for address, _ in given)
        self._round: deque[Address] = deque(given)
        self._last: Address | None = None
        self._good: list[Address] = []
        self._told_joins: list[Address] = []
        self._discovery: Discovery | None = None
        self._telling: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._failing_since_s: float | None = None
        self._told = False

    async def next(self) -> Address:
        """The next of this round; a new round is what was given and what mDNS tells by then."""
        if not self._round:
            known = [*self._given, *self._good]
            heard = await self._search(bool(known)) if self._asks else []
            self._round.extend(dict.fromkeys([*known, *heard]))
        self._last = self._round.popleft()
        return self._last

    def joins(self) -> list[Address]:
        """Where the join endpoint may be: as mDNS told, and where the broker was or may be."""
        last = [self._last] if self._last else []
        near = [(host, JOIN_PORT) for host, _ in (*self._good, *last, *self._given)]
        return list(dict.fromkeys((*self._told_joins, *near)))

    def reached(self) -> None:
        """The mesh is found: no more mDNS; when the session breaks, this address is the first."""
        self._failing_since_s, self._told = None, False
        self._good = [self._last] if self._last else []
        self._round = deque(dict.fromkeys([*self._good, *self._given]))
        self._closing = asyncio.get_running_loop().create_task(self._stop())

    def failed(self, error: MeshError) -> None:
        """Tell it once when it lasts: a broker that restarts is back within DISCOVERY_QUIET_MS."""
        now_s = asyncio.get_running_loop().time()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        lasts_s = now_s - self._failing_since_s
        if not self._told and lasts_s * 1000 >= limits.DISCOVERY_QUIET_MS:
            self._told = True
            text = f"no way into mesh {self._me.mesh}, tried again and again: {error.message}"
            self._tell(LinkError(error.code, text, hint=_HINTS.get(error.code, error.hint)))

    async def close(self) -> None:
        """Look no longer."""
        if self._closing is not None:
            await asyncio.wait([self._closing])
        await self._stop()

    async def _stop(self) -> None:
        discovery, self._discovery = self._discovery, None
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()
            await asyncio.wait([telling])
        if discovery is not None:
            await discovery.close()

    async def _search(self, hurry: bool) -> list[Address]:
        """Addresses of our mesh that were heard by now; without `hurry` there will be one."""
        discovery = self._discovery
        if discovery is None:
            discovery = self._discovery = self._look(self._me)
            discovery.start()
            telling = self._tell_when_quiet(discovery, hurry)
            self._telling = asyncio.get_running_loop().create_task(telling)
        if hurry:
            return self._ours(discovery)
        return await discovery.until(lambda: self._ours(discovery))

    def _ours(self, discovery: Discovery) -> list[Address]:
        ours = [
            (address, service)
            for service in list(discovery.found.values())
            if (service.mesh, service.root) == (self._me.mesh, self._me.root)
            for address in nearest_first(service.addresses, discovery.networks)
        ]
        self._told_joins = [(address, service.join) for address, service in ours if service.join]
        return [(address, service.port) for address, service in ours]

    async def _tell_when_quiet(self, discovery: Discovery, others: bool) -> None:
        """Once, what is wrong: as soon as that is sure, or when nothing was heard for a while."""
        began = "no given address answered, and " if others else ""
        await discovery.until(lambda: discovery.trouble is not None)
        if discovery.trouble:
            text = f"{began}mDNS cannot find mesh {self._me.mesh}: {discovery.trouble}"
            self._tell(LinkError("discovery.blocked", text, hint=self._line))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.DISCOVERY_QUIET_MS / 1000):
                await discovery.until(lambda: self._ours(discovery))
                return
        text = f"{began}nobody on this network announces mesh {self._me.mesh}"
        if any(service.mesh == self._me.mesh for service in discovery.found.values()):
            text += " of this folder's CA; one of that name has another"
        text += ": is it up with --lan, and in no other VLAN, container or guest network?"
        self._tell(LinkError("discovery.nothing", text, hint=self._line))
