"""A mesh that tells its network by mDNS where it is, so that nodes find it without an address.

The one rule: mDNS is a convenience: where it does not work that stands in the log, and all else goes
on. Deliberately absent: what an announcement looks like; `runtime/discovery` knows.
"""

import logging
from pathlib import Path

from imlmesh_protocol.errors import InputError
from imlmesh_runtime.background import Background
from imlmesh_runtime.discovery import Discovery, Service, short_root
from imlmesh_runtime.link.address import address_of
from imlmesh_runtime.multicast import is_loopback

log = logging.getLogger(__name__)


def announced_mesh(ca: Path, mesh: str, port: int, join: int) -> Service:
    """What is told of the mesh with the keys in `ca`: the ports at which nodes of other machines find
    its broker and, unless 0, where they join. TrustError `trust.file`."""
    return Service(mesh, short_root(ca / "root.pub"), port=port, join=join)


def check_announced(broker: str | None) -> None:
    """InputError `config.invalid` for a broker (ADDRESS:PORT) that mDNS would tell a wrong address of."""
    if broker is not None and not is_loopback(address_of(broker)[0]):
        text = f"--lan tells the addresses of this machine, and the broker is at {broker}"
        raise InputError("config.invalid", text)


class Announcing:
    """Tells `announced` from `start` to `close`, and the log what becomes of it."""

    def __init__(self, announced: Service) -> None:
        self._mesh = announced.mesh
        self._discovery = Discovery(announced=announced)
        self._telling = Background("telling what mDNS says", self._tell)
        self._told: tuple[str, ...] = ()

    def start(self) -> None:
        """Begin, on the running loop."""
        self._discovery.start()
        self._telling.start()

    async def close(self) -> None:
        """Say goodbye to the network."""
        await self._telling.close()
        await self._discovery.close()

    async def _tell(self) -> None:
        while True:
            where, trouble = self._told = await self._discovery.until(self._news)
            if trouble:
                extra = {"code": "discovery.blocked"}
                log.warning("mDNS does not work here: %s", trouble, extra=extra)
            else:
                log.info("mesh %s is announced by mDNS, at %s", self._mesh, where)

    def _news(self) -> tuple[str, ...]:
        """Our addresses and what is wrong; empty while it is not known, or was told already."""
        found, trouble = self._discovery.networks, self._discovery.trouble
        news = (", ".join(network.address for network in found), trouble or "")
        return () if trouble is None or news == self._told else news
