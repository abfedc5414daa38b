"""The broker as it listens: a port for nodes, a port for control, TLS 1.3 with certificates on both
sides.

The one rule: nobody without a certificate of the port's own CA, and not revoked by its list, reaches
a line of the rest. Deliberately absent: starting and restarting; `child` does that from outside.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imlmesh_broker.embedded.access import Role
from imlmesh_broker.embedded.connection import Connection
from imlmesh_broker.embedded.hub import Hub
from imlmesh_broker.embedded.waiting import Waiting
from imlmesh_broker.rights import Access
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, MeshError, TrustError
from imlmesh_runtime.files import read_file

_PASSIVE = socket.AI_PASSIVE
_PAUSE_S = 1.0
_TOLD_S = 1.0
_NO_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
logger = logging.getLogger(__name__)


class _Handshake(ssl.SSLObject):
    """asyncio drops the alert that tells a client why it is refused; a wait lets it leave first."""

    _failed = False

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as exc:
            if self._failed:
                raise
            self._failed = True
            logger.warning("a stranger: %s", exc.reason, extra={"code": "link.refused"})
            raise ssl.SSLWantReadError from exc


@dataclass(frozen=True, slots=True)
class Folder:
    """What is served by: CAs, their lists, rights, and the broker's own key and certificate."""

    path: Path

    def access(self, control: str) -> Access:
        """TrustError `broker.access`, `trust.file`."""
        return Access.parse(read_file(self.path / "access.json", limits.ACCESS_BYTES), control)

    def context(self, role: Role) -> ssl.SSLContext:
        """For certificates of one role; TrustError `trust.file` when the files cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = _Handshake
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_CRL_CHECK_LEAF
        # Nobody resumes: each connection proves its certificate, and tickets cost every handshake.
        context.num_tickets = 0
        try:
            context.load_verify_locations(self.path / f"{role}-ca.pem")
            context.load_verify_locations(self.path / f"{role}-ca.crl")
            context.load_cert_chain(self.path / "broker.pem", self.path / "broker.key")
        except OSError as exc:
            raise TrustError("trust.file", f"{self.path}: {exc}") from exc
        return context


class Listeners:
    """The ports of a mesh. What they ask for changes from one connection to the next, which a server
    of asyncio does not do: it drops whom it accepted and has not begun to greet."""

    def __init__(self, hub: Hub, control: str, served: Folder) -> None:
        self._hub = hub
        self._control = control
        self._served = served
        self._loop = asyncio.get_running_loop()
        self._contexts: dict[Role, ssl.SSLContext] = {}
        self._sockets: list[socket.socket] = []
        # of each port by itself: whoever crowds the nodes' door leaves that of control open
        self._waiting: dict[Role, Waiting] = {"node": Waiting(), "control": Waiting()}
        self._turned_away = 0
        self._told_s = 0.0

    def open(self, places: Mapping[Role, tuple[str, int]]) -> None:
        """Listen at (address, port) of each role; an empty address means every one.

        LinkError `broker.failed` when a port cannot be had, and what `Folder` raises.
        """
        self.renew()
        for role, (address, port) in places.items():
            for each in _listening(address, port):
                self._sockets.append(each)
                self._loop.add_reader(each, self._accept, role, each)

    def renew(self) -> None:
        """Serve by what the files say now: connections that come from now on, and those there are."""
        access = self._served.access(self._control)
        roles: tuple[Role, ...] = ("node", "control")
        self._contexts = {role: self._served.context(role) for role in roles}
        self._hub.limit(access)

    def renew_or_shut(self) -> None:
        """As `renew`; while the files cannot be used nobody new comes in, since one whom they shut out
        could be among them. Whoever has come in stays."""
        try:
            self.renew()
        except MeshError as exc:
            self._contexts = {}
            logger.error("nobody new can come in: %s", exc, extra={"code": exc.code})

    def close(self) -> None:
        """Listen no longer."""
        for each in self._sockets:
            self._loop.remove_reader(each)
            each.close()

    def _accept(self, role: Role, listening: socket.socket) -> None:
        for _ in range(limits.BROKER_BACKLOG):
            try:
                client, (address, *_) = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                # no descriptor is free: asking again at once would only burn the processor
                logger.error(
                    "nobody can come in: %s", exc.strerror, extra={"code": "broker.failed"}
                )
                self._loop.remove_reader(listening)
                self._loop.call_later(_PAUSE_S, self._listen_again, role, listening)
                return
            context = self._contexts.get(role)
            if context is None or not self._waiting[role].has_room(address, self._loop.time()):
                client.close()
                self._turn_away(role, address)
                continue
            client.setblocking(False)
            entering = self._loop.create_task(self._let_in(role, client, context))
            self._waiting[role].enter(entering, address, self._loop.time())

    def _turn_away(self, role: Role, address: str) -> None:
        """Told once a second: a flood must not fill the disk."""
        self._turned_away += 1
        if self._loop.time() - self._told_s >= _TOLD_S:
            text = (
                f"{self._turned_away} turned away at the port for {role}, the last from {address}"
            )
            logger.warning("%s", text, extra={"code": "broker.busy"})
            self._told_s, self._turned_away = self._loop.time(), 0

    def _listen_again(self, role: Role, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening, self._accept, role, listening)

    async def _let_in(self, role: Role, client: socket.socket, context: ssl.SSLContext) -> None:
        """Returns when the client said who it is, or is gone; cancelled, it ends the connection."""
        # who breaks the handshake off or fails it is told by `_Handshake`, and is gone
        with contextlib.suppress(OSError, TimeoutError):
            _, connection = await self._loop.connect_accepted_socket(
                partial(Connection, self._hub, role),
                client,
                ssl=context,
                ssl_handshake_timeout=limits.LINK_ENTER_MS / 1000,
                ssl_shutdown_timeout=limits.LINK_CLOSE_MS / 1000,
            )
            try:
                await connection.introduced.wait()
            except asyncio.CancelledError:
                connection.end(LinkError("broker.busy", "it made room for others"))
                raise


def _listening(address: str, port: int) -> list[socket.socket]:
    """Sockets at the port of `address`, of every family that the machine has where it is empty."""
    made: list[socket.socket] = []
    asked = socket.getaddrinfo(address or None, port, type=socket.SOCK_STREAM, flags=_PASSIVE)
    for family, *_, place in asked:
        try:
            each = socket.create_server(place[:2], family=family, backlog=limits.BROKER_BACKLOG)
            each.setblocking(False)
            made.append(each)
        except OSError as exc:
            if not address and exc.errno in _NO_FAMILY:
                continue
            for each in made:
                each.close()
            text = f"{address}:{port}: {exc.strerror}"
            raise LinkError("broker.failed", text) from exc
    return made
