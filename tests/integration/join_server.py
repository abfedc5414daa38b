"""A join endpoint as small as can be: trust, nonces and renewals over TLS, for an orchestrator here."""

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from imlmesh_protocol.errors import MeshError, ProtocolError
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_runtime.files import read_file
from imlmesh_runtime.pairs import key_file

Renew = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class Nonces:
    """Each may be spent once."""

    def __init__(self) -> None:
        self._open: set[bytes] = set()

    def give(self) -> bytes:
        made = secrets.token_bytes(16)
        self._open.add(made)
        return made

    def take(self, nonce: bytes) -> None:
        if nonce not in self._open:
            raise ProtocolError("join.nonce", "not given, or used")
        self._open.remove(nonce)


class JoinServer:
    """Serves `renew` for the mesh whose CA folder is `ca`; notes which paths were asked for."""

    def __init__(self, ca: Path, nonces: Nonces, renew: Renew) -> None:
        self.ca = ca
        self.asked: list[str] = []
        #: as many answers of renewals are lost on their way, after what they tell is stored
        self.lose = 0
        self._nonces = nonces
        self._renew = renew

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[int]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pem = self.ca / "join.pem"
        context.load_cert_chain(pem, key_file(pem))
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=context)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split()[1]
                length = next(
                    (
                        int(line.split(":")[1])
                        for line in head.splitlines()
                        if line.lower().startswith("content-length")
                    ),
                    0,
                )
                body = await reader.readexactly(length)
                self.asked.append(path)
                status, told = await self._answer(path, body)
                if path == "/v1/renew" and self.lose:
                    self.lose -= 1
                    break
                data = pack(dict(told))
                answer = f"HTTP/1.1 {status} -\r\nContent-Length: {len(data)}\r\n\r\n"
                writer.write(answer.encode() + data)
        writer.close()

    async def _answer(self, path: str, body: bytes) -> tuple[int, Mapping[str, Any]]:
        try:
            if path == "/v1/trust":
                return 200, {"trust": read_file(self.ca / "trust", 200_000)}
            if path == "/v1/nonce":
                return 200, {"nonce": self._nonces.give()}
            return 200, await self._renew(unpack(body))
        except MeshError as exc:
            return 403, exc.as_record()
