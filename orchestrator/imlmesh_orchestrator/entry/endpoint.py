"""Where machines that are not in yet may speak to the orchestrator: HTTPS on a port of its own.

The one rule: everything that a stranger can make us hold has a limit: connections in all and from one
address, the time of each, the bytes of head and body. One connection is one request. Deliberately
absent: what is asked; `joining` answers.
"""

import asyncio
import contextlib
import errno
import json
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, LinkError, MeshError, ProtocolError
from imlmesh_protocol.wire.codec import pack
from imlmesh_protocol.wire.joining import unpack_body
from imlmesh_runtime.background import Background
from imlmesh_runtime.files import write_private
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.pairs import own_certificate
from imlmesh_runtime.paths import Home

log = logging.getLogger(__name__)

LOOPBACK, USUAL_PORT = "127.0.0.1", 8766
_BACKLOG = 128
_STATUS = {
    "join.too_large": 413,
    "join.busy": 503,
    "internal": 500,
    "store.failed": 503,
    "store.full": 503,
}

#: gets a decoded body (None without one) and the address that asks; returns the answer's body
Handler = Callable[[Any, str], Awaitable[Mapping[str, Any]]]
#: hears of every request that is refused: the error, and the address that asked
Refused = Callable[[MeshError, str], None]


class Endpoint:
    """Serves `routes`, by (method, path), from `start` to `close`.

    `wanted` is the first address that is tried; None: of loopback, at the port of the last start.
    """

    def __init__(
        self,
        home: Home,
        wanted: Address | None,
        routes: Mapping[tuple[str, str], Handler],
        refused: Refused,
    ) -> None:
        self._home = home
        self._wanted = wanted
        self._routes = routes
        self._refused = refused
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        # nobody comes back to this door often enough to resume a session
        self._context.num_tickets = 0
        self._listening: socket.socket | None = None
        self._accepting: Background | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._near: Counter[str] = Counter()
        #: the certificate that is shown, as DER
        self.certificate = b""
        self.address: Address = (LOOPBACK, USUAL_PORT)

    def load(self) -> None:
        """Show the certificate that lies in the CA's folder to whoever comes from now on."""
        folder = self._home.ca
        self._context.load_cert_chain(folder / "join.pem", folder / "join.key")
        self.certificate = own_certificate(folder / "join.pem")

    def start(self) -> None:
        """Listen, on the running loop; LinkError `join.unreachable` when no port is free."""
        self.load()
        self._listening = _listen(self._wanted or (LOOPBACK, last_port(self._home)))
        self.address = self._listening.getsockname()[:2]
        address, port = self.address
        record = {"schema": "imlmesh.join/1", "address": address, "port": port}
        write_private(self._home.join_json, json.dumps(record).encode())
        self._accepting = Background("the way in", partial(self._accept, self._listening))
        self._accepting.start()

    async def close(self) -> None:
        """Take nobody more, and end those who are here."""
        if self._accepting is not None:
            await self._accepting.close()
        for each in self._open:
            each.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, (address, *_) = await loop.sock_accept(listening)
            except OSError as exc:
                # too many open files, or a connection that ended before it was taken
                log.warning("nobody can join: %s", exc)
                await asyncio.sleep(limits.JOIN_POLL_MS / 1000)
                continue
            if (
                len(self._open) >= limits.JOIN_CONNECTIONS
                or self._near[address] >= limits.JOIN_OF_ADDRESS
            ):
                connection.close()
                self._refused(LinkError("join.busy", "too many connections"), address)
                continue
            self._near[address] += 1
            serving = loop.create_task(self._serve(connection, address))
            self._open.add(serving)
            serving.add_done_callback(self._open.discard)

    async def _serve(self, connection: socket.socket, address: str) -> None:
        try:
            async with asyncio.timeout(limits.JOIN_CONNECTION_MS / 1000):
                await self._exchange(connection, address)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            # ssl.SSLError is an OSError: no TLS, or a client that does not believe us
            self._refused(ProtocolError("join.invalid", f"no request: {exc!r:.100}"), address)
        finally:
            self._near[address] -= 1
            if not self._near[address]:
                del self._near[address]

    async def _exchange(self, connection: socket.socket, address: str) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limits.JOIN_HEAD_BYTES, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=self._context
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            status, body = await self._answer(reader, address)
            head = f"HTTP/1.1 {status} \r\ncontent-type: application/msgpack\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            writer.close()
            with contextlib.suppress(OSError):
                # whoever does not hear us out has had the answer, or does not want it
                await writer.wait_closed()
        finally:
            transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, address: str) -> tuple[int, bytes]:
        try:
            handler, body = await self._request(reader)
            return 200, pack(dict(await handler(body, address)))
        except MeshError as exc:
            error = exc
            self._refused(exc, address)
        except (OSError, asyncio.IncompleteReadError):
            raise
        except Exception as exc:
            log.exception("a request to join", exc_info=exc)
            error = MeshError("internal", f"{type(exc).__name__}, see the log")
        told = {"code": error.code, "message": error.message[: limits.REFUSAL_CHARS]}
        return _STATUS.get(error.code, 403), pack(told)

    async def _request(self, reader: asyncio.StreamReader) -> tuple[Handler, Any]:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError as exc:
            raise ProtocolError("join.too_large", "the head of the request") from exc
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        handler = self._routes.get((method, rest.partition(" ")[0]))
        if handler is None:
            raise ProtocolError("join.invalid", f"no such request: {first[:80]!r}")
        if method == "GET":
            return handler, None
        fields = (line.partition(":") for line in lines)
        sizes = [value.strip() for name, _, value in fields if name.lower() == "content-length"]
        if len(sizes) != 1 or not sizes[0].isdecimal() or len(sizes[0]) > 9:
            raise ProtocolError("join.invalid", "no content-length")
        if int(sizes[0]) > limits.JOIN_BYTES:
            raise ProtocolError("join.too_large", f"{sizes[0]} bytes")
        return handler, unpack_body(await reader.readexactly(int(sizes[0])))


def last_port(home: Home) -> int:
    """The port of the last start: tokens that were handed out name it. Before that the usual one."""
    try:
        return int(json.loads(home.join_json.read_bytes())["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return USUAL_PORT


def _listen(wanted: Address) -> socket.socket:
    """A socket at the address and the first free port from the wanted one on."""
    address, first = wanted
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in range(first, min(first + limits.PORTS_TRIED, 65_536)):
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address, port))
            listening.listen(_BACKLOG)
        except OSError as exc:
            listening.close()
            if exc.errno == errno.EADDRINUSE:
                continue
            raise InputError("config.invalid", f"{address}:{port}: {exc.strerror}") from exc
        listening.setblocking(False)
        return listening
    raise LinkError("join.unreachable", f"no port from {first} on is free")
