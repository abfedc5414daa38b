"""Finding each other by mDNS: a mesh announces itself, and so does a node that waits for one.

The one rule: what is heard is a hint and proves nothing. A mesh counts for a node when its root hash
is that of the node's own CA, and then TLS decides; what is malformed was never heard. Deliberately
absent: connecting, and IPv6, which a network with mDNS has beside IPv4.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imlmesh_protocol import limits
from imlmesh_protocol.ids import NAME
from imlmesh_protocol.wire.documents import root_hash
from imlmesh_runtime.background import Background
from imlmesh_runtime.multicast import Network, networks, trouble
from imlmesh_runtime.trust import load_public

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

logger = logging.getLogger(__name__)
# What the library has to say about sockets is told here in words, by `trouble`.
logging.getLogger("zeroconf").setLevel(logging.CRITICAL)

MESHES = "_imlmesh._tcp.local."
NODES = "_imlmesh-node._tcp.local."
_ROOT = re.compile(r"[0-9a-f]{8}")
_PORT = re.compile(r"[0-9]{1,5}")
_LABEL_NAME = 54  # a label of a name has 63 bytes, and 9 are for the root hash
T = TypeVar("T")
_NO_PORT = 9  # the discard port: a waiting node serves nothing, and an SRV record needs a port


@dataclass(frozen=True, slots=True)
class Service:
    """A mesh, or with `node` (its id) a node of one that waits. `root` are 8 hex of the hash of the
    mesh's root key; `port` is the broker's, `join` that of the endpoint where nodes join, 0 without
    one; `addresses` are IPv4."""

    mesh: str
    root: str
    node: str = ""
    port: int = _NO_PORT
    addresses: tuple[str, ...] = ()
    join: int = 0

    @property
    def kind(self) -> str:
        """Its service type."""
        return NODES if self.node else MESHES


def short_root(root_pub: Path) -> str:
    """8 hex of the root key's hash that tell meshes of one name apart; TrustError `trust.file`."""
    return root_hash(bytes(load_public(root_pub).key))[:8]


def service_of(
    kind: str, properties: Mapping[str, str | None], port: int | None, addresses: Sequence[str]
) -> Service | None:
    """What a record of the network says, or None when it is not one that we would have made."""
    mesh, root, node = (properties.get(name) or "" for name in ("mesh", "root", "node"))
    named = NAME.fullmatch(mesh) and _ROOT.fullmatch(root)
    waits = NAME.fullmatch(node) if kind == NODES else not node
    join = properties.get("join") or "0"
    joins = _PORT.fullmatch(join) and int(join) < 65_536
    if not named or not waits or not joins or not port or not addresses:
        return None
    near = tuple(addresses[: limits.DISCOVERED_ADDRESSES])
    return Service(mesh, root, node, port, near, int(join))


class Discovery:
    """Speaks mDNS on every network of this computer, and moves along when its networks change.

    Announces `announced` with the addresses of this computer and keeps `found`, the services of the
    kind `watched`, by name. `trouble` says why that cannot work: None until that was looked at,
    empty when it can.
    """

    def __init__(
        self,
        *,
        announced: Service | None = None,
        watched: str | None = None,
        here: Callable[[], tuple[Network, ...]] = networks,
    ) -> None:
        self.found: dict[str, Service] = {}
        self.trouble: str | None = None
        self.networks: tuple[Network, ...] = ()
        self._announced = announced
        self._watched = watched
        self._here = here
        self._endpoint: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._runner = Background("mDNS", self._run)
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Begin, on the running loop."""
        self._runner.start()

    async def close(self) -> None:
        """Say goodbye, and hear nothing more."""
        await self._runner.close()
        await self._shut()

    async def until(self, holds: Callable[[], T]) -> T:
        """The first true answer of `holds`, asked again whenever something changed."""
        while not (answer := holds()):
            await self._changed.wait()
        return answer

    def _change(self) -> None:
        # Everybody who waits gets an event of their own time: nobody misses the next one.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _run(self) -> None:
        """Look at our networks from time to time; begin anew when they are other ones, and now and
        then when something is wrong with them. Who hears nothing asks again."""
        loop = asyncio.get_running_loop()
        present: tuple[Network, ...] | None = None
        again_s = 0.0
        while True:
            here = self._here()
            is_time = loop.time() >= again_s
            if here != present or (self.trouble and is_time):
                present = self.networks = here
                await self._shut()
                try:
                    await self._begin(here)
                except Exception as exc:
                    # mDNS is a convenience: whatever becomes of it, who uses it goes on.
                    logger.exception("mDNS failed", extra={"code": "discovery.blocked"})
                    self._judge(f"it failed: {exc!r}")
                again_s = loop.time() + limits.DISCOVERY_AGAIN_MS / 1000
            elif is_time and not self.found:
                await self._listen()
                again_s = loop.time() + limits.DISCOVERY_AGAIN_MS / 1000
            await asyncio.sleep(limits.DISCOVERY_LOOK_MS / 1000)

    async def _begin(self, here: Sequence[Network]) -> None:
        able = [network.address for network in here if network.multicast]
        refused = ""
        try:
            if able:
                await self._open(able)
        except OSError as exc:
            refused = f"its sockets cannot be had: {exc.strerror}"
        self._judge(await trouble(here) or refused)
        if self._endpoint is not None and self._announced is not None:
            await self._announce(self._endpoint, self._announced, here)

    def _judge(self, trouble: str) -> None:
        self.trouble = trouble
        self._change()

    async def _open(self, addresses: list[str]) -> None:
        # 4 MB and 25 ms that only those pay who look for somebody
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncZeroconf

        self._endpoint = AsyncZeroconf(interfaces=addresses, ip_version=IPVersion.V4Only)
        await self._endpoint.zeroconf.async_wait_for_start()
        await self._listen()

    async def _listen(self) -> None:
        """Ask who is there, at once and then ever less often, as the library does."""
        from zeroconf.asyncio import AsyncServiceBrowser

        if self._browser is not None:
            await self._browser.async_cancel()
        if self._endpoint is not None and self._watched is not None:
            self._browser = AsyncServiceBrowser(
                self._endpoint.zeroconf, self._watched, handlers=[self._heard]
            )

    async def _announce(
        self, endpoint: "AsyncZeroconf", service: Service, here: Sequence[Network]
    ) -> None:
        from zeroconf import Error
        from zeroconf.asyncio import AsyncServiceInfo

        label = f"{(service.node or service.mesh)[:_LABEL_NAME]}-{service.root}"
        join = str(service.join or "")
        texts = {"mesh": service.mesh, "root": service.root, "node": service.node, "join": join}
        info = AsyncServiceInfo(
            service.kind,
            f"{label}.{service.kind}",
            service.port,
            properties={name: text for name, text in texts.items() if text},
            server=f"{label}.local.",
            parsed_addresses=[network.address for network in here],
        )
        try:
            # Two that share a name (one folder, started twice in two places) are both shown.
            await (await endpoint.async_register_service(info, allow_name_change=True))
        except Error as exc:
            logger.warning(
                "mDNS took no announcement: %r", exc, extra={"code": "discovery.blocked"}
            )

    def _heard(
        self,
        zeroconf: "Zeroconf",
        service_type: str,
        name: str,
        state_change: "ServiceStateChange",
    ) -> None:
        asking = self._asking.pop(name, None)
        if asking is not None:
            asking.cancel()
        if state_change.name == "Removed":
            if self.found.pop(name, None) is not None:
                self._change()
        elif name in self.found or len(self.found) + len(self._asking) < limits.DISCOVERED:
            asking = asyncio.get_running_loop().create_task(self._ask(zeroconf, service_type, name))
            self._asking[name] = asking
            asking.add_done_callback(partial(self._asked, name))

    def _asked(self, name: str, asking: "asyncio.Task[None]") -> None:
        if self._asking.get(name) is asking:
            del self._asking[name]

    async def _ask(self, zeroconf: "Zeroconf", kind: str, name: str) -> None:
        from zeroconf import Error
        from zeroconf.asyncio import AsyncServiceInfo

        try:
            info = AsyncServiceInfo(kind, name)
        except Error:
            # A name with control characters: nobody of ours is called so.
            return
        if not await info.async_request(zeroconf, limits.DISCOVERY_ANSWER_MS):
            return
        service = _read(kind, info)
        if service == self.found.get(name):
            return
        if service is None:
            del self.found[name]
        else:
            self.found[name] = service
        self._change()

    async def _shut(self) -> None:
        unanswered: list[asyncio.Task[Any]] = list(self._asking.values())
        for asking in unanswered:
            asking.cancel()
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._endpoint is not None:
            with contextlib.suppress(OSError):
                await self._endpoint.async_close()
        self._endpoint = self._browser = None
        self.found.clear()
        await asyncio.gather(*unanswered, return_exceptions=True)


def _read(kind: str, info: "AsyncServiceInfo") -> Service | None:
    try:
        properties, addresses = info.decoded_properties, info.parsed_addresses()
    except UnicodeDecodeError:
        return None
    return service_of(kind, properties, info.port, [each for each in addresses if ":" not in each])
